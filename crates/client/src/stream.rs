//! One connection to a server: sending, and scanning what comes, within a time limit for each wait.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::socket;
use postkeep_wire::diagnostics::Diagnostics;
use postkeep_wire::duplex::{End, Inbox};
use postkeep_wire::protocol::{Announcement, AnnouncementScanner};
use postkeep_wire::reply::ReplyError;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Descriptors that may have arrived and not been asked for; a server that sends more is not one.
pub(crate) const MOST_WAITING_DESCRIPTORS: usize = 64;

/// How long to wait before another try when the server's queue of connections is full.
pub(crate) const QUEUE_FULL_DELAY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    inbox: Inbox<OwnedFd>,
    name: String,
    limit: Duration,
    /// Why nothing more will come, when that was an error of the system.
    broken: Option<Errno>,
    opened: Instant,
    used: Instant,
}

/// The error that Postfix 3.6 and later show as `Application error`: none that the system reported.
pub(crate) fn no_system_error() -> io::Error {
    io::Error::from_raw_os_error(0)
}

pub(crate) fn timed_out() -> io::Error {
    Errno::TIMEDOUT.into()
}

/// Sends the warnings of a scan to the log.
pub(crate) struct ToLog;

impl Diagnostics for ToLog {
    fn warning(&mut self, text: fmt::Arguments<'_>) {
        log::warn!("{text}");
    }
}

/// Connects without waiting; `WouldBlock` when the server's queue is full.
pub(crate) fn connect_socket(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

impl Stream {
    /// Connects, and waits so long as `limit` for a place in the server's queue.
    ///
    /// `name` is how warnings call the stream; `limit` also holds for each later wait.
    pub(crate) fn connect(path: &Path, name: String, limit: Duration) -> io::Result<Self> {
        let start = Instant::now();
        let socket = loop {
            match connect_socket(path) {
                Ok(socket) => break socket,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if start.elapsed() < limit => thread::sleep(QUEUE_FULL_DELAY),
                Err(_) => return Err(timed_out()),
            }
        };
        let opened = Instant::now();
        Ok(Self {
            socket,
            inbox: Inbox::default(),
            name,
            limit,
            broken: None,
            opened,
            used: opened,
        })
    }

    /// Waits for the announcement; false when it is that of another protocol.
    pub(crate) fn check_announcement(&mut self, protocol: &'static str) -> bool {
        let mut scanner = AnnouncementScanner::new(protocol);
        let accepted =
            self.scan(
                |input, end, name, log| match scanner.scan(input, end, name, log) {
                    Announcement::Incomplete => None,
                    Announcement::Accepted { consumed } => Some(Some(consumed)),
                    Announcement::Refused => Some(None),
                },
            );
        if let Some(consumed) = accepted {
            self.consume(consumed);
        }
        accepted.is_some()
    }

    /// Whether the connection can carry another request: the server has not closed it or said something out
    /// of turn, and it was neither unused for `idle` nor is it older than `ttl`.
    pub(crate) fn is_usable(&self, idle: Duration, ttl: Duration) -> bool {
        self.inbox.is_empty()
            && self.inbox.end().is_none()
            && self.used.elapsed() < idle
            && self.opened.elapsed() < ttl
            && matches!(
                wait_for(&self.socket, Interest::Read, Some(Duration::ZERO)),
                Ok(false)
            )
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.used = Instant::now();
        while !bytes.is_empty() {
            self.wait_for_room()?;
            match socket::send(&self.socket, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the byte 00 with a descriptor on it.
    pub(crate) fn send_descriptor(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            self.wait_for_room()?;
            match socket::send_descriptor(&self.socket, 0, descriptor) {
                Err(error) if again(&error) => {}
                result => return result,
            }
        }
    }

    /// Receives a byte with one descriptor on it.
    pub(crate) fn receive_descriptor(&mut self) -> io::Result<OwnedFd> {
        loop {
            if let Some(mut descriptors) = self.inbox.take_handles() {
                return match (descriptors.pop(), descriptors.len()) {
                    (Some(descriptor), 0) => Ok(descriptor),
                    _ => Err(no_system_error()),
                };
            }
            if let Some(end) = self.inbox.end() {
                return Err(self.error_of(end));
            }
            self.fill();
        }
    }

    /// Lets `scan` look at all unconsumed bytes until it has an answer.
    ///
    /// Scanners answer at the latest when the end of the input is set or a limit of theirs is exceeded.
    pub(crate) fn scan<T>(
        &mut self,
        mut scan: impl FnMut(&[u8], Option<End>, &str, &mut dyn Diagnostics) -> Option<T>,
    ) -> T {
        loop {
            if let Some(answer) = scan(self.inbox.bytes(), self.inbox.end(), &self.name, &mut ToLog)
            {
                return answer;
            }
            self.fill();
        }
    }

    pub(crate) fn consume(&mut self, count: usize) {
        drop(self.inbox.consume(count));
    }

    /// The system error behind a reply that cannot be used.
    pub(crate) fn error(&self, error: ReplyError) -> io::Error {
        match error {
            ReplyError::Nothing(end) | ReplyError::Ended(end) => self.error_of(end),
            ReplyError::Invalid | ReplyError::Limit => no_system_error(),
        }
    }

    pub(crate) fn error_of(&self, end: End) -> io::Error {
        match (end, self.broken) {
            (End::TimedOut, _) => timed_out(),
            (End::Closed, Some(errno)) => errno.into(),
            (End::Closed, None) => no_system_error(),
        }
    }

    /// As in the reference nothing is sent any more once a wait has been too long.
    fn wait_for_room(&self) -> io::Result<()> {
        if self.inbox.end() == Some(End::TimedOut)
            || !wait_for(&self.socket, Interest::Write, Some(self.limit))?
        {
            return Err(timed_out());
        }
        Ok(())
    }

    /// Receives once, or finds out that nothing more will come.
    fn fill(&mut self) {
        let mut buffer = [0; 4096];
        let mut descriptors = Vec::new();
        let received = match wait_for(&self.socket, Interest::Read, Some(self.limit)) {
            Ok(true) => socket::receive(&self.socket, &mut buffer, &mut descriptors),
            Ok(false) => {
                self.inbox.finish(End::TimedOut);
                return;
            }
            Err(error) => Err(error),
        };
        match received {
            Ok(0) => self.inbox.finish(End::Closed),
            Ok(count) => {
                self.inbox.receive(&buffer[..count], descriptors);
                if self.inbox.handles() > MOST_WAITING_DESCRIPTORS {
                    self.inbox.finish(End::Closed);
                }
            }
            Err(error) if again(&error) => {}
            Err(error) => {
                self.broken = error.raw_os_error().map(Errno::from_raw_os_error);
                self.inbox.finish(End::Closed);
            }
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
