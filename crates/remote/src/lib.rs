//! What tables behind a server share.
//!
//! Pure: [`config`] reads a table's configuration, [`template`] makes queries and results, [`domain`] filters keys,
//! [`socketmap`] and [`tcp_table`] are wire forms. They see no socket, no clock and no file.
#![forbid(unsafe_code)]

pub mod config;
pub mod domain;
pub mod socketmap;
pub mod tcp_table;
pub mod template;
