//! What is changed in an indexed file.

/// A change of one entry, whose key and value are in the form in which they are stored.
pub(crate) enum Change {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
        replace: bool,
    },
    /// Deletes the first of these that is there.
    Delete([Option<Vec<u8>>; 2]),
}

/// Entries that can be changed, by their stored form.
pub(crate) trait Entries {
    type Error;

    /// Stores an entry; false when the key is there and must not be replaced.
    fn put(&mut self, key: &[u8], value: &[u8], replace: bool) -> Result<bool, Self::Error>;

    /// Deletes an entry; false when there is none.
    fn delete(&mut self, key: &[u8]) -> Result<bool, Self::Error>;
}

impl Change {
    /// What it takes in the file, about (bytes).
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete(_) => 0,
        }
    }

    /// Whether the entry is new or replaced, or was there to be deleted.
    pub fn make<E: Entries>(&self, entries: &mut E) -> Result<bool, E::Error> {
        match self {
            Self::Put {
                key,
                value,
                replace,
            } => entries.put(key, value, *replace),
            Self::Delete(keys) => {
                for key in keys.iter().flatten() {
                    if entries.delete(key)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}
