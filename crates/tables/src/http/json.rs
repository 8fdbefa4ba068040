//! Which values of a JSON document are the result of a lookup.
//!
//! Pure: no socket, no clock, no file.

use std::str;

use serde_json::Value;

/// The most steps of a path.
const STEPS: usize = 64;

/// A path that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(String);

/// A document without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON.
    #[error("no JSON: {0}")]
    Malformed(String),
    /// There is something else than what a result can be made of.
    #[error("{0} where a string, a whole number, true, false or null is expected")]
    NotScalar(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A member.
    Name(String),
    /// An element; below zero from the end.
    Index(i64),
    /// Of a JSON pointer: a member, or an element.
    Token(String),
    /// Each member or element.
    Each,
}

/// Where the values are: a JSON pointer (RFC 6901), or what begins with `$`, a path (RFC 9535) of names, indices
/// and `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValuePath {
    steps: Vec<Step>,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, PathError> {
    Err(PathError(why.into()))
}

impl ValuePath {
    /// Takes a path apart; an empty one is the whole document.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let Ok(text) = str::from_utf8(text) else {
            return refuse("a path is UTF-8");
        };
        let steps = match text.as_bytes().first() {
            None => Vec::new(),
            Some(b'/') => pointer(text)?,
            Some(b'$') => json_path(&text[1..])?,
            Some(_) => return refuse("a path begins with / or $"),
        };
        if steps.len() > STEPS {
            return refuse(format!("a path has no more than {STEPS} steps"));
        }
        Ok(Self { steps })
    }

    /// Calls `found` with each value, elements in their order, members of an object (`*`) in any. What the path does not
    /// lead to, and null, is not there; the elements of an array at the end are values each.
    ///
    /// Numbers are whole and within 64 bits: others cannot be told letter for letter.
    ///
    /// # Errors
    /// [`DocumentError`], or what `found` says.
    pub fn values<E: From<DocumentError>>(
        &self,
        document: &[u8],
        mut found: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let document: Value = serde_json::from_slice(document)
            .map_err(|error| DocumentError::Malformed(error.to_string()))?;
        follow(&document, &self.steps, &mut found)
    }
}

fn pointer(text: &str) -> Result<Vec<Step>, PathError> {
    let mut steps = Vec::new();
    for token in text.split('/').skip(1) {
        let mut name = String::new();
        let mut letters = token.chars();
        while let Some(letter) = letters.next() {
            name.push(match (letter, letter == '~') {
                (letter, false) => letter,
                (_, true) => match letters.next() {
                    Some('0') => '~',
                    Some('1') => '/',
                    _ => return refuse("~ is followed by 0 or 1"),
                },
            });
        }
        steps.push(Step::Token(name));
    }
    Ok(steps)
}

fn json_path(mut rest: &str) -> Result<Vec<Step>, PathError> {
    let mut steps = Vec::new();
    while let Some(kind) = rest.chars().next() {
        let step;
        (step, rest) = match kind {
            '.' => dotted(&rest[1..])?,
            '[' => bracketed(&rest[1..])?,
            _ => return refuse("a step is .NAME, ['NAME'], [NUMBER], .* or [*]"),
        };
        steps.push(step);
    }
    Ok(steps)
}

fn dotted(rest: &str) -> Result<(Step, &str), PathError> {
    if let Some(rest) = rest.strip_prefix('*') {
        return Ok((Step::Each, rest));
    }
    let end = rest
        .find(|letter: char| letter.is_ascii() && !letter.is_ascii_alphanumeric() && letter != '_')
        .unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    // As of RFC 9535; other names are written in brackets.
    if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
        return refuse("a name after a dot is of letters, digits and _, and begins with no digit");
    }
    Ok((Step::Name(name.to_owned()), after))
}

fn bracketed(rest: &str) -> Result<(Step, &str), PathError> {
    let closed = |rest: &'_ str| rest.strip_prefix(']').map(str::len);
    let Some(first) = rest.chars().next() else {
        return refuse("a bracket is not closed");
    };
    if first == '\'' || first == '"' {
        let mut name = String::new();
        let mut letters = rest[1..].char_indices();
        while let Some((at, letter)) = letters.next() {
            if letter == first {
                let after = &rest[1 + at + 1..];
                return match closed(after) {
                    Some(length) => Ok((Step::Name(name), &after[after.len() - length..])),
                    None => refuse("a quoted name is followed by ]"),
                };
            }
            name.push(match letter {
                '\\' => match letters.next() {
                    Some((_, escaped @ ('\\' | '\'' | '"' | '/'))) => escaped,
                    _ => return refuse("a backslash is followed by one, or by a quote"),
                },
                letter => letter,
            });
        }
        return refuse("a quoted name has no end");
    }
    let Some((inner, after)) = rest.split_once(']') else {
        return refuse("a bracket is not closed");
    };
    if inner == "*" {
        return Ok((Step::Each, after));
    }
    match inner.parse::<i64>() {
        Ok(index) if inner == index.to_string() => Ok((Step::Index(index), after)),
        _ => refuse("between brackets is a number, a quoted name or *"),
    }
}

fn element(list: &[Value], index: i64) -> Option<&Value> {
    let index = if index < 0 {
        list.len()
            .checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?
    } else {
        usize::try_from(index).ok()?
    };
    list.get(index)
}

fn follow<E: From<DocumentError>>(
    value: &Value,
    steps: &[Step],
    found: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let Some((step, rest)) = steps.split_first() else {
        return match value {
            Value::Array(list) => list.iter().try_for_each(|value| scalar(value, found)),
            value => scalar(value, found),
        };
    };
    let next = match (step, value) {
        (Step::Each, Value::Array(list)) => {
            return list.iter().try_for_each(|value| follow(value, rest, found));
        }
        (Step::Each, Value::Object(members)) => {
            return members
                .values()
                .try_for_each(|value| follow(value, rest, found));
        }
        (Step::Name(name) | Step::Token(name), Value::Object(members)) => members.get(name),
        (Step::Index(index), Value::Array(list)) => element(list, *index),
        (Step::Token(token), Value::Array(list)) => token
            .parse::<u32>()
            .ok()
            .filter(|index| index.to_string() == *token)
            .and_then(|index| element(list, index.into())),
        _ => None,
    };
    match next {
        Some(next) => follow(next, rest, found),
        None => Ok(()),
    }
}

fn scalar<E: From<DocumentError>>(
    value: &Value,
    found: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    match value {
        Value::Null => Ok(()),
        Value::String(text) => found(text),
        Value::Bool(truth) => found(if *truth { "true" } else { "false" }),
        Value::Number(number) if number.is_i64() || number.is_u64() => found(&number.to_string()),
        Value::Number(_) => {
            Err(DocumentError::NotScalar("a number with a fraction, or a huge one").into())
        }
        Value::Array(_) => Err(DocumentError::NotScalar("an array").into()),
        Value::Object(_) => Err(DocumentError::NotScalar("an object").into()),
    }
}

/// The values of a text that is no JSON: its lines, without their ends. Empty ones are none.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"a":{"b":["x","y",null,7],"t~/":"slash","":"empty"},"n":null,"u":[{"m":"1"},{"m":["2","3"]},{}],
        "big":12345678901234567890123,"f":1.0,"yes":true,"l":-5,"e":"","é":"e"}"#;

    fn values_of(path: &str, document: &str) -> Result<Vec<String>, DocumentError> {
        let path = ValuePath::parse(path.as_bytes()).unwrap();
        let mut values = Vec::new();
        path.values(document.as_bytes(), |value| {
            values.push(value.to_owned());
            Ok::<_, DocumentError>(())
        })?;
        Ok(values)
    }

    #[test]
    fn paths_lead_to_values() {
        for (path, wanted) in [
            ("/a/b", &["x", "y", "7"][..]),
            ("/a/b/1", &["y"]),
            ("/a/b/01", &[]),
            ("/a/b/-", &[]),
            ("/a/b/9", &[]),
            ("/a/t~0~1", &["slash"]),
            ("/a/", &["empty"]),
            ("/n", &[]),
            ("/none", &[]),
            ("/a/b/0/x", &[]),
            ("/yes", &["true"]),
            ("/l", &["-5"]),
            ("/e", &[""]),
            ("/é", &["e"]),
            ("$.a.b", &["x", "y", "7"]),
            ("$.a.b[*]", &["x", "y", "7"]),
            ("$['a'][\"b\"][-1]", &["7"]),
            ("$.a.b[-5]", &[]),
            ("$.u[*].m", &["1", "2", "3"]),
            ("$.u.*.m", &["1", "2", "3"]),
            ("$['a']['t~/']", &["slash"]),
            ("$.a[0]", &[]),
            ("$.u[1].m[0]", &["2"]),
            ("$.é", &["e"]),
        ] {
            assert_eq!(values_of(path, DOCUMENT).unwrap(), wanted, "{path}");
        }
        assert_eq!(values_of("", r#""x""#).unwrap(), ["x"]);
        assert_eq!(values_of("$", r#"["x",1]"#).unwrap(), ["x", "1"]);
        assert_eq!(
            values_of("$", "18446744073709551615").unwrap(),
            ["18446744073709551615"]
        );
        assert_eq!(values_of("$", "null").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for path in ["", "/a", "$.u", "/big", "/f"] {
            assert!(
                matches!(values_of(path, DOCUMENT), Err(DocumentError::NotScalar(_))),
                "{path}"
            );
        }
        for document in [
            "",
            "{",
            "x",
            "{} x",
            "\"\\ud800\"",
            "\u{feff}1",
            &"[".repeat(100_000),
        ] {
            assert!(
                matches!(values_of("", document), Err(DocumentError::Malformed(_))),
                "{document}"
            );
        }
    }

    #[test]
    fn faults_in_paths() {
        for bad in [
            "a",
            "/~",
            "/~2",
            "$x",
            "$.",
            "$..a",
            "$.1",
            "$.a b",
            "$[",
            "$[1",
            "$[01]",
            "$[-0]",
            "$['a'",
            "$['a]",
            "$['a\\n']",
            "$[1:2]",
            "$[?@.x]",
            "$['a'x",
            "$[]",
            "$.a-b",
        ] {
            assert!(ValuePath::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(ValuePath::parse(b"/\xff").is_err());
        assert!(ValuePath::parse("/a".repeat(65).as_bytes()).is_err());
    }

    #[test]
    fn lines_of_texts() {
        let of = |text: &'static str| lines(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(of("a\r\nb c\n\n"), [&b"a"[..], b"b c"]);
        assert!(of("\n").is_empty());
    }
}
