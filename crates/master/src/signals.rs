//! The signals that the stand-in acts on, as events of its loop.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::MasterError;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A child changed its state.
    Child,
    /// Replace the services.
    Reload,
    /// Stop everything.
    Stop,
}

/// Signals that wait to be read.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals for this thread and lets them be read instead.
    pub(crate) fn take() -> Result<Self, MasterError> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGHUP,
            Signal::SIGTERM,
            Signal::SIGINT,
        ] {
            set.add(signal);
        }
        set.thread_block()
            .map_err(|error| MasterError::system("block signals", error))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Self)
            .map_err(|error| MasterError::system("read signals", error))
    }

    /// The next signal, if there is one.
    pub(crate) fn next(&self) -> Option<Request> {
        let signal = self.0.read_signal().ok().flatten()?;
        Some(match Signal::try_from(signal.ssi_signo.cast_signed()) {
            Ok(Signal::SIGCHLD) => Request::Child,
            Ok(Signal::SIGHUP) => Request::Reload,
            _ => Request::Stop,
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
