use std::collections::HashMap;

use tokio::task::JoinSet;

use super::*;
use crate::hosts::Place;

/// What a server does.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Answers after this many milliseconds.
    Up(u64),
    Refuses,
    /// Never finishes a connection.
    Hangs,
    /// Never answers.
    Silent,
    /// Closes before the answer, so many times.
    Closes(usize),
    /// Its questions fail.
    Fails,
    /// Says no.
    Denies,
    /// Says no, which another one might not.
    Rejects,
}

#[derive(Default)]
struct World {
    modes: HashMap<String, Mode>,
    connects: Vec<String>,
    connecting: usize,
    connecting_peak: usize,
    open: usize,
    peak: usize,
    asked: usize,
}

type Shared = Arc<Mutex<World>>;

struct Fake(Shared);

struct Connection(Shared);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

struct Attempt(Shared);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.lock().unwrap().connecting -= 1;
    }
}

impl Backend for Fake {
    type Connection = Connection;
    type Request = ();
    type Answer = String;

    async fn connect(&self, host: &Host) -> Result<Connection, String> {
        let mode = {
            let mut world = self.0.lock().unwrap();
            world.connects.push(host.text.clone());
            world.connecting += 1;
            world.connecting_peak = world.connecting_peak.max(world.connecting);
            world.modes[&host.text]
        };
        let _attempt = Attempt(Arc::clone(&self.0));
        sleep(Duration::from_millis(1)).await;
        match mode {
            Mode::Hangs => std::future::pending().await,
            Mode::Refuses => Err("Connection refused".to_owned()),
            _ => {
                let mut world = self.0.lock().unwrap();
                world.open += 1;
                world.peak = world.peak.max(world.open);
                Ok(Connection(Arc::clone(&self.0)))
            }
        }
    }

    async fn ask(&self, _: &mut Connection, host: &Host, (): &()) -> Result<String, Fault> {
        let mode = {
            let mut world = self.0.lock().unwrap();
            world.asked += 1;
            world.modes[&host.text]
        };
        match mode {
            Mode::Up(delay) => {
                sleep(Duration::from_millis(delay)).await;
                Ok(host.text.clone())
            }
            Mode::Closes(times) => {
                let next = if times > 1 {
                    Mode::Closes(times - 1)
                } else {
                    Mode::Up(1)
                };
                self.0.lock().unwrap().modes.insert(host.text.clone(), next);
                Err(Fault::Stale("closed".to_owned()))
            }
            Mode::Fails => Err(Fault::Host("query failed".to_owned())),
            Mode::Rejects => Err(Fault::Refused("no".to_owned())),
            Mode::Denies => Err(Fault::Answer(LookupError::Config("no".to_owned()))),
            Mode::Silent | Mode::Hangs | Mode::Refuses => std::future::pending().await,
        }
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        format!("connect to {}: {reason}", host.text)
    }

    fn timeout_warning(&self, host: &Host, (): &()) -> String {
        format!("{}: time limit exceeded", host.text)
    }

    fn label(&self) -> String {
        "fake:x".to_owned()
    }
}

fn pool(servers: &[(&str, Mode)], limits: Limits) -> (Shared, Arc<Pool<Fake>>) {
    let world = Shared::default();
    for (name, mode) in servers {
        world
            .lock()
            .unwrap()
            .modes
            .insert((*name).to_owned(), *mode);
    }
    let hosts = servers.iter().map(|(name, _)| Host {
        text: (*name).to_owned(),
        place: if name.starts_with('/') {
            Place::Unix((*name).into())
        } else {
            Place::Inet((*name).to_owned(), "1".to_owned())
        },
    });
    let pool = Pool::new(Fake(Arc::clone(&world)), hosts.collect(), limits);
    (world, pool)
}

fn set(world: &Shared, name: &str, mode: Mode) {
    world.lock().unwrap().modes.insert(name.to_owned(), mode);
}

async fn many(pool: &Arc<Pool<Fake>>, count: usize) -> Vec<Result<String, Refusal>> {
    let mut set = JoinSet::new();
    for _ in 0..count {
        let pool = Arc::clone(pool);
        set.spawn(async move { pool.ask(&()).await });
    }
    set.join_all().await
}

#[tokio::test(start_paused = true)]
async fn connections_are_shared_and_never_more_than_the_maximum() {
    let limits = Limits {
        max_connections: 4,
        ..Limits::default()
    };
    let (world, pool) = pool(&[("a", Mode::Up(10))], limits);
    for result in many(&pool, 100).await {
        assert_eq!(result.unwrap(), "a");
    }
    {
        let world = world.lock().unwrap();
        assert_eq!((world.peak, world.asked), (4, 100));
        assert_eq!(world.connects.len(), 4);
    }
    let stats = pool.stats();
    assert_eq!((stats.connections, stats.idle, stats.waiting), (4, 4, 0));
    // One after the other needs one.
    assert_eq!(many(&pool, 1).await.len(), 1);
    assert_eq!(world.lock().unwrap().connects.len(), 4);
    // What is idle for too long is closed without anybody asking.
    sleep(Duration::from_secs(61)).await;
    assert_eq!(pool.stats().connections, 0);
    assert_eq!(world.lock().unwrap().open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_a_lifetime() {
    let limits = Limits {
        lifetime: Duration::from_secs(5),
        ..Limits::default()
    };
    let (world, pool) = pool(&[("a", Mode::Up(1))], limits);
    for _ in 0..12 {
        pool.ask(&()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.lock().unwrap().connects.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_or_finds_too_many_waiting_fails() {
    let limits = Limits {
        max_connections: 1,
        queue: 2,
        wait: Duration::from_millis(150),
        ..Limits::default()
    };
    let (_, pool) = pool(&[("a", Mode::Up(100))], limits);
    let begun = Instant::now();
    let results = many(&pool, 5).await;
    let good = results.iter().filter(|result| result.is_ok()).count();
    // One asks at once, one after it, one waits for too long; two find the queue full.
    assert_eq!(good, 2);
    assert!(begun.elapsed() < Duration::from_millis(250));
    let busy = results
        .iter()
        .filter(|result| matches!(result, Err(Refusal::Busy)));
    assert_eq!(busy.count(), 3);
    assert!(pool.stats().closed);
}

#[tokio::test(start_paused = true)]
async fn hosts_are_tried_in_order_and_rest() {
    let servers = [
        ("/a", Mode::Refuses),
        ("b", Mode::Up(1)),
        ("/c", Mode::Refuses),
    ];
    let (world, pool) = pool(&servers, Limits::default());
    assert_eq!(pool.ask(&()).await.unwrap(), "b");
    let mut first = std::mem::take(&mut world.lock().unwrap().connects);
    assert_eq!(first.pop().as_deref(), Some("b"));
    first.sort();
    assert_eq!(first, ["/a", "/c"]);
    // The good one is used on, and when it fails, the others rest still.
    set(&world, "b", Mode::Fails);
    assert!(matches!(pool.ask(&()).await, Err(Refusal::Unreachable(text)) if text.is_empty()));
    assert!(matches!(pool.ask(&()).await, Err(Refusal::Resting)));
    assert!(world.lock().unwrap().connects.is_empty());
    set(&world, "/a", Mode::Up(1));
    sleep(Duration::from_secs(61)).await;
    assert_eq!(pool.ask(&()).await.unwrap(), "/a");
}

#[tokio::test(start_paused = true)]
async fn one_connector_at_a_time_finds_out_about_a_dead_server() {
    let limits = Limits {
        rest: Duration::ZERO,
        breaker_failures: 0,
        connect: Duration::from_secs(3),
        ..Limits::default()
    };
    let (world, pool) = pool(&[("a", Mode::Hangs)], limits);
    let begun = Instant::now();
    assert!(many(&pool, 64).await.iter().all(Result::is_err));
    assert_eq!(world.lock().unwrap().connecting_peak, 1);
    assert!(begun.elapsed() < Duration::from_secs(24));
    // When it is back, all connect at once.
    set(&world, "a", Mode::Up(5));
    assert!(many(&pool, 64).await.iter().all(Result::is_ok));
    assert_eq!(world.lock().unwrap().peak, 16);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_and_a_probe_closes_it() {
    let limits = Limits {
        rest: Duration::ZERO,
        ..Limits::default()
    };
    let (world, pool) = pool(&[("a", Mode::Refuses)], limits);
    for _ in 0..5 {
        assert!(
            matches!(pool.ask(&()).await, Err(Refusal::Unreachable(text)) if text == "Connection refused")
        );
    }
    assert!(!pool.stats().closed);
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(matches!(pool.ask(&()).await, Err(Refusal::Resting)));
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(world.lock().unwrap().connects.len(), 5);
    sleep(Duration::from_secs(10)).await;
    let probes = many(&pool, 20).await;
    assert_eq!(world.lock().unwrap().connects.len(), 6);
    assert!(probes.iter().all(Result::is_err));
    set(&world, "a", Mode::Up(1));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(pool.ask(&()).await.unwrap(), "a");
    assert!(pool.stats().closed);
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_is_replaced_once() {
    let limits = Limits {
        rest: Duration::ZERO,
        ..Limits::default()
    };
    let (world, pool) = pool(&[("a", Mode::Closes(1))], limits);
    assert_eq!(pool.ask(&()).await.unwrap(), "a");
    assert_eq!(world.lock().unwrap().asked, 2);
    set(&world, "a", Mode::Closes(2));
    assert!(matches!(pool.ask(&()).await, Err(Refusal::Unreachable(text)) if text.is_empty()));
    assert_eq!(world.lock().unwrap().asked, 4);
}

#[tokio::test(start_paused = true)]
async fn silence_costs_the_connection_and_an_answer_keeps_it() {
    let (world, pool) = pool(&[("a", Mode::Denies)], Limits::default());
    for _ in 0..3 {
        assert!(matches!(
            pool.ask(&()).await,
            Err(Refusal::Answered(LookupError::Config(_)))
        ));
    }
    assert_eq!(world.lock().unwrap().connects.len(), 1);
    set(&world, "a", Mode::Silent);
    let begun = Instant::now();
    assert!(matches!(pool.ask(&()).await, Err(Refusal::Unreachable(text)) if text.is_empty()));
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    assert_eq!(
        (pool.stats().connections, world.lock().unwrap().open),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn lookups_that_are_given_up_leave_nothing_behind() {
    let (world, pool) = pool(&[("a", Mode::Hangs)], Limits::default());
    let given_up = timeout(Duration::from_secs(1), pool.ask(&())).await;
    assert!(given_up.is_err());
    assert_eq!(pool.stats().connections, 0);
    set(&world, "a", Mode::Silent);
    let given_up = timeout(Duration::from_secs(1), pool.ask(&())).await;
    assert!(given_up.is_err());
    assert_eq!(
        (pool.stats().connections, world.lock().unwrap().open),
        (0, 0)
    );
    set(&world, "a", Mode::Up(1));
    assert_eq!(pool.ask(&()).await.unwrap(), "a");
}

#[tokio::test]
async fn equal_tables_share_a_pool_while_one_of_them_lives() {
    static POOLS: super::Shared<&str, Fake> = super::Shared::new();
    let make = || pool(&[("a", Mode::Up(1))], Limits::default()).1;
    let first = POOLS.get_or_make("k", make);
    assert!(Arc::ptr_eq(&first, &POOLS.get_or_make("k", make)));
    assert!(!Arc::ptr_eq(&first, &POOLS.get_or_make("l", make)));
    let before = Arc::as_ptr(&first);
    let weak = Arc::downgrade(&first);
    drop(first);
    assert!(weak.upgrade().is_none(), "{before:?}");
}

/// Servers come and go at random under load: never more connections than the maximum, and no count goes astray.
#[tokio::test(start_paused = true)]
async fn counts_hold_whatever_happens() {
    let limits = Limits {
        max_connections: 5,
        queue: 30,
        rest: Duration::from_millis(20),
        connect: Duration::from_millis(50),
        wait: Duration::from_millis(80),
        answer: Duration::from_millis(60),
        idle: Duration::from_millis(300),
        lifetime: Duration::from_millis(500),
        breaker_failures: 4,
        breaker_rest: Duration::from_millis(30),
    };
    let modes = [
        Mode::Up(3),
        Mode::Up(20),
        Mode::Up(1),
        Mode::Up(2),
        Mode::Up(1),
        Mode::Refuses,
        Mode::Hangs,
        Mode::Silent,
        Mode::Closes(3),
        Mode::Fails,
        Mode::Denies,
    ];
    let (world, pool) = pool(
        &[("/a", Mode::Up(3)), ("b", Mode::Up(3)), ("c", Mode::Up(3))],
        limits,
    );
    let mut random: u64 = 0x5eed;
    let mut below = move |count: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % count as u64).unwrap()
    };
    let (mut good, mut bad) = (0, 0);
    for _ in 0..300 {
        set(
            &world,
            ["/a", "b", "c"][below(3)],
            modes[below(modes.len())],
        );
        let count = 1 + below(45);
        let patience = Duration::from_millis(1 + below(400) as u64);
        let load = timeout(patience, many(&pool, count)).await;
        for result in load.unwrap_or_default() {
            match result {
                Ok(_) | Err(Refusal::Answered(_)) => good += 1,
                Err(_) => bad += 1,
            }
        }
        // Lookups that were given up end when their tasks are dropped; a breaker may come to the end of its rest.
        sleep(Duration::from_millis(below(60) as u64)).await;
        let stats = pool.stats();
        assert!(stats.connections <= 5 && stats.idle <= stats.connections);
        assert_eq!(stats.waiting, 0);
        assert_eq!(world.lock().unwrap().open, stats.idle);
    }
    assert!(world.lock().unwrap().peak <= 5);
    assert!(good > 500 && bad > 500, "{good} {bad}");
    for name in ["/a", "b", "c"] {
        set(&world, name, Mode::Up(1));
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(pool.stats().connections, 0);
    assert!(pool.ask(&()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_one_refuses_is_asked_of_the_next_and_none_rests() {
    let limits = Limits {
        breaker_failures: 1,
        ..Limits::default()
    };
    let servers = [("/a", Mode::Rejects), ("b", Mode::Up(1))];
    let (world, pool) = pool(&servers, limits.clone());
    for _ in 0..3 {
        assert_eq!(pool.ask(&()).await.unwrap(), "b");
    }
    // Who answered is asked first from then on; the other's connection is kept.
    let (connects, asked) = {
        let world = world.lock().unwrap();
        (world.connects.clone(), world.asked)
    };
    assert_eq!(connects, ["/a", "b"]);
    assert_eq!(asked, 4);
    assert_eq!(pool.stats().idle, 2);
    // When all refuse, that is an answer, and the breaker stays closed.
    world
        .lock()
        .unwrap()
        .modes
        .insert("b".to_owned(), Mode::Rejects);
    for _ in 0..3 {
        assert!(matches!(
            pool.ask(&()).await,
            Err(Refusal::Answered(LookupError::Retry(_)))
        ));
    }
    assert!(pool.stats().closed);
    // So it is when the others cannot be reached.
    let (_, pool) = self::pool(&[("/a", Mode::Rejects), ("b", Mode::Refuses)], limits);
    for _ in 0..2 {
        assert!(matches!(
            pool.ask(&()).await,
            Err(Refusal::Answered(LookupError::Retry(_)))
        ));
    }
}
