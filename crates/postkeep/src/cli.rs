//! The command line of `postkeep` under its own name.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::{adopt, doctor, proxymap, release, reload, scache, shadow, status, top};
use crate::{serve, tools};

/// A connection cache and a lookup table server for Postfix, with or without Postfix.
///
/// The same executable is the daemon scache(8) or proxymap(8) when it is started under that name, which is how
/// it takes the place of Postfix's own.
#[derive(Debug, Parser)]
#[command(
    name = "postkeep",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "\
The daemons and tools also answer to their own names when the executable is linked to them:\n  \
scache, proxymap, proxywrite, socketmap, postmap, postalias, postconf")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the services without Postfix, in the foreground
    Serve(serve::Options),
    /// Have an installed Postfix use these daemons instead of its own
    Adopt(adopt::Options),
    /// Give an adopted Postfix its own daemons back
    Release(release::Options),
    /// Say what is wrong with the tables and services of a Postfix, and how to mend it
    Doctor(doctor::Options),
    /// Have services, or one of their tables, begin anew
    Reload(reload::Options),
    /// Compare another proxymap with Postfix's own on the requests of its clients
    Shadow(shadow::Options),
    /// Say how the services are, on one screen and in the exit status
    Status(status::Options),
    /// Show what the services do, while they do it
    Top(top::Options),
    /// Save, take back and hand over connections
    #[command(subcommand)]
    Scache(scache::Command),
    /// Ask and change tables through the lookup table server
    #[command(subcommand)]
    Proxymap(proxymap::Command),
    /// Create and query tables (postmap(1))
    Postmap(Passed),
    /// Create and query alias tables (postalias(1))
    Postalias(Passed),
    /// Show configuration parameters (postconf(1))
    Postconf(Passed),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Arguments that a tool reads itself.
#[derive(Args, Debug)]
#[command(disable_help_flag = true, disable_version_flag = true)]
struct Passed {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Arguments of the tool, as its manual page has them
    #[arg(
        value_name = "ARGUMENT",
        allow_hyphen_values = true,
        trailing_var_arg = true
    )]
    arguments: Vec<OsString>,
}

/// Where the services are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// Directory of `postkeep serve`, or the queue directory of a Postfix (/var/spool/postfix)
    ///
    /// Default: $XDG_STATE_HOME/postkeep, else ~/.local/state/postkeep; for root /var/lib/postkeep.
    #[arg(long, short = 'd', value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Socket of the service, when it is nowhere near a directory
    #[arg(long, value_name = "PATH", conflicts_with = "directory")]
    pub(crate) socket: Option<PathBuf>,
}

/// Runs `postkeep ARGUMENTS`.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let words = std::iter::once(OsString::from("postkeep")).chain(arguments.iter().cloned());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are printed to standard output and are no failure.
            return if error.use_stderr() {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Serve(options) => serve::run(&options),
        Command::Adopt(options) => adopt::run(&options),
        Command::Release(options) => release::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Reload(options) => reload::run(&options),
        Command::Shadow(options) => shadow::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Scache(command) => scache::run(&command),
        Command::Proxymap(command) => proxymap::run(&command),
        Command::Postmap(passed) => tools::postmap::run(OsStr::new("postmap"), &passed.arguments),
        Command::Postalias(passed) => {
            tools::postmap::run(OsStr::new("postalias"), &passed.arguments)
        }
        Command::Postconf(passed) => {
            tools::postconf::run(OsStr::new("postconf"), &passed.arguments)
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "postkeep",
                &mut std::io::stdout(),
            );
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn tools_get_their_options_unread() {
        let parse = |words: &[&str]| Cli::try_parse_from(words);
        let cli = parse(&["postkeep", "postmap", "-q", "key", "hash:x", "--", "-h"]).unwrap();
        let Command::Postmap(passed) = cli.command else {
            panic!("another command")
        };
        assert_eq!(passed.arguments, ["-q", "key", "hash:x", "--", "-h"]);
        let cli = parse(&["postkeep", "postconf", "-h", "mail_version"]).unwrap();
        let Command::Postconf(passed) = cli.command else {
            panic!("another command")
        };
        assert_eq!(passed.arguments, ["-h", "mail_version"]);
    }
}
