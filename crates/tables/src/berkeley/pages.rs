//! Pages of a Berkeley DB file and the items on them, whatever the layout.
//!
//! Nothing in a page is believed: numbers of pages are held to the header's last page, offsets to the page, lengths
//! to what is there, and a chain must name the page before in each of its pages, so that it cannot be a circle.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Deref};
use std::os::unix::fs::FileExt;

/// Where the pages come from: a file, or bytes in memory.
pub trait PageSource {
    /// Reads at an offset; fewer bytes than asked for mean the end.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The number of bytes that there are.
    ///
    /// # Errors
    /// The file cannot be asked.
    fn length(&self) -> io::Result<u64>;

    /// Exactly these bytes where they are in memory, so that they need not be copied; `None` has them read.
    fn lend(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let _ = (offset, length);
        None
    }
}

impl PageSource for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(length) => done += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl PageSource for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).map_or(self.len(), |start| start.min(self.len()));
        let length = buffer.len().min(self.len() - start);
        buffer[..length].copy_from_slice(&self[start..start + length]);
        Ok(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Why a file gives no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no Berkeley DB file of the wanted layout, or one with features that tables never have.
    #[error("{0}")]
    Foreign(&'static str),
    /// A page says what cannot be.
    #[error("page {page}: {what}")]
    Damaged {
        /// The number of the page.
        page: u32,
        /// What cannot be.
        what: &'static str,
    },
}

impl Fault {
    /// The error number that the reference shows: EINVAL where it is not the system's.
    pub fn number(&self) -> i32 {
        match self {
            Self::Io(error) => error.raw_os_error().unwrap_or(nix::libc::EIO),
            Self::Foreign(_) | Self::Damaged { .. } => nix::libc::EINVAL,
        }
    }
}

/// The order of the bytes of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    pub fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }

    pub fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }
}

/// Types of pages.
pub(super) mod page_type {
    pub const FREE: u8 = 0;
    pub const HASH_UNSORTED: u8 = 2;
    pub const BTREE_INTERNAL: u8 = 3;
    pub const BTREE_LEAF: u8 = 5;
    pub const OVERFLOW: u8 = 7;
    pub const HASH: u8 = 13;
}

/// Where the items' offsets begin, and the contents of an overflow page.
pub(super) const PAGE_HEADER: usize = 26;

thread_local! {
    /// Buffers of pages that were let go, so that a lookup does not allocate.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// How many buffers a thread keeps.
const KEPT_BUFFERS: usize = 4;

/// A buffer that goes back to its thread.
struct Buffer(Vec<u8>);

impl Buffer {
    fn take() -> Self {
        Self(
            BUFFERS
                .try_with(|buffers| buffers.try_borrow_mut().ok()?.pop())
                .ok()
                .flatten()
                .unwrap_or_default(),
        )
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // A thread that ends has no place for it any more.
        let _ = BUFFERS.try_with(|buffers| {
            if let Ok(mut buffers) = buffers.try_borrow_mut()
                && buffers.len() < KEPT_BUFFERS
            {
                buffers.push(bytes);
            }
        });
    }
}

/// The bytes of a page.
enum Bytes<'s> {
    Lent(&'s [u8]),
    Read(Buffer),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Read(buffer) => &buffer.0,
        }
    }
}

/// A page in memory.
pub(super) struct Page<'s> {
    bytes: Bytes<'s>,
    order: Order,
    pub number: u32,
}

impl Page<'_> {
    pub fn damaged(&self, what: &'static str) -> Fault {
        Fault::Damaged {
            page: self.number,
            what,
        }
    }

    fn u16(&self, at: usize) -> Result<u16, Fault> {
        self.order
            .u16(&self.bytes, at)
            .ok_or_else(|| self.damaged("a number behind its end"))
    }

    pub fn u32(&self, at: usize) -> Result<u32, Fault> {
        self.order
            .u32(&self.bytes, at)
            .ok_or_else(|| self.damaged("a number behind its end"))
    }

    /// Not written since the file was made longer.
    pub fn is_blank(&self) -> bool {
        self.bytes[..PAGE_HEADER].iter().all(|&byte| byte == 0)
    }

    pub fn kind(&self) -> u8 {
        self.bytes[25]
    }

    pub fn level(&self) -> u8 {
        self.bytes[24]
    }

    pub fn previous(&self) -> Result<u32, Fault> {
        self.u32(12)
    }

    /// The page that continues this one; none is 0.
    pub fn next(&self) -> Result<u32, Fault> {
        self.u32(16)
    }

    /// The number of items.
    pub fn entries(&self) -> Result<usize, Fault> {
        let entries = usize::from(self.u16(20)?);
        if PAGE_HEADER + 2 * entries > self.bytes.len() {
            return Err(self.damaged("more items than fit"));
        }
        Ok(entries)
    }

    /// Where an item begins.
    pub fn offset(&self, index: usize) -> Result<usize, Fault> {
        let entries = self.entries()?;
        let offset = usize::from(self.u16(PAGE_HEADER + 2 * index)?);
        if index >= entries || offset < PAGE_HEADER + 2 * entries || offset >= self.bytes.len() {
            return Err(self.damaged("an item outside"));
        }
        Ok(offset)
    }

    /// Where the items begin, one after the other.
    pub fn offsets(&self) -> Result<impl Iterator<Item = Result<usize, Fault>>, Fault> {
        let first = PAGE_HEADER + 2 * self.entries()?;
        let (end, order) = (self.end(), self.order);
        let numbers = self.bytes(PAGE_HEADER, first - PAGE_HEADER)?;
        Ok(numbers.chunks_exact(2).map(move |number| {
            let offset = usize::from(order.u16(number, 0).unwrap_or_default());
            if offset < first || offset >= end {
                return Err(self.damaged("an item outside"));
            }
            Ok(offset)
        }))
    }

    pub fn byte(&self, at: usize) -> Result<u8, Fault> {
        self.bytes
            .get(at)
            .copied()
            .ok_or_else(|| self.damaged("an item outside"))
    }

    pub fn bytes(&self, start: usize, length: usize) -> Result<&[u8], Fault> {
        start
            .checked_add(length)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| self.damaged("an item outside"))
    }

    /// An item of a B-tree at an offset: the length of what is here, and the type.
    pub fn tree_item(&self, at: usize) -> Result<(usize, u8), Fault> {
        Ok((usize::from(self.u16(at)?), self.byte(at + 2)?))
    }

    /// What an overflow page holds.
    fn contents(&self) -> Result<&[u8], Fault> {
        self.bytes(PAGE_HEADER, usize::from(self.u16(22)?))
    }

    /// The end of the page, which is where the first item of a hash page ends.
    pub fn end(&self) -> usize {
        self.bytes.len()
    }
}

/// A key or a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item<'p> {
    /// On the page.
    Here(&'p [u8]),
    /// On overflow pages, of which this is the first; the length is that of the whole.
    Elsewhere { page: u32, length: u32 },
}

/// All pages of a file but the first.
pub(super) struct Pages<'s> {
    pub source: &'s dyn PageSource,
    pub order: Order,
    pub size: usize,
    /// The last page.
    pub last: u32,
}

impl<'s> Pages<'s> {
    /// Reads a page, whatever is on it.
    pub fn any(&self, number: u32) -> Result<Page<'s>, Fault> {
        let damaged = |what| Err(Fault::Damaged { page: number, what });
        if number == 0 || number > self.last {
            return damaged("no such page");
        }
        let offset = u64::from(number) * self.size as u64;
        let bytes = if let Some(bytes) = self.source.lend(offset, self.size) {
            Bytes::Lent(bytes)
        } else {
            let mut buffer = Buffer::take();
            buffer.0.resize(self.size, 0);
            if self.source.read_at(&mut buffer.0, offset)? < self.size {
                return damaged("not in the file");
            }
            Bytes::Read(buffer)
        };
        Ok(Page {
            bytes,
            order: self.order,
            number,
        })
    }

    /// Reads a page that must have been written.
    pub fn page(&self, number: u32) -> Result<Page<'s>, Fault> {
        let page = self.any(number)?;
        if page.u32(8)? != number {
            return Err(page.damaged("another page's number"));
        }
        Ok(page)
    }

    /// Gives the pieces of an item on overflow pages in order.
    fn chain(
        &self,
        first: u32,
        length: u32,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
        mut visit: impl FnMut(u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut number, mut before) = (first, 0);
        let mut left = length as usize;
        while left > 0 {
            let page = self.page(number)?;
            visit(number)?;
            if page.kind() != page_type::OVERFLOW {
                return Err(page.damaged("not an overflow page"));
            }
            if page.previous()? != before {
                return Err(page.damaged("not behind the page before"));
            }
            let contents = page.contents()?;
            if contents.is_empty() || contents.len() > left {
                return Err(page.damaged("an item of another length"));
            }
            left -= contents.len();
            if each(contents).is_break() {
                return Ok(());
            }
            (before, number) = (number, page.next()?);
        }
        if number != 0 {
            return Err(Fault::Damaged {
                page: before,
                what: "an item of another length",
            });
        }
        Ok(())
    }

    /// Appends an item to `out`, which may hold a part of it when there is a fault.
    pub fn append(&self, item: Item<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        match item {
            Item::Here(bytes) => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            Item::Elsewhere { page, length } => self.chain(
                page,
                length,
                |piece| {
                    out.extend_from_slice(piece);
                    ControlFlow::Continue(())
                },
                |_| Ok(()),
            ),
        }
    }

    /// Reads an item for nothing but its faults; `visit` is told its overflow pages.
    pub fn check(
        &self,
        item: Item<'_>,
        visit: impl FnMut(u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        match item {
            Item::Here(_) => Ok(()),
            Item::Elsewhere { page, length } => {
                self.chain(page, length, |_| ControlFlow::Continue(()), visit)
            }
        }
    }

    /// How an item compares with a key: by bytes, and the shorter first.
    pub fn compare(&self, item: Item<'_>, key: &[u8]) -> Result<Ordering, Fault> {
        let (page, length) = match item {
            Item::Here(bytes) => return Ok(bytes.cmp(key)),
            Item::Elsewhere { page, length } => (page, length),
        };
        let (mut rest, mut order) = (key, Ordering::Equal);
        self.chain(
            page,
            length,
            |piece| {
                let (here, behind) = rest.split_at(piece.len().min(rest.len()));
                order = piece.cmp(here);
                rest = behind;
                if order == Ordering::Equal {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            },
            |_| Ok(()),
        )?;
        Ok(if order == Ordering::Equal && !rest.is_empty() {
            Ordering::Less
        } else {
            order
        })
    }

    /// Whether an item is a key.
    pub fn equal(&self, item: Item<'_>, key: &[u8]) -> Result<bool, Fault> {
        match item {
            Item::Here(bytes) => Ok(bytes == key),
            Item::Elsewhere { length, .. } if length as usize != key.len() => Ok(false),
            Item::Elsewhere { .. } => Ok(self.compare(item, key)? == Ordering::Equal),
        }
    }
}
