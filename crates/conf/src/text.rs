//! Bytes as configuration files treat them: white space, assignments, lists, numbers.

use std::borrow::Cow;

/// White space of logical lines and assignments: blank, tab, CR, LF, VT, FF.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// White space of expressions, lists and master.cf fields: blank, tab, CR, LF.
pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// A byte of a parameter name that can be referenced.
pub(crate) fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Everything before the first NUL, which is all that the reference sees of a text.
pub(crate) fn to_nul(text: &[u8]) -> &[u8] {
    memchr::memchr(0, text).map_or(text, |end| &text[..end])
}

pub(crate) fn trim(text: &[u8], white: impl Fn(u8) -> bool) -> &[u8] {
    let Some(start) = text.iter().position(|&byte| !white(byte)) else {
        return &[];
    };
    let end = text
        .iter()
        .rposition(|&byte| !white(byte))
        .map_or(start, |at| at + 1);
    &text[start..end]
}

/// At most the first `count` bytes.
pub(crate) fn head(text: &[u8], count: usize) -> &[u8] {
    &text[..text.len().min(count)]
}

/// The text as a log line shows it: valid UTF-8 stays, every other byte is one `?`.
///
/// A log writer that allows ASCII only will turn each byte of what stays into `?` as well, so the number of
/// characters comes out as in the reference either way.
pub fn display(text: &[u8]) -> Cow<'_, str> {
    if let Ok(valid) = std::str::from_utf8(text) {
        return Cow::Borrowed(valid);
    }
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        shown.push_str(chunk.valid());
        shown.extend(chunk.invalid().iter().map(|_| '?'));
    }
    Cow::Owned(shown)
}

/// Why a text is no assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameValueFault {
    /// Nothing before the `=`, or nothing at all.
    #[error("missing attribute name")]
    MissingName,
    /// A name, but no `=` after it.
    #[error("missing '=' after attribute name")]
    MissingEqual,
}

/// Takes `name = value` apart: the name ends at white space or `=`; the value is trimmed, what is inside stays.
///
/// # Errors
/// [`NameValueFault`].
///
/// # References
/// Postfix `src/util/split_nameval.c`.
pub fn split_name_value(text: &[u8]) -> Result<(&[u8], &[u8]), NameValueFault> {
    let text = to_nul(text);
    let start = text
        .iter()
        .position(|&byte| !is_space(byte))
        .unwrap_or(text.len());
    let rest = &text[start..];
    let end = rest
        .iter()
        .position(|&byte| is_space(byte) || byte == b'=')
        .unwrap_or(rest.len());
    if end == 0 {
        return Err(NameValueFault::MissingName);
    }
    let (name, rest) = rest.split_at(end);
    let equal = rest
        .iter()
        .position(|&byte| !is_space(byte))
        .unwrap_or(rest.len());
    if rest.get(equal) != Some(&b'=') {
        return Err(NameValueFault::MissingEqual);
    }
    Ok((name, trim(&rest[equal + 1..], is_space)))
}

/// Splits a list at commas, blanks, tabs, CR and LF; empty items do not exist.
pub fn split_list(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b',' || is_blank(byte))
        .filter(|item| !item.is_empty())
}

/// Splits a list as [`split_list`] does, but not inside balanced `{ }`.
///
/// Braces that never close hold the rest of the text.
///
/// # References
/// Postfix `src/util/mystrtok.c`, `mystrtokq()`.
pub fn split_list_braced(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || take_braced(&mut rest, |byte| byte == b',' || is_blank(byte)))
}

/// Takes the next item off the front of `rest`; separators inside balanced braces do not count.
pub(crate) fn take_braced<'a>(
    rest: &mut &'a [u8],
    separator: impl Fn(u8) -> bool,
) -> Option<&'a [u8]> {
    let start = rest.iter().position(|&byte| !separator(byte))?;
    let text = &rest[start..];
    let mut level = 0_usize;
    let mut end = text.len();
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'{' => level += 1,
            b'}' if level > 0 => level -= 1,
            _ if level == 0 && separator(byte) => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    let (item, after) = text.split_at(end);
    *rest = after.get(1..).unwrap_or_default();
    Some(item)
}

/// Takes the next item off the front of `rest`, ending before one separator, which is dropped.
pub(crate) fn take_item<'a>(
    rest: &mut &'a [u8],
    separator: impl Fn(u8) -> bool,
) -> Option<&'a [u8]> {
    let start = rest.iter().position(|&byte| !separator(byte))?;
    let text = &rest[start..];
    let end = text
        .iter()
        .position(|&byte| separator(byte))
        .unwrap_or(text.len());
    let (item, after) = text.split_at(end);
    *rest = after.get(1..).unwrap_or_default();
    Some(item)
}

/// The text inside the outermost braces of an item, which must start with `{`, and what is wrong with the item.
///
/// `strip` removes white space inside the braces. A fault leaves a usable text, as in the reference:
/// `missing '}' in "{ a"`, `syntax error after '}' in "{a}b"`.
///
/// # References
/// Postfix `src/util/extpar.c`.
pub fn extract_braced(item: &[u8], strip: bool) -> (&[u8], Option<String>) {
    let mut level = 0_usize;
    let mut close = None;
    for (at, &byte) in item.iter().enumerate() {
        match byte {
            b'{' => level += 1,
            b'}' => {
                level = level.saturating_sub(1);
                if level == 0 {
                    close = Some(at);
                    break;
                }
            }
            _ => {}
        }
    }
    let (inside, fault) = match close {
        None => (
            item.get(1..).unwrap_or_default(),
            Some(format!("missing '}}' in \"{}\"", display(item))),
        ),
        Some(at) if at + 1 < item.len() => (
            &item[1..at],
            Some(format!("syntax error after '}}' in \"{}\"", display(item))),
        ),
        Some(at) => (&item[1..at], None),
    };
    (
        if strip {
            trim(inside, is_space)
        } else {
            inside
        },
        fault,
    )
}

/// What `strtol()` makes of a text in base ten.
pub(crate) struct Number {
    pub value: i64,
    /// Offset of the first byte that is not part of the number; zero when there is no number.
    pub end: usize,
    /// The number does not fit 64 bits.
    pub overflow: bool,
}

pub(crate) fn parse_number(text: &[u8]) -> Number {
    let mut at = text
        .iter()
        .position(|&byte| !is_space(byte))
        .unwrap_or(text.len());
    let negative = text.get(at) == Some(&b'-');
    if matches!(text.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    let first = at;
    let mut value = 0_i64;
    let mut overflow = false;
    while let Some(digit) = text.get(at).filter(|byte| byte.is_ascii_digit()) {
        let digit = i64::from(digit - b'0');
        let next = value.checked_mul(10).and_then(|tens| {
            if negative {
                tens.checked_sub(digit)
            } else {
                tens.checked_add(digit)
            }
        });
        match next {
            Some(next) if !overflow => value = next,
            _ => overflow = true,
        }
        at += 1;
    }
    Number {
        value,
        end: if at == first { 0 } else { at },
        overflow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bytes_are_shown_one_by_one() {
        assert_eq!(display(b"a\xff\xfeb"), "a??b");
        assert_eq!(display("ü".as_bytes()), "ü");
        assert_eq!(display(&"ü".as_bytes()[..1]), "?");
    }

    #[test]
    fn assignments() {
        let split = |text: &'static str| split_name_value(text.as_bytes());
        assert_eq!(split("a=b"), Ok((&b"a"[..], &b"b"[..])));
        assert_eq!(split(" a \x0b=\x0c b  c \r"), Ok((&b"a"[..], &b"b  c"[..])));
        assert_eq!(split("a ="), Ok((&b"a"[..], &b""[..])));
        assert_eq!(split("a=b\0c"), Ok((&b"a"[..], &b"b"[..])));
        assert_eq!(split("a b = c"), Err(NameValueFault::MissingEqual));
        assert_eq!(split("a"), Err(NameValueFault::MissingEqual));
        assert_eq!(split(" = c"), Err(NameValueFault::MissingName));
        assert_eq!(split(""), Err(NameValueFault::MissingName));
    }

    #[test]
    fn numbers() {
        let number = |text: &str| {
            let number = parse_number(text.as_bytes());
            (number.value, number.end, number.overflow)
        };
        assert_eq!(number("12x"), (12, 2, false));
        assert_eq!(number(" +012"), (12, 5, false));
        assert_eq!(number("-5"), (-5, 2, false));
        assert_eq!(number("+"), (0, 0, false));
        assert_eq!(number("9223372036854775807"), (i64::MAX, 19, false));
        assert_eq!(number("-9223372036854775808"), (i64::MIN, 20, false));
        assert!(parse_number(b"9223372036854775808").overflow);
    }

    #[test]
    fn braces() {
        let items: Vec<_> = split_list_braced(b"a {b, {c}} ,d} e{f g").collect();
        assert_eq!(items, [&b"a"[..], b"{b, {c}}", b"d}", b"e{f g"]);
        assert_eq!(extract_braced(b"{ a }", true), (&b"a"[..], None));
        assert_eq!(extract_braced(b"{{x}}", false), (&b"{x}"[..], None));
        let (inside, fault) = extract_braced(b"{ a = b", true);
        assert_eq!(
            (inside, fault.unwrap()),
            (&b"a = b"[..], "missing '}' in \"{ a = b\"".to_owned())
        );
        let (inside, fault) = extract_braced(b"{a=b}c", true);
        assert_eq!(
            (inside, fault.unwrap()),
            (
                &b"a=b"[..],
                "syntax error after '}' in \"{a=b}c\"".to_owned()
            )
        );
    }
}
