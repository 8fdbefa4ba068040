//! The asynchronous runtime beside the event loop of the daemons.
//!
//! Two threads, started with the first lookup that needs them, which is after privileges were dropped. Nothing of the
//! daemon's own work runs here: workers hand a lookup over and are told its end.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use postkeep_table::spent::{self, Spent};
use postkeep_table::{Completion, Flags, Latency, LookupError, Outcome, Table};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::meter::{self, metered};

/// Threads that drive lookups.
const WORKERS: usize = 2;

/// Threads for what can only wait: names of hosts, and tables inside others that are no servers.
const WAITING: usize = 16;

/// How long such a thread stays without work.
const RETIREMENT: Duration = Duration::from_secs(10);

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static START: Mutex<()> = Mutex::new(());

/// The runtime of this process, which is started when it is not there.
///
/// # Errors
/// [`LookupError::Retry`] when no threads can be started.
pub fn handle() -> Result<&'static Handle, LookupError> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let _one_at_a_time = START.lock().unwrap_or_else(PoisonError::into_inner);
    if RUNTIME.get().is_none() {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(WAITING)
            .thread_keep_alive(RETIREMENT)
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(|error| {
                LookupError::Retry(format!(
                    "cannot start threads for tables behind a server: {}",
                    postkeep_sys::error_text(&error)
                ))
            })?;
        // Nobody else sets it while the start is held.
        let _ = RUNTIME.set(runtime);
    }
    RUNTIME
        .get()
        .map(Runtime::handle)
        .ok_or_else(|| LookupError::Retry(String::new()))
}

/// Calls the completion in any case, also when the work panics or is dropped.
struct Promise {
    pending: Option<(Completion, Vec<u8>)>,
}

impl Promise {
    fn keep(mut self, result: Result<Option<Vec<u8>>, LookupError>) {
        if let Some((done, mut value)) = self.pending.take() {
            let result = result.map(|found| match found {
                Some(found) => {
                    if value.is_empty() {
                        value = found;
                    } else {
                        value.extend_from_slice(&found);
                    }
                    Outcome::Done
                }
                None => Outcome::Absent,
            });
            done(result, value);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some((done, value)) = self.pending.take() {
            done(Err(LookupError::Retry(String::new())), value);
        }
    }
}

/// Has a lookup run; `done` gets its end, with what was found appended to `value`.
pub fn begin<F>(lookup: F, value: Vec<u8>, done: Completion)
where
    F: Future<Output = Result<Option<Vec<u8>>, LookupError>> + Send + 'static,
{
    let promise = Promise {
        pending: Some((done, value)),
    };
    match handle() {
        Ok(handle) => {
            let so_far = spent::current();
            handle.spawn(async move {
                let (end, spent) = metered(so_far, lookup).await;
                spent::scope(spent, || promise.keep(end));
            });
        }
        Err(error) => promise.keep(Err(error)),
    }
}

/// Runs work to its end on the calling thread; for commands, and for tables that wait for others on a thread.
///
/// # Errors
/// Those of the work, and [`LookupError::Retry`] when it was lost.
pub fn wait<F, T>(work: F) -> Result<T, LookupError>
where
    F: Future<Output = Result<T, LookupError>> + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    handle()?.spawn(async move {
        // The receiver waits in any case.
        let _ = sender.send(metered(Spent::default(), work).await);
    });
    let (end, spent) = block(|| {
        receiver
            .recv()
            .unwrap_or_else(|_| (Err(LookupError::Retry(String::new())), Spent::default()))
    });
    spent::add(spent);
    end
}

/// Waits on the calling thread, so that the other work of the runtime goes on when it is one of its threads.
pub fn block<T>(wait: impl FnOnce() -> T) -> T {
    if Handle::try_current().is_ok() {
        tokio::task::block_in_place(wait)
    } else {
        wait()
    }
}

/// Has work that may wait done on a thread of the runtime, some time; it is dropped when there can be no threads.
pub fn aside(work: impl FnOnce() + Send + 'static) {
    if let Ok(handle) = handle() {
        drop(handle.spawn_blocking(work));
    }
}

/// Does something to any table from within a lookup that may take its time, on a thread that can wait.
///
/// # Errors
/// Those of the table, and [`LookupError::Retry`] when the work was lost.
pub async fn on_thread<T: Send + 'static>(
    table: &Arc<dyn Table>,
    work: impl FnOnce(&dyn Table) -> Result<T, LookupError> + Send + 'static,
) -> Result<T, LookupError> {
    let table = Arc::clone(table);
    tokio::task::spawn_blocking(move || work(&*table))
        .await
        .unwrap_or_else(|_| Err(LookupError::Retry(String::new())))
}

/// Asks any table from within a lookup, without holding up other lookups.
///
/// # Errors
/// Those of the table.
pub async fn ask(
    table: &Arc<dyn Table>,
    flags: Flags,
    key: &[u8],
) -> Result<Option<Vec<u8>>, LookupError> {
    let found = |outcome, value| (outcome == Outcome::Done).then_some(value);
    match table.latency() {
        Latency::Memory => {
            let mut value = Vec::new();
            let outcome = table.lookup(flags, key, &mut value)?;
            Ok(found(outcome, value))
        }
        Latency::Blocking => {
            let (table, key) = (Arc::clone(table), key.to_vec());
            let asked = tokio::task::spawn_blocking(move || {
                let mut value = Vec::new();
                let outcome = table.lookup(flags, &key, &mut value)?;
                Ok(found(outcome, value))
            });
            asked
                .await
                .unwrap_or_else(|_| Err(LookupError::Retry(String::new())))
        }
        Latency::Remote => {
            let (sender, receiver) = oneshot::channel();
            let done: Completion = Box::new(move |result, value| {
                // Whoever asked may be gone.
                let found = result.map(|outcome| found(outcome, value));
                let _ = sender.send((found, spent::current()));
            });
            Arc::clone(table).begin_lookup(flags, key, Vec::new(), done);
            let Ok((found, spent)) = receiver.await else {
                return Err(LookupError::Retry(String::new()));
            };
            meter::add(spent);
            found
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn end<F>(lookup: F) -> (Result<Outcome, LookupError>, Vec<u8>)
    where
        F: Future<Output = Result<Option<Vec<u8>>, LookupError>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result, value| sender.send((result, value)).unwrap());
        begin(lookup, b"before:".to_vec(), done);
        receiver.recv().unwrap()
    }

    #[test]
    fn ends_are_told_once_also_after_a_panic() {
        let (result, value) = end(async { Ok(Some(b"x".to_vec())) });
        assert_eq!(
            (result.unwrap(), &value[..]),
            (Outcome::Done, &b"before:x"[..])
        );
        let (result, value) = end(async { Ok(None) });
        assert_eq!(
            (result.unwrap(), &value[..]),
            (Outcome::Absent, &b"before:"[..])
        );
        let (result, value) = end(async { panic!("on purpose") });
        assert!(matches!(result, Err(LookupError::Retry(_))));
        assert_eq!(value, b"before:");
    }

    #[test]
    fn waiting_works_outside_and_inside() {
        assert_eq!(wait(async { Ok(1) }).unwrap(), 1);
        assert_eq!(wait(async { wait(async { Ok(2) }) }).unwrap(), 2);
        let lost = wait(async {
            assert!(std::hint::black_box(false), "on purpose");
            Ok(())
        });
        assert!(matches!(lost, Err(LookupError::Retry(_))));
    }
}
