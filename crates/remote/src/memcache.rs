//! The text protocol of memcached, as far as tables need it: get, set, delete.
//!
//! # References
//! `memcache_table(5)`; Postfix `src/global/memcache_proto.c`, `src/global/dict_memcache.c`; memcached's `protocol.txt`.

use memchr::memchr;

/// Appends the request for a value to `out`.
pub fn get(key: &[u8], out: &mut Vec<u8>) {
    for part in [b"get ", key, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Appends the request to store a value to `out`.
///
/// - `flags`, `ttl`: as the server takes them; `ttl` in seconds, above thirty days a time of the clock
pub fn set(key: &[u8], flags: i32, ttl: i32, value: &[u8], out: &mut Vec<u8>) {
    let numbers = format!(" {flags} {ttl} {}\r\n", value.len());
    for part in [b"set ", key, numbers.as_bytes(), value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Appends the request to delete a value to `out`.
pub fn delete(key: &[u8], out: &mut Vec<u8>) {
    for part in [b"delete ", key, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Can the server take this key? Not an empty one, and none with white space, which would end it, or with control
/// characters.
///
/// - `controls`: refuse control characters, as the reference does from 3.12 on; NUL and line ends are refused always
pub fn is_key(key: &[u8], controls: bool) -> bool {
    let bad = |byte: &u8| {
        byte.is_ascii_whitespace()
            || *byte == 0x0b
            || *byte == 0
            || (controls && byte.is_ascii_control())
    };
    !key.is_empty() && !key.iter().any(bad)
}

/// A line, or what is behind it, is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the line is too long")]
pub struct TooLong;

/// A line at the beginning of the input, and how much of the input it takes; `None` when there is more to come.
///
/// It ends with a line feed, and perhaps a carriage return before that.
///
/// - `limit`: `line_size_limit`, in bytes; the carriage return counts, a line feed behind it does not
///
/// # Errors
/// [`TooLong`].
pub fn line(input: &[u8], limit: usize) -> Result<Option<(&[u8], usize)>, TooLong> {
    let limit = limit.max(1);
    if let Some(end) = memchr(b'\n', &input[..input.len().min(limit)]) {
        let line = &input[..end];
        return Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1)));
    }
    match (input.get(limit - 1), input.get(limit)) {
        (None, _) | (Some(b'\r'), None) => Ok(None),
        // A carriage return that just fits.
        (Some(b'\r'), Some(b'\n')) => Ok(Some((&input[..limit - 1], limit + 1))),
        _ => Err(TooLong),
    }
}

/// An answer to `get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Not there.
    Absent,
    /// The value.
    Value {
        /// What was stored.
        value: &'a [u8],
        /// The last line is what it should be: the connection can be used again.
        clean: bool,
    },
    /// A line that is no answer.
    Unexpected(&'a [u8]),
    /// What follows the value is not the end of a line.
    Broken,
}

/// Limits of answers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// `line_size_limit`.
    pub line: usize,
    /// `data_size_limit`.
    pub data: usize,
}

/// Reads an answer to `get`, and how much of the input it takes; `None` when there is more to come.
///
/// # Errors
/// [`TooLong`] when its first line is.
pub fn found(input: &[u8], limits: Limits) -> Result<Option<(Found<'_>, usize)>, TooLong> {
    let Some((head, start)) = line(input, limits.line)? else {
        return Ok(None);
    };
    if head == b"END" {
        return Ok(Some((Found::Absent, start)));
    }
    let Some(length) = length(head).filter(|&length| length <= limits.data) else {
        return Ok(Some((Found::Unexpected(head), start)));
    };
    let end = start + length;
    let after = &input[input.len().min(end)..];
    if !b"\r\n".starts_with(&after[..after.len().min(2)]) {
        return Ok(Some((Found::Broken, input.len())));
    }
    if after.len() < 2 {
        return Ok(None);
    }
    let value = &input[start..end];
    let (clean, consumed) = match line(&after[2..], limits.line) {
        Ok(None) => return Ok(None),
        Ok(Some((last, consumed))) => (last == b"END", consumed),
        Err(TooLong) => (false, after.len() - 2),
    };
    Ok(Some((Found::Value { value, clean }, end + 2 + consumed)))
}

/// The third word behind `VALUE`; what follows its digits does not matter.
fn length(head: &[u8]) -> Option<usize> {
    let mut words = head
        .strip_prefix(b"VALUE")?
        .split(|byte| byte.is_ascii_whitespace() || *byte == 0x0b)
        .filter(|word| !word.is_empty());
    let number = words.nth(2)?;
    let number = number.strip_prefix(b"+").unwrap_or(number);
    let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
    let text = std::str::from_utf8(&number[..digits.count()]).ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { line: 20, data: 9 };

    #[test]
    fn requests() {
        let mut out = Vec::new();
        get(b"k", &mut out);
        set(b"k", 3, -1, b"a\r\nb", &mut out);
        delete(b"k", &mut out);
        assert_eq!(out, b"get k\r\nset k 3 -1 4\r\na\r\nb\r\ndelete k\r\n");
    }

    #[test]
    fn keys() {
        for good in [&b"k"[..], b"a@b", b"\xc3\xa9", b"\xff", b"%"] {
            assert!(is_key(good, true));
        }
        for bad in [
            &b""[..],
            b"a b",
            b"a\tb",
            b"a\r\nflush_all",
            b"\x0b",
            b"\x0c",
            b"\0",
        ] {
            assert!(!is_key(bad, false));
        }
        assert!(is_key(b"\x01\x7f", false));
        assert!(!is_key(b"\x01", true) && !is_key(b"\x7f", true));
    }

    #[test]
    fn lines() {
        assert_eq!(line(b"END\r\nx", 10), Ok(Some((&b"END"[..], 5))));
        assert_eq!(line(b"END\n", 10), Ok(Some((&b"END"[..], 4))));
        assert_eq!(line(b"\r\n", 10), Ok(Some((&b""[..], 2))));
        assert_eq!(line(b"EN", 10), Ok(None));
        assert_eq!(line(b"0123\r\n", 5), Ok(Some((&b"0123"[..], 6))));
        assert_eq!(line(b"0123\r", 5), Ok(None));
        assert_eq!(line(b"0123\rx", 5), Err(TooLong));
        assert_eq!(line(b"0123\n", 5), Ok(Some((&b"0123"[..], 5))));
        assert_eq!(line(b"01234\n", 5), Err(TooLong));
        assert_eq!(line(b"012345", 5), Err(TooLong));
        assert_eq!(line(b"01234\r\n", 5), Err(TooLong));
    }

    #[test]
    fn answers() {
        let absent = (Found::Absent, 5);
        assert_eq!(found(b"END\r\n", LIMITS), Ok(Some(absent)));
        let value = |value, clean, consumed| Ok(Some((Found::Value { value, clean }, consumed)));
        let wire = b"VALUE k 0 4\r\na\r\nb\r\nEND\r\n";
        assert_eq!(found(wire, LIMITS), value(b"a\r\nb", true, wire.len()));
        for end in 0..wire.len() {
            assert_eq!(found(&wire[..end], LIMITS), Ok(None), "{end}");
        }
        assert_eq!(
            found(b"VALUE k 0 0\r\n\r\nEND\r\n", LIMITS),
            value(b"", true, 20)
        );
        assert_eq!(
            found(b"VALUE k 0 1 7\n1\r\nEN\r\n", LIMITS),
            value(b"1", false, 21)
        );
        for bad in [
            &b"ERROR"[..],
            b"VALUE k 0",
            b"VALUE k 0 x",
            b"VALUE k 0 -1",
            b"VALUE k 0 10",
            b"",
            b"end",
        ] {
            let wire = [bad, b"\r\n"].concat();
            let unexpected = (Found::Unexpected(bad), wire.len());
            assert_eq!(found(&wire, LIMITS), Ok(Some(unexpected)));
        }
        let broken = found(b"VALUE k 0 1\r\n12\r\nEND\r\n", LIMITS);
        assert!(matches!(broken, Ok(Some((Found::Broken, _)))));
        assert_eq!(found(&[b'x'; 30], LIMITS), Err(TooLong));
    }

    proptest! {
        #[test]
        fn anything_ends_well(input: Vec<u8>, line in 1_usize..40, data in 1_usize..40) {
            if let Ok(Some((_, consumed))) = found(&input, Limits { line, data }) {
                prop_assert!(consumed <= input.len());
            }
        }
    }
}
