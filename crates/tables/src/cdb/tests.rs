//! Tests of the parent module.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use postkeep_table::Opener as _;
use proptest::prelude::*;

use super::*;
use crate::{Context, Registry};

struct Place {
    directory: tempfile::TempDir,
    registry: Registry,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            registry: Registry::new(Context::default()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn name(&self) -> TableName {
        TableName::parse(&[b"cdb:", self.path("t").as_os_str().as_bytes()].concat()).unwrap()
    }

    fn builder(&self) -> Result<Box<dyn Builder>, OpenError> {
        self.registry
            .build(&self.name(), BuildMode::Create, Flags::empty())
    }

    fn make(&self, flags: Flags, entries: &[(&[u8], &[u8])]) {
        let mut builder = self.builder().unwrap();
        for (key, value) in entries {
            builder.add(flags, key, value).unwrap();
        }
        builder.finish().unwrap();
    }

    fn open(&self) -> Result<Arc<dyn Table>, String> {
        self.registry
            .open(&self.name(), Access::Read, Flags::empty())
            .map_err(|error| {
                let directory = format!("{}/", self.directory.path().display());
                error.to_string().replace(&directory, "")
            })
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.path("t.cdb")).unwrap()
    }
}

/// A file of these bytes, held in memory, mapped, and read piece by piece.
fn readers(bytes: &[u8]) -> [Result<Reader, Damage>; 3] {
    use std::io::Write as _;

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    [
        Reader::from_bytes(bytes.to_vec()),
        Reader::from_file(file.try_clone().unwrap(), bytes.len() as u64),
        Reader::by_pieces(file, bytes.len() as u64),
    ]
}

fn get(reader: &Reader, key: &[u8], tail: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    let Some(record) = reader.find(key, tail)? else {
        return Ok(None);
    };
    let mut value = Vec::new();
    reader.append_value(record, &mut value)?;
    Ok(Some(value))
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

fn list(reader: &Reader) -> Result<Vec<Pair>, Damage> {
    let mut entries = Vec::new();
    let mut at = reader.first();
    while let Some(record) = reader.record(at)? {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        reader.append_stored_key(record, &mut key)?;
        reader.append_value(record, &mut value)?;
        entries.push((key, value));
        at = record.next();
    }
    Ok(entries)
}

fn answer(table: &dyn Table, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let outcome = table.lookup(Flags::empty(), key, &mut value).unwrap();
    (outcome == Outcome::Done).then_some(value)
}

/// A step of a walk: the key and the value.
fn step(table: &dyn Table, step: Step, cursor: &mut Cursor) -> Option<(String, String)> {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let outcome = table
        .sequence(Flags::empty(), step, cursor, &mut key, &mut value)
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (outcome == Outcome::Done).then(|| (text(key), text(value)))
}

#[test]
fn duplicates_follow_the_flags() {
    let entries: [(&[u8], &[u8]); 4] = [(b"k", b"1"), (b"x", b"2"), (b"k", b"3"), (b"k", b"4")];
    for (flags, found, order) in [
        (Flags::DUP_WARN, "1", "k1 x2"),
        (Flags::DUP_REPLACE, "4", "x2 k4"),
        (Flags::DUP_IGNORE, "1", "k1 x2 k3 k4"),
    ] {
        let place = Place::new();
        place.make(flags, &entries);
        let table = place.open().unwrap();
        assert_eq!(answer(&*table, b"k").unwrap(), found.as_bytes());
        let mut cursor = Cursor::default();
        let mut listed = Vec::new();
        let mut next = Step::First;
        while let Some((key, value)) = step(&*table, next, &mut cursor) {
            listed.push(key + &value);
            next = Step::Next;
        }
        assert_eq!(listed.join(" "), order, "{flags:?}");
    }
    let place = Place::new();
    let mut builder = place.builder().unwrap();
    builder.add(Flags::empty(), b"k", b"1").unwrap();
    let error = builder.add(Flags::empty(), b"k", b"2").unwrap_err();
    assert!(
        error.to_string().ends_with("/t: duplicate entry: \"k\""),
        "{error}"
    );
    drop(builder);
    assert!(!place.path("t.cdb").exists() && !place.path("t.cdb.tmp").exists());
}

#[test]
fn both_forms_are_found_and_the_one_with_nul_first() {
    let place = Place::new();
    let mut builder = place.builder().unwrap();
    for (flags, key, value) in [
        (Flags::TRY0NULL, "plain", "0"),
        (Flags::TRY1NULL, "nul", "1"),
        (Flags::TRY0NULL, "both", "0"),
        (Flags::TRY1NULL, "both", "1"),
        (Flags::empty(), "default", "0"),
        (Flags::empty(), "empty", ""),
        (Flags::TRY1NULL, "nul-empty", ""),
        (Flags::empty(), "cut", "a\0b"),
    ] {
        builder
            .add(flags, key.as_bytes(), value.as_bytes())
            .unwrap();
    }
    builder.finish().unwrap();
    let table = place.open().unwrap();
    let ask = |flags, key: &str| {
        let mut value = b"<".to_vec();
        let outcome = table.lookup(flags, key.as_bytes(), &mut value).unwrap();
        let value = String::from_utf8(value).unwrap();
        (outcome == Outcome::Done).then_some(value)
    };
    for (key, any, with, without) in [
        ("plain", Some("<0"), None, Some("<0")),
        ("nul", Some("<1"), Some("<1"), None),
        ("both", Some("<1"), Some("<1"), Some("<0")),
        ("default", Some("<0"), None, Some("<0")),
        ("empty", Some("<"), None, Some("<")),
        ("nul-empty", Some("<"), Some("<"), None),
        ("cut", Some("<a"), None, Some("<a")),
        ("none", None, None, None),
        ("", None, None, None),
    ] {
        assert_eq!(ask(Flags::empty(), key).as_deref(), any, "{key}");
        assert_eq!(ask(Flags::TRY1NULL, key).as_deref(), with, "{key}");
        assert_eq!(ask(Flags::TRY0NULL, key).as_deref(), without, "{key}");
    }
}

#[test]
fn what_cannot_be_opened_has_the_reference_s_reason() {
    let place = Place::new();
    let reason = || place.open().err().unwrap();
    assert_eq!(reason(), "open database t.cdb: No such file or directory");
    for content in [&b""[..], b"too short"] {
        fs::write(place.path("t.cdb"), content).unwrap();
        assert_eq!(
            reason(),
            "dict_cdbq_open: unable to init t.cdb: Protocol error"
        );
    }
    // A hole, as a crash may leave it, is not an empty table.
    for content in [vec![0; 4096], b"some text\n".repeat(300)] {
        fs::write(place.path("t.cdb"), content).unwrap();
        assert_eq!(reason(), "error reading t.cdb: Protocol error");
    }
    fs::remove_file(place.path("t.cdb")).unwrap();
    fs::create_dir(place.path("t.cdb")).unwrap();
    assert!(reason().starts_with("dict_cdbq_open: unable to init t.cdb: "));
    let command = Registry::new(Context {
        caller: Caller::Command,
        ..Context::default()
    });
    let error = command
        .open(&place.name(), Access::ReadWrite, Flags::empty())
        .err()
        .unwrap();
    assert_eq!(error.to_string(), CONSTANT);
}

/// A file with hash tables of several lengths, keys of several lengths, and both forms.
fn sample() -> (Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>) {
    let place = Place::new();
    let mut entries = BTreeMap::new();
    for number in 0..40_usize {
        entries.insert(vec![b'k'; number + 1], vec![b'v'; number % 3 * 20]);
    }
    let pairs: Vec<_> = entries
        .iter()
        .map(|(key, value)| (&key[..], &value[..]))
        .collect();
    place.make(Flags::empty(), &pairs);
    (place.file(), entries)
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, _) = sample();
    for length in 0..bytes.len() {
        for reader in readers(&bytes[..length]) {
            assert!(matches!(reader, Err(Damage::Structure)), "{length}");
        }
    }
    for reader in readers(&[&bytes[..], b"behind the end"].concat()) {
        assert_eq!(list(&reader.unwrap()).unwrap().len(), 40);
    }
}

#[test]
fn a_file_cut_while_it_is_open_fails_and_does_not_answer_wrongly() {
    let (bytes, entries) = sample();
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    fs::write(&path, &bytes).unwrap();
    let open = || File::open(&path).unwrap();
    let pieces = Reader::by_pieces(open(), bytes.len() as u64).unwrap();
    let memory = Reader::from_bytes(bytes.clone()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for length in (0..bytes.len()).rev() {
        if length % 7 != 0 {
            continue;
        }
        // Whole when it is mapped, then cut.
        fs::write(&path, &bytes).unwrap();
        let mapped = Reader::from_file(open(), bytes.len() as u64).unwrap();
        assert_eq!(get(&mapped, b"none", b"").unwrap(), None);
        file.set_len(length as u64).unwrap();
        for (key, value) in &entries {
            for reader in [&pieces, &mapped] {
                match get(reader, key, b"") {
                    Ok(found) => assert_eq!(found.as_ref(), Some(value), "{length}"),
                    Err(Damage::Structure) => {}
                    Err(Damage::Io(error)) => panic!("{error}"),
                }
            }
            assert_eq!(get(&memory, key, b"").unwrap().as_ref(), Some(value));
        }
    }
}

#[test]
fn no_byte_can_do_harm() {
    let (bytes, entries) = sample();
    for at in (0..bytes.len()).step_by(3) {
        for byte in [0, 0xff, bytes[at] ^ 1] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            let Ok(reader) = Reader::from_bytes(damaged) else {
                continue;
            };
            for key in entries.keys() {
                let _ = get(&reader, key, b"");
                let _ = get(&reader, key, b"\0");
            }
            let _ = list(&reader);
        }
    }
}

#[test]
fn damage_is_reported_once() {
    let place = Place::new();
    place.make(Flags::empty(), &[(b"key", b"value")]);
    let mut bytes = place.file();
    // The key's length.
    bytes[HEADER_LENGTH..HEADER_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(place.path("t.cdb"), &bytes).unwrap();
    let table = place.open().unwrap();
    let mut value = b"before".to_vec();
    for first in [true, false] {
        match table.lookup(Flags::empty(), b"key", &mut value) {
            Err(LookupError::Retry(text)) => {
                assert_eq!(text.ends_with("/t.cdb: Protocol error"), first, "{text}");
                assert_eq!(text.is_empty(), !first);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(value, b"before");
    }
}

const HEADER_LENGTH: usize = reader::HEADER as usize;

#[test]
fn a_table_in_use_does_not_change() {
    let place = Place::new();
    place.make(Flags::empty(), &[(b"key", b"old")]);
    let old = place.open().unwrap();
    place.make(Flags::empty(), &[(b"key", b"new"), (b"more", b"x")]);
    let new = place.open().unwrap();
    // Even when somebody writes in place.
    fs::write(place.path("t.cdb"), b"").unwrap();
    assert_eq!(answer(&*old, b"key").unwrap(), b"old");
    assert_eq!(answer(&*old, b"more"), None);
    assert_eq!(answer(&*new, b"key").unwrap(), b"new");
}

#[test]
fn a_walk_goes_on_in_the_table_that_took_the_place() {
    let place = Place::new();
    let all: [(&[u8], &[u8]); 4] = [(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"d", b"4")];
    place.make(Flags::empty(), &all);
    let first = place.open().unwrap();
    let mut cursor = Cursor::default();
    step(&*first, Step::First, &mut cursor).unwrap();
    assert_eq!(step(&*first, Step::Next, &mut cursor).unwrap().0, "b");
    let key_of_next = |entries: &[(&[u8], &[u8])]| {
        place.make(Flags::empty(), entries);
        let table = place.open().unwrap();
        step(&*table, Step::Next, &mut cursor.clone()).map(|(key, _)| key)
    };
    assert_eq!(key_of_next(&all).as_deref(), Some("c"));
    // The entry stands elsewhere.
    assert_eq!(
        key_of_next(&[(b"b", b"9"), (b"d", b"4"), (b"a", b"1")]).as_deref(),
        Some("d")
    );
    // It is gone; the one before it and those after it are not.
    assert_eq!(
        key_of_next(&[(b"a", b"1"), (b"c", b"3"), (b"d", b"4")]).as_deref(),
        Some("c")
    );
    assert_eq!(key_of_next(&[(b"z", b"1")]), None);
    assert_eq!(key_of_next(&[]), None);
}

#[test]
fn what_is_left_of_another_maker_is_neither_used_nor_followed() {
    let place = Place::new();
    let temporary = place.path("t.cdb.tmp");
    fs::write(&temporary, "left over").unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o666)).unwrap();
    place.make(Flags::empty(), &[(b"key", b"value")]);
    let mode = fs::metadata(place.path("t.cdb")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o022, 0);
    assert!(!temporary.exists());

    fs::write(place.path("victim"), "precious").unwrap();
    symlink(place.path("victim"), &temporary).unwrap();
    let error = place.builder().err().unwrap().to_string();
    assert!(
        error.ends_with("/t.cdb.tmp: Too many levels of symbolic links"),
        "{error}"
    );
    assert_eq!(fs::read(place.path("victim")).unwrap(), b"precious");
    fs::remove_file(&temporary).unwrap();

    // The table itself may be one; it is replaced.
    fs::remove_file(place.path("t.cdb")).unwrap();
    symlink(place.path("victim"), place.path("t.cdb")).unwrap();
    place.make(Flags::empty(), &[(b"key", b"value")]);
    assert_eq!(fs::read(place.path("victim")).unwrap(), b"precious");
    assert_eq!(answer(&*place.open().unwrap(), b"key").unwrap(), b"value");
}

#[test]
fn makers_of_one_table_take_turns() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for maker in 0..4_u32 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..10_u32 {
                    let value = format!("{maker}-{round}");
                    let keys: Vec<_> = (0..50_u32).map(|key| key.to_string()).collect();
                    let entries: Vec<_> = keys
                        .iter()
                        .map(|key| (key.as_bytes(), value.as_bytes()))
                        .collect();
                    place.make(Flags::empty(), &entries);
                    let reader = Reader::from_bytes(place.file()).unwrap();
                    let values: std::collections::BTreeSet<_> = list(&reader)
                        .unwrap()
                        .into_iter()
                        .map(|(_, value)| value)
                        .collect();
                    assert_eq!(values.len(), 1);
                }
            });
        }
    });
    assert!(!place.path("t.cdb.tmp").exists());
}

#[test]
fn a_maker_that_gives_up_leaves_the_old_table() {
    let place = Place::new();
    place.make(Flags::empty(), &[(b"key", b"old")]);
    let mut builder = place.builder().unwrap();
    builder.add(Flags::empty(), b"key", b"new").unwrap();
    drop(builder);
    assert_eq!(answer(&*place.open().unwrap(), b"key").unwrap(), b"old");
    assert!(!place.path("t.cdb.tmp").exists());
    assert!(
        place
            .registry
            .build(&place.name(), BuildMode::Add, Flags::empty())
            .is_err()
    );
}

proptest! {
    #[test]
    fn what_was_stored_is_found_and_listed_in_order(
        pairs in proptest::collection::vec((proptest::collection::vec(0_u8..4, 0..4), 0_usize..700), 0..300),
    ) {
        let place = Place::new();
        let mut builder = place.builder().unwrap();
        let mut model: Vec<Pair> = Vec::new();
        for (key, length) in &pairs {
            let key: Vec<u8> = key.iter().map(|byte| b'a' + byte).collect();
            let value = vec![b'v'; *length];
            if model.iter().all(|(known, _)| *known != key) {
                model.push((key.clone(), value.clone()));
            }
            builder.add(Flags::DUP_WARN, &key, &value).unwrap();
        }
        builder.finish().unwrap();
        for reader in readers(&place.file()) {
            let reader = reader.unwrap();
            for (key, value) in &model {
                prop_assert_eq!(get(&reader, key, b"").unwrap(), Some(value.clone()));
                prop_assert_eq!(get(&reader, key, b"z").unwrap(), None);
            }
            prop_assert_eq!(&list(&reader).unwrap(), &model);
        }
    }
}

/// A table as a daemon changes it.
fn changing(place: &Place) -> Arc<dyn Table> {
    let context = Context {
        caller: Caller::Daemon,
        ..Context::default()
    };
    Registry::new(context)
        .open(&place.name(), Access::ReadWrite, Flags::empty())
        .unwrap()
}

fn found(table: &dyn Table, key: &str) -> Option<String> {
    let mut value = Vec::new();
    let outcome = table.lookup(Flags::empty(), key.as_bytes(), &mut value);
    (outcome.unwrap() == Outcome::Done).then(|| String::from_utf8(value).unwrap())
}

#[test]
fn a_daemon_changes_a_table_by_making_it_anew() {
    let place = Place::new();
    let table = changing(&place);
    assert_eq!(place.file().len(), reader::HEADER as usize);
    let put = |flags, key: &str, value: &str| {
        table
            .update(flags, key.as_bytes(), value.as_bytes())
            .unwrap()
    };
    assert_eq!(put(Flags::DUP_REPLACE, "a", "1"), Outcome::Done);
    let reader = place.open().unwrap();
    assert_eq!(put(Flags::DUP_REPLACE, "b", "2"), Outcome::Done);
    assert_eq!(put(Flags::DUP_REPLACE, "a", "3"), Outcome::Done);
    assert_eq!(put(Flags::DUP_IGNORE, "a", "4"), Outcome::Absent);
    assert_eq!(found(&*table, "a").as_deref(), Some("3"));
    // One who has the old file has what was in it.
    assert_eq!(found(&*reader, "a").as_deref(), Some("1"));
    assert_eq!(found(&*place.open().unwrap(), "b").as_deref(), Some("2"));
    assert_eq!(table.delete(Flags::empty(), b"b").unwrap(), Outcome::Done);
    assert_eq!(table.delete(Flags::empty(), b"b").unwrap(), Outcome::Absent);
    // The bytes are those of a table that was made with these entries.
    let bytes = place.file();
    place.make(Flags::empty(), &[(b"a", b"3")]);
    assert_eq!(place.file(), bytes);
    assert!(!place.path("t.cdb.tmp").exists());
}

#[test]
fn what_others_make_is_what_is_changed() {
    let place = Place::new();
    place.make(Flags::TRY1NULL, &[(b"a", b"1"), (b"b", b"2")]);
    fs::set_permissions(place.path("t.cdb"), fs::Permissions::from_mode(0o640)).unwrap();
    let table = changing(&place);
    // In the form that the table has.
    table.update(Flags::DUP_REPLACE, b"a", b"3").unwrap();
    place.open().unwrap();
    let metadata = fs::metadata(place.path("t.cdb")).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o640);
    let bytes = place.file();
    place.make(Flags::TRY1NULL, &[(b"b", b"2"), (b"a", b"3")]);
    assert_eq!(place.file(), bytes);
    place.make(Flags::DUP_IGNORE, &[(b"x", b"1"), (b"x", b"2")]);
    assert_eq!(found(&*table, "a"), None);
    assert_eq!(found(&*table, "x").as_deref(), Some("1"));
    table.update(Flags::DUP_REPLACE, b"y", b"3").unwrap();
    assert_eq!(found(&*table, "x").as_deref(), Some("1"));
    table.update(Flags::DUP_REPLACE, b"x", b"4").unwrap();
    assert_eq!(found(&*table, "x").as_deref(), Some("4"));
    assert_eq!(table.delete(Flags::empty(), b"x").unwrap(), Outcome::Done);
    assert_eq!(found(&*table, "x"), None);
    // One who makes the table is waited for.
    let builder = place.builder().unwrap();
    std::thread::scope(|scope| {
        let change = scope.spawn(|| table.update(Flags::DUP_REPLACE, b"late", b"1"));
        builder.finish().unwrap();
        assert_eq!(change.join().unwrap().unwrap(), Outcome::Done);
    });
    assert_eq!(found(&*table, "y"), None);
    assert_eq!(found(&*table, "late").as_deref(), Some("1"));
}
