//! Attribute lists written and read by hand.
//!
//! Kept apart from the `wire` crate on purpose: a test that encodes with the code under test proves little.
//! Postfix, `src/util/attr_print0.c`.

/// Encodes a list in the null-terminated form: `name NUL value NUL` for each attribute, then one NUL.
pub fn list(attributes: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in attributes {
        push(&mut bytes, name.as_bytes(), value.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Appends one attribute without the list's end.
pub fn push(bytes: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    bytes.extend_from_slice(name);
    bytes.push(0);
    bytes.extend_from_slice(value);
    bytes.push(0);
}

/// The length of the first complete list in `bytes`, its end included; `None` while it is incomplete.
///
/// Lists with braced groups are not told apart: neither service sends any.
pub fn complete(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let name = bytes[at..].iter().position(|&byte| byte == 0)?;
        if name == 0 {
            return Some(at + 1);
        }
        at += name + 1;
        at += bytes[at..].iter().position(|&byte| byte == 0)? + 1;
    }
}

/// Shows bytes for a person: NUL as `\0`, LF as `\n`, other unprintable bytes as `\xNN`.
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            0 => text.push_str("\\0"),
            b'\n' => text.push_str("\\n"),
            b' '..=b'~' => text.push(char::from(byte)),
            other => {
                use std::fmt::Write as _;
                let _ = write!(text, "\\x{other:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_s_bytes() {
        assert_eq!(
            list(&[("protocol", "proxymap_protocol")]),
            b"protocol\0proxymap_protocol\0\0"
        );
    }

    #[test]
    fn a_list_ends_at_an_empty_name_not_at_an_empty_value() {
        let bytes = b"status\x002\0property\0\0property\0\0\0more";
        assert_eq!(complete(bytes), Some(bytes.len() - 4));
        assert_eq!(complete(b"status\x002\0property\0\0"), None);
        assert_eq!(complete(b"\0"), Some(1));
        assert_eq!(complete(b""), None);
    }
}
