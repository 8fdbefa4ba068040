//! Postfix's daemons, ours and the bound, under the same stand-in for master, in turns within one run.

mod expiry;
mod footprint;
mod full;
mod lookups;
mod publish;
mod report;
mod sessions;
mod slow;
mod targets;
mod updates;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, RealPostfix, Scratch, StandIn, real_postfix};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::bench::report::Report;
use crate::bound;
use crate::load::{Crowd, Script, Step};
use crate::observe::{Counter, Quiet};
use crate::turns::{Contest, Outcome, Side};
use crate::{cargo, run as execute, top};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Options {
    /// Seconds of each turn
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Turns of each side; a ratio is the median over the turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of clients, for the rows that are measured with several
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 512])]
    clients: Vec<usize>,
    /// Threads of the load generator
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only rows whose name holds one of these, such as `lookup hash` or `scache`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Prints the names of the rows and measures nothing
    #[arg(long)]
    list: bool,
    /// The most of all processors, in percent, that others may have during a turn
    #[arg(long, default_value_t = 10.0)]
    foreign: f64,
    /// How often a disturbed round is tried again
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Do not count system calls
    #[arg(long)]
    no_system_calls: bool,
    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Writes docs/performance.md, .json and .svg as well; for a run of all rows
    #[arg(long)]
    publish: bool,
    /// Do not build; take the executables that are there
    #[arg(long)]
    no_build: bool,
    /// Our executable, instead of the release build
    #[arg(long)]
    postkeep: Option<PathBuf>,
    /// Our executable with the table type `slow:`, instead of the test build
    #[arg(long)]
    postkeep_slow: Option<PathBuf>,
}

/// The names of the three sides, in the order of their turns.
const POSTFIX: &str = "Postfix";
const POSTKEEP: &str = "postkeep";
const BOUND: &str = "bound";
const BOTH: [(&str, Implementation); 2] = [
    (POSTFIX, Implementation::Postfix),
    (POSTKEEP, Implementation::Postkeep),
];

/// What all rows need.
struct Bench<'o> {
    options: &'o Options,
    real: RealPostfix,
    postkeep: PathBuf,
    postkeep_slow: PathBuf,
    quiet: Quiet,
    counter: Option<Counter>,
    /// Holds the tables, made once for all daemons.
    scratch: Scratch,
}

impl Bench<'_> {
    fn wants(&self, row: &str) -> bool {
        wants(&self.options.only, row)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// How a daemon is started; limits that would end it within a run are lifted.
    fn plan(&self, implementation: Implementation, service: &str) -> Plan {
        let plan = Plan::new(implementation, service)
            .parameter("max_use", "1000000000")
            .parameter("connection_cache_ttl_limit", "2000s")
            .parameter("lmdb_map_size", "268435456");
        match implementation {
            Implementation::Postfix => plan,
            Implementation::Postkeep => plan.executable(&self.postkeep),
        }
    }

    /// Starts a daemon and connects clients that have done their work for a moment.
    fn side(
        &self,
        name: &'static str,
        plan: Plan,
        service: Service,
        clients: usize,
        script: &Script,
    ) -> Result<Side> {
        let daemon = start(plan)?;
        let mut crowd = self.crowd(&daemon, service, clients, script)?;
        crowd.run_for(Duration::from_millis(200))?;
        Ok(Side {
            name,
            daemon,
            crowd,
        })
    }

    fn crowd(
        &self,
        daemon: &StandIn,
        service: Service,
        clients: usize,
        script: &Script,
    ) -> Result<Crowd> {
        Crowd::connect(
            &daemon.socket(),
            &service.greeting(),
            clients,
            self.options.threads,
            script,
        )
    }

    /// Starts the bound for what the clients of this script do.
    fn bound(&self, service: Service, clients: usize, script: &Script) -> Result<Side> {
        let model = script(0).swap_remove(0);
        let plan = Plan::new(Implementation::Postfix, service.word())
            .executable(&std::env::current_exe()?)
            .bare();
        let plan = [
            "bound",
            "--greeting",
            &bound::hexadecimal(&service.greeting()),
            "--turns",
            &bound::turns(&model),
        ]
        .into_iter()
        .fold(plan, Plan::argument);
        self.side(BOUND, plan, service, clients, &same_replies(script, model)?)
    }

    fn contest(
        &self,
        name: &str,
        clients: usize,
        unit: &str,
        sides: &mut [Side],
    ) -> Result<Outcome> {
        let outcome = Contest {
            name,
            clients,
            unit,
            duration: self.duration(),
            rounds: self.options.rounds,
            quiet: self.quiet,
            counter: self.counter,
        }
        .run(sides)?;
        outcome.print();
        Ok(outcome)
    }
}

fn wants(only: &[String], row: &str) -> bool {
    only.is_empty() || only.iter().any(|only| row.contains(only.as_str()))
}

fn start(plan: Plan) -> Result<StandIn> {
    plan.start()?.context("the daemon is not there")
}

/// The two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Proxymap,
    Scache,
}

impl Service {
    fn word(self) -> &'static str {
        match self {
            Self::Proxymap => "proxymap",
            Self::Scache => "scache",
        }
    }

    fn greeting(self) -> Vec<u8> {
        let protocol = match self {
            Self::Proxymap => "proxymap_protocol",
            Self::Scache => "connection_cache_protocol",
        };
        list(&[("protocol", protocol)])
    }
}

/// The script with the replies of `model` everywhere: the bound has only those.
fn same_replies(script: &Script, model: Vec<Step>) -> Result<Script> {
    let lengths = |steps: &[Step]| -> Vec<usize> {
        steps
            .iter()
            .map(|step| match step {
                Step::Send(bytes) | Step::Expect(bytes) => bytes.len(),
                Step::Pass | Step::Collect => 1,
            })
            .collect()
    };
    for number in [0, 1, 7, 63, 511] {
        for steps in script(number) {
            ensure!(
                lengths(&steps) == lengths(&model),
                "requests or replies differ in length"
            );
        }
    }
    let script = script.clone();
    Ok(std::sync::Arc::new(move |number| {
        let mut variants = script(number);
        for steps in &mut variants {
            for (step, model) in steps.iter_mut().zip(&model) {
                if let Step::Expect(bytes) = step
                    && let Step::Expect(reply) = model
                {
                    bytes.clone_from(reply);
                }
            }
        }
        variants
    }))
}

/// One lookup as postmap(1) of Postfix 3.7 asks, with the reply; a value of `None` is not there.
fn lookup(table: &str, key: &str, value: Option<&str>) -> Vec<Step> {
    let (status, value) = value.map_or(("1", ""), |value| ("0", value));
    vec![
        Step::Send(list(&[
            ("request", "lookup"),
            ("table", table),
            ("flags", "524353"),
            ("key", key),
        ])),
        Step::Expect(list(&[("status", status), ("value", value)])),
    ]
}

/// Descriptors that a daemon may have open: enough for the 19,000 sessions of one row.
const DESCRIPTORS: u64 = 20_000;

/// Lets this process and those that it starts have as many descriptors as the rows need.
fn allow_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= DESCRIPTORS) {
        return Ok(());
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(DESCRIPTORS),
            maximum: limit.maximum.map(|maximum| maximum.max(DESCRIPTORS)),
        },
    )
    .with_context(|| format!("cannot allow {DESCRIPTORS} descriptors"))
}

fn build(target: &Path, slow: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "-p", "postkeep", "--locked"]);
    let directory = if slow {
        command.args(["--features", "test-tables"]);
        target.join("test-tables")
    } else {
        target.to_owned()
    };
    execute(command.arg("--target-dir").arg(directory))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        for row in targets::ROWS {
            println!("{row}");
        }
        return Ok(());
    }
    ensure!(
        targets::ROWS.iter().any(|row| wants(&options.only, row)),
        "no row has such a name; --list tells them"
    );
    ensure!(options.rounds > 0, "no rounds");
    ensure!(
        !options.publish || options.foreign <= 10.0,
        "what was measured beside so much other load is not published"
    );
    let real = real_postfix().context("Postfix is needed for comparison")?;
    let target = top().join("target");
    let slow_wanted = slow::ROWS.iter().any(|row| wants(&options.only, row));
    if !options.no_build {
        if options.postkeep.is_none() {
            build(&target, false)?;
        }
        if options.postkeep_slow.is_none() && slow_wanted {
            build(&target, true)?;
        }
    }
    if let Err(error) = allow_descriptors() {
        println!("{error:#}: rows that need them will fail");
    }
    let counter = if options.no_system_calls {
        None
    } else {
        Counter::find()
    };
    match counter {
        Some(counter) => println!("system calls are counted with {}", counter.word()),
        None => {
            println!("system calls are not counted: not wanted, or neither perf nor strace may");
        }
    }
    println!(
        "a round is disturbed when others have more than {} % of the machine in one of its turns",
        options.foreign
    );
    let bench = Bench {
        options,
        real,
        postkeep: options
            .postkeep
            .clone()
            .unwrap_or_else(|| target.join("release/postkeep")),
        postkeep_slow: options
            .postkeep_slow
            .clone()
            .unwrap_or_else(|| target.join("test-tables/release/postkeep")),
        quiet: Quiet {
            limit: options.foreign / 100.0,
            repeats: options.repeats,
        },
        counter,
        scratch: Scratch::new("bench")?,
    };
    bench.scratch.directory("tables", 0o755)?;

    let mut report = Report::default();
    lookups::run(&bench, &mut report);
    updates::run(&bench, &mut report);
    slow::run(&bench, &mut report);
    sessions::run(&bench, &mut report);
    expiry::run(&bench, &mut report);
    full::run(&bench, &mut report);
    footprint::run(&bench, &mut report);

    let judged = report.judge(options.only.is_empty());
    let numbers = json!({
        "postfix": bench.real.version,
        "processors": std::thread::available_parallelism()?.get(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "foreign_percent": options.foreign,
        "system_calls_by": counter.map(Counter::word),
        "rows": report.rows(),
        "without_ratio": report.failures(),
        "targets": judged.json(),
    });
    println!();
    print!("{}", judged.text());
    let file = top().join(&options.json);
    publish::write_json(&file, &numbers)?;
    println!("{}", file.display());
    if options.publish {
        publish::publish(&numbers, &report, &judged)?;
    }
    report.finish()
}
