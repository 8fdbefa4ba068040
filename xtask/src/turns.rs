//! Two daemons under load in turns, so that whatever else the machine does hits both.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postkeep_testkit::StandIn;
use serde_json::{Value, json};

use crate::load::Crowd;
use crate::statistics::{median, spread};

/// A daemon and the clients connected to it.
pub(crate) struct Side {
    pub(crate) daemon: StandIn,
    pub(crate) crowd: Crowd,
}

/// What is measured, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contest<'a> {
    pub(crate) name: &'a str,
    pub(crate) clients: usize,
    pub(crate) unit: &'a str,
    /// The length of one turn.
    pub(crate) duration: Duration,
    pub(crate) rounds: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: f64,
    /// Microseconds of the daemon's processor time for one operation.
    cost: f64,
}

/// Processor time of a process so far, in clock ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("strange stat")?
        .1
        .split_whitespace()
        .collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn measure(side: &mut Side, duration: Duration) -> Result<Sample> {
    let before = ticks(side.daemon.pid())?;
    let done = side.crowd.run_for(duration)?;
    let spent = ticks(side.daemon.pid())? - before;
    let rate = done.per_second();
    #[expect(clippy::cast_precision_loss, reason = "seconds of clock ticks")]
    let seconds = spent as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Sample {
        rate,
        cost: seconds * 1e6 / (rate * done.elapsed.as_secs_f64()),
    })
}

/// Prints the head of the table that [`Contest::run`] prints the rows of.
pub(crate) fn print_head() {
    println!(
        "{:<26} {:>4}  {:>10} {:>10} {:<10} {:>5} {:<16} {:>6} {:>6}",
        "", "clients", "Postfix", "postkeep", "", "ratio", "(low .. high)", "us", "us"
    );
}

impl Contest<'_> {
    /// Measures Postfix's daemon and ours in turns, prints a row, and returns the numbers.
    pub(crate) fn run(&self, postfix: &mut Side, postkeep: &mut Side) -> Result<Value> {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..self.rounds {
            samples[0].push(measure(postfix, self.duration)?);
            samples[1].push(measure(postkeep, self.duration)?);
        }
        let [postfix, postkeep] = samples;
        let ratios: Vec<f64> = postfix
            .iter()
            .zip(&postkeep)
            .map(|(postfix, postkeep)| postkeep.rate / postfix.rate)
            .collect();
        let rate = |samples: &[Sample]| median(samples.iter().map(|sample| sample.rate).collect());
        let cost = |samples: &[Sample]| median(samples.iter().map(|sample| sample.cost).collect());
        let (low, high) = spread(&ratios);
        println!(
            "{:<26} {:>4}  {:>10.0} {:>10.0} {:<10} {:>5.2} ({low:.2} .. {high:.2})   {:>6.1} {:>6.1}",
            self.name,
            self.clients,
            rate(&postfix),
            rate(&postkeep),
            self.unit,
            median(ratios.clone()),
            cost(&postfix),
            cost(&postkeep),
        );
        let rates =
            |samples: &[Sample]| samples.iter().map(|sample| sample.rate).collect::<Vec<_>>();
        Ok(json!({
            "bench": self.name, "clients": self.clients, "unit": self.unit,
            "postfix": rates(&postfix), "postkeep": rates(&postkeep),
            "ratio": median(ratios.clone()), "ratio_low": low, "ratio_high": high,
            "postfix_cpu_us": cost(&postfix), "postkeep_cpu_us": cost(&postkeep),
        }))
    }
}
