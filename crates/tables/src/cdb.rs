//! `cdb:FILE` is a constant database in `FILE.cdb`, made by postmap(1) or postalias(1) and only ever replaced as a
//! whole.
//!
//! A new table is written to `FILE.cdb.tmp`, brought to disk, and renamed: a reader has the old table or the new one,
//! and a maker that dies leaves the old one. Makers of the same table wait for each other at the temporary file
//! (flock(2)). Keys and values have no limit, the file has: 4 GB.
//!
//! A daemon can store and delete entries (`proxy_write_maps`): it makes the whole table anew in the same manner, once for all
//! changes that come while another one is under way, 128 at most. A client gets its answer when the file and its name are on the disk.
//! That costs as much as the table is large; it is meant for tables that are read much and changed seldom. Where it cannot
//! make files in the table's directory, changes are temporary errors. Commands refuse, as the reference does. What `postmap cdb:FILE` makes from a source replaces what was stored.
//!
//! A key is stored without a NUL behind it unless the creator was told otherwise; both forms are looked for. Entries
//! are listed in the order in which they were stored. When a key comes twice the first entry stays, with a warning;
//! with `postmap -r` the last one does; with `postmap -w` all are stored and a lookup gives the first.
//!
//! `postmap -s` refuses to list, as it does up to Postfix 3.9; daemons do list (3.10 and later).
//!
//! Differences from the reference: a damaged file fails lookups or the opening and not the process, a table that is
//! replaced by a damaged file stays in use, and an empty value without a NUL is no reason to crash. A file is read
//! into memory, or mapped where it is large, in a way that lets nobody end a daemon by truncating it. Both forms of a
//! key are tried each time. A temporary file left behind is made anew with the right mode and owner, and a symbolic
//! link in its place is not followed.

mod changing;
pub mod reader;
mod writer;

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::OFlag;
use postkeep_sys::error_text;
use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch, unsupported,
};

use crate::indexed::{forms, owner, warn_when_older, with_suffix};
use crate::table_type::{Capabilities, Request, TableType};
use crate::{BuildMode, Builder, Caller};

use reader::{Damage, Reader};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "cdb",
    summary: "a constant database, replaced as a whole",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::BUILD)
        .union(Capabilities::FILE),
    open,
    build: Some(build),
};

/// The largest file that a daemon holds in memory (bytes).
const DAEMON_MEMORY: u64 = 32 << 20;

/// The same for a command, which may want one key of it.
const COMMAND_MEMORY: u64 = 1 << 20;

/// How often a file is read that changes while it is read.
const ATTEMPTS: usize = 4;

/// What the reference says to every attempt to change a table.
const CONSTANT: &str = "dict_cdb_open: inappropriate open flags for cdb database - specify O_RDONLY or O_WRONLY|O_CREAT|O_TRUNC";

struct Cdb {
    /// With the suffix, as the reference names an open table.
    name: TableName,
    flags: Flags,
    reader: Reader,
    path: PathBuf,
    caller: Caller,
    owner: Owner,
    /// Damage was reported.
    reported: AtomicBool,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    if request.access == Access::ReadWrite {
        return match request.context.caller {
            Caller::Daemon => changing::open(request),
            Caller::Command => Err(OpenError::Unavailable(CONSTANT.to_owned())),
        };
    }
    let path = with_suffix(request.name.name(), ".cdb");
    let opened = open_as(
        request.name,
        request.fixed_flags(),
        &path,
        request.context.caller,
    );
    let (table, metadata) = opened.map_err(|reason| cannot_open(&path, &reason))?;
    warn_when_older(&path, &metadata, request.name.name());
    Ok(Arc::new(table))
}

/// Opens the file of a table for a daemon.
fn open_for_reading(
    name: &TableName,
    flags: Flags,
    path: &Path,
) -> Result<(Cdb, Metadata), NotRead> {
    open_as(name, flags, path, Caller::Daemon)
}

fn open_as(
    name: &TableName,
    flags: Flags,
    path: &Path,
    caller: Caller,
) -> Result<(Cdb, Metadata), NotRead> {
    let memory = match caller {
        Caller::Daemon => DAEMON_MEMORY,
        Caller::Command => COMMAND_MEMORY,
    };
    let (reader, metadata) = read(path, memory)?;
    let shown_name = [b"cdb:", path.as_os_str().as_bytes()].concat();
    let table = Cdb {
        // The name was one without the suffix.
        name: TableName::parse(&shown_name).unwrap_or_else(|_| name.clone()),
        flags: shown_flags(flags),
        reader,
        path: path.to_owned(),
        caller,
        owner: owner(metadata.uid()),
        reported: AtomicBool::new(false),
    };
    Ok((table, metadata))
}

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_bytes())
}

/// The reason for a table that does not open.
fn cannot_open(path: &Path, reason: &NotRead) -> OpenError {
    let file = shown(path);
    OpenError::Unavailable(match reason {
        NotRead::Open(error) => format!("open database {file}: {}", error_text(error)),
        NotRead::Kind(text) => format!("dict_cdbq_open: unable to init {file}: {text}"),
        NotRead::Contents(damage) => format!("error reading {file}: {damage}"),
    })
}

/// What an open table says about itself: which forms of keys are tried.
fn shown_flags(mut flags: Flags) -> Flags {
    if !flags.intersects(Flags::TRY0NULL | Flags::TRY1NULL) {
        flags.insert(Flags::TRY0NULL | Flags::TRY1NULL);
    }
    flags
}

/// Why there is nothing to ask.
#[derive(Debug)]
enum NotRead {
    Open(io::Error),
    /// It cannot be a table at all.
    Kind(&'static str),
    Contents(Damage),
}

impl NotRead {
    /// The system did not give the contents, which may be all right.
    fn is_of_the_system(&self) -> bool {
        matches!(self, Self::Open(_) | Self::Contents(Damage::Io(_)))
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => f.write_str(&error_text(error)),
            Self::Kind(text) => f.write_str(text),
            Self::Contents(damage) => damage.fmt(f),
        }
    }
}

impl From<Damage> for NotRead {
    fn from(damage: Damage) -> Self {
        Self::Contents(damage)
    }
}

/// Reads a file whole when it has at most `memory` bytes; a larger one is mapped.
fn read(path: &Path, memory: u64) -> Result<(Reader, Metadata), NotRead> {
    let contents = |error: io::Error| NotRead::Contents(Damage::from(error));
    let mut attempt = 1;
    loop {
        // Without waiting for a writer, should it be a pipe.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(NotRead::Open)?;
        let before = file.metadata().map_err(contents)?;
        if before.len() < u64::from(reader::HEADER) {
            return Err(NotRead::Kind("Protocol error"));
        }
        if !before.is_file() {
            return Err(NotRead::Kind("No such device"));
        }
        if before.len() > memory {
            let reader = Reader::from_file(file, before.len()).map_err(NotRead::Contents)?;
            return Ok((reader, before));
        }
        let bytes = read_whole(&file, before.len());
        let after = file.metadata().map_err(contents)?;
        let version =
            |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if version(&before) == version(&after) {
            let reader = bytes
                .and_then(Reader::from_bytes)
                .map_err(NotRead::Contents)?;
            return Ok((reader, after));
        }
        if attempt == ATTEMPTS {
            // Somebody writes in place; what was read may be of two tables.
            return Err(contents(io::Error::from(nix::errno::Errno::EAGAIN)));
        }
        attempt += 1;
    }
}

fn read_whole(file: &File, length: u64) -> Result<Vec<u8>, Damage> {
    let length = usize::try_from(length).map_err(|_| Damage::Structure)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl Cdb {
    /// The first time with the text, then without: a client may ask a thousand times a second.
    fn failure(&self, damage: &Damage) -> LookupError {
        if self.reported.swap(true, Ordering::Relaxed) && self.caller == Caller::Daemon {
            return LookupError::Retry(String::new());
        }
        LookupError::Retry(format!(
            "error reading {}: {damage}",
            Printable(self.path.as_os_str().as_bytes())
        ))
    }

    /// The first key, as it is stored.
    fn first_key(&self) -> Result<Option<Vec<u8>>, Damage> {
        let Some(record) = self.reader.record(self.reader.first())? else {
            return Ok(None);
        };
        let mut key = Vec::new();
        self.reader.append_stored_key(record, &mut key)?;
        Ok(Some(key))
    }

    /// Gives all entries as they are stored.
    fn each(&self, mut entry: impl FnMut(&[u8], &[u8])) -> Result<(), Damage> {
        let mut at = self.reader.first();
        let (mut key, mut value) = (Vec::new(), Vec::new());
        while let Some(record) = self.reader.record(at)? {
            key.clear();
            value.clear();
            self.reader.append_stored_key(record, &mut key)?;
            self.reader.append_stored_value(record, &mut value)?;
            entry(&key, &value);
            at = record.next();
        }
        Ok(())
    }

    fn find(&self, flags: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, Damage> {
        let record = match forms(self.flags, flags) {
            [only] => self.reader.find(key, only.tail())?,
            [first, second, ..] => self.reader.find_any(key, [first.tail(), second.tail()])?,
            [] => None,
        };
        let Some(record) = record else {
            return Ok(Outcome::Absent);
        };
        self.reader.append_value(record, value)?;
        Ok(Outcome::Done)
    }

    /// Where the entry begins that follows the one on which a cursor stands.
    ///
    /// The file may be another one than at the last step. Then the walk goes on behind the same key, and when that
    /// is gone behind as many entries as were handed out, it not being one of them.
    fn after(&self, cursor: &Cursor) -> Result<u32, Damage> {
        let Some(key) = &cursor.key else {
            return Ok(self.reader.first());
        };
        let [count, offset] = unpack(cursor.ordinal);
        if let Some(record) = self.reader.record_of(offset, key)? {
            return Ok(record.next());
        }
        if let Some(record) = self.reader.find(key, b"")? {
            return Ok(record.next());
        }
        let mut at = self.reader.first();
        for _ in 1..count {
            match self.reader.record(at)? {
                Some(record) => at = record.next(),
                None => break,
            }
        }
        Ok(at)
    }

    fn step(
        &self,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, Damage> {
        if step == Step::First {
            *cursor = Cursor::default();
        }
        let at = self.after(cursor)?;
        let Some(record) = self.reader.record(at)? else {
            return Ok(Outcome::Absent);
        };
        let mut stored = Vec::new();
        self.reader.append_stored_key(record, &mut stored)?;
        self.reader.append_value(record, value)?;
        key.extend_from_slice(crate::indexed::text(&stored));
        cursor.key = Some(stored);
        let [count, _] = unpack(cursor.ordinal);
        cursor.ordinal = u64::from(count.saturating_add(1)) << 32 | u64::from(at);
        Ok(Outcome::Done)
    }
}

/// How many entries were handed out, and where the last one began.
fn unpack(ordinal: u64) -> [u32; 2] {
    [ordinal >> 32, ordinal & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(0))
}

impl Table for Cdb {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.find(flags, key, value)
            .map_err(|damage| self.failure(&damage))
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if self.caller == Caller::Command {
            return Err(unsupported(&self.name, "sequence"));
        }
        self.step(step, cursor, key, value)
            .map_err(|damage| self.failure(&damage))
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch {
            path: self.path.clone(),
            modification_time: true,
        }]
    }

    fn owner(&self) -> Owner {
        self.owner
    }
}

fn build(request: &Request<'_>, mode: BuildMode) -> Result<Box<dyn Builder>, OpenError> {
    if mode == BuildMode::Add {
        return Err(OpenError::Unavailable(CONSTANT.to_owned()));
    }
    Ok(Box::new(writer::Creating::open(
        request.name.name(),
        request.flags,
    )?))
}

#[cfg(test)]
mod tests;
