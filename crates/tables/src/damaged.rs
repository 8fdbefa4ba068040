//! What becomes of a file that is damaged while a daemon has it open for changes.
//!
//! Such a table is a cache of the mail system. It is of no use as it is, and whoever looks after it may be asleep; so it is set aside, for that
//! person to look at, and the service goes on with an empty one. A table that is only read is never touched.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{error, warn};
use postkeep_sys::error_text;
use postkeep_table::Printable;

use crate::indexed::sync_directory;

/// So many files of one table are set aside; after that somebody has to look at them. Otherwise they might fill the disk.
const MOST: usize = 5;

/// Gives a file another name, `FILE.damaged-` and the time (UTC); false when that cannot be done, or was done too often. Says so.
///
/// The caller has the file locked, and has made sure that it is still the one of this name, and damaged.
pub(crate) fn set_aside(path: &Path, reason: impl Display) -> bool {
    set_aside_with(path, &[], reason)
}

/// As [`set_aside`], for a file whose contents are partly in others: those that have its name with one of these endings get the new
/// name with the same ending.
pub(crate) fn set_aside_with(path: &Path, endings: &[&str], reason: impl Display) -> bool {
    let shown = Printable(path.as_os_str().as_bytes());
    match rename(path, endings) {
        Ok(aside) => {
            sync_directory(path);
            warn!(
                "{shown} is damaged ({reason}): set aside as {}, and begun anew without entries",
                Printable(aside.as_os_str().as_bytes())
            );
            true
        }
        Err(failure) => {
            error!(
                "{shown} is damaged ({reason}), and cannot be set aside: {}",
                error_text(&failure)
            );
            false
        }
    }
}

fn rename(path: &Path, endings: &[&str]) -> io::Result<PathBuf> {
    if fs::symlink_metadata(path)?.is_symlink() {
        // What it leads to is somebody else's.
        return Err(io::Error::other("a symbolic link"));
    }
    let prefix = with(path, ".damaged-");
    let (directory, name) = (path.parent().unwrap_or(Path::new("")), prefix.file_name());
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let name = name.unwrap_or_default().as_bytes();
    let others = fs::read_dir(directory)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_bytes().starts_with(name))
        .count();
    if others >= MOST {
        return Err(io::Error::other(format!(
            "{others} files were set aside before"
        )));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let base = with(&prefix, &date(now.map_or(0, |now| now.as_secs())));
    for number in 1..=MOST + 1 {
        let aside = if number == 1 {
            base.clone()
        } else {
            with(&base, &format!("-{number}"))
        };
        // Unlike a renaming this never takes the place of another file.
        match fs::hard_link(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                // The file itself last: as long as it is there, it is known to be damaged.
                for ending in endings {
                    match fs::rename(with(path, ending), with(&aside, ending)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                fs::remove_file(path)?;
                return Ok(aside);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn with(path: &Path, tail: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(tail);
    path.into()
}

/// Seconds since 1970 as `YYYYMMDDTHHMMSS`, in the Gregorian calendar.
fn date(seconds: u64) -> String {
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = 365 + u64::from(is_leap(year));
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year:04}{month:02}{:02}T{:02}{:02}{:02}",
        days + 1,
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "19700101T000000"),
            (951_782_400, "20000229T000000"),
            (1_709_251_199, "20240229T235959"),
            (1_735_689_599, "20241231T235959"),
            (1_764_058_200, "20251125T081000"),
        ] {
            assert_eq!(date(seconds), wanted);
        }
    }

    #[test]
    fn a_file_is_set_aside_so_often_and_no_other_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        for number in 0..MOST {
            fs::write(&path, number.to_string()).unwrap();
            assert!(set_aside(&path, "why"));
            assert!(!path.exists());
        }
        fs::write(&path, "last").unwrap();
        assert!(!set_aside(&path, "why"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "last");
        let contents: std::collections::BTreeSet<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        assert_eq!(contents.len(), MOST + 1);
        let path = directory.path().join("u.db");
        fs::write(&path, "file").unwrap();
        fs::write(directory.path().join("u.db-log"), "log").unwrap();
        assert!(set_aside_with(&path, &["-log", "-other"], "why"));
        assert!(!directory.path().join("u.db-log").exists());
        let mut aside: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains("u.db"))
            .map(|path| {
                (
                    path.to_string_lossy().ends_with("-log"),
                    fs::read(path).unwrap(),
                )
            })
            .collect();
        aside.sort();
        assert_eq!(aside, [(false, b"file".to_vec()), (true, b"log".to_vec())]);
        fs::write(&path, "file").unwrap();
        let link = directory.path().join("l.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!set_aside(&link, "why"));
    }
}
