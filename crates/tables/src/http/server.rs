//! Questions to one HTTP server, over connections of HTTP/1.1 or streams of HTTP/2.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_ENCODING, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postkeep_remote::hosts::Host;
use postkeep_remote::pool::{Backend, Fault};
use postkeep_remote::stream::Stream;
use postkeep_sys::error_text;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::paced::Paced;

/// The most bytes that the headers of an answer may have.
const HEADER_LIMIT: usize = 64 * 1024;

/// The most headers that an answer may have.
const HEADER_COUNT: usize = 100;

/// How long a connection that is not used any more may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a connection may take to be ready for the next question.
const READY: Duration = Duration::from_millis(100);

/// Which version of the protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Version {
    /// Whatever the server picks in the handshake of TLS, HTTP/1.1 without TLS.
    Auto,
    /// HTTP/1.1 only.
    One,
    /// HTTP/2 only; without TLS from the first byte on.
    Two,
}

impl Version {
    /// What is offered in the handshake of TLS.
    pub(super) fn protocols(self) -> Vec<Vec<u8>> {
        let list: &[&[u8]] = match self {
            Self::Auto => &[b"h2", b"http/1.1"],
            Self::One => &[b"http/1.1"],
            Self::Two => &[b"h2"],
        };
        list.iter().map(|name| name.to_vec()).collect()
    }
}

/// A request of one table.
pub(super) struct Question {
    pub method: Method,
    pub target: PathAndQuery,
    pub headers: Arc<HeaderMap>,
    pub body: Bytes,
    /// The most bytes that the body of the answer may have.
    pub limit: usize,
}

/// What a server answered.
pub(super) struct Reply {
    pub status: u16,
    pub body: Contents,
}

/// The body of an answer.
pub(super) enum Contents {
    /// All of it.
    Whole(Vec<u8>),
    /// It is longer than the limit.
    TooLong,
    /// It is compressed, which was not asked for.
    Encoded,
}

/// A server.
pub(super) struct Server {
    /// `https://host:port`, for log lines.
    pub origin: String,
    /// Scheme and authority, with which questions in HTTP/2 begin.
    pub base: Uri,
    /// The `Host` header.
    pub authority: HeaderValue,
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub version: Version,
    /// `pool_lifetime`, here for connections of HTTP/2, which live longer than their streams.
    pub lifetime: Duration,
    pub multiplexed: Multiplexed,
}

/// The connection of HTTP/2 that new streams are opened on. It lives as long as one of its streams is in the pool.
#[derive(Default)]
pub(super) struct Multiplexed {
    current: Mutex<Weak<Trunk>>,
    /// Held while a connection is made that may turn out to be one: others wait for what comes of it.
    making: tokio::sync::Mutex<()>,
    /// The server picked HTTP/1.1: nobody waits for others.
    single: AtomicBool,
}

/// A connection of HTTP/2.
pub(super) struct Trunk {
    sender: http2::SendRequest<Full<Bytes>>,
    born: Instant,
    /// A question on it failed or has no answer in time: no new streams.
    retired: AtomicBool,
    /// Dropped to say that it is not used any more.
    _end: oneshot::Sender<()>,
}

impl Trunk {
    fn is_usable(&self, lifetime: Duration) -> bool {
        !self.retired.load(Ordering::Relaxed)
            && !self.sender.is_closed()
            && (lifetime.is_zero() || self.born.elapsed() < lifetime)
    }
}

/// A connection of HTTP/1.1, or the right to a stream of HTTP/2.
pub(super) enum Connection {
    One {
        sender: http1::SendRequest<Full<Bytes>>,
        usable: bool,
        _task: Aborted,
    },
    Two(Arc<Trunk>),
}

/// A task that ends when this is dropped.
pub(super) struct Aborted(tokio::task::AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Retires a connection of HTTP/2 unless told otherwise: also when the question is given up.
struct Retire<'a>(Option<&'a Trunk>);

impl Drop for Retire<'_> {
    fn drop(&mut self) {
        if let Some(trunk) = self.0 {
            trunk.retired.store(true, Ordering::Relaxed);
        }
    }
}

/// The innermost reason of an error.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<std::io::Error>() {
        Some(error) => error_text(error),
        None => last.to_string(),
    }
}

impl Server {
    async fn open(&self, host: &Host) -> Result<Connection, String> {
        let stream = Stream::connect(host)
            .await
            .map_err(|error| error_text(&error))?;
        let Some((config, name)) = &self.tls else {
            return match self.version {
                Version::Two => self.two(stream).await,
                Version::Auto | Version::One => one(stream).await,
            };
        };
        let stream = stream
            .secured(config, name.clone())
            .await
            .map_err(|error| format!("TLS: {}", reason(&error)))?;
        let picked = match &stream {
            Stream::Tls(tls) => tls.get_ref().1.alpn_protocol(),
            Stream::Unix(_) | Stream::Tcp(_) => None,
        };
        match (picked == Some(b"h2"), self.version) {
            (true, _) => self.two(stream).await,
            (false, Version::Two) => Err("the server does not speak HTTP/2".to_owned()),
            (false, _) => one(stream).await,
        }
    }

    async fn two<T>(&self, stream: T) -> Result<Connection, String>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Until the server says how many it takes: more would be refused, and asked again elsewhere.
            .initial_max_send_streams(1)
            .max_header_list_size(HEADER_LIMIT.try_into().unwrap_or(u32::MAX))
            .handshake(TokioIo::new(Paced::new(stream)))
            .await
            .map_err(|error| reason(&error))?;
        let (end, mut ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let over = poll_fn(|cx| {
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                pin!(&mut ended).poll(cx).map(|_| false)
            });
            if !over.await {
                // The goodbye of somebody who does not listen is not waited for.
                let _ = timeout(GOODBYE, connection).await;
            }
        });
        let trunk = Arc::new(Trunk {
            sender,
            born: Instant::now(),
            retired: AtomicBool::new(false),
            _end: end,
        });
        let mut current = self
            .multiplexed
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::downgrade(&trunk);
        Ok(Connection::Two(trunk))
    }

    /// A connection of HTTP/2 with room for a stream.
    fn trunk(&self) -> Option<Arc<Trunk>> {
        let current = self
            .multiplexed
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let trunk = current.upgrade()?;
        trunk.is_usable(self.lifetime).then_some(trunk)
    }

    fn failed(&self, what: &dyn std::fmt::Display) -> String {
        format!("{}: {what}", self.origin)
    }

    /// What a failure of a question means.
    fn fault(&self, error: &hyper::Error) -> Fault {
        let text = self.failed(&reason(error));
        // The server has broken the rules; it would do so again.
        if error.is_parse() || error.is_user() {
            return Fault::Host(text);
        }
        Fault::Stale(text)
    }

    async fn answer(&self, response: Response<Incoming>, limit: usize) -> Result<Reply, Fault> {
        let status = response.status().as_u16();
        let encoded = response
            .headers()
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
        let reply = |body| Ok(Reply { status, body });
        let mut body = response.into_body();
        if body.size_hint().lower() > limit as u64 {
            return reply(Contents::TooLong);
        }
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.fault(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if data.len() > limit - text.len() {
                return reply(Contents::TooLong);
            }
            text.extend_from_slice(&data);
        }
        reply(if encoded {
            Contents::Encoded
        } else {
            Contents::Whole(text)
        })
    }
}

async fn one<T>(stream: T) -> Result<Connection, String>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEADER_LIMIT)
        .max_headers(HEADER_COUNT)
        .handshake(TokioIo::new(Paced::new(stream)))
        .await
        .map_err(|error| reason(&error))?;
    let task = tokio::spawn(async move {
        // What ends it is told to the question, if there is one.
        let _ = connection.await;
    });
    Ok(Connection::One {
        sender,
        usable: true,
        _task: Aborted(task.abort_handle()),
    })
}

impl Backend for Server {
    type Connection = Connection;
    type Request = Question;
    type Answer = Reply;

    async fn connect(&self, host: &Host) -> Result<Connection, String> {
        let perhaps_two = match (&self.tls, self.version) {
            (_, Version::One) | (None, Version::Auto) => false,
            (_, Version::Two) => true,
            (Some(_), Version::Auto) => !self.multiplexed.single.load(Ordering::Relaxed),
        };
        let _one_at_a_time = if perhaps_two {
            if let Some(trunk) = self.trunk() {
                return Ok(Connection::Two(trunk));
            }
            Some(self.multiplexed.making.lock().await)
        } else {
            None
        };
        if let Some(trunk) = self.trunk() {
            return Ok(Connection::Two(trunk));
        }
        let connection = self.open(host).await?;
        let single = matches!(connection, Connection::One { .. });
        self.multiplexed.single.store(single, Ordering::Relaxed);
        Ok(connection)
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        _: &Host,
        question: &Question,
    ) -> Result<Reply, Fault> {
        let mut request = Request::new(Full::new(question.body.clone()));
        *request.method_mut() = question.method.clone();
        request.headers_mut().clone_from(&question.headers);
        match connection {
            Connection::One { sender, usable, .. } => {
                *usable = false;
                request.headers_mut().insert(HOST, self.authority.clone());
                *request.uri_mut() = Uri::from(question.target.clone());
                let response = sender.send_request(request).await;
                let response = response.map_err(|error| self.fault(&error))?;
                let reply = self.answer(response, question.limit).await?;
                *usable = matches!(timeout(READY, sender.ready()).await, Ok(Ok(())));
                Ok(reply)
            }
            Connection::Two(trunk) => {
                let mut parts = self.base.clone().into_parts();
                parts.path_and_query = Some(question.target.clone());
                // Scheme, authority and path are all there.
                let uri = Uri::from_parts(parts);
                *request.uri_mut() = uri.map_err(|error| Fault::Host(error.to_string()))?;
                let mut retire = Retire(Some(trunk));
                let response = trunk.sender.clone().send_request(request).await;
                let response = response.map_err(|error| self.fault(&error))?;
                let reply = self.answer(response, question.limit).await?;
                retire.0 = None;
                Ok(reply)
            }
        }
    }

    fn is_usable(&self, connection: &mut Connection) -> bool {
        match connection {
            Connection::One { sender, usable, .. } => *usable && sender.is_ready(),
            Connection::Two(trunk) => trunk.is_usable(self.lifetime),
        }
    }

    fn connect_warning(&self, _: &Host, reason: &str) -> String {
        format!("connect to {}: {reason}", self.origin)
    }

    fn timeout_warning(&self, _: &Host, _: &Question) -> String {
        self.failed(&"no answer within answer_timeout")
    }

    fn label(&self) -> String {
        self.origin.clone()
    }
}
