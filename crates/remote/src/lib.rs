//! What tables behind a server share.
//!
//! Pure: [`config`] reads a table's configuration, [`template`] makes queries and results, [`domain`] filters keys,
//! [`memcache`], [`socketmap`] and [`tcp_table`] are wire forms. They see no socket, no clock and no file.
//!
//! Pure as well, with the time as an argument: [`breaker`] and [`hosts`], and [`limits`], which names the keys.
//!
//! Not pure: [`rules`] joins these for tables with one query, [`runtime`] runs lookups beside the event loop of the
//! daemons, [`pool`] keeps connections, [`stream`] opens them, [`tls`] says whom to trust, [`source`] makes a [`Table`](postkeep_table::Table) of
//! all that.
//!
//! # How to add a table type
//!
//! One file in `crates/tables/src`, as for any type, with
//!
//! 1. a [`Backend`](pool::Backend): how to connect, how to ask, and the words of the warnings;
//! 2. a [`Source`](source::Source), which holds the table's name, flags, rules and an `Arc` of the pool. Its lookup
//!    takes the key apart ([`Rules::key`](rules::Rules::key), which asks the `domain` filter first), makes the query with
//!    the type's quoting ([`Rules::expand`](rules::Rules::expand)), asks the pool ([`Pool::ask`](pool::Pool::ask)), and
//!    joins the values ([`Rules::answer`](rules::Rules::answer));
//! 3. an open function, which reads the configuration ([`config::Config`]), the limits
//!    ([`Limits::read`](limits::Limits::read)), and gets the pool from a [`Shared`](pool::Shared) when tables with equal
//!    servers and credentials are to share connections.
#![forbid(unsafe_code)]

pub mod breaker;
pub mod config;
pub mod domain;
pub mod hosts;
pub mod limits;
pub mod memcache;
mod meter;
pub mod pool;
pub mod rules;
pub mod runtime;
pub mod socketmap;
pub mod source;
pub mod stream;
pub mod tcp_table;
pub mod template;
pub mod tls;
