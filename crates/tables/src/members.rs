//! The tables inside `pipemap:{...}` and `unionmap:{...}`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use log::error;
use postkeep_table::{Flags, Latency, OpenError, Owner, Table, TableName, Watch};

use crate::table_type::{Capabilities, Request};
use crate::{Caller, braces, layer, surrogate};

/// The open tables of a list, in order; at least one.
pub(crate) struct Members {
    tables: Vec<Arc<dyn Table>>,
    /// Files that may make a member available which is not.
    awaited: Vec<PathBuf>,
}

impl Members {
    /// Opens all tables of the list that is the name, with the flags of the list.
    ///
    /// In a daemon a member that cannot be opened is logged and replaced by a surrogate; in a command the list
    /// cannot be opened either.
    pub(crate) fn open(request: &Request<'_>) -> Result<Self, OpenError> {
        let bad_syntax = || {
            OpenError::Unavailable(format!(
                "bad syntax: \"{}\"; need \"{}:{{type:name...}}\"",
                request.name,
                postkeep_table::Printable(request.name.kind()),
            ))
        };
        let list = braces::whole(request.name.name()).ok_or_else(bad_syntax)?;
        let mut members = Self {
            tables: Vec::new(),
            awaited: Vec::new(),
        };
        for element in braces::elements(list) {
            if !element.contains(&b':') {
                return Err(bad_syntax());
            }
            let name = TableName::parse(element)
                .map_err(|error| OpenError::Unavailable(error.to_string()))?;
            members.add(request, &name)?;
        }
        if members.tables.is_empty() {
            return Err(bad_syntax());
        }
        Ok(members)
    }

    fn add(&mut self, request: &Request<'_>, name: &TableName) -> Result<(), OpenError> {
        let table = match request.open_inner(name) {
            Ok(table) => table,
            Err(reason) => match request.context.caller {
                Caller::Command => return Err(reason),
                Caller::Daemon => {
                    error!("{reason}");
                    self.await_file(request, name);
                    surrogate(name, reason.to_string(), request.flags)
                }
            },
        };
        self.tables.push(table);
        Ok(())
    }

    /// Watches for the file of a table that could not be opened.
    fn await_file(&mut self, request: &Request<'_>, name: &TableName) {
        let Some(kind) = request.registry.find(name.kind()) else {
            return;
        };
        if !kind.capabilities.contains(Capabilities::FILE) || name.name().starts_with(b"{") {
            return;
        }
        let mut path = name.name().to_vec();
        if kind.capabilities.contains(Capabilities::BUILD) {
            // The file is an index beside the source.
            let suffix = match kind.name {
                "btree" | "hash" => "db",
                other => other,
            };
            path.push(b'.');
            path.extend_from_slice(suffix.as_bytes());
        }
        self.awaited.push(OsStr::from_bytes(&path).into());
    }

    pub(crate) fn tables(&self) -> &[Arc<dyn Table>] {
        &self.tables
    }

    /// The flags of the list: those of its opener, and whether the first member compares keys as fixed strings.
    pub(crate) fn flags(&self, request: &Request<'_>) -> Flags {
        let kinds = Flags::FIXED | Flags::PATTERN;
        let first = self
            .tables
            .first()
            .map_or(Flags::PATTERN, |table| table.flags() & kinds);
        request.flags.difference(kinds) | first
    }

    /// Whether all are in memory. A list that waits for a server waits on a thread.
    pub(crate) fn latency(&self) -> Latency {
        let is_slow = |table: &Arc<dyn Table>| table.latency() != Latency::Memory;
        if self.tables.iter().any(is_slow) {
            Latency::Blocking
        } else {
            Latency::Memory
        }
    }

    /// Those of all, so that a change of any makes the list stale.
    pub(crate) fn watches(&self) -> Vec<Watch> {
        let awaited = self.awaited.iter().map(|path| Watch {
            path: path.clone(),
            modification_time: true,
        });
        self.tables
            .iter()
            .flat_map(|table| table.watches())
            .chain(awaited)
            .collect()
    }

    /// That of the least trusted; two users are nobody in particular.
    pub(crate) fn owner(&self) -> Owner {
        self.tables
            .iter()
            .map(|table| table.owner())
            .fold(Owner::Trusted, |all, one| match (all, one) {
                (Owner::Trusted, other) | (other, Owner::Trusted) => other,
                (Owner::User(all), Owner::User(one)) if all == one => Owner::User(all),
                _ => Owner::Unknown,
            })
    }
}

/// Lays the shared rules over a list of tables.
///
/// Only where keys must be UTF-8 does the list itself check and fold them, before its members do: so it is in the
/// reference.
pub(crate) fn layered(request: &Request<'_>, list: Arc<dyn Table>) -> Arc<dyn Table> {
    if request.utf8 {
        layer::over_table(list, true)
    } else {
        list
    }
}

/// Declares the operations of a list of tables that are the same for all lists.
macro_rules! common_operations {
    () => {
        fn name(&self) -> &TableName {
            &self.name
        }

        fn flags(&self) -> Flags {
            self.flags
        }

        fn latency(&self) -> Latency {
            self.members.latency()
        }

        fn watches(&self) -> Vec<Watch> {
            self.members.watches()
        }

        fn owner(&self) -> Owner {
            self.members.owner()
        }
    };
}

pub(crate) use common_operations;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use postkeep_table::{Access, LookupError, Opener, Outcome};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str, flags: Flags, caller: Caller) -> Result<Arc<dyn Table>, OpenError> {
        let context = Context {
            caller,
            ..Context::default()
        };
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(context).open(&name, Access::Read, flags)
    }

    fn reason(name: &str) -> String {
        open(name, Flags::empty(), Caller::Command)
            .err()
            .unwrap()
            .to_string()
    }

    #[test]
    fn reasons_are_the_reference_s() {
        for kind in ["pipemap", "unionmap"] {
            for list in [
                "{}",
                "{ , }",
                "static:x",
                "{static}",
                "{static:x, static}",
                "{static:x",
                "{static:x}{static:x}",
            ] {
                assert_eq!(
                    reason(&format!("{kind}:{list}")),
                    format!("bad syntax: \"{kind}:{list}\"; need \"{kind}:{{type:name...}}\"")
                );
            }
        }
        assert_eq!(
            reason("pipemap:{nosuch:x, static}"),
            "unsupported dictionary type: nosuch"
        );
        assert_eq!(
            reason("pipemap:{{static:x}}"),
            "unsupported dictionary type: {static"
        );
        assert_eq!(
            reason("unionmap:{static:}"),
            "open dictionary: expecting \"type:name\" form instead of \"static:\""
        );
    }

    #[test]
    fn a_daemon_goes_on_with_surrogates_and_waits_for_their_files() {
        let table = open(
            "unionmap:{static:x, texthash:/no/such, lmdb:/no/such, cidr:{x}, nosuch:y}",
            Flags::empty(),
            Caller::Daemon,
        )
        .unwrap();
        assert!(matches!(
            table.lookup(Flags::empty(), b"k", &mut Vec::new()),
            Err(LookupError::Retry(_))
        ));
        let paths: Vec<_> = table
            .watches()
            .into_iter()
            .map(|watch| watch.path)
            .collect();
        assert_eq!(paths, [Path::new("/no/such"), Path::new("/no/such.lmdb")]);
        assert_eq!(table.owner(), Owner::Trusted);
        assert_eq!(
            reason("unionmap:{static:x, texthash:/no/such}"),
            "open database /no/such: No such file or directory"
        );
    }

    #[test]
    fn the_first_member_gives_the_property_and_all_the_rest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        for kind in ["pipemap", "unionmap"] {
            let open = |list: &str, flags| {
                open(&format!("{kind}:{{{list}}}"), flags, Caller::Daemon).unwrap()
            };
            let table = open("randmap:{x}, inline:{x=y}", Flags::LOCK);
            assert_eq!(table.flags(), Flags::LOCK | Flags::PATTERN);
            let table = open("inline:{x=y}, randmap:{x}", Flags::UTF8_REQUEST);
            assert_eq!(
                table.flags(),
                Flags::UTF8_REQUEST | Flags::UTF8_ACTIVE | Flags::FIXED
            );
            assert_eq!(table.latency(), Latency::Memory);
            let table = open("static:x, unix:passwd.byname", Flags::empty());
            assert_eq!(table.latency(), Latency::Blocking);
            let table = open(
                &format!("static:x, pipemap:{{texthash:{path}}}, cidr:{path}"),
                Flags::empty(),
            );
            assert_eq!(table.watches().len(), 2);
        }
    }

    struct Owned(TableName, Owner);

    impl Table for Owned {
        fn name(&self) -> &TableName {
            &self.0
        }

        fn flags(&self) -> Flags {
            Flags::empty()
        }

        fn latency(&self) -> Latency {
            Latency::Memory
        }

        fn lookup(&self, _: Flags, _: &[u8], _: &mut Vec<u8>) -> Result<Outcome, LookupError> {
            Ok(Outcome::Absent)
        }

        fn owner(&self) -> Owner {
            self.1
        }
    }

    #[test]
    fn the_least_trusted_owner_counts() {
        use Owner::{Trusted, Unknown, User};
        for (owners, wanted) in [
            (&[Trusted, Trusted][..], Trusted),
            (&[Trusted, User(5), Trusted, User(5)], User(5)),
            (&[User(5), User(6)], Unknown),
            (&[User(5), User(6), User(6)], Unknown),
            (&[Trusted, Unknown, User(5)], Unknown),
        ] {
            let name = TableName::parse(b"x:y").unwrap();
            let members = Members {
                tables: owners
                    .iter()
                    .map(|&owner| Arc::new(Owned(name.clone(), owner)) as Arc<dyn Table>)
                    .collect(),
                awaited: Vec::new(),
            };
            assert_eq!(members.owner(), wanted, "{owners:?}");
        }
    }

    #[test]
    fn no_name_is_nested_without_end() {
        let nested = |depth: usize, one: &str, last: &str| {
            let name = format!("{}{last}{}", one.repeat(depth), "}".repeat(depth));
            open(&name, Flags::UTF8_REQUEST, Caller::Command)
        };
        let mut value = Vec::new();
        for one in ["pipemap:{", "unionmap:{", "debug:pipemap:{"] {
            let table = nested(40, one, "static:x").unwrap();
            assert_eq!(
                table.lookup(Flags::FOLD_FIX, b"k", &mut value).unwrap(),
                Outcome::Done
            );
            drop(table);
            for depth in [1_000, 100_000] {
                let reason = nested(depth, one, "static:x").err().unwrap().to_string();
                assert!(
                    reason.ends_with(": tables are nested too deeply"),
                    "{reason}"
                );
            }
        }
        let name = format!("{}static:x{}", "pipemap:{".repeat(1_000), "}".repeat(1_000));
        let table = open(&name, Flags::empty(), Caller::Daemon).unwrap();
        assert!(table.lookup(Flags::empty(), b"k", &mut value).is_err());
    }
}
