//! `mysql:FILE` asks a MySQL or MariaDB server (`mysql_table(5)`).
//!
//! FILE is in main.cf form; `mysql:NAME` has the keys in main.cf, with `NAME_` before each. The keys of the reference:
//!
//! | key | default | |
//! |---|---|---|
//! | `hosts` | `localhost` | `unix:/socket`, `host`, `host:port`, `inet:host:port`; `[address]:port` is ours |
//! | `user`, `password` | empty | |
//! | `dbname` | | must be set |
//! | `charset` | `utf8mb4` | of the connection |
//! | `query` | | the statement; or `table`, `select_field`, `where_field`, `additional_conditions` |
//! | `result_format` | `%s` | |
//! | `domain` | | domains of keys that are asked for |
//! | `expansion_limit` | 0 | the most values; 0 for any number |
//! | `option_file`, `option_group` | none, `client` | options as client programs have them |
//! | `require_result_set` | yes | a statement without a result is an error |
//! | `tls_CAfile`, `tls_CApath` | none | whom to trust |
//! | `tls_cert_file`, `tls_key_file` | none | our own certificate |
//! | `tls_verify_cert` | not set | `yes`: the certificate must be for the host's name |
//! | `tls_ciphers` | none | asks for TLS, otherwise not used |
//! | `retry_interval` | 1s | how long a server that failed is left alone |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//!
//! All columns of all rows are values, in their order; NULL is none. In `query`, `%s` is the key, `%u` and `%d` its parts
//! before and after the last `@`, `%1` to `%9` the labels of its domain from the right, `%%` a percent sign. They must stand
//! within quotes: what they stand for is quoted so that it stays within them. `%` and `_` of a key are patterns to LIKE.
//!
//! A stored procedure may be called; of its results one may have columns.
//!
//! Tables with equal servers, users, databases and limits share connections. Our own keys:
//!
//! | key | default | |
//! |---|---|---|
//! | `pool_max_connections` | 16 | connections to all servers of the table together |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout` | 10s | to connect and log in |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | 30s | from the statement to the end of its results |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 1s | until one is let through to see |
//! | `tls_required` | yes | `no`: a server without TLS will do, although a `tls_` key is set |
//!
//! Differences from the reference: a server without TLS is refused when TLS is asked for; all waiting is bounded; a
//! connection that the server has closed meanwhile is noticed, and the lookup is repeated on a new one; a server rests for
//! one second after a failure and not for sixty; a statement that fails makes its lookup fail and not the server rest; a
//! key that is not valid in the connection's character set is not found; a password in an option file counts; a result
//! may have 1 MB.
//!
//! References: `mysql_table(5)`; Postfix `src/global/dict_mysql.c`.

mod connection;
mod option_file;
mod quote;
mod settings;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use postkeep_remote::config::statement;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::pool::{Backend, Fault, Pool, Shared};
use postkeep_remote::rules::Rules;
use postkeep_remote::source::{Source, table};
use postkeep_remote::stream::Stream;
use postkeep_remote::template::{Excess, Piece};
use postkeep_remote::tls::Tls;
use postkeep_table::{Flags, LookupError, OpenError, Owner, Printable, Table, TableName, Watch};
use rustls::ClientConfig;
use tokio::net::lookup_host;

use crate::mysql::connection::{Connection, Found, Login, Stage, Trouble};
use crate::mysql::option_file::Options;
use crate::mysql::quote::Charset;
use crate::mysql::settings::Settings;
use crate::mysql::wire::ServerError;
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "mysql",
    summary: "a MySQL or MariaDB server",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

static POOLS: Shared<Settings, Servers> = Shared::new();

struct Mysql {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    /// Files beside the configuration whose change makes the table stale.
    files: Vec<PathBuf>,
    rules: Rules,
    charset: Charset,
    /// The statement has literals in double quotes.
    double_quotes: bool,
    require_result_set: bool,
    pool: Arc<Pool<Servers>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    let wrong = |error| fault(&error);
    let bytes = |key| config.optional(key).map_err(wrong);
    let options = match bytes("option_file")? {
        None => Options::default(),
        Some(file) => {
            let group = config.text("option_group", "client", 0, 0).map_err(wrong)?;
            let file = String::from_utf8_lossy(&file).into_owned();
            Options::read(Path::new(&file), &String::from_utf8_lossy(&group))
        }
    };
    // Faults are found in the reference's order.
    config.text("dbname", "", 1, 0).map_err(wrong)?;
    config.text("result_format", "%s", 1, 0).map_err(wrong)?;
    let mut settings = Settings::read(config, &options).map_err(wrong)?;
    let require_result_set = config.boolean("require_result_set", true).map_err(wrong)?;
    let rules = Rules::read(config, |config| statement(config, false)).map_err(wrong)?;
    let rules = rules.filtered(configured.domains(request)?);
    settings.read_hosts(config, &options).map_err(wrong)?;
    let tls = settings.tls.as_ref().map(Tls::client).transpose();
    let tls = tls.map_err(|error| OpenError::Unavailable(format!("{}: {error}", request.name)))?;
    let mut files = options.files;
    files.extend(settings.stamps.files().map(Path::to_owned));
    let has_double = |piece: &Piece| matches!(piece, Piece::Text(text) if text.contains(&b'"'));
    let double_quotes = rules.query().pieces().iter().any(has_double);
    let charset = Charset::of(&settings.charset);
    let pool = POOLS.get_or_make(settings.clone(), || {
        let (hosts, limits) = (settings.hosts.clone(), settings.limits.clone());
        Pool::new(Servers { settings, tls }, hosts, limits)
    });
    Ok(table(Mysql {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        configured,
        files,
        rules,
        charset,
        double_quotes,
        require_result_set,
        pool,
    }))
}

impl Source for Mysql {
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
        let passed = self.rules.key(&self.name, &key).await.inspect_err(|_| {
            let key = Printable(&key);
            warn!("{} 'domain' pattern match failed for '{key}'", self.name);
        });
        let Some(key) = passed? else {
            return Ok(None);
        };
        if !self.charset.accepts(key.whole()) {
            return Ok(None);
        }
        let doubled_will_do = !(self.double_quotes && key.whole().contains(&b'"'));
        let question = Question {
            table: self.name.to_string(),
            with_backslashes: self.rules.expand(&key, quote::with_backslashes),
            doubled: doubled_will_do.then(|| self.rules.expand(&key, quote::doubled)),
            key: Printable(key.whole()).to_string(),
            require_result_set: self.require_result_set,
        };
        let found = self.pool.ask(&question).await?;
        let mut answer = self.rules.answer(&self.name, &key);
        let mut added = found
            .values
            .iter()
            .try_for_each(|value| answer.add(value.as_deref()));
        if found.cut {
            added = added.and(Err(Excess::Size));
        }
        if let Err(excess) = added {
            warn!(
                "dict_mysql_lookup: {}: {excess} for key: '{}'",
                Printable(self.name.name()),
                Printable(key.whole())
            );
            return Err(LookupError::Retry(String::new()));
        }
        Ok(answer.finish())
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

/// A statement, quoted in the two ways that a connection may want it, and whose it is.
struct Question {
    /// `mysql:NAME`, for warnings.
    table: String,
    with_backslashes: Vec<u8>,
    /// `None` when it cannot be quoted so.
    doubled: Option<Vec<u8>>,
    /// For warnings.
    key: String,
    require_result_set: bool,
}

impl Question {
    fn failed(&self, why: &dyn std::fmt::Display) -> String {
        format!("{}: query failed: {why}", self.table)
    }
}

/// The servers of tables with equal settings.
struct Servers {
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
}

impl Servers {
    /// Opens a stream; also the name that a certificate is to have.
    async fn stream(&self, host: &Host) -> Result<(Stream, String), String> {
        let number = |error: &io::Error| error.raw_os_error().unwrap_or(0);
        let (name, port) = match &host.place {
            Place::Inet(name, port) if !name.is_empty() && name != "localhost" => (name, port),
            place => {
                let socket = match place {
                    Place::Unix(path) => path,
                    _ => &self.settings.socket,
                };
                let local = Host {
                    text: host.text.clone(),
                    place: Place::Unix(socket.clone()),
                };
                let stream = Stream::connect(&local).await.map_err(|error| {
                    format!(
                        "Can't connect to local server through socket '{}' ({})",
                        socket.display(),
                        number(&error)
                    )
                })?;
                return Ok((stream, "localhost".to_owned()));
            }
        };
        let shown = Printable(name.as_bytes());
        let unknown = || format!("Unknown server host '{shown}' (-2)");
        let number_of_port = port.parse().unwrap_or(0);
        let addresses = lookup_host((&name[..], number_of_port)).await;
        let mut last = unknown();
        for address in addresses.map_err(|_| unknown())? {
            let place = Place::Inet(address.ip().to_string(), port.clone());
            let text = host.text.clone();
            match Stream::connect(&Host { text, place }).await {
                Ok(stream) => return Ok((stream, name.clone())),
                Err(error) => {
                    last = format!("Can't connect to server on '{shown}' ({})", number(&error));
                }
            }
        }
        Err(last)
    }

    /// What a failed statement means for its server.
    fn judge(question: &Question, error: &ServerError, stage: Stage) -> Fault {
        let call = match stage {
            Stage::Statement => "",
            Stage::Rows => " (mysql_store_result)",
            Stage::Next => " (mysql_next_result)",
        };
        let why = Printable(&error.message);
        let warning = format!("{}: query failed{call}: {why}", question.table);
        match (error.code, &error.state[..]) {
            // Shut down, killed, idle for too long: another connection may do.
            (1053 | 1927 | 4031, _) => Fault::Stale(warning),
            // No disk, no room, not a member of its cluster, read-only: another server may do.
            (1021 | 1040 | 1047 | 1290 | 1836, _) | (_, [b'0', b'8', ..] | b"HY001") => {
                Fault::Host(warning)
            }
            // The statement is at fault, or the key is, and would be with every server.
            _ => {
                warn!("{warning}");
                Fault::Answer(LookupError::Retry(String::new()))
            }
        }
    }
}

impl Backend for Servers {
    type Connection = Connection;
    type Request = Question;
    type Answer = Found;

    async fn connect(&self, host: &Host) -> Result<Connection, String> {
        let (stream, name) = self.stream(host).await?;
        let settings = &self.settings;
        let login = Login {
            user: &settings.user,
            password: &settings.password,
            database: &settings.database,
            tls: self.tls.as_ref().map(|config| (config, &name[..])),
            tls_required: settings.tls_required,
        };
        let opened = Connection::open(stream, &login).await;
        let mut connection = opened.map_err(|trouble| match trouble {
            Trouble::Lost(error) => format!(
                "Lost connection to server at 'handshake: reading initial communication packet', system error: {}",
                error.raw_os_error().unwrap_or(0)
            ),
            other => other.to_string(),
        })?;
        if settings.charset != "utf8mb4" {
            let names = format!("SET NAMES '{}'", settings.charset);
            if let Err(trouble) = connection.query(names.as_bytes()).await {
                warn!(
                    "dict_mysql: mysql_set_character_set '{}' failed: {trouble}",
                    settings.charset
                );
                return Err(trouble.to_string());
            }
        }
        Ok(connection)
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        host: &Host,
        question: &Question,
    ) -> Result<Found, Fault> {
        let retry = || LookupError::Retry(String::new());
        let statement = if connection.backslash_quotes() {
            Some(&question.with_backslashes)
        } else {
            question.doubled.as_ref()
        };
        let Some(statement) = statement else {
            warn!(
                "dict_mysql: host ({}) cannot escape input string: >{}<",
                host.text, question.key
            );
            return Err(Fault::Answer(retry()));
        };
        let broken = |trouble: &Trouble| {
            warn!("{}", question.failed(trouble));
            Fault::Broken(retry())
        };
        match connection.query(statement).await {
            Ok(found) if found.has_columns || !question.require_result_set => Ok(found),
            Ok(_) => {
                warn!(
                    "{}",
                    question.failed(&"query returned no result set(require_result_set = yes)")
                );
                Err(Fault::Answer(retry()))
            }
            Err(Trouble::Server(error, stage)) => Err(Self::judge(question, &error, stage)),
            Err(Trouble::Lost(_)) => Err(Fault::Stale(
                question.failed(&"Lost connection to server during query"),
            )),
            Err(trouble @ (Trouble::TooLong | Trouble::SeveralSets)) => Err(broken(&trouble)),
            Err(trouble @ (Trouble::Protocol(_) | Trouble::Tls(_))) => {
                Err(Fault::Host(question.failed(&trouble)))
            }
        }
    }

    fn is_usable(&self, connection: &mut Connection) -> bool {
        connection.is_quiet()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        format!("connect to mysql server {}: {reason}", host.text)
    }

    fn timeout_warning(&self, host: &Host, question: &Question) -> String {
        question.failed(&format_args!(
            "no answer from {} within {:?}",
            host.text, self.settings.limits.answer
        ))
    }

    fn label(&self) -> String {
        let hosts: Vec<&str> = self
            .settings
            .hosts
            .iter()
            .map(|host| &host.text[..])
            .collect();
        format!("mysql server {}", hosts.join(", "))
    }
}
