//! Counters that cost one addition where they are counted, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The client closed it.
    Peer,
    /// It broke, or sent what no client sends.
    Broken,
    /// The client did not finish a request, or a handover, in time.
    ReadLimit,
    /// The client did not take a reply in time.
    WriteLimit,
    /// The service wanted it.
    Service,
    /// The service panicked.
    Panic,
    /// It made room for others.
    Shed,
    /// The process ends.
    Leaving,
}

/// Counters of one process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    accept_failures: AtomicU64,
    turns: AtomicU64,
    closed: [AtomicU64; 8],
}

/// What has been counted since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Connections now open, handovers of the `pass` transport included.
    pub clients: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Failed accepts, but not those where another process was faster.
    pub accept_failures: u64,
    /// Turns given to clients because something came from them.
    pub turns: u64,
    /// Closed by the client.
    pub closed_by_peer: u64,
    /// Closed because the connection broke, or the client sent too many descriptors.
    pub closed_broken: u64,
    /// Closed because a request was not completed in time.
    pub closed_read_limit: u64,
    /// Closed because a reply was not taken in time.
    pub closed_write_limit: u64,
    /// Closed by the service.
    pub closed_by_service: u64,
    /// Closed because the service panicked.
    pub closed_by_panic: u64,
    /// Closed to make room: there were too many clients, no descriptors left, or too much in buffers.
    pub closed_shed: u64,
    /// Closed because the process ends.
    pub closed_leaving: u64,
}

impl Counters {
    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn accept_failed(&self) {
        self.accept_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self, cause: Cause) {
        self.closed[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, clients: usize) -> Statistics {
        let closed = |cause: Cause| self.closed[cause as usize].load(Ordering::Relaxed);
        Statistics {
            clients: clients as u64,
            accepted: self.accepted.load(Ordering::Relaxed),
            accept_failures: self.accept_failures.load(Ordering::Relaxed),
            turns: self.turns.load(Ordering::Relaxed),
            closed_by_peer: closed(Cause::Peer),
            closed_broken: closed(Cause::Broken),
            closed_read_limit: closed(Cause::ReadLimit),
            closed_write_limit: closed(Cause::WriteLimit),
            closed_by_service: closed(Cause::Service),
            closed_by_panic: closed(Cause::Panic),
            closed_shed: closed(Cause::Shed),
            closed_leaving: closed(Cause::Leaving),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_own_counter() {
        let counters = Counters::default();
        counters.accepted();
        counters.closed(Cause::Peer);
        counters.closed(Cause::Leaving);
        counters.closed(Cause::Leaving);
        let statistics = counters.read(3);
        assert_eq!((statistics.clients, statistics.accepted), (3, 1));
        assert_eq!(
            (statistics.closed_by_peer, statistics.closed_leaving),
            (1, 2)
        );
        assert_eq!(statistics.closed_shed, 0);
    }
}
