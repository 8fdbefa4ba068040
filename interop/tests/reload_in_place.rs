//! Tables that are replaced ten times a second while clients look things up: no lookup fails, none sees a table half
//! written, and a broken version leaves the last good one in use, with one line in the log.
//!
//! Each version of a table stores its number under every key, so that an answer tells which version it is from.
//! Versions are made by our postmap(1) and by the installed one in turn; text is written beside the old file and
//! renamed over it. The reference ends its process for each change, which drops all clients.
//!
//! `POSTKEEP_RELOAD_LOOKUPS` in the environment says how many lookups to make: ten million take some minutes.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_interop::postmap::Sides;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn};

/// Type and file of each table.
const TABLES: [(&str, &str); 5] = [
    ("btree", "b"),
    ("cdb", "c"),
    ("hash", "h"),
    ("lmdb", "l"),
    ("texthash", "x"),
];

/// Those that postmap(1) makes: type and name, and the file.
const INDEXED: [(&str, &str); 4] = [
    ("btree:b", "b.db"),
    ("cdb:c", "c.cdb"),
    ("hash:h", "h.db"),
    ("lmdb:l", "l.lmdb"),
];

/// How many keys each table has.
const KEYS: u64 = 200;

/// How many clients ask at the same time.
const CLIENTS: u64 = 4;

/// How many lookups a client sends before it reads the answers.
const BATCH: u64 = 16;

/// How often tables are replaced.
const PERIOD: Duration = Duration::from_millis(100);

/// How many good versions there are before a broken one.
const GOOD: u64 = 20;

/// How long a broken version stays after the server has told of it: the server looks once a second, and must not tell
/// of it again.
const BROKEN: Duration = Duration::from_millis(1600);

/// How many broken versions there are at least.
const BREAKS: u64 = 2;

fn wanted_lookups() -> u64 {
    match std::env::var("POSTKEEP_RELOAD_LOOKUPS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) if cfg!(debug_assertions) => 100_000,
        Err(_) => 3_000_000,
    }
}

/// What every key of a version has as its value.
fn value(version: u64) -> String {
    format!("{version} {}", format!("{version:08}.").repeat(20))
}

fn version_of(value: &str) -> u64 {
    let (number, _) = value.split_once(' ').unwrap();
    let number = number.parse().unwrap();
    assert_eq!(value, self::value(number), "not the value of any version");
    number
}

struct Writer<'a> {
    sides: &'a Sides,
    place: PathBuf,
    version: u64,
    breaks: u64,
}

impl Writer<'_> {
    fn source(&self) -> String {
        let mut text = String::new();
        let value = value(self.version);
        for key in 0..KEYS {
            writeln!(text, "key{key} {value}").unwrap();
        }
        text
    }

    fn postmap(&self, ours: bool, table: &str) {
        let programs = if ours {
            &self.sides.ours
        } else {
            &self.sides.real
        };
        let outcome = self
            .sides
            .run(programs, &self.place, &["postmap", table], b"");
        assert_eq!(
            (outcome.exit, outcome.stderr.as_str()),
            (Some(0), ""),
            "{} {table}",
            programs.display()
        );
    }

    /// Puts a file in the place of another one, all at once.
    fn rename_over(&self, name: &str, content: &[u8], mode: u32) {
        let beside = self.place.join("beside");
        fs::write(&beside, content).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&beside, self.place.join(name)).unwrap();
    }

    fn next(&mut self, newest: &AtomicU64) {
        self.version += 1;
        newest.store(self.version, Ordering::SeqCst);
        let source = self.source();
        for name in ["b", "c", "h", "l"] {
            fs::write(self.place.join(name), &source).unwrap();
        }
        self.rename_over("x", source.as_bytes(), 0o644);
        for (number, (table, _)) in (self.version..).zip(INDEXED) {
            self.postmap(number.is_multiple_of(2), table);
        }
    }

    /// Puts something that is no table in the place of each.
    fn damage(&mut self) {
        for (_, file) in INDEXED {
            let whole = fs::read(self.place.join(file)).unwrap();
            let broken = match self.breaks % 3 {
                0 if file == "l.lmdb" => whole[..3 * 4096].to_vec(),
                0 => whole[..whole.len() / 2].to_vec(),
                1 => Vec::new(),
                _ => b"no table at all\n".repeat(1000),
            };
            self.rename_over(file, &broken, 0o644);
        }
        match self.breaks % 3 {
            0 => self.rename_over("x", b"key0 hidden\n", 0o600),
            1 => fs::remove_file(self.place.join("x")).unwrap(),
            _ => self.rename_over("x", b"key0 hidden\n", 0o000),
        }
        self.breaks += 1;
    }

    /// Ends what [`Self::damage`] began, with a new version. postmap(1) does not repair an LMDB file, and it complains
    /// about an empty Berkeley DB file, so each is made under another name; a moment without a file would be one more
    /// broken version.
    fn repair(&mut self, newest: &AtomicU64) {
        self.version += 1;
        newest.store(self.version, Ordering::SeqCst);
        let source = self.source();
        for name in ["fresh", "b", "c", "h", "l"] {
            fs::write(self.place.join(name), &source).unwrap();
        }
        for (ours, kind, made, file) in [
            (true, "lmdb", "fresh.lmdb", "l.lmdb"),
            (true, "btree", "fresh.db", "b.db"),
            (false, "hash", "fresh.db", "h.db"),
            (false, "cdb", "fresh.cdb", "c.cdb"),
        ] {
            self.postmap(ours, &format!("{kind}:fresh"));
            fs::rename(self.place.join(made), self.place.join(file)).unwrap();
        }
        self.rename_over("x", source.as_bytes(), 0o644);
    }

    /// Waits until the server has told of the last broken version of each table.
    fn await_complaints(&self, daemon: &StandIn, over: &AtomicBool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !over.load(Ordering::SeqCst) {
            let log = daemon.log_texts();
            if TABLES
                .iter()
                .all(|table| complaints(&log, &self.place, *table) >= self.breaks)
            {
                return;
            }
            assert!(Instant::now() < deadline, "not told: {log:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn run(
        &mut self,
        daemon: &StandIn,
        newest: &AtomicU64,
        over: &AtomicBool,
        lookups: &AtomicU64,
        wanted: u64,
    ) {
        let start = Instant::now();
        loop {
            for _ in 0..GOOD {
                let began = Instant::now();
                self.next(newest);
                thread::sleep(PERIOD.saturating_sub(began.elapsed()));
            }
            if over.load(Ordering::SeqCst)
                || (self.breaks >= BREAKS && lookups.load(Ordering::SeqCst) >= wanted)
            {
                break;
            }
            self.damage();
            self.await_complaints(daemon, over);
            thread::sleep(BROKEN);
            self.repair(newest);
        }
        println!(
            "{} versions of each table, {} of them broken, {} lookups in {:?}",
            self.version + self.breaks,
            self.breaks,
            lookups.load(Ordering::SeqCst),
            start.elapsed()
        );
    }
}

/// How often the log says that a table stays as it was.
fn complaints(log: &[String], place: &Path, (kind, file): (&str, &str)) -> u64 {
    let text = format!(
        "; table {kind}:{}: stays as it was before the change",
        place.join(file).display()
    );
    log.iter().filter(|line| line.contains(&text)).count() as u64
}

/// Asks until it is over, and holds each answer to what is promised.
fn ask(daemon: &StandIn, client: u64, newest: &AtomicU64, over: &AtomicBool, lookups: &AtomicU64) {
    let mut peer = daemon.connect_and_greet().unwrap();
    let mut seen = [0; TABLES.len()];
    let mut key = client * 37;
    let mut batch = Vec::new();
    for round in 0.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let number = usize::try_from(round % TABLES.len() as u64).unwrap();
        let (kind, file) = TABLES[number];
        let place = daemon.scratch().join("tables").join(file);
        batch.clear();
        for _ in 0..BATCH {
            key = (key + 7) % KEYS;
            batch.extend_from_slice(
                format!(
                    "request\0lookup\0table\0{kind}:{}\0flags\0524353\0key\0key{key}\0\0",
                    place.display()
                )
                .as_bytes(),
            );
        }
        peer.send(&batch).unwrap();
        for _ in 0..BATCH {
            let reply = String::from_utf8(peer.read_list().unwrap()).unwrap();
            let found = reply
                .strip_prefix("status\x000\0value\0")
                .and_then(|rest| rest.strip_suffix("\0\0"))
                .unwrap_or_else(|| panic!("{kind}: a lookup failed: {reply:?}"));
            let version = version_of(found);
            assert!(
                (seen[number]..=newest.load(Ordering::SeqCst)).contains(&version),
                "{kind}: version {version} after {}",
                seen[number]
            );
            seen[number] = version;
        }
        lookups.fetch_add(BATCH, Ordering::SeqCst);
    }
}

/// Ends the others when a thread ends by a panic.
struct EndAll<'a>(&'a AtomicBool);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until a table answers with this version.
fn settle(daemon: &StandIn, kind: &str, file: &Path, version: u64) {
    let mut peer = daemon.connect_and_greet().unwrap();
    let request = format!(
        "request\0lookup\0table\0{kind}:{}\0flags\0524353\0key\0key1\0\0",
        file.display()
    );
    let wanted = format!("status\x000\0value\0{}\0\0", value(version));
    let deadline = Instant::now() + Duration::from_secs(5);
    while peer.exchange(request.as_bytes()).unwrap() != wanted.as_bytes() {
        assert!(Instant::now() < deadline, "{kind}: still an old version");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn no_lookup_fails_while_tables_are_replaced() {
    let Some(sides) = Sides::new() else { return };
    let scratch = Scratch::new("reload").unwrap();
    let place = scratch.directory("tables", 0o755).unwrap();
    let mut writer = Writer {
        sides: &sides,
        place: place.clone(),
        version: 0,
        breaks: 0,
    };
    let (newest, lookups) = (AtomicU64::new(0), AtomicU64::new(0));
    writer.next(&newest);
    let approved =
        TABLES.map(|(kind, file)| format!("proxy:{kind}:{}", place.join(file).display()));
    let started = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &approved.join(", "))
        // The clients here send a hundred requests at a time, which no program of Postfix does.
        .parameter("postkeep_request_rate_limit", "0")
        .start_in(scratch)
        .unwrap();
    let Some(mut daemon) = started else { return };

    let wanted = wanted_lookups();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (daemon, newest, over, lookups) = (&daemon, &newest, &over, &lookups);
            scope.spawn(move || {
                let _end = EndAll(over);
                ask(daemon, client, newest, over, lookups);
            });
        }
        let _end = EndAll(&over);
        writer.run(&daemon, &newest, &over, &lookups, wanted);
    });
    assert!(lookups.load(Ordering::SeqCst) >= wanted);
    for (kind, file) in TABLES {
        settle(&daemon, kind, &place.join(file), writer.version);
    }

    assert!(daemon.is_running());
    let log = daemon.log_texts();
    for (kind, file) in TABLES {
        let table = format!("{kind}:{}:", place.join(file).display());
        let count = |text: String| log.iter().filter(|line| line.contains(&text)).count();
        assert_eq!(
            complaints(&log, &place, (kind, file)),
            writer.breaks,
            "{kind}: {log:#?}"
        );
        // An LMDB table in place shows what is committed without being opened again.
        let reloads = count(format!("table {table} has changed -- reloading"));
        assert!(reloads as u64 >= writer.breaks * 2, "{kind}: {log:#?}");
    }
    let complaints: Vec<_> = log
        .iter()
        .filter(|line| {
            ["warning: ", "error: ", "fatal: ", "panic: "]
                .iter()
                .any(|class| line.starts_with(class))
        })
        .collect();
    assert_eq!(
        complaints.len() as u64,
        writer.breaks * TABLES.len() as u64,
        "{complaints:#?}"
    );
}
