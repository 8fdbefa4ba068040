//! The connection cache of scache(8) and its conversation, without input or output.
//!
//! - [`Cache`]: sessions under their endpoints, bindings from destinations to endpoints, their expiry
//! - [`Ended`]: a session that nobody found, why, and what is to be said to its far end
//! - [`Conversation`]: the requests of one client, from bytes to bytes
//! - [`Statistics`]: what is counted, and how it is logged
//! - [`transfer`]: how sessions and bindings are written down for a process that takes over
//!
//! This crate is pure: no socket, clock, file or thread. Time is an argument, a connection is a type
//! parameter.
#![forbid(unsafe_code)]

mod cache;
mod ended;
mod goodbye;
mod labels;
mod limits;
mod service;
mod slab;
mod statistics;
mod timers;
pub mod transfer;

pub use cache::{
    Cache, Found, FoundDestination, MovingBinding, MovingSession, SaveError, SessionId,
};
pub use ended::{Cause, Counters, Death, Ended, Unfit};
pub use goodbye::{BadGoodbye, Goodbyes};
pub use limits::{Limits, Order, Rules};
pub use service::{Awaited, Conversation, MOST_WAITING_HANDLES, Next, Settings, SharedCache};
pub use statistics::Statistics;
