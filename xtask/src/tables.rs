//! Our table lookups beside Postfix's own: in postmap(1), and through proxymap(8), in turns within one run.

mod process;
pub(crate) mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, RealPostfix, Scratch, real_postfix};
use serde_json::{Value, json};

use crate::load::{Crowd, Script, Step};
use crate::observe::Quiet;
use crate::statistics::{as_float, median, spread};
use crate::tables::process::Process;
use crate::tables::workload::{
    BARE, FEW_RULES, INDEXED, PATTERNS, Place, Workload, postmap, workloads,
};
use crate::turns::{self, Contest, Side};
use crate::{cargo, run as execute, top};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Turns of each pair; the ratio is the median over the turns [default: 5, quick: 2]
    #[arg(long)]
    rounds: Option<usize>,
    /// Only workloads whose name holds this, such as `cidr` or `pcre 5000 late`
    #[arg(long)]
    only: Option<String>,
    /// Shorter turns and 100,000 entries instead of 1,000,000
    #[arg(long)]
    quick: bool,
    /// Leave the lookups through proxymap out
    #[arg(long)]
    no_daemons: bool,
    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench-tables.json")]
    json: PathBuf,
    /// Do not build; take the executable that is there
    #[arg(long)]
    no_build: bool,
    /// Our executable, instead of the release build
    #[arg(long)]
    postkeep: Option<PathBuf>,
}

/// The bounds that the time of a run allows.
#[derive(Clone, Copy, Debug)]
struct Extent {
    rounds: usize,
    /// Processor time that the lookups of one turn are to take.
    turn: Duration,
    /// One turn of a daemon.
    daemon_turn: Duration,
    /// Entries of the large files.
    many: usize,
    most_keys: usize,
}

impl Extent {
    fn of(options: &Options) -> Self {
        let (rounds, extent) = if options.quick {
            (
                2,
                Self {
                    rounds: 0,
                    turn: Duration::from_millis(25),
                    daemon_turn: Duration::from_millis(60),
                    many: 100_000,
                    most_keys: 50_000,
                },
            )
        } else {
            (
                5,
                Self {
                    rounds: 0,
                    turn: Duration::from_millis(150),
                    daemon_turn: Duration::from_millis(250),
                    many: 1_000_000,
                    most_keys: 200_000,
                },
            )
        };
        Self {
            rounds: options.rounds.unwrap_or(rounds).max(1),
            ..extent
        }
    }
}

/// The two that are compared.
struct Rivals {
    real: RealPostfix,
    postkeep: PathBuf,
}

const BOTH: [Implementation; 2] = [Implementation::Postfix, Implementation::Postkeep];

impl Rivals {
    fn postmap(&self, implementation: Implementation, root: &Path) -> Command {
        match implementation {
            Implementation::Postfix => postmap(self.real.command("postmap"), root),
            Implementation::Postkeep => {
                let mut command = Command::new(&self.postkeep);
                command.arg("postmap");
                postmap(command, root)
            }
        }
    }

    /// The table types that this Postfix has.
    fn postfix_types(&self) -> Result<Vec<String>> {
        let output = self.real.command("postconf").arg("-m").output()?;
        ensure!(output.status.success(), "postconf: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Whether ours knows the table type. The table is there, as an error costs a second.
    fn ours_knows(&self, workload: &Workload, root: &Path) -> Result<bool> {
        let output = self
            .postmap(Implementation::Postkeep, root)
            .args(["-q", "probe", &workload.table(root)])
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        Ok(!errors.contains("unsupported dictionary type"))
    }
}

/// What one process of a turn told.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Nanoseconds of processor time for one lookup.
    lookup: f64,
    /// Nanoseconds from key to key as a clock on the wall has them.
    lookup_wall: f64,
    /// Milliseconds until the first answer.
    start: f64,
    /// Milliseconds of processor time until the first answer.
    start_processor: f64,
    /// Bytes.
    memory: f64,
}

/// The first `count` keys after the one that start-up takes, one a line.
fn keys(workload: &Workload, count: usize) -> Vec<u8> {
    let mut text = String::new();
    for number in 1..=count {
        text.extend([&workload.key(number).0, "\n"]);
    }
    text.into_bytes()
}

/// Runs one process; fails when an answer is not the one that the table holds.
fn sample(
    rivals: &Rivals,
    implementation: Implementation,
    workload: &Workload,
    root: &Path,
    count: usize,
) -> Result<Sample> {
    let mut command = rivals.postmap(implementation, root);
    command.args(["-q", "-", &workload.table(root)]);
    let (mut process, start) = Process::start(command, &workload.key(0).0)?;
    let cost = process.ask(&keys(workload, count))?;
    let memory = process.peak_memory()?;
    let answers = process.finish()?;
    let wanted: String = (0..=count)
        .map(|number| workload.key(number))
        .filter_map(|(key, answer)| Some(format!("{key}\t{}\n", answer?)))
        .collect();
    ensure!(
        answers == wanted.as_bytes(),
        "{implementation:?} gave wrong answers"
    );
    let each = 1e9 / as_float(count as u64);
    Ok(Sample {
        lookup: cost.processor.as_secs_f64() * each,
        lookup_wall: cost.wall.as_secs_f64() * each,
        start: start.wall.as_secs_f64() * 1e3,
        start_processor: start.processor.as_secs_f64() * 1e3,
        memory: as_float(memory),
    })
}

/// Keys that tell how many more a turn has time for; the slowest tables take milliseconds for each.
const PROBE: usize = 16;

/// So many keys that their lookups take a turn.
fn calibrate(
    rivals: &Rivals,
    implementation: Implementation,
    workload: &Workload,
    root: &Path,
    extent: Extent,
) -> Result<usize> {
    let probe = sample(rivals, implementation, workload, root, PROBE)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and bounded next"
    )]
    let count = (extent.turn.as_secs_f64() * 1e9 / probe.lookup) as usize;
    // The first keys find cold caches: the others take about half as long.
    Ok((count * 2).clamp(PROBE, extent.most_keys))
}

/// The medians of one side.
struct Medians {
    lookup: f64,
    lookup_wall: f64,
    start: f64,
    start_processor: f64,
    memory: f64,
}

impl Medians {
    fn of(samples: &[Sample]) -> Self {
        let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
        Self {
            lookup: of(|sample| sample.lookup),
            lookup_wall: of(|sample| sample.lookup_wall),
            start: of(|sample| sample.start),
            start_processor: of(|sample| sample.start_processor),
            memory: of(|sample| sample.memory),
        }
    }

    fn json(&self, samples: &[Sample], keys: usize) -> Value {
        json!({
            "keys": keys,
            "lookup_cpu_ns": self.lookup, "lookup_wall_ns": self.lookup_wall,
            "lookup_cpu_ns_turns": samples.iter().map(|sample| sample.lookup).collect::<Vec<_>>(),
            "start_ms": self.start, "start_cpu_ms": self.start_processor,
            "peak_memory_bytes": self.memory,
        })
    }
}

/// A row of the table of lookups within postmap.
struct Row {
    workload: Workload,
    /// Postfix's, ours.
    medians: [Medians; 2],
    json: Value,
}

fn compare(rivals: &Rivals, workload: Workload, root: &Path, extent: Extent) -> Result<Row> {
    let mut counts = [0; 2];
    for (count, implementation) in counts.iter_mut().zip(BOTH) {
        *count = calibrate(rivals, implementation, &workload, root, extent)?;
    }
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..extent.rounds {
        for ((samples, implementation), count) in samples.iter_mut().zip(BOTH).zip(counts) {
            samples.push(sample(rivals, implementation, &workload, root, count)?);
        }
    }
    let ratios: Vec<f64> = samples[0]
        .iter()
        .zip(&samples[1])
        .map(|(postfix, postkeep)| postfix.lookup / postkeep.lookup)
        .collect();
    let (low, high) = spread(&ratios);
    let ratio = median(ratios);
    let medians = [Medians::of(&samples[0]), Medians::of(&samples[1])];
    let [postfix, postkeep] = &medians;
    let mebibytes = |bytes: f64| bytes / 1_048_576.0;
    println!(
        "{:<26} {:>10.0} {:>10.0} {:>8.2} {:<18} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
        workload.name(),
        postfix.lookup,
        postkeep.lookup,
        ratio,
        format!("({low:.2} .. {high:.2})"),
        postfix.start,
        postkeep.start,
        mebibytes(postfix.memory),
        mebibytes(postkeep.memory),
    );
    let json = json!({
        "type": workload.kind, "entries": workload.entries, "place": workload.place.word(),
        "ratio": ratio, "ratio_low": low, "ratio_high": high,
        "postfix": postfix.json(&samples[0], counts[0]),
        "postkeep": postkeep.json(&samples[1], counts[1]),
    });
    Ok(Row {
        workload,
        medians,
        json,
    })
}

/// The highest growth that a pattern table is to have, from [`FEW_RULES`] rules to the most.
const GROWTH: f64 = 1.5;

/// Prints how the cost of a lookup grows from few rules to many, and returns the numbers.
///
/// The reading of the key and the printing of the answer are in the cost; the difference is free of them.
fn growth(rows: &[Row]) -> Vec<Value> {
    let mut all = Vec::new();
    for kind in PATTERNS {
        for place in [Place::Early, Place::Late, Place::Never] {
            let of_kind = || {
                rows.iter()
                    .filter(|row| row.workload.kind == kind && row.workload.place == place)
            };
            let Some(few) = of_kind().find(|row| row.workload.entries == FEW_RULES) else {
                continue;
            };
            let Some(most) = of_kind().max_by_key(|row| row.workload.entries) else {
                continue;
            };
            let cost = |row: &Row| row.medians.each_ref().map(|medians| medians.lookup);
            let ([postfix_few, few_ns], [postfix_most, most_ns]) = (cost(few), cost(most));
            let [postfix, postkeep] = [postfix_most / postfix_few, most_ns / few_ns];
            let verdict = if postkeep > GROWTH { "ABOVE" } else { "within" };
            println!(
                "{kind:<8} {:<6} {:>6} rules to {FEW_RULES}: Postfix {postfix:>8.2}, postkeep {postkeep:>5.2} ({verdict} {GROWTH}, {:+.0} ns)",
                place.word(),
                most.workload.entries,
                most_ns - few_ns,
            );
            all.push(json!({
                "type": kind, "place": place.word(), "rules": most.workload.entries,
                "postfix": postfix, "postkeep": postkeep, "postkeep_more_ns": most_ns - few_ns,
            }));
        }
    }
    all
}

/// Memory of one entry of a `texthash:` table, from the large one and the small one.
fn memory_per_entry(rows: &[Row]) -> Option<Value> {
    let texthash = || rows.iter().filter(|row| row.workload.kind == "texthash");
    let small = texthash().min_by_key(|row| row.workload.entries)?;
    let large = texthash().max_by_key(|row| row.workload.entries)?;
    let entries = large.workload.entries - small.workload.entries;
    if entries == 0 {
        return None;
    }
    let [postfix, postkeep] = [0, 1].map(|side| {
        (large.medians[side].memory - small.medians[side].memory) / as_float(entries as u64)
    });
    println!(
        "texthash, {} entries: Postfix {postfix:.0} bytes an entry, postkeep {postkeep:.0}",
        large.workload.entries
    );
    Some(json!({ "entries": large.workload.entries, "postfix": postfix, "postkeep": postkeep }))
}

/// The workloads that are looked at through the daemons, too.
fn through_daemons(workload: &Workload, many: usize) -> bool {
    if INDEXED.contains(&workload.kind) {
        return workload.entries == many;
    }
    let most = if workload.kind == "cidr" {
        20_000
    } else {
        5_000
    };
    workload.place == Place::Late && (workload.entries == FEW_RULES || workload.entries == most)
}

/// Lookups as postmap(1) of Postfix 3.7 sends them.
fn script(workload: Workload, table: String) -> Script {
    Arc::new(move |client| {
        (0..64)
            .map(|turn| workload.key(client * 7919 + turn))
            .map(|(key, answer)| {
                let (status, value) = answer.as_ref().map_or(("1", ""), |value| ("0", value));
                vec![
                    Step::Send(list(&[
                        ("request", "lookup"),
                        ("table", &table),
                        ("flags", "524353"),
                        ("key", &key),
                    ])),
                    Step::Expect(list(&[("status", status), ("value", value)])),
                ]
            })
            .collect()
    })
}

fn compare_daemons(
    rivals: &Rivals,
    workload: Workload,
    clients: usize,
    root: &Path,
    extent: Extent,
) -> Result<Value> {
    let table = workload.table(root);
    let side = |name, implementation| -> Result<Side> {
        let mut plan = Plan::new(implementation, "proxymap")
            .parameter("max_use", "1000000")
            .parameter("proxy_read_maps", &format!("proxy:{table}"));
        if implementation == Implementation::Postkeep {
            plan = plan.executable(&rivals.postkeep);
        }
        let daemon = plan.start()?.context("the daemon is not there")?;
        let greeting = list(&[("protocol", "proxymap_protocol")]);
        let mut crowd = Crowd::connect(
            &daemon.socket(),
            &greeting,
            clients,
            1,
            &script(workload, table.clone()),
        )?;
        crowd.run_for(extent.daemon_turn / 2)?;
        Ok(Side {
            name,
            daemon,
            crowd,
        })
    };
    let outcome = Contest {
        name: &workload.name(),
        clients,
        unit: "lookups/s",
        duration: extent.daemon_turn,
        rounds: extent.rounds,
        quiet: Quiet {
            limit: f64::INFINITY,
            repeats: 0,
        },
        counter: None,
    }
    .run(&mut [
        side("Postfix", Implementation::Postfix)?,
        side("postkeep", Implementation::Postkeep)?,
    ])?;
    outcome.print_line();
    Ok(outcome.json())
}

/// The workloads that are wanted and that both can do, their files made; says loudly what is left out.
fn choose(
    rivals: &Rivals,
    options: &Options,
    extent: Extent,
    scratch: &Scratch,
) -> Result<Vec<Workload>> {
    let postfix = rivals.postfix_types()?;
    let mut known = BTreeMap::new();
    let mut chosen = Vec::new();
    for workload in workloads(extent.many) {
        let wanted =
            |only: &String| workload.kind == BARE || workload.name().contains(only.as_str());
        if !options.only.as_ref().is_none_or(wanted) || known.get(workload.kind) == Some(&false) {
            continue;
        }
        if !postfix.iter().any(|kind| kind == workload.kind) {
            println!("SKIP: {}: this Postfix lacks the type", workload.kind);
            known.insert(workload.kind, false);
            continue;
        }
        workload.prepare(scratch, &rivals.real)?;
        if !known.contains_key(workload.kind) {
            let ours = rivals.ours_knows(&workload, scratch.path())?;
            known.insert(workload.kind, ours);
            if !ours {
                println!("SKIP: {}: postkeep lacks the type", workload.kind);
                continue;
            }
        }
        chosen.push(workload);
    }
    Ok(chosen)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let real = real_postfix().context("Postfix is needed for comparison")?;
    let target = top().join("target");
    if !options.no_build && options.postkeep.is_none() {
        execute(
            cargo()
                .args([
                    "build",
                    "--release",
                    "-p",
                    "postkeep",
                    "--locked",
                    "--target-dir",
                ])
                .arg(&target),
        )?;
    }
    let postkeep = options
        .postkeep
        .clone()
        .unwrap_or_else(|| target.join("release/postkeep"));
    let rivals = Rivals { real, postkeep };
    let extent = Extent::of(options);
    let scratch = Scratch::new("bench-tables")?;
    let root = scratch.path();
    scratch.directory("tables", 0o755)?;
    scratch.directory("etc", 0o755)?;

    let chosen = choose(&rivals, options, extent, &scratch)?;
    println!(
        "within postmap: ns of processor time a lookup, ms until the first answer, MiB at most; a ratio above 1: postkeep is faster"
    );
    println!(
        "{:<26} {:>10} {:>10} {:>8} {:<18} {:>8} {:>8} {:>8} {:>8}",
        "", "Postfix ns", "ours ns", "ratio", "(low .. high)", "ms", "ours", "MiB", "ours"
    );
    let mut rows = Vec::new();
    for &workload in &chosen {
        let row = compare(&rivals, workload, root, extent).with_context(|| workload.name())?;
        rows.push(row);
    }
    println!();
    let growth = growth(&rows);
    let memory = memory_per_entry(&rows);

    let mut daemons = Vec::new();
    if !options.no_daemons {
        println!("\nthrough proxymap:");
        turns::print_head();
        for &workload in &chosen {
            if !through_daemons(&workload, extent.many) {
                continue;
            }
            for clients in [1, 8] {
                let row = compare_daemons(&rivals, workload, clients, root, extent)
                    .with_context(|| format!("{}, {clients} clients", workload.name()))?;
                daemons.push(row);
            }
        }
    }
    let numbers = json!({
        "postfix": rivals.real.version,
        "processors": std::thread::available_parallelism()?.get(),
        "rounds": extent.rounds,
        "postmap": rows.iter().map(|row| &row.json).collect::<Vec<_>>(),
        "growth": growth,
        "texthash_memory_per_entry": memory,
        "proxymap": daemons,
    });
    let file = top().join(&options.json);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&file, serde_json::to_string_pretty(&numbers)? + "\n")?;
    println!("{}", file.display());
    Ok(())
}
