//! The time limits of a worker's connections.

use std::cmp::Reverse;
use std::time::Instant;

use postkeep_wire::duplex::End;

use crate::logging;
use crate::service::{Next, Service};
use crate::statistics::Cause;

use super::Worker;
use super::connection::Phase;

/// Entries of the heap that may have no connection any more.
const SLACK: usize = 1024;

impl<S: Service> Worker<S> {
    /// Sets the moment at which something happens if nothing comes.
    ///
    /// Most requests are answered before there is any need for this, so the heap stays small; entries that are
    /// too early are looked at, and entered again, when they are due.
    pub(super) fn schedule(&mut self, token: u64, deadline: Option<Instant>) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        connection.deadline = deadline;
        if let Some(at) = deadline
            && connection.scheduled.is_none_or(|scheduled| at < scheduled)
        {
            connection.scheduled = Some(at);
            self.deadlines.push(Reverse((at, token)));
            if self.deadlines.len() > SLACK + 4 * self.connections.len() {
                // Connections that have gone leave entries behind.
                let connections = &mut self.connections;
                self.deadlines.retain(|Reverse((at, token))| {
                    connections
                        .find(*token)
                        .is_some_and(|connection| connection.scheduled == Some(*at))
                });
            }
        }
    }

    pub(super) fn expire(&mut self) {
        while let Some(&Reverse((at, token))) = self.deadlines.peek() {
            if at > self.now {
                return;
            }
            self.deadlines.pop();
            let Some(connection) = self.connections.find(token) else {
                continue;
            };
            if connection.scheduled == Some(at) {
                connection.scheduled = None;
            }
            match connection.deadline {
                Some(deadline) if deadline <= self.now => {
                    connection.deadline = None;
                    self.expired(token);
                }
                deadline => self.schedule(token, deadline),
            }
        }
    }

    fn expired(&mut self, token: u64) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        if connection.blocked {
            self.close(token, Cause::WriteLimit);
            return;
        }
        match connection.phase {
            Phase::Handover(_) => {
                connection.inbox.finish(End::TimedOut);
                self.hand_over(token);
            }
            Phase::Held(_) => {
                connection.phase = Phase::Serving(Next::Idle);
                // What came meanwhile is looked at before anybody finds that the rest of a request took too long.
                if !self.read(token) {
                    self.turn(token, 0);
                }
            }
            Phase::Serving(Next::Wait) => logging::fatal(format_args!("watchdog timeout")),
            Phase::Serving(Next::Listen { .. } | Next::Await { .. }) => self.turn(token, 0),
            Phase::Serving(Next::Idle | Next::Read { .. } | Next::Close) => {
                connection.inbox.finish(End::TimedOut);
                self.turn(token, 0);
            }
        }
    }
}
