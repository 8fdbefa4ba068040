//! Changing the environment of this process.
#![allow(
    unsafe_code,
    reason = "std::env::set_var is unsafe; here it is called only while there is one thread"
)]

use std::ffi::OsStr;
use std::io;

/// Sets a variable for this process and its children.
///
/// # Errors
/// The process has more than one thread, `/proc` cannot tell, or the name or the value cannot be in an
/// environment. Nothing is changed then.
pub fn set(name: &OsStr, value: &OsStr) -> io::Result<()> {
    valid(name)?;
    if value.as_encoded_bytes().contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    only_thread()?;
    // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(name, value) };
    Ok(())
}

/// Removes a variable.
///
/// # Errors
/// As [`set`].
pub fn remove(name: &OsStr) -> io::Result<()> {
    valid(name)?;
    only_thread()?;
    // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
    unsafe { std::env::remove_var(name) };
    Ok(())
}

fn valid(name: &OsStr) -> io::Result<()> {
    let bytes = name.as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.contains(&b'=') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(())
}

fn only_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() == 1 {
        Ok(())
    } else {
        Err(io::Error::other(
            "the environment is shared by several threads",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_while_other_threads_run() {
        // The test harness runs this test in a thread of its own.
        assert!(set(OsStr::new("POSTKEEP_TEST"), OsStr::new("x")).is_err());
        assert!(std::env::var_os("POSTKEEP_TEST").is_none());
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "a=b", "a\0b"] {
            assert_eq!(
                set(OsStr::new(name), OsStr::new("x")).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }
}
