//! `fail:NAME` fails every operation, so that a mail system's reaction to a broken table can be tried.
//!
//! Nothing is logged; the reason comes without a system error. Building such a table fails at the first entry.

use std::sync::Arc;

use postkeep_table::{
    Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Step, Table, TableName,
};

use crate::table_type::{Capabilities, Request, TableType};
use crate::{BuildError, BuildMode, Builder};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "fail",
    summary: "an error for every operation",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::BUILD)
        .union(Capabilities::PATTERN),
    open,
    build: Some(build),
};

struct Fail {
    name: TableName,
    flags: Flags,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the registry has one form for all types"
)]
fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    Ok(Arc::new(Fail {
        name: request.name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
    }))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the registry has one form for all types"
)]
fn build(_: &Request<'_>, _: BuildMode) -> Result<Box<dyn Builder>, OpenError> {
    Ok(Box::new(FailingBuilder))
}

fn failure() -> LookupError {
    LookupError::Retry(String::new())
}

impl Table for Fail {
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
        Err(failure())
    }

    fn update(&self, _: Flags, _: &[u8], _: &[u8]) -> Result<Outcome, LookupError> {
        Err(failure())
    }

    fn delete(&self, _: Flags, _: &[u8]) -> Result<Outcome, LookupError> {
        Err(failure())
    }

    fn sequence(
        &self,
        _: Flags,
        _: Step,
        _: &mut Cursor,
        _: &mut Vec<u8>,
        _: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        Err(failure())
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

struct FailingBuilder;

impl Builder for FailingBuilder {
    fn add(&mut self, _: Flags, _: &[u8], _: &[u8]) -> Result<Outcome, BuildError> {
        Err(BuildError::Write("Application error".to_owned()))
    }

    fn finish(self: Box<Self>) -> Result<(), BuildError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    #[test]
    fn every_operation_fails_without_a_word() {
        let registry = Registry::new(Context::default());
        let name = TableName::parse(b"fail:x").unwrap();
        let table = registry
            .open(&name, Access::ReadWrite, Flags::empty())
            .unwrap();
        for error in [
            table
                .lookup(Flags::empty(), b"k", &mut Vec::new())
                .unwrap_err(),
            table.update(Flags::empty(), b"k", b"v").unwrap_err(),
            table.delete(Flags::empty(), b"k").unwrap_err(),
        ] {
            assert!(matches!(error, LookupError::Retry(text) if text.is_empty()));
        }
        let mut builder = registry
            .build(&name, BuildMode::Create, Flags::empty())
            .unwrap();
        assert!(builder.add(Flags::empty(), b"k", b"v").is_err());
    }
}
