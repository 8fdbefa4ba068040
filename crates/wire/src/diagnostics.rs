//! Where the warnings of a scan go, and how foreign bytes are shown in them.

use std::fmt;

/// Takes the warnings that the receivers of Postfix would log.
///
/// Implemented for closures and for `Vec<String>`; `()` throws them away.
pub trait Diagnostics {
    /// One log line at level warning, without the `warning: ` prefix.
    ///
    /// The text has no control characters; bytes that are not UTF-8 have become `?`. It may be longer than a log
    /// record.
    fn warning(&mut self, text: fmt::Arguments<'_>);
}

impl<F: FnMut(fmt::Arguments<'_>)> Diagnostics for F {
    fn warning(&mut self, text: fmt::Arguments<'_>) {
        self(text);
    }
}

impl Diagnostics for Vec<String> {
    fn warning(&mut self, text: fmt::Arguments<'_>) {
        self.push(text.to_string());
    }
}

impl Diagnostics for () {
    fn warning(&mut self, _text: fmt::Arguments<'_>) {}
}

/// Bytes of a peer, fit for a log line: what is no printable character becomes `?`.
///
/// Characters outside ASCII are kept when they are valid UTF-8; a logger that wants ASCII only can still replace
/// them.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(&'a [u8]);

/// No embedded text is longer than this (bytes); the reference cuts the whole log record at 2000.
const LONGEST: usize = 2000;

impl<'a> Shown<'a> {
    /// Shows all of a text, up to the length of a log record.
    pub fn new(text: &'a [u8]) -> Self {
        Self::cut(text, LONGEST)
    }

    /// Shows at most `length` bytes (`%.100s`).
    pub fn cut(text: &'a [u8], length: usize) -> Self {
        Self(&text[..text.len().min(length)])
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                f.write_char(if character.is_control() {
                    '?'
                } else {
                    character
                })?;
            }
            for _ in chunk.invalid() {
                f.write_char('?')?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_become_question_marks() {
        assert_eq!(Shown::new(b"a\nb\xff\xfe\x7f\0").to_string(), "a?b????");
        assert_eq!(Shown::new("gr\u{fc}n".as_bytes()).to_string(), "gr\u{fc}n");
    }

    #[test]
    fn cut_counts_bytes_and_may_split_a_character() {
        assert_eq!(Shown::cut("a\u{fc}".as_bytes(), 2).to_string(), "a?");
        assert_eq!(Shown::new(&[b'x'; 5000]).to_string().len(), LONGEST);
    }

    #[test]
    fn closures_and_vectors_take_warnings() {
        let mut lines = Vec::new();
        let sink: &mut dyn Diagnostics = &mut lines;
        sink.warning(format_args!("one {}", 1));
        let mut closure = |text: fmt::Arguments<'_>| lines.push(text.to_string());
        let sink: &mut dyn Diagnostics = &mut closure;
        sink.warning(format_args!("two"));
        ().warning(format_args!("three"));
        assert_eq!(lines, ["one 1", "two"]);
    }
}
