//! `sqlite:FILE` asks an SQLite database with a query from the configuration in `FILE`; `sqlite:NAME` has it in main.cf, as
//! `NAME_dbpath`, `NAME_query` and so on. Postfix only reads such tables; with `update_query` and `delete_query`, which are ours,
//! proxywrite can also change them.
//!
//! The first column of all rows is the result, joined by commas; rows without a value are passed over. A part of the key
//! belongs between single quotes in the query, where it cannot be anything but data: it is handed to SQLite as a
//! parameter. Anywhere else it becomes part of the text with its quotes doubled, as in the reference, which does not keep
//! a key from changing the query: there is a warning when the table is opened. Keys that are not UTF-8 are not found.
//!
//! Changes by other programs are seen at once, also when the file is replaced by another. A few connections are kept,
//! each with its page cache and its prepared query. A database with a log (WAL mode) can only be replaced together with its
//! `-wal` file: the log of the old one is taken for the new one's otherwise, by all programs.
//!
//! No files are made to look something up: what a query sorts or gathers on its way stays in memory, of which all tables of a
//! process get 256 MiB together, their page caches included. A query that needs more is a temporary error.
//!
//! | key | default | |
//! |---|---|---|
//! | `dbpath` | | the database's file |
//! | `query` | | the query, with `%s`, `%u`, `%d`, `%1` to `%9` for the key and its parts |
//! | `table`, `select_field`, `where_field`, `additional_conditions` | | what the query is made of when there is none |
//! | `result_format` | `%s` | what is made of each value |
//! | `domain` | | the domains of keys that are looked up; all |
//! | `expansion_limit` | 0 | the most values; more are a temporary error; 0 for no limit |
//!
//! Our own keys:
//!
//! | key | default | |
//! |---|---|---|
//! | `busy_timeout` | 3s | to wait for a lock that another program holds; a temporary error after it |
//! | `answer_timeout` | 30s | for one query, or the changes of one transaction, after which it is a temporary error |
//! | `pool_max_connections` | 16 | connections that are kept while nobody uses them |
//! | `update_query` | none | stores an entry, and replaces one that is there: a statement with the parameters `:key` and `:value` |
//! | `delete_query` | none | deletes an entry: a statement with the parameter `:key` |
//! | `sequence_query` | none | gives the key and the value of the entry behind `:key`, by which caches are cleaned up; behind an empty one, of the first |
//! | `schema` | none | statements that make the tables of a database, when there is none |
//!
//! ```text
//! # main.cf: address_verify_map = proxy:sqlite:/etc/postfix/verify.cf
//! dbpath = /var/lib/postfix/verify.sqlite
//! query = SELECT value FROM cache WHERE key = '%s'
//! update_query = INSERT INTO cache VALUES (:key, :value)
//!     ON CONFLICT (key) DO UPDATE SET value = :value
//! delete_query = DELETE FROM cache WHERE key = :key
//! sequence_query = SELECT key, value FROM cache WHERE key > :key ORDER BY key LIMIT 1
//! schema = PRAGMA journal_mode = WAL;
//!     CREATE TABLE cache (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID
//! ```
//!
//! These statements are no templates: a percent sign is one, and parameters are never part of the text, so no key or value can
//! change what a statement does. They stand without quotes. Columns for values had better be `TEXT`: SQLite makes numbers of texts that look
//! like some where a column is for numbers. A statement that changes nothing is told to the client as an entry that was not
//! stored, or not there. Without `update_query` and `delete_query` the table cannot be opened to be changed, as with Postfix.
//! Keys that are not looked up (empty, not UTF-8, without a part that the query needs, of other domains) cannot be stored, nor
//! can values that are empty, not UTF-8, or of more than one megabyte.
//!
//! An update or a delete is answered when its transaction is on the disk (`PRAGMA synchronous = EXTRA`). Those that come
//! meanwhile go together into the next one, 128 at most. When one of them fails they are made one by one, and each client gets the
//! answer to its own. In a database with a log (WAL mode) lookups do not wait for changes, and a commit is one wait for the disk
//! instead of five; in others lookups wait while a commit is brought to the file. The mode is the file's, and not changed.
//! SQLite makes files beside the database (`-journal`, or `-wal` and `-shm`), so its directory has to be writable.
//!
//! A damaged database that proxywrite writes to is set aside as `FILE.damaged-` and the time, with its log, and made anew by its
//! `schema`; without that key it is a temporary error.
//!
//! References: `sqlite_table(5)`; Postfix `src/global/dict_sqlite.c`.

mod changing;
mod database;
mod statement;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use postkeep_conf::Release;
use postkeep_remote::config::statement as configured_statement;
use postkeep_remote::rules::Rules;
use postkeep_remote::template::{Excess, Key, RESULT_LIMIT};
use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch, unsupported,
};
use rusqlite::Connection;

use self::changing::{Fault, Statements, Writer};
use self::database::{Changes, Database, Failure, Limits, Question, run, text_of};
use self::statement::{Prepared, quote, unprotected};
use crate::Caller;
use crate::group::Change;
use crate::indexed::duplicate;
use crate::layer::valid;
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "sqlite",
    summary: "an SQLite database",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE),
    open,
    build: None,
};

struct Sqlite {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    rules: Rules,
    prepared: Option<Prepared>,
    database: Database,
    caller: Caller,
    sequence: Option<String>,
    /// Where the table may be changed.
    writer: Option<Writer>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(open_table(request)?))
}

fn open_table(request: &Request<'_>) -> Result<Sqlite, OpenError> {
    let name = request.name;
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    if request.access == Access::ReadWrite && !Statements::read(config)?.change() {
        return Err(OpenError::Unavailable(format!(
            "{name} map requires O_RDONLY access mode"
        )));
    }
    let path = config
        .text("dbpath", "", 1, 0)
        .map_err(|error| fault(&error))?;
    let query = configured_statement(config, false).map_err(|error| fault(&error))?;
    for code in unprotected(&query) {
        warn!(
            "{name}: query >{}< contains >{}< without the recommended '' quotes",
            Printable(&query),
            Printable(code)
        );
    }
    let rules = Rules::read(config, |_| Ok(query)).map_err(|error| fault(&error))?;
    let rules = rules.filtered(configured.domains(request)?);
    let limits = limits(&configured)?;
    let prepared = Prepared::of(rules.query());
    let statements = Statements::read(config)?;
    let sequence = statements.sequence.clone();
    let is_daemon = request.context.caller == Caller::Daemon;
    let (changes, writer) = match request.access {
        Access::Read => (Changes::OfOthers, None),
        Access::ReadWrite => {
            let file = Path::new(OsStr::from_bytes(&path));
            let writer = Writer::open(file, statements, limits, is_daemon);
            let writer = writer.map_err(|fault| {
                let path = Printable(&path);
                OpenError::Unavailable(format!("{name}: open database {path}: {}", fault.text()))
            })?;
            (Changes::OurOwn, Some(writer))
        }
    };
    let database = Database::open(&path, limits, changes).map_err(|error| {
        OpenError::Unavailable(if config.release() < Release::V3_10 {
            format!("{name}: Can't open database: {}?", error.text)
        } else {
            let path = Printable(&path);
            format!(
                "{name}: open database {path}: {}: {}",
                error.text, error.system
            )
        })
    })?;
    let mut flags = request.fixed_flags();
    if writer.is_some() {
        flags |= Flags::MULTI_WRITER;
    }
    Ok(Sqlite {
        name: name.clone(),
        flags,
        sequence,
        writer,
        rules,
        prepared,
        database,
        caller: request.context.caller,
        configured,
    })
}

fn limits(configured: &TableConfig) -> Result<Limits, OpenError> {
    let config = &configured.config;
    let time = |key, default| {
        let range = (Duration::ZERO, Duration::from_hours(1));
        config
            .time(key, Duration::from_secs(default), range.0, range.1)
            .map_err(|error| fault(&error))
    };
    let kept = config.int("pool_max_connections", 16, 1, 1000);
    Ok(Limits {
        busy: time("busy_timeout", 3)?,
        answer: time("answer_timeout", 30)?,
        kept: kept.map_err(|error| fault(&error))?.try_into().unwrap_or(1),
    })
}

impl Sqlite {
    fn failed(&self, failure: Failure, query: &[u8]) -> LookupError {
        let file = self.configured.config.name();
        let query = Printable(query);
        let told = |text: String| {
            // A command of the reference ends here; a daemon of ours does not.
            if self.caller == Caller::Command {
                return LookupError::Retry(text);
            }
            warn!("{text}");
            LookupError::Retry(String::new())
        };
        match failure {
            Failure::Open(error) => told(format!("{}: Can't open database: {}?", self.name, error)),
            Failure::Prepare(error) => told(format!(
                "dict_sqlite_lookup: {file}: SQL prepare failed: {}?",
                text_of(error)
            )),
            Failure::Nothing => {
                warn!(
                    "dict_sqlite_lookup: {file}: SQL step failed for query '{query}': not an error?"
                );
                LookupError::Retry(String::new())
            }
            Failure::Step(error) => {
                let error = text_of(error);
                warn!("dict_sqlite_lookup: {file}: SQL step failed for query '{query}': {error}?");
                if self.caller == Caller::Command {
                    return LookupError::Retry(format!(
                        "dict_sqlite_lookup: {file}: SQL finalize failed for query '{query}': {error}?"
                    ));
                }
                LookupError::Retry(String::new())
            }
        }
    }
}

/// Why nothing is known of a key.
enum Unfound {
    /// The database did not answer this query.
    Failed(Failure, Vec<u8>),
    Told(LookupError),
}

impl Sqlite {
    /// The query for a key.
    fn question<'q>(&'q self, key: &Key<'_>, text: &'q [u8]) -> Result<Question<'q>, LookupError> {
        let bound = self.prepared.as_ref().and_then(|prepared| {
            let values = prepared.values(key)?;
            Some((prepared.text.as_str(), values))
        });
        Ok(Question {
            bound,
            text: std::str::from_utf8(text).map_err(|_| {
                LookupError::Config(format!("{}: the query is not UTF-8", self.name))
            })?,
        })
    }

    fn find(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>, Unfound> {
        let text = self.rules.expand(key, quote);
        let question = self.question(key, &text).map_err(Unfound::Told)?;
        let mut answer = self.rules.answer(&self.name, key);
        let mut excess = None;
        let asked = self.database.ask(&question, |value| {
            excess = answer.add(value).err();
            excess.is_none()
        });
        if let Some(excess) = excess {
            let file = self.configured.config.name();
            let whole = Printable(key.whole());
            let what = match excess {
                Excess::Values => "Expansion limit",
                Excess::Size => "Result size limit",
            };
            warn!("dict_sqlite_lookup: {file}: {what} exceeded for key '{whole}'");
            return Err(Unfound::Told(LookupError::Retry(String::new())));
        }
        match asked {
            Ok(()) => Ok(answer.finish()),
            Err(failure) => Err(Unfound::Failed(failure, text)),
        }
    }

    /// Is there anything to be found under this key?
    fn is_looked_up(&self, key: &[u8]) -> Result<bool, LookupError> {
        Ok(valid(key) && self.rules.key_here(&self.name, key)?.is_some())
    }

    /// Sets a damaged database aside; true when it can be tried again.
    fn heals(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::heal)
    }

    /// Does a query on this connection find anything under this key?
    fn is_there(&self, connection: &Connection, key: &[u8]) -> Result<bool, Failure> {
        let Ok(Some(key)) = self.rules.key_here(&self.name, key) else {
            return Ok(false);
        };
        let text = self.rules.expand(&key, quote);
        let Ok(question) = self.question(&key, &text) else {
            return Ok(false);
        };
        let mut found = false;
        run(connection, &question, |value| {
            found |= value.is_some();
            !found
        })?;
        Ok(found)
    }

    /// Makes a change that is safe on the disk when this returns.
    fn change(&self, writer: &Writer, doing: &str, change: Change) -> Result<bool, LookupError> {
        let is_there = |connection: &Connection, key: &[u8]| self.is_there(connection, key);
        match writer.change(change, &is_there) {
            Some(result) => result.map_err(|fault| self.unchanged(doing, &fault)),
            None => Err(LookupError::Retry(format!(
                "error {doing} {}: the thread that was to commit it has ended",
                self.name
            ))),
        }
    }

    fn unchanged(&self, doing: &str, fault: &Fault) -> LookupError {
        let text = format!("error {doing} {}: {}", self.name, fault.text());
        match fault {
            Fault::Refused(_) => LookupError::Config(text),
            Fault::Late(_) | Fault::Damaged(_) | Fault::Full(_) | Fault::Failed(_) => {
                LookupError::Retry(text)
            }
        }
    }
}

impl Table for Sqlite {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        let file = self.configured.config.name();
        if !valid(key) {
            debug!("dict_sqlite_lookup: {file}: Skipping lookup of non-UTF-8 key");
            return Ok(Outcome::Absent);
        }
        let Some(key) = self.rules.key_here(&self.name, key)? else {
            return Ok(Outcome::Absent);
        };
        let found = match self.find(&key) {
            Err(Unfound::Failed(failure, _)) if failure.is_damage() && self.heals() => {
                self.find(&key)
            }
            found => found,
        };
        match found {
            Ok(Some(found)) => {
                value.extend_from_slice(&found);
                Ok(Outcome::Done)
            }
            Ok(None) => Ok(Outcome::Absent),
            Err(Unfound::Failed(failure, text)) => Err(self.failed(failure, &text)),
            Err(Unfound::Told(error)) => Err(error),
        }
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let Some(writer) = &self.writer else {
            return Err(unsupported(&self.name, "update"));
        };
        if writer.statements.update.is_none() {
            return Err(unsupported(&self.name, "update"));
        }
        let unfit = |what: &str| {
            let key = Printable(key);
            LookupError::Config(format!("error updating {}: \"{key}\": {what}", self.name))
        };
        if !self.is_looked_up(key)? {
            return Err(unfit("a key that is not looked up"));
        }
        if value.is_empty() || value.len() > RESULT_LIMIT || value.contains(&0) || !valid(value) {
            return Err(unfit("a value that would not be found"));
        }
        let change = Change::Put {
            key: key.to_vec(),
            value: value.to_vec(),
            replace: flags.contains(Flags::DUP_REPLACE),
        };
        if self.change(writer, "updating", change)? {
            return Ok(Outcome::Done);
        }
        match duplicate(&self.name, flags, key) {
            None => Ok(Outcome::Absent),
            Some(_) if flags.contains(Flags::DUP_REPLACE) => Ok(Outcome::Absent),
            Some(text) => Err(LookupError::Config(text)),
        }
    }

    fn delete(&self, _: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let Some(writer) = &self.writer else {
            return Err(unsupported(&self.name, "delete"));
        };
        if writer.statements.delete.is_none() {
            return Err(unsupported(&self.name, "delete"));
        }
        if !self.is_looked_up(key)? {
            return Ok(Outcome::Absent);
        }
        let change = Change::Delete([Some(key.to_vec()), None]);
        Ok(if self.change(writer, "deleting from", change)? {
            Outcome::Done
        } else {
            Outcome::Absent
        })
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let Some(statement) = &self.sequence else {
            return Err(unsupported(&self.name, "sequence"));
        };
        if step == Step::First {
            *cursor = Cursor::default();
        }
        let last = cursor.key.as_deref().unwrap_or_default();
        let entry = match self.database.entry(statement, last) {
            Err(failure) if failure.is_damage() && self.heals() => {
                self.database.entry(statement, last)
            }
            entry => entry,
        };
        let entry = entry.map_err(|failure| self.unchanged("seeking", &failure.into()))?;
        let Some((found_key, found_value)) = entry else {
            return Ok(Outcome::Absent);
        };
        if found_key == last {
            // A walk would never end.
            return Err(LookupError::Config(format!(
                "error seeking {}: sequence_query gives \"{}\" behind itself",
                self.name,
                Printable(last)
            )));
        }
        key.extend_from_slice(&found_key);
        value.extend_from_slice(&found_value);
        cursor.key = Some(found_key);
        cursor.ordinal += 1;
        Ok(Outcome::Done)
    }

    fn watches(&self) -> Vec<Watch> {
        self.configured.watches()
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}

#[cfg(test)]
mod tests;
