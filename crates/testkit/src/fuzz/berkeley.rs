//! The fuzz body for Berkeley DB files.

use postkeep_tables::berkeley_file::{Layout, Reader};

/// Files that the reference made, behind a byte that tells the layout.
const GOOD: [&[u8]; 2] = [
    include_bytes!("../../../../fuzz/regressions/berkeley_file/hash"),
    include_bytes!("../../../../fuzz/regressions/berkeley_file/btree"),
];

/// A damaged Berkeley DB file, given whole or as changes to a good one: what is found or listed is no longer than the
/// file, a walk ends, and in a file that passes the check all that is listed is found.
pub fn berkeley_file(data: &[u8]) {
    let [what, data @ ..] = data else { return };
    let tree = what & 1 != 0;
    let layout = if tree { Layout::Btree } else { Layout::Hash };
    let good = &GOOD[usize::from(tree)][1..];
    let file = super::changed(good, *what, data);
    let Ok(reader) = Reader::new(&file, layout) else {
        assert_ne!(file, good);
        return;
    };
    let whole = reader.check();
    assert!(whole.is_ok() || file != good, "{whole:?}");
    let mut last: Option<(Vec<u8>, u64)> = None;
    let mut count = 0;
    loop {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let at = last.as_ref().map(|(key, place)| (&key[..], *place));
        let place = match reader.after(at, &mut key, &mut value) {
            Ok(Some(place)) => place,
            Ok(None) => break,
            Err(fault) => {
                assert!(whole.is_err(), "{fault}");
                assert!(key.is_empty() && value.is_empty());
                break;
            }
        };
        assert!(key.len() + value.len() <= file.len());
        let mut found = b"before".to_vec();
        let result = reader.find(&key, &mut found);
        if whole.is_ok() {
            assert!(matches!(result, Ok(true)), "{result:?}");
            assert_eq!(&found[6..], value);
        }
        assert!(found.starts_with(b"before") && found.len() - 6 <= file.len());
        last = Some((key, place));
        count += 1;
        assert!(count <= file.len() / 2, "a walk in circles");
    }
    assert!(count == 114 || file != good, "{count}");
    for key in [&b"key1@example.com\0"[..], b"none\0", b"", &[b'k'; 3000]] {
        let mut value = Vec::new();
        let found = reader.find(key, &mut value);
        assert!(matches!(found, Ok(true)) || value.is_empty());
    }
}
