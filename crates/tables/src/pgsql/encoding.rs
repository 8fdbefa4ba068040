//! Client encodings, as far as quoting needs them, and quoting.
//!
//! References: PostgreSQL `src/common/wchar.c`; libpq's `PQescapeStringConn()`.

/// How the bytes of a character go together in a client encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// One byte each.
    Single,
    Utf8,
    /// Two bytes or more, the first of which is not ASCII, and neither are the others.
    Euc(Euc),
    /// Two bytes, the first of which is not ASCII.
    Double,
    /// The same, with characters of one byte that is not ASCII.
    ShiftJis,
    /// Two bytes or four.
    Gb18030,
    /// One that we do not know: only ASCII can be told apart.
    Unknown,
}

/// What the bytes 0x8e and 0x8f begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Euc {
    /// Two and three bytes.
    Japanese,
    /// Four and two bytes.
    Taiwanese,
    /// Nothing of their own.
    Plain,
}

/// A text that is none in the client encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadText {
    #[error("incomplete multibyte character\n")]
    Incomplete,
    #[error("invalid multibyte character\n")]
    Invalid,
}

impl Encoding {
    /// By the name that the server reports.
    pub(super) fn named(name: &[u8]) -> Self {
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        match name.as_str() {
            "UTF8" | "UNICODE" => Self::Utf8,
            "EUC_JP" | "EUC_JIS_2004" => Self::Euc(Euc::Japanese),
            "EUC_TW" => Self::Euc(Euc::Taiwanese),
            "EUC_CN" | "EUC_KR" => Self::Euc(Euc::Plain),
            "JOHAB" | "BIG5" | "GBK" | "UHC" => Self::Double,
            "SJIS" | "SHIFT_JIS_2004" => Self::ShiftJis,
            "GB18030" => Self::Gb18030,
            "SQL_ASCII" => Self::Single,
            _ => {
                let single = ["LATIN", "WIN", "KOI8", "ISO_8859_"];
                if single.iter().any(|prefix| name.starts_with(prefix)) {
                    Self::Single
                } else {
                    Self::Unknown
                }
            }
        }
    }

    /// The bytes of the first character, which is not ASCII.
    fn first(self, text: &[u8]) -> Result<usize, BadText> {
        let byte = |at: usize| text.get(at).copied().ok_or(BadText::Incomplete);
        let length = match self {
            Self::Single => 1,
            Self::Unknown => return Err(BadText::Invalid),
            Self::Utf8 => match text[0] {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => return Err(BadText::Invalid),
            },
            Self::Euc(kind) => match (kind, text[0]) {
                (Euc::Japanese, 0x8f) => 3,
                (Euc::Taiwanese, 0x8e) => 4,
                _ => 2,
            },
            Self::ShiftJis if (0xa1..=0xdf).contains(&text[0]) => 1,
            Self::Gb18030 if byte(1)?.is_ascii_digit() => 4,
            Self::Double | Self::ShiftJis | Self::Gb18030 => 2,
        };
        byte(length - 1)?;
        let rest = &text[1..length];
        let good = match self {
            Self::Utf8 => std::str::from_utf8(&text[..length]).is_ok(),
            Self::Euc(_) => rest.iter().all(|byte| !byte.is_ascii()),
            // No encoding has quotes there; backslashes are part of the character.
            _ => rest.iter().all(|&byte| byte >= b'0'),
        };
        if good {
            Ok(length)
        } else {
            Err(BadText::Invalid)
        }
    }

    /// How many characters begin at the front of `text`: the bytes of the first one, whatever it is.
    pub(super) fn step(self, text: &[u8]) -> usize {
        match text {
            [] => 0,
            [byte, ..] if byte.is_ascii() => 1,
            text => self.first(text).unwrap_or(1),
        }
    }

    /// Appends a text so that it can stand between single quotes.
    ///
    /// - `standard_strings`: a backslash between single quotes is a backslash
    pub(super) fn quote(
        self,
        text: &[u8],
        standard_strings: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BadText> {
        let mut rest = text;
        while let Some(&byte) = rest.first() {
            let length = match byte {
                0 => return Err(BadText::Invalid),
                b'\'' => {
                    out.push(b'\'');
                    1
                }
                b'\\' if !standard_strings => {
                    out.push(b'\\');
                    1
                }
                byte if byte.is_ascii() => 1,
                _ => self.first(rest)?,
            };
            let (character, after) = rest.split_at(length);
            out.extend_from_slice(character);
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(encoding: &str, standard: bool, text: &[u8]) -> Result<Vec<u8>, BadText> {
        let mut out = Vec::new();
        Encoding::named(encoding.as_bytes()).quote(text, standard, &mut out)?;
        Ok(out)
    }

    #[test]
    fn quotes_are_doubled_and_backslashes_where_they_escape() {
        for encoding in ["UTF8", "LATIN1", "SJIS", "nobody's"] {
            assert_eq!(
                quoted(encoding, true, br#"a'b\c"%_"#).unwrap(),
                br#"a''b\c"%_"#
            );
            assert_eq!(quoted(encoding, false, br"'\").unwrap(), br"''\\");
        }
    }

    #[test]
    fn half_a_character_does_not_take_the_quote_with_it() {
        assert_eq!(quoted("UTF8", true, b"\xc3"), Err(BadText::Incomplete));
        for bad in [
            &b"\xc3'"[..],
            b"\xe2\x82'",
            b"\xc0\xa7",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xff",
        ] {
            assert_eq!(quoted("UTF8", true, bad), Err(BadText::Invalid), "{bad:x?}");
        }
        for encoding in ["SJIS", "BIG5", "GBK", "UHC", "JOHAB", "GB18030", "EUC_JP"] {
            let bad = quoted(encoding, true, b"\xe0'; --");
            assert_eq!(bad, Err(BadText::Invalid), "{encoding}");
            let half = quoted(encoding, true, b"\xe0");
            assert_eq!(half, Err(BadText::Incomplete), "{encoding}");
        }
        assert_eq!(
            quoted("MULE_INTERNAL", true, b"\xe0a"),
            Err(BadText::Invalid)
        );
        assert_eq!(quoted("LATIN1", true, b"\xe0'").unwrap(), b"\xe0''");
    }

    #[test]
    fn a_backslash_within_a_character_is_no_backslash() {
        assert_eq!(
            quoted("SJIS", false, b"\x83\x5c\\").unwrap(),
            b"\x83\x5c\\\\"
        );
        assert_eq!(quoted("SJIS", false, b"\xb1\\").unwrap(), b"\xb1\\\\");
        assert_eq!(
            quoted("GB18030", false, b"\x81\x30\x81\x30'").unwrap(),
            b"\x81\x30\x81\x30''"
        );
    }
}
