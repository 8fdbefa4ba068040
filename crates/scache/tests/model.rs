//! Random histories of the cache against a model that is slow and obvious.

use std::time::Duration;

use postkeep_scache::{Cache, Limits, SaveError};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Operation {
    SaveEndpoint {
        ttl: u64,
        endpoint: u8,
        property: u8,
    },
    FindEndpoint {
        endpoint: u8,
    },
    SaveDestination {
        ttl: u64,
        destination: u8,
        property: u8,
        endpoint: u8,
    },
    FindDestination {
        destination: u8,
    },
    Wait {
        time: u64,
    },
}

#[derive(Debug)]
struct Session {
    due: u64,
    endpoint: u8,
    property: u8,
    handle: usize,
}

#[derive(Debug)]
struct Binding {
    due: u64,
    destination: u8,
    property: u8,
    endpoint: u8,
}

const MOST_SESSIONS: usize = 12;
const MOST_BINDINGS: usize = 12;

/// Everything in the order in which it was saved; every search is a walk.
#[derive(Default)]
struct Model {
    now: u64,
    sessions: Vec<Session>,
    bindings: Vec<Binding>,
    closed: Vec<usize>,
}

impl Model {
    fn wait(&mut self, time: u64) {
        self.now += time;
        let now = self.now;
        self.bindings.retain(|binding| binding.due > now);
        let closed = &mut self.closed;
        self.sessions.retain(|session| {
            if session.due <= now {
                closed.push(session.handle);
            }
            session.due > now
        });
    }

    fn take(&mut self, endpoint: u8) -> Option<Session> {
        let index = self
            .sessions
            .iter()
            .position(|session| session.endpoint == endpoint)?;
        Some(self.sessions.remove(index))
    }

    fn find_destination(&mut self, destination: u8) -> Option<(u8, Session)> {
        let candidates: Vec<(u8, u8)> = self
            .bindings
            .iter()
            .filter(|binding| binding.destination == destination)
            .map(|binding| (binding.property, binding.endpoint))
            .collect();
        candidates
            .into_iter()
            .find_map(|(property, endpoint)| self.take(endpoint).map(|session| (property, session)))
    }

    fn save_destination(&mut self, saved: Binding) -> bool {
        let same = |binding: &&mut Binding| {
            (binding.destination, binding.property, binding.endpoint)
                == (saved.destination, saved.property, saved.endpoint)
        };
        if let Some(binding) = self.bindings.iter_mut().find(same) {
            binding.due = saved.due;
        } else if self.bindings.len() < MOST_BINDINGS {
            self.bindings.push(saved);
        } else {
            return false;
        }
        true
    }

    fn distinct(mut labels: Vec<u8>) -> usize {
        labels.sort_unstable();
        labels.dedup();
        labels.len()
    }

    fn endpoints(&self) -> usize {
        Self::distinct(
            self.sessions
                .iter()
                .map(|session| session.endpoint)
                .collect(),
        )
    }

    fn destinations(&self) -> usize {
        Self::distinct(
            self.bindings
                .iter()
                .map(|binding| binding.destination)
                .collect(),
        )
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let few = 0_u8..3;
    prop_oneof![
        3 => (1_u64..5, few.clone(), few.clone())
            .prop_map(|(ttl, endpoint, property)| Operation::SaveEndpoint { ttl, endpoint, property }),
        2 => few.clone().prop_map(|endpoint| Operation::FindEndpoint { endpoint }),
        4 => (1_u64..5, few.clone(), few.clone(), few.clone()).prop_map(
            |(ttl, destination, property, endpoint)| Operation::SaveDestination {
                ttl,
                destination,
                property,
                endpoint,
            }
        ),
        3 => few.prop_map(|destination| Operation::FindDestination { destination }),
        1 => (0_u64..3).prop_map(|time| Operation::Wait { time }),
    ]
}

/// Different numbers are different texts; 0 is the empty one.
fn text(number: u8) -> Vec<u8> {
    vec![b'x'; number.into()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_cache_does_what_the_model_does(history in prop::collection::vec(operation(), 0..120)) {
        let mut model = Model::default();
        let mut cache = Cache::new(Limits {
            sessions: MOST_SESSIONS,
            bindings: MOST_BINDINGS,
            ..Limits::default()
        });
        let mut closed = Vec::new();
        let mut hits = [0, 0];
        for (handle, operation) in history.into_iter().enumerate() {
            let now = Duration::from_secs(model.now);
            match operation {
                Operation::SaveEndpoint { ttl, endpoint, property } => {
                    let due = model.now + ttl;
                    let saved =
                        cache.save_endpoint(now, Duration::from_secs(ttl), &text(endpoint), &text(property), handle);
                    if model.sessions.len() < MOST_SESSIONS {
                        prop_assert_eq!(saved, Ok(()));
                        model.sessions.push(Session { due, endpoint, property, handle });
                    } else {
                        prop_assert_eq!(saved, Err(SaveError::Full(handle)));
                    }
                }
                Operation::FindEndpoint { endpoint } => {
                    let found = cache.find_endpoint(now, &text(endpoint));
                    let expected = model.take(endpoint);
                    hits[0] += u64::from(found.is_some());
                    prop_assert_eq!(
                        found.map(|found| (found.handle, found.endpoint_property.to_vec())),
                        expected.map(|session| (session.handle, text(session.property)))
                    );
                }
                Operation::SaveDestination { ttl, destination, property, endpoint } => {
                    let due = model.now + ttl;
                    let saved = cache.save_destination(
                        now,
                        Duration::from_secs(ttl),
                        &text(destination),
                        &text(property),
                        &text(endpoint),
                    );
                    prop_assert_eq!(
                        saved.is_ok(),
                        model.save_destination(Binding { due, destination, property, endpoint })
                    );
                }
                Operation::FindDestination { destination } => {
                    let found = cache.find_destination(now, &text(destination));
                    let expected = model.find_destination(destination);
                    hits[1] += u64::from(found.is_some());
                    prop_assert_eq!(
                        found.map(|found| (
                            found.destination_property.to_vec(),
                            found.endpoint_property.to_vec(),
                            found.handle
                        )),
                        expected.map(|(property, session)| (text(property), text(session.property), session.handle))
                    );
                }
                Operation::Wait { time } => {
                    model.wait(time);
                    // Half of the time the next operation finds out by itself.
                    if handle % 2 == 0 {
                        closed.extend(cache.expire(Duration::from_secs(model.now)).handles);
                    }
                    continue;
                }
            }
            closed.extend(cache.take_expired());
            closed.sort_unstable();
            model.closed.sort_unstable();
            prop_assert_eq!(&closed, &model.closed);
            prop_assert_eq!(cache.sessions(), model.sessions.len());
            prop_assert_eq!(cache.bindings(), model.bindings.len());
            prop_assert_eq!(cache.endpoints(), model.endpoints());
            prop_assert_eq!(cache.destinations(), model.destinations());
            let next = model.sessions.iter().map(|session| session.due)
                .chain(model.bindings.iter().map(|binding| binding.due))
                .min();
            prop_assert_eq!(cache.next_expiry(), next.map(Duration::from_secs));
        }
        prop_assert_eq!(
            [cache.statistics().endpoint_hits, cache.statistics().destination_hits],
            hits
        );
        // Nothing is left when everything has expired.
        cache.expire(Duration::from_secs(model.now + 10));
        prop_assert_eq!((cache.sessions(), cache.bindings(), cache.endpoints()), (0, 0, 0));
        prop_assert_eq!(cache.next_expiry(), None);
    }
}
