//! A table of connections whose tokens are never taken for another's.

/// Values under tokens; a token of a removed value finds nothing, also when its place is used again.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores what `make` makes of the token that it will have.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u64) -> T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                value: None,
            });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        let token = u64::from(place.generation) << 32 | u64::from(index);
        place.value = Some(make(token));
        token
    }

    fn place(&mut self, token: u64) -> Option<(u32, &mut Place<T>)> {
        let index = u32::try_from(token & u64::from(u32::MAX)).ok()?;
        let place = self.places.get_mut(index as usize)?;
        (u64::from(place.generation) == token >> 32).then_some((index, place))
    }

    pub(crate) fn find(&mut self, token: u64) -> Option<&mut T> {
        self.place(token)?.1.value.as_mut()
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<T> {
        let (index, place) = self.place(token)?;
        let value = place.value.take()?;
        // One generation is kept out of use, so that no token is all ones.
        place.generation = (place.generation + 1) % (u32::MAX - 1);
        self.free.push(index);
        Some(value)
    }

    /// All values with their tokens.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let token = u64::from(place.generation) << 32 | index as u64;
            place.value.as_ref().map(|value| (token, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_dies_with_its_value() {
        let mut slots = Slots::new();
        let first = slots.insert_with(|token| token);
        assert_eq!(slots.find(first), Some(&mut first.clone()));
        assert_eq!(slots.remove(first), Some(first));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert_with(|token| token);
        assert_ne!(first, second);
        assert_eq!(slots.find(first), None);
        assert_eq!(slots.len(), 1);
        assert_eq!(
            slots.iter().map(|(token, _)| token).collect::<Vec<_>>(),
            [second]
        );
        assert_eq!(slots.find(u64::MAX), None);
        slots.remove(second);
        assert!(slots.is_empty());
    }
}
