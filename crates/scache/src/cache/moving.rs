//! Sessions and bindings that go to another cache, in a process that takes over.

use std::time::Duration;

use super::{Cache, SaveError, SessionId, due};
use crate::slab::NONE;
use crate::transfer::{self, GOOD_BYTES, MOST_BINDINGS, MOST_SESSIONS};

/// A session on its way from one cache to another.
#[derive(Debug, PartialEq, Eq)]
pub struct MovingSession<H> {
    /// The connection.
    pub handle: H,
    /// Label of the endpoint.
    pub label: Box<[u8]>,
    /// Property of the session.
    pub property: Box<[u8]>,
    /// Time to live that is left.
    pub left: Duration,
}

/// A binding on its way from one cache to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovingBinding {
    /// Label of the destination.
    pub label: Box<[u8]>,
    /// Property of the binding.
    pub property: Box<[u8]>,
    /// Label of the endpoint.
    pub endpoint: Box<[u8]>,
    /// Time to live that is left.
    pub left: Duration,
}

impl<H> Cache<H> {
    /// Takes out some sessions for another cache, as many as go into one frame; none when there are none left.
    ///
    /// The sessions of an endpoint come in the order in which they were saved, also from one call to the next.
    /// Those whose time is up stay.
    ///
    /// # References
    /// [`crate::transfer`]
    pub fn give(&mut self, now: Duration) -> Vec<MovingSession<H>> {
        let mut given = Vec::new();
        let mut size = 0;
        let clock = self.advance(now, usize::MAX);
        while given.len() < MOST_SESSIONS
            && size < GOOD_BYTES
            && let Some((_, soonest)) = self.session_timers.next()
        {
            let endpoint = self.sessions[soonest].endpoint;
            let number = self.endpoints[endpoint].sessions.oldest;
            let session = &self.sessions[number];
            let label: Box<[u8]> = self.endpoints.text(endpoint).into();
            let property: Box<[u8]> = self.properties.text(session.property).into();
            let left = self.session_timers.at(session.timer).saturating_sub(clock);
            let Some(session) = self.remove_session(number) else {
                break;
            };
            size += transfer::session_size(&label, &property);
            self.counters.given += 1;
            given.push(MovingSession {
                handle: session.handle,
                label,
                property,
                left: Duration::from_nanos(left),
            });
        }
        given
    }

    /// Takes back what [`Cache::give`] gave and nobody took, as the newest sessions of their endpoints.
    pub fn take_back(&mut self, now: Duration, sessions: Vec<MovingSession<H>>) -> Vec<SessionId> {
        let now = self.advance(now, 0);
        let back = sessions.into_iter().map(|session| {
            let endpoint = self.endpoints.intern(&session.label, &mut self.bytes);
            let due = due(now, session.left);
            self.counters.given -= 1;
            self.counters.saved -= 1;
            self.append(now, due, endpoint, &session.property, session.handle)
        });
        back.collect()
    }

    /// Saves a session that another cache gave.
    ///
    /// # Errors
    /// As [`Cache::save_endpoint`].
    pub fn receive(
        &mut self,
        now: Duration,
        session: MovingSession<H>,
    ) -> Result<SessionId, SaveError<H>> {
        let MovingSession {
            handle,
            label,
            property,
            left,
        } = session;
        let saved = self.save_endpoint(now, left, &label, &property, handle)?;
        self.counters.received += 1;
        Ok(saved)
    }

    /// Takes out some bindings for another cache, as many as go into one frame; none when there are none left.
    ///
    /// The bindings of a destination come in their order, also from one call to the next.
    pub fn give_bindings(&mut self, now: Duration) -> Vec<MovingBinding> {
        let mut given = Vec::new();
        let mut size = 0;
        let clock = self.advance(now, usize::MAX);
        while given.len() < MOST_BINDINGS
            && size < GOOD_BYTES
            && let Some((_, soonest)) = self.binding_timers.next()
        {
            let destination = self.bindings[soonest].destination;
            let number = self.destinations[destination].bindings.oldest;
            let binding = &self.bindings[number];
            let moving = MovingBinding {
                label: self.destinations.text(destination).into(),
                property: binding.property.clone(),
                endpoint: self.endpoints.text(binding.endpoint).into(),
                left: Duration::from_nanos(
                    self.binding_timers.at(binding.timer).saturating_sub(clock),
                ),
            };
            debug_assert_ne!(number, NONE, "a destination has bindings");
            self.remove_binding(number);
            size += transfer::binding_size(&moving.label, &moving.property, &moving.endpoint);
            given.push(moving);
        }
        given
    }

    /// Saves a binding that another cache gave, or that was given in vain.
    ///
    /// # Errors
    /// As [`Cache::save_destination`].
    pub fn receive_binding(
        &mut self,
        now: Duration,
        binding: &MovingBinding,
    ) -> Result<(), SaveError<()>> {
        let MovingBinding {
            label,
            property,
            endpoint,
            left,
        } = binding;
        self.save_destination(now, *left, label, property, endpoint)
    }
}
