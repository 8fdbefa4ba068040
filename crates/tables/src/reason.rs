//! The system's words for an error.

use std::io;

/// The text of a system error as the C library has it: without the number that Rust adds.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text
            .strip_suffix(&format!(" (os error {number})"))
            .map_or(text.clone(), str::to_owned),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_left_out() {
        assert_eq!(
            error_text(&io::Error::from_raw_os_error(9)),
            "Bad file descriptor"
        );
        assert_eq!(
            error_text(&io::Error::other("cut (os error 9)")),
            "cut (os error 9)"
        );
    }
}
