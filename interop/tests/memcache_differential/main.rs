//! The installed postmap against ours, on `memcache:` tables: one memcached for each, and a server of the test that
//! answers as no memcached does.
//!
//! What differs on purpose is not compared: the reason of an I/O error.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

mod trouble;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::{Outcome as Ran, Random, Sides, write_old};
use postkeep_interop::servers::memcached::Memcached;
use postkeep_table::{Access, Flags, Opener as _, Outcome, TableName};
use postkeep_tables::{Context, Registry};
use postkeep_testkit::Implementation;
use postkeep_testkit::private_postfix::Plan;
use postkeep_testkit::scratch::give_to;

/// The commands and the files of each side have the name of its directory where these have this word: the installed
/// programs and ours run at once, as both wait most of the time.
const SIDE: &str = "/SIDE/";

const NAMES: [&str; 2] = ["/real/", "/mine/"];

struct Place {
    sides: Sides,
    servers: [Memcached; 2],
    tables: AtomicUsize,
}

/// What a command told.
type Told = (Option<i32>, String, Vec<String>);

fn told(outcome: &Ran) -> Told {
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

    /// On sockets, of which many can be made at once without two that pick the same port.
    fn on_sockets() -> Option<Self> {
        let start = Memcached::start_on_socket;
        Self::with([start()?, start()?])
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

impl Place {
    /// The exit status of a command that both tell the same of, but for the server's place.
    fn ask(&self, words: &[&str]) -> Option<i32> {
        let mut sides = both(&self.sides, words, b"");
        for ((.., lines), server) in sides.iter_mut().zip(&self.servers) {
            let (_, shown) = server.place.split_once(':').unwrap();
            for line in lines {
                *line = line.replace(shown, "SERVER");
            }
        }
        assert_eq!(sides[0], sides[1], "the first is the installed one");
        sides[0].0
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
                let Some(place) = Place::on_sockets() else {
                    return;
                };
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
fn deletions() {
    let long = "k".repeat(251);
    let tables = [
        "",
        "key_format = p:%u:%d:%1\n",
        "domain = d.example\n",
        "line_size_limit = 30\n",
    ];
    let keys = [
        "a",
        "nosuch",
        "U@D.Example",
        "u@other.example",
        "a\u{a0}b",
        "@d.example",
        "a b",
        &long,
    ];
    let mut cases = Vec::new();
    for table in tables {
        cases.extend(keys.map(|key| (table, key)));
    }
    spread(&cases, |place, (table, key)| {
        let table = place.table(table);
        let remove: &[&str] = &["postmap", "-d", key, &table];
        // The server refuses a long key, which costs seconds, twice in the same way.
        let count = if *key == long { 1 } else { 2 };
        let left = [
            "a",
            "u@d.example",
            "p:u:d.example:example",
            "u@other.example",
        ];
        let before = left.map(|key| (key, &b"value"[..]));
        place.same(&before, &vec![(remove, &b""[..]); count], &left);
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
        // A key that the server refuses costs seconds, and is the same with whatever it keeps.
        if key != long {
            place.same(&[("a", b"kept")], commands, &["a", "p_a"]);
        }
    }
    let commands: &[(&[&str], &[u8])] = &[
        (&["postmap", "-i", &index], b"n value\n"),
        (&["postmap", "-q", "n", &table], b""),
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
    let (mut before, mut keys) = (Vec::new(), Vec::new());
    for number in 0..200 {
        let key = random.key();
        // What the server takes as a key and the test can say to it.
        let takes = |byte: u8| byte > b' ' && byte != 0x7f;
        if let Ok(key) = String::from_utf8(key.clone())
            && key.bytes().all(takes)
            && (1..=250).contains(&key.len())
        {
            before.push((key, format!("value{number}")));
        }
        keys.extend([&key[..], b"\n"].concat());
    }
    assert!(before.len() > 50, "{}", before.len());
    let before: Vec<_> = before
        .iter()
        .map(|(key, value)| (&key[..], value.as_bytes()))
        .collect();
    let left: Vec<_> = before.iter().map(|(key, _)| *key).collect();
    for option in ["-f", "-u", "-N"] {
        let ask: &[&str] = &["postmap", option, "-q", "-", &table];
        let remove: &[&str] = &["postmap", option, "-d", "-", &table];
        let told = place.same(
            &before,
            &[(ask, &keys), (remove, &keys), (ask, &keys)],
            &left,
        );
        assert!(told[0].1.contains("value"), "{told:?}");
        assert!(!told[2].1.contains("value"), "{told:?}");
    }
}

#[test]
fn a_server_on_a_socket() {
    let Some(mut place) = Place::on_sockets() else {
        return;
    };
    let table = place.table("");
    let find: &[&str] = &["postmap", "-q", "a", &table];
    let remove: &[&str] = &["postmap", "-d", "a", &table];
    let commands: [(&[&str], &[u8]); 5] = [
        (find, b""),
        (&["postmap", "-q", "big", &table], b""),
        (&["postmap", "-q", "nosuch", &table], b""),
        (remove, b""),
        (remove, b""),
    ];
    let told = place.same(BEFORE, &commands, &["a"]);
    let exits: Vec<_> = told.iter().map(|(exit, ..)| exit.unwrap()).collect();
    assert_eq!(exits, [0, 0, 1, 0, 1]);
    // A socket that nobody listens on.
    for server in &mut place.servers {
        server.process.kill();
    }
    assert_eq!(place.ask(find), Some(1));
    for server in &mut place.servers {
        server.restart();
    }
    place.same(BEFORE, &commands[..3], &["a"]);
}

#[test]
fn a_backup_behind_a_proxy() {
    let Some(place) = Place::new() else { return };
    let plan = Plan::new(Implementation::Postfix)
        .table("t", "a backup\nu@d.example address\n")
        .parameter(
            "lists",
            "proxy:lmdb:$SCRATCH/data/real/w proxy:lmdb:$SCRATCH/data/mine/w",
        )
        .parameter("proxy_read_maps", "proxy:texthash:$SCRATCH/tables/t $lists")
        .parameter("proxy_write_maps", "$lists");
    let Some(postfix) = plan.start().unwrap() else {
        return;
    };
    let root = postfix.scratch().display().to_string();
    for name in NAMES {
        let directory = postfix.scratch().join("data").join(name.trim_matches('/'));
        fs::create_dir(&directory).unwrap();
        let index = directory.join("w");
        write_old(&index, b"n value\nm value\n");
        let made = postfix.command("postmap", &[&format!("lmdb:{}", index.display())]);
        assert!(made.unwrap().status.success());
        give_to("postfix", &directory).unwrap();
        give_to("postfix", &index.with_extension("lmdb")).unwrap();
    }
    let config = postfix.configuration_directory().display().to_string();
    let table =
        |backup: &str| place.table(&format!("backup = proxy:{backup}\nkey_format = p:%s\n"));
    let run = |option: &[&'static str], table: &str, exit: i32| {
        let words = [&["postmap", "-c", &config], option, &[table]].concat();
        let told = place.same(BEFORE, &[(&words, b"")], &["p:a", "p:n"]);
        assert_eq!(told[0].0, Some(exit), "{told:?}");
    };
    let read = table(&format!("texthash:{root}/tables/t"));
    run(&["-q", "a"], &read, 0);
    run(&["-q", "nosuch"], &read, 1);
    run(&["-q", "U@D.Example"], &read, 0);
    let write = table(&format!("lmdb:{root}/data{SIDE}w"));
    run(&["-q", "n"], &write, 0);
    run(&["-d", "n"], &write, 0);
    run(&["-d", "n"], &write, 1);
    run(&["-q", "n"], &write, 1);
    run(&["-s"], &write, 0);
    // Not on the list.
    run(
        &["-q", "a"],
        &table(&format!("texthash:{root}/tables/other")),
        1,
    );
}

/// postmap makes no entries of this type; daemons do, by way of proxywrite.
#[test]
fn updates_by_proxywrite() {
    let Some(place) = Place::new() else { return };
    let long = "k".repeat(251);
    let cases = [
        ("", "k", "v"),
        ("", "U@D.Example", "v"),
        ("", "a b", "v"),
        ("", "k", ""),
        ("", "k", "a\u{e9}\n\r"),
        ("", &long, "v"),
        ("flags = 7\nttl = 100\nkey_format = p:%u\n", "k@d", "v"),
        ("domain = d.example\n", "k@other.example", "v"),
        ("data_size_limit = 5\n", "k", "12345"),
        ("data_size_limit = 5\n", "k", "123456"),
        ("ttl = -1\n", "k", "v"),
        ("line_size_limit = 5\n", "k", "v"),
        ("data_size_limit = 5\n", "last", "123456"),
    ]
    .map(|(more, key, value)| (place.table(more), key, value));
    let side = |number: usize, implementation| {
        let name = NAMES[number];
        let lists: Vec<String> = cases
            .iter()
            .map(|(table, ..)| format!("proxy:{} ", table.replace(SIDE, name)))
            .collect();
        let plan = Plan::new(implementation).parameter("proxy_write_maps", &lists.concat());
        let postfix = plan.start().unwrap()?;
        let registry = Registry::new(Context {
            queue_directory: postfix.scratch().join("queue"),
            ..Context::default()
        });
        let server = &place.servers[number];
        let mut told = Vec::new();
        for (table, key, value) in &cases {
            let proxied = format!("proxy:{}", table.replace(SIDE, name));
            let proxied = TableName::parse(proxied.as_bytes()).unwrap();
            let flags = Flags::LOCK | Flags::FOLD_FIX | Flags::UTF8_REQUEST;
            let table = registry.open(&proxied, Access::ReadWrite, flags).unwrap();
            let left = || {
                let left = ["k", "u@d.example", "k@other.example", "p:k"]
                    .map(|key| server.say(format!("get {key}\r\n").as_bytes(), "END\r\n"));
                left.concat().escape_ascii().to_string()
            };
            server.say(b"flush_all\r\n", "OK\r\n");
            let key = key.as_bytes();
            let outcome = table.update(Flags::empty(), key, value.as_bytes());
            told.push(format!("{outcome:?} {}", left()));
            let outcome = table.delete(Flags::empty(), key);
            told.push(format!("{outcome:?} {}", left()));
        }
        // What the daemon had to say, which comes to the log a little later.
        let begun = Instant::now();
        while postfix.logged("for key last is too long") == 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{}",
                postfix.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        let log = postfix.log().replace(name, SIDE);
        let said = log.lines().filter_map(|line| {
            let (_, said) = line.split_once("/proxymap[")?.1.split_once("]: ")?;
            let cut = said.find(": I/O error").map_or(said, |at| &said[..at]);
            said.contains("warning: ").then(|| cut.to_owned())
        });
        told.extend(said);
        Some(told)
    };
    let [real, ours] = thread::scope(|scope| {
        let real = scope.spawn(|| side(0, Implementation::Postfix));
        let ours = side(1, Implementation::Postkeep);
        [real.join().unwrap(), ours]
    });
    assert_eq!(real, ours, "the first is the installed one");
}

/// The installed Postfix knows no digests yet; openssl(1) makes them with the library that later ones use.
#[test]
fn digests_are_those_of_the_library() {
    let Some(place) = Place::new() else { return };
    let server = &place.servers[1];
    let long = "k".repeat(300);
    for digest in ["sha1", "SHA256", "sha384", "SHA512", "sha2-256"] {
        let table = place.table(&format!("key_format = p:%s\nkey_digest = {digest}\n"));
        let name = table.replace(SIDE, NAMES[1]);
        let name = TableName::parse(name.as_bytes()).unwrap();
        let registry = Registry::new(Context::default());
        let table = registry
            .open(&name, Access::ReadWrite, Flags::LOCK)
            .unwrap();
        for key in ["a", "u@d.example", &long, "a b", "\u{e9}", "it's %s"] {
            let mut openssl = Command::new("openssl")
                .args(["dgst", "-r", &format!("-{digest}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let text = format!("p:{key}");
            openssl
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            let output = openssl.wait_with_output().unwrap();
            assert!(output.status.success());
            let output = String::from_utf8(output.stdout).unwrap();
            let sent = output.split(' ').next().unwrap();
            let get = format!("get {sent}\r\n");
            let get = || {
                let answer = server.say(get.as_bytes(), "END\r\n");
                String::from_utf8(answer).unwrap()
            };
            let mut value = Vec::new();
            let key = key.as_bytes();
            let flags = Flags::empty();
            let changed = table.update(flags, key, b"two");
            assert!(matches!(changed, Ok(Outcome::Done)), "{text}: {changed:?}");
            assert_eq!(get(), format!("VALUE {sent} 0 3\r\ntwo\r\nEND\r\n"));
            let found = table.lookup(flags, key, &mut value);
            assert!(matches!(found, Ok(Outcome::Done)), "{text}: {found:?}");
            assert_eq!(value, b"two");
            let gone = table.delete(flags, key);
            assert!(matches!(gone, Ok(Outcome::Done)), "{text}: {gone:?}");
            assert_eq!(get(), "END\r\n");
        }
    }
    let table = place.table("key_digest = nosuch\n").replace(SIDE, NAMES[1]);
    let words = ["postmap", "-q", "a", &table];
    let outcome = place
        .sides
        .run(&place.sides.ours, place.sides.root(), &words, b"");
    assert!(
        outcome
            .stderr
            .contains("key digest nosuch is not available"),
        "{outcome:?}"
    );
}
