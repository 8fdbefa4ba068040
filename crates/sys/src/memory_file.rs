//! Files that are in memory only, for what is to be handed to another process and not changed any more.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// Whoever has a file with these reads what was in it when it was made.
fn seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// Makes a file that nobody can change.
///
/// - `name`: shows up in `/proc`, and nowhere else
///
/// # Errors
/// No memory or descriptors are left.
///
/// # References
/// `memfd_create(2)`, `F_ADD_SEALS` in `fcntl_locking(2)`.
pub fn sealed(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    file.write_all(contents)?;
    fcntl_add_seals(&file, seals())?;
    Ok(file.into())
}

/// Reads such a file from its beginning.
///
/// # Errors
/// `InvalidData` when it is none, so that somebody may change it, or longer than `most` bytes.
pub fn contents(file: impl AsFd, most: usize) -> io::Result<Vec<u8>> {
    let is_sealed = fcntl_get_seals(&file).is_ok_and(|found| found.contains(seals()));
    let mut file = File::from(file.as_fd().try_clone_to_owned()?);
    let length = file.metadata()?.len();
    if !is_sealed || length > u64::try_from(most).unwrap_or(u64::MAX) {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    file.rewind()?;
    let mut contents = Vec::new();
    file.read_to_end(&mut contents)?;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_cannot_be_changed() {
        let file = sealed("test", b"contents").unwrap();
        assert_eq!(contents(&file, 8).unwrap(), b"contents");
        assert_eq!(contents(&file, 8).unwrap(), b"contents");
        assert!(contents(&file, 7).is_err());
        let mut file = File::from(file);
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }

    #[test]
    fn a_file_that_others_can_change_is_not_read() {
        let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"x").unwrap();
        assert!(contents(&file, 8).is_err());
        assert!(contents(rustix::pipe::pipe().unwrap().0, 8).is_err());
    }
}
