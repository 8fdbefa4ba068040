//! Labels and what is known under them; each label is stored once, and everything else names it by number.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;

use crate::slab::Slab;

/// In this crate's own tests all labels have the same hash: only the comparison tells them apart.
#[cfg(not(test))]
type Hasher = std::collections::hash_map::RandomState;
#[cfg(test)]
type Hasher = std::hash::BuildHasherDefault<colliding::Zero>;

pub(crate) struct Labels<T> {
    /// Only numbers: the texts are with the records, so that each is there once.
    numbers: HashTable<u32>,
    hasher: Hasher,
    records: Slab<(Box<[u8]>, T)>,
}

impl<T: Default> Labels<T> {
    pub(crate) fn new() -> Self {
        Self {
            numbers: HashTable::new(),
            hasher: Hasher::default(),
            records: Slab::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn find(&self, label: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(label);
        self.numbers
            .find(hash, |&number| *self.records[number].0 == *label)
            .copied()
    }

    /// Bytes that [`Labels::intern`] would add.
    pub(crate) fn cost(&self, label: &[u8]) -> usize {
        self.find(label).map_or(label.len(), |_| 0)
    }

    pub(crate) fn text(&self, number: u32) -> &[u8] {
        &self.records[number].0
    }

    pub(crate) fn intern(&mut self, label: &[u8], bytes: &mut usize) -> u32 {
        if let Some(number) = self.find(label) {
            return number;
        }
        *bytes += label.len();
        let number = self.records.insert((label.into(), T::default()));
        let Self {
            numbers,
            hasher,
            records,
        } = self;
        numbers.insert_unique(hasher.hash_one(label), number, |&number| {
            hasher.hash_one(&*records[number].0)
        });
        number
    }

    pub(crate) fn forget(&mut self, number: u32, bytes: &mut usize) {
        let Some((label, _)) = self.records.remove(number) else {
            return;
        };
        *bytes -= label.len();
        let hash = self.hasher.hash_one(&*label);
        if let Ok(entry) = self.numbers.find_entry(hash, |&other| other == number) {
            entry.remove();
        }
        if self.numbers.is_empty() {
            self.numbers.shrink_to(64, |_| 0);
        }
    }
}

impl<T> std::ops::Index<u32> for Labels<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        &self.records[number].1
    }
}

impl<T> std::ops::IndexMut<u32> for Labels<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.records[number].1
    }
}

#[cfg(test)]
mod colliding {
    #[derive(Default)]
    pub(crate) struct Zero;

    impl std::hash::Hasher for Zero {
        fn finish(&self) -> u64 {
            0
        }

        fn write(&mut self, _: &[u8]) {}
    }
}
