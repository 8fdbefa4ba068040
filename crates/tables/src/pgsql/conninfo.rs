//! Connection strings, as `postgresql://` URIs or as `name=value`, in libpq's words.
//!
//! References: libpq's `conninfo_uri_parse()`, `conninfo_parse()`; the PostgreSQL manual, "Connection Strings".

use std::collections::BTreeMap;

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

#[cfg(test)]
mod tests {
    use super::*;

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
