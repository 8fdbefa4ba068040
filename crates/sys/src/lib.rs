//! System calls behind safe functions: descriptor passing, inherited descriptors, readiness, privileges.
//!
//! Everything the other crates need from the kernel and the C library is here, so that `unsafe` has one
//! home. Most of it is a thin layer over `rustix` and `nix`; the modules that hold `unsafe` of their own say
//! so at their top, with a reason for each block.
//!
//! Functions return [`std::io::Error`]; [`error_text`] gives the text that the reference would log for one.

pub mod account;
pub mod berkeley;
pub mod clock;
pub mod confine;
pub mod descriptor;
pub mod effective;
pub mod environment;
pub mod guarded;
pub mod idle;
pub mod interface;
pub mod lmdb;
pub mod lock;
pub mod memory_file;
pub mod notify;
pub mod pcre;
pub mod posix_regex;
pub mod privilege;
pub mod process;
pub mod readiness;
pub mod socket;
pub mod spawn;
pub mod termination;

use std::io;

/// What `%m` shows for an error in the reference's log lines: the system's text alone.
///
/// An error without an error number is shown by its own text; number 0 is `Application error`, as in Postfix
/// 3.6 and later.
pub fn error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(0) => "Application error".to_owned(),
        Some(number) => {
            let text = error.to_string();
            let suffix = format!(" (os error {number})");
            text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
        }
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_the_system_s_alone() {
        assert_eq!(
            error_text(&io::Error::from_raw_os_error(2)),
            "No such file or directory"
        );
        assert_eq!(
            error_text(&io::Error::from_raw_os_error(0)),
            "Application error"
        );
        assert_eq!(error_text(&io::Error::other("own words")), "own words");
    }
}
