//! Berkeley DB files in either byte order give the same answers.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use postkeep_tables::berkeley_file::{Layout, Reader};
use postkeep_testkit::berkeley::byte_swapped;

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn list(file: &Vec<u8>, layout: Layout) -> Entries {
    let reader = Reader::new(file, layout).unwrap();
    reader.check().unwrap();
    let mut list = Entries::new();
    let mut place = 0;
    loop {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let last = list.last().map(|(key, _)| (&key[..], place));
        let Some(found) = reader.after(last, &mut key, &mut value).unwrap() else {
            return list;
        };
        let mut again = Vec::new();
        assert!(reader.find(&key, &mut again).unwrap());
        assert_eq!(again, value);
        place = found;
        list.push((key, value));
    }
}

#[test]
fn the_other_byte_order_has_the_same_entries() {
    for (name, layout) in [("hash", Layout::Hash), ("btree", Layout::Btree)] {
        let seed = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/regressions/berkeley_file")
            .join(name);
        let little = std::fs::read(seed).unwrap().split_off(1);
        let big = byte_swapped(&little);
        assert_eq!(big[12], 0);
        let entries = list(&little, layout);
        assert_eq!(entries.len(), 114);
        assert_eq!(entries, list(&big, layout));
    }
}
