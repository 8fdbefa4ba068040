//! Where to connect and how: `postgresql://` URIs and `name=value` strings, in libpq's words.
//!
//! References: libpq's `conninfo_uri_parse()`, `conninfo_parse()`, `connectOptions2()`; the PostgreSQL manual, "Connection
//! Strings".

use std::collections::BTreeMap;

use postkeep_remote::tls::{Check, Identity, Roots, Tls};

use super::text;

/// Parameters and their values; empty ones are not set.
pub(super) type Settings = BTreeMap<&'static str, Vec<u8>>;

/// Parameters that are understood.
const KNOWN: [&str; 16] = [
    "application_name",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// Parameters that change nothing here.
const IGNORED: [&str; 14] = [
    "authtype",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
    "tty",
    "requiressl",
    "load_balance_hosts",
];

/// Parameters that ask for something that is not there. Better no connection than one that is not what it should be.
const REFUSED: [&str; 12] = [
    "channel_binding",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
];

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

/// Does libpq take this for a URI?
pub(super) fn is_uri(text: &[u8]) -> bool {
    text.starts_with(b"postgresql://") || text.starts_with(b"postgres://")
}

/// Reads a URI, or a string of `name=value`.
///
/// # Errors
/// Libpq's reason, with the end of its line.
pub(super) fn parse(text: &[u8]) -> Result<Settings, String> {
    let mut settings = Settings::new();
    if is_uri(text) {
        parse_uri(text, &mut settings)?;
    } else {
        parse_words(text, &mut settings)?;
    }
    Ok(settings)
}

/// Stores a parameter; `Ok(false)` when there is none of that name.
fn store(settings: &mut Settings, name: &[u8], value: Vec<u8>) -> Result<bool, String> {
    let named = |list: &[&'static str]| list.iter().copied().find(|known| known.as_bytes() == name);
    if let Some(known) = named(&KNOWN) {
        settings.insert(known, value);
    } else if let Some(refused) = named(&REFUSED) {
        let harmless = value.is_empty()
            || matches!(
                (refused, &value[..]),
                ("channel_binding", b"prefer" | b"disable")
                    | (
                        "ssl_min_protocol_version",
                        b"TLSv1" | b"TLSv1.1" | b"TLSv1.2"
                    )
                    | ("ssl_max_protocol_version", b"TLSv1.3")
                    | ("sslcertmode", b"allow")
            );
        if !harmless {
            return Err(format!(
                "connection parameter \"{refused}\" is not supported with this value\n"
            ));
        }
    } else {
        return Ok(named(&IGNORED).is_some());
    }
    Ok(true)
}

/// `%XX` to bytes.
///
/// - `secret`: the text is not for log lines
fn decode(token: &[u8], secret: bool) -> Result<Vec<u8>, String> {
    let shown = || {
        if secret {
            "...".to_owned()
        } else {
            text(token)
        }
    };
    let mut out = Vec::with_capacity(token.len());
    let mut bytes = token.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(*bytes.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(format!("invalid percent-encoded token: \"{}\"\n", shown()));
        };
        match high << 4 | low {
            0 => {
                return Err(format!(
                    "forbidden value %00 in percent-encoded value: \"{}\"\n",
                    shown()
                ));
            }
            byte => out.push(byte),
        }
    }
    Ok(out)
}

/// Splits at the first of some bytes, which stays with the rest.
fn until<'a>(text: &'a [u8], ends: &[u8]) -> (&'a [u8], &'a [u8]) {
    let end = text.iter().position(|byte| ends.contains(byte));
    text.split_at(end.unwrap_or(text.len()))
}

fn parse_uri(uri: &[u8], settings: &mut Settings) -> Result<(), String> {
    let whole = || masked(uri);
    let start = uri.iter().position(|&byte| byte == b'/').unwrap_or(0) + 2;
    let mut rest = &uri[start..];
    let (before, after) = until(rest, b"@/");
    if after.first() == Some(&b'@') {
        let (user, password) = until(before, b":");
        settings.insert("user", decode(user, false)?);
        if let Some(password) = password.get(1..) {
            settings.insert("password", decode(password, true)?);
        }
        rest = &after[1..];
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    loop {
        let host;
        if rest.first() == Some(&b'[') {
            let (inside, after) = until(&rest[1..], b"]");
            if after.is_empty() {
                return Err(format!(
                    "end of string reached when looking for matching \"]\" in IPv6 host address in URI: \"{}\"\n",
                    whole()
                ));
            }
            if inside.is_empty() {
                return Err(format!(
                    "IPv6 host address may not be empty in URI: \"{}\"\n",
                    whole()
                ));
            }
            (host, rest) = (inside, &after[1..]);
            if let Some(&byte) = rest.first().filter(|byte| !b":/?,".contains(byte)) {
                return Err(format!(
                    "unexpected character \"{}\" at position {} in URI (expected \":\" or \"/\"): \"{}\"\n",
                    text(&[byte]),
                    uri.len() - rest.len() + 1,
                    whole()
                ));
            }
        } else {
            (host, rest) = until(rest, b":/?,");
        }
        hosts.extend_from_slice(host);
        if rest.first() == Some(&b':') {
            let port;
            (port, rest) = until(&rest[1..], b"/?,");
            ports.extend_from_slice(port);
        }
        if rest.first() != Some(&b',') {
            break;
        }
        rest = &rest[1..];
        hosts.push(b',');
        ports.push(b',');
    }
    settings.insert("host", decode(&hosts, false)?);
    settings.insert("port", decode(&ports, false)?);
    if rest.first() == Some(&b'/') {
        let name;
        (name, rest) = until(&rest[1..], b"?");
        settings.insert("dbname", decode(name, false)?);
    }
    for parameter in rest
        .get(1..)
        .unwrap_or_default()
        .split(|&byte| byte == b'&')
        .filter(|parameter| !parameter.is_empty())
    {
        let (name, value) = until(parameter, b"=");
        let shown = text(name);
        let value = value.get(1..).ok_or_else(|| {
            format!("missing key/value separator \"=\" in URI query parameter: \"{shown}\"\n")
        })?;
        if value.contains(&b'=') {
            return Err(format!(
                "extra key/value separator \"=\" in URI query parameter: \"{shown}\"\n"
            ));
        }
        let mut name = decode(name, false)?;
        let mut value = decode(value, name == b"password")?;
        if name == b"ssl" && value == b"true" {
            (name, value) = (b"sslmode".to_vec(), b"require".to_vec());
        }
        if !store(settings, &name, value)? {
            return Err(format!(
                "invalid URI query parameter: \"{}\"\n",
                text(&name)
            ));
        }
    }
    Ok(())
}

fn parse_words(words: &[u8], settings: &mut Settings) -> Result<(), String> {
    let mut rest = words.trim_ascii_start();
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| *byte == b'=' || byte.is_ascii_whitespace())
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after
            .trim_ascii_start()
            .strip_prefix(b"=")
            .ok_or_else(|| {
                format!(
                    "missing \"=\" after \"{}\" in connection info string\n",
                    text(name)
                )
            })?
            .trim_ascii_start();
        let mut value = Vec::new();
        let quoted = rest.first() == Some(&b'\'');
        let mut bytes = rest[usize::from(quoted)..].iter();
        loop {
            match bytes.next() {
                Some(b'\'') if quoted => break,
                Some(byte) if !quoted && byte.is_ascii_whitespace() => break,
                Some(b'\\') => value.extend(bytes.next()),
                Some(&byte) => value.push(byte),
                None if quoted => {
                    return Err("unterminated quoted string in connection info string\n".to_owned());
                }
                None => break,
            }
        }
        rest = bytes.as_slice().trim_ascii_start();
        if !store(settings, name, value)? {
            return Err(format!("invalid connection option \"{}\"\n", text(name)));
        }
    }
    Ok(())
}

/// A URI for log lines, without its password.
pub(super) fn masked(uri: &[u8]) -> String {
    let shown = text(uri);
    let Some(start) = shown.find("//").map(|at| at + 2) else {
        return mask_parameter(&shown);
    };
    let (scheme, rest) = shown.split_at(start);
    let end = rest.find('/').unwrap_or(rest.len());
    let masked = match rest[..end].find('@') {
        Some(at) => match rest[..at].find(':') {
            Some(colon) => format!("{}:***{}", &rest[..colon], &rest[at..]),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    mask_parameter(&format!("{scheme}{masked}"))
}

fn mask_parameter(shown: &str) -> String {
    let mut out = String::new();
    let mut rest = shown;
    while let Some(at) = rest.find("password=") {
        let (before, after) = rest.split_at(at + "password=".len());
        out.push_str(before);
        out.push_str("***");
        rest = &after[after.find('&').unwrap_or(after.len())..];
    }
    out + rest
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

    #[test]
    fn passwords_are_masked() {
        for (uri, wanted) in [
            ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u@h:1/d", "postgresql://u@h:1/d"),
            ("postgresql://h:1/d@x", "postgresql://h:1/d@x"),
            (
                "postgresql://h/d?password=p&user=u",
                "postgresql://h/d?password=***&user=u",
            ),
            ("postgresql:x", "postgresql:x"),
            (
                "postgresql:host=a&password=p",
                "postgresql:host=a&password=***",
            ),
        ] {
            assert_eq!(masked(uri.as_bytes()), wanted);
        }
    }
}
