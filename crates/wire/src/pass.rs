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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::ListWriter;

    fn passed(input: &[u8], end: Option<End>) -> (Passed, Vec<String>) {
        let mut scanner = PassScanner::default();
        let mut warnings = Vec::new();
        for have in 0..input.len() {
            let answer = scanner.scan(&input[..have], None, &mut warnings);
            if answer != Passed::Incomplete {
                return (answer, warnings);
            }
        }
        (scanner.scan(input, end, &mut warnings), warnings)
    }

    fn entries(pairs: &[(&str, &str)]) -> Vec<Entry> {
        pairs
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn plain_braced_and_empty_lists() {
        for (input, pairs) in [
            (&b"\0"[..], &[][..]),
            (b"a\x001\0b\x002\0\0", &[("a", "1"), ("b", "2")]),
            (b"{\0a\x001\0b\x002\0}\0\0", &[("a", "1"), ("b", "2")]),
            (b"{\0}\0\0", &[]),
            // The first of two stays; what stands behind the braces is nobody's.
            (b"{\0a\x001\0a\x002\0}\0x\0y\0\0", &[("a", "1")]),
        ] {
            let consumed = input.len();
            let expected = Passed::Attributes {
                entries: entries(pairs),
                consumed,
            };
            assert_eq!(passed(input, None), (expected, vec![]));
        }
    }

    #[test]
    fn too_many_attributes_are_cut_off_with_a_warning() {
        let mut input = Vec::new();
        let mut list = ListWriter::new(Encoding::Null, &mut input);
        for number in 0..1030 {
            list.int(&format!("n{number}"), number);
        }
        list.finish();
        let (answer, warnings) = passed(&input, None);
        let Passed::Attributes { entries, .. } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(entries.len(), 1024);
        assert_eq!(
            warnings,
            ["attribute count exceeds limit 1024 in input from unknown_stream"]
        );
    }

    #[test]
    fn an_early_end_fails() {
        assert_eq!(passed(b"", Some(End::Closed)), (Passed::Failed, vec![]));
        assert_eq!(
            passed(b"a\0", Some(End::TimedOut)),
            (
                Passed::Failed,
                vec!["timeout on unknown_stream while reading input attribute value".to_owned()]
            )
        );
    }
}
