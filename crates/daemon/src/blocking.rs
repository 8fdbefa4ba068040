//! Threads for work that may wait: file locks, name services, other processes.
//!
//! A client whose request needs such work returns [`Next::Wait`](crate::Next::Wait) and is woken by the work
//! itself, through its [`Waker`](crate::Waker). Other clients do not notice.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::logging;

/// How many threads a pool has at most, unless told otherwise.
const MAX_THREADS: usize = 128;
/// How many jobs wait for a thread at most, unless told otherwise.
const MAX_WAITING: usize = 4096;
/// How long a thread without work stays.
const RETIREMENT: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// What a job asks for, such as a table: jobs with the same number share a part of the pool.
pub type Share = usize;

/// The pool has more work than it will remember; the job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of all kinds.
    #[error("{0} operations are waiting")]
    Pool(usize),
    /// With this share.
    #[error("{0} operations of one table are waiting")]
    Share(usize),
}

/// How much a pool takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Threads at one time; above zero. Default 128.
    pub threads: usize,
    /// Threads at work for one share; above zero. Default 48, three quarters of all.
    pub share_threads: usize,
    /// Jobs that wait; those of one share at most in the proportion of the threads. Default 4096.
    pub waiting: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            threads: MAX_THREADS,
            share_threads: three_quarters(MAX_THREADS),
            waiting: MAX_WAITING,
        }
    }
}

impl PoolLimits {
    /// These numbers of threads and waiting jobs, of which one share gets three quarters.
    pub fn new(threads: usize, waiting: usize) -> Self {
        Self {
            threads,
            share_threads: three_quarters(threads),
            waiting,
        }
    }
}

fn three_quarters(number: usize) -> usize {
    number.saturating_mul(3).div_ceil(4)
}

/// The jobs of one share.
#[derive(Default)]
struct Party {
    /// At work, or next in line for a thread.
    admitted: usize,
    /// Those that have to wait for one of the admitted to end.
    held: VecDeque<Job>,
}

struct State {
    /// Next in line for a thread.
    line: VecDeque<(Share, Job)>,
    /// Shares that have a job.
    parties: HashMap<Share, Party>,
    /// In line and held.
    waiting: usize,
    threads: usize,
    idle: usize,
}

struct Inner {
    state: Mutex<State>,
    work: Condvar,
    limits: PoolLimits,
    /// Jobs of one share that wait.
    share_waiting: usize,
}

/// Runs jobs on threads of its own, which come on demand and go when idle.
///
/// Cheap to clone; all clones are one pool. Jobs begin in the order in which they were submitted, but those of a
/// share that has its part of the threads leave the others to the next ones.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::with_limits(PoolLimits::default())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("Pool")
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .field("waiting", &state.waiting)
            .finish()
    }
}

impl Pool {
    /// - `max_threads`: above zero
    /// - `max_waiting`: jobs that have no thread yet
    ///
    /// One share may take all of both.
    pub fn new(max_threads: usize, max_waiting: usize) -> Self {
        Self::with_limits(PoolLimits {
            threads: max_threads,
            share_threads: max_threads,
            waiting: max_waiting,
        })
    }

    /// A pool with these limits; each counts as one at least.
    pub fn with_limits(limits: PoolLimits) -> Self {
        let threads = limits.threads.max(1);
        let limits = PoolLimits {
            threads,
            share_threads: limits.share_threads.clamp(1, threads),
            waiting: limits.waiting.max(1),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    line: VecDeque::new(),
                    parties: HashMap::new(),
                    waiting: 0,
                    threads: 0,
                    idle: 0,
                }),
                work: Condvar::new(),
                share_waiting: (limits.waiting.saturating_mul(limits.share_threads) / threads)
                    .max(1),
                limits,
            }),
        }
    }

    /// What the pool takes on.
    pub fn limits(&self) -> PoolLimits {
        self.inner.limits
    }

    /// Has `job` run soon; never waits. A panic in it is logged and ends the job only.
    ///
    /// # Errors
    /// [`Full`]; the job is dropped.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        self.submit_for(0, || job)
    }

    /// As [`Self::submit`], with the job's share; `make` is only called when there is room for the job.
    ///
    /// # Errors
    /// [`Full`]; `make` was not called.
    pub fn submit_for<J: FnOnce() + Send + 'static>(
        &self,
        share: Share,
        make: impl FnOnce() -> J,
    ) -> Result<(), Full> {
        let limits = &self.inner.limits;
        let mut state = self.inner.lock();
        let (held, admitted) = state
            .parties
            .get(&share)
            .map_or((0, 0), |party| (party.held.len(), party.admitted));
        if state.waiting >= limits.waiting {
            return Err(Full::Pool(state.waiting));
        }
        if held >= self.inner.share_waiting {
            return Err(Full::Share(held));
        }
        if admitted >= limits.share_threads {
            let job = Box::new(make());
            state.waiting += 1;
            state.parties.entry(share).or_default().held.push_back(job);
            return Ok(());
        }
        // A thread for it: one that is idle, a new one, or else one that is at work.
        if state.idle > state.line.len() {
            self.inner.work.notify_one();
        } else if state.threads < limits.threads {
            let inner = Arc::clone(&self.inner);
            let spawned = std::thread::Builder::new()
                .name("blocking".to_owned())
                .spawn(move || inner.serve());
            if spawned.is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                return Err(Full::Pool(state.waiting));
            }
        }
        state.waiting += 1;
        state.parties.entry(share).or_default().admitted += 1;
        state.line.push_back((share, Box::new(make())));
        Ok(())
    }

    /// Jobs that have no thread yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting
    }

    /// Threads that are at work now.
    pub fn busy(&self) -> usize {
        let state = self.inner.lock();
        state.threads - state.idle
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((share, job)) = state.line.pop_front() {
                state.waiting -= 1;
                drop(state);
                logging::contain(job);
                state = self.lock();
                state.ended(share);
                continue;
            }
            state.idle += 1;
            let (woken, result) = self
                .work
                .wait_timeout(state, RETIREMENT)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if result.timed_out() && state.line.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl State {
    /// A job has ended: the next of its share gets in line.
    fn ended(&mut self, share: Share) {
        let Some(party) = self.parties.get_mut(&share) else {
            return;
        };
        if let Some(job) = party.held.pop_front() {
            self.line.push_back((share, job));
            return;
        }
        party.admitted -= 1;
        if party.admitted == 0 {
            self.parties.remove(&share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_run_side_by_side_up_to_the_limit_and_wait_up_to_theirs() {
        let pool = Pool::new(2, 1);
        let (started, starts) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let job = || {
            let (started, released) = (started.clone(), Arc::clone(&released));
            move || {
                started.send(()).unwrap();
                released.lock().unwrap().recv().unwrap();
            }
        };
        // Each of the first two has begun before the next is submitted, so none of them counts as waiting.
        for _ in 0..2 {
            pool.submit(job()).unwrap();
            starts.recv().unwrap();
        }
        pool.submit(job()).unwrap();
        assert_eq!((pool.busy(), pool.waiting()), (2, 1));
        assert!(pool.submit(job()).is_err());
        for _ in 0..3 {
            release.send(()).unwrap();
        }
        starts.recv().unwrap();
    }

    #[test]
    fn one_share_cannot_take_all_threads_nor_all_places() {
        let pool = Pool::with_limits(PoolLimits::new(4, 8));
        assert_eq!(pool.limits().share_threads, 3);
        let (started, starts) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let job = |share: Share| {
            let (started, released) = (started.clone(), Arc::clone(&released));
            move || {
                started.send(share).unwrap();
                released.lock().unwrap().recv().unwrap();
            }
        };
        // Three are at work, six wait, and the tenth is refused.
        for number in 0..9 {
            pool.submit_for(1, || job(1)).unwrap();
            if number < 3 {
                assert_eq!(starts.recv().unwrap(), 1);
            }
        }
        assert_eq!((pool.busy(), pool.waiting()), (3, 6));
        let refused = pool.submit_for(1, || -> fn() { panic!("made for nothing") });
        assert_eq!(refused, Err(Full::Share(6)));
        // Others find a thread, and the last places.
        for number in 0..3 {
            pool.submit_for(2, || job(2)).unwrap();
            if number == 0 {
                assert_eq!(starts.recv().unwrap(), 2);
            }
        }
        assert_eq!((pool.busy(), pool.waiting()), (4, 8));
        assert_eq!(pool.submit_for(3, || job(3)), Err(Full::Pool(8)));
        // All get their turn, and nothing is remembered of them.
        for _ in 0..12 {
            release.send(()).unwrap();
        }
        let rest: Vec<Share> = starts.iter().take(8).collect();
        assert_eq!(rest.iter().filter(|share| **share == 1).count(), 6);
        while pool.busy() > 0 {
            std::thread::yield_now();
        }
        assert!(pool.inner.lock().parties.is_empty());
    }

    #[test]
    fn a_panic_ends_only_its_job() {
        let pool = Pool::new(1, 8);
        let (done, dones) = mpsc::channel();
        pool.submit(|| panic!("on purpose")).unwrap();
        pool.submit(move || done.send(()).unwrap()).unwrap();
        dones.recv().unwrap();
    }
}
