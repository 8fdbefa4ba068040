//! One part of a cache: its entries, and the questions that are being asked.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashTable;

use crate::counters::Counters;
use crate::entries::{Entries, Entry, Kind, Until};
use crate::{Answer, Entered, Failure, Finished, Kept, Known, State, Ticket, Time, Times};

/// A question that is being asked.
#[derive(Debug)]
struct Question<W> {
    hash: u64,
    number: u64,
    class: u32,
    key: Box<[u8]>,
    /// Reached through `&mut` only; the lock makes a `W` that threads can send one that they can share.
    waiters: Mutex<Vec<W>>,
}

fn waiting<W>(waiters: &mut Mutex<Vec<W>>) -> &mut Vec<W> {
    waiters.get_mut().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(crate) struct Part<W> {
    entries: Entries,
    questions: HashTable<Question<W>>,
    /// That of the next question.
    number: u64,
    times: Times,
}

impl<W> Part<W> {
    pub(crate) fn new(times: Times, max_entries: usize, max_bytes: usize) -> Self {
        Self {
            entries: Entries::new(max_entries, max_bytes),
            questions: HashTable::new(),
            number: 0,
            times,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the question, and where its answer is counted and put"
    )]
    pub(crate) fn peek(
        &self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        may_refresh: bool,
        value: &mut Vec<u8>,
        counters: &Counters,
    ) -> Option<Known> {
        let entry = self.entries.find(hash, class, key)?;
        let state = match entry.kind {
            Kind::Failed(failure) if now < entry.retry_at => {
                counters.refused();
                return Some(Known {
                    state: State::Failed(failure),
                    refresh: false,
                });
            }
            Kind::Failed(_) => return None,
            Kind::Found => State::Found,
            Kind::Absent => State::Absent,
        };
        let refresh = if now < entry.fresh_until {
            counters.hit();
            may_refresh
                && now >= entry.refresh_from
                && !entry.claimed.load(Ordering::Relaxed)
                && !entry.claimed.swap(true, Ordering::Relaxed)
        } else if now < entry.stale_until && now < entry.retry_at {
            counters.stale(1);
            false
        } else {
            return None;
        };
        entry.mark();
        value.extend_from_slice(entry.value());
        Some(Known { state, refresh })
    }

    pub(crate) fn enter(
        &mut self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        waiter: W,
        counters: &Counters,
    ) -> Entered<W> {
        if let Some(question) = self.question(hash, class, key) {
            waiting(&mut question.waiters).push(waiter);
            counters.coalesced();
            return Entered::Joined;
        }
        counters.miss();
        Entered::Lead(self.ask(now, hash, class, key, vec![waiter]))
    }

    pub(crate) fn refresh(
        &mut self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        counters: &Counters,
    ) -> Option<Ticket> {
        let due = |entry: &Entry| {
            !matches!(entry.kind, Kind::Failed(_))
                && now >= entry.refresh_from.min(entry.fresh_until)
        };
        let wanted = self.entries.find(hash, class, key).is_none_or(due);
        if !wanted || self.question(hash, class, key).is_some() {
            return None;
        }
        counters.refreshed();
        Some(self.ask(now, hash, class, key, Vec::new()))
    }

    fn question(&mut self, hash: u64, class: u32, key: &[u8]) -> Option<&mut Question<W>> {
        self.questions.find_mut(hash, |question| {
            question.hash == hash && question.class == class && *question.key == *key
        })
    }

    fn ask(&mut self, now: Time, hash: u64, class: u32, key: &[u8], waiters: Vec<W>) -> Ticket {
        let number = self.number;
        self.number += 1;
        let question = Question {
            hash,
            number,
            class,
            key: key.into(),
            waiters: Mutex::new(waiters),
        };
        self.questions
            .insert_unique(hash, question, |other| other.hash);
        Ticket {
            hash,
            number,
            begun: now,
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a ticket is used once")]
    pub(crate) fn finish(
        &mut self,
        now: Time,
        ticket: Ticket,
        result: Result<Answer<'_>, Failure>,
        counters: &Counters,
    ) -> Finished<W> {
        let Ticket {
            hash,
            number,
            begun,
        } = ticket;
        let found = self
            .questions
            .find_entry(hash, |question| question.number == number);
        let Ok(found) = found else {
            // There is one ticket for each question, and it is used once.
            return Finished {
                waiters: Vec::new(),
                instead: None,
            };
        };
        let (question, _) = found.remove();
        // A burst of questions need not be remembered.
        if self.questions.is_empty() && self.questions.capacity() > 64 {
            self.questions = HashTable::new();
        }
        let instead = self.settle(
            begun,
            now,
            hash,
            question.class,
            &question.key,
            result,
            counters,
        );
        let waiters = question
            .waiters
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if instead.is_some() {
            counters.stale(waiters.len());
        }
        Finished { waiters, instead }
    }

    /// Keeps what came of a question; gives what serves instead of an error.
    #[expect(
        clippy::too_many_arguments,
        reason = "the question, its answer, and where it is counted"
    )]
    pub(crate) fn settle(
        &mut self,
        begun: Time,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        result: Result<Answer<'_>, Failure>,
        counters: &Counters,
    ) -> Option<Kept> {
        let (kind, value, ttl) = match result {
            Ok(Answer::Found(value)) => (Kind::Found, value, self.times.ttl),
            Ok(Answer::Absent) => (Kind::Absent, &b""[..], self.times.negative_ttl),
            Err(failure) => {
                counters.failed();
                return self.fail(now, hash, class, key, failure, counters);
            }
        };
        let fresh = begun.saturating_add(ttl);
        let stale = fresh.saturating_add(self.times.stale_ttl);
        if stale <= now {
            self.entries.remove(hash, class, key);
            return None;
        }
        let refresh_from = match self.times.refresh {
            0 => Time::MAX,
            percent => begun.saturating_add(ttl / 100 * Time::from(100 - percent)),
        };
        let until = Until {
            fresh,
            refresh_from,
            stale,
            retry: 0,
        };
        self.put(now, hash, class, key, value, kind, until, counters);
        None
    }

    fn fail(
        &mut self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        failure: Failure,
        counters: &Counters,
    ) -> Option<Kept> {
        let retry = now.saturating_add(self.times.retry_delay);
        if let Some(entry) = self.entries.find_mut(hash, class, key)
            && !matches!(entry.kind, Kind::Failed(_))
        {
            let fresh = now < entry.fresh_until;
            if fresh || (failure == Failure::Retry && now < entry.stale_until) {
                // Asked for ahead of time, or again: later once more.
                entry.retry_at = retry;
                entry.refresh_from = retry;
                *entry.claimed.get_mut() = false;
                entry.mark();
                return Some(match entry.kind {
                    Kind::Found => Kept::Found(entry.value().to_vec()),
                    Kind::Absent | Kind::Failed(_) => Kept::Absent,
                });
            }
        }
        if retry > now {
            let until = Until {
                fresh: 0,
                refresh_from: Time::MAX,
                stale: 0,
                retry,
            };
            let kind = Kind::Failed(failure);
            self.put(now, hash, class, key, b"", kind, until, counters);
        } else {
            self.entries.remove(hash, class, key);
        }
        None
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "an entry is what these are together"
    )]
    fn put(
        &mut self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        value: &[u8],
        kind: Kind,
        until: Until,
        counters: &Counters,
    ) {
        let gone = self.entries.put(now, hash, class, key, value, kind, until);
        for _ in 0..gone {
            counters.evicted();
        }
    }
}
