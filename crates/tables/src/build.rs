//! Creating a table from a stream of entries, as postmap(1) and postalias(1) do.

use postkeep_table::{Flags, Outcome};

/// What happens to the entries that a table already has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildMode {
    /// They go: the table holds what the source says (postmap(1) without options).
    Create,
    /// They stay: entries are added (postmap(1) `-i`).
    Add,
}

/// Why a table could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The whole text is the table's own.
    #[error("{0}")]
    Failed(String),
    /// The entry could not be written; the caller has the text (`table TYPE:NAME: write error`).
    #[error("write error: {0}")]
    Write(String),
}

/// A table that is being built. Dropping it without [`Builder::finish`] leaves the old table.
pub trait Builder {
    /// Adds an entry; the flags decide about folding, the trailing NUL and duplicates.
    ///
    /// # Errors
    /// [`BuildError`], after which the build is over.
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError>;

    /// Makes the table visible.
    ///
    /// # Errors
    /// [`BuildError`], in which case the old table is still there.
    fn finish(self: Box<Self>) -> Result<(), BuildError>;
}
