//! Files in memory that may be cut, or be damaged, or change while they are read.
//!
//! A mapped file is the one way to read it without a system call. Touching a page that is behind the end of the file,
//! or that the disk does not deliver, raises SIGBUS, which ends the process. Here a handler puts a page of zeros in
//! its place when the page belongs to one of our maps, and notes the damage; every other SIGBUS goes on to whoever
//! would have got it before.
//!
//! Others may write to the file meanwhile. So there is never a `&[u8]` of it: everything is copied or compared in
//! loads that the compiler takes for atomic ones, and what was read means something only after the reader has made
//! sure that it belongs together.
//!
//! # Bugs
//! A handler for SIGBUS that is installed after the first map takes the place of this one. The system allows some
//! 65,000 pieces of memory for each process: a map with that many damaged pages, each touched, ends it.
#![allow(unsafe_code, reason = "mmap and a signal handler")]

mod signal;

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};
use std::sync::atomic::{self, AtomicU64};

/// Bytes that can be read piece by piece, at any place. Reading outside gives `None`, never a panic.
pub trait Source {
    /// How many bytes there are.
    fn length(&self) -> u64;

    /// Up to eight bytes at `offset`.
    fn bytes_at<const N: usize>(&self, offset: u64) -> Option<[u8; N]>;

    /// Compares `length` bytes at `offset` with `wanted`: byte by byte, and the shorter one first.
    fn compare(&self, offset: u64, length: usize, wanted: &[u8]) -> Option<Ordering>;

    /// Fills `out` from `offset` on.
    fn read(&self, offset: u64, out: &mut [u8]) -> Option<()>;

    /// Appends `length` bytes at `offset`. On `None` (outside, or no memory) `out` is as it was.
    fn append_to(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Option<()> {
        let start = out.len();
        // Memory is only asked for what is there.
        if offset.checked_add(length as u64)? > self.length() {
            return None;
        }
        out.try_reserve(length).ok()?;
        out.resize(start + length, 0);
        let done = self.read(offset, &mut out[start..]);
        if done.is_none() {
            out.truncate(start);
        }
        done
    }

    /// Whether the bytes at `offset` are `wanted`.
    fn equals(&self, offset: u64, wanted: &[u8]) -> Option<bool> {
        Some(self.compare(offset, wanted.len(), wanted)? == Ordering::Equal)
    }

    /// A number in the machine's byte order.
    fn u16_at(&self, offset: u64) -> Option<u16> {
        self.bytes_at(offset).map(u16::from_ne_bytes)
    }

    /// A number in the machine's byte order.
    fn u32_at(&self, offset: u64) -> Option<u32> {
        self.bytes_at(offset).map(u32::from_ne_bytes)
    }

    /// A number in the machine's byte order.
    fn u64_at(&self, offset: u64) -> Option<u64> {
        self.bytes_at(offset).map(u64::from_ne_bytes)
    }
}

/// Where `length` bytes at `offset` end, when they lie inside `all` bytes.
fn inside(offset: u64, length: usize, all: usize) -> Option<(usize, usize)> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(length)?;
    (end <= all).then_some((start, end))
}

impl Source for [u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn bytes_at<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let (start, end) = inside(offset, N, self.len())?;
        self[start..end].try_into().ok()
    }

    fn compare(&self, offset: u64, length: usize, wanted: &[u8]) -> Option<Ordering> {
        let (start, end) = inside(offset, length, self.len())?;
        Some(self[start..end].cmp(wanted))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Option<()> {
        let (start, end) = inside(offset, out.len(), self.len())?;
        out.copy_from_slice(&self[start..end]);
        Some(())
    }
}

/// A byte near the end of a file that is not zero, and so tells whether the file was cut before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landmark {
    /// Where it is.
    pub offset: u64,
    /// What it is; never 0.
    pub byte: u8,
}

/// A read-only shared map of a file that survives the file's being cut.
///
/// A cut in the middle of a page makes the rest of that page zeros without anybody being told: see
/// [`GuardedMap::landmark`].
#[derive(Debug)]
pub struct GuardedMap {
    start: NonNull<u8>,
    length: usize,
    slot: &'static signal::Slot,
}

// SAFETY: the memory is read only, and a map is not tied to the thread that made it.
unsafe impl Send for GuardedMap {}
// SAFETY: as above; all loads are atomic ones.
unsafe impl Sync for GuardedMap {}

/// The length of the pieces in which memory is read.
const WORD: usize = size_of::<u64>();

impl GuardedMap {
    /// Maps a file as long as it is now. The file may be closed afterwards.
    ///
    /// # Errors
    /// mmap(2) failed, the file is empty, or a thousand maps exist.
    pub fn new(file: &File) -> io::Result<Self> {
        Self::with_room(file, 0)
    }

    /// As [`GuardedMap::new`], with at least `room` bytes: a file that grows up to there is in the map when it does.
    /// What lies behind its end can be touched at the cost of the map, which then is damaged.
    ///
    /// # Errors
    /// As [`GuardedMap::new`].
    pub fn with_room(file: &File, room: u64) -> io::Result<Self> {
        let length = file.metadata()?.len().max(room);
        let length = usize::try_from(length).map_err(|_| out_of_memory())?;
        signal::install()?;
        let slot = signal::Slot::take().ok_or_else(out_of_memory)?;
        // SAFETY: a new map at a place that the system chooses; it is only read, and only through atomic loads.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                slot.publish(start.as_ptr().addr(), length);
                Ok(Self {
                    start,
                    length,
                    slot,
                })
            }
            _ => {
                slot.release();
                Err(error)
            }
        }
    }

    /// How many bytes can be asked for.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Always false: nothing cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A page was touched that was not in the file any more, or could not be read from the disk. It has been zeros
    /// since, and stays so.
    ///
    /// Asked after reading, it tells about everything that this thread has read.
    pub fn is_damaged(&self) -> bool {
        self.slot.is_damaged()
    }

    /// The last byte before `end` that is not zero, looked for in at most `farthest` bytes.
    ///
    /// As long as [`GuardedMap::holds`] it, the file was not cut anywhere before it. Bytes between it and `end` are
    /// zeros, whether they are there or not.
    pub fn landmark(&self, end: u64, farthest: u64) -> Option<Landmark> {
        let mut end = end.min(self.length as u64);
        let lowest = end.saturating_sub(farthest);
        let mut buffer = [0; 512];
        while end > lowest {
            let start = end.saturating_sub(buffer.len() as u64).max(lowest);
            let piece = buffer.get_mut(..usize::try_from(end - start).ok()?)?;
            self.read(start, piece)?;
            if let Some(place) = piece.iter().rposition(|&byte| byte != 0) {
                let landmark = Landmark {
                    offset: start + place as u64,
                    byte: piece[place],
                };
                return (!self.is_damaged()).then_some(landmark);
            }
            end = start;
        }
        None
    }

    /// Whether everything that this thread has read up to now was in the file: the byte is still there, and nothing
    /// was missing.
    pub fn holds(&self, landmark: Landmark) -> bool {
        // What was read before is read before the byte is.
        atomic::fence(atomic::Ordering::Acquire);
        self.bytes_at(landmark.offset) == Some([landmark.byte]) && !self.is_damaged()
    }

    /// The word at a multiple of its size, its first byte the lowest.
    ///
    /// # Safety
    /// `at` is below the length of the map, rounded up to a word.
    unsafe fn aligned_word(&self, at: usize) -> u64 {
        // SAFETY: the map begins at a page, so the word lies in a page of the map; nobody in this process writes
        // there, and what other processes write meanwhile is what atomic loads are for.
        let word = unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) };
        u64::from_le(word.load(atomic::Ordering::Relaxed))
    }

    /// Up to eight bytes, the first one the lowest; what is above them means nothing.
    ///
    /// # Safety
    /// `wanted` is 1 to 8, and that many bytes at `at` are in the map.
    unsafe fn word(&self, at: usize, wanted: usize) -> u64 {
        let shift = at % WORD;
        let first = at - shift;
        // SAFETY: both words hold bytes that the caller vouches for.
        unsafe {
            let low = self.aligned_word(first) >> (8 * shift);
            if shift + wanted <= WORD {
                return low;
            }
            // Not aligned, so that the shift is less than a word.
            low | self.aligned_word(first + WORD) << (8 * (WORD - shift))
        }
    }
}

impl Source for GuardedMap {
    fn length(&self) -> u64 {
        self.length as u64
    }

    #[inline]
    fn bytes_at<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        const { assert!(N >= 1 && N <= WORD) };
        let (start, _) = inside(offset, N, self.length)?;
        // SAFETY: N is 1 to 8, and all bytes are inside.
        let word = unsafe { self.word(start, N) }.to_le_bytes();
        let mut bytes = [0; N];
        bytes.copy_from_slice(&word[..N]);
        Some(bytes)
    }

    #[inline]
    fn compare(&self, offset: u64, length: usize, wanted: &[u8]) -> Option<Ordering> {
        let (mut at, _) = inside(offset, length, self.length)?;
        let common = length.min(wanted.len());
        let (words, rest) = wanted[..common].as_chunks::<WORD>();
        for word in words {
            let wanted = u64::from_be_bytes(*word);
            // SAFETY: eight bytes, all of them inside.
            let found = unsafe { self.word(at, WORD) }.swap_bytes();
            if found != wanted {
                return Some(found.cmp(&wanted));
            }
            at += WORD;
        }
        if !rest.is_empty() {
            let wanted = rest.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
            // SAFETY: 1 to 7 bytes, all of them inside.
            let found =
                unsafe { self.word(at, rest.len()) }.swap_bytes() >> (8 * (WORD - rest.len()));
            if found != wanted {
                return Some(found.cmp(&wanted));
            }
        }
        Some(length.cmp(&wanted.len()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Option<()> {
        let (mut at, _) = inside(offset, out.len(), self.length)?;
        let (words, rest) = out.as_chunks_mut::<WORD>();
        for word in words {
            // SAFETY: eight bytes, all of them inside.
            *word = unsafe { self.word(at, WORD) }.to_le_bytes();
            at += WORD;
        }
        if !rest.is_empty() {
            // SAFETY: 1 to 7 bytes, all of them inside.
            let word = unsafe { self.word(at, rest.len()) }.to_le_bytes();
            for (byte, found) in rest.iter_mut().zip(word) {
                *byte = found;
            }
        }
        Some(())
    }
}

impl Drop for GuardedMap {
    fn drop(&mut self) {
        // First out of the list: the address may be somebody else's as soon as it is unmapped. A handler that is at
        // work now is so for another map, since whoever reads this one borrows it.
        self.slot.release();
        // SAFETY: the map is ours, and nothing points into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn out_of_memory() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

#[cfg(test)]
mod tests;
