//! `postkeep status` and `postkeep top` beside a running `postkeep serve`, and where nothing runs.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const POSTKEEP: &str = env!("CARGO_BIN_EXE_postkeep");
const LIMIT: Duration = Duration::from_secs(20);

/// A running `postkeep serve`.
struct Serve {
    child: Child,
    directory: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Serve {
    fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("state");
        let mut child = Command::new(POSTKEEP)
            .args(["serve", "--directory"])
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut welcome = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        welcome.read_line(&mut line).unwrap();
        assert!(line.starts_with("postkeep serves "), "{line}");
        Self {
            child,
            directory,
            _scratch: scratch,
        }
    }

    fn call(&self, words: &[&str]) -> Output {
        call(&self.directory, words)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // The services see that it is gone, and go too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(directory: &Path, words: &[&str]) -> Output {
    Command::new(POSTKEEP)
        .args(words)
        .arg("-d")
        .arg(directory)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_done_is_seen() {
    let serve = Serve::start();
    let table = format!("lmdb:{}", serve.directory.join("tables/cache").display());
    for words in [
        &["proxymap", "update", &table, "color", "blue"][..],
        &["proxymap", "lookup", &table, "color"],
        &["proxymap", "lookup", &table, "color"],
        &["scache", "stat"],
    ] {
        let output = serve.call(words);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    // A page may be a tenth of a second old.
    thread::sleep(Duration::from_millis(150));

    let output = serve.call(&["status", "--json"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let status: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(status["health"], "ok");
    let services = status["services"].as_array().unwrap();
    let service = |name: &str| {
        services
            .iter()
            .find(|service| service["service"] == name)
            .unwrap_or_else(|| panic!("{name}: {shown}"))
    };
    let first = |name: &str| service(name)["lookups"]["tables"][0].clone();
    let (read, written) = (first("proxymap"), first("proxywrite"));
    assert_eq!(read["table"], table.as_str());
    assert_eq!(read["requests"], 2.0);
    assert_eq!(written["requests"], 1.0);
    assert!(service("scache")["sessions"]["sessions"] == 0.0);
    assert!(service("scache")["descriptors"].as_f64().unwrap() > 3.0);

    let output = serve.call(&["top", "--once", "--interval", "1"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for word in ["SERVICE", "proxywrite", "CACHE", "TABLE", "tables/cache"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }

    let output = serve.call(&["status", "--quiet"]);
    assert_eq!(text(&output.stdout), "OK: proxymap, proxywrite, scache\n");

    // Without a terminal there is nothing to draw on.
    let output = serve.call(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--once"));
}

#[test]
fn a_terminal_shows_it_until_q_is_pressed() {
    let serve = Serve::start();
    let output = serve.call(&["proxymap", "update", "cache", "color", "blue"]);
    assert!(output.status.success());
    // A terminal of its own, of no particular size.
    let command = format!(
        "stty rows 30 cols 100; exec {POSTKEEP} top -d {}",
        serve.directory.display()
    );
    let mut child = Command::new("script")
        .args(["-q", "-e", "-c", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut piece) {
            let _ = sender.send(piece[..count].to_vec());
        }
    });
    let deadline = Instant::now() + LIMIT;
    let mut seen = Vec::new();
    while !text(&seen).contains("q quit") {
        let left = deadline.saturating_duration_since(Instant::now());
        seen.extend(receiver.recv_timeout(left).unwrap());
    }
    child.stdin.as_mut().unwrap().write_all(b"sq").unwrap();
    while let Ok(piece) = receiver.recv_timeout(LIMIT) {
        seen.extend(piece);
    }
    assert!(child.wait().unwrap().success());
    let seen = text(&seen);
    for word in ["proxywrite", "SESSIONS", "tables/cache"] {
        assert!(seen.contains(word), "{word}: {seen}");
    }
    // The terminal is as it was before.
    assert!(seen.contains("\x1b[?1049h") && seen.contains("\x1b[?1049l"));
}

#[test]
fn nothing_there_is_critical() {
    let scratch = tempfile::tempdir().unwrap();
    let output = call(scratch.path(), &["status"]);
    assert_eq!(output.status.code(), Some(2));
    let shown = text(&output.stdout);
    assert!(shown.starts_with("CRITICAL: no service"), "{shown}");
    assert!(shown.contains("postkeep_metrics_address"), "{shown}");
    let output = call(scratch.path(), &["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["health"], "critical");

    let address = format!("unix:{}", scratch.path().join("x").display());
    let output = Command::new(POSTKEEP)
        .args(["status", "-q", "-a", &address])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stdout),
        format!("CRITICAL: {address}: No such file or directory\n")
    );
    let output = call(scratch.path(), &["top", "--once"]);
    assert_eq!(output.status.code(), Some(1));
}
