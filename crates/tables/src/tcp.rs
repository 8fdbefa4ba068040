//! `tcp:HOST:PORT` asks a server that answers with a line, a status of three digits and a text.
//!
//! Keys and values are encoded: what is no plain letter is `%XX`. Only whole keys are asked for. `2xx value` is found,
//! `5xx` is not there, `4xx` is a temporary error; a line may have 4096 bytes. When a connection ends before the answer
//! is there, the key is asked for once more on a new one (the reference tries ten times, a second apart, while nobody
//! else is served).
//!
//! All tables of a server share its connections. Our own parameters in main.cf:
//!
//! | parameter | default | |
//! |---|---|---|
//! | `tcp_pool_max_connections` | 16 | connections to one server |
//! | `tcp_pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `tcp_connect_timeout` | 10s | to connect |
//! | `tcp_wait_timeout` | 10s | to wait for a connection |
//! | `tcp_answer_timeout` | 100s | from the question to the end of the answer |
//! | `tcp_idle_interval` | 60s | after which an unused connection is closed |
//! | `tcp_pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `tcp_breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `tcp_breaker_rest` | 10s | until one is let through to see |
//!
//! References: `tcp_table(5)`; Postfix `src/util/dict_tcp.c`.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Backend, Fault, Pool, Shared};
use postkeep_remote::source::{Source, table};
use postkeep_remote::stream::{Dialogue, host_port};
use postkeep_remote::tcp_table::{Reply, TooLong, line, request};
use postkeep_sys::error_text;
use postkeep_table::{Flags, LookupError, OpenError, Owner, Table, TableName, Watch};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "tcp",
    summary: "a server that answers with a status and a text",
    capabilities: Capabilities::READ_ONLY.union(Capabilities::PATTERN),
    open,
    build: None,
};

static POOLS: Shared<(String, Limits), Server> = Shared::new();

struct Tcp {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    pool: Arc<Pool<Server>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let unavailable = |text: String| OpenError::Unavailable(text);
    let name = request.name;
    if request.flags.contains(Flags::NO_UNAUTH) {
        return Err(unavailable(format!(
            "{name} map is not allowed for security sensitive data"
        )));
    }
    let server = std::str::from_utf8(name.name())
        .map_err(|_| unavailable(format!("{name}: the server's name is no text")))?;
    let (address, port) = host_port(server, Some("localhost"))
        .map_err(|reason| unavailable(format!("{server}: {reason}")))?;
    let host = Host {
        text: server.to_owned(),
        place: Place::Inet(address, port),
    };
    let defaults = Limits {
        answer: Duration::from_secs(100),
        rest: Duration::ZERO,
        ..Limits::default()
    };
    let configured = TableConfig::of_type(request);
    let config = &configured.config;
    let limits = defaults.read(config).map_err(|error| fault(&error))?;
    let pool = POOLS.get_or_make((server.to_owned(), limits.clone()), || {
        let backend = Server(server.to_owned());
        Pool::new(backend, vec![host], limits)
    });
    Ok(table(Tcp {
        name: name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        configured,
        pool,
    }))
}

impl Source for Tcp {
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
        let mut question = Vec::with_capacity(key.len() + 8);
        request(&key, &mut question);
        self.pool.ask(&question).await.map_err(LookupError::from)
    }

    fn watches(&self) -> Vec<Watch> {
        self.configured.watches()
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}

/// A server, named as configured: `HOST:PORT`.
struct Server(String);

impl Server {
    fn warning(&self, why: &dyn std::fmt::Display) -> String {
        format!("read TCP map reply from {}: {why}", self.0)
    }

    /// A reply that is no answer.
    fn refused(&self, why: &str, line: &[u8]) -> Fault {
        warn!("{}", self.warning(&format_args!("{why}: {}", shown(line))));
        Fault::Broken(LookupError::Retry(String::new()))
    }
}

/// Text as it is, `_` for all that cannot be printed.
fn shown(line: &[u8]) -> String {
    let mut text = String::new();
    for chunk in line.utf8_chunks() {
        text.extend(
            chunk
                .valid()
                .chars()
                .map(|letter| if letter.is_control() { '_' } else { letter }),
        );
        text.extend(chunk.invalid().iter().map(|_| '_'));
    }
    text
}

impl Backend for Server {
    type Connection = Dialogue;
    type Request = Vec<u8>;
    /// What was found, if anything.
    type Answer = Option<Vec<u8>>;

    async fn connect(&self, host: &Host) -> Result<Dialogue, String> {
        Dialogue::connect(host).await
    }

    async fn ask(
        &self,
        connection: &mut Dialogue,
        _: &Host,
        question: &Vec<u8>,
    ) -> Result<Option<Vec<u8>>, Fault> {
        // Told each time, as in the reference.
        let again = |why: &dyn std::fmt::Display| {
            warn!("{}", self.warning(why));
            Fault::Stale(String::new())
        };
        let ended = |why: &str| again(&format_args!("unexpected EOF ({why})"));
        let Dialogue {
            stream,
            input,
            spoiled,
        } = connection;
        stream
            .write_all(question)
            .await
            .map_err(|error| ended(&error_text(&error)))?;
        input.clear();
        let reply = loop {
            match line(input) {
                Ok(Some(line)) => {
                    *spoiled = line.len() + 1 < input.len();
                    break Reply::parse(line);
                }
                Ok(None) => {}
                Err(error) => return Err(again(&error)),
            }
            match stream.read_buf(input).await {
                Ok(0) if input.is_empty() => return Err(ended("Success")),
                // The reference has these words for a line that breaks off, too.
                Ok(0) => return Err(again(&TooLong)),
                Err(error) => return Err(ended(&error_text(&error))),
                Ok(_) => {}
            }
        };
        match reply {
            Reply::Found(value) => Ok(Some(value)),
            Reply::Absent => Ok(None),
            Reply::Temporary => Err(Fault::Broken(LookupError::Retry(String::new()))),
            Reply::BadStatus(line) => Err(self.refused("bad status code", line)),
            Reply::Malformed(line) => Err(self.refused("malformed reply", line)),
        }
    }

    fn is_usable(&self, connection: &mut Dialogue) -> bool {
        connection.is_usable()
    }

    fn connect_warning(&self, _: &Host, reason: &str) -> String {
        format!("connect to TCP map {}: {reason}", self.0)
    }

    fn timeout_warning(&self, _: &Host, _: &Vec<u8>) -> String {
        self.warning(&"unexpected EOF (Connection timed out)")
    }

    fn label(&self) -> String {
        format!("tcp:{}", self.0)
    }
}
