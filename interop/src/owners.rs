//! Clients that change a table and remember what was acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use postkeep_client::Place;
use postkeep_client::proxymap::{Client, Dialect, Policy, Settings, Status};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, StandIn};

use crate::postmap::{Random, Sides};

/// What verify(8) sends with its requests.
pub const CACHE: u32 = 590_208;

const CLIENTS: usize = 12;
/// Keys of each client, which no other one touches.
const KEYS: usize = 12;

/// No test lets its clients work for so long.
const LONGEST: Duration = Duration::from_secs(30);

/// The number of the change that a key has its value from; `None` where it is not there.
type State = Option<u64>;

/// What a key may hold: what was acknowledged last, or one of the changes that were asked for since.
#[derive(Clone, Default)]
struct Entry {
    known: State,
    asked: Vec<State>,
}

struct Owner {
    number: usize,
    random: Random,
    entries: Vec<Entry>,
    changes: u64,
    acknowledged: u64,
    refused: u64,
}

/// The clients of one table.
pub struct Owners {
    owners: Vec<Owner>,
    /// What they send with their requests.
    pub flags: u32,
}

/// For how long the clients are at work.
#[derive(Clone, Copy)]
pub enum Until<'a> {
    /// Until the daemon is gone, which may not be before this is set. Nothing may be refused.
    Gone(&'a AtomicBool),
    /// Until each has asked for so many changes. Refusals are temporary errors.
    Asked(u64),
}

/// The name of a table of a type in a directory. For `sqlite`, and for `sqlite-wal` with a log, its configuration is
/// written to `configuration`, where it outlives what happens to the directory.
///
/// # Errors
/// Of the file system.
pub fn table(kind: &str, directory: &Path, configuration: &Path) -> Result<String> {
    let directory = directory.display();
    let mode = match kind {
        "sqlite" => "",
        "sqlite-wal" => "PRAGMA journal_mode = WAL; ",
        kind => return Ok(format!("{kind}:{directory}/t")),
    };
    let text = format!(
        "dbpath = {directory}/t.sqlite\nquery = SELECT v FROM t WHERE k = '%s'\n\
         update_query = INSERT INTO t VALUES (:key, :value) ON CONFLICT (k) DO UPDATE SET v = :value\n\
         delete_query = DELETE FROM t WHERE k = :key\n\
         schema = {mode}CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID\n"
    );
    fs::write(configuration, text)?;
    fs::set_permissions(configuration, fs::Permissions::from_mode(0o644))?;
    Ok(format!("sqlite:{}", configuration.display()))
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

/// How proxywrite is started that may write to `table`; `executable` stands for the usual one.
pub fn plan(table: &str, executable: Option<&Path>) -> Plan {
    let plan = Plan::new(Implementation::Postkeep, "proxywrite")
        // Small, so that it has to grow after each start.
        .parameter("lmdb_map_size", "20480")
        .parameter("proxy_write_maps", &format!("proxy:{table}"));
    match executable {
        Some(executable) => plan.executable(executable),
        None => plan,
    }
}

/// A client that sends each request once: one that was sent twice could not be told from two.
pub fn client(daemon: &StandIn) -> Client {
    let mut settings = Settings::new(Place::Path(daemon.socket()), "proxywrite");
    settings.dialect = Dialect::POSTFIX_3_6;
    settings.limit = Duration::from_secs(20);
    settings.policy = Policy {
        connects: 1,
        connect_delay: Duration::ZERO,
        sends: Some(1),
        send_delay: Duration::ZERO,
    };
    Client::new(settings)
}

/// What the real postmap(1) lists.
///
/// # Errors
/// It says that anything is wrong.
pub fn list(sides: &Sides, table: &str) -> Result<BTreeMap<String, String>> {
    // What it does not list is asked for all keys that there may be.
    let asks = table.starts_with("cdb:") || table.starts_with("sqlite:");
    let keys: String = (0..CLIENTS * KEYS)
        .map(|number| key(number / KEYS, number % KEYS) + "\n")
        .collect();
    let words = if asks {
        vec!["postmap", "-q", "-", table]
    } else {
        vec!["postmap", "-s", table]
    };
    let input = if asks { keys.as_bytes() } else { b"" };
    let outcome = sides.run(&sides.real, sides.root(), &words, input);
    ensure!(
        (outcome.exit == Some(0) || asks) && outcome.stderr.is_empty(),
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

/// Opens a table through the daemon, as caches are.
///
/// # Errors
/// It does not open.
pub fn open(daemon: &StandIn, table: &str) -> Result<()> {
    let opened = client(daemon).open(table.as_bytes(), CACHE)?;
    // Whether the table is there is known from the first request.
    let found = client(daemon).lookup(table.as_bytes(), 0, CACHE, b"nobody@example.test")?;
    ensure!(
        opened.status == Status::Ok && found.status == Status::NoKey,
        "{:?}",
        daemon.log_texts()
    );
    Ok(())
}

/// What the real postmap(1) lists after the daemon has been started once more, and ended: some tables are locked for as long as it has
/// them open.
///
/// # Errors
/// As [`open`] and [`list`].
pub fn list_after_restart(sides: &Sides, table: &str) -> Result<BTreeMap<String, String>> {
    let mut daemon = plan(table, None).start()?.context("no daemon")?;
    open(&daemon, table)?;
    daemon.signal(rustix::process::Signal::KILL)?;
    daemon.wait(Duration::from_secs(5))?;
    list(sides, table).with_context(|| format!("{:?}", daemon.log_texts()))
}

impl Owner {
    fn new(number: usize) -> Self {
        Self {
            number,
            random: Random(0x9E37_79B9 + number as u64 * 77),
            entries: vec![Entry::default(); KEYS],
            changes: 0,
            acknowledged: 0,
            refused: 0,
        }
    }

    fn run(&mut self, daemon: &StandIn, table: &[u8], flags: u32, until: Until<'_>) -> Result<()> {
        let mut client = client(daemon);
        let begun = self.changes;
        let limit = Instant::now() + LONGEST;
        loop {
            ensure!(Instant::now() < limit, "no end");
            if let Until::Asked(number) = until
                && self.changes == begun + number
            {
                return Ok(());
            }
            let number = self.random.below(KEYS);
            let entry = &mut self.entries[number];
            let key = key(self.number, number);
            self.changes += 1;
            let (asked, answer) = if self.random.below(4) == 0 {
                (None, client.delete(table, 0, flags, key.as_bytes()))
            } else {
                let value = value(self.number, number, self.changes);
                let answer = client.update(table, 0, flags, key.as_bytes(), value.as_bytes());
                (Some(self.changes), answer)
            };
            let answer = match (answer, until) {
                (Ok(answer), _) => answer,
                (Err(_), Until::Gone(may_be)) => {
                    entry.asked.push(asked);
                    ensure!(may_be.load(Ordering::SeqCst), "gone before it was killed");
                    return Ok(());
                }
                (Err(error), Until::Asked(_)) => return Err(error.into()),
            };
            match answer.status {
                Status::Ok if asked.is_some() || entry.may_be_there() => {}
                Status::NoKey if asked.is_none() && entry.may_be_absent() => {}
                Status::Retry if matches!(until, Until::Asked(_)) => {
                    entry.asked.push(asked);
                    self.refused += 1;
                    continue;
                }
                status => bail!("{key}: {status:?} for {asked:?}"),
            }
            *entry = Entry {
                known: asked,
                asked: Vec::new(),
            };
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
            match asked.into_iter().find(|&state| holds(state)) {
                Some(state) => entry.known = state,
                None => bail!("{key}: {:?} is known, found: {found:?}", entry.known),
            }
            made += 1;
        }
        Ok(made)
    }
}

impl Entry {
    fn may_be_there(&self) -> bool {
        self.known.is_some() || self.asked.iter().any(Option::is_some)
    }

    fn may_be_absent(&self) -> bool {
        self.known.is_none() || self.asked.iter().any(Option::is_none)
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self {
            owners: (0..CLIENTS).map(Owner::new).collect(),
            flags: CACHE,
        }
    }
}

impl Owners {
    /// All clients change their entries at the same time, and something else is done meanwhile.
    ///
    /// # Errors
    /// Something was answered that cannot be right.
    pub fn run(
        &mut self,
        daemon: &StandIn,
        table: &str,
        until: Until<'_>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.run_each(&[daemon], table, until, meanwhile)
    }

    /// As [`Self::run`], with several daemons, among which the clients are divided.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_each(
        &mut self,
        daemons: &[&StandIn],
        table: &str,
        until: Until<'_>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let flags = self.flags;
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .owners
                .iter_mut()
                .zip(daemons.iter().cycle())
                .map(|(owner, daemon)| {
                    scope.spawn(move || owner.run(daemon, table.as_bytes(), flags, until))
                })
                .collect();
            let result = meanwhile();
            let results: Vec<Result<()>> = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
                .collect();
            results.into_iter().chain([result]).collect()
        })
    }

    /// Compares with what is there, which is what is known from now on. Counts unacknowledged changes that are there.
    ///
    /// # Errors
    /// Something is there that was not asked for, or what was acknowledged is not there.
    pub fn check(&mut self, mut there: BTreeMap<String, String>) -> Result<u64> {
        let mut made = 0;
        for owner in &mut self.owners {
            made += owner.check(&mut there)?;
        }
        ensure!(there.is_empty(), "nobody made {there:?}");
        Ok(made)
    }

    /// How many changes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.owners.iter().map(|owner| owner.acknowledged).sum()
    }

    /// How many changes were refused.
    pub fn refused(&self) -> u64 {
        self.owners.iter().map(|owner| owner.refused).sum()
    }
}
