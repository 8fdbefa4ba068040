//! What a table behind a server has to say, and the table that it becomes.

use std::future::Future;
use std::sync::Arc;

use postkeep_table::{
    Completion, Flags, Latency, LookupError, Outcome, Owner, Table, TableName, Watch, unsupported,
};

use crate::runtime;

/// A table behind a server; [`table`] makes a [`Table`] of it.
///
/// Lookups run on the runtime and may await; they must not block its threads.
pub trait Source: Send + Sync + 'static {
    /// The name as configured.
    fn name(&self) -> &TableName;

    /// The flags right after opening, as of [`Table::flags`].
    fn flags(&self) -> Flags;

    /// Looks a key up; `None` when it is not there.
    ///
    /// Any number of lookups may be under way at once.
    fn lookup(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, LookupError>> + Send;

    /// Stores an entry.
    fn update(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
        value: Vec<u8>,
    ) -> impl Future<Output = Result<Outcome, LookupError>> + Send {
        let _ = (flags, key, value);
        async move { Err(unsupported(self.name(), "update")) }
    }

    /// Deletes an entry.
    fn delete(
        self: Arc<Self>,
        flags: Flags,
        key: Vec<u8>,
    ) -> impl Future<Output = Result<Outcome, LookupError>> + Send {
        let _ = (flags, key);
        async move { Err(unsupported(self.name(), "delete")) }
    }

    /// The files whose change makes this table stale: its configuration.
    fn watches(&self) -> Vec<Watch> {
        Vec::new()
    }

    /// Who owns the configuration.
    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

/// Makes a table of a source.
pub fn table<S: Source>(source: S) -> Arc<dyn Table> {
    Arc::new(Remote(Arc::new(source)))
}

struct Remote<S>(Arc<S>);

impl<S: Source> Table for Remote<S> {
    fn name(&self) -> &TableName {
        self.0.name()
    }

    fn flags(&self) -> Flags {
        self.0.flags()
    }

    fn latency(&self) -> Latency {
        Latency::Remote
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        match runtime::wait(Arc::clone(&self.0).lookup(flags, key.to_vec()))? {
            Some(found) => {
                value.extend_from_slice(&found);
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn begin_lookup(self: Arc<Self>, flags: Flags, key: &[u8], value: Vec<u8>, done: Completion) {
        let lookup = Arc::clone(&self.0).lookup(flags, key.to_vec());
        runtime::begin(lookup, value, done);
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        runtime::wait(Arc::clone(&self.0).update(flags, key.to_vec(), value.to_vec()))
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        runtime::wait(Arc::clone(&self.0).delete(flags, key.to_vec()))
    }

    fn watches(&self) -> Vec<Watch> {
        self.0.watches()
    }

    fn owner(&self) -> Owner {
        self.0.owner()
    }
}
