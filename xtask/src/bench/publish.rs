//! Writes what was measured: JSON, a page of Markdown, and a plot.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::report::{Judged, Measured, Report};
use super::targets::Measure;
use crate::top;

pub(super) fn write_json(file: &Path, numbers: &Value) -> Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(file, serde_json::to_string_pretty(numbers)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Writes the three files below `docs/`.
pub(super) fn publish(numbers: &Value, report: &Report, judged: &Judged) -> Result<()> {
    let docs = top().join("docs");
    write_json(&docs.join("performance.json"), numbers)?;
    fs::write(docs.join("performance.svg"), plot(&bars(report.measured())))?;
    fs::write(docs.join("performance.md"), page(numbers, judged))?;
    println!("docs/performance.md, docs/performance.json, docs/performance.svg");
    Ok(())
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(number) if number.abs() >= 100.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.2}"),
    }
}

fn page(numbers: &Value, judged: &Judged) -> String {
    let mut text = format!(
        "# Performance\n\n\
         Made by `cargo xtask bench --publish`; `bench/README.md` says what is measured and how. Beside Postfix {}, on a machine\n\
         with {} processors, {} turns of {} s of each side. All numbers are in [performance.json](performance.json).\n\n\
         ![our daemons over Postfix's](performance.svg)\n\n## Targets\n\n{}\n\
         ## Rates, processor time, system calls, latencies\n\n\
         | row | clients | side | a second | CPU us | system calls | p50 us | p99 us | p99.9 us |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        numbers["postfix"].as_str().unwrap_or("?"),
        numbers["processors"],
        numbers["rounds"],
        numbers["seconds"],
        judged.markdown(),
    );
    for row in numbers["rows"].as_array().into_iter().flatten() {
        for side in row["sides"].as_array().into_iter().flatten() {
            if side["rate"].is_null() {
                continue;
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row["row"].as_str().unwrap_or("?"),
                row["clients"],
                side["name"].as_str().unwrap_or("?"),
                number(&side["rate"]),
                number(&side["cpu_us"]),
                number(&side["system_calls"]),
                number(&side["p50_us"]),
                number(&side["p99_us"]),
                number(&side["p999_us"]),
            );
        }
    }
    let without = numbers["without_ratio"].as_array().map_or(0, Vec::len);
    if without > 0 {
        let _ = writeln!(text, "\n{without} rows have no ratio:\n");
        for row in numbers["without_ratio"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "- {}, {} clients: {}",
                row["row"].as_str().unwrap_or("?"),
                row["clients"],
                row["reason"].as_str().unwrap_or("?")
            );
        }
    }
    text
}

/// A bar of the plot: how many times as fast as Postfix ours is.
struct Bar {
    name: String,
    ratio: f64,
}

fn bars(measured: &[Measured]) -> Vec<Bar> {
    measured
        .iter()
        .filter(|measured| {
            measured.measure == Measure::RateToPostfix
                && measured.value.is_finite()
                && measured.value > 0.0
        })
        .map(|measured| Bar {
            name: measured.clients.map_or_else(
                || measured.row.clone(),
                |clients| format!("{}, {clients}", measured.row),
            ),
            ratio: measured.value,
        })
        .collect()
}

const LABELS: f64 = 190.0;
const WIDTH: f64 = 520.0;
const LINE: f64 = 18.0;
/// Powers of two from a half on that the axis shows.
const FIRST: f64 = -1.0;

/// Horizontal bars on a logarithmic axis; what is right of 1 is faster than Postfix.
fn plot(bars: &[Bar]) -> String {
    let highest = bars.iter().map(|bar| bar.ratio.log2()).fold(2.0, f64::max);
    let last = highest.ceil();
    let x = |power: f64| LABELS + (power - FIRST).max(0.0) / (last - FIRST) * WIDTH;
    let rows = bars.iter().fold(0.0, |height: f64, _| height + LINE);
    let height = rows + 50.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LABELS:.0}\" y=\"16\">rate, ours over Postfix's (number of clients beside the row)</text>\n",
        LABELS + WIDTH + 60.0,
    );
    let mut power = FIRST;
    while power <= last {
        let at = x(power);
        let colour = if power == 0.0 { "#444444" } else { "#dddddd" };
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"24\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            rows + 28.0,
            rows + 42.0,
            power.exp2(),
        );
        power += 1.0;
    }
    let mut top = 28.0;
    for bar in bars {
        let (from, to) = (x(0.0), x(bar.ratio.log2()));
        let colour = if bar.ratio >= 1.0 {
            "#3b7dd8"
        } else {
            "#d8643b"
        };
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            LABELS - 6.0,
            top + 11.0,
            bar.name,
            from.min(to),
            (to - from).abs(),
            LINE - 5.0,
            from.max(to) + 4.0,
            top + 11.0,
            bar.ratio,
        );
        top += LINE;
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_has_a_bar_for_each_row() {
        let bars = [("slow table", 63.0), ("lookup inline, 1", 0.8)].map(|(name, ratio)| Bar {
            name: name.to_owned(),
            ratio,
        });
        let text = plot(&bars);
        assert_eq!(text.matches("<rect x").count(), 2);
        assert!(text.contains(">slow table<") && text.contains(">63.00<"));
        assert!(text.ends_with("</svg>\n"));
    }
}
