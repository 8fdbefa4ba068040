//! The installed postmap and postalias beside ours: the same command in both, random sources and keys.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "for tests, which may stop where they find something wrong"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use postkeep_testkit::{Scratch, postkeep_binary, real_postfix};

/// Where the two programs of one name are.
#[derive(Debug)]
pub struct Sides {
    _scratch: Scratch,
    root: PathBuf,
    /// The directory of the installed programs.
    pub real: PathBuf,
    /// A directory with ours under the same names.
    pub ours: PathBuf,
}

/// What a command came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status.
    pub exit: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Sides {
    /// Looks for both; `None`, after saying so, when one is missing.
    pub fn new() -> Option<Self> {
        let (real, ours) = (real_postfix()?, postkeep_binary()?);
        let scratch = Scratch::new("postmap").unwrap();
        let root = scratch.path().to_path_buf();
        let links = root.join("ours");
        fs::create_dir(&links).unwrap();
        for name in ["postmap", "postalias"] {
            symlink(&ours, links.join(name)).unwrap();
        }
        let config = root.join("cfg");
        fs::create_dir(&config).unwrap();
        let place = root.display();
        let text = format!(
            "compatibility_level = 3.6\nqueue_directory = {place}\ndata_directory = {place}\n\
             myhostname = h.example\nmydomain = example\nmaillog_file =\n"
        );
        write_old(&config.join("main.cf"), text.as_bytes());
        Some(Self {
            _scratch: scratch,
            root,
            real: real.command_directory,
            ours: links,
        })
    }

    /// Where the directories are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An empty directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Runs a command, whose first word is its name, in `directory`.
    pub fn run(&self, programs: &Path, directory: &Path, words: &[&str], input: &[u8]) -> Outcome {
        let mut child = Command::new(programs.join(words[0]))
            .args(&words[1..])
            .current_dir(directory)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("MAIL_CONFIG", self.root.join("cfg"))
            .env("variable", "value")
            .env("Capital", "letter")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // Beside the reading, because both may be long. A program that does not want its input closes it.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().unwrap()
        });
        // The Berkeley DB library of the installed programs prints lines of its own.
        let stderr: String = String::from_utf8_lossy(&output.stderr)
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("BDB"))
            .collect();
        Outcome {
            exit: output.status.code(),
            stdout: output.stdout,
            stderr,
        }
    }

    /// Runs a command of the installed programs and of ours at once, for what waits more than it works.
    pub fn both(&self, words: [&[&str]; 2], input: &[u8]) -> [Outcome; 2] {
        std::thread::scope(|scope| {
            let real = scope.spawn(|| self.run(&self.real, &self.root, words[0], input));
            let ours = self.run(&self.ours, &self.root, words[1], input);
            [real.join().unwrap(), ours]
        })
    }

    /// Runs the same in two directories that were prepared the same way; nothing may differ.
    pub fn compare(
        &self,
        places: [&Path; 2],
        words: &[&str],
        input: &[u8],
        unordered: bool,
        note: &str,
    ) {
        if let Some(difference) = self.difference(places, words, input, unordered) {
            panic!("{note}: {difference}");
        }
    }

    /// Runs the same in two directories that were prepared the same way, and says what differs.
    pub fn difference(
        &self,
        places: [&Path; 2],
        words: &[&str],
        input: &[u8],
        unordered: bool,
    ) -> Option<String> {
        let mut real = self.run(&self.real, places[0], words, input);
        let mut ours = self.run(&self.ours, places[1], words, input);
        if unordered {
            for outcome in [&mut real, &mut ours] {
                let lines: BTreeSet<_> = outcome
                    .stdout
                    .split(|&byte| byte == b'\n')
                    .map(<[u8]>::to_vec)
                    .collect();
                outcome.stdout = lines.into_iter().collect::<Vec<_>>().join(&b'\n');
                let mut warnings: Vec<_> = outcome.stderr.lines().collect();
                warnings.sort_unstable();
                outcome.stderr = warnings.join("\n");
            }
        }
        if real == ours {
            return None;
        }
        // Of long outputs, what follows the first difference is enough.
        let same = |one: &[u8], other: &[u8]| {
            one.iter()
                .zip(other)
                .take_while(|(one, other)| one == other)
                .count()
        };
        let start = same(&real.stdout, &ours.stdout).saturating_sub(100);
        let show = |side: &Outcome| {
            let end = side.stdout.len().min(start + 500);
            format!(
                "[{start}..] {} {:?}\n{}",
                side.stdout
                    .get(start..end)
                    .unwrap_or_default()
                    .escape_ascii(),
                side.exit,
                side.stderr
            )
        };
        let input = &input[..input.len().min(1000)];
        Some(format!(
            "{words:?} with input \"{}\"\nreal: {}\nours: {}",
            input.escape_ascii(),
            show(&real),
            show(&ours)
        ))
    }
}

/// Writes a file whose time is long past.
pub fn write_old(path: &Path, text: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(text).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(50_000))
        .unwrap();
}

/// The fewest lines of a text for which `fails` still holds, found by leaving out one piece after the other.
pub fn shrink(text: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'\n').collect();
    let mut size = lines.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < lines.len() {
            let mut fewer = lines.clone();
            fewer.drain(start..lines.len().min(start + size));
            if fails(&fewer.concat()) {
                lines = fewer;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    lines.concat()
}

/// Pseudo-random numbers that are the same each time.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// So many of these, one after the other.
    pub fn join(&mut self, pieces: &[&[u8]], count: usize) -> Vec<u8> {
        (0..count)
            .flat_map(|_| self.pick(pieces).to_vec())
            .collect()
    }

    /// A key, with letters, quotes and bytes that matter.
    pub fn key(&mut self) -> Vec<u8> {
        let pieces: [&[u8]; 16] = [
            b"a",
            b"B",
            b"c@d",
            b"E.f",
            b"\xc3\xa9",
            b"\xc3\x89",
            b"\xc3\x9f",
            b"\xe1\xba\x9e",
            b"\"",
            b"\\",
            b"\"g h\"",
            b":",
            b"#",
            b"\xff",
            b"=",
            b"\xce\xa3",
        ];
        let count = 1 + self.below(3);
        self.join(&pieces, count)
    }

    /// A source text, good and bad lines.
    pub fn source(&mut self) -> Vec<u8> {
        let values: [&[u8]; 9] = [
            b"v",
            b" w",
            b"\tX",
            b"\xc3\xa9",
            b"\xff",
            b"# no",
            b"\"",
            b"\\",
            b"  ",
        ];
        let ends: [&[u8]; 7] = [
            b"\n",
            b"\n",
            b"\n",
            b" \r\n",
            b"\n# comment\n",
            b"\n  more\n",
            b"\0 rest\n",
        ];
        let mut text = Vec::new();
        for _ in 0..self.below(25) {
            let gaps: [&[u8]; 6] = [b" ", b"\t", b"  ", b"\x0b", b"", b" \n\t"];
            text.extend(self.key());
            text.extend_from_slice(self.pick(&gaps));
            let count = self.below(4);
            text.extend(self.join(&values, count));
            text.extend_from_slice(self.pick(&ends));
        }
        if self.below(3) == 0 {
            text.pop();
        }
        text
    }

    /// Lines to ask for, some of which are in the source.
    pub fn keys(&mut self, source: &[u8]) -> Vec<u8> {
        let mut lines = Vec::new();
        for line in source.split(|&byte| byte == b'\n') {
            let key = line
                .split(u8::is_ascii_whitespace)
                .next()
                .unwrap_or_default();
            // The reference takes an empty key for a fault in an LMDB table, which is tried elsewhere.
            if !key.is_empty() && self.below(4) > 0 {
                lines.extend_from_slice(key);
                lines.push(b'\n');
            }
            if self.below(4) == 0 {
                lines.extend(self.key());
                lines.push(b'\n');
            }
        }
        lines
    }
}

/// Options that tables are made with.
pub const OPTIONS: [&str; 12] = [
    "", "", "", "-f", "-u", "-w", "-r", "-N", "-n", "-nf", "-uf", "-Nr",
];

/// Options that matter when a table is read, of those it was made with.
pub fn reading(options: &str) -> String {
    let kept: String = options
        .chars()
        .filter(|letter| "-fuNn".contains(*letter))
        .collect();
    if kept == "-" { String::new() } else { kept }
}

/// A command with its options, if any, and the rest.
pub fn words<'a>(command: &'a str, options: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![command];
    if !options.is_empty() {
        words.push(options);
    }
    words.extend_from_slice(rest);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_keeps_what_matters() {
        let text = b"a\nb\nc\nd\ne\nf\ng";
        let has = |text: &[u8], line: u8| text.contains(&line);
        assert_eq!(
            shrink(text, |text| has(text, b'b') && has(text, b'g')),
            b"b\ng"
        );
        assert_eq!(shrink(text, |_| true), b"");
        assert_eq!(shrink(text, |_| false), text);
    }
}
