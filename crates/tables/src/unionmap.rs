//! `unionmap:{TYPE:NAME, TYPE:NAME, ...}` asks all tables for the same key and joins what they find.
//!
//! Tables are separated by comma or white space; results are joined by a comma, in the order of the tables. A table
//! that finds nothing is left out; nothing is found when none of them found anything. An error of one table wins
//! over the results of all others. An empty result after another one leaves a comma, and none before one. With
//! values from files two results make a value that cannot be decoded.
//!
//! All tables are opened at once, with the flags of the whole. Keys are fixed strings or patterns as they are for
//! the first table. The owner is that of the least trusted one. A daemon goes on when a table cannot be opened:
//! every lookup is a temporary error then, and the whole is opened again when the file appears, as it is when the
//! file of any table changes. Tables may be nested a hundred deep.

use std::sync::Arc;

use postkeep_table::{
    Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName, Watch,
};

use crate::members::{Members, common_operations, layered};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "unionmap",
    summary: "the results of several tables, joined by commas",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::DATA_IN_NAME)
        .union(Capabilities::WRAPS),
    open,
    build: None,
};

struct Union {
    name: TableName,
    flags: Flags,
    members: Members,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let members = Members::open(request)?;
    Ok(layered(
        request,
        Arc::new(Union {
            name: request.name.clone(),
            flags: members.flags(request),
            members,
        }),
    ))
}

impl Union {
    /// Asks all tables; `ask` gives nothing when a table would have to wait.
    fn run(
        &self,
        value: &mut Vec<u8>,
        mut ask: impl FnMut(&dyn Table, &mut Vec<u8>) -> Option<Result<Outcome, LookupError>>,
    ) -> Option<Result<Outcome, LookupError>> {
        let start = value.len();
        for table in self.members.tables() {
            let before = value.len();
            if before > start {
                value.push(b',');
            }
            match ask(&**table, value) {
                Some(Ok(Outcome::Done)) => {}
                Some(Ok(Outcome::Absent)) => value.truncate(before),
                stop => {
                    value.truncate(start);
                    return stop;
                }
            }
        }
        Some(Ok(if value.len() > start {
            Outcome::Done
        } else {
            Outcome::Absent
        }))
    }
}

impl Table for Union {
    common_operations!();

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.run(value, |table, value| Some(table.lookup(flags, key, value)))
            .unwrap_or(Ok(Outcome::Absent))
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        self.run(value, |table, value| table.try_lookup(flags, key, value))
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

    fn answer(name: &str, key: &[u8]) -> Result<Option<String>, LookupError> {
        let flags = Flags::FOLD_FIX | Flags::UTF8_REQUEST;
        let mut value = b"before,".to_vec();
        let outcome = table(name, flags).lookup(flags, key, &mut value);
        let value = String::from_utf8(value).unwrap();
        let value = value.strip_prefix("before,").unwrap();
        if !matches!(outcome, Ok(Outcome::Done)) {
            assert_eq!(value, "");
        }
        Ok((outcome? == Outcome::Done).then(|| value.to_owned()))
    }

    #[test]
    fn results_are_joined_and_missing_ones_left_out() {
        let union = "unionmap:{inline:{a=1}, inline:{b=2}, inline:{A=3}}";
        let found = |name, key| answer(name, key).unwrap();
        assert_eq!(found(union, b"A").as_deref(), Some("1,3"));
        assert_eq!(found(union, b"b").as_deref(), Some("2"));
        assert_eq!(found(union, b"c"), None);
        assert_eq!(
            found(
                "unionmap:{pipemap:{static:b, inline:{b=c}}, static:d}",
                b"a"
            )
            .as_deref(),
            Some("c,d")
        );
    }

    #[test]
    fn empty_results_are_those_of_the_reference() {
        for (list, wanted) in [
            ("static:x, static:{}", Some("x,")),
            ("static:{}, static:x", Some("x")),
            ("static:{} static:{}", None),
            (
                "static:x,inline:{zz=1}, static:{}, static:{} static:y",
                Some("x,,,y"),
            ),
        ] {
            let name = format!("unionmap:{{{list}}}");
            assert_eq!(answer(&name, b"a").unwrap().as_deref(), wanted, "{list}");
        }
    }

    #[test]
    fn an_error_wins() {
        assert!(answer("unionmap:{static:x, fail:y}", b"a").is_err());
        assert!(answer("unionmap:{fail:y, static:x}", b"a").is_err());
        let name = TableName::parse(b"unionmap:{static:x, static:\xff}").unwrap();
        let table = Registry::new(Context::default())
            .open(&name, Access::Read, Flags::UTF8_REQUEST)
            .unwrap();
        assert!(matches!(
            table.lookup(Flags::empty(), b"a", &mut Vec::new()),
            Err(LookupError::Config(_))
        ));
    }

    /// A key is folded for all tables when the first one is of fixed strings and keys are UTF-8, and otherwise by
    /// those that fold.
    #[test]
    fn folding_is_that_of_the_first_table_only_with_utf8() {
        let name = "unionmap:{inline:{a=1}, unionmap:{randmap:{x}}}";
        let table = table(name, Flags::FOLD_FIX);
        assert_eq!(table.flags(), Flags::FOLD_FIX | Flags::FIXED);
        let mut value = Vec::new();
        assert_eq!(
            table.lookup(Flags::FOLD_FIX, b"A", &mut value).unwrap(),
            Outcome::Done
        );
        assert_eq!(value, b"1,x");
    }

    #[test]
    fn what_may_wait_is_not_tried_further() {
        let table = table("unionmap:{static:x, unix:passwd.byname}", Flags::empty());
        let mut value = b"before".to_vec();
        assert!(
            table
                .try_lookup(Flags::empty(), b"root", &mut value)
                .is_none()
        );
        assert_eq!(value, b"before");
    }
}
