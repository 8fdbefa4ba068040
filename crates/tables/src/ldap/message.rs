//! Messages: requests as bytes, answers taken apart, and the words of result codes.
//!
//! # References
//! RFC 4511, section 4.

use crate::ldap::ber::{Malformed, Reader, frame, put, put_number, put_with, tag};

/// Tags of operations.
mod operation {
    pub(super) const BIND: u8 = 0x60;
    pub(super) const BIND_DONE: u8 = 0x61;
    pub(super) const SEARCH: u8 = 0x63;
    pub(super) const ENTRY: u8 = 0x64;
    pub(super) const SEARCH_DONE: u8 = 0x65;
    pub(super) const REFERENCE: u8 = 0x73;
    pub(super) const EXTENDED: u8 = 0x77;
    pub(super) const EXTENDED_DONE: u8 = 0x78;
    pub(super) const INTERMEDIATE: u8 = 0x79;
}

/// The name of the operation that starts TLS.
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

/// How far below its base a search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The base alone.
    Base = 0,
    /// What is right below it.
    One = 1,
    /// The base and all below it.
    Sub = 2,
}

impl Scope {
    /// As in a URL.
    pub(super) fn parse(word: &[u8]) -> Option<Self> {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("one") || is("onelevel") => Some(Self::One),
            () if is("base") => Some(Self::Base),
            () if is("sub") || is("subtree") => Some(Self::Sub),
            () => None,
        }
    }
}

/// A result code of the protocol, or one below zero, of the reference's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const REFERRAL: Self = Self(10);
    pub(super) const NO_SUCH_OBJECT: Self = Self(32);
    pub(super) const BUSY: Self = Self(51);
    pub(super) const UNAVAILABLE: Self = Self(52);
    pub(super) const SERVER_DOWN: Self = Self(-1);
    pub(super) const DECODING_ERROR: Self = Self(-4);
    pub(super) const TIMEOUT: Self = Self(-5);
    pub(super) const AUTH_UNKNOWN: Self = Self(-6);
    pub(super) const FILTER_ERROR: Self = Self(-7);
    pub(super) const CONNECT_ERROR: Self = Self(-11);
    pub(super) const REFERRAL_LIMIT: Self = Self(-17);

    /// The reference's words.
    pub(super) fn text(self) -> &'static str {
        let known = TEXTS.iter().find(|(code, _)| *code == self.0);
        match (known, self.0) {
            (Some((_, text)), _) => text,
            (None, ..0) => "Unknown API error",
            (None, 0x4000..) => "Unknown (extension) error",
            (None, _) => "Unknown error",
        }
    }
}

#[rustfmt::skip]
const TEXTS: &[(i32, &str)] = &[
    (-17, "Referral Limit Exceeded"),
    (-11, "Connect error"),
    (-7, "Bad search filter"),
    (-6, "Unknown authentication method"),
    (-5, "Timed out"),
    (-4, "Decoding error"),
    (-2, "Local error"),
    (-1, "Can't contact LDAP server"),
    (0, "Success"),
    (1, "Operations error"),
    (2, "Protocol error"),
    (3, "Time limit exceeded"),
    (4, "Size limit exceeded"),
    (5, "Compare False"),
    (6, "Compare True"),
    (7, "Authentication method not supported"),
    (8, "Strong(er) authentication required"),
    (9, "Partial results and referral received"),
    (10, "Referral"),
    (11, "Administrative limit exceeded"),
    (12, "Critical extension is unavailable"),
    (13, "Confidentiality required"),
    (14, "SASL bind in progress"),
    (16, "No such attribute"),
    (17, "Undefined attribute type"),
    (18, "Inappropriate matching"),
    (19, "Constraint violation"),
    (20, "Type or value exists"),
    (21, "Invalid syntax"),
    (32, "No such object"),
    (33, "Alias problem"),
    (34, "Invalid DN syntax"),
    (35, "Entry is a leaf"),
    (36, "Alias dereferencing problem"),
    (48, "Inappropriate authentication"),
    (49, "Invalid credentials"),
    (50, "Insufficient access"),
    (51, "Server is busy"),
    (52, "Server is unavailable"),
    (53, "Server is unwilling to perform"),
    (54, "Loop detected"),
    (64, "Naming violation"),
    (65, "Object class violation"),
    (66, "Operation not allowed on non-leaf"),
    (67, "Operation not allowed on RDN"),
    (68, "Already exists"),
    (69, "Cannot modify object class"),
    (70, "Results too large"),
    (71, "Operation affects multiple DSAs"),
    (76, "Virtual List View error"),
    (80, "Other (e.g., implementation specific) error"),
];

/// A search, without who asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) base: Vec<u8>,
    pub(super) scope: Scope,
    /// How aliases are followed: 0 to 3.
    pub(super) dereference: i32,
    /// The most entries; 0 for any number.
    pub(super) size_limit: i32,
    /// Seconds.
    pub(super) time_limit: i32,
    /// In the form of messages.
    pub(super) filter: Vec<u8>,
    /// None means all.
    pub(super) attributes: Vec<Vec<u8>>,
}

impl Search {
    pub(super) fn message(&self, id: i32) -> Vec<u8> {
        message(id, |out| {
            put_with(out, operation::SEARCH, |out| {
                put(out, tag::OCTETS, &self.base);
                put_number(out, tag::ENUMERATED, self.scope as i32);
                put_number(out, tag::ENUMERATED, self.dereference);
                put_number(out, tag::INTEGER, self.size_limit);
                put_number(out, tag::INTEGER, self.time_limit);
                // Values are wanted, and not only names of attributes.
                put(out, tag::BOOLEAN, &[0]);
                out.extend_from_slice(&self.filter);
                put_with(out, tag::SEQUENCE, |out| {
                    for attribute in &self.attributes {
                        put(out, tag::OCTETS, attribute);
                    }
                });
            });
        })
    }
}

fn message(id: i32, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put_with(&mut out, tag::SEQUENCE, |out| {
        put_number(out, tag::INTEGER, id);
        fill(out);
    });
    out
}

/// How to say who we are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Credentials {
    /// Not at all.
    None,
    /// With a name and a password, which may be empty.
    Simple { name: Vec<u8>, password: Vec<u8> },
    /// By what the server knows from below: the certificate, or the owner of the process.
    External {
        name: Vec<u8>,
        /// Whom to act for, if not ourselves.
        authorize: Vec<u8>,
        /// Bits of secrecy that the connection must have.
        least_strength: u32,
    },
}

/// A request to bind; `None` without credentials.
pub(super) fn bind(id: i32, version: i32, credentials: &Credentials) -> Option<Vec<u8>> {
    let name: &[u8] = match credentials {
        Credentials::None => return None,
        Credentials::Simple { name, .. } => name,
        // The server knows it.
        Credentials::External { .. } => b"",
    };
    Some(message(id, |out| {
        put_with(out, operation::BIND, |out| {
            put_number(out, tag::INTEGER, version);
            put(out, tag::OCTETS, name);
            match credentials {
                Credentials::None => {}
                Credentials::Simple { password, .. } => put(out, tag::context(0), password),
                Credentials::External { authorize, .. } => {
                    put_with(out, tag::holding(3), |out| {
                        put(out, tag::OCTETS, b"EXTERNAL");
                        put(out, tag::OCTETS, authorize);
                    });
                }
            }
        });
    }))
}

/// A request for TLS.
pub(super) fn start_tls(id: i32) -> Vec<u8> {
    message(id, |out| {
        put_with(out, operation::EXTENDED, |out| {
            put(out, tag::context(0), START_TLS);
        });
    })
}

/// An attribute of an entry, with its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribute {
    /// With its options.
    pub name: Vec<u8>,
    /// Any bytes.
    pub values: Vec<Vec<u8>>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Zero for success.
    pub code: Code,
    /// URLs of servers that know more.
    pub referrals: Vec<Vec<u8>>,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// One found entry.
    Entry(Vec<Attribute>),
    /// URLs of servers, any of which knows a part of what was searched for.
    Reference(Vec<Vec<u8>>),
    /// The end of a search.
    SearchDone(Done),
    /// The end of another operation.
    Done(Done),
    /// Nothing that matters.
    Other,
}

/// Why what came cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is longer than it may be, or has more strings.
    #[error("too much for an answer")]
    TooMuch,
}

/// The length of the message that comes first; `None` when more bytes are needed to tell, or for the message.
///
/// # Errors
/// [`Fault`]; as soon as the message is known to have more than `limit` bytes.
pub fn first_message(input: &[u8], limit: usize) -> Result<Option<usize>, Fault> {
    if input.first().is_some_and(|&first| first != tag::SEQUENCE) {
        return Err(Malformed.into());
    }
    let Some((head, contents)) = frame(input)? else {
        return Ok(None);
    };
    let length = head.saturating_add(contents);
    if length > limit {
        return Err(Fault::TooMuch);
    }
    Ok((input.len() >= length).then_some(length))
}

/// Takes a message apart: its number and what it says. The number is 0 for what nobody asked for.
///
/// - `room`: how many more strings there may be. One can be as short as two bytes, and takes more when it is held.
///
/// # Errors
/// [`Fault`].
pub fn parse(message: &[u8], room: &mut usize) -> Result<(i32, Reply), Fault> {
    let mut reader = Reader(Reader(message).expect(tag::SEQUENCE)?);
    let id = reader.number(tag::INTEGER)?;
    let (operation, contents) = reader.next()?;
    let mut inner = Reader(contents);
    let reply = match operation {
        operation::ENTRY => Reply::Entry(entry(&mut inner, room)?),
        operation::REFERENCE => Reply::Reference(strings(&mut inner, room)?),
        operation::SEARCH_DONE => Reply::SearchDone(done(&mut inner, room)?),
        operation::BIND_DONE | operation::EXTENDED_DONE => Reply::Done(done(&mut inner, room)?),
        operation::INTERMEDIATE => Reply::Other,
        _ => return Err(Malformed.into()),
    };
    Ok((id, reply))
}

fn string(reader: &mut Reader<'_>, room: &mut usize) -> Result<Vec<u8>, Fault> {
    *room = room.checked_sub(1).ok_or(Fault::TooMuch)?;
    Ok(reader.expect(tag::OCTETS)?.to_vec())
}

fn strings(reader: &mut Reader<'_>, room: &mut usize) -> Result<Vec<Vec<u8>>, Fault> {
    let mut strings = Vec::new();
    while reader.peek().is_some() {
        strings.push(string(reader, room)?);
    }
    Ok(strings)
}

fn entry(reader: &mut Reader<'_>, room: &mut usize) -> Result<Vec<Attribute>, Fault> {
    reader.expect(tag::OCTETS)?;
    let mut list = Reader(reader.expect(tag::SEQUENCE)?);
    let mut attributes = Vec::new();
    while list.peek().is_some() {
        let mut attribute = Reader(list.expect(tag::SEQUENCE)?);
        let name = string(&mut attribute, room)?;
        let values = strings(&mut Reader(attribute.expect(tag::SET)?), room)?;
        attributes.push(Attribute { name, values });
    }
    Ok(attributes)
}

fn done(reader: &mut Reader<'_>, room: &mut usize) -> Result<Done, Fault> {
    let code = Code(reader.number(tag::ENUMERATED)?);
    reader.expect(tag::OCTETS)?;
    reader.expect(tag::OCTETS)?;
    let mut referrals = Vec::new();
    if reader.peek() == Some(tag::holding(3)) {
        referrals = strings(&mut Reader(reader.expect(tag::holding(3))?), room)?;
    }
    Ok(Done { code, referrals })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(message: &[u8]) -> Result<(i32, Reply), Fault> {
        parse(message, &mut 10)
    }

    #[test]
    fn requests() {
        let search = Search {
            base: b"o=x".to_vec(),
            scope: Scope::Sub,
            dereference: 3,
            size_limit: 300,
            time_limit: 10,
            filter: vec![0x87, 1, b'a'],
            attributes: vec![b"m".to_vec()],
        };
        assert_eq!(
            search.message(2),
            b"\x30\x22\x02\x01\x02\x63\x1d\x04\x03o=x\x0a\x01\x02\x0a\x01\x03\x02\x02\x01\x2c\x02\x01\x0a\x01\x01\x00\
              \x87\x01a\x30\x03\x04\x01m"
        );
        let simple = Credentials::Simple {
            name: b"n".to_vec(),
            password: b"p".to_vec(),
        };
        assert_eq!(
            bind(1, 3, &simple).unwrap(),
            b"\x30\x0e\x02\x01\x01\x60\x09\x02\x01\x03\x04\x01n\x80\x01p"
        );
        let external = Credentials::External {
            name: Vec::new(),
            authorize: Vec::new(),
            least_strength: 0,
        };
        assert_eq!(
            bind(1, 3, &external).unwrap(),
            b"\x30\x18\x02\x01\x01\x60\x13\x02\x01\x03\x04\x00\xa3\x0c\x04\x08EXTERNAL\x04\x00"
        );
        assert_eq!(bind(1, 3, &Credentials::None), None);
    }

    #[test]
    fn replies() {
        let message = b"\x30\x15\x02\x01\x02\x64\x10\x04\x01d\x30\x0b\x30\x09\x04\x01a\x31\x04\x04\x00\x04\x00";
        let attribute = Attribute {
            name: b"a".to_vec(),
            values: vec![Vec::new(), Vec::new()],
        };
        assert_eq!(parsed(message), Ok((2, Reply::Entry(vec![attribute]))));
        let message = b"\x30\x11\x02\x01\x02\x65\x0c\x0a\x01\x0a\x04\x00\x04\x00\xa3\x03\x04\x01u";
        let done = Done {
            code: Code::REFERRAL,
            referrals: vec![b"u".to_vec()],
        };
        assert_eq!(parsed(message), Ok((2, Reply::SearchDone(done))));
        let message = b"\x30\x05\x02\x01\x02\x42\x00";
        assert_eq!(parsed(message), Err(Malformed.into()));
        assert_eq!(Code(4).text(), "Size limit exceeded");
        assert_eq!(Code(15).text(), "Unknown error");
    }

    #[test]
    fn more_than_an_answer_may_have() {
        let message = b"\x30\x15\x02\x01\x02\x64\x10\x04\x01d\x30\x0b\x30\x09\x04\x01a\x31\x04\x04\x00\x04\x00";
        let mut room = 4;
        parse(message, &mut room).unwrap();
        assert_eq!(room, 1);
        assert_eq!(parse(message, &mut room), Err(Fault::TooMuch));
        assert_eq!(first_message(message, 23), Ok(Some(23)));
        assert_eq!(first_message(message, 22), Err(Fault::TooMuch));
        assert_eq!(first_message(&message[..22], 23), Ok(None));
        assert_eq!(first_message(b"\x31", 23), Err(Malformed.into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_reply_or_not(bytes: Vec<u8>, operation in 0x60_u8..0x7a) {
            let _ = parsed(&bytes);
            let whole = message(1, |out| put(out, operation, &bytes));
            let _ = parsed(&whole);
        }
    }
}
