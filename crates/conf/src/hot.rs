//! When a configuration file may still be in the middle of being written.

use std::time::{Duration, SystemTime};

/// A file read from `before` to `after` must be read again: it was modified less than two whole seconds before
/// the reading began, and not in the future.
///
/// The caller reads, compares, waits 0.3 s while this is true, and reads again. Time stamps count in whole
/// seconds, as in the reference, so that a coarse file system clock cannot hide a change.
///
/// - `modified`: the file's modification time, read after its text
/// - `before`, `after`: the system clock just before and just after reading
///
/// # References
/// Postfix `src/util/dict.c`, `dict_load_file_xt()`.
pub fn is_hot(modified: SystemTime, before: SystemTime, after: SystemTime) -> bool {
    let (modified, before, after) = (seconds(modified), seconds(before), seconds(after));
    modified >= before - 1 && modified <= after
}

fn seconds(time: SystemTime) -> i64 {
    let whole = |length: Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX / 2);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_second_is_hot() {
        let at = |count| SystemTime::UNIX_EPOCH + Duration::from_secs(count);
        assert!(!is_hot(at(998), at(1000), at(1000)));
        assert!(is_hot(at(999), at(1000), at(1000)));
        assert!(is_hot(at(1000), at(1000), at(1000)));
        assert!(!is_hot(at(1001), at(1000), at(1000)));
    }
}
