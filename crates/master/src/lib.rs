//! A stand-in for master(8): runs the services without Postfix.
//!
//! The stand-in owns the listening sockets, so that a client is never refused while a service is being
//! replaced, and hands them to child processes in the way of master(8): descriptors 3 and 4 are the
//! flow-control pipe, 5 the status channel, 6 the listening socket. It stays in the foreground, prints the
//! log records of its services, starts a service again when it is gone and asked for, and stops them when it
//! is told to.
//!
//! Sockets of the network, and those that its own parent has passed to it, are handed on in the same way; a service gets
//! all of its sockets in one process. As process 1 of a container it takes note of the ends of processes that are not
//! its own.
//!
//! What it leaves out: wake-up timers, more than one process for a service (a service here serves all its
//! clients on all cores), and everything that belongs to the mail queue.
//!
//! - [`Layout`]: which directories and sockets there are
//! - [`Service`]: how one service is started
//! - [`Address`], [`Passed`]: where a service listens
//! - [`Site`]: what the embedding program adds
//! - [`Health`]: how the services are
//! - [`run`]: the whole life of the stand-in
#![forbid(unsafe_code)]

mod child;
mod health;
mod layout;
mod listener;
mod orphans;
mod records;
mod signals;
mod supervisor;

pub use child::Service;
pub use health::Health;
pub use layout::{Layout, Owner};
pub use listener::{Address, Passed};
pub use supervisor::{Settings, Site, run};

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the stand-in could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MasterError {
    /// A directory, socket or file of the layout could not be made.
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// What was tried, such as `create directory`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another stand-in serves this directory.
    #[error("another process serves {}", path.display())]
    Running {
        /// The file that it holds a lock on.
        path: PathBuf,
    },
    /// The name of a socket would not fit in a socket address.
    #[error("{} is longer than the {limit} bytes that the name of a socket can have: use a shorter directory name", path.display())]
    SocketName {
        /// The name.
        path: PathBuf,
        /// Greatest length in bytes.
        limit: usize,
    },
    /// A socket that was passed for a service is not what it should be.
    #[error("the socket that was passed for {name} cannot be used: {source}")]
    Passed {
        /// The service.
        name: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Nobody can listen there.
    #[error("cannot listen at {address}: {source}")]
    Address {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A system call that nothing works without failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The embedding program has no services to run, with its reason.
    #[error("{0}")]
    Site(String),
}

impl MasterError {
    fn path(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Path {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    fn system(action: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System {
            action,
            source: source.into(),
        }
    }
}
