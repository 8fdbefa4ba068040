//! TLS towards servers: what a table's configuration says about it, as a configuration of the TLS library.
//!
//! One cryptographic provider for all types, named here, so that no crate below has to find one.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use thiserror::Error as ThisError;

/// Whom to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The certificates of the system.
    #[default]
    System,
    /// Those of a PEM file.
    File(PathBuf),
    /// Those of all PEM files in a directory.
    Directory(PathBuf),
}

/// What of the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Check {
    /// Nothing: the connection is encrypted, but anybody can be at its end.
    Nothing,
    /// That somebody trusted signed it, for whatever name.
    Chain,
    /// That somebody trusted signed it for the name that was asked for.
    #[default]
    Name,
}

/// Our own certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// PEM file with the certificate, its issuers after it.
    pub certificate: PathBuf,
    /// PEM file with its private key; may be the same.
    pub key: PathBuf,
}

/// What a table's configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Whom to trust.
    pub roots: Roots,
    /// What is checked.
    pub check: Check,
    /// Our own certificate, for servers that ask for one.
    pub identity: Option<Identity>,
}

/// A file that cannot be used.
#[derive(Debug, ThisError)]
#[error("{}: {reason}", .path.display())]
pub struct TlsError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl TlsError {
    fn new(path: &Path, reason: &dyn fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The cryptographic provider of this process.
pub fn provider() -> Arc<CryptoProvider> {
    if let Some(provider) = CryptoProvider::get_default() {
        return Arc::clone(provider);
    }
    // Somebody else may be first; then it is theirs that counts, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    CryptoProvider::get_default().map_or_else(
        || Arc::new(rustls::crypto::ring::default_provider()),
        Arc::clone,
    )
}

impl Tls {
    /// Reads the files and makes a configuration of them. This reads files, so it belongs where tables are opened.
    ///
    /// # Errors
    /// A file that cannot be read, or holds nothing of the kind that it should.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let wrong = |error: &Error| TlsError::new(self.roots.path(), error);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .dangerous();
        let chain = match self.check {
            Check::Nothing => None,
            Check::Chain | Check::Name => {
                let roots = Arc::new(self.roots.read()?);
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                        .build()
                        .map_err(|error| TlsError::new(self.roots.path(), &error))?;
                Some(verifier)
            }
        };
        let builder = builder.with_custom_certificate_verifier(Arc::new(Verifier {
            chain,
            any_name: self.check != Check::Name,
            provider,
        }));
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = certificates(&identity.certificate)?;
                let key = PrivateKeyDer::from_pem_file(&identity.key)
                    .map_err(|error| TlsError::new(&identity.key, &error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| TlsError::new(&identity.key, &error))?
            }
        };
        Ok(Arc::new(config))
    }
}

impl Roots {
    fn path(&self) -> &Path {
        match self {
            Self::System => Path::new("certificates of the system"),
            Self::File(path) | Self::Directory(path) => path,
        }
    }

    fn read(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::System => {
                let loaded = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(loaded.certs);
            }
            Self::File(path) => {
                for certificate in certificates(path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| TlsError::new(path, &error))?;
                }
            }
            Self::Directory(path) => {
                let at_fault = |error: io::Error| TlsError::new(path, &error);
                for entry in fs::read_dir(path).map_err(at_fault)? {
                    // What is no certificate lies beside them in many systems.
                    let found = certificates(&entry.map_err(at_fault)?.path());
                    roots.add_parsable_certificates(found.unwrap_or_default());
                }
            }
        }
        if roots.is_empty() {
            return Err(TlsError::new(self.path(), &"no certificate found"));
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let at_fault = |error: rustls::pki_types::pem::Error| TlsError::new(path, &error);
    let found = CertificateDer::pem_file_iter(path)
        .map_err(at_fault)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(at_fault)?;
    if found.is_empty() {
        return Err(TlsError::new(path, &"no certificate found"));
    }
    Ok(found)
}

/// Checks what [`Check`] says. Signatures of the handshake are checked in any case.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(certificate, issuers, name, ocsp, now) {
            // The name is looked at when all else is found right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let tls = Tls {
            roots: Roots::File("/no/such/roots.pem".into()),
            ..Tls::default()
        };
        let error = tls.client().unwrap_err();
        assert!(
            error.to_string().starts_with("/no/such/roots.pem: "),
            "{error}"
        );
    }

    #[test]
    fn a_directory_without_certificates_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("README"), "nothing").unwrap();
        let tls = Tls {
            roots: Roots::Directory(directory.path().to_owned()),
            ..Tls::default()
        };
        assert!(
            tls.client()
                .unwrap_err()
                .to_string()
                .ends_with("no certificate found")
        );
    }

    #[test]
    fn nothing_is_read_when_nothing_is_checked() {
        let tls = Tls {
            roots: Roots::File("/no/such/roots.pem".into()),
            check: Check::Nothing,
            identity: None,
        };
        tls.client().unwrap();
    }
}
