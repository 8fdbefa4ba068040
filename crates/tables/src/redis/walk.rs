//! Walks through all entries: where each one is, and who may clean up.
//!
//! A store gives its keys in pieces, in no order, and perhaps more than once. What a walk has to remember is too much for a
//! client's cursor, so the table keeps it, and the cursor has its number.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::server::Node;

/// How many walks a table has at most; the one that has rested longest makes room.
const WALKS: usize = 4;

/// How many keys a walk remembers, so that none comes twice.
const SEEN: usize = 1 << 20;

/// One walk.
pub(super) struct Walk {
    /// Nodes that are still to be asked, the current one last.
    pub nodes: Vec<Option<Node>>,
    /// Where the current node stands; its own word.
    pub position: Vec<u8>,
    /// Stored keys that are still to be handed out.
    pub pending: VecDeque<Vec<u8>>,
    /// When the lease was last renewed; `None` without one.
    pub leased: Option<Instant>,
    /// Of the keys that have been handed out.
    seen: HashSet<u64>,
    hasher: RandomState,
}

/// The position at which a node begins, and the one that it ends with.
pub(super) const START: &[u8] = b"0";

impl Walk {
    pub(super) fn new(nodes: Vec<Option<Node>>, leased: bool) -> Self {
        Self {
            nodes,
            position: START.to_vec(),
            pending: VecDeque::new(),
            leased: leased.then(Instant::now),
            seen: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Is this key a new one? Beyond a million keys nobody knows, and it is.
    pub(super) fn is_new(&mut self, key: &[u8]) -> bool {
        let hash = self.hasher.hash_one(key);
        if self.seen.len() >= SEEN {
            return !self.seen.contains(&hash);
        }
        self.seen.insert(hash)
    }
}

/// The walks of a table.
#[derive(Default)]
pub(super) struct Walks {
    resting: VecDeque<(u64, Walk)>,
}

/// A number for a new walk; never zero, and never one of another table: a cursor may outlive its own.
pub(super) fn number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Walks {
    pub(super) fn take(&mut self, number: u64) -> Option<Walk> {
        let place = self
            .resting
            .iter()
            .position(|(other, _)| *other == number)?;
        self.resting.remove(place).map(|(_, walk)| walk)
    }

    pub(super) fn put(&mut self, number: u64, walk: Walk) {
        if self.resting.len() >= WALKS {
            self.resting.pop_front();
        }
        self.resting.push_back((number, walk));
    }
}

/// A word that nobody else has, in all processes of all machines: who holds the lease. An operator can read from it the
/// process and when its table was opened.
pub(super) fn owner() -> String {
    static RANDOM: OnceLock<RandomState> = OnceLock::new();
    let count = number();
    let random = RANDOM.get_or_init(RandomState::new);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    format!(
        "{}.{}.{:016x}{:016x}",
        std::process::id(),
        now.as_secs(),
        random.hash_one((count, now)),
        random.hash_one((now, count, 1))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_are_few_and_the_oldest_goes() {
        let mut walks = Walks::default();
        let numbers: Vec<_> = (0..20).map(|_| number()).collect();
        for &number in &numbers {
            walks.put(number, Walk::new(vec![None], false));
        }
        assert!(walks.take(numbers[15]).is_none());
        assert!(walks.take(numbers[16]).is_some());
        assert!(walks.take(numbers[16]).is_none());
        assert!(walks.take(numbers[19]).is_some());
        assert_ne!(numbers[0], 0);
    }

    #[test]
    fn keys_are_new_once() {
        let mut walk = Walk::new(vec![None], true);
        assert!(walk.is_new(b"a"));
        assert!(walk.is_new(b"b"));
        assert!(!walk.is_new(b"a"));
        assert!(walk.leased.is_some());
    }

    #[test]
    fn owners_differ() {
        let owners: HashSet<_> = (0..1000).map(|_| owner()).collect();
        assert_eq!(owners.len(), 1000);
    }
}
