//! Counts of what was done with a table, for metrics.
//!
//! A request costs one addition here, and one more with its time when it had to wait; no lock, and no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postkeep_wire::proxymap::{Operation, Status};

/// The operations that are counted, by place.
pub const OPERATIONS: [Operation; 4] = [
    Operation::Lookup,
    Operation::Update,
    Operation::Delete,
    Operation::Sequence,
];

/// The upper bounds, in milliseconds, of the intervals of [`Waits::counts`]; the last one has none.
pub const WAIT_BOUNDS: [u32; 7] = [1, 5, 20, 100, 500, 2000, 10_000];

/// Counts for one approved table name, over all its instances; written by all workers.
#[derive(Debug, Default)]
pub struct Counters {
    /// By operation and outcome.
    requests: [[AtomicU64; 4]; 4],
    waits: [AtomicU64; WAIT_BOUNDS.len() + 1],
    /// Microseconds.
    waited: AtomicU64,
    reloads: AtomicU64,
}

/// How requests of one kind ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Found, or done.
    pub done: u64,
    /// Not found, or nothing done.
    pub absent: u64,
    /// In status RETRY.
    pub retry: u64,
    /// In status CONFIG.
    pub config: u64,
}

impl Outcomes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.done + self.absent + self.retry + self.config
    }
}

/// How long requests took that were not answered at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// How many there were, by [`WAIT_BOUNDS`].
    pub counts: [u64; WAIT_BOUNDS.len() + 1],
    /// All together.
    pub sum: Duration,
}

/// The counts at one moment; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `lookup` requests that reached the table.
    pub lookups: u64,
    /// Lookups that found a value.
    pub found: u64,
    /// Lookups without a result.
    pub not_found: u64,
    /// `update` requests that reached the table.
    pub updates: u64,
    /// `delete` requests that reached the table.
    pub deletes: u64,
    /// `sequence` requests that reached the table.
    pub steps: u64,
    /// Requests of any kind that ended in status RETRY or CONFIG.
    pub errors: u64,
    /// Times that a changed table was opened anew.
    pub reloads: u64,
    /// How the requests ended, for each of [`OPERATIONS`].
    pub outcomes: [Outcomes; 4],
    /// How long those took that had to wait.
    pub waits: Waits,
}

impl Counters {
    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let outcomes = self.requests.each_ref().map(|of| Outcomes {
            done: read(&of[0]),
            absent: read(&of[1]),
            retry: read(&of[2]),
            config: read(&of[3]),
        });
        let [lookups, updates, deletes, steps] = outcomes.map(|of| of.total());
        Counts {
            lookups,
            found: outcomes[0].done,
            not_found: outcomes[0].absent,
            updates,
            deletes,
            steps,
            errors: outcomes.iter().map(|of| of.retry + of.config).sum(),
            reloads: read(&self.reloads),
            outcomes,
            waits: Waits {
                counts: self.waits.each_ref().map(read),
                sum: Duration::from_micros(read(&self.waited)),
            },
        }
    }

    pub(crate) fn count(&self, operation: Operation, status: Status) {
        let operation = match operation {
            Operation::Open => return,
            Operation::Lookup => 0,
            Operation::Update => 1,
            Operation::Delete => 2,
            Operation::Sequence => 3,
        };
        let outcome = match status {
            Status::Ok => 0,
            Status::NoKey => 1,
            Status::Retry => 2,
            // A table never gives the other two.
            Status::Config | Status::Bad | Status::Deny => 3,
        };
        self.requests[operation][outcome].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_wait(&self, time: Duration) {
        let interval = WAIT_BOUNDS
            .iter()
            .position(|&bound| time <= Duration::from_millis(bound.into()))
            .unwrap_or(WAIT_BOUNDS.len());
        self.waits[interval].fetch_add(1, Ordering::Relaxed);
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.waited.fetch_add(time, Ordering::Relaxed);
    }

    pub(crate) fn count_reload(&self) {
        self.reloads.fetch_add(1, Ordering::Relaxed);
    }
}

/// Requests that reached no table.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) unapproved: AtomicU64,
    pub(crate) read_only: AtomicU64,
    pub(crate) malformed: AtomicU64,
}

/// How many requests reached no table, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The table is not approved: DENY.
    pub unapproved: u64,
    /// An update or delete on the read-only service: DENY.
    pub read_only: u64,
    /// The request, or the name in it, is malformed: BAD.
    pub malformed: u64,
}

impl Refusals {
    pub(crate) fn count(refusals: &AtomicU64) {
        refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Refused {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Refused {
            unapproved: read(&self.unapproved),
            read_only: read(&self.read_only),
            malformed: read(&self.malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_counts_once() {
        let counters = Counters::default();
        counters.count(Operation::Open, Status::Ok);
        counters.count(Operation::Lookup, Status::Ok);
        counters.count(Operation::Lookup, Status::NoKey);
        counters.count(Operation::Lookup, Status::Retry);
        counters.count(Operation::Sequence, Status::Config);
        let counts = counters.counts();
        assert_eq!((counts.lookups, counts.found, counts.not_found), (3, 1, 1));
        assert_eq!((counts.steps, counts.errors), (1, 2));
        assert_eq!(counts.outcomes[3].config, 1);
    }

    #[test]
    fn waits_are_counted_by_length() {
        let counters = Counters::default();
        for milliseconds in [0, 1, 2, 10_000, 10_001] {
            counters.count_wait(Duration::from_millis(milliseconds));
        }
        let waits = counters.counts().waits;
        assert_eq!(waits.counts, [2, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(waits.sum, Duration::from_millis(20_004));
    }
}
