use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use postkeep_scache::{Goodbyes, Limits, Order};
use postkeep_sys::readiness::wait_for;

use super::*;

const LONG: Duration = Duration::from_mins(10);

/// A cache with its thread.
struct Server {
    kept: Arc<Kept>,
    keeper: Option<JoinHandle<()>>,
}

impl Server {
    fn new(limits: Limits, liveness: bool) -> Self {
        let rules = Rules {
            limits,
            order: Order::OldestFirst,
            goodbyes: Goodbyes::parse("smtp:QUIT").unwrap(),
        };
        let kept = Kept::new(rules, liveness, None, "scache", 10, Instant::now()).unwrap();
        let kept = Arc::new(kept);
        let keeper = std::thread::spawn({
            let kept = Arc::clone(&kept);
            move || kept.look_after()
        });
        Self {
            kept,
            keeper: Some(keeper),
        }
    }

    fn start() -> Self {
        Self::new(Limits::default(), true)
    }

    fn now(&self) -> Duration {
        self.kept.clock(Instant::now())
    }

    /// As the conversation with a client does.
    fn save(&self, ttl: Duration, label: &[u8], session: impl Into<OwnedFd>) -> Result<(), Unfit> {
        let session = session.into();
        if let Err(why) = self.kept.admit(&session) {
            self.kept.with(|cache| cache.refused(why));
            return Err(why);
        }
        self.kept.with(|cache| {
            let saved = cache
                .save_endpoint(self.now(), ttl, label, b"", session)
                .unwrap();
            if self.kept.watch(saved, cache.handle(saved).unwrap()) {
                cache.is_watched(saved);
            }
        });
        Ok(())
    }

    /// As the conversation with a client does.
    fn find(&self, label: &[u8]) -> Option<OwnedFd> {
        loop {
            let now = self.now();
            let found = self
                .kept
                .with(|cache| cache.find_endpoint(now, label, &mut |_| None))?;
            let Some(death) = self.kept.examine(&found.handle) else {
                if found.watched {
                    self.kept.release(&found.handle);
                }
                return Some(found.handle);
            };
            self.kept
                .with(|cache| cache.found_dead_endpoint(found.handle, death));
        }
    }

    fn counters(&self) -> Counters {
        self.kept.counted().sessions
    }

    /// Waits for the thread to have done something.
    fn wait(&self, what: impl Fn(&Counted) -> bool) {
        let late = Instant::now() + Duration::from_secs(20);
        while !what(&self.kept.counted()) {
            assert!(Instant::now() < late, "{:?}", self.kept.counted());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the thread; everything is closed then.
    fn end(&mut self) {
        self.kept.leave();
        self.keeper.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            self.end();
        }
        let counted = self.kept.counted();
        assert_eq!(counted.now, 0);
        assert_eq!(
            counted.sessions.saved,
            counted.sessions.found + counted.sessions.all_ended()
        );
    }
}

/// A session as a client has it, and its far end.
fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// How a far end ends a session; returns what stays open.
#[derive(Clone, Copy, Debug)]
enum Way {
    Fin,
    Reset,
    HalfClose,
    GoodbyeThenFin,
    StrayByte,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Fin,
        Self::Reset,
        Self::HalfClose,
        Self::GoodbyeThenFin,
        Self::StrayByte,
    ];

    fn end(self, mut far: TcpStream) -> Option<TcpStream> {
        match self {
            Self::Fin => return None,
            Self::Reset => {
                rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
                return None;
            }
            Self::HalfClose => far.shutdown(Shutdown::Write).unwrap(),
            Self::GoodbyeThenFin => {
                far.write_all(b"421 4.4.2 timeout\r\n").unwrap();
                far.shutdown(Shutdown::Write).unwrap();
            }
            Self::StrayByte => far.write_all(b"x").unwrap(),
        }
        Some(far)
    }

    fn count(self, counters: &Counters) -> u64 {
        match self {
            Self::Fin | Self::HalfClose => counters.closed,
            Self::Reset => counters.broken,
            Self::GoodbyeThenFin | Self::StrayByte => counters.unsolicited,
        }
    }
}

/// The far end hears nothing, and that the connection is over.
fn silent_end(far: Option<TcpStream>) {
    if let Some(mut far) = far {
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(far.read(&mut [0; 10]).unwrap(), 0);
    }
}

#[test]
fn what_dies_in_the_cache_is_dropped_at_once_and_counted() {
    for way in Way::ALL {
        let server = Server::start();
        let (near, far) = tcp();
        let (good, _good) = tcp();
        server.save(LONG, b"smtp\ne", near).unwrap();
        server.save(LONG, b"smtp\ne", good).unwrap();
        let far = way.end(far);
        server.wait(|counted| way.count(&counted.sessions) == 1);
        silent_end(far);
        assert_eq!(server.counters().all_ended(), 1, "{way:?}");
        assert!(server.find(b"smtp\ne").is_some());
        assert!(server.find(b"smtp\ne").is_none());
    }
}

#[test]
fn what_died_before_it_was_saved_is_never_found() {
    for way in Way::ALL {
        let server = Server::start();
        let (near, far) = tcp();
        let far = way.end(far);
        // Waiting leaves the error for whoever reads first.
        assert!(wait_for(&near, Interest::Read, Some(LONG)).unwrap());
        match server.save(LONG, b"smtp\ne", near) {
            Ok(()) => {
                assert!(server.find(b"smtp\ne").is_none(), "{way:?}");
                server.wait(|counted| way.count(&counted.sessions) == 1);
            }
            Err(why) => {
                assert!(matches!(way, Way::Reset), "{way:?}");
                assert_eq!(why, Unfit::NotConnected);
                assert_eq!(server.counters().refused_not_connected, 1);
            }
        }
        silent_end(far);
    }
}

#[test]
fn a_find_does_not_depend_on_the_thread() {
    // The thread has ended: nobody hears anything before the find looks.
    for way in Way::ALL {
        let mut server = Server::start();
        server.kept.leave();
        server.keeper.take().unwrap().join().unwrap();
        let (near, far) = tcp();
        let (good, mut other) = tcp();
        let watched = near.try_clone().unwrap();
        server.save(LONG, b"smtp\ne", near).unwrap();
        server.save(LONG, b"smtp\ne", good).unwrap();
        let _far = way.end(far);
        // Waiting leaves the error for whoever reads first.
        assert!(wait_for(&watched, Interest::Read, Some(LONG)).unwrap());
        let mut found = TcpStream::from(server.find(b"smtp\ne").unwrap());
        found.write_all(b"hello").unwrap();
        other.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(way.count(&server.counters()), 1, "{way:?}");
        server.keeper = Some(std::thread::spawn(|| ()));
    }
}

#[test]
fn every_session_of_a_burst_is_watched() {
    const MANY: u64 = 100;
    let server = Server::start();
    let ends: Vec<UnixStream> = (0..MANY)
        .map(|_| {
            let (near, far) = UnixStream::pair().unwrap();
            server.save(LONG, b"smtp\ne", near).unwrap();
            far
        })
        .collect();
    drop(ends);
    server.wait(|counted| counted.sessions.closed == MANY);
}

#[test]
fn a_local_socket_is_watched_too() {
    let server = Server::start();
    let (near, far) = UnixStream::pair().unwrap();
    server.save(LONG, b"smtp\ne", near).unwrap();
    drop(far);
    server.wait(|counted| counted.sessions.closed == 1);
    let (near, mut far) = UnixStream::pair().unwrap();
    server.save(LONG, b"smtp\ne", near).unwrap();
    far.write_all(b"x").unwrap();
    server.wait(|counted| counted.sessions.unsolicited == 1);
}

#[test]
fn a_session_that_was_found_is_not_watched_any_more() {
    let server = Server::start();
    let (near, mut far) = tcp();
    server.save(LONG, b"smtp\ne", near).unwrap();
    let mut found = TcpStream::from(server.find(b"smtp\ne").unwrap());
    far.write_all(b"250 ok").unwrap();
    // Whoever found it can save it again, while another copy of it is open.
    found.read_exact(&mut [0; 6]).unwrap();
    let copy = found.try_clone().unwrap();
    server.save(LONG, b"smtp\ne", found).unwrap();
    drop(server.find(b"smtp\ne").unwrap());
    server.save(LONG, b"smtp\ne", copy).unwrap();
    assert!(server.find(b"smtp\ne").is_some());
    assert_eq!(
        (server.counters().found, server.counters().all_ended()),
        (3, 0)
    );
}

#[test]
fn expiry_says_goodbye_and_hears_the_answer() {
    let server = Server::start();
    let (near, mut far) = tcp();
    let copy = near.try_clone().unwrap();
    let before = Instant::now();
    server
        .save(Duration::from_millis(30), b"smtp\ne", near)
        .unwrap();
    let mut words = String::new();
    far.read_to_string(&mut words).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(30));
    assert_eq!(words, "QUIT\r\n");
    // The end is one although somebody has a copy, and the answer does not meet a closed door.
    drop(copy);
    far.write_all(b"221 2.0.0 Bye\r\n").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(far.take_error().unwrap().is_none());
    let counted = server.kept.counted();
    assert_eq!(
        (counted.sessions.expired, counted.said, counted.not_said),
        (1, 1, 0)
    );
}

#[test]
fn only_listed_services_hear_a_goodbye() {
    let server = Server::start();
    let (near, mut far) = tcp();
    server
        .save(Duration::from_millis(1), b"other\ne", near)
        .unwrap();
    let mut words = String::new();
    far.read_to_string(&mut words).unwrap();
    assert_eq!((words.as_str(), server.kept.counted().said), ("", 0));
}

#[test]
fn eviction_and_shutdown_say_goodbye() {
    let limits = Limits {
        sessions: 1,
        ..Limits::default()
    };
    let mut server = Server::new(limits, true);
    let ends: Vec<TcpStream> = (0..2)
        .map(|_| {
            let (near, far) = tcp();
            server.save(LONG, b"smtp\ne", near).unwrap();
            far
        })
        .collect();
    server.wait(|counted| counted.sessions.evicted == 1);
    server.end();
    for mut far in ends {
        let mut words = String::new();
        far.read_to_string(&mut words).unwrap();
        assert_eq!(words, "QUIT\r\n");
    }
    let counters = server.counters();
    assert_eq!((counters.evicted, counters.shut_down), (1, 1));
}

#[test]
fn a_full_window_holds_up_nobody() {
    let server = Server::start();
    let (near, _far) = tcp();
    near.set_nonblocking(true).unwrap();
    while (&near).write(&[b'x'; 8192]).is_ok() {}
    near.set_nonblocking(false).unwrap();
    let (local, _peer) = UnixStream::pair().unwrap();
    local.set_nonblocking(true).unwrap();
    while (&local).write(&[b'x'; 8192]).is_ok() {}
    local.set_nonblocking(false).unwrap();
    let (good, mut far) = tcp();
    for session in [OwnedFd::from(near), local.into(), good.into()] {
        server
            .save(Duration::from_millis(20), b"smtp\ne", session)
            .unwrap();
    }
    let mut words = String::new();
    far.read_to_string(&mut words).unwrap();
    assert_eq!(words, "QUIT\r\n");
    server.wait(|counted| (counted.said, counted.not_said) == (1, 2));
}

#[test]
fn far_ends_that_never_answer_do_not_pile_up() {
    // Ten may linger.
    let mut server = Server::start();
    let ends: Vec<TcpStream> = (0..30)
        .map(|_| {
            let (near, far) = tcp();
            server
                .save(Duration::from_millis(1), b"smtp\ne", near)
                .unwrap();
            far
        })
        .collect();
    server.wait(|counted| counted.said == 30);
    // Nor does the end of the process wait for them for long.
    let before = Instant::now();
    server.end();
    assert!(before.elapsed() < LINGER);
    for mut far in ends {
        let mut words = String::new();
        far.read_to_string(&mut words).unwrap();
        assert_eq!(words, "QUIT\r\n");
    }
}

#[test]
fn what_cannot_be_a_session_is_refused_and_counted() {
    let server = Server::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scache");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let file = std::fs::File::open(directory.path()).unwrap();
    for unfit in [pipe, file.into(), listener.into()] {
        assert_eq!(server.save(LONG, b"e", unfit), Err(Unfit::NotConnected));
    }
    assert_eq!(server.save(LONG, b"e", client), Err(Unfit::OwnClient));
    let counters = server.counters();
    assert_eq!(
        (counters.refused_not_connected, counters.refused_own_client),
        (3, 1)
    );
    assert_eq!(counters.saved, 0);
}

#[test]
fn without_liveness_a_session_is_what_the_client_says() {
    let server = Server::new(Limits::default(), false);
    let (near, far) = tcp();
    server.save(LONG, b"e", near).unwrap();
    drop(far);
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    server.save(LONG, b"e", pipe).unwrap();
    assert!(server.find(b"e").is_some());
    assert!(
        server
            .find(b"e")
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .is_ok()
    );
}

#[test]
fn thousands_expire_at_once_while_others_are_served() {
    const MANY: usize = 400;
    let server = Server::start();
    let ends: Vec<UnixStream> = (0..MANY)
        .map(|number| {
            let (near, far) = UnixStream::pair().unwrap();
            let label = format!("smtp\n{number}");
            server
                .save(Duration::from_millis(50), label.as_bytes(), near)
                .unwrap();
            far
        })
        .collect();
    let mut served = 0;
    while server.counters().expired < MANY as u64 {
        let (near, far) = UnixStream::pair().unwrap();
        server.save(LONG, b"busy", near).unwrap();
        assert!(server.find(b"busy").is_some());
        drop(far);
        served += 1;
    }
    assert!(served > 0);
    for mut far in ends {
        let mut words = String::new();
        far.read_to_string(&mut words).unwrap();
        assert_eq!(words, "QUIT\r\n");
    }
}
