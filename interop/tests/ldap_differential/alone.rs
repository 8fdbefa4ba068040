//! What only ours is asked: servers that fail in the middle, that are none, or never answer; connections that last.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::Sides;
use postkeep_interop::servers::Server;
use postkeep_interop::servers::slapd::Slapd;
use postkeep_table::{Access, Flags, LookupError, Opener as _, Outcome as Found, Table, TableName};
use postkeep_tables::{Context, Registry};

use crate::{BASE, Both, GROUPS, all_at_once, difference, ours, table};

#[test]
fn the_server_goes_and_comes_back() {
    let Some(mut both) = Both::start("") else {
        return;
    };
    let table = both.table("t", BASE);
    let find = |both: &Both| ours(&both.sides, &table, "alice");
    let found = (Some(0), "alice@host.example\\n".to_owned(), Vec::new());
    assert_eq!(find(&both), found);
    both.server.stop();
    assert_eq!(difference(&both.sides, &table, "alice"), None);
    assert_eq!(find(&both).0, Some(1));
    both.server.restart();
    assert_eq!(find(&both), found);
    // One program, whose connection is closed between two lookups.
    both.server.process().suspend();
    let text = format!("{BASE}timeout = 1\n");
    let slow = both.table("slow", &text);
    let begun = Instant::now();
    let (exit, _, lines) = ours(&both.sides, &slow, "alice");
    assert_eq!(exit, Some(1));
    assert!(lines[0].contains("Unable to bind to server"), "{lines:?}");
    assert!(begun.elapsed() < Duration::from_secs(6));
    both.server.process().resume();
    assert_eq!(find(&both), found);
}

/// Reads one message.
fn read_message(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    client.read_exact(&mut head).ok()?;
    assert!(head[1] < 0x80, "requests in this test are short");
    let mut rest = vec![0; usize::from(head[1])];
    client.read_exact(&mut rest).ok()?;
    Some(rest)
}

/// What servers say that are none, after a bind that succeeds.
#[test]
fn answers_that_are_none() {
    let Some(sides) = Sides::new() else { return };
    let bound: &[u8] = b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00";
    let done: &[u8] = b"\x30\x0c\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00";
    let entry = |value: &[u8]| {
        // cn=x with maildrop
        let mut values = vec![0x04, 0x82];
        values.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        values.extend(value);
        let wrap = |tag: u8, contents: &[u8]| {
            let mut out = vec![tag, 0x83];
            out.extend(&u32::try_from(contents.len()).unwrap().to_be_bytes()[1..]);
            out.extend(contents);
            out
        };
        let attribute = [b"\x04\x08maildrop", &wrap(0x31, &values)[..]].concat();
        let list = wrap(0x30, &wrap(0x30, &attribute));
        wrap(
            0x30,
            &[
                b"\x02\x01\x02",
                &wrap(0x64, &[b"\x04\x04cn=x", &list[..]].concat())[..],
            ]
            .concat(),
        )
    };
    let good = [&entry(b"v")[..], done].concat();
    let deep = [&[0x30, 0x82, 0x07, 0xd0][..], &[0x30, 0x80].repeat(1000)].concat();
    // What is said, and how often; then what ours says.
    let cases: Vec<(Vec<u8>, usize, &str)> = vec![
        (good.clone(), 1, "v"),
        (
            b"\x30\x84\xff\xff\xff\xff".to_vec(),
            1,
            "the answer has more than",
        ),
        (b"\x30\x80\x02\x01\x02".to_vec(), 1, "Decoding error"),
        (b"HTTP/1.0 400\r\n\r\n".to_vec(), 1, "Decoding error"),
        (deep, 1, "Decoding error"),
        (
            b"\x30\x05\x02\x01\x02\x42\x00".to_vec(),
            1,
            "Decoding error",
        ),
        (
            b"\x30\x05\x02\x01\x09\x65\x00".to_vec(),
            1,
            "Decoding error",
        ),
        // Goodbye; the search is repeated once.
        (
            b"\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00".to_vec(),
            1,
            "Can't contact LDAP server",
        ),
        (Vec::new(), 1, "Can't contact LDAP server"),
        (entry(b"v")[..20].to_vec(), 1, "Can't contact LDAP server"),
        // Too many values, and entries without an end.
        (entry(&[b'x'; 60_000]), 40, "the answer has more than"),
    ];
    all_at_once(&cases, |(reply, times, wanted)| {
        let (reply, times) = (reply.clone(), *times);
        let server = Server::start(move |mut client| {
            let _bind = read_message(&mut client);
            client.write_all(bound).unwrap();
            let _search = read_message(&mut client);
            let mut count = 0;
            while (times > 1 || count < times) && client.write_all(&reply).is_ok() {
                count += 1;
            }
        });
        let port = server.port;
        let text = format!("{BASE}server_host = 127.0.0.1:{port}\ntimeout = 5\n");
        let table = table(&sides, &format!("fake{port}"), &text);
        let (exit, found, lines) = ours(&sides, &table, "alice");
        let all = format!("{found}{}", lines.join("\n"));
        assert!(all.contains(wanted), "{wanted}: {exit:?} {all}");
        assert_eq!(exit, Some(i32::from(*wanted != "v")), "{all}");
    });
}

#[test]
fn servers_that_never_answer() {
    let Some(sides) = Sides::new() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let cases = [
        ("", "Unable to bind to server"),
        (
            "bind = no\n",
            "dict_ldap_lookup: Search error -5: Timed out ",
        ),
        ("start_tls = yes\n", "Unable to set STARTTLS: -5: Timed out"),
    ];
    let cases: Vec<_> = cases.iter().enumerate().collect();
    all_at_once(&cases, |(number, (more, wanted))| {
        let text = format!("{BASE}server_host = 127.0.0.1:{port}\ntimeout = 1\n{more}");
        let table = table(&sides, &format!("silent{number}"), &text);
        let begun = Instant::now();
        let (exit, _, lines) = ours(&sides, &table, "alice");
        assert_eq!(exit, Some(1));
        assert!(lines[0].contains(wanted), "{lines:?}");
        assert!(begun.elapsed() < Duration::from_secs(6));
    });
}

/// Opens a table in this process, so that its connections outlive a lookup.
fn open(name: &str) -> Arc<dyn Table> {
    let registry = Registry::new(Context::default());
    let name = TableName::parse(name.as_bytes()).unwrap();
    registry.open(&name, Access::Read, Flags::empty()).unwrap()
}

fn look_up(table: &Arc<dyn Table>, key: &str) -> Result<Option<String>, LookupError> {
    let mut value = Vec::new();
    let found = table.lookup(Flags::empty(), key.as_bytes(), &mut value)?;
    Ok((found == Found::Done).then(|| String::from_utf8(value).unwrap()))
}

#[test]
fn tables_with_equal_keys_share_connections_which_are_replaced_when_they_end() {
    let Some(mut both) = Both::start("") else {
        return;
    };
    let base = format!("{BASE}breaker_failures = 0\n");
    let first = open(&both.table("first", &base));
    let second = open(&both.table(
        "second",
        &format!("{base}result_attribute = mail\nscope = sub\n"),
    ));
    let third = open(&both.table("third", &format!("{base}bind = no\n")));
    for _ in 0..5 {
        assert_eq!(
            look_up(&first, "alice").unwrap().unwrap(),
            "alice@host.example"
        );
        assert_eq!(
            look_up(&second, "alice").unwrap().unwrap(),
            "alice@mail.example"
        );
        assert_eq!(look_up(&first, "absent").unwrap(), None);
    }
    assert_eq!(both.connections(), 1);
    assert_eq!(
        look_up(&third, "alice").unwrap().unwrap(),
        "alice@host.example"
    );
    assert_eq!(both.connections(), 2);
    // Stopped in an orderly way, and killed, between two lookups: nobody notices.
    both.server.stop();
    both.server.restart();
    assert_eq!(
        look_up(&first, "alice").unwrap().unwrap(),
        "alice@host.example"
    );
    both.server.kill();
    assert!(matches!(
        look_up(&first, "alice"),
        Err(LookupError::Retry(_))
    ));
    both.server.restart();
    assert_eq!(
        look_up(&first, "alice").unwrap().unwrap(),
        "alice@host.example"
    );
    // Killed while it has a question.
    both.server.process().suspend();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| look_up(&first, "alice"));
        thread::sleep(Duration::from_millis(300));
        both.server.kill();
        assert!(matches!(
            waiting.join().unwrap(),
            Err(LookupError::Retry(_))
        ));
    });
    both.server.restart();
    assert_eq!(
        look_up(&first, "alice").unwrap().unwrap(),
        "alice@host.example"
    );
    // Many at once, and what all of them found.
    thread::scope(|scope| {
        let runs: Vec<_> = (0..50)
            .map(|_| scope.spawn(|| look_up(&first, "many").unwrap().unwrap()))
            .collect();
        for run in runs {
            assert_eq!(
                run.join().unwrap(),
                "one@a.example,two,three@b.example,four, five"
            );
        }
    });
    assert!(both.connections() <= 17, "{}", both.connections());
}

#[test]
fn groups_that_grow_without_bound_end() {
    let Some(sides) = Sides::new() else { return };
    let mut entries = String::new();
    for level in 0..30 {
        write!(
            entries,
            "dn: cn=g{level},dc=example\nobjectclass: mailThing\ncn: g{level}\nmemberdn: cn=g{next},dc=example\n\
             memberdn: CN=g{next},dc=example\nmemberaddr: v\n\n",
            next = level + 1
        )
        .unwrap();
    }
    entries.push_str("dn: cn=g30,dc=example\nobjectclass: mailThing\ncn: g30\n");
    let Some(server) = Slapd::start(&entries, "") else {
        return;
    };
    let both = Both { sides, server };
    let text = format!("{GROUPS}search_limit = 200\n");
    let (exit, _, lines) = ours(&both.sides, &both.table("searches", &text), "g0");
    assert_eq!(exit, Some(1));
    assert!(
        lines[0].contains("search_limit exceeded for key: 'g0'"),
        "{lines:?}"
    );
    let text = format!("{GROUPS}lookup_timeout = 300ms\n");
    let begun = Instant::now();
    let (exit, _, lines) = ours(&both.sides, &both.table("time", &text), "g0");
    assert_eq!(exit, Some(1));
    assert!(
        lines[0].contains("no end within lookup_timeout for key: 'g0'"),
        "{lines:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}
