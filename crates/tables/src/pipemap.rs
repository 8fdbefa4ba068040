//! `pipemap:{TYPE:NAME, TYPE:NAME, ...}` hands the result of each table as the key to the next.
//!
//! Tables are separated by comma or white space. The result of the last one is the result; when one finds nothing,
//! or fails, that is the outcome. An empty result is passed on like any other. Each table folds and checks its own
//! key.
//!
//! All tables are opened at once, with the flags of the whole. Keys are fixed strings or patterns as they are for
//! the first table. The owner is that of the least trusted one. A daemon goes on when a table cannot be opened:
//! lookups that get there are temporary errors, and the whole is opened again when the file appears, as it is when
//! the file of any table changes. Tables may be nested a hundred deep.

use std::cell::Cell;
use std::sync::Arc;

use postkeep_table::{
    Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName, Watch,
};

use crate::members::{Members, common_operations, layered};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "pipemap",
    summary: "each table's result is the next one's key",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::DATA_IN_NAME)
        .union(Capabilities::WRAPS),
    open,
    build: None,
};

struct Pipe {
    name: TableName,
    flags: Flags,
    members: Members,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let members = Members::open(request)?;
    Ok(layered(
        request,
        Arc::new(Pipe {
            name: request.name.clone(),
            flags: members.flags(request),
            members,
        }),
    ))
}

/// A buffer for keys that is larger than this is not kept (bytes).
const KEPT: usize = 1 << 16;

thread_local! {
    /// The key for the next table; a nested pipe that finds it taken uses one of its own.
    static KEY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Pipe {
    /// Asks one table after the other; `ask` gives nothing when a table would have to wait.
    fn run(
        &self,
        key: &[u8],
        value: &mut Vec<u8>,
        mut ask: impl FnMut(&dyn Table, &[u8], &mut Vec<u8>) -> Option<Result<Outcome, LookupError>>,
    ) -> Option<Result<Outcome, LookupError>> {
        let start = value.len();
        let Some((first, rest)) = self.members.tables().split_first() else {
            return Some(Ok(Outcome::Absent));
        };
        let mut result = ask(&**first, key, value);
        if rest.is_empty() {
            return result;
        }
        let mut next = KEY.take();
        for table in rest {
            if !matches!(result, Some(Ok(Outcome::Done))) {
                break;
            }
            next.clear();
            next.extend_from_slice(&value[start..]);
            value.truncate(start);
            result = ask(&**table, &next, value);
        }
        if next.capacity() <= KEPT {
            KEY.set(next);
        }
        if !matches!(result, Some(Ok(Outcome::Done))) {
            value.truncate(start);
        }
        result
    }
}

impl Table for Pipe {
    common_operations!();

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.run(key, value, |table, key, value| {
            Some(table.lookup(flags, key, value))
        })
        .unwrap_or(Ok(Outcome::Absent))
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        self.run(key, value, |table, key, value| {
            table.try_lookup(flags, key, value)
        })
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn table(name: &str, flags: Flags) -> Arc<dyn Table> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default())
            .open(&name, Access::Read, flags)
            .unwrap()
    }

    fn answer(name: &str, key: &str) -> Result<Option<String>, LookupError> {
        let flags = Flags::FOLD_FIX | Flags::UTF8_REQUEST;
        let mut value = b"before".to_vec();
        let outcome = table(name, flags).lookup(flags, key.as_bytes(), &mut value);
        let mut tried = b"before".to_vec();
        let again = table(name, flags).try_lookup(flags, key.as_bytes(), &mut tried);
        assert_eq!(
            format!("{:?}", Some(&outcome)),
            format!("{:?}", again.as_ref())
        );
        assert_eq!(value, tried);
        let value = String::from_utf8(value).unwrap();
        let value = value.strip_prefix("before").unwrap();
        if !matches!(outcome, Ok(Outcome::Done)) {
            assert_eq!(value, "");
        }
        Ok((outcome? == Outcome::Done).then(|| value.to_owned()))
    }

    #[test]
    fn each_result_is_the_next_key() {
        let found = |name, key| answer(name, key).unwrap();
        let pipe = "pipemap:{inline:{a=B}, inline:{b=C} static:{}, inline:{=end}}";
        assert_eq!(found(pipe, "A").as_deref(), Some("end"));
        assert_eq!(found(pipe, "b"), None);
        assert_eq!(found("pipemap:{inline:{a=b}, inline:{c=d}}", "a"), None);
        assert_eq!(found("pipemap:{static:{}}", "a").as_deref(), Some(""));
        assert_eq!(
            found(
                "pipemap:{inline:{a=b}, pipemap:{inline:{b=c}, inline:{c=d}}, inline:{d=e}}",
                "a"
            )
            .as_deref(),
            Some("e")
        );
    }

    #[test]
    fn the_first_failure_is_the_outcome() {
        assert!(answer("pipemap:{inline:{a=b}, fail:x, static:y}", "a").is_err());
        assert!(matches!(
            answer("pipemap:{inline:{a=b}, fail:x, static:y}", "c"),
            Ok(None)
        ));
        let config = table(
            "pipemap:{inline:{a=b}, static:x, inline:{x=y}}",
            Flags::empty(),
        );
        assert_eq!(
            config
                .lookup(Flags::empty(), b"a", &mut Vec::new())
                .unwrap(),
            Outcome::Done
        );
    }

    #[test]
    fn what_may_wait_is_not_tried_further() {
        let table = table("pipemap:{static:root, unix:passwd.byname}", Flags::empty());
        let mut value = b"before".to_vec();
        assert!(table.try_lookup(Flags::empty(), b"k", &mut value).is_none());
        assert_eq!(value, b"before");
        assert_eq!(
            table.lookup(Flags::empty(), b"k", &mut value).unwrap(),
            Outcome::Done
        );
        assert!(value.starts_with(b"beforeroot:"));
    }
}
