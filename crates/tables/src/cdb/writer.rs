//! Making a cdb file: everything is collected, then written beside the old file and renamed over it.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use postkeep_sys::error_text;
use postkeep_table::{Flags, OpenError, Outcome, Printable};

use crate::indexed::{Form, duplicate, prescribed_form, sync_directory, with_suffix};
use crate::{BuildError, Builder};

use super::reader::{HASH_START, HEADER, hash};

/// Positions have 32 bits.
const LARGEST: u64 = u32::MAX as u64;

/// How often the temporary file is opened that others make, use and rename at the same time.
const ATTEMPTS: usize = 100;

/// What a record takes beside its key and its value: two lengths, two slots.
const OVERHEAD: u64 = 8 + 16;

/// A table that is being made.
pub(super) struct Creating {
    name: Vec<u8>,
    flags: Flags,
    path: PathBuf,
    temporary: PathBuf,
    /// Locked until it is closed.
    file: File,
    entries: Entries,
    /// The temporary file has become the table.
    renamed: bool,
}

/// The entries of a table that is changed, by their stored form.
#[derive(Default)]
pub(super) struct Stored(Entries);

impl Stored {
    /// Takes over an entry that is there. Of several with one key only the first counts, as in a lookup.
    pub fn load(&mut self, key: &[u8], value: &[u8]) {
        // What is in a file fits into one.
        self.0.put_stored(Flags::empty(), key, value, LARGEST);
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.0.write(out)
    }
}

impl crate::group::Entries for Stored {
    type Error = io::Error;

    fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> io::Result<bool> {
        let flags = if replace {
            Flags::DUP_REPLACE
        } else {
            Flags::empty()
        };
        match self.0.put_stored(flags, key, value, LARGEST) {
            Put::Stored => Ok(true),
            Put::Duplicate => Ok(false),
            Put::TooLarge => Err(io::Error::other("a cdb file cannot be larger than 4 GB")),
        }
    }

    fn delete(&mut self, key: &[u8]) -> io::Result<bool> {
        Ok(self.0.delete(key))
    }
}

/// The entries, in order.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    list: Vec<Entry>,
    /// The number of the first entry of each key.
    numbers: HashMap<Box<[u8]>, usize>,
    /// What the file will take.
    size: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    key: usize,
    value: usize,
    /// Another one took its place, or it was deleted.
    replaced: bool,
}

impl Creating {
    pub fn open(name: &[u8], flags: Flags) -> Result<Self, OpenError> {
        let temporary = with_suffix(name, ".cdb.tmp");
        let file = open_temporary(&temporary).map_err(|error| {
            OpenError::Unavailable(format!(
                "open database {}: {}",
                shown(&temporary),
                error_text(&error)
            ))
        })?;
        Ok(Self {
            name: name.to_vec(),
            flags,
            path: with_suffix(name, ".cdb"),
            temporary,
            file,
            entries: Entries::default(),
            renamed: false,
        })
    }

    /// Makes a table of what there is, unless somebody else was faster.
    pub fn finish_unless_there(self) -> io::Result<()> {
        if self.path.exists() {
            return Ok(());
        }
        Box::new(self)
            .finish()
            .map_err(|error| io::Error::other(error.to_string()))
    }

    fn failure(&self, error: &io::Error) -> BuildError {
        BuildError::Failed(format!(
            "error writing {}: {}",
            shown(&self.temporary),
            error_text(error)
        ))
    }
}

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_bytes())
}

/// Makes the temporary file and locks it; waits for others that are making the same table.
///
/// One that was left behind goes: its mode and its owner need not be those that the table is to have.
pub(super) fn open_temporary(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o644)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    for _ in 0..ATTEMPTS {
        let (file, made) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match options.open(path) {
                    Ok(file) => (file, false),
                    // Renamed in between.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        file.lock()?;
        if !is_at(&file, path)? {
            continue;
        }
        if made {
            return Ok(file);
        }
        fs::remove_file(path)?;
    }
    Err(nix::errno::Errno::EAGAIN.into())
}

/// The file is still the one of this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What came of an entry.
#[derive(Debug, PartialEq, Eq)]
enum Put {
    Stored,
    /// There is one with this key, and it stays.
    Duplicate,
    /// The file would be larger than its positions can tell.
    TooLarge,
}

impl Entries {
    /// Adds an entry; keys and values without what the form puts behind them.
    fn put(&mut self, form: Form, flags: Flags, key: &[u8], value: &[u8], largest: u64) -> Put {
        let tail = form.tail();
        let (key, value) = ([key, tail].concat(), [value, tail].concat());
        self.put_stored(flags, &key, &value, largest)
    }

    /// Removes an entry; false when there is none.
    fn delete(&mut self, key: &[u8]) -> bool {
        let Some(number) = self.numbers.remove(key) else {
            return false;
        };
        self.list[number].replaced = true;
        self.size -= self.list[number].size();
        true
    }

    fn put_stored(&mut self, flags: Flags, stored: &[u8], value: &[u8], largest: u64) -> Put {
        let next = self.list.len();
        let mut size = self.size;
        let mut entry = Entry {
            start: self.bytes.len(),
            key: stored.len(),
            value: value.len(),
            replaced: false,
        };
        let place = self.numbers.entry(stored.into());
        let old = match &place {
            Place::Occupied(old) => Some(*old.get()),
            Place::Vacant(_) => None,
        };
        match old {
            Some(old) if flags.contains(Flags::DUP_REPLACE) => size -= self.list[old].size(),
            Some(_) if !flags.contains(Flags::DUP_IGNORE) => return Put::Duplicate,
            _ => {}
        }
        size += entry.size();
        if u64::from(HEADER) + size > largest {
            return Put::TooLarge;
        }
        match (old, place) {
            (Some(old), Place::Occupied(mut place)) if flags.contains(Flags::DUP_REPLACE) => {
                self.list[old].replaced = true;
                place.insert(next);
            }
            (_, Place::Vacant(place)) => {
                place.insert(next);
            }
            _ => {}
        }
        self.size = size;
        entry.start = self.bytes.len();
        for piece in [stored, value] {
            self.bytes.extend_from_slice(piece);
        }
        self.list.push(entry);
        Put::Stored
    }

    /// Writes the file.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut slots: [Vec<(u32, u32)>; 256] = [const { Vec::new() }; 256];
        let mut at = u64::from(HEADER);
        for entry in self.kept() {
            let hash = hash(
                HASH_START,
                &self.bytes[entry.start..entry.start + entry.key],
            );
            slots[(hash & 255) as usize].push((hash, number(at)));
            at += 8 + (entry.key + entry.value) as u64;
        }
        for table in &slots {
            out.write_all(&bytes(number(at), number(2 * table.len() as u64)))?;
            at += 16 * table.len() as u64;
        }
        for entry in self.kept() {
            out.write_all(&bytes(number(entry.key as u64), number(entry.value as u64)))?;
            out.write_all(&self.bytes[entry.start..entry.start + entry.key + entry.value])?;
        }
        let mut table = Vec::new();
        for filled in &slots {
            let length = 2 * filled.len();
            table.clear();
            table.resize(length, (0, 0));
            for &(hash, position) in filled {
                let mut slot = (hash >> 8) as usize % length;
                while table[slot].1 != 0 {
                    slot = (slot + 1) % length;
                }
                table[slot] = (hash, position);
            }
            for &(hash, position) in &table {
                out.write_all(&bytes(hash, position))?;
            }
        }
        Ok(())
    }

    fn kept(&self) -> impl Iterator<Item = &Entry> {
        self.list.iter().filter(|entry| !entry.replaced)
    }
}

impl Entry {
    fn size(&self) -> u64 {
        OVERHEAD + (self.key + self.value) as u64
    }
}

/// A number that fits because the size of the file does.
fn number(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn bytes(one: u32, two: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&one.to_le_bytes());
    bytes[4..].copy_from_slice(&two.to_le_bytes());
    bytes
}

impl Builder for Creating {
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError> {
        let form = prescribed_form(self.flags, flags).unwrap_or(Form::Plain);
        match self.entries.put(form, flags, key, value, LARGEST) {
            Put::Stored => Ok(Outcome::Done),
            Put::Duplicate => match duplicate(Printable(&self.name), flags, key) {
                None => Ok(Outcome::Absent),
                Some(text) => Err(BuildError::Failed(text)),
            },
            Put::TooLarge => Err(BuildError::Failed(format!(
                "error writing {}: a cdb file cannot be larger than 4 GB",
                shown(&self.temporary)
            ))),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<(), BuildError> {
        let mut out = BufWriter::with_capacity(1 << 16, &self.file);
        self.entries
            .write(&mut out)
            .and_then(|()| out.flush())
            .and_then(|()| self.file.sync_all())
            .map_err(|error| self.failure(&error))?;
        drop(out);
        fs::rename(&self.temporary, &self.path).map_err(|error| {
            BuildError::Failed(format!(
                "rename database from {} to {}: {}",
                shown(&self.temporary),
                shown(&self.path),
                error_text(&error)
            ))
        })?;
        self.renamed = true;
        sync_directory(&self.path);
        Ok(())
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_has_a_limit_and_what_is_replaced_does_not_count() {
        let mut entries = Entries::default();
        let limit = u64::from(HEADER) + 2 * (OVERHEAD + 3);
        let mut put = |flags, key: &[u8]| entries.put(Form::Plain, flags, key, b"vv", limit);
        assert_eq!(put(Flags::DUP_WARN, b"a"), Put::Stored);
        assert_eq!(put(Flags::DUP_WARN, b"b"), Put::Stored);
        assert_eq!(put(Flags::DUP_WARN, b"b"), Put::Duplicate);
        assert_eq!(put(Flags::DUP_WARN, b"c"), Put::TooLarge);
        assert_eq!(put(Flags::DUP_IGNORE, b"b"), Put::TooLarge);
        assert_eq!(put(Flags::DUP_REPLACE, b"a"), Put::Stored);
        let mut file = Vec::new();
        entries.write(&mut file).unwrap();
        assert_eq!(file.len() as u64, limit);
    }
}
