//! Who goes when there is no room for all: clients when there are too many, or what they hold is too much.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::eviction::Candidate;
use crate::service::{Next, Service};
use crate::statistics::Cause;

use super::Worker;
use super::connection::Phase;

impl<S: Service> Worker<S> {
    /// Counts what the large buffers of a client hold now; disconnects who holds most when that is too much.
    pub(super) fn weigh(&mut self, token: u64) {
        if let Some(connection) = self.connections.find(token) {
            let now = connection.inbox.bytes().len() + connection.outbox.len();
            let counted = if connection.swollen { now } else { 0 };
            let before = std::mem::replace(&mut connection.held, counted);
            self.held = self.held - before + counted;
        }
        while self.held > self.most_held {
            let most = self
                .connections
                .iter()
                .max_by_key(|(_, connection)| connection.held)
                .map(|(token, connection)| (token, connection.held));
            let Some((token, held)) = most else { return };
            self.shared.complaints.buffer_memory.say(
                self.now,
                format_args!(
                    "buffer memory limit reached: {} bytes in one worker, a client with {held} of them is disconnected",
                    self.held
                ),
            );
            self.close(token, Cause::Shed);
        }
    }

    /// The client that can best be done without; `None` when all are being served.
    ///
    /// All are looked at once for many answers: a client from which something comes is younger than all that have
    /// been noted before, so whoever is left is still the oldest.
    pub(super) fn candidate(&mut self) -> Option<Candidate> {
        loop {
            while let Some(&(rank, since, token)) = self.candidates.last() {
                let unchanged = self.connections.find(token).is_some_and(|connection| {
                    connection.last_turn == since && connection.rank() == Some(rank)
                });
                if unchanged {
                    return Some((rank, since, token));
                }
                self.candidates.pop();
            }
            let mut all: Vec<Candidate> = self
                .connections
                .iter()
                .filter_map(|(token, connection)| {
                    Some((connection.rank()?, connection.last_turn, token))
                })
                .collect();
            let noted = (all.len() / 16).max(16);
            if noted < all.len() {
                all.select_nth_unstable(noted);
                all.truncate(noted);
                all.shrink_to_fit();
            }
            all.sort_unstable_by(|one, other| other.cmp(one));
            self.candidates = all;
            if self.candidates.is_empty() {
                return None;
            }
        }
    }

    /// Closes a client that was chosen to make room, unless it has sent something meanwhile.
    pub(super) fn evict(&mut self, token: u64, since: Instant) {
        if let Some(connection) = self.connections.find(token)
            && connection.last_turn == since
            && !matches!(
                connection.phase,
                Phase::Serving(Next::Wait | Next::Await { .. })
            )
        {
            let deaf = connection.blocked || matches!(connection.phase, Phase::Held(_));
            // What is in the socket already has come.
            if deaf || !self.read(token) {
                self.close(token, Cause::Shed);
            }
        }
        // Be there room or not: the control thread finds out, and begins anew if need be.
        self.shared.room.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }
}
