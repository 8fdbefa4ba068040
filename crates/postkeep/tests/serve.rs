//! `postkeep serve` from its first start to its end, driven by the client commands.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const POSTKEEP: &str = env!("CARGO_BIN_EXE_postkeep");
const LIMIT: Duration = Duration::from_secs(20);

/// A running `postkeep serve`.
struct Serve {
    child: Child,
    directory: PathBuf,
    log: Receiver<String>,
    seen: Vec<String>,
    scratch: Option<tempfile::TempDir>,
}

impl Serve {
    fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("state");
        let mut child = Command::new(POSTKEEP)
            .args(["serve", "-v", "--directory"])
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut welcome = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        welcome.read_line(&mut line).unwrap();
        let (sender, log) = channel();
        let errors = BufReader::new(child.stderr.take().unwrap());
        // Ends with the process.
        thread::spawn(move || {
            errors
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut serve = Self {
            child,
            directory,
            log,
            seen: Vec::new(),
            scratch: Some(scratch),
        };
        if line != format!("postkeep serves {}\n", serve.directory.display()) {
            thread::sleep(Duration::from_millis(200));
            serve.seen.extend(serve.log.try_iter());
            panic!("no welcome: {line} {:?}", serve.seen);
        }
        serve
    }

    fn call(&self, words: &[&str], input: &str) -> Output {
        let (group, action) = (words[0], words[1]);
        let mut child = Command::new(POSTKEEP)
            .args([group, action, "-d"])
            .arg(&self.directory)
            .args(&words[2..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }

    /// Calls a client command that must succeed; returns what it prints.
    #[track_caller]
    fn ask(&self, words: &[&str]) -> String {
        let output = self.call(words, "");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.seen.iter().any(|line| line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("{text:?}: {error}: {:#?}", self.seen),
            }
        }
    }

    /// The process of a service.
    fn service(&self, name: &str) -> Option<Pid> {
        self.children().into_iter().find(|pid| {
            let arguments =
                fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            arguments.split(|&byte| byte == 0).next() == Some(name.as_bytes())
                && !arguments.windows(10).any(|window| window == b"proxywrite")
        })
    }

    fn children(&self) -> Vec<Pid> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .filter_map(|number| Pid::from_raw(number.parse().ok()?))
            .collect()
    }

    /// Waits for the end.
    fn finish(mut self) -> (ExitStatus, Vec<String>) {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:#?}",
                self.seen
            );
            thread::sleep(Duration::from_millis(10));
        };
        while let Ok(line) = self.log.recv_timeout(LIMIT) {
            self.seen.push(line);
        }
        (status, std::mem::take(&mut self.seen))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // The services see that it is gone, and go too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has ended; whether somebody has asked for its exit status does not matter.
fn gone(pid: Pid) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
        .unwrap_or_default()
        .is_empty()
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn tables_from_first_start_to_last() {
    let mut serve = Serve::start();
    // The table that anybody may write.
    assert_eq!(
        serve
            .call(&["proxymap", "delete", "cache", "color"], "")
            .status
            .code(),
        Some(1)
    );
    serve.ask(&["proxymap", "update", "cache", "color", "blue"]);
    serve.ask(&["proxymap", "update", "cache", "shape", "round"]);
    assert_eq!(
        serve.ask(&["proxymap", "lookup", "cache", "color"]),
        "blue\n"
    );
    assert_eq!(
        serve.ask(&["proxymap", "sequence", "cache"]),
        "color\tblue\nshape\tround\n"
    );
    serve.ask(&["proxymap", "delete", "cache", "color"]);
    assert_eq!(
        serve
            .call(&["proxymap", "lookup", "cache", "color"], "")
            .status
            .code(),
        Some(1)
    );

    // A table that somebody makes is noticed.
    let tables = serve.directory.join("tables");
    fs::write(tables.join("users"), "bob 1002\n").unwrap();
    let made = Command::new(POSTKEEP)
        .args(["postmap", "lmdb:users"])
        .current_dir(&tables)
        .env("MAIL_CONFIG", &serve.directory)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    serve.wait_for("reload -- configuration");
    eventually("the new table cannot be read", || {
        let output = serve.call(&["proxymap", "lookup", "users", "bob"], "");
        output.stdout == b"1002\n"
    });
    // But not for writing, and nothing else is approved.
    let refused = serve.call(&["proxymap", "update", "users", "bob", "0"], "");
    assert_eq!(refused.status.code(), Some(1));
    serve.wait_for("to approve this table for read-write access");
    let refused = serve.call(&["proxymap", "lookup", "unix:passwd.byname", "root"], "");
    assert_eq!(refused.status.code(), Some(1));
    serve.wait_for("request for unapproved table: \"unix:passwd.byname\"");

    let directory = serve.directory.clone();
    let children = serve.children();
    assert_eq!(children.len(), 3);
    serve.signal(Signal::TERM);
    // Keeps the directory until the end of the test.
    let scratch = serve.scratch.take();
    let (status, log) = serve.finish();
    assert!(status.success());
    assert!(
        !log.iter().any(|line| line.contains("killed by signal")),
        "{log:#?}"
    );
    assert!(children.into_iter().all(gone));
    let left = files_below(&directory.join("queue"));
    assert!(left.is_empty(), "{left:?}");
    drop(scratch);
}

#[test]
fn a_connection_is_parked_and_taken_back() {
    let mut serve = Serve::start();
    // Nobody will come for what is there at the end.
    let mut main_cf = fs::OpenOptions::new()
        .append(true)
        .open(serve.directory.join("main.cf"))
        .unwrap();
    writeln!(main_cf, "postkeep_connection_cache_handover_time = 1s").unwrap();
    serve.signal(Signal::HUP);
    serve.wait_for("reload");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let save = [
        "scache",
        "save-endpoint",
        "--property",
        "warm",
        "--connect",
        &target,
        "mail",
    ];
    serve.ask(&save);
    let (mut far, _) = listener.accept().unwrap();
    serve.ask(&[
        "scache",
        "save-destination",
        "--property",
        "by name",
        "example.test",
        "mail",
    ]);

    // What is said at one end comes out at the other: it is the same connection. Had the far end spoken before
    // it was found, it would not be handed out.
    let echo = thread::spawn(move || {
        let mut heard = String::new();
        far.read_to_string(&mut heard).unwrap();
        far.write_all(format!("heard {heard}").as_bytes()).unwrap();
    });
    let found = serve.call(&["scache", "find-destination", "example.test"], "hello");
    echo.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "heard hello");
    assert_eq!(
        String::from_utf8_lossy(&found.stderr),
        "destination property: by name\nproperty: warm\n"
    );
    // Each connection is handed out once.
    assert_eq!(
        serve
            .call(&["scache", "find-endpoint", "mail"], "")
            .status
            .code(),
        Some(1)
    );

    // To a command, which gets it as standard input and output.
    serve.ask(&save);
    let (mut far, _) = listener.accept().unwrap();
    let answer = thread::spawn(move || {
        let mut heard = [0; 3];
        far.read_exact(&mut heard).unwrap();
        far.write_all(b"for the command\n").unwrap();
        far
    });
    let found = serve.call(
        &[
            "scache",
            "find-endpoint",
            "mail",
            "--",
            "sh",
            "-c",
            "echo hi; read line; echo \"$line\"; exit 7",
        ],
        "",
    );
    assert_eq!(found.status.code(), Some(7));
    let mut heard = String::new();
    answer.join().unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "for the command\n");

    // What is in the cache at the end is closed soon after it.
    serve.ask(&save);
    let (mut far, _) = listener.accept().unwrap();
    serve.signal(Signal::INT);
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    serve.wait_for("statistics: domain lookup hits=1 miss=0 success=100%");
    serve.wait_for("statistics: address lookup hits=1 miss=1 success=50%");
    let (status, _) = serve.finish();
    assert!(status.success());
}

#[test]
fn services_are_replaced_and_come_back() {
    let mut serve = Serve::start();
    serve.ask(&["scache", "stat"]);
    let first = serve.service("scache").unwrap();
    serve.signal(Signal::HUP);
    serve.wait_for("reload -- configuration");
    // Nobody is refused meanwhile.
    serve.ask(&["scache", "save-destination", "d", "e"]);
    eventually("scache is not replaced", || {
        serve.service("scache").is_some_and(|pid| pid != first)
    });

    // One that dies is started again.
    eventually("the old process stays", || {
        !serve.children().contains(&first)
    });
    let second = serve.service("scache").unwrap();
    kill_process(second, Signal::KILL).unwrap();
    serve.wait_for("killed by signal 9");
    eventually("scache does not come back", || {
        serve.service("scache").is_some_and(|pid| pid != second)
    });
    serve.ask(&["scache", "save-destination", "d", "e"]);

    // A second one cannot use the same directory.
    let other = Command::new(POSTKEEP)
        .arg("serve")
        .arg("-d")
        .arg(&serve.directory)
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("one `postkeep serve` at a time"));

    // Without it the services end, and the next one starts over what it left behind.
    let children = serve.children();
    serve.signal(Signal::KILL);
    eventually("services stay behind", || {
        children
            .iter()
            .all(|pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists())
    });
}

/// What the kernel says about a process.
fn kernel_says(pid: Pid, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn services_give_up_what_they_do_not_need_unless_told_otherwise() {
    let mut serve = Serve::start();
    serve.ask(&["scache", "stat"]);
    serve.ask(&["proxymap", "update", "cache", "color", "blue"]);
    serve.ask(&["proxymap", "lookup", "cache", "color"]);
    let children = serve.children();
    assert_eq!(children.len(), 3);
    for pid in &children {
        assert_eq!(kernel_says(*pid, "NoNewPrivs"), "1");
        assert_eq!(kernel_says(*pid, "Seccomp"), "2");
    }
    let main_cf = serve.directory.join("main.cf");
    let mut text = fs::read_to_string(&main_cf).unwrap();
    text.push_str("postkeep_least_privilege = no\n");
    fs::write(&main_cf, text).unwrap();
    serve.signal(Signal::HUP);
    serve.wait_for("reload -- configuration");
    eventually("the services are not replaced", || {
        let now = serve.children();
        now.len() == 3
            && now
                .iter()
                .all(|pid| !children.contains(pid) && kernel_says(*pid, "Seccomp") == "0")
    });
    serve.ask(&["proxymap", "lookup", "cache", "color"]);
}

/// The daemons by themselves, with the configuration that `postkeep serve` has made.
#[test]
fn one_shot_mode_and_export() {
    let serve = Serve::start();
    let directory = serve.directory.clone();
    let link = |name: &str| {
        let path = directory.join(name);
        std::os::unix::fs::symlink(POSTKEEP, &path).unwrap();
        path
    };
    let (scache, proxymap) = (link("scache"), link("proxymap"));
    let run = |program: &Path, words: &[&str], input: &[u8]| {
        let mut child = Command::new(program)
            .args(words)
            .env("MAIL_CONFIG", &directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses to start does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), output.stdout, log)
    };
    let find = b"request\0find_endp\0label\0x\0\0";
    let (code, reply, log) = run(&scache, &["-V", "-S"], find);
    assert_eq!(
        (code, &*reply),
        (Some(0), &b"status\x002\0property\0\0\0"[..])
    );
    assert!(
        log.contains("postfix/scache: statistics: address lookup hits=0 miss=1 success=0%\n"),
        "{log}"
    );
    let (code, reply, log) = run(&scache, &["-V", "-S", "stray"], find);
    assert_eq!((code, &*reply), (Some(1), &b""[..]));
    assert_eq!(
        log,
        "postfix/scache: fatal: unexpected command-line argument: stray\n"
    );
    let (code, _, log) = run(&scache, &["-V", "-t", "unix", "-d"], b"");
    assert_eq!(code, Some(1));
    assert_eq!(
        log,
        "postfix/scache: fatal: service scache requires a process limit of 1\n"
    );
    let (_, _, log) = run(
        &scache,
        &["-V", "-S", "-o", "postkeep_announce_protocol=maybe"],
        b"",
    );
    assert!(
        log.contains("fatal: bad postkeep_announce_protocol value: maybe"),
        "{log}"
    );
    let (_, _, log) = run(
        &scache,
        &["-V", "-S", "-o", "connection_cache_ttl_limit=0"],
        b"",
    );
    assert_eq!(
        log,
        "postfix/scache: fatal: invalid connection_cache_ttl_limit: 0 (min 1)\n"
    );

    let approve = "proxy_read_maps=proxy:inline:{k=v} hash:/direct proxy:proxy:static:x";
    let lookup = b"request\0lookup\0table\0proxy:inline:{k=v}\0flags\0\x30\0key\0k\0\0";
    let (code, reply, log) = run(&proxymap, &["-V", "-S", "-o", approve], lookup);
    assert_eq!(
        (code, &*reply),
        (Some(0), &b"status\x000\0value\0v\0\0"[..]),
        "{log}"
    );
    let export = |service: &str| {
        let words = [
            "-S",
            "-n",
            service,
            "-o",
            "mail_version=3.11.6",
            "-o",
            approve,
        ];
        let (code, names, log) = run(&proxymap, &words, b"");
        assert_eq!(code, Some(0), "{log}");
        String::from_utf8(names).unwrap()
    };
    assert_eq!(export("export-proxy-proxymap"), "inline:{k=v}\nstatic:x\n");
    assert_eq!(
        export("export-all-proxymap"),
        "hash:/direct\ninline:{k=v}\nstatic:x\n"
    );
    let (code, _, log) = run(&proxymap, &["-V", "-S", "-n", "other"], b"");
    assert_eq!(code, Some(1));
    assert_eq!(
        log,
        "postfix/proxymap: fatal: service name must be one of proxymap or proxymap\n"
    );
}
