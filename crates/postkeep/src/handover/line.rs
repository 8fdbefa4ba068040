//! The connection over which sessions are handed over.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use postkeep_scache::transfer::{BadFrame, Frame, MOST_SESSIONS};
use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::socket;

/// Why a hand-over broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The connection failed.
    #[error("{}", postkeep_sys::error_text(.0))]
    Failed(#[from] io::Error),
    /// The other side closed it in the middle of something.
    #[error("the other process has gone")]
    Gone,
    /// The other side did not answer in time.
    #[error("the other process does not answer")]
    Late,
    /// The other side belongs to somebody else.
    #[error("the other process belongs to user ID {0}")]
    Stranger(u32),
    /// It does not speak our language.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// There is no version that both understand.
    #[error("the other process speaks another version")]
    Version,
    /// It said something at the wrong time.
    #[error("unexpected frame")]
    Unexpected,
    /// The descriptors are not those that were announced.
    #[error("descriptors do not fit their labels")]
    Descriptors,
}

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Line {
    socket: UnixStream,
    received: Vec<u8>,
    /// What came with the bytes.
    handles: Vec<OwnedFd>,
}

impl Line {
    /// Makes sure that the other end belongs to the same user, or to root.
    ///
    /// # Errors
    /// [`Broken::Stranger`], or the system does not tell.
    pub(crate) fn new(socket: UnixStream) -> Result<Self, Broken> {
        let (own, _) = postkeep_sys::effective::identity();
        Self::with(socket, own)
    }

    /// Makes sure that the other end belongs to this user, or to root.
    ///
    /// # Errors
    /// As [`Line::new`].
    pub(crate) fn with(socket: UnixStream, user: u32) -> Result<Self, Broken> {
        let peer = socket::peer(&socket)?;
        if peer.uid != user && peer.uid != 0 {
            return Err(Broken::Stranger(peer.uid));
        }
        Ok(Self {
            socket,
            received: Vec::new(),
            handles: Vec::new(),
        })
    }

    /// Sends a frame, with descriptors, which stay the caller's as well.
    ///
    /// # Errors
    /// Not all of it could be sent within `limit`.
    pub(crate) fn send(
        &self,
        frame: &Frame<'_>,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), Broken> {
        let until = Instant::now() + limit;
        let mut bytes = Vec::new();
        frame.encode(&mut bytes)?;
        let mut rest = &bytes[..];
        let mut descriptors = descriptors;
        while !rest.is_empty() {
            match socket::send_descriptors(&self.socket, rest, descriptors) {
                Ok(count) => {
                    rest = &rest[count..];
                    descriptors = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Interest::Write, until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(Broken::Gone);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for a frame for at most `limit`, and has it looked at together with the descriptors that came with it.
    ///
    /// # Errors
    /// It did not come, or is none; or what `look` says.
    pub(crate) fn receive<R>(
        &mut self,
        limit: Duration,
        look: impl FnOnce(Frame<'_>, &mut Vec<OwnedFd>) -> Result<R, Broken>,
    ) -> Result<R, Broken> {
        let until = Instant::now() + limit;
        loop {
            if let Some((frame, length)) = Frame::decode(&self.received)? {
                let looked = look(frame, &mut self.handles);
                self.received.drain(..length);
                return looked;
            }
            let mut buffer = [0; 16 * 1024];
            match socket::receive(&self.socket, &mut buffer, &mut self.handles) {
                Ok(0) => return Err(Broken::Gone),
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Interest::Read, until)?;
                }
                Err(error) => return Err(error.into()),
            }
            if self.handles.len() > MOST_SESSIONS {
                return Err(Broken::Descriptors);
            }
        }
    }

    /// Whether something comes within `limit`, be it the end.
    pub(crate) fn is_ready(&self, limit: Duration) -> bool {
        !self.received.is_empty()
            || wait_for(&self.socket, Interest::Read, Some(limit)).unwrap_or(true)
    }

    /// From now on the other side can send nothing more, and knows it; what it has sent can still be received.
    pub(crate) fn finish_receiving(&self) {
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    fn wait(&self, interest: Interest, until: Instant) -> Result<(), Broken> {
        let left = until.saturating_duration_since(Instant::now());
        if wait_for(&self.socket, interest, Some(left))? {
            Ok(())
        } else {
            Err(Broken::Late)
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
