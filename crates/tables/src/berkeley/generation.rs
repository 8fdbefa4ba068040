//! Pages that are kept from one lookup to the next, for as long as the file is the same.
//!
//! A [`Generation`] is one state of a file. Which one is told by the file's size and times ([`Stamp`]); a page is added
//! only when it was read under the file's lock and the stamp was the generation's *behind* the reading. So all pages
//! are of one state, and an answer is never made of two.
//!
//! Times move on by ticks of the kernel (up to 10 ms) or of the file system (up to 2 s), so a file that was changed just
//! now may change again and look the same. Nothing is kept of such a file: it has to settle first ([`Settling`]). A
//! change of a settled file gives it another stamp.
//!
//! Whether the file is still the same is asked by one lookup in [`TRUSTED`], and by the first one behind each change that
//! this process makes to any table ([`Changing`]). All others make no system call.

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use postkeep_sys::lock::LockedFile;

use super::pages::PageSource;
use super::reader::{Header, Reader};

/// For how long a file is taken to be unchanged.
const TRUSTED: Duration = Duration::from_millis(100);

/// How long a file must have looked the same while we watched: some ticks of the kernel's clock.
const SETTLED: Duration = Duration::from_millis(50);

/// The same where the file system may keep whole seconds only, or pairs of them.
const SETTLED_COARSE: Duration = Duration::from_secs(3);

/// How long ago a file must have been changed by its own times, which may be another computer's: long enough for coarse
/// times, and for clocks that are a little apart.
const LONG_AGO: Duration = Duration::from_secs(3);

/// Memory for the pages of one table, in bytes. Half a million entries of usual lengths fit; a hundred such tables
/// still fit into the memory of a mail server. What does not fit is read each time.
pub(super) const MEMORY: usize = 64 << 20;

/// How much is read at a time: most tables are in memory after some lookups, and one lookup does not read for long.
const BLOCK: usize = 32 << 10;

/// How many blocks can be kept at all. Bounds the list of blocks, which would be long for a sparse file.
const BLOCKS: usize = 1 << 16;

/// A file as it was at some moment.
pub(super) type Stamp = [i64; 7];

pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
    Ok(stamp_of(&file.metadata()?))
}

fn stamp_of(metadata: &Metadata) -> Stamp {
    let signed = u64::cast_signed;
    [
        signed(metadata.dev()),
        signed(metadata.ino()),
        signed(metadata.len()),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ]
}

/// How often this process changed a table. One count for all: the same file may be open under several names.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Tells all open tables, when it is dropped, that a file may have changed. To be dropped when the change is in the
/// file, and before others hear of it.
pub(super) struct Changing;

impl Drop for Changing {
    fn drop(&mut self) {
        CHANGES.fetch_add(1, Ordering::SeqCst);
    }
}

/// Watches a file until it has settled.
#[derive(Default)]
pub(super) struct Settling(Mutex<Option<(Stamp, Instant)>>);

/// A reading of a file that may have settled.
pub(super) struct Reading<'t> {
    settling: &'t Settling,
    begun: Instant,
    clock: SystemTime,
    changes: u64,
}

impl Settling {
    /// To be called before the file is read.
    pub fn begin(&self) -> Reading<'_> {
        Reading {
            settling: self,
            changes: CHANGES.load(Ordering::SeqCst),
            begun: Instant::now(),
            clock: SystemTime::now(),
        }
    }
}

impl Reading<'_> {
    /// To be called behind the reading, with what was read. Gives the generation to keep pages in if the file had
    /// settled before.
    pub fn end(self, file: &Arc<LockedFile>, header: Header) -> Option<Generation> {
        let metadata = file.file().metadata().ok()?;
        let stamp = stamp_of(&metadata);
        let mut seen = self
            .settling
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((before, since)) if before == stamp => since,
            _ => {
                // Not the time of its begin: the file may have changed until now.
                let now = Instant::now();
                *seen = Some((stamp, now));
                now
            }
        };
        drop(seen);
        let coarse = metadata.mtime_nsec() == 0 && metadata.ctime_nsec() == 0;
        let wanted = if coarse { SETTLED_COARSE } else { SETTLED };
        let watched = self.begun.saturating_duration_since(since);
        if watched < wanted && !changed_long_ago(&metadata, self.clock) {
            return None;
        }
        Some(Generation::new(
            Arc::clone(file),
            stamp,
            header,
            self.changes,
            MEMORY,
        ))
    }
}

/// Both times of a file are well before `now`. They are not when a clock was set back.
fn changed_long_ago(metadata: &Metadata, now: SystemTime) -> bool {
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    [metadata.mtime(), metadata.ctime()].iter().all(|&seconds| {
        // The second that has begun counts as over.
        let changed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).saturating_add(1));
        now.checked_sub(LONG_AGO)
            .is_some_and(|limit| changed <= limit)
    })
}

/// One state of a file, and pages of it.
pub(super) struct Generation {
    file: Arc<LockedFile>,
    stamp: Stamp,
    header: Header,
    /// Length of a block, in bytes: several pages, or one that is longer.
    block: usize,
    blocks: Box<[OnceLock<Box<[u8]>>]>,
    /// Memory for blocks, in bytes, and how much of it is in use.
    memory: usize,
    used: AtomicUsize,
    begun: Instant,
    /// When the file was last found to be the same, in milliseconds behind `begun`.
    checked: AtomicU64,
    /// The changes of this process after which it was found to be the same.
    changes: AtomicU64,
}

impl Generation {
    fn new(
        file: Arc<LockedFile>,
        stamp: Stamp,
        header: Header,
        changes: u64,
        memory: usize,
    ) -> Self {
        let block = BLOCK.max(header.size);
        let length = usize::try_from(stamp[2]).unwrap_or(usize::MAX);
        let blocks = length.div_ceil(block).min(BLOCKS);
        Self {
            file,
            stamp,
            header,
            block,
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            memory,
            used: AtomicUsize::new(0),
            begun: Instant::now(),
            checked: AtomicU64::new(0),
            changes: AtomicU64::new(changes),
        }
    }

    fn is_unchanged(&self) -> bool {
        stamp(self.file.file()).is_ok_and(|now| now == self.stamp)
    }

    /// Whether answers may come from it now. One that was changed stays so.
    pub fn is_current(&self) -> bool {
        let changes = CHANGES.load(Ordering::SeqCst);
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let seen = self.changes.load(Ordering::Acquire);
        if seen < changes {
            let unchanged = self.is_unchanged();
            if unchanged {
                self.changes.fetch_max(changes, Ordering::AcqRel);
            }
            return unchanged;
        }
        let checked = self.checked.load(Ordering::Relaxed);
        if u128::from(now.saturating_sub(checked)) < TRUSTED.as_millis() {
            return true;
        }
        // One asks; the others go on meanwhile.
        self.checked
            .compare_exchange(checked, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
            || self.is_unchanged()
    }

    /// Reads from the pages that are here; others are errors.
    pub fn reader(&self) -> Reader<'_> {
        self.header.reader(self)
    }

    /// For reading with the file locked: pages that are not here are added.
    pub fn filling(&self) -> Filling<'_> {
        Filling {
            generation: self,
            changed: Cell::new(false),
        }
    }

    /// Where some bytes are: the number of the block, and the place in it.
    fn place(&self, offset: u64) -> Option<(usize, usize)> {
        let offset = usize::try_from(offset).ok()?;
        Some((offset / self.block, offset % self.block))
    }

    /// Takes memory for a block, if there is some.
    fn take_memory(&self) -> bool {
        let take = |used: usize| {
            let used = used.checked_add(self.block)?;
            (used <= self.memory).then_some(used)
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

impl PageSource for Generation {
    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.stamp[2].cast_unsigned())
    }

    fn lend(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let (block, start) = self.place(offset)?;
        self.blocks
            .get(block)?
            .get()?
            .get(start..start.checked_add(length)?)
    }
}

/// The pages of a generation, and its file where they are missing.
pub(super) struct Filling<'g> {
    generation: &'g Generation,
    changed: Cell<bool>,
}

impl Filling<'_> {
    pub fn reader(&self) -> Reader<'_> {
        self.generation.header.reader(self)
    }

    /// A page could not be had because the file is not that of the generation any more.
    pub fn has_changed(&self) -> bool {
        self.changed.get()
    }

    /// What was read until now is of the generation.
    fn holds(&self) -> bool {
        let holds = self.generation.is_unchanged();
        if !holds {
            self.changed.set(true);
        }
        holds
    }

    /// Adds a block; false when that is not possible.
    fn load(&self, number: usize) -> bool {
        let generation = self.generation;
        let Some(slot) = generation.blocks.get(number) else {
            return false;
        };
        if slot.get().is_some() {
            return true;
        }
        if !generation.take_memory() {
            return false;
        }
        let mut block = vec![0; generation.block];
        let offset = number as u64 * generation.block as u64;
        let read = PageSource::read_at(generation.file.file(), &mut block, offset);
        let added = match read {
            Ok(length) if self.holds() => {
                block.truncate(length);
                slot.set(block.into_boxed_slice()).is_ok()
            }
            _ => false,
        };
        if !added {
            generation
                .used
                .fetch_sub(generation.block, Ordering::Relaxed);
        }
        // Another thread may have been faster.
        slot.get().is_some()
    }
}

impl PageSource for Filling<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = PageSource::read_at(self.generation.file.file(), buffer, offset)?;
        if self.holds() {
            Ok(length)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    fn length(&self) -> io::Result<u64> {
        self.generation.length()
    }

    fn lend(&self, offset: u64, length: usize) -> Option<&[u8]> {
        if let Some(bytes) = self.generation.lend(offset, length) {
            return Some(bytes);
        }
        let (block, _) = self.generation.place(offset)?;
        if self.has_changed() || !self.load(block) {
            return None;
        }
        self.generation.lend(offset, length)
    }
}

#[cfg(test)]
mod tests;
