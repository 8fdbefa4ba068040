//! Tests against an installed Postfix; here is what they drive it with: mail programs and raw conversations.
#![forbid(unsafe_code)]

pub mod conversation;
pub mod mail;
