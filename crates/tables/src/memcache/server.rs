//! A memcached server and its connections.

use log::debug;
use postkeep_remote::hosts::Host;
use postkeep_remote::memcache::{self, Found, Limits, TooLong, found, line};
use postkeep_remote::pool::{Backend, Fault};
use postkeep_remote::stream::Dialogue;
use postkeep_sys::error_text;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A request in the form in which it is sent.
#[derive(Debug)]
pub(super) struct Question {
    wire: Vec<u8>,
    /// The answer may be a value.
    value: bool,
}

impl Question {
    pub(super) fn get(key: &[u8]) -> Self {
        let mut wire = Vec::with_capacity(key.len() + 6);
        memcache::get(key, &mut wire);
        Self { wire, value: true }
    }

    pub(super) fn set(key: &[u8], flags: i32, ttl: i32, value: &[u8]) -> Self {
        let mut wire = Vec::with_capacity(key.len() + value.len() + 50);
        memcache::set(key, flags, ttl, value, &mut wire);
        Self { wire, value: false }
    }

    pub(super) fn delete(key: &[u8]) -> Self {
        let mut wire = Vec::with_capacity(key.len() + 9);
        memcache::delete(key, &mut wire);
        Self { wire, value: false }
    }
}

/// What a server says.
#[derive(Debug)]
pub(super) enum Answer {
    /// `END` at once.
    Absent,
    /// A value, up to its first NUL.
    Value(Vec<u8>),
    /// A line.
    Line(Vec<u8>),
    /// A value that breaks off, or does not end where it should.
    Cut,
    /// No line that can be read.
    Failed,
}

impl Answer {
    /// What is shown of an answer that is none.
    pub(super) fn line(self) -> Vec<u8> {
        match self {
            Self::Line(line) => line,
            _ => Vec::new(),
        }
    }
}

/// A server, named as configured.
pub(super) struct Server {
    name: String,
    limits: Limits,
}

impl Server {
    pub(super) fn new(name: String, limits: Limits) -> Self {
        Self { name, limits }
    }

    /// An answer, whether the connection can be used after it, and how much of the input it takes; `None` when there is
    /// more to come.
    fn read(&self, question: &Question, input: &[u8]) -> Option<(Answer, bool, usize)> {
        if question.value {
            return match found(input, self.limits) {
                Ok(None) => None,
                Ok(Some((Found::Absent, end))) => Some((Answer::Absent, true, end)),
                Ok(Some((Found::Value { value, clean }, end))) => {
                    let value = &value[..memchr::memchr(0, value).unwrap_or(value.len())];
                    Some((Answer::Value(value.to_vec()), clean, end))
                }
                Ok(Some((Found::Unexpected(line), end))) => {
                    Some((Answer::Line(line.to_vec()), false, end))
                }
                Ok(Some((Found::Broken, end))) => Some((Answer::Cut, false, end)),
                Err(TooLong) => Some((Answer::Failed, false, input.len())),
            };
        }
        match line(input, self.limits.line) {
            Ok(None) => None,
            Ok(Some((line, end))) => {
                let clean = matches!(line, b"STORED" | b"DELETED" | b"NOT_FOUND");
                Some((Answer::Line(line.to_vec()), clean, end))
            }
            Err(TooLong) => Some((Answer::Failed, false, input.len())),
        }
    }
}

impl Backend for Server {
    type Connection = Dialogue;
    type Request = Question;
    type Answer = Answer;

    async fn connect(&self, host: &Host) -> Result<Dialogue, String> {
        Dialogue::connect(host).await
    }

    async fn ask(
        &self,
        connection: &mut Dialogue,
        _: &Host,
        question: &Question,
    ) -> Result<Answer, Fault> {
        let Dialogue {
            stream,
            input,
            spoiled,
        } = connection;
        // The table has words of its own when there is no second one either.
        let ended = |error: std::io::Error| {
            debug!("{}: {}", self.name, error_text(&error));
            Fault::Stale(String::new())
        };
        stream.write_all(&question.wire).await.map_err(ended)?;
        input.clear();
        loop {
            if let Some((answer, clean, consumed)) = self.read(question, input) {
                *spoiled = !clean || consumed < input.len();
                return Ok(answer);
            }
            let read = stream.read_buf(input).await;
            if matches!(read, Ok(length) if length > 0) {
                continue;
            }
            if !question.value || !input.contains(&b'\n') {
                return Err(read.map_or_else(ended, |_| Fault::Stale(String::new())));
            }
            // A whole value counts even when nothing follows it.
            *spoiled = true;
            input.extend_from_slice(b"\n");
            return Ok(match self.read(question, input) {
                Some((answer @ Answer::Value(_), ..)) => answer,
                _ => Answer::Cut,
            });
        }
    }

    fn is_usable(&self, connection: &mut Dialogue) -> bool {
        connection.is_usable()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        format!("connect to {}: {reason}", host.text)
    }

    fn timeout_warning(&self, _: &Host, _: &Question) -> String {
        String::new()
    }

    fn label(&self) -> String {
        format!("memcache:{}", self.name)
    }
}
