//! A stand-in for master(8): starts one daemon as master would, and watches it.
//!
//! Postfix, `src/master/master_spawn.c`: descriptors 3 and 4 are the flow-control pipe, 5 is the status
//! channel, the listening sockets begin at 6. The log is collected through the socket that postlogd(8) would
//! listen on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, Signal, kill_process};

use crate::peer::Peer;
use crate::program::Implementation;
use crate::scratch::{Scratch, give_to, main_cf};

/// How a daemon is to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    implementation: Implementation,
    daemon: String,
    service: String,
    arguments: Vec<String>,
    parameters: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    executable: Option<PathBuf>,
}

impl Plan {
    /// The service `service` (`scache`, `anvil`, `proxymap` or `proxywrite`) as master.cf has it by default.
    pub fn new(implementation: Implementation, service: &str) -> Self {
        let daemon = match service {
            "scache" | "anvil" => service,
            _ => "proxymap",
        };
        let mut arguments = Vec::new();
        if service != "proxymap" {
            arguments.push("-l".to_owned());
        }
        if service != daemon {
            arguments.extend(["-n".to_owned(), service.to_owned()]);
        }
        arguments.extend(["-t", "unix", "-u"].map(str::to_owned));
        Self {
            implementation,
            daemon: daemon.to_owned(),
            service: service.to_owned(),
            arguments,
            parameters: BTreeMap::new(),
            environment: BTreeMap::new(),
            executable: None,
        }
    }

    /// Takes this executable instead of the implementation's usual one.
    #[must_use]
    pub fn executable(mut self, path: &Path) -> Self {
        self.executable = Some(path.to_owned());
        self
    }

    /// Sets a main.cf parameter. `$SCRATCH` in the value becomes the daemon's temporary directory.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Appends an argument, as master.cf would.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Takes all arguments back, those that master gives too.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.arguments.clear();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts the daemon in a scratch directory of its own; `None`, after saying so, when the executable is
    /// not there.
    ///
    /// # Errors
    /// When files, sockets or the process cannot be made.
    pub fn start(self) -> Result<Option<StandIn>> {
        let scratch = Scratch::new(&self.service)?;
        self.start_in(scratch)
    }

    /// As [`Self::start`], in a scratch directory that already holds tables.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(self, scratch: Scratch) -> Result<Option<StandIn>> {
        let usual = || self.implementation.executable(&self.daemon);
        let Some(executable) = self.executable.clone().or_else(usual) else {
            return Ok(None);
        };
        StandIn::start(&self, &executable, scratch).map(Some)
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// `TAG/PROGRAM`.
    pub ident: String,
    /// The text, class prefix included.
    pub text: String,
}

/// What came over the status channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusCount {
    /// Messages that say the process is busy.
    pub taken: u64,
    /// Messages that say the process is free again.
    pub available: u64,
    /// Messages that are neither.
    pub strange: u64,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<Logged>>,
    grown: Condvar,
}

/// A running daemon and what master would hold for it.
#[derive(Debug)]
pub struct StandIn {
    scratch: Scratch,
    child: Child,
    started: Instant,
    service: String,
    queue: PathBuf,
    status_channel: Option<UnixStream>,
    status: Arc<Mutex<StatusCount>>,
    log: Arc<Log>,
    flow: Vec<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

/// The process generation that the stand-in hands out (octal in the environment).
pub const GENERATION: u32 = 0o17;

const END_OF_LOG: &[u8] = b"end of log";

impl StandIn {
    fn start(plan: &Plan, executable: &Path, scratch: Scratch) -> Result<Self> {
        let queue = scratch.directory("queue", 0o755)?;
        scratch.directory("queue/private", 0o755)?;
        scratch.directory("queue/public", 0o755)?;
        scratch.directory("queue/pid", 0o755)?;
        let data = scratch.directory("data", 0o755)?;
        give_to("postfix", &data)?;
        let configuration = scratch.directory("etc", 0o755)?;
        let root = scratch.path().display().to_string();
        let mut parameters: BTreeMap<String, String> = [
            ("compatibility_level", "3.7".to_owned()),
            ("queue_directory", queue.display().to_string()),
            ("data_directory", data.display().to_string()),
            ("maillog_file", "/var/log/collected-by-the-test".to_owned()),
            ("myhostname", "standin.example.test".to_owned()),
            ("mynetworks", "127.0.0.0/8".to_owned()),
            ("inet_interfaces", "127.0.0.1".to_owned()),
            ("inet_protocols", "ipv4".to_owned()),
            ("alias_maps", String::new()),
            // Nothing outlives the daemon, unless the test is about that.
            ("postkeep_connection_cache_handover_time", "0".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        parameters.extend(plan.parameters.clone());
        let main = main_cf(&parameters, &root);
        scratch.file("etc/main.cf", &main)?;
        scratch.file("etc/master.cf", "")?;
        // The reference waits while main.cf has been changed within the last second.
        let old = std::time::SystemTime::now() - Duration::from_secs(10);
        fs::File::options()
            .append(true)
            .open(configuration.join("main.cf"))?
            .set_modified(old)?;

        let listener = UnixListener::bind(queue.join("private").join(&plan.service))?;
        fs::set_permissions(
            queue.join("private").join(&plan.service),
            fs::Permissions::from_mode(0o666),
        )?;
        listener.set_nonblocking(true)?;
        let log_path = queue.join("public/postlog");
        let log_socket = UnixDatagram::bind(&log_path)?;
        fs::set_permissions(&log_path, fs::Permissions::from_mode(0o666))?;

        let (flow_read, flow_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&flow_read, true)?;
        rustix::io::ioctl_fionbio(&flow_write, true)?;
        let (status_ours, status_theirs) = UnixStream::pair()?;

        let mapping = |parent_fd: OwnedFd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        let mut command = Command::new(executable);
        command
            .arg0(&plan.daemon)
            .args(&plan.arguments)
            .current_dir(&queue)
            .env_clear()
            .env("MAIL_CONFIG", &configuration)
            .env("MAIL_LOGTAG", "postfix")
            .env("LANG", "C")
            .env("POSTLOG_SERVICE", &log_path)
            .env("POSTLOG_HOSTNAME", "standin.example.test")
            .env("GENERATION", format!("{GENERATION:o}"))
            .envs(&plan.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
            .fd_mappings(vec![
                mapping(flow_read.try_clone()?, 3),
                mapping(flow_write.try_clone()?, 4),
                mapping(status_theirs.into(), 5),
                mapping(listener.into(), 6),
            ])
            .context("descriptor numbers collide")?;
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", executable.display()))?;
        drop(command);

        let status = Arc::new(Mutex::new(StatusCount::default()));
        let log = Arc::new(Log::default());
        let status_reader = {
            let (status, channel) = (Arc::clone(&status), status_ours.try_clone()?);
            thread::spawn(move || count_status(channel, &status))
        };
        let log_reader = {
            let log = Arc::clone(&log);
            thread::spawn(move || collect_log(&log_socket, &log))
        };
        Ok(Self {
            scratch,
            child,
            started,
            service: plan.service.clone(),
            queue,
            status_channel: Some(status_ours),
            status,
            log,
            flow: vec![flow_read, flow_write],
            threads: vec![status_reader, log_reader],
        })
    }

    /// Opens a connection to the daemon without reading the announcement.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(&self) -> io::Result<Peer> {
        Peer::connect(&self.socket())
    }

    /// Opens a connection and takes the announcement from it.
    ///
    /// # Errors
    /// The system's, and as [`Peer::read_list`].
    pub fn connect_and_greet(&self) -> io::Result<Peer> {
        let mut peer = self.connect()?;
        peer.read_list()?;
        Ok(peer)
    }

    /// The path of the daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.queue.join("private").join(&self.service)
    }

    /// The directory that holds configuration, queue and tables.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When the process was about to be started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How many descriptors the process has open.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn open_descriptors(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// What the status channel has said so far.
    ///
    /// # Panics
    /// Not in practice: only when a thread panicked while counting.
    pub fn status(&self) -> StatusCount {
        self.status.lock().expect("no counter panics").clone()
    }

    /// All lines logged so far.
    ///
    /// Whatever the daemon logged before its last reply is in it: a mark is sent behind the lines and waited
    /// for.
    ///
    /// # Panics
    /// When the log collector died.
    pub fn log(&self) -> Vec<Logged> {
        let mark = UnixDatagram::unbound().expect("an unbound socket needs nothing");
        let before = {
            let lines = self.log.lines.lock().expect("no collector panics");
            lines.iter().filter(|line| line.ident == "mark").count()
        };
        mark.send_to(b"mark", self.queue.join("public/postlog"))
            .expect("the log collector listens");
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut lines = self.log.lines.lock().expect("no collector panics");
        while lines.iter().filter(|line| line.ident == "mark").count() == before
            && Instant::now() < deadline
        {
            lines = self
                .log
                .grown
                .wait_timeout(lines, Duration::from_millis(100))
                .expect("no collector panics")
                .0;
        }
        lines
            .iter()
            .filter(|line| line.ident != "mark")
            .cloned()
            .collect()
    }

    /// The texts of [`Self::log`].
    pub fn log_texts(&self) -> Vec<String> {
        self.log().into_iter().map(|line| line.text).collect()
    }

    /// Hangs up the status channel, as master does for a reload, and waits for the daemon's end.
    ///
    /// # Errors
    /// When it does not end within five seconds.
    pub fn disconnect(&mut self) -> Result<ExitStatus> {
        if let Some(channel) = self.status_channel.take() {
            let _ = channel.shutdown(Shutdown::Both);
        }
        self.wait(Duration::from_secs(5))
    }

    /// Waits for the daemon to end by itself.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "still running after {limit:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// When it is gone.
    ///
    /// # Panics
    /// Not in practice: process numbers are positive.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("process numbers are positive"), signal)?;
        Ok(())
    }

    /// The daemon is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(channel) = self.status_channel.take() {
            let _ = channel.shutdown(Shutdown::Both);
        }
        if self.wait(Duration::from_millis(500)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to(END_OF_LOG, self.queue.join("public/postlog")));
        self.flow.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn count_status(mut channel: UnixStream, status: &Mutex<StatusCount>) {
    let mut pending = Vec::new();
    let mut chunk = [0; 12 * 1024];
    while let Ok(count) = channel.read(&mut chunk) {
        if count == 0 {
            break;
        }
        pending.extend_from_slice(&chunk[..count]);
        let Ok(mut status) = status.lock() else { break };
        let whole = pending.len() / 12 * 12;
        for message in pending[..whole].chunks(12) {
            let field = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| message[at + i]));
            match (field(4), field(8)) {
                (GENERATION, 0) => status.taken += 1,
                (GENERATION, 1) => status.available += 1,
                _ => status.strange += 1,
            }
        }
        pending.drain(..whole);
    }
}

fn collect_log(socket: &UnixDatagram, log: &Log) {
    let mut record = vec![0; 65_536];
    while let Ok(length) = socket.recv(&mut record) {
        let record = &record[..length];
        if record == END_OF_LOG {
            break;
        }
        let Ok(mut lines) = log.lines.lock() else {
            break;
        };
        lines.push(parse_record(&String::from_utf8_lossy(record)));
        log.grown.notify_all();
    }
}

/// Takes `Mon DD HH:MM:SS HOST IDENT[PID]: TEXT` apart; anything else is an ident without text.
fn parse_record(record: &str) -> Logged {
    let record = record.trim_end_matches('\n');
    let parsed = record.splitn(5, ' ').nth(4).and_then(|rest| {
        let (ident, text) = rest.split_once("]: ")?;
        let (ident, _pid) = ident.rsplit_once('[')?;
        Some(Logged {
            ident: ident.to_owned(),
            text: text.to_owned(),
        })
    });
    parsed.unwrap_or_else(|| Logged {
        ident: record.to_owned(),
        text: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_record_is_taken_apart() {
        let line = parse_record("Nov 04 01:02:03 host postfix/scache[77]: warning: x [y]: z\n");
        assert_eq!(line.ident, "postfix/scache");
        assert_eq!(line.text, "warning: x [y]: z");
    }

    #[test]
    fn the_reference_starts_answers_and_ends() {
        let Some(mut daemon) = Plan::new(Implementation::Postfix, "scache")
            .start()
            .unwrap()
        else {
            return;
        };
        let mut peer = daemon.connect().unwrap();
        assert_eq!(
            peer.read_list().unwrap(),
            b"protocol\0connection_cache_protocol\0\0"
        );
        let reply = peer.exchange(b"request\0no_such\0\0").unwrap();
        assert_eq!(reply, b"status\x001\0\0");
        assert_eq!(
            daemon.log_texts(),
            ["warning: unrecognized request: \"no_such\", ignored"]
        );
        assert!(daemon.disconnect().unwrap().success());
        let status = daemon.status();
        assert_eq!((status.taken, status.strange), (1, 0));
    }
}
