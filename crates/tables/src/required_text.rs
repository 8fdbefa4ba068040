//! Text that a key must contain for a pattern to match it.
//!
//! Patterns are read here a second time, only to find such text. What is found must be right, it need not be
//! complete: at the first thing whose meaning is not certain in all releases of the library the pattern is given up
//! ([`Doubt`]), and a pattern without required text is simply always tried.
//!
//! All comparisons ignore the case of ASCII letters, whether the pattern does or not.

mod lexer;

use lexer::{Doubt, Lexer, Token};

/// The syntax of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// pcre2pattern(3), without the extended flag.
    Pcre,
    /// regex(7), extended.
    Extended,
    /// regex(7), basic.
    Basic,
}

/// Text that occurs somewhere in the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Literal {
    /// At least [`SHORTEST`] bytes, ASCII letters in lower case.
    pub(crate) bytes: Box<[u8]>,
    /// Only the start of the key counts.
    pub(crate) at_start: bool,
    /// Only the end of the key counts, or before a newline at its end.
    pub(crate) at_end: bool,
}

/// Of these literals one must be in the key.
pub(crate) type OneOf = Vec<Literal>;

/// Shorter text says too little.
pub(crate) const SHORTEST: usize = 2;

/// Of longer text the first part is enough.
const LONGEST: usize = 64;

/// More alternatives than this say too little.
const MOST_ALTERNATIVES: usize = 64;

/// More texts than this are not put together from groups one behind the other.
const MOST_COMBINED: usize = 16;

/// Nor are more bytes than this.
const MOST_BYTES: usize = 1024;

/// Deeper nesting is not followed.
const DEEPEST: usize = 64;

/// What a key must contain: of each [`OneOf`] that is returned at least one literal.
///
/// Empty when nothing is known. `lines`: `^` and `$` match at each line.
pub(crate) fn required_text(pattern: &[u8], syntax: Syntax, lines: bool) -> Vec<OneOf> {
    let mut parser = Parser {
        lexer: Lexer::new(pattern, syntax),
        ahead: None,
        lines,
    };
    match parser.alternatives(0) {
        Ok(part) if parser.is_at_end() => part.required,
        _ => Vec::new(),
    }
}

/// What is known of a part of a pattern.
struct Part {
    required: Vec<OneOf>,
    /// The part matches one of these texts and nothing else.
    exact: Option<Texts>,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    ahead: Option<Token>,
    lines: bool,
}

/// A text that is being put together.
#[derive(Clone, Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// It must begin where the key begins.
    at_start: bool,
    /// It must end where the key ends.
    at_end: bool,
}

/// Texts that are being put together, of which one must be there.
#[derive(Clone, Debug)]
struct Texts(Vec<Text>);

impl Default for Texts {
    /// No text so far.
    fn default() -> Self {
        Self(vec![Text::default()])
    }
}

impl Texts {
    /// Adds a byte to each. False, and nothing is done, when something ends before it.
    fn push(&mut self, byte: u8) -> bool {
        let open = !self.0.iter().any(|text| text.at_end);
        if open {
            for text in &mut self.0 {
                text.bytes.push(byte);
            }
        }
        open
    }

    /// From here on only the start of the key counts. False when something is before it.
    fn start(&mut self) -> bool {
        let empty = self
            .0
            .iter()
            .all(|text| text.bytes.is_empty() && !text.at_end);
        if empty {
            for text in &mut self.0 {
                text.at_start = true;
            }
        }
        empty
    }

    fn end(&mut self) {
        for text in &mut self.0 {
            text.at_end = true;
        }
    }

    /// Each of these followed by each of the others. `None` when that is too much, or anchors are in between.
    fn followed_by(&self, others: &Self) -> Option<Self> {
        if self.0.len() * others.0.len() > MOST_COMBINED {
            return None;
        }
        let mut all = Vec::with_capacity(self.0.len() * others.0.len());
        for first in &self.0 {
            for second in &others.0 {
                if second.at_start && !first.bytes.is_empty()
                    || first.at_end && !second.bytes.is_empty()
                {
                    return None;
                }
                let bytes = [first.bytes.as_slice(), &second.bytes].concat();
                all.push(Text {
                    bytes,
                    at_start: first.at_start || second.at_start,
                    at_end: first.at_end || second.at_end,
                });
            }
        }
        (all.iter().map(|text| text.bytes.len()).sum::<usize>() <= MOST_BYTES).then_some(Self(all))
    }

    /// Ends the texts, and begins anew.
    fn finish(&mut self, required: &mut Vec<OneOf>) {
        let Self(texts) = std::mem::take(self);
        if texts.iter().all(|text| text.bytes.len() >= SHORTEST) {
            let one_of = texts.into_iter().map(|text| {
                let mut bytes = text.bytes;
                let whole = bytes.len() <= LONGEST;
                bytes.truncate(LONGEST);
                bytes.make_ascii_lowercase();
                Literal {
                    bytes: bytes.into(),
                    at_start: text.at_start,
                    at_end: text.at_end && whole,
                }
            });
            required.push(one_of.collect());
        }
    }
}

impl Parser<'_> {
    fn peek(&mut self) -> Result<Token, Doubt> {
        if let Some(token) = self.ahead {
            return Ok(token);
        }
        let token = self.lexer.next()?;
        self.ahead = Some(token);
        Ok(token)
    }

    fn next(&mut self) -> Result<Token, Doubt> {
        let token = self.peek()?;
        self.ahead = None;
        Ok(token)
    }

    fn is_at_end(&mut self) -> bool {
        self.peek() == Ok(Token::Over)
    }

    /// The fewest times that the item before must occur; `None` without a quantifier.
    fn repeated(&mut self) -> Result<Option<u32>, Doubt> {
        let mut least = None;
        while let Token::Repeat { least: times } = self.peek()? {
            self.next()?;
            // Whatever a second quantifier means: what may be left out by one of them may be left out.
            least = Some(least.unwrap_or(1).min(times));
        }
        Ok(least)
    }

    fn not_repeated(&mut self) -> Result<(), Doubt> {
        match self.peek()? {
            Token::Repeat { .. } => Err(Doubt),
            _ => Ok(()),
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<Part, Doubt> {
        if depth > DEEPEST {
            return Err(Doubt);
        }
        let first = self.sequence(depth)?;
        if self.peek()? != Token::Alternative {
            return Ok(first);
        }
        let mut all = best(first.required);
        let mut exact = first.exact;
        while self.peek()? == Token::Alternative {
            self.next()?;
            let other = self.sequence(depth)?;
            all = all.zip(best(other.required)).and_then(|(mut all, other)| {
                all.extend(other);
                (all.len() <= MOST_ALTERNATIVES).then_some(all)
            });
            exact = exact.zip(other.exact).and_then(|(mut exact, other)| {
                exact.0.extend(other.0);
                (exact.0.len() <= MOST_COMBINED).then_some(exact)
            });
        }
        Ok(Part {
            required: all.into_iter().collect(),
            exact,
        })
    }

    fn sequence(&mut self, depth: usize) -> Result<Part, Doubt> {
        let mut required = Vec::new();
        let mut run = Texts::default();
        // Of the whole sequence, as long as it is one run.
        let mut exact = true;
        loop {
            match self.peek()? {
                Token::Alternative | Token::Close | Token::Over => break,
                _ => {}
            }
            match self.next()? {
                Token::Byte(byte) => {
                    let least = self.repeated()?;
                    if least != Some(0) && !run.push(byte) {
                        exact = false;
                        run.finish(&mut required);
                        run.push(byte);
                    }
                    if let Some(least) = least {
                        exact = false;
                        run.finish(&mut required);
                        if least > 0 {
                            run.push(byte);
                        }
                    }
                }
                Token::Item => {
                    self.repeated()?;
                    exact = false;
                    run.finish(&mut required);
                }
                Token::Start => {
                    self.not_repeated()?;
                    if self.lines {
                        exact = false;
                        run.finish(&mut required);
                    } else if !run.start() {
                        exact = false;
                        run.finish(&mut required);
                        run.start();
                    }
                }
                Token::End => {
                    self.not_repeated()?;
                    if self.lines {
                        exact = false;
                        run.finish(&mut required);
                    } else {
                        run.end();
                    }
                }
                // What is on both sides of it is one text.
                Token::Look => self.not_repeated()?,
                Token::Open { looks } => {
                    let inner = self.alternatives(depth + 1)?;
                    if self.next()? != Token::Close {
                        return Err(Doubt);
                    }
                    let least = self.repeated()?;
                    if looks {
                        if least.is_some() {
                            exact = false;
                            run.finish(&mut required);
                        }
                        continue;
                    }
                    let joined = match &inner.exact {
                        Some(texts) if least.is_none() => run.followed_by(texts),
                        _ => None,
                    };
                    if let Some(joined) = joined {
                        run = joined;
                    } else {
                        exact = false;
                        run.finish(&mut required);
                        if least != Some(0) {
                            required.extend(inner.required);
                        }
                    }
                }
                // The last three are not taken.
                Token::Repeat { .. } | Token::Alternative | Token::Close | Token::Over => {
                    return Err(Doubt);
                }
            }
        }
        let exact = exact.then(|| run.clone());
        run.finish(&mut required);
        Ok(Part { required, exact })
    }
}

/// The demand that says most: by its shortest literal, then by how few there are.
fn best(required: Vec<OneOf>) -> Option<OneOf> {
    required.into_iter().max_by_key(|one_of| {
        let shortest = one_of.iter().map(|literal| literal.bytes.len()).min();
        (shortest.unwrap_or(0), std::cmp::Reverse(one_of.len()))
    })
}

impl Literal {
    /// Whether the literal is in the key with its first byte at `start`.
    pub(crate) fn is_at(&self, key: &[u8], start: usize) -> bool {
        let end = start + self.bytes.len();
        let Some(text) = key.get(start..end) else {
            return false;
        };
        (!self.at_start || start == 0)
            && (!self.at_end || end == key.len() || &key[end..] == b"\n")
            && text.eq_ignore_ascii_case(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(pattern: &str, syntax: Syntax, lines: bool) -> String {
        let one_of = |one_of: &OneOf| {
            let literals: Vec<_> = one_of
                .iter()
                .map(|literal| {
                    format!(
                        "{}{}{}",
                        if literal.at_start { "^" } else { "" },
                        literal.bytes.escape_ascii(),
                        if literal.at_end { "$" } else { "" }
                    )
                })
                .collect();
            literals.join("|")
        };
        let required = required_text(pattern.as_bytes(), syntax, lines);
        required.iter().map(one_of).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn text_that_must_be_there() {
        for (pattern, pcre, extended) in [
            ("^Subject: Free$", "^subject: free$", "^subject: free$"),
            ("^Subject:.*free", "^subject: free", "^subject: free"),
            ("a\\.b@c[.]de", "a.b@c.de", "a.b@c.de"),
            ("^(user12)@(x\\.com)$", "^user12@x.com$", "^user12@x.com$"),
            ("ab+cd", "ab bcd", "ab bcd"),
            ("abc?de", "ab de", "ab de"),
            ("abc{2,3}de", "abc cde", "abc cde"),
            ("abc{0}de", "ab de", "ab de"),
            ("(foo|bar)baz", "foobaz|barbaz", "foobaz|barbaz"),
            ("m7( |$)", "m7 |m7$", "m7 |m7$"),
            ("x(^|a)b", "", ""),
            ("^(a|b)(c|d)$", "^ac$|^ad$|^bc$|^bd$", "^ac$|^ad$|^bc$|^bd$"),
            ("(foo$|b)ar", "ar", "ar"),
            ("(ab|cd)+ef", "ab|cd ef", "ab|cd ef"),
            ("(foo|)baz", "foobaz|baz", "foobaz|baz"),
            ("(foo|bar)?baz", "baz", "baz"),
            ("(foo)+baz", "foo baz", "foo baz"),
            ("foo|bar$", "foo|bar$", "foo|bar$"),
            ("foo|b", "", ""),
            ("(^foo|bar)x", "^foox|barx", "^foox|barx"),
            ("[Aa][bB]c", "abc", "abc"),
            ("x[^]a]yz[]a]vw[[:alpha:]]tu", "yz vw tu", "yz vw tu"),
            ("a\\db\\ww", "", ""),
            ("foo\\bbar", "foobar", "foobar"),
            ("foo.*", "foo", "foo"),
            ("foo**bar", "fo bar", "fo bar"),
            (
                "\u{e9}\u{c9}",
                "\\xc3\\xa9\\xc3\\x89",
                "\\xc3\\xa9\\xc3\\x89",
            ),
        ] {
            assert_eq!(show(pattern, Syntax::Pcre, false), pcre, "{pattern}");
            assert_eq!(
                show(pattern, Syntax::Extended, false),
                extended,
                "{pattern}"
            );
        }
    }

    #[test]
    fn lines_leave_no_anchors() {
        assert_eq!(show("^foo$", Syntax::Pcre, true), "foo");
        assert_eq!(show("^foo$", Syntax::Extended, true), "foo");
    }

    #[test]
    fn groups_of_pcre() {
        for (pattern, wanted) in [
            ("(?:foo|bar)", "foo|bar"),
            ("(?i)foo(?-i:bar)", "foobar"),
            ("foo(?=barbar)baz", "foobaz"),
            ("foo(?!barbar)baz", "foobaz"),
            ("(?<=barbar)baz", "baz"),
            ("(?<name>foo)(?P<n>bar)(?'o'baz)(?>qux)", "foobarbazqux"),
            ("(foo)\\1bar", "foo bar"),
            ("foo*?bar+?baz", "fo ba baz"),
            ("foo*+bar", "fo bar"),
            ("foo\\Kbar\\R\\Xbaz", "foobar baz"),
            ("foo]}bar", "foo]}bar"),
        ] {
            assert_eq!(show(pattern, Syntax::Pcre, false), wanted, "{pattern}");
        }
    }

    #[test]
    fn basic_expressions() {
        for (pattern, wanted) in [
            ("^a+b(c)|d{2}$", "^a+b(c)|d{2}$"),
            ("ab\\(cd\\|ef\\)gh*ij", "abcdg|abefg ij"),
            ("abc\\{2\\}\\+d\\?ef", "abc ef"),
            ("ab[.]c", "ab.c"),
        ] {
            assert_eq!(show(pattern, Syntax::Basic, false), wanted, "{pattern}");
        }
        for pattern in [
            "foo\\(*ab\\)",
            "*foo",
            "foo^bar",
            "foo$bar",
            "foo\\(a\\)\\1",
        ] {
            assert_eq!(show(pattern, Syntax::Basic, false), "", "{pattern}");
        }
    }

    #[test]
    fn in_doubt_nothing_is_required() {
        for pattern in [
            "(*ACCEPT)foo",
            "foo(*ACCEPT)bar",
            "(?x)f o o",
            "(?m)^foo",
            "(?(1)foo|bar)baz",
            "(?1)foo(bar)",
            "(?R)?foo",
            "foo(?#c)+bar",
            "\\Qfoo\\E+bar",
            "foo\\x41bar",
            "foo\\101bar",
            "foo\\10bar",
            "foo\\g1bar",
            "foo\\N{U+41}",
            "foo\\p{L}",
            "foo{,3}bar",
            "foo{ 1, 3 }bar",
            "foo{x}bar",
            "^*foo",
            "foo[\\Qa\\E]bar",
            "foo[[.a.]]bar",
            "foo[[:alpha]bar",
            "foo[a",
            "foo)bar",
            "(foo",
            "foo\\",
        ] {
            assert_eq!(show(pattern, Syntax::Pcre, false), "", "{pattern}");
        }
        for pattern in [
            "foo)bar",
            "*foo",
            "(*foo)",
            "^*foo",
            "fo\\d",
            "fo\\N",
            "(a)foo\\1",
            "foo{x",
            "foo[[=a=]]",
            "foo[a",
            "(foo",
            "foo\\",
        ] {
            assert_eq!(show(pattern, Syntax::Extended, false), "", "{pattern}");
        }
        let deep = format!("{}foo{}", "(".repeat(100), ")".repeat(100));
        assert_eq!(show(&deep, Syntax::Pcre, false), "");
    }
}
