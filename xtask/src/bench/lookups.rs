//! Lookups through proxymap: in tables with exact keys, and among many rules.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::report::{Report, Row};
use super::targets::{Measure, ROWS};
use super::{BOTH, Bench, POSTFIX, POSTKEEP, Service, lookup};
use crate::load::Script;
use crate::statistics::median;
use crate::tables::workload::{FEW_RULES, Place, Workload, postmap};
use crate::turns::Outcome;
use postkeep_testkit::Implementation;

/// Entries of the tables in files.
const ENTRIES: usize = 100_000;
/// Keys that one client asks for, again and again.
const KEYS: usize = 64;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for row in ROWS.iter().filter(|row| bench.wants(row)) {
        if let Some(kind) = row.strip_prefix("lookup ") {
            for &clients in &bench.options.clients {
                report.attempt(row, Some(clients), || exact(bench, row, kind, clients));
            }
        }
        if let Some(words) = row.strip_prefix("pattern ") {
            report.attempt(row, None, || pattern(bench, row, words));
        }
    }
}

/// The table as `type:name`, its file made.
fn table(bench: &Bench<'_>, kind: &str) -> Result<String> {
    if kind == "inline" {
        return Ok("inline:{ {key=value}, {two=2} }".to_owned());
    }
    let path = bench.root().join(format!("tables/{kind}"));
    let name = format!("{kind}:{}", path.display());
    if path.exists() {
        return Ok(name);
    }
    // Requests and replies are all of one length, so that the bound can serve them without reading them.
    let mut text = String::new();
    for entry in 0..ENTRIES {
        writeln!(text, "{} {}", key(entry), value(entry))?;
    }
    bench.scratch.file(&format!("tables/{kind}"), &text)?;
    if kind != "texthash" {
        bench.scratch.directory("etc", 0o755)?;
        bench
            .scratch
            .file("etc/main.cf", "lmdb_map_size = 268435456\n")?;
        let status = postmap(bench.real.command("postmap"), bench.root())
            .arg(&name)
            .status()?;
        ensure!(status.success(), "postmap {name}: {status}");
    }
    // A file of this very second would be taken for one that still changes.
    let old = SystemTime::now() - Duration::from_secs(20);
    for entry in fs::read_dir(bench.root().join("tables"))? {
        let entry = entry?;
        let newer = if entry.path() == path { 0 } else { 10 };
        if entry.file_name().to_string_lossy().starts_with(kind) {
            fs::File::options()
                .append(true)
                .open(entry.path())?
                .set_modified(old + Duration::from_secs(newer))?;
        }
    }
    Ok(name)
}

fn key(entry: usize) -> String {
    format!("user{entry:06}@example.test")
}

fn value(entry: usize) -> String {
    format!("mailbox{entry:06}")
}

/// What client `number` asks for.
fn script(table: &str) -> Script {
    let table = table.to_owned();
    Arc::new(move |number| {
        if table.starts_with("inline:") {
            return vec![lookup(&table, "key", Some("value"))];
        }
        (0..KEYS)
            .map(|turn| (number * 7919 + turn * 104_729) % ENTRIES)
            .map(|entry| lookup(&table, &key(entry), Some(&value(entry))))
            .collect()
    })
}

fn exact(bench: &Bench<'_>, row: &str, kind: &str, clients: usize) -> Result<Row> {
    let table = table(bench, kind)?;
    let script = script(&table);
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        let plan = bench
            .plan(implementation, "proxymap")
            .parameter("proxy_read_maps", &format!("proxy:{table}"));
        sides.push(bench.side(name, plan, Service::Proxymap, clients, &script)?);
    }
    sides.push(bench.bound(Service::Proxymap, clients, &script)?);
    let outcome = bench.contest(row, clients, "lookups/s", &mut sides)?;
    Ok(Row {
        json: outcome.json(),
        measured: measured(&outcome),
    })
}

/// The numbers of a contest of Postfix, ours and the bound.
pub(super) fn measured(outcome: &Outcome) -> Vec<(Measure, f64)> {
    let tail = outcome.series[1]
        .samples
        .iter()
        .map(|sample| sample.p999 / sample.median)
        .collect();
    let ratio = |of, below| outcome.ratio(of, 1, below).median;
    vec![
        (Measure::LatencyToPostfix, ratio(|sample| sample.median, 0)),
        (Measure::LatencyToBound, ratio(|sample| sample.median, 2)),
        (Measure::RateToPostfix, ratio(|sample| sample.rate, 0)),
        (Measure::RateToBound, ratio(|sample| sample.rate, 2)),
        (Measure::CostToPostfix, ratio(|sample| sample.cost, 0)),
        (Measure::TailToMedian, median(tail)),
    ]
}

/// Clients of a table of patterns.
const PATTERN_CLIENTS: usize = 8;

/// - `words`: type, number of rules, and which of them matches
fn pattern(bench: &Bench<'_>, row: &str, words: &str) -> Result<Row> {
    let words: Vec<&str> = words.split(' ').collect();
    let place = if words[2] == "late" {
        Place::Late
    } else {
        Place::Never
    };
    let kind = ["pcre", "regexp", "cidr"]
        .into_iter()
        .find(|kind| *kind == words[0]);
    let many = Workload {
        kind: kind.context("no such type")?,
        entries: words[1].parse()?,
        place,
    };
    let few = Workload {
        entries: FEW_RULES,
        ..many
    };
    let mut sides = Vec::new();
    for (name, implementation, workload) in [
        (POSTFIX, Implementation::Postfix, many),
        (POSTKEEP, Implementation::Postkeep, many),
        ("ours, 10", Implementation::Postkeep, few),
    ] {
        workload.prepare(&bench.scratch, &bench.real)?;
        let table = workload.table(bench.root());
        let plan = bench
            .plan(implementation, "proxymap")
            .parameter("proxy_read_maps", &format!("proxy:{table}"));
        let script: Script = Arc::new(move |client| {
            (0..KEYS)
                .map(|turn| workload.key(client * 7919 + turn))
                .map(|(key, answer)| lookup(&table, &key, answer.as_deref()))
                .collect()
        });
        sides.push(bench.side(name, plan, Service::Proxymap, PATTERN_CLIENTS, &script)?);
    }
    let outcome = bench.contest(row, PATTERN_CLIENTS, "lookups/s", &mut sides)?;
    let growth = outcome.ratio(|sample| sample.cost, 1, 2).median;
    Ok(Row {
        json: outcome.json(),
        measured: vec![(Measure::CostToFewRules, growth)],
    })
}
