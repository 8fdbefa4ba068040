//! What a lookup table is: operations, outcomes, errors, flags, and the `type:name` form of its name.
//!
//! Drivers live in `postkeep-tables`; the lookup table server sees only what is defined here.
#![forbid(unsafe_code)]

mod flags;
mod name;
mod printable;
pub mod spent;

pub use flags::Flags;
pub use name::{NameError, TableName};
pub use printable::Printable;

use std::path::PathBuf;
use std::sync::Arc;

/// How an operation ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Found, stored, deleted, or positioned at an entry.
    Done,
    /// Not found, a duplicate that was not stored, nothing to delete, or the end of the entries.
    Absent,
}

/// Why an operation failed.
///
/// Not found is an answer ([`Outcome::Absent`]), not an error. The text is what an operator should read; it is
/// empty when the table has logged all there is to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// Ask again later: a server is down, a disk is full, a file is being replaced.
    #[error("{0}")]
    Retry(String),
    /// A person must act: the table or its configuration is broken.
    #[error("{0}")]
    Config(String),
    /// The table type has no such operation; the text names it (`table TYPE:NAME: OP operation is not supported`).
    #[error("{0}")]
    Unsupported(String),
}

/// Why a table could not be opened; the text is the reference's reason (Postfix `src/util/dict_open.c`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The table exists for nobody until a person acts or the file appears.
    #[error("{0}")]
    Unavailable(String),
}

/// Which entry a sequence operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first entry.
    First,
    /// The entry after the one the cursor stands on.
    Next,
}

/// Where one client stands in a walk through a table.
///
/// A cursor remembers the stored key of the entry that was handed out last, so that a walk survives the
/// deletion of that entry and the reload of the table. Drivers may keep an ordinal in it instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Stored form of the last key, when the walk has begun.
    pub key: Option<Vec<u8>>,
    /// Number of entries handed out, for tables that count instead.
    pub ordinal: u64,
}

/// How a table's file is watched for changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The file read at lookup (with suffix).
    pub path: PathBuf,
    /// A changed modification time alone means a new table; false where readers see changes in place (lmdb).
    pub modification_time: bool,
}

/// How long a lookup may take, which decides where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Memory or a mapped file: called in line, never waits for anything but a short lock.
    Memory,
    /// A file lock, a C library, a name service, another process: run where it cannot hold up other clients.
    Blocking,
    /// A server over the network: begun in line ([`Table::begin_lookup`]), and completed later without a thread that
    /// waits meanwhile.
    Remote,
}

/// Takes the end of a lookup that was begun: its result, and the buffer that was handed in.
///
/// Called exactly once, on any thread, perhaps before [`Table::begin_lookup`] returns. It must not wait.
pub type Completion = Box<dyn FnOnce(Result<Outcome, LookupError>, Vec<u8>) + Send>;

/// Who may be trusted with what the table says (Postfix `src/util/dict.h`, `DICT_OWNER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// root, or data that came with the configuration.
    Trusted,
    /// Some user of this machine.
    User(u32),
    /// Not known.
    Unknown,
}

/// An open table.
///
/// Implementations are shared by all clients of a process and must be callable from any thread at once. They
/// do no case folding on their own unless the flags ask for it, never end the process, and report what an
/// operator should read through the `log` facade (`warn!` becomes a `warning: ` line).
pub trait Table: Send + Sync {
    /// The name as configured, without `proxy:`: `TYPE:NAME`.
    fn name(&self) -> &TableName;

    /// The flags right after opening: the opener's plus what the type says about itself
    /// ([`Flags::FIXED`], [`Flags::PATTERN`], [`Flags::MULTI_WRITER`], [`Flags::UTF8_ACTIVE`] …).
    fn flags(&self) -> Flags;

    /// Where the operations may run.
    fn latency(&self) -> Latency;

    /// Looks up `key` and appends the value to `value`.
    ///
    /// `flags` are the request's: folding, locking.
    ///
    /// # Errors
    /// [`LookupError`], in which case `value` is as it was.
    fn lookup(&self, flags: Flags, key: &[u8], value: &mut Vec<u8>)
    -> Result<Outcome, LookupError>;

    /// Looks up `key` if that can be done without waiting; `None` when it cannot, and nothing was done.
    ///
    /// A caller that must not wait tries this first and sends the lookup where it may wait when it gets `None`.
    /// Tables in memory always answer; a table behind a file lock answers while nobody writes.
    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        match self.latency() {
            Latency::Memory => Some(self.lookup(flags, key, value)),
            Latency::Blocking | Latency::Remote => None,
        }
    }

    /// Begins a lookup that `done` gets the end of; the value is appended to `value`.
    ///
    /// Returns at once where the latency is [`Latency::Remote`]; all other tables do the lookup right here, however
    /// long it takes, unless somebody else does the same one already: then that one's thread calls `done`.
    fn begin_lookup(
        self: Arc<Self>,
        flags: Flags,
        key: &[u8],
        mut value: Vec<u8>,
        done: Completion,
    ) {
        let result = self.lookup(flags, key, &mut value);
        done(result, value);
    }

    /// Stores an entry. Duplicates follow [`Flags::DUP_REPLACE`], [`Flags::DUP_WARN`], [`Flags::DUP_IGNORE`].
    ///
    /// # Errors
    /// [`LookupError::Unsupported`] where the type cannot be written.
    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let _ = (flags, key, value);
        Err(unsupported(self.name(), "update"))
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// [`LookupError::Unsupported`] where the type cannot be written.
    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let _ = (flags, key);
        Err(unsupported(self.name(), "delete"))
    }

    /// Moves `cursor` and appends the entry it then stands on to `key` and `value`.
    ///
    /// # Errors
    /// [`LookupError::Unsupported`] where the type has no order of entries.
    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let _ = (flags, step, cursor, key, value);
        Err(unsupported(self.name(), "sequence"))
    }

    /// The files whose change makes this table stale.
    fn watches(&self) -> Vec<Watch> {
        Vec::new()
    }

    /// Who owns the data.
    fn owner(&self) -> Owner {
        Owner::Unknown
    }

    /// What a table that keeps answers has counted; `None` for all that keep none.
    fn cache_counts(&self) -> Option<CacheCounts> {
        None
    }
}

/// What a table that keeps answers has counted since it was opened, and what it keeps now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Lookups answered with a fresh answer.
    pub hits: u64,
    /// Lookups for which the table behind was asked.
    pub misses: u64,
    /// Lookups answered with an answer that was no longer fresh, as the table behind gave temporary errors.
    pub stale: u64,
    /// Lookups that failed at once, because the table behind had failed a moment before.
    pub refused: u64,
    /// Lookups that waited for the answer to another one.
    pub coalesced: u64,
    /// Times that the table behind was asked ahead of time, beside the misses.
    pub refreshes: u64,
    /// Entries that made room for others.
    pub evictions: u64,
    /// Times that the table behind gave an error.
    pub failures: u64,
    /// Entries that are kept now.
    pub entries: u64,
    /// What they take, in bytes: keys, values, and what it takes to keep them.
    pub bytes: u64,
}

impl std::ops::AddAssign for CacheCounts {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.stale += other.stale;
        self.refused += other.refused;
        self.coalesced += other.coalesced;
        self.refreshes += other.refreshes;
        self.evictions += other.evictions;
        self.failures += other.failures;
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

/// The error of an operation that a type does not have.
pub fn unsupported(name: &TableName, operation: &str) -> LookupError {
    LookupError::Unsupported(format!(
        "table {name}: {operation} operation is not supported"
    ))
}

/// How a table is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For lookups and walks.
    Read,
    /// For all operations; a missing file is created (`O_RDWR | O_CREAT`).
    ReadWrite,
}

/// Opens tables by name: the registry of all table types, as the lookup table server sees it.
pub trait Opener: Send + Sync {
    /// Opens a table.
    ///
    /// # Errors
    /// [`OpenError`] with the reference's reason; the caller decides between a surrogate and the end of a
    /// command.
    fn open(
        &self,
        name: &TableName,
        access: Access,
        flags: Flags,
    ) -> Result<Arc<dyn Table>, OpenError>;
}
