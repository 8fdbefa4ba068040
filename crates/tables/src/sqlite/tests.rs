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
