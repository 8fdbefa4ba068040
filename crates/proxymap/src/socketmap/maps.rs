//! Which tables clients of the socketmap protocol may ask, and what they call them.

use std::collections::HashMap;

use postkeep_conf::{extract_braced, split_list_braced};
use postkeep_table::{Printable, TableName};

use crate::approve::Approved;

/// The longest name of a map, in bytes.
const LONGEST_NAME: usize = 64;

/// How many maps one list may name.
const MAX_MAPS: usize = 10_000;

/// The maps that clients may ask, by the name that they use: `postkeep_socketmap_maps`.
///
/// A client says the name of a map and never that of a table, so that it cannot open what it likes, and need not know
/// where anything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps(HashMap<Box<[u8]>, Box<[u8]>>);

/// A list of maps that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapsError {
    /// An item that is not of the form `name = type:table`.
    #[error("bad map \"{0}\": expecting \"name=type:table\"")]
    Form(String),
    /// Braces that do not match, with the reason.
    #[error("bad map \"{0}\": {1}")]
    Braces(String, String),
    /// A name that cannot be used.
    #[error(
        "bad map name \"{0}\": expecting 1 to {LONGEST_NAME} letters, digits, and any of \"._+-@/\""
    )]
    Name(String),
    /// Two maps of one name.
    #[error("map \"{0}\" is defined twice")]
    Twice(String),
    /// A list without end.
    #[error("more than {MAX_MAPS} maps")]
    Many,
}

impl Maps {
    /// Reads a list: `name=type:table`, with commas or blanks between maps; a map can be enclosed in braces, and must be
    /// when there are blanks around its equals sign.
    ///
    /// # Errors
    /// [`MapsError`]: the first fault in the list.
    pub fn parse(list: &[u8]) -> Result<Self, MapsError> {
        let mut maps = HashMap::new();
        for item in split_list_braced(list) {
            let shown = || Printable(item).to_string();
            let text = if item.starts_with(b"{") {
                let (text, fault) = extract_braced(item, true);
                if let Some(fault) = fault {
                    return Err(MapsError::Braces(shown(), fault));
                }
                text
            } else {
                item
            };
            let equals = text.iter().position(|&byte| byte == b'=');
            let Some(equals) = equals else {
                return Err(MapsError::Form(shown()));
            };
            let (name, table) = (text[..equals].trim_ascii(), text[equals + 1..].trim_ascii());
            if TableName::parse(table).is_err() {
                return Err(MapsError::Form(shown()));
            }
            let proper = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-@/".contains(byte);
            if name.is_empty() || name.len() > LONGEST_NAME || !name.iter().all(proper) {
                return Err(MapsError::Name(Printable(name).to_string()));
            }
            if maps.len() >= MAX_MAPS {
                return Err(MapsError::Many);
            }
            if maps.insert(Box::from(name), Box::from(table)).is_some() {
                return Err(MapsError::Twice(Printable(name).to_string()));
            }
        }
        Ok(Self(maps))
    }

    /// The table behind a name.
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(|table| &**table)
    }

    /// Number of maps.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is no map.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tables, each once: all that can be asked.
    pub fn tables(&self) -> Approved {
        self.0.values().map(|table| &**table).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<Vec<(String, String)>, MapsError> {
        let maps = Maps::parse(list.as_bytes())?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut all: Vec<_> = maps
            .0
            .iter()
            .map(|(name, table)| (text(name), text(table)))
            .collect();
        all.sort();
        Ok(all)
    }

    #[test]
    fn maps_are_separated_as_in_other_lists() {
        let pair = |name: &str, table: &str| (name.to_owned(), table.to_owned());
        assert_eq!(parsed(" ,\t"), Ok(Vec::new()));
        assert_eq!(
            parsed(
                "a=hash:/etc/a, b=pipemap:{cdb:/x, static:{y z}}\n\t{ c = inline:{ {k = v} } } d=ldap:d=e"
            ),
            Ok(vec![
                pair("a", "hash:/etc/a"),
                pair("b", "pipemap:{cdb:/x, static:{y z}}"),
                pair("c", "inline:{ {k = v} }"),
                pair("d", "ldap:d=e"),
            ])
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let fault = |list: &str| parsed(list).unwrap_err().to_string();
        assert_eq!(
            fault("a=hash:/x b"),
            "bad map \"b\": expecting \"name=type:table\""
        );
        for form in ["a=", "a=hash", "a=hash:", "a=:x", "hash:/x", "a = hash:/x"] {
            assert!(fault(form).contains("expecting \"name="), "{form}");
        }
        for name in [
            "=hash:/x",
            "a:b=hash:/x",
            "\u{e9}=hash:/x",
            &format!("{}=hash:/x", "x".repeat(65)),
        ] {
            assert!(fault(name).starts_with("bad map name \""), "{name}");
        }
        assert_eq!(fault("a=hash:/x,a=hash:/y"), "map \"a\" is defined twice");
        assert!(fault("{ a = hash:/x").starts_with("bad map \"{ a = hash:/x\": "));
    }

    #[test]
    fn one_table_can_have_two_names() {
        let maps = Maps::parse(b"a=hash:/x b=hash:/x c=hash:/y").unwrap();
        assert_eq!((maps.len(), maps.is_empty()), (3, false));
        assert_eq!(maps.tables().sorted(), [&b"hash:/x"[..], b"hash:/y"]);
        assert_eq!(maps.find(b"b"), Some(&b"hash:/x"[..]));
        assert_eq!(maps.find(b"hash:/x"), None);
    }
}
