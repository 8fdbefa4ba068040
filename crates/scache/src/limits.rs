//! How much the cache may hold, and which session it hands out.

use crate::goodbye::Goodbyes;

/// How much the cache may hold. Postfix sets no limit at all; these keep a peer from filling the memory, and
/// leave descriptors for others.
///
/// What is saved beyond a limit takes the place of what would have expired soonest. Only what can never fit is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at one time; at most 2^31 - 1 is used. Default 1,048,576.
    pub sessions: usize,
    /// Sessions of one endpoint at one time. When they were not saved in the order in which they expire, a
    /// save at this limit looks at all of them. Default: no limit.
    pub endpoint_sessions: usize,
    /// Bindings at one time; at most 2^31 - 1 is used. Default 1,048,576.
    pub bindings: usize,
    /// Bindings of one destination at one time; a save at this limit looks at all of them. Default: no limit.
    pub destination_bindings: usize,
    /// Bytes of labels and properties at one time, a label counted once however often it is named.
    /// Default 1 GiB.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1 << 20,
            endpoint_sessions: usize::MAX,
            bindings: 1 << 20,
            destination_bindings: usize::MAX,
            bytes: 1 << 30,
        }
    }
}

impl Limits {
    /// Records are numbered with 32 bits.
    pub(crate) fn within_numbers(self) -> Self {
        const MOST: usize = (1 << 31) - 1;
        Self {
            sessions: self.sessions.min(MOST),
            bindings: self.bindings.min(MOST),
            ..self
        }
    }
}

/// Which of the sessions of an endpoint is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The one that was saved first, as Postfix does: all sessions are used in turn, so that each rests for a
    /// while, and none for so long that the other side gives it up. More are found so.
    #[default]
    OldestFirst,
    /// The one that was saved last: it has rested for the shortest time; those that are not needed any more
    /// rest until they expire, so fewer are held.
    NewestFirst,
}

/// What a cache goes by. The default is the reference's behaviour, but for the sizes of [`Limits`].
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// How much it may hold.
    pub limits: Limits,
    /// Which session is found.
    pub order: Order,
    /// What is said to whom at the end of a session.
    pub goodbyes: Goodbyes,
}
