//! A client of proxymap(8): tables that another process has open.
//!
//! A request is sent again on a new connection when the old one failed, so the server can end at any time; how
//! often is a matter of the [`Policy`].
//!
//! # References
//! Postfix `src/global/dict_proxy.c`, `clnt_stream.c`, `mail_connect.c`.

use std::io;
use std::thread;
use std::time::Duration;

use log::warn;
use postkeep_sys::error_text;
use postkeep_wire::diagnostics::Shown;
use postkeep_wire::protocol;
use postkeep_wire::proxymap::{Operation, ReplyScanned, ReplyScanner, Request};

pub use postkeep_wire::proxymap::{Function, Generation, Status};

use crate::Place;
use crate::stream::{Stream, no_system_error};

/// The flags that tell instances of a table apart in generation one (`DICT_FLAG_INST_MASK` of Postfix up to
/// 3.10): all but those of the table type and those that may change with each request.
pub const INSTANCE_BITS: u32 = 0xFFF3_060C;

/// How a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// It announces its protocol first (Postfix 3.6 and later). A client that waits for an announcement that
    /// never comes waits for as long as [`Settings::limit`].
    pub announced: bool,
    /// The generation of its requests; `None` to find out at the first `open`, with generation one first. (A
    /// server of generation two logs a warning then.)
    pub generation: Option<Generation>,
}

impl Dialect {
    /// Postfix 3.0 to 3.5.
    pub const POSTFIX_3_0: Self = Self {
        announced: false,
        generation: Some(Generation::One),
    };
    /// Postfix 3.6 to 3.10.
    pub const POSTFIX_3_6: Self = Self {
        announced: true,
        generation: Some(Generation::One),
    };
    /// Postfix 3.11 and later.
    pub const POSTFIX_3_11: Self = Self {
        announced: true,
        generation: Some(Generation::Two),
    };
    /// Postfix 3.6 and later, whichever it is.
    pub const DETECT: Self = Self {
        announced: true,
        generation: None,
    };
}

/// How often what is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Tries to connect before it is an error; at least one is made.
    pub connects: u32,
    /// The pause between two of them.
    pub connect_delay: Duration,
    /// Times a request is sent before it is an error; `None` for as often as needed.
    pub sends: Option<u32>,
    /// The pause between two of them.
    pub send_delay: Duration,
}

impl Policy {
    /// As the reference: give up after eleven tries to connect, ten seconds apart, and never give up a
    /// request, which is sent once a second.
    pub const REFERENCE: Self = Self {
        connects: 11,
        connect_delay: Duration::from_secs(10),
        sends: None,
        send_delay: Duration::from_secs(1),
    };

    /// For a daemon, where an error is better than a thread that waits for minutes: three tries, one second
    /// apart.
    pub const BOUNDED: Self = Self {
        connects: 3,
        connect_delay: Duration::from_secs(1),
        sends: Some(3),
        send_delay: Duration::from_secs(1),
    };
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is.
    pub place: Place,
    /// `proxymap` or `proxywrite`, or what main.cf calls them; used in error texts.
    pub service: String,
    /// How it speaks.
    pub dialect: Dialect,
    /// `ipc_timeout`: for each wait.
    pub limit: Duration,
    /// `ipc_idle`: a connection that was unused for longer is not used again.
    pub idle: Duration,
    /// `ipc_ttl`: a connection that is older is not used again.
    pub ttl: Duration,
    /// How often what is tried.
    pub policy: Policy,
}

impl Settings {
    /// The defaults of postconf(5), and [`Policy::REFERENCE`].
    pub fn new(place: Place, service: impl Into<String>) -> Self {
        Self {
            place,
            service: service.into(),
            dialect: Dialect::DETECT,
            limit: Duration::from_hours(1),
            idle: Duration::from_secs(5),
            ttl: Duration::from_secs(1000),
            policy: Policy::REFERENCE,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection after the last try that the policy allows.
    #[error("connect #{tries} to subsystem {path}: {}", error_text(.error))]
    Connect {
        /// Number of tries.
        tries: u32,
        /// The socket.
        path: String,
        /// The system's reason.
        error: io::Error,
    },
    /// No usable reply after the last try that the policy allows.
    #[error("{function}: service {service}: {}", error_text(.error))]
    Exchange {
        /// The reference's function, `dict_proxy_lookup` and the like.
        function: String,
        /// The service.
        service: String,
        /// The system's reason; error number 0 when it was none of the system's.
        error: io::Error,
    },
    /// The server does not understand the request. The text is the reference's.
    #[error("{0}")]
    Invalid(String),
    /// The table is not approved, or not for writing. The text is the reference's.
    #[error("{0}")]
    Denied(String),
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// [`Status::Ok`], [`Status::NoKey`], [`Status::Retry`] or [`Status::Config`].
    pub status: Status,
    /// Flags of the table; in generation one only `open` has them.
    pub flags: Option<u32>,
    /// The key, after `sequence`.
    pub key: Vec<u8>,
    /// The value, after `lookup` and `sequence`.
    pub value: Vec<u8>,
}

/// One connection at a time, opened when needed. Dropping the client disconnects.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    stream: Option<Stream>,
    generation: Option<Generation>,
    replies: ReplyScanner,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            generation: settings.dialect.generation,
            settings,
            stream: None,
            replies: ReplyScanner::default(),
        }
    }

    /// The generation in use, when it is known.
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Opens a table. The answer has flags and the status [`Status::Ok`].
    ///
    /// - `table`: `TYPE:NAME`, without `proxy:`
    /// - `flags`: all flags of the opener; generation one sends only [`INSTANCE_BITS`] of them
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(&mut self, table: &[u8], flags: u32) -> Result<Answer, Error> {
        let request = |generation| Request::Open {
            table,
            flags: match generation {
                Generation::One => flags & INSTANCE_BITS,
                Generation::Two => flags,
            },
        };
        if let Some(generation) = self.generation {
            return self.request(request(generation));
        }
        // Both generations answer an `open` with the same attributes.
        self.generation = Some(Generation::One);
        let mut answer = self.request(request(Generation::One));
        if matches!(answer, Err(Error::Invalid(_))) {
            self.generation = Some(Generation::Two);
            answer = self.request(request(Generation::Two));
        }
        if answer.is_err() {
            self.generation = None;
        }
        answer
    }

    /// Looks up a key.
    ///
    /// In generation one `instance_flags` are not sent, and `flags` hold the instance bits as well.
    ///
    /// # Errors
    /// [`Error`].
    pub fn lookup(
        &mut self,
        table: &[u8],
        instance_flags: u32,
        flags: u32,
        key: &[u8],
    ) -> Result<Answer, Error> {
        self.request(Request::Lookup {
            table,
            instance_flags,
            flags,
            key,
        })
    }

    /// Stores an entry; flags as of [`Client::lookup`].
    ///
    /// The request may be executed twice, when the connection breaks before the reply is here.
    ///
    /// # Errors
    /// [`Error`].
    pub fn update(
        &mut self,
        table: &[u8],
        instance_flags: u32,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<Answer, Error> {
        self.request(Request::Update {
            table,
            instance_flags,
            flags,
            key,
            value,
        })
    }

    /// Deletes an entry; flags and repetition as of [`Client::update`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn delete(
        &mut self,
        table: &[u8],
        instance_flags: u32,
        flags: u32,
        key: &[u8],
    ) -> Result<Answer, Error> {
        self.request(Request::Delete {
            table,
            instance_flags,
            flags,
            key,
        })
    }

    /// Goes to the first or the next entry; flags as of [`Client::lookup`].
    ///
    /// The server holds the position: Postfix's one for all clients, ours one for each connection.
    ///
    /// # Errors
    /// [`Error`].
    pub fn sequence(
        &mut self,
        table: &[u8],
        instance_flags: u32,
        flags: u32,
        function: Function,
    ) -> Result<Answer, Error> {
        self.request(Request::Sequence {
            table,
            instance_flags,
            flags,
            function,
        })
    }

    /// Disconnects until the next request.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    fn request(&mut self, request: Request<'_>) -> Result<Answer, Error> {
        let generation = self.generation.unwrap_or(Generation::One);
        let operation = request.operation();
        let mut bytes = Vec::new();
        request.encode(generation, &mut bytes);
        let mut sends = 0;
        loop {
            let mut stream = self.connected()?;
            let result = self.exchange(&mut stream, operation, generation, &bytes);
            sends += 1;
            let exhausted = self.settings.policy.sends.is_some_and(|most| sends >= most);
            match result {
                Ok((number, answer)) => match (Status::from_number(number), operation) {
                    (Some(status @ (Status::Bad | Status::Deny)), _) => {
                        self.stream = Some(stream);
                        return Err(self.refusal(status, &request));
                    }
                    (Some(Status::Retry | Status::Config | Status::NoKey), Operation::Open)
                    | (None, _) => {
                        warn!("{}", self.unexpected(number, &request));
                        if exhausted {
                            return Err(self.failure(operation, no_system_error()));
                        }
                    }
                    (Some(status), _) => {
                        self.stream = Some(stream);
                        return Ok(Answer { status, ..answer });
                    }
                },
                Err(error) => {
                    // The usual end of a server that has nothing to do is not worth a line.
                    let usual =
                        sends == 1 && (error.raw_os_error() == Some(0) || is_hangup(&error));
                    let failure = self.failure(operation, error);
                    if !usual {
                        warn!("{failure}");
                    }
                    if exhausted {
                        return Err(failure);
                    }
                }
            }
            drop(stream);
            thread::sleep(self.settings.policy.send_delay);
        }
    }

    /// The number of the status, and the rest of the answer.
    fn exchange(
        &mut self,
        stream: &mut Stream,
        operation: Operation,
        generation: Generation,
        request: &[u8],
    ) -> io::Result<(i32, Answer)> {
        stream.send(request)?;
        let replies = &mut self.replies;
        let answer = stream.scan(|input, end, name, log| {
            match replies.scan(operation, generation, input, end, name, log) {
                ReplyScanned::Incomplete => None,
                ReplyScanned::Reply { reply, consumed } => Some(Ok((
                    reply.status,
                    Answer {
                        status: Status::Ok,
                        flags: reply.flags,
                        key: reply.key.to_vec(),
                        value: reply.value.to_vec(),
                    },
                    consumed,
                ))),
                ReplyScanned::Failed(error) => Some(Err(error)),
            }
        });
        match answer {
            Ok((status, answer, consumed)) => {
                stream.consume(consumed);
                Ok((status, answer))
            }
            Err(error) => Err(stream.error(error)),
        }
    }

    fn connected(&mut self) -> Result<Stream, Error> {
        let settings = &self.settings;
        if let Some(stream) = self.stream.take()
            && stream.is_usable(settings.idle, settings.ttl)
        {
            return Ok(stream);
        }
        let mut tries = 0;
        loop {
            let path = settings.place.resolve();
            let shown = path.display().to_string();
            tries += 1;
            let error = match Stream::connect(&path, format!("{shown} socket"), settings.limit) {
                Ok(mut stream) => {
                    if !settings.dialect.announced || stream.check_announcement(protocol::PROXYMAP)
                    {
                        return Ok(stream);
                    }
                    no_system_error()
                }
                Err(error) => error,
            };
            let failure = Error::Connect {
                tries,
                path: shown,
                error,
            };
            if tries >= settings.policy.connects {
                return Err(failure);
            }
            warn!("{failure}");
            thread::sleep(settings.policy.connect_delay);
        }
    }

    fn failure(&self, operation: Operation, error: io::Error) -> Error {
        Error::Exchange {
            function: format!("dict_proxy_{}", operation.word()),
            service: self.settings.service.clone(),
            error,
        }
    }

    fn refusal(&self, status: Status, request: &Request<'_>) -> Error {
        let service = &self.settings.service;
        let (table, _) = subject(request);
        match (status, request.operation()) {
            (Status::Deny, Operation::Update | Operation::Delete) => Error::Denied(format!(
                "{service} update access is not configured for table \"{table}\""
            )),
            (Status::Deny, _) => Error::Denied(format!(
                "{service} service is not configured for table \"{table}\""
            )),
            _ => Error::Invalid(format!("{}: invalid request", self.failed(request))),
        }
    }

    fn unexpected(&self, number: i32, request: &Request<'_>) -> String {
        let failed = self.failed(request);
        match request.operation() {
            Operation::Open => format!("{failed}: unexpected status {number}"),
            _ => format!("{failed}: unexpected reply status {number}"),
        }
    }

    fn failed(&self, request: &Request<'_>) -> String {
        let service = &self.settings.service;
        let operation = request.operation().word();
        let (table, what) = subject(request);
        format!("{service} {operation} failed for table \"{table}\"{what}")
    }
}

/// What a request is about: the table, and ` key "K"` or ` function N`.
fn subject<'a>(request: &Request<'a>) -> (Shown<'a>, String) {
    let key = |key| format!(" key \"{}\"", Shown::new(key));
    match *request {
        Request::Open { table, .. } => (Shown::new(table), String::new()),
        Request::Lookup { table, key: k, .. }
        | Request::Update { table, key: k, .. }
        | Request::Delete { table, key: k, .. } => (Shown::new(table), key(k)),
        Request::Sequence {
            table, function, ..
        } => (
            Shown::new(table),
            format!(" function {}", function.number()),
        ),
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotFound
    )
}

#[cfg(test)]
mod tests;
