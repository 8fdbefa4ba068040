//! Sessions and bindings that go from one process to the next: over a socket in the data directory, with the words of
//! [`postkeep_scache::transfer`].
//!
//! The process that ends listens, the one that begins connects. Each makes sure that the other belongs to the same
//! user, or to root. Nothing here waits for longer than [`STEP`] for the other side.

mod giver;
mod line;
mod place;
mod store;
mod taker;

pub(crate) use giver::{Giver, give};
pub(crate) use line::{Broken, Line};
pub(crate) use place::Place;
pub(crate) use store::{Stored, keep};
pub(crate) use taker::{Taker, greet, take};

use std::time::Duration;

/// How long the other side may take for one step.
pub(crate) const STEP: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
