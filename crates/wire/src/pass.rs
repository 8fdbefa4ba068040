//! The attributes that come with a connection on a `pass` service (postscreen(8) to smtpd(8), for one).
//!
//! # References
//! Postfix `src/util/recv_pass_attr.c`.

use crate::diagnostics::Diagnostics;
use crate::duplex::End;
use crate::encode::Encoding;
use crate::scan::{Entry, Limits, Progress, ScanFlags, Scanner, Stop, Value, Wanted};

/// The stream's name in warnings: the reference reads these attributes from a stream without one.
pub const STREAM: &str = "unknown_stream";

/// What came out of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// More bytes are needed.
    Incomplete,
    /// The attributes, in the order of arrival, at most [`crate::scan::HASH_LIMIT`].
    Attributes {
        /// Name and value; an empty list means that there are none.
        entries: Vec<Entry>,
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// The list is broken or did not come in time: close the connection that was passed.
    Failed,
}

/// Reads the attribute list behind a passed descriptor: any names, plain or in braces.
#[derive(Debug)]
pub struct PassScanner {
    list: Scanner,
}

impl Default for PassScanner {
    fn default() -> Self {
        Self {
            list: Scanner::new(Encoding::Null, ScanFlags::empty(), Limits::default()),
        }
    }
}

impl PassScanner {
    /// Scans on; after another answer than [`Passed::Incomplete`] the scanner is as new.
    ///
    /// `input` holds the same bytes as before and more behind them.
    pub fn scan(
        &mut self,
        input: &[u8],
        end: Option<End>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Passed {
        let answer = match self
            .list
            .resume(&[Wanted::Multi], input, end, STREAM, diagnostics)
        {
            Progress::Incomplete => return Passed::Incomplete,
            Progress::Failed { .. }
            | Progress::Done {
                stop: Stop::Nothing,
                ..
            } => Passed::Failed,
            Progress::Done { consumed, .. } => Passed::Attributes {
                entries: match self.list.value(0, input) {
                    Some(Value::Multi(entries)) => entries.to_vec(),
                    _ => Vec::new(),
                },
                consumed,
            },
        };
        self.list.reset();
        answer
    }
}
