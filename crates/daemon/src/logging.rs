//! Log records in Postfix's forms: to syslog, to postlogd(8), and to standard error.
//!
//! Code that warns uses the `log` facade and knows nothing of this module: `info!` is a plain line, `warn!`
//! has `warning: ` before it, `error!` has `error: `; `debug!` and `trace!` are plain lines that appear from
//! one and two `-v` on. What the facade has no word for is here: [`fatal`] and [`panic`](panic()).
//!
//! A daemon calls [`daemon`] first and [`configure`] once it has read main.cf; a command calls [`command`]
//! (and [`configure`]). Before that, records are lost and fatal texts go to standard error alone.
//!
//! The 13th `error` record of a process is followed by the fatal `too many errors - program terminated`.
//!
//! # References
//! Postfix `msg.c`, `msg_output.c`, `msg_syslog.c`, `msg_logger.c`, `maillog_client.c`, postlogd(8).

mod link;
mod record;

pub use record::{Facility, Severity};

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use postkeep_sys::environment;
use postkeep_sys::privilege;

use link::Link;

/// How long the process stays after its last words, so that a parent that restarts it does not spin.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The `error` record that ends the process.
const MAX_ERRORS: u32 = 13;
/// The syslog tag of a process that does not know its configuration.
const DEFAULT_TAG: &str = "postfix";
/// The host of a process that does not know its configuration.
const DEFAULT_HOST: &str = "amnesiac";
/// Names of environment variables.
const LOGTAG: &str = "MAIL_LOGTAG";
const POSTLOG_SERVICE: &str = "POSTLOG_SERVICE";
const POSTLOG_HOSTNAME: &str = "POSTLOG_HOSTNAME";

/// What main.cf says about logging.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `syslog_name`, with its expressions evaluated.
    pub syslog_name: String,
    /// `syslog_facility`.
    pub facility: Facility,
    /// Where postlogd listens, when `maillog_file` is set.
    pub postlog: Option<Postlog>,
    /// `smtputf8_enable`: valid UTF-8 is shown as it is.
    pub utf8: bool,
}

/// Where records go that postlogd writes.
#[derive(Clone, Debug)]
pub struct Postlog {
    /// `queue_directory`.
    pub queue_directory: PathBuf,
    /// `postlog_service_name`.
    pub service: String,
    /// `myhostname`; records show its first label.
    pub host: String,
}

enum Channel {
    Nowhere,
    Syslog { link: Link, facility: Facility },
    Postlog { link: Link, host: String },
}

struct State {
    /// Last component of the program's name.
    process: String,
    /// `TAG/PROCESS`.
    ident: String,
    channel: Channel,
    utf8: bool,
    /// The word before the colon on standard error, when records go there.
    stderr: Option<String>,
}

struct Logger {
    state: RwLock<State>,
    errors: AtomicU32,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let severity = match record.level() {
            log::Level::Error => Severity::Error,
            log::Level::Warn => Severity::Warning,
            log::Level::Info | log::Level::Debug | log::Level::Trace => Severity::Info,
        };
        self.write(severity, *record.args());
        if severity == Severity::Error
            && self.errors.fetch_add(1, Ordering::Relaxed) + 1 == MAX_ERRORS
        {
            fatal(format_args!("too many errors - program terminated"));
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn write(&self, severity: Severity, text: fmt::Arguments<'_>) {
        // First of all: what is formatted may itself panic, and that is logged too.
        let text = text.to_string();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let text = record::sanitise(&text, state.utf8);
        if let Some(tag) = &state.stderr {
            // One write, so that lines of several processes do not mix; a closed stream is not worth a record.
            let line = format!("{tag}: {}{text}\n", severity.prefix());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        let text = record::cut(&text);
        match &state.channel {
            Channel::Nowhere => {}
            Channel::Syslog { link, facility } => link.send(&record::syslog(
                SystemTime::now(),
                *facility,
                severity,
                &state.ident,
                std::process::id(),
                text,
            )),
            Channel::Postlog { link, host } => link.send(&record::postlog(
                SystemTime::now(),
                host,
                severity,
                &state.ident,
                std::process::id(),
                text,
            )),
        }
    }
}

/// Starts logging in a daemon: to the log channel, nothing to standard error.
///
/// `process` is the last component of `argv[0]`. The environment variables `MAIL_LOGTAG`, `POSTLOG_SERVICE`
/// and `POSTLOG_HOSTNAME` decide until [`configure`] is called; set-user-ID programs do not look at them.
/// Also installs a panic hook that logs `panic: ...` and aborts.
pub fn daemon(process: &str) {
    start(process, None);
}

/// Starts logging in a command: to the log channel, and to standard error as `COMMAND: warning: text`.
///
/// `argv0` is the command as typed; its last component is shown. Returns that component.
pub fn command(argv0: &OsStr) -> String {
    let name = Path::new(argv0)
        .file_name()
        .unwrap_or(argv0)
        .to_string_lossy()
        .into_owned();
    start(&name, Some(name.clone()));
    name
}

fn start(process: &str, stderr: Option<String>) {
    // The zone is read here, before any chroot.
    let _ = postkeep_sys::clock::local_time(SystemTime::now());
    let variable = |name: &str| {
        let trusted = !privilege::is_set_id();
        std::env::var_os(name)
            .filter(|value| trusted && !value.is_empty())
            .map(|value| value.to_string_lossy().into_owned())
    };
    let tag = variable(LOGTAG).unwrap_or_else(|| DEFAULT_TAG.to_owned());
    let channel = match variable(POSTLOG_SERVICE) {
        Some(path) => Channel::Postlog {
            link: Link::open(vec![PathBuf::from(path)]),
            host: first_label(
                &variable(POSTLOG_HOSTNAME).unwrap_or_else(|| DEFAULT_HOST.to_owned()),
            ),
        },
        None => Channel::Syslog {
            link: Link::open(vec![PathBuf::from(link::DEV_LOG)]),
            facility: Facility::default(),
        },
    };
    let state = State {
        process: process.to_owned(),
        ident: format!("{tag}/{process}"),
        channel,
        utf8: false,
        stderr,
    };
    let mut state = Some(state);
    let logger = LOGGER.get_or_init(|| Logger {
        state: RwLock::new(state.take().unwrap_or_else(|| State {
            process: String::new(),
            ident: String::new(),
            channel: Channel::Nowhere,
            utf8: false,
            stderr: None,
        })),
        errors: AtomicU32::new(0),
    });
    if let Some(state) = state {
        // A second start replaces the first.
        *logger.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    } else if log::set_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
        std::panic::set_hook(Box::new(panicked));
    }
}

/// Logs as main.cf says, from now on.
///
/// Opens the channel, so call it before chroot. Exports `MAIL_LOGTAG`, and `POSTLOG_SERVICE` and
/// `POSTLOG_HOSTNAME` or their absence, to child processes; that needs a process with one thread and is left
/// out otherwise.
pub fn configure(settings: &Settings) {
    let Some(logger) = LOGGER.get() else { return };
    let export = |name: &str, value: Option<&OsStr>| {
        // A child that starts with the wrong tag corrects itself when it reads main.cf.
        let _ = match value {
            Some(value) => environment::set(OsStr::new(name), value),
            None => environment::remove(OsStr::new(name)),
        };
    };
    let channel = if let Some(postlog) = &settings.postlog {
        let relative = Path::new("public").join(&postlog.service);
        let path = postlog.queue_directory.join(&relative);
        export(POSTLOG_SERVICE, Some(path.as_os_str()));
        export(POSTLOG_HOSTNAME, Some(OsStr::new(&postlog.host)));
        Channel::Postlog {
            // The second one is for reconnecting from inside the jail.
            link: Link::open(vec![path, relative]),
            host: first_label(&postlog.host),
        }
    } else {
        export(POSTLOG_SERVICE, None);
        export(POSTLOG_HOSTNAME, None);
        Channel::Syslog {
            link: Link::open(vec![PathBuf::from(link::DEV_LOG)]),
            facility: settings.facility,
        }
    };
    export(LOGTAG, Some(OsStr::new(&settings.syslog_name)));
    let mut state = logger.state.write().unwrap_or_else(PoisonError::into_inner);
    state.ident = format!("{}/{}", settings.syslog_name, state.process);
    state.channel = channel;
    state.utf8 = settings.utf8;
}

/// What is shown before the colon on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// The syslog tag and the program: `postfix/scache` (a daemon's `-V`).
    Ident,
    /// The program alone (a daemon run by hand).
    Program,
}

/// Logs to standard error as well, from now on.
pub fn to_stderr(label: Label) {
    if let Some(logger) = LOGGER.get() {
        let mut state = logger.state.write().unwrap_or_else(PoisonError::into_inner);
        state.stderr = Some(match label {
            Label::Ident => state.ident.clone(),
            Label::Program => state.process.clone(),
        });
    }
}

/// Sets how much is logged: 0 is the normal amount, 1 adds `debug!`, 2 and more add `trace!`.
pub fn set_verbosity(level: u32) {
    log::set_max_level(match level {
        0 => log::LevelFilter::Info,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
}

/// Writes one record of any severity, without its consequences: nothing is counted and nobody dies.
pub fn record(severity: Severity, text: fmt::Arguments<'_>) {
    match LOGGER.get() {
        Some(logger) => logger.write(severity, text),
        None if severity >= Severity::Fatal => eprintln!("{}{text}", severity.prefix()),
        None => {}
    }
}

/// Logs `fatal: TEXT`, waits a second, and ends the process with status 1.
///
/// Can be called from any thread. No exit hook runs.
pub fn fatal(text: fmt::Arguments<'_>) -> ! {
    record(Severity::Fatal, text);
    std::thread::sleep(LAST_WORDS);
    std::process::exit(1)
}

/// Logs `panic: TEXT`, waits a second, and aborts: for what cannot happen.
pub fn panic(text: fmt::Arguments<'_>) -> ! {
    record(Severity::Panic, text);
    std::thread::sleep(LAST_WORDS);
    std::process::abort()
}

fn panicked(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given");
    match info.location() {
        Some(place) => record(
            Severity::Panic,
            format_args!("{text} ({}:{})", place.file(), place.line()),
        ),
        None => record(Severity::Panic, format_args!("{text}")),
    }
    if !CONTAINED.get() {
        std::thread::sleep(LAST_WORDS);
        std::process::abort();
    }
}

/// Runs `work`; when it panics, that is logged and `None` comes back, and the process lives on.
pub fn contain<R>(work: impl FnOnce() -> R) -> Option<R> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work)).ok();
    CONTAINED.set(outer);
    result
}

fn first_label(host: &str) -> String {
    host.split('.').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_is_contained() {
        assert_eq!(contain(|| 1), Some(1));
        assert_eq!(contain(|| -> u8 { panic!("on purpose") }), None);
        assert!(!CONTAINED.get());
    }

    #[test]
    fn records_show_the_first_label_of_the_host() {
        assert_eq!(first_label("mail.example.com"), "mail");
        assert_eq!(first_label("amnesiac"), "amnesiac");
    }
}
