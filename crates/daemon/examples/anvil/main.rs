//! anvil(8) on the skeleton: the worked example of a Postfix daemon.
//!
//! smtpd(8) and others tell it about their clients' connections, messages, recipients and so on, and hear how many there
//! were lately; they then refuse what is beyond their limits (`smtpd_client_connection_rate_limit` and its kin).
//!
//! | part | here |
//! |---|---|
//! | what the daemon knows, without clock or socket | [`counters`] |
//! | what it needs in order to start | [`AnvilProgram`], a [`Program`] |
//! | what is done with one connection | [`Anvil`], a [`Service`] |
//! | everything else | the skeleton |
//!
//! To put it in place of Postfix's own, have the command of its line in master.cf be a link to this executable:
//!
//! ```text
//! anvil     unix  -       -       y       -       1       anvil
//! ```
//!
//! A request is an attribute list in the plain encoding, `request=NAME` and `ident=TEXT`; so is the reply:
//!
//! | request | reply after `status=0` |
//! |---|---|
//! | `connect` | `count`, `rate` |
//! | `disconnect` | |
//! | `message`, `recipient`, `newtls`, `auth`; `tlstr` (Postfix 3.12) | `rate` |
//! | `newtls_status` | `rate` |
//! | `lookup` | `count`, `rate`, `mail`, `rcpt`, `newtls`, `auth` |
//! | any other | only a status of -1 |
//!
//! Parameters: `anvil_rate_time_unit` (60s), `anvil_status_update_time` (600s).
//!
//! # References
//! anvil(8); Postfix `src/anvil/anvil.c`, `src/global/anvil_clnt.c`.

mod counters;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use postkeep_conf::{Dictionary, Error, Release, Sink, TimeParameter};
use postkeep_daemon::{
    Attributes, Next, Program, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_wire::diagnostics::Shown;
use postkeep_wire::duplex::Outbox;
use postkeep_wire::encode::{Encoding, ListWriter};
use postkeep_wire::protocol;
use postkeep_wire::scan::{Limits, Progress, ScanFlags, Scanner, Stop, Value, Wanted};

use counters::{Counters, Event, Link, Now, Snapshot};

/// What a request consists of, in this order.
const REQUEST: &[Wanted<'static>] = &[Wanted::Text("request"), Wanted::Text("ident")];
/// The status of a request that does not exist.
const FAILED: i32 = -1;

/// anvil while it starts: the parameters, once they are read.
#[derive(Debug, Default)]
struct AnvilProgram {
    /// `anvil_rate_time_unit`
    unit: Duration,
    /// `anvil_status_update_time`
    interval: Duration,
}

impl AnvilProgram {
    fn read(&mut self, dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<(), Error> {
        let mut time = |name, default| {
            let parameter = TimeParameter {
                name,
                default,
                min: 1,
                max: 0,
            };
            dictionary.time(&parameter, &mut *sink)
        };
        self.unit = time("anvil_rate_time_unit", "60s")?;
        self.interval = time("anvil_status_update_time", "600s")?;
        Ok(())
    }
}

impl Program for AnvilProgram {
    type Service = Anvil;

    /// Counters are of use only when all servers tell the same process.
    fn requirements(&self) -> Vec<Requirement<Self>> {
        vec![Requirement::Parameters(Self::read), Requirement::Solitary]
    }

    fn after_jail(self, setup: &mut Setup) -> Anvil {
        // What was counted must not be lost because of the number of servers that were there, nor within a time unit.
        setup.max_use = 0;
        if !setup.max_idle.is_zero() {
            setup.max_idle = setup.max_idle.max(self.unit);
        }
        // All a request does is a step in a table that has one lock: more threads would only wait for each other.
        setup.workers = 1;
        let begun = Instant::now();
        Anvil {
            release: setup.dictionary.release(),
            stream: setup.stream_name(),
            ipc_timeout: setup.common.ipc_timeout,
            limits: setup.limits.requests,
            stray: setup.arguments.first().cloned(),
            unit: self.unit,
            interval: self.interval,
            begun,
            state: Mutex::new(State {
                counters: Counters::new(self.unit),
                report: begun + self.interval,
            }),
        }
    }
}

/// The running service; shared by all connections.
#[derive(Debug)]
struct Anvil {
    /// The Postfix whose daemons are served, as far as `mail_version` tells.
    release: Release,
    /// The name of connections in log lines.
    stream: String,
    /// `ipc_timeout`
    ipc_timeout: Duration,
    limits: Limits,
    /// An argument in master.cf; there should be none.
    stray: Option<OsString>,
    /// `anvil_rate_time_unit`
    unit: Duration,
    /// `anvil_status_update_time`
    interval: Duration,
    /// When seconds began to be counted.
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    counters: Counters,
    /// When the next report is due.
    report: Instant,
}

/// One connection, from a server process.
#[derive(Debug)]
struct Client {
    /// Keeps its place in a request that has come in part.
    scanner: Scanner,
    /// Which of its clients the server has told about.
    link: Link,
}

impl Anvil {
    fn now(&self, instant: Instant) -> Now {
        Now {
            seconds: instant.saturating_duration_since(self.begun).as_secs(),
            wall: SystemTime::now(),
        }
    }

    /// The table of counters is in order after each step, so a panic in another thread is no reason to stop.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes one request and writes its reply.
    fn execute(&self, request: &[u8], ident: &[u8], link: &mut Link, now: Now, out: &mut Vec<u8>) {
        let counters = &mut self.state().counters;
        let mut reply = ListWriter::new(Encoding::Plain, out);
        if let Some(event) = event(request, self.release) {
            let rate = counters.count(link, ident, event, now);
            reply.int("status", 0).int("rate", rate);
        } else {
            match request {
                b"connect" => {
                    let (count, rate) = counters.connect(link, ident, now);
                    reply.int("status", 0).int("count", count).int("rate", rate);
                }
                b"disconnect" => {
                    counters.disconnect(link, ident, now);
                    reply.int("status", 0);
                }
                b"newtls_status" => {
                    let seen = counters.look_up(ident, now).unwrap_or_default();
                    let rate = seen.events[Event::NewTls as usize];
                    reply.int("status", 0).int("rate", rate);
                }
                b"lookup" => {
                    let seen = counters.look_up(ident, now);
                    let Snapshot {
                        count,
                        rate,
                        events: [mail, rcpt, newtls, auth, trace],
                    } = seen.unwrap_or_default();
                    reply.int("status", 0).int("count", count).int("rate", rate);
                    reply.int("mail", mail).int("rcpt", rcpt);
                    reply.int("newtls", newtls).int("auth", auth);
                    if seen.is_some() && has_trace(self.release) {
                        // By this name, as in the reference.
                        reply.int("auth", trace);
                    }
                }
                _ => {
                    let name = Shown::new(request);
                    warn!("unrecognized request: \"{name}\", ignored");
                    reply.int("status", FAILED);
                }
            }
        }
        reply.finish();
    }

    fn log_peaks(&self) {
        let lines = self.state().counters.report(moment);
        for line in lines {
            info!("{line}");
        }
    }
}

/// Requests that count something else than connections.
fn event(request: &[u8], release: Release) -> Option<Event> {
    Some(match request {
        b"message" => Event::Message,
        b"recipient" => Event::Recipient,
        b"newtls" => Event::NewTls,
        b"auth" => Event::Auth,
        b"tlstr" if has_trace(release) => Event::TlsTrace,
        _ => return None,
    })
}

fn has_trace(release: Release) -> bool {
    release >= Release::V3_12
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

impl Service for Anvil {
    type Client = Client;

    const TAKES_DESCRIPTORS: bool = false;

    fn write_limit(&self) -> Duration {
        self.ipc_timeout
    }

    /// Greets, as daemons do since Postfix 3.6.
    fn connected(&self, _: &Attributes, outbox: &mut Outbox<OwnedFd>, _: Waker) -> Client {
        if self.release >= Release::V3_6 {
            ListWriter::new(Encoding::Plain, outbox.buffer())
                .text("protocol", protocol::ANVIL.as_bytes())
                .finish();
        }
        Client {
            scanner: Scanner::new(Encoding::Plain, ScanFlags::STRICT, self.limits),
            link: Link::default(),
        }
    }

    fn advance(&self, client: &mut Client, turn: &mut Turn<'_>) -> Next {
        let spoken = !turn.inbox.is_empty() || turn.inbox.end().is_some();
        if spoken && let Some(stray) = &self.stray {
            let stray = stray.display();
            logging::fatal(format_args!("unexpected command-line argument: {stray}"));
        }
        let now = self.now(turn.now);
        let mut requests = 0;
        // A server waits for each reply, but may send the next request with the end of the last one.
        while !turn.inbox.is_empty() {
            let (input, end) = (turn.inbox.bytes(), turn.inbox.end());
            let mut diagnostics = |text: fmt::Arguments<'_>| warn!("{text}");
            let scanner = &mut client.scanner;
            let progress = scanner.resume(REQUEST, input, end, &self.stream, &mut diagnostics);
            let consumed = match progress {
                Progress::Incomplete => {
                    let until = turn.now + self.ipc_timeout;
                    return Next::Read { until };
                }
                Progress::Done {
                    recovered: 2,
                    consumed,
                    stop,
                } => {
                    // What follows an attribute too many cannot be told from a request.
                    let lost = stop == Stop::Unexpected;
                    if lost { input.len() } else { consumed }
                }
                Progress::Done { .. } | Progress::Failed { .. } => {
                    // The reference takes the loss of a client for a request of the server's, and answers.
                    if self.state().counters.leave(&mut client.link, now) {
                        ListWriter::new(Encoding::Plain, turn.outbox.buffer())
                            .int("status", 0)
                            .finish();
                    }
                    return Next::Close;
                }
            };
            let text = |index| match scanner.value(index, input) {
                Some(Value::Bytes(text)) => text,
                _ => &[],
            };
            let (link, reply) = (&mut client.link, turn.outbox.buffer());
            self.execute(text(0), text(1), link, now, reply);
            scanner.reset();
            turn.inbox.consume(consumed);
            requests += 1;
            turn.requests = turn.requests.max(requests);
        }
        Next::Idle
    }

    fn disconnected(&self, mut client: Client) {
        let now = self.now(Instant::now());
        self.state().counters.leave(&mut client.link, now);
    }

    fn before_wait(&self, instant: Instant) -> Option<Instant> {
        let due = {
            let mut state = self.state();
            state.counters.expire(self.now(instant));
            let due = state.report <= instant;
            if due {
                state.report = instant + self.interval;
            }
            due
        };
        if due {
            self.log_peaks();
        }
        // Nobody is kept for two time units after the last connection, however quiet it is.
        Some(self.state().report.min(instant + self.unit))
    }

    fn before_exit(&self) {
        self.log_peaks();
    }
}

fn main() {
    let words: Vec<OsString> = std::env::args_os().collect();
    postkeep_daemon::main(&words[0], &words[1..], AnvilProgram::default());
}
