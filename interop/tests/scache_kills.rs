//! Clients of the connection cache that are cut off in the middle of a transfer, at each step of it, among others that are
//! not: no session is handed out twice, to two clients, under another label or after its time, and none is lost to a leak.
//!
//! The far end of each session is kept here, so that each descriptor that comes back can be told by what is said to it.
//! `POSTKEEP_CYCLES` in the environment is how many operations there are in all; 100,000 otherwise.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::Peer;
use postkeep_testkit::{Implementation, StandIn, stand_in};

const CLIENTS: u64 = 8;
/// Few, so that clients get at the same ones.
const LABELS: u64 = 12;
/// Operations of one client between two looks at which far ends are gone.
const SWEEP: u64 = 500;
const LIMIT: Duration = Duration::from_secs(20);

/// A session, as the test knows it.
struct Far {
    stream: UnixStream,
    label: String,
    /// Must not be handed out to who asks after this; unknown while nobody has been told that it is kept.
    until: Option<Instant>,
    ttl: u64,
}

#[derive(Default)]
struct Field {
    sessions: Mutex<HashMap<u64, Far>>,
    numbers: AtomicU64,
    left: AtomicU64,
    failed: AtomicBool,
    saved: AtomicU64,
    found: AtomicU64,
    cut: AtomicU64,
    killed: AtomicU64,
}

impl Field {
    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Far>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
    }

    /// Forgets the sessions whose far end is told that they are over: they must not come back after that.
    fn sweep(&self) {
        self.sessions().retain(|_, far| !is_over(&far.stream));
    }
}

fn is_over(far: &UnixStream) -> bool {
    let mut byte = [0];
    match rustix::net::recv(
        far,
        &mut byte[..],
        rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT,
    ) {
        Ok((_, length)) => length == 0,
        Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// One client, which may lose its connection.
struct Client<'a> {
    field: &'a Field,
    daemon: &'a StandIn,
    peer: Option<UnixStream>,
    dice: Dice,
}

/// Where an operation is cut off; steps that it does not have mean that it comes to its end.
type Cut = u64;

impl<'a> Client<'a> {
    fn new(field: &'a Field, daemon: &'a StandIn, seed: u64) -> Self {
        Self {
            field,
            daemon,
            peer: None,
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    /// A connection that can be given up together with all that is on it.
    fn connection(&mut self) -> Result<(Peer, UnixStream)> {
        let stream = if let Some(stream) = self.peer.take() {
            stream
        } else {
            let stream = UnixStream::connect(self.daemon.socket())?;
            let mut peer = Peer::from(stream.try_clone()?);
            peer.read_list().context("the greeting")?;
            stream
        };
        Ok((Peer::from(stream.try_clone()?), stream))
    }

    /// The client is gone: it closes, or the process that has its socket is killed.
    fn cut(&mut self, peer: Peer, stream: UnixStream) -> Result<()> {
        self.field.cut.fetch_add(1, Ordering::Relaxed);
        drop(peer);
        if self.dice.below(50) == 0 {
            self.field.killed.fetch_add(1, Ordering::Relaxed);
            let mut process = Command::new("sleep")
                .arg("60")
                .stdin(Stdio::from(OwnedFd::from(stream)))
                .spawn()?;
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    fn save(&mut self, cut: Cut) -> Result<()> {
        let label = format!("smtp\nkills{}", self.dice.below(LABELS));
        let ttl = if self.dice.below(4) == 0 { 1 } else { 100 };
        let number = self.field.numbers.fetch_add(1, Ordering::Relaxed);
        let property = format!("{number} of {label}");
        let (ours, far) = UnixStream::pair()?;
        let session = Far {
            stream: far,
            label: label.clone(),
            until: None,
            ttl,
        };
        let (mut peer, stream) = self.connection()?;
        let request = list(&[
            ("request", "save_endp"),
            ("ttl", &ttl.to_string()),
            ("label", &label),
            ("property", &property),
        ]);
        if cut == 0 {
            let part = usize::try_from(self.dice.below(request.len() as u64))?;
            peer.send(&request[..part])?;
            return self.cut(peer, stream);
        }
        self.field.sessions().insert(number, session);
        peer.send(&request)?;
        if cut == 1 {
            return self.cut(peer, stream);
        }
        let prompt = peer.read_list()?;
        ensure!(
            prompt == list(&[("dummy", "")]),
            "{}",
            prompt.escape_ascii()
        );
        if cut == 2 {
            return self.cut(peer, stream);
        }
        peer.send_with(b"\0", &[ours.as_fd()])?;
        drop(ours);
        if cut == 3 {
            return self.cut(peer, stream);
        }
        let status = peer.read_list()?;
        ensure!(
            status == list(&[("status", "0")]),
            "{}",
            status.escape_ascii()
        );
        // Somebody else may have it already.
        if let Some(far) = self.field.sessions().get_mut(&number) {
            far.until = Some(Instant::now() + Duration::from_secs(far.ttl));
        }
        self.field.saved.fetch_add(1, Ordering::Relaxed);
        self.peer = Some(stream);
        Ok(())
    }

    /// Says whether there was one.
    fn find(&mut self, label: &str, cut: Cut) -> Result<bool> {
        let (mut peer, stream) = self.connection()?;
        let asked = Instant::now();
        peer.send(&list(&[("request", "find_endp"), ("label", label)]))?;
        if cut == 0 {
            self.cut(peer, stream)?;
            return Ok(true);
        }
        let reply = String::from_utf8(peer.read_list()?)?;
        let fields: Vec<&str> = reply.split('\0').collect();
        let property = match fields[..] {
            ["status", "2", ..] => {
                self.peer = Some(stream);
                return Ok(false);
            }
            ["status", "0", "property", property, ..] => property,
            _ => bail!("{reply:?}"),
        };
        if cut == 1 {
            self.cut(peer, stream)?;
            return Ok(true);
        }
        let dummy = list(&[("dummy", "")]);
        peer.send(&dummy)?;
        if cut == 2 {
            self.cut(peer, stream)?;
            return Ok(true);
        }
        let session = peer.read_descriptor()?;
        let (number, of) = property.split_once(" of ").context("a foreign property")?;
        ensure!(
            of == label,
            "asked for {label:?}, got what belongs to {of:?}"
        );
        let far = self.field.sessions().remove(&number.parse()?);
        let far =
            far.with_context(|| format!("{property:?} was handed out already, or was over"))?;
        ensure!(
            far.label == label,
            "{property:?} was saved under {:?}",
            far.label
        );
        if let Some(until) = far.until {
            ensure!(
                asked <= until,
                "{property:?} came {:?} after its time",
                asked - until
            );
        }
        is_the_other_end(session, far.stream, number)?;
        self.field.found.fetch_add(1, Ordering::Relaxed);
        if cut == 3 {
            self.cut(peer, stream)?;
        } else {
            peer.send(&dummy)?;
            self.peer = Some(stream);
        }
        Ok(true)
    }

    fn operation(&mut self) -> Result<()> {
        // A third of all operations comes to no good end.
        let cut = self.dice.below(12);
        if self.dice.below(20) < 11 {
            self.save(cut)
        } else {
            let label = format!("smtp\nkills{}", self.dice.below(LABELS));
            self.find(&label, cut).map(drop)
        }
    }

    fn run(&mut self) {
        let mut count = 0_u64;
        while self.field.runs() {
            if let Err(error) = self.operation() {
                self.field.failed.store(true, Ordering::Relaxed);
                eprintln!("{error:#}");
            }
            count += 1;
            if count.is_multiple_of(SWEEP) {
                self.field.sweep();
            }
        }
    }
}

/// What is said at one end comes out at the other.
fn is_the_other_end(session: OwnedFd, mut far: UnixStream, number: &str) -> Result<()> {
    let mut near = UnixStream::from(session);
    near.write_all(number.as_bytes())?;
    drop(near);
    let mut said = String::new();
    far.set_read_timeout(Some(LIMIT))?;
    far.read_to_string(&mut said)?;
    ensure!(said == number, "session {number} ends at {said:?}");
    Ok(())
}

fn cycles() -> u64 {
    std::env::var("POSTKEEP_CYCLES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000)
}

#[test]
fn a_cut_in_any_place_doubles_mixes_up_and_leaks_nothing() -> Result<()> {
    let Some(daemon) = stand_in::Plan::new(Implementation::Postkeep, "scache")
        .parameter("connection_cache_ttl_limit", "600s")
        .start()?
    else {
        return Ok(());
    };
    ensure!(Path::new(&daemon.socket()).exists(), "no socket");
    let field = Field::default();
    field.left.store(cycles(), Ordering::Relaxed);
    // What the daemon opens for the first client is there.
    let mut first = Client::new(&field, &daemon, 99);
    first.find("smtp\nkills0", 9)?;
    let before = daemon.open_descriptors()? - 1;
    drop(first);
    settle(&daemon, before)?;
    thread::scope(|scope| {
        for seed in 1..=CLIENTS {
            let mut client = Client::new(&field, &daemon, seed);
            scope.spawn(move || client.run());
        }
    });
    ensure!(!field.failed.load(Ordering::Relaxed), "a client has failed");
    // Those that are left are taken; then nothing is, and each far end that is not ours any more has been told.
    let mut last = Client::new(&field, &daemon, 77);
    for label in 0..LABELS {
        while last.find(&format!("smtp\nkills{label}"), 9)? {}
    }
    drop(last);
    settle(&daemon, before)?;
    let since = Instant::now();
    while !field.sessions().is_empty() {
        ensure!(
            since.elapsed() < LIMIT,
            "{} sessions are neither found nor over",
            field.sessions().len()
        );
        field.sweep();
        thread::sleep(Duration::from_millis(10));
    }
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} saved, {} found, {} cut off, {} of them by a kill",
        read(&field.saved),
        read(&field.found),
        read(&field.cut),
        read(&field.killed)
    );
    ensure!(
        read(&field.found) > 0 && read(&field.killed) > 0,
        "nothing happened"
    );
    Ok(())
}

/// Waits until no more descriptors are open in the daemon than these.
fn settle(daemon: &StandIn, most: usize) -> Result<()> {
    let since = Instant::now();
    loop {
        let open = daemon.open_descriptors()?;
        if open <= most {
            return Ok(());
        }
        if since.elapsed() > LIMIT {
            let directory = format!("/proc/{}/fd", daemon.pid());
            let open: Vec<_> = std::fs::read_dir(directory)?
                .flatten()
                .filter_map(|entry| std::fs::read_link(entry.path()).ok())
                .collect();
            bail!(
                "{} descriptors are open, more than {most}: {open:?}",
                open.len()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
}
