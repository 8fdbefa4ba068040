//! The lookup table server: which tables are approved, how clients share them, and the conversation with one
//! client, request by request.
#![forbid(unsafe_code)]

pub mod approve;
pub mod role;
