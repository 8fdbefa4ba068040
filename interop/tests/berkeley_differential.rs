//! The installed postmap and postalias against ours, on `hash:` and `btree:` tables: each reads what the other made and
//! goes on with it, lists it in the same order, waits for the other's locks, and has the same texts for faults.
//!
//! Left out is what ours does differently on purpose: damaged files, links, `DB_CONFIG`, and tables in which keys with
//! and without a trailing NUL are mixed.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postkeep_interop::postmap::{OPTIONS, Random, Sides, reading, shrink, words, write_old};
use postkeep_sys::effective;
use postkeep_sys::lock::LockedFile;
use postkeep_testkit::berkeley::byte_swapped;

const KINDS: [&str; 2] = ["hash", "btree"];

/// How many random tables of each type there are.
const ROUNDS: u64 = 30;

/// What is done to a table, in this order.
#[derive(Clone, Copy)]
struct Story<'a> {
    kind: &'a str,
    options: &'a str,
    source: &'a [u8],
    keys: &'a [u8],
    added: &'a [u8],
    deleted: &'a [u8],
    /// How much of it is played.
    steps: usize,
}

impl Story<'_> {
    /// Plays it on both sides, and says what differs first.
    fn difference(self, sides: &Sides) -> Option<String> {
        let table = format!("{}:t", self.kind);
        let table = table.as_str();
        let places = [sides.directory("real"), sides.directory("mine")];
        let [real, mine] = &places;
        for place in &places {
            write_old(&place.join("t"), self.source);
        }
        let reading = reading(self.options);
        let ask = words("postmap", &reading, &["-q", "-", table]);
        let list = words("postmap", &reading, &["-s", table]);
        let add = words("postmap", self.options, &["-i", table]);
        let delete = words("postmap", &reading, &["-d", "-", table]);
        let steps: [(&[&str], &[u8]); 4] = [
            (&words("postmap", self.options, &[table]), b""),
            (&add, self.added),
            (&delete, self.deleted),
            // Each goes on with the other's file.
            (&add, self.source),
        ];
        for (number, (step, input)) in steps.into_iter().enumerate().take(self.steps) {
            let crossed = [[real, mine], [mine, real]][number / 3].map(PathBuf::as_path);
            if let Some(text) = sides.difference(crossed, step, input, false) {
                return Some(text);
            }
            // The library leaves what was in memory where nothing is stored, so the bytes are not all the same.
            let lengths = places
                .each_ref()
                .map(|place| fs::metadata(place.join("t.db")).map_or(0, |data| data.len()));
            if number == 0 && lengths[0] != lengths[1] {
                return Some(format!("the files have {lengths:?} bytes"));
            }
            for places in [[real, mine], [mine, real]].map(|pair| pair.map(PathBuf::as_path)) {
                for (command, input) in [(&ask, self.keys), (&list, &b""[..])] {
                    if let Some(text) = sides.difference(places, command, input, false) {
                        return Some(format!("after {step:?}: {text}"));
                    }
                }
            }
        }
        None
    }
}

fn check(story: Story<'_>, sides: &Sides, seed: u64) {
    let Some(text) = story.difference(sides) else {
        return;
    };
    let source = shrink(story.source, |source| {
        Story { source, ..story }.difference(sides).is_some()
    });
    let source = &source;
    let added = shrink(story.added, |added| {
        let story = Story {
            source,
            added,
            ..story
        };
        story.difference(sides).is_some()
    });
    let story = Story {
        source,
        added: &added,
        ..story
    };
    panic!(
        "seed {seed}, {}, options {}: {text}\nshrunk: source \"{}\", added \"{}\", deleted \"{}\": {}",
        story.kind,
        story.options,
        story.source.escape_ascii(),
        story.added.escape_ascii(),
        story.deleted.escape_ascii(),
        story.difference(sides).unwrap_or_default()
    );
}

fn several(random: &mut Random) -> Vec<u8> {
    let mut source = Vec::new();
    for _ in 0..=random.below(6) {
        source.extend(random.source());
        source.push(b'\n');
    }
    source
}

#[test]
fn random_tables_are_the_same_and_changed_by_either() {
    let Some(sides) = Sides::new() else { return };
    for seed in 1..=ROUNDS {
        for kind in KINDS {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let (source, added) = (several(&mut random), several(&mut random));
            let mut keys = random.keys(&source);
            for _ in 0..100 {
                keys.extend(random.key());
                keys.push(b'\n');
            }
            let story = Story {
                kind,
                options: random.pick(&OPTIONS),
                source: &source,
                keys: &keys,
                added: &added,
                deleted: &random.keys(&source),
                steps: 4,
            };
            check(story, &sides, seed);
        }
    }
}

#[test]
fn tables_of_any_size_are_the_same() {
    let Some(sides) = Sides::new() else { return };
    let many = (0..100_000_u32).map(|number| {
        let key = number.wrapping_mul(0x9E37_79B1);
        (format!("user{key}@example.test"), format!("box{number}"))
    });
    let mut long = Vec::new();
    for length in [
        1, 255, 1000, 1024, 2000, 4069, 4070, 4071, 4096, 8192, 65_536,
    ] {
        for letter in ["k", "x", "z"] {
            long.push((letter.repeat(length), "v".repeat(length)));
        }
        long.push((format!("{}!", "x".repeat(length)), "y".to_owned()));
        long.push((format!("s{length}"), "w".repeat(length)));
    }
    let one = vec![("key".to_owned(), "value".to_owned())];
    for table in [Vec::new(), one, long, many.collect()] {
        let (mut source, mut keys) = (String::new(), String::new());
        for (key, value) in &table {
            writeln!(source, "{key} {value}").unwrap();
            writeln!(keys, "{key}\n{key}x").unwrap();
        }
        // Of many all are listed, and some are asked for.
        let (steps, asked) = if table.len() > 1000 {
            (1, keys.len() / 10)
        } else {
            (4, keys.len())
        };
        for kind in KINDS {
            let story = Story {
                kind,
                options: "",
                source: source.as_bytes(),
                keys: &keys.as_bytes()[..asked],
                added: b"new entry\n",
                deleted: &keys.as_bytes()[..keys.len() / 3],
                steps,
            };
            assert_eq!(story.difference(&sides), None);
        }
    }
}

/// A file of a machine with the other byte order; the library reads those, too.
#[test]
fn the_other_byte_order_gives_the_same_answers() {
    let Some(sides) = Sides::new() else { return };
    let mut source = String::new();
    for number in 0..3000 {
        writeln!(source, "key{number} value{number}").unwrap();
    }
    for length in [3000, 30_000] {
        let (key, value) = ("k".repeat(length), "v".repeat(length));
        writeln!(source, "{key} {value}").unwrap();
    }
    for kind in KINDS {
        let place = sides.directory("both");
        let table = format!("{kind}:t");
        write_old(&place.join("t"), source.as_bytes());
        sides.run(&sides.real, &place, &["postmap", &table], b"");
        let list = || {
            let list = ["postmap", "-s", &table];
            sides.compare([&place, &place], &list, b"", false, kind);
            sides.run(&sides.ours, &place, &list, b"").stdout
        };
        let entries = list();
        assert_eq!(entries.split(|&byte| byte == b'\n').count(), 3003);
        let little = fs::read(place.join("t.db")).unwrap();
        fs::write(place.join("t.db"), byte_swapped(&little)).unwrap();
        assert!(entries == list(), "{kind}");
        let ask = ["postmap", "-q", "-", &table];
        sides.compare([&place, &place], &ask, source.as_bytes(), false, kind);
        // And it is written to.
        let add = ["postmap", "-i", &table];
        sides.run(&sides.ours, &place, &add, b"more entries\n");
        let ask = ["postmap", "-q", "more", &table];
        sides.compare([&place, &place], &ask, b"", false, kind);
    }
}

#[test]
fn faults_have_the_same_texts() {
    let Some(sides) = Sides::new() else { return };
    let places = [sides.directory("real"), sides.directory("mine")];
    for place in &places {
        for name in ["t", "new", "zero", "d", "junk", "other", "full"] {
            write_old(&place.join(name), b"k v\n");
        }
        for name in ["zero.db", "zero2.db", "zero3.db"] {
            write_old(&place.join(name), b"");
        }
        write_old(&place.join("junk.db"), &b"no table at all\n".repeat(400));
        fs::create_dir(place.join("d.db")).unwrap();
        fs::write(place.join("f"), b"content\n").unwrap();
        fs::write(place.join("e"), b"").unwrap();
        write_old(&place.join("files"), b"full f\nempty e\nmissing m\n");
        for words in [["postmap", "hash:t"], ["postmap", "btree:other"]] {
            sides.run(&sides.real, place, &words, b"");
        }
    }
    let cases: &[(&[&str], &str)] = &[
        (&["-q", "k", "hash:missing"], ""),
        (&["-d", "k", "hash:missing"], ""),
        (&["-q", "k", "hash:other"], ""),
        (&["-q", "k", "btree:t"], ""),
        (&["-d", "k", "btree:t"], ""),
        (&["-i", "btree:t"], "a b\n"),
        (&["-q", "k", "hash:zero"], ""),
        (&["-d", "k", "hash:zero"], ""),
        (&["-q", "k", "hash:d"], ""),
        (&["-d", "k", "hash:d"], ""),
        (&["-i", "hash:d"], "a b\n"),
        (&["hash:d"], ""),
        (&["-q", "k", "btree:junk"], ""),
        (&["-i", "btree:junk"], "a b\n"),
        (&["-i", "hash:no/dir"], "a b\n"),
        (&["-q", "k", "hash:t/x"], ""),
        (&["-q", "", "hash:t"], ""),
        (&["-n", "-q", "", "btree:other"], ""),
        (&["-n", "-d", "", "hash:t"], ""),
        (&["-N", "-d", "", "btree:other"], ""),
        (&["-q", "x\u{e9}", "hash:t"], ""),
        (&["-q", "k", "hash:missing", "static:x"], ""),
        (&["-i", "hash:t"], "k again\nK again\n"),
        (&["-wi", "hash:t"], "k again\n"),
        (&["-q", "k"], ""),
        (&["-q", "k", "t"], ""),
    ];
    let next = std::sync::Mutex::new(cases.iter());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let Some((case, input)) = next.lock().unwrap().next() else {
                        return;
                    };
                    let command = words("postmap", "", case);
                    let places = places.each_ref().map(PathBuf::as_path);
                    sides.compare(places, &command, input.as_bytes(), false, "");
                }
            });
        }
    });
    // These change what the others see.
    let in_order: &[(&[&str], &str)] = &[
        (&["hash:zero"], ""),
        (&["-i", "btree:zero2"], "a b\n"),
        (&["-s", "btree:zero2"], ""),
        (&["btree:junk", "hash:junk"], ""),
        (&["-s", "hash:junk"], ""),
        (&["btree:t"], ""),
        (&["-s", "btree:t"], ""),
        (&["-F", "hash:files"], ""),
        (&["-F", "-q", "full", "hash:files"], ""),
        (&["-F", "-q", "empty", "hash:files"], ""),
        (&["-q", "empty", "hash:files"], ""),
        (&["-s", "hash:files"], ""),
        (&["new"], ""),
        (&["-q", "k", "new"], ""),
    ];
    for (case, input) in in_order {
        let command = words("postmap", "", case);
        let places = places.each_ref().map(PathBuf::as_path);
        sides.compare(places, &command, input.as_bytes(), false, "");
    }
    let ask = ["postmap", "-q", "-", "hash:files"];
    let places = places.each_ref().map(PathBuf::as_path);
    sides.compare(places, &ask, b"empty\nfull\n", false, "");
}

#[test]
fn aliases_are_stored_the_same_way() {
    let Some(sides) = Sides::new() else { return };
    for kind in KINDS {
        let table = format!("{kind}:t");
        let places = [sides.directory("real"), sides.directory("mine")];
        for place in &places {
            write_old(
                &place.join("t"),
                b"root: joe, ann\n\"a b\": c\nlist: :include:/x\n",
            );
        }
        let [real, mine] = places.each_ref().map(PathBuf::as_path);
        sides.compare([real, mine], &["postalias", &table], b"", false, kind);
        let ask = ["postalias", "-q", "-", &table];
        let keys = b"ROOT\na b\n@\nlist\nnobody\n";
        sides.compare([real, mine], &ask, keys, false, kind);
        sides.compare([mine, real], &ask, keys, false, kind);
    }
}

/// The reference's locks and ours see each other.
#[test]
fn either_waits_for_the_other_s_lock() {
    let Some(sides) = Sides::new() else { return };
    let cases: [(&[&str], bool); 5] = [
        (&["postmap", "-q", "k", "hash:t"], false),
        (&["postmap", "-s", "hash:t"], false),
        (&["postmap", "-d", "none", "hash:t"], true),
        (&["postmap", "-i", "hash:t"], true),
        (&["postmap", "hash:t"], true),
    ];
    let count = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for programs in [&sides.real, &sides.ours] {
            for (words, writes) in cases {
                for exclusive in [false, true] {
                    let (sides, count) = (&sides, &count);
                    scope.spawn(move || {
                        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let place = sides.directory(&format!("lock{number}"));
                        write_old(&place.join("t"), b"k v\n");
                        sides.run(&sides.real, &place, &["postmap", "hash:t"], b"");
                        let file = fs::OpenOptions::new()
                            .read(true)
                            .write(true)
                            .open(place.join("t.db"))
                            .unwrap();
                        let locked = LockedFile::with_flock(file);
                        let shared = (!exclusive).then(|| locked.read().unwrap());
                        let alone = exclusive.then(|| locked.write().unwrap());
                        let mut child = Command::new(programs.join(words[0]))
                            .args(&words[1..])
                            .current_dir(&place)
                            .env("MAIL_CONFIG", sides.root().join("cfg"))
                            .stdin(Stdio::null())
                            .stdout(Stdio::null())
                            .spawn()
                            .unwrap();
                        let start = Instant::now();
                        // One that does not wait needs much less than this; one that does is still there.
                        let patience =
                            Duration::from_secs(if exclusive || writes { 1 } else { 30 });
                        let mut ended = false;
                        while !ended && start.elapsed() < patience {
                            ended = child.try_wait().unwrap().is_some();
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        assert_eq!(
                            ended,
                            !exclusive && !writes,
                            "{programs:?} {words:?} exclusive {exclusive}"
                        );
                        drop((shared, alone));
                        child.wait().unwrap();
                    });
                }
            }
        }
    });
}

/// Readers have the old table while ours makes the new one, and nobody gets a half.
#[test]
fn a_maker_that_is_killed_leaves_the_old_table() {
    let Some(sides) = Sides::new() else { return };
    for words in [&["hash:t"][..], &["-i", "hash:t"]] {
        let place = sides.directory("both");
        write_old(&place.join("t"), b"k v\n");
        sides.run(&sides.ours, &place, &["postmap", "hash:t"], b"");
        let before = fs::read(place.join("t.db")).unwrap();
        fs::remove_file(place.join("t")).unwrap();
        let fifo = place.join("t");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        let mut child = Command::new(sides.ours.join("postmap"))
            .args(words)
            .current_dir(&place)
            .env("MAIL_CONFIG", sides.root().join("cfg"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input: Box<dyn std::io::Write> = if words.len() == 1 {
            Box::new(fs::OpenOptions::new().write(true).open(&fifo).unwrap())
        } else {
            Box::new(child.stdin.take().unwrap())
        };
        input.write_all(b"half a table\n").unwrap();
        input.flush().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let ask = ["postmap", "-q", "k", "hash:t"];
        let answer = sides.run(&sides.real, &place, &ask, b"");
        assert_eq!(answer.stdout, b"v\n");
        child.kill().unwrap();
        child.wait().unwrap();
        drop(input);
        assert!(fs::read(place.join("t.db")).unwrap() == before, "{words:?}");
    }
}

/// Mode and owner of a new table follow from those of its source; one that is there keeps its own.
#[test]
fn tables_have_the_same_mode_and_owner() {
    let Some(sides) = Sides::new() else { return };
    if !effective::real_user_is_root() {
        eprintln!("SKIP: only root can make files of others");
        return;
    }
    let user = 65_534;
    let mut cases = Vec::new();
    for source in [0, user] {
        for mode in [0o600, 0o640, 0o664, 0o444] {
            for options in ["", "-p", "-o", "-op"] {
                cases.push((source, mode, options, source, None));
            }
        }
        for directory in [0, user] {
            for table in [0, user] {
                for options in ["", "-o"] {
                    cases.push((source, 0o644, options, directory, Some((table, 0o640))));
                }
            }
        }
    }
    let next = std::sync::Mutex::new(cases.into_iter().enumerate());
    std::thread::scope(|scope| {
        // Some fail, and sleep for a second.
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some((number, case)) = next.lock().unwrap().next() else {
                        return;
                    };
                    let (source, mode, options, directory, table) = case;
                    let made =
                        [("real", &sides.real), ("mine", &sides.ours)].map(|(name, programs)| {
                            let place = sides.directory(&format!("{name}{number}"));
                            write_old(&place.join("t"), b"k v\n");
                            let set = |path: &Path, owner, mode| {
                                chown(path, Some(owner), Some(owner)).unwrap();
                                fs::set_permissions(path, fs::Permissions::from_mode(mode))
                                    .unwrap();
                            };
                            let file = place.join("t.db");
                            if let Some((owner, mode)) = table {
                                sides.run(&sides.real, &place, &["postmap", "hash:t"], b"");
                                set(&file, owner, mode);
                            }
                            set(&place.join("t"), source, mode);
                            set(&place, directory, 0o755);
                            let make = words("postmap", options, &["hash:t"]);
                            let outcome = sides.run(programs, &place, &make, b"");
                            let made = fs::metadata(&file).ok();
                            let made =
                                made.map(|made| (made.mode() & 0o7777, made.uid(), made.gid()));
                            let mut names: Vec<_> = fs::read_dir(&place)
                                .unwrap()
                                .map(|entry| entry.unwrap().file_name())
                                .collect();
                            names.sort();
                            (outcome, made, names)
                        });
                    assert_eq!(made[0], made[1], "{case:?}");
                }
            });
        }
    });
}
