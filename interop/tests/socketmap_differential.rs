//! The installed postmap against ours, on `socketmap:` tables: one server for both, with good answers, failures, and
//! what is no answer at all; then what only ours is asked, because the reference takes its time.
//!
//! Left out is what ours does differently on purpose: what follows an answer is not read as the next one.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use postkeep_interop::postmap::{Random, Sides, write_old};
use postkeep_interop::servers::{Answers, Case, Server, compare_all, netstring, socketmap, told};

#[test]
fn answers_and_what_is_none() {
    let Some(sides) = Sides::new() else { return };
    let answers = Answers::default();
    let known = answers.clone();
    let server = Server::start(move |client| {
        socketmap(client, |request| known.find(request).unwrap_or_default());
    });
    let table = format!("socketmap:inet:127.0.0.1:{}:m", server.port);
    let mut cases = Vec::new();
    let mut add = |answer: &[u8]| {
        let key = answers.add(answer.to_vec()).to_string();
        cases.push(Case::new(&table, &key, answer));
    };
    let payloads: [&[u8]; 20] = [
        b"OK data",
        b"OK  two  blanks ",
        b"OK",
        b"OK cut\0here",
        b"OK \xc3\xa9",
        b"OK \xff",
        b"ok data",
        b"OK\tdata",
        b"",
        b"NOTFOUND",
        b"NOTFOUND ",
        b"NOTFOUND why",
        b"TEMP",
        b"TEMP  why",
        b"TIMEOUT too\tlate",
        b"PERM no",
        b"PERM \x01\xff",
        b"WHAT now",
        b" OK x",
        b"OK\0 x",
    ];
    let long = [&b"TEMP "[..], &[b'x'; 250]].concat();
    let most = [&b"OK "[..], &vec![b'v'; 99_997]].concat();
    for payload in payloads.into_iter().chain([&long[..], &most[..]]) {
        add(&netstring(payload));
    }
    let frames: [&[u8]; 10] = [
        b"x",
        b"3x:OK ,",
        b" 7:OK data,",
        b"-7:OK data,",
        b"7:OK data;",
        b"007:OK data,",
        b":,",
        b"100001:OK ",
        b"99999999999999999999999999:",
        b"9223372036854775807:",
    ];
    for frame in frames {
        add(frame);
    }
    let mut random = Random(0x5eed_0001);
    let pieces: [&[u8]; 14] = [
        b"OK",
        b"NOTFOUND",
        b"TEMP",
        b"PERM",
        b"TIMEOUT",
        b" ",
        b" ",
        b"\t",
        b"v",
        b"\xc3\xa9",
        b"\0",
        b"\xff",
        b",",
        b":",
    ];
    for _ in 0..40 {
        let count = 1 + random.below(5);
        let payload = random.join(&pieces, count);
        add(&netstring(&payload));
    }
    add(&netstring(b"OK "));
    compare_all(&sides, &cases);
}

#[test]
fn keys_are_sent_as_they_are() {
    let Some(sides) = Sides::new() else { return };
    let server = Server::start(|client| {
        socketmap(client, |request| {
            let shown = request.escape_ascii().to_string();
            netstring(format!("OK {shown}").as_bytes())
        });
    });
    let mut random = Random(0x5eed_0002);
    let mut keys = b"a b\n A@B.example \n\xc3\x89\n\t\n%s\n,\n".to_vec();
    for _ in 0..40 {
        keys.extend(random.key());
        keys.push(b'\n');
    }
    keys.extend([b'k'; 9000]);
    keys.push(b'\n');
    for map in ["m", "", "a b"] {
        let table = format!("socketmap:inet:localhost:{}:{map}", server.port);
        for options in ["", "-f", "-u", "-fu"] {
            let words = if options.is_empty() {
                vec!["postmap", "-q", "-", &table]
            } else {
                vec!["postmap", options, "-q", "-", &table]
            };
            sides.compare([sides.root(), sides.root()], &words, &keys, false, "keys");
        }
    }
}

#[test]
fn names_of_servers() {
    let Some(sides) = Sides::new() else { return };
    let port = postkeep_testkit::private_postfix::free_port().unwrap();
    let dead = format!("socketmap:inet:127.0.0.1:{port}:m");
    let names = [
        "socketmap:x",
        "socketmap:x:m",
        "socketmap::m",
        "socketmap:inet::m",
        "socketmap:tcp:h:1:m",
        "socketmap:inet:127.0.0.1:1x:m",
        "socketmap:inet:127.0.0.1:20001",
        "socketmap:inet:[127.0.0.1:1:m",
        "socketmap:inet:[127.0.0.1]x:1:m",
        "socketmap:inet:a_b!:1:m",
        "socketmap:inet:127.0.0.1:no-such-service:m",
        "socketmap:inet:no.such.host.invalid:1:m",
        "socketmap:unix:/no/such/socket:m",
        "socketmap:local:/no/such/socket:m",
        &dead,
    ];
    let cases = names.map(|table| Case::new(table, "k", b""));
    compare_all(&sides, &cases);
    let words = ["postmap", "-i", "socketmap:inet:h:1:m"];
    sides.compare(
        [sides.root(), sides.root()],
        &words,
        b"a b\n",
        false,
        "store",
    );
    let words = ["postmap", "-d", "k", "socketmap:inet:h:1:m"];
    sides.compare([sides.root(), sides.root()], &words, b"", false, "delete");
    let words = ["postmap", "-s", &dead];
    sides.compare([sides.root(), sides.root()], &words, b"", false, "list");
    let words = ["postmap", &dead];
    sides.compare([sides.root(), sides.root()], &words, b"", false, "make");
}

#[test]
fn connections_that_end_are_replaced_once() {
    let Some(sides) = Sides::new() else { return };
    for ends in [0, 1, 2] {
        for part in [&b""[..], b"7:OK"] {
            // For each program, so many connections end before the answer.
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            let server = Server::start(move |mut client| {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let good = number % (ends + 1).min(2) == ends;
                socketmap(client.try_clone().unwrap(), |_| {
                    if good {
                        netstring(b"OK good")
                    } else {
                        let _ = client_write(&client, part);
                        Vec::new()
                    }
                });
                let _ = client.flush();
            });
            let table = format!("socketmap:inet:127.0.0.1:{}:m", server.port);
            let note = format!("{ends} ends");
            compare_all(&sides, &[Case::new(&table, "k", note.as_bytes())]);
            assert_eq!(server.total(), 2 * (ends + 1).min(2));
        }
    }
    let directory = sides.directory("unix");
    let path = directory.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            use std::io::Read as _;
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 100]).unwrap();
            let _ = client.write_all(b"7:OK data,");
        }
    });
    let table = format!("socketmap:unix:{}:m", path.display());
    compare_all(&sides, &[Case::new(&table, "k", b"")]);
}

fn client_write(mut client: &std::net::TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    client.write_all(bytes)
}

#[test]
fn silence_and_slowness_end_in_time() {
    let Some(sides) = Sides::new() else { return };
    let file = sides.root().join("cfg/main.cf");
    let mut text = fs::read(&file).unwrap();
    text.extend(b"socketmap_answer_timeout = 200ms\n");
    write_old(&file, &text);
    let (stop, stopped) = mpsc::channel::<()>();
    let stopped = std::sync::Mutex::new(stopped);
    let silent = Server::start(move |_client| {
        let _ = stopped.lock().unwrap().recv();
    });
    // A byte now and then is no answer either.
    let trickling = Server::start(|mut client| {
        for _ in 0..1000 {
            if client.write_all(b"0").is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    for server in [&silent, &trickling] {
        let table = format!("socketmap:inet:127.0.0.1:{}:m", server.port);
        let words = ["postmap", "-q", "k", &table];
        let (exit, _, lines) = told(&sides.run(&sides.ours, sides.root(), &words, b""));
        assert_eq!(exit, Some(1));
        assert_eq!(
            lines,
            [
                format!("postmap: warning: table {table} lookup error: time limit exceeded"),
                format!("postmap: fatal: table {table}: query error: ERROR")
            ]
        );
    }
    drop(stop);
}
