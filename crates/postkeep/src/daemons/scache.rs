//! scache(8): the connection cache joined to the skeleton.
//!
//! # References
//! Postfix `src/scache/scache.c`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use postkeep_conf::{Dictionary, Error, Sink, TimeParameter};
use postkeep_daemon::{
    Attributes, Control, Next, Program, Requirement, Service, Setup, Turn, Waker,
};
use postkeep_scache::{self as scache, Cache, Conversation, Limits, SharedCache};
use postkeep_wire::duplex::Outbox;
use postkeep_wire::protocol;

use super::announce::{Greeting, Policy, Turn as Greeted};

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
    ttl_limit: Duration,
    interval: Duration,
    policy: Option<Policy>,
}

impl ScacheProgram {
    fn read(&mut self, dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<(), Error> {
        let mut time = |name, default| {
            dictionary.time(
                &TimeParameter {
                    name,
                    default,
                    min: 1,
                    max: 0,
                },
                &mut *sink,
            )
        };
        self.ttl_limit = time("connection_cache_ttl_limit", "2s")?;
        self.interval = time("connection_cache_status_update_time", "600s")?;
        self.policy = Some(super::read_policy(dictionary, sink)?);
        Ok(())
    }
}

impl Program for ScacheProgram {
    type Service = Scache;

    fn requirements(&self) -> Vec<Requirement<Self>> {
        vec![Requirement::Parameters(Self::read), Requirement::Solitary]
    }

    fn after_jail(self, setup: &mut Setup) -> Scache {
        // What is in the cache must not be lost because of the number of clients that were there.
        setup.max_use = 0;
        Scache::new(
            Configuration {
                ttl_limit: self.ttl_limit,
                interval: self.interval,
                ipc_timeout: setup.common.ipc_timeout,
                policy: self.policy.unwrap_or(Policy::Always),
                stream: setup.stream_name(),
                stray: super::stray_argument(setup),
            },
            setup.control.clone(),
            Instant::now(),
        )
    }
}

/// What a connection cache process is configured to do.
#[derive(Clone, Debug)]
struct Configuration {
    /// `connection_cache_ttl_limit`
    ttl_limit: Duration,
    /// `connection_cache_status_update_time`
    interval: Duration,
    /// `ipc_timeout`
    ipc_timeout: Duration,
    /// Whether clients are greeted.
    policy: Policy,
    /// What the log calls the clients' streams.
    stream: String,
    /// The first argument that is no option; there should be none.
    stray: Option<String>,
}

/// The running service.
#[derive(Debug)]
struct Scache {
    configuration: Configuration,
    settings: scache::Settings,
    /// The zero of the cache's clock.
    epoch: Instant,
    cache: Mutex<Cache<OwnedFd>>,
    control: Control,
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
    fn new(configuration: Configuration, control: Control, now: Instant) -> Self {
        Self {
            settings: scache::Settings {
                ttl_limit: configuration.ttl_limit,
                stream: configuration.stream.clone(),
                ..scache::Settings::default()
            },
            epoch: now,
            cache: Mutex::new(Cache::new(Limits::default())),
            control,
            report: Mutex::new(Report {
                since: SystemTime::now(),
                due: now + configuration.interval,
            }),
            configuration,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache<OwnedFd>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Logs what has been counted, and begins a new interval.
    fn log_statistics(&self, now: Instant) {
        let statistics = self.lock().take_statistics();
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

impl SharedCache<OwnedFd> for Scache {
    fn with<R>(&self, operation: impl FnOnce(&mut Cache<OwnedFd>) -> R) -> R {
        let mut cache = self.lock();
        let before = cache.next_expiry();
        let outcome = operation(&mut cache);
        let after = cache.next_expiry();
        drop(cache);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            // The control thread sleeps until the expiry that was next when it looked last.
            self.control.nudge();
        }
        outcome
    }
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
            self.clock(turn.now),
            &self.settings,
            turn.inbox,
            turn.outbox,
            self,
            &mut |text: fmt::Arguments<'_>| warn!("{text}"),
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
        let clock = self.clock(now);
        let (expired, next) = {
            let mut cache = self.lock();
            let expired = cache.expire(clock);
            (expired, cache.next_expiry())
        };
        // Closing takes its time, so nobody waits for the cache meanwhile.
        drop(expired);
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
        Some(next.map_or(due, |next| due.min(self.epoch + next)))
    }

    fn before_exit(&self) {
        self.log_statistics(Instant::now());
    }
}
