//! Numbered storage: a value keeps its number until it is removed, then the number is used again.
//!
//! The cache links its records by number instead of by pointer, which keeps them small.

/// Stands for "no number" in the links between records.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Slot<T> {
    Taken(T),
    /// Number of the next free slot, or [`NONE`].
    Free(u32),
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    taken: usize,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: NONE,
            taken: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    pub(crate) fn find(&self, number: u32) -> Option<&T> {
        match self.slots.get(number as usize) {
            Some(Slot::Taken(value)) => Some(value),
            Some(Slot::Free(_)) | None => None,
        }
    }

    pub(crate) fn find_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.slots.get_mut(number as usize) {
            Some(Slot::Taken(value)) => Some(value),
            Some(Slot::Free(_)) | None => None,
        }
    }

    /// Stores a value. The caller keeps the number of values below [`NONE`].
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.taken += 1;
        if self.free == NONE {
            let number = u32::try_from(self.slots.len()).unwrap_or(NONE);
            assert!(number != NONE, "more records than numbers");
            self.slots.push(Slot::Taken(value));
            return number;
        }
        let number = self.free;
        let slot = &mut self.slots[number as usize];
        if let Slot::Free(next) = *slot {
            self.free = next;
        }
        *slot = Slot::Taken(value);
        number
    }

    /// Removes a value. When the last one goes, the memory goes with it.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let slot = self.slots.get_mut(number as usize)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let Slot::Taken(value) = std::mem::replace(slot, Slot::Free(self.free)) else {
            return None;
        };
        self.free = number;
        self.taken -= 1;
        if self.taken == 0 {
            self.slots.clear();
            self.slots.shrink_to(64);
            self.free = NONE;
        }
        Some(value)
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        match &self.slots[number as usize] {
            Slot::Taken(value) => value,
            Slot::Free(_) => unreachable!("links lead to live records only"),
        }
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        match &mut self.slots[number as usize] {
            Slot::Taken(value) => value,
            Slot::Free(_) => unreachable!("links lead to live records only"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again() {
        let mut slab = Slab::new();
        let (a, b, c) = (slab.insert("a"), slab.insert("b"), slab.insert("c"));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.remove(c), Some("c"));
        assert_eq!((slab.insert("d"), slab.insert("e")), (c, a));
        assert_eq!((slab[a], slab[b], slab[c]), ("e", "b", "d"));
        assert_eq!(slab.len(), 3);
    }

    #[test]
    fn an_empty_slab_starts_over() {
        let mut slab = Slab::new();
        for _ in 0..3 {
            slab.insert(0);
        }
        for number in [1, 0, 2] {
            slab.remove(number);
        }
        assert_eq!((slab.insert(5), slab.insert(6)), (0, 1));
    }
}
