//! `ldap:FILE` asks an LDAP server (`ldap_table(5)`).
//!
//! FILE is in main.cf form; `ldap:NAME` has the keys in main.cf, with `NAME_` before each. The keys of the reference:
//!
//! | key | default | |
//! |---|---|---|
//! | `server_host` | `localhost` | `host`, `host:port`, `ldap://host`, `ldaps://host`, `ldapi://%2Fsocket`; in order |
//! | `server_port` | 389 | of hosts without one |
//! | `search_base` | empty | where the search begins |
//! | `scope` | `sub` | `sub`, `one`, `base` |
//! | `query_filter` | `(mailacceptinggeneralid=%s)` | what is searched for |
//! | `result_attribute` | `maildrop` | attributes whose values are the result |
//! | `special_result_attribute` | none | names of entries, or LDAP URLs, where the search goes on |
//! | `terminal_result_attribute` | none | in an entry that has one, nothing else counts |
//! | `leaf_result_attribute` | none | count in entries without a special one |
//! | `result_format` | `%s` | also by its older name `result_filter` |
//! | `domain` | | domains of keys that are asked for |
//! | `expansion_limit` | 0 | the most values; 0 for any number |
//! | `size_limit` | `expansion_limit` | the most entries of one search; 0 for any number |
//! | `recursion_limit` | 1000 | how far special attributes may lead |
//! | `bind` | yes | `no`, `none`; `yes`, `simple`; `sasl` |
//! | `bind_dn`, `bind_pw` | empty | who we are |
//! | `sasl_mechs` | | with `bind = sasl`: `EXTERNAL` must be among them |
//! | `sasl_authz_id`, `sasl_minssf` | empty, 0 | whom to act for; bits of secrecy that are needed |
//! | `timeout` | 10 | seconds to connect, for TLS, to bind, for a search; each |
//! | `version` | 3 | of the protocol; 2 without TLS and SASL |
//! | `dereference` | 0 | aliases: 0 never, 1 while searching, 2 for the base, 3 always |
//! | `chase_referrals` | no | ask the servers that a server names, without telling them who we are |
//! | `start_tls` | no | TLS for `ldap:` |
//! | `tls_require_cert` | no | the certificate must be for the host's name, and signed by somebody trusted |
//! | `tls_ca_cert_file`, `tls_ca_cert_dir` | the system's | whom to trust |
//! | `tls_cert`, `tls_key` | none | our own certificate |
//! | `tls_cipher_suite`, `tls_random_file`, `debuglevel`, `sasl_realm` | | not used |
//! | `cache`, `cache_expiry`, `cache_size` | | not used |
//!
//! In `query_filter` and `search_base`, `%s` is the key, `%u` and `%d` its parts before and after the last `@`, `%1` to `%9`
//! the labels of its domain from the right, `%%` a percent sign; what they stand for is quoted.
//!
//! Tables with equal servers, credentials, TLS and limits share connections. Our own keys:
//!
//! | key | default | |
//! |---|---|---|
//! | `pool_max_connections` | 16 | connections to all servers of the table together |
//! | `pool_queue_limit` | 1000 | searches that wait for a connection |
//! | `connect_timeout` | by `timeout` | to find a server that works |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | `timeout` | for a search |
//! | `lookup_timeout` | 1000s | for all searches of one lookup |
//! | `search_limit` | 100000 | searches of one lookup |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `retry_interval` | 60s | how long a server that failed is tried after the others |
//! | `breaker_failures` | 5 | searches in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 1s | until one is let through to see |
//!
//! Differences from the reference: attributes are terminal, or special, for their entry alone, and not for the ones after
//! it too; SASL has no mechanism but EXTERNAL; ldap.conf(5) and the environment are not read; all waiting is bounded; a
//! lookup that was refused by one server of several as busy, or got no answer from it, goes on to the next; a server that
//! failed is tried last for a while; nobody is led to a socket by a referral; an answer may have 16 MB.
//!
//! References: `ldap_table(5)`; Postfix `src/global/dict_ldap.c`.

mod ber;
mod connection;
mod entries;
mod filter;
mod message;
mod rules;
mod servers;
mod settings;
mod url;

/// What a table of this type reads, for those who want to do that without a server.
pub mod rules_of_ldap {
    pub use super::ber::Malformed;
    pub use super::filter::{FILTER_LIMIT, encode as encode_filter, quote, quote_name};
    pub use super::message::{Attribute, Code, Done, Fault, Reply, Scope, first_message, parse};
    pub use super::rules::Keys;
    pub use super::url::{BadUrl, Scheme, Url};
}

use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use postkeep_remote::domain::Domains;
use postkeep_remote::pool::{Pool, Shared};
use postkeep_remote::source::{Source, passes, table};
use postkeep_remote::template::{Answer, Excess, Key};
use postkeep_table::{Flags, LookupError, OpenError, Owner, Printable, Table, TableName, Watch};

use crate::ldap::connection::{ANSWER_LIMIT, Found};
use crate::ldap::entries::{Step, Walk};
use crate::ldap::message::{Code, Scope};
use crate::ldap::rules::{Keys, LookupLimits, Rules};
use crate::ldap::servers::{Question, Servers};
use crate::ldap::settings::Settings;
use crate::ldap::url::Url;
use crate::table_config::TableConfig;
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "ldap",
    summary: "an LDAP server",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

static POOLS: Shared<Settings, Servers> = Shared::new();

/// The most bytes of all answers that are gone through at once.
const HELD_LIMIT: usize = 4 * ANSWER_LIMIT;

struct Ldap {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    /// Files beside the configuration whose change makes the table stale.
    files: Vec<PathBuf>,
    rules: Rules,
    domains: Domains,
    limits: LookupLimits,
    pool: Arc<Pool<Servers>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let configured = TableConfig::of_table(request)?;
    let Keys {
        rules,
        domains,
        limits,
        settings,
    } = Keys::read(&configured.config, || configured.domains(request))?;
    let files = settings.files().map(Path::to_owned).collect();
    let pool = POOLS.get_or_make(settings.clone(), || {
        let limits = settings.limits.clone();
        let servers = Servers::new(settings);
        let host = servers.host();
        Pool::new(servers, vec![host], limits)
    });
    Ok(table(Ldap {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        configured,
        files,
        rules,
        domains,
        limits,
        pool,
    }))
}

impl Source for Ldap {
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
        // Attributes are UTF-8, and what is none matches nothing.
        if std::str::from_utf8(&key).is_err() {
            return Ok(None);
        }
        if !passes(self.source(), &self.domains, &key).await? {
            return Ok(None);
        }
        let Some(key) = self.rules.needs.key(&self.name, &key) else {
            return Ok(None);
        };
        let searched = tokio::time::timeout(self.limits.time, self.search(&key)).await;
        searched.unwrap_or_else(|_| {
            Err(retry(&format_args!(
                "dict_ldap_lookup: {}: no end within lookup_timeout for key: '{}'",
                self.source(),
                Printable(key.whole())
            )))
        })
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

/// A failure that may not last, after a warning.
fn retry(warning: &dyn std::fmt::Display) -> LookupError {
    warn!("{warning}");
    LookupError::Retry(String::new())
}

impl Ldap {
    /// The name without the type, as warnings have it.
    fn source(&self) -> &str {
        self.configured.config.name()
    }

    fn question(
        &self,
        base: Vec<u8>,
        scope: Scope,
        filter: Vec<u8>,
        attributes: Vec<Vec<u8>>,
        warning: String,
    ) -> Question {
        let search = self.limits.search(base, scope, filter, attributes);
        Question { search, warning }
    }

    async fn search(&self, key: &Key<'_>) -> Result<Option<Vec<u8>>, LookupError> {
        let (base, encoded) = self.rules.base_and_filter(key);
        let warning = "dict_ldap_lookup: Search error".to_owned();
        let Some(encoded) = encoded else {
            let code = Code::FILTER_ERROR;
            return Err(retry(&format_args!(
                "{warning} {}: {} ",
                code.0,
                code.text()
            )));
        };
        let names = self.rules.attributes.names.clone();
        let question = self.question(base.clone(), self.rules.scope, encoded, names, warning);
        let found = self.pool.ask(&question).await?;
        match found.code {
            Code::SUCCESS => self.collect(key, found).await,
            // Without the key in it, it is there.
            Code::NO_SUCH_OBJECT if self.rules.base.is_dynamic() => Ok(None),
            code @ Code::NO_SUCH_OBJECT => Err(retry(&format_args!(
                "dict_ldap_lookup: {}: Search base '{}' not found: {}: {}",
                self.source(),
                Printable(&base),
                code.0,
                code.text()
            ))),
            code => Err(retry(&question.failed(code))),
        }
    }

    /// Goes through what a search found, and through what that leads to, in the order in which it comes.
    async fn collect(&self, key: &Key<'_>, found: Found) -> Result<Option<Vec<u8>>, LookupError> {
        let Rules { needs, result, .. } = &self.rules;
        let mut answer = Answer::new(&self.name, *needs, result, key, self.limits.expansion);
        let mut walks = vec![Walk::new(found.entries, found.size)];
        let mut held = found.size;
        let mut searches: u32 = 1;
        while let Some(walk) = walks.last_mut() {
            let step = walk.next(&self.rules.attributes);
            let (count, size) = (walk.count, walk.size);
            let level = walks.len();
            let limit = usize::try_from(self.limits.size).unwrap_or(0);
            if limit > 0 && count > limit {
                return Err(retry(&format_args!(
                    "dict_ldap_get_values[{level}]: {}: Query size limit ({limit}) exceeded",
                    self.source()
                )));
            }
            match step {
                None => {
                    held -= size;
                    walks.pop();
                }
                Some(Step::Attribute) => {}
                Some(Step::Value(value)) => answer
                    .add(Some(&value))
                    .map_err(|excess| self.too_much(level, excess, key))?,
                Some(Step::Place(place, attribute)) => {
                    let place = to_nul(&place);
                    if level >= self.limits.recursion {
                        return Err(retry(&format_args!(
                            "dict_ldap_get_values[{level}]: {}: Recursion limit exceeded for special attribute {}={}",
                            self.source(),
                            Printable(&attribute),
                            Printable(place)
                        )));
                    }
                    searches = searches.saturating_add(1);
                    if searches > self.limits.searches {
                        return Err(retry(&format_args!(
                            "dict_ldap_get_values[{level}]: {}: search_limit exceeded for key: '{}'",
                            self.source(),
                            Printable(key.whole())
                        )));
                    }
                    let Some(question) = self.next_question(&walks, place)? else {
                        continue;
                    };
                    let found = self.pool.ask(&question).await?;
                    match found.code {
                        Code::SUCCESS => {
                            held += found.size;
                            walks.push(Walk::new(found.entries, found.size));
                        }
                        code @ Code::NO_SUCH_OBJECT => {
                            warn!(
                                "dict_ldap_get_values[{level}]: DN {} not found, skipping ",
                                Printable(place)
                            );
                            trouble_at_the_end(&walks, code);
                        }
                        code => {
                            let error = retry(&question.failed(code));
                            trouble_at_the_end(&walks, code);
                            return Err(error);
                        }
                    }
                    if held > HELD_LIMIT {
                        return Err(retry(&format_args!(
                            "dict_ldap_get_values[{level}]: {}: the answers have more than {HELD_LIMIT} bytes",
                            self.source()
                        )));
                    }
                }
            }
        }
        Ok(answer.finish())
    }

    fn too_much(&self, level: usize, excess: Excess, key: &Key<'_>) -> LookupError {
        retry(&format_args!(
            "dict_ldap_get_values[{level}]: {}: {excess} for key: '{}'",
            self.source(),
            Printable(key.whole())
        ))
    }

    /// The search that the value of a special attribute stands for; `None` for one that cannot find anything.
    fn next_question(&self, walks: &[Walk], place: &[u8]) -> Result<Option<Question>, LookupError> {
        let level = walks.len();
        let warning = format!("dict_ldap_get_values[{level}]: search error");
        let anything = b"(objectclass=*)";
        let names = &self.rules.attributes;
        let mut filter = anything.to_vec();
        let (base, scope, attributes) = if url::looks_like(place) {
            let url = Url::parse(place).map_err(|bad| {
                let code = Code(bad as i32);
                retry(&format_args!(
                    "dict_ldap_get_values[{level}]: malformed URL {}: {}({})",
                    Printable(place),
                    code.text(),
                    code.0
                ))
            })?;
            let Some(attributes) = names.within(&url.attributes) else {
                return Ok(None);
            };
            if let Some(given) = url.filter {
                filter = given;
            }
            let base = url.base.unwrap_or_default();
            (base, url.scope.unwrap_or(Scope::Base), attributes)
        } else {
            (place.to_vec(), Scope::Base, names.names.clone())
        };
        let Some(encoded) = filter::encode(to_nul(&filter)) else {
            let code = Code::FILTER_ERROR;
            let error = retry(&format_args!("{warning} {}: {} ", code.0, code.text()));
            trouble_at_the_end(walks, code);
            return Err(error);
        };
        let base = to_nul(&base).to_vec();
        let question = self.question(base, scope, encoded, attributes, warning);
        Ok(Some(question))
    }
}

/// What the reference says, too, when nothing came after the search that failed.
fn trouble_at_the_end(walks: &[Walk], code: Code) {
    if !walks.iter().any(Walk::has_more) {
        warn!(
            "dict_ldap_lookup: Had some trouble with entries returned by search: {}",
            code.text()
        );
    }
}

/// The reference's texts end at a NUL.
fn to_nul(text: &[u8]) -> &[u8] {
    &text[..memchr::memchr(0, text).unwrap_or(text.len())]
}
