//! What the cache counts, and the lines in which it is logged.

/// Hits, misses and the largest sizes of one reporting interval.
///
/// Sizes are looked at only when something is saved: an interval in which nothing is saved has no sizes,
/// even when the cache holds something.
///
/// # References
/// scache(8), `connection_cache_status_update_time`; Postfix `src/scache/scache.c`,
/// `scache_status_dump()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Destinations found with a session.
    pub destination_hits: u64,
    /// Destinations asked for in vain.
    pub destination_misses: u64,
    /// Endpoints found with a session, when asked for by themselves.
    pub endpoint_hits: u64,
    /// Endpoints asked for in vain, when asked for by themselves.
    pub endpoint_misses: u64,
    /// Most destinations with a live binding.
    pub destinations: usize,
    /// Most endpoints with a live session.
    pub endpoints: usize,
    /// Most live sessions.
    pub sessions: usize,
}

impl Statistics {
    /// The lines to be logged at info level for the interval that began at `start`; none when nothing
    /// happened.
    ///
    /// - `start`: local time of the previous report (or of the start of the process), as `Mon DD HH:MM:SS`
    ///   with the day padded by a blank
    pub fn lines(&self, start: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if *self == Self::default() {
            return lines;
        }
        lines.push(format!("statistics: start interval {start}"));
        for (what, hits, misses) in [
            ("domain", self.destination_hits, self.destination_misses),
            ("address", self.endpoint_hits, self.endpoint_misses),
        ] {
            if hits != 0 || misses != 0 {
                let success = u128::from(hits) * 100 / (u128::from(hits) + u128::from(misses));
                lines.push(format!(
                    "statistics: {what} lookup hits={hits} miss={misses} success={success}%"
                ));
            }
        }
        if self.destinations != 0 || self.endpoints != 0 || self.sessions != 0 {
            lines.push(format!(
                "statistics: max simultaneous domains={} addresses={} connection={}",
                self.destinations, self.endpoints, self.sessions
            ));
        }
        lines
    }

    pub(crate) fn looked_up_destination(&mut self, hit: bool) {
        if hit {
            self.destination_hits += 1;
        } else {
            self.destination_misses += 1;
        }
    }

    pub(crate) fn looked_up_endpoint(&mut self, hit: bool) {
        if hit {
            self.endpoint_hits += 1;
        } else {
            self.endpoint_misses += 1;
        }
    }

    pub(crate) fn saved_destination(&mut self, destinations: usize, endpoints: usize) {
        self.destinations = self.destinations.max(destinations);
        self.endpoints = self.endpoints.max(endpoints);
    }

    pub(crate) fn saved_endpoint(&mut self, endpoints: usize, sessions: usize) {
        self.endpoints = self.endpoints.max(endpoints);
        self.sessions = self.sessions.max(sessions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_report_is_the_reference_s() {
        let statistics = Statistics {
            destination_hits: 4,
            destination_misses: 2,
            endpoint_hits: 3,
            endpoint_misses: 1,
            destinations: 2,
            endpoints: 3,
            sessions: 3,
        };
        assert_eq!(
            statistics.lines("Nov 22 04:42:27"),
            [
                "statistics: start interval Nov 22 04:42:27",
                "statistics: domain lookup hits=4 miss=2 success=66%",
                "statistics: address lookup hits=3 miss=1 success=75%",
                "statistics: max simultaneous domains=2 addresses=3 connection=3",
            ]
        );
    }

    #[test]
    fn lines_without_news_are_left_out() {
        assert!(Statistics::default().lines("x").is_empty());
        let only_misses = Statistics {
            endpoint_misses: 3,
            ..Statistics::default()
        };
        assert_eq!(
            only_misses.lines("x"),
            [
                "statistics: start interval x",
                "statistics: address lookup hits=0 miss=3 success=0%"
            ]
        );
        let only_sizes = Statistics {
            destinations: 1,
            ..Statistics::default()
        };
        assert_eq!(
            only_sizes.lines("x"),
            [
                "statistics: start interval x",
                "statistics: max simultaneous domains=1 addresses=0 connection=0"
            ]
        );
        let only_hits = Statistics {
            destination_hits: 2,
            ..Statistics::default()
        };
        assert_eq!(
            only_hits.lines("x")[1],
            "statistics: domain lookup hits=2 miss=0 success=100%"
        );
    }
}
