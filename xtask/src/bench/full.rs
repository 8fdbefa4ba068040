//! A cache that is as full as descriptors allow: what one client feels of that, of all sessions expiring at one moment, and
//! of the watch on their far ends.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::{collect_session, save_endpoint};
use postkeep_testkit::{Implementation, Peer, StandIn};
use rustix::process::Signal;
use serde_json::json;

use super::expiry::quantile;
use super::report::{Report, Row};
use super::targets::Measure;
use super::{Bench, POSTKEEP, start};
use crate::observe::{Watch, memory, processor_time};
use crate::statistics::{as_float, median};
use crate::turns::check;

const ROW: &str = "scache full";
const FEW: usize = 100;
const MANY: usize = 19_000;
/// Finds, each followed by a save, that are measured together.
const OPERATIONS: usize = 3_000;
/// Sessions that are saved, left for a while, and found, to see what watching costs.
const WATCHED: usize = 200;
/// Until then all of them are watched.
const REST: Duration = Duration::from_millis(30);
const LONG: u32 = 1900;
/// Seconds; longer than it takes to save all.
const SHORT: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(30);
const PROPERTY: &str = "tls_level=0\nreuse_count=0\nendpoint_features=32783\n\n";

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    if bench.wants(ROW) {
        report.attempt(ROW, None, || full(bench));
    }
}

/// A daemon with sessions, and their far ends.
struct Filled {
    daemon: StandIn,
    client: Peer,
    far: Vec<UnixStream>,
    chance: u32,
}

fn label(number: usize) -> String {
    format!("smtp\n192.0.2.{}\n{number}\n0\n", number % 256)
}

impl Filled {
    fn new(bench: &Bench<'_>, parameters: &[(&str, &str)]) -> Result<Self> {
        // A quarter of the descriptors would be left to clients.
        let mut plan = bench
            .plan(Implementation::Postkeep, "scache")
            .parameter("postkeep_connection_cache_client_share", "2");
        for (name, value) in parameters {
            plan = plan.parameter(name, value);
        }
        let daemon = start(plan)?;
        let client = daemon.connect_and_greet()?;
        Ok(Self {
            daemon,
            client,
            far: Vec::new(),
            chance: 1,
        })
    }

    fn fill(&mut self, count: usize, ttl: u32) -> Result<()> {
        for number in 0..count {
            let (near, far) = UnixStream::pair()?;
            self.save(number, ttl, &near)?;
            self.far.push(far);
        }
        let held = self.daemon.open_descriptors()?;
        ensure!(held >= count, "{held} descriptors are held, not {count}");
        Ok(())
    }

    fn save(&mut self, number: usize, ttl: u32, session: &impl AsFd) -> Result<()> {
        let label = label(number);
        let saved = save_endpoint(&mut self.client, ttl, &label, PROPERTY, session.as_fd())?;
        ensure!(saved == list(&[("status", "0")]), "not saved");
        Ok(())
    }

    fn find(&mut self, number: usize) -> Result<OwnedFd> {
        let request = list(&[("request", "find_endp"), ("label", &label(number))]);
        let found = self.client.exchange(&request)?;
        ensure!(
            found == list(&[("status", "0"), ("property", PROPERTY)]),
            "not found"
        );
        Ok(collect_session(&mut self.client)?)
    }

    /// 99 of 100 finds, and saves, take at most so many microseconds.
    fn tails(&mut self) -> Result<[f64; 2]> {
        let (mut finds, mut saves) = (Vec::new(), Vec::new());
        for _ in 0..OPERATIONS {
            self.chance = self
                .chance
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            let number = usize::try_from(self.chance >> 8)? % self.far.len();
            let begin = Instant::now();
            let session = self.find(number)?;
            let found = Instant::now();
            self.save(number, LONG, &session)?;
            finds.push((found - begin).as_secs_f64() * 1e6);
            saves.push(found.elapsed().as_secs_f64() * 1e6);
        }
        Ok([finds, saves].map(|mut values| {
            values.sort_by(f64::total_cmp);
            quantile(&values, 0.99)
        }))
    }

    /// Microseconds of processor time that a session takes from its save to its find, when it rests in between.
    fn cost(&mut self) -> Result<f64> {
        let before = processor_time(self.daemon.pid())?;
        let mut far = Vec::new();
        for number in 0..WATCHED {
            let (near, other) = UnixStream::pair()?;
            self.save(MANY + number, LONG, &near)?;
            far.push(other);
        }
        thread::sleep(REST);
        for number in 0..WATCHED {
            drop(self.find(MANY + number)?);
        }
        let spent = processor_time(self.daemon.pid())?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e6 / as_float(WATCHED as u64))
    }
}

/// Milliseconds that the slowest of many finds took while all other sessions expired, and until those had ended.
fn at_once(bench: &Bench<'_>) -> Result<[f64; 2]> {
    let mut filled = Filled::new(bench, &[])?;
    let begin = Instant::now();
    filled.fill(MANY, SHORT)?;
    let (near, _far) = UnixStream::pair()?;
    filled.save(MANY, LONG, &near)?;
    let last = Instant::now();
    ensure!(
        begin.elapsed() < Duration::from_secs(u64::from(SHORT)) / 2,
        "saving took too long: {:?}",
        begin.elapsed()
    );
    // It looks at nothing until all of them are due.
    filled.daemon.signal(Signal::STOP)?;
    let due = last + Duration::from_secs(u64::from(SHORT)) + Duration::from_millis(100);
    thread::sleep(due.saturating_duration_since(Instant::now()));
    filled.daemon.signal(Signal::CONT)?;
    let begin = Instant::now();
    let mut worst = Duration::ZERO;
    let mut ended = None;
    while ended.is_none() {
        ensure!(begin.elapsed() < PATIENCE, "sessions do not end");
        for _ in 0..20 {
            let asked = Instant::now();
            let session = filled.find(MANY)?;
            filled.save(MANY, LONG, &session)?;
            worst = worst.max(asked.elapsed() / 2);
        }
        // Those that wait for the answer to their goodbye are over.
        let held = filled.daemon.open_descriptors()?;
        ended = (held < 2_000).then(|| begin.elapsed());
    }
    check(POSTKEEP, &filled.daemon)?;
    let took = ended.context("it has ended")?;
    Ok([worst, took].map(|time| time.as_secs_f64() * 1e3))
}

/// Bytes of resident memory that a session takes, and microseconds.
fn watching(bench: &Bench<'_>, liveness: &str) -> Result<[f64; 2]> {
    let parameters = [("postkeep_connection_cache_liveness", liveness)];
    let mut filled = Filled::new(bench, &parameters)?;
    filled.fill(FEW, LONG)?;
    thread::sleep(REST);
    let before = memory(filled.daemon.pid())?.resident;
    filled.fill(MANY - FEW, LONG)?;
    thread::sleep(REST);
    let bytes = memory(filled.daemon.pid())?.resident.saturating_sub(before);
    let mut costs = Vec::new();
    for _ in 0..bench.options.rounds * 2 {
        costs.push(filled.cost()?);
    }
    Ok([
        as_float(bytes) / as_float((MANY - FEW) as u64),
        median(costs),
    ])
}

fn full(bench: &Bench<'_>) -> Result<Row> {
    let mut sides = Vec::new();
    for level in [FEW, MANY] {
        eprintln!("  {ROW}: {level} sessions");
        let mut filled = Filled::new(bench, &[])?;
        filled.fill(level, LONG)?;
        sides.push(filled);
    }
    let pids: Vec<u32> = sides.iter().map(|side| side.daemon.pid()).collect();
    let mut tails = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for round in 1..=bench.options.rounds {
        eprintln!("  {ROW}: round {round} of {}", bench.options.rounds);
        let told = bench.quiet.measure(|| {
            let watch = Watch::begin(&pids)?;
            let told = [sides[0].tails()?, sides[1].tails()?];
            Ok((told, watch.foreign()?))
        })?;
        for (tails, told) in tails.iter_mut().zip(told) {
            tails[0].push(told[0]);
            tails[1].push(told[1]);
        }
    }
    for side in &sides {
        check(POSTKEEP, &side.daemon)?;
    }
    drop(sides);
    let growth = [0, 1].map(|operation| {
        let ratios = tails[1][operation].iter().zip(&tails[0][operation]);
        median(ratios.map(|(many, few)| many / few).collect())
    });
    let of = |level: usize, operation: usize| median(tails[level][operation].clone());
    println!(
        "{ROW}, {MANY} and {FEW} sessions: p99 of a find {:.0} and {:.0} us, of a save {:.0} and {:.0} us; ratios {:.2} and {:.2}",
        of(1, 0),
        of(0, 0),
        of(1, 1),
        of(0, 1),
        growth[0],
        growth[1],
    );
    let mut delays = Vec::new();
    for _ in 0..2 {
        eprintln!("  {ROW}: all expire");
        delays.push(bench.quiet.measure(|| {
            let watch = Watch::begin(&[])?;
            let told = at_once(bench)?;
            Ok((told, watch.foreign()?.min(bench.quiet.limit)))
        })?);
    }
    let worst = delays.iter().map(|delay| delay[0]).fold(0.0, f64::max);
    println!(
        "{ROW}, {MANY} sessions that are due at one moment: they have ended after {:.0} ms, and delay a find by at most {worst:.1} ms",
        median(delays.iter().map(|delay| delay[1]).collect()),
    );
    eprintln!("  {ROW}: what watching costs");
    let [on, off] = [watching(bench, "yes")?, watching(bench, "no")?];
    println!(
        "{ROW}, a session takes {:.0} bytes and {:.1} us; without a watch on its far end {:.0} bytes and {:.1} us",
        on[0], on[1], off[0], off[1],
    );
    Ok(Row {
        json: json!({
            "row": ROW, "unit": "us",
            "p99_find_100": tails[0][0], "p99_save_100": tails[0][1],
            "p99_find_19000": tails[1][0], "p99_save_19000": tails[1][1],
            "expire_at_once_ms": delays,
            "watched": { "bytes": on[0], "us": on[1] },
            "not_watched": { "bytes": off[0], "us": off[1] },
        }),
        measured: vec![
            (Measure::TailGrowth, growth[0].max(growth[1])),
            (Measure::ExpiryDelay, worst),
            (Measure::WatchMemory, on[0] - off[0]),
            (Measure::WatchCost, on[1] - off[1]),
        ],
    })
}
