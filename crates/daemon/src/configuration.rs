//! Finding and loading main.cf.
//!
//! # References
//! Postfix `mail_conf.c`; postconf(5) `alternate_config_directories`, `multi_instance_directories`.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postkeep_conf::{Dictionary, Error, Release, Sink, is_hot, split_list};
use postkeep_sys::{error_text, privilege};

/// Where main.cf is when nobody says otherwise.
const DEFAULT_DIRECTORY: &str = "/etc/postfix";
/// How long to wait for somebody who is writing the file.
const PAUSE: Duration = Duration::from_millis(300);

/// Why main.cf cannot be used; the text is the reference's, for a `fatal` record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("open {path}: {reason}")]
    Open {
        /// Its path.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A set-user-ID or set-group-ID program was given a directory that the default main.cf does not list. An
    /// `error` record `unauthorized configuration directory name: DIR` comes before this one.
    #[error(
        "specify \"alternate_config_directories = {directory}\" or \"multi_instance_directories = {directory}\" in {default}/main.cf"
    )]
    Unauthorized {
        /// The directory.
        directory: String,
        /// The default directory.
        default: String,
    },
    /// The file cannot be understood.
    #[error(transparent)]
    Text(#[from] Error),
}

/// `MAIL_CONFIG` (also when it is empty), else the default directory.
pub fn directory() -> PathBuf {
    PathBuf::from(
        std::env::var_os("MAIL_CONFIG").unwrap_or_else(|| OsString::from(DEFAULT_DIRECTORY)),
    )
}

/// Says whether this process may use `directory`.
///
/// Programs that run with their caller's identity, and root, may use any.
///
/// # Errors
/// [`ConfigurationError::Unauthorized`], or those of [`read`] for the default main.cf.
pub fn authorize(directory: &Path) -> Result<(), ConfigurationError> {
    if !privilege::is_set_id() || directory == Path::new(DEFAULT_DIRECTORY) {
        return Ok(());
    }
    let (text, file) = read(Path::new(DEFAULT_DIRECTORY))?;
    let mut dictionary = Dictionary::new(Release::default(), DEFAULT_DIRECTORY.as_bytes());
    dictionary.load(&text, &file, &mut |_: String| ())?;
    if is_listed(&dictionary, directory) {
        return Ok(());
    }
    let directory = directory.to_string_lossy().into_owned();
    log::error!("unauthorized configuration directory name: {directory}");
    Err(ConfigurationError::Unauthorized {
        directory,
        default: DEFAULT_DIRECTORY.to_owned(),
    })
}

fn is_listed(dictionary: &Dictionary, directory: &Path) -> bool {
    ["alternate_config_directories", "multi_instance_directories"]
        .iter()
        .filter_map(|name| dictionary.value(name))
        .any(|value| split_list(value).any(|listed| listed == directory.as_os_str().as_bytes()))
}

/// Reads main.cf; returns its text and what messages call it. Waits while somebody may be writing it.
///
/// # Errors
/// [`ConfigurationError::Open`].
pub fn read(directory: &Path) -> Result<(Vec<u8>, String), ConfigurationError> {
    // By hand: joining to an empty directory must give /main.cf, as in the reference.
    let mut path = directory.as_os_str().to_owned();
    path.push("/main.cf");
    let shown = path.to_string_lossy().into_owned();
    loop {
        let before = SystemTime::now();
        let mut text = Vec::new();
        let modified = std::fs::File::open(&path)
            .and_then(|mut file| {
                file.read_to_end(&mut text)?;
                file.metadata()?.modified()
            })
            .map_err(|error| ConfigurationError::Open {
                path: shown.clone(),
                reason: error_text(&error),
            })?;
        if !is_hot(modified, before, SystemTime::now()) {
            return Ok((text, shown));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Makes a dictionary of a text of main.cf.
///
/// The release is the one of `mail_version`, as main.cf or one of `overrides` sets it (`name=value`; those that
/// are malformed are passed over, and none is made in the dictionary that comes back).
///
/// # Errors
/// [`ConfigurationError::Text`].
pub fn load(
    directory: &Path,
    process_name: &str,
    text: &[u8],
    file: &str,
    overrides: &[Vec<u8>],
    sink: &mut dyn Sink,
) -> Result<Dictionary, ConfigurationError> {
    let blank = |release| {
        let mut dictionary = Dictionary::new(release, directory.as_os_str().as_bytes());
        dictionary.set("process_name", process_name.as_bytes());
        dictionary
    };
    let mut probe = blank(Release::default());
    // A fault here is found again below, and reported then.
    let _ = probe.load(text, file, &mut |_: String| ());
    for assignment in overrides {
        let _ = probe.set_override(assignment);
    }
    let release = probe
        .value("mail_version")
        .and_then(release_of)
        .unwrap_or_default();
    let mut dictionary = blank(release);
    dictionary.load(text, file, sink)?;
    Ok(dictionary)
}

/// The release that a version belongs to: `3.7.11`, `3.12-20260821`; the nearest one for others.
pub fn release_of(version: &[u8]) -> Option<Release> {
    let version = std::str::from_utf8(version).ok()?;
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor: u32 = numbers.next()?.parse().ok()?;
    let first = Release::ALL[0];
    let last = Release::ALL[Release::ALL.len() - 1];
    Some(match major.cmp(&3) {
        std::cmp::Ordering::Less => first,
        std::cmp::Ordering::Greater => last,
        std::cmp::Ordering::Equal => Release::ALL
            .into_iter()
            .rev()
            .find(|release| u32::from(release.minor()) <= minor)
            .unwrap_or(first),
    })
}

/// Writes warnings and notes of the configuration to the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSink;

impl Sink for LogSink {
    fn warning(&mut self, text: String) {
        log::warn!("{text}");
    }

    fn info(&mut self, text: String) {
        log::info!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_name_their_release() {
        assert_eq!(release_of(b"3.7.11"), Some(Release::V3_7));
        assert_eq!(release_of(b"3.12-20260821"), Some(Release::V3_12));
        assert_eq!(release_of(b"3.0.1"), Some(Release::V3_1));
        assert_eq!(release_of(b"2.11"), Some(Release::V3_1));
        assert_eq!(release_of(b"4.0"), Some(Release::V3_12));
        assert_eq!(release_of(b"x"), None);
    }

    #[test]
    fn the_release_comes_from_the_file_or_an_override() {
        let release = |text: &[u8], overrides: &[Vec<u8>]| {
            load(Path::new("/d"), "p", text, "f", overrides, &mut Vec::new())
                .unwrap()
                .release()
        };
        assert_eq!(release(b"", &[]), Release::V3_7);
        assert_eq!(release(b"mail_version = 3.5.1\n", &[]), Release::V3_5);
        assert_eq!(
            release(b"mail_version = 3.5.1\n", &[b"mail_version=3.11".to_vec()]),
            Release::V3_11
        );
    }

    #[test]
    fn a_missing_file_is_reported_with_its_path() {
        let error = read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "open /nonexistent/main.cf: No such file or directory"
        );
    }

    #[test]
    fn listed_directories_are_compared_as_text() {
        let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
        dictionary.set("multi_instance_directories", b"/a, /b/");
        assert!(is_listed(&dictionary, Path::new("/a")));
        assert!(!is_listed(&dictionary, Path::new("/c")));
    }
}
