//! Giving a parked client its next turn.

use std::fmt;
use std::sync::Arc;

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
}

impl Waker {
    pub(crate) fn new(target: Arc<dyn Wake>, token: u64) -> Self {
        Self { target, token }
    }

    /// A waker that wakes nobody, for tests of services.
    pub fn noop() -> Self {
        struct Nobody;
        impl Wake for Nobody {
            fn wake(&self, _: u64) {}
        }
        Self::new(Arc::new(Nobody), 0)
    }

    /// Gives the client its turn.
    pub fn wake(&self) {
        self.target.wake(self.token);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waker").field(&self.token).finish()
    }
}
