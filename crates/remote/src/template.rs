//! Templates of queries and results: `%s`, `%u`, `%d`, their upper-case forms, `%1` to `%9`, `%%`.
//!
//! On the side of the query a code stands for a part of the key. On the side of the result the lower-case codes stand
//! for parts of a value, the others for parts of the key. What all templates of a table need of a key is pooled: a key
//! that lacks a part which some template names is not looked up at all.
//!
//! # References
//! Postfix `src/global/db_common.c`.

use log::warn;
use postkeep_table::{Printable, TableName};

use crate::config::ConfigError;

/// What a piece of a template stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Itself.
    Text(Vec<u8>),
    /// `%s`, or `%S` and `%s` of a query: the whole.
    Whole(Of),
    /// `%u`: before the last `@`; the whole when there is none.
    User(Of),
    /// `%d`: after the last `@`.
    Domain(Of),
    /// `%1` to `%9`: a label of the key's domain, counted from the right.
    Label(usize),
}

/// Whose part a piece stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The key's.
    Key,
    /// The value's.
    Value,
}

/// A template that was taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// The pieces, in order; for those who bind the parts of a key instead of quoting them.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Does it depend on anything?
    pub fn is_dynamic(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| !matches!(piece, Piece::Text(_)))
    }
}

/// Where a template stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Query,
    Result,
}

/// The templates of one table: what they need together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that do not depend on each other"
)]
pub struct Needs {
    key_user: bool,
    key_domain: bool,
    value_user: bool,
    value_domain: bool,
    /// The highest of `%1` to `%9`.
    labels: usize,
}

impl Needs {
    /// Takes the template of a query apart, and remembers what it needs.
    ///
    /// - `name`: the table's, without its type
    ///
    /// # Errors
    /// [`ConfigError`] for a code that there is not.
    pub fn query(&mut self, name: &str, template: &[u8]) -> Result<Template, ConfigError> {
        self.parse(name, template, Side::Query)
    }

    /// Takes the template of a result apart, and remembers what it needs.
    ///
    /// # Errors
    /// [`ConfigError`] for a code that there is not.
    pub fn result(&mut self, name: &str, template: &[u8]) -> Result<Template, ConfigError> {
        self.parse(name, template, Side::Result)
    }

    fn parse(&mut self, name: &str, template: &[u8], side: Side) -> Result<Template, ConfigError> {
        let mut pieces = Vec::new();
        let mut text = Vec::new();
        let lower = match side {
            Side::Query => Of::Key,
            Side::Result => Of::Value,
        };
        let mut bytes = template.iter();
        while let Some(&byte) = bytes.next() {
            if byte != b'%' {
                text.push(byte);
                continue;
            }
            let piece = match bytes.next() {
                Some(b'%') => {
                    text.push(b'%');
                    continue;
                }
                Some(b's') => Piece::Whole(lower),
                Some(b'S') => Piece::Whole(Of::Key),
                Some(b'u') => Piece::User(lower),
                Some(b'U') => Piece::User(Of::Key),
                Some(b'd') => Piece::Domain(lower),
                Some(b'D') => Piece::Domain(Of::Key),
                Some(&digit @ b'1'..=b'9') => Piece::Label(usize::from(digit - b'0')),
                _ => {
                    let side = match side {
                        Side::Query => "query",
                        Side::Result => "result",
                    };
                    return Err(ConfigError::new(format!(
                        "db_common_parse: {name}: Invalid {side} template: {}",
                        Printable(template)
                    )));
                }
            };
            self.add(&piece);
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(piece);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Template { pieces })
    }

    fn add(&mut self, piece: &Piece) {
        match *piece {
            Piece::Text(_) | Piece::Whole(_) => {}
            Piece::User(Of::Key) => self.key_user = true,
            Piece::User(Of::Value) => self.value_user = true,
            Piece::Domain(Of::Key) => self.key_domain = true,
            Piece::Domain(Of::Value) => self.value_domain = true,
            Piece::Label(number) => {
                self.key_domain = true;
                self.labels = self.labels.max(number);
            }
        }
    }

    /// Takes a key apart; `None` when it lacks a part, which means that there is no such entry and no question.
    ///
    /// An empty key is told as the reference does. A key with a NUL, which the reference cannot have, is no key.
    pub fn key<'a>(&self, table: &TableName, key: &'a [u8]) -> Option<Key<'a>> {
        if key.is_empty() {
            warn!("table \"{table}\": empty query string -- ignored");
            return None;
        }
        if key.contains(&0) {
            return None;
        }
        let parts = Parts::of(key);
        let lacks_domain = self.key_domain && parts.domain.is_none_or(<[u8]>::is_empty);
        let lacks_user = self.key_user && parts.has_empty_user();
        if lacks_domain || lacks_user {
            return None;
        }
        let mut labels = Vec::new();
        if self.labels > 0 {
            labels = parts
                .domain
                .unwrap_or_default()
                .split(|&byte| byte == b'.')
                .filter(|label| !label.is_empty())
                .collect();
            labels.reverse();
            if labels.len() < self.labels {
                return None;
            }
        }
        Some(Key { parts, labels })
    }
}

/// A text around its last `@`.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    whole: &'a [u8],
    user: &'a [u8],
    domain: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(whole: &'a [u8]) -> Self {
        match memchr::memrchr(b'@', whole) {
            Some(at) => Self {
                whole,
                user: &whole[..at],
                domain: Some(&whole[at + 1..]),
            },
            None => Self {
                whole,
                user: whole,
                domain: None,
            },
        }
    }

    fn has_empty_user(&self) -> bool {
        self.domain.is_some() && self.user.is_empty()
    }
}

/// A key that has all parts which the templates of its table need.
#[derive(Clone, Debug)]
pub struct Key<'a> {
    parts: Parts<'a>,
    /// From the right.
    labels: Vec<&'a [u8]>,
}

impl<'a> Key<'a> {
    /// The whole key.
    pub fn whole(&self) -> &'a [u8] {
        self.parts.whole
    }

    /// What a piece of a query template stands for; nothing for a piece of text, and for a part that the key lacks,
    /// which does not happen with a template of the same table.
    pub fn part(&self, piece: &Piece) -> Option<&'a [u8]> {
        match *piece {
            Piece::Whole(Of::Key) => Some(self.parts.whole),
            Piece::User(Of::Key) => Some(self.parts.user),
            Piece::Domain(Of::Key) => self.parts.domain,
            Piece::Label(number) => self.labels.get(number - 1).copied(),
            Piece::Text(_) | Piece::Whole(_) | Piece::User(_) | Piece::Domain(_) => None,
        }
    }

    /// Appends a query to `out`.
    ///
    /// - `quote`: appends a part of the key so that it is data to the server and nothing else; literal text of the
    ///   template is not quoted
    pub fn expand(
        &self,
        template: &Template,
        mut quote: impl FnMut(&[u8], &mut Vec<u8>),
        out: &mut Vec<u8>,
    ) {
        for piece in &template.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                piece => {
                    if let Some(part) = self.part(piece) {
                        quote(part, out);
                    }
                }
            }
        }
    }
}

/// For [`Key::expand`] where nothing needs quoting.
pub fn unquoted(part: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(part);
}

/// The most bytes that the result of one lookup may have, after expansion.
///
/// The reference sets no limit other than `expansion_limit`.
pub const RESULT_LIMIT: usize = 1 << 20;

/// Why a lookup with too many values fails as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// More values than `expansion_limit`.
    #[error("Expansion limit exceeded")]
    Values,
    /// More than [`RESULT_LIMIT`] bytes.
    #[error("Result size limit exceeded")]
    Size,
}

/// The result of a lookup while its values come in.
#[derive(Debug)]
pub struct Answer<'a> {
    table: &'a TableName,
    needs: Needs,
    template: &'a Template,
    key: &'a Key<'a>,
    /// `expansion_limit`; zero or less for none.
    limit: i32,
    count: i32,
    value: Vec<u8>,
}

impl<'a> Answer<'a> {
    /// No values yet.
    ///
    /// - `needs`: of all templates of the table
    /// - `template`: its `result_format`
    /// - `limit`: its `expansion_limit`; zero or less for none
    pub fn new(
        table: &'a TableName,
        needs: Needs,
        template: &'a Template,
        key: &'a Key<'a>,
        limit: i32,
    ) -> Self {
        Self {
            table,
            needs,
            template,
            key,
            limit,
            count: 0,
            value: Vec::new(),
        }
    }

    /// Takes one value, in the order of rows, columns, attributes; it ends at a NUL.
    ///
    /// A value that is missing (SQL NULL) or lacks a part that the templates need is passed over, an empty one with a
    /// warning.
    ///
    /// # Errors
    /// [`Excess`]: the lookup has failed.
    pub fn add(&mut self, value: Option<&[u8]>) -> Result<(), Excess> {
        let Some(value) = value else {
            return Ok(());
        };
        let value = &value[..memchr::memchr(0, value).unwrap_or(value.len())];
        if value.is_empty() {
            warn!(
                "table \"{}\": empty lookup result for: \"{}\" -- ignored",
                self.table,
                Printable(self.key.whole())
            );
            return Ok(());
        }
        let parts = Parts::of(value);
        let lacks_domain = self.needs.value_domain && parts.domain.is_none_or(<[u8]>::is_empty);
        let lacks_user = self.needs.value_user && parts.has_empty_user();
        if lacks_domain || lacks_user {
            return Ok(());
        }
        self.count = self.count.saturating_add(1);
        if self.limit > 0 && self.count > self.limit {
            return Err(Excess::Values);
        }
        if !self.value.is_empty() {
            self.value.push(b',');
        }
        for piece in &self.template.pieces {
            let part = match piece {
                Piece::Text(text) => Some(&text[..]),
                Piece::Whole(Of::Value) => Some(parts.whole),
                Piece::User(Of::Value) => Some(parts.user),
                Piece::Domain(Of::Value) => parts.domain,
                piece => self.key.part(piece),
            };
            self.value.extend_from_slice(part.unwrap_or_default());
            if self.value.len() > RESULT_LIMIT {
                return Err(Excess::Size);
            }
        }
        Ok(())
    }

    /// The result; `None` when there is none.
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.value.is_empty()).then_some(self.value)
    }
}

#[cfg(test)]
mod tests;
