//! The `domain` filter: keys outside these domains are not looked up.
//!
//! A list of names, `/file` (its lines are lists, too), `type:table`, each with any number of `!` before it. The
//! first element that matches decides. Names are compared as a whole, without regard to case.
//!
//! # References
//! Postfix `src/global/db_common.c`, `db_common_check_domain()`; `src/util/match_list.c`, `src/util/match_ops.c`.

use std::fmt;
use std::sync::Arc;

use postkeep_conf::{LogicalLines, split_list_braced};
use postkeep_table::{Flags, Printable, Table, TableName};

use crate::config::{Config, ConfigError};

/// How deep files may be inside each other.
const DEPTH: usize = 20;

/// How many elements a list may have, those of its files included.
const ELEMENTS: usize = 100_000;

/// How tables in a list are opened and asked.
pub const LIST_FLAGS: Flags = Flags::LOCK.union(Flags::UTF8_REQUEST);

enum Pattern {
    Name(Vec<u8>),
    Table(Arc<dyn Table>),
}

/// What a list says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look it up.
    Pass,
    /// There is no such entry.
    Skip,
    /// Ask the table of this element for the key's domain, and go on with [`Domains::told`].
    Ask(usize),
}

/// A filter; an empty one lets every key pass.
#[derive(Default)]
pub struct Domains {
    elements: Vec<(bool, Pattern)>,
    filters: bool,
}

impl fmt::Debug for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domains({} elements)", self.elements.len())
    }
}

/// Gives the text of a file, or why there is none (`open file PATH: …`).
pub type ReadFile<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Vec<u8>, String>;

/// Opens a table with [`LIST_FLAGS`], or says why not.
pub type OpenTable<'a> = &'a mut dyn FnMut(&TableName) -> Result<Arc<dyn Table>, String>;

impl Domains {
    /// Reads the key `domain`.
    ///
    /// # Errors
    /// [`ConfigError`] when a file or table in the list cannot be opened: without it keys would pass, or not, that
    /// should not.
    pub fn read(
        config: &Config,
        read: ReadFile<'_>,
        open: OpenTable<'_>,
    ) -> Result<Self, ConfigError> {
        let list = config.text("domain", "", 0, 0)?;
        let mut domains = Self::default();
        if list.is_empty() {
            return Ok(domains);
        }
        domains.filters = true;
        domains.add(config.name(), &list, true, DEPTH, read, open)?;
        Ok(domains)
    }

    fn add(
        &mut self,
        name: &str,
        list: &[u8],
        wanted: bool,
        depth: usize,
        read: ReadFile<'_>,
        open: OpenTable<'_>,
    ) -> Result<(), ConfigError> {
        for element in split_list_braced(list) {
            let bangs = element.iter().take_while(|&&byte| byte == b'!').count();
            let wanted = wanted ^ (bangs % 2 == 1);
            let item = &element[bangs..];
            if item.is_empty() {
                return Err(ConfigError::new(format!("{name}: no pattern after '!'")));
            }
            if item.starts_with(b"/") {
                if depth == 0 {
                    let file = Printable(item);
                    return Err(ConfigError::new(format!(
                        "{name}: files are nested too deeply at {file}"
                    )));
                }
                let text = read(item).map_err(ConfigError::new)?;
                for line in LogicalLines::new(&text) {
                    self.add(name, line.text_to_nul(), wanted, depth - 1, read, open)?;
                }
                continue;
            }
            if self.elements.len() >= ELEMENTS {
                return Err(ConfigError::new(format!(
                    "{name}: more than {ELEMENTS} elements in the list of domains"
                )));
            }
            let pattern = if item[0] != b'[' && item.contains(&b':') {
                let table =
                    TableName::parse(item).map_err(|error| ConfigError::new(error.to_string()))?;
                Pattern::Table(open(&table).map_err(ConfigError::new)?)
            } else {
                Pattern::Name(item.to_ascii_lowercase())
            };
            self.elements.push((wanted, pattern));
        }
        Ok(())
    }

    /// The part of the key that the list is asked about; `None` for a key that has none.
    pub fn domain_of(key: &[u8]) -> Option<&[u8]> {
        let at = memchr::memrchr(b'@', key)?;
        (at > 0).then(|| &key[at + 1..])
    }

    /// What the list says, as far as it goes without a table.
    pub fn verdict(&self, key: &[u8]) -> Verdict {
        if !self.filters {
            return Verdict::Pass;
        }
        match Self::domain_of(key) {
            Some(domain) => self.from(0, domain),
            None => Verdict::Skip,
        }
    }

    fn from(&self, start: usize, domain: &[u8]) -> Verdict {
        for (index, (wanted, pattern)) in self.elements.iter().enumerate().skip(start) {
            match pattern {
                Pattern::Table(_) => return Verdict::Ask(index),
                Pattern::Name(name) if name.eq_ignore_ascii_case(domain) => {
                    return decided(*wanted);
                }
                Pattern::Name(_) => {}
            }
        }
        Verdict::Skip
    }

    /// The table of an element that [`Verdict::Ask`] named.
    pub fn table(&self, index: usize) -> Option<&Arc<dyn Table>> {
        match self.elements.get(index) {
            Some((_, Pattern::Table(table))) => Some(table),
            _ => None,
        }
    }

    /// What the list says once the table of an element has been asked.
    pub fn told(&self, index: usize, found: bool, key: &[u8]) -> Verdict {
        match self.elements.get(index) {
            Some((wanted, _)) if found => decided(*wanted),
            _ => self.from(index + 1, Self::domain_of(key).unwrap_or_default()),
        }
    }
}

fn decided(wanted: bool) -> Verdict {
    if wanted { Verdict::Pass } else { Verdict::Skip }
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;
    use postkeep_table::{Latency, LookupError, Outcome};

    use super::*;

    struct Fake(TableName);

    impl Table for Fake {
        fn name(&self) -> &TableName {
            &self.0
        }

        fn flags(&self) -> Flags {
            LIST_FLAGS
        }

        fn latency(&self) -> Latency {
            Latency::Memory
        }

        fn lookup(&self, _: Flags, _: &[u8], _: &mut Vec<u8>) -> Result<Outcome, LookupError> {
            Ok(Outcome::Absent)
        }
    }

    fn domains(list: &str) -> Result<Domains, ConfigError> {
        let text = format!("domain = {list}\n").into_bytes();
        let config = Config::parse(b"/t.cf", text, Release::V3_7).unwrap();
        Domains::read(
            &config,
            &mut |path| match path {
                b"/list" => Ok(b"# x\nin.file, second.file\n third.file\n!not.file\n".to_vec()),
                b"/loop" => Ok(b"/loop\n".to_vec()),
                _ => Err(format!(
                    "open file {}: No such file or directory",
                    Printable(path)
                )),
            },
            &mut |name| Ok(Arc::new(Fake(name.clone()))),
        )
    }

    fn passes(list: &str, key: &str) -> bool {
        match domains(list).unwrap().verdict(key.as_bytes()) {
            Verdict::Pass => true,
            Verdict::Skip => false,
            Verdict::Ask(_) => panic!("{list} asks a table"),
        }
    }

    #[test]
    fn names_are_compared_as_a_whole() {
        assert!(passes("", "anything"));
        assert!(passes("a.example B.example", "u@b.EXAMPLE"));
        assert!(passes("a.example,b.example", "x@y@a.example"));
        for key in [
            "u@sub.a.example",
            "u@.a.example",
            "a.example",
            "@a.example",
            "u@",
            "",
        ] {
            assert!(!passes("a.example", key), "{key}");
            assert!(!passes(".a.example", "u@sub.a.example"));
        }
    }

    #[test]
    fn the_first_match_decides_and_bangs_negate() {
        assert!(!passes("!a, a", "u@a"));
        assert!(passes("!!a, !a", "u@a"));
        assert!(!passes("!a", "u@b"));
        assert_eq!(
            domains("a !").unwrap_err().to_string(),
            "/t.cf: no pattern after '!'"
        );
    }

    #[test]
    fn files_are_lists() {
        for domain in ["in.file", "second.file", "third.file"] {
            assert!(passes("/list", &format!("u@{domain}")), "{domain}");
            assert!(!passes("!/list", &format!("u@{domain}")), "{domain}");
        }
        assert!(!passes("/list not.file", "u@not.file"));
        assert!(passes("!/list", "u@not.file"));
        assert_eq!(
            domains("/x").unwrap_err().to_string(),
            "open file /x: No such file or directory"
        );
        assert!(domains("/loop").is_err());
    }

    #[test]
    fn tables_are_asked_in_their_turn() {
        let list = domains("a !static:x b [::1]").unwrap();
        assert_eq!(list.verdict(b"u@a"), Verdict::Pass);
        assert_eq!(list.verdict(b"u@b"), Verdict::Ask(1));
        assert_eq!(list.verdict(b"u@"), Verdict::Ask(1));
        assert_eq!(list.table(1).unwrap().name().as_bytes(), b"static:x");
        assert!(list.table(0).is_none());
        assert_eq!(list.told(1, true, b"u@b"), Verdict::Skip);
        assert_eq!(list.told(1, false, b"u@b"), Verdict::Pass);
        assert_eq!(list.told(1, false, b"u@[::1]"), Verdict::Pass);
        assert_eq!(list.told(1, false, b"u@c"), Verdict::Skip);
    }
}
