//! The skeleton from outside: the example daemon under a stand-in for master(8).
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod confinement;
mod harness;
mod limits;
mod serve;
mod start;
