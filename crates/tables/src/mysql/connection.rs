//! A connection to a server: greeting, TLS, authentication, statements and their results.
//!
//! How passwords are mixed with what the server sends is left to `mysql_common`. Everything the server says is bounded
//! here: a packet by [`PACKET_LIMIT`], the values of an answer by [`RESULT_LIMIT`]; time by the pool.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin as _, Context as AuthContext};
use mysql_common::constants::CapabilityFlags;
use mysql_common::packets::{AuthPlugin, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize;
use postkeep_remote::stream::Stream;
use postkeep_remote::template::RESULT_LIMIT;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, BufReader};

use crate::mysql::wire::{
    Greeting, MORE_RESULTS, Malformed, NO_BACKSLASH_ESCAPES, Reader, ServerError, ability, is_end,
    status_of_end, status_of_ok,
};

/// The most bytes that a packet of the server may have: one row with a value that is too long, and then some.
const PACKET_LIMIT: usize = 2 * RESULT_LIMIT;

/// The most columns of a result.
const COLUMN_LIMIT: u64 = 4096;

/// How often a server may ask for the password in yet another way.
const METHOD_LIMIT: usize = 8;

/// `utf8mb4_general_ci`.
const COLLATION: u8 = 45;

const COM_QUIT: u8 = 1;
const COM_QUERY: u8 = 3;

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The connection ended.
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// TLS did not come about.
    #[error("TLS/SSL error: {0}")]
    Tls(String),
    /// The server says so.
    #[error("{}", postkeep_table::Printable(&.0.message))]
    Server(ServerError, Stage),
    /// The server does not keep to the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The answer is longer than it may be.
    #[error("the answer has more than {RESULT_LIMIT} bytes")]
    TooLong,
    /// More than one result with columns.
    #[error("multiple result sets returning data are not supported")]
    SeveralSets,
}

/// When in a statement the server says that it fails; what the reference calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before any result.
    Statement,
    /// Among the rows of a result.
    Rows,
    /// After a result.
    Next,
}

impl From<Malformed> for Trouble {
    fn from(_: Malformed) -> Self {
        Self::Protocol("Malformed communication packet")
    }
}

/// Who we are, and how the connection is to be.
#[derive(Clone, Debug)]
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    pub(super) database: &'a str,
    /// TLS, and the name that the server's certificate is to have.
    pub(super) tls: Option<(&'a Arc<ClientConfig>, &'a str)>,
    /// A server without TLS will not do.
    pub(super) tls_required: bool,
}

/// The values of a result, row by row.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// There was a result with columns.
    pub(super) has_columns: bool,
    /// `None` for NULL.
    pub(super) values: Vec<Option<Vec<u8>>>,
    /// There were more, which have not been read: the connection cannot be used any more.
    pub(super) cut: bool,
}

/// A connection that is ready for statements, or was.
pub(super) struct Connection {
    /// `None` only while it changes to TLS.
    transport: Option<BufReader<Stream>>,
    sequence: u8,
    packet: Vec<u8>,
    status: u16,
    /// Nothing is under way.
    quiet: bool,
}

impl Connection {
    /// Greets and authenticates.
    pub(super) async fn open(stream: Stream, login: &Login<'_>) -> Result<Self, Trouble> {
        let local = matches!(stream, Stream::Unix(_));
        let mut connection = Self {
            transport: Some(BufReader::new(stream)),
            sequence: 0,
            packet: Vec::new(),
            status: 0,
            quiet: false,
        };
        connection.read().await?;
        connection.refused()?;
        let greeting = Greeting::parse(&connection.packet)?;
        let basic = ability::PROTOCOL_41 | ability::SECURE_CONNECTION;
        if greeting.abilities & basic != basic {
            return Err(Trouble::Protocol("the server is older than this protocol"));
        }
        connection.status = greeting.status;
        let wanted = basic
            | ability::LONG_PASSWORD
            | ability::TRANSACTIONS
            | ability::MULTI_RESULTS
            | ability::PLUGIN_AUTH
            | ability::CONNECT_WITH_DB;
        let mut abilities = wanted & greeting.abilities;
        let mut secret = local;
        if let Some((config, name)) = login.tls {
            if greeting.abilities & ability::TLS != 0 {
                abilities |= ability::TLS;
                connection.start_tls(abilities, config, name).await?;
                secret = true;
            } else if login.tls_required && !local {
                return Err(Trouble::Tls(
                    "the server does not offer TLS, which the table's tls_* keys ask for (tls_required = no goes \
                     without)"
                        .to_owned(),
                ));
            }
        }
        connection
            .authenticate(&greeting, abilities, login, secret)
            .await?;
        connection.quiet = true;
        Ok(connection)
    }

    async fn start_tls(
        &mut self,
        abilities: u32,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<(), Trouble> {
        let wrong = |error: &dyn std::fmt::Display| Trouble::Tls(error.to_string());
        let name = ServerName::try_from(name.to_owned()).map_err(|error| wrong(&error))?;
        let mut request = Vec::new();
        SslRequest::new(flags(abilities), packet_limit(), COLLATION).serialize(&mut request);
        self.write(&request).await?;
        let gone = || Trouble::Lost(io::ErrorKind::NotConnected.into());
        let reader = self.transport.take().ok_or_else(gone)?;
        if !reader.buffer().is_empty() {
            // Somebody put it there who is not the server that TLS will show.
            return Err(Trouble::Protocol("the server speaks before TLS"));
        }
        let secured = reader.into_inner().secured(config, name).await;
        let stream = secured.map_err(|error| wrong(&error))?;
        self.transport = Some(BufReader::new(stream));
        Ok(())
    }

    /// - `secret`: nobody can listen
    async fn authenticate(
        &mut self,
        greeting: &Greeting,
        abilities: u32,
        login: &Login<'_>,
        secret: bool,
    ) -> Result<(), Trouble> {
        let mut nonce = greeting.nonce.clone();
        // A server that wants another way says so in its next packet.
        let first = match AuthPlugin::from_bytes(&greeting.method) {
            AuthPlugin::CachingSha2Password => AuthPlugin::CachingSha2Password,
            _ => AuthPlugin::MysqlNativePassword,
        };
        let mut method = AuthProc::init(&first).map_err(|_| UNKNOWN_METHOD)?;
        let proof = Proof::of(login.password, secret, &nonce);
        let proof = method.run(proof, &nonce).map_err(|_| Malformed)?;
        let mut response = Vec::new();
        HandshakeResponse::new(
            proof.data(),
            // Whatever the version, utf8mb4 is meant.
            (8, 0, 0),
            Some(login.user.as_bytes()),
            Some(login.database.as_bytes()),
            (abilities & ability::PLUGIN_AUTH != 0).then_some(first),
            flags(abilities),
            None,
            packet_limit(),
        )
        .serialize(&mut response);
        self.write(&response).await?;
        for _ in 0..METHOD_LIMIT {
            self.read().await?;
            self.refused()?;
            let packet = std::mem::take(&mut self.packet);
            let challenge = match packet[..] {
                [0, ..] => {
                    self.status = status_of_ok(&packet)?;
                    return Ok(());
                }
                [0xfe] => return Err(Trouble::Protocol("the server wants an old password")),
                [0xfe, ref rest @ ..] => {
                    let mut reader = Reader(rest);
                    method = another_method(reader.until_nul()?, secret)?;
                    nonce = nonce_of(reader.0).to_vec();
                    &nonce
                }
                [1, ref rest @ ..] => rest,
                _ => return Err(Malformed.into()),
            };
            let proof = Proof::of(login.password, secret, &nonce);
            let proof = method.run(proof, challenge).map_err(|_| Malformed)?;
            if let Some(proof) = proof.data() {
                self.write(proof).await?;
            }
        }
        Err(Trouble::Protocol(
            "the server does not come to an end with passwords",
        ))
    }

    /// Does a backslash in a literal quote what follows?
    pub(super) fn backslash_quotes(&self) -> bool {
        self.status & NO_BACKSLASH_ESCAPES == 0
    }

    /// Is it open, with nothing to read and nothing left undone?
    pub(super) fn is_quiet(&mut self) -> bool {
        let quiet = |reader: &mut BufReader<Stream>| {
            reader.buffer().is_empty() && reader.get_mut().is_quiet()
        };
        self.quiet && self.transport.as_mut().is_some_and(quiet)
    }

    /// Runs a statement, and reads all its results.
    ///
    /// After any [`Trouble`] but [`Trouble::Server`] the connection cannot be used any more.
    pub(super) async fn query(&mut self, statement: &[u8]) -> Result<Found, Trouble> {
        self.quiet = false;
        self.sequence = 0;
        let mut command = Vec::with_capacity(statement.len() + 1);
        command.push(COM_QUERY);
        command.extend_from_slice(statement);
        self.write(&command).await?;
        let mut found = Found::default();
        let mut size = 0;
        let mut stage = Stage::Statement;
        loop {
            self.read().await?;
            self.failed(stage)?;
            stage = Stage::Next;
            if self.packet.first() == Some(&0) {
                self.status = status_of_ok(&self.packet)?;
            } else {
                let columns = Reader(&self.packet).counted()?;
                // NULL would ask for a file of ours.
                let columns = columns
                    .filter(|&count| count <= COLUMN_LIMIT)
                    .ok_or(Malformed)?;
                if found.has_columns {
                    return Err(Trouble::SeveralSets);
                }
                found.has_columns = true;
                self.rows(columns, &mut found, &mut size).await?;
                if found.cut {
                    return Ok(found);
                }
            }
            if self.status & MORE_RESULTS == 0 {
                self.quiet = true;
                return Ok(found);
            }
        }
    }

    async fn rows(
        &mut self,
        columns: u64,
        found: &mut Found,
        size: &mut usize,
    ) -> Result<(), Trouble> {
        for _ in 0..columns {
            self.read().await?;
            self.failed(Stage::Rows)?;
        }
        self.read().await?;
        self.failed(Stage::Rows)?;
        if !is_end(&self.packet) {
            return Err(Malformed.into());
        }
        loop {
            self.read().await?;
            self.failed(Stage::Rows)?;
            if is_end(&self.packet) {
                self.status = status_of_end(&self.packet)?;
                return Ok(());
            }
            let mut reader = Reader(&self.packet);
            for _ in 0..columns {
                let value = reader.text()?;
                // With what it takes to hold it.
                *size += value.map_or(0, <[u8]>::len) + 32;
                if *size > PACKET_LIMIT {
                    found.cut = true;
                    return Ok(());
                }
                found.values.push(value.map(<[u8]>::to_vec));
            }
        }
    }

    /// An error in reply to a statement, after which the connection can be used.
    fn failed(&mut self, stage: Stage) -> Result<(), Trouble> {
        let refused = self.error(stage);
        self.quiet = refused.is_err();
        refused
    }

    /// Is the packet an error, before there are statements?
    fn refused(&self) -> Result<(), Trouble> {
        self.error(Stage::Statement)
    }

    fn error(&self, stage: Stage) -> Result<(), Trouble> {
        if self.packet.first() == Some(&0xff) {
            return Err(Trouble::Server(ServerError::parse(&self.packet)?, stage));
        }
        Ok(())
    }

    fn transport(&mut self) -> io::Result<&mut BufReader<Stream>> {
        let gone = || io::ErrorKind::NotConnected.into();
        self.transport.as_mut().ok_or_else(gone)
    }

    /// Reads the next packet.
    async fn read(&mut self) -> Result<(), Trouble> {
        let mut head = [0; 4];
        self.transport()?.read_exact(&mut head).await?;
        let [low, middle, high, sequence] = head;
        if sequence != self.sequence {
            return Err(Trouble::Protocol("Packets out of order"));
        }
        self.sequence = sequence.wrapping_add(1);
        let length = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        if length > PACKET_LIMIT {
            return Err(Trouble::TooLong);
        }
        let mut packet = std::mem::take(&mut self.packet);
        packet.clear();
        packet.shrink_to(1 << 16);
        // As much memory as has come, not as much as was announced.
        let length = u64::from(u32::from_le_bytes([low, middle, high, 0]));
        let mut part = self.transport()?.take(length);
        let read = part.read_to_end(&mut packet).await?;
        self.packet = packet;
        if (read as u64) < length {
            return Err(Trouble::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    async fn write(&mut self, packet: &[u8]) -> Result<(), Trouble> {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let [low, middle, high, 0] = length.to_le_bytes() else {
            return Err(Trouble::Protocol("the statement is too long"));
        };
        let head = [low, middle, high, self.sequence];
        self.sequence = self.sequence.wrapping_add(1);
        let whole = [&head, packet].concat();
        let transport = self.transport()?;
        transport.write_all(&whole).await?;
        transport.flush().await?;
        Ok(())
    }
}

impl Drop for Connection {
    /// Says goodbye where that takes no waiting, so that the server does not log a lost client.
    fn drop(&mut self) {
        if !self.quiet {
            return;
        }
        if let Some(transport) = &mut self.transport {
            let mut now = Context::from_waker(Waker::noop());
            let goodbye = [1, 0, 0, 0, COM_QUIT];
            let mut transport = Pin::new(transport);
            if let Poll::Ready(Ok(_)) = transport.as_mut().poll_write(&mut now, &goodbye) {
                let _ = transport.as_mut().poll_flush(&mut now);
                let _ = transport.poll_shutdown(&mut now);
            }
        }
    }
}

const UNKNOWN_METHOD: Trouble =
    Trouble::Protocol("the server wants a way of authentication that is not known here");

/// What the server asks for instead.
///
/// - `secret`: nobody can listen
fn another_method(name: &[u8], secret: bool) -> Result<AuthProc, Trouble> {
    let plugin = match AuthPlugin::from_bytes(name) {
        // Asks for the password of PAM.
        AuthPlugin::Other(name) if &name[..] == b"dialog" => AuthPlugin::MysqlClearPassword,
        AuthPlugin::MysqlOldPassword => {
            return Err(Trouble::Protocol("the server wants an old password"));
        }
        other => other,
    };
    if plugin == AuthPlugin::MysqlClearPassword && !secret {
        return Err(Trouble::Protocol(
            "the server wants the password in clear text, which needs TLS",
        ));
    }
    AuthProc::init(&plugin).map_err(|_| UNKNOWN_METHOD)
}

/// What a password is mixed with, 20 or 32 bytes, without the NUL that may follow; a last byte of 32 may be one, too.
fn nonce_of(data: &[u8]) -> &[u8] {
    match data {
        [nonce @ .., 0] if [20, 32].contains(&nonce.len()) => nonce,
        all => all,
    }
}

/// What a way of authentication wants to know.
#[derive(Clone, Copy)]
struct Proof<'a> {
    password: &'a [u8],
    secret: bool,
    nonce: &'a [u8],
}

impl<'a> Proof<'a> {
    fn of(password: &'a str, secret: bool, nonce: &'a [u8]) -> Self {
        Self {
            password: password.as_bytes(),
            secret,
            nonce,
        }
    }
}

impl AuthContext for Proof<'_> {
    fn pass(&self) -> &[u8] {
        self.password
    }

    fn is_ipc_transport(&self) -> bool {
        self.secret
    }

    fn is_tls_transport(&self) -> bool {
        self.secret
    }

    fn scramble(&self) -> &[u8] {
        self.nonce
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

fn flags(abilities: u32) -> CapabilityFlags {
    CapabilityFlags::from_bits_truncate(abilities)
}

fn packet_limit() -> u32 {
    u32::try_from(PACKET_LIMIT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::nonce_of;

    #[test]
    fn a_nonce_may_end_with_a_nul() {
        for (length, wanted) in [(20, 20), (21, 20), (32, 32), (33, 32), (0, 0)] {
            assert_eq!(nonce_of(&vec![0; length]).len(), wanted);
        }
        assert_eq!(nonce_of(&[1; 21]).len(), 21);
    }
}
