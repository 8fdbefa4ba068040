//! The part of BER that LDAP messages are made of: tags of one byte, lengths that are given.
//!
//! # References
//! RFC 4511, section 5.1; X.690.

/// Tags of all messages.
pub(super) mod tag {
    pub(in crate::ldap) const BOOLEAN: u8 = 0x01;
    pub(in crate::ldap) const INTEGER: u8 = 0x02;
    pub(in crate::ldap) const OCTETS: u8 = 0x04;
    pub(in crate::ldap) const ENUMERATED: u8 = 0x0a;
    pub(in crate::ldap) const SEQUENCE: u8 = 0x30;
    pub(in crate::ldap) const SET: u8 = 0x31;

    /// A tag of the context.
    pub(in crate::ldap) const fn context(number: u8) -> u8 {
        0x80 | number
    }

    /// The same with other elements inside.
    pub(in crate::ldap) const fn holding(number: u8) -> u8 {
        0xa0 | number
    }
}

/// What came is no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Decoding error")]
pub struct Malformed;

/// Appends an element.
pub(super) fn put(out: &mut Vec<u8>, tag: u8, contents: &[u8]) {
    out.push(tag);
    let length = contents.len().to_be_bytes();
    let zeros = length.iter().take_while(|&&byte| byte == 0).count();
    let length = &length[zeros..];
    match length {
        [] => out.push(0),
        [short @ ..=0x7f] => out.push(*short),
        // A length has eight bytes at most.
        long => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(8));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(contents);
}

/// Appends a number.
pub(super) fn put_number(out: &mut Vec<u8>, tag: u8, number: i32) {
    let bytes = number.to_be_bytes();
    // A byte is not needed that only repeats the sign of the next one.
    let spare = bytes
        .windows(2)
        .take_while(|pair| matches!(pair, [0, ..=0x7f] | [0xff, 0x80..=0xff]))
        .count();
    put(out, tag, &bytes[spare..]);
}

/// Appends an element that holds what `fill` appends.
pub(super) fn put_with(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, tag, &inner);
}

/// Elements, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The tag of the next element; `None` at the end.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element: tag and contents.
    pub(super) fn next(&mut self) -> Result<(u8, &'a [u8]), Malformed> {
        let (head, length) = frame(self.0)?.ok_or(Malformed)?;
        let tag = self.0[0];
        let rest = &self.0[head..];
        let contents = rest.get(..length).ok_or(Malformed)?;
        self.0 = &rest[length..];
        Ok((tag, contents))
    }

    /// The contents of the next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        match self.next()? {
            (found, contents) if found == tag => Ok(contents),
            _ => Err(Malformed),
        }
    }

    /// The next element, which must be a number of at most 32 bits.
    pub(super) fn number(&mut self, tag: u8) -> Result<i32, Malformed> {
        let bytes = self.expect(tag)?;
        let first = *bytes.first().ok_or(Malformed)?;
        let start = if first < 0x80 { 0 } else { -1 };
        let number = bytes
            .iter()
            .try_fold(start, |number: i64, &byte| {
                Some(number.checked_mul(256)? | i64::from(byte))
            })
            .ok_or(Malformed)?;
        i32::try_from(number).map_err(|_| Malformed)
    }
}

/// The lengths of an element's head and of its contents; `None` when more bytes are needed to tell.
pub(super) fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    match *bytes {
        [tag, ..] if tag & 0x1f == 0x1f => Err(Malformed),
        [_, length @ ..=0x7f, ..] => Ok(Some((2, usize::from(length)))),
        [_, count @ 0x81..=0x84, ref rest @ ..] => {
            let count = usize::from(count & 0x7f);
            let Some(digits) = rest.get(..count) else {
                return Ok(None);
            };
            let length = digits
                .iter()
                .fold(0, |length, &byte| length << 8 | usize::from(byte));
            Ok(Some((2 + count, length)))
        }
        [_, _, ..] => Err(Malformed),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_and_numbers() {
        let written = |number| {
            let mut out = Vec::new();
            put_number(&mut out, tag::INTEGER, number);
            out
        };
        assert_eq!(written(0), [2, 1, 0]);
        assert_eq!(written(127), [2, 1, 127]);
        assert_eq!(written(128), [2, 2, 0, 128]);
        assert_eq!(written(-1), [2, 1, 0xff]);
        assert_eq!(written(-129), [2, 2, 0xff, 0x7f]);
        assert_eq!(written(i32::MAX), [2, 4, 0x7f, 0xff, 0xff, 0xff]);
        let mut out = Vec::new();
        put(&mut out, tag::OCTETS, &[b'x'; 300]);
        assert_eq!(&out[..4], [4, 0x82, 1, 44]);
        assert_eq!(Reader(&out).expect(tag::OCTETS).unwrap().len(), 300);
        let mut out = Vec::new();
        put(&mut out, tag::OCTETS, &[b'x'; 128]);
        assert_eq!(&out[..3], [4, 0x81, 128]);
    }

    #[test]
    fn what_is_no_element() {
        for bytes in [
            &[0x1f, 1, 0][..],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x30, 2, 0],
            &[0x30],
            &[],
        ] {
            assert_eq!(Reader(bytes).next(), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(Reader(&[2, 0]).number(2), Err(Malformed));
        assert_eq!(Reader(&[2, 5, 1, 0, 0, 0, 0]).number(2), Err(Malformed));
        assert_eq!(
            Reader(&[2, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]).number(2),
            Err(Malformed)
        );
        assert_eq!(frame(&[0x30, 0x82, 1]), Ok(None));
        assert_eq!(
            frame(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
            Ok(Some((6, 0xffff_ffff)))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: i32, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_with(&mut out, tag::SEQUENCE, |out| {
                put_number(out, tag::INTEGER, number);
                put(out, tag::OCTETS, &bytes);
            });
            let mut outer = Reader(&out);
            let mut inner = Reader(outer.expect(tag::SEQUENCE).unwrap());
            prop_assert_eq!(outer.peek(), None);
            prop_assert_eq!(inner.number(tag::INTEGER).unwrap(), number);
            prop_assert_eq!(inner.expect(tag::OCTETS).unwrap(), &bytes[..]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let mut reader = Reader(&bytes);
            while reader.next().is_ok() {}
        }
    }
}
