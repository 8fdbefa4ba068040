//! Where tables behind a server have their configuration: a file, or main.cf.

use std::path::PathBuf;
use std::sync::Arc;

use log::warn;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::domain::{Domains, LIST_FLAGS};
use postkeep_table::{Access, OpenError, Owner, Watch};

use crate::rule_source::{RuleSource, RuleSourceError};
use crate::table_type::Request;

/// A table's configuration and what its origin says about the table.
#[derive(Debug)]
pub(crate) struct TableConfig {
    pub(crate) config: Config,
    pub(crate) owner: Owner,
    /// The file, when there is one.
    path: Option<PathBuf>,
}

/// Makes a fault in a configuration the reason why a table does not open; what the reference does not say about it is
/// logged before.
pub(crate) fn fault(error: &ConfigError) -> OpenError {
    if let Some(hint) = error.hint() {
        warn!("{hint}");
    }
    OpenError::Unavailable(error.to_string())
}

impl TableConfig {
    /// The configuration of all tables of a type, in main.cf after the name of the type.
    pub(crate) fn of_type(request: &Request<'_>) -> Self {
        let main_cf = Arc::clone(&request.context.main_cf);
        Self {
            config: Config::main_cf(request.name.kind(), main_cf),
            owner: Owner::Trusted,
            path: None,
        }
    }

    /// The configuration of this table: the file that is its name, or what begins with its name in main.cf.
    pub(crate) fn of_table(request: &Request<'_>) -> Result<Self, OpenError> {
        let name = request.name.name();
        let main_cf = &request.context.main_cf;
        if !Config::is_file(name) {
            return Ok(Self {
                config: Config::main_cf(name, Arc::clone(main_cf)),
                owner: Owner::Trusted,
                path: None,
            });
        }
        let source = match request.text {
            Some(text) => RuleSource {
                text: text.to_vec(),
                label: String::new(),
                owner: Owner::Trusted,
                path: None,
            },
            None => read(name)?,
        };
        let config = Config::parse(name, source.text, main_cf.release());
        Ok(Self {
            config: config.map_err(|error| fault(&error))?,
            owner: source.owner,
            path: source.path,
        })
    }

    /// The key `domain`; tables in the list are opened.
    pub(crate) fn domains(&self, request: &Request<'_>) -> Result<Domains, OpenError> {
        let domains = Domains::read(
            &self.config,
            &mut |path| {
                // The reference has another word for files in a list.
                let file = read(path)
                    .map_err(|error| error.to_string().replacen("open ", "open file ", 1))?;
                Ok(file.text)
            },
            &mut |name| {
                let mut inner = *request;
                inner.access = Access::Read;
                inner.text = None;
                inner.flags = LIST_FLAGS;
                inner.open_inner(name).map_err(|error| error.to_string())
            },
        );
        domains.map_err(|error| fault(&error))
    }

    /// The file, as a table tells of it.
    pub(crate) fn watches(&self) -> Vec<Watch> {
        RuleSource::watches(self.path.as_deref())
    }
}

/// Reads a file that does not change while it is read.
pub(crate) fn read(path: &[u8]) -> Result<RuleSource, OpenError> {
    RuleSource::read("", path).map_err(|error| {
        OpenError::Unavailable(match error {
            RuleSourceError::Unavailable(text) => text,
            RuleSourceError::Read(error) => format!(
                "read {}: {}",
                postkeep_table::Printable(path),
                postkeep_sys::error_text(&error)
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use postkeep_conf::{Dictionary, Release};
    use postkeep_remote::domain::Verdict;
    use postkeep_table::{Flags, TableName};

    use super::*;
    use crate::{Context, Registry};

    fn with<T>(
        name: &str,
        main_cf: &str,
        check: impl FnOnce(Result<TableConfig, OpenError>, &Request<'_>) -> T,
    ) -> T {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/etc/postfix");
        dictionary
            .load(main_cf.as_bytes(), "main.cf", &mut Vec::new())
            .unwrap();
        let registry = Registry::new(Context {
            main_cf: Arc::new(dictionary),
            ..Context::default()
        });
        let name = TableName::parse(name.as_bytes()).unwrap();
        let request = registry.request(&name, Access::Read, Flags::FOLD_FIX, 0);
        check(TableConfig::of_table(&request), &request)
    }

    #[test]
    fn a_file_is_read_and_watched() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("t.cf");
        std::fs::write(&file, "query = $x\ndomain = a !static:y b\n").unwrap();
        with(
            &format!("mysql:{}", file.display()),
            "",
            |opened, request| {
                let opened = opened.unwrap();
                assert_eq!(opened.config.text("query", "", 0, 0).unwrap(), b"$x");
                assert_eq!(opened.watches()[0].path, file);
                let domains = opened.domains(request).unwrap();
                assert_eq!(domains.verdict(b"u@b"), Verdict::Ask(1));
                let table = domains.table(1).unwrap();
                assert_eq!(table.flags() & (Flags::FOLD_FIX | LIST_FLAGS), LIST_FLAGS);
            },
        );
        std::fs::write(&file, "query\n").unwrap();
        with(&format!("mysql:{}", file.display()), "", |opened, _| {
            assert_eq!(
                opened.unwrap_err().to_string(),
                format!(
                    "{}, line 1: missing '=' after attribute name: \"query\"",
                    file.display()
                )
            );
        });
        with("mysql:/nonexistent/t.cf", "", |opened, _| {
            assert_eq!(
                opened.unwrap_err().to_string(),
                "open /nonexistent/t.cf: No such file or directory"
            );
        });
    }

    #[test]
    fn main_cf_is_read_by_prefix() {
        with(
            "mysql:m",
            "m_domain = /no/list\nx = y\nm_query = $x\n",
            |opened, request| {
                let opened = opened.unwrap();
                assert_eq!(opened.config.text("query", "", 0, 0).unwrap(), b"y");
                assert!(opened.watches().is_empty());
                assert_eq!(
                    opened.domains(request).unwrap_err().to_string(),
                    "open file /no/list: No such file or directory"
                );
            },
        );
    }
}
