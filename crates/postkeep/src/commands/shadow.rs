//! `postkeep shadow`: stands between clients and Postfix's proxymap, asks another proxymap the same, and compares.
//!
//! Clients get what Postfix's own answers, byte for byte, whatever happens to the other side: bytes are passed on as they
//! come, and copies of them are looked at on other threads. Only `open` and `lookup` are asked twice; updates must not be
//! made twice, and where a walk stands belongs to whoever walks.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

mod frame;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use postkeep_sys::error_text;
use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::termination::Termination;
use postkeep_wire::diagnostics::Shown;
use serde_json::json;

use self::frame::{Frames, attribute};
use super::{Answer, finish};

/// Answers that wait to be compared; more are not.
const MOST_WAITING: usize = 1000;
/// Threads that compare.
const COMPARERS: usize = 4;
/// How long a server may take that is asked for a comparison.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before a difference is believed, for changes that one server sees a little later.
const PAUSE: Duration = Duration::from_millis(1500);

/// Flags in which a table says what it is: keys are fixed texts, or patterns. The others that a server gives are those of
/// whoever opened the table first.
const OWN_FLAGS: u32 = 0x30;

/// Options of `postkeep shadow`.
#[derive(Args, Debug)]
#[command(after_help = "\
Clients get the answers of the reference only. Exit status: 0 when no answer was different, 1 when some were.\n\
postkeep-shadow(1) says how to send the clients of a running Postfix here, and back.")]
pub(crate) struct Options {
    /// Socket to make, for clients
    #[arg(long, value_name = "PATH")]
    listen: PathBuf,
    /// Socket of Postfix's own proxymap, which answers
    #[arg(long, value_name = "PATH")]
    reference: PathBuf,
    /// Socket of the proxymap that is compared with it
    #[arg(long, value_name = "PATH")]
    candidate: PathBuf,
    /// End after so long; without it, with control-C or SIGTERM
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Differences to print; more are only counted
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    most: u64,
    /// Print each difference, and the counts at the end, as a line of JSON
    #[arg(long)]
    json: bool,
}

/// A request, and what the reference has answered.
struct Pair {
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// What is known of all connections.
struct Shared {
    reference: PathBuf,
    candidate: PathBuf,
    most: u64,
    json: bool,
    requests: AtomicU64,
    same: AtomicU64,
    different: AtomicU64,
    /// Of another kind, too many at a time, or the candidate did not answer.
    not_compared: AtomicU64,
    unreachable: AtomicU64,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    finish(shadow(options))
}

fn shadow(options: &Options) -> Result<Answer, String> {
    // Before there are threads.
    let end = Termination::hold_with_interrupt().map_err(|error| error_text(&error))?;
    let listener = listen(&options.listen)
        .map_err(|error| format!("{}: {}", options.listen.display(), error_text(&error)))?;
    let shared = Arc::new(Shared {
        reference: options.reference.clone(),
        candidate: options.candidate.clone(),
        most: options.most,
        json: options.json,
        requests: AtomicU64::new(0),
        same: AtomicU64::new(0),
        different: AtomicU64::new(0),
        not_compared: AtomicU64::new(0),
        unreachable: AtomicU64::new(0),
    });
    let (sender, receiver) = sync_channel(MOST_WAITING);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..COMPARERS {
        let (shared, receiver) = (Arc::clone(&shared), Arc::clone(&receiver));
        start(move || compare_all(&shared, &receiver))?;
    }
    {
        let shared = Arc::clone(&shared);
        start(move || {
            for client in listener.incoming() {
                let Ok(client) = client else {
                    // Descriptors may be used up; the backlog waits.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let (shared, sender) = (Arc::clone(&shared), sender.clone());
                // A client that gets no thread tries again.
                let _ = start(move || serve(client, &shared, &sender));
            }
        })?;
    }
    let limit = options.seconds.map(Duration::from_secs);
    let _ = wait_for(&end, Interest::Read, limit);
    let _ = fs::remove_file(&options.listen);
    Ok(shared.sum_up())
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .spawn(work)
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {}", error_text(&error)))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::other("there is something that is no socket"));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::other("somebody serves there already"));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // The directory decides who may connect, as with the sockets of the services.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Requests of one connection that have no answer yet; `None` when it is not looked at any more.
type Pending = Arc<Mutex<Option<VecDeque<Vec<u8>>>>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes everything on in both directions until both have ended.
fn serve(client: UnixStream, shared: &Arc<Shared>, sender: &SyncSender<Pair>) {
    // Without the reference there is nobody to answer: the client sees the connection end, and tries again.
    let Ok(server) = UnixStream::connect(&shared.reference) else {
        shared.unreachable.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let pending: Pending = Arc::new(Mutex::new(Some(VecDeque::new())));
    {
        let (pending, shared) = (Arc::clone(&pending), Arc::clone(shared));
        let up = move || {
            pass(client_too, server_too, &pending, |list, queue| {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                queue.push_back(list);
            });
        };
        if start(up).is_err() {
            return;
        }
    }
    pass(server, client, &pending, |answer, queue| {
        // The greeting answers nothing.
        if attribute(&answer, "protocol").is_some() {
            return;
        }
        let Some(request) = queue.pop_front() else {
            return;
        };
        let asked = attribute(&request, "request");
        let comparable = matches!(asked, Some(b"open" | b"lookup"));
        if !comparable || sender.try_send(Pair { request, answer }).is_err() {
            shared.not_compared.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Copies bytes as they come, and has lists looked at; when those cannot be read any more, bytes only.
fn pass(
    mut from: UnixStream,
    mut to: UnixStream,
    pending: &Pending,
    mut look: impl FnMut(Vec<u8>, &mut VecDeque<Vec<u8>>),
) {
    let mut frames = Frames::default();
    let mut buffer = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        {
            // A request is known before its answer can come.
            let mut pending = lock(pending);
            if let Some(queue) = pending.as_mut() {
                let readable = frames.add(bytes, |list| look(list, queue));
                if readable.is_err() || queue.len() > MOST_WAITING {
                    *pending = None;
                }
            }
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

fn compare_all(shared: &Shared, receiver: &Mutex<Receiver<Pair>>) {
    let mut candidate = Server::new(&shared.candidate);
    let mut reference = Server::new(&shared.reference);
    loop {
        let Ok(pair) = lock(receiver).recv() else {
            return;
        };
        shared.compare(&pair, &mut reference, &mut candidate);
    }
}

/// A server that is asked for a comparison.
struct Server {
    path: PathBuf,
    stream: Option<(UnixStream, Frames)>,
}

impl Server {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stream: None,
        }
    }

    /// Asks on the connection that there is, and once more on a new one.
    fn ask(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        if self.stream.is_some()
            && let Ok(answer) = self.exchange(request)
        {
            return Ok(answer);
        }
        let stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        self.stream = Some((stream, Frames::default()));
        self.exchange(request)
    }

    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        let Some((mut stream, mut frames)) = self.stream.take() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        stream.write_all(request)?;
        let mut buffer = [0; 16_384];
        let mut answer = None;
        while answer.is_none() {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let keep = |list: Vec<u8>| {
                if attribute(&list, "protocol").is_none() {
                    answer = Some(list);
                }
            };
            frames
                .add(&buffer[..count], keep)
                .map_err(|_| io::Error::other("an answer without end"))?;
        }
        self.stream = Some((stream, frames));
        Ok(answer.unwrap_or_default())
    }
}

/// Equal but for flags that say nothing of the table.
fn means_the_same(one: &[u8], other: &[u8]) -> bool {
    let flags = |list| {
        let text = std::str::from_utf8(attribute(list, "flags")?).ok()?;
        Some(text.parse::<u32>().ok()? & OWN_FLAGS)
    };
    let same = |name| attribute(one, name) == attribute(other, name);
    one == other
        || (attribute(one, "status").is_some()
            && same("status")
            && same("value")
            && same("key")
            && flags(one) == flags(other))
}

impl Shared {
    fn compare(&self, pair: &Pair, reference: &mut Server, candidate: &mut Server) {
        let Ok(other) = candidate.ask(&pair.request) else {
            self.not_compared.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if means_the_same(&other, &pair.answer) {
            self.same.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The table may have changed between the two questions.
        thread::sleep(PAUSE);
        match (reference.ask(&pair.request), candidate.ask(&pair.request)) {
            (Ok(one), Ok(other)) if means_the_same(&one, &other) => {
                self.same.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(one), Ok(other)) => self.tell(&pair.request, &one, &other),
            _ => {
                self.not_compared.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn tell(&self, request: &[u8], reference: &[u8], candidate: &[u8]) {
        if self.different.fetch_add(1, Ordering::Relaxed) >= self.most {
            return;
        }
        let part = |list, name| {
            attribute(list, name).map_or_else(String::new, |value| Shown::new(value).to_string())
        };
        let line = if self.json {
            let answer = |list| json!({"status": part(list, "status"), "flags": part(list, "flags"), "value": part(list, "value")});
            json!({
                "request": part(request, "request"),
                "table": part(request, "table"),
                "flags": part(request, "flags"),
                "key": part(request, "key"),
                "reference": answer(reference),
                "candidate": answer(candidate),
            })
            .to_string()
        } else {
            let answer = |list| {
                format!(
                    "status {}, flags {}, value \"{}\"",
                    part(list, "status"),
                    part(list, "flags"),
                    part(list, "value")
                )
            };
            format!(
                "different: {} {} \"{}\" (flags {}): reference: {}; candidate: {}",
                part(request, "request"),
                part(request, "table"),
                part(request, "key"),
                part(request, "flags"),
                answer(reference),
                answer(candidate)
            )
        };
        let _ = writeln!(io::stdout(), "{line}");
    }

    fn sum_up(&self) -> Answer {
        // Those that are being compared have a moment to be counted.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let outcome = || {
            (
                count(&self.same),
                count(&self.different),
                count(&self.not_compared),
            )
        };
        let deadline = Instant::now() + PAUSE * 2;
        while Instant::now() < deadline {
            let (same, different, not_compared) = outcome();
            if same + different + not_compared >= count(&self.requests) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let (same, different, _) = outcome();
        let requests = count(&self.requests);
        let not_compared = requests.saturating_sub(same + different);
        let unreachable = count(&self.unreachable);
        let line = if self.json {
            json!({
                "requests": requests,
                "same": same,
                "different": different,
                "not_compared": not_compared,
                "reference_unreachable": unreachable,
            })
            .to_string()
        } else {
            format!(
                "{requests} requests: {same} answers were the same, {different} different, {not_compared} not compared"
            )
        };
        let _ = writeln!(io::stdout(), "{line}");
        if unreachable > 0 && !self.json {
            let _ = writeln!(
                io::stdout(),
                "{unreachable} connections found no reference at {}",
                self.reference.display()
            );
        }
        if different == 0 {
            Answer::Yes
        } else {
            Answer::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_whoever_came_first_are_no_difference() {
        let answer = |flags: &str, value: &str| {
            format!("status\x000\x00flags\x00{flags}\x00value\x00{value}\x00\x00").into_bytes()
        };
        let one = answer("524369", "v");
        assert!(means_the_same(&one, &answer("16", "v")));
        assert!(!means_the_same(&one, &answer("32", "v")));
        assert!(!means_the_same(&one, &answer("16", "w")));
        assert!(!means_the_same(&one, b"status\x001\x00\x00"));
        assert!(!means_the_same(b"x\x00y\x00\x00", b"x\x00z\x00\x00"));
    }
}
