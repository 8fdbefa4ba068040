//! Reading attribute lists: the receivers of Postfix, resumable at every byte.
//!
//! A [`Scanner`] walks over a buffer with a wish list, in any of the three encodings. When the buffer ends too early it
//! keeps its place and says [`Progress::Incomplete`]; the caller calls again with the same bytes and more behind them.
//! No byte is looked at twice, and what is found are ranges of the buffer, no copies (base64 excepted).
//!
//! The steps, and when a warning is due, are those of the reference; what is ours are the [`Limits`], as the reference
//! has none.
//!
//! # References
//! Postfix `src/util/attr_scan0.c`, `attr_scan_plain.c`, `attr_scan64.c`.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use crate::diagnostics::{Diagnostics, Shown};
use crate::duplex::End;
use crate::encode::{Encoding, before_nul};
use crate::{base64, number};

/// A nested table holds at most this many entries (`ATTR_HASH_LIMIT`).
pub const HASH_LIMIT: usize = 1024;

/// Embedded values in warnings about malformed data are cut to this many bytes.
const SHOWN_VALUE: usize = 100;

const ATTRIBUTE_NAME: &str = "input attribute name";
const ATTRIBUTE_VALUE: &str = "input attribute value";

bitflags::bitflags! {
    /// How strict a scan is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ScanFlags: u8 {
        /// Warn when the list ends before all wishes are met.
        const MISSING = 1;
        /// Warn about, and stop at, an attribute that is not the next wish; otherwise it is skipped.
        const EXTRA = 1 << 1;
        /// Return when all wishes are met, and leave the rest of the list, terminator included.
        const MORE = 1 << 2;
        /// Replace bytes in received texts that are not printable ASCII with `?`.
        const PRINTABLE = 1 << 3;
        /// Both [`Self::MISSING`] and [`Self::EXTRA`].
        const STRICT = Self::MISSING.bits() | Self::EXTRA.bits();
    }
}

/// What a peer may send at most; beyond it a scan fails, and the connection is to be closed.
///
/// Lengths are in bytes, as encoded, without separators. Where a list breaks a limit does not depend on how it was cut
/// into reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of one name; 4096 by default.
    pub name: usize,
    /// Length of one value; 1 MiB by default.
    pub value: usize,
    /// Length of a whole list; 4 MiB by default.
    pub list: usize,
    /// Number of attributes in a list, those included that nobody asked for; 4096 by default.
    pub attributes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            name: 4096,
            value: 1024 * 1024,
            list: 4 * 1024 * 1024,
            attributes: 4096,
        }
    }
}

/// One item of a wish list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'w> {
    /// A 32-bit number; see [`number::low_int`].
    Int(&'w str),
    /// A 32-bit number that goes by one of several names; the first one is used in warnings.
    IntNamed(&'w [&'w str]),
    /// A 64-bit number.
    Long(&'w str),
    /// A text.
    Text(&'w str),
    /// Bytes in base64.
    Data(&'w str),
    /// A truth value (Postfix 3.12).
    Boolean(&'w str),
    /// A text that must be the second one; it does not count as recovered and yields no value.
    Equal(&'w str, &'w str),
    /// A nested table in braces, or else all attributes up to the end of the list.
    Multi,
    /// A wish list in the middle of this one, without braces; counts as one, all of it must be there.
    Nested(&'w [Wanted<'w>]),
}

impl Wanted<'_> {
    fn name(&self) -> &str {
        match *self {
            Self::Int(name)
            | Self::Long(name)
            | Self::Text(name)
            | Self::Data(name)
            | Self::Boolean(name)
            | Self::Equal(name, _) => name,
            Self::IntNamed(names) => names.first().copied().unwrap_or(""),
            Self::Multi => "(any attribute name or list terminator)",
            Self::Nested(_) => "",
        }
    }
}

/// A recovered value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// From [`Wanted::Int`] and [`Wanted::Long`]: all 64 bits.
    Number(u64),
    /// From [`Wanted::IntNamed`]: which name, and the number.
    Named(usize, u64),
    /// From [`Wanted::Text`] and [`Wanted::Data`].
    Bytes(&'a [u8]),
    /// From [`Wanted::Boolean`].
    Boolean(bool),
    /// From [`Wanted::Multi`], in the order of arrival.
    Multi(&'a [Entry]),
}

/// Name and value of an entry of a nested table.
pub type Entry = (Vec<u8>, Vec<u8>);

/// How far a scan has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// The scan is over without an error of its own (the reference returns the number of recovered attributes).
    Done {
        /// Number of recovered attributes.
        recovered: usize,
        /// Number of bytes read, from the beginning of the buffer.
        consumed: usize,
        /// Why it is over.
        stop: Stop,
    },
    /// The scan broke off (the reference returns -1).
    Failed {
        /// Number of bytes read, from the beginning of the buffer.
        consumed: usize,
        /// Why.
        failure: Failure,
    },
}

/// Why a scan is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The input ended before the first byte of the list; there was no warning.
    Nothing,
    /// The terminator of the list was read, be it that all wishes are met or not.
    Terminator,
    /// All wishes are met and [`ScanFlags::MORE`] is set; the list goes on.
    Wishes,
    /// An attribute came that nobody asked for, a duplicate, or an entry too many; the rest of the list is unread.
    Unexpected,
}

/// Why a scan broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The input ended in the middle of the list.
    #[error("the input ended in the middle of an attribute list")]
    Ended(End),
    /// A value is not what its type asks for, or not the expected text.
    #[error("malformed attribute value")]
    Malformed,
    /// A nested wish list was not met.
    #[error("incomplete nested attributes")]
    Nested,
    /// One of the [`Limits`]; the list cannot be delimited.
    #[error("attribute list exceeds a limit")]
    Limit,
}

/// A piece of text: in the caller's buffer, or decoded in ours.
#[derive(Clone, Debug)]
enum Piece {
    Input(Range<usize>),
    Decoded(Range<usize>),
}

#[derive(Clone, Debug)]
enum Slot {
    Number(u64),
    Named(usize, u64),
    Bytes(Piece),
    Boolean(bool),
    Multi(Range<usize>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing of this list has been read.
    Begin,
    /// Choose the next wish.
    Choose,
    /// Read a name.
    Name,
    /// Read the value of the current wish.
    Value,
    /// Read over the value of an attribute that nobody asked for.
    Skip,
}

/// Where a nested table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    /// Not in one.
    None,
    /// All names up to the end of the list, or an opening brace.
    Open,
    /// All names up to the closing brace.
    Braced,
}

/// A string of the input as the tokenizer found it.
enum Token {
    /// Where it stands, and the byte behind it.
    Whole(Range<usize>, u8),
    /// The buffer ends before the string does; so many bytes of it are there.
    Partial(usize),
    /// It breaks a limit.
    Excess,
}

/// What to tell the caller about a step.
type Verdict = Result<(), Progress>;

/// The receiver of one attribute list.
///
/// Allocates nothing for lists without nested tables and base64 once it has been used.
#[derive(Debug)]
pub struct Scanner {
    encoding: Encoding,
    flags: ScanFlags,
    limits: Limits,
    step: Step,
    /// Where the next string begins.
    position: usize,
    /// Bytes before this one hold no separator of the current string.
    looked: usize,
    /// Index of the current wish, and of the nested lists it is in with what had been recovered before each.
    index: usize,
    outer: Vec<(usize, usize)>,
    table: Table,
    recovered: usize,
    attributes: usize,
    name: Piece,
    separator: u8,
    slots: Vec<Slot>,
    decoded: Vec<u8>,
    entries: Vec<Entry>,
    names: HashSet<Vec<u8>>,
}

impl Scanner {
    /// A scanner that stands at the beginning of a list.
    pub fn new(encoding: Encoding, flags: ScanFlags, limits: Limits) -> Self {
        Self {
            encoding,
            flags,
            limits,
            step: Step::Begin,
            position: 0,
            looked: 0,
            index: 0,
            outer: Vec::new(),
            table: Table::None,
            recovered: 0,
            attributes: 0,
            name: Piece::Input(0..0),
            separator: 0,
            slots: Vec::with_capacity(8),
            decoded: Vec::new(),
            entries: Vec::new(),
            names: HashSet::new(),
        }
    }

    /// Forgets everything: the next call starts a new list at the beginning of its buffer.
    pub fn reset(&mut self) {
        self.position = 0;
        self.looked = 0;
        self.attributes = 0;
        self.follow_up(self.flags);
    }

    /// After [`Stop::Wishes`]: starts another scan, with its own wish list, in what is left of the same list.
    ///
    /// Values found so far are forgotten. As in the reference, the end of input right here is silent.
    pub fn follow_up(&mut self, flags: ScanFlags) {
        self.flags = flags;
        self.step = Step::Begin;
        self.index = 0;
        self.outer.clear();
        self.table = Table::None;
        self.recovered = 0;
        self.slots.clear();
        self.decoded.clear();
        self.entries.clear();
        self.names.clear();
    }

    /// After [`Stop::Wishes`]: goes on with another wish list as if it were the rest of the last one.
    ///
    /// Values and count are kept.
    pub fn carry_on(&mut self, flags: ScanFlags) {
        self.flags = flags;
        self.step = Step::Choose;
        self.index = 0;
    }

    /// Number of values found.
    pub fn values(&self) -> usize {
        self.slots.len()
    }

    /// The value found for a wish, counted without [`Wanted::Equal`], nested lists in place.
    ///
    /// `input` is the buffer of the last [`Self::resume`].
    pub fn value<'a>(&'a self, index: usize, input: &'a [u8]) -> Option<Value<'a>> {
        Some(match self.slots.get(index)? {
            Slot::Number(number) => Value::Number(*number),
            Slot::Named(which, number) => Value::Named(*which, *number),
            Slot::Bytes(piece) => Value::Bytes(self.bytes(piece, input)),
            Slot::Boolean(value) => Value::Boolean(*value),
            Slot::Multi(range) => Value::Multi(self.entries.get(range.clone()).unwrap_or_default()),
        })
    }

    /// A text that was found, in the null encoding without [`ScanFlags::PRINTABLE`]: always part of `input`.
    pub(crate) fn text<'a>(&self, index: usize, input: &'a [u8]) -> &'a [u8] {
        match self.slots.get(index) {
            Some(Slot::Bytes(Piece::Input(range))) => input.get(range.clone()).unwrap_or_default(),
            _ => &[],
        }
    }

    /// A number that was found.
    pub(crate) fn number(&self, index: usize) -> u64 {
        match self.slots.get(index) {
            Some(Slot::Number(number) | Slot::Named(_, number)) => *number,
            _ => 0,
        }
    }

    /// Which of its names a number came under.
    pub(crate) fn named(&self, index: usize) -> Option<usize> {
        match self.slots.get(index) {
            Some(Slot::Named(which, _)) => Some(*which),
            _ => None,
        }
    }

    /// Scans on.
    ///
    /// - `wishes`: what to receive, in this order; the same list in each call for one scan
    /// - `input`: the same bytes as before, and more behind them
    /// - `end`: set when nothing will come behind `input`; then the answer is never [`Progress::Incomplete`]
    /// - `name`: the stream, for warnings (`scache socket`)
    ///
    /// After an answer other than [`Progress::Incomplete`] call [`Self::reset`], [`Self::follow_up`] or
    /// [`Self::carry_on`] first.
    pub fn resume(
        &mut self,
        wishes: &[Wanted<'_>],
        input: &[u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> Progress {
        let mut call = Call {
            wishes,
            input,
            end,
            name,
            diagnostics,
        };
        loop {
            let verdict = match self.step {
                Step::Begin => self.begin(&call),
                Step::Choose => self.choose(&call),
                Step::Name => self.read_name(&mut call),
                Step::Value => self.read_value(&mut call),
                Step::Skip => self.skip_value(&mut call),
            };
            if let Err(progress) = verdict {
                return progress;
            }
        }
    }

    fn begin(&mut self, call: &Call<'_>) -> Verdict {
        if self.position >= call.input.len() {
            return Err(match call.end {
                None => Progress::Incomplete,
                Some(end) if !self.outer.is_empty() => self.failed(Failure::Ended(end)),
                Some(_) => self.done(Stop::Nothing),
            });
        }
        self.step = Step::Choose;
        Ok(())
    }

    /// The wish at hand; none when the (nested) list is exhausted.
    fn wish<'w>(&self, wishes: &'w [Wanted<'w>]) -> Option<&'w Wanted<'w>> {
        let mut list = wishes;
        for &(index, _) in &self.outer {
            match list.get(index) {
                Some(Wanted::Nested(inner)) => list = inner,
                _ => return None,
            }
        }
        list.get(self.index)
    }

    fn choose(&mut self, call: &Call<'_>) -> Verdict {
        self.step = Step::Name;
        match self.wish(call.wishes) {
            Some(Wanted::Nested(_)) => {
                self.outer.push((self.index, self.recovered));
                self.index = 0;
                self.step = Step::Begin;
            }
            Some(Wanted::Multi) => {
                self.table = Table::Open;
                self.names.clear();
                let first = self.entries.len();
                self.slots.push(Slot::Multi(first..first));
            }
            Some(_) => {}
            None => {
                if let Some((index, recovered)) = self.outer.pop() {
                    self.index = index + 1;
                    self.recovered = recovered + 1;
                    self.step = Step::Choose;
                } else if self.flags.contains(ScanFlags::MORE) {
                    return Err(self.done(Stop::Wishes));
                }
            }
        }
        Ok(())
    }

    fn wanted<'w>(&self, wishes: &'w [Wanted<'w>]) -> &'w str {
        match (self.table, self.wish(wishes)) {
            (Table::Braced, _) => "(any attribute name or '}')",
            (_, Some(wish)) => wish.name(),
            (_, None) => "(list terminator)",
        }
    }

    fn read_name(&mut self, call: &mut Call<'_>) -> Verdict {
        let Some((range, separator)) = self.string(call, ATTRIBUTE_NAME)? else {
            return Err(self.failed(Failure::Malformed));
        };
        self.separator = separator;
        let alone = self.encoding == Encoding::Null || separator == b'\n';
        let length = match &range {
            Piece::Input(range) | Piece::Decoded(range) => range.len(),
        };
        self.name = range;
        let wish = self.wish(call.wishes);
        if alone && length == 0 {
            return Err(self.terminator(wish, call));
        }
        self.attributes += 1;
        if self.attributes > self.limits.attributes {
            let limit = self.limits.attributes;
            let name = call.name;
            call.warn(format_args!(
                "attribute count exceeds limit {limit} in input from {name}"
            ));
            return Err(self.failed(Failure::Limit));
        }
        let text = before_nul(self.bytes(&self.name, call.input));
        match self.table {
            Table::Open if alone && text == b"{" => {
                self.table = Table::Braced;
                return Ok(());
            }
            Table::Braced if alone && text == b"}" => {
                self.leave_table();
                return Ok(());
            }
            Table::Open | Table::Braced => {
                self.step = Step::Value;
                return Ok(());
            }
            Table::None => {}
        }
        let matches = match wish {
            None => false,
            Some(Wanted::IntNamed(names)) => names.iter().any(|name| name.as_bytes() == text),
            Some(wish) => wish.name().as_bytes() == text,
        };
        if matches {
            self.step = Step::Value;
        } else if self.flags.contains(ScanFlags::EXTRA) {
            let wanted = self.wanted(call.wishes);
            call.diagnostics.warning(format_args!(
                "unexpected attribute {} from {} (expecting: {wanted})",
                Shown::new(text),
                call.name,
            ));
            return Err(self.stopped());
        } else {
            self.step = Step::Skip;
        }
        Ok(())
    }

    /// The list has ended.
    fn terminator(&self, wish: Option<&Wanted<'_>>, call: &mut Call<'_>) -> Progress {
        let complete = wish.is_none() || self.table == Table::Open;
        if !complete && self.flags.contains(ScanFlags::MISSING) {
            let wanted = self.wanted(call.wishes);
            call.diagnostics.warning(format_args!(
                "missing attribute {wanted} in input from {}",
                call.name
            ));
        }
        if self.outer.is_empty() {
            self.done(Stop::Terminator)
        } else {
            self.failed(Failure::Nested)
        }
    }

    fn leave_table(&mut self) {
        self.table = Table::None;
        self.index += 1;
        self.step = Step::Choose;
    }

    fn skip_value(&mut self, call: &mut Call<'_>) -> Verdict {
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
            Token::Partial(length) => match call.end {
                None => {
                    self.step = Step::Skip;
                    Err(Progress::Incomplete)
                }
                // The next name then finds the end of the input once more.
                Some(end) => {
                    if self.encoding == Encoding::Null {
                        self.warn_end(end, length, ATTRIBUTE_VALUE, call);
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

    fn read_value(&mut self, call: &mut Call<'_>) -> Verdict {
        let wish = self.wish(call.wishes).copied();
        let kind = match wish {
            Some(Wanted::Int(_) | Wanted::IntNamed(_) | Wanted::Long(_)) => "number",
            Some(Wanted::Boolean(_)) if self.encoding == Encoding::Plain => "number",
            Some(Wanted::Boolean(_)) => "boolean",
            Some(Wanted::Data(_)) => "data",
            _ => "string",
        };
        if self.encoding != Encoding::Null && self.separator == b'\n' {
            let name = before_nul(self.bytes(&self.name, call.input));
            call.diagnostics.warning(format_args!(
                "missing value for {kind} attribute {} from {}",
                Shown::new(name),
                call.name,
            ));
            return Err(self.failed(Failure::Malformed));
        }
        let Some((piece, separator)) = self.string(call, ATTRIBUTE_VALUE)? else {
            return Err(self.failed(Failure::Malformed));
        };
        let converted = self.convert(wish, piece, call);
        // The reference converts numbers before it looks for a second value on the line.
        if converted.is_ok() && self.encoding == Encoding::Base64 && separator != b'\n' {
            let name = before_nul(self.bytes(&self.name, call.input));
            call.diagnostics.warning(format_args!(
                "multiple values for attribute {} from {}",
                Shown::new(name),
                call.name,
            ));
            return Err(self.failed(Failure::Malformed));
        }
        match converted {
            Err(()) => Err(self.failed(Failure::Malformed)),
            Ok(Converted::Slot(slot)) => {
                self.slots.push(slot);
                self.recovered += 1;
                self.index += 1;
                self.step = Step::Choose;
                Ok(())
            }
            Ok(Converted::Expected) => {
                self.index += 1;
                self.step = Step::Choose;
                Ok(())
            }
            Ok(Converted::Unequal(piece, expected)) => {
                call.diagnostics.warning(format_args!(
                    "unexpected {} {} from {} (expected: {expected})",
                    Shown::new(before_nul(self.bytes(&self.name, call.input))),
                    Shown::new(self.bytes(&piece, call.input)),
                    call.name,
                ));
                Err(self.failed(Failure::Malformed))
            }
            Ok(Converted::Entry(piece)) => self.enter(&piece, call),
        }
    }

    /// Turns a value into what the wish asks for; `Err` when it was malformed, which has been logged.
    fn convert<'w>(
        &mut self,
        wish: Option<Wanted<'w>>,
        piece: Piece,
        call: &mut Call<'_>,
    ) -> Result<Converted<'w>, ()> {
        if self.table != Table::None {
            return Ok(Converted::Entry(self.c_string(piece, call.input)));
        }
        Ok(match wish {
            Some(Wanted::Int(_) | Wanted::Long(_)) => {
                Converted::Slot(Slot::Number(self.parse_number(&piece, call)?))
            }
            Some(Wanted::IntNamed(names)) => {
                let name = before_nul(self.bytes(&self.name, call.input));
                let which = names.iter().position(|known| known.as_bytes() == name);
                Converted::Slot(Slot::Named(
                    which.unwrap_or(0),
                    self.parse_number(&piece, call)?,
                ))
            }
            Some(Wanted::Boolean(_)) => {
                Converted::Slot(Slot::Boolean(self.parse_boolean(&piece, call)?))
            }
            Some(Wanted::Data(_)) => Converted::Slot(Slot::Bytes(self.decode_data(piece, call)?)),
            Some(Wanted::Equal(_, expected)) => {
                let piece = self.c_string(piece, call.input);
                if self.bytes(&piece, call.input) == expected.as_bytes() {
                    Converted::Expected
                } else {
                    Converted::Unequal(piece, expected)
                }
            }
            Some(Wanted::Text(_) | Wanted::Multi | Wanted::Nested(_)) | None => {
                let piece = self.c_string(piece, call.input);
                Converted::Slot(Slot::Bytes(self.printable(piece, call.input)))
            }
        })
    }

    /// Cuts a text at its first NUL byte, which only the line encodings can carry.
    fn c_string(&self, piece: Piece, input: &[u8]) -> Piece {
        if self.encoding == Encoding::Null {
            return piece;
        }
        let length = before_nul(self.bytes(&piece, input)).len();
        match piece {
            Piece::Input(range) => Piece::Input(range.start..range.start + length),
            Piece::Decoded(range) => Piece::Decoded(range.start..range.start + length),
        }
    }

    fn printable(&mut self, piece: Piece, input: &[u8]) -> Piece {
        let text = self.bytes(&piece, input);
        if !self.flags.contains(ScanFlags::PRINTABLE) || text.iter().copied().all(is_printable) {
            return piece;
        }
        let mut shown = text.to_vec();
        make_printable(&mut shown);
        let start = self.decoded.len();
        self.decoded.append(&mut shown);
        Piece::Decoded(start..self.decoded.len())
    }

    fn parse_number(&self, piece: &Piece, call: &mut Call<'_>) -> Result<u64, ()> {
        let text = before_nul(self.bytes(piece, call.input));
        number::parse(text).ok_or_else(|| {
            call.diagnostics.warning(format_args!(
                "malformed numerical data from {} while reading {ATTRIBUTE_VALUE}: {}",
                call.name,
                Shown::cut(text, SHOWN_VALUE),
            ));
        })
    }

    fn parse_boolean(&self, piece: &Piece, call: &mut Call<'_>) -> Result<bool, ()> {
        let text = before_nul(self.bytes(piece, call.input));
        let value = if self.encoding == Encoding::Plain {
            match text {
                b"false" => Some(false),
                b"true" => Some(true),
                _ => None,
            }
        } else {
            match number::low_int(self.parse_number(piece, call)?) {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            }
        };
        value.ok_or_else(|| {
            call.diagnostics.warning(format_args!(
                "malformed boolean value from {} while reading {ATTRIBUTE_VALUE}: {}",
                call.name,
                Shown::cut(text, SHOWN_VALUE),
            ));
        })
    }

    fn decode_data(&mut self, piece: Piece, call: &mut Call<'_>) -> Result<Piece, ()> {
        if self.encoding == Encoding::Base64 {
            return Ok(piece);
        }
        let Piece::Input(range) = piece else {
            return Err(());
        };
        let text = call.input.get(range).unwrap_or_default();
        let start = self.decoded.len();
        if base64::decode(text, &mut self.decoded).is_err() {
            call.diagnostics.warning(format_args!(
                "malformed base64 data from {} while reading {ATTRIBUTE_VALUE}: {}",
                call.name,
                Shown::cut(before_nul(text), SHOWN_VALUE),
            ));
            return Err(());
        }
        Ok(Piece::Decoded(start..self.decoded.len()))
    }

    /// Stores an entry of a nested table.
    fn enter(&mut self, value: &Piece, call: &mut Call<'_>) -> Verdict {
        let mut name = before_nul(self.bytes(&self.name, call.input)).to_vec();
        let mut value = self.bytes(value, call.input).to_vec();
        if self.flags.contains(ScanFlags::PRINTABLE) {
            make_printable(&mut name);
            make_printable(&mut value);
        }
        if self.names.contains(&name) {
            if self.flags.contains(ScanFlags::EXTRA) {
                call.diagnostics.warning(format_args!(
                    "duplicate attribute {} in input from {}",
                    Shown::new(&name),
                    call.name
                ));
                return Err(self.stopped());
            }
        } else if self.names.len() >= HASH_LIMIT {
            let name = call.name;
            call.warn(format_args!(
                "attribute count exceeds limit {HASH_LIMIT} in input from {name}"
            ));
            return Err(self.stopped());
        } else {
            self.names.insert(name.clone());
            self.entries.push((name, value));
            if let Some(Slot::Multi(range)) = self.slots.last_mut() {
                range.end = self.entries.len();
            }
        }
        self.recovered += 1;
        self.step = Step::Name;
        Ok(())
    }

    /// Reads a string in the middle of the list; `None` when it is not base64, which has been logged.
    fn string(
        &mut self,
        call: &mut Call<'_>,
        context: &'static str,
    ) -> Result<Option<(Piece, u8)>, Progress> {
        match self.token(call.input, Until::Separator(context)) {
            Token::Excess => Err(self.excess(context, call)),
            Token::Partial(length) => match call.end {
                None => Err(Progress::Incomplete),
                Some(end) => {
                    self.warn_end(end, length, context, call);
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
            return Token::Partial(stop.saturating_sub(start));
        }
        self.position = stop + 1;
        self.looked = self.position;
        Token::Whole(start..stop, input[stop])
    }

    fn warn_end(&self, end: End, length: usize, context: &str, call: &mut Call<'_>) {
        let name = call.name;
        match end {
            _ if length > 0 && self.encoding == Encoding::Null => call.warn(format_args!(
                "unexpected end-of-input from {name} while reading {context}"
            )),
            End::Closed => call.warn(format_args!(
                "premature end-of-input on {name} while reading {context}"
            )),
            End::TimedOut => call.warn(format_args!("timeout on {name} while reading {context}")),
        }
    }

    fn excess(&self, context: &str, call: &mut Call<'_>) -> Progress {
        let (what, longest) = if context == ATTRIBUTE_NAME {
            ("name", self.limits.name)
        } else {
            ("value", self.limits.value)
        };
        // Whichever limit comes first in the stream, so that it does not matter how the input was cut.
        let (what, longest) = if self.position.saturating_add(longest) <= self.limits.list {
            (what, longest)
        } else {
            ("list", self.limits.list)
        };
        let name = call.name;
        call.warn(format_args!(
            "attribute {what} length exceeds limit {longest} in input from {name}"
        ));
        self.failed(Failure::Limit)
    }

    fn bytes<'a>(&'a self, piece: &Piece, input: &'a [u8]) -> &'a [u8] {
        match piece {
            Piece::Input(range) => input.get(range.clone()),
            Piece::Decoded(range) => self.decoded.get(range.clone()),
        }
        .unwrap_or_default()
    }

    fn done(&self, stop: Stop) -> Progress {
        Progress::Done {
            recovered: self.recovered,
            consumed: self.position,
            stop,
        }
    }

    /// The scan stops in the middle of the list.
    fn stopped(&self) -> Progress {
        if self.outer.is_empty() {
            self.done(Stop::Unexpected)
        } else {
            self.failed(Failure::Nested)
        }
    }

    fn failed(&self, failure: Failure) -> Progress {
        Progress::Failed {
            consumed: self.position,
            failure,
        }
    }
}

/// The arguments of one call.
struct Call<'c> {
    wishes: &'c [Wanted<'c>],
    input: &'c [u8],
    end: Option<End>,
    name: &'c str,
    diagnostics: &'c mut dyn Diagnostics,
}

impl Call<'_> {
    fn warn(&mut self, text: fmt::Arguments<'_>) {
        self.diagnostics.warning(text);
    }
}

/// Where a string ends.
#[derive(Clone, Copy)]
enum Until {
    /// At the separator that the encoding has for this kind of string.
    Separator(&'static str),
    LineEnd,
}

/// What came out of a value.
enum Converted<'w> {
    Slot(Slot),
    Expected,
    Unequal(Piece, &'w str),
    Entry(Piece),
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

fn make_printable(text: &mut [u8]) {
    for byte in text {
        if !is_printable(*byte) {
            *byte = b'?';
        }
    }
}

#[cfg(test)]
mod tests;
