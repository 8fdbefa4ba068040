//! A cdb table outlives whoever makes a new one: killed in the middle, or out of space.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use postkeep_tables::cdb_file::Reader;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        symlink(env!("CARGO_BIN_EXE_postkeep"), place.path().join("postmap")).unwrap();
        fs::create_dir(place.path().join("cfg")).unwrap();
        let text = format!(
            "compatibility_level = 3.6\nqueue_directory = {0}\ndata_directory = {0}\nmyhostname = h.example\nmydomain = example\n",
            place.path().display()
        );
        fs::write(place.path().join("cfg/main.cf"), text).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-c", script])
            .current_dir(self.path())
            .env("MAIL_CONFIG", "cfg")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn make(&self) -> Output {
        self.command("exec ./postmap cdb:t").output().unwrap()
    }

    /// Makes a table of one entry.
    fn make_old(&self) {
        fs::write(self.path().join("t"), "first entry\n").unwrap();
        assert!(self.make().status.success());
    }

    /// How many entries the table has; all of the old one or all of the new.
    fn entries(&self) -> usize {
        let reader = Reader::from_bytes(fs::read(self.path().join("t.cdb")).unwrap()).unwrap();
        let mut at = reader.first();
        let mut count = 0;
        while let Some(record) = reader.record(at).unwrap() {
            count += 1;
            at = record.next();
        }
        count
    }
}

fn source(entries: usize) -> String {
    let mut text = String::new();
    for number in 0..entries {
        writeln!(text, "key{number:06} {}", "v".repeat(100 + number % 700)).unwrap();
    }
    text
}

#[test]
fn killed_while_creating_it_holds_the_old_entries_or_the_new() {
    const ENTRIES: usize = 8_000;
    let place = Place::new();
    let text = source(ENTRIES);
    fs::write(place.path().join("t"), &text).unwrap();
    let start = Instant::now();
    assert!(place.make().status.success());
    let whole = start.elapsed();
    for part in 1..=5 {
        place.make_old();
        fs::write(place.path().join("t"), &text).unwrap();
        let mut child = place.command("exec ./postmap cdb:t").spawn().unwrap();
        std::thread::sleep(whole * part / 5);
        // It may have finished.
        let _ = child.kill();
        child.wait().unwrap();
        let entries = place.entries();
        assert!([1, ENTRIES].contains(&entries), "{entries}");
        // What is left of the temporary file does not stand in the way of the next.
        assert!(place.make().status.success());
        assert_eq!(place.entries(), ENTRIES);
        assert!(!place.path().join("t.cdb.tmp").exists());
    }
}

#[test]
fn out_of_space_it_keeps_the_old_entries() {
    let place = Place::new();
    place.make_old();
    fs::write(place.path().join("t"), source(5_000)).unwrap();
    let start = Instant::now();
    // A limit on the size of files stands for a full disk; the signal that comes with it is ignored.
    let script = "trap '' XFSZ; ulimit -f 200; exec ./postmap cdb:t";
    let output = place.command(script).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "postmap: fatal: error writing t.cdb.tmp: File too large\n"
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.entries(), 1);
    assert!(!place.path().join("t.cdb.tmp").exists());
    assert!(start.elapsed() < Duration::from_secs(20));
}
