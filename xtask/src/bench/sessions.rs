//! Sessions in scache: saved and found again, and saved beside many others.

use std::sync::Arc;

use anyhow::{Result, ensure};
use postkeep_testkit::StandIn;
use postkeep_testkit::attributes::list;
use serde_json::json;

use super::lookups::measured;
use super::report::{Report, Row};
use super::targets::Measure;
use super::{BOTH, Bench, Service, start};
use crate::load::{Crowd, Script, Step};
use crate::observe::{Watch, memory, processor_time};
use crate::statistics::{as_float, median};
use crate::turns::{Ratio, check};

const CYCLE: &str = "scache cycle";
const SAVE: &str = "scache save";
/// More delivery agents than these share no cache.
const MOST_CLIENTS: usize = 64;

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    if bench.wants(CYCLE) {
        for &clients in &bench.options.clients {
            if clients <= MOST_CLIENTS {
                report.attempt(CYCLE, Some(clients), || cycle(bench, clients));
            }
        }
    }
    if bench.wants(SAVE) {
        report.attempt(SAVE, None, || save(bench));
    }
}

/// What smtp(8) stores with an endpoint.
const ENDPOINT_PROPERTY: &str =
    "tls_level=0\nreuse_count=0\nendpoint_features=32783\nexpire_time=1795323935\n\n";

fn prompt() -> Vec<u8> {
    list(&[("dummy", "")])
}

fn done() -> Step {
    Step::Expect(list(&[("status", "0")]))
}

fn save_endpoint(endpoint: &str, ttl: &str) -> [Step; 4] {
    [
        Step::Send(list(&[
            ("request", "save_endp"),
            ("ttl", ttl),
            ("label", endpoint),
            ("property", ENDPOINT_PROPERTY),
        ])),
        Step::Expect(prompt()),
        Step::Pass,
        done(),
    ]
}

fn find_endpoint(endpoint: &str) -> [Step; 5] {
    [
        Step::Send(list(&[("request", "find_endp"), ("label", endpoint)])),
        Step::Expect(list(&[("status", "0"), ("property", ENDPOINT_PROPERTY)])),
        Step::Send(prompt()),
        Step::Collect,
        Step::Send(prompt()),
    ]
}

/// An address whose text has the same length for every number up to 24,335.
fn address(number: usize) -> String {
    let part = |at: usize| 100 + at % 156;
    format!("10.{}.{}", part(number / 156), part(number)) + ".100"
}

/// Label and property of a destination, as smtp(8) has them.
fn destination(address: &str) -> (String, String) {
    let label = format!("smtp\n[{address}]\n");
    let property = format!(
        "destination=[{address}]\nhost_name={address}\nhost_addr={address}\ndestination_features=4096\n\n"
    );
    (label, property)
}

fn save_destination(label: &str, property: &str, endpoint: &str, ttl: &str) -> [Step; 2] {
    [
        Step::Send(list(&[
            ("request", "save_dest"),
            ("ttl", ttl),
            ("label", label),
            ("property", property),
            ("label", endpoint),
        ])),
        done(),
    ]
}

/// Saves a session and a binding, finds the session by destination, saves it again, finds it by endpoint.
pub(super) fn cycles() -> Script {
    Arc::new(|number| {
        let address = address(number);
        let endpoint = format!("smtp\n{address}\n25\n0\n");
        let (destination, destination_property) = destination(&address);
        let mut steps = Vec::new();
        steps.extend(save_endpoint(&endpoint, "30"));
        steps.extend(save_destination(
            &destination,
            &destination_property,
            &endpoint,
            "30",
        ));
        steps.extend([
            Step::Send(list(&[("request", "find_dest"), ("label", &destination)])),
            Step::Expect(list(&[
                ("status", "0"),
                ("property", &destination_property),
                ("property", ENDPOINT_PROPERTY),
            ])),
            Step::Send(prompt()),
            Step::Collect,
            Step::Send(prompt()),
        ]);
        steps.extend(save_endpoint(&endpoint, "30"));
        steps.extend(find_endpoint(&endpoint));
        vec![steps]
    })
}

fn cycle(bench: &Bench<'_>, clients: usize) -> Result<Row> {
    let script = cycles();
    let mut sides = Vec::new();
    for (name, implementation) in BOTH {
        let plan = bench.plan(implementation, "scache");
        sides.push(bench.side(name, plan, Service::Scache, clients, &script)?);
    }
    sides.push(bench.bound(Service::Scache, clients, &script)?);
    let outcome = bench.contest(CYCLE, clients, "cycles/s", &mut sides)?;
    Ok(Row {
        json: outcome.json(),
        measured: measured(&outcome),
    })
}

/// Sessions in the cache, while others are saved.
const FEW: usize = 1_000;
const MANY: usize = 19_000;
/// Saves that are measured together; half of them before the cache holds as many as it should.
const SAVES: usize = 200;
/// Sessions that are not counted for memory: the first find buffers and tables that are there in any case.
const WARM: usize = 100;
/// Long enough for the whole row.
const LONG: &str = "1900";

/// One client that does something with the endpoints from `first` on, one after the other.
fn crowd(
    bench: &Bench<'_>,
    daemon: &StandIn,
    first: usize,
    count: usize,
    steps: fn(&str) -> Vec<Step>,
) -> Result<Crowd> {
    let script: Script = Arc::new(move |_| {
        (first..first + count)
            .map(|number| steps(&format!("smtp\n{}\n25\n0\n", address(number))))
            .collect()
    });
    bench.crowd(daemon, Service::Scache, 1, &script)
}

fn keep(endpoint: &str) -> Vec<Step> {
    save_endpoint(endpoint, LONG).into()
}

/// What smtp(8) saves beside the session: who may have it.
fn bind(endpoint: &str) -> Vec<Step> {
    let address = endpoint.split('\n').nth(1).unwrap_or_default();
    let (destination, property) = destination(address);
    save_destination(&destination, &property, endpoint, LONG).into()
}

fn take_back(endpoint: &str) -> Vec<Step> {
    find_endpoint(endpoint).into()
}

/// A daemon whose cache is full to a point.
struct Filled {
    name: &'static str,
    daemon: StandIn,
    /// Hold the far ends of the sessions: one whose far end is gone does not stay.
    _fillers: [Crowd; 2],
    saver: Crowd,
    remover: Crowd,
    /// Sessions that stay, but for the first few.
    counted: usize,
    /// Bytes of resident memory that those take.
    memory: u64,
}

impl Filled {
    fn new(
        bench: &Bench<'_>,
        (name, implementation): (&'static str, postkeep_testkit::Implementation),
        level: usize,
    ) -> Result<Self> {
        // Ours would leave a quarter of the descriptors to clients.
        let plan = bench
            .plan(implementation, "scache")
            .parameter("postkeep_connection_cache_client_share", "2");
        let daemon = start(plan)?;
        let count = level - SAVES / 2;
        let mut fillers = [
            crowd(bench, &daemon, 0, WARM, keep)?,
            crowd(bench, &daemon, WARM, count - WARM, keep)?,
        ];
        fillers[0].run_times(WARM)?;
        let before = memory(daemon.pid())?.resident;
        fillers[1].run_times(count - WARM)?;
        let after = memory(daemon.pid())?.resident;
        let held = daemon.open_descriptors()?;
        ensure!(
            held >= count,
            "{name} holds {held} descriptors, not {count}"
        );
        Ok(Self {
            name,
            _fillers: fillers,
            saver: crowd(bench, &daemon, count, SAVES, keep)?,
            remover: crowd(bench, &daemon, count, SAVES, take_back)?,
            daemon,
            counted: count - WARM,
            memory: after.saturating_sub(before),
        })
    }

    /// Bytes of resident memory for one session: alone, and with a binding, which is added here.
    fn memory(&self, bench: &Bench<'_>) -> Result<[f64; 2]> {
        let before = memory(self.daemon.pid())?.resident;
        crowd(bench, &self.daemon, WARM, self.counted, bind)?.run_times(self.counted)?;
        let bindings = memory(self.daemon.pid())?.resident.saturating_sub(before);
        let each = |bytes| as_float(bytes) / as_float(self.counted as u64);
        Ok([each(self.memory), each(self.memory + bindings)])
    }

    /// Microseconds of the daemon's processor time for one save.
    fn cost(&mut self) -> Result<f64> {
        let before = processor_time(self.daemon.pid())?;
        self.saver.run_times(SAVES)?;
        let spent = processor_time(self.daemon.pid())?.saturating_sub(before);
        self.remover.run_times(SAVES)?;
        Ok(spent.as_secs_f64() * 1e6 / as_float(SAVES as u64))
    }
}

fn save(bench: &Bench<'_>) -> Result<Row> {
    let mut sides = Vec::new();
    for level in [FEW, MANY] {
        for side in BOTH {
            eprintln!("  scache save: {level} sessions into {}", side.0);
            sides.push(Filled::new(bench, side, level)?);
        }
    }
    let pids: Vec<u32> = sides.iter().map(|side| side.daemon.pid()).collect();
    let mut costs = vec![Vec::new(); sides.len()];
    for round in 1..=bench.options.rounds {
        eprintln!("  scache save: round {round} of {}", bench.options.rounds);
        let told = bench.quiet.measure(|| {
            let watch = Watch::begin(&pids)?;
            let told = sides
                .iter_mut()
                .map(Filled::cost)
                .collect::<Result<Vec<f64>>>()?;
            Ok((told, watch.foreign()?))
        })?;
        for (costs, cost) in costs.iter_mut().zip(told) {
            costs.push(cost);
        }
    }
    let memory = [sides[2].memory(bench)?, sides[3].memory(bench)?];
    for side in &sides {
        check(side.name, &side.daemon)?;
    }
    let [few, many] = [0, 2].map(|postfix| Ratio::of(&costs[postfix + 1], &costs[postfix]));
    let growth = [0, 1].map(|side| Ratio::of(&costs[side + 2], &costs[side]));
    for (level, at, ratio) in [(FEW, 0, few), (MANY, 2, many)] {
        println!(
            "scache save, {level} sessions held: Postfix {:.1} us a save, postkeep {:.1}; ours / Postfix {ratio}",
            median(costs[at].clone()),
            median(costs[at + 1].clone()),
        );
    }
    println!(
        "scache save, {MANY} over {FEW} sessions: Postfix {}, postkeep {}",
        growth[0], growth[1],
    );
    println!(
        "scache save, bytes of memory a session: Postfix {:.0}, postkeep {:.0}; with its binding: Postfix {:.0}, postkeep {:.0}",
        memory[0][0], memory[1][0], memory[0][1], memory[1][1],
    );
    let uneven = growth[1].median.max(1.0 / growth[1].median);
    Ok(Row {
        json: json!({
            "row": SAVE, "unit": "us of processor time",
            "postfix_1000": costs[0], "postkeep_1000": costs[1],
            "postfix_19000": costs[2], "postkeep_19000": costs[3],
            "ratio_1000": few.json(), "ratio_19000": many.json(),
            "growth_postfix": growth[0].json(), "growth_postkeep": growth[1].json(),
            "memory_postfix": { "session": memory[0][0], "with_binding": memory[0][1] },
            "memory_postkeep": { "session": memory[1][0], "with_binding": memory[1][1] },
        }),
        measured: vec![
            (Measure::SaveAtThousand, few.median),
            (Measure::SaveAtNineteenThousand, many.median),
            (Measure::SaveGrowth, uneven),
            (Measure::MemoryPerDescriptor, memory[1][1] / memory[0][1]),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_are_of_one_length() {
        let all: std::collections::BTreeSet<String> = (0..24_336).map(address).collect();
        assert_eq!(all.len(), 24_336);
        assert!(all.iter().all(|address| address.len() == 14));
    }
}
