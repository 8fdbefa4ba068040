//! Values that are the contents of files, in base64 (postmap(1) `-F`, Postfix `src/util/dict_file.c`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use postkeep_sys::error_text;
use postkeep_table::Printable;

use crate::braces::elements;

/// The most that the files of one value may hold together.
///
/// The reference's limit is the memory that it can address; this is far above any certificate chain.
const LIMIT: u64 = 1 << 30;

/// Why a value could not be made from files; the text is the reference's reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FileValueError(String);

/// Reads a list of files, separated by comma or white space, and gives their contents in base64.
///
/// Contents are joined by one newline.
///
/// # Errors
/// [`FileValueError`] for an empty list, a file that cannot be read, or more than 1 GiB.
pub fn read_file_values(list: &[u8]) -> Result<Vec<u8>, FileValueError> {
    let mut contents = Vec::new();
    let mut first = true;
    for path in elements(list) {
        if !first {
            contents.push(b'\n');
        }
        first = false;
        let failed = |operation: &str, error: &std::io::Error| {
            FileValueError(format!(
                "{operation} {}: {}",
                Printable(path),
                error_text(error)
            ))
        };
        let mut file =
            File::open(OsStr::from_bytes(path)).map_err(|error| failed("open", &error))?;
        let room = LIMIT - contents.len() as u64;
        let read = (&mut file)
            .take(room + 1)
            .read_to_end(&mut contents)
            .map_err(|error| failed("read", &error))?;
        if read as u64 > room {
            return Err(FileValueError(format!(
                "file too large: {}",
                Printable(list)
            )));
        }
    }
    if first {
        return Err(FileValueError(format!(
            "empty pathname list: >>{}<<'",
            Printable(list)
        )));
    }
    Ok(encode(&contents))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0_u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            text.push(if place <= chunk.len() {
                ALPHABET[(word >> (18 - 6 * place)) as usize & 63]
            } else {
                b'='
            });
        }
    }
    text
}

/// Takes base64 apart again; `None` when the text is not base64.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let last = text.len().checked_sub(4);
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for (number, group) in text.chunks(4).enumerate() {
        let padding = group.iter().rev().take_while(|&&byte| byte == b'=').count();
        if padding > 2 || (padding > 0 && Some(number * 4) != last) {
            return None;
        }
        let mut word = 0_u32;
        for &byte in &group[..4 - padding] {
            let digit = ALPHABET.iter().position(|&letter| letter == byte)?;
            word = word << 6 | u32::try_from(digit).ok()?;
        }
        word <<= 6 * padding;
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn nothing_makes_the_decoder_stumble(text in "[A-Da-d=/+ ]{0,12}") {
            let _ = decode(text.as_bytes());
        }
    }

    #[test]
    fn base64_is_the_usual_one() {
        assert_eq!(encode(b"content"), b"Y29udGVudA==");
        assert_eq!(decode(b"Y29udGVudA="), None);
        assert_eq!(decode(b"Y2=udGVudA=="), None);
        assert_eq!(decode(b"===="), None);
    }

    #[test]
    fn files_are_joined_by_a_newline() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"a\0").unwrap();
        let path = file.path().to_str().unwrap();
        let value = read_file_values(format!("{path}, {path}").as_bytes()).unwrap();
        assert_eq!(decode(&value).unwrap(), b"a\0\na\0");
    }

    #[test]
    fn reasons_are_the_reference_s() {
        let reason = |list: &[u8]| read_file_values(list).unwrap_err().to_string();
        assert_eq!(reason(b" ,"), "empty pathname list: >> ,<<'");
        assert_eq!(
            reason(b"/no/such"),
            "open /no/such: No such file or directory"
        );
        assert_eq!(reason(b"/"), "read /: Is a directory");
    }
}
