//! Test cases kept as data under `vectors/` at the top of the project.

use std::fs;
use std::path::{Path, PathBuf};

/// The file `vectors/NAME`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../vectors")
        .join(name)
}

/// The bytes of `vectors/NAME`.
///
/// # Panics
/// When the file is not there: a missing vector fails the test that asks for it.
pub fn bytes(name: &str) -> Vec<u8> {
    let path = path(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `vectors/NAME`, read as JSON.
///
/// # Panics
/// When the file is not there or is not JSON.
pub fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&bytes(name)).unwrap_or_else(|error| panic!("vectors/{name}: {error}"))
}

/// Turns pairs of hexadecimal digits into bytes; white space between them is dropped.
///
/// # Panics
/// When something else is in `text`.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| {
            let digit = c
                .to_digit(16)
                .unwrap_or_else(|| panic!("not hexadecimal: {text}"));
            u8::try_from(digit).expect("a hexadecimal digit is below 16")
        })
        .collect();
    assert!(
        digits.len().is_multiple_of(2),
        "odd number of digits: {text}"
    );
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
