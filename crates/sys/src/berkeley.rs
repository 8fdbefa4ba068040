//! Writing Berkeley DB files through the system's library, loaded when it is first needed.
//!
//! The library is `libdb-5.3.so`, as Debian and others ship it. It exports a few functions; all operations are
//! pointers inside the structures that these make. Where the pointers are is known from the library's header
//! (`db.h` of 5.3, 64-bit Linux), and is held to the library that was found: its version must be 5.3, and each
//! pointer must be the function of the expected name. A library of another layout is refused, not tried.
//!
//! A database is opened alone in a private environment whose home is the root directory: no `DB_CONFIG` of the
//! working directory or of the table's directory is read. Nothing here locks files; the callers do. The library
//! keeps some state per process, so calls of all threads go one after the other.
//!
//! The library changes a file page by page, in an order of its own, and a file of which it wrote a part is damaged. So a
//! database can be opened *apart* ([`Library::open_apart`]): what it would write is kept in memory, and is for the
//! caller to bring to the file.
#![allow(unsafe_code, reason = "Berkeley DB is a C library")]

mod apart;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

pub use apart::Changes;

/// The file that is loaded.
const LIBRARY: &CStr = c"libdb-5.3.so";

const DB_CREATE: u32 = 0x1;
const DB_EXCL: u32 = 0x4;
const DB_NOOVERWRITE: u32 = 20;
const DB_NOSYNC: u32 = 0x1;
const DB_INIT_MPOOL: u32 = 0x400;
const DB_PRIVATE: u32 = 0x1_0000;
const DB_NOTFOUND: c_int = -30_988;
const DB_KEYEXIST: c_int = -30_994;
const DB_KEYEMPTY: c_int = -30_995;

/// How many elements the reference says a hash table will have.
const EXPECTED_ELEMENTS: u32 = 4096;

/// How a database is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Sorted by key.
    Btree,
    /// By hash of the key.
    Hash,
}

impl Layout {
    fn code(self) -> c_int {
        match self {
            Self::Btree => 1,
            Self::Hash => 2,
        }
    }
}

/// The library cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(String);

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(c_int);

impl Error {
    /// The system's error number, or the library's, which is negative.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::error_text(&io::Error::from_raw_os_error(self.0)))
    }
}

impl std::error::Error for Error {}

fn check(status: c_int) -> Result<(), Error> {
    match status {
        0 => Ok(()),
        DB_KEYEMPTY => Err(Error(libc::EINVAL)),
        status => Err(Error(status)),
    }
}

/// `DBT`: a key or a value.
#[repr(C)]
struct Dbt {
    data: *mut c_void,
    size: u32,
    user_length: u32,
    partial_length: u32,
    partial_offset: u32,
    app_data: *mut c_void,
    flags: u32,
}

impl Dbt {
    /// For the library to read; it does not write through a key or a value that it is given to store.
    fn of(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            data: bytes.as_ptr().cast_mut().cast(),
            size: u32::try_from(bytes.len()).map_err(|_| Error(libc::EFBIG))?,
            user_length: 0,
            partial_length: 0,
            partial_offset: 0,
            app_data: ptr::null_mut(),
            flags: 0,
        })
    }
}

/// The part of `DB` that is used.
#[repr(C)]
struct Db {
    private: [usize; 71],
    close: unsafe extern "C" fn(*mut Db, u32) -> c_int,
    compact_cursor: [usize; 2],
    del: unsafe extern "C" fn(*mut Db, *mut c_void, *mut Dbt, u32) -> c_int,
    err_to_exists: [usize; 3],
    fd: unsafe extern "C" fn(*mut Db, *mut c_int) -> c_int,
    get_to_key_range: [usize; 47],
    open: unsafe extern "C" fn(
        *mut Db,
        *mut c_void,
        *const c_char,
        *const c_char,
        c_int,
        u32,
        c_int,
    ) -> c_int,
    pget: usize,
    put: unsafe extern "C" fn(*mut Db, *mut c_void, *mut Dbt, *mut Dbt, u32) -> c_int,
    remove_to_set_h_hash: [usize; 20],
    set_h_nelem: unsafe extern "C" fn(*mut Db, u32) -> c_int,
    set_heapsize_to_set_msgfile: [usize; 6],
    set_pagesize: usize,
    set_paniccall_to_stat_print: [usize; 12],
    sync: usize,
}

const _: () = {
    assert!(size_of::<usize>() != 8 || size_of::<Dbt>() == 40);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, close) == 568);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, del) == 592);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, fd) == 624);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, open) == 1008);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, put) == 1024);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, set_h_nelem) == 1192);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, set_pagesize) == 1248);
    assert!(size_of::<usize>() != 8 || offset_of!(Db, sync) == 1352);
};

/// A function that hears of what went wrong.
type ErrorCall = unsafe extern "C" fn(*const DbEnv, *const c_char, *const c_char);

/// The part of `DB_ENV` that is used.
#[repr(C)]
struct DbEnv {
    private: [usize; 61],
    close: unsafe extern "C" fn(*mut DbEnv, u32) -> c_int,
    before_open: [usize; 104],
    open: unsafe extern "C" fn(*mut DbEnv, *const c_char, u32, c_int) -> c_int,
    before_set_cachesize: [usize; 37],
    set_cachesize: unsafe extern "C" fn(*mut DbEnv, u32, u32, c_int) -> c_int,
    before_set_errcall: [usize; 6],
    set_errcall: unsafe extern "C" fn(*mut DbEnv, Option<ErrorCall>),
}

const _: () = {
    assert!(size_of::<usize>() != 8 || offset_of!(DbEnv, close) == 488);
    assert!(size_of::<usize>() != 8 || offset_of!(DbEnv, open) == 1328);
    assert!(size_of::<usize>() != 8 || offset_of!(DbEnv, set_cachesize) == 1632);
    assert!(size_of::<usize>() != 8 || offset_of!(DbEnv, set_errcall) == 1688);
};

/// Where the functions of a database are, and what they are called.
const DB_FUNCTIONS: [(usize, &CStr); 7] = [
    (offset_of!(Db, close), c"__db_close_pp"),
    (offset_of!(Db, del), c"__db_del_pp"),
    (offset_of!(Db, fd), c"__db_fd_pp"),
    (offset_of!(Db, open), c"__db_open_pp"),
    (offset_of!(Db, put), c"__db_put_pp"),
    // Not used, but next to `set_h_nelem`, which has no name outside the library.
    (offset_of!(Db, set_pagesize), c"__db_set_pagesize"),
    (offset_of!(Db, sync), c"__db_sync_pp"),
];

/// Where the functions of an environment are, and what they are called.
const ENVIRONMENT_FUNCTIONS: [(usize, &CStr); 4] = [
    (offset_of!(DbEnv, close), c"__env_close_pp"),
    (offset_of!(DbEnv, open), c"__env_open_pp"),
    (offset_of!(DbEnv, set_cachesize), c"__memp_set_cachesize"),
    (offset_of!(DbEnv, set_errcall), c"__env_set_errcall"),
];

type CreateEnvironment = unsafe extern "C" fn(*mut *mut DbEnv, u32) -> c_int;
type CreateDatabase = unsafe extern "C" fn(*mut *mut Db, *mut DbEnv, u32) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int) -> *const c_char;
type ReplaceFsync = unsafe extern "C" fn(unsafe extern "C" fn(c_int) -> c_int) -> c_int;
type ReplacePread =
    unsafe extern "C" fn(unsafe extern "C" fn(c_int, *mut c_void, usize, i64) -> isize) -> c_int;
type ReplacePwrite =
    unsafe extern "C" fn(unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize) -> c_int;
type ReplaceTruncate = unsafe extern "C" fn(unsafe extern "C" fn(c_int, i64) -> c_int) -> c_int;

/// The library, in memory for good.
#[derive(Debug)]
pub struct Library {
    create_environment: CreateEnvironment,
    create_database: CreateDatabase,
    /// One call at a time.
    calls: Mutex<()>,
}

thread_local! {
    /// Whether the library's calls of fsync(2) in this thread are wanted.
    static DURABLE: Cell<bool> = const { Cell::new(true) };
}

/// What the library calls for fsync(2).
unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    if DURABLE.try_with(Cell::get).unwrap_or(true) && !apart::is_on() {
        // SAFETY: any number may be given to fsync.
        unsafe { libc::fsync(descriptor) }
    } else {
        0
    }
}

/// What the library would print on standard error goes nowhere: what matters comes as an error number.
unsafe extern "C" fn keep_silent(_: *const DbEnv, _: *const c_char, _: *const c_char) {}

/// The library, loaded by the first call that succeeds.
///
/// # Errors
/// [`LoadError`] when there is no such library, or one that is not known.
pub fn library() -> Result<&'static Library, LoadError> {
    static LOADED: OnceLock<Library> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = LOADED.get() {
        return Ok(library);
    }
    let library = Library::load()?;
    Ok(LOADED.get_or_init(|| library))
}

impl Library {
    fn load() -> Result<Self, LoadError> {
        if size_of::<usize>() != 8 {
            return Err(LoadError(
                "Berkeley DB files are written on 64-bit systems only".to_owned(),
            ));
        }
        // SAFETY: the name ends with NUL. The library's initializers do nothing that others could notice.
        let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let handle = NonNull::new(handle).ok_or_else(|| {
            // SAFETY: after a failure the result is a string that is valid until the next call in this thread.
            let text = unsafe { libc::dlerror() };
            LoadError(if text.is_null() {
                format!("{}: cannot be loaded", LIBRARY.to_string_lossy())
            } else {
                // SAFETY: as above.
                let text = unsafe { CStr::from_ptr(text) };
                text.to_string_lossy().into_owned()
            })
        })?;
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open and stays so, the name ends with NUL.
            NonNull::new(unsafe { libc::dlsym(handle.as_ptr(), name.as_ptr()) })
                .ok_or_else(|| unknown(name))
        };
        let version = symbol(c"db_version")?;
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: the function of this name has had this type since Berkeley DB 2.
        unsafe {
            let version: Version = std::mem::transmute(version);
            version(&raw mut major, &raw mut minor, &raw mut patch);
        }
        if (major, minor) != (5, 3) {
            return Err(LoadError(format!(
                "{}: incorrect version of Berkeley DB: expected 5.3, found {major}.{minor}.{patch}",
                LIBRARY.to_string_lossy()
            )));
        }
        let (create_environment, create_database) =
            (symbol(c"db_env_create")?, symbol(c"db_create")?);
        let replace_fsync = symbol(c"db_env_set_func_fsync")?;
        let replace_pread = symbol(c"db_env_set_func_pread")?;
        let replace_pwrite = symbol(c"db_env_set_func_pwrite")?;
        let replace_truncate = symbol(c"db_env_set_func_ftruncate")?;
        // SAFETY: these are the types of the functions in the header of version 5.3.
        let (library, replace_fsync) = unsafe {
            (
                Self {
                    create_environment: std::mem::transmute::<NonNull<c_void>, CreateEnvironment>(
                        create_environment,
                    ),
                    create_database: std::mem::transmute::<NonNull<c_void>, CreateDatabase>(
                        create_database,
                    ),
                    calls: Mutex::new(()),
                },
                std::mem::transmute::<NonNull<c_void>, ReplaceFsync>(replace_fsync),
            )
        };
        library.check_layout()?;
        // SAFETY: the replacement has the type that is wanted, lives as long as the program, and does what fsync(2)
        // does unless a thread of ours has said otherwise.
        if unsafe { replace_fsync(fsync) } != 0 {
            return Err(unknown(c"db_env_set_func_fsync"));
        }
        // SAFETY: as above: these have the types that are wanted, live as long as the program, and do what the
        // functions of the system do unless a thread of ours has said otherwise.
        let replaced = unsafe {
            let pread: ReplacePread = std::mem::transmute(replace_pread);
            let pwrite: ReplacePwrite = std::mem::transmute(replace_pwrite);
            let truncate: ReplaceTruncate = std::mem::transmute(replace_truncate);
            pread(apart::pread) | pwrite(apart::pwrite) | truncate(apart::ftruncate)
        };
        if replaced != 0 {
            return Err(unknown(c"db_env_set_func_pwrite"));
        }
        Ok(library)
    }

    /// The functions are where they are looked for.
    fn check_layout(&self) -> Result<(), LoadError> {
        let mut environment = ptr::null_mut();
        // SAFETY: the pointer is where the new handle goes.
        if unsafe { (self.create_environment)(&raw mut environment, 0) } != 0 {
            return Err(unknown(c"db_env_create"));
        }
        // The handles are made once and are not given back: where `close` is is not known yet.
        check_functions(environment.cast_const().cast(), &ENVIRONMENT_FUNCTIONS)?;
        let mut database = ptr::null_mut();
        // SAFETY: as above; the environment is one that was just made.
        if unsafe { (self.create_database)(&raw mut database, environment, 0) } != 0 {
            return Err(unknown(c"db_create"));
        }
        check_functions(database.cast_const().cast(), &DB_FUNCTIONS)?;
        // SAFETY: both handles are open, and their functions are the ones of these names.
        unsafe {
            ((*database).close)(database, DB_NOSYNC);
            ((*environment).close)(environment, 0);
        }
        Ok(())
    }

    /// Opens the database in `path`.
    ///
    /// - `path`: absolute
    /// - `create`: the file must not be there and is made with mode 0644 less the umask; otherwise it must be there
    /// - `cache`: bytes of memory for pages
    ///
    /// # Errors
    /// [`Error`]: of the system, or EINVAL for a file that is no database of this layout.
    pub fn open(
        &'static self,
        path: &Path,
        layout: Layout,
        create: bool,
        cache: u32,
    ) -> Result<Database, Error> {
        self.open_as(path, layout, create, cache, None)
    }

    /// Opens the database in `path`, which must be there, and leaves the file as it is.
    ///
    /// - `path`, `cache`: as for [`Library::open`]
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn open_apart(
        &'static self,
        path: &Path,
        layout: Layout,
        cache: u32,
    ) -> Result<Database, Error> {
        self.open_as(path, layout, false, cache, Some(Changes::default()))
    }

    fn open_as(
        &'static self,
        path: &Path,
        layout: Layout,
        create: bool,
        cache: u32,
        apart: Option<Changes>,
    ) -> Result<Database, Error> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error(libc::ENOENT))?;
        let calls = self.calls();
        let mut environment = ptr::null_mut();
        // SAFETY: the pointer is where the new handle goes.
        check(unsafe { (self.create_environment)(&raw mut environment, 0) })?;
        let environment = NonNull::new(environment).ok_or(Error(libc::ENOMEM))?;
        let mut this = Database {
            library: self,
            environment,
            opened: None,
            apart,
        };
        let result = this.apart(|this| this.set_up(&path, layout, create, cache));
        drop(calls);
        result.map(|()| this)
    }

    fn calls(&self) -> MutexGuard<'_, ()> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(name: &CStr) -> LoadError {
    LoadError(format!(
        "{}: not the library that is known: {}",
        LIBRARY.to_string_lossy(),
        name.to_string_lossy()
    ))
}

/// The pointers inside `structure` are the functions of these names.
fn check_functions(
    structure: *const *const c_void,
    functions: &[(usize, &CStr)],
) -> Result<(), LoadError> {
    for &(offset, name) in functions {
        let mut found = libc::Dl_info {
            dli_fname: ptr::null(),
            dli_fbase: ptr::null_mut(),
            dli_sname: ptr::null(),
            dli_saddr: ptr::null_mut(),
        };
        // SAFETY: structures of 5.3 are larger than the largest offset, and have pointers at multiples of eight.
        let function = unsafe { structure.byte_add(offset).read() };
        // SAFETY: any address may be asked for; names are constant strings of libraries that stay loaded.
        let same = unsafe {
            libc::dladdr(function, &raw mut found) != 0
                && !found.dli_sname.is_null()
                && found.dli_saddr.cast_const() == function
                && CStr::from_ptr(found.dli_sname) == name
        };
        if !same {
            return Err(unknown(name));
        }
    }
    Ok(())
}

/// An open database. What was changed is in the file after [`Database::close`], and perhaps before; when it is
/// dropped instead, changes may be lost and the file may be damaged.
pub struct Database {
    library: &'static Library,
    environment: NonNull<DbEnv>,
    opened: Option<NonNull<Db>>,
    /// What would have been written, where it is not to be.
    apart: Option<Changes>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl Database {
    /// Opens both handles. The caller is alone in the library.
    fn set_up(
        &mut self,
        path: &CStr,
        layout: Layout,
        create: bool,
        cache: u32,
    ) -> Result<(), Error> {
        let environment = self.environment.as_ptr();
        let flags = DB_INIT_MPOOL | DB_CREATE | DB_PRIVATE;
        let mut database = ptr::null_mut();
        // SAFETY: the environment is new and known to nobody else; the layout was checked when the library was
        // loaded; strings end with NUL; the last pointer is where the new handle goes.
        unsafe {
            ((*environment).set_errcall)(environment, Some(keep_silent));
            check(((*environment).set_cachesize)(environment, 0, cache, 1))?;
            check(((*environment).open)(environment, c"/".as_ptr(), flags, 0))?;
            check((self.library.create_database)(
                &raw mut database,
                environment,
                0,
            ))?;
        }
        self.opened = NonNull::new(database);
        let flags = if create { DB_CREATE | DB_EXCL } else { 0 };
        // SAFETY: as above. A handle whose open failed can still be closed, which is done when `self` is dropped.
        unsafe {
            if layout == Layout::Hash {
                check(((*database).set_h_nelem)(database, EXPECTED_ELEMENTS))?;
            }
            check(((*database).open)(
                database,
                ptr::null_mut(),
                path.as_ptr(),
                ptr::null(),
                layout.code(),
                flags,
                0o644,
            ))
        }
    }

    fn handle(&self) -> Result<*mut Db, Error> {
        self.opened.map(NonNull::as_ptr).ok_or(Error(libc::EINVAL))
    }

    /// Stores an entry; false when the key is there and must not be replaced.
    ///
    /// # Errors
    /// [`Error`] of the library.
    pub fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Error> {
        let database = self.handle()?;
        let (mut key, mut value) = (Dbt::of(key)?, Dbt::of(value)?);
        let flags = if replace { 0 } else { DB_NOOVERWRITE };
        let _calls = self.library.calls();
        // SAFETY: the handle is open and used by one thread; key and value live longer than the call, which only
        // reads them.
        let status = self.apart(|_| unsafe {
            ((*database).put)(
                database,
                ptr::null_mut(),
                &raw mut key,
                &raw mut value,
                flags,
            )
        });
        match status {
            DB_KEYEXIST => Ok(false),
            status => check(status).map(|()| true),
        }
    }

    /// Deletes an entry; false when there is none.
    ///
    /// # Errors
    /// [`Error`] of the library.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        let database = self.handle()?;
        let mut key = Dbt::of(key)?;
        let _calls = self.library.calls();
        // SAFETY: as in `put`.
        let status = self
            .apart(|_| unsafe { ((*database).del)(database, ptr::null_mut(), &raw mut key, 0) });
        match status {
            DB_NOTFOUND => Ok(false),
            status => check(status).map(|()| true),
        }
    }

    /// Device and inode of the file that is open.
    ///
    /// # Errors
    /// [`Error`] of the library or of fstat(2).
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let database = self.handle()?;
        let mut descriptor = -1;
        let _calls = self.library.calls();
        // SAFETY: the handle is open; the number goes where the pointer says, and stays the library's, which is
        // not called meanwhile.
        let borrowed = unsafe {
            check(((*database).fd)(database, &raw mut descriptor))?;
            BorrowedFd::borrow_raw(descriptor)
        };
        let status = rustix::fs::fstat(borrowed).map_err(|error| Error(error.raw_os_error()))?;
        Ok((status.st_dev, status.st_ino))
    }

    /// Writes what was changed and closes the file.
    ///
    /// - `durable`: what was written is on disk when this returns
    ///
    /// # Errors
    /// [`Error`] of the library; the file may be damaged then.
    pub fn close(mut self, durable: bool) -> Result<(), Error> {
        DURABLE.set(durable);
        let result = self.close_handles(0);
        DURABLE.set(true);
        result
    }

    /// Ends a database that was opened apart, and gives what it would have written. In one that was not, there is
    /// nothing.
    ///
    /// # Errors
    /// [`Error`] of the library; the file is as it was, in this case too.
    pub fn changes(mut self) -> Result<Changes, Error> {
        self.close_handles(0)?;
        let changes = self.apart.take().unwrap_or_default();
        if changes.is_broken() {
            return Err(Error(libc::EIO));
        }
        Ok(changes)
    }

    fn close_handles(&mut self, flags: u32) -> Result<(), Error> {
        let _calls = self.library.calls();
        let database = self.opened.take();
        self.apart(|_| {
            // SAFETY: the database is open, used by one thread, and forgotten by `take`, whether this fails or not.
            database.map_or(Ok(()), |database| unsafe {
                check(((*database.as_ptr()).close)(database.as_ptr(), flags))
            })
        })
    }

    /// Calls the library, which writes to memory in the meantime where that is wanted.
    fn apart<R>(&mut self, call: impl FnOnce(&mut Self) -> R) -> R {
        let Some(changes) = self.apart.take() else {
            return call(self);
        };
        let (changes, result) = apart::with(changes, || call(self));
        self.apart = Some(changes);
        result
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.close_handles(DB_NOSYNC);
        let _calls = self.library.calls();
        let environment = self.environment.as_ptr();
        // SAFETY: the environment is open, and the only database in it is closed. Only this function closes it.
        unsafe { ((*environment).close)(environment, 0) };
    }
}

#[cfg(test)]
mod tests;
