//! Lookups without a lock and without a system call: maps of the file, and trying again.

use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::guarded::{GuardedMap, Landmark};

use super::snapshot::{Snapshot, Trouble};

/// How often a lookup is tried before it waits for the lock.
const ATTEMPTS: usize = 8;

/// How many maps are made of an open file, one after the other. Each is twice as large as the file when it is made,
/// so that many are needed only where the file was damaged as often.
const MAPS: usize = 48;

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

/// The maps of a file. Those that are too small or damaged stay until it is closed: somebody may be reading them.
pub(super) struct Maps {
    page_size: u64,
    places: [OnceLock<Map>; MAPS],
    /// The one in use; `MAPS` when there will be none any more.
    current: AtomicUsize,
}

struct Map {
    guarded: GuardedMap,
    /// A [`Landmark`] in one number, the byte lowest; 0 before there is one. Pages behind it are not read.
    landmark: AtomicU64,
}

impl Maps {
    pub fn new(page_size: u64) -> Self {
        Self {
            page_size,
            places: [const { OnceLock::new() }; MAPS],
            // Page numbers have 64 bits in what is read here.
            current: AtomicUsize::new(if cfg!(target_pointer_width = "64") {
                0
            } else {
                MAPS
            }),
        }
    }

    /// See [`super::Environment::find_unlocked`].
    pub fn find(&self, file: &File, keys: &[&[u8]], value: &mut Vec<u8>) -> Unlocked {
        let start = value.len();
        for _ in 0..ATTEMPTS {
            let number = self.current.load(Ordering::Acquire);
            let Some(map) = self.map(number, file) else {
                break;
            };
            match map.find(self.page_size, keys, value) {
                Ok(Some(place)) => return Unlocked::Found(place),
                Ok(None) => return Unlocked::Absent,
                Err(trouble) => {
                    value.truncate(start);
                    if map.guarded.is_damaged() {
                        self.retire(number);
                        break;
                    }
                    match trouble {
                        Trouble::Passed => {}
                        Trouble::Outside if self.look_again(number, map, file).is_some() => {}
                        Trouble::Outside | Trouble::Structure => break,
                    }
                }
            }
        }
        Unlocked::Undecided
    }

    fn map(&self, number: usize, file: &File) -> Option<&Map> {
        let place = self.places.get(number)?;
        if let Some(map) = place.get() {
            return Some(map);
        }
        let length = file.metadata().ok()?.len();
        let room = length.saturating_mul(2).max(length.saturating_add(ROOM));
        let guarded = GuardedMap::with_room(file, room);
        let Ok(guarded) = guarded else {
            self.current.store(MAPS, Ordering::Release);
            return None;
        };
        // Another thread may have been faster.
        Some(place.get_or_init(|| Map {
            guarded,
            landmark: AtomicU64::new(0),
        }))
    }

    /// Takes the next map from now on.
    fn retire(&self, number: usize) {
        let _ =
            self.current
                .compare_exchange(number, number + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The file has grown, or what marked its end has changed: looks for the end again.
    fn look_again(&self, number: usize, map: &Map, file: &File) -> Option<()> {
        let length = file.metadata().ok()?.len();
        if length > map.guarded.len() as u64 {
            self.retire(number);
            return Some(());
        }
        // A page that is not whole is zeros behind the end of the file, which nothing else would tell.
        if length < 2 * self.page_size || length % self.page_size != 0 {
            return None;
        }
        let snapshot = Snapshot::newest(&map.guarded, self.page_size).ok()?;
        let end = snapshot
            .last_page()
            .saturating_add(1)
            .saturating_mul(self.page_size)
            .min(length);
        let Some(landmark) = map.guarded.landmark(end, FARTHEST) else {
            // A hole at the end of the file: not to be looked through again each time.
            self.current.store(MAPS, Ordering::Release);
            return None;
        };
        let packed = landmark.offset << 8 | u64::from(landmark.byte);
        map.landmark.store(packed, Ordering::Release);
        Some(())
    }
}

impl Map {
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
