//! Memory with many clients and many tables, and the time to the first answer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, StandIn};
use serde_json::json;

use super::report::{Report, Row};
use super::targets::Measure;
use super::{BOTH, Bench, Service, lookup, start};
use crate::load::{Crowd, Script};
use crate::observe::{Memory, Watch, memory};
use crate::statistics::median;
use crate::turns::{Ratio, check};

const MEMORY: &str = "memory";
const START: &str = "start";
const TABLES: usize = 20;
const ENTRIES: usize = 1_000;
const CLIENTS: usize = 64;
/// Starts of each side in one round.
const STARTS: usize = 4;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    if bench.wants(MEMORY) {
        report.attempt(MEMORY, None, || footprint(bench));
    }
    if bench.wants(START) {
        report.attempt(START, None, || starts(bench));
    }
}

/// Writes the tables, and returns them as `type:name`.
fn tables(bench: &Bench<'_>) -> Result<Vec<String>> {
    let mut text = String::new();
    for entry in 0..ENTRIES {
        writeln!(text, "user{entry}@example.test mailbox{entry}")?;
    }
    let mut names = Vec::new();
    for table in 0..TABLES {
        let path = bench
            .scratch
            .file(&format!("tables/twenty-{table}"), &text)?;
        let old = SystemTime::now() - Duration::from_secs(10);
        std::fs::File::options()
            .append(true)
            .open(&path)?
            .set_modified(old)?;
        names.push(format!("texthash:{}", path.display()));
    }
    Ok(names)
}

/// Daemons that have served all their clients, one lookup in each table.
struct Served {
    daemons: Vec<(StandIn, Crowd)>,
}

impl Served {
    fn new(
        bench: &Bench<'_>,
        implementation: Implementation,
        processes: usize,
        clients: usize,
        tables: &[String],
    ) -> Result<Self> {
        let approved: Vec<String> = tables.iter().map(|name| format!("proxy:{name}")).collect();
        let approved = approved.join(" ");
        let tables = tables.to_vec();
        let script: Script = Arc::new(move |_| {
            tables
                .iter()
                .map(|table| lookup(table, "user7@example.test", Some("mailbox7")))
                .collect()
        });
        let mut daemons = Vec::new();
        for _ in 0..processes {
            let daemon = start(
                bench
                    .plan(implementation, "proxymap")
                    .parameter("proxy_read_maps", &approved),
            )?;
            let mut crowd = bench.crowd(&daemon, Service::Proxymap, clients, &script)?;
            crowd.run_times(TABLES)?;
            daemons.push((daemon, crowd));
        }
        Ok(Self { daemons })
    }

    /// The memory of all of them together.
    fn memory(&self) -> Result<Memory> {
        let mut sum = Memory::default();
        for (daemon, _) in &self.daemons {
            check(MEMORY, daemon)?;
            let memory = memory(daemon.pid())?;
            sum.resident += memory.resident;
            sum.proportional += memory.proportional;
        }
        Ok(sum)
    }
}

fn footprint(bench: &Bench<'_>) -> Result<Row> {
    let tables = tables(bench)?;
    let mut told = Vec::new();
    for (what, implementation, processes, clients) in [
        // proxymap(8) of the reference serves one request at a time: as many processes as clients serve them all at once.
        ("Postfix, 64 processes", Implementation::Postfix, CLIENTS, 1),
        // master(8) starts another one only while none is free; under the stand-in one has all clients.
        ("Postfix, 1 process", Implementation::Postfix, 1, CLIENTS),
        ("postkeep, 1 process", Implementation::Postkeep, 1, CLIENTS),
    ] {
        eprintln!("  memory: {what}");
        let memory = Served::new(bench, implementation, processes, clients, &tables)?.memory()?;
        println!(
            "memory, {CLIENTS} clients, {TABLES} tables of {ENTRIES} entries: {what}: {} KiB resident, {} KiB with shared pages divided",
            memory.resident / 1024,
            memory.proportional / 1024,
        );
        told.push((what, memory));
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2 to the 52nd")]
    let ratio = told[2].1.proportional as f64 / told[0].1.proportional as f64;
    let sides: Vec<_> = told
        .iter()
        .map(|(what, memory)| {
            json!({
                "name": what, "resident_bytes": memory.resident,
                "proportional_bytes": memory.proportional,
            })
        })
        .collect();
    Ok(Row {
        json: json!({ "row": MEMORY, "clients": CLIENTS, "tables": TABLES, "sides": sides }),
        measured: vec![(Measure::ResidentToPostfix, ratio)],
    })
}

/// Milliseconds from the start of the process to the first answer.
fn first_answer(bench: &Bench<'_>, plan: Plan, script: &Script) -> Result<f64> {
    let daemon = start(plan)?;
    let mut crowd = bench.crowd(&daemon, Service::Proxymap, 1, script)?;
    crowd.run_times(1)?;
    let time = daemon.started().elapsed();
    check(START, &daemon)?;
    Ok(time.as_secs_f64() * 1e3)
}

fn starts(bench: &Bench<'_>) -> Result<Row> {
    let table = "inline:{ {key=value}, {two=2} }";
    let script: Script = Arc::new(move |_| vec![lookup(table, "key", Some("value"))]);
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=bench.options.rounds {
        eprintln!("  start: round {round} of {}", bench.options.rounds);
        let told = bench.quiet.measure(|| {
            // The daemons have ended by then, and are known as children.
            let watch = Watch::begin(&[])?;
            let mut told = [Vec::new(), Vec::new()];
            for _ in 0..STARTS {
                for (told, (_, implementation)) in told.iter_mut().zip(BOTH) {
                    let plan = bench
                        .plan(implementation, "proxymap")
                        .parameter("proxy_read_maps", &format!("proxy:{table}"));
                    told.push(first_answer(bench, plan, &script)?);
                }
            }
            Ok((told, watch.foreign()?))
        })?;
        for (times, told) in times.iter_mut().zip(told) {
            times.extend(told);
        }
    }
    let ratio = Ratio::of(&times[1], &times[0]);
    println!(
        "start, ms to the first answer: Postfix {:.1}, postkeep {:.1}; ours / Postfix {ratio}",
        median(times[0].clone()),
        median(times[1].clone()),
    );
    Ok(Row {
        json: json!({
            "row": START, "unit": "ms", "postfix": times[0], "postkeep": times[1],
            "ratio": ratio.json(),
        }),
        measured: vec![(Measure::StartToPostfix, ratio.median)],
    })
}
