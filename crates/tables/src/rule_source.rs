//! Where the rules of a pattern table come from: a file, or the table's name (Postfix `src/util/dict_stream.c`).

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use postkeep_sys::error_text;
use postkeep_table::{Owner, Printable, Watch};

use crate::braces;

/// The most that a file of rules may hold, in bytes.
///
/// The reference sets no limit; a file that never ends must not take all memory.
const LIMIT: u64 = 64 << 20;

/// How often a file is read that changes while it is read.
const ATTEMPTS: usize = 4;

/// The rules as text, and what their origin says about the table.
pub(crate) struct RuleSource {
    pub(crate) text: Vec<u8>,
    /// What warnings about lines call the text.
    pub(crate) label: String,
    pub(crate) owner: Owner,
    /// The file, when there is one.
    pub(crate) path: Option<PathBuf>,
}

/// Why there are no rules.
pub(crate) enum RuleSourceError {
    /// The file does not open, or the braces are wrong; the reference's reason.
    Unavailable(String),
    /// The file opens, but reading fails. What the reference does then depends on the type.
    Read(io::Error),
}

impl RuleSource {
    /// Reads the rules of `KIND:NAME`.
    ///
    /// A name that starts with a brace holds rules, each in braces of its own: they become the lines of a text.
    pub(crate) fn read(kind: &str, name: &[u8]) -> Result<Self, RuleSourceError> {
        if name.first() == Some(&b'{') {
            let text = lines(name)
                .map_err(|why| RuleSourceError::Unavailable(format!("{kind} map: {why}")))?;
            return Ok(Self {
                text,
                label: "unknown_stream".to_owned(),
                owner: owner(nix::unistd::getuid().as_raw()),
                path: None,
            });
        }
        let path = Path::new(OsStr::from_bytes(name));
        let (text, metadata) = read_file(path, name)?;
        Ok(Self {
            text,
            label: Printable(name).to_string(),
            owner: owner(metadata.uid()),
            path: Some(path.to_owned()),
        })
    }

    /// No rules at all, from a file that gives none.
    pub(crate) fn empty(name: &[u8]) -> Self {
        Self {
            text: Vec::new(),
            label: Printable(name).to_string(),
            owner: Owner::Unknown,
            path: Some(Path::new(OsStr::from_bytes(name)).to_owned()),
        }
    }

    /// The file, as a table tells of it.
    pub(crate) fn watches(path: Option<&Path>) -> Vec<Watch> {
        path.map(|path| Watch {
            path: path.to_owned(),
            modification_time: true,
        })
        .into_iter()
        .collect()
    }
}

fn owner(uid: u32) -> Owner {
    match uid {
        0 => Owner::Trusted,
        uid => Owner::User(uid),
    }
}

fn lines(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut text = Vec::with_capacity(name.len());
    for element in braces::elements(braces::strip(name)?) {
        text.extend_from_slice(braces::strip(element)?);
        text.push(b'\n');
    }
    Ok(text)
}

fn read_file(path: &Path, name: &[u8]) -> Result<(Vec<u8>, Metadata), RuleSourceError> {
    let mut attempt = 1;
    loop {
        let file = File::open(path).map_err(|error| {
            RuleSourceError::Unavailable(format!(
                "open {}: {}",
                Printable(name),
                error_text(&error)
            ))
        })?;
        let before = file.metadata().map_err(RuleSourceError::Read)?;
        let mut text = Vec::new();
        (&file)
            .take(LIMIT + 1)
            .read_to_end(&mut text)
            .map_err(RuleSourceError::Read)?;
        if text.len() as u64 > LIMIT {
            return Err(RuleSourceError::Unavailable(format!(
                "read {}: File too large",
                Printable(name)
            )));
        }
        let after = file.metadata().map_err(RuleSourceError::Read)?;
        let version =
            |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if version(&before) == version(&after) || !after.is_file() || attempt == ATTEMPTS {
            return Ok((text, after));
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(name: &str) -> String {
        match RuleSource::read("pcre", name.as_bytes()) {
            Ok(_) => panic!("{name} is good"),
            Err(RuleSourceError::Unavailable(why)) => why,
            Err(RuleSourceError::Read(error)) => format!("cannot read: {}", error_text(&error)),
        }
    }

    #[test]
    fn rules_in_the_name_become_lines() {
        let text = |name: &str| {
            let Ok(source) = RuleSource::read("pcre", name.as_bytes()) else {
                panic!("{name}");
            };
            assert!(source.path.is_none());
            String::from_utf8(source.text).unwrap()
        };
        assert_eq!(
            text("{{ /a/ b }, {if /c{2}/} {{x}}}"),
            "/a/ b\nif /c{2}/\n{x}\n"
        );
        assert_eq!(text("{ }"), "");
    }

    #[test]
    fn reasons_are_the_reference_s() {
        assert_eq!(
            reason("/no/such"),
            "open /no/such: No such file or directory"
        );
        assert_eq!(
            reason("{/x/ y}"),
            "pcre map: no '{' at start of text in \"/x/\""
        );
        assert_eq!(
            reason("{{/x/ y}}z"),
            "pcre map: syntax error after '}' in \"{{/x/ y}}z\""
        );
        assert_eq!(reason("{a"), "pcre map: missing '}' in \"{a\"");
        assert_eq!(reason("/"), "cannot read: Is a directory");
        assert_eq!(reason("/dev/zero"), "read /dev/zero: File too large");
    }
}
