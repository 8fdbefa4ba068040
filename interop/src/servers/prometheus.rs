//! A private prometheus(1).

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::process::{Process, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "prometheus";

/// A server that asks daemons for their metrics twice a second.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    _process: Process,
    _scratch: Scratch,
}

impl Prometheus {
    /// Starts one; `None`, after saying so, when it is not installed.
    ///
    /// - `rules`: a file of alert rules
    /// - `ports`: where the daemons hand out their metrics, on 127.0.0.1
    ///
    /// # Panics
    /// When it does not start, or its own tool finds fault with the rules.
    pub fn start(rules: &str, ports: &[u16]) -> Option<Self> {
        if !installed("prometheus", "prometheus") {
            return None;
        }
        let scratch = Scratch::new("prometheus").unwrap();
        give_to(USER, scratch.path()).unwrap();
        scratch.file("rules.yml", rules).unwrap();
        let targets: Vec<String> = ports
            .iter()
            .map(|port| format!("\"127.0.0.1:{port}\""))
            .collect();
        let configuration = format!(
            "global:\n  scrape_interval: 500ms\n  evaluation_interval: 500ms\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: postkeep\n    static_configs:\n      - targets: [{}]\n",
            targets.join(", ")
        );
        let file = scratch.file("prometheus.yml", &configuration).unwrap();
        let checked = Command::new("promtool")
            .args(["check", "config"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let port = free_port().unwrap();
        let log: PathBuf = scratch.path().join("log");
        let words = [
            "prometheus".to_owned(),
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}/data", scratch.path().display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let words = words.each_ref().map(String::as_str);
        let mut process = Process::new(USER, &log, &words);
        process.start(|| fetch(port, "/-/ready").is_some_and(|page| page.contains(" 200 ")));
        Some(Self {
            port,
            _process: process,
            _scratch: scratch,
        })
    }

    /// The JSON of an answer of its interface.
    ///
    /// - `path`: what follows `/api/v1/`
    ///
    /// # Panics
    /// When there is no answer.
    pub fn ask(&self, path: &str) -> String {
        let answer = fetch(self.port, &format!("/api/v1/{path}")).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The JSON of the answer to a query at this moment.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn query(&self, expression: &str) -> String {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            let _ = write!(encoded, "%{byte:02X}");
        }
        self.ask(&format!("query?query={encoded}"))
    }
}

/// The whole response, of HTTP/1.0, so that no part of it has a length of its own.
fn fetch(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    Some(response)
}
