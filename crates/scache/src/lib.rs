//! The connection cache and its conversation, without input or output.
