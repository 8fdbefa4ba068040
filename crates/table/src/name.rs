//! The `type:name` form.

use std::fmt;

use crate::Printable;

/// A table's name: a type, and what the type makes of the rest.
///
/// Split at the first colon; both parts are taken byte for byte and neither is empty
/// (Postfix `src/util/dict_open.c`, `dict_open()`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    text: Vec<u8>,
    colon: usize,
}

/// The text is not of the form `type:name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("open dictionary: expecting \"type:name\" form instead of \"{0}\"")]
pub struct NameError(pub String);

impl TableName {
    /// Takes `TYPE:NAME` apart.
    ///
    /// # Errors
    /// [`NameError`] when there is no colon or a part is empty.
    pub fn parse(text: &[u8]) -> Result<Self, NameError> {
        match text.iter().position(|&byte| byte == b':') {
            Some(colon) if colon > 0 && colon + 1 < text.len() => Ok(Self {
                text: text.to_vec(),
                colon,
            }),
            _ => Err(NameError(Printable(text).to_string())),
        }
    }

    /// The part before the first colon.
    pub fn kind(&self) -> &[u8] {
        &self.text[..self.colon]
    }

    /// The part after the first colon.
    pub fn name(&self) -> &[u8] {
        &self.text[self.colon + 1..]
    }

    /// Both parts with the colon.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.text).fmt(f)
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_colon_splits() {
        let name = TableName::parse(b"hash:x:y").unwrap();
        assert_eq!((name.kind(), name.name()), (&b"hash"[..], &b"x:y"[..]));
    }

    #[test]
    fn bytes_that_are_no_text_show_as_question_marks() {
        assert_eq!(
            TableName::parse(b"static:\xff\xc3\xa9\xc3")
                .unwrap()
                .to_string(),
            "static:?\u{e9}?"
        );
    }

    #[test]
    fn both_parts_are_needed() {
        for text in ["", ":", "x", "x:", ":x"] {
            assert_eq!(
                TableName::parse(text.as_bytes()),
                Err(NameError(text.to_owned()))
            );
        }
    }
}
