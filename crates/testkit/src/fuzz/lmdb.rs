//! The fuzz body for LMDB files.

use postkeep_tables::lmdb_file::{Snapshot, Trouble};

/// A file that the reference made, behind a byte that is not part of it.
const GOOD: &[u8] = include_bytes!("../../../../fuzz/regressions/lmdb_file/good");

/// The size of its pages.
const PAGE: u64 = 4096;

/// How many keys it has beside `long`.
const KEYS: u32 = 60;

/// A damaged LMDB file, given whole or as changes to a good one: what is found is no longer than the file, what is not
/// found leaves the buffer alone, and in a good file all is found. The length of the tree is bounded, so that no
/// circle in it is without end.
pub fn lmdb_file(data: &[u8]) {
    let [what, data @ ..] = data else { return };
    let good = &GOOD[1..];
    let file = super::changed(good, *what, data);
    let file = &file[..];
    let pages = file.len() as u64 / PAGE;
    let page_size = if what & 1 != 0 { 512 } else { PAGE };
    let snapshot = match Snapshot::newest(file, page_size) {
        Ok(snapshot) => snapshot,
        Err(trouble) => {
            assert!(trouble != Trouble::Passed, "nobody writes");
            assert!(file != good || page_size != PAGE);
            return;
        }
    };
    let look = |key: &[u8]| {
        let mut value = b"before".to_vec();
        let result = snapshot.find(file, pages, key, &mut value);
        assert!(value.starts_with(b"before") && value.len() - 6 <= file.len());
        assert!(result == Ok(true) || value.len() == 6);
        assert_ne!(result, Err(Trouble::Passed));
        (result, value.len() - 6)
    };
    for number in 0..KEYS {
        let found = look(format!("key{number}@example.com\0").as_bytes());
        // The values are of different lengths, each with a NUL behind it.
        let wanted = (Ok(true), 21 + number as usize);
        assert!(file != good || found == wanted, "{number}: {found:?}");
    }
    assert!(file != good || look(b"long\0") == (Ok(true), 5001));
    for key in [&b""[..], b"none\0", b"zzz", &[0xff; 600]] {
        let found = look(key);
        assert!(file != good || found == (Ok(false), 0));
    }
    assert!(snapshot.was_intact(file), "nobody writes");
}
