//! Which tables may be asked for: the parser of `proxy_read_maps` and `proxy_write_maps`.
//!
//! The list is a parameter value after `$name` expansion, and what it includes. It is split at commas and
//! blanks outside braces; each piece is stripped of the decoration that table names carry in other parameters
//! and approved when it begins with `proxy:`. Which decoration is understood depends on the release, see
//! [`Rules`].
//!
//! Nothing here reads files: their content comes through [`Files`]. What a person should read comes back as
//! [`Notice`]s.
//!
//! # References
//! proxymap(8), "SECURITY"; postconf(5) `proxy_read_maps`, `proxy_write_maps`; Postfix
//! `src/proxymap/proxymap.c`, `authorize_proxied_maps()`.

use std::collections::HashSet;

use postkeep_conf::{LogicalLines, Release, extract_braced, split_list_braced};
use postkeep_wire::diagnostics::Shown;

/// Prefix of a table that is to be reached through this service.
pub(crate) const PROXY: &[u8] = b"proxy:";

/// How deep nested tables and files may be (ours; the reference recurses until something runs out).
const MAX_DEPTH: usize = 64;
/// How many names one list may approve (ours).
const MAX_NAMES: usize = 65_536;
/// How much all files of one list may hold together, in bytes (ours).
const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;
/// How many files one list may name (ours).
const MAX_FILES: usize = 1000;

/// Texts of the warnings about braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Texts {
    /// `bad PARAMETER parameter value: …` (up to 3.10)
    Parameter,
    /// `bad syntax in ORIGIN content: …` (3.11 and later)
    Content,
}

/// How a list is read: the grammar of a release.
///
/// The default is that of the newest release, which understands all that earlier ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a step that a release has or has not"
)]
pub struct Rules {
    /// `{ type:name … }`: the first word inside counts.
    braces: bool,
    /// `unionmap:{…}` and `pipemap:{…}`: the tables inside count, each for itself.
    nested: bool,
    /// `/file/name`: what the file holds counts.
    files: bool,
    /// A piece must begin with a letter or a digit and hold a colon.
    table_form: bool,
    /// What is left after `proxy:` must hold a colon.
    colon: bool,
    texts: Texts,
    /// The first word of the verbose lines.
    verbose: Option<&'static str>,
}

impl Default for Rules {
    fn default() -> Self {
        Self::of_release((3, 11, 0))
    }
}

impl Rules {
    /// The grammar of release `(major, minor, patch)`.
    pub fn of_release(release: (u32, u32, u32)) -> Self {
        let (_, minor, patch) = release;
        let minor = if release.0 > 3 { u32::MAX } else { minor };
        Self {
            braces: minor >= 5,
            nested: match minor {
                0..=2 => false,
                3 => patch >= 21,
                4 => patch >= 24,
                5 => patch >= 14,
                6 => patch >= 4,
                _ => true,
            },
            files: minor >= 11,
            table_form: minor >= 11,
            colon: minor < 11,
            texts: if minor < 11 {
                Texts::Parameter
            } else {
                Texts::Content
            },
            verbose: match minor {
                0..=4 => None,
                5 => Some("whitelisting"),
                _ => Some("allowlisting"),
            },
        }
    }
}

/// The grammar of the latest patch of a release.
impl From<Release> for Rules {
    fn from(release: Release) -> Self {
        Self::of_release((3, release.minor().into(), u32::MAX))
    }
}

/// Which tables of a list are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listing {
    /// Those that begin with `proxy:`: the approved ones.
    #[default]
    Proxied,
    /// All, for `export-all-proxymap` and `export-all-proxywrite`; never a base for approval.
    All,
}

/// Something to log about a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A line at level warning, without the `warning: ` prefix.
    Warning(String),
    /// A line at level info, for verbose mode only: `allowlisting TYPE:NAME from ORIGIN`.
    Verbose(String),
}

/// What a file held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The bytes that could be read.
    pub bytes: Vec<u8>,
    /// Why there are no more of them, when reading failed in the middle (`Is a directory`).
    pub error: Option<String>,
}

/// Reads the files that a list names (3.11 and later).
pub trait Files {
    /// Reads at most `limit` bytes of `path`.
    ///
    /// # Errors
    /// The system's text when the file cannot be opened (`No such file or directory`).
    fn read(&mut self, path: &[u8], limit: usize) -> Result<Content, String>;
}

/// No files at all: each one is missing.
impl Files for () {
    fn read(&mut self, _path: &[u8], _limit: usize) -> Result<Content, String> {
        Err("No such file or directory".to_owned())
    }
}

/// The approved tables, by canonical name: `TYPE:NAME` without `proxy:`.
///
/// Names are bytes; they are compared as they are, case and blanks included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approved {
    names: HashSet<Box<[u8]>>,
}

impl Approved {
    /// Is exactly this name approved?
    pub fn contains(&self, canonical: &[u8]) -> bool {
        self.names.contains(canonical)
    }

    /// Number of tables.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// No table is approved.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names in order of their bytes, as the export services print them, one a line.
    pub fn sorted(&self) -> Vec<&[u8]> {
        let mut names: Vec<&[u8]> = self.names.iter().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names
    }
}

impl<'n> FromIterator<&'n [u8]> for Approved {
    fn from_iter<I: IntoIterator<Item = &'n [u8]>>(names: I) -> Self {
        Self {
            names: names.into_iter().map(Box::from).collect(),
        }
    }
}

/// Takes all leading `proxy:` off a table name as a client sent it.
pub fn canonical(table: &[u8]) -> &[u8] {
    let mut rest = table;
    while let Some(shorter) = rest.strip_prefix(PROXY) {
        rest = shorter;
    }
    rest
}

/// Collects approved tables from one or more texts.
pub struct List<'f> {
    rules: Rules,
    listing: Listing,
    files: &'f mut dyn Files,
    approved: Approved,
    notices: Vec<Notice>,
    /// Files that were read; reading one twice adds nothing.
    seen: HashSet<Box<[u8]>>,
    bytes_left: usize,
    full: bool,
}

impl<'f> List<'f> {
    /// An empty list.
    pub fn new(rules: Rules, listing: Listing, files: &'f mut dyn Files) -> Self {
        Self {
            rules,
            listing,
            files,
            approved: Approved::default(),
            notices: Vec::new(),
            seen: HashSet::new(),
            bytes_left: MAX_FILE_BYTES,
            full: false,
        }
    }

    /// Adds what `text` approves.
    ///
    /// - `text`: a parameter value after expansion; it ends at the first NUL byte
    /// - `origin`: the name of the parameter, for log lines
    pub fn add(&mut self, text: &[u8], origin: &str) {
        self.scan(before_nul(text), origin.as_bytes(), 0);
    }

    /// What was approved, and what to log about it, in order.
    pub fn finish(self) -> (Approved, Vec<Notice>) {
        (self.approved, self.notices)
    }

    fn scan(&mut self, text: &[u8], origin: &[u8], depth: usize) {
        for token in split_list_braced(text) {
            if self.full {
                return;
            }
            self.take(token, origin, depth);
        }
    }

    fn take(&mut self, token: &[u8], origin: &[u8], depth: usize) {
        let mut token = token;
        if self.rules.braces && token.first() == Some(&b'{') {
            let (inner, fault) = extract_braced(token, false);
            if let Some(fault) = fault {
                return self.warn_syntax(origin, &fault);
            }
            match split_list_braced(inner).next() {
                Some(first) => token = first,
                None => return,
            }
        }
        if self.rules.files && token.first() == Some(&b'/') {
            return self.scan_file(token, depth);
        }
        if self.rules.table_form
            && !(token.first().is_some_and(u8::is_ascii_alphanumeric) && token.contains(&b':'))
        {
            return;
        }
        if self.rules.nested
            && let Some(rest) = token
                .strip_prefix(b"unionmap:")
                .or_else(|| token.strip_prefix(b"pipemap:"))
        {
            if rest.first() != Some(&b'{') {
                return;
            }
            let (inner, fault) = extract_braced(rest, false);
            if let Some(fault) = fault {
                return self.warn_syntax(origin, &fault);
            }
            if depth >= MAX_DEPTH {
                let fault = format!("more than {MAX_DEPTH} levels in \"{}\"", Shown::new(rest));
                return self.warn_syntax(origin, &fault);
            }
            return self.scan(inner, origin, depth + 1);
        }
        let name = canonical(token);
        let proxied = name.len() < token.len();
        if !proxied && self.listing == Listing::Proxied {
            return;
        }
        if self.rules.colon && !name.contains(&b':') {
            return;
        }
        self.approve(name, origin);
    }

    fn approve(&mut self, name: &[u8], origin: &[u8]) {
        if self.approved.contains(name) {
            return;
        }
        if self.approved.len() >= MAX_NAMES {
            self.full = true;
            self.notices.push(Notice::Warning(format!(
                "too many tables from {}: only the first {MAX_NAMES} are approved",
                Shown::new(origin)
            )));
            return;
        }
        self.approved.names.insert(name.into());
        if let Some(word) = self.rules.verbose {
            self.notices.push(Notice::Verbose(format!(
                "{word} {} from {}",
                Shown::new(name),
                Shown::new(origin)
            )));
        }
    }

    fn scan_file(&mut self, path: &[u8], depth: usize) {
        let shown = Shown::new(path);
        if self.seen.contains(path) {
            return;
        }
        if depth >= MAX_DEPTH || self.seen.len() >= MAX_FILES || self.bytes_left == 0 {
            self.notices.push(Notice::Warning(format!(
                "open {shown}: too many files, too deep, or too much in them"
            )));
            return;
        }
        self.seen.insert(path.into());
        let content = match self.files.read(path, self.bytes_left) {
            Ok(content) => content,
            Err(error) => {
                self.notices
                    .push(Notice::Warning(format!("open {shown}: {error}")));
                return;
            }
        };
        self.bytes_left = self.bytes_left.saturating_sub(content.bytes.len());
        let file = shown.to_string();
        let mut lines = LogicalLines::new(&content.bytes);
        loop {
            let notices = &mut self.notices;
            let mut warn = |text| notices.push(Notice::Warning(text));
            let Some(line) = lines.read(&file, Release::V3_11, &mut warn) else {
                break;
            };
            self.scan(line.text_to_nul(), path, depth + 1);
        }
        if let Some(error) = content.error {
            self.notices
                .push(Notice::Warning(format!("read {shown}: {error}")));
        }
    }

    fn warn_syntax(&mut self, origin: &[u8], fault: &str) {
        let origin = Shown::new(origin);
        self.notices.push(Notice::Warning(match self.rules.texts {
            Texts::Parameter => format!("bad {origin} parameter value: {fault}"),
            Texts::Content => format!("bad syntax in {origin} content: {fault}"),
        }));
    }
}

fn before_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
