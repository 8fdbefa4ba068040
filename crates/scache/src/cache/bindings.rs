//! Bindings from destinations to endpoints.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use super::{Binding, Cache, HASH_BITS, STEP, SaveError, due};
use crate::limits::Limits;
use crate::slab::NONE;

impl<H> Cache<H> {
    /// Binds a destination to an endpoint, for `ttl`.
    ///
    /// A binding with the same endpoint and the same property only gets a new lifetime, which may be
    /// shorter; it keeps its place. Any other is added as the newest of the destination. At a limit, those
    /// that would expire soonest go.
    ///
    /// - `label`, `property`: of the destination
    /// - `endpoint`: label of the endpoint, which need not have a session
    ///
    /// # Errors
    /// [`SaveError::Full`] when there is no room even in an empty cache.
    ///
    /// # References
    /// scache(8) `save_dest`; Postfix `src/global/scache_multi.c`, `scache_multi_save_dest()`.
    pub fn save_destination(
        &mut self,
        now: Duration,
        ttl: Duration,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Result<(), SaveError<()>> {
        let now = self.advance(now, STEP);
        let mut known = None;
        if let Some(destination) = self.destinations.find(label)
            && let Some(endpoint) = self.endpoints.find(endpoint)
        {
            known = self.find_binding(destination, endpoint, property);
        }
        match known {
            Some(binding) if self.binding_timers.at(self.bindings[binding].timer) > now => {
                let position = self.bindings[binding].timer;
                self.binding_timers
                    .rearm(position, due(now, ttl), &mut self.bindings);
            }
            late => {
                if let Some(binding) = late {
                    self.remove_binding(binding);
                }
                self.make_room(label, property, endpoint)?;
                let destination = self.destinations.intern(label, &mut self.bytes);
                let endpoint = self.endpoints.intern(endpoint, &mut self.bytes);
                self.bind(due(now, ttl), destination, endpoint, property);
            }
        }
        self.statistics
            .saved_destination(self.destinations.len(), self.live_endpoints);
        Ok(())
    }

    fn make_room(
        &mut self,
        label: &[u8],
        property: &[u8],
        endpoint: &[u8],
    ) -> Result<(), SaveError<()>> {
        let Limits {
            bindings: most,
            destination_bindings: most_here,
            bytes,
            ..
        } = self.rules.limits;
        if most == 0 || most_here == 0 || label.len() + property.len() + endpoint.len() > bytes {
            self.counters.refused_full += 1;
            return Err(SaveError::Full(()));
        }
        while let Some(destination) = self.destinations.find(label)
            && self.destinations[destination].count as usize >= most_here
        {
            self.evict_binding(self.soonest_binding(destination));
        }
        while self.bindings.len() >= most
            && let Some((_, soonest)) = self.binding_timers.next()
        {
            self.evict_binding(soonest);
        }
        while self.bytes
            + property.len()
            + self.destinations.cost(label)
            + self.endpoints.cost(endpoint)
            > bytes
            && self.evict()
        {}
        Ok(())
    }

    pub(super) fn evict_binding(&mut self, number: u32) {
        self.counters.evicted_bindings += 1;
        self.remove_binding(number);
    }

    /// The binding of a destination, which has some, that expires before all others.
    fn soonest_binding(&self, destination: u32) -> u32 {
        let at = |number: u32| self.binding_timers.at(self.bindings[number].timer);
        let mut soonest = self.destinations[destination].bindings.oldest;
        let mut next = self.bindings[soonest].newer;
        while next != NONE {
            if at(next) < at(soonest) {
                soonest = next;
            }
            next = self.bindings[next].newer;
        }
        soonest
    }

    fn bind(&mut self, at: u64, destination: u32, endpoint: u32, property: &[u8]) {
        let newest = self.destinations[destination].bindings.newest;
        let binding = self.bindings.insert(Binding {
            property: property.into(),
            destination,
            endpoint,
            older: newest,
            newer: NONE,
            timer: NONE,
        });
        self.bytes += property.len();
        self.endpoints[endpoint].named += 1;
        let record = &mut self.destinations[destination];
        if newest == NONE {
            record.bindings.oldest = binding;
        } else {
            self.bindings[newest].newer = binding;
        }
        record.bindings.newest = binding;
        record.count += 1;
        let hash = hash(&self.hasher, destination, endpoint, property);
        let (hasher, bindings) = (&self.hasher, &self.bindings);
        self.same
            .insert_unique(hash, binding, |&number| bindings[number].hash(hasher));
        self.binding_timers.arm(at, binding, &mut self.bindings);
    }

    fn find_binding(&self, destination: u32, endpoint: u32, property: &[u8]) -> Option<u32> {
        let hash = hash(&self.hasher, destination, endpoint, property);
        self.same
            .find(hash, |&number| {
                let binding = &self.bindings[number];
                binding.destination == destination
                    && binding.endpoint == endpoint
                    && *binding.property == *property
            })
            .copied()
    }

    pub(super) fn remove_binding(&mut self, number: u32) {
        let timer = self.bindings[number].timer;
        self.binding_timers.stop(timer, &mut self.bindings);
        let hash = self.bindings[number].hash(&self.hasher);
        if let Ok(entry) = self.same.find_entry(hash, |&other| other == number) {
            entry.remove();
        }
        if self.same.is_empty() {
            self.same.shrink_to(64, |_| 0);
        }
        let Some(binding) = self.bindings.remove(number) else {
            return;
        };
        self.bytes -= binding.property.len();
        let record = &mut self.destinations[binding.destination];
        record.count -= 1;
        let ends = &mut record.bindings;
        match binding.older {
            NONE => ends.oldest = binding.newer,
            older => self.bindings[older].newer = binding.newer,
        }
        match binding.newer {
            NONE => ends.newest = binding.older,
            newer => self.bindings[newer].older = binding.older,
        }
        if ends.oldest == NONE {
            self.destinations
                .forget(binding.destination, &mut self.bytes);
        }
        self.endpoints[binding.endpoint].named -= 1;
        self.forget_endpoint(binding.endpoint);
    }
}

impl Binding {
    fn hash(&self, hasher: &RandomState) -> u64 {
        hash(hasher, self.destination, self.endpoint, &self.property)
    }
}

fn hash(hasher: &RandomState, destination: u32, endpoint: u32, property: &[u8]) -> u64 {
    hasher.hash_one((destination, endpoint, property)) & HASH_BITS
}
