//! The listening sockets of a service: where they are, and who made them.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};

use crate::MasterError;
use crate::layout::Layout;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A UNIX-domain socket; a relative path is below the queue directory.
    Unix(PathBuf),
    /// TCP.
    Inet(SocketAddr),
}

/// A socket that was open already when the stand-in was started, with the name of the service that it is for.
#[derive(Debug)]
pub struct Passed {
    /// The name of the service.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

/// One listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// Where we made it; `None` for one that was passed.
    address: Option<Address>,
    /// What is to be removed at the end.
    path: Option<PathBuf>,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    /// Takes a socket over that was passed.
    ///
    /// # Errors
    /// It is none that clients could connect to.
    pub(crate) fn passed(socket: OwnedFd) -> io::Result<Self> {
        if socket_type(&socket)? != SocketType::STREAM || !socket_acceptconn(&socket)? {
            return Err(io::Error::other("not a listening stream socket"));
        }
        postkeep_sys::descriptor::set_nonblocking(&socket, true)?;
        Ok(Self {
            socket,
            address: None,
            path: None,
        })
    }

    fn make(layout: &Layout, address: &Address) -> Result<Self, MasterError> {
        let (socket, path) = match address {
            Address::Unix(path) => {
                let path = layout.queue_directory.join(path);
                (layout.listen_at(&path)?.into(), Some(path))
            }
            Address::Inet(place) => {
                let listener = TcpListener::bind(place)
                    .and_then(|listener| {
                        listener.set_nonblocking(true)?;
                        Ok(listener)
                    })
                    .map_err(|source| MasterError::Address {
                        address: *place,
                        source,
                    })?;
                (OwnedFd::from(listener), None)
            }
        };
        Ok(Self {
            socket,
            address: Some(address.clone()),
            path,
        })
    }

    /// Makes sockets at these addresses; those that are there already stay, the others go.
    ///
    /// # Errors
    /// One cannot be made; then all are as they were.
    pub(crate) fn arrange(
        layout: &Layout,
        addresses: &[Address],
        listeners: &mut Vec<Self>,
    ) -> Result<(), MasterError> {
        if listeners.iter().any(|listener| listener.address.is_none()) {
            // Whoever passed sockets decides where the service is.
            return Ok(());
        }
        let known = |address: &Address| {
            listeners
                .iter()
                .any(|listener| listener.address.as_ref() == Some(address))
        };
        let missing: Vec<&Address> = addresses.iter().filter(|address| !known(address)).collect();
        let made = missing
            .into_iter()
            .map(|address| Self::make(layout, address))
            .collect::<Result<Vec<_>, _>>()?;
        listeners.retain(|listener| {
            let stays = listener
                .address
                .as_ref()
                .is_some_and(|address| addresses.contains(address));
            if !stays {
                listener.remove();
            }
            stays
        });
        listeners.extend(made);
        Ok(())
    }

    /// Removes its name. Clients that wait stay.
    pub(crate) fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn addresses_come_and_go_and_the_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            config_directory: directory.path().to_owned(),
            queue_directory: directory.path().join("queue"),
            owner: None,
        };
        layout.create_directories().unwrap();
        let unix = |name: &str| Address::Unix(name.into());
        let path = |name: &str| layout.queue_directory.join(name);
        let mut listeners = Vec::new();
        let inet = Address::Inet("127.0.0.1:0".parse().unwrap());
        Listener::arrange(&layout, &[unix("private/a"), inet], &mut listeners).unwrap();
        let waiting = UnixStream::connect(path("private/a")).unwrap();
        Listener::arrange(
            &layout,
            &[unix("private/a"), unix("private/b")],
            &mut listeners,
        )
        .unwrap();
        assert_eq!(listeners.len(), 2);
        assert!(path("private/b").exists());
        postkeep_sys::socket::accept(&listeners[0]).unwrap();
        drop(waiting);
        // A failure changes nothing.
        let bad = [unix("private/b"), unix("nowhere/c")];
        assert!(Listener::arrange(&layout, &bad, &mut listeners).is_err());
        assert_eq!(listeners.len(), 2);
        Listener::arrange(&layout, &[], &mut listeners).unwrap();
        assert!(listeners.is_empty() && !path("private/a").exists());
    }

    #[test]
    fn only_listening_sockets_can_be_passed() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let (left, _right) = UnixStream::pair().unwrap();
        assert!(Listener::passed(left.into()).is_err());
        let file = fs::File::open("/dev/null").unwrap();
        assert!(Listener::passed(file.into()).is_err());
        let passed = Listener::passed(listener.into()).unwrap();
        passed.remove();
        assert!(directory.path().join("s").exists());
    }
}
