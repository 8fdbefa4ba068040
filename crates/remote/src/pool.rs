//! A pool of connections to the servers of one table, or of all tables with the same servers.
//!
//! A lookup waits for one of the connections, within limits; takes one that is idle or connects; asks; and puts it back.
//! A server that fails rests, and the lookup goes to the next one. When lookups fail one after the other, the breaker
//! opens and they fail at once until a probe succeeds.
//!
//! # References
//! Postfix `src/global/dict_mysql.c`, which has one connection for each table and process, and no limits of time.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use log::{info, warn};
use postkeep_table::LookupError;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::breaker::{Admission, Breaker};
use crate::hosts::{Choice, Host, Hosts};
use crate::limits::Limits;
use crate::meter;

/// What a table type knows of its servers.
pub trait Backend: Send + Sync + 'static {
    /// An open connection, ready for questions. Dropping it closes it.
    type Connection: Send + 'static;
    /// A question.
    type Request: Send + Sync;
    /// An answer.
    type Answer: Send;

    /// Connects, greets and authenticates. The pool sets the time limit.
    ///
    /// The error is a reason without the host, such as `Connection refused`.
    fn connect(&self, host: &Host)
    -> impl Future<Output = Result<Self::Connection, String>> + Send;

    /// Asks. The pool sets the time limit; a question that is cut off loses its connection.
    fn ask(
        &self,
        connection: &mut Self::Connection,
        host: &Host,
        request: &Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;

    /// Can a connection that lay idle be used? Looks, and does not wait.
    fn is_usable(&self, connection: &mut Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// The warning about a server that cannot be reached; empty when all has been said.
    fn connect_warning(&self, host: &Host, reason: &str) -> String;

    /// The warning about a question without an answer in time.
    fn timeout_warning(&self, host: &Host, request: &Self::Request) -> String;

    /// What the pool is called in its own log lines: `TYPE:NAME`, or the server.
    fn label(&self) -> String;
}

/// Why a question has no answer.
#[derive(Debug)]
pub enum Fault {
    /// The connection ended before the answer did: asked again once, on another connection. The warning is logged when
    /// that fails, too.
    Stale(String),
    /// The server failed: it rests, and the next one is asked. The warning is logged.
    Host(String),
    /// The server works and refuses the question: the next one is asked, and none rests. The warning is logged. When all
    /// that can be asked refuse, that is an answer: the question is at fault.
    Refused(String),
    /// The server answered, but the connection cannot be used any more. This is the outcome.
    Broken(LookupError),
    /// The server answered; the question is at fault, or what it is about. This is the outcome.
    Answer(LookupError),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A server answered, with this.
    #[error(transparent)]
    Answered(LookupError),
    /// No server could be asked to the end; all about that has been logged. The reason why the last one could not be
    /// connected to (`Connection refused`), empty when it failed later.
    #[error("{0}")]
    Unreachable(String),
    /// Too many lookups wait already, or waiting took too long; that has been logged.
    #[error("too many lookups wait")]
    Busy,
    /// The breaker is open, or all servers rest.
    #[error("fails at once after failures")]
    Resting,
}

impl From<Refusal> for LookupError {
    /// Without a text, as all has been logged.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Answered(error) => error,
            Refusal::Unreachable(_) | Refusal::Busy | Refusal::Resting => {
                Self::Retry(String::new())
            }
        }
    }
}

/// How a pool is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Connections, those that are being made included.
    pub connections: usize,
    /// Of these, unused.
    pub idle: usize,
    /// Lookups that wait for a connection.
    pub waiting: usize,
    /// The breaker lets lookups through.
    pub closed: bool,
}

struct Idle<C> {
    connection: C,
    host: usize,
    born: Instant,
    since: Instant,
}

struct State<C> {
    hosts: Hosts,
    breaker: Breaker,
    idle: Vec<Idle<C>>,
    /// A task closes idle connections when it is time.
    reaper: bool,
    random: u64,
    /// When a refusal for want of connections was last told.
    told: Option<Instant>,
}

/// A pool.
pub struct Pool<B: Backend> {
    backend: B,
    limits: Limits,
    /// Zero of the clock of breaker and hosts.
    epoch: Instant,
    slots: Semaphore,
    waiting: AtomicUsize,
    connections: AtomicUsize,
    state: Mutex<State<B::Connection>>,
    /// A connector has succeeded or failed, or a connection is idle.
    changed: Notify,
}

impl<B: Backend> std::fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

/// A connection in use; it counts until it is dropped.
struct Held<'a, B: Backend> {
    pool: &'a Pool<B>,
    /// Taken when it is put back.
    inner: Option<Idle<B::Connection>>,
}

impl<B: Backend> Drop for Held<'_, B> {
    fn drop(&mut self) {
        if self.inner.take().is_some() {
            self.pool.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection that is being made: nobody waits for ever when it is given up.
struct Connecting<'a, B: Backend> {
    pool: &'a Pool<B>,
    host: usize,
    decided: bool,
}

impl<B: Backend> Drop for Connecting<'_, B> {
    fn drop(&mut self) {
        if !self.decided {
            self.pool.lock().hosts.released(self.host);
            self.pool.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.pool.changed.notify_waiters();
    }
}

/// A pass of the breaker, which is told in any case.
struct Ticket<'a, B: Backend> {
    pool: &'a Pool<B>,
    admission: Admission,
    used: bool,
}

impl<B: Backend> Drop for Ticket<'_, B> {
    fn drop(&mut self) {
        if !self.used {
            let now = self.pool.now();
            self.pool.lock().breaker.abandoned(self.admission, now);
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<B: Backend> Pool<B> {
    /// A pool without connections; the first lookup makes one.
    pub fn new(backend: B, hosts: Vec<Host>, limits: Limits) -> Arc<Self> {
        let random = RandomState::new().hash_one(0) | 1;
        Arc::new(Self {
            epoch: Instant::now(),
            slots: Semaphore::new(limits.max_connections.max(1)),
            waiting: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            state: Mutex::new(State {
                hosts: Hosts::new(hosts, limits.rest),
                breaker: Breaker::new(limits.breaker_failures, limits.breaker_rest),
                idle: Vec::new(),
                reaper: false,
                random,
                told: None,
            }),
            changed: Notify::new(),
            backend,
            limits,
        })
    }

    /// What the type knows.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// How the pool is doing.
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            connections: self.connections.load(Ordering::Relaxed),
            idle: state.idle.len(),
            waiting: self.waiting.load(Ordering::Relaxed),
            closed: state.breaker.is_closed(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<B::Connection>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Asks one of the servers.
    ///
    /// # Errors
    /// [`Refusal`], at the latest after `wait_timeout`, and `connect_timeout` and `answer_timeout` for each server.
    pub async fn ask(self: &Arc<Self>, request: &B::Request) -> Result<B::Answer, Refusal> {
        let admission = self.lock().breaker.admit(self.now());
        if admission == Admission::Refused {
            return Err(Refusal::Resting);
        }
        let mut ticket = Ticket {
            pool: self,
            admission,
            used: false,
        };
        let result = self.attempt(request).await;
        match &result {
            Ok(_) | Err(Refusal::Answered(_)) => {
                ticket.used = true;
                if self.lock().breaker.succeeded() {
                    info!("{} works again", self.backend.label());
                }
            }
            Err(Refusal::Unreachable(_)) => {
                ticket.used = true;
                let now = self.now();
                if self.lock().breaker.failed(admission, now) {
                    warn!(
                        "{}: {} lookups in a row have failed -- all fail at once for {:?}",
                        self.backend.label(),
                        self.limits.breaker_failures,
                        self.limits.breaker_rest
                    );
                }
            }
            Err(Refusal::Busy | Refusal::Resting) => {}
        }
        result
    }

    async fn attempt(self: &Arc<Self>, request: &B::Request) -> Result<B::Answer, Refusal> {
        let deadline = Instant::now() + self.limits.wait;
        let _slot = self.slot(deadline).await?;
        let mut tried = Vec::new();
        let mut stale = false;
        let mut reason = String::new();
        let mut refused = false;
        loop {
            let connected = self.connection(&mut tried, &mut reason, deadline).await;
            let mut held = match connected {
                Err(Refusal::Unreachable(_) | Refusal::Resting) if refused => {
                    return Err(Refusal::Answered(LookupError::Retry(String::new())));
                }
                connected => connected?,
            };
            let Some(inner) = held.inner.as_mut() else {
                return Err(Refusal::Unreachable(reason));
            };
            let index = inner.host;
            let Some(host) = self.lock().hosts.host(index).cloned() else {
                return Err(Refusal::Unreachable(reason));
            };
            let asked = self.backend.ask(&mut inner.connection, &host, request);
            let text = match timeout(self.limits.answer, asked).await {
                Ok(Ok(answer)) => {
                    self.put_back(held);
                    return Ok(answer);
                }
                Ok(Err(Fault::Answer(error))) => {
                    self.put_back(held);
                    return Err(Refusal::Answered(error));
                }
                Ok(Err(Fault::Broken(error))) => return Err(Refusal::Answered(error)),
                Ok(Err(Fault::Refused(text))) => {
                    self.put_back(held);
                    warn!("{text}");
                    refused = true;
                    tried.push(index);
                    continue;
                }
                Ok(Err(Fault::Stale(_))) if !stale => {
                    // A server that was started anew has closed the others, too.
                    stale = true;
                    drop(held);
                    self.forget(index);
                    continue;
                }
                Ok(Err(Fault::Stale(text) | Fault::Host(text))) => text,
                Err(_) => self.backend.timeout_warning(&host, request),
            };
            drop(held);
            self.forget(index);
            self.lock().hosts.failed(index, self.now());
            self.changed.notify_waiters();
            if !text.is_empty() {
                warn!("{text}");
            }
            reason.clear();
            if !tried.contains(&index) {
                tried.push(index);
            }
        }
    }

    /// Waits for the right to one connection.
    async fn slot(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Refusal> {
        if let Ok(slot) = self.slots.try_acquire() {
            return Ok(slot);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.queue {
            return Err(self.busy("pool_queue_limit lookups wait already"));
        }
        match meter::in_queue(timeout_at(deadline, self.slots.acquire())).await {
            Ok(Ok(slot)) => Ok(slot),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(self.busy("no connection became free within wait_timeout")),
        }
    }

    /// A refusal for want of connections; told once a second.
    fn busy(&self, why: &str) -> Refusal {
        let now = Instant::now();
        let mut state = self.lock();
        let quiet = state
            .told
            .is_some_and(|told| now.duration_since(told) < Duration::from_secs(1));
        if !quiet {
            state.told = Some(now);
            warn!("{}: {why}", self.backend.label());
        }
        Refusal::Busy
    }

    /// An idle connection, or a new one.
    async fn connection(
        &self,
        tried: &mut Vec<usize>,
        reason: &mut String,
        deadline: Instant,
    ) -> Result<Held<'_, B>, Refusal> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(idle) = self.take_idle(tried) {
                return Ok(Held {
                    pool: self,
                    inner: Some(idle),
                });
            }
            let choice = {
                let mut state = self.lock();
                let mut random = state.random;
                let below = |count: usize| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    usize::try_from(random % count as u64).unwrap_or(0)
                };
                let choice = state.hosts.choose(self.now(), tried, below);
                state.random = random;
                choice
            };
            let index = match choice {
                Choice::Connect(index) => index,
                Choice::Nobody if tried.is_empty() => return Err(Refusal::Resting),
                Choice::Nobody => return Err(Refusal::Unreachable(std::mem::take(reason))),
                Choice::Wait => {
                    if meter::in_queue(timeout_at(deadline, changed))
                        .await
                        .is_err()
                    {
                        return Err(self.busy("no server was reached within wait_timeout"));
                    }
                    continue;
                }
            };
            // Whoever is here has a slot and found nothing idle, so there are never more connections than slots.
            self.connections.fetch_add(1, Ordering::Relaxed);
            let mut connecting = Connecting {
                pool: self,
                host: index,
                decided: false,
            };
            let Some(host) = self.lock().hosts.host(index).cloned() else {
                return Err(Refusal::Unreachable(std::mem::take(reason)));
            };
            let connected =
                meter::connecting(timeout(self.limits.connect, self.backend.connect(&host)))
                    .await
                    .unwrap_or_else(|_| Err("Connection timed out".to_owned()));
            connecting.decided = true;
            match connected {
                Ok(connection) => {
                    self.lock().hosts.connected(index);
                    let now = Instant::now();
                    return Ok(Held {
                        pool: self,
                        inner: Some(Idle {
                            connection,
                            host: index,
                            born: now,
                            since: now,
                        }),
                    });
                }
                Err(why) => {
                    self.connections.fetch_sub(1, Ordering::Relaxed);
                    self.lock().hosts.failed(index, self.now());
                    let text = self.backend.connect_warning(&host, &why);
                    if !text.is_empty() {
                        warn!("{text}");
                    }
                    *reason = why;
                    tried.push(index);
                }
            }
        }
    }

    fn is_old(&self, connection: &Idle<B::Connection>, now: Instant) -> bool {
        let lifetime = self.limits.lifetime;
        now.duration_since(connection.since) >= self.limits.idle
            || (!lifetime.is_zero() && now.duration_since(connection.born) >= lifetime)
    }

    /// The connection that was used last and can still be used.
    fn take_idle(&self, tried: &[usize]) -> Option<Idle<B::Connection>> {
        let now = Instant::now();
        loop {
            let mut idle = {
                let mut state = self.lock();
                let place = state
                    .idle
                    .iter()
                    .rposition(|idle| !tried.contains(&idle.host))?;
                state.idle.remove(place)
            };
            if !self.is_old(&idle, now) && self.backend.is_usable(&mut idle.connection) {
                return Some(idle);
            }
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Closes the idle connections to a server.
    fn forget(&self, host: usize) {
        let dead: Vec<_> = {
            let mut state = self.lock();
            let all = std::mem::take(&mut state.idle).into_iter();
            let (dead, kept) = all.partition(|idle| idle.host == host);
            state.idle = kept;
            dead
        };
        self.connections.fetch_sub(dead.len(), Ordering::Relaxed);
    }

    fn put_back(self: &Arc<Self>, mut held: Held<'_, B>) {
        let Some(mut idle) = held.inner.take() else {
            return;
        };
        let now = Instant::now();
        idle.since = now;
        if self.is_old(&idle, now) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let start = {
            let mut state = self.lock();
            state.idle.push(idle);
            !std::mem::replace(&mut state.reaper, true)
        };
        self.changed.notify_waiters();
        if start {
            let pool = Arc::downgrade(self);
            tokio::spawn(reap(pool));
        }
    }

    /// Closes what has been idle for too long; when to come again, if there are others.
    fn close_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        let (old, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut state.idle)
            .into_iter()
            .partition(|idle| self.is_old(idle, now));
        state.idle = kept;
        let next = state
            .idle
            .iter()
            .map(|idle| {
                let due = idle.since + self.limits.idle;
                match self.limits.lifetime {
                    Duration::ZERO => due,
                    lifetime => due.min(idle.born + lifetime),
                }
            })
            .min();
        state.reaper = next.is_some();
        drop(state);
        self.connections.fetch_sub(old.len(), Ordering::Relaxed);
        next
    }
}

/// Closes idle connections when it is time, as long as there are any.
async fn reap<B: Backend>(pool: Weak<Pool<B>>) {
    loop {
        let Some(next) = pool.upgrade().and_then(|pool| pool.close_old()) else {
            return;
        };
        // Not more than a few times a second, whatever the limits.
        let wait = next.saturating_duration_since(Instant::now());
        sleep(wait.max(Duration::from_millis(100))).await;
    }
}

/// Pools that several tables share, by what makes their connections equal.
///
/// A pool lives as long as one of its tables; a table that is opened anew while the old one is in use gets the same.
pub struct Shared<K, B: Backend> {
    pools: OnceLock<Mutex<HashMap<K, Weak<Pool<B>>>>>,
}

impl<K, B: Backend> std::fmt::Debug for Shared<K, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl<K: Hash + Eq, B: Backend> Shared<K, B> {
    /// No pools.
    #[expect(
        clippy::new_without_default,
        reason = "it stands in a static, where a default cannot"
    )]
    pub const fn new() -> Self {
        Self {
            pools: OnceLock::new(),
        }
    }

    /// The pool for this key, which is made when there is none.
    pub fn get_or_make(&self, key: K, make: impl FnOnce() -> Arc<Pool<B>>) -> Arc<Pool<B>> {
        let pools = self.pools.get_or_init(Mutex::default);
        let mut pools = pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key).and_then(Weak::upgrade) {
            return pool;
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = make();
        pools.insert(key, Arc::downgrade(&pool));
        pool
    }
}

#[cfg(test)]
mod tests;
