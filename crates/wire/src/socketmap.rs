//! The socketmap protocol, as its server sees it: one netstring each way.
//!
//! A request is `NAME SP KEY`, where the name has no blank in it and the key may be anything, even empty. A reply is a
//! word, a blank, and data or a reason. Requests of one connection are answered in order.
//!
//! # References
//! `socketmap_table(5)`; Postfix `src/util/dict_sockmap.c`, `src/util/netstring.c`; the format of netstrings, D. J.
//! Bernstein.

use memchr::memchr;

/// The digits of a length, at most. More than that is no length, whatever its value.
const MOST_DIGITS: usize = 10;

/// What is at the beginning of the bytes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// There is more to come.
    Incomplete,
    /// A request.
    Request {
        /// The name of the map; not empty, without a blank.
        map: &'a [u8],
        /// What is looked up.
        key: &'a [u8],
        /// How much of the input it takes.
        consumed: usize,
    },
    /// A netstring that is no request: the name or the blank is missing. The next one can be read all the same.
    Malformed {
        /// How much of the input it takes.
        consumed: usize,
    },
    /// A netstring that is longer than the limit. What follows cannot be read.
    TooLarge,
    /// No netstring. What follows cannot be read.
    NoNetstring,
}

/// Looks at the beginning of what a client has sent.
///
/// A length has one digit at least and ten at most; zeros before it do not matter, as in the reference.
///
/// - `limit`: of what is in the netstring, in bytes
pub fn scan(input: &[u8], limit: usize) -> Scanned<'_> {
    let digits = input
        .iter()
        .take(MOST_DIGITS)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let length = input[..digits].iter().fold(0usize, |length, digit| {
        length
            .saturating_mul(10)
            .saturating_add(usize::from(digit - b'0'))
    });
    // Before the byte that follows, as what is said of a part must hold for the whole.
    if length > limit {
        return Scanned::TooLarge;
    }
    match input.get(digits) {
        None => return Scanned::Incomplete,
        Some(b':') if digits > 0 => {}
        Some(_) => return Scanned::NoNetstring,
    }
    let start = digits + 1;
    let Some(end) = start.checked_add(length) else {
        return Scanned::TooLarge;
    };
    match input.get(end) {
        None => return Scanned::Incomplete,
        Some(b',') => {}
        Some(_) => return Scanned::NoNetstring,
    }
    let consumed = end + 1;
    let payload = &input[start..end];
    match memchr(b' ', payload) {
        None | Some(0) => Scanned::Malformed { consumed },
        Some(blank) => Scanned::Request {
            map: &payload[..blank],
            key: &payload[blank + 1..],
            consumed,
        },
    }
}

/// What is replied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The key is there, with this value.
    Found(&'a [u8]),
    /// The key is not there.
    Absent,
    /// It cannot be told now; the reason is for the client's log.
    Temporary(&'a str),
    /// Nobody has told it in time.
    Timeout(&'a str),
    /// It cannot be told before a person has acted.
    Permanent(&'a str),
}

impl Reply<'_> {
    /// Appends the reply to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (word, data): (&[u8], &[u8]) = match self {
            Self::Found(value) => (b"OK ", value),
            Self::Absent => (b"NOTFOUND ", b""),
            Self::Temporary(reason) => (b"TEMP ", reason.as_bytes()),
            Self::Timeout(reason) => (b"TIMEOUT ", reason.as_bytes()),
            Self::Permanent(reason) => (b"PERM ", reason.as_bytes()),
        };
        let length = word.len() + data.len();
        out.extend_from_slice(length.to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(word);
        out.extend_from_slice(data);
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request<'a>(map: &'a [u8], key: &'a [u8], consumed: usize) -> Scanned<'a> {
        Scanned::Request { map, key, consumed }
    }

    #[test]
    fn requests_are_taken_apart_at_the_first_blank() {
        for (input, map, key, consumed) in [
            (&b"9:mymap key,"[..], &b"mymap"[..], &b"key"[..], 12),
            (b"6:m a b ,7:", b"m", b"a b ", 9),
            (b"2:m ,", b"m", b"", 5),
            (b"3:m  ,", b"m", b" ", 6),
            (b"0000000002:m ,", b"m", b"", 14),
            (b"5:m \0,\xff,", b"m", b"\0,\xff", 8),
        ] {
            assert_eq!(
                scan(input, 10),
                request(map, key, consumed),
                "{}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn what_is_missing_is_waited_for_and_no_more_than_allowed() {
        for part in ["", "1", "10", "10:", "10:012345678", "10:0123456789"] {
            assert_eq!(scan(part.as_bytes(), 10), Scanned::Incomplete, "{part}");
        }
        for large in [
            "11",
            "11:",
            "11:x",
            "11;",
            "99",
            "9999999999",
            "9999999999:",
            "99999999999",
        ] {
            assert_eq!(scan(large.as_bytes(), 10), Scanned::TooLarge, "{large}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_from_what_is_no_netstring() {
        for (input, consumed) in [("0:,", 3), ("3:map,", 6), ("4: key,", 7), ("1: ,", 4)] {
            assert_eq!(
                scan(input.as_bytes(), 10),
                Scanned::Malformed { consumed },
                "{input}"
            );
        }
        for bad in [
            "x",
            ":,",
            ":",
            " 2:m ,",
            "-1:",
            "2m",
            "2:m ;",
            "0:x",
            "00000000002:m ,",
            "GET / HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(scan(bad.as_bytes(), 10), Scanned::NoNetstring, "{bad}");
        }
    }

    #[test]
    fn replies_are_those_of_the_protocol() {
        let written = |reply: Reply<'_>| {
            let mut out = Vec::new();
            reply.write(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(Reply::Found(b"a b")), "6:OK a b,");
        assert_eq!(written(Reply::Found(b"")), "3:OK ,");
        assert_eq!(written(Reply::Absent), "9:NOTFOUND ,");
        assert_eq!(written(Reply::Temporary("x")), "6:TEMP x,");
        assert_eq!(written(Reply::Timeout("x")), "9:TIMEOUT x,");
        assert_eq!(written(Reply::Permanent("x")), "6:PERM x,");
    }

    proptest! {
        #[test]
        fn any_request_is_read_whole_and_in_no_part(
            map in "[^ ]{1,20}",
            key: Vec<u8>,
            rest: Vec<u8>,
        ) {
            let length = map.len() + 1 + key.len();
            let mut wire = format!("{length}:{map} ").into_bytes();
            wire.extend_from_slice(&key);
            wire.push(b',');
            for end in 0..wire.len() {
                prop_assert_eq!(scan(&wire[..end], length), Scanned::Incomplete);
            }
            let consumed = wire.len();
            wire.extend_from_slice(&rest);
            prop_assert_eq!(scan(&wire, length), request(map.as_bytes(), &key, consumed));
            prop_assert_eq!(scan(&wire, length - 1), Scanned::TooLarge);
        }

        #[test]
        fn any_bytes_give_an_answer_and_it_does_not_change_with_more_of_them(
            input: Vec<u8>,
            more: Vec<u8>,
            limit in 0usize..64,
        ) {
            let first = scan(&input, limit);
            if first != Scanned::Incomplete {
                let longer = [input.clone(), more].concat();
                prop_assert_eq!(scan(&longer, limit), first);
            }
            prop_assert!(first != Scanned::Incomplete || input.len() <= limit + MOST_DIGITS + 1);
        }
    }
}
