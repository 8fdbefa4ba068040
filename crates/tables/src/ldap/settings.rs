//! What a table's configuration says about its servers.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::{error, warn};
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::hosts::Place;
use postkeep_remote::limits::Limits;
use postkeep_remote::tls::{self, Check, Identity, Roots, Stamps};
use postkeep_table::Printable;
use rustls::ClientConfig;

use crate::ldap::message::{Code, Credentials};
use crate::ldap::url::{Scheme, Url, looks_like};

/// Where a server's socket is when the URL does not say.
const SOCKET: &str = "/var/run/slapd/ldapi";

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) scheme: Scheme,
    pub(super) place: Place,
}

impl Server {
    /// Where the URL points to; `None` when that is no text.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let host = String::from_utf8(url.host.clone()).ok()?;
        let given = |host: &str, default: &str| {
            let host = if host.is_empty() { default } else { host };
            host.to_owned()
        };
        let place = match url.scheme {
            Scheme::Ldapi => Place::Unix(given(&host, SOCKET).into()),
            scheme => {
                let port = if scheme == Scheme::Ldaps { 636 } else { 389 };
                let port = url.port.unwrap_or(port).to_string();
                Place::Inet(given(&host, "localhost"), port)
            }
        };
        Some(Self {
            scheme: url.scheme,
            place,
        })
    }
}

/// TLS, as it was found when the table was opened.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    /// Or why there is none.
    pub(super) config: Result<Arc<ClientConfig>, String>,
    /// The certificate is not looked at.
    pub(super) anybody: bool,
}

/// All that makes connections equal: tables that agree in it share them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    /// The servers as URLs, with blanks between them; what warnings call them.
    pub(super) text: String,
    /// In the order in which they are tried; none when one of them cannot be understood.
    pub(super) servers: Vec<Server>,
    pub(super) version: i32,
    pub(super) credentials: Credentials,
    pub(super) start_tls: bool,
    pub(super) chase_referrals: bool,
    pub(super) tls: Option<tls::Tls>,
    /// With new certificates come new connections.
    stamps: Stamps,
    /// For each step of connecting, and for a search.
    pub(super) timeout: Duration,
    pub(super) limits: Limits,
    /// How long a server that cannot be reached is tried after the others.
    pub(super) rest: Duration,
}

/// The servers and the version of the protocol, which are read first.
pub(super) struct Targets {
    text: String,
    servers: Vec<Server>,
    version: i32,
    ldaps: bool,
}

impl Targets {
    /// Reads `server_host`, `server_port` and `version`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(config: &Config) -> Result<Self, ConfigError> {
        let list = config.text("server_host", "localhost", 1, 0)?;
        let port = config.int("server_port", 389, 0, 0)?;
        let name = config.name();
        let mut version = config.int("version", 3, 2, 0)?;
        if version > 3 {
            warn!("dict_ldap_open: {name} Unknown version {version}, using 3.");
            version = 3;
        }
        let mut targets = Self {
            text: String::new(),
            servers: Vec::new(),
            version,
            ldaps: false,
        };
        let mut sound = true;
        let entries = list
            .split(|byte| b", \t\r\n".contains(byte))
            .filter(|entry| !entry.is_empty());
        for entry in entries {
            let shown = Printable(entry).to_string();
            let text = if looks_like(entry) {
                shown
            } else if entry.contains(&b':') {
                format!("ldap://{shown}")
            } else {
                format!("ldap://{shown}:{port}")
            };
            let parsed = Url::parse(if looks_like(entry) {
                entry
            } else {
                text.as_bytes()
            });
            let server = match &parsed {
                Err(fault) if looks_like(entry) => {
                    let code = Code(*fault as i32);
                    error!(
                        "dict_ldap_open: error parsing URL {text}: {}: {}; skipping",
                        code.0,
                        code.text()
                    );
                    continue;
                }
                parsed => parsed.as_ref().ok().and_then(Server::of),
            };
            if !targets.text.is_empty() {
                targets.text.push(' ');
            }
            targets.text.push_str(&text);
            let Some(server) = server else {
                sound = false;
                continue;
            };
            if server.scheme != Scheme::Ldap && targets.version != 3 {
                warn!(
                    "dict_ldap_open: URL scheme {} requires protocol version 3",
                    server.scheme.name()
                );
                targets.version = 3;
            }
            targets.ldaps |= server.scheme == Scheme::Ldaps;
            targets.servers.push(server);
        }
        if !sound {
            targets.servers.clear();
        } else if targets.servers.is_empty() {
            targets.servers.push(Server {
                scheme: Scheme::Ldap,
                place: Place::Inet("localhost".to_owned(), "389".to_owned()),
            });
        }
        Ok(targets)
    }
}

/// What `bind` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bind {
    No,
    Simple,
    Sasl,
}

/// `bind`, `bind_dn` and `bind_pw`.
pub(super) struct Identification {
    bind: Bind,
    name: Vec<u8>,
    password: Vec<u8>,
}

impl Identification {
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(config: &Config) -> Result<Self, ConfigError> {
        let word = config.text("bind", "yes", 1, 0)?;
        let bind = match &word.to_ascii_lowercase()[..] {
            b"no" | b"none" => Bind::No,
            b"yes" | b"simple" => Bind::Simple,
            b"sasl" => Bind::Sasl,
            _ => {
                return Err(ConfigError::new(format!(
                    "{}: unsupported parameter value: bind = {}",
                    config.name(),
                    Printable(&word)
                )));
            }
        };
        Ok(Self {
            bind,
            name: config.text("bind_dn", "", 0, 0)?,
            password: config.text("bind_pw", "", 0, 0)?,
        })
    }

    fn credentials(self, config: &Config) -> Result<Credentials, ConfigError> {
        let Self { name, password, .. } = self;
        match self.bind {
            Bind::No => Ok(Credentials::None),
            Bind::Simple => Ok(Credentials::Simple { name, password }),
            Bind::Sasl => {
                let mechanisms = config.text("sasl_mechs", "", 0, 0)?;
                let authorize = config.text("sasl_authz_id", "", 0, 0)?;
                let least = config.int("sasl_minssf", 0, 0, 4096)?;
                let external = mechanisms
                    .split(|byte| b", \t\r\n".contains(byte))
                    .any(|word| word.eq_ignore_ascii_case(b"EXTERNAL"));
                if !external {
                    return Err(ConfigError::new(format!(
                        "{}: unsupported parameter value: sasl_mechs = {}: EXTERNAL is the only one that is supported",
                        config.name(),
                        Printable(&mechanisms)
                    )));
                }
                Ok(Credentials::External {
                    name,
                    authorize,
                    least_strength: u32::try_from(least).unwrap_or(0),
                })
            }
        }
    }
}

impl Settings {
    /// Reads the keys of SASL and TLS, and the limits of the pool.
    ///
    /// - `timeout`: in seconds
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(
        config: &Config,
        targets: Targets,
        identification: Identification,
        chase_referrals: bool,
        timeout: i32,
    ) -> Result<Self, ConfigError> {
        let Targets {
            text,
            servers,
            mut version,
            ldaps,
        } = targets;
        let credentials = identification.credentials(config)?;
        let start_tls = config.boolean("start_tls", false)?;
        if start_tls && version < 3 {
            warn!(
                "dict_ldap_open: {} start_tls requires protocol version 3",
                config.name()
            );
            version = 3;
        }
        let keys = tls_keys(config)?;
        let uses_tls = start_tls || ldaps;
        if uses_tls && let Some(key) = keys.unused {
            warn!("{}: {key} is not used", config.name());
        }
        // Without an end for the reference, which is an hour here.
        let timeout = u64::try_from(timeout).unwrap_or(0);
        let timeout = Duration::from_secs(if timeout == 0 {
            3600
        } else {
            timeout.min(3600)
        });
        let steps = u32::try_from(3 * servers.len().clamp(1, 20)).unwrap_or(3);
        let defaults = Limits {
            connect: timeout * steps,
            answer: timeout,
            // One lookup at a time finds out whether a server is back, so that it need not be left alone for long.
            breaker_rest: Duration::from_secs(1),
            ..Limits::default()
        };
        let mut limits = defaults.read(config)?;
        // They are one to the pool, and each rests for itself.
        let rest = std::mem::replace(&mut limits.rest, Duration::ZERO);
        let tls = (uses_tls || chase_referrals).then_some(keys.tls);
        Ok(Self {
            stamps: Stamps::of(tls.as_ref()),
            text,
            servers,
            version,
            credentials,
            start_tls,
            chase_referrals,
            tls,
            timeout,
            limits,
            rest,
        })
    }

    /// The files that TLS needs.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.stamps.files()
    }

    /// Reads these files. What is wrong with them is told when TLS is needed.
    pub(super) fn open_tls(&self) -> Option<Tls> {
        let tls = self.tls.as_ref()?;
        let anybody = tls.check == Check::Nothing;
        let roots_are_named = tls.roots != Roots::System;
        let checked = tls::Tls {
            check: Check::Chain,
            ..tls.clone()
        };
        // They must be there although they are not used, as in the reference.
        let found = if anybody && roots_are_named {
            checked.client().map(|_| ())
        } else {
            Ok(())
        };
        let own_name = host_name();
        let alias = own_name.as_deref().map(|name| ("localhost", name));
        let config = found.and_then(|()| tls.client_with_alias(alias));
        Some(Tls {
            config: config.map_err(|error| error.to_string()),
            anybody,
        })
    }
}

/// The name of this machine: the reference's library wants it in a certificate when it asks `localhost`.
fn host_name() -> Option<String> {
    postkeep_sys::process::host_name().ok()?.into_string().ok()
}

struct TlsKeys {
    tls: tls::Tls,
    /// A key that is set and has no meaning here.
    unused: Option<&'static str>,
}

fn tls_keys(config: &Config) -> Result<TlsKeys, ConfigError> {
    let path = |key: &str| {
        let value = config.optional(key)?;
        Ok::<_, ConfigError>(value.map(|bytes| PathBuf::from(OsString::from_vec(bytes))))
    };
    let check = if config.boolean("tls_require_cert", false)? {
        Check::Name
    } else {
        Check::Nothing
    };
    let file = path("tls_ca_cert_file")?;
    let directory = path("tls_ca_cert_dir")?;
    let certificate = path("tls_cert")?;
    let key = path("tls_key")?;
    let mut unused = None;
    for name in ["tls_random_file", "tls_cipher_suite"] {
        if config.optional(name)?.is_some() {
            unused = Some(name);
        }
    }
    Ok(TlsKeys {
        tls: tls::Tls {
            check,
            roots: file
                .map(Roots::File)
                .or(directory.map(Roots::Directory))
                .unwrap_or_default(),
            identity: certificate.map(|certificate| Identity {
                key: key.unwrap_or_else(|| certificate.clone()),
                certificate,
            }),
        },
        unused,
    })
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;

    use super::*;

    fn read(text: &str) -> Result<Settings, ConfigError> {
        let config = Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7)?;
        let targets = Targets::read(&config)?;
        let identification = Identification::read(&config)?;
        Settings::read(&config, targets, identification, false, 10)
    }

    fn inet(host: &str, port: &str) -> Place {
        Place::Inet(host.to_owned(), port.to_owned())
    }

    #[test]
    fn lists_of_servers() {
        let read = |text: &str| read(text).unwrap();
        let settings =
            read("server_host = h, i:1\tldap://[::1]:2 ldaps://j/ ldapi://%2Fs\nserver_port = 3\n");
        assert_eq!(
            settings.text,
            "ldap://h:3 ldap://i:1 ldap://[::1]:2 ldaps://j/ ldapi://%2Fs"
        );
        let places: Vec<_> = settings
            .servers
            .iter()
            .map(|server| &server.place)
            .collect();
        assert_eq!(
            places,
            [
                &inet("h", "3"),
                &inet("i", "1"),
                &inet("::1", "2"),
                &inet("j", "636"),
                &Place::Unix("/s".into())
            ]
        );
        assert!(settings.tls.is_some());
        let settings = read("");
        assert_eq!(settings.text, "ldap://localhost:389");
        assert!(settings.tls.is_none());
        // The whole list is refused by the reference's library, but a URL that is none is left out.
        assert!(read("server_host = h, ::1\n").servers.is_empty());
        let settings = read("server_host = ldap://h:x, i\n");
        assert_eq!(settings.text, "ldap://i:389");
        assert_eq!(read("version = 2\nserver_host = ldaps://h\n").version, 3);
        assert_eq!(read("version = 2\n").version, 2);
        assert_eq!(read("version = 9\n").version, 3);
    }

    #[test]
    fn credentials_and_faults() {
        let credentials = |text: &str| read(text).map(|settings| settings.credentials);
        let simple = Credentials::Simple {
            name: b"cn=x".to_vec(),
            password: b"p".to_vec(),
        };
        assert!(credentials("bind_dn = cn=x\nbind_pw = p\n").unwrap() == simple);
        assert!(credentials("bind = None\nbind_dn = cn=x\n").unwrap() == Credentials::None);
        assert!(matches!(
            credentials("bind = SASL\nsasl_mechs = plain external\nsasl_minssf = 71\n").unwrap(),
            Credentials::External {
                least_strength: 71,
                ..
            }
        ));
        let fault = |text: &str| read(text).err().unwrap().to_string();
        assert_eq!(
            fault("bind = x\n"),
            "/t.cf: unsupported parameter value: bind = x"
        );
        assert_eq!(
            fault("bind = sasl\nsasl_mechs = GSSAPI\n"),
            "/t.cf: unsupported parameter value: sasl_mechs = GSSAPI: EXTERNAL is the only one that is supported"
        );
        assert_eq!(
            fault("start_tls = 1\n"),
            "/t.cf: bad boolean configuration: start_tls = 1"
        );
    }

    #[test]
    fn tls_keys_and_limits() {
        let settings = read("start_tls = yes\ntls_cert = /c\ntls_require_cert = yes\n").unwrap();
        let tls = settings.tls.clone().unwrap();
        assert_eq!((tls.check, &tls.roots), (Check::Name, &Roots::System));
        assert_eq!(tls.identity.unwrap().key, Path::new("/c"));
        assert!(settings.open_tls().unwrap().config.is_err());
        let settings = read("start_tls = yes\ntls_ca_cert_file = /no/such\n").unwrap();
        assert!(settings.open_tls().unwrap().config.is_err());
        let settings = read("retry_interval = 5\n").unwrap();
        assert_eq!(settings.rest, Duration::from_secs(5));
        assert_eq!(
            (settings.limits.rest, settings.limits.answer),
            (Duration::ZERO, Duration::from_secs(10))
        );
        assert_eq!(settings.limits.connect, Duration::from_secs(30));
    }
}
