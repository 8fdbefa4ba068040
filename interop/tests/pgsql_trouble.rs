//! What `pgsql:` tables do when a server stops, hangs, lies, or says too much, and what they leave in it.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::Random;
use postkeep_interop::servers::Server;
use postkeep_interop::servers::postgresql::{PASSWORD, PostgreSql};
use postkeep_table::{Access, Flags, LookupError, Opener as _, Outcome, Table, TableName};
use postkeep_tables::{Context, Registry};
use postkeep_testkit::Scratch;

/// Longer than any limit here, shorter than those that nobody set.
const SOON: Duration = Duration::from_secs(20);

fn table(scratch: &Scratch, text: &str) -> Arc<dyn Table> {
    let file = scratch.path().join("t.cf");
    fs::write(&file, text).unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(std::time::SystemTime::now() - Duration::from_hours(1))
        .unwrap();
    let name = TableName::parse(format!("pgsql:{}", file.display()).as_bytes()).unwrap();
    let registry = Registry::new(Context::default());
    registry.open(&name, Access::Read, Flags::empty()).unwrap()
}

/// A table of this server; no server rests, and the breaker is off.
fn of(server: &PostgreSql, text: &str) -> Arc<dyn Table> {
    let login = format!(
        "hosts = 127.0.0.1:{}\nuser = postgres\npassword = {PASSWORD}\ndbname = mail\nencoding = UTF8\n\
         retry_interval = 0\nbreaker_failures = 0\n",
        server.port
    );
    table(&server.scratch, &(login + text))
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Found(String),
    Absent,
    Retry,
}

fn ask(table: &Arc<dyn Table>, key: &[u8]) -> Answer {
    let mut value = Vec::new();
    match table.lookup(Flags::empty(), key, &mut value) {
        Ok(Outcome::Done) => Answer::Found(value.escape_ascii().to_string()),
        Ok(_) => Answer::Absent,
        Err(LookupError::Retry(_)) => Answer::Retry,
        Err(error) => panic!("{error}"),
    }
}

fn found(value: &str) -> Answer {
    Answer::Found(value.to_owned())
}

/// Asks for what is there.
fn value(table: &Arc<dyn Table>, key: &[u8]) -> String {
    match ask(table, key) {
        Answer::Found(value) => value,
        other => panic!("{other:?}"),
    }
}

/// What both ends of a conversation say, in turns.
type Script = Vec<Vec<u8>>;

#[test]
fn a_server_that_stops_and_starts() {
    let Some(mut server) = PostgreSql::start(&[]) else {
        return;
    };
    let table = of(&server, "query = SELECT '%s'\n");
    let slow = of(&server, "query = SELECT pg_sleep(300), '%s'\n");
    server.stop();
    assert_eq!(ask(&table, b"before"), Answer::Retry);
    server.restart();
    assert_eq!(ask(&table, b"a"), found("a"));
    // The connection is dead when it is needed.
    server.stop();
    server.restart();
    assert_eq!(ask(&table, b"b"), found("b"));
    server.execute(
        "mail",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'mail'",
    );
    assert_eq!(ask(&table, b"c"), found("c"));
    // And in the middle of an answer.
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&slow, b"d"));
        let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%' AND pid <> pg_backend_pid()";
        while server.execute("mail", active) != "1\n" {
            thread::sleep(Duration::from_millis(10));
        }
        server.stop();
        assert_eq!(asked.join().unwrap(), Answer::Retry);
    });
    assert_eq!(ask(&table, b"e"), Answer::Retry);
    server.restart();
    assert_eq!(ask(&table, b"e"), found("e"));
}

#[test]
fn a_server_that_hangs() {
    let Some(server) = PostgreSql::start(&[]) else {
        return;
    };
    let limits = "answer_timeout = 2s\nconnect_timeout = 2s\nquery = ";
    let table = of(
        &server,
        &format!("{limits}SELECT '%s', pg_sleep(CASE '%s' WHEN 'slow' THEN 60 ELSE 0 END)\n"),
    );
    assert_eq!(ask(&table, b"a"), found("a"));
    let begun = Instant::now();
    assert_eq!(ask(&table, b"slow"), Answer::Retry);
    assert_eq!(ask(&table, b"b"), found("b"));
    // Takes no new connections; the one that is there is served by a process of its own.
    let other = of(
        &server,
        &format!("{limits}SELECT current_user\npool_max_connections = 2\n"),
    );
    server.process().suspend();
    assert_eq!(ask(&other, b"a"), Answer::Retry);
    assert_eq!(ask(&table, b"c"), found("c"));
    server.process().resume();
    assert_eq!(ask(&other, b"a"), found("postgres"));
    assert!(begun.elapsed() < SOON);
}

#[test]
fn answers_that_are_too_long() {
    let Some(server) = PostgreSql::start(&[]) else {
        return;
    };
    let table = of(&server, "query = SELECT repeat('x', %s)\n");
    assert_eq!(value(&table, b"1000000").len(), 1_000_000);
    for long in [&b"1100000"[..], b"5000000", b"200000000"] {
        assert_eq!(ask(&table, long), Answer::Retry);
    }
    assert_eq!(ask(&table, b"2"), found("xx"));
    let rows = of(&server, "query = SELECT 1 FROM generate_series(1, %s)\n");
    assert_eq!(ask(&rows, b"3"), found("1,1,1"));
    assert_eq!(ask(&rows, b"10000000"), Answer::Retry);
    let notices = of(
        &server,
        "query = DO $$ begin for i in 1..%s loop raise notice '1234567890'; end loop; end $$\n",
    );
    assert_eq!(ask(&notices, b"10"), Answer::Absent);
    assert_eq!(ask(&notices, b"100000"), Answer::Retry);
}

#[test]
fn connections_are_shared_and_leave_nothing() {
    let Some(server) = PostgreSql::start(&[]) else {
        return;
    };
    let pool = "pool_max_connections = 4\nquery = ";
    let pid = of(&server, &format!("{pool}SELECT pg_backend_pid()\n"));
    let same = of(
        &server,
        &format!("{pool}SELECT pg_backend_pid(), '%s'\nresult_format = %s\n"),
    );
    let first = value(&pid, b"a");
    assert_eq!(ask(&pid, b"b"), found(&first));
    assert_eq!(value(&same, b"c"), format!("{first},c"));
    // A refusal does not cost the connection.
    let wrong = of(&server, &format!("{pool}SELECT nosuch, '%s'\n"));
    assert_eq!(ask(&wrong, b"d"), Answer::Retry);
    assert_eq!(ask(&pid, b"e"), found(&first));
    // A statement that changes the session, and one that leaves a transaction open, do.
    for text in [
        "SET work_mem = '1MB'; SELECT pg_backend_pid()",
        "BEGIN; SELECT pg_backend_pid()",
    ] {
        let marked = of(&server, &format!("{pool}{text}\n"));
        let used = value(&marked, b"f");
        // It ends when the server has read the goodbye, whoever asks or does not ask afterwards.
        let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {used}");
        let begun = Instant::now();
        while server.execute("mail", &alive) != "0\n" {
            assert!(begun.elapsed() < SOON, "{text}");
        }
        assert_ne!(value(&pid, b"g"), used);
    }
    let copied = of(
        &server,
        &format!("{pool}COPY (SELECT generate_series(1, 100000)) TO STDOUT\n"),
    );
    assert_eq!(ask(&copied, b"h"), Answer::Retry);
    assert!(!value(&pid, b"i").is_empty());
    // Many at once, over few connections.
    let busy = of(&server, &format!("{pool}SELECT '%s' FROM pg_sleep(0.02)\n"));
    let mut peak = 0;
    thread::scope(|scope| {
        let busy = &busy;
        let asked: Vec<_> = (0..64)
            .map(|number| scope.spawn(move || ask(busy, number.to_string().as_bytes())))
            .collect();
        let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'mail' AND pid <> pg_backend_pid()";
        for _ in 0..3 {
            peak = peak.max(server.execute("mail", count).trim().parse().unwrap());
        }
        for (number, asked) in asked.into_iter().enumerate() {
            assert_eq!(asked.join().unwrap(), found(&number.to_string()));
        }
    });
    assert!(peak <= 4, "{peak}");
    let log = server.logged();
    assert!(!log.contains("unexpected EOF"), "{log}");
}

#[test]
fn no_key_gets_out_of_its_quotes() {
    let Some(server) = PostgreSql::start(&["-c", "log_statement=all"]) else {
        return;
    };
    let mut random = Random(0x5eed_0014);
    let pieces: [&[u8]; 14] = [
        b"'",
        b"\\",
        b"\\'",
        b"''",
        b"; --",
        b"\xe0",
        b"\x81",
        b"\x81\x5c",
        b"\xbf\x27",
        b"\x8f\xa1",
        b"\xc3\xa9",
        b"\x81\x30",
        b"a",
        b"\xff",
    ];
    for strings in ["on", "off"] {
        let text = format!(
            "ALTER DATABASE mail SET standard_conforming_strings = {strings}; ALTER DATABASE mail SET escape_string_warning = off; ALTER DATABASE mail SET backslash_quote = on"
        );
        for statement in text.split("; ") {
            server.execute("mail", statement);
        }
        for encoding in [
            "UTF8",
            "LATIN1",
            "SJIS",
            "BIG5",
            "GBK",
            "UHC",
            "GB18030",
            "JOHAB",
            "EUC_JP",
            "EUC_KR",
            "EUC_TW",
            "SQL_ASCII",
            "WIN1252",
        ] {
            // A key that ends its literal would leave a fault of syntax, or make another number.
            let table = of(
                &server,
                &format!(
                    "encoding = {encoding}\nquery = SELECT 7 WHERE '%s' IS NOT NULL AND 'x' = 'x'\n"
                ),
            );
            assert_eq!(ask(&table, b"plain ' \\ key"), found("7"), "{encoding}");
            for _ in 0..40 {
                let count = 1 + random.below(5);
                let key = random.join(&pieces, count);
                let answer = ask(&table, &key);
                assert!(
                    answer == found("7") || answer == Answer::Retry,
                    "{encoding} {}",
                    key.escape_ascii()
                );
            }
        }
    }
    let log = server.logged();
    for fault in ["syntax error", "unterminated"] {
        assert!(!log.contains(fault), "{log}");
    }
    // Nothing is sent that the encoding does not have.
    let table = of(&server, "query = SELECT 'marked %s'\n");
    assert_eq!(ask(&table, b"\xff"), Answer::Retry);
    assert_eq!(ask(&table, b"\xc3"), Answer::Retry);
    assert!(!server.logged().contains("marked"));
    assert_eq!(ask(&table, "\u{e9}".as_bytes()), found(r"marked \xc3\xa9"));
    let none = of(&server, "encoding = nosuch\nquery = SELECT 1\n");
    assert_eq!(ask(&none, b"a"), Answer::Retry);
}

/// A message of the protocol.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// Reads until the client waits.
fn read_some(client: &mut TcpStream) -> bool {
    client.read(&mut [0; 4096]).is_ok_and(|length| length > 0)
}

/// Takes the start-up message, and says `greeting`; then takes questions, each answered with the next of `answers`; then
/// says nothing.
fn play(mut client: TcpStream, greeting: &[Vec<u8>], answers: &[Vec<u8>]) {
    for said in greeting.iter().chain(answers) {
        if !read_some(&mut client) || client.write_all(said).is_err() {
            return;
        }
    }
    while read_some(&mut client) {}
}

#[test]
fn servers_that_lie() {
    let scratch = Scratch::new("pgsql").unwrap();
    let ok = message(b'R', &[0, 0, 0, 0]);
    let ready = message(b'Z', b"I");
    let hello = [&ok[..], &message(b'S', b"client_encoding\0UTF8\0"), &ready].concat();
    let set = [message(b'C', b"SET\0"), ready.clone()].concat();
    let row = message(b'D', b"\0\x01\0\0\0\x01v");
    let columns = message(b'T', b"\0\0");
    let done = [message(b'C', b"SELECT 1\0"), ready.clone()].concat();
    let good = [&columns[..], &row, &done].concat();
    let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let rounds = message(b'R', b"\0\0\0\x0br=x,s=QUJD,i=4294967295");
    let endless = columns
        .iter()
        .chain(std::iter::repeat_n(&row, 300_000).flatten());
    let cases: Vec<(&str, Script, Script)> = vec![
        ("good", vec![hello.clone()], vec![set.clone(), good.clone()]),
        ("closes", vec![Vec::new()], vec![]),
        ("nothing", vec![], vec![]),
        (
            "noise",
            vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()],
            vec![],
        ),
        (
            "long greeting",
            vec![vec![b'N', 0x7f, 0xff, 0xff, 0xff]],
            vec![],
        ),
        (
            "negative length",
            vec![vec![b'R', 0xff, 0xff, 0xff, 0xff]],
            vec![],
        ),
        ("short length", vec![vec![b'R', 0, 0, 0, 3]], vec![]),
        ("ready for nobody", vec![ready.clone()], vec![]),
        ("too many rounds", vec![sasl.clone(), rounds], vec![]),
        (
            "no proof",
            vec![sasl.clone(), hello.clone()],
            vec![set.clone(), good.clone()],
        ),
        (
            "a password in clear text after all",
            vec![sasl, message(b'R', &[0, 0, 0, 3])],
            vec![],
        ),
        ("Kerberos", vec![message(b'R', &[0, 0, 0, 7])], vec![]),
        (
            "no encoding",
            vec![hello.clone()],
            vec![good.clone(), message(b'Z', b"I")],
        ),
        (
            "a row without columns",
            vec![hello.clone()],
            vec![set.clone(), [&row[..], &done].concat()],
        ),
        (
            "a value past the end",
            vec![hello.clone()],
            vec![
                set.clone(),
                [&columns[..], &message(b'D', b"\0\x01\0\0\0\x09v"), &done].concat(),
            ],
        ),
        (
            "endless rows",
            vec![hello.clone()],
            vec![set.clone(), endless.copied().collect()],
        ),
        (
            "a long row",
            vec![hello.clone()],
            vec![
                set.clone(),
                [&columns[..], &[b'D', 0x7f, 0xff, 0xff, 0xff]].concat(),
            ],
        ),
        (
            "no end",
            vec![hello.clone()],
            vec![set.clone(), [&columns[..], &row].concat()],
        ),
        (
            "an unknown message",
            vec![hello.clone()],
            vec![set.clone(), message(b'!', b"")],
        ),
        (
            "an empty error",
            vec![hello.clone()],
            vec![set.clone(), [&message(b'E', b"\0")[..], &ready].concat()],
        ),
        (
            "an error without end",
            vec![hello.clone()],
            vec![set.clone(), [&message(b'E', b"Sx")[..], &ready].concat()],
        ),
        (
            "a far place",
            vec![hello.clone()],
            vec![
                set.clone(),
                [
                    &message(b'E', b"SERROR\0P99999999999999999999\0\0")[..],
                    &ready,
                ]
                .concat(),
            ],
        ),
    ];
    thread::scope(|scope| {
        for (number, (name, greeting, answers)) in cases.into_iter().enumerate() {
            let closes = name == "closes";
            let server = Server::start(move |client| {
                if !closes {
                    play(client, &greeting, &answers);
                }
            });
            let directory = scratch.directory(&number.to_string(), 0o755).unwrap();
            let text = format!(
                "hosts = 127.0.0.1:{}\nuser = u\npassword = p\ndbname = d\nsslmode = disable\nencoding = UTF8\n\
                 connect_timeout = 2s\nanswer_timeout = 2s\nquery = SELECT '%s'\n",
                server.port
            );
            scope.spawn(move || {
                let file = directory.join("t.cf");
                fs::write(&file, text).unwrap();
                let name_of =
                    TableName::parse(format!("pgsql:{}", file.display()).as_bytes()).unwrap();
                let registry = Registry::new(Context::default());
                let table = registry
                    .open(&name_of, Access::Read, Flags::empty())
                    .unwrap();
                let begun = Instant::now();
                let answer = ask(&table, b"k");
                assert!(begun.elapsed() < SOON, "{name}");
                assert_eq!(
                    answer,
                    if name == "good" {
                        found("v")
                    } else {
                        Answer::Retry
                    },
                    "{name}"
                );
            });
        }
    });
    // Ends the first connection when it is asked.
    let count = AtomicUsize::new(0);
    let server = Server::start({
        let (hello, set, good) = (hello.clone(), set.clone(), good.clone());
        move |client| {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            let end = if first { Vec::new() } else { good.clone() };
            let mut script = vec![hello.clone(), set.clone(), end];
            for said in script.drain(..) {
                let mut client = &client;
                if !client.read(&mut [0; 4096]).is_ok_and(|length| length > 0) || said.is_empty() {
                    return;
                }
                client.write_all(&said).unwrap();
            }
            let _ = (&client).read(&mut [0; 4096]);
        }
    });
    let text = format!(
        "hosts = 127.0.0.1:{}\nuser = u\ndbname = d\nsslmode = disable\nquery = SELECT '%s'\n",
        server.port
    );
    assert_eq!(ask(&table(&scratch, &text), b"k"), found("v"));
    assert_eq!(server.total(), 2);
    // Asks for the password itself once SCRAM has begun.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let server = Server::start({
        let heard = Arc::clone(&heard);
        move |mut client| {
            for said in [
                &message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
                &message(b'R', &[0, 0, 0, 3]),
            ] {
                let _ = read_some(&mut client) && client.write_all(said).is_ok();
            }
            // What answers the first request is taken here, too.
            let _ = client.read_to_end(&mut heard.lock().unwrap());
        }
    });
    let text = format!(
        "hosts = 127.0.0.1:{}\nuser = u\npassword = hush\ndbname = d\nsslmode = disable\nconnect_timeout = 1s\nquery = SELECT 1\n",
        server.port
    );
    assert_eq!(ask(&table(&scratch, &text), b"k"), Answer::Retry);
    let heard = heard.lock().unwrap();
    assert!(!heard.windows(4).any(|window| window == b"hush"));
    // Agrees to TLS, and does not speak it; or speaks before it was begun.
    for said in [&b"S"[..], b"SHTTP/1.1 400 Bad Request\r\n\r\n", b"?", b""] {
        let server = Server::start(move |mut client| {
            let _ = read_some(&mut client) && client.write_all(said).is_ok();
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(b"nonsense nonsense nonsense");
        });
        let text = format!(
            "hosts = 127.0.0.1:{}\nuser = u\ndbname = d\nsslmode = require\nconnect_timeout = 1s\nquery = SELECT 1\n",
            server.port
        );
        let begun = Instant::now();
        assert_eq!(ask(&table(&scratch, &text), b"k"), Answer::Retry);
        assert!(begun.elapsed() < SOON);
    }
}
