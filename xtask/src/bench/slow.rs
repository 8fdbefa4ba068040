//! A table that takes ten milliseconds for an answer: many clients at once in it, and others beside it.
//!
//! Ours has the table type `slow:` of a test build; the reference asks a server for `tcp:` tables that answers that
//! much later.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use postkeep_testkit::{Implementation, StandIn};
use serde_json::json;

use super::report::{Report, Row};
use super::targets::Measure;
use super::{BOTH, Bench, Service, lookup, start};
use crate::load::{Crowd, Script, slow_tcp_table};
use crate::observe::Watch;
use crate::statistics::{as_float, median};
use crate::turns::{Ratio, check};

pub(super) const ROWS: [&str; 2] = ["slow table", "fast beside slow"];

const DELAY: Duration = Duration::from_millis(10);
const CLIENTS: usize = 64;
/// Lookups of each client in a turn of ours; the reference takes about sixty times as long for each.
const LOOKUPS: usize = 40;
const LOOKUPS_OF_POSTFIX: usize = 2;
const FAST_CLIENTS: usize = 8;
const FAST_TABLE: &str = "inline:{ {key=value}, {two=2} }";

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    if bench.wants(ROWS[0]) {
        report.attempt(ROWS[0], None, || slow_table(bench));
    }
    if bench.wants(ROWS[1]) {
        report.attempt(ROWS[1], None, || fast_beside_slow(bench));
    }
}

/// A daemon with a slow table and a fast one, and the name of the slow one.
fn daemon(bench: &Bench<'_>, implementation: Implementation) -> Result<(StandIn, String)> {
    let table = match implementation {
        Implementation::Postfix => format!("tcp:127.0.0.1:{}", slow_tcp_table(DELAY)?),
        Implementation::Postkeep => format!("slow:{}", DELAY.as_millis()),
    };
    let mut plan = bench.plan(implementation, "proxymap").parameter(
        "proxy_read_maps",
        &format!("proxy:{table} proxy:{FAST_TABLE}"),
    );
    if implementation == Implementation::Postkeep {
        plan = plan.executable(&bench.postkeep_slow);
    }
    Ok((start(plan)?, table))
}

fn script(table: String, key: &'static str, value: &'static str) -> Script {
    Arc::new(move |_| vec![lookup(&table, key, Some(value))])
}

fn slow_crowd(bench: &Bench<'_>, daemon: &StandIn, table: String, clients: usize) -> Result<Crowd> {
    let script = script(table, "k", "slow");
    bench.crowd(daemon, Service::Proxymap, clients, &script)
}

fn slow_table(bench: &Bench<'_>) -> Result<Row> {
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        let (daemon, table) = daemon(bench, implementation)?;
        let mut crowd = slow_crowd(bench, &daemon, table, CLIENTS)?;
        crowd.run_times(1)?;
        sides.push((name, implementation, daemon, crowd));
    }
    let pids: Vec<u32> = sides.iter().map(|side| side.2.pid()).collect();
    let mut rates = [Vec::new(), Vec::new()];
    for round in 1..=bench.options.rounds {
        eprintln!("  slow table: round {round} of {}", bench.options.rounds);
        let pair = bench.quiet.measure(|| {
            let mut worst = 0.0_f64;
            let mut pair = Vec::new();
            for (_, implementation, _, crowd) in &mut sides {
                let times = match implementation {
                    Implementation::Postfix => LOOKUPS_OF_POSTFIX,
                    Implementation::Postkeep => LOOKUPS,
                };
                let watch = Watch::begin(&pids)?;
                pair.push(crowd.run_times(times)?.per_second());
                worst = worst.max(watch.foreign()?);
            }
            Ok((pair, worst))
        })?;
        for (rates, rate) in rates.iter_mut().zip(pair) {
            rates.push(rate);
        }
    }
    for (name, _, daemon, _) in &sides {
        check(name, daemon)?;
    }
    let ideal = as_float(CLIENTS as u64) / DELAY.as_secs_f64();
    let to_postfix = Ratio::of(&rates[1], &rates[0]);
    let to_ideal = Ratio::of(&rates[1], &vec![ideal; rates[1].len()]);
    println!(
        "slow table, {CLIENTS} clients, {} ms: Postfix {:.0} lookups/s, postkeep {:.0}, ideal {ideal:.0}; \
         ours / Postfix {to_postfix}, ours / ideal {to_ideal}",
        DELAY.as_millis(),
        median(rates[0].clone()),
        median(rates[1].clone()),
    );
    Ok(Row {
        json: json!({
            "row": ROWS[0], "clients": CLIENTS, "unit": "lookups/s", "ideal": ideal,
            "postfix": rates[0], "postkeep": rates[1],
            "to_postfix": to_postfix.json(), "to_ideal": to_ideal.json(),
        }),
        measured: vec![
            (Measure::RateToPostfix, to_postfix.median),
            (Measure::RateToIdeal, to_ideal.median),
        ],
    })
}

/// The rate of the fast clients, while the slow one works when there is one.
fn fast_rate(fast: &mut Crowd, slow: Option<&mut Crowd>, duration: Duration) -> Result<f64> {
    thread::scope(|scope| {
        let slow = slow.map(|slow| scope.spawn(move || slow.run_for(duration)));
        let fast = fast.run_for(duration)?;
        if let Some(slow) = slow {
            slow.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        Ok(fast.per_second())
    })
}

fn fast_beside_slow(bench: &Bench<'_>) -> Result<Row> {
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        let (daemon, table) = daemon(bench, implementation)?;
        let mut slow = slow_crowd(bench, &daemon, table, 1)?;
        let mut fast = bench.crowd(
            &daemon,
            Service::Proxymap,
            FAST_CLIENTS,
            &script(FAST_TABLE.to_owned(), "key", "value"),
        )?;
        fast_rate(&mut fast, Some(&mut slow), Duration::from_millis(200))?;
        sides.push((name, daemon, fast, slow));
    }
    let pids: Vec<u32> = sides.iter().map(|side| side.1.pid()).collect();
    // Of each side: alone, then beside the slow client.
    let mut rates = [const { [const { Vec::new() }; 2] }; 2];
    for round in 1..=bench.options.rounds {
        eprintln!(
            "  fast beside slow: round {round} of {}",
            bench.options.rounds
        );
        let told = bench.quiet.measure(|| {
            let mut worst = 0.0_f64;
            let mut told = Vec::new();
            for (_, _, fast, slow) in &mut sides {
                let watch = Watch::begin(&pids)?;
                let alone = fast_rate(fast, None, bench.duration())?;
                let beside = fast_rate(fast, Some(slow), bench.duration())?;
                told.push([alone, beside]);
                worst = worst.max(watch.foreign()?);
            }
            Ok((told, worst))
        })?;
        for (rates, told) in rates.iter_mut().zip(told) {
            for (rates, rate) in rates.iter_mut().zip(told) {
                rates.push(rate);
            }
        }
    }
    for (name, daemon, _, _) in &sides {
        check(name, daemon)?;
    }
    let kept = [0, 1].map(|side: usize| Ratio::of(&rates[side][1], &rates[side][0]));
    for ((name, _, _, _), (rates, kept)) in sides.iter().zip(rates.iter().zip(kept)) {
        println!(
            "fast beside slow, {FAST_CLIENTS} + 1 clients: {name} {:.0} lookups/s alone, {:.0} beside; kept {kept}",
            median(rates[0].clone()),
            median(rates[1].clone()),
        );
    }
    Ok(Row {
        json: json!({
            "row": ROWS[1], "clients": FAST_CLIENTS, "unit": "lookups/s",
            "postfix": { "alone": rates[0][0], "beside": rates[0][1], "kept": kept[0].json() },
            "postkeep": { "alone": rates[1][0], "beside": rates[1][1], "kept": kept[1].json() },
        }),
        measured: vec![(Measure::Loss, 1.0 - kept[1].median)],
    })
}
