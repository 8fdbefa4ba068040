//! `postkeep serve` under a service manager, in a container, and with sockets beside its usual ones.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_sys::spawn::spawn;
use rustix::process::{Pid, Signal, kill_process};

const POSTKEEP: &str = env!("CARGO_BIN_EXE_postkeep");
const LIMIT: Duration = Duration::from_secs(20);

/// A service manager that listens, and a directory for the service.
struct Manager {
    scratch: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(scratch.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { scratch, socket }
    }

    fn directory(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    fn command(&self, watchdog: Duration) -> Command {
        // The number of a process is known to itself only, before it is this program.
        let mut command = Command::new("/bin/sh");
        command
            .args([
                "-c",
                "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$@\"",
                "sh",
                POSTKEEP,
            ])
            .args(["serve", "-v", "--directory"])
            .arg(self.directory())
            .env("NOTIFY_SOCKET", self.scratch.path().join("notify"))
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.scratch.path().join("log")).unwrap());
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap()
    }

    fn message(&self) -> String {
        let mut buffer = [0; 1000];
        match self.socket.recv(&mut buffer) {
            Ok(count) => String::from_utf8_lossy(&buffer[..count]).into_owned(),
            Err(error) => panic!("{error}: {}", self.log()),
        }
    }

    /// Waits for a message that begins so; returns it.
    fn wait_for(&self, start: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.message();
            if message.starts_with(start) {
                return message;
            }
            assert!(Instant::now() < deadline, "{start}: {}", self.log());
        }
    }

    /// Forgets what has come.
    fn forget(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 1000]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Its exit status, when it ends by itself soon.
fn ended(serve: &mut Serve) -> Option<i32> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = serve.0.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Ended when dropped.
struct Serve(Child);

impl Serve {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn children(&self) -> Vec<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.0.id());
        fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .filter_map(|number| Pid::from_raw(number.parse().ok()?))
            .collect()
    }

    fn finish(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until there is an answer; services may not have begun yet.
fn ask(mut stream: impl Read + Write, request: &str) -> String {
    let text = format!("{}:{request},", request.len());
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b',') {
        match stream.read(&mut byte) {
            Ok(1) => answer.push(byte[0]),
            other => panic!("{other:?} after {answer:?}"),
        }
    }
    String::from_utf8(answer).unwrap()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Adds lines to main.cf, which is a moment old afterwards.
fn configure(directory: &Path, lines: &str) {
    let path = directory.join("main.cf");
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(10);
    file.set_modified(old).unwrap();
}

#[test]
fn the_manager_hears_of_all_that_happens() {
    let manager = Manager::new();
    let watchdog = Duration::from_secs(2);
    let serve = Serve(spawn(manager.command(watchdog), &[]).unwrap());
    assert_eq!(manager.message(), "READY=1\n");
    assert_eq!(
        manager.wait_for("STATUS="),
        "STATUS=Serving: scache, proxymap, proxywrite\n"
    );
    let began = Instant::now();
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1\n");
    }
    let passed = began.elapsed();
    assert!(passed < 3 * watchdog, "{passed:?}");
    serve.signal(Signal::HUP);
    let message = manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    assert!(message.ends_with('\n'));
    assert_eq!(manager.wait_for("READY=1"), "READY=1\n");
    // A process of a service that does nothing any more.
    manager.wait_for("WATCHDOG=1\n");
    let stopped = serve.children();
    for pid in &stopped {
        kill_process(*pid, Signal::STOP).unwrap();
    }
    let message =
        manager.wait_for("STATUS=Serving: scache, proxymap, proxywrite; no sign of life: ");
    assert!(message.contains("proxymap"), "{message}");
    manager.forget();
    thread::sleep(watchdog);
    manager.socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 100];
    while let Ok(count) = manager.socket.recv(&mut buffer) {
        assert_ne!(&buffer[..count], b"WATCHDOG=1\n");
    }
    manager.socket.set_nonblocking(false).unwrap();
    for pid in &stopped {
        kill_process(*pid, Signal::CONT).unwrap();
    }
    manager.wait_for("WATCHDOG=1\n");
    serve.signal(Signal::TERM);
    manager.wait_for("STOPPING=1\n");
    serve.finish();
    assert!(manager.log().contains("no sign of life from "));
}

#[test]
fn sockets_of_the_manager_are_those_of_the_services() {
    let manager = Manager::new();
    let path = manager.scratch.path().join("lookups");
    let proxymap = UnixListener::bind(&path).unwrap();
    let socketmap = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socketmap.local_addr().unwrap().port();
    let second = UnixListener::bind(manager.scratch.path().join("second")).unwrap();
    fs::create_dir(manager.directory()).unwrap();
    // The first start writes main.cf, so that there is something to add to.
    let first = Serve(spawn(manager.command(LIMIT), &[]).unwrap());
    manager.wait_for("READY=1");
    first.signal(Signal::TERM);
    first.finish();
    configure(
        &manager.directory(),
        "postkeep_socketmap_maps = m=inline:{ {k=v} }\n",
    );
    // Whoever comes before the service waits for it.
    let early = connect(port);
    let mut command = manager.command(LIMIT);
    command.env("LISTEN_FDS", "4").env(
        "LISTEN_FDNAMES",
        "proxymap:postkeep-socketmap.socket:socketmap:other",
    );
    let stray = UnixListener::bind(manager.scratch.path().join("stray")).unwrap();
    let passed = [
        (proxymap.as_fd(), 3),
        (socketmap.as_fd(), 4),
        (second.as_fd(), 5),
        (stray.as_fd(), 6),
    ];
    let serve = Serve(spawn(command, &passed).unwrap());
    drop((proxymap, socketmap, stray));
    manager.forget();
    assert_eq!(ask(&early, "m k"), "4:OK v,");
    assert_eq!(ask(connect(port), "m x"), "9:NOTFOUND ,");
    let second_path = manager.scratch.path().join("second");
    assert_eq!(
        ask(UnixStream::connect(second_path).unwrap(), "m k"),
        "4:OK v,"
    );
    // The greeting of proxymap, at the passed socket and nowhere else.
    let mut greeting = [0; 8];
    let mut client = UnixStream::connect(&path).unwrap();
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"protocol");
    assert!(!manager.directory().join("queue/private/proxymap").exists());
    assert!(manager.directory().join("queue/private/scache").exists());
    serve.signal(Signal::HUP);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(ask(connect(port), "m k"), "4:OK v,");
    serve.signal(Signal::TERM);
    serve.finish();
    // They are the manager's, and go on.
    assert!(path.exists());
    assert!(
        manager
            .log()
            .contains("a socket was passed for other, which is no service here")
    );
}

#[test]
fn what_was_not_passed_is_told() {
    let manager = Manager::new();
    let mut command = manager.command(LIMIT);
    // More than any program that starts this one leaves open.
    command.env("LISTEN_FDS", "500");
    let mut child = Serve(command.spawn().unwrap());
    assert_eq!(ended(&mut child), Some(1));
    assert!(
        manager.log().contains("sockets of the service manager: "),
        "{}",
        manager.log()
    );
    let file = fs::File::open("/dev/null").unwrap();
    let mut command = manager.command(LIMIT);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "scache");
    let mut child = Serve(spawn(command, &[(file.as_fd(), 3)]).unwrap());
    assert_eq!(ended(&mut child), Some(1));
    assert!(
        manager
            .log()
            .contains("the socket that was passed for scache cannot be used"),
        "{}",
        manager.log()
    );
}

#[test]
fn the_socketmap_service_comes_and_goes_with_its_addresses() {
    let manager = Manager::new();
    let serve = Serve(spawn(manager.command(LIMIT), &[]).unwrap());
    manager.wait_for("READY=1");
    let (port, other) = (free_port(), free_port());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let listen = |places: &str| {
        configure(
            &manager.directory(),
            &format!(
                "postkeep_socketmap_listen = {places}\npostkeep_socketmap_maps = m=static:x\n"
            ),
        );
        serve.signal(Signal::HUP);
        manager.wait_for("RELOADING=1");
        manager.wait_for("READY=1");
    };
    listen(&format!("inet:{port}, unix:private/socketmap"));
    let path = manager.directory().join("queue/private/socketmap");
    assert_eq!(ask(connect(port), "m k"), "4:OK x,");
    assert_eq!(ask(UnixStream::connect(&path).unwrap(), "m k"), "4:OK x,");
    // A socket that stays is not made anew; one that cannot be made changes nothing.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();
    let kept = TcpListener::bind(format!("127.0.0.1:{taken}"));
    listen(&format!("inet:{port}, inet:{taken}"));
    drop(kept);
    assert_eq!(ask(connect(port), "m k"), "4:OK x,");
    listen(&format!("inet:{other}"));
    assert_eq!(ask(connect(other), "m k"), "4:OK x,");
    assert!(!path.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    // What makes no sense changes nothing either.
    listen("inet:here");
    assert!(
        manager
            .log()
            .contains("no reload: bad postkeep_socketmap_listen value")
    );
    assert_eq!(ask(connect(other), "m k"), "4:OK x,");
    listen("");
    assert!(TcpStream::connect(("127.0.0.1", other)).is_err());
    serve.signal(Signal::TERM);
    serve.finish();
}

#[test]
fn as_process_one_it_ends_on_a_signal_and_takes_note_of_other_s_children() {
    let manager = Manager::new();
    let able = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .stderr(Stdio::null())
        .status();
    if !able.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: no process namespaces here");
        assert!(std::env::var_os("CI").is_none(), "skipped under CI");
        return;
    }
    // The shell that starts it leaves a child behind, which ends later, and has another parent then.
    let script = format!(
        "(sleep 0.5 & echo $! >{0}/left); exec \"$@\"",
        manager.scratch.path().display()
    );
    let child = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "/bin/sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(POSTKEEP)
        .args(["serve", "-v", "--directory"])
        .arg(manager.directory())
        .env("NOTIFY_SOCKET", manager.scratch.path().join("notify"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(manager.scratch.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut serve = Serve(child);
    manager.wait_for("READY=1");
    let inside = serve.children()[0];
    let zombies = || {
        let path = format!("/proc/{0}/task/{0}/children", inside.as_raw_nonzero());
        let children = fs::read_to_string(path).unwrap();
        let state = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        children
            .split_whitespace()
            .filter(|pid| state(pid).contains(") Z "))
            .count()
    };
    let left = || {
        let path = format!("/proc/{0}/task/{0}/children", inside.as_raw_nonzero());
        fs::read_to_string(path).unwrap().split_whitespace().count()
    };
    let deadline = Instant::now() + LIMIT;
    while left() > 3 || zombies() > 0 {
        assert!(Instant::now() < deadline, "{} {}", left(), zombies());
        thread::sleep(Duration::from_millis(20));
    }
    kill_process(inside, Signal::TERM).unwrap();
    manager.wait_for("STOPPING=1");
    assert!(serve.0.wait().unwrap().success());
}

fn reload(directory: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(POSTKEEP)
        .arg("reload")
        .args(words)
        .arg("--directory")
        .arg(directory)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn processes(serve: &Serve, name: &str) -> Vec<Pid> {
    let is_it = |pid: &Pid| {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        let words = fs::read(path).unwrap_or_default();
        words.split(|&byte| byte == 0).next() == Some(name.as_bytes())
    };
    serve.children().into_iter().filter(is_it).collect()
}

#[test]
fn one_service_or_one_table_is_reloaded() {
    let manager = Manager::new();
    let directory = manager.directory();
    let serve = Serve(spawn(manager.command(LIMIT), &[]).unwrap());
    manager.wait_for("READY=1");
    let text = directory.join("tables/words");
    fs::create_dir_all(directory.join("tables")).unwrap();
    fs::write(&text, "a 1\n").unwrap();
    let table = format!("texthash:{}", text.display());
    configure(
        &directory,
        &format!(
            "postkeep_socketmap_listen = unix:private/socketmap\npostkeep_socketmap_maps = words={table}\n"
        ),
    );
    assert_eq!(reload(&directory, &[]).0, Some(0));
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    let path = directory.join("queue/private/socketmap");
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(ask(&client, "words a"), "4:OK 1,");
    // By the name of the map and by that of the table; the client stays.
    for name in ["words", &table] {
        let (status, said) = reload(&directory, &["socketmap", "--table", name]);
        assert_eq!(
            (status, said.as_str()),
            (Some(0), "socketmap: the table is opened anew\n")
        );
    }
    assert_eq!(ask(&client, "words a"), "4:OK 1,");
    let (status, said) = reload(&directory, &["--table", "words"]);
    assert_eq!(
        (status, said.as_str()),
        (Some(0), "socketmap: the table is opened anew\n")
    );
    assert_eq!(reload(&directory, &["--table", "hash:/no/such"]).0, Some(1));
    assert_eq!(
        reload(&directory, &["proxymap", "--table", "words"]).0,
        Some(1)
    );
    assert_eq!(reload(&directory, &["postscreen"]).0, Some(1));
    // A table that cannot be opened stays.
    fs::remove_file(&text).unwrap();
    let (status, said) = reload(&directory, &["--table", "words"]);
    assert!(
        status == Some(1) && said.contains("No such file or directory"),
        "{said}"
    );
    assert_eq!(ask(&client, "words a"), "4:OK 1,");
    fs::write(&text, "a 2\n").unwrap();
    // A service: another process, and a client that comes meanwhile waits for it.
    let (before, others) = (
        processes(&serve, "socketmap"),
        processes(&serve, "proxymap"),
    );
    assert_eq!(reload(&directory, &["socketmap"]).0, Some(0));
    client.read_exact(&mut [0]).unwrap_err();
    assert_eq!(
        ask(UnixStream::connect(&path).unwrap(), "words a"),
        "4:OK 2,"
    );
    assert_ne!(processes(&serve, "socketmap"), before);
    assert_eq!(processes(&serve, "proxymap"), others);
    // Nobody but root and the services' own user.
    let root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    if root {
        use std::os::unix::fs::PermissionsExt;
        for place in ["", "state", "state/queue", "state/queue/private"] {
            let place = manager.scratch.path().join(place);
            fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let refused = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                POSTKEEP,
                "reload",
                "-d",
            ])
            .arg(&directory)
            .arg("socketmap")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            said.contains("only root and the user of the service may order that")
                // Where the program itself is out of the reach of others.
                || said.contains("Permission denied"),
            "{said}"
        );
    }
    serve.signal(Signal::TERM);
    serve.finish();
    assert_eq!(reload(&directory, &[]).0, Some(1));
}
