//! The layout of cdb files, read without trusting a single number in them.
//!
//! 256 pairs (position, slots) of little-endian `u32`; from byte 2048 on the records (key length, value length, key,
//! value); then 256 hash tables of (hash, position) pairs, with linear probing and twice as many slots as entries
//! (<https://cr.yp.to/cdb/cdb.txt>).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use postkeep_sys::error_text;
use postkeep_sys::guarded::{GuardedMap, Landmark, Source as _};

use crate::indexed::text;

/// Length of the table of hash tables, the smallest file.
pub(super) const HEADER: u32 = 2048;

/// Both lengths of a record.
const LENGTHS: u32 = 8;

/// How much of a file that is not in memory is read at once to compare or to look for a slot (bytes).
const PIECE: u32 = 256;

/// How far from the end of a file the last byte may be that is not zero, for the file to be mapped.
const FARTHEST: u64 = 1 << 16;

/// The hash of a key, in pieces.
pub(super) fn hash(start: u32, piece: &[u8]) -> u32 {
    piece
        .iter()
        .fold(start, |hash, &byte| hash.wrapping_mul(33) ^ u32::from(byte))
}

/// The hash of no bytes.
pub(super) const HASH_START: u32 = 5381;

/// Why a file cannot be understood, or not be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// A position or a length points outside the file.
    Structure,
    /// The system's.
    Io(io::Error),
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // It was longer a moment ago.
            io::ErrorKind::UnexpectedEof => Self::Structure,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structure => f.write_str("Protocol error"),
            Self::Io(error) => f.write_str(&error_text(error)),
        }
    }
}

impl std::error::Error for Damage {}

/// One entry; it lies inside the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    at: u32,
    key: u32,
    value: u32,
}

impl Record {
    /// Where the next entry would be.
    pub fn next(self) -> u32 {
        // The end of a record is inside the file, whose length is limited.
        self.at + LENGTHS + self.key + self.value
    }

    fn key_at(self) -> u32 {
        self.at + LENGTHS
    }
}

/// Where the search for a hash begins.
#[derive(Clone, Copy, Default)]
struct Probe {
    hash: u32,
    /// The hash table and the number of its slots.
    position: u32,
    slots: u32,
    /// The slot that is looked at first, and what is in it unless the file is read piece by piece.
    first: u32,
    slot: (u32, u32),
}

enum Data {
    Memory(Vec<u8>),
    /// With a byte that is there as long as the file was not cut.
    Map(GuardedMap, Landmark),
    File(File),
}

/// An open cdb file.
pub struct Reader {
    data: Data,
    /// Bytes that can be addressed.
    length: u32,
    /// Position and number of slots of each hash table; all inside the file.
    tables: Box<[(u32, u32)]>,
    /// Where the records end.
    end: u32,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("length", &self.length)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// A file in memory.
    ///
    /// # Errors
    /// [`Damage::Structure`] when the file is too short for what its beginning says, as after any truncation, or
    /// when the beginning is all zeros, as a file system may leave it after a crash.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Damage> {
        let length = bytes.len() as u64;
        Self::new(Data::Memory(bytes), length)
    }

    /// A file that is mapped, or read piece by piece where that cannot be done.
    ///
    /// # Errors
    /// As [`Reader::from_bytes`], and when it cannot be read.
    pub fn from_file(file: File, length: u64) -> Result<Self, Damage> {
        if let Ok(map) = GuardedMap::new(&file)
            && let Some(landmark) = map.landmark(length, FARTHEST)
        {
            return Self::new(Data::Map(map, landmark), length);
        }
        Self::by_pieces(file, length)
    }

    /// A file that is read piece by piece when it is asked.
    pub(super) fn by_pieces(file: File, length: u64) -> Result<Self, Damage> {
        Self::new(Data::File(file), length)
    }

    fn new(data: Data, length: u64) -> Result<Self, Damage> {
        let mut this = Self {
            data,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            tables: Box::default(),
            end: u32::MAX,
        };
        let mut buffer = [0; HEADER as usize];
        let header = this.piece(0, HEADER, &mut buffer)?;
        if header.iter().all(|&byte| byte == 0) {
            return Err(Damage::Structure);
        }
        let tables: Box<[_]> = header.chunks_exact(8).map(pair).collect();
        let mut end = this.length;
        for &(position, slots) in &tables {
            if slots == 0 {
                continue;
            }
            let behind = u64::from(position) + 8 * u64::from(slots);
            if position < HEADER || behind > u64::from(this.length) {
                return Err(Damage::Structure);
            }
            end = end.min(position);
        }
        if tables.iter().all(|&(_, slots)| slots == 0) {
            end = this.first();
        }
        this.tables = tables;
        this.end = end;
        this.sure(())?;
        Ok(this)
    }

    /// Where the first entry would be.
    pub fn first(&self) -> u32 {
        HEADER
    }

    /// Looks for the entry whose stored key is `key` with `tail` behind it; of several the first.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn find(&self, key: &[u8], tail: &[u8]) -> Result<Option<Record>, Damage> {
        self.find_any(key, [tail])
    }

    /// As [`Reader::find`], with several tails in the order in which they are preferred.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn find_any<const N: usize>(
        &self,
        key: &[u8],
        tails: [&[u8]; N],
    ) -> Result<Option<Record>, Damage> {
        let start = hash(HASH_START, key);
        // The places where the searches begin are far from each other and seldom in a cache. Read one after the other
        // without looking at them in between, they come from memory at the same time.
        let mut probes = [Probe::default(); N];
        for (probe, tail) in probes.iter_mut().zip(tails) {
            *probe = self.probe(hash(start, tail))?;
        }
        for (probe, tail) in probes.iter().zip(tails) {
            let found = match self.data {
                Data::Memory(_) | Data::Map(..) => self.search(probe, key, tail)?,
                Data::File(_) => self.search_file(probe, key, tail)?,
            };
            if found.is_some() {
                return self.sure(found);
            }
        }
        self.sure(None)
    }

    /// A result that was read before, if all that was read was in the file.
    fn sure<R>(&self, result: R) -> Result<R, Damage> {
        match &self.data {
            Data::Map(map, landmark) if !map.holds(*landmark) => Err(Damage::Structure),
            _ => Ok(result),
        }
    }

    fn probe(&self, hash: u32) -> Result<Probe, Damage> {
        let (position, slots) = self.tables[(hash & 255) as usize];
        let mut probe = Probe {
            hash,
            position,
            slots,
            ..Probe::default()
        };
        if slots != 0 {
            probe.first = (hash >> 8) % slots;
            if !matches!(self.data, Data::File(_)) {
                probe.slot = self.slot(position + probe.first * 8)?;
            }
        }
        Ok(probe)
    }

    /// The hash and the position in a slot.
    fn slot(&self, at: u32) -> Result<(u32, u32), Damage> {
        let mut buffer = [0; 8];
        Ok(pair(self.piece(at, 8, &mut buffer)?))
    }

    fn search(&self, probe: &Probe, key: &[u8], tail: &[u8]) -> Result<Option<Record>, Damage> {
        let (mut number, mut slot) = (probe.first, probe.slot);
        for _ in 0..probe.slots {
            let (hash, at) = slot;
            if at == 0 {
                break;
            }
            if hash == probe.hash
                && let Some(record) = self.compare(at, key, tail)?
            {
                return Ok(Some(record));
            }
            number = if number + 1 < probe.slots {
                number + 1
            } else {
                0
            };
            slot = self.slot(probe.position + number * 8)?;
        }
        Ok(None)
    }

    /// As [`Reader::search`], with many slots in each call to the system.
    fn search_file(
        &self,
        probe: &Probe,
        key: &[u8],
        tail: &[u8],
    ) -> Result<Option<Record>, Damage> {
        // The slots up to the end of the table, then those from its beginning.
        for (from, to) in [(probe.first, probe.slots), (0, probe.first)] {
            let mut slot = from;
            while slot < to {
                let count = (to - slot).min(PIECE / 8);
                let mut buffer = [0; PIECE as usize];
                let piece = self.piece(probe.position + slot * 8, count * 8, &mut buffer)?;
                for (hash, at) in piece.chunks_exact(8).map(pair) {
                    if at == 0 {
                        return Ok(None);
                    }
                    if hash == probe.hash
                        && let Some(record) = self.compare(at, key, tail)?
                    {
                        return Ok(Some(record));
                    }
                }
                slot += count;
            }
        }
        Ok(None)
    }

    /// The entry at a place in the order of entries; `None` behind the last.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn record(&self, at: u32) -> Result<Option<Record>, Damage> {
        if at >= self.end {
            return Ok(None);
        }
        let record = self.record_at(at)?;
        if record.next() > self.end {
            return Err(Damage::Structure);
        }
        self.sure(Some(record))
    }

    /// The entry at a place, if there is one there with this stored key.
    ///
    /// # Errors
    /// [`Damage`] of the system only: that something else is there is an answer.
    pub fn record_of(&self, at: u32, stored: &[u8]) -> Result<Option<Record>, Damage> {
        if !(self.first()..self.end).contains(&at) {
            return Ok(None);
        }
        match self.compare(at, stored, b"") {
            Err(Damage::Structure) => self.sure(None),
            result => self.sure(result?),
        }
    }

    /// Appends the value of an entry up to the first NUL.
    ///
    /// # Errors
    /// [`Damage`], in which case `out` is as it was.
    pub fn append_value(&self, record: Record, out: &mut Vec<u8>) -> Result<(), Damage> {
        let start = out.len();
        self.append(record.key_at() + record.key, record.value, out)?;
        let length = text(&out[start..]).len();
        out.truncate(start + length);
        Ok(())
    }

    /// Appends the value of an entry as it is stored.
    ///
    /// # Errors
    /// As [`Reader::append_value`].
    pub fn append_stored_value(&self, record: Record, out: &mut Vec<u8>) -> Result<(), Damage> {
        self.append(record.key_at() + record.key, record.value, out)
    }

    /// Appends the key of an entry as it is stored.
    ///
    /// # Errors
    /// As [`Reader::append_value`].
    pub fn append_stored_key(&self, record: Record, out: &mut Vec<u8>) -> Result<(), Damage> {
        self.append(record.key_at(), record.key, out)
    }

    /// The record at `at`, all of which is inside the file.
    fn record_at(&self, at: u32) -> Result<Record, Damage> {
        let mut buffer = [0; LENGTHS as usize];
        let (key, value) = pair(self.piece(at, LENGTHS, &mut buffer)?);
        let end = u64::from(at) + u64::from(LENGTHS) + u64::from(key) + u64::from(value);
        if end > u64::from(self.length) {
            return Err(Damage::Structure);
        }
        Ok(Record { at, key, value })
    }

    /// The record at `at` if its key is `key` and `tail`.
    fn compare(&self, at: u32, key: &[u8], tail: &[u8]) -> Result<Option<Record>, Damage> {
        let record = self.record_at(at)?;
        if record.key as usize != key.len() + tail.len() {
            return Ok(None);
        }
        let mut at = record.key_at();
        if let Data::Map(map, _) = &self.data {
            let behind = u64::from(at) + key.len() as u64;
            let equal = map.equals(u64::from(at), key).zip(map.equals(behind, tail));
            let (key, tail) = equal.ok_or(Damage::Structure)?;
            return Ok((key && tail).then_some(record));
        }
        for part in [key, tail]
            .iter()
            .flat_map(|part| part.chunks(PIECE as usize))
        {
            let mut buffer = [0; PIECE as usize];
            let length = u32::try_from(part.len()).map_err(|_| Damage::Structure)?;
            if self.piece(at, length, &mut buffer)? != part {
                return Ok(None);
            }
            at += length;
        }
        Ok(Some(record))
    }

    /// A piece of the file: where it lies in memory, or read into `buffer`.
    fn piece<'b>(&'b self, at: u32, length: u32, buffer: &'b mut [u8]) -> Result<&'b [u8], Damage> {
        let (start, length) = (at as usize, length as usize);
        match &self.data {
            Data::Memory(bytes) => {
                let end = start.checked_add(length).ok_or(Damage::Structure)?;
                bytes.get(start..end).ok_or(Damage::Structure)
            }
            Data::Map(map, _) => {
                let piece = buffer.get_mut(..length).ok_or(Damage::Structure)?;
                map.read(u64::from(at), piece).ok_or(Damage::Structure)?;
                Ok(piece)
            }
            Data::File(file) => {
                let piece = buffer.get_mut(..length).ok_or(Damage::Structure)?;
                file.read_exact_at(piece, u64::from(at))?;
                Ok(piece)
            }
        }
    }

    fn append(&self, at: u32, length: u32, out: &mut Vec<u8>) -> Result<(), Damage> {
        match &self.data {
            Data::Memory(_) => out.extend_from_slice(self.piece(at, length, &mut [])?),
            Data::Map(map, _) => {
                let (start, length) = (out.len(), length as usize);
                out.try_reserve(length)
                    .map_err(|_| Damage::Io(nix::errno::Errno::ENOMEM.into()))?;
                map.append_to(u64::from(at), length, out)
                    .ok_or(Damage::Structure)?;
                self.sure(()).inspect_err(|_| out.truncate(start))?;
            }
            Data::File(file) => {
                let (start, length) = (out.len(), length as usize);
                out.try_reserve(length)
                    .map_err(|_| Damage::Io(nix::errno::Errno::ENOMEM.into()))?;
                out.resize(start + length, 0);
                if let Err(error) = file.read_exact_at(&mut out[start..], u64::from(at)) {
                    out.truncate(start);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

/// Two little-endian numbers.
fn pair(bytes: &[u8]) -> (u32, u32) {
    let number = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(four)
    };
    (number(0), number(4))
}
