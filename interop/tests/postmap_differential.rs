//! The installed postmap and postalias against ours: random sources, keys and options; what one of them made is read
//! by the other.
//!
//! Left out is what ours does differently on purpose: tables in which keys with and without a trailing NUL are mixed.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::{OPTIONS, Random, Sides, reading, shrink, words, write_old};
use postkeep_sys::effective;
use postkeep_sys::lock::LockedFile;

/// How many random rounds each test makes.
const ROUNDS: u64 = 12;

/// A source in memory costs little, so more of them are tried.
const TEXT_ROUNDS: u64 = 100;

/// Fails with the fewest lines of the source that still make a difference.
fn fail(seed: u64, source: &[u8], difference: impl Fn(&[u8]) -> Option<String>) -> ! {
    let least = shrink(source, |source| difference(source).is_some());
    let what = difference(&least).unwrap_or_default();
    panic!("seed {seed}, source \"{}\": {what}", least.escape_ascii());
}

/// Makes, asks, lists, adds to and deletes from a table with both, each also with the other's file; all that is
/// random but the source comes from the seed.
fn lmdb_difference(sides: &Sides, seed: u64, source: &[u8]) -> Option<String> {
    let mut random = Random(seed.wrapping_mul(0xBF58_476D_1CE4_E5B9));
    let options = random.pick(&OPTIONS);
    let reading = reading(options);
    let places = [sides.directory("real"), sides.directory("mine")];
    for place in &places {
        write_old(&place.join("t"), source);
    }
    let [real, mine] = &places;
    let both = |words: &[&str], input: &[u8]| sides.difference([real, mine], words, input, false);
    let crossed =
        |words: &[&str], input: &[u8]| sides.difference([mine, real], words, input, false);

    let mut found = both(&words("postmap", options, &["lmdb:t"]), b"");
    let keys = random.keys(source);
    for check in 0..2 {
        let ask = words("postmap", &reading, &["-q", "-", "lmdb:t"]);
        let list = words("postmap", &reading, &["-s", "lmdb:t"]);
        found = found
            .or_else(|| both(&ask, &keys))
            .or_else(|| both(&list, b""))
            .or_else(|| crossed(&ask, &keys))
            .or_else(|| crossed(&list, b""));
        if check == 0 {
            let add = words("postmap", options, &["-i", "lmdb:t"]);
            let delete = words("postmap", &reading, &["-d", "-", "lmdb:t"]);
            let (more, gone, others) = (random.source(), random.keys(source), random.source());
            found = found
                .or_else(|| both(&add, &more))
                .or_else(|| both(&delete, &gone))
                // Each goes on with the other's file.
                .or_else(|| crossed(&add, &others));
        }
    }
    found
}

#[test]
fn lmdb_tables_are_the_same_and_read_by_either() {
    let Some(sides) = Sides::new() else { return };
    for seed in 1..=ROUNDS {
        let source = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).source();
        if lmdb_difference(&sides, seed, &source).is_some() {
            fail(seed, &source, |source| {
                lmdb_difference(&sides, seed, source)
            });
        }
    }
}

fn texthash_difference(sides: &Sides, seed: u64, source: &[u8]) -> Option<String> {
    let mut random = Random(seed.wrapping_mul(0x94D0_49BB_1331_11EB));
    let options = reading(random.pick(&OPTIONS));
    let place = sides.directory("both");
    write_old(&place.join("t"), source);
    let keys = random.keys(source);
    let ask = words("postmap", &options, &["-q", "-", "texthash:t"]);
    let list = words("postmap", &options, &["-s", "texthash:t"]);
    sides
        .difference([&place, &place], &ask, &keys, false)
        .or_else(|| sides.difference([&place, &place], &list, b"", true))
}

#[test]
fn texthash_reads_the_same_entries_with_the_same_warnings() {
    let Some(sides) = Sides::new() else { return };
    for seed in 1..=TEXT_ROUNDS {
        let source = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95)).source();
        if texthash_difference(&sides, seed, &source).is_some() {
            fail(seed, &source, |source| {
                texthash_difference(&sides, seed, source)
            });
        }
    }
}

#[test]
fn names_that_carry_data_are_understood_the_same_way() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    let mut random = Random(77);
    let pieces = [
        "a",
        "B",
        "=",
        "=",
        "{",
        "}",
        ",",
        " ",
        "\"",
        "\\",
        "é",
        "{ c = d }",
        ":",
        "x=y",
    ];
    let mut names = vec!["static:{ a }".to_owned(), "inline:{é=É}".to_owned()];
    for _ in 0..ROUNDS {
        let count = 1 + random.below(6);
        let text: String = (0..count).map(|_| random.pick(&pieces)).collect();
        names.push(format!("inline:{{{text}}}"));
        names.push(format!("static:{}{text}", random.pick(&["", "{"])));
    }
    // Each fatal error costs both programs a second, spent asleep.
    std::thread::scope(|scope| {
        for name in &names {
            let (sides, place) = (&sides, &place);
            scope.spawn(move || {
                let keys = "a\nA\nab\nc\nx\n\"a\n\né\nÉ\n";
                sides.compare(
                    [place, place],
                    &["postmap", "-q", "-", name],
                    keys.as_bytes(),
                    false,
                    name,
                );
                sides.compare([place, place], &["postmap", "-s", name], b"", true, name);
            });
        }
    });
}

#[test]
fn environment_users_groups_and_faults() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    write_old(&place.join("t"), b"k v\n");
    write_old(&place.join("bad.lmdb"), b"something else");
    fs::create_dir(place.join("d.lmdb")).unwrap();
    fs::create_dir(place.join("d")).unwrap();
    let cases: &[&[&str]] = &[
        &["-q", "variable", "environ:x"],
        &["-q", "Capital", "environ:x"],
        &["-f", "-q", "Capital", "environ:x"],
        &["-q", "LANG", "environ:x"],
        &["-f", "-q", "LANG", "environ:x"],
        &["-q", "root", "unix:passwd.byname"],
        &["-q", "nobody", "unix:passwd.byname"],
        &["-q", "ROOT", "unix:group.byname"],
        &["-q", "mail", "unix:group.byname"],
        &["-q", "", "unix:passwd.byname"],
        &["-q", "x", "unix:other"],
        &["-d", "x", "unix:other"],
        &["-q", "x", "bogus:y"],
        &["-s", "bogus:y"],
        &["-d", "x", "bogus:y"],
        &["bogus:t"],
        &["-i", "bogus:t"],
        &["bogus:missing"],
        &["-q", "x", ":y"],
        &["-q", "x", "y:"],
        &["static:t"],
        &["texthash:t"],
        &["-i", "internal:x"],
        &["lmdb:missing"],
        &["-q", "x", "lmdb:bad"],
        &["-q", "x", "lmdb:d"],
        &["-d", "x", "lmdb:bad"],
        &["-q", "x", "texthash:missing"],
        &["-q", "x", "texthash:d"],
        &["-d", "x", "texthash:t"],
        &["-d", "x", "inline:{x=y}"],
        &["-d", "x", "static:t"],
        &["-d", "x", "environ:t"],
        &["-q", "x", "fail:t", "static:y"],
        &["-q", "x", "inline:{y=z}", "static:y"],
        &["-q", "x", "-d", "y", "static:z"],
        &["-q"],
        &["-sq", "x", "static:t"],
        &["-m", "-q", "x", "static:t"],
        &["-s"],
        &["-N"],
        &["proxy:static:t"],
        &["-s", "proxy:static:t"],
        &["-F", "-q", "x", "static:missing"],
        &["-F", "-q", "x", "static:t t"],
        &["-F", "-q", "x", "inline:{x=t}"],
        &["-F", "-q", "k", "texthash:t"],
    ];
    let next = std::sync::Mutex::new(cases.iter());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else {
                        return;
                    };
                    sides.compare(
                        [&place, &place],
                        &words("postmap", "", case),
                        b"",
                        false,
                        "",
                    );
                }
            });
        }
    });
}

#[test]
fn messages_give_the_same_keys() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    let part = "--q\nContent-Type: text/plain\nX: 1\n\ntext\n";
    let attached = "--q\nContent-Type: message/rfc822\n\nS: inner\n folded\n\ninner body\n";
    let messages = [
        "A: b\n c\nD : e\n\nbody\n\nlast".to_owned(),
        "From x\nA: b\n".to_owned(),
        "A: b\nno header\nC: d\n".to_owned(),
        String::new(),
        "\n\nbody\n".to_owned(),
        format!(
            "Content-Type: multipart/mixed; boundary=\"q\"\n\npre\n{part}{attached}--q--\npost\n"
        ),
        format!(
            "Content-Type: multipart/digest; boundary=q\n\n{part}--q\n\nS: digest\n\nb\n{attached}"
        ),
        format!(
            "Content-Type: Multipart/x ; c=d (note); Boundary = \"\\q\"\n\n{part}--q-- x\nA: b\n"
        ),
    ];
    for message in &messages {
        for options in ["-h", "-b", "-hb", "-hm", "-bm", "-hbm", "-hU", "-m"] {
            let words = ["postmap", options, "-q", "-", "static:x"];
            sides.compare([&place, &place], &words, message.as_bytes(), false, message);
        }
    }
}

#[test]
fn aliases_are_taken_apart_the_same_way() {
    let Some(sides) = Sides::new() else { return };
    let mut random = Random(5);
    let pieces: [&[u8]; 22] = [
        b"a",
        b"B",
        b" ",
        b" ",
        b":",
        b": ",
        b",",
        b", ",
        b"\"c d\"",
        b"\"",
        b"(note)",
        b"(",
        b"\\",
        b"@",
        b"%",
        b"|",
        b"<",
        b"[1.2]",
        b"\n",
        b"\n",
        b"\xc3\xa9",
        b"x: y\n",
    ];
    for round in 0..ROUNDS {
        let count = 5 + random.below(60);
        let source = random.join(&pieces, count);
        let note = format!("round {round}, source \"{}\"", source.escape_ascii());
        let places = [sides.directory("real"), sides.directory("mine")];
        for place in &places {
            write_old(&place.join("t"), &source);
        }
        let [real, mine] = &places;
        sides.compare([real, mine], &["postalias", "lmdb:t"], b"", false, &note);
        // The time of making is in the table.
        let list = |place: &Path, programs: &Path| {
            let outcome = sides.run(programs, place, &["postalias", "-s", "lmdb:t"], b"");
            assert_eq!(outcome.exit, Some(0), "{note}");
            outcome
                .stdout
                .split(|&byte| byte == b'\n')
                .filter(|line| !line.starts_with(b"YP_LAST_MODIFIED"))
                .map(|line| line.escape_ascii().to_string())
                .collect::<Vec<_>>()
        };
        let wanted = list(real, &sides.real);
        assert_eq!(wanted, list(mine, &sides.ours), "{note}");
        assert_eq!(wanted, list(mine, &sides.real), "{note}");
        assert_eq!(wanted, list(real, &sides.ours), "{note}");
    }
}

/// The reference's locks and ours see each other.
#[test]
fn either_waits_for_the_other_s_lock() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    write_old(&place.join("t"), b"k v\n");
    assert_eq!(
        sides
            .run(&sides.ours, &place, &["postmap", "lmdb:t"], b"")
            .exit,
        Some(0)
    );
    let open = || {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(place.join("t.lmdb"))
            .unwrap();
        LockedFile::new(file)
    };
    let cases: [(&[&str], bool); 3] = [
        (&["postmap", "-q", "k", "lmdb:t"], false),
        (&["postmap", "-d", "none", "lmdb:t"], true),
        (&["postmap", "lmdb:t"], true),
    ];
    for programs in [&sides.real, &sides.ours] {
        for (words, writes) in cases {
            for exclusive in [false, true] {
                let locked = open();
                let shared = (!exclusive).then(|| locked.read().unwrap());
                let alone = exclusive.then(|| locked.write().unwrap());
                let start = Instant::now();
                std::thread::scope(|scope| {
                    let finished = scope.spawn(|| {
                        sides.run(programs, &place, words, b"");
                        start.elapsed()
                    });
                    let held = Duration::from_millis(400);
                    std::thread::sleep(held);
                    drop((shared, alone));
                    let waited = finished.join().unwrap() >= held;
                    assert_eq!(
                        waited,
                        exclusive || writes,
                        "{programs:?} {words:?} exclusive {exclusive}"
                    );
                });
            }
        }
    }
}

/// Letters whose folding is younger than the library that the installed Postfix was built with.
fn is_younger_than_unicode_15(character: char) -> bool {
    matches!(character, '\u{1c89}'..='\u{1c8a}' | '\u{a7c8}'..='\u{a7ff}' | '\u{10d40}'..='\u{10d8f}' | '\u{16ea0}'..='\u{16eff}')
}

#[test]
fn every_letter_folds_the_same_way() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    let mut text = String::new();
    for character in ('\u{a1}'..=char::MAX)
        .filter(|character| character.is_alphabetic() || character.is_numeric())
    {
        if !is_younger_than_unicode_15(character) {
            use std::fmt::Write as _;
            writeln!(text, "{:x}-{character} v", u32::from(character)).unwrap();
        }
    }
    write_old(&place.join("t"), text.as_bytes());
    let list = |programs: &Path| {
        let outcome = sides.run(programs, &place, &["postmap", "-s", "texthash:t"], b"");
        let lines: BTreeSet<_> = String::from_utf8(outcome.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        lines
    };
    let (real, ours) = (list(&sides.real), list(&sides.ours));
    assert!(real.len() > 100_000);
    let differences: Vec<_> = real.symmetric_difference(&ours).take(20).collect();
    assert!(differences.is_empty(), "{differences:?}");
}

/// Mode and owner of a table follow from those of its source.
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
                        fs::set_permissions(place.join("t"), fs::Permissions::from_mode(mode))
                            .unwrap();
                        for path in [&place, &place.join("t")] {
                            chown(path, Some(uid), Some(uid)).unwrap();
                        }
                        let outcome = sides.run(
                            programs,
                            &place,
                            &words("postmap", options, &["lmdb:t"]),
                            b"",
                        );
                        assert_eq!(outcome.exit, Some(0), "{}", outcome.stderr);
                        let made = fs::metadata(place.join("t.lmdb")).unwrap();
                        (format!("{:o}", made.mode()), made.uid(), made.gid())
                    });
                assert_eq!(
                    made[0], made[1],
                    "uid {uid} mode {mode:o} options {options}"
                );
            }
        }
    }
    // A user's source in root's directory fails, and a source of root's after a user's does not.
    let place = sides.directory("mine");
    for (name, uid) in [("user", 65_534), ("root", 0)] {
        write_old(&place.join(name), b"k v\n");
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        chown(place.join(name), Some(uid), Some(uid)).unwrap();
    }
    sides.compare([&place, &place], &["postmap", "lmdb:user"], b"", false, "");
    fs::create_dir(place.join("theirs")).unwrap();
    fs::rename(place.join("user"), place.join("theirs/user")).unwrap();
    chown(place.join("theirs"), Some(65_534), Some(65_534)).unwrap();
    let outcome = sides.run(
        &sides.ours,
        &place,
        &["postmap", "lmdb:theirs/user", "lmdb:root"],
        b"",
    );
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (Some(0), ""));
    assert_eq!(fs::metadata(place.join("root.lmdb")).unwrap().uid(), 0);
    assert_eq!(
        fs::metadata(place.join("theirs/user.lmdb")).unwrap().uid(),
        65_534
    );
}
