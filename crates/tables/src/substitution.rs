//! The right-hand side of a pattern rule: text with `$1`, `${1}`, `$(1)` and `$$` (`pcre_table(5)`, `regexp_table(5)`,
//! "TEXT SUBSTITUTION"; Postfix `src/util/mac_parse.c`).
//!
//! A pure function over bytes. What is wrong is known when the table is read; expansion cannot fail.

use postkeep_table::Printable;

/// A right-hand side, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Substitution {
    pieces: Vec<Piece>,
    /// The highest group that is named, as the reference has it: numbers that do not fit wrap around.
    highest: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<[u8]>),
    Group(usize),
}

/// The right-hand side is wrong, and all was said about that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Substitution {
    /// Takes a right-hand side apart.
    ///
    /// - `prefix`: `KIND map NAME, line N`, for the warnings that have it
    /// - `out_of_range`: the words of that warning, which differ by type
    ///
    /// # Errors
    /// [`Malformed`], after one or more warnings.
    pub(crate) fn parse(
        text: &[u8],
        prefix: &dyn Fn() -> String,
        out_of_range: &str,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, Malformed> {
        let mut this = Self::default();
        let mut literal = Vec::new();
        let mut good = true;
        let mut at = 0;
        while at < text.len() {
            if text[at] != b'$' {
                literal.push(text[at]);
                at += 1;
                continue;
            }
            if text.get(at + 1) == Some(&b'$') {
                literal.push(b'$');
                at += 2;
                continue;
            }
            this.text(&mut literal);
            at += 1;
            let name = if let Some(&open @ (b'(' | b'{')) = text.get(at) {
                let Some(length) = bracketed(&text[at..], open) else {
                    warn(format!(
                        "truncated macro reference: \"{}\"",
                        Printable(text)
                    ));
                    return Err(Malformed);
                };
                // The reference stops here without a word when something was wrong before.
                if !good {
                    return Err(Malformed);
                }
                let name = &text[at + 1..at + length - 1];
                at += length;
                name
            } else {
                let length = text[at..]
                    .iter()
                    .position(|&byte| !byte.is_ascii_alphanumeric() && byte != b'_')
                    .unwrap_or(text.len() - at);
                let name = &text[at..at + length];
                at += length;
                name
            };
            if name.is_empty() {
                warn(format!("empty macro name: \"{}\"", Printable(text)));
                return Err(Malformed);
            }
            match this.group(name) {
                Ok(()) => {}
                Err(what) => {
                    let what = match what {
                        Index::NoNumber => "non-numeric",
                        Index::Zero => out_of_range,
                    };
                    warn(format!(
                        "{}: {what} replacement index \"{}\"",
                        prefix(),
                        Printable(name)
                    ));
                    good = false;
                }
            }
        }
        this.text(&mut literal);
        if good { Ok(this) } else { Err(Malformed) }
    }

    fn text(&mut self, literal: &mut Vec<u8>) {
        if !literal.is_empty() {
            self.pieces
                .push(Piece::Text(std::mem::take(literal).into()));
        }
    }

    fn group(&mut self, name: &[u8]) -> Result<(), Index> {
        let number = index(name)?;
        self.highest = self.highest.max(number);
        self.pieces
            .push(Piece::Group(usize::try_from(number).unwrap_or(usize::MAX)));
        Ok(())
    }

    /// The highest group that is named; 0 when the text is always the same.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// As [`Self::highest`], the way the reference shows it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the reference shows an int"
    )]
    pub(crate) fn highest_shown(&self) -> i32 {
        self.highest as i32
    }

    /// Appends the text, groups replaced by what they matched in `key`; a group without a span is empty.
    pub(crate) fn expand(&self, key: &[u8], spans: &[(usize, usize)], value: &mut Vec<u8>) {
        for piece in &self.pieces {
            value.extend_from_slice(match piece {
                Piece::Text(text) => text,
                Piece::Group(number) => spans
                    .get(*number)
                    .and_then(|&(start, end)| key.get(start..end))
                    .unwrap_or_default(),
            });
        }
    }
}

/// What a group's number can be instead.
#[derive(Debug, PartialEq, Eq)]
enum Index {
    NoNumber,
    Zero,
}

/// The number of a group, as the C library's `atoi` gives it to the reference.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the reference keeps a long in an int and that in a size_t"
)]
fn index(name: &[u8]) -> Result<u64, Index> {
    if !name.iter().all(u8::is_ascii_digit) {
        return Err(Index::NoNumber);
    }
    let number = name.iter().fold(0_i64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    match i64::from(number as i32) as u64 {
        0 => Err(Index::Zero),
        number => Ok(number),
    }
}

/// How long the bracketed text is that `text` starts with; only brackets of that kind are counted.
fn bracketed(text: &[u8], open: u8) -> Option<usize> {
    let close = if open == b'(' { b')' } else { b'}' };
    let mut depth = 0_usize;
    for (at, &byte) in text.iter().enumerate() {
        if byte == open {
            depth += 1;
        } else if byte == close {
            depth -= 1;
            if depth == 0 {
                return Some(at + 1);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> (Result<Substitution, Malformed>, Vec<String>) {
        let mut warnings = Vec::new();
        let result = Substitution::parse(
            text.as_bytes(),
            &|| "P".to_owned(),
            "out of range",
            &mut |warning| warnings.push(warning),
        );
        (result, warnings)
    }

    fn expand(text: &str) -> String {
        let (result, warnings) = parse(text);
        assert_eq!(warnings, Vec::<String>::new());
        let mut value = b"<".to_vec();
        result
            .unwrap()
            .expand(b"one two", &[(0, 7), (0, 3), (4, 7), (2, 2)], &mut value);
        String::from_utf8(value).unwrap()
    }

    #[test]
    fn groups_have_three_forms() {
        assert_eq!(
            expand("a $1 ${2}b $(1)$$2 $3 $02"),
            "<a one twob one$2  two"
        );
        assert_eq!(expand(""), "<");
        assert_eq!(expand("$$"), "<$");
        assert_eq!(expand("\\$1\\"), "<\\one\\");
        assert_eq!(parse("$3 $1").0.unwrap().highest(), 3);
        assert_eq!(parse("$$1").0.unwrap().highest(), 0);
    }

    #[test]
    fn what_is_wrong_has_the_reference_s_words() {
        let warnings = |text| {
            let (result, warnings) = parse(text);
            assert_eq!(result, Err(Malformed), "{text}");
            warnings
        };
        let index = |what: &str, name: &str| format!("P: {what} replacement index \"{name}\"");
        assert_eq!(warnings("$0"), [index("out of range", "0")]);
        assert_eq!(warnings("$1_"), [index("non-numeric", "1_")]);
        assert_eq!(
            warnings("$x $1 $y"),
            [index("non-numeric", "x"), index("non-numeric", "y")]
        );
        assert_eq!(warnings("${ 1 }"), [index("non-numeric", " 1 ")]);
        assert_eq!(warnings("${${1}}"), [index("non-numeric", "${1}")]);
        assert_eq!(
            warnings("$x ${1"),
            [
                index("non-numeric", "x"),
                "truncated macro reference: \"$x ${1\"".to_owned()
            ]
        );
        assert_eq!(warnings("$x ${y} $z"), [index("non-numeric", "x")]);
        for text in ["$", "$()", "$-1", "a$ $1"] {
            assert_eq!(warnings(text), [format!("empty macro name: \"{text}\"")]);
        }
    }

    #[test]
    fn numbers_wrap_as_in_the_reference() {
        assert_eq!(parse("$4294967297").0.unwrap().highest(), 1);
        let negative = parse("$99999999999999999999 $5").0.unwrap();
        assert_eq!(negative.highest_shown(), -1);
        assert!(negative.highest() > u64::from(u32::MAX));
        assert!(parse("$4294967296").0.is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_apart_can_be_expanded(text in "[ab$(){}0-9_ ]{0,20}", key in ".{0,10}") {
            let (result, warnings) = parse(&text);
            prop_assert_eq!(result.is_err(), !warnings.is_empty());
            if let Ok(substitution) = result {
                let mut value = Vec::new();
                substitution.expand(key.as_bytes(), &[(0, 1), (0, 100), (3, 2)], &mut value);
            }
        }
    }
}
