//! Sessions that ended in the cache: why, and how many.

use std::sync::Arc;

/// A session that has ended, or was given up, and is not in the cache any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended<H> {
    /// The connection, to be closed where it holds up nobody.
    pub handle: H,
    /// Why.
    pub cause: Cause,
    /// What is to be said to the far end before, if it can be said without waiting. Nothing when the far end
    /// has ended the session, or does not expect to hear anything.
    pub goodbye: Option<Arc<[u8]>>,
}

/// Why a session ended without having been found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time was up.
    Expired,
    /// The other side ended it.
    Dead(Death),
    /// The cache was full, and this session would have expired soonest.
    Evicted,
    /// Its endpoint had as many sessions as it may, and this one would have expired soonest.
    EvictedFromEndpoint,
    /// The process ends.
    Shutdown,
}

impl Cause {
    /// Whether the far end still expects to hear from us.
    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, Self::Dead(_))
    }
}

/// How the other side ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It closed the connection, or its sending half.
    Closed,
    /// It said something that nobody asked for, such as that it is about to close.
    Unsolicited,
    /// The connection is broken.
    Broken,
}

/// Why a descriptor cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is no socket, or the socket is not, or not any more, connected.
    NotConnected,
    /// It is a client's end of a connection to the cache itself.
    OwnClient,
}

/// What happened to sessions since the cache was made.
///
/// `saved` is the sum of `found`, of `given`, of all causes of an end, and of the sessions in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Sessions saved.
    pub saved: u64,
    /// Sessions found, by endpoint or by destination.
    pub found: u64,
    /// Of those saved: taken over from another process.
    pub received: u64,
    /// Handed over to another process.
    pub given: u64,
    /// [`Cause::Expired`]
    pub expired: u64,
    /// [`Death::Closed`]
    pub closed: u64,
    /// [`Death::Unsolicited`]
    pub unsolicited: u64,
    /// [`Death::Broken`]
    pub broken: u64,
    /// [`Cause::Evicted`]
    pub evicted: u64,
    /// [`Cause::EvictedFromEndpoint`]
    pub evicted_from_endpoint: u64,
    /// [`Cause::Shutdown`]
    pub shut_down: u64,
    /// Bindings that had to make room for others; no session.
    pub evicted_bindings: u64,
    /// Refused: larger than the cache. Never saved.
    pub refused_full: u64,
    /// Refused: [`Unfit::NotConnected`]. Never saved.
    pub refused_not_connected: u64,
    /// Refused: [`Unfit::OwnClient`]. Never saved.
    pub refused_own_client: u64,
    /// Requests whose label or property was longer than the protocol takes; their descriptors were closed.
    pub refused_too_long: u64,
}

impl Counters {
    pub(crate) fn ended(&mut self, cause: Cause) {
        *match cause {
            Cause::Expired => &mut self.expired,
            Cause::Dead(Death::Closed) => &mut self.closed,
            Cause::Dead(Death::Unsolicited) => &mut self.unsolicited,
            Cause::Dead(Death::Broken) => &mut self.broken,
            Cause::Evicted => &mut self.evicted,
            Cause::EvictedFromEndpoint => &mut self.evicted_from_endpoint,
            Cause::Shutdown => &mut self.shut_down,
        } += 1;
    }

    pub(crate) fn unfit(&mut self, why: Unfit) {
        *match why {
            Unfit::NotConnected => &mut self.refused_not_connected,
            Unfit::OwnClient => &mut self.refused_own_client,
        } += 1;
    }

    /// Sessions that ended in the cache, by whatever cause.
    pub fn all_ended(&self) -> u64 {
        self.expired
            + self.closed
            + self.unsolicited
            + self.broken
            + self.evicted
            + self.evicted_from_endpoint
            + self.shut_down
    }
}
