//! What is counted, in each part for itself.

use std::sync::atomic::{AtomicU64, Ordering};

use postkeep_table::CacheCounts;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    refused: AtomicU64,
    coalesced: AtomicU64,
    refreshes: AtomicU64,
    evictions: AtomicU64,
    failures: AtomicU64,
}

fn count(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn hit(&self) {
        count(&self.hits, 1);
    }

    pub(crate) fn miss(&self) {
        count(&self.misses, 1);
    }

    pub(crate) fn stale(&self, number: usize) {
        count(&self.stale, number as u64);
    }

    pub(crate) fn refused(&self) {
        count(&self.refused, 1);
    }

    pub(crate) fn coalesced(&self) {
        count(&self.coalesced, 1);
    }

    pub(crate) fn refreshed(&self) {
        count(&self.refreshes, 1);
    }

    pub(crate) fn evicted(&self) {
        count(&self.evictions, 1);
    }

    pub(crate) fn failed(&self) {
        count(&self.failures, 1);
    }

    pub(crate) fn add_to(&self, counts: &mut CacheCounts) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        counts.hits += read(&self.hits);
        counts.misses += read(&self.misses);
        counts.stale += read(&self.stale);
        counts.refused += read(&self.refused);
        counts.coalesced += read(&self.coalesced);
        counts.refreshes += read(&self.refreshes);
        counts.evictions += read(&self.evictions);
        counts.failures += read(&self.failures);
    }
}
