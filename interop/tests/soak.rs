//! The services under everything at once, for a while: good clients, none of whose requests may fail, among clients that break
//! off, do not read, say nothing or send nonsense, while tables are rewritten and the services reloaded. Memory and descriptors
//! stay where they are, and no cached connection is handed out twice or under another label.
//!
//! `POSTKEEP_SOAK_SECONDS` in the environment is how long; 12 otherwise. With `POSTKEEP_SOAK_PLOT`, memory and descriptors of
//! each second are written to that file.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_client::Place;
use postkeep_client::proxymap::{Client, Settings};
use postkeep_client::scache;
use postkeep_interop::lookups::request;
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::{Peer, save_endpoint};
use postkeep_testkit::{Scratch, postkeep_binary};
use postkeep_wire::proxymap::Status;
use rustix::process::{Pid, Signal, kill_process};

const SERVICES: [&str; 3] = ["proxymap", "proxywrite", "scache"];
/// Keys of the table that is rewritten.
const KEYS: u64 = 200;

struct Serve {
    child: Child,
    directory: PathBuf,
    _scratch: Scratch,
}

impl Serve {
    fn start() -> Result<Option<Self>> {
        let Some(postkeep) = postkeep_binary() else {
            return Ok(None);
        };
        let scratch = Scratch::new("soak")?;
        let directory = scratch.path().join("state");
        let mut child = Command::new(postkeep)
            .args(["serve", "--directory"])
            .arg(&directory)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(scratch.path().join("log"))?)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.starts_with("postkeep serves "), "{line}");
        Ok(Some(Self {
            child,
            directory,
            _scratch: scratch,
        }))
    }

    fn socket(&self, service: &str) -> PathBuf {
        self.directory.join("queue/private").join(service)
    }

    /// Memory (resident KiB) and open descriptors by service. A service that is being replaced has two processes.
    fn use_of(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut used = BTreeMap::new();
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(path).unwrap_or_default();
        for process in children.split_whitespace() {
            let place = Path::new("/proc").join(process);
            let words = fs::read(place.join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
            let name = match words[0] {
                b"scache" => "scache",
                _ if words.contains(&&b"proxywrite"[..]) => "proxywrite",
                b"proxymap" => "proxymap",
                _ => continue,
            };
            let status = fs::read_to_string(place.join("status")).unwrap_or_default();
            let memory = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .and_then(|text| text.trim().split(' ').next()?.parse().ok())
                .unwrap_or_default();
            let descriptors = fs::read_dir(place.join("fd")).map_or(0, Iterator::count);
            let sum: &mut (u64, u64) = used.entry(name).or_default();
            sum.0 = sum.0.max(memory);
            sum.1 = sum.1.max(descriptors as u64);
        }
        used
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all threads share.
struct Field {
    over: AtomicBool,
    good: AtomicU64,
    bad: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Field {
    fn runs(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn failed(&self, text: String) {
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(text);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Looks keys up; each is there, with the value of some version.
fn reader(field: &Field, socket: &Path, table: &str, seed: u64) {
    let mut client = Client::new(Settings::new(Place::Path(socket.to_owned()), "proxymap"));
    let mut random = Random(seed);
    while field.runs() {
        let key = format!("k{}", random.below(KEYS));
        match client.lookup(table.as_bytes(), 0, 0, key.as_bytes()) {
            Ok(answer)
                if answer.status == Status::Ok
                    && answer.value.starts_with(format!("{key}=").as_bytes()) =>
            {
                field.good.fetch_add(1, Ordering::Relaxed);
            }
            other => field.failed(format!("lookup of {key}: {other:?}")),
        }
        if random.below(100) == 0 {
            client.disconnect();
        }
    }
}

/// Stores values of its own, and finds them.
fn writer(field: &Field, socket: &Path, table: &str, seed: u64) {
    let mut client = Client::new(Settings::new(Place::Path(socket.to_owned()), "proxywrite"));
    let mut random = Random(seed);
    let mut number = 0u64;
    while field.runs() {
        number += 1;
        let key = format!("w{seed}-{}", random.below(50));
        let value = number.to_string();
        let stored = client.update(table.as_bytes(), 0, 0, key.as_bytes(), value.as_bytes());
        let found = client.lookup(table.as_bytes(), 0, 0, key.as_bytes());
        match (stored, found) {
            (Ok(stored), Ok(found))
                if stored.status == Status::Ok && found.value == value.as_bytes() =>
            {
                field.good.fetch_add(2, Ordering::Relaxed);
            }
            other => field.failed(format!("update of {key}: {other:?}")),
        }
        thread::sleep(Duration::from_millis(random.below(5)));
    }
}

/// Saves connections under a label of its own, and finds them: each once, with the far end that it was saved with.
fn saver(field: &Field, socket: &Path, seed: u64) {
    let mut client = scache::Client::new(scache::Settings::new(Place::Path(socket.to_owned())));
    let mut random = Random(seed);
    let label = format!("smtp\nsoak{seed}");
    let mut far_ends: HashMap<u64, UnixStream> = HashMap::new();
    let mut number = 0u64;
    while field.runs() {
        if far_ends.len() < 20 && random.below(2) == 0 {
            let Ok((ours, theirs)) = UnixStream::pair() else {
                continue;
            };
            number += 1;
            let property = number.to_string();
            match client.save_endpoint(60, label.as_bytes(), property.as_bytes(), ours.into()) {
                Ok(_) => {
                    far_ends.insert(number, theirs);
                    field.good.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => field.failed(format!("save: {error}")),
            }
            continue;
        }
        match client.find_endpoint(label.as_bytes()) {
            Ok(Some(session)) => {
                field.good.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = is_the_same(session, &mut far_ends) {
                    field.failed(format!("{label:?}: {error}"));
                }
            }
            Ok(None) => far_ends.clear(),
            Err(error) => field.failed(format!("find: {error}")),
        }
    }
}

/// What is said to the session comes out at the far end that belongs to its property, which is then used up.
fn is_the_same(session: scache::Session, far_ends: &mut HashMap<u64, UnixStream>) -> Result<()> {
    let number: u64 = std::str::from_utf8(&session.endpoint_property)?.parse()?;
    let Some(mut far_end) = far_ends.remove(&number) else {
        bail!("{number} was handed out twice, or is another's");
    };
    let mut ours = UnixStream::from(session.descriptor);
    ours.write_all(&number.to_be_bytes())?;
    far_end.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut said = [0; 8];
    far_end.read_exact(&mut said)?;
    ensure!(said == number.to_be_bytes(), "another far end");
    Ok(())
}

/// One after the other: breaks off anywhere, does not read, says nothing, sends nonsense, floods.
fn nuisance(field: &Field, serve: &[(PathBuf, Vec<u8>)], seed: u64) {
    let mut random = Random(seed);
    let mut silent: Vec<UnixStream> = Vec::new();
    while field.runs() {
        field.bad.fetch_add(1, Ordering::Relaxed);
        let (socket, request) =
            &serve[usize::try_from(random.below(serve.len() as u64)).unwrap_or(0)];
        let Ok(mut stream) = UnixStream::connect(socket) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
        match random.below(6) {
            // At every byte, sooner or later.
            0 | 1 => {
                let end = usize::try_from(random.below(request.len() as u64 + 1)).unwrap_or(0);
                let _ = stream.write_all(&request[..end]);
            }
            2 => {
                for _ in 0..200 {
                    if stream.write_all(request).is_err() {
                        break;
                    }
                }
                thread::sleep(Duration::from_millis(random.below(20)));
            }
            3 => {
                let noise: Vec<u8> = (0..random.below(5000))
                    .map(|_| u8::try_from(random.below(256)).unwrap_or(0))
                    .collect();
                let _ = stream.write_all(&noise);
            }
            4 => {
                silent.push(stream);
                if silent.len() > 100 {
                    silent.clear();
                }
            }
            _ => {
                // A connection is offered, and the client gone before it is collected.
                if socket.ends_with("scache")
                    && let Ok(mut peer) = Peer::connect(socket)
                    && let Ok((ours, _theirs)) = UnixStream::pair()
                {
                    let _ = peer.read_list();
                    let _ = save_endpoint(&mut peer, 2, "smtp\\nlost", "p", ours.as_fd());
                    let _ = peer.send(&list(&[("request", "find_endp"), ("label", "smtp\\nlost")]));
                }
            }
        }
    }
}

/// Writes the table anew, as postmap does.
fn rewrite(serve: &Serve, version: u64) -> Result<()> {
    let tables = serve.directory.join("tables");
    let mut text = String::new();
    for key in 0..KEYS {
        writeln!(text, "k{key} k{key}={version}")?;
    }
    fs::write(tables.join("users"), text)?;
    let postkeep = postkeep_binary().context("no executable")?;
    let done = Command::new(postkeep)
        .args(["postmap", "lmdb:users"])
        .current_dir(&tables)
        .output()?;
    ensure!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

#[test]
fn nothing_fails_and_nothing_grows() -> Result<()> {
    let seconds: u64 = match std::env::var("POSTKEEP_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse()?,
        Err(_) => 12,
    };
    let Some(serve) = Serve::start()? else {
        return Ok(());
    };
    rewrite(&serve, 0)?;
    // The new table is noticed, and the services are told of it.
    let users = format!("lmdb:{}/tables/users", serve.directory.display());
    let cache = format!("lmdb:{}/tables/cache", serve.directory.display());
    let mut client = Client::new(Settings::new(
        Place::Path(serve.socket("proxymap")),
        "proxymap",
    ));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client
        .lookup(users.as_bytes(), 0, 0, b"k1")
        .is_ok_and(|answer| answer.status == Status::Ok)
    {
        ensure!(Instant::now() < deadline, "the table is not served");
        thread::sleep(Duration::from_millis(50));
    }
    let field = Arc::new(Field {
        over: AtomicBool::new(false),
        good: AtomicU64::new(0),
        bad: AtomicU64::new(0),
        failures: Mutex::default(),
    });
    let [proxymap, proxywrite, scache_socket] = SERVICES.map(|service| serve.socket(service));
    let targets = vec![
        (proxymap.clone(), request(&users, "k1")),
        (proxywrite.clone(), request(&cache, "k1")),
        (
            scache_socket.clone(),
            list(&[("request", "find_endp"), ("label", "smtp\\nnone")]),
        ),
    ];
    let mut threads = Vec::new();
    for seed in 1..=3 {
        let shared = Arc::clone(&field);
        let (socket, table) = (proxymap.clone(), users.clone());
        threads.push(thread::spawn(move || {
            reader(&shared, &socket, &table, seed);
        }));
        let shared = Arc::clone(&field);
        let socket = scache_socket.clone();
        threads.push(thread::spawn(move || {
            saver(&shared, &socket, seed);
        }));
        let shared = Arc::clone(&field);
        let targets = targets.clone();
        threads.push(thread::spawn(move || {
            nuisance(&shared, &targets, seed + 10);
        }));
    }
    for seed in 1..=2 {
        let shared = Arc::clone(&field);
        let (socket, table) = (proxywrite.clone(), cache.clone());
        threads.push(thread::spawn(move || {
            writer(&shared, &socket, &table, seed);
        }));
    }
    let start = Instant::now();
    let mut seen: Vec<BTreeMap<&str, (u64, u64)>> = Vec::new();
    let mut version = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(Duration::from_secs(1));
        seen.push(serve.use_of());
        version += 1;
        if version % 2 == 0 {
            rewrite(&serve, version)?;
        }
        if version % 7 == 0 {
            kill_process(Pid::from_child(&serve.child), Signal::HUP)?;
        }
    }
    field.over.store(true, Ordering::Relaxed);
    for thread in threads {
        ensure!(thread.join().is_ok(), "a client has panicked");
    }
    let failures = field
        .failures
        .lock()
        .map_or_else(|_| Vec::new(), |failures| failures.clone());
    let (good, bad) = (
        field.good.load(Ordering::Relaxed),
        field.bad.load(Ordering::Relaxed),
    );
    println!("{seconds} s: {good} good requests, {bad} bad clients");
    if let Some(path) = std::env::var_os("POSTKEEP_SOAK_PLOT") {
        write_plot(Path::new(&path), &seen)?;
    }
    ensure!(
        failures.is_empty(),
        "{} failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(10)]
    );
    ensure!(good > 100 * seconds && bad > 10 * seconds, "{good} {bad}");
    grows_nowhere(&seen)
}

/// The most of the last third is no more than the most of the two before, and a little.
fn grows_nowhere(seen: &[BTreeMap<&str, (u64, u64)>]) -> Result<()> {
    let (before, after) = seen.split_at(seen.len() * 2 / 3);
    for service in SERVICES {
        let most = |part: &[BTreeMap<&str, (u64, u64)>]| {
            part.iter()
                .filter_map(|used| used.get(service))
                .fold((0, 0), |most, used| {
                    (most.0.max(used.0), most.1.max(used.1))
                })
        };
        let (before, after) = (most(before), most(after));
        ensure!(before.0 > 0 && after.0 > 0, "{service} was not there");
        ensure!(
            after.0 <= before.0 * 5 / 4 + 4096,
            "{service}: {before:?} became {after:?} (KiB, descriptors)"
        );
        ensure!(
            after.1 <= before.1 * 2 + 100,
            "{service}: {before:?} became {after:?} (KiB, descriptors)"
        );
    }
    Ok(())
}

/// Lines of second, service, KiB, descriptors.
fn write_plot(path: &Path, seen: &[BTreeMap<&str, (u64, u64)>]) -> Result<()> {
    let mut text = "second,service,resident_kib,descriptors\n".to_owned();
    for (second, used) in seen.iter().enumerate() {
        for (service, (memory, descriptors)) in used {
            writeln!(text, "{second},{service},{memory},{descriptors}")?;
        }
    }
    fs::write(path, text)?;
    Ok(())
}
