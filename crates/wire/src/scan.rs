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

mod convert;
mod strings;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use crate::diagnostics::{Diagnostics, Shown, Size};
use crate::duplex::End;
use crate::encode::{Encoding, before_nul};

use strings::ATTRIBUTE_NAME;
pub use strings::{LookAhead, look_ahead};

/// A nested table holds at most this many entries (`ATTR_HASH_LIMIT`).
pub const HASH_LIMIT: usize = 1024;

/// Embedded values in warnings about malformed data are cut to this many bytes.
const SHOWN_VALUE: usize = 100;

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
    /// A 32-bit number; see [`crate::number::low_int`].
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
    pub fn restart(&mut self, flags: ScanFlags) {
        self.position = 0;
        self.looked = 0;
        self.attributes = 0;
        self.name = Piece::Input(0..0);
        self.follow_up(flags);
    }

    /// The same as [`Self::restart`] with the flags of the last scan.
    pub fn reset(&mut self) {
        self.restart(self.flags);
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

    /// The name that was read last, in the null encoding.
    pub(crate) fn last_name<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        match &self.name {
            Piece::Input(range) => input.get(range.clone()).unwrap_or_default(),
            Piece::Decoded(_) => &[],
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
            call.diagnostics.exceeded(
                Size::Attributes,
                format_args!("attribute count exceeds limit {limit} in input from {name}"),
            );
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

#[cfg(test)]
mod tests;
