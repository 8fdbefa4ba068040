//! How exactly sessions expire while the cache is busy, seen from the far end of their connections.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::{Peer, StandIn};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde_json::json;
use std::os::fd::{AsFd as _, OwnedFd};

use super::report::{Report, Row};
use super::sessions::cycles;
use super::targets::Measure;
use super::{BOTH, Bench, Service, start};
use crate::load::Crowd;
use crate::observe::Watch;
use crate::turns::check;

const ROW: &str = "scache expiry";
/// Clients that run cycles meanwhile.
const CLIENTS: usize = 8;
/// Sessions of one turn, saved evenly over a second.
const SESSIONS: usize = 200;
const BETWEEN: Duration = Duration::from_millis(5);
/// Seconds that sessions live, in turn.
const LIVES: [u64; 2] = [1, 2];
/// Longer than a turn takes: a second of saves, and the longest life.
const TURN: Duration = Duration::from_millis(3_200);

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    if bench.wants(ROW) {
        report.attempt(ROW, None, || expiry(bench));
    }
}

/// The far ends of saved sessions.
struct FarEnds {
    set: OwnedFd,
    waiting: HashMap<u64, (UnixStream, Instant)>,
    /// Milliseconds after the time that was due, or before when negative.
    errors: Vec<f64>,
}

impl FarEnds {
    /// Notes what is closed until `moment`.
    fn watch_until(&mut self, moment: Instant) -> Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left)?;
            events.clear();
            epoll::wait(&self.set, spare_capacity(&mut events), Some(&left))?;
            let now = Instant::now();
            for event in &events {
                if let Some((_, due)) = self.waiting.remove(&event.data.u64()) {
                    let late = now.saturating_duration_since(due).as_secs_f64();
                    let early = due.saturating_duration_since(now).as_secs_f64();
                    self.errors.push((late - early) * 1e3);
                }
            }
            if events.is_empty() && now >= moment {
                return Ok(());
            }
        }
    }
}

/// Saves one session; it is due when this returns, but for its life.
fn save(peer: &mut Peer, number: usize, life: u64, session: &UnixStream) -> Result<Instant> {
    let label = format!("smtp\n192.0.2.1\n{number}\n0\n");
    let asked = peer.exchange(&list(&[
        ("request", "save_endp"),
        ("ttl", &life.to_string()),
        ("label", &label),
        ("property", "expires"),
    ]))?;
    ensure!(asked == list(&[("dummy", "")]), "no prompt");
    let saved = Instant::now();
    peer.send_with(b"\0", &[session.as_fd()])?;
    ensure!(peer.read_list()? == list(&[("status", "0")]), "not saved");
    Ok(saved)
}

/// Milliseconds of error of each session of one turn.
fn turn(daemon: &StandIn, load: &mut Crowd) -> Result<Vec<f64>> {
    thread::scope(|scope| {
        let load = scope.spawn(move || load.run_for(TURN));
        let mut peer = daemon.connect_and_greet()?;
        let mut ends = FarEnds {
            set: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            waiting: HashMap::new(),
            errors: Vec::new(),
        };
        let begin = Instant::now();
        let mut next = begin;
        for number in 0..SESSIONS {
            let (near, far) = UnixStream::pair()?;
            let life = LIVES[number % LIVES.len()];
            let due = save(&mut peer, number, life, &near)? + Duration::from_secs(life);
            let key = number as u64;
            let data = epoll::EventData::new_u64(key);
            epoll::add(&ends.set, &far, data, epoll::EventFlags::RDHUP)?;
            ends.waiting.insert(key, (far, due));
            next += BETWEEN;
            ends.watch_until(next)?;
        }
        ends.watch_until(begin + TURN)?;
        load.join().map_err(|_| anyhow!("a worker panicked"))??;
        if !ends.waiting.is_empty() {
            bail!("{} sessions were not closed", ends.waiting.len());
        }
        Ok(ends.errors)
    })
}

/// The value that this part (0 to 1) of the values does not exceed.
pub(super) fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len());
    sorted[at - 1]
}

fn expiry(bench: &Bench<'_>) -> Result<Row> {
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        let plan = bench.plan(implementation, "scache");
        let daemon = start(plan)?;
        // The other thread of the load generator saves and watches.
        let crowd = Crowd::connect(
            &daemon.socket(),
            &Service::Scache.greeting(),
            CLIENTS,
            1,
            &cycles(),
        )?;
        sides.push((name, daemon, crowd));
    }
    let pids: Vec<u32> = sides.iter().map(|side| side.1.pid()).collect();
    let mut errors = [Vec::new(), Vec::new()];
    for round in 1..=bench.options.rounds {
        eprintln!("  {ROW}: round {round} of {}", bench.options.rounds);
        let told = bench.quiet.measure(|| {
            let mut worst = 0.0_f64;
            let mut told = Vec::new();
            for (_, daemon, crowd) in &mut sides {
                let watch = Watch::begin(&pids)?;
                told.push(turn(daemon, crowd)?);
                worst = worst.max(watch.foreign()?);
            }
            Ok((told, worst))
        })?;
        for (errors, told) in errors.iter_mut().zip(told) {
            errors.extend(told);
        }
    }
    let mut rows = Vec::new();
    for ((name, daemon, _), errors) in sides.iter().zip(&errors) {
        check(name, daemon)?;
        let mut amounts: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
        amounts.sort_by(f64::total_cmp);
        let early = errors.iter().copied().fold(f64::INFINITY, f64::min);
        let late = errors.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (p50, p999) = (quantile(&amounts, 0.5), quantile(&amounts, 0.999));
        println!(
            "{ROW}, {} sessions under load: {name} closes {early:+.1} .. {late:+.1} ms after they are due; amount p50 {p50:.1} ms, p99.9 {p999:.1} ms",
            errors.len(),
        );
        rows.push((
            p999,
            json!({
                "name": name, "sessions": errors.len(), "p50_ms": p50, "p999_ms": p999,
                "earliest_ms": early, "latest_ms": late,
            }),
        ));
    }
    let tail = rows[1].0;
    let sides: Vec<_> = rows.into_iter().map(|row| row.1).collect();
    Ok(Row {
        json: json!({ "row": ROW, "clients": CLIENTS, "unit": "ms", "sides": sides }),
        measured: vec![(Measure::ExpiryTail, tail)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert!((quantile(&values, 0.5) - 500.0).abs() < 1e-9);
        assert!((quantile(&values, 0.999) - 999.0).abs() < 1e-9);
        assert!((quantile(&values[..1], 0.999) - 1.0).abs() < 1e-9);
    }
}
