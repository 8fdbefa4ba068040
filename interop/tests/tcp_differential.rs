//! The installed postmap against ours, on `tcp:` tables: one server for both, with good answers, failures, and what is
//! no answer at all.
//!
//! What differs on purpose is not compared: how often, and for how long, a server without an answer is tried.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use postkeep_interop::postmap::{Random, Sides, write_old};
use postkeep_interop::servers::{Answers, Case, Server, compare_all, read_until, told};

/// A server that gives numbered answers.
fn server(answers: &Answers) -> Server {
    let known = answers.clone();
    Server::start(move |mut client| {
        while let Some(request) = read_until(&mut client, b'\n') {
            let reply = known.find(&request).unwrap_or_default();
            let ends = !reply.contains(&b'\n');
            if client.write_all(&reply).is_err() || ends {
                return;
            }
        }
    })
}

#[test]
fn answers_and_what_is_none() {
    let Some(sides) = Sides::new() else { return };
    let answers = Answers::default();
    let server = server(&answers);
    let table = format!("tcp:127.0.0.1:{}", server.port);
    let mut cases = Vec::new();
    let mut add = |line: &[u8]| {
        let key = answers.add([line, b"\n"].concat()).to_string();
        cases.push(Case::new(&table, &key, line));
    };
    let lines: [&[u8]; 30] = [
        b"200 value",
        b"200 a%20b%2541",
        b"200 a b ",
        b"299\tx",
        b"200  x",
        b"200 x\r",
        b"200 %c3%A9",
        b"200 \xc3\xa9",
        b"200 \xff",
        b"200 a%00b",
        b"200 a\0b",
        b"200 %",
        b"200 %4",
        b"200 %4g",
        b"200 \x01%zz",
        b"200x",
        b"200",
        b"20 x",
        b"2",
        b"",
        b"x00 y",
        b"500 no",
        b"555\tno",
        b"500 %zz",
        b"500",
        b"400 later",
        b"400 %zz",
        b"300 x",
        b"000 x\xff",
        b"999 \xc3\xa9\x02",
    ];
    let long = [&b"200 "[..], &[b'v'; 4091]].concat();
    let bad = [&b"2000"[..], &[b'v'; 300]].concat();
    for line in lines.into_iter().chain([&long[..], &bad[..]]) {
        add(line);
    }
    let mut random = Random(0x5eed_0003);
    let pieces: [&[u8]; 14] = [
        b"2",
        b"0",
        b"00",
        b"200 ",
        b"500 ",
        b"4",
        b" ",
        b"%",
        b"%41",
        b"v",
        b"\xc3\xa9",
        b"\t",
        b"\0",
        b"\xff",
    ];
    for _ in 0..40 {
        let count = 1 + random.below(5);
        add(&random.join(&pieces, count));
    }
    add(b"200 ");
    compare_all(&sides, &cases);
}

#[test]
fn keys_are_encoded() {
    let Some(sides) = Sides::new() else { return };
    let server = Server::start(|mut client| {
        while let Some(request) = read_until(&mut client, b'\n') {
            let shown = request.escape_ascii().to_string().replace('%', "%25");
            if client
                .write_all(format!("200 {shown}\n").as_bytes())
                .is_err()
            {
                return;
            }
        }
    });
    let table = format!("tcp:localhost:{}", server.port);
    let mut random = Random(0x5eed_0004);
    let mut keys = b"a b\n A@B.example%41 \n\xc3\x89\n\t\n~\x7f\n".to_vec();
    for _ in 0..60 {
        keys.extend(random.key());
        keys.push(b'\n');
    }
    for options in ["", "-f", "-u", "-fu"] {
        let words = if options.is_empty() {
            vec!["postmap", "-q", "-", &table]
        } else {
            vec!["postmap", options, "-q", "-", &table]
        };
        sides.compare([sides.root(), sides.root()], &words, &keys, false, "keys");
    }
}

/// The reference takes nine seconds for each of these, so they run side by side.
#[test]
fn servers_without_an_answer() {
    let Some(sides) = Sides::new() else { return };
    let port = postkeep_testkit::private_postfix::free_port().unwrap();
    let answers = Answers::default();
    let server = server(&answers);
    let long = [&b"200 "[..], &[b'v'; 4092], b"\n"].concat();
    let live = format!("tcp:127.0.0.1:{}", server.port);
    let cases = [
        (live.clone(), answers.add(long)),
        (live.clone(), answers.add(b"200 breaks off".to_vec())),
        (live, answers.add(Vec::new())),
        (format!("tcp:127.0.0.1:{port}"), 0),
        ("tcp:127.0.0.1:no-such-service".to_owned(), 0),
        ("tcp:no.such.host.invalid:1".to_owned(), 0),
        ("tcp:service-without-host".to_owned(), 0),
    ];
    let cases = cases.map(|(table, key)| Case::new(&table, &key.to_string(), b""));
    compare_all(&sides, &cases);
}

#[test]
fn names_of_servers_and_operations() {
    let Some(sides) = Sides::new() else { return };
    let names = [
        "tcp:h:",
        "tcp:127.0.0.1:1x",
        "tcp:127.0.0.1",
        "tcp:[127.0.0.1:1",
        "tcp:[127.0.0.1]x:1",
        "tcp:[ipv6:1.2.3.4]:1",
        "tcp:a_b!:1",
    ];
    compare_all(&sides, &names.map(|table| Case::new(table, "k", b"")));
    let both = [sides.root(), sides.root()];
    sides.compare(
        both,
        &["postmap", "-i", "tcp:h:1"],
        b"a b\n",
        false,
        "store",
    );
    sides.compare(
        both,
        &["postmap", "-d", "k", "tcp:h:1"],
        b"",
        false,
        "delete",
    );
    sides.compare(both, &["postmap", "-s", "tcp:h:1"], b"", false, "list");
    sides.compare(both, &["postmap", "tcp:h:1"], b"", false, "make");
}

#[test]
fn silence_and_slowness_end_in_time() {
    let Some(sides) = Sides::new() else { return };
    let file = sides.root().join("cfg/main.cf");
    let mut text = fs::read(&file).unwrap();
    text.extend(b"tcp_answer_timeout = 200ms\n");
    write_old(&file, &text);
    let trickling = Server::start(|mut client| {
        for _ in 0..1000 {
            if client.write_all(b"2").is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    let table = format!("tcp:127.0.0.1:{}", trickling.port);
    let words = ["postmap", "-q", "k", &table];
    let (exit, _, lines) = told(&sides.run(&sides.ours, sides.root(), &words, b""));
    assert_eq!(exit, Some(1));
    let from = format!("read TCP map reply from 127.0.0.1:{}", trickling.port);
    assert_eq!(
        lines,
        [
            format!("postmap: warning: {from}: unexpected EOF (ERROR"),
            format!("postmap: fatal: table {table}: query error: ERROR")
        ]
    );
}
