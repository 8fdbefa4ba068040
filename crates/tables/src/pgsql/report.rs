//! What the server says about a failure, in libpq's words.
//!
//! References: libpq's `pqBuildErrorMessage3()` and `reportErrorPosition()`.

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorResponseBody;

use super::encoding::Encoding;
use super::text;

/// A failure that the server reported.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// Several lines, each with its end.
    pub(super) text: String,
    /// SQLSTATE.
    pub(super) code: String,
}

#[derive(Default)]
struct Fields {
    severity: Vec<u8>,
    code: Vec<u8>,
    message: Vec<u8>,
    detail: Vec<u8>,
    hint: Vec<u8>,
    position: usize,
    internal_position: usize,
    internal_query: Vec<u8>,
    context: Vec<u8>,
}

impl Report {
    /// - `query`: what was asked, for the place of a fault in it
    pub(super) fn of(body: &ErrorResponseBody, query: &[u8], encoding: Encoding) -> Self {
        let mut fields = Fields::default();
        let mut all = body.fields();
        let number = |value: &[u8]| text(value).parse().unwrap_or(0);
        while let Ok(Some(field)) = all.next() {
            let value = field.value_bytes();
            // A field's name is one letter of the protocol.
            match field.type_() {
                b'S' => fields.severity = value.to_vec(),
                b'C' => fields.code = value.to_vec(),
                b'M' => fields.message = value.to_vec(),
                b'D' => fields.detail = value.to_vec(),
                b'H' => fields.hint = value.to_vec(),
                b'P' => fields.position = number(value),
                b'p' => fields.internal_position = number(value),
                b'q' => fields.internal_query = value.to_vec(),
                b'W' => fields.context = value.to_vec(),
                _ => {}
            }
        }
        Self {
            text: text(&fields.text(query, encoding)),
            code: text(&fields.code),
        }
    }

    /// The server itself is in trouble, and not with what was asked: SQLSTATE classes 08, 53, 57P and 58.
    pub(super) fn is_about_server(&self) -> bool {
        ["08", "53", "57P", "58"]
            .iter()
            .any(|class| self.code.starts_with(class))
    }

    /// It cannot be connected to now: starting, stopping, recovering.
    pub(super) fn is_not_ready(&self) -> bool {
        self.code == "57P03"
    }
}

impl Fields {
    /// In the client encoding, whatever that is.
    fn text(&self, query: &[u8], encoding: Encoding) -> Vec<u8> {
        let mut out = [&self.severity[..], b":  ", &self.message, b"\n"].concat();
        if self.position > 0 {
            point_at(query, self.position, encoding, &mut out);
        } else if self.internal_position > 0 {
            point_at(
                &self.internal_query,
                self.internal_position,
                encoding,
                &mut out,
            );
        }
        for (head, value) in [
            (&b"DETAIL"[..], &self.detail),
            (b"HINT", &self.hint),
            (b"QUERY", &self.internal_query),
            (b"CONTEXT", &self.context),
        ] {
            if !value.is_empty() {
                out.extend([head, b":  ", value, b"\n"].concat());
            }
        }
        out
    }
}

/// The most characters of a line that are shown.
const WIDTH: usize = 60;

/// How many characters after the place are shown at least.
const AFTER: usize = 10;

/// Shows the line with the place, and a mark below it. Each character counts as one column.
///
/// - `position`: in characters, from one
fn point_at(query: &[u8], position: usize, encoding: Encoding, out: &mut Vec<u8>) {
    let mut characters: Vec<&[u8]> = Vec::new();
    let mut rest = query;
    while !rest.is_empty() {
        let (character, after) = rest.split_at(encoding.step(rest));
        characters.push(character);
        rest = after;
    }
    let place = position - 1;
    if place > characters.len() {
        return;
    }
    let is = |at: usize, what: u8| characters.get(at).is_some_and(|&found| found == [what]);
    let (mut line, mut begin) = (1, 0);
    for at in 0..place {
        if is(at, b'\r') || (is(at, b'\n') && (at == 0 || !is(at - 1, b'\r'))) {
            line += 1;
        }
        if is(at, b'\r') || is(at, b'\n') {
            begin = at + 1;
        }
    }
    let mut end = (place..characters.len())
        .find(|&at| is(at, b'\r') || is(at, b'\n'))
        .unwrap_or(characters.len());
    let (mut cut_left, mut cut_right) = (false, false);
    if end - begin > WIDTH {
        if begin + WIDTH >= place + AFTER {
            end = begin + WIDTH;
            cut_right = true;
        } else {
            if place + AFTER < end {
                end = place + AFTER;
                cut_right = true;
            }
            if end - begin > WIDTH {
                begin = end - WIDTH;
                cut_left = true;
            }
        }
    }
    let mut head = format!("LINE {line}: ");
    if cut_left {
        head.push_str("...");
    }
    out.extend_from_slice(head.as_bytes());
    for &character in &characters[begin..end] {
        out.extend_from_slice(if character == b"\t" { b" " } else { character });
    }
    if cut_right {
        out.extend_from_slice(b"...");
    }
    out.push(b'\n');
    out.resize(out.len() + head.len() + place - begin, b' ');
    out.extend_from_slice(b"^\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointed(query: &str, place: &str) -> String {
        let at = query.find(place).unwrap();
        let position = query[..at].chars().count() + 1;
        let mut out = Vec::new();
        point_at(query.as_bytes(), position, Encoding::Utf8, &mut out);
        text(&out)
    }

    #[test]
    fn the_mark_is_below_the_place() {
        assert_eq!(pointed("SELEC 1", "SELEC"), "LINE 1: SELEC 1\n        ^\n");
        assert_eq!(
            pointed("a\nb\u{e9}\tX\nc", "X"),
            "LINE 2: b\u{e9} X\n           ^\n"
        );
        assert_eq!(pointed("a\r\nX", "X"), "LINE 2: X\n        ^\n");
        let long = format!("{}X{}", "a".repeat(100), "b".repeat(100));
        let shown = format!("LINE 1: ...{}X{}...\n", "a".repeat(50), "b".repeat(9));
        assert_eq!(pointed(&long, "X"), format!("{shown}{}^\n", " ".repeat(61)));
        let right = format!("X{}", "b".repeat(100));
        let shown = format!("LINE 1: X{}...\n        ^\n", "b".repeat(59));
        assert_eq!(pointed(&right, "X"), shown);
    }

    #[test]
    fn a_place_that_is_nowhere_is_not_shown() {
        let mut out = Vec::new();
        point_at(b"abc", 5, Encoding::Utf8, &mut out);
        assert!(out.is_empty());
        point_at(b"abc", 4, Encoding::Utf8, &mut out);
        assert_eq!(out, b"LINE 1: abc\n           ^\n");
        out.clear();
        point_at(b"", 1, Encoding::Single, &mut out);
        assert_eq!(out, b"LINE 1: \n        ^\n");
        point_at(b"\xff\xfe", usize::MAX, Encoding::Utf8, &mut out);
    }
}
