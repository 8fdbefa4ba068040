//! The hash layout: a bucket is a page, with further pages behind it where one is not enough
//! (Berkeley DB 5.3 `hash/hash_page.c`).

use std::collections::HashSet;

use super::pages::{Fault, Item, Page, Pages, page_type};

/// What the hash of these bytes must be: the test for another hash function.
const CHECKED_TEXT: &[u8] = b"%$sniglet^&\0";

/// Types of items.
const ON_PAGE: u8 = 1;
const OFF_PAGE: u8 = 3;

/// The part of the file's header that is about buckets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buckets {
    last: u32,
    high_mask: u32,
    low_mask: u32,
    /// For each power of two, by how much the page number of a bucket exceeds the bucket's.
    spares: [u32; 32],
}

/// The hash function: FNV-1 without the offset basis.
pub(super) fn hash(key: &[u8]) -> u32 {
    key.iter().fold(0_u32, |hash, &byte| {
        hash.wrapping_mul(16_777_619) ^ u32::from(byte)
    })
}

/// An entry: key and value.
pub(super) type Entry<'p> = (Item<'p>, Item<'p>);

impl Buckets {
    /// Reads the part of the header; `number` gives the number at an offset.
    pub fn new(number: impl Fn(usize) -> u32, last_page: u32) -> Result<Self, Fault> {
        if number(92) != hash(CHECKED_TEXT) {
            return Err(Fault::Foreign("another hash function"));
        }
        let this = Self {
            last: number(72),
            high_mask: number(76),
            low_mask: number(80),
            spares: std::array::from_fn(|index| number(96 + 4 * index)),
        };
        // Each bucket has a page; the masks are those of the powers of two around the number of buckets.
        let consistent = this.last < last_page
            && this.high_mask >= this.last
            && this.low_mask <= this.last
            && [this.high_mask, this.low_mask]
                .iter()
                .all(|mask| mask & mask.wrapping_add(1) == 0);
        if !consistent {
            return Err(Fault::Damaged {
                page: 0,
                what: "numbers of buckets that do not fit together",
            });
        }
        Ok(this)
    }

    /// The bucket of a key.
    fn of(&self, key: &[u8]) -> u32 {
        let bucket = hash(key) & self.high_mask;
        if bucket > self.last {
            bucket & self.low_mask
        } else {
            bucket
        }
    }

    /// The first page of a bucket.
    fn page(&self, bucket: u32) -> u32 {
        // The smallest power of two that is not below the number of the bucket counted from 1.
        let power = bucket.checked_add(1).map_or(32, |count| {
            count
                .checked_next_power_of_two()
                .map_or(32, u32::trailing_zeros)
        });
        let spare = self.spares.get(power as usize).copied().unwrap_or(0);
        bucket.wrapping_add(spare)
    }

    fn stray(&self, bucket: u32) -> Fault {
        Fault::Damaged {
            page: self.page(bucket),
            what: "an entry of another bucket",
        }
    }

    /// Gives the entries of a bucket, with their places in it, until `each` has something to tell. `visit` is told
    /// the pages.
    fn scan<R>(
        &self,
        pages: &Pages<'_>,
        bucket: u32,
        mut visit: impl FnMut(u32) -> Result<(), Fault>,
        mut each: impl FnMut(u64, Entry<'_>) -> Result<Option<R>, Fault>,
    ) -> Result<Option<R>, Fault> {
        let (mut number, mut before, mut place) = (self.page(bucket), 0, 0);
        while number != 0 {
            let page = pages.any(number)?;
            visit(number)?;
            if page.u32(8)? != number {
                if before == 0 && page.is_blank() {
                    // A bucket that was never used.
                    return Ok(None);
                }
                return Err(page.damaged("another page's number"));
            }
            if !matches!(page.kind(), page_type::HASH | page_type::HASH_UNSORTED) {
                return Err(page.damaged("not a hash page"));
            }
            if page.previous()? != before {
                return Err(page.damaged("not behind the page before"));
            }
            let entries = page.entries()?;
            if entries % 2 != 0 {
                return Err(page.damaged("a key without a value"));
            }
            // Items lie one before the other, the first one at the end of the page.
            let mut end = page.end();
            let mut next = page.offsets()?.map(|start| {
                let start = start?;
                item(&page, start, std::mem::replace(&mut end, start))
            });
            while let (Some(key), Some(value)) = (next.next(), next.next()) {
                if let Some(result) = each(place, (key?, value?))? {
                    return Ok(Some(result));
                }
                place += 1;
            }
            (before, number) = (number, page.next()?);
        }
        Ok(None)
    }

    /// Appends the value of a key; false when there is no such key.
    pub fn find(&self, pages: &Pages<'_>, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
        let found = self.scan(
            pages,
            self.of(key),
            |_| Ok(()),
            |_, (found, value)| {
                if pages.equal(found, key)? {
                    pages.append(value, out).map(Some)
                } else {
                    Ok(None)
                }
            },
        )?;
        Ok(found.is_some())
    }

    /// Appends the entry behind `last` and tells its place in its bucket; `None` at the end.
    ///
    /// When the key of `last` is gone, what is in its place now comes next.
    pub fn after(
        &self,
        pages: &Pages<'_>,
        last: Option<(&[u8], u64)>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Option<u64>, Fault> {
        let (mut bucket, mut start) = (0, 0);
        if let Some((last, place)) = last {
            (bucket, start) = (self.of(last), place);
            // Behind the last of that key, should there be several, so that a walk goes on and ends.
            self.scan(
                pages,
                bucket,
                |_| Ok(()),
                |place, (found, _)| {
                    if pages.equal(found, last)? {
                        start = place + 1;
                    }
                    Ok(None::<()>)
                },
            )?;
        }
        loop {
            let found = self.scan(
                pages,
                bucket,
                |_| Ok(()),
                |place, (found, contents)| {
                    if place < start {
                        return Ok(None);
                    }
                    let key_start = key.len();
                    pages.append(found, key)?;
                    pages.append(contents, value)?;
                    if self.of(&key[key_start..]) != bucket {
                        return Err(self.stray(bucket));
                    }
                    Ok(Some(place))
                },
            )?;
            if found.is_some() || bucket >= self.last {
                return Ok(found);
            }
            (bucket, start) = (bucket + 1, 0);
        }
    }

    /// Reads everything for nothing but its faults; `visit` is told each page.
    pub fn check(
        &self,
        pages: &Pages<'_>,
        visit: &mut dyn FnMut(u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let visit = std::cell::RefCell::new(visit);
        let visit = |page| visit.borrow_mut()(page);
        let mut keys = HashSet::new();
        for bucket in 0..=self.last {
            keys.clear();
            self.scan(pages, bucket, visit, |_, (found, contents)| {
                let mut key = Vec::new();
                pages.append(found, &mut key)?;
                if self.of(&key) != bucket {
                    return Err(self.stray(bucket));
                }
                if !keys.insert(key) {
                    return Err(Fault::Damaged {
                        page: self.page(bucket),
                        what: "a key twice",
                    });
                }
                pages.check(found, visit)?;
                pages.check(contents, visit)?;
                Ok(None::<()>)
            })?;
        }
        Ok(())
    }
}

/// An item, which ends where the one before it begins.
fn item<'p>(page: &'p Page<'_>, start: usize, end: usize) -> Result<Item<'p>, Fault> {
    if start >= end {
        return Err(page.damaged("items that overlap"));
    }
    match page.byte(start)? {
        ON_PAGE => Ok(Item::Here(page.bytes(start + 1, end - start - 1)?)),
        OFF_PAGE if end - start >= 12 => Ok(Item::Elsewhere {
            page: page.u32(start + 4)?,
            length: page.u32(start + 8)?,
        }),
        OFF_PAGE => Err(page.damaged("an item that is too short")),
        _ => Err(page.damaged("an item of another kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_that_files_name() {
        assert_eq!(hash(CHECKED_TEXT), 0x5E68_8DD1);
        assert_eq!(hash(b""), 0);
    }

    #[test]
    fn buckets_are_on_the_pages_that_their_power_of_two_says() {
        let mut spares = [0; 32];
        spares[..4].copy_from_slice(&[1, 1, 5, 9]);
        let buckets = Buckets {
            last: 6,
            high_mask: 7,
            low_mask: 3,
            spares,
        };
        let pages: Vec<u32> = (0..7).map(|bucket| buckets.page(bucket)).collect();
        assert_eq!(pages, [1, 2, 7, 8, 13, 14, 15]);
        assert_eq!(buckets.of(b"\x07"), 3);
        assert_eq!(buckets.of(b"\x06"), 6);
        assert_eq!(buckets.page(u32::MAX), u32::MAX);
    }
}
