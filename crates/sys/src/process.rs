//! Facts about this process and small changes to it.
#![allow(
    unsafe_code,
    reason = "nix::sys::signal::signal is unsafe for handlers; SIG_IGN and SIG_DFL are none. fork is unsafe for \
              threads that hold locks"
)]

use std::ffi::OsString;
use std::io;
use std::marker::PhantomData;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;

/// Signals that [`ignore`] can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Writing where nobody reads: the write reports it as well.
    BrokenPipe,
    /// A file grew over its limit: the write reports it as well.
    FileSize,
}

/// Ignores a signal in this process and, unless they say otherwise, its children.
///
/// # Errors
/// sigaction(2) failed.
pub fn ignore(signal: Ignored) -> io::Result<()> {
    let signal = match signal {
        Ignored::BrokenPipe => Signal::SIGPIPE,
        Ignored::FileSize => Signal::SIGXFSZ,
    };
    // SAFETY: no handler is installed; ignoring runs no code.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }?;
    Ok(())
}

/// Gives SIGPIPE its default action back, for commands whose output is piped.
///
/// # Errors
/// sigaction(2) failed.
pub fn restore_broken_pipe() -> io::Result<()> {
    // SAFETY: no handler is installed; the default action ends the process.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// Which of two processes this is, after [`split`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The one that was there before.
    Parent,
    /// The new one, with copies of all that the other had, and this thread only.
    Child,
}

/// Makes a copy of this process, in which only the calling thread goes on. Nobody waits for the copy: it belongs to
/// process 1 when this one has ended.
///
/// Call it when all other threads have ended, or wait and hold no lock that the copy may want: a lock that another
/// thread holds at this moment stays locked there for ever. (The C library sees to its own.)
///
/// # Errors
/// fork(2) failed, or is forbidden.
pub fn split() -> io::Result<Half> {
    // SAFETY: the child goes on like any thread, which is sound in Rust as long as the memory is as it was; what
    // other threads did to it under locks stays locked, which can hang the child and no more.
    Ok(match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Half::Parent,
        nix::unistd::ForkResult::Child => Half::Child,
    })
}

/// Lets go of the standard streams, so that nobody waits for their end: what is written to them is lost.
///
/// # Errors
/// The system has no descriptors left.
pub fn leave_streams() -> io::Result<()> {
    let (nowhere, _) = std::os::unix::net::UnixStream::pair()?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    Ok(())
}

/// Leads a new session and process group, so that signals to the parent's group miss this process.
///
/// # Errors
/// The process already leads a group.
pub fn new_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Sets the mode bits that new files do not get; returns the former ones.
pub fn set_umask(mask: u32) -> u32 {
    nix::sys::stat::umask(Mode::from_bits_truncate(mask)).bits()
}

/// Signals that would end this process wait until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct HeldSignals {
    before: SigSet,
    /// A thread has its own mask.
    not_send: PhantomData<*const ()>,
}

/// Holds back SIGHUP, SIGINT, SIGQUIT and SIGTERM in this thread (Postfix `src/util/sigdelay.c`).
///
/// They reach the process all the same when it has another thread that lets them through.
///
/// # Errors
/// `pthread_sigmask(3)` failed.
pub fn hold_signals() -> io::Result<HeldSignals> {
    let mut held = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ] {
        held.add(signal);
    }
    let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    Ok(HeldSignals {
        before,
        not_send: PhantomData,
    })
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // It was the mask before, so it can be set.
        let _ = self.before.thread_set_mask();
    }
}

/// The name of this machine, as the kernel knows it.
///
/// # Errors
/// gethostname(2) failed.
pub fn host_name() -> io::Result<OsString> {
    Ok(nix::unistd::gethostname()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_show_in_the_process_status() {
        ignore(Ignored::BrokenPipe).unwrap();
        ignore(Ignored::FileSize).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .map(|hex| u64::from_str_radix(hex.trim(), 16).unwrap())
            .unwrap();
        let bit = |signal: libc::c_int| 1u64 << (signal - 1);
        assert_eq!(mask & bit(libc::SIGPIPE), bit(libc::SIGPIPE));
        assert_eq!(mask & bit(libc::SIGXFSZ), bit(libc::SIGXFSZ));
    }

    #[test]
    fn held_signals_wait_and_come_afterwards() {
        let blocked = || {
            let mask = SigSet::thread_get_mask().unwrap();
            (
                mask.contains(Signal::SIGTERM),
                mask.contains(Signal::SIGUSR1),
            )
        };
        let outer = hold_signals().unwrap();
        let inner = hold_signals().unwrap();
        drop(inner);
        assert_eq!(blocked(), (true, false));
        drop(outer);
        assert_eq!(blocked(), (false, false));
    }

    #[test]
    fn a_copy_goes_on_with_what_there_was() {
        use std::io::{Read as _, Write as _};
        let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = 7_u8;
        if split().unwrap() == Half::Child {
            let _ = theirs.write_all(&[number]);
            // Nothing of the test program is to run in here.
            let _ = nix::sys::signal::raise(Signal::SIGKILL);
        }
        drop(theirs);
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, [7]);
    }

    #[test]
    fn there_is_a_host_name() {
        assert!(!host_name().unwrap().is_empty());
    }
}
