//! `pcre:FILE` or `pcre:{ {rule}, ... }` matches keys against Perl-compatible regular expressions.
//!
//! Rules are lines of the form `/pattern/flags result`, `!/pattern/flags result`, `if /pattern/flags`,
//! `if !/pattern/flags` and `endif`; the first that matches gives the result, in which `$1`, `${1}` or `$(1)` is what
//! a group matched (`pcre_table(5)`). Keys are bytes, compared without regard to the case of ASCII letters unless a
//! rule says otherwise, and they are not folded.
//!
//! A rule that runs into PCRE2's limits counts as one that does not match, negated or not, and is warned about.
//!
//! A lookup does not try every rule: text that a pattern requires is looked for in the key first, for all rules at
//! once. Rules are always tried when they require less than two bytes of text (`/^.*$/`, `/[0-9]+/`) or when their
//! pattern uses the `x` flag, verbs, conditions, recursion, `\Q`, or characters by number.
//!
//! Differences from the reference: a changed file is noticed; for a daemon a file that cannot be read is an error and
//! not an empty table; a pattern that cannot match is not tried, so it cannot run into a limit; one match gets at
//! most 256 MiB, a file of rules may have 64 MiB, and its patterns may take 1 GiB.

use postkeep_sys::pcre::{Effort, Options, Pattern};

use crate::pattern_rules::{Dialect, PatternFlags, PatternText};
use crate::pattern_table::{Engine, NoAnswer, open};
use crate::required_text::{OneOf, Syntax, required_text};
use crate::table_type::{Capabilities, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "pcre",
    summary: "Perl-compatible regular expressions",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::PATTERN)
        .union(Capabilities::FILE)
        .union(Capabilities::DATA_IN_NAME),
    open: open::<Pattern>,
    build: None,
};

impl Engine for Pattern {
    const DIALECT: Dialect = Dialect::Pcre;

    fn compile(pattern: &PatternText<'_>, _: Option<bool>) -> Result<Self, String> {
        let options = [
            (PatternFlags::CASELESS, Options::CASELESS),
            (PatternFlags::MULTILINE, Options::MULTILINE),
            (PatternFlags::DOTALL, Options::DOTALL),
            (PatternFlags::EXTENDED, Options::EXTENDED),
            (PatternFlags::ANCHORED, Options::ANCHORED),
            (PatternFlags::DOLLAR_ENDONLY, Options::DOLLAR_ENDONLY),
            (PatternFlags::UNGREEDY, Options::UNGREEDY),
        ]
        .into_iter()
        .filter(|(flag, _)| pattern.flags.contains(*flag))
        .fold(Options::empty(), |options, (_, option)| options | option);
        Self::new(pattern.text, options).map_err(|error| error.to_string())
    }

    fn groups(&self) -> usize {
        self.groups() as usize
    }

    fn size(&self) -> usize {
        self.size()
    }

    fn required(pattern: &PatternText<'_>) -> Vec<OneOf> {
        if pattern.flags.contains(PatternFlags::EXTENDED) {
            return Vec::new();
        }
        let lines = pattern.flags.contains(PatternFlags::MULTILINE);
        required_text(pattern.text, Syntax::Pcre, lines)
    }

    fn matches(
        &self,
        key: &[u8],
        effort: Effort,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, NoAnswer> {
        self.find(&key[..key.len() - 1], effort, spans)
            .map_err(|error| NoAnswer::Failed(error.to_string()))
    }
}

#[cfg(test)]
#[path = "pattern_table_tests.rs"]
mod tests;
