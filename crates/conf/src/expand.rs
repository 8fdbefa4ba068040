//! The `$` grammar: references, conditionals and relations.
//!
//! ```text
//! text := ( literal | "$$" | ref )*
//! ref  := "$" name | "${" expr "}" | "$(" expr ")"
//! expr := name [ tail ] | rel [ tail ]
//! tail := "?" arm [ ":" arm ] | ":" arm        second arm only after a braced first arm
//! arm  := "{" text "}" | the rest of expr
//! rel  := "{" text "}" op [ "level" ] "{" text "}"
//! op   := "==" | "!=" | "<" | "<=" | ">=" | ">"
//! ```
//!
//! White space around names, operators and braces is blank, tab, CR and LF. The end of a bracket is found by
//! counting brackets of the same kind only. The walk keeps the reference's order of evaluation and its state
//! after a fault, because both show in what is warned about.
//!
//! # References
//! postconf(5), "The $name syntax"; Postfix `src/util/mac_parse.c`, `src/util/mac_expand.c`.

use std::borrow::Cow;

use crate::level::CompatibilityLevel;
use crate::release::Release;
use crate::sink::Sink;
use crate::text::{display, head, is_blank, is_name, parse_number, to_nul};

/// Open references and literals in one text; the operands of a relation are texts of their own.
const DEPTH_LIMIT: u32 = 100;
/// Open references and literals over everything, operands included, where the reference sets no limit and
/// crashes.
const TOTAL_DEPTH_LIMIT: u32 = 400;
/// Bytes that one expansion may produce.
const OUTPUT_LIMIT: usize = 16 << 20;
/// Bytes that one expansion may look at: values that name each other twice multiply without producing anything.
const WORK_LIMIT: usize = 16 << 20;
/// What a text costs beside its length.
const WORK_PER_TEXT: usize = 64;
/// Warnings that one expansion may give.
const WARNING_LIMIT: u32 = 250;

/// What stands behind a name.
pub trait Lookup {
    /// The unexpanded value of `name`, if it has one.
    fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>>;
}

/// Why a text could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// The text is malformed, nested too deep, or too large; the sink was told.
    #[error("macro processing error")]
    Malformed,
    /// A number in a comparison does not fit 64 bits: a fault that the reference does not survive.
    #[error("mac_exp_eval: bad conversion: {0}")]
    Conversion(String),
}

/// Expands every reference in `text`, recursively. The result is not looked at again.
///
/// Depth, output and work are limited.
///
/// # Errors
/// [`ExpandError`], after the warnings that say what is wrong.
pub fn expand(
    text: &[u8],
    lookup: &dyn Lookup,
    release: Release,
    sink: &mut dyn Sink,
) -> Result<Vec<u8>, ExpandError> {
    let mut walk = Walk::new(lookup, release, sink, false);
    let mut context = Context::default();
    if walk.parse(&mut context, to_nul(text))? || context.failed {
        return Err(ExpandError::Malformed);
    }
    Ok(context.result)
}

/// Visits every name in `text`, in both arms of conditionals, without expanding anything: `lookup` is asked for
/// each, and its answers are ignored. Faults are told to `sink`.
pub fn scan(text: &[u8], lookup: &dyn Lookup, release: Release, sink: &mut dyn Sink) {
    let mut walk = Walk::new(lookup, release, sink, true);
    // A fault was told; the names after it are not visited, as in the reference.
    let _ = walk.parse(&mut Context::default(), to_nul(text));
}

/// State of one text: the reference keeps as much per call of `mac_expand()`.
#[derive(Default)]
struct Context {
    result: Vec<u8>,
    failed: bool,
    level: u32,
    /// Levels open around this text.
    outer: u32,
}

struct Walk<'l, 's> {
    lookup: &'l dyn Lookup,
    sink: &'s mut dyn Sink,
    scanning: bool,
    levels: bool,
    work: usize,
    output: usize,
    warnings: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    GreaterOrEqual,
    Greater,
}

impl Relation {
    fn parse(text: &[u8]) -> Option<Self> {
        Some(match text {
            b"==" => Self::Equal,
            b"!=" => Self::NotEqual,
            b"<" => Self::Less,
            b"<=" => Self::LessOrEqual,
            b">=" => Self::GreaterOrEqual,
            b">" => Self::Greater,
            _ => return None,
        })
    }

    fn holds<T: Ord>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::GreaterOrEqual => left >= right,
            Self::Greater => left > right,
        }
    }
}

/// What a condition tests.
enum Subject<'l> {
    Name(Option<Cow<'l, [u8]>>),
    Relation(bool),
}

impl<'l> Walk<'l, '_> {
    fn new<'s>(
        lookup: &'l dyn Lookup,
        release: Release,
        sink: &'s mut dyn Sink,
        scanning: bool,
    ) -> Walk<'l, 's> {
        Walk {
            lookup,
            sink,
            scanning,
            levels: release.has_level_operators(),
            work: 0,
            output: 0,
            warnings: 0,
        }
    }

    fn warn(&mut self, text: String) {
        if self.warnings < WARNING_LIMIT {
            self.warnings += 1;
            self.sink.warning(text);
        }
    }

    fn fail(&mut self, context: &mut Context, text: String) {
        self.warn(text);
        context.failed = true;
    }

    fn too_large(&mut self, text: &[u8]) -> ExpandError {
        let text = display(head(text, 100)).into_owned();
        self.warn(format!("unreasonable macro expansion size: \"{text}\""));
        ExpandError::Malformed
    }

    /// Walks through one text; true when something in it failed.
    fn parse(&mut self, context: &mut Context, text: &[u8]) -> Result<bool, ExpandError> {
        self.work += text.len() + WORK_PER_TEXT;
        if self.work > WORK_LIMIT {
            return Err(self.too_large(text));
        }
        let mut failed = false;
        let mut literal = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let dollar = memchr::memchr(b'$', &text[at..]).map_or(text.len(), |found| at + found);
            literal.extend_from_slice(&text[at..dollar]);
            if dollar == text.len() {
                break;
            }
            if text.get(dollar + 1) == Some(&b'$') {
                literal.push(b'$');
                at = dollar + 2;
                continue;
            }
            if !literal.is_empty() {
                failed |= self.literal(context, &literal)?;
                literal.clear();
            }
            at = dollar + 1;
            let expression = if let Some(&open @ (b'(' | b'{')) = text.get(at) {
                let close = if open == b'(' { b')' } else { b'}' };
                let Some(end) = find_close(&text[at + 1..], open, close) else {
                    self.warn(format!("truncated macro reference: \"{}\"", display(text)));
                    return Ok(true);
                };
                // Once something has failed, a reference in brackets ends the walk; one without does not.
                if failed {
                    return Ok(true);
                }
                let inside = &text[at + 1..at + 1 + end];
                at += end + 2;
                inside
            } else {
                let rest = &text[at..];
                let end = rest
                    .iter()
                    .position(|&byte| !is_name(byte))
                    .unwrap_or(rest.len());
                at += end;
                &rest[..end]
            };
            if expression.is_empty() {
                self.warn(format!("empty macro name: \"{}\"", display(text)));
                return Ok(true);
            }
            failed |= self.expression(context, expression)?;
        }
        if !literal.is_empty() && !failed {
            failed |= self.literal(context, &literal)?;
        }
        Ok(failed)
    }

    /// Opens one level; false when the text has failed, now or before.
    fn enter(&mut self, context: &mut Context, text: &[u8]) -> bool {
        if context.level > DEPTH_LIMIT || context.outer + context.level > TOTAL_DEPTH_LIMIT {
            self.fail(
                context,
                format!("unreasonable macro call nesting: \"{}\"", display(text)),
            );
        }
        // Not closed again after a fault, as in the reference: whatever follows is told as nested too deep, too.
        context.level += 1;
        !context.failed
    }

    fn literal(&mut self, context: &mut Context, text: &[u8]) -> Result<bool, ExpandError> {
        if !self.enter(context, text) {
            return Ok(true);
        }
        self.append(context, text)?;
        context.level -= 1;
        Ok(false)
    }

    fn append(&mut self, context: &mut Context, text: &[u8]) -> Result<(), ExpandError> {
        if self.scanning {
            return Ok(());
        }
        self.output += text.len();
        if self.output > OUTPUT_LIMIT {
            return Err(self.too_large(text));
        }
        context.result.extend_from_slice(text);
        Ok(())
    }

    fn expression(&mut self, context: &mut Context, text: &[u8]) -> Result<bool, ExpandError> {
        if !self.enter(context, text) {
            return Ok(true);
        }
        let mut at = 0;
        let (subject, operator) = if let Some(open) = find_open(text, 0) {
            at = open;
            let Some(holds) = self.relation(context, text, &mut at)? else {
                return Ok(true);
            };
            let operator = text.get(at).copied();
            if operator.is_some_and(|byte| byte != b'?' && byte != b':') {
                let rest = display(head(&text[at..], 20)).into_owned();
                self.fail(
                    context,
                    format!("\"?\" or \":\" expected at: \"...}}>>>{rest}\""),
                );
                return Ok(true);
            }
            (Subject::Relation(holds), operator)
        } else {
            match self.name(context, text, &mut at) {
                Some((name, operator)) => (Subject::Name(self.lookup.lookup(name)), operator),
                None => return Ok(true),
            }
        };
        if operator.is_some() {
            at += 1;
            let holds = match &subject {
                Subject::Name(value) => value.as_ref().is_some_and(|value| !value.is_empty()),
                Subject::Relation(holds) => *holds,
            };
            if !self.arms(context, text, at, operator == Some(b'?'), holds)? {
                return Ok(true);
            }
        } else if !self.scanning {
            match subject {
                Subject::Name(Some(value)) => {
                    let value = to_nul(&value);
                    if !value.is_empty() {
                        context.failed |= self.parse(context, value)?;
                    }
                }
                Subject::Relation(true) => context.failed |= self.parse(context, b"true")?,
                Subject::Name(None) | Subject::Relation(false) => {}
            }
        }
        context.level -= 1;
        Ok(context.failed)
    }

    /// The name at the front of an expression, and the operator after it, where `at` is left.
    fn name<'t>(
        &mut self,
        context: &mut Context,
        text: &'t [u8],
        at: &mut usize,
    ) -> Option<(&'t [u8], Option<u8>)> {
        *at = skip_blanks(text, 0);
        let start = *at;
        loop {
            let next = skip_blanks(text, *at);
            match text.get(next) {
                None => return Some((&text[start..*at], None)),
                Some(&operator @ (b'?' | b':')) => {
                    let name = &text[start..*at];
                    *at = next;
                    return Some((name, Some(operator)));
                }
                Some(_) => {}
            }
            if !is_name(text[*at]) {
                let (before, after) = text.split_at(*at);
                let text = format!(
                    "attribute name syntax error at: \"...{}>>>{}\"",
                    display(before),
                    display(head(after, 20))
                );
                self.fail(context, text);
                return None;
            }
            *at += 1;
        }
    }

    /// `{left} operator {right}`, with `at` on the first brace; `None` after a fault.
    fn relation(
        &mut self,
        context: &mut Context,
        text: &[u8],
        at: &mut usize,
    ) -> Result<Option<bool>, ExpandError> {
        const OPERATOR_BYTES: &[u8] = b"<>!=?+-*/~&|%";
        const EXPECTED: &str =
            r#""==" or "!="" or "<"" or "<="" or ">="" or ">" expected at: "..."#;
        let Some(left) = self.braced(context, text, at) else {
            return Ok(None);
        };
        let rest = &text[*at..];
        let length = rest
            .iter()
            .position(|byte| !OPERATOR_BYTES.contains(byte))
            .unwrap_or(rest.len());
        let operator = &rest[..length];
        let Some(relation) = Relation::parse(operator) else {
            let (left, rest) = (display(left), display(head(rest, 20)));
            self.fail(context, format!("{EXPECTED}{left}}}>>>{rest}\""));
            return Ok(None);
        };
        *at += length;
        let rest = &text[*at..];
        let mut by_level = false;
        if self.levels && rest.first().is_some_and(u8::is_ascii_alphanumeric) {
            let length = rest
                .iter()
                .position(|byte| !byte.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            let suffix = &rest[..length];
            if suffix != b"level" {
                let (operator, suffix) = (display(operator), display(suffix));
                self.fail(
                    context,
                    format!("bad operator suffix at: \"...{operator}>>>{suffix}\""),
                );
                return Ok(None);
            }
            *at += length;
            by_level = true;
        }
        let Some(open) = find_open(text, *at) else {
            let text = format!(
                "\"{{expression}}\" expected at: \"...{{{}}} {}>>>{}\"",
                display(left),
                display(operator),
                display(head(&text[*at..], 20))
            );
            self.fail(context, text);
            return Ok(None);
        };
        *at = open;
        let Some(right) = self.braced(context, text, at) else {
            return Ok(None);
        };
        let left = self.operand(context, left)?;
        let right = self.operand(context, right)?;
        let mut holds = false;
        if !self.scanning {
            match self.compare(&left, relation, by_level, &right)? {
                Some(outcome) => holds = outcome,
                None => context.failed = true,
            }
        }
        Ok((!context.failed).then_some(holds))
    }

    /// Expands an operand as a text of its own.
    fn operand(&mut self, context: &mut Context, text: &[u8]) -> Result<Vec<u8>, ExpandError> {
        let mut inner = Context {
            outer: context.outer + context.level,
            ..Context::default()
        };
        let failed = self.parse(&mut inner, text)?;
        context.failed |= failed | inner.failed;
        Ok(inner.result)
    }

    /// `None` after a fault. Both operands are compared even when one of them failed, because the reference does.
    fn compare(
        &mut self,
        left: &[u8],
        relation: Relation,
        by_level: bool,
        right: &[u8],
    ) -> Result<Option<bool>, ExpandError> {
        if by_level {
            let mut levels = [left, right].into_iter().map(CompatibilityLevel::parse);
            return match levels.try_fold(Vec::new(), |mut all, level| {
                all.push(level?);
                Ok::<_, crate::Error>(all)
            }) {
                Ok(levels) => Ok(Some(relation.holds(&levels[0], &levels[1]))),
                Err(error) => {
                    self.warn(error.to_string());
                    Ok(None)
                }
            };
        }
        let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        if !digits(left) || !digits(right) {
            return Ok(Some(relation.holds(&left, &right)));
        }
        let convert = |text: &[u8]| {
            let number = parse_number(text);
            if number.overflow {
                Err(ExpandError::Conversion(display(text).into_owned()))
            } else {
                Ok(number.value)
            }
        };
        Ok(Some(relation.holds(&convert(left)?, &convert(right)?)))
    }

    /// The text inside the braces that open at `at`, which is left after them and the white space that follows.
    fn braced<'t>(
        &mut self,
        context: &mut Context,
        text: &'t [u8],
        at: &mut usize,
    ) -> Option<&'t [u8]> {
        let start = *at + 1;
        let Some(length) = find_close(&text[start..], b'{', b'}') else {
            let rest = display(&text[*at..]).into_owned();
            self.fail(
                context,
                format!("unbalanced {{}} in attribute expression: \"{rest}\""),
            );
            return None;
        };
        *at = skip_blanks(text, start + length + 1);
        Some(&text[start..start + length])
    }

    /// What comes after `?` (or `:`): evaluates the arm that the condition chooses, both while scanning. False
    /// after a fault of syntax.
    fn arms(
        &mut self,
        context: &mut Context,
        text: &[u8],
        mut at: usize,
        question: bool,
        holds: bool,
    ) -> Result<bool, ExpandError> {
        if question {
            let Some(arm) = self.arm(context, text, &mut at) else {
                return Ok(false);
            };
            if holds || self.scanning {
                context.failed |= self.parse(context, arm)?;
            }
            match text.get(at) {
                None => return Ok(true),
                Some(b':') => at += 1,
                Some(_) => {
                    let (arm, rest) = (display(arm), display(head(&text[at..], 20)));
                    self.fail(
                        context,
                        format!("\":\" expected at: \"...{arm}}}>>>{rest}\""),
                    );
                    return Ok(false);
                }
            }
        }
        let Some(arm) = self.arm(context, text, &mut at) else {
            return Ok(false);
        };
        if !holds || self.scanning {
            context.failed |= self.parse(context, arm)?;
        }
        if at < text.len() {
            let (arm, rest) = (display(arm), display(head(&text[at..], 20)));
            self.fail(
                context,
                format!("unexpected input at: \"...{arm}}}>>>{rest}\""),
            );
            return Ok(false);
        }
        Ok(true)
    }

    fn arm<'t>(
        &mut self,
        context: &mut Context,
        text: &'t [u8],
        at: &mut usize,
    ) -> Option<&'t [u8]> {
        if let Some(open) = find_open(text, *at) {
            *at = open;
            return self.braced(context, text, at);
        }
        let arm = &text[*at..];
        *at = text.len();
        Some(arm)
    }
}

/// Offset of the bracket that closes one opened just before `text`.
fn find_close(text: &[u8], open: u8, close: u8) -> Option<usize> {
    let mut level = 1_usize;
    for at in memchr::memchr2_iter(open, close, text) {
        if text[at] == open {
            level += 1;
        } else {
            level -= 1;
            if level == 0 {
                return Some(at);
            }
        }
    }
    None
}

/// Offset of a `{` at `at`, or after white space there.
fn find_open(text: &[u8], at: usize) -> Option<usize> {
    let at = skip_blanks(text, at);
    (text.get(at) == Some(&b'{')).then_some(at)
}

fn skip_blanks(text: &[u8], at: usize) -> usize {
    text[at..]
        .iter()
        .position(|&byte| !is_blank(byte))
        .map_or(text.len(), |count| at + count)
}

#[cfg(test)]
mod tests;
