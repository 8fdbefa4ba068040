//! LDAP URLs: those of servers, and those that stand for a search.
//!
//! # References
//! RFC 4516; OpenLDAP `libraries/libldap/url.c`.

use crate::ldap::message::Scope;

/// What is between `ldap` and `://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TCP.
    Ldap,
    /// TLS.
    Ldaps,
    /// A UNIX-domain socket.
    Ldapi,
}

impl Scheme {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ldap => "ldap",
            Self::Ldaps => "ldaps",
            Self::Ldapi => "ldapi",
        }
    }
}

/// A URL that was taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// How to connect.
    pub scheme: Scheme,
    /// A host, an address, or the path of a socket; may be empty.
    pub host: Vec<u8>,
    /// `None` for that of the scheme.
    pub port: Option<u16>,
    /// The name of the entry to search from; `None` when the URL ends before it.
    pub base: Option<Vec<u8>>,
    /// None means all.
    pub attributes: Vec<Vec<u8>>,
    /// How far below the base.
    pub scope: Option<Scope>,
    /// In its text form.
    pub filter: Option<Vec<u8>>,
}

/// Why a text is no URL; the numbers are those of the reference's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadUrl {
    /// It does not begin as one.
    Scheme = 3,
    /// It begins with `<` and does not end with `>`.
    Enclosure = 4,
    /// The port is none, or there are too many parts.
    Form = 5,
    /// A word that is no scope.
    Scope = 8,
    /// An empty filter.
    Filter = 9,
    /// Extensions without any.
    Extensions = 10,
}

/// Does it look like an LDAP URL? Anything else in its place is the name of an entry.
pub(super) fn looks_like(text: &[u8]) -> bool {
    without_prefix(text).is_some()
}

/// The scheme, what follows, and whether `<` stood before.
fn without_prefix(text: &[u8]) -> Option<(Scheme, &[u8], bool)> {
    let strip = |text: &'_ [u8], prefix: &[u8]| {
        let head = text.get(..prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then_some(prefix.len())
    };
    let enclosed = text.starts_with(b"<");
    let text = &text[usize::from(enclosed)..];
    let text = &text[strip(text, b"URL:").unwrap_or(0)..];
    [Scheme::Ldap, Scheme::Ldaps, Scheme::Ldapi]
        .into_iter()
        .find_map(|scheme| {
            let length = strip(text, format!("{}://", scheme.name()).as_bytes())?;
            Some((scheme, &text[length..], enclosed))
        })
}

impl Url {
    /// Takes it apart.
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn parse(text: &[u8]) -> Result<Self, BadUrl> {
        let (scheme, mut rest, enclosed) = without_prefix(text).ok_or(BadUrl::Scheme)?;
        if enclosed {
            rest = rest.strip_suffix(b">").ok_or(BadUrl::Enclosure)?;
        }
        let (place, rest) = match memchr::memchr(b'/', rest) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (before_question_mark(rest), None),
        };
        let (host, port) = if scheme == Scheme::Ldapi {
            (place, None)
        } else {
            host_and_port(place)?
        };
        let mut url = Self {
            scheme,
            host: decoded(host),
            port,
            base: None,
            attributes: Vec::new(),
            scope: None,
            filter: None,
        };
        let Some(rest) = rest else {
            return Ok(url);
        };
        let mut parts = rest.split(|&byte| byte == b'?');
        url.base = parts.next().map(decoded);
        if let Some(list) = parts.next() {
            url.attributes = decoded(list)
                .split(|&byte| byte == b',')
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect();
        }
        if let Some(word) = parts.next().filter(|word| !word.is_empty()) {
            url.scope = Some(Scope::parse(&decoded(word)).ok_or(BadUrl::Scope)?);
        }
        if let Some(filter) = parts.next().filter(|filter| !filter.is_empty()) {
            let filter = decoded(filter);
            if filter.first().is_none_or(|&byte| byte == 0) {
                return Err(BadUrl::Filter);
            }
            url.filter = Some(filter);
        }
        if let Some(extensions) = parts.next() {
            if parts.next().is_some() {
                return Err(BadUrl::Form);
            }
            if extensions.iter().all(|&byte| byte == b',') {
                return Err(BadUrl::Extensions);
            }
        }
        Ok(url)
    }
}

fn before_question_mark(text: &[u8]) -> &[u8] {
    &text[..memchr::memchr(b'?', text).unwrap_or(text.len())]
}

fn host_and_port(place: &[u8]) -> Result<(&[u8], Option<u16>), BadUrl> {
    let (host, port) = if let Some(inner) = place.strip_prefix(b"[") {
        let end = memchr::memchr(b']', inner).ok_or(BadUrl::Form)?;
        let port = match &inner[end + 1..] {
            [] => None,
            [b':', port @ ..] => Some(port),
            _ => return Err(BadUrl::Form),
        };
        (&inner[..end], port)
    } else {
        match memchr::memchr(b':', place) {
            Some(at) => (&place[..at], Some(&place[at + 1..])),
            None => (place, None),
        }
    };
    let Some(port) = port else {
        return Ok((host, None));
    };
    let port = decoded(port);
    let number = std::str::from_utf8(&port)
        .ok()
        .and_then(|text| text.parse().ok());
    // Zero stands for the port of the scheme.
    let number: u16 = number.ok_or(BadUrl::Form)?;
    Ok((host, (number > 0).then_some(number)))
}

/// Replaces each `%XX`; a percent sign without two digits ends the text, as in the reference.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let digit = |place: usize| char::from(*after.get(place)?).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            break;
        };
        out.push(u8::try_from(high << 4 | low).unwrap_or(0));
        rest = &after[2..];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Result<(Scheme, String, Option<u16>), BadUrl> {
        let url = Url::parse(text.as_bytes())?;
        Ok((url.scheme, String::from_utf8(url.host).unwrap(), url.port))
    }

    #[test]
    fn servers() {
        let is = |scheme, host: &str, port| Ok((scheme, host.to_owned(), port));
        assert_eq!(place("ldap://h"), is(Scheme::Ldap, "h", None));
        assert_eq!(place("LDAPS://h:1/"), is(Scheme::Ldaps, "h", Some(1)));
        assert_eq!(place("ldap://h:0"), is(Scheme::Ldap, "h", None));
        assert_eq!(place("ldap:///"), is(Scheme::Ldap, "", None));
        assert_eq!(
            place("<URL:ldap://[::1]:5>"),
            is(Scheme::Ldap, "::1", Some(5))
        );
        assert_eq!(place("ldapi://%2Fa%3ab/"), is(Scheme::Ldapi, "/a:b", None));
        assert_eq!(place("http://h"), Err(BadUrl::Scheme));
        assert_eq!(place("<ldap://h"), Err(BadUrl::Enclosure));
        for bad in [
            "ldap://h:",
            "ldap://h:x",
            "ldap://::1",
            "ldap://[::1",
            "ldap://[::1]x",
            "ldap://h:70000",
        ] {
            assert_eq!(place(bad), Err(BadUrl::Form), "{bad}");
        }
    }

    #[test]
    fn searches() {
        let url = Url::parse(b"ldap:///o=a%20b?mail,x;y?one?(a=%28)").unwrap();
        assert_eq!(url.base.unwrap(), b"o=a b");
        assert_eq!(url.attributes, [&b"mail"[..], b"x;y"]);
        assert_eq!(url.scope, Some(Scope::One));
        assert_eq!(url.filter.unwrap(), b"(a=()");
        let url = Url::parse(b"ldap:///??sub").unwrap();
        assert_eq!((url.base, url.scope), (Some(Vec::new()), Some(Scope::Sub)));
        assert!(url.attributes.is_empty() && url.filter.is_none());
        assert_eq!(Url::parse(b"ldap://h").unwrap().base, None);
        let fault = |text: &[u8]| Url::parse(text).unwrap_err();
        assert_eq!(fault(b"ldap:///o=a??two"), BadUrl::Scope);
        assert_eq!(fault(b"ldap:///o=a????"), BadUrl::Extensions);
        assert_eq!(fault(b"ldap:///o=a????x?"), BadUrl::Form);
        assert_eq!(fault(b"ldap:///o=a???%00"), BadUrl::Filter);
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_not(rest in "[a:/?%2,;\\[\\]<> ]{0,40}", bytes: Vec<u8>) {
            let _ = Url::parse(format!("ldap://{rest}").as_bytes());
            let _ = Url::parse(&[b"ldapi://", &bytes[..]].concat());
        }
    }
}
