//! What a document holds for a lookup: texts and whole numbers, and arrays of these.

use mongodb::bson::{RawBsonRef, RawDocument};

/// The most documents that are looked at for one key.
pub const DOCUMENTS: usize = 10_000;

/// The most values of one key.
pub const VALUES: usize = 10_000;

/// The most bytes of all values of one key.
pub const BYTES: usize = 1 << 20;

/// The most values of other types that are told of for one key.
const TOLD: usize = 10;

/// How deep arrays may be inside each other; a server takes no more.
const DEPTH: usize = 100;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text, or a number as text.
    Text(String),
    /// Of a type that is none of these: the field, or its place in an array, and the type's number.
    Other(String, u8),
}

/// A document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// It is broken, or holds text that is not UTF-8.
    #[error("invalid document: {0}")]
    Broken(#[from] mongodb::bson::error::Error),
    /// Arrays inside of arrays.
    #[error("arrays are nested too deeply")]
    Deep,
}

/// The values of a key.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// In order of documents and their fields.
    pub found: Vec<Value>,
    documents: usize,
    bytes: usize,
    others: usize,
}

impl Values {
    /// Is this more than any lookup needs?
    pub fn is_too_much(&self) -> bool {
        self.documents > DOCUMENTS || self.found.len() > VALUES || self.bytes > BYTES
    }

    /// Takes the values of a document that is so many bytes.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn add_bytes(&mut self, bytes: &[u8]) -> Result<(), ValueError> {
        self.add(RawDocument::from_bytes(bytes)?)
    }

    /// Takes the values of a document.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn add(&mut self, document: &RawDocument) -> Result<(), ValueError> {
        self.documents += 1;
        for field in document {
            let (name, value) = field?;
            // Projections leave it out, but a view may have made one.
            if name.as_str() != "_id" {
                self.take(name.as_str(), value, DEPTH)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, value: RawBsonRef<'_>, depth: usize) -> Result<(), ValueError> {
        if self.is_too_much() {
            return Ok(());
        }
        let text = match value {
            RawBsonRef::String(text) => text.to_owned(),
            RawBsonRef::Int32(number) => number.to_string(),
            RawBsonRef::Int64(number) => number.to_string(),
            RawBsonRef::Array(array) => {
                let depth = depth.checked_sub(1).ok_or(ValueError::Deep)?;
                for (index, value) in array.into_iter().enumerate() {
                    self.take(&index.to_string(), value?, depth)?;
                }
                return Ok(());
            }
            other => {
                self.others += 1;
                if self.others <= TOLD {
                    let kind = other.element_type() as u8;
                    self.found.push(Value::Other(name.to_owned(), kind));
                }
                return Ok(());
            }
        };
        self.bytes += text.len();
        self.found.push(Value::Text(text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, RawDocumentBuf, doc};

    use super::*;

    fn values(document: &mongodb::bson::Document) -> Vec<Value> {
        let mut values = Values::default();
        values
            .add(&RawDocumentBuf::try_from(document).unwrap())
            .unwrap();
        assert!(!values.is_too_much());
        values.found
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn texts_numbers_and_arrays_in_order() {
        assert_eq!(
            values(&doc! {"_id": "x", "z": ["a", [1_i64 << 40, ["b"]], []], "y": -7, "x": ""}),
            [
                text("a"),
                text("1099511627776"),
                text("b"),
                text("-7"),
                text("")
            ]
        );
    }

    #[test]
    fn other_types_are_named_by_their_number() {
        let other = |name: &str, kind| Value::Other(name.to_owned(), kind);
        assert_eq!(
            values(
                &doc! {"d": 1.5, "b": true, "n": Bson::Null, "o": {"a": "x"}, "a": ["t", false]}
            ),
            [
                other("d", 1),
                other("b", 8),
                other("n", 10),
                other("o", 3),
                text("t"),
                other("1", 8)
            ]
        );
        let many: Vec<bool> = vec![true; 5000];
        assert_eq!(values(&doc! {"a": many}).len(), TOLD);
    }

    #[test]
    fn what_is_too_much_ends() {
        let mut values = Values::default();
        let document = RawDocumentBuf::try_from(&doc! {"a": vec!["x"; 2 * VALUES]}).unwrap();
        values.add(&document).unwrap();
        assert!(values.is_too_much());
        assert_eq!(values.found.len(), VALUES + 1);
        let mut nested = Bson::Int32(1);
        for _ in 0..=DEPTH {
            nested = Bson::Array(vec![nested]);
        }
        let document = RawDocumentBuf::try_from(&doc! {"a": nested}).unwrap();
        assert!(matches!(
            Values::default().add(&document),
            Err(ValueError::Deep)
        ));
    }

    #[test]
    fn broken_documents_are_faults() {
        // {"a": "<ff>"} with a byte that is no UTF-8.
        let bytes = b"\x0e\0\0\0\x02a\0\x02\0\0\0\xff\0\0".to_vec();
        let document = RawDocumentBuf::from_bytes(bytes).unwrap();
        assert!(Values::default().add(&document).is_err());
        // The length of the text leads beyond the end.
        let bytes = b"\x0e\0\0\0\x02a\0\x7f\0\0\0a\0\0".to_vec();
        let document = RawDocumentBuf::from_bytes(bytes).unwrap();
        assert!(Values::default().add(&document).is_err());
    }
}
