//! scache(8): the connection cache joined to the skeleton.
//!
//! # References
//! Postfix `src/scache/scache.c`.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, info, warn};
use postkeep_conf::{Dictionary, Error, Sink};
use postkeep_daemon::metrics::Page;
use postkeep_daemon::{
    Attributes, Next, Program, Reach, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_scache::{self as scache, Conversation};
use postkeep_sys::process::{self, Half};
use postkeep_sys::termination::Termination;
use postkeep_sys::{descriptor, error_text};
use postkeep_wire::duplex::Outbox;
use postkeep_wire::protocol;

use super::announce::{Greeting, Policy, Turn as Greeted};
use super::oversize::Oversize;
use crate::handover::Place;
use kept::Kept;
use parameters::Parameters;

mod kept;
mod metrics;
mod parameters;

/// Connections that may wait for the answer to a goodbye, whatever the number of descriptors.
const MOST_LINGERING: u64 = 1000;

/// Runs the daemon.
pub(crate) fn run(name: &OsStr, arguments: &[OsString]) -> ExitCode {
    postkeep_daemon::main(
        name,
        &super::with_version(arguments),
        ScacheProgram::default(),
    )
}

/// The connection cache while it starts.
#[derive(Debug, Default)]
struct ScacheProgram {
    parameters: Option<Parameters>,
    policy: Option<Policy>,
    /// Where sessions come from and go to; opened while that can be reached.
    succession: Succession,
}

/// The processes before and after this one.
#[derive(Debug, Default)]
struct Succession {
    predecessor: Option<UnixStream>,
    /// At which the next one connects.
    listener: Option<UnixListener>,
}

impl Succession {
    /// Finds the process before this one, and takes its place.
    fn open(setup: &Setup) -> Self {
        let data_directory = OsString::from_vec(setup.common.data_directory.clone());
        let Some(place) = Place::new(Path::new(&data_directory), &setup.service_name) else {
            return Self::default();
        };
        let owner = &setup.common.mail_owner;
        let visited = place.visit((owner.uid, owner.gid), |place| {
            (place.predecessor(), place.listen())
        });
        let (predecessor, listener) = visited.unwrap_or_else(|error| {
            logging::fatal(format_args!(
                "seteuid({}): {}",
                owner.uid,
                error_text(&error)
            ))
        });
        let listener = listener.map_err(|error| {
            warn!(
                "sessions will not survive a restart: cannot listen at {}: {}",
                place.path().display(),
                error_text(&error)
            );
        });
        Self {
            predecessor,
            listener: listener.ok(),
        }
    }
}

impl ScacheProgram {
    fn read(&mut self, dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<(), Error> {
        self.parameters = Some(Parameters::read(dictionary, sink)?);
        self.policy = Some(super::read_policy(dictionary, sink)?);
        Ok(())
    }
}

impl Program for ScacheProgram {
    type Service = Scache;

    fn requirements(&self) -> Vec<Requirement<Self>> {
        vec![Requirement::Parameters(Self::read), Requirement::Solitary]
    }

    fn before_jail(&mut self, setup: &mut Setup) {
        let wanted = |parameters: &Parameters| !parameters.handover_time.is_zero();
        if !setup.one_shot && self.parameters.as_ref().is_some_and(wanted) {
            self.succession = Succession::open(setup);
        }
    }

    fn after_jail(self, setup: &mut Setup) -> Scache {
        // What is in the cache must not be lost because of the number of clients that were there.
        setup.max_use = 0;
        // No file is opened and nobody is called from here on; before there are threads.
        setup.confine(Reach {
            copies: self.succession.listener.is_some(),
            ..Reach::default()
        });
        let parameters = self
            .parameters
            .unwrap_or_else(|| logging::fatal(format_args!("parameters were not read")));
        Scache::new(
            &parameters,
            Configuration {
                interval: parameters.interval,
                ipc_timeout: setup.common.ipc_timeout,
                policy: self.policy.unwrap_or(Policy::Always),
                stray: super::stray_argument(setup),
                handover_time: parameters.handover_time,
            },
            self.succession,
            setup,
        )
    }
}

/// What a connection cache process is configured to do.
#[derive(Clone, Debug)]
struct Configuration {
    /// `connection_cache_status_update_time`
    interval: Duration,
    /// `ipc_timeout`
    ipc_timeout: Duration,
    /// Whether clients are greeted.
    policy: Policy,
    /// The first argument that is no option; there should be none.
    stray: Option<String>,
    /// `postkeep_connection_cache_handover_time`
    handover_time: Duration,
}

/// The running service.
#[derive(Debug)]
struct Scache {
    configuration: Configuration,
    settings: scache::Settings,
    oversize: Oversize,
    kept: Arc<Kept>,
    /// At which the next process connects, when sessions are handed over.
    listener: Option<UnixListener>,
    /// Looks after the sessions; gone when the process is about to end.
    keeper: Mutex<Option<JoinHandle<()>>>,
    report: Mutex<Report>,
}

/// When statistics were and will be reported.
#[derive(Debug)]
struct Report {
    /// Start of the present interval.
    since: SystemTime,
    due: Instant,
}

/// One client.
#[derive(Debug)]
struct Client {
    greeting: Greeting,
    conversation: Conversation<OwnedFd>,
    patience: Option<Patience>,
}

/// The time limit of a read: it starts again with each byte.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// What was there when it started.
    bytes: usize,
    until: Instant,
}

impl Scache {
    fn new(
        parameters: &Parameters,
        configuration: Configuration,
        succession: Succession,
        setup: &Setup,
    ) -> Self {
        let now = Instant::now();
        let broken = |what: &str, error: &std::io::Error| -> ! {
            logging::fatal(format_args!("{what}: {}", error_text(error)));
        };
        // What cannot be raised is what there is.
        let descriptors = postkeep_sys::descriptor::raise_limit().unwrap_or(1024);
        let lingering = MOST_LINGERING.min(parameters.clients(descriptors) / 4);
        let Succession {
            predecessor,
            listener,
        } = succession;
        // With nothing to say or to keep there is no reason to let the signal wait.
        let termination = parameters.says_goodbye() || listener.is_some();
        let kept = Kept::new(
            parameters.rules(descriptors),
            parameters.liveness,
            // Other threads than those that are started from here on there are none.
            termination.then(Termination::hold).and_then(Result::ok),
            &setup.service_name,
            usize::try_from(lingering).unwrap_or(0),
            now,
        );
        let kept = Arc::new(kept.unwrap_or_else(|error| broken("epoll_create", &error)));
        if listener.is_some() {
            let control = setup.control.clone();
            kept.end_with(move || control.leave());
        }
        if let Some(predecessor) = predecessor {
            kept.succeed(predecessor);
        }
        let keeper = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn({
                let kept = Arc::clone(&kept);
                move || {
                    // Without this thread nothing would ever expire. Nobody sees what a panic leaves.
                    let look_after = AssertUnwindSafe(|| kept.look_after());
                    if std::panic::catch_unwind(look_after).is_err() {
                        logging::fatal(format_args!(
                            "panic: the connection cache is not looked after"
                        ));
                    }
                }
            });
        let keeper = keeper.unwrap_or_else(|error| broken("cannot start a thread", &error));
        Self {
            settings: scache::Settings {
                ttl_limit: parameters.ttl_limit,
                stream: setup.stream_name(),
                limits: setup.limits.requests,
            },
            oversize: Oversize::default(),
            kept,
            listener,
            keeper: Mutex::new(Some(keeper)),
            report: Mutex::new(Report {
                since: SystemTime::now(),
                due: now + configuration.interval,
            }),
            configuration,
        }
    }

    /// Leaves the sessions in a copy of this process, because master(8) starts no other process before this one has
    /// ended.
    fn leave_sessions(&self, listener: &UnixListener) {
        match self.kept.split() {
            Ok(Half::Parent) => {}
            Ok(Half::Child) => {
                let _ = process::leave_streams();
                // Those of the metrics are the next process's.
                descriptor::close_listeners(listener);
                let until = Instant::now() + self.configuration.handover_time;
                self.kept.stay_behind(listener, until);
                std::process::exit(0);
            }
            Err(error) => {
                warn!(
                    "sessions do not survive this restart: fork: {}",
                    error_text(&error)
                );
                self.kept.end();
            }
        }
    }

    /// Logs what has been counted, and begins a new interval.
    fn log_statistics(&self, now: Instant) {
        let statistics = self.kept.take_statistics();
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        for line in statistics.lines(&moment(report.since)) {
            info!("{line}");
        }
        *report = Report {
            since: SystemTime::now(),
            due: now + self.configuration.interval,
        };
    }
}

/// `Mon DD HH:MM:SS` in local time, the day padded with a blank as ctime(3) does.
fn moment(time: SystemTime) -> String {
    let local = postkeep_sys::clock::local_time(time);
    format!(
        "{} {:>2} {:02}:{:02}:{:02}",
        local.month_name(),
        local.day,
        local.hour,
        local.minute,
        local.second
    )
}

impl Service for Scache {
    type Client = Client;

    fn write_limit(&self) -> Duration {
        self.configuration.ipc_timeout
    }

    fn connected(
        &self,
        _attributes: &Attributes,
        outbox: &mut Outbox<OwnedFd>,
        _waker: Waker,
    ) -> Client {
        let mut greeting = Greeting::new(self.configuration.policy, protocol::SCACHE);
        greeting.turn(false, Instant::now(), outbox.buffer());
        Client {
            greeting,
            conversation: Conversation::new(&self.settings),
            patience: None,
        }
    }

    fn advance(&self, client: &mut Client, turn: &mut Turn<'_>) -> Next {
        let spoken = !turn.inbox.is_empty() || turn.inbox.end().is_some();
        if spoken && let Some(stray) = &self.configuration.stray {
            super::refuse_argument(stray);
        }
        if let Greeted::Listen(until) = client.greeting.turn(spoken, turn.now, turn.outbox.buffer())
        {
            return Next::Listen { until };
        }
        let next = client.conversation.step(
            self.kept.clock(turn.now),
            &self.settings,
            turn.inbox,
            turn.outbox,
            &*self.kept,
            &mut self.oversize.to_log(turn.now),
        );
        match next {
            scache::Next::Idle => {
                client.patience = None;
                Next::Idle
            }
            scache::Next::Read(_) => {
                let bytes = turn.inbox.bytes().len();
                // A turn without news does not prolong the wait.
                let patience = match client.patience {
                    Some(patience) if patience.bytes == bytes && turn.outbox.is_empty() => patience,
                    _ => Patience {
                        bytes,
                        until: turn.now + self.configuration.ipc_timeout,
                    },
                };
                client.patience = Some(patience);
                Next::Read {
                    until: patience.until,
                }
            }
            scache::Next::Close => Next::Close,
        }
    }

    fn before_wait(&self, now: Instant) -> Option<Instant> {
        let due = self
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .due;
        let due = if due <= now {
            self.log_statistics(now);
            now + self.configuration.interval
        } else {
            due
        };
        Some(due)
    }

    fn describe(&self, page: &mut Page) {
        self.describe_all(page);
    }

    fn before_exit(&self) {
        self.log_statistics(Instant::now());
        let listener = self.listener.as_ref().filter(|_| !self.kept.is_empty());
        if listener.is_some() {
            self.kept.stop();
        } else {
            self.kept.leave();
        }
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            let _ = keeper.join();
        }
        debug!("{:?}", self.kept.counted());
        if let Some(listener) = listener {
            self.leave_sessions(listener);
        }
        self.kept.die_if_terminated();
    }
}
