//! A private memcached(1).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::process::{Process, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "memcache";

/// A connection to where a table's `inet:` or `unix:` leads.
trait Conversation: Read + Write {}

impl<T: Read + Write> Conversation for T {}

fn connect(place: &str) -> io::Result<Box<dyn Conversation>> {
    let patience = Some(Duration::from_secs(5));
    if let Some(path) = place.strip_prefix("unix:") {
        let client = UnixStream::connect(path)?;
        client.set_read_timeout(patience)?;
        return Ok(Box::new(client));
    }
    let client = TcpStream::connect(place.trim_start_matches("inet:"))?;
    client.set_read_timeout(patience)?;
    Ok(Box::new(client))
}

/// A server on a port of 127.0.0.1, or on a socket in a directory of its own.
#[derive(Debug)]
pub struct Memcached {
    /// Where it listens, as a table names it.
    pub place: String,
    /// The server itself.
    pub process: Process,
    _scratch: Scratch,
}

impl Memcached {
    /// Starts one on a port; `None`, after saying so, when it is not installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Option<Self> {
        let port = free_port().unwrap().to_string();
        let words = ["-l", "127.0.0.1", "-p", &port, "-U", "0"];
        Self::start_at(
            |_| format!("inet:127.0.0.1:{port}"),
            |_| words.map(str::to_owned).into(),
        )
    }

    /// The same on a UNIX-domain socket.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_on_socket() -> Option<Self> {
        let socket = |scratch: &Scratch| scratch.path().join("socket").display().to_string();
        Self::start_at(
            |scratch| format!("unix:{}", socket(scratch)),
            |scratch| {
                let socket = socket(scratch);
                ["-s", &socket, "-a", "0777"].map(str::to_owned).into()
            },
        )
    }

    fn start_at(
        place: impl Fn(&Scratch) -> String,
        words: impl Fn(&Scratch) -> Vec<String>,
    ) -> Option<Self> {
        if !installed("memcached", "memcached") {
            return None;
        }
        let scratch = Scratch::new("memcached").unwrap();
        give_to(USER, scratch.path()).unwrap();
        let log: PathBuf = scratch.path().join("log");
        let more = words(&scratch);
        let mut words = vec!["memcached", "-m", "16"];
        words.extend(more.iter().map(String::as_str));
        let mut server = Self {
            place: place(&scratch),
            process: Process::new(USER, &log, &words),
            _scratch: scratch,
        };
        server.restart();
        Some(server)
    }

    /// Starts it, empty.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let place = self.place.clone();
        self.process.start(|| connect(&place).is_ok());
    }

    /// Says something, and gives all that is answered up to `end`.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn say(&self, words: &[u8], end: &str) -> Vec<u8> {
        let mut client = connect(&self.place).unwrap();
        client.write_all(words).unwrap();
        let mut answer = Vec::new();
        let mut some = [0; 4096];
        while !answer.ends_with(end.as_bytes()) {
            let length = match client.read(&mut some) {
                Ok(length) => length,
                // A socket with a time limit is not read again by itself after a signal or a stop of the machine.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("{error}: {}", answer.escape_ascii()),
            };
            assert!(length > 0, "{}", answer.escape_ascii());
            answer.extend_from_slice(&some[..length]);
        }
        answer
    }
}
