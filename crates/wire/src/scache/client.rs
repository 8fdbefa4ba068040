//! The client's side: scanning replies.

use crate::diagnostics::Diagnostics;
use crate::duplex::End;
use crate::encode::Encoding;
use crate::number::low_int;
use crate::reply::{self, ReplyError};
use crate::scan::{Limits, ScanFlags, Scanner, Wanted};

use super::Operation;

/// A reply; texts borrow from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// A [`super::Status`], or a number that nobody knows; all but 0 mean that there is no session.
    pub status: i32,
    /// The destination's property, in replies to `find_dest`; otherwise empty.
    pub destination: &'a [u8],
    /// The endpoint's property, in replies to `find_dest` and `find_endp`; otherwise empty.
    pub endpoint: &'a [u8],
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

/// Reads the reply to a request, strictly; the prompt is read by [`super::PromptScanner`].
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
    /// - `operation`: of the request that was sent
    /// - `input`: the same bytes as before and more behind them
    /// - `end`: set when nothing will come behind `input`
    /// - `name`: the stream, for warnings (`private/scache`)
    pub fn scan<'a>(
        &mut self,
        operation: Operation,
        input: &'a [u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> ReplyScanned<'a> {
        use Wanted::{Int, Text};
        let wishes: &[Wanted<'static>] = match operation {
            Operation::SaveEndpoint | Operation::SaveDestination => &[Int("status")],
            Operation::FindEndpoint => &[Int("status"), Text("property")],
            Operation::FindDestination => &[Int("status"), Text("property"), Text("property")],
        };
        let progress = self.list.resume(wishes, input, end, name, diagnostics);
        let answer = match reply::verdict(progress, wishes.len(), end) {
            None => return ReplyScanned::Incomplete,
            Some(Err(error)) => ReplyScanned::Failed(error),
            Some(Ok(consumed)) => {
                let text = |index| self.list.text(index, input);
                let (destination, endpoint) = match operation {
                    Operation::SaveEndpoint | Operation::SaveDestination => (&b""[..], &b""[..]),
                    Operation::FindEndpoint => (&b""[..], text(1)),
                    Operation::FindDestination => (text(1), text(2)),
                };
                ReplyScanned::Reply {
                    reply: Reply {
                        status: low_int(self.list.number(0)),
                        destination,
                        endpoint,
                    },
                    consumed,
                }
            }
        };
        self.list.reset();
        answer
    }
}
