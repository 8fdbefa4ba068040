//! What was changed, so that it can be taken back: one directory for each adopted configuration directory.
//!
//! The directory holds `state.json`, the bytes that master.cf had before (`master.cf.before`) and that adoption
//! gave it (`master.cf.after`), and, unless a package has them, the links that master(8) starts the daemons
//! through. The record is on disk before the first change is made, and goes after the last one is taken back; so
//! whatever happens between, there is enough to take it back.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use postkeep_sys::error_text;
use serde_json::{Value, json};

/// Where records are.
pub(crate) const STATE_DIRECTORY: &str = "/var/lib/postkeep/adopted";

/// How far an adoption has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Changes are being made, or were when the process ended.
    Changing,
    /// Everything is in place; the log is being watched, or was when the process ended.
    Watching,
    /// Done.
    Adopted,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Changing => "changing",
            Self::Watching => "watching",
            Self::Adopted => "adopted",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Changing, Self::Watching, Self::Adopted]
            .into_iter()
            .find(|phase| phase.word() == word)
    }
}

/// An entry of master.cf that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// `NAME/TYPE`, as postconf names entries.
    pub(crate) key: String,
    /// The command before.
    pub(crate) before: String,
    /// The command since.
    pub(crate) after: String,
}

/// One adoption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) config_directory: PathBuf,
    /// The executable behind the links.
    pub(crate) executable: PathBuf,
    /// Of Postfix, when it was adopted.
    pub(crate) version: String,
    pub(crate) entries: Vec<Changed>,
}

impl Record {
    fn to_json(&self) -> Value {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(
                |entry| json!({"service": entry.key, "before": entry.before, "after": entry.after}),
            )
            .collect();
        json!({
            "format": 1,
            "phase": self.phase.word(),
            "config_directory": self.config_directory.to_string_lossy(),
            "executable": self.executable.to_string_lossy(),
            "version": self.version,
            "entries": entries,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str();
        let entries = value.get("entries")?.as_array()?.iter().map(|entry| {
            let text = |name: &str| Some(entry.get(name)?.as_str()?.to_owned());
            Some(Changed {
                key: text("service")?,
                before: text("before")?,
                after: text("after")?,
            })
        });
        Some(Self {
            phase: Phase::parse(text("phase")?)?,
            config_directory: text("config_directory")?.into(),
            executable: text("executable")?.into(),
            version: text("version")?.to_owned(),
            entries: entries.collect::<Option<_>>()?,
        })
    }
}

/// The directory of records; while this exists no other process changes one.
#[derive(Debug)]
pub(crate) struct Shelf {
    directory: PathBuf,
    /// `None` for a reader.
    lock: Option<File>,
}

/// One record's directory.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    directory: PathBuf,
}

impl Shelf {
    /// For reading only; nothing is created.
    pub(crate) fn peek(directory: Option<&Path>) -> Self {
        Self {
            directory: directory.unwrap_or(Path::new(STATE_DIRECTORY)).to_owned(),
            lock: None,
        }
    }

    /// Creates the directory when it is not there, and locks it.
    ///
    /// # Errors
    /// It cannot be written, or another process is at work.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, String> {
        let mut shelf = Self::peek(directory);
        let directory = &shelf.directory;
        let fault = |error: &io::Error| format!("{}: {}", directory.display(), error_text(error));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory.parent().unwrap_or(directory))
            .map_err(|error| fault(&error))?;
        if !directory.is_dir() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(directory)
                .map_err(|error| fault(&error))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join(".lock"))
            .map_err(|error| fault(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err("another postkeep adopt or release is at work".to_owned());
            }
            Err(fs::TryLockError::Error(error)) => return Err(fault(&error)),
        }
        shelf.lock = Some(lock);
        Ok(shelf)
    }

    /// Where the record of a configuration directory is, or would be.
    pub(crate) fn slot(&self, config_directory: &Path) -> Slot {
        let name = config_directory
            .to_string_lossy()
            .replace('%', "%25")
            .replace('+', "%2B")
            .trim_start_matches('/')
            .replace('/', "+");
        Slot {
            directory: self.directory.join(name),
        }
    }

    /// All configuration directories with a record, in order.
    pub(crate) fn all(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                entry.path().join("state.json").is_file().then_some(())?;
                let name = name
                    .replace('+', "/")
                    .replace("%2B", "+")
                    .replace("%25", "%");
                Some(Path::new("/").join(name))
            })
            .collect();
        found.sort();
        found
    }
}

impl Slot {
    /// The directory that the links are in when no package has them.
    pub(crate) fn links(&self) -> &Path {
        &self.directory
    }

    /// The bytes that master.cf had.
    pub(crate) fn before(&self) -> PathBuf {
        self.directory.join("master.cf.before")
    }

    /// The bytes that adoption gave it.
    pub(crate) fn after(&self) -> PathBuf {
        self.directory.join("master.cf.after")
    }

    /// The record; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub(crate) fn read(&self) -> Result<Option<Record>, String> {
        let path = self.directory.join("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {}", path.display(), error_text(&error))),
        };
        serde_json::from_slice(&text)
            .ok()
            .and_then(|value| Record::from_json(&value))
            .map(Some)
            .ok_or_else(|| format!("{} makes no sense", path.display()))
    }

    /// Writes the record; the first time with a copy of master.cf in front.
    ///
    /// # Errors
    /// Something cannot be written.
    pub(crate) fn begin(&self, record: &Record, master_cf: &Path) -> Result<(), String> {
        self.clear()?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| format!("{}: {}", self.directory.display(), error_text(&error)))?;
        copy(master_cf, &self.before())?;
        self.write(record)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// It cannot be written; then the old one is still there.
    pub(crate) fn write(&self, record: &Record) -> Result<(), String> {
        let mut text = format!("{:#}", record.to_json()).into_bytes();
        text.push(b'\n');
        replace(&self.directory.join("state.json"), &text, Face::PRIVATE)
    }

    /// Removes the record, and then what belonged to it: without the record it means nothing, while a record without
    /// its copy of master.cf could not be taken back.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(crate) fn clear(&self) -> Result<(), String> {
        let fault =
            |error: io::Error| format!("{}: {}", self.directory.display(), error_text(&error));
        if !self.directory.exists() {
            return Ok(());
        }
        match fs::remove_file(self.directory.join("state.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        fs::remove_dir_all(&self.directory).map_err(fault)
    }
}

/// Mode and owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Face {
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Face {
    const PRIVATE: Self = Self {
        mode: 0o600,
        owner: None,
    };

    /// That of a file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            mode: metadata.mode() & 0o7777,
            owner: Some((metadata.uid(), metadata.gid())),
        })
    }
}

/// Puts a file in the place of another, whole, on disk.
///
/// # Errors
/// It cannot be written; then the old one is still there.
pub(crate) fn replace(path: &Path, bytes: &[u8], face: Face) -> Result<(), String> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".postkeep-new");
    let new = path.with_file_name(name);
    let write = || {
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        if let Some((user, group)) = face.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.set_permissions(Permissions::from_mode(face.mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        format!("{}: {}", path.display(), error_text(&error))
    })
}

/// Copies a file with mode and owner.
///
/// # Errors
/// It cannot be read, or the copy not written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let fault = |error: io::Error| format!("{}: {}", from.display(), error_text(&error));
    let bytes = fs::read(from).map_err(fault)?;
    let face = Face::of(from).map_err(fault)?;
    replace(to, &bytes, face)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            phase: Phase::Changing,
            config_directory: "/etc/post+fix/50%".into(),
            executable: "/usr/bin/postkeep".into(),
            version: "3.7.11".to_owned(),
            entries: vec![Changed {
                key: "scache/unix".to_owned(),
                before: "scache".to_owned(),
                after: "../x/scache".to_owned(),
            }],
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let scratch = tempfile::tempdir().unwrap();
        let state = scratch.path().join("state");
        let master = scratch.path().join("master.cf");
        fs::write(&master, "x\n").unwrap();
        let shelf = Shelf::open(Some(&state)).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        let record = record();
        let slot = shelf.slot(&record.config_directory);
        assert_eq!(slot.read(), Ok(None));
        slot.begin(&record, &master).unwrap();
        assert_eq!(slot.read(), Ok(Some(record.clone())));
        assert_eq!(shelf.all(), std::slice::from_ref(&record.config_directory));
        assert_eq!(fs::read(slot.before()).unwrap(), b"x\n");
        slot.clear().unwrap();
        assert_eq!(slot.read(), Ok(None));
        assert_eq!(shelf.all(), Vec::<PathBuf>::new());
        slot.clear().unwrap();
    }

    #[test]
    fn one_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let state = scratch.path().join("state");
        let first = Shelf::open(Some(&state)).unwrap();
        assert!(Shelf::open(Some(&state)).is_err());
        drop(first);
        assert!(Shelf::open(Some(&state)).is_ok());
    }

    #[test]
    fn records_that_make_no_sense_are_errors() {
        let scratch = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(Some(scratch.path())).unwrap();
        let slot = shelf.slot(Path::new("/etc/postfix"));
        fs::create_dir(slot.links()).unwrap();
        for text in ["", "{}", "[1", "{\"phase\": \"lost\"}"] {
            fs::write(slot.links().join("state.json"), text).unwrap();
            assert!(slot.read().is_err(), "{text}");
        }
    }

    #[test]
    fn a_replaced_file_keeps_its_face() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let face = Face::of(&path).unwrap();
        replace(&path, b"new", face).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(Face::of(&path).unwrap(), face);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
