//! What a table's configuration says about its servers.

use std::path::PathBuf;

use log::warn;
use postkeep_conf::Release;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::stream::service_port;
use postkeep_remote::tls::{Check, Identity, Roots, Stamps, Tls};
use postkeep_table::Printable;

use crate::mysql::option_file::Options;

/// Where the server's socket is when nobody says.
const SOCKET: &str = "/run/mysqld/mysqld.sock";

/// The server's port when nobody says.
const PORT: &str = "3306";

/// All that makes connections equal: tables that agree in it share them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
    pub(super) charset: String,
    /// The socket that `localhost` stands for.
    pub(super) socket: PathBuf,
    pub(super) tls: Option<Tls>,
    pub(super) tls_required: bool,
    /// Of the files that `tls` names.
    pub(super) stamps: Stamps,
    pub(super) limits: Limits,
}

impl Settings {
    /// Reads all keys but those of statements and results, in two parts, between which the reference reads those.
    ///
    /// - `options`: of the option file
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(config: &Config, options: &Options) -> Result<Self, ConfigError> {
        let text = |key: &str, value: Vec<u8>| {
            String::from_utf8(value).map_err(|_| {
                ConfigError::new(format!("{}: {key} is not valid UTF-8", config.name()))
            })
        };
        let or_option = |key: &str, option: &str| {
            let given = config.optional(key)?;
            let given = given.map(|value| text(key, value)).transpose()?;
            Ok::<_, ConfigError>(given.or_else(|| options.text(option).map(str::to_owned)))
        };
        let user = or_option("user", "user")?.unwrap_or_default();
        let password = or_option("password", "password")?.unwrap_or_default();
        let database = text("dbname", config.text("dbname", "", 1, 0)?)?;
        let charset = charset(config, options)?;
        let tls = tls(config, options, &or_option)?;
        let tls_required = config.boolean("tls_required", true)?;
        let defaults = Limits {
            // One lookup at a time finds out whether a server is back, so that it need not be left alone for long.
            rest: std::time::Duration::from_secs(1),
            breaker_rest: std::time::Duration::from_secs(1),
            ..Limits::default()
        };
        Ok(Self {
            hosts: Vec::new(),
            user,
            password,
            database,
            charset,
            socket: options.text("socket").unwrap_or(SOCKET).into(),
            stamps: Stamps::of(tls.as_ref()),
            tls,
            tls_required,
            limits: defaults.read(config)?,
        })
    }

    /// Reads the key `hosts`, which comes last.
    ///
    /// # Errors
    /// [`ConfigError`] for a service that is not known.
    pub(super) fn read_hosts(
        &mut self,
        config: &Config,
        options: &Options,
    ) -> Result<(), ConfigError> {
        let list = config.text("hosts", "localhost", 0, 0)?;
        let list = String::from_utf8_lossy(&list);
        let port = options.text("port").unwrap_or(PORT);
        let mut hosts = list
            .split([',', ' ', '\t', '\r', '\n'])
            .filter(|entry| !entry.is_empty())
            .map(|entry| host(entry, port))
            .collect::<Result<Vec<_>, _>>()?;
        if hosts.is_empty() {
            hosts.push(host("localhost", port)?);
        }
        if hosts.len() == 1 && config.release() >= Release::V3_10 {
            // A single server has a second chance within a lookup.
            hosts.push(hosts[0].clone());
        }
        self.hosts = hosts;
        Ok(())
    }
}

/// The connection's character set.
fn charset(config: &Config, options: &Options) -> Result<String, ConfigError> {
    let given = config.optional("charset")?;
    let given = given.map(|name| String::from_utf8_lossy(&name).into_owned());
    let before = options
        .text("default-character-set")
        .filter(|_| config.release() < Release::V3_9);
    let name = given.or_else(|| before.map(str::to_owned));
    let name = name.unwrap_or_else(|| "utf8mb4".to_owned());
    let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if !name.chars().all(letters) {
        return Err(ConfigError::new(format!(
            "{}: bad character set name: charset = {}",
            config.name(),
            Printable(name.as_bytes())
        )));
    }
    Ok(name)
}

type OrOption<'a> = &'a dyn Fn(&str, &str) -> Result<Option<String>, ConfigError>;

/// TLS is asked for by any of its keys, as long as `tls_verify_cert` does not say no to nothing.
fn tls(
    config: &Config,
    options: &Options,
    or_option: OrOption<'_>,
) -> Result<Option<Tls>, ConfigError> {
    let path = |key, option| Ok::<_, ConfigError>(or_option(key, option)?.map(PathBuf::from));
    let key = path("tls_key_file", "ssl-key")?;
    let certificate = path("tls_cert_file", "ssl-cert")?;
    let file = path("tls_CAfile", "ssl-ca")?;
    let directory = path("tls_CApath", "ssl-capath")?;
    let ciphers = or_option("tls_ciphers", "ssl-cipher")?;
    let verify = config
        .optional_boolean("tls_verify_cert")?
        .or_else(|| options.is_on("ssl-verify-server-cert"));
    if ciphers.is_some() {
        warn!(
            "{}: tls_ciphers is not used: there are no weak ciphers to leave out",
            config.name()
        );
    }
    let asked = key.is_some()
        || certificate.is_some()
        || file.is_some()
        || directory.is_some()
        || ciphers.is_some()
        || verify == Some(true)
        || options.is_on("ssl") == Some(true);
    if !asked {
        return Ok(None);
    }
    let has_roots = file.is_some() || directory.is_some();
    Ok(Some(Tls {
        check: match verify {
            Some(true) => Check::Name,
            _ if has_roots => Check::Chain,
            _ => Check::Nothing,
        },
        roots: file
            .map(Roots::File)
            .or(directory.map(Roots::Directory))
            .unwrap_or_default(),
        // Either may be in the other's file.
        identity: certificate.clone().or(key.clone()).map(|first| Identity {
            key: key.unwrap_or_else(|| first.clone()),
            certificate: first,
        }),
    }))
}

/// One entry of `hosts`.
fn host(entry: &str, default_port: &str) -> Result<Host, ConfigError> {
    let place = if let Some(path) = entry.strip_prefix("unix:") {
        Place::Unix(path.into())
    } else {
        let name = entry.strip_prefix("inet:").unwrap_or(entry);
        let (name, port) = match name.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':')),
            None => match name.rsplit_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (name, None),
            },
        };
        let port = match port {
            None => default_port.to_owned(),
            Some(service) => match service_port(service) {
                None => {
                    let service = Printable(service.as_bytes());
                    return Err(ConfigError::new(format!("unknown service: {service}/tcp")));
                }
                Some(0) => default_port.to_owned(),
                Some(port) => port.to_string(),
            },
        };
        Place::Inet(name.to_owned(), port)
    };
    Ok(Host {
        text: Printable(entry.as_bytes()).to_string(),
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, release: Release) -> Result<Settings, ConfigError> {
        let text = format!("dbname = d\n{text}");
        let config = Config::parse(b"/t.cf", text.into_bytes(), release)?;
        let options = Options::default();
        let mut settings = Settings::read(&config, &options)?;
        settings.read_hosts(&config, &options)?;
        Ok(settings)
    }

    fn hosts(list: &str) -> Vec<Place> {
        let settings = read(&format!("hosts = {list}\n"), Release::V3_7).unwrap();
        settings.hosts.into_iter().map(|host| host.place).collect()
    }

    fn inet(host: &str, port: &str) -> Place {
        Place::Inet(host.to_owned(), port.to_owned())
    }

    #[test]
    fn entries_of_hosts() {
        assert_eq!(hosts(""), [inet("localhost", "3306")]);
        assert_eq!(
            hosts("unix:/a:b, inet:h h2:1 inet:h:smtp\t::1 [::1] [::2]:5 x:0 inet:"),
            [
                Place::Unix("/a:b".into()),
                inet("h", "3306"),
                inet("h2", "1"),
                inet("h", "25"),
                inet(":", "1"),
                inet("::1", "3306"),
                inet("::2", "5"),
                inet("x", "3306"),
                inet("", "3306"),
            ]
        );
        for (list, fault) in [
            ("h:nosuch", "unknown service: nosuch/tcp"),
            ("h:", "unknown service: /tcp"),
            ("[::1]:x", "unknown service: x/tcp"),
        ] {
            let error = read(&format!("hosts = {list}\n"), Release::V3_7)
                .err()
                .unwrap();
            assert_eq!(error.to_string(), fault);
        }
        let single = read("hosts = h\n", Release::V3_10).unwrap();
        assert_eq!(single.hosts.len(), 2);
    }

    #[test]
    fn what_asks_for_tls() {
        let tls = |text: &str| read(text, Release::V3_7).unwrap().tls;
        assert_eq!(tls(""), None);
        assert_eq!(tls("tls_verify_cert = no\n"), None);
        assert_eq!(tls("tls_verify_cert = yes\n").unwrap().roots, Roots::System);
        let check = |text: &str| tls(text).unwrap().check;
        assert_eq!(check("tls_CAfile = /c\n"), Check::Chain);
        assert_eq!(
            check("tls_CApath = /c\ntls_verify_cert = no\n"),
            Check::Chain
        );
        assert_eq!(
            check("tls_CAfile = /c\ntls_verify_cert = yes\n"),
            Check::Name
        );
        assert_eq!(check("tls_ciphers = x\n"), Check::Nothing);
        let identity = tls("tls_cert_file = /c\n").unwrap().identity.unwrap();
        assert_eq!(identity.key, std::path::Path::new("/c"));
    }

    #[test]
    fn names_of_character_sets() {
        let charset = |text: &str| read(text, Release::V3_7).map(|settings| settings.charset);
        assert_eq!(charset("").unwrap(), "utf8mb4");
        assert_eq!(charset("charset = latin1\n").unwrap(), "latin1");
        assert!(charset("charset = x'; DROP\n").is_err());
    }
}
