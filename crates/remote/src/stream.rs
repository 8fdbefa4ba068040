//! Connections to servers: UNIX-domain and TCP sockets, with TLS or without, as one type, and the names of their places.
//!
//! # References
//! Postfix `src/util/host_port.c`, `src/util/inet_connect.c`, `src/util/auto_clnt.c`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use log::warn;
use postkeep_sys::error_text;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hosts::{Host, Place};

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// A UNIX-domain socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
    /// TLS over one of these.
    Tls(Box<TlsStream<Stream>>),
}

impl Stream {
    /// Connects; no time limit.
    ///
    /// A host's addresses are tried in order. What the reference warns of on the way is logged; the error is left to
    /// the caller.
    ///
    /// # Errors
    /// That of the last address; `EADDRNOTAVAIL` when the host or service is not known.
    pub async fn connect(to: &Host) -> io::Result<Self> {
        let (host, service) = match &to.place {
            Place::Unix(path) => return UnixStream::connect(path).await.map(Self::Unix),
            Place::Uri(_) => return Err(io::ErrorKind::Unsupported.into()),
            Place::Inet(host, service) => (host, service),
        };
        let unknown = |reason: &str| {
            warn!("host or service {} not found: {reason}", to.text);
            no_address()
        };
        let port = port(service)
            .await
            .ok_or_else(|| unknown("Servname not supported for ai_socktype"))?;
        let addresses = lookup_host((host.as_str(), port)).await.map_err(|error| {
            let text = error_text(&error);
            let reason = text.rsplit(": ").next().unwrap_or_default();
            unknown(reason)
        })?;
        Self::connect_first(addresses).await
    }

    /// Connects to the first of these addresses that lets it; no time limit.
    ///
    /// # Errors
    /// That of the last address; `EADDRNOTAVAIL` when there is none.
    pub async fn connect_first(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<Self> {
        let mut last = no_address();
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Questions are small and wait for their answers.
                    let _ = stream.set_nodelay(true);
                    return Ok(Self::Tcp(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Begins TLS; no time limit.
    ///
    /// # Errors
    /// The connection ended, or the two do not agree; a certificate that is not right is an error of the TLS library.
    pub async fn secured(
        self,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, self).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Whether TLS has begun.
    pub fn is_secured(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Is it open, with nothing to read, inside of TLS neither? For a connection between two questions: a server that
    /// says something then has said goodbye, and what is left of an answer would be taken for the next one.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        // Nobody waits for what comes of it.
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(self)
            .poll_read(&mut context, &mut buffer)
            .is_pending()
    }
}

/// A connection for questions and answers in turn.
#[derive(Debug)]
pub struct Dialogue {
    /// The connection.
    pub stream: Stream,
    /// What has come.
    pub input: Vec<u8>,
    /// More came than the answer: what comes next cannot be told from it.
    pub spoiled: bool,
}

impl Dialogue {
    /// Connects; no time limit.
    ///
    /// # Errors
    /// The reason of [`Stream::connect`].
    pub async fn connect(to: &Host) -> Result<Self, String> {
        let stream = Stream::connect(to).await;
        Ok(Self {
            stream: stream.map_err(|error| error_text(&error))?,
            input: Vec::new(),
            spoiled: false,
        })
    }

    /// Whether the next question can be asked.
    pub fn is_usable(&mut self) -> bool {
        !self.spoiled && self.stream.is_quiet()
    }
}

/// What the reference's connect says when there is nothing to connect to: `EADDRNOTAVAIL`, by its number on Linux.
fn no_address() -> io::Error {
    io::Error::from_raw_os_error(99)
}

async fn port(service: &str) -> Option<u16> {
    if service.bytes().all(|byte| byte.is_ascii_digit()) {
        return service.parse().ok();
    }
    let name = service.to_owned();
    let read = move || {
        let text = std::fs::read("/etc/services").ok()?;
        port_in(&String::from_utf8_lossy(&text), &name)
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}

/// The port that a number or the name of a TCP service stands for. Reads services(5), so it belongs where tables are
/// opened.
pub fn service_port(service: &str) -> Option<u16> {
    if !service.is_empty() && service.bytes().all(|byte| byte.is_ascii_digit()) {
        return service.parse().ok();
    }
    let text = std::fs::read("/etc/services").ok()?;
    port_in(&String::from_utf8_lossy(&text), service)
}

/// The port of a TCP service in the text of services(5).
fn port_in(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let (first, place) = (words.next()?, words.next()?);
        let port = place.strip_suffix("/tcp")?;
        (first == name || words.any(|alias| alias == name)).then(|| port.parse().ok())?
    })
}

/// Takes `host:port` apart, or `[host]:port`; the host may be left out where there is a default.
///
/// # Errors
/// The reference's reason.
pub fn host_port(text: &str, default_host: Option<&str>) -> Result<(String, String), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("missing \"]\"")?;
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => return Err("garbage after \"]\""),
        };
        let prefix = host.get(..5).unwrap_or_default();
        if prefix.eq_ignore_ascii_case("IPv6:") {
            let address = &host[5..];
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("malformed IPv6 address");
            }
            (Some(address), port)
        } else {
            (Some(host), port)
        }
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => ((!host.is_empty()).then_some(host), port),
            None => (None, text),
        }
    };
    let given = host.or(default_host).ok_or("missing host information")?;
    if port.is_empty() {
        return Err("missing service information");
    }
    if host.is_some() && !is_host(given) {
        return Err("valid hostname or network address required");
    }
    let digits = port.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 && digits < port.len() {
        return Err("garbage after numerical service");
    }
    Ok((given.to_owned(), port.to_owned()))
}

fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
        || postkeep_conf::check_hostname(text.as_bytes()).is_ok()
        || (!text.is_ascii() && !text.contains(|letter: char| letter.is_ascii_control()))
}

/// Takes `transport:endpoint` apart, where the transport is `inet`, `unix` or `local`.
///
/// # Errors
/// The reference's reason, which says all.
pub fn endpoint(service: &str) -> Result<Place, String> {
    let (transport, endpoint) = service
        .split_once(':')
        .filter(|(transport, endpoint)| !transport.is_empty() && !endpoint.is_empty())
        .ok_or_else(|| format!("need service transport:endpoint instead of \"{service}\""))?;
    match transport {
        "inet" => {
            let (host, port) = host_port(endpoint, Some("localhost"))
                .map_err(|reason| format!("{endpoint}: {reason}"))?;
            Ok(Place::Inet(host, port))
        }
        "unix" | "local" => Ok(Place::Unix(endpoint.into())),
        _ => Err(format!(
            "invalid transport name: {transport} in service: {service}"
        )),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        let parse = |text| host_port(text, Some("localhost"));
        let pair = |host: &str, port: &str| Ok((host.to_owned(), port.to_owned()));
        assert_eq!(parse("h.example:25"), pair("h.example", "25"));
        assert_eq!(parse("::1:25"), pair("::1", "25"));
        assert_eq!(parse("[::1]:25"), pair("::1", "25"));
        assert_eq!(parse("[ipv6:::1]:smtp"), pair("::1", "smtp"));
        assert_eq!(parse(":25"), pair("localhost", "25"));
        assert_eq!(parse("25"), pair("localhost", "25"));
        for (text, reason) in [
            ("h:", "missing service information"),
            ("[::1]", "missing service information"),
            ("[::1", "missing \"]\""),
            ("[::1]x", "garbage after \"]\""),
            ("[ipv6:1.2.3.4]:1", "malformed IPv6 address"),
            ("a b:1", "valid hostname or network address required"),
            ("h:1x", "garbage after numerical service"),
            ("127.0.0.1", "garbage after numerical service"),
        ] {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
        assert_eq!(host_port("25", None), Err("missing host information"));
    }

    #[test]
    fn endpoints() {
        assert_eq!(endpoint("unix:/a:b"), Ok(Place::Unix("/a:b".into())));
        assert_eq!(endpoint("local:a"), Ok(Place::Unix("a".into())));
        assert_eq!(
            endpoint("inet:[::1]:4"),
            Ok(Place::Inet("::1".to_owned(), "4".to_owned()))
        );
        assert_eq!(
            endpoint("inet").unwrap_err(),
            "need service transport:endpoint instead of \"inet\""
        );
        assert_eq!(
            endpoint("tcp:a:1").unwrap_err(),
            "invalid transport name: tcp in service: tcp:a:1"
        );
        assert_eq!(
            endpoint("inet:127.0.0.1").unwrap_err(),
            "127.0.0.1: garbage after numerical service"
        );
    }

    #[test]
    fn services() {
        let text = "# x\nsmtp 25/tcp mail # smtps\nsmtps\t465/tcp ssmtp\nntp 123/udp\n";
        assert_eq!(port_in(text, "smtp"), Some(25));
        assert_eq!(port_in(text, "ssmtp"), Some(465));
        assert_eq!(port_in(text, "ntp"), None);
        assert_eq!(port_in(text, "x"), None);
    }
}
