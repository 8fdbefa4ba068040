//! Where to connect and how.
//!
//! References: libpq's `connectOptions2()`.

use postkeep_remote::tls::{Check, Identity, Roots, Tls};

use super::conninfo::Settings;
use super::text;

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Attributes {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// One of the servers of a target.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Server {
    /// The path of a socket.
    Unix(String),
    /// The name that was asked for, the address where there is one, and the port.
    Inet {
        name: String,
        address: Option<String>,
        port: u16,
    },
    /// One that cannot be connected to, and why.
    Wrong(String),
}

/// A target: what one entry of `hosts` stands for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) servers: Vec<Server>,
    /// Empty for the name of the user that the process runs as.
    pub(super) user: Vec<u8>,
    pub(super) password: Vec<u8>,
    /// Empty for the name of the user.
    pub(super) dbname: Vec<u8>,
    /// More parameters of the session.
    pub(super) session: Vec<(&'static str, Vec<u8>)>,
    pub(super) mode: SslMode,
    pub(super) tls: Tls,
    pub(super) attributes: Attributes,
    /// Seconds for each server; zero for no limit beside the pool's.
    pub(super) connect_timeout: u32,
}

/// Debian's; where a socket is when no host is named.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

const DEFAULT_PORT: u16 = 5432;

impl Target {
    /// Makes sense of parameters.
    ///
    /// # Errors
    /// Libpq's reason, with the end of its line.
    pub(super) fn new(mut settings: Settings) -> Result<Self, String> {
        let mut take = |name| settings.remove(name).unwrap_or_default();
        let mut setting = |name| text(&take(name));
        let servers = servers(&setting("host"), &setting("hostaddr"), &setting("port"))?;
        let invalid = |name: &str, value: &str| format!("invalid {name} value: \"{value}\"\n");
        let mode = match setting("sslmode").as_str() {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "" | "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            other => return Err(invalid("sslmode", other)),
        };
        let attributes = match setting("target_session_attrs").as_str() {
            "" | "any" => Attributes::Any,
            "read-write" => Attributes::ReadWrite,
            "read-only" => Attributes::ReadOnly,
            "primary" => Attributes::Primary,
            "standby" => Attributes::Standby,
            "prefer-standby" => Attributes::PreferStandby,
            other => return Err(invalid("target_session_attrs", other)),
        };
        let timeout = setting("connect_timeout");
        let connect_timeout = match timeout.trim() {
            "" => 0,
            number => match number.parse::<i32>() {
                Ok(seconds) => u32::try_from(seconds).unwrap_or(0),
                Err(_) => return Err(not_a_number(&timeout, "connect_timeout")),
            },
        };
        let tls = tls(
            mode,
            &setting("sslrootcert"),
            &setting("sslcert"),
            &setting("sslkey"),
        );
        let mut application = take("application_name");
        if application.is_empty() {
            application = take("fallback_application_name");
        }
        let mut session = vec![
            ("options", take("options")),
            ("application_name", application),
            ("client_encoding", take("client_encoding")),
        ];
        session.retain(|(_, value)| !value.is_empty());
        Ok(Self {
            servers,
            user: take("user"),
            password: take("password"),
            dbname: take("dbname"),
            session,
            mode,
            tls,
            attributes,
            connect_timeout,
        })
    }
}

fn not_a_number(value: &str, name: &str) -> String {
    format!("invalid integer value \"{value}\" for connection option \"{name}\"\n")
}

fn port(value: &str) -> Result<u16, String> {
    let number = value.trim();
    if number.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let number: i32 = number.parse().map_err(|_| not_a_number(value, "port"))?;
    u16::try_from(number)
        .ok()
        .filter(|&port| port > 0)
        .ok_or_else(|| format!("invalid port number: \"{value}\"\n"))
}

fn servers(hosts: &str, addresses: &str, ports: &str) -> Result<Vec<Server>, String> {
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    let (names, given) = (list(hosts), list(addresses));
    let has_addresses = !addresses.is_empty();
    let count = if has_addresses {
        given.len()
    } else {
        names.len()
    };
    if has_addresses && !hosts.is_empty() && names.len() != count {
        return Err(format!(
            "could not match {} host names to {count} hostaddr values\n",
            names.len()
        ));
    }
    let ports = list(ports);
    if ports.len() != 1 && ports.len() != count {
        return Err(format!(
            "could not match {} port numbers to {count} hosts\n",
            ports.len()
        ));
    }
    Ok((0..count)
        .map(|index| {
            let name = names.get(index).cloned().unwrap_or_default();
            let address = given.get(index).filter(|address| !address.is_empty());
            let port = match port(ports.get(index).unwrap_or(&ports[0])) {
                Ok(port) => port,
                Err(reason) => return Server::Wrong(reason),
            };
            match address {
                None if name.is_empty() || name.starts_with('/') => {
                    let directory = if name.is_empty() {
                        SOCKET_DIRECTORY
                    } else {
                        &name
                    };
                    Server::Unix(format!("{directory}/.s.PGSQL.{port}"))
                }
                address => Server::Inet {
                    name,
                    address: address.cloned(),
                    port,
                },
            }
        })
        .collect())
}

/// Libpq checks the chain as soon as somebody to trust is named, whatever the mode.
fn tls(mode: SslMode, roots: &str, certificate: &str, key: &str) -> Tls {
    let named = !roots.is_empty();
    Tls {
        check: match mode {
            SslMode::VerifyFull => Check::Name,
            SslMode::VerifyCa => Check::Chain,
            _ if named => Check::Chain,
            _ => Check::Nothing,
        },
        roots: match roots {
            "" | "system" => Roots::System,
            file => Roots::File(file.into()),
        },
        identity: (!certificate.is_empty()).then(|| Identity {
            certificate: certificate.into(),
            key: if key.is_empty() { certificate } else { key }.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conninfo::parse;
    use super::*;

    fn target(text: &str) -> Result<Target, String> {
        Target::new(parse(text.as_bytes())?)
    }

    fn reason(text: &str) -> String {
        target(text).err().unwrap()
    }

    #[test]
    fn uris() {
        let found = target(
            "postgresql://us%65r:p%40w@h1:5433,[::1],/db?sslmode=verify-full&sslrootcert=/ca&options=-c%20a%3Db\
             &connect_timeout=3&target_session_attrs=primary",
        );
        // Three hosts, and as many ports.
        let found = found.unwrap();
        let inet = |name: &str, port| Server::Inet {
            name: name.to_owned(),
            address: None,
            port,
        };
        assert!(found.servers[..2] == [inet("h1", 5433), inet("::1", 5432)]);
        assert!(found.servers[2] == Server::Unix("/var/run/postgresql/.s.PGSQL.5432".to_owned()));
        assert_eq!(found.user, b"user");
        assert_eq!(found.password, b"p@w");
        assert_eq!(found.dbname, b"db");
        assert_eq!(found.session, [("options", b"-c a=b".to_vec())]);
        assert_eq!(found.mode, SslMode::VerifyFull);
        assert_eq!(found.tls.check, Check::Name);
        assert_eq!(found.tls.roots, Roots::File("/ca".into()));
        assert_eq!(found.attributes, Attributes::Primary);
        assert_eq!(found.connect_timeout, 3);
        let socket = target("postgres://%2Ftmp%2Fx:7/?user=a&ssl=true&keepalives=1").unwrap();
        assert!(socket.servers == [Server::Unix("/tmp/x/.s.PGSQL.7".to_owned())]);
        assert_eq!(
            (socket.user, socket.mode),
            (b"a".to_vec(), SslMode::Require)
        );
    }

    #[test]
    fn strings() {
        let found =
            target(r" host = h  password='a b\'c\\' dbname=x\ y sslmode=disable port=1 ").unwrap();
        assert_eq!(found.password, br"a b'c\");
        assert_eq!(found.dbname, b"x y");
        assert_eq!(found.mode, SslMode::Disable);
        let addressed = target("host=h hostaddr=127.0.0.1").unwrap();
        assert!(matches!(
            &addressed.servers[0],
            Server::Inet { name, address: Some(address), port: 5432 } if name == "h" && address == "127.0.0.1"
        ));
    }

    #[test]
    fn faults_are_libpq_s() {
        for (text, wanted) in [
            (
                "postgresql:x",
                "missing \"=\" after \"postgresql:x\" in connection info string\n",
            ),
            ("x=1", "invalid connection option \"x\"\n"),
            (
                "host='a",
                "unterminated quoted string in connection info string\n",
            ),
            (
                "postgresql://h/d?bogus=1",
                "invalid URI query parameter: \"bogus\"\n",
            ),
            (
                "postgresql://h/d?a",
                "missing key/value separator \"=\" in URI query parameter: \"a\"\n",
            ),
            (
                "postgresql://h/d?a=b=c",
                "extra key/value separator \"=\" in URI query parameter: \"a\"\n",
            ),
            (
                "postgresql://u%zz@h/d",
                "invalid percent-encoded token: \"u%zz\"\n",
            ),
            (
                "postgresql://u:s%zz@h/d",
                "invalid percent-encoded token: \"...\"\n",
            ),
            (
                "postgresql://u%00@h",
                "forbidden value %00 in percent-encoded value: \"u%00\"\n",
            ),
            (
                "postgresql://[::1]x",
                "unexpected character \"x\" at position 19 in URI (expected \":\" or \"/\"): \"postgresql://[::1]x\"\n",
            ),
            (
                "postgresql://[]",
                "IPv6 host address may not be empty in URI: \"postgresql://[]\"\n",
            ),
            (
                "postgresql://u:p@[",
                "end of string reached when looking for matching \"]\" in IPv6 host address in URI: \"postgresql://u:***@[\"\n",
            ),
            ("sslmode=bogus", "invalid sslmode value: \"bogus\"\n"),
            (
                "target_session_attrs=x",
                "invalid target_session_attrs value: \"x\"\n",
            ),
            (
                "connect_timeout=x",
                "invalid integer value \"x\" for connection option \"connect_timeout\"\n",
            ),
            (
                "host=a,b port=1,2,3",
                "could not match 3 port numbers to 2 hosts\n",
            ),
            (
                "requirepeer=x",
                "connection parameter \"requirepeer\" is not supported with this value\n",
            ),
        ] {
            assert_eq!(reason(text), wanted, "{text}");
        }
        for (port, wanted) in [
            (
                "x",
                "invalid integer value \"x\" for connection option \"port\"\n",
            ),
            ("99999", "invalid port number: \"99999\"\n"),
            ("0", "invalid port number: \"0\"\n"),
        ] {
            let found = target(&format!("host=h port={port}")).unwrap();
            assert!(found.servers == [Server::Wrong(wanted.to_owned())]);
        }
    }
}
