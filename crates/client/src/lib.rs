//! Clients of scache(8) and proxymap(8) over UNIX-domain sockets.
//!
//! - [`scache::Client`]: saves and finds sessions, gives up for good after two tries like smtp(8)
//! - `scache::asynchronous`: the same for programs that run on tokio, with the feature `tokio`
//! - [`proxymap::Client`]: looks up, stores, deletes and lists entries of tables behind proxymap(8)
//! - [`Place`]: where the socket is
//!
//! Both work with the servers of Postfix 3.0 to 3.12 and with ours. What the reference's clients would log goes
//! to the `log` facade.
#![forbid(unsafe_code)]

mod place;
pub mod proxymap;
pub mod scache;
#[cfg(test)]
mod scripted;
mod stream;

pub use place::Place;
