//! What every table type must keep, chosen by what the type says it can do.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::path::Path;
use std::sync::Arc;

use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, Opener as _, Outcome, Owner, Step, Table,
    TableName,
};
use postkeep_tables::{BuildMode, Capabilities, Context, Registry, TableType, table_types};

/// A table of a type with `key` = `value` in it, or without entries where a type cannot have them.
fn example(kind: &TableType, directory: &Path) -> TableName {
    let file = directory.join("t");
    std::fs::write(&file, "key value\nother thing\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    let rest = match kind.name {
        "debug" => "inline:{key=value,other=thing}".to_owned(),
        "environ" | "fail" | "internal" => "x".to_owned(),
        "inline" => "{key=value,other=thing}".to_owned(),
        "randmap" => "{value}".to_owned(),
        "cache" | "pipemap" | "unionmap" => "{inline:{key=value,other=thing}}".to_owned(),
        "pcre" | "regexp" => {
            std::fs::write(&file, "/^key$/ value\n/^other$/ thing\n").unwrap();
            file
        }
        "static" => "value".to_owned(),
        "unix" => "passwd.byname".to_owned(),
        "btree" | "cdb" | "cidr" | "hash" | "lmdb" | "texthash" => file,
        other => panic!("the contract has no example of {other}: tables"),
    };
    TableName::parse(format!("{}:{rest}", kind.name).as_bytes()).unwrap()
}

/// Every type but those that need a server, or are there for tests.
fn types() -> impl Iterator<Item = &'static TableType> {
    table_types().iter().copied().filter(|kind| {
        ![
            "http",
            "ldap",
            "mongodb",
            "mysql",
            "pgsql",
            "proxy",
            "redis",
            "slow",
            "socketmap",
            "sqlite",
            "memcache",
            "tcp",
        ]
        .contains(&kind.name)
    })
}

fn open(
    kind: &TableType,
    directory: &Path,
    access: Access,
    flags: Flags,
) -> Option<Arc<dyn Table>> {
    let registry = Registry::new(Context::default());
    let name = example(kind, directory);
    if kind.capabilities.contains(Capabilities::BUILD)
        && kind.capabilities.contains(Capabilities::FILE)
    {
        let mut builder = registry.build(&name, BuildMode::Create, flags).unwrap();
        for (key, value) in [("key", "value"), ("other", "thing")] {
            builder
                .add(flags, key.as_bytes(), value.as_bytes())
                .unwrap();
        }
        builder.finish().unwrap();
    }
    match registry.open(&name, access, flags) {
        Ok(table) => Some(table),
        Err(_) if access == Access::ReadWrite => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn for_each(access: Access, check: impl Fn(&TableType, &Arc<dyn Table>)) {
    for kind in types() {
        let directory = tempfile::tempdir().unwrap();
        if let Some(table) = open(kind, directory.path(), access, Flags::empty()) {
            check(kind, &table);
        }
    }
}

#[test]
fn a_table_says_what_it_is() {
    for_each(Access::Read, |kind, table| {
        assert_eq!(table.name().kind(), kind.name.as_bytes());
        let pattern = kind.capabilities.contains(Capabilities::PATTERN);
        assert_eq!(
            table.flags().contains(Flags::PATTERN),
            pattern,
            "{}",
            kind.name
        );
        assert_eq!(
            table.flags().contains(Flags::FIXED),
            !pattern,
            "{}",
            kind.name
        );
        let file = kind.capabilities.contains(Capabilities::FILE);
        assert_eq!(table.watches().is_empty(), !file, "{}", kind.name);
        assert_ne!(table.owner(), Owner::Unknown, "{}", kind.name);
    });
}

#[test]
fn flags_of_the_opener_stay() {
    for kind in types() {
        let directory = tempfile::tempdir().unwrap();
        let flags = Flags::FOLD_FIX | Flags::LOCK | Flags::from_bits_retain(0x4000_0000);
        let table = open(kind, directory.path(), Access::Read, flags).unwrap();
        assert!(table.flags().contains(flags), "{}", kind.name);
        assert!(!table.flags().contains(Flags::UTF8_ACTIVE), "{}", kind.name);
        let table = open(
            kind,
            directory.path(),
            Access::Read,
            flags | Flags::UTF8_REQUEST,
        )
        .unwrap();
        assert!(table.flags().contains(Flags::UTF8_ACTIVE), "{}", kind.name);
    }
}

#[test]
fn a_lookup_appends_and_leaves_alone_what_was_there() {
    for_each(Access::Read, |kind, table| {
        for key in [
            &b"key"[..],
            b"no such key",
            b"",
            b"\xff",
            b"a\0b",
            &[b'k'; 5000],
        ] {
            let mut value = b"before".to_vec();
            match table.lookup(Flags::empty(), key, &mut value) {
                Ok(Outcome::Done) => assert!(value.starts_with(b"before"), "{}", kind.name),
                Ok(Outcome::Absent) | Err(_) => assert_eq!(value, b"before", "{}", kind.name),
            }
        }
    });
}

#[test]
fn trying_gives_what_a_lookup_gives() {
    for_each(Access::Read, |kind, table| {
        for key in [&b"key"[..], b"no such key"] {
            let (mut tried, mut value) = (Vec::new(), Vec::new());
            let wanted = table.lookup(Flags::empty(), key, &mut value);
            match table.try_lookup(Flags::empty(), key, &mut tried) {
                Some(result) => {
                    assert_eq!(
                        format!("{result:?}"),
                        format!("{wanted:?}"),
                        "{}",
                        kind.name
                    );
                    assert_eq!(tried, value, "{}", kind.name);
                }
                None => assert_eq!(table.latency(), Latency::Blocking, "{}", kind.name),
            }
        }
    });
}

#[test]
fn a_type_has_the_operations_that_it_says_and_no_others() {
    for_each(Access::ReadWrite, |kind, table| {
        assert!(
            !kind.capabilities.contains(Capabilities::READ_ONLY),
            "{}",
            kind.name
        );
        let unsupported = |result: &Result<Outcome, LookupError>| {
            matches!(result, Err(LookupError::Unsupported(_)))
        };
        // The wrapper does what the table inside does.
        if kind.capabilities.contains(Capabilities::WRAPS) {
            return;
        }
        let update = table.update(Flags::DUP_REPLACE, b"key", b"new");
        assert_eq!(
            unsupported(&update),
            !kind.capabilities.contains(Capabilities::UPDATE),
            "{}",
            kind.name
        );
        if matches!(update, Ok(Outcome::Done)) {
            let mut value = Vec::new();
            table.lookup(Flags::empty(), b"key", &mut value).unwrap();
            assert_eq!(value, b"new", "{}", kind.name);
        }
        let delete = table.delete(Flags::empty(), b"key");
        assert_eq!(
            unsupported(&delete),
            !kind.capabilities.contains(Capabilities::DELETE),
            "{}",
            kind.name
        );
        if let Err(LookupError::Unsupported(text)) = delete {
            assert_eq!(
                text,
                format!("table {}: delete operation is not supported", table.name())
            );
        }
    });
    for kind in types().filter(|kind| kind.capabilities.contains(Capabilities::READ_ONLY)) {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            open(kind, directory.path(), Access::ReadWrite, Flags::empty()).is_none(),
            "{}",
            kind.name
        );
    }
}

#[test]
fn a_walk_visits_each_entry_once_and_the_end_repeats() {
    for_each(Access::Read, |kind, table| {
        let mut cursor = Cursor::default();
        let mut step = Step::First;
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            match table.sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value) {
                Ok(Outcome::Done) => assert!(seen.insert(key), "{}", kind.name),
                Ok(Outcome::Absent) => {
                    assert!(key.is_empty() && value.is_empty());
                    let again = table.sequence(
                        Flags::empty(),
                        Step::Next,
                        &mut cursor,
                        &mut key,
                        &mut value,
                    );
                    assert_eq!(again.unwrap(), Outcome::Absent, "{}", kind.name);
                    break;
                }
                Err(LookupError::Unsupported(_)) => {
                    assert!(
                        !kind.capabilities.contains(Capabilities::SEQUENCE),
                        "{}",
                        kind.name
                    );
                    return;
                }
                Err(_) => return,
            }
            step = Step::Next;
        }
        assert!(
            kind.capabilities.contains(Capabilities::SEQUENCE),
            "{}",
            kind.name
        );
    });
}

#[test]
fn many_threads_may_ask_at_once() {
    for_each(Access::Read, |_, table| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _ = table.lookup(Flags::FOLD_FIX, b"KEY", &mut Vec::new());
                    }
                });
            }
        });
    });
}

/// Types whose tables are files that are made from entries.
fn built_types() -> impl Iterator<Item = &'static TableType> {
    types().filter(|kind| {
        kind.capabilities
            .contains(Capabilities::BUILD.union(Capabilities::FILE))
    })
}

/// Makes a table of so many entries, `key0` = `value0` and so on, and opens it.
fn make(kind: &TableType, directory: &Path, flags: Flags, entries: u32) -> Arc<dyn Table> {
    let registry = Registry::new(Context::default());
    let name = example(kind, directory);
    let mut builder = registry.build(&name, BuildMode::Create, flags).unwrap();
    for number in 0..entries {
        let outcome = builder.add(
            flags,
            format!("key{number}").as_bytes(),
            format!("value{number}").as_bytes(),
        );
        assert_eq!(outcome.unwrap(), Outcome::Done, "{}", kind.name);
    }
    builder.finish().unwrap();
    registry.open(&name, Access::Read, Flags::empty()).unwrap()
}

/// The value of a key, which has to be that of [`make`]; `None` also for an error.
fn answer(kind: &TableType, table: &dyn Table, number: u32) -> Option<()> {
    let mut value = Vec::new();
    let key = format!("key{number}");
    match table.lookup(Flags::empty(), key.as_bytes(), &mut value) {
        Ok(Outcome::Done) => {
            assert_eq!(value, format!("value{number}").as_bytes(), "{}", kind.name);
            Some(())
        }
        Ok(Outcome::Absent) | Err(_) => {
            assert!(value.is_empty(), "{}", kind.name);
            None
        }
    }
}

#[test]
fn a_table_of_any_size_and_either_form_holds_what_was_stored() {
    for kind in built_types() {
        for form in [Flags::empty(), Flags::TRY0NULL, Flags::TRY1NULL] {
            for entries in [0, 1, 3000] {
                let directory = tempfile::tempdir().unwrap();
                let table = make(kind, directory.path(), form, entries);
                for number in 0..entries {
                    assert_eq!(
                        answer(kind, &*table, number),
                        Some(()),
                        "{} {form:?} {number}",
                        kind.name
                    );
                }
                assert_eq!(answer(kind, &*table, entries), None, "{}", kind.name);
            }
        }
    }
}

#[test]
fn a_builder_that_is_dropped_leaves_the_old_table_and_no_other_file() {
    for kind in built_types() {
        let directory = tempfile::tempdir().unwrap();
        drop(make(kind, directory.path(), Flags::empty(), 2));
        let files = || {
            let mut names: Vec<_> = std::fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let before = files();
        let registry = Registry::new(Context::default());
        let name = example(kind, directory.path());
        let mut builder = registry
            .build(&name, BuildMode::Create, Flags::empty())
            .unwrap();
        builder.add(Flags::empty(), b"key0", b"changed").unwrap();
        drop(builder);
        assert_eq!(files(), before, "{}", kind.name);
        let table = registry.open(&name, Access::Read, Flags::empty()).unwrap();
        for number in 0..2 {
            assert_eq!(answer(kind, &*table, number), Some(()), "{}", kind.name);
        }
    }
}

#[test]
fn a_file_that_is_cut_off_gives_no_wrong_answer() {
    for kind in built_types() {
        let directory = tempfile::tempdir().unwrap();
        let table = make(kind, directory.path(), Flags::empty(), 300);
        let path = table.watches()[0].path.clone();
        drop(table);
        let whole = std::fs::read(&path).unwrap();
        let registry = Registry::new(Context::default());
        let name = example(kind, directory.path());
        for part in 0..40 {
            std::fs::write(&path, &whole[..whole.len() * part / 40]).unwrap();
            if let Ok(table) = registry.open(&name, Access::Read, Flags::empty()) {
                for number in 0..300 {
                    let _ = answer(kind, &*table, number);
                }
            }
        }
    }
}

/// As the lookup table server does it when a table is replaced while a client walks through it.
#[test]
fn a_walk_goes_on_in_the_table_that_was_opened_anew() {
    for kind in types().filter(|kind| {
        kind.capabilities
            .contains(Capabilities::FILE.union(Capabilities::SEQUENCE))
    }) {
        let directory = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::default();
        let mut step = Step::First;
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let table = open(kind, directory.path(), Access::Read, Flags::empty()).unwrap();
            let (mut key, mut value) = (Vec::new(), Vec::new());
            let outcome = table
                .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
                .unwrap();
            if outcome == Outcome::Absent {
                break;
            }
            assert!(seen.insert(key), "{}", kind.name);
            step = Step::Next;
        }
        assert_eq!(seen.len(), 2, "{}", kind.name);
    }
}
