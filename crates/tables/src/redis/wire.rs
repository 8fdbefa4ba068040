//! The wire form: questions, frames of answers within limits, slots of a cluster.
//!
//! Only version 2 of the protocol is spoken, which every server starts with. The library that reads answers makes room
//! for as many elements as an answer says it has, before they are there, so an answer is looked at before: it is read when
//! all of it is there and within the limits.

use ::redis::{Cmd, Value, parse_redis_value};

/// The most elements that one answer may have, those of lists in lists included.
const ELEMENTS: usize = 100_000;

/// The most bytes of a line: a number, a status, an error.
const LINE: usize = 4096;

/// Why an answer is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// More bytes than the table takes.
    #[error("the answer is larger than data_size_limit")]
    TooLong,
    /// More elements than anybody has a use for.
    #[error("the answer has too many elements")]
    TooMany,
    /// This is no such server.
    #[error("the answer is malformed")]
    Malformed,
}

/// Finds the end of an answer whose bytes come in one after the other.
#[derive(Debug)]
pub(super) struct Frame {
    /// Bytes of values that may still come.
    bytes: usize,
    elements: usize,
    /// Values that are still to come.
    open: usize,
    /// Where the next one begins, perhaps beyond what is there.
    at: usize,
}

impl Frame {
    /// - `limit`: bytes of all values together
    /// - `at`: where the answer begins
    pub(super) fn new(limit: usize, at: usize) -> Self {
        Self {
            bytes: limit,
            elements: ELEMENTS,
            open: 1,
            at,
        }
    }

    /// Where the answer ends; `None` when not all of it is there.
    ///
    /// - `input`: as before, and more
    ///
    /// # Errors
    /// [`FrameError`]; what comes next cannot be told from this answer.
    pub(super) fn end(&mut self, input: &[u8]) -> Result<Option<usize>, FrameError> {
        while self.open > 0 {
            let Some(rest) = input.get(self.at..).filter(|rest| !rest.is_empty()) else {
                return Ok(None);
            };
            let Some(length) = memchr::memchr(b'\n', &rest[..rest.len().min(LINE)]) else {
                return match rest.len() {
                    0..LINE => Ok(None),
                    _ => Err(FrameError::Malformed),
                };
            };
            let line = rest
                .get(1..length)
                .and_then(|line| line.strip_suffix(b"\r"))
                .ok_or(FrameError::Malformed)?;
            self.at += length + 1;
            self.open -= 1;
            match rest[0] {
                // The only thing that there is: a status, or an error, whose size is bounded anyway.
                b'+' | b'-' if self.elements == ELEMENTS => {}
                b'+' | b'-' => self.take(line.len())?,
                b':' => {
                    number(line)?;
                }
                b'$' => {
                    if let Some(size) = size(line)? {
                        self.take(size)?;
                        self.at += size + 2;
                    }
                }
                b'*' => {
                    if let Some(count) = size(line)? {
                        self.elements = self
                            .elements
                            .checked_sub(count)
                            .ok_or(FrameError::TooMany)?;
                        self.open += count;
                    }
                }
                _ => return Err(FrameError::Malformed),
            }
        }
        Ok((input.len() >= self.at).then_some(self.at))
    }

    fn take(&mut self, bytes: usize) -> Result<(), FrameError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(FrameError::TooLong)?;
        Ok(())
    }
}

fn number(text: &[u8]) -> Result<i64, FrameError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(FrameError::Malformed)
}

/// How long something is; `None` when it is not there, which is told as -1.
fn size(text: &[u8]) -> Result<Option<usize>, FrameError> {
    match number(text)? {
        -1 => Ok(None),
        size => usize::try_from(size)
            .map(Some)
            .map_err(|_| FrameError::Malformed),
    }
}

/// Reads an answer, which [`Frame`] has found whole.
///
/// # Errors
/// [`FrameError::Malformed`].
pub(super) fn value(answer: &[u8]) -> Result<Value, FrameError> {
    parse_redis_value(answer).map_err(|_| FrameError::Malformed)
}

/// A command as it is sent. Words are counted, so nothing in them has a meaning.
pub(super) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut command = Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.get_packed_command()
}

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key: by the part in its first braces, if there is something in them.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        let close = memchr::memchr(b'}', rest)?;
        (close > 0).then(|| &rest[..close])
    });
    // CRC-16, polynomial 0x1021, begun with zero.
    let sum = tag.unwrap_or(key).iter().fold(0u16, |sum, &byte| {
        (0..8).fold(sum ^ u16::from(byte) << 8, |sum, _| {
            let carry = sum & 0x8000 != 0;
            sum << 1 ^ if carry { 0x1021 } else { 0 }
        })
    });
    sum % SLOTS
}

/// A pattern that only this text matches.
pub(super) fn literal(text: &[u8], pattern: &mut Vec<u8>) {
    for &byte in text {
        if b"*?[]\\^-".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(input: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
        Frame::new(limit, 0).end(input)
    }

    #[test]
    fn answers_end_where_they_end() {
        for answer in [
            &b"+OK\r\n"[..],
            b"-ERR x y\r\n",
            b":-12\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"$0\r\n\r\n",
            b"$5\r\na\r\nbc\r\n",
            b"*0\r\n",
            b"*3\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n+x\r\n",
        ] {
            let more = [answer, b"+more\r\n"].concat();
            assert_eq!(whole(&more, 100), Ok(Some(answer.len())));
            assert!(value(answer).is_ok(), "{}", answer.escape_ascii());
            let mut frame = Frame::new(100, 0);
            for end in 0..answer.len() {
                assert_eq!(frame.end(&answer[..end]), Ok(None));
            }
            assert_eq!(frame.end(answer), Ok(Some(answer.len())));
        }
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_there() {
        assert_eq!(whole(b"$10\r\n", 10), Ok(None));
        assert_eq!(whole(b"$11\r\n", 10), Err(FrameError::TooLong));
        assert_eq!(
            whole(b"*2\r\n$6\r\nabcdef\r\n$5\r\n", 10),
            Err(FrameError::TooLong)
        );
        assert_eq!(whole(b"*100001\r\n", 10), Err(FrameError::TooMany));
        assert_eq!(
            whole(b"*9223372036854775807\r\n", 10),
            Err(FrameError::TooMany)
        );
        assert_eq!(
            whole(b"$9223372036854775807\r\n", 10),
            Err(FrameError::TooLong)
        );
        let lists = b"*1000\r\n".repeat(200);
        assert_eq!(whole(&lists, 10), Err(FrameError::TooMany));
        assert_eq!(whole(&[b'+'; LINE], 1 << 20), Err(FrameError::Malformed));
        for bad in [
            &b"HTTP/1.1 400\r\n"[..],
            b"$x\r\n",
            b"$-2\r\n",
            b"*1x\r\n",
            b":\r\n",
            b"+x\n",
            b"%1\r\n",
        ] {
            assert_eq!(whole(bad, 100), Err(FrameError::Malformed));
        }
        // Deeper than the library goes.
        let deep = [b"*1\r\n".repeat(500), b":1\r\n".to_vec()].concat();
        assert_eq!(whole(&deep, 10), Ok(Some(deep.len())));
        assert_eq!(value(&deep), Err(FrameError::Malformed));
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"{foo}bar"), 12_182);
        assert_eq!(slot(b"x{foo}{bar}"), 12_182);
        assert_ne!(slot(b"{}foo"), slot(b""));
        assert_eq!(slot(b""), 0);
    }

    #[test]
    fn patterns_and_commands_have_no_meaning_beside_their_own() {
        let mut pattern = Vec::new();
        literal(b"a*[b]?\\", &mut pattern);
        assert_eq!(pattern, b"a\\*\\[b\\]\\?\\\\");
        assert_eq!(
            command(&[b"GET", b"a b\r\nDEL x"]),
            b"*2\r\n$3\r\nGET\r\n$10\r\na b\r\nDEL x\r\n"
        );
    }

    proptest! {
        /// Whatever comes, in whatever pieces: no panic, and the pieces make no difference.
        #[test]
        fn any_bytes(input in "[*$:+x0-9\r\n-]{0,40}", cut in 0usize..40) {
            let input = input.as_bytes();
            let mut frame = Frame::new(20, 0);
            let first = frame.end(&input[..cut.min(input.len())]);
            let pieces = match first {
                Ok(None) => frame.end(input),
                other => other,
            };
            prop_assert_eq!(pieces, whole(input, 20));
            if let Ok(Some(end)) = pieces {
                let _ = value(&input[..end]);
            }
        }
    }
}
