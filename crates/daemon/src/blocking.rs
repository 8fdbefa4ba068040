//! Threads for work that may wait: file locks, name services, other processes.
//!
//! A client whose request needs such work returns [`Next::Wait`](crate::Next::Wait) and is woken by the work
//! itself, through its [`Waker`](crate::Waker). Other clients do not notice.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::logging;
use crate::lookout::Lookout;

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
    /// How long a thread that has done its job looks for the next one before it goes to sleep, while they come fast; zero:
    /// not at all. Default zero.
    pub look: Duration,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            threads: MAX_THREADS,
            share_threads: three_quarters(MAX_THREADS),
            waiting: MAX_WAITING,
            look: Duration::ZERO,
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
            look: Duration::ZERO,
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
    /// Asleep.
    idle: usize,
    /// One thread looks for work and need not be woken.
    looking: bool,
    lookout: Lookout,
    /// When a job ended last.
    ended: Instant,
}

struct Inner {
    state: Mutex<State>,
    work: Condvar,
    /// How many jobs have been put in line, for the thread that looks.
    news: AtomicUsize,
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
            .field("idle", &state.available())
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
            look: Duration::ZERO,
        })
    }

    /// A pool with these limits; each counts as one at least.
    pub fn with_limits(limits: PoolLimits) -> Self {
        let threads = limits.threads.max(1);
        let limits = PoolLimits {
            threads,
            share_threads: limits.share_threads.clamp(1, threads),
            waiting: limits.waiting.max(1),
            look: limits.look,
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    line: VecDeque::new(),
                    parties: HashMap::new(),
                    waiting: 0,
                    threads: 0,
                    idle: 0,
                    looking: false,
                    lookout: Lookout::new(limits.look),
                    ended: Instant::now(),
                }),
                work: Condvar::new(),
                news: AtomicUsize::new(0),
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
        // A thread for it: the one that looks, one that is asleep, a new one, or else one that is at work.
        if state.looking && state.line.is_empty() {
            // It sees the job by itself.
        } else if state.available() > state.line.len() {
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
        self.inner.news.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Jobs that have no thread yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting
    }

    /// Threads that are at work now.
    pub fn busy(&self) -> usize {
        let state = self.inner.lock();
        state.threads - state.available()
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
            if !state.looking && state.lookout.pays(None) {
                state = self.look(state);
                continue;
            }
            state.idle += 1;
            let (woken, result) = self
                .work
                .wait_timeout(state, RETIREMENT)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if !state.line.is_empty() {
                let passed = state.ended.elapsed();
                state.lookout.came(passed, false);
            }
            if result.timed_out() && state.line.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl Inner {
    /// Looks for the next job for a moment.
    fn look<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.looking = true;
        // Whoever adds to the line holds the lock, so nothing is missed between this and the first look.
        let known = self.news.load(Ordering::Relaxed);
        drop(state);
        let began = Instant::now();
        let passed = loop {
            let passed = began.elapsed();
            if self.news.load(Ordering::Acquire) != known || passed >= self.limits.look {
                break passed;
            }
            std::thread::yield_now();
        };
        let mut state = self.lock();
        state.looking = false;
        if state.line.is_empty() {
            state.lookout.again(passed);
        } else {
            state.lookout.came(passed, true);
        }
        state
    }
}

impl State {
    /// Threads without work.
    fn available(&self) -> usize {
        self.idle + usize::from(self.looking)
    }

    /// A job has ended: the next of its share gets in line.
    fn ended(&mut self, share: Share) {
        self.ended = Instant::now();
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
    fn threads_that_look_miss_no_job_and_go_back_to_sleep() {
        let pool = Pool::with_limits(PoolLimits {
            look: Duration::from_millis(2),
            ..PoolLimits::new(3, 64)
        });
        let (done, dones) = mpsc::channel();
        // One after the other, so that the thread that did the last one looks for the next.
        for number in 0..2000 {
            let done = done.clone();
            pool.submit(move || done.send(number).unwrap()).unwrap();
            assert_eq!(dones.recv().unwrap(), number);
        }
        // More at a time than there are threads.
        for round in 0..50 {
            for number in 0..20 {
                let done = done.clone();
                pool.submit(move || done.send(number).unwrap()).unwrap();
            }
            let mut got: Vec<i32> = dones.iter().take(20).collect();
            got.sort_unstable();
            assert!(got.into_iter().eq(0..20), "round {round}");
        }
        // Nothing comes: all are asleep, and found there.
        loop {
            let state = pool.inner.lock();
            if state.idle == state.threads {
                break;
            }
            drop(state);
            std::thread::yield_now();
        }
        assert!(!pool.inner.lock().looking);
        assert_eq!((pool.busy(), pool.waiting()), (0, 0));
        pool.submit(move || done.send(-1).unwrap()).unwrap();
        assert_eq!(dones.recv().unwrap(), -1);
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
