//! `slow:MILLISECONDS` answers every lookup with `slow`, so much later; for tests and benchmarks only (Cargo
//! feature `test-tables`).

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use postkeep_table::{Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "slow",
    summary: "an answer that takes its time, for tests",
    capabilities: Capabilities::PATTERN,
    open,
    build: None,
};

struct Slow {
    name: TableName,
    flags: Flags,
    delay: Duration,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let delay = std::str::from_utf8(request.name.name())
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis)
        .ok_or_else(|| {
            OpenError::Unavailable(format!("{}: expecting milliseconds", request.name))
        })?;
    Ok(Arc::new(Slow {
        name: request.name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        delay,
    }))
}

impl Table for Slow {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(&self, _: Flags, _: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        thread::sleep(self.delay);
        value.extend_from_slice(b"slow");
        Ok(Outcome::Done)
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    #[test]
    fn it_takes_its_time() {
        let registry = Registry::new(Context::default());
        let open = |name: &[u8]| {
            let name = TableName::parse(name).unwrap();
            registry.open(&name, Access::Read, Flags::empty())
        };
        let table = open(b"slow:5").unwrap();
        let (before, mut value) = (Instant::now(), Vec::new());
        let outcome = table.lookup(Flags::empty(), b"k", &mut value).unwrap();
        assert_eq!((outcome, &value[..]), (Outcome::Done, &b"slow"[..]));
        assert!(before.elapsed() >= Duration::from_millis(5));
        assert!(open(b"slow:soon").is_err());
    }
}
