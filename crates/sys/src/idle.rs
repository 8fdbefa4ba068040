//! Connections that nobody uses at the moment: whether they are still good, and an orderly end for them.
//!
//! Nothing here waits, whatever the descriptor is and whether or not it is non-blocking.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketAddrAny, SocketAddrUnix};

/// What has come from the far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: the connection rests.
    Nothing,
    /// Bytes, which are still there.
    Bytes,
    /// It has closed the connection, or its sending half.
    End,
    /// The connection is broken, or is none.
    Failure,
}

/// Listens for a moment, without taking anything.
pub fn listen(socket: &impl AsFd) -> Heard {
    let mut byte = [0_u8; 1];
    match rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Heard::End,
        Ok(_) => Heard::Bytes,
        Err(Errno::AGAIN | Errno::INTR) => Heard::Nothing,
        Err(_) => Heard::Failure,
    }
}

/// Takes what has come, up to some kilobytes, and throws it away; says what would come next.
///
/// A TCP connection that is closed with bytes unread is reset, and the far end may lose what it has not read
/// yet.
pub fn discard(socket: &impl AsFd) -> Heard {
    let mut scrap = [0_u8; 4096];
    for _ in 0..4 {
        match rustix::net::recv(socket, &mut scrap, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Heard::End,
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::Failure,
        }
    }
    Heard::Bytes
}

/// Tells the far end that nothing more will be sent, in all processes that have the socket.
///
/// # Errors
/// shutdown(2) failed.
pub fn finish_sending(socket: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, Shutdown::Write)?)
}

/// Where a socket is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// A UNIX-domain socket with this path, as it was bound.
    Path(Vec<u8>),
    /// Anything else.
    Other,
}

/// Asks where a socket is connected to.
///
/// # Errors
/// Not a socket (`ENOTSOCK`), or not connected (`ENOTCONN`), as after a reset.
pub fn far_end(socket: &impl AsFd) -> io::Result<FarEnd> {
    let Some(address) = rustix::net::getpeername(socket)? else {
        return Ok(FarEnd::Other);
    };
    Ok(unix_path(&address).map_or(FarEnd::Other, FarEnd::Path))
}

fn unix_path(address: &SocketAddrAny) -> Option<Vec<u8>> {
    let address = SocketAddrUnix::try_from(address.clone()).ok()?;
    address.path_bytes().map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::{Interest, wait_for};
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown as Half, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// What is heard once there is something to hear.
    fn soon(socket: &impl AsFd) -> Heard {
        // Waiting leaves an error to whoever reads first; listening takes it.
        let limit = Some(std::time::Duration::from_secs(20));
        assert!(wait_for(socket, Interest::Read, limit).unwrap());
        listen(socket)
    }

    #[test]
    fn every_way_of_dying_is_heard() {
        let (near, mut far) = pair();
        assert_eq!(listen(&near), Heard::Nothing);
        far.write_all(b"421 later\r\n").unwrap();
        assert_eq!(soon(&near), Heard::Bytes);
        assert_eq!(listen(&near), Heard::Bytes);
        assert_eq!(discard(&near), Heard::Nothing);
        far.shutdown(Half::Write).unwrap();
        assert_eq!(soon(&near), Heard::End);
        assert_eq!(discard(&near), Heard::End);

        let (near, far) = pair();
        rustix::net::sockopt::set_socket_linger(&far, Some(std::time::Duration::ZERO)).unwrap();
        drop(far);
        assert_eq!(soon(&near), Heard::Failure);
        assert!(far_end(&near).is_err());

        let (near, far) = UnixStream::pair().unwrap();
        assert_eq!(listen(&near), Heard::Nothing);
        drop(far);
        assert_eq!(listen(&near), Heard::End);
    }

    #[test]
    fn an_end_of_ours_is_orderly() {
        let (near, mut far) = pair();
        far.write_all(b"unread").unwrap();
        assert_eq!(soon(&near), Heard::Bytes);
        discard(&near);
        crate::socket::send(&near, b"QUIT\r\n").unwrap();
        finish_sending(&near).unwrap();
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "QUIT\r\n");
    }

    #[test]
    fn the_far_end_of_a_socket_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scache");
        let listener = UnixListener::bind(&path).unwrap();
        let near = UnixStream::connect(&path).unwrap();
        assert_eq!(
            far_end(&near).unwrap(),
            FarEnd::Path(path.as_os_str().as_encoded_bytes().to_vec())
        );
        assert_eq!(far_end(&pair().0).unwrap(), FarEnd::Other);
        assert_eq!(
            far_end(&UnixStream::pair().unwrap().0).unwrap(),
            FarEnd::Other
        );
        assert!(far_end(&listener).is_err());
        let file = std::fs::File::open(directory.path()).unwrap();
        assert!(far_end(&file).is_err());
        assert_eq!(listen(&file), Heard::Failure);
    }
}
