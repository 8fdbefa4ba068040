//! Threads that change one table at a time share a transaction and its way to the disk.
//!
//! Nobody waits for company: a thread that finds nobody at work commits at once. Those that come meanwhile wait, and
//! the first of them commits for all. Each thread gets the outcome of its own change, and not before the commit that
//! holds it has returned.

mod change;
mod line;

use std::cell::{Cell, OnceCell};

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use line::{Line, Place};

pub(crate) use change::{Change, Entries};
#[cfg(test)]
pub(crate) use line::MOST;

/// Where changes go.
pub(crate) trait Store {
    type Change: 'static;
    type Error;

    /// Makes all changes in one transaction, in order, and brings them to the disk.
    ///
    /// - `changes`: to be called when nobody else can write any more, so that those who come until then are
    ///   included; answers the same each time
    ///
    /// # Errors
    /// Nothing was changed, or everything was and that is not certain.
    fn apply<'c>(
        &self,
        changes: &dyn Fn() -> Vec<&'c Self::Change>,
    ) -> Result<Vec<bool>, Self::Error>;

    /// What each change of a transaction gets that failed for this reason, when it would help none of them to be made alone:
    /// somebody else has the file, for whom one has waited long enough. `None`: each is made alone.
    fn for_each(&self, error: &Self::Error) -> Option<Self::Error> {
        let _ = error;
        None
    }
}

/// What a waiting thread is told.
enum Told<E> {
    Nothing,
    Leads,
    /// `None`: the leader broke down.
    Done(Option<Result<bool, E>>),
}

struct Waiter<C, E> {
    change: C,
    told: Mutex<Told<E>>,
    word: Condvar,
}

impl<C, E> Waiter<C, E> {
    fn told(&self) -> MutexGuard<'_, Told<E>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: Told<E>) {
        *self.told() = told;
        self.word.notify_one();
    }

    fn wait(&self) -> Told<E> {
        let mut told = self.told();
        loop {
            let word = std::mem::replace(&mut *told, Told::Nothing);
            match word {
                Told::Nothing => {
                    told = self.word.wait(told).unwrap_or_else(PoisonError::into_inner);
                }
                word => return word,
            }
        }
    }
}

/// The changes of one table that are under way.
pub(crate) struct Group<C, E> {
    line: Mutex<Line<Arc<Waiter<C, E>>>>,
}

impl<C, E> Default for Group<C, E> {
    fn default() -> Self {
        Self {
            line: Mutex::default(),
        }
    }
}

impl<C, E> Group<C, E> {
    fn line(&self) -> MutexGuard<'_, Line<Arc<Waiter<C, E>>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes in line that no transaction has taken yet.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.line().len()
    }

    /// Makes a change of this size (bytes), with those of others where there are any; returns when it is committed.
    ///
    /// `None` when the thread that was to commit it broke down.
    ///
    /// A transaction that fails is made again for each change alone, so that one that cannot be made spoils no other.
    ///
    /// # Errors
    /// Of the store, about this change.
    pub(crate) fn commit(
        &self,
        bytes: usize,
        change: C,
        store: &impl Store<Change = C, Error = E>,
    ) -> Option<Result<bool, E>> {
        let waiter = Arc::new(Waiter {
            change,
            told: Mutex::new(Told::Nothing),
            word: Condvar::new(),
        });
        let place = self.line().join(bytes, Arc::clone(&waiter));
        if place == Place::Waits
            && let Told::Done(result) = waiter.wait()
        {
            return result;
        }
        Lead {
            group: self,
            batch: OnceCell::new(),
            passed_on: Cell::new(false),
        }
        .run(store);
        // The leader's own change is the first of its batch.
        match waiter.wait() {
            Told::Done(result) => result,
            Told::Nothing | Told::Leads => None,
        }
    }
}

/// The right to commit, which is passed on whatever happens.
struct Lead<'g, C, E> {
    group: &'g Group<C, E>,
    batch: OnceCell<Vec<Arc<Waiter<C, E>>>>,
    passed_on: Cell<bool>,
}

impl<C, E> Lead<'_, C, E> {
    fn batch(&self) -> &[Arc<Waiter<C, E>>] {
        self.batch.get_or_init(|| self.group.line().take())
    }

    fn run(self, store: &impl Store<Change = C, Error = E>) {
        let results = store.apply(&|| self.batch().iter().map(|waiter| &waiter.change).collect());
        match (self.batch(), results) {
            (batch, Ok(results)) if results.len() == batch.len() => {
                // The disk is free: the next leader comes before those who are done.
                self.pass_on();
                for (waiter, result) in batch.iter().zip(results) {
                    waiter.tell(Told::Done(Some(Ok(result))));
                }
            }
            ([waiter], Err(error)) => waiter.tell(Told::Done(Some(Err(error)))),
            (batch, results) => {
                let error = results.err();
                for waiter in batch {
                    let result = match error.as_ref().and_then(|error| store.for_each(error)) {
                        Some(error) => Err(error),
                        None => store
                            .apply(&|| vec![&waiter.change])
                            .map(|results| results.first() == Some(&true)),
                    };
                    waiter.tell(Told::Done(Some(result)));
                }
            }
        }
    }

    fn pass_on(&self) {
        self.passed_on.set(true);
        let next = self.group.line().pass_on().map(Arc::clone);
        if let Some(next) = next {
            next.tell(Told::Leads);
        }
    }
}

impl<C, E> Drop for Lead<'_, C, E> {
    fn drop(&mut self) {
        if !self.passed_on.get() {
            self.batch();
            self.pass_on();
        }
        // After a panic nobody may be left waiting.
        for waiter in self.batch() {
            let mut told = waiter.told();
            if matches!(*told, Told::Nothing) {
                *told = Told::Done(None);
                waiter.word.notify_one();
            }
        }
    }
}
