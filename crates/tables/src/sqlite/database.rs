//! A database file and the connections to it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postkeep_sys::error_text;
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::limits::Limit;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Batch, Connection, Error, OpenFlags, Statement};

/// Limits of a database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long to wait for a lock.
    pub(super) busy: Duration,
    /// How long a query may take.
    pub(super) answer: Duration,
    /// How many connections are kept while nobody uses them.
    pub(super) kept: usize,
}

/// The most bytes of one value, and of anything that is made of values on the way.
const LONGEST_VALUE: i32 = 1 << 24;

/// The most bytes that SQLite may have for all tables of this process, sorts that do not fit into caches included.
const MOST_MEMORY: i64 = 1 << 28;

/// After so many steps of SQLite's machine the time is looked at.
const STEPS: i32 = 1000;

/// Why a database cannot be opened.
#[derive(Debug)]
pub(super) struct CannotOpen {
    /// SQLite's word.
    pub(super) text: String,
    /// The system's.
    pub(super) system: String,
}

/// Why there is no answer; the text is SQLite's.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database cannot be opened any more.
    Open(String),
    /// The query is wrong, or does not fit the database.
    Prepare(String),
    /// It failed on its way.
    Step(String),
    /// There is no statement in the query.
    Nothing,
}

/// A query for one key.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// With parameters, and their values.
    pub(super) bound: Option<(&'a str, Vec<String>)>,
    /// With the key in its text.
    pub(super) text: &'a str,
}

/// Which file a connection was opened on, and what it looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Taken without opening the file: closing it again would give up the locks of this process on it.
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(Self {
            device: metadata.dev(),
            number: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// When the query that a connection is at has to end.
type Deadline = Arc<Mutex<Option<Instant>>>;

struct Session {
    connection: Connection,
    identity: Identity,
    deadline: Deadline,
}

/// A database file; any number of threads may ask.
pub(super) struct Database {
    path: PathBuf,
    limits: Limits,
    /// Connections that nobody uses, the last used one at the end.
    idle: Mutex<Vec<Session>>,
}

impl Database {
    /// Opens a file that exists.
    pub(super) fn open(path: &[u8], limits: Limits) -> Result<Self, CannotOpen> {
        let database = Self {
            path: OsStr::from_bytes(path).into(),
            limits,
            idle: Mutex::default(),
        };
        let session = database.connect()?;
        database.lock().push(session);
        Ok(database)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Session, CannotOpen> {
        // Looked at before: when it is replaced meanwhile, the next lookup opens it once more.
        let identity = Identity::of(&self.path).map_err(|error| CannotOpen {
            text: "unable to open database file".to_owned(),
            system: error_text(&error),
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let cannot = |error: Error| CannotOpen {
            system: error_text(&io::Error::last_os_error()),
            text: text_of(error),
        };
        let mut connection = Connection::open_with_flags(&self.path, flags).map_err(cannot)?;
        connection.busy_timeout(self.limits.busy).map_err(cannot)?;
        // A daemon that only reads may make no files, in many places: sorts and such stay in memory.
        let memory = format!("PRAGMA temp_store = MEMORY; PRAGMA hard_heap_limit = {MOST_MEMORY}");
        connection.execute_batch(&memory).map_err(cannot)?;
        for (limit, most) in [
            (Limit::SQLITE_LIMIT_LENGTH, LONGEST_VALUE),
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
        ] {
            connection.set_limit(limit, most).map_err(cannot)?;
        }
        let deadline = Deadline::default();
        let watched = Arc::clone(&deadline);
        let is_over = move || {
            let end = *watched.lock().unwrap_or_else(PoisonError::into_inner);
            end.is_some_and(|end| Instant::now() >= end)
        };
        connection
            .progress_handler(STEPS, Some(is_over))
            .map_err(cannot)?;
        Ok(Session {
            connection,
            identity,
            deadline,
        })
    }

    /// A connection to the file as it is now.
    fn session(&self) -> Result<Session, CannotOpen> {
        let now = Identity::of(&self.path).ok();
        let (kept, stale) = {
            let mut idle = self.lock();
            match idle.pop() {
                // The others are of the same file, or the next lookups find them out.
                Some(session) if Some(session.identity) == now => (Some(session), Vec::new()),
                Some(session) => {
                    let mut stale = std::mem::take(&mut *idle);
                    stale.push(session);
                    (None, stale)
                }
                None => (None, Vec::new()),
            }
        };
        drop(stale);
        kept.map_or_else(|| self.connect(), Ok)
    }

    /// How many connections are kept now.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.lock().len()
    }

    /// Asks; `each` gets the first column of every row, `None` for NULL, and says whether it wants more.
    pub(super) fn ask(
        &self,
        question: &Question<'_>,
        each: impl FnMut(Option<&[u8]>) -> bool,
    ) -> Result<(), Failure> {
        let session = self.session().map_err(|error| Failure::Open(error.text))?;
        let end = Instant::now() + self.limits.answer;
        let set = |end| {
            *session
                .deadline
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = end;
        };
        set(Some(end));
        let result = run(&session.connection, question, each);
        set(None);
        // A connection that failed may have failed for what it remembers of the file.
        if result.is_ok() {
            let mut idle = self.lock();
            if idle.len() < self.limits.kept {
                idle.push(session);
            }
        }
        result
    }
}

fn text_of(error: Error) -> String {
    match error {
        Error::SqliteFailure(code, None) => code.to_string(),
        Error::SqliteFailure(_, Some(text)) | Error::SqlInputError { msg: text, .. } => text,
        other => other.to_string(),
    }
}

fn run(
    connection: &Connection,
    question: &Question<'_>,
    each: impl FnMut(Option<&[u8]>) -> bool,
) -> Result<(), Failure> {
    // What cannot be prepared with parameters (a string where a name belongs, text behind the statement) may be
    // possible without.
    if let Some((text, values)) = &question.bound
        && let Ok(mut statement) = connection.prepare_cached(text)
        && statement.parameter_count() == values.len()
    {
        for (number, value) in values.iter().enumerate() {
            statement
                .raw_bind_parameter(number + 1, value)
                .map_err(|error| Failure::Step(text_of(error)))?;
        }
        let result = rows(connection, &mut statement, each);
        // Keys do not stay in memory.
        statement.clear_bindings();
        return result;
    }
    let first = Batch::new(connection, question.text)
        .next()
        .map_err(|error| Failure::Prepare(text_of(error)))?;
    match first {
        Some(mut statement) => rows(connection, &mut statement, each),
        None => Err(Failure::Nothing),
    }
}

fn rows(
    connection: &Connection,
    statement: &mut Statement<'_>,
    mut each: impl FnMut(Option<&[u8]>) -> bool,
) -> Result<(), Failure> {
    let mut rows = statement.raw_query();
    let step = |error| Failure::Step(text_of(error));
    while let Some(row) = rows.next().map_err(step)? {
        let text;
        let value = match row.get_ref(0).map_err(step)? {
            ValueRef::Null => None,
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
            ValueRef::Integer(number) => {
                text = number.to_string();
                Some(text.as_bytes())
            }
            ValueRef::Real(number) => {
                text = real(connection, number).map_err(step)?;
                Some(text.as_bytes())
            }
        };
        if !each(value) {
            break;
        }
    }
    Ok(())
}

/// A number as SQLite has written it until 3.52: since then it has more digits.
fn real(connection: &Connection, number: f64) -> Result<String, Error> {
    let mut statement = connection.prepare_cached("SELECT printf('%!.15g', ?1)")?;
    statement.query_row([Value::Real(number)], |row| row.get(0))
}
