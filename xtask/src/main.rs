//! Project chores.
#![forbid(unsafe_code)]

mod bench;
mod bound;
mod check;
mod fuzz;
mod instructions;
mod load;
mod mail;
mod observe;
mod statistics;
mod tables;
mod turns;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use postkeep_sys::descriptor::Inherited;

#[derive(Debug, Parser)]
#[command(about = "Project chores")]
struct Options {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Formatting, lints, documentation, licences, tests
    Check(check::Options),
    /// Our daemons beside Postfix's own and a bare server, in one run
    Bench(bench::Options),
    /// The bare server that `bench` compares with, started as a daemon
    #[command(hide = true)]
    Bound(bound::Options),
    /// Our table lookups beside Postfix's own, in one run
    BenchTables(tables::Options),
    /// Mail through Postfix with our daemons beside mail through Postfix with its own
    BenchMail(mail::Options),
    /// Instructions of the parts without input and output, beside those that are kept
    Instructions(instructions::Options),
    /// Each fuzz target for a while
    Fuzz(fuzz::Options),
}

fn main() -> Result<()> {
    let inherited = Inherited::survey();
    match Options::parse().chore {
        Chore::Check(options) => check::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Bound(options) => bound::run(&options, inherited),
        Chore::BenchTables(options) => tables::run(&options),
        Chore::BenchMail(options) => mail::run(&options),
        Chore::Instructions(options) => instructions::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
    }
}

/// The top of the project.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies below the top")
}

/// Runs a command at the top of the project; its failure is an error.
fn run(command: &mut Command) -> Result<()> {
    command.current_dir(top());
    eprintln!("+ {command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The cargo that runs us.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
