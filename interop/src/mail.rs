//! Mail in and out: smtp-source(1), smtp-sink(1), and an SMTP client for single recipients.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_testkit::private_postfix::{free_port, listening};
use postkeep_testkit::real_postfix;

/// What a sink has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sunk {
    /// Ended connections.
    pub sessions: u64,
    /// Received messages.
    pub messages: u64,
}

/// A running smtp-sink(1).
#[derive(Debug)]
pub struct Sink {
    child: Child,
    counters: PathBuf,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
}

impl Sink {
    /// Starts one; its counters go to a file in `directory`.
    ///
    /// # Errors
    /// When Postfix is not there or the sink does not come up.
    pub fn start(directory: &Path, arguments: &[&str]) -> Result<Self> {
        let real = real_postfix().context("no Postfix")?;
        let port = free_port()?;
        let counters = directory.join(format!("sink-{port}"));
        let child = real
            .command("smtp-sink")
            .args(["-c", "-u", "postfix"])
            .args(arguments)
            .arg(format!("127.0.0.1:{port}"))
            .arg("1024")
            .stdin(Stdio::null())
            .stdout(File::create(&counters)?)
            .spawn()
            .context("cannot start smtp-sink")?;
        let sink = Self {
            child,
            counters,
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !listening(port) {
            ensure!(Instant::now() < deadline, "smtp-sink does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(sink)
    }

    /// Where mail for this sink is sent, as a transport's next hop.
    pub fn next_hop(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    /// The counters now. Connections of our own that only looked whether it listens are among the sessions.
    pub fn count(&self) -> Sunk {
        let text = fs::read_to_string(&self.counters).unwrap_or_default();
        let last = text
            .rsplit(['\r', '\n'])
            .find(|part| part.contains("mesg="))
            .unwrap_or_default();
        let field = |name: &str| {
            last.split_whitespace()
                .find_map(|word| word.strip_prefix(name))
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        Sunk {
            sessions: field("sess="),
            messages: field("mesg="),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running smtp-source(1).
#[derive(Debug)]
pub struct Source {
    child: Child,
}

impl Source {
    /// Starts to send `messages` messages to `recipient` over `sessions` connections at a time.
    ///
    /// # Errors
    /// When Postfix is not there.
    pub fn start(port: u16, messages: u32, sessions: u32, recipient: &str) -> Result<Self> {
        Self::start_with(&[], port, messages, sessions, recipient)
    }

    /// As [`Source::start`], each message to a recipient of its own: a number before `recipient`.
    ///
    /// # Errors
    /// When Postfix is not there.
    pub fn start_numbered(
        port: u16,
        messages: u32,
        sessions: u32,
        recipient: &str,
    ) -> Result<Self> {
        Self::start_with(&["-N"], port, messages, sessions, recipient)
    }

    fn start_with(
        options: &[&str],
        port: u16,
        messages: u32,
        sessions: u32,
        recipient: &str,
    ) -> Result<Self> {
        let real = real_postfix().context("no Postfix")?;
        let child = real
            .command("smtp-source")
            .args(options)
            .args(["-s", &sessions.to_string(), "-m", &messages.to_string()])
            .args(["-l", "600", "-f", "sender@example.test", "-t", recipient])
            .arg(format!("127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start smtp-source")?;
        Ok(Self { child })
    }

    /// Waits until everything has been accepted.
    ///
    /// # Errors
    /// When it fails or takes longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "smtp-source: {status}");
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("smtp-source has not finished after {limit:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Number of established connections to a loopback port.
///
/// # Errors
/// When the system's table cannot be read.
pub fn connections_to(port: u16) -> Result<usize> {
    let remote = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp")?;
    Ok(table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&remote.as_str()) && fields.get(3) == Some(&"01"))
        .count())
}

/// Asks an SMTP server for its reply to one recipient.
///
/// # Errors
/// When the conversation breaks or the sender is not accepted.
pub fn recipient_reply(port: u16, recipient: &str) -> Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut ask = |command: &str| -> Result<String> {
        if !command.is_empty() {
            writer.write_all(format!("{command}\r\n").as_bytes())?;
        }
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "the server closed");
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(line.trim_end().to_owned());
            }
        }
    };
    ask("")?;
    ask("HELO client.example.test")?;
    let sender = ask("MAIL FROM:<sender@example.test>")?;
    ensure!(sender.starts_with("250"), "sender refused: {sender}");
    let reply = ask(&format!("RCPT TO:<{recipient}>"))?;
    let _ = ask("QUIT");
    Ok(reply)
}

/// Runs a command to its end and returns what it printed and how it ended, for comparison with another run.
///
/// # Errors
/// When it cannot be started.
pub fn transcript(command: &mut Command) -> Result<(Option<i32>, String, String)> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
