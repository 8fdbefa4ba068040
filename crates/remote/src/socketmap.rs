//! The wire form of socketmap: one netstring each way.
//!
//! A request is `MAP KEY`, a reply is a word, a blank, and data or a reason.
//!
//! # References
//! `socketmap_table(5)`; Postfix `src/util/dict_sockmap.c`, `src/util/netstring.c`.

use memchr::memchr;
use postkeep_table::Printable;

/// Why what came is no netstring; the text is the reference's (`netstring_strerror()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetstringError {
    /// A letter where a digit belongs, or something else than the comma at the end.
    #[error("input format error")]
    Format,
    /// Longer than the limit.
    #[error("input exceeds size limit")]
    Size,
}

/// Appends a request to `out`.
pub fn request(map: &[u8], key: &[u8], out: &mut Vec<u8>) {
    let length = map.len() + 1 + key.len();
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(map);
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b',');
}

/// A length has no more digits.
const MOST_DIGITS: usize = 100;

/// A netstring at the beginning of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netstring<'a> {
    /// What is in it.
    pub payload: &'a [u8],
    /// How much of the input it takes.
    pub consumed: usize,
}

/// Reads a netstring; `None` when there is more to come.
///
/// Digits are counted from the left, zeros before them do not matter, and none at all are zero.
///
/// - `limit`: of the payload, in bytes; zero for none
///
/// # Errors
/// [`NetstringError`] as soon as it shows.
pub fn netstring(input: &[u8], limit: usize) -> Result<Option<Netstring<'_>>, NetstringError> {
    let mut length: usize = 0;
    for (at, &byte) in input.iter().enumerate() {
        if byte == b':' {
            if limit > 0 && length > limit {
                return Err(NetstringError::Size);
            }
            let start = at + 1;
            let Some(end) = start.checked_add(length) else {
                return Err(NetstringError::Size);
            };
            return match input.get(end) {
                Some(b',') => Ok(Some(Netstring {
                    payload: &input[start..end],
                    consumed: end + 1,
                })),
                Some(_) => Err(NetstringError::Format),
                None => Ok(None),
            };
        }
        // Zeros without end are no number, in how many pieces they may come.
        if at >= MOST_DIGITS {
            return Err(NetstringError::Size);
        }
        if !byte.is_ascii_digit() {
            return Err(NetstringError::Format);
        }
        length = length
            .checked_mul(10)
            .and_then(|length| length.checked_add(usize::from(byte - b'0')))
            .ok_or(NetstringError::Size)?;
    }
    Ok(None)
}

/// Which kind of failure a server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `TEMP`.
    Temporary,
    /// `TIMEOUT`.
    Timeout,
    /// `PERM`.
    Permanent,
    /// Any other word.
    Unknown,
}

impl Failure {
    /// The word in the reference's warning.
    pub fn word(self) -> &'static str {
        match self {
            Self::Temporary => "temporary",
            Self::Timeout => "timeout",
            Self::Permanent => "permanent",
            Self::Unknown => "unknown",
        }
    }
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `OK data`; `None` without a blank after the word.
    Found(Option<&'a [u8]>),
    /// `NOTFOUND`.
    Absent,
    /// Anything else, with the reason that the server gives.
    Failed(Failure, &'a [u8]),
}

/// How much of a reason is shown.
const REASON: usize = 200;

impl<'a> Reply<'a> {
    /// Takes the payload of a reply apart; it ends at a NUL.
    pub fn parse(payload: &'a [u8]) -> Self {
        let text = &payload[..memchr(0, payload).unwrap_or(payload.len())];
        let (word, data) = match memchr(b' ', text) {
            Some(blank) => (&text[..blank], Some(&text[blank + 1..])),
            None => (text, None),
        };
        let failure = match word {
            b"OK" => return Self::Found(data),
            b"NOTFOUND" => return Self::Absent,
            b"TEMP" => Failure::Temporary,
            b"TIMEOUT" => Failure::Timeout,
            b"PERM" => Failure::Permanent,
            _ => Failure::Unknown,
        };
        let reason = data.unwrap_or_default();
        let blanks = reason
            .iter()
            .take_while(|&&byte| byte.is_ascii_whitespace() || byte == 0x0b)
            .count();
        let reason = &reason[blanks..];
        Self::Failed(failure, &reason[..reason.len().min(REASON)])
    }
}

/// The reference's warning about a failure that a server reports.
pub fn failure_warning(table: &dyn std::fmt::Display, failure: Failure, reason: &[u8]) -> String {
    let separator = if reason.is_empty() { "" } else { ": " };
    format!(
        "{table} socketmap server {} error{separator}{}",
        failure.word(),
        Printable(reason)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests() {
        let mut out = Vec::new();
        request(b"mymap", b"key", &mut out);
        assert_eq!(out, b"9:mymap key,");
        out.clear();
        request(b"", b"A b@c", &mut out);
        assert_eq!(out, b"6: A b@c,");
    }

    fn payload(input: &str) -> Result<Option<(&str, usize)>, NetstringError> {
        Ok(netstring(input.as_bytes(), 10)?
            .map(|found| (std::str::from_utf8(found.payload).unwrap(), found.consumed)))
    }

    #[test]
    fn zeros_without_end_are_refused_in_any_pieces() {
        let zeros = "0".repeat(MOST_DIGITS);
        assert_eq!(netstring(zeros.as_bytes(), 10), Ok(None));
        assert!(netstring(format!("{zeros}:,").as_bytes(), 10).is_ok_and(|read| read.is_some()));
        for rest in ["0", "x", "0x", "0:,"] {
            let text = format!("{zeros}{rest}");
            assert_eq!(netstring(text.as_bytes(), 10), Err(NetstringError::Size));
        }
    }

    #[test]
    fn netstrings() {
        assert_eq!(payload("4:OK x,"), Ok(Some(("OK x", 7))));
        assert_eq!(payload("4:OK x,rest"), Ok(Some(("OK x", 7))));
        assert_eq!(payload("004:OK x,"), Ok(Some(("OK x", 9))));
        assert_eq!(payload(":,"), Ok(Some(("", 2))));
        assert_eq!(payload("10:0123456789,"), Ok(Some(("0123456789", 14))));
        for part in ["", "4", "4:", "4:OK x"] {
            assert_eq!(payload(part), Ok(None), "{part}");
        }
        for bad in ["x", "4x", " 4:", "-1:", "4:OK x;", "0:x"] {
            assert_eq!(payload(bad), Err(NetstringError::Format), "{bad}");
        }
        for big in ["11:", "99999999999999999999999999:"] {
            assert_eq!(payload(big), Err(NetstringError::Size), "{big}");
        }
        assert_eq!(payload(&"0".repeat(101)), Err(NetstringError::Size));
        assert_eq!(
            netstring(b"11:0123456789x,", 0).unwrap().unwrap().consumed,
            15
        );
        let most = format!("{}:", usize::MAX);
        assert_eq!(netstring(most.as_bytes(), 0), Err(NetstringError::Size));
    }

    #[test]
    fn replies_are_read_as_the_reference_does() {
        for (payload, reply) in [
            (&b"OK data"[..], Reply::Found(Some(b"data"))),
            (b"OK  a b ", Reply::Found(Some(b" a b "))),
            (b"OK a\0b", Reply::Found(Some(b"a"))),
            (b"OK ", Reply::Found(Some(b""))),
            (b"OK", Reply::Found(None)),
            (b"NOTFOUND ", Reply::Absent),
            (b"NOTFOUND", Reply::Absent),
            (b"NOTFOUND x", Reply::Absent),
            (b"TEMP  why", Reply::Failed(Failure::Temporary, b"why")),
            (b"TIMEOUT", Reply::Failed(Failure::Timeout, b"")),
            (b"PERM no", Reply::Failed(Failure::Permanent, b"no")),
            (b"ok data", Reply::Failed(Failure::Unknown, b"data")),
            (b"OK\tdata", Reply::Failed(Failure::Unknown, b"")),
            (b"", Reply::Failed(Failure::Unknown, b"")),
        ] {
            assert_eq!(Reply::parse(payload), reply, "{}", payload.escape_ascii());
        }
        let long = [&b"TEMP "[..], &[b'x'; 300]].concat();
        let Reply::Failed(_, reason) = Reply::parse(&long) else {
            panic!()
        };
        assert_eq!(reason.len(), 200);
    }

    #[test]
    fn warnings_are_the_reference_s() {
        let warning = |reason| failure_warning(&"socketmap:n", Failure::Temporary, reason);
        assert_eq!(
            warning(b"try \xff"),
            "socketmap:n socketmap server temporary error: try ?"
        );
        assert_eq!(warning(b""), "socketmap:n socketmap server temporary error");
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(map in "[a-z]{0,9}", key: Vec<u8>, rest: Vec<u8>) {
            let mut wire = Vec::new();
            request(map.as_bytes(), &key, &mut wire);
            let length = wire.len();
            for end in 0..length {
                prop_assert_eq!(netstring(&wire[..end], 0), Ok(None));
            }
            wire.extend(rest);
            let found = netstring(&wire, 0).unwrap().unwrap();
            prop_assert_eq!(found.consumed, length);
            prop_assert_eq!(found.payload, [map.as_bytes(), b" ", &key].concat());
        }
    }
}
