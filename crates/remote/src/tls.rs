//! TLS towards servers: what a table's configuration says about it, as a configuration of the TLS library.
//!
//! One cryptographic provider for all types, named here, so that no crate below has to find one.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use thiserror::Error as ThisError;

use crate::config::{Config, ConfigError};

/// For types that need nothing else of the TLS library.
pub use rustls::ClientConfig;
pub use rustls::pki_types::ServerName;

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

/// The file with the certificates of the system, for a library that wants a file of its own; `None` where there is none.
///
/// What the environment says (`SSL_CERT_FILE`) goes before the usual places.
pub fn system_file() -> Option<PathBuf> {
    const USUAL: [&str; 5] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = USUAL.iter().map(PathBuf::from);
    named.into_iter().chain(usual).find(|path| path.is_file())
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

/// The keys `tls_CAfile`, `tls_CApath`, `tls_cert_file`, `tls_key_file` and `tls_verify_cert` of a table without a
/// reference that has its own.
#[derive(Clone, Debug)]
pub struct Keys {
    /// As [`Tls::roots`].
    pub roots: Roots,
    /// As [`Tls::identity`].
    pub identity: Option<Identity>,
    /// `tls_verify_cert`, when it is there.
    pub verify: Option<bool>,
    /// One of the other keys that is there.
    pub given: Option<&'static str>,
}

impl Keys {
    /// Reads them.
    ///
    /// # Errors
    /// Two places with roots, a key without its certificate, a `tls_verify_cert` that is neither yes nor no.
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        let mut given = None;
        let mut path = |key| {
            let found = config.optional(key)?;
            if found.is_some() {
                given = given.or(Some(key));
            }
            Ok(found.map(|text| PathBuf::from(std::ffi::OsString::from_vec(text))))
        };
        let (file, directory) = (path("tls_CAfile")?, path("tls_CApath")?);
        let (certificate, key) = (path("tls_cert_file")?, path("tls_key_file")?);
        let roots = match (file, directory) {
            (Some(_), Some(_)) => {
                return Err(config.unusable("tls_CApath", &"there is a tls_CAfile, too"));
            }
            (Some(file), None) => Roots::File(file),
            (None, Some(directory)) => Roots::Directory(directory),
            (None, None) => Roots::System,
        };
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), key) => Some(Identity {
                key: key.unwrap_or_else(|| certificate.clone()),
                certificate,
            }),
            (None, Some(_)) => {
                return Err(config.unusable("tls_key_file", &"there is no tls_cert_file"));
            }
        };
        Ok(Self {
            roots,
            identity,
            verify: config.optional_boolean("tls_verify_cert")?,
            given,
        })
    }

    /// What they say; the name is checked unless `tls_verify_cert` says no.
    pub fn tls(self) -> Tls {
        Tls {
            roots: self.roots,
            check: match self.verify {
                Some(false) => Check::Nothing,
                None | Some(true) => Check::Name,
            },
            identity: self.identity,
        }
    }
}

/// What tells a file from the one that was there before: its number, size, and the seconds and nanoseconds of its time.
type Stamp = (u64, u64, i64, i64);

/// The files of a [`Tls`] as they were, for what makes connections equal: with new certificates come new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

impl Stamps {
    /// The files as they are now.
    pub fn of(tls: Option<&Tls>) -> Self {
        let files = tls.map(Tls::files).unwrap_or_default();
        let stamped = files.into_iter().map(|file| {
            let stamp = fs::metadata(file)
                .ok()
                .map(|found| (found.ino(), found.size(), found.mtime(), found.mtime_nsec()));
            (file.to_owned(), stamp)
        });
        Self(stamped.collect())
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(file, _)| file.as_path())
    }
}

impl Tls {
    /// The files and directories that it names.
    pub fn files(&self) -> Vec<&Path> {
        let mut files = Vec::new();
        if let Roots::File(path) | Roots::Directory(path) = &self.roots {
            files.push(path.as_path());
        }
        if let Some(identity) = &self.identity {
            files.extend([&identity.certificate, &identity.key].map(PathBuf::as_path));
        }
        files
    }

    /// Reads the files and makes a configuration of them. This reads files, so it belongs where tables are opened.
    ///
    /// # Errors
    /// A file that cannot be read, or holds nothing of the kind that it should.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.client_with_alias(None)
    }

    /// The same, where a certificate for the second name will do, too, when the first one is asked for.
    ///
    /// # Errors
    /// As of [`Tls::client`].
    pub fn client_with_alias(
        &self,
        alias: Option<(&str, &str)>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let parse = |name: &str| ServerName::try_from(name.to_owned()).ok();
        let alias = alias.and_then(|(name, other)| Some((parse(name)?, parse(other)?)));
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
            alias,
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
    /// Another name for a name.
    alias: Option<(ServerName<'static>, ServerName<'static>)>,
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
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if let Some((asked, other)) = &self.alias
                && asked == name =>
            {
                chain.verify_server_cert(certificate, issuers, other, ocsp, now)
            }
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

    fn keys(text: &str) -> Result<Keys, ConfigError> {
        let release = postkeep_conf::Release::V3_7;
        Keys::read(&Config::parse(b"/t.cf", text.as_bytes().to_vec(), release)?)
    }

    #[test]
    fn keys_say_whom_to_trust_and_who_we_are() {
        let none = keys("").unwrap();
        assert_eq!((none.given, none.verify), (None, None));
        assert_eq!(none.tls(), Tls::default());
        let some = keys("tls_CAfile = /ca\ntls_cert_file = /me\ntls_verify_cert = no\n").unwrap();
        assert_eq!(some.given, Some("tls_CAfile"));
        let tls = some.tls();
        assert_eq!(tls.check, Check::Nothing);
        let files: Vec<_> = ["/ca", "/me", "/me"].map(Path::new).into();
        assert_eq!(tls.files(), files);
        assert!(keys("tls_CAfile = /ca\ntls_CApath = /d\n").is_err());
        assert!(keys("tls_key_file = /key\n").is_err());
        assert!(keys("tls_verify_cert = perhaps\n").is_err());
    }

    #[test]
    fn another_file_has_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("roots");
        let tls = Tls {
            roots: Roots::File(file.clone()),
            ..Tls::default()
        };
        let stamps = || Stamps::of(Some(&tls));
        let missing = stamps();
        assert_eq!(missing, stamps());
        fs::write(&file, "one").unwrap();
        let first = stamps();
        assert_ne!(first, missing);
        fs::write(&file, "longer").unwrap();
        assert_ne!(first, stamps());
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
