//! Getting in: which address, TLS or not, who we are.
//!
//! References: libpq's `PQconnectPoll()` and `pg_fe_sendauth()`.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::stream::Stream;
use postkeep_sys::error_text;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::connection::{Connection, GONE, Outcome, Session};
use super::report::Report;
use super::target::{Attributes, Server, SslMode, Target};
use super::text;
use super::wire::{Channel, Trouble, untagged};
/// What a server may send until it is ready.
const GREETING_LIMIT: usize = 64 << 10;

/// The most rounds of SCRAM; a server chooses 4096 when nobody tells it otherwise. They keep a thread busy.
const MOST_ROUNDS: u32 = 1_000_000;

/// What begins the reason when a client encoding cannot be set.
pub(super) const NO_ENCODING: &str = "cannot set the encoding to ";

/// A target with what was read for it when its table was opened.
pub(super) struct Prepared {
    pub(super) target: Target,
    /// Or why there can be no TLS, in libpq's words.
    pub(super) tls: Result<Arc<ClientConfig>, String>,
}

/// Why an attempt came to nothing.
enum Attempt {
    /// The server cannot be reached at this address, or is not ready: the next address, the next server.
    Next(String),
    /// It refused, or its certificate was: perhaps not without TLS, or with it.
    Security(String),
    /// That is it.
    Final(String),
}

impl Prepared {
    /// Connects to the first server that can be, and sets the client encoding.
    ///
    /// # Errors
    /// Libpq's text, of all that failed, or [`NO_ENCODING`] and the encoding.
    pub(super) async fn connect(&self, encoding: &[u8]) -> Result<Connection, String> {
        let target = &self.target;
        let user = if target.user.is_empty() {
            own_name().await?
        } else {
            target.user.clone()
        };
        let mut said = String::new();
        let rounds: &[Attributes] = match target.attributes {
            Attributes::PreferStandby => &[Attributes::Standby, Attributes::Any],
            _ => std::slice::from_ref(&target.attributes),
        };
        for &wanted in rounds {
            for server in &target.servers {
                let tried = self.server(server, &user, wanted, &mut said);
                let tried = match target.connect_timeout {
                    0 => tried.await,
                    seconds => {
                        // As libpq: one second is too short for anybody.
                        let limit = Duration::from_secs(u64::from(seconds.max(2)));
                        let tried = timeout(limit, tried).await;
                        tried.unwrap_or_else(|_| {
                            said.push_str("timeout expired\n");
                            Ok(None)
                        })
                    }
                };
                if let Some(mut connection) = tried.map_err(|()| said.clone())? {
                    let name = text(encoding);
                    return if connection.set_encoding(&name).await {
                        Ok(connection)
                    } else {
                        Err(format!("{NO_ENCODING}{name}"))
                    };
                }
            }
        }
        Err(said)
    }

    /// Tries a server: `Ok(None)` when the next one may be tried, `Err` when not; what went wrong is added to `said`.
    async fn server(
        &self,
        server: &Server,
        user: &[u8],
        wanted: Attributes,
        said: &mut String,
    ) -> Result<Option<Connection>, ()> {
        let places: Vec<(Host, String)> = match server {
            Server::Wrong(reason) => {
                said.push_str(reason);
                return Ok(None);
            }
            Server::Unix(path) => {
                let place = Place::Unix(PathBuf::from(path));
                vec![(host(place), format!("on socket \"{path}\""))]
            }
            Server::Inet {
                name,
                address,
                port,
            } => match addresses(name, address.as_deref(), *port).await {
                Ok(found) => found,
                Err(reason) => {
                    said.push_str(&reason);
                    return Ok(None);
                }
            },
        };
        let name = match server {
            Server::Inet { name, address, .. } if name.is_empty() => {
                address.as_deref().unwrap_or_default()
            }
            Server::Inet { name, .. } => name,
            Server::Unix(_) | Server::Wrong(_) => "",
        };
        for (place, shown) in &places {
            let modes: &[bool] = match (&place.place, self.target.mode) {
                (Place::Unix(_), _) | (_, SslMode::Disable) => &[false],
                (_, SslMode::Allow) => &[false, true],
                (_, SslMode::Prefer) => &[true, false],
                _ => &[true],
            };
            for (index, &secure) in modes.iter().enumerate() {
                let begun = self.attempt(place, name, secure, user).await;
                let checked = match begun {
                    Ok(mut connection) => match suits(&mut connection, wanted).await {
                        Ok(()) => return Ok(Some(connection)),
                        Err(reason) => Attempt::Next(reason),
                    },
                    Err(attempt) => attempt,
                };
                let (Attempt::Next(reason) | Attempt::Security(reason) | Attempt::Final(reason)) =
                    &checked;
                let _ = write!(said, "connection to server {shown} failed: {reason}");
                match checked {
                    Attempt::Security(_) if index + 1 < modes.len() => {}
                    Attempt::Next(_) => break,
                    Attempt::Security(_) | Attempt::Final(_) => return Err(()),
                }
            }
        }
        Ok(None)
    }

    /// Connects to an address.
    async fn attempt(
        &self,
        place: &Host,
        name: &str,
        secure: bool,
        user: &[u8],
    ) -> Result<Connection, Attempt> {
        let stream = Stream::connect(place).await.map_err(|error| {
            let hint = match place.place {
                Place::Unix(_) => {
                    "Is the server running locally and accepting connections on that socket?"
                }
                _ => "Is the server running on that host and accepting TCP/IP connections?",
            };
            Attempt::Next(format!("{}\n\t{hint}\n", error_text(&error)))
        })?;
        let stream = if secure {
            self.secured(stream, place, name).await?
        } else {
            stream
        };
        // A server without TLS will not have it the next time.
        let settled = secure && !stream.is_secured();
        let greeted = self.greet(Channel::new(stream), user).await;
        greeted.map_err(|attempt| match attempt {
            Attempt::Security(reason) if settled => Attempt::Final(reason),
            attempt => attempt,
        })
    }

    /// Asks for TLS, and begins it.
    async fn secured(
        &self,
        mut stream: Stream,
        place: &Host,
        name: &str,
    ) -> Result<Stream, Attempt> {
        let config = self
            .tls
            .as_ref()
            .map_err(|reason| Attempt::Final(reason.clone()))?;
        let gone = |_: io::Error| Attempt::Final(GONE.to_owned());
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(gone)?;
        // One byte and no more: what comes after it is the beginning of TLS, or is refused by it.
        match stream.read_u8().await.map_err(gone)? {
            b'S' => {}
            b'N' if matches!(self.target.mode, SslMode::Allow | SslMode::Prefer) => {
                return Ok(stream);
            }
            b'N' => {
                let reason = "server does not support SSL, but SSL was required\n";
                return Err(Attempt::Final(reason.to_owned()));
            }
            b'E' => {
                let reason = "server does not know of SSL\n";
                return Err(Attempt::Security(reason.to_owned()));
            }
            other => {
                let reason = format!(
                    "received invalid response to SSL negotiation: {}\n",
                    text(&[other])
                );
                return Err(Attempt::Final(reason));
            }
        }
        let address = match &place.place {
            Place::Inet(address, _) => address.clone(),
            Place::Unix(_) | Place::Uri(_) => String::new(),
        };
        // A name that cannot be one in a certificate matches none.
        let asked = ServerName::try_from(name.to_owned())
            .or_else(|_| ServerName::try_from(address))
            .map_err(|error| Attempt::Final(format!("SSL error: {error}\n")))?;
        let secured = stream.secured(config, asked).await;
        secured.map_err(|error| Attempt::Security(tls_reason(&error, name)))
    }

    /// From the start-up message until the server is ready.
    async fn greet(&self, mut channel: Channel, user: &[u8]) -> Result<Connection, Attempt> {
        let target = &self.target;
        let mut session = Session::new();
        let trouble = |trouble: Trouble| match trouble {
            Trouble::Ended => Attempt::Final(GONE.to_owned()),
            Trouble::Garbage | Trouble::TooMuch => {
                Attempt::Final("received an invalid response from the server\n".to_owned())
            }
        };
        channel.allow(GREETING_LIMIT);
        channel
            .send(&startup(target, user))
            .await
            .map_err(trouble)?;
        let mut known = false;
        let mut scram: Option<ScramSha256> = None;
        let mut proved = false;
        let refused = |reason: &str| Attempt::Final(reason.to_owned());
        let password = || {
            if target.password.is_empty() {
                Err(refused("fe_sendauth: no password supplied\n"))
            } else {
                Ok(&target.password[..])
            }
        };
        loop {
            let mut reply = BytesMut::new();
            match channel.message().await.map_err(trouble)? {
                Message::AuthenticationOk if scram.is_some() && !proved => {
                    return Err(refused("server did not prove that it knows the password\n"));
                }
                Message::AuthenticationOk => known = true,
                Message::AuthenticationCleartextPassword if scram.is_none() => {
                    frontend::password_message(password()?, &mut reply)
                        .map_err(|_| refused("the password has a NUL\n"))?;
                }
                Message::AuthenticationMd5Password(body) if scram.is_none() => {
                    let hash = md5_hash(user, password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut reply)
                        .map_err(|_| refused("the password has a NUL\n"))?;
                }
                Message::AuthenticationSasl(body) if scram.is_none() => {
                    let mut mechanisms = body.mechanisms();
                    let mut found = false;
                    while let Ok(Some(mechanism)) = mechanisms.next() {
                        found |= mechanism == SCRAM_SHA_256;
                    }
                    if !found {
                        return Err(refused(
                            "none of the server's SASL authentication mechanisms are supported\n",
                        ));
                    }
                    let begun = ScramSha256::new(password()?, ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut reply)
                        .map_err(|_| refused("malformed SCRAM message\n"))?;
                    scram = Some(begun);
                }
                Message::AuthenticationSaslContinue(body) if !proved => {
                    let mut begun = scram.take().ok_or_else(|| trouble(Trouble::Garbage))?;
                    let challenge = body.data().to_vec();
                    if !has_few_rounds(&challenge) {
                        return Err(refused("the server asks for too many rounds of SCRAM\n"));
                    }
                    // The rounds keep a thread busy for a while.
                    let work = move || begun.update(&challenge).map(|()| begun);
                    let begun = tokio::task::spawn_blocking(work).await;
                    let begun = begun
                        .ok()
                        .and_then(Result::ok)
                        .ok_or_else(|| refused("malformed SCRAM message\n"))?;
                    frontend::sasl_response(begun.message(), &mut reply)
                        .map_err(|_| refused("malformed SCRAM message\n"))?;
                    scram = Some(begun);
                }
                Message::AuthenticationSaslFinal(body) if !proved => {
                    let begun = scram.as_mut().ok_or_else(|| trouble(Trouble::Garbage))?;
                    begun
                        .finish(body.data())
                        .map_err(|_| refused("incorrect server signature\n"))?;
                    proved = true;
                }
                Message::ParameterStatus(status) => session.learn(&status),
                Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) if known => return Ok(Connection::new(channel, session)),
                Message::ErrorResponse(body) => {
                    let report = Report::of(&body, b"", session.encoding());
                    // Before the server knows who we are, it may be that it wants us with TLS, or without.
                    return Err(if report.is_not_ready() {
                        Attempt::Next(report.text)
                    } else if known {
                        Attempt::Final(report.text)
                    } else {
                        Attempt::Security(report.text)
                    });
                }
                Message::AuthenticationGss
                | Message::AuthenticationSspi
                | Message::AuthenticationKerberosV5
                | Message::AuthenticationScmCredential => {
                    return Err(refused(
                        "the server asks for an authentication that is not supported\n",
                    ));
                }
                _ => return Err(trouble(Trouble::Garbage)),
            }
            if !reply.is_empty() {
                channel.send(&reply).await.map_err(trouble)?;
            }
        }
    }
}

fn host(place: Place) -> Host {
    Host {
        text: String::new(),
        place,
    }
}

/// The addresses of a server, and how log lines call them.
async fn addresses(
    name: &str,
    address: Option<&str>,
    port: u16,
) -> Result<Vec<(Host, String)>, String> {
    let asked = address.unwrap_or(name);
    let found: Vec<IpAddr> = match asked.parse() {
        Ok(address) => vec![address],
        Err(_) if address.is_some() => {
            return Err(format!(
                "could not parse network address \"{asked}\": Name or service not known\n"
            ));
        }
        Err(_) => match tokio::net::lookup_host((asked, port)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                let text = error_text(&error);
                let reason = text.rsplit(": ").next().unwrap_or_default();
                return Err(format!(
                    "could not translate host name \"{asked}\" to address: {reason}\n"
                ));
            }
        },
    };
    let shown = if name.is_empty() { asked } else { name };
    Ok(found
        .into_iter()
        .map(|address| {
            let digits = address.to_string();
            let described = if digits == shown {
                format!("at \"{shown}\", port {port}")
            } else {
                format!("at \"{shown}\" ({digits}), port {port}")
            };
            (host(Place::Inet(digits, port.to_string())), described)
        })
        .collect())
}

/// The name of the user that this process runs as: libpq's default.
async fn own_name() -> Result<Vec<u8>, String> {
    let uid = nix::unistd::geteuid();
    let found = tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid)).await;
    match found {
        Ok(Ok(Some(user))) => Ok(user.name.into_bytes()),
        _ => Err(format!("local user with ID {uid} does not exist\n")),
    }
}

/// The first message.
fn startup(target: &Target, user: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    let dbname = if target.dbname.is_empty() {
        user
    } else {
        &target.dbname
    };
    let session = target
        .session
        .iter()
        .map(|(name, value)| (*name, &value[..]));
    for (name, value) in [("user", user), ("database", dbname)]
        .into_iter()
        .chain(session)
    {
        // No value of a configuration has a NUL; if one did, it would end there.
        let end = memchr::memchr(0, value).unwrap_or(value.len());
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(&value[..end]);
        body.push(0);
    }
    body.push(0);
    let mut out = Vec::new();
    untagged(&body, &mut out);
    out
}

/// The challenge's `i=`.
fn has_few_rounds(challenge: &[u8]) -> bool {
    let rounds = challenge
        .split(|&byte| byte == b',')
        .find_map(|field| field.strip_prefix(b"i="))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    rounds.is_some_and(|rounds| rounds <= MOST_ROUNDS)
}

fn tls_reason(error: &io::Error, name: &str) -> String {
    let found = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match found {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!("server certificate does not match host name \"{name}\"\n"),
        Some(rustls::Error::InvalidCertificate(_)) => {
            "SSL error: certificate verify failed\n".to_owned()
        }
        Some(error) => format!("SSL error: {error}\n"),
        None => format!("SSL error: {}\n", error_text(error)),
    }
}

/// Is this the kind of server that was asked for?
async fn suits(connection: &mut Connection, wanted: Attributes) -> Result<(), String> {
    let (query, value, reason) = match wanted {
        Attributes::Any | Attributes::PreferStandby => return Ok(()),
        Attributes::ReadWrite => (
            "SHOW transaction_read_only",
            "off",
            "session is read-only\n",
        ),
        Attributes::ReadOnly => (
            "SHOW transaction_read_only",
            "on",
            "session is not read-only\n",
        ),
        Attributes::Primary => (
            "SELECT pg_catalog.pg_is_in_recovery()",
            "f",
            "server is in hot standby mode\n",
        ),
        Attributes::Standby => (
            "SELECT pg_catalog.pg_is_in_recovery()",
            "t",
            "server is not in hot standby mode\n",
        ),
    };
    match connection.run(query.as_bytes()).await {
        Ok(Outcome::Values(values)) if values.iter().eq([value.as_bytes()]) => Ok(()),
        _ => Err(reason.to_owned()),
    }
}
