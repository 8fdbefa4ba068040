//! Private redis-server(1), alone, in a cluster, or with a redis-sentinel(1).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::{Process, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "redis";

/// How long until things that servers do on their own have happened.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server.
#[derive(Debug)]
pub struct Redis {
    /// Its process.
    pub process: Process,
    /// Its port on 127.0.0.1; of TLS, when it has that.
    pub port: u16,
    /// Its UNIX-domain socket.
    pub socket: PathBuf,
    /// Certificates; a server without TLS does not use them.
    pub certificates: Option<Certificates>,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
}

impl Redis {
    /// Starts one; `None`, after saying SKIP, where it is not installed.
    ///
    /// - `options`: more of its own, such as `--requirepass x`
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(options: &[&str]) -> Option<Self> {
        Self::with(None, options)
    }

    /// The same with TLS on its port.
    ///
    /// - `pick`: the server's certificate
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_tls(pick: fn(&Certificates) -> &Pair, options: &[&str]) -> Option<Self> {
        Self::with(Some(pick), options)
    }

    fn with(pick: Option<fn(&Certificates) -> &Pair>, options: &[&str]) -> Option<Self> {
        if !installed("redis-server", "redis-server") {
            return None;
        }
        let scratch = Scratch::new("redis").unwrap();
        let home = scratch.directory("home", 0o755).unwrap();
        give_to(USER, &home).unwrap();
        let socket = home.join("s");
        let port = free_port().unwrap();
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let number = port.to_string();
        let mut words = vec![
            "redis-server".to_owned(),
            "--bind".to_owned(),
            "127.0.0.1".to_owned(),
            "--dir".to_owned(),
            path(&home),
            "--unixsocket".to_owned(),
            path(&socket),
            "--save".to_owned(),
            String::new(),
            "--repl-diskless-sync-delay".to_owned(),
            "0".to_owned(),
        ];
        let certificates = pick.map(|pick| {
            let directory = scratch.directory("certificates", 0o755).unwrap();
            let made = Certificates::make(&directory);
            let pair = pick(&made).clone();
            let options = [
                ("--port", "0".to_owned()),
                ("--tls-port", number.clone()),
                ("--tls-cert-file", path(&pair.certificate)),
                ("--tls-key-file", path(&pair.key)),
                ("--tls-ca-cert-file", path(&made.authority)),
            ];
            words.extend(options.map(|(key, value)| [key.to_owned(), value]).concat());
            made
        });
        if certificates.is_none() {
            words.extend(["--port".to_owned(), number]);
        }
        words.extend(options.iter().map(|&option| option.to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let process = Process::new(USER, &scratch.path().join("log"), &words);
        let mut redis = Self {
            process,
            port,
            socket,
            certificates,
            scratch,
        };
        redis.restart();
        Some(redis)
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let socket = self.socket.clone();
        // One that needs a password answers, too.
        let answers = || {
            let output = Command::new("redis-cli")
                .args(["-s", socket.to_str().unwrap(), "PING"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ["PONG", "NOAUTH", "DENIED"]
                .iter()
                .any(|word| said.contains(word))
        };
        self.process.start(answers);
    }

    /// What redis-cli(1) prints for a command.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn command(&self, words: &[&[u8]]) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        let output = Command::new("redis-cli")
            .arg("-s")
            .arg(&self.socket)
            .args(words.iter().map(|word| std::ffi::OsStr::from_bytes(word)))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until a command prints what is wanted.
    ///
    /// # Panics
    /// When it never does.
    pub fn wait_for(&self, words: &[&[u8]], wanted: &str) {
        wait_until(wanted, || self.command(words).contains(wanted));
    }
}

/// Waits for something.
///
/// # Panics
/// When it never happens.
pub fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A master and its replica, and a sentinel that knows them as `mail`.
#[derive(Debug)]
pub struct Watched {
    /// The first is the master at the beginning.
    pub servers: [Redis; 2],
    sentinel: Process,
    /// The sentinel's port on 127.0.0.1.
    pub port: u16,
}

impl Watched {
    /// Starts them; `None`, after saying SKIP, where they are not installed.
    ///
    /// # Panics
    /// When they do not start.
    pub fn start() -> Option<Self> {
        if !installed("redis-sentinel", "redis-sentinel") {
            return None;
        }
        let master = Redis::start(&[])?;
        let of = format!("127.0.0.1 {}", master.port);
        let replica = Redis::start(&["--replicaof", &of])?;
        replica.wait_for(&[b"ROLE"], "connected");
        let port = free_port().unwrap();
        let home = master.scratch.directory("sentinel", 0o755).unwrap();
        let file = home.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mail {of} 1\n\
             sentinel down-after-milliseconds mail 300\nsentinel failover-timeout mail 3000\n",
            home.display()
        );
        fs::write(&file, text).unwrap();
        give_to(USER, &home).unwrap();
        give_to(USER, &file).unwrap();
        let words = ["redis-sentinel", file.to_str().unwrap()];
        let mut sentinel = Process::new(USER, &master.scratch.path().join("sentinel.log"), &words);
        let number = port.to_string();
        sentinel.start(|| {
            let words = ["-p", &number, "SENTINEL", "REPLICAS", "mail"];
            let output = Command::new("redis-cli").args(words).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains(&replica.port.to_string())
        });
        Some(Self {
            servers: [master, replica],
            sentinel,
            port,
        })
    }

    /// Ends the sentinel.
    pub fn stop_sentinel(&mut self) {
        self.sentinel.kill();
    }
}

/// Three nodes with a third of the slots each.
///
/// # Panics
/// When they do not start.
pub fn cluster() -> Option<Vec<Redis>> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = free_port().unwrap().to_string();
        nodes.push(Redis::start(&[
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus,
        ])?);
    }
    let hosts: Vec<_> = nodes.iter().map(Redis::host).collect();
    let output = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&hosts)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for node in &nodes {
        node.wait_for(&[b"CLUSTER", b"INFO"], "cluster_state:ok");
    }
    Some(nodes)
}
