//! Everything that must hold before a change is handed in.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::{cargo, run as execute};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave out the tests
    #[arg(long)]
    no_tests: bool,
}

fn licences() -> Result<()> {
    let installed = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        eprintln!("SKIP: cargo-deny is not installed");
        return Ok(());
    }
    execute(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    // Modules that a macro declares are not seen by cargo fmt.
    let tables = crate::top().join("crates/tables/src");
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--check", "--edition", "2024"]);
    for entry in std::fs::read_dir(tables)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            rustfmt.arg(path);
        }
    }
    execute(&mut rustfmt)?;
    let everything = ["--workspace", "--all-targets", "--locked"];
    execute(
        cargo()
            .arg("clippy")
            .args(everything)
            .args(["--", "-D", "warnings"]),
    )?;
    execute(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    licences()?;
    if !options.no_tests {
        execute(cargo().args(["build", "--workspace", "--locked"]))?;
        execute(cargo().args(["test", "--workspace", "--locked"]))?;
    }
    Ok(())
}
