//! How much the cache may hold.

/// How much the cache may hold. Postfix sets no limit at all; these keep a peer from filling the memory.
///
/// The defaults are far above what a machine with ordinary descriptor limits can reach with sessions; the
/// time to live is what bounds a cache in practice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at one time; at most 2^31 - 1 is used. Default 1,048,576.
    pub sessions: usize,
    /// Bindings at one time; at most 2^31 - 1 is used. Default 1,048,576.
    pub bindings: usize,
    /// Bytes of labels and properties at one time, a label counted once however often it is named.
    /// Default 1 GiB.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1 << 20,
            bindings: 1 << 20,
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
            bytes: self.bytes,
        }
    }
}
