//! The status channel to master(8), and its flow-control pipe.
//!
//! master takes a process for able to serve until told otherwise. A process that serves all its clients at
//! once never needs to say that it is taken; but one that dies without ever having said anything is taken for
//! broken at startup and not replaced for a minute. So the first request of a process, and only that, is
//! followed by the pair of messages that the reference sends around every request. Both go out in one write,
//! so that master never sees the process as taken.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::socket;

const TAKEN: u32 = 0;
const AVAILABLE: u32 = 1;
/// Nothing that master(8) knows: for the stand-in of `postkeep serve`, which asks for it.
const ALIVE: u32 = 7;

/// The child's end of the status channel.
#[derive(Debug)]
pub(crate) struct StatusChannel {
    descriptor: OwnedFd,
    generation: u32,
    announced: AtomicBool,
}

impl StatusChannel {
    /// - `generation`: of this process, from the environment
    pub(crate) fn new(descriptor: OwnedFd, generation: u32) -> Self {
        Self {
            descriptor,
            generation,
            announced: AtomicBool::new(false),
        }
    }

    /// Readable when master has gone, or wants this process to go.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// A request has been served. False when master cannot be reached any more.
    pub(crate) fn served(&self) -> bool {
        if self.announced.load(Ordering::Relaxed) || self.announced.swap(true, Ordering::Relaxed) {
            return true;
        }
        self.send([TAKEN, AVAILABLE])
    }

    /// All threads are alive. False when master cannot be reached any more.
    pub(crate) fn alive(&self) -> bool {
        self.send([ALIVE])
    }

    fn send<const N: usize>(&self, statuses: [u32; N]) -> bool {
        let pair = messages(std::process::id(), self.generation, statuses);
        // A full channel is master's problem: it can know from the messages in there that the process is well.
        let sent = match socket::send(&self.descriptor, &pair) {
            Err(error) if error.raw_os_error() == Some(NOT_A_SOCKET) => {
                socket::write(&self.descriptor, &pair)
            }
            other => other,
        };
        match sent {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// `ENOTSOCK` on Linux.
pub(crate) const NOT_A_SOCKET: i32 = 88;

fn messages<const N: usize>(pid: u32, generation: u32, statuses: [u32; N]) -> Vec<u8> {
    statuses
        .into_iter()
        .flat_map(|status| [pid, generation, status])
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// Reads `GENERATION`: octal digits.
///
/// As in the reference 8 and 9 are let through, and end the number.
///
/// # Errors
/// The text back when it is empty or holds something else than digits.
pub(crate) fn parse_generation(text: &str) -> Result<u32, &str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(text);
    }
    Ok(text
        .bytes()
        .take_while(|byte| *byte < b'8')
        .fold(0u32, |number, byte| {
            number
                .saturating_mul(8)
                .saturating_add(u32::from(byte - b'0'))
        }))
}

/// Takes one token from the flow-control pipe; false when there was none.
pub(crate) fn take_flow_token(pipe: &OwnedFd) -> bool {
    matches!(
        wait_for(pipe, Interest::Read, Some(Duration::ZERO)),
        Ok(true)
    ) && matches!(socket::read(pipe, &mut [0]), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn generation_is_octal() {
        assert_eq!(parse_generation("17"), Ok(15));
        assert_eq!(parse_generation("19"), Ok(1));
        assert_eq!(parse_generation("0"), Ok(0));
        assert_eq!(parse_generation(""), Err(""));
        assert_eq!(parse_generation("abc"), Err("abc"));
        assert_eq!(parse_generation("-1"), Err("-1"));
    }

    #[test]
    fn one_pair_in_a_life() {
        let (mine, mut masters) = UnixStream::pair().unwrap();
        let channel = StatusChannel::new(mine.into(), 15);
        assert!(channel.served());
        assert!(channel.served());
        drop(channel);
        let mut bytes = Vec::new();
        masters.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 24);
        let number = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            [number(0), number(4), number(8)],
            [std::process::id(), 15, 0]
        );
        assert_eq!(
            [number(12), number(16), number(20)],
            [std::process::id(), 15, 1]
        );
    }

    #[test]
    fn a_vanished_master_is_noticed() {
        let (mine, masters) = UnixStream::pair().unwrap();
        drop(masters);
        assert!(!StatusChannel::new(mine.into(), 0).served());
    }

    #[test]
    fn messages_of_a_known_process() {
        let expected: [u8; 12] = [0x3d, 0x6c, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0];
        if cfg!(target_endian = "little") {
            assert_eq!(messages(27709, 0o17, [TAKEN]), expected);
        }
    }
}
