//! Runs the fuzz targets; needs cargo-fuzz.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{cargo, run as execute, top};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target
    target: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    for target in targets()? {
        if options
            .target
            .as_ref()
            .is_some_and(|wanted| *wanted != target)
        {
            continue;
        }
        let corpus = top().join("fuzz/corpus").join(&target);
        fs::create_dir_all(&corpus)?;
        // libFuzzer's instrumentation needs compiler options that a stable compiler keeps back.
        execute(
            cargo()
                .args(["fuzz", "run", &target])
                .arg(&corpus)
                .arg(top().join("fuzz/regressions").join(&target))
                .arg("--")
                .arg(format!("-max_total_time={}", options.seconds))
                .args(["-timeout=10", "-rss_limit_mb=2048"])
                .env("RUSTC_BOOTSTRAP", "1"),
        )?;
    }
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let directory = top().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
