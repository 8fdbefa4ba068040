//! `internal:NAME` is a private table in memory, empty when it is opened.
//!
//! It knows all operations and forgets everything when it is closed. Entries are listed in the order of their keys.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use log::warn;
use postkeep_table::{
    Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName,
};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "internal",
    summary: "a private table in memory",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE),
    open,
    build: None,
};

/// The most bytes that one table holds, keys and values together.
const LIMIT: usize = 1 << 28;

struct Internal {
    name: TableName,
    flags: Flags,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    size: usize,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the registry has one form for all types"
)]
fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(Internal {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        entries: RwLock::default(),
    }))
}

impl Table for Internal {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        match entries.map.get(key) {
            Some(found) => {
                value.extend_from_slice(found);
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let old = entries.map.get(key).map(|old| key.len() + old.len());
        if old.is_some() && !flags.contains(Flags::DUP_REPLACE) {
            let text = format!("{}: duplicate entry: \"{}\"", self.name, Printable(key));
            if flags.contains(Flags::DUP_IGNORE) {
                return Ok(Outcome::Absent);
            }
            if flags.contains(Flags::DUP_WARN) {
                warn!("{text}");
                return Ok(Outcome::Absent);
            }
            return Err(LookupError::Config(text));
        }
        let size = entries.size - old.unwrap_or(0) + key.len() + value.len();
        if size > LIMIT {
            return Err(LookupError::Retry(format!(
                "table {}: no room for more entries",
                self.name
            )));
        }
        entries.size = size;
        entries.map.insert(key.to_vec(), value.to_vec());
        Ok(Outcome::Done)
    }

    fn delete(&self, _: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entries.map.remove(key) {
            Some(old) => {
                entries.size -= key.len() + old.len();
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if step == Step::First {
            *cursor = Cursor::default();
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let lower = cursor
            .key
            .as_deref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let Some((found_key, found_value)) = entries
            .map
            .range::<[u8], _>((lower, Bound::Unbounded))
            .next()
        else {
            return Ok(Outcome::Absent);
        };
        key.extend_from_slice(found_key);
        value.extend_from_slice(found_value);
        cursor.key = Some(found_key.clone());
        cursor.ordinal += 1;
        Ok(Outcome::Done)
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    #[test]
    fn duplicates_follow_the_request() {
        let name = TableName::parse(b"internal:x").unwrap();
        let table = Registry::new(Context::default())
            .open(&name, Access::ReadWrite, Flags::empty())
            .unwrap();
        let update = |flags, value: &[u8]| table.update(flags, b"k", value);
        assert_eq!(update(Flags::DUP_WARN, b"1").unwrap(), Outcome::Done);
        assert_eq!(update(Flags::DUP_WARN, b"2").unwrap(), Outcome::Absent);
        assert_eq!(update(Flags::DUP_IGNORE, b"2").unwrap(), Outcome::Absent);
        assert!(update(Flags::empty(), b"2").is_err());
        assert_eq!(update(Flags::DUP_REPLACE, b"3").unwrap(), Outcome::Done);
        let mut value = Vec::new();
        table.lookup(Flags::empty(), b"k", &mut value).unwrap();
        assert_eq!(value, b"3");
        assert_eq!(table.delete(Flags::empty(), b"k").unwrap(), Outcome::Done);
        assert_eq!(table.delete(Flags::empty(), b"k").unwrap(), Outcome::Absent);
    }
}
