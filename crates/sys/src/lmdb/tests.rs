//! Tests of the parent module.

use std::os::unix::fs::FileExt as _;

use super::*;

const SMALL: Options = Options {
    write: true,
    map_size: 1,
};

fn path() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.lmdb");
    (directory, path)
}

fn find(environment: &Environment, key: &[u8]) -> Option<Vec<u8>> {
    environment
        .read(|reader| reader.find(key).unwrap().map(<[u8]>::to_vec))
        .unwrap()
}

#[test]
fn what_is_committed_is_found_by_others() {
    let (_directory, path) = path();
    let ours = Environment::open(&path, SMALL).unwrap();
    let theirs = Environment::open(
        &path,
        Options {
            write: false,
            ..SMALL
        },
    )
    .unwrap();
    let value = vec![b'v'; 300_000];
    assert!(
        ours.write(|writer| writer.put(b"k", &value, false))
            .unwrap()
    );
    assert!(!ours.write(|writer| writer.put(b"k", b"w", false)).unwrap());
    assert_eq!(find(&theirs, b"k"), Some(value));
    assert!(ours.write(|writer| writer.delete(b"k")).unwrap());
    assert!(!ours.write(|writer| writer.delete(b"k")).unwrap());
    assert_eq!(find(&theirs, b"k"), None);
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    environment
        .write(|writer| writer.put(b"a", b"1", true))
        .unwrap();
    let error = environment
        .write(|writer| {
            writer.clear()?;
            writer.put(&[b'k'; 512], b"v", true)
        })
        .unwrap_err();
    assert_eq!(error, Error::BAD_KEY_SIZE);
    assert_eq!(find(&environment, b"a").as_deref(), Some(&b"1"[..]));
    assert_eq!(find(&environment, &[b'k'; 512]), None);
    assert_eq!(find(&environment, b""), None);
}

#[test]
fn entries_come_in_order_and_the_walk_survives_deletions() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    let after = |key: Option<&[u8]>| {
        environment
            .read(|reader| reader.after(key).unwrap().map(|(key, _)| key.to_vec()))
            .unwrap()
    };
    assert_eq!(after(None), None);
    environment
        .write(|writer| {
            for key in [b"b", b"c", b"a"] {
                writer.put(key, b"v", true)?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(after(None).unwrap(), b"a");
    assert_eq!(after(Some(b"a")).unwrap(), b"b");
    assert_eq!(after(Some(b"aa")).unwrap(), b"b");
    assert_eq!(after(Some(b"c")), None);
}

#[test]
fn without_a_lock_the_same_is_found_and_a_lock_of_others_is_no_hindrance() {
    let (_directory, path) = path();
    let ours = Environment::open(&path, SMALL).unwrap();
    let theirs = Environment::open(&path, SMALL).unwrap();
    let find = |keys: &[&[u8]]| {
        let mut value = b"<".to_vec();
        let found = theirs.find_unlocked(keys, &mut value);
        (found, String::from_utf8(value).unwrap())
    };
    let absent = (Unlocked::Absent, "<".to_owned());
    assert_eq!(find(&[b"k"]), absent);
    ours.write(|writer| {
        writer.put(b"k", b"1", true)?;
        writer.put(b"k\0", b"2", true)
    })
    .unwrap();
    assert_eq!(find(&[b"k\0", b"k"]), (Unlocked::Found(0), "<2".to_owned()));
    assert_eq!(find(&[b"x", b"k"]), (Unlocked::Found(1), "<1".to_owned()));
    assert_eq!(find(&[b"x", b"", &[b'k'; 600]]), absent);
    assert_eq!(find(&[]), absent);
    // Far beyond the map that was made for the small file.
    for round in 1..40_usize {
        let value = "v".repeat(round * 100_000);
        ours.write(|writer| writer.put(b"big", value.as_bytes(), true))
            .unwrap();
        assert_eq!(find(&[b"big"]).1.len(), 1 + value.len());
    }
    ours.hold(Kind::Exclusive).unwrap();
    assert_eq!(theirs.try_read(|_| ()).unwrap(), None);
    assert_eq!(find(&[b"k"]).1, "<1");
    ours.write(|writer| writer.delete(b"k").and_then(|_| writer.clear()))
        .unwrap();
    assert_eq!(find(&[b"k", b"big"]), absent);
}

#[test]
fn without_a_lock_a_shortened_file_gives_the_right_answer_or_none() {
    let (_directory, path) = path();
    let write = Environment::open(&path, SMALL).unwrap();
    let value = |number: u32| vec![b'v'; 100 + usize::from(number.is_multiple_of(9)) * 5000];
    write
        .write(|writer| {
            for number in 0..200_u32 {
                writer.put(&number.to_be_bytes(), &value(number), true)?;
            }
            Ok(())
        })
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for cut in (1..whole.len())
        .step_by(997)
        .chain([100, 300, 1000, 4096, 8191])
    {
        std::fs::write(&path, &whole).unwrap();
        let environment = Environment::open(&path, SMALL).unwrap();
        let mut answers = 0;
        for length in [whole.len(), whole.len() - cut] {
            file.set_len(length as u64).unwrap();
            for number in 0..200 {
                let mut found = Vec::new();
                match environment.find_unlocked(&[&u32::to_be_bytes(number)], &mut found) {
                    Unlocked::Found(0) => {
                        assert!(found == value(number), "{cut} {number}");
                        answers += 1;
                    }
                    other => assert!(other == Unlocked::Undecided && found.is_empty()),
                }
            }
            assert!(answers >= 200);
        }
    }
}

#[test]
fn a_file_that_is_cut_and_mended_all_the_time_ends_nobody() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    environment
        .write(|writer| {
            for number in 0..2000_u32 {
                writer.put(&number.to_be_bytes(), &[b'v'; 100], true)?;
            }
            Ok(())
        })
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut right, mut number) = (0, 0_u32);
            while !done.load(Ordering::Relaxed) || right == 0 {
                number = (number + 701) % 2000;
                let mut value = Vec::new();
                match environment.find(&[&number.to_be_bytes()], &mut value) {
                    Ok(Some(0)) if value == [b'v'; 100] => right += 1,
                    Err(error) if error.is_damage() => assert!(value.is_empty()),
                    // Cut before it was read and mended before the end was looked at: nobody can tell.
                    Ok(_) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for round in 0..600_usize {
            let cut = round * 7919 % whole.len();
            file.set_len(cut as u64).unwrap();
            std::thread::yield_now();
            file.write_all_at(&whole[cut..], cut as u64).unwrap();
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    for number in 0..2000_u32 {
        let mut value = Vec::new();
        let found = environment.find(&[&number.to_be_bytes()], &mut value);
        assert!(matches!(found, Ok(Some(0))), "{found:?}");
        assert_eq!(value, [b'v'; 100]);
    }
}

#[test]
fn a_shortened_file_is_an_error_not_a_signal() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    environment
        .write(|writer| writer.put(b"k", &vec![b'v'; 50_000], true))
        .unwrap();
    let length = environment.file().metadata().unwrap().len();
    for shorter in [length - 4096, 8192, 4096, 0] {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(shorter)
            .unwrap();
        let error = environment.read(|_| ()).unwrap_err();
        assert!(error.is_damage(), "{shorter}: {error}");
        assert!(
            environment
                .write(|writer| writer.put(b"k", b"v", true))
                .is_err()
        );
        assert!(
            Environment::open(
                &path,
                Options {
                    write: false,
                    ..SMALL
                }
            )
            .is_err()
        );
    }
}

#[test]
fn pages_given_back_at_the_end_do_not_make_a_file_damaged() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    environment
        .write(|writer| writer.put(b"a", b"1", true))
        .unwrap();
    environment
        .write(|writer| {
            for number in 0..400_u32 {
                writer.put(&number.to_be_bytes(), &[b'v'; 100], true)?;
            }
            writer.put(b"big", &vec![b'v'; 50_000], true)?;
            writer.delete(b"big")?;
            for number in 0..400_u32 {
                writer.delete(&number.to_be_bytes())?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(find(&environment, b"a").as_deref(), Some(&b"1"[..]));
    // The walk itself agrees, whether or not the file came out short.
    assert!(
        pages::all_inside(
            environment.file(),
            usize::try_from(environment.page_size).unwrap()
        )
        .unwrap()
    );
}

#[test]
fn many_threads_read_while_one_writes() {
    let (_directory, path) = path();
    let environment = Environment::open(&path, SMALL).unwrap();
    let count = 50_u32;
    environment
        .write(|writer| writer.put(b"k", &0_u32.to_be_bytes(), true))
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while last < count {
                    let value = find(&environment, b"k").unwrap();
                    let now = u32::from_be_bytes(value[..4].try_into().unwrap());
                    assert!(now >= last && value.len() == 4 + now as usize * 1000);
                    last = now;
                }
            });
        }
        scope.spawn(|| {
            for number in 1..=count {
                let mut value = number.to_be_bytes().to_vec();
                value.resize(4 + number as usize * 1000, b'v');
                environment
                    .write(|writer| writer.put(b"k", &value, true))
                    .unwrap();
            }
        });
    });
}
