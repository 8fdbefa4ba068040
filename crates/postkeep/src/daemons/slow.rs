//! The log lines about operations that took long.
//!
//! One a minute for each table. They say where the time went, and no key: that is an address of somebody.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::info;
use postkeep_table::spent::Spent;
use postkeep_wire::diagnostics::Throttle;
use postkeep_wire::proxymap::Operation;

/// Name of the parameter.
pub(super) const SLOW_LOG: &str = "postkeep_slow_lookup_log_milliseconds";

/// What is logged of slow operations.
#[derive(Debug)]
pub(super) struct SlowLog {
    /// Operations that took less are not slow.
    threshold: Duration,
    epoch: Instant,
    /// By table; there are no more of them than approved names.
    throttles: Mutex<HashMap<Box<str>, Throttle>>,
}

impl SlowLog {
    /// - `threshold`: operations that took less are not slow; zero for no log
    pub(super) fn new(threshold: Duration, epoch: Instant) -> Option<Self> {
        (!threshold.is_zero()).then(|| Self {
            threshold,
            epoch,
            throttles: Mutex::default(),
        })
    }

    /// Logs an operation that took `total`, if that is long.
    pub(super) fn look(&self, table: &str, operation: Operation, total: Duration, spent: Spent) {
        if total < self.threshold {
            return;
        }
        let now = self.epoch.elapsed();
        let admitted = {
            let mut throttles = self
                .throttles
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match throttles.get_mut(table) {
                Some(throttle) => throttle.admit(now),
                None => throttles.entry(table.into()).or_default().admit(now),
            }
        };
        if let Some(held_back) = admitted {
            info!(
                "slow {} in {table}: {}{held_back}",
                operation.word(),
                Times { total, spent }
            );
        }
    }
}

/// `1520 ms (queue 1000 ms, connect 300 ms, query 220 ms)`
struct Times {
    total: Duration,
    spent: Spent,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spent { queue, connect } = self.spent;
        let query = self.total.saturating_sub(queue).saturating_sub(connect);
        write!(
            f,
            "{} ms (queue {} ms, connect {} ms, query {} ms)",
            self.total.as_millis(),
            queue.as_millis(),
            connect.as_millis(),
            query.as_millis()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let milliseconds = Duration::from_millis;
        let spent = Spent {
            queue: milliseconds(1000),
            connect: milliseconds(300),
        };
        let times = |total| {
            Times {
                total: milliseconds(total),
                spent,
            }
            .to_string()
        };
        assert_eq!(
            times(1520),
            "1520 ms (queue 1000 ms, connect 300 ms, query 220 ms)"
        );
        // Of operations that wait for each other, each counts its own.
        assert_eq!(
            times(1200),
            "1200 ms (queue 1000 ms, connect 300 ms, query 0 ms)"
        );
    }

    #[test]
    fn off_unless_there_is_a_threshold() {
        assert!(SlowLog::new(Duration::ZERO, Instant::now()).is_none());
        assert!(SlowLog::new(Duration::from_millis(1), Instant::now()).is_some());
    }
}
