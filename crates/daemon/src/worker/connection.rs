//! One connection of a worker, and where it stands.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use postkeep_sys::readiness::Interest;
use postkeep_wire::duplex::{Inbox, Outbox};

use crate::census::Counted;
use crate::eviction::Rank;
use crate::handover::Handover;
use crate::service::Next;

/// What a connection is registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    Nothing,
    For(Interest),
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Another process is handing a client over.
    Handover(Box<Handover>),
    /// Nothing is read before this moment.
    Held(Instant),
    /// Served.
    Serving(Next),
}

pub(super) struct Connection<C> {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) phase: Phase,
    /// What the service remembers, once it knows of the client.
    pub(super) client: Option<C>,
    pub(super) registered: Registered,
    pub(super) inbox: Inbox<OwnedFd>,
    pub(super) outbox: Outbox<OwnedFd>,
    /// The client does not take its reply.
    pub(super) blocked: bool,
    /// It was woken meanwhile: its turn comes when the reply is sent.
    pub(super) woken: bool,
    /// When something happens if nothing comes.
    pub(super) deadline: Option<Instant>,
    /// The earliest entry in the worker's heap.
    pub(super) scheduled: Option<Instant>,
    /// A buffer may have grown large.
    pub(super) swollen: bool,
    /// What its large buffers count for in the worker's sum, in bytes.
    pub(super) held: usize,
    pub(super) last_turn: Instant,
    /// Up to when its requests fill the time that the request rate gives them, in nanoseconds after the worker
    /// began.
    pub(super) paid: u64,
    /// Its place in the count of its user's clients.
    pub(super) counted: Option<Counted>,
}

impl<C> Connection<C> {
    /// How well it can be done without; `None` while it is being served.
    pub(super) fn rank(&self) -> Option<Rank> {
        match self.phase {
            Phase::Serving(Next::Wait | Next::Await { .. }) => None,
            _ if self.blocked => Some(Rank::Slow),
            Phase::Serving(Next::Idle | Next::Listen { .. }) => Some(Rank::Idle),
            Phase::Serving(_) | Phase::Handover(_) | Phase::Held(_) => Some(Rank::Slow),
        }
    }
}
