//! `redis:` with installed servers: alone, replaced by a sentinel, in a cluster; and with bad ones that are written here.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::Random;
use postkeep_interop::servers::Server;
use postkeep_interop::servers::certificates::Certificates;
use postkeep_interop::servers::redis::{Redis, Watched, cluster, wait_until};
use postkeep_table::{
    Access, Cursor, Flags, LookupError, OpenError, Opener as _, Outcome, Step, Table, TableName,
};
use postkeep_tables::{Context, Registry};
use postkeep_testkit::{Scratch, postkeep_binary};

fn open_in(directory: &Path, access: Access, text: &str) -> Result<Arc<dyn Table>, OpenError> {
    let file = directory.join("t.cf");
    fs::write(&file, text).unwrap();
    let name = TableName::parse(format!("redis:{}", file.display()).as_bytes()).unwrap();
    Registry::new(Context::default()).open(&name, access, Flags::LOCK)
}

fn open(access: Access, text: &str) -> Arc<dyn Table> {
    let directory = Scratch::new("redis-table").unwrap();
    open_in(directory.path(), access, text).unwrap()
}

fn reading(text: &str) -> Arc<dyn Table> {
    open(Access::Read, text)
}

fn cache(text: &str) -> Arc<dyn Table> {
    open(Access::ReadWrite, &format!("key_format = c:%s\n{text}"))
}

/// What a lookup came to, in one text.
fn ask(table: &Arc<dyn Table>, key: &[u8]) -> String {
    let mut value = Vec::new();
    match table.lookup(Flags::empty(), key, &mut value) {
        Ok(Outcome::Done) => format!("={}", value.escape_ascii()),
        Ok(Outcome::Absent) => "absent".to_owned(),
        Err(LookupError::Retry(text)) => format!("retry{text}"),
        Err(LookupError::Config(text)) => format!("config{text}"),
        Err(error) => panic!("{error}"),
    }
}

fn put(table: &Arc<dyn Table>, key: &[u8], value: &[u8]) {
    let outcome = table.update(Flags::DUP_REPLACE, key, value).unwrap();
    assert_eq!(outcome, Outcome::Done);
}

/// All entries of a walk; none may come twice.
fn walk(table: &Arc<dyn Table>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut cursor, mut step) = (Cursor::default(), Step::First);
    let mut found = BTreeMap::new();
    loop {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let outcome = table.sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value);
        if outcome.unwrap() == Outcome::Absent {
            return found;
        }
        let twice = found.insert(key, value);
        assert_eq!(twice, None);
        step = Step::Next;
    }
}

/// Keys and values with bytes that mean something somewhere.
const ODD: [&[u8]; 12] = [
    b"plain@example.com",
    b"two words",
    b"\"quotes' \\ `",
    b"100%s %d %%",
    b"caf\xc3\xa9@\xc3\xa9.example",
    b"\xff\xfe\x80",
    b"line\r\nDEL c:plain@example.com\r\n",
    b"*3\r\n$3\r\nSET\r\n",
    b"{tag}*?[x]",
    b"\x01\x02\x7f",
    b" blank ",
    b":",
];

#[test]
fn values_are_found() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    redis.command(&[b"SET", b"alias:a@x", b"one"]);
    redis.command(&[b"SET", b"u:a:x", b"parts"]);
    redis.command(&[b"SET", b"alias:empty", b""]);
    redis.command(&[b"HSET", b"user:a@x", b"mail", b"box", b"quota", b"7"]);
    redis.command(&[b"RPUSH", b"list:a@x", b"1", b"2", b"", b"3"]);
    redis.command(&[b"SADD", b"domains", b"x"]);
    redis.command(&[b"ZADD", b"z:a@x", b"1.5", b"low", b"2", b"high"]);
    let socket = redis.socket.display();
    for hosts in [
        format!("unix:{socket}"),
        redis.host(),
        format!("inet:{}", redis.host()),
    ] {
        let found =
            |keys: &str, key: &[u8]| ask(&reading(&format!("hosts = {hosts}\n{keys}\n")), key);
        assert_eq!(found("key_format = alias:%s", b"a@x"), "=one");
        assert_eq!(found("key_format = alias:%s", b"b@x"), "absent");
        assert_eq!(found("key_format = alias:%s", b"empty"), "absent");
        assert_eq!(found("key_format = alias:%s", b""), "absent");
        assert_eq!(found("key_format = u:%u:%d", b"a@x"), "=parts");
        assert_eq!(found("key_format = u:%u:%d", b"a"), "absent");
        let domain = "key_format = alias:%s\ndomain =";
        assert_eq!(found(&format!("{domain} y x"), b"a@x"), "=one");
        assert_eq!(found(&format!("{domain} y"), b"a@x"), "absent");
        assert_eq!(found("command = HGET user:%s mail", b"a@x"), "=box");
        assert_eq!(
            found("command = HMGET user:%s mail none quota", b"a@x"),
            "=box,7"
        );
        assert_eq!(found("command = HGET user:%s mail", b"b@x"), "absent");
        assert_eq!(found("command = SISMEMBER domains %d", b"a@x"), "=1");
        assert_eq!(found("command = SISMEMBER domains %d", b"a@y"), "absent");
        assert_eq!(
            found("command = EXISTS user:%s\nresult_format = OK", b"a@x"),
            "=OK"
        );
        assert_eq!(
            found("command = EXISTS user:%s\nresult_format = OK", b"b@x"),
            "absent"
        );
        assert_eq!(found("command = ZSCORE z:%s low", b"a@x"), "=1.5");
        let list = "command = LRANGE list:%s 0 -1\nresult_format = %s/%U\nexpansion_limit =";
        assert_eq!(found(&format!("{list} 3"), b"a@x"), "=1/a,2/a,3/a");
        assert_eq!(found(&format!("{list} 2"), b"a@x"), "retry");
        assert_eq!(found(&format!("{list} 0"), b"b@x"), "absent");
        // The wrong type of key is the server's to say.
        assert_eq!(found("command = HGET alias:%s mail", b"a@x"), "retry");
        assert_eq!(found("key_format = user:%s", b"a@x"), "retry");
        // Limits are in bytes of data.
        assert_eq!(
            found("key_format = alias:%s\ndata_size_limit = 3", b"a@x"),
            "=one"
        );
        assert_eq!(
            found("key_format = alias:%s\ndata_size_limit = 2", b"a@x"),
            "retry"
        );
        assert_eq!(
            found("database = 3\nkey_format = alias:%s", b"a@x"),
            "absent"
        );
    }
    // The same connection goes on after answers of all kinds.
    let table = reading(&format!(
        "hosts = {}\nkey_format = alias:%s\n",
        redis.host()
    ));
    let before = redis.command(&[b"INFO", b"stats"]);
    for _ in 0..100 {
        assert_eq!(ask(&table, b"a@x"), "=one");
        assert_eq!(ask(&table, b"none"), "absent");
    }
    let connections = |info: &str| {
        let line = info
            .lines()
            .find(|line| line.starts_with("total_connections_received:"));
        let number: u32 = line
            .unwrap()
            .rsplit(':')
            .next()
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        number
    };
    // One of the table, one of redis-cli.
    let after = redis.command(&[b"INFO", b"stats"]);
    assert_eq!(connections(&after) - connections(&before), 2);
}

#[test]
fn entries_are_stored_and_end() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let hosts = format!("hosts = {}\n", redis.host());
    let table = cache(&format!("{hosts}ttl = 100s\ndata_size_limit = 4000\n"));
    assert!(table.flags().contains(Flags::MULTI_WRITER | Flags::FIXED));
    for (key, value) in ODD.iter().zip(ODD.iter().rev()) {
        assert_eq!(ask(&table, key), "absent");
        put(&table, key, value);
        assert_eq!(ask(&table, key), format!("={}", value.escape_ascii()));
    }
    let mut random = Random(0x5eed);
    let mut model = BTreeMap::new();
    for _ in 0..500 {
        let (key, value) = (random.key(), random.key());
        match random.below(3) {
            0 => {
                let there = model.remove(&key).is_some();
                let wanted = if there {
                    Outcome::Done
                } else {
                    Outcome::Absent
                };
                assert_eq!(table.delete(Flags::empty(), &key).unwrap(), wanted);
            }
            1 => {
                put(&table, &key, &value);
                model.insert(key, value);
            }
            _ => {
                let wanted = match model.get(&key) {
                    Some(value) => format!("={}", value.escape_ascii()),
                    None => "absent".to_owned(),
                };
                assert_eq!(ask(&table, &key), wanted);
            }
        }
    }
    let count: usize = redis.command(&[b"DBSIZE"]).parse().unwrap();
    assert_eq!(
        count,
        model.keys().filter(|key| !ODD.contains(&&key[..])).count() + ODD.len()
    );

    let left = || -> i64 { redis.command(&[b"TTL", b"c:k"]).parse().unwrap() };
    put(&table, b"k", b"v");
    assert!((90..=100).contains(&left()));
    redis.command(&[b"EXPIRE", b"c:k", b"5"]);
    put(&table, b"k", b"w");
    assert!(left() > 90);
    put(&cache(&format!("{hosts}ttl = 0\n")), b"k", b"w");
    assert_eq!(left(), -1);
    put(&cache(&hosts), b"k", b"w");
    assert!(left() > 30 * 86400);
    let brief = cache(&format!("{hosts}ttl = 1s\n"));
    put(&brief, b"brief", b"v");
    assert_eq!(ask(&brief, b"brief"), "=v");
    wait_until("the end of an entry", || ask(&brief, b"brief") == "absent");

    // Without a word about duplicates they are faults.
    let again = |flags| table.update(flags, b"k", b"other");
    assert!(
        matches!(again(Flags::empty()), Err(LookupError::Config(text)) if text.ends_with(": duplicate entry: \"k\""))
    );
    assert_eq!(again(Flags::DUP_IGNORE).unwrap(), Outcome::Absent);
    assert_eq!(ask(&table, b"k"), "=w");
    let largest = vec![b'x'; 4000];
    put(&table, b"k", &largest);
    assert_eq!(ask(&table, b"k").len(), 4001);
    let larger = table.update(Flags::DUP_REPLACE, b"k", &[b'x'; 4001]);
    assert!(matches!(larger, Err(LookupError::Retry(_))));
    assert_eq!(ask(&table, b"k").len(), 4001);
}

#[test]
fn what_cannot_be_written_does_not_open() {
    let directory = Scratch::new("redis-table").unwrap();
    for (access, text) in [
        (Access::ReadWrite, "key_format = %s"),
        (Access::ReadWrite, ""),
        (Access::ReadWrite, "key_format = a:%u"),
        (Access::ReadWrite, "command = GET a:%s"),
        (Access::ReadWrite, "key_format = a:%s\nresult_format = x%s"),
        (Access::Read, "command = SET a:%s x"),
        (Access::Read, "ttl = 1x"),
        (Access::Read, "ttl = 10ms"),
        (Access::Read, "cleanup_lease = -1"),
        (Access::Read, "data_size_limit = 0"),
        (Access::Read, "tls_CAfile = /nonexistent"),
        (Access::Read, "key_format = %x"),
    ] {
        let opened = open_in(directory.path(), access, &format!("{text}\n"));
        assert!(opened.is_err(), "{text}");
    }
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let table = reading(&format!("hosts = {}\n", redis.host()));
    let mut cursor = Cursor::default();
    let walked = table.sequence(
        Flags::empty(),
        Step::First,
        &mut cursor,
        &mut Vec::new(),
        &mut Vec::new(),
    );
    assert!(matches!(walked, Err(LookupError::Config(_))));
    assert!(matches!(
        table.update(Flags::empty(), b"k", b"v"),
        Ok(Outcome::Absent)
    ));
}

#[test]
fn a_walk_has_each_entry_once() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let hosts = format!("hosts = {}\n", redis.host());
    let table = cache(&format!(
        "{hosts}cleanup_lease = 0\ndata_size_limit = 100\n"
    ));
    let mut wanted = BTreeSet::new();
    for number in 0..2000 {
        let key = format!("{number}@example.com");
        put(&table, key.as_bytes(), key.as_bytes());
        wanted.insert(key.into_bytes());
    }
    for key in ODD {
        put(&table, key, b"odd");
        wanted.insert(key.to_vec());
    }
    // Not the table's, no strings, or too large.
    redis.command(&[b"SET", b"other:1", b"x"]);
    redis.command(&[b"SET", b"cx1", b"x"]);
    redis.command(&[b"SET", b"c:", b"x"]);
    redis.command(&[b"HSET", b"c:hash", b"a", b"b"]);
    redis.command(&[b"SET", b"c:large", &[b'x'; 101]]);
    let found = walk(&table);
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(found[&b"7@example.com"[..]], b"7@example.com");

    // Entries come and go; all that stay are met once.
    let (mut cursor, mut key, mut value) = (Cursor::default(), Vec::new(), Vec::new());
    let mut step = Step::First;
    let mut seen = BTreeSet::new();
    for turn in 0.. {
        key.clear();
        value.clear();
        let outcome = table.sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value);
        if outcome.unwrap() == Outcome::Absent {
            break;
        }
        step = Step::Next;
        assert!(seen.insert(key.clone()));
        // As a cleaner deletes: the one before the current.
        table.delete(Flags::empty(), &key).unwrap();
        if turn % 4 == 0 {
            let new = format!("new{turn}");
            put(&table, new.as_bytes(), b"x");
        }
    }
    assert!(wanted.is_subset(&seen));
    // Two at a time do not disturb each other.
    let left = walk(&table);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(walk(&table), left));
        }
    });
    // The end repeats; more walks than are kept are given up, not mixed up.
    let mut cursors: Vec<_> = (0..20).map(|_| Cursor::default()).collect();
    let step_of = |cursor: &mut Cursor, step| {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        table.sequence(Flags::empty(), step, cursor, &mut key, &mut value)
    };
    for cursor in &mut cursors {
        assert_eq!(step_of(cursor, Step::First).unwrap(), Outcome::Done);
    }
    assert!(matches!(
        step_of(&mut cursors[0], Step::Next),
        Err(LookupError::Retry(_))
    ));
    assert_eq!(
        step_of(&mut cursors[19], Step::Next).unwrap(),
        Outcome::Done
    );
    let mut cursor = Cursor::default();
    assert_eq!(step_of(&mut cursor, Step::Next).unwrap(), Outcome::Absent);
}

/// A server that answers a command by what `answer` says of it.
fn scripted(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Server {
    Server::start(move |mut client| {
        let mut input = [0; 1000];
        while let Ok(count @ 1..) = client.read(&mut input) {
            let question = String::from_utf8_lossy(&input[..count]);
            if client.write_all(answer(&question).as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn keys_that_a_server_repeats_come_once() {
    let server = scripted(|question| {
        let list = |position, keys: [&str; 3]| {
            let keys = keys.map(|key| format!("${}\r\n{key}\r\n", key.len()));
            format!("*2\r\n$1\r\n{position}\r\n*3\r\n{}", keys.concat())
        };
        match question {
            scan if scan.contains("SCAN\r\n$1\r\n0\r\n") => list(7, ["c:a", "c:b", "c:a"]),
            scan if scan.contains("SCAN\r\n$1\r\n7\r\n") => list(0, ["c:b", "c:d", "c:e"]),
            // It has vanished meanwhile.
            value if value.contains("c:e") => "$0\r\n\r\n".to_owned(),
            _ => "$1\r\nv\r\n".to_owned(),
        }
    });
    let text = format!("hosts = 127.0.0.1:{}\ncleanup_lease = 0\n", server.port);
    let found = walk(&cache(&text));
    let keys: Vec<_> = found.keys().map(|key| &key[..]).collect();
    assert_eq!(keys, [b"a", b"b", b"d"]);
}

#[test]
fn one_cleaner_keeps_all_others_away() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let text = format!("hosts = {}\n", redis.host());
    let tables: Vec<_> = (0..4).map(|_| cache(&text)).collect();
    for number in 0..20 {
        put(&tables[0], format!("{number}").as_bytes(), b"x");
    }
    let walks: Vec<_> = thread::scope(|scope| {
        let walks: Vec<_> = tables
            .iter()
            .map(|table| scope.spawn(|| walk(table).len()))
            .collect();
        walks.into_iter().map(|walk| walk.join().unwrap()).collect()
    });
    assert_eq!(
        walks.iter().filter(|&&count| count == 20).count(),
        1,
        "{walks:?}"
    );
    assert_eq!(
        walks.iter().filter(|&&count| count == 0).count(),
        3,
        "{walks:?}"
    );
    // The lease is no entry, and ends.
    let left: i64 = redis
        .command(&[b"TTL", b"c:_CLEANUP_LEASE_"])
        .parse()
        .unwrap();
    assert!((3500..=3600).contains(&left));
    let holder = walks.iter().position(|&count| count == 20).unwrap();
    assert_eq!(walk(&tables[holder]).len(), 20);
    // Who only looks is not kept away, and keeps nobody away.
    assert_eq!(
        walk(&open(Access::Read, &format!("key_format = c:%s\n{text}"))).len(),
        20
    );
    let other = &tables[(holder + 1) % 4];
    assert_eq!(walk(other).len(), 0);
    redis.command(&[b"DEL", b"c:_CLEANUP_LEASE_"]);
    assert_eq!(walk(other).len(), 20);
    assert_eq!(walk(&tables[holder]).len(), 0);

    // Whoever loses it in the middle stops.
    redis.command(&[b"FLUSHALL"]);
    let text = format!("{text}cleanup_lease = 1s\n");
    let table = cache(&text);
    for number in 0..20 {
        put(&table, format!("{number}").as_bytes(), b"x");
    }
    let (mut cursor, mut key, mut value) = (Cursor::default(), Vec::new(), Vec::new());
    let mut step = |step| table.sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value);
    assert_eq!(step(Step::First).unwrap(), Outcome::Done);
    thread::sleep(Duration::from_millis(600));
    assert_eq!(step(Step::Next).unwrap(), Outcome::Done);
    let left: i64 = redis
        .command(&[b"PTTL", b"c:_CLEANUP_LEASE_"])
        .parse()
        .unwrap();
    assert!(left > 450, "not renewed: {left}");
    redis.command(&[b"SET", b"c:_CLEANUP_LEASE_", b"somebody"]);
    thread::sleep(Duration::from_millis(600));
    assert_eq!(step(Step::Next).unwrap(), Outcome::Absent);
}

#[test]
fn a_server_that_is_away_is_asked_again_later() {
    let Some(mut redis) = Redis::start(&[]) else {
        return;
    };
    let text = format!(
        "hosts = {}\nanswer_timeout = 300ms\nconnect_timeout = 300ms\nretry_interval = 0\nbreaker_failures = 0\n",
        redis.host()
    );
    let table = cache(&text);
    put(&table, b"k", b"v");
    assert_eq!(ask(&table, b"k"), "=v");
    // Started anew: the connection that lies idle is dead, and nobody notices.
    redis.process.stop();
    redis.restart();
    assert_eq!(ask(&table, b"k"), "absent");
    put(&table, b"k", b"v");
    // It never answers, neither to the question nor to a new connection.
    redis.process.suspend();
    let begun = Instant::now();
    assert_eq!(ask(&table, b"k"), "retry");
    assert!(table.update(Flags::DUP_REPLACE, b"k", b"w").is_err());
    let mut cursor = Cursor::default();
    let walked = table.sequence(
        Flags::empty(),
        Step::First,
        &mut cursor,
        &mut Vec::new(),
        &mut Vec::new(),
    );
    assert!(matches!(walked, Err(LookupError::Retry(_))));
    assert!(begun.elapsed() < Duration::from_secs(5));
    // It ends while it is asked.
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(ask(&table, b"k"), "retry"));
        thread::sleep(Duration::from_millis(50));
        redis.process.kill();
    });
    assert_eq!(ask(&table, b"k"), "retry");
    redis.restart();
    assert_eq!(ask(&table, b"k"), "absent");
    // The next server has the place of one that is away, or cannot be written to.
    let of = format!("127.0.0.1 {}", redis.port);
    let replica = Redis::start(&["--replicaof", &of]).unwrap();
    replica.wait_for(&[b"ROLE"], "connected");
    let both = cache(&format!(
        "hosts = 127.0.0.1:1 {} {}\nretry_interval = 1h\n",
        replica.host(),
        redis.host()
    ));
    for number in 0..5 {
        put(&both, format!("{number}").as_bytes(), b"v");
        assert_eq!(ask(&both, format!("{number}").as_bytes()), "=v");
    }
}

/// Standard error of our `postmap -q`, and its exit status.
fn postmap(directory: &Path, text: &str) -> Option<(String, Option<i32>)> {
    let binary = postkeep_binary()?;
    let config = directory.join("cfg");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("main.cf"), "maillog_file =\n").unwrap();
    let file = directory.join("t.cf");
    fs::write(&file, text).unwrap();
    let output = Command::new(binary)
        .args(["postmap", "-q", "k", &format!("redis:{}", file.display())])
        .env("MAIL_CONFIG", &config)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((said, output.status.code()))
}

#[test]
fn passwords_are_needed_and_not_told() {
    let users = "--user default off --user mail on >secret ~* +@all -@dangerous";
    let users: Vec<_> = users.split(' ').collect();
    let Some(redis) = Redis::start(&["--requirepass", "hidden"]) else {
        return;
    };
    let Some(with_users) = Redis::start(&users) else {
        return;
    };
    let directory = Scratch::new("redis-table").unwrap();
    let (host, other) = (redis.host(), with_users.host());
    let ask = |host: &str, keys: &str| {
        let text = format!("hosts = {host}\n{keys}\n");
        ask(
            &open_in(directory.path(), Access::Read, &text).unwrap(),
            b"k",
        )
    };
    assert_eq!(ask(&host, "password = hidden"), "absent");
    assert_eq!(ask(&host, "user = default\npassword = hidden"), "absent");
    assert_eq!(ask(&host, "password = hidden\ndatabase = 15"), "absent");
    assert_eq!(ask(&host, "password = hidden\ndatabase = 99"), "retry");
    assert_eq!(ask(&host, "password = wrong"), "retry");
    assert_eq!(ask(&host, ""), "retry");
    assert_eq!(ask(&other, "user = mail\npassword = secret"), "absent");
    assert_eq!(ask(&other, "user = mail\npassword = Secret"), "retry");
    assert_eq!(ask(&other, "password = secret"), "retry");
    let text = format!("hosts = {host}\npassword = Sesame5\n");
    let Some((said, exit)) = postmap(directory.path(), &text) else {
        return;
    };
    assert_eq!(exit, Some(1));
    let wanted = format!("postmap: warning: connect to redis server {host}: WRONGPASS ");
    assert!(said.starts_with(&wanted), "{said}");
    assert!(said.contains(": query error: "), "{said}");
    assert!(!said.contains("Sesame5"), "{said}");
}

#[test]
fn tls_is_with_whom_it_is_asked_for() {
    let options = ["--tls-auth-clients", "optional"];
    let Some(redis) = Redis::with_tls(|made| &made.server, &options) else {
        return;
    };
    let Some(strict) = Redis::with_tls(|made| &made.server, &["--requirepass", "x"]) else {
        return;
    };
    let Some(misnamed) = Redis::with_tls(|made| &made.misnamed, &options) else {
        return;
    };
    let Some(plain) = Redis::start(&[]) else {
        return;
    };
    let authority = |redis: &Redis| {
        let made: &Certificates = redis.certificates.as_ref().unwrap();
        format!("tls_CAfile = {}\n", made.authority.display())
    };
    let stranger = redis.certificates.as_ref().unwrap().stranger.display();
    let ask = |redis: &Redis, keys: &str| {
        let text = format!("hosts = {}\nconnect_timeout = 2s\n{keys}", redis.host());
        ask(&reading(&text), b"k")
    };
    assert_eq!(ask(&redis, &authority(&redis)), "absent");
    assert_eq!(ask(&redis, &format!("tls_CAfile = {stranger}\n")), "retry");
    assert_eq!(ask(&redis, "tls_verify_cert = no\n"), "absent");
    assert_eq!(ask(&redis, "tls_verify_cert = yes\n"), "retry");
    assert_eq!(ask(&redis, ""), "retry");
    assert_eq!(ask(&plain, &authority(&redis)), "retry");
    assert_eq!(ask(&misnamed, &authority(&misnamed)), "retry");
    let named = format!("{}tls_server_name = other.example\n", authority(&misnamed));
    assert_eq!(ask(&misnamed, &named), "absent");
    // Our own certificate is asked for.
    let without = format!("{}password = x\n", authority(&strict));
    assert_eq!(ask(&strict, &without), "retry");
    let client = &strict.certificates.as_ref().unwrap().client;
    let with = format!(
        "{without}tls_cert_file = {}\ntls_key_file = {}\n",
        client.certificate.display(),
        client.key.display()
    );
    assert_eq!(ask(&strict, &with), "absent");
    // Large values in both directions.
    let table = cache(&format!("hosts = {}\n{}", redis.host(), authority(&redis)));
    let large = vec![b'x'; 1 << 20];
    for _ in 0..3 {
        put(&table, b"k", &large);
        let mut value = Vec::new();
        table.lookup(Flags::empty(), b"k", &mut value).unwrap();
        assert!(value == large);
    }
}

#[test]
fn bad_servers_are_no_danger() {
    let answers: &[&[u8]] = &[
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$5\r\nab",
        b"$99999999999\r\n",
        b"$-2\r\nx",
        b"*2147483647\r\n",
        b"*100000\r\n*100000\r\n",
        b"*1\r\n*1\r\n$1\r\nx\r\n",
        b"+a status\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b"-\r\n",
        b"-MOVED\r\n",
        b"-MOVED 1 127.0.0.1:1\r\n",
        b"-ASK x y\r\n",
        b"-ERR \xff\xfe\r\n",
        b":12x\r\n",
        b"$1\r\nxyz",
        b"\r\n\r\n\r\n",
    ];
    for &answer in answers {
        let server = Server::start(move |mut client| {
            let mut input = [0; 1000];
            while client.read(&mut input).is_ok_and(|count| count > 0) {
                if answer.is_empty() || client.write_all(answer).is_err() {
                    return;
                }
            }
        });
        for keys in [
            "command = LRANGE %s 0 -1",
            "key_format = c:%s",
            "key_format = c:%s\ncluster = yes",
            "key_format = c:%s\nsentinel_master = m",
            "key_format = c:%s\npassword = x",
        ] {
            let text = format!(
                "hosts = 127.0.0.1:{}\nanswer_timeout = 100ms\nconnect_timeout = 100ms\n{keys}\n",
                server.port
            );
            let table = reading(&text);
            let found = ask(&table, b"k");
            assert!(
                found == "retry" || found == "config",
                "{keys}: {}: {found}",
                answer.escape_ascii()
            );
        }
    }
    // Bytes after an answer are not taken for the next one.
    let server = Server::start(|mut client| {
        let mut input = [0; 1000];
        for number in 0.. {
            if !client.read(&mut input).is_ok_and(|count| count > 0) {
                return;
            }
            let _ = write!(client, "$1\r\n{number}\r\n$5\r\nstale\r\n");
        }
    });
    let table = reading(&format!("hosts = 127.0.0.1:{}\n", server.port));
    for _ in 0..3 {
        assert_eq!(ask(&table, b"k"), "=0");
    }
    assert_eq!(server.total(), 3);
}

#[test]
fn sentinels_tell_who_has_the_data() {
    let Some(mut watched) = Watched::start() else {
        return;
    };
    // A sentinel that is away, and one that is none, are passed over.
    let table = cache(&format!(
        "hosts = 127.0.0.1:1 {} 127.0.0.1:{}\nsentinel_master = mail\nretry_interval = 0\nbreaker_failures = 0\n",
        watched.servers[0].host(),
        watched.port
    ));
    put(&table, b"k", b"v");
    assert_eq!(ask(&table, b"k"), "=v");
    let unknown = reading(&format!(
        "hosts = 127.0.0.1:{}\nsentinel_master = nobody\n",
        watched.port
    ));
    assert_eq!(ask(&unknown, b"k"), "retry");
    watched.servers[1].wait_for(&[b"GET", b"c:k"], "v");
    // Whom a sentinel names has to be the master.
    let replica = watched.servers[1].port.to_string();
    let outdated = scripted(move |_| {
        let port = &replica;
        format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
    });
    let text = format!(
        "key_format = c:%s\nsentinel_master = mail\nhosts = 127.0.0.1:{}",
        outdated.port
    );
    assert_eq!(ask(&reading(&format!("{text}\n")), b"k"), "retry");
    let text = format!("{text} 127.0.0.1:{}\n", watched.port);
    assert_eq!(ask(&reading(&text), b"k"), "=v");
    // The master dies: lookups are told to come again until there is another one.
    watched.servers[0].process.kill();
    wait_until("another master", || match &ask(&table, b"k")[..] {
        "=v" => true,
        "retry" => false,
        other => panic!("{other}"),
    });
    put(&table, b"k", b"w");
    assert_eq!(watched.servers[1].command(&[b"GET", b"c:k"]), "w");
    // The old one comes back as a replica.
    watched.servers[0].restart();
    let port = watched.servers[1].port.to_string();
    watched.servers[0].command(&[b"REPLICAOF", b"127.0.0.1", port.as_bytes()]);
    watched.servers[0].wait_for(&[b"ROLE"], "connected");
    put(&table, b"k", b"x");
    assert_eq!(ask(&table, b"k"), "=x");
    // Without sentinels connections go on, as long as they last.
    watched.stop_sentinel();
    assert_eq!(ask(&table, b"k"), "=x");
}

#[test]
fn a_cluster_is_one_table() {
    let Some(mut nodes) = cluster() else {
        return;
    };
    let text = format!(
        "hosts = 127.0.0.1:1 {}\ncluster = yes\nretry_interval = 0\nbreaker_failures = 0\n",
        nodes[0].host()
    );
    let table = cache(&text);
    let mut wanted = BTreeSet::new();
    for number in 0..300 {
        let key = format!("{number}");
        put(&table, key.as_bytes(), b"v");
        assert_eq!(ask(&table, key.as_bytes()), "=v");
        wanted.insert(key.into_bytes());
    }
    for key in ODD {
        put(&table, key, b"v");
        assert_eq!(ask(&table, key), "=v");
        wanted.insert(key.to_vec());
    }
    for node in &nodes {
        let count: usize = node.command(&[b"DBSIZE"]).parse().unwrap();
        assert!(count > 50, "{count} keys");
    }
    assert_eq!(
        walk(&table).keys().cloned().collect::<BTreeSet<_>>(),
        wanted
    );
    // Not for those who do not know that it is one.
    let alone = reading(&format!("hosts = {}\nkey_format = c:%s\n", nodes[0].host()));
    let found: BTreeSet<_> = (0..20)
        .map(|number| ask(&alone, number.to_string().as_bytes()))
        .collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["=v", "config"]);

    // A slot moves: keys that are not at the old node are asked for at the new one, this time.
    let id = |node: &Redis| node.command(&[b"CLUSTER", b"MYID"]);
    let slot = nodes[0].command(&[b"CLUSTER", b"KEYSLOT", b"c:moving"]);
    let owner = nodes
        .iter()
        .position(|node| !node.command(&[b"GET", b"c:moving"]).starts_with("MOVED"))
        .unwrap();
    let target = (owner + 1) % 3;
    let (from, to) = (id(&nodes[owner]), id(&nodes[target]));
    let set = |node: &Redis, how: &[&[u8]]| {
        let words = [&[b"CLUSTER", b"SETSLOT", slot.as_bytes()], how].concat();
        assert_eq!(node.command(&words), "OK");
    };
    set(&nodes[target], &[b"IMPORTING", from.as_bytes()]);
    set(&nodes[owner], &[b"MIGRATING", to.as_bytes()]);
    put(&table, b"moving", b"there");
    assert_eq!(ask(&table, b"moving"), "=there");
    assert!(
        nodes[owner]
            .command(&[b"GET", b"c:moving"])
            .starts_with("ASK")
    );
    // Then it has moved.
    set(&nodes[target], &[b"NODE", to.as_bytes()]);
    set(&nodes[owner], &[b"NODE", to.as_bytes()]);
    assert_eq!(ask(&table, b"moving"), "=there");
    let before = nodes[owner].command(&[b"INFO", b"commandstats"]);
    assert_eq!(ask(&table, b"moving"), "=there");
    let gets = |info: &str| {
        info.lines()
            .find(|line| line.starts_with("cmdstat_get:"))
            .map(str::to_owned)
    };
    assert_eq!(
        gets(&before),
        gets(&nodes[owner].command(&[b"INFO", b"commandstats"]))
    );

    // A node dies: its keys are for later, the others are there.
    nodes[target].process.kill();
    assert_eq!(ask(&table, b"moving"), "retry");
    let found: BTreeSet<_> = (0..60)
        .map(|number| ask(&table, number.to_string().as_bytes()))
        .collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["=v", "retry"]);
}
