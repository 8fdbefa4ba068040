//! A moment between SIGTERM and the end of the process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM as a descriptor: readable when the signal has come.
#[derive(Debug)]
pub struct Termination {
    descriptor: SignalFd,
}

impl Termination {
    /// Holds SIGTERM back in this thread and in all threads that it starts from now on. In a process with other
    /// threads it ends the process all the same, at once.
    ///
    /// Whoever calls this has to watch the descriptor, and call [`Termination::die`] when it is readable.
    ///
    /// # Errors
    /// signalfd(2) or `pthread_sigmask(3)` failed; the signal then does what it did before.
    pub fn hold() -> io::Result<Self> {
        Self::hold_all(&set())
    }

    /// The same with SIGINT, which control-C sends, for commands that have something to say at the end.
    ///
    /// # Errors
    /// As of [`Termination::hold`].
    pub fn hold_with_interrupt() -> io::Result<Self> {
        let mut signals = set();
        signals.add(Signal::SIGINT);
        Self::hold_all(&signals)
    }

    fn hold_all(signals: &SigSet) -> io::Result<Self> {
        let descriptor =
            SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        signals.thread_block()?;
        Ok(Self { descriptor })
    }

    /// Takes the signal, so that the next one can be told from it; false when none has come.
    pub fn take(&self) -> bool {
        matches!(self.descriptor.read_signal(), Ok(Some(_)))
    }

    /// Ends the process as the signal would have, so that its parent sees no difference.
    pub fn die(&self) -> ! {
        // Raised for this thread, and so delivered before the call returns.
        let _ = set().thread_unblock();
        let _ = raise(Signal::SIGTERM);
        // Only when the signal is ignored.
        std::process::exit(1)
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn set() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::{Interest, wait_for};

    #[test]
    fn a_signal_that_is_held_is_seen() {
        let termination = Termination::hold().unwrap();
        raise(Signal::SIGTERM).unwrap();
        assert!(wait_for(&termination, Interest::Read, None).unwrap());
        // This thread has it; it goes with the thread.
        assert!(termination.take());
        assert!(!termination.take());
    }
}
