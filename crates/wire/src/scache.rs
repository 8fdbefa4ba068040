//! The protocol of scache(8): typed requests, replies and prompts, for both sides.
//!
//! Descriptors are none of this module's business; it only knows the list `dummy` with which the side that will
//! receive one says that it is ready.
//!
//! # References
//! scache(8); Postfix `src/scache/scache.c`, `src/global/scache_clnt.c`, `scache.h`.

mod client;
mod server;

pub use client::{Reply, ReplyScanned, ReplyScanner};
pub use server::{
    RequestScanner, Scanned, reply_bad, reply_destination, reply_endpoint, reply_failure,
    reply_status, reply_unknown,
};

use crate::diagnostics::Diagnostics;
use crate::duplex::End;
use crate::encode::{Encoding, ListWriter};
use crate::protocol;
use crate::scan::{Failure, Limits, Progress, ScanFlags, Scanner, Stop, Wanted};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `save_endp`
    SaveEndpoint,
    /// `find_endp`
    FindEndpoint,
    /// `save_dest`
    SaveDestination,
    /// `find_dest`
    FindDestination,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::SaveEndpoint,
        Self::FindEndpoint,
        Self::SaveDestination,
        Self::FindDestination,
    ];

    /// The value of the attribute `request`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SaveEndpoint => "save_endp",
            Self::FindEndpoint => "find_endp",
            Self::SaveDestination => "save_dest",
            Self::FindDestination => "find_dest",
        }
    }

    /// The operation with this name on the wire.
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.word().as_bytes() == word)
    }
}

/// The value of the attribute `status` in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 0: saved, or found
    Ok,
    /// 1: malformed request
    Bad,
    /// 2: not found, or no descriptor came
    Fail,
}

impl Status {
    /// The number on the wire.
    pub const fn number(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::Bad => 1,
            Self::Fail => 2,
        }
    }

    /// The status with this number.
    pub const fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::Ok,
            1 => Self::Bad,
            2 => Self::Fail,
            _ => return None,
        })
    }
}

/// A request; texts borrow from the input and may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Saves a session; its descriptor comes after a prompt.
    SaveEndpoint {
        /// Seconds, above zero.
        ttl: i32,
        /// The endpoint.
        label: &'a [u8],
        /// What the client needs to go on with the session.
        property: &'a [u8],
    },
    /// Asks for a session.
    FindEndpoint {
        /// The endpoint.
        label: &'a [u8],
    },
    /// Binds a destination to an endpoint.
    SaveDestination {
        /// Seconds, above zero.
        ttl: i32,
        /// The destination.
        label: &'a [u8],
        /// What the client needs to know about the destination.
        property: &'a [u8],
        /// The endpoint.
        endpoint: &'a [u8],
    },
    /// Asks for a session at any endpoint of a destination.
    FindDestination {
        /// The destination.
        label: &'a [u8],
    },
}

impl Request<'_> {
    /// What is asked for.
    pub const fn operation(&self) -> Operation {
        match self {
            Self::SaveEndpoint { .. } => Operation::SaveEndpoint,
            Self::FindEndpoint { .. } => Operation::FindEndpoint,
            Self::SaveDestination { .. } => Operation::SaveDestination,
            Self::FindDestination { .. } => Operation::FindDestination,
        }
    }

    /// Appends the request as a client sends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut list = ListWriter::new(Encoding::Null, out);
        list.text("request", self.operation().word().as_bytes());
        match *self {
            Self::SaveEndpoint {
                ttl,
                label,
                property,
            } => {
                list.int("ttl", ttl)
                    .text("label", label)
                    .text("property", property);
            }
            Self::FindEndpoint { label } | Self::FindDestination { label } => {
                list.text("label", label);
            }
            Self::SaveDestination {
                ttl,
                label,
                property,
                endpoint,
            } => {
                list.int("ttl", ttl)
                    .text("label", label)
                    .text("property", property)
                    .text("label", endpoint);
            }
        }
        list.finish();
    }
}

/// Appends what the server sends after accepting (Postfix 3.6 and later).
pub fn announce(out: &mut Vec<u8>) {
    protocol::announce(protocol::SCACHE, out);
}

/// Appends the list `dummy`: the sender of this is ready to receive a descriptor, or has received it.
pub fn prompt(out: &mut Vec<u8>) {
    ListWriter::new(Encoding::Null, out)
        .text("dummy", b"")
        .finish();
}

/// What came out of a scan for the list `dummy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// More bytes are needed.
    Incomplete,
    /// The list is there, perhaps with a warning about an attribute too many.
    Received {
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// Another list, which has been logged; the conversation goes on with what follows.
    ///
    /// As in the reference only what was read is dropped; the strings that follow are then taken for the beginning of
    /// a list.
    Refused {
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// The input ended, before the list (silently) or within it (with a warning): close.
    Ended(End),
    /// The list cannot be delimited: close.
    Unusable,
}

/// Waits for the list `dummy` of the other side.
#[derive(Debug)]
pub struct PromptScanner {
    list: Scanner,
}

impl Default for PromptScanner {
    fn default() -> Self {
        Self {
            list: Scanner::new(Encoding::Null, ScanFlags::STRICT, Limits::default()),
        }
    }
}

impl PromptScanner {
    /// Scans on; after another answer than [`Prompt::Incomplete`] the scanner is as new.
    ///
    /// `input` holds the same bytes as before and more behind them; `name` is the stream, for warnings.
    pub fn scan(
        &mut self,
        input: &[u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> Prompt {
        let wishes = [Wanted::Text("dummy")];
        let answer = match self.list.resume(&wishes, input, end, name, diagnostics) {
            Progress::Incomplete => return Prompt::Incomplete,
            Progress::Done {
                recovered: 1,
                consumed,
                ..
            } => Prompt::Received { consumed },
            Progress::Done {
                stop: Stop::Nothing,
                ..
            } => Prompt::Ended(end.unwrap_or(End::Closed)),
            Progress::Done { consumed, .. } => Prompt::Refused { consumed },
            Progress::Failed {
                failure: Failure::Ended(end),
                ..
            } => Prompt::Ended(end),
            Progress::Failed { .. } => Prompt::Unusable,
        };
        self.list.reset();
        answer
    }
}

#[cfg(test)]
mod tests;
