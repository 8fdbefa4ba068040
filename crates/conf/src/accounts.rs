//! Users and groups: who Postfix runs as, and that nobody else does.

use crate::text::display;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// A group of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Vec<u8>,
    /// Its id.
    pub gid: u32,
}

/// The databases of users and groups.
pub trait Accounts {
    /// The user of this name.
    fn user_by_name(&self, name: &[u8]) -> Option<Account>;
    /// The first user with this id.
    fn user_by_id(&self, uid: u32) -> Option<Account>;
    /// The group of this name.
    fn group_by_name(&self, name: &[u8]) -> Option<Group>;
    /// The first group with this id.
    fn group_by_id(&self, gid: u32) -> Option<Group>;
}

/// The names that main.cf has for them.
pub(crate) struct Names<'a> {
    pub mail_owner: &'a [u8],
    pub setgid_group: &'a [u8],
    pub default_privs: &'a [u8],
}

/// Who Postfix runs as.
pub(crate) struct Identities {
    pub mail_owner: Account,
    pub setgid_group: Group,
    pub default_privs: Account,
}

impl Identities {
    /// Looks the names up, and checks that nobody shares an id with somebody else.
    /// The error is what a fault says after the name of the file.
    ///
    /// # References
    /// Postfix `src/global/mail_params.c`, `check_default_privs()` and its neighbours.
    pub(crate) fn check(names: &Names<'_>, accounts: &dyn Accounts) -> Result<Self, String> {
        let default_privs = user("default_privs", names.default_privs, accounts)?;
        let mail_owner = user("mail_owner", names.mail_owner, accounts)?;
        let owner = display(&mail_owner.name);
        if let Some(other) = accounts
            .user_by_id(mail_owner.uid)
            .filter(|other| other.name != mail_owner.name)
        {
            return Err(format!(
                "parameter mail_owner: user {owner} has the same user ID {} as user {}",
                mail_owner.uid,
                display(&other.name)
            ));
        }
        let setgid_group = group(names.setgid_group, accounts)?;
        let (privs, group) = (display(&default_privs.name), display(&setgid_group.name));
        let overlap = if default_privs.name == mail_owner.name {
            format!("parameters default_privs and mail_owner specify the same user {privs}")
        } else if default_privs.uid == mail_owner.uid {
            format!(
                "parameters default_privs and mail_owner: users {privs} and {owner} have the same user ID: {}",
                mail_owner.uid
            )
        } else if default_privs.gid == mail_owner.gid {
            format!(
                "parameters default_privs and mail_owner: users {privs} and {owner} have the same group ID: {}",
                mail_owner.gid
            )
        } else if default_privs.gid == setgid_group.gid {
            format!(
                "parameters default_privs and setgid_group: user {privs} and group {group} have the same group ID: {}",
                setgid_group.gid
            )
        } else if mail_owner.gid == setgid_group.gid {
            format!(
                "parameters mail_owner and setgid_group: user {owner} and group {group} have the same group ID: {}",
                setgid_group.gid
            )
        } else {
            return Ok(Self {
                mail_owner,
                setgid_group,
                default_privs,
            });
        };
        Err(overlap)
    }
}

fn user(parameter: &str, name: &[u8], accounts: &dyn Accounts) -> Result<Account, String> {
    let shown = display(name);
    let fault = |text: String| Err(format!("parameter {parameter}: {text}"));
    match accounts.user_by_name(name) {
        None => fault(format!("unknown user name value: {shown}")),
        Some(account) if account.uid == 0 => fault(format!("user {shown} has privileged user ID")),
        Some(account) if account.gid == 0 => fault(format!("user {shown} has privileged group ID")),
        Some(account) => Ok(Account {
            name: name.to_vec(),
            ..account
        }),
    }
}

fn group(name: &[u8], accounts: &dyn Accounts) -> Result<Group, String> {
    let shown = display(name);
    let fault = |text: String| Err(format!("parameter setgid_group: {text}"));
    let gid = match accounts.group_by_name(name) {
        None => return fault(format!("unknown group name: {shown}")),
        Some(Group { gid: 0, .. }) => {
            return fault(format!("group {shown} has privileged group ID"));
        }
        Some(group) => group.gid,
    };
    match accounts.group_by_id(gid) {
        Some(other) if other.name != name => fault(format!(
            "group {shown} has the same group ID {gid} as group {}",
            display(&other.name)
        )),
        _ => Ok(Group {
            name: name.to_vec(),
            gid,
        }),
    }
}
