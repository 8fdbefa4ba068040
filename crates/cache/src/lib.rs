//! Answers of lookup tables, kept for a while.
//!
//! - An answer, found or not found, is fresh for its time to live, counted from the moment when the question was asked.
//! - A key that is not known is asked for once: who comes first gets a [`Ticket`], the others wait for the same answer.
//! - Errors are no answers and are not kept. After one the key is left alone for a moment ([`Settings::retry_delay`]), so
//!   that a table in trouble is not asked by everybody at once; meanwhile an answer that is no longer fresh serves on,
//!   for as long as [`Settings::stale_ttl`] allows, or everybody gets the error.
//! - A fresh answer that somebody asks for in the last part of its life is to be asked for again ahead of time, by one
//!   ([`Known::refresh`]).
//! - What is kept is bounded in number and bytes. Room is made as `SIEVE` does it: a queue in order of arrival, a hand
//!   that goes over it from old to new, and a mark for what was asked for since the hand was there. A hit sets the mark
//!   and changes nothing else, so that hits share a lock.
//!
//! Pure: the time is an argument, whoever waits is the type parameter `W`, no table is asked from here. The cache is cut
//! into parts by the hash of the key, each with a lock of its own; every operation is one critical section in one part.
//!
//! # References
//! SIEVE: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024. Serving stale answers: RFC 8767.
#![forbid(unsafe_code)]

mod counters;
mod entries;
mod part;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use postkeep_table::CacheCounts;

use crate::counters::Counters;
use crate::part::Part;

/// How long answers are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a value that was found is fresh.
    pub ttl: Duration,
    /// How long it is known that a key was not found.
    pub negative_ttl: Duration,
    /// How long after that an answer may serve while the table gives temporary errors.
    pub stale_ttl: Duration,
    /// How long a key is left alone after an error.
    pub retry_delay: Duration,
    /// The last part of an answer's fresh life in which it is asked for again ahead of time, in percent; 0 for never.
    pub refresh: u8,
    /// Most entries.
    pub max_entries: usize,
    /// Most bytes: keys, values, and what it takes to keep them.
    pub max_bytes: usize,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A temporary error.
    Retry,
    /// A person must act.
    Config,
}

/// What a table answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The value of the key.
    Found(&'a [u8]),
    /// The key is not there.
    Absent,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there; the value was appended.
    Found,
    /// It is not there.
    Absent,
    /// There was an error a moment ago, and there is nothing to serve instead.
    Failed(Failure),
}

/// What is known of a key, at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What is known.
    pub state: State,
    /// The caller is to ask the table again now, and nobody else will be told to.
    pub refresh: bool,
}

/// The right, and the duty, to ask the table for a key, and to tell the end of it: [`Cache::finish`].
#[derive(Debug)]
pub struct Ticket {
    pub(crate) hash: u64,
    pub(crate) number: u64,
    pub(crate) begun: Time,
}

/// How a question began.
#[derive(Debug)]
pub enum Entered<W> {
    /// It needs not be asked: something is known by now, and a value was appended.
    Known(State, W),
    /// Somebody is asking already; the waiter will be handed out with the answer.
    Joined,
    /// The caller asks; the waiter will be handed out with the answer, before all others.
    Lead(Ticket),
}

/// Who is to be told, and what.
#[derive(Debug)]
pub struct Finished<W> {
    /// All who wait, in the order in which they came.
    pub waiters: Vec<W>,
    /// They get this instead of the error.
    pub instead: Option<Kept>,
}

/// An answer with a value of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The value of the key.
    Found(Vec<u8>),
    /// The key is not there.
    Absent,
}

/// Nanoseconds of the caller's clock.
pub(crate) type Time = u64;

fn nanos(time: Duration) -> Time {
    Time::try_from(time.as_nanos()).unwrap_or(Time::MAX)
}

/// Times to live, ready to be added.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    pub(crate) ttl: Time,
    pub(crate) negative_ttl: Time,
    pub(crate) stale_ttl: Time,
    pub(crate) retry_delay: Time,
    pub(crate) refresh: u8,
}

/// Most parts of a cache.
const PARTS: usize = 64;
/// A cache is cut only into parts that may hold at least so many entries,
const PART_ENTRIES: usize = 512;
/// and so many bytes.
const PART_BYTES: usize = 128 * 1024;

/// One part, on cache lines of its own.
#[repr(align(128))]
struct Slice<W> {
    part: RwLock<Part<W>>,
    counters: Counters,
}

/// Answers, kept for a while; shared by all threads.
///
/// `class` stands for all in a question, beside the key, that an answer may depend on: answers of different classes are
/// never mixed. `now` is the caller's monotonic clock, from any fixed moment on.
pub struct Cache<W> {
    slices: Box<[Slice<W>]>,
    hasher: RandomState,
}

impl<W> std::fmt::Debug for Cache<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("parts", &self.slices.len())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl<W> Cache<W> {
    /// An empty cache.
    pub fn new(settings: &Settings) -> Self {
        let mut count = PARTS;
        while count > 1
            && (settings.max_entries / count < PART_ENTRIES
                || settings.max_bytes / count < PART_BYTES)
        {
            count /= 2;
        }
        let times = Times {
            ttl: nanos(settings.ttl),
            negative_ttl: nanos(settings.negative_ttl),
            stale_ttl: nanos(settings.stale_ttl),
            retry_delay: nanos(settings.retry_delay),
            refresh: settings.refresh.min(100),
        };
        let slice = |_| Slice {
            part: RwLock::new(Part::new(
                times.clone(),
                settings.max_entries / count,
                settings.max_bytes / count,
            )),
            counters: Counters::default(),
        };
        Self {
            slices: (0..count).map(slice).collect(),
            hasher: RandomState::new(),
        }
    }

    /// What is known of a key; a value is appended. `None`: nothing, [`Self::enter`] is next.
    ///
    /// - `may_refresh`: the caller can ask the table again ahead of time when told to
    pub fn peek(
        &self,
        now: Duration,
        class: u32,
        key: &[u8],
        may_refresh: bool,
        value: &mut Vec<u8>,
    ) -> Option<Known> {
        let hash = self.hasher.hash_one(key);
        let slice = self.slice(hash);
        let part = read(&slice.part);
        part.peek(
            nanos(now),
            hash,
            class,
            key,
            may_refresh,
            value,
            &slice.counters,
        )
    }

    /// Begins a question, or joins one; `waiter` is who wants to know.
    ///
    /// `value` gets the value of what became known since [`Self::peek`].
    pub fn enter(
        &self,
        now: Duration,
        class: u32,
        key: &[u8],
        value: &mut Vec<u8>,
        waiter: W,
    ) -> Entered<W> {
        let hash = self.hasher.hash_one(key);
        let slice = self.slice(hash);
        let mut part = write(&slice.part);
        let now = nanos(now);
        if let Some(known) = part.peek(now, hash, class, key, false, value, &slice.counters) {
            return Entered::Known(known.state, waiter);
        }
        part.enter(now, hash, class, key, waiter, &slice.counters)
    }

    /// Begins a question that nobody waits for, after [`Known::refresh`]; `None` when somebody is asking already, or has
    /// asked by now.
    pub fn refresh(&self, now: Duration, class: u32, key: &[u8]) -> Option<Ticket> {
        let hash = self.hasher.hash_one(key);
        let slice = self.slice(hash);
        write(&slice.part).refresh(nanos(now), hash, class, key, &slice.counters)
    }

    /// Ends a question: keeps the answer, and hands out who waits for it.
    pub fn finish(
        &self,
        now: Duration,
        ticket: Ticket,
        result: Result<Answer<'_>, Failure>,
    ) -> Finished<W> {
        let slice = self.slice(ticket.hash);
        write(&slice.part).finish(nanos(now), ticket, result, &slice.counters)
    }

    /// Keeps an answer to a question that was asked without a ticket, at `begun`; for tables that answer at once. Gives
    /// what is to be told instead of an error.
    pub fn put(
        &self,
        begun: Duration,
        now: Duration,
        class: u32,
        key: &[u8],
        result: Result<Answer<'_>, Failure>,
    ) -> Option<Kept> {
        let hash = self.hasher.hash_one(key);
        let slice = self.slice(hash);
        let mut part = write(&slice.part);
        slice.counters.miss();
        let instead = part.settle(
            nanos(begun),
            nanos(now),
            hash,
            class,
            key,
            result,
            &slice.counters,
        );
        slice.counters.stale(usize::from(instead.is_some()));
        instead
    }

    /// What was counted so far, and what is kept now.
    pub fn counts(&self) -> CacheCounts {
        let mut counts = CacheCounts::default();
        for slice in &self.slices {
            slice.counters.add_to(&mut counts);
            let part = read(&slice.part);
            counts.entries += part.len() as u64;
            counts.bytes += part.bytes() as u64;
        }
        counts
    }

    fn slice(&self, hash: u64) -> &Slice<W> {
        // The tables inside a part use the lowest and the highest bits.
        let place = (hash >> 32) as usize & (self.slices.len() - 1);
        &self.slices[place]
    }
}

/// No operation leaves a part in disorder when it panics: what may panic (memory) comes first.
fn read<W>(part: &RwLock<Part<W>>) -> RwLockReadGuard<'_, Part<W>> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<W>(part: &RwLock<Part<W>>) -> RwLockWriteGuard<'_, Part<W>> {
    part.write().unwrap_or_else(PoisonError::into_inner)
}
