//! What is read and written in one transaction.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use lmdb_master_sys as ffi;

use super::{Cause, Environment, Error, check};

pub(super) struct Transaction<'a> {
    handle: NonNull<ffi::MDB_txn>,
    database: ffi::MDB_dbi,
    environment: PhantomData<&'a Environment>,
}

impl Transaction<'_> {
    /// Begins a transaction.
    ///
    /// # Safety
    /// The environment is open for as long as the transaction lives, its pages can be touched, and a transaction that writes is the only
    /// one.
    pub(super) unsafe fn begin(
        environment: NonNull<ffi::MDB_env>,
        database: ffi::MDB_dbi,
        flags: u32,
    ) -> Result<Self, Error> {
        let mut transaction = ptr::null_mut();
        // SAFETY: see above.
        check(unsafe {
            ffi::mdb_txn_begin(
                environment.as_ptr(),
                ptr::null_mut(),
                flags,
                &raw mut transaction,
            )
        })?;
        let handle = NonNull::new(transaction).ok_or(Error(Cause::Code(libc::ENOMEM)))?;
        Ok(Self {
            handle,
            database,
            environment: PhantomData,
        })
    }

    fn commit(self) -> Result<(), Error> {
        let transaction = self.handle;
        std::mem::forget(self);
        // SAFETY: the transaction is active; LMDB frees it whatever the outcome.
        check(unsafe { ffi::mdb_txn_commit(transaction.as_ptr()) })
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // SAFETY: the transaction is active, and cursors in it are closed.
        unsafe { ffi::mdb_txn_abort(self.handle.as_ptr()) };
    }
}

/// A stored key and its value.
pub type Entry<'r> = (&'r [u8], &'r [u8]);

/// A snapshot. Slices live as long as it does.
pub struct Reader<'a> {
    transaction: Transaction<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(transaction: Transaction<'a>) -> Self {
        Self { transaction }
    }

    /// The unnamed database.
    pub(super) fn open_database(&self) -> Result<ffi::MDB_dbi, Error> {
        let mut database = 0;
        // SAFETY: the transaction is active; no name is the unnamed database.
        check(unsafe {
            ffi::mdb_dbi_open(
                self.transaction.handle.as_ptr(),
                ptr::null(),
                0,
                &raw mut database,
            )
        })?;
        Ok(database)
    }

    /// The value of a key. A key that LMDB could not store is not found.
    ///
    /// # Errors
    /// [`Error`] of the file.
    pub fn find(&self, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        if key.is_empty() {
            return Ok(None);
        }
        let (mut key, mut value) = (borrow(key), borrow(&[]));
        // SAFETY: the transaction is active, the key is read only, the result goes to `value`.
        let code = unsafe {
            ffi::mdb_get(
                self.transaction.handle.as_ptr(),
                self.transaction.database,
                &raw mut key,
                &raw mut value,
            )
        };
        match code {
            ffi::MDB_NOTFOUND | ffi::MDB_BAD_VALSIZE => Ok(None),
            code => {
                check(code)?;
                // SAFETY: LMDB answered with a piece of the map, valid while the transaction is.
                Ok(Some(unsafe { slice(&value) }))
            }
        }
    }

    /// The first entry whose key is greater than `key`, or the first of all.
    ///
    /// # Errors
    /// [`Error`] of the file.
    pub fn after(&self, key: Option<&[u8]>) -> Result<Option<Entry<'_>>, Error> {
        let cursor = Cursor::open(self)?;
        let Some(wanted) = key.filter(|key| !key.is_empty()) else {
            return cursor.step(self, &[], ffi::MDB_FIRST);
        };
        match cursor.step(self, wanted, ffi::MDB_SET_RANGE)? {
            Some((found, _)) if found == wanted => cursor.step(self, &[], ffi::MDB_NEXT),
            entry => Ok(entry),
        }
    }
}

struct Cursor(NonNull<ffi::MDB_cursor>);

impl Cursor {
    fn open(reader: &Reader<'_>) -> Result<Self, Error> {
        let mut cursor = ptr::null_mut();
        // SAFETY: the transaction is active, the database is open.
        check(unsafe {
            ffi::mdb_cursor_open(
                reader.transaction.handle.as_ptr(),
                reader.transaction.database,
                &raw mut cursor,
            )
        })?;
        NonNull::new(cursor)
            .map(Self)
            .ok_or(Error(Cause::Code(libc::ENOMEM)))
    }

    fn step<'r>(
        &self,
        _snapshot: &'r Reader<'_>,
        key: &[u8],
        operation: ffi::MDB_cursor_op,
    ) -> Result<Option<Entry<'r>>, Error> {
        let (mut key, mut value) = (borrow(key), borrow(&[]));
        // SAFETY: the cursor is open in an active transaction; results go to `key` and `value`.
        let code = unsafe {
            ffi::mdb_cursor_get(self.0.as_ptr(), &raw mut key, &raw mut value, operation)
        };
        if code == ffi::MDB_NOTFOUND {
            return Ok(None);
        }
        check(code)?;
        // SAFETY: LMDB answered with pieces of the map, valid while the transaction is.
        Ok(Some(unsafe { (slice(&key), slice(&value)) }))
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        // SAFETY: the cursor is open, and so is its transaction.
        unsafe { ffi::mdb_cursor_close(self.0.as_ptr()) };
    }
}

/// A write transaction. What it has changed is visible to it alone until it is committed.
pub struct Writer<'a>(Reader<'a>);

impl<'a> Writer<'a> {
    pub(super) fn new(transaction: Transaction<'a>) -> Self {
        Self(Reader { transaction })
    }

    pub(super) fn commit(self) -> Result<(), Error> {
        self.0.transaction.commit()
    }

    /// The contents as this transaction sees them.
    pub fn reader(&self) -> &Reader<'_> {
        &self.0
    }

    /// Stores an entry; false when the key is there already and `replace` is not set.
    ///
    /// # Errors
    /// [`Error::BAD_KEY_SIZE`], or the file's.
    pub fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Error> {
        let (mut key, mut value) = (borrow(key), borrow(value));
        let flags = if replace { 0 } else { ffi::MDB_NOOVERWRITE };
        // SAFETY: the transaction is active and for writing; LMDB copies key and value.
        let code = unsafe {
            ffi::mdb_put(
                self.0.transaction.handle.as_ptr(),
                self.0.transaction.database,
                &raw mut key,
                &raw mut value,
                flags,
            )
        };
        if code == ffi::MDB_KEYEXIST {
            return Ok(false);
        }
        check(code)?;
        Ok(true)
    }

    /// Deletes an entry; false when there is none.
    ///
    /// # Errors
    /// [`Error`] of the file.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        if key.is_empty() {
            return Ok(false);
        }
        let mut key = borrow(key);
        // SAFETY: the transaction is active and for writing.
        let code = unsafe {
            ffi::mdb_del(
                self.0.transaction.handle.as_ptr(),
                self.0.transaction.database,
                &raw mut key,
                ptr::null_mut(),
            )
        };
        match code {
            ffi::MDB_NOTFOUND | ffi::MDB_BAD_VALSIZE => Ok(false),
            code => check(code).map(|()| true),
        }
    }

    /// Deletes all entries.
    ///
    /// # Errors
    /// [`Error`] of the file.
    pub fn clear(&mut self) -> Result<(), Error> {
        // SAFETY: the transaction is active and for writing; 0 empties the database without deleting it.
        check(unsafe {
            ffi::mdb_drop(
                self.0.transaction.handle.as_ptr(),
                self.0.transaction.database,
                0,
            )
        })
    }
}

fn borrow(bytes: &[u8]) -> ffi::MDB_val {
    ffi::MDB_val {
        mv_size: bytes.len(),
        mv_data: bytes.as_ptr().cast_mut().cast(),
    }
}

/// # Safety
/// The value must be one that LMDB filled in, and its transaction must be active for all of `'r`.
unsafe fn slice<'r>(value: &ffi::MDB_val) -> &'r [u8] {
    if value.mv_size == 0 {
        return &[];
    }
    // SAFETY: see above.
    unsafe { std::slice::from_raw_parts(value.mv_data.cast(), value.mv_size) }
}
