//! The text of a query with parameters where a key goes.

use postkeep_remote::template::{Key, Piece, Template};

/// A query whose text does not depend on the key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// The text, with `?1`, `?2`, …
    pub(super) text: String,
    /// What each parameter is made of.
    parameters: Vec<Vec<Piece>>,
}

impl Prepared {
    /// Makes a parameter of each string literal that a part of the key goes into.
    ///
    /// `None` where a part of the key stands elsewhere: outside of single quotes, in a comment, in a blob literal.
    pub(super) fn of(template: &Template) -> Option<Self> {
        let mut scan = Scan::default();
        for piece in template.pieces() {
            match piece {
                Piece::Text(text) => scan.text(text)?,
                code => scan.code(code)?,
            }
        }
        // What is not closed is for SQLite to refuse, with its own words about the whole text.
        if matches!(scan.state, State::Literal { .. }) {
            return None;
        }
        Some(Self {
            text: String::from_utf8(scan.out).ok()?,
            parameters: scan.parameters,
        })
    }

    /// The values of the parameters for a key; `None` when one is no text.
    pub(super) fn values(&self, key: &Key<'_>) -> Option<Vec<String>> {
        let value = |pieces: &Vec<Piece>| {
            let mut value = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => value.extend_from_slice(text),
                    piece => value.extend_from_slice(key.part(piece)?),
                }
            }
            String::from_utf8(value).ok()
        };
        self.parameters.iter().map(value).collect()
    }
}

/// Appends a part of a key to a query: quotes are doubled (`%q` of SQLite's printf), all else is as it is.
pub(super) fn quote(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        if byte == b'\'' {
            out.push(byte);
        }
        out.push(byte);
    }
}

/// The codes that do not stand inside single quotes, where a key can change the meaning of the query; as the reference
/// looks for them (3.11).
pub(super) fn unprotected(query: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut quote = 0;
    let mut at = 0;
    while let Some(&byte) = query.get(at) {
        if quote == 0 {
            if byte == b'\'' || byte == b'"' {
                quote = byte;
            }
        } else if byte == quote {
            quote = 0;
        }
        if quote != b'\'' && byte == b'%' {
            match query.get(at + 1) {
                Some(b'%') => at += 1,
                Some(letter) if letter.is_ascii_alphanumeric() => {
                    found.push(&query[at..at + 2]);
                    at += 1;
                }
                _ => {}
            }
        }
        at += 1;
    }
    found
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Plain,
    /// Between single quotes; the text so far is in `out` from `start` on, and what it stands for in `pieces`.
    Literal {
        start: usize,
        pieces: Vec<Piece>,
    },
    /// Between double quotes, backticks or brackets.
    Name {
        end: u8,
    },
    LineComment,
    BlockComment,
}

#[derive(Debug, Default)]
struct Scan {
    state: State,
    out: Vec<u8>,
    parameters: Vec<Vec<Piece>>,
}

impl Scan {
    fn code(&mut self, code: &Piece) -> Option<()> {
        let State::Literal { pieces, .. } = &mut self.state else {
            return None;
        };
        pieces.push(code.clone());
        Some(())
    }

    fn text(&mut self, text: &[u8]) -> Option<()> {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            let next = text.get(at + 1).copied();
            self.out.push(byte);
            at += 1;
            match &mut self.state {
                State::Plain => match (byte, next) {
                    (b'\'', _) => {
                        self.state = State::Literal {
                            start: self.out.len() - 1,
                            pieces: Vec::new(),
                        };
                    }
                    (b'"' | b'`', _) => self.state = State::Name { end: byte },
                    (b'[', _) => self.state = State::Name { end: b']' },
                    (b'-', Some(b'-')) => self.state = State::LineComment,
                    (b'/', Some(b'*')) => {
                        self.out.push(b'*');
                        at += 1;
                        self.state = State::BlockComment;
                    }
                    // A parameter of the administrator's own would be counted with ours.
                    (b'?' | b':' | b'@' | b'#' | b'$', _) => return None,
                    _ => {}
                },
                State::Literal { pieces, .. } => {
                    if byte != b'\'' {
                        push(pieces, byte);
                    } else if next == Some(b'\'') {
                        push(pieces, byte);
                        self.out.push(byte);
                        at += 1;
                    } else {
                        self.close()?;
                    }
                }
                // A doubled end opens the same again at once.
                State::Name { end } if byte == *end => self.state = State::Plain,
                State::LineComment if byte == b'\n' => self.state = State::Plain,
                State::BlockComment if byte == b'*' && next == Some(b'/') => {
                    self.out.push(b'/');
                    at += 1;
                    self.state = State::Plain;
                }
                State::Name { .. } | State::LineComment | State::BlockComment => {}
            }
        }
        Some(())
    }

    /// A literal has ended: puts a parameter in its place when a part of the key is in it.
    fn close(&mut self) -> Option<()> {
        let State::Literal { start, pieces } = std::mem::take(&mut self.state) else {
            return Some(());
        };
        if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
            return Some(());
        }
        // x'…' is a blob.
        let before = start.checked_sub(1).map_or(b' ', |at| self.out[at]);
        if before.is_ascii_alphanumeric() || before == b'_' || !before.is_ascii() {
            return None;
        }
        self.out.truncate(start);
        self.parameters.push(pieces);
        let parameter = format!(" ?{} ", self.parameters.len());
        self.out.extend_from_slice(parameter.as_bytes());
        Some(())
    }
}

fn push(pieces: &mut Vec<Piece>, byte: u8) {
    if let Some(Piece::Text(text)) = pieces.last_mut() {
        text.push(byte);
    } else {
        pieces.push(Piece::Text(vec![byte]));
    }
}

#[cfg(test)]
mod tests {
    use postkeep_remote::template::Needs;
    use postkeep_table::TableName;

    use super::*;

    fn prepared(query: &str) -> Option<(String, Vec<String>)> {
        let mut needs = Needs::default();
        let template = needs.query("/t.cf", query.as_bytes()).unwrap();
        let prepared = Prepared::of(&template)?;
        let table = TableName::parse(b"sqlite:/t.cf").unwrap();
        let key = needs.key(&table, b"o'x@b.c").unwrap();
        let values = prepared.values(&key).unwrap();
        Some((prepared.text, values))
    }

    #[test]
    fn literals_with_parts_of_the_key_become_parameters() {
        let some = |text: &str, values: &[&str]| {
            Some((
                text.to_owned(),
                values.iter().map(|&value| value.to_owned()).collect(),
            ))
        };
        assert_eq!(
            prepared("SELECT a FROM t WHERE k='%s' AND d='%d'"),
            some(
                "SELECT a FROM t WHERE k= ?1  AND d= ?2 ",
                &["o'x@b.c", "b.c"]
            )
        );
        assert_eq!(
            prepared("SELECT '%%it''s', '%u''at'' %1', 'x' '%d'1"),
            some("SELECT '%it''s',  ?1 , 'x'  ?2 1", &["o'x'at' c", "b.c"])
        );
        assert_eq!(prepared("SELECT 'a'"), some("SELECT 'a'", &[]));
        assert_eq!(
            prepared("SELECT \"'\", [']], `'`/*'*/, '%s'--'"),
            some("SELECT \"'\", [']], `'`/*'*/,  ?1 --'", &["o'x@b.c"])
        );
    }

    #[test]
    fn all_else_does_not() {
        for query in [
            "SELECT %s",
            "SELECT \"%s\"",
            "SELECT x'%s'",
            "SELECT 1 -- %s",
            "SELECT 1 /* '%s' */ + %s",
            "SELECT [%s]",
            "SELECT `%s`",
            "SELECT '%s",
            "SELECT ?1, '%s'",
            "SELECT @a, '%s'",
        ] {
            assert_eq!(prepared(query), None, "{query}");
        }
    }

    #[test]
    fn unprotected_codes() {
        let found = |query: &'static str| {
            let found = unprotected(query.as_bytes());
            found.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        assert!(found("SELECT '%s' '%u' %%d \"a\"").is_empty());
        assert_eq!(found("SELECT %s, \"%u\", '%d' %1%"), [b"%s", b"%u", b"%1"]);
    }

    #[test]
    fn quotes_are_doubled() {
        let mut out = Vec::new();
        quote(b"a'b\"c\\''", &mut out);
        assert_eq!(out, b"a''b\"c\\''''");
    }
}
