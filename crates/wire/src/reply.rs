//! Why a client cannot use what a server sent.

use crate::duplex::End;
use crate::scan::{Failure, Progress, Stop};

/// A reply cannot be used; the connection is to be closed, the request may be tried again on another one.
///
/// What the reference would log has gone to the diagnostics by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Nothing came before the end.
    #[error("no reply")]
    Nothing(End),
    /// The reply breaks off.
    #[error("the reply breaks off")]
    Ended(End),
    /// Not the expected attributes, or a malformed value.
    #[error("not the expected reply")]
    Invalid,
    /// The reply is longer than the limits allow.
    #[error("the reply exceeds a limit")]
    Limit,
}

/// Takes a scan of a reply: how many bytes it has, or why it is no good; `None` while it is incomplete.
pub(crate) fn verdict(
    progress: Progress,
    expected: usize,
    end: Option<End>,
) -> Option<Result<usize, ReplyError>> {
    Some(match progress {
        Progress::Incomplete => return None,
        Progress::Done {
            recovered,
            consumed,
            ..
        } if recovered == expected => Ok(consumed),
        Progress::Done {
            stop: Stop::Nothing,
            ..
        } => Err(ReplyError::Nothing(end.unwrap_or(End::Closed))),
        Progress::Done { .. } => Err(ReplyError::Invalid),
        Progress::Failed { failure, .. } => Err(match failure {
            Failure::Ended(end) => ReplyError::Ended(end),
            Failure::Malformed | Failure::Nested => ReplyError::Invalid,
            Failure::Limit => ReplyError::Limit,
        }),
    })
}
