//! `cache:{TYPE:NAME, KEY=VALUE, ...}` keeps the answers of `TYPE:NAME` for a while (postkeep only).
//!
//! An answer is kept whether the key was found or not. Many lookups of one key at the same time, of all clients of the
//! process, are one lookup in the table; clients that wait for it take no threads. Keys are compared as they are asked
//! for, and answers to requests that fold keys and to others are kept apart.
//!
//! | key | default | |
//! |---|---|---|
//! | `ttl` | 60s | how long a value is kept, from the moment when the table was asked |
//! | `negative_ttl` | 20s | how long it is kept that a key was not found |
//! | `stale_ttl` | 0 | how long after that an answer serves on while the table gives temporary errors |
//! | `retry_delay` | 1s | how long a key is left alone after an error |
//! | `refresh` | 50% | an answer that is asked for in this last part of its time is looked up anew ahead of its end; 0% for never |
//! | `max_entries` | 100000 | most answers |
//! | `max_bytes` | 32M | most memory, in bytes, with what it takes to keep an answer; `K`, `M`, `G` may follow |
//!
//! The table comes first. Times have the unit `ms`, `s`, `m`, `h`, `d` or `w`, seconds without one. Elements are
//! separated by comma or white space; nothing may stand between a key, `=` and its value. Where room is short, answers go
//! that nobody asked for lately. A single answer larger than 128K may be too large to be kept.
//!
//! **With a lookup table server.** Other programs of Postfix do not know the type; they ask for it through proxymap, as
//! `proxy:cache:{mysql:/etc/postfix/aliases.cf, ttl=5m}` in main.cf:
//!
//! ```text
//! aliases = proxy:cache:{mysql:/etc/postfix/aliases.cf, ttl=5m}
//! virtual_alias_maps = $aliases
//! ```
//!
//! Where a parameter is in `proxy_read_maps`, as `$virtual_alias_maps` is by default, that approves the table. A table
//! that no such parameter names is listed there with the same text: names are compared byte for byte, blanks too. The
//! braces keep commas and blanks together in lists of tables and restrictions. Within braces of another kind
//! (`{ proxy:cache:{...} KEY=VALUE }`) the name is kept together too.
//!
//! **Errors** are not kept. After one the key is left alone for `retry_delay`: meanwhile who asks for it gets the error at
//! once, without a lookup in the table. With `stale_ttl` a temporary error is answered with what was known before, be it
//! that the key was not found: mail for a user who is new since is then refused, not put off. An error that a person must
//! repair is never covered up.
//!
//! **Changes.** A table that was changed may be answered from the past for `ttl` or `negative_ttl` (with `stale_ttl`: and
//! that). When the table is opened anew, because its file has changed, the cache begins empty. It cannot be written to:
//! whoever reads through proxymap would not see what another process writes through proxywrite.
//!
//! Flags, owner, and what is refused for data that is security sensitive are those of the table inside; a table that
//! cannot be opened makes the whole one that cannot be opened. Each way in which clients open the table (mostly one) has
//! answers of its own, and so has each process: postmap(1) starts with none. A table in memory gains nothing.

mod keys;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use log::warn;
use postkeep_cache::{Answer, Cache, Entered, Failure, Kept, Settings, State, Ticket};
use postkeep_remote::runtime;
use postkeep_table::{
    CacheCounts, Completion, Flags, Latency, LookupError, OpenError, Outcome, Owner, Table,
    TableName, Watch,
};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "cache",
    summary: "keeps the answers of another table",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::DATA_IN_NAME)
        .union(Capabilities::WRAPS),
    open,
    build: None,
};

/// Flags of a request that no answer to a lookup depends on; all others keep answers apart.
const ASIDE: Flags = Flags::DUP_WARN
    .union(Flags::DUP_IGNORE)
    .union(Flags::DUP_REPLACE)
    .union(Flags::LOCK)
    .union(Flags::OPEN_LOCK)
    .union(Flags::SYNC_UPDATE)
    .union(Flags::BULK_UPDATE)
    .union(Flags::MULTI_WRITER)
    .union(Flags::DEBUG);

/// How many lookups ahead of time may be under way; more are not begun.
const REFRESHES: usize = 16;

/// How often the line about old answers comes, in seconds.
const REMINDER: u64 = 60;

fn class(flags: Flags) -> u32 {
    flags.difference(ASIDE).bits()
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let (name, settings) = keys::read(request.name)?;
    let inner = request.open_inner(&name)?;
    Ok(Arc::new(Cached {
        latency: inner.latency(),
        shared: Arc::new(Shared::new(request.name.clone(), inner, &settings)),
    }))
}

struct Cached {
    latency: Latency,
    shared: Arc<Shared>,
}

/// Who waits: a buffer, and who takes it.
type Waiter = (Vec<u8>, Completion);

struct Shared {
    name: TableName,
    inner: Arc<dyn Table>,
    cache: Cache<Waiter>,
    /// The zero of the cache's clock.
    epoch: Instant,
    /// Lookups ahead of time that are under way or about to be.
    refreshes: AtomicUsize,
    /// When the line about old answers may come again, in seconds.
    remind: AtomicU64,
}

impl Shared {
    fn new(name: TableName, inner: Arc<dyn Table>, settings: &Settings) -> Self {
        Self {
            name,
            inner,
            cache: Cache::new(settings),
            epoch: Instant::now(),
            refreshes: AtomicUsize::new(0),
            remind: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Takes in what came of a lookup, and tells all who wait for it.
    fn end(&self, ticket: Ticket, result: Result<Outcome, LookupError>, found: &[u8]) {
        let now = self.now();
        let finished = self.cache.finish(now, ticket, answer(&result, found));
        let waiters = finished.waiters;
        let (mut result, found) = match finished.instead {
            Some(kept) => {
                swallow(&result);
                if !waiters.is_empty() {
                    self.mention(now);
                }
                match kept {
                    Kept::Found(value) => (Ok(Outcome::Done), value),
                    Kept::Absent => (Ok(Outcome::Absent), Vec::new()),
                }
            }
            None if waiters.is_empty() => return swallow(&result),
            None => (result, found.to_vec()),
        };
        for (mut value, done) in waiters {
            if matches!(result, Ok(Outcome::Done)) {
                value.extend_from_slice(&found);
            }
            // The first tells what there is to say about an error.
            let next = again(&result);
            done(std::mem::replace(&mut result, next), value);
        }
    }

    /// Says that old answers serve on.
    fn mention(&self, now: Duration) {
        let (now, due) = (now.as_secs(), self.remind.load(Ordering::Relaxed));
        let next = now + REMINDER;
        let mine = now >= due
            && self
                .remind
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            warn!(
                "{}: temporary errors of {} -- answers that have expired serve on",
                self.name,
                self.inner.name()
            );
        }
    }

    /// Looks a key up ahead of time, without anybody who waits.
    fn refresh(self: &Arc<Self>, latency: Latency, flags: Flags, key: &[u8]) {
        self.refreshes.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        if latency == Latency::Blocking {
            let key = key.to_vec();
            // The question begins with the work, so that nobody waits for what has not begun.
            runtime::aside(move || {
                if let Some(lead) = Lead::ahead(&place.0, flags, &key) {
                    lead.ask(flags, &key);
                }
                drop(place);
            });
        } else if let Some(lead) = Lead::ahead(self, flags, key) {
            lead.begin(flags, key, Some(place));
        }
    }
}

fn answer<'a>(
    result: &Result<Outcome, LookupError>,
    found: &'a [u8],
) -> Result<Answer<'a>, Failure> {
    match result {
        Ok(Outcome::Done) => Ok(Answer::Found(found)),
        Ok(Outcome::Absent) => Ok(Answer::Absent),
        Err(LookupError::Retry(_)) => Err(Failure::Retry),
        // Not known to go away by itself.
        Err(_) => Err(Failure::Config),
    }
}

/// The same, once what there is to say was said.
fn again(result: &Result<Outcome, LookupError>) -> Result<Outcome, LookupError> {
    match result {
        Ok(outcome) => Ok(*outcome),
        Err(LookupError::Retry(_)) => Err(LookupError::Retry(String::new())),
        Err(_) => Err(LookupError::Config(String::new())),
    }
}

fn outcome(state: State) -> Result<Outcome, LookupError> {
    match state {
        State::Found => Ok(Outcome::Done),
        State::Absent => Ok(Outcome::Absent),
        State::Failed(Failure::Retry) => Err(LookupError::Retry(String::new())),
        State::Failed(Failure::Config) => Err(LookupError::Config(String::new())),
    }
}

/// Logs an error that nobody gets to see.
fn swallow(result: &Result<Outcome, LookupError>) {
    if let Err(error) = result {
        let text = error.to_string();
        if !text.is_empty() {
            warn!("{text}");
        }
    }
}

/// One of the lookups ahead of time that may be under way.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.refreshes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The lookup in the table that others may be waiting for. They are told in any case, also when it is lost.
struct Lead {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
}

impl Lead {
    fn new(shared: &Arc<Shared>, ticket: Ticket) -> Self {
        Self {
            shared: Arc::clone(shared),
            ticket: Some(ticket),
        }
    }

    fn ahead(shared: &Arc<Shared>, flags: Flags, key: &[u8]) -> Option<Self> {
        let ticket = shared.cache.refresh(shared.now(), class(flags), key)?;
        Some(Self::new(shared, ticket))
    }

    /// Asks and waits.
    fn ask(self, flags: Flags, key: &[u8]) {
        let mut found = Vec::new();
        let result = self.shared.inner.lookup(flags, key, &mut found);
        self.end(result, &found);
    }

    /// Asks, and is told the answer later.
    fn begin(self, flags: Flags, key: &[u8], place: Option<Place>) {
        let inner = Arc::clone(&self.shared.inner);
        let done = move |result, found: Vec<u8>| {
            self.end(result, &found);
            drop(place);
        };
        inner.begin_lookup(flags, key, Vec::new(), Box::new(done));
    }

    fn end(mut self, result: Result<Outcome, LookupError>, found: &[u8]) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.end(ticket, result, found);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let lost = Err(LookupError::Retry(String::new()));
            self.shared.end(ticket, lost, b"");
        }
    }
}

impl Cached {
    /// What is known already.
    fn known(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        let shared = &self.shared;
        let may_refresh =
            self.latency != Latency::Memory && shared.refreshes.load(Ordering::Relaxed) < REFRESHES;
        let known = shared
            .cache
            .peek(shared.now(), class(flags), key, may_refresh, value)?;
        if known.refresh {
            shared.refresh(self.latency, flags, key);
        }
        Some(outcome(known.state))
    }

    /// Asks a table that answers at once. It is asked by each who wants to know.
    fn at_once(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let (shared, start) = (&self.shared, value.len());
        let begun = shared.now();
        let result = shared.inner.lookup(flags, key, value);
        let now = shared.now();
        let said = answer(&result, &value[start..]);
        let Some(kept) = shared.cache.put(begun, now, class(flags), key, said) else {
            return result;
        };
        swallow(&result);
        shared.mention(now);
        match kept {
            Kept::Found(found) => {
                value.extend_from_slice(&found);
                Ok(Outcome::Done)
            }
            Kept::Absent => Ok(Outcome::Absent),
        }
    }

    /// Asks for what is not known, or waits for somebody who does; `ask` is who asks.
    fn enter(&self, flags: Flags, key: &[u8], waiter: Waiter, ask: impl FnOnce(Lead)) {
        let (shared, mut found) = (&self.shared, Vec::new());
        match shared
            .cache
            .enter(shared.now(), class(flags), key, &mut found, waiter)
        {
            Entered::Known(state, (mut value, done)) => {
                value.extend_from_slice(&found);
                done(outcome(state), value);
            }
            Entered::Joined => {}
            Entered::Lead(ticket) => ask(Lead::new(shared, ticket)),
        }
    }
}

impl Table for Cached {
    fn name(&self) -> &TableName {
        &self.shared.name
    }

    fn flags(&self) -> Flags {
        self.shared.inner.flags()
    }

    fn latency(&self) -> Latency {
        self.latency
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if let Some(result) = self.known(flags, key, value) {
            return result;
        }
        if self.latency == Latency::Memory {
            return self.at_once(flags, key, value);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        // The receiver waits in any case.
        let done: Completion = Box::new(move |result, found| drop(sender.send((result, found))));
        self.enter(flags, key, (Vec::new(), done), |lead| lead.ask(flags, key));
        let (result, found) = runtime::block(|| receiver.recv())
            .unwrap_or_else(|_| (Err(LookupError::Retry(String::new())), Vec::new()));
        if matches!(result, Ok(Outcome::Done)) {
            value.extend_from_slice(&found);
        }
        result
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        match self.latency {
            Latency::Memory => Some(self.lookup(flags, key, value)),
            Latency::Blocking | Latency::Remote => self.known(flags, key, value),
        }
    }

    fn begin_lookup(
        self: Arc<Self>,
        flags: Flags,
        key: &[u8],
        mut value: Vec<u8>,
        done: Completion,
    ) {
        match self.latency {
            Latency::Memory => {
                let result = self.lookup(flags, key, &mut value);
                done(result, value);
            }
            Latency::Blocking => {
                self.enter(flags, key, (value, done), |lead| lead.ask(flags, key));
            }
            Latency::Remote => {
                self.enter(flags, key, (value, done), |lead| {
                    lead.begin(flags, key, None);
                });
            }
        }
    }

    fn watches(&self) -> Vec<Watch> {
        self.shared.inner.watches()
    }

    fn owner(&self) -> Owner {
        self.shared.inner.owner()
    }

    fn cache_counts(&self) -> Option<CacheCounts> {
        Some(self.shared.cache.counts())
    }
}

#[cfg(test)]
mod tests;
