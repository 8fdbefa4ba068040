//! Keys as data within single quotes.
//!
//! # References
//! `mysql_real_escape_string()` of the client library; the server's manual, "String Literals".

/// How the bytes of a character set lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Charset {
    /// UTF-8: what is not UTF-8 is no key.
    Utf8,
    /// No character has a byte of ASCII in it but the ASCII ones.
    Separate,
    /// Characters may end with a byte that alone is a quote or a backslash, so only ASCII can be quoted.
    Mixed,
}

impl Charset {
    /// What is known of a character set; of one that is not known the least is expected.
    pub(super) fn of(name: &str) -> Self {
        let separate = [
            "armscii8", "ascii", "binary", "cp1250", "cp1251", "cp1256", "cp1257", "cp850",
            "cp852", "cp866", "dec8", "eucjpms", "euckr", "gb2312", "geostd8", "greek", "hebrew",
            "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2", "latin5", "latin7", "macce",
            "macroman", "tis620", "ujis",
        ];
        let name = name.to_ascii_lowercase();
        match &name[..] {
            "utf8" | "utf8mb3" | "utf8mb4" => Self::Utf8,
            name if separate.contains(&name) => Self::Separate,
            _ => Self::Mixed,
        }
    }

    /// Can this be quoted?
    pub(super) fn accepts(self, key: &[u8]) -> bool {
        match self {
            Self::Utf8 => std::str::from_utf8(key).is_ok(),
            Self::Separate => true,
            Self::Mixed => key.is_ascii(),
        }
    }
}

/// Appends a part of a key, where a backslash quotes.
pub(super) fn with_backslashes(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        let letter = match byte {
            0 => b'0',
            b'\n' => b'n',
            b'\r' => b'r',
            0x1a => b'Z',
            b'\\' | b'\'' | b'"' => byte,
            plain => {
                out.push(plain);
                continue;
            }
        };
        out.extend([b'\\', letter]);
    }
}

/// Appends a part of a key, where a backslash is a letter (`NO_BACKSLASH_ESCAPES`).
pub(super) fn doubled(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        out.push(byte);
        if byte == b'\'' {
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the server makes of a literal, up to its closing quote.
    fn read(literal: &[u8], backslash: bool) -> Option<(Vec<u8>, &[u8])> {
        let mut value = Vec::new();
        let mut at = 0;
        loop {
            match *literal.get(at)? {
                b'\'' if literal.get(at + 1) == Some(&b'\'') => {
                    value.push(b'\'');
                    at += 2;
                }
                b'\'' => return Some((value, &literal[at + 1..])),
                b'\\' if backslash => {
                    value.push(match *literal.get(at + 1)? {
                        b'0' => 0,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b'Z' => 0x1a,
                        other => other,
                    });
                    at += 2;
                }
                byte => {
                    value.push(byte);
                    at += 1;
                }
            }
        }
    }

    #[test]
    fn known_and_unknown_sets() {
        assert_eq!(Charset::of("UTF8MB4"), Charset::Utf8);
        assert_eq!(Charset::of("latin1"), Charset::Separate);
        for mixed in ["gbk", "gb18030", "sjis", "cp932", "big5", "new"] {
            assert_eq!(Charset::of(mixed), Charset::Mixed);
        }
        assert!(!Charset::Utf8.accepts(b"\xbf'"));
        assert!(Charset::Separate.accepts(b"\xbf'"));
        assert!(!Charset::Mixed.accepts(b"\xbf'"));
        assert!(Charset::Mixed.accepts(b"a'"));
    }

    proptest! {
        #[test]
        fn a_key_is_one_literal(key in "[a'\"\\\\%_\0\n\r\x1a\u{e9};-]{0,12}") {
            for (quote, backslash) in [(with_backslashes as fn(&[u8], &mut Vec<u8>), true), (doubled, false)] {
                let mut literal = Vec::new();
                quote(key.as_bytes(), &mut literal);
                literal.extend(b"' AND x");
                let read = read(&literal, backslash);
                prop_assert_eq!(read, Some((key.as_bytes().to_vec(), &b" AND x"[..])));
            }
        }
    }
}
