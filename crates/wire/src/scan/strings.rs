//! Finding the strings of a list: separators, the end of the input, limits.

use std::ops::Range;

use crate::base64;
use crate::diagnostics::{Shown, Size};
use crate::duplex::End;
use crate::encode::{Encoding, before_nul};

use super::{Call, Failure, Piece, Progress, SHOWN_VALUE, Scanner, Step, Verdict};

pub(super) const ATTRIBUTE_NAME: &str = "input attribute name";
pub(super) const ATTRIBUTE_VALUE: &str = "input attribute value";

/// A string of the input as the tokenizer found it.
pub(super) enum Token {
    /// Where it stands, and the byte behind it.
    Whole(Range<usize>, u8),
    /// The buffer ends before the string does.
    Partial,
    /// It breaks a limit.
    Excess,
}

/// Where a string ends.
#[derive(Clone, Copy)]
enum Until {
    /// At the separator that the encoding has for this kind of string.
    Separator(&'static str),
    LineEnd,
}

/// What comes next in a sequence of lists without a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookAhead {
    /// More bytes are needed.
    Incomplete,
    /// The terminator: one byte to drop.
    Terminator,
    /// Another list begins here.
    More,
    /// The input has ended.
    Ended(End),
}

/// Looks whether a list or the terminator follows (`attr_scan_more()`), as in replies of variable length.
pub fn look_ahead(encoding: Encoding, input: &[u8], end: Option<End>) -> LookAhead {
    let terminator = match encoding {
        Encoding::Null => 0,
        Encoding::Plain | Encoding::Base64 => b'\n',
    };
    match (input.first(), end) {
        (Some(&byte), _) if byte == terminator => LookAhead::Terminator,
        (Some(_), _) => LookAhead::More,
        (None, Some(end)) => LookAhead::Ended(end),
        (None, None) => LookAhead::Incomplete,
    }
}

impl Scanner {
    pub(super) fn skip_value(&mut self, call: &mut Call<'_>) -> Verdict {
        self.step = Step::Name;
        let until = match self.encoding {
            Encoding::Null => Until::Separator(ATTRIBUTE_VALUE),
            // The name was alone on its line.
            Encoding::Plain | Encoding::Base64 if self.separator == b'\n' => return Ok(()),
            Encoding::Plain | Encoding::Base64 => Until::LineEnd,
        };
        match self.token(call.input, until) {
            Token::Whole(..) => Ok(()),
            Token::Excess => Err(self.excess(ATTRIBUTE_VALUE, call)),
            Token::Partial => match call.end {
                None => {
                    self.step = Step::Skip;
                    Err(Progress::Incomplete)
                }
                // The next name then finds the end of the input once more.
                Some(end) => {
                    if self.encoding == Encoding::Null {
                        self.warn_end(end, ATTRIBUTE_VALUE, call);
                    }
                    self.drop_partial(call.input);
                    Ok(())
                }
            },
        }
    }

    fn drop_partial(&mut self, input: &[u8]) {
        self.position = input.len();
        self.looked = self.position;
    }

    /// Reads a string in the middle of the list; `None` when it is not base64, which has been logged.
    pub(super) fn string(
        &mut self,
        call: &mut Call<'_>,
        context: &'static str,
    ) -> Result<Option<(Piece, u8)>, Progress> {
        match self.token(call.input, Until::Separator(context)) {
            Token::Excess => Err(self.excess(context, call)),
            Token::Partial => match call.end {
                None => Err(Progress::Incomplete),
                Some(end) => {
                    self.warn_end(end, context, call);
                    self.drop_partial(call.input);
                    Err(self.failed(Failure::Ended(end)))
                }
            },
            Token::Whole(range, separator) if self.encoding == Encoding::Base64 => {
                let text = call.input.get(range).unwrap_or_default();
                let start = self.decoded.len();
                if base64::decode(text, &mut self.decoded).is_err() {
                    call.diagnostics.warning(format_args!(
                        "malformed base64 data from {}: {}",
                        call.name,
                        Shown::cut(before_nul(text), SHOWN_VALUE),
                    ));
                    return Ok(None);
                }
                Ok(Some((Piece::Decoded(start..self.decoded.len()), separator)))
            }
            Token::Whole(range, separator) => Ok(Some((Piece::Input(range), separator))),
        }
    }

    /// Finds the end of the string at hand; the place moves behind it when it is there.
    fn token(&mut self, input: &[u8], until: Until) -> Token {
        let rest = input.get(self.looked..).unwrap_or_default();
        let found = match (self.encoding, until) {
            (Encoding::Null, _) => memchr::memchr(0, rest),
            (Encoding::Plain, Until::Separator(ATTRIBUTE_NAME)) => {
                memchr::memchr2(b'=', b'\n', rest)
            }
            (Encoding::Base64, Until::Separator(_)) => memchr::memchr2(b':', b'\n', rest),
            (Encoding::Plain, _) | (Encoding::Base64, Until::LineEnd) => {
                memchr::memchr(b'\n', rest)
            }
        };
        let start = self.position;
        let stop = found.map_or(input.len(), |length| self.looked + length);
        let longest = match until {
            Until::Separator(ATTRIBUTE_NAME) => self.limits.name,
            Until::Separator(_) | Until::LineEnd => self.limits.value,
        };
        if stop.saturating_sub(start) > longest || stop > self.limits.list {
            return Token::Excess;
        }
        if found.is_none() {
            self.looked = stop;
            return Token::Partial;
        }
        self.position = stop + 1;
        self.looked = self.position;
        Token::Whole(start..stop, input[stop])
    }

    fn warn_end(&self, end: End, context: &str, call: &mut Call<'_>) {
        let name = call.name;
        let partial = call.input.get(self.position..).unwrap_or_default();
        // The reference tells by the last byte of the string, a signed char, whether there is any; 255 is its EOF.
        let some = partial.last().is_some_and(|&byte| byte != 0xff);
        match end {
            _ if some && self.encoding == Encoding::Null => call.warn(format_args!(
                "unexpected end-of-input from {name} while reading {context}"
            )),
            End::Closed => call.warn(format_args!(
                "premature end-of-input on {name} while reading {context}"
            )),
            End::TimedOut => call.warn(format_args!("timeout on {name} while reading {context}")),
        }
    }

    fn excess(&self, context: &str, call: &mut Call<'_>) -> Progress {
        let (size, what, longest) = if context == ATTRIBUTE_NAME {
            (Size::Name, "name", self.limits.name)
        } else {
            (Size::Value, "value", self.limits.value)
        };
        // Whichever limit comes first in the stream, so that it does not matter how the input was cut.
        let (size, what, longest) = if self.position.saturating_add(longest) <= self.limits.list {
            (size, what, longest)
        } else {
            (Size::List, "list", self.limits.list)
        };
        let name = call.name;
        call.diagnostics.exceeded(
            size,
            format_args!("attribute {what} length exceeds limit {longest} in input from {name}"),
        );
        self.failed(Failure::Limit)
    }
}
