//! The installed postmap against ours, on `pgsql:` tables: one PostgreSQL for both. Then what only ours is asked, because
//! the reference waits for ever, forgets its server for a minute, or has no pool.
//!
//! Left out is what ours does differently on purpose: passwords in URIs are not logged, a line before the reference's says
//! which key of a configuration is wrong, and TLS has another library's words.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::path::Path;
use std::thread;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_interop::servers::postgresql::{PASSWORD, PostgreSql};
use postkeep_interop::servers::told;

const TABLE: &str = "CREATE TABLE t (k text, v text, w text);\
    INSERT INTO t VALUES ('a', '1', NULL), ('b', 'x', 'X'), ('b', 'y', ''), ('n', NULL, NULL), ('e', '', ''), \
    ('u@d.example', 'u@v', 'z'), ('\u{c3}\u{a9}', 'latin', NULL), ('\u{e9}', 'utf', NULL), ('out', '\u{e9}', NULL), \
    ('euro', '\u{20ac}', NULL), ('comma', 'p,q', 'r s'), ('many', 'm', 'm');\
    INSERT INTO t SELECT 'thousand', i::text, NULL FROM generate_series(1, 1000) AS i;\
    CREATE TABLE u AS SELECT * FROM t WHERE k <> 'thousand';\
    CREATE FUNCTION upper_of(text) RETURNS SETOF text LANGUAGE sql AS $$ SELECT upper($1) WHERE $1 <> 'none' $$;\
    CREATE ROLE only_tls LOGIN PASSWORD 'secret'; CREATE ROLE only_plain LOGIN PASSWORD 'secret';\
    CREATE ROLE clear LOGIN PASSWORD 'secret'; SET password_encryption = md5;\
    CREATE ROLE hashed LOGIN PASSWORD 'secret'";

/// A server and the two programs; `None`, after saying SKIP, where something is missing.
struct Both {
    sides: Sides,
    server: PostgreSql,
}

impl Both {
    fn start(tls: bool) -> Option<Self> {
        let sides = Sides::new()?;
        let server = if tls {
            PostgreSql::with_tls(|made| &made.server, &[])?
        } else {
            PostgreSql::start(&[])?
        };
        server.execute("mail", TABLE);
        Some(Self { sides, server })
    }

    /// The keys to get in.
    fn login(&self) -> String {
        format!(
            "hosts = 127.0.0.1:{}\nuser = postgres\npassword = {PASSWORD}\ndbname = mail\n",
            self.server.port
        )
    }

    /// A table with this file, and the login.
    fn table(&self, name: &str, text: &str) -> String {
        table(&self.sides, name, &format!("{}{text}", self.login()))
    }
}

fn table(sides: &Sides, name: &str, text: &str) -> String {
    let file = sides.root().join(format!("{name}.cf"));
    write_old(&file, text.as_bytes());
    format!("pgsql:{}", file.display())
}

/// Without what ours says beside the reference, and passwords that the reference logs.
fn comparable(outcome: &Outcome) -> (Option<i32>, String, Vec<String>) {
    let (exit, stdout, lines) = told(outcome);
    let lines = lines
        .into_iter()
        .filter(|line| !line.contains(": expecting "));
    // What was found before a failure is lost in the reference's buffer.
    let stdout = if exit == Some(0) { stdout } else { Vec::new() };
    let lines = lines.map(|line| {
        line.replace(":secret@", ":***@")
            .replace(":wrong@", ":***@")
    });
    (exit, stdout.escape_ascii().to_string(), lines.collect())
}

/// Asks both for the keys, one a line, with each table; what they tell must be the same.
fn compare(sides: &Sides, tables: &[String], options: &str, keys: &[u8]) {
    for some in tables.chunks(24) {
        let differences: Vec<String> = thread::scope(|scope| {
            let runs: Vec<_> = some
                .iter()
                .map(|table| scope.spawn(|| difference(sides, table, options, keys)))
                .collect();
            runs.into_iter()
                .filter_map(|run| run.join().unwrap())
                .collect()
        });
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}

fn difference(sides: &Sides, table: &str, options: &str, keys: &[u8]) -> Option<String> {
    let mut words = vec!["postmap"];
    if !options.is_empty() {
        words.push(options);
    }
    words.extend(["-q", "-", table]);
    let run = |programs| comparable(&sides.run(programs, sides.root(), &words, keys));
    // A failed command takes a second to end, and does nothing meanwhile.
    let (real, ours) = thread::scope(|scope| {
        let real = scope.spawn(|| run(&sides.real));
        let ours = run(&sides.ours);
        (real.join().unwrap(), ours)
    });
    let file = fs::read_to_string(table.trim_start_matches("pgsql:")).unwrap_or_default();
    (real != ours).then(|| {
        format!(
            "{file}{options} {}\nreal: {real:#?}\nours: {ours:#?}",
            keys.escape_ascii()
        )
    })
}

/// What ours tells.
fn ours(sides: &Sides, table: &str, key: &str) -> (Option<i32>, String, Vec<String>) {
    let words = ["postmap", "-q", key, table];
    let (exit, stdout, lines) = told(&sides.run(&sides.ours, sides.root(), &words, b""));
    (exit, stdout.escape_ascii().to_string(), lines)
}

fn add_to_main_cf(sides: &Sides, text: &str) {
    let file = sides.root().join("cfg/main.cf");
    let mut all = fs::read(&file).unwrap();
    all.extend_from_slice(text.as_bytes());
    write_old(&file, &all);
}

const KEYS: &[u8] = b"a\nb\nn\ne\nzz\nu@d.example\n@d.example\nu@\nB\nA\ncomma\n\xc3\xa9\n\xff\n%\n%s\n' OR '1'='1\n\
    a' -- \n\\\n\\'\na\\' OR 1=1 --\n\"a\"\n$1\na;b\n a\na \n'; DROP TABLE t; --\nmany\n";

#[test]
fn answers_of_queries() {
    let Some(both) = Both::start(false) else {
        return;
    };
    let query = "query = SELECT v FROM t WHERE k = '%s'\n";
    let texts = [
        query.to_owned(),
        "query = SELECT v, w FROM t WHERE k = '%s'\n".to_owned(),
        "query = SELECT w FROM t WHERE k = '%s' ORDER BY v\n".to_owned(),
        "query = SELECT v FROM t WHERE k LIKE '%s'\n".to_owned(),
        "query = SELECT '%s', '%u', '%d', '%1', '%2', '%%'\n".to_owned(),
        "query = SELECT 1, NULL, 2.50, true, 'x' WHERE '%u' <> ''\n".to_owned(),
        "query = SELECT count(*) FROM t WHERE '%s' <> ''\n".to_owned(),
        "query = UPDATE u SET v = v WHERE k = '%s'\n".to_owned(),
        "query = UPDATE u SET v = v WHERE k = '%s' RETURNING v\n".to_owned(),
        "query = SELECT 1; SELECT v FROM t WHERE k = '%s'\n".to_owned(),
        "query = SELECT v FROM t WHERE k = '%s'; UPDATE u SET v = v WHERE false\n".to_owned(),
        "query = SELECT\n".to_owned(),
        "query = SET application_name = 'x'; SELECT current_setting('application_name'), '%s'\n".to_owned(),
        "query = BEGIN; SELECT '%s'; COMMIT\n".to_owned(),
        "query = SET escape_string_warning = off; SET standard_conforming_strings = off; SELECT '%s'\n".to_owned(),
        "select_function = upper_of\n".to_owned(),
        "table = t\nselect_field = v\nwhere_field = k\n".to_owned(),
        "table = t\nselect_field = v, w\nwhere_field = k\nadditional_conditions = AND v <> 'x'\n".to_owned(),
        format!("{query}result_format = [%s]\n"),
        format!("{query}result_format = %u-%d-%U-%D-%1\n"),
        format!("{query}result_format = %S\n"),
        format!("{query}domain = d.example\n"),
        format!("{query}domain = static:all\n"),
        format!("{query}expansion_limit = 2\n"),
        format!("{query}expansion_limit = 1\nresult_format = %u\n"),
    ];
    let tables: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| both.table(&format!("q{number}"), text))
        .collect();
    compare(&both.sides, &tables, "", KEYS);
    for options in ["-f", "-u"] {
        compare(&both.sides, &tables[..1], options, KEYS);
    }
    // Ends with the first key that cannot be answered.
    compare(&both.sides, &tables, "", b"thousand\nout\n");
    compare(&both.sides, &tables[..2], "", b"euro\n");
    assert_eq!(
        both.server.execute("mail", "SELECT count(*) > 1000 FROM t"),
        "t\n"
    );
}

#[test]
fn any_key_comes_back_as_it_went() {
    let Some(both) = Both::start(false) else {
        return;
    };
    let tables = [
        both.table("echo", "query = SELECT '%s'\n"),
        both.table("parts", "query = SELECT 'a' || '%u' || '%d', '%s' = '%s'\n"),
    ];
    let mut random = Random(0x5eed_0013);
    let pieces: [&[u8]; 16] = [
        b"'",
        b"''",
        b"\\",
        b"\\'",
        b"%",
        b"%s",
        b"\"",
        b";",
        b"--",
        b"@",
        b".",
        b"\xc3\xa9",
        b"\xff",
        b"\xe0'",
        b"$$",
        b" x",
    ];
    let mut keys = Vec::new();
    for _ in 0..300 {
        let count = 1 + random.below(6);
        keys.extend(random.join(&pieces, count));
        keys.push(b'\n');
        keys.extend(random.key());
        keys.push(b'\n');
    }
    for options in ["", "-f", "-u"] {
        compare(&both.sides, &tables, options, &keys);
    }
    // The same without a check of UTF-8 before the table: the client encoding is LATIN1, which has all bytes.
    add_to_main_cf(&both.sides, "smtputf8_enable = no\n");
    compare(&both.sides, &tables, "", &keys);
}

#[test]
fn statements_that_are_refused() {
    let Some(both) = Both::start(false) else {
        return;
    };
    let texts = [
        "SELEC v FROM t WHERE k = '%s'",
        "SELECT v FROM nosuch WHERE k = '%s' and some long text that goes on and on and on beyond the width of a line",
        "SELECT v FROM t WHERE k = '%s' and v in ('a', 'b', 'c', 'd', 'e', 'f', 'g') and w in ('a', 'b', 'c') and nosuch = 1 and w <> 'x'",
        "SELECT v FROM t\n  WHERE k = '%s'\n  AND nosuch = 1",
        "SELECT '\u{e9}\u{e9}', nosuch",
        "SELECT 1; SELECT nosuch",
        "COPY t TO STDOUT",
        "COPY t FROM STDIN",
        ";",
        "SELECT 1; ;",
        "SELECT 1/0",
        "SELECT v FROM t WHERE k = '%s' AND 1/(length(v)-1) = 1",
        "DO $$ begin raise exception 'x' using detail='dd', hint='hh'; end $$",
        "DO $$ begin execute 'SELECT nosuch'; end $$",
        "DO $$ begin raise notice 'x'; raise sqlstate '57P03'; end $$",
        "DO $$ begin raise exception using message = E'one\\ntwo\\tthree'; end $$",
        "SELECT '%s",
    ];
    let mut tables: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| both.table(&format!("s{number}"), &format!("query = {text}\n")))
        .collect();
    // What the reference's library prints besides is not the reference's.
    tables.remove(14);
    compare(&both.sides, &tables, "", b"a\n");
}

#[test]
fn faults_of_configurations() {
    let Some(both) = Both::start(false) else {
        return;
    };
    let sides = &both.sides;
    let texts = [
        "",
        "dbname =\n",
        "dbname = d\n",
        "dbname = d\ntable = t\n",
        "dbname = d\ntable = t\nselect_field = f\n",
        "dbname = d\nquery =\n",
        "dbname = d\nquery = %x\n",
        "dbname = d\nquery = q%\n",
        "dbname = d\nquery = q\nresult_format =\n",
        "dbname = d\nquery = q\nresult_format = %0\n",
        "dbname = d\nquery = q\nexpansion_limit = x\n",
        "dbname = d\nexpansion_limit = x\n",
        "dbname = d\nquery = %x\nexpansion_limit = x\nresult_format = %y\n",
        "dbname = d\nquery = q\nresult_format = %y\ndomain = nosuch:x\n",
        "dbname = d\nquery = q\nresult_format = %x\nquery = %y\n",
        "dbname = d\nquery = q\ndomain = /no/such/file\n",
        "dbname = d\nquery = q\nno assignment\n",
        "dbname = d\nresult_format =\nexpansion_limit = x\n",
        "query = q\nresult_format =\nexpansion_limit = x\n",
    ];
    let tables: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| table(sides, &format!("c{number}"), text))
        .chain(["pgsql:/no/such/file".to_owned(), "pgsql:nosuch".to_owned()])
        .collect();
    compare(sides, &tables, "", b"a\n");
    let good = both.table("good", "query = SELECT '%s'\n");
    for words in [
        ["postmap", "-i", &good],
        ["postmap", "-s", &good],
        ["postmap", "-v", "pgsql:"],
    ] {
        let words = if words[1] == "-v" {
            vec![words[0], "-q", "a", words[2]]
        } else {
            words.to_vec()
        };
        sides.compare(
            [sides.root(), sides.root()],
            &words,
            b"a b\n",
            false,
            "open",
        );
    }
    let delete = ["postmap", "-d", "a", &good];
    sides.compare([sides.root(), sides.root()], &delete, b"", false, "delete");
    let make = ["postmap", &good];
    sides.compare([sides.root(), sides.root()], &make, b"", false, "make");
    // In main.cf.
    let text = both.login().replace('\n', "\nlegacy_");
    add_to_main_cf(
        sides,
        &format!(
            "quoted = v\nlegacy_{text}query = SELECT $quoted, '%s', '$$' FROM t WHERE k = '%s'\n"
        ),
    );
    compare(sides, &["pgsql:legacy".to_owned()], "", KEYS);
}

#[test]
fn servers_and_who_asks_them() {
    for tls in [false, true] {
        let Some(both) = Both::start(tls) else { return };
        let port = both.server.port;
        let directory = both.server.directory.display();
        let hosts = [
            "127.0.0.1:1".to_owned(),
            "localhost:1".to_owned(),
            "inet:127.0.0.1:1".to_owned(),
            "unix:/no/such".to_owned(),
            "/no/such".to_owned(),
            "unix:".to_owned(),
            "localhost:x".to_owned(),
            "localhost:99999".to_owned(),
            "localhost:-1".to_owned(),
            "h.invalid".to_owned(),
            "h.invalid:".to_owned(),
            "::1:1".to_owned(),
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            format!("unix:/no/such,127.0.0.1:{port}"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail"),
            format!("postgresql://postgres:wrong@127.0.0.1:{port}/mail"),
            format!("postgresql://postgres@127.0.0.1:{port}/mail"),
            format!("postgresql://postgres:secret@localhost:{port}/nosuch"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?sslmode=disable"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?sslmode=allow"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?sslmode=prefer"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?sslmode=require"),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?sslmode=bogus"),
            format!("postgresql://postgres@127.0.0.1:{port}/mail?password=secret"),
            format!("postgresql://postgres:secret@127.0.0.1:1%2C127.0.0.1:{port}/mail"),
            format!("postgresql://only_tls:secret@127.0.0.1:{port}/mail"),
            format!("postgresql://only_plain:secret@127.0.0.1:{port}/mail"),
            format!("postgresql://only_plain:secret@127.0.0.1:{port}/mail?sslmode=allow"),
            format!("postgresql://only_tls:secret@127.0.0.1:{port}/mail?sslmode=disable"),
            format!("postgresql://hashed:secret@127.0.0.1:{port}/mail"),
            format!("postgresql://hashed:wrong@127.0.0.1:{port}/mail"),
            format!("postgresql://clear:secret@127.0.0.1:{port}/mail"),
            format!("postgresql://clear:wrong@127.0.0.1:{port}/mail"),
            format!("postgresql://nobody:secret@127.0.0.1:{port}/mail"),
            format!("postgresql:///mail?host=/{directory}&port={port}&user=postgres"),
            format!(
                "postgresql://postgres:secret@127.0.0.1:{port}/mail?target_session_attrs=read-only"
            ),
            format!(
                "postgresql://postgres:secret@127.0.0.1:{port}/mail?target_session_attrs=read-write"
            ),
            format!(
                "postgresql://postgres:secret@127.0.0.1:{port}/mail?target_session_attrs=standby"
            ),
            format!(
                "postgresql://postgres:secret@127.0.0.1:{port}/mail?target_session_attrs=prefer-standby"
            ),
            format!(
                "postgresql://postgres:secret@127.0.0.1:{port}/mail?application_name=me&options=-c%20search_path%3Dx"
            ),
            format!("postgresql://postgres:secret@127.0.0.1:{port}/mail?options=-c%20nosuch%3Dx"),
            format!("postgresql://127.0.0.1:{port}"),
            "postgresql://h.invalid/d?bogus=1".to_owned(),
            "postgresql://h.invalid:x/d".to_owned(),
            "postgresql://u:secret@h:1/d?a".to_owned(),
            "postgresql://u%zz@h/d".to_owned(),
            "postgresql://[::1".to_owned(),
            "postgresql://[::1]:1/".to_owned(),
            "postgresql:x".to_owned(),
            "postgresql:".to_owned(),
            "postgres://u@h:5433/db".to_owned(),
        ];
        let query = "query = SELECT '%s', current_user, ssl, current_setting('application_name'), \
                     current_setting('search_path') FROM pg_stat_ssl WHERE pid = pg_backend_pid()\n";
        let mut tables = Vec::new();
        for (number, hosts) in hosts.iter().enumerate() {
            let text = format!(
                "hosts = {hosts}\nuser = postgres\npassword = {PASSWORD}\ndbname = mail\n{query}"
            );
            tables.push(table(&both.sides, &format!("h{number}"), &text));
        }
        let logins = [
            "user = postgres\npassword = wrong\ndbname = mail\n".to_owned(),
            "user = postgres\ndbname = mail\n".to_owned(),
            "user = postgres\npassword = secret\ndbname = nosuch\n".to_owned(),
            "password = secret\ndbname = mail\n".to_owned(),
            "user = it's\npassword = it's\ndbname = \"mail\n".to_owned(),
            "user = postgres\npassword = secret\ndbname = dbname=mail sslmode=disable application_name='a b'\n".to_owned(),
            format!("user = postgres\npassword = secret\ndbname = postgresql://h.invalid:{port}/mail?application_name=z\n"),
            "user = postgres\npassword = secret\ndbname = mail=x\n".to_owned(),
            "user = only_tls\npassword = secret\ndbname = mail\n".to_owned(),
            "user = only_plain\npassword = secret\ndbname = mail\n".to_owned(),
        ];
        for (number, login) in logins.iter().enumerate() {
            let text = format!("hosts = 127.0.0.1:{port}\n{login}{query}");
            tables.push(table(&both.sides, &format!("l{number}"), &text));
        }
        let socket = format!(
            "hosts = {directory}\nuser = postgres\ndbname = dbname=mail port={port}\n{query}"
        );
        tables.push(table(&both.sides, "socket", &socket));
        compare(&both.sides, &tables, "", b"a\n");
    }
}

#[test]
fn certificates_are_checked_as_asked() {
    let Some(both) = Both::start(true) else {
        return;
    };
    let Some(misnamed) = PostgreSql::with_tls(|made| &made.misnamed, &[]) else {
        return;
    };
    misnamed.execute("mail", "CREATE TABLE t (k text)");
    let query = "query = SELECT ssl, '%s' FROM pg_stat_ssl WHERE pid = pg_backend_pid()\n";
    let mut cases = Vec::new();
    for (server, named) in [(&both.server, true), (&misnamed, false)] {
        let made = &server.certificates;
        let path = |file: &Path| file.display().to_string();
        for mode in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
            for (roots, trusted) in [
                (path(&made.authority), true),
                (path(&made.stranger), false),
                ("/no/such".to_owned(), false),
            ] {
                let good = (named && trusted) || mode != "verify-full";
                cases.push((server.port, mode, roots, good));
            }
        }
    }
    thread::scope(|scope| {
        for (number, case) in cases.iter().enumerate() {
            let both = &both;
            scope.spawn(move || {
                let (port, mode, roots, good) = case;
                let host = ["localhost", "127.0.0.1"][number % 2];
                let uri = format!(
                    "hosts = postgresql://postgres:secret@{host}:{port}/mail?sslmode={mode}&sslrootcert={roots}\n\
                     dbname = x\n{query}"
                );
                let uri = table(&both.sides, &format!("uri{number}"), &uri);
                let words = ["postmap", "-q", "a", &uri];
                let run = |programs| comparable(&both.sides.run(programs, both.sides.root(), &words, b""));
                let (real, mine) = (run(&both.sides.real), run(&both.sides.ours));
                let note = format!("{case:?} {host}\n{real:#?}\n{mine:#?}");
                assert_eq!((real.0, &real.1), (mine.0, &mine.1), "{note}");
                assert!(*good || mine.0 == Some(1), "{note}");
                let other_words = "does not match host name";
                if real.2.iter().any(|line| line.contains(other_words)) {
                    assert!(mine.2[0].contains(other_words), "{note}");
                } else {
                    assert_eq!(real.2, mine.2, "{note}");
                }
                // The same with our keys.
                let keys = format!(
                    "hosts = {host}:{port}\nuser = postgres\npassword = secret\ndbname = mail\nsslmode = {mode}\n\
                     sslrootcert = {roots}\n{query}"
                );
                let keys = table(&both.sides, &format!("keys{number}"), &keys);
                let told = ours(&both.sides, &keys, "a");
                assert_eq!((told.0, &told.1), (mine.0, &mine.1), "{note}");
            });
        }
    });
    // Who is trusted by the system did not sign this.
    let text = format!("{}sslmode = verify-full\n{query}", both.login());
    let told = ours(&both.sides, &table(&both.sides, "system", &text), "a");
    assert_eq!(told.0, Some(1));
    assert!(
        told.2[0].ends_with("SSL error: certificate verify failed?"),
        "{told:?}"
    );
}
