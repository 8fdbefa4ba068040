//! One postmap(1) process, fed through a pipe, watched through proc(5).
//!
//! Processor time is read while the process waits for its next key, so that start-up, lookups and exit are
//! told apart within one process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

/// What a stage of a process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// Processor time.
    pub(crate) processor: Duration,
}

/// A postmap that waits for keys.
pub(crate) struct Process {
    child: Child,
    keys: ChildStdin,
    answers: JoinHandle<std::io::Result<Vec<u8>>>,
    complaints: JoinHandle<std::io::Result<String>>,
}

/// No stage takes longer than this, or the process hangs.
const PATIENCE: Duration = Duration::from_mins(1);
/// Room in a pipe, so that the two sides need not take turns after every few keys.
const PIPE_BYTES: usize = 1 << 20;

impl Process {
    /// Starts it and asks for one key; the cost is that of opening the table.
    pub(crate) fn start(mut command: Command, key: &str) -> Result<(Self, Cost)> {
        let begin = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let keys = child.stdin.take().context("no pipe")?;
        let mut output = child.stdout.take().context("no pipe")?;
        let mut errors = child.stderr.take().context("no pipe")?;
        rustix::pipe::fcntl_setpipe_size(&keys, PIPE_BYTES)?;
        rustix::pipe::fcntl_setpipe_size(&output, PIPE_BYTES)?;
        let answers = thread::spawn(move || {
            let mut bytes = Vec::new();
            output.read_to_end(&mut bytes).map(|_| bytes)
        });
        let complaints = thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).map(|_| text)
        });
        let mut process = Self {
            child,
            keys,
            answers,
            complaints,
        };
        match process.ask_from(begin, Duration::ZERO, format!("{key}\n").as_bytes()) {
            Ok(cost) => Ok((process, cost)),
            Err(error) => {
                let text = process
                    .finish()
                    .map_or_else(|error| error.to_string(), |_| String::new());
                Err(error.context(text))
            }
        }
    }

    /// Feeds keys, one a line, and waits until all are looked up.
    pub(crate) fn ask(&mut self, keys: &[u8]) -> Result<Cost> {
        let before = self.processor()?;
        self.ask_from(Instant::now(), before, keys)
    }

    fn ask_from(&mut self, begin: Instant, before: Duration, keys: &[u8]) -> Result<Cost> {
        self.keys.write_all(keys)?;
        self.settle()?;
        Ok(Cost {
            wall: begin.elapsed(),
            processor: self.processor()?.saturating_sub(before),
        })
    }

    /// Waits until the process has taken all keys and sleeps.
    fn settle(&mut self) -> Result<()> {
        let limit = Instant::now() + PATIENCE;
        let mut quiet = 0;
        // One look could fall between taking the key and waiting for something else.
        while quiet < 3 {
            let taken = rustix::io::ioctl_fionread(&self.keys)? == 0;
            match self.state()? {
                'S' if taken => quiet += 1,
                'Z' | 'X' => bail!("the process ended early"),
                _ => quiet = 0,
            }
            ensure!(Instant::now() < limit, "no answer for a long time");
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn state(&self) -> Result<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let rest = stat.rsplit_once(") ").context("strange stat")?.1;
        rest.chars().next().context("strange stat")
    }

    /// Processor time of all its threads so far.
    fn processor(&self) -> Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let spent = text.split_whitespace().next().context("empty schedstat")?;
            total += spent.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// The most memory that it ever held at once, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    /// Ends it by the end of its input, and returns what it printed.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        drop(self.keys);
        let status = self.child.wait()?;
        let joined = |_| anyhow!("a reader panicked");
        let answers = self.answers.join().map_err(joined)??;
        let complaints = self.complaints.join().map_err(joined)??;
        ensure!(complaints.is_empty(), "{}", complaints.trim_end());
        // 1 tells that the last key was not found.
        ensure!(matches!(status.code(), Some(0 | 1)), "{status}");
        Ok(answers)
    }
}
