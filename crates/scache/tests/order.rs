//! What the order of sessions is worth: simulated clients and a server that gives up idle connections.

use std::collections::BTreeMap;
use std::time::Duration;

use postkeep_scache::{Cache, Death, Order, Rules};

/// What came of one simulation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    hits: u64,
    misses: u64,
    /// Sessions that the server gave up before anybody took them.
    given_up: u64,
    /// Time that sessions spent idle in the cache, in milliseconds.
    idle: u64,
    /// Sessions in the cache when a delivery began, in all.
    held: u64,
    /// Longest time that a session had been idle when it was found.
    longest: u64,
}

/// Deliveries come at random moments and take a while; the session is saved after each. All times are
/// milliseconds.
///
/// - `between`: mean time between two deliveries
/// - `patience`: time after which the server gives up an idle connection
fn simulate(order: Order, between: u64, patience: u64) -> Outcome {
    const DELIVERY: u64 = 300;
    const TTL: u64 = 2000;
    const DELIVERIES: usize = 20_000;
    let mut cache: Cache<u64> = Cache::new(Rules {
        order,
        ..Rules::default()
    });
    let mut outcome = Outcome::default();
    let mut random = 1_u64;
    let mut next = move |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    // The end of a delivery, by its time.
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let mut now = 0;
    for _ in 0..DELIVERIES {
        now += next(2 * between);
        while let Some((&end, &count)) = ends.first_key_value()
            && end <= now
        {
            ends.remove(&end);
            for _ in 0..count {
                let saved = cache.save_endpoint(
                    Duration::from_millis(end),
                    Duration::from_millis(TTL),
                    b"e",
                    b"",
                    end,
                );
                saved.expect("there is no limit");
            }
        }
        outcome.held += cache.sessions() as u64;
        let mut given_up = 0;
        let found = cache.find_endpoint(Duration::from_millis(now), b"e", &mut |&since| {
            let gone = now - since >= patience;
            given_up += u64::from(gone);
            gone.then_some(Death::Closed)
        });
        outcome.given_up += given_up;
        match found {
            Some(found) => {
                outcome.hits += 1;
                outcome.idle += now - found.handle;
                outcome.longest = outcome.longest.max(now - found.handle);
            }
            None => outcome.misses += 1,
        }
        *ends.entry(now + DELIVERY / 2 + next(DELIVERY)).or_default() += 1;
    }
    outcome
}

#[test]
fn in_turn_all_stay_fresh_and_more_are_found() {
    for (between, patience) in [
        (5, 1000),
        (50, 1000),
        (200, 1000),
        (600, 1000),
        (50, 200),
        (200, 300),
    ] {
        let oldest = simulate(Order::OldestFirst, between, patience);
        let newest = simulate(Order::NewestFirst, between, patience);
        println!(
            "a delivery each {between} ms, the server waits {patience} ms:\n  oldest {oldest:?}\n  newest {newest:?}"
        );
        // Sessions that are used in turn are idle for less than the server's patience; of those that are only
        // used in a rush, the server gives up all.
        assert!(oldest.hits >= newest.hits, "{between} {patience}");
        // The price: more sessions are held, and those found have rested for longer.
        assert!(newest.idle <= oldest.idle, "{between} {patience}");
    }
}
