//! `postkeep status`: how the services are, on one screen and in the exit status.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;

use crate::monitor::read::{Reading, Source, read_all, sources};
use crate::monitor::screen::{Order, plain};
use crate::monitor::view::{Health, View};

/// Where the services are that are looked at.
#[derive(Args, Clone, Debug)]
pub(crate) struct Watched {
    /// Directory of `postkeep serve`, or the queue directory of a Postfix
    ///
    /// Default: the default directory of `postkeep serve`, else /var/spool/postfix. In it, the sockets named
    /// private/NAME.metrics are asked.
    #[arg(long, short = 'd', value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Ask here instead: unix:PATH or inet:ADDRESS:PORT, as in postkeep_metrics_address
    #[arg(long = "address", short = 'a', value_name = "ADDRESS", value_parser = Source::parse, conflicts_with = "directory")]
    addresses: Vec<Source>,
}

impl Watched {
    /// Asks each service; which there are is looked up each time, as they come and go.
    pub(crate) fn read(&self) -> Result<Vec<Reading>, String> {
        if !self.addresses.is_empty() {
            return Ok(read_all(&self.addresses));
        }
        sources(self.directory.as_deref()).map(|sources| read_all(&sources))
    }
}

/// Seconds since 1970.
pub(crate) fn wall_clock() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Options of `postkeep status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status, as monitoring systems expect it of a plug-in: 0 when all is well, 1 for a warning (tables that cannot\n\
be opened, errors, descriptors or threads nearly used up), 2 when a service does not answer or there is none.")]
pub(crate) struct Options {
    #[command(flatten)]
    watched: Watched,
    /// Seconds for which requests and errors are counted
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the first line only
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    let (text, health) = match look(&options.watched, Duration::from_secs(options.interval)) {
        Ok(view) => (describe(&view, options), view.health().0),
        Err(reason) if options.json => (
            format!(
                "{:#}\n",
                json!({"health": Health::Critical.word(), "remarks": [reason], "services": [], "silent": []})
            ),
            Health::Critical,
        ),
        Err(reason) => (format!("CRITICAL: {reason}\n"), Health::Critical),
    };
    // Whoever closed the pipe has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(match health {
        Health::Well => 0,
        Health::Warning => 1,
        Health::Critical => 2,
    })
}

/// Two readings, and what they say.
pub(crate) fn look(watched: &Watched, interval: Duration) -> Result<View, String> {
    let before = watched.read()?;
    thread::sleep(interval);
    let after = watched.read()?;
    Ok(View::new(&before, &after, wall_clock()))
}

fn describe(view: &View, options: &Options) -> String {
    if options.json {
        return format!("{:#}\n", view.to_json());
    }
    let (health, remarks) = view.health();
    let mut text = format!("{}: ", health.word().to_uppercase());
    if remarks.is_empty() {
        let names: Vec<&str> = view
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        text.push_str(&names.join(", "));
    } else {
        text.push_str(&remarks.join("; "));
    }
    text.push('\n');
    if !options.quiet {
        text.push('\n');
        text.push_str(&plain(view, Order::Rate, 100));
    }
    text
}
