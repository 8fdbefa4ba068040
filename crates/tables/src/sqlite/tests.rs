//! What cannot be seen from a command: files that change under an open table, many threads, what is kept.

use std::fs;
use std::path::Path;
use std::thread;

use postkeep_table::{Access, Opener as _};
use rusqlite::Connection;

use super::*;
use crate::{Context, Registry};

fn make(path: &Path, value: &str) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(&format!(
            "CREATE TABLE t (k TEXT, v TEXT); INSERT INTO t VALUES ('k', '{value}')"
        ))
        .unwrap();
    connection
}

fn table(directory: &Path, more: &str) -> Result<Arc<dyn Table>, OpenError> {
    let file = directory.join("t.cf");
    let database = directory.join("d.db");
    let text = format!(
        "dbpath = {}\nquery = SELECT v FROM t WHERE k='%s'\n{more}",
        database.display()
    );
    fs::write(&file, text).unwrap();
    let name = TableName::parse(format!("sqlite:{}", file.display()).as_bytes()).unwrap();
    Registry::new(Context::default()).open(&name, Access::Read, Flags::empty())
}

fn answer(table: &Arc<dyn Table>, key: &str) -> Result<Option<String>, LookupError> {
    let mut value = Vec::new();
    let outcome = table.lookup(Flags::empty(), key.as_bytes(), &mut value)?;
    let value = String::from_utf8(value).unwrap();
    Ok((outcome == Outcome::Done).then_some(value))
}

#[test]
fn changes_and_new_files_are_seen_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("d.db");
    let writer = make(&file, "first");
    let table = table(directory.path(), "").unwrap();
    assert_eq!(table.latency(), Latency::Blocking);
    let found = |wanted: &str| {
        for _ in 0..3 {
            assert_eq!(answer(&table, "k").unwrap().as_deref(), Some(wanted));
        }
    };
    found("first");
    writer.execute("UPDATE t SET v = 'second'", []).unwrap();
    found("second");
    drop(writer);
    let other = directory.path().join("new.db");
    drop(make(&other, "third"));
    fs::rename(&other, &file).unwrap();
    found("third");
    // Overwritten in place, with the same size and SQLite's counter the same.
    drop(make(&other, "4ourt"));
    fs::write(&file, fs::read(&other).unwrap()).unwrap();
    found("4ourt");
    fs::remove_file(&file).unwrap();
    assert!(matches!(answer(&table, "k"), Err(LookupError::Retry(_))));
    fs::rename(&other, &file).unwrap();
    found("4ourt");
}

#[test]
fn changes_in_a_log_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let writer = make(&directory.path().join("d.db"), "first");
    let table = table(directory.path(), "").unwrap();
    writer.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    for number in 0..20 {
        let value = format!("w{number}");
        writer.execute("UPDATE t SET v = ?1", [&value]).unwrap();
        assert_eq!(answer(&table, "k").unwrap(), Some(value));
    }
}

#[test]
fn sorts_stay_in_memory_and_within_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    drop(make(&directory.path().join("d.db"), "value"));
    let sorted = |count: usize| {
        let query = format!(
            "query = SELECT 'found' FROM (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
             SELECT hex(zeroblob(4000000)) || i AS b FROM n ORDER BY b LIMIT 1 OFFSET {}) WHERE '%s' = 'k'\n",
            count - 1
        );
        answer(&table(directory.path(), &query).unwrap(), "k")
    };
    assert_eq!(sorted(10).unwrap().as_deref(), Some("found"));
    assert!(matches!(sorted(60), Err(LookupError::Retry(_))));
    // What was too much is given back.
    assert_eq!(sorted(10).unwrap().as_deref(), Some("found"));
}

#[test]
fn many_threads_ask_and_few_connections_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    drop(make(&directory.path().join("d.db"), "value"));
    let database = Database::open(
        directory.path().join("d.db").to_str().unwrap().as_bytes(),
        Limits {
            busy: Duration::from_secs(1),
            answer: Duration::from_secs(30),
            kept: 3,
        },
        Changes::OfOthers,
    )
    .unwrap();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for number in 0..200 {
                    let text = format!("SELECT v FROM t WHERE k = 'k' AND {number} < 1000");
                    let values = vec!["k".to_owned()];
                    let bound = Some(("SELECT v FROM t WHERE k = ?1", values));
                    let bound = bound.filter(|_| number % 2 == 0);
                    let mut found = Vec::new();
                    let question = Question { bound, text: &text };
                    database
                        .ask(&question, |value| {
                            found.push(value.map(<[u8]>::to_vec));
                            true
                        })
                        .unwrap();
                    assert_eq!(found, [Some(b"value".to_vec())]);
                }
            });
        }
    });
    assert!((1..=3).contains(&database.idle()));
}

#[test]
fn a_table_can_neither_write_nor_reach_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("d.db");
    assert!(table(directory.path(), "").is_err());
    assert!(!file.exists());
    drop(make(&file, "value"));
    for query in [
        "INSERT INTO t VALUES ('%s', 'x') RETURNING v",
        "ATTACH '%s' AS other",
        "DELETE FROM t",
        "SELECT load_extension('%s')",
        "SELECT length(zeroblob(100000000)), '%s'",
    ] {
        let table = table(directory.path(), &format!("query = {query}\n")).unwrap();
        let key = directory.path().join("other.db");
        let result = answer(&table, key.to_str().unwrap());
        assert!(matches!(result, Err(LookupError::Retry(_))), "{query}");
        assert!(!key.exists(), "{query}");
    }
    let table = table(directory.path(), "").unwrap();
    assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("value"));
}

const CACHE: &str = "update_query = INSERT INTO t VALUES (:key, :value) ON CONFLICT (k) DO UPDATE SET v = :value\n\
                     delete_query = DELETE FROM t WHERE k = :key\n\
                     sequence_query = SELECT k, v FROM t WHERE k > :key ORDER BY k LIMIT 1\n\
                     schema = CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT CHECK (v <> 'refused')) WITHOUT ROWID\n";

/// A table that may be changed.
fn writable(directory: &Path, more: &str) -> Result<Arc<dyn Table>, OpenError> {
    drop(table(directory, more));
    let name = format!("sqlite:{}", directory.join("t.cf").display());
    let name = TableName::parse(name.as_bytes()).unwrap();
    let context = Context {
        caller: Caller::Daemon,
        ..Context::default()
    };
    Registry::new(context).open(&name, Access::ReadWrite, Flags::empty())
}

fn put(table: &Arc<dyn Table>, key: &str, value: &str) -> Result<Outcome, LookupError> {
    table.update(Flags::DUP_REPLACE, key.as_bytes(), value.as_bytes())
}

fn walk(table: &Arc<dyn Table>) -> Vec<(String, String)> {
    let mut cursor = Cursor::default();
    let mut step = Step::First;
    let mut entries = Vec::new();
    loop {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let flags = Flags::empty();
        let outcome = table.sequence(flags, step, &mut cursor, &mut key, &mut value);
        if outcome.unwrap() == Outcome::Absent {
            return entries;
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        entries.push((text(key), text(value)));
        step = Step::Next;
    }
}

#[test]
fn entries_are_stored_replaced_listed_and_deleted() {
    for mode in ["", "schema = PRAGMA journal_mode = WAL;"] {
        let directory = tempfile::tempdir().unwrap();
        let text = CACHE.replace("schema =", if mode.is_empty() { "schema =" } else { mode });
        let table = writable(directory.path(), &text).unwrap();
        assert!(table.flags().contains(Flags::MULTI_WRITER));
        assert_eq!(answer(&table, "k").unwrap(), None);
        for (key, value) in [
            ("k", "v"),
            ("a'\"%s:key", "'); DROP TABLE t; --"),
            ("é", "ü"),
            ("k", "w"),
        ] {
            assert_eq!(put(&table, key, value).unwrap(), Outcome::Done);
            assert_eq!(answer(&table, key).unwrap().as_deref(), Some(value));
        }
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let all = [
            pair("a'\"%s:key", "'); DROP TABLE t; --"),
            pair("k", "w"),
            pair("é", "ü"),
        ];
        assert_eq!(walk(&table), all);
        // Without the flag what is there stays.
        let kept = table.update(Flags::DUP_IGNORE, b"k", b"x").unwrap();
        assert_eq!(kept, Outcome::Absent);
        let fault = table.update(Flags::empty(), b"k", b"x").unwrap_err();
        assert!(
            fault.to_string().contains("duplicate entry: \"k\""),
            "{fault}"
        );
        assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("w"));
        assert_eq!(
            table.update(Flags::empty(), b"new", b"x").unwrap(),
            Outcome::Done
        );
        for wanted in [Outcome::Done, Outcome::Absent] {
            assert_eq!(table.delete(Flags::empty(), b"new").unwrap(), wanted);
        }
        // What could not be found again, and what the database refuses.
        for (key, value) in [
            (&b"k"[..], &b""[..]),
            (b"", b"v"),
            (b"k", b"a\0b"),
            (b"k", b"\xff"),
            (b"\xff", b"v"),
            (b"k", &vec![b'v'; RESULT_LIMIT + 1]),
            (b"k", b"refused"),
        ] {
            let result = table.update(Flags::DUP_REPLACE, key, value);
            assert!(matches!(result, Err(LookupError::Config(_))), "{result:?}");
        }
        assert_eq!(walk(&table), all);
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".new"))
            .collect();
        assert!(names.is_empty(), "{names:?}");
        // Another connection finds it on the disk.
        drop(table);
        let other = Connection::open(directory.path().join("d.db")).unwrap();
        let value: String = other
            .query_one("SELECT v FROM t WHERE k = 'k'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(value, "w");
    }
}

#[test]
fn without_statements_a_table_is_not_opened_for_changes() {
    let directory = tempfile::tempdir().unwrap();
    drop(make(&directory.path().join("d.db"), "value"));
    let refused = |more: &str| match writable(directory.path(), more) {
        Ok(_) => panic!("opened: {more}"),
        Err(OpenError::Unavailable(text)) => text,
        Err(error) => panic!("{error}"),
    };
    for more in [
        "",
        "sequence_query = SELECT 1, 2, :key\n",
        "schema = CREATE TABLE t (k)\n",
    ] {
        assert!(refused(more).ends_with("t.cf map requires O_RDONLY access mode"));
    }
    for (more, why) in [
        (
            "update_query = INSERT INTO t VALUES (:key, :val)\n",
            "update_query: unknown parameter :val",
        ),
        (
            "update_query = INSERT INTO t VALUES ('%s', ?)\n",
            "update_query: unknown parameter ?",
        ),
        (
            "update_query = INSERT INTO t VALUES (:key, 1)\n",
            "update_query: the parameter :value is missing",
        ),
        (
            "update_query = SELECT :key, :value\n",
            "update_query: expecting a statement that changes something",
        ),
        (
            "delete_query = DELETE FROM t WHERE k = :key; DELETE FROM t\n",
            "delete_query: expecting one statement",
        ),
        (
            "delete_query = -- nothing\n",
            "delete_query: expecting a statement",
        ),
        (
            "delete_query = COMMIT\n",
            "delete_query: expecting a statement that changes something",
        ),
        (
            "delete_query = DELETE FROM other WHERE k = :key\n",
            "delete_query: no such table: other",
        ),
        (
            "delete_query = DELETE FROM t WHERE k = :key\nsequence_query = DELETE FROM t WHERE k > :key\n",
            "sequence_query: expecting a statement that only reads",
        ),
    ] {
        let text = refused(more);
        assert!(text.ends_with(why), "{text}");
    }
    let table = writable(
        directory.path(),
        "delete_query = DELETE FROM t WHERE k = :key\n",
    )
    .unwrap();
    assert!(matches!(
        put(&table, "k", "v"),
        Err(LookupError::Unsupported(_))
    ));
    assert_eq!(table.delete(Flags::empty(), b"k").unwrap(), Outcome::Done);
    // A database is only made where there is a schema.
    fs::remove_file(directory.path().join("d.db")).unwrap();
    refused("delete_query = DELETE FROM t WHERE k = :key\n");
    assert!(!directory.path().join("d.db").exists());
}

#[test]
fn changes_at_a_time_share_a_transaction_and_a_bad_one_spoils_no_other() {
    const CLIENTS: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let text = format!("{CACHE}busy_timeout = 30s\n");
    let table = writable(directory.path(), &text).unwrap();
    let file = directory.path().join("d.db");
    let transaction = || u32::from_be_bytes(fs::read(&file).unwrap()[24..28].try_into().unwrap());
    let before = transaction();
    let registry = Registry::new(Context::default());
    let name = format!("sqlite:{}", directory.path().join("t.cf").display());
    let opened = open_table(&Request {
        registry: &registry,
        context: registry.context(),
        name: &TableName::parse(name.as_bytes()).unwrap(),
        access: Access::ReadWrite,
        flags: Flags::empty(),
        depth: 0,
        text: None,
        utf8: false,
    });
    let opened = opened.unwrap();
    let writer = opened.writer.as_ref().unwrap();
    let other = Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        let opened = &opened;
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let key = format!("k{number}");
                let stored = opened.update(Flags::DUP_REPLACE, key.as_bytes(), b"v");
                assert_eq!(stored.unwrap(), Outcome::Done);
            });
        }
        while writer.waiting() < CLIENTS {
            thread::yield_now();
        }
        other.execute_batch("ROLLBACK").unwrap();
    });
    assert_eq!(transaction(), before + 1);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let table = &table;
            scope.spawn(move || {
                for turn in 0..10 {
                    let (key, value) = (format!("k{number}"), format!("v{turn}"));
                    if number % 4 == 0 {
                        let result = put(table, &key, "refused");
                        assert!(matches!(result, Err(LookupError::Config(_))), "{result:?}");
                    } else {
                        put(table, &key, &value).unwrap();
                        assert_eq!(answer(table, &key).unwrap(), Some(value));
                    }
                }
            });
        }
    });
    assert_eq!(walk(&table).len(), CLIENTS);
}

#[test]
fn another_writer_is_waited_for_and_not_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("{CACHE}busy_timeout = 200ms\n");
    let table = writable(directory.path(), &text).unwrap();
    put(&table, "k", "v").unwrap();
    let other = Connection::open(directory.path().join("d.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let result = put(&table, "k", "w");
                assert!(matches!(result, Err(LookupError::Retry(_))), "{result:?}");
            });
        }
    });
    assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("v"));
    other.execute_batch("ROLLBACK").unwrap();
    put(&table, "k", "w").unwrap();
    assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("w"));
}

#[test]
fn a_replaced_database_is_the_one_that_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let table = writable(directory.path(), CACHE).unwrap();
    put(&table, "k", "v").unwrap();
    let file = directory.path().join("d.db");
    let other = directory.path().join("other.db");
    fs::copy(&file, &other).unwrap();
    put(&table, "k", "lost").unwrap();
    fs::rename(&other, &file).unwrap();
    assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("v"));
    put(&table, "l", "kept").unwrap();
    assert_eq!(walk(&table).len(), 2);
    // Removed, it is made anew.
    fs::remove_file(&file).unwrap();
    put(&table, "m", "alone").unwrap();
    assert_eq!(walk(&table), [("m".to_owned(), "alone".to_owned())]);
}

#[test]
fn a_damaged_database_is_set_aside_and_its_log_is_not_taken_for_the_new_one_s() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("d.db");
    let journal = directory.path().join("d.db-journal");
    let table = writable(directory.path(), CACHE).unwrap();
    let aside = || {
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".damaged-"))
            .collect();
        names.sort();
        names
    };
    let damage = || {
        fs::write(&file, b"this is not a database\n".repeat(300)).unwrap();
        fs::write(&journal, b"nor is this a log").unwrap();
    };
    // Found by each of the operations.
    let operations: [&dyn Fn() -> bool; 3] = [
        &|| put(&table, "k", "w").is_ok(),
        &|| answer(&table, "k").unwrap().is_none(),
        &|| walk(&table).is_empty(),
    ];
    for (number, operation) in operations.into_iter().enumerate() {
        put(&table, "k", "v").unwrap();
        assert_eq!(answer(&table, "k").unwrap().as_deref(), Some("v"));
        // No connection remembers what it has read.
        if number > 0 {
            drop(
                Connection::open(&file)
                    .unwrap()
                    .execute_batch("UPDATE t SET v = 'x'"),
            );
        }
        damage();
        assert!(operation(), "{number}");
        assert!(!journal.exists());
        let aside = directory.path().join(&aside()[0]);
        assert!(fs::read(&aside).unwrap().starts_with(b"this is not"));
        fs::remove_file(aside).unwrap();
    }
    drop(table);
    damage();
    let table = writable(directory.path(), CACHE).unwrap();
    assert_eq!(walk(&table), []);
    assert_eq!(aside().len(), 1);
    // Without a schema it stays as it is.
    drop(table);
    fs::remove_file(&file).unwrap();
    fs::write(&file, b"this is not a database\n".repeat(300)).unwrap();
    let (without, _) = CACHE.split_once("schema").unwrap();
    assert!(writable(directory.path(), without).is_err());
    assert!(fs::read(&file).unwrap().starts_with(b"this is not"));
}
