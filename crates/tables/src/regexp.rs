//! `regexp:FILE` or `regexp:{ {rule}, ... }` matches keys against POSIX regular expressions, by the C library.
//!
//! Rules are lines as those of `pcre:`, with the flags `i`, `m` and `x`; `/pattern1/!/pattern2/ result` is for keys
//! that match the first and not the second (`regexp_table(5)`). Of several matches the longest counts. What the C
//! library does beyond the standard is what it does for the reference: `\w`, `\b`, back references; and with `i`, the
//! default, an escaped lower-case letter matches nothing.
//!
//! A lookup does not try every rule: see `pcre:`. Always tried are rules with back references or with an escaped
//! letter that is not one of `\w \W \s \S \b \B`.
//!
//! Differences from the reference: a changed file is noticed; for a daemon a file that cannot be read is an error and
//! not an empty table; an expression with thousands of optional parts, alternatives or nested groups is refused as
//! too big, where the C library would take all memory or crash; a file of rules may have 64 MiB, and its expressions
//! may take 1 GiB.

mod cost;

use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use postkeep_sys::pcre::Effort;
use postkeep_sys::posix_regex::{Error, Expression, Options};

use crate::pattern_rules::{Dialect, PatternFlags, PatternText};
use crate::pattern_table::{Engine, NoAnswer, open};
use crate::required_text::{OneOf, Syntax, required_text};
use crate::table_type::{Capabilities, TableType};

use cost::Cost;

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "regexp",
    summary: "POSIX regular expressions",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::PATTERN)
        .union(Capabilities::FILE)
        .union(Capabilities::DATA_IN_NAME),
    open: open::<SharedExpression>,
    build: None,
};

/// A longer key, in bytes, is not for a quick lookup: time can grow with the square of the length.
const QUICK_KEY: usize = 1024;

/// How many copies of an expression wait for threads that want it at the same time.
const SPARES: usize = 8;

/// An expression that many threads use at the same time.
///
/// The C library has a lock in each compiled expression; a thread that finds the first copy in use takes another.
pub(crate) struct SharedExpression {
    text: Box<[u8]>,
    options: Options,
    cost: Cost,
    groups: usize,
    first: Mutex<Copy>,
    spares: Mutex<Vec<Copy>>,
}

/// One compiled copy.
struct Copy {
    expression: Expression,
    /// Bytes that may be matched before the copy is made anew.
    ///
    /// The C library keeps what it learns of an expression, up to some kilobytes for each byte of a key.
    left: usize,
}

impl SharedExpression {
    fn new(text: &[u8], options: Options) -> Result<Self, Error> {
        let cost = Cost::of(text, options.contains(Options::EXTENDED));
        if cost.is_too_much() {
            return Err(Error::TOO_BIG);
        }
        let expression = Expression::new(text, options)?;
        Ok(Self {
            text: text.into(),
            options,
            groups: expression.groups(),
            first: Mutex::new(Copy {
                expression,
                left: cost.bytes_before_renewal(),
            }),
            cost,
            spares: Mutex::default(),
        })
    }

    fn copy(&self) -> Result<Copy, Error> {
        Ok(Copy {
            expression: Expression::new(&self.text, self.options)?,
            left: self.cost.bytes_before_renewal(),
        })
    }

    fn find(&self, key: &CStr, spans: &mut [(usize, usize)]) -> Result<bool, Error> {
        match self.first.try_lock() {
            Ok(mut first) => self.find_with(&mut first, key, spans),
            Err(TryLockError::Poisoned(first)) => {
                self.find_with(&mut first.into_inner(), key, spans)
            }
            Err(TryLockError::WouldBlock) => {
                let spare = self.spares().pop();
                let mut spare = match spare {
                    Some(spare) => spare,
                    None => self.copy()?,
                };
                let result = self.find_with(&mut spare, key, spans);
                let mut spares = self.spares();
                if spares.len() < SPARES {
                    spares.push(spare);
                }
                result
            }
        }
    }

    fn find_with(
        &self,
        copy: &mut Copy,
        key: &CStr,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, Error> {
        let result = copy.expression.find(key, spans);
        let length = key.count_bytes();
        match copy.left.checked_sub(length) {
            Some(left) => copy.left = left,
            None => {
                if let Ok(new) = self.copy() {
                    *copy = new;
                }
            }
        }
        result
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Copy>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for SharedExpression {
    const DIALECT: Dialect = Dialect::Regexp;

    fn compile(pattern: &PatternText<'_>, groups: Option<bool>) -> Result<Self, String> {
        let mut options = [
            (PatternFlags::CASELESS, Options::ICASE),
            (PatternFlags::MULTILINE, Options::NEWLINE),
            (PatternFlags::EXTENDED, Options::EXTENDED),
        ]
        .into_iter()
        .filter(|(flag, _)| pattern.flags.contains(*flag))
        .fold(Options::empty(), |options, (_, option)| options | option);
        options.set(Options::NOSUB, groups == Some(false));
        Self::new(pattern.text, options).map_err(|error| error.to_string())
    }

    fn groups(&self) -> usize {
        self.groups
    }

    fn size(&self) -> usize {
        self.cost.bytes()
    }

    fn required(pattern: &PatternText<'_>) -> Vec<OneOf> {
        let syntax = if pattern.flags.contains(PatternFlags::EXTENDED) {
            Syntax::Extended
        } else {
            Syntax::Basic
        };
        let lines = pattern.flags.contains(PatternFlags::MULTILINE);
        required_text(pattern.text, syntax, lines)
    }

    fn matches(
        &self,
        key: &[u8],
        effort: Effort,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, NoAnswer> {
        if effort == Effort::Quick && (key.len() > QUICK_KEY || self.cost.is_slow()) {
            return Err(NoAnswer::TooMuch);
        }
        let key = CStr::from_bytes_until_nul(key).unwrap_or_default();
        self.find(key, spans)
            .map_err(|error| NoAnswer::Failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_do_not_wait_for_each_other() {
        let expression = SharedExpression::new(b"(b+)$", Options::EXTENDED).unwrap();
        let held = expression.first.lock().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut spans = [(0, 0); 2];
                        assert_eq!(expression.find(c"aabbb", &mut spans), Ok(true));
                        assert_eq!(spans[1], (2, 5));
                    }
                });
            }
        });
        drop(held);
        assert!((1..=4).contains(&expression.spares().len()));
    }

    #[test]
    fn a_copy_is_made_anew_after_many_bytes() {
        let expression = SharedExpression::new(b"a.*b.*c", Options::EXTENDED).unwrap();
        let whole = expression.cost.bytes_before_renewal();
        assert_eq!(expression.find(c"abc", &mut []), Ok(true));
        assert_eq!(expression.first.lock().unwrap().left, whole - 3);
        expression.first.lock().unwrap().left = 2;
        assert_eq!(expression.find(c"abc", &mut []), Ok(true));
        assert_eq!(expression.first.lock().unwrap().left, whole);
    }

    #[test]
    fn what_can_take_long_is_not_quick() {
        let slow = |text: &str, key: &[u8]| {
            let expression = SharedExpression::new(text.as_bytes(), Options::EXTENDED).unwrap();
            expression.matches(key, Effort::Quick, &mut []).is_err()
        };
        assert!(!slow("abc", b"abc\0"));
        assert!(slow("(a)\\1", b"abc\0"));
        let long = [&vec![b'a'; 2000][..], b"\0"].concat();
        assert!(slow("abc", &long));
    }
}
