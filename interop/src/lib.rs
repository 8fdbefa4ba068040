//! Tests against an installed Postfix; here is what they drive it with: mail programs, raw
//! conversations, single lookups, postmap(1) beside ours, and servers that tables ask.
#![forbid(unsafe_code)]

pub mod conversation;
pub mod disk;
pub mod lookups;
pub mod mail;
pub mod owners;
pub mod postmap;
pub mod servers;
