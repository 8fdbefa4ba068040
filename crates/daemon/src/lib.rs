//! The multi-client daemon skeleton.
