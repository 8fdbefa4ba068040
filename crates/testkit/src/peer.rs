//! A raw client of a UNIX stream socket that can send and receive descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::attributes;

/// How long a reply may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// One client connection.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    closed: bool,
}

/// What has come in.
#[derive(Debug, Default)]
pub struct Received {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// The server has closed the connection, or it broke.
    pub closed: bool,
}

impl Peer {
    /// Connects to a server's socket.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::from(UnixStream::connect(path)?))
    }

    /// Sends all bytes in one write, if the socket takes them.
    ///
    /// # Errors
    /// The system's; a server that has closed shows as a broken pipe.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = rustix::net::send(&self.stream, rest, SendFlags::NOSIGNAL)?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Sends bytes with descriptors in one message.
    ///
    /// # Errors
    /// The system's.
    pub fn send_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("at most 8 descriptors in one message"));
        }
        rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Says that no more will be sent; replies can still be read.
    pub fn finish_sending(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads one complete attribute list, its end included.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] after [`PATIENCE`], [`io::ErrorKind::UnexpectedEof`] when the server closes
    /// first.
    pub fn read_list(&mut self) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(length) = attributes::complete(&self.bytes) {
                return Ok(self.bytes.drain(..length).collect());
            }
            self.fill(deadline)?;
        }
    }

    /// Reads one byte and the one descriptor that rides on it.
    ///
    /// # Errors
    /// As [`Self::read_list`], and when the byte comes without a descriptor or with several.
    pub fn read_descriptor(&mut self) -> io::Result<OwnedFd> {
        let deadline = Instant::now() + PATIENCE;
        while self.bytes.is_empty() {
            self.fill(deadline)?;
        }
        self.bytes.remove(0);
        match self.descriptors.pop() {
            Some(descriptor) if self.descriptors.is_empty() => Ok(descriptor),
            other => Err(io::Error::other(format!(
                "expected one descriptor: {other:?}"
            ))),
        }
    }

    /// Sends a request and reads the list that answers it.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::read_list`].
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.send(request)?;
        self.read_list()
    }

    /// Reads until nothing has come for `quiet`, or the server closes.
    pub fn drain(&mut self, quiet: Duration) -> Received {
        while self.fill(Instant::now() + quiet).is_ok() {}
        self.take()
    }

    /// Reads until `wanted` is at the end of what has come, or the server closes, or `limit` has passed.
    pub fn drain_until(&mut self, wanted: &[u8], limit: Duration) -> Received {
        let deadline = Instant::now() + limit;
        while !self.bytes.ends_with(wanted) && self.fill(deadline).is_ok() {}
        self.take()
    }

    /// Reads until the server closes, at most for [`PATIENCE`].
    pub fn drain_to_end(&mut self) -> Received {
        let deadline = Instant::now() + PATIENCE;
        while self.fill(deadline).is_ok() {}
        self.take()
    }

    fn take(&mut self) -> Received {
        Received {
            bytes: std::mem::take(&mut self.bytes),
            descriptors: std::mem::take(&mut self.descriptors),
            closed: self.closed,
        }
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut wait = [PollFd::new(&self.stream, PollFlags::IN)];
        if poll(&mut wait, Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut chunk = [0; 8192];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let outcome = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        match outcome {
            Ok(message) if message.bytes > 0 => {
                self.bytes.extend_from_slice(&chunk[..message.bytes]);
                for part in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                        self.descriptors.extend(descriptors);
                    }
                }
                Ok(())
            }
            _ => {
                self.closed = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

impl From<UnixStream> for Peer {
    fn from(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            descriptors: Vec::new(),
            closed: false,
        }
    }
}

/// A connected pair of sockets: one end to hand to the cache, the other to tell later which one came back.
///
/// # Errors
/// The system's.
pub fn session() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

/// Saves `descriptor` in a connection cache under an endpoint, prompt and all; returns the status list.
///
/// # Errors
/// As [`Peer::read_list`].
pub fn save_endpoint(
    peer: &mut Peer,
    ttl: u32,
    label: &str,
    property: &str,
    descriptor: BorrowedFd<'_>,
) -> io::Result<Vec<u8>> {
    peer.send(&attributes::list(&[
        ("request", "save_endp"),
        ("ttl", &ttl.to_string()),
        ("label", label),
        ("property", property),
    ]))?;
    let prompt = peer.read_list()?;
    if prompt != attributes::list(&[("dummy", "")]) {
        return Ok(prompt);
    }
    peer.send_with(b"\0", &[descriptor.as_fd()])?;
    peer.read_list()
}

/// After a find that was answered with status 0: asks for the descriptor, takes it, and confirms.
///
/// # Errors
/// As [`Peer::read_descriptor`].
pub fn collect_session(peer: &mut Peer) -> io::Result<OwnedFd> {
    let dummy = attributes::list(&[("dummy", "")]);
    peer.send(&dummy)?;
    let descriptor = peer.read_descriptor()?;
    peer.send(&dummy)?;
    Ok(descriptor)
}
