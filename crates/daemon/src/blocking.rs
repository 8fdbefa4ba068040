//! Threads for work that may wait: file locks, name services, other processes.
//!
//! A client whose request needs such work returns [`Next::Wait`](crate::Next::Wait) and is woken by the work
//! itself, through its [`Waker`](crate::Waker). Other clients do not notice.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::logging;

/// How many threads a pool has at most, unless told otherwise.
const MAX_THREADS: usize = 64;
/// How many jobs wait for a thread at most, unless told otherwise.
const MAX_WAITING: usize = 4096;
/// How long a thread without work stays.
const RETIREMENT: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool has more work than it will remember; the job was not taken.
#[derive(Debug, thiserror::Error)]
#[error("too many operations are waiting")]
pub struct Full;

struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Inner {
    state: Mutex<State>,
    work: Condvar,
    max_threads: usize,
    max_waiting: usize,
}

/// Runs jobs on threads of its own, which come on demand and go when idle.
///
/// Cheap to clone; all clones are one pool. Jobs begin in the order in which they were submitted.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl Default for Pool {
    /// 64 threads and 4096 waiting jobs at most.
    fn default() -> Self {
        Self::new(MAX_THREADS, MAX_WAITING)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("Pool")
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .field("waiting", &state.waiting.len())
            .finish()
    }
}

impl Pool {
    /// - `max_threads`: above zero
    /// - `max_waiting`: jobs that have no thread yet
    pub fn new(max_threads: usize, max_waiting: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    waiting: VecDeque::new(),
                    threads: 0,
                    idle: 0,
                }),
                work: Condvar::new(),
                max_threads: max_threads.max(1),
                max_waiting: max_waiting.max(1),
            }),
        }
    }

    /// Has `job` run soon; never waits. A panic in it is logged and ends the job only.
    ///
    /// # Errors
    /// [`Full`]; the job is dropped.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        let mut state = self.inner.lock();
        if state.waiting.len() >= self.inner.max_waiting {
            return Err(Full);
        }
        state.waiting.push_back(Box::new(job));
        if state.idle >= state.waiting.len() {
            self.inner.work.notify_one();
        } else if state.threads < self.inner.max_threads {
            let inner = Arc::clone(&self.inner);
            let spawned = std::thread::Builder::new()
                .name("blocking".to_owned())
                .spawn(move || inner.serve());
            if spawned.is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                state.waiting.pop_back();
                return Err(Full);
            }
        }
        Ok(())
    }

    /// Jobs that have no thread yet.
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiting.len()
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
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                logging::contain(job);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, result) = self
                .work
                .wait_timeout(state, RETIREMENT)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if result.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                return;
            }
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
    fn a_panic_ends_only_its_job() {
        let pool = Pool::new(1, 8);
        let (done, dones) = mpsc::channel();
        pool.submit(|| panic!("on purpose")).unwrap();
        pool.submit(move || done.send(()).unwrap()).unwrap();
        dones.recv().unwrap();
    }
}
