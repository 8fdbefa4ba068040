//! Tests of the parent module.

use postkeep_table::Opener as _;

use super::*;
use crate::{Context, Registry};

const FOLD: Flags = Flags::FOLD_FIX;

struct Place {
    _directory: tempfile::TempDir,
    name: TableName,
    file: PathBuf,
    registry: Registry,
}

fn place(caller: Caller) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("t");
    let name = TableName::parse(&[b"lmdb:", source.as_os_str().as_bytes()].concat()).unwrap();
    let context = Context {
        caller,
        lmdb_map_size: 10_240,
        ..Context::default()
    };
    Place {
        file: directory.path().join("t.lmdb"),
        _directory: directory,
        name,
        registry: Registry::new(context),
    }
}

impl Place {
    fn open(&self, access: Access, flags: Flags) -> Arc<dyn Table> {
        self.registry.open(&self.name, access, flags).unwrap()
    }

    fn create(&self, flags: Flags, entries: &[(&str, &str)]) {
        let mut builder = self
            .registry
            .build(&self.name, BuildMode::Create, flags)
            .unwrap();
        for (key, value) in entries {
            builder
                .add(flags, key.as_bytes(), value.as_bytes())
                .unwrap();
        }
        builder.finish().unwrap();
    }
}

fn answer(table: &Arc<dyn Table>, key: &str) -> Option<String> {
    let mut value = Vec::new();
    let outcome = table.lookup(FOLD, key.as_bytes(), &mut value).unwrap();
    (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
}

fn list(table: &Arc<dyn Table>) -> Vec<String> {
    let mut cursor = Cursor::default();
    let mut step = Step::First;
    std::iter::from_fn(|| {
        let (mut key, mut value) = (Vec::new(), b"=".to_vec());
        let outcome = table
            .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
            .unwrap();
        step = Step::Next;
        (outcome == Outcome::Done).then(|| String::from_utf8([key, value].concat()).unwrap())
    })
    .collect()
}

#[test]
fn creating_replaces_everything_and_open_tables_see_it() {
    let place = place(Caller::Daemon);
    place.create(FOLD, &[("B", "2"), ("a", "1")]);
    let table = place.open(Access::Read, Flags::empty());
    assert_eq!(list(&table), ["a=1", "b=2"]);
    place.create(FOLD, &[("c", "3")]);
    assert_eq!(list(&table), ["c=3"]);
    assert_eq!(answer(&table, "C").as_deref(), Some("3"));
    assert_eq!(answer(&table, "a"), None);
}

#[test]
fn a_build_that_is_given_up_leaves_the_old_entries() {
    let place = place(Caller::Daemon);
    place.create(FOLD, &[("a", "1")]);
    let mut builder = place
        .registry
        .build(&place.name, BuildMode::Create, FOLD)
        .unwrap();
    builder.add(FOLD, b"b", b"2").unwrap();
    let error = builder
        .add(FOLD, &[b'k'; 511], b"v")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("error updating lmdb:") && error.contains(": MDB_BAD_VALSIZE: "),
        "{error}"
    );
    drop(builder);
    assert_eq!(list(&place.open(Access::Read, Flags::empty())), ["a=1"]);
}

#[test]
fn both_forms_of_a_key_are_found_and_each_can_be_asked_for_alone() {
    let place = place(Caller::Daemon);
    place.create(Flags::TRY0NULL, &[("plain", "1")]);
    let table = place.open(Access::ReadWrite, Flags::empty());
    assert_eq!(
        table.update(Flags::TRY1NULL, b"nul", b"2").unwrap(),
        Outcome::Done
    );
    assert_eq!(answer(&table, "plain").as_deref(), Some("1"));
    assert_eq!(answer(&table, "nul").as_deref(), Some("2"));
    assert_eq!(answer(&table, "plain").as_deref(), Some("1"));
    let only = place.open(Access::Read, Flags::TRY1NULL);
    assert_eq!(answer(&only, "plain"), None);
    assert_eq!(
        table.delete(Flags::empty(), b"plain").unwrap(),
        Outcome::Done
    );
    assert_eq!(table.delete(Flags::empty(), b"nul").unwrap(), Outcome::Done);
    assert_eq!(
        table.delete(Flags::empty(), b"nul").unwrap(),
        Outcome::Absent
    );
}

#[test]
fn an_empty_key_is_a_fault_in_a_command_until_something_was_found() {
    let place = place(Caller::Command);
    place.create(FOLD, &[("a", "1")]);
    let table = place.open(Access::Read, Flags::empty());
    let error = table
        .lookup(FOLD, b"", &mut Vec::new())
        .unwrap_err()
        .to_string();
    assert!(error.ends_with(
        ": MDB_BAD_VALSIZE: Unsupported size of key/DB name/data, or wrong DUPFIXED size"
    ));
    answer(&table, "a").unwrap();
    assert_eq!(answer(&table, ""), None);
}

#[test]
fn records_of_any_size_fit_and_readers_follow() {
    let place = place(Caller::Daemon);
    place.create(FOLD, &[]);
    let reader = place.open(Access::Read, Flags::empty());
    let writer = place.open(Access::ReadWrite, Flags::empty());
    let value = "v".repeat(1_000_000);
    writer
        .update(Flags::DUP_REPLACE, b"k", value.as_bytes())
        .unwrap();
    assert_eq!(answer(&reader, "k"), Some(value));
    let long = "k".repeat(510);
    writer
        .update(Flags::DUP_REPLACE, long.as_bytes(), b"v")
        .unwrap();
    assert_eq!(answer(&reader, &long).as_deref(), Some("v"));
    let error = writer
        .update(Flags::DUP_REPLACE, &[b'k'; 511], b"v")
        .unwrap_err();
    assert!(matches!(error, LookupError::Config(_)));
    assert_eq!(answer(&reader, &"k".repeat(600)), None);
    assert_eq!(answer(&reader, ""), None);
}

#[test]
fn a_damaged_file_asks_for_another_try_and_is_opened_again() {
    let place = place(Caller::Daemon);
    place.create(FOLD, &[("k", &"v".repeat(50_000))]);
    let table = place.open(Access::Read, Flags::empty());
    let whole = std::fs::read(&place.file).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&place.file)
        .unwrap()
        .set_len(8192)
        .unwrap();
    let mut value = Vec::new();
    assert!(table.try_lookup(FOLD, b"k", &mut value).is_none());
    assert!(matches!(
        table.lookup(FOLD, b"k", &mut value),
        Err(LookupError::Retry(_))
    ));
    assert!(value.is_empty());
    std::fs::remove_file(&place.file).unwrap();
    std::fs::write(&place.file, whole).unwrap();
    assert_eq!(answer(&table, "k").map(|value| value.len()), Some(50_000));
    assert!(table.try_lookup(FOLD, b"k", &mut value).is_some());
}

#[test]
fn lookups_do_not_wait_for_a_writer_and_see_what_was_committed() {
    let place = place(Caller::Daemon);
    place.create(FOLD, &[("a", "1"), ("b", "2")]);
    let table = place.open(Access::ReadWrite, Flags::empty());
    let look = |key: &str| {
        let mut value = b"<".to_vec();
        let outcome = table.try_lookup(FOLD, key.as_bytes(), &mut value)?.unwrap();
        let value = String::from_utf8(value).unwrap();
        Some((outcome == Outcome::Done).then_some(value))
    };
    let builder = place
        .registry
        .build(&place.name, BuildMode::Add, FOLD)
        .map(|mut builder| {
            builder.add(FOLD, b"c", b"3").unwrap();
            builder
        })
        .unwrap();
    // The lock is held, and the entry is there.
    for _ in 0..3 {
        assert_eq!(look("A"), Some(Some("<1".to_owned())));
        assert_eq!(look("c"), Some(Some("<3".to_owned())));
        assert_eq!(look("d"), Some(None));
        assert_eq!(look(&"k".repeat(511)), Some(None));
        assert_eq!(look(&"k".repeat(512)), Some(None));
    }
    drop(builder);
    for number in 0..30 {
        let value = number.to_string();
        table
            .update(Flags::DUP_REPLACE, b"a", value.as_bytes())
            .unwrap();
        assert_eq!(look("a"), Some(Some(format!("<{value}"))));
    }
    table.delete(Flags::empty(), b"a").unwrap();
    assert_eq!(look("a"), Some(None));
}

#[test]
fn what_cannot_be_opened_has_the_reference_s_reason() {
    let place = place(Caller::Daemon);
    let reason = || {
        let error = place
            .registry
            .open(&place.name, Access::Read, Flags::empty())
            .err()
            .unwrap();
        error
            .to_string()
            .rsplit_once("t.lmdb: ")
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(reason(), "No such file or directory");
    std::fs::write(&place.file, b"").unwrap();
    assert_eq!(reason(), "Bad file descriptor");
    std::fs::write(&place.file, b"plain text, not a database\n").unwrap();
    assert_eq!(reason(), "MDB_INVALID: File is not an LMDB file");
    std::fs::remove_file(&place.file).unwrap();
    std::fs::create_dir(&place.file).unwrap();
    assert_eq!(reason(), "Is a directory");
}

/// The number of the newest transaction: in the page header and description at the start of pages 0 and 1.
fn transaction(file: &std::path::Path) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let number = |page: usize| {
        let start = page * 4096 + 16 + 4 + 4 + 8 + 8 + 2 * 48 + 8;
        u64::from_ne_bytes(bytes[start..start + 8].try_into().unwrap())
    };
    number(0).max(number(1))
}

#[test]
fn changes_that_come_meanwhile_share_a_transaction_whatever_the_size_of_the_map() {
    const THREADS: usize = 12;
    let place = place(Caller::Daemon);
    place.create(FOLD, &[("gone", "1"), ("kept", "2")]);
    let table = open_table(&Request {
        registry: &place.registry,
        context: place.registry.context(),
        name: &place.name,
        access: Access::ReadWrite,
        flags: Flags::empty(),
        depth: 0,
        text: None,
        utf8: false,
    })
    .unwrap();
    let before = transaction(&place.file);
    let options = Options {
        write: true,
        map_size: 10_240,
    };
    let other = Environment::open(&place.file, options).unwrap();
    other.hold(Kind::Exclusive).unwrap();
    // Far more than the map has room for.
    let value = |number: usize| vec![b'v'; 2000 * (number + 1)];
    std::thread::scope(|scope| {
        let table = &table;
        for number in 0..THREADS {
            scope.spawn(move || {
                let key = format!("k{number:02}");
                let outcome = table.update(Flags::DUP_REPLACE, key.as_bytes(), &value(number));
                assert_eq!(outcome.unwrap(), Outcome::Done);
            });
        }
        // Both ask to delete one entry that is there, so one of them does; a key that cannot be stored bothers nobody.
        let deletes = [(); 2].map(|()| scope.spawn(move || table.delete(FOLD, b"gone").unwrap()));
        let refused = table.update(FOLD, &[b'k'; 511], b"v");
        assert!(
            matches!(refused, Err(LookupError::Config(_))),
            "{refused:?}"
        );
        while table.group.waiting() < THREADS + 2 {
            std::thread::yield_now();
        }
        assert_eq!(transaction(&place.file), before);
        drop(other);
        let mut outcomes = deletes.map(|delete| delete.join().unwrap());
        outcomes.sort_unstable_by_key(|outcome| *outcome == Outcome::Absent);
        assert_eq!(outcomes, [Outcome::Done, Outcome::Absent]);
    });
    assert_eq!(transaction(&place.file), before + 1);
    let table = place.open(Access::Read, Flags::empty());
    for number in 0..THREADS {
        let wanted = String::from_utf8(value(number)).unwrap();
        assert_eq!(answer(&table, &format!("k{number:02}")), Some(wanted));
    }
    assert_eq!(answer(&table, "kept").as_deref(), Some("2"));
    assert_eq!(list(&table).len(), THREADS + 1);
}
