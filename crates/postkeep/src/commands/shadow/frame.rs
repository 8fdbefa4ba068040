//! Where lists of attributes end, in bytes that go by.

/// Longer lists are not looked at; no server takes them.
const MOST: usize = 8 << 20;

/// Cuts a stream of bytes into lists: names and values, each with a NUL behind it, and an empty name at the end.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    /// The end of what is known not to be the end.
    looked_at: usize,
    /// The next text is a name.
    name: bool,
    begun: bool,
}

/// A list is too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Frames {
    /// Adds bytes, and hands each list that is complete to `take`.
    pub(crate) fn add(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Vec<u8>),
    ) -> Result<(), TooLong> {
        self.bytes.extend_from_slice(bytes);
        if !self.begun {
            self.begun = true;
            self.name = true;
        }
        while let Some(length) = memchr::memchr(0, &self.bytes[self.looked_at..]) {
            let ends = self.name && length == 0;
            self.looked_at += length + 1;
            self.name = ends || !self.name;
            if ends {
                let rest = self.bytes.split_off(self.looked_at);
                take(std::mem::replace(&mut self.bytes, rest));
                self.looked_at = 0;
            }
        }
        if self.bytes.len() > MOST {
            return Err(TooLong);
        }
        Ok(())
    }
}

/// The value of an attribute of a list.
pub(crate) fn attribute<'a>(list: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let mut texts = list.split(|&byte| byte == 0);
    while let Some(name) = texts.next() {
        let value = texts.next()?;
        if name == wanted.as_bytes() {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LISTS: [&[u8]; 3] = [b"a\0b\0\0", b"request\0lookup\0key\0\0\0", b"\0"];

    #[test]
    fn lists_are_cut_wherever_reads_end() {
        let all = LISTS.concat();
        for size in 1..=all.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in all.chunks(size) {
                frames.add(piece, |list| found.push(list)).unwrap();
            }
            assert_eq!(found, LISTS, "{size}");
        }
    }

    #[test]
    fn attributes_are_found_by_name() {
        assert_eq!(attribute(LISTS[1], "request"), Some(&b"lookup"[..]));
        assert_eq!(attribute(LISTS[1], "key"), Some(&b""[..]));
        assert_eq!(attribute(LISTS[1], "lookup"), None);
    }

    #[test]
    fn nothing_grows_without_end() {
        let mut frames = Frames::default();
        let piece = vec![b'x'; 1 << 20];
        let ends = (0..10).any(|_| frames.add(&piece, |_| ()).is_err());
        assert!(ends);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost(bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200)) {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            frames.add(&bytes, |list| found.extend(list)).unwrap();
            found.extend(&frames.bytes);
            prop_assert_eq!(found, bytes);
        }
    }
}
