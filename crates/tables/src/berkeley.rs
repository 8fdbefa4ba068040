//! Tables in Berkeley DB files: `hash:` and `btree:` (Postfix `src/util/dict_db.c`).
//!
//! Reading is ours ([`reader`]); writing is the library's ([`postkeep_sys::berkeley`]). A file is open once per table.
//! Its pages are read with pread(2) under a shared lock; those of a file that stays the same are kept ([`generation`]),
//! and looked up in without a lock and without a system call.

mod build;
mod generation;
mod hash_pages;
mod journal;
mod pages;
pub mod reader;
mod tree_pages;

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use postkeep_sys::berkeley::{Database, Error, Layout, Library, library};
use postkeep_sys::error_text;
use postkeep_sys::lock::{Kind, LockedFile};
use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch,
};

use crate::Caller;
use crate::damaged;
use crate::group::{Change, Entries, Group, Store};
use crate::indexed::{
    Form, duplicate, forms, owner, prescribed_form, text, warn_when_older, with_suffix,
};
use crate::table_type::{Capabilities, Request};

use generation::{Changing, Generation, Settling, Stamp, stamp};
use journal::Journal;
use reader::{Fault, Header, Reader};

pub(crate) use build::build;

/// What tables of both types can do.
pub(crate) const CAPABILITIES: Capabilities = Capabilities::UPDATE
    .union(Capabilities::DELETE)
    .union(Capabilities::SEQUENCE)
    .union(Capabilities::BUILD)
    .union(Capabilities::FILE);

/// Memory for pages while one entry is changed (`berkeley_db_read_buffer_size`).
const SMALL_CACHE: u32 = 131_072;

/// How often a file is opened that is replaced while it is opened.
const ATTEMPTS: usize = 8;

/// Pauses before a file that looks damaged is read again: a program that changed it may have given up its lock before
/// all was written, as the reference does.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];

/// How long a file that looks cut off may stay locked by the program that makes it.
const LONGEST_MAKING: Duration = Duration::from_secs(10);

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_bytes())
}

/// Which file it is.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The file is still the one of this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(there) => Ok(identity(&there) == identity(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a regular file, without waiting for anybody should it be something else.
fn open_file(path: &Path, write: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR.into());
    }
    if !metadata.is_file() {
        return Err(Errno::EINVAL.into());
    }
    Ok(file)
}

/// The reason for a table that does not open.
fn cannot_open(path: &Path, reason: impl std::fmt::Display) -> OpenError {
    OpenError::Unavailable(format!("open database {}: {reason}", shown(path)))
}

/// The library, or the reason with the way out.
fn library_for(name: &TableName, path: &Path) -> Result<&'static Library, OpenError> {
    library().map_err(|error| {
        let file = Printable(name.name());
        let convert = if path.exists() {
            format!("postmap -s {name} | postmap -fui lmdb:{file}")
        } else {
            format!("postmap lmdb:{file}")
        };
        cannot_open(
            path,
            format!(
                "the Berkeley DB library, which is needed to write it, is not available ({error}); use an lmdb table \
                 instead: {convert}"
            ),
        )
    })
}

/// An error number in words.
fn words(fault: &Fault) -> String {
    error_text(&io::Error::from_raw_os_error(fault.number()))
}

struct Berkeley {
    /// With the suffix, as the reference names an open table.
    name: TableName,
    path: PathBuf,
    layout: Layout,
    flags: Flags,
    write: bool,
    caller: Caller,
    owner: Owner,
    file: RwLock<Arc<LockedFile>>,
    /// Pages of that file, where it stays as it is. Changed only while `file` is locked, so that it is never that of
    /// a file before.
    generation: ArcSwapOption<Generation>,
    settling: Settling,
    /// The form in which a key was found: 0 not known, 1 with NUL, 2 plain.
    seen: AtomicU8,
    /// The file when damage in it was reported.
    reported: Mutex<Option<Stamp>>,
    /// The file when it was last found, or left, whole.
    whole: Mutex<Option<Stamp>>,
    journal: Mutex<Journal>,
    group: Group<Change, Failure>,
}

/// Why a change was not made.
enum Failure {
    /// To be said with what was being done.
    Reason(String),
    Whole(LookupError),
}

impl Entries for Database {
    type Error = Error;

    fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Error> {
        Database::put(self, key, value, replace)
    }

    fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        Database::delete(self, key)
    }
}

/// Checks that a file is not cut off. One that a program is making anew in place looks so for a while, but is locked
/// as long: such a program is waited for, also where the opener did not ask for locks.
fn check_whole(file: &LockedFile, layout: Layout) -> Result<(), Fault> {
    let check = || Reader::new(file.file(), layout).and_then(|reader| reader.check_length());
    let Err(fault) = check() else { return Ok(()) };
    let limit = Instant::now() + LONGEST_MAKING;
    loop {
        match file.try_read() {
            Ok(Some(_guard)) => return check(),
            Ok(None) if Instant::now() < limit => thread::sleep(PAUSES[1]),
            Ok(None) | Err(_) => return Err(fault),
        }
    }
}

/// Sets a file aside that is damaged; false when it is not, or cannot be set aside. The file is locked exclusively.
fn set_aside(file: &File, path: &Path, layout: Layout) -> bool {
    let other = match layout {
        Layout::Btree => Layout::Hash,
        Layout::Hash => Layout::Btree,
    };
    match Reader::new(file, layout).and_then(|reader| reader.check()) {
        Ok(()) | Err(Fault::Io(_)) => false,
        // A table of the other type is a mistake in the configuration.
        Err(_) if Reader::new(file, other).is_ok() => false,
        Err(fault) => is_at(file, path).unwrap_or(false) && damaged::set_aside(path, fault),
    }
}

/// Opens a table of either type.
pub(crate) fn open(request: &Request<'_>, layout: Layout) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(Berkeley::open(request, layout)?))
}

impl Berkeley {
    fn open(request: &Request<'_>, layout: Layout) -> Result<Self, OpenError> {
        let path = with_suffix(request.name.name(), ".db");
        let write = request.access == Access::ReadWrite;
        let mut file = open_file(&path, write);
        if write
            && request.context.caller == Caller::Daemon
            && let Err(error) = &file
            && error.kind() == io::ErrorKind::NotFound
        {
            build::create_empty(request.name, &path, layout)?;
            file = open_file(&path, write);
        }
        let file = file.map_err(|error| cannot_open(&path, error_text(&error)))?;
        let metadata = file
            .metadata()
            .map_err(|error| cannot_open(&path, error_text(&error)))?;
        let file = LockedFile::with_flock(file);
        let mut journal = Journal::of(&path);
        if write {
            // A change that was cut off is completed at once, so that others find the table whole. Whoever has it locked
            // is at work, and will do that.
            file.try_write()
                .and_then(|guard| guard.map_or(Ok(()), |_guard| journal.recover(file.file())))
                .map_err(|error| cannot_open(&path, error_text(&error)))?;
        }
        {
            let _guard = request
                .flags
                .contains(Flags::LOCK)
                .then(|| file.read())
                .transpose()
                .map_err(|error| {
                    OpenError::Unavailable(format!(
                        "shared-lock database {} for open: {}",
                        shown(&path),
                        error_text(&error)
                    ))
                })?;
            if let Err(fault) = check_whole(&file, layout) {
                let heals = write && request.context.caller == Caller::Daemon;
                let locked = heals
                    .then(|| file.try_write())
                    .transpose()
                    .map_err(|error| cannot_open(&path, error_text(&error)))?
                    .flatten();
                if locked.is_some() && set_aside(file.file(), &path, layout) {
                    return Self::open(request, layout);
                }
                return Err(cannot_open(&path, words(&fault)));
            }
        }
        if write {
            library_for(request.name, &path)?;
        }
        let name =
            TableName::parse(&[request.name.kind(), b":", path.as_os_str().as_bytes()].concat())
                .map_err(|error| OpenError::Unavailable(error.to_string()))?;
        if request.flags.contains(Flags::LOCK) {
            warn_when_older(&path, &metadata, request.name.name());
        }
        let mut flags = request.fixed_flags();
        if !flags.intersects(Flags::TRY0NULL | Flags::TRY1NULL) {
            flags.insert(Flags::TRY0NULL | Flags::TRY1NULL);
        }
        let table = Self {
            name,
            path,
            layout,
            flags,
            write,
            caller: request.context.caller,
            owner: owner(metadata.uid()),
            journal: Mutex::new(journal),
            group: Group::default(),
            file: RwLock::new(Arc::new(file)),
            generation: ArcSwapOption::empty(),
            settling: Settling::default(),
            seen: AtomicU8::new(0),
            reported: Mutex::new(None),
            whole: Mutex::new(None),
        };
        table.hold(&table.current()).map_err(|error| {
            OpenError::Unavailable(format!(
                "{}: unable to get exclusive lock: {}",
                request.name,
                error_text(&error)
            ))
        })?;
        Ok(table)
    }

    fn current(&self) -> Arc<LockedFile> {
        Arc::clone(&self.file.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the lock that is held for as long as the table is open, where the opener wants it.
    fn hold(&self, file: &LockedFile) -> io::Result<()> {
        if !self.flags.contains(Flags::OPEN_LOCK) || file.try_hold(Kind::Exclusive)? {
            return Ok(());
        }
        Err(Errno::EAGAIN.into())
    }

    /// Goes on with the file that has the table's name now.
    fn reopen(&self) -> Result<(), LookupError> {
        let file = open_file(&self.path, self.write)
            .map(LockedFile::with_flock)
            .and_then(|file| self.hold(&file).map(|()| file))
            .map_err(|error| {
                LookupError::Retry(cannot_open(&self.path, error_text(&error)).to_string())
            })?;
        let mut current = self.file.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(file);
        self.generation.store(None);
        Ok(())
    }

    /// Whether an access locks the file. A table that is written by this process is locked in any case: that is what
    /// keeps its own threads apart.
    fn locks(&self, flags: Flags) -> bool {
        self.write || (flags | self.flags).contains(Flags::LOCK)
    }

    fn cannot_lock(&self, error: &io::Error) -> LookupError {
        LookupError::Retry(format!(
            "{}: lock dictionary: {}",
            shown(&self.path),
            error_text(error)
        ))
    }

    /// Damage is reported once, until the file is another one: a client may ask a thousand times a second.
    fn failure(&self, file: &File, text: String) -> LookupError {
        let now = stamp(file).ok();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let known = now.is_some() && *reported == now;
        *reported = now;
        if known && self.caller == Caller::Daemon {
            return LookupError::Retry(String::new());
        }
        LookupError::Retry(text)
    }

    /// Damage in the file as it is was reported.
    fn is_reported(&self, file: &File) -> bool {
        let reported = *self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.is_some() && stamp(file).ok() == reported
    }

    /// Begins anew where the file is damaged, and this is what a daemon writes to; false where that is not so.
    fn heal(&self) -> bool {
        if !self.write || self.caller != Caller::Daemon {
            return false;
        }
        let file = self.current();
        let Ok(guard) = file.write() else {
            return false;
        };
        let is_aside = set_aside(file.file(), &self.path, self.layout);
        drop(guard);
        is_aside && self.begin_anew().is_ok()
    }

    /// Makes an empty table in the place of one that was set aside.
    fn begin_anew(&self) -> Result<(), LookupError> {
        build::create_empty(&self.name, &self.path, self.layout)
            .map_err(|error| LookupError::Retry(error.to_string()))?;
        self.reopen()
    }

    /// Keeps pages of a file that is still the table's.
    fn keep(&self, file: &Arc<LockedFile>, generation: Generation) {
        let current = self.file.read().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, file) {
            self.generation.store(Some(Arc::new(generation)));
        }
    }

    fn forget(&self, generation: &Arc<Generation>) {
        self.generation.compare_and_swap(generation, None);
    }

    /// Looks up in the state of the file of which pages are kept. `None` where there is none, or it gives no answer;
    /// nothing was done then.
    fn find_in_generation(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        let generation = self.generation.load();
        let kept = generation.as_ref()?;
        if !kept.is_current() {
            self.forget(kept);
            return None;
        }
        let view = kept.view();
        if let Ok(outcome) = self.find(&view.reader(), flags, key, value) {
            return Some(Ok(outcome));
        }
        // A page that says what cannot be is looked at again in the file.
        if view.has_changed() {
            self.forget(kept);
        }
        None
    }

    /// Looks up in a file that is locked, or need not be, and begins to keep pages of one that is.
    fn find_in_file(
        &self,
        file: &Arc<LockedFile>,
        locked: bool,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, Fault> {
        let reading = (locked && self.generation.load().is_none()).then(|| self.settling.begin());
        let header = Header::read(file.file(), self.layout)?;
        let outcome = self.find(&header.reader(file.file()), flags, key, value)?;
        if let Some(generation) = reading.and_then(|reading| reading.end(file, header)) {
            self.keep(file, generation);
        }
        Ok(outcome)
    }

    /// Reads, again after a while where the file looks damaged, and from the file that is there then. The operation
    /// gets the file and whether it is locked.
    fn read<R>(
        &self,
        flags: Flags,
        failure: impl Fn(&Fault) -> String,
        mut operation: impl FnMut(&Arc<LockedFile>, bool) -> Result<R, Fault>,
    ) -> Result<R, LookupError> {
        let mut pauses = PAUSES.iter();
        let mut healed = false;
        loop {
            let file = self.current();
            let result = {
                let guard = self
                    .locks(flags)
                    .then(|| file.read())
                    .transpose()
                    .map_err(|error| self.cannot_lock(&error))?;
                operation(&file, guard.is_some())
            };
            let fault = match result {
                Ok(result) => return Ok(result),
                Err(fault) => fault,
            };
            let replaced = !is_at(file.file(), &self.path).unwrap_or(true);
            match pauses.next() {
                // A file that stays damaged is not waited for each time.
                Some(pause) if !matches!(fault, Fault::Io(_)) => {
                    if replaced {
                        // What cannot be opened leaves the old file, and its fault.
                        let _ = self.reopen();
                    } else if self.is_reported(file.file()) {
                        return Err(self.failure(file.file(), failure(&fault)));
                    } else {
                        std::thread::sleep(*pause);
                    }
                }
                None if !healed && self.heal() => healed = true,
                _ => return Err(self.failure(file.file(), failure(&fault))),
            }
        }
    }

    fn cannot_read(&self, fault: &Fault) -> String {
        format!("error reading {}: {}", shown(&self.path), words(fault))
    }

    fn find(
        &self,
        reader: &Reader<'_>,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, Fault> {
        let start = value.len();
        for &form in forms(self.flags, flags) {
            if with_tail(key, form, |key| reader.find(key, value))? {
                let length = text(&value[start..]).len();
                value.truncate(start + length);
                self.seen
                    .store(1 + u8::from(form == Form::Plain), Ordering::Relaxed);
                return Ok(Outcome::Done);
            }
        }
        Ok(Outcome::Absent)
    }

    /// The form in which a new entry is stored.
    fn form(&self, flags: Flags) -> Form {
        prescribed_form(self.flags, flags).unwrap_or_else(|| {
            match self.seen.load(Ordering::Relaxed) {
                2 => Form::Plain,
                _ => Form::WithNul,
            }
        })
    }

    /// Makes a change, with those of others where there are any. It is in the file, and on the disk where that is
    /// wanted, when this returns.
    fn change(&self, doing: &str, change: Change) -> Result<bool, LookupError> {
        let error = |reason: &str| {
            LookupError::Retry(format!("error {doing} {}: {reason}", shown(&self.path)))
        };
        match self.group.commit(change.bytes(), change, self) {
            Some(Ok(made)) => Ok(made),
            Some(Err(Failure::Whole(failure))) => Err(failure),
            Some(Err(Failure::Reason(reason))) => Err(error(&reason)),
            None => Err(error("the thread that was to write it has ended")),
        }
    }

    /// The library trusts what it reads, so a file that somebody else wrote is looked through before.
    fn check_whole(&self, file: &File) -> Result<(), Fault> {
        let now = stamp(file)?;
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if *whole != Some(now) {
            Reader::new(file, self.layout)?.check()?;
            *whole = Some(now);
        }
        Ok(())
    }
}

/// Gives the stored form of a key, without allocating where it is short.
fn with_tail<R>(key: &[u8], form: Form, each: impl FnOnce(&[u8]) -> R) -> R {
    let tail = form.tail();
    let mut buffer = [0; 512];
    let length = key.len() + tail.len();
    match buffer.get_mut(..length) {
        Some(stored) => {
            stored[..key.len()].copy_from_slice(key);
            stored[key.len()..].copy_from_slice(tail);
            each(stored)
        }
        None => each(&[key, tail].concat()),
    }
}

impl Table for Berkeley {
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
        if let Some(result) = self.find_in_generation(flags, key, value) {
            return result;
        }
        self.read(
            flags,
            |fault| self.cannot_read(fault),
            |file, locked| self.find_in_file(file, locked, flags, key, value),
        )
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        if let Some(result) = self.find_in_generation(flags, key, value) {
            return Some(result);
        }
        let file = self.current();
        let guard = if self.locks(flags) {
            match file.try_read() {
                Ok(Some(guard)) => Some(guard),
                Ok(None) => return None,
                Err(error) => return Some(Err(self.cannot_lock(&error))),
            }
        } else {
            None
        };
        // A file that looks damaged is read again where that may take its time.
        let outcome = self.find_in_file(&file, guard.is_some(), flags, key, value);
        Some(Ok(outcome.ok()?))
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let tail = self.form(flags).tail();
        let change = Change::Put {
            key: [key, tail].concat(),
            value: [value, tail].concat(),
            replace: flags.contains(Flags::DUP_REPLACE),
        };
        let new = self.change("writing", change)?;
        if new {
            return Ok(Outcome::Done);
        }
        match duplicate(shown(&self.path), flags, key) {
            None => Ok(Outcome::Absent),
            Some(text) => Err(LookupError::Config(text)),
        }
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let mut keys = [None, None];
        for (place, form) in keys.iter_mut().zip(forms(self.flags, flags)) {
            *place = Some([key, form.tail()].concat());
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
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if step == Step::First {
            *cursor = Cursor::default();
        }
        let (key_start, value_start) = (key.len(), value.len());
        let last = cursor.key.as_deref().map(|key| (key, cursor.ordinal));
        let found = self.read(
            flags,
            |fault| {
                format!(
                    "error [{}] seeking {}: {}",
                    fault.number(),
                    shown(&self.path),
                    words(fault)
                )
            },
            |file, _| Reader::new(file.file(), self.layout)?.after(last, key, value),
        )?;
        let Some(place) = found else {
            return Ok(Outcome::Absent);
        };
        cursor.key = Some(key[key_start..].to_vec());
        cursor.ordinal = place;
        for (bytes, start) in [(key, key_start), (value, value_start)] {
            let length = text(&bytes[start..]).len();
            bytes.truncate(start + length);
        }
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

/// What is done with a file that is locked, and is the one of this name.
impl Berkeley {
    /// Makes changes in a file that is locked. `None` when it was replaced in between.
    fn make<'c>(
        &self,
        library: &'static Library,
        path: &Path,
        file: &File,
        changes: &dyn Fn() -> Vec<&'c Change>,
    ) -> Result<Option<Vec<bool>>, Failure> {
        let failure = |error: io::Error| Failure::Reason(error_text(&error));
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        // Said before the lock is given up, whether or not all goes well.
        let _changing = Changing;
        journal.recover(file).map_err(failure)?;
        if let Err(fault) = self.check_whole(file) {
            if self.caller == Caller::Daemon && set_aside(file, &self.path, self.layout) {
                self.begin_anew().map_err(Failure::Whole)?;
                return Ok(None);
            }
            return Err(Failure::Reason(words(&fault)));
        }
        let library_failure = |error: Error| Failure::Reason(error.to_string());
        let mut database = library
            .open_apart(path, self.layout, SMALL_CACHE)
            .map_err(library_failure)?;
        let ours = file.metadata().map(|metadata| identity(&metadata));
        if database.identity().ok() != ours.ok() {
            return Ok(None);
        }
        let results: Vec<bool> = changes()
            .into_iter()
            .map(|change| change.make(&mut database))
            .collect::<Result<_, _>>()
            .map_err(library_failure)?;
        let pages = database.changes().map_err(library_failure)?;
        let durable = self.caller == Caller::Daemon || self.flags.contains(Flags::SYNC_UPDATE);
        journal.commit(file, pages, durable).map_err(|error| {
            Failure::Whole(LookupError::Retry(format!(
                "{}: flush dictionary: {}",
                shown(&self.path),
                error_text(&error)
            )))
        })?;
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = stamp(file).ok();
        Ok(Some(results))
    }
}

impl Store for Berkeley {
    type Change = Change;
    type Error = Failure;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c Change>) -> Result<Vec<bool>, Failure> {
        let library = library().map_err(|error| Failure::Reason(error.to_string()))?;
        let path =
            std::path::absolute(&self.path).map_err(|error| Failure::Reason(error_text(&error)))?;
        for _ in 0..ATTEMPTS {
            let file = self.current();
            let guard = file
                .write()
                .map_err(|error| Failure::Whole(self.cannot_lock(&error)))?;
            let there = is_at(file.file(), &self.path);
            if !there.map_err(|error| Failure::Reason(error_text(&error)))? {
                drop(guard);
                self.reopen().map_err(Failure::Whole)?;
                continue;
            }
            if let Some(results) = self.make(library, &path, file.file(), changes)? {
                return Ok(results);
            }
        }
        Err(Failure::Reason(error_text(&Errno::EAGAIN.into())))
    }
}

#[cfg(test)]
mod tests;
