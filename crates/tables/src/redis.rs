//! `redis:FILE` asks a Redis or Valkey server, the one that sentinels name, or a cluster; caches of Postfix can be stored
//! there, so that many machines share them.
//!
//! ```text
//! # main.cf: address_verify_map = proxy:redis:/etc/postfix/verify.cf
//! hosts = cache1.example, cache2.example, cache3.example
//! sentinel_master = mail
//! password = secret
//! key_format = verify:%s
//! ttl = 31d
//! ```
//!
//! ```text
//! # main.cf: virtual_alias_maps = redis:/etc/postfix/aliases.cf
//! hosts = unix:/run/redis/redis.sock
//! command = SMEMBERS alias:%s
//! ```
//!
//! The file is in main.cf syntax; `redis:NAME` has the keys in main.cf, with `NAME_` before each. Postfix itself has no such
//! type.
//!
//! | key | default | |
//! |---|---|---|
//! | `hosts` | `localhost` | `host`, `host:port`, `inet:host:port`, `[address]:port`, `unix:/socket`; servers with the same data, sentinels, or some nodes of a cluster. Port 6379, of sentinels 26379 |
//! | `sentinel_master` | none | the hosts are sentinels; ask the server that they know by this name |
//! | `cluster` | no | the hosts are nodes of a cluster |
//! | `user`, `password` | none | without a user, the one named `default` |
//! | `sentinel_user`, `sentinel_password` | none | for the sentinels |
//! | `database` | 0 | |
//! | `key_format` | `%s` | the stored key, with `%s`, `%u`, `%d`, `%1` to `%9`, `%%` |
//! | `command` | none | instead of `key_format`: a command that only reads, with these codes in its arguments |
//! | `result_format` | `%s` | of each value; they are joined with commas |
//! | `expansion_limit` | 0 | values; more are an error; 0: any number |
//! | `domain` | all | domains of keys that are asked for |
//! | `ttl` | 31d | after which the server forgets an entry that was stored; 0: never |
//! | `data_size_limit` | 1048576 | bytes of an answer, or of a value to be stored; more are an error; no larger limit |
//! | `cleanup_lease` | 1h | for how long one cleaner keeps all others away; 0: nobody is kept away |
//! | `tls_CAfile`, `tls_CApath` | the system's | who may sign the server's certificate |
//! | `tls_cert_file`, `tls_key_file` | none | our own certificate |
//! | `tls_verify_cert` | yes | `no`: anybody can be the server |
//! | `tls_server_name` | the host's | the name in the certificates of all hosts |
//! | `pool_max_connections` | 16 | connections to a server, in a cluster to each node |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout` | 5s | to connect and log in, sentinels included |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | 10s | from the question to the end of the answer |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `retry_interval` | 1s | how long a server that failed is left alone |
//! | `breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 1s | until one is let through to see |
//!
//! Any key of TLS asks for TLS, of sentinels too, except through a socket of this machine. A server of `hosts` that cannot be written to, as it is a
//! replica, is left for another one.
//!
//! Keys and values are bytes; a key is one word of a command whatever is in it. `command` can be one of `EXISTS`, `GET`,
//! `GETRANGE`, `HEXISTS`, `HGET`, `HKEYS`, `HMGET`, `HVALS`, `LINDEX`, `LRANGE`, `SISMEMBER`, `SMEMBERS`, `SRANDMEMBER`,
//! `ZRANGE`, `ZRANGEBYSCORE`, `ZREVRANGE`, `ZREVRANGEBYSCORE`, `ZSCORE`. All elements of a list are values, numbers too; the
//! answer 0 to `EXISTS`, `HEXISTS` and `SISMEMBER` is not found.
//!
//! A table can be written, and listed, when `key_format` is one `%s` and some other text, so that its entries are told from
//! whatever else is in the database, and `result_format` is `%s`. A write is an answer as soon as the server has it in memory.
//!
//! `verify(8)` and `postscreen(8)` clean up their caches: twice a day they walk through all entries and delete old ones. With a
//! shared cache one cleaner is enough. Whoever begins a walk through a table that is open for writing takes a lease first, under the
//! key `_CLEANUP_LEASE_`; as long as somebody else has it the table looks empty to him, and he is done. A walk renews the
//! lease; it is not given back, so nobody else begins within `cleanup_lease` of the end. With `ttl` the server deletes
//! old entries in any case; Postfix never keeps an entry for more than 31 days by default
//! (`address_verify_positive_expire_time`). The time of the last cleanup, `_LAST_CACHE_CLEANUP_COMPLETED_`, is an entry
//! like others, and so is known to all.
//!
//! Each entry comes once in a walk, in no order; one that vanishes, is no string, or is larger than `data_size_limit` is passed
//! over. This needs Redis 6 or later.

mod query;
mod server;
mod settings;
mod store;
mod walk;
mod wire;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::Value;
use log::warn;
use postkeep_remote::rules::Rules;
use postkeep_remote::source::{Entry, Source, table};
use postkeep_remote::template::{Answer, Excess, Key};
use postkeep_table::{
    Access, Cursor, Flags, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch,
};
use tokio::time::{Instant, timeout};

use self::query::{Query, Surroundings};
use self::server::Question;
use self::settings::Settings;
use self::store::Store;
use self::walk::{START, Walk, Walks};
use crate::indexed::duplicate;
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "redis",
    summary: "a Redis or Valkey server, with sentinels, or a cluster",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE),
    open,
    build: None,
};

/// What the lease of the cleaner is called, as a key of the table.
const LEASE: &[u8] = b"_CLEANUP_LEASE_";

/// How many keys a server is asked for at once; it may give more, or fewer.
const PIECE: &[u8] = b"500";

/// The most bytes of keys in such an answer.
const PIECE_LIMIT: usize = 4 << 20;

/// How long one step of a walk may take; keys that are not the table's are passed over meanwhile.
const STEP: Duration = Duration::from_mins(1);

const YEAR: Duration = Duration::from_hours(24 * 366);

struct Redis {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    /// Files beside the configuration.
    files: Vec<std::path::PathBuf>,
    query: Query,
    rules: Rules,
    /// For tables that can be written and listed.
    surroundings: Option<Surroundings>,
    ttl: Duration,
    size_limit: usize,
    /// The lease that a walk needs; zero for none.
    lease: Duration,
    /// Who takes it.
    owner: String,
    walks: Mutex<Walks>,
    store: Arc<Store>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    let read = || {
        let settings = Settings::read(config)?;
        let (query, rules) = Query::read(config)?;
        let plain = config.text("result_format", "%s", 1, 0)? == b"%s";
        let surroundings = query.surroundings().filter(|_| plain);
        if request.access == Access::ReadWrite && surroundings.is_none() {
            let why = "a table that is written to needs key_format = TEXT%s and result_format = %s";
            return Err(config.unusable("key_format", &why));
        }
        let ttl = config.time("ttl", Duration::from_hours(24 * 31), Duration::ZERO, YEAR)?;
        if !ttl.is_zero() && ttl < Duration::from_secs(1) {
            return Err(config.unusable("ttl", &"expecting a second or more, or 0"));
        }
        let size_limit = config.int("data_size_limit", 1 << 20, 1, 1 << 20)?;
        let day = Duration::from_hours(24);
        let lease = config.time(
            "cleanup_lease",
            Duration::from_hours(1),
            Duration::ZERO,
            day,
        )?;
        if !lease.is_zero() && lease < Duration::from_secs(1) {
            return Err(config.unusable("cleanup_lease", &"expecting a second or more, or 0"));
        }
        let size_limit = usize::try_from(size_limit).unwrap_or(1);
        Ok((settings, query, rules, surroundings, ttl, size_limit, lease))
    };
    let (settings, query, rules, surroundings, ttl, size_limit, lease) =
        read().map_err(|error| fault(&error))?;
    let rules = rules.filtered(configured.domains(request)?);
    let files = settings.files().map(Path::to_owned).collect();
    let store = Store::open(settings)
        .map_err(|error| OpenError::Unavailable(format!("{}: {error}", request.name)))?;
    Ok(table(Redis {
        name: request.name.clone(),
        flags: request.fixed_flags() | Flags::MULTI_WRITER,
        configured,
        files,
        query,
        rules,
        surroundings,
        ttl,
        size_limit,
        // Somebody who only looks keeps nobody away, and is not kept away.
        lease: match request.access {
            Access::Read => Duration::ZERO,
            Access::ReadWrite => lease,
        },
        owner: walk::owner(),
        walks: Mutex::default(),
        store,
    }))
}

fn milliseconds(time: Duration) -> String {
    time.as_millis().to_string()
}

impl Redis {
    fn question(&self, words: &[&[u8]], limit: usize) -> Question {
        let what = format!("table {}: {}", self.name, Printable(words[0]));
        Question::new(words, limit, what)
    }

    /// Asks for one stored key, which is the second word.
    async fn ask(&self, words: &[&[u8]]) -> Result<Value, LookupError> {
        let key = words.get(1).copied().unwrap_or_default();
        let question = self.question(words, self.size_limit);
        self.store.ask(key, question).await
    }

    /// An answer that a server does not give to this question.
    fn strange<T>(&self, command: &str) -> Result<T, LookupError> {
        let name = &self.name;
        warn!("table {name}: {command}: the answer has an unexpected type");
        Err(LookupError::Retry(String::new()))
    }

    /// A key as it is stored; `None` for one that the table cannot have.
    async fn stored(&self, key: &[u8]) -> Result<Option<Vec<u8>>, LookupError> {
        let Some(key) = self.rules.key(&self.name, key).await? else {
            return Ok(None);
        };
        let around = self.surroundings.as_ref();
        Ok(around.map(|around| around.around(key.whole())))
    }

    fn result(&self, key: &Key<'_>, value: &Value) -> Result<Option<Vec<u8>>, LookupError> {
        let mut answer = self.rules.answer(&self.name, key);
        let added = match value {
            Value::Int(0) if self.query.is_asking() => Ok(true),
            Value::Array(values) => values
                .iter()
                .try_fold(true, |all, value| Ok(all && add(&mut answer, value)?)),
            value => add(&mut answer, value),
        };
        match added {
            Ok(true) => Ok(answer.finish()),
            Ok(false) => self.strange("lookup"),
            Err(excess) => {
                warn!(
                    "table {}: {excess} for key: '{}'",
                    self.name,
                    Printable(key.whole())
                );
                Err(LookupError::Retry(String::new()))
            }
        }
    }

    fn walks(&self) -> MutexGuard<'_, Walks> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has, or takes, or renews the lease; `false` when somebody else has it.
    ///
    /// Between looking and renewing it may come to its end and go to somebody else, who then has it for longer: no harm.
    async fn take_lease(&self, around: &Surroundings) -> Result<bool, LookupError> {
        let key = around.around(LEASE);
        let (owner, time) = (self.owner.as_bytes(), milliseconds(self.lease));
        let time = time.as_bytes();
        match self.ask(&[b"SET", &key, owner, b"NX", b"PX", time]).await? {
            Value::Okay => return Ok(true),
            Value::Nil => {}
            _ => return self.strange("SET"),
        }
        match self.ask(&[b"GET", &key]).await? {
            Value::BulkString(holder) if holder == owner => {}
            // Its time was over in between: the next walk takes it.
            Value::BulkString(_) | Value::Nil => return Ok(false),
            _ => return self.strange("GET"),
        }
        match self.ask(&[b"PEXPIRE", &key, time]).await? {
            Value::Int(1) => Ok(true),
            Value::Int(_) => Ok(false),
            _ => self.strange("PEXPIRE"),
        }
    }

    /// The next piece of keys; `false` when there are no more.
    async fn next_piece(
        &self,
        around: &Surroundings,
        walk: &mut Walk,
    ) -> Result<bool, LookupError> {
        let Some(node) = walk.nodes.last() else {
            return Ok(false);
        };
        let mut pattern = Vec::new();
        wire::literal(&around.before, &mut pattern);
        pattern.push(b'*');
        wire::literal(&around.after, &mut pattern);
        let words: [&[u8]; 8] = [
            b"SCAN",
            &walk.position,
            b"MATCH",
            &pattern,
            b"COUNT",
            PIECE,
            b"TYPE",
            b"string",
        ];
        let question = self.question(&words, PIECE_LIMIT);
        let answer = self.store.ask_node(node.as_ref(), question).await?;
        let Value::Array(parts) = answer else {
            return self.strange("SCAN");
        };
        let Ok([Value::BulkString(position), Value::Array(keys)]) = <[Value; 2]>::try_from(parts)
        else {
            return self.strange("SCAN");
        };
        for key in keys {
            let Value::BulkString(key) = key else {
                return self.strange("SCAN");
            };
            if walk.is_new(&key) {
                walk.pending.push_back(key);
            }
        }
        if position == START {
            walk.nodes.pop();
        }
        walk.position = position;
        Ok(true)
    }

    /// The next entry of a walk.
    async fn next(
        &self,
        around: &Surroundings,
        walk: &mut Walk,
    ) -> Result<Option<Entry>, LookupError> {
        if let Some(since) = walk.leased
            && since.elapsed() > self.lease / 2
        {
            if !self.take_lease(around).await? {
                return Ok(None);
            }
            walk.leased = Some(Instant::now());
        }
        loop {
            while let Some(stored) = walk.pending.pop_front() {
                let Some(key) = around.within(&stored).filter(|key| *key != LEASE) else {
                    continue;
                };
                // One byte more than the table takes tells a value that is too large.
                let last = self.size_limit.to_string();
                let words: [&[u8]; 4] = [b"GETRANGE", &stored, b"0", last.as_bytes()];
                let question = self.question(&words, self.size_limit + 1);
                match self.store.ask(&stored, question).await? {
                    // It has vanished.
                    Value::BulkString(value) if value.is_empty() => {}
                    Value::BulkString(value) if value.len() > self.size_limit => {
                        warn!(
                            "table {}: the value of {} is larger than data_size_limit -- passed over",
                            self.name,
                            Printable(key)
                        );
                    }
                    Value::BulkString(value) => return Ok(Some((key.to_vec(), value))),
                    _ => return self.strange("GETRANGE"),
                }
            }
            if !self.next_piece(around, walk).await? {
                return Ok(None);
            }
        }
    }

    async fn begin(&self, around: &Surroundings) -> Result<Option<Walk>, LookupError> {
        let leased = !self.lease.is_zero();
        if leased && !self.take_lease(around).await? {
            return Ok(None);
        }
        Ok(Some(Walk::new(self.store.nodes().await?, leased)))
    }
}

/// Adds one value; `false` for one that is no value.
fn add(answer: &mut Answer<'_>, value: &Value) -> Result<bool, Excess> {
    match value {
        Value::Nil => Ok(true),
        Value::BulkString(text) => answer.add(Some(text)).map(|()| true),
        Value::Int(number) => answer
            .add(Some(number.to_string().as_bytes()))
            .map(|()| true),
        _ => Ok(false),
    }
}

impl Source for Redis {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    async fn lookup(
        self: Arc<Self>,
        _: Flags,
        key: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, LookupError> {
        let Some(key) = self.rules.key(&self.name, &key).await? else {
            return Ok(None);
        };
        let words = self.query.words(&key);
        let words: Vec<_> = words.iter().map(|word| &word[..]).collect();
        let value = self.ask(&words).await?;
        self.result(&key, &value)
    }

    async fn update(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
        value: Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if value.len() > self.size_limit {
            warn!(
                "table {}: data for key {} is too long (data_size_limit={}) -- not stored",
                self.name,
                Printable(&key),
                self.size_limit
            );
            return Err(LookupError::Retry(String::new()));
        }
        let Some(stored) = self.stored(&key).await? else {
            return Ok(Outcome::Absent);
        };
        let time = milliseconds(self.ttl);
        let mut words: Vec<&[u8]> = vec![b"SET", &stored, &value];
        if !self.ttl.is_zero() {
            words.extend([b"PX", time.as_bytes()]);
        }
        if !flags.contains(Flags::DUP_REPLACE) {
            words.push(b"NX");
        }
        match self.ask(&words).await? {
            Value::Okay => Ok(Outcome::Done),
            Value::Nil => match duplicate(&self.name, flags, &key) {
                None => Ok(Outcome::Absent),
                Some(text) => Err(LookupError::Config(text)),
            },
            _ => self.strange("SET"),
        }
    }

    async fn delete(self: Arc<Self>, _: Flags, key: Vec<u8>) -> Result<Outcome, LookupError> {
        let Some(stored) = self.stored(&key).await? else {
            return Ok(Outcome::Absent);
        };
        match self.ask(&[b"DEL", &stored]).await? {
            Value::Int(0) => Ok(Outcome::Absent),
            Value::Int(_) => Ok(Outcome::Done),
            _ => self.strange("DEL"),
        }
    }

    async fn sequence(
        self: Arc<Self>,
        _: Flags,
        step: Step,
        mut cursor: Cursor,
    ) -> Result<(Cursor, Option<Entry>), LookupError> {
        let Some(around) = &self.surroundings else {
            return Err(LookupError::Config(format!(
                "table {}: first/next support requires key_format = TEXT%s and result_format = %s",
                self.name
            )));
        };
        let (number, walk) = match step {
            Step::First => {
                // Of the walk that it leaves nothing is needed any more.
                self.walks().take(cursor.ordinal);
                cursor = Cursor::default();
                (walk::number(), self.begin(around).await?)
            }
            Step::Next if cursor.ordinal == 0 => return Ok((cursor, None)),
            Step::Next => {
                let number = cursor.ordinal;
                let walk = self.walks().take(number).ok_or_else(|| {
                    LookupError::Retry(format!("table {}: the walk was given up", self.name))
                })?;
                (number, Some(walk))
            }
        };
        let Some(mut walk) = walk else {
            return Ok((cursor, None));
        };
        let stepped = timeout(STEP, self.next(around, &mut walk)).await;
        let Ok(entry) = stepped else {
            warn!("table {}: a step of the walk took too long", self.name);
            return Err(LookupError::Retry(String::new()));
        };
        match entry {
            Ok(Some(entry)) => {
                cursor.ordinal = number;
                cursor.key = Some(entry.0.clone());
                self.walks().put(number, walk);
                Ok((cursor, Some(entry)))
            }
            Ok(None) => Ok((Cursor::default(), None)),
            Err(error) => {
                self.walks().put(number, walk);
                Err(error)
            }
        }
    }

    fn watches(&self) -> Vec<Watch> {
        let mut watches = self.configured.watches();
        watches.extend(self.files.iter().map(|path| Watch {
            path: path.clone(),
            modification_time: true,
        }));
        watches
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}
