//! `unix:passwd.byname` and `unix:group.byname` ask the C library for users and groups.
//!
//! A user is answered as `name:passwd:uid:gid:gecos:dir:shell`, a group as `name:passwd:gid:member,member`. The
//! answers come from wherever the name service gets them, so a lookup may wait.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use log::warn;
use nix::errno::Errno;
use nix::unistd::{Group, User};
use postkeep_table::{Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName};

use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "unix",
    summary: "users and groups of this machine",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

#[derive(Clone, Copy)]
enum Database {
    Passwd,
    Group,
}

struct Unix {
    name: TableName,
    flags: Flags,
    database: Database,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let database = match request.name.name() {
        b"passwd.byname" => Database::Passwd,
        b"group.byname" => Database::Group,
        _ => {
            return Err(OpenError::Unavailable(format!(
                "unknown table: {}",
                request.name
            )));
        }
    };
    Ok(Arc::new(Unix {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        database,
    }))
}

impl Database {
    fn find(self, key: &str) -> Result<Option<Vec<u8>>, Errno> {
        let mut text = Vec::new();
        match self {
            Self::Passwd => {
                let Some(user) = absent_is_an_answer(User::from_name(key))? else {
                    return Ok(None);
                };
                for (number, field) in [
                    user.name.as_bytes(),
                    user.passwd.as_bytes(),
                    user.uid.to_string().as_bytes(),
                    user.gid.to_string().as_bytes(),
                    user.gecos.as_bytes(),
                    user.dir.as_os_str().as_bytes(),
                    user.shell.as_os_str().as_bytes(),
                ]
                .into_iter()
                .enumerate()
                {
                    if number > 0 {
                        text.push(b':');
                    }
                    text.extend_from_slice(field);
                }
            }
            Self::Group => {
                let Some(group) = absent_is_an_answer(Group::from_name(key))? else {
                    return Ok(None);
                };
                text.extend_from_slice(group.name.as_bytes());
                text.push(b':');
                text.extend_from_slice(group.passwd.as_bytes());
                let mut rest = String::new();
                // Writing to a string cannot fail.
                let _ = write!(rest, ":{}:{}", group.gid, group.mem.join(","));
                text.extend_from_slice(rest.as_bytes());
            }
        }
        Ok(Some(text))
    }
}

/// Some sources say with an error that they have no such entry (getpwnam(3)).
fn absent_is_an_answer<T>(result: nix::Result<Option<T>>) -> Result<Option<T>, Errno> {
    match result {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        result => result,
    }
}

impl Table for Unix {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        // Names are text without NUL.
        let Some(key) = std::str::from_utf8(key)
            .ok()
            .filter(|key| !key.contains('\0'))
        else {
            return Ok(Outcome::Absent);
        };
        match self.database.find(key) {
            Ok(Some(found)) => {
                value.extend_from_slice(&found);
                Ok(Outcome::Done)
            }
            Ok(None) => Ok(Outcome::Absent),
            Err(error) => {
                let what = match self.database {
                    Database::Passwd => "password",
                    Database::Group => "group",
                };
                let error = postkeep_sys::error_text(&error.into());
                warn!("cannot access UNIX {what} database: {error}");
                Err(LookupError::Retry(String::new()))
            }
        }
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

    fn answer(name: &str, key: &str) -> Option<String> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        let table = Registry::new(Context::default())
            .open(&name, Access::Read, Flags::empty())
            .unwrap();
        let mut value = Vec::new();
        let outcome = table
            .lookup(Flags::FOLD_FIX, key.as_bytes(), &mut value)
            .unwrap();
        (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
    }

    #[test]
    fn root_is_found_with_all_fields() {
        let root = answer("unix:passwd.byname", "ROOT").unwrap();
        assert!(
            root.starts_with("root:") && root.split(':').count() == 7,
            "{root}"
        );
        let group = answer("unix:group.byname", "root").unwrap();
        assert!(
            group.starts_with("root:") && group.split(':').count() == 4,
            "{group}"
        );
        assert_eq!(answer("unix:passwd.byname", "no-such-user"), None);
        assert_eq!(answer("unix:passwd.byname", ""), None);
    }

    #[test]
    fn other_databases_are_unknown() {
        let name = TableName::parse(b"unix:shadow.byname").unwrap();
        let error = Registry::new(Context::default())
            .open(&name, Access::Read, Flags::empty())
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "unknown table: unix:shadow.byname");
    }
}
