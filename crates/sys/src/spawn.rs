//! Starting a process with descriptors at given numbers, as master(8) hands them to its services.
#![allow(unsafe_code, reason = "descriptors are placed between fork and exec")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::signal::SigSet;
use rustix::io::fcntl_dupfd_cloexec;

/// Starts `command` with a copy of each given descriptor at the given number.
///
/// The copies survive the exec; the caller's own descriptors stay open and as they are. The new process
/// starts with no signal blocked, whatever the caller blocks.
///
/// - `descriptors`: which descriptor goes to which number; each number at most once, and above 2 (standard
///   input, output and error are set with [`Command`] itself)
///
/// # Errors
/// What the system says when a descriptor cannot be copied or the process cannot be started.
///
/// # Bugs
/// Another thread that closes a descriptor with one of the wanted numbers at this very moment can make the
/// report of a failed exec get lost.
pub fn spawn(mut command: Command, descriptors: &[(BorrowedFd<'_>, RawFd)]) -> io::Result<Child> {
    let above = descriptors
        .iter()
        .map(|(_, number)| number + 1)
        .max()
        .unwrap_or(0);
    // Copies above all targets: placing one never overwrites another that is still to be placed.
    let copies = descriptors
        .iter()
        .map(|(descriptor, number)| Ok((fcntl_dupfd_cloexec(descriptor, above)?, *number)))
        .collect::<io::Result<Vec<(OwnedFd, RawFd)>>>()?;
    // The standard library reports a failed exec through a pipe of its own, which must not have a target's
    // number: every free number up to the highest target is taken while it is made.
    let mut fillers = Vec::new();
    loop {
        let filler = File::open("/dev/null")?;
        if filler.as_raw_fd() >= above {
            break;
        }
        fillers.push(filler);
    }
    let place = move || {
        for (copy, number) in &copies {
            // SAFETY: dup2 takes plain numbers; the source is owned by this closure, and whatever the child
            // has at the target is a copy of no further use to it.
            if unsafe { libc::dup2(copy.as_raw_fd(), *number) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        SigSet::empty().thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure only makes the system calls dup2 and sigprocmask, which are
    // async-signal-safe, and neither allocates nor locks.
    unsafe { command.pre_exec(place) };
    let child = command.spawn();
    drop(fillers);
    child
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_at_their_numbers() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut other, other_theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat <&5 >&3"]);
        let mut child = spawn(command, &[(theirs.as_fd(), 5), (other_theirs.as_fd(), 3)]).unwrap();
        drop((theirs, other_theirs));
        ours.write_all(b"through").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn missing_program_is_reported() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = spawn(Command::new("/nonexistent/program"), &[(ours.as_fd(), 5)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
