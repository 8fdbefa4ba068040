//! `postkeep doctor`: what is wrong with a Postfix as far as our daemons are concerned, where, and the command that
//! mends it. It changes nothing.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments of options are the help texts"
)]

mod access;
mod tables;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use postkeep_conf::master_cf::Entry;
use postkeep_sys::effective;
use serde_json::json;

use self::access::User;
use super::adopt::installation::{Installation, package_trouble, shell};
use super::adopt::record::{Phase, Record, Shelf};
use super::adopt::uses::{approved, uses};
use super::adopt::watch::{self, LogTail, Looked};
use super::adopt::{Daemon, Instance};

/// Options of `postkeep doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: 0 when nothing is wrong, 1 when there is advice, 2 when something does not work.")]
pub(crate) struct Options {
    #[command(flatten)]
    instance: Instance,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// How bad a finding is; the numbers are the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Advice = 1,
    Broken = 2,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Advice => "advice",
            Self::Broken => "broken",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug)]
struct Finding {
    level: Level,
    what: String,
    file: Option<PathBuf>,
    line: Option<usize>,
    parameter: Option<String>,
    /// Commands for a shell.
    fix: Vec<String>,
}

impl Finding {
    fn new(level: Level, what: impl Into<String>) -> Self {
        Self {
            level,
            what: what.into(),
            file: None,
            line: None,
            parameter: None,
            fix: Vec::new(),
        }
    }

    fn at(mut self, file: impl Into<PathBuf>, line: Option<usize>) -> Self {
        self.file = Some(file.into());
        self.line = line;
        self
    }

    fn parameter(mut self, name: &str) -> Self {
        self.parameter = Some(name.to_owned());
        self
    }

    fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix.push(command.into());
        self
    }

    fn place(&self) -> String {
        let mut place = self
            .file
            .as_ref()
            .map_or_else(String::new, |file| file.display().to_string());
        if let Some(line) = self.line {
            let _ = write!(place, ", line {line}");
        }
        if let Some(parameter) = &self.parameter {
            if !place.is_empty() {
                place.push_str(", ");
            }
            place.push_str(parameter);
        }
        place
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    let findings = match Installation::inspect(options.instance.config.as_deref()) {
        Ok(installation) => Examination::new(installation, &options.instance).findings(),
        Err(reason) => vec![Finding::new(Level::Broken, reason)],
    };
    let status = findings
        .iter()
        .map(|finding| finding.level as u8)
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    if options.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "level": finding.level.word(),
                    "what": finding.what,
                    "file": finding.file.as_ref().map(|file| file.to_string_lossy()),
                    "line": finding.line,
                    "parameter": finding.parameter,
                    "fix": finding.fix,
                })
            })
            .collect();
        text = format!("{:#}\n", json!({"status": status, "findings": list}));
    } else if findings.is_empty() {
        text.push_str("Nothing is wrong.\n");
    } else {
        for finding in &findings {
            let _ = writeln!(text, "{}: {}", finding.level.word(), finding.what);
            let place = finding.place();
            if !place.is_empty() {
                let _ = writeln!(text, "    where: {place}");
            }
            for command in &finding.fix {
                let _ = writeln!(text, "    fix:   {command}");
            }
        }
    }
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(status)
}

/// What is being looked at.
struct Examination {
    installation: Installation,
    record: Result<Option<Record>, String>,
    /// `-c DIR` for commands to copy.
    config: String,
    owner: Option<User>,
    found: Vec<Finding>,
}

impl Examination {
    fn new(installation: Installation, instance: &Instance) -> Self {
        let shelf = Shelf::peek(instance.state_directory.as_deref());
        let record = shelf.slot(&installation.config_directory).read();
        Self {
            config: installation.config_directory.to_string_lossy().into_owned(),
            record,
            owner: User::named(installation.value("mail_owner")),
            installation,
            found: Vec::new(),
        }
    }

    fn findings(mut self) -> Vec<Finding> {
        self.version();
        let entries = self.entries();
        self.adoption(&entries);
        self.ownership();
        match uses(&self.installation) {
            Ok(uses) => {
                for table in &uses {
                    self.table(table);
                }
                self.library(&uses);
            }
            Err(reason) => {
                let main_cf = self.main_cf();
                self.found
                    .push(Finding::new(Level::Broken, reason).at(main_cf, None));
            }
        }
        if self.installation.is_running() {
            self.services(&entries);
            self.log();
        }
        self.found
            .sort_by_key(|finding| std::cmp::Reverse(finding.level));
        self.found
    }

    fn main_cf(&self) -> PathBuf {
        self.installation.config_directory.join("main.cf")
    }

    fn is_adopted(&self) -> bool {
        matches!(&self.record, Ok(Some(_)))
    }

    fn version(&mut self) {
        if self.installation.release.is_none() {
            let what = format!(
                "this is Postfix {}: only 3.0 to 3.12 are supported",
                self.installation.version
            );
            self.found.push(Finding::new(Level::Broken, what));
        }
        let master = self
            .installation
            .directory("daemon_directory")
            .join("master");
        if let Some(what) = package_trouble(&master) {
            self.found.push(Finding::new(Level::Advice, what));
        }
    }

    fn entries(&mut self) -> Vec<Entry> {
        let master_cf = self.installation.master_cf();
        match self.installation.entries() {
            Ok(entries) => entries,
            Err(fault) => {
                let line = fault
                    .split_once("line ")
                    .and_then(|(_, rest)| rest.split(':').next()?.parse().ok());
                self.found.push(
                    Finding::new(
                        Level::Broken,
                        format!("Postfix would not start with this master.cf: {fault}"),
                    )
                    .at(master_cf, line),
                );
                Vec::new()
            }
        }
    }

    fn adoption(&mut self, entries: &[Entry]) {
        let release = shell(&["postkeep", "release", "-c", &self.config]);
        let adopt = shell(&["postkeep", "adopt", "-c", &self.config]);
        let master_cf = self.installation.master_cf();
        let record = match self.record.clone() {
            Ok(record) => record,
            Err(reason) => return self.found.push(Finding::new(Level::Broken, reason)),
        };
        let Some(record) = record else {
            for entry in entries.iter().filter(|entry| is_ours(entry)) {
                let name = String::from_utf8_lossy(&entry.name);
                let what = format!("{name} starts postkeep, but there is no record of an adoption");
                self.found
                    .push(Finding::new(Level::Advice, what).at(&master_cf, Some(entry.line)));
            }
            return;
        };
        if record.phase == Phase::Changing {
            self.found.push(
                Finding::new(Level::Broken, "an adoption did not come to its end").fix(release),
            );
            return;
        }
        for changed in &record.entries {
            let entry = entries.iter().find(|entry| {
                changed.key.as_bytes()
                    == [&entry.name[..], b"/", entry.transport.name().as_bytes()].concat()
            });
            match entry {
                Some(entry) if entry.command == changed.after.as_bytes() => {
                    let program = self
                        .installation
                        .directory("daemon_directory")
                        .join(&changed.after);
                    if fs::metadata(&program).is_err() {
                        let what = format!(
                            "{} starts {}, which is not there",
                            changed.key,
                            program.display()
                        );
                        self.found.push(
                            Finding::new(Level::Broken, what)
                                .at(&master_cf, Some(entry.line))
                                .fix(&release),
                        );
                    }
                }
                Some(entry) => self.found.push(
                    Finding::new(
                        Level::Advice,
                        format!(
                            "{} was adopted, but starts {} again",
                            changed.key,
                            String::from_utf8_lossy(&entry.command)
                        ),
                    )
                    .at(&master_cf, Some(entry.line))
                    .fix(&release)
                    .fix(&adopt),
                ),
                None => self.found.push(
                    Finding::new(
                        Level::Advice,
                        format!("{} was adopted, but is no longer in master.cf", changed.key),
                    )
                    .at(&master_cf, None)
                    .fix(&release),
                ),
            }
        }
        if self.installation.version != record.version {
            // Nothing to do: the daemons ask the running master.
            let known = self.installation.release.is_some();
            if !known {
                self.found.push(
                    Finding::new(
                        Level::Broken,
                        "Postfix was upgraded to a version that is not supported",
                    )
                    .fix(release),
                );
            }
        }
    }

    fn ownership(&mut self) {
        let mail_owner = self.installation.value("mail_owner").to_owned();
        let Some(owner) = self.owner.clone() else {
            let what = format!("there is no user {mail_owner}");
            let main_cf = self.main_cf();
            self.found.push(
                Finding::new(Level::Broken, what)
                    .at(main_cf, None)
                    .parameter("mail_owner"),
            );
            return;
        };
        let queue = self.installation.directory("queue_directory");
        let places = [
            (queue.join("private"), "queue_directory"),
            (queue.join("public"), "queue_directory"),
            (
                self.installation.directory("data_directory"),
                "data_directory",
            ),
        ];
        for (path, parameter) in places {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.uid() != owner.uid => {
                    let what = format!("{} does not belong to {mail_owner}", path.display());
                    let fix = shell(&["chown", &mail_owner, &path.to_string_lossy()]);
                    self.found.push(
                        Finding::new(Level::Broken, what)
                            .at(path, None)
                            .parameter(parameter)
                            .fix(fix),
                    );
                }
                Ok(metadata) if metadata.mode() & 0o002 != 0 => {
                    let what = format!("everybody can write in {}", path.display());
                    let fix = shell(&["chmod", "o-w", &path.to_string_lossy()]);
                    self.found
                        .push(Finding::new(Level::Broken, what).at(path, None).fix(fix));
                }
                Err(_) if !queue.exists() => {}
                // Made by `postfix check` on the first start.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let what = format!("{} is not there", path.display());
                    self.found.push(
                        Finding::new(Level::Advice, what)
                            .parameter(parameter)
                            .fix(shell(&["postfix", "-c", &self.config, "check"])),
                    );
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Asks the running services.
    fn services(&mut self, entries: &[Entry]) {
        if effective::identity().0 != 0 {
            self.found.push(Finding::new(
                Level::Advice,
                "the services were not asked: that takes root",
            ));
            return;
        }
        let master_cf = self.installation.master_cf();
        for entry in entries {
            let program = entry
                .command
                .rsplit(|&byte| byte == b'/')
                .next()
                .unwrap_or_default();
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let endpoint = String::from_utf8_lossy(&entry.endpoint).into_owned();
            let silent = |error: String| {
                Finding::new(
                    Level::Broken,
                    format!("the service {name} does not answer: {error}"),
                )
                .at(&master_cf, Some(entry.line))
            };
            if program == Daemon::Scache.name().as_bytes() {
                if let Err(error) = watch::ask_scache(&self.installation, &endpoint) {
                    self.found.push(silent(error));
                }
                continue;
            }
            if program != Daemon::Proxymap.name().as_bytes() {
                continue;
            }
            let writes = name == self.installation.value("proxywrite_service_name");
            let list = if writes {
                "proxy_write_maps"
            } else {
                "proxy_read_maps"
            };
            let mut retry = BTreeSet::new();
            for table in approved(&self.installation, list).sorted() {
                let table = String::from_utf8_lossy(table).into_owned();
                match watch::ask_table(&self.installation, &endpoint, &table) {
                    Ok(Looked::Answered) => {}
                    Ok(Looked::Retry) => {
                        retry.insert(table);
                    }
                    Ok(Looked::Denied) => {
                        let what = format!(
                            "the service {name} denies proxy:{table}, which {list} approves: it was not \
                             reloaded since"
                        );
                        self.found.push(
                            Finding::new(Level::Broken, what)
                                .parameter(list)
                                .fix(shell(&["postfix", "-c", &self.config, "reload"])),
                        );
                    }
                    Err(error) => {
                        self.found.push(silent(error));
                        break;
                    }
                }
            }
            for table in retry {
                let what = format!(
                    "clients that ask {name} for {table} are told to come again: the table cannot be \
                     opened or asked; the log says why"
                );
                self.found.push(
                    Finding::new(Level::Broken, what)
                        .parameter(list)
                        .fix(shell(&[
                            "postmap",
                            "-c",
                            &self.config,
                            "-q",
                            "test",
                            &table,
                        ])),
                );
            }
        }
    }

    /// What clients have said since Postfix was started or reloaded.
    fn log(&mut self) {
        let lines = LogTail::whole(&self.installation).new_lines();
        let since = lines
            .iter()
            .rposition(|line| {
                line.contains("/master[")
                    && (line.contains("daemon started") || line.contains("reload -- version"))
            })
            .unwrap_or(0);
        let stuck: Vec<_> = lines[since..]
            .iter()
            .filter(|line| watch::is_client_trouble(line))
            .collect();
        if let Some(last) = stuck.last() {
            let what = format!(
                "clients were in trouble {} times since the last reload; the last time: {last}",
                stuck.len()
            );
            self.found
                .push(Finding::new(Level::Advice, what).fix(shell(&[
                    "postfix",
                    "-c",
                    &self.config,
                    "reload",
                ])));
        }
    }
}

/// Does this entry lead out of the daemon directory to a program of ours?
fn is_ours(entry: &Entry) -> bool {
    entry.command.starts_with(b"../")
        && Daemon::ALL.iter().any(|daemon| {
            entry
                .command
                .ends_with(format!("/{}", daemon.name()).as_bytes())
        })
}
