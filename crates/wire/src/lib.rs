//! Bytes to attribute lists to typed requests and replies, and back.
//!
//! Three layers, each usable on its own:
//!
//! - [`encode`] and [`scan`]: attribute lists in the three encodings of Postfix, with the exact rules (and log
//!   texts) of its receivers, resumable at every byte;
//! - [`protocol`]: the announcement that a server sends after accepting;
//! - [`proxymap`], [`scache`], [`socketmap`], [`pass`]: typed requests and replies, for servers and for clients.
//!
//! [`duplex`] holds the two ends of a connection as data. This crate is pure: no socket, clock, file or thread.
#![forbid(unsafe_code)]

pub mod base64;
pub mod diagnostics;
pub mod duplex;
pub mod encode;
pub mod number;
pub mod pass;
pub mod protocol;
pub mod proxymap;
pub mod reply;
pub mod scache;
pub mod scan;
pub mod socketmap;
#[cfg(test)]
mod vectors;

pub use diagnostics::Diagnostics;
pub use duplex::End;
pub use encode::Encoding;
