use std::sync::atomic::AtomicU32;
use std::sync::{Barrier, Condvar, Mutex, PoisonError};
use std::thread;

use postkeep_table::{Access, Opener};

use super::*;
use crate::{Context, Registry};

/// What a table says to a numbered question.
type Say = fn(u32, Flags, &[u8]) -> Result<Option<Vec<u8>>, LookupError>;

/// Counts how often it is asked, and answers when it is let.
struct Counting {
    name: TableName,
    latency: Latency,
    asked: AtomicU32,
    /// What to answer; nothing while nobody may know.
    answer: Mutex<Option<Say>>,
    changed: Condvar,
}

impl Counting {
    fn new(latency: Latency) -> Arc<Self> {
        Arc::new(Self {
            name: TableName::parse(b"counting:x").unwrap(),
            latency,
            asked: AtomicU32::new(0),
            answer: Mutex::new(Some(number)),
            changed: Condvar::new(),
        })
    }

    fn set(&self, answer: Option<Say>) {
        *self.answer.lock().unwrap() = answer;
        self.changed.notify_all();
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn ask(&self, flags: Flags, key: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let known = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self
            .changed
            .wait_while(known, |answer| answer.is_none())
            .unwrap();
        let answer = known.unwrap();
        drop(known);
        answer(number, flags, key)
    }
}

/// The number of the question; nothing for `absent`.
#[expect(clippy::unnecessary_wraps, reason = "others fail")]
fn number(number: u32, _: Flags, key: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
    Ok((key != b"absent").then(|| number.to_string().into_bytes()))
}

fn retry(_: u32, _: Flags, _: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
    Err(LookupError::Retry("later".to_owned()))
}

fn config(_: u32, _: Flags, _: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
    Err(LookupError::Config("never".to_owned()))
}

fn panics(_: u32, _: Flags, _: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
    panic!("on purpose")
}

impl Table for Counting {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        Flags::PATTERN
    }

    fn latency(&self) -> Latency {
        self.latency
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        match self.ask(flags, key)? {
            Some(found) => {
                value.extend_from_slice(&found);
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn begin_lookup(self: Arc<Self>, flags: Flags, key: &[u8], value: Vec<u8>, done: Completion) {
        if self.latency == Latency::Remote {
            let key = key.to_vec();
            thread::spawn(move || {
                let mut value = value;
                let result = self.lookup(flags, &key, &mut value);
                done(result, value);
            });
        } else {
            let mut value = value;
            let result = self.lookup(flags, key, &mut value);
            done(result, value);
        }
    }

    fn owner(&self) -> Owner {
        Owner::User(7)
    }
}

const LATENCIES: [Latency; 3] = [Latency::Memory, Latency::Blocking, Latency::Remote];

fn cached(inner: &Arc<Counting>, list: &str) -> Arc<Cached> {
    let name = TableName::parse(format!("cache:{{counting:x,{list}}}").as_bytes()).unwrap();
    let (_, settings) = keys::read(&name).unwrap();
    Arc::new(Cached {
        latency: inner.latency,
        shared: Arc::new(Shared::new(
            name,
            Arc::clone(inner) as Arc<dyn Table>,
            &settings,
        )),
    })
}

fn find(table: &Cached, flags: Flags, key: &str) -> Result<Option<String>, LookupError> {
    let mut value = b"<".to_vec();
    let result = table.lookup(flags, key.as_bytes(), &mut value);
    let text = String::from_utf8(value).unwrap();
    let text = text.strip_prefix('<').unwrap();
    if !matches!(result, Ok(Outcome::Done)) {
        assert_eq!(text, "");
    }
    Ok((result? == Outcome::Done).then(|| text.to_owned()))
}

/// The same by way of a callback.
fn begin(
    table: &Arc<Cached>,
    key: &str,
) -> mpsc::Receiver<(Result<Outcome, LookupError>, Vec<u8>)> {
    let (sender, receiver) = mpsc::channel();
    let done: Completion = Box::new(move |result, value| sender.send((result, value)).unwrap());
    let table: Arc<Cached> = Arc::clone(table);
    table.begin_lookup(Flags::empty(), key.as_bytes(), b"<".to_vec(), done);
    receiver
}

#[test]
fn answers_are_kept_found_or_not() {
    for latency in LATENCIES {
        let inner = Counting::new(latency);
        let table = cached(&inner, "");
        for _ in 0..3 {
            assert_eq!(find(&table, Flags::empty(), "a").unwrap().unwrap(), "1");
        }
        for _ in 0..3 {
            assert_eq!(find(&table, Flags::empty(), "absent").unwrap(), None);
        }
        assert_eq!(begin(&table, "a").recv().unwrap().1, b"<1");
        assert_eq!(begin(&table, "new").recv().unwrap().1, b"<3");
        assert_eq!(inner.asked(), 3);
        let mut value = Vec::new();
        let tried = table
            .try_lookup(Flags::empty(), b"new", &mut value)
            .unwrap();
        assert_eq!((tried.unwrap(), &value[..]), (Outcome::Done, &b"3"[..]));
        let tried = table.try_lookup(Flags::empty(), b"newer", &mut value);
        assert_eq!(tried.is_some(), latency == Latency::Memory);
        let counts = table.cache_counts().unwrap();
        assert!(counts.hits >= 6 && counts.misses >= 3, "{counts:?}");
        assert_eq!(table.latency(), latency);
        assert_eq!(table.owner(), Owner::User(7));
        assert_eq!(table.flags(), Flags::PATTERN);
    }
}

#[test]
fn requests_that_fold_have_answers_of_their_own() {
    let inner = Counting::new(Latency::Memory);
    let table = cached(&inner, "");
    assert_eq!(find(&table, Flags::empty(), "k").unwrap().unwrap(), "1");
    for (wanted, flags) in (2..).zip([
        Flags::FOLD_FIX,
        Flags::FOLD_MUL,
        Flags::FOLD_FIX | Flags::FOLD_MUL,
        Flags::NO_REGSUB,
        Flags::UTF8_REQUEST,
        Flags::NO_UNAUTH,
        Flags::TRY0NULL,
        Flags::from_bits_retain(0x8000_0000),
    ]) {
        let wanted = wanted.to_string();
        assert_eq!(find(&table, flags, "k").unwrap().unwrap(), wanted);
        let with_lock = flags | Flags::LOCK | Flags::DUP_WARN | Flags::SYNC_UPDATE;
        assert_eq!(find(&table, with_lock, "k").unwrap().unwrap(), wanted);
    }
    assert_eq!(find(&table, Flags::LOCK, "k").unwrap().unwrap(), "1");
}

/// Clients that wait for a table take no threads, whatever the table; the first one's does where the table has to be
/// waited for.
#[test]
fn a_thousand_lookups_are_one() {
    for latency in [Latency::Blocking, Latency::Remote] {
        let inner = Counting::new(latency);
        inner.set(None);
        let table = cached(&inner, "");
        let leader = Arc::clone(&table);
        let first = thread::spawn(move || begin(&leader, "k").recv().unwrap());
        while inner.asked() == 0 {
            thread::yield_now();
        }
        let waiting: Vec<_> = (0..1000).map(|_| begin(&table, "k")).collect();
        let other = Arc::clone(&table);
        let waits = thread::spawn(move || find(&other, Flags::empty(), "k").unwrap());
        while table.cache_counts().unwrap().coalesced < 1001 {
            thread::yield_now();
        }
        inner.set(Some(number));
        for one in waiting {
            let (result, value) = one.recv().unwrap();
            assert_eq!((result.unwrap(), &value[..]), (Outcome::Done, &b"<1"[..]));
        }
        assert_eq!(first.join().unwrap().1, b"<1");
        assert_eq!(waits.join().unwrap().unwrap(), "1");
        assert_eq!(inner.asked(), 1);
        assert_eq!(table.cache_counts().unwrap().misses, 1);
    }
}

#[test]
fn errors_are_told_to_all_and_not_kept_beyond_the_delay() {
    for latency in LATENCIES {
        let inner = Counting::new(latency);
        let table = cached(&inner, "retry_delay=1h");
        for (key, answer) in [("r", retry as Say), ("c", config)] {
            inner.set(Some(answer));
            let before = inner.asked();
            for round in 0..4 {
                let error = find(&table, Flags::empty(), key).unwrap_err();
                let wanted = matches!(error, LookupError::Retry(_));
                assert_eq!(wanted, key == "r");
                // What there is to say is said once.
                assert_eq!(error.to_string().is_empty(), round > 0);
            }
            assert_eq!(inner.asked(), before + 1);
            inner.set(Some(number));
            assert!(find(&table, Flags::empty(), key).is_err());
        }
        let table = cached(&inner, "retry_delay=0");
        inner.set(Some(retry));
        assert!(find(&table, Flags::empty(), "r").is_err());
        inner.set(Some(number));
        assert!(find(&table, Flags::empty(), "r").unwrap().is_some());
    }
}

#[test]
fn what_was_known_serves_while_there_are_temporary_errors() {
    for latency in LATENCIES {
        let inner = Counting::new(latency);
        let table = cached(&inner, "ttl=0 negative_ttl=0 stale_ttl=1h retry_delay=1h");
        let value = find(&table, Flags::empty(), "k").unwrap();
        assert_eq!(find(&table, Flags::empty(), "absent").unwrap(), None);
        inner.set(Some(retry));
        for _ in 0..5 {
            assert_eq!(find(&table, Flags::empty(), "k").unwrap(), value);
            assert_eq!(find(&table, Flags::empty(), "absent").unwrap(), None);
        }
        assert_eq!(begin(&table, "k").recv().unwrap().1, b"<1");
        // The first time each was asked for; the rest is left alone.
        assert_eq!(inner.asked(), 4);
        assert_eq!(table.cache_counts().unwrap().stale, 11);
        // An error that a person must repair is not covered up.
        let table = cached(&inner, "ttl=0 stale_ttl=1h retry_delay=0");
        inner.set(Some(number));
        find(&table, Flags::empty(), "k").unwrap();
        inner.set(Some(config));
        assert!(find(&table, Flags::empty(), "k").is_err());
        inner.set(Some(retry));
        assert!(find(&table, Flags::empty(), "k").is_err());
    }
}

#[test]
fn an_answer_is_looked_up_ahead_of_its_end() {
    for latency in [Latency::Blocking, Latency::Remote] {
        let inner = Counting::new(latency);
        let table = cached(&inner, "ttl=1h refresh=100%");
        assert_eq!(find(&table, Flags::empty(), "k").unwrap().unwrap(), "1");
        inner.set(None);
        // Answered at once, while one is asking again.
        for _ in 0..10 {
            assert_eq!(find(&table, Flags::empty(), "k").unwrap().unwrap(), "1");
        }
        inner.set(Some(number));
        while table.shared.refreshes.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        assert_eq!(inner.asked(), 2);
        let mut value = Vec::new();
        table
            .shared
            .cache
            .peek(table.shared.now(), 0, b"k", false, &mut value);
        assert_eq!(value, b"2");
        assert_eq!(table.cache_counts().unwrap().refreshes, 1);
    }
}

#[test]
fn few_are_looked_up_ahead_at_once() {
    let inner = Counting::new(Latency::Remote);
    let table = cached(&inner, "ttl=1h refresh=100%");
    let keys: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    for key in &keys {
        find(&table, Flags::empty(), key).unwrap();
    }
    inner.set(None);
    for key in keys.iter().chain(&keys) {
        find(&table, Flags::empty(), key).unwrap();
    }
    assert_eq!(table.cache_counts().unwrap().refreshes, REFRESHES as u64);
    inner.set(Some(number));
    while table.shared.refreshes.load(Ordering::SeqCst) > 0 {
        thread::yield_now();
    }
    find(&table, Flags::empty(), "99").unwrap();
    assert_eq!(
        table.cache_counts().unwrap().refreshes,
        REFRESHES as u64 + 1
    );
}

#[test]
fn a_lookup_that_is_lost_is_told_of() {
    for latency in [Latency::Blocking, Latency::Remote] {
        let inner = Counting::new(latency);
        inner.set(None);
        let table = cached(&inner, "retry_delay=0");
        let leader = Arc::clone(&table);
        let first = thread::spawn(move || {
            let first = begin(&leader, "k");
            first.recv()
        });
        while inner.asked() == 0 {
            thread::yield_now();
        }
        let waiting = begin(&table, "k");
        inner.set(Some(panics));
        let (result, value) = waiting.recv().unwrap();
        assert!(matches!(result, Err(LookupError::Retry(_))));
        assert_eq!(value, b"<");
        drop(first.join());
        inner.set(Some(number));
        assert!(find(&table, Flags::empty(), "k").unwrap().is_some());
    }
}

/// Threads that look up few keys in a small cache get nothing but answers that the table has given for that key.
#[test]
fn threads_get_answers_to_their_own_keys() {
    fn same(_: u32, flags: Flags, key: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
        match key.first() {
            Some(b'0'..=b'3') => Ok(None),
            Some(b'9') => Err(LookupError::Retry(String::new())),
            _ => Ok(Some([key, &flags.bits().to_be_bytes()].concat())),
        }
    }
    for latency in LATENCIES {
        let inner = Counting::new(latency);
        inner.set(Some(same));
        let table = cached(
            &inner,
            "max_entries=10 ttl=1ms refresh=50% retry_delay=1ms stale_ttl=1ms",
        );
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    for round in 0..1500_u32 {
                        let key = (round * 7 % 23).to_string();
                        let flags = [Flags::empty(), Flags::FOLD_FIX][round as usize % 2];
                        let mut value = Vec::new();
                        let result = table.lookup(flags, key.as_bytes(), &mut value);
                        match same(0, flags, key.as_bytes()) {
                            Ok(Some(wanted)) => {
                                assert_eq!(result.unwrap(), Outcome::Done);
                                assert_eq!(value, wanted);
                            }
                            Ok(None) => assert_eq!(result.unwrap(), Outcome::Absent),
                            Err(_) => assert!(result.is_err()),
                        }
                    }
                });
            }
        });
        assert!(table.cache_counts().unwrap().entries <= 10);
    }
}

#[test]
fn the_table_inside_decides_what_is_refused() {
    let registry = Registry::new(Context::default());
    let open = |name: &str, access, flags| {
        let name = TableName::parse(name.as_bytes()).unwrap();
        registry.open(&name, access, flags)
    };
    let reason = |name: &str, access, flags| open(name, access, flags).err().unwrap().to_string();
    assert_eq!(
        reason("cache:{tcp:localhost:1}", Access::Read, Flags::NO_UNAUTH),
        "tcp:localhost:1 map is not allowed for security sensitive data"
    );
    assert_eq!(
        reason("cache:{texthash:/no/such}", Access::Read, Flags::empty()),
        "open database /no/such: No such file or directory"
    );
    assert_eq!(
        reason("cache:{static:x}", Access::ReadWrite, Flags::empty()),
        "cache:{static:x} map requires O_RDONLY access mode"
    );
    let table = open("cache:{randmap:{x}}", Access::Read, Flags::UTF8_REQUEST).unwrap();
    let plain = open("randmap:{x}", Access::Read, Flags::UTF8_REQUEST).unwrap();
    assert_eq!(table.flags(), plain.flags());
    assert_eq!(table.owner(), plain.owner());
    assert!(matches!(
        table.update(Flags::empty(), b"k", b"v"),
        Err(LookupError::Unsupported(_))
    ));
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = format!("cache:{{texthash:{}}}", file.path().display());
    let table = open(&name, Access::Read, Flags::empty()).unwrap();
    assert_eq!(table.watches().len(), 1);
    let debug = open("debug:cache:{static:x}", Access::Read, Flags::empty()).unwrap();
    assert!(debug.cache_counts().is_some());
    let deep = format!("{}static:x{}", "cache:{".repeat(1000), "}".repeat(1000));
    assert!(open(&deep, Access::Read, Flags::empty()).is_err());
}
