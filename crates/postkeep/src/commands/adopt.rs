//! `postkeep adopt`: has an installed Postfix start our daemons in the place of its own.
//!
//! Nothing of Postfix's files is touched but master.cf, and there only the commands of the entries that start
//! scache and proxymap: they become paths that lead out of the daemon directory to links named `scache` and
//! `proxymap`. What is changed is recorded first, see [`record`]; whatever goes wrong afterwards, the record is
//! enough to take everything back.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments of options are the help texts"
)]

pub(crate) mod installation;
mod obstacles;
pub(crate) mod record;
pub(crate) mod uses;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use postkeep_conf::master_cf::{Entry, Transport};
use postkeep_sys::{effective, error_text};

use self::installation::{Installation, command_of, package_trouble};
use self::obstacles::{dry_start, read_only, unsettled, unsupported_tables, untrusted};
use self::record::{Changed, Phase, Record, Shelf, Slot};
use self::watch::{LogTail, Looked, is_client_trouble, is_trouble};
use super::release;

/// Where a package keeps the links.
const PACKAGE_LINKS: &str = "/usr/libexec/postkeep";

/// Clients of the daemons that were replaced may say so for this long.
const GRACE: Duration = Duration::from_secs(2);

/// How many tables of a list are tried before and after.
const TRIED_TABLES: usize = 50;

/// A daemon of Postfix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Daemon {
    /// The connection cache
    Scache,
    /// The lookup table server, also as proxywrite
    Proxymap,
}

impl Daemon {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Scache, Self::Proxymap];

    /// The command in master.cf.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scache => "scache",
            Self::Proxymap => "proxymap",
        }
    }
}

/// Which Postfix.
#[derive(Args, Clone, Debug)]
pub(crate) struct Instance {
    /// Configuration directory of the Postfix, as of Postfix's own commands
    ///
    /// Default: $MAIL_CONFIG, else /etc/postfix.
    #[arg(short = 'c', long = "config", value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
    /// Where records of what was changed are kept
    ///
    /// Default: /var/lib/postkeep/adopted
    #[arg(long, value_name = "DIR")]
    pub(crate) state_directory: Option<PathBuf>,
}

/// Options of `postkeep adopt`.
#[derive(Args, Debug)]
#[command(after_help = "\
Looks at everything first and changes nothing when something is in the way. `postkeep release` takes it back.")]
pub(crate) struct Options {
    #[command(flatten)]
    instance: Instance,
    /// Say what would be changed, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Take over only this daemon
    #[arg(long, value_name = "DAEMON")]
    only: Option<Daemon>,
    /// How long to watch the log after the reload
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    watch: u16,
    /// The executable that the daemons are links to (default: this one)
    #[arg(long, value_name = "FILE")]
    executable: Option<PathBuf>,
}

/// Prints a line; there is nobody to tell when that fails.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout(), "{}", text.as_ref());
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    match adopt(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reasons) => {
            let mut stderr = io::stderr();
            for reason in reasons {
                let _ = writeln!(stderr, "postkeep: {reason}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What will be done.
struct Plan {
    installation: Installation,
    executable: PathBuf,
    /// Where master(8) finds the daemons; ours to make unless a package has made it.
    links: PathBuf,
    packaged: bool,
    slot: Slot,
    /// The entries to change, and to what.
    changes: Vec<(Entry, Changed)>,
    running: bool,
}

fn adopt(options: &Options) -> Result<(), Vec<String>> {
    let one = |reason: String| vec![reason];
    let unchanged = "Nothing was changed.";
    let installation = Installation::inspect(options.instance.config.as_deref())
        .map_err(|reason| vec![reason, unchanged.to_owned()])?;
    let state = options.instance.state_directory.as_deref();
    if !options.dry_run && effective::identity().0 != 0 {
        return Err(vec![
            "this takes root: it writes master.cf and reloads Postfix (--dry-run does not)"
                .to_owned(),
        ]);
    }
    let shelf = if options.dry_run {
        Shelf::peek(state)
    } else {
        Shelf::open(state).map_err(|reason| vec![reason, unchanged.to_owned()])?
    };
    let slot = shelf.slot(&installation.config_directory);
    if let Some(record) = slot.read().map_err(one)? {
        let config = installation.config_directory.display();
        if record.phase == Phase::Changing {
            return Err(vec![format!(
                "an earlier adoption of {config} did not come to its end: run postkeep release first"
            )]);
        }
        say(format!(
            "{config} is adopted already, with {}. postkeep doctor looks after it, postkeep release takes it back.",
            record.executable.display()
        ));
        return Ok(());
    }
    let plan = match plan(options, installation, slot) {
        Ok(plan) => plan,
        Err(mut reasons) => {
            reasons.push(unchanged.to_owned());
            return Err(reasons);
        }
    };
    plan.tell();
    if options.dry_run {
        say("This was a dry run: nothing was changed.");
        return Ok(());
    }
    let record = Record {
        phase: Phase::Changing,
        config_directory: plan.installation.config_directory.clone(),
        executable: plan.executable.clone(),
        version: plan.installation.version.clone(),
        entries: plan
            .changes
            .iter()
            .map(|(_, changed)| changed.clone())
            .collect(),
    };
    let mut log = LogTail::from_now(&plan.installation);
    plan.execute(record, &mut log, Duration::from_secs(options.watch.into()))
        .map_err(|reason| {
            let mut reasons = vec![reason];
            match release::take_back(&plan.installation, &plan.slot, false) {
                Ok(_) => reasons.push("Everything was put back as it was.".to_owned()),
                Err(error) => reasons.push(format!(
                    "putting everything back failed: {error}; try postkeep release"
                )),
            }
            reasons
        })
}

/// Looks at everything that could be in the way.
fn plan(options: &Options, installation: Installation, slot: Slot) -> Result<Plan, Vec<String>> {
    let mut reasons = Vec::new();
    if installation.release.is_none() {
        reasons.push(format!(
            "this is Postfix {}: only 3.0 to 3.12 are supported",
            installation.version
        ));
    }
    let master_cf = installation.master_cf();
    let daemon_directory = installation.directory("daemon_directory");
    let daemon_directory = fs::canonicalize(&daemon_directory).unwrap_or(daemon_directory);
    reasons.extend(package_trouble(&daemon_directory.join("master")));
    reasons.extend(unsettled(&master_cf));
    if !options.dry_run {
        reasons.extend(read_only(&installation.config_directory));
    }
    let executable = options
        .executable
        .clone()
        .map_or_else(std::env::current_exe, Ok);
    let executable = match executable.and_then(fs::canonicalize) {
        Ok(executable) => executable,
        Err(error) => {
            reasons.push(format!(
                "cannot find the executable: {}",
                error_text(&error)
            ));
            return Err(reasons);
        }
    };
    reasons.extend(untrusted(&executable));
    let packaged = Daemon::ALL.iter().all(|daemon| {
        fs::canonicalize(Path::new(PACKAGE_LINKS).join(daemon.name()))
            .is_ok_and(|target| target == executable)
    });
    let links = if packaged {
        PathBuf::from(PACKAGE_LINKS)
    } else {
        std::path::absolute(slot.links()).unwrap_or_else(|_| slot.links().to_owned())
    };
    let entries = match installation.entries() {
        Ok(entries) => entries,
        Err(fault) => {
            reasons.push(format!(
                "Postfix would not start with this master.cf: {fault}"
            ));
            return Err(reasons);
        }
    };
    // postconf has an opinion of its own, and is what will edit the file.
    if let Err(fault) = installation.postconf(&["-M"]) {
        reasons.push(format!("postconf refuses master.cf: {fault}"));
        return Err(reasons);
    }
    let wanted = |entry: &Entry| {
        Daemon::ALL.into_iter().any(|daemon| {
            entry.command == daemon.name().as_bytes()
                && options.only.is_none_or(|only| only == daemon)
        })
    };
    let mut changes = Vec::new();
    for entry in entries.into_iter().filter(wanted) {
        match change_of(&entry, &daemon_directory, &links) {
            Ok(changed) => changes.push((entry, changed)),
            Err(reason) => reasons.push(reason),
        }
    }
    if changes.is_empty() && reasons.is_empty() {
        reasons.push(format!(
            "no entry of {} starts scache or proxymap",
            master_cf.display()
        ));
    }
    if options.only != Some(Daemon::Scache) {
        reasons.extend(unsupported_tables(&installation));
    }
    if reasons.is_empty() {
        for (entry, changed) in &changes {
            reasons.extend(dry_start(
                &installation,
                &executable,
                entry,
                &changed.before,
            ));
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let running = installation.is_running();
    Ok(Plan {
        installation,
        executable,
        links,
        packaged,
        slot,
        changes,
        running,
    })
}

fn change_of(entry: &Entry, daemon_directory: &Path, links: &Path) -> Result<Changed, String> {
    let name = String::from_utf8_lossy(&entry.name);
    let before = String::from_utf8_lossy(&entry.command).into_owned();
    Ok(Changed {
        key: format!("{name}/{}", entry.transport.name()),
        after: command_of(daemon_directory, &links.join(&before))?,
        before,
    })
}

impl Plan {
    /// Says what will be done and why.
    fn tell(&self) {
        let installation = &self.installation;
        let config = installation.config_directory.display();
        let dialect = if installation.announces() {
            "clients are greeted"
        } else {
            "clients are not greeted"
        };
        say(format!(
            "Postfix {} in {config}, {}; {dialect}.",
            installation.version,
            if self.running {
                "running"
            } else {
                "not running"
            }
        ));
        for list in ["proxy_read_maps", "proxy_write_maps"] {
            let approved = uses::approved(installation, list);
            let mut kinds: Vec<_> = approved
                .sorted()
                .into_iter()
                .map(|table| {
                    String::from_utf8_lossy(
                        table.split(|&byte| byte == b':').next().unwrap_or_default(),
                    )
                    .into_owned()
                })
                .collect();
            kinds.dedup();
            if !kinds.is_empty() {
                say(format!(
                    "{list} approves {}; types that are all supported: {}.",
                    approved.len(),
                    kinds.join(", ")
                ));
            }
        }
        say("To be done:");
        if self.packaged {
            say(format!(
                "- use the links of the package in {}",
                self.links.display()
            ));
        } else {
            say(format!(
                "- make links to {} in {}, as the name tells the executable what to be",
                self.executable.display(),
                self.links.display()
            ));
        }
        say(format!(
            "- keep a copy of {} in {}, for postkeep release",
            installation.master_cf().display(),
            self.slot.links().display()
        ));
        for (entry, changed) in &self.changes {
            let root = if entry.chroot {
                ", in its chroot as before"
            } else {
                ""
            };
            say(format!(
                "- in master.cf line {}, {}: start {} instead of {}{root}",
                entry.line, changed.key, changed.after, changed.before
            ));
        }
        say(
            "- have the services say what they do in private/NAME.metrics of the queue directory, for postkeep top",
        );
        say("- postfix check, so that nothing is loaded that Postfix refuses");
        if self.running {
            say("- postfix reload, ask each service, watch the log; in case of trouble, back");
        }
    }

    fn execute(&self, record: Record, log: &mut LogTail, watch: Duration) -> Result<(), String> {
        let mut record = record;
        let known = if self.running {
            self.looks()
        } else {
            BTreeMap::new()
        };
        let master_cf = self.installation.master_cf();
        self.slot.begin(&record, &master_cf)?;
        if !self.packaged {
            for daemon in Daemon::ALL {
                let link = self.links.join(daemon.name());
                symlink(&self.executable, &link)
                    .map_err(|error| format!("{}: {}", link.display(), error_text(&error)))?;
            }
        }
        for (_, changed) in &self.changes {
            set_command(&self.installation, &changed.key, &changed.after)?;
        }
        self.compare()?;
        record::copy(&master_cf, &self.slot.after())?;
        let checked = self.installation.postfix("check")?;
        if !checked.status.success() {
            return Err(format!("postfix check: {}", checked.complaint()));
        }
        record.phase = Phase::Watching;
        self.slot.write(&record)?;
        if self.running {
            let reloaded = self.installation.postfix("reload")?;
            if !reloaded.status.success() {
                return Err(format!("postfix reload: {}", reloaded.complaint()));
            }
            self.watch(log, watch, &known)?;
        }
        record.phase = Phase::Adopted;
        self.slot.write(&record)?;
        say(if self.running {
            "Done: the services answer. postkeep top shows what they do, postkeep release takes it back."
        } else {
            "Done; it takes effect when Postfix is started. postkeep release takes it back."
        });
        Ok(())
    }

    /// Nothing but the commands may have changed.
    fn compare(&self) -> Result<(), String> {
        let before = fs::read(self.slot.before()).map_err(|error| error_text(&error))?;
        let strip = |mut entry: Entry| {
            entry.line = 0;
            entry
        };
        let mut wanted: Vec<Entry> = self
            .installation
            .parse_entries(&before)?
            .into_iter()
            .map(strip)
            .collect();
        for entry in &mut wanted {
            let key = |changed: &Changed| {
                changed.key.as_bytes()
                    == [&entry.name[..], b"/", entry.transport.name().as_bytes()].concat()
            };
            if let Some((_, changed)) = self.changes.iter().find(|(_, changed)| key(changed)) {
                entry.command = changed.after.clone().into_bytes();
            }
        }
        let found: Vec<Entry> = self
            .installation
            .entries()?
            .into_iter()
            .map(strip)
            .collect();
        let same = |found: &Entry, wanted: &Entry| {
            let words = |entry: &Entry| -> Vec<Vec<u8>> {
                entry
                    .arguments
                    .iter()
                    .map(|word| without_blanks(word))
                    .collect()
            };
            let bare = |entry: &Entry| Entry {
                arguments: Vec::new(),
                ..entry.clone()
            };
            bare(found) == bare(wanted) && words(found) == words(wanted)
        };
        if found.len() == wanted.len() && found.iter().zip(&wanted).all(|(a, b)| same(a, b)) {
            Ok(())
        } else {
            Err("postconf changed more in master.cf than it was told to".to_owned())
        }
    }

    /// What a lookup in each approved table gives at this moment, as far as the services answer.
    fn looks(&self) -> BTreeMap<(String, String), Looked> {
        let mut found = BTreeMap::new();
        for (entry, changed) in &self.changes {
            if changed.before != Daemon::Proxymap.name() || entry.transport != Transport::Unix {
                continue;
            }
            let endpoint = String::from_utf8_lossy(&entry.endpoint).into_owned();
            let approved = uses::approved(&self.installation, self.list_of(entry));
            for table in approved.sorted().into_iter().take(TRIED_TABLES) {
                let table = String::from_utf8_lossy(table).into_owned();
                let Ok(looked) = watch::ask_table(&self.installation, &endpoint, &table) else {
                    break;
                };
                found.insert((endpoint.clone(), table), looked);
            }
        }
        found
    }

    fn list_of(&self, entry: &Entry) -> &'static str {
        if entry.name
            == self
                .installation
                .value("proxywrite_service_name")
                .as_bytes()
        {
            "proxy_write_maps"
        } else {
            "proxy_read_maps"
        }
    }

    /// - `known`: what [`Self::looks`] found before
    fn watch(
        &self,
        log: &mut LogTail,
        watch: Duration,
        known: &BTreeMap<(String, String), Looked>,
    ) -> Result<(), String> {
        let start = Instant::now();
        if !log.is_somewhere() {
            say(
                "There is no log to watch: neither maillog_file, nor one of syslog, nor a journal.",
            );
        }
        let tag = self.installation.value("syslog_name").to_owned();
        let commands: Vec<String> = self
            .changes
            .iter()
            .map(|(_, changed)| changed.after.clone())
            .collect();
        let mut look = |asked: Result<(), String>| -> Result<(), String> {
            let early = start.elapsed() < GRACE;
            let trouble: Vec<String> = log
                .new_lines()
                .into_iter()
                .filter(|line| is_trouble(line, &tag, &commands))
                .filter(|line| !(early && is_client_trouble(line)))
                .take(5)
                .collect();
            match (asked, trouble.is_empty()) {
                (Ok(()), true) => Ok(()),
                (Ok(()), false) => Err(format!("the log says:\n  {}", trouble.join("\n  "))),
                (Err(error), true) => Err(error),
                (Err(error), false) => Err(format!(
                    "{error}; the log says:\n  {}",
                    trouble.join("\n  ")
                )),
            }
        };
        for (entry, _) in &self.changes {
            // A process that is being replaced may have taken the connection, and not answer any more.
            let asked = loop {
                match self.ask(entry) {
                    Err(_) if start.elapsed() < GRACE => thread::sleep(Duration::from_millis(100)),
                    asked => break asked,
                }
            };
            look(asked)?;
        }
        let now = self.looks();
        for (key @ (_, table), before) in known {
            if *before == Looked::Answered && now.get(key) != Some(before) {
                look(Err(format!(
                    "lookups in {table} worked with Postfix's proxymap, and do not with this one"
                )))?;
            }
        }
        let deadline = start + watch;
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(250));
            look(Ok(()))?;
        }
        Ok(())
    }

    fn ask(&self, entry: &Entry) -> Result<(), String> {
        let installation = &self.installation;
        if entry.transport != Transport::Unix {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&entry.name);
        let endpoint = String::from_utf8_lossy(&entry.endpoint);
        let outcome = if entry.command == b"scache" {
            watch::ask_scache(installation, &endpoint)
        } else {
            match uses::approved(installation, self.list_of(entry))
                .sorted()
                .first()
            {
                Some(table) => {
                    watch::ask_table(installation, &endpoint, &String::from_utf8_lossy(table))
                        .map(drop)
                }
                None => watch::hear_greeting(installation, &endpoint),
            }
        };
        outcome.map_err(|error| format!("the service {name} does not answer: {error}"))
    }
}

/// postconf writes `{ a = b }` as `{a=b}`.
fn without_blanks(word: &[u8]) -> Vec<u8> {
    word.iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect()
}

/// Has an entry of master.cf start another command with the arguments that it has.
///
/// # Errors
/// postconf refuses.
pub(crate) fn set_command(
    installation: &Installation,
    key: &str,
    command: &str,
) -> Result<(), String> {
    let field = format!("{key}/command");
    let now = installation.assignments(&["-F", &field])?;
    let [(_, now)] = &now[..] else {
        return Err(format!(
            "postconf finds {} entries {key} in master.cf",
            now.len()
        ));
    };
    // To postconf the arguments are part of the field.
    let arguments = now.split_once(' ').map_or("", |(_, arguments)| arguments);
    let value = format!("{field}={command} {arguments}");
    installation.postconf(&["-F", value.trim_end()]).map(drop)
}
