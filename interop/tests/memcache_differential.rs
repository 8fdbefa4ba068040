//! The installed postmap against ours, on `memcache:` tables: one memcached for both, emptied between the two, and a
//! server of the test that answers as no memcached does.
//!
//! What differs on purpose is not compared: the reason of an I/O error.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_interop::servers::memcached::Memcached;
use postkeep_interop::servers::{Server, read_until};

struct Place {
    sides: Sides,
    server: Memcached,
    tables: AtomicUsize,
}

/// What a command told, and what it left in the server.
type Told = (Option<i32>, String, Vec<String>);

fn told(outcome: &Outcome) -> Told {
    let cut = |line: &str| {
        for mark in ["query error: ", "I/O error", "lookup error: ", " error: "] {
            if let Some(at) = line.find(mark) {
                return line[..at + mark.len()].to_owned();
            }
        }
        line.to_owned()
    };
    (
        outcome.exit,
        outcome.stdout.escape_ascii().to_string(),
        outcome.stderr.lines().map(cut).collect(),
    )
}

impl Place {
    fn new() -> Option<Self> {
        Some(Self {
            sides: Sides::new()?,
            server: Memcached::start()?,
            tables: AtomicUsize::new(0),
        })
    }

    fn file(&self, text: &str) -> PathBuf {
        let number = self.tables.fetch_add(1, Ordering::Relaxed);
        let file = self.sides.root().join(format!("t{number}.cf"));
        write_old(&file, text.as_bytes());
        file
    }

    /// A table of the server.
    fn table(&self, more: &str) -> String {
        let port = self.server.port;
        let file = self.file(&format!("memcache = inet:127.0.0.1:{port}\n{more}"));
        format!("memcache:{}", file.display())
    }

    /// Runs commands with each program, on a server with `before` in it; asks the server for `keys` afterwards.
    fn same(
        &self,
        before: &[(&str, &[u8])],
        commands: &[(&[&str], &[u8])],
        keys: &[&str],
    ) -> Vec<Told> {
        let run = |programs: &PathBuf| {
            self.server.say(b"flush_all\r\n", "OK\r\n");
            for (key, value) in before {
                let words = format!("set {key} 0 0 {}\r\n", value.len());
                self.server
                    .say(&[words.as_bytes(), value, b"\r\n"].concat(), "STORED\r\n");
            }
            let outcomes: Vec<Told> = commands
                .iter()
                .map(|(words, input)| {
                    told(&self.sides.run(programs, self.sides.root(), words, input))
                })
                .collect();
            let left: Vec<String> = keys
                .iter()
                .map(|key| {
                    let answer = self
                        .server
                        .say(format!("get {key}\r\n").as_bytes(), "END\r\n");
                    answer.escape_ascii().to_string()
                })
                .collect();
            (outcomes, left)
        };
        let real = run(&self.sides.real);
        let ours = run(&self.sides.ours);
        assert_eq!(real, ours, "{commands:?}: the first is the installed one");
        ours.0
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
        for share in cases.chunks(cases.len().div_ceil(20)) {
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
        cases.extend(entries.map(|(key, value)| (table, key, value)));
    }
    spread(&cases, |place, &(table, key, value)| {
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
        place.same(BEFORE, commands, &keys);
        place.same(BEFORE, &commands[..1], &keys);
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
    let source = place.sides.root().join("backup");
    write_old(
        &source,
        b"a backup\nlong vvvvvvvvvvvvvvvvvvvvvv\nbad \xff\nu@d.example address\n",
    );
    let index = format!("lmdb:{}", source.display());
    let made = place.sides.run(
        &place.sides.real,
        place.sides.root(),
        &["postmap", &index],
        b"",
    );
    assert_eq!(made.exit, Some(0), "{made:?}");
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
    let ask = |place: &Place, table: &str| {
        let words = ["postmap", "-q", "a", table];
        let root = place.sides.root();
        let real = told(&place.sides.run(&place.sides.real, root, &words, b""));
        let ours = told(&place.sides.run(&place.sides.ours, root, &words, b""));
        assert_eq!(real, ours);
        ours.0
    };
    assert_eq!(ask(&place, &alone), Some(1));
    place.server.process.suspend();
    assert_eq!(ask(&place, &alone), Some(1));
    assert_eq!(ask(&place, &with_backup), Some(0));
    place.server.process.resume();
    place.server.process.kill();
    assert_eq!(ask(&place, &alone), Some(1));
    assert_eq!(ask(&place, &with_backup), Some(0));
    place.server.restart();
    assert_eq!(ask(&place, &with_backup), Some(0));
    assert_eq!(ask(&place, &alone), Some(0));
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
                let server = Server::start(move |mut client| {
                    // One answer for each connection.
                    let _ = read_until(&mut client, b'\n');
                    let _ = client.write_all(&answer);
                });
                let file = sides.root().join(format!("a{number}.cf"));
                let text = format!("memcache = inet:127.0.0.1:{}\nmax_try = 2\n", server.port);
                write_old(&file, text.as_bytes());
                let table = format!("memcache:{}", file.display());
                let run = |words: &[&str], input: &[u8]| {
                    let real = told(&sides.run(&sides.real, sides.root(), words, input));
                    let ours = told(&sides.run(&sides.ours, sides.root(), words, input));
                    assert_eq!(
                        real, ours,
                        "{words:?} {shown}: the first is the installed one"
                    );
                };
                run(&["postmap", "-q", "k", &table], b"");
                run(&["postmap", "-i", &table], b"k v\n");
                run(&["postmap", "-d", "k", &table], b"");
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
                let run = |programs| {
                    let (exit, stdout, lines) =
                        told(&sides.run(programs, sides.root(), &words, b""));
                    // Ours says which line of the file it is first.
                    let is_hint = |line: &String| line.contains(": expecting ");
                    let lines: Vec<String> =
                        lines.into_iter().filter(|line| !is_hint(line)).collect();
                    (exit, stdout, lines)
                };
                let (real, ours) = (run(&sides.real), run(&sides.ours));
                assert_eq!(real, ours, "{text}: the first is the installed one");
            });
        }
    });
}
