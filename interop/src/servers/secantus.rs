//! A private `SecantusDB`: a server of other make that speaks `MongoDB`'s protocol, from `PyPI`. No `MongoDB` server itself is in
//! a package registry that tests may use.

use std::io::{Write as _, stderr};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::Process;

/// Whom it runs as.
const USER: &str = "nobody";

/// Where `scripts/install-test-deps.sh` puts it.
const HOME: &str = "/opt/postkeep-test-secantusdb";

/// Says it once, past what keeps the output of a test that passes: nothing else tells that it tried less.
fn say(once: &Once, text: &str) {
    once.call_once(|| {
        let _ = writeln!(stderr(), "{text}");
    });
}

/// A server on 127.0.0.1.
#[derive(Debug)]
pub struct Secantus {
    /// To stop it, hold it, and so on.
    pub process: Process,
    /// Its port.
    pub port: u16,
    /// Certificates; a server without TLS does not use them.
    pub certificates: Certificates,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
    tls: bool,
}

impl Secantus {
    /// Starts one; `None`, after saying so aloud, where it is not installed. That is no failure, not under CI either: it
    /// comes from `PyPI`, which a machine for tests may not reach.
    ///
    /// - `pick`: the server's certificate, for TLS
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(pick: Option<fn(&Certificates) -> &Pair>) -> Option<Self> {
        static TOLD: Once = Once::new();
        say(
            &TOLD,
            "SKIP: mongodb not verified against a real server: none of MongoDB's own make can be installed here, so \
             replica sets, routers, mongodb+srv names, X.509 and changes of the primary are not tried",
        );
        let program = format!("{HOME}/bin/secantusd-py");
        if !Path::new(&program).is_file() || !rustix::process::geteuid().is_root() {
            static ALONE: Once = Once::new();
            let text = format!(
                "SKIP: mongodb not verified against any server: {program} is not there, or not to be started as \
                 another user: lookups, authentication, TLS, ends of servers and limits are not tried"
            );
            say(&ALONE, &text);
            return None;
        }
        let scratch = Scratch::new("secantus").unwrap();
        let certificates = Certificates::make(scratch.path());
        let home = scratch.directory("home", 0o755).unwrap();
        give_to(USER, &home).unwrap();
        let port = free_port().unwrap();
        let mut server = Self {
            process: Process::new(USER, &scratch.path().join("log"), &[]),
            port,
            tls: pick.is_some(),
            certificates,
            scratch,
        };
        let mut more = Vec::new();
        if let Some(pick) = pick {
            let Pair { certificate, key } = pick(&server.certificates);
            more.extend([
                "--tls-cert-file".to_owned(),
                certificate.display().to_string(),
            ]);
            more.extend(["--tls-key-file".to_owned(), key.display().to_string()]);
        }
        server.run(&more);
        Some(server)
    }

    fn run(&mut self, more: &[String]) {
        let data = self.scratch.path().join("home").display().to_string();
        let port = self.port.to_string();
        let program = format!("{HOME}/bin/secantusd-py");
        let mut words = vec![&program[..], "--host", "127.0.0.1", "--port", &port];
        words.extend(["--storage-path", &data, "--standalone"]);
        words.extend(["--cache-size", "64M", "--log-level", "WARNING"]);
        words.extend(more.iter().map(String::as_str));
        self.process = Process::new(USER, &self.scratch.path().join("log"), &words);
        self.restart();
    }

    /// Starts it again, on the same port and with the same data, after it was stopped or killed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let port = self.port;
        self.process
            .start(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Starts it anew so that everybody has to say who he is; `user` may do everything.
    ///
    /// # Panics
    /// When it does not start.
    pub fn demand(&mut self, user: &str, password: &str) {
        let script = format!(
            "client.admin.command('createUser', '{user}', pwd='{password}', roles=['root'])"
        );
        self.python(&script, b"");
        self.process.stop();
        self.run(&["--auth".to_owned()]);
    }

    /// Runs lines of Python that have `client`, `MongoDB`'s own for Python, and `json` and `sys`; what they print.
    ///
    /// # Panics
    /// When they fail.
    pub fn python(&self, script: &str, input: &[u8]) -> String {
        let tls = if self.tls {
            ", tls=True, tlsAllowInvalidCertificates=True"
        } else {
            ""
        };
        let script = format!(
            "import json, sys, pymongo, bson\n\
             client = pymongo.MongoClient('127.0.0.1', {}, serverSelectionTimeoutMS=20000{tls})\n{script}\n",
            self.port
        );
        let mut child = Command::new(format!("{HOME}/bin/python"))
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}
