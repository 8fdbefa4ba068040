//! Every order in which threads can come to the steps of a question: each operation of the cache is one critical
//! section, so the orders of operations are all there is.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use postkeep_cache::{Answer, Cache, Entered, Failure, Kept, Settings, State, Ticket};

const KEY: &[u8] = b"key";

fn settings() -> Settings {
    Settings {
        ttl: Duration::from_secs(10),
        negative_ttl: Duration::from_secs(10),
        stale_ttl: Duration::ZERO,
        retry_delay: Duration::from_secs(5),
        refresh: 50,
        max_entries: 100,
        max_bytes: 100_000,
    }
}

/// What a client is about to do.
#[derive(Debug)]
enum Next {
    Peek,
    Enter,
    Refresh,
    Finish(Ticket),
    Wait,
    Told,
    Done,
}

/// What the table behind says, each time.
#[derive(Clone, Copy, Debug)]
enum Behind {
    Counts,
    Fails,
    /// The one who asks goes without an answer: a fault in the table's code.
    Breaks,
}

#[derive(Debug)]
struct World {
    cache: Cache<usize>,
    clients: Vec<Next>,
    /// How often each was told something.
    told: Vec<usize>,
    asked: u64,
    /// Questions that are being asked right now.
    under_way: usize,
    behind: Behind,
    now: Duration,
}

impl World {
    fn new(clients: usize, behind: Behind, known: bool) -> Self {
        let cache = Cache::new(&settings());
        let mut now = Duration::ZERO;
        if known {
            cache.put(now, now, 0, KEY, Ok(Answer::Found(b"0")));
            now = Duration::from_secs(6);
        }
        Self {
            cache,
            clients: (0..clients).map(|_| Next::Peek).collect(),
            told: vec![0; clients],
            asked: 0,
            under_way: 0,
            behind,
            now,
        }
    }

    fn ready(&self) -> Vec<usize> {
        let moves = |next: &Next| !matches!(next, Next::Wait | Next::Done);
        (0..self.clients.len())
            .filter(|&client| moves(&self.clients[client]))
            .collect()
    }

    fn tell(&mut self, client: usize) {
        self.told[client] += 1;
    }

    fn lead(&mut self) {
        self.asked += 1;
        self.under_way += 1;
        assert_eq!(self.under_way, 1, "two questions for one key at a time");
    }

    fn step(&mut self, client: usize) {
        let next = std::mem::replace(&mut self.clients[client], Next::Done);
        let mut value = Vec::new();
        self.clients[client] = match next {
            Next::Peek => match self.cache.peek(self.now, 0, KEY, true, &mut value) {
                Some(known) => {
                    self.tell(client);
                    if known.refresh {
                        Next::Refresh
                    } else {
                        Next::Done
                    }
                }
                None => Next::Enter,
            },
            Next::Refresh => match self.cache.refresh(self.now, 0, KEY) {
                Some(ticket) => {
                    self.lead();
                    Next::Finish(ticket)
                }
                None => Next::Done,
            },
            Next::Enter => match self.cache.enter(self.now, 0, KEY, &mut value, client) {
                Entered::Known(State::Found, back) => {
                    assert_eq!(back, client);
                    self.tell(client);
                    Next::Done
                }
                Entered::Known(State::Failed(Failure::Retry), _) => {
                    assert!(!matches!(self.behind, Behind::Counts));
                    self.tell(client);
                    Next::Done
                }
                Entered::Known(state, _) => panic!("{state:?}"),
                Entered::Joined => Next::Wait,
                Entered::Lead(ticket) => {
                    self.lead();
                    Next::Finish(ticket)
                }
            },
            Next::Finish(ticket) => {
                self.under_way -= 1;
                let value = self.asked.to_string();
                let result = match self.behind {
                    Behind::Counts => Ok(Answer::Found(value.as_bytes())),
                    Behind::Fails | Behind::Breaks => Err(Failure::Retry),
                };
                let finished = self.cache.finish(self.now, ticket, result);
                for waiter in finished.waiters {
                    // Told outside the cache, so that others come between.
                    self.told[waiter] += 1;
                    if waiter != client {
                        assert!(matches!(self.clients[waiter], Next::Wait));
                        self.clients[waiter] = Next::Told;
                    }
                }
                Next::Done
            }
            Next::Wait | Next::Told | Next::Done => Next::Done,
        };
    }
}

/// Runs one order: `choices` says who goes where several can. Adds to `choices` where it ends too early, and returns
/// how many could go at each.
fn run(world: &mut World, choices: &mut Vec<usize>) -> Vec<usize> {
    let mut widths = Vec::new();
    loop {
        let ready = world.ready();
        if ready.is_empty() {
            return widths;
        }
        if widths.len() == choices.len() {
            choices.push(0);
        }
        let client = ready[choices[widths.len()]];
        widths.push(ready.len());
        world.step(client);
    }
}

/// Runs all orders; returns how many there were.
fn every_order(make: impl Fn() -> World, check: impl Fn(&World)) -> usize {
    let (mut choices, mut count) = (Vec::new(), 0);
    loop {
        let mut world = make();
        let widths = run(&mut world, &mut choices);
        for (client, told) in world.told.iter().enumerate() {
            assert_eq!(*told, 1, "client {client} in {choices:?}");
        }
        assert_eq!(world.under_way, 0);
        check(&world);
        count += 1;
        // The next order: the last choice that can still move on does.
        while let Some(last) = choices.pop() {
            if last + 1 < widths[choices.len()] {
                choices.push(last + 1);
                break;
            }
        }
        if choices.is_empty() {
            return count;
        }
    }
}

#[test]
fn one_question_in_every_order() {
    for clients in 1..=4 {
        let orders = every_order(
            || World::new(clients, Behind::Counts, false),
            |world| {
                assert_eq!(world.asked, 1);
                let counts = world.cache.counts();
                assert_eq!(counts.misses, 1);
                assert_eq!(counts.hits + counts.coalesced + 1, clients as u64);
            },
        );
        println!("{clients} clients: {orders} orders");
        assert!(clients < 3 || orders > 100);
    }
}

#[test]
fn one_failure_in_every_order() {
    for behind in [Behind::Fails, Behind::Breaks] {
        every_order(
            || World::new(4, behind, false),
            |world| {
                assert_eq!(world.asked, 1);
                let counts = world.cache.counts();
                assert_eq!(counts.refused + counts.coalesced + counts.misses, 4);
            },
        );
    }
}

#[test]
fn one_refresh_in_every_order() {
    for behind in [Behind::Counts, Behind::Fails] {
        every_order(
            || World::new(4, behind, true),
            |world| {
                assert_eq!(world.asked, 1);
                let counts = world.cache.counts();
                assert_eq!((counts.hits, counts.refreshes), (4, 1));
            },
        );
    }
}

/// The same with threads, as the machine happens to run them: everybody is told, and each key is asked for once.
#[test]
fn threads_share_a_question() {
    const THREADS: usize = 8;
    const KEYS: u32 = 200;
    let cache = Arc::new(Cache::<mpsc::Sender<Vec<u8>>>::new(&Settings {
        max_entries: 1 << 20,
        max_bytes: 1 << 30,
        ..settings()
    }));
    let (asked, start) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Barrier::new(THREADS)),
    );
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (cache, asked, start) =
                (Arc::clone(&cache), Arc::clone(&asked), Arc::clone(&start));
            scope.spawn(move || {
                for number in 0..KEYS {
                    start.wait();
                    let (key, mut value) = (number.to_be_bytes(), Vec::new());
                    let (sender, receiver) = mpsc::channel();
                    match cache.enter(Duration::ZERO, 0, &key, &mut value, sender) {
                        Entered::Known(State::Found, _) => {}
                        Entered::Known(state, _) => panic!("{state:?}"),
                        Entered::Joined => value = receiver.recv().unwrap(),
                        Entered::Lead(ticket) => {
                            asked.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            let answer = Ok(Answer::Found(&key[..]));
                            let finished = cache.finish(Duration::ZERO, ticket, answer);
                            assert_eq!(finished.instead, None::<Kept>);
                            for waiter in finished.waiters {
                                waiter.send(key.to_vec()).unwrap();
                            }
                            value = receiver.recv().unwrap();
                        }
                    }
                    assert_eq!(value, key);
                }
            });
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), KEYS as usize);
    let counts = cache.counts();
    assert_eq!(counts.misses, u64::from(KEYS));
    assert_eq!(
        counts.hits + counts.coalesced,
        u64::from(KEYS) * (THREADS as u64 - 1)
    );
}
