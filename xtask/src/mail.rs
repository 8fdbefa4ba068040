//! Mail through two private Postfix instances in turns: one with Postfix's own `scache` and `proxymap`, one with ours.
//!
//! The rest of both instances is the same, so the rate of mails says whether anything became slower, and the
//! processor time of the two daemons says what they took for it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::mail::{Sink, Source, connections_to};
use postkeep_testkit::private_postfix::{Plan, free_port};
use postkeep_testkit::{Implementation, PrivatePostfix, Scratch, real_postfix};
use serde_json::json;

use crate::observe::processor_time;
use crate::statistics::{median, spread};
use crate::{cargo, run as execute, top};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Messages of each turn
    #[arg(long, default_value_t = 10_000)]
    messages: u32,
    /// Turns of each pair; the ratio is the median over the turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections that messages come in over, at a time
    #[arg(long, default_value_t = 20)]
    sessions: u32,
    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench-mail.json")]
    json: PathBuf,
    /// Do not build; take the executable that is there
    #[arg(long)]
    no_build: bool,
    /// Our executable, instead of the release build
    #[arg(long)]
    postkeep: Option<PathBuf>,
}

/// The daemons that are replaced.
const DAEMONS: [&str; 2] = ["scache", "proxymap"];

/// One turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Messages a second, from the first one sent to the last one at the sink.
    rate: f64,
    /// Seconds of processor time of the daemons together.
    spent: f64,
    /// Connections at the sink.
    connections: u64,
}

/// An instance and what it delivers to.
struct Relay {
    postfix: PrivatePostfix,
    sink: Sink,
    port: u16,
    /// Processor time of each process of the daemons, as it was seen last.
    seen: HashMap<(&'static str, u32), Duration>,
}

impl Relay {
    fn start(executable: Option<&Path>, messages: u32, sinks: &Scratch) -> Result<Self> {
        let sink = Sink::start(sinks.path(), &[])?;
        let port = free_port()?;
        let mut recipients = String::new();
        for number in 0..=messages {
            writeln!(recipients, "{number}user@sink.test ok")?;
        }
        let plan = match executable {
            Some(path) => Plan::new(Implementation::Postkeep).executable(path),
            None => Plan::new(Implementation::Postfix),
        };
        let plan = plan
            .table("domains", "sink.test relay\n")
            .indexed_table("lmdb", "recipients", &recipients)
            .parameter("relay_domains", "proxy:texthash:$SCRATCH/tables/domains")
            .parameter(
                "relay_recipient_maps",
                "proxy:lmdb:$SCRATCH/tables/recipients",
            )
            .parameter(
                "transport_maps",
                &format!("proxy:inline:{{ sink.test=smtp:{} }}", sink.next_hop()),
            )
            .parameter("smtp_connection_cache_destinations", "127.0.0.1")
            .parameter("in_flow_delay", "0")
            .service(&format!("127.0.0.1:{port} inet n - n - - smtpd"));
        let mut postfix = plan.start()?.context("Postfix or postkeep is not there")?;
        postfix.wait_for_port(port)?;
        Ok(Self {
            postfix,
            sink,
            port,
            seen: HashMap::new(),
        })
    }

    /// Looks at the daemons' processor time. A process that has ended keeps what it had when it was seen last.
    fn look(&mut self) {
        for daemon in DAEMONS {
            for (pid, _) in self.postfix.processes(daemon) {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                if let Ok(time) = processor_time(pid) {
                    self.seen.insert((daemon, pid), time);
                }
            }
        }
    }

    fn spent(&self) -> Duration {
        self.seen.values().sum()
    }

    /// Connections at the sink so far, the open ones among them.
    fn connections(&self) -> Result<u64> {
        Ok(self.sink.count().sessions + connections_to(self.sink.port)? as u64)
    }

    fn turn(&mut self, messages: u32, sessions: u32) -> Result<Turn> {
        self.look();
        let (before, spent) = (self.sink.count(), self.spent());
        let connections = self.connections()?;
        let wanted = before.messages + u64::from(messages);
        let began = Instant::now();
        let limit = Duration::from_secs(60 + u64::from(messages) / 20);
        let source = Source::start_numbered(self.port, messages, sessions, "user@sink.test")?;
        while self.sink.count().messages < wanted {
            ensure!(
                began.elapsed() < limit,
                "{} of {messages} messages at the sink after {limit:?}",
                self.sink.count().messages - before.messages
            );
            self.look();
            std::thread::sleep(Duration::from_millis(50));
        }
        let elapsed = began.elapsed().as_secs_f64();
        source.finish(Duration::from_secs(10))?;
        self.postfix
            .wait_for("an empty queue", Duration::from_mins(1), |postfix| {
                Ok(postfix.undelivered()?.is_empty())
            })?;
        self.look();
        let after = self.sink.count();
        ensure!(
            after.messages == wanted,
            "{} messages, not {wanted}",
            after.messages
        );
        Ok(Turn {
            rate: f64::from(messages) / elapsed,
            spent: self.spent().saturating_sub(spent).as_secs_f64(),
            connections: self.connections()?.saturating_sub(connections),
        })
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(real_postfix().is_some(), "Postfix is not installed");
    ensure!(options.rounds > 0 && options.messages > 0, "nothing to do");
    if !options.no_build && options.postkeep.is_none() {
        let target = top().join("target");
        execute(
            cargo()
                .args(["build", "--release", "-p", "postkeep", "--locked"])
                .arg("--target-dir")
                .arg(target),
        )?;
    }
    let executable = options
        .postkeep
        .clone()
        .unwrap_or_else(|| top().join("target/release/postkeep"));
    ensure!(
        executable.is_file(),
        "{} is not there",
        executable.display()
    );
    let sinks = Scratch::new("sinks")?;
    let mut sides = [
        Relay::start(None, options.messages, &sinks)?,
        Relay::start(Some(&executable), options.messages, &sinks)?,
    ];
    println!(
        "{} messages a turn, {} sessions; daemons: {}",
        options.messages,
        options.sessions,
        DAEMONS.join(" and ")
    );
    println!(
        "{:>5}  {:<9} {:>9} {:>16} {:>12}",
        "turn", "", "mails/s", "daemons' CPU s", "connections"
    );
    let mut turns = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        for (name, (side, turns)) in ["Postfix", "postkeep"]
            .into_iter()
            .zip(sides.iter_mut().zip(&mut turns))
        {
            let turn = side.turn(options.messages, options.sessions)?;
            println!(
                "{round:>5}  {name:<9} {:>9.1} {:>16.2} {:>12}",
                turn.rate, turn.spent, turn.connections
            );
            turns.push(turn);
        }
    }
    let [postfix, postkeep] = &turns;
    let ratios = |of: fn(&Turn) -> f64| -> Vec<f64> {
        postfix
            .iter()
            .zip(postkeep)
            .map(|(postfix, postkeep)| of(postkeep) / of(postfix))
            .collect()
    };
    let mut numbers = serde_json::Map::new();
    for (name, ratios, target) in [
        ("mails/s", ratios(|turn| turn.rate), "not lower"),
        (
            "CPU of the daemons",
            ratios(|turn| turn.spent),
            "at most 0.5",
        ),
    ] {
        let (low, high) = spread(&ratios);
        let middle = median(ratios);
        println!(
            "{name}: postkeep to Postfix {middle:.2} ({low:.2} .. {high:.2}); wanted: {target}"
        );
        numbers.insert(
            name.to_owned(),
            json!({ "ratio": middle, "ratio_low": low, "ratio_high": high }),
        );
    }
    let list = |turns: &[Turn]| -> Vec<_> {
        turns
            .iter()
            .map(|turn| json!({ "rate": turn.rate, "cpu_s": turn.spent, "connections": turn.connections }))
            .collect()
    };
    numbers.insert("postfix".to_owned(), list(postfix).into());
    numbers.insert("postkeep".to_owned(), list(postkeep).into());
    let path = top().join(&options.json);
    fs::write(&path, serde_json::to_vec_pretty(&numbers)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
