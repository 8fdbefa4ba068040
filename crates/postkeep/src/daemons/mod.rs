//! The daemons: conversations joined to the skeleton.

mod announce;
mod errands;
mod oversize;
mod parent;
pub(crate) mod proxymap;
mod reach;
pub(crate) mod scache;
mod slow;
pub(crate) mod socketmap;
mod table_metrics;
mod tables;

use std::ffi::OsString;
use std::time::Duration;

use postkeep_conf::{Dictionary, Error, IntParameter, Sink, StrParameter};
use postkeep_daemon::{Setup, logging};

use announce::Policy;

/// The arguments of a daemon, with the version of the Postfix that started it in front.
///
/// What a Postfix does not tell its daemons is which version it is; but the clients of this process are of that
/// version, so it decides about defaults and about the greeting. An option `-o mail_version=...` counts more.
fn with_version(arguments: &[OsString]) -> Vec<OsString> {
    let version = parent::postfix_version();
    version
        .map(|version| format!("-omail_version={version}").into())
        .into_iter()
        .chain(arguments.iter().cloned())
        .collect()
}

/// Reads the parameters that both daemons have beside those of Postfix.
fn read_policy(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Policy, Error> {
    let value = dictionary.str(
        &StrParameter {
            name: "postkeep_announce_protocol",
            default: "auto",
            min: 1,
            max: 0,
        },
        sink,
    )?;
    let milliseconds = dictionary.int(
        &IntParameter {
            name: "postkeep_detect_milliseconds",
            default: 20,
            min: 1,
            max: 10_000,
        },
        sink,
    )?;
    let wait = Duration::from_millis(milliseconds.unsigned_abs().into());
    let value = String::from_utf8_lossy(&value).into_owned();
    let version = dictionary
        .value("mail_version")
        .map(|text| String::from_utf8_lossy(text).into_owned());
    let policy = Policy::new(&value, version.as_deref(), wait);
    Ok(policy.unwrap_or_else(|| {
        logging::fatal(format_args!(
            "bad postkeep_announce_protocol value: {value} (specify one of: {})",
            announce::VALUES
        ))
    }))
}

/// The argument that there should not be, for [`refuse_argument`].
fn stray_argument(setup: &Setup) -> Option<String> {
    setup
        .arguments
        .first()
        .map(|argument| argument.to_string_lossy().into_owned())
}

/// Ends the process: as in the reference, at the first request.
fn refuse_argument(argument: &str) -> ! {
    logging::fatal(format_args!("unexpected command-line argument: {argument}"))
}
