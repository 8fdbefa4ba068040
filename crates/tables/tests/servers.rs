//! `socketmap:` and `tcp:` with servers that are written here.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_conf::{Dictionary, Release};
use postkeep_table::{
    Access, Completion, Flags, Latency, LookupError, OpenError, Opener as _, Outcome, Table,
    TableName,
};
use postkeep_tables::{Context, Registry};

fn registry(main_cf: &str, release: Release) -> Registry {
    let mut dictionary = Dictionary::new(release, b"/etc/postfix");
    dictionary
        .load(main_cf.as_bytes(), "main.cf", &mut Vec::new())
        .unwrap();
    Registry::new(Context {
        main_cf: Arc::new(dictionary),
        ..Context::default()
    })
}

fn open_with(registry: &Registry, name: &str, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
    let name = TableName::parse(name.as_bytes()).unwrap();
    registry.open(&name, Access::Read, flags)
}

fn open(name: &str) -> Result<Arc<dyn Table>, OpenError> {
    open_with(&registry("", Release::V3_7), name, Flags::LOCK)
}

fn refusal(name: &str) -> String {
    open(name).err().unwrap().to_string()
}

/// What a lookup came to, in one text.
fn ask(table: &Arc<dyn Table>, key: &str) -> String {
    let mut value = b"<".to_vec();
    let result = table.lookup(Flags::FOLD_FIX, key.as_bytes(), &mut value);
    let value = String::from_utf8(value).unwrap();
    match result {
        Ok(Outcome::Done) => format!("{value}>"),
        Ok(Outcome::Absent) => {
            assert_eq!(value, "<");
            "absent".to_owned()
        }
        Err(LookupError::Retry(text)) => format!("retry {text}"),
        Err(LookupError::Config(text)) => format!("config {text}"),
        Err(error) => panic!("{error}"),
    }
}

/// Reads one netstring, as a server does.
fn read_netstring(input: &mut impl Read) -> Option<String> {
    let mut length = 0;
    let mut byte = [0];
    loop {
        input.read_exact(&mut byte).ok()?;
        if byte[0] == b':' {
            break;
        }
        length = length * 10 + usize::from(byte[0] - b'0');
    }
    let mut payload = vec![0; length + 1];
    input.read_exact(&mut payload).ok()?;
    assert_eq!(payload.pop(), Some(b','));
    Some(String::from_utf8(payload).unwrap())
}

/// A server that holds `conversation` with each client; its port, and how many clients came.
fn serve(conversation: impl Fn(TcpStream) + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let (count, conversation) = (Arc::clone(&connections), Arc::new(conversation));
    thread::spawn(move || {
        for client in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
            let conversation = Arc::clone(&conversation);
            thread::spawn(move || conversation(client.unwrap()));
        }
    });
    (port, connections)
}

/// A socketmap server; `answer` makes bytes of a request, and no bytes close the connection.
fn socketmap(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    serve(move |mut client| {
        while let Some(request) = read_netstring(&mut client) {
            let reply = answer(&request);
            if reply.is_empty() || client.write_all(&reply).is_err() {
                return;
            }
        }
    })
}

fn netstring(payload: &str) -> Vec<u8> {
    format!("{}:{payload},", payload.len()).into_bytes()
}

#[test]
fn socketmap_names_say_where_the_server_is() {
    assert_eq!(
        refusal("socketmap:x"),
        "socketmap requires server:socketmap argument"
    );
    assert_eq!(
        refusal("socketmap:x:m"),
        "need service transport:endpoint instead of \"x\""
    );
    assert_eq!(
        refusal("socketmap:tcp:h:1:m"),
        "invalid transport name: tcp in service: tcp:h:1"
    );
    assert_eq!(
        refusal("socketmap:inet:127.0.0.1:20001"),
        "127.0.0.1: garbage after numerical service"
    );
    let registry = registry("", Release::V3_7);
    let refused = open_with(&registry, "socketmap:inet:h:1:m", Flags::NO_UNAUTH);
    assert_eq!(
        refused.err().unwrap().to_string(),
        "socketmap:inet:h:1:m map is not allowed for security-sensitive data"
    );
    let name = TableName::parse(b"socketmap:inet:h:1:m").unwrap();
    let refused = registry.open(&name, Access::ReadWrite, Flags::LOCK);
    assert_eq!(
        refused.err().unwrap().to_string(),
        "socketmap:inet:h:1:m map requires O_RDONLY access mode"
    );
    let table = open("socketmap:unix:/a:b:").unwrap();
    assert_eq!(table.latency(), Latency::Remote);
    assert!(table.flags().contains(Flags::PATTERN | Flags::LOCK));
    let bad = self::registry("socketmap_answer_timeout = soon\n", Release::V3_7);
    assert_eq!(
        open_with(&bad, "socketmap:inet:h:1:m", Flags::LOCK)
            .err()
            .unwrap()
            .to_string(),
        "bad time value or unit: socketmap_answer_timeout = soon"
    );
}

#[test]
fn socketmap_replies() {
    let (port, connections) = socketmap(|request| match request.split_once(' ').unwrap() {
        ("m", "found") => netstring("OK  a b"),
        ("m", "empty") => netstring("OK "),
        ("m", "bare") => netstring("OK"),
        ("m", "Absent") => netstring("NOTFOUND "),
        ("m", "temp") => netstring("TEMP  busy"),
        ("m", "perm") => netstring("PERM "),
        ("m", "odd") => netstring("WHAT now"),
        ("m", "format") => b"x".to_vec(),
        ("m", "size") => b"100001:".to_vec(),
        ("m", "two") => [netstring("OK 1"), netstring("OK 2")].concat(),
        _ => netstring(&format!("OK [{request}]")),
    });
    let name = format!("socketmap:inet:127.0.0.1:{port}:m");
    let table = open(&name).unwrap();
    for (key, outcome) in [
        ("found", "< a b>".to_owned()),
        ("empty", "<>".to_owned()),
        ("bare", "absent".to_owned()),
        ("Absent", "absent".to_owned()),
        ("temp", "retry ".to_owned()),
        ("perm", "config ".to_owned()),
        ("odd", "retry ".to_owned()),
        ("format", "retry ".to_owned()),
        ("size", "retry ".to_owned()),
        ("two", "<1>".to_owned()),
        ("two", "<1>".to_owned()),
        ("A b", "<[m A b]>".to_owned()),
        ("", "<[m ]>".to_owned()),
    ] {
        assert_eq!(ask(&table, key), outcome, "{key}");
    }
    // One, and a new one after each of the two faults and the two pairs of answers.
    assert_eq!(connections.load(Ordering::Relaxed), 5);
    // Another map of the same server has the same connection.
    let other = open(&format!("socketmap:inet:127.0.0.1:{port}:n")).unwrap();
    assert_eq!(ask(&other, "k"), "<[n k]>");
    assert_eq!(connections.load(Ordering::Relaxed), 5);
    let newer = registry("socketmap_max_query_size = 3\n", Release::V3_12);
    let table = open_with(&newer, &name, Flags::LOCK).unwrap();
    assert_eq!(ask(&table, "bare"), "absent");
    assert_eq!(ask(&table, "abc"), "<[m abc]>");
}

#[test]
fn socketmap_over_unix_sockets_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        // Each connection serves once; the next question on it finds it closed.
        for number in 0..3 {
            let (mut client, _) = listener.accept().unwrap();
            assert_eq!(read_netstring(&mut client).as_deref(), Some("m k"));
            client
                .write_all(&netstring(&format!("OK {number}")))
                .unwrap();
            // Shortly before the end of a connection a question may still be taken.
            if number == 1 {
                let _ = read_netstring(&mut client);
            }
        }
    });
    let table = open(&format!("socketmap:unix:{}:m", path.display())).unwrap();
    for number in 0..3 {
        assert_eq!(ask(&table, "k"), format!("<{number}>"));
    }
    server.join().unwrap();
    assert_eq!(ask(&table, "k"), "retry ");
}

#[test]
fn silence_fails_in_time_and_then_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = registry(
        "tcp_answer_timeout = 50ms\ntcp_breaker_failures = 2\ntcp_breaker_rest = 200ms\n",
        Release::V3_7,
    );
    let table = open_with(&registry, &format!("tcp:127.0.0.1:{port}"), Flags::LOCK).unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&table, "k"), "retry ");
    }
    let begun = Instant::now();
    for _ in 0..1000 {
        assert_eq!(ask(&table, "k"), "retry ");
    }
    // Two of them may have been probes.
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(listener);
}

/// A server of `tcp:` lines.
fn lines(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    serve(move |client| {
        let mut output = client.try_clone().unwrap();
        for line in BufReader::new(client).lines() {
            let Ok(line) = line else { return };
            let reply = answer(line.strip_prefix("get ").unwrap());
            if reply.is_empty() || output.write_all(&reply).is_err() {
                return;
            }
        }
    })
}

#[test]
fn tcp_replies() {
    let (port, connections) = lines(|key| match key {
        "found" => b"200 a%20b\n".to_vec(),
        "absent" => b"500 no\n".to_vec(),
        "later" => b"400 later\n".to_vec(),
        "status" => b"700 x\n".to_vec(),
        "bad" => b"200 %zz\x01\n".to_vec(),
        "long" => vec![b'2'; 5000],
        "close" => Vec::new(),
        key => format!("200 [{}]\n", key.replace('%', "%25")).into_bytes(),
    });
    let table = open(&format!("tcp:127.0.0.1:{port}")).unwrap();
    let count = || connections.load(Ordering::Relaxed);
    assert_eq!(ask(&table, "found"), "<a b>");
    assert_eq!(ask(&table, "absent"), "absent");
    assert_eq!(ask(&table, "A b%\u{e9}"), "<[A%20b%25%C3%A9]>");
    assert_eq!(count(), 1);
    assert_eq!(ask(&table, "later"), "retry ");
    assert_eq!(ask(&table, "status"), "retry ");
    assert_eq!(ask(&table, "bad"), "retry ");
    assert_eq!(ask(&table, "found"), "<a b>");
    assert_eq!(count(), 4);
    assert_eq!(ask(&table, "long"), "retry ");
    assert_eq!(count(), 5);
    assert_eq!(ask(&table, "close"), "retry ");
    assert_eq!(ask(&table, "found"), "<a b>");
    assert_eq!(
        refusal("tcp:127.0.0.1:2x"),
        "127.0.0.1:2x: garbage after numerical service"
    );
}

#[test]
fn many_lookups_are_under_way_without_threads_and_connections_are_bounded() {
    let (port, connections) = lines(|key| {
        thread::sleep(Duration::from_millis(10));
        format!("200 {key}\n").into_bytes()
    });
    let registry = registry("tcp_pool_max_connections = 4\n", Release::V3_7);
    let table = open_with(&registry, &format!("tcp:127.0.0.1:{port}"), Flags::LOCK).unwrap();
    let (sender, ends) = mpsc::channel();
    for number in 0..64_usize {
        let sender = sender.clone();
        let done: Completion = Box::new(move |result, value| {
            sender.send((number, result.unwrap(), value)).unwrap();
        });
        let key = number.to_string();
        Arc::clone(&table).begin_lookup(Flags::empty(), key.as_bytes(), Vec::new(), done);
    }
    for _ in 0..64 {
        let (number, outcome, value) = ends.recv().unwrap();
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(value, number.to_string().into_bytes());
    }
    assert!(connections.load(Ordering::Relaxed) <= 4);
}

#[test]
fn lists_and_wrappers_wait_for_servers() {
    let (port, _) = lines(|key| format!("200 {key}+\n").into_bytes());
    for (name, latency) in [
        (
            format!("pipemap:{{inline:{{k=a}}, tcp:127.0.0.1:{port}, tcp:127.0.0.1:{port}}}"),
            Latency::Blocking,
        ),
        (format!("debug:tcp:127.0.0.1:{port}"), Latency::Remote),
    ] {
        let table = open(&name).unwrap();
        assert_eq!(table.latency(), latency);
        let found = ask(&table, "k");
        assert!(found == "<a++>" || found == "<k+>", "{found}");
        let (sender, ends) = mpsc::channel();
        let done: Completion =
            Box::new(move |result, value| sender.send((result.is_ok(), value)).unwrap());
        Arc::clone(&table).begin_lookup(Flags::FOLD_FIX, b"k", b"<".to_vec(), done);
        let (good, mut value) = ends.recv().unwrap();
        value.push(b'>');
        assert!(good);
        assert_eq!(value, found.into_bytes());
    }
}
