//! Turning values into what a wish asks for.

use crate::base64;
use crate::diagnostics::Shown;
use crate::encode::{Encoding, before_nul};
use crate::number;

use super::strings::ATTRIBUTE_VALUE;
use super::{
    Call, Failure, HASH_LIMIT, Piece, SHOWN_VALUE, ScanFlags, Scanner, Slot, Step, Table, Verdict,
    Wanted,
};

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

impl Scanner {
    pub(super) fn read_value(&mut self, call: &mut Call<'_>) -> Verdict {
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
}
