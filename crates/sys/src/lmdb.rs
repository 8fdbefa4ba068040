//! LMDB files, locked and shared the way Postfix does it (`src/util/slmdb.c`).
//!
//! One file without LMDB's own lock file, one unnamed database. All locking is done here: an fcntl(2) lock around
//! each transaction, shared to read and exclusive to write, and the same among the threads of this process. That
//! makes the functions safe to call from any thread, which LMDB without its own locks is not.
//!
//! Keys are looked up without LMDB and without a lock where that can be done: [`Environment::find_unlocked`].
#![allow(unsafe_code, reason = "LMDB is a C library")]

mod pages;
mod snapshot;
mod transaction;
mod unlocked;

pub use snapshot::{Snapshot, Trouble};
pub use transaction::{Entry, Reader, Writer};
pub use unlocked::Unlocked;

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lmdb_master_sys as ffi;

use crate::lock::{Kind, LockedFile};

use transaction::Transaction;
use unlocked::{Failure, Maps};

/// The smallest map, and how much is added above the size of a file.
const SMALLEST_MAP: u64 = 10_240;

/// The largest map that the reference would ask for.
const LARGEST_MAP: u64 = i64::MAX as u64;

/// How often a file is opened again that is replaced while it is opened.
const ATTEMPTS: usize = 8;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// For writing too; a missing file is created, mode 0644 less the umask.
    pub write: bool,
    /// The initial size limit in bytes. It grows when it must.
    pub map_size: u64,
}

/// Why an operation failed; the text is LMDB's or the system's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(Cause);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A number of LMDB (negative) or of the system (positive).
    Code(i32),
    /// Pages that are in use are not in the file.
    Truncated,
}

impl Error {
    /// The key has a length that LMDB cannot store: 0, or more than 511 bytes.
    pub const BAD_KEY_SIZE: Self = Self(Cause::Code(ffi::MDB_BAD_VALSIZE));

    /// The file is shorter than its own pages, or its header does not belong to it; opening it again may help.
    pub fn is_damage(self) -> bool {
        matches!(
            self.0,
            Cause::Truncated
                | Cause::Code(
                    ffi::MDB_INVALID | ffi::MDB_CORRUPTED | ffi::MDB_PANIC | ffi::MDB_PAGE_NOTFOUND
                )
        )
    }

    fn is(self, code: i32) -> bool {
        self.0 == Cause::Code(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Cause::Truncated => f.write_str("MDB_CORRUPTED: file is shorter than its contents"),
            Cause::Code(code) if code > 0 => {
                f.write_str(&crate::error_text(&io::Error::from_raw_os_error(code)))
            }
            Cause::Code(code) => {
                // SAFETY: for LMDB's own numbers the result is a constant string.
                let text = unsafe { CStr::from_ptr(ffi::mdb_strerror(code)) };
                f.write_str(&text.to_string_lossy())
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lmdb::Error({self})")
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self(Cause::Code(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

fn check(code: i32) -> Result<(), Error> {
    if code == 0 {
        Ok(())
    } else {
        Err(Error(Cause::Code(code)))
    }
}

/// An open LMDB file.
///
/// Two environments of one process may be open on the same file; they behave like those of two processes.
pub struct Environment {
    handle: NonNull<ffi::MDB_env>,
    database: ffi::MDB_dbi,
    file: LockedFile,
    page_size: u64,
    /// Length and transaction of the file when its pages were last found complete though it looked short.
    short_but_whole: [AtomicU64; 2],
    /// The map is gone; nothing works any more.
    broken: AtomicBool,
    maps: Maps,
}

// SAFETY: LMDB ties nothing to a thread when it does no locking of its own; what must not happen at the same time is
// kept apart by `file`.
unsafe impl Send for Environment {}
// SAFETY: as above. Transactions never leave the closure that runs under the lock.
unsafe impl Sync for Environment {}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Whether a file is an LMDB file all of whose pages that are in use are there and are what they are used as. Does not
/// lock it.
///
/// # Errors
/// It could not be read.
pub fn is_whole(file: &File) -> io::Result<bool> {
    match pages::is_whole(file) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result,
    }
}

impl Environment {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error`] when it is missing, unreadable, or not an LMDB file.
    pub fn open(path: &Path, options: Options) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(options.write)
                .create(options.write)
                .mode(0o644)
                .open(path)?;
            let environment = Self::open_file(path, file, options)?;
            // LMDB opened the path on its own; both must be the same file.
            let inode = |file: &File| {
                file.metadata()
                    .map(|metadata| (metadata.dev(), metadata.ino()))
            };
            if inode(&environment.lmdb_file()?)? == inode(environment.file.file())? {
                return Ok(environment);
            }
            if attempt == ATTEMPTS {
                return Err(Error(Cause::Code(libc::EAGAIN)));
            }
            attempt += 1;
        }
    }

    fn open_file(path: &Path, file: File, options: Options) -> Result<Self, Error> {
        let file = LockedFile::new(file);
        let length = file.file().metadata()?.len();
        if length == 0 && !options.write {
            // What LMDB says after it failed to write the first pages.
            return Err(Error(Cause::Code(libc::EBADF)));
        }
        let mut map_size = options.map_size.max(SMALLEST_MAP);
        if length > map_size - SMALLEST_MAP {
            map_size = length + SMALLEST_MAP;
        }
        let map_size = usize::try_from(map_size.min(LARGEST_MAP))
            .map_err(|_| Error(Cause::Code(libc::ENOMEM)))?;
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error(Cause::Code(libc::ENOENT)))?;
        let mut environment = ptr::null_mut();
        // SAFETY: the pointer is where the new handle goes.
        check(unsafe { ffi::mdb_env_create(&raw mut environment) })?;
        let environment = NonNull::new(environment).ok_or(Error(Cause::Code(libc::ENOMEM)))?;
        let mut this = Self {
            handle: environment,
            database: 0,
            file,
            page_size: 0,
            short_but_whole: [const { AtomicU64::new(0) }; 2],
            broken: AtomicBool::new(false),
            maps: Maps::new(0),
        };
        // LMDB gives an empty file its first pages, which only one process at a time may do.
        let first_pages = if options.write && length == 0 {
            Some(this.file.write()?)
        } else {
            None
        };
        let flags =
            ffi::MDB_NOSUBDIR | ffi::MDB_NOLOCK | if options.write { 0 } else { ffi::MDB_RDONLY };
        // SAFETY: the handle is new and known to nobody else, the path ends with NUL.
        unsafe {
            check(ffi::mdb_env_set_mapsize(environment.as_ptr(), map_size))?;
            check(ffi::mdb_env_open(
                environment.as_ptr(),
                path.as_ptr(),
                flags,
                0o644,
            ))?;
        }
        drop(first_pages);
        this.page_size =
            pages::page_size(this.file.file())?.ok_or(Error(Cause::Code(ffi::MDB_INVALID)))?;
        this.maps = Maps::new(this.page_size);
        let database = this.read(|reader: &Reader<'_>| reader.open_database())??;
        this.database = database;
        Ok(this)
    }

    /// The descriptor that LMDB opened, as a file of its own.
    fn lmdb_file(&self) -> Result<File, Error> {
        let mut descriptor = -1;
        // SAFETY: the environment is open; the number stays LMDB's, which outlives the borrow.
        let borrowed = unsafe {
            check(ffi::mdb_env_get_fd(
                self.handle.as_ptr(),
                &raw mut descriptor,
            ))?;
            std::os::fd::BorrowedFd::borrow_raw(descriptor)
        };
        Ok(File::from(borrowed.try_clone_to_owned()?))
    }

    /// The open file, for its owner and its inode.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Locks the file for as long as it is open, in place of the lock around each transaction.
    ///
    /// # Errors
    /// The lock could not be had; waiting is no error.
    pub fn hold(&self, kind: Kind) -> Result<(), Error> {
        Ok(self.file.hold(kind)?)
    }

    /// Runs `f` with the newest snapshot. Waits for writers.
    ///
    /// # Errors
    /// [`Error`] of the lock or of the file.
    pub fn read<R>(&self, f: impl FnOnce(&Reader<'_>) -> R) -> Result<R, Error> {
        loop {
            let guard = self.file.read()?;
            match self.begin(ffi::MDB_RDONLY) {
                Ok(transaction) => return Ok(f(&Reader::new(transaction))),
                Err(error) if error.is(ffi::MDB_MAP_RESIZED) => drop(guard),
                Err(error) => return Err(error),
            }
            self.adopt_size()?;
        }
    }

    /// Runs `f` with the newest snapshot if nobody is writing; `None` when it would have to wait.
    ///
    /// # Errors
    /// As [`Environment::read`].
    pub fn try_read<R>(&self, f: impl FnOnce(&Reader<'_>) -> R) -> Result<Option<R>, Error> {
        let Some(_guard) = self.file.try_read()? else {
            return Ok(None);
        };
        match self.begin(ffi::MDB_RDONLY) {
            Ok(transaction) => Ok(Some(f(&Reader::new(transaction)))),
            Err(error) if error.is(ffi::MDB_MAP_RESIZED) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks for some keys in the newest snapshot, without a lock and, as long as the file does not grow, without a
    /// system call. Appends the value of the first key that is there.
    ///
    /// Where that leads to nothing `value` is as it was, and [`Environment::find`] waits for its turn, or says what is
    /// wrong.
    ///
    /// What another process is just committing may be found a moment before it is safe on the disk.
    pub fn find_unlocked(&self, keys: &[&[u8]], value: &mut Vec<u8>) -> Unlocked {
        match self.maps.find(self.file.file(), keys, value) {
            Ok(Some(place)) => Unlocked::Found(place),
            Ok(None) => Unlocked::Absent,
            Err(_) => Unlocked::Undecided,
        }
    }

    /// As [`Environment::find_unlocked`], after waiting for writers: the place of the key that is there.
    ///
    /// # Errors
    /// [`Error`] of the lock or of the file. A file that is cut meanwhile is no danger to the process, unless its
    /// contents are of a kind that only LMDB can read.
    pub fn find(&self, keys: &[&[u8]], value: &mut Vec<u8>) -> Result<Option<usize>, Error> {
        let guard = self.file.read()?;
        match self.maps.find(self.file.file(), keys, value) {
            Ok(found) => return Ok(found),
            Err(Failure::Damaged) => return Err(Error(Cause::Truncated)),
            Err(Failure::Passed | Failure::Strange) => {}
        }
        let page_size = usize::try_from(self.page_size).map_err(|_| Error(Cause::Truncated))?;
        if !pages::all_inside(self.file.file(), page_size)? {
            return Err(Error(Cause::Truncated));
        }
        drop(guard);
        self.read(|reader| {
            for (place, key) in keys.iter().enumerate() {
                if let Some(found) = reader.find(key)? {
                    value.extend_from_slice(found);
                    return Ok(Some(place));
                }
            }
            Ok(None)
        })?
    }

    /// Runs `f` in a write transaction and commits it, durable when this returns. Waits for readers and writers.
    ///
    /// When the map is full it is doubled and `f` runs again from the start, until everything fits.
    ///
    /// # Errors
    /// [`Error`] of the lock, of the file, or of `f`; nothing is changed then.
    pub fn write<R>(
        &self,
        mut f: impl FnMut(&mut Writer<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let _guard = self.file.write()?;
        loop {
            let result = self.begin(0).and_then(|transaction| {
                let mut writer = Writer::new(transaction);
                let result = f(&mut writer)?;
                writer.commit()?;
                Ok(result)
            });
            match result {
                Err(error) if error.is(ffi::MDB_MAP_FULL) => {
                    let size = self.info().me_mapsize;
                    let size = size
                        .checked_mul(2)
                        .filter(|&size| size as u64 <= LARGEST_MAP)
                        .ok_or(error)?;
                    self.resize(size)?;
                }
                Err(error) if error.is(ffi::MDB_MAP_RESIZED) => self.resize(0)?,
                result => return result,
            }
        }
    }

    /// Another process has made the map larger.
    fn adopt_size(&self) -> Result<(), Error> {
        let _guard = self.file.alone_among_threads()?;
        self.check_whole()?;
        self.resize(0)
    }

    /// Sets the size of the map. No transaction may be active in any thread.
    fn resize(&self, size: usize) -> Result<(), Error> {
        // SAFETY: the callers hold the write guard, so there is no transaction and no slice into the map.
        let result = check(unsafe { ffi::mdb_env_set_mapsize(self.handle.as_ptr(), size) });
        if result.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        result
    }

    fn info(&self) -> ffi::MDB_envinfo {
        let mut info = ffi::MDB_envinfo {
            me_mapaddr: ptr::null_mut(),
            me_mapsize: 0,
            me_last_pgno: 0,
            me_last_txnid: 0,
            me_maxreaders: 0,
            me_numreaders: 0,
        };
        // SAFETY: the environment is open and its meta pages are in the file; `info` is the structure to fill.
        unsafe { ffi::mdb_env_info(self.handle.as_ptr(), &raw mut info) };
        info
    }

    /// All pages that are in use can be touched.
    fn check_whole(&self) -> Result<(), Error> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Error(Cause::Code(libc::ENOMEM)));
        }
        let length = self.file.file().metadata()?.len();
        if length < 2 * self.page_size {
            return Err(Error(Cause::Truncated));
        }
        let info = self.info();
        let transaction = info.me_last_txnid as u64;
        if length / self.page_size > info.me_last_pgno as u64 {
            return Ok(());
        }
        let known = [&self.short_but_whole[0], &self.short_but_whole[1]]
            .map(|known| known.load(Ordering::Relaxed));
        if known == [length, transaction] {
            return Ok(());
        }
        let page_size = usize::try_from(self.page_size).map_err(|_| Error(Cause::Truncated))?;
        if !pages::all_inside(self.file.file(), page_size)? {
            return Err(Error(Cause::Truncated));
        }
        self.short_but_whole[0].store(length, Ordering::Relaxed);
        self.short_but_whole[1].store(transaction, Ordering::Relaxed);
        Ok(())
    }

    /// Begins a transaction. The caller holds the guard that belongs to it.
    fn begin(&self, flags: u32) -> Result<Transaction<'_>, Error> {
        self.check_whole()?;
        // SAFETY: the environment is open, all pages are in the file, and the guard keeps others out where it must.
        unsafe { Transaction::begin(self.handle, self.database, flags) }
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        // SAFETY: transactions borrow the environment, so none is left.
        unsafe { ffi::mdb_env_close(self.handle.as_ptr()) };
    }
}

#[cfg(test)]
mod tests;
