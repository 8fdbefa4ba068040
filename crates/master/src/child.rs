//! One service: its sockets, its process, and what its process says about itself.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use postkeep_sys::spawn::spawn;

use crate::listener::{Address, Listener};

/// Length of a status message: process ID, generation and status, each four bytes in native order.
const STATUS_LENGTH: usize = 12;

/// Status of a process that has finished a request (`MASTER_STAT_AVAIL`).
const AVAILABLE: i32 = 1;

/// How often a service is to say that it is alive, in milliseconds, by a status message of a kind that master(8) does not
/// know and never asks for.
const HEARTBEAT: &str = "POSTKEEP_HEARTBEAT";

/// A process that lived this long was not broken from the start.
const SETTLED: Duration = Duration::from_secs(10);

/// Longest pause before a broken service is tried again (the default of `service_throttle_time`).
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How one service is started: what an entry of master.cf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name of the service and of its socket.
    pub name: String,
    /// Base name under which the executable is started (`argv[0]`), which decides what it is.
    pub program: String,
    /// Arguments after those that master(8) gives.
    pub arguments: Vec<OsString>,
    /// Where it listens; nowhere else than at `private/NAME` when there is none. Sockets that were passed for it take the
    /// place of them all.
    pub addresses: Vec<Address>,
}

impl Service {
    /// Where its sockets are to be.
    pub(crate) fn places(&self) -> Vec<Address> {
        if self.addresses.is_empty() {
            vec![Address::Unix(PathBuf::from("private").join(&self.name))]
        } else {
            self.addresses.clone()
        }
    }
}

/// What a process needs that is the same for all services.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) executable: PathBuf,
    pub(crate) queue_directory: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Start with `-u`: change to `mail_owner`.
    pub(crate) change_user: bool,
    /// Number of `-v` options.
    pub(crate) verbosity: u8,
    /// How often processes say that they are alive, if they are to.
    pub(crate) heartbeat: Option<Duration>,
    /// The flow-control pipe, read end and write end. Nothing is ever written to it.
    pub(crate) flow: (std::os::fd::OwnedFd, std::os::fd::OwnedFd),
}

/// A process of a service.
#[derive(Debug)]
struct Process {
    child: Child,
    started: Instant,
    /// When it said last that it is alive.
    alive: Instant,
    /// It has finished a request.
    served: bool,
}

/// A service with its sockets and processes.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) service: Service,
    pub(crate) listeners: Vec<Listener>,
    generation: u32,
    /// Our end and the end that every process of this generation gets.
    status: (UnixStream, UnixStream),
    unparsed: Vec<u8>,
    current: Option<Process>,
    /// Processes of earlier generations that have not ended yet.
    retired: Vec<Process>,
    failures: u32,
    /// A failed service is started again at this time.
    restart: Option<Instant>,
    /// Nobody wants it any more.
    dismissed: bool,
}

impl Slot {
    pub(crate) fn new(
        service: Service,
        listeners: Vec<Listener>,
        generation: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            service,
            listeners,
            generation,
            status: status_channel()?,
            unparsed: Vec::new(),
            current: None,
            retired: Vec::new(),
            failures: 0,
            restart: None,
            dismissed: false,
        })
    }

    /// Stops listening, and lets the processes finish.
    pub(crate) fn dismiss(&mut self) -> io::Result<()> {
        self.close();
        self.dismissed = true;
        self.replace(self.service.clone(), self.generation)
    }

    /// Removes the sockets.
    pub(crate) fn close(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.remove();
        }
    }

    /// It was dismissed, and is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.dismissed && self.processes() == 0
    }

    /// It was dismissed.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// Its process was started again and again in vain.
    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0 && self.current.is_none()
    }

    /// It has a process.
    pub(crate) fn is_running(&self) -> bool {
        self.current.is_some()
    }

    /// Its process has not said for so long that it is alive.
    pub(crate) fn is_stuck(&self, limit: Duration, now: Instant) -> bool {
        self.current
            .as_ref()
            .is_some_and(|process| now.saturating_duration_since(process.alive) > limit)
    }

    /// Our end of the status channel, to be watched.
    pub(crate) fn status(&self) -> &UnixStream {
        &self.status.0
    }

    /// A client at the listening socket would wait for ever unless a process is started.
    pub(crate) fn wants_clients(&self) -> bool {
        self.current.is_none() && self.restart.is_none() && !self.dismissed
    }

    /// When to look at the service again without an event.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.restart
    }

    /// Number of processes that have not ended.
    pub(crate) fn processes(&self) -> usize {
        usize::from(self.current.is_some()) + self.retired.len()
    }

    /// Process IDs of all processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.current
            .iter()
            .chain(&self.retired)
            .map(|process| process.child.id())
            .collect()
    }

    /// Starts the process when its pause is over.
    pub(crate) fn restart_if_due(&mut self, surroundings: &Surroundings, now: Instant) {
        if self.restart.is_some_and(|at| at <= now) {
            self.restart = None;
            self.start(surroundings, now);
        }
    }

    /// Starts a process, unless there is one.
    pub(crate) fn start(&mut self, surroundings: &Surroundings, now: Instant) {
        if self.current.is_some() || self.dismissed {
            return;
        }
        let mut command = Command::new(&surroundings.executable);
        command.arg0(&self.service.program).arg("-l");
        if self.service.program != self.service.name {
            command.args(["-n", &self.service.name]);
        }
        // Where a socket is of another kind, the service finds out by itself.
        command.args(["-t", "unix", "-d"]);
        if self.listeners.len() != 1 {
            command.args(["-s", &self.listeners.len().to_string()]);
        }
        command.args((0..surroundings.verbosity).map(|_| "-v"));
        if surroundings.change_user {
            command.arg("-u");
        }
        command
            .args(&self.service.arguments)
            .env_clear()
            .envs(
                surroundings
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .env("GENERATION", format!("{:o}", self.generation))
            .envs(
                surroundings
                    .heartbeat
                    .map(|period| (HEARTBEAT, period.as_millis().to_string())),
            )
            .current_dir(&surroundings.queue_directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            // A key typed at the terminal stops the stand-in, which stops the services in good order.
            .process_group(0);
        let mut placed = vec![
            (surroundings.flow.0.as_fd(), 3),
            (surroundings.flow.1.as_fd(), 4),
            (self.status.1.as_fd(), 5),
        ];
        placed.extend(self.listeners.iter().map(AsFd::as_fd).zip(6..));
        match spawn(command, &placed) {
            Ok(child) => {
                debug!("service {}: started pid {}", self.service.name, child.id());
                self.current = Some(Process {
                    child,
                    started: now,
                    alive: now,
                    served: false,
                });
            }
            Err(error) => {
                warn!(
                    "cannot start {}: {error}",
                    surroundings.executable.display()
                );
                self.pause(now);
            }
        }
    }

    /// Reads the status messages that wait.
    pub(crate) fn read_status(&mut self, now: Instant) {
        let mut buffer = [0; 40 * STATUS_LENGTH];
        // One batch: whatever is left raises the next event.
        if let Ok(count) = (&self.status.0).read(&mut buffer) {
            self.unparsed.extend_from_slice(&buffer[..count]);
        }
        let whole = self.unparsed.len() / STATUS_LENGTH * STATUS_LENGTH;
        let messages: Vec<u8> = self.unparsed.drain(..whole).collect();
        for message in messages.chunks_exact(STATUS_LENGTH) {
            self.take_status(message, now);
        }
    }

    fn take_status(&mut self, message: &[u8], now: Instant) {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&message[at..at + 4]);
            i32::from_ne_bytes(bytes)
        };
        let (pid, generation, status) = (word(0), word(4).cast_unsigned(), word(8));
        let Some(process) = &mut self.current else {
            return;
        };
        if i64::from(process.child.id()) != i64::from(pid) {
            return;
        }
        if generation == self.generation {
            // Whatever it says, it is alive.
            process.alive = now;
            process.served |= status == AVAILABLE;
        } else {
            info!("ignoring status update from child pid {pid} generation {generation}");
        }
    }

    /// Lets the processes finish and be replaced: they see the end of the status channel.
    ///
    /// The listening socket stays as it is, so that clients that connect meanwhile wait for the next process.
    pub(crate) fn replace(&mut self, service: Service, generation: u32) -> io::Result<()> {
        self.status = status_channel()?;
        self.unparsed.clear();
        self.retired.extend(self.current.take());
        self.service = service;
        self.generation = generation;
        self.failures = 0;
        self.restart = None;
        Ok(())
    }

    /// Takes note of the processes that have ended.
    pub(crate) fn reap(&mut self, now: Instant) {
        let name = &self.service.name;
        self.retired
            .retain_mut(|process| match process.child.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    report(name, process.child.id(), status);
                    false
                }
                Err(error) => {
                    warn!("wait for pid {}: {error}", process.child.id());
                    false
                }
            });
        let Some(process) = &mut self.current else {
            return;
        };
        let status = match process.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => status,
            Err(error) => {
                warn!("wait for pid {}: {error}", process.child.id());
                ExitStatus::default()
            }
        };
        report(&self.service.name, process.child.id(), status);
        let settled = process.served || now.saturating_duration_since(process.started) >= SETTLED;
        self.current = None;
        if status.success() {
            // It ended on its own terms (idle, or enough clients): the next client starts another.
            self.failures = 0;
        } else if settled {
            self.failures = 0;
            self.restart = Some(now);
        } else {
            warn!(
                "{}: bad command startup -- throttling",
                self.service.program
            );
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Instant) {
        self.restart = Some(now + pause_after(self.failures));
        self.failures = self.failures.saturating_add(1);
    }
}

fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(1u64 << failures.min(6)).min(LONGEST_PAUSE)
}

fn report(name: &str, pid: u32, status: ExitStatus) {
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = status.signal() {
        warn!("process {name} pid {pid} killed by signal {signal}");
    } else if let Some(code) = status.code().filter(|&code| code != 0) {
        warn!("process {name} pid {pid} exit status {code}");
    } else {
        debug!("process {name} pid {pid} ended");
    }
}

fn status_channel() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds: Vec<u64> = [0, 1, 2, 5, 6, 50]
            .map(|n| pause_after(n).as_secs())
            .to_vec();
        assert_eq!(seconds, [1, 2, 4, 32, 60, 60]);
    }
}
