//! Where the warnings of a scan go, and how foreign bytes are shown in them.

use std::fmt;
use std::time::Duration;

/// Takes the warnings that the receivers of Postfix would log.
///
/// Implemented for closures and for `Vec<String>`; `()` throws them away.
pub trait Diagnostics {
    /// One log line at level warning, without the `warning: ` prefix.
    ///
    /// The text has no control characters; bytes that are not UTF-8 have become `?`. It may be longer than a log
    /// record.
    fn warning(&mut self, text: fmt::Arguments<'_>);

    /// A peer went beyond one of the [`Limits`](crate::scan::Limits), and its connection is about to end; the text
    /// says which and where. Unless told otherwise this is a warning like any other.
    fn exceeded(&mut self, size: Size, text: fmt::Arguments<'_>) {
        let _ = size;
        self.warning(text);
    }
}

/// What a peer sent too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Bytes of one name.
    Name,
    /// Bytes of one value.
    Value,
    /// Bytes of one list.
    List,
    /// Attributes of one list.
    Attributes,
}

/// Keeps a line that could come without end to one in each [`Throttle::PERIOD`].
///
/// The first is let through at once. What is held back is counted, and told with the next that is let through.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<Duration>,
    held_back: u64,
}

impl Throttle {
    /// How long nothing is let through after a line.
    pub const PERIOD: Duration = Duration::from_mins(1);

    /// A throttle that has seen nothing.
    pub const fn new() -> Self {
        Self {
            last: None,
            held_back: 0,
        }
    }

    /// Something is to be told. `None`: not now. Otherwise tell it, with what comes back at the end of the line.
    ///
    /// `now`: the caller's clock, from any fixed moment on
    pub fn admit(&mut self, now: Duration) -> Option<HeldBack> {
        if self
            .last
            .is_some_and(|last| now.saturating_sub(last) < Self::PERIOD)
        {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(HeldBack(std::mem::take(&mut self.held_back)))
    }
}

/// How many lines a [`Throttle`] held back: nothing, or ` (5 more since the last such line)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack(pub u64);

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more since the last such line)"),
        }
    }
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
    fn one_line_a_period_with_the_number_of_the_others() {
        let second = Duration::from_secs(1);
        let mut throttle = Throttle::new();
        assert_eq!(throttle.admit(5 * second), Some(HeldBack(0)));
        for after in [0, 1, 30, 59] {
            assert_eq!(throttle.admit((5 + after) * second), None, "{after}");
        }
        // A clock that went back is no reason to speak.
        assert_eq!(throttle.admit(second), None);
        let held_back = throttle.admit(65 * second).unwrap();
        assert_eq!(held_back.to_string(), " (5 more since the last such line)");
        assert_eq!(throttle.admit(66 * second), None);
        assert_eq!(throttle.admit(200 * second), Some(HeldBack(1)));
        assert_eq!(HeldBack(0).to_string(), "");
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
