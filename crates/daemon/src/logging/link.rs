//! The socket to a log daemon.

use std::io;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postkeep_sys::socket;

/// Where syslogd listens.
pub(super) const DEV_LOG: &str = "/dev/log";

/// How long one record may wait for a log daemon that does not read.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long records are dropped at once after that.
const SULK: Duration = Duration::from_secs(5);

enum Connection {
    Datagram(UnixDatagram),
    /// Old syslog daemons; records end in a NUL there.
    Stream(UnixStream),
}

struct Inner {
    connection: Option<Connection>,
    sulking_until: Option<Instant>,
}

/// A connection that is made again when it breaks, at the first of some paths that works.
///
/// A log daemon that does not read cannot stop the service: a record waits for at most a second, and the
/// records of the next five seconds are lost at once.
pub(super) struct Link {
    paths: Vec<PathBuf>,
    inner: Mutex<Inner>,
}

impl Link {
    /// Connects now if possible, else with the first record.
    pub(super) fn open(paths: Vec<PathBuf>) -> Self {
        let connection = connect(&paths);
        Self {
            paths,
            inner: Mutex::new(Inner {
                connection,
                sulking_until: None,
            }),
        }
    }

    /// Sends one record, or loses it.
    pub(super) fn send(&self, record: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner
            .sulking_until
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        inner.sulking_until = None;
        for _ in 0..2 {
            if inner.connection.is_none() {
                inner.connection = connect(&self.paths);
            }
            let Some(connection) = &inner.connection else {
                return;
            };
            match transmit(connection, record) {
                Ok(()) => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    inner.sulking_until = Some(Instant::now() + SULK);
                    return;
                }
                // The daemon was restarted.
                Err(_) => inner.connection = None,
            }
        }
    }
}

fn connect(paths: &[PathBuf]) -> Option<Connection> {
    paths.iter().find_map(|path| {
        let datagram = UnixDatagram::unbound().ok()?;
        let _ = socket::set_send_limit(&datagram, PATIENCE);
        if datagram.connect(path).is_ok() {
            return Some(Connection::Datagram(datagram));
        }
        let stream = UnixStream::connect(path).ok()?;
        let _ = socket::set_send_limit(&stream, PATIENCE);
        Some(Connection::Stream(stream))
    })
}

fn transmit(connection: &Connection, record: &[u8]) -> io::Result<()> {
    match connection {
        Connection::Datagram(datagram) => datagram.send(record).map(drop),
        Connection::Stream(stream) => {
            let mut framed = Vec::with_capacity(record.len() + 1);
            framed.extend_from_slice(record);
            framed.push(0);
            io::Write::write_all(&mut &*stream, &framed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    #[test]
    fn reconnects_to_a_restarted_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let link = Link::open(vec![directory.path().join("nowhere"), path.clone()]);
        link.send(b"lost");
        let mut buffer = [0; 64];
        for record in [&b"first"[..], b"second"] {
            let daemon = UnixDatagram::bind(&path).unwrap();
            link.send(record);
            let length = daemon.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], record);
            drop(daemon);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn stream_daemons_get_records_that_end_in_nul() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let daemon = UnixListener::bind(&path).unwrap();
        let link = Link::open(vec![path]);
        link.send(b"text");
        let mut buffer = [0; 5];
        daemon.accept().unwrap().0.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"text\0");
    }
}
