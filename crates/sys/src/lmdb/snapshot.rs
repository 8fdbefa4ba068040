//! The newest state of an LMDB file, read page by page without a lock and without trusting a number in it.
//!
//! A writer never touches a page of the newest two states: what it changes it writes elsewhere, on pages that were
//! free in both. So a state whose number is N is intact for as long as no state after N+1 is committed; the
//! transaction that makes N+3 is the first that may write over it. A reader looks at the numbers once more when it
//! has read everything, and what it read counts only when that holds.
//!
//! Two pages at the beginning of the file describe the newest two states, the one with the even number first. LMDB
//! changes each with one write of some hundred bytes, whose last eight are the number. While such a write is seen
//! half done, either the old number is still there, and then the page is the older one; or it is compared again at
//! the end and is different.
//!
//! The layout is that of LMDB 0.9 on a 64-bit machine, in its byte order (`mdb.c`: `MDB_meta`, `MDB_page`,
//! `MDB_node`). Only the unnamed database is read, whose keys are in the order of their bytes.

use std::cmp::Ordering;
use std::sync::atomic;

use crate::guarded::Source;

/// Length of the header of a page.
const PAGE: u64 = 16;
/// Length of the header of an entry.
const NODE: u64 = 8;
/// Length of what describes a state, behind a page header.
const META: usize = 136;
/// Where in it the number of the state is.
const NUMBER: usize = 128;

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
const NO_PAGE: u64 = u64::MAX;

/// Kinds of pages. A page may still bear the mark that its writer had changed it.
const KINDS: u16 = 0x6f;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;

/// The value of an entry is on pages of its own.
const BIG: u16 = 1;

/// The highest tree that LMDB walks.
const HIGHEST: u16 = 32;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Writers were faster; the newest state by now is another one.
    Passed,
    /// A page that is behind the pages that may be read.
    Outside,
    /// This is not what LMDB writes.
    Structure,
}

/// What describes a committed state.
#[derive(Clone, Debug)]
pub struct Snapshot {
    page_size: u64,
    /// Which of the two pages it was on, 0 or 1.
    slot: u64,
    meta: [u8; META],
    number: u64,
    root: u64,
    depth: u16,
    last_page: u64,
}

impl Snapshot {
    /// The newest state.
    ///
    /// - `page_size`: of the file, in bytes; a power of two from 256 to 65536
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn newest<S: Source + ?Sized>(source: &S, page_size: u64) -> Result<Self, Trouble> {
        let numbers = [
            Self::number_at(source, page_size, 0)?,
            Self::number_at(source, page_size, 1)?,
        ];
        let slot = u64::from(numbers[1] > numbers[0]);
        let mut meta = [0; META];
        source
            .read(slot * page_size + PAGE, &mut meta)
            .ok_or(Trouble::Outside)?;
        let number = |at| meta[..].u64_at(at).unwrap_or(NO_PAGE);
        let this = Self {
            page_size,
            slot,
            meta,
            number: number(NUMBER as u64),
            root: number(112),
            depth: meta[..].u16_at(78).unwrap_or(u16::MAX),
            last_page: number(120),
        };
        atomic::fence(atomic::Ordering::Acquire);
        let other = Self::number_at(source, page_size, 1 - slot)?;
        if other > this.number || numbers[usize::from(slot == 1)] != this.number {
            return Err(Trouble::Passed);
        }
        let flags = meta[..].u16_at(76);
        let sound = page_size.is_power_of_two()
            && (256..=65536).contains(&page_size)
            && meta[..].u32_at(0) == Some(MAGIC)
            && meta[..].u32_at(4) == Some(VERSION)
            && meta[..].u32_at(24).map(u64::from) == Some(page_size)
            && flags == Some(0)
            && (this.number == 0 || this.number % 2 == slot)
            && this.depth <= HIGHEST
            && (this.depth == 0) == (this.root == NO_PAGE);
        if sound {
            Ok(this)
        } else {
            Err(Trouble::Structure)
        }
    }

    fn number_at<S: Source + ?Sized>(
        source: &S,
        page_size: u64,
        slot: u64,
    ) -> Result<u64, Trouble> {
        source
            .u64_at(slot * page_size + PAGE + NUMBER as u64)
            .ok_or(Trouble::Outside)
    }

    /// The number of the last page that the state may use.
    pub fn last_page(&self) -> u64 {
        self.last_page
    }

    /// Whether all that was read of this state up to now was of this state.
    pub fn was_intact<S: Source + ?Sized>(&self, source: &S) -> bool {
        // What was read before is read before the numbers are.
        atomic::fence(atomic::Ordering::Acquire);
        source.equals(self.slot * self.page_size + PAGE, &self.meta) == Some(true)
            && Self::number_at(source, self.page_size, 1 - self.slot)
                .is_ok_and(|other| other <= self.number.saturating_add(1))
    }

    /// Looks for a key and appends its value; false when there is none.
    ///
    /// The answer counts when [`Snapshot::was_intact`] holds afterwards, and so does what went wrong.
    ///
    /// - `pages`: how many pages may be read
    /// - `key`: an empty one, and one of more than 511 bytes, is never there
    ///
    /// # Errors
    /// [`Trouble`]; `value` is as it was.
    pub fn find<S: Source + ?Sized>(
        &self,
        source: &S,
        pages: u64,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<bool, Trouble> {
        if key.is_empty() || self.depth == 0 {
            return Ok(false);
        }
        let mut number = self.root;
        for _ in 1..self.depth {
            let page = self.page(source, pages, number, BRANCH)?;
            number = page.child(page.last_not_above(key)?)?;
        }
        let page = self.page(source, pages, number, LEAF)?;
        let Some(node) = page.equal(key)? else {
            return Ok(false);
        };
        let (at, length) = self.place_of_value(&page, &node, pages)?;
        source
            .append_to(at, length, value)
            .ok_or(Trouble::Structure)?;
        Ok(true)
    }

    /// A page of the tree.
    fn page<'s, S: Source + ?Sized>(
        &self,
        source: &'s S,
        pages: u64,
        number: u64,
        kind: u16,
    ) -> Result<Page<'s, S>, Trouble> {
        let at = self.start_of(number, 1, pages)?;
        let wrong = || Trouble::Structure;
        if source.u64_at(at).ok_or_else(wrong)? != number {
            return Err(Trouble::Structure);
        }
        let [_, flags, lower, upper] = four(source.bytes_at(at + 8).ok_or_else(wrong)?);
        let (lower, upper) = (u64::from(lower), u64::from(upper));
        let sound = flags & KINDS == kind
            && lower > PAGE
            && lower % 2 == 0
            && lower <= upper
            && upper <= self.page_size;
        if !sound {
            return Err(Trouble::Structure);
        }
        Ok(Page {
            source,
            at,
            size: self.page_size,
            upper,
            count: (lower - PAGE) / 2,
        })
    }

    /// Where some pages begin that lie one behind the other.
    fn start_of(&self, number: u64, count: u64, pages: u64) -> Result<u64, Trouble> {
        let behind = number.checked_add(count).ok_or(Trouble::Structure)?;
        if number < 2 || count == 0 || behind - 1 > self.last_page {
            return Err(Trouble::Structure);
        }
        if behind > pages {
            return Err(Trouble::Outside);
        }
        number.checked_mul(self.page_size).ok_or(Trouble::Structure)
    }

    /// Where the value of an entry is, and its length.
    fn place_of_value<S: Source + ?Sized>(
        &self,
        page: &Page<'_, S>,
        node: &Node,
        pages: u64,
    ) -> Result<(u64, usize), Trouble> {
        let wrong = || Trouble::Structure;
        let length = node.number;
        let size = usize::try_from(length).map_err(|_| Trouble::Structure)?;
        let start = node.key + u64::from(node.key_length);
        if node.flags & BIG == 0 {
            // No other kind of entry is in such a database.
            let sound = node.flags == 0 && start + u64::from(length) <= page.at + self.page_size;
            return sound.then_some((start, size)).ok_or_else(wrong);
        }
        if node.flags != BIG || start + 8 > page.at + self.page_size {
            return Err(Trouble::Structure);
        }
        let first = page.source.u64_at(start).ok_or_else(wrong)?;
        let at = self.start_of(first, 1, pages)?;
        let header = page.source.bytes_at(at + 8).ok_or_else(wrong)?;
        let [_, flags, ..] = four(header);
        let count = header[..].u32_at(4).map(u64::from).ok_or_else(wrong)?;
        if page.source.u64_at(at) != Some(first)
            || flags & KINDS != OVERFLOW
            || PAGE + u64::from(length) > count * self.page_size
        {
            return Err(Trouble::Structure);
        }
        self.start_of(first, count, pages)?;
        Ok((at + PAGE, size))
    }
}

/// A page of the tree; its entries are in the order of their keys.
struct Page<'s, S: ?Sized> {
    source: &'s S,
    /// Where it begins in the file.
    at: u64,
    size: u64,
    /// Where the entries begin.
    upper: u64,
    count: u64,
}

/// An entry; its key lies inside the page.
struct Node {
    /// Where the key is in the file.
    key: u64,
    key_length: u16,
    flags: u16,
    /// The length of the value, or the lower half of the number of a page.
    number: u32,
}

impl<S: Source + ?Sized> Page<'_, S> {
    fn node(&self, index: u64) -> Result<Node, Trouble> {
        let wrong = || Trouble::Structure;
        let place = self.at + PAGE + 2 * index;
        let offset = u64::from(self.source.u16_at(place).ok_or_else(wrong)?);
        if offset < self.upper || offset % 2 != 0 || offset + NODE > self.size {
            return Err(Trouble::Structure);
        }
        let header: [u8; 8] = self.source.bytes_at(self.at + offset).ok_or_else(wrong)?;
        let [.., flags, key_length] = four(header);
        if offset + NODE + u64::from(key_length) > self.size {
            return Err(Trouble::Structure);
        }
        Ok(Node {
            key: self.at + offset + NODE,
            key_length,
            flags,
            number: header[..].u32_at(0).ok_or_else(wrong)?,
        })
    }

    /// How the key of an entry compares with another one.
    fn compare(&self, node: &Node, key: &[u8]) -> Result<Ordering, Trouble> {
        self.source
            .compare(node.key, usize::from(node.key_length), key)
            .ok_or(Trouble::Structure)
    }

    /// The last entry whose key is not above `key`. That of the first one counts as lower than any.
    fn last_not_above(&self, key: &[u8]) -> Result<u64, Trouble> {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.compare(&self.node(middle)?, key)? == Ordering::Greater {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low - 1)
    }

    /// The entry with this key.
    fn equal(&self, key: &[u8]) -> Result<Option<Node>, Trouble> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            let node = self.node(middle)?;
            match self.compare(&node, key)? {
                Ordering::Greater => high = middle,
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(Some(node)),
            }
        }
        Ok(None)
    }

    /// The page below an entry.
    fn child(&self, index: u64) -> Result<u64, Trouble> {
        let node = self.node(index)?;
        Ok(u64::from(node.number) | u64::from(node.flags) << 32)
    }
}

/// Four numbers in the machine's byte order.
fn four(bytes: [u8; 8]) -> [u16; 4] {
    [0, 2, 4, 6].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
}

#[cfg(test)]
mod tests;
