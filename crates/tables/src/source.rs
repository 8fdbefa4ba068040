//! The text from which tables are made: `key value` lines (postmap(1), "TABLE FORMAT").
//!
//! A pure function over bytes; what is wrong with a line goes to a sink and the line is left out.

use postkeep_conf::LogicalLines;
use postkeep_table::Printable;

use crate::braces::{is_space, trim};
use crate::layer::valid;

/// Who reads the text; the words of one warning differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// postmap(1), which writes an indexed table.
    Indexed,
    /// A table that is the text itself.
    Text,
}

/// One entry of a source text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Number of the first physical line that belongs to the entry.
    pub line: usize,
    /// The key with its quotes and backslashes.
    pub key: &'a [u8],
    /// The value without white space at its ends.
    pub value: &'a [u8],
}

/// Reads a source text and hands its entries to `each`, in order.
///
/// - `file`: what warnings call the text
/// - `utf8`: lines that are not UTF-8 are left out
/// - `warn`: gets each warning, without the word `warning`
///
/// # Errors
/// What `each` returns, which also ends the reading.
pub fn parse<E>(
    text: &[u8],
    file: &[u8],
    utf8: bool,
    style: Style,
    warn: &mut dyn FnMut(String),
    mut each: impl FnMut(Entry<'_>, &mut dyn FnMut(String)) -> Result<(), E>,
) -> Result<(), E> {
    let file = Printable(file).to_string();
    for logical in LogicalLines::new(text) {
        if logical.is_orphan() {
            warn(logical.orphan_warning(&file));
            continue;
        }
        let line = logical.first;
        let content = logical.text_to_nul();
        if utf8 && !content.is_ascii() && !valid(&logical.text) {
            warn(format!(
                "{file}, line {line}: non-UTF-8 input \"{}\" -- ignoring this line",
                Printable(content)
            ));
            continue;
        }
        let Ok(end) = end_of_key(content, is_space) else {
            warn(format!(
                "{file}, line {line}: unbalanced '\"' in '{}' -- ignoring this line",
                Printable(content)
            ));
            continue;
        };
        let (key, value) = (&content[..end], trim(&content[end..]));
        if key.is_empty() || value.is_empty() {
            let ignoring = match style {
                Style::Indexed => "",
                Style::Text => " -- ignoring this line",
            };
            warn(format!(
                "{file}, line {line}: expected format: key whitespace value{ignoring}"
            ));
            continue;
        }
        if key.ends_with(b":") {
            warn(format!(
                "{file}, line {line}: record is in \"key: value\" format; is this an alias file?"
            ));
        }
        each(Entry { line, key, value }, warn)?;
    }
    Ok(())
}

/// A quote that is not closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unbalanced;

/// Where a key ends that may be quoted: at the first byte outside quotes for which `ends` holds.
///
/// `\` protects the byte after it, `"` starts and ends quoting anywhere.
pub(crate) fn end_of_key(text: &[u8], ends: impl Fn(u8) -> bool) -> Result<usize, Unbalanced> {
    let mut quoted = false;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' => quoted = !quoted,
            _ if !quoted && ends(byte) => return Ok(at),
            _ => {}
        }
        at += 1;
    }
    if quoted {
        Err(Unbalanced)
    } else {
        Ok(text.len())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8], utf8: bool, style: Style) -> (Vec<(usize, String, String)>, Vec<String>) {
        let (mut entries, mut warnings) = (Vec::new(), Vec::new());
        let done: Result<(), Infallible> = parse(
            text,
            b"F",
            utf8,
            style,
            &mut |warning| warnings.push(warning),
            |entry, _| {
                let text = |bytes| Printable(bytes).to_string();
                entries.push((entry.line, text(entry.key), text(entry.value)));
                Ok(())
            },
        );
        assert_eq!(done, Ok(()));
        (entries, warnings)
    }

    fn one(text: &str) -> (String, String) {
        let (mut entries, warnings) = read(text.as_bytes(), true, Style::Indexed);
        assert_eq!((entries.len(), warnings), (1, Vec::new()), "{text}");
        let (_, key, value) = entries.remove(0);
        (key, value)
    }

    #[test]
    fn quotes_protect_white_space_and_stay() {
        for (text, key, value) in [
            ("a b  c \n", "a", "b  c"),
            ("\"a b\" v", "\"a b\"", "v"),
            ("a\"b c\"d\tv", "a\"b c\"d", "v"),
            ("a\\ b v", "a\\ b", "v"),
            ("\"a\\\" b\" # \\", "\"a\\\" b\"", "# \\"),
            ("\"\" v", "\"\"", "v"),
            ("k\n  v\n# comment\n  w", "k", "v  w"),
            ("k v\0 w", "k", "v"),
        ] {
            assert_eq!(one(text), (key.to_owned(), value.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn bad_lines_are_named_and_left_out() {
        let text = b" orphan of more than thirty bytes x\nk\n\"a v\nb\xff v\nk: v\nz 1";
        let (entries, warnings) = read(text, true, Style::Indexed);
        assert_eq!(
            warnings,
            [
                "F: logical line must not start with whitespace: \" orphan of more than thirty by...\"",
                "F, line 2: expected format: key whitespace value",
                "F, line 3: unbalanced '\"' in '\"a v' -- ignoring this line",
                "F, line 4: non-UTF-8 input \"b? v\" -- ignoring this line",
                "F, line 5: record is in \"key: value\" format; is this an alias file?",
            ]
        );
        let keys: Vec<_> = entries
            .iter()
            .map(|(line, key, _)| (*line, key.as_str()))
            .collect();
        assert_eq!(keys, [(5, "k:"), (6, "z")]);
        let (entries, _) = read(b"b\xff v", false, Style::Indexed);
        assert_eq!(entries.len(), 1);
        let (_, warnings) = read(b"k", true, Style::Text);
        assert_eq!(
            warnings,
            ["F, line 1: expected format: key whitespace value -- ignoring this line"]
        );
    }

    proptest! {
        #[test]
        fn no_text_stops_the_reader(text in "[ab\\\\\" #:\t\n\r\u{0}\u{e9}]{0,60}") {
            let (entries, _) = read(text.as_bytes(), true, Style::Text);
            for (_, key, value) in entries {
                prop_assert!(!key.is_empty() && !value.is_empty() && value.trim() == value);
            }
        }
    }
}
