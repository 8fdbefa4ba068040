//! `sqlite:FILE` asks an SQLite database, read-only, with a query from the configuration in `FILE`; `sqlite:NAME` has it
//! in main.cf, as `NAME_dbpath`, `NAME_query` and so on.
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
//! No files are made: what a query sorts or gathers on its way stays in memory, of which all tables of a process get 256 MiB
//! together, their page caches included. A query that needs more is a temporary error.
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
//! | `answer_timeout` | 30s | for one query, after which it is a temporary error |
//! | `pool_max_connections` | 16 | connections that are kept while nobody uses them |
//!
//! References: `sqlite_table(5)`; Postfix `src/global/dict_sqlite.c`.

mod database;
mod statement;

use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use postkeep_conf::Release;
use postkeep_remote::config::statement as configured_statement;
use postkeep_remote::rules::Rules;
use postkeep_remote::template::Excess;
use postkeep_table::{
    Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Table, TableName, Watch,
};

use self::database::{Database, Failure, Limits, Question};
use self::statement::{Prepared, quote, unprotected};
use crate::Caller;
use crate::layer::valid;
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "sqlite",
    summary: "an SQLite database",
    capabilities: Capabilities::READ_ONLY,
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
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let name = request.name;
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
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
    let database = Database::open(&path, limits).map_err(|error| {
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
    Ok(Arc::new(Sqlite {
        name: name.clone(),
        flags: request.fixed_flags(),
        rules,
        prepared,
        database,
        caller: request.context.caller,
        configured,
    }))
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
                "dict_sqlite_lookup: {file}: SQL prepare failed: {error}?"
            )),
            Failure::Nothing => {
                warn!(
                    "dict_sqlite_lookup: {file}: SQL step failed for query '{query}': not an error?"
                );
                LookupError::Retry(String::new())
            }
            Failure::Step(error) => {
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
        let text = self.rules.expand(&key, quote);
        let bound = self.prepared.as_ref().and_then(|prepared| {
            let values = prepared.values(&key)?;
            Some((prepared.text.as_str(), values))
        });
        let question = Question {
            bound,
            text: std::str::from_utf8(&text).map_err(|_| {
                LookupError::Config(format!("{}: the query is not UTF-8", self.name))
            })?,
        };
        let mut answer = self.rules.answer(&self.name, &key);
        let mut excess = None;
        let asked = self.database.ask(&question, |value| {
            excess = answer.add(value).err();
            excess.is_none()
        });
        if let Some(excess) = excess {
            let whole = Printable(key.whole());
            let what = match excess {
                Excess::Values => "Expansion limit",
                Excess::Size => "Result size limit",
            };
            warn!("dict_sqlite_lookup: {file}: {what} exceeded for key '{whole}'");
            return Err(LookupError::Retry(String::new()));
        }
        asked.map_err(|failure| self.failed(failure, &text))?;
        Ok(match answer.finish() {
            Some(found) => {
                value.extend_from_slice(&found);
                Outcome::Done
            }
            None => Outcome::Absent,
        })
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
