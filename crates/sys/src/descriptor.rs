//! Descriptors that the parent process handed down, and where descriptors live.
#![allow(
    unsafe_code,
    reason = "taking over a descriptor by its number needs OwnedFd::from_raw_fd"
)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// How many numbers [`Inherited::survey`] looks at where `/proc` is not mounted.
const SURVEYED: RawFd = 4096;

static SURVEY_DONE: AtomicBool = AtomicBool::new(false);

/// The descriptors that were open when the process began, to be taken over one by one.
///
/// The standard streams (0, 1, 2) are not among them: the standard library has them.
#[derive(Debug)]
pub struct Inherited {
    open: BTreeSet<RawFd>,
}

impl Inherited {
    /// Notes which descriptors from 3 on are open. The second call in a process finds nothing.
    ///
    /// Call it first in `main`, before anything opens a file: what is open by then was inherited, and so
    /// belongs to nobody.
    pub fn survey() -> Self {
        if SURVEY_DONE.swap(true, Ordering::SeqCst) {
            return Self {
                open: BTreeSet::new(),
            };
        }
        // The list has the directory's own descriptor in it, which is closed when the list has been read.
        let listed: Option<Vec<RawFd>> = std::fs::read_dir("/proc/self/fd").ok().map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect()
        });
        let candidates = listed.unwrap_or_else(|| (0..SURVEYED).collect());
        Self {
            open: candidates
                .into_iter()
                .filter(|&number| number > 2 && is_open(number))
                .collect(),
        }
    }

    /// Takes over a descriptor; from now on it is closed when dropped, and not handed to child processes.
    ///
    /// # Errors
    /// `EBADF` when it was not open at the start, or was taken before.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if !self.open.remove(&number) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: the number was open before this program opened anything, and the set gives it out once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        set_close_on_exec(&descriptor)?;
        Ok(descriptor)
    }
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: borrowed for one F_GETFD, which fails harmlessly when the number is not open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(descriptor).is_ok()
}

/// Keeps a descriptor from child processes.
///
/// # Errors
/// fcntl(2) failed.
pub fn set_close_on_exec(descriptor: &impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC)?)
}

/// Hands a descriptor to child processes.
///
/// # Errors
/// fcntl(2) failed.
pub fn clear_close_on_exec(descriptor: &impl AsFd) -> io::Result<()> {
    let flags = rustix::io::fcntl_getfd(descriptor)? - FdFlags::CLOEXEC;
    Ok(rustix::io::fcntl_setfd(descriptor, flags)?)
}

/// Moves a descriptor to the lowest free number that is `lowest` or more, unless it already is that high.
///
/// Low numbers stay free for libraries that cannot use others. The new one is close-on-exec.
///
/// # Errors
/// fcntl(2) failed; the descriptor is closed then.
pub fn move_above(descriptor: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if descriptor.as_raw_fd() >= lowest {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, lowest)?)
}

/// As [`move_above`], but when there is no room up there the descriptor comes back as it was.
///
/// # Errors
/// fcntl(2) failed.
pub fn try_move_above(descriptor: OwnedFd, lowest: RawFd) -> Result<OwnedFd, (io::Error, OwnedFd)> {
    use std::os::fd::AsRawFd;
    if descriptor.as_raw_fd() >= lowest {
        return Ok(descriptor);
    }
    match rustix::io::fcntl_dupfd_cloexec(&descriptor, lowest) {
        Ok(moved) => Ok(moved),
        Err(error) => Err((error.into(), descriptor)),
    }
}

/// Closes all sockets that accept connections but one, in a copy of a process that is not to answer anybody: their
/// owners are in the threads that the copy does not have.
///
/// # References
/// [`crate::process::split`]
pub fn close_listeners(kept: &impl AsFd) {
    use std::os::fd::AsRawFd as _;
    // Numbers are given out from below, so there is nothing behind a long gap.
    const GAP: u32 = 4096;
    let kept = kept.as_fd().as_raw_fd();
    let mut gap = 0;
    for number in 3.. {
        // SAFETY: borrowed for one getsockopt, which fails harmlessly when the number is not open.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        match rustix::net::sockopt::socket_acceptconn(socket) {
            // SAFETY: whoever owns the descriptor is a thread of the process that this one is a copy of, and will
            // not run here.
            Ok(true) if number != kept => drop(unsafe { OwnedFd::from_raw_fd(number) }),
            Err(rustix::io::Errno::BADF) => {
                gap += 1;
                if gap == GAP {
                    return;
                }
                continue;
            }
            _ => {}
        }
        gap = 0;
    }
}

/// Makes reads and writes of a descriptor return at once, or wait.
///
/// The setting is shared by all processes that have the same open file.
///
/// # Errors
/// ioctl(2) failed.
pub fn set_nonblocking(descriptor: &impl AsFd, nonblocking: bool) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(descriptor, nonblocking)?)
}

/// Lets the process have as many descriptors as the system allows it; returns that number.
///
/// # Errors
/// setrlimit(2) failed.
pub fn raise_limit() -> io::Result<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(limit.current.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_was_not_inherited_cannot_be_taken() {
        let mut inherited = Inherited {
            open: BTreeSet::new(),
        };
        assert_eq!(
            inherited.take(5).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
    }

    #[test]
    fn second_survey_is_empty() {
        let _ = Inherited::survey();
        assert!(Inherited::survey().open.is_empty());
    }

    #[test]
    fn moved_descriptor_is_high_and_private() {
        let (low, _peer) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::empty(),
            None,
        )
        .unwrap();
        let high = move_above(low, 128).unwrap();
        assert!(high.as_raw_fd() >= 128);
        assert!(
            rustix::io::fcntl_getfd(&high)
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );
        clear_close_on_exec(&high).unwrap();
        assert!(
            !rustix::io::fcntl_getfd(&high)
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );
    }
}
