//! Acting as somebody else for a while, as postmap(1) does when root runs it (Postfix `src/util/set_eugid.c`).

use std::io;

use nix::unistd::{Gid, Uid};

/// The real user is root, so the effective identity can be chosen.
pub fn real_user_is_root() -> bool {
    nix::unistd::getuid().is_root()
}

/// The effective user and group.
pub fn identity() -> (u32, u32) {
    (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    )
}

/// Makes `user` and `group` the effective ones, and `group` the only supplementary group, for the whole process.
///
/// The real identity stays, so root can change again.
///
/// # Errors
/// The real user is not root. The effective identity may have been changed in part.
pub fn assume(user: u32, group: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    if !nix::unistd::geteuid().is_root() {
        nix::unistd::seteuid(Uid::from_raw(0))?;
    }
    nix::unistd::setegid(group)?;
    nix::unistd::setgroups(&[group])?;
    nix::unistd::seteuid(user)?;
    Ok(())
}
