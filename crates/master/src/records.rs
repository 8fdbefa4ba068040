//! Log records of the services, received as datagrams (the socket that postlogd(8) has in Postfix).

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

/// Longest record in bytes; the rest is cut, as postlogd(8) does.
const RECORD_LIMIT: usize = 4096;

/// Most records handled before other events get their turn.
const BATCH: usize = 100;

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Records(UnixDatagram);

impl Records {
    pub(crate) fn new(socket: UnixDatagram) -> Self {
        Self(socket)
    }

    /// Hands the records that wait to `print`, each as one clean line.
    pub(crate) fn drain(&self, mut print: impl FnMut(&str)) {
        let mut buffer = [0; RECORD_LIMIT];
        for _ in 0..BATCH {
            match self.0.recv(&mut buffer) {
                Ok(count) => print(&clean(&buffer[..count])),
                Err(_) => break,
            }
        }
    }
}

impl AsFd for Records {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a line of a datagram: whoever can open the socket must not be able to forge a second line or to
/// drive the terminal.
fn clean(record: &[u8]) -> String {
    String::from_utf8_lossy(record)
        .chars()
        .map(|character| match character {
            character if character.is_control() => '?',
            char::REPLACEMENT_CHARACTER => '?',
            character => character,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_single_lines() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        sender.send(b"one\nforged \x1b[2J \xff").unwrap();
        sender.send("zwei \u{e4}".as_bytes()).unwrap();
        let mut lines = Vec::new();
        Records::new(receiver).drain(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one?forged ?[2J ?", "zwei \u{e4}"]);
    }
}
