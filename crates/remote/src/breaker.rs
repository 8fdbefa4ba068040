//! A circuit breaker: after failures in a row it lets nothing through for a while, then one probe.
//!
//! Pure: the time is an argument, from any fixed moment on.

use std::time::Duration;

/// What a breaker says to somebody who wants to ask the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go on.
    Pass,
    /// Go on; all others are refused until [`Breaker::succeeded`], [`Breaker::failed`] or [`Breaker::abandoned`] is
    /// called with this.
    Probe,
    /// Fail at once.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration },
    Probing,
}

/// A circuit breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    /// So many failures in a row open it; zero never.
    failures: u32,
    rest: Duration,
}

impl Breaker {
    /// A closed one.
    ///
    /// - `failures`: so many in a row open it; zero for a breaker that never opens
    /// - `rest`: how long it stays open before a probe
    pub fn new(failures: u32, rest: Duration) -> Self {
        Self {
            state: State::Closed { failures: 0 },
            failures,
            rest,
        }
    }

    /// May a question go to the server now?
    pub fn admit(&mut self, now: Duration) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Pass,
            State::Open { until } if now >= until => {
                self.state = State::Probing;
                Admission::Probe
            }
            State::Open { .. } | State::Probing => Admission::Refused,
        }
    }

    /// The server answered, whatever the answer. Returns true when the breaker was not closed before.
    pub fn succeeded(&mut self) -> bool {
        let closes = !matches!(self.state, State::Closed { .. });
        self.state = State::Closed { failures: 0 };
        closes
    }

    /// The server could not be reached, or did not answer in time. Returns true when this opens a closed breaker.
    pub fn failed(&mut self, admission: Admission, now: Duration) -> bool {
        let until = now.saturating_add(self.rest);
        match &mut self.state {
            State::Closed { failures } => {
                *failures = failures.saturating_add(1);
                if self.failures == 0 || *failures < self.failures {
                    return false;
                }
                self.state = State::Open { until };
                true
            }
            State::Probing if admission == Admission::Probe => {
                self.state = State::Open { until };
                false
            }
            // News from before it opened.
            State::Probing | State::Open { .. } => false,
        }
    }

    /// Nothing was learnt about the server; the next one may probe.
    pub fn abandoned(&mut self, admission: Admission, now: Duration) {
        if self.state == State::Probing && admission == Admission::Probe {
            self.state = State::Open { until: now };
        }
    }

    /// Is it closed?
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_closes_it() {
        let mut breaker = Breaker::new(3, at(10));
        assert!(!breaker.failed(Admission::Pass, at(0)));
        assert!(!breaker.failed(Admission::Pass, at(0)));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(Admission::Pass, at(1)));
        assert!(!breaker.failed(Admission::Pass, at(1)));
        assert_eq!(breaker.admit(at(1)), Admission::Pass);
        assert!(breaker.failed(Admission::Pass, at(2)));
        assert_eq!(breaker.admit(at(11)), Admission::Refused);
        assert_eq!(breaker.admit(at(12)), Admission::Probe);
        assert_eq!(breaker.admit(at(12)), Admission::Refused);
        assert!(!breaker.failed(Admission::Pass, at(12)));
        assert_eq!(breaker.admit(at(12)), Admission::Refused);
        assert!(!breaker.failed(Admission::Probe, at(13)));
        assert_eq!(breaker.admit(at(22)), Admission::Refused);
        assert_eq!(breaker.admit(at(23)), Admission::Probe);
        assert!(breaker.succeeded());
        assert!(breaker.is_closed());
        assert_eq!(breaker.admit(at(23)), Admission::Pass);
    }

    #[test]
    fn a_probe_that_learns_nothing_leaves_the_next_one_to_another() {
        let mut breaker = Breaker::new(1, at(10));
        assert!(breaker.failed(Admission::Pass, at(0)));
        assert_eq!(breaker.admit(at(10)), Admission::Probe);
        breaker.abandoned(Admission::Pass, at(11));
        assert_eq!(breaker.admit(at(11)), Admission::Refused);
        breaker.abandoned(Admission::Probe, at(11));
        assert_eq!(breaker.admit(at(11)), Admission::Probe);
    }

    #[test]
    fn zero_failures_never_open_it() {
        let mut breaker = Breaker::new(0, at(10));
        for _ in 0..1000 {
            assert!(!breaker.failed(Admission::Pass, at(0)));
        }
        assert_eq!(breaker.admit(at(0)), Admission::Pass);
    }

    proptest! {
        /// Whatever happens: at most one probe is out, and while it is open for its rest nothing passes.
        #[test]
        fn one_probe_at_a_time(steps in prop::collection::vec((0u8..4, 0u64..8), 1..200)) {
            let mut breaker = Breaker::new(2, at(5));
            let (mut now, mut out) = (0, Vec::new());
            for (step, wait) in steps {
                now += wait;
                match step {
                    0 | 1 => match breaker.admit(at(now)) {
                        Admission::Refused => {}
                        admission => out.push(admission),
                    },
                    2 if !out.is_empty() => {
                        let admission = out.remove(0);
                        breaker.failed(admission, at(now));
                    }
                    3 if !out.is_empty() => {
                        let admission = out.pop().unwrap();
                        if admission == Admission::Probe {
                            breaker.abandoned(admission, at(now));
                        } else {
                            breaker.succeeded();
                            out.retain(|other| *other != Admission::Probe);
                        }
                    }
                    _ => {}
                }
                let probes = out.iter().filter(|other| **other == Admission::Probe).count();
                prop_assert!(probes <= 1);
            }
        }
    }
}
