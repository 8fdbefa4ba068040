//! Accepting, and moving bytes and descriptors over connected sockets without waiting.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags,
};

/// How many descriptors of one message are received; the kernel closes the others.
///
/// A proper peer sends one. Room for more means that surplus ones are seen, and so can be refused.
pub const MAX_DESCRIPTORS: usize = 32;

/// Accepts a connection: non-blocking and close-on-exec. The descriptor is the caller's.
///
/// # Errors
/// accept4(2) failed; `WouldBlock` when no connection waits at a non-blocking socket.
pub fn accept(listener: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(
        listener,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    )?)
}

/// The address at the other end of a network connection; `None` for a connection within this machine (unix(7)).
///
/// # Errors
/// getpeername(2) failed: not a connection, or not any more.
pub fn peer_address(socket: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    let address = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(SocketAddr::try_from(address).ok())
}

/// Is this a socket of the network (`AF_INET`, `AF_INET6`), and not of this machine (`AF_UNIX`)?
///
/// # Errors
/// getsockname(2) failed: no socket.
pub fn is_of_network(socket: &impl AsFd) -> io::Result<bool> {
    let family = rustix::net::getsockname(socket)?.address_family();
    Ok([AddressFamily::INET, AddressFamily::INET6].contains(&family))
}

/// Lets the kernel find out about dead peers of a network connection.
///
/// # Errors
/// setsockopt(2) failed.
pub fn set_keepalive(socket: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_keepalive(socket, true)?)
}

/// How long a blocking send may wait for room.
///
/// # Errors
/// setsockopt(2) failed.
pub fn set_send_limit(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(
        socket,
        rustix::net::sockopt::Timeout::Send,
        Some(limit),
    )?)
}

/// Receives bytes and the descriptors that ride on them, without waiting.
///
/// Received descriptors are close-on-exec and appended to `descriptors`, about [`MAX_DESCRIPTORS`] at most; the
/// kernel closes what does not fit. Returns the number of bytes; 0 is the end of the stream.
///
/// # Errors
/// recvmsg(2) failed; `WouldBlock` when nothing is there.
///
/// # References
/// unix(7) `SCM_RIGHTS`; Postfix `unix_recv_fd.c`.
pub fn receive(
    socket: &impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, buffer, descriptors, RecvFlags::DONTWAIT)
}

/// As [`receive`] where nobody is to send descriptors: the system closes those that come. It does less than for
/// recvmsg(2).
///
/// # Errors
/// recv(2) failed; `WouldBlock` when there is nothing.
pub fn receive_bytes(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// As [`receive`], but waits until something is there.
///
/// # Errors
/// recvmsg(2) failed.
pub fn receive_waiting(
    socket: &impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, buffer, descriptors, RecvFlags::empty())
}

fn receive_with(
    socket: &impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            descriptors.extend(arrived);
        }
    }
    Ok(received.bytes)
}

/// Sends bytes, as many as fit without waiting. A vanished peer is an error, never a signal.
///
/// # Errors
/// send(2) failed; `WouldBlock` when nothing fits.
pub fn send(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(
        socket,
        bytes,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?)
}

/// Sends one byte with a descriptor on it, without waiting. The descriptor stays the caller's as well.
///
/// # Errors
/// sendmsg(2) failed, and nothing was sent.
///
/// # References
/// unix(7) `SCM_RIGHTS`; Postfix `unix_send_fd.c`.
pub fn send_descriptor(socket: &impl AsFd, byte: u8, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for one descriptor"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&[byte])],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Sends bytes with descriptors on the first of them, as many bytes as fit without waiting. The descriptors stay the
/// caller's as well; they go with the first byte, so once anything was sent.
///
/// - `bytes`: not empty
/// - `descriptors`: at most [`MAX_DESCRIPTORS`]
///
/// # Errors
/// sendmsg(2) failed, and nothing was sent; `WouldBlock` when nothing fits.
///
/// # References
/// unix(7) `SCM_RIGHTS`.
pub fn send_descriptors(
    socket: &impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if descriptors.is_empty() {
        return send(socket, bytes);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?)
}

/// A number that no other socket of this machine has, or had since it was started.
///
/// # Errors
/// Not a socket.
pub fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::net::sockopt::socket_cookie(socket)?)
}

/// Reads from a pipe, a terminal or a file; waits unless the descriptor is non-blocking.
///
/// # Errors
/// read(2) failed.
pub fn read(descriptor: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::read(descriptor, buffer)?)
}

/// Writes to a pipe, a terminal or a file; waits unless the descriptor is non-blocking.
///
/// # Errors
/// write(2) failed.
pub fn write(descriptor: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(descriptor, bytes)?)
}

/// Who is at the other end of a UNIX-domain connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process number, when it connected.
    pub pid: i32,
    /// Effective user number, when it connected.
    pub uid: u32,
    /// Effective group number, when it connected.
    pub gid: u32,
}

/// Asks who connected.
///
/// # Errors
/// Not a UNIX-domain connection.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pipe_end() -> OwnedFd {
        rustix::pipe::pipe().unwrap().0
    }

    #[test]
    fn a_descriptor_arrives_with_its_byte() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut mine, theirs) = UnixStream::pair().unwrap();
        send_descriptor(&left, 0, theirs.as_fd()).unwrap();
        drop(theirs);
        let (mut buffer, mut arrived) = ([9; 8], Vec::new());
        assert_eq!(receive(&right, &mut buffer, &mut arrived).unwrap(), 1);
        assert_eq!((buffer[0], arrived.len()), (0, 1));
        let flags = rustix::io::fcntl_getfd(&arrived[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mut theirs = UnixStream::from(arrived.remove(0));
        theirs.write_all(b"hello").unwrap();
        drop(theirs);
        let mut text = String::new();
        mine.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn several_descriptors_arrive_in_order_and_are_the_same_sockets() {
        let (left, right) = UnixStream::pair().unwrap();
        let sockets: Vec<UnixStream> = (0..MAX_DESCRIPTORS / 2)
            .flat_map(|_| <[UnixStream; 2]>::from(UnixStream::pair().unwrap()))
            .collect();
        let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        assert_eq!(send_descriptors(&left, b"abc", &borrowed).unwrap(), 3);
        let (mut buffer, mut arrived) = ([0; 8], Vec::new());
        assert_eq!(receive(&right, &mut buffer, &mut arrived).unwrap(), 3);
        let cookies = |sockets: &[BorrowedFd<'_>]| -> Vec<u64> {
            sockets
                .iter()
                .map(|socket| cookie(socket).unwrap())
                .collect()
        };
        let came: Vec<BorrowedFd<'_>> = arrived.iter().map(AsFd::as_fd).collect();
        assert_eq!(cookies(&came), cookies(&borrowed));
        let mut different = cookies(&came);
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), sockets.len());
        assert!(cookie(&pipe_end()).is_err());
    }

    #[test]
    fn surplus_descriptors_do_not_leak() {
        let (left, right) = UnixStream::pair().unwrap();
        let descriptors: Vec<OwnedFd> = (0..MAX_DESCRIPTORS + 8).map(|_| pipe_end()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        rustix::net::sendmsg(
            &left,
            &[IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        let (mut buffer, mut arrived) = ([0; 1], Vec::new());
        receive(&right, &mut buffer, &mut arrived).unwrap();
        // The space is rounded up, which can make room for one or two more.
        assert!((MAX_DESCRIPTORS..MAX_DESCRIPTORS + 4).contains(&arrived.len()));
    }

    #[test]
    fn nothing_there_is_would_block_and_the_end_is_zero() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut buffer = [0; 8];
        let error = receive(&right, &mut buffer, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(receive(&right, &mut buffer, &mut Vec::new()).unwrap(), 0);
        assert_eq!(
            send(&right, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn connections_of_the_network_have_an_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(
            peer_address(&server).unwrap(),
            Some(client.local_addr().unwrap())
        );
        let (left, _right) = UnixStream::pair().unwrap();
        assert_eq!(peer_address(&left).unwrap(), None);
        assert!(is_of_network(&listener).unwrap() && !is_of_network(&left).unwrap());
        assert!(is_of_network(&pipe_end()).is_err());
    }

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (left, _right) = UnixStream::pair().unwrap();
        assert_eq!(
            peer(&left).unwrap().pid,
            i32::try_from(std::process::id()).unwrap()
        );
    }
}
