//! A table of rules whose patterns a library compiles: what `pcre:` and `regexp:` share.
//!
//! A lookup first rules out what cannot match ([`Prefilter`]); the library sees the rest, in the order of the rules.
//! A pattern that is ruled out counts as one that did not match: its negation matches, and its block is skipped.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use postkeep_sys::error_text;
use postkeep_sys::pcre::{Effort, Pattern};
use postkeep_table::{
    Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Table, TableName, Watch,
};

use crate::pattern_rules::{self, Dialect, PatternText, Reading, Rule};
use crate::prefilter::{Prefilter, RuleSet};
use crate::regexp::SharedExpression;
use crate::required_text::OneOf;
use crate::rule_source::{RuleSource, RuleSourceError};
use crate::substitution::Substitution;
use crate::table_type::Request;
use crate::{Caller, read_file_values};

/// How long a lookup may take that must not hold up other clients.
const QUICK: Duration = Duration::from_millis(5);

/// After so many patterns the clock is looked at.
const PATTERNS_PER_LOOK: u32 = 32;

/// What the patterns of one table may take, in bytes. The reference sets no limit.
const MEMORY: usize = 1 << 30;

/// With fewer rules than this a pass over the key costs more than it saves.
const FEWEST_RULES: usize = 3;

/// Why a pattern gave no answer.
pub(crate) enum NoAnswer {
    /// More work than asked for; another thread must do it.
    TooMuch,
    /// The library's reason; the rule counts as one that does not match, negated or not.
    Failed(String),
}

/// A library for patterns.
pub(crate) trait Engine: Send + Sync + Sized + 'static {
    /// The type of the table.
    const DIALECT: Dialect;

    /// Compiles a pattern. `groups`: somebody will ask where groups matched; `None` where the reference does not say
    /// so to its library.
    ///
    /// The text of an error follows `KIND map NAME, line N: `.
    fn compile(pattern: &PatternText<'_>, groups: Option<bool>) -> Result<Self, String>;

    /// How many groups the pattern has.
    fn groups(&self) -> usize;

    /// What the pattern takes, in bytes.
    fn size(&self) -> usize;

    /// Text that a key must have for the pattern to match.
    fn required(pattern: &PatternText<'_>) -> Vec<OneOf>;

    /// Whether the pattern matches in `key`, which has no NUL but the one behind its end. Fills `spans`, group 0 first.
    fn matches(
        &self,
        key: &[u8],
        effort: Effort,
        spans: &mut [(usize, usize)],
    ) -> Result<bool, NoAnswer>;
}

/// No block around a rule.
const NO_BLOCK: usize = usize::MAX;

struct Compiled<E> {
    line: usize,
    pattern: E,
    negated: bool,
    /// The rule that begins the innermost block around this one.
    block: usize,
    action: Action<E>,
}

enum Action<E> {
    Answer {
        second: Option<(E, bool)>,
        result: Substitution,
        /// How many spans the result needs.
        spans: usize,
    },
    /// The rules up to this one are for keys that match.
    Block { end: usize },
}

/// The rules of a table.
pub(crate) struct Rules<E> {
    list: Vec<Compiled<E>>,
    /// Rules that are looked at for each key: nothing rules them out, or they are negated, and then it matters when
    /// their pattern cannot match.
    always: RuleSet,
    prefilter: Option<Prefilter>,
    /// `KIND map NAME`.
    title: String,
}

/// The patterns of a table take more memory than they may.
#[derive(Debug)]
pub(crate) struct TooLarge;

/// What a lookup needs and keeps for the next one.
#[derive(Default)]
struct Scratch {
    possible: RuleSet,
    key: Vec<u8>,
    spans: Vec<(usize, usize)>,
}

/// A key above this size, in bytes, is not kept.
const KEPT: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<E: Engine> Rules<E> {
    /// Reads and compiles rules, which may take `memory` bytes. What is wrong goes to `warn`, and the rule is left out.
    pub(crate) fn read(
        text: &[u8],
        reading: &Reading<'_>,
        prefilter: bool,
        memory: usize,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, TooLarge> {
        let mut reader = Reader {
            title: format!("{} map {}", E::DIALECT.name(), Printable(reading.name)),
            rules: Vec::new(),
            required: Vec::new(),
            open: Vec::new(),
            size: 0,
        };
        pattern_rules::parse(text, reading, warn, |line, rule, warn| {
            reader.size <= memory && reader.add(line, rule, warn)
        });
        if reader.size > memory {
            return Err(TooLarge);
        }
        let Reader {
            title,
            mut rules,
            required,
            open,
            ..
        } = reader;
        let count = rules.len();
        for block in open {
            if let Action::Block { end } = &mut rules[block].action {
                *end = count;
            }
        }
        rules.shrink_to_fit();
        let prefilter = prefilter
            .then(|| Prefilter::new(&required))
            .filter(|prefilter| prefilter.useful() >= FEWEST_RULES);
        let mut always = RuleSet::default();
        if let Some(prefilter) = &prefilter {
            always.clone_from(prefilter.unknown());
            for (number, _) in rules.iter().enumerate().filter(|(_, rule)| rule.negated) {
                always.insert(number);
            }
        }
        Ok(Self {
            list: rules,
            always,
            prefilter,
            title,
        })
    }

    /// Looks for the first rule that answers for `key`, and appends its result to `value`.
    ///
    /// `None`: that would take longer than [`Effort::Quick`] allows; nothing was appended and nothing logged.
    pub(crate) fn find(
        &self,
        key: &[u8],
        effort: Effort,
        value: &mut Vec<u8>,
        warn: &mut dyn FnMut(String),
    ) -> Option<Outcome> {
        SCRATCH.with_borrow_mut(|scratch| {
            let end = memchr::memchr(0, key).unwrap_or(key.len());
            scratch.key.clear();
            scratch.key.extend_from_slice(&key[..end]);
            scratch.key.push(0);
            let mut search = Search {
                rules: self,
                key: &scratch.key,
                effort,
                clock: (effort == Effort::Quick).then(Clock::start),
                warn,
            };
            let outcome = search.run(&mut scratch.possible, &mut scratch.spans, value);
            scratch.key.shrink_to(KEPT);
            outcome
        })
    }
}

struct Reader<E> {
    title: String,
    rules: Vec<Compiled<E>>,
    required: Vec<Vec<OneOf>>,
    /// The rules that begin the blocks that are open.
    open: Vec<usize>,
    size: usize,
}

impl<E: Engine> Reader<E> {
    fn add(&mut self, line: usize, rule: &Rule<'_>, warn: &mut dyn FnMut(String)) -> bool {
        let mut compile = |pattern: &PatternText<'_>, groups| match E::compile(pattern, groups) {
            Ok(pattern) => Some(pattern),
            Err(why) => {
                warn(format!("{}, line {line}: {why}", self.title));
                None
            }
        };
        let (text, pattern, action) = match rule {
            Rule::EndIf => {
                let end = self.rules.len();
                if let Some(block) = self.open.pop()
                    && let Action::Block { end: place } = &mut self.rules[block].action
                {
                    *place = end;
                }
                return true;
            }
            Rule::If(text) => {
                let Some(pattern) = compile(text, None) else {
                    return false;
                };
                (text, pattern, Action::Block { end: 0 })
            }
            Rule::Match {
                pattern: text,
                second,
                result,
            } => {
                let Some(pattern) = compile(text, Some(result.highest() > 0)) else {
                    return false;
                };
                if result.highest() > pattern.groups() as u64 {
                    warn(format!(
                        "{}, line {line}: out of range replacement index \"{}\": skipping this rule",
                        self.title,
                        result.highest_shown()
                    ));
                    return false;
                }
                let second = match second {
                    None => None,
                    Some(text) => match compile(text, Some(false)) {
                        Some(pattern) => {
                            self.size += pattern.size();
                            Some((pattern, text.negated))
                        }
                        None => return false,
                    },
                };
                let spans = match result.highest() {
                    0 => 0,
                    highest => usize::try_from(highest).map_or(0, |highest| highest + 1),
                };
                let action = Action::Answer {
                    second,
                    result: result.clone(),
                    spans,
                };
                (text, pattern, action)
            }
        };
        self.size += pattern.size() + size_of::<Compiled<E>>();
        self.required.push(E::required(text));
        let number = self.rules.len();
        self.rules.push(Compiled {
            line,
            pattern,
            negated: text.negated,
            block: self.open.last().copied().unwrap_or(NO_BLOCK),
            action,
        });
        if matches!(rule, Rule::If(_)) {
            self.open.push(number);
        }
        true
    }
}

/// Tells when a quick lookup has taken long enough.
struct Clock {
    start: Instant,
    patterns: u32,
}

impl Clock {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            patterns: 0,
        }
    }

    fn is_over(&mut self) -> bool {
        self.patterns += 1;
        self.patterns.is_multiple_of(PATTERNS_PER_LOOK) && self.start.elapsed() > QUICK
    }
}

/// One lookup.
struct Search<'a, E> {
    rules: &'a Rules<E>,
    /// With a NUL behind it.
    key: &'a [u8],
    effort: Effort,
    clock: Option<Clock>,
    warn: &'a mut dyn FnMut(String),
}

impl<E: Engine> Search<'_, E> {
    fn run(
        &mut self,
        possible: &mut RuleSet,
        spans: &mut Vec<(usize, usize)>,
        value: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let table = self.rules;
        let key = &self.key[..self.key.len() - 1];
        if let Some(prefilter) = &table.prefilter {
            possible.clear(table.list.len());
            prefilter.find(key, possible);
        }
        let mut from = 0;
        // The rule that begins the block whose rules are looked at.
        let mut block = NO_BLOCK;
        loop {
            let number = match &table.prefilter {
                Some(_) => possible.next_of_either(&table.always, from),
                None => (from < table.list.len()).then_some(from),
            };
            let Some(number) = number else {
                return Some(Outcome::Absent);
            };
            from = number + 1;
            let rule = &table.list[number];
            while let Some(around) = table.list.get(block)
                && let Action::Block { end } = around.action
                && end <= number
            {
                block = around.block;
            }
            if rule.block != block {
                // Nobody looked at the rule that begins its block, which therefore does not match.
                continue;
            }
            let can_match = table.prefilter.as_ref().is_none_or(|prefilter| {
                possible.contains(number) || prefilter.unknown().contains(number)
            });
            match &rule.action {
                Action::Block { end } => {
                    if self.holds(rule, can_match, &mut [])? {
                        block = number;
                    } else {
                        from = *end;
                    }
                }
                Action::Answer {
                    second,
                    result,
                    spans: wanted,
                } => {
                    spans.clear();
                    spans.resize(*wanted, (0, 0));
                    if !self.holds(rule, can_match, spans)? {
                        continue;
                    }
                    if let Some((pattern, negated)) = second
                        && !self.pattern_holds(rule.line, pattern, *negated, &mut [])?
                    {
                        continue;
                    }
                    result.expand(key, spans, value);
                    return Some(Outcome::Done);
                }
            }
        }
    }

    fn holds(
        &mut self,
        rule: &Compiled<E>,
        can_match: bool,
        spans: &mut [(usize, usize)],
    ) -> Option<bool> {
        if !can_match {
            return Some(rule.negated);
        }
        self.pattern_holds(rule.line, &rule.pattern, rule.negated, spans)
    }

    fn pattern_holds(
        &mut self,
        line: usize,
        pattern: &E,
        negated: bool,
        spans: &mut [(usize, usize)],
    ) -> Option<bool> {
        if self.clock.as_mut().is_some_and(Clock::is_over) {
            return None;
        }
        match pattern.matches(self.key, self.effort, spans) {
            Ok(matched) => Some(matched != negated),
            // Whoever has the time finds out, and logs it.
            Err(_) if self.effort == Effort::Quick => None,
            Err(NoAnswer::TooMuch) => Some(false),
            Err(NoAnswer::Failed(why)) => {
                (self.warn)(format!("{}, line {line}: {why}", self.rules.title));
                Some(false)
            }
        }
    }
}

impl<E> fmt::Debug for Rules<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("title", &self.title)
            .field("rules", &self.list.len())
            .finish_non_exhaustive()
    }
}

struct PatternTable<E> {
    name: TableName,
    flags: Flags,
    rules: Rules<E>,
    owner: Owner,
    path: Option<PathBuf>,
}

/// The rules of a `pcre:` or `regexp:` table without the table: for tests, and for programs that check rules.
#[derive(Debug)]
pub struct PatternRules(Either);

#[derive(Debug)]
enum Either {
    Pcre(Rules<Pattern>),
    Regexp(Rules<SharedExpression>),
}

impl PatternRules {
    /// Reads and compiles rules as a table called `name` does; what is wrong goes to `warn`.
    ///
    /// `prefilter`: rules that cannot match a key are not tried. Answers are the same without.
    ///
    /// `None` when the patterns would take more than 1 GiB.
    pub fn read(
        dialect: Dialect,
        text: &[u8],
        name: &[u8],
        prefilter: bool,
        warn: &mut dyn FnMut(String),
    ) -> Option<Self> {
        let label = Printable(name).to_string();
        let reading = Reading {
            dialect,
            name,
            label: &label,
            no_substitution: false,
            from_files: None,
        };
        Some(Self(match dialect {
            Dialect::Pcre => {
                Either::Pcre(Rules::read(text, &reading, prefilter, MEMORY, warn).ok()?)
            }
            Dialect::Regexp => {
                Either::Regexp(Rules::read(text, &reading, prefilter, MEMORY, warn).ok()?)
            }
        }))
    }

    /// Appends the result of the first rule that matches `key`, which ends at its first NUL.
    pub fn lookup(&self, key: &[u8], value: &mut Vec<u8>, warn: &mut dyn FnMut(String)) -> Outcome {
        let outcome = match &self.0 {
            Either::Pcre(rules) => rules.find(key, Effort::Full, value, warn),
            Either::Regexp(rules) => rules.find(key, Effort::Full, value, warn),
        };
        outcome.unwrap_or(Outcome::Absent)
    }
}

/// Opens a table of patterns.
pub(crate) fn open<E: Engine>(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let kind = E::DIALECT.name();
    let name = request.name.name();
    let source = match RuleSource::read(kind, name) {
        Ok(source) => source,
        Err(RuleSourceError::Unavailable(why)) => return Err(OpenError::Unavailable(why)),
        // For the reference's commands a directory is a table without rules.
        Err(RuleSourceError::Read(error))
            if request.context.caller == Caller::Command
                && error.raw_os_error() == Some(IS_A_DIRECTORY) =>
        {
            RuleSource::empty(name)
        }
        Err(RuleSourceError::Read(error)) => {
            return Err(OpenError::Unavailable(format!(
                "read {}: {}",
                Printable(name),
                error_text(&error)
            )));
        }
    };
    let from_files = |list: &[u8]| read_file_values(list).map_err(|error| error.to_string());
    let reading = Reading {
        dialect: E::DIALECT,
        name,
        label: &source.label,
        no_substitution: request.flags.contains(Flags::NO_REGSUB),
        from_files: request
            .flags
            .contains(Flags::RHS_IS_FILE)
            .then_some(&from_files),
    };
    let mut sink = |text| warn!("{text}");
    let rules =
        Rules::read(&source.text, &reading, true, MEMORY, &mut sink).map_err(|TooLarge| {
            OpenError::Unavailable(format!(
                "{kind} map {}: table is too large",
                Printable(name)
            ))
        })?;
    Ok(Arc::new(PatternTable::<E> {
        name: request.name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        rules,
        owner: source.owner,
        path: source.path,
    }))
}

/// `EISDIR`.
const IS_A_DIRECTORY: i32 = nix::errno::Errno::EISDIR as i32;

impl<E: Engine> Table for PatternTable<E> {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        let outcome = self
            .rules
            .find(key, Effort::Full, value, &mut |text| warn!("{text}"));
        // With all the effort there is always an outcome.
        Ok(outcome.unwrap_or(Outcome::Absent))
    }

    fn try_lookup(
        &self,
        _: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        self.rules
            .find(key, Effort::Quick, value, &mut |text| warn!("{text}"))
            .map(Ok)
    }

    fn watches(&self) -> Vec<Watch> {
        RuleSource::watches(self.path.as_deref())
    }

    fn owner(&self) -> Owner {
        self.owner
    }
}
