//! Whether to look for the next piece of work for a moment before going to sleep.
//!
//! To be put to sleep and woken costs more than looking a few times, for who works and for the client that waits for it.
//! So a worker whose clients usually ask again at once looks for about as long as going to sleep would cost, and lets
//! others have the processor between two looks. A pool of threads does the same. When that was in vain, or others did want the processor, it goes back to
//! sleeping at once until the requests come fast again.

use std::time::Duration;

/// Looks that paid off, of which so many at most are remembered.
const MOST: i32 = 16;
/// What a look in vain costs.
const VAIN: i32 = 4;
/// After others had the processor for long, so many requests have to come fast before it is tried again.
const CROWDED: i32 = -64;
/// Others had the processor for long when a look takes so many times what it may.
const LONG: u32 = 4;

/// What one worker, or one pool of threads, knows of it.
#[derive(Debug)]
pub(crate) struct Lookout {
    window: Duration,
    credit: i32,
}

impl Lookout {
    /// - `window`: how long to look at most; zero: never
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, credit: 0 }
    }

    /// Whether to look before sleeping.
    ///
    /// - `limit`: when something is due, if nothing comes
    pub(crate) fn pays(&self, limit: Option<Duration>) -> bool {
        self.credit > 0 && !self.window.is_zero() && limit.is_none_or(|limit| limit > self.window)
    }

    /// Nothing has come for so long since the looking began: whether to look once more.
    pub(crate) fn again(&mut self, passed: Duration) -> bool {
        if passed < self.window {
            return true;
        }
        self.credit = if passed < self.window * LONG {
            self.credit - VAIN
        } else {
            CROWDED
        };
        false
    }

    /// Something came, so long after the looking or the sleep began.
    pub(crate) fn came(&mut self, passed: Duration, looking: bool) {
        if passed < self.window * 2 {
            self.credit = (self.credit + 1).min(MOST);
        } else if looking && passed >= self.window * LONG {
            self.credit = CROWDED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(25);
    const FAST: Duration = Duration::from_micros(10);
    const SLOW: Duration = Duration::from_millis(1);

    #[test]
    fn it_looks_while_requests_come_fast() {
        let mut lookout = Lookout::new(WINDOW);
        assert!(!lookout.pays(None));
        lookout.came(SLOW, false);
        assert!(!lookout.pays(None));
        lookout.came(FAST, false);
        assert!(lookout.pays(None));
        assert!(lookout.pays(Some(SLOW)));
        assert!(!lookout.pays(Some(FAST)), "something is due before");
        assert!(lookout.again(FAST));
        assert!(!lookout.again(WINDOW));
        assert!(!lookout.pays(None), "it was in vain");
    }

    #[test]
    fn a_few_looks_in_vain_end_it_whatever_was_before() {
        let mut lookout = Lookout::new(WINDOW);
        for _ in 0..1000 {
            lookout.came(FAST, true);
        }
        let mut vain = 0;
        while lookout.pays(None) {
            lookout.again(WINDOW);
            vain += 1;
        }
        assert_eq!(vain, 4);
    }

    #[test]
    fn others_that_want_the_processor_end_it_for_longer() {
        for come in [false, true] {
            let mut lookout = Lookout::new(WINDOW);
            lookout.came(FAST, false);
            if come {
                lookout.came(SLOW, true);
            } else {
                assert!(!lookout.again(SLOW));
            }
            for _ in 0..64 {
                assert!(!lookout.pays(None));
                lookout.came(FAST, false);
            }
            lookout.came(FAST, false);
            assert!(lookout.pays(None));
        }
    }

    #[test]
    fn without_a_window_it_never_looks() {
        let mut lookout = Lookout::new(Duration::ZERO);
        lookout.came(Duration::ZERO, false);
        assert!(!lookout.pays(None));
    }
}
