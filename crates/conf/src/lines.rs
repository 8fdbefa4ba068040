//! Logical lines, as main.cf, master.cf and the sources of tables have them.
//!
//! A physical line that starts with white space continues the logical line; empty lines and comments count for
//! nothing, even between the parts of a logical line.

use std::borrow::Cow;

use crate::release::Release;
use crate::sink::Sink;
use crate::text::{display, head, is_space, to_nul};

/// One logical line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalLine<'a> {
    /// Number of the first physical line that gave something, from one.
    pub first: usize,
    /// Number of the last physical line that was read for it, comments included.
    pub last: usize,
    /// The parts joined without their newlines and with their leading white space; never empty.
    pub text: Cow<'a, [u8]>,
}

impl LogicalLine<'_> {
    /// A continuation with nothing before it. The reference skips such a line with a warning
    /// ([`Self::orphan_warning`]).
    pub fn is_orphan(&self) -> bool {
        self.text.first().is_some_and(|&byte| is_space(byte))
    }

    /// The text up to the first NUL, which is where the reference's parsers stop.
    pub fn text_to_nul(&self) -> &[u8] {
        to_nul(&self.text)
    }

    /// `FILE: logical line must not start with whitespace: "…"`.
    pub fn orphan_warning(&self, file: &str) -> String {
        let shown = display(head(self.text_to_nul(), 30)).into_owned();
        let more = if self.text.len() > 30 { "..." } else { "" };
        format!("{file}: logical line must not start with whitespace: \"{shown}{more}\"")
    }

    /// `FILE, line N: text after null byte may be ignored`, when there is a NUL (said since Postfix 3.9).
    pub fn nul_warning(&self, file: &str) -> Option<String> {
        memchr::memchr(0, &self.text)?;
        let why = "text after null byte may be ignored";
        Some(if self.first == self.last {
            format!("{file}, line {}: {why}", self.last)
        } else {
            format!("{file}, line {}-{}: {why}", self.first, self.last)
        })
    }
}

/// Reads logical lines off a text, orphans included.
///
/// No limit is set on the length of a line: a line is at most the text. A line of one part borrows it.
///
/// # References
/// postconf(5), "main.cf file format"; Postfix `src/util/readlline.c`.
#[derive(Clone, Debug)]
pub struct LogicalLines<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> LogicalLines<'a> {
    /// Starts at the first line of `text`.
    pub fn new(text: &'a [u8]) -> Self {
        Self {
            rest: text,
            line: 0,
        }
    }

    /// The next line that is no orphan; orphans and NULs are told to `sink` in the words of `release`.
    pub fn read(
        &mut self,
        file: &str,
        release: Release,
        sink: &mut dyn Sink,
    ) -> Option<LogicalLine<'a>> {
        for line in self.by_ref() {
            if release.warns_of_nul()
                && let Some(warning) = line.nul_warning(file)
            {
                sink.warning(warning);
            }
            if !line.is_orphan() {
                return Some(line);
            }
            sink.warning(line.orphan_warning(file));
        }
        None
    }

    fn take_physical(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        self.line += 1;
        let (line, rest) = match memchr::memchr(b'\n', self.rest) {
            Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        Some(line)
    }
}

impl<'a> Iterator for LogicalLines<'a> {
    type Item = LogicalLine<'a>;

    fn next(&mut self) -> Option<LogicalLine<'a>> {
        let mut text = Cow::Borrowed(&[][..]);
        let mut first = 0;
        while let Some(line) = self.take_physical() {
            let blank = line
                .iter()
                .find(|&&byte| !is_space(byte))
                .is_none_or(|&byte| byte == b'#');
            if !blank && text.is_empty() {
                text = Cow::Borrowed(line);
                first = self.line;
            } else if !blank {
                text.to_mut().extend_from_slice(line);
            }
            let continues = self
                .rest
                .first()
                .is_some_and(|&byte| byte == b'#' || is_space(byte));
            if !text.is_empty() && !continues {
                break;
            }
        }
        (!text.is_empty()).then_some(LogicalLine {
            first,
            last: self.line,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(usize, usize, String)> {
        LogicalLines::new(text.as_bytes())
            .map(|line| {
                (
                    line.first,
                    line.last,
                    String::from_utf8(line.text.into_owned()).unwrap(),
                )
            })
            .collect()
    }

    fn line(first: usize, last: usize, text: &str) -> (usize, usize, String) {
        (first, last, text.to_owned())
    }

    #[test]
    fn parts_are_joined_with_their_white_space() {
        assert_eq!(lines("a\n\tb\nc"), [line(1, 2, "a\tb"), line(3, 3, "c")]);
    }

    #[test]
    fn comments_and_blank_lines_count_for_nothing() {
        assert_eq!(lines("# x\n\na\n# y\n  # z\n\n b\n"), [line(3, 7, "a b")]);
        assert_eq!(lines("a\n#b"), [line(1, 2, "a")]);
        assert_eq!(lines(" \n\x0b\x0c\r\n"), []);
    }

    #[test]
    fn orphans_are_told_and_skipped() {
        let mut told = Vec::new();
        let text = b"# a\n b = c\n d\ne = f\n";
        let line = LogicalLines::new(text)
            .read("F", Release::V3_7, &mut told)
            .unwrap();
        assert_eq!((line.first, &*line.text), (4, &b"e = f"[..]));
        assert_eq!(
            told,
            ["F: logical line must not start with whitespace: \" b = c d\""]
        );
    }

    #[test]
    fn long_orphans_are_cut() {
        let text = format!(" {}", "x".repeat(30));
        let line = LogicalLines::new(text.as_bytes()).next().unwrap();
        let shown = "x".repeat(29);
        assert_eq!(
            line.orphan_warning("F"),
            format!("F: logical line must not start with whitespace: \" {shown}...\"")
        );
    }

    #[test]
    fn nul_is_told_since_3_9() {
        let mut told = Vec::new();
        let line = LogicalLines::new(b"a\0b\n c")
            .read("F", Release::V3_9, &mut told)
            .unwrap();
        assert_eq!(line.text_to_nul(), b"a");
        assert_eq!(told, ["F, line 1-2: text after null byte may be ignored"]);
    }
}
