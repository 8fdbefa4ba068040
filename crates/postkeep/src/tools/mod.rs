//! The commands that work on tables and configuration files, under the names that Postfix gives them.

pub(crate) mod postconf {
    //! Not there yet.
    use std::ffi::{OsStr, OsString};
    use std::process::ExitCode;
    pub(crate) fn run(_: &OsStr, _: &[OsString]) -> ExitCode {
        ExitCode::FAILURE
    }
}
pub(crate) mod postmap;
