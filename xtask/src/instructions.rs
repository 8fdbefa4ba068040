//! Counts the instructions of the parts without input and output, and holds them against the counts that are kept.
//!
//! Counts do not depend on what else the machine does, so they show what a clock cannot. They do depend on the
//! compiler, on the C library and a little on the processor (which vector instructions `memchr` finds).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::statistics::as_float;
use crate::{cargo, top};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keeps the counts of this run, instead of comparing
    #[arg(long)]
    keep: bool,
    /// The most by which a count may have grown, in percent
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
}

/// Where the counts are kept, below the top of the project.
const KEPT: &str = "bench/instructions.json";

/// Builds the executable, and returns where it is.
fn build() -> Result<PathBuf> {
    let output = cargo()
        .current_dir(top())
        .args(["build", "--profile", "counted", "-p", "cores", "--locked"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the build failed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .context("cargo named no executable")
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Instructions of one operation of a part.
fn count(executable: &Path, part: &str) -> Result<u64> {
    let file = tempfile::NamedTempFile::new()?;
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(file.path());
    let times: u64 = output(
        Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg("--toggle-collect=*measured*")
            .arg(out)
            .arg(executable)
            .arg(part),
    )?
    .parse()
    .context("no number of operations")?;
    let text = fs::read_to_string(file.path())?;
    let total: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .context("callgrind wrote no totals")?
        .trim()
        .parse()?;
    ensure!(total >= times, "callgrind saw nothing of {part}");
    Ok(total / times)
}

/// How a count stands to the one that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// More than the tolerance fewer: the kept count should follow.
    Fewer,
    /// More than the tolerance more.
    More,
    /// No count is kept.
    New,
}

fn judge(kept: Option<u64>, now: u64, tolerance: f64) -> Verdict {
    let Some(kept) = kept else {
        return Verdict::New;
    };
    let ratio = as_float(now) / as_float(kept);
    if ratio > 1.0 + tolerance / 100.0 {
        Verdict::More
    } else if ratio < 1.0 - tolerance / 100.0 {
        Verdict::Fewer
    } else {
        Verdict::Same
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let executable = build()?;
    let parts = output(&mut Command::new(&executable))?;
    let mut counts = BTreeMap::new();
    for part in parts.lines() {
        counts.insert(part, count(&executable, part)?);
    }
    let rustc = output(Command::new("rustc").arg("--version").current_dir(top()))?;
    let valgrind = output(Command::new("valgrind").arg("--version"))?;
    let file = top().join(KEPT);
    if options.keep {
        let kept = json!({ "rustc": rustc, "valgrind": valgrind, "instructions": counts });
        fs::write(&file, serde_json::to_string_pretty(&kept)? + "\n")?;
        println!("kept: {KEPT}");
        return Ok(());
    }
    let text = fs::read_to_string(&file).with_context(|| format!("no {KEPT}: --keep makes it"))?;
    let kept: Value = serde_json::from_str(&text)?;
    for (name, now) in [("rustc", &rustc), ("valgrind", &valgrind)] {
        if kept[name].as_str() != Some(now) {
            println!("note: the kept counts are of {}, this is {now}", kept[name]);
        }
    }
    let mut worse = Vec::new();
    println!(
        "{:<22} {:>12} {:>12} {:>9}",
        "instructions", "kept", "now", ""
    );
    for (part, now) in counts {
        let before = kept["instructions"][part].as_u64();
        let change = before.map_or_else(
            || "-".to_owned(),
            |before| format!("{:+.1} %", (as_float(now) / as_float(before) - 1.0) * 100.0),
        );
        let verdict = judge(before, now, options.tolerance);
        let word = match verdict {
            Verdict::Same => "",
            Verdict::Fewer => "fewer: keep them with --keep",
            Verdict::More => "MORE",
            Verdict::New => "NOT KEPT",
        };
        let shown = before.map_or_else(|| "-".to_owned(), |before| before.to_string());
        println!("{part:<22} {shown:>12} {now:>12} {change:>9}  {word}");
        if matches!(verdict, Verdict::More | Verdict::New) {
            worse.push(part);
        }
    }
    if !worse.is_empty() {
        bail!(
            "{}: more than {} % more instructions than kept, or none kept; when there is a reason, \
             `cargo xtask instructions --keep`",
            worse.join(", "),
            options.tolerance
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_the_tolerance_is_told() {
        assert_eq!(judge(Some(1000), 1030, 3.0), Verdict::Same);
        assert_eq!(judge(Some(1000), 1031, 3.0), Verdict::More);
        assert_eq!(judge(Some(1000), 969, 3.0), Verdict::Fewer);
        assert_eq!(judge(None, 1, 3.0), Verdict::New);
    }
}
