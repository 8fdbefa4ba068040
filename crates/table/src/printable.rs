//! Bytes as they appear in log lines and reasons.

use std::fmt;

/// Displays bytes: valid UTF-8 as it is, every other byte as `?`.
///
/// Control characters are left to the logger, which shows them as `?` too (Postfix `src/util/printable.c`).
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            for _ in chunk.invalid() {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_invalid_byte_is_one_mark() {
        assert_eq!(Printable(b"a\xe2\x82b\xff").to_string(), "a??b?");
    }
}
