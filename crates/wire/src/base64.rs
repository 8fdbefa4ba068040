//! Base64 as Postfix reads and writes it: the standard alphabet, padding required, no line breaks.
//!
//! # References
//! Postfix `src/util/base64_code.c`.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Marks a byte that is not in the alphabet.
const INVALID: u8 = 0xff;

const VALUES: [u8; 256] = values();

const fn values() -> [u8; 256] {
    let mut table = [INVALID; 256];
    let mut value = 0u8;
    while (value as usize) < ALPHABET.len() {
        table[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    table
}

/// The text is not base64: its length is no multiple of four, or a character is not in the alphabet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed base64 data")]
pub struct Malformed;

/// Appends `data` in base64.
pub fn encode(data: &[u8], out: &mut Vec<u8>) {
    for group in data.chunks(3) {
        let second = group.get(1).copied().unwrap_or(0);
        let third = group.get(2).copied().unwrap_or(0);
        let indexes = [
            group[0] >> 2,
            (group[0] & 0x03) << 4 | second >> 4,
            (second & 0x0f) << 2 | third >> 6,
            third & 0x3f,
        ];
        for (position, index) in indexes.into_iter().enumerate() {
            out.push(if position > group.len() {
                b'='
            } else {
                ALPHABET[usize::from(index)]
            });
        }
    }
}

/// Appends what `text` stands for.
///
/// Decoding stops at the first `=` in the third or fourth place of a group; what follows it is not looked at, but
/// counts for the length.
///
/// # Errors
/// [`Malformed`]; `out` then ends in the groups before the bad one.
pub fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Malformed);
    }
    let value = |character: u8| match VALUES[usize::from(character)] {
        INVALID => Err(Malformed),
        value => Ok(value),
    };
    for group in groups {
        let (first, second) = (value(group[0])?, value(group[1])?);
        out.push(first << 2 | second >> 4);
        if group[2] == b'=' {
            return Ok(());
        }
        let third = value(group[2])?;
        out.push(second << 4 | third >> 2);
        if group[3] == b'=' {
            return Ok(());
        }
        let fourth = value(group[3])?;
        out.push(third << 6 | fourth);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        decode(text.as_bytes(), &mut out).map(|()| out)
    }

    fn encoded(data: &[u8]) -> String {
        let mut out = Vec::new();
        encode(data, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_texts() {
        for (data, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("whoopee", "d2hvb3BlZQ=="),
            ("{", "ew=="),
            ("}", "fQ=="),
        ] {
            assert_eq!(encoded(data.as_bytes()), text);
            assert_eq!(decoded(text).unwrap(), data.as_bytes());
        }
    }

    #[test]
    fn decoding_stops_at_the_first_pad() {
        assert_eq!(decoded("Zg=!").unwrap(), b"f");
        assert_eq!(decoded("Zm8=!!!!").unwrap(), b"fo");
        assert_eq!(decoded("Zg==Zg==").unwrap(), b"f");
    }

    #[test]
    fn bad_texts() {
        for text in [
            "Z", "Zg", "Zg=", "Z===", "=g==", "Zm9v\n", "Zm 9", "Z-_v", "Zm9!",
        ] {
            assert_eq!(decoded(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn all_bytes_round_trip() {
        let data: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encoded(&data)).unwrap(), data);
    }
}
