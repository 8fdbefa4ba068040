//! What the library writes, kept in memory in place of the file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::slice;

/// What is to be written to a file: first it is cut, then pieces are put into it.
#[derive(Debug, Default)]
pub struct Changes {
    /// The length to which the file is to be cut (bytes).
    pub cut: Option<u64>,
    /// Pieces by their place in the file (bytes). They do not overlap, and may lie behind its end.
    pub pieces: BTreeMap<u64, Box<[u8]>>,
    /// Something was written in a way that is not known.
    broken: bool,
}

thread_local! {
    /// Where the library's writes in this thread go, in place of the file.
    static HELD: RefCell<Option<Changes>> = const { RefCell::new(None) };
}

/// Keeps what the library writes during `call` with what it has written before.
pub(super) fn with<R>(changes: Changes, call: impl FnOnce() -> R) -> (Changes, R) {
    HELD.set(Some(changes));
    let result = call();
    (HELD.take().unwrap_or_default(), result)
}

pub(super) fn is_on() -> bool {
    HELD.with_borrow(Option::is_some)
}

impl Changes {
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Lays what was written over what was read from the file: so many bytes, at this place. Gives the length then.
    fn lay_over(&self, buffer: &mut [u8], at: u64, read: usize) -> usize {
        let mut length = read;
        if let Some(cut) = self.cut {
            // Zeros and not the end: where it met that, the library would look at the file in another way.
            let left = usize::try_from(cut.saturating_sub(at)).unwrap_or(usize::MAX);
            buffer[left.min(read)..read].fill(0);
        }
        let end = at.saturating_add(buffer.len() as u64);
        for (&place, piece) in self.pieces.range(..end) {
            let behind = place + piece.len() as u64;
            if behind <= at {
                continue;
            }
            let (from, to) = (place.max(at), behind.min(end));
            let inside = |place: u64| usize::try_from(place - at).unwrap_or(buffer.len());
            let (start, stop) = (inside(from), inside(to));
            if start > length {
                buffer[length..start].fill(0);
            }
            let skipped = usize::try_from(from - place).unwrap_or(piece.len());
            buffer[start..stop].copy_from_slice(&piece[skipped..skipped + (stop - start)]);
            length = length.max(stop);
        }
        length
    }

    /// Keeps what is written. That is always one of the same pages; anything else is not known.
    fn keep(&mut self, at: u64, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len() as u64);
        let clash = self
            .pieces
            .range(..end)
            .next_back()
            .is_some_and(|(&place, piece)| {
                place + piece.len() as u64 > at && (place, piece.len()) != (at, bytes.len())
            });
        if clash {
            self.broken = true;
        } else {
            self.pieces.insert(at, bytes.into());
        }
    }

    fn shorten(&mut self, length: u64) {
        self.cut = Some(self.cut.map_or(length, |cut| cut.min(length)));
        self.pieces.split_off(&length);
    }
}

/// What the library calls for pread(2).
pub(super) unsafe extern "C" fn pread(
    descriptor: c_int,
    buffer: *mut c_void,
    length: usize,
    at: i64,
) -> isize {
    // SAFETY: the library passes on what it would give to pread.
    let read = unsafe { libc::pread(descriptor, buffer, length, at) };
    HELD.with_borrow(|held| {
        let (Some(changes), Ok(read), Ok(at)) = (held, usize::try_from(read), u64::try_from(at))
        else {
            return read;
        };
        // SAFETY: the library's buffer has this length. What is there may not have been written before, so it is.
        let buffer = unsafe {
            std::ptr::write_bytes(buffer.cast::<u8>().add(read), 0, length - read);
            slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
        };
        isize::try_from(changes.lay_over(buffer, at, read)).unwrap_or(-1)
    })
}

/// What the library calls for pwrite(2).
pub(super) unsafe extern "C" fn pwrite(
    descriptor: c_int,
    bytes: *const c_void,
    length: usize,
    at: i64,
) -> isize {
    HELD.with_borrow_mut(|held| match (held, u64::try_from(at)) {
        (Some(changes), Ok(at)) => {
            // SAFETY: the library gives so many bytes to be written.
            let bytes = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length) };
            // It would try write(2) if this failed, to which nobody listens: a library for which that was replaced
            // does not call pwrite(2) at all. The failure is told in the end.
            changes.keep(at, bytes);
            length.cast_signed()
        }
        // SAFETY: the library passes on what it would give to pwrite.
        _ => unsafe { libc::pwrite(descriptor, bytes, length, at) },
    })
}

/// What the library calls for ftruncate(2).
pub(super) unsafe extern "C" fn ftruncate(descriptor: c_int, length: i64) -> c_int {
    HELD.with_borrow_mut(|held| match (held, u64::try_from(length)) {
        (Some(changes), Ok(length)) => {
            changes.shorten(length);
            0
        }
        // SAFETY: any numbers may be given to ftruncate.
        _ => unsafe { libc::ftruncate(descriptor, length) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_lost() {
        let mut changes = Changes::default();
        changes.keep(8, b"12345678");
        changes.keep(32, b"abcdefgh");
        changes.keep(8, b"87654321");
        let read = |changes: &Changes, at: u64, file: &[u8]| {
            let mut buffer = [0; 16];
            buffer[..file.len()].copy_from_slice(file);
            let length = changes.lay_over(&mut buffer, at, file.len());
            buffer[..length].to_vec()
        };
        assert_eq!(read(&changes, 0, b"0123456789"), b"0123456787654321");
        assert_eq!(read(&changes, 16, b"rest"), b"rest");
        assert_eq!(read(&changes, 20, b""), b"\0\0\0\0\0\0\0\0\0\0\0\0abcd");
        assert_eq!(read(&changes, 40, b""), b"");
        changes.shorten(32);
        assert_eq!(read(&changes, 30, b"01stale"), b"01\0\0\0\0\0");
        assert_eq!(changes.cut, Some(32));
        changes.keep(4, b"12345678");
        assert!(changes.is_broken());
    }
}
