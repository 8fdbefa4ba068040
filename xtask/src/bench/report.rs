//! What the rows told: numbers, failures, and how they stand to the targets.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::targets::{Limit, Measure, TARGETS};

/// One number that there may be a target for.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) row: String,
    /// In rows that are measured with several numbers of clients.
    pub(crate) clients: Option<usize>,
    pub(crate) measure: Measure,
    pub(crate) value: f64,
}

/// What one row told.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) json: Value,
    pub(crate) measured: Vec<(Measure, f64)>,
}

/// A row that has no ratio, and why.
#[derive(Clone, Debug)]
struct Failure {
    row: String,
    clients: Option<usize>,
    reason: String,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    measured: Vec<Measured>,
    failures: Vec<Failure>,
}

impl Report {
    /// Measures a row. One that fails is noted, and the others still have their turn.
    pub(crate) fn attempt(
        &mut self,
        row: &str,
        clients: Option<usize>,
        measure: impl FnOnce() -> Result<Row>,
    ) {
        match measure() {
            Ok(told) => {
                self.rows.push(told.json);
                let measured = told.measured.into_iter().map(|(measure, value)| Measured {
                    row: row.to_owned(),
                    clients,
                    measure,
                    value,
                });
                self.measured.extend(measured);
            }
            Err(error) => {
                let reason = format!("{error:#}");
                println!("{}: no ratio: {reason}", title(row, clients));
                self.failures.push(Failure {
                    row: row.to_owned(),
                    clients,
                    reason,
                });
            }
        }
    }

    pub(crate) fn rows(&self) -> &[Value] {
        &self.rows
    }

    pub(crate) fn measured(&self) -> &[Measured] {
        &self.measured
    }

    pub(crate) fn failures(&self) -> Vec<Value> {
        self.failures
            .iter()
            .map(|failure| {
                json!({
                    "row": failure.row, "clients": failure.clients, "reason": failure.reason,
                })
            })
            .collect()
    }

    /// Holds every target against what was measured.
    ///
    /// - `all`: a target that nothing was measured for is listed, too
    pub(crate) fn judge(&self, all: bool) -> Judged {
        let mut verdicts = Vec::new();
        for target in TARGETS {
            let before = verdicts.len();
            let fits = |row: &str, clients: Option<usize>| {
                row.starts_with(target.row)
                    && (target.clients.is_empty()
                        || clients.is_some_and(|clients| target.clients.contains(&clients)))
            };
            for measured in &self.measured {
                if measured.measure == target.measure && fits(&measured.row, measured.clients) {
                    verdicts.push(Verdict {
                        row: title(&measured.row, measured.clients),
                        measure: target.measure,
                        limit: target.limit,
                        value: Some(measured.value),
                    });
                }
            }
            for failure in &self.failures {
                if fits(&failure.row, failure.clients) {
                    verdicts.push(Verdict {
                        row: title(&failure.row, failure.clients),
                        measure: target.measure,
                        limit: target.limit,
                        value: None,
                    });
                }
            }
            if all && verdicts.len() == before {
                verdicts.push(Verdict {
                    row: target.row.trim_end().to_owned(),
                    measure: target.measure,
                    limit: target.limit,
                    value: None,
                });
            }
        }
        verdicts.sort_by_key(|verdict| order(&verdict.row));
        Judged { verdicts }
    }

    /// # Errors
    /// When a row has no ratio.
    pub(crate) fn finish(&self) -> Result<()> {
        if !self.failures.is_empty() {
            bail!("{} rows could not be reported", self.failures.len());
        }
        Ok(())
    }
}

/// The row as it is shown.
fn title(row: &str, clients: Option<usize>) -> String {
    match clients {
        None => row.to_owned(),
        Some(1) => format!("{row}, 1 client"),
        Some(clients) => format!("{row}, {clients} clients"),
    }
}

/// Where a row stands in the list of all rows.
fn order(row: &str) -> usize {
    super::targets::ROWS
        .iter()
        .position(|known| row.starts_with(known))
        .unwrap_or(usize::MAX)
}

/// A target and what became of it.
#[derive(Clone, Debug)]
struct Verdict {
    row: String,
    measure: Measure,
    limit: Limit,
    value: Option<f64>,
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self.value {
            None => "not measured",
            Some(value) if self.limit.holds(value) => "reached",
            Some(_) => "MISSED",
        }
    }

    fn number(&self) -> String {
        self.value
            .map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
    }
}

/// All targets that concern the run.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    verdicts: Vec<Verdict>,
}

impl Judged {
    /// A table for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{:<34} {:<44} {:>9} {:>10}\n",
            "row", "measure", "target", "measured"
        );
        for verdict in &self.verdicts {
            let _ = writeln!(
                text,
                "{:<34} {:<44} {:>9} {:>10}  {}",
                verdict.row,
                verdict.measure.text(),
                verdict.limit.to_string(),
                verdict.number(),
                verdict.word()
            );
        }
        text
    }

    /// The same as a table of Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text =
            "| row | measure | target | measured | |\n|---|---|---|---|---|\n".to_owned();
        for verdict in &self.verdicts {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                verdict.row,
                verdict.measure.text(),
                verdict.limit,
                verdict.number(),
                verdict.word()
            );
        }
        text
    }

    pub(crate) fn json(&self) -> Vec<Value> {
        self.verdicts
            .iter()
            .map(|verdict| {
                json!({
                    "row": verdict.row, "measure": verdict.measure.text(),
                    "target": verdict.limit.to_string(), "measured": verdict.value,
                    "verdict": verdict.word(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(value: f64) -> Report {
        let mut report = Report::default();
        report.attempt("lookup inline", Some(8), || {
            Ok(Row {
                json: Value::Null,
                measured: vec![(Measure::RateToPostfix, value)],
            })
        });
        report
    }

    #[test]
    fn a_target_is_reached_or_missed() {
        assert!(report(3.0).judge(false).text().contains("reached"));
        assert!(report(2.9).judge(false).text().contains("MISSED"));
        assert!(report(3.0).finish().is_ok());
    }

    #[test]
    fn a_row_with_errors_has_no_ratio_and_fails_the_run() {
        let mut report = Report::default();
        report.attempt("lookup inline", Some(8), || bail!("got x, not y"));
        let text = report.judge(false).text();
        assert!(text.contains("not measured") && !text.contains("reached"));
        assert!(report.finish().is_err());
    }

    #[test]
    fn targets_of_other_numbers_of_clients_are_left_alone() {
        let text = report(3.0).judge(false).text();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
