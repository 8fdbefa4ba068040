//! Reads Berkeley DB files without the library: hash and B-tree files of versions 8 and 9 (Berkeley DB 4 and 5), in
//! either byte order.
//!
//! A reader believes nothing that a file says. Whatever the bytes are, each operation ends, takes memory only for
//! what is in the file, and gives an entry of the file or a [`Fault`].

use std::borrow::Cow;

pub use postkeep_sys::berkeley::Layout;

use super::hash_pages::Buckets;
pub use super::pages::{Fault, PageSource};
use super::pages::{Order, Pages, page_type};
use super::tree_pages::Tree;

/// How much of the first page is read; all headers fit.
const HEADER: usize = 512;

const HASH_MAGIC: u32 = 0x0006_1561;
const BTREE_MAGIC: u32 = 0x0005_3162;
const HASH_HEADER_PAGE: u8 = 8;
const BTREE_HEADER_PAGE: u8 = 9;

#[derive(Clone, Debug)]
enum Tables {
    Hash(Box<Buckets>),
    Btree(Tree),
}

/// What the first page of a file says.
#[derive(Clone, Debug)]
pub(super) struct Header {
    order: Order,
    /// The length of a page.
    pub size: usize,
    /// The last page.
    pub last: u32,
    tables: Tables,
    /// The first page of those that are not in use.
    free: u32,
}

impl Header {
    /// Reads it; the errors are those of [`Reader::new`].
    pub fn read(source: &dyn PageSource, layout: Layout) -> Result<Self, Fault> {
        let mut header = [0; HEADER];
        if source.read_at(&mut header, 0)? < HEADER {
            return Err(Fault::Foreign("shorter than a header"));
        }
        let (magic, page_kind) = match layout {
            Layout::Hash => (HASH_MAGIC, HASH_HEADER_PAGE),
            Layout::Btree => (BTREE_MAGIC, BTREE_HEADER_PAGE),
        };
        let order = [Order::Little, Order::Big]
            .into_iter()
            .find(|order| order.u32(&header, 12) == Some(magic))
            .ok_or(Fault::Foreign("another kind of file"))?;
        // All offsets lie inside of the header.
        let number = |at| order.u32(&header, at).unwrap_or_default();
        if !(8..=9).contains(&number(16)) {
            return Err(Fault::Foreign("another version"));
        }
        // Encryption, checksums, partitions, duplicates, record numbers, databases inside of the database.
        if header[24] != 0 || header[26] != 0 || number(36) != 0 || number(48) != 0 {
            return Err(Fault::Foreign("features that tables do not have"));
        }
        if header[25] != page_kind || number(8) != 0 {
            return Err(Fault::Foreign("another kind of page"));
        }
        let size = number(20);
        if !size.is_power_of_two() || !(512..=65_536).contains(&size) {
            return Err(Fault::Foreign("an impossible page size"));
        }
        let last = number(32);
        Ok(Self {
            order,
            size: size as usize,
            last,
            tables: match layout {
                Layout::Hash => Tables::Hash(Box::new(Buckets::new(number, last)?)),
                Layout::Btree => Tables::Btree(Tree::new(number)),
            },
            free: number(28),
        })
    }

    /// The file of this header.
    pub fn reader<'s>(&'s self, source: &'s dyn PageSource) -> Reader<'s> {
        Reader::of(Cow::Borrowed(self), source)
    }
}

/// A file at one moment: its header, and where its pages are. The file must not change while a reader is in use.
pub struct Reader<'s> {
    header: Cow<'s, Header>,
    pages: Pages<'s>,
}

impl<'s> Reader<'s> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Fault::Foreign`] when it is no file of this layout; other faults when it cannot be read or makes no sense.
    pub fn new(source: &'s dyn PageSource, layout: Layout) -> Result<Self, Fault> {
        Ok(Self::of(Cow::Owned(Header::read(source, layout)?), source))
    }

    fn of(header: Cow<'s, Header>, source: &'s dyn PageSource) -> Self {
        let pages = Pages {
            source,
            order: header.order,
            size: header.size,
            last: header.last,
        };
        Self { header, pages }
    }

    /// Looks up a stored key and appends its stored value to `value`; false when there is no such key.
    ///
    /// # Errors
    /// [`Fault`], in which case `value` is as it was.
    pub fn find(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, Fault> {
        let start = value.len();
        let result = match &self.header.tables {
            Tables::Hash(buckets) => buckets.find(&self.pages, key, value),
            Tables::Btree(tree) => tree.find(&self.pages, key, value),
        };
        if result.is_err() {
            value.truncate(start);
        }
        result
    }

    /// Appends the stored key and value of the entry behind another one, or of the first one, and tells its place;
    /// `None` at the end.
    ///
    /// Hash files are walked bucket by bucket, and inside of a bucket in the order of the file; B-trees in the order
    /// of the keys' bytes. The library walks in the same order.
    ///
    /// - `last`: the stored key and the place of an entry, which need not be there any more
    ///
    /// # Errors
    /// [`Fault`], in which case `key` and `value` are as they were.
    pub fn after(
        &self,
        last: Option<(&[u8], u64)>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Option<u64>, Fault> {
        let (key_start, value_start) = (key.len(), value.len());
        let result = match &self.header.tables {
            Tables::Hash(buckets) => buckets.after(&self.pages, last, key, value),
            Tables::Btree(tree) => tree
                .after(&self.pages, last.map(|(key, _)| key), key, value)
                .map(|found| found.then_some(0)),
        };
        if result.is_err() {
            key.truncate(key_start);
            value.truncate(value_start);
        }
        result
    }

    /// Holds the length of the file to what its header says: it may have been cut off.
    ///
    /// # Errors
    /// [`Fault::Damaged`] when pages are missing.
    pub fn check_length(&self) -> Result<(), Fault> {
        let pages = self.pages.source.length()? / self.pages.size as u64;
        if pages <= u64::from(self.pages.last) {
            return Err(Fault::Damaged {
                page: self.pages.last,
                what: "not in the file",
            });
        }
        Ok(())
    }

    /// Reads the whole file for nothing but its faults, more of which are noticed than by the other operations: no
    /// page is used twice, and keys are where they belong.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn check(&self) -> Result<(), Fault> {
        self.check_length()?;
        let mut seen = vec![false; self.pages.last as usize + 1];
        seen[0] = true;
        let mut visit = |page: u32| {
            let seen = seen.get_mut(page as usize);
            if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
                return Err(Fault::Damaged {
                    page,
                    what: "used twice",
                });
            }
            Ok(())
        };
        match &self.header.tables {
            Tables::Hash(buckets) => buckets.check(&self.pages, &mut visit)?,
            Tables::Btree(tree) => tree.check(&self.pages, &mut visit)?,
        }
        let mut free = self.header.free;
        while free != 0 {
            visit(free)?;
            let page = self.pages.page(free)?;
            if page.kind() != page_type::FREE {
                return Err(page.damaged("free and in use"));
            }
            free = page.next()?;
        }
        Ok(())
    }
}
