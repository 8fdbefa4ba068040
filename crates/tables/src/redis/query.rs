//! What is asked for a key: `key_format`, or a `command`.

use postkeep_remote::config::{Config, ConfigError};
use postkeep_remote::rules::Rules;
use postkeep_remote::template::{Key, Piece, Template, unquoted};

/// Commands that change nothing and have one key, as their first argument.
const READ_ONLY: [&str; 18] = [
    "EXISTS",
    "GET",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HKEYS",
    "HMGET",
    "HVALS",
    "LINDEX",
    "LRANGE",
    "SISMEMBER",
    "SMEMBERS",
    "SRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZREVRANGE",
    "ZREVRANGEBYSCORE",
    "ZSCORE",
];

/// Commands that answer yes or no, as a number.
const ASKING: [&str; 3] = ["EXISTS", "HEXISTS", "SISMEMBER"];

/// What is asked.
pub(super) enum Query {
    /// The value of a key, which can be written, too.
    Value(Template),
    /// A command with its arguments.
    Command { name: String, words: Vec<Template> },
}

/// A text before and after the key as the table's clients know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Surroundings {
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

impl Surroundings {
    /// With a key in between.
    pub(super) fn around(&self, key: &[u8]) -> Vec<u8> {
        [&self.before[..], key, &self.after].concat()
    }

    /// The key in between, when there is one.
    pub(super) fn within<'a>(&self, stored: &'a [u8]) -> Option<&'a [u8]> {
        let key = stored
            .strip_prefix(&self.before[..])?
            .strip_suffix(&self.after[..])?;
        (!key.is_empty()).then_some(key)
    }
}

impl Query {
    /// Reads the keys, and the rules with them.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn read(config: &Config) -> Result<(Self, Rules), ConfigError> {
        let format = config.optional("key_format")?;
        let Some(text) = config.optional("command")? else {
            let text = format.unwrap_or_else(|| b"%s".to_vec());
            let mut rules = Rules::read(config, |_| Ok(text.clone()))?;
            let format = rules.add_query(&text)?;
            return Ok((Self::Value(format), rules));
        };
        if format.is_some() {
            return Err(config.unusable("key_format", &"there is a command, which has the key"));
        }
        let mut words = text
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let name = words.next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        if !READ_ONLY.contains(&&name[..]) {
            let why = format!("expecting one of {}", READ_ONLY.join(", "));
            return Err(config.unusable("command", &why));
        }
        let words: Vec<_> = words.collect();
        let Some(first) = words.first() else {
            return Err(config.unusable("command", &"there is no key after it"));
        };
        let mut rules = Rules::read(config, |_| Ok(first.to_vec()))?;
        let words = words
            .iter()
            .map(|word| rules.add_query(word))
            .collect::<Result<Vec<_>, _>>()?;
        if !words.iter().any(Template::is_dynamic) {
            return Err(config.unusable("command", &"nothing in it depends on the key"));
        }
        Ok((Self::Command { name, words }, rules))
    }

    /// What is around a key, when the key can be told from a stored one and there is something around it.
    pub(super) fn surroundings(&self) -> Option<Surroundings> {
        let Self::Value(format) = self else {
            return None;
        };
        let mut found = Surroundings {
            before: Vec::new(),
            after: Vec::new(),
        };
        let mut keys = 0;
        for piece in format.pieces() {
            match piece {
                Piece::Text(text) if keys == 0 => found.before.extend_from_slice(text),
                Piece::Text(text) => found.after.extend_from_slice(text),
                Piece::Whole(_) => keys += 1,
                _ => return None,
            }
        }
        (keys == 1 && !(found.before.is_empty() && found.after.is_empty())).then_some(found)
    }

    /// The words of the command; the second one is the key that is stored.
    pub(super) fn words(&self, key: &Key<'_>) -> Vec<Vec<u8>> {
        let expanded = |template: &Template| {
            let mut word = Vec::new();
            key.expand(template, unquoted, &mut word);
            word
        };
        match self {
            Self::Value(format) => vec![b"GET".to_vec(), expanded(format)],
            Self::Command { name, words } => std::iter::once(name.as_bytes().to_vec())
                .chain(words.iter().map(expanded))
                .collect(),
        }
    }

    /// Is a zero in the answer a no?
    pub(super) fn is_asking(&self) -> bool {
        matches!(self, Self::Command { name, .. } if ASKING.contains(&&name[..]))
    }
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;
    use postkeep_table::TableName;

    use super::*;

    fn read(text: &str) -> Result<(Query, Rules), ConfigError> {
        let config = Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7)?;
        Query::read(&config)
    }

    fn words(text: &str, key: &'static [u8]) -> Option<Vec<Vec<u8>>> {
        let (query, rules) = read(text).ok().unwrap();
        let table = TableName::parse(b"redis:/t.cf").unwrap();
        let asked = postkeep_remote::runtime::wait(async move {
            let key = rules.key(&table, key).await?;
            Ok(key.map(|key| query.words(&key)))
        });
        asked.unwrap()
    }

    #[test]
    fn a_key_never_becomes_two_words() {
        let wanted = |words: &[&[u8]]| Some(words.iter().map(|word| word.to_vec()).collect());
        assert_eq!(words("", b"a b"), wanted(&[b"GET", b"a b"]));
        assert_eq!(
            words("key_format = p:%d:%u\n", b"u@d"),
            wanted(&[b"GET", b"p:d:u"])
        );
        assert_eq!(words("key_format = %d\n", b"u"), None);
        assert_eq!(
            words("command = hget  user:%s mail\n", b"a b\r\n%s"),
            wanted(&[b"HGET", b"user:a b\r\n%s", b"mail"])
        );
        assert_eq!(words("command = SISMEMBER x %d\n", b"u"), None);
    }

    #[test]
    fn commands_that_write_are_refused() {
        for bad in [
            "SET %s x",
            "EVAL x 1 %s",
            "GETDEL %s",
            "KEYS %s",
            "GET",
            "%s x",
            "GET x",
        ] {
            assert!(read(&format!("command = {bad}\n")).is_err(), "{bad}");
        }
        assert!(read("command = GET %s\nkey_format = %s\n").is_err());
        assert!(READ_ONLY.is_sorted());
    }

    #[test]
    fn what_is_around_a_key() {
        let around = |text: &str| read(text).ok().unwrap().0.surroundings();
        let found = around("key_format = a%%:%s]\n").unwrap();
        assert_eq!(found.around(b"k"), b"a%:k]");
        assert_eq!(found.within(b"a%:k]"), Some(&b"k"[..]));
        for other in [&b"a%:]"[..], b"a%:k", b"b", b"a%:"] {
            assert_eq!(found.within(other), None);
        }
        for none in [
            "",
            "key_format = a:%u\n",
            "key_format = %s%s:\n",
            "command = GET a:%s\n",
        ] {
            assert_eq!(around(none), None);
        }
    }
}
