//! Locks on whole files that other processes see, shared by the threads of this one.
//!
//! The locks belong to the open file description, not to the process: closing another descriptor of the same file
//! does not drop them. There are two manners, which do not see each other: `F_OFD_SETLK`, which conflicts with the
//! fcntl(2) locks of other programs, and flock(2).

use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Together with other shared locks; the file must be open for reading.
    Shared,
    /// Alone; the file must be open for writing.
    Exclusive,
}

/// Which locks a file is locked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Record,
    Flock,
}

/// For how long a shared lock may pass from thread to thread before it is let go, so that a writer in another
/// process gets its turn.
const LONGEST_RELAY: Duration = Duration::from_millis(10);

/// How long the lock then stays free.
const TURN: Duration = Duration::from_micros(200);

/// A file whose lock the threads of this process share.
///
/// The first reader takes the file lock, the last one drops it; a writer is alone among the threads, and alone among
/// the processes where it asks for that.
#[derive(Debug)]
pub struct LockedFile {
    file: File,
    manner: Manner,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    readers: usize,
    /// A thread is taking or dropping the file lock with the mutex released, or is the writer.
    busy: bool,
    /// Threads that wait to be the writer; readers let them pass.
    writers_waiting: usize,
    /// Threads that wait for any change; when there are none, nobody has to be woken.
    waiting: usize,
    /// When the file lock was taken that the readers share.
    since: Option<Instant>,
    /// The file lock is held until the file is closed.
    held: Option<Kind>,
}

/// A thread's right to read.
#[derive(Debug)]
#[must_use]
pub struct ReadGuard<'a>(&'a LockedFile);

/// A thread's right to do anything.
#[derive(Debug)]
#[must_use]
pub struct WriteGuard<'a>(&'a LockedFile);

impl LockedFile {
    /// Takes over an open file, without locking it. Locks are seen by users of fcntl(2).
    pub fn new(file: File) -> Self {
        Self::of_manner(file, Manner::Record)
    }

    /// As [`LockedFile::new`], for files whose users lock with flock(2).
    pub fn with_flock(file: File) -> Self {
        Self::of_manner(file, Manner::Flock)
    }

    fn of_manner(file: File, manner: Manner) -> Self {
        Self {
            file,
            manner,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Locks the file until it is closed; [`LockedFile::read`] and [`LockedFile::write`] then only coordinate the
    /// threads. Waits. A second call changes the kind.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn hold(&self, kind: Kind) -> io::Result<()> {
        self.hold_or(kind, true).map(|_| ())
    }

    /// As [`LockedFile::hold`], if no other process is in the way; false when one is.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn try_hold(&self, kind: Kind) -> io::Result<bool> {
        self.hold_or(kind, false)
    }

    fn hold_or(&self, kind: Kind, wait: bool) -> io::Result<bool> {
        let guard = self.write_as(None)?;
        let locked = self.set(Some(kind), wait)?;
        if locked {
            guard.0.state().held = Some(kind);
        }
        Ok(locked)
    }

    /// Sets or drops the file lock; false when it would have to wait and must not.
    fn set(&self, kind: Option<Kind>, wait: bool) -> io::Result<bool> {
        match self.manner {
            Manner::Record => set(&self.file, kind, wait),
            Manner::Flock => set_flock(&self.file, kind, wait),
        }
    }

    /// Waits for the right to read.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn read(&self) -> io::Result<ReadGuard<'_>> {
        let mut state = self.state();
        while !state.lets_readers_in() {
            state = self.wait(state);
        }
        if state.readers == 0 && state.held.is_none() {
            state.busy = true;
            drop(state);
            let result = self.set(Some(Kind::Shared), true);
            state = self.state();
            state.busy = false;
            if result.is_ok() {
                state.since = Some(Instant::now());
                state.readers += 1;
            }
            self.publish(state);
            return result.map(|_| ReadGuard(self));
        }
        state.readers += 1;
        Ok(ReadGuard(self))
    }

    /// The right to read if it can be had at once.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn try_read(&self) -> io::Result<Option<ReadGuard<'_>>> {
        let mut state = self.state();
        if !state.lets_readers_in() {
            return Ok(None);
        }
        if state.readers == 0 && state.held.is_none() {
            if !self.set(Some(Kind::Shared), false)? {
                return Ok(None);
            }
            state.since = Some(Instant::now());
        }
        state.readers += 1;
        Ok(Some(ReadGuard(self)))
    }

    /// Waits for the right to write: no other thread, no other process.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn write(&self) -> io::Result<WriteGuard<'_>> {
        self.write_as(Some(Kind::Exclusive))
    }

    /// The right to write if it can be had at once.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn try_write(&self) -> io::Result<Option<WriteGuard<'_>>> {
        let mut state = self.state();
        if state.busy || state.readers > 0 {
            return Ok(None);
        }
        if state.held.is_none() && !self.set(Some(Kind::Exclusive), false)? {
            return Ok(None);
        }
        state.busy = true;
        Ok(Some(WriteGuard(self)))
    }

    /// Waits until no other thread uses the file; other processes may read it at the same time.
    ///
    /// # Errors
    /// fcntl(2) or flock(2) failed.
    pub fn alone_among_threads(&self) -> io::Result<WriteGuard<'_>> {
        self.write_as(Some(Kind::Shared))
    }

    fn write_as(&self, kind: Option<Kind>) -> io::Result<WriteGuard<'_>> {
        let mut state = self.state();
        state.writers_waiting += 1;
        while state.busy || state.readers > 0 {
            state = self.wait(state);
        }
        state.writers_waiting -= 1;
        state.busy = true;
        let held = state.held.is_some();
        drop(state);
        let guard = WriteGuard(self);
        if let Some(kind) = kind
            && !held
        {
            self.set(Some(kind), true)?;
        }
        Ok(guard)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = self
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Gives the state back and wakes whoever waits for a change of it. Waking is a system call even when nobody
    /// waits, and this is on the way of every lookup.
    fn publish(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
    }

    /// Drops the file lock, unless it is held for good.
    fn release(&self, state: &State) {
        if state.held.is_none() {
            // Unlocking fails only for a bad descriptor, and ours is open.
            let _ = self.set(None, false);
        }
    }
}

impl State {
    fn lets_readers_in(&self) -> bool {
        let relayed = self.readers > 0
            && self.held.is_none()
            && self
                .since
                .is_some_and(|since| since.elapsed() > LONGEST_RELAY);
        !self.busy && self.writers_waiting == 0 && !relayed
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.readers -= 1;
        if state.readers > 0 {
            return;
        }
        self.0.release(&state);
        let relayed = state
            .since
            .take()
            .is_some_and(|since| since.elapsed() > LONGEST_RELAY);
        if relayed && state.held.is_none() {
            state.busy = true;
            drop(state);
            std::thread::sleep(TURN);
            state = self.0.state();
            state.busy = false;
        }
        self.0.publish(state);
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        self.0.release(&state);
        state.busy = false;
        self.0.publish(state);
    }
}

/// Sets or drops the lock; false when it would have to wait and must not.
fn set(file: &File, kind: Option<Kind>, wait: bool) -> io::Result<bool> {
    let lock_type = match kind {
        Some(Kind::Shared) => libc::F_RDLCK,
        Some(Kind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    let lock = libc::flock {
        // The constants are small numbers of a wider type.
        l_type: i16::try_from(lock_type).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        let argument = if wait {
            FcntlArg::F_OFD_SETLKW(&lock)
        } else {
            FcntlArg::F_OFD_SETLK(&lock)
        };
        match fcntl(file, argument) {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) if !wait => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`set`], with flock(2).
fn set_flock(file: &File, kind: Option<Kind>, wait: bool) -> io::Result<bool> {
    use rustix::fs::FlockOperation;

    let operation = match (kind, wait) {
        (Some(Kind::Shared), true) => FlockOperation::LockShared,
        (Some(Kind::Shared), false) => FlockOperation::NonBlockingLockShared,
        (Some(Kind::Exclusive), true) => FlockOperation::LockExclusive,
        (Some(Kind::Exclusive), false) => FlockOperation::NonBlockingLockExclusive,
        (None, _) => FlockOperation::Unlock,
    };
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) if !wait => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const MANNERS: [Manner; 2] = [Manner::Record, Manner::Flock];

    fn open(path: &Path, manner: Manner) -> LockedFile {
        LockedFile::of_manner(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap(),
            manner,
        )
    }

    #[test]
    fn readers_go_together_and_writers_alone() {
        for manner in MANNERS {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let (ours, theirs) = (open(&path, manner), open(&path, manner));
            let first = ours.read().unwrap();
            let second = ours.read().unwrap();
            assert!(theirs.try_read().unwrap().is_some());
            assert!(!theirs.set(Some(Kind::Exclusive), false).unwrap());
            drop(first);
            assert!(!theirs.set(Some(Kind::Exclusive), false).unwrap());
            drop(second);
            let reader = ours.read().unwrap();
            assert!(ours.try_write().unwrap().is_none());
            assert!(theirs.try_write().unwrap().is_none());
            drop(reader);
            for waits in [true, false] {
                let writer = if waits {
                    Some(theirs.write().unwrap())
                } else {
                    theirs.try_write().unwrap()
                };
                assert!(writer.is_some());
                assert!(ours.try_read().unwrap().is_none());
                assert!(ours.try_write().unwrap().is_none());
                assert!(theirs.try_write().unwrap().is_none());
                drop(writer);
            }
            assert!(ours.try_read().unwrap().is_some());
        }
    }

    #[test]
    fn a_held_lock_stays() {
        for manner in MANNERS {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let (ours, theirs) = (open(&path, manner), open(&path, manner));
            ours.hold(Kind::Exclusive).unwrap();
            drop(ours.write().unwrap());
            drop(ours.read().unwrap());
            assert!(theirs.try_read().unwrap().is_none());
            ours.hold(Kind::Shared).unwrap();
            assert!(theirs.try_read().unwrap().is_some());
            assert!(!theirs.set(Some(Kind::Exclusive), false).unwrap());
        }
    }

    #[test]
    fn a_writer_elsewhere_gets_its_turn_among_many_readers() {
        for manner in MANNERS {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let (ours, theirs) = (open(&path, manner), open(&path, manner));
            let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let limit = Instant::now() + Duration::from_secs(20);
                        while !done.load(Ordering::Relaxed) && Instant::now() < limit {
                            let _guard = ours.read().unwrap();
                            reads.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    });
                }
                let start = Instant::now();
                while reads.load(Ordering::Relaxed) == 0
                    && start.elapsed() < Duration::from_secs(20)
                {
                    std::thread::yield_now();
                }
                for _ in 0..5 {
                    drop(theirs.write().unwrap());
                }
                done.store(true, Ordering::Relaxed);
                assert!(start.elapsed() < Duration::from_secs(20));
            });
            assert!(reads.load(Ordering::Relaxed) > 0);
        }
    }

    #[test]
    fn holding_without_waiting_says_whether_it_could() {
        for manner in MANNERS {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let (ours, theirs) = (open(&path, manner), open(&path, manner));
            assert!(ours.try_hold(Kind::Exclusive).unwrap());
            assert!(!theirs.try_hold(Kind::Shared).unwrap());
            assert!(theirs.try_read().unwrap().is_none());
            drop(ours);
            assert!(theirs.try_hold(Kind::Shared).unwrap());
        }
    }

    #[test]
    fn the_manners_do_not_see_each_other() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let [record, flock] = MANNERS.map(|manner| open(&path, manner));
        let _writer = record.write().unwrap();
        assert!(flock.try_hold(Kind::Exclusive).unwrap());
    }
}
