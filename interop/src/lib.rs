//! Tests against an installed Postfix; here is what they drive it with: mail programs, raw
//! conversations, and postmap(1) beside ours.
#![forbid(unsafe_code)]

pub mod conversation;
pub mod mail;
pub mod postmap;
