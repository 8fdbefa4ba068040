//! The installed postmap against ours, on `memcache:` tables: one memcached for both, emptied between the two, and a
//! server of the test that answers as no memcached does.
//!
//! What differs on purpose is not compared: the reason of an I/O error.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_interop::servers::memcached::Memcached;
use postkeep_interop::servers::{Server, read_until};

/// The commands and the files of each side have the name of its directory where these have this word: the installed
/// programs and ours run at once, as both wait most of the time.
const SIDE: &str = "/SIDE/";

const NAMES: [&str; 2] = ["/real/", "/mine/"];

struct Place {
    sides: Sides,
    servers: [Memcached; 2],
    tables: AtomicUsize,
}

/// What a command told, and what it left in the server.
type Told = (Option<i32>, String, Vec<String>);

fn told(outcome: &Outcome) -> Told {
    let cut = |line: &str| {
        let line = NAMES
            .iter()
            .fold(line.to_owned(), |line, name| line.replace(name, SIDE));
        for mark in ["query error: ", "I/O error", "lookup error: ", " error: "] {
            if let Some(at) = line.find(mark) {
                return line[..at + mark.len()].to_owned();
            }
        }
        line
    };
    (
        outcome.exit,
        outcome.stdout.escape_ascii().to_string(),
        outcome.stderr.lines().map(cut).collect(),
    )
}

/// What the two programs told of commands that may name files of [`SIDE`].
fn both(sides: &Sides, words: &[&str], input: &[u8]) -> [Told; 2] {
    let words = NAMES.map(|name| {
        let words = words.iter().map(|word| word.replace(SIDE, name));
        words.collect::<Vec<_>>()
    });
    let words = words
        .each_ref()
        .map(|side| side.iter().map(String::as_str).collect::<Vec<_>>());
    sides
        .both(words.each_ref().map(Vec::as_slice), input)
        .map(|outcome| told(&outcome))
}

impl Place {
    fn new() -> Option<Self> {
        Self::with([Memcached::start()?, Memcached::start()?])
    }

    fn with(servers: [Memcached; 2]) -> Option<Self> {
        let sides = Sides::new()?;
        for name in NAMES {
            sides.directory(name.trim_matches('/'));
        }
        Some(Self {
            sides,
            servers,
            tables: AtomicUsize::new(0),
        })
    }

    /// A file of either side.
    fn file(&self, name: &str, text: &[&str; 2]) -> String {
        for (side, text) in NAMES.iter().zip(text) {
            let file = self.sides.root().join(format!("{}{name}", &side[1..]));
            write_old(&file, text.replace(SIDE, side).as_bytes());
        }
        format!("{}{SIDE}{name}", self.sides.root().display())
    }

    /// A table of the server.
    fn table(&self, more: &str) -> String {
        let number = self.tables.fetch_add(1, Ordering::Relaxed);
        let text = self
            .servers
            .each_ref()
            .map(|server| format!("memcache = {}\n{more}", server.place));
        let file = self.file(
            &format!("t{number}.cf"),
            &text.each_ref().map(String::as_str),
        );
        format!("memcache:{file}")
    }

    /// Runs commands with each program, on a server with `before` in it; asks the server for `keys` afterwards.
    fn same(
        &self,
        before: &[(&str, &[u8])],
        commands: &[(&[&str], &[u8])],
        keys: &[&str],
    ) -> Vec<Told> {
        for server in &self.servers {
            server.say(b"flush_all\r\n", "OK\r\n");
            for (key, value) in before {
                let words = format!("set {key} 0 0 {}\r\n", value.len());
                server.say(&[words.as_bytes(), value, b"\r\n"].concat(), "STORED\r\n");
            }
        }
        let outcomes = commands.iter().map(|(words, input)| {
            let [real, ours] = both(&self.sides, words, input);
            assert_eq!(real, ours, "{words:?}: the first is the installed one");
            ours
        });
        let outcomes = outcomes.collect();
        let [real, ours] = self.servers.each_ref().map(|server| {
            let left = keys.iter().map(|key| {
                let answer = server.say(format!("get {key}\r\n").as_bytes(), "END\r\n");
                answer.escape_ascii().to_string()
            });
            left.collect::<Vec<_>>()
        });
        assert_eq!(real, ours, "{commands:?}: the first is the installed one");
        outcomes
    }
}

/// Values that are there before.
const BEFORE: &[(&str, &[u8])] = &[
    ("a", b"found"),
    ("lf", b"x\r\ny"),
    ("empty", b""),
    ("nul", b"a\0b"),
    ("bad", b"\xff"),
    ("u@d.example", b"address"),
    ("big", &[b'x'; 10240]),
    ("bigger", &[b'x'; 10241]),
];

/// Checks cases side by side, each share with a server of its own: a failed command takes seconds, and does nothing
/// meanwhile.
fn spread<T: Sync>(cases: &[T], check: impl Fn(&Place, &T) + Sync) {
    thread::scope(|scope| {
        for share in cases.chunks(cases.len().div_ceil(40)) {
            let check = &check;
            scope.spawn(move || {
                let Some(place) = Place::new() else { return };
                for case in share {
                    check(&place, case);
                }
            });
        }
    });
}

#[test]
fn keys_and_values() {
    let (long, fits) = ("k".repeat(251), "k".repeat(250));
    let keys = [
        "a",
        "A",
        "nosuch",
        "lf",
        "empty",
        "nul",
        "bad",
        "u@d.example",
        "big",
        "bigger",
        "a b",
        "",
        "a\tb",
        &long,
        &fits,
        "a\u{1}b",
        "\u{e9}",
        "a\r\nflush_all",
        "it's",
        "%s",
        "\\",
    ];
    spread(&keys, |place, key| {
        let table = place.table("");
        place.same(BEFORE, &[(&["postmap", "-q", key, &table], b"")], &["a"]);
    });
}

#[test]
fn updates_and_deletions() {
    let long = "k".repeat(251);
    let tables = [
        "",
        "flags = 7\nttl = 100\n",
        "key_format = p:%u:%d:%1\n",
        "domain = d.example\n",
        "data_size_limit = 5\nline_size_limit = 30\n",
    ];
    let entries = [
        ("k", "value"),
        ("k", "longer value"),
        ("U@D.Example", "v"),
        ("u@other.example", "v"),
        ("a\u{a0}b", "v"),
        ("@d.example", "v"),
        (&long[..], "v"),
    ];
    let mut cases = Vec::new();
    for table in tables {
        for (key, value) in entries {
            // What the first command leaves is looked at, too. With a key that the server refuses each waits.
            let some: &[_] = if key == long {
                &[0..1, 1..2, 2..3]
            } else {
                &[0..1, 0..4]
            };
            cases.extend(some.iter().map(|some| (table, key, value, some.clone())));
        }
    }
    spread(&cases, |place, (table, key, value, some)| {
        let table = place.table(table);
        let input = format!("{key}\t{value}\n");
        let keys = [
            "k",
            "u@d.example",
            "p:u:d.example:example",
            "u@other.example",
        ];
        let commands: &[(&[&str], &[u8])] = &[
            (&["postmap", "-i", &table], input.as_bytes()),
            (&["postmap", "-q", key, &table], b""),
            (&["postmap", "-d", key, &table], b""),
            (&["postmap", "-d", key, &table], b""),
        ];
        place.same(BEFORE, &commands[some.clone()], &keys);
    });
}

#[test]
fn keys_with_blanks_listing_and_making() {
    let Some(place) = Place::new() else { return };
    let table = place.table("");
    place.same(
        &[],
        &[
            (&["postmap", "-s", &table], b""),
            (&["postmap", &table], b""),
            (&["postmap", "-d", "a b", &table], b""),
            (&["postmap", "-i", &table], b"\"a b\" value\n"),
        ],
        &["a"],
    );
}

#[test]
fn a_backup_is_asked_and_kept() {
    let cases = [
        "",
        "key_format = p_%s\nflags = 5\n",
        "data_size_limit = 10\n",
        "domain = d.example\n",
    ];
    spread(&cases, check_with_backup);
    let backups = ["fail:x", "nosuch:x", "lmdb:/no/such", "static", "static:x"];
    spread(&backups, |place, backup| {
        let table = place.table(&format!("backup = {backup}\n"));
        place.same(&[], &[(&["postmap", "-q", "a", &table], b"")], &["a"]);
    });
}

fn check_with_backup(place: &Place, more: &&str) {
    for name in NAMES {
        write_old(
            &place.sides.root().join(&name[1..]).join("backup"),
            b"a backup\nlong vvvvvvvvvvvvvvvvvvvvvv\nbad \xff\nu@d.example address\n",
        );
    }
    let index = format!("lmdb:{}{SIDE}backup", place.sides.root().display());
    let made = both(&place.sides, &["postmap", &index], b"");
    assert!(made.iter().all(|(exit, ..)| *exit == Some(0)), "{made:?}");
    let table = place.table(&format!("backup = {index}\n{more}"));
    let long = "k".repeat(300);
    for key in ["a", "nosuch", "long", "bad", "u@d.example", &long] {
        let commands: &[(&[&str], &[u8])] = &[(&["postmap", "-q", key, &table], b"")];
        place.same(&[], commands, &["a", "p_a", "long", "u@d.example"]);
        place.same(&[("a", b"kept")], commands, &["a", "p_a"]);
    }
    let commands: &[(&[&str], &[u8])] = &[
        (&["postmap", "-i", &table], b"n value\n"),
        (&["postmap", "-q", "n", &table], b""),
        (&["postmap", "-q", "n", &index], b""),
        (&["postmap", "-s", &table], b""),
        (&["postmap", "-d", "n", &table], b""),
        (&["postmap", "-d", "n", &table], b""),
        (&["postmap", "-q", "n", &index], b""),
    ];
    place.same(&[], commands, &["n", "p_n"]);
}

#[test]
fn random_keys_and_values() {
    let Some(place) = Place::new() else { return };
    let table = place.table("");
    let mut random = Random(0x5eed_0016);
    let (mut source, mut keys) = (Vec::new(), Vec::new());
    for number in 0..200 {
        let key = random.key();
        source.extend([&key[..], format!("\tvalue{number}\n").as_bytes()].concat());
        keys.extend([&key[..], b"\n"].concat());
    }
    for option in ["-f", "-u", "-N"] {
        place.same(
            &[],
            &[
                (&["postmap", option, "-i", &table], &source),
                (&["postmap", option, "-q", "-", &table], &keys),
                (&["postmap", option, "-d", "-", &table], &keys),
                (&["postmap", option, "-q", "-", &table], &keys),
            ],
            &["a", "b", "E.f"],
        );
    }
}

#[test]
fn a_server_that_is_away() {
    let Some(mut place) = Place::new() else {
        return;
    };
    let with_backup = place.table("backup = static:x\ntimeout = 1\n");
    let alone = place.table("timeout = 1\n");
    // Both tables at once.
    let one = |place: &Place, key, table| {
        let mut sides = both(&place.sides, &["postmap", "-q", key, table], b"");
        for ((.., lines), server) in sides.iter_mut().zip(&place.servers) {
            let shown = server.place.trim_start_matches("inet:");
            for line in lines {
                *line = line.replace(shown, "SERVER");
            }
        }
        assert_eq!(sides[0], sides[1], "the first is the installed one");
        sides[0].0
    };
    // Both tables at once.
    let ask = |place: &Place| {
        thread::scope(|scope| {
            let other = scope.spawn(|| one(place, "a", &with_backup));
            [one(place, "b", &alone), other.join().unwrap()]
        })
    };
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &place.servers {
        server.process.suspend();
    }
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &mut place.servers {
        server.process.resume();
        server.process.kill();
    }
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    for server in &mut place.servers {
        server.restart();
    }
    assert_eq!(one(&place, "a", &alone), Some(1));
    assert_eq!(ask(&place), [Some(1), Some(0)]);
    // What the backup said is in the server now.
    assert_eq!(one(&place, "a", &alone), Some(0));
}

/// Answers of no memcached, to each request the same.
#[test]
fn answers_that_are_none() {
    let Some(sides) = Sides::new() else { return };
    let answers: [&[u8]; 24] = [
        b"END\n",
        b"END\r\nmore",
        b"end\r\n",
        b"\r\n",
        b"ERROR\r\n",
        b"SERVER_ERROR out of memory, and some more words behind it\r\n",
        b"VALUE k 0 1\r\nx\r\nEND\r\n",
        b"VALUE k 0 1 99\r\nx\r\nEND\r\n",
        b"VALUE  other  9  +1 \r\nx\r\nEND\r\n",
        b"VALUE k 0 1x\r\nx\r\nEND\r\n",
        b"VALUE k 0 1\nx\r\nEND\n",
        b"VALUE k 0 1\r\nx\r\nEN\r\n",
        b"VALUE k 0 1\r\nx\r\n",
        b"VALUE k 0 1\r\nx\n",
        b"VALUE k 0 1\r\nxx\r\nEND\r\n",
        b"VALUE k 0 5\r\nx\r\nEND\r\n",
        b"VALUE k 0\r\nx\r\nEND\r\n",
        b"VALUE k 0 -1\r\nx\r\nEND\r\n",
        b"VALUE k 0 10241\r\nx\r\nEND\r\n",
        b"VALUE k 0 99999999999999999999999\r\nx\r\nEND\r\n",
        b"STORED\r\n",
        b"DELETED\r\n",
        b"NOT_FOUND\r\n",
        b"",
    ];
    let long = [&[b'x'; 1100][..], b"\r\n"].concat();
    thread::scope(|scope| {
        for (number, answer) in answers.into_iter().chain([&long[..]]).enumerate() {
            let sides = &sides;
            let answer = answer.to_vec();
            scope.spawn(move || {
                let shown = answer[..answer.len().min(60)].escape_ascii().to_string();
                // One answer for each connection.
                let server = Server::start(move |mut client| {
                    let _ = read_until(&mut client, b'\n');
                    let _ = client.write_all(&answer);
                });
                let file = sides.root().join(format!("a{number}.cf"));
                let text = format!("memcache = inet:127.0.0.1:{}\nmax_try = 2\n", server.port);
                write_old(&file, text.as_bytes());
                compare(sides, &format!("memcache:{}", file.display()), &shown);
            });
        }
    });
}

/// Asks, stores and deletes at once.
fn compare(sides: &Sides, table: &str, note: &str) {
    let commands: [(&[&str], &[u8]); 3] = [
        (&["postmap", "-q", "k", table], b""),
        (&["postmap", "-i", table], b"k v\n"),
        (&["postmap", "-d", "k", table], b""),
    ];
    thread::scope(|scope| {
        for (words, input) in commands {
            scope.spawn(move || {
                let [real, ours] = both(sides, words, input);
                assert_eq!(
                    real, ours,
                    "{words:?} {note}: the first is the installed one"
                );
            });
        }
    });
}

#[test]
fn faults_in_the_configuration() {
    let Some(sides) = Sides::new() else { return };
    let texts = [
        "memcache = 127.0.0.1:11299\n",
        "memcache = inet\n",
        "memcache = inet:\n",
        "memcache = tcp:h:1\n",
        "memcache = inet:127.0.0.1\n",
        "memcache = inet:127.0.0.1:1x\n",
        "max_try = 0\n",
        "retry_pause = 0\n",
        "ttl = 1h\n",
        "flags = x\n",
        "timeout = 2s\n",
        "line_size_limit = 0\n",
        "data_size_limit = 0\n",
        "key_format = %x\n",
        "domain = /no/such/list\n",
        "memcache\n",
        "memcache = unix:/no/such/socket\n",
        "memcache = inet:127.0.0.1:1\n",
        "memcache = inet:no.such.host.invalid:1\n",
        "memcache = inet:127.0.0.1:no-such-service\n",
    ];
    thread::scope(|scope| {
        for (number, text) in texts.into_iter().enumerate() {
            let sides = &sides;
            scope.spawn(move || {
                let file = sides.root().join(format!("f{number}.cf"));
                write_old(&file, text.as_bytes());
                let table = format!("memcache:{}", file.display());
                let words = ["postmap", "-q", "k", &table];
                let [real, ours] = both(sides, &words, b"").map(|(exit, stdout, mut lines)| {
                    // Ours says which line of the file it is first.
                    lines.retain(|line| !line.contains(": expecting "));
                    (exit, stdout, lines)
                });
                assert_eq!(real, ours, "{text}: the first is the installed one");
            });
        }
    });
}
