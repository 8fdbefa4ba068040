//! Users and groups, from wherever the C library finds them.

use std::io;

use nix::unistd::{Gid, Group, Uid, User};

/// A user, as the password database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserEntry {
    /// Login name.
    pub name: String,
    /// User number.
    pub uid: u32,
    /// Number of the primary group.
    pub gid: u32,
}

/// A group, as the group database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// Group name.
    pub name: String,
    /// Group number.
    pub gid: u32,
}

fn user_entry(user: User) -> UserEntry {
    UserEntry {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }
}

fn group_entry(group: Group) -> GroupEntry {
    GroupEntry {
        name: group.name,
        gid: group.gid.as_raw(),
    }
}

/// Looks a user up by name; `None` when there is none. May wait for a directory service.
///
/// # Errors
/// The database could not be asked.
///
/// # References
/// `getpwnam_r(3)`.
pub fn user_by_name(name: &str) -> io::Result<Option<UserEntry>> {
    // A name with a NUL cannot exist, and must not reach the conversion to a C string.
    if name.contains('\0') {
        return Ok(None);
    }
    Ok(User::from_name(name)?.map(user_entry))
}

/// Looks a user up by number: the first entry that has it.
///
/// # Errors
/// As [`user_by_name`].
pub fn user_by_id(uid: u32) -> io::Result<Option<UserEntry>> {
    Ok(User::from_uid(Uid::from_raw(uid))?.map(user_entry))
}

/// Looks a group up by name.
///
/// # Errors
/// As [`user_by_name`].
pub fn group_by_name(name: &str) -> io::Result<Option<GroupEntry>> {
    if name.contains('\0') {
        return Ok(None);
    }
    Ok(Group::from_name(name)?.map(group_entry))
}

/// Looks a group up by number: the first entry that has it.
///
/// # Errors
/// As [`user_by_name`].
pub fn group_by_id(gid: u32) -> io::Result<Option<GroupEntry>> {
    Ok(Group::from_gid(Gid::from_raw(gid))?.map(group_entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_both_ways() {
        let root = user_by_name("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(user_by_id(0).unwrap().unwrap().name, "root");
        assert_eq!(group_by_name("root").unwrap().unwrap().gid, 0);
        assert_eq!(group_by_id(0).unwrap().unwrap().name, "root");
    }

    #[test]
    fn an_unknown_name_is_no_error() {
        assert_eq!(user_by_name("no such user").unwrap(), None);
        assert_eq!(user_by_name("ro\0ot").unwrap(), None);
        assert_eq!(group_by_name("ro\0ot").unwrap(), None);
    }
}
