//! Creating tables and adding to them: a file beside the table is written by the library and renamed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use log::warn;
use nix::errno::Errno;
use postkeep_sys::berkeley::{Database, Layout};
use postkeep_sys::error_text;
use postkeep_sys::lock::{Kind, LockedFile};
use postkeep_sys::process::{HeldSignals, hold_signals};
use postkeep_table::{Flags, OpenError, Outcome, TableName};

use super::generation::Changing;
use super::journal::Journal;
use super::reader::Reader;
use super::{ATTEMPTS, Caller, cannot_open, is_at, library_for, open_file, shown, words};
use crate::indexed::{Form, duplicate, prescribed_form, sync_directory, with_suffix};
use crate::table_type::Request;
use crate::{BuildError, BuildMode, Builder};

/// Memory for pages while a table is made (`berkeley_db_create_buffer_size`).
const LARGE_CACHE: u32 = 16_777_216;

/// Starts to create a table of either type, or to add to one.
pub(crate) fn build(
    request: &Request<'_>,
    layout: Layout,
    mode: BuildMode,
) -> Result<Box<dyn Builder>, OpenError> {
    // A command that is told to end does so when the table is made, as the reference does.
    let held = (request.context.caller == Caller::Command)
        .then(hold_signals)
        .transpose()
        .map_err(|error| OpenError::Unavailable(format!("sigprocmask: {}", error_text(&error))))?;
    let path = with_suffix(request.name.name(), ".db");
    let mut this = Building {
        name: request.name.clone(),
        flags: request.flags,
        layout,
        mode,
        old: open_old(&path, mode)?,
        path,
        fresh: None,
        ready: false,
        _held: held,
    };
    if mode == BuildMode::Create && this.old.is_some() {
        this.lock_old().map_err(OpenError::Unavailable)?;
        // Readers go on with the old table; others who would change it wait for the end.
        let old = this.old.as_ref();
        old.map_or(Ok(()), |old| old.hold(Kind::Shared))
            .map_err(|error| OpenError::Unavailable(this.cannot_lock(&error)))?;
    }
    match &this.old {
        Some(old) if mode == BuildMode::Add => {
            Reader::new(old.file(), layout)
                .map_err(|fault| cannot_open(&this.path, words(&fault)))?;
            library_for(&this.name, &this.path)?;
        }
        _ => {
            this.fresh = Some(Fresh::create(
                &this.name,
                &this.path,
                layout,
                this.old.is_some(),
            )?);
            this.ready = true;
        }
    }
    Ok(Box::new(this))
}

/// Makes an empty table, unless somebody else was faster.
pub(super) fn create_empty(name: &TableName, path: &Path, layout: Layout) -> Result<(), OpenError> {
    let mut fresh = Fresh::create(name, path, layout, false)?;
    fresh.close().map_err(|text| cannot_open(path, text))?;
    let made = open_file(&fresh.path, true)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::hard_link(&fresh.path, path));
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(cannot_open(path, error_text(&error)))
        }
        _ => Ok(()),
    }
}

/// Opens the table that is there. One without contents is removed.
fn open_old(path: &Path, mode: BuildMode) -> Result<Option<LockedFile>, OpenError> {
    if mode == BuildMode::Create && path.is_symlink() {
        // Replaced, whatever it points to.
        return Ok(None);
    }
    let file = match open_file(path, true) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(OpenError::Unavailable(format!(
                "open {}: {}",
                shown(path),
                error_text(&error)
            )));
        }
    };
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        if let Err(error) = fs::remove_file(path) {
            return Err(OpenError::Unavailable(format!(
                "cannot remove zero-length database file {}: {}",
                shown(path),
                error_text(&error)
            )));
        }
        warn!("removing zero-length database file: {}", shown(path));
        return Ok(None);
    }
    Ok(Some(LockedFile::with_flock(file)))
}

/// The file that becomes the table.
struct Fresh {
    /// Absolute.
    path: PathBuf,
    database: Option<Database>,
    /// It is not beside the table, and can only be copied.
    elsewhere: bool,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        drop(self.database.take());
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

impl Fresh {
    /// A name that nobody has, in the directory of the table or that of temporary files.
    fn name(path: &Path, elsewhere: bool) -> io::Result<PathBuf> {
        let mut place = if elsewhere {
            std::env::temp_dir().join("x")
        } else {
            path.to_path_buf()
        };
        // The standard library seeds this anew, from the kernel, for each process and each call.
        let number = RandomState::new().hash_one(std::process::id());
        place.set_file_name(format!(".postkeep-{number:016x}"));
        std::path::absolute(place)
    }

    /// Makes a database without entries.
    ///
    /// - `may_copy`: the table can be overwritten where its directory does not allow for new files
    fn create(
        name: &TableName,
        path: &Path,
        layout: Layout,
        may_copy: bool,
    ) -> Result<Self, OpenError> {
        let library = library_for(name, path)?;
        let mut elsewhere = false;
        loop {
            let place = Self::name(path, elsewhere)
                .map_err(|error| cannot_open(path, error_text(&error)))?;
            match library.open(&place, layout, true, LARGE_CACHE) {
                Ok(database) => {
                    return Ok(Self {
                        path: place,
                        database: Some(database),
                        elsewhere,
                    });
                }
                Err(error) if may_copy && !elsewhere && forbids(error.number()) => elsewhere = true,
                Err(error) => return Err(cannot_open(path, error)),
            }
        }
    }

    /// Copies a table and opens the copy.
    fn copy(name: &TableName, path: &Path, layout: Layout, old: &File) -> Result<Self, String> {
        let library = library_for(name, path).map_err(|error| error.to_string())?;
        let failure = |error: io::Error| cannot_open(path, error_text(&error)).to_string();
        let mut elsewhere = false;
        loop {
            let place = Self::name(path, elsewhere).map_err(failure)?;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&place);
            let mut file = match file {
                Ok(file) => file,
                Err(error) if !elsewhere && error.raw_os_error().is_some_and(forbids) => {
                    elsewhere = true;
                    continue;
                }
                Err(error) => return Err(failure(error)),
            };
            let mut this = Self {
                path: place,
                database: None,
                elsewhere,
            };
            copy(old, &mut file).map_err(failure)?;
            let database = library
                .open(&this.path, layout, false, LARGE_CACHE)
                .map_err(|error| cannot_open(path, error).to_string())?;
            this.database = Some(database);
            return Ok(this);
        }
    }

    /// Writes what is in memory.
    fn close(&mut self) -> Result<(), String> {
        match self.database.take() {
            Some(database) => database.close(false).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// No file can be made in a directory, which says nothing about those in it.
fn forbids(error: i32) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::EROFS].contains(&Errno::from_raw(error))
}

fn copy(mut from: &File, to: &mut File) -> io::Result<()> {
    from.rewind()?;
    io::copy(&mut from, to)?;
    Ok(())
}

/// A table that is being made, or added to.
struct Building {
    name: TableName,
    flags: Flags,
    path: PathBuf,
    layout: Layout,
    mode: BuildMode,
    old: Option<LockedFile>,
    fresh: Option<Fresh>,
    /// The table is locked, and `fresh` has its entries where they stay. Until then the input may keep everybody
    /// waiting.
    ready: bool,
    _held: Option<HeldSignals>,
}

impl Building {
    fn cannot_lock(&self, error: &io::Error) -> String {
        format!("lock {}: {}", shown(&self.path), error_text(error))
    }

    fn failure(&self, reason: impl std::fmt::Display) -> BuildError {
        BuildError::Failed(format!("error writing {}: {reason}", shown(&self.path)))
    }

    /// Waits until nobody else uses the table, which is then the one of that name. It may be gone.
    fn lock_old(&mut self) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            let Some(old) = &self.old else { return Ok(()) };
            old.hold(Kind::Exclusive)
                .map_err(|error| self.cannot_lock(&error))?;
            if is_at(old.file(), &self.path).map_err(|error| self.cannot_lock(&error))? {
                return Ok(());
            }
            self.old = open_old(&self.path, self.mode).map_err(|error| error.to_string())?;
        }
        Err(self.cannot_lock(&Errno::EAGAIN.into()))
    }

    fn prepare(&mut self) -> Result<(), BuildError> {
        if self.ready {
            return Ok(());
        }
        self.lock_old().map_err(BuildError::Failed)?;
        let fresh = match &self.old {
            Some(old) => {
                Journal::of(&self.path)
                    .recover(old.file())
                    .map_err(|error| self.failure(error_text(&error)))?;
                Reader::new(old.file(), self.layout)
                    .and_then(|reader| reader.check())
                    .map_err(|fault| self.failure(words(&fault)))?;
                Fresh::copy(&self.name, &self.path, self.layout, old.file())
            }
            None => Fresh::create(&self.name, &self.path, self.layout, false)
                .map_err(|error| error.to_string()),
        };
        self.fresh = Some(fresh.map_err(BuildError::Failed)?);
        self.ready = true;
        Ok(())
    }

    /// Gives the file the mode and the owner of the old one; false when that is not allowed.
    fn adopt(&self, file: &File) -> io::Result<bool> {
        let Some(old) = &self.old else {
            return Ok(true);
        };
        let (wanted, made) = (old.file().metadata()?, file.metadata()?);
        if (wanted.uid(), wanted.gid()) != (made.uid(), made.gid())
            && fchown(file, Some(wanted.uid()), Some(wanted.gid())).is_err()
        {
            return Ok(false);
        }
        file.set_permissions(Permissions::from_mode(wanted.mode() & 0o7777))?;
        Ok(true)
    }

    /// Puts the new file in the place of the old one.
    fn replace(&self, fresh: &Fresh) -> io::Result<()> {
        let _changing = Changing;
        let file = open_file(&fresh.path, true)?;
        if let Some(old) = &self.old
            && (fresh.elsewhere || !self.adopt(&file)?)
        {
            old.hold(Kind::Exclusive)?;
            old.file().set_len(0)?;
            let mut to = old.file();
            to.rewind()?;
            copy(&file, &mut to.try_clone()?)?;
            return to.sync_all();
        }
        file.sync_all()?;
        fs::rename(&fresh.path, &self.path)?;
        sync_directory(&self.path);
        Ok(())
    }
}

impl Builder for Building {
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError> {
        self.prepare()?;
        let tail = prescribed_form(self.flags, flags)
            .unwrap_or(Form::WithNul)
            .tail();
        let replace = flags.contains(Flags::DUP_REPLACE);
        let database = self
            .fresh
            .as_mut()
            .and_then(|fresh| fresh.database.as_mut());
        let result = match database {
            Some(database) => database.put(&[key, tail].concat(), &[value, tail].concat(), replace),
            None => return Err(self.failure(error_text(&Errno::EBADF.into()))),
        };
        if result.map_err(|error| self.failure(error))? {
            return Ok(Outcome::Done);
        }
        match duplicate(shown(&self.path), flags, key) {
            None => Ok(Outcome::Absent),
            Some(text) => Err(BuildError::Failed(text)),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<(), BuildError> {
        self.prepare()?;
        let Some(mut fresh) = self.fresh.take() else {
            return Ok(());
        };
        fresh.close().map_err(|text| {
            BuildError::Failed(format!("flush database {}: {text}", shown(&self.path)))
        })?;
        self.replace(&fresh)
            .map_err(|error| self.failure(error_text(&error)))
    }
}
