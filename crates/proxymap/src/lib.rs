//! The lookup table server: which tables are approved, how clients share them, and the conversation with one
//! client, request by request.
//!
//! - [`role`]: what a service does, told from its name in master.cf;
//! - [`approve`]: the parser of `proxy_read_maps` and `proxy_write_maps`;
//! - [`evaluate`]: the parameters that end up in those two, in the order in which they must be read;
//! - [`share`]: the open tables of a process, and their reload in place;
//! - [`service`]: the conversation with a client;
//! - [`socketmap`]: the conversation with a client on another machine, in the socketmap protocol.
//!
//! No socket, clock or file is touched here: a driver brings bytes and the time, an
//! [`Opener`](postkeep_table::Opener) the tables, an [`Observer`](watch::Observer) what is known of their files.
#![forbid(unsafe_code)]

pub mod approve;
pub mod counters;
pub mod evaluate;
mod instance;
mod perform;
pub mod role;
pub mod service;
pub mod share;
pub mod socketmap;
mod sync;
mod walk;
pub mod watch;
