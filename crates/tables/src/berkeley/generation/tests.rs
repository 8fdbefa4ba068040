//! Tests of the parent module, with tables that the library makes.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicBool;

use postkeep_table::{Access, Flags, Outcome, Table as _};

use super::super::tests::{self, places};
use super::super::{Berkeley, open_file};
use super::*;
use crate::{BuildMode, Caller};

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Makes the table with one long value for each key, all of one letter, and gives the file's contents.
fn state(place: &tests::Place, letter: &str) -> Vec<u8> {
    let value = letter.repeat(50_000);
    place.build(BuildMode::Create, &KEYS.map(|key| (key, &value[..])));
    std::fs::read(&place.file).unwrap()
}

fn ask(table: &Berkeley, key: &str) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let outcome = table
        .lookup(Flags::LOCK, key.as_bytes(), &mut value)
        .unwrap();
    (outcome == Outcome::Done).then_some(value)
}

/// Looks up until all that the answer takes is kept; false where nothing is kept in this file system.
fn settle(table: &Berkeley, key: &str) -> bool {
    if !is_local(table.current().file()) {
        eprintln!("SKIP: the file system is not a local one");
        return false;
    }
    let limit = Instant::now() + Duration::from_secs(20);
    while table.generation.load().is_none() {
        assert!(Instant::now() < limit, "nothing is ever kept");
        ask(table, key);
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..=READINGS {
        ask(table, key);
    }
    true
}

/// Rewrites a file in place, as the reference does, with a pause in the middle.
fn rewrite(file: &LockedFile, contents: &[u8]) {
    let _guard = file.write().unwrap();
    file.file().set_len(0).unwrap();
    let (first, second) = contents.split_at(contents.len() / 2);
    file.file().write_all_at(first, 0).unwrap();
    std::thread::yield_now();
    let offset = first.len() as u64;
    file.file().write_all_at(second, offset).unwrap();
}

#[test]
fn no_answer_is_of_two_states() {
    for place in places(Caller::Daemon) {
        let states = ["1", "2"].map(|letter| state(&place, letter));
        let writer = LockedFile::with_flock(open_file(&place.file, true).unwrap());
        let table = place.bare(Access::Read);
        let (done, kept) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for first in [0, 3] {
                let (table, done) = (&table, &done);
                scope.spawn(move || {
                    for key in KEYS.iter().cycle().skip(first) {
                        if done.load(Ordering::Relaxed) {
                            return;
                        }
                        let value = ask(table, key).unwrap();
                        assert_eq!(value.len(), 50_000);
                        assert!(value.iter().all(|&letter| letter == value[0]));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            for number in 0..10 {
                rewrite(&writer, &states[number % 2]);
                // While some pages of the state before are there, and others are not.
                let limit = Instant::now() + Duration::from_secs(2);
                while table.generation.load().is_none() && Instant::now() < limit {
                    std::thread::yield_now();
                }
                kept.fetch_add(
                    usize::from(table.generation.load().is_some()),
                    Ordering::Relaxed,
                );
                std::thread::sleep(Duration::from_millis(number as u64 % 4));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(kept.load(Ordering::Relaxed) > 0 || !is_local(table.current().file()));
    }
}

#[test]
fn what_this_process_changes_is_seen_at_once_by_all_who_keep_pages() {
    for place in places(Caller::Daemon) {
        place.build(BuildMode::Create, &[("k", "0")]);
        let writer = place.bare(Access::ReadWrite);
        let tables = [Access::Read, Access::ReadWrite].map(|access| place.bare(access));
        for value in [b"1", b"2"] {
            for table in &tables {
                settle(table, "k");
            }
            writer.update(Flags::DUP_REPLACE, b"k", value).unwrap();
            for table in &tables {
                assert_eq!(ask(table, "k").as_deref(), Some(&value[..]));
            }
        }
        for table in &tables {
            settle(table, "k");
        }
        writer.delete(Flags::empty(), b"k").unwrap();
        for table in &tables {
            assert_eq!(ask(table, "k"), None);
        }
    }
}

#[test]
fn a_file_that_is_changed_within_one_tick_is_read_each_time() {
    for place in places(Caller::Daemon) {
        let states = ["1", "2"].map(|letter| state(&place, letter));
        let writer = LockedFile::with_flock(open_file(&place.file, true).unwrap());
        let table = place.bare(Access::Read);
        for number in 0..50 {
            let before = Instant::now();
            rewrite(&writer, &states[number % 2]);
            for _ in 0..READINGS + 3 {
                assert_eq!(ask(&table, "c").unwrap()[0], b"12"[number % 2]);
            }
            if table.generation.load().is_some() {
                // Right only where this machine was slow.
                assert!(before.elapsed() >= SETTLED);
                table.generation.store(None);
            }
        }
    }
}

#[test]
fn a_change_of_a_file_that_is_kept_is_seen_by_the_check() {
    for place in places(Caller::Daemon) {
        let states = ["1", "2"].map(|letter| state(&place, letter));
        let writer = LockedFile::with_flock(open_file(&place.file, true).unwrap());
        let table = place.bare(Access::Read);
        if !settle(&table, "c") {
            return;
        }
        let generation = table.generation.load_full().unwrap();
        assert!(generation.is_current());
        // Changes that other tests make meanwhile do not count.
        generation.changes.store(u64::MAX, Ordering::SeqCst);
        rewrite(&writer, &states[0]);
        let limit = Instant::now() + Duration::from_secs(20);
        while ask(&table, "c").unwrap()[0] != b'1' {
            assert!(Instant::now() < limit, "the change is never seen");
        }
        assert!(!generation.is_unchanged());
    }
}

#[test]
fn pages_that_are_kept_answer_while_somebody_has_the_lock() {
    for place in places(Caller::Daemon) {
        state(&place, "1");
        let table = place.bare(Access::Read);
        if !settle(&table, "c") {
            return;
        }
        let other = LockedFile::with_flock(open_file(&place.file, true).unwrap());
        let _guard = other.write().unwrap();
        let mut value = Vec::new();
        let outcome = table.try_lookup(Flags::LOCK, b"c", &mut value);
        assert!(matches!(outcome, Some(Ok(Outcome::Done))));
        assert_eq!(value.len(), 50_000);
    }
}

#[test]
fn no_more_memory_is_used_than_there_is() {
    for place in places(Caller::Daemon) {
        let length = state(&place, "1").len();
        let table = place.bare(Access::Read);
        let file = table.current();
        let header = Header::read(file.file(), place.layout()).unwrap();
        let (page, list) = (
            header.size,
            length / header.size * size_of::<super::Place>(),
        );
        for memory in [0, list + page, list + 3 * page + 1, list + length] {
            let header = header.clone();
            let stamp = stamp(file.file()).unwrap();
            let generation = Generation::new(Arc::clone(&file), stamp, header, 0, memory);
            for _ in 0..2 + READINGS {
                for key in KEYS {
                    let mut value = Vec::new();
                    let view = generation.view();
                    let key = format!("{key}\0");
                    assert!(view.reader().find(key.as_bytes(), &mut value).unwrap());
                    assert_eq!(value.len(), 50_001);
                }
            }
            let pages = generation.places.iter();
            let held: usize = pages
                .filter_map(|place| place.bytes.get())
                .map(|page| page.len())
                .sum();
            let used = generation.used.load(Ordering::Relaxed);
            assert_eq!(held, used);
            assert!(used <= memory.saturating_sub(list));
            assert_eq!(used > 0, memory > 0);
        }
    }
}
