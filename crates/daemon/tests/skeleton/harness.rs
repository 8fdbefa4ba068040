//! Starts the example daemon as master(8) would, and watches it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

/// How a daemon is to be started.
pub struct Plan {
    arguments: Vec<String>,
    main_cf: String,
    environment: Vec<(String, String)>,
    cleared: Vec<String>,
    pub listeners: Vec<OwnedFd>,
    stdin: Stdio,
    stdout: Stdio,
}

impl Plan {
    pub fn new(arguments: &[&str]) -> Self {
        Self {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            main_cf: String::new(),
            environment: Vec::new(),
            cleared: Vec::new(),
            listeners: Vec::new(),
            stdin: Stdio::null(),
            stdout: Stdio::null(),
        }
    }

    pub fn unix() -> Self {
        Self::new(&["-t", "unix"])
    }

    pub fn main_cf(mut self, lines: &str) -> Self {
        self.main_cf.push_str(lines);
        self.main_cf.push('\n');
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.cleared.push(name.to_owned());
        self
    }

    pub fn listener(mut self, listener: impl Into<OwnedFd>) -> Self {
        self.listeners.push(listener.into());
        self
    }

    pub fn streams(mut self, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self.stdout = stdout.into();
        self
    }

    /// Starts it. Without listeners of its own it gets the UNIX socket `socket`.
    pub fn start(mut self) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let queue = directory.path().to_owned();
        std::fs::set_permissions(&queue, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        std::fs::create_dir(queue.join("public")).unwrap();
        let log_path = queue.join("public/postlog");
        let log_socket = UnixDatagram::bind(&log_path).unwrap();
        std::fs::set_permissions(
            &log_path,
            std::os::unix::fs::PermissionsExt::from_mode(0o666),
        )
        .unwrap();
        let main_cf = queue.join("main.cf");
        let defaults = format!(
            "compatibility_level = 3.7\nqueue_directory = {}\nmaillog_file = /var/x\nmyhostname = host.example.com\n",
            queue.display()
        );
        // Parameters of a test replace these without a warning.
        let own = self.main_cf.clone();
        let is_replaced = |line: &str| {
            let name = line.split(' ').next().unwrap_or_default();
            own.lines().any(|line| line.split(' ').next() == Some(name))
        };
        let kept: Vec<&str> = defaults.lines().filter(|line| !is_replaced(line)).collect();
        std::fs::write(&main_cf, format!("{}\n{own}", kept.join("\n"))).unwrap();
        // A file that has just been written is read again and again.
        std::fs::File::options()
            .append(true)
            .open(&main_cf)
            .unwrap()
            .set_modified(SystemTime::now() - Duration::from_secs(10))
            .unwrap();
        if self.listeners.is_empty() {
            let listener = UnixListener::bind(queue.join("socket")).unwrap();
            listener.set_nonblocking(true).unwrap();
            self.listeners.push(listener.into());
        }

        let (flow_read, flow_write) = std::io::pipe().unwrap();
        let (status, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(example());
        command
            .arg0("echo")
            .args(&self.arguments)
            .env_clear()
            .env("MAIL_CONFIG", &queue)
            .env("POSTLOG_SERVICE", &log_path)
            .env("POSTLOG_HOSTNAME", "host.example.com")
            .env("GENERATION", "17")
            .envs(self.environment)
            .current_dir(&queue)
            .stdin(self.stdin)
            .stdout(self.stdout);
        for name in &self.cleared {
            command.env_remove(name);
        }
        let mut descriptors: Vec<(BorrowedFd<'_>, i32)> = vec![
            (flow_read.as_fd(), 3),
            (flow_write.as_fd(), 4),
            (theirs.as_fd(), 5),
        ];
        descriptors.extend(self.listeners.iter().map(AsFd::as_fd).zip(6..));
        let started = Instant::now();
        let child = postkeep_sys::spawn::spawn(command, &descriptors).unwrap();

        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut record = [0; 8192];
            while let Ok(length) = log_socket.recv(&mut record) {
                lines
                    .lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&record[..length]).into_owned());
            }
        });
        Daemon {
            child,
            started,
            queue,
            status: Some(status),
            log,
            flow_write: OwnedFd::from(flow_write),
            _flow_read: OwnedFd::from(flow_read),
            _listeners: self.listeners,
            _directory: directory,
        }
    }
}

/// A running daemon.
pub struct Daemon {
    pub child: Child,
    pub started: Instant,
    pub queue: PathBuf,
    pub status: Option<UnixStream>,
    log: Arc<Mutex<Vec<String>>>,
    pub flow_write: OwnedFd,
    _flow_read: OwnedFd,
    _listeners: Vec<OwnedFd>,
    _directory: TempDir,
}

impl Daemon {
    pub fn connect(&self) -> Peer {
        self.connect_to("socket")
    }

    /// Connects and takes the greeting.
    pub fn greeted(&self) -> Peer {
        let mut peer = self.connect();
        assert_eq!(peer.line(), "hello");
        peer
    }

    pub fn connect_to(&self, name: &str) -> Peer {
        Peer::new(UnixStream::connect(self.queue.join(name)).unwrap())
    }

    /// Waits for the end; the time is counted from the start.
    pub fn wait(&mut self) -> (ExitStatus, Duration) {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.started.elapsed());
            }
            assert!(
                Instant::now() < limit,
                "still running; log: {:?}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Hangs up as master does; returns how long the daemon took to end, which must be with status 0.
    pub fn hang_up(&mut self) -> Duration {
        let began = Instant::now();
        if let Some(status) = &self.status {
            status.shutdown(Shutdown::Both).unwrap();
        }
        let (status, _) = self.wait();
        assert!(status.success(), "{status}; log: {:?}", self.log());
        began.elapsed()
    }

    /// What was logged, without time, host and process number: `IDENT: TEXT`.
    pub fn log(&self) -> Vec<String> {
        // Records are in the socket by now; their reader may not have had its turn.
        std::thread::sleep(Duration::from_millis(20));
        let lines = self.log.lock().unwrap();
        let pid = format!("[{}]", self.child.id());
        lines
            .iter()
            .map(|line| {
                line.splitn(5, ' ')
                    .nth(4)
                    .unwrap_or(line)
                    .replacen(&pid, "", 1)
            })
            .collect()
    }

    pub fn raw_log(&self) -> Vec<String> {
        std::thread::sleep(Duration::from_millis(20));
        self.log.lock().unwrap().clone()
    }

    pub fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(name)
    }

    /// A line of /proc/PID/status.
    pub fn proc_status(&self, name: &str) -> String {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    /// Descriptors that are open in the daemon.
    pub fn descriptors(&self) -> Vec<i32> {
        std::fs::read_dir(self.proc("fd"))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    /// Everything that the daemon has said to master so far, as numbers.
    pub fn status_messages(&self) -> Vec<[u32; 3]> {
        let mut channel = self.status.as_ref().unwrap();
        channel.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let _ = channel.read_to_end(&mut bytes);
        channel.set_nonblocking(false).unwrap();
        assert_eq!(bytes.len() % 12, 0);
        let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        bytes
            .chunks(12)
            .map(|message| {
                [
                    number(&message[..4]),
                    number(&message[4..8]),
                    number(&message[8..]),
                ]
            })
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client.
pub struct Peer {
    pub stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Peer {
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// A line, without its end; empty at the end of the stream.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    pub fn ask(&mut self, text: &str) -> String {
        self.send(&format!("{text}\n"));
        self.line()
    }

    /// The daemon has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.read(&mut [0]), Ok(0))
    }
}

/// The example daemon, which cargo builds before it runs tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/echo");
    assert!(path.exists(), "{} has not been built", path.display());
    path
}
