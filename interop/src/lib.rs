//! Tests against an installed Postfix; here are the mail programs they drive it with.
#![forbid(unsafe_code)]

pub mod mail;
