//! The client's side: scanning replies.

use crate::diagnostics::Diagnostics;
use crate::duplex::End;
use crate::encode::Encoding;
use crate::number::{low_bits, low_int};
use crate::reply::{self, ReplyError};
use crate::scan::{Limits, ScanFlags, Scanner, Wanted};

use super::{Generation, Operation};

/// A reply; texts borrow from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// A [`super::Status`], or a number that nobody knows.
    pub status: i32,
    /// The table's flags, where the reply has them: to `open`, and in generation two always.
    pub flags: Option<u32>,
    /// The key, in replies to `sequence`; otherwise empty.
    pub key: &'a [u8],
    /// The value, in replies to `lookup` and `sequence`; otherwise empty.
    pub value: &'a [u8],
}

/// What came out of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyScanned<'a> {
    /// More bytes are needed.
    Incomplete,
    /// A reply.
    Reply {
        /// The reply.
        reply: Reply<'a>,
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// No usable reply: close, and try again.
    Failed(ReplyError),
}

/// Reads the reply to a request, strictly.
#[derive(Debug)]
pub struct ReplyScanner {
    list: Scanner,
}

impl Default for ReplyScanner {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl ReplyScanner {
    /// A scanner with limits of its own.
    pub fn new(limits: Limits) -> Self {
        Self {
            list: Scanner::new(Encoding::Null, ScanFlags::STRICT, limits),
        }
    }

    /// Scans on; after another answer than [`ReplyScanned::Incomplete`] the scanner is as new.
    ///
    /// - `operation`, `generation`: of the request that was sent
    /// - `input`: the same bytes as before and more behind them
    /// - `end`: set when nothing will come behind `input`
    /// - `name`: the stream, for warnings (`private/proxymap socket`)
    pub fn scan<'a>(
        &mut self,
        operation: Operation,
        generation: Generation,
        input: &'a [u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> ReplyScanned<'a> {
        let wishes = wishes(operation, generation);
        let progress = self.list.resume(wishes, input, end, name, diagnostics);
        let answer = match reply::verdict(progress, wishes.len(), end) {
            None => return ReplyScanned::Incomplete,
            Some(Err(error)) => ReplyScanned::Failed(error),
            Some(Ok(consumed)) => ReplyScanned::Reply {
                reply: self.reply(operation, generation, input),
                consumed,
            },
        };
        self.list.reset();
        answer
    }

    fn reply<'a>(
        &self,
        operation: Operation,
        generation: Generation,
        input: &'a [u8],
    ) -> Reply<'a> {
        let with_flags = operation == Operation::Open || generation == Generation::Two;
        let texts = 1 + usize::from(with_flags);
        let (key, value): (&[u8], &[u8]) = match operation {
            Operation::Open | Operation::Update | Operation::Delete => (b"", b""),
            Operation::Lookup => (b"", self.list.text(texts, input)),
            Operation::Sequence => (
                self.list.text(texts, input),
                self.list.text(texts + 1, input),
            ),
        };
        Reply {
            status: low_int(self.list.number(0)),
            flags: with_flags.then(|| low_bits(self.list.number(1))),
            key,
            value,
        }
    }
}

fn wishes(operation: Operation, generation: Generation) -> &'static [Wanted<'static>] {
    use Wanted::{Int, Text};
    match (operation, generation) {
        (Operation::Open, _) | (Operation::Update | Operation::Delete, Generation::Two) => {
            &[Int("status"), Int("flags")]
        }
        (Operation::Update | Operation::Delete, Generation::One) => &[Int("status")],
        (Operation::Lookup, Generation::One) => &[Int("status"), Text("value")],
        (Operation::Lookup, Generation::Two) => &[Int("status"), Int("flags"), Text("value")],
        (Operation::Sequence, Generation::One) => &[Int("status"), Text("key"), Text("value")],
        (Operation::Sequence, Generation::Two) => {
            &[Int("status"), Int("flags"), Text("key"), Text("value")]
        }
    }
}
