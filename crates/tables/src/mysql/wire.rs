//! Packets of the server, taken apart: greeting, errors, states, rows. Pure.
//!
//! # References
//! The manual of the server's client/server protocol, "Connection Phase" and "Text Resultset".

/// What a packet says that is no error.
pub(super) type Parsed<T> = Result<T, Malformed>;

/// A packet that breaks off, or says what it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed packet")]
pub(super) struct Malformed;

/// The abilities that both ends tell each other of.
pub(super) mod ability {
    pub(in super::super) const LONG_PASSWORD: u32 = 1;
    pub(in super::super) const CONNECT_WITH_DB: u32 = 1 << 3;
    pub(in super::super) const PROTOCOL_41: u32 = 1 << 9;
    pub(in super::super) const TLS: u32 = 1 << 11;
    pub(in super::super) const TRANSACTIONS: u32 = 1 << 13;
    pub(in super::super) const SECURE_CONNECTION: u32 = 1 << 15;
    pub(in super::super) const MULTI_RESULTS: u32 = 1 << 17;
    pub(in super::super) const PLUGIN_AUTH: u32 = 1 << 19;
}

/// More results follow.
pub(super) const MORE_RESULTS: u16 = 1 << 3;
/// A backslash in a literal is a letter like any other.
pub(super) const NO_BACKSLASH_ESCAPES: u16 = 1 << 9;

/// Reads a packet from its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Parsed<u8> {
        Ok(self.take(1)?[0])
    }

    /// A number in so many bytes, the lowest first.
    pub(super) fn number(&mut self, bytes: usize) -> Parsed<u64> {
        let taken = self.take(bytes)?;
        Ok(taken
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn short(&mut self) -> Parsed<u16> {
        u16::try_from(self.number(2)?).map_err(|_| Malformed)
    }

    /// A number whose first byte says how long it is; `None` for NULL.
    pub(super) fn counted(&mut self) -> Parsed<Option<u64>> {
        Ok(match self.byte()? {
            0xfb => None,
            0xfc => Some(self.number(2)?),
            0xfd => Some(self.number(3)?),
            0xfe => Some(self.number(8)?),
            0xff => return Err(Malformed),
            small => Some(u64::from(small)),
        })
    }

    /// A text with its length before it; `None` for NULL.
    pub(super) fn text(&mut self) -> Parsed<Option<&'a [u8]>> {
        let Some(length) = self.counted()? else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        self.take(length).map(Some)
    }

    /// A text with a NUL behind it.
    pub(super) fn until_nul(&mut self) -> Parsed<&'a [u8]> {
        let end = memchr::memchr(0, self.0).ok_or(Malformed)?;
        let taken = self.take(end)?;
        self.byte()?;
        Ok(taken)
    }
}

/// The first packet of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) abilities: u32,
    pub(super) status: u16,
    /// What the password is mixed with.
    pub(super) nonce: Vec<u8>,
    /// How the server would like to be told the password.
    pub(super) method: Vec<u8>,
}

impl Greeting {
    /// Takes it apart; protocol version 10 only, which is that of every server since 1998.
    pub(super) fn parse(packet: &[u8]) -> Parsed<Self> {
        let mut reader = Reader(packet);
        if reader.byte()? != 10 {
            return Err(Malformed);
        }
        reader.until_nul()?;
        reader.take(4)?;
        let mut nonce = reader.take(8)?.to_vec();
        reader.byte()?;
        let low = reader.number(2)?;
        reader.byte()?;
        let status = reader.short()?;
        let high = reader.number(2)?;
        let abilities = u32::try_from(high << 16 | low).map_err(|_| Malformed)?;
        let length = usize::from(reader.byte()?);
        reader.take(10)?;
        if abilities & ability::SECURE_CONNECTION != 0 {
            let rest = reader.take(length.saturating_sub(8).max(13))?;
            nonce.extend_from_slice(rest.strip_suffix(&[0]).unwrap_or(rest));
        }
        // The shared secret has this length in all methods that begin here.
        nonce.resize(20, 0);
        let mut method = Vec::new();
        if abilities & ability::PLUGIN_AUTH != 0 {
            method.extend_from_slice(reader.0.strip_suffix(&[0]).unwrap_or(reader.0));
        }
        Ok(Self {
            abilities,
            status,
            nonce,
            method,
        })
    }
}

/// An error that the server tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerError {
    pub(super) code: u16,
    /// The SQLSTATE; empty where the server does not say.
    pub(super) state: Vec<u8>,
    pub(super) message: Vec<u8>,
}

impl ServerError {
    /// Takes a packet apart that begins with 0xff.
    pub(super) fn parse(packet: &[u8]) -> Parsed<Self> {
        let mut reader = Reader(packet);
        reader.byte()?;
        let code = reader.short()?;
        let mut state = Vec::new();
        if reader.0.first() == Some(&b'#') {
            reader.byte()?;
            state.extend_from_slice(reader.take(5)?);
        }
        Ok(Self {
            code,
            state,
            message: reader.0.to_vec(),
        })
    }
}

/// The status in a packet that says all is well.
pub(super) fn status_of_ok(packet: &[u8]) -> Parsed<u16> {
    let mut reader = Reader(packet);
    reader.byte()?;
    reader.counted()?;
    reader.counted()?;
    reader.short()
}

/// The status in a packet that ends columns or rows.
pub(super) fn status_of_end(packet: &[u8]) -> Parsed<u16> {
    let mut reader = Reader(packet);
    reader.take(3)?;
    reader.short()
}

/// Is this packet the end of columns or rows?
pub(super) fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&0xfe) && packet.len() < 9
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn greeting(length: u8) -> Vec<u8> {
        let mut packet = b"\x0a11.4\0".to_vec();
        packet.extend([1, 0, 0, 0]);
        packet.extend(b"12345678\0");
        packet.extend([0xff, 0xf7, 45, 2, 0, 0xff, 0x81, length]);
        packet.extend([0; 10]);
        packet.extend(b"901234567890\0mysql_native_password\0");
        packet
    }

    #[test]
    fn greetings() {
        let parsed = Greeting::parse(&greeting(21)).unwrap();
        assert_eq!(parsed.nonce, b"12345678901234567890");
        assert_eq!(parsed.method, b"mysql_native_password");
        assert_eq!(parsed.abilities, 0x81ff_f7ff);
        assert_eq!(parsed.status, 2);
        for length in [0, 8, 20, 21] {
            assert_eq!(Greeting::parse(&greeting(length)).unwrap(), parsed);
        }
        assert_eq!(Greeting::parse(&greeting(255)), Err(Malformed));
        let whole = greeting(21);
        for end in 0..whole.len() - 23 {
            assert_eq!(Greeting::parse(&whole[..end]), Err(Malformed), "{end}");
        }
    }

    #[test]
    fn errors_with_and_without_a_state() {
        let error = ServerError::parse(b"\xff\x15\x04#28000no").unwrap();
        assert_eq!(
            (error.code, &error.state[..], &error.message[..]),
            (1045, &b"28000"[..], &b"no"[..])
        );
        let error = ServerError::parse(b"\xff\x15\x04no").unwrap();
        assert_eq!(
            (&error.state[..], &error.message[..]),
            (&b""[..], &b"no"[..])
        );
        assert!(ServerError::parse(b"\xff\x15\x04#28").is_err());
    }

    #[test]
    fn numbers_and_texts() {
        let mut reader = Reader(b"\x02ab\xfb\xfc\x01\x00c\xfd\x01\0\0d\xfe\x01\0\0\0\0\0\0\0e");
        assert_eq!(reader.text().unwrap().unwrap(), b"ab");
        assert_eq!(reader.text().unwrap(), None);
        for wanted in [b"c", b"d", b"e"] {
            assert_eq!(reader.text().unwrap().unwrap(), wanted);
        }
        assert_eq!(reader.text(), Err(Malformed));
        assert!(
            Reader(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff")
                .text()
                .is_err()
        );
        assert!(Reader(b"\xff").text().is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Greeting::parse(&packet);
            let _ = ServerError::parse(&packet);
            let _ = status_of_ok(&packet);
            let _ = status_of_end(&packet);
            let _ = Reader(&packet).text();
        }
    }
}
