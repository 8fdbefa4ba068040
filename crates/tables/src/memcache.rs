//! `memcache:FILE` keeps values in a memcached server, with or without another table behind it, by the configuration in
//! `FILE`; `memcache:NAME` has it in main.cf, as `NAME_memcache`, `NAME_backup` and so on.
//!
//! A lookup asks the server first. When it does not have the key, or fails, the backup is asked, whose answer counts, and
//! what it has found is stored in the server. Updates and deletions go to the server, then to the backup, whose outcome
//! counts. Entries can be listed when the backup can. The backup is any `type:name`, `proxy:` included, and gets the key
//! as it is, without `key_format`.
//!
//! A key with white space, or that is empty after formatting, is not asked for; from 3.12 on one with control characters
//! neither. memcached takes keys of 250 bytes; `key_digest` makes them shorter.
//!
//! | key | default | |
//! |---|---|---|
//! | `memcache` | `inet:localhost:11211` | the server, `inet:host:port` or `unix:path` |
//! | `backup` | | the table behind it |
//! | `key_format` | `%s` | with `%s`, `%u`, `%d`, `%1` to `%9` for the key and its parts |
//! | `key_digest` | | send a digest of the key in hexadecimal: `sha1`, `sha256`, `sha384` or `sha512` (3.11; other names of OpenSSL are not known here) |
//! | `domain` | | the domains of keys that are looked up; all |
//! | `flags`, `ttl` | 0, 3600 | stored with a value; seconds |
//! | `max_try`, `retry_pause` | 2, 1 | how often a request is tried, and the seconds between |
//! | `timeout` | 2 | seconds to connect, and for an answer; 0 for an hour |
//! | `line_size_limit` | 1024 | bytes of a line of an answer |
//! | `data_size_limit` | 10240 | bytes of a value |
//!
//! All tables of a server with the same limits share its connections. Our own keys:
//!
//! | key | default | |
//! |---|---|---|
//! | `pool_max_connections` | 16 | connections to one server |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout`, `answer_timeout` | `timeout` | to connect; from the question to the end of the answer |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `breaker_failures` | 5 | requests in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 10s | until one is let through to see |
//!
//! References: `memcache_table(5)`; Postfix `src/global/dict_memcache.c`.

mod server;

use std::sync::Arc;
use std::time::Duration;

use log::{debug, error, warn};
use postkeep_conf::Release;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::domain::Domains;
use postkeep_remote::hosts::Host;
use postkeep_remote::limits::Limits;
use postkeep_remote::memcache::{self, is_key};
use postkeep_remote::pool::{Pool, Refusal, Shared};
use postkeep_remote::runtime;
use postkeep_remote::source::{Entry, Source, passes, table};
use postkeep_remote::stream::endpoint;
use postkeep_remote::template::{Needs, Template, unquoted};
use postkeep_table::{
    Access, Cursor, Flags, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch, unsupported,
};
use ring::digest;

use self::server::{Answer, Question, Server};
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};
use crate::{Caller, surrogate};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "memcache",
    summary: "values in memcached, perhaps with a table behind it",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE),
    open,
    build: None,
};

static POOLS: Shared<(String, Limits, memcache::Limits), Server> = Shared::new();

/// What stands for a time limit where there is none.
const NO_LIMIT: Duration = Duration::from_hours(1);

struct Memcache {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    keys: Keys,
    settings: Settings,
    backup: Option<Arc<dyn Table>>,
    writable: bool,
    pool: Arc<Pool<Server>>,
}

/// What is sent for a key.
struct Keys {
    needs: Needs,
    format: Template,
    digest: Option<&'static digest::Algorithm>,
    domains: Domains,
    /// Keys with control characters are not sent.
    controls: bool,
}

/// The numbers of the configuration.
struct Settings {
    timeout: Duration,
    ttl: i32,
    flags: i32,
    pause: Duration,
    tries: i32,
    limits: memcache::Limits,
}

impl Settings {
    /// In the order in which the reference finds faults.
    fn read(config: &Config) -> Result<Self, ConfigError> {
        let seconds = |number: i32| Duration::from_secs(u64::try_from(number).unwrap_or_default());
        let timeout = seconds(config.int("timeout", 2, 0, 0)?);
        let ttl = config.int("ttl", 3600, 0, 0)?;
        let flags = config.int("flags", 0, 0, 0)?;
        let pause = seconds(config.int("retry_pause", 1, 1, 0)?);
        let tries = config.int("max_try", 2, 1, 0)?;
        let size = |key, default| {
            let number = config.int(key, default, 1, 0)?;
            Ok::<_, ConfigError>(usize::try_from(number).unwrap_or_default())
        };
        Ok(Self {
            timeout: Some(timeout)
                .filter(|time| !time.is_zero())
                .unwrap_or(NO_LIMIT)
                .min(NO_LIMIT),
            ttl,
            flags,
            pause,
            tries,
            limits: memcache::Limits {
                line: size("line_size_limit", 1024)?,
                data: size("data_size_limit", 10240)?,
            },
        })
    }
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let unavailable = |text: String| OpenError::Unavailable(text);
    let name = request.name;
    if request.flags.contains(Flags::NO_UNAUTH) {
        return Err(unavailable(format!(
            "{name} map is not allowed for security-sensitive data"
        )));
    }
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    let text = |key, default| {
        config
            .text(key, default, 0, 0)
            .map_err(|error| fault(&error))
    };
    let digest = text("key_digest", "")?;
    let format = text("key_format", "%s")?;
    let settings = Settings::read(config).map_err(|error| fault(&error))?;
    let server = String::from_utf8_lossy(&text("memcache", "inet:localhost:11211")?).into_owned();
    let place = endpoint(&server).map_err(unavailable)?;
    let backup = text("backup", "")?;
    let backup = (!backup.is_empty())
        .then(|| open_backup(request, &backup))
        .transpose()?;
    let mut needs = Needs::default();
    let format = needs
        .query(config.name(), &format)
        .map_err(|error| fault(&error))?;
    let keys = Keys {
        needs,
        format,
        digest: (!digest.is_empty())
            .then(|| {
                algorithm(&digest).ok_or_else(|| {
                    unavailable(format!(
                        "open {}: key digest {} is not available",
                        config.name(),
                        Printable(&digest)
                    ))
                })
            })
            .transpose()?,
        domains: configured.domains(request)?,
        controls: config.release() >= Release::V3_12,
    };
    let defaults = Limits {
        connect: settings.timeout,
        answer: settings.timeout,
        rest: Duration::ZERO,
        ..Limits::default()
    };
    let limits = defaults.read(config).map_err(|error| fault(&error))?;
    let shared = (server.clone(), limits.clone(), settings.limits);
    let pool = POOLS.get_or_make(shared, || {
        let shown = server.split_once(':').map_or("", |(_, shown)| shown);
        let host = Host {
            text: shown.to_owned(),
            place,
        };
        Pool::new(Server::new(server, settings.limits), vec![host], limits)
    });
    Ok(table(Memcache {
        name: name.clone(),
        flags: request.fixed_flags() | Flags::MULTI_WRITER,
        keys,
        settings,
        backup,
        writable: request.access == Access::ReadWrite,
        pool,
        configured,
    }))
}

/// A backup that cannot be opened fails for itself in a daemon.
fn open_backup(request: &Request<'_>, name: &[u8]) -> Result<Arc<dyn Table>, OpenError> {
    let name = TableName::parse(name).map_err(|error| OpenError::Unavailable(error.to_string()))?;
    request
        .open_inner(&name)
        .or_else(|reason| match request.context.caller {
            Caller::Command => Err(reason),
            Caller::Daemon => {
                error!("{reason}");
                Ok(surrogate(&name, reason.to_string(), request.flags))
            }
        })
}

/// A digest by OpenSSL's name of it.
fn algorithm(name: &[u8]) -> Option<&'static digest::Algorithm> {
    Some(match &name.to_ascii_lowercase()[..] {
        b"sha1" | b"sha-1" => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        b"sha256" | b"sha2-256" | b"sha-256" => &digest::SHA256,
        b"sha384" | b"sha2-384" | b"sha-384" => &digest::SHA384,
        b"sha512" | b"sha2-512" | b"sha-512" => &digest::SHA512,
        _ => return None,
    })
}

fn hexadecimal(bytes: &[u8]) -> Vec<u8> {
    let digit = |number: u8| b"0123456789abcdef"[usize::from(number)];
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

impl Keys {
    /// What is sent for a key, or why nothing is.
    async fn sent(
        &self,
        table: &TableName,
        file: &str,
        key: &[u8],
    ) -> Result<Result<Vec<u8>, &'static str>, LookupError> {
        if key.is_empty() {
            return Ok(Err("empty lookup key"));
        }
        if !passes(file, &self.domains, key).await? {
            return Ok(Err("domain mismatch"));
        }
        let mut sent = Vec::new();
        if let Some(key) = self.needs.key(table, key) {
            key.expand(&self.format, unquoted, &mut sent);
        }
        if sent.is_empty() {
            return Ok(Err("empty lookup key expansion"));
        }
        if let Some(algorithm) = self.digest {
            sent = hexadecimal(digest::digest(algorithm, &sent).as_ref());
        }
        Ok(if is_key(&sent, self.controls) {
            Ok(sent)
        } else if self.controls {
            Err("name contains space or controls")
        } else {
            Err("name contains space")
        })
    }
}

impl Memcache {
    /// The table without its type, as the reference's warnings have it.
    fn file(&self) -> &str {
        self.configured.config.name()
    }

    async fn sent(&self, key: &[u8]) -> Result<Result<Vec<u8>, &'static str>, LookupError> {
        self.keys.sent(&self.name, self.file(), key).await
    }

    /// Asks the server until `accept` takes an answer, or gives its words for a warning about it.
    async fn ask<T>(
        &self,
        question: &Question,
        accept: impl Fn(Answer) -> Result<T, String> + Send,
    ) -> Result<T, LookupError> {
        for count in 0..self.settings.tries {
            if count > 0 {
                tokio::time::sleep(self.settings.pause).await;
            }
            let trouble = match self.pool.ask(question).await {
                Ok(Answer::Failed) => self.database("I/O error"),
                Ok(answer) => match accept(answer) {
                    Ok(accepted) => return Ok(accepted),
                    Err(trouble) => trouble,
                },
                // Ended twice, or took too long.
                Err(Refusal::Unreachable(reason)) if reason.is_empty() => {
                    self.database("I/O error")
                }
                Err(refusal) => return Err(refusal.into()),
            };
            // What the first attempt comes to is nobody's concern.
            if count > 0 {
                warn!("{trouble}");
            }
        }
        Err(LookupError::Retry(String::new()))
    }

    fn database(&self, what: &str) -> String {
        format!("database {}: {what}", self.name)
    }

    fn start(line: &[u8], most: usize) -> Printable<'_> {
        Printable(&line[..line.len().min(most)])
    }

    async fn find(&self, sent: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
        let accept = |answer| match answer {
            Answer::Absent => Ok(None),
            Answer::Value(value) => Ok(Some(value)),
            Answer::Line(line) => Err(format!(
                "{}: unexpected memcache server reply: {}",
                self.file(),
                Self::start(&line, 30)
            )),
            Answer::Cut | Answer::Failed => Err(format!(
                "{}: EOF receiving memcache server reply",
                self.file()
            )),
        };
        self.ask(&Question::get(sent), accept).await
    }

    async fn store(&self, sent: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let Settings {
            flags, ttl, limits, ..
        } = self.settings;
        if value.len() > limits.data {
            warn!(
                "{}",
                self.database(&format!(
                    "data for key {} is too long (data_size_limit={}) -- not stored",
                    Printable(sent),
                    limits.data
                ))
            );
            return Ok(Outcome::Absent);
        }
        let most = if self.configured.config.release() < Release::V3_11 {
            30
        } else {
            100
        };
        let accept = |answer| match answer {
            Answer::Line(line) if line == b"STORED" => Ok(Outcome::Done),
            answer => Err(self.database(&format!(
                "update failed: {}",
                Self::start(&answer.line(), most)
            ))),
        };
        self.ask(&Question::set(sent, flags, ttl, value), accept)
            .await
    }

    async fn remove(&self, sent: &[u8]) -> Result<Outcome, LookupError> {
        let accept = |answer| match answer {
            Answer::Line(line) if line == b"DELETED" => Ok(Outcome::Done),
            Answer::Line(line) if line == b"NOT_FOUND" => Ok(Outcome::Absent),
            answer => Err(self.database(&format!(
                "delete failed: {}",
                Self::start(&answer.line(), 30)
            ))),
        };
        self.ask(&Question::delete(sent), accept).await
    }
}

impl Source for Memcache {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    async fn lookup(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, LookupError> {
        let sent = match self.sent(&key).await? {
            Ok(sent) => sent,
            Err(why) => {
                debug!("{}: skipping lookup: {why}", self.file());
                return Ok(None);
            }
        };
        let found = self.find(&sent).await;
        let Some(backup) = &self.backup else {
            return found;
        };
        if let Ok(Some(value)) = found {
            return Ok(Some(value));
        }
        let found = runtime::ask(backup, flags, &key).await?;
        if let Some(value) = &found {
            // The answer is there, whether the server takes it or not.
            let _ = self.store(&sent, value).await;
        }
        Ok(found)
    }

    async fn update(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
        value: Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if !self.writable {
            return Err(unsupported(&self.name, "update"));
        }
        let sent = match self.sent(&key).await? {
            Ok(sent) => sent,
            Err(why) => {
                let key = Printable(&key);
                warn!("{}: skipping update for name \"{key}\": {why}", self.file());
                return Ok(Outcome::Absent);
            }
        };
        let stored = self.store(&sent, &value).await;
        match &self.backup {
            Some(backup) => {
                runtime::on_thread(backup, move |backup| backup.update(flags, &key, &value)).await
            }
            None => stored,
        }
    }

    async fn delete(self: Arc<Self>, flags: Flags, key: Vec<u8>) -> Result<Outcome, LookupError> {
        if !self.writable {
            return Err(unsupported(&self.name, "delete"));
        }
        let sent = match self.sent(&key).await? {
            Ok(sent) => sent,
            Err(why) => {
                debug!("{}: skipping delete: {why}", self.file());
                return Ok(Outcome::Absent);
            }
        };
        let removed = self.remove(&sent).await;
        match &self.backup {
            Some(backup) => {
                runtime::on_thread(backup, move |backup| backup.delete(flags, &key)).await
            }
            None => removed,
        }
    }

    async fn sequence(
        self: Arc<Self>,
        flags: Flags,
        step: Step,
        mut cursor: Cursor,
    ) -> Result<(Cursor, Option<Entry>), LookupError> {
        let Some(backup) = &self.backup else {
            warn!(
                "{}",
                self.database("first/next support requires backup database")
            );
            return Ok((cursor, None));
        };
        runtime::on_thread(backup, move |backup| {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            let outcome = backup.sequence(flags, step, &mut cursor, &mut key, &mut value)?;
            Ok((cursor, (outcome == Outcome::Done).then_some((key, value))))
        })
        .await
    }

    fn watches(&self) -> Vec<Watch> {
        let mut watches = self.configured.watches();
        if let Some(backup) = &self.backup {
            watches.extend(backup.watches());
        }
        watches
    }

    fn owner(&self) -> Owner {
        // Whoever can reach the server can change it.
        Owner::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests() {
        let hash = |name: &[u8]| {
            let algorithm = algorithm(name).unwrap();
            String::from_utf8(hexadecimal(digest::digest(algorithm, b"abc").as_ref())).unwrap()
        };
        assert_eq!(
            hash(b"SHA256"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(hash(b"sha1"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert!(algorithm(b"md5").is_none());
    }
}
