//! Who commits and what goes together: changes that come while a commit is under way wait in line, and the first of
//! them commits all.
//!
//! This is the order of things only, without a thread or a file. Each function is one critical section of its user.

use std::collections::VecDeque;

/// The most changes of one commit.
pub(crate) const MOST: usize = 128;

/// Above this size (bytes) a commit takes no further change.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// Changes that wait for their commit. The one whose owner leads is always the first.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) struct Line<C> {
    waiting: VecDeque<(usize, C)>,
    /// Somebody commits, or is about to.
    led: bool,
}

/// What the owner of a change has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Commit, what is in line by then included.
    Leads,
    /// Wait until told: to lead, or what came of the change.
    Waits,
}

impl<C> Default for Line<C> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            led: false,
        }
    }
}

impl<C> Line<C> {
    /// A change of this size (bytes) gets in line.
    pub(super) fn join(&mut self, bytes: usize, change: C) -> Place {
        self.waiting.push_back((bytes, change));
        if self.led {
            return Place::Waits;
        }
        self.led = true;
        Place::Leads
    }

    /// The leader takes what goes into its commit, once: its own change and those behind it, in their order.
    pub(super) fn take(&mut self) -> Vec<C> {
        let mut bytes = 0_usize;
        let number = self
            .waiting
            .iter()
            .take(MOST)
            .take_while(|(size, _)| {
                let room = bytes < MOST_BYTES;
                bytes = bytes.saturating_add(*size);
                room
            })
            .count();
        self.waiting
            .drain(..number)
            .map(|(_, change)| change)
            .collect()
    }

    /// Changes that nobody has taken yet.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The leader is done: the owner of the first change in line leads next and has to be told so.
    pub(super) fn pass_on(&mut self) -> Option<&C> {
        let next = self.waiting.front().map(|(_, change)| change);
        self.led = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests;
