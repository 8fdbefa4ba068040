//! The client of scache(8) for programs that run on tokio.
//!
//! The same operations, errors and [`Session`]s as of the blocking [`super::Connection`] and [`super::Client`]. A future that
//! is dropped before it has ended disconnects; a session that was on its way is closed then, and its far end sees
//! the end. Runs on any tokio runtime with its I/O and time drivers.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use log::warn;
use postkeep_sys::socket;
use postkeep_wire::Diagnostics;
use postkeep_wire::duplex::{End, Inbox};
use postkeep_wire::protocol::{self, Announcement, AnnouncementScanner};
use postkeep_wire::reply::ReplyError;
use postkeep_wire::scache::{
    Operation, Prompt, PromptScanner, Reply, ReplyScanned, ReplyScanner, Request,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::{Error, Session, Settings, Status, is_silent};
use crate::stream::{
    MOST_WAITING_DESCRIPTORS, QUEUE_FULL_DELAY, ToLog, connect_socket, no_system_error, timed_out,
};

/// What an operation gives: the connection again, and the answer.
pub type Answered<T> = Result<(Connection, T), Error>;

/// A connection to the cache. Dropping it disconnects.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    service: String,
}

/// One connection, with a time limit for each wait.
#[derive(Debug)]
struct Stream {
    socket: UnixStream,
    inbox: Inbox<OwnedFd>,
    name: String,
    settings: Settings,
    opened: Instant,
    used: Instant,
}

impl Connection {
    /// Connects and waits for the announcement.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Protocol`].
    pub async fn open(settings: &Settings) -> Result<Self, Error> {
        let path = settings.place.resolve();
        let service = path.display().to_string();
        let mut stream = match Stream::connect(&path, &service, settings).await {
            Ok(stream) => stream,
            Err(error) => return Err(Error::Connect { service, error }),
        };
        if settings.announced && !stream.is_announced().await {
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
    pub async fn save_endpoint(
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
        let status = async {
            self.stream.request(request).await?;
            if ttl > 0 {
                self.stream.receive_prompt().await?;
                let send = |socket: &UnixStream| socket::send_descriptor(socket, 0, descriptor);
                self.stream.write(send).await?;
            }
            self.stream.receive_reply(Operation::SaveEndpoint).await
        };
        let status = status.await;
        self.answer(status.map(|(status, ..)| status))
    }

    /// Binds a destination to an endpoint; `ttl` as of [`Connection::save_endpoint`].
    ///
    /// # Errors
    /// [`Error::Exchange`].
    pub async fn save_destination(
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
        let status = async {
            self.stream.request(request).await?;
            self.stream.receive_reply(Operation::SaveDestination).await
        };
        let status = status.await;
        self.answer(status.map(|(status, ..)| status))
    }

    /// Takes a session of an endpoint out of the cache.
    ///
    /// # Errors
    /// [`Error::Exchange`]; the session, if there was one, is lost.
    pub async fn find_endpoint(self, label: &[u8]) -> Answered<Option<Session>> {
        self.find(Request::FindEndpoint { label }).await
    }

    /// Takes a session of any endpoint of a destination out of the cache.
    ///
    /// # Errors
    /// [`Error::Exchange`]; the session, if there was one, is lost.
    pub async fn find_destination(self, label: &[u8]) -> Answered<Option<Session>> {
        self.find(Request::FindDestination { label }).await
    }

    async fn find(mut self, request: Request<'_>) -> Answered<Option<Session>> {
        let operation = request.operation();
        let found = async {
            self.stream.request(request).await?;
            self.stream.receive_session(operation).await
        };
        let found = found.await;
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
}

impl Stream {
    async fn connect(path: &Path, name: &str, settings: &Settings) -> io::Result<Self> {
        let start = Instant::now();
        let socket = loop {
            match connect_socket(path) {
                Ok(socket) => break socket,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if start.elapsed() < settings.limit => sleep(QUEUE_FULL_DELAY).await,
                Err(_) => return Err(timed_out()),
            }
        };
        let opened = Instant::now();
        Ok(Self {
            socket: UnixStream::from_std(socket.into())?,
            inbox: Inbox::default(),
            name: name.to_owned(),
            settings: settings.clone(),
            opened,
            used: opened,
        })
    }

    /// False when the announcement is that of another protocol.
    async fn is_announced(&mut self) -> bool {
        let mut scanner = AnnouncementScanner::new(protocol::SCACHE);
        let scan = |input: &[u8], end, name: &str, log: &mut dyn Diagnostics| match scanner
            .scan(input, end, name, log)
        {
            Announcement::Incomplete => None,
            Announcement::Accepted { consumed } => Some((consumed, true)),
            Announcement::Refused => Some((0, false)),
        };
        matches!(self.scan(scan).await, Ok(true))
    }

    /// Whether the connection can carry another request.
    fn is_usable(&self) -> bool {
        self.inbox.is_empty()
            && self.inbox.end().is_none()
            && self.used.elapsed() < self.settings.idle
            && self.opened.elapsed() < self.settings.ttl
            && postkeep_sys::idle::listen(&self.socket) == postkeep_sys::idle::Heard::Nothing
    }

    async fn request(&mut self, request: Request<'_>) -> io::Result<()> {
        self.used = Instant::now();
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.send(&bytes).await
    }

    async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.write(|socket| socket::send(socket, bytes)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    async fn write<T>(&self, mut write: impl FnMut(&UnixStream) -> io::Result<T>) -> io::Result<T> {
        let write = || write(&self.socket);
        self.limited(self.socket.async_io(Interest::WRITABLE, write))
            .await
    }

    async fn limited<T>(&self, wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let limit = timeout(self.settings.limit, wait).await;
        limit.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Receives once.
    async fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut handles = Vec::new();
        let receive = self.socket.async_io(Interest::READABLE, || {
            socket::receive(&self.socket, &mut buffer, &mut handles)
        });
        match self.limited(receive).await {
            Ok(0) => self.inbox.finish(End::Closed),
            Ok(count) => {
                self.inbox.receive(&buffer[..count], handles);
                if self.inbox.handles() > MOST_WAITING_DESCRIPTORS {
                    self.inbox.finish(End::Closed);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets `scan` look at all that has come until it has an answer, and drops what that takes up.
    async fn scan<T>(
        &mut self,
        mut scan: impl FnMut(&[u8], Option<End>, &str, &mut dyn Diagnostics) -> Option<(usize, T)>,
    ) -> io::Result<T> {
        loop {
            let scanned = scan(self.inbox.bytes(), self.inbox.end(), &self.name, &mut ToLog);
            if let Some((consumed, answer)) = scanned {
                drop(self.inbox.consume(consumed));
                return Ok(answer);
            }
            self.fill().await?;
        }
    }

    async fn receive_prompt(&mut self) -> io::Result<()> {
        let mut scanner = PromptScanner::default();
        let scan = |input: &[u8], end, name: &str, log: &mut dyn Diagnostics| match scanner
            .scan(input, end, name, log)
        {
            Prompt::Incomplete => None,
            Prompt::Received { consumed } => Some((consumed, true)),
            Prompt::Ended(_) | Prompt::Refused { .. } | Prompt::Unusable => Some((0, false)),
        };
        if self.scan(scan).await? {
            Ok(())
        } else {
            Err(no_system_error())
        }
    }

    /// Status, destination's property, endpoint's property.
    async fn receive_reply(
        &mut self,
        operation: Operation,
    ) -> io::Result<(Status, Vec<u8>, Vec<u8>)> {
        let mut scanner = ReplyScanner::default();
        let scan = |input: &[u8], end, name: &str, log: &mut dyn Diagnostics| {
            let known = |reply: Reply<'_>| {
                // A number that nobody knows is no success.
                let status = Status::from_number(reply.status).unwrap_or(Status::Fail);
                (status, reply.destination.to_vec(), reply.endpoint.to_vec())
            };
            match scanner.scan(operation, input, end, name, log) {
                ReplyScanned::Incomplete => None,
                ReplyScanned::Reply { reply, consumed } => Some((consumed, Ok(known(reply)))),
                ReplyScanned::Failed(error) => Some((0, Err(error))),
            }
        };
        self.scan(scan)
            .await?
            .map_err(|error: ReplyError| match error {
                ReplyError::Nothing(End::TimedOut) | ReplyError::Ended(End::TimedOut) => {
                    timed_out()
                }
                _ => no_system_error(),
            })
    }

    async fn receive_session(&mut self, operation: Operation) -> io::Result<Option<Session>> {
        let (status, destination_property, endpoint_property) =
            self.receive_reply(operation).await?;
        if status != Status::Ok {
            return Ok(None);
        }
        let mut prompt = Vec::new();
        postkeep_wire::scache::prompt(&mut prompt);
        self.send(&prompt).await?;
        let descriptor = loop {
            if let Some(mut descriptors) = self.inbox.take_handles() {
                match (descriptors.pop(), descriptors.len()) {
                    (Some(descriptor), 0) => break descriptor,
                    _ => return Err(no_system_error()),
                }
            }
            if self.inbox.end().is_some() {
                return Err(no_system_error());
            }
            self.fill().await?;
        };
        // The session is ours whatever becomes of the connection; and it is not to be lost to a future that is dropped
        // in this moment. There is room for a few bytes when the server is at all well.
        let _ = socket::send(&self.socket, &prompt);
        Ok(Some(Session {
            descriptor,
            destination_property,
            endpoint_property,
        }))
    }
}

/// The cache as a mail client uses it: one connection at a time, opened when needed. As the blocking
/// [`Client`](super::Client), with the same log lines.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    connection: Option<Connection>,
    disabled: bool,
}

/// Something to be done over a connection, as often as it is tried.
#[derive(Clone, Copy)]
enum Task<'a> {
    SaveEndpoint(i32, &'a [u8], &'a [u8], BorrowedFd<'a>),
    SaveDestination(i32, &'a [u8], &'a [u8], &'a [u8]),
    FindEndpoint(&'a [u8]),
    FindDestination(&'a [u8]),
}

/// What came of it.
enum Done {
    Saved(Status),
    Found(Option<Session>),
}

impl Task<'_> {
    async fn run(self, connection: Connection) -> Answered<Done> {
        let saved = |(connection, status)| (connection, Done::Saved(status));
        let found = |(connection, session)| (connection, Done::Found(session));
        match self {
            Self::SaveEndpoint(ttl, label, property, descriptor) => connection
                .save_endpoint(ttl, label, property, descriptor)
                .await
                .map(saved),
            Self::SaveDestination(ttl, label, property, endpoint) => connection
                .save_destination(ttl, label, property, endpoint)
                .await
                .map(saved),
            Self::FindEndpoint(label) => connection.find_endpoint(label).await.map(found),
            Self::FindDestination(label) => connection.find_destination(label).await.map(found),
        }
    }
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
    pub async fn save_endpoint(
        &mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        descriptor: OwnedFd,
    ) -> Result<Status, Error> {
        let task = Task::SaveEndpoint(ttl, label, property, descriptor.as_fd());
        self.attempt(task).await.map(Done::status)
    }

    /// Binds a destination to an endpoint for at most `ttl` seconds (above zero).
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub async fn save_destination(
        &mut self,
        ttl: i32,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Result<Status, Error> {
        let task = Task::SaveDestination(ttl, label, property, endpoint);
        self.attempt(task).await.map(Done::status)
    }

    /// Takes a session of an endpoint out of the cache; `None` when there is none.
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub async fn find_endpoint(&mut self, label: &[u8]) -> Result<Option<Session>, Error> {
        let task = Task::FindEndpoint(label);
        self.attempt(task).await.map(Done::session)
    }

    /// Takes a session of any endpoint of a destination out of the cache; `None` when there is none.
    ///
    /// # Errors
    /// As of [`Client::save_endpoint`].
    pub async fn find_destination(&mut self, label: &[u8]) -> Result<Option<Session>, Error> {
        let task = Task::FindDestination(label);
        self.attempt(task).await.map(Done::session)
    }

    /// Disconnects until the next operation.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    async fn attempt(&mut self, task: Task<'_>) -> Result<Done, Error> {
        if self.disabled {
            return Err(Error::Disabled);
        }
        let mut tries = 0;
        loop {
            let usable = |connection: &Connection| connection.stream.is_usable();
            // Until it has answered nobody has the connection but this future.
            let connection = match self.connection.take().filter(usable) {
                Some(connection) => Ok(connection),
                None => Connection::open(&self.settings).await,
            };
            let outcome = match connection {
                Ok(connection) => task.run(connection).await,
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok((connection, done)) => {
                    self.connection = Some(connection);
                    return Ok(done);
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
            sleep(self.settings.delay).await;
        }
    }
}

impl Done {
    fn status(self) -> Status {
        match self {
            Self::Saved(status) => status,
            Self::Found(_) => Status::Fail,
        }
    }

    fn session(self) -> Option<Session> {
        match self {
            Self::Found(session) => session,
            Self::Saved(_) => None,
        }
    }
}
