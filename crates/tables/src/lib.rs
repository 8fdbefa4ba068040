//! The lookup table types and their registry.
//!
//! One file per type holds the type's manual, its code, its tests and its [`TableType`] row. The registry opens a
//! table by name, lays the shared rules over it (checks of UTF-8, folding of keys, `layer`) and hands it out as a
//! [`Table`]. Nothing here ends the process: what the reference calls a fatal error is an error value whose text is
//! the reference's.
#![forbid(unsafe_code)]

mod berkeley;
mod braces;
mod build;
mod compact;
mod context;
mod damaged;
mod file_values;
mod fold;
mod group;
#[cfg(test)]
mod group_tests;
mod indexed;
mod layer;
mod members;
mod pattern_rules;
mod pattern_table;
mod prefilter;
mod required_text;
mod rule_source;
mod source;
mod substitution;
mod surrogate;
mod sync;
mod table_config;
mod table_type;

#[cfg(feature = "mongodb")]
pub use self::mongodb::rules_of_mongodb as mongodb_rules;
pub use berkeley::reader as berkeley_file;
pub use build::{BuildError, BuildMode, Builder};
pub use cdb::reader as cdb_file;
pub use cidr::{Address, CidrIndex, CidrRules};
pub use context::{Caller, Context};
pub use file_values::{FileValueError, decode as decode_file_value, read_file_values};
pub use fold::fold_key;
#[cfg(feature = "http")]
pub use http::rules_of_http as http_rules;
#[cfg(feature = "ldap")]
pub use ldap::rules_of_ldap as ldap_rules;
pub use pattern_rules::Dialect;
pub use pattern_table::PatternRules;
pub use source::{Entry, Style, parse as parse_source};
pub use surrogate::surrogate;
pub use table_type::{Capabilities, TableType};

/// The layout of LMDB files, for those who want to read one that is in memory.
pub mod lmdb_file {
    pub use postkeep_sys::lmdb::{Snapshot, Trouble};
}

use std::sync::Arc;

use postkeep_table::{Access, Flags, OpenError, Opener, Printable, Table, TableName};

use crate::table_type::Request;

/// Declares the module of each table type and the row that the registry has for it.
macro_rules! table_types {
    ($($(#[$attribute:meta])* $module:ident),* $(,)?) => {
        $($(#[$attribute])* mod $module;)*

        static TABLE_TYPES: &[&TableType] = &[$($(#[$attribute])* &$module::TABLE_TYPE),*];
    };
}

table_types! {
    btree, cache, cdb, cidr, debug, environ, fail, hash, #[cfg(feature = "http")] http, inline, internal, #[cfg(feature = "ldap")] ldap, lmdb, #[cfg(feature = "memcache")] memcache, #[cfg(feature = "mongodb")] mongodb, #[cfg(feature = "mysql")] mysql, pcre, #[cfg(feature = "pgsql")] pgsql, pipemap, proxy, randmap, #[cfg(feature = "redis")] redis, regexp, #[cfg(feature = "test-tables")] slow, socketmap, #[cfg(feature = "sqlite")] sqlite, r#static, tcp, texthash, unionmap, unix,
}

/// All table types, by name.
pub fn table_types() -> &'static [&'static TableType] {
    TABLE_TYPES
}

/// Opens and builds tables of every type.
#[derive(Clone, Debug)]
pub struct Registry {
    context: Arc<Context>,
}

impl Registry {
    /// A registry whose tables see this configuration.
    pub fn new(context: Context) -> Self {
        Self {
            context: Arc::new(context),
        }
    }

    /// The configuration that tables see.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The row of a table type, when there is one of that name (byte for byte).
    pub fn find(&self, kind: &[u8]) -> Option<&'static TableType> {
        table_types()
            .iter()
            .copied()
            .find(|row| row.name.as_bytes() == kind)
    }

    /// Starts to create a table, or to add to one.
    ///
    /// `flags` as of [`Opener::open`]; the texts are those of postmap(1) up to Postfix 3.7.
    ///
    /// # Errors
    /// [`OpenError`] when the type is not known, cannot be built, or its file cannot be opened.
    pub fn build(
        &self,
        name: &TableName,
        mode: BuildMode,
        flags: Flags,
    ) -> Result<Box<dyn Builder>, OpenError> {
        let kind = self.find(name.kind()).ok_or_else(|| {
            let kind = Printable(name.kind());
            OpenError::Unavailable(format!(
                "unsupported dictionary type: {kind}. Is the postfix-{kind} package installed?"
            ))
        })?;
        let build = kind.build.ok_or_else(|| {
            OpenError::Unavailable(format!(
                "unsupported dictionary type: {} does not support bulk-mode creation.",
                kind.name
            ))
        })?;
        let request = self.request(name, Access::ReadWrite, flags, 0);
        let utf8 = request.utf8;
        let builder = build(&request, mode)?;
        Ok(layer::over_builder(name, builder, utf8))
    }

    /// Opens a table as if this were the text of its configuration file, which does not have to be there: to try texts
    /// without files. Types without such a file do not look at it.
    ///
    /// # Errors
    /// As for any table.
    pub fn open_text(
        &self,
        name: &TableName,
        text: &[u8],
        flags: Flags,
    ) -> Result<Arc<dyn Table>, OpenError> {
        let kind = self.find(name.kind()).ok_or_else(|| {
            let kind = Printable(name.kind());
            OpenError::Unavailable(format!("unsupported dictionary type: {kind}"))
        })?;
        let request = Request {
            text: Some(text),
            ..self.request(name, Access::Read, flags, 0)
        };
        let table = (kind.open)(&request)?;
        Ok(layer::over_table(table, request.utf8))
    }

    fn request<'a>(
        &'a self,
        name: &'a TableName,
        access: Access,
        flags: Flags,
        depth: usize,
    ) -> Request<'a> {
        Request {
            registry: self,
            context: &self.context,
            name,
            access,
            flags,
            depth,
            text: None,
            utf8: self.context.smtputf8_enable && flags.contains(Flags::UTF8_REQUEST),
        }
    }
}

impl Opener for Registry {
    fn open(
        &self,
        name: &TableName,
        access: Access,
        flags: Flags,
    ) -> Result<Arc<dyn Table>, OpenError> {
        self.open_inside(name, access, flags, 0)
    }
}

impl Registry {
    /// Opens a table that is inside so many others.
    fn open_inside(
        &self,
        name: &TableName,
        access: Access,
        flags: Flags,
        depth: usize,
    ) -> Result<Arc<dyn Table>, OpenError> {
        let kind = self.find(name.kind()).ok_or_else(|| {
            OpenError::Unavailable(format!(
                "unsupported dictionary type: {}",
                Printable(name.kind())
            ))
        })?;
        if access == Access::ReadWrite && kind.capabilities.contains(Capabilities::READ_ONLY) {
            // The reference's texts, which differ.
            let colon = if kind.name == "mongodb" { ":" } else { "" };
            return Err(OpenError::Unavailable(format!(
                "{name}{colon} map requires O_RDONLY access mode"
            )));
        }
        let request = self.request(name, access, flags, depth);
        let table = (kind.open)(&request)?;
        if kind.capabilities.contains(Capabilities::WRAPS) {
            return Ok(table);
        }
        Ok(layer::over_table(table, request.utf8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_unique() {
        let names: Vec<_> = table_types().iter().map(|row| row.name).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn an_unknown_type_has_the_text_of_the_operation() {
        let registry = Registry::new(Context::default());
        let name = TableName::parse(b"Hash:x").unwrap();
        let error = registry
            .open(&name, Access::Read, Flags::empty())
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "unsupported dictionary type: Hash");
        let error = registry
            .build(&name, BuildMode::Create, Flags::empty())
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "unsupported dictionary type: Hash. Is the postfix-Hash package installed?"
        );
    }
}
