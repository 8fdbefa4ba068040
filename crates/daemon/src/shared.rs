//! What the control thread and the workers share: flags, counts, and the mailbox of each worker.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use postkeep_sys::readiness::Bell;

use crate::census::Counted;
use crate::eviction::Eviction;
use crate::limits::{Complaints, Limits};
use crate::metrics::Trace;
use crate::statistics::{Cause, Counters, Statistics};
use crate::status::StatusChannel;
use crate::waker::Wake;

/// Of the whole process.
pub(crate) struct Shared {
    /// Wakes the control thread.
    pub(crate) bell: Bell,
    pub(crate) counters: Counters,
    /// Open connections, handovers included.
    pub(crate) clients: AtomicUsize,
    /// Connections that were served and have ended.
    pub(crate) used: AtomicU64,
    /// Somebody wants the process to finish what it has begun, and go.
    pub(crate) leave: AtomicBool,
    /// Somebody wants the process to serve the clients it has, and no others.
    pub(crate) drain: AtomicBool,
    /// Set before the first client comes.
    pub(crate) status: OnceLock<StatusChannel>,
    /// What is to be removed when the process ends; set before the first client comes.
    pub(crate) traces: OnceLock<Vec<Trace>>,
    /// `daemon_timeout`.
    pub(crate) patience: Duration,
    pub(crate) limits: Limits,
    pub(crate) complaints: Complaints,
    /// A client has made room.
    pub(crate) room: AtomicBool,
}

impl Shared {
    pub(crate) fn new(patience: Duration, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            bell: Bell::new()?,
            counters: Counters::default(),
            clients: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            leave: AtomicBool::new(false),
            drain: AtomicBool::new(false),
            status: OnceLock::new(),
            traces: OnceLock::new(),
            patience,
            limits,
            complaints: Complaints::default(),
            room: AtomicBool::new(false),
        })
    }

    /// A connection has ended; wakes the control thread when it was the last.
    pub(crate) fn gone(&self, cause: Cause, served: bool) {
        self.counters.closed(cause);
        if served {
            // As in the reference the count stops at the largest int.
            let _ = self
                .used
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                    (used < i32::MAX.unsigned_abs().into()).then_some(used + 1)
                });
        }
        if self.clients.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.bell.ring();
        }
    }
}

/// A handle on the running process, for hooks and for other threads. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
}

impl Control {
    /// Has the loop hook ([`Service::before_wait`](crate::Service::before_wait)) called soon, because the time
    /// it named last is no longer right.
    pub fn nudge(&self) {
        self.shared.bell.ring();
    }

    /// Stops accepting, closes the listening sockets, and ends the process (exit hook, status 0) when the last
    /// client has gone. Further calls do nothing.
    ///
    /// The reference drains by forking: its parent process ends at once and the child stays with the clients.
    /// A process with threads cannot do that; it keeps its number, and its place in master's books, until the
    /// clients have gone.
    ///
    /// # References
    /// Postfix `multi_server.c`, `multi_server_drain()`.
    pub fn drain(&self) {
        self.shared.drain.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }

    /// Ends the process as a disconnected master does: requests in progress are finished, idle clients are
    /// dropped, the exit hook runs, the status is 0.
    pub fn leave(&self) {
        self.shared.leave.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }

    /// What has been counted so far.
    pub fn statistics(&self) -> Statistics {
        self.shared
            .counters
            .read(self.shared.clients.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.statistics()).finish()
    }
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A connection to serve. With `resume`, nothing is read from it before then (flow control).
    Client {
        socket: OwnedFd,
        resume: Option<Instant>,
        counted: Option<Counted>,
    },
    /// A connection over which another process hands a client over (`pass`).
    Handover {
        socket: OwnedFd,
        counted: Option<Counted>,
    },
    /// A client wants a turn.
    Wake(u64),
    /// Finish what has begun, and end.
    Leave,
    /// Somebody has to make room: name the client that can best be done without.
    Shed {
        eviction: Arc<Eviction>,
        worker: usize,
    },
    /// This client makes room, if it still has said nothing since then.
    Evict { token: u64, since: Instant },
}

/// How others reach a worker, and see how it is.
pub(crate) struct Mailbox {
    pub(crate) bell: Bell,
    messages: Mutex<Vec<Message>>,
    /// Connections of this worker, those in the mailbox included.
    pub(crate) clients: AtomicUsize,
    /// The worker has left.
    pub(crate) finished: AtomicBool,
    pub(crate) pulse: Pulse,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            bell: Bell::new()?,
            messages: Mutex::new(Vec::new()),
            clients: AtomicUsize::new(0),
            finished: AtomicBool::new(false),
            pulse: Pulse::default(),
        })
    }

    pub(crate) fn post(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = messages.is_empty();
        messages.push(message);
        drop(messages);
        // Whoever found it empty rings; the worker takes all messages after silencing the bell.
        if was_empty {
            self.bell.ring();
        }
    }

    /// Takes what has been posted, into `taken`.
    pub(crate) fn collect(&self, taken: &mut Vec<Message>) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *messages, taken);
    }
}

impl Wake for Mailbox {
    fn wake(&self, token: u64) {
        self.post(Message::Wake(token));
    }
}

/// When the present turn of a loop began; for the watchdog.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Milliseconds after [`Pulse::zero`], plus one; 0 while the loop waits.
    began: AtomicU64,
}

impl Pulse {
    fn zero() -> Instant {
        static ZERO: OnceLock<Instant> = OnceLock::new();
        *ZERO.get_or_init(Instant::now)
    }

    fn stamp(now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(Self::zero()).as_millis())
            .unwrap_or(u64::MAX - 1)
            + 1
    }

    /// A turn begins.
    pub(crate) fn begin(&self, now: Instant) {
        self.began.store(Self::stamp(now), Ordering::Relaxed);
    }

    /// The loop waits.
    pub(crate) fn rest(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// How long the present turn has taken.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        match self.began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis(Self::stamp(now).saturating_sub(began)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_client_to_go_rings() {
        let shared = Shared::new(Duration::from_secs(3), Limits::default()).unwrap();
        shared.clients.store(2, Ordering::SeqCst);
        let rings = || {
            let bell = postkeep_sys::readiness::wait_for(
                &shared.bell,
                postkeep_sys::readiness::Interest::Read,
                Some(Duration::ZERO),
            );
            bell.unwrap()
        };
        shared.gone(Cause::Peer, true);
        assert!(!rings());
        shared.gone(Cause::Peer, false);
        assert!(rings());
        assert_eq!(shared.used.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_pulse_rests_and_runs() {
        let pulse = Pulse::default();
        // Nothing is older than the first question.
        Pulse::zero();
        let now = Instant::now();
        assert_eq!(pulse.elapsed(now), Duration::ZERO);
        pulse.begin(now);
        assert_eq!(pulse.elapsed(now + Duration::from_secs(2)).as_secs(), 2);
        pulse.rest();
        assert_eq!(pulse.elapsed(now + Duration::from_secs(2)), Duration::ZERO);
    }
}
