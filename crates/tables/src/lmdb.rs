//! `lmdb:FILE` is an LMDB database in `FILE.lmdb`, made by postmap(1) or postalias(1).
//!
//! Lookups see what other programs commit, at once and without a restart. Programs keep apart by fcntl(2) locks on
//! the file, shared to read and exclusive to write; LMDB's own lock file is not used (`lmdb_table(5)`). A lookup needs
//! no lock, and waits for one only where writers are faster than it is or the file is damaged. Keys have at most
//! 511 bytes, a trailing NUL included; values have no limit. The initial size limit is `lmdb_map_size`; it grows by
//! itself.
//!
//! A key is stored with a NUL behind it unless the creator was told otherwise; both forms are looked for. Entries
//! are listed in the order of their bytes.
//!
//! Creating a table replaces all entries in one transaction: when it fails the old ones are still there.
//!
//! In a daemon, updates and deletes that come while another one is brought to the disk are committed together when that is
//! done, as many as there are (128 at most), in the order in which they came. A client gets its answer after the commit that
//! holds its change. A commit that fails is done again for each change alone, so each client gets the answer to its own.
//!
//! A daemon that writes to a table sets a damaged file aside, as `FILE.lmdb.damaged-` and the time, and goes on with an empty one.
//! So it does with `hash:`, `btree:` and `cdb:` files. What is only read is never touched.
//!
//! Differences from the reference: changes share commits; lookups take no lock, and every other access is locked,
//! whatever the flags say; adding entries holds an exclusive lock throughout; a record is stored however often the
//! limit must be doubled, and a source is not read twice for that; a file that is shorter than its contents is an
//! error and not the end of the process, and is opened again; both forms of a key are tried each time; a walk goes
//! on when its entry was deleted. For a daemon an empty key is not found.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwap;
use postkeep_sys::lmdb::{self, Environment, Error, Options, Unlocked, Writer};
use postkeep_sys::lock::{Kind, LockedFile};
use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch,
};

use crate::damaged;
use crate::group::{Change, Entries, Group, Store};
use crate::indexed::{
    self, Form, duplicate, forms, sync_directory, text, warn_when_older, with_suffix,
};
use crate::table_type::{Capabilities, Request, TableType};
use crate::{BuildError, BuildMode, Builder, Caller};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "lmdb",
    summary: "an LMDB database",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::BUILD)
        .union(Capabilities::FILE),
    open,
    build: Some(build),
};

/// The longest key that LMDB stores.
const LONGEST_KEY: usize = 511;

struct Lmdb {
    name: TableName,
    flags: Flags,
    path: PathBuf,
    options: Options,
    caller: Caller,
    environment: ArcSwap<Environment>,
    /// The form in which a key was found: 0 not known, 1 with NUL, 2 plain.
    seen: AtomicU8,
    owner: Owner,
    group: Group<Change, Error>,
}

impl Entries for Writer<'_> {
    type Error = Error;

    fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Error> {
        Writer::put(self, key, value, replace)
    }

    fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        Writer::delete(self, key)
    }
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(open_table(request)?))
}

fn open_table(request: &Request<'_>) -> Result<Lmdb, OpenError> {
    let write = request.access == Access::ReadWrite;
    let (path, options, environment) = open_environment(request, write)?;
    let metadata = environment.file().metadata().ok();
    if let Some(metadata) = &metadata
        && request.flags.contains(Flags::LOCK)
    {
        warn_when_older(&path, metadata, request.name.name());
    }
    Ok(Lmdb {
        name: request.name.clone(),
        flags: shown_flags(request.fixed_flags()),
        path,
        options,
        caller: request.context.caller,
        environment: ArcSwap::from_pointee(environment),
        seen: AtomicU8::new(0),
        owner: metadata.map_or(Owner::Unknown, |metadata| indexed::owner(metadata.uid())),
        group: Group::default(),
    })
}

/// What an open table says about itself: several writers are safe, so the one lock for as long as it is open
/// becomes a lock around each access; and which forms of keys are tried.
fn shown_flags(mut flags: Flags) -> Flags {
    if flags.contains(Flags::OPEN_LOCK) {
        flags.remove(Flags::OPEN_LOCK);
        flags.insert(Flags::LOCK);
    }
    if !flags.intersects(Flags::TRY0NULL | Flags::TRY1NULL) {
        flags.insert(Flags::TRY0NULL | Flags::TRY1NULL);
    }
    flags | Flags::MULTI_WRITER
}

fn open_environment(
    request: &Request<'_>,
    write: bool,
) -> Result<(PathBuf, Options, Environment), OpenError> {
    let path = with_suffix(request.name.name(), ".lmdb");
    let options = Options {
        write,
        map_size: request.context.lmdb_map_size,
    };
    let heals = write && request.context.caller == Caller::Daemon;
    let opened = Environment::open(&path, options).or_else(|error| {
        if heals && set_aside(&path, error) {
            return Environment::open(&path, options);
        }
        Err(error)
    });
    let environment = opened.map_err(|error| {
        OpenError::Unavailable(format!(
            "open database {}: {error}",
            Printable(path.as_os_str().as_bytes())
        ))
    })?;
    if write {
        // Whoever made the file may have died before its name was on the disk.
        sync_directory(&path);
    }
    Ok((path, options, environment))
}

/// Sets a file aside that is damaged; false when it is not, or cannot be set aside.
fn set_aside(path: &Path, error: Error) -> bool {
    if !error.is_damage() {
        return false;
    }
    let Ok(file) = File::options().read(true).write(true).open(path) else {
        return false;
    };
    let file = LockedFile::new(file);
    let Ok(_guard) = file.write() else {
        return false;
    };
    let inode = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, there) = (file.file().metadata(), std::fs::metadata(path));
    let is_at = ours.is_ok_and(|ours| there.is_ok_and(|there| inode(&ours) == inode(&there)));
    is_at
        && lmdb::is_whole(file.file()).is_ok_and(|whole| !whole)
        && damaged::set_aside(path, error)
}

/// A key in its stored form, without allocating; `None` when it is too long to be stored.
fn stored<'b>(key: &[u8], form: Form, buffer: &'b mut [u8; LONGEST_KEY]) -> Option<&'b [u8]> {
    let length = key.len() + usize::from(form == Form::WithNul);
    let stored = buffer.get_mut(..length)?;
    stored[..key.len()].copy_from_slice(key);
    if form == Form::WithNul {
        stored[key.len()] = 0;
    }
    Some(stored)
}

impl Lmdb {
    fn current(&self) -> Arc<Environment> {
        self.environment.load_full()
    }

    /// Runs an operation, a second time on the file as it is now when the open one is damaged. When that one is, too, and
    /// this is what a daemon writes to, it is set aside, and the operation is run on an empty one.
    fn with<R>(&self, operation: impl Fn(&Environment) -> Result<R, Error>) -> Result<R, Error> {
        let environment = self.current();
        operation(&environment).or_else(|error| {
            if !error.is_damage() {
                return Err(error);
            }
            self.on_fresh(error, &operation).or_else(|error| {
                let heals = self.options.write && self.caller == Caller::Daemon;
                if heals && set_aside(&self.path, error) {
                    return self.on_fresh(error, &operation);
                }
                Err(error)
            })
        })
    }

    /// Runs an operation on the file as it is now, which is the open one then if all goes well.
    fn on_fresh<R>(
        &self,
        error: Error,
        operation: impl Fn(&Environment) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let fresh = Arc::new(Environment::open(&self.path, self.options).map_err(|_| error)?);
        let result = operation(&fresh)?;
        if self.options.write {
            sync_directory(&self.path);
        }
        self.environment.store(fresh);
        Ok(result)
    }

    /// Makes a change that is safe on the disk when this returns.
    fn change(&self, doing: &str, change: Change) -> Result<bool, LookupError> {
        match self.group.commit(change.bytes(), change, self) {
            Some(result) => result.map_err(|error| self.failure(doing, error)),
            None => Err(LookupError::Retry(format!(
                "error {doing} {}: the thread that was to commit it has ended",
                self.name
            ))),
        }
    }

    fn failure(&self, doing: &str, error: Error) -> LookupError {
        let text = format!("error {doing} {}: {error}", self.name);
        if error == Error::BAD_KEY_SIZE {
            LookupError::Config(text)
        } else {
            LookupError::Retry(text)
        }
    }

    /// Looks a key up in the forms in which it may be stored, by `look`, which tells the place of the form that is
    /// there.
    fn find<E>(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
        look: impl FnOnce(&[&[u8]], &mut Vec<u8>) -> Result<Option<usize>, E>,
    ) -> Result<Outcome, E> {
        let mut buffer = [0; LONGEST_KEY];
        let start = value.len();
        let forms = match forms(self.flags, flags) {
            [Form::WithNul, rest @ ..] if key.len() >= LONGEST_KEY && !rest.is_empty() => rest,
            forms => forms,
        };
        let first = forms
            .first()
            .and_then(|form| stored(key, *form, &mut buffer));
        let found = match (forms, first) {
            // One form is the beginning of the other.
            ([Form::WithNul, Form::Plain], Some(stored)) => {
                look(&[stored, &stored[..key.len()]], value)?
            }
            (_, Some(stored)) => look(&[stored], value)?,
            (_, None) => look(&[], value)?,
        };
        let Some(form) = found.and_then(|place| forms.get(place)) else {
            return Ok(Outcome::Absent);
        };
        let length = text(&value[start..]).len();
        value.truncate(start + length);
        self.note_form(*form);
        Ok(Outcome::Done)
    }

    /// Looks up without a lock and without waiting, as nearly always is possible; `None` when it is not.
    fn find_unlocked(&self, flags: Flags, key: &[u8], value: &mut Vec<u8>) -> Option<Outcome> {
        let environment = self.environment.load();
        self.find(flags, key, value, |keys, value| {
            match environment.find_unlocked(keys, value) {
                Unlocked::Found(place) => Ok(Some(place)),
                Unlocked::Absent => Ok(None),
                Unlocked::Undecided => Err(()),
            }
        })
        .ok()
    }

    /// Whether an empty key is a fault: the reference asks LMDB for it where nothing was found yet with a NUL.
    fn refuses(&self, flags: Flags, key: &[u8]) -> bool {
        key.is_empty()
            && self.caller == Caller::Command
            && self.seen() != Some(Form::WithNul)
            && forms(self.flags, flags).contains(&Form::Plain)
    }

    fn unless_refused(
        &self,
        flags: Flags,
        key: &[u8],
        outcome: Outcome,
    ) -> Result<Outcome, LookupError> {
        if outcome == Outcome::Absent && self.refuses(flags, key) {
            return Err(self.failure("reading", Error::BAD_KEY_SIZE));
        }
        Ok(outcome)
    }

    /// The name is that of another file than the open one.
    fn is_replaced(&self, environment: &Environment) -> bool {
        let inode = |metadata: std::io::Result<std::fs::Metadata>| {
            metadata
                .map(|metadata| (metadata.dev(), metadata.ino()))
                .ok()
        };
        let there = inode(std::fs::metadata(&self.path));
        there.is_some() && there != inode(environment.file().metadata())
    }

    fn note_form(&self, form: Form) {
        let number = 1 + u8::from(form == Form::Plain);
        // Seldom written, so that threads do not take it from each other.
        if self.seen.load(Ordering::Relaxed) != number {
            self.seen.store(number, Ordering::Relaxed);
        }
    }

    fn seen(&self) -> Option<Form> {
        match self.seen.load(Ordering::Relaxed) {
            1 => Some(Form::WithNul),
            2 => Some(Form::Plain),
            _ => None,
        }
    }
}

impl Table for Lmdb {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
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
        if let Some(outcome) = self.find_unlocked(flags, key, value) {
            return self.unless_refused(flags, key, outcome);
        }
        let environment = self.current();
        let found = self.find(flags, key, value, |keys, value| {
            environment.find(keys, value)
        });
        let outcome = match found {
            // Another file may have its name by now.
            Err(error)
                if error.is_damage()
                    && (self.is_replaced(&environment)
                        || self.options.write && self.caller == Caller::Daemon) =>
            {
                let value = std::cell::RefCell::new(value);
                let found = self.with(|environment| {
                    self.find(flags, key, &mut value.borrow_mut(), |keys, value| {
                        environment.find(keys, value)
                    })
                });
                found.map_err(|error| self.failure("reading", error))?
            }
            found => found.map_err(|error| self.failure("reading", error))?,
        };
        self.unless_refused(flags, key, outcome)
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        let outcome = self.find_unlocked(flags, key, value)?;
        Some(self.unless_refused(flags, key, outcome))
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let form = match forms(self.flags, flags) {
            [form] => *form,
            _ => self.seen().unwrap_or(Form::WithNul),
        };
        let replace = flags.contains(Flags::DUP_REPLACE);
        let mut buffer = [0; LONGEST_KEY];
        let stored_key = stored(key, form, &mut buffer)
            .filter(|key| !key.is_empty())
            .ok_or_else(|| self.failure("updating", Error::BAD_KEY_SIZE))?;
        let change = Change::Put {
            key: stored_key.to_vec(),
            value: stored_value(value, form),
            replace,
        };
        let new = self.change("updating", change)?;
        if new {
            return Ok(Outcome::Done);
        }
        match duplicate(&self.name, flags, key) {
            None => Ok(Outcome::Absent),
            Some(text) => Err(LookupError::Config(text)),
        }
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let mut buffer = [0; LONGEST_KEY];
        let mut keys = [None, None];
        for (place, form) in keys.iter_mut().zip(forms(self.flags, flags)) {
            *place = stored(key, *form, &mut buffer).map(<[u8]>::to_vec);
        }
        let deleted = self.change("deleting from", Change::Delete(keys))?;
        Ok(if deleted {
            Outcome::Done
        } else {
            Outcome::Absent
        })
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if step == Step::First {
            *cursor = Cursor::default();
        }
        let entry = self.with(|environment| {
            environment.read(|reader| {
                let entry = reader.after(cursor.key.as_deref())?;
                Ok(entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
            })?
        });
        let entry = entry.map_err(|error| self.failure("seeking", error))?;
        let Some((found_key, found_value)) = entry else {
            return Ok(Outcome::Absent);
        };
        key.extend_from_slice(text(&found_key));
        value.extend_from_slice(text(&found_value));
        cursor.key = Some(found_key);
        cursor.ordinal += 1;
        Ok(Outcome::Done)
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch {
            path: self.path.clone(),
            modification_time: false,
        }]
    }

    fn owner(&self) -> Owner {
        self.owner
    }
}

impl Store for Lmdb {
    type Change = Change;
    type Error = Error;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c Change>) -> Result<Vec<bool>, Error> {
        self.with(|environment| {
            environment.write(|writer| {
                changes()
                    .into_iter()
                    .map(|change| change.make(writer))
                    .collect()
            })
        })
    }
}

fn stored_value(value: &[u8], form: Form) -> Vec<u8> {
    [value, form.tail()].concat()
}

fn build(request: &Request<'_>, mode: BuildMode) -> Result<Box<dyn Builder>, OpenError> {
    let cannot_lock = |error| {
        OpenError::Unavailable(format!(
            "{}.lmdb: lock dictionary: {error}",
            Printable(request.name.name())
        ))
    };
    if mode == BuildMode::Add {
        return Ok(Box::new(Adding {
            table: open_table(request)?,
            locked: false,
        }));
    }
    let (_, _, environment) = open_environment(request, true)?;
    // Readers go on with the old entries; other creators and writers wait for the end.
    environment
        .hold(Kind::Exclusive)
        .and_then(|()| environment.hold(Kind::Shared))
        .map_err(cannot_lock)?;
    Ok(Box::new(Creating {
        name: request.name.clone(),
        flags: request.flags,
        environment,
        entries: BTreeMap::new(),
    }))
}

/// A table that gets all its entries at once, at the end.
struct Creating {
    name: TableName,
    flags: Flags,
    environment: Environment,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Creating {
    fn failure(&self, error: Error) -> BuildError {
        BuildError::Failed(format!("error updating {}: {error}", self.name))
    }
}

impl Builder for Creating {
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError> {
        let form = forms(self.flags, flags)[0];
        let mut buffer = [0; LONGEST_KEY];
        let stored_key = stored(key, form, &mut buffer)
            .filter(|key| !key.is_empty())
            .ok_or_else(|| self.failure(Error::BAD_KEY_SIZE))?;
        if !flags.contains(Flags::DUP_REPLACE) && self.entries.contains_key(stored_key) {
            return match duplicate(&self.name, flags, key) {
                None => Ok(Outcome::Absent),
                Some(text) => Err(BuildError::Failed(text)),
            };
        }
        self.entries
            .insert(stored_key.to_vec(), stored_value(value, form));
        Ok(Outcome::Done)
    }

    fn finish(self: Box<Self>) -> Result<(), BuildError> {
        self.environment
            .write(|writer| {
                writer.clear()?;
                for (key, value) in &self.entries {
                    writer.put(key, value, true)?;
                }
                Ok(())
            })
            .map_err(|error| self.failure(error))
    }
}

/// A table that gets each entry at once.
struct Adding {
    table: Lmdb,
    /// The lock is taken with the first entry: until then the input may keep everybody waiting.
    locked: bool,
}

impl Builder for Adding {
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError> {
        if !self.locked {
            self.table
                .current()
                .hold(Kind::Exclusive)
                .map_err(|error| {
                    let name = Printable(self.table.name.name());
                    BuildError::Failed(format!("{name}.lmdb: lock dictionary: {error}"))
                })?;
            self.locked = true;
        }
        self.table
            .update(flags, key, value)
            .map_err(|error| BuildError::Failed(error.to_string()))
    }

    fn finish(self: Box<Self>) -> Result<(), BuildError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
