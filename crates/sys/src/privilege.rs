//! Giving up the root directory and root's identity.
//!
//! The identity functions go through the C library, which changes all threads of the process. The order that
//! works is [`set_group`], [`initialize_groups`], [`change_root`], [`set_user`] (Postfix `chroot_uid.c`).

use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::unistd::{Gid, Uid};

/// Makes `group` the real, effective and saved group.
///
/// # Errors
/// setgid(2) failed.
pub fn set_group(group: u32) -> io::Result<()> {
    Ok(nix::unistd::setgid(Gid::from_raw(group))?)
}

/// Makes the groups of `user`, and `group`, the supplementary groups.
///
/// # Errors
/// initgroups(3) failed, or the name holds a NUL.
pub fn initialize_groups(user: &str, group: u32) -> io::Result<()> {
    let user = CString::new(user).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(nix::unistd::initgroups(&user, Gid::from_raw(group))?)
}

/// Makes `directory` the root directory. The working directory does not change.
///
/// # Errors
/// chroot(2) failed.
pub fn change_root(directory: &Path) -> io::Result<()> {
    Ok(rustix::process::chroot(directory)?)
}

/// Makes `user` the real, effective and saved user; there is no way back.
///
/// # Errors
/// setuid(2) failed.
pub fn set_user(user: u32) -> io::Result<()> {
    Ok(nix::unistd::setuid(Uid::from_raw(user))?)
}

/// The real and effective user are both root: such a process is trusted with its environment.
pub fn is_root() -> bool {
    nix::unistd::getuid().is_root() && nix::unistd::geteuid().is_root()
}

/// The process runs with another identity than its caller's (a set-user-ID or set-group-ID program).
pub fn is_set_id() -> bool {
    nix::unistd::getuid() != nix::unistd::geteuid()
        || nix::unistd::getgid() != nix::unistd::getegid()
}
