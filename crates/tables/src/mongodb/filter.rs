//! Queries and projections: templates and JSON text as documents, with a key's parts inside of strings.

use std::fmt;

use mongodb::bson::Document;
use postkeep_remote::template::{Key, Piece, Template};

/// Why a key makes no query.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// What the template makes of it is no JSON, or names a type whose value it does not hold.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Outside of quotes, anything but digits could change what is asked for.
    #[error("only digits can be outside of quotes")]
    Unquoted,
}

/// A query's template.
#[derive(Clone, Debug)]
pub struct Filter {
    template: Template,
    /// All codes are inside of strings.
    quoted: bool,
}

impl Filter {
    /// Looks where the codes of a template are.
    pub fn new(template: Template) -> Self {
        let mut sample = Vec::new();
        for piece in template.pieces() {
            match piece {
                Piece::Text(text) => sample.extend_from_slice(text),
                // Alone it is no JSON, nor after a backslash.
                _ => sample.push(b'x'),
            }
        }
        // Plain JSON: `x` is not what `$oid` wants.
        let quoted = serde_json::from_slice::<serde_json::Value>(&sample).is_ok();
        Self { template, quoted }
    }

    /// The text of the query for a key.
    pub fn text(&self, key: &Key<'_>) -> Vec<u8> {
        let mut text = Vec::new();
        key.expand(&self.template, escape, &mut text);
        text
    }

    /// The query for a key, whose text is [`Self::text`].
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn query(&self, key: &Key<'_>, text: &[u8]) -> Result<Document, FilterError> {
        let query = serde_json::from_slice(text)?;
        if !self.quoted {
            let codes = self.template.pieces().iter();
            for part in codes.filter_map(|piece| key.part(piece)) {
                if !part.iter().all(u8::is_ascii_digit) {
                    return Err(FilterError::Unquoted);
                }
            }
        }
        Ok(query)
    }
}

/// Appends a part of a key as it has to be inside of a JSON string.
///
/// # References
/// Postfix `src/util/quote_for_json.c`.
pub fn escape(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f | 0x7f => {
                out.extend_from_slice(format!("\\u{byte:04X}").as_bytes());
                continue;
            }
            _ => {
                out.push(byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    }
}

/// The fields that a lookup asks for: never `_id`.
#[derive(Debug)]
pub enum Projection {
    /// `projection`.
    Document(Document),
    /// One that is no JSON: its text, and why.
    Unusable(Vec<u8>, serde_json::Error),
}

impl Projection {
    /// Takes the text of `projection`, a document in JSON.
    pub fn parse(text: Vec<u8>) -> Self {
        match serde_json::from_slice::<Document>(&text) {
            Ok(mut document) => {
                document.insert("_id", 0);
                Self::Document(document)
            }
            Err(error) => Self::Unusable(text, error),
        }
    }

    /// Takes `result_attribute`, names between commas and blanks.
    pub fn fields(names: &[u8]) -> Self {
        let mut document = Document::new();
        document.insert("_id", 0);
        for name in names.split(|byte| byte.is_ascii_whitespace() || *byte == b',') {
            let name = String::from_utf8_lossy(name);
            if !name.is_empty() && name != "_id" {
                document.insert(name.into_owned(), 1);
            }
        }
        Self::Document(document)
    }
}

/// A URI as it may be told: without the password, and without options, which may hold others. The last `@` counts, also
/// in what is no good URI.
pub fn shown(uri: &str) -> impl fmt::Display {
    let plain = |text: &str| text.split('?').next().unwrap_or_default().to_owned();
    let Some((scheme, rest)) = uri.split_once("://") else {
        return plain(uri.rsplit('@').next().unwrap_or_default());
    };
    let Some((user, place)) = rest.rsplit_once('@') else {
        return format!("{scheme}://{}", plain(rest));
    };
    let (user, hidden) = match user.split_once(':') {
        Some((user, _)) => (user, ":***"),
        None => (user, ""),
    };
    format!("{scheme}://{}{hidden}@{}", plain(user), plain(place))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, doc, oid::ObjectId};
    use postkeep_remote::template::Needs;
    use postkeep_table::TableName;
    use proptest::prelude::*;

    use super::*;

    fn query(template: &str, key: &[u8]) -> Result<Document, FilterError> {
        let mut needs = Needs::default();
        let filter = Filter::new(needs.query("t", template.as_bytes()).unwrap());
        let table = TableName::parse(b"mongodb:/t").unwrap();
        let key = needs.key(&table, key).expect("a key with all parts");
        filter.query(&key, &filter.text(&key))
    }

    #[test]
    fn keys_stay_inside_of_their_strings() {
        let template = r#"{"$or": [{"user": "%s"}, {"a.b": "%u"}], "on": 1}"#;
        for key in [
            &b"a@b"[..],
            b"\"}, {\"x\": 1",
            br"\",
            b"\\\"",
            b"\x01\x7f\n\t\x08",
            "\u{e9}\u{2028}".as_bytes(),
            b"{\"$ne\": null}",
            b"%s%u",
        ] {
            let text = std::str::from_utf8(key).unwrap();
            let user = text.rsplit_once('@').map_or(text, |(user, _)| user);
            assert_eq!(
                query(template, key).unwrap(),
                doc! {"$or": [{"user": text}, {"a.b": user}], "on": 1}
            );
        }
        assert!(query(template, b"\xff").is_err());
    }

    #[test]
    fn outside_of_quotes_only_digits_go_in() {
        assert_eq!(query(r#"{"n": %s}"#, b"17").unwrap(), doc! {"n": 17});
        for key in [
            "null", "true", "{}", "[]", "1e3", "-1", "x", "1, 2", "\"x\"",
        ] {
            for template in [r#"{"n": %s}"#, r#"{"n": "\%s"}"#, r#"{"n": [%s]}"#] {
                assert!(query(template, key.as_bytes()).is_err(), "{template} {key}");
            }
        }
        assert!(query(r#"{"n": "\%s"}"#, b"17").is_err());
        assert!(query(r#"{"n": "%s""#, b"17").is_err());
        assert!(query(r#"["%s"]"#, b"17").is_err());
    }

    #[test]
    fn types_are_named_as_in_extended_json() {
        let id = "0123456789abcdef01234567";
        assert_eq!(
            query(r#"{"i": {"$oid": "%s"}}"#, id.as_bytes()).unwrap(),
            doc! {"i": ObjectId::parse_str(id).unwrap()}
        );
        assert!(query(r#"{"i": {"$oid": "%s"}}"#, b"x").is_err());
        assert_eq!(
            query(
                r#"{"i": {"$numberLong": "%s"}, "r": {"$regex": "^a", "$options": "i"}}"#,
                b"5"
            )
            .unwrap(),
            doc! {"i": 5_i64, "r": {"$regex": "^a", "$options": "i"}}
        );
        assert_eq!(
            query(
                r#"{"d": {"$lt": {"$date": "2026-01-01T00:00:00Z"}}, "s": "%s"}"#,
                b"k"
            )
            .unwrap()["d"]
                .as_document()
                .unwrap()["$lt"],
            Bson::DateTime(mongodb::bson::DateTime::from_millis(1_767_225_600_000))
        );
    }

    #[test]
    fn the_order_of_fields_is_kept() {
        let made = query(r#"{"z": {"b": 1, "a": 2}, "a": "%s"}"#, b"k").unwrap();
        assert_eq!(made, doc! {"z": {"b": 1, "a": 2}, "a": "k"});
        assert_eq!(made.keys().collect::<Vec<_>>(), ["z", "a"]);
    }

    #[test]
    fn a_deep_query_is_refused() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(query(&deep, b"k").is_err());
    }

    #[test]
    fn projections_leave_the_number_of_the_document_out() {
        let document = |projection| match projection {
            Projection::Document(document) => document,
            Projection::Unusable(..) => panic!("{projection:?}"),
        };
        assert_eq!(
            document(Projection::fields(b"a, b\tc.d,,_id")),
            doc! {"_id": 0, "a": 1, "b": 1, "c.d": 1}
        );
        let text = br#"{"a": {"$slice": 1}, "_id": 1}"#.to_vec();
        assert_eq!(
            document(Projection::parse(text)),
            doc! {"a": {"$slice": 1}, "_id": 0}
        );
        assert!(matches!(
            Projection::parse(b"{".to_vec()),
            Projection::Unusable(..)
        ));
    }

    #[test]
    fn no_password_is_told() {
        for (uri, told) in [
            (
                "mongodb://u:p@h:1,i/d?tls=true&x=p",
                "mongodb://u:***@h:1,i/d",
            ),
            ("mongodb+srv://u:p@p@h", "mongodb+srv://u:***@h"),
            ("mongodb://u@h", "mongodb://u@h"),
            ("mongodb://h", "mongodb://h"),
            ("u:p@h", "h"),
            ("mongodb://u:p?p@h/?a=b", "mongodb://u:***@h/"),
        ] {
            assert_eq!(shown(uri).to_string(), told);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_one_string(key in "[^\0]{1,20}") {
            let made = query(r#"{"a": "<%s>"}"#, key.as_bytes()).unwrap();
            prop_assert_eq!(made, doc! {"a": format!("<{key}>")});
        }
    }
}
