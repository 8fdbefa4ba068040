//! The protocol of proxymap(8) and proxywrite: typed requests and replies, for both sides.
//!
//! There are two generations of requests, and the announcement cannot tell them apart; each request can: the attribute
//! after `table` is `flags` or `instance_flags`. A [`RequestScanner`] therefore finds out for every request.
//!
//! # References
//! proxymap(8); Postfix `src/proxymap/proxymap.c`, `src/global/dict_proxy.c`, `dict_proxy.h`.

mod client;
mod server;

pub use client::{Reply, ReplyScanned, ReplyScanner};
pub use server::{
    RequestScanner, Scanned, reply_bad, reply_delete, reply_failure, reply_lookup, reply_open,
    reply_sequence, reply_unknown, reply_update,
};

use crate::encode::{Encoding, ListWriter};
use crate::protocol;

/// The dialect of a request and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// Postfix 3.0 to 3.10: one attribute `flags` in requests, no flags in replies other than to `open`.
    One,
    /// Postfix 3.11 and later: `instance_flags` and `flags` in requests, `flags` in all replies.
    Two,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `open`
    Open,
    /// `lookup`
    Lookup,
    /// `update`
    Update,
    /// `delete`
    Delete,
    /// `sequence`
    Sequence,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Open,
        Self::Lookup,
        Self::Update,
        Self::Delete,
        Self::Sequence,
    ];

    /// The value of the attribute `request`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Lookup => "lookup",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Sequence => "sequence",
        }
    }

    /// The operation with this name on the wire.
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.word().as_bytes() == word)
    }
}

/// The step of a `sequence` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// 0: to the first entry
    First,
    /// 1: to the entry after the current one
    Next,
}

impl Function {
    /// The value of the attribute `function`.
    pub const fn number(self) -> i32 {
        match self {
            Self::First => 0,
            Self::Next => 1,
        }
    }
}

/// The value of the attribute `status` in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 0: found, or done
    Ok,
    /// 1: not found, or nothing done
    NoKey,
    /// 2: temporary error
    Retry,
    /// 3: malformed request
    Bad,
    /// 4: table not approved, or an update on the read-only service
    Deny,
    /// 5: permanent error of the table
    Config,
}

impl Status {
    /// The number on the wire.
    pub const fn number(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::NoKey => 1,
            Self::Retry => 2,
            Self::Bad => 3,
            Self::Deny => 4,
            Self::Config => 5,
        }
    }

    /// The status with this number.
    pub const fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            0 => Self::Ok,
            1 => Self::NoKey,
            2 => Self::Retry,
            3 => Self::Bad,
            4 => Self::Deny,
            5 => Self::Config,
            _ => return None,
        })
    }
}

/// A request; texts borrow from the input.
///
/// `table` is as sent, `proxy:` prefixes included. In generation one there is only one set of flags on the wire: it is
/// in both fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Opens a table.
    Open {
        /// `TYPE:NAME`
        table: &'a [u8],
        /// Instance flags (generation one: `flags`).
        flags: u32,
    },
    /// Looks up a key.
    Lookup {
        /// `TYPE:NAME`
        table: &'a [u8],
        /// Which instance of the table.
        instance_flags: u32,
        /// Flags of this request.
        flags: u32,
        /// The key, may be empty.
        key: &'a [u8],
    },
    /// Stores an entry.
    Update {
        /// `TYPE:NAME`
        table: &'a [u8],
        /// Which instance of the table.
        instance_flags: u32,
        /// Flags of this request.
        flags: u32,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Deletes an entry.
    Delete {
        /// `TYPE:NAME`
        table: &'a [u8],
        /// Which instance of the table.
        instance_flags: u32,
        /// Flags of this request.
        flags: u32,
        /// The key.
        key: &'a [u8],
    },
    /// Goes through the entries.
    Sequence {
        /// `TYPE:NAME`
        table: &'a [u8],
        /// Which instance of the table.
        instance_flags: u32,
        /// Flags of this request.
        flags: u32,
        /// Where to go.
        function: Function,
    },
}

impl Request<'_> {
    /// What is asked for.
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Open { .. } => Operation::Open,
            Self::Lookup { .. } => Operation::Lookup,
            Self::Update { .. } => Operation::Update,
            Self::Delete { .. } => Operation::Delete,
            Self::Sequence { .. } => Operation::Sequence,
        }
    }

    /// Appends the request as a client sends it; generation one sends `flags` only, not `instance_flags`.
    pub fn encode(&self, generation: Generation, out: &mut Vec<u8>) {
        let mut list = ListWriter::new(Encoding::Null, out);
        list.text("request", self.operation().word().as_bytes());
        match *self {
            Self::Open { table, flags } => {
                list.text("table", table)
                    .bits(instance_word(generation), flags);
            }
            Self::Lookup {
                table,
                instance_flags,
                flags,
                key,
            }
            | Self::Delete {
                table,
                instance_flags,
                flags,
                key,
            } => {
                write_flags(list.text("table", table), generation, instance_flags, flags)
                    .text("key", key);
            }
            Self::Update {
                table,
                instance_flags,
                flags,
                key,
                value,
            } => {
                write_flags(list.text("table", table), generation, instance_flags, flags)
                    .text("key", key)
                    .text("value", value);
            }
            Self::Sequence {
                table,
                instance_flags,
                flags,
                function,
            } => {
                write_flags(list.text("table", table), generation, instance_flags, flags)
                    .int("function", function.number());
            }
        }
        list.finish();
    }
}

fn instance_word(generation: Generation) -> &'static str {
    match generation {
        Generation::One => "flags",
        Generation::Two => "instance_flags",
    }
}

fn write_flags<'l, 'o>(
    list: &'l mut ListWriter<'o>,
    generation: Generation,
    instance_flags: u32,
    flags: u32,
) -> &'l mut ListWriter<'o> {
    match generation {
        Generation::One => list.bits("flags", flags),
        Generation::Two => list
            .bits("instance_flags", instance_flags)
            .bits("flags", flags),
    }
}

/// Appends what the server sends after accepting (Postfix 3.6 and later).
pub fn announce(out: &mut Vec<u8>) {
    protocol::announce(protocol::PROXYMAP, out);
}

#[cfg(test)]
mod tests;
