//! What stands in for a table that could not be opened (Postfix `src/util/dict_surrogate.c`).

use std::sync::Arc;

use log::warn;
use postkeep_table::{Cursor, Flags, Latency, LookupError, Outcome, Owner, Step, Table, TableName};

/// A table that answers [`LookupError::Retry`] and logs `TYPE:NAME is unavailable. REASON` for each operation.
///
/// `flags` are the opener's. The caller logs the reason once as an `error: `, at open.
pub fn surrogate(name: &TableName, reason: String, flags: Flags) -> Arc<dyn Table> {
    Arc::new(Surrogate {
        name: name.clone(),
        reason,
        flags: flags.difference(Flags::FIXED) | Flags::PATTERN,
    })
}

struct Surrogate {
    name: TableName,
    reason: String,
    flags: Flags,
}

impl Surrogate {
    fn fail(&self) -> LookupError {
        warn!("{} is unavailable. {}", self.name, self.reason);
        LookupError::Retry(String::new())
    }
}

impl Table for Surrogate {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, _: &[u8], _: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        Err(self.fail())
    }

    fn update(&self, _: Flags, _: &[u8], _: &[u8]) -> Result<Outcome, LookupError> {
        Err(self.fail())
    }

    fn delete(&self, _: Flags, _: &[u8]) -> Result<Outcome, LookupError> {
        Err(self.fail())
    }

    fn sequence(
        &self,
        _: Flags,
        _: Step,
        _: &mut Cursor,
        _: &mut Vec<u8>,
        _: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        Err(self.fail())
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_asks_for_another_try() {
        let name = TableName::parse(b"hash:x").unwrap();
        let table = surrogate(
            &name,
            "open database x.db: No such file or directory".to_owned(),
            Flags::LOCK,
        );
        assert_eq!(table.flags(), Flags::LOCK | Flags::PATTERN);
        let retry = |result| matches!(result, Err(LookupError::Retry(_)));
        assert!(retry(table.lookup(Flags::empty(), b"k", &mut Vec::new())));
        assert!(retry(table.update(Flags::empty(), b"k", b"v")));
        assert!(retry(table.delete(Flags::empty(), b"k")));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        assert!(retry(table.sequence(
            Flags::empty(),
            Step::First,
            &mut Cursor::default(),
            &mut key,
            &mut value
        )));
    }
}
