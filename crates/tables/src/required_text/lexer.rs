//! Patterns as tokens, in three syntaxes.

use super::Syntax;

/// The meaning of a pattern is not certain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Doubt;

/// What a pattern is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Matches this byte, perhaps in the other case.
    Byte(u8),
    /// Matches something that is not known.
    Item,
    /// Matches at the start of the key, or of a line.
    Start,
    /// Matches at the end of the key, or of a line.
    End,
    /// Matches no text.
    Look,
    /// A group begins; a group that `looks` matches no text.
    Open { looks: bool },
    /// A group ends.
    Close,
    /// Another alternative begins.
    Alternative,
    /// The item before occurs at least so often.
    Repeat { least: u32 },
    /// There is no more.
    Over,
}

pub(super) struct Lexer<'a> {
    pattern: &'a [u8],
    at: usize,
    syntax: Syntax,
    /// Basic expressions: what was before decides about `*` and `^`.
    previous: Option<Token>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(pattern: &'a [u8], syntax: Syntax) -> Self {
        Self {
            pattern,
            at: 0,
            syntax,
            previous: None,
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.pattern[self.at..]
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.rest().first().copied()?;
        self.at += 1;
        Some(byte)
    }

    fn take_if(&mut self, text: &[u8]) -> bool {
        let there = self.rest().starts_with(text);
        if there {
            self.at += text.len();
        }
        there
    }

    /// The next token; after the last one always [`Token::Over`].
    pub(super) fn next(&mut self) -> Result<Token, Doubt> {
        let Some(byte) = self.take() else {
            return Ok(Token::Over);
        };
        let token = match (self.syntax, byte) {
            (_, b'[') => self.bracket()?,
            (Syntax::Pcre, b'\\') => self.escape_pcre()?,
            (Syntax::Extended, b'\\') => self.escape_extended()?,
            (Syntax::Basic, b'\\') => self.escape_basic()?,
            (_, b'.') => Token::Item,
            (Syntax::Basic, _) => self.plain_basic(byte)?,
            (Syntax::Pcre, b'(') => self.open_pcre()?,
            (Syntax::Extended, b'(') => Token::Open { looks: false },
            (_, b')') => Token::Close,
            (_, b'|') => Token::Alternative,
            (_, b'^') => Token::Start,
            (_, b'$') => Token::End,
            (_, b'*' | b'?') => Token::Repeat { least: 0 },
            (_, b'+') => Token::Repeat { least: 1 },
            (_, b'{') => self.counts(b"}")?,
            _ => Token::Byte(byte),
        };
        self.previous = Some(token);
        Ok(token)
    }

    /// The counts of `{1}`, `{1,}`, `{1,2}`, after the brace. Everything else means different things.
    fn counts(&mut self, close: &[u8]) -> Result<Token, Doubt> {
        let least = self.number().ok_or(Doubt)?;
        if self.take_if(b",") {
            self.number();
        }
        if self.take_if(close) {
            Ok(Token::Repeat { least })
        } else {
            Err(Doubt)
        }
    }

    fn number(&mut self) -> Option<u32> {
        let rest = self.rest();
        let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += length;
        std::str::from_utf8(&rest[..length]).ok()?.parse().ok()
    }

    /// A set in brackets, after the opening one. A set of one character, perhaps in both cases, is that character.
    fn bracket(&mut self) -> Result<Token, Doubt> {
        let pcre = self.syntax == Syntax::Pcre;
        let negated = self.take_if(b"^");
        let mut only = None;
        let mut one = !negated;
        let mut first = true;
        loop {
            let byte = self.take().ok_or(Doubt)?;
            let mut member = Some(byte);
            match byte {
                b']' if !first => break,
                b'[' => match self.rest().first() {
                    Some(b':') => {
                        self.class_name()?;
                        member = None;
                    }
                    Some(b'.' | b'=') => return Err(Doubt),
                    _ => {}
                },
                b'\\' if pcre => {
                    let escaped = self.take().ok_or(Doubt)?;
                    match escaped {
                        b'Q' | b'E' | b'c' | b'o' | b'x' | b'N' | b'p' | b'P' => return Err(Doubt),
                        _ if escaped.is_ascii_alphanumeric() => member = None,
                        _ => member = Some(escaped),
                    }
                }
                // A range, unless it is at an end; not worth to know.
                b'-' => member = None,
                _ => {}
            }
            first = false;
            let member = member.map(|byte| byte.to_ascii_lowercase());
            one &= member.is_some() && (only.is_none() || only == member);
            only = member;
        }
        match only {
            Some(byte) if one => Ok(Token::Byte(byte)),
            _ => Ok(Token::Item),
        }
    }

    /// `:alpha:]`, after its opening bracket.
    fn class_name(&mut self) -> Result<(), Doubt> {
        self.at += 1;
        self.take_if(b"^");
        let length = self
            .rest()
            .iter()
            .take_while(|byte| byte.is_ascii_alphabetic())
            .count();
        self.at += length;
        if length > 0 && self.take_if(b":]") {
            Ok(())
        } else {
            Err(Doubt)
        }
    }

    fn escape_pcre(&mut self) -> Result<Token, Doubt> {
        let byte = self.take().ok_or(Doubt)?;
        match byte {
            b'b' | b'B' | b'A' | b'Z' | b'z' | b'G' | b'K' => Ok(Token::Look),
            b'N' if self.rest().first() == Some(&b'{') => Err(Doubt),
            b'd' | b'D' | b'w' | b'W' | b's' | b'S' | b'h' | b'H' | b'v' | b'V' | b'N' | b'R'
            | b'X' | b'C' | b'a' | b'e' | b'f' | b'n' | b'r' | b't' => Ok(Token::Item),
            // One digit is a group that matched before, more may be a character.
            b'1'..=b'9' if !self.rest().first().is_some_and(u8::is_ascii_digit) => Ok(Token::Item),
            _ if byte.is_ascii_alphanumeric() => Err(Doubt),
            _ => Ok(Token::Byte(byte)),
        }
    }

    /// What `(` begins.
    fn open_pcre(&mut self) -> Result<Token, Doubt> {
        if self.rest().first() == Some(&b'*') {
            return Err(Doubt);
        }
        let group = Ok(Token::Open { looks: false });
        if !self.take_if(b"?") {
            return group;
        }
        for looks in [&b"="[..], b"!", b"<=", b"<!"] {
            if self.take_if(looks) {
                return Ok(Token::Open { looks: true });
            }
        }
        for plain in [&b":"[..], b">", b"|"] {
            if self.take_if(plain) {
                return group;
            }
        }
        for (open, close) in [(&b"P<"[..], b'>'), (b"<", b'>'), (b"'", b'\'')] {
            if self.take_if(open) {
                let length = self
                    .rest()
                    .iter()
                    .take_while(|&&byte| byte.is_ascii_alphanumeric() || byte == b'_')
                    .count();
                self.at += length;
                return if length > 0 && self.take_if(&[close]) {
                    group
                } else {
                    Err(Doubt)
                };
            }
        }
        // Options that change nothing about what text is: the case, and what `.` matches.
        let length = self
            .rest()
            .iter()
            .take_while(|&&byte| matches!(byte, b'i' | b's' | b'-'))
            .count();
        self.at += length;
        match self.take() {
            Some(b':') if length > 0 => group,
            Some(b')') if length > 0 => Ok(Token::Look),
            _ => Err(Doubt),
        }
    }

    fn escape_extended(&mut self) -> Result<Token, Doubt> {
        let byte = self.take().ok_or(Doubt)?;
        match byte {
            b'w' | b'W' | b's' | b'S' => Ok(Token::Item),
            b'b' | b'B' | b'<' | b'>' | b'`' | b'\'' => Ok(Token::Look),
            // Groups that matched before; and letters, which the C library takes in one case only.
            _ if byte.is_ascii_alphanumeric() => Err(Doubt),
            _ => Ok(Token::Byte(byte)),
        }
    }

    fn escape_basic(&mut self) -> Result<Token, Doubt> {
        let byte = self.rest().first().copied().ok_or(Doubt)?;
        let token = match byte {
            b'(' => Token::Open { looks: false },
            b')' => Token::Close,
            b'|' => Token::Alternative,
            b'+' => Token::Repeat { least: 1 },
            b'?' => Token::Repeat { least: 0 },
            b'{' => {
                self.at += 1;
                return self.counts(b"\\}");
            }
            b'}' => return Err(Doubt),
            _ => return self.escape_extended(),
        };
        self.at += 1;
        Ok(token)
    }

    /// Basic expressions: a byte that has a meaning only in some places.
    fn plain_basic(&mut self, byte: u8) -> Result<Token, Doubt> {
        match byte {
            b'*' => match self.previous {
                Some(Token::Byte(_) | Token::Item | Token::Close | Token::Repeat { .. }) => {
                    Ok(Token::Repeat { least: 0 })
                }
                _ => Err(Doubt),
            },
            b'^' if self.at == 1 => Ok(Token::Start),
            b'$' if self.rest().is_empty() => Ok(Token::End),
            b'^' | b'$' => Err(Doubt),
            _ => Ok(Token::Byte(byte)),
        }
    }
}
