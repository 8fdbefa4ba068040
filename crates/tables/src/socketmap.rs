//! `socketmap:inet:HOST:PORT:MAP` and `socketmap:unix:PATH:MAP` ask a server in the Sendmail socketmap protocol.
//! `socketmap:tls:HOST:PORT:MAP`, which is our own, does so over TLS, as postkeep-socketmap(8) has it.
//!
//! The map's name is what follows the last colon. Keys are sent as they are, and only whole keys are asked for. The
//! server answers `OK value`, `NOTFOUND`, or with a failure: `TEMP`, `TIMEOUT` (temporary) or `PERM`, and a reason,
//! which is logged.
//!
//! All maps of a server share its connections. When a connection ends before the answer is there, the key is asked for
//! once more on a new one. Parameters in main.cf; those without a release are our own:
//!
//! | parameter | default | |
//! |---|---|---|
//! | `socketmap_max_reply_size` | 100000 | bytes of a reply; more is an error (3.10) |
//! | `socketmap_max_query_size` | 10000 | bytes of a key; a longer one is not found (3.12, no limit before) |
//! | `socketmap_pool_max_connections` | 16 | connections to one server |
//! | `socketmap_pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `socketmap_connect_timeout` | 10s | to connect |
//! | `socketmap_wait_timeout` | 10s | to wait for a connection |
//! | `socketmap_answer_timeout` | 100s | from the question to the end of the answer |
//! | `socketmap_idle_interval` | 10s | after which an unused connection is closed |
//! | `socketmap_pool_lifetime` | 100s | after which a connection is not used again |
//! | `socketmap_breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `socketmap_breaker_rest` | 10s | until one is let through to see |
//! | `socketmap_tls_CAfile`, `socketmap_tls_CApath` | those of the system | whom to trust about servers |
//! | `socketmap_tls_cert_file`, `socketmap_tls_key_file` | none | our own certificate, issuers after it, and its key |
//! | `socketmap_tls_verify_cert` | yes | whether the server's certificate is checked, with its name |
//!
//! References: `socketmap_table(5)`; Postfix `src/util/dict_sockmap.c`.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use postkeep_conf::Release;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Backend, Fault, Pool, Refusal, Shared};
use postkeep_remote::socketmap::{Failure, Reply, failure_warning, netstring, request};
use postkeep_remote::source::{Source, table};
use postkeep_remote::stream::{Dialogue, endpoint};
use postkeep_remote::tls::{ClientConfig, Keys, ServerName, Stamps, Tls};
use postkeep_sys::error_text;
use postkeep_table::{Flags, LookupError, OpenError, Owner, Printable, Table, TableName, Watch};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "socketmap",
    summary: "a server that speaks the socketmap protocol",
    capabilities: Capabilities::READ_ONLY.union(Capabilities::PATTERN),
    open,
    build: None,
};

/// What makes connections equal. With new certificates come new connections.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PoolKey {
    server: String,
    tls: Option<Tls>,
    stamps: Stamps,
    limits: Limits,
}

static POOLS: Shared<PoolKey, Server> = Shared::new();

struct Socketmap {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    /// The name that is sent.
    map: Vec<u8>,
    max_reply: usize,
    /// Zero for no limit.
    max_query: usize,
    /// `OK` without a blank is an empty value, and not no value.
    bare_ok_is_found: bool,
    /// The files of TLS.
    stamps: Stamps,
    pool: Arc<Pool<Server>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let unavailable = |text: String| OpenError::Unavailable(text);
    let name = request.name;
    if request.flags.contains(Flags::NO_UNAUTH) {
        return Err(unavailable(format!(
            "{name} map is not allowed for security-sensitive data"
        )));
    }
    let Some(colon) = memchr::memrchr(b':', name.name()) else {
        return Err(unavailable(
            "socketmap requires server:socketmap argument".to_owned(),
        ));
    };
    let (server, map) = (&name.name()[..colon], &name.name()[colon + 1..]);
    let server = std::str::from_utf8(server)
        .map_err(|_| unavailable(format!("{name}: the server's name is no text")))?;
    let secure = server.strip_prefix("tls:");
    let place = match secure {
        Some(place) => endpoint(&format!("inet:{place}")),
        None => endpoint(server),
    };
    let host = Host {
        place: place.map_err(unavailable)?,
        text: server
            .split_once(':')
            .map_or(server, |(_, endpoint)| endpoint)
            .to_owned(),
    };
    let configured = TableConfig::of_type(request);
    let config = &configured.config;
    let release = config.release();
    let default_query = if release >= Release::V3_12 { 10_000 } else { 0 };
    let size = |key, default, min| {
        let size = config.int(key, default, min, 0)?;
        Ok(usize::try_from(size).unwrap_or(0))
    };
    let read = || {
        let defaults = Limits {
            answer: Duration::from_secs(100),
            idle: Duration::from_secs(10),
            lifetime: Duration::from_secs(100),
            rest: Duration::ZERO,
            ..Limits::default()
        };
        Ok((
            size("max_reply_size", 100_000, 1)?,
            size("max_query_size", default_query, 0)?,
            defaults.read(config)?,
            match secure {
                Some(_) => Some(Keys::read(config)?.tls()),
                None => None,
            },
        ))
    };
    let (max_reply, max_query, limits, tls) = read().map_err(|error| fault(&error))?;
    let client = match (&tls, &host.place) {
        (Some(tls), Place::Inet(server, _)) => {
            let at_fault =
                |reason: &dyn std::fmt::Display| unavailable(format!("{name}: {reason}"));
            let server = ServerName::try_from(server.clone()).map_err(|error| at_fault(&error))?;
            let config = tls.client().map_err(|error| at_fault(&error))?;
            Some((config, server))
        }
        _ => None,
    };
    let stamps = Stamps::of(tls.as_ref());
    let key = PoolKey {
        server: server.to_owned(),
        tls,
        stamps: stamps.clone(),
        limits: limits.clone(),
    };
    let pool = POOLS.get_or_make(key, || {
        let backend = Server {
            name: server.to_owned(),
            tls: client,
        };
        Pool::new(backend, vec![host], limits)
    });
    Ok(table(Socketmap {
        name: name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        configured,
        map: map.to_vec(),
        max_reply,
        max_query,
        bare_ok_is_found: release >= Release::V3_12,
        stamps,
        pool,
    }))
}

/// How much of a key that is too long is shown.
const SHOWN: usize = 100;

impl Source for Socketmap {
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
        let name = &self.name;
        if self.max_query > 0 && key.len() > self.max_query {
            warn!(
                "table {name} query too large: '{}', returning 'not found'",
                Printable(&key[..SHOWN.min(key.len())])
            );
            return Ok(None);
        }
        let mut question = Question {
            table: name.clone(),
            bytes: Vec::with_capacity(self.map.len() + key.len() + 24),
            limit: self.max_reply,
        };
        request(&self.map, &key, &mut question.bytes);
        let payload = match self.pool.ask(&question).await {
            Ok(payload) => payload,
            Err(refusal) => {
                if let Refusal::Unreachable(reason) = &refusal
                    && !reason.is_empty()
                {
                    // After a warning about the server, this is the one about the table.
                    warn!("{}", question.error(reason));
                }
                return Err(refusal.into());
            }
        };
        match Reply::parse(&payload) {
            Reply::Found(Some(value)) => Ok(Some(value.to_vec())),
            Reply::Found(None) => Ok(self.bare_ok_is_found.then(Vec::new)),
            Reply::Absent => Ok(None),
            Reply::Failed(failure, reason) => {
                warn!("{}", failure_warning(name, failure, reason));
                Err(match failure {
                    Failure::Permanent => LookupError::Config(String::new()),
                    Failure::Temporary | Failure::Timeout | Failure::Unknown => {
                        LookupError::Retry(String::new())
                    }
                })
            }
        }
    }

    fn watches(&self) -> Vec<Watch> {
        let mut watches = self.configured.watches();
        watches.extend(self.stamps.files().map(|path| Watch {
            path: path.to_owned(),
            modification_time: true,
        }));
        watches
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}

/// A server.
struct Server {
    /// As configured: `TRANSPORT:ENDPOINT`.
    name: String,
    /// How to speak TLS to it, and who it must be.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

struct Question {
    /// For warnings.
    table: TableName,
    bytes: Vec<u8>,
    /// Of the reply.
    limit: usize,
}

impl Question {
    fn error(&self, why: &dyn std::fmt::Display) -> String {
        format!("table {} lookup error: {why}", self.table)
    }
}

impl Backend for Server {
    type Connection = Dialogue;
    type Request = Question;
    type Answer = Vec<u8>;

    async fn connect(&self, host: &Host) -> Result<Dialogue, String> {
        let mut dialogue = Dialogue::connect(host).await?;
        if let Some((config, name)) = &self.tls {
            let secured = dialogue.stream.secured(config, name.clone()).await;
            dialogue.stream = secured.map_err(|error| format!("TLS: {}", error_text(&error)))?;
        }
        Ok(dialogue)
    }

    async fn ask(
        &self,
        connection: &mut Dialogue,
        _: &Host,
        question: &Question,
    ) -> Result<Vec<u8>, Fault> {
        let gone = || Fault::Stale(question.error(&"unexpected disconnect"));
        let Dialogue {
            stream,
            input,
            spoiled,
        } = connection;
        stream
            .write_all(&question.bytes)
            .await
            .map_err(|_| gone())?;
        input.clear();
        loop {
            match netstring(input, question.limit) {
                Ok(Some(found)) => {
                    *spoiled = found.consumed < input.len();
                    return Ok(found.payload.to_vec());
                }
                Ok(None) => {}
                Err(error) => {
                    warn!("{}", question.error(&error));
                    return Err(Fault::Broken(LookupError::Retry(String::new())));
                }
            }
            match stream.read_buf(input).await {
                Ok(0) | Err(_) => return Err(gone()),
                Ok(_) => {}
            }
        }
    }

    fn is_usable(&self, connection: &mut Dialogue) -> bool {
        connection.is_usable()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        format!("connect to {}: {reason}", host.text)
    }

    fn timeout_warning(&self, _: &Host, question: &Question) -> String {
        question.error(&"time limit exceeded")
    }

    fn label(&self) -> String {
        format!("socketmap:{}", self.name)
    }
}
