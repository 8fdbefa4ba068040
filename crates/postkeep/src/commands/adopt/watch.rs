//! Does it work? The services are asked, and the log is watched.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postkeep_client::{Place, proxymap, scache};
use postkeep_conf::Release;

use super::installation::{Installation, run};

/// Where syslog daemons put what mail programs say.
const SYSLOG_FILES: [&str; 5] = [
    "/var/log/mail.log",
    "/var/log/maillog",
    "/var/log/mail",
    "/var/log/syslog",
    "/var/log/messages",
];

/// How long a service may take for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The most that is read of a log file at once, in bytes.
const PIECE: u64 = 1 << 20;

/// The log of an installation, from a moment on.
#[derive(Debug)]
pub(crate) struct LogTail {
    files: Vec<(PathBuf, u64)>,
    /// Seconds since 1970, for the journal.
    since: u64,
    journal: bool,
}

impl LogTail {
    /// From now on.
    pub(crate) fn from_now(installation: &Installation) -> Self {
        let mut tail = Self::whole(installation);
        for (path, offset) in &mut tail.files {
            *offset = fs::metadata(&*path).map_or(0, |metadata| metadata.len());
        }
        tail
    }

    /// The end of what is there already: at most a mebibyte of a file, ten minutes of the journal.
    pub(crate) fn whole(installation: &Installation) -> Self {
        let own = installation.value("maillog_file");
        let files: Vec<_> = if own.is_empty() {
            SYSLOG_FILES.iter().map(PathBuf::from).collect()
        } else {
            vec![PathBuf::from(own)]
        };
        let files: Vec<_> = files
            .into_iter()
            .filter(|path| path.is_file())
            .map(|path| {
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                (path, size.saturating_sub(PIECE))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            journal: own.is_empty()
                && files.is_empty()
                && Path::new("/run/systemd/journal").exists(),
            files,
            since: now.map_or(0, |now| now.as_secs()).saturating_sub(600),
        }
    }

    /// There is something to watch.
    pub(crate) fn is_somewhere(&self) -> bool {
        self.journal || !self.files.is_empty()
    }

    /// What was written since the last call.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, offset) in &mut self.files {
            let Ok(mut file) = File::open(&*path) else {
                continue;
            };
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            if size < *offset {
                // Rotated.
                *offset = 0;
            }
            let mut text = Vec::new();
            if file.seek(SeekFrom::Start(*offset)).is_err()
                || file.take(PIECE).read_to_end(&mut text).is_err()
            {
                continue;
            }
            // An unfinished line is for the next time.
            let whole = text
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1);
            *offset += whole as u64;
            let text = String::from_utf8_lossy(&text[..whole]);
            lines.extend(text.lines().map(str::to_owned));
        }
        if self.journal {
            let since = format!("--since=@{}", self.since);
            let mut command = Command::new("journalctl");
            command.args([
                "-q",
                "--no-pager",
                "-n",
                "2000",
                "SYSLOG_FACILITY=2",
                &since,
            ]);
            if let Ok(ran) = run(&mut command) {
                lines.extend(ran.stdout.lines().map(str::to_owned));
            }
        }
        lines
    }
}

/// Does a log line say one of the daemons, or master about it, or a client of it, is in trouble?
///
/// A table that cannot be opened is none: it could not be opened before either, or else lookups show it.
///
/// - `tag`: `syslog_name`
pub(crate) fn is_trouble(line: &str, tag: &str, commands: &[String]) -> bool {
    is_daemon_trouble(line, tag) || is_master_trouble(line, commands) || is_client_trouble(line)
}

fn is_daemon_trouble(line: &str, tag: &str) -> bool {
    ["scache", "proxymap"].iter().any(|daemon| {
        line.split_once(&format!("{tag}/{daemon}["))
            .and_then(|(_, rest)| rest.split_once("]: "))
            .is_some_and(|(_, text)| {
                ["fatal: ", "panic: "]
                    .iter()
                    .any(|severity| text.starts_with(severity))
            })
    })
}

fn is_master_trouble(line: &str, commands: &[String]) -> bool {
    line.contains("/master[")
        && commands.iter().any(|command| line.contains(&**command))
        && (line.contains("bad command startup")
            || line.contains("exit status")
            || line.contains("killed by signal")
            || line.contains("fatal: "))
}

/// A client that cannot reach a service, or gets no sense out of it.
pub(crate) fn is_client_trouble(line: &str) -> bool {
    let about = [
        "private/proxymap",
        "private/proxywrite",
        "private/scache",
        "service proxymap",
        "service proxywrite",
    ];
    let what = [
        "problem talking to service",
        "connect to subsystem",
        "to subsystem",
        "warning: connect to",
        "timeout on",
        "malformed",
        "unexpected end-of-input",
    ];
    about.iter().any(|word| line.contains(word)) && what.iter().any(|word| line.contains(word))
}

/// Asks a service something that changes nothing.
///
/// # Errors
/// No sensible answer within a few seconds, and why.
pub(crate) fn ask_scache(installation: &Installation, endpoint: &str) -> Result<(), String> {
    let settings = scache::Settings {
        announced: installation.announces(),
        limit: ANSWER,
        ..scache::Settings::new(Place::Path(socket(installation, endpoint)))
    };
    let connection = scache::Connection::open(&settings).map_err(|error| error.to_string())?;
    connection
        .find_endpoint(b"postkeep-probe")
        .map(drop)
        .map_err(|error| error.to_string())
}

/// What a lookup through the service gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// A value, or none.
    Answered,
    /// The service would have its client come again: the table is not to be had.
    Retry,
    /// The service does not approve the table.
    Denied,
}

/// Looks up a key that is in no table.
///
/// # Errors
/// As of [`ask_scache`].
pub(crate) fn ask_table(
    installation: &Installation,
    endpoint: &str,
    table: &str,
) -> Result<Looked, String> {
    let release = installation.release_or_default();
    let dialect = proxymap::Dialect {
        announced: installation.announces(),
        generation: Some(if release >= Release::V3_11 {
            proxymap::Generation::Two
        } else {
            proxymap::Generation::One
        }),
    };
    let settings = proxymap::Settings {
        dialect,
        limit: ANSWER,
        policy: proxymap::Policy {
            connects: 1,
            connect_delay: Duration::ZERO,
            sends: Some(1),
            send_delay: Duration::ZERO,
        },
        ..proxymap::Settings::new(Place::Path(socket(installation, endpoint)), "proxymap")
    };
    let mut client = proxymap::Client::new(settings);
    let flags = postkeep_table::Flags::LOCK.bits();
    match client.lookup(table.as_bytes(), flags, flags, b"postkeep-probe") {
        Ok(answer) => Ok(match answer.status {
            proxymap::Status::Retry | proxymap::Status::Config => Looked::Retry,
            proxymap::Status::Deny => Looked::Denied,
            _ => Looked::Answered,
        }),
        Err(proxymap::Error::Denied(_)) => Ok(Looked::Denied),
        Err(error) => Err(error.to_string()),
    }
}

/// Waits for the greeting of a service, when it greets; for no more than a connection when it does not.
///
/// # Errors
/// As of [`ask_scache`].
pub(crate) fn hear_greeting(installation: &Installation, endpoint: &str) -> Result<(), String> {
    let path = socket(installation, endpoint);
    let fault =
        |error: std::io::Error| format!("{}: {}", path.display(), postkeep_sys::error_text(&error));
    let mut stream = UnixStream::connect(&path).map_err(fault)?;
    if !installation.announces() {
        return Ok(());
    }
    stream.set_read_timeout(Some(ANSWER)).map_err(fault)?;
    match stream.read(&mut [0; 64]) {
        Ok(0) => Err(format!("{}: the connection was closed", path.display())),
        Ok(_) => Ok(()),
        Err(error) => Err(fault(error)),
    }
}

fn socket(installation: &Installation, endpoint: &str) -> PathBuf {
    installation.directory("queue_directory").join(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_from_the_daily_round() {
        let commands = ["../x/proxymap".to_owned()];
        let trouble = |line: &str| is_trouble(line, "postfix", &commands);
        for line in [
            "Nov 24 20:18:29 vm postfix/proxymap[19750]: fatal: chdir: no",
            "2026-11-24T20:18:29+00:00 vm postfix/scache[1]: panic: x",
            "vm postfix/master[1]: warning: process /d/../x/proxymap pid 5 exit status 1",
            "vm postfix/master[1]: fatal: master_spawn: exec /d/../x/proxymap: Permission denied",
            "vm postfix/smtpd[7]: warning: problem talking to service proxymap: no",
            "vm postfix/smtpd[7]: warning: connect #1 to subsystem private/proxymap: refused",
        ] {
            assert!(trouble(line), "{line}");
        }
        for line in [
            "vm postfix/proxymap[19750]: warning: request for unapproved table: \"static:foo\"",
            "vm postfix/master[1]: warning: process /d/smtp pid 5 exit status 1",
            "vm other/proxymap[1]: fatal: not ours",
            "vm postfix/smtp[1]: connect to mail.example[192.0.2.1]:25: Connection refused",
            "",
        ] {
            assert!(!trouble(line), "{line}");
        }
    }
}
