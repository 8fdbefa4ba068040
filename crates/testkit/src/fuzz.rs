//! The bodies of the fuzz targets: plain functions, so that `cargo test` can replay what a fuzzer once found.
//!
//! Each takes arbitrary bytes and panics when a promise of the code under test does not hold. Not to panic,
//! not to hang and not to take more memory than the input explains are promises too.
#![expect(
    clippy::missing_panics_doc,
    reason = "a panic is how a broken promise shows, in each of them"
)]

mod berkeley;
mod http;
mod ldap;
mod lmdb;

pub use berkeley::berkeley_file;
pub use http::http_rules;
pub use ldap::{ldap_cf, ldap_replies, ldap_rules};
pub use lmdb::lmdb_file;

mod network;
mod patterns;
mod remote;
mod socketmap;
mod tables;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use postkeep_conf::{Dictionary, Release};
use postkeep_proxymap::approve::{List, Listing, Notice, Rules};
use postkeep_scache::transfer::Frame;
use postkeep_scache::{
    Cache, Conversation, Limits as CacheLimits, Next, Rules as CacheRules, Settings,
};
use postkeep_tables::cdb_file::{Damage, Reader};
use postkeep_wire::duplex::{Inbox, Outbox};
use postkeep_wire::encode::ListWriter;
use postkeep_wire::proxymap::Generation;
use postkeep_wire::scan::{Limits, Progress, ScanFlags, Scanner, Stop, Value, Wanted};
use postkeep_wire::{Encoding, End, proxymap, scache};

pub use network::{mongodb_rules, network_tables_cf};
pub use patterns::pattern_rules;
pub use remote::{memcache_replies, socketmap_replies, table_cf, table_templates, tcp_replies};
pub use socketmap::socketmap_requests;
pub use tables::{cidr_rules, table_lists};

/// The name of a target and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by the name of their file in `fuzz/fuzz_targets` and of their directory in `fuzz/regressions`.
pub const TARGETS: &[Target] = &[
    ("approval_list", approval_list),
    ("berkeley_file", berkeley_file),
    ("cdb_file", cdb_file),
    ("cidr_rules", cidr_rules),
    ("http_rules", http_rules),
    ("ldap_cf", ldap_cf),
    ("ldap_replies", ldap_replies),
    ("ldap_rules", ldap_rules),
    ("lmdb_file", lmdb_file),
    ("main_cf", main_cf),
    ("memcache_replies", memcache_replies),
    ("mongodb_rules", mongodb_rules),
    ("network_tables_cf", network_tables_cf),
    ("pattern_rules", pattern_rules),
    ("proxymap_requests", proxymap_requests),
    ("scache_conversation", scache_conversation),
    ("scache_requests", scache_requests),
    ("scache_transfer", scache_transfer),
    ("scan_lists", scan_lists),
    ("socketmap_replies", socketmap_replies),
    ("socketmap_requests", socketmap_requests),
    ("table_cf", table_cf),
    ("table_lists", table_lists),
    ("table_templates", table_templates),
    ("tcp_replies", tcp_replies),
];

/// Small limits, so that a fuzzer gets at them.
const LIMITS: Limits = Limits {
    name: 64,
    value: 256,
    list: 1024,
    attributes: 32,
};

const WISHES: &[&[Wanted<'static>]] = &[
    &[Wanted::Text("request")],
    &[
        Wanted::Int("ttl"),
        Wanted::Text("label"),
        Wanted::Text("property"),
        Wanted::Text("label"),
    ],
    &[
        Wanted::Text("a"),
        Wanted::Data("b"),
        Wanted::Long("c"),
        Wanted::Boolean("d"),
    ],
    &[Wanted::Equal("protocol", "test"), Wanted::Int("number")],
    &[
        Wanted::IntNamed(&["flags", "instance_flags"]),
        Wanted::Text("key"),
    ],
    &[Wanted::Text("a"), Wanted::Multi, Wanted::Text("b")],
    &[Wanted::Multi],
    &[
        Wanted::Nested(&[Wanted::Text("x"), Wanted::Int("y")]),
        Wanted::Text("z"),
    ],
    &[],
];

/// Everything that a scan gives.
#[derive(Debug, PartialEq)]
struct Scan {
    progress: Progress,
    values: Vec<String>,
    warnings: Vec<String>,
}

fn scan(
    encoding: Encoding,
    flags: ScanFlags,
    wishes: &[Wanted<'_>],
    input: &[u8],
    piece: usize,
) -> Scan {
    let mut scanner = Scanner::new(encoding, flags, LIMITS);
    let mut warnings: Vec<String> = Vec::new();
    let mut here = piece.min(input.len());
    let progress = loop {
        let end = (here == input.len()).then_some(End::Closed);
        let progress = scanner.resume(wishes, &input[..here], end, "fuzz socket", &mut warnings);
        if progress != Progress::Incomplete {
            break progress;
        }
        assert!(here < input.len(), "incomplete at the end of the input");
        here = (here + piece).min(input.len());
    };
    let values = (0..scanner.values())
        .map(|index| format!("{:?}", scanner.value(index, &input[..here])))
        .collect();
    Scan {
        progress,
        values,
        warnings,
    }
}

/// An attribute list in any encoding, for any wish list, gives the same whole and cut into pieces; what was
/// recovered of plain texts can be written and read again.
pub fn scan_lists(data: &[u8]) {
    let [encoding, flags, wishes, piece, input @ ..] = data else {
        return;
    };
    let encoding = [Encoding::Null, Encoding::Plain, Encoding::Base64][usize::from(encoding % 3)];
    let flags = ScanFlags::from_bits_truncate(*flags);
    let wishes = WISHES[usize::from(*wishes) % WISHES.len()];
    let whole = scan(encoding, flags, wishes, input, usize::MAX);
    let pieces = scan(encoding, flags, wishes, input, usize::from(*piece % 16) + 1);
    assert_eq!(whole, pieces);
    match whole.progress {
        Progress::Incomplete => unreachable!("the input has an end"),
        Progress::Done {
            recovered,
            consumed,
            ..
        } => {
            assert!(consumed <= input.len());
            // Each entry of a nested table counts.
            assert!(recovered <= input.len().max(1));
        }
        Progress::Failed { consumed, .. } => assert!(consumed <= input.len()),
    }
    write_again(encoding, input);
}

/// Reads texts `a` and `b`; when both are there, writes them and reads the same again.
fn write_again(encoding: Encoding, input: &[u8]) {
    let wishes = [Wanted::Text("a"), Wanted::Text("b")];
    let read = |input: &[u8]| -> Option<[Vec<u8>; 2]> {
        let mut scanner = Scanner::new(encoding, ScanFlags::STRICT, LIMITS);
        let progress = scanner.resume(&wishes, input, Some(End::Closed), "fuzz socket", &mut ());
        let Progress::Done {
            recovered: 2,
            stop: Stop::Terminator,
            ..
        } = progress
        else {
            return None;
        };
        let text = |index| match scanner.value(index, input) {
            Some(Value::Bytes(text)) => text.to_vec(),
            other => panic!("a text was recovered, not {other:?}"),
        };
        Some([text(0), text(1)])
    };
    let Some([a, b]) = read(input) else { return };
    // A C string ends at the first NUL, which base64 can carry.
    if a.contains(&0) || b.contains(&0) {
        return;
    }
    let mut written = Vec::new();
    ListWriter::new(encoding, &mut written)
        .text("a", &a)
        .text("b", &b)
        .finish();
    assert_eq!(read(&written), Some([a, b]));
}

/// Requests of the connection cache: a request that is found is found again in what a client would send for it.
pub fn scache_requests(data: &[u8]) {
    let mut scanner = scache::RequestScanner::new(LIMITS);
    let mut rest = data;
    loop {
        let before = rest.len();
        match scanner.scan(rest, Some(End::Closed), "fuzz socket", &mut ()) {
            scache::Scanned::Request { request, consumed } => {
                let mut written = Vec::new();
                request.encode(&mut written);
                let mut again = scache::RequestScanner::new(LIMITS);
                let mut warnings: Vec<String> = Vec::new();
                let found = again.scan(&written, None, "fuzz socket", &mut warnings);
                let consumed_again = written.len();
                assert_eq!(
                    found,
                    scache::Scanned::Request {
                        request,
                        consumed: consumed_again
                    }
                );
                assert!(warnings.is_empty(), "{warnings:?}");
                rest = &rest[consumed..];
            }
            scache::Scanned::Malformed { consumed, .. }
            | scache::Scanned::Unknown { consumed, .. }
            | scache::Scanned::NoRequest { consumed } => rest = &rest[consumed..],
            scache::Scanned::Closed | scache::Scanned::Unusable { .. } => return,
            scache::Scanned::Incomplete => panic!("incomplete at the end of the input"),
        }
        assert!(rest.len() < before, "nothing was consumed");
    }
}

/// What one process hands over to the next: each frame is written again as it was, and reads alike in whatever pieces it
/// comes.
pub fn scache_transfer(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, length))) = Frame::decode(rest) {
        for shorter in [0, 3, 4, 5, length / 2, length - 1] {
            let early = Frame::decode(&rest[..shorter.min(length - 1)]);
            assert_eq!(early, Ok(None), "read before it was there");
        }
        let mut again = Vec::new();
        let written = frame.encode(&mut again);
        assert!(
            written.is_ok() && again == rest[..length],
            "written otherwise"
        );
        rest = &rest[length..];
    }
}

/// Requests of the lookup table server, in both generations; as [`scache_requests`].
pub fn proxymap_requests(data: &[u8]) {
    for default in [Generation::One, Generation::Two] {
        let mut scanner = proxymap::RequestScanner::with_limits(default, LIMITS);
        let mut rest = data;
        loop {
            let before = rest.len();
            match scanner.scan(rest, Some(End::Closed), "fuzz socket", &mut ()) {
                proxymap::Scanned::Request {
                    request,
                    generation,
                    consumed,
                } => {
                    let mut written = Vec::new();
                    request.encode(generation, &mut written);
                    let mut again = proxymap::RequestScanner::with_limits(Generation::One, LIMITS);
                    let mut warnings: Vec<String> = Vec::new();
                    let found = again.scan(&written, None, "fuzz socket", &mut warnings);
                    assert_eq!(
                        found,
                        proxymap::Scanned::Request {
                            request,
                            generation,
                            consumed: written.len()
                        }
                    );
                    assert!(warnings.is_empty(), "{warnings:?}");
                    rest = &rest[consumed..];
                }
                proxymap::Scanned::Malformed { consumed, .. }
                | proxymap::Scanned::Unknown { consumed, .. }
                | proxymap::Scanned::NoRequest { consumed } => rest = &rest[consumed..],
                proxymap::Scanned::Closed | proxymap::Scanned::Unusable => break,
                proxymap::Scanned::Incomplete => panic!("incomplete at the end of the input"),
            }
            assert!(rest.len() < before, "nothing was consumed");
        }
    }
}

/// A handle that knows how many of its kind there are.
#[derive(Debug)]
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(live: &Rc<Cell<usize>>) -> Self {
        live.set(live.get() + 1);
        Self(Rc::clone(live))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

struct Client {
    conversation: Conversation<Counted>,
    inbox: Inbox<Counted>,
    outbox: Outbox<Counted>,
    over: bool,
}

impl Client {
    fn new(settings: &Settings) -> Self {
        Self {
            conversation: Conversation::new(settings),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            over: false,
        }
    }

    /// As a driver does: step, send everything, give back what rode on it, until there is nothing to do.
    fn drive(&mut self, now: Duration, settings: &Settings, cache: &RefCell<Cache<Counted>>) {
        while !self.over {
            let next = self.conversation.step(
                now,
                settings,
                &mut self.inbox,
                &mut self.outbox,
                cache,
                &mut (),
            );
            self.over = next == Next::Close;
            if self.outbox.is_empty() {
                return;
            }
            while !self.outbox.is_empty() {
                let length = self.outbox.next_chunk().0.len();
                if let Some(handle) = self.outbox.sent(length) {
                    self.conversation.keep(handle);
                }
            }
        }
    }
}

/// Conversations of three clients with one connection cache, written as operations: no handle is lost or kept
/// that is not in the cache, and time empties the cache.
pub fn scache_conversation(data: &[u8]) {
    let live = Rc::new(Cell::new(0));
    let settings = Settings {
        limits: LIMITS,
        ..Settings::default()
    };
    let cache = RefCell::new(Cache::new(CacheRules {
        limits: CacheLimits {
            sessions: 20,
            bindings: 20,
            bytes: 4096,
            ..CacheLimits::default()
        },
        ..CacheRules::default()
    }));
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(&settings)).collect();
    let mut now = Duration::ZERO;
    let mut rest = data;
    while let [what, rest_of_it @ ..] = rest {
        rest = rest_of_it;
        let client = &mut clients[usize::from(what >> 6) % 3];
        let label = [b"a", b"b", b"c", b"d"][usize::from((what >> 4) & 3)];
        let mut bytes = Vec::new();
        let mut handles = Vec::new();
        match what & 15 {
            0 => scache::Request::SaveEndpoint {
                ttl: 2,
                label,
                property: label,
            }
            .encode(&mut bytes),
            1 => scache::Request::FindEndpoint { label }.encode(&mut bytes),
            2 => scache::Request::SaveDestination {
                ttl: 1,
                label,
                property: label,
                endpoint: b"a",
            }
            .encode(&mut bytes),
            3 => scache::Request::FindDestination { label }.encode(&mut bytes),
            4 | 5 => scache::prompt(&mut bytes),
            6 | 7 => {
                bytes.push(0);
                handles.push(Counted::new(&live));
            }
            8 => {
                bytes.push(0);
                handles.extend([Counted::new(&live), Counted::new(&live)]);
            }
            9 => now += Duration::from_millis(u64::from(*what) * 10),
            10 => client.inbox.finish(End::Closed),
            11 => client.inbox.finish(End::TimedOut),
            12 => *client = Client::new(&settings),
            _ => {
                let length = rest.len().min(usize::from(what >> 4) + 1);
                bytes.extend_from_slice(&rest[..length]);
                rest = &rest[length..];
            }
        }
        if !client.over && client.inbox.end().is_none() && !bytes.is_empty() {
            client.inbox.receive(&bytes, handles);
        } else {
            drop(handles);
        }
        client.drive(now, &settings, &cache);
        drop(cache.borrow_mut().expire(now));
    }
    drop(clients);
    assert_eq!(
        live.get(),
        cache.borrow().sessions(),
        "handles outside the cache"
    );
    assert!(live.get() <= 20);
    drop(cache.borrow_mut().expire(now + settings.ttl_limit));
    assert_eq!(
        (
            live.get(),
            cache.borrow().sessions(),
            cache.borrow().bindings()
        ),
        (0, 0, 0)
    );
}

/// A main.cf text and an expression, as every release: loading and expanding end, with a bounded result.
pub fn main_cf(data: &[u8]) {
    let [release, text @ ..] = data else { return };
    let release = Release::ALL[usize::from(*release) % Release::ALL.len()];
    let mut warnings: Vec<String> = Vec::new();
    let mut dictionary = Dictionary::new(release, b"/etc/postfix");
    let _ = dictionary.load(text, "main.cf", &mut warnings);
    let names: Vec<Vec<u8>> = dictionary.iter().map(|(name, _)| name.to_vec()).collect();
    // Few of them: each may reach the limit of work that the crate sets.
    for name in names.iter().take(2) {
        if let Some(value) = dictionary.value_of(name)
            && let Ok(expanded) = dictionary.expand(value, &mut warnings)
            && !value.contains(&b'$')
        {
            assert_eq!(
                expanded, value,
                "a value without an expression is its own expansion"
            );
        }
    }
    let _ = dictionary.expand(text, &mut warnings);
}

/// An approval list, as every release: what it approves has no prefix left, and a list of just that approves
/// the same.
pub fn approval_list(data: &[u8]) {
    let [minor, patch, text @ ..] = data else {
        return;
    };
    let rules = Rules::of_release((3, u32::from(minor % 13), u32::from(*patch)));
    let approve = |text: &[u8]| {
        let mut files = ();
        let mut list = List::new(rules, Listing::Proxied, &mut files);
        list.add(text, "proxy_read_maps");
        list.finish()
    };
    let (approved, notices) = approve(text);
    for notice in &notices {
        let (Notice::Warning(line) | Notice::Verbose(line)) = notice;
        assert!(!line.is_empty());
    }
    for name in approved.sorted() {
        assert!(!name.starts_with(b"proxy:"), "{name:?}");
        assert!(approved.contains(name));
        let plain = name
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || b":/._-".contains(&byte));
        // Without a colon, or as the name of something nested, a name is not a list of itself.
        if plain && name.contains(&b':') {
            let (again, _) = approve(&[b"proxy:", name].concat());
            assert!(again.contains(name), "{name:?}");
        }
    }
    // A brace could take in what follows, and a NUL ends the text.
    if !text.contains(&b'{') && !text.contains(&0) {
        let (twice, _) = approve(&[text, b" ", text].concat());
        assert_eq!(twice, approved);
    }
}

/// A cdb file as the description of the format has it, made without the code under test.
fn cdb_of(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).expect("small").to_le_bytes();
    let hash = |key: &[u8]| {
        key.iter().fold(5381_u32, |hash, &byte| {
            (hash << 5).wrapping_add(hash) ^ u32::from(byte)
        }) as usize
    };
    let mut file = vec![0; 2048];
    let mut known = Vec::new();
    for (key, value) in entries {
        known.push((hash(key), file.len()));
        file.extend([number(key.len()), number(value.len())].concat());
        file.extend([*key, *value].concat());
    }
    for table in 0..256 {
        let inside: Vec<_> = known
            .iter()
            .filter(|(hash, _)| hash % 256 == table)
            .collect();
        let mut slots = vec![(0, 0); inside.len() * 2];
        for &&(hash, at) in &inside {
            let mut slot = hash / 256 % slots.len();
            while slots[slot].1 != 0 {
                slot = (slot + 1) % slots.len();
            }
            slots[slot] = (hash, at);
        }
        let place = [number(file.len()), number(slots.len())].concat();
        file[table * 8..table * 8 + 8].copy_from_slice(&place);
        for (hash, at) in slots {
            file.extend([number(hash), number(at)].concat());
        }
    }
    file
}

/// A damaged cdb file, given whole or, when short, as changes to a good one: whatever is found or listed lies inside
/// the file, a walk ends, and what is listed in a good one is found.
pub fn cdb_file(data: &[u8]) {
    let entries: [(&[u8], &[u8]); 6] = [
        (b"a", b"1"),
        (b"key\0", b"value\0"),
        (b"", b""),
        (&[b'k'; 300], b"x"),
        (b"a", b"again"),
        (b"b", &[b'v'; 700]),
    ];
    let good = cdb_of(&entries);
    let mut file = data.to_vec();
    if data.len() < 2048 {
        file.clone_from(&good);
        for change in data.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
            file[at] = change[2];
        }
        if data.len() % 3 == 1 {
            file.truncate(file.len() - usize::from(data[data.len() - 1]));
        }
    }
    let length = file.len();
    let Ok(reader) = Reader::from_bytes(file.clone()) else {
        assert_ne!(file, good);
        return;
    };
    let find = |key: &[u8], tail: &[u8]| -> Result<Option<Vec<u8>>, Damage> {
        let Some(record) = reader.find(key, tail)? else {
            return Ok(None);
        };
        let mut value = Vec::new();
        reader.append_value(record, &mut value)?;
        assert!(value.len() <= length);
        Ok(Some(value))
    };
    let mut at = reader.first();
    let mut count = 0;
    while let Ok(Some(record)) = reader.record(at) {
        let mut key = Vec::new();
        reader
            .append_stored_key(record, &mut key)
            .expect("it lies inside the file");
        let found = find(&key, b"");
        if file == good {
            let first = entries
                .iter()
                .find(|(known, _)| *known == key)
                .expect("it was stored");
            let first = first.1.strip_suffix(b"\0").unwrap_or(first.1);
            assert_eq!(found.expect("no damage").as_deref(), Some(first));
        }
        assert!(matches!(reader.record_of(at, &key), Ok(Some(again)) if again == record));
        assert!(record.next() > at);
        at = record.next();
        count += 1;
        assert!(count <= length / 8);
    }
    if file == good {
        assert_eq!(count, entries.len());
    }
    for key in [&b"key"[..], b"none", b""] {
        let _ = find(key, b"\0");
    }
}

/// A file from fuzz input: the data as it is, or, when `what` says so (2), a good file changed by it, four bytes for
/// a change: three of its place, and the new byte; cut, too, when `what` says that (4).
fn changed(good: &[u8], what: u8, data: &[u8]) -> Vec<u8> {
    if what & 2 == 0 {
        return data.to_vec();
    }
    let mut file = good.to_vec();
    for change in data.chunks_exact(4) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let length = file.len();
        file[at % length] = change[3];
    }
    if what & 4 != 0 {
        file.truncate(data.len() * 256);
    }
    file
}
