//! The thread that hands pages out, over HTTP, and takes orders.
//!
//! Whoever may connect may do anything to it: it keeps few connections, none for long, reads little from each, and puts
//! together so many pages a second.
//!
//! # References
//! RFC 9112 (HTTP/1.1).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_sys::readiness::{Events, Interest, Poller};
use postkeep_sys::{error_text, idle, socket};

use super::orders::{self, Order};
use super::{Address, Page, Places, Process, describe};
use crate::logging;
use crate::service::Service;
use crate::shared::Shared;

/// Connections at one time; the oldest makes room.
const MOST_CONNECTIONS: usize = 16;
/// Connections that are accepted in one second.
const MOST_ACCEPTED: u32 = 200;
/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request.
const MOST_REQUEST: usize = 8192;
/// A page that is younger is handed out once more.
const FRESH: Duration = Duration::from_millis(100);
/// How often to look whether a port has become free, or is to be given up.
const LOOK: Duration = Duration::from_secs(1);
/// Tokens from here on are those of connections.
const FIRST_CONNECTION: u64 = 1 << 16;

/// A TCP port, and what became of it.
#[derive(Debug)]
enum Port {
    /// Somebody else has it; usually the process before this one, which is about to end.
    Wanted(SocketAddr),
    /// It is ours.
    Ours(TcpListener),
}

/// A socket that this process has made.
#[derive(Debug)]
pub(crate) struct Trace {
    path: PathBuf,
    /// Device and inode, which tell it from the one of a process that has come since.
    file: (u64, u64),
}

impl Trace {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
        })
    }

    /// Removes it, unless another process has put its own in its place.
    pub(crate) fn remove(&self) {
        let is_ours = |trace: &Self| trace.file == self.file;
        if !Self::of(&self.path).as_ref().is_some_and(is_ours) {
            return;
        }
        // Another process may come at this moment, so that what is looked at must be out of its reach.
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".{}", std::process::id()));
        let aside = Path::new(&aside);
        if fs::rename(&self.path, aside).is_err() {
            return;
        }
        if Self::of(aside).as_ref().is_some_and(is_ours) {
            let _ = fs::remove_file(aside);
        } else {
            let _ = fs::rename(aside, &self.path);
        }
    }
}

/// Where the metrics of this process will be handed out.
#[derive(Debug)]
pub(crate) struct Exporter {
    sockets: Vec<UnixListener>,
    traces: Vec<Trace>,
    ports: Vec<Port>,
    process: Process,
}

/// Makes a socket and puts it in the place of the one that the process before this one had.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is something that is no socket"));
        }
        _ => {}
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = Path::new(&name);
    let made = UnixListener::bind(fresh)?;
    let placed = made
        .set_nonblocking(true)
        // The directory decides who may connect, as with the sockets of the services.
        .and_then(|()| fs::set_permissions(fresh, fs::Permissions::from_mode(0o666)))
        .and_then(|()| fs::rename(fresh, path));
    if placed.is_err() {
        let _ = fs::remove_file(fresh);
    }
    placed.map(|()| made)
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Exporter {
    /// Makes the sockets. One that cannot be made is told about, and the daemon serves all the same.
    ///
    /// To be called with the final privileges and root directory.
    pub(crate) fn bind(places: Places, process: Process) -> Self {
        let mut sockets = Vec::new();
        let mut traces = Vec::new();
        let mut ports = Vec::new();
        for address in places.addresses {
            match address {
                Address::Unix(path) => match listen_at(&path) {
                    Ok(socket) => {
                        sockets.push(socket);
                        traces.extend(Trace::of(&path));
                    }
                    Err(_) if places.by_default => {}
                    Err(error) => log::warn!(
                        "no metrics at unix:{}: {}",
                        path.display(),
                        error_text(&error)
                    ),
                },
                Address::Inet(address) => match listen_on(address) {
                    Ok(listener) => ports.push(Port::Ours(listener)),
                    Err(error) => {
                        log::info!("no metrics at inet:{address} yet: {}", error_text(&error));
                        ports.push(Port::Wanted(address));
                    }
                },
            }
        }
        Self {
            sockets,
            traces,
            ports,
            process,
        }
    }

    /// What is to be removed when the process ends in an orderly way.
    pub(crate) fn take_traces(&mut self) -> Vec<Trace> {
        std::mem::take(&mut self.traces)
    }

    /// Starts the thread, unless there is nothing for it to do.
    pub(crate) fn start<S: Service>(self, name: String, service: Arc<S>, shared: Arc<Shared>) {
        if self.sockets.is_empty() && self.ports.is_empty() {
            return;
        }
        let made = Poller::new().and_then(|poller| {
            let mut server = Server {
                poller,
                name,
                service,
                shared,
                process: self.process,
                sockets: self.sockets,
                ports: self.ports,
                connections: BTreeMap::new(),
                last: FIRST_CONNECTION,
                second: (Instant::now(), 0),
                page: None,
            };
            server.watch_all()?;
            thread::Builder::new()
                .name("metrics".to_owned())
                .spawn(move || {
                    // Without this thread there are no metrics, and all else goes on.
                    logging::contain(|| server.serve());
                })
        });
        if let Err(error) = made {
            log::warn!("no metrics: {}", error_text(&error));
        }
    }
}

/// Somebody who wants the numbers.
struct Connection {
    socket: OwnedFd,
    until: Instant,
    request: Vec<u8>,
    response: Option<Vec<u8>>,
    sent: usize,
    /// Once it has its response, the process is to go.
    dismisses: bool,
}

struct Server<S: Service> {
    poller: Poller,
    name: String,
    service: Arc<S>,
    shared: Arc<Shared>,
    process: Process,
    sockets: Vec<UnixListener>,
    ports: Vec<Port>,
    /// By age.
    connections: BTreeMap<u64, Connection>,
    last: u64,
    /// When the present second began, and how many were accepted in it.
    second: (Instant, u32),
    page: Option<(Instant, String)>,
}

impl<S: Service> Server<S> {
    fn watch_all(&mut self) -> io::Result<()> {
        for (index, socket) in self.sockets.iter().enumerate() {
            self.poller.add(socket, index as u64, Interest::Read)?;
        }
        for (index, port) in self.ports.iter().enumerate() {
            if let Port::Ours(listener) = port {
                let token = (self.sockets.len() + index) as u64;
                self.poller.add(listener, token, Interest::Read)?;
            }
        }
        Ok(())
    }

    fn serve(&mut self) {
        let mut events = Events::new(MOST_CONNECTIONS);
        loop {
            let now = Instant::now();
            self.see_to_ports();
            self.connections
                .retain(|_, connection| connection.until > now);
            let oldest = self.connections.values().map(|connection| connection.until);
            let patience = oldest.min().map(|until| until - now);
            let look = (!self.ports.is_empty()).then_some(LOOK);
            let limit = patience.into_iter().chain(look).min();
            if self.poller.wait(&mut events, limit).is_err() {
                thread::sleep(LOOK);
            }
            for ready in events.ready() {
                if ready.token < FIRST_CONNECTION {
                    self.accept(ready.token);
                } else {
                    self.advance(ready.token);
                }
            }
        }
    }

    /// Takes ports that have become free; gives ours up when this process is about to end, for the next one.
    fn see_to_ports(&mut self) {
        let leaving =
            self.shared.leave.load(Ordering::Relaxed) || self.shared.drain.load(Ordering::Relaxed);
        if leaving {
            self.ports.clear();
        }
        for (index, port) in self.ports.iter_mut().enumerate() {
            let token = (self.sockets.len() + index) as u64;
            if let Port::Wanted(address) = port
                && let Ok(listener) = listen_on(*address)
                && self.poller.add(&listener, token, Interest::Read).is_ok()
            {
                log::info!("metrics at inet:{address}");
                *port = Port::Ours(listener);
            }
        }
    }

    fn accept(&mut self, token: u64) {
        let index = usize::try_from(token).unwrap_or(usize::MAX);
        let accepted = match (
            self.sockets.get(index),
            self.ports.get(index.wrapping_sub(self.sockets.len())),
        ) {
            (Some(socket), _) => socket::accept(socket),
            (None, Some(Port::Ours(listener))) => socket::accept(listener),
            (None, _) => return,
        };
        let now = Instant::now();
        let socket = match accepted {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                // There may be no descriptors left; they are for clients.
                thread::sleep(FRESH);
                return;
            }
        };
        if self.connections.len() >= MOST_CONNECTIONS {
            self.connections.pop_first();
        }
        self.last += 1;
        if self.poller.add(&socket, self.last, Interest::Read).is_ok() {
            let connection = Connection {
                socket,
                until: now + PATIENCE,
                request: Vec::new(),
                response: None,
                sent: 0,
                dismisses: false,
            };
            self.connections.insert(self.last, connection);
        }
        let passed = now.saturating_duration_since(self.second.0);
        if passed >= LOOK {
            self.second = (now, 0);
        }
        self.second.1 += 1;
        if self.second.1 >= MOST_ACCEPTED {
            thread::sleep(LOOK.saturating_sub(passed));
        }
    }

    /// Goes on with a connection that has something to say, or has room again.
    fn advance(&mut self, token: u64) {
        let Some(mut connection) = self.connections.remove(&token) else {
            return;
        };
        if connection.response.is_none() {
            match connection.read() {
                Progress::Waits => {
                    self.connections.insert(token, connection);
                    return;
                }
                Progress::Over => return,
                Progress::Complete => {}
            }
            let response = match Order::parse(&connection.request) {
                Some(order) => self.obey(order, &mut connection),
                None => self.answer(&connection.request),
            };
            connection.response = Some(response);
        }
        if connection.write() {
            let waits = self
                .poller
                .modify(&connection.socket, token, Interest::Write);
            if waits.is_ok() {
                self.connections.insert(token, connection);
            }
        } else if connection.dismisses {
            log::info!("reload -- exiting");
            self.shared.leave.store(true, Ordering::SeqCst);
            self.shared.bell.ring();
        }
    }

    /// Does what is ordered, if whoever orders it may.
    fn obey(&mut self, order: Order, connection: &mut Connection) -> Vec<u8> {
        let (status, text) = match order {
            _ if !orders::may_order(&connection.socket) => {
                let text = "only root and the user of the service may order that";
                ("403 Forbidden", text.to_owned())
            }
            Order::Leave => {
                connection.dismisses = true;
                let text = "it finishes what it has begun, and the next client starts it again";
                ("200 OK", text.to_owned())
            }
            Order::Reload(table) => orders::reload(&self.service, table),
        };
        connection.until = Instant::now() + PATIENCE;
        respond(
            status,
            "text/plain; charset=utf-8",
            &format!("{text}\n"),
            true,
        )
    }

    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let (status, with_body) = judge(request);
        let body = match status {
            "200 OK" => self.page(),
            status => format!("{status}\n"),
        };
        let kind = match status {
            "200 OK" => "text/plain; version=0.0.4; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        };
        respond(status, kind, &body, with_body)
    }

    fn page(&mut self) -> String {
        let now = Instant::now();
        if let Some((made, text)) = &self.page
            && now.saturating_duration_since(*made) < FRESH
        {
            return text.clone();
        }
        let mut page = Page::new(&self.name);
        describe(&self.shared, &mut page);
        self.process.describe(&mut page);
        self.service.describe(&mut page);
        let text = page.into_text();
        self.page = Some((now, text.clone()));
        text
    }
}

/// A response as it is sent.
fn respond(status: &str, kind: &str, body: &str, with_body: bool) -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        response.push_str(body);
    }
    response.into_bytes()
}

/// How a connection is doing.
enum Progress {
    /// For more of the request.
    Waits,
    /// The request is there, or more than that.
    Complete,
    /// It broke, or ended before the request was there.
    Over,
}

impl Connection {
    fn read(&mut self) -> Progress {
        let mut buffer = [0; 4096];
        match socket::receive_bytes(&self.socket, &mut buffer) {
            Ok(0) => Progress::Over,
            Ok(count) => {
                self.request.extend_from_slice(&buffer[..count]);
                if self.request.len() > MOST_REQUEST || ends(&self.request) {
                    Progress::Complete
                } else {
                    Progress::Waits
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Waits,
            Err(_) => Progress::Over,
        }
    }

    /// Sends what fits; true when there is more.
    fn write(&mut self) -> bool {
        let response = self.response.as_deref().unwrap_or_default();
        while self.sent < response.len() {
            match socket::send(&self.socket, &response[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        // With something unread the connection would be reset, and the response lost.
        let _ = idle::finish_sending(&self.socket);
        let mut buffer = [0; 16_384];
        let _ = socket::receive_bytes(&self.socket, &mut buffer);
        false
    }
}

/// Whether the head of a request is complete; none of ours has a body.
fn ends(request: &[u8]) -> bool {
    request.windows(4).any(|bytes| bytes == b"\r\n\r\n")
        || request.windows(2).any(|bytes| bytes == b"\n\n")
}

/// What to answer to a request, and whether to send more than the head.
fn judge(request: &[u8]) -> (&'static str, bool) {
    if !ends(request) {
        return ("431 Request Header Fields Too Large", true);
    }
    let line = request.split(|&byte| byte == b'\n').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let mut words = line.trim_end_matches('\r').split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return ("400 Bad Request", true);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return ("400 Bad Request", true);
    }
    let with_body = method != "HEAD";
    if !matches!(method, "GET" | "HEAD") {
        return ("405 Method Not Allowed", with_body);
    }
    match target.split('?').next() {
        Some("/metrics" | "/") => ("200 OK", with_body),
        _ => ("404 Not Found", with_body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_judged() {
        let status = |request: &str| judge(request.as_bytes()).0;
        assert_eq!(
            judge(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("200 OK", true)
        );
        assert_eq!(judge(b"HEAD / HTTP/1.0\n\n"), ("200 OK", false));
        assert_eq!(status("GET /metrics?a=b HTTP/1.1\r\n\r\n"), "200 OK");
        assert_eq!(status("GET /x HTTP/1.1\r\n\r\n"), "404 Not Found");
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n"), "405 Method Not Allowed");
        for bad in [
            "GET /\r\n\r\n",
            "\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET x HTTP/1.1\n\n",
        ] {
            assert_eq!(status(bad), "400 Bad Request", "{bad:?}");
        }
        assert!(status(&"x".repeat(MOST_REQUEST + 1)).starts_with("431 "));
    }

    #[test]
    fn a_socket_takes_the_place_of_the_one_before() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("metrics");
        let before = listen_at(&path).unwrap();
        let after = listen_at(&path).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(socket::accept(&before).is_err());
        assert!(socket::accept(&after).is_ok());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_but_a_socket_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("main.cf");
        fs::write(&path, "x").unwrap();
        assert!(listen_at(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }
}
