//! The connection cache is replaced while clients save and find sessions: none is lost, none is handed out twice, and
//! each is the connection that it is said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use command_fds::{CommandFdExt as _, FdMapping};
use postkeep_client::Place;
use postkeep_client::scache::{Client, Session, Settings, Status};
use postkeep_sys::socket;
use postkeep_testkit::peer::{save_endpoint, session};
use postkeep_testkit::private_postfix::{Plan, PrivatePostfix, free_port};
use postkeep_testkit::program::postkeep_binary;
use postkeep_testkit::{Implementation, Scratch, stand_in};
use rustix::process::{Pid, Signal, kill_process};

/// Clients at one time.
const CLIENTS: u32 = 4;
/// Endpoints, so that each has several sessions.
const ENDPOINTS: usize = 8;
/// Sessions of each client.
const SESSIONS: usize = 30;

/// A server with many sessions, each known by the port that it comes from.
struct FarEnd {
    port: u16,
    sessions: Arc<Mutex<BTreeMap<u16, TcpStream>>>,
}

impl FarEnd {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let sessions = Arc::<Mutex<BTreeMap<u16, TcpStream>>>::default();
        thread::spawn({
            let sessions = Arc::clone(&sessions);
            move || {
                for session in listener.incoming().flatten() {
                    if let Ok(address) = session.peer_addr() {
                        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                        sessions.insert(address.port(), session);
                    }
                }
            }
        });
        Ok(Self { port, sessions })
    }

    /// Says a word on the near end, and looks whether it comes out at the session of this number.
    fn is(&self, number: u16, near: &mut TcpStream) -> Result<()> {
        near.write_all(format!("{number}\n").as_bytes())?;
        let late = Instant::now() + Duration::from_secs(5);
        let far = loop {
            // It was connected, but perhaps nobody has accepted it yet.
            let far = lock(&self.sessions).get(&number).map(TcpStream::try_clone);
            if let Some(far) = far {
                break far?;
            }
            ensure!(Instant::now() < late, "no session {number}");
            thread::sleep(Duration::from_millis(1));
        };
        far.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut word = String::new();
        BufReader::new(far).read_line(&mut word)?;
        ensure!(word == format!("{number}\n"), "{number} is another session");
        Ok(())
    }
}

/// What clients know about the cache.
#[derive(Debug, Default)]
struct Known {
    /// Those that the cache has said it saved.
    saved: Mutex<BTreeSet<u16>>,
    over: AtomicBool,
    found: AtomicUsize,
    /// Operations that failed although they were tried twice.
    failed: AtomicUsize,
    faults: Mutex<Vec<String>>,
}

struct Load {
    far: Arc<FarEnd>,
    known: Arc<Known>,
    clients: Vec<JoinHandle<()>>,
    settings: Settings,
}

fn label(number: u16) -> Vec<u8> {
    format!("smtp\n127.0.0.1\n{}\n", usize::from(number) % ENDPOINTS).into_bytes()
}

impl Load {
    fn start(socket: &Path) -> Result<Self> {
        let settings = Settings {
            limit: Duration::from_secs(10),
            delay: Duration::from_millis(1),
            ..Settings::new(Place::Path(socket.to_owned()))
        };
        let (far, known) = (Arc::new(FarEnd::start()?), Arc::<Known>::default());
        let clients = (1..=CLIENTS).map(|seed| {
            let (far, known, settings) = (Arc::clone(&far), Arc::clone(&known), settings.clone());
            thread::spawn(move || {
                if let Err(fault) = client(&far, &known, &settings, seed) {
                    fault_of(&known, &fault);
                }
            })
        });
        Ok(Self {
            clients: clients.collect(),
            far,
            known,
            settings,
        })
    }

    /// Waits until so many more sessions were found.
    fn go_on(&self, count: usize) -> Result<()> {
        let wanted = self.known.found.load(Ordering::SeqCst) + count;
        let late = Instant::now() + Duration::from_secs(20);
        while self.known.found.load(Ordering::SeqCst) < wanted {
            ensure!(
                Instant::now() < late,
                "clients find nothing: {:?}",
                self.known
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the clients; all that was saved must be there, and nothing else. Returns the number of operations that
    /// failed.
    fn finish(mut self) -> Result<usize> {
        self.known.over.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
        let left = |known: &Known| lock(&known.saved).len();
        let saved = left(&self.known);
        ensure!(
            saved > SESSIONS,
            "hardly anything was in the cache: {:?}",
            self.known
        );
        let mut client = Client::new(self.settings.clone());
        for number in 0..ENDPOINTS {
            let number = u16::try_from(number)?;
            while let Some(found) = client.find_endpoint(&label(number))? {
                take(&self.far, &self.known, number, found)?;
            }
        }
        let faults = lock(&self.known.faults).clone();
        ensure!(faults.is_empty(), "{faults:?}");
        ensure!(
            left(&self.known) == 0,
            "lost: {:?}",
            lock(&self.known.saved)
        );
        println!(
            "{} sessions found, {saved} at the end, {} operations failed",
            self.known.found.load(Ordering::SeqCst),
            self.known.failed.load(Ordering::SeqCst),
        );
        Ok(self.known.failed.load(Ordering::SeqCst))
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fault_of(known: &Known, fault: &dyn std::fmt::Display) {
    lock(&known.faults).push(fault.to_string());
    known.over.store(true, Ordering::SeqCst);
}

/// A session was found: it must have been saved, once, under this label, and be what it says.
fn take(far: &FarEnd, known: &Known, wanted: u16, found: Session) -> Result<TcpStream> {
    let property = String::from_utf8(found.endpoint_property.clone())?;
    let number: u16 = property.parse()?;
    let mut near = TcpStream::from(found.descriptor);
    ensure!(
        near.local_addr()?.port() == number,
        "property of another session"
    );
    ensure!(label(number) == label(wanted), "label of another session");
    ensure!(
        lock(&known.saved).remove(&number),
        "{number} was found twice, or never saved"
    );
    far.is(number, &mut near)?;
    known.found.fetch_add(1, Ordering::SeqCst);
    Ok(near)
}

fn client(far: &FarEnd, known: &Known, settings: &Settings, seed: u32) -> Result<()> {
    let mut client = Client::new(settings.clone());
    let mut idle = Vec::new();
    for _ in 0..SESSIONS {
        idle.push(TcpStream::connect(("127.0.0.1", far.port))?);
    }
    let mut chance = seed;
    while !known.over.load(Ordering::SeqCst) {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let worked = if chance >> 31 == 0
            && let Some(near) = idle.pop()
        {
            let number = near.local_addr()?.port();
            let property = number.to_string();
            // Somebody may find it before this client hears of it.
            lock(&known.saved).insert(number);
            match client.save_endpoint(
                600,
                &label(number),
                property.as_bytes(),
                OwnedFd::from(near),
            ) {
                Ok(Status::Ok) => true,
                Ok(refused) => bail!("refused: {refused:?}"),
                Err(_) => {
                    lock(&known.saved).remove(&number);
                    idle.push(TcpStream::connect(("127.0.0.1", far.port))?);
                    false
                }
            }
        } else {
            let wanted = u16::try_from(chance >> 8 & 7)?;
            match client.find_endpoint(&label(wanted)) {
                Ok(Some(found)) => {
                    idle.push(take(far, known, wanted, found)?);
                    true
                }
                Ok(None) => true,
                Err(_) => false,
            }
        };
        if !worked {
            known.failed.fetch_add(1, Ordering::SeqCst);
            // Gives up for good after that, which these clients do not.
            client = Client::new(settings.clone());
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_micros(300));
    }
    Ok(())
}

fn postfix() -> Result<Option<PrivatePostfix>> {
    Plan::new(Implementation::Postkeep)
        .parameter("connection_cache_ttl_limit", "600s")
        .start()
}

fn ours(postfix: &PrivatePostfix) -> usize {
    postfix.logged("took over")
}

#[test]
fn postfix_reload_loses_nothing_and_no_client_notices() -> Result<()> {
    let Some(mut postfix) = postfix()? else {
        return Ok(());
    };
    let load = Load::start(&postfix.scratch().join("queue/private/scache"))?;
    for round in 1..=4 {
        load.go_on(150)?;
        postfix.reload()?;
        postfix.wait_for("the next process", Duration::from_secs(10), |postfix| {
            Ok(ours(postfix) >= round)
        })?;
    }
    load.go_on(150)?;
    ensure!(
        load.finish()? == 0,
        "an operation failed although it was tried twice"
    );
    Ok(())
}

#[test]
fn a_postfix_that_is_aborted_and_started_again_has_its_sessions() -> Result<()> {
    let Some(mut postfix) = postfix()? else {
        return Ok(());
    };
    let load = Load::start(&postfix.scratch().join("queue/private/scache"))?;
    for _ in 0..2 {
        load.go_on(150)?;
        // Clients fail in between: there is nobody to talk to.
        postfix.restart()?;
    }
    load.go_on(150)?;
    load.finish()?;
    Ok(())
}

/// A running `postkeep serve`.
struct Serve {
    child: Child,
    directory: PathBuf,
}

impl Serve {
    fn start(executable: &Path, directory: &Path) -> Result<Self> {
        let mut command = Command::new(executable);
        command.args(["serve", "--directory"]).arg(directory);
        Self::spawn(command, directory)
    }

    fn spawn(mut command: Command, directory: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // What a service manager passes is open in the command too.
        drop(command);
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line.starts_with("postkeep serves"), "no welcome: {line}");
        Ok(Self {
            child,
            directory: directory.to_owned(),
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("queue/private/scache")
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_serve_that_is_told_to_reload_or_started_again_has_its_sessions() -> Result<()> {
    let Some(executable) = postkeep_binary() else {
        return Ok(());
    };
    let scratch = Scratch::new("serve")?;
    let directory = scratch.path().join("state");
    let mut serve = Serve::start(&executable, &directory)?;
    let load = Load::start(&serve.socket())?;
    for _ in 0..4 {
        load.go_on(150)?;
        serve.signal(Signal::HUP)?;
    }
    load.go_on(150)?;
    let failed = load.known.failed.load(Ordering::SeqCst);
    ensure!(
        failed == 0,
        "{failed} operations failed although they were tried twice"
    );
    serve.signal(Signal::TERM)?;
    serve.child.wait()?;
    serve = Serve::start(&executable, &directory)?;
    load.go_on(150)?;
    load.finish()?;
    serve.signal(Signal::TERM)?;
    serve.child.wait()?;
    Ok(())
}

/// The socket of a service manager, and what it keeps.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn start(directory: &Path) -> Result<Self> {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        Ok(Self { socket, path })
    }

    /// Starts a service, with what is kept.
    fn start_service(
        &self,
        executable: &Path,
        directory: &Path,
        kept: Vec<(String, OwnedFd)>,
    ) -> Result<Serve> {
        let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" serve --directory \"$1\""])
            .arg(executable)
            .arg(directory)
            .env("NOTIFY_SOCKET", &self.path)
            .env("LISTEN_FDS", kept.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let mappings = kept
            .into_iter()
            .zip(3..)
            .map(|((_, parent_fd), child_fd)| FdMapping {
                parent_fd,
                child_fd,
            });
        command.fd_mappings(mappings.collect())?;
        Serve::spawn(command, directory)
    }

    /// Does what it is told, until somebody wants to know whether it has.
    fn keep(&self) -> Result<Vec<(String, OwnedFd)>> {
        let mut kept: Vec<(String, OwnedFd)> = Vec::new();
        self.socket
            .set_read_timeout(Some(Duration::from_secs(10)))?;
        loop {
            let (mut buffer, mut handles) = ([0; 4096], Vec::new());
            let count = socket::receive_waiting(&self.socket, &mut buffer, &mut handles)?;
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            let value = |key: &str| {
                let mut lines = text.lines();
                lines
                    .find_map(|line| line.strip_prefix(key))
                    .unwrap_or_default()
            };
            if text.contains("BARRIER=1") {
                return Ok(kept);
            }
            let name = value("FDNAME=");
            if text.contains("FDSTORE=1") {
                kept.extend(handles.into_iter().map(|handle| (name.to_owned(), handle)));
            } else if text.contains("FDSTOREREMOVE=1") {
                kept.retain(|(kept, _)| kept != name);
            }
        }
    }
}

#[test]
fn a_service_manager_keeps_sessions_from_one_serve_to_the_next() -> Result<()> {
    let Some(executable) = postkeep_binary() else {
        return Ok(());
    };
    let scratch = Scratch::new("serve")?;
    let directory = scratch.path().join("state");
    let manager = Manager::start(scratch.path())?;
    let mut serve = manager.start_service(&executable, &directory, Vec::new())?;
    let load = Load::start(&serve.socket())?;
    for _ in 0..2 {
        load.go_on(150)?;
        serve.signal(Signal::TERM)?;
        let kept = manager.keep()?;
        ensure!(serve.child.wait()?.success());
        ensure!(kept.len() > 20, "hardly anything is kept: {}", kept.len());
        // No process of the service is left then, whatever it may have left behind.
        ensure!(processes_in(&directory.join("queue"))?.is_empty());
        serve = manager.start_service(&executable, &directory, kept)?;
    }
    load.go_on(150)?;
    load.finish()?;
    serve.signal(Signal::TERM)?;
    serve.child.wait()?;
    Ok(())
}

/// A daemon whose sessions may stay behind, and the one after it.
fn daemon(data: &Path, parameters: &[(&str, &str)]) -> Result<Option<stand_in::StandIn>> {
    let mut plan = stand_in::Plan::new(Implementation::Postkeep, "scache")
        .parameter("data_directory", &data.display().to_string())
        .parameter("connection_cache_ttl_limit", "600s")
        .parameter("postkeep_connection_cache_handover_time", "20s");
    for (name, value) in parameters {
        plan = plan.parameter(name, value);
    }
    plan.start()
}

/// How a process is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As at a reload.
    Disconnected,
    /// As at a stop.
    Terminated,
}

impl End {
    const BOTH: [Self; 2] = [Self::Disconnected, Self::Terminated];

    fn of(self, daemon: &mut stand_in::StandIn) -> Result<()> {
        let status = match self {
            Self::Disconnected => daemon.disconnect()?,
            Self::Terminated => {
                daemon.signal(Signal::TERM)?;
                daemon.wait(Duration::from_secs(5))?
            }
        };
        // Whoever started it sees no difference.
        ensure!(status.success() == (self == Self::Disconnected), "{status}");
        Ok(())
    }
}

fn data_directory() -> Result<Scratch> {
    let data = Scratch::new("data")?;
    postkeep_testkit::scratch::give_to("postfix", data.path())?;
    Ok(data)
}

fn client_of(daemon: &stand_in::StandIn) -> Client {
    Client::new(Settings::new(Place::Path(daemon.socket())))
}

fn tcp() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

#[test]
fn sessions_bindings_and_their_time_survive() -> Result<()> {
    for end in End::BOTH {
        for privileges in ["no", "yes"] {
            let data = data_directory()?;
            let parameters = [("postkeep_least_privilege", privileges)];
            let Some(mut old) = daemon(data.path(), &parameters)? else {
                return Ok(());
            };
            let mut client = client_of(&old);
            let (near, mut far) = tcp()?;
            client.save_endpoint(600, b"smtp\na", b"long", near.into())?;
            let (near, mut soon) = tcp()?;
            let saved = Instant::now();
            client.save_endpoint(2, b"smtp\na", b"short", near.into())?;
            client.save_destination(600, b"smtp\nd", b"binding", b"smtp\na")?;
            end.of(&mut old)?;
            thread::sleep(Duration::from_millis(500));
            let Some(new) = daemon(data.path(), &parameters)? else {
                return Ok(());
            };
            // It ends when it would have ended.
            let mut heard = String::new();
            std::io::Read::read_to_string(&mut soon, &mut heard)?;
            let lived = saved.elapsed();
            ensure!(heard == "QUIT\r\n", "{end:?}: {heard:?}");
            ensure!(
                (Duration::from_millis(1980)..Duration::from_millis(2500)).contains(&lived),
                "{end:?}: ended after {lived:?}"
            );
            let mut client = client_of(&new);
            let found = client.find_destination(b"smtp\nd")?.context("it is lost")?;
            ensure!(found.endpoint_property == b"long" && found.destination_property == b"binding");
            TcpStream::from(found.descriptor).write_all(b"same\n")?;
            let mut word = String::new();
            BufReader::new(&mut far).read_line(&mut word)?;
            ensure!(word == "same\n");
            ensure!(client.find_endpoint(b"smtp\na")?.is_none());
        }
    }
    Ok(())
}

#[test]
fn what_dies_between_two_processes_is_found_by_nobody() -> Result<()> {
    for end in End::BOTH {
        let data = data_directory()?;
        let Some(mut old) = daemon(data.path(), &[])? else {
            return Ok(());
        };
        let mut client = client_of(&old);
        let mut far_ends = Vec::new();
        for _ in 0..5 {
            let (near, far) = tcp()?;
            client.save_endpoint(600, b"smtp\na", b"dead", near.into())?;
            far_ends.push(far);
        }
        let (near, alive) = tcp()?;
        client.save_endpoint(600, b"smtp\na", b"alive", near.into())?;
        end.of(&mut old)?;
        // FIN, RST, half-close, 421 and FIN, a stray byte.
        let mut far_ends = far_ends.into_iter();
        let mut next = || far_ends.next().context("five");
        drop(next()?);
        rustix::net::sockopt::set_socket_linger(next()?, Some(Duration::ZERO))?;
        let half = next()?;
        half.shutdown(std::net::Shutdown::Write)?;
        next()?.write_all(b"421 later\r\n")?;
        let mut stray = next()?;
        stray.write_all(b"x")?;
        let Some(new) = daemon(data.path(), &[])? else {
            return Ok(());
        };
        let found = client_of(&new).find_endpoint(b"smtp\na")?;
        ensure!(found.is_some_and(|found| found.endpoint_property == b"alive"));
        ensure!(client_of(&new).find_endpoint(b"smtp\na")?.is_none());
        drop(alive);
    }
    Ok(())
}

#[test]
fn nobody_comes() -> Result<()> {
    // Its time is up before that of the sessions; or somebody says so.
    for (time, again) in [("1s", false), ("20s", true)] {
        for end in End::BOTH {
            let data = data_directory()?;
            let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let parameters = [
                ("postkeep_connection_cache_handover_time", time),
                ("postkeep_metrics_address", &format!("inet:{metrics}")),
            ];
            let Some(mut old) = daemon(data.path(), &parameters)? else {
                return Ok(());
            };
            let (near, far) = session()?;
            let mut client = old.connect_and_greet()?;
            save_endpoint(&mut client, 600, "smtp\na", "p", near.as_fd())?;
            ensure!(TcpStream::connect(metrics).is_ok());
            let ended = Instant::now();
            end.of(&mut old)?;
            // What stays behind answers nobody.
            thread::sleep(Duration::from_millis(20));
            ensure!(TcpStream::connect(metrics).is_err());
            if again {
                let left = stays_behind(&old)?;
                ensure!(left.len() == 1, "{left:?}");
                kill_process(left[0], Signal::TERM)?;
            }
            ensure!(heard(far)? == "QUIT\r\n");
            ensure!(ended.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(200));
            ensure!(stays_behind(&old)?.is_empty());
        }
    }
    Ok(())
}

#[test]
fn nothing_stays_behind_an_empty_cache_or_when_it_is_switched_off() -> Result<()> {
    for (time, saves) in [("20s", false), ("0", true)] {
        for end in End::BOTH {
            let data = data_directory()?;
            let parameters = [("postkeep_connection_cache_handover_time", time)];
            let Some(mut old) = daemon(data.path(), &parameters)? else {
                return Ok(());
            };
            let (near, far) = session()?;
            let mut client = old.connect_and_greet()?;
            if saves {
                save_endpoint(&mut client, 600, "smtp\na", "p", near.as_fd())?;
            }
            drop(near);
            end.of(&mut old)?;
            ensure!(heard(far)? == if saves { "QUIT\r\n" } else { "" });
            ensure!(stays_behind(&old)?.is_empty());
        }
    }
    Ok(())
}

#[test]
fn only_the_same_user_and_root_are_handed_anything() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let data = data_directory()?;
    std::fs::set_permissions(
        data.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let Some(mut old) = daemon(data.path(), &[])? else {
        return Ok(());
    };
    let (near, far) = session()?;
    let mut client = old.connect_and_greet()?;
    save_endpoint(&mut client, 600, "smtp\na", "p", near.as_fd())?;
    drop(near);
    End::Disconnected.of(&mut old)?;
    let socket = data.path().join("scache.handover");
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let ask = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
               s.sendall(b'\\x0d\\0\\0\\0\\x01pkscache\\x01\\0\\x01\\0')\n\
               print(len(s.recv(100)))";
    let asked = Command::new("setpriv")
        .args(["--reuid=nobody", "--clear-groups", "python3", "-c", ask])
        .arg(&socket)
        .output()?;
    // Nothing, or a reset.
    let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
    ensure!(
        answer.trim() != "15" && !answer.contains("Error"),
        "{asked:?}"
    );
    ensure!(answer.trim() == "0" || !asked.status.success(), "{asked:?}");
    let Some(new) = daemon(data.path(), &[])? else {
        return Ok(());
    };
    ensure!(client_of(&new).find_endpoint(b"smtp\na")?.is_some());
    drop(far);
    Ok(())
}

/// What the far end hears until the end.
fn heard(mut far: UnixStream) -> Result<String> {
    far.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut heard = String::new();
    std::io::Read::read_to_string(&mut far, &mut heard)?;
    Ok(heard)
}

/// Processes that have stayed behind the daemon.
fn stays_behind(daemon: &stand_in::StandIn) -> Result<Vec<Pid>> {
    processes_in(&daemon.scratch().join("queue"))
}

fn processes_in(queue: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == queue);
        if here && let Some(pid) = number.and_then(Pid::from_raw) {
            found.push(pid);
        }
    }
    Ok(found)
}
