//! The cache itself: destinations, endpoints, sessions, and when they expire.

mod bindings;
mod moving;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::time::Duration;

use hashbrown::HashTable;

use crate::ended::{Cause, Counters, Death, Ended, Unfit};
use crate::labels::Labels;
use crate::limits::{Limits, Order, Rules};
use crate::slab::{NONE, Slab};
use crate::statistics::Statistics;
use crate::timers::{Positions, Timers};

pub use moving::{MovingBinding, MovingSession};

/// Records whose time is up that one operation takes out at most.
const STEP: usize = 32;
/// The same for [`Cache::expire`], whose caller has nothing else to do.
const BATCH: usize = 256;

/// Open connections kept for re-use.
///
/// Two tables that know nothing of each other: **sessions** under the label of their endpoint, and
/// **bindings** from the label of a destination to the label of an endpoint. A binding may name an endpoint
/// without sessions; sessions need no binding. Labels and properties are opaque bytes, compared in full; only
/// [`Goodbyes`](crate::Goodbyes) looks at the beginning of a label.
///
/// `H` is the connection, an `OwnedFd` in the daemon. The cache owns what it holds; dropping the cache
/// drops every handle.
///
/// # Time
/// `now` is the caller's monotonic clock, counted from any moment the caller likes. Something saved at `t`
/// with time to live `n` is found before `t + n` and is not found any more from `t + n` on, exactly. (The
/// reference counts whole seconds of the time of day, so that a lifetime of `n` seconds is anything between
/// `n - 1` and `n + 1`, and moves with each step of that clock.) A clock that goes back is taken to stand
/// still.
///
/// # Ends
/// A session that ends in the cache, by its time, by a limit or because its far end has ended it, is never
/// dropped where the lock on the cache is held: it waits, with the cause and with what is to be said to the
/// far end, for [`Cache::take_ended`] or [`Cache::expire`]. Of the records whose time is up each operation
/// takes out a few only, so that thousands that are due at once stall nobody; those that are still there until
/// then are not found, but they are counted in the sizes.
///
/// # Cost
/// Saving and finding a session take logarithmic time in the number of records and one copy of the
/// property; a label is stored once however many sessions and bindings name it. Finding by destination looks
/// at the bindings of that destination one by one, as the order of the answer demands.
///
/// # References
/// Postfix `src/global/scache_multi.c`.
pub struct Cache<H> {
    rules: Rules,
    endpoints: Labels<Endpoint>,
    destinations: Labels<Destination>,
    /// The properties of sessions, and how many have each: those of one sender are mostly the same.
    properties: Labels<u32>,
    sessions: Slab<Session<H>>,
    bindings: Slab<Binding>,
    /// The bindings by destination, endpoint and property.
    same: HashTable<u32>,
    hasher: RandomState,
    session_timers: Timers,
    binding_timers: Timers,
    clock: u64,
    generation: u32,
    live_endpoints: usize,
    bytes: usize,
    ended: Vec<Ended<H>>,
    statistics: Statistics,
    counters: Counters,
}

/// Names a session for as long as it is in the cache; never means another one later (but after four thousand
/// million saves). The upper half of its token is never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId {
    number: u32,
    generation: u32,
}

impl SessionId {
    /// The same as a number, for systems that know nothing else.
    pub fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.number)
    }

    /// Back from [`SessionId::token`]; any number will do.
    pub fn from_token(token: u64) -> Self {
        let half = |half: u64| u32::try_from(half & u64::from(u32::MAX)).unwrap_or(NONE);
        Self {
            number: half(token),
            generation: half(token >> 32),
        }
    }
}

/// A session that was found, and is not in the cache any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<H> {
    /// The connection; the caller owns it now.
    pub handle: H,
    /// The property that was saved with the session.
    pub endpoint_property: Box<[u8]>,
    /// [`Cache::is_watched`] was said of it.
    pub watched: bool,
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
    /// [`Cache::is_watched`] was said of it.
    pub watched: bool,
}

/// Why something was not saved. `H` comes back to the caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError<H> {
    /// It is larger than the whole cache may be (ours; Postfix sets no limit): what was to be saved comes back,
    /// still open.
    #[error("connection cache is full")]
    Full(H),
}

#[derive(Debug)]
struct Session<H> {
    handle: H,
    property: u32,
    endpoint: u32,
    older: u32,
    newer: u32,
    timer: u32,
    /// Tells it from others that have or had its number.
    generation: u32,
    watched: bool,
}

#[derive(Debug)]
struct Binding {
    property: Box<[u8]>,
    destination: u32,
    endpoint: u32,
    older: u32,
    newer: u32,
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
    count: u32,
    /// No session expires before an older one does.
    ordered: bool,
    /// Number of bindings that name it; it goes when there are none and no sessions either.
    named: u32,
}

#[derive(Debug, Default)]
struct Destination {
    bindings: Ends,
    count: u32,
}

impl<H> Positions for Slab<Session<H>> {
    fn moved(&mut self, what: u32, position: u32) {
        self[what].timer = position;
    }
}

impl Positions for Slab<Binding> {
    fn moved(&mut self, what: u32, position: u32) {
        self[what].timer = position;
    }
}

impl<H> Default for Cache<H> {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl<H> Cache<H> {
    /// An empty cache.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules: Rules {
                limits: rules.limits.within_numbers(),
                ..rules
            },
            endpoints: Labels::new(),
            destinations: Labels::new(),
            properties: Labels::new(),
            sessions: Slab::new(),
            bindings: Slab::new(),
            same: HashTable::new(),
            hasher: RandomState::new(),
            session_timers: Timers::default(),
            binding_timers: Timers::default(),
            clock: 0,
            generation: 0,
            live_endpoints: 0,
            bytes: 0,
            ended: Vec::new(),
            statistics: Statistics::default(),
            counters: Counters::default(),
        }
    }

    /// Saves a session under its endpoint, for `ttl`.
    ///
    /// Sessions are never merged: two saves for one endpoint are two sessions. At a limit, those that would
    /// expire soonest end.
    ///
    /// - `now`: the caller's monotonic clock
    /// - `ttl`: above zero; the service has already cut it to `connection_cache_ttl_limit`
    /// - `label`, `property`: opaque bytes
    ///
    /// # Errors
    /// [`SaveError::Full`] when there is no room even in an empty cache: the session comes back, still open.
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
    ) -> Result<SessionId, SaveError<H>> {
        let now = self.advance(now, STEP);
        let Limits {
            sessions: most,
            endpoint_sessions: most_here,
            bytes,
            ..
        } = self.rules.limits;
        if most == 0 || most_here == 0 || label.len() + property.len() > bytes {
            self.counters.refused_full += 1;
            return Err(SaveError::Full(handle));
        }
        while let Some(endpoint) = self.endpoints.find(label)
            && self.endpoints[endpoint].count as usize >= most_here
        {
            self.end(self.soonest_session(endpoint), Cause::EvictedFromEndpoint);
        }
        while self.sessions.len() >= most
            && let Some((_, soonest)) = self.session_timers.next()
        {
            self.end(soonest, Cause::Evicted);
        }
        while self.bytes + self.properties.cost(property) + self.endpoints.cost(label) > bytes
            && self.evict()
        {}
        let endpoint = self.endpoints.intern(label, &mut self.bytes);
        let session = self.append(now, due(now, ttl), endpoint, property, handle);
        self.statistics
            .saved_endpoint(self.live_endpoints, self.sessions.len());
        Ok(session)
    }

    /// Takes a session of an endpoint out of the cache: the one that [`Rules::order`] says.
    ///
    /// `None` when there is none; either is counted in the statistics.
    ///
    /// - `examine`: told each session that may be handed out; what it finds dead ends, and the next one is
    ///   looked at
    ///
    /// # References
    /// scache(8) `find_endp`; Postfix `src/global/scache_multi.c`, `scache_multi_find_endp()`.
    pub fn find_endpoint(
        &mut self,
        now: Duration,
        label: &[u8],
        examine: &mut dyn FnMut(&H) -> Option<Death>,
    ) -> Option<Found<H>> {
        self.advance(now, STEP);
        let found = self
            .endpoints
            .find(label)
            .and_then(|endpoint| self.take(endpoint, examine));
        self.statistics.looked_up_endpoint(found.is_some());
        found
    }

    /// Takes a session out of the cache: one of the first endpoint, in the order of the destination's
    /// bindings, that has any; of that endpoint the one that [`Rules::order`] says.
    ///
    /// The binding stays, and does not live longer for it. `None` when no endpoint has a session; either is
    /// counted in the statistics, as one look-up of a destination.
    ///
    /// - `examine`: as for [`Cache::find_endpoint`]
    ///
    /// # References
    /// scache(8) `find_dest`; Postfix `src/global/scache_multi.c`, `scache_multi_find_dest()`.
    pub fn find_destination(
        &mut self,
        now: Duration,
        label: &[u8],
        examine: &mut dyn FnMut(&H) -> Option<Death>,
    ) -> Option<FoundDestination<H>> {
        self.advance(now, STEP);
        let mut next = self.destinations.find(label).map_or(NONE, |destination| {
            self.destinations[destination].bindings.oldest
        });
        let mut found = None;
        while next != NONE && found.is_none() {
            let (binding, endpoint) = (next, self.bindings[next].endpoint);
            next = self.bindings[next].newer;
            if self.binding_timers.at(self.bindings[binding].timer) <= self.clock {
                continue;
            }
            found = self.take(endpoint, examine).map(|found| FoundDestination {
                handle: found.handle,
                destination_property: self.bindings[binding].property.clone(),
                endpoint_property: found.endpoint_property,
                watched: found.watched,
            });
        }
        self.statistics.looked_up_destination(found.is_some());
        found
    }

    /// Takes back a session that was found by endpoint and turned out to be dead: the look-up does not count,
    /// and is to be made again.
    pub fn found_dead_endpoint(&mut self, handle: H, death: Death) {
        let hits = &mut self.statistics.endpoint_hits;
        *hits = hits.saturating_sub(1);
        self.found_dead(handle, death);
    }

    /// The same for a session that was found by destination.
    pub fn found_dead_destination(&mut self, handle: H, death: Death) {
        let hits = &mut self.statistics.destination_hits;
        *hits = hits.saturating_sub(1);
        self.found_dead(handle, death);
    }

    fn found_dead(&mut self, handle: H, death: Death) {
        let cause = Cause::Dead(death);
        self.counters.found = self.counters.found.saturating_sub(1);
        self.counters.ended(cause);
        self.ended.push(Ended {
            handle,
            cause,
            goodbye: None,
        });
    }

    /// The connection of a session that is in the cache.
    pub fn handle(&self, session: SessionId) -> Option<&H> {
        self.sessions
            .find(session.number)
            .filter(|found| found.generation == session.generation)
            .map(|found| &found.handle)
    }

    /// Somebody watches this session from now on, and is to be told when it is found.
    pub fn is_watched(&mut self, session: SessionId) {
        if let Some(found) = self.sessions.find_mut(session.number)
            && found.generation == session.generation
        {
            found.watched = true;
        }
    }

    /// Looks at a session of which something was heard, and ends it when it is dead; false when it is not in
    /// the cache, or alive.
    pub fn examine(
        &mut self,
        session: SessionId,
        examine: &mut dyn FnMut(&H) -> Option<Death>,
    ) -> bool {
        let Some(death) = self.handle(session).and_then(examine) else {
            return false;
        };
        self.end(session.number, Cause::Dead(death));
        true
    }

    /// Takes out what is due at `now`, and hands back the sessions among it, together with those that ended
    /// during earlier operations.
    ///
    /// When very many are due it takes out some of them only; [`Cache::next_expiry`] then says that it has to
    /// be called again at once.
    pub fn expire(&mut self, now: Duration) -> Vec<Ended<H>> {
        self.advance(now, BATCH);
        self.take_ended()
    }

    /// The sessions that ended during earlier operations; to be taken while the cache is at hand and closed
    /// when it is not.
    pub fn take_ended(&mut self) -> Vec<Ended<H>> {
        std::mem::take(&mut self.ended)
    }

    /// Ends all sessions, and hands back what [`Cache::take_ended`] would.
    pub fn shut_down(&mut self) -> Vec<Ended<H>> {
        while let Some((_, session)) = self.session_timers.next() {
            self.end(session, Cause::Shutdown);
        }
        self.take_ended()
    }

    /// When [`Cache::expire`] has something to do next; zero when it has right now.
    pub fn next_expiry(&self) -> Option<Duration> {
        if !self.ended.is_empty() {
            return Some(Duration::ZERO);
        }
        let timers = [self.session_timers.next(), self.binding_timers.next()];
        timers
            .into_iter()
            .flatten()
            .map(|(at, _)| Duration::from_nanos(at))
            .min()
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Number of bindings.
    pub fn bindings(&self) -> usize {
        self.bindings.len()
    }

    /// Number of destinations with a binding.
    pub fn destinations(&self) -> usize {
        self.destinations.len()
    }

    /// Number of endpoints with a session.
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

    /// What has been counted since the cache was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a descriptor that could not be saved.
    pub fn refused(&mut self, why: Unfit) {
        self.counters.unfit(why);
    }

    /// Counts a request that was too long.
    pub fn refused_too_long(&mut self) {
        self.counters.refused_too_long += 1;
    }

    /// Moves the clock, and some of what is due by then out of the tables.
    fn advance(&mut self, now: Duration, most: usize) -> u64 {
        self.clock = self.clock.max(nanoseconds(now));
        for _ in 0..most {
            match self.session_timers.next() {
                Some((at, session)) if at <= self.clock => self.end(session, Cause::Expired),
                _ => break,
            }
        }
        for _ in 0..most {
            match self.binding_timers.next() {
                Some((at, binding)) if at <= self.clock => self.remove_binding(binding),
                _ => break,
            }
        }
        self.clock
    }

    /// Adds a session as the newest of its endpoint.
    fn append(
        &mut self,
        now: u64,
        due: u64,
        endpoint: u32,
        property: &[u8],
        handle: H,
    ) -> SessionId {
        debug_assert!(now <= due, "time to live is not negative");
        let newest = self.endpoints[endpoint].sessions.newest;
        let property = self.properties.intern(property, &mut self.bytes);
        self.properties[property] += 1;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let number = self.sessions.insert(Session {
            handle,
            property,
            endpoint,
            older: newest,
            newer: NONE,
            timer: NONE,
            generation: self.generation,
            watched: false,
        });
        let record = &mut self.endpoints[endpoint];
        if newest == NONE {
            record.sessions.oldest = number;
            record.ordered = true;
            self.live_endpoints += 1;
        } else {
            record.ordered &= self.session_timers.at(self.sessions[newest].timer) <= due;
            self.sessions[newest].newer = number;
        }
        record.sessions.newest = number;
        record.count += 1;
        self.session_timers.arm(due, number, &mut self.sessions);
        self.counters.saved += 1;
        SessionId {
            number,
            generation: self.generation,
        }
    }

    /// Takes the first session of an endpoint that is alive; those before it end.
    fn take(
        &mut self,
        endpoint: u32,
        examine: &mut dyn FnMut(&H) -> Option<Death>,
    ) -> Option<Found<H>> {
        let ends = self.endpoints[endpoint].sessions;
        let mut next = match self.rules.order {
            Order::OldestFirst => ends.oldest,
            Order::NewestFirst => ends.newest,
        };
        while next != NONE {
            let (number, session) = (next, &self.sessions[next]);
            next = match self.rules.order {
                Order::OldestFirst => session.newer,
                Order::NewestFirst => session.older,
            };
            if self.session_timers.at(session.timer) <= self.clock {
                self.end(number, Cause::Expired);
            } else if let Some(death) = examine(&session.handle) {
                self.end(number, Cause::Dead(death));
            } else {
                self.counters.found += 1;
                let endpoint_property = self.properties.text(session.property).into();
                return self.remove_session(number).map(|session| Found {
                    handle: session.handle,
                    endpoint_property,
                    watched: session.watched,
                });
            }
        }
        None
    }

    /// The session of an endpoint, which has some, that expires before all others.
    fn soonest_session(&self, endpoint: u32) -> u32 {
        let record = &self.endpoints[endpoint];
        let mut soonest = record.sessions.oldest;
        if record.ordered {
            return soonest;
        }
        let at = |number: u32| self.session_timers.at(self.sessions[number].timer);
        let mut next = self.sessions[soonest].newer;
        while next != NONE {
            if at(next) < at(soonest) {
                soonest = next;
            }
            next = self.sessions[next].newer;
        }
        soonest
    }

    /// Ends whatever expires soonest, to make room for bytes; false when there is nothing.
    fn evict(&mut self) -> bool {
        let (session, binding) = (self.session_timers.next(), self.binding_timers.next());
        if let Some((at, session)) = session
            && binding.is_none_or(|(other, _)| at <= other)
        {
            self.end(session, Cause::Evicted);
        } else if let Some((_, binding)) = binding {
            self.evict_binding(binding);
        } else {
            return false;
        }
        true
    }

    /// Takes out a session that nobody found.
    fn end(&mut self, number: u32, cause: Cause) {
        let label = self.endpoints.text(self.sessions[number].endpoint);
        let goodbye = self.rules.goodbyes.of(label);
        let goodbye = goodbye.filter(|_| cause.is_ours()).cloned();
        if let Some(session) = self.remove_session(number) {
            self.counters.ended(cause);
            self.ended.push(Ended {
                handle: session.handle,
                cause,
                goodbye,
            });
        }
    }

    fn remove_session(&mut self, number: u32) -> Option<Session<H>> {
        let timer = self.sessions[number].timer;
        self.session_timers.stop(timer, &mut self.sessions);
        let session = self.sessions.remove(number)?;
        self.properties[session.property] -= 1;
        if self.properties[session.property] == 0 {
            self.properties.forget(session.property, &mut self.bytes);
        }
        let endpoint = &mut self.endpoints[session.endpoint];
        endpoint.count -= 1;
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

    fn forget_endpoint(&mut self, number: u32) {
        let endpoint = &self.endpoints[number];
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
