//! The machine, as the evaluation of parameters wants to see it.

use std::net::{IpAddr, ToSocketAddrs};

use postkeep_conf::{
    Account, Accounts, Common, Dictionary, Error, Group, Interface, Sink, Surroundings,
};
use postkeep_sys::{account, interface, process};

/// The users and groups of this machine.
///
/// A database that cannot be asked looks like one without entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemAccounts;

fn user(entry: account::UserEntry) -> Account {
    Account {
        name: entry.name.into_bytes(),
        uid: entry.uid,
        gid: entry.gid,
    }
}

fn group(entry: account::GroupEntry) -> Group {
    Group {
        name: entry.name.into_bytes(),
        gid: entry.gid,
    }
}

impl Accounts for SystemAccounts {
    fn user_by_name(&self, name: &[u8]) -> Option<Account> {
        account::user_by_name(std::str::from_utf8(name).ok()?)
            .ok()
            .flatten()
            .map(user)
    }

    fn user_by_id(&self, uid: u32) -> Option<Account> {
        account::user_by_id(uid).ok().flatten().map(user)
    }

    fn group_by_name(&self, name: &[u8]) -> Option<Group> {
        account::group_by_name(std::str::from_utf8(name).ok()?)
            .ok()
            .flatten()
            .map(group)
    }

    fn group_by_id(&self, gid: u32) -> Option<Group> {
        account::group_by_id(gid).ok().flatten().map(group)
    }
}

/// Evaluates the common parameters with what this machine says about its name, addresses, users and groups.
///
/// # Errors
/// Those of [`Common::evaluate`].
pub fn evaluate_common(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Common, Error> {
    let host_name = process::host_name().unwrap_or_default();
    let interfaces: Vec<Interface> = interface::addresses()
        .unwrap_or_default()
        .into_iter()
        .map(|interface::Address { address, prefix }| Interface { address, prefix })
        .collect();
    let surroundings = Surroundings {
        host_name: host_name.as_encoded_bytes(),
        process_id: std::process::id(),
        accounts: &SystemAccounts,
        interfaces: &interfaces,
        resolve: Some(&resolve),
    };
    Common::evaluate(dictionary, &surroundings, sink)
}

fn resolve(name: &[u8]) -> Vec<IpAddr> {
    let Ok(name) = std::str::from_utf8(name) else {
        return Vec::new();
    };
    (name, 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nonsense_is_not() {
        assert_eq!(
            SystemAccounts.user_by_name(b"root").map(|user| user.uid),
            Some(0)
        );
        assert_eq!(SystemAccounts.user_by_name(b"no\xffbody"), None);
        assert_eq!(
            SystemAccounts.group_by_id(0).map(|group| group.name),
            Some(b"root".to_vec())
        );
    }
}
