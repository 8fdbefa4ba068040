//! A client of scache(8), the connection cache.
//!
//! [`Connection`] is one connection: every operation takes it and gives it back only when the connection is
//! still good, so that a broken one cannot be used again. [`Client`] reconnects, tries a second time, and then
//! gives up for good, as smtp(8) does.
//!
//! # References
//! Postfix `src/global/scache_clnt.c`, `src/util/auto_clnt.c`.

#[cfg(feature = "tokio")]
pub mod asynchronous;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use log::warn;
use postkeep_sys::error_text;
use postkeep_wire::protocol;
use postkeep_wire::scache::{
    Operation, Prompt, PromptScanner, ReplyScanned, ReplyScanner, Request,
};

pub use postkeep_wire::scache::Status;

use crate::Place;
use crate::stream::{Stream, no_system_error};

/// How to reach the cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is.
    pub place: Place,
    /// The server announces its protocol first (Postfix 3.6 and later).
    pub announced: bool,
    /// `connection_cache_protocol_timeout`: for connecting, and for each wait after that.
    pub limit: Duration,
    /// `ipc_idle`: a connection that was unused for longer is not used again.
    pub idle: Duration,
    /// `ipc_ttl`: a connection that is older is not used again.
    pub ttl: Duration,
    /// How often an operation is tried before the cache is given up for good; at least once is.
    pub tries: u32,
    /// The pause between two tries.
    pub delay: Duration,
}

impl Settings {
    /// What smtp(8) does by default.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            announced: true,
            limit: Duration::from_secs(5),
            idle: Duration::from_secs(5),
            ttl: Duration::from_secs(1000),
            tries: 2,
            delay: Duration::from_secs(1),
        }
    }
}

/// Why an operation did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection.
    #[error("connect to {service}: {}", error_text(.error))]
    Connect {
        /// The socket.
        service: String,
        /// The system's reason.
        error: io::Error,
    },
    /// The server speaks another protocol, which has been logged.
    #[error("{service} speaks another protocol")]
    Protocol {
        /// The socket.
        service: String,
    },
    /// The connection broke, or the server said something unexpected.
    #[error("problem talking to service {service}: {}", error_text(.error))]
    Exchange {
        /// The socket.
        service: String,
        /// The system's reason; error number 0 when it was none of the system's.
        error: io::Error,
    },
    /// The cache was given up after too many failures.
    #[error("connection caching is disabled")]
    Disabled,
}

/// A session from the cache. Dropping it closes the connection; to use it is to move the descriptor out, so it cannot be
/// used twice.
#[derive(Debug)]
#[must_use = "the connection is closed when it is dropped"]
pub struct Session {
    /// The connection, non-blocking or not as it was saved.
    pub descriptor: OwnedFd,
    /// The property of the destination; empty when the session was found by its endpoint.
    pub destination_property: Vec<u8>,
    /// The property of the endpoint.
    pub endpoint_property: Vec<u8>,
}

/// A connection to the cache. Dropping it disconnects.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    service: String,
}

/// What an operation gives: the connection again, and the answer.
pub type Answered<T> = Result<(Connection, T), Error>;

impl Connection {
    /// Connects and waits for the announcement.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Protocol`].
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let path = settings.place.resolve();
        let service = path.display().to_string();
        let mut stream = match Stream::connect(&path, service.clone(), settings.limit) {
            Ok(stream) => stream,
            Err(error) => return Err(Error::Connect { service, error }),
        };
        if settings.announced && !stream.check_announcement(protocol::SCACHE) {
            return Err(Error::Protocol { service });
        }
        Ok(Self { stream, service })
    }

    /// Saves a session; the caller's descriptor stays open.
    ///
    /// `ttl` in seconds; the server takes no more than its `connection_cache_ttl_limit`, and refuses what is
    /// not above zero.
    ///
    /// # Errors
    /// [`Error::Exchange`].
    pub fn save_endpoint(
        mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        descriptor: BorrowedFd<'_>,
    ) -> Answered<Status> {
        let request = Request::SaveEndpoint {
            ttl,
            label,
            property,
        };
        let status = self.send(request).and_then(|()| {
            if ttl > 0 {
                self.receive_prompt()?;
                self.stream.send_descriptor(descriptor)?;
            }
            self.receive_reply(Operation::SaveEndpoint)
        });
        self.answer(status.map(|(status, ..)| status))
    }

    /// Binds a destination to an endpoint; `ttl` as of [`Connection::save_endpoint`].
    ///
    /// # Errors
    /// [`Error::Exchange`].
    pub fn save_destination(
        mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Answered<Status> {
        let request = Request::SaveDestination {
            ttl,
            label,
            property,
            endpoint,
        };
        let status = self
            .send(request)
            .and_then(|()| self.receive_reply(Operation::SaveDestination));
        self.answer(status.map(|(status, ..)| status))
    }

    /// Takes a session of an endpoint out of the cache.
    ///
    /// # Errors
    /// [`Error::Exchange`]; the session, if there was one, is lost.
    pub fn find_endpoint(mut self, label: &[u8]) -> Answered<Option<Session>> {
        let found = self
            .send(Request::FindEndpoint { label })
            .and_then(|()| self.receive_session(Operation::FindEndpoint));
        self.answer(found)
    }

    /// Takes a session of any endpoint of a destination out of the cache.
    ///
    /// # Errors
    /// [`Error::Exchange`]; the session, if there was one, is lost.
    pub fn find_destination(mut self, label: &[u8]) -> Answered<Option<Session>> {
        let found = self
            .send(Request::FindDestination { label })
            .and_then(|()| self.receive_session(Operation::FindDestination));
        self.answer(found)
    }

    fn answer<T>(self, answer: io::Result<T>) -> Answered<T> {
        match answer {
            Ok(answer) => Ok((self, answer)),
            Err(error) => Err(Error::Exchange {
                service: self.service,
                error,
            }),
        }
    }

    fn send(&mut self, request: Request<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.stream.send(&bytes)
    }

    fn receive_prompt(&mut self) -> io::Result<()> {
        let mut scanner = PromptScanner::default();
        let prompt =
            self.stream.scan(
                |input, end, name, log| match scanner.scan(input, end, name, log) {
                    Prompt::Incomplete => None,
                    prompt => Some(prompt),
                },
            );
        match prompt {
            Prompt::Received { consumed } => {
                self.stream.consume(consumed);
                Ok(())
            }
            Prompt::Ended(end) => Err(self.stream.error_of(end)),
            Prompt::Incomplete | Prompt::Refused { .. } | Prompt::Unusable => {
                Err(no_system_error())
            }
        }
    }

    /// Status, destination's property, endpoint's property.
    fn receive_reply(&mut self, operation: Operation) -> io::Result<(Status, Vec<u8>, Vec<u8>)> {
        let mut scanner = ReplyScanner::default();
        let answer = self.stream.scan(|input, end, name, log| {
            match scanner.scan(operation, input, end, name, log) {
                ReplyScanned::Incomplete => None,
                ReplyScanned::Reply { reply, consumed } => {
                    // A number that nobody knows is no success.
                    let status = Status::from_number(reply.status).unwrap_or(Status::Fail);
                    Some(Ok((
                        (status, reply.destination.to_vec(), reply.endpoint.to_vec()),
                        consumed,
                    )))
                }
                ReplyScanned::Failed(error) => Some(Err(error)),
            }
        });
        match answer {
            Ok((reply, consumed)) => {
                self.stream.consume(consumed);
                Ok(reply)
            }
            Err(error) => Err(self.stream.error(error)),
        }
    }

    fn receive_session(&mut self, operation: Operation) -> io::Result<Option<Session>> {
        let (status, destination_property, endpoint_property) = self.receive_reply(operation)?;
        if status != Status::Ok {
            return Ok(None);
        }
        let mut prompt = Vec::new();
        postkeep_wire::scache::prompt(&mut prompt);
        self.stream.send(&prompt)?;
        let descriptor = self.stream.receive_descriptor()?;
        // The session is ours whatever becomes of the connection; the next operation finds out about that.
        let _ = self.stream.send(&prompt);
        Ok(Some(Session {
            descriptor,
            destination_property,
            endpoint_property,
        }))
    }
}

/// The cache as a mail client uses it: one connection at a time, opened when needed.
///
/// The failures of each try are logged in the reference's words. After the last try the cache is given up, with
/// `disabling connection caching` in the log, and every later call is [`Error::Disabled`] at once.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    connection: Option<Connection>,
    disabled: bool,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            connection: None,
            disabled: false,
        }
    }

    /// Saves a session for at most `ttl` seconds (above zero), and closes the caller's descriptor in any case.
    ///
    /// # Errors
    /// Those of the last try. A cache that refuses is none: that is the status.
    pub fn save_endpoint(
        &mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        descriptor: OwnedFd,
    ) -> Result<Status, Error> {
        let result = self.attempt(|connection| {
            connection.save_endpoint(ttl, label, property, descriptor.as_fd())
        });
        drop(descriptor);
        result
    }

    /// Binds a destination to an endpoint for at most `ttl` seconds (above zero).
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub fn save_destination(
        &mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Result<Status, Error> {
        self.attempt(|connection| connection.save_destination(ttl, label, property, endpoint))
    }

    /// Takes a session of an endpoint out of the cache; `None` when there is none.
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub fn find_endpoint(&mut self, label: &[u8]) -> Result<Option<Session>, Error> {
        self.attempt(|connection| connection.find_endpoint(label))
    }

    /// Takes a session of any endpoint of a destination out of the cache; `None` when there is none.
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub fn find_destination(&mut self, label: &[u8]) -> Result<Option<Session>, Error> {
        self.attempt(|connection| connection.find_destination(label))
    }

    /// Disconnects until the next operation.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    fn attempt<T>(&mut self, operation: impl Fn(Connection) -> Answered<T>) -> Result<T, Error> {
        if self.disabled {
            return Err(Error::Disabled);
        }
        let mut tries = 0;
        loop {
            let usable = |connection: &Connection| {
                connection
                    .stream
                    .is_usable(self.settings.idle, self.settings.ttl)
            };
            let connection = match self.connection.take().filter(usable) {
                Some(connection) => Ok(connection),
                None => Connection::open(&self.settings),
            };
            let error = match connection.and_then(&operation) {
                Ok((connection, answer)) => {
                    self.connection = Some(connection);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if !is_silent(&error) {
                warn!("{error}");
            }
            tries += 1;
            if tries >= self.settings.tries {
                warn!("disabling connection caching");
                self.disabled = true;
                return Err(error);
            }
            thread::sleep(self.settings.delay);
        }
    }
}

fn is_silent(error: &Error) -> bool {
    match error {
        Error::Exchange { error, .. } => {
            matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::NotFound
            )
        }
        Error::Protocol { .. } => true,
        Error::Connect { .. } | Error::Disabled => false,
    }
}

#[cfg(test)]
mod tests;
