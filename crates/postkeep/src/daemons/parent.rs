//! Which Postfix has started this process.
//!
//! Each Postfix program holds the text `mail_version=VERSION`, for whoever finds a core file. The one in
//! master(8) tells what kind of clients this process will have.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};

/// What precedes the version (`mail_version.h`, `MAIL_VERSION_STAMP_DECLARE`).
const STAMP: &[u8] = b"mail_version=";

/// Longest version that is looked for, in bytes.
const LONGEST: usize = 64;

/// Largest program that is searched, in bytes.
const LARGEST: u64 = 64 << 20;

/// The version of the Postfix program that is the parent of this process; `None` when it is something else, or
/// cannot be read.
pub(crate) fn postfix_version() -> Option<String> {
    let executable = PathBuf::from(format!("/proc/{}/exe", parent_id()));
    if !is_master(&std::fs::read_link(&executable).ok()?) {
        return None;
    }
    let file = File::open(executable).ok()?;
    find(file.take(LARGEST)).ok().flatten()
}

/// Other programs may hold the text by accident. A program that was replaced while it runs has a remark behind
/// its name.
fn is_master(executable: &Path) -> bool {
    let name = executable
        .file_name()
        .map(OsStr::as_bytes)
        .unwrap_or_default();
    name.strip_suffix(b" (deleted)").unwrap_or(name) == b"master"
}

/// Looks for the stamp with a version behind it.
fn find(mut program: impl Read) -> io::Result<Option<String>> {
    const PIECE: usize = 64 << 10;
    let mut window = Vec::with_capacity(2 * PIECE);
    loop {
        let count = program
            .by_ref()
            .take(PIECE as u64)
            .read_to_end(&mut window)?;
        let end = count < PIECE;
        let mut from = 0;
        while let Some(at) = memchr::memmem::find(&window[from..], STAMP) {
            let version = &window[from + at + STAMP.len()..];
            if version.len() <= LONGEST && !end {
                break;
            }
            if let Some(version) = whole_version(version) {
                return Ok(Some(version));
            }
            from += at + STAMP.len();
        }
        if end {
            return Ok(None);
        }
        // A stamp may have begun at the end.
        let keep = window.len().min(STAMP.len() + LONGEST);
        window.drain(..window.len() - keep);
    }
}

/// `3.7.11` or `3.12-20260821`, up to the NUL.
fn whole_version(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(LONGEST).position(|&byte| byte == 0)?;
    let version = std::str::from_utf8(&bytes[..end]).ok()?;
    let fits = |character: char| character.is_ascii_alphanumeric() || ".-".contains(character);
    (version.starts_with(|first: char| first.is_ascii_digit()) && version.chars().all(fits))
        .then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_is_found_wherever_it_is() {
        for before in [0, 1, 65_530, 65_536 - STAMP.len(), 131_072 - 5, 200_000] {
            let mut program = vec![b'x'; before];
            program.extend_from_slice(b"mail_version=3.12-20260821\0more");
            assert_eq!(
                find(&*program).unwrap().as_deref(),
                Some("3.12-20260821"),
                "{before}"
            );
            program.extend(vec![b'y'; 100_000]);
            assert_eq!(
                find(&*program).unwrap().as_deref(),
                Some("3.12-20260821"),
                "{before}"
            );
        }
    }

    #[test]
    fn only_master_is_asked() {
        assert!(is_master(Path::new("/usr/libexec/postfix/master")));
        assert!(is_master(Path::new(
            "/usr/libexec/postfix/master (deleted)"
        )));
        assert!(!is_master(Path::new("/usr/local/bin/postkeep")));
    }

    #[test]
    fn other_texts_are_no_version() {
        for text in [
            "",
            "mail_version",
            "mail_version=",
            "mail_version=postkeep-1\0",
            "mail_version=3.7",
            "mail_version=%s\0",
        ] {
            assert_eq!(find(text.as_bytes()).unwrap(), None, "{text}");
        }
        let second = b"mail_version=%s\0 mail_version=3.5.25\0";
        assert_eq!(find(&second[..]).unwrap().as_deref(), Some("3.5.25"));
    }
}
