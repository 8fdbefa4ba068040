//! How many clients each user, and each machine, has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Users and machines that are remembered before those without clients are forgotten.
const REMEMBERED: usize = 64;

/// Whose client it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// A user of this machine, by number.
    User(u32),
    /// Another machine: its address, or the /64 network that it is in.
    Address(IpAddr),
}

impl Whose {
    /// The machine of that address. One machine can have all addresses of a /64 network, so those are one.
    pub(crate) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The clients of all users and machines, counted by whoever accepts them.
#[derive(Debug)]
pub(crate) struct Census {
    known: HashMap<Whose, Arc<AtomicUsize>>,
    /// When there are so many, those without clients are forgotten.
    most: usize,
}

impl Default for Census {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            most: REMEMBERED,
        }
    }
}

/// One client in the count of its user or machine; out of it when dropped, on any thread.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Census {
    /// Counts one more client; `None` when there are `limit` already.
    pub(crate) fn count(&mut self, whose: Whose, limit: usize) -> Option<Counted> {
        if self.known.len() >= self.most && !self.known.contains_key(&whose) {
            // Whoever holds a client holds its count.
            self.known.retain(|_, count| Arc::strong_count(count) > 1);
            // Where all of many have clients, looking at all of them each time would be too much.
            self.most = REMEMBERED.max(2 * self.known.len());
        }
        let count = self.known.entry(whose).or_default();
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
        let first = census.count(Whose::User(7), 2);
        let second = census.count(Whose::User(7), 2);
        assert!(first.is_some() && second.is_some());
        assert!(census.count(Whose::User(7), 2).is_none());
        assert!(census.count(Whose::User(8), 2).is_some());
        drop(first);
        assert!(census.count(Whose::User(7), 2).is_some());
    }

    #[test]
    fn users_without_clients_are_forgotten() {
        let mut census = Census::default();
        let kept = census.count(Whose::User(0), 1);
        for user in 1..10_000 {
            assert!(census.count(Whose::User(user), 1).is_some());
        }
        assert!(census.known.len() <= REMEMBERED);
        assert!(census.count(Whose::User(0), 1).is_none());
        drop(kept);
        assert!(census.count(Whose::User(0), 1).is_some());
    }

    #[test]
    fn addresses_of_one_machine_are_one() {
        let at = |text: &str| Whose::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn many_with_clients_are_kept() {
        let mut census = Census::default();
        let all: Vec<_> = (0..1000)
            .map(|user| census.count(Whose::User(user), 1))
            .collect();
        assert!(all.iter().all(Option::is_some));
        assert!((0..1000).all(|user| census.count(Whose::User(user), 1).is_none()));
    }
}
