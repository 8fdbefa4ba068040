//! What an expression would cost the C library, which knows no limits.
//!
//! An upper bound from the text alone, made before the library sees it. Where the text is no expression the bound
//! means nothing, and the library says what is wrong.

/// More nested groups than this are refused: each takes stack.
const DEEPEST: usize = 1000;

/// More parts than this, counted as often as they are repeated, are refused.
const MOST_PARTS: u64 = 100_000;

/// More places than this where the expression can go on in two ways are refused: time, memory and stack grow with
/// the square of their number.
const MOST_CHOICES: u64 = 4000;

/// A longer expression, in bytes, is refused.
const LONGEST: usize = 1 << 20;

/// An upper bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    parts: u64,
    choices: u64,
    deepest: usize,
    too_long: bool,
    /// Something was matched before that must come again: time without bound.
    back_reference: bool,
    /// Repetitions of any kind.
    repeated: u32,
    counted: bool,
}

/// A part, or several one after the other.
#[derive(Clone, Copy, Default)]
struct Size {
    parts: u64,
    choices: u64,
    /// Not known to match at least one character.
    may_be_empty: bool,
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            parts: self.parts.saturating_add(other.parts),
            choices: self.choices.saturating_add(other.choices),
            may_be_empty: self.may_be_empty && other.may_be_empty,
        }
    }

    fn times(self, least: u64, most: u64) -> Self {
        Self {
            parts: self.parts.saturating_mul(most.max(1)),
            choices: self
                .choices
                .saturating_mul(most.max(1))
                .saturating_add(most.saturating_sub(least).saturating_add(1)),
            may_be_empty: self.may_be_empty || least == 0,
        }
    }
}

const NOTHING: Size = Size {
    parts: 0,
    choices: 0,
    may_be_empty: true,
};

const ONE: Size = Size {
    parts: 1,
    choices: 0,
    may_be_empty: false,
};

/// Matches no text: one more place to pass through.
const LOOK: Size = Size {
    parts: 1,
    choices: 1,
    may_be_empty: true,
};

/// A group that is open.
#[derive(Clone, Copy)]
struct Group {
    /// The alternatives before.
    before: Size,
    any_empty: bool,
    /// This alternative, without its last part.
    sequence: Size,
    last: Size,
}

impl Group {
    const NEW: Self = Self {
        before: NOTHING,
        any_empty: false,
        sequence: NOTHING,
        last: NOTHING,
    };

    fn push(&mut self, part: Size) {
        self.sequence = self.sequence.plus(self.last);
        self.last = part;
    }

    fn end_alternative(&mut self) {
        let this = self.sequence.plus(self.last);
        self.any_empty |= this.may_be_empty;
        self.before = self.before.plus(this);
        self.sequence = NOTHING;
        self.last = NOTHING;
    }

    fn alternative(&mut self) {
        self.end_alternative();
        self.before = self.before.plus(LOOK);
    }

    fn close(mut self) -> Size {
        self.end_alternative();
        Size {
            parts: self.before.parts.saturating_add(2),
            choices: self.before.choices + if self.any_empty { 2 } else { 0 },
            may_be_empty: self.any_empty,
        }
    }
}

impl Cost {
    pub(super) fn of(text: &[u8], extended: bool) -> Self {
        let mut this = Self {
            too_long: text.len() > LONGEST,
            ..Self::default()
        };
        let mut groups = vec![Group::NEW];
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            at += 1;
            // The operators are those with a backslash in basic expressions, and without one in extended ones.
            let (operator, byte) = match (byte, text.get(at)) {
                (b'\\', Some(&next)) => {
                    at += 1;
                    (!extended, next)
                }
                _ => (extended, byte),
            };
            let escaped = operator != extended;
            let nested = groups.len() > 1;
            let Some(group) = groups.last_mut() else {
                break;
            };
            match byte {
                b'(' if operator => {
                    groups.push(Group::NEW);
                    this.deepest = this.deepest.max(groups.len());
                    if this.deepest > DEEPEST {
                        return this;
                    }
                }
                b')' if operator && nested => {
                    if let Some(inner) = groups.pop()
                        && let Some(outer) = groups.last_mut()
                    {
                        outer.push(inner.close());
                    }
                }
                b'|' if operator => group.alternative(),
                b'{' if operator => {
                    let (least, most, length) = counts(&text[at..]);
                    at += length;
                    this.counted = true;
                    this.repeated = this.repeated.saturating_add(1);
                    group.last = group.last.times(least, most);
                }
                b'+' | b'?' if operator => {
                    this.repeated = this.repeated.saturating_add(1);
                    group.last = if byte == b'+' {
                        group.last.times(1, 2)
                    } else {
                        group.last.times(0, 1)
                    };
                }
                b'*' if !escaped => {
                    this.repeated = this.repeated.saturating_add(1);
                    group.last = group.last.times(0, 1);
                }
                b'[' if !escaped => {
                    at += bracket(&text[at..]);
                    group.push(ONE);
                }
                b'^' | b'$' if !escaped => group.push(LOOK),
                b'1'..=b'9' if escaped => {
                    this.back_reference = true;
                    group.push(LOOK);
                }
                b'b' | b'B' | b'<' | b'>' | b'`' | b'\'' if escaped => group.push(LOOK),
                _ => group.push(ONE),
            }
        }
        let mut whole = NOTHING;
        for group in groups {
            whole = whole.plus(group.close());
        }
        this.parts = whole.parts;
        this.choices = whole.choices;
        this
    }

    /// The library must not see the expression.
    pub(super) fn is_too_much(self) -> bool {
        self.too_long
            || self.deepest > DEEPEST
            || self.parts > MOST_PARTS
            || self.choices > MOST_CHOICES
    }

    /// A match may take more than a few milliseconds even in a short key.
    pub(super) fn is_slow(self) -> bool {
        self.back_reference || self.choices > 200 || self.parts > 5000
    }

    /// The memory of a compiled expression.
    pub(super) fn bytes(self) -> usize {
        let bytes = 1000 + 300 * self.parts + 8 * self.choices * self.choices;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// How many bytes may be matched until what the library has learned must be forgotten.
    pub(super) fn bytes_before_renewal(self) -> usize {
        if self.counted || self.repeated > 1 || self.choices > 20 {
            1 << 16
        } else {
            1 << 22
        }
    }
}

/// The counts after `{`, and how long they are without what closes them.
fn counts(text: &[u8]) -> (u64, u64, usize) {
    let number = |at: &mut usize| {
        let start = *at;
        let mut value = 0_u64;
        while let Some(digit) = text.get(*at).filter(|byte| byte.is_ascii_digit()) {
            value = value
                .saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'));
            *at += 1;
        }
        (*at > start).then_some(value)
    };
    let mut at = 0;
    let least = number(&mut at);
    if text.get(at) != Some(&b',') {
        return (least.unwrap_or(0), least.unwrap_or(1), at);
    }
    at += 1;
    let most = number(&mut at);
    let least = least.unwrap_or(0);
    // Without an upper bound there is one more, which repeats.
    (
        least,
        most.unwrap_or(least.saturating_add(1)).max(least),
        at,
    )
}

/// How long a set is, after its opening bracket.
fn bracket(text: &[u8]) -> usize {
    let mut at = usize::from(text.first() == Some(&b'^'));
    let first = at;
    while let Some(&byte) = text.get(at) {
        match byte {
            b']' if at > first => return at + 1,
            b'[' if matches!(text.get(at + 1), Some(b':' | b'.' | b'=')) => {
                let end = [text[at + 1], b']'];
                match text[at + 2..].windows(2).position(|pair| pair == end) {
                    Some(length) => at += length + 4,
                    None => return text.len(),
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use postkeep_sys::posix_regex::{Expression, Options};
    use proptest::prelude::*;

    use super::*;

    fn cost(text: &str) -> Cost {
        Cost::of(text.as_bytes(), true)
    }

    #[test]
    fn what_would_take_all_is_too_much() {
        for text in [
            "(".repeat(5000),
            "a?".repeat(5000),
            "ab|".repeat(5000),
            "a{0,30000}".to_owned(),
            "((a{100}){100}){100}".to_owned(),
            "(a{1,200}){200}".to_owned(),
            "(((a{1,})*){100}){100}".to_owned(),
            "()".repeat(3000),
            "^".repeat(5000),
            "a".repeat(2 << 20),
            "[[.].]a](b{300}){300,}(c{300}){300}".to_owned(),
        ] {
            assert!(cost(&text).is_too_much(), "{}", &text[..text.len().min(40)]);
        }
        assert!(Cost::of(b"\\(a\\{0,30000\\}\\)\\{2\\}", false).is_too_much());
    }

    #[test]
    fn what_people_write_is_not() {
        for text in [
            "^Subject:.*(free|cheap)[[:space:]]+(money|[0-9]{1,9}(\\.[0-9]{1,3}){3})$".to_owned(),
            "word[0-9]+|".repeat(1000),
            "(a)".repeat(3000),
            "[{(]{5}".to_owned(),
            "[]{9999999}]".to_owned(),
            "\\(\\{\\?".repeat(1000),
        ] {
            assert!(
                !cost(&text).is_too_much(),
                "{}",
                &text[..text.len().min(40)]
            );
        }
        assert!(!Cost::of(b"a{9999}(((((", false).is_too_much());
        assert!(cost("(a)\\1").is_slow() && !cost("[\\1]").is_slow() && !cost("a\\\\1").is_slow());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn what_is_let_through_compiles_quickly(
            text in "(\\(|\\)|a|\\?|\\*|\\+|\\{9,50\\}|\\{7\\}|\\{0,30\\}|\\||\\[b|\\]|\\^|\\$|\\\\|\\\\1|\\[\\[:alpha:\\]\\]){0,14}",
            extended in any::<bool>(),
        ) {
            let cost = Cost::of(text.as_bytes(), extended);
            if !cost.is_too_much() {
                let options = if extended { Options::EXTENDED } else { Options::empty() };
                let start = std::time::Instant::now();
                drop(Expression::new(text.as_bytes(), options));
                prop_assert!(start.elapsed().as_secs() < 5, "{text}");
            }
        }
    }
}
