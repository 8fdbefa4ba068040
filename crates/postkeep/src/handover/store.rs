//! Sessions in the hands of the service manager, while no process of ours runs.
//!
//! The manager keeps descriptors under names and passes them to the next process (`FDSTORE=1`, `sd_notify(3)`). All
//! sessions have one name, and what is known about them is in a sealed file in memory: the frames of
//! [`postkeep_scache::transfer`], after the time at which they were written. Which record belongs to which descriptor is
//! told by the kernel's number of the socket: the manager drops those that hang up meanwhile, and promises no order.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};
use postkeep_scache::transfer::{BindingRecord, Frame, MOST_BYTES};
use postkeep_scache::{Cache, MovingBinding, MovingSession};
use postkeep_sys::clock::since_boot;
use postkeep_sys::notify::{Manager, Message, Passed};
use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::socket::MAX_DESCRIPTORS;
use postkeep_sys::{memory_file, socket};

use super::giver::record;
use super::{Giver, Line, Taker, give, greet, take};

/// Name of each session. The next process gets the names of all in one variable of its environment, which may have
/// 128 kB: so it is short.
const SESSION: &str = "s";

/// Name of the file.
const RECORDS: &str = "scache-records";

/// Bytes of the file at most.
const MOST_RECORDS: usize = 32 * MOST_BYTES;

/// How long the manager may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sessions and bindings on their way, owned by a process that does not serve them.
#[derive(Debug)]
pub(crate) struct Stored {
    cache: Mutex<Cache<OwnedFd>>,
    /// The zero of the cache's clock.
    epoch: Instant,
}

impl Stored {
    fn new() -> Self {
        Self {
            cache: Mutex::default(),
            epoch: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache<OwnedFd>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Picks what [`keep`] gave to the manager out of what it has passed; the rest is left there. The manager has none of
    /// it any more then. `None` when there is nothing.
    pub(crate) fn pick(passed: &mut Vec<Passed>, manager: &Manager) -> Option<Self> {
        let is_ours = |passed: &Passed| passed.name == SESSION || passed.name == RECORDS;
        let (ours, others) = std::mem::take(passed).into_iter().partition(is_ours);
        *passed = others;
        let ours: Vec<Passed> = ours;
        if ours.is_empty() {
            return None;
        }
        for name in [SESSION, RECORDS] {
            // As long as it has them the far ends do not see the end of a session.
            if let Err(error) = manager.send(&Message::new().forget(name)) {
                warn!("the service manager keeps sessions: {error}");
            }
        }
        let stored = Self::new();
        match stored.read(ours) {
            Ok(count) => info!("took {count} sessions back from the service manager"),
            Err(error) => warn!("sessions from the service manager are lost: {error}"),
        }
        Some(stored)
    }

    fn read(&self, ours: Vec<Passed>) -> io::Result<usize> {
        let mut sockets = HashMap::new();
        let mut records = None;
        for passed in ours {
            if passed.name == RECORDS {
                records = Some(passed.descriptor);
            } else if let Ok(mark) = socket::cookie(&passed.descriptor) {
                sockets.insert(mark, passed.descriptor);
            }
        }
        let records = records.ok_or_else(|| io::Error::other("no records"))?;
        let records = memory_file::contents(records, MOST_RECORDS)?;
        let (mut rest, mut passed, mut count) = (&records[..], Duration::ZERO, 0);
        while let Some((frame, length)) = Frame::decode(rest).map_err(io::Error::other)? {
            rest = &rest[length..];
            match frame {
                Frame::Clock { at } => passed = since_boot().saturating_sub(at),
                Frame::Sessions { sessions, .. } => {
                    let sessions = sessions.iter().filter_map(|record| {
                        Some(MovingSession {
                            handle: sockets.remove(&record.mark)?,
                            label: record.label.into(),
                            property: record.property.into(),
                            left: record.left.saturating_sub(passed),
                        })
                    });
                    let sessions: Vec<_> = sessions.collect();
                    count += sessions.len();
                    self.receive(sessions);
                }
                Frame::Bindings { bindings, .. } => {
                    let bindings = bindings.iter().map(|record| MovingBinding {
                        label: record.label.into(),
                        property: record.property.into(),
                        endpoint: record.endpoint.into(),
                        left: record.left.saturating_sub(passed),
                    });
                    self.receive_bindings(bindings.collect());
                }
                _ => {}
            }
        }
        Ok(count)
    }

    /// Waits for a process of this user that takes all, until there is nothing left to be taken.
    pub(crate) fn hand_over(&self, listener: &UnixListener, user: u32) {
        loop {
            let next = {
                let mut cache = self.lock();
                // They end without a word: the process that knows the words has not come.
                drop(cache.expire(self.now()));
                cache.next_expiry()
            };
            let Some(next) = next else { return };
            let limit = next
                .saturating_sub(self.now())
                .max(Duration::from_millis(1));
            if let Ok(true) = wait_for(listener, Interest::Read, Some(limit))
                && let Ok(successor) = socket::accept(listener)
            {
                let given =
                    Line::with(successor.into(), user).and_then(|mut line| give(&mut line, self));
                if let Err(broken) = given {
                    warn!("not all sessions were handed over: {broken}");
                }
            }
        }
    }
}

/// Takes what a process that has just ended has left at the other end, and gives it to the manager.
pub(crate) fn keep(predecessor: UnixStream, user: u32, manager: &Manager) {
    let stored = Stored::new();
    let taken = Line::with(predecessor, user).and_then(|mut line| {
        greet(&line)?;
        take(&mut line, &stored)
    });
    match taken {
        Ok(_) | Err(super::Broken::Gone) => {}
        Err(broken) => warn!("not all sessions were taken over: {broken}"),
    }
    match stored.store(manager) {
        Ok(0) => {}
        Ok(count) => info!("gave {count} sessions to the service manager"),
        Err(error) => warn!("the service manager does not keep sessions: {error}"),
    }
}

impl Stored {
    /// Gives everything to the manager.
    fn store(&self, manager: &Manager) -> io::Result<usize> {
        let mut records = Vec::new();
        let mut handles = Vec::new();
        let clock = Frame::Clock { at: since_boot() };
        clock.encode(&mut records).map_err(io::Error::other)?;
        loop {
            let sessions = self.give();
            if sessions.is_empty() {
                break;
            }
            let frame = Frame::Sessions {
                number: 0,
                sessions: sessions.iter().map(record).collect(),
            };
            frame.encode(&mut records).map_err(io::Error::other)?;
            handles.extend(sessions.into_iter().map(|session| session.handle));
        }
        loop {
            let bindings = self.give_bindings();
            if bindings.is_empty() {
                break;
            }
            let frame = Frame::Bindings {
                number: 0,
                bindings: bindings
                    .iter()
                    .map(|binding| BindingRecord {
                        left: binding.left,
                        label: &binding.label,
                        property: &binding.property,
                        endpoint: &binding.endpoint,
                    })
                    .collect(),
            };
            frame.encode(&mut records).map_err(io::Error::other)?;
        }
        if handles.is_empty() {
            return Ok(0);
        }
        let records = memory_file::sealed(RECORDS, &records)?;
        let borrowed: Vec<BorrowedFd<'_>> = handles.iter().map(OwnedFd::as_fd).collect();
        for some in borrowed.chunks(MAX_DESCRIPTORS) {
            manager.send_with(&Message::new().store(SESSION, true), some)?;
        }
        // It never hangs up.
        manager.send_with(&Message::new().store(RECORDS, false), &[records.as_fd()])?;
        // Until the manager has them ours must not be closed.
        manager.barrier(PATIENCE)?;
        Ok(handles.len())
    }
}

impl Giver for Stored {
    fn give(&self) -> Vec<MovingSession<OwnedFd>> {
        self.lock().give(self.now())
    }

    fn give_bindings(&self) -> Vec<MovingBinding> {
        self.lock().give_bindings(self.now())
    }

    fn take_back(&self, sessions: Vec<MovingSession<OwnedFd>>) {
        self.lock().take_back(self.now(), sessions);
    }

    fn take_bindings_back(&self, bindings: Vec<MovingBinding>) {
        self.receive_bindings(bindings);
    }
}

impl Taker for Stored {
    fn receive(&self, sessions: Vec<MovingSession<OwnedFd>>) {
        for session in sessions {
            let refused = self.lock().receive(self.now(), session);
            drop(refused);
        }
    }

    fn receive_bindings(&self, bindings: Vec<MovingBinding>) {
        for binding in bindings {
            // One that finds no place is not needed to find anything.
            let _ = self.lock().receive_binding(self.now(), &binding);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    /// What the manager has: names, descriptors.
    fn drain(manager: &UnixDatagram) -> Vec<Passed> {
        let mut kept = Vec::new();
        loop {
            let (mut buffer, mut handles) = ([0; 4096], Vec::new());
            let count = socket::receive_waiting(manager, &mut buffer, &mut handles).unwrap();
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.contains("BARRIER=1") {
                return kept;
            }
            let name = |key: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(key).map(str::to_owned))
            };
            assert_eq!(name("FDSTORE=").as_deref(), Some("1"), "{text}");
            for descriptor in handles {
                let name = name("FDNAME=").unwrap().into();
                kept.push(Passed { name, descriptor });
            }
        }
    }

    fn forgotten(manager: &UnixDatagram) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..2 {
            let mut buffer = [0; 4096];
            let count = manager.recv(&mut buffer).unwrap();
            names.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        }
        names
    }

    #[test]
    fn the_manager_keeps_sessions_and_their_records() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager_end = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();

        // The process that ended has left these.
        let left = Stored::new();
        let mut far = Vec::new();
        for number in 0..70_u8 {
            let (near, other) = UnixStream::pair().unwrap();
            let mark = socket::cookie(&near).unwrap().to_le_bytes();
            let mut cache = left.lock();
            let label = [b'l', number % 3];
            let minute = Duration::from_mins(1);
            cache
                .save_endpoint(left.now(), minute, &label, &mark, near.into())
                .unwrap();
            cache
                .save_destination(left.now(), minute, b"d", &[number], &label)
                .unwrap();
            far.push(other);
        }
        let user = postkeep_sys::effective::identity().0;
        let listener = UnixListener::bind(directory.path().join("handover")).unwrap();
        let predecessor = UnixStream::connect(directory.path().join("handover")).unwrap();
        let giver = std::thread::spawn(move || left.hand_over(&listener, user));
        let keeper = std::thread::spawn({
            let manager = manager.clone();
            move || keep(predecessor, user, &manager)
        });
        let mut passed = drain(&manager_end);
        giver.join().unwrap();
        keeper.join().unwrap();
        assert_eq!(passed.len(), 71);

        // The next process gets them in any order, without one that has hung up, and with others.
        passed.reverse();
        let gone = passed.iter().position(|passed| passed.name == SESSION);
        passed.remove(gone.unwrap());
        passed.push(Passed {
            name: "http".into(),
            descriptor: UnixStream::pair().unwrap().0.into(),
        });
        let picked = Stored::pick(&mut passed, &manager).unwrap();
        assert_eq!((passed.len(), passed[0].name.to_str()), (1, Some("http")));
        assert_eq!(
            forgotten(&manager_end),
            [
                "FDSTOREREMOVE=1\nFDNAME=s\n",
                "FDSTOREREMOVE=1\nFDNAME=scache-records\n"
            ]
        );
        assert_eq!(picked.lock().sessions(), 69);
        assert_eq!(picked.lock().bindings(), 70);
        for number in 0..3 {
            let mut cache = picked.lock();
            while let Some(found) =
                cache.find_endpoint(picked.now(), &[b'l', number], &mut |_| None)
            {
                let mark = socket::cookie(&found.handle).unwrap();
                assert_eq!(*found.endpoint_property, mark.to_le_bytes());
            }
        }
        assert_eq!(picked.lock().sessions(), 0);
        assert!(Stored::pick(&mut passed, &manager).is_none());
    }

    #[test]
    fn sessions_without_records_are_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager_end = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        for (name, descriptor) in [
            (SESSION, OwnedFd::from(near)),
            (
                RECORDS,
                memory_file::sealed("x", b"\xff\xff\xff\xff").unwrap(),
            ),
        ] {
            let name = name.into();
            let mut passed = vec![Passed { name, descriptor }];
            let picked = Stored::pick(&mut passed, &manager).unwrap();
            assert_eq!(picked.lock().sessions(), 0);
        }
        assert_eq!(
            postkeep_sys::idle::listen(&far),
            postkeep_sys::idle::Heard::End
        );
    }
}
