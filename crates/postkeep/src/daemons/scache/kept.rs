//! The sessions of the connection cache, and the thread that looks after them.
//!
//! Sessions are in one epoll set until they are found or end: from the moment they are saved, or, when many are
//! saved, a little later, so that those that are found again at once cost nothing. Whatever is found is looked at
//! first. The thread waits for what is heard of any of them and for the next expiry; it alone closes sessions, and says
//! goodbye to their far ends. Clients' threads never do: they leave what ended in the cache, and wake it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_scache::{
    Cache, Cause, Counters, Death, Ended, Rules, SessionId, SharedCache, Statistics, Unfit,
};
use postkeep_sys::idle::{self, FarEnd, Heard};
use postkeep_sys::readiness::{Bell, Events, Interest, Poller, Ready};
use postkeep_sys::socket;
use postkeep_sys::termination::Termination;

use crate::handover::Line;

/// The token of the thread's own bell.
const BELL: u64 = u64::MAX;
/// The token of SIGTERM.
const TERMINATION: u64 = u64::MAX - 1;
/// The token of the process before this one.
const PREDECESSOR: u64 = u64::MAX - 2;
/// The token of the socket at which the process after this one connects.
const SUCCESSOR: u64 = u64::MAX - 3;
/// Tokens from here on are no sessions.
const RESERVED: u64 = SUCCESSOR;
/// Descriptors taken from one wait.
const EVENTS: usize = 256;
/// Sessions that are examined without letting others have the cache in between.
const BATCH: usize = 32;
/// How long a far end may take to answer a goodbye before the connection is closed all the same.
const LINGER: Duration = Duration::from_secs(2);
/// The same when the process waits for it.
const LAST_LINGER: Duration = Duration::from_millis(100);
/// Sessions that are saved within this time of each other are not watched before it has passed: most of them are
/// found again sooner.
const FRESH: Duration = Duration::from_millis(10);
/// Sessions that may be so put off.
const MOST_FRESH: usize = 4096;
/// How long to look away from a descriptor that is said to be ready, and is not or not any more.
const PAUSE: Duration = Duration::from_millis(1);

/// The sessions and who looks after them.
pub(super) struct Kept {
    state: Mutex<State>,
    poller: Poller,
    bell: Bell,
    /// Locked after `state`, where both are.
    fresh: Mutex<Fresh>,
    /// The zero of the cache's clock.
    epoch: Instant,
    liveness: bool,
    /// SIGTERM, when there is something to be said before the end.
    termination: Option<Termination>,
    /// Last component of the path at which clients find this service.
    own_name: Vec<u8>,
    /// Connections that may wait for the answer to a goodbye at one time.
    most_lingering: usize,
    leaving: AtomicBool,
    /// Sessions are to stay when the thread leaves.
    staying: AtomicBool,
    /// Has sessions that it will hand over when it ends.
    predecessor: Mutex<Option<Line>>,
    /// Asks for an orderly end of the process; without it SIGTERM ends the process at once.
    ask_for_end: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// SIGTERM has come, and an orderly end was asked for.
    terminated: AtomicBool,
    said: AtomicU64,
    not_said: AtomicU64,
}

#[derive(Debug)]
struct State {
    cache: Cache<OwnedFd>,
    /// When the thread will look at the cache without being woken; `None`: never.
    wakes: Option<Duration>,
}

/// Sessions that are still to be watched.
#[derive(Debug)]
struct Fresh {
    sessions: Vec<SessionId>,
    /// When they will be.
    due: Option<Instant>,
    /// When the last session was saved.
    saved: Option<Instant>,
}

/// What was counted, for whoever wants to show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Sessions, by what became of them.
    pub(super) sessions: Counters,
    /// Goodbyes that were sent.
    pub(super) said: u64,
    /// Goodbyes for which the connection had no room, or that found it broken.
    pub(super) not_said: u64,
    /// Sessions in the cache now.
    pub(super) now: usize,
    /// Bindings in the cache now.
    pub(super) bindings: usize,
    /// Destinations that have one.
    pub(super) destinations: usize,
    /// Endpoints that have a session.
    pub(super) endpoints: usize,
}

impl Kept {
    /// An empty cache.
    ///
    /// - `liveness`: whether far ends are watched; else a session is whatever a client says it is
    /// - `termination`: SIGTERM, so that it can wait for goodbyes
    /// - `own_name`: last component of the path at which clients find this service
    /// - `most_lingering`: connections that may wait for the answer to a goodbye at one time
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub(super) fn new(
        rules: Rules,
        liveness: bool,
        termination: Option<Termination>,
        own_name: &str,
        most_lingering: usize,
        epoch: Instant,
    ) -> io::Result<Self> {
        let (poller, bell) = (Poller::new()?, Bell::new()?);
        poller.add(&bell, BELL, Interest::Read)?;
        if let Some(termination) = &termination {
            poller.add(termination, TERMINATION, Interest::Read)?;
        }
        Ok(Self {
            state: Mutex::new(State {
                cache: Cache::new(rules),
                // Until the thread has looked for the first time it need not be told to.
                wakes: Some(Duration::ZERO),
            }),
            poller,
            bell,
            fresh: Mutex::new(Fresh {
                sessions: Vec::new(),
                due: None,
                saved: None,
            }),
            epoch,
            liveness,
            termination,
            own_name: own_name.as_bytes().to_vec(),
            most_lingering,
            leaving: AtomicBool::new(false),
            staying: AtomicBool::new(false),
            predecessor: Mutex::new(None),
            ask_for_end: OnceLock::new(),
            terminated: AtomicBool::new(false),
            said: AtomicU64::new(0),
            not_said: AtomicU64::new(0),
        })
    }

    /// The cache's clock.
    pub(super) fn clock(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Ends a reporting interval.
    pub(super) fn take_statistics(&self) -> Statistics {
        self.lock().cache.take_statistics()
    }

    /// What has been counted since the process began.
    pub(super) fn counted(&self) -> Counted {
        let state = self.lock();
        Counted {
            sessions: *state.cache.counters(),
            said: self.said.load(Ordering::Relaxed),
            not_said: self.not_said.load(Ordering::Relaxed),
            now: state.cache.sessions(),
            bindings: state.cache.bindings(),
            destinations: state.cache.destinations(),
            endpoints: state.cache.endpoints(),
        }
    }

    /// Has the thread end all sessions, and then itself; it takes at most a moment longer than saying goodbye.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    /// Looks after the sessions until told to leave or to stop, or until SIGTERM ends the process.
    pub(super) fn look_after(&self) {
        let mut events = Events::new(EVENTS);
        let mut lingering = Lingering::default();
        loop {
            let leaving = self.leaving.load(Ordering::SeqCst);
            let staying = self.staying.load(Ordering::SeqCst);
            let now = Instant::now();
            if leaving {
                if !staying {
                    let ended = self.lock().cache.shut_down();
                    self.part(ended, &mut lingering, now);
                }
                lingering.hurry(now + LAST_LINGER);
            }
            if self.turn(&mut events, &mut lingering, leaving, None) {
                return;
            }
        }
    }

    /// Waits for what comes next, and sees to it; true when there is nothing to wait for any more.
    ///
    /// - `leaving`: those who were told goodbye are all that is waited for
    /// - `until`: not to wait for longer
    fn turn(
        &self,
        events: &mut Events,
        lingering: &mut Lingering,
        leaving: bool,
        until: Option<Instant>,
    ) -> bool {
        let fresh = self.watch_fresh(Instant::now());
        let next = self.expire(lingering);
        let now = Instant::now();
        lingering.close_late(&self.poller, now);
        if leaving && lingering.is_empty() {
            return true;
        }
        let expiry = next.map(|next| self.epoch + next);
        let until = expiry
            .into_iter()
            .chain(lingering.next())
            .chain(fresh)
            .chain(until)
            .min();
        let limit = until.map(|until| until.saturating_duration_since(now));
        if let Err(error) = self.poller.wait(events, limit) {
            log::warn!("epoll_wait: {}", postkeep_sys::error_text(&error));
            std::thread::sleep(PAUSE);
        }
        for ready in events.ready() {
            match ready.token {
                TERMINATION => self.terminate(lingering),
                PREDECESSOR => self.take_over(),
                _ => {}
            }
        }
        self.hear(events.ready(), lingering);
        false
    }

    /// SIGTERM has come: ends the process, with a word to all; or has it end in good order, when there is something
    /// that a successor can take over.
    fn terminate(&self, lingering: &mut Lingering) {
        let Some(termination) = &self.termination else {
            return;
        };
        if let Some(ask_for_end) = self.ask_for_end.get()
            && !self.is_empty()
            && !self.terminated.swap(true, Ordering::SeqCst)
        {
            termination.take();
            ask_for_end();
            return;
        }
        // As when told to leave; nobody waits for anything more.
        let ended = self.lock().cache.shut_down();
        self.part(ended, lingering, Instant::now());
        termination.die();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is due, in portions, and parts with what has ended; says when the next is due.
    fn expire(&self, lingering: &mut Lingering) -> Option<Duration> {
        loop {
            let now = Instant::now();
            let clock = self.clock(now);
            let (ended, next) = {
                let mut state = self.lock();
                let ended = state.cache.expire(clock);
                let next = state.cache.next_expiry();
                state.wakes = next;
                (ended, next)
            };
            self.part(ended, lingering, now);
            if next.is_none_or(|next| next > clock) {
                return next;
            }
            // Thousands that are due at once take a while; clients need the processor meanwhile.
            thread::yield_now();
        }
    }

    /// Watches the sessions that were put off, when it is time; says when it will be.
    fn watch_fresh(&self, now: Instant) -> Option<Instant> {
        let sessions = {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            if fresh.due.is_none_or(|due| due > now) {
                return fresh.due;
            }
            fresh.due = None;
            std::mem::take(&mut fresh.sessions)
        };
        for portion in sessions.chunks(BATCH) {
            let mut state = self.lock();
            for &session in portion {
                if let Some(handle) = state.cache.handle(session)
                    && self.add(session, handle)
                {
                    state.cache.is_watched(session);
                }
            }
        }
        None
    }

    /// False when the system cannot watch it; it is still looked at before it is handed out.
    fn add(&self, session: SessionId, handle: &OwnedFd) -> bool {
        self.poller
            .add(handle, session.token(), Interest::Read)
            .is_ok()
    }

    /// Finds out what was heard of which session.
    fn hear(&self, ready: &[Ready], lingering: &mut Lingering) {
        for ready in ready {
            if ready.token == BELL {
                self.bell.silence();
            } else if Lingering::is_token(ready.token) {
                lingering.heard(&self.poller, ready);
            }
        }
        let mut idle = false;
        for portion in ready.chunks(BATCH) {
            let mut state = self.lock();
            for ready in portion {
                if ready.token >= RESERVED || Lingering::is_token(ready.token) {
                    continue;
                }
                let session = SessionId::from_token(ready.token);
                let mut examine = |handle: &OwnedFd| {
                    // What is ready for ever for a reason that cannot be read away is not good either.
                    examine(handle).or_else(|| ready.hung_up.then_some(Death::Broken))
                };
                idle |= !state.cache.examine(session, &mut examine);
            }
            let ended = state.cache.take_ended();
            drop(state);
            self.part(ended, lingering, Instant::now());
        }
        if idle {
            // It was found a moment ago, and will be out of the set in another.
            std::thread::sleep(PAUSE);
        }
    }

    /// Says goodbye where it is due, and closes; nothing here waits.
    fn part(&self, ended: Vec<Ended<OwnedFd>>, lingering: &mut Lingering, now: Instant) {
        for Ended {
            handle,
            cause,
            goodbye,
        } in ended
        {
            // Somebody else may have it open still, and then closing our copy does not take it out.
            let _ = self.poller.remove(&handle);
            if let Some(words) = goodbye {
                if matches!(socket::send(&handle, &words), Ok(count) if count == words.len()) {
                    self.said.fetch_add(1, Ordering::Relaxed);
                    let _ = idle::finish_sending(&handle);
                    if lingering.len() < self.most_lingering {
                        lingering.add(&self.poller, handle, now + LINGER);
                    }
                } else {
                    self.not_said.fetch_add(1, Ordering::Relaxed);
                }
            } else if cause == Cause::Dead(Death::Unsolicited) {
                idle::discard(&handle);
            }
        }
    }
}

/// Whether a session has died.
fn examine(handle: &OwnedFd) -> Option<Death> {
    match idle::listen(handle) {
        Heard::Nothing => None,
        Heard::Bytes => Some(Death::Unsolicited),
        Heard::End => Some(Death::Closed),
        Heard::Failure => Some(Death::Broken),
    }
}

impl SharedCache<OwnedFd> for Kept {
    fn with<R>(&self, operation: impl FnOnce(&mut Cache<OwnedFd>) -> R) -> R {
        let mut state = self.lock();
        let outcome = operation(&mut state.cache);
        let next = state.cache.next_expiry();
        let late = next.is_some_and(|next| state.wakes.is_none_or(|wakes| next < wakes));
        if late {
            state.wakes = next;
        }
        drop(state);
        if late {
            self.bell.ring();
        }
        outcome
    }

    fn admit(&self, handle: &OwnedFd) -> Result<(), Unfit> {
        if !self.liveness {
            return Ok(());
        }
        match idle::far_end(handle) {
            Err(_) => Err(Unfit::NotConnected),
            Ok(FarEnd::Path(path))
                if path.rsplit(|&byte| byte == b'/').next() == Some(&self.own_name) =>
            {
                Err(Unfit::OwnClient)
            }
            Ok(_) => Ok(()),
        }
    }

    fn watch(&self, session: SessionId, handle: &OwnedFd) -> bool {
        if !self.liveness {
            return false;
        }
        let now = Instant::now();
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let last = fresh.saved.replace(now);
        let alone = last.is_none_or(|last| now.saturating_duration_since(last) >= FRESH);
        if alone || fresh.sessions.len() >= MOST_FRESH {
            drop(fresh);
            return self.add(session, handle);
        }
        fresh.sessions.push(session);
        if fresh.due.is_none() {
            fresh.due = Some(now + FRESH);
            drop(fresh);
            self.bell.ring();
        }
        false
    }

    fn examine(&self, handle: &OwnedFd) -> Option<Death> {
        if self.liveness { examine(handle) } else { None }
    }

    fn release(&self, handle: &OwnedFd) {
        // The client has the connection open when our copy is closed, so that would not do.
        let _ = self.poller.remove(handle);
    }
}

/// Connections on which a goodbye was said, and whose far end is about to close.
///
/// Closed at once, such a connection would be reset by the answer to the goodbye, and the far end would see an
/// error instead of the end.
#[derive(Debug, Default)]
struct Lingering {
    connections: HashMap<u32, OwnedFd>,
    /// Those that may have gone meanwhile are still named.
    late: VecDeque<(Instant, u32)>,
    last: u32,
}

impl Lingering {
    /// Tokens of sessions have something in their upper half.
    fn is_token(token: u64) -> bool {
        token >> 32 == 0
    }

    fn len(&self) -> usize {
        self.connections.len()
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn add(&mut self, poller: &Poller, connection: OwnedFd, until: Instant) {
        self.last = self.last.wrapping_add(1);
        if poller
            .add(&connection, self.last.into(), Interest::Read)
            .is_ok()
        {
            self.connections.insert(self.last, connection);
            self.late.push_back((until, self.last));
        }
    }

    fn heard(&mut self, poller: &Poller, ready: &Ready) {
        let number = u32::try_from(ready.token).unwrap_or(0);
        if let Some(connection) = self.connections.get(&number)
            && (ready.hung_up || matches!(idle::discard(connection), Heard::End | Heard::Failure))
        {
            self.close(poller, number);
        }
    }

    fn close(&mut self, poller: &Poller, number: u32) {
        if let Some(connection) = self.connections.remove(&number) {
            let _ = poller.remove(&connection);
        }
    }

    /// When the next one is late.
    fn next(&self) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        self.late.front().map(|(until, _)| *until)
    }

    /// Nobody is waited for longer than this.
    fn hurry(&mut self, until: Instant) {
        for (late, _) in &mut self.late {
            *late = until.min(*late);
        }
    }

    fn close_late(&mut self, poller: &Poller, now: Instant) {
        while let Some(&(until, number)) = self.late.front()
            && (until <= now || !self.connections.contains_key(&number))
        {
            self.late.pop_front();
            self.close(poller, number);
        }
    }
}

mod moving;
#[cfg(test)]
mod tests;
