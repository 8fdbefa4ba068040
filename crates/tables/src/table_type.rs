//! What the registry knows of a table type.

use std::sync::Arc;

use postkeep_table::{Access, Flags, OpenError, Table, TableName};

use crate::{BuildMode, Builder, Context, Registry};

bitflags::bitflags! {
    /// What tables of a type can do beside lookups.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// Refuses to be opened for writing.
        const READ_ONLY = 1;
        /// Entries can be stored.
        const UPDATE = 1 << 1;
        /// Entries can be deleted.
        const DELETE = 1 << 2;
        /// Entries can be listed.
        const SEQUENCE = 1 << 3;
        /// postmap(1) can create it from a source file.
        const BUILD = 1 << 4;
        /// A pattern table; the others compare keys as fixed strings.
        const PATTERN = 1 << 5;
        /// The name is that of a file.
        const FILE = 1 << 6;
        /// The name carries the data.
        const DATA_IN_NAME = 1 << 7;
        /// Stands before another table, which checks and folds for itself.
        const WRAPS = 1 << 8;
    }
}

/// How to open a table of a type.
type Open = fn(&Request<'_>) -> Result<Arc<dyn Table>, OpenError>;

/// How to create a table of a type, or to add to it.
type Build = fn(&Request<'_>, BuildMode) -> Result<Box<dyn Builder>, OpenError>;

/// A table type: one row of the registry.
#[derive(Debug)]
pub struct TableType {
    /// The word before the colon.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// What its tables can do.
    pub capabilities: Capabilities,
    /// Opens a table. The shared layer is put over the result by the registry.
    pub(crate) open: Open,
    /// Creates tables, for the types that are built from a source.
    pub(crate) build: Option<Build>,
}

/// What an open function gets.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// To open tables inside this one.
    pub registry: &'a Registry,
    pub context: &'a Context,
    pub name: &'a TableName,
    pub access: Access,
    pub flags: Flags,
    /// How many tables this one is inside of.
    pub depth: usize,
    /// The text of the configuration file, when it is not to be read.
    pub text: Option<&'a [u8]>,
    /// Keys and values are to be valid UTF-8, and folding follows Unicode.
    pub utf8: bool,
}

/// How many tables may be inside each other, so that no name can exhaust the stack.
const DEPTH: usize = 100;

impl Request<'_> {
    /// Opens a table inside this one, in the same way.
    ///
    /// # Errors
    /// As for any table, and when tables are nested too deeply.
    pub fn open_inner(&self, name: &TableName) -> Result<Arc<dyn Table>, OpenError> {
        if self.depth >= DEPTH {
            return Err(OpenError::Unavailable(format!(
                "{name}: tables are nested too deeply"
            )));
        }
        self.registry
            .open_inside(name, self.access, self.flags, self.depth + 1)
    }

    /// The flags of a table of fixed strings right after opening.
    pub fn fixed_flags(&self) -> Flags {
        self.flags.difference(Flags::PATTERN) | Flags::FIXED
    }
}
