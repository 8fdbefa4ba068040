//! The commands that work on tables and configuration files, under the names that Postfix gives them.

pub(crate) mod postconf;
pub(crate) mod postmap;
