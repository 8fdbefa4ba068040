//! Bytes to attribute lists to typed requests and replies, and back.
//!
//! This crate is pure: no socket, clock, file or thread.
#![forbid(unsafe_code)]

pub mod duplex;
