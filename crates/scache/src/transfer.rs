//! How the sessions and bindings of one cache are written down for another: the words between a process that ends
//! and its successor, and what is kept while there is no process at all.
//!
//! ```text
//! successor                      predecessor
//! Hello (versions) ──▶
//!                           ◀── Welcome (version)
//!                           ◀── Sessions, with their descriptors; they stay the predecessor's
//! Received ──▶
//!                           ◀── Commit; from here on they are the successor's
//!                               ... and so on, Bindings likewise
//!                           ◀── End
//! ```
//!
//! A predecessor that cannot send a commit keeps what it offered; a successor that gets none closes it. So each
//! descriptor has one owner wherever the line is cut.
//!
//! # Format
//! A frame is its length (four bytes, without themselves), its kind (one byte) and its body. Numbers are
//! little-endian; texts have their length (four bytes) before them.

use std::time::Duration;

/// The versions of the format that this module writes and reads.
pub const VERSION: u16 = 1;

/// Sessions of one frame: so many descriptors are surely received together.
pub const MOST_SESSIONS: usize = 30;

/// Bindings of one frame.
pub const MOST_BINDINGS: usize = 256;

/// Bytes of a frame, its length included. Above what one request to save something can be.
pub const MOST_BYTES: usize = 8 << 20;

/// What frames of several records are kept to, when the records allow it, in bytes.
pub const GOOD_BYTES: usize = 64 << 10;

/// The first bytes of whoever speaks this.
const MAGIC: &[u8; 8] = b"pkscache";

const LENGTH: usize = 4;

/// A session without its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRecord<'a> {
    /// Something by which the connection can be told from all others, on this machine; 0: nothing.
    pub mark: u64,
    /// Time to live that is left.
    pub left: Duration,
    /// Label of the endpoint.
    pub label: &'a [u8],
    /// Property of the session.
    pub property: &'a [u8],
}

/// A binding of a destination to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingRecord<'a> {
    /// Time to live that is left.
    pub left: Duration,
    /// Label of the destination.
    pub label: &'a [u8],
    /// Property of the binding.
    pub property: &'a [u8],
    /// Label of the endpoint.
    pub endpoint: &'a [u8],
}

/// One word of the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The successor is there, and understands these versions and all between them.
    Hello {
        /// The oldest.
        lowest: u16,
        /// The newest.
        highest: u16,
    },
    /// The predecessor is willing, and will speak this version; 0: there is none that both understand.
    Welcome {
        /// The version.
        version: u16,
    },
    /// Sessions, oldest first for each endpoint; their connections come with the frame, in this order.
    Sessions {
        /// Tells this offer from others.
        number: u32,
        /// At most [`MOST_SESSIONS`].
        sessions: Vec<SessionRecord<'a>>,
    },
    /// Bindings, oldest first for each destination.
    Bindings {
        /// Tells this offer from others.
        number: u32,
        /// At most [`MOST_BINDINGS`].
        bindings: Vec<BindingRecord<'a>>,
    },
    /// All that belongs to this offer has come.
    Received {
        /// Of the offer.
        number: u32,
    },
    /// What was offered belongs to the successor now.
    Commit {
        /// Of the offer.
        number: u32,
    },
    /// There is nothing more.
    End,
    /// When what follows was written, on a clock of the machine that all processes see. For what is kept while no
    /// process runs.
    Clock {
        /// That clock.
        at: Duration,
    },
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadFrame {
    /// Its length is zero, or beyond [`MOST_BYTES`].
    #[error("frame of {length} bytes")]
    Length {
        /// What it says about its length.
        length: usize,
    },
    /// Its kind is unknown.
    #[error("unknown frame {kind}")]
    Kind {
        /// The kind.
        kind: u8,
    },
    /// It is shorter or longer than its contents, has too many records, or does not begin as it should.
    #[error("malformed frame {kind}")]
    Body {
        /// The kind.
        kind: u8,
    },
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const SESSIONS: u8 = 3;
    pub(super) const BINDINGS: u8 = 4;
    pub(super) const RECEIVED: u8 = 5;
    pub(super) const COMMIT: u8 = 6;
    pub(super) const END: u8 = 7;
    pub(super) const CLOCK: u8 = 8;
}

/// The version to speak with a successor that understands all from `lowest` to `highest`; 0 when there is none.
pub fn common_version(lowest: u16, highest: u16) -> u16 {
    if lowest <= VERSION && VERSION <= highest {
        VERSION
    } else {
        0
    }
}

impl<'a> Frame<'a> {
    /// Appends the frame to `bytes`.
    ///
    /// # Errors
    /// It would be longer than [`MOST_BYTES`]; `bytes` is as before.
    pub fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), BadFrame> {
        let start = bytes.len();
        bytes.extend([0; LENGTH]);
        match self {
            Frame::Hello { lowest, highest } => {
                bytes.push(kind::HELLO);
                bytes.extend(MAGIC);
                bytes.extend(lowest.to_le_bytes());
                bytes.extend(highest.to_le_bytes());
            }
            Frame::Welcome { version } => {
                bytes.push(kind::WELCOME);
                bytes.extend(MAGIC);
                bytes.extend(version.to_le_bytes());
            }
            Frame::Sessions { number, sessions } => {
                bytes.push(kind::SESSIONS);
                put_count(bytes, *number, sessions.len());
                for session in sessions {
                    bytes.extend(session.mark.to_le_bytes());
                    put_time(bytes, session.left);
                    put_texts(bytes, &[session.label, session.property]);
                }
            }
            Frame::Bindings { number, bindings } => {
                bytes.push(kind::BINDINGS);
                put_count(bytes, *number, bindings.len());
                for binding in bindings {
                    put_time(bytes, binding.left);
                    put_texts(bytes, &[binding.label, binding.property, binding.endpoint]);
                }
            }
            Frame::Received { number } => {
                bytes.push(kind::RECEIVED);
                bytes.extend(number.to_le_bytes());
            }
            Frame::Commit { number } => {
                bytes.push(kind::COMMIT);
                bytes.extend(number.to_le_bytes());
            }
            Frame::End => bytes.push(kind::END),
            Frame::Clock { at } => {
                bytes.push(kind::CLOCK);
                put_time(bytes, *at);
            }
        }
        let length = bytes.len() - start - LENGTH;
        match u32::try_from(length) {
            Ok(number) if length <= MOST_BYTES - LENGTH => {
                bytes[start..start + LENGTH].copy_from_slice(&number.to_le_bytes());
                Ok(())
            }
            _ => {
                bytes.truncate(start);
                Err(BadFrame::Length { length })
            }
        }
    }

    /// Reads the frame at the beginning of `bytes`, and says how long it is; `None` when not all of it is there.
    ///
    /// # Errors
    /// [`BadFrame`], as soon as it is certain.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 || length > MOST_BYTES - LENGTH {
            return Err(BadFrame::Length { length });
        }
        let Some(&kind) = rest.first() else {
            return Ok(None);
        };
        if !(kind::HELLO..=kind::CLOCK).contains(&kind) {
            return Err(BadFrame::Kind { kind });
        }
        let Some(body) = rest.get(1..length) else {
            return Ok(None);
        };
        let mut reader = Reader { rest: body };
        match reader.frame(kind) {
            Some(frame) if reader.rest.is_empty() => Ok(Some((frame, LENGTH + length))),
            _ => Err(BadFrame::Body { kind }),
        }
    }
}

/// Bytes that a session takes up in a frame.
pub(crate) fn session_size(label: &[u8], property: &[u8]) -> usize {
    8 + 8 + 4 + 4 + label.len() + property.len()
}

/// Bytes that a binding takes up in a frame.
pub(crate) fn binding_size(label: &[u8], property: &[u8], endpoint: &[u8]) -> usize {
    8 + 4 + 4 + 4 + label.len() + property.len() + endpoint.len()
}

fn put_count(bytes: &mut Vec<u8>, number: u32, count: usize) {
    bytes.extend(number.to_le_bytes());
    bytes.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
}

fn put_time(bytes: &mut Vec<u8>, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    bytes.extend(nanoseconds.to_le_bytes());
}

fn put_texts(bytes: &mut Vec<u8>, texts: &[&[u8]]) {
    for text in texts {
        // What does not fit here does not fit into a frame either.
        bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(*text);
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn frame(&mut self, kind: u8) -> Option<Frame<'a>> {
        Some(match kind {
            kind::HELLO => {
                self.magic()?;
                Frame::Hello {
                    lowest: self.short()?,
                    highest: self.short()?,
                }
            }
            kind::WELCOME => {
                self.magic()?;
                Frame::Welcome {
                    version: self.short()?,
                }
            }
            kind::SESSIONS => Frame::Sessions {
                number: self.number()?,
                sessions: self.records(MOST_SESSIONS, |reader| {
                    Some(SessionRecord {
                        mark: reader.long()?,
                        left: reader.time()?,
                        label: reader.text()?,
                        property: reader.text()?,
                    })
                })?,
            },
            kind::BINDINGS => Frame::Bindings {
                number: self.number()?,
                bindings: self.records(MOST_BINDINGS, |reader| {
                    Some(BindingRecord {
                        left: reader.time()?,
                        label: reader.text()?,
                        property: reader.text()?,
                        endpoint: reader.text()?,
                    })
                })?,
            },
            kind::RECEIVED => Frame::Received {
                number: self.number()?,
            },
            kind::COMMIT => Frame::Commit {
                number: self.number()?,
            },
            kind::END => Frame::End,
            kind::CLOCK => Frame::Clock { at: self.time()? },
            _ => return None,
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*array)
    }

    fn magic(&mut self) -> Option<()> {
        (self.array()? == *MAGIC).then_some(())
    }

    fn short(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Duration> {
        self.long().map(Duration::from_nanos)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(text)
    }

    fn records<T>(
        &mut self,
        most: usize,
        record: impl Fn(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let count = usize::from(self.short()?);
        if count > most {
            return None;
        }
        (0..count).map(|_| record(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame<'static>> {
        let second = Duration::from_secs(1);
        vec![
            Frame::Hello {
                lowest: 1,
                highest: 7,
            },
            Frame::Welcome { version: 0 },
            Frame::Sessions {
                number: 3,
                sessions: vec![
                    SessionRecord {
                        mark: 9,
                        left: second,
                        label: b"smtp\n",
                        property: b"\0\xff",
                    },
                    SessionRecord {
                        mark: 0,
                        left: Duration::ZERO,
                        label: b"",
                        property: b"",
                    },
                ],
            },
            Frame::Bindings {
                number: u32::MAX,
                bindings: vec![BindingRecord {
                    left: second,
                    label: b"d",
                    property: b"",
                    endpoint: b"smtp\n",
                }],
            },
            Frame::Received { number: 3 },
            Frame::Commit { number: 3 },
            Frame::End,
            Frame::Clock { at: second },
        ]
    }

    #[test]
    fn frames_are_read_as_they_were_written_and_not_before_they_are_there() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            for length in 0..bytes.len() {
                assert_eq!(Frame::decode(&bytes[..length]), Ok(None), "{frame:?}");
            }
            let length = bytes.len();
            bytes.push(b'x');
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, length))));
        }
    }

    #[test]
    fn what_is_too_short_or_too_long_for_its_contents_is_refused() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            let length = u32::try_from(bytes.len() - LENGTH).unwrap();
            bytes.push(0);
            bytes[..LENGTH].copy_from_slice(&(length + 1).to_le_bytes());
            assert_eq!(
                Frame::decode(&bytes),
                Err(BadFrame::Body { kind: bytes[4] })
            );
            if frame != Frame::End {
                bytes[..LENGTH].copy_from_slice(&(length - 1).to_le_bytes());
                assert!(Frame::decode(&bytes).is_err(), "{frame:?}");
            }
        }
    }

    #[test]
    fn lengths_and_kinds_are_checked_before_the_rest_has_come() {
        let length = u32::try_from(MOST_BYTES).unwrap();
        assert!(Frame::decode(&length.to_le_bytes()).is_err());
        assert!(Frame::decode(&[0; 4]).is_err());
        assert_eq!(
            Frame::decode(&[9, 0, 0, 0, 99]),
            Err(BadFrame::Kind { kind: 99 })
        );
        let many = vec![
            SessionRecord {
                mark: 0,
                left: Duration::ZERO,
                label: b"",
                property: b"",
            };
            MOST_SESSIONS + 1
        ];
        let mut bytes = Vec::new();
        let frame = Frame::Sessions {
            number: 1,
            sessions: many,
        };
        frame.encode(&mut bytes).unwrap();
        assert!(Frame::decode(&bytes).is_err());
    }

    #[test]
    fn a_frame_that_is_too_large_is_not_written() {
        let label = vec![b'x'; MOST_BYTES];
        let frame = Frame::Sessions {
            number: 1,
            sessions: vec![SessionRecord {
                mark: 0,
                left: Duration::ZERO,
                label: &label,
                property: b"",
            }],
        };
        let mut bytes = b"before".to_vec();
        assert!(frame.encode(&mut bytes).is_err());
        assert_eq!(bytes, b"before");
    }

    #[test]
    fn others_versions_are_understood_or_refused() {
        assert_eq!(common_version(1, 9), VERSION);
        assert_eq!(common_version(0, 0), 0);
        assert_eq!(common_version(2, 9), 0);
        assert_eq!(common_version(9, 1), 0);
    }
}
