//! `mongodb:` tables with a server of other make and `MongoDB`'s own client for Python beside ours: the same filters must
//! find the same documents. The installed Postfix has no such type; what the reference does with values and faults is
//! written down here.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::io::{Read as _, Write as _, copy};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::{Outcome as Ran, Random, Sides, write_old};
use postkeep_interop::servers::Server;
use postkeep_interop::servers::secantus::Secantus;
use postkeep_table::{Access, Completion, Flags, Opener as _, Outcome, Table, TableName};
use postkeep_tables::{Context, Registry};
use postkeep_testkit::Scratch;

const RETRY: &str = "Retry(\"\")";

/// The keys of a table that asks this port for `user`.
fn keys(port: u16, more: &str) -> String {
    format!(
        "uri = mongodb://127.0.0.1:{port}/\ndbname = mail\ncollection = users\n\
         query_filter = {{\"user\": \"%s\"}}\nresult_attribute = box\nbreaker_failures = 0\n{more}"
    )
}

fn file(place: &Scratch, name: &str, text: &str) -> PathBuf {
    let file = place.path().join(name);
    write_old(&file, text.as_bytes());
    file
}

fn open(place: &Scratch, name: &str, text: &str) -> Arc<dyn Table> {
    let file = file(place, name, text);
    let name = TableName::parse(format!("mongodb:{}", file.display()).as_bytes()).unwrap();
    let flags = Flags::LOCK | Flags::UTF8_REQUEST;
    let registry = Registry::new(Context::default());
    registry.open(&name, Access::Read, flags).unwrap()
}

/// What a lookup came to, in one text.
fn ask(table: &Arc<dyn Table>, key: &[u8]) -> String {
    let mut value = Vec::new();
    match table.lookup(Flags::empty(), key, &mut value) {
        Ok(Outcome::Done) => String::from_utf8(value).unwrap(),
        Ok(Outcome::Absent) => "absent".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

/// postmap -q of ours with a table file; standard error without the name of the program before each line.
fn postmap(sides: &Sides, place: &Scratch, text: &str, key: &str) -> (String, Option<i32>, String) {
    let table = format!("mongodb:{}", file(place, "q.cf", text).display());
    let Ran {
        exit,
        stdout,
        stderr,
    } = sides.run(
        &sides.ours,
        sides.root(),
        &["postmap", "-q", key, &table],
        b"",
    );
    assert!(!stderr.contains("sesame"), "{stderr}");
    let place = place.path().display().to_string();
    let told: Vec<&str> = stderr
        .lines()
        // Tests set keys twice.
        .filter(|line| !line.contains(": overriding earlier entry: "))
        .map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest))
        .collect();
    let told = told.join("\n").replace(&place, "DIR");
    (String::from_utf8(stdout).unwrap(), exit, told)
}

const DOCUMENTS: &str = r#"
docs = [
 {"user": "one@x", "box": "a@b"},
 {"user": "two@x", "box": ["a@b", ["c@d", 7]], "n": 2**40},
 {"user": "many@x", "box": "m1"}, {"user": "many@x", "box": "m2"}, {"user": "many@x", "box": {"o": 1}},
 {"user": "none@x"},
 {"user": "odd@x", "box": [1.5, True, None, "t", {"o": 1}]},
 {"user": "empty@x", "box": ""},
 {"user": "eleven@x", "box": [str(i) for i in range(11)]},
 {"user": "big@x", "box": ["v" * 1000 for i in range(2000)]},
 {"user": "\u00e9@x", "box": "accent"},
 {"user": "5", "uid": 5, "box": "five"},
]
docs += [{"user": "lots@x", "box": "d%d" % i} for i in range(300)]
client.mail.users.insert_many(docs)
client.mail.users.insert_one({"_id": bson.ObjectId("0123456789abcdef01234567"), "user": "id@x", "box": "by number"})
"#;

#[test]
fn values_limits_and_faults() {
    let (Some(sides), Some(server)) = (Sides::new(), Secantus::start(None)) else {
        return;
    };
    server.python(DOCUMENTS, b"");
    let run =
        |more: &str, key: &str| postmap(&sides, &server.scratch, &keys(server.port, more), key);
    let found = |text: &str| (format!("{text}\n"), Some(0), String::new());
    let absent = (String::new(), Some(1), String::new());
    assert_eq!(run("", "one@x"), found("a@b"));
    // postmap folds keys, as for all tables of fixed strings.
    assert_eq!(run("", "ONE@X"), found("a@b"));
    assert_eq!(run("", "\u{c9}@x"), found("accent"));
    assert_eq!(run("", "two@x"), found("a@b,c@d,7"));
    assert_eq!(
        run("result_attribute = n box\n", "two@x").0,
        "a@b,c@d,7,1099511627776\n"
    );
    assert_eq!(
        run("result_format = %u.%d.%U.%1\n", "one@x"),
        found("a.b.one.x")
    );
    assert_eq!(run("", "none@x"), absent);
    assert_eq!(run("", "nobody@x"), absent);
    assert_eq!(run("domain = y\n", "one@x"), absent);
    assert_eq!(
        run("", "many@x"),
        (
            "m1,m2\n".to_owned(),
            Some(0),
            "warning: mongodb:DIR/q.cf: failed to retrieve value of 'box', Unknown result type 3."
                .to_owned()
        )
    );
    let (value, exit, told) = run("", "odd@x");
    assert_eq!((&value[..], exit), ("t\n", Some(0)));
    for (field, kind) in [(0, 1), (1, 8), (2, 10), (4, 3)] {
        let line = format!("failed to retrieve value of '{field}', Unknown result type {kind}.");
        assert!(told.contains(&line), "{told}");
    }
    assert_eq!(
        run("", "empty@x"),
        (
            String::new(),
            Some(1),
            "warning: table \"mongodb:DIR/q.cf\": empty lookup result for: \"empty@x\" -- ignored"
                .to_owned()
        )
    );
    for (more, key, line) in [
        (
            "",
            "eleven@x",
            "expansion limit exceeded for key: 'eleven@x'",
        ),
        ("", "lots@x", "expansion limit exceeded for key: 'lots@x'"),
        (
            "expansion_limit = 0\n",
            "big@x",
            "result size limit exceeded for key: 'big@x'",
        ),
        (
            "query_filter = {\"user\": \"%s\"\n",
            "one@x",
            "failed to create a query from '{\"user\": \"one@x\"': ",
        ),
        (
            "query_filter = {\"uid\": %s}\n",
            "null",
            "failed to create a query from '{\"uid\": null}': only digits",
        ),
        (
            "query_filter = {\"$foo\": \"%s\"}\n",
            "one@x",
            "cursor error for '{\"$foo\": \"one@x\"}': unknown",
        ),
        (
            "result_attribute =\nprojection = {\n",
            "one@x",
            "failed to create a projection from '{': ",
        ),
    ] {
        let (value, exit, told) = run(more, key);
        assert_eq!((&value[..], exit), ("", Some(1)), "{told}");
        let start = format!("warning: mongodb:DIR/q.cf: {line}");
        assert!(told.starts_with(&start), "{told}\n{start}");
        assert!(
            told.contains("fatal: table mongodb:DIR/q.cf: query error"),
            "{told}"
        );
    }
    assert_eq!(run("expansion_limit = 11\n", "eleven@x").1, Some(0));
    let (lots, _, _) = run("expansion_limit = 0\n", "lots@x");
    assert_eq!(lots.split(',').count(), 300);
    assert_eq!(run("query_filter = {\"uid\": %s}\n", "5"), found("five"));
    let by_number = "query_filter = {\"_id\": {\"$oid\": \"%s\"}}\n";
    assert_eq!(
        run(by_number, "0123456789abcdef01234567"),
        found("by number")
    );
    let slice =
        "result_attribute =\nprojection = {\"box\": {\"$slice\": 2}, \"user\": 0, \"uid\": 0}\n";
    assert_eq!(run(slice, "eleven@x"), found("0,1"));
}

#[test]
fn faults_of_the_configuration() {
    let Some(sides) = Sides::new() else { return };
    let place = Scratch::new("mongodb").unwrap();
    for (more, line) in [
        (
            "uri =\n",
            "fatal: DIR/q.cf: bad string length 0 < 1: uri = ",
        ),
        (
            "dbname =\n",
            "fatal: DIR/q.cf: bad string length 0 < 1: dbname = ",
        ),
        (
            "expansion_limit = 101\n",
            "fatal: DIR/q.cf: invalid expansion_limit parameter value 101 > 100",
        ),
        (
            "query_filter = %x\n",
            "fatal: db_common_parse: DIR/q.cf: Invalid query template: %x",
        ),
        (
            "result_format = %x\n",
            "fatal: db_common_parse: DIR/q.cf: Invalid result template: %x",
        ),
        (
            "projection = {}\n",
            "fatal: mongodb:DIR/q.cf: specify exactly one of 'projection' or 'result_attribute'",
        ),
        (
            "result_attribute =\n",
            "fatal: mongodb:DIR/q.cf: specify exactly one of 'projection' or 'result_attribute'",
        ),
        (
            "uri = mongo://u:sesame@h/\n",
            "fatal: mongodb:DIR/q.cf: failed to parse URI 'mongo://u:***@h/': ",
        ),
        (
            "uri = mongodb://h/?tls=true&tlsCAFile=/no/such\n",
            "fatal: mongodb:DIR/q.cf: failed to create client for 'mongodb://h/': /no/such: ",
        ),
    ] {
        let (_, exit, told) = postmap(&sides, &place, &keys(27017, more), "k");
        assert_eq!(exit, Some(1), "{more}");
        let last = told.lines().last().unwrap_or_default();
        assert!(last.starts_with(line), "{told}");
    }
}

#[test]
fn odd_keys_find_what_the_other_client_finds() {
    let Some(server) = Secantus::start(None) else {
        return;
    };
    let mut random = Random(0x5eed_0018);
    let mut all: Vec<String> = [
        "\"",
        "\\",
        "\\\"",
        "'",
        "%s",
        "%",
        "$ne",
        "{\"$ne\": \"\"}",
        "\"}, {\"a\": 1",
        "\", \"$or\": [{}], \"x\": \"",
        "\u{e9}",
        "\u{1f600}",
        "\u{2028}",
        "\t",
        "\n",
        "\u{1}",
        "\u{7f}",
        "a.b",
        "$",
        " ",
        "/",
        "\\u0041",
        "A",
    ]
    .map(str::to_owned)
    .to_vec();
    while all.len() < 120 {
        let key = String::from_utf8_lossy(&random.key()).into_owned();
        if !all.contains(&key) {
            all.push(key);
        }
    }
    let quoted = |key: &str| {
        use std::fmt::Write as _;
        let mut text = String::from("\"");
        for unit in key.encode_utf16() {
            write!(text, "\\u{unit:04x}").unwrap();
        }
        text + "\""
    };
    // Every second one is in the collection.
    let list: Vec<String> = all.iter().map(|key| quoted(key)).collect();
    let script = "keys = json.load(sys.stdin)\n\
        client.mail.users.insert_many([{'user': k, 'box': 'box%d' % i} for i, k in enumerate(keys) if i % 2])\n\
        for k in keys: print(','.join(d['box'] for d in client.mail.users.find({'user': k})) or 'absent')\n";
    let answers = server.python(script, format!("[{}]", list.join(",")).as_bytes());
    let table = open(&server.scratch, "t.cf", &keys(server.port, ""));
    for (key, wanted) in all.iter().zip(answers.lines()) {
        assert_eq!(ask(&table, key.as_bytes()), wanted, "{key:?}");
    }
    assert_eq!(answers.lines().count(), all.len());
    for key in [&b"\xff"[..], b"a\xc3", b"\xed\xa0\x80"] {
        assert_eq!(ask(&table, key), "absent");
    }
    // More than a server takes as one filter of strings is nothing that it finds.
    assert_eq!(ask(&table, &vec![b'k'; 100_000]), "absent");
}

#[test]
fn a_server_comes_and_goes() {
    let Some(mut server) = Secantus::start(None) else {
        return;
    };
    server.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    let table = open(
        &server.scratch,
        "t.cf",
        &keys(server.port, "answer_timeout = 1s\n"),
    );
    // Stopped before: told at once, not after the time limit.
    server.process.stop();
    let begun = Instant::now();
    assert_eq!(ask(&table, b"k"), RETRY);
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    server.restart();
    assert_eq!(ask(&table, b"k"), "v");
    // Ended and started anew between two lookups: nobody notices.
    server.process.kill();
    server.restart();
    assert_eq!(ask(&table, b"k"), "v");
    // Held during a lookup.
    server.process.suspend();
    assert_eq!(ask(&table, b"k"), RETRY);
    server.process.resume();
    assert_eq!(ask(&table, b"k"), "v");
    // Ended during a lookup.
    server.process.suspend();
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::clone(&table);
    thread::spawn(move || sender.send(ask(&waiting, b"k")).unwrap());
    thread::sleep(Duration::from_millis(200));
    server.process.kill();
    assert_eq!(
        receiver.recv_timeout(Duration::from_secs(10)).unwrap(),
        RETRY
    );
}

#[test]
fn silence_and_rubbish() {
    let place = Scratch::new("mongodb").unwrap();
    let limits = "connect_timeout = 1s\nanswer_timeout = 1s\n";
    let silent = Server::start(|mut client| {
        let _ = client.read_to_end(&mut Vec::new());
    });
    let rubbish = Server::start(|mut client| {
        let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = client.read(&mut [0; 100]);
    });
    // A length beyond what anybody sends.
    let huge = Server::start(|mut client| {
        let _ = client.read(&mut [0; 4]);
        let _ = client.write_all(b"\xff\xff\xff\x7f\x01\0\0\0\x01\0\0\0\xdd\x07\0\0");
        let _ = client.read_to_end(&mut Vec::new());
    });
    for bad in [&silent, &rubbish, &huge] {
        let table = open(&place, "t.cf", &keys(bad.port, limits));
        let begun = Instant::now();
        assert_eq!(ask(&table, b"k"), RETRY);
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
    }
    // Nobody answers at all.
    let both = format!(
        "uri = mongodb://127.0.0.1:{},127.0.0.1:1/?directConnection=false\n",
        silent.port
    );
    let table = open(&place, "t.cf", &keys(1, &(both + limits)));
    assert_eq!(ask(&table, b"k"), RETRY);
}

#[test]
fn passwords() {
    let Some(mut server) = Secantus::start(None) else {
        return;
    };
    let Some(sides) = Sides::new() else { return };
    server.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    server.demand("mail", "sesame%/@");
    let run = |who: &str| {
        // Of what is set twice both are secret.
        let uri = format!("uri = mongodb://{who}127.0.0.1:{}/\n", server.port);
        let uri = format!("uri = mongodb://u:sesame@h/\n{uri}");
        postmap(&sides, &server.scratch, &keys(server.port, &uri), "k")
    };
    assert_eq!(run("mail:sesame%25%2F%40@").0, "v\n");
    let (value, exit, told) = run("mail:sesame@");
    assert_eq!((&value[..], exit), ("", Some(1)));
    let start = format!(
        "warning: connect to mongodb server mongodb://mail:***@127.0.0.1:{}/: ",
        server.port
    );
    assert!(told.starts_with(&start), "{told}");
    let (value, exit, told) = run("");
    assert_eq!((&value[..], exit), ("", Some(1)), "{told}");
    assert!(told.contains("query error"), "{told}");
}

#[test]
fn tls() {
    let Some(server) = Secantus::start(Some(|made| &made.server)) else {
        return;
    };
    let Some(misnamed) = Secantus::start(Some(|made| &made.misnamed)) else {
        return;
    };
    server.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    misnamed.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    let run = |server: &Secantus, options: &str| {
        let uri = format!(
            "uri = mongodb://localhost:{}/?{options}\nconnect_timeout = 2s\n",
            server.port
        );
        ask(
            &open(&server.scratch, "t.cf", &keys(server.port, &uri)),
            b"k",
        )
    };
    let authority = |server: &Secantus| {
        format!(
            "tls=true&tlsCAFile={}",
            server.certificates.authority.display()
        )
    };
    assert_eq!(run(&server, &authority(&server)), "v");
    let stranger = format!(
        "tls=true&tlsCAFile={}",
        server.certificates.stranger.display()
    );
    assert_eq!(run(&server, &stranger), RETRY);
    // The system does not know the authority.
    assert_eq!(run(&server, "tls=true"), RETRY);
    assert_eq!(
        run(&server, "tls=true&tlsAllowInvalidCertificates=true"),
        "v"
    );
    assert_eq!(run(&misnamed, &authority(&misnamed)), RETRY);
    assert_eq!(run(&server, "tls=false"), RETRY);
    // A table that is opened after the file with the authority has changed does not take over what the one before has.
    let roots = server.scratch.path().join("roots");
    let named = format!("tls=true&tlsCAFile={}", roots.display());
    std::fs::copy(&server.certificates.authority, &roots).unwrap();
    let uri = format!("uri = mongodb://localhost:{}/?{named}\n", server.port);
    let kept = open(&server.scratch, "kept.cf", &keys(server.port, &uri));
    assert_eq!(ask(&kept, b"k"), "v");
    assert!(kept.watches().iter().any(|watch| watch.path == roots));
    std::fs::remove_file(&roots).unwrap();
    std::fs::copy(&server.certificates.stranger, &roots).unwrap();
    let anew = open(&server.scratch, "kept.cf", &keys(server.port, &uri));
    assert_eq!(ask(&anew, b"k"), RETRY);
    assert_eq!(ask(&kept, b"k"), "v");
}

#[test]
fn many_lookups_share_few_connections() {
    let Some(server) = Secantus::start(None) else {
        return;
    };
    server.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    let port = server.port;
    let relay = Server::start(move |client| {
        let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let up = thread::spawn(move || {
            let _ = copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let _ = copy(&mut &server, &mut &client);
        let _ = client.shutdown(Shutdown::Both);
        up.join().unwrap();
    });
    let ask_all = |table: &Arc<dyn Table>, count: usize| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..count {
            let sender = sender.clone();
            let done: Completion = Box::new(move |result, value| {
                sender.send((result.is_ok(), value)).unwrap();
            });
            Arc::clone(table).begin_lookup(Flags::empty(), b"k", Vec::new(), done);
        }
        drop(sender);
        receiver
            .iter()
            .filter(|(good, value)| *good && value == b"v")
            .count()
    };
    let few = open(
        &server.scratch,
        "t.cf",
        &keys(relay.port, "pool_max_connections = 3\n"),
    );
    assert_eq!(ask_all(&few, 300), 300);
    // One more looks after the server.
    assert!(relay.peak() <= 4, "{}", relay.peak());
    // Beyond the bound of the queue lookups fail at once.
    let short = "pool_max_connections = 1\npool_queue_limit = 5\nanswer_timeout = 2s\n";
    let short = open(&server.scratch, "s.cf", &keys(relay.port, short));
    assert_eq!(ask(&short, b"k"), "v");
    server.process.suspend();
    let begun = Instant::now();
    let resume = thread::scope(|scope| {
        let asked = scope.spawn(|| ask_all(&short, 50));
        thread::sleep(Duration::from_millis(300));
        server.process.resume();
        asked.join().unwrap()
    });
    assert!((1..=6).contains(&resume), "{resume}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn after_failures_all_fail_at_once() {
    let Some(mut server) = Secantus::start(None) else {
        return;
    };
    server.python(
        "client.mail.users.insert_one({'user': 'k', 'box': 'v'})",
        b"",
    );
    let text = keys(server.port, "").replace(
        "breaker_failures = 0",
        "breaker_failures = 2\nbreaker_rest = 1s",
    );
    let table = open(&server.scratch, "t.cf", &text);
    server.process.stop();
    for _ in 0..2 {
        assert_eq!(ask(&table, b"k"), RETRY);
    }
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(ask(&table, b"k"), RETRY);
    }
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    server.restart();
    let begun = Instant::now();
    while ask(&table, b"k") != "v" {
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(100));
    }
}
