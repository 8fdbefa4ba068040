//! Whether all pages of an LMDB file that are in use lie inside the file.
//!
//! Touching a mapped page behind the end of the file would end the process (SIGBUS). A file shorter than its header
//! says is legal all the same, when the last pages were given back in the transaction that took them, so the length
//! alone does not tell. The pages are read with `pread`, which cannot fault.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const MAGIC: u32 = 0xBEEF_C0DE;
const PAGE_HEADER: usize = 16;
const NODE_HEADER: usize = 8;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
/// The node's value is on pages of its own.
const BIG: u16 = 1;
/// Offsets in a meta page, behind the page header.
const ROOTS: [usize; 2] = [24 + 40, 24 + 48 + 40];
const TRANSACTION: usize = 24 + 96 + 8;

/// The size of the file's pages; `None` when the header makes no sense.
///
/// # Errors
/// The file could not be read.
pub(super) fn page_size(file: &File) -> io::Result<Option<u64>> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, (PAGE_HEADER + 24) as u64)?;
    let size = u32::from_ne_bytes(bytes);
    Ok((size.is_power_of_two() && (256..=65_536).contains(&size)).then_some(u64::from(size)))
}

/// Whether this is an LMDB file, all of whose pages that are in use are there.
///
/// # Errors
/// The file could not be read.
pub(super) fn is_whole(file: &File) -> io::Result<bool> {
    let Some(size) = page_size(file)? else {
        return Ok(false);
    };
    for start in [0, size] {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, start + PAGE_HEADER as u64)?;
        if u32::from_ne_bytes(magic) != MAGIC {
            return Ok(false);
        }
    }
    all_inside(file, usize::try_from(size).map_err(io::Error::other)?)
}

/// Walks both trees of the newest snapshot.
///
/// False when a page that is in use is not in the file, or is not a page of its kind.
///
/// # Errors
/// The file could not be read.
pub(super) fn all_inside(file: &File, page_size: usize) -> io::Result<bool> {
    let pages = file.metadata()?.len() / page_size as u64;
    let mut meta = [vec![0; page_size], vec![0; page_size]];
    for (number, page) in meta.iter_mut().enumerate() {
        if !read_page(file, page, number as u64)? {
            return Ok(false);
        }
    }
    let newest = usize::from(
        number(&meta[1], PAGE_HEADER + TRANSACTION) > number(&meta[0], PAGE_HEADER + TRANSACTION),
    );
    let mut waiting: Vec<u64> = ROOTS
        .iter()
        .map(|root| number(&meta[newest], PAGE_HEADER + root))
        .filter(|&root| root != u64::MAX)
        .collect();
    let mut page = vec![0; page_size];
    let mut seen = 0;
    while let Some(page_number) = waiting.pop() {
        seen += 1;
        // More pages than there are: the tree has a loop.
        if seen > pages || !read_page(file, &mut page, page_number)? {
            return Ok(false);
        }
        let flags = short(&page, 10);
        let lower = usize::from(short(&page, 12));
        if !(PAGE_HEADER..=page_size).contains(&lower) || flags & (BRANCH | LEAF) == 0 {
            return Ok(false);
        }
        for pointer in (PAGE_HEADER..lower.saturating_sub(1)).step_by(2) {
            let node = usize::from(short(&page, pointer));
            if node < lower || node + NODE_HEADER > page_size {
                return Ok(false);
            }
            let (low, high, node_flags) = (
                short(&page, node),
                short(&page, node + 2),
                short(&page, node + 4),
            );
            if flags & BRANCH != 0 {
                let child = u64::from(low) | u64::from(high) << 16 | u64::from(node_flags) << 32;
                waiting.push(child);
            } else if node_flags & BIG != 0 {
                let value = node + NODE_HEADER + usize::from(short(&page, node + 6));
                if value + 8 > page_size {
                    return Ok(false);
                }
                let first = number(&page, value);
                let mut header = [0; PAGE_HEADER];
                if first >= pages
                    || file
                        .read_exact_at(&mut header, first * page_size as u64)
                        .is_err()
                {
                    return Ok(false);
                }
                let count = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]);
                if short(&header, 10) & OVERFLOW == 0 || first + u64::from(count) > pages {
                    return Ok(false);
                }
            }
        }
        if waiting.len() as u64 > pages {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads a whole page; false when the file ends before or in it.
fn read_page(file: &File, page: &mut [u8], number: u64) -> io::Result<bool> {
    let Some(offset) = number
        .checked_mul(page.len() as u64)
        .filter(|&offset| offset < i64::MAX as u64)
    else {
        return Ok(false);
    };
    match file.read_exact_at(page, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn short(page: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

fn number(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_ne_bytes(bytes)
}
