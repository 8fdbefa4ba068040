pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
pub(crate) use std::sync::PoisonError;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Here another thread may go on. Unlike a thread that yields, this one is not put behind the others for it.
pub(crate) fn step() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

/// A pointer that is read and replaced as a whole.
pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

/// What a pointer pointed to.
pub(crate) struct Guard<T>(T);

impl<T> ArcSwap<T> {
    pub(crate) fn from_pointee(value: T) -> Self {
        Self(Mutex::new(Arc::new(value)))
    }

    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        Guard(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap())
    }

    pub(crate) fn store(&self, value: Arc<T>) {
        // Others may come before it is replaced, and after.
        step();
        // The old one may be closed, which is not to happen under a lock.
        let old = std::mem::replace(&mut *self.0.lock().unwrap(), value);
        drop(old);
    }
}

impl<T: Default> Default for ArcSwap<T> {
    fn default() -> Self {
        Self::from_pointee(T::default())
    }
}

impl<T> fmt::Debug for ArcSwap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArcSwap")
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
