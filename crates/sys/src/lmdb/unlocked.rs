//! Lookups without a lock and without a system call: maps of the file, and trying again.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use crate::guarded::{GuardedMap, Landmark};

use super::snapshot::{Snapshot, Trouble};

/// How often a lookup is tried before it waits for the lock.
const ATTEMPTS: usize = 8;

/// The least room that a map has behind the end of the file (bytes).
const ROOM: u64 = 1 << 20;

/// How far from the last page of a state the last byte may be that is not zero (bytes).
const FARTHEST: u64 = 1 << 20;

/// What a lookup without a lock comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// The key at this place is there, and none before it.
    Found(usize),
    /// None of the keys is there.
    Absent,
    /// The file is damaged, or written to faster than it is read.
    Undecided,
}

/// Why nothing came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Writers were faster each time.
    Passed,
    /// Something was missing in the file.
    Damaged,
    /// It cannot be mapped, or its contents are of a kind that is not read here.
    Strange,
}

/// The map of a file.
pub(super) struct Maps {
    page_size: u64,
    /// Another one when it is too small or damaged; nobody waits here.
    map: ArcSwapOption<Map>,
}

struct Map {
    guarded: GuardedMap,
    /// A [`Landmark`] in one number, the byte lowest; 0 before there is one. Pages behind it are not read.
    landmark: AtomicU64,
    /// There is none: a hole at the end of the file, not to be looked through again each time.
    hole: AtomicBool,
}

/// What is to be done before the next attempt.
enum Next {
    Same,
    NewMap,
}

impl Maps {
    pub fn new(page_size: u64) -> Self {
        Self {
            page_size,
            map: ArcSwapOption::empty(),
        }
    }

    /// See [`super::Environment::find_unlocked`]: the place of the key that is there.
    pub fn find(
        &self,
        file: &File,
        keys: &[&[u8]],
        value: &mut Vec<u8>,
    ) -> Result<Option<usize>, Failure> {
        if !cfg!(target_pointer_width = "64") {
            // Page numbers have 64 bits in what is read here.
            return Err(Failure::Strange);
        }
        let start = value.len();
        let mut result = Err(Failure::Passed);
        for _ in 0..ATTEMPTS {
            let map = self.map.load();
            let next = match &*map {
                None => Ok(Next::NewMap),
                Some(map) => match map.find(self.page_size, keys, value) {
                    Ok(found) => return Ok(found),
                    Err(trouble) => {
                        value.truncate(start);
                        map.after(trouble, self.page_size, file)
                    }
                },
            };
            drop(map);
            match next {
                Ok(Next::Same) => {}
                Ok(Next::NewMap) => {
                    let map = Map::new(file).map_err(|_| Failure::Strange)?;
                    self.map.store(Some(Arc::new(map)));
                }
                Err(failure) => {
                    result = Err(failure);
                    break;
                }
            }
        }
        if result == Err(Failure::Damaged) {
            self.map.store(None);
        }
        result
    }
}

impl Map {
    fn new(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let room = length.saturating_mul(2).max(length.saturating_add(ROOM));
        Ok(Self {
            guarded: GuardedMap::with_room(file, room)?,
            landmark: AtomicU64::new(0),
            hole: AtomicBool::new(false),
        })
    }

    /// What follows from trouble.
    fn after(&self, trouble: Trouble, page_size: u64, file: &File) -> Result<Next, Failure> {
        if self.guarded.is_damaged() {
            return Err(Failure::Damaged);
        }
        match trouble {
            Trouble::Passed => Ok(Next::Same),
            Trouble::Structure => Err(Failure::Strange),
            Trouble::Outside => self.look_again(page_size, file),
        }
    }

    /// The file has grown, or what marked its end has changed: looks for the end again.
    fn look_again(&self, page_size: u64, file: &File) -> Result<Next, Failure> {
        if self.hole.load(Ordering::Relaxed) {
            return Err(Failure::Strange);
        }
        let length = file.metadata().map_err(|_| Failure::Strange)?.len();
        if length < 2 * page_size {
            return Err(Failure::Damaged);
        }
        if length > self.guarded.len() as u64 {
            return Ok(Next::NewMap);
        }
        let last_page = match Snapshot::newest(&self.guarded, page_size) {
            Ok(snapshot) => snapshot.last_page(),
            Err(Trouble::Passed) => return Ok(Next::Same),
            Err(Trouble::Outside | Trouble::Structure) => {
                return Err(if self.guarded.is_damaged() {
                    Failure::Damaged
                } else {
                    Failure::Strange
                });
            }
        };
        // A page that is not whole is zeros behind the end of the file, which nothing else would tell. One that is not
        // in use is what a writer left that was killed.
        if length % page_size != 0 && last_page >= length / page_size {
            return Err(Failure::Damaged);
        }
        let end = last_page
            .saturating_add(1)
            .saturating_mul(page_size)
            .min(length);
        let Some(landmark) = self.guarded.landmark(end, FARTHEST) else {
            if self.guarded.is_damaged() {
                return Err(Failure::Damaged);
            }
            self.hole.store(true, Ordering::Relaxed);
            return Err(Failure::Strange);
        };
        let packed = landmark.offset << 8 | u64::from(landmark.byte);
        self.landmark.store(packed, Ordering::Release);
        Ok(Next::Same)
    }

    fn find(
        &self,
        page_size: u64,
        keys: &[&[u8]],
        value: &mut Vec<u8>,
    ) -> Result<Option<usize>, Trouble> {
        let landmark = self.landmark.load(Ordering::Acquire);
        let [byte, ..] = landmark.to_le_bytes();
        if byte == 0 {
            return Err(Trouble::Outside);
        }
        let landmark = Landmark {
            offset: landmark >> 8,
            byte,
        };
        // Before as well as after: a file that is cut now may be whole again by then.
        if !self.guarded.holds(landmark) {
            return Err(Trouble::Outside);
        }
        let pages = landmark.offset / page_size + 1;
        let snapshot = Snapshot::newest(&self.guarded, page_size)?;
        let mut result = Ok(None);
        for (number, key) in keys.iter().enumerate() {
            match snapshot.find(&self.guarded, pages, key, value) {
                Ok(false) => {}
                Ok(true) => {
                    result = Ok(Some(number));
                    break;
                }
                Err(trouble) => {
                    result = Err(trouble);
                    break;
                }
            }
        }
        if !snapshot.was_intact(&self.guarded) {
            return Err(Trouble::Passed);
        }
        if !self.guarded.holds(landmark) {
            return Err(Trouble::Outside);
        }
        result
    }
}
