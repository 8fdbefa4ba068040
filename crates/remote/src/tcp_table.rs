//! The wire form of `tcp_table(5)`: a line each way, with `%XX` for what is no plain letter.
//!
//! # References
//! `tcp_table(5)`; Postfix `src/util/dict_tcp.c`, `src/util/hex_quote.c`.

use memchr::memchr;

/// The most bytes that a reply may have, its newline included.
pub const LINE_LIMIT: usize = 4096;

/// How much of a bad reply is shown.
const SHOWN: usize = 100;

/// Appends a request to `out`; the key ends at a NUL.
pub fn request(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"get ");
    for &byte in &key[..memchr(0, key).unwrap_or(key.len())] {
        if byte.is_ascii_graphic() && byte != b'%' {
            out.push(byte);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[
                b'%',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
    }
    out.push(b'\n');
}

/// A reply that has no end within [`LINE_LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("text longer than {LINE_LIMIT}")]
pub struct TooLong;

/// The first line of the input without its newline; `None` when there is more to come.
///
/// # Errors
/// [`TooLong`].
pub fn line(input: &[u8]) -> Result<Option<&[u8]>, TooLong> {
    let head = &input[..input.len().min(LINE_LIMIT)];
    match memchr(b'\n', head) {
        Some(end) => Ok(Some(&input[..end])),
        None if input.len() >= LINE_LIMIT => Err(TooLong),
        None => Ok(None),
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `2xx text`, decoded; it ends at a decoded NUL.
    Found(Vec<u8>),
    /// `5xx`.
    Absent,
    /// `4xx`; the connection is not to be used again.
    Temporary,
    /// Another first digit; the beginning of the line.
    BadStatus(&'a [u8]),
    /// No digits, no white space, or a bad `%`; the beginning of the line.
    Malformed(&'a [u8]),
}

impl<'a> Reply<'a> {
    /// Takes a line apart, as far as its first NUL.
    pub fn parse(line: &'a [u8]) -> Self {
        let line = &line[..memchr(0, line).unwrap_or(line.len())];
        let shown = &line[..line.len().min(SHOWN)];
        let [first, second, third, space, text @ ..] = line else {
            return Self::Malformed(shown);
        };
        let digits = [first, second, third]
            .iter()
            .all(|byte| byte.is_ascii_digit());
        if !digits || !(space.is_ascii_whitespace() || *space == 0x0b) {
            return Self::Malformed(shown);
        }
        let Some(mut value) = decode(text) else {
            return Self::Malformed(shown);
        };
        match first {
            b'2' => {
                let end = memchr(0, &value).unwrap_or(value.len());
                value.truncate(end);
                Self::Found(value)
            }
            b'4' => Self::Temporary,
            b'5' => Self::Absent,
            _ => Self::BadStatus(shown),
        }
    }
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return None;
        };
        out.push((digit(*high)? << 4) | digit(*low)?);
        rest = after;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests() {
        let mut out = Vec::new();
        request("a b%c=+\u{e9}".as_bytes(), &mut out);
        assert_eq!(out, b"get a%20b%25c=+%C3%A9\n");
        out.clear();
        request(b"~\x7f\n\0rest", &mut out);
        assert_eq!(out, b"get ~%7F%0A\n");
    }

    #[test]
    fn lines() {
        assert_eq!(line(b"200 x"), Ok(None));
        assert_eq!(line(b"200 x\n"), Ok(Some(&b"200 x"[..])));
        let mut most = vec![b'x'; LINE_LIMIT - 1];
        assert_eq!(line(&most), Ok(None));
        most.push(b'\n');
        assert_eq!(line(&most).unwrap().map(<[u8]>::len), Some(LINE_LIMIT - 1));
        most.insert(0, b'x');
        assert_eq!(line(&most), Err(TooLong));
        assert_eq!(line(&most[..LINE_LIMIT]), Err(TooLong));
    }

    #[test]
    fn replies_are_read_as_the_reference_does() {
        let found = |value: &[u8]| Reply::Found(value.to_vec());
        for (line, reply) in [
            (&b"200 a%20b"[..], found(b"a b")),
            (b"250 a b\r", found(b"a b\r")),
            (b"299\tx%c3%A9", found("x\u{e9}".as_bytes())),
            (b"200 ", found(b"")),
            (b"200 a%00b", found(b"a")),
            (b"500 no", Reply::Absent),
            (b"400 later", Reply::Temporary),
            (b"300 x", Reply::BadStatus(b"300 x")),
            (b"000 x", Reply::BadStatus(b"000 x")),
            (b"20 x", Reply::Malformed(b"20 x")),
            (b"200", Reply::Malformed(b"200")),
            (b"200x", Reply::Malformed(b"200x")),
            (b"", Reply::Malformed(b"")),
            (b"200 %", Reply::Malformed(b"200 %")),
            (b"200 %4", Reply::Malformed(b"200 %4")),
            (b"500 %zz", Reply::Malformed(b"500 %zz")),
            (b"200\0 x", Reply::Malformed(b"200")),
        ] {
            assert_eq!(Reply::parse(line), reply, "{}", line.escape_ascii());
        }
        let long = [b'x'; 300];
        assert_eq!(Reply::parse(&long), Reply::Malformed(&long[..100]));
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_decoded(key: Vec<u8>) {
            let mut wire = Vec::new();
            request(&key, &mut wire);
            let text = wire.strip_prefix(b"get ").unwrap().strip_suffix(b"\n").unwrap();
            prop_assert!(text.iter().all(u8::is_ascii_graphic));
            let end = key.iter().position(|&byte| byte == 0).unwrap_or(key.len());
            prop_assert_eq!(decode(text).unwrap(), &key[..end]);
        }
    }
}
