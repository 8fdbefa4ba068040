//! `http:` with servers that are written here, most of them bad ones.
#![cfg(feature = "http")]
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_table::{
    Access, Completion, Flags, Latency, LookupError, OpenError, Opener as _, Outcome, Owner, Table,
    TableName,
};
use postkeep_tables::{Context, Registry};

/// A table and the directory of its file.
struct Opened {
    table: Arc<dyn Table>,
    _directory: tempfile::TempDir,
}

fn open_in(directory: &std::path::Path, text: &str) -> Result<Arc<dyn Table>, OpenError> {
    let file = directory.join("t.cf");
    fs::write(&file, text).unwrap();
    let name = TableName::parse(format!("http:{}", file.display()).as_bytes()).unwrap();
    let flags = Flags::LOCK | Flags::UTF8_REQUEST;
    Registry::new(Context::default()).open(&name, Access::Read, flags)
}

fn open(text: &str) -> Opened {
    let directory = tempfile::tempdir().unwrap();
    Opened {
        table: open_in(directory.path(), text).unwrap(),
        _directory: directory,
    }
}

fn refusal(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let error = open_in(directory.path(), text).err().unwrap().to_string();
    error.replace(&directory.path().display().to_string(), "")
}

/// What a lookup came to, in one text.
fn ask(opened: &Opened, key: &[u8]) -> String {
    let mut value = b"<".to_vec();
    let result = opened.table.lookup(Flags::empty(), key, &mut value);
    match result {
        Ok(Outcome::Done) => format!("{}>", String::from_utf8(value).unwrap()),
        Ok(Outcome::Absent) => "absent".to_owned(),
        Err(LookupError::Retry(text)) => format!("retry{text}"),
        Err(LookupError::Config(text)) => format!("config{text}"),
        Err(error) => panic!("{error}"),
    }
}

/// A request as it came.
struct Seen {
    /// `GET /path HTTP/1.1`.
    line: String,
    /// Names in small letters.
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(other, _)| other == name);
        found.next().map(|(_, value)| value.as_str())
    }
}

fn read_request(input: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut next = || {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|&count| count > 0)?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = Vec::new();
    loop {
        let line = next()?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut seen = Seen {
        line,
        headers,
        body: String::new(),
    };
    let length = seen
        .header("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    seen.body = String::from_utf8(body).unwrap();
    Some(seen)
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
}

impl Counts {
    fn total(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until no more connections than these are open.
    fn wait_for(&self, most: usize) {
        let begun = Instant::now();
        while self.open.load(Ordering::SeqCst) > most {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A server; `answer` writes to the client, and says whether the connection stays.
fn serve(
    answer: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> (u16, Arc<Counts>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counts = Arc::new(Counts::default());
    let (shared, answer) = (Arc::clone(&counts), Arc::new(answer));
    thread::spawn(move || {
        for client in listener.incoming() {
            let (counts, answer) = (Arc::clone(&shared), Arc::clone(&answer));
            counts.connections.fetch_add(1, Ordering::SeqCst);
            let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
            counts.peak.fetch_max(open, Ordering::SeqCst);
            thread::spawn(move || {
                let mut output = client.unwrap();
                let mut input = BufReader::new(output.try_clone().unwrap());
                while let Some(seen) = read_request(&mut input) {
                    if !answer(&seen, &mut output) {
                        break;
                    }
                }
                counts.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (port, counts)
}

fn reply(output: &mut TcpStream, status: u16, body: &str) -> bool {
    let text = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    output.write_all(text.as_bytes()).is_ok()
}

#[test]
fn values_and_what_statuses_mean() {
    let (port, counts) = serve(|seen, output| {
        let answer = match seen.path().strip_prefix("/u/").unwrap() {
            "one" => (200, r#"{"v":"a"}"#),
            "many" => (200, r#"{"v":["a","b",null,3]}"#),
            "null" => (200, r#"{"v":null}"#),
            "none" => (200, r#"{"v":[]}"#),
            "missing" => (200, "{}"),
            "empty" => (200, r#"{"v":""}"#),
            "quoted" => (200, r#"{"v":"\u00e9 \"x\" , y"}"#),
            "object" => (200, r#"{"v":{}}"#),
            "float" => (200, r#"{"v":1.5}"#),
            "html" => (200, "<html>"),
            "nothing" => (200, ""),
            "five" => (200, r#"{"v":[1,2,3,4,5]}"#),
            "204" => {
                return output.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_ok();
            }
            "gzip" => {
                return output
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n{\"v\":\"a\"}")
                    .is_ok();
            }
            "moved" => {
                return output
                    .write_all(
                        b"HTTP/1.1 302 Found\r\nLocation: /u/one\r\nContent-Length: 0\r\n\r\n",
                    )
                    .is_ok();
            }
            status => (status.parse().unwrap(), r#"{"v":"error"}"#),
        };
        reply(output, answer.0, answer.1)
    });
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/u/%s\nvalue_path = /v\nexpansion_limit = 4\nresult_format = [%s]\n\
         status_map = 403=notfound 410=notfound 409=retry\n"
    ));
    assert_eq!(table.table.latency(), Latency::Remote);
    assert_eq!(table.table.owner(), Owner::Trusted);
    for (key, wanted) in [
        ("one", "<[a]>"),
        ("many", "<[a],[b],[3]>"),
        ("null", "absent"),
        ("none", "absent"),
        ("missing", "absent"),
        ("empty", "absent"),
        ("quoted", "<[\u{e9} \"x\" , y]>"),
        ("object", "config"),
        ("float", "config"),
        ("html", "retry"),
        ("nothing", "retry"),
        ("five", "retry"),
        ("204", "absent"),
        ("404", "absent"),
        ("403", "absent"),
        ("410", "absent"),
        ("429", "retry"),
        ("409", "retry"),
        ("500", "retry"),
        ("503", "retry"),
        ("400", "config"),
        ("401", "config"),
        ("201", "config"),
        ("moved", "config"),
        ("gzip", "config"),
        ("one", "<[a]>"),
    ] {
        assert_eq!(ask(&table, key.as_bytes()), wanted, "{key}");
    }
    // All of them on one connection, which no answer was bad for.
    assert_eq!(counts.total(), 1);
}

#[test]
fn requests_are_what_the_configuration_says() {
    let (port, _) = serve(|seen, output| {
        let mut text = format!("{}\n{}\n", seen.line, seen.body);
        for name in [
            "host",
            "authorization",
            "x-a",
            "x-b",
            "accept",
            "accept-encoding",
            "content-type",
        ] {
            writeln!(text, "{name}={}", seen.header(name).unwrap_or("-")).unwrap();
        }
        reply(output, 200, &text)
    });
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "first\n").unwrap();
    let text = format!(
        "url = http://localhost:{port}/v1/%d?user=%u&all=%%25%s\nmethod = POST\nbody = {{\"key\":\"%s\"}}\n\
         response_format = text\nheader = {{X-A: 1 2}} {{X-B: %s}} {{Accept: */*}}\nbearer_token_file = {}\n",
        token.display()
    );
    let table = open_in(directory.path(), &text).unwrap();
    // Both files are watched: the token is read again when it changes.
    let watched: Vec<_> = table
        .watches()
        .into_iter()
        .map(|watch| watch.path)
        .collect();
    assert_eq!(watched, [directory.path().join("t.cf"), token.clone()]);
    let opened = Opened {
        table,
        _directory: tempfile::tempdir().unwrap(),
    };
    let found = ask(&opened, b"o'b\"\\r/%&@x.y");
    let wanted = format!(
        "<POST /v1/x.y?user=o%27b%22%5Cr%2F%25%26&all=%25o%27b%22%5Cr%2F%25%26%40x.y HTTP/1.1,\
         {{\"key\":\"o'b\\\"\\\\r/%&@x.y\"}},host=localhost:{port},authorization=Bearer first,x-a=1 2,x-b=%s,accept=*/*,\
         accept-encoding=identity,content-type=application/json>"
    );
    assert_eq!(found, wanted);
    fs::write(&token, "second\n").unwrap();
    let opened = Opened {
        table: open_in(directory.path(), &text).unwrap(),
        _directory: tempfile::tempdir().unwrap(),
    };
    assert!(ask(&opened, b"u@x").contains("Bearer second"));
    for bad in ["", "a b", "a\u{e9}"] {
        fs::write(&token, bad).unwrap();
        assert!(open_in(directory.path(), &text).is_err());
    }
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/\nbody_format = form\nbody = a=%s&b=1\nresponse_format = text\nuser = \u{fc}\npassword = p:q\n"
    ));
    let found = ask(&table, b"x&b=2 +");
    assert!(
        found.starts_with("<POST / HTTP/1.1,a=x%26b%3D2%20%2B&b=1,"),
        "{found}"
    );
    assert!(found.contains("authorization=Basic w7w6cDpx,"), "{found}");
    assert!(found.contains("content-type=application/x-www-form-urlencoded"));
}

#[test]
fn keys_that_cannot_be_asked_for_are_not() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (port, _) = serve(move |_, output| {
        count.fetch_add(1, Ordering::SeqCst);
        reply(output, 200, "\"found\"")
    });
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/%s\ndomain = in.example\n"
    ));
    assert_eq!(ask(&table, b"u@IN.example"), "<found>");
    let long = [&[b'k'; 8000][..], b"@in.example"].concat();
    for key in [
        &b"u@out.example"[..],
        b"u",
        b"",
        b"../x@in.example",
        b"x/../../y@in.example",
        b"..\\x@in.example",
        b"a\r\nHost: x@in.example",
        b"a\x7f@in.example",
        b"\xff@in.example",
        b"a\0b@in.example",
        &long,
    ] {
        assert_eq!(ask(&table, key), "absent", "{}", key.escape_ascii());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for key in [
        "..@in.example",
        "\u{e9}%00%2f'\"@in.example",
        "a b?#;@in.example",
    ] {
        assert_eq!(ask(&table, key.as_bytes()), "<found>", "{key}");
    }
}

#[test]
fn bad_servers_fail_one_lookup_each() {
    let (port, counts) = serve(|seen, output| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        match seen.path() {
            "/good" => reply(output, 200, "\"x\""),
            "/close" => {
                output
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\"x\"",
                    )
                    .unwrap();
                false
            }
            "/until-the-end" => {
                output.write_all(b"HTTP/1.0 200 OK\r\n\r\n\"x\"").unwrap();
                false
            }
            "/cut-at-once" => false,
            "/cut-in-head" => {
                output.write_all(&head[..20]).unwrap();
                false
            }
            "/cut-in-body" => {
                output.write_all(head).unwrap();
                output.write_all(b"\"x").unwrap();
                false
            }
            "/cut-in-chunk" => {
                output
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\"x\"\r\n",
                    )
                    .unwrap();
                false
            }
            "/short-length" => output
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\"x\"")
                .is_ok(),
            "/two-lengths" => output
                .write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n\"x\"",
                )
                .is_ok(),
            "/two-answers" => {
                let both = [&head[..], b"\"x\"", head, b"\"y\""].concat();
                output.write_all(&both).is_ok()
            }
            "/garbage" => output.write_all(b"SSH-2.0-OpenSSH\r\n").is_ok(),
            "/huge-header" => {
                let text = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
                output.write_all(text.as_bytes()).is_ok()
            }
            "/many-headers" => {
                let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(5000));
                output.write_all(text.as_bytes()).is_ok()
            }
            "/no-end-of-headers" => {
                output.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
                while output
                    .write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
                    .is_ok()
                {}
                false
            }
            "/said-long" => output
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n\"")
                .is_ok(),
            "/is-long" => {
                output.write_all(b"HTTP/1.1 200 OK\r\n\r\n\"").unwrap();
                let block = [b'x'; 8192];
                while output.write_all(&block).is_ok() {}
                false
            }
            "/chunks-for-ever" => {
                output
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .unwrap();
                while output.write_all(b"4\r\n    \r\n").is_ok() {}
                false
            }
            "/hundreds" => {
                while output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_ok() {}
                false
            }
            "/deep" => reply(output, 200, &"[".repeat(60_000)),
            "/drip" => {
                output.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                while output.write_all(b" ").is_ok() {
                    thread::sleep(Duration::from_millis(5));
                }
                false
            }
            "/silent" => {
                let _ = output.read(&mut [0]);
                false
            }
            other => panic!("{other}"),
        }
    });
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/%s\nmax_response_size = 65536\nanswer_timeout = 300ms\nbreaker_failures = 0\n"
    ));
    for (key, wanted) in [
        ("close", "<x>"),
        ("until-the-end", "<x>"),
        ("cut-at-once", "retry"),
        ("cut-in-head", "retry"),
        ("cut-in-body", "retry"),
        ("cut-in-chunk", "retry"),
        ("short-length", "retry"),
        ("two-lengths", "retry"),
        ("two-answers", "<x>"),
        ("garbage", "retry"),
        ("huge-header", "retry"),
        ("many-headers", "retry"),
        ("no-end-of-headers", "retry"),
        ("said-long", "retry"),
        ("is-long", "retry"),
        ("chunks-for-ever", "retry"),
        ("hundreds", "retry"),
        ("deep", "retry"),
        ("drip", "retry"),
        ("silent", "retry"),
    ] {
        let begun = Instant::now();
        assert_eq!(ask(&table, key.as_bytes()), wanted, "{key}");
        // Twice, at most, for a connection that broke.
        assert!(begun.elapsed() < Duration::from_secs(5), "{key}");
        assert_eq!(ask(&table, b"good"), "<x>", "after {key}");
    }
    // Each server's end of a connection that was given up learns that; one is kept, until nobody needs it.
    counts.wait_for(1);
    drop(table);
    counts.wait_for(0);
}

#[test]
fn what_is_no_http_2_fails_in_time() {
    let (silent, _) = serve(|_, output| {
        let _ = output.read(&mut [0]);
        false
    });
    let (talker, _) = serve(|_, output| {
        output
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
        false
    });
    for port in [silent, talker] {
        let table = open(&format!(
            "url = http://127.0.0.1:{port}/%s\nhttp_version = 2\nanswer_timeout = 200ms\nbreaker_failures = 0\n"
        ));
        for _ in 0..2 {
            assert_eq!(ask(&table, b"k"), "retry");
        }
    }
}

#[test]
fn a_server_that_comes_and_goes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/%s\nbreaker_failures = 3\nbreaker_rest = 100ms\n"
    ));
    for _ in 0..3 {
        assert_eq!(ask(&table, b"k"), "retry");
    }
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    // The breaker is open.
    assert_eq!(ask(&table, b"k"), "retry");
    thread::sleep(Duration::from_millis(150));
    let server = thread::spawn(move || {
        // Each connection serves once, and is closed without a word.
        for _ in 0..3 {
            let (client, _) = listener.accept().unwrap();
            let mut output = client.try_clone().unwrap();
            read_request(&mut BufReader::new(client)).unwrap();
            assert!(reply(&mut output, 200, "\"x\""));
        }
    });
    for _ in 0..3 {
        assert_eq!(ask(&table, b"k"), "<x>");
    }
    server.join().unwrap();
    assert_eq!(ask(&table, b"k"), "retry");
}

#[test]
fn connections_are_bounded_and_kept() {
    let (port, counts) = serve(|_, output| {
        thread::sleep(Duration::from_millis(2));
        reply(output, 200, "\"x\"")
    });
    let table = open(&format!(
        "url = http://127.0.0.1:{port}/%s\npool_max_connections = 4\n"
    ));
    let (sender, ends) = mpsc::channel();
    for number in 0..400 {
        let sender = sender.clone();
        let done: Completion =
            Box::new(move |result, value| sender.send((result.unwrap(), value)).unwrap());
        let key = number.to_string();
        Arc::clone(&table.table).begin_lookup(Flags::empty(), key.as_bytes(), Vec::new(), done);
    }
    for _ in 0..400 {
        assert_eq!(ends.recv().unwrap(), (Outcome::Done, b"x".to_vec()));
    }
    assert!(counts.peak.load(Ordering::SeqCst) <= 4);
    assert_eq!(counts.total(), counts.peak.load(Ordering::SeqCst));
    // Another table with the same server and limits has the same connections.
    let other = open(&format!(
        "url = http://127.0.0.1:{port}/other/%s\npool_max_connections = 4\n"
    ));
    assert_eq!(ask(&other, b"k"), "<x>");
    assert!(counts.total() <= 4);
}

#[test]
fn faults_in_the_configuration() {
    for (text, wanted) in [
        ("", "/t.cf: bad string length 0 < 1: url = "),
        (
            "url = ftp://h/",
            "/t.cf: bad value of url: http:// or https:// comes first",
        ),
        (
            "url = http://h/../%s",
            "/t.cf: bad value of url: no part of the path is . or ..",
        ),
        (
            "url = http://h/%x",
            "db_common_parse: /t.cf: Invalid query template: /%x",
        ),
        (
            "url = http://h/\nmethod = PUT",
            "/t.cf: bad value of method: expecting GET or POST",
        ),
        (
            "url = http://h/\nmethod = GET\nbody = \"%s\"",
            "/t.cf: bad value of method: a body is sent with POST",
        ),
        (
            "url = http://h/\nbody_format = xml",
            "/t.cf: bad value of body_format: expecting json or form",
        ),
        (
            "url = http://h/\nvalue_path = x",
            "/t.cf: bad value of value_path: a path begins with / or $",
        ),
        (
            "url = http://h/\nstatus_map = 1=2",
            "/t.cf: bad value of status_map: no STATUS=VERDICT: 1=2",
        ),
        (
            "url = http://h/\nheader = Host: x",
            "/t.cf: bad value of header: host is not for you to set",
        ),
        (
            "url = http://h/\nhttp_version = 3",
            "/t.cf: bad value of http_version: expecting auto, 1.1 or 2",
        ),
        (
            "url = http://h/\ntls_CAfile = /x",
            "/t.cf: bad value of tls_CAfile: the URL begins with http://, without TLS",
        ),
        ("url = https://h/\ntls_CAfile = /no/such", "/no/such: "),
        (
            "url = https://h/\ntls_key_file = /x",
            "/t.cf: bad value of tls_key_file: there is no tls_cert_file",
        ),
        (
            "url = http://h/\nbearer_token = a\nuser = b",
            "/t.cf: bad value of bearer_token: only one of",
        ),
        (
            "url = http://h/\nbearer_token_file = /no/such",
            "open /no/such: No such file or directory",
        ),
        (
            "url = http://h/\npassword = b",
            "/t.cf: bad value of password: there is no user",
        ),
        (
            "url = http://h/\nanswer_timeout = soon",
            "/t.cf: bad time value or unit: answer_timeout = soon",
        ),
    ] {
        let found = refusal(text);
        assert!(found.starts_with(wanted), "{text}: {found}");
    }
}
