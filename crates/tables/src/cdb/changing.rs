//! A cdb table that a daemon changes: each change, or as many as there are at a time, makes the file anew.
//!
//! Who changes a table has its temporary file, and that locked, as a maker has: changes and makers wait for each other. The
//! entries are read, changed, written to the temporary file and brought to disk; the file is renamed, and the directory
//! brought to disk. Readers never wait.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use postkeep_sys::error_text;
use postkeep_table::{
    Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Step, Table, TableName, Watch,
};

use crate::damaged;
use crate::group::{Change, Group, Store};
use crate::indexed::{Form, duplicate, forms, prescribed_form, sync_directory, with_suffix};
use crate::table_type::Request;

use super::writer::{Creating, Stored, open_temporary};
use super::{Cdb, NotRead, cannot_open, open_for_reading};

/// Device, inode, length and times of a file.
type Stamp = [u64; 7];

pub(super) struct Changing {
    /// As configured.
    name: TableName,
    path: PathBuf,
    temporary: PathBuf,
    current: ArcSwap<State>,
    opener: Opener,
    group: Group<Change, String>,
}

/// What the table is in one file.
struct State {
    table: Cdb,
    stamp: Stamp,
    /// How entries are stored.
    form: Form,
}

/// How the table was asked for.
struct Opener {
    name: TableName,
    flags: Flags,
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    let signed = i64::cast_unsigned;
    [
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        signed(metadata.mtime()),
        signed(metadata.mtime_nsec()),
        signed(metadata.ctime()),
        signed(metadata.ctime_nsec()),
    ]
}

impl Opener {
    /// Reads the file as it is now.
    fn read(&self, path: &Path) -> Result<State, NotRead> {
        let (table, metadata) = open_for_reading(&self.name, self.flags, path)?;
        let form = match table.first_key()? {
            Some(key) if key.ends_with(b"\0") => Form::WithNul,
            _ => Form::Plain,
        };
        Ok(State {
            table,
            stamp: stamp(&metadata),
            form,
        })
    }

    /// As [`Opener::read`]; a table that is not there is made, and a damaged one set aside.
    fn read_or_begin(&self, path: &Path) -> Result<State, NotRead> {
        match self.read(path) {
            Err(NotRead::Open(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(reason @ (NotRead::Contents(_) | NotRead::Kind(_)))
                if path.is_file() && !reason.is_of_the_system() =>
            {
                let temporary = with_suffix(self.name.name(), ".cdb.tmp");
                let _lock = open_temporary(&temporary).map_err(NotRead::Open)?;
                let _remains = Remains(&temporary);
                if self.read(path).is_ok() || !damaged::set_aside(path, &reason) {
                    return self.read(path);
                }
            }
            result => return result,
        }
        let made = Creating::open(self.name.name(), self.flags)
            .map_err(|error| io::Error::other(error.to_string()))
            .and_then(Creating::finish_unless_there);
        made.map_err(NotRead::Open)?;
        self.read(path)
    }
}

/// Opens a table that is to be changed.
pub(super) fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let path = with_suffix(request.name.name(), ".cdb");
    let opener = Opener {
        name: request.name.clone(),
        flags: request.fixed_flags(),
    };
    let state = opener
        .read_or_begin(&path)
        .map_err(|reason| cannot_open(&path, &reason))?;
    // Whoever made the file may have died before its name was on the disk.
    sync_directory(&path);
    Ok(Arc::new(Changing {
        name: state.table.name.clone(),
        temporary: with_suffix(request.name.name(), ".cdb.tmp"),
        path,
        current: ArcSwap::from_pointee(state),
        opener,
        group: Group::default(),
    }))
}

impl Changing {
    /// The table as it is now. One that was replaced by something that cannot be read stays.
    fn current(&self) -> Arc<State> {
        let current = self.current.load_full();
        match fs::metadata(&self.path) {
            Ok(metadata) if stamp(&metadata) == current.stamp => current,
            _ => match self.opener.read(&self.path) {
                Ok(state) => {
                    let state = Arc::new(state);
                    self.current.store(Arc::clone(&state));
                    state
                }
                Err(_) => current,
            },
        }
    }

    fn change(&self, change: Change) -> Result<bool, LookupError> {
        match self.group.commit(change.bytes(), change, self) {
            Some(result) => result.map_err(LookupError::Retry),
            None => Err(LookupError::Retry(format!(
                "error writing {}: the thread that was to write it has ended",
                self.name
            ))),
        }
    }

    /// Brings the file to disk, with the owner and the mode of the table, and puts it in its place.
    fn replace(&self, file: &File) -> io::Result<()> {
        if let Ok(old) = fs::metadata(&self.path) {
            // Without the right to give it away the file is ours, as with one who makes the table anew.
            let _ = fchown(file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        }
        file.sync_all()?;
        fs::rename(&self.temporary, &self.path)
    }

    /// Brings the name of the file to disk.
    fn sync_name(&self) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match File::open(directory).map(|directory| directory.sync_all()) {
            // The file system cannot do that.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Ok(result) => result,
            // The name may come to the disk late where the directory cannot be opened.
            Err(_) => Ok(()),
        }
    }
}

impl Store for Changing {
    type Change = Change;
    type Error = String;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c Change>) -> Result<Vec<bool>, String> {
        let failure = |error: &io::Error| {
            let file = super::shown(&self.temporary);
            format!("error writing {file}: {}", error_text(error))
        };
        let file = open_temporary(&self.temporary).map_err(|error| failure(&error))?;
        // Gone when this ends before it has become the table.
        let remains = Remains(&self.temporary);
        let state = match self.opener.read(&self.path) {
            Ok(state) => Some(state),
            Err(NotRead::Open(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(reason)
                if !reason.is_of_the_system() && damaged::set_aside(&self.path, &reason) =>
            {
                None
            }
            Err(reason) => return Err(cannot_open(&self.path, &reason).to_string()),
        };
        let mut stored = Stored::default();
        if let Some(state) = &state {
            state
                .table
                .each(|key, value| stored.load(key, value))
                .map_err(|damage| {
                    format!("error reading {}: {damage}", super::shown(&self.path))
                })?;
        }
        let results: Vec<bool> = changes()
            .into_iter()
            .map(|change| change.make(&mut stored))
            .collect::<Result<_, _>>()
            .map_err(|error| failure(&error))?;
        if results.contains(&true) {
            let mut out = BufWriter::with_capacity(1 << 16, &file);
            stored
                .write(&mut out)
                .and_then(|()| out.flush())
                .map_err(|error| failure(&error))?;
            drop(out);
            self.replace(&file).map_err(|error| failure(&error))?;
            // It has another name now, and somebody else may have one of this name.
            std::mem::forget(remains);
            let synced = self.sync_name();
            self.current();
            synced.map_err(|error| failure(&error))?;
        }
        Ok(results)
    }
}

/// A temporary file, which is removed. It is locked.
struct Remains<'p>(&'p Path);

impl Drop for Remains<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

impl Table for Changing {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.current.load().table.flags() | Flags::MULTI_WRITER
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.current().table.lookup(flags, key, value)
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let form = prescribed_form(self.opener.flags, flags).unwrap_or(self.current.load().form);
        let new = self.change(Change::Put {
            key: [key, form.tail()].concat(),
            value: [value, form.tail()].concat(),
            replace: flags.contains(Flags::DUP_REPLACE),
        })?;
        if new {
            return Ok(Outcome::Done);
        }
        match duplicate(&self.name, flags, key) {
            None => Ok(Outcome::Absent),
            Some(text) => Err(LookupError::Config(text)),
        }
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let mut keys = [None, None];
        for (place, form) in keys.iter_mut().zip(forms(self.opener.flags, flags)) {
            *place = Some([key, form.tail()].concat());
        }
        Ok(if self.change(Change::Delete(keys))? {
            Outcome::Done
        } else {
            Outcome::Absent
        })
    }

    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.current()
            .table
            .sequence(flags, step, cursor, key, value)
    }

    /// Nobody else has to look: each access does.
    fn watches(&self) -> Vec<Watch> {
        Vec::new()
    }

    fn owner(&self) -> Owner {
        self.current.load().table.owner()
    }
}
