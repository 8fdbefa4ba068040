//! How many clients each user has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Users that are remembered before those without clients are forgotten.
const REMEMBERED: usize = 64;

/// The clients of all users, counted by whoever accepts them.
#[derive(Debug, Default)]
pub(crate) struct Census {
    users: HashMap<u32, Arc<AtomicUsize>>,
}

/// One client in the count of its user; out of it when dropped, on any thread.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Census {
    /// Counts one more client of a user; `None` when the user has `limit` clients already.
    pub(crate) fn count(&mut self, user: u32, limit: usize) -> Option<Counted> {
        if self.users.len() >= REMEMBERED && !self.users.contains_key(&user) {
            // Whoever holds a client holds its count.
            self.users.retain(|_, count| Arc::strong_count(count) > 1);
        }
        let count = self.users.entry(user).or_default();
        if count.load(Ordering::Relaxed) >= limit {
            return None;
        }
        count.fetch_add(1, Ordering::Relaxed);
        Some(Counted(Arc::clone(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_limit_of_its_own() {
        let mut census = Census::default();
        let first = census.count(7, 2);
        let second = census.count(7, 2);
        assert!(first.is_some() && second.is_some());
        assert!(census.count(7, 2).is_none());
        assert!(census.count(8, 2).is_some());
        drop(first);
        assert!(census.count(7, 2).is_some());
    }

    #[test]
    fn users_without_clients_are_forgotten() {
        let mut census = Census::default();
        let kept = census.count(0, 1);
        for user in 1..10_000 {
            assert!(census.count(user, 1).is_some());
        }
        assert!(census.users.len() <= REMEMBERED);
        assert!(census.count(0, 1).is_none());
        drop(kept);
        assert!(census.count(0, 1).is_some());
    }
}
