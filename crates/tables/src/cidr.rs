//! `cidr:FILE` finds an IP address among networks (`cidr_table(5)`).
//!
//! Each rule is `network result` or `!network result`; the first one that holds for the address gives the answer.
//! `if network` and `if !network` start a block of rules that count only where the condition holds, up to `endif`.
//! A rule, negated or not, is only tried for addresses of its own family: `if !10.0.0.0/8` skips its block for
//! every IPv6 address. A key that is not an address is not found.
//!
//! `cidr:{{rule}, {rule}, ...}` holds the rules in its name. With values from files each result is a list of file
//! names.
//!
//! A lookup takes the same few steps in a table of ten rules and in one of a hundred thousand, whatever rule
//! answers: the rules are turned into a search tree of address ranges when the table is opened.
//!
//! Differences from the reference: a mask length above 255 is too long, and not what is left of it modulo 256;
//! `if` works with values from files; a changed file is noticed; a directory is a table that cannot be opened
//! and not the end of a daemon.

mod index;
mod ranges;
mod rules;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use log::warn;
use postkeep_sys::error_text;
use postkeep_table::{
    Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Table, TableName, Watch,
};

use crate::read_file_values;
use crate::rule_source::{RuleSource, RuleSourceError};
use crate::table_type::{Capabilities, Request, TableType};

pub use index::CidrIndex;
pub use rules::{Address, CidrRules, Content};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "cidr",
    summary: "networks of IP addresses",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::PATTERN)
        .union(Capabilities::FILE)
        .union(Capabilities::DATA_IN_NAME),
    open,
    build: None,
};

struct Cidr {
    name: TableName,
    flags: Flags,
    index: CidrIndex,
    path: Option<PathBuf>,
    owner: Owner,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let name = request.name.name();
    let source = RuleSource::read(TABLE_TYPE.name, name).map_err(|error| {
        OpenError::Unavailable(match error {
            RuleSourceError::Unavailable(why) => why,
            RuleSourceError::Read(error) => {
                format!(
                    "cidr map {}: read error: {}",
                    Printable(name),
                    error_text(&error)
                )
            }
        })
    })?;
    let content: Content = if request.flags.contains(Flags::RHS_IS_FILE) {
        of_files
    } else {
        |value| Ok(Cow::Borrowed(value))
    };
    let rules = CidrRules::parse(
        &source.text,
        &Printable(name).to_string(),
        &source.label,
        content,
        &mut |text| warn!("{text}"),
    );
    Ok(Arc::new(Cidr {
        name: request.name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        index: CidrIndex::new(rules),
        path: source.path,
        owner: source.owner,
    }))
}

fn of_files(list: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    read_file_values(list)
        .map(Cow::Owned)
        .map_err(|error| error.to_string())
}

impl Table for Cidr {
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
        let found = Address::parse(key).and_then(|address| self.index.find(address));
        Ok(match found {
            Some(found) => {
                value.extend_from_slice(found);
                Outcome::Done
            }
            None => Outcome::Absent,
        })
    }

    fn watches(&self) -> Vec<Watch> {
        RuleSource::watches(self.path.as_deref())
    }

    fn owner(&self) -> Owner {
        self.owner
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, flags)
    }

    fn answer(table: &Arc<dyn Table>, key: &str) -> Option<String> {
        let mut value = Vec::new();
        let outcome = table
            .lookup(Flags::FOLD_FIX, key.as_bytes(), &mut value)
            .unwrap();
        (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
    }

    #[test]
    fn rules_may_be_in_the_name() {
        let table = open(
            "cidr:{{# none}, {192.0.2.1 a}, {192.0.2.0/24 b  c}, {2001:DB8::/32 six}}",
            Flags::empty(),
        )
        .unwrap();
        assert_eq!(answer(&table, "192.0.2.1").as_deref(), Some("a"));
        assert_eq!(answer(&table, "192.0.2.255").as_deref(), Some("b  c"));
        assert_eq!(answer(&table, "2001:Db8:0::1").as_deref(), Some("six"));
        for key in [
            "192.0.3.0",
            "::ffff:192.0.2.1",
            "",
            "192.0.2",
            "[192.0.2.1]",
        ] {
            assert_eq!(answer(&table, key), None, "{key}");
        }
        assert_eq!(table.flags(), Flags::PATTERN);
        assert!(table.watches().is_empty());
        assert_eq!(
            answer(&open("cidr:{}", Flags::empty()).unwrap(), "::1"),
            None
        );
    }

    #[test]
    fn a_file_is_watched_and_its_owner_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "10.0.0.0/8 ten\n").unwrap();
        let table = open(&format!("cidr:{}", file.path().display()), Flags::empty()).unwrap();
        assert_eq!(answer(&table, "10.1.2.3").as_deref(), Some("ten"));
        assert_eq!(
            table.watches(),
            [Watch {
                path: file.path().to_owned(),
                modification_time: true
            }]
        );
        assert_ne!(table.owner(), Owner::Unknown);
    }

    #[test]
    fn what_cannot_be_read_has_the_reference_s_reason() {
        let reason = |name: &str| open(name, Flags::empty()).err().unwrap().to_string();
        assert_eq!(
            reason("cidr:/no/such"),
            "open /no/such: No such file or directory"
        );
        assert_eq!(reason("cidr:/"), "cidr map /: read error: Is a directory");
        assert_eq!(
            reason("cidr:{192.0.2.1 a}"),
            "cidr map: no '{' at start of text in \"192.0.2.1\""
        );
    }

    #[test]
    fn results_may_come_from_files_inside_blocks_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello").unwrap();
        let path = file.path().display();
        let name = format!(
            "cidr:{{{{if 10.0.0.0/8}}, {{10.0.0.0/9 {path}}}, {{endif}}, {{0.0.0.0/0 /no/such}}}}"
        );
        let table = open(&name, Flags::RHS_IS_FILE).unwrap();
        assert_eq!(answer(&table, "10.1.2.3").as_deref(), Some("aGVsbG8="));
        assert_eq!(answer(&table, "11.1.2.3"), None);
    }
}
