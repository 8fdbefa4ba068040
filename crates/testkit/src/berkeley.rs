//! Berkeley DB files in the other byte order, for tests without a machine that has it.

/// Turns the bytes of all numbers in a little-endian hash or B-tree file around.
///
/// The file is one that Postfix made: without duplicates, checksums and the like.
///
/// # Panics
/// When it is not such a file.
pub fn byte_swapped(file: &[u8]) -> Vec<u8> {
    let u32_at = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().expect("a number"));
    let size = u32_at(20) as usize;
    let hash = match u32_at(12) {
        0x6_1561 => true,
        0x5_3162 => false,
        magic => panic!("not a Berkeley DB file: {magic:#x}"),
    };
    let mut out = file.to_vec();
    let header = [0, 4, 8, 12, 16, 20, 28, 32, 36, 40, 44, 48];
    let rest = if hash { 72..224 } else { 72..92 };
    for at in header.into_iter().chain(rest.step_by(4)) {
        out[at..at + 4].reverse();
    }
    for (old, page) in file.chunks(size).zip(out.chunks_mut(size)).skip(1) {
        swap_page(old, page);
    }
    out
}

fn swap_page(old: &[u8], page: &mut [u8]) {
    let u16_at = |at: usize| {
        usize::from(u16::from_le_bytes(
            *old[at..].first_chunk().expect("a number"),
        ))
    };
    let kind = old[25];
    let entries = if kind == 7 { 0 } else { u16_at(20) };
    for index in 0..entries {
        let at = u16_at(26 + 2 * index);
        let mut swap = |at: usize, length: usize| page[at..at + length].reverse();
        swap(26 + 2 * index, 2);
        match (kind, old[at], old[at + 2]) {
            (2 | 13, 1, _) => {}
            (2 | 13, 3, _) | (5, _, 3 | 0x83) => {
                swap(at + 4, 4);
                swap(at + 8, 4);
            }
            (5, _, _) => swap(at, 2),
            (3, _, item) => {
                swap(at, 2);
                swap(at + 4, 4);
                swap(at + 8, 4);
                if item == 3 {
                    swap(at + 16, 4);
                    swap(at + 20, 4);
                }
            }
            other => panic!("an item of another kind: {other:?}"),
        }
    }
    for at in [0, 4, 8, 12, 16] {
        page[at..at + 4].reverse();
    }
    for at in [20, 22] {
        page[at..at + 2].reverse();
    }
}
