//! Tests of the parent module.

use std::os::unix::fs::MetadataExt as _;

use super::*;

#[test]
fn entries_are_stored_once_or_replaced_and_deleted() {
    let Ok(library) = library() else {
        eprintln!("SKIP: no {}", LIBRARY.to_string_lossy());
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    for layout in [Layout::Hash, Layout::Btree] {
        let path = directory.path().join(format!("{layout:?}"));
        let mut database = library.open(&path, layout, true, 1 << 20).unwrap();
        assert_eq!(database.put(b"k", b"1", false), Ok(true));
        assert_eq!(database.put(b"k", b"2", false), Ok(false));
        assert_eq!(database.put(b"k", &vec![b'2'; 100_000], true), Ok(true));
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(database.identity(), Ok((metadata.dev(), metadata.ino())));
        database.close(false).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > 100_000);
        assert_eq!(
            library.open(&path, layout, true, 1 << 20).err(),
            Some(Error(libc::EEXIST))
        );
        let mut database = library.open(&path, layout, false, 1 << 20).unwrap();
        assert_eq!(database.delete(b"k"), Ok(true));
        assert_eq!(database.delete(b"k"), Ok(false));
        drop(database);
    }
    let (hash, btree) = (
        directory.path().join("Hash"),
        directory.path().join("Btree"),
    );
    for (path, layout) in [(&hash, Layout::Btree), (&btree, Layout::Hash)] {
        assert_eq!(
            library.open(path, layout, false, 1 << 20).err(),
            Some(Error(libc::EINVAL))
        );
    }
    let missing = directory.path().join("missing");
    assert_eq!(
        library.open(&missing, Layout::Hash, false, 1 << 20).err(),
        Some(Error(libc::ENOENT))
    );
}
