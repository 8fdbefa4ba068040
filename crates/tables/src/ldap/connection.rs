//! A connection to a server: TLS, credentials, searches.
//!
//! What a server may say is bounded here: a message by [`MESSAGE_LIMIT`], an answer by [`ANSWER_LIMIT`]; time by whoever
//! asks.

use std::io;

use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::stream::Stream;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::lookup_host;

use crate::ldap::ber::Malformed;
use crate::ldap::message::{
    Attribute, Code, Credentials, Done, Fault, Reply, Search, bind, first_message, parse, start_tls,
};
use crate::ldap::settings::{Server, Tls};
use crate::ldap::url::Scheme;

/// The most bytes of one message: an entry whose values are too many for a result, and then some.
const MESSAGE_LIMIT: usize = 4 << 20;

/// The most bytes of all that comes for one search.
pub(super) const ANSWER_LIMIT: usize = 16 << 20;

/// The most strings of all that comes for one search: those of some bytes each are bounded by [`ANSWER_LIMIT`].
const STRING_LIMIT: usize = ANSWER_LIMIT / size_of::<Vec<u8>>();

/// How many bytes are read at once at least; what an unused connection keeps room for.
const CHUNK: usize = 8 << 10;

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The connection ended, or did not come about.
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// TLS did not come about.
    #[error("{0}")]
    Tls(String),
    /// The server says no to the request for TLS.
    #[error("{}", .0.text())]
    NoTls(Code),
    /// The server says no.
    #[error("{}", .0.text())]
    Refused(Code),
    /// What came is no answer.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// What came is too long.
    #[error("the answer has more than {ANSWER_LIMIT} bytes")]
    TooLong,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(malformed) => Self::Malformed(malformed),
            Fault::TooMuch => Self::TooLong,
        }
    }
}

/// What a search found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) code: Code,
    pub(super) entries: Vec<Vec<Attribute>>,
    /// Where the rest is; of each list one will do.
    pub(super) references: Vec<Vec<Vec<u8>>>,
    /// The bytes of all that came.
    pub(super) size: usize,
}

/// How secret a connection is, in bits.
fn strength(stream: &Stream) -> u32 {
    match stream {
        // Nobody can listen; the reference's library lets it pass for any number of bits.
        Stream::Unix(_) => u32::MAX,
        Stream::Tcp(_) => 0,
        Stream::Tls(stream) => {
            let suite = stream.get_ref().1.negotiated_cipher_suite();
            let name = suite.and_then(|suite| suite.suite().as_str());
            if name.is_some_and(|name| name.contains("128")) {
                128
            } else {
                256
            }
        }
    }
}

/// A connection.
pub(super) struct Connection {
    stream: Stream,
    /// What has come; empty when all of it has been taken.
    input: Vec<u8>,
    /// How many bytes of it have been taken.
    taken: usize,
    last_id: i32,
    /// Nothing is under way.
    quiet: bool,
}

impl Connection {
    /// Connects, with TLS when the server's URL says so.
    ///
    /// A host's addresses are tried in order.
    pub(super) async fn open(server: &Server, tls: Option<&Tls>) -> Result<Self, Trouble> {
        let stream = match &server.place {
            // The reference does not say why a name is not known.
            Place::Inet(name, port) => {
                let number = port.parse().unwrap_or(0);
                Stream::connect_first(lookup_host((&name[..], number)).await?).await?
            }
            place => {
                let (text, place) = (String::new(), place.clone());
                Stream::connect(&Host { text, place }).await?
            }
        };
        let connection = Self {
            stream,
            input: Vec::new(),
            taken: 0,
            last_id: 0,
            quiet: true,
        };
        if server.scheme == Scheme::Ldaps {
            connection.secured(server, tls).await
        } else {
            Ok(connection)
        }
    }

    /// Asks for TLS.
    pub(super) async fn start_tls(
        mut self,
        server: &Server,
        tls: Option<&Tls>,
    ) -> Result<Self, Trouble> {
        let id = self.next_id();
        match self.request(id, &start_tls(id)).await? {
            Code::SUCCESS => self.secured(server, tls).await,
            code => Err(Trouble::NoTls(code)),
        }
    }

    async fn secured(self, server: &Server, tls: Option<&Tls>) -> Result<Self, Trouble> {
        let failed = |error: &dyn std::fmt::Display| Trouble::Tls(error.to_string());
        let tls = tls.ok_or_else(|| failed(&"TLS is not set up"))?;
        let config = tls.config.as_ref().map_err(|error| failed(error))?;
        if !self.input.is_empty() {
            // Somebody put it there who is not the server that TLS will show.
            return Err(failed(&"the server speaks before TLS"));
        }
        let name = match &server.place {
            Place::Inet(name, _) if !tls.anybody => name,
            // Nobody looks at it.
            Place::Inet(name, _) if ServerName::try_from(&name[..]).is_ok() => name,
            _ => "localhost",
        };
        let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(&error))?;
        let stream = self.stream.secured(config, name).await;
        let stream = stream.map_err(|error| failed(&error))?;
        Ok(Self { stream, ..self })
    }

    /// Says who we are.
    pub(super) async fn bind(
        &mut self,
        version: i32,
        credentials: &Credentials,
    ) -> Result<(), Trouble> {
        if let Credentials::External { least_strength, .. } = credentials {
            let strength = strength(&self.stream);
            // Below a socket or TLS nobody knows who we are.
            if strength == 0 || strength < *least_strength {
                return Err(Trouble::Refused(Code::AUTH_UNKNOWN));
            }
        }
        let id = self.next_id();
        let Some(message) = bind(id, version, credentials) else {
            return Ok(());
        };
        match self.request(id, &message).await? {
            Code::SUCCESS => Ok(()),
            code => Err(Trouble::Refused(code)),
        }
    }

    fn next_id(&mut self) -> i32 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// Is it open, with nothing to read and nothing left undone?
    pub(super) fn is_quiet(&mut self) -> bool {
        self.quiet && self.input.is_empty() && self.stream.is_quiet()
    }

    /// Looks for entries. After any [`Trouble`] the connection cannot be used any more.
    pub(super) async fn search(&mut self, search: &Search) -> Result<Found, Trouble> {
        let id = self.next_id();
        self.quiet = false;
        self.write(&search.message(id)).await?;
        let mut entries = Vec::new();
        let mut references = Vec::new();
        let (mut size, mut room) = (0, STRING_LIMIT);
        loop {
            let (length, reply) = self.read(id, &mut room).await?;
            size += length;
            if size > ANSWER_LIMIT {
                return Err(Trouble::TooLong);
            }
            match reply {
                Reply::Entry(entry) => entries.push(entry),
                Reply::Reference(urls) => references.push(urls),
                Reply::SearchDone(Done { code, referrals }) => {
                    if code == Code::REFERRAL {
                        references.push(referrals);
                    }
                    // A server that is about to go is not asked again.
                    self.quiet = !matches!(code, Code::BUSY | Code::UNAVAILABLE);
                    return Ok(Found {
                        code,
                        entries,
                        references,
                        size,
                    });
                }
                Reply::Done(_) => return Err(Malformed.into()),
                Reply::Other => {}
            }
        }
    }

    /// A request with one answer.
    async fn request(&mut self, id: i32, message: &[u8]) -> Result<Code, Trouble> {
        self.quiet = false;
        self.write(message).await?;
        let mut room = STRING_LIMIT;
        loop {
            match self.read(id, &mut room).await? {
                (_, Reply::Done(done)) => {
                    self.quiet = true;
                    return Ok(done.code);
                }
                (_, Reply::Other) => {}
                _ => return Err(Malformed.into()),
            }
        }
    }

    async fn write(&mut self, message: &[u8]) -> io::Result<()> {
        self.stream.write_all(message).await?;
        self.stream.flush().await
    }

    /// The next answer to this request, and its length.
    ///
    /// - `room`: how many more strings there may be
    async fn read(&mut self, id: i32, room: &mut usize) -> Result<(usize, Reply), Trouble> {
        let length = loop {
            if let Some(length) = first_message(&self.input[self.taken..], MESSAGE_LIMIT)? {
                break length;
            }
            // Not after each message: there can be many small ones in what has come.
            self.input.drain(..self.taken);
            self.taken = 0;
            self.input.reserve(CHUNK);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Trouble::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        let end = self.taken + length;
        let (answers, reply) = parse(&self.input[self.taken..end], room)?;
        self.taken = end;
        if end == self.input.len() {
            self.input.clear();
            self.input.shrink_to(CHUNK);
            self.taken = 0;
        }
        match answers {
            _ if answers == id => Ok((length, reply)),
            // The server says goodbye.
            0 => Err(Trouble::Lost(io::ErrorKind::ConnectionAborted.into())),
            _ => Err(Malformed.into()),
        }
    }
}
