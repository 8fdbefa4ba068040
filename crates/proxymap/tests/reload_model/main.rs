//! Tables that are opened, opened anew and closed while clients look keys up, in many orders: a model checker decides which
//! thread goes on at each lock and each shared number. Whatever the order,
//!
//! - a lookup meets a table that is wholly made and not closed;
//! - a client never meets an older table than one that it has met, nor than what somebody was told is in place;
//! - a table that is in place is never missed because another one cannot be opened;
//! - a table is closed once, and as soon as it is neither in place nor in use.
//!
//! `POSTKEEP_ORDERS` in the environment is how many orders are tried; 500 otherwise.
#![allow(
    clippy::unwrap_used,
    reason = "a failure ends the test, and poisoning is one"
)]

/// The model checker's locks and numbers, in the place of the system's.
mod sync;

#[path = "../../src"]
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "what clients write and read is not part of the model"
)]
mod source {
    pub(crate) mod approve;
    pub(crate) mod counters;
    pub(crate) mod instance;
    pub(crate) mod perform;
    pub(crate) mod role;
    pub(crate) mod service;
    pub(crate) mod share;
    pub(crate) mod walk;
    pub(crate) mod watch;
}

use source::{approve, counters, instance, perform, role, service, share, walk, watch};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use approve::Approved;
use instance::Instance;
use perform::Found;
use postkeep_table::{
    Access, Flags, Latency, LookupError, OpenError, Opener, Outcome, Owner, Table, TableName, Watch,
};
use postkeep_wire::proxymap::{Generation, Status};
use role::Role;
use service::look_up;
use share::{Settings, Tables};
use shuttle::thread;
use sync::step;
use watch::{Observer, Stat};

const NAME: &[u8] = b"hash:/t";

/// The file of the table, and who has it open. The numbers are of no interest to the model checker: nothing waits for them.
struct World {
    /// What is in the file; each version is larger than those before.
    version: AtomicU64,
    /// It cannot be opened.
    broken: AtomicBool,
    /// That happens.
    breaks: AtomicBool,
    /// Seconds since 1970.
    clock: AtomicI64,
    /// When it was changed.
    changed: AtomicI64,
    /// Tables that are open.
    open: AtomicUsize,
}

impl World {
    fn write(&self, version: u64) {
        let changed = self.clock.load(Ordering::SeqCst);
        self.changed.store(changed, Ordering::SeqCst);
        self.version.store(version, Ordering::SeqCst);
    }
}

struct Opened {
    name: TableName,
    version: u64,
    made: AtomicBool,
    closed: AtomicBool,
    latency: Latency,
    world: Arc<World>,
}

impl Opened {
    fn check(&self) {
        assert!(self.made.load(Ordering::SeqCst), "half made");
        assert!(!self.closed.load(Ordering::SeqCst), "closed");
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        assert!(
            !self.closed.swap(true, Ordering::SeqCst),
            "closed for a second time"
        );
        self.world.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Table for Opened {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        Flags::FIXED
    }

    fn latency(&self) -> Latency {
        self.latency
    }

    fn lookup(&self, _: Flags, _: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        self.check();
        step();
        self.check();
        value.extend_from_slice(self.version.to_string().as_bytes());
        Ok(Outcome::Done)
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch {
            path: "/t.db".into(),
            modification_time: true,
        }]
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

struct Registry {
    world: Arc<World>,
    latency: Latency,
}

impl Opener for Registry {
    fn open(&self, name: &TableName, _: Access, _: Flags) -> Result<Arc<dyn Table>, OpenError> {
        step();
        if self.world.broken.load(Ordering::SeqCst) {
            return Err(OpenError::Unavailable("broken".to_owned()));
        }
        self.world.open.fetch_add(1, Ordering::SeqCst);
        let table = Arc::new(Opened {
            name: name.clone(),
            version: self.world.version.load(Ordering::SeqCst),
            made: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            latency: self.latency,
            world: Arc::clone(&self.world),
        });
        step();
        table.made.store(true, Ordering::SeqCst);
        Ok(table)
    }
}

struct Eyes(Arc<World>);

impl Observer for Eyes {
    fn stat(&self, _: &Path) -> Option<Stat> {
        step();
        Some(Stat {
            device: 1,
            inode: 1,
            links: 1,
            size: self.0.version.load(Ordering::SeqCst),
            modified: (self.0.changed.load(Ordering::SeqCst), 0),
            changed: self.0.changed.load(Ordering::SeqCst),
        })
    }

    fn wall_clock(&self) -> i64 {
        self.0.clock.load(Ordering::SeqCst)
    }
}

/// Everything of one run.
struct Model {
    world: Arc<World>,
    tables: Arc<Tables>,
    /// The version that somebody was told is in place.
    told: Arc<AtomicU64>,
}

impl Model {
    /// - `ways`: in how many ways the table may be open at a time
    fn new(latency: Latency, ways: usize) -> Self {
        let world = Arc::new(World {
            version: AtomicU64::new(1),
            broken: AtomicBool::new(false),
            breaks: AtomicBool::new(false),
            clock: AtomicI64::new(1000),
            changed: AtomicI64::new(100),
            open: AtomicUsize::new(0),
        });
        let registry = Registry {
            world: Arc::clone(&world),
            latency,
        };
        let approved: Approved = [NAME].into_iter().collect();
        let settings = Settings {
            instances: ways,
            ..Settings::default()
        };
        let tables = Tables::new(
            Role::Read,
            &approved,
            Arc::new(registry),
            Arc::new(Eyes(Arc::clone(&world))),
            settings,
        );
        Self {
            world,
            tables: Arc::new(tables),
            told: Arc::default(),
        }
    }

    /// The table is open already when others come.
    fn opened(self) -> Self {
        self.look_up(0);
        self
    }

    /// One lookup, by somebody who has met this version.
    fn look_up(&self, newest: u64) {
        let mut client = Client {
            flags: Flags::empty(),
            instance: None,
            newest,
        };
        client.look_up(&self.tables, &self.world, &self.told);
    }

    /// A client that looks up so many times, and stays.
    fn client(&self, flags: Flags, lookups: usize) -> thread::JoinHandle<Option<Client>> {
        let tables = Arc::clone(&self.tables);
        let (world, told) = (Arc::clone(&self.world), Arc::clone(&self.told));
        thread::spawn(move || {
            let mut client = Client {
                flags,
                instance: None,
                newest: 0,
            };
            for _ in 0..lookups {
                client.look_up(&tables, &world, &told);
            }
            Some(client)
        })
    }

    /// Somebody who changes the file.
    fn author(&self, versions: std::ops::Range<u64>) -> thread::JoinHandle<Option<Client>> {
        let world = Arc::clone(&self.world);
        thread::spawn(move || {
            for version in versions {
                world.write(version);
                step();
            }
            None
        })
    }

    /// Somebody who has the file opened anew, and is told that it is.
    fn administrator(&self, turns: usize) -> thread::JoinHandle<Option<Client>> {
        let (world, tables) = (Arc::clone(&self.world), Arc::clone(&self.tables));
        let told = Arc::clone(&self.told);
        thread::spawn(move || {
            for _ in 0..turns {
                reload(&world, &tables, &told);
                step();
            }
            None
        })
    }

    /// Somebody who does both.
    fn maintainer(&self, versions: std::ops::Range<u64>) -> thread::JoinHandle<Option<Client>> {
        let (world, tables) = (Arc::clone(&self.world), Arc::clone(&self.tables));
        let told = Arc::clone(&self.told);
        thread::spawn(move || {
            for version in versions {
                world.write(version);
                step();
                reload(&world, &tables, &told);
            }
            None
        })
    }

    /// The thread that looks at the files once a second.
    fn keeper(&self, turns: usize) -> thread::JoinHandle<Option<Client>> {
        let tables = Arc::clone(&self.tables);
        thread::spawn(move || {
            for _ in 0..turns {
                tables.reload_changed();
                step();
            }
            None
        })
    }

    /// Nobody is at work any more: what is there is the newest, and all else is closed.
    fn end(self, mut clients: Vec<Client>, newest: u64) {
        if self.told.load(Ordering::SeqCst) > 0 {
            self.look_up(0);
        }
        for client in &mut clients {
            client.look_up(&self.tables, &self.world, &self.told);
        }
        for _ in 0..2 {
            self.world.clock.fetch_add(10, Ordering::SeqCst);
            self.tables.reload_changed();
        }
        let states = self.tables.states();
        assert_eq!(self.world.open.load(Ordering::SeqCst), states.open);
        drop(clients);
        if states.unavailable == 0 {
            self.look_up(newest);
        }
        drop(self.tables);
        assert_eq!(self.world.open.load(Ordering::SeqCst), 0);
    }
}

/// Has the table opened anew, and tells of it.
fn reload(world: &World, tables: &Tables, told: &AtomicU64) {
    let version = world.version.load(Ordering::SeqCst);
    match tables.reload(NAME).unwrap() {
        // Nobody has asked for it yet, so nothing can be said about it.
        Ok(0) => {}
        Ok(_) => {
            told.fetch_max(version, Ordering::SeqCst);
        }
        Err(_) => assert!(world.breaks.load(Ordering::SeqCst)),
    }
}

/// What a client knows.
struct Client {
    flags: Flags,
    /// The instance of its last lookup, which it keeps as a conversation does.
    instance: Option<Arc<Instance>>,
    /// What it has met.
    newest: u64,
}

impl Client {
    fn look_up(&mut self, tables: &Arc<Tables>, world: &World, told: &AtomicU64) {
        let told = told.load(Ordering::SeqCst);
        let now = Duration::from_secs(1);
        let kept = self
            .instance
            .take()
            .filter(|instance| !instance.is_retired());
        let instance = kept.unwrap_or_else(|| {
            let entry = tables.find(NAME).unwrap();
            tables.instance(entry, Generation::Two, self.flags, now)
        });
        self.instance = Some(Arc::clone(&instance));
        let mut found = Found::default();
        let result = look_up(
            now, instance, self.flags, b"k", tables, &mut found, &mut None,
        );
        let (status, value) = match result {
            Ok(status) => (status, found.value),
            Err(job) => {
                let done = job.run();
                (done.status, done.work.found.value)
            }
        };
        let breaks = world.breaks.load(Ordering::SeqCst);
        if breaks && self.newest == 0 && told == 0 && status == Status::Retry {
            // It has never been there.
            return;
        }
        assert_eq!(status, Status::Ok);
        let version: u64 = String::from_utf8(value).unwrap().parse().unwrap();
        assert!(
            version >= told,
            "{version}, and somebody was told of {told}"
        );
        assert!(version >= self.newest, "{version} after {}", self.newest);
        self.newest = version;
    }
}

fn run(model: impl Fn() + Send + Sync + Clone + 'static) {
    let orders = std::env::var("POSTKEEP_ORDERS")
        .ok()
        .and_then(|orders| orders.parse().ok())
        .unwrap_or(500);
    shuttle::check_pct(model.clone(), orders, 3);
    shuttle::check_random(model, orders);
}

/// Waits for all; gives the clients.
fn join<const N: usize>(threads: [thread::JoinHandle<Option<Client>>; N]) -> Vec<Client> {
    let ended = threads.into_iter().map(|thread| thread.join().unwrap());
    ended.flatten().collect()
}

#[test]
fn tables_are_replaced_under_their_clients_in_any_order() {
    for latency in [Latency::Memory, Latency::Blocking] {
        run(move || {
            let model = Model::new(latency, 4);
            let clients = join([
                model.client(Flags::empty(), 3),
                model.client(Flags::LOCK, 3),
                model.author(2..4),
                model.administrator(2),
                model.keeper(2),
            ]);
            model.end(clients, 3);
        });
    }
}

#[test]
fn two_who_replace_a_table_do_not_put_an_old_one_in_place_in_any_order() {
    run(|| {
        let model = Model::new(Latency::Memory, 4).opened();
        let clients = join([
            model.client(Flags::empty(), 4),
            model.author(2..4),
            model.administrator(1),
            model.administrator(2),
            model.keeper(2),
        ]);
        model.end(clients, 3);
    });
}

#[test]
fn who_notices_a_change_does_not_undo_a_later_one_in_any_order() {
    run(|| {
        let model = Model::new(Latency::Memory, 4).opened();
        let clients = join([model.maintainer(2..4), model.keeper(2)]);
        model.end(clients, 3);
    });
}

#[test]
fn tables_make_room_for_each_other_in_any_order() {
    for latency in [Latency::Memory, Latency::Blocking] {
        run(move || {
            let model = Model::new(latency, 1);
            let clients = join([
                model.client(Flags::empty(), 2),
                model.client(Flags::LOCK, 2),
                model.client(Flags::FOLD_FIX, 2),
                model.author(2..3),
                model.administrator(1),
            ]);
            model.end(clients, 2);
        });
    }
}

#[test]
fn what_cannot_be_opened_takes_no_table_away_in_any_order() {
    run(|| {
        let model = Model::new(Latency::Memory, 4).opened();
        let world = Arc::clone(&model.world);
        world.breaks.store(true, Ordering::SeqCst);
        let breaks = thread::spawn(move || {
            for turn in 0..8 {
                world.broken.store(turn % 2 == 0, Ordering::SeqCst);
                step();
                step();
            }
            None
        });
        let clients = join([
            breaks,
            model.client(Flags::empty(), 4),
            model.author(2..5),
            model.administrator(1),
            model.keeper(3),
        ]);
        // After a failure the next change is waited for.
        model.world.write(5);
        model.end(clients, 5);
    });
}
