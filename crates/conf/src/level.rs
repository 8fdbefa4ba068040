//! Compatibility levels: `MAJOR[.MINOR[.PATCH]]`.

use crate::error::Error;
use crate::text::{display, parse_number};

/// A compatibility level, ordered.
///
/// # References
/// postconf(5) `compatibility_level`; Postfix `src/global/compat_level.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompatibilityLevel(i64);

impl CompatibilityLevel {
    /// A level from its parts, of which the last two are 0..=1023.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self(((major as i64) << 20) | (((minor & 0x3ff) as i64) << 10) | (patch & 0x3ff) as i64)
    }

    /// Reads a level. Each number may have leading white space, a sign and zeros.
    ///
    /// # Errors
    /// [`Error::CompatibilityLevel`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        parse(text)
            .map(Self)
            .ok_or_else(|| Error::CompatibilityLevel {
                text: display(text).into_owned(),
            })
    }
}

fn parse(text: &[u8]) -> Option<i64> {
    let mut rest = text;
    let mut level = 0;
    for (shift, limit) in [(20, i64::MAX >> 20), (10, 1023), (0, 1023)] {
        let number = parse_number(rest);
        if number.end == 0 || number.overflow || !(0..=limit).contains(&number.value) {
            return None;
        }
        level |= number.value << shift;
        match rest.get(number.end) {
            None => return Some(level),
            Some(b'.') => rest = &rest[number.end + 1..],
            Some(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let level = |text: &str| CompatibilityLevel::parse(text.as_bytes());
        assert_eq!(level("3"), level("3.0.0"));
        assert_eq!(level(" +3.06"), Ok(CompatibilityLevel::new(3, 6, 0)));
        assert!(level("3.9").unwrap() < level("3.10").unwrap());
        for bad in ["", "3.", "3.1024", "-1", "3.6.1.", "3.6.1.2", "3 ", "abc"] {
            assert_eq!(
                level(bad).unwrap_err().to_string(),
                format!("malformed compatibility level syntax: \"{bad}\"")
            );
        }
    }
}
