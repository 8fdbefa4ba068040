//! Sets of address ranges that are cut and joined: which addresses no rule has answered yet.
//!
//! A set is a search tree of ranges (a treap: a heap by random priorities), so that each operation takes a number
//! of steps that grows with the logarithm of the number of ranges. All sets live in one [`Arena`].

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// A set of ranges; it belongs to the arena that made it.
///
/// Not `Clone`: an operation that takes a set takes it apart.
#[derive(Debug)]
pub(super) struct Set(usize);

const NONE: usize = usize::MAX;

impl Set {
    /// The set of nothing.
    pub(super) const EMPTY: Self = Self(NONE);
}

#[derive(Debug)]
struct Range {
    first: u128,
    last: u128,
    /// Not below that of either child.
    priority: u64,
    left: usize,
    right: usize,
}

/// The ranges of all sets.
#[derive(Debug)]
pub(super) struct Arena {
    ranges: Vec<Range>,
    /// Places that are free again.
    vacant: Vec<usize>,
    random: u64,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self {
            ranges: Vec::new(),
            vacant: Vec::new(),
            // Unknown to whoever writes the table: with known priorities the tree could be made a list.
            random: RandomState::new().build_hasher().finish() | 1,
        }
    }

    /// The set of one range.
    pub(super) fn range(&mut self, first: u128, last: u128) -> Set {
        Set(self.add(first, last, NONE, NONE))
    }

    fn add(&mut self, first: u128, last: u128, left: usize, right: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let range = Range {
            first,
            last,
            priority: self.random,
            left,
            right,
        };
        if let Some(place) = self.vacant.pop() {
            self.ranges[place] = range;
            place
        } else {
            self.ranges.push(range);
            self.ranges.len() - 1
        }
    }

    /// Takes a set apart into what is before `first`, from there to `last`, and behind.
    pub(super) fn cut(&mut self, Set(set): Set, first: u128, last: u128) -> (Set, Set, Set) {
        let (before, rest) = self.split(set, first);
        let (inside, behind) = match last.checked_add(1) {
            Some(next) => self.split(rest, next),
            None => (rest, NONE),
        };
        (Set(before), Set(inside), Set(behind))
    }

    /// Joins sets, all of one before all of the other.
    pub(super) fn join(&mut self, Set(low): Set, Set(high): Set) -> Set {
        Set(self.merge(low, high))
    }

    /// Hands the ranges of a set to `each` and forgets them.
    pub(super) fn drain(&mut self, Set(set): Set, mut each: impl FnMut(u128, u128)) {
        let mut waiting = vec![set];
        while let Some(root) = waiting.pop() {
            if root != NONE {
                let range = &self.ranges[root];
                each(range.first, range.last);
                waiting.extend([range.left, range.right]);
                self.vacant.push(root);
            }
        }
    }

    /// Parts a tree into what is below `at` and the rest; a range across is cut.
    ///
    /// As deep as the tree is, which is a small multiple of the logarithm of its size.
    fn split(&mut self, root: usize, at: u128) -> (usize, usize) {
        if root == NONE {
            return (NONE, NONE);
        }
        let Range {
            first,
            last,
            left,
            right,
            ..
        } = self.ranges[root];
        if last < at {
            let (low, high) = self.split(right, at);
            self.ranges[root].right = low;
            (root, high)
        } else if first >= at {
            let (low, high) = self.split(left, at);
            self.ranges[root].left = high;
            (low, root)
        } else {
            let upper = self.add(at, last, NONE, NONE);
            self.ranges[root].last = at - 1;
            self.ranges[root].right = NONE;
            (root, self.merge(upper, right))
        }
    }

    fn merge(&mut self, low: usize, high: usize) -> usize {
        if low == NONE {
            return high;
        }
        if high == NONE {
            return low;
        }
        if self.ranges[low].priority >= self.ranges[high].priority {
            let right = self.ranges[low].right;
            self.ranges[low].right = self.merge(right, high);
            low
        } else {
            let left = self.ranges[high].left;
            self.ranges[high].left = self.merge(low, left);
            high
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn drained(arena: &mut Arena, set: Set) -> BTreeSet<u128> {
        let mut found = BTreeSet::new();
        arena.drain(set, |first, last| {
            for number in first..=last {
                assert!(found.insert(number));
            }
        });
        found
    }

    proptest! {
        #[test]
        fn sets_hold_what_was_not_taken(cuts in proptest::collection::vec((0_u128..200, 0_u128..60, any::<bool>()), 0..40)) {
            let mut arena = Arena::new();
            let mut set = arena.range(0, 255);
            let mut model: BTreeSet<u128> = (0..=255).collect();
            for (first, length, taken) in cuts {
                let last = first + length;
                let (low, inside, high) = arena.cut(set, first, last);
                if taken {
                    set = arena.join(low, high);
                    let wanted: BTreeSet<u128> = model.range(first..=last).copied().collect();
                    model.retain(|number| !wanted.contains(number));
                    prop_assert_eq!(drained(&mut arena, inside), wanted);
                } else {
                    let low = arena.join(low, inside);
                    set = arena.join(low, high);
                }
            }
            prop_assert_eq!(drained(&mut arena, set), model);
        }
    }

    #[test]
    fn the_last_address_has_none_behind_it() {
        let mut arena = Arena::new();
        let set = arena.range(0, u128::MAX);
        let (low, inside, high) = arena.cut(set, u128::MAX, u128::MAX);
        assert_eq!((low.0 == NONE, high.0 == NONE), (false, true));
        let mut found = Vec::new();
        arena.drain(inside, |first, last| found.push((first, last)));
        assert_eq!(found, [(u128::MAX, u128::MAX)]);
    }

    #[test]
    fn a_tree_of_many_ranges_is_not_deep() {
        let mut arena = Arena::new();
        let mut set = arena.range(0, 1_000_000);
        for number in 0..50_000 {
            let (low, inside, high) = arena.cut(set, number * 2, number * 2);
            arena.drain(inside, |_, _| {});
            set = arena.join(low, high);
        }
        let mut waiting = vec![(set.0, 1)];
        let mut deepest = 0;
        while let Some((root, depth)) = waiting.pop() {
            if root != NONE {
                deepest = deepest.max(depth);
                let range = &arena.ranges[root];
                waiting.extend([(range.left, depth + 1), (range.right, depth + 1)]);
            }
        }
        assert!(deepest < 100, "{deepest}");
    }
}
