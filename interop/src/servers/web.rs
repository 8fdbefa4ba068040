//! Private web servers: node's, for HTTP/2 and TLS, and Python's.

use std::net::TcpStream;
use std::path::Path;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::{Process, installed};

/// Whom they run as.
const USER: &str = "nobody";

/// What node serves; its first lines say what that is.
const SCRIPT: &str = include_str!("web.js");

/// A server on 127.0.0.1.
#[derive(Debug)]
pub struct Web {
    /// To stop it, hold it, and so on.
    pub process: Process,
    /// Its port.
    pub port: u16,
    /// Certificates; a server without TLS does not use them.
    pub certificates: Certificates,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
}

impl Web {
    /// node(1) with the script; `None`, after saying SKIP, where it is not installed.
    ///
    /// - `mode`: `h1`, `h2` (HTTP/1.1, too, with TLS) or `h2c`
    /// - `pick`: the server's certificate, for TLS
    /// - `client`: clients have to show a certificate of the authority
    ///
    /// # Panics
    /// When it does not start.
    pub fn node(
        mode: &str,
        pick: Option<fn(&Certificates) -> &Pair>,
        client: bool,
    ) -> Option<Self> {
        if !installed("node", "nodejs") {
            return None;
        }
        let scratch = Scratch::new("web").unwrap();
        let certificates = Certificates::make(scratch.path());
        let script = scratch.path().join("web.js");
        std::fs::write(&script, SCRIPT).unwrap();
        let port = free_port().unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut words = vec![
            "node".to_owned(),
            text(&script),
            port.to_string(),
            mode.to_owned(),
        ];
        if let Some(pick) = pick {
            let pair = pick(&certificates);
            words.extend([text(&pair.certificate), text(&pair.key)]);
        }
        if client {
            words.push(text(&certificates.authority));
        }
        Some(Self::start(scratch, certificates, port, &words))
    }

    /// Python's `http.server`, which serves the files of [`Self::scratch`] in this version of the protocol.
    ///
    /// # Panics
    /// When it does not start.
    pub fn python(version: &str) -> Option<Self> {
        if !installed("python3", "python3") {
            return None;
        }
        let scratch = Scratch::new("web").unwrap();
        let certificates = Certificates::make(scratch.path());
        let port = free_port().unwrap();
        let words = format!(
            "python3 -m http.server {port} --bind 127.0.0.1 --protocol {version} --directory {}",
            scratch.path().display()
        );
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        Some(Self::start(scratch, certificates, port, &words))
    }

    fn start(scratch: Scratch, certificates: Certificates, port: u16, words: &[String]) -> Self {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut server = Self {
            process: Process::new(USER, &scratch.path().join("log"), &words),
            port,
            certificates,
            scratch,
        };
        server.restart();
        server
    }

    /// Starts it again, on the same port, after it was stopped or killed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let port = self.port;
        self.process
            .start(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
}
