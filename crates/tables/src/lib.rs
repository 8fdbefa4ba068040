//! The lookup table types and their registry.
