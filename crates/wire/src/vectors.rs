//! Reading the vector files of the tests.

use serde_json::Value as Json;

use crate::duplex::End;

/// Takes a vector file.
pub(crate) fn load(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

/// A string as it stands.
pub(crate) fn text(value: &Json) -> &str {
    value.as_str().unwrap()
}

/// Bytes, one character each.
pub(crate) fn bytes(value: &Json) -> Vec<u8> {
    text(value)
        .chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap())
        .collect()
}

/// Bytes in hexadecimal; blanks do not count.
pub(crate) fn hex(value: &Json) -> Vec<u8> {
    let digits: Vec<u8> = text(value)
        .bytes()
        .filter(|digit| !digit.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A list of strings.
pub(crate) fn lines(value: &Json) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|line| text(line).to_owned())
        .collect()
}

/// `closed`, `timeout` or nothing.
pub(crate) fn end_of(value: &Json) -> Option<End> {
    match value.as_str() {
        None => None,
        Some("closed") => Some(End::Closed),
        Some("timeout") => Some(End::TimedOut),
        Some(other) => panic!("no such end: {other}"),
    }
}
