//! The keys that say which servers there are and how to connect to them.

use std::path::Path;
use std::time::Duration;

use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::stream::host_port;
use postkeep_remote::tls::{Keys, Stamps, Tls};

/// What the hosts are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// Servers with the same data, any of them.
    Servers,
    /// Sentinels, which know the server that has the data under this name.
    Sentinels { master: Vec<u8>, login: Login },
    /// Some of the nodes of a cluster.
    Cluster,
}

/// Who we are.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Login {
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
}

/// What makes connections equal. Without `Debug`: there are passwords in it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    pub hosts: Vec<Host>,
    pub mode: Mode,
    pub login: Login,
    pub database: i32,
    pub tls: Option<Tls>,
    /// The name that certificates have, when it is not that of the host.
    pub server_name: Option<String>,
    pub limits: Limits,
    /// With new certificates come new connections.
    stamps: Stamps,
}

impl Settings {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(config: &Config) -> Result<Self, ConfigError> {
        let login = read_login(config, "user", "password")?;
        let cluster = config.boolean("cluster", false)?;
        let mode = match config.optional("sentinel_master")? {
            Some(_) if cluster => {
                return Err(config.unusable("sentinel_master", &"a cluster has no sentinels"));
            }
            Some(master) => Mode::Sentinels {
                master,
                login: read_login(config, "sentinel_user", "sentinel_password")?,
            },
            None if cluster => Mode::Cluster,
            None => Mode::Servers,
        };
        let port = match mode {
            Mode::Sentinels { .. } => "26379",
            Mode::Servers | Mode::Cluster => "6379",
        };
        let list = config.text("hosts", "localhost", 1, 0)?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let hosts = list
            .split([',', ' ', '\t', '\r', '\n'])
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                read_host(entry, port)
                    .map_err(|why| config.unusable("hosts", &format_args!("{entry}: {why}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if hosts.is_empty() {
            return Err(config.unusable("hosts", &"there is none"));
        }
        let database = config.int("database", 0, 0, 1_000_000)?;
        if database < 0 {
            return Err(config.unusable("database", &"expecting 0 or more"));
        }
        if cluster && database != 0 {
            return Err(config.unusable("database", &"a cluster has only database 0"));
        }
        // Servers come back within moments, or another one takes over.
        let limits = Limits {
            rest: Duration::from_secs(1),
            breaker_rest: Duration::from_secs(1),
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            ..Limits::default()
        };
        let limits = limits.read(config)?;
        let server_name = config
            .optional("tls_server_name")?
            .map(|name| String::from_utf8_lossy(&name).into_owned());
        // TLS is asked for by any of its keys.
        let keys = Keys::read(config)?;
        let any = server_name.is_some() || keys.given.is_some() || keys.verify.is_some();
        let tls = any.then(|| keys.tls());
        Ok(Self {
            stamps: Stamps::of(tls.as_ref()),
            hosts,
            mode,
            login,
            database,
            tls,
            server_name,
            limits,
        })
    }

    /// The files that are read beside the configuration.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.stamps.files()
    }
}

fn read_login(config: &Config, user: &str, password: &str) -> Result<Login, ConfigError> {
    let login = Login {
        user: config.optional(user)?,
        password: config.optional(password)?,
    };
    if login.user.is_some() && login.password.is_none() {
        return Err(config.unusable(user, &format_args!("there is no {password}")));
    }
    Ok(login)
}

fn read_host(entry: &str, default_port: &str) -> Result<Host, String> {
    let host = |place| Host {
        text: entry.to_owned(),
        place,
    };
    if let Some(path) = entry.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err("expecting unix:/path".to_owned());
        }
        return Ok(host(Place::Unix(path.into())));
    }
    let address = entry.strip_prefix("inet:").unwrap_or(entry);
    let has_port = match address.rsplit_once(']') {
        Some((_, after)) => !after.is_empty(),
        None => address.contains(':'),
    };
    let address = if has_port {
        address.to_owned()
    } else {
        format!("{address}:{default_port}")
    };
    let (name, port) = host_port(&address, None).map_err(str::to_owned)?;
    Ok(host(Place::Inet(name, port)))
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;
    use postkeep_remote::tls::{Check, Roots};

    use super::*;

    fn read(text: &str) -> Result<Settings, ConfigError> {
        let config = Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7)?;
        Settings::read(&config)
    }

    #[test]
    fn hosts_have_ports() {
        let places = |text: &str| -> Vec<_> {
            let hosts = read(text).ok().unwrap().hosts;
            hosts.into_iter().map(|host| host.place).collect()
        };
        let inet = |host: &str, port: &str| Place::Inet(host.to_owned(), port.to_owned());
        assert_eq!(places(""), [inet("localhost", "6379")]);
        assert_eq!(
            places("hosts = a, inet:b:7 [::1] [::1]:8 unix:/s\n"),
            [
                inet("a", "6379"),
                inet("b", "7"),
                inet("::1", "6379"),
                inet("::1", "8"),
                Place::Unix("/s".into())
            ]
        );
        assert_eq!(
            places("hosts = a\nsentinel_master = m\n"),
            [inet("a", "26379")]
        );
        for bad in [
            "hosts =",
            "hosts = ,",
            "hosts = unix:s",
            "hosts = a:",
            "hosts = a_b$:1",
        ] {
            assert!(read(&format!("{bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for bad in [
            "cluster = yes\nsentinel_master = m",
            "cluster = yes\ndatabase = 1",
            "user = u",
            "tls_key_file = k",
            "tls_CAfile = a\ntls_CApath = b",
            "database = -1",
        ] {
            assert!(read(&format!("{bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_key_of_tls_asks_for_it() {
        let tls = |text: &str| read(text).ok().unwrap().tls;
        assert_eq!(tls(""), None);
        assert_eq!(tls("tls_verify_cert = yes\n"), Some(Tls::default()));
        assert_eq!(tls("tls_server_name = x\n"), Some(Tls::default()));
        assert_eq!(tls("tls_verify_cert = no\n").unwrap().check, Check::Nothing);
        assert_eq!(
            tls("tls_CAfile = /c\n").unwrap().roots,
            Roots::File("/c".into())
        );
    }
}
