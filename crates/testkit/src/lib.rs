//! What tests of several crates need: vectors, raw clients, a stand-in for master(8), a private real Postfix.
//!
//! A dev-dependency only. Everything here drives a daemon from outside, so the same test runs against
//! Postfix's own `scache` and `proxymap` (the control) and against ours.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod berkeley;
pub mod fuzz;
pub mod peer;
pub mod private_postfix;
pub mod program;
pub mod scratch;
pub mod stand_in;
pub mod vectors;

pub use peer::Peer;
pub use private_postfix::PrivatePostfix;
pub use program::{Implementation, RealPostfix, example_binary, postkeep_binary, real_postfix};
pub use scratch::Scratch;
pub use stand_in::StandIn;
