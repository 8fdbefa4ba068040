//! proxywrite is killed while several clients change a table of it: what was acknowledged is there afterwards, what was not
//! is there as a whole or not at all, and Postfix reads the file. A change that the disk refuses fails for
//! its own client only.
//!
//! `POSTKEEP_KILLS` in the environment is how often it is killed; 60 otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use postkeep_client::Place;
use postkeep_client::proxymap::{Client, Dialect, Policy, Settings, Status};
use postkeep_interop::postmap::{Random, Sides};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn, postkeep_binary, scratch};

/// What verify(8) sends.
const CACHE: u32 = 590_208;
const CLIENTS: usize = 12;
/// Keys of each client, which no other one touches.
const KEYS: usize = 12;

/// The number of the change that a key has its value from; `None` where it is not there.
type State = Option<u64>;

/// What a key may hold: what was acknowledged last, and what was asked for since.
#[derive(Clone, Copy, Default)]
struct Entry {
    known: State,
    asked: Asked,
}

/// The change of a key that was under way when the daemon was killed.
#[derive(Clone, Copy, Default)]
enum Asked {
    #[default]
    Nothing,
    For(State),
}

struct Owner {
    number: usize,
    random: Random,
    entries: [Entry; KEYS],
    changes: u64,
    acknowledged: u64,
}

fn key(owner: usize, entry: usize) -> String {
    format!("owner{owner:02}-{entry:02}@example.test")
}

/// Told apart by its number, and long enough to need pages of its own now and then.
fn value(owner: usize, entry: usize, number: u64) -> String {
    let letter = char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
    let length = usize::try_from(number * 7919 % 3001).unwrap_or(0);
    let text = format!("{owner}:{entry}:{number}:");
    text + &String::from(letter).repeat(length)
}

fn start(table: &str, executable: Option<&Path>) -> Result<Option<StandIn>> {
    let mut plan = Plan::new(Implementation::Postkeep, "proxywrite")
        // Small, so that it has to grow after each start.
        .parameter("lmdb_map_size", "20480")
        .parameter("proxy_write_maps", &format!("proxy:{table}"));
    if let Some(executable) = executable {
        plan = plan.executable(executable);
    }
    plan.start()
}

fn client(daemon: &StandIn) -> Client {
    let mut settings = Settings::new(Place::Path(daemon.socket()), "proxywrite");
    settings.dialect = Dialect::POSTFIX_3_6;
    settings.limit = Duration::from_secs(20);
    // A request that was sent twice could not be told from two.
    settings.policy = Policy {
        connects: 1,
        connect_delay: Duration::ZERO,
        sends: Some(1),
        send_delay: Duration::ZERO,
    };
    Client::new(settings)
}

impl Owner {
    fn new(number: usize) -> Self {
        Self {
            number,
            random: Random(0x9E37_79B9 + number as u64 * 77),
            entries: [Entry::default(); KEYS],
            changes: 0,
            acknowledged: 0,
        }
    }

    /// Changes its entries until the daemon is gone.
    fn run(&mut self, daemon: &StandIn, table: &[u8], killed: &AtomicBool) -> Result<()> {
        let mut client = client(daemon);
        loop {
            let number = self.random.below(KEYS);
            let entry = &mut self.entries[number];
            let key = key(self.number, number);
            self.changes += 1;
            let (asked, answer) = if self.random.below(4) == 0 {
                (None, client.delete(table, 0, CACHE, key.as_bytes()))
            } else {
                let value = value(self.number, number, self.changes);
                let answer = client.update(table, 0, CACHE, key.as_bytes(), value.as_bytes());
                (Some(self.changes), answer)
            };
            let Ok(answer) = answer else {
                entry.asked = Asked::For(asked);
                ensure!(killed.load(Ordering::SeqCst), "gone before it was killed");
                return Ok(());
            };
            let wanted = if asked.is_none() && entry.known.is_none() {
                Status::NoKey
            } else {
                Status::Ok
            };
            ensure!(
                answer.status == wanted,
                "{key}: {:?} instead of {wanted:?}",
                answer.status
            );
            entry.known = asked;
            self.acknowledged += 1;
        }
    }

    /// Compares with what is there, which is what is known from now on. Counts unacknowledged changes that are there.
    fn check(&mut self, there: &mut BTreeMap<String, String>) -> Result<u64> {
        let mut made = 0;
        for (number, entry) in self.entries.iter_mut().enumerate() {
            let key = key(self.number, number);
            let found = there.remove(&key);
            let holds =
                |state: State| state.map(|change| value(self.number, number, change)) == found;
            let asked = std::mem::take(&mut entry.asked);
            if holds(entry.known) {
                continue;
            }
            match asked {
                Asked::For(state) if holds(state) => entry.known = state,
                _ => bail!("{key}: {:?} is known, found: {found:?}", entry.known),
            }
            made += 1;
        }
        Ok(made)
    }
}

/// What the real postmap(1) lists.
fn list(sides: &Sides, table: &str) -> Result<BTreeMap<String, String>> {
    let outcome = sides.run(&sides.real, sides.root(), &["postmap", "-s", table], b"");
    ensure!(
        outcome.exit == Some(0) && outcome.stderr.is_empty(),
        "{}",
        outcome.stderr
    );
    let mut entries = BTreeMap::new();
    for line in String::from_utf8(outcome.stdout)?.lines() {
        let (key, value) = line.split_once('\t').context("no tab")?;
        ensure!(
            entries.insert(key.to_owned(), value.to_owned()).is_none(),
            "{key} twice"
        );
    }
    Ok(entries)
}

fn place(name: &str, kind: &str) -> Result<(Scratch, String)> {
    let place = Scratch::new(&format!("{name}-{kind}"))?;
    let directory = place.directory("tables", 0o755)?;
    scratch::give_to("postfix", &directory)?;
    let table = format!("{kind}:{}/t", directory.display());
    Ok((place, table))
}

#[test]
fn what_was_acknowledged_in_lmdb_survives_a_kill() -> Result<()> {
    survives_kills("lmdb")
}

#[test]
fn what_was_acknowledged_in_hash_survives_a_kill() -> Result<()> {
    survives_kills("hash")
}

#[test]
fn what_was_acknowledged_in_btree_survives_a_kill() -> Result<()> {
    survives_kills("btree")
}

fn survives_kills(kind: &str) -> Result<()> {
    let Some(sides) = Sides::new() else {
        return Ok(());
    };
    let kills = match std::env::var("POSTKEEP_KILLS") {
        Ok(kills) => kills.parse()?,
        Err(_) => 60,
    };
    let (_place, table) = place("killed", kind)?;
    let mut owners: Vec<Owner> = (0..CLIENTS).map(Owner::new).collect();
    let mut random = Random(0x1234_5678_9ABC);
    let mut made = 0;
    for kill in 0..kills {
        let Some(mut daemon) = start(&table, None)? else {
            return Ok(());
        };
        client(&daemon).open(table.as_bytes(), CACHE)?;
        let killed = AtomicBool::new(false);
        let pause = Duration::from_micros(random.below(60_000) as u64);
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let (daemon, killed, table) = (&daemon, &killed, table.as_bytes());
            let threads: Vec<_> = owners
                .iter_mut()
                .map(|owner| scope.spawn(move || owner.run(daemon, table, killed)))
                .collect();
            thread::sleep(pause);
            killed.store(true, Ordering::SeqCst);
            let signalled = daemon.signal(rustix::process::Signal::KILL);
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked")))
                .chain([Ok(signalled.map_err(Into::into))])
                .map(|result| result?)
                .collect()
        });
        daemon.wait(Duration::from_secs(5))?;
        results
            .into_iter()
            .collect::<Result<()>>()
            .with_context(|| format!("kill {kill}: {:?}", daemon.log_texts()))?;
        let mut there = list(&sides, &table)?;
        for owner in &mut owners {
            made += owner
                .check(&mut there)
                .with_context(|| format!("after kill {kill}"))?;
        }
        ensure!(there.is_empty(), "nobody made {there:?}");
    }
    let acknowledged: u64 = owners.iter().map(|owner| owner.acknowledged).sum();
    println!(
        "{kind}, {kills} kills: {acknowledged} changes were acknowledged and are there; {made} were made and not acknowledged"
    );
    ensure!(acknowledged > kills, "hardly anything was done");
    Ok(())
}

#[test]
fn what_the_disk_refuses_fails_for_its_own_client_only() -> Result<()> {
    let Some(ours) = postkeep_binary() else {
        return Ok(());
    };
    let (place, table) = place("refused", "lmdb")?;
    // A limit on the size of files stands for a full disk; the signal that comes with it is ignored.
    let script = format!(
        "#!/bin/bash\ntrap '' XFSZ\nulimit -f 400\nexec -a proxymap {} \"$@\"\n",
        ours.display()
    );
    let executable = place.file("limited", &script)?;
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))?;
    let Some(daemon) = start(&table, Some(&executable))? else {
        return Ok(());
    };
    let large = "v".repeat(600_000);
    let table = table.as_bytes();
    client(&daemon).open(table, CACHE)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (daemon, large) = (&daemon, &large);
                scope.spawn(move || -> Result<()> {
                    let mut client = client(daemon);
                    for turn in 0..20 {
                        let key = format!("key{number}");
                        let refused = number % 4 == 0;
                        let short = format!("{number} {turn}");
                        let value = if refused { large } else { &short };
                        let answer =
                            client.update(table, 0, CACHE, key.as_bytes(), value.as_bytes())?;
                        let wanted = if refused { Status::Retry } else { Status::Ok };
                        ensure!(answer.status == wanted, "{key}: {:?}", answer.status);
                        let found = client.lookup(table, 0, CACHE, key.as_bytes())?;
                        ensure!(found.value == if refused { "" } else { &short }.as_bytes());
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a client panicked"))?
                .with_context(|| format!("{:?}", daemon.log_texts()))
        })
    })
}
