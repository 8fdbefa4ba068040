//! Ends the process when one of its loops is stuck in a turn; tells whoever asks that none is.
//!
//! # References
//! Postfix `watchdog.c`, `daemon_timeout`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::logging;
use crate::shared::{Mailbox, Pulse, Shared};

/// Alarms without a turn that mean death.
const ALARMS: u32 = 3;
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Starts watching the control loop (`control`) and the workers.
///
/// `daemon_timeout` of less than three seconds is a panic, as in the reference: it is divided by three in
/// whole seconds.
pub(crate) fn start(daemon_timeout: Duration, control: Arc<Pulse>, workers: Vec<Arc<Mailbox>>) {
    let period = daemon_timeout.as_secs() / u64::from(ALARMS);
    if period == 0 {
        logging::panic(format_args!(
            "watchdog_create: timeout {} is too small",
            daemon_timeout.as_secs()
        ));
    }
    let limit = Duration::from_secs(period) * ALARMS;
    let spawned = std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || watch(limit, &control, &workers));
    if let Err(error) = spawned {
        logging::fatal(format_args!(
            "watchdog_create: {}",
            postkeep_sys::error_text(&error)
        ));
    }
}

/// Starts telling the stand-in for master, if it wants to know, that all loops are alive.
///
/// - `period`: how often; also how long a turn may take at such a moment
pub(crate) fn tell(
    period: Duration,
    shared: Arc<Shared>,
    control: Arc<Pulse>,
    workers: Vec<Arc<Mailbox>>,
) {
    let beat = move || {
        loop {
            std::thread::sleep(period);
            if longest_turn(&control, &workers) < period
                && let Some(status) = shared.status.get()
                && !status.alive()
            {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("heartbeat".to_owned())
        .spawn(beat)
    {
        logging::fatal(format_args!(
            "cannot start a thread: {}",
            postkeep_sys::error_text(&error)
        ));
    }
}

fn longest_turn(control: &Pulse, workers: &[Arc<Mailbox>]) -> Duration {
    let now = Instant::now();
    workers
        .iter()
        .map(|worker| worker.pulse.elapsed(now))
        .chain([control.elapsed(now)])
        .max()
        .unwrap_or_default()
}

fn watch(limit: Duration, control: &Pulse, workers: &[Arc<Mailbox>]) -> ! {
    loop {
        let longest = longest_turn(control, workers);
        if longest >= limit {
            // Logging itself may be what is stuck.
            let _ = std::thread::Builder::new().spawn(|| {
                std::thread::sleep(LAST_WORDS);
                std::process::abort();
            });
            logging::fatal(format_args!("watchdog timeout"));
        }
        // A turn that begins during this sleep is at most a third of the limit old at its end.
        std::thread::sleep(
            limit
                .saturating_sub(longest)
                .min(limit / ALARMS)
                .max(Duration::from_millis(1)),
        );
    }
}
