//! What tables with one query have in common: the query, the format of results, the limit, the `domain` filter.
//!
//! mysql, pgsql and sqlite are such tables, and with another name for the query so are memcache and mongodb.

use postkeep_table::{LookupError, TableName};

use crate::config::{Config, ConfigError};
use crate::domain::Domains;
use crate::source::{passes, passes_here};
use crate::template::{Answer, Key, Needs, Template};

/// The rules of one table.
#[derive(Debug)]
pub struct Rules {
    /// The table's name, without its type.
    name: String,
    needs: Needs,
    query: Template,
    result: Template,
    limit: i32,
    domains: Domains,
}

impl Rules {
    /// Reads `result_format` and `expansion_limit`, then the query by way of `query`, and takes the templates apart: the
    /// order in which the reference finds faults. The filter is for [`Self::filtered`].
    ///
    /// - `query`: such as [`statement`](crate::config::statement)
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(
        config: &Config,
        query: impl FnOnce(&Config) -> Result<Vec<u8>, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let result = config.text("result_format", "%s", 1, 0)?;
        let limit = config.int("expansion_limit", 0, 0, 0)?;
        let query = query(config)?;
        Self::of(config.name(), &query, &result, limit)
    }

    /// The same from what has been read already, for a type whose keys come in another order.
    ///
    /// - `name`: the table's, without its type
    /// - `limit`: `expansion_limit`; zero or less for none
    ///
    /// # Errors
    /// [`ConfigError`] for a code that there is not.
    pub fn of(name: &str, query: &[u8], result: &[u8], limit: i32) -> Result<Self, ConfigError> {
        let mut needs = Needs::default();
        let query = needs.query(name, query)?;
        let result = needs.result(name, result)?;
        Ok(Self {
            name: name.to_owned(),
            needs,
            query,
            result,
            limit,
            domains: Domains::default(),
        })
    }

    /// The same with the key `domain`, which is read last.
    #[must_use]
    pub fn filtered(mut self, domains: Domains) -> Self {
        self.domains = domains;
        self
    }

    /// Takes the template of another part of the question apart; a key has to have what this one needs, too.
    ///
    /// # Errors
    /// [`ConfigError`] for a code that there is not.
    pub fn add_query(&mut self, template: &[u8]) -> Result<Template, ConfigError> {
        self.needs.query(&self.name, template)
    }

    /// The query; for those who bind the parts of a key instead of quoting them.
    pub fn query(&self) -> &Template {
        &self.query
    }

    /// Takes a key apart that passes the filter and has all parts that the templates need; `None` for one that is not
    /// to be asked for.
    ///
    /// # Errors
    /// That of a table in the filter.
    pub async fn key<'k>(
        &self,
        table: &TableName,
        key: &'k [u8],
    ) -> Result<Option<Key<'k>>, LookupError> {
        if !passes(&self.name, &self.domains, key).await? {
            return Ok(None);
        }
        Ok(self.needs.key(table, key))
    }

    /// The same for tables whose lookups wait on a thread of their own.
    ///
    /// # Errors
    /// That of a table in the filter.
    pub fn key_here<'k>(
        &self,
        table: &TableName,
        key: &'k [u8],
    ) -> Result<Option<Key<'k>>, LookupError> {
        if !passes_here(&self.name, &self.domains, key)? {
            return Ok(None);
        }
        Ok(self.needs.key(table, key))
    }

    /// The query for a key.
    ///
    /// - `quote`: appends a part of the key so that it is data to the server and nothing else
    pub fn expand(&self, key: &Key<'_>, quote: impl FnMut(&[u8], &mut Vec<u8>)) -> Vec<u8> {
        let mut query = Vec::new();
        key.expand(&self.query, quote, &mut query);
        query
    }

    /// Takes the values of a key.
    pub fn answer<'a>(&'a self, table: &'a TableName, key: &'a Key<'a>) -> Answer<'a> {
        Answer::new(table, self.needs, &self.result, key, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;

    use super::*;
    use crate::config::statement;
    use crate::template::Excess;

    fn read(text: &str) -> Result<Rules, ConfigError> {
        let config = Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7).unwrap();
        let domains = Domains::read(&config, &mut |_| Err(String::new()), &mut |_| {
            Err(String::new())
        })?;
        Ok(Rules::read(&config, |config| statement(config, false))?.filtered(domains))
    }

    #[tokio::test]
    async fn a_lookup_from_key_to_result() {
        let table = TableName::parse(b"sqlite:/t.cf").unwrap();
        let rules =
            read("query = SELECT '%s'\nresult_format = %s@%D\nexpansion_limit = 2\ndomain = a b\n")
                .unwrap();
        for absent in [&b"u@c"[..], b"u", b"", b"@a"] {
            assert!(rules.key(&table, absent).await.unwrap().is_none());
        }
        let key = rules.key(&table, b"o'x@a").await.unwrap().unwrap();
        let quote = |part: &[u8], out: &mut Vec<u8>| {
            for &byte in part {
                out.extend_from_slice(if byte == b'\'' {
                    b"''"
                } else {
                    std::slice::from_ref(&byte)
                });
            }
        };
        assert_eq!(rules.expand(&key, quote), b"SELECT 'o''x@a'");
        assert!(rules.query().is_dynamic());
        let mut answer = rules.answer(&table, &key);
        answer.add(Some(b"1")).unwrap();
        answer.add(None).unwrap();
        answer.add(Some(b"2")).unwrap();
        assert_eq!(answer.finish().unwrap(), b"1@a,2@a");
        let mut answer = rules.answer(&table, &key);
        answer.add(Some(b"1")).unwrap();
        answer.add(Some(b"2")).unwrap();
        assert_eq!(answer.add(Some(b"3")), Err(Excess::Values));
    }

    #[tokio::test]
    async fn another_part_of_the_question_has_its_needs() {
        let table = TableName::parse(b"http:/t.cf").unwrap();
        let mut rules = read("query = x\n").unwrap();
        assert!(rules.key(&table, b"u").await.unwrap().is_some());
        rules.add_query(b"%d").unwrap();
        assert!(rules.key(&table, b"u").await.unwrap().is_none());
        assert!(rules.add_query(b"%x").is_err());
    }

    #[test]
    fn faults_are_found_in_the_reference_s_order() {
        let fault = |text| read(text).unwrap_err().to_string();
        assert_eq!(
            fault("result_format =\nexpansion_limit = x\n"),
            "/t.cf: bad string length 0 < 1: result_format = "
        );
        assert_eq!(
            fault("result_format = %x\nexpansion_limit = x\n"),
            "/t.cf: bad numerical configuration: expansion_limit = x"
        );
        assert_eq!(
            fault("result_format = %x\n"),
            "/t.cf: bad string length 0 < 1: table = "
        );
        assert_eq!(
            fault("result_format = %x\nquery = %y\n"),
            "db_common_parse: /t.cf: Invalid query template: %y"
        );
        assert_eq!(
            fault("result_format = %x\nquery = y\n"),
            "db_common_parse: /t.cf: Invalid result template: %x"
        );
    }
}
