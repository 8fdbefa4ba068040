//! Writing attribute lists in the three encodings.
//!
//! # References
//! Postfix `src/util/attr_print0.c`, `attr_print_plain.c`, `attr_print64.c`.

use crate::{base64, number};

/// The three ways to write an attribute list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Names and values end in a NUL, a list ends in an empty name: all sockets between daemons.
    Null,
    /// `name=value` lines, a list ends in an empty line: property strings that smtp(8) stores in scache(8).
    Plain,
    /// `name:value` lines with both sides in base64.
    Base64,
}

/// Appends one attribute list to a buffer, attribute by attribute.
///
/// Text is cut at its first NUL byte, as a C string would be. In the plain encoding a name must not contain `=` or a
/// line feed and a value no line feed: there is no escaping. A name must not be empty, it would end the list.
///
/// [`ListWriter::finish`] writes the terminator; a writer that is dropped without it leaves the list open
/// (`ATTR_FLAG_MORE`), to be continued with another writer.
#[derive(Debug)]
pub struct ListWriter<'o> {
    out: &'o mut Vec<u8>,
    encoding: Encoding,
}

impl<'o> ListWriter<'o> {
    /// Starts or continues a list at the end of `out`.
    pub fn new(encoding: Encoding, out: &'o mut Vec<u8>) -> Self {
        Self { out, encoding }
    }

    /// A signed 32-bit number; it travels as its unsigned pattern (-1 as `4294967295`).
    pub fn int(&mut self, name: &str, value: i32) -> &mut Self {
        self.bits(name, value.cast_unsigned())
    }

    /// A set of 32 bits, written like [`Self::int`].
    pub fn bits(&mut self, name: &str, value: u32) -> &mut Self {
        self.number(name, u64::from(value))
    }

    /// A signed 64-bit number; it travels as its unsigned pattern.
    pub fn long(&mut self, name: &str, value: i64) -> &mut Self {
        self.number(name, value.cast_unsigned())
    }

    /// A text.
    pub fn text(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.pair(name.as_bytes(), value);
        self
    }

    /// Bytes of any kind; in all encodings they travel in base64, once.
    pub fn data(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.name(name.as_bytes());
        base64::encode(value, self.out);
        self.end_value();
        self
    }

    /// A truth value: `0` and `1`, in the plain encoding `false` and `true` (Postfix 3.12).
    pub fn boolean(&mut self, name: &str, value: bool) -> &mut Self {
        let text: &[u8] = match (self.encoding, value) {
            (Encoding::Plain, false) => b"false",
            (Encoding::Plain, true) => b"true",
            (_, false) => b"0",
            (_, true) => b"1",
        };
        self.text(name, text)
    }

    /// A nested table of texts, in braces; in the plain encoding each brace is followed by a NUL byte.
    pub fn multi<'p>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'p [u8], &'p [u8])>,
    ) -> &mut Self {
        self.brace(b'{');
        for (name, value) in pairs {
            self.pair(name, value);
        }
        self.brace(b'}');
        self
    }

    /// Ends the list.
    pub fn finish(&mut self) {
        self.out.push(match self.encoding {
            Encoding::Null => 0,
            Encoding::Plain | Encoding::Base64 => b'\n',
        });
    }

    fn number(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name.as_bytes());
        if self.encoding == Encoding::Base64 {
            let mut digits = [0u8; 20];
            base64::encode(number::digits(&mut digits, value), self.out);
        } else {
            let mut digits = [0u8; 20];
            self.out
                .extend_from_slice(number::digits(&mut digits, value));
        }
        self.end_value();
        self
    }

    fn pair(&mut self, name: &[u8], value: &[u8]) {
        self.name(name);
        self.string(value);
        self.end_value();
    }

    fn string(&mut self, text: &[u8]) {
        let text = before_nul(text);
        match self.encoding {
            Encoding::Null | Encoding::Plain => self.out.extend_from_slice(text),
            Encoding::Base64 => base64::encode(text, self.out),
        }
    }

    fn name(&mut self, name: &[u8]) {
        self.string(name);
        self.out.push(match self.encoding {
            Encoding::Null => 0,
            Encoding::Plain => b'=',
            Encoding::Base64 => b':',
        });
    }

    fn end_value(&mut self) {
        self.out.push(match self.encoding {
            Encoding::Null => 0,
            Encoding::Plain | Encoding::Base64 => b'\n',
        });
    }

    fn brace(&mut self, brace: u8) {
        match self.encoding {
            Encoding::Null => self.out.extend_from_slice(&[brace, 0]),
            Encoding::Plain => self.out.extend_from_slice(&[brace, 0, b'\n']),
            Encoding::Base64 => {
                base64::encode(&[brace], self.out);
                self.out.push(b'\n');
            }
        }
    }
}

/// The C string at the start of `text`.
pub(crate) fn before_nul(text: &[u8]) -> &[u8] {
    match memchr::memchr(0, text) {
        Some(length) => &text[..length],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(encoding: Encoding, write: impl FnOnce(&mut ListWriter<'_>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut ListWriter::new(encoding, &mut out));
        out
    }

    #[test]
    fn negative_numbers_travel_as_their_pattern() {
        let out = written(Encoding::Plain, |list| {
            list.int("a", -1).long("b", -1).bits("c", 7).int("d", 0);
        });
        assert_eq!(out, b"a=4294967295\nb=18446744073709551615\nc=7\nd=0\n");
    }

    #[test]
    fn text_is_cut_at_nul() {
        let out = written(Encoding::Null, |list| {
            list.text("a", b"x\0y").finish();
        });
        assert_eq!(out, b"a\0x\0\0");
        let out = written(Encoding::Base64, |list| {
            list.text("foo", b"foo\0y");
        });
        assert_eq!(out, b"Zm9v:Zm9v\n");
    }

    #[test]
    fn truth_values() {
        let write = |list: &mut ListWriter<'_>| {
            list.boolean("a", true).boolean("b", false).finish();
        };
        assert_eq!(written(Encoding::Null, write), b"a\x001\0b\x000\0\0");
        assert_eq!(written(Encoding::Plain, write), b"a=true\nb=false\n\n");
        assert_eq!(
            written(Encoding::Base64, write),
            b"YQ==:MQ==\nYg==:MA==\n\n"
        );
    }

    #[test]
    fn empty_lists_are_one_byte() {
        for (encoding, end) in [
            (Encoding::Null, b"\0"),
            (Encoding::Plain, b"\n"),
            (Encoding::Base64, b"\n"),
        ] {
            let mut out = Vec::new();
            ListWriter::new(encoding, &mut out).finish();
            assert_eq!(out, end);
        }
    }
}
