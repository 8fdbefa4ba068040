//! `postkeep reload`: has services, or one of their tables, begin anew.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use postkeep_sys::error_text;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::monitor::read::{Source, sources};
use crate::serve::Directory;

/// How long a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes.
const MOST: u64 = 64 * 1024;
/// How the names of sockets end.
const SUFFIX: &str = ".metrics";

/// Options of `postkeep reload`.
#[derive(Args, Debug)]
#[command(after_help = "\
Without a service and a table, `postkeep serve` reads its main.cf again and replaces all services, as after a hangup\n\
signal. A service that is named ends after the requests in progress and is started again by the next client, which\n\
waits and is not refused. A table that is named is opened beside the one in use, and takes its place; clients notice\n\
nothing, and when it cannot be opened the one in use stays. Tables whose files change need none of this.\n\n\
Services are reached over the UNIX-domain sockets of postkeep_metrics_address; they obey root and their own user.")]
pub(crate) struct Options {
    /// Services by name (scache, proxymap, ...); default: all
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    /// Only this table, TYPE:NAME as it is approved, or the name of a map of socketmap
    #[arg(long, value_name = "TABLE")]
    table: Option<std::ffi::OsString>,
    /// Directory of `postkeep serve`, or the queue directory of a Postfix
    ///
    /// Default: the default directory of `postkeep serve`, else /var/spool/postfix.
    #[arg(long, short = 'd', value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    let outcome = if options.services.is_empty() && options.table.is_none() {
        reload_all(options.directory.as_deref()).map(|line| vec![line])
    } else {
        order(options)
    };
    match outcome {
        Ok(lines) => {
            let _ = io::stdout().write_all((lines.join("\n") + "\n").as_bytes());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            let _ = writeln!(io::stderr(), "postkeep: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Sends a hangup signal to the `postkeep serve` of a directory.
fn reload_all(directory: Option<&Path>) -> Result<String, String> {
    let directory = Directory::choose(directory)?;
    let path = directory.queue().join("pid/master.pid");
    let none = || {
        format!(
            "no `postkeep serve` runs in {} (a Postfix: postfix reload)",
            directory.path().display()
        )
    };
    let mut file = File::open(&path).map_err(|_| none())?;
    // Whoever serves holds a lock as long as it runs; a number without one may be anybody's by now.
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return Err(none());
    }
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|error| format!("{}: {}", path.display(), error_text(&error)))?;
    let pid = text
        .trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(none)?;
    kill_process(pid, Signal::HUP).map_err(|error| {
        let text = error_text(&error.into());
        format!("cannot signal process {}: {text}", pid.as_raw_nonzero())
    })?;
    Ok("all services are being replaced".to_owned())
}

/// What a service says.
enum Answer {
    Done(String),
    /// It has no such table.
    Unknown,
}

/// Has services, or a table in them, begin anew; a line for each.
fn order(options: &Options) -> Result<Vec<String>, String> {
    let found: Vec<(String, PathBuf)> = sources(options.directory.as_deref())?
        .into_iter()
        .filter_map(|source| match source {
            Source::Unix(path) => Some((service_of(&path)?, path)),
            Source::Inet(_) => None,
        })
        .collect();
    for wanted in &options.services {
        if !found.iter().any(|(name, _)| name == wanted) {
            return Err(format!("no service {wanted} hands out metrics there"));
        }
    }
    let target = match &options.table {
        None => "/reload".to_owned(),
        Some(table) => format!("/reload?table={}", encoded(table.as_bytes())),
    };
    let (mut lines, mut failures, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for (name, path) in found {
        if !options.services.is_empty() && !options.services.contains(&name) {
            continue;
        }
        match send(&path, &target) {
            Ok(Answer::Done(text)) => lines.push(format!("{name}: {text}")),
            Ok(Answer::Unknown) => unknown.push(name),
            Err(reason) => failures.push(format!("{name}: {reason}")),
        }
    }
    if !failures.is_empty() {
        return Err([lines, failures].concat().join("\npostkeep: "));
    }
    if lines.is_empty() || (!options.services.is_empty() && !unknown.is_empty()) {
        return Err(format!("no such table in {}", unknown.join(", ")));
    }
    Ok(lines)
}

fn service_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    Some(name.to_owned())
}

fn encoded(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| {
            if byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn send(path: &Path, target: &str) -> Result<Answer, String> {
    let ask = || -> io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request =
            format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.take(MOST).read_to_string(&mut response)?;
        Ok(response)
    };
    let response = ask().map_err(|error| error_text(&error))?;
    let (head, body) = response
        .split_once("\r\n\r\n")
        .ok_or("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let body = body.trim_end().to_owned();
    match status {
        "200" | "202" => Ok(Answer::Done(body)),
        "404" => Ok(Answer::Unknown),
        _ => Err(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_encoded_for_the_way() {
        assert_eq!(encoded(b"hash:/a,b"), "hash:/a,b");
        assert_eq!(
            encoded("pipemap:{\u{e9} %".as_bytes()),
            "pipemap:%7B%C3%A9%20%25"
        );
    }

    #[test]
    fn services_are_called_by_their_sockets() {
        assert_eq!(
            service_of(Path::new("/q/private/proxymap.metrics")).as_deref(),
            Some("proxymap")
        );
        assert_eq!(service_of(Path::new("/q/private/proxymap")), None);
    }
}
