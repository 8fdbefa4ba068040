//! What is said to the far end of a session that ends unused, by the service that it belongs to.

use std::fmt;
use std::sync::Arc;

/// The last words for the sessions of each service.
///
/// The label of an endpoint begins with the name that the client's service has in master.cf, up to the first
/// line end. Sessions of services that are not listed end without a word, as all do in Postfix.
///
/// # References
/// Postfix `smtp_key.c` (the first field of a label).
#[derive(Clone, Default)]
pub struct Goodbyes {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    service: Box<[u8]>,
    word: Arc<[u8]>,
}

/// Why a text is no list of goodbyes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("need a service and a word, as in smtp:QUIT, instead of: {entry}")]
pub struct BadGoodbye {
    /// The faulty entry.
    pub entry: String,
}

impl Goodbyes {
    /// Stands for every service that is not listed by its name.
    const ANY: &[u8] = b"*";

    /// Reads entries `SERVICE:WORD`, separated by commas and blanks. The word is sent with a CR and an LF
    /// after it. `*` is every service that is not listed by its name; of two entries for one service the
    /// first counts.
    ///
    /// # Errors
    /// [`BadGoodbye`] for an entry with an empty side, or without a colon.
    pub fn parse(text: &str) -> Result<Self, BadGoodbye> {
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        let entries = text.split(separator).filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| match entry.split_once(':') {
            Some((service, word)) if !service.is_empty() && !word.is_empty() => Ok(Entry {
                service: service.as_bytes().into(),
                word: [word.as_bytes(), b"\r\n"].concat().into(),
            }),
            _ => Err(BadGoodbye {
                entry: entry.to_owned(),
            }),
        });
        Ok(Self {
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// Nothing is said to anybody.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is said at the end of a session of this endpoint; nothing when its service is not listed.
    pub fn of(&self, endpoint: &[u8]) -> Option<&Arc<[u8]>> {
        if self.entries.is_empty() {
            return None;
        }
        let service = endpoint.split(|&byte| byte == b'\n').next()?;
        let find = |name: &[u8]| self.entries.iter().find(|entry| *entry.service == *name);
        find(service)
            .or_else(|| find(Self::ANY))
            .map(|entry| &entry.word)
    }
}

impl fmt::Debug for Goodbyes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.entries.iter().map(|entry| {
                (
                    String::from_utf8_lossy(&entry.service),
                    String::from_utf8_lossy(&entry.word),
                )
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_of_the_label_decides() {
        let goodbyes = Goodbyes::parse("smtp:QUIT, lmtp:BYE\t*:END,smtp:NO").unwrap();
        let said = |label: &str| goodbyes.of(label.as_bytes()).unwrap().to_vec();
        assert_eq!(said("smtp\n127.0.0.1\n25\n0\n"), b"QUIT\r\n");
        assert_eq!(said("smtp"), b"QUIT\r\n");
        assert_eq!(said("lmtp\nx\n"), b"BYE\r\n");
        assert_eq!(said("smtps\nsmtp\n"), b"END\r\n");
        assert_eq!(said(""), b"END\r\n");
        let few = Goodbyes::parse("smtp:QUIT").unwrap();
        assert_eq!(few.of(b"relay\nsmtp\n"), None);
        assert_eq!(Goodbyes::parse(" , ").unwrap().of(b"smtp\n"), None);
    }

    #[test]
    fn half_an_entry_is_none() {
        for text in ["smtp", "smtp:", ":QUIT", "smtp:QUIT, x"] {
            assert!(Goodbyes::parse(text).is_err(), "{text}");
        }
    }
}
