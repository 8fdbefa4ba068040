//! The installed postmap and postalias against ours, on `cdb:` tables: the files have the same bytes, each reads the
//! other's, and faults have the same texts.
//!
//! Left out is what ours does differently on purpose: a file that begins with zeros is no empty table, a file that is
//! cut off answers nothing at all, a temporary file that was left behind is not used again, a symbolic link in its
//! place is not followed, and keys with and without a NUL are found in the same table.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use postkeep_interop::postmap::{OPTIONS, Random, Sides, reading, shrink, words, write_old};
use postkeep_sys::effective;
use postkeep_table::{Access, Cursor, Flags, Opener as _, Outcome, Step, TableName};
use postkeep_tables::{Context, Registry};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch};

/// How many random tables there are.
const ROUNDS: u64 = 60;

/// Makes a table from a source on both sides, asks each side for the keys in both, and says what differs.
fn difference(sides: &Sides, options: &str, source: &[u8], keys: &[u8]) -> Option<String> {
    let places = [sides.directory("real"), sides.directory("mine")];
    let [real, mine] = &places;
    for place in &places {
        write_old(&place.join("t"), source);
    }
    let make = words("postmap", options, &["cdb:t"]);
    if let Some(text) = sides.difference([real, mine], &make, b"", false) {
        return Some(text);
    }
    let [one, other] = [real, mine].map(|place| fs::read(place.join("t.cdb")).unwrap_or_default());
    if one != other {
        return Some(format!(
            "the files differ: {} and {}",
            one.len(),
            other.len()
        ));
    }
    let reading = reading(options);
    let ask = words("postmap", &reading, &["-q", "-", "cdb:t"]);
    // The files are the same, so both sides may read the same one.
    sides.difference([mine, mine], &ask, keys, false)
}

fn check(sides: &Sides, seed: u64, options: &str, source: &[u8], keys: &[u8]) {
    let Some(text) = difference(sides, options, source, keys) else {
        return;
    };
    let source = shrink(source, |source| {
        difference(sides, options, source, keys).is_some()
    });
    let keys = shrink(keys, |keys| {
        difference(sides, options, &source, keys).is_some()
    });
    panic!(
        "seed {seed}, options {options}: {text}\nshrunk: source \"{}\", keys \"{}\": {}",
        source.escape_ascii(),
        keys.escape_ascii(),
        difference(sides, options, &source, &keys).unwrap_or_default()
    );
}

#[test]
fn random_tables_are_the_same_byte_for_byte_and_read_by_either() {
    let Some(sides) = Sides::new() else { return };
    for seed in 1..=ROUNDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut source = Vec::new();
        for _ in 0..=random.below(8) {
            source.extend(random.source());
            source.push(b'\n');
        }
        let options = random.pick(&OPTIONS);
        let mut keys = random.keys(&source);
        // Thousands of keys for one start of the programs.
        for _ in 0..200 {
            let key = random.key();
            if !key.is_empty() {
                keys.extend(key);
                keys.push(b'\n');
            }
        }
        check(&sides, seed, options, &source, &keys);
    }
}

fn entries(place: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let name = TableName::parse(format!("cdb:{}", place.join("t").display()).as_bytes()).unwrap();
    let table = Registry::new(Context::default())
        .open(&name, Access::Read, Flags::empty())
        .unwrap();
    let mut entries = Vec::new();
    let mut cursor = Cursor::default();
    let mut step = Step::First;
    loop {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let outcome = table
            .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
            .unwrap();
        if outcome == Outcome::Absent {
            return entries;
        }
        entries.push((key, value));
        step = Step::Next;
    }
}

#[test]
fn tables_of_any_size_are_the_same_and_list_in_the_order_of_the_source() {
    let Some(sides) = Sides::new() else { return };
    let many: Vec<_> = (0..100_000_u32)
        .map(|number| {
            let key = number.wrapping_mul(0x9E37_79B1);
            (format!("user{key}@example.test"), format!("box{number}"))
        })
        .collect();
    let mut long = Vec::new();
    for length in [1, 255, 256, 257, 511, 512, 4095, 4096, 65_536, 300_000] {
        long.push(("k".repeat(length), "v".repeat(length)));
        long.push(("x".repeat(length), "y".to_owned()));
    }
    let one = vec![("key".to_owned(), "value".to_owned())];
    for table in [Vec::new(), one, long, many] {
        let (mut source, mut keys) = (String::new(), String::new());
        for (key, value) in &table {
            writeln!(source, "{key} {value}").unwrap();
            writeln!(keys, "{key}\n{key}x").unwrap();
        }
        for options in ["", "-N"] {
            check(&sides, 0, options, source.as_bytes(), keys.as_bytes());
            let listed = entries(&sides.root().join("real"));
            assert_eq!(listed.len(), table.len());
            for ((key, value), wanted) in listed.iter().zip(&table) {
                assert!(
                    (key, value) == (&wanted.0.as_bytes().to_vec(), &wanted.1.as_bytes().to_vec()),
                    "{}",
                    wanted.0.len()
                );
            }
        }
    }
}

#[test]
fn values_from_files_may_be_empty() {
    let Some(sides) = Sides::new() else { return };
    let places = [sides.directory("real"), sides.directory("mine")];
    for place in &places {
        write_old(&place.join("t"), b"full f\nempty e\nmissing m\n");
        write_old(&place.join("f"), b"content\n");
        write_old(&place.join("e"), b"");
    }
    let [real, mine] = &places;
    for options in ["-F", "-FN"] {
        let make = ["postmap", options, "cdb:t"];
        sides.compare([real, mine], &make, b"", false, options);
        assert_eq!(
            fs::read(real.join("t.cdb")).unwrap(),
            fs::read(mine.join("t.cdb")).unwrap()
        );
        let ask = ["postmap", options, "-q", "full", "cdb:t"];
        sides.compare([mine, real], &ask, b"", false, options);
        // The reference crashes at an empty value without a NUL.
        let found = sides.run(
            &sides.ours,
            real,
            &["postmap", options, "-q", "empty", "cdb:t"],
            b"",
        );
        assert_eq!((found.exit, &found.stdout[..]), (Some(0), &b"\n"[..]));
    }
}

#[test]
fn faults_have_the_same_texts() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    write_old(&place.join("t"), b"k v\nK w\nx\xff y\n");
    write_old(&place.join("short.cdb"), b"too short");
    write_old(&place.join("empty.cdb"), b"");
    write_old(&place.join("junk.cdb"), &b"no table at all\n".repeat(400));
    write_old(&place.join("page.cdb"), &[0x55; 2048]);
    fs::create_dir(place.join("d.cdb")).unwrap();
    for name in ["busy", "taken", "new", "stale"] {
        write_old(&place.join(name), b"k v\n");
    }
    fs::create_dir(place.join("busy.cdb.tmp")).unwrap();
    fs::create_dir_all(place.join("taken.cdb/x")).unwrap();
    // Older than its source, which is not fresh.
    sides.run(&sides.real, &place, &["postmap", "cdb:stale"], b"");
    fs::File::options()
        .write(true)
        .open(place.join("stale.cdb"))
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_hours(25))
        .unwrap();
    sides.run(&sides.real, &place, &["postmap", "cdb:t"], b"");
    let cases: &[&[&str]] = &[
        &["-q", "k", "cdb:missing"],
        &["-q", "k", "cdb:short"],
        &["-q", "k", "cdb:empty"],
        &["-q", "k", "cdb:junk"],
        &["-q", "k", "cdb:page"],
        &["-q", "k", "cdb:d"],
        &["-q", "k", "cdb:t/x"],
        &["-q", "k", "cdb:missing", "static:x"],
        &["-q", "k", "static:x", "cdb:missing"],
        &["-q", "", "cdb:t"],
        &["-q", "x\u{e9}", "cdb:t"],
        &["-q", "k", "cdb:stale"],
        &["-s", "cdb:t"],
        &["-s", "cdb:missing"],
        &["-d", "k", "cdb:t"],
        &["-d", "k", "cdb:missing"],
        &["-i", "cdb:t"],
        &["-i", "cdb:missing"],
        &["cdb:missing"],
        &["cdb:busy"],
        &["cdb:taken"],
        &["cdb:new/x"],
        &["-F", "-q", "k", "cdb:t"],
        &["-n", "-q", "k", "cdb:t"],
        &["-N", "-q", "k", "cdb:t"],
    ];
    let next = std::sync::Mutex::new(cases.iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else {
                        return;
                    };
                    let command = words("postmap", "", case);
                    sides.compare([&place, &place], &command, b"", false, "");
                }
            });
        }
    });
    let bad_key = ["postmap", "-q", "-", "cdb:t"];
    sides.compare([&place, &place], &bad_key, b"\xff\nk\n", false, "");
}

#[test]
fn aliases_are_the_same_but_for_the_time() {
    let Some(sides) = Sides::new() else { return };
    let source = b"Postmaster: root\n\"a b\": c, d (note)\nroot: |\"cmd x\"\nroot: twice\n";
    for options in ["", "-N", "-w", "-r"] {
        let places = [sides.directory("real"), sides.directory("mine")];
        for place in &places {
            write_old(&place.join("t"), source);
        }
        let [real, mine] = &places;
        let make = words("postalias", options, &["cdb:t"]);
        sides.compare([real, mine], &make, b"", false, options);
        let without_time = |place: &Path| {
            let mut entries = entries(place);
            assert!(entries.iter().any(|(key, _)| key == b"YP_LAST_MODIFIED"));
            entries.retain(|(key, _)| key != b"YP_LAST_MODIFIED");
            entries
        };
        assert_eq!(without_time(real), without_time(mine), "{options}");
        let keys = b"postmaster\na b\nroot\n@\nYP_MASTER_NAME\n";
        let reading = reading(options);
        let ask = words("postalias", &reading, &["-q", "-", "cdb:t"]);
        sides.compare([mine, real], &ask, keys, false, options);
        if options != "-N" {
            // Both forms in one table, on which the reference settles with the first key it finds.
            sides.compare([real, mine], &ask, keys, false, options);
        }
    }
}

/// Mode and owner of a table follow from those of its source, each time it is made.
#[test]
fn tables_get_the_mode_and_the_owner_of_their_source() {
    let Some(sides) = Sides::new() else { return };
    if !effective::real_user_is_root() {
        eprintln!("SKIP: only root can make files of others");
        return;
    }
    for uid in [0, 65_534] {
        for mode in [0o600, 0o640, 0o664, 0o444, 0o666] {
            for options in ["", "-p", "-o", "-op"] {
                let made =
                    [("real", &sides.real), ("mine", &sides.ours)].map(|(name, programs)| {
                        let place = sides.directory(name);
                        write_old(&place.join("t"), b"k v\n");
                        // A link is replaced and not followed.
                        symlink("t", place.join("t.cdb")).unwrap();
                        fs::set_permissions(place.join("t"), fs::Permissions::from_mode(mode))
                            .unwrap();
                        for path in [&place, &place.join("t")] {
                            chown(path, Some(uid), Some(uid)).unwrap();
                        }
                        let make = words("postmap", options, &["cdb:t"]);
                        let outcome = sides.run(programs, &place, &make, b"");
                        assert_eq!(outcome.exit, Some(0), "{}", outcome.stderr);
                        assert_eq!(fs::read(place.join("t")).unwrap(), b"k v\n");
                        let made = fs::symlink_metadata(place.join("t.cdb")).unwrap();
                        (format!("{:o}", made.mode()), made.uid(), made.gid())
                    });
                assert_eq!(
                    made[0], made[1],
                    "uid {uid} mode {mode:o} options {options}"
                );
            }
        }
    }
    let place = sides.directory("mine");
    write_old(&place.join("user"), b"k v\n");
    chown(place.join("user"), Some(65_534), Some(65_534)).unwrap();
    sides.compare([&place, &place], &["postmap", "cdb:user"], b"", false, "");
}

/// Makers of the same table wait for each other, whoever they are.
#[test]
fn either_waits_for_the_other_s_lock() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    write_old(&place.join("t"), b"k v\n");
    for programs in [&sides.real, &sides.ours] {
        let temporary = place.join("t.cdb.tmp");
        let held = fs::File::create(&temporary).unwrap();
        held.lock().unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let finished = scope.spawn(|| {
                let outcome = sides.run(programs, &place, &["postmap", "cdb:t"], b"");
                assert_eq!((outcome.exit, &outcome.stderr[..]), (Some(0), ""));
                start.elapsed()
            });
            let pause = Duration::from_millis(400);
            std::thread::sleep(pause);
            drop(held);
            assert!(finished.join().unwrap() >= pause, "{programs:?}");
        });
        assert!(!temporary.exists());
        let found = sides.run(programs, &place, &["postmap", "-q", "k", "cdb:t"], b"");
        assert_eq!(found.stdout, b"v\n");
        // A query does not wait.
        let held = fs::File::create(&temporary).unwrap();
        held.lock().unwrap();
        let found = sides.run(programs, &place, &["postmap", "-q", "k", "cdb:t"], b"");
        assert_eq!(found.stdout, b"v\n");
        drop(held);
        fs::remove_file(&temporary).unwrap();
    }
    // All at once: whoever is last, the table is whole.
    let (sides, place) = (&sides, &place);
    std::thread::scope(|scope| {
        for programs in [&sides.real, &sides.ours, &sides.real, &sides.ours] {
            scope.spawn(move || {
                for _ in 0..10 {
                    let outcome = sides.run(programs, place, &["postmap", "cdb:t"], b"");
                    // The reference gives up when the name is gone at that moment.
                    let gone = "postmap: fatal: stat(t.cdb.tmp): No such file or directory\n";
                    let fine = outcome.exit == Some(0) && outcome.stderr.is_empty();
                    assert!(
                        fine || (programs == &sides.real && outcome.stderr == gone),
                        "{outcome:?}"
                    );
                    let found =
                        sides.run(&sides.real, place, &["postmap", "-q", "k", "cdb:t"], b"");
                    assert_eq!(found.stdout, b"v\n");
                }
            });
        }
    });
    assert!(!place.join("t.cdb.tmp").exists());
}

#[test]
fn the_server_answers_an_open_with_the_same_flags() {
    let Some(sides) = Sides::new() else { return };
    let replies = [Implementation::Postfix, Implementation::Postkeep].map(|implementation| {
        let scratch = Scratch::new("cdb").unwrap();
        scratch.file("t", "k v\n").unwrap();
        let made = sides.run(&sides.real, scratch.path(), &["postmap", "cdb:t"], b"");
        assert_eq!(made.exit, Some(0));
        let daemon = Plan::new(implementation, "proxymap")
            .parameter("proxy_read_maps", "proxy:cdb:$SCRATCH/t")
            .start_in(scratch)
            .unwrap()?;
        let mut peer = daemon.connect_and_greet().unwrap();
        let table = format!("cdb:{}/t", daemon.scratch().display());
        let replies: Vec<_> = ["0", "4", "8", "12", "65536"]
            .iter()
            .map(|flags| {
                let request = format!("request\0open\0table\0{table}\0flags\0{flags}\0\0");
                let reply = peer.exchange(request.as_bytes()).unwrap();
                reply.escape_ascii().to_string()
            })
            .collect();
        let request = format!("request\0lookup\0table\0{table}\0flags\0524353\0key\0k\0\0");
        let found = peer.exchange(request.as_bytes()).unwrap();
        assert_eq!(found, b"status\x000\0value\0v\0\0");
        Some(replies)
    });
    assert_eq!(replies[0], replies[1]);
}
