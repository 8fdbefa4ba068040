//! The `pass` transport: another process hands over a client, with attributes.
//!
//! One byte carries the client's descriptor, an attribute list follows. In the reference the whole process
//! waits for them; here a handover is a phase in the life of a connection.
//!
//! # References
//! Postfix `pass_accept.c`, `recv_pass_attr.c`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use postkeep_wire::duplex::Inbox;
use postkeep_wire::pass::{PassScanner, Passed};

/// How long the descriptor may take, and then the attributes.
const LIMIT: Duration = Duration::from_secs(100);

/// A handover that has not been completed.
#[derive(Debug)]
pub(crate) struct Handover {
    client: Option<OwnedFd>,
    scanner: PassScanner,
    /// When patience with the present phase ends.
    pub(crate) until: Instant,
}

/// How far a handover is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More must come.
    Incomplete,
    /// Here is the client, and what was said about it.
    Complete(OwnedFd, Vec<(Vec<u8>, Vec<u8>)>),
    /// It failed; the text says how, for a warning.
    Failed(&'static str),
}

impl Handover {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            client: None,
            scanner: PassScanner::default(),
            until: now + LIMIT,
        }
    }

    /// Goes on with what has come, or with the end of it.
    pub(crate) fn advance(&mut self, inbox: &mut Inbox<OwnedFd>, now: Instant) -> Progress {
        if self.client.is_none() {
            match inbox.take_handles() {
                Some(mut handles) => {
                    // The first control message must hold exactly one descriptor; all are closed otherwise.
                    if handles.len() != 1 {
                        return Progress::Failed(
                            "cannot receive file descriptor: Application error",
                        );
                    }
                    self.client = handles.pop();
                    self.until = now + LIMIT;
                }
                None if inbox.end() == Some(postkeep_wire::End::TimedOut) => {
                    return Progress::Failed(
                        "timeout receiving file descriptor: Connection timed out",
                    );
                }
                None if inbox.end().is_some() => {
                    return Progress::Failed("cannot receive file descriptor: Application error");
                }
                None => return Progress::Incomplete,
            }
        }
        let mut warn = |text: std::fmt::Arguments<'_>| log::warn!("{text}");
        match self.scanner.scan(inbox.bytes(), inbox.end(), &mut warn) {
            Passed::Incomplete => Progress::Incomplete,
            Passed::Failed => {
                Progress::Failed("cannot receive connection attributes: Application error")
            }
            Passed::Attributes { entries, .. } => match self.client.take() {
                Some(client) => Progress::Complete(client, entries),
                None => Progress::Failed("cannot receive file descriptor: Application error"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postkeep_wire::End;
    use std::os::unix::net::UnixStream;

    fn descriptor() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn descriptor_then_attributes() {
        let now = Instant::now();
        let (mut handover, mut inbox) = (Handover::new(now), Inbox::default());
        assert!(matches!(
            handover.advance(&mut inbox, now),
            Progress::Incomplete
        ));
        inbox.receive(b"\0", [descriptor()]);
        assert!(matches!(
            handover.advance(&mut inbox, now),
            Progress::Incomplete
        ));
        inbox.receive(b"a\0b\0", []);
        assert!(matches!(
            handover.advance(&mut inbox, now),
            Progress::Incomplete
        ));
        inbox.receive(b"\0", []);
        match handover.advance(&mut inbox, now) {
            Progress::Complete(_, attributes) => {
                assert_eq!(attributes, [(b"a".to_vec(), b"b".to_vec())]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn anything_else_fails() {
        let now = Instant::now();
        let fail = |fill: &dyn Fn(&mut Inbox<OwnedFd>)| {
            let mut inbox = Inbox::default();
            fill(&mut inbox);
            match Handover::new(now).advance(&mut inbox, now) {
                Progress::Failed(text) => text.split(':').next().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            fail(&|inbox| inbox.receive(b"\0", [])),
            "cannot receive file descriptor"
        );
        assert_eq!(
            fail(&|inbox| inbox.receive(b"\0", [descriptor(), descriptor()])),
            "cannot receive file descriptor"
        );
        assert_eq!(
            fail(&|inbox| inbox.finish(End::TimedOut)),
            "timeout receiving file descriptor"
        );
        assert_eq!(
            fail(&|inbox| {
                inbox.receive(b"\0a", [descriptor()]);
                inbox.finish(End::Closed);
            }),
            "cannot receive connection attributes"
        );
    }
}
