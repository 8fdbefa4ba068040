//! `debug:TYPE:NAME` logs every operation on `TYPE:NAME` and its result (Postfix 3.11 and later).
//!
//! Keys are logged as the caller sent them, before the inner table folds them. The table has the properties of the
//! inner one, except that postmap(1) cannot create it.

use std::sync::Arc;

use log::info;
use postkeep_table::{
    CacheCounts, Completion, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner,
    Printable, Step, Table, TableName, Watch,
};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "debug",
    summary: "logs what is asked of another table",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::WRAPS),
    open,
    build: None,
};

struct Debug {
    name: TableName,
    inner: Arc<dyn Table>,
    /// The inner table as it was named.
    label: TableName,
}

/// How many tables may be inside each other.
const DEPTH: usize = 16;

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let unavailable = |text: String| OpenError::Unavailable(text);
    let depth = request
        .name
        .name()
        .split(|&byte| byte == b':')
        .take_while(|&word| word == b"debug")
        .count();
    if depth > DEPTH {
        return Err(unavailable(format!(
            "{}: tables are nested too deeply",
            request.name
        )));
    }
    let label =
        TableName::parse(request.name.name()).map_err(|error| unavailable(error.to_string()))?;
    let inner = request.open_inner(&label)?;
    Ok(Arc::new(Debug {
        name: request.name.clone(),
        inner,
        label,
    }))
}

impl Debug {
    fn log_change(
        &self,
        operation: &str,
        key: &[u8],
        value: Option<&[u8]>,
        result: &Result<Outcome, LookupError>,
    ) {
        let result = match result {
            Ok(Outcome::Done) => "success",
            Ok(Outcome::Absent) => "failed",
            Err(_) => "error",
        };
        let key = Printable(key);
        match value {
            Some(value) => info!(
                "{} {operation}: \"{key}\" = \"{}\": {result}",
                self.label,
                Printable(value)
            ),
            None => info!("{} {operation}: \"{key}\": {result}", self.label),
        }
    }

    fn log_lookup(&self, key: &[u8], result: &Result<Outcome, LookupError>, value: &[u8]) {
        let key = Printable(key);
        match result {
            Ok(Outcome::Done) => info!(
                "{} lookup: \"{key}\" = \"{}\"",
                self.label,
                Printable(value)
            ),
            Ok(Outcome::Absent) => info!("{} lookup: \"{key}\" = \"not_found\"", self.label),
            Err(_) => info!("{} lookup: \"{key}\" = \"error\"", self.label),
        }
    }
}

impl Table for Debug {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.inner.flags()
    }

    fn latency(&self) -> Latency {
        self.inner.latency()
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let start = value.len();
        let result = self.inner.lookup(flags, key, value);
        self.log_lookup(key, &result, &value[start..]);
        result
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        let start = value.len();
        let result = self.inner.try_lookup(flags, key, value)?;
        self.log_lookup(key, &result, &value[start..]);
        Some(result)
    }

    fn begin_lookup(self: Arc<Self>, flags: Flags, key: &[u8], value: Vec<u8>, done: Completion) {
        let (start, asked) = (value.len(), key.to_vec());
        let inner = Arc::clone(&self.inner);
        let log = move |result, value: Vec<u8>| {
            self.log_lookup(&asked, &result, &value[start..]);
            done(result, value);
        };
        inner.begin_lookup(flags, key, value, Box::new(log));
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let result = self.inner.update(flags, key, value);
        self.log_change("update", key, Some(value), &result);
        result
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let result = self.inner.delete(flags, key);
        self.log_change("delete", key, None, &result);
        result
    }

    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let (key_start, value_start) = (key.len(), value.len());
        let result = self.inner.sequence(flags, step, cursor, key, value);
        match result {
            Ok(Outcome::Done) => info!(
                "{} sequence: \"{}\" = \"{}\"",
                self.label,
                Printable(&key[key_start..]),
                Printable(&value[value_start..])
            ),
            Ok(Outcome::Absent) => info!("{} sequence: found EOF", self.label),
            Err(_) => info!("{} sequence: error", self.label),
        }
        result
    }

    fn watches(&self) -> Vec<Watch> {
        self.inner.watches()
    }

    fn owner(&self) -> Owner {
        self.inner.owner()
    }

    fn cache_counts(&self) -> Option<CacheCounts> {
        self.inner.cache_counts()
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener as _};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, Flags::empty())
    }

    #[test]
    fn outcomes_are_those_of_the_inner_table() {
        let table = open("debug:inline:{k=v}").unwrap();
        let mut value = Vec::new();
        assert_eq!(
            table.lookup(Flags::FOLD_FIX, b"K", &mut value).unwrap(),
            Outcome::Done
        );
        assert_eq!(value, b"v");
        assert_eq!(table.flags(), Flags::FIXED);
        assert!(
            open("debug:fail:x")
                .unwrap()
                .lookup(Flags::empty(), b"k", &mut value)
                .is_err()
        );
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(open(&format!("{}static:x", "debug:".repeat(5))).is_ok());
        assert!(open(&format!("{}static:x", "debug:".repeat(100_000))).is_err());
        assert!(open("debug:static").is_err());
    }
}
