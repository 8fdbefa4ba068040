//! `pgsql:/file` asks a PostgreSQL server.
//!
//! The file is in main.cf syntax, without `$name`; `pgsql:name` has its keys in main.cf as `name_hosts` and so on. The
//! query is a template, `%s` for the key, which belongs between single quotes: what a key says there is data. All columns
//! of all rows are values, joined with commas; NULL is an empty value, which is left out with a warning. Of several
//! statements the last one's result counts.
//!
//! Lookups share connections to the same servers with the same name, password, database, encoding and limits. A
//! connection that a statement may have changed (`SET`, an open transaction) is not used again. When a connection ends
//! before the answer, the key is asked for once more on a new one. A statement that a server refuses is given to the next
//! one, and no server rests for that.
//!
//! | key | default | |
//! |---|---|---|
//! | `hosts` | localhost | servers: `host`, `host:port`, `[address]:port`, `inet:host:port`, `unix:/directory`, `postgresql://` URIs |
//! | `user`, `password` | empty | ignored by URIs; without `user`, the user that the process runs as |
//! | `dbname` | | required unless all hosts are URIs (3.10); may be a connection string, `dbname=mail sslmode=require` |
//! | `encoding` | UTF8, LATIN1 up to 3.7 | client encoding: of keys and values (3.8) |
//! | `query` | | the statement |
//! | `select_function` | | instead of `query`: `SELECT select_function('%s')` |
//! | `select_field`, `table`, `where_field`, `additional_conditions` | | the same, the oldest form |
//! | `result_format` | `%s` | template for each value |
//! | `domain` | all | list of domains; other keys are not asked for |
//! | `expansion_limit` | 0 | most values; more are an error |
//! | `idle_interval` | 60s | after which an unused connection is closed (3.9) |
//! | `retry_interval` | 1s | how long a server that failed is left alone (3.9, 60s there) |
//! | `sslmode` | prefer | for hosts that are no URI: `disable`, `allow`, `prefer`, `require`, `verify-ca`, `verify-full` (ours) |
//! | `sslrootcert` | | whom to trust, a PEM file; `system`, and `verify-…` without it: the certificates of the system (ours) |
//! | `sslcert`, `sslkey` | | our own certificate and its key, PEM files (ours) |
//! | `pool_max_connections` | 16 | connections to all servers together (ours, as are those below) |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout` | 10s | to connect, with greetings |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | 30s | from the question to the end of the answer |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 10s | until one is let through to see |
//!
//! TLS is libpq's: with `prefer` a server without it is asked in clear text, and its certificate is not looked at;
//! `verify-full` is the mode to use over a network. Sockets of the UNIX domain have none. URIs know `host`, `hostaddr`,
//! `port`, `user`, `password`, `dbname`, `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `connect_timeout`, `options`,
//! `application_name` and `target_session_attrs`, and several hosts; parameters that would make a connection safer and are
//! not known, such as `requirepeer`, are refused. Variables of the environment and files in a home directory are not
//! looked at. Passwords in URIs are not logged. A statement that takes longer than `answer_timeout` is not
//! cancelled in the server, which may have a `statement_timeout` (`options=-c statement_timeout=...`).
//!
//! References: `pgsql_table(5)`; Postfix `src/global/dict_pgsql.c`.

mod connection;
mod conninfo;
mod encoding;
mod login;
mod report;
mod target;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use postkeep_conf::Release;
use postkeep_remote::config::{Config, ConfigError, statement};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Backend, Fault, Pool, Shared};
use postkeep_remote::rules::Rules;
use postkeep_remote::source::{Source, table};
use postkeep_remote::template::Piece;
use postkeep_remote::tls::{Check, Roots, Tls};
use postkeep_table::{Flags, LookupError, OpenError, Owner, Table, TableName, Watch};
use rustls::ClientConfig;

use self::connection::{ANSWER_LIMIT, Connection, Failure, Outcome, Part, Values};
use self::conninfo::Settings;
use self::login::{NO_ENCODING, Prepared};
use self::target::{SslMode, Target};
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "pgsql",
    summary: "a PostgreSQL server",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

static POOLS: Shared<Common, Servers> = Shared::new();

/// What tables that share connections have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Common {
    /// Entries of `hosts`, as log lines call them, and what they stand for.
    targets: Vec<(Host, Result<Target, String>)>,
    encoding: Vec<u8>,
    limits: Limits,
}

struct Pgsql {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    rules: Rules,
    pool: Arc<Pool<Servers>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    let release = config.release();
    let read = || {
        let login = Login::read(config)?;
        let rules = Rules::read(config, |config| statement(config, true))?;
        Ok((login, rules))
    };
    let (login, rules) = read().map_err(|error| fault(&error))?;
    let rules = rules.filtered(configured.domains(request)?);
    // Only one lookup at a time finds out whether a server is back, so there is no reason to wait for longer.
    let defaults = Limits {
        rest: Duration::from_secs(1),
        ..Limits::default()
    };
    let read = || {
        let default = if release >= Release::V3_8 {
            "UTF8"
        } else {
            "LATIN1"
        };
        Ok((
            config.text("hosts", "", 0, 0)?,
            config.text("encoding", default, 1, 0)?,
            defaults.read(config)?,
        ))
    };
    let (hosts, encoding, limits) = read().map_err(|error| fault(&error))?;
    let mut entries: Vec<&[u8]> = hosts
        .split(|byte| b", \t\r\n\x0b\x0c".contains(byte))
        .filter(|entry| !entry.is_empty())
        .collect();
    if entries.is_empty() {
        entries.push(b"localhost");
    }
    let mut targets = Vec::with_capacity(entries.len());
    for entry in &entries {
        let (host, found) = login.target(entry, release);
        if login.dbname.is_empty() && !matches!(host.place, Place::Uri(_)) {
            return Err(OpenError::Unavailable(format!(
                "{} host target '{}' requires dbname setting",
                request.name, host.text
            )));
        }
        targets.push((host, found));
    }
    if let [only] = &targets[..]
        && release >= Release::V3_10
    {
        // The only server is tried twice.
        targets.push(only.clone());
    }
    let place = Common {
        targets,
        encoding,
        limits,
    };
    let pool = POOLS.get_or_make(place.clone(), || Servers::pool(place));
    Ok(table(Pgsql {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        configured,
        rules,
        pool,
    }))
}

/// Bytes of a configuration as a text for libpq's words; what is no UTF-8 is shown as `?`.
fn text(bytes: &[u8]) -> String {
    postkeep_table::Printable(bytes).to_string()
}

/// What hosts that are no URI have in common.
struct Login {
    user: Vec<u8>,
    password: Vec<u8>,
    dbname: Vec<u8>,
    /// Our keys, by the names that they have in libpq.
    security: Settings,
}

impl Login {
    fn read(config: &Config) -> Result<Self, ConfigError> {
        let user = config.text("user", "", 0, 0)?;
        let password = config.text("password", "", 0, 0)?;
        let required = usize::from(config.release() < Release::V3_10);
        let dbname = config.text("dbname", "", required, 0)?;
        let mut security = Settings::new();
        for key in ["sslmode", "sslrootcert", "sslcert", "sslkey"] {
            if let Some(value) = config.optional(key)? {
                security.insert(key, value);
            }
        }
        Ok(Self {
            user,
            password,
            dbname,
            security,
        })
    }

    /// What an entry of `hosts` stands for.
    fn target(&self, entry: &[u8], release: Release) -> (Host, Result<Target, String>) {
        let is_uri = entry.starts_with(b"postgresql:")
            || (release >= Release::V3_10 && conninfo::is_uri(entry));
        if is_uri {
            let host = Host {
                text: conninfo::masked(entry),
                place: Place::Uri(text(entry)),
            };
            return (host, conninfo::parse(entry).and_then(Target::new));
        }
        let rest = [&b"unix:"[..], b"inet:"]
            .iter()
            .find_map(|prefix| entry.strip_prefix(*prefix))
            .unwrap_or(entry);
        let is_directory = matches!(rest.first(), None | Some(b'/'));
        let colon = memchr::memrchr(b':', rest).filter(|_| !is_directory);
        let (name, port) = match colon {
            Some(colon) => (&rest[..colon], &rest[colon + 1..]),
            None => (rest, &b""[..]),
        };
        // The reference takes brackets for a part of the name, which there cannot be.
        let brackets = rest
            .strip_prefix(b"[")
            .and_then(|inner| Some(inner.split_at(memchr::memchr(b']', inner)?)));
        let (name, port) = match brackets {
            Some((address, [b']'])) => (address, &b""[..]),
            Some((address, [b']', b':', port @ ..])) => (address, port),
            _ => (name, port),
        };
        let host = Host {
            text: text(entry),
            place: if is_directory {
                Place::Unix(text(name).into())
            } else {
                Place::Inet(text(name), text(port))
            },
        };
        (host, self.settings(name, port).and_then(Target::new))
    }

    fn settings(&self, name: &[u8], port: &[u8]) -> Result<Settings, String> {
        // The name of a database may be a whole connection string.
        let is_string = conninfo::is_uri(&self.dbname) || self.dbname.contains(&b'=');
        let mut settings = if is_string {
            conninfo::parse(&self.dbname)?
        } else {
            Settings::from([("dbname", self.dbname.clone())])
        };
        let given = [
            ("host", name),
            ("port", port),
            ("user", &self.user),
            ("password", &self.password),
        ];
        for (key, value) in given {
            if !value.is_empty() {
                settings.insert(key, value.to_vec());
            }
        }
        for (key, value) in &self.security {
            settings.insert(key, value.clone());
        }
        Ok(settings)
    }
}

impl Source for Pgsql {
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
        let pieces = self.rules.query().pieces().iter();
        let parts = pieces
            .map(|piece| match piece {
                Piece::Text(text) => Part::Text(text.clone()),
                piece => Part::Quoted(key.part(piece).unwrap_or_default().to_vec()),
            })
            .collect();
        let question = Question {
            table: self.name.clone(),
            parts,
        };
        let values = self.pool.ask(&question).await?;
        let mut answer = self.rules.answer(&self.name, &key);
        for value in values.iter() {
            answer.add(Some(value)).map_err(|excess| {
                warn!(
                    "dict_pgsql_lookup: {}: {excess} for key: '{}'",
                    self.configured.config.name(),
                    text(key.whole())
                );
                LookupError::Retry(String::new())
            })?;
        }
        Ok(answer.finish())
    }

    fn watches(&self) -> Vec<Watch> {
        self.configured.watches()
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}

struct Question {
    /// For warnings.
    table: TableName,
    parts: Vec<Part>,
}

/// The servers of a pool.
struct Servers {
    targets: Vec<(Host, Result<Prepared, String>)>,
    encoding: Vec<u8>,
}

impl Servers {
    /// Reads the files that TLS needs, as a daemon cannot later.
    fn pool(place: Common) -> Arc<Pool<Self>> {
        let hosts = place.targets.iter().map(|(host, _)| host.clone()).collect();
        let prepare = |target: Target| Prepared {
            tls: tls(&target),
            target,
        };
        let targets = place.targets.into_iter();
        let backend = Self {
            targets: targets
                .map(|(host, target)| (host, target.map(prepare)))
                .collect(),
            encoding: place.encoding,
        };
        Pool::new(backend, hosts, place.limits)
    }
}

/// What TLS needs; or the reason why not, for when it is needed.
fn tls(target: &Target) -> Result<Arc<ClientConfig>, String> {
    if target.mode == SslMode::Disable {
        return Err("SSL is disabled\n".to_owned());
    }
    let mut tls = target.tls.clone();
    if let Roots::File(file) = &tls.roots
        && !file.exists()
    {
        if matches!(target.mode, SslMode::VerifyCa | SslMode::VerifyFull) {
            return Err(format!(
                "root certificate file \"{}\" does not exist\nEither provide the file or change sslmode to disable \
                 server certificate verification.\n",
                file.display()
            ));
        }
        tls = Tls {
            check: Check::Nothing,
            roots: Roots::System,
            ..tls
        };
    }
    tls.client()
        .map_err(|error| format!("SSL error: {error}\n"))
}

fn failed(host: &Host, reason: &str) -> String {
    format!(
        "pgsql query failed: fatal error from host {}: {reason}",
        host.text
    )
}

impl Backend for Servers {
    type Connection = Connection;
    type Request = Question;
    type Answer = Values;

    async fn connect(&self, host: &Host) -> Result<Connection, String> {
        let found = self.targets.iter().find(|(known, _)| known == host);
        match found {
            Some((_, Ok(prepared))) => prepared.connect(&self.encoding).await,
            Some((_, Err(reason))) => Err(reason.clone()),
            None => Err("no such server\n".to_owned()),
        }
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        host: &Host,
        question: &Question,
    ) -> Result<Values, Fault> {
        let asked = connection.execute(&question.parts).await;
        connection.settle();
        let retry = || LookupError::Retry(String::new());
        match asked {
            Ok(Outcome::Values(values)) => Ok(values),
            Ok(Outcome::Failed(report)) if report.is_about_server() => {
                Err(Fault::Host(failed(host, &report.text)))
            }
            Ok(Outcome::Failed(report)) => Err(Fault::Refused(failed(host, &report.text))),
            Ok(Outcome::Strange(number)) => Err(Fault::Refused(format!(
                "pgsql query failed: unknown code 0x{number:x} from host {}",
                host.text
            ))),
            Err(Failure::Ended(reason)) => Err(Fault::Stale(failed(host, &reason))),
            Err(Failure::Garbage) => Err(Fault::Host(format!(
                "pgsql query failed: protocol error, host {}",
                host.text
            ))),
            Err(Failure::Key(reason)) => {
                warn!(
                    "dict pgsql: (host {}) cannot escape input string: {reason}",
                    host.text
                );
                Err(Fault::Answer(retry()))
            }
            Err(Failure::TooLong) => {
                warn!(
                    "{}: answer of host {} is longer than {ANSWER_LIMIT} bytes",
                    question.table, host.text
                );
                Err(Fault::Broken(retry()))
            }
        }
    }

    fn is_usable(&self, connection: &mut Connection) -> bool {
        connection.is_usable()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        if reason.starts_with(NO_ENCODING) {
            format!("dict_pgsql: {reason}, skipping {}", host.text)
        } else {
            format!("connect to pgsql server {}: {reason}", host.text)
        }
    }

    fn timeout_warning(&self, host: &Host, _: &Question) -> String {
        failed(host, "timeout expired\n")
    }

    fn label(&self) -> String {
        let hosts: Vec<&str> = self
            .targets
            .iter()
            .map(|(host, _)| host.text.as_str())
            .collect();
        format!("pgsql servers {}", hosts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::target::Server;
    use super::*;

    fn server(entry: &str) -> Server {
        let login = Login {
            user: Vec::new(),
            password: Vec::new(),
            dbname: b"d".to_vec(),
            security: Settings::new(),
        };
        let (host, target) = login.target(entry.as_bytes(), Release::V3_7);
        assert_eq!(host.text, entry);
        target.ok().unwrap().servers.remove(0)
    }

    #[test]
    fn entries_of_hosts() {
        for (entry, name, port) in [
            ("h", "h", 5432),
            ("h:1", "h", 1),
            ("inet:h:", "h", 5432),
            ("::1:7", "::1", 7),
            ("[::1]:7", "::1", 7),
            ("inet:[::1]", "::1", 5432),
            ("[h", "[h", 5432),
            ("[::1]x:7", "[::1]x", 7),
        ] {
            let wanted = Server::Inet {
                name: name.to_owned(),
                address: None,
                port,
            };
            assert!(server(entry) == wanted, "{entry}");
        }
        for (entry, directory) in [
            ("unix:/a:b", "/a:b"),
            ("/a", "/a"),
            ("inet:/a", "/a"),
            ("unix:", "/var/run/postgresql"),
        ] {
            let wanted = Server::Unix(format!("{directory}/.s.PGSQL.5432"));
            assert!(server(entry) == wanted, "{entry}");
        }
    }
}
