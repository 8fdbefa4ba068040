//! Fixed strings in memory, for tables that are read once and then only asked.
//!
//! Keys and values lie one after the other in one allocation, with an open-addressed index beside them, so that a
//! table of a million short entries costs little more than its text.

use std::hash::{BuildHasher, RandomState};

/// Keys and values, in the order in which they came.
#[derive(Default)]
pub(crate) struct CompactMap {
    bytes: Vec<u8>,
    entries: Vec<Span>,
    /// Entry number plus one, or 0 for free; the length is a power of two and at least twice the entries.
    slots: Vec<u32>,
    hasher: RandomState,
}

#[derive(Clone, Copy)]
struct Span {
    start: usize,
    key: u32,
    value: u32,
}

/// The table is larger than can be addressed: 4 GiB for an entry, four thousand million entries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl CompactMap {
    /// The value of a key.
    pub fn find(&self, key: &[u8]) -> Option<&[u8]> {
        if self.slots.is_empty() {
            return None;
        }
        match self.slots[self.slot_of(key)] {
            0 => None,
            number => Some(self.entry(number as usize - 1).1),
        }
    }

    /// Adds or replaces an entry; a replaced one keeps its place.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), TooLarge> {
        let span = Span {
            start: self.bytes.len(),
            key: u32::try_from(key.len()).map_err(|_| TooLarge)?,
            value: u32::try_from(value.len()).map_err(|_| TooLarge)?,
        };
        if (self.entries.len() + 1) * 2 > self.slots.len() {
            self.grow()?;
        }
        let slot = self.slot_of(key);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        if self.slots[slot] == 0 {
            self.entries.push(span);
            self.slots[slot] = u32::try_from(self.entries.len()).map_err(|_| TooLarge)?;
        } else {
            self.entries[self.slots[slot] as usize - 1] = span;
        }
        Ok(())
    }

    /// Gives back what growing has reserved.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// The entry at a place in the order of arrival.
    pub fn nth(&self, place: u64) -> Option<(&[u8], &[u8])> {
        let place = usize::try_from(place).ok()?;
        (place < self.entries.len()).then(|| self.entry(place))
    }

    fn entry(&self, place: usize) -> (&[u8], &[u8]) {
        let span = self.entries[place];
        let middle = span.start + span.key as usize;
        (
            &self.bytes[span.start..middle],
            &self.bytes[middle..middle + span.value as usize],
        )
    }

    /// Where the key is, or the free slot where it would be.
    fn slot_of(&self, key: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "a hash may lose bits")]
        let mut slot = self.hasher.hash_one(key) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return slot,
                number if self.entry(number as usize - 1).0 == key => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn grow(&mut self) -> Result<(), TooLarge> {
        let length = (self.slots.len() * 2).max(8);
        if u32::try_from(length).is_err() {
            return Err(TooLarge);
        }
        self.slots.clear();
        self.slots.resize(length, 0);
        for place in 0..self.entries.len() {
            let slot = self.slot_of(self.entry(place).0);
            self.slots[slot] = u32::try_from(place + 1).map_err(|_| TooLarge)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(pairs in proptest::collection::vec((0_u8..40, any::<u16>()), 0..200)) {
            let mut model = HashMap::new();
            let mut map = CompactMap::default();
            for (key, value) in pairs {
                let (key, value) = (vec![b'k'; usize::from(key)], value.to_string().into_bytes());
                map.put(&key, &value).unwrap();
                model.insert(key, value);
            }
            for length in 0..41 {
                let key = vec![b'k'; length];
                prop_assert_eq!(map.find(&key), model.get(&key).map(Vec::as_slice));
            }
            let listed: HashMap<_, _> = (0..).map_while(|place| map.nth(place))
                .map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(listed, model);
        }
    }
}
