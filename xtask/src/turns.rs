//! Daemons under load in turns, so that whatever else the machine does hits all of them.

use std::time::Duration;

use anyhow::{Result, bail};
use postkeep_testkit::StandIn;
use serde_json::{Value, json};

use crate::load::Crowd;
use crate::observe::{Counter, Quiet, Watch, processor_time};
use crate::statistics::{as_float, median, spread};

/// A daemon and the clients connected to it.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) daemon: StandIn,
    pub(crate) crowd: Crowd,
}

impl Side {
    /// Fails when the daemon warned of anything, or told master what master would not understand.
    ///
    /// # Errors
    /// With what it said.
    pub(crate) fn check(&self) -> Result<()> {
        check(self.name, &self.daemon)
    }
}

/// As [`Side::check`].
///
/// # Errors
/// With what the daemon said.
pub(crate) fn check(name: &str, daemon: &StandIn) -> Result<()> {
    let complaint = daemon.log_texts().into_iter().find(|line| {
        ["warning: ", "error: ", "fatal: ", "panic: "]
            .iter()
            .any(|class| line.starts_with(class))
    });
    if let Some(line) = complaint {
        bail!("{name} logged: {line}");
    }
    let strange = daemon.status().strange;
    if strange > 0 {
        bail!("{name} sent {strange} strange messages to master");
    }
    Ok(())
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
    pub(crate) quiet: Quiet,
    /// Counts system calls, too, in turns of their own that tell nothing else.
    pub(crate) counter: Option<Counter>,
}

/// What one turn of one side told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Operations a second.
    pub(crate) rate: f64,
    /// Microseconds of the daemon's processor time for one operation.
    pub(crate) cost: f64,
    /// Microseconds that half of the operations, 99 % and 99.9 % of them took at most.
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

fn sample(side: &mut Side, duration: Duration) -> Result<Sample> {
    let pid = side.daemon.pid();
    let before = processor_time(pid)?;
    let done = side.crowd.run_for(duration)?;
    let spent = processor_time(pid)?.saturating_sub(before);
    Ok(Sample {
        rate: done.per_second(),
        cost: spent.as_secs_f64() * 1e6 / as_float(done.operations),
        median: done.latency(0.5),
        p99: done.latency(0.99),
        p999: done.latency(0.999),
    })
}

/// The samples of one side, in the order of the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// System calls for one operation.
    pub(crate) calls: Option<f64>,
}

impl Series {
    pub(crate) fn median(&self, of: fn(&Sample) -> f64) -> f64 {
        median(self.all(of))
    }

    fn all(&self, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(of).collect()
    }
}

/// A ratio over the pairs of turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Of the values of two sides, pair by pair.
    ///
    /// # Panics
    /// Without values.
    pub(crate) fn of(above: &[f64], below: &[f64]) -> Self {
        let ratios: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
        let (low, high) = spread(&ratios);
        Self {
            median: median(ratios),
            low,
            high,
        }
    }

    pub(crate) fn json(self) -> Value {
        json!({ "median": self.median, "low": self.low, "high": self.high })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.2} ({:.2} .. {:.2})", self.median, self.low, self.high);
        formatter.pad(&text)
    }
}

/// Everything that a contest told.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    name: String,
    clients: usize,
    unit: String,
    pub(crate) series: Vec<Series>,
}

impl Contest<'_> {
    /// Measures the sides in turns: one turn of each, then again.
    ///
    /// # Errors
    /// When a reply was wrong or none came, when a daemon complained, and when other load disturbed a round
    /// each time that it was tried.
    pub(crate) fn run(&self, sides: &mut [Side]) -> Result<Outcome> {
        let pids: Vec<u32> = sides.iter().map(|side| side.daemon.pid()).collect();
        let mut series: Vec<Series> = sides
            .iter()
            .map(|side| Series {
                name: side.name,
                samples: Vec::new(),
                calls: None,
            })
            .collect();
        for round in 1..=self.rounds {
            eprintln!(
                "  {}, {} clients: round {round} of {}",
                self.name, self.clients, self.rounds
            );
            let samples = self.quiet.measure(|| {
                let mut worst = 0.0_f64;
                let mut samples = Vec::new();
                for side in &mut *sides {
                    let watch = Watch::begin(&pids)?;
                    samples.push(sample(side, self.duration)?);
                    worst = worst.max(watch.foreign()?);
                }
                Ok((samples, worst))
            })?;
            for (series, sample) in series.iter_mut().zip(samples) {
                series.samples.push(sample);
            }
        }
        if let Some(counter) = self.counter {
            for (series, side) in series.iter_mut().zip(&mut *sides) {
                let (calls, done) = counter.count(side.daemon.pid(), || {
                    side.crowd.run_for(Duration::from_millis(200))
                })?;
                series.calls = Some(as_float(calls) / as_float(done.operations));
            }
        }
        for side in sides {
            side.check()?;
        }
        Ok(Outcome {
            name: self.name.to_owned(),
            clients: self.clients,
            unit: self.unit.to_owned(),
            series,
        })
    }
}

/// Prints the head of the table that [`Outcome::print_line`] prints the rows of.
pub(crate) fn print_head() {
    println!(
        "{:<26} {:>4}  {:>10} {:>10} {:<10} {:>5} {:<16} {:>6} {:>6}",
        "", "clients", "Postfix", "postkeep", "", "ratio", "(low .. high)", "us", "us"
    );
}

type Part = (&'static str, fn(&Sample) -> f64, usize);

/// What is printed of each side: name, value, digits after the point.
const PARTS: [Part; 5] = [
    ("CPU us", |sample| sample.cost, 2),
    ("p50 us", |sample| sample.median, 0),
    ("p99 us", |sample| sample.p99, 0),
    ("p99.9 us", |sample| sample.p999, 0),
    ("", |sample| sample.rate, 0),
];

impl Outcome {
    /// The second side over the first or over another, pair by pair.
    pub(crate) fn ratio(&self, of: fn(&Sample) -> f64, above: usize, below: usize) -> Ratio {
        Ratio::of(&self.series[above].all(of), &self.series[below].all(of))
    }

    /// Prints rates and costs of the first two sides in one line.
    pub(crate) fn print_line(&self) {
        let [postfix, postkeep] = [&self.series[0], &self.series[1]];
        println!(
            "{:<26} {:>4}  {:>10.0} {:>10.0} {:<10} {:<24} {:>6.1} {:>6.1}",
            self.name,
            self.clients,
            postfix.median(|sample| sample.rate),
            postkeep.median(|sample| sample.rate),
            self.unit,
            self.ratio(|sample| sample.rate, 1, 0),
            postfix.median(|sample| sample.cost),
            postkeep.median(|sample| sample.cost),
        );
    }

    /// Prints all that was measured: a column for each side, and the ratios of ours (the second side) to the
    /// first and the third.
    pub(crate) fn print(&self) {
        let clients = if self.clients == 1 {
            "client"
        } else {
            "clients"
        };
        let title = format!("{}, {} {clients}", self.name, self.clients);
        print!("{title:<34}");
        for series in &self.series {
            print!(" {:>10}", series.name);
        }
        for below in self.others() {
            print!("   ours / {:<17}", self.series[below].name);
        }
        println!();
        for (name, of, digits) in PARTS {
            let name = if name.is_empty() { &self.unit } else { name };
            print!("{name:>34}");
            for series in &self.series {
                print!(" {:>10.digits$}", series.median(of));
            }
            for below in self.others() {
                print!("   {:<24}", self.ratio(of, 1, below));
            }
            println!();
        }
        if self.series.iter().any(|series| series.calls.is_some()) {
            print!("{:>34}", "system calls");
            for series in &self.series {
                print!(" {:>10.2}", series.calls.unwrap_or(f64::NAN));
            }
            println!();
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        [0, 2].into_iter().filter({
            let count = self.series.len();
            move |&side| side < count
        })
    }

    /// The numbers, those of every turn included.
    pub(crate) fn json(&self) -> Value {
        let sides: Vec<Value> = self
            .series
            .iter()
            .map(|series| {
                json!({
                    "name": series.name,
                    "rate": series.median(|sample| sample.rate),
                    "cpu_us": series.median(|sample| sample.cost),
                    "p50_us": series.median(|sample| sample.median),
                    "p99_us": series.median(|sample| sample.p99),
                    "p999_us": series.median(|sample| sample.p999),
                    "system_calls": series.calls,
                    "rates": series.all(|sample| sample.rate),
                    "costs_us": series.all(|sample| sample.cost),
                })
            })
            .collect();
        let ratios: Vec<Value> = self
            .others()
            .map(|below| {
                json!({
                    "to": self.series[below].name,
                    "rate": self.ratio(|sample| sample.rate, 1, below).json(),
                    "cpu": self.ratio(|sample| sample.cost, 1, below).json(),
                    "p50": self.ratio(|sample| sample.median, 1, below).json(),
                })
            })
            .collect();
        json!({
            "row": self.name, "clients": self.clients, "unit": self.unit,
            "sides": sides, "ratios": ratios,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians() {
        let ratio = Ratio::of(&[2.0, 30.0, 8.0], &[1.0, 10.0, 2.0]);
        assert!((ratio.median - 3.0).abs() < 1e-9);
        assert_eq!(ratio.to_string(), "3.00 (2.00 .. 4.00)");
    }
}
