//! The locks of code that is gone through by a model checker, which puts its own in their place (`tests/reload_model`).

pub(crate) use arc_swap::{ArcSwap, Guard};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
