//! Tests of the parent module.

use std::sync::atomic::AtomicBool;

use super::super::{Environment, Error, Options};
use super::*;
use crate::guarded::GuardedMap;

/// A file with some hundred entries, deep enough for pages of both kinds, and two long values.
fn file() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.lmdb");
    let options = Options {
        write: true,
        map_size: 1,
    };
    let environment = Environment::open(&path, options).unwrap();
    environment
        .write(|writer| {
            for number in 0..400_u32 {
                writer.put(format!("key{number}").as_bytes(), &value(number), true)?;
            }
            Ok(())
        })
        .unwrap();
    std::fs::read(&path).unwrap()
}

fn value(number: u32) -> Vec<u8> {
    let length = if number % 200 == 7 { 9000 } else { 60 };
    number.to_be_bytes().repeat(length / 4)
}

fn find(file: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, Trouble> {
    let snapshot = Snapshot::newest(file, 4096)?;
    let mut out = b"<".to_vec();
    let result = snapshot.find(file, file.len() as u64 / 4096, key, &mut out);
    assert!(snapshot.was_intact(file));
    if result != Ok(true) {
        assert_eq!(out, b"<");
    }
    result.map(|found| found.then(|| out[1..].to_vec()))
}

#[test]
fn all_keys_are_found_and_no_others() {
    let file = file();
    for number in 0..400 {
        let found = find(&file, format!("key{number}").as_bytes());
        assert_eq!(found, Ok(Some(value(number))), "{number}");
    }
    for key in ["", "k", "key", "key400", "key1x", "z", "\0", "key7\0"] {
        assert_eq!(find(&file, key.as_bytes()), Ok(None), "{key}");
    }
    assert_eq!(find(&file, &[b'k'; 600]), Ok(None));
}

#[test]
fn the_number_decides_whether_what_was_read_counts() {
    let file = file();
    let snapshot = Snapshot::newest(&file[..], 4096).unwrap();
    assert_eq!((snapshot.number, snapshot.slot), (1, 1));
    let other = 16 + NUMBER;
    let own = 4096 + 16 + NUMBER;
    for (at, number, intact) in [
        (other, 0, true),
        (other, 2, true),
        (other, 3, false),
        (own, 1, true),
        (own, 3, false),
    ] {
        let mut later = file.clone();
        later[at] = number;
        assert_eq!(snapshot.was_intact(&later[..]), intact, "{at} {number}");
    }
    // The same number, but another tree: the page was seen half written.
    let mut later = file.clone();
    later[4096 + 16 + 112] ^= 1;
    assert!(!snapshot.was_intact(&later[..]));
}

#[test]
fn what_is_not_such_a_file_is_refused() {
    let file = file();
    assert_eq!(find(b"", b"k"), Err(Trouble::Outside));
    assert_eq!(find(&[0; 8192], b"k"), Err(Trouble::Structure));
    for at in [16, 20, 40, 16 + 76, 16 + 78] {
        let mut damaged = file.clone();
        damaged[4096 + at] ^= 0x40;
        assert!(find(&damaged, b"key1").is_err(), "{at}");
    }
    // The tree ends where the file does.
    assert_eq!(find(&file[..8192], b"key1"), Err(Trouble::Outside));
}

#[test]
fn a_circle_comes_to_an_end() {
    let file = file();
    let snapshot = Snapshot::newest(&file[..], 4096).unwrap();
    assert_eq!(snapshot.depth, 2);
    let root = usize::try_from(snapshot.root).unwrap() * 4096;
    let mut damaged = file.clone();
    damaged[4096 + 16 + 78] = 32;
    // All entries of the root lead back to it.
    let count = (u16::from_ne_bytes([file[root + 12], file[root + 13]]) - 16) / 2;
    for entry in 0..usize::from(count) {
        let at = root + 16 + 2 * entry;
        let node = root + usize::from(u16::from_ne_bytes([file[at], file[at + 1]]));
        damaged[node..node + 2].copy_from_slice(&snapshot.root.to_ne_bytes()[..2]);
    }
    assert_eq!(find(&damaged, b"key1"), Err(Trouble::Structure));
}

#[test]
fn no_byte_can_do_harm() {
    let mut file = file();
    for at in (0..file.len()).step_by(19) {
        let good = file[at];
        for byte in [0, 0xff, good ^ 1, good ^ 0x80] {
            file[at] = byte;
            for key in [&b"key1"[..], b"key7", b"key399"] {
                if let Ok(Some(found)) = find(&file, key) {
                    assert!(found.len() <= file.len());
                }
            }
        }
        file[at] = good;
    }
}

#[test]
fn a_state_lives_until_the_one_after_the_next_and_counts_until_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.lmdb");
    let options = Options {
        write: true,
        map_size: 1,
    };
    let environment = Environment::open(&path, options).unwrap();
    let fill = |stamp: u32| {
        environment
            .write(|writer| {
                writer.clear()?;
                for key in 0..STAMPED {
                    writer.put(&key.to_be_bytes(), &stamped(key, stamp), true)?;
                }
                Ok(())
            })
            .unwrap();
    };
    for stamp in 1..5 {
        fill(stamp);
    }
    let mut overwritten = 0;
    for stamp in 5..15 {
        fill(stamp);
        let map = GuardedMap::with_room(environment.file(), 16 << 20).unwrap();
        let snapshot = Snapshot::newest(&map, 4096).unwrap();
        let still_there = || {
            (0..STAMPED).all(|key| {
                let mut value = Vec::new();
                let found = snapshot.find(&map, u64::MAX, &key.to_be_bytes(), &mut value);
                found == Ok(true) && value == stamped(key, stamp)
            })
        };
        assert!(still_there() && snapshot.was_intact(&map));
        fill(100);
        assert!(still_there() && snapshot.was_intact(&map));
        fill(101);
        assert!(still_there() && !snapshot.was_intact(&map));
        fill(102);
        assert!(!snapshot.was_intact(&map));
        overwritten += u32::from(!still_there());
    }
    assert!(overwritten > 0);
}

/// Keys that all have a value with the same stamp in it, some on pages of their own.
const STAMPED: u32 = 60;

fn stamped(key: u32, stamp: u32) -> Vec<u8> {
    let length = if key.is_multiple_of(10) { 9000 } else { 300 };
    stamp.to_be_bytes().repeat(length / 4)
}

/// The stamp of a value, which must be the same throughout.
fn stamp_of(value: &[u8]) -> u32 {
    let stamp = u32::from_be_bytes(value[..4].try_into().unwrap());
    assert!(value.chunks(4).all(|piece| piece == stamp.to_be_bytes()));
    stamp
}

#[test]
fn a_state_that_was_intact_is_one_state_whatever_writers_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.lmdb");
    let options = Options {
        write: true,
        map_size: 1,
    };
    let environment = Environment::open(&path, options).unwrap();
    let fill = |stamp: u32, clear: bool, fail: bool| {
        let result = environment.write(|writer| {
            if clear {
                writer.clear()?;
            }
            for key in 0..STAMPED {
                writer.put(&key.to_be_bytes(), &stamped(key, stamp), true)?;
            }
            if fail {
                return Err(Error::BAD_KEY_SIZE);
            }
            Ok(())
        });
        assert_eq!(result.is_err(), fail);
    };
    fill(1, false, false);
    let file = std::fs::File::open(&path).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2_u32)
            .map(|reader| {
                let (file, done) = (&file, &done);
                scope.spawn(move || {
                    let map = GuardedMap::with_room(file, 16 << 20).unwrap();
                    let (mut intact, mut last) = (0, 0);
                    let mut key = reader;
                    while !done.load(atomic::Ordering::Relaxed) || intact == 0 {
                        key += 7;
                        let snapshot = Snapshot::newest(&map, 4096);
                        let pair = [key % STAMPED, (key + 10) % STAMPED].map(|key| {
                            let mut value = Vec::new();
                            let found = snapshot.as_ref().map(|snapshot| {
                                snapshot.find(&map, u64::MAX, &key.to_be_bytes(), &mut value)
                            });
                            (found, value)
                        });
                        let Ok(snapshot) = &snapshot else { continue };
                        if !snapshot.was_intact(&map) {
                            continue;
                        }
                        let stamps = pair.map(|(found, value)| {
                            assert_eq!(found, Ok(Ok(true)));
                            stamp_of(&value)
                        });
                        assert!(stamps[0] == stamps[1] && stamps[0] >= last);
                        last = stamps[0];
                        intact += 1;
                    }
                    assert!(!map.is_damaged());
                    (intact, last)
                })
            })
            .collect();
        for stamp in 2..=150 {
            fill(stamp, stamp % 2 == 0, stamp % 5 == 0);
        }
        fill(151, true, false);
        done.store(true, atomic::Ordering::Relaxed);
        for reader in readers {
            let (intact, last) = reader.join().unwrap();
            assert!(intact > 0 && last > 1, "{intact} {last}");
        }
    });
}
