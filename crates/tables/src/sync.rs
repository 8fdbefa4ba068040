//! The locks of code that is gone through by a model checker, which puts its own in their place (`tests/group_model`).

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
