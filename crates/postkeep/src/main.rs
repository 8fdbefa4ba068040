//! The executable: the daemons and tools of the project, each under its own name.
//!
//! Started (through a link) as `scache`, `proxymap`, `proxywrite` or `socketmap` it is the daemon of that name, as
//! `postmap`, `postalias` or `postconf` the tool; under any other name it takes the name as its first word.
#![forbid(unsafe_code)]

mod applet;
mod cli;
mod commands;
mod daemons;
mod handover;
mod monitor;
mod serve;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let name = if arguments.is_empty() {
        "postkeep".into()
    } else {
        arguments.remove(0)
    };
    match applet::Applet::of(&name) {
        Some(applet) => applet.run(&name, &arguments),
        None => cli::run(&arguments),
    }
}
