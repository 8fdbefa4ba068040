//! When which record of the cache expires.
//!
//! A binary heap whose entries know where they are ([`Timers::arm`] hands out positions through a callback),
//! so that a timer is stopped or moved in logarithmic time and nothing stale ever stays behind. The
//! reference keeps a list in due order and walks it at each save (Postfix `src/util/events.c`).

/// Without the padding that the alignment of the time would add: there are many of these.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Timer {
    /// Nanoseconds on the cache's clock.
    at: u64,
    /// Number of the record that is due.
    what: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: Vec<Timer>,
}

/// Is told each new position of a timer in the heap.
pub(crate) trait Positions {
    fn moved(&mut self, what: u32, position: u32);
}

impl Timers {
    pub(crate) fn next(&self) -> Option<(u64, u32)> {
        self.heap.first().map(|timer| (timer.at, timer.what))
    }

    /// When the timer at this position is due.
    pub(crate) fn at(&self, position: u32) -> u64 {
        self.heap[position as usize].at
    }

    pub(crate) fn arm(&mut self, at: u64, what: u32, positions: &mut impl Positions) {
        self.heap.push(Timer { at, what });
        self.rise(self.heap.len() - 1, positions);
    }

    pub(crate) fn rearm(&mut self, position: u32, at: u64, positions: &mut impl Positions) {
        let position = position as usize;
        let earlier = at < self.heap[position].at;
        self.heap[position].at = at;
        if earlier {
            self.rise(position, positions);
        } else {
            self.sink(position, positions);
        }
    }

    pub(crate) fn stop(&mut self, position: u32, positions: &mut impl Positions) {
        let position = position as usize;
        let removed = self.heap.swap_remove(position);
        if let Some(moved) = self.heap.get(position) {
            if moved.at < removed.at {
                self.rise(position, positions);
            } else {
                self.sink(position, positions);
            }
        } else if self.heap.is_empty() {
            self.heap.shrink_to(64);
        }
    }

    fn rise(&mut self, mut position: usize, positions: &mut impl Positions) {
        let timer = self.heap[position];
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].at <= timer.at {
                break;
            }
            self.put(position, self.heap[parent], positions);
            position = parent;
        }
        self.put(position, timer, positions);
    }

    fn sink(&mut self, mut position: usize, positions: &mut impl Positions) {
        let timer = self.heap[position];
        loop {
            let mut child = 2 * position + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].at < self.heap[child].at {
                child += 1;
            }
            if timer.at <= self.heap[child].at {
                break;
            }
            self.put(position, self.heap[child], positions);
            position = child;
        }
        self.put(position, timer, positions);
    }

    fn put(&mut self, position: usize, timer: Timer, positions: &mut impl Positions) {
        self.heap[position] = timer;
        // Records are numbered with 32 bits, and there is one timer for each.
        positions.moved(timer.what, u32::try_from(position).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Positions for Vec<Option<u32>> {
        fn moved(&mut self, what: u32, position: u32) {
            self[what as usize] = Some(position);
        }
    }

    proptest! {
        #[test]
        fn fires_in_order_whatever_was_stopped_or_moved(
            times in prop::collection::vec(0_u64..50, 1..60),
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(0_u64..50)), 0..60),
        ) {
            let mut timers = Timers::default();
            let mut positions: Vec<Option<u32>> = vec![None; times.len()];
            let mut model: Vec<Option<u64>> = Vec::new();
            for (number, &at) in times.iter().enumerate() {
                timers.arm(at, u32::try_from(number).unwrap(), &mut positions);
                model.push(Some(at));
            }
            for (index, change) in changes {
                let number = index.index(times.len());
                if model[number].is_none() {
                    continue;
                }
                let position = positions[number].unwrap();
                match change {
                    Some(at) => timers.rearm(position, at, &mut positions),
                    None => timers.stop(position, &mut positions),
                }
                model[number] = change;
            }
            let mut expected: Vec<u64> = model.iter().copied().flatten().collect();
            expected.sort_unstable();
            let mut fired = Vec::new();
            while let Some((at, number)) = timers.next() {
                prop_assert_eq!(model[number as usize].take(), Some(at));
                fired.push(at);
                timers.stop(positions[number as usize].unwrap(), &mut positions);
            }
            prop_assert_eq!(fired, expected);
        }
    }
}
