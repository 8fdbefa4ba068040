//! The keys of a table's configuration.

use std::time::Duration;

use log::warn;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::domain::Domains;
use postkeep_remote::template::{Key, Needs, Template};
use postkeep_table::{OpenError, Printable, TableName};

use crate::ldap::entries::Attributes;
use crate::ldap::filter;
use crate::ldap::message::{Scope, Search};
use crate::ldap::settings::{Identification, Settings, Targets};
use crate::table_config::fault;

/// All that the configuration of a table says.
pub struct Keys {
    pub(super) rules: Rules,
    pub(super) domains: Domains,
    pub(super) limits: LookupLimits,
    pub(super) settings: Settings,
}

impl Keys {
    /// Reads them; faults are found in the reference's order.
    pub(super) fn read(
        config: &Config,
        domains: impl FnOnce() -> Result<Domains, OpenError>,
    ) -> Result<Self, OpenError> {
        let wrong = |error| fault(&error);
        let targets = Targets::read(config).map_err(wrong)?;
        let (mut rules, seconds) = Rules::read(config).map_err(wrong)?;
        let domains = domains()?;
        rules.read_attributes(config).map_err(wrong)?;
        let identification = Identification::read(config).map_err(wrong)?;
        let limits = LookupLimits::read(config, seconds).map_err(wrong)?;
        let chase = config.boolean("chase_referrals", false).map_err(wrong)?;
        let settings = Settings::read(config, targets, identification, chase, seconds);
        let settings = settings.map_err(wrong)?;
        config.int("debuglevel", 0, 0, 0).map_err(wrong)?;
        Ok(Self {
            rules,
            domains,
            limits,
            settings,
        })
    }

    /// Reads them, `domain` excepted.
    ///
    /// # Errors
    /// A value that a key cannot have; the text begins with the name of the configuration.
    pub fn parse(config: &Config) -> Result<Self, OpenError> {
        Self::read(config, || Ok(Domains::default()))
    }

    /// The message that begins a lookup of this key; `None` when there is nothing to ask.
    pub fn message(&self, table: &TableName, key: &[u8]) -> Option<Vec<u8>> {
        let key = self.rules.needs.key(table, key)?;
        let (base, filter) = self.rules.base_and_filter(&key);
        let names = self.rules.attributes.names.clone();
        let search = self.limits.search(base, self.rules.scope, filter?, names);
        Some(search.message(1))
    }
}

impl std::fmt::Debug for Keys {
    /// Without the values: there are passwords among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// What makes a key a search, and entries a result.
pub(super) struct Rules {
    pub(super) needs: Needs,
    pub(super) base: Template,
    pub(super) filter: Template,
    pub(super) result: Template,
    pub(super) scope: Scope,
    pub(super) attributes: Attributes,
}

/// What bounds a lookup.
pub(super) struct LookupLimits {
    pub(super) recursion: usize,
    pub(super) expansion: i32,
    /// Entries of one search; 0 for any number.
    pub(super) size: i32,
    pub(super) dereference: i32,
    /// Seconds, which the server is told.
    pub(super) seconds: i32,
    pub(super) searches: u32,
    pub(super) time: Duration,
}

impl Rules {
    /// Also `timeout`, which the reference reads between these.
    fn read(config: &Config) -> Result<(Self, i32), ConfigError> {
        let name = config.name();
        let scope = config.text("scope", "sub", 1, 0)?;
        let scope = match &scope.to_ascii_lowercase()[..] {
            b"sub" => Scope::Sub,
            b"one" => Scope::One,
            b"base" => Scope::Base,
            _ => {
                warn!(
                    "dict_ldap_open: {name}: Unrecognized value {} specified for scope; using sub",
                    Printable(&scope)
                );
                Scope::Sub
            }
        };
        let base = config.text("search_base", "", 0, 0)?;
        let seconds = config.int("timeout", 10, 0, 0)?;
        let filter = config.text("query_filter", "(mailacceptinggeneralid=%s)", 0, 0)?;
        let result = match config.optional("result_format")? {
            Some(result) => result,
            None => config.text("result_filter", "%s", 1, 0)?,
        };
        let mut needs = Needs::default();
        let base = needs.query(name, &base)?;
        let filter_text = filter;
        let filter = needs.query(name, &filter_text)?;
        if !filter.is_dynamic() {
            warn!(
                "dict_ldap_open: {name}: Fixed query_filter {} is probably useless",
                Printable(&filter_text)
            );
        }
        let result = needs.result(name, &result)?;
        let rules = Self {
            needs,
            base,
            filter,
            result,
            scope,
            attributes: Attributes::default(),
        };
        Ok((rules, seconds))
    }

    fn read_attributes(&mut self, config: &Config) -> Result<(), ConfigError> {
        let list = |key: &str, default: &str| config.text(key, default, 0, 0);
        self.attributes = Attributes::new(
            &list("terminal_result_attribute", "")?,
            &list("leaf_result_attribute", "")?,
            &list("result_attribute", "maildrop")?,
            &list("special_result_attribute", "")?,
        );
        Ok(())
    }

    /// Where a search for the key begins, and its filter in the form of messages; `None` in its place when it is none.
    pub(super) fn base_and_filter(&self, key: &Key<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
        let (mut base, mut text) = (Vec::new(), Vec::new());
        key.expand(&self.base, filter::quote_name, &mut base);
        key.expand(&self.filter, filter::quote, &mut text);
        (base, filter::encode(&text))
    }
}

impl LookupLimits {
    /// - `seconds`: the key `timeout`
    fn read(config: &Config, seconds: i32) -> Result<Self, ConfigError> {
        let name = config.name();
        if config.boolean("cache", false)? {
            warn!("dict_ldap_open: {name} ignoring cache");
        }
        for key in ["cache_expiry", "cache_size"] {
            if config.int(key, -1, 0, 0)? >= 0 {
                warn!("dict_ldap_open: {name} ignoring {key}");
            }
        }
        let recursion = config.int("recursion_limit", 1000, 1, 0)?;
        let expansion = config.int("expansion_limit", 0, 0, 0)?;
        let size = config.int("size_limit", expansion, 0, 0)?;
        let mut dereference = config.int("dereference", 0, 0, 0)?;
        if !(0..=3).contains(&dereference) {
            warn!(
                "dict_ldap_open: {name} Unrecognized value {dereference} specified for dereference; using 0"
            );
            dereference = 0;
        }
        let (second, day) = (Duration::from_millis(1), Duration::from_hours(24));
        Ok(Self {
            recursion: usize::try_from(recursion).unwrap_or(1),
            expansion,
            size: size.max(0),
            dereference,
            seconds: seconds.max(0),
            searches: u32::try_from(config.int("search_limit", 100_000, 1, 0)?).unwrap_or(1),
            time: config.time("lookup_timeout", Duration::from_secs(1000), second, day)?,
        })
    }

    pub(super) fn search(
        &self,
        base: Vec<u8>,
        scope: Scope,
        filter: Vec<u8>,
        attributes: Vec<Vec<u8>>,
    ) -> Search {
        Search {
            base,
            scope,
            dereference: self.dereference,
            size_limit: self.size,
            time_limit: self.seconds,
            filter,
            attributes,
        }
    }
}
