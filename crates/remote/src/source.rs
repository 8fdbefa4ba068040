//! What a table behind a server has to say, and the table that it becomes.

use std::future::Future;
use std::sync::Arc;

use log::warn;
use postkeep_table::{
    Completion, Cursor, Flags, Latency, LookupError, Outcome, Owner, Step, Table, TableName, Watch,
    unsupported,
};

use crate::domain::{Domains, LIST_FLAGS, Verdict};
use crate::runtime;

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

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

    /// Moves a cursor, and gives it back with the entry that it then stands on; `None` at the end.
    fn sequence(
        self: Arc<Self>,
        flags: Flags,
        step: Step,
        cursor: Cursor,
    ) -> impl Future<Output = Result<(Cursor, Option<Entry>), LookupError>> + Send {
        let _ = (flags, step, cursor);
        async move { Err(unsupported(self.name(), "sequence")) }
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

/// Does a key pass the `domain` filter? Tables in the filter are asked as it goes.
///
/// - `name`: the table's, without its type
///
/// # Errors
/// That of a table in the list, after a warning: without its answer nobody knows.
pub async fn passes(name: &str, domains: &Domains, key: &[u8]) -> Result<bool, LookupError> {
    let mut verdict = domains.verdict(key);
    loop {
        let step = match Inquiry::of(domains, &verdict, key) {
            Ok(step) => step,
            Err(decided) => return Ok(decided),
        };
        let found = runtime::ask(step.table, LIST_FLAGS, &step.domain).await;
        verdict = step.told(name, domains, found.map(|found| found.is_some()), key)?;
    }
}

/// The same for tables whose lookups wait on a thread of their own.
///
/// # Errors
/// As of [`passes`].
pub fn passes_here(name: &str, domains: &Domains, key: &[u8]) -> Result<bool, LookupError> {
    let mut verdict = domains.verdict(key);
    loop {
        let step = match Inquiry::of(domains, &verdict, key) {
            Ok(step) => step,
            Err(decided) => return Ok(decided),
        };
        let found = step.table.lookup(LIST_FLAGS, &step.domain, &mut Vec::new());
        verdict = step.told(
            name,
            domains,
            found.map(|outcome| outcome == Outcome::Done),
            key,
        )?;
    }
}

/// A table of a filter that has to be asked.
struct Inquiry<'a> {
    index: usize,
    table: &'a Arc<dyn Table>,
    domain: Vec<u8>,
}

impl<'a> Inquiry<'a> {
    /// What comes next, or what is decided already.
    fn of(domains: &'a Domains, verdict: &Verdict, key: &[u8]) -> Result<Self, bool> {
        let index = match *verdict {
            Verdict::Pass => return Err(true),
            Verdict::Skip => return Err(false),
            Verdict::Ask(index) => index,
        };
        let (Some(table), Some(domain)) = (domains.table(index), Domains::domain_of(key)) else {
            return Err(false);
        };
        Ok(Self {
            index,
            table,
            // Elements are compared without regard to case, and tables hold small letters.
            domain: domain.to_ascii_lowercase(),
        })
    }

    fn told(
        &self,
        name: &str,
        domains: &Domains,
        found: Result<bool, LookupError>,
        key: &[u8],
    ) -> Result<Verdict, LookupError> {
        let found = found.inspect_err(|error| {
            let text = error.to_string();
            if !text.is_empty() {
                warn!("{text}");
            }
            warn!("{name}: {}: table lookup problem", self.table.name());
        });
        // What has been logged is not logged again.
        let found = found.map_err(|error| match error {
            LookupError::Config(_) => LookupError::Config(String::new()),
            _ => LookupError::Retry(String::new()),
        })?;
        Ok(domains.told(self.index, found, key))
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

    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let walk = Arc::clone(&self.0).sequence(flags, step, cursor.clone());
        let (moved, entry) = runtime::wait(walk)?;
        *cursor = moved;
        let Some((found_key, found_value)) = entry else {
            return Ok(Outcome::Absent);
        };
        key.extend_from_slice(&found_key);
        value.extend_from_slice(&found_value);
        Ok(Outcome::Done)
    }

    fn watches(&self) -> Vec<Watch> {
        self.0.watches()
    }

    fn owner(&self) -> Owner {
        self.0.owner()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use postkeep_conf::Release;

    use super::*;
    use crate::config::Config;

    /// Finds `x`, fails for `bad`.
    struct Fake {
        name: TableName,
        flags: Flags,
    }

    impl Source for Fake {
        fn name(&self) -> &TableName {
            &self.name
        }

        fn flags(&self) -> Flags {
            self.flags
        }

        async fn lookup(
            self: Arc<Self>,
            _: Flags,
            key: Vec<u8>,
        ) -> Result<Option<Vec<u8>>, LookupError> {
            tokio::task::yield_now().await;
            match &key[..] {
                b"bad" => Err(LookupError::Config("broken".to_owned())),
                key => Ok((key == b"x").then(|| b"value".to_vec())),
            }
        }
    }

    fn fake(name: &[u8]) -> Arc<dyn Table> {
        table(Fake {
            name: TableName::parse(name).unwrap(),
            flags: Flags::PATTERN,
        })
    }

    #[test]
    fn the_table_waits_or_calls_back() {
        let table = fake(b"fake:t");
        assert_eq!(table.latency(), Latency::Remote);
        let mut value = b"<".to_vec();
        assert_eq!(
            table.lookup(Flags::empty(), b"x", &mut value).unwrap(),
            Outcome::Done
        );
        assert_eq!(value, b"<value");
        assert_eq!(
            table.lookup(Flags::empty(), b"y", &mut value).unwrap(),
            Outcome::Absent
        );
        assert!(table.try_lookup(Flags::empty(), b"x", &mut value).is_none());
        assert!(matches!(
            table.update(Flags::empty(), b"x", b"y"),
            Err(LookupError::Unsupported(text))
                if text == "table fake:t: update operation is not supported"
        ));
        assert!(matches!(
            table.delete(Flags::empty(), b"x"),
            Err(LookupError::Unsupported(_))
        ));
        // Thousands may be under way at once.
        let (sender, ends) = mpsc::channel();
        for _ in 0..5000 {
            let sender = sender.clone();
            let done: Completion =
                Box::new(move |result, value| sender.send((result.unwrap(), value)).unwrap());
            Arc::clone(&table).begin_lookup(Flags::empty(), b"x", b"<".to_vec(), done);
        }
        for _ in 0..5000 {
            assert_eq!(ends.recv().unwrap(), (Outcome::Done, b"<value".to_vec()));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn filters_ask_their_tables() {
        let text = b"domain = a !fake:not fake:more\n".to_vec();
        let config = Config::parse(b"/t.cf", text, Release::V3_7).unwrap();
        let domains = Domains::read(&config, &mut |_| Err(String::new()), &mut |name| {
            Ok(fake(name.as_bytes()))
        })
        .unwrap();
        for (key, wanted) in [(b"u@A", true), (b"u@X", false), (b"u@y", false)] {
            let told = tokio::task::block_in_place(|| passes_here("/t.cf", &domains, key));
            assert_eq!(told.unwrap(), wanted);
        }
        let passes = |key: &'static [u8]| passes("/t.cf", &domains, key);
        assert!(passes(b"u@A").await.unwrap());
        assert!(!passes(b"u@X").await.unwrap());
        assert!(!passes(b"u@y").await.unwrap());
        assert!(!passes(b"a").await.unwrap());
        assert!(matches!(
            passes(b"u@bad").await,
            Err(LookupError::Config(text)) if text.is_empty()
        ));
    }
}
