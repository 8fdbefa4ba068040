//! Pages that are kept from one lookup to the next, for as long as the file is the same.
//!
//! A [`Generation`] is one state of a file. It begins with the file locked, so that the state is one that its writer
//! left. Which state it is, the file's size and times tell ([`Stamp`]): a page is used, and kept, only where the stamp
//! is that of the generation *behind* the reading. A writer's change of the times comes before its change of the
//! contents, so such a page is of this state, whether or not somebody writes just then. All pages of a generation
//! are of one state, and an answer is never made of two.
//!
//! Times move on by ticks of the kernel (up to 10 ms), in old file systems by seconds, so a file that was changed just
//! now may change again and look the same. Nothing is kept of such a file: it has to settle first ([`Settling`]). A
//! change of a settled file gives it another stamp. Nor is anything kept of files on file systems whose times are not
//! our kernel's.
//!
//! Whether the file is still the same is asked by one lookup in [`TRUSTED`], and by the first one behind each change that
//! this process makes to any table ([`Changing`]). All others, where the pages are here, make no system call.

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs,
};
use postkeep_sys::lock::LockedFile;

use super::pages::PageSource;
use super::reader::{Header, Reader};

/// For how long a file is taken to be unchanged.
const TRUSTED: Duration = Duration::from_millis(100);

/// How long ago a file must have been changed, or for how long it must have looked the same: some ticks of the
/// kernel's clock.
const SETTLED: Duration = Duration::from_millis(50);

/// The same where the file system may keep whole seconds only.
const SETTLED_COARSE: Duration = Duration::from_secs(3);

/// File systems that this kernel alone writes to, and that set a file's times, by the kernel's clock, before they change
/// the contents.
const LOCAL: [FsType; 6] = [
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    TMPFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
];

/// Memory for the pages of one table, in bytes: enough for 700,000 entries of usual lengths. A mail server has few
/// tables of that size, and memory for some of them. What does not fit is read each time.
pub(super) const MEMORY: usize = 64 << 20;

/// How many pages can be kept at all. Bounds the list of pages, which would be long for a sparse file.
const LISTED: usize = 1 << 19;

/// How often a page is read before it is kept: to keep it costs as much as some readings, and a short-lived process
/// would pay that for pages of a large file that it does not come back to.
const READINGS: u8 = 2;

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
    /// To be called before the file is read, with the file locked.
    pub fn begin(&self) -> Reading<'_> {
        Reading {
            settling: self,
            changes: CHANGES.load(Ordering::SeqCst),
            begun: Instant::now(),
            clock: SystemTime::now(),
        }
    }

    /// Since when a file is known to look like this.
    fn watch(&self, stamp: Stamp) -> Instant {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((before, since)) if before == stamp => since,
            _ => {
                let now = Instant::now();
                *seen = Some((stamp, now));
                now
            }
        }
    }
}

impl Reading<'_> {
    /// To be called behind the reading, with what was read, and the file still locked. Gives the generation to keep
    /// pages in if the file had settled before.
    pub fn end(self, file: &Arc<LockedFile>, header: Header) -> Option<Generation> {
        let metadata = file.file().metadata().ok()?;
        let stamp = stamp_of(&metadata);
        let since = self.settling.watch(stamp);
        let coarse = metadata.mtime_nsec() == 0 && metadata.ctime_nsec() == 0;
        let wanted = if coarse { SETTLED_COARSE } else { SETTLED };
        let settled = self.begun.saturating_duration_since(since) >= wanted
            || changed_long_ago(&metadata, self.clock, wanted);
        if !settled || !is_local(file.file()) {
            return None;
        }
        let file = Arc::clone(file);
        Some(Generation::new(file, stamp, header, self.changes, MEMORY))
    }
}

/// Both times of a file are so long before `now`. They are not when the clock was set back.
fn changed_long_ago(metadata: &Metadata, now: SystemTime, wanted: Duration) -> bool {
    let times = [
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ];
    let limit = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|now| now.checked_sub(wanted));
    times.iter().all(|&(seconds, nanoseconds)| {
        let time = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok())
            .map(|(seconds, nanoseconds)| Duration::new(seconds, nanoseconds));
        time.is_some_and(|time| limit.is_some_and(|limit| time <= limit))
    })
}

fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| LOCAL.contains(&system.filesystem_type()))
}

/// A place for a page.
#[derive(Default)]
struct Place {
    bytes: OnceLock<Box<[u8]>>,
    readings: AtomicU8,
}

/// One state of a file, and pages of it.
pub(super) struct Generation {
    file: Arc<LockedFile>,
    stamp: Stamp,
    header: Header,
    places: Box<[Place]>,
    /// Memory for pages, in bytes, and how much of it is in use.
    memory: usize,
    used: AtomicUsize,
    begun: Instant,
    /// When the file was last found to be the same, in milliseconds behind `begun`.
    checked: AtomicU64,
    /// The changes of this process after which it was found to be the same.
    changes: AtomicU64,
}

impl Generation {
    /// - `memory`: for the pages and the list of them
    fn new(
        file: Arc<LockedFile>,
        stamp: Stamp,
        header: Header,
        changes: u64,
        memory: usize,
    ) -> Self {
        let length = usize::try_from(stamp[2]).unwrap_or(usize::MAX);
        let pages = (length / header.size).min(LISTED);
        Self {
            file,
            stamp,
            header,
            places: (0..pages).map(|_| Place::default()).collect(),
            memory: memory.saturating_sub(pages * size_of::<Place>()),
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

    /// The pages for one operation.
    pub fn view(&self) -> View<'_> {
        View {
            generation: self,
            changed: Cell::new(false),
        }
    }

    fn place(&self, offset: u64) -> Option<&Place> {
        // Always that of a page.
        let number = offset / self.header.size as u64;
        self.places.get(usize::try_from(number).ok()?)
    }

    /// Keeps a page of this generation if it was read often enough, and there is memory.
    fn keep(&self, offset: u64, bytes: &[u8]) {
        let Some(place) = self.place(offset) else {
            return;
        };
        if place.readings.load(Ordering::Relaxed) < READINGS {
            // It does not matter where two count as one.
            place.readings.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let take = |used: usize| {
            let used = used.checked_add(bytes.len())?;
            (used <= self.memory).then_some(used)
        };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        if self.used.fetch_update(set, fetch, take).is_ok()
            && place.bytes.set(bytes.into()).is_err()
        {
            // Another thread was faster.
            self.used.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}

/// The pages of a generation: those that are kept, and the others from the file.
pub(super) struct View<'g> {
    generation: &'g Generation,
    changed: Cell<bool>,
}

impl View<'_> {
    pub fn reader(&self) -> Reader<'_> {
        self.generation.header.reader(self)
    }

    /// A page could not be had because the file is not that of the generation any more.
    pub fn has_changed(&self) -> bool {
        self.changed.get()
    }
}

impl PageSource for View<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let generation = self.generation;
        let length = PageSource::read_at(generation.file.file(), buffer, offset)?;
        if !generation.is_unchanged() {
            self.changed.set(true);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if length == generation.header.size {
            generation.keep(offset, buffer);
        }
        Ok(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.generation.stamp[2].cast_unsigned())
    }

    fn lend(&self, offset: u64, _length: usize) -> Option<&[u8]> {
        let bytes = self.generation.place(offset)?.bytes.get()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests;
