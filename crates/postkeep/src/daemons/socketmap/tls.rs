//! TLS in front of the conversation: bytes of the network on one side, bytes of the conversation on the other.
//!
//! Nothing here waits: what comes in is taken as it comes, what goes out is put where the skeleton sends it from.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postkeep_wire::duplex::{End, Inbox, Outbox};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};

/// Bytes that are taken from the library at once.
const PIECE: usize = 16 * 1024;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub(super) struct TlsError {
    path: PathBuf,
    reason: String,
}

impl TlsError {
    fn new(path: &Path, reason: &dyn fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Which clients are let in, of those whose certificates somebody trusted has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    names: Vec<ServerName<'static>>,
    /// SHA-256 of whole certificates.
    fingerprints: Vec<[u8; 32]>,
}

impl Allowed {
    /// Reads a list of names (DNS names or addresses among a certificate's alternative names) and fingerprints
    /// (`sha256:` and 64 hexadecimal digits, colons between pairs or not).
    ///
    /// # Errors
    /// The word that is neither.
    pub(super) fn parse<'w>(words: impl Iterator<Item = &'w [u8]>) -> Result<Self, String> {
        let mut allowed = Self::default();
        for word in words {
            let text = String::from_utf8_lossy(word).into_owned();
            if let Some(digits) = text.strip_prefix("sha256:") {
                let fingerprint = fingerprint(digits).ok_or_else(|| text.clone())?;
                allowed.fingerprints.push(fingerprint);
            } else {
                let name = ServerName::try_from(text.clone()).map_err(|_| text)?;
                allowed.names.push(name);
            }
        }
        Ok(allowed)
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.fingerprints.is_empty()
    }

    fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        if self
            .fingerprints
            .iter()
            .any(|known| known.as_slice() == digest.as_ref())
        {
            return true;
        }
        ParsedCertificate::try_from(certificate).is_ok_and(|parsed| {
            self.names
                .iter()
                .any(|name| verify_server_name(&parsed, name).is_ok())
        })
    }
}

fn fingerprint(digits: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = digits.bytes().filter(|&byte| byte != b':').collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut fingerprint = [0; 32];
    for (byte, pair) in fingerprint.iter_mut().zip(pairs) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        let pair = value(pair[0])? * 16 + value(pair[1])?;
        *byte = u8::try_from(pair).ok()?;
    }
    Some(fingerprint)
}

/// What the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    /// PEM file with our certificate, its issuers after it.
    pub(super) certificate: PathBuf,
    /// PEM file with its private key.
    pub(super) key: PathBuf,
    /// PEM file with the certificates of those who may sign for clients; without it nobody is asked for a certificate.
    pub(super) client_ca: Option<PathBuf>,
    /// Which of their clients are let in; empty: all.
    pub(super) clients: Allowed,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold what it should.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = postkeep_remote::tls::provider();
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::new(&self.key, &error))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(&self.certificate, &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::new(path, &error))?;
                }
                let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| TlsError::new(path, &error))?;
                builder.with_client_cert_verifier(Arc::new(Verifier {
                    chain,
                    allowed: self.clients.clone(),
                }))
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| TlsError::new(&self.key, &error))?;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let at_fault = |reason: &dyn fmt::Display| TlsError::new(path, reason);
    let text = fs::read(path).map_err(|error| at_fault(&postkeep_sys::error_text(&error)))?;
    let found = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| at_fault(&error))?;
    if found.is_empty() {
        return Err(at_fault(&"no certificate found"));
    }
    Ok(found)
}

/// Checks that somebody trusted has signed, and then that this client is let in.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    allowed: Allowed,
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(certificate, issuers, now)?;
        if self.allowed.is_empty() || self.allowed.contains(certificate) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// One TLS connection.
#[derive(Debug)]
pub(super) struct Session {
    connection: Box<ServerConnection>,
    /// What the client says, and what is said to it.
    pub(super) inbox: Inbox<OwnedFd>,
    pub(super) outbox: Outbox<OwnedFd>,
}

impl Session {
    /// - `config`: from [`Tls::server`]
    ///
    /// # Errors
    /// As of the library.
    pub(super) fn new(config: &Arc<ServerConfig>) -> Result<Self, Error> {
        let mut connection = Box::new(ServerConnection::new(Arc::clone(config))?);
        // What is written is taken out at once.
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
        })
    }

    /// The client has not shown yet who it is.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes what has come from the network: its content is in the inbox afterwards, what the library has to say to it
    /// in `out`, also when this fails.
    ///
    /// # Errors
    /// What has come is not as it should be; nothing more can be read or said.
    pub(super) fn receive(
        &mut self,
        network: &mut Inbox<OwnedFd>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let outcome = self.take(network);
        self.put(out);
        if outcome.is_ok()
            && let Some(end) = network.end()
        {
            self.inbox.finish(end);
        }
        outcome
    }

    fn take(&mut self, network: &mut Inbox<OwnedFd>) -> Result<(), Error> {
        while !network.is_empty() {
            let mut bytes = network.bytes();
            let before = bytes.len();
            self.connection
                .read_tls(&mut bytes)
                .map_err(|error| Error::General(error.to_string()))?;
            let taken = before - bytes.len();
            drop(network.consume(taken));
            let state = self.connection.process_new_packets()?;
            let mut rest = state.plaintext_bytes_to_read();
            let mut piece = [0; PIECE];
            while rest > 0 {
                match self.connection.reader().read(&mut piece) {
                    Ok(count) if count > 0 => {
                        self.inbox.receive(&piece[..count], []);
                        rest = rest.saturating_sub(count);
                    }
                    _ => break,
                }
            }
            if state.peer_has_closed() {
                self.inbox.finish(End::Closed);
                // Nothing that follows is the client's.
                drop(network.consume(network.bytes().len()));
            } else if taken == 0 {
                return Err(Error::General("nothing is taken".to_owned()));
            }
        }
        Ok(())
    }

    /// Encrypts what is in the outbox.
    pub(super) fn send(&mut self, out: &mut Vec<u8>) {
        while !self.outbox.is_empty() {
            let (bytes, _) = self.outbox.next_chunk();
            let piece = &bytes[..bytes.len().min(PIECE)];
            let Ok(count @ 1..) = self.connection.writer().write(piece) else {
                // The library takes nothing after the end of the connection.
                drop(self.outbox.sent(self.outbox.len()));
                break;
            };
            drop(self.outbox.sent(count));
            self.put(out);
        }
    }

    /// Says that nothing more will be said.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.put(out);
    }

    fn put(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            // Appending to memory does not fail.
            if !matches!(self.connection.write_tls(out), Ok(1..)) {
                break;
            }
        }
    }
}

/// A path of the configuration; `None` when it is empty.
pub(super) fn path(value: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    (!value.is_empty()).then(|| PathBuf::from(OsString::from_vec(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(list: &str) -> Result<Allowed, String> {
        Allowed::parse(list.split(' ').map(str::as_bytes))
    }

    #[test]
    fn clients_are_named_or_known_by_their_fingerprints() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        let pairs: Vec<&str> = (0..32).map(|at| &digits[2 * at..2 * at + 2]).collect();
        let list = format!("mx.example.org 192.0.2.1 sha256:{digits}");
        let with_colons = format!("mx.example.org 192.0.2.1 sha256:{}", pairs.join(":"));
        let found = allowed(&list).unwrap();
        assert_eq!((found.names.len(), found.fingerprints.len()), (2, 1));
        assert_eq!(found.fingerprints[0][..3], [1, 0x23, 0x45]);
        assert_eq!(allowed(&with_colons).unwrap(), found);
        for bad in [
            "sha256:",
            "sha256:00",
            &format!("sha256:{digits}0"),
            "a/b",
            "-",
            "\u{e9}.org",
        ] {
            assert_eq!(allowed(bad).unwrap_err(), bad);
        }
        assert!(allowed(&format!("sha256:g{}", &digits[1..])).is_err());
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        let empty = scratch.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let tls = Tls {
            certificate: "/nonexistent/cert.pem".into(),
            key: empty.clone(),
            client_ca: None,
            clients: Allowed::default(),
        };
        assert_eq!(
            tls.server().unwrap_err().to_string(),
            "/nonexistent/cert.pem: No such file or directory"
        );
        let tls = Tls {
            certificate: empty.clone(),
            ..tls
        };
        assert_eq!(
            tls.server().unwrap_err().to_string(),
            format!("{}: no certificate found", empty.display())
        );
    }
}
