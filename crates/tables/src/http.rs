//! `http:/path/file.cf` asks a server over HTTP/1.1 or HTTP/2 for JSON, or for lines of text.
//!
//! ```text
//! url = https://directory.example/v1/users/%s
//! value_path = $.users[*].mailbox
//! bearer_token_file = /etc/postfix/directory.token
//! tls_CAfile = /etc/postfix/directory-ca.pem
//! ```
//!
//! The file is in main.cf syntax; a name without a slash or dot at its beginning reads parameters of main.cf that begin
//! with it (`http:users`: `users_url`). Postfix itself has no such type.
//!
//! | key | default | |
//! |---|---|---|
//! | `url` | | `http://` or `https://`; path and query with `%s`, `%u`, `%d`, `%1` to `%9`, `%%` |
//! | `method` | `GET`; `POST` with a body | or the other one |
//! | `body` | none | with the same codes |
//! | `body_format` | `json` | codes are inside of strings and escaped; `form`: percent-encoded |
//! | `header` | none | `NAME: VALUE`, several as `{NAME: VALUE} {NAME: VALUE}`; no codes |
//! | `http_version` | `auto` | as the server picks in the TLS handshake, `1.1` without TLS; `1.1`; `2`, without TLS from the first byte on |
//! | `status_map` | | `STATUS=found`, `notfound`, `retry` or `error`, with a status such as `403` or `4xx`; goes before `200=found 204=notfound 404=notfound 429=retry 5xx=retry`, all else is `error` |
//! | `response_format` | `json` | `text`: each line is a value |
//! | `value_path` | the document | where the values are, for JSON: `/a/b` (RFC 6901), or of RFC 9535 `$.a.b`, `['a']`, `[0]`, `[-1]`, `[*]`, `.*` |
//! | `result_format` | `%s` | of each value; they are joined with commas |
//! | `expansion_limit` | 0 | values; more are an error; 0: any number |
//! | `domain` | all | domains of keys that are asked for |
//! | `max_response_size` | 1048576 | bytes of an answer, headers not counted, 16 MiB at most; more are an error |
//! | `bearer_token`, `bearer_token_file` | none | sent as `Authorization: Bearer`; the file is read again when it changes |
//! | `user`, `password` | none | basic authentication |
//! | `tls_CAfile`, `tls_CApath` | the system's | who may sign the server's certificate |
//! | `tls_cert_file`, `tls_key_file` | none | our own certificate |
//! | `tls_verify_cert` | `yes` | `no`: anybody can be the server |
//! | `pool_max_connections` | 16 | connections of HTTP/1.1, or questions at once with HTTP/2 |
//! | `pool_queue_limit` | 1000 | lookups that wait for a connection |
//! | `connect_timeout` | 10s | to connect, TLS included |
//! | `wait_timeout` | 10s | to wait for a connection |
//! | `answer_timeout` | 30s | from the question to the end of the answer |
//! | `idle_interval` | 60s | after which an unused connection is closed |
//! | `pool_lifetime` | 0 | after which a connection is not used again; never |
//! | `retry_interval` | 0 | how long the server is left alone after a failure |
//! | `breaker_failures` | 5 | lookups in a row without an answer, after which all fail at once |
//! | `breaker_rest` | 10s | until one is let through to see |
//!
//! A key is text: one that is not UTF-8 or has control characters is not found and not asked for. In a URL all of it is
//! percent-encoded but letters, digits and `-._~`. A key that would make `.` or `..` of a part of the path, encoded
//! slashes counted, or more than 8000 bytes of path and query, is not found and not asked for either.
//!
//! An array gives several values. Null, an empty array and a path that leads nowhere are not found; an object, or a
//! number that is not whole or has more than 64 bits, is an error. Redirects are not followed and answers not
//! decompressed. A question whose connection breaks before the answer is asked once more, also with `POST`: it should
//! change nothing. Certificates and the token are read again when their files change. Tables with the same server, TLS
//! keys and limits share connections; with HTTP/2 there is one, and another when that fails.

mod json;
mod paced;
mod rules;
mod server;

/// What the fuzzer is to reach.
pub mod rules_of_http {
    pub use super::json::{DocumentError, PathError, ValuePath, lines};
    pub use super::rules::{
        BodyFormat, RuleError, StatusMap, TARGET_LIMIT, Url, Verdict, headers, is_text,
        json_escape, percent_encode,
    };
}

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    USER_AGENT,
};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Uri};
use log::warn;
use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::hosts::{Host, Place};
use postkeep_remote::limits::Limits;
use postkeep_remote::pool::{Pool, Shared};
use postkeep_remote::rules::Rules;
use postkeep_remote::source::{Source, table};
use postkeep_remote::template::{Excess, Key, Template};
use postkeep_remote::tls::{Keys, Stamps, Tls};
use postkeep_table::{Flags, LookupError, OpenError, Owner, Printable, Table, TableName, Watch};
use rustls::pki_types::ServerName;

use self::json::{DocumentError, ValuePath, lines};
use self::rules::{BodyFormat, StatusMap, Url, Verdict, headers, is_text};
use self::server::{Contents, Multiplexed, Question, Server, Version};
use crate::table_config::{TableConfig, fault, read};
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "http",
    summary: "a server that answers with JSON or text over HTTP",
    capabilities: Capabilities::READ_ONLY,
    open,
    build: None,
};

/// What makes connections equal.
#[derive(PartialEq, Eq, Hash)]
struct PoolKey {
    origin: String,
    version: Version,
    tls: Option<Tls>,
    stamps: Stamps,
    limits: Limits,
}

/// A document of more bytes takes longer than a thread that serves others should be away.
const LONG: usize = 1 << 16;

static POOLS: Shared<PoolKey, Server> = Shared::new();

/// How an answer is read.
enum Response {
    Json(ValuePath),
    Text,
}

struct Http {
    name: TableName,
    flags: Flags,
    configured: TableConfig,
    /// Files beside the configuration.
    files: Vec<PathBuf>,
    rules: Rules,
    method: Method,
    headers: Arc<HeaderMap>,
    body: Option<(BodyFormat, Template)>,
    statuses: StatusMap,
    response: Response,
    size_limit: usize,
    pool: Arc<Pool<Server>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let configured = TableConfig::of_table(request)?;
    let config = &configured.config;
    let at_fault = |error: ConfigError| fault(&error);
    let text = config.text("url", "", 1, 0).map_err(at_fault)?;
    let url = Url::parse(&text).map_err(|error| fault(&config.unusable("url", &error)))?;
    let target = url.target.clone();
    let mut rules = Rules::read(config, |_| Ok(target)).map_err(at_fault)?;
    Url::check(rules.query()).map_err(|error| fault(&config.unusable("url", &error)))?;
    let body = read_body(config, &mut rules).map_err(at_fault)?;
    let method = read_method(config, body.is_some()).map_err(at_fault)?;
    let response = read_response(config).map_err(at_fault)?;
    let statuses = config.text("status_map", "", 0, 0).map_err(at_fault)?;
    let statuses = StatusMap::parse(&statuses)
        .map_err(|error| fault(&config.unusable("status_map", &error)))?;
    let size_limit = config
        .int("max_response_size", 1 << 20, 1, 1 << 24)
        .map_err(at_fault)?;
    let mut files = Vec::new();
    let format = body.as_ref().map(|(format, _)| *format);
    let mut headers = read_headers(config, &response, format).map_err(at_fault)?;
    if let Some(value) = read_authorization(config, &mut files)? {
        headers.insert(AUTHORIZATION, value);
    }
    let pool = read_pool(config, &url, &mut files)?;
    let domains = configured.domains(request)?;
    Ok(table(Http {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        configured,
        files,
        rules: rules.filtered(domains),
        method,
        headers: Arc::new(headers),
        body,
        statuses,
        response,
        size_limit: usize::try_from(size_limit).unwrap_or(1),
        pool,
    }))
}

fn read_body(
    config: &Config,
    rules: &mut Rules,
) -> Result<Option<(BodyFormat, Template)>, ConfigError> {
    let text = config.text("body_format", "json", 0, 0)?;
    let format = BodyFormat::parse(&text)
        .ok_or_else(|| config.unusable("body_format", &"expecting json or form"))?;
    let Some(text) = config.optional("body")? else {
        return Ok(None);
    };
    let body = rules.add_query(&text)?;
    format
        .check(&body)
        .map_err(|error| config.unusable("body", &error))?;
    Ok(Some((format, body)))
}

fn read_method(config: &Config, body: bool) -> Result<Method, ConfigError> {
    let text = config.text("method", if body { "POST" } else { "GET" }, 0, 0)?;
    match &text[..] {
        b"GET" if body => Err(config.unusable("method", &"a body is sent with POST")),
        b"GET" => Ok(Method::GET),
        b"POST" => Ok(Method::POST),
        _ => Err(config.unusable("method", &"expecting GET or POST")),
    }
}

fn read_response(config: &Config) -> Result<Response, ConfigError> {
    let path = config.text("value_path", "", 0, 0)?;
    match &config.text("response_format", "json", 0, 0)?[..] {
        b"json" => ValuePath::parse(&path)
            .map(Response::Json)
            .map_err(|error| config.unusable("value_path", &error)),
        b"text" if path.is_empty() => Ok(Response::Text),
        b"text" => Err(config.unusable("value_path", &"it is for JSON, not for text")),
        _ => Err(config.unusable("response_format", &"expecting json or text")),
    }
}

fn read_headers(
    config: &Config,
    response: &Response,
    body: Option<BodyFormat>,
) -> Result<HeaderMap, ConfigError> {
    let mut map = HeaderMap::new();
    map.insert(USER_AGENT, HeaderValue::from_static("postkeep"));
    map.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let accept = match response {
        Response::Json(_) => "application/json",
        Response::Text => "text/plain",
    };
    map.insert(ACCEPT, HeaderValue::from_static(accept));
    if let Some(format) = body {
        map.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        );
    }
    let text = config.text("header", "", 0, 0)?;
    let extra = headers(&text).map_err(|error| config.unusable("header", &error))?;
    let mut seen = Vec::new();
    for (name, value) in extra {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(&value),
        ) else {
            return Err(config.unusable("header", &format_args!("{name} cannot be sent")));
        };
        if seen.contains(&name) {
            map.append(name, value);
        } else {
            map.insert(name.clone(), value);
            seen.push(name);
        }
    }
    Ok(map)
}

fn read_authorization(
    config: &Config,
    files: &mut Vec<PathBuf>,
) -> Result<Option<HeaderValue>, OpenError> {
    let optional = |key| config.optional(key).map_err(|error| fault(&error));
    let refuse = |key, why: &str| fault(&config.unusable(key, &why));
    let (token, token_file) = (optional("bearer_token")?, optional("bearer_token_file")?);
    let (user, password) = (optional("user")?, optional("password")?);
    let ways = [&token, &token_file, &user];
    if ways.iter().filter(|way| way.is_some()).count() > 1 {
        return Err(refuse(
            "bearer_token",
            "only one of bearer_token, bearer_token_file and user can be sent",
        ));
    }
    if password.is_some() && user.is_none() {
        return Err(refuse("password", "there is no user"));
    }
    let (key, text) = if let Some(user) = user {
        if user.contains(&b':') {
            return Err(refuse("user", "a user has no colon"));
        }
        let pair = [&user[..], b":", &password.unwrap_or_default()].concat();
        ("user", format!("Basic {}", base64(&pair)).into_bytes())
    } else if let Some(path) = token_file {
        let text = read(&path)?.text;
        files.push(path_of(path));
        let token = [b"Bearer ", text.trim_ascii()].concat();
        ("bearer_token_file", token)
    } else if let Some(token) = token {
        ("bearer_token", [b"Bearer ", &token[..]].concat())
    } else {
        return Ok(None);
    };
    let is_token = text.len() > 7 && text[7..].iter().all(u8::is_ascii_graphic);
    let value = (key == "user" || is_token)
        .then(|| HeaderValue::from_bytes(&text).ok())
        .flatten();
    let Some(mut value) = value else {
        return Err(refuse(key, "a token is ASCII without blanks"));
    };
    value.set_sensitive(true);
    Ok(Some(value))
}

fn base64(text: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            out.push(if place <= chunk.len() {
                char::from(LETTERS[(bits >> (18 - 6 * place) & 63) as usize])
            } else {
                '='
            });
        }
    }
    out
}

fn path_of(text: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(text))
}

fn read_pool(
    config: &Config,
    url: &Url,
    files: &mut Vec<PathBuf>,
) -> Result<Arc<Pool<Server>>, OpenError> {
    let at_fault = |error: ConfigError| fault(&error);
    let unusable = |key, why: &dyn std::fmt::Display| fault(&config.unusable(key, why));
    let version = match &config
        .text("http_version", "auto", 0, 0)
        .map_err(at_fault)?[..]
    {
        b"auto" => Version::Auto,
        b"1.1" => Version::One,
        b"2" => Version::Two,
        _ => return Err(unusable("http_version", &"expecting auto, 1.1 or 2")),
    };
    // One server, which the breaker gives its rest.
    let defaults = Limits {
        rest: Duration::ZERO,
        ..Limits::default()
    };
    let limits = defaults.read(config).map_err(at_fault)?;
    let keys = Keys::read(config).map_err(at_fault)?;
    let tls = match keys.given {
        Some(key) if !url.secure => {
            return Err(unusable(key, &"the URL begins with http://, without TLS"));
        }
        _ => url.secure.then(|| keys.tls()),
    };
    let stamps = Stamps::of(tls.as_ref());
    files.extend(stamps.files().map(Path::to_owned));
    let scheme = if url.secure { "https" } else { "http" };
    let origin = format!("{scheme}://{}", url.authority);
    let key = PoolKey {
        origin: origin.clone(),
        version,
        tls: tls.clone(),
        stamps,
        limits: limits.clone(),
    };
    let tls = match tls {
        None => None,
        Some(tls) => {
            let name =
                ServerName::try_from(url.host.clone()).map_err(|error| unusable("url", &error))?;
            let client = tls
                .client()
                .map_err(|error| OpenError::Unavailable(error.to_string()))?;
            let mut client = Arc::unwrap_or_clone(client);
            client.alpn_protocols = version.protocols();
            Some((Arc::new(client), name))
        }
    };
    let base = Uri::try_from(format!("{origin}/")).map_err(|error| unusable("url", &error))?;
    let authority =
        HeaderValue::from_str(&url.authority).map_err(|error| unusable("url", &error))?;
    let host = Host {
        text: origin.clone(),
        place: Place::Inet(url.host.clone(), url.port.to_string()),
    };
    Ok(POOLS.get_or_make(key, || {
        let server = Server {
            origin,
            base,
            authority,
            tls,
            version,
            lifetime: limits.lifetime,
            multiplexed: Multiplexed::default(),
        };
        Pool::new(server, vec![host], limits)
    }))
}

/// Why the values of an answer are no result.
#[derive(Debug, thiserror::Error)]
enum NoResult {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Excess(#[from] Excess),
}

impl Http {
    /// The request for a key; `None` for one that cannot be asked for.
    fn question(&self, key: &Key<'_>) -> Option<Question> {
        if !is_text(key.whole()) {
            return None;
        }
        let target = Url::expand(self.rules.query(), key)?;
        let body = match &self.body {
            Some((format, template)) => Bytes::from(format.expand(template, key)),
            None => Bytes::new(),
        };
        Some(Question {
            method: self.method.clone(),
            target: PathAndQuery::from_maybe_shared(Bytes::from(target)).ok()?,
            headers: Arc::clone(&self.headers),
            body,
            limit: self.size_limit,
        })
    }

    fn result(&self, key: &Key<'_>, text: &[u8]) -> Result<Option<Vec<u8>>, NoResult> {
        let mut answer = self.rules.answer(&self.name, key);
        match &self.response {
            Response::Json(path) => path.values(text, |value| {
                answer.add(Some(value.as_bytes())).map_err(NoResult::from)
            })?,
            Response::Text => {
                for line in lines(text) {
                    answer.add(Some(line))?;
                }
            }
        }
        Ok(answer.finish())
    }

    /// A failure, which is told.
    fn tell(&self, key: &Key<'_>, why: &dyn std::fmt::Display) {
        warn!(
            "table {}: lookup of \"{}\": {why}",
            self.name,
            Printable(key.whole())
        );
    }

    fn again<T>(&self, key: &Key<'_>, why: &dyn std::fmt::Display) -> Result<T, LookupError> {
        self.tell(key, why);
        Err(LookupError::Retry(String::new()))
    }

    fn broken<T>(&self, key: &Key<'_>, why: &dyn std::fmt::Display) -> Result<T, LookupError> {
        self.tell(key, why);
        Err(LookupError::Config(String::new()))
    }
}

impl Source for Http {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    async fn lookup(
        self: Arc<Self>,
        _: Flags,
        key: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, LookupError> {
        let Some(key) = self.rules.key(&self.name, &key).await? else {
            return Ok(None);
        };
        let Some(question) = self.question(&key) else {
            return Ok(None);
        };
        let reply = self.pool.ask(&question).await.map_err(LookupError::from)?;
        let status = reply.status;
        let server = &self.pool.backend().origin;
        match self.statuses.verdict(status) {
            Verdict::Found => {}
            Verdict::Absent => return Ok(None),
            Verdict::Retry => {
                return self.again(&key, &format_args!("{server} answers with status {status}"));
            }
            Verdict::Error => {
                return self.broken(&key, &format_args!("{server} answers with status {status}"));
            }
        }
        let text = match reply.body {
            Contents::Whole(text) => text,
            Contents::TooLong => {
                let why = format_args!("the answer has more than {} bytes", self.size_limit);
                return self.again(&key, &why);
            }
            Contents::Encoded => {
                return self.broken(&key, &"the answer has a Content-Encoding");
            }
        };
        let result = if text.len() > LONG {
            // Other lookups go on elsewhere meanwhile.
            tokio::task::block_in_place(|| self.result(&key, &text))
        } else {
            self.result(&key, &text)
        };
        match result {
            Ok(result) => Ok(result),
            Err(error @ NoResult::Document(DocumentError::NotScalar(_))) => {
                self.broken(&key, &error)
            }
            Err(error) => self.again(&key, &error),
        }
    }

    fn watches(&self) -> Vec<Watch> {
        let mut watches = self.configured.watches();
        watches.extend(self.files.iter().map(|path| Watch {
            path: path.clone(),
            modification_time: true,
        }));
        watches
    }

    fn owner(&self) -> Owner {
        self.configured.owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_any_length() {
        for (text, wanted) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("u:p\u{ff}?", "dTpww78/"),
        ] {
            assert_eq!(base64(text.as_bytes()), wanted);
        }
    }
}
