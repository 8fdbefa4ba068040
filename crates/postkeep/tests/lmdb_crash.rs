//! An LMDB table outlives whoever writes it: killed in the middle, or out of space.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let path = place.0.path();
        symlink(env!("CARGO_BIN_EXE_postkeep"), path.join("postmap")).unwrap();
        fs::create_dir(path.join("cfg")).unwrap();
        let text = format!(
            "compatibility_level = 3.6\nqueue_directory = {0}\ndata_directory = {0}\nmyhostname = h.example\nmydomain = example\n",
            path.display()
        );
        let mut file = fs::File::create(path.join("cfg/main.cf")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_mins(10))
            .unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir(self.path())
            .env("MAIL_CONFIG", "cfg")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn postmap(&self, words: &[&str]) -> Output {
        self.command(self.path().join("postmap").to_str().unwrap(), words)
            .output()
            .unwrap()
    }

    fn list(&self) -> Vec<String> {
        let output = self.postmap(&["-s", "lmdb:t"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

fn source(entries: usize) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for number in 0..entries {
        writeln!(text, "key{number:06} {}", "v".repeat(100 + number % 700)).unwrap();
    }
    text
}

#[test]
fn killed_while_adding_it_holds_what_was_added_before() {
    let place = Place::new();
    fs::write(place.path().join("t"), "first entry\n").unwrap();
    assert!(place.postmap(&["lmdb:t"]).status.success());
    let text = source(20_000);
    for milliseconds in [20, 60, 150] {
        let mut child = place
            .command(
                place.path().join("postmap").to_str().unwrap(),
                &["-i", "-w", "lmdb:t"],
            )
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let writer = std::thread::scope(|scope| {
            // The reader may be killed before it has taken everything.
            scope.spawn(|| drop(input.write_all(text.as_bytes())));
            std::thread::sleep(Duration::from_millis(milliseconds));
            child.kill()
        });
        writer.unwrap();
        child.wait().unwrap();
        let entries = place.list();
        assert_eq!(entries[0], "first\tentry");
        // Entries were added in order, so what is there is the start of the source.
        for (number, line) in entries[1..].iter().enumerate() {
            assert!(
                line.starts_with(&format!("key{number:06}\t")),
                "{number}: {line}"
            );
        }
    }
}

#[test]
fn killed_while_creating_it_holds_the_old_entries_or_the_new() {
    let place = Place::new();
    fs::write(place.path().join("t"), "first entry\n").unwrap();
    assert!(place.postmap(&["lmdb:t"]).status.success());
    let text = source(20_000);
    fs::write(place.path().join("t"), &text).unwrap();
    let start = Instant::now();
    assert!(place.postmap(&["lmdb:t"]).status.success());
    let whole = start.elapsed();
    for part in 1..=6 {
        fs::write(place.path().join("t"), "first entry\n").unwrap();
        assert!(place.postmap(&["lmdb:t"]).status.success());
        fs::write(place.path().join("t"), &text).unwrap();
        let mut child = place
            .command(place.path().join("postmap").to_str().unwrap(), &["lmdb:t"])
            .spawn()
            .unwrap();
        std::thread::sleep(whole * part / 6);
        // It may have finished.
        let _ = child.kill();
        child.wait().unwrap();
        let entries = place.list();
        assert!(
            entries == ["first\tentry"] || entries.len() == 20_000,
            "{}",
            entries.len()
        );
    }
}

#[test]
fn out_of_space_it_keeps_the_old_entries() {
    let place = Place::new();
    fs::write(place.path().join("t"), "first entry\n").unwrap();
    assert!(place.postmap(&["lmdb:t"]).status.success());
    let text = source(5_000);
    fs::write(place.path().join("t"), &text).unwrap();
    // A limit on the size of files stands for a full disk; the signal that comes with it is ignored.
    for words in ["lmdb:t", "-i lmdb:t <t"] {
        let script = format!("trap '' XFSZ; ulimit -f 200; exec ./postmap {words}");
        let output = place.command("bash", &["-c", &script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        // LMDB says the latter when a part of the last write got through.
        let texts = ["File too large", "Input/output error"]
            .map(|why| format!("postmap: fatal: error updating lmdb:t: {why}\n"));
        assert!(texts.contains(&error), "{error}");
        assert_eq!(place.list()[0], "first\tentry");
    }
    assert!(place.postmap(&["lmdb:t"]).status.success());
    assert_eq!(place.list().len(), 5_000);
}
