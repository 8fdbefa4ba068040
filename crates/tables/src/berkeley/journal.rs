//! How a change gets into a file that a killed process or a power failure must not leave half changed.
//!
//! The pages of a change are first written to a *journal*, a file beside the table, with what was there before. When that is on
//! the disk they are put into the table, and when they are on the disk there the journal is declared void. A journal that is not
//! void belongs to a change that was cut off: it is completed from the journal by whoever wants to change the table
//! next. All this is done with the table locked exclusively.
//!
//! Programs that do not know of the journal may change the table in between. So a journal counts only where each
//! sector of the table that it is about is as it was before or as it is to be.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};

use log::{info, warn};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use postkeep_sys::berkeley::Changes;
use postkeep_sys::error_text;

use super::shown;
use crate::indexed::{sync_directory, with_suffix};

/// How a journal begins that is not void.
const MAGIC: [u8; 8] = *b"pkjrnl1\n";

/// Magic, length, checksum, length of the table before, cut, number of pieces: 8 bytes each.
const HEADER: usize = 48;

/// A change as it is read from a journal may have so many bytes: all else is no journal.
const LONGEST: u64 = 1 << 30;

/// A disk writes so many bytes whole or not at all.
const SECTOR: usize = 512;

/// A journal above this size (bytes) gives its space back.
const KEPT: usize = 1 << 20;

/// The journal of one table, open or not.
pub(super) struct Journal {
    table: PathBuf,
    path: PathBuf,
    file: Option<File>,
    /// A change could not be completed and has to be before the next one.
    pending: Option<Record>,
    /// It was said that there can be no journal.
    warned: bool,
}

/// A piece of the table.
struct Piece {
    at: u64,
    /// What was there, as far as the table went.
    before: Vec<u8>,
    after: Vec<u8>,
}

/// One change.
struct Record {
    /// The length of the table before (bytes).
    length: u64,
    cut: Option<u64>,
    pieces: Vec<Piece>,
}

/// How a table looks to a journal.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// As before the change.
    Before,
    /// Somewhere between before and after.
    Between,
    /// As neither.
    Other,
}

impl Journal {
    /// The journal of the table in this file.
    pub fn of(table: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;

        Self {
            table: table.to_owned(),
            path: with_suffix(table.as_os_str().as_bytes(), ".journal"),
            file: None,
            pending: None,
            warned: false,
        }
    }

    /// Completes a change that was cut off, if there is one. The table is locked exclusively.
    ///
    /// # Errors
    /// It cannot be completed now; the table must not be changed then.
    pub fn recover(&mut self, table: &File) -> io::Result<()> {
        if let Some(record) = self.pending.take() {
            return self.complete(table, record, true);
        }
        let Some(record) = self.read()? else {
            return Ok(());
        };
        match record.state(table)? {
            // The length may have been made ready for more.
            State::Before => table.set_len(record.length)?,
            State::Between => {
                info!(
                    "{}: completing an update that was cut off",
                    shown(&self.table)
                );
                return self.complete(table, record, true);
            }
            State::Other => {}
        }
        self.void();
        Ok(())
    }

    /// Makes a change. The table is locked exclusively, and there is no change that was cut off.
    ///
    /// - `durable`: the change is on the disk when this returns
    ///
    /// # Errors
    /// The change was not made; or it is not certain that it is on the disk, and it will be completed later.
    pub fn commit(&mut self, table: &File, changes: Changes, durable: bool) -> io::Result<()> {
        if changes.cut.is_none() && changes.pieces.is_empty() {
            return Ok(());
        }
        let record = Record::new(table, changes)?;
        if !self.open(table)? {
            record.make(table)?;
            return if durable { table.sync_data() } else { Ok(()) };
        }
        if let Err(error) = self.write(&record, durable) {
            self.void();
            return Err(error);
        }
        if let Err(error) = record.make_room(table) {
            table.set_len(record.length)?;
            self.void();
            return Err(error);
        }
        self.complete(table, record, durable)
    }

    /// Puts the pieces into the table. The journal is on the disk.
    fn complete(&mut self, table: &File, record: Record, durable: bool) -> io::Result<()> {
        let result = record
            .make(table)
            .and_then(|()| if durable { table.sync_data() } else { Ok(()) });
        match result {
            Ok(()) => self.void(),
            Err(_) => self.pending = Some(record),
        }
        result
    }

    /// Opens the journal, makes it where it is not there; false where that is not allowed, as the directory is not
    /// ours.
    fn open(&mut self, table: &File) -> io::Result<bool> {
        if self.is_open()? {
            return Ok(true);
        }
        let create = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&self.path)
        };
        let file = match create() {
            Ok(file) => file,
            Err(error) if is_forbidden(&error) => {
                if !self.warned {
                    self.warned = true;
                    warn!(
                        "cannot make {}: {}; an update that is cut off may damage {}",
                        shown(&self.path),
                        error_text(&error),
                        shown(&self.table)
                    );
                }
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        // Others who change the table have to be able to use it.
        let metadata = table.metadata()?;
        let _ = fchown(&file, Some(metadata.uid()), Some(metadata.gid()));
        file.set_permissions(Permissions::from_mode(metadata.mode() & 0o666))?;
        sync_directory(&self.path);
        self.file = Some(file);
        Ok(true)
    }

    /// Opens the journal where it is there.
    fn is_open(&mut self) -> io::Result<bool> {
        if let Some(file) = &self.file
            && file.metadata()?.nlink() > 0
        {
            return Ok(true);
        }
        self.file = None;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&self.path);
        match file {
            Ok(file) if file.metadata()?.is_file() => self.file = Some(file),
            Ok(_) => return Err(Errno::EINVAL.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // One that cannot be used is replaced where that is allowed, and cannot be completed in any case.
            Err(error) if is_forbidden(&error) => {
                let _ = fs::remove_file(&self.path);
            }
            Err(error) => return Err(error),
        }
        Ok(self.file.is_some())
    }

    fn write(&mut self, record: &Record, durable: bool) -> io::Result<()> {
        let bytes = record.encode();
        let Some(file) = &self.file else {
            return Err(Errno::EBADF.into());
        };
        file.write_all_at(&bytes, 0)?;
        if durable {
            file.sync_data()?;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        if !self.is_open()? {
            return Ok(None);
        }
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let length = file.metadata()?.len();
        let mut header = [0; HEADER];
        if length < HEADER as u64 || length > LONGEST {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        if !header.starts_with(&MAGIC) {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Record::decode(&bytes))
    }

    /// Declares the journal void. Where that is lost in a power failure, the journal says what is there already.
    fn void(&self) {
        if let Some(file) = &self.file {
            let large = file
                .metadata()
                .is_ok_and(|metadata| metadata.len() > KEPT as u64);
            if file.write_all_at(&[0; MAGIC.len()], 0).is_err() || large {
                let _ = file.set_len(0);
            }
        }
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ELOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Tells whether a journal was written as a whole (FNV-1a).
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Reads as much of a piece as the file has.
fn read_piece(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0;
    while read < length {
        match file.read_at(&mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// One sector of a piece; zeros where the piece ends before.
fn sector(bytes: &[u8], number: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let there = bytes.get(number * SECTOR..).unwrap_or(&[]);
    let length = there.len().min(SECTOR);
    sector[..length].copy_from_slice(&there[..length]);
    sector
}

impl Record {
    fn new(table: &File, changes: Changes) -> io::Result<Self> {
        let pieces = changes
            .pieces
            .into_iter()
            .map(|(at, after)| {
                Ok(Piece {
                    at,
                    before: read_piece(table, at, after.len())?,
                    after: after.into(),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            length: table.metadata()?.len(),
            cut: changes.cut,
            pieces,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        for piece in &self.pieces {
            for number in [
                piece.at,
                piece.before.len() as u64,
                piece.after.len() as u64,
            ] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&piece.before);
            bytes.extend_from_slice(&piece.after);
        }
        let numbers = [
            bytes.len() as u64,
            0,
            self.length,
            self.cut.unwrap_or(u64::MAX),
            self.pieces.len() as u64,
        ];
        for (place, number) in bytes[8..HEADER].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&bytes).to_le_bytes();
        bytes[16..24].copy_from_slice(&sum);
        bytes[..8].copy_from_slice(&MAGIC);
        bytes
    }

    /// `None` for what was not written as a whole.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut whole = bytes.get(..usize::try_from(number(8)?).ok()?)?.to_vec();
        whole.get_mut(..8)?.fill(0);
        whole.get_mut(16..24)?.fill(0);
        if checksum(&whole) != number(16)? {
            return None;
        }
        let mut pieces = Vec::new();
        let mut at = HEADER;
        for _ in 0..number(40)? {
            let (before, after) = (number(at + 8)?, number(at + 16)?);
            let start = at + 24;
            let middle = start.checked_add(usize::try_from(before).ok()?)?;
            let end = middle.checked_add(usize::try_from(after).ok()?)?;
            pieces.push(Piece {
                at: number(at)?,
                before: whole.get(start..middle)?.to_vec(),
                after: whole.get(middle..end)?.to_vec(),
            });
            at = end;
        }
        Some(Self {
            length: number(24)?,
            cut: Some(number(32)?).filter(|&cut| cut != u64::MAX),
            pieces,
        })
    }

    /// How long the table is to be (bytes).
    fn length_after(&self) -> u64 {
        let end = self
            .pieces
            .last()
            .map_or(0, |piece| piece.at + piece.after.len() as u64);
        self.cut.unwrap_or(self.length).max(end)
    }

    fn state(&self, table: &File) -> io::Result<State> {
        let length = table.metadata()?.len();
        if length > self.length.max(self.length_after()) {
            return Ok(State::Other);
        }
        let mut is_before = self.cut.is_none() || length == self.length;
        for piece in &self.pieces {
            let there = read_piece(table, piece.at, piece.after.len())?;
            for number in 0..piece.after.len().div_ceil(SECTOR) {
                let found = sector(&there, number);
                if found == sector(&piece.before, number) {
                    continue;
                }
                let is_cut = self
                    .cut
                    .is_some_and(|cut| piece.at + (number * SECTOR) as u64 >= cut);
                if found != sector(&piece.after, number) && !(is_cut && found == [0; SECTOR]) {
                    return Ok(State::Other);
                }
                is_before = false;
            }
        }
        Ok(if is_before {
            State::Before
        } else {
            State::Between
        })
    }

    /// Takes all the space that is needed, so that a full disk is met before anything is changed.
    fn make_room(&self, table: &File) -> io::Result<()> {
        for piece in &self.pieces {
            let (Ok(at), Ok(length)) = (i64::try_from(piece.at), i64::try_from(piece.after.len()))
            else {
                return Err(Errno::EFBIG.into());
            };
            match fallocate(table, FallocateFlags::empty(), at, length) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn make(&self, table: &File) -> io::Result<()> {
        if let Some(cut) = self.cut
            && table.metadata()?.len() > cut
        {
            table.set_len(cut)?;
        }
        for piece in &self.pieces {
            table.write_all_at(&piece.after, piece.at)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
