//! The multi-client daemon skeleton: what master(8) expects of a service process, and threads to serve many
//! clients at once.
//!
//! A daemon implements [`Program`] (what it needs to start) and [`Service`] (what it does with clients), and
//! calls [`main`]. Everything else is here: the options and environment that master gives, the order of
//! initialisation with the reference's exact complaints, logging, privileges, accepting from `unix`, `inet` and
//! `pass` sockets, time limits, `max_use` and `max_idle`, the status channel, the watchdog, and one-shot mode.
//!
//! ```no_run
//! use std::os::fd::OwnedFd;
//! use std::time::Duration;
//! use postkeep_daemon::{Attributes, Next, Program, Requirement, Service, Setup, Turn, Waker};
//! use postkeep_wire::duplex::Outbox;
//!
//! struct Discard;
//!
//! impl Service for Discard {
//!     type Client = ();
//!     fn write_limit(&self) -> Duration {
//!         Duration::from_secs(1)
//!     }
//!     fn connected(&self, _: &Attributes, _: &mut Outbox<OwnedFd>, _: Waker) {}
//!     fn advance(&self, (): &mut (), turn: &mut Turn<'_>) -> Next {
//!         let count = turn.inbox.bytes().len();
//!         turn.inbox.consume(count);
//!         Next::Idle
//!     }
//! }
//!
//! struct DiscardProgram;
//!
//! impl Program for DiscardProgram {
//!     type Service = Discard;
//!     fn requirements(&self) -> Vec<Requirement<Self>> {
//!         vec![Requirement::Solitary]
//!     }
//!     fn after_jail(self, _: &mut Setup) -> Discard {
//!         Discard
//!     }
//! }
//!
//! let words: Vec<_> = std::env::args_os().collect();
//! postkeep_daemon::main(&words[0], &words[1..], DiscardProgram);
//! ```
//!
//! Modules that commands use as well: [`logging`], [`configuration`], [`blocking`]. What clients may take up: [`limits`].
//! Numbers for a monitoring system: [`metrics`].
//!
//! # References
//! Postfix `multi_server.c`, `master_proto.h`; master(5), master(8).
#![forbid(unsafe_code)]

pub mod blocking;
pub mod configuration;
pub mod limits;
pub mod logging;
mod lookout;
pub mod metrics;

mod census;
mod confinement;
mod control;
mod eviction;
mod handover;
mod one_shot;
mod options;
mod program;
mod service;
mod shared;
mod slots;
mod start;
mod statistics;
mod status;
mod surroundings;
mod waker;
mod watchdog;
mod worker;

pub use postkeep_sys::confine::Reach;
pub use program::{Program, ReadParameters, Requirement, Setup, Transport};
pub use service::{Attributes, Next, Reloaded, Service, Turn};
pub use shared::Control;
pub use start::main;
pub use statistics::Statistics;
pub use surroundings::{SystemAccounts, evaluate_common};
pub use waker::Waker;
