//! LMDB files that are read without a lock while the installed postmap(1) makes them anew, and while it changes one
//! entry after the other as fast as it can.
//!
//! Each value is the number of its version, many times. A value with two numbers, an older one than before, or a key
//! that is not there fails.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postkeep_interop::postmap::Sides;
use postkeep_sys::lmdb::{Environment, Options, Unlocked};

/// How many keys there are, every tenth with a value on pages of its own.
const KEYS: usize = 100;

/// How many versions are made.
const VERSIONS: usize = 24;

fn source(version: usize) -> String {
    let mut text = String::new();
    for key in 0..KEYS {
        let times = if key.is_multiple_of(10) { 1000 } else { 9 };
        writeln!(text, "k{key} {}", format!("{version:06}.").repeat(times)).unwrap();
    }
    text
}

/// The version that a value is from.
fn version(value: &[u8]) -> usize {
    let value = str::from_utf8(value.strip_suffix(b"\0").unwrap()).unwrap();
    let first = &value[..7];
    assert!(value.len() >= 63 && value == first.repeat(value.len() / 7));
    first[..6].parse().unwrap()
}

#[test]
fn readers_see_whole_values_and_never_go_back() {
    let Some(sides) = Sides::new() else { return };
    let directory = sides.directory("unlocked");
    let run = |arguments: &[&str], input: &str| {
        let arguments = [&["postmap"], arguments].concat();
        let outcome = sides.run(&sides.real, &directory, &arguments, input.as_bytes());
        assert_eq!((outcome.exit, outcome.stderr.as_str()), (Some(0), ""));
    };
    let make = |version| {
        fs::write(directory.join("t"), source(version)).unwrap();
        run(&["lmdb:t"], "");
    };
    make(1);
    let options = Options {
        write: false,
        map_size: 1,
    };
    let environment = Environment::open(&directory.join("t.lmdb"), options).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2_usize)
            .map(|reader| {
                let (environment, done) = (&environment, &done);
                scope.spawn(move || {
                    let mut last = [1; KEYS];
                    let (mut found, mut undecided, mut key) = (0, 0, reader);
                    while !done.load(Ordering::Relaxed) || found == 0 {
                        key = (key + 7) % KEYS;
                        let name = format!("k{key}\0");
                        let mut value = Vec::new();
                        match environment.find_unlocked(&[name.as_bytes()], &mut value) {
                            Unlocked::Found(_) => {
                                let version = version(&value);
                                assert!(version >= last[key], "{version} after {}", last[key]);
                                last[key] = version;
                                found += 1;
                            }
                            Unlocked::Absent => panic!("{key} is not there"),
                            Unlocked::Undecided => undecided += 1,
                        }
                    }
                    (found, undecided)
                })
            })
            .collect();
        for version in 2..=VERSIONS {
            if version.is_multiple_of(4) {
                make(version);
            } else {
                run(&["-i", "-r", "lmdb:t"], &source(version));
            }
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            let (found, undecided) = reader.join().unwrap();
            println!("{found} found, {undecided} undecided");
            assert!(found > 100 * undecided, "{found} {undecided}");
        }
    });
}
