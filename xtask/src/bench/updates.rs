//! Updates through proxywrite, each brought to the disk before its answer.

use std::fs;
use std::sync::Arc;

use anyhow::{Result, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::scratch::give_to;

use super::report::{Report, Row};
use super::targets::Measure;
use super::{BOTH, Bench, Service};
use crate::load::{Script, Step};

/// The rows, each with the type of its table and what its file is called after the name.
const ROWS: [(&str, &str, &str); 3] = [
    ("update lmdb", "lmdb", ".lmdb"),
    ("update hash", "hash", ".db"),
    ("update btree", "btree", ".db"),
];
/// More clients than these do not write to one table.
const MOST_CLIENTS: usize = 64;
/// Keys that one client stores, again and again.
const KEYS: usize = 64;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for (row, kind, suffix) in ROWS {
        if bench.wants(row) {
            for &clients in &bench.options.clients {
                if clients <= MOST_CLIENTS {
                    let updates = || updates(bench, row, (kind, suffix), clients);
                    report.attempt(row, Some(clients), updates);
                }
            }
        }
    }
}

/// What verify(8) of Postfix 3.7 sends, with the reply.
fn update(table: &str, key: &str, value: &str) -> Vec<Step> {
    vec![
        Step::Send(list(&[
            ("request", "update"),
            ("table", table),
            ("flags", "590208"),
            ("key", key),
            ("value", value),
        ])),
        Step::Expect(list(&[("status", "0")])),
    ]
}

fn updates(
    bench: &Bench<'_>,
    row: &str,
    (kind, suffix): (&str, &str),
    clients: usize,
) -> Result<Row> {
    let directory = bench.scratch.directory("written", 0o755)?;
    give_to("postfix", &directory)?;
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        // A file for each, or they would wait for each other's locks.
        let table = format!("{kind}:{}/{name}", directory.display());
        let path = directory.join(format!("{name}{suffix}"));
        if path.exists() {
            fs::remove_file(path)?;
        }
        let plan = bench
            .plan(implementation, "proxywrite")
            .parameter("proxy_write_maps", &format!("proxy:{table}"));
        let script: Script = Arc::new(move |client| {
            (0..KEYS)
                .map(|entry| format!("client{client:03}-{entry:03}@example.test"))
                .map(|key| update(&table, &key, "0:1795323935:1795323935:250 OK"))
                .collect()
        });
        sides.push(bench.side(name, plan, Service::Proxymap, clients, &script)?);
    }
    let outcome = bench.contest(row, clients, "updates/s", &mut sides)?;
    ensure!(outcome.series.len() == 2, "a side is missing");
    let ratio = |of| outcome.ratio(of, 1, 0).median;
    Ok(Row {
        json: outcome.json(),
        measured: vec![
            (Measure::LatencyToPostfix, ratio(|sample| sample.median)),
            (Measure::RateToPostfix, ratio(|sample| sample.rate)),
        ],
    })
}
