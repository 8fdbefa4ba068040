//! `environ:NAME` looks up variables in the environment of the process; the name means nothing.
//!
//! Keys are folded like those of other tables, so a variable with capitals is only found by a caller that does not
//! fold. Variables can be stored, but neither deleted nor listed.
//!
//! Stored variables are visible to all `environ:` tables of the process and nowhere else: the environment itself is
//! not changed, because other threads may be reading it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use postkeep_table::{Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "environ",
    summary: "the environment of the process",
    capabilities: Capabilities::UPDATE,
    open,
    build: None,
};

/// The most variables that a process stores, and the most bytes in one of them.
const LIMIT: usize = 65_536;

static STORED: LazyLock<RwLock<HashMap<Vec<u8>, Vec<u8>>>> = LazyLock::new(RwLock::default);

struct Environ {
    name: TableName,
    flags: Flags,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the registry has one form for all types"
)]
fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(Environ {
        name: request.name.clone(),
        flags: request.fixed_flags(),
    }))
}

impl Table for Environ {
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
        if let Some(stored) = STORED
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
        {
            value.extend_from_slice(stored);
            return Ok(Outcome::Done);
        }
        match std::env::var_os(OsStr::from_bytes(key)) {
            Some(found) => {
                value.extend_from_slice(found.as_bytes());
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn update(&self, _: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let refuse = |why: &str| Err(LookupError::Config(format!("table {}: {why}", self.name)));
        if key.is_empty() || key.contains(&b'=') {
            return refuse("a variable needs a name without '='");
        }
        let mut stored = STORED.write().unwrap_or_else(PoisonError::into_inner);
        if key.len() + value.len() > LIMIT || (stored.len() >= LIMIT && !stored.contains_key(key)) {
            return refuse("no room for more variables");
        }
        stored.insert(key.to_vec(), value.to_vec());
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

    fn open(name: &[u8]) -> Arc<dyn Table> {
        let name = TableName::parse(name).unwrap();
        Registry::new(Context::default())
            .open(&name, Access::ReadWrite, Flags::empty())
            .unwrap()
    }

    #[test]
    fn variables_are_found_under_their_own_case() {
        let table = open(b"environ:x");
        let mut value = Vec::new();
        assert_eq!(
            table.lookup(Flags::empty(), b"PATH", &mut value).unwrap(),
            Outcome::Done
        );
        assert_eq!(value, std::env::var_os("PATH").unwrap().as_bytes());
        assert_eq!(
            table.lookup(Flags::FOLD_FIX, b"PATH", &mut value).unwrap(),
            Outcome::Absent
        );
        assert_eq!(
            table.lookup(Flags::empty(), b"a\0=", &mut value).unwrap(),
            Outcome::Absent
        );
    }

    #[test]
    fn stored_variables_are_seen_by_all_such_tables() {
        open(b"environ:x")
            .update(Flags::empty(), b"stored here", b"v")
            .unwrap();
        let mut value = Vec::new();
        open(b"environ:y")
            .lookup(Flags::empty(), b"stored here", &mut value)
            .unwrap();
        assert_eq!(value, b"v");
        assert!(
            open(b"environ:x")
                .update(Flags::empty(), b"a=b", b"v")
                .is_err()
        );
        assert!(matches!(
            open(b"environ:x").delete(Flags::empty(), b"k"),
            Err(LookupError::Unsupported(_))
        ));
    }
}
