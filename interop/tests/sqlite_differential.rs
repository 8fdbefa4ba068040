//! The installed postmap against ours, on `sqlite:` tables: the same databases and configuration files for both.
//!
//! What differs on purpose is not compared: our warning about a query that a key can change, which the reference has
//! from 3.11 on.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_testkit::program::skip;

/// A directory with a database `d.db`, or a reason to skip.
struct Place {
    sides: Sides,
    directory: PathBuf,
    tables: AtomicUsize,
}

const SCHEMA: &str = "
CREATE TABLE t (k TEXT, v);
CREATE INDEX i ON t (k);
CREATE TABLE n (id INTEGER PRIMARY KEY, v TEXT);
INSERT INTO n VALUES (1, 'one'), (2, 'two');
INSERT INTO t VALUES
  ('a', 'found'), ('b', 'first'), ('b', 'second'), ('b', 'third'),
  ('null', NULL), ('empty', ''), ('mixed', NULL), ('mixed', ''), ('mixed', 'x'), ('mixed', NULL), ('mixed', 'y@z'),
  ('integer', 12), ('integer', -9223372036854775808), ('real', 1.50), ('real', 1e100), ('real', -0.1),
  ('real', 3.0), ('real', 1e15), ('real', 0.1e-5), ('real', 9e999),
  ('blob', x'6162'), ('blob', x'610062'), ('bad', x'ff'), ('utf8', 'é'), ('É', 'upper'), ('é', 'lower'),
  ('it''s', 'quoted'), ('back\\slash', 'slash'), ('per%cent', 'percent'), ('two words', 'words'), ('\"d\"', 'double'),
  ('u@d.example', 'address'), ('user@sub.d.example', 'user@value.example'), ('comma', 'a,b'), ('; --', 'comment'),
  ('nul', 'a' || char(0) || 'b');
";

impl Place {
    fn new() -> Option<Self> {
        let sides = Sides::new()?;
        if Command::new("sqlite3").arg("-version").output().is_err() {
            skip("sqlite3 is not installed");
            return None;
        }
        let directory = sides.directory("db");
        let place = Self {
            sides,
            directory,
            tables: AtomicUsize::new(0),
        };
        place.sql("d.db", SCHEMA);
        Some(place)
    }

    fn sql(&self, file: &str, text: &str) {
        let output = Command::new("sqlite3")
            .arg(self.directory.join(file))
            .arg(text)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Makes a table; `{}` in `text` is the directory.
    fn table(&self, text: &str) -> String {
        let number = self.tables.fetch_add(1, Ordering::Relaxed);
        let file = self.directory.join(format!("t{number}.cf"));
        let text = text.replace("{}", self.directory.to_str().unwrap());
        write_old(&file, text.as_bytes());
        format!("sqlite:{}", file.display())
    }

    fn with_query(&self, query: &str) -> String {
        self.table(&format!("dbpath = {{}}/d.db\nquery = {query}\n"))
    }

    fn run(&self, programs: &Path, words: &[&str], input: &[u8]) -> Outcome {
        let mut outcome = self.sides.run(programs, &self.directory, words, input);
        outcome.stderr = outcome
            .stderr
            .split_inclusive('\n')
            .filter(|line| !line.contains("without the recommended '' quotes"))
            .collect();
        // What an error number says that has nothing to do with the error.
        if let Some(at) = outcome.stderr.find("query error: ") {
            outcome.stderr.truncate(at);
        }
        outcome
    }

    fn same(&self, words: &[&str], input: &[u8]) -> Outcome {
        let real = self.run(&self.sides.real, words, input);
        let mut ours = self.run(&self.sides.ours, words, input);
        if real.stderr.contains("fatal:") && words.contains(&"-") {
            // The reference loses what it found before.
            ours.stdout.clear();
        }
        assert_eq!(
            (shown(&real), ours.exit),
            (shown(&ours), real.exit),
            "{words:?} {}: the first is the installed one",
            input.escape_ascii()
        );
        ours
    }

    /// Both end with the same line; ours may say more before it.
    fn same_end(&self, words: &[&str], note: &str) {
        let real = self.run(&self.sides.real, words, b"");
        let ours = self.run(&self.sides.ours, words, b"");
        let last = |outcome: &Outcome| outcome.stderr.lines().last().map(str::to_owned);
        assert_eq!((last(&real), real.exit), (last(&ours), ours.exit), "{note}");
        assert!(ours.exit == Some(1) && ours.stdout.is_empty(), "{note}");
    }

    fn same_for(&self, table: &str, key: &str) -> Outcome {
        self.same(&["postmap", "-q", key, table], b"")
    }
}

fn shown(outcome: &Outcome) -> String {
    format!("{} {}", outcome.stdout.escape_ascii(), outcome.stderr)
}

/// Keys that are in the database, odd ones, and some that try to be more than a key.
const KEYS: &[u8] = b"a\nb\nnull\nempty\nmixed\ninteger\nreal\nblob\nutf8\n\xc3\x89\n\xc3\xa9\nit's\nback\\slash\n\
per%cent\ntwo words\n\"d\"\nu@d.example\nuser@sub.d.example\ncomma\n; --\nnul\n\xff\nA\nB@C\n'\n''\n\\'\n' OR '1'='1\n\
x' UNION SELECT v FROM n --\n'; DROP TABLE t; --\n1 OR 1=1\nid\n%\n%%\n%s\n_\n?1\n:a\n$x\n@a\n@\na@\nnosuch\n";

#[test]
fn queries_of_all_kinds() {
    let Some(place) = Place::new() else { return };
    let queries = [
        "SELECT v FROM t WHERE k='%s'",
        "SELECT v FROM t WHERE k = '%s' AND typeof(v) != 'blob' ORDER BY v;",
        "SELECT v, k FROM t WHERE k='%u' OR k='%d'",
        "SELECT v FROM t WHERE k LIKE '%s' AND typeof(v) = 'text'",
        "SELECT v FROM t WHERE k GLOB '%u*' AND typeof(v) = 'text'",
        "SELECT '%s'",
        "SELECT '%u''%%' || '-%d-%1-%2'",
        "SELECT typeof('%s'), 1",
        "SELECT v FROM n WHERE id = '%s'",
        "SELECT v FROM n WHERE v = \"%s\"",
        "SELECT \"%s\" FROM n",
        "SELECT v FROM n WHERE id = %s",
        "SELECT x'%s'",
        "SELECT 1 AS '%s'",
        "SELECT v FROM '%s'",
        "SELECT v FROM t WHERE k='%s'; SELECT 'second'",
        "SELECT v FROM t WHERE k='%s'; SELEC",
        "SELECT v FROM t /* '%s' */ WHERE k = 'a'",
        "SELECT ?1, '%s'",
        "SELECT 'x' '%s'",
        "SELECT 'constant'",
        "SELECT NULL UNION ALL SELECT '%s' UNION ALL SELECT ''",
        "SELECT v FROM t WHERE k IN ('%s', '%S', 'a') LIMIT '2'",
        "SELECT v FROM n LIMIT '%s'",
        "VALUES ('%s'), (2)",
        "PRAGMA user_version",
        "-- nothing",
        ";",
        "SELEC '%s'",
        "SELECT v FROM nosuch WHERE k='%s'",
        "SELECT abs(-9223372036854775808), '%s'",
        "SELECT 1 UNION ALL SELECT abs(-9223372036854775808)",
        "SELECT load_extension('%s')",
        "SELECT '%s",
        "SELECT v FROM t WHERE k=' %s '",
    ];
    // A failed command takes a second to end, and does nothing meanwhile.
    thread::scope(|scope| {
        for query in queries {
            let place = &place;
            scope.spawn(move || {
                let table = place.with_query(query);
                place.same(&["postmap", "-q", "-", &table], KEYS);
            });
        }
    });
    let table = place.with_query(queries[0]);
    assert_eq!(place.same_for(&table, "bad").exit, Some(1));
    // Nothing was changed by any of them.
    let table = place.with_query(queries[0]);
    assert_eq!(place.same_for(&table, "a").stdout, b"found\n");
}

#[test]
fn results_and_limits() {
    let Some(place) = Place::new() else { return };
    let rests = [
        "result_format = <%s>",
        "result_format = %u/%d/%U",
        "result_format = %S=%s\nexpansion_limit = 2",
        "expansion_limit = 1",
        "expansion_limit = 3",
        "expansion_limit = -1",
        "domain = d.example",
        "domain = !d.example static:all",
        "domain = inline:{d.example=x}",
        "domain = fail:x",
    ];
    let keys = [
        "a",
        "b",
        "mixed",
        "u@d.example",
        "user@sub.d.example",
        "U@D.EXAMPLE",
        "it's",
        "",
    ];
    thread::scope(|scope| {
        for rest in rests {
            let place = &place;
            scope.spawn(move || {
                let table = place.table(&format!(
                    "dbpath = {{}}/d.db\nquery = SELECT v FROM t WHERE k='%s'\n{rest}\n"
                ));
                for key in keys {
                    place.same_for(&table, key);
                }
            });
        }
    });
    // The older keys make the same query.
    let table = place.table(
        "dbpath = {}/d.db\ntable = t\nselect_field = v\nwhere_field = k\nadditional_conditions = AND v != 'second'\n",
    );
    assert_eq!(place.same_for(&table, "b").stdout, b"first,third\n");
}

#[test]
fn faults_in_the_configuration() {
    let Some(place) = Place::new() else { return };
    let faults = [
        "",
        "dbpath =\nquery = x\n",
        "dbpath = {}/d.db\n",
        "dbpath = {}/d.db\ntable = t\n",
        "dbpath = {}/d.db\nquery = SELECT '%x'\n",
        "dbpath = {}/d.db\nquery = SELECT '%s'\nresult_format =\n",
        "dbpath = {}/d.db\nquery = SELECT '%s'\nresult_format = %\n",
        "dbpath = {}/d.db\nquery = SELECT '%s'\nexpansion_limit = 1x\n",
        "dbpath = {}/d.db\nquery = SELECT '%s'\ndomain = /no/such/file\n",
        "dbpath = {}/d.db\nquery\n",
        "dbpath = {}/no/d.db\nquery = SELECT '%s'\n",
        "dbpath = {}\nquery = SELECT '%s'\n",
    ];
    thread::scope(|scope| {
        for text in faults {
            let place = &place;
            scope.spawn(move || {
                let table = place.table(text);
                place.same_end(&["postmap", "-q", "k", &table], text);
            });
        }
    });
    let table = place.with_query("SELECT '%s'");
    place.same(&["postmap", "-i", &table], b"a b\n");
    place.same(&["postmap", "-d", "k", &table], b"");
    place.same(&["postmap", "-s", &table], b"");
    place.same(&["postmap", &table], b"");
    place.same_for("sqlite:/no/such/file", "k");
    place.same_for("sqlite:", "k");
}

#[test]
fn parameters_in_main_cf() {
    let Some(place) = Place::new() else { return };
    let file = place.sides.root().join("cfg/main.cf");
    let mut text = fs::read(&file).unwrap();
    let more = format!(
        "where = {0}\nlegacy_dbpath = $where/d.db\nlegacy_query = SELECT v || '$$' FROM t WHERE k='%s'\n",
        place.directory.display()
    );
    text.extend(more.as_bytes());
    write_old(&file, &text);
    assert_eq!(place.same_for("sqlite:legacy", "a").stdout, b"found$\n");
    let words = ["postmap", "-q", "a", "sqlite:nosuch"];
    place.same_end(&words, "main.cf");
}

#[test]
fn random_keys() {
    let Some(place) = Place::new() else { return };
    let mut random = Random(0x5eed_0015);
    let pieces: [&[u8]; 20] = [
        b"a",
        b"B",
        b"'",
        b"''",
        b"\"",
        b"\\",
        b"%",
        b"%s",
        b"@",
        b".",
        b" ",
        b"--",
        b"/*",
        b";",
        b"\xc3\xa9",
        b"\xe1\xba\x9e",
        b"\xff",
        b"\xc0\xa7",
        b"OR 1",
        b"\x01",
    ];
    let mut keys = Vec::new();
    let mut inserts = String::new();
    for number in 0..300 {
        let count = 1 + random.below(5);
        let key = random.join(&pieces, count);
        if number % 3 == 0 {
            let hex: String = key.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            writeln!(
                inserts,
                "INSERT INTO t VALUES (CAST(x'{hex}' AS TEXT), 'r{number}');"
            )
            .unwrap();
        }
        keys.extend(key);
        keys.push(b'\n');
    }
    place.sql("d.db", &inserts);
    for query in [
        "SELECT v FROM t WHERE k='%s'",
        "SELECT v FROM t WHERE k='%u' AND typeof(v)='text'",
        "SELECT '%s', v FROM t LIMIT 1",
    ] {
        let table = place.with_query(query);
        for options in ["", "-f", "-u", "-fu"] {
            if options.is_empty() {
                place.same(&["postmap", "-q", "-", &table], &keys);
            } else {
                place.same(&["postmap", options, "-q", "-", &table], &keys);
            }
        }
    }
}

/// sqlite3 with a lock on the database.
struct Locked(Child);

impl Locked {
    fn new(place: &Place) -> Self {
        let mut child = Command::new("sqlite3")
            .arg(place.directory.join("d.db"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let words = b"BEGIN EXCLUSIVE;\nSELECT 'locked';\n";
        child.stdin.as_mut().unwrap().write_all(words).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "locked\n");
        Self(child)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn databases_that_cannot_be_read() {
    let Some(place) = Place::new() else { return };
    let text = "dbpath = {}/d.db\nquery = SELECT v FROM t WHERE k='%s'\nbusy_timeout = 50ms\n";
    let table = place.table(text);
    {
        let _locked = Locked::new(&place);
        let outcome = place.same_for(&table, "a");
        assert!(outcome.stderr.contains("database is locked"), "{outcome:?}");
    }
    assert_eq!(place.same_for(&table, "a").stdout, b"found\n");
    let file = place.directory.join("d.db");
    let whole = fs::read(&file).unwrap();
    for broken in [
        &b""[..],
        b"this is no database, and long enough to be told from one that is not there yet",
        &whole[..whole.len() / 2],
        &whole[..50],
    ] {
        fs::write(&file, broken).unwrap();
        let outcome = place.same_for(&table, "a");
        assert_eq!(outcome.exit, Some(1), "{outcome:?}");
    }
}

/// The reference would run for ever.
#[test]
fn a_query_without_end_ends() {
    let Some(place) = Place::new() else { return };
    let table = place.table(
        "dbpath = {}/d.db\nanswer_timeout = 100ms\nquery = WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) \
         SELECT count(*) FROM c WHERE x || '%s' = ''\n",
    );
    let outcome = place.run(&place.sides.ours, &["postmap", "-q", "a", &table], b"");
    assert_eq!(outcome.exit, Some(1));
    assert!(outcome.stderr.contains("interrupted"), "{outcome:?}");
}
