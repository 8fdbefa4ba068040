//! A connection to a server, and how it is asked.
//!
//! References: the PostgreSQL manual, "Frontend/Backend Protocol"; libpq's `PQexec()`.

use std::time::Duration;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{Message, ParameterStatusBody};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::encoding::Encoding;
use super::report::Report;
use super::wire::{Channel, Trouble, question};

/// What a server may send for one question. A result may have 1 MiB; the rest is for columns' names, notices, and values
/// that `result_format` has no use for.
pub(super) const ANSWER_LIMIT: usize = 4 << 20;

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Libpq's text when a connection has ended.
pub(super) const GONE: &str = "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n\
                    \tbefore or while processing the request.\n";

/// An open connection.
pub(super) struct Connection {
    /// Empty when it has ended.
    channel: Option<Channel>,
    session: Session,
    /// Between two questions.
    idle: bool,
    /// A statement may have changed what later ones do, or an answer was no answer.
    spoiled: bool,
}

/// What a server tells about the session as it goes.
pub(super) struct Session {
    encoding: Encoding,
    /// A backslash between single quotes is a backslash.
    standard_strings: bool,
}

impl Session {
    /// One that nothing is known of.
    pub(super) fn new() -> Self {
        Self {
            encoding: Encoding::Unknown,
            standard_strings: false,
        }
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(super) fn learn(&mut self, status: &ParameterStatusBody) {
        match (status.name(), status.value()) {
            (Ok("client_encoding"), Ok(value)) => self.encoding = Encoding::named(value.as_bytes()),
            (Ok("standard_conforming_strings"), Ok(value)) => self.standard_strings = value == "on",
            _ => {}
        }
    }
}

/// A piece of a query: literal text, or what is to be quoted.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Text(Vec<u8>),
    Quoted(Vec<u8>),
}

/// The last result of a query.
pub(super) enum Outcome {
    /// Values, row by row; NULL is empty. None when the statement has no rows.
    Values(Values),
    /// What it says.
    Failed(Report),
    /// A result that is no result: libpq's number for it.
    Strange(u32),
}

/// Texts in one buffer.
#[derive(Debug, Default)]
pub(super) struct Values {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Values {
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts
            .zip(&self.ends)
            .map(|(&start, &end)| &self.bytes[start..end])
    }

    fn add(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }
}

/// Why a query has no outcome.
pub(super) enum Failure {
    /// The key cannot be quoted, with libpq's reason.
    Key(String),
    /// The connection has ended; libpq's text.
    Ended(String),
    /// What came is no answer.
    Garbage,
    /// The answer is too long.
    TooLong,
}

impl Connection {
    /// One that is ready for questions.
    pub(super) fn new(channel: Channel, session: Session) -> Self {
        Self {
            channel: Some(channel),
            session,
            idle: true,
            spoiled: false,
        }
    }

    /// Sets the client encoding; `false` when the server does not have it.
    pub(super) async fn set_encoding(&mut self, name: &str) -> bool {
        let set = format!("set client_encoding to '{name}'");
        let done = self.run(set.as_bytes()).await;
        self.spoiled = false;
        matches!(done, Ok(Outcome::Values(_)))
    }

    /// Sends a query and takes the last result, as `PQexec()` does.
    pub(super) async fn execute(&mut self, parts: &[Part]) -> Result<Outcome, Failure> {
        let mut query = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => query.extend_from_slice(text),
                Part::Quoted(key) => self
                    .session
                    .encoding
                    .quote(key, self.session.standard_strings, &mut query)
                    .map_err(|error| Failure::Key(error.to_string()))?,
            }
        }
        self.run(&query).await
    }

    /// The same with a query that is ready.
    pub(super) async fn run(&mut self, query: &[u8]) -> Result<Outcome, Failure> {
        let channel = self.channel.as_ref();
        let secure = channel.is_some_and(|channel| channel.stream.is_secured());
        self.idle = false;
        let mut last = Outcome::Strange(0);
        match self.exchange(query, &mut last).await {
            Ok(()) => Ok(last),
            Err(Trouble::Garbage) => Err(Failure::Garbage),
            Err(Trouble::TooMuch) => Err(Failure::TooLong),
            Err(Trouble::Ended) => {
                let mut text = match last {
                    Outcome::Failed(report) => report.text,
                    Outcome::Values(_) | Outcome::Strange(_) => String::new(),
                };
                text.push_str(if secure {
                    "SSL connection has been closed unexpectedly\n"
                } else {
                    GONE
                });
                Err(Failure::Ended(text))
            }
        }
    }

    async fn exchange(&mut self, query: &[u8], last: &mut Outcome) -> Result<(), Trouble> {
        let channel = self.channel.as_mut().ok_or(Trouble::Ended)?;
        channel.allow(ANSWER_LIMIT);
        channel.send(&question(query)).await?;
        let mut rows: Option<Values> = None;
        loop {
            match channel.message().await? {
                Message::RowDescription(_) => rows = Some(Values::default()),
                Message::DataRow(row) => {
                    let rows = rows.as_mut().ok_or(Trouble::Garbage)?;
                    let buffer = row.buffer();
                    let mut ranges = row.ranges();
                    while let Some(range) = ranges.next().map_err(|_| Trouble::Garbage)? {
                        let value = match range {
                            Some(range) => buffer.get(range).ok_or(Trouble::Garbage)?,
                            None => &[],
                        };
                        rows.add(value);
                    }
                }
                Message::CommandComplete(body) => {
                    let tag = body.tag().unwrap_or_default();
                    self.spoiled |= !leaves_no_trace(tag);
                    *last = Outcome::Values(rows.take().unwrap_or_default());
                }
                Message::EmptyQueryResponse => *last = Outcome::Strange(0),
                Message::ErrorResponse(body) => {
                    rows = None;
                    *last = Outcome::Failed(Report::of(&body, query, self.session.encoding));
                }
                Message::CopyOutResponse(_) => {
                    self.spoiled = true;
                    *last = Outcome::Strange(3);
                    return Ok(());
                }
                Message::CopyInResponse(_) => {
                    self.spoiled = true;
                    *last = Outcome::Strange(4);
                    return Ok(());
                }
                Message::ParameterStatus(status) => self.session.learn(&status),
                Message::NoticeResponse(_) | Message::NotificationResponse(_) => {}
                Message::ReadyForQuery(ready) => {
                    // A transaction that goes on is nobody else's.
                    self.spoiled |= ready.status() != b'I';
                    self.idle = true;
                    return Ok(());
                }
                _ => return Err(Trouble::Garbage),
            }
        }
    }

    /// Can it be asked again? The server has not closed it, nor said anything that nobody asked for.
    pub(super) fn is_usable(&mut self) -> bool {
        self.channel.as_mut().is_some_and(Channel::is_quiet)
    }

    /// Closes it when it cannot be asked again: nothing of it, such as locks, is left meanwhile.
    pub(super) fn settle(&mut self) {
        if !self.idle || self.spoiled {
            self.close();
        }
    }

    /// Says goodbye, so that the server does not log that somebody left without a word.
    fn close(&mut self) {
        let channel = self.channel.take().filter(|_| self.idle);
        if let (Some(mut channel), Ok(runtime)) = (channel, tokio::runtime::Handle::try_current()) {
            runtime.spawn(timeout(GOODBYE, async move {
                let _ = channel.send(TERMINATE).await;
                let _ = channel.stream.shutdown().await;
            }));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// Does a statement with this tag leave the session as it was?
fn leaves_no_trace(tag: &str) -> bool {
    let word = tag.split(' ').next().unwrap_or_default();
    [
        "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "BEGIN", "COMMIT", "ROLLBACK", "CALL",
        "DO", "FETCH", "SHOW", "EXPLAIN", "VALUES",
    ]
    .contains(&word)
}
