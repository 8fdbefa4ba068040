//! `postkeep serve`: the services without Postfix, with nothing to configure.
//!
//! On its first start it makes its directory: a main.cf, an empty tables directory and the sockets. Each
//! `NAME.lmdb` in the tables directory can be read through proxymap as `lmdb:DIR/tables/NAME`; the one called
//! `cache` can also be written through proxywrite. A table that appears or goes is noticed within a second.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments of options are the help texts"
)]

mod directory;
mod log;
mod main_cf;
mod manager;
mod sessions;

pub(crate) use directory::{CACHE, Directory};

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use postkeep_master::{Health, Layout, MasterError, Owner, Service, Settings, Site};
use postkeep_sys::descriptor::Inherited;

use self::log::ServeLog;
use self::manager::Supervision;
use self::sessions::{Restored, Sessions};

/// Options of `postkeep serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
The process stays in the foreground. SIGHUP makes it read the configuration again and replace the\n\
services without refusing a client; SIGTERM or SIGINT (control-C) ends it.\n\n\
Nothing needs to be configured. What can be is in main.cf in the directory; see postkeep-serve(1).")]
pub(crate) struct Options {
    /// Where everything is kept: main.cf, tables, sockets
    ///
    /// Default: $XDG_STATE_HOME/postkeep, else ~/.local/state/postkeep; for root /var/lib/postkeep.
    #[arg(long, short = 'd', value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Append the log to this file too (it always goes to standard error)
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// When started by root: the user that the services become, unless main.cf says so already
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Log more
    #[arg(long, short, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Runs `postkeep serve` to its end.
pub(crate) fn run(options: &Options) -> ExitCode {
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "postkeep: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), String> {
    // Before anything is opened.
    let mut passed = manager::passed(&mut Inherited::survey())?;
    let supervision = Supervision::from_environment()?;
    let directory = Directory::choose(options.directory.as_deref())?;
    prepare(&directory, options.user.as_deref())?;
    let configured = main_cf::Configured::read(&directory)?;
    let owner = configured.owner();
    for path in [directory.tables(), directory.data()] {
        create_directory(&path, owner)?;
    }
    let host_name = host_name();
    let log = ServeLog::install(&host_name, options.log_file.as_deref(), options.verbose > 0)
        .map_err(|error| format!("cannot open the log file: {error}"))?;
    let settings = Settings {
        executable: std::env::current_exe()
            .map_err(|error| format!("cannot find my executable: {error}"))?,
        layout: Layout {
            config_directory: directory.path().to_owned(),
            queue_directory: configured.queue_directory.clone(),
            owner,
        },
        verbosity: options.verbose,
        host_name,
        heartbeat: supervision.heartbeat(),
    };
    let leftovers = SERVICES.map(|service| settings.layout.socket(&metrics_socket(service)));
    let sessions = Sessions::find(&directory, owner, &mut passed)?;
    let passed = manager::by_service(passed);
    let mut site = Tables {
        directory,
        log,
        known: Vec::new(),
        restored: sessions.restored,
        socketmap_was_passed: passed.iter().any(|passed| passed.name == SOCKETMAP),
        supervision,
        welcomed: false,
    };
    let result = postkeep_master::run(&settings, passed, &mut site);
    if result.is_ok()
        && let Some(keeping) = sessions.keeping
    {
        keeping.keep();
    }
    if !matches!(result, Err(MasterError::Running { .. })) {
        for socket in leftovers {
            // Most likely it is there; services leave theirs for the next process to replace.
            let _ = fs::remove_file(socket);
        }
    }
    result.map_err(|error| match error {
        MasterError::Running { .. } => {
            format!("{error} (one `postkeep serve` at a time can use a directory)")
        }
        error => error.to_string(),
    })
}

/// The services, by name; the last one only where it is asked for.
const SERVICES: [&str; 4] = ["scache", "proxymap", "proxywrite", SOCKETMAP];
const SOCKETMAP: &str = "socketmap";

/// Name of the socket at which a service hands out metrics, beside the one at which it serves.
fn metrics_socket(service: &str) -> String {
    format!("{service}.metrics")
}

/// Makes the directory and its main.cf on the first start.
fn prepare(directory: &Directory, user: Option<&str>) -> Result<(), String> {
    create_directory(directory.path(), None)?;
    let path = directory.main_cf();
    if path.exists() {
        return Ok(());
    }
    let text = main_cf::first(directory, user)?;
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(&text)?;
        // Who reads a file that has just been changed waits until it is a second old. This one is complete.
        file.set_modified(SystemTime::now() - Duration::from_secs(5))
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn create_directory(path: &Path, owner: Option<Owner>) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| match owner {
            Some(Owner { user, group }) => chown(path, Some(user), Some(group)),
            None => Ok(()),
        })
        .map_err(|error| format!("cannot create {}: {error}", path.display()))
}

/// First label of the host name, as log records have it.
fn host_name() -> String {
    let name = postkeep_sys::process::host_name().unwrap_or_else(|_| OsString::from("localhost"));
    let name = name.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The services of one directory, with the tables that are in it.
struct Tables {
    directory: Directory,
    log: &'static ServeLog,
    /// The tables when the services were started last.
    known: Vec<OsString>,
    /// Sessions from the service manager, for the connection cache that starts first.
    restored: Option<Restored>,
    /// The service manager has the sockets of the socketmap service, so it is wanted.
    socketmap_was_passed: bool,
    supervision: Supervision,
    /// Whoever started us has been told what there is.
    welcomed: bool,
}

impl Site for Tables {
    fn services(&mut self) -> Result<Vec<Service>, String> {
        if let Some(restored) = self.restored.take() {
            // A thread that is started here gets no signals.
            let _ = std::thread::Builder::new().spawn(move || restored.hand_over());
        }
        self.known = self.directory.list_tables().map_err(|error| {
            format!("cannot list {}: {error}", self.directory.tables().display())
        })?;
        let lists = [
            list_option("postkeep_readable_tables", &self.known),
            list_option("postkeep_writable_tables", &[self.directory.table(CACHE)]),
        ];
        let service = |name: &str, program: &str, arguments: Vec<OsString>| Service {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            addresses: Vec::new(),
        };
        let table_arguments: Vec<OsString> = lists
            .into_iter()
            .flat_map(|list| [OsString::from("-o"), list])
            .collect();
        let mut services = vec![
            service("scache", "scache", Vec::new()),
            service("proxymap", "proxymap", table_arguments.clone()),
            service("proxywrite", "proxymap", table_arguments),
        ];
        let configured = main_cf::Configured::read(&self.directory)?;
        if self.socketmap_was_passed || !configured.socketmap.is_empty() {
            let mut socketmap = service(SOCKETMAP, SOCKETMAP, Vec::new());
            socketmap.addresses = configured.socketmap;
            services.push(socketmap);
        }
        if !configured.privilege_is_set {
            let mut on = OsString::from(main_cf::LEAST_PRIVILEGE);
            on.push("=yes");
            for service in &mut services {
                service.arguments.extend([OsString::from("-o"), on.clone()]);
            }
        }
        Ok(services)
    }

    fn stale(&mut self) -> bool {
        self.directory
            .list_tables()
            .is_ok_and(|tables| tables != self.known)
    }

    fn ready(&mut self, layout: &Layout) {
        self.supervision.ready();
        if std::mem::replace(&mut self.welcomed, true) {
            return;
        }
        // Whoever closed standard output does not want to know.
        let _ = io::stdout().write_all(self.welcome(layout).as_bytes());
        let _ = io::stdout().flush();
    }

    fn reloading(&mut self) {
        self.supervision.reloading();
    }

    fn stopping(&mut self) {
        self.supervision.stopping();
    }

    fn turn(&mut self, health: &Health, now: Instant) -> Option<Instant> {
        self.supervision.turn(health, now)
    }

    fn record(&mut self, line: &str) {
        self.log.write(line);
    }
}

impl Tables {
    fn welcome(&self, layout: &Layout) -> String {
        let option = match Directory::choose(None) {
            Ok(default) if default == self.directory => String::new(),
            _ => format!(" -d {}", self.directory.path().display()),
        };
        format!(
            "postkeep serves {directory}\n\
             \x20 connection cache  {scache}\n\
             \x20 table lookups     {proxymap}\n\
             \x20 table updates     {proxywrite}\n\
             \x20 tables            {tables}/NAME.lmdb; `{CACHE}` can also be written\n\
             Try in another terminal:\n\
             \x20 postkeep proxymap update{option} {CACHE} color blue\n\
             \x20 postkeep proxymap lookup{option} {CACHE} color\n\
             \x20 postkeep scache save-endpoint{option} --connect localhost:25 mail\n\
             \x20 postkeep scache find-endpoint{option} mail\n",
            directory = self.directory.path().display(),
            scache = layout.socket("scache").display(),
            proxymap = layout.socket("proxymap").display(),
            proxywrite = layout.socket("proxywrite").display(),
            tables = self.directory.tables().display(),
        )
    }
}

/// `NAME=proxy:TABLE proxy:TABLE …` as an argument of `-o`.
fn list_option(name: &str, tables: &[OsString]) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    for (index, table) in tables.iter().enumerate() {
        text.push(if index == 0 { "proxy:" } else { " proxy:" });
        text.push(main_cf::literal(table));
    }
    text
}
