//! Operations on tables that may wait: done on the pool of threads, or by a server, while the client is parked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postkeep_conf::{Dictionary, Error, IntParameter, Sink};
use postkeep_daemon::Waker;
use postkeep_daemon::blocking::{Full, Pool, PoolLimits};
use postkeep_daemon::limits::Complaint;
use postkeep_proxymap::service::{Done, Job};
use postkeep_table::spent::{self, Spent};

use super::slow::{SLOW_LOG, SlowLog};

/// Names of parameters.
pub(super) const SLOW_LOOKUPS: &str = "postkeep_slow_lookup_limit";
const SLOW_THREADS: &str = "postkeep_slow_lookup_threads";
pub(super) const TABLE_THREADS: &str = "postkeep_slow_table_threads";

/// A thread of the pool looks so many times as long as a worker: until the next job comes the client has to be woken, and
/// to ask its worker.
const LOOKS: u32 = 4;

/// How many operations may wait, how many threads there are for them, and what is logged of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pool: PoolLimits,
    /// Operations that take so long are logged; zero for none.
    slow: Duration,
}

/// Reads them.
pub(super) fn read_limits(
    dictionary: &mut Dictionary,
    sink: &mut dyn Sink,
) -> Result<Limits, Error> {
    let mut number = |name, default: usize, min, max| {
        let parameter = IntParameter {
            name,
            default: i32::try_from(default).unwrap_or(i32::MAX),
            min,
            max,
        };
        let value = dictionary.int(&parameter, &mut *sink)?;
        Ok(usize::try_from(value).unwrap_or_default())
    };
    let default = PoolLimits::default();
    let threads = number(SLOW_THREADS, default.threads, 1, 1024)?;
    let waiting = number(SLOW_LOOKUPS, default.waiting, 1, 0)?;
    let mut pool = PoolLimits::new(threads, waiting);
    pool.share_threads = number(TABLE_THREADS, pool.share_threads, 1, 0)?;
    let slow = number(SLOW_LOG, 0, 0, 0)?;
    let slow = Duration::from_millis(u64::try_from(slow).unwrap_or_default());
    Ok(Limits { pool, slow })
}

/// Who does them, and the lines about there being too many.
#[derive(Debug)]
pub(super) struct Errands {
    pub(super) pool: Pool,
    pub(super) slow_lookups: Complaint,
    pub(super) slow_table: Complaint,
    slow: Option<Arc<SlowLog>>,
    /// The service in these lines.
    stream: Arc<str>,
}

/// An operation that may wait, and where its outcome will be.
pub(super) type Errand = Arc<Mutex<Option<Outcome>>>;

/// What an errand brings back.
pub(super) struct Outcome {
    pub(super) done: Done,
    /// How many bytes of the reply the client has got already.
    pub(super) told: usize,
}

/// Who sends the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The client's worker, in the turn after the errand.
    InTurn,
    /// As much as can be sent at once, whoever has been on the errand. The client must have got all earlier replies.
    Early,
}

impl Errands {
    /// - `busy_wait`: how long a worker looks for the next request
    pub(super) fn new(limits: Limits, busy_wait: Duration, stream: Arc<str>) -> Self {
        let mut pool = limits.pool;
        pool.look = busy_wait * LOOKS;
        Self {
            pool: Pool::with_limits(pool),
            slow_lookups: Complaint::new(SLOW_LOOKUPS),
            slow_table: Complaint::new("postkeep_slow_lookup_limit, postkeep_slow_table_threads"),
            slow: SlowLog::new(limits.slow, Instant::now()).map(Arc::new),
            stream,
        }
    }

    /// Has a job done elsewhere; it comes back when nobody can take it.
    ///
    /// A question to a server leaves from here, and no thread waits for the answer.
    ///
    /// - `waker`: of the client that is parked until then
    pub(super) fn send(
        &self,
        waker: &Waker,
        job: Job,
        now: Instant,
        reply: Reply,
    ) -> Result<Errand, Job> {
        let errand = Errand::default();
        if !job.may_wait() {
            let messenger = Messenger {
                errand: Some(Arc::clone(&errand)),
                waker: waker.clone(),
                slow: self.slow.clone(),
                reply: Reply::InTurn,
            };
            job.begin(move |done| messenger.deliver(done, now));
            return Ok(errand);
        }
        let share = job.share();
        let mut job = Some(job);
        let submitted = self.pool.submit_for(share, || {
            let messenger = Messenger {
                errand: Some(Arc::clone(&errand)),
                waker: waker.clone(),
                slow: self.slow.clone(),
                reply,
            };
            let job = job.take();
            move || {
                let waited = Spent {
                    queue: now.elapsed(),
                    ..Spent::default()
                };
                if let Some(job) = job {
                    spent::scope(waited, || {
                        job.begin(move |done| messenger.deliver(done, now));
                    });
                }
            }
        });
        if let Err(full) = submitted {
            let complaint = match full {
                Full::Pool(_) => &self.slow_lookups,
                Full::Share(_) => &self.slow_table,
            };
            complaint.say(
                now,
                format_args!("{}: {full}, clients are told to try again", self.stream),
            );
        }
        job.map_or(Ok(errand), Err)
    }
}

/// Brings the outcome of an errand, or the news that there will be none, to the client.
struct Messenger {
    errand: Option<Errand>,
    waker: Waker,
    slow: Option<Arc<SlowLog>>,
    reply: Reply,
}

impl Messenger {
    /// - `since`: when the request was looked at
    fn deliver(self, done: Done, since: Instant) {
        let told = match self.reply {
            Reply::InTurn => 0,
            Reply::Early => {
                let mut reply = Vec::new();
                done.write_reply(&mut reply);
                self.waker.reply_early(&reply)
            }
        };
        let total = since.elapsed();
        done.waited(total);
        if let Some(slow) = &self.slow {
            slow.look(done.table(), done.operation(), total, spent::current());
        }
        if let Some(errand) = &self.errand {
            *errand.lock().unwrap_or_else(PoisonError::into_inner) = Some(Outcome { done, told });
        }
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        // Also after a panic. The client must not look before our share is gone.
        self.errand = None;
        self.waker.wake();
    }
}

/// What has become of an errand.
pub(super) enum Progress {
    Out,
    Back(Outcome),
    /// Whoever had it is gone without an outcome.
    Lost,
}

pub(super) fn look(errand: &Errand) -> Progress {
    // The count first: the outcome is there before the other holder is gone.
    let alone = Arc::strong_count(errand) == 1;
    match errand.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(outcome) => Progress::Back(outcome),
        None if alone => Progress::Lost,
        None => Progress::Out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_is_out_until_its_messenger_is_gone() {
        let errand = Errand::default();
        let messenger = Messenger {
            errand: Some(Arc::clone(&errand)),
            waker: Waker::noop(),
            slow: None,
            reply: Reply::Early,
        };
        assert!(matches!(look(&errand), Progress::Out));
        drop(messenger);
        assert!(matches!(look(&errand), Progress::Lost));
    }
}
