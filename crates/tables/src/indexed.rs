//! What all indexed files share (lmdb, cdb, and the like): the trailing NUL, duplicates, a source that is newer.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use log::warn;
use postkeep_table::{Flags, Owner, Printable};

/// A source changed less than this ago is not compared with its table, which may be in the making.
const FRESH: Duration = Duration::from_secs(100);

/// Whether keys are stored with a NUL behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    WithNul,
    Plain,
}

impl Form {
    /// What stands behind keys and values.
    pub fn tail(self) -> &'static [u8] {
        match self {
            Self::WithNul => b"\0",
            Self::Plain => b"",
        }
    }
}

/// The one form that the flags prescribe: those of the request, where it is particular, otherwise the table's.
pub(crate) fn prescribed_form(table: Flags, request: Flags) -> Option<Form> {
    [request, table].into_iter().find_map(|flags| {
        match (
            flags.contains(Flags::TRY1NULL),
            flags.contains(Flags::TRY0NULL),
        ) {
            (true, false) => Some(Form::WithNul),
            (false, true) => Some(Form::Plain),
            _ => None,
        }
    })
}

/// The forms to look for, in this order.
pub(crate) fn forms(table: Flags, request: Flags) -> &'static [Form] {
    match prescribed_form(table, request) {
        Some(Form::WithNul) => &[Form::WithNul],
        Some(Form::Plain) => &[Form::Plain],
        None => &[Form::WithNul, Form::Plain],
    }
}

/// Keys and values end at the first NUL.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    memchr::memchr(0, bytes).map_or(bytes, |end| &bytes[..end])
}

/// What follows from an entry that is there already; the text when it is a fault.
///
/// `name` is what the type calls the table here.
pub(crate) fn duplicate(name: impl Display, flags: Flags, key: &[u8]) -> Option<String> {
    let text = format!("{name}: duplicate entry: \"{}\"", Printable(key));
    if flags.contains(Flags::DUP_IGNORE) {
        return None;
    }
    if flags.contains(Flags::DUP_WARN) {
        warn!("{text}");
        return None;
    }
    Some(text)
}

/// Brings the name of a new file to the disk, where the file system can do that.
pub(crate) fn sync_directory(path: &Path) {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // The file is whole in any case; that its name outlives a power failure is a wish that not all file systems grant.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
}

/// The file of a table: its name with the type's suffix.
pub(crate) fn with_suffix(name: &[u8], suffix: &str) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&[name, suffix.as_bytes()].concat()))
}

/// Warns about a source that was changed after the table was made, but not just now.
///
/// - `path`, `made`: the table's file
/// - `source`: the name without the suffix
pub(crate) fn warn_when_older(path: &Path, made: &Metadata, source: &[u8]) {
    let changed = std::fs::metadata(OsStr::from_bytes(source)).and_then(|data| data.modified());
    let (Ok(made), Ok(changed)) = (made.modified(), changed) else {
        return;
    };
    let settled = SystemTime::now()
        .duration_since(changed)
        .is_ok_and(|age| age > FRESH);
    // The reference compares whole seconds.
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    };
    if seconds(changed) > seconds(made) && settled {
        warn!(
            "database {} is older than source file {}",
            Printable(path.as_os_str().as_bytes()),
            Printable(source)
        );
    }
}

/// Whose data it is, by the owner of the file that is read.
pub(crate) fn owner(uid: u32) -> Owner {
    match uid {
        0 => Owner::Trusted,
        uid => Owner::User(uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_decides_the_form_before_the_table() {
        let both = Flags::TRY0NULL | Flags::TRY1NULL;
        for (table, request, wanted) in [
            (
                Flags::empty(),
                Flags::empty(),
                &[Form::WithNul, Form::Plain][..],
            ),
            (Flags::TRY0NULL, Flags::empty(), &[Form::Plain]),
            (Flags::TRY0NULL, Flags::TRY1NULL, &[Form::WithNul]),
            (Flags::TRY1NULL, both, &[Form::WithNul]),
            (both, both, &[Form::WithNul, Form::Plain]),
        ] {
            assert_eq!(forms(table, request), wanted, "{table:?} {request:?}");
        }
    }

    #[test]
    fn a_duplicate_is_a_fault_unless_the_flags_say_what_to_do() {
        assert_eq!(duplicate("t", Flags::DUP_IGNORE, b"k"), None);
        assert_eq!(duplicate("t", Flags::DUP_WARN, b"k"), None);
        assert_eq!(
            duplicate("t", Flags::empty(), b"k").as_deref(),
            Some("t: duplicate entry: \"k\"")
        );
    }
}
