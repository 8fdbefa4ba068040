//! A database file and the connections to it.

use std::borrow::Cow;
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
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Batch, Connection, Error, ErrorCode, OpenFlags, Statement, ToSql};

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

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database cannot be opened any more; the text is SQLite's.
    Open(String),
    /// The query is wrong, or does not fit the database.
    Prepare(Error),
    /// It failed on its way.
    Step(Error),
    /// There is no statement in the query.
    Nothing,
}

impl Failure {
    /// Does SQLite say that the file is no database, or a damaged one?
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Prepare(error) | Self::Step(error) => is_damage(error),
            Self::Open(_) | Self::Nothing => false,
        }
    }
}

/// Does SQLite say that the file is no database, or a damaged one?
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(
        code_of(error),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// SQLite's number for an error, where it is one of SQLite's.
pub(super) fn code_of(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::SqliteFailure(code, _) | Error::SqlInputError { error: code, .. } => Some(code.code),
        _ => None,
    }
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
pub(super) struct Identity {
    device: u64,
    number: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Taken without opening the file: closing it again would give up the locks of this process on it.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
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

impl Identity {
    /// The same file, whatever was written to it meanwhile?
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.number) == (other.device, other.number)
    }
}

/// When the query that a connection is at has to end.
type Deadline = Arc<Mutex<Option<Instant>>>;

/// A connection, and the file that it is of.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    deadline: Deadline,
}

impl Session {
    /// - `flags`: how the file is to be opened; it must be there
    pub(super) fn open(path: &Path, flags: OpenFlags, limits: Limits) -> Result<Self, CannotOpen> {
        // Looked at before: when it is replaced meanwhile, the next lookup opens it once more.
        let identity = Identity::of(path).map_err(|error| CannotOpen {
            text: "unable to open database file".to_owned(),
            system: error_text(&error),
        })?;
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(cannot_open)?;
        connection.busy_timeout(limits.busy).map_err(cannot_open)?;
        // A daemon that only reads may make no files, in many places: sorts and such stay in memory.
        let memory = format!("PRAGMA temp_store = MEMORY; PRAGMA hard_heap_limit = {MOST_MEMORY}");
        connection.execute_batch(&memory).map_err(cannot_open)?;
        for (limit, most) in [
            (Limit::SQLITE_LIMIT_LENGTH, LONGEST_VALUE),
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
        ] {
            connection.set_limit(limit, most).map_err(cannot_open)?;
        }
        let deadline = Deadline::default();
        let watched = Arc::clone(&deadline);
        let is_over = move || {
            let end = *watched.lock().unwrap_or_else(PoisonError::into_inner);
            end.is_some_and(|end| Instant::now() >= end)
        };
        connection
            .progress_handler(STEPS, Some(is_over))
            .map_err(cannot_open)?;
        Ok(Self {
            connection,
            identity,
            deadline,
        })
    }

    /// Lets statements end with an error that are still running after `limit`, from now on; `None` lets them run.
    pub(super) fn end_within(&self, limit: Option<Duration>) {
        let mut end = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *end = limit.map(|limit| Instant::now() + limit);
    }
}

/// Who changes the file, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// Others, who may do it in ways that SQLite cannot notice: a file that looks different is opened anew.
    OfOthers,
    /// We do: a file that looks different is as it should be, and only another one is opened anew.
    OurOwn,
}

/// A database file; any number of threads may ask.
pub(super) struct Database {
    path: PathBuf,
    limits: Limits,
    changes: Changes,
    /// Connections that nobody uses, the last used one at the end.
    idle: Mutex<Vec<Session>>,
}

impl Database {
    /// Opens a file that exists.
    pub(super) fn open(path: &[u8], limits: Limits, changes: Changes) -> Result<Self, CannotOpen> {
        let database = Self {
            path: OsStr::from_bytes(path).into(),
            limits,
            changes,
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
        match self.changes {
            Changes::OfOthers => {
                Session::open(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY, self.limits)
            }
            // Whoever meets a change that was cut off has to undo it before he can read.
            Changes::OurOwn => {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
                let session = Session::open(&self.path, flags, self.limits)?;
                session
                    .connection
                    .execute_batch("PRAGMA query_only = ON")
                    .map_err(cannot_open)?;
                Ok(session)
            }
        }
    }

    /// Is a connection as good as one that is made now?
    fn is_current(&self, session: &Session, now: Option<&Identity>) -> bool {
        now.is_some_and(|now| match self.changes {
            Changes::OfOthers => session.identity == *now,
            Changes::OurOwn => session.identity.is_same_file(now),
        })
    }

    /// A connection to the file as it is now.
    fn session(&self) -> Result<Session, CannotOpen> {
        let now = Identity::of(&self.path).ok();
        let (kept, stale) = {
            let mut idle = self.lock();
            match idle.pop() {
                // The others are of the same file, or the next lookups find them out.
                Some(session) if self.is_current(&session, now.as_ref()) => {
                    (Some(session), Vec::new())
                }
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
        self.with(|connection| run(connection, question, each))
    }

    /// The first two columns of the first row that a statement gives for a key, whose parameter is called `:key`.
    pub(super) fn entry(&self, statement: &str, key: &[u8]) -> Result<Option<Pair>, Failure> {
        self.with(|connection| {
            let mut statement = connection
                .prepare_cached(statement)
                .map_err(Failure::Prepare)?;
            let entry = pair(connection, &mut statement, key).map_err(Failure::Step);
            statement.clear_bindings();
            entry
        })
    }

    fn with<R>(&self, ask: impl FnOnce(&Connection) -> Result<R, Failure>) -> Result<R, Failure> {
        let session = self.session().map_err(|error| Failure::Open(error.text))?;
        session.end_within(Some(self.limits.answer));
        let result = ask(&session.connection);
        session.end_within(None);
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

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A text of a statement's parameter. SQLite takes any bytes for one.
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>, Error> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

fn pair(
    connection: &Connection,
    statement: &mut Statement<'_>,
    key: &[u8],
) -> Result<Option<Pair>, Error> {
    statement.raw_bind_parameter(":key", Text(key))?;
    let mut rows = statement.raw_query();
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let column = |number: usize| -> Result<Vec<u8>, Error> {
        let value = shown(connection, row.get_ref(number)?)?;
        Ok(value.unwrap_or_default().into_owned())
    };
    Ok(Some((column(0)?, column(1)?)))
}

fn cannot_open(error: Error) -> CannotOpen {
    CannotOpen {
        system: error_text(&io::Error::last_os_error()),
        text: text_of(error),
    }
}

/// SQLite's word for an error.
pub(super) fn text_of(error: Error) -> String {
    match error {
        Error::SqliteFailure(code, None) => code.to_string(),
        Error::SqliteFailure(_, Some(text)) | Error::SqlInputError { msg: text, .. } => text,
        other => other.to_string(),
    }
}

/// Asks on one connection; see [`Database::ask`].
pub(super) fn run(
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
                .map_err(Failure::Step)?;
        }
        let result = rows(connection, &mut statement, each);
        // Keys do not stay in memory.
        statement.clear_bindings();
        return result;
    }
    let first = Batch::new(connection, question.text)
        .next()
        .map_err(Failure::Prepare)?;
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
    while let Some(row) = rows.next().map_err(Failure::Step)? {
        let value = row
            .get_ref(0)
            .and_then(|value| shown(connection, value))
            .map_err(Failure::Step)?;
        if !each(value.as_deref()) {
            break;
        }
    }
    Ok(())
}

/// A value as text; `None` for NULL.
fn shown<'v>(connection: &Connection, value: ValueRef<'v>) -> Result<Option<Cow<'v, [u8]>>, Error> {
    Ok(match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.into()),
        ValueRef::Integer(number) => Some(number.to_string().into_bytes().into()),
        ValueRef::Real(number) => Some(real(connection, number)?.into_bytes().into()),
    })
}

/// A number as SQLite has written it until 3.52: since then it has more digits.
fn real(connection: &Connection, number: f64) -> Result<String, Error> {
    let mut statement = connection.prepare_cached("SELECT printf('%!.15g', ?1)")?;
    statement.query_row([Value::Real(number)], |row| row.get(0))
}
