//! Counts of what was done with a table, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use postkeep_wire::proxymap::{Operation, Status};

/// Counts for one approved table name, over all its instances; written by all workers.
#[derive(Debug, Default)]
pub struct Counters {
    lookups: AtomicU64,
    found: AtomicU64,
    not_found: AtomicU64,
    updates: AtomicU64,
    deletes: AtomicU64,
    steps: AtomicU64,
    errors: AtomicU64,
    reloads: AtomicU64,
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
}

impl Counters {
    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            lookups: read(&self.lookups),
            found: read(&self.found),
            not_found: read(&self.not_found),
            updates: read(&self.updates),
            deletes: read(&self.deletes),
            steps: read(&self.steps),
            errors: read(&self.errors),
            reloads: read(&self.reloads),
        }
    }

    pub(crate) fn count(&self, operation: Operation, status: Status) {
        let add = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        match operation {
            Operation::Open => return,
            Operation::Lookup => add(&self.lookups),
            Operation::Update => add(&self.updates),
            Operation::Delete => add(&self.deletes),
            Operation::Sequence => add(&self.steps),
        }
        match (status, operation) {
            (Status::Ok, Operation::Lookup) => add(&self.found),
            (Status::NoKey, Operation::Lookup) => add(&self.not_found),
            (Status::Retry | Status::Config, _) => add(&self.errors),
            _ => {}
        }
    }

    pub(crate) fn count_reload(&self) {
        self.reloads.fetch_add(1, Ordering::Relaxed);
    }
}
