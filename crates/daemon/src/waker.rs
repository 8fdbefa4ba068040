//! Giving a parked client its next turn.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use postkeep_sys::socket;

/// Something that can be woken about a client: a worker, or the loop of one-shot mode.
pub(crate) trait Wake: Send + Sync {
    /// Gives the client of this token a turn soon. A token of a client that has gone means nothing.
    fn wake(&self, token: u64);
}

/// Gives one client another turn, from any thread.
///
/// Cheap to clone. Waking a client that is not parked gives it a turn without news; waking one that has gone
/// does nothing. A wake-up before the client parks is not lost.
#[derive(Clone)]
pub struct Waker {
    target: Arc<dyn Wake>,
    token: u64,
    /// The client itself, as long as its worker has it.
    socket: Weak<OwnedFd>,
}

impl Waker {
    pub(crate) fn new(target: Arc<dyn Wake>, token: u64, socket: Weak<OwnedFd>) -> Self {
        Self {
            target,
            token,
            socket,
        }
    }

    /// A waker that wakes nobody, for tests of services.
    pub fn noop() -> Self {
        struct Nobody;
        impl Wake for Nobody {
            fn wake(&self, _: u64) {}
        }
        Self::new(Arc::new(Nobody), 0, Weak::new())
    }

    /// Gives the client its turn.
    pub fn wake(&self) {
        self.target.wake(self.token);
    }

    /// Sends the client a reply before its turn, and says how many bytes of it went out; the rest is for the turn, as is
    /// what the reply changes in what the service remembers. Wake the client after that.
    ///
    /// Whoever has the reply sends it so without the client waiting for its worker to wake. Allowed while the client is
    /// parked, and only if its outbox was empty when it was: else replies get in each other's way. Never waits.
    /// When nothing can be sent, for whatever reason, nothing is, and the turn will see why.
    pub fn reply_early(&self, bytes: &[u8]) -> usize {
        self.socket
            .upgrade()
            .and_then(|socket| socket::send(&socket, bytes).ok())
            .unwrap_or(0)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waker").field(&self.token).finish()
    }
}
