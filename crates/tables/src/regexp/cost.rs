//! What an expression would cost the C library, which knows no limits.
//!
//! An estimate from the text alone, made before the library sees it, with what glibc was measured to take for each
//! kind of construct. Where the text is no expression the estimate means nothing, and the library says what is wrong.

/// More nested groups than this are refused: each takes stack.
const DEEPEST: usize = 1000;

/// More parts than this, counted as often as they are repeated, are refused.
const MOST_PARTS: u64 = 100_000;

/// More places than this where the expression can go on in two ways are refused: time, memory and stack grow with
/// the square of their number.
const MOST_CHOICES: u64 = 4000;

/// More parts that may be left out one after the other are refused; and with anchors in the expression, which make
/// time and memory grow with the cube of their number.
const LONGEST_OPTIONAL: u64 = 600;
const LONGEST_OPTIONAL_ANCHORED: u64 = 200;

/// More anchors that can follow each other without a character between them are refused: the library goes through
/// them in each combination.
const LONGEST_ANCHORS: u64 = 16;

/// More anchors inside repetitions are refused.
const MOST_LOOPED_ANCHORS: u64 = 100;

/// More repetitions without end of something that may be empty are refused; and with anchors in the expression,
/// where each makes it up to three times as much.
const MOST_EMPTY_LOOPS: u64 = 100;
const MOST_EMPTY_LOOPS_ANCHORED: u64 = 8;

/// More repetitions without end of something that can be empty in two ways are refused, and all of something that
/// can be empty in more: glibc does not come to an end.
const MOST_DOUBLINGS: u64 = 8;

/// A longer expression, in bytes, is refused.
const LONGEST: usize = 1 << 20;

/// An estimate.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    size: Size,
    deepest: usize,
    too_long: bool,
    /// Something was matched before that must come again: time without bound.
    back_reference: bool,
    /// Repetitions of any kind.
    repeated: u32,
    counted: bool,
}

/// The most of something on one way through a part that matches no character.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// From the start of the part.
    lead: u64,
    /// To its end.
    trail: u64,
    /// From start to end.
    through: u64,
    /// Anywhere.
    longest: u64,
}

impl Way {
    const ONE: Self = Self {
        lead: 1,
        trail: 1,
        through: 1,
        longest: 1,
    };

    fn add_one(&mut self) {
        for way in [
            &mut self.lead,
            &mut self.trail,
            &mut self.through,
            &mut self.longest,
        ] {
            *way = way.saturating_add(1);
        }
    }

    fn plus(self, other: Self, self_empty: bool, other_empty: bool) -> Self {
        Self {
            lead: if self_empty {
                self.lead.max(self.through.saturating_add(other.lead))
            } else {
                self.lead
            },
            trail: if other_empty {
                other.trail.max(other.through.saturating_add(self.trail))
            } else {
                other.trail
            },
            through: self.through.saturating_add(other.through),
            longest: self
                .longest
                .max(other.longest)
                .max(self.trail.saturating_add(other.lead)),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            lead: self.lead.max(other.lead),
            trail: self.trail.max(other.trail),
            through: self.through.max(other.through),
            longest: self.longest.max(other.longest),
        }
    }

    fn times(self, copies: u64, may_be_empty: bool) -> Self {
        let between = if may_be_empty {
            self.through.saturating_mul(copies)
        } else {
            0
        };
        Self {
            lead: self.lead.max(between),
            trail: self.trail.max(between),
            through: between,
            longest: self
                .longest
                .max(between)
                .max(self.trail.saturating_add(self.lead)),
        }
    }
}

/// A part, or several one after the other.
#[derive(Clone, Copy, Debug)]
struct Size {
    parts: u64,
    choices: u64,
    /// Matches at least one character.
    takes: bool,
    /// Parts that may be left out.
    optional: Way,
    anchors: Way,
    /// All of them.
    all_anchors: u64,
    /// Those inside something that is repeated, once for each level.
    looped_anchors: u64,
    empty_loops: u64,
    /// In how many ways the part can be empty.
    empty_ways: u64,
    /// How often that is doubled by repetitions: the library goes through all of them.
    doublings: u64,
}

impl Default for Size {
    fn default() -> Self {
        NOTHING
    }
}

impl Size {
    /// Matches one character.
    const CHARACTER: Self = Self {
        parts: 1,
        takes: true,
        empty_ways: 0,
        ..NOTHING
    };

    /// Matches no character.
    const ANCHOR: Self = Self {
        parts: 1,
        choices: 1,
        anchors: Way::ONE,
        all_anchors: 1,
        ..NOTHING
    };

    fn plus(self, other: Self) -> Self {
        Self {
            parts: self.parts.saturating_add(other.parts),
            choices: self.choices.saturating_add(other.choices),
            takes: self.takes || other.takes,
            optional: self
                .optional
                .plus(other.optional, !self.takes, !other.takes),
            anchors: self.anchors.plus(other.anchors, !self.takes, !other.takes),
            all_anchors: self.all_anchors.saturating_add(other.all_anchors),
            looped_anchors: self.looped_anchors.saturating_add(other.looped_anchors),
            empty_loops: self.empty_loops.saturating_add(other.empty_loops),
            empty_ways: self.empty_ways.saturating_mul(other.empty_ways),
            doublings: self.doublings.saturating_add(other.doublings),
        }
    }

    /// Either of two, with the choice between them.
    fn or(self, other: Self) -> Self {
        let both = self.plus(other);
        Self {
            parts: both.parts.saturating_add(1),
            choices: both.choices.saturating_add(1),
            takes: self.takes && other.takes,
            optional: self.optional.or(other.optional),
            anchors: self.anchors.or(other.anchors),
            empty_ways: self.empty_ways.saturating_add(other.empty_ways),
            ..both
        }
    }

    fn group(self) -> Self {
        let mut optional = self.optional;
        if !self.takes {
            optional.add_one();
        }
        Self {
            parts: self.parts.saturating_add(2),
            choices: self.choices.saturating_add(if self.takes { 0 } else { 2 }),
            optional,
            ..self
        }
    }

    /// In how many ways `least` to `copies` of the part can be empty together.
    fn empty_ways_of(self, least: u64, copies: u64) -> u64 {
        let none = u64::from(least == 0);
        match self.empty_ways {
            0 => none,
            1 if copies == 1 => 1,
            1 => copies.saturating_sub(least.max(1)).saturating_add(1 + none),
            ways => ways.saturating_pow(u32::try_from(copies).unwrap_or(u32::MAX)),
        }
    }

    fn times(self, times: Times) -> Self {
        let copies = times.most.unwrap_or(times.least.saturating_add(1)).max(1);
        let loops = times.most.is_none();
        let mut optional = self.optional.times(copies, !self.takes);
        if times.least == 0 {
            optional.add_one();
        }
        let again = if loops || copies > 1 {
            self.all_anchors.saturating_mul(copies)
        } else {
            0
        };
        Self {
            parts: self.parts.saturating_mul(copies),
            choices: self
                .choices
                .saturating_mul(copies)
                .saturating_add(copies.saturating_sub(times.least).saturating_add(1)),
            takes: self.takes && times.least > 0,
            optional,
            anchors: self.anchors.times(copies, !self.takes),
            all_anchors: self.all_anchors.saturating_mul(copies),
            looped_anchors: self
                .looped_anchors
                .saturating_mul(copies)
                .saturating_add(again),
            empty_loops: self
                .empty_loops
                .saturating_mul(copies)
                .saturating_add(u64::from(loops && !self.takes)),
            empty_ways: self.empty_ways_of(times.least, copies),
            doublings: self.doublings.saturating_mul(copies).saturating_add(
                match self.empty_ways {
                    0 | 1 => 0,
                    _ if !loops => 0,
                    2 => copies,
                    _ => u64::MAX,
                },
            ),
        }
    }
}

const NOTHING: Size = Size {
    parts: 0,
    choices: 0,
    takes: false,
    optional: Way {
        lead: 0,
        trail: 0,
        through: 0,
        longest: 0,
    },
    anchors: Way {
        lead: 0,
        trail: 0,
        through: 0,
        longest: 0,
    },
    all_anchors: 0,
    looped_anchors: 0,
    empty_loops: 0,
    empty_ways: 1,
    doublings: 0,
};

/// How often something is repeated.
#[derive(Clone, Copy)]
struct Times {
    least: u64,
    /// Without end when there is none.
    most: Option<u64>,
}

/// A group that is open.
#[derive(Clone, Copy, Default)]
struct Group {
    /// The alternatives before, when there are any.
    before: Option<Size>,
    /// This alternative, without its last part.
    sequence: Size,
    last: Size,
}

impl Group {
    fn push(&mut self, part: Size) {
        self.sequence = self.sequence.plus(self.last);
        self.last = part;
    }

    fn alternative(&mut self) {
        self.before = Some(self.all());
        self.sequence = NOTHING;
        self.last = NOTHING;
    }

    fn all(&self) -> Size {
        let this = self.sequence.plus(self.last);
        self.before.map_or(this, |before| before.or(this))
    }

    fn repeat(&mut self, times: Times) {
        self.last = self.last.times(times);
    }
}

impl Cost {
    pub(super) fn of(text: &[u8], extended: bool) -> Self {
        let mut this = Self {
            too_long: text.len() > LONGEST,
            ..Self::default()
        };
        let mut groups = vec![Group::default()];
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            at += 1;
            // The operators are those with a backslash in basic expressions, and without one in extended ones.
            let (escaped, byte) = match (byte, text.get(at)) {
                (b'\\', Some(&next)) => {
                    at += 1;
                    (true, next)
                }
                _ => (false, byte),
            };
            let operator = escaped != extended;
            let nested = groups.len() > 1;
            let Some(group) = groups.last_mut() else {
                break;
            };
            let times = match byte {
                b'{' if operator => {
                    let (times, length) = counts(&text[at..]);
                    at += length;
                    let close: &[u8] = if extended { b"}" } else { b"\\}" };
                    if text[at..].starts_with(close) {
                        at += close.len();
                    }
                    this.counted = true;
                    Some(times)
                }
                b'+' if operator => Some(Times {
                    least: 1,
                    most: None,
                }),
                b'?' if operator => Some(Times {
                    least: 0,
                    most: Some(1),
                }),
                b'*' if !escaped => Some(Times {
                    least: 0,
                    most: None,
                }),
                _ => None,
            };
            if let Some(times) = times {
                this.repeated = this.repeated.saturating_add(1);
                group.repeat(times);
                continue;
            }
            match byte {
                b'(' if operator => {
                    groups.push(Group::default());
                    this.deepest = this.deepest.max(groups.len());
                    if this.deepest > DEEPEST {
                        return this;
                    }
                }
                b')' if operator && nested => {
                    if let Some(inner) = groups.pop()
                        && let Some(outer) = groups.last_mut()
                    {
                        outer.push(inner.all().group());
                    }
                }
                b'|' if operator => group.alternative(),
                b'[' if !escaped => {
                    at += bracket(&text[at..]);
                    group.push(Size::CHARACTER);
                }
                b'1'..=b'9' if escaped => {
                    this.back_reference = true;
                    group.push(Size::ANCHOR);
                }
                b'^' | b'$' if !escaped => group.push(Size::ANCHOR),
                b'b' | b'B' | b'<' | b'>' | b'`' | b'\'' if escaped => group.push(Size::ANCHOR),
                _ => group.push(Size::CHARACTER),
            }
        }
        this.size = groups
            .iter()
            .fold(NOTHING, |size, group| size.plus(group.all().group()));
        this
    }

    /// The library must not see the expression.
    pub(super) fn is_too_much(self) -> bool {
        let size = self.size;
        let (optional, empty_loops) = if size.all_anchors > 0 {
            (LONGEST_OPTIONAL_ANCHORED, MOST_EMPTY_LOOPS_ANCHORED)
        } else {
            (LONGEST_OPTIONAL, MOST_EMPTY_LOOPS)
        };
        self.too_long
            || self.deepest > DEEPEST
            || size.parts > MOST_PARTS
            || size.choices > MOST_CHOICES
            || size.optional.longest > optional
            || size.anchors.longest > LONGEST_ANCHORS
            || size.looped_anchors > MOST_LOOPED_ANCHORS
            || size.empty_loops > empty_loops
            || size.doublings > MOST_DOUBLINGS
    }

    /// A match may take more than a few milliseconds even in a short key.
    pub(super) fn is_slow(self) -> bool {
        self.back_reference || self.size.choices > 64 || self.size.parts > 5000
    }

    /// The memory of a compiled expression that is not too much.
    pub(super) fn bytes(self) -> usize {
        let size = self.size;
        let (choices, optional) = (size.choices, size.optional.longest);
        let anchored = u64::from(size.all_anchors > 0);
        let bytes = size
            .parts
            .saturating_mul(300)
            .saturating_add(
                choices
                    .saturating_mul(choices)
                    .saturating_mul(8 + 24 * anchored),
            )
            .saturating_add(optional.saturating_mul(optional).saturating_mul(130))
            .saturating_add(optional.saturating_pow(3).saturating_mul(3 * anchored))
            .saturating_add(1000);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// How many bytes may be matched until what the library has learned must be forgotten.
    pub(super) fn bytes_before_renewal(self) -> usize {
        if self.counted || self.repeated > 1 || self.size.choices > 20 {
            1 << 16
        } else {
            1 << 22
        }
    }
}

/// The counts after `{`, and how long they are without what closes them.
fn counts(text: &[u8]) -> (Times, usize) {
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
    let most = if text.get(at) == Some(&b',') {
        at += 1;
        number(&mut at)
    } else {
        Some(least.unwrap_or(1))
    };
    let least = least.unwrap_or(0);
    (Times { least, most }, at)
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
            "a+{0,30}*+{9,50}+{0,30}?".to_owned(),
            "^a?{0,30}{0,30}".to_owned(),
            "((a|b?)*){500}".to_owned(),
            "^((a|b?)*){100}".to_owned(),
            "()".repeat(3000),
            "(a$|)(){7}?{9,50}*".to_owned(),
            "(a?|b?|c?)*".to_owned(),
            "(a?|b?)+{20}".to_owned(),
            "a?{0,30}+{3}".to_owned(),
            "(|a$)*{0,20}".to_owned(),
            "(a?\\b)*".repeat(12),
            "\\b".repeat(50),
            "(a?\\b){30}".to_owned(),
            format!("({}x){{10}}", "\\bfoo\\b|".repeat(1000)),
            "^".repeat(5000),
            "a".repeat(2 << 20),
            "[[.].]a](b{300}){300,}(c{300}){300}".to_owned(),
        ] {
            assert!(
                cost(&text).is_too_much(),
                "{} {:?}",
                &text[..text.len().min(40)],
                cost(&text)
            );
        }
        assert!(Cost::of(b"\\(a\\{0,30000\\}\\)\\{2\\}", false).is_too_much());
    }

    #[test]
    fn what_people_write_is_not() {
        for text in [
            "^Subject:.*(free|cheap)[[:space:]]+(money|[0-9]{1,9}(\\.[0-9]{1,3}){3})$".to_owned(),
            "word[0-9]+|".repeat(1000),
            "(a)".repeat(3000),
            "\\bfoo\\b|".repeat(1000),
            format!("^({}bar)?$", "\\bfoo\\b|".repeat(500)),
            "(^|[^a-z])foo([^a-z]|$).*".repeat(50),
            "^.{0,1000}(a*b*)*$".to_owned(),
            "(a*b?|c*)*(((a*)*)*)*".to_owned(),
            "[{(]{5}".to_owned(),
            "[]{9999999}]".to_owned(),
            "\\(\\{\\?".repeat(1000),
        ] {
            assert!(
                !cost(&text).is_too_much(),
                "{} {:?}",
                &text[..text.len().min(40)],
                cost(&text)
            );
        }
        assert!(!Cost::of(b"a{9999}(((((", false).is_too_much());
        assert!(cost("(a)\\1").is_slow() && !cost("[\\1]").is_slow() && !cost("a\\\\1").is_slow());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn what_is_let_through_compiles_quickly(
            text in "(\\(|\\)|a|\\?|\\*|\\+|\\{9,50\\}|\\{7\\}|\\{0,30\\}|\\||\\[b|\\]|\\^|\\$|\\\\|\\\\1|\\\\b|\\(a\\$\\||\\[\\[:alpha:\\]\\]){0,14}",
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
