//! `http:` tables with servers of other make: node's, over HTTP/1.1 and HTTP/2, with TLS and without, and Python's. The
//! reference has no such type, so the judge is what the server says it got.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::{Random, Sides, write_old};
use postkeep_interop::servers::web::Web;
use postkeep_table::{Access, Completion, Flags, Opener as _, Outcome, Table, TableName};
use postkeep_tables::{Context, Registry};

/// A table file beside a server.
fn table_file(server: &Web, name: &str, text: &str) -> PathBuf {
    let file = server.scratch.path().join(name);
    write_old(&file, text.as_bytes());
    file
}

fn open(file: &Path) -> Arc<dyn Table> {
    let name = TableName::parse(format!("http:{}", file.display()).as_bytes()).unwrap();
    let flags = Flags::LOCK | Flags::UTF8_REQUEST;
    let registry = Registry::new(Context::default());
    registry.open(&name, Access::Read, flags).unwrap()
}

/// What a lookup came to, in one text.
fn ask(table: &Arc<dyn Table>, key: &str) -> String {
    let mut value = Vec::new();
    match table.lookup(Flags::empty(), key.as_bytes(), &mut value) {
        Ok(Outcome::Done) => String::from_utf8(value).unwrap(),
        Ok(Outcome::Absent) => "absent".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

const RETRY: &str = "Retry(\"\")";
const CONFIG: &str = "Config(\"\")";

/// Each way to speak to node's server: the URL's beginning, more keys, and the version that the server should see.
fn ways() -> Option<Vec<(Web, String, &'static str)>> {
    let mut ways = Vec::new();
    for (mode, tls, keys, version) in [
        ("h1", false, "", "1.1"),
        ("h1", true, "", "1.1"),
        ("h2", true, "", "2.0"),
        ("h2", true, "http_version = 1.1\n", "1.1"),
        ("h2", true, "http_version = 2\n", "2.0"),
        ("h2c", false, "http_version = 2\n", "2.0"),
    ] {
        let server = Web::node(mode, tls.then_some(|made| &made.server), false)?;
        let mut text = format!(
            "url = {}://localhost:{}/v1/%s\nvalue_path = $.values\nbreaker_failures = 0\nanswer_timeout = 10s\n{keys}",
            if tls { "https" } else { "http" },
            server.port
        );
        if tls {
            let authority = server.certificates.authority.display();
            writeln!(text, "tls_CAfile = {authority}").unwrap();
        }
        ways.push((server, text, version));
    }
    Some(ways)
}

#[test]
fn every_version_gives_the_same_answers() {
    let Some(ways) = ways() else { return };
    for (server, text, version) in &ways {
        let table = open(&table_file(server, "t.cf", text));
        let two = *version == "2.0";
        for (key, wanted) in [
            ("version", *version),
            ("user@example.com", "user@example.com"),
            ("many", "a,b,3"),
            ("none", "absent"),
            ("absent", "absent"),
            ("empty", "absent"),
            ("busy", RETRY),
            ("locked", CONFIG),
            ("huge", RETRY),
            ("headers", RETRY),
            ("cut", RETRY),
            ("version", *version),
        ] {
            assert_eq!(ask(&table, key), wanted, "{key} {text}");
        }
        if two {
            for (key, wanted) in [
                ("goaway", "goaway"),
                ("after", "after"),
                ("reset", RETRY),
                ("after", "after"),
            ] {
                assert_eq!(ask(&table, key), wanted, "{key} {text}");
            }
        }
        let mut random = Random(0x5eed_0017);
        for _ in 0..100 {
            let pieces: [&[u8]; 16] = [
                b"a",
                b"B",
                b"@",
                b"'",
                b"\"",
                b"\\x",
                b"%",
                b"%41",
                b"\xc3\xa9",
                b" ",
                b"/",
                b"?&=",
                b"#",
                b"+",
                b";",
                b"{}",
            ];
            let count = 1 + random.below(6);
            let key = String::from_utf8(random.join(&pieces, count)).unwrap();
            assert_eq!(ask(&table, &key), key, "{text}");
        }
        let table = open(&table_file(
            server,
            "token.cf",
            &format!("{text}bearer_token = sesame\nexpansion_limit = 2\n"),
        ));
        assert_eq!(ask(&table, "locked"), "open");
        assert_eq!(ask(&table, "many"), RETRY);
    }
}

#[test]
fn questions_at_once_share_a_connection_of_http_2() {
    let Some(ways) = ways() else { return };
    for (server, text, version) in &ways {
        let text = format!("{text}pool_max_connections = 8\n");
        let table = open(&table_file(server, "t.cf", &text));
        let (sender, ends) = mpsc::channel();
        for _ in 0..200 {
            let sender = sender.clone();
            let done: Completion =
                Box::new(move |result, value| sender.send((result.unwrap(), value)).unwrap());
            Arc::clone(&table).begin_lookup(Flags::empty(), b"slow", Vec::new(), done);
        }
        for _ in 0..200 {
            assert_eq!(ends.recv().unwrap(), (Outcome::Done, b"slow".to_vec()));
        }
        let stats = open(&table_file(
            server,
            "stats.cf",
            &text.replace("/v1/%s", "/stats"),
        ));
        let found = ask(&stats, "k");
        let (sessions, peak) = found.split_once(',').unwrap();
        let (sessions, peak): (usize, usize) = (sessions.parse().unwrap(), peak.parse().unwrap());
        // The server allows four streams.
        let most = if *version == "2.0" { (1, 4) } else { (8, 8) };
        // The probe of a server without TLS counts, too.
        assert!(sessions <= most.0 + 1 && peak <= most.1, "{found} {text}");
        assert!(peak > 1, "{found} {text}");
    }
}

#[test]
fn servers_that_stop_hang_and_come_back() {
    let Some(ways) = ways() else { return };
    for (mut server, text, _) in ways {
        let text = text.replace("answer_timeout = 10s", "answer_timeout = 300ms");
        let table = open(&table_file(&server, "t.cf", &text));
        assert_eq!(ask(&table, "a"), "a");
        // Never an answer; others are served meanwhile.
        let (sender, end) = mpsc::channel();
        let done: Completion = Box::new(move |result, _| sender.send(result).unwrap());
        Arc::clone(&table).begin_lookup(Flags::empty(), b"hang", Vec::new(), done);
        assert_eq!(ask(&table, "b"), "b");
        assert!(end.recv().unwrap().is_err());
        assert_eq!(ask(&table, "c"), "c");
        // The whole server is silent.
        server.process.suspend();
        let begun = Instant::now();
        assert_eq!(ask(&table, "d"), RETRY, "{text}");
        assert!(begun.elapsed() < Duration::from_secs(15));
        server.process.resume();
        assert_eq!(ask(&table, "e"), "e", "{text}");
        // It dies during a question, and is gone after it.
        let asked = Arc::clone(&table);
        let during = thread::spawn(move || ask(&asked, "hang"));
        thread::sleep(Duration::from_millis(50));
        server.process.kill();
        assert_eq!(during.join().unwrap(), RETRY);
        assert_eq!(ask(&table, "f"), RETRY);
        server.restart();
        assert_eq!(ask(&table, "g"), "g", "{text}");
        // Between two questions.
        server.process.stop();
        server.restart();
        assert_eq!(ask(&table, "h"), "h", "{text}");
    }
}

#[test]
fn certificates_decide() {
    let Some(sides) = Sides::new() else { return };
    let told = |server: &Web, text: &str| {
        let file = table_file(server, "t.cf", text);
        let table = format!("http:{}", file.display());
        let words = ["postmap", "-q", "version", &table];
        let outcome = sides.run(&sides.ours, sides.root(), &words, b"");
        let out = String::from_utf8(outcome.stdout).unwrap();
        (outcome.exit, out, outcome.stderr)
    };
    let url = |server: &Web| {
        format!(
            "url = https://127.0.0.1:{}/v1/%s\nvalue_path = /values\nbreaker_failures = 0\n",
            server.port
        )
    };
    let Some(good) = Web::node("h2", Some(|made| &made.server), false) else {
        return;
    };
    let with =
        |server: &Web, file: &Path| format!("{}tls_CAfile = {}\n", url(server), file.display());
    let found = told(&good, &with(&good, &good.certificates.authority));
    assert_eq!(found, (Some(0), "2.0\n".to_owned(), String::new()));
    for text in [with(&good, &good.certificates.stranger), url(&good)] {
        let (exit, out, err) = told(&good, &text);
        assert_eq!((exit, out.as_str()), (Some(1), ""));
        let origin = format!(
            "postmap: warning: connect to https://127.0.0.1:{}: TLS: ",
            good.port
        );
        assert!(err.starts_with(&origin), "{err}");
        assert!(err.contains("postmap: fatal: table http:"), "{err}");
    }
    let open_to_all = format!("{}tls_verify_cert = no\n", url(&good));
    assert_eq!(told(&good, &open_to_all).0, Some(0));

    let misnamed = Web::node("h2", Some(|made| &made.misnamed), false).unwrap();
    let (exit, _, err) = told(
        &misnamed,
        &with(&misnamed, &misnamed.certificates.authority),
    );
    assert_eq!(exit, Some(1), "{err}");

    let strict = Web::node("h2", Some(|made| &made.server), true).unwrap();
    let text = with(&strict, &strict.certificates.authority);
    assert_eq!(told(&strict, &text).0, Some(1));
    let pair = &strict.certificates.client;
    let text = format!(
        "{text}tls_cert_file = {}\ntls_key_file = {}\n",
        pair.certificate.display(),
        pair.key.display()
    );
    assert_eq!(
        told(&strict, &text),
        (Some(0), "2.0\n".to_owned(), String::new())
    );
    assert_eq!(
        ask(&open(&table_file(&strict, "t.cf", &text)), "certificate"),
        "client"
    );

    // A server without TLS, and one that does not speak HTTP/2.
    let plain = Web::node("h1", None, false).unwrap();
    let (exit, _, err) = told(&plain, &with(&plain, &plain.certificates.authority));
    assert!(exit == Some(1) && err.contains(": TLS: "), "{err}");
    let one = Web::node("h1", Some(|made| &made.server), false).unwrap();
    let text = format!(
        "{}http_version = 2\n",
        with(&one, &one.certificates.authority)
    );
    let (exit, _, err) = told(&one, &text);
    assert_eq!(exit, Some(1), "{err}");
}

#[test]
fn files_of_python_s_server() {
    let Some(sides) = Sides::new() else { return };
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        let Some(server) = Web::python(version) else {
            return;
        };
        let root = server.scratch.directory("u", 0o755).unwrap();
        let entries: [(&str, &[u8]); 7] = [
            ("plain", b"value\n"),
            ("o'b \"x\"\u{e9}", b"odd\r\n"),
            ("lines", b"a\nb\r\n\nc"),
            ("binary", b"\xff\n"),
            ("nul", b"cut\0here\n"),
            ("nothing", b""),
            ("50%", b"half\n"),
        ];
        for (name, text) in entries {
            fs::write(root.join(name), text).unwrap();
        }
        let file = table_file(
            &server,
            "t.cf",
            &format!(
                "url = http://localhost:{}/u/%u\nresponse_format = text\nresult_format = <%s>\n",
                server.port
            ),
        );
        let table = format!("http:{}", file.display());
        let keys = "plain@x\nplain\no'b \"x\"\u{e9}\nlines\nnul\nnothing\n50%\nno-such\n../t.cf\n";
        let words = ["postmap", "-q", "-", &table];
        let outcome = sides.run(&sides.ours, sides.root(), &words, keys.as_bytes());
        assert_eq!(
            String::from_utf8(outcome.stdout).unwrap(),
            "plain@x\t<value>\nplain\t<value>\no'b \"x\"\u{e9}\t<odd>\nlines\t<a>,<b>,<c>\nnul\t<cut>\n50%\t<half>\n"
        );
        assert_eq!((outcome.exit, outcome.stderr.as_str()), (Some(0), ""));
        let words = ["postmap", "-q", "binary", &table];
        let outcome = sides.run(&sides.ours, sides.root(), &words, b"");
        assert!(
            outcome.stderr.contains("non-UTF-8 value"),
            "{}",
            outcome.stderr
        );
        // A directory, where the server moves us to a name with a slash.
        let words = ["postmap", "-q", "u", &table];
        fs::create_dir(root.join("u")).unwrap();
        let outcome = sides.run(&sides.ours, sides.root(), &words, b"");
        assert_eq!(outcome.exit, Some(1));
        let warning = format!(
            "postmap: warning: table {table}: lookup of \"u\": http://localhost:{} answers with status 301\n",
            server.port
        );
        assert!(outcome.stderr.starts_with(&warning), "{}", outcome.stderr);
    }
}
