//! A whole Postfix of one's own: real master(8) and daemons, with `scache` and `proxymap` theirs or ours.
//!
//! Configuration, queue, data and the daemon directory (links into the installed one) lie in a scratch
//! directory; it listens on loopback ports that were free, logs through postlogd(8) into a file, and shares
//! nothing with an instance of the system.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::program::{Implementation, RealPostfix, real_postfix};
use crate::scratch::{Scratch, give_to, main_cf};

/// What the instance is to look like.
#[derive(Clone, Debug)]
pub struct Plan {
    implementation: Implementation,
    parameters: BTreeMap<String, String>,
    services: Vec<String>,
    files: Vec<(String, String)>,
    indexed: Vec<(String, String)>,
    executable: Option<PathBuf>,
    daemons: Vec<String>,
    others: Vec<(String, PathBuf)>,
}

impl Plan {
    /// An instance that delivers nothing locally and knows no domain, with the connection cache and the
    /// lookup table server of `implementation`.
    pub fn new(implementation: Implementation) -> Self {
        Self {
            implementation,
            parameters: BTreeMap::new(),
            services: Vec::new(),
            files: Vec::new(),
            indexed: Vec::new(),
            executable: None,
            daemons: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Takes this executable for the daemon of that name.
    #[must_use]
    pub fn daemon_at(mut self, name: &str, path: &Path) -> Self {
        self.others.push((name.to_owned(), path.to_path_buf()));
        self
    }

    /// Makes our executable a daemon of that name, too, for a line of master.cf.
    #[must_use]
    pub fn daemon(mut self, name: &str) -> Self {
        self.daemons.push(name.to_owned());
        self
    }

    /// Takes this executable for both daemons instead of the implementation's.
    #[must_use]
    pub fn executable(mut self, path: &Path) -> Self {
        self.executable = Some(path.to_path_buf());
        self
    }

    /// Sets a main.cf parameter. `$SCRATCH` in the value becomes the instance's directory.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a line to master.cf. `$SCRATCH` is replaced as in [`Self::parameter`].
    #[must_use]
    pub fn service(mut self, line: &str) -> Self {
        self.services.push(line.to_owned());
        self
    }

    /// Adds a file `tables/NAME`.
    #[must_use]
    pub fn table(mut self, name: &str, content: &str) -> Self {
        self.files
            .push((format!("tables/{name}"), content.to_owned()));
        self
    }

    /// Adds a file `tables/NAME` and has the real postmap(1) index it as `kind` (lmdb ...).
    #[must_use]
    pub fn indexed_table(mut self, kind: &str, name: &str, content: &str) -> Self {
        self.indexed
            .push((kind.to_owned(), format!("tables/{name}")));
        self.table(name, content)
    }

    /// Starts the instance; `None`, after saying so, when Postfix or our executable is not there.
    ///
    /// # Errors
    /// When it cannot be set up, or does not come up within ten seconds.
    pub fn start(self) -> Result<Option<PrivatePostfix>> {
        let Some(real) = real_postfix() else {
            return Ok(None);
        };
        let mut replaced = Vec::new();
        for daemon in ["scache", "proxymap"] {
            let executable = match &self.executable {
                Some(executable) => Some(executable.clone()),
                None => self.implementation.executable(daemon),
            };
            let Some(executable) = executable else {
                return Ok(None);
            };
            replaced.push((daemon, executable));
        }
        for daemon in &self.daemons {
            let Some(executable) = Implementation::Postkeep.executable(daemon) else {
                return Ok(None);
            };
            replaced.push((daemon, executable));
        }
        for (daemon, executable) in &self.others {
            replaced.push((daemon, executable.clone()));
        }
        PrivatePostfix::start(&self, real, &replaced).map(Some)
    }
}

/// A running instance; stopped and removed when dropped.
#[derive(Debug)]
pub struct PrivatePostfix {
    real: RealPostfix,
    scratch: Scratch,
    master: Child,
    log_file: PathBuf,
    log_ready: bool,
}

/// A loopback port nobody listens on at the moment.
///
/// # Errors
/// When the system has none left.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// The services every instance has: as in the default master.cf, without chroot, without the parts that belong
/// to local delivery, and with a queue manager that looks at its queue each second.
const SERVICES: &str = "\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - y - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

impl PrivatePostfix {
    fn start(plan: &Plan, real: RealPostfix, replaced: &[(&str, PathBuf)]) -> Result<Self> {
        let scratch = Scratch::new("postfix")?;
        let root = scratch.path().display().to_string();
        make_queue(&scratch)?;
        let data = scratch.directory("data", 0o755)?;
        give_to("postfix", &data)?;
        scratch.directory("tables", 0o755)?;
        let log_file = scratch.file("maillog", "")?;
        let daemons = scratch.directory("daemons", 0o755)?;
        for entry in fs::read_dir(&real.daemon_directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if !replaced.iter().any(|(daemon, _)| name == **daemon) {
                symlink(entry.path(), daemons.join(name))?;
            }
        }
        for (daemon, executable) in replaced {
            symlink(fs::canonicalize(executable)?, daemons.join(daemon))?;
        }

        let mut parameters: BTreeMap<String, String> = [
            ("compatibility_level", "3.7".to_owned()),
            ("queue_directory", format!("{root}/queue")),
            ("data_directory", format!("{root}/data")),
            ("daemon_directory", format!("{root}/daemons")),
            (
                "command_directory",
                real.command_directory.display().to_string(),
            ),
            ("mail_owner", "postfix".to_owned()),
            ("setgid_group", "postdrop".to_owned()),
            ("myhostname", "mail.example.test".to_owned()),
            ("mydestination", String::new()),
            ("mynetworks", "127.0.0.0/8".to_owned()),
            ("inet_interfaces", "127.0.0.1".to_owned()),
            ("inet_protocols", "ipv4".to_owned()),
            ("smtp_dns_support_level", "disabled".to_owned()),
            ("maillog_file", log_file.display().to_string()),
            ("maillog_file_prefixes", root.clone()),
            ("alias_maps", String::new()),
            ("alias_database", String::new()),
            ("service_throttle_time", "1s".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        parameters.extend(plan.parameters.clone());
        let main = main_cf(&parameters, &root);
        scratch.directory("etc", 0o755)?;
        scratch.file("etc/main.cf", &main)?;
        let mut master = SERVICES.to_owned();
        for line in &plan.services {
            master.push_str(&line.replace("$SCRATCH", &root));
            master.push('\n');
        }
        scratch.file("etc/master.cf", &master)?;
        for (name, content) in &plan.files {
            scratch.file(name, content)?;
        }
        // The reference waits while main.cf has been changed within the last second.
        let old = std::time::SystemTime::now() - Duration::from_secs(10);
        fs::File::options()
            .append(true)
            .open(scratch.path().join("etc/main.cf"))?
            .set_modified(old)?;

        for (kind, name) in &plan.indexed {
            let status = real
                .command("postmap")
                .arg("-c")
                .arg(scratch.path().join("etc"))
                .arg(format!("{kind}:{root}/{name}"))
                .status()?;
            ensure!(status.success(), "postmap {kind}:{name}: {status}");
        }
        let master = start_master(&scratch)?;
        let mut instance = Self {
            real,
            scratch,
            master,
            log_file,
            log_ready: false,
        };
        instance.wait_for("master to start", Duration::from_secs(10), |instance| {
            Ok(instance.log().contains("daemon started"))
        })?;
        instance.log_ready = true;
        Ok(instance)
    }

    /// The instance's directory, `$SCRATCH` in a [`Plan`].
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The configuration directory.
    pub fn configuration_directory(&self) -> PathBuf {
        self.scratch.path().join("etc")
    }

    /// The file `tables/NAME`.
    pub fn table(&self, name: &str) -> PathBuf {
        self.scratch.path().join("tables").join(name)
    }

    /// The whole log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log_file).unwrap_or_default()).into_owned()
    }

    /// How many log lines hold `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.log()
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Runs one of Postfix's commands with this instance's configuration.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Result<Output> {
        self.real
            .command(name)
            .arg("-c")
            .arg(self.configuration_directory())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {name}"))
    }

    /// `postfix reload`.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn reload(&self) -> Result<()> {
        let output = self.command("postfix", &["reload"])?;
        ensure!(
            output.status.success(),
            "postfix reload: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Stops it as `postfix abort` does, and starts it again.
    ///
    /// # Errors
    /// When it does not end, or does not come up again, within ten seconds.
    pub fn restart(&mut self) -> Result<()> {
        let starts = self.logged("daemon started");
        let pid = as_pid(self.master.id()).context("master has a number")?;
        kill_process(pid, Signal::TERM)?;
        self.master.wait()?;
        self.master = start_master(&self.scratch)?;
        self.wait_for("master to start", Duration::from_secs(10), |instance| {
            Ok(instance.logged("daemon started") > starts)
        })
    }

    /// The processes of a service's daemon that master has started, by the daemon's file name, with their
    /// arguments.
    pub fn processes(&self, daemon: &str) -> Vec<(Pid, Vec<String>)> {
        let parent = self.master.id();
        let mut found = Vec::new();
        for pid in process_numbers() {
            if parent_of(pid) != Some(parent) {
                continue;
            }
            let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else {
                continue;
            };
            let arguments: Vec<String> = arguments
                .split(|&byte| byte == 0)
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect();
            let name = arguments[0].rsplit('/').next().unwrap_or_default();
            if name == daemon
                && let Some(pid) = as_pid(pid)
            {
                found.push((pid, arguments));
            }
        }
        found
    }

    /// Kills every process of a daemon; returns how many there were.
    pub fn kill(&self, daemon: &str) -> usize {
        let processes = self.processes(daemon);
        for (pid, _) in &processes {
            let _ = kill_process(*pid, Signal::KILL);
        }
        processes.len()
    }

    /// The messages in the queue that were not logged as sent.
    ///
    /// A message that was in delivery when qmgr(8) was replaced stays in the queue for a minute although all
    /// its recipients are done: `skipped, still being delivered`. It is not counted.
    ///
    /// # Errors
    /// When the queue cannot be read.
    pub fn undelivered(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for queue in ["maildrop", "incoming", "active", "deferred"] {
            collect_files(&self.scratch.path().join("queue").join(queue), &mut names)?;
        }
        if !names.is_empty() {
            let log = self.log();
            names.retain(|name| {
                let mark = format!(" {name}: to=<");
                !log.lines()
                    .any(|line| line.contains(&mark) && line.contains("status=sent"))
            });
        }
        Ok(names)
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// The condition's, and when it does not hold within `limit`; the end of the log is in the text.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !condition(self)? {
            if let Some(status) = self.master.try_wait()? {
                bail!("master ended: {status}\n{}", self.end_of_log());
            }
            if Instant::now() > deadline {
                bail!("waited {limit:?} for {what}\n{}", self.end_of_log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until something listens on this loopback port.
    ///
    /// # Errors
    /// When nothing does within ten seconds.
    pub fn wait_for_port(&mut self, port: u16) -> Result<()> {
        self.wait_for("a listener", Duration::from_secs(10), |_| {
            Ok(listening(port))
        })
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn stop(&mut self) {
        let Some(pid) = as_pid(self.master.id()) else {
            return;
        };
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.master.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.master.kill();
        let _ = self.master.wait();
        // Daemons leave by themselves when master is gone; those that do not are recognised by where they run.
        let queue = self.scratch.path().join("queue");
        let mut left = Vec::new();
        for _ in 0..50 {
            left = processes_in(&queue);
            if left.is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for PrivatePostfix {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() && self.log_ready {
            eprintln!(
                "--- end of the private Postfix's log\n{}",
                self.end_of_log()
            );
        }
    }
}

fn start_master(scratch: &Scratch) -> Result<Child> {
    Command::new(scratch.path().join("daemons/master"))
        .arg("-c")
        .arg(scratch.path().join("etc"))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start master")
}

/// Something listens on this loopback port.
pub fn listening(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

fn make_queue(scratch: &Scratch) -> Result<()> {
    scratch.directory("queue", 0o755)?;
    for (name, mode, owner) in [
        ("active", 0o700, "postfix"),
        ("bounce", 0o700, "postfix"),
        ("corrupt", 0o700, "postfix"),
        ("defer", 0o700, "postfix"),
        ("deferred", 0o700, "postfix"),
        ("flush", 0o700, "postfix"),
        ("hold", 0o700, "postfix"),
        ("incoming", 0o700, "postfix"),
        ("maildrop", 0o1730, "postfix:postdrop"),
        ("pid", 0o755, "root"),
        ("private", 0o700, "postfix"),
        ("public", 0o2710, "postfix:postdrop"),
        ("saved", 0o700, "postfix"),
        ("trace", 0o700, "postfix"),
    ] {
        let path = scratch.directory(&format!("queue/{name}"), mode)?;
        give_to(owner, &path)?;
    }
    Ok(())
}

fn collect_files(directory: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        // What is gone since the directory was read is a message on its way.
        let Ok(entry) = entry else { continue };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_files(&entry.path(), names)?,
            Ok(_) => names.push(entry.file_name().to_string_lossy().into_owned()),
            Err(_) => {}
        }
    }
    Ok(())
}

fn process_numbers() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold anything; what follows it does not.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn processes_in(directory: &Path) -> Vec<Pid> {
    process_numbers()
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory))
        .filter_map(as_pid)
        .collect()
}

fn as_pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}
