//! Random histories of the cache against a model that is slow and obvious.

use std::time::Duration;

use postkeep_scache::{Cache, Cause, Death, Ended, Goodbyes, Limits, Order, Rules};
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
    /// The far end of a session ends it; `heard`: and the watch says so before anybody asks.
    Die {
        handle: usize,
        heard: bool,
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
const MOST_ENDPOINT_SESSIONS: usize = 6;
const MOST_BINDINGS: usize = 12;
const MOST_DESTINATION_BINDINGS: usize = 5;
const SECOND: u64 = 1_000_000_000;

/// Everything in the order in which it was saved; every search is a walk.
#[derive(Default)]
struct Model {
    order: Order,
    now: u64,
    sessions: Vec<Session>,
    bindings: Vec<Binding>,
    dead: Vec<usize>,
    /// Handles of sessions that ended, and why.
    ended: Vec<(usize, Cause)>,
}

impl Model {
    fn wait(&mut self, time: u64) {
        self.now += time * SECOND;
        let now = self.now;
        self.bindings.retain(|binding| binding.due > now);
        let ended = &mut self.ended;
        self.sessions.retain(|session| {
            if session.due <= now {
                ended.push((session.handle, Cause::Expired));
            }
            session.due > now
        });
    }

    fn save(&mut self, saved: Session) {
        let here = |session: &Session| session.endpoint == saved.endpoint;
        if self.sessions.iter().filter(|session| here(session)).count() >= MOST_ENDPOINT_SESSIONS {
            self.evict(here, Cause::EvictedFromEndpoint);
        }
        if self.sessions.len() >= MOST_SESSIONS {
            self.evict(|_| true, Cause::Evicted);
        }
        self.sessions.push(saved);
    }

    fn evict(&mut self, among: impl Fn(&Session) -> bool, cause: Cause) {
        let soonest = (0..self.sessions.len())
            .filter(|&index| among(&self.sessions[index]))
            .min_by_key(|&index| self.sessions[index].due)
            .expect("there is one");
        let session = self.sessions.remove(soonest);
        self.ended.push((session.handle, cause));
    }

    fn die(&mut self, handle: usize, heard: bool) {
        if !self.dead.contains(&handle) {
            self.dead.push(handle);
        }
        if heard
            && let Some(index) = self
                .sessions
                .iter()
                .position(|session| session.handle == handle)
        {
            self.sessions.remove(index);
            self.ended.push((handle, Cause::Dead(Death::Closed)));
        }
    }

    fn take(&mut self, endpoint: u8) -> Option<Session> {
        loop {
            let here = |session: &Session| session.endpoint == endpoint;
            let index = match self.order {
                Order::OldestFirst => self.sessions.iter().position(here),
                Order::NewestFirst => self.sessions.iter().rposition(here),
            }?;
            let session = self.sessions.remove(index);
            if !self.dead.contains(&session.handle) {
                return Some(session);
            }
            self.ended
                .push((session.handle, Cause::Dead(Death::Closed)));
        }
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

    fn save_destination(&mut self, saved: Binding) {
        let same = |binding: &&mut Binding| {
            (binding.destination, binding.property, binding.endpoint)
                == (saved.destination, saved.property, saved.endpoint)
        };
        if let Some(binding) = self.bindings.iter_mut().find(same) {
            binding.due = saved.due;
            return;
        }
        let here = |binding: &Binding| binding.destination == saved.destination;
        if self.bindings.iter().filter(|binding| here(binding)).count() >= MOST_DESTINATION_BINDINGS
        {
            self.evict_binding(here);
        }
        if self.bindings.len() >= MOST_BINDINGS {
            self.evict_binding(|_| true);
        }
        self.bindings.push(saved);
    }

    fn evict_binding(&mut self, among: impl Fn(&Binding) -> bool) {
        let soonest = (0..self.bindings.len())
            .filter(|&index| among(&self.bindings[index]))
            .min_by_key(|&index| self.bindings[index].due)
            .expect("there is one");
        self.bindings.remove(soonest);
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
        1 => (0_usize..120, any::<bool>()).prop_map(|(handle, heard)| Operation::Die { handle, heard }),
    ]
}

/// Different numbers are different texts; 0 is the empty one.
fn text(number: u8) -> Vec<u8> {
    vec![b'x'; number.into()]
}

proptest! {
    // More with PROPTEST_CASES in the environment.
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES")
            .ok()
            .and_then(|cases| cases.parse().ok())
            .unwrap_or(400),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_cache_does_what_the_model_does(
        history in prop::collection::vec(operation(), 0..120),
        newest in any::<bool>(),
    ) {
        let order = if newest { Order::NewestFirst } else { Order::OldestFirst };
        let mut model = Model { order, ..Model::default() };
        let mut cache = Cache::new(Rules {
            limits: Limits {
                sessions: MOST_SESSIONS,
                endpoint_sessions: MOST_ENDPOINT_SESSIONS,
                bindings: MOST_BINDINGS,
                destination_bindings: MOST_DESTINATION_BINDINGS,
                ..Limits::default()
            },
            order,
            goodbyes: Goodbyes::parse("x:QUIT").expect("one entry"),
        });
        let mut ended: Vec<Ended<usize>> = Vec::new();
        let mut identities = Vec::new();
        let mut dead: Vec<usize> = Vec::new();
        let mut hits = [0, 0];
        for (handle, operation) in history.into_iter().enumerate() {
            let now = Duration::from_nanos(model.now);
            // No two records are due at the same moment, so that there is no doubt about who goes first.
            let lifetime = |ttl: u64| ttl * SECOND + handle as u64 + 1;
            let mut examine = |handle: &usize| dead.contains(handle).then_some(Death::Closed);
            match operation {
                Operation::SaveEndpoint { ttl, endpoint, property } => {
                    let ttl = lifetime(ttl);
                    let saved = cache.save_endpoint(
                        now,
                        Duration::from_nanos(ttl),
                        &text(endpoint),
                        &text(property),
                        handle,
                    );
                    identities.push((handle, saved.expect("not larger than the cache")));
                    model.save(Session { due: model.now + ttl, endpoint, property, handle });
                }
                Operation::FindEndpoint { endpoint } => {
                    let found = cache.find_endpoint(now, &text(endpoint), &mut examine);
                    let expected = model.take(endpoint);
                    hits[0] += u64::from(found.is_some());
                    prop_assert_eq!(
                        found.map(|found| (found.handle, found.endpoint_property.to_vec())),
                        expected.map(|session| (session.handle, text(session.property)))
                    );
                }
                Operation::SaveDestination { ttl, destination, property, endpoint } => {
                    let ttl = lifetime(ttl);
                    let saved = cache.save_destination(
                        now,
                        Duration::from_nanos(ttl),
                        &text(destination),
                        &text(property),
                        &text(endpoint),
                    );
                    prop_assert_eq!(saved, Ok(()));
                    model.save_destination(Binding { due: model.now + ttl, destination, property, endpoint });
                }
                Operation::FindDestination { destination } => {
                    let found = cache.find_destination(now, &text(destination), &mut examine);
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
                        ended.extend(cache.expire(Duration::from_nanos(model.now)));
                    }
                    continue;
                }
                Operation::Die { handle, heard } => {
                    dead.push(handle);
                    let identity = identities.iter().find(|(known, _)| *known == handle);
                    cache.expire(now).into_iter().for_each(|expired| ended.push(expired));
                    if heard && let Some((_, identity)) = identity {
                        cache.examine(*identity, &mut |_| Some(Death::Closed));
                    }
                    model.die(handle, heard);
                }
            }
            ended.extend(cache.take_ended());
            for one in &ended {
                let hears = one.goodbye.is_some();
                prop_assert!(!hears || !matches!(one.cause, Cause::Dead(_)));
            }
            let mut causes: Vec<_> = ended.iter().map(|ended| (ended.handle, ended.cause)).collect();
            causes.sort_unstable_by_key(|(handle, _)| *handle);
            model.ended.sort_unstable_by_key(|(handle, _)| *handle);
            prop_assert_eq!(&causes, &model.ended);
            prop_assert_eq!(cache.sessions(), model.sessions.len());
            prop_assert_eq!(cache.bindings(), model.bindings.len());
            prop_assert_eq!(cache.endpoints(), model.endpoints());
            prop_assert_eq!(cache.destinations(), model.destinations());
            let next = model.sessions.iter().map(|session| session.due)
                .chain(model.bindings.iter().map(|binding| binding.due))
                .min();
            prop_assert_eq!(cache.next_expiry(), next.map(Duration::from_nanos));
        }
        prop_assert_eq!(
            [cache.statistics().endpoint_hits, cache.statistics().destination_hits],
            hits
        );
        // Nothing is left when everything has expired, and every session is accounted for.
        cache.expire(Duration::from_nanos(model.now + 10 * SECOND));
        prop_assert_eq!((cache.sessions(), cache.bindings(), cache.endpoints()), (0, 0, 0));
        prop_assert_eq!(cache.next_expiry(), None);
        let counters = cache.counters();
        prop_assert_eq!(counters.found, hits[0] + hits[1]);
        prop_assert_eq!(counters.saved, counters.found + counters.all_ended());
    }
}
