//! `mongodb:/path/file.cf` asks a server that speaks the protocol of `MongoDB` for documents.
//!
//! ```text
//! uri = mongodb://postfix:secret@db1.example,db2.example/?replicaSet=mail&tls=true
//! dbname = mail
//! collection = mailboxes
//! query_filter = {"$or": [{"username": "%s"}, {"alias.address": "%s"}], "active": 1}
//! result_attribute = username
//! ```
//!
//! The file is in main.cf syntax; a name without a slash or dot at its beginning reads parameters of main.cf that begin
//! with it (`mongodb:users`: `users_uri`).
//!
//! | key | default | |
//! |---|---|---|
//! | `uri` | | connection string, `mongodb://` or `mongodb+srv://`, with TLS and authentication (SCRAM, X.509, PLAIN) |
//! | `dbname` | | database |
//! | `collection` | | collection |
//! | `query_filter` | | what to find, in extended JSON, with `%s`, `%u`, `%d`, `%1` to `%9`, `%%` inside of quotes |
//! | `result_attribute` | | names of the fields to take, between commas and blanks |
//! | `projection` | | or a projection in JSON; one of the two |
//! | `result_format` | `%s` | of each value; they are joined with commas |
//! | `expansion_limit` | 10 | values, 100 at most; more are an error; 0: any number |
//! | `domain` | all | domains of keys that are asked for |
//! | `pool_max_connections` | 16 | connections to each server; one more for each looks after it |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout` | 10s | to find a server and connect, TLS and authentication included |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | 30s | from the question to the end of the answer |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//! | `pool_lifetime` | 0 | after which connections are made anew; never |
//! | `retry_interval` | 0 | how long the servers of the URI are left alone after all of them failed |
//! | `breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 10s | until one is let through to see |
//!
//! Values are texts, whole numbers, and arrays of these, in the order of documents and their fields; `_id` is left out.
//! What is of another type is passed over with a warning. More than 10000 documents or values, or a MiB of them, are an
//! error.
//!
//! Parts of a key are escaped for JSON, so that a key stays inside of its quotes. Where a code is outside of quotes only
//! digits are put in; other keys are a temporary error, as is all that makes no JSON. What is inside of `$regex` or
//! `$where` is read once more by the server: a key in it can be a pattern or a program. A key that is not UTF-8 is not
//! found and not asked for.
//!
//! The time limits are upper bounds for what a URI says (`connectTimeoutMS`, `serverSelectionTimeoutMS`), `maxPoolSize`
//! and `minPoolSize` in it are not looked at. Certificates are checked against those of the system, or against
//! `tlsCAFile`. Names of several servers, replica sets and routers are the driver's business; it asks a second server once
//! when one fails. Tables with the same URI, limits and files of certificates share connections.
//!
//! References: `mongodb_table(5)`; Postfix `src/global/dict_mongodb.c`.

mod filter;
mod server;
mod values;

/// What the fuzzer is to reach.
pub mod rules_of_mongodb {
    pub use super::filter::{Filter, FilterError, Projection, escape, shown};
    pub use super::values::{BYTES, VALUES, Value, ValueError, Values};
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use mongodb::Namespace;
use mongodb::options::{ConnectionString, Tls as UriTls};
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Pool, Shared};
use postkeep_remote::rules::Rules;
use postkeep_remote::source::{Source, table};
use postkeep_remote::template::{Excess, Key};
use postkeep_remote::tls::{Check, Identity, Roots, Stamps, Tls};
use postkeep_table::{Flags, LookupError, OpenError, Owner, Printable, Table, TableName, Watch};

use self::filter::{Filter, Projection, shown};
use self::server::{Question, Server};
use self::values::{Value, Values};
use crate::fold::fold_key;
use crate::table_config::{TableConfig, fault};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "mongodb",
    summary: "documents of a MongoDB server",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

static POOLS: Shared<(String, Limits, Stamps), Server> = Shared::new();

struct MongoDb {
    name: TableName,
    flags: Flags,
    utf8: bool,
    configured: TableConfig,
    rules: Rules,
    filter: Filter,
    projection: Projection,
    place: Namespace,
    /// Certificates and keys of TLS.
    files: Vec<PathBuf>,
    pool: Arc<Pool<Server>>,
}

/// The keys of a table.
#[derive(Debug)]
struct Keys {
    uri: String,
    place: Namespace,
    rules: Rules,
    /// None when there is none of them, or both.
    projection: Option<Projection>,
    limits: Limits,
}

impl Keys {
    /// Reads the keys, in the reference's order.
    fn read(config: &Config) -> Result<Self, ConfigError> {
        let text = |key| {
            let text = config.text(key, "", 1, 0)?;
            String::from_utf8(text).map_err(|_| config.unusable(key, &"it is not UTF-8"))
        };
        let uri = text("uri")?;
        let place = Namespace::new(text("dbname")?, text("collection")?);
        let query = config.text("query_filter", "", 1, 0)?;
        let projection = config.optional("projection")?;
        let names = config.optional("result_attribute")?;
        let projection = match (projection, names) {
            (Some(text), None) => Some(Projection::parse(text)),
            (None, Some(names)) => Some(Projection::fields(&names)),
            (None, None) | (Some(_), Some(_)) => None,
        };
        let result = config.text("result_format", "%s", 1, 0)?;
        let limit = config.int("expansion_limit", 10, 0, 100)?;
        let defaults = Limits {
            rest: Duration::ZERO,
            ..Limits::default()
        };
        Ok(Self {
            uri,
            place,
            rules: Rules::of(config.name(), &query, &result, limit)?,
            projection,
            limits: defaults.read(config)?,
        })
    }
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let name = request.name;
    let unavailable = |text: String| OpenError::Unavailable(format!("{name}: {text}"));
    let configured = TableConfig::of_table(request)?;
    let Keys {
        uri,
        place,
        rules,
        projection,
        limits,
    } = Keys::read(&configured.config).map_err(|error| fault(&error))?;
    let domains = configured.domains(request)?;
    let projection = projection.ok_or_else(|| {
        unavailable("specify exactly one of 'projection' or 'result_attribute'".to_owned())
    })?;
    let told = shown(&uri).to_string();
    let parsed = ConnectionString::parse(&uri)
        .map_err(|error| unavailable(format!("failed to parse URI '{told}': {}", error.kind)))?;
    let tls = tls_of(&parsed);
    let stamps = Stamps::of(tls.as_ref());
    let files = stamps.files().map(Path::to_owned).collect();
    if let Some(tls) = tls {
        // The driver reads them again, later: this says in time what is wrong with them.
        tls.client().map_err(|error| {
            unavailable(format!("failed to create client for '{told}': {error}"))
        })?;
    }
    let pool = POOLS.get_or_make((uri, limits.clone(), stamps), || {
        let host = Host {
            text: told.clone(),
            place: Place::Uri(told.clone()),
        };
        let server = Server::new(told, parsed, limits.clone());
        Pool::new(server, vec![host], limits)
    });
    Ok(table(MongoDb {
        name: name.clone(),
        // Neither of fixed strings nor of patterns, as in the reference: nobody asks for parts of an address.
        flags: request.flags.difference(Flags::FIXED | Flags::PATTERN),
        utf8: request.utf8,
        configured,
        filter: Filter::new(rules.query().clone()),
        rules: rules.filtered(domains),
        projection,
        place,
        files,
        pool,
    }))
}

/// What a URI says about TLS.
fn tls_of(uri: &ConnectionString) -> Option<Tls> {
    let Some(UriTls::Enabled(options)) = &uri.tls else {
        return None;
    };
    let any = options.allow_invalid_certificates == Some(true);
    Some(Tls {
        roots: options
            .ca_file_path
            .clone()
            .map_or(Roots::System, Roots::File),
        check: if any { Check::Nothing } else { Check::Name },
        identity: options.cert_key_file_path.clone().map(|path| Identity {
            certificate: path.clone(),
            key: path,
        }),
    })
}

impl Source for MongoDb {
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
        // The rules that all types share fold for what says that its strings are fixed.
        let key = if flags.contains(Flags::FOLD_FIX) {
            fold_key(&key, self.utf8).into_owned()
        } else {
            key
        };
        if std::str::from_utf8(&key).is_err() {
            return Ok(None);
        }
        let Some(key) = self.rules.key(&self.name, &key).await? else {
            return Ok(None);
        };
        let question = self.question(&key)?;
        let values = self.pool.ask(&question).await?;
        self.answer(&key, &values)
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

impl MongoDb {
    fn question(&self, key: &Key<'_>) -> Result<Question, LookupError> {
        let failed = |what: &str, text: &[u8], why: &dyn std::fmt::Display| {
            let text = Printable(text);
            warn!(
                "{}: failed to create a {what} from '{text}': {why}",
                self.name
            );
            LookupError::Retry(String::new())
        };
        let projection = match &self.projection {
            Projection::Document(document) => document.clone(),
            Projection::Unusable(text, error) => return Err(failed("projection", text, error)),
        };
        let text = self.filter.text(key);
        let filter = self
            .filter
            .query(key, &text)
            .map_err(|error| failed("query", &text, &error))?;
        Ok(Question {
            table: self.name.clone(),
            place: self.place.clone(),
            filter,
            projection,
            text,
        })
    }

    fn answer(&self, key: &Key<'_>, values: &Values) -> Result<Option<Vec<u8>>, LookupError> {
        let too_much = |what: &str| {
            let key = Printable(key.whole());
            warn!("{}: {what} limit exceeded for key: '{key}'", self.name);
            LookupError::Retry(String::new())
        };
        let mut answer = self.rules.answer(&self.name, key);
        for value in &values.found {
            match value {
                Value::Text(text) => {
                    let added = answer.add(Some(text.as_bytes()));
                    added.map_err(|excess| match excess {
                        Excess::Values => too_much("expansion"),
                        Excess::Size => too_much("result size"),
                    })?;
                }
                Value::Other(field, kind) => {
                    let field = Printable(field.as_bytes());
                    warn!(
                        "{}: failed to retrieve value of '{field}', Unknown result type {kind}.",
                        self.name
                    );
                }
            }
        }
        if values.is_too_much() {
            return Err(too_much("result size"));
        }
        Ok(answer.finish())
    }
}
