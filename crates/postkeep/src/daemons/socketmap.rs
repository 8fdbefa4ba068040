//! The socketmap server: lookup tables for other machines, joined to the skeleton.
//!
//! # References
//! postkeep-socketmap(8); `socketmap_table(5)`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postkeep_conf::{Dictionary, Error, Sink};
use postkeep_daemon::metrics::Page;
use postkeep_daemon::{
    Attributes, Next, Program, Reloaded, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::service::Done;
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_proxymap::socketmap::{Action, Conversation, Server};
use postkeep_sys::socket::peer_address;
use postkeep_tables::Registry;
use postkeep_wire::duplex::{End, Inbox, Outbox};
use rustls::ServerConfig;

use super::errands::{self, Errand, Errands, Progress, Reply};
use super::reach;
use super::table_metrics::{self, Names};
use super::tables;
use parameters::Parameters;
use tls::Session;
use trouble::Lines;

mod metrics;
mod parameters;
mod tls;
mod trouble;

/// Runs the daemon.
pub(crate) fn run(name: &OsStr, arguments: &[OsString]) -> ExitCode {
    postkeep_daemon::main(
        name,
        &super::with_version(arguments),
        SocketmapProgram::default(),
    )
}

/// The server while it starts.
#[derive(Debug, Default)]
struct SocketmapProgram {
    parameters: Option<Parameters>,
    tls: Option<Arc<ServerConfig>>,
    limits: errands::Limits,
    open_tables: usize,
}

impl SocketmapProgram {
    fn read(&mut self, dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<(), Error> {
        parameters::set_defaults(dictionary);
        self.parameters = Some(Parameters::read(dictionary, sink)?);
        self.limits = errands::read_limits(dictionary, sink)?;
        self.open_tables = tables::read_open_tables(dictionary, sink)?;
        Ok(())
    }
}

impl Program for SocketmapProgram {
    type Service = Socketmap;

    fn requirements(&self) -> Vec<Requirement<Self>> {
        vec![Requirement::Parameters(Self::read)]
    }

    fn before_jail(&mut self, _: &mut Setup) {
        // The key need not be readable for whom the process becomes.
        let wanted = self
            .parameters
            .as_ref()
            .and_then(|known| known.tls.as_ref());
        self.tls = wanted.map(|tls| {
            tls.server()
                .unwrap_or_else(|error| logging::fatal(format_args!("{error}")))
        });
    }

    fn after_jail(self, setup: &mut Setup) -> Socketmap {
        let Some(parameters) = self.parameters else {
            logging::panic(format_args!("the parameters were not read"));
        };
        let approved = parameters.maps.tables();
        let data_directory = OsString::from_vec(setup.common.data_directory.clone());
        setup.confine(reach::of(
            Role::Read,
            approved.sorted(),
            Path::new(&data_directory),
            &setup.dictionary,
        ));
        let context = tables::context(&setup.common, &setup.dictionary);
        let opened = Arc::new(Tables::new(
            Role::Read,
            &approved,
            Arc::new(Registry::new(context)),
            Arc::new(tables::DiskObserver),
            Settings {
                open_error_is_fatal: setup.common.daemon_table_open_error_is_fatal,
                open_tables: self.open_tables,
                few_lines: true,
                ..Settings::default()
            },
        ));
        if !setup.one_shot {
            tables::keep(Arc::clone(&opened));
        }
        let stream: Arc<str> = setup.stream_name().into();
        Socketmap {
            names: Names::new(approved.sorted()),
            errands: Errands::new(self.limits, setup.limits.busy_wait, Arc::clone(&stream)),
            lines: Lines::new(stream),
            tls: self.tls,
            allow_plaintext: parameters.allow_plaintext,
            handshake_time: parameters.handshake_time,
            stray: super::stray_argument(setup),
            server: Server::new(
                parameters.maps,
                opened,
                setup.common.smtputf8_enable,
                parameters.limits,
            ),
            epoch: Instant::now(),
        }
    }
}

/// The running service.
struct Socketmap {
    server: Server,
    /// What tables are called in metrics.
    names: Names,
    errands: Errands,
    lines: Lines,
    /// For clients of the network.
    tls: Option<Arc<ServerConfig>>,
    /// Clients of other machines are served without TLS.
    allow_plaintext: bool,
    handshake_time: Duration,
    stray: Option<String>,
    /// The zero of the conversations' clock.
    epoch: Instant,
}

/// One client.
struct Client {
    transport: Transport,
    dialogue: Dialogue,
}

/// How bytes come and go.
enum Transport {
    Plain,
    Tls {
        session: Session,
        /// Until when the handshake must be over; `None` when it is.
        handshake: Option<Instant>,
    },
    /// They do not.
    Refused,
}

/// The conversation, and what it waits for.
struct Dialogue {
    origin: Origin,
    conversation: Conversation,
    waker: Waker,
    /// Set while an operation is out, with when it is given up.
    errand: Option<(Errand, Instant)>,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Here,
    Network(IpAddr),
    /// It has gone already, or nobody can tell.
    Unknown,
}

impl Origin {
    fn of(socket: BorrowedFd<'_>) -> Self {
        match peer_address(&socket) {
            Ok(None) => Self::Here,
            Ok(Some(address)) => Self::Network(address.ip().to_canonical()),
            Err(_) => Self::Unknown,
        }
    }

    fn is_this_machine(self) -> bool {
        match self {
            Self::Here => true,
            Self::Network(address) => address.is_loopback(),
            Self::Unknown => false,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("a client of this machine"),
            Self::Network(address) => write!(f, "client {address}"),
            Self::Unknown => f.write_str("a client"),
        }
    }
}

impl Socketmap {
    fn client(&self, origin: Origin, waker: Waker) -> Client {
        let now = Instant::now();
        let transport = match (origin, &self.tls) {
            (Origin::Here, _) => Transport::Plain,
            (_, Some(config)) => match Session::new(config) {
                Ok(session) => Transport::Tls {
                    session,
                    handshake: Some(now + self.handshake_time),
                },
                Err(error) => {
                    self.lines.handshake_failed(now, origin, &error);
                    Transport::Refused
                }
            },
            (_, None) if origin.is_this_machine() || self.allow_plaintext => Transport::Plain,
            (_, None) => {
                self.lines.plaintext_refused(now, origin);
                Transport::Refused
            }
        };
        Client {
            transport,
            dialogue: Dialogue {
                origin,
                conversation: Conversation::new(),
                waker,
                errand: None,
            },
        }
    }

    /// Goes on with a conversation, whatever is between it and the client.
    ///
    /// - `ended`: nothing more comes from the network
    fn converse(
        &self,
        dialogue: &mut Dialogue,
        (inbox, outbox): (&mut Inbox<OwnedFd>, &mut Outbox<OwnedFd>),
        now: Instant,
        ended: bool,
        requests: &mut u32,
    ) -> Next {
        let Dialogue {
            origin,
            conversation,
            waker,
            errand,
        } = dialogue;
        let mut trouble =
            |trouble, detail: &[u8]| self.lines.trouble(now, *origin, trouble, detail);
        if let Some((out, until)) = errand.take() {
            match errands::look(&out) {
                Progress::Out if now < until => {
                    *errand = Some((out, until));
                    return Next::Await { until };
                }
                Progress::Out => conversation.give_up(outbox, &self.server, &mut trouble),
                Progress::Lost => return Next::Close,
                Progress::Back(outcome) => self.finish(conversation, outcome.done, outbox),
            }
        }
        loop {
            let clock = now.saturating_duration_since(self.epoch);
            let action = conversation.step(clock, inbox, outbox, &self.server, &mut trouble);
            *requests = requests.saturating_add(conversation.take_requests());
            return match action {
                Action::Idle(until) => Next::Listen {
                    until: self.epoch + until,
                },
                Action::Read(until) => Next::Read {
                    until: self.epoch + until,
                },
                Action::Run(job, until) => {
                    match self.errands.send(waker, job, now, Reply::InTurn) {
                        Ok(out) => {
                            let until = self.epoch + until;
                            *errand = Some((out, until));
                            Next::Await { until }
                        }
                        Err(job) => {
                            self.finish(conversation, job.put_off(), outbox);
                            continue;
                        }
                    }
                }
                // Nothing is out: what waits has come back, or was given up, above.
                Action::Wait | Action::Close => Next::Close,
                Action::Flush if !ended => Next::Listen { until: now },
                // After the end of input anything but waiting would be the last turn.
                Action::Flush => {
                    waker.wake();
                    Next::Wait
                }
            };
        }
    }

    fn finish(&self, conversation: &mut Conversation, done: Done, outbox: &mut Outbox<OwnedFd>) {
        if let Err(fatal) = conversation.finish(done, outbox, &self.server) {
            logging::fatal(format_args!("{fatal}"));
        }
    }
}

impl Service for Socketmap {
    type Client = Client;

    const TAKES_DESCRIPTORS: bool = false;

    fn write_limit(&self) -> Duration {
        self.server.limits().request_time
    }

    fn connected(&self, _: &Attributes, _: &mut Outbox<OwnedFd>, waker: Waker) -> Client {
        // On standard input: whoever started this process.
        self.client(Origin::Here, waker)
    }

    fn connected_at(
        &self,
        socket: BorrowedFd<'_>,
        _: &Attributes,
        _: &mut Outbox<OwnedFd>,
        waker: Waker,
    ) -> Client {
        self.client(Origin::of(socket), waker)
    }

    fn describe(&self, page: &mut Page) {
        table_metrics::describe(self.server.tables(), &self.names, &self.errands, page);
        self.describe_conversations(page);
    }

    fn reload(&self, table: &[u8]) -> Reloaded {
        let table = self.server.maps().find(table).unwrap_or(table);
        tables::reload(self.server.tables(), table)
    }

    fn advance(&self, client: &mut Client, turn: &mut Turn<'_>) -> Next {
        let spoken = !turn.inbox.is_empty() || turn.inbox.end().is_some();
        if spoken && let Some(stray) = &self.stray {
            super::refuse_argument(stray);
        }
        let Client {
            transport,
            dialogue,
        } = client;
        let (now, end) = (turn.now, turn.inbox.end());
        let mut requests = 0;
        let next = match transport {
            Transport::Refused => return Next::Close,
            Transport::Plain => self.converse(
                dialogue,
                (turn.inbox, turn.outbox),
                now,
                end.is_some(),
                &mut requests,
            ),
            Transport::Tls { session, handshake } => {
                let out = turn.outbox.buffer();
                if let Err(error) = session.receive(turn.inbox, out) {
                    if handshake.is_some() {
                        self.lines.handshake_failed(now, dialogue.origin, &error);
                    } else {
                        self.lines.broken(now, dialogue.origin, &error);
                    }
                    return Next::Close;
                }
                if let Some(until) = *handshake {
                    if session.is_handshaking() {
                        return match end {
                            None => Next::Read { until },
                            Some(End::Closed) => Next::Close,
                            Some(End::TimedOut) => {
                                self.lines.handshake_slow(
                                    now,
                                    dialogue.origin,
                                    self.handshake_time,
                                );
                                Next::Close
                            }
                        };
                    }
                    self.lines.handshake_done();
                    *handshake = None;
                }
                let inner = (&mut session.inbox, &mut session.outbox);
                let next = self.converse(dialogue, inner, now, end.is_some(), &mut requests);
                session.send(out);
                if next == Next::Close {
                    session.close(out);
                }
                next
            }
        };
        turn.requests = turn.requests.max(requests);
        next
    }
}
