//! Servers for tables that ask one: written in the test, each connection on a thread of its own, or installed ones,
//! each with a directory, ports and a life of its own.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "for tests, which may stop where they find something wrong"
)]

pub mod certificates;
pub mod mariadb;
pub mod memcached;
pub mod postgresql;
pub mod process;
pub mod prometheus;
pub mod redis;
pub mod secantus;
pub mod slapd;
pub mod web;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::postmap::{Outcome, Sides};

/// A server on a port of its own, which runs until the process ends.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    peak: AtomicUsize,
    total: AtomicUsize,
}

impl Server {
    /// Hands each connection to `serve`.
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::<Counts>::default();
        let (shared, serve) = (Arc::clone(&counts), Arc::new(serve));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (counts, serve) = (Arc::clone(&shared), Arc::clone(&serve));
                counts.total.fetch_add(1, Ordering::SeqCst);
                let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
                counts.peak.fetch_max(open, Ordering::SeqCst);
                thread::spawn(move || {
                    serve(client.unwrap());
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, counts }
    }

    /// The most connections at once.
    pub fn peak(&self) -> usize {
        self.counts.peak.load(Ordering::SeqCst)
    }

    /// All connections so far.
    pub fn total(&self) -> usize {
        self.counts.total.load(Ordering::SeqCst)
    }
}

/// Reads up to the first `end`, which is left out; `None` at the end of input.
pub fn read_until(client: &mut TcpStream, end: u8) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        client.read_exact(&mut byte).ok()?;
        if byte[0] == end {
            return Some(text);
        }
        text.push(byte[0]);
    }
}

/// Serves socketmap: `answer` turns a request into the bytes of a reply; no bytes end the connection.
pub fn socketmap(mut client: TcpStream, answer: impl Fn(&[u8]) -> Vec<u8>) {
    while let Some(length) = read_until(&mut client, b':') {
        let length: usize = String::from_utf8(length).unwrap().parse().unwrap();
        let mut request = vec![0; length + 1];
        if client.read_exact(&mut request).is_err() {
            return;
        }
        assert_eq!(request.pop(), Some(b','));
        let reply = answer(&request);
        if reply.is_empty() || client.write_all(&reply).is_err() {
            return;
        }
    }
}

/// A netstring.
pub fn netstring(payload: &[u8]) -> Vec<u8> {
    [format!("{}:", payload.len()).as_bytes(), payload, b","].concat()
}

/// What postmap told, without what may differ: repetitions of a line, and the text of an error number that has nothing
/// to do with the error.
pub fn told(outcome: &Outcome) -> (Option<i32>, Vec<u8>, Vec<String>) {
    let mut lines: Vec<String> = Vec::new();
    for line in outcome.stderr.lines() {
        let cut = |line: &str, mark: &str| {
            line.find(mark)
                .map(|at| format!("{}{mark}ERROR", &line[..at]))
        };
        let line = cut(line, "query error: ")
            .or_else(|| cut(line, "unexpected EOF ("))
            .unwrap_or_else(|| line.to_owned());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    (outcome.exit, outcome.stdout.clone(), lines)
}

/// Numbered answers: a request that ends with a number gets that one.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Answers {
    /// Adds one; its number.
    pub fn add(&self, answer: Vec<u8>) -> usize {
        let mut answers = self.0.lock().unwrap();
        answers.push(answer);
        answers.len() - 1
    }

    /// The one that is asked for.
    pub fn find(&self, request: &[u8]) -> Option<Vec<u8>> {
        let word = request.rsplit(|&byte| byte == b' ').next()?;
        let number: usize = std::str::from_utf8(word).ok()?.parse().ok()?;
        self.0.lock().unwrap().get(number).cloned()
    }
}

/// A lookup to compare: the table, the key, and what to call it.
#[derive(Clone, Debug)]
pub struct Case {
    table: String,
    key: String,
    note: String,
}

impl Case {
    /// A lookup of `key` in `table`.
    pub fn new(table: &str, key: &str, note: &[u8]) -> Self {
        Self {
            table: table.to_owned(),
            key: key.to_owned(),
            note: note[..note.len().min(60)].escape_ascii().to_string(),
        }
    }

    /// What both tell, when it is not the same.
    fn difference(&self, sides: &Sides) -> Option<String> {
        let Self { table, key, note } = self;
        let words = ["postmap", "-q", key, table];
        let real = sides.run(&sides.real, sides.root(), &words, b"");
        let ours = sides.run(&sides.ours, sides.root(), &words, b"");
        let show = |(exit, stdout, lines): (Option<i32>, Vec<u8>, Vec<String>)| {
            format!("{exit:?} {} {lines:#?}", stdout.escape_ascii())
        };
        let (real, ours) = (show(told(&real)), show(told(&ours)));
        (real != ours).then(|| format!("{table} {key:?} ({note})\nreal: {real}\nours: {ours}"))
    }
}

/// How many lookups are compared at once: a failed command takes a second to end, and does nothing meanwhile.
const AT_ONCE: usize = 24;

/// Asks both for each; what they tell must be the same.
pub fn compare_all(sides: &Sides, cases: &[Case]) {
    for some in cases.chunks(AT_ONCE) {
        let differences: Vec<String> = thread::scope(|scope| {
            let runs: Vec<_> = some
                .iter()
                .map(|case| scope.spawn(|| case.difference(sides)))
                .collect();
            runs.into_iter()
                .filter_map(|run| run.join().unwrap())
                .collect()
        });
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}
