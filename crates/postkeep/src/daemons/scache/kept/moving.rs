//! What becomes of the sessions when the process ends: they stay behind in a copy of it, until the next process asks
//! for them or their time is up.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fmt, io};

use log::{info, warn};
use postkeep_scache::{MovingBinding, MovingSession, SharedCache as _};
use postkeep_sys::process::{self, Half};
use postkeep_sys::readiness::{Events, Interest};
use postkeep_sys::socket;

use super::{EVENTS, Kept, Lingering, PREDECESSOR, SUCCESSOR, TERMINATION};
use crate::handover::{Broken, Giver, Line, Taker, give, greet, take};

/// How long a new process lets its clients wait for what the one before has.
const PATIENCE: Duration = Duration::from_millis(300);

impl Kept {
    /// Whether there is nothing that a successor could take over.
    pub(in super::super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.cache.sessions() == 0 && state.cache.bindings() == 0
    }

    /// SIGTERM asks for an orderly end from now on when there are sessions, once.
    pub(in super::super) fn end_with(&self, end: impl Fn() + Send + Sync + 'static) {
        let _ = self.ask_for_end.set(Box::new(end));
    }

    /// Has the thread end itself; all sessions stay, and are to be looked after by [`Kept::stay_behind`].
    pub(in super::super) fn stop(&self) {
        self.staying.store(true, Ordering::SeqCst);
        self.leave();
    }

    /// Makes a copy of the process in which nobody else has the cache: those that look at it only, for statistics, are
    /// the last other threads.
    pub(in super::super) fn split(&self) -> io::Result<Half> {
        let _alone = self.lock();
        process::split()
    }

    /// Ends all sessions, with a word to their far ends; after [`Kept::stop`], when the thread has ended.
    pub(in super::super) fn end(&self) {
        self.staying.store(false, Ordering::SeqCst);
        self.look_after();
    }

    /// Ends the process as SIGTERM does, if that is why it ends.
    pub(in super::super) fn die_if_terminated(&self) {
        if self.terminated.load(Ordering::SeqCst)
            && let Some(termination) = &self.termination
        {
            termination.die();
        }
    }

    /// Takes over what the process at the other end has: at once, or later if it is not about to end yet.
    pub(in super::super) fn succeed(&self, predecessor: UnixStream) {
        let line = Line::new(predecessor).and_then(|line| {
            greet(&line)?;
            Ok(line)
        });
        match line {
            Ok(line) => {
                let ready = line.is_ready(PATIENCE);
                if ready || self.poller.add(&line, PREDECESSOR, Interest::Read).is_ok() {
                    *self.predecessor() = Some(line);
                }
                if ready {
                    self.take_over();
                }
            }
            // It ended just now.
            Err(Broken::Gone) => {}
            Err(broken) => warn!("no sessions from the process before: {broken}"),
        }
    }

    /// Takes what the process before this one hands over.
    pub(super) fn take_over(&self) {
        let Some(mut line) = self.predecessor().take() else {
            return;
        };
        let _ = self.poller.remove(&line);
        match take(&mut line, self) {
            Ok(0) | Err(Broken::Gone) => {}
            Ok(count) => info!("took over {count} sessions from the process before"),
            Err(broken) => warn!("not all sessions from the process before: {broken}"),
        }
    }

    /// Looks after what is left, in a copy of the process, until nothing is left or the time has come to end all;
    /// hands it over to whoever comes.
    pub(in super::super) fn stay_behind(&self, listener: &UnixListener, until: Instant) {
        // What the copy has of the signal has to be waited for anew.
        if let Some(termination) = &self.termination {
            let _ = self.poller.remove(termination);
            let _ = self.poller.add(termination, TERMINATION, Interest::Read);
        }
        // The second SIGTERM is the first that this process gets.
        self.terminated.store(true, Ordering::SeqCst);
        let _ = self.poller.add(listener, SUCCESSOR, Interest::Read);
        let mut events = Events::new(EVENTS);
        let mut lingering = Lingering::default();
        loop {
            let now = Instant::now();
            if now >= until {
                let ended = self.lock().cache.shut_down();
                self.part(ended, &mut lingering, now);
            }
            let late = now >= until;
            let done = late || self.is_empty();
            if self.turn(&mut events, &mut lingering, done, (!late).then_some(until)) {
                return;
            }
            let came = |token| events.ready().iter().any(|ready| ready.token == token);
            if came(SUCCESSOR)
                && let Ok(successor) = socket::accept(listener)
            {
                self.hand_over(successor.into());
            }
        }
    }

    fn hand_over(&self, successor: UnixStream) {
        match Line::new(successor).and_then(|mut line| give(&mut line, self)) {
            Ok(count) => info!("handed over {count} sessions to the next process"),
            Err(broken) => warn!("not all sessions were handed over: {broken}"),
        }
    }

    fn predecessor(&self) -> std::sync::MutexGuard<'_, Option<Line>> {
        self.predecessor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn clock_now(&self) -> Duration {
        self.clock(Instant::now())
    }
}

impl Giver for Kept {
    fn give(&self) -> Vec<MovingSession<OwnedFd>> {
        let now = self.clock_now();
        let given = self.lock().cache.give(now);
        for session in &given {
            // The other process has the connection when our copy is closed, so that would not do.
            let _ = self.poller.remove(&session.handle);
        }
        given
    }

    fn give_bindings(&self) -> Vec<MovingBinding> {
        let now = self.clock_now();
        self.lock().cache.give_bindings(now)
    }

    fn take_back(&self, sessions: Vec<MovingSession<OwnedFd>>) {
        let now = self.clock_now();
        self.with(|cache| {
            for session in cache.take_back(now, sessions) {
                if let Some(handle) = cache.handle(session)
                    && self.liveness
                    && self.add(session, handle)
                {
                    cache.is_watched(session);
                }
            }
        });
    }

    fn take_bindings_back(&self, bindings: Vec<MovingBinding>) {
        self.receive_bindings(bindings);
    }
}

impl Taker for Kept {
    fn receive(&self, sessions: Vec<MovingSession<OwnedFd>>) {
        let now = self.clock_now();
        for session in sessions {
            if let Err(why) = self.admit(&session.handle) {
                self.with(|cache| cache.refused(why));
                continue;
            }
            // One that finds no place is closed outside.
            let refused = self.with(|cache| {
                let saved = match cache.receive(now, session) {
                    Ok(saved) => saved,
                    Err(refused) => return Some(refused),
                };
                if let Some(handle) = cache.handle(saved)
                    && self.watch(saved, handle)
                {
                    cache.is_watched(saved);
                }
                None
            });
            drop(refused);
        }
    }

    fn receive_bindings(&self, bindings: Vec<MovingBinding>) {
        let now = self.clock_now();
        for binding in bindings {
            // One that finds no place is not needed to find anything.
            let _ = self.with(|cache| cache.receive_binding(now, &binding));
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").field(&self.counted()).finish()
    }
}
