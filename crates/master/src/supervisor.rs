//! The loop of the stand-in: starts, watches, replaces and stops the services.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::{info, warn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::MasterError;
use crate::child::{Service, Slot, Surroundings};
use crate::health::Health;
use crate::layout::Layout;
use crate::listener::{Listener, Passed};
use crate::orphans;
use crate::records::Records;
use crate::signals::{Request, Signals};

/// How often the loop turns without an event.
const TICK: Duration = Duration::from_secs(1);

/// How many times a service says that it is alive in the time after which it is taken for stuck.
const BEATS: u32 = 3;

/// How long services may take to end by themselves after their status channel is closed.
const GRACE: Duration = Duration::from_secs(5);

/// How long they may take after SIGTERM, before SIGKILL.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Names that services inherit from the environment (`import_environment` of Postfix).
const IMPORTED: [&str; 4] = ["TZ", "MAIL_DEBUG", "XAUTHORITY", "DISPLAY"];

/// What does not change while the stand-in runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program to start for every service.
    pub executable: PathBuf,
    /// Directories and sockets.
    pub layout: Layout,
    /// Number of `-v` options of the services.
    pub verbosity: u8,
    /// The host name in log records before a service has read its configuration.
    pub host_name: String,
    /// Services are to say at least so often that they are alive; what [`Health::stuck`] goes by.
    pub heartbeat: Option<Duration>,
}

/// What the embedding program adds to the stand-in.
pub trait Site {
    /// The services to run; asked at the start and at every reload. A service that a later list does not name is
    /// stopped.
    ///
    /// # Errors
    /// A reason, as a sentence fragment. At the start it ends the stand-in; at a reload it is logged and the
    /// services stay as they are.
    fn services(&mut self) -> Result<Vec<Service>, String>;

    /// Asked about once a second: the services must be replaced because something that they cannot see
    /// themselves has changed.
    fn stale(&mut self) -> bool {
        false
    }

    /// All sockets are there and all services started, for the first time or once more.
    fn ready(&mut self, layout: &Layout) {
        let _ = layout;
    }

    /// The services are about to be replaced; [`ready`](Self::ready) follows, also when that fails.
    fn reloading(&mut self) {}

    /// The services are about to be stopped for good.
    fn stopping(&mut self) {}

    /// A turn of the loop, about once a second, and sooner when something has happened. Returns when it wants the next
    /// one at the latest.
    fn turn(&mut self, health: &Health, now: Instant) -> Option<Instant> {
        let _ = (health, now);
        None
    }

    /// Prints one log record of a service: one line without control characters.
    fn record(&mut self, line: &str);
}

/// Runs the services until SIGTERM or SIGINT, in the foreground.
///
/// SIGHUP replaces all services: clients that are connected see the end of their connection after the
/// request in progress, as at a `postfix reload`; new ones wait in the socket's queue and are not refused.
/// At the end the sockets and the file with the process ID are removed; sockets that were passed are closed.
///
/// - `passed`: sockets that are open already, by service
///
/// The umask of the process becomes 077, and the four signals SIGCHLD, SIGHUP, SIGTERM and SIGINT are blocked
/// in the calling thread, which should be the only one.
///
/// # Errors
/// [`MasterError`] when the directories, the lock or the sockets cannot be had, or when the loop itself
/// fails. Failures of services are logged and answered by starting them again, later and later.
pub fn run(
    settings: &Settings,
    passed: Vec<Passed>,
    site: &mut dyn Site,
) -> Result<(), MasterError> {
    let layout = &settings.layout;
    layout.create_directories()?;
    let _lock = layout.lock()?;
    // Whatever services create is for their owner only; sockets get their modes explicitly.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let signals = Signals::take()?;
    let records = Records::new(layout.bind_log_socket()?);
    let mut supervisor = Supervisor {
        surroundings: surroundings(settings)?,
        layout,
        heartbeat: settings.heartbeat,
        generation: 1,
        slots: Vec::new(),
        passed,
    };
    let services = site.services().map_err(MasterError::Site)?;
    let outcome = supervisor.arrange(services).and_then(|()| {
        for Passed { name, .. } in supervisor.passed.drain(..) {
            warn!("a socket was passed for {name}, which is no service here: it is closed");
        }
        site.ready(layout);
        supervisor.serve(&signals, &records, site)
    });
    site.stopping();
    supervisor.stop(&signals, &records, site);
    let _ = fs::remove_file(layout.log_socket());
    outcome
}

fn surroundings(settings: &Settings) -> Result<Surroundings, MasterError> {
    let layout = &settings.layout;
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("MAIL_CONFIG".into(), layout.config_directory.clone().into()),
        ("LANG".into(), "C".into()),
        ("POSTLOG_SERVICE".into(), layout.log_socket().into()),
        ("POSTLOG_HOSTNAME".into(), settings.host_name.clone().into()),
    ];
    environment.extend(
        IMPORTED
            .iter()
            .filter_map(|&name| Some((name.into(), std::env::var_os(name)?))),
    );
    let flow: (OwnedFd, OwnedFd) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|error| MasterError::system("create a pipe", error))?;
    Ok(Surroundings {
        executable: settings.executable.clone(),
        queue_directory: layout.queue_directory.clone(),
        environment,
        change_user: layout.owner.is_some(),
        verbosity: settings.verbosity,
        heartbeat: settings.heartbeat.map(|period| period / BEATS),
        flow,
    })
}

struct Supervisor<'a> {
    surroundings: Surroundings,
    layout: &'a Layout,
    heartbeat: Option<Duration>,
    generation: u32,
    slots: Vec<Slot>,
    /// Sockets that no service has yet.
    passed: Vec<Passed>,
}

impl Supervisor<'_> {
    /// Takes a list of services: new ones get sockets, others are replaced, those not listed are stopped.
    ///
    /// After the start no socket that cannot be made is an error: the service stays where it is, or is left out.
    fn arrange(&mut self, services: Vec<Service>) -> Result<(), MasterError> {
        let now = Instant::now();
        let at_start = self.slots.is_empty();
        let status = |error| MasterError::system("create a status channel", error);
        for slot in &mut self.slots {
            let listed = services
                .iter()
                .any(|service| service.name == slot.service.name);
            if !listed && !slot.is_dismissed() {
                info!("service {} is stopped", slot.service.name);
                slot.dismiss().map_err(status)?;
            }
        }
        for service in services {
            let (name, places) = (service.name.clone(), service.places());
            let slot = self
                .slots
                .iter_mut()
                .find(|slot| slot.service.name == name && !slot.is_dismissed());
            if let Some(slot) = slot {
                if let Err(error) = Listener::arrange(self.layout, &places, &mut slot.listeners) {
                    warn!("service {name} stays where it is: {error}");
                }
                slot.replace(service, self.generation).map_err(status)?;
                slot.start(&self.surroundings, now);
            } else {
                let mut listeners = self.take_passed(&name)?;
                match Listener::arrange(self.layout, &places, &mut listeners) {
                    Err(error) if !at_start => {
                        warn!("service {name} is left out: {error}");
                        continue;
                    }
                    arranged => arranged?,
                }
                let mut slot = Slot::new(service, listeners, self.generation).map_err(status)?;
                slot.start(&self.surroundings, now);
                self.slots.push(slot);
            }
        }
        Ok(())
    }

    /// The sockets that were passed for a service.
    fn take_passed(&mut self, name: &str) -> Result<Vec<Listener>, MasterError> {
        let (taken, left) = std::mem::take(&mut self.passed)
            .into_iter()
            .partition(|passed| passed.name == name);
        self.passed = left;
        taken
            .into_iter()
            .map(|Passed { name, socket }| {
                Listener::passed(socket).map_err(|source| MasterError::Passed { name, source })
            })
            .collect()
    }

    fn health(&self, now: Instant) -> Health {
        let of = |which: &dyn Fn(&Slot) -> bool| {
            self.slots
                .iter()
                .filter(|slot| !slot.is_dismissed() && which(slot))
                .map(|slot| slot.service.name.clone())
                .collect()
        };
        Health {
            running: of(&Slot::is_running),
            failing: of(&Slot::is_failing),
            stuck: of(&|slot| {
                self.heartbeat
                    .is_some_and(|limit| slot.is_stuck(limit, now))
            }),
        }
    }

    fn serve(
        &mut self,
        signals: &Signals,
        records: &Records,
        site: &mut dyn Site,
    ) -> Result<(), MasterError> {
        let mut next = None;
        loop {
            let longest = next.map_or(TICK, |next: Instant| {
                next.saturating_duration_since(Instant::now()).min(TICK)
            });
            self.wait(signals, records, longest)?;
            records.drain(|line| site.record(line));
            let mut reload = site.stale();
            while let Some(request) = signals.next() {
                match request {
                    Request::Child => {}
                    Request::Reload => reload = true,
                    Request::Stop => return Ok(()),
                }
            }
            let now = Instant::now();
            for slot in &mut self.slots {
                slot.reap(now);
                slot.restart_if_due(&self.surroundings, now);
            }
            self.slots.retain(|slot| !slot.is_over());
            let ours: Vec<u32> = self.slots.iter().flat_map(Slot::pids).collect();
            orphans::reap(&ours);
            next = site.turn(&self.health(now), now);
            if reload {
                self.reload(site)?;
            }
        }
    }

    fn reload(&mut self, site: &mut dyn Site) -> Result<(), MasterError> {
        site.reloading();
        let outcome = self.replace_all(site);
        site.ready(self.layout);
        outcome
    }

    fn replace_all(&mut self, site: &mut dyn Site) -> Result<(), MasterError> {
        match site.services() {
            Ok(services) => {
                info!(
                    "reload -- configuration {}",
                    self.layout.config_directory.display()
                );
                self.generation = self.generation.wrapping_add(1);
                self.arrange(services)
            }
            Err(reason) => {
                warn!("no reload: {reason}");
                Ok(())
            }
        }
    }

    /// Waits for anything to happen, and handles what comes from the services and their clients.
    fn wait(
        &mut self,
        signals: &Signals,
        records: &Records,
        longest: Duration,
    ) -> Result<(), MasterError> {
        let now = Instant::now();
        let limit = self
            .slots
            .iter()
            .filter_map(Slot::wake)
            .map(|at| at.saturating_duration_since(now))
            .fold(longest, Duration::min);
        let mut watched = vec![
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(records, PollFlags::IN),
        ];
        for slot in &self.slots {
            watched.push(PollFd::new(slot.status(), PollFlags::IN));
        }
        let mut asked = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.wants_clients() {
                for listener in &slot.listeners {
                    asked.push(index);
                    watched.push(PollFd::new(listener, PollFlags::IN));
                }
            }
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(MasterError::system("wait for events", error)),
        }
        let ready: Vec<bool> = watched[2..]
            .iter()
            .map(|entry| entry.revents().contains(PollFlags::IN))
            .collect();
        let now = Instant::now();
        for (slot, ready) in self.slots.iter_mut().zip(&ready) {
            if *ready {
                slot.read_status(now);
            }
        }
        for (index, ready) in asked.into_iter().zip(&ready[self.slots.len()..]) {
            let slot = &mut self.slots[index];
            if *ready && slot.wants_clients() {
                slot.start(&self.surroundings, now);
            }
        }
        Ok(())
    }

    /// Ends all processes: first by closing the status channels, which lets requests in progress finish.
    fn stop(&mut self, signals: &Signals, records: &Records, site: &mut dyn Site) {
        info!("terminating");
        let mut closing = Vec::new();
        for mut slot in self.slots.drain(..) {
            slot.close();
            let service = slot.service.clone();
            if let Err(error) = slot.replace(service, self.generation) {
                warn!("create a status channel: {error}");
            }
            closing.push(slot);
        }
        let mut deadline = Instant::now() + GRACE;
        let mut next = Some(Signal::SIGTERM);
        loop {
            let now = Instant::now();
            for slot in &mut closing {
                slot.reap(now);
            }
            records.drain(|line| site.record(line));
            if closing.iter().all(|slot| slot.processes() == 0) {
                break;
            }
            // A second request to stop does not wait.
            let mut hurry = false;
            while let Some(request) = signals.next() {
                hurry |= request == Request::Stop;
            }
            if hurry || now >= deadline {
                let Some(signal) = next else { break };
                for pid in closing.iter().flat_map(Slot::pids) {
                    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
                }
                next = (signal == Signal::SIGTERM).then_some(Signal::SIGKILL);
                deadline = now + LAST_GRACE;
            }
            if let Err(error) = self.wait(signals, records, Duration::from_millis(100)) {
                warn!("{error}");
                break;
            }
        }
        records.drain(|line| site.record(line));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::thread;

    use nix::sys::signal::raise;

    use super::*;

    /// Runs a service for two turns of its life, then asks for the end.
    struct Scenario {
        asked: u32,
        records: Vec<String>,
        stale_after: Option<u32>,
        turns: u32,
        stop_after: u32,
    }

    impl Site for Scenario {
        fn services(&mut self) -> Result<Vec<Service>, String> {
            self.asked += 1;
            Ok(vec![Service {
                name: "scache".into(),
                program: "scache".into(),
                arguments: vec![format!("call{}", self.asked).into()],
                addresses: Vec::new(),
            }])
        }

        fn stale(&mut self) -> bool {
            self.turns += 1;
            if self.turns == self.stop_after {
                // To this thread: the others of the test program do not block the signal.
                raise(Signal::SIGTERM).unwrap();
            }
            self.stale_after == Some(self.turns)
        }

        fn record(&mut self, line: &str) {
            self.records.push(line.to_owned());
        }
    }

    fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("service.sh");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// One test only: it sends signals to its own process, and blocks them in its thread and those it starts.
    #[test]
    fn services_run_are_replaced_and_stopped() {
        thread::spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            let out = path.join("out");
            let settings = Settings {
                // Says how it was started, and ends when the status channel is closed.
                executable: script(
                    path,
                    &format!(
                        "echo $GENERATION $* >>{}\nexec cat <&5 >/dev/null",
                        out.display()
                    ),
                ),
                layout: Layout {
                    config_directory: path.to_owned(),
                    queue_directory: path.join("queue"),
                    owner: None,
                },
                verbosity: 1,
                host_name: "host".into(),
                heartbeat: None,
            };
            let mut site = Scenario {
                asked: 0,
                records: Vec::new(),
                stale_after: Some(1),
                turns: 0,
                stop_after: 2,
            };
            run(&settings, Vec::new(), &mut site).unwrap();
            let mut lines: Vec<String> = fs::read_to_string(&out)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect();
            // The two processes run at the same time.
            lines.sort();
            assert_eq!(
                lines,
                ["1 -l -t unix -d -v call1", "2 -l -t unix -d -v call2"]
            );
            for gone in [
                settings.layout.socket("scache"),
                settings.layout.log_socket(),
                settings.layout.pid_file(),
            ] {
                assert!(!gone.exists(), "{}", gone.display());
            }
            assert!(UnixStream::connect(settings.layout.socket("scache")).is_err());
        })
        .join()
        .unwrap();
    }
}
