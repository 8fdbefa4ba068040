//! Connections to one server: greeting, questions, answers, and what the errors of a server mean.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::{ServerError, ServerErrorKind, Value};
use log::warn;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::pool::{Backend, Fault};
use postkeep_remote::stream::Stream;
use postkeep_sys::error_text;
use postkeep_table::{LookupError, Printable};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::settings::{Login, Mode, Settings};
use super::wire::{Frame, FrameError, command, value};

/// The most bytes of an answer that is not data.
const SMALL: usize = 64 * 1024;

/// What a server with too many clients says to the next one.
const FULL: &str = "max number of clients";

/// How much a read takes at once.
const CHUNK: usize = 4096;

/// A node of a cluster: host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub host: String,
    pub port: u16,
}

impl Node {
    /// As the pool knows it.
    pub(super) fn as_host(&self) -> Host {
        let Self { host, port } = self;
        Host {
            text: format!("{host}:{port}"),
            place: Place::Inet(host.clone(), port.to_string()),
        }
    }

    /// Takes `host:port` apart; the host is that of the server that says so when it is left out.
    pub(super) fn parse(text: &str, asked: &Host) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        // A port of the cluster's own may follow: `host:port@port`.
        let port = port.split('@').next()?.parse().ok()?;
        Self::new(host, port, asked)
    }

    /// - `host`: empty or `?` for that of the server that says so
    pub(super) fn new(host: &str, port: u16, asked: &Host) -> Option<Self> {
        let host = match (host, &asked.place) {
            ("" | "?", Place::Inet(host, _)) => host.clone(),
            ("" | "?", _) => return None,
            (host, _) => host.to_owned(),
        };
        (port > 0).then_some(Self { host, port })
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// As it is sent.
    bytes: Vec<u8>,
    /// Ask as somebody who was sent here while a slot moves.
    pub asking: bool,
    /// The most bytes of values in the answer.
    limit: usize,
    /// For warnings: the table and what it wants.
    what: String,
}

impl Question {
    /// - `words`: of the command
    /// - `limit`: bytes of values in the answer
    /// - `what`: for warnings
    pub(super) fn new(words: &[&[u8]], limit: usize, what: String) -> Self {
        Self {
            bytes: command(words),
            asking: false,
            limit,
            what,
        }
    }

    /// What a warning about it looks like.
    pub(super) fn failed(&self, why: &dyn std::fmt::Display) -> String {
        format!("{}: {why}", self.what)
    }
}

/// An answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// The server has it.
    Value {
        value: Value,
        /// Who said so.
        asked: Host,
    },
    /// Another node has this slot.
    Moved(Node),
    /// Another node has this key, and only this time.
    Ask(Node),
}

pub(super) struct Connection {
    stream: Stream,
    input: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
enum Trouble {
    /// The connection ended.
    Ended(String),
    Frame(FrameError),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(text) => f.write_str(text),
            Self::Frame(error) => error.fmt(f),
        }
    }
}

impl Connection {
    fn ended(error: &io::Error) -> Trouble {
        Trouble::Ended(error_text(error))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| Self::ended(&error))
    }

    async fn receive(&mut self, limit: usize) -> Result<Value, Trouble> {
        let mut frame = Frame::new(limit, 0);
        let end = loop {
            if let Some(end) = frame.end(&self.input).map_err(Trouble::Frame)? {
                break end;
            }
            self.input.reserve(CHUNK);
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(|error| Self::ended(&error))? == 0 {
                return Err(Trouble::Ended("the connection was closed".to_owned()));
            }
        };
        let answer = value(&self.input[..end]).map_err(Trouble::Frame);
        self.input.drain(..end);
        // A large answer does not keep its room.
        self.input.shrink_to(SMALL);
        answer
    }

    async fn exchange(&mut self, words: &[&[u8]]) -> Result<Value, String> {
        self.send(&command(words))
            .await
            .map_err(|why| why.to_string())?;
        match self.receive(SMALL).await {
            Ok(Value::ServerError(error)) => Err(shown(&error)),
            Ok(value) => Ok(value),
            Err(why) => Err(why.to_string()),
        }
    }

    async fn log_in(&mut self, login: &Login, database: i32) -> Result<(), String> {
        if let Some(password) = &login.password {
            let answer = match &login.user {
                Some(user) => self.exchange(&[b"AUTH", user, password]).await,
                None => self.exchange(&[b"AUTH", password]).await,
            };
            answer?;
        }
        if database != 0 {
            let number = database.to_string();
            self.exchange(&[b"SELECT", number.as_bytes()]).await?;
        }
        Ok(())
    }

    /// Is it open, with nothing left of an answer?
    fn is_quiet(&mut self) -> bool {
        self.input.is_empty() && self.stream.is_quiet()
    }
}

/// An error of the server as it is logged.
fn shown(error: &ServerError) -> String {
    let text = match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    };
    Printable(text.as_bytes()).to_string()
}

/// The server of a name that a sentinel tells: an array of host and port.
fn told(answer: &Value) -> Option<Host> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [Value::BulkString(host), Value::BulkString(port)] = &parts[..] else {
        return None;
    };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let (host, port) = (text(host)?, text(port)?.parse().ok()?);
    Some(Node { host, port }.as_host())
}

/// The servers of tables with equal settings, or one node of a cluster.
pub(super) struct Server {
    settings: Arc<Settings>,
    tls: Option<Arc<ClientConfig>>,
    /// The sentinel that answered last.
    sentinel: AtomicUsize,
    label: String,
}

impl Server {
    /// - `label`: for log lines of the pool
    pub(super) fn new(
        settings: Arc<Settings>,
        tls: Option<Arc<ClientConfig>>,
        label: String,
    ) -> Self {
        Self {
            settings,
            tls,
            sentinel: AtomicUsize::new(0),
            label,
        }
    }

    async fn open(&self, host: &Host) -> Result<Connection, String> {
        let stream = Stream::connect(host)
            .await
            .map_err(|error| error_text(&error))?;
        let stream = match (&self.tls, &host.place) {
            (Some(config), Place::Inet(name, _)) => {
                let name = self.settings.server_name.as_ref().unwrap_or(name).clone();
                let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
                let secured = stream.secured(config, name).await;
                secured.map_err(|error| format!("TLS: {}", error_text(&error)))?
            }
            _ => stream,
        };
        Ok(Connection {
            stream,
            input: Vec::new(),
        })
    }

    async fn log_in(&self, host: &Host) -> Result<Connection, String> {
        let mut connection = self.open(host).await?;
        let Settings {
            login, database, ..
        } = &*self.settings;
        connection.log_in(login, *database).await?;
        Ok(connection)
    }

    async fn ask_sentinel(
        &self,
        sentinel: &Host,
        master: &[u8],
        login: &Login,
    ) -> Result<Host, String> {
        let mut connection = self.open(sentinel).await?;
        connection.log_in(login, 0).await?;
        let answer = connection
            .exchange(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", master])
            .await?;
        told(&answer).ok_or_else(|| format!("{} is not known", Printable(master)))
    }

    /// The server that has the data now, by way of the sentinels.
    async fn find_master(&self, master: &[u8], login: &Login) -> Result<Connection, String> {
        let sentinels = &self.settings.hosts;
        let first = self.sentinel.load(Ordering::Relaxed);
        // None of them may take all of the time that a connection has.
        let parts = u32::try_from(sentinels.len() + 1).unwrap_or(u32::MAX);
        let patience = (self.settings.limits.connect / parts).max(Duration::from_millis(1));
        let mut reasons = Vec::new();
        for turn in 0..sentinels.len() {
            let index = (first + turn) % sentinels.len();
            let sentinel = &sentinels[index];
            let asked = timeout(patience, async {
                let host = self.ask_sentinel(sentinel, master, login).await?;
                let at = |why| format!("{}: {why}", host.text);
                let mut connection = self.log_in(&host).await.map_err(at)?;
                let role = connection.exchange(&[b"ROLE"]).await.map_err(at)?;
                // Sentinels take a moment to agree on another one.
                let is_master = matches!(&role, Value::Array(parts)
                    if matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"));
                if is_master {
                    Ok(connection)
                } else {
                    Err(at("it is not the master any more".to_owned()))
                }
            });
            match asked.await {
                Ok(Ok(connection)) => {
                    self.sentinel.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(why)) => reasons.push(format!("{}: {why}", sentinel.text)),
                Err(_) => reasons.push(format!("{}: Connection timed out", sentinel.text)),
            }
        }
        Err(reasons.join("; "))
    }

    /// What an error of the server means.
    fn judge(host: &Host, question: &Question, error: &ServerError) -> Result<Reply, Fault> {
        let redirected = || {
            let mut words = error.details()?.split(' ');
            Node::parse(words.nth(1)?, host)
        };
        let text = question.failed(&format_args!("{}: {}", host.text, shown(error)));
        match (error.kind(), error.code()) {
            (Some(ServerErrorKind::Moved), _) if let Some(node) = redirected() => {
                Ok(Reply::Moved(node))
            }
            (Some(ServerErrorKind::Ask), _) if let Some(node) = redirected() => {
                Ok(Reply::Ask(node))
            }
            // Another one is the master now: a new connection finds it.
            (Some(ServerErrorKind::ReadOnly), _) => Err(Fault::Stale(text)),
            // It cannot serve anybody now.
            (Some(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown), _)
            | (_, "DENIED" | "MISCONF" | "NOAUTH" | "NOREPLICAS" | "OOM") => Err(Fault::Host(text)),
            _ if error.details().is_some_and(|why| why.starts_with(FULL)) => Err(Fault::Host(text)),
            _ => {
                warn!("{text}");
                Err(Fault::Answer(LookupError::Retry(String::new())))
            }
        }
    }
}

impl Backend for Server {
    type Connection = Connection;
    type Request = Question;
    type Answer = Reply;

    async fn connect(&self, host: &Host) -> Result<Connection, String> {
        match &self.settings.mode {
            Mode::Sentinels { master, login } => self.find_master(master, login).await,
            Mode::Servers | Mode::Cluster => self.log_in(host).await,
        }
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        host: &Host,
        question: &Question,
    ) -> Result<Reply, Fault> {
        let fault = |trouble: Trouble| match trouble {
            Trouble::Ended(why) => {
                Fault::Stale(question.failed(&format_args!("{}: {why}", host.text)))
            }
            Trouble::Frame(error) => {
                warn!(
                    "{}",
                    question.failed(&format_args!("{}: {error}", host.text))
                );
                Fault::Broken(LookupError::Retry(String::new()))
            }
        };
        if question.asking {
            let both = [command(&[b"ASKING"]), question.bytes.clone()].concat();
            connection.send(&both).await.map_err(fault)?;
            connection.receive(SMALL).await.map_err(fault)?;
        } else {
            connection.send(&question.bytes).await.map_err(fault)?;
        }
        match connection.receive(question.limit).await.map_err(fault)? {
            Value::ServerError(error) => Self::judge(host, question, &error),
            value => Ok(Reply::Value {
                value,
                asked: host.clone(),
            }),
        }
    }

    fn is_usable(&self, connection: &mut Connection) -> bool {
        connection.is_quiet()
    }

    fn connect_warning(&self, host: &Host, reason: &str) -> String {
        format!("connect to redis server {}: {reason}", host.text)
    }

    fn timeout_warning(&self, host: &Host, question: &Question) -> String {
        question.failed(&format_args!("{}: Connection timed out", host.text))
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}
