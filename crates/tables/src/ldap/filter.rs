//! Filters: from text to the form of messages, with the grammar that the reference's library has.
//!
//! That is RFC 4515 and a little more: outer parentheses may be missing, blanks may stand between filters, and `\(`,
//! `\)`, `\*` and `\\` stand for what follows, as in older RFCs.
//!
//! # References
//! RFC 4515; RFC 4511, section 4.5.1.7; OpenLDAP `libraries/libldap/filter.c`.

use crate::ldap::ber::{put, put_with, tag};

/// How deep filters may be inside each other.
const DEPTH: usize = 50;

/// The most bytes of a filter: it may come from a server, and is read once for each level.
pub const FILTER_LIMIT: usize = 256 << 10;

mod choice {
    use super::tag::{context, holding};

    pub(super) const AND: u8 = holding(0);
    pub(super) const OR: u8 = holding(1);
    pub(super) const NOT: u8 = holding(2);
    pub(super) const EQUAL: u8 = holding(3);
    pub(super) const SUBSTRINGS: u8 = holding(4);
    pub(super) const GREATER: u8 = holding(5);
    pub(super) const LESS: u8 = holding(6);
    pub(super) const PRESENT: u8 = context(7);
    pub(super) const APPROXIMATE: u8 = holding(8);
    pub(super) const EXTENSIBLE: u8 = holding(9);
}

/// Quotes a part of a key for a filter.
pub fn quote(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        match byte {
            b'*' => out.extend_from_slice(b"\\2A"),
            b'(' => out.extend_from_slice(b"\\28"),
            b')' => out.extend_from_slice(b"\\29"),
            b'\\' => out.extend_from_slice(b"\\5C"),
            byte => out.push(byte),
        }
    }
}

/// Quotes a part of a key for the name of an entry.
///
/// # References
/// RFC 4514.
pub fn quote_name(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        if b" \t\"#+,;<>\\".contains(&byte) {
            out.extend_from_slice(format!("\\{byte:02X}").as_bytes());
        } else {
            out.push(byte);
        }
    }
}

/// The filter in the form of messages; `None` when the text is none, or has more than [`FILTER_LIMIT`] bytes.
pub fn encode(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() > FILTER_LIMIT {
        return None;
    }
    let mut out = Vec::new();
    filter(text, DEPTH, &mut out)?;
    Some(out)
}

fn filter(text: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
    let Some(inner) = text.strip_prefix(b"(") else {
        return simple(text, out);
    };
    let close = closing(inner)?;
    if close + 1 != inner.len() {
        return None;
    }
    let inner = inner[..close].trim_ascii_start();
    let (choice, list) = match inner.split_first()? {
        (b'&', list) => (choice::AND, list),
        (b'|', list) => (choice::OR, list),
        (b'!', list) => (choice::NOT, list),
        (b'(', _) => return None,
        _ => return simple(inner, out),
    };
    let depth = depth.checked_sub(1)?;
    let mut filters = Vec::new();
    let mut rest = list.trim_ascii_start();
    let mut count = 0;
    while !rest.is_empty() {
        let end = 1 + closing(rest.strip_prefix(b"(")?)? + 1;
        filter(&rest[..end], depth, &mut filters)?;
        count += 1;
        rest = &rest[end..];
        if choice == choice::NOT {
            break;
        }
        rest = rest.trim_ascii_start();
    }
    if choice == choice::NOT && (count != 1 || !rest.is_empty()) {
        return None;
    }
    put(out, choice, &filters);
    Some(())
}

/// Where the parenthesis is that closes the one before the text.
fn closing(text: &[u8]) -> Option<usize> {
    let mut open = 1;
    let mut escaped = false;
    for (place, &byte) in text.iter().enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'(' => open += 1,
            b')' => open -= 1,
            b'\\' => escaped = true,
            _ => {}
        }
        if open == 0 {
            return Some(place);
        }
    }
    None
}

fn simple(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let at = memchr::memchr(b'=', text)?;
    let (left, value) = (&text[..at], &text[at + 1..]);
    let (&sign, before) = left.split_last()?;
    let choice = match sign {
        b':' => return extensible(before, value, out),
        b'<' => choice::LESS,
        b'>' => choice::GREATER,
        b'~' => choice::APPROXIMATE,
        _ => return equality(left, value, out),
    };
    is_description(before).then_some(())?;
    assertion(choice, before, &unescaped(value)?, out);
    Some(())
}

fn assertion(choice: u8, attribute: &[u8], value: &[u8], out: &mut Vec<u8>) {
    put_with(out, choice, |out| {
        put(out, tag::OCTETS, attribute);
        put(out, tag::OCTETS, value);
    });
}

fn equality(attribute: &[u8], value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    is_description(attribute).then_some(())?;
    if value == b"*" {
        put(out, choice::PRESENT, attribute);
        return Some(());
    }
    let pieces = between_stars(value);
    if let [whole] = pieces[..] {
        assertion(choice::EQUAL, attribute, &unescaped(whole)?, out);
        return Some(());
    }
    let last = pieces.len() - 1;
    let mut substrings = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        let (number, may_lack) = match place {
            0 => (0, true),
            place if place == last => (2, true),
            _ => (1, false),
        };
        let piece = unescaped(piece)?;
        if !piece.is_empty() {
            put(&mut substrings, tag::context(number), &piece);
        } else if !may_lack {
            return None;
        }
    }
    put_with(out, choice::SUBSTRINGS, |out| {
        put(out, tag::OCTETS, attribute);
        put(out, tag::SEQUENCE, &substrings);
    });
    Some(())
}

/// The pieces between stars that are not escaped.
fn between_stars(value: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let (mut start, mut place) = (0, 0);
    while let Some(&byte) = value.get(place) {
        match byte {
            b'\\' => place += 1,
            b'*' => {
                pieces.push(&value[start..place]);
                start = place + 1;
            }
            _ => {}
        }
        place += 1;
    }
    pieces.push(&value[start..]);
    pieces
}

/// `attribute:dn:rule:=value`, where `dn` and one of the others may be missing.
fn extensible(left: &[u8], value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut words = left.splitn(3, |&byte| byte == b':');
    let attribute = words.next()?;
    let is_dn = |word: &[u8]| word.eq_ignore_ascii_case(b"dn");
    let (dn, rule) = match (words.next(), words.next()) {
        (None, _) => (false, &b""[..]),
        (Some(word), None) if is_dn(word) => {
            is_description(attribute).then_some(())?;
            (true, &b""[..])
        }
        (Some(word), None) => (false, word),
        (Some(word), Some(rule)) if is_dn(word) => (true, rule),
        (Some(_), Some(_)) => return None,
    };
    let good = (!attribute.is_empty() || !rule.is_empty())
        && (attribute.is_empty() || is_description(attribute))
        && (rule.is_empty() || is_oid(rule));
    good.then_some(())?;
    let value = unescaped(value)?;
    put_with(out, choice::EXTENSIBLE, |out| {
        if !rule.is_empty() {
            put(out, tag::context(1), rule);
        }
        if !attribute.is_empty() {
            put(out, tag::context(2), attribute);
        }
        put(out, tag::context(3), &value);
        if dn {
            put(out, tag::context(4), &[0xff]);
        }
    });
    Some(())
}

fn unescaped(value: &[u8]) -> Option<Vec<u8>> {
    let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'(' | b')' | b'*' => return None,
            b'\\' => {
                let next = bytes.next();
                if let Some(high) = hex(next) {
                    let low = hex(bytes.next())?;
                    out.push(u8::try_from(high << 4 | low).ok()?);
                } else {
                    let literal = next.filter(|byte| b"()*\\".contains(byte))?;
                    out.push(*literal);
                }
            }
            byte => out.push(byte),
        }
    }
    Some(out)
}

/// A word, or numbers with single dots between them.
fn is_oid(text: &[u8]) -> bool {
    match text.first() {
        Some(first) if first.is_ascii_alphabetic() => is_word(text),
        Some(_) => text
            .split(|&byte| byte == b'.')
            .all(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit)),
        None => false,
    }
}

fn is_word(text: &[u8]) -> bool {
    text.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// An attribute, with any number of `;option`.
fn is_description(text: &[u8]) -> bool {
    let mut parts = text.split(|&byte| byte == b';');
    parts.next().is_some_and(is_oid) && parts.all(|option| !option.is_empty() && is_word(option))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Option<String> {
        let encoded = encode(text.as_bytes())?;
        let bytes: Vec<String> = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(bytes.concat())
    }

    #[test]
    fn forms() {
        for (text, wanted) in [
            ("(a=b)", "a306040161040162"),
            ("a=b", "a306040161040162"),
            ("(a=)", "a3050401610400"),
            ("(a=b\\2a\\28)", "a30804016104036 22a28"),
            ("(a=\\*\\\\)", "a30704016104022a5c"),
            ("(a=*)", "870161"),
            ("(a=\\2A)", "a30604016104012a"),
            ("(a>=b)", "a506040161040162"),
            ("(a<=b)", "a606040161040162"),
            ("(a~=b)", "a806040161040162"),
            ("(a=b*)", "a408040161300380 0162"),
            ("(a=*b)", "a408040161300382 0162"),
            ("(a=b*c*d)", "a40e0401613009800162810163820164"),
            ("(a=**)", "-"),
            ("(a=b**c)", "-"),
            ("(&(a=b)(a=c))", "a010a306040161040162a306040161040163"),
            ("(& (a=b) (a=c) )", "a010a306040161040162a306040161040163"),
            ("( |(a=b))", "a108a306040161040162"),
            ("(&)", "a000"),
            ("(!(a=b))", "a208a306040161040162"),
            ("(!(a=b)(a=c))", "-"),
            ("(!)", "-"),
            ("(! (a=b))", "a208a306040161040162"),
            ("(!(a=b) )", "-"),
            ("(a:dn:2.5:=v)", "a90e 8103322e35 820161 830176 8401ff"),
            ("(a:rule:=v)", "a90c 810472756c65 820161 830176"),
            ("(a:=v)", "a906820161830176"),
            ("(:rule:=v)", "a909810472756c65830176"),
            ("(:dn:=v)", "-"),
            ("(:=v)", "-"),
            ("(a:x:y:=v)", "-"),
            ("(a;b=c)", "a308040361 3b62 040163"),
            ("", "-"),
            ("()", "-"),
            ("(a)", "-"),
            ("(=b)", "-"),
            (" (a=b)", "-"),
            ("(a=b) ", "-"),
            ("(a=b)(a=c)", "-"),
            ("((a=b))", "-"),
            ("(a=b", "-"),
            ("(a=b))", "-"),
            ("(a=(b))", "-"),
            ("(a=b\\2)", "-"),
            ("(a=b\\x)", "-"),
            ("(a b=c)", "-"),
            ("(&a=b)", "-"),
            ("(1.2=b)", "a3080403312e32040162"),
            ("(1..2=b)", "-"),
            ("(1.=b)", "-"),
        ] {
            let wanted = wanted.replace(' ', "");
            assert_eq!(hex(text).unwrap_or("-".to_owned()), wanted, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| format!("{}(a=b){}", "(!".repeat(depth), ")".repeat(depth));
        assert!(encode(nested(DEPTH).as_bytes()).is_some());
        assert!(encode(nested(DEPTH + 1).as_bytes()).is_none());
        assert!(encode(nested(50_000).as_bytes()).is_none());
        let long = |length| format!("(a={})", "b".repeat(length - 4));
        assert!(encode(long(FILTER_LIMIT).as_bytes()).is_some());
        assert!(encode(long(FILTER_LIMIT + 1).as_bytes()).is_none());
    }

    #[test]
    fn names() {
        let mut out = Vec::new();
        quote_name(b"a,b#c d;e+f", &mut out);
        assert_eq!(out, b"a\\2Cb\\23c\\20d\\3Be\\2Bf");
    }

    proptest! {
        /// Whatever a key is, it is the value of its assertion and nothing else.
        #[test]
        fn keys_stay_values(key: Vec<u8>) {
            let mut text = b"(&(a=".to_vec();
            quote(&key, &mut text);
            text.extend_from_slice(b")(c=d))");
            let mut wanted = Vec::new();
            put_with(&mut wanted, choice::AND, |out| {
                assertion(choice::EQUAL, b"a", &key, out);
                assertion(choice::EQUAL, b"c", b"d", out);
            });
            prop_assert_eq!(encode(&text), Some(wanted));
        }

        #[test]
        fn any_text_is_a_filter_or_not(text in "[()&|!=*\\\\a:; 2~<>]{0,40}") {
            let _ = encode(text.as_bytes());
        }
    }
}
