//! The entries of one part: an index by key, a queue in order of arrival, and the hand that makes room.
//!
//! Entries lie close together: when one goes the last one takes its place. So their memory shrinks with their number, and
//! the price of an entry ([`OVERHEAD`]) is what it takes at most.

use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;

use crate::{Failure, Time};

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Found,
    Absent,
    /// There is no answer, only an error that was a moment ago.
    Failed(Failure),
}

/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Entry {
    /// The key, then the value.
    text: Box<[u8]>,
    hash: u64,
    key_length: u32,
    class: u32,
    pub(crate) kind: Kind,
    /// Until when the answer is as good as one from the table.
    pub(crate) fresh_until: Time,
    /// From when on it is to be asked for again ahead of time.
    pub(crate) refresh_from: Time,
    /// Until when it may serve instead of an error.
    pub(crate) stale_until: Time,
    /// Until when the table is left alone after an error.
    pub(crate) retry_at: Time,
    /// It was asked for since the hand was here.
    visited: AtomicBool,
    /// Somebody was told to ask for it again.
    pub(crate) claimed: AtomicBool,
    /// Towards the newest.
    newer: u32,
    /// Towards the oldest.
    older: u32,
}

/// The times of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    pub(crate) fresh: Time,
    pub(crate) refresh_from: Time,
    pub(crate) stale: Time,
    pub(crate) retry: Time,
}

/// Bytes that an entry takes beside its key and value, at most: its place in a list that may be half empty, in an index
/// that may be a quarter full (a number and a byte for each place), and what an allocator adds to its text.
pub(crate) const OVERHEAD: usize = 2 * size_of::<Entry>() + 5 * 5 + 16;

impl Entry {
    pub(crate) fn key(&self) -> &[u8] {
        &self.text[..self.key_length as usize]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.text[self.key_length as usize..]
    }

    pub(crate) fn mark(&self) {
        // A write that changes nothing would still take the cache line from others.
        if !self.visited.load(Ordering::Relaxed) {
            self.visited.store(true, Ordering::Relaxed);
        }
    }

    /// It is of no more use.
    fn is_dead(&self, now: Time) -> bool {
        match self.kind {
            Kind::Failed(_) => now >= self.retry_at,
            Kind::Found | Kind::Absent => now >= self.fresh_until.max(self.stale_until),
        }
    }

    fn price(&self) -> usize {
        self.text.len() + OVERHEAD
    }
}

#[derive(Debug)]
pub(crate) struct Entries {
    list: Vec<Entry>,
    index: HashTable<u32>,
    newest: u32,
    oldest: u32,
    hand: u32,
    bytes: usize,
    most: usize,
    max_bytes: usize,
}

impl Entries {
    pub(crate) fn new(most: usize, max_bytes: usize) -> Self {
        Self {
            list: Vec::new(),
            index: HashTable::new(),
            newest: NONE,
            oldest: NONE,
            hand: NONE,
            bytes: 0,
            most: most.min(NONE as usize),
            max_bytes,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn find(&self, hash: u64, class: u32, key: &[u8]) -> Option<&Entry> {
        self.place(hash, class, key).map(|place| self.at(place))
    }

    pub(crate) fn find_mut(&mut self, hash: u64, class: u32, key: &[u8]) -> Option<&mut Entry> {
        let place = self.place(hash, class, key)?;
        self.list.get_mut(place as usize)
    }

    fn place(&self, hash: u64, class: u32, key: &[u8]) -> Option<u32> {
        let same = |&place: &u32| {
            let entry = self.at(place);
            entry.hash == hash && entry.class == class && entry.key() == key
        };
        self.index.find(hash, same).copied()
    }

    fn at(&self, place: u32) -> &Entry {
        &self.list[place as usize]
    }

    fn at_mut(&mut self, place: u32) -> &mut Entry {
        &mut self.list[place as usize]
    }

    /// Removes a key.
    pub(crate) fn remove(&mut self, hash: u64, class: u32, key: &[u8]) {
        if let Some(place) = self.place(hash, class, key) {
            self.remove_at(place);
        }
    }

    /// Puts an entry in front, in place of an older one for the same key; makes room, and says how many had to go for it.
    ///
    /// What is larger than everything together is not kept.
    #[expect(
        clippy::too_many_arguments,
        reason = "an entry is what these are together"
    )]
    pub(crate) fn put(
        &mut self,
        now: Time,
        hash: u64,
        class: u32,
        key: &[u8],
        value: &[u8],
        kind: Kind,
        until: Until,
    ) -> usize {
        let before = self.place(hash, class, key);
        let visited = before.is_some_and(|place| self.at(place).visited.load(Ordering::Relaxed));
        if let Some(place) = before {
            self.remove_at(place);
        }
        let price = key.len() + value.len() + OVERHEAD;
        let Ok(key_length) = u32::try_from(key.len()) else {
            return 0;
        };
        if price > self.max_bytes || self.most == 0 {
            return 0;
        }
        let mut gone = 0;
        while self.list.len() >= self.most || self.bytes + price > self.max_bytes {
            self.make_room(now);
            gone += 1;
        }
        let mut text = Vec::with_capacity(key.len() + value.len());
        text.extend_from_slice(key);
        text.extend_from_slice(value);
        let entry = Entry {
            text: text.into_boxed_slice(),
            hash,
            key_length,
            class,
            kind,
            fresh_until: until.fresh,
            refresh_from: until.refresh_from,
            stale_until: until.stale,
            retry_at: until.retry,
            visited: AtomicBool::new(visited),
            claimed: AtomicBool::new(false),
            newer: NONE,
            older: self.newest,
        };
        self.append(entry);
        gone
    }

    fn append(&mut self, entry: Entry) {
        if self.list.len() == self.list.capacity() {
            self.list.reserve_exact((self.list.len() / 2).max(8));
        }
        // Below the bound, which fits.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "there are fewer entries than that"
        )]
        let place = self.list.len() as u32;
        let (hash, older) = (entry.hash, entry.older);
        let list = &self.list;
        self.index
            .insert_unique(hash, place, |&other| list[other as usize].hash);
        self.bytes += entry.price();
        self.list.push(entry);
        if older == NONE {
            self.oldest = place;
        } else {
            self.at_mut(older).newer = place;
        }
        self.newest = place;
    }

    /// Lets go of one entry: the first that the hand finds, on its way from old to new, that nobody asked for since it was
    /// there last, or that is of no more use.
    fn make_room(&mut self, now: Time) {
        let mut place = self.hand;
        loop {
            if place == NONE {
                place = self.oldest;
            }
            if place == NONE {
                return;
            }
            let entry = self.at_mut(place);
            let visited = entry.visited.get_mut();
            if *visited {
                *visited = false;
                if !entry.is_dead(now) {
                    place = entry.newer;
                    continue;
                }
            }
            self.hand = place;
            self.remove_at(place);
            return;
        }
    }

    fn remove_at(&mut self, place: u32) {
        let entry = self.at(place);
        let (hash, newer, older, price) = (entry.hash, entry.newer, entry.older, entry.price());
        match newer {
            NONE => self.newest = older,
            newer => self.at_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.at_mut(older).newer = newer,
        }
        if self.hand == place {
            self.hand = newer;
        }
        self.forget(hash, place);
        self.bytes -= price;
        // The last entry takes the place.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "there are fewer entries than that"
        )]
        let last = self.list.len() as u32 - 1;
        self.list.swap_remove(place as usize);
        if last != place {
            let moved = self.at(place);
            let (hash, newer, older) = (moved.hash, moved.newer, moved.older);
            match newer {
                NONE => self.newest = place,
                newer => self.at_mut(newer).older = place,
            }
            match older {
                NONE => self.oldest = place,
                older => self.at_mut(older).newer = place,
            }
            if self.hand == last {
                self.hand = place;
            }
            if let Some(number) = self.index.find_mut(hash, |&number| number == last) {
                *number = place;
            }
        }
        self.shrink();
    }

    fn forget(&mut self, hash: u64, place: u32) {
        if let Ok(found) = self.index.find_entry(hash, |&number| number == place) {
            found.remove();
        }
    }

    /// Gives memory back once half of it is not used.
    fn shrink(&mut self) {
        let used = self.list.len();
        if self.list.capacity() > 64 && used * 2 < self.list.capacity() {
            self.list.shrink_to(used + used / 2);
            let list = &self.list;
            self.index
                .shrink_to(used, |&other| list[other as usize].hash);
        }
    }
}
