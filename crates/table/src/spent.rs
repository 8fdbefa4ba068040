//! Where the time of an operation went, told by whoever knows to whoever asks, without a place in every signature.
//!
//! While an operation is at work on a thread, and while its completion runs, [`current`] is what it has spent so far on
//! other things than its own work.

use std::cell::Cell;
use std::time::Duration;

/// What an operation has spent on waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Waiting for a thread, or for a connection that others use.
    pub queue: Duration,
    /// Connecting to a server, names of hosts and passwords included.
    pub connect: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.queue += other.queue;
        self.connect += other.connect;
    }
}

thread_local! {
    static CURRENT: Cell<Spent> = const {
        Cell::new(Spent { queue: Duration::ZERO, connect: Duration::ZERO })
    };
}

/// What the operation on this thread has spent so far.
pub fn current() -> Spent {
    CURRENT.get()
}

/// The operation on this thread has spent more.
pub fn add(more: Spent) {
    let mut spent = current();
    spent += more;
    CURRENT.set(spent);
}

/// Works on an operation that has spent `so_far` already.
pub fn scope<T>(so_far: Spent, work: impl FnOnce() -> T) -> T {
    /// Also when the work panics.
    struct Restore(Spent);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(so_far));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(milliseconds: u64) -> Spent {
        Spent {
            queue: Duration::from_millis(milliseconds),
            ..Spent::default()
        }
    }

    #[test]
    fn each_operation_has_its_own() {
        assert_eq!(current(), Spent::default());
        let seen = scope(queue(5), || {
            add(queue(2));
            scope(queue(100), || add(queue(1)));
            current()
        });
        assert_eq!(seen, queue(7));
        let _ = std::panic::catch_unwind(|| scope(queue(5), || panic!("expected")));
        assert_eq!(current(), Spent::default());
    }
}
