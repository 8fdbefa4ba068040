//! The rules that all types share: keys and values that must be UTF-8, and folding of keys
//! (Postfix `src/util/dict_utf8.c`).
//!
//! A table of fixed strings folds keys when a request says `fold_fix`, a pattern table when it says `fold_mul`.
//! Types never do that on their own; they get the key as they are to look for it.

use std::sync::Arc;

use log::warn;
use postkeep_table::{
    Completion, Cursor, Flags, Latency, LookupError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch,
};

use crate::fold::fold_key;
use crate::{BuildError, Builder};

/// Lays the shared rules over a table.
pub(crate) fn over_table(inner: Arc<dyn Table>, utf8: bool) -> Arc<dyn Table> {
    if inner.flags().contains(Flags::UTF8_ACTIVE) {
        // Somebody further inside, or at the other end of a connection, checks and folds already.
        return inner;
    }
    let fold = if inner.flags().contains(Flags::FIXED) {
        Flags::FOLD_FIX
    } else {
        Flags::FOLD_MUL
    };
    Arc::new(Layered {
        inner,
        rules: Rules { utf8, fold },
    })
}

/// Lays the shared rules over a table that is being built.
pub(crate) fn over_builder(
    name: &TableName,
    inner: Box<dyn Builder>,
    utf8: bool,
) -> Box<dyn Builder> {
    Box::new(LayeredBuilder {
        name: name.clone(),
        inner,
        rules: Rules {
            utf8,
            fold: Flags::FOLD_FIX,
        },
    })
}

/// Whether bytes are UTF-8 (RFC 3629): no overlong forms, no surrogates.
pub(crate) fn valid(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}

#[derive(Clone, Copy)]
struct Rules {
    utf8: bool,
    /// The flag that asks for folding, or none.
    fold: Flags,
}

impl Rules {
    fn key_is_good(self, name: &TableName, key: &[u8]) -> bool {
        let good = !self.utf8 || valid(key);
        if !good {
            warn!(
                "{name}: non-UTF-8 key \"{}\": malformed UTF-8 or invalid codepoint",
                Printable(key)
            );
        }
        good
    }

    fn value_is_good(self, name: &TableName, key: &[u8], value: &[u8]) -> bool {
        let good = !self.utf8 || valid(value);
        if !good {
            warn!(
                "{name}: key \"{}\": non-UTF-8 value \"{}\": malformed UTF-8 or invalid codepoint",
                Printable(key),
                Printable(value)
            );
        }
        good
    }

    fn fold(self, flags: Flags, key: &[u8]) -> std::borrow::Cow<'_, [u8]> {
        if flags.intersects(self.fold) {
            fold_key(key, self.utf8)
        } else {
            std::borrow::Cow::Borrowed(key)
        }
    }
}

struct Layered {
    inner: Arc<dyn Table>,
    rules: Rules,
}

impl Layered {
    fn check_value(
        &self,
        key: &[u8],
        value: &mut Vec<u8>,
        start: usize,
        result: Result<Outcome, LookupError>,
    ) -> Result<Outcome, LookupError> {
        if matches!(result, Ok(Outcome::Done))
            && !self.rules.value_is_good(self.name(), key, &value[start..])
        {
            value.truncate(start);
            return Err(LookupError::Config(String::new()));
        }
        result
    }
}

impl Table for Layered {
    fn name(&self) -> &TableName {
        self.inner.name()
    }

    fn flags(&self) -> Flags {
        let active = if self.rules.utf8 {
            Flags::UTF8_ACTIVE
        } else {
            Flags::empty()
        };
        self.inner.flags() | active
    }

    fn latency(&self) -> Latency {
        self.inner.latency()
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if !self.rules.key_is_good(self.name(), key) {
            return Ok(Outcome::Absent);
        }
        let start = value.len();
        let result = self
            .inner
            .lookup(flags, &self.rules.fold(flags, key), value);
        self.check_value(key, value, start, result)
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        if self.rules.utf8 && !valid(key) {
            return Some(self.lookup(flags, key, value));
        }
        let start = value.len();
        let result = self
            .inner
            .try_lookup(flags, &self.rules.fold(flags, key), value)?;
        Some(self.check_value(key, value, start, result))
    }

    fn begin_lookup(self: Arc<Self>, flags: Flags, key: &[u8], value: Vec<u8>, done: Completion) {
        if !self.rules.key_is_good(self.name(), key) {
            return done(Ok(Outcome::Absent), value);
        }
        let (start, asked) = (value.len(), key.to_vec());
        let inner = Arc::clone(&self.inner);
        let key = self.rules.fold(flags, key);
        let check = move |result, mut value: Vec<u8>| {
            let result = self.check_value(&asked, &mut value, start, result);
            done(result, value);
        };
        inner.begin_lookup(flags, &key, value, Box::new(check));
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        // The reference reports success for what it does not store.
        if !self.rules.key_is_good(self.name(), key)
            || !self.rules.value_is_good(self.name(), key, value)
        {
            return Ok(Outcome::Done);
        }
        self.inner
            .update(flags, &self.rules.fold(flags, key), value)
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        if !self.rules.key_is_good(self.name(), key) {
            return Ok(Outcome::Done);
        }
        self.inner.delete(flags, &self.rules.fold(flags, key))
    }

    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.inner.sequence(flags, step, cursor, key, value)
    }

    fn watches(&self) -> Vec<Watch> {
        self.inner.watches()
    }

    fn owner(&self) -> Owner {
        self.inner.owner()
    }
}

struct LayeredBuilder {
    name: TableName,
    inner: Box<dyn Builder>,
    rules: Rules,
}

impl Builder for LayeredBuilder {
    fn add(&mut self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, BuildError> {
        if !self.rules.key_is_good(&self.name, key)
            || !self.rules.value_is_good(&self.name, key, value)
        {
            return Ok(Outcome::Done);
        }
        self.inner.add(flags, &self.rules.fold(flags, key), value)
    }

    fn finish(self: Box<Self>) -> Result<(), BuildError> {
        self.inner.finish()
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &[u8], flags: Flags) -> Arc<dyn Table> {
        let registry = Registry::new(Context::default());
        registry
            .open(&TableName::parse(name).unwrap(), Access::Read, flags)
            .unwrap()
    }

    #[test]
    fn a_bad_key_is_not_found_even_where_everything_fails() {
        let table = open(b"fail:x", Flags::UTF8_REQUEST);
        assert_eq!(
            table
                .lookup(Flags::empty(), b"\xff", &mut Vec::new())
                .unwrap(),
            Outcome::Absent
        );
        assert!(table.flags().contains(Flags::UTF8_ACTIVE));
    }

    #[test]
    fn a_bad_value_is_a_configuration_error_and_leaves_nothing() {
        let table = open(b"static:\xff", Flags::UTF8_REQUEST);
        let mut value = b"before".to_vec();
        let error = table.lookup(Flags::empty(), b"k", &mut value).unwrap_err();
        assert!(matches!(error, LookupError::Config(_)));
        assert_eq!(value, b"before");
        let table = open(b"static:\xff", Flags::empty());
        assert_eq!(
            table.lookup(Flags::empty(), b"k", &mut value).unwrap(),
            Outcome::Done
        );
    }

    #[test]
    fn folding_is_asked_for_by_each_request() {
        let table = open(b"inline:{key=v}", Flags::empty());
        let find = |flags| table.lookup(flags, b"KEY", &mut Vec::new()).unwrap();
        assert_eq!(find(Flags::empty()), Outcome::Absent);
        assert_eq!(find(Flags::FOLD_FIX), Outcome::Done);
        assert_eq!(find(Flags::FOLD_MUL), Outcome::Absent);
    }
}
