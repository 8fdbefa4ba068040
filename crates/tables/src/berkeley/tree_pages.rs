//! The B-tree layout: internal pages with the first key of each child, leaves with keys and values in order
//! (Berkeley DB 5.3 `btree/bt_search.c`).

use std::cmp::Ordering;

use super::pages::{Fault, Item, Page, Pages, page_type};

/// Types of items, and what is added to one that was deleted while somebody stood on it.
const ON_PAGE: u8 = 1;
const OFF_PAGE: u8 = 3;
const DELETED: u8 = 0x80;

/// The level of leaves.
const LEAF_LEVEL: u8 = 1;

/// A B-tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    root: u32,
}

impl Tree {
    /// Reads the part of the header; `number` gives the number at an offset.
    pub fn new(number: impl Fn(usize) -> u32) -> Self {
        Self { root: number(88) }
    }

    /// The leaf on which a key would be, or the first one.
    fn leaf<'s>(self, pages: &Pages<'s>, key: Option<&[u8]>) -> Result<Page<'s>, Fault> {
        let mut page = pages.page(self.root)?;
        loop {
            let level = page.level();
            match page.kind() {
                page_type::BTREE_LEAF if level == LEAF_LEVEL => return Ok(page),
                page_type::BTREE_INTERNAL if level > LEAF_LEVEL => {}
                _ => return Err(page.damaged("not a page of the tree")),
            }
            let entries = page.entries()?;
            if entries == 0 {
                return Err(page.damaged("no children"));
            }
            let index = match key {
                None => 0,
                // The last child whose first key is not above; the first child has no lower limit.
                Some(key) => {
                    partition(1, entries, |index| {
                        let (first, _) = child(&page, index)?;
                        Ok(pages.compare(first, key)? != Ordering::Greater)
                    })? - 1
                }
            };
            let (_, number) = child(&page, index)?;
            let next = pages.page(number)?;
            // Levels go down by one, so the way down has an end.
            if next.level() != level - 1 {
                return Err(next.damaged("not below the page above"));
            }
            page = next;
        }
    }

    /// Appends the value of a key; false when there is no such key.
    pub fn find(self, pages: &Pages<'_>, key: &[u8], out: &mut Vec<u8>) -> Result<bool, Fault> {
        let leaf = self.leaf(pages, Some(key))?;
        let count = pairs(&leaf)?;
        let pair = partition(0, count, |pair| {
            let (found, _) = item(&leaf, 2 * pair)?;
            Ok(pages.compare(found, key)? == Ordering::Less)
        })?;
        for pair in pair..count {
            let (found, _) = item(&leaf, 2 * pair)?;
            if !pages.equal(found, key)? {
                break;
            }
            let (value, deleted) = item(&leaf, 2 * pair + 1)?;
            if !deleted {
                pages.append(value, out)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Appends the first entry whose key is above `last`; false at the end.
    pub fn after(
        self,
        pages: &Pages<'_>,
        last: Option<&[u8]>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<bool, Fault> {
        let mut leaf = self.leaf(pages, last)?;
        let mut pair = match last {
            None => 0,
            Some(last) => partition(0, pairs(&leaf)?, |pair| {
                let (found, _) = item(&leaf, 2 * pair)?;
                Ok(pages.compare(found, last)? != Ordering::Greater)
            })?,
        };
        loop {
            if pair < pairs(&leaf)? {
                let (found, _) = item(&leaf, 2 * pair)?;
                let (contents, deleted) = item(&leaf, 2 * pair + 1)?;
                if !deleted {
                    // A walk must go on, so that it ends.
                    if let Some(last) = last
                        && pages.compare(found, last)? != Ordering::Greater
                    {
                        return Err(leaf.damaged("keys out of order"));
                    }
                    pages.append(found, key)?;
                    pages.append(contents, value)?;
                    return Ok(true);
                }
                pair += 1;
                continue;
            }
            let Some(next) = next_leaf(pages, &leaf)? else {
                return Ok(false);
            };
            (leaf, pair) = (next, 0);
        }
    }

    /// Reads everything for nothing but its faults; `visit` is told each page.
    pub fn check(
        self,
        pages: &Pages<'_>,
        visit: &mut dyn FnMut(u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let root = pages.page(self.root)?;
        let mut seen = Seen::default();
        check_below(pages, &root, &mut seen, visit)?;
        if seen.leaf != 0 && pages.page(seen.leaf)?.next()? != 0 {
            return Err(Fault::Damaged {
                page: seen.leaf,
                what: "leaves behind the last one",
            });
        }
        Ok(())
    }
}

/// Where a check of the whole tree stands.
#[derive(Default)]
struct Seen {
    /// The leaf before, or 0.
    leaf: u32,
    /// The last key that was not deleted.
    key: Option<Vec<u8>>,
    /// What the pages above say that the next keys are not below.
    limit: Option<Vec<u8>>,
}

impl Seen {
    /// A key, or a limit, may follow.
    fn lets_follow(&self, pages: &Pages<'_>, item: Item<'_>) -> Result<bool, Fault> {
        if let Some(key) = &self.key
            && pages.compare(item, key)? != Ordering::Greater
        {
            return Ok(false);
        }
        match &self.limit {
            Some(limit) => Ok(pages.compare(item, limit)? != Ordering::Less),
            None => Ok(true),
        }
    }
}

/// Checks a page and what is below it.
///
/// Long keys of internal pages are shared with leaves, so their pages are not told to `visit`.
fn check_below(
    pages: &Pages<'_>,
    page: &Page<'_>,
    seen: &mut Seen,
    visit: &mut dyn FnMut(u32) -> Result<(), Fault>,
) -> Result<(), Fault> {
    visit(page.number)?;
    let level = page.level();
    match page.kind() {
        page_type::BTREE_LEAF if level == LEAF_LEVEL => check_leaf(pages, page, seen, visit),
        page_type::BTREE_INTERNAL if level > LEAF_LEVEL => {
            let entries = page.entries()?;
            if entries == 0 {
                return Err(page.damaged("no children"));
            }
            for index in 0..entries {
                let (first, number) = child(page, index)?;
                if index > 0 {
                    if !seen.lets_follow(pages, first)? {
                        return Err(page.damaged("keys out of order"));
                    }
                    let mut limit = Vec::new();
                    pages.append(first, &mut limit)?;
                    seen.limit = Some(limit);
                }
                let below = pages.page(number)?;
                // Levels go down by one, so this does not go deep.
                if below.level() != level - 1 {
                    return Err(below.damaged("not below the page above"));
                }
                check_below(pages, &below, seen, visit)?;
            }
            Ok(())
        }
        _ => Err(page.damaged("not a page of the tree")),
    }
}

fn check_leaf(
    pages: &Pages<'_>,
    page: &Page<'_>,
    seen: &mut Seen,
    visit: &mut dyn FnMut(u32) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if page.previous()? != seen.leaf {
        return Err(page.damaged("not behind the page before"));
    }
    if seen.leaf != 0 && pages.page(seen.leaf)?.next()? != page.number {
        return Err(page.damaged("not what the page before names"));
    }
    seen.leaf = page.number;
    for pair in 0..pairs(page)? {
        let (found, _) = item(page, 2 * pair)?;
        let (value, deleted) = item(page, 2 * pair + 1)?;
        pages.check(found, &mut *visit)?;
        pages.check(value, &mut *visit)?;
        if !deleted {
            if !seen.lets_follow(pages, found)? {
                return Err(page.damaged("keys out of order"));
            }
            let mut key = Vec::new();
            pages.append(found, &mut key)?;
            seen.key = Some(key);
        }
    }
    Ok(())
}

/// The first of the numbers from `low` up to `high` for which `belongs` is false.
fn partition(
    mut low: usize,
    mut high: usize,
    mut belongs: impl FnMut(usize) -> Result<bool, Fault>,
) -> Result<usize, Fault> {
    while low < high {
        let middle = low + (high - low) / 2;
        if belongs(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The number of entries of a leaf.
fn pairs(leaf: &Page<'_>) -> Result<usize, Fault> {
    let entries = leaf.entries()?;
    if entries % 2 != 0 {
        return Err(leaf.damaged("a key without a value"));
    }
    Ok(entries / 2)
}

fn next_leaf<'s>(pages: &Pages<'s>, leaf: &Page<'_>) -> Result<Option<Page<'s>>, Fault> {
    let number = leaf.next()?;
    if number == 0 {
        return Ok(None);
    }
    let next = pages.page(number)?;
    if next.kind() != page_type::BTREE_LEAF {
        return Err(next.damaged("not a page of the tree"));
    }
    if next.previous()? != leaf.number {
        return Err(next.damaged("not behind the page before"));
    }
    Ok(Some(next))
}

/// An item of a leaf, and whether it was deleted.
fn item<'p>(page: &'p Page<'_>, index: usize) -> Result<(Item<'p>, bool), Fault> {
    let at = page.offset(index)?;
    let (length, kind) = page.tree_item(at)?;
    let item = match kind & !DELETED {
        ON_PAGE => Item::Here(page.bytes(at + 3, length)?),
        OFF_PAGE => off_page(page, at)?,
        _ => return Err(page.damaged("an item of another kind")),
    };
    Ok((item, kind & DELETED != 0))
}

/// The first key of a child, and its page.
fn child<'p>(page: &'p Page<'_>, index: usize) -> Result<(Item<'p>, u32), Fault> {
    let at = page.offset(index)?;
    let (length, kind) = page.tree_item(at)?;
    let number = page.u32(at + 4)?;
    let key = match kind & !DELETED {
        ON_PAGE => Item::Here(page.bytes(at + 12, length)?),
        OFF_PAGE => off_page(page, at + 12)?,
        _ => return Err(page.damaged("an item of another kind")),
    };
    Ok((key, number))
}

fn off_page<'p>(page: &'p Page<'_>, at: usize) -> Result<Item<'p>, Fault> {
    Ok(Item::Elsewhere {
        page: page.u32(at + 4)?,
        length: page.u32(at + 8)?,
    })
}
