//! A private memcached(1).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::process::{Process, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "memcache";

/// A server on a port of 127.0.0.1.
#[derive(Debug)]
pub struct Memcached {
    /// Where it listens.
    pub port: u16,
    /// The server itself.
    pub process: Process,
    _scratch: Scratch,
}

impl Memcached {
    /// Starts one; `None`, after saying so, when it is not installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Option<Self> {
        if !installed("memcached", "memcached") {
            return None;
        }
        let scratch = Scratch::new("memcached").unwrap();
        give_to(USER, scratch.path()).unwrap();
        let port = free_port().unwrap();
        let log: PathBuf = scratch.path().join("log");
        let number = port.to_string();
        let words = [
            "memcached",
            "-l",
            "127.0.0.1",
            "-p",
            &number,
            "-U",
            "0",
            "-m",
            "16",
        ];
        let mut server = Self {
            port,
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
        let port = self.port;
        self.process
            .start(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Says something, and gives all that is answered up to `end`.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn say(&self, words: &[u8], end: &str) -> Vec<u8> {
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let patience = Some(Duration::from_secs(5));
        client.set_read_timeout(patience).unwrap();
        client.write_all(words).unwrap();
        let mut answer = Vec::new();
        let mut some = [0; 4096];
        while !answer.ends_with(end.as_bytes()) {
            let length = client.read(&mut some).unwrap();
            assert!(length > 0, "{}", answer.escape_ascii());
            answer.extend_from_slice(&some[..length]);
        }
        answer
    }
}
