//! The cache itself: destinations, endpoints, sessions, and when they expire.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::Limits;
use crate::slab::{NONE, Slab};
use crate::statistics::Statistics;
use crate::timers::{Due, Positions, Timers};

/// Open connections kept for re-use.
///
/// Two tables that know nothing of each other: **sessions** under the label of their endpoint, and
/// **bindings** from the label of a destination to the label of an endpoint. A binding may name an endpoint
/// without sessions; sessions need no binding. Labels and properties are opaque bytes, compared in full.
///
/// `H` is the connection, an `OwnedFd` in the daemon. The cache owns what it holds; dropping the cache
/// drops every handle.
///
/// # Time
/// `now` is the caller's monotonic clock, counted from any moment the caller likes. Something saved at `t`
/// with time to live `n` is there before `t + n` and is not there any more from `t + n` on, exactly. (The
/// reference counts whole seconds of the time of day, so that a lifetime of `n` seconds is anything between
/// `n - 1` and `n + 1`, and moves with each step of that clock.) A clock that goes back is taken to stand
/// still.
///
/// Handles that expire are not dropped where the lock on the cache is held: they wait for
/// [`Cache::expire`] or [`Cache::take_expired`].
///
/// # Cost
/// Saving and finding a session take logarithmic time in the number of records and one copy of the
/// property; a label is stored once however many sessions and bindings name it. Finding by destination looks
/// at the bindings of that destination one by one, as the order of the answer demands.
///
/// # References
/// Postfix `src/global/scache_multi.c`.
pub struct Cache<H> {
    limits: Limits,
    endpoints: Labels<Endpoint>,
    destinations: Labels<Destination>,
    sessions: Slab<Session<H>>,
    bindings: Slab<Binding>,
    /// Hash of destination, endpoint and property to the first binding of that hash.
    same: HashMap<u64, u32>,
    hasher: RandomState,
    timers: Timers,
    clock: u64,
    live_endpoints: usize,
    bytes: usize,
    expired: Vec<H>,
    statistics: Statistics,
}

/// A session that was found, and is not in the cache any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<H> {
    /// The connection; the caller owns it now.
    pub handle: H,
    /// The property that was saved with the session.
    pub endpoint_property: Box<[u8]>,
}

/// A session that was found by destination, and is not in the cache any more.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundDestination<H> {
    /// The connection; the caller owns it now.
    pub handle: H,
    /// The property of the binding that led to the session.
    pub destination_property: Box<[u8]>,
    /// The property that was saved with the session.
    pub endpoint_property: Box<[u8]>,
}

/// Why something was not saved. `H` comes back to the caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError<H> {
    /// A limit is reached (ours; Postfix sets none): what was to be saved comes back, still open.
    #[error("connection cache is full")]
    Full(H),
}

/// What has expired.
#[derive(Debug, PartialEq, Eq)]
pub struct Expired<H> {
    /// The connections, to be dropped where it holds up nobody.
    pub handles: Vec<H>,
}

#[derive(Debug)]
struct Session<H> {
    handle: H,
    property: Box<[u8]>,
    endpoint: u32,
    older: u32,
    newer: u32,
    timer: u32,
}

#[derive(Debug)]
struct Binding {
    property: Box<[u8]>,
    destination: u32,
    endpoint: u32,
    older: u32,
    newer: u32,
    /// The next binding with the same hash.
    same: u32,
    hash: u64,
    timer: u32,
}

/// The bits of a hash that are used: none in this crate's own tests, where so everything collides.
const HASH_BITS: u64 = if cfg!(test) { 0 } else { u64::MAX };

/// Oldest and newest of a chain of records.
#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: u32,
    newest: u32,
}

const EMPTY: Ends = Ends {
    oldest: NONE,
    newest: NONE,
};

impl Default for Ends {
    fn default() -> Self {
        EMPTY
    }
}

#[derive(Debug, Default)]
struct Endpoint {
    sessions: Ends,
    /// Number of bindings that name it; it goes when there are none and no sessions either.
    named: u32,
}

#[derive(Debug, Default)]
struct Destination {
    bindings: Ends,
}

/// Labels and what is known under them; each label is stored once.
struct Labels<T> {
    numbers: HashMap<Arc<[u8]>, u32>,
    records: Slab<(Arc<[u8]>, T)>,
}

impl<T: Default> Labels<T> {
    fn new() -> Self {
        Self {
            numbers: HashMap::new(),
            records: Slab::new(),
        }
    }

    fn find(&self, label: &[u8]) -> Option<u32> {
        self.numbers.get(label).copied()
    }

    fn intern(&mut self, label: &[u8], bytes: &mut usize) -> u32 {
        if let Some(number) = self.find(label) {
            return number;
        }
        let label: Arc<[u8]> = label.into();
        *bytes += label.len();
        let number = self.records.insert((Arc::clone(&label), T::default()));
        self.numbers.insert(label, number);
        number
    }

    fn forget(&mut self, number: u32, bytes: &mut usize) {
        if let Some((label, _)) = self.records.remove(number) {
            *bytes -= label.len();
            self.numbers.remove(&label);
            if self.numbers.is_empty() {
                self.numbers.shrink_to(64);
            }
        }
    }
}

/// Where the timers write their positions.
struct Records<'a, H> {
    sessions: &'a mut Slab<Session<H>>,
    bindings: &'a mut Slab<Binding>,
}

impl<H> Positions for Records<'_, H> {
    fn moved(&mut self, what: Due, position: u32) {
        match what {
            Due::Session(number) => self.sessions[number].timer = position,
            Due::Binding(number) => self.bindings[number].timer = position,
        }
    }
}

impl<H> Default for Cache<H> {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl<H> Cache<H> {
    /// An empty cache.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: limits.within_numbers(),
            endpoints: Labels::new(),
            destinations: Labels::new(),
            sessions: Slab::new(),
            bindings: Slab::new(),
            same: HashMap::new(),
            hasher: RandomState::new(),
            timers: Timers::default(),
            clock: 0,
            live_endpoints: 0,
            bytes: 0,
            expired: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Saves a session under its endpoint, for `ttl`.
    ///
    /// Sessions are never merged: two saves for one endpoint are two sessions, found oldest first.
    ///
    /// - `now`: the caller's monotonic clock
    /// - `ttl`: above zero; the service has already cut it to `connection_cache_ttl_limit`
    /// - `label`, `property`: opaque bytes
    ///
    /// # Errors
    /// [`SaveError::Full`] at a limit: the session comes back, still open.
    ///
    /// # References
    /// scache(8) `save_endp`; Postfix `src/global/scache_multi.c`, `scache_multi_save_endp()`.
    pub fn save_endpoint(
        &mut self,
        now: Duration,
        ttl: Duration,
        label: &[u8],
        property: &[u8],
        handle: H,
    ) -> Result<(), SaveError<H>> {
        let now = self.advance(now);
        let room = self.limits.bytes.saturating_sub(self.bytes);
        let known = self.endpoints.find(label).is_some();
        let wanted = property.len() + if known { 0 } else { label.len() };
        if self.sessions.len() >= self.limits.sessions || wanted > room {
            return Err(SaveError::Full(handle));
        }
        let endpoint = self.endpoints.intern(label, &mut self.bytes);
        let ends = self.endpoints.records[endpoint].1.sessions;
        let session = self.sessions.insert(Session {
            handle,
            property: property.into(),
            endpoint,
            older: ends.newest,
            newer: NONE,
            timer: NONE,
        });
        self.bytes += property.len();
        let ends = &mut self.endpoints.records[endpoint].1.sessions;
        if ends.newest == NONE {
            ends.oldest = session;
            self.live_endpoints += 1;
        } else {
            self.sessions[ends.newest].newer = session;
        }
        ends.newest = session;
        self.arm(due(now, ttl), Due::Session(session));
        self.statistics
            .saved_endpoint(self.live_endpoints, self.sessions.len());
        Ok(())
    }

    /// Takes the oldest session of an endpoint out of the cache.
    ///
    /// `None` when there is none; either is counted in the statistics.
    ///
    /// # References
    /// scache(8) `find_endp`; Postfix `src/global/scache_multi.c`, `scache_multi_find_endp()`.
    pub fn find_endpoint(&mut self, now: Duration, label: &[u8]) -> Option<Found<H>> {
        self.advance(now);
        let found = self
            .endpoints
            .find(label)
            .and_then(|endpoint| self.take_oldest(endpoint))
            .map(|session| Found {
                handle: session.handle,
                endpoint_property: session.property,
            });
        self.statistics.looked_up_endpoint(found.is_some());
        found
    }

    /// Binds a destination to an endpoint, for `ttl`.
    ///
    /// A binding with the same endpoint and the same property only gets a new lifetime, which may be
    /// shorter; it keeps its place. Any other is added as the newest of the destination.
    ///
    /// - `label`, `property`: of the destination
    /// - `endpoint`: label of the endpoint, which need not have a session
    ///
    /// # Errors
    /// [`SaveError::Full`] at a limit.
    ///
    /// # References
    /// scache(8) `save_dest`; Postfix `src/global/scache_multi.c`, `scache_multi_save_dest()`.
    pub fn save_destination(
        &mut self,
        now: Duration,
        ttl: Duration,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Result<(), SaveError<()>> {
        let now = self.advance(now);
        let destination_number = self.destinations.find(label);
        let endpoint_number = self.endpoints.find(endpoint);
        if let (Some(destination), Some(endpoint)) = (destination_number, endpoint_number)
            && let Some(binding) = self.find_binding(destination, endpoint, property)
        {
            let mut records = Records {
                sessions: &mut self.sessions,
                bindings: &mut self.bindings,
            };
            let position = records.bindings[binding].timer;
            self.timers.rearm(position, due(now, ttl), &mut records);
        } else {
            let room = self.limits.bytes.saturating_sub(self.bytes);
            let wanted = property.len()
                + destination_number.map_or(label.len(), |_| 0)
                + endpoint_number.map_or(endpoint.len(), |_| 0);
            if self.bindings.len() >= self.limits.bindings || wanted > room {
                return Err(SaveError::Full(()));
            }
            let destination = self.destinations.intern(label, &mut self.bytes);
            let endpoint = self.endpoints.intern(endpoint, &mut self.bytes);
            self.bind(due(now, ttl), destination, endpoint, property);
        }
        self.statistics
            .saved_destination(self.destinations.records.len(), self.live_endpoints);
        Ok(())
    }

    /// Takes a session out of the cache: the oldest one of the first endpoint, in the order of the
    /// destination's bindings, that has any.
    ///
    /// The binding stays, and does not live longer for it. `None` when no endpoint has a session; either is
    /// counted in the statistics, as one look-up of a destination.
    ///
    /// # References
    /// scache(8) `find_dest`; Postfix `src/global/scache_multi.c`, `scache_multi_find_dest()`.
    pub fn find_destination(&mut self, now: Duration, label: &[u8]) -> Option<FoundDestination<H>> {
        self.advance(now);
        let mut next = self.destinations.find(label).map_or(NONE, |destination| {
            self.destinations.records[destination].1.bindings.oldest
        });
        let mut found = None;
        while next != NONE && found.is_none() {
            let (binding, endpoint) = (next, self.bindings[next].endpoint);
            next = self.bindings[next].newer;
            found = self.take_oldest(endpoint).map(|session| FoundDestination {
                handle: session.handle,
                destination_property: self.bindings[binding].property.clone(),
                endpoint_property: session.property,
            });
        }
        self.statistics.looked_up_destination(found.is_some());
        found
    }

    /// Removes what is due at `now`, and hands back the connections among it, together with those that
    /// expired during earlier operations.
    pub fn expire(&mut self, now: Duration) -> Expired<H> {
        self.advance(now);
        Expired {
            handles: self.take_expired(),
        }
    }

    /// The connections that expired during earlier operations; to be taken while the cache is at hand and
    /// dropped when it is not.
    pub fn take_expired(&mut self) -> Vec<H> {
        std::mem::take(&mut self.expired)
    }

    /// When [`Cache::expire`] has something to do next; zero when it has right now.
    pub fn next_expiry(&self) -> Option<Duration> {
        if self.expired.is_empty() {
            self.timers.next().map(|(at, _)| Duration::from_nanos(at))
        } else {
            Some(Duration::ZERO)
        }
    }

    /// Number of live sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Number of live bindings.
    pub fn bindings(&self) -> usize {
        self.bindings.len()
    }

    /// Number of destinations with a live binding.
    pub fn destinations(&self) -> usize {
        self.destinations.records.len()
    }

    /// Number of endpoints with a live session.
    pub fn endpoints(&self) -> usize {
        self.live_endpoints
    }

    /// What was counted since the last [`Cache::take_statistics`].
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Ends a reporting interval: hands out what was counted and starts from zero.
    pub fn take_statistics(&mut self) -> Statistics {
        std::mem::take(&mut self.statistics)
    }

    /// Moves the clock and everything that is due by then out of the tables.
    fn advance(&mut self, now: Duration) -> u64 {
        self.clock = self.clock.max(nanoseconds(now));
        while let Some((at, what)) = self.timers.next()
            && at <= self.clock
        {
            match what {
                Due::Session(number) => {
                    if let Some(session) = self.remove_session(number) {
                        self.expired.push(session.handle);
                    }
                }
                Due::Binding(number) => self.remove_binding(number),
            }
        }
        self.clock
    }

    fn arm(&mut self, at: u64, what: Due) {
        let mut records = Records {
            sessions: &mut self.sessions,
            bindings: &mut self.bindings,
        };
        self.timers.arm(at, what, &mut records);
    }

    fn stop(&mut self, position: u32) {
        let mut records = Records {
            sessions: &mut self.sessions,
            bindings: &mut self.bindings,
        };
        self.timers.stop(position, &mut records);
    }

    fn take_oldest(&mut self, endpoint: u32) -> Option<Session<H>> {
        match self.endpoints.records[endpoint].1.sessions.oldest {
            NONE => None,
            oldest => self.remove_session(oldest),
        }
    }

    fn remove_session(&mut self, number: u32) -> Option<Session<H>> {
        self.stop(self.sessions[number].timer);
        let session = self.sessions.remove(number)?;
        self.bytes -= session.property.len();
        let endpoint = &mut self.endpoints.records[session.endpoint].1;
        match session.older {
            NONE => endpoint.sessions.oldest = session.newer,
            older => self.sessions[older].newer = session.newer,
        }
        match session.newer {
            NONE => endpoint.sessions.newest = session.older,
            newer => self.sessions[newer].older = session.older,
        }
        if endpoint.sessions.oldest == NONE {
            self.live_endpoints -= 1;
            self.forget_endpoint(session.endpoint);
        }
        Some(session)
    }

    fn bind(&mut self, at: u64, destination: u32, endpoint: u32, property: &[u8]) {
        let hash = self.hash(destination, endpoint, property);
        let newest = self.destinations.records[destination].1.bindings.newest;
        let binding = self.bindings.insert(Binding {
            property: property.into(),
            destination,
            endpoint,
            older: newest,
            newer: NONE,
            same: NONE,
            hash,
            timer: NONE,
        });
        self.bytes += property.len();
        self.endpoints.records[endpoint].1.named += 1;
        let ends = &mut self.destinations.records[destination].1.bindings;
        if newest == NONE {
            ends.oldest = binding;
        } else {
            self.bindings[newest].newer = binding;
        }
        ends.newest = binding;
        if let Some(same) = self.same.insert(hash, binding) {
            self.bindings[binding].same = same;
        }
        self.arm(at, Due::Binding(binding));
    }

    fn hash(&self, destination: u32, endpoint: u32, property: &[u8]) -> u64 {
        self.hasher.hash_one((destination, endpoint, property)) & HASH_BITS
    }

    fn find_binding(&self, destination: u32, endpoint: u32, property: &[u8]) -> Option<u32> {
        let hash = self.hash(destination, endpoint, property);
        let mut next = self.same.get(&hash).copied().unwrap_or(NONE);
        while next != NONE {
            let binding = &self.bindings[next];
            if binding.destination == destination
                && binding.endpoint == endpoint
                && *binding.property == *property
            {
                return Some(next);
            }
            next = binding.same;
        }
        None
    }

    fn remove_binding(&mut self, number: u32) {
        self.stop(self.bindings[number].timer);
        self.forget_same(number);
        let Some(binding) = self.bindings.remove(number) else {
            return;
        };
        self.bytes -= binding.property.len();
        let ends = &mut self.destinations.records[binding.destination].1.bindings;
        match binding.older {
            NONE => ends.oldest = binding.newer,
            older => self.bindings[older].newer = binding.newer,
        }
        match binding.newer {
            NONE => ends.newest = binding.older,
            newer => self.bindings[newer].older = binding.older,
        }
        if ends.oldest == NONE {
            self.destinations
                .forget(binding.destination, &mut self.bytes);
        }
        self.endpoints.records[binding.endpoint].1.named -= 1;
        self.forget_endpoint(binding.endpoint);
    }

    /// Takes a binding out of the chain of those with its hash.
    fn forget_same(&mut self, number: u32) {
        let (hash, rest) = (self.bindings[number].hash, self.bindings[number].same);
        let first = self.same.get(&hash).copied().unwrap_or(NONE);
        if first == number {
            if rest == NONE {
                self.same.remove(&hash);
                if self.same.is_empty() {
                    self.same.shrink_to(64);
                }
            } else {
                self.same.insert(hash, rest);
            }
            return;
        }
        let mut next = first;
        while next != NONE {
            let after = self.bindings[next].same;
            if after == number {
                self.bindings[next].same = rest;
                return;
            }
            next = after;
        }
    }

    fn forget_endpoint(&mut self, number: u32) {
        let endpoint = &self.endpoints.records[number].1;
        if endpoint.named == 0 && endpoint.sessions.oldest == NONE {
            self.endpoints.forget(number, &mut self.bytes);
        }
    }
}

impl<H> fmt::Debug for Cache<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("sessions", &self.sessions())
            .field("bindings", &self.bindings())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn due(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(nanoseconds(ttl))
}

#[cfg(test)]
mod tests;
