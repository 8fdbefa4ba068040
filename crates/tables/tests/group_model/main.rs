//! The threads of a group commit in many orders: a model checker decides which one goes on at each lock. Whatever the
//! order, each gets the outcome of its own change, not before that is committed, nobody waits for ever, and what was
//! said to be made is made once.
//!
//! `POSTKEEP_ORDERS` in the environment is how many orders are tried; 2000 otherwise.
#![allow(
    clippy::unwrap_used,
    reason = "a failure ends the test, and poisoning is one"
)]

/// The model checker's locks, in the place of the system's.
mod sync {
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

#[path = "../../src/group/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "what goes to files is not part of the model"
)]
mod group;

use group::{Group, Store};
use shuttle::thread;
use sync::{Arc, Mutex};

/// Changes from here on cannot be made.
const BAD: u32 = 1000;

/// Keeps numbers, one transaction at a time.
#[derive(Default)]
struct Numbers {
    at_work: Mutex<bool>,
    kept: Mutex<Vec<u32>>,
}

impl Store for Numbers {
    type Change = u32;
    type Error = u32;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c u32>) -> Result<Vec<bool>, u32> {
        // In files it is a lock that keeps others out; here two at a time are an error.
        assert!(!std::mem::replace(&mut *self.at_work.lock().unwrap(), true));
        thread::yield_now();
        let changes: Vec<u32> = changes().into_iter().copied().collect();
        thread::yield_now();
        let bad = changes.iter().find(|number| **number >= BAD);
        let result = if let Some(bad) = bad {
            Err(*bad)
        } else {
            self.kept.lock().unwrap().extend(&changes);
            Ok(changes.iter().map(|number| number % 2 == 1).collect())
        };
        *self.at_work.lock().unwrap() = false;
        result
    }
}

fn orders() -> usize {
    std::env::var("POSTKEEP_ORDERS")
        .ok()
        .and_then(|orders| orders.parse().ok())
        .unwrap_or(2000)
}

/// Threads that make these changes, one after the other each.
fn run(changes: &'static [&'static [u32]]) {
    shuttle::check_pct(move || go(changes), orders(), 3);
    shuttle::check_random(move || go(changes), orders());
}

fn go(changes: &'static [&'static [u32]]) {
    let store = Arc::new(Numbers::default());
    let group = Arc::new(Group::<u32, u32>::default());
    let threads: Vec<_> = changes
        .iter()
        .map(|own| {
            let (store, group) = (Arc::clone(&store), Arc::clone(&group));
            thread::spawn(move || {
                for &number in *own {
                    let told = group.commit(1, number, &*store);
                    let wanted = if number >= BAD {
                        Err(number)
                    } else {
                        Ok(number % 2 == 1)
                    };
                    assert_eq!(told, Some(wanted));
                    let is_there = store.kept.lock().unwrap().contains(&number);
                    assert_eq!(is_there, number < BAD, "{number} was acknowledged");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut kept = std::mem::take(&mut *store.kept.lock().unwrap());
    kept.sort_unstable();
    let mut wanted: Vec<u32> = changes
        .concat()
        .into_iter()
        .filter(|&number| number < BAD)
        .collect();
    wanted.sort_unstable();
    assert_eq!(kept, wanted);
}

#[test]
fn each_is_told_of_its_own_in_any_order() {
    run(&[&[1, 2], &[3, 4], &[5]]);
}

#[test]
fn changes_that_cannot_be_made_spoil_no_other_in_any_order() {
    run(&[&[1, BAD], &[BAD + 1, 2], &[3], &[4]]);
}
