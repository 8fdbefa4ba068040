//! A database that clients change: their statements, in transactions that several clients share.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::error;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_sys::error_text;
use postkeep_table::{OpenError, Printable};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator as _;
use rusqlite::{Batch, Connection, Error, ErrorCode, OpenFlags};

use super::database::{CannotOpen, Failure, Identity, Limits, Session, Text, code_of, text_of};
use crate::damaged;
use crate::group::{Change, Entries, Group, Store};
use crate::indexed::sync_directory;
use crate::table_config::fault;

/// Where SQLite keeps what is not in the database file yet, or may have to be put back.
const LOGS: [&str; 2] = ["-journal", "-wal"];

/// At this length (pages) a log is brought to the file.
const LOG_PAGES: i32 = 200;

/// How often one begins again as the database is replaced meanwhile.
const ATTEMPTS: usize = 4;

/// What changes the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Statements {
    pub(super) update: Option<String>,
    pub(super) delete: Option<String>,
    /// Gives the entry behind a key; changes nothing.
    pub(super) sequence: Option<String>,
    /// Makes the tables of an empty database.
    schema: Option<String>,
}

impl Statements {
    pub(super) fn read(config: &Config) -> Result<Self, OpenError> {
        let statement = |key: &str| {
            let text = config.optional(key)?;
            text.map(String::from_utf8)
                .transpose()
                .map_err(|_| config.unusable(key, &"expecting UTF-8"))
        };
        let read = || -> Result<Self, ConfigError> {
            Ok(Self {
                update: statement("update_query")?,
                delete: statement("delete_query")?,
                sequence: statement("sequence_query")?,
                schema: statement("schema")?,
            })
        };
        read().map_err(|error| fault(&error))
    }

    /// Is there anything that changes the table?
    pub(super) fn change(&self) -> bool {
        self.update.is_some() || self.delete.is_some()
    }

    /// Looks at each statement as SQLite understands it.
    fn check(&self, connection: &Connection) -> Result<(), Fault> {
        for (key, text, parameters, changes) in [
            ("update_query", &self.update, &[":key", ":value"][..], true),
            ("delete_query", &self.delete, &[":key"], true),
            ("sequence_query", &self.sequence, &[":key"], false),
        ] {
            if let Some(text) = text {
                check(connection, text, parameters, changes)
                    .map_err(|fault| fault.with(&format!("{key}: ")))?;
            }
        }
        Ok(())
    }
}

/// One statement, with these parameters and no others, that changes something or nothing.
fn check(
    connection: &Connection,
    text: &str,
    parameters: &[&str],
    changes: bool,
) -> Result<(), Fault> {
    let unusable = |why: String| Err(Fault::Refused(why));
    let mut batch = Batch::new(connection, text);
    let Some(statement) = batch.next()? else {
        return unusable("expecting a statement".to_owned());
    };
    if statement.readonly() == changes || statement.is_explain() != 0 {
        let kind = if changes { "" } else { "only " };
        let what = if changes {
            "changes something"
        } else {
            "reads"
        };
        return unusable(format!("expecting a statement that {kind}{what}"));
    }
    let names: Vec<_> = (1..=statement.parameter_count())
        .map(|number| statement.parameter_name(number).unwrap_or("?"))
        .collect();
    let unknown = names.iter().find(|name| !parameters.contains(name));
    let missing = parameters.iter().find(|name| !names.contains(name));
    match (unknown, missing) {
        (Some(name), _) => return unusable(format!("unknown parameter {name}")),
        (None, Some(name)) => return unusable(format!("the parameter {name} is missing")),
        (None, None) => {}
    }
    match batch.next()? {
        Some(_) => unusable("expecting one statement".to_owned()),
        None => Ok(()),
    }
}

/// Why a change was not made, or not for certain.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Time has run out, and would for others.
    Late(String),
    /// The file is no database, or a damaged one.
    Damaged(String),
    /// There is no room on the disk.
    Full(String),
    /// The database will never take this.
    Refused(String),
    /// All else.
    Failed(String),
}

impl Fault {
    fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Late(text)
            | Self::Damaged(text)
            | Self::Full(text)
            | Self::Refused(text)
            | Self::Failed(text) => text,
        }
    }

    /// The same with something said before it.
    fn with(self, before: &str) -> Self {
        match self {
            Self::Late(text) => Self::Late(format!("{before}{text}")),
            Self::Damaged(text) => Self::Damaged(format!("{before}{text}")),
            Self::Full(text) => Self::Full(format!("{before}{text}")),
            Self::Refused(text) => Self::Refused(format!("{before}{text}")),
            Self::Failed(text) => Self::Failed(format!("{before}{text}")),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let code = code_of(&error);
        let text = text_of(error);
        match code {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OperationInterrupted
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Late(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(text),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Refused(text)
            }
            Some(ErrorCode::DiskFull) => Self::Full(text),
            // SQLite does not say which of the two it is.
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => Self::Failed(format!(
                "{text}: the database file and its directory must be writable"
            )),
            _ => Self::Failed(text),
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Open(text) => Self::Failed(text),
            Failure::Prepare(error) | Failure::Step(error) => error.into(),
            Failure::Nothing => Self::Refused("not an error".to_owned()),
        }
    }
}

impl From<CannotOpen> for Fault {
    fn from(error: CannotOpen) -> Self {
        Self::Failed(format!("{}: {}", error.text, error.system))
    }
}

/// Looks a key up on the connection that changes the database.
pub(super) type IsThere<'a> = dyn Fn(&Connection, &[u8]) -> Result<bool, Failure> + 'a;

/// What changes a database.
pub(super) struct Writer {
    path: PathBuf,
    limits: Limits,
    pub(super) statements: Statements,
    /// A damaged database is replaced by one without entries.
    heals: bool,
    /// The connection that writes, while nobody uses it.
    session: Mutex<Option<Session>>,
    group: Group<Change, Fault>,
}

impl Writer {
    /// Opens a database that is there, or makes it by its schema.
    ///
    /// - `heals`: a damaged one is set aside, if there is a schema for a new one
    pub(super) fn open(
        path: &Path,
        statements: Statements,
        limits: Limits,
        heals: bool,
    ) -> Result<Self, Fault> {
        let writer = Self {
            path: path.to_owned(),
            limits,
            heals: heals && statements.schema.is_some(),
            statements,
            session: Mutex::default(),
            group: Group::default(),
        };
        let session = writer.connect().or_else(|fault| {
            if fault.is_damage() && writer.heal() {
                return writer.connect();
            }
            Err(fault)
        })?;
        *writer.session() = Some(session);
        // Whoever made the file may have died before its name was on the disk.
        sync_directory(path);
        Ok(writer)
    }

    /// Changes in line that no transaction has taken yet.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.group.waiting()
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Session, Fault> {
        let is_missing =
            fs::metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_missing && self.statements.schema.is_some() {
            let _lock = self
                .lock_directory()
                .map_err(|error| self.cannot_make(&error))?;
            self.make(None)?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let session = Session::open(&self.path, flags, self.limits)?;
        if session.connection.is_readonly("main")? {
            return Err(Fault::Failed(
                "the database file cannot be written to".to_owned(),
            ));
        }
        let connection = &session.connection;
        // A commit is on the disk when it returns, the removal of its journal included. A log is brought to the file early, as
        // it needs as much room there as it has grown by, which a full disk may not have.
        let settings =
            format!("PRAGMA synchronous = EXTRA; PRAGMA wal_autocheckpoint = {LOG_PAGES}");
        connection.execute_batch(&settings)?;
        self.statements.check(connection)?;
        Ok(session)
    }

    /// Keeps all others away who would make the database or set it aside. It is the directory that is locked: to open the
    /// database file, and to close it again, would give up the locks that SQLite has on it.
    fn lock_directory(&self) -> io::Result<File> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(directory)?;
        directory.lock()?;
        Ok(directory)
    }

    fn cannot_make(&self, error: &io::Error) -> Fault {
        let shown = Printable(self.path.as_os_str().as_bytes());
        Fault::Failed(format!("cannot make {shown}: {}", error_text(error)))
    }

    fn with_ending(&self, ending: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(ending);
        path.into()
    }

    /// Makes a database without entries, which is not seen before it is whole. The directory is locked.
    ///
    /// - `mode`: of the file, when not the usual one
    fn make(&self, mode: Option<u32>) -> Result<(), Fault> {
        let cannot = |error: io::Error| self.cannot_make(&error);
        let Some(schema) = &self.statements.schema else {
            return Ok(());
        };
        let remove = || -> io::Result<()> {
            for ending in ["", "-journal", "-wal", "-shm"] {
                match fs::remove_file(self.with_ending(&format!(".new{ending}"))) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        };
        let new = self.with_ending(".new");
        let fill = || -> Result<(), Fault> {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&new)
                .map_err(cannot)?;
            if let Some(mode) = mode {
                fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(cannot)?;
            }
            let session = Session::open(&new, OpenFlags::SQLITE_OPEN_READ_WRITE, self.limits)?;
            let connection = session.connection;
            connection
                .execute_batch("PRAGMA synchronous = EXTRA")
                .and_then(|()| connection.execute_batch(schema))
                .map_err(|error| Fault::from(error).with("schema: "))?;
            self.statements.check(&connection)?;
            // All of it is in the one file then.
            connection.close().map_err(|(_, error)| error)?;
            File::open(&new)
                .and_then(|file| file.sync_all())
                .map_err(cannot)
        };
        remove().map_err(cannot)?;
        let made = fill().and_then(|()| {
            // Unlike a renaming this never takes the place of another file.
            match fs::hard_link(&new, &self.path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(cannot(error)),
                _ => Ok(()),
            }
        });
        let _ = remove();
        sync_directory(&self.path);
        made
    }

    /// Sets the database aside if it is damaged, and makes one without entries; true when it can be tried again.
    pub(super) fn heal(&self) -> bool {
        if !self.heals {
            return false;
        }
        let Ok(_lock) = self.lock_directory() else {
            return false;
        };
        let damage = match self.damage() {
            Ok(Some(damage)) => damage,
            // Somebody else has done it, or it was the connection.
            Ok(None) => return true,
            Err(_) => return false,
        };
        let mode = fs::metadata(&self.path).map(|metadata| metadata.permissions().mode() & 0o777);
        // What is shared among processes belongs to the file that was.
        let _ = fs::remove_file(self.with_ending("-shm"));
        if !damaged::set_aside_with(&self.path, &LOGS, damage) {
            return false;
        }
        self.make(mode.ok())
            .inspect_err(|fault| error!("{}", fault.text()))
            .is_ok()
    }

    /// What is wrong with the database as it is in its file now.
    fn damage(&self) -> Result<Option<String>, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let session = Session::open(&self.path, flags, self.limits)?;
        session.end_within(Some(self.limits.answer));
        let complaint = || -> Result<Option<String>, Error> {
            let mut statement = session.connection.prepare("PRAGMA integrity_check")?;
            let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
            for line in lines {
                let line = line?;
                // An entry that its table does not allow is no damage.
                let is_of_entry = ["NULL value in ", "CHECK constraint failed in "]
                    .iter()
                    .any(|start| line.starts_with(start));
                if line != "ok" && !is_of_entry {
                    return Ok(Some(line.lines().next().unwrap_or_default().to_owned()));
                }
            }
            Ok(None)
        };
        match complaint() {
            Ok(complaint) => Ok(complaint),
            Err(error) => match Fault::from(error) {
                Fault::Damaged(text) => Ok(Some(text)),
                fault => Err(fault),
            },
        }
    }

    /// Brings a log to the database and cuts it off: it may have grown while the disk became full, and takes room that the
    /// next change needs. A connection for that change; `None` when there was nothing to be gained.
    fn empty_log(&self) -> Option<Session> {
        let session = self.connect().ok()?;
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        // The second column is -1 where there is no log, the first is 1 where others were in the way.
        let is_empty = session.connection.query_row(checkpoint, [], |row| {
            Ok(row.get::<_, i64>(0)? == 0 && row.get::<_, i64>(1)? >= 0)
        });
        is_empty.unwrap_or(false).then_some(session)
    }

    /// Makes a change that is safe on the disk when this returns.
    ///
    /// - `is_there`: looks up the key of an entry that must not be replaced
    ///
    /// `None` when the thread that was to commit it has ended.
    pub(super) fn change(
        &self,
        change: Change,
        is_there: &IsThere<'_>,
    ) -> Option<Result<bool, Fault>> {
        let making = Making {
            writer: self,
            is_there,
        };
        self.group.commit(change.bytes(), change, &making)
    }
}

/// A database while it is being changed.
struct Making<'a> {
    writer: &'a Writer,
    is_there: &'a IsThere<'a>,
}

impl Making<'_> {
    fn transact<'c>(
        &self,
        kept: &mut Option<Session>,
        changes: &dyn Fn() -> Vec<&'c Change>,
    ) -> Result<Vec<bool>, Fault> {
        let writer = self.writer;
        for _ in 0..ATTEMPTS {
            // What fails is closed, and with it ends what it has begun.
            let session = match kept.take() {
                Some(session) => session,
                None => writer.connect()?,
            };
            let is_current = || {
                let now = Identity::of(&writer.path);
                now.is_ok_and(|now| now.is_same_file(&session.identity))
            };
            if !is_current() {
                continue;
            }
            session.connection.execute_batch("BEGIN IMMEDIATE")?;
            if !is_current() {
                continue;
            }
            session.end_within(Some(writer.limits.answer));
            let mut transaction = Transaction {
                statements: &writer.statements,
                connection: &session.connection,
                is_there: self.is_there,
            };
            let results = changes()
                .into_iter()
                .map(|change| change.make(&mut transaction))
                .collect::<Result<_, _>>()?;
            session.end_within(None);
            session.connection.execute_batch("COMMIT")?;
            *kept = Some(session);
            return Ok(results);
        }
        Err(Fault::Failed("the database is being replaced".to_owned()))
    }
}

impl Store for Making<'_> {
    type Change = Change;
    type Error = Fault;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c Change>) -> Result<Vec<bool>, Fault> {
        let mut kept = self.writer.session();
        match self.transact(&mut kept, changes) {
            Err(fault) if fault.is_damage() && self.writer.heal() => {
                self.transact(&mut kept, changes)
            }
            Err(fault @ Fault::Full(_)) => {
                *kept = self.writer.empty_log();
                if kept.is_some() {
                    return self.transact(&mut kept, changes);
                }
                Err(fault)
            }
            result => result,
        }
    }

    fn for_each(&self, fault: &Fault) -> Option<Fault> {
        matches!(fault, Fault::Late(_)).then(|| fault.clone())
    }
}

struct Transaction<'a> {
    statements: &'a Statements,
    connection: &'a Connection,
    is_there: &'a IsThere<'a>,
}

impl Transaction<'_> {
    /// Runs a statement; whether it has changed anything.
    fn execute(&self, statement: &str, parameters: &[(&str, &[u8])]) -> Result<bool, Fault> {
        let before = self.connection.total_changes();
        let mut statement = self.connection.prepare_cached(statement)?;
        for (name, value) in parameters {
            statement.raw_bind_parameter(*name, Text(value))?;
        }
        let result = statement.raw_query().count();
        // Keys and values do not stay in memory.
        statement.clear_bindings();
        result?;
        Ok(self.connection.total_changes() > before)
    }
}

impl Entries for Transaction<'_> {
    type Error = Fault;

    fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Fault> {
        let Some(statement) = &self.statements.update else {
            return Ok(false);
        };
        if !replace && (self.is_there)(self.connection, key)? {
            return Ok(false);
        }
        self.execute(statement, &[(":key", key), (":value", value)])
    }

    fn delete(&mut self, key: &[u8]) -> Result<bool, Fault> {
        match &self.statements.delete {
            Some(statement) => self.execute(statement, &[(":key", key)]),
            None => Ok(false),
        }
    }
}
