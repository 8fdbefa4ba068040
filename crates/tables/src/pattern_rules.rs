//! The rules of `pcre:` and `regexp:` tables as text: `/pattern/flags result`, `if /pattern/`, `endif`
//! (`pcre_table(5)`, `regexp_table(5)`).
//!
//! Pure functions over bytes. Patterns are not looked into: who gets a rule compiles them, says what is wrong with
//! them, and thereby decides whether the rule counts.

use postkeep_conf::LogicalLines;
use postkeep_table::Printable;

use crate::braces::{is_space, trim};
use crate::substitution::Substitution;

bitflags::bitflags! {
    /// The flags of a pattern, after its closing delimiter.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PatternFlags: u8 {
        /// `i`, on by default: ASCII letters match in either case.
        const CASELESS = 1;
        /// `m`: lines (`regexp:`: and no newline for `.`).
        const MULTILINE = 1 << 1;
        /// `s`, on by default: `.` matches a newline.
        const DOTALL = 1 << 2;
        /// `x`: for `pcre:` white space in the pattern is ignored; for `regexp:`, on by default, the syntax is the
        /// extended one.
        const EXTENDED = 1 << 3;
        /// `A`: matches at the start only.
        const ANCHORED = 1 << 4;
        /// `E`: `$` matches at the very end only.
        const DOLLAR_ENDONLY = 1 << 5;
        /// `U`: quantifiers take as little as they can.
        const UNGREEDY = 1 << 6;
    }
}

/// What the two types do differently with the text of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `pcre:`
    Pcre,
    /// `regexp:`
    Regexp,
}

impl Dialect {
    /// The word before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcre => "pcre",
            Self::Regexp => "regexp",
        }
    }
}

/// A pattern as it is written, without its delimiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternText<'a> {
    /// Bytes without NUL; a delimiter in it keeps its backslash.
    pub text: &'a [u8],
    /// The default flags and those that were toggled.
    pub flags: PatternFlags,
    /// An odd number of `!` came before it.
    pub negated: bool,
}

/// A line that has the form of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule<'a> {
    /// `/pattern/flags result`, in `regexp:` also `/pattern/flags!/pattern/flags result`.
    Match {
        pattern: PatternText<'a>,
        /// Must match as well.
        second: Option<PatternText<'a>>,
        result: Substitution,
    },
    /// `if /pattern/flags`.
    If(PatternText<'a>),
    /// `endif`.
    EndIf,
}

/// How a text is to be read.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) dialect: Dialect,
    /// The table's name, for warnings.
    pub(crate) name: &'a [u8],
    /// What warnings about lines that are no rules call the text.
    pub(crate) label: &'a str,
    /// Rules with `$1` are left out.
    pub(crate) no_substitution: bool,
    /// Makes the result from the right-hand side where that is a list of files.
    pub(crate) from_files: Option<&'a FromFiles>,
}

/// Gives the contents of a list of files, or says why not.
pub(crate) type FromFiles = dyn Fn(&[u8]) -> Result<Vec<u8>, String>;

type Warn<'a> = &'a mut dyn FnMut(String);

/// Reads rules and hands them to `each`, in order.
///
/// `each` gets the number of the line, the rule, and the sink for warnings; it says whether the rule counts. An `if`
/// that does not count leaves its `endif` without one.
pub(crate) fn parse(
    text: &[u8],
    reading: &Reading<'_>,
    warn: Warn<'_>,
    mut each: impl FnMut(usize, &Rule<'_>, Warn<'_>) -> bool,
) {
    let mut open = Vec::new();
    for logical in LogicalLines::new(text) {
        if logical.is_orphan() {
            warn(logical.orphan_warning(reading.label));
            continue;
        }
        let line = Line {
            reading,
            number: logical.first,
        };
        let content = trim(logical.text_to_nul());
        if content.is_empty() {
            continue;
        }
        let Ok(rule) = line.rule(content, !open.is_empty(), warn) else {
            continue;
        };
        if !each(logical.first, &rule, warn) {
            continue;
        }
        match rule {
            Rule::Match { .. } => {}
            Rule::If(_) => open.push(logical.first),
            Rule::EndIf => {
                open.pop();
            }
        }
    }
    for number in open.into_iter().rev() {
        let line = Line { reading, number };
        warn(line.about("IF has no matching ENDIF"));
    }
}

/// The line is no rule, and all was said about that.
struct NoRule;

struct Line<'a> {
    reading: &'a Reading<'a>,
    number: usize,
}

impl Line<'_> {
    fn prefix(&self) -> String {
        format!(
            "{} map {}, line {}",
            self.reading.dialect.name(),
            Printable(self.reading.name),
            self.number
        )
    }

    fn about(&self, what: &str) -> String {
        format!("{}: {what}", self.prefix())
    }

    fn rule<'t>(&self, text: &'t [u8], inside: bool, warn: Warn<'_>) -> Result<Rule<'t>, NoRule> {
        if !text[0].is_ascii_alphanumeric() {
            return self.match_rule(text, warn);
        }
        if let Some(rest) = after_keyword(text, b"if") {
            let (pattern, rest) = self.pattern(trim(rest), warn)?;
            let rest = trim(rest);
            if !rest.is_empty() {
                warn(self.about(&format!(
                    "ignoring extra text after IF statement: \"{}\"",
                    Printable(rest)
                )));
                warn(self.about("do not prepend whitespace to statements between IF and ENDIF"));
            }
            return Ok(Rule::If(pattern));
        }
        if let Some(rest) = after_keyword(text, b"endif") {
            if !inside {
                warn(self.about("ignoring ENDIF without matching IF"));
                return Err(NoRule);
            }
            if !trim(rest).is_empty() {
                warn(self.about("ignoring extra text after ENDIF"));
            }
            return Ok(Rule::EndIf);
        }
        warn(self.about("ignoring unrecognized request"));
        Err(NoRule)
    }

    fn match_rule<'t>(&self, text: &'t [u8], warn: Warn<'_>) -> Result<Rule<'t>, NoRule> {
        let (pattern, mut rest) = self.pattern(text, warn)?;
        let mut second = None;
        if self.reading.dialect == Dialect::Regexp && rest.first() == Some(&b'!') {
            let (pattern, after) = self.pattern(rest, warn)?;
            second = Some(pattern);
            rest = after;
        }
        let right = trim(rest);
        if right.is_empty() {
            warn(self.about("no replacement text: using empty string"));
        }
        let from_files;
        let right = match self.reading.from_files {
            None => right,
            Some(read) => match read(right) {
                Ok(value) => {
                    from_files = value;
                    &from_files
                }
                Err(why) => {
                    warn(self.about(&format!("{why}: skipping this rule")));
                    return Err(NoRule);
                }
            },
        };
        let out_of_range = match self.reading.dialect {
            Dialect::Pcre => "out of range",
            Dialect::Regexp => "out-of-range",
        };
        let Ok(result) = Substitution::parse(right, &|| self.prefix(), out_of_range, warn) else {
            warn(self.about("bad replacement syntax: skipping this rule"));
            return Err(NoRule);
        };
        if result.highest() > 0 && pattern.negated {
            warn(
                self.about("$number found in negative match replacement text: skipping this rule"),
            );
            return Err(NoRule);
        }
        if result.highest() > 0 && self.reading.no_substitution {
            warn(self.about("regular expression substitution is not allowed: skipping this rule"));
            return Err(NoRule);
        }
        Ok(Rule::Match {
            pattern,
            second,
            result,
        })
    }

    /// Takes a pattern with its `!`, delimiters and flags off the front; gives it and the rest.
    fn pattern<'t>(
        &self,
        text: &'t [u8],
        warn: Warn<'_>,
    ) -> Result<(PatternText<'t>, &'t [u8]), NoRule> {
        let start = text
            .iter()
            .position(|&byte| byte != b'!' && !is_space(byte))
            .unwrap_or(text.len());
        let negated = text[..start]
            .iter()
            .fold(false, |negated, &byte| negated ^ (byte == b'!'));
        let Some((&delimiter, body)) = text[start..].split_first() else {
            warn(self.about("no regexp: skipping this rule"));
            return Err(NoRule);
        };
        let Some(end) = self.closing(body, delimiter) else {
            let ignoring = match self.reading.dialect {
                Dialect::Pcre => "ignoring",
                Dialect::Regexp => "skipping",
            };
            warn(self.about(&format!(
                "no closing regexp delimiter \"{}\": {ignoring} this rule",
                Printable(&[delimiter])
            )));
            return Err(NoRule);
        };
        let (flags, rest) = self.flags(&body[end + 1..], warn)?;
        let pattern = PatternText {
            text: &body[..end],
            flags,
            negated,
        };
        Ok((pattern, rest))
    }

    /// Where the pattern ends that `body` starts with.
    fn closing(&self, body: &[u8], delimiter: u8) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = body.get(at) {
            if byte == b'\\' {
                // `regexp:` takes a backslash at the end of the line for the delimiter.
                if at + 1 == body.len() && self.reading.dialect == Dialect::Regexp {
                    return Some(at);
                }
                at += 1;
            } else if byte == delimiter {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    fn flags<'t>(
        &self,
        text: &'t [u8],
        warn: Warn<'_>,
    ) -> Result<(PatternFlags, &'t [u8]), NoRule> {
        let pcre = self.reading.dialect == Dialect::Pcre;
        let mut flags = PatternFlags::CASELESS.union(if pcre {
            PatternFlags::DOTALL
        } else {
            PatternFlags::EXTENDED
        });
        for (at, &letter) in text.iter().enumerate() {
            match letter {
                _ if is_space(letter) => return Ok((flags, &text[at..])),
                b'!' if !pcre => return Ok((flags, &text[at..])),
                b'i' => flags.toggle(PatternFlags::CASELESS),
                b'm' => flags.toggle(PatternFlags::MULTILINE),
                b'x' => flags.toggle(PatternFlags::EXTENDED),
                b's' if pcre => flags.toggle(PatternFlags::DOTALL),
                b'A' if pcre => flags.toggle(PatternFlags::ANCHORED),
                b'E' if pcre => flags.toggle(PatternFlags::DOLLAR_ENDONLY),
                b'U' if pcre => flags.toggle(PatternFlags::UNGREEDY),
                b'X' if pcre => warn(self.about("ignoring obsolete regexp option \"X\"")),
                _ => {
                    warn(self.about(&format!(
                        "unknown regexp option \"{}\": skipping this rule",
                        Printable(&[letter])
                    )));
                    return Err(NoRule);
                }
            }
        }
        Ok((flags, &[]))
    }
}

/// What follows a keyword in any case that no letter or digit follows.
fn after_keyword<'t>(text: &'t [u8], keyword: &[u8]) -> Option<&'t [u8]> {
    let (word, rest) = text.split_at_checked(keyword.len())?;
    (word.eq_ignore_ascii_case(keyword)
        && rest
            .first()
            .is_none_or(|byte| !byte.is_ascii_alphanumeric()))
    .then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(dialect: Dialect, text: &str) -> (Vec<String>, Vec<String>) {
        let reading = Reading {
            dialect,
            name: b"t",
            label: "t",
            no_substitution: false,
            from_files: None,
        };
        let (mut rules, mut warnings) = (Vec::new(), Vec::new());
        parse(
            text.as_bytes(),
            &reading,
            &mut |warning| warnings.push(warning),
            |line, rule, _| {
                let show = |pattern: &PatternText<'_>| {
                    let not = if pattern.negated { "!" } else { "" };
                    format!("{not}{}", Printable(pattern.text))
                };
                let shown = match rule {
                    Rule::Match {
                        pattern, second, ..
                    } => {
                        let second = second.as_ref().map(&show).unwrap_or_default();
                        format!("{}{second}", show(pattern))
                    }
                    Rule::If(pattern) => format!("if {}", show(pattern)),
                    Rule::EndIf => "endif".to_owned(),
                };
                rules.push(format!("{line} {shown}"));
                // What a compiler would refuse.
                !shown.ends_with('(')
            },
        );
        (rules, warnings)
    }

    fn warning(dialect: Dialect, text: &str) -> String {
        let (_, warnings) = read(dialect, text);
        let prefix = format!("{} map t, line 1: ", dialect.name());
        let warnings: Vec<_> = warnings
            .iter()
            .map(|warning| warning.replace(&prefix, ""))
            .collect();
        warnings.join("; ")
    }

    #[test]
    fn delimiters_negation_and_second_patterns() {
        let rules = |dialect, text| read(dialect, text).0.join(", ");
        assert_eq!(
            rules(
                Dialect::Pcre,
                "/a\\/b/ x\n! !|c|i y\n!\t(d( z\nif !/e/\n/f/ x\n  y\nENDIF"
            ),
            "1 a\\/b, 2 c, 3 !d, 4 if !e, 5 f, 7 endif"
        );
        assert_eq!(
            rules(Dialect::Regexp, "/a/i!/b/x z\n/a/!!/b/ z\nif!/c/\nendif"),
            "1 a!b, 2 ab, 3 if !c, 4 endif"
        );
        assert_eq!(rules(Dialect::Regexp, "/abc\\"), "1 abc");
    }

    #[test]
    fn flags_toggle() {
        use PatternFlags as F;

        let flags = |dialect, text: &str| {
            let mut found = None;
            let reading = Reading {
                dialect,
                name: b"t",
                label: "t",
                no_substitution: false,
                from_files: None,
            };
            parse(text.as_bytes(), &reading, &mut |_| {}, |_, rule, _| {
                if let Rule::If(pattern) = rule {
                    found = Some(pattern.flags);
                }
                true
            });
            found.unwrap()
        };
        assert_eq!(flags(Dialect::Pcre, "if /a/"), F::CASELESS | F::DOTALL);
        assert_eq!(
            flags(Dialect::Pcre, "if /a/iimsxAEU"),
            F::CASELESS
                | F::MULTILINE
                | F::EXTENDED
                | F::ANCHORED
                | F::DOLLAR_ENDONLY
                | F::UNGREEDY
        );
        assert_eq!(flags(Dialect::Regexp, "if /a/"), F::CASELESS | F::EXTENDED);
        assert_eq!(flags(Dialect::Regexp, "if /a/imx"), F::MULTILINE);
    }

    #[test]
    fn warnings_are_the_reference_s() {
        use Dialect::{Pcre, Regexp};
        for (dialect, text, wanted) in [
            (
                Pcre,
                "!! x",
                "no closing regexp delimiter \"x\": ignoring this rule",
            ),
            (Pcre, "!", "no regexp: skipping this rule"),
            (Pcre, "if", "no regexp: skipping this rule"),
            (
                Pcre,
                "/a",
                "no closing regexp delimiter \"/\": ignoring this rule",
            ),
            (
                Regexp,
                "/a",
                "no closing regexp delimiter \"/\": skipping this rule",
            ),
            (
                Pcre,
                "/a/q x",
                "unknown regexp option \"q\": skipping this rule",
            ),
            (
                Pcre,
                "/a/!/b/ x",
                "unknown regexp option \"!\": skipping this rule",
            ),
            (
                Regexp,
                "/a/s x",
                "unknown regexp option \"s\": skipping this rule",
            ),
            (Pcre, "/a/X x", "ignoring obsolete regexp option \"X\""),
            (Pcre, "/a/", "no replacement text: using empty string"),
            (Pcre, "ifx", "ignoring unrecognized request"),
            (Pcre, "endif", "ignoring ENDIF without matching IF"),
            (Pcre, "if /a/", "IF has no matching ENDIF"),
            (
                Regexp,
                "/a/ $0",
                "out-of-range replacement index \"0\"; bad replacement syntax: skipping this rule",
            ),
            (
                Pcre,
                "!/a/ $1",
                "$number found in negative match replacement text: skipping this rule",
            ),
            (
                Regexp,
                "if /a/!/b/\nendif",
                "ignoring extra text after IF statement: \"!/b/\"; \
                 do not prepend whitespace to statements between IF and ENDIF",
            ),
            (
                Pcre,
                "\u{e9}a",
                "no closing regexp delimiter \"?\": ignoring this rule",
            ),
        ] {
            assert_eq!(warning(dialect, text), wanted, "{text}");
        }
    }

    #[test]
    fn an_if_that_does_not_count_leaves_its_endif_alone() {
        let (rules, warnings) = read(Dialect::Pcre, "if /a(/\n/b/ c\nendif\nif /d/\nif /e/\n");
        assert_eq!(rules, ["1 if a(", "2 b", "4 if d", "5 if e"]);
        assert_eq!(
            warnings,
            [
                "pcre map t, line 3: ignoring ENDIF without matching IF",
                "pcre map t, line 5: IF has no matching ENDIF",
                "pcre map t, line 4: IF has no matching ENDIF"
            ]
        );
    }

    #[test]
    fn results_may_come_from_files_and_substitution_may_be_refused() {
        let mut warnings = Vec::new();
        let mut results = Vec::new();
        let from_files = |list: &[u8]| match list {
            b"good" => Ok(b"$1".to_vec()),
            _ => Err("open x: No such file or directory".to_owned()),
        };
        let reading = Reading {
            dialect: Dialect::Pcre,
            name: b"t",
            label: "t",
            no_substitution: true,
            from_files: Some(&from_files),
        };
        parse(
            b"/a/ bad\n/(b)/ good",
            &reading,
            &mut |warning| warnings.push(warning),
            |_, rule, _| {
                results.push(format!("{rule:?}"));
                true
            },
        );
        assert!(results.is_empty());
        assert_eq!(
            warnings,
            [
                "pcre map t, line 1: open x: No such file or directory: skipping this rule",
                "pcre map t, line 2: regular expression substitution is not allowed: skipping this rule"
            ]
        );
    }

    proptest! {
        #[test]
        fn blocks_are_always_closed(text in "(if /a/|endif|/b/ c|\n|/|!|\\\\|x| |\u{0}){0,30}") {
            for dialect in [Dialect::Pcre, Dialect::Regexp] {
                let reading = Reading {
                    dialect,
                    name: b"t",
                    label: "t",
                    no_substitution: false,
                    from_files: None,
                };
                let (mut depth, mut unclosed) = (0, 0);
                let mut warn = |warning: String| {
                    unclosed += usize::from(warning.ends_with("IF has no matching ENDIF"));
                };
                parse(text.as_bytes(), &reading, &mut warn, |_, rule, _| {
                    match rule {
                        Rule::If(_) => depth += 1,
                        Rule::EndIf => depth -= 1,
                        Rule::Match { .. } => {}
                    }
                    true
                });
                prop_assert_eq!(depth, unclosed);
            }
        }
    }
}
