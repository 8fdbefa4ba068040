//! What the configuration of an `http:` table says about a request and its answer: the URL, the body, extra headers,
//! and what each status means.
//!
//! Pure: no socket, no clock, no file.

use std::str;

use postkeep_conf::split_list_braced;
use postkeep_remote::template::{Key, Piece, Template};
use postkeep_table::Printable;

/// The most bytes that path and query of a request may have; a key that makes more is not asked for. Servers must take
/// so many (RFC 9112, section 3).
pub const TARGET_LIMIT: usize = 8000;

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RuleError(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, RuleError> {
    Err(RuleError(why.into()))
}

/// Can a key be asked for at all? Text without control characters can; what else a key may hold is no name of anything
/// in a directory, and servers refuse it in ways of their own.
pub fn is_text(key: &[u8]) -> bool {
    str::from_utf8(key).is_ok_and(|text| !text.chars().any(char::is_control))
}

/// Appends a part of a key, percent-encoded: it has no meaning in any part of a URL, nor in a form.
pub fn percent_encode(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            let digit = |value: u8| b"0123456789ABCDEF"[usize::from(value & 0xf)];
            out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte)]);
        }
    }
}

/// Appends a part of a key as it has to be inside of a JSON string. Control characters do not come here
/// ([`is_text`]), but would be escaped, too.
pub fn json_escape(part: &[u8], out: &mut Vec<u8>) {
    for &byte in part {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
}

/// The parts of a URL that stay the same, and the rest as a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `https`.
    pub secure: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Number, or the scheme's.
    pub port: u16,
    /// Host and port as written, for the `Host` header.
    pub authority: String,
    /// Path and query, with codes; begins with a slash.
    pub target: Vec<u8>,
}

impl Url {
    /// Takes a URL apart. Scheme, host and port cannot depend on the key; there is no user and no fragment.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, RuleError> {
        let Ok(text) = str::from_utf8(text) else {
            return refuse("a URL is ASCII");
        };
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("a URL is ASCII without blanks");
        }
        if text.bytes().any(|byte| b"\"<>\\^`{|}#".contains(&byte)) {
            return refuse("a URL has none of \" < > \\ ^ ` { | } #");
        }
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return refuse("http:// or https:// comes first"),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('%') {
            return refuse("host and port cannot depend on the key");
        }
        if authority.contains('@') {
            return refuse("user and password have keys of their own");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => match inner.split_once(']') {
                Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
                _ => return refuse("an address in brackets is one of IPv6"),
            },
            None => match authority.find(':') {
                Some(colon) => authority.split_at(colon),
                None => (authority, ""),
            },
        };
        let is_host = authority.starts_with('[')
            || host.parse::<std::net::IpAddr>().is_ok()
            || postkeep_conf::check_hostname(host.as_bytes()).is_ok();
        if !is_host {
            return refuse("a host's name or address follows");
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => Ok(if secure { 443 } else { 80 }),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse(),
            _ => return refuse("a port is a number"),
        };
        let Ok(port) = port else {
            return refuse("a port is a number");
        };
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            target: [slash, target].concat().into_bytes(),
        })
    }

    /// Checks the literal text of the target's template: `%%` begins an encoded byte, and the path leads nowhere else.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(target: &Template) -> Result<(), RuleError> {
        let mut sample = Vec::new();
        for piece in target.pieces() {
            let Piece::Text(text) = piece else {
                sample.push(b'x');
                continue;
            };
            if !is_encoded(text) {
                return refuse("%% is followed by two hexadecimal digits");
            }
            sample.extend_from_slice(text);
        }
        if climbs(&sample) {
            return refuse("no part of the path is . or ..");
        }
        Ok(())
    }

    /// Path and query for a key; `None` when it cannot be asked for: what it makes of the path would lead to another
    /// place, or is too long.
    pub fn expand(target: &Template, key: &Key<'_>) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        key.expand(target, percent_encode, &mut text);
        (text.len() <= TARGET_LIMIT && !climbs(&text)).then_some(text)
    }
}

fn is_encoded(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, &byte)| {
        byte != b'%'
            || text
                .get(at + 1..at + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Is there a `.` or `..` between slashes in the path, as servers see it that decode it first? Encoding does not protect
/// dots, and some servers take encoded slashes, and those that lean backwards, for slashes.
fn climbs(target: &[u8]) -> bool {
    let end = target.iter().position(|&byte| byte == b'?');
    let path = &target[..end.unwrap_or(target.len())];
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let value = (byte == b'%')
            .then(|| str::from_utf8(after.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                rest = &after[2..];
            }
            None => decoded.push(byte),
        }
    }
    decoded
        .split(|byte| b"/\\".contains(byte))
        // What follows a semicolon is a parameter of this part to some servers.
        .filter_map(|part| part.split(|&byte| byte == b';').next())
        .any(|part| part == b"." || part == b"..")
}

/// How the body of a request is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyFormat {
    /// JSON; codes are inside of strings.
    #[default]
    Json,
    /// As a form in a web page is sent.
    Form,
}

impl BodyFormat {
    /// `json` or `form`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"json" => Some(Self::Json),
            b"form" => Some(Self::Form),
            _ => None,
        }
    }

    /// The `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Form => "application/x-www-form-urlencoded",
        }
    }

    /// Checks the template of a body.
    ///
    /// # Errors
    /// When it would be no JSON, or codes are outside of strings.
    pub fn check(self, body: &Template) -> Result<(), RuleError> {
        if self == Self::Form {
            return Ok(());
        }
        let mut sample = Vec::new();
        for piece in body.pieces() {
            match piece {
                Piece::Text(text) => sample.extend_from_slice(text),
                // Alone it is no JSON, nor after a backslash.
                _ => sample.push(b'x'),
            }
        }
        match serde_json::from_slice::<serde_json::Value>(&sample) {
            Ok(_) => Ok(()),
            Err(error) => refuse(format!("no JSON with x for each code: {error}")),
        }
    }

    /// The body for a key.
    pub fn expand(self, body: &Template, key: &Key<'_>) -> Vec<u8> {
        let mut text = Vec::new();
        let quote = match self {
            Self::Json => json_escape,
            Self::Form => percent_encode,
        };
        key.expand(body, quote, &mut text);
        text
    }
}

/// Headers that belong to the connection, or to what is written here in any case.
const RESERVED: [&str; 14] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Takes extra headers apart: one as it is, or several, each in braces.
///
/// Names are in small letters; values are text as of RFC 9110 and do not depend on the key.
///
/// # Errors
/// What is wrong.
pub fn headers(text: &[u8]) -> Result<Vec<(String, String)>, RuleError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !text.starts_with(b"{") {
        return Ok(vec![header(text)?]);
    }
    split_list_braced(text)
        .map(|item| {
            let inner = item.strip_prefix(b"{");
            match inner.and_then(|inner| inner.strip_suffix(b"}")) {
                Some(inner) => header(inner.trim_ascii()),
                None => refuse(format!("no braces around {}", Printable(item))),
            }
        })
        .collect()
}

fn header(text: &[u8]) -> Result<(String, String), RuleError> {
    let is_value = |byte: &u8| byte.is_ascii_graphic() || b" \t".contains(byte);
    let parts = str::from_utf8(text)
        .ok()
        .and_then(|text| text.split_once(':'));
    let Some((name, value)) = parts else {
        return refuse(format!("no NAME: VALUE: {}", Printable(text)));
    };
    let is_token = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if !is_token {
        return refuse(format!("no name of a header: {name}"));
    }
    let name = name.to_ascii_lowercase();
    if RESERVED.contains(&name.as_str()) {
        return refuse(format!("{name} is not for you to set"));
    }
    let value = value.trim();
    if !value.as_bytes().iter().all(is_value) {
        return refuse(format!("{name} has a value that is not ASCII"));
    }
    Ok((name, value.to_owned()))
}

/// What a status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `found`: the body has the values.
    Found,
    /// `notfound`.
    Absent,
    /// `retry`: ask again later.
    Retry,
    /// `error`: a person must act.
    Error,
}

impl Verdict {
    fn parse(word: &[u8]) -> Option<Self> {
        match word {
            b"found" => Some(Self::Found),
            b"notfound" => Some(Self::Absent),
            b"retry" => Some(Self::Retry),
            b"error" => Some(Self::Error),
            _ => None,
        }
    }
}

/// What each status means: 200 is found, 404 and 204 are not, 429 and 5xx are to be asked again, all others are a fault
/// of the configuration. What a table says goes before that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusMap {
    one: Vec<(u16, Verdict)>,
    hundred: Vec<(u16, Verdict)>,
}

impl Default for StatusMap {
    fn default() -> Self {
        Self {
            one: vec![
                (200, Verdict::Found),
                (204, Verdict::Absent),
                (404, Verdict::Absent),
                (429, Verdict::Retry),
            ],
            hundred: vec![(5, Verdict::Retry)],
        }
    }
}

impl StatusMap {
    /// Takes a list of `STATUS=VERDICT` apart, with a status such as `403` or `4xx`. One status goes before a hundred,
    /// a later item before an earlier one; what the list does not say is as without it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, RuleError> {
        let mut map = Self::default();
        for item in postkeep_conf::split_list(text) {
            let wrong = || RuleError(format!("no STATUS=VERDICT: {}", Printable(item)));
            let equal = item.iter().position(|&byte| byte == b'=');
            let (status, word) = item.split_at(equal.ok_or_else(wrong)?);
            let verdict = Verdict::parse(&word[1..]).ok_or_else(wrong)?;
            match *status {
                [first @ b'2'..=b'5', b'x' | b'X', b'x' | b'X'] => {
                    set(&mut map.hundred, u16::from(first - b'0'), verdict);
                }
                [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9'] => {
                    let number = status
                        .iter()
                        .fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
                    set(&mut map.one, number, verdict);
                }
                _ => return Err(wrong()),
            }
        }
        Ok(map)
    }

    /// What this status means.
    pub fn verdict(&self, status: u16) -> Verdict {
        let find = |list: &[(u16, Verdict)], wanted| {
            let mut found = list.iter().filter(|(number, _)| *number == wanted);
            found.next().map(|(_, verdict)| *verdict)
        };
        find(&self.one, status)
            .or_else(|| find(&self.hundred, status / 100))
            .unwrap_or(Verdict::Error)
    }
}

fn set(list: &mut Vec<(u16, Verdict)>, number: u16, verdict: Verdict) {
    list.retain(|(other, _)| *other != number);
    list.push((number, verdict));
}

#[cfg(test)]
mod tests {
    use postkeep_remote::template::Needs;
    use postkeep_table::TableName;
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Template {
        Needs::default().query("t", text.as_bytes()).unwrap()
    }

    fn expand(text: &str, key: &str) -> Option<String> {
        let mut needs = Needs::default();
        let template = needs.query("t", text.as_bytes()).unwrap();
        let table = TableName::parse(b"http:/t.cf").unwrap();
        let key = needs.key(&table, key.as_bytes()).unwrap();
        Url::expand(&template, &key).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn urls() {
        let url = Url::parse(b"https://Api.example:8443/u/%s?x=%d").unwrap();
        assert!(url.secure);
        assert_eq!(
            (url.host.as_str(), url.port, url.authority.as_str()),
            ("Api.example", 8443, "Api.example:8443")
        );
        assert_eq!(url.target, b"/u/%s?x=%d");
        let url = Url::parse(b"HTTP://[::1]?q=%s").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 80));
        assert_eq!(url.target, b"/?q=%s");
        assert_eq!(Url::parse(b"https://127.0.0.1").unwrap().port, 443);
        for bad in [
            "",
            "x",
            "ftp://h/",
            "http:/h",
            "http://",
            "http:///x",
            "http://%d/",
            "http://u@h/",
            "http://u:p@h/",
            "http://h:/",
            "http://h:x/",
            "http://h:65536/",
            "http://h:+1/",
            "http://[::1/",
            "http://[h]/",
            "http://[::1]x/",
            "http://h/#x",
            "http://h/a b",
            "http://h/\u{e9}",
            "http://h/{x}",
            "http://a_b!/",
            "http://h/\\x",
        ] {
            assert!(Url::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn literal_text_is_checked() {
        for good in [
            "/%%2f/%s",
            "/a.b/..c/%s?x=../..",
            "/%s.json",
            "/...",
            "/.%s/",
        ] {
            assert_eq!(Url::check(&target(good)), Ok(()), "{good}");
        }
        for bad in [
            "/%%/",
            "/%%2",
            "/%%%s",
            "/%%2%s",
            "/../%s",
            "/%s/..",
            "/%%2e%%2E/%s",
            "/./",
        ] {
            assert!(Url::check(&target(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_in_urls() {
        assert_eq!(
            expand("/u/%s?d=%d", "o'b r/%ü&=+?#@x").unwrap(),
            "/u/o%27b%20r%2F%25%C3%BC%26%3D%2B%3F%23%40x?d=x"
        );
        for bad in [
            "..", ".", "../x", "a/../b", "x/..", "a\\..\\b", "..;x", "./a",
        ] {
            assert_eq!(expand("/u/%s", bad), None, "{bad}");
            assert_eq!(expand("/u/%s/x", bad), None, "{bad}");
            assert!(expand("/u?q=%s", bad).is_some(), "{bad}");
        }
        assert_eq!(expand("/%u/%d", "..@x"), None);
        assert_eq!(expand("/.%u/", "."), None);
        assert_eq!(expand("/u/%s", "a..b").unwrap(), "/u/a..b");
        assert_eq!(expand("/u/%s", "...").unwrap(), "/u/...");
        assert!(expand("/%s", &"k".repeat(TARGET_LIMIT - 1)).is_some());
        assert_eq!(expand("/%s", &"k".repeat(TARGET_LIMIT)), None);
        assert!(is_text("a \u{20ac}".as_bytes()));
        for bad in [&b"\xff"[..], b"a\r\nb", b"\x7f", b"\xc2\x85", b"a\tb"] {
            assert!(!is_text(bad));
        }
    }

    #[test]
    fn bodies() {
        for good in [r#"{"user":"%s","n":[1,"%u@%d"]}"#, r#""%s""#] {
            assert_eq!(BodyFormat::Json.check(&target(good)), Ok(()), "{good}");
        }
        for bad in [
            r#"{"user":%s}"#,
            "%s",
            r#"{"a":1%s}"#,
            r#""\%s""#,
            r#""\u00%s""#,
            "{",
            "",
        ] {
            assert!(BodyFormat::Json.check(&target(bad)).is_err(), "{bad}");
            assert_eq!(BodyFormat::Form.check(&target(bad)), Ok(()));
        }
    }

    #[test]
    fn extra_headers() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers(b" "), Ok(vec![]));
        assert_eq!(headers(b"X-Api: a, b"), Ok(vec![pair("x-api", "a, b")]));
        assert_eq!(
            headers(b"{ X-A: {1} }, {x-b:}"),
            Ok(vec![pair("x-a", "{1}"), pair("x-b", "")])
        );
        for bad in [
            &b"X"[..],
            b"X Y: 1",
            b": 1",
            b"Host: x",
            b"x: \xff",
            b"x: \x01",
            b"{x: 1} y",
            b"{x: 1",
            b"x: \xc3\xa9",
            b"x: a\nb",
        ] {
            assert!(headers(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn statuses() {
        let map = StatusMap::default();
        let verdict = |status| map.verdict(status);
        assert_eq!(verdict(200), Verdict::Found);
        assert_eq!(verdict(204), Verdict::Absent);
        assert_eq!(verdict(404), Verdict::Absent);
        assert_eq!(verdict(429), Verdict::Retry);
        assert_eq!(verdict(503), Verdict::Retry);
        for other in [201, 206, 301, 302, 400, 401, 403, 999, 0] {
            assert_eq!(verdict(other), Verdict::Error);
        }
        let map =
            StatusMap::parse(b"2xx=found 204=error,403=notfound, 501=error 501=retry").unwrap();
        for (status, wanted) in [
            (201, Verdict::Found),
            (204, Verdict::Error),
            (403, Verdict::Absent),
            (404, Verdict::Absent),
            (501, Verdict::Retry),
            (500, Verdict::Retry),
        ] {
            assert_eq!(map.verdict(status), wanted, "{status}");
        }
        for bad in [
            "200",
            "200=",
            "=found",
            "20x=found",
            "100=found",
            "600=found",
            "200=Found",
            "2000=found",
        ] {
            assert!(StatusMap::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Whatever a key is, the server gets it back as it was, and nothing beside it changes.
        #[test]
        fn a_key_is_data(key in "\\PC{1,40}") {
            let text = expand("/?a=%s&b=1", &key).unwrap();
            let inner = text.strip_prefix("/?a=").unwrap().strip_suffix("&b=1").unwrap();
            prop_assert!(inner.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            let mut json = b"\"".to_vec();
            json_escape(key.as_bytes(), &mut json);
            json.push(b'"');
            prop_assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), key);
        }
    }
}
