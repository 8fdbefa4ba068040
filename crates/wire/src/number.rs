//! Numbers in attribute values, by the rule of the receivers in Postfix: C `sscanf` with `%lu%c` must convert
//! exactly one item and leave nothing.

/// Parses an unsigned decimal number.
///
/// - leading white space (space, TAB, LF, VT, FF, CR) and one `+` or `-` are accepted;
/// - a negative number is taken modulo 2^64, as C does;
/// - a number of 2^64 or more, with either sign, becomes 2^64 - 1;
/// - no digits, or anything after the digits: `None`.
///
/// # References
/// Postfix `src/util/attr_scan0.c`; `sscanf(3)`, `strtoul(3)`.
pub fn parse(text: &[u8]) -> Option<u64> {
    let blanks = text
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r'))
        .count();
    let text = &text[blanks..];
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().try_fold(0u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    Some(match number {
        None => u64::MAX,
        Some(number) if negative => number.wrapping_neg(),
        Some(number) => number,
    })
}

/// The value of an `int` attribute: the low 32 bits, with a sign.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference takes the low 32 bits"
)]
pub fn low_int(number: u64) -> i32 {
    (number as u32).cast_signed()
}

/// The value of an `int` attribute that is a set of bits: the low 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference takes the low 32 bits"
)]
pub fn low_bits(number: u64) -> u32 {
    number as u32
}

/// Writes a number in decimal to the end of `room`.
pub(crate) fn digits(room: &mut [u8; 20], number: u64) -> &[u8] {
    let mut at = room.len();
    let mut rest = number;
    loop {
        at -= 1;
        // The remainder of a division by ten fits in a byte.
        room[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            return &room[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_signs() {
        assert_eq!(parse(b" +1"), Some(1));
        assert_eq!(parse(b"\t\n\x0b\x0c\r 7"), Some(7));
        assert_eq!(parse(b"012"), Some(12));
        assert_eq!(parse(b"-5").map(low_int), Some(-5));
        assert_eq!(parse(b"-0"), Some(0));
    }

    #[test]
    fn residue_is_malformed() {
        for text in [
            "", " ", "+", "-", "12 ", "0x10", "1\u{1}", "- 7", "+-1", "--1", "abc", "1,2",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn overflow_saturates_then_the_low_bits_count() {
        assert_eq!(parse(b"4294967297").map(low_int), Some(1));
        assert_eq!(parse(b"4294967296").map(low_int), Some(0));
        assert_eq!(parse(b"2147483648").map(low_int), Some(i32::MIN));
        assert_eq!(parse(b"99999999999999999999999").map(low_int), Some(-1));
        assert_eq!(parse(b"-99999999999999999999999"), Some(u64::MAX));
        assert_eq!(parse(b"-4294967297").map(low_int), Some(-1));
        assert_eq!(parse(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse(b"18446744073709551616"), Some(u64::MAX));
    }

    #[test]
    fn digits_are_decimal() {
        for number in [0, 9, 10, 4711, u64::MAX] {
            assert_eq!(
                digits(&mut [0; 20], number),
                number.to_string().into_bytes()
            );
        }
    }
}
