//! Commands: clients, to try the services by hand, and those that look after an installed Postfix.

pub(crate) mod adopt;
pub(crate) mod doctor;
pub(crate) mod proxymap;
pub(crate) mod release;
pub(crate) mod reload;
pub(crate) mod scache;
pub(crate) mod shadow;
pub(crate) mod status;
pub(crate) mod top;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Place;
use crate::serve::Directory;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Done, or found.
    Yes,
    /// Not found, or nothing to do.
    No,
}

/// Exit code of a command, with its failure told on standard error.
fn finish(answer: Result<Answer, String>) -> ExitCode {
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::FAILURE,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "postkeep: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Shows the warnings of the clients on standard error.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(io::stderr(), "postkeep: warning: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Has warnings shown from now on.
pub(crate) fn show_warnings() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

/// Where the socket of a service is.
fn socket(place: &Place, service: &str) -> Result<PathBuf, String> {
    if let Some(path) = &place.socket {
        return Ok(path.clone());
    }
    let directory = Directory::choose(place.directory.as_deref())?;
    let ours = directory.queue().join("private").join(service);
    let theirs = directory.path().join("private").join(service);
    if !ours.exists() && theirs.exists() {
        return Ok(theirs);
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_in_either_kind_of_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path();
        let place = Place {
            directory: Some(path.to_owned()),
            socket: None,
        };
        let (ours, theirs) = (
            path.join("queue/private/scache"),
            path.join("private/scache"),
        );
        assert_eq!(socket(&place, "scache"), Ok(ours.clone()));
        std::fs::create_dir_all(path.join("private")).unwrap();
        std::fs::write(&theirs, "").unwrap();
        assert_eq!(socket(&place, "scache"), Ok(theirs));
        std::fs::create_dir_all(path.join("queue/private")).unwrap();
        std::fs::write(&ours, "").unwrap();
        assert_eq!(socket(&place, "scache"), Ok(ours));
        let given = Place {
            directory: None,
            socket: Some("/s".into()),
        };
        assert_eq!(socket(&given, "scache"), Ok("/s".into()));
    }
}
