//! `texthash:FILE` reads the text that postmap(1) takes as its source, without an index beside it.
//!
//! The whole file is read when the table is opened. Lines that are no entries are warned about at each open. When
//! a key comes twice the flags decide: replace, ignore, or warn; the first entry stays where nothing is asked for.
//!
//! Differences from the reference: a table with a duplicate key is not lost as a whole in daemons; a changed file
//! is noticed; an open does not wait until the file has been quiet for a second, but reads again when the file
//! changed while it was read.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use postkeep_sys::error_text;
use postkeep_table::{
    Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Printable, Step, Table,
    TableName, Watch,
};

use crate::compact::CompactMap;
use crate::inline::{find, walk};
use crate::source::{self, Style};
use crate::table_type::{Capabilities, Request, TableType};
use crate::{fold_key, read_file_values};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "texthash",
    summary: "a text file in postmap(1) format, read into memory",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::FILE),
    open,
    build: None,
};

/// How often a file is read that changes while it is read.
const ATTEMPTS: usize = 4;

struct Texthash {
    name: TableName,
    flags: Flags,
    map: CompactMap,
    path: PathBuf,
    owner: u32,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let path = Path::new(OsStr::from_bytes(request.name.name()));
    let (text, metadata) = read(path).map_err(|(operation, error)| {
        OpenError::Unavailable(format!(
            "{operation} {}: {}",
            Printable(request.name.name()),
            error_text(&error)
        ))
    })?;
    let map = fill(request, &text).map_err(|_| {
        OpenError::Unavailable(format!(
            "read {}: File too large",
            Printable(request.name.name())
        ))
    })?;
    Ok(Arc::new(Texthash {
        name: request.name.clone(),
        flags: request.fixed_flags(),
        map,
        path: path.to_owned(),
        owner: metadata.uid(),
    }))
}

/// The text of a file, and what the file was when its end was read.
pub(crate) fn read(path: &Path) -> Result<(Vec<u8>, Metadata), (&'static str, io::Error)> {
    let mut attempt = 1;
    loop {
        let mut file = File::open(path).map_err(|error| ("open database", error))?;
        let before = file.metadata().map_err(|error| ("read", error))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(|error| ("read", error))?;
        let after = file.metadata().map_err(|error| ("read", error))?;
        let version =
            |metadata: &Metadata| (metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if version(&before) == version(&after) || !after.is_file() || attempt == ATTEMPTS {
            return Ok((text, after));
        }
        attempt += 1;
    }
}

fn fill(request: &Request<'_>, text: &[u8]) -> Result<CompactMap, crate::compact::TooLarge> {
    let file = request.name.name();
    let flags = request.flags;
    let mut map = CompactMap::default();
    source::parse(
        text,
        file,
        request.utf8,
        Style::Text,
        &mut |text| warn!("{text}"),
        |entry, warn| {
            let from_file;
            let value = if flags.contains(Flags::RHS_IS_FILE) {
                match read_file_values(entry.value) {
                    Ok(value) => from_file = value,
                    Err(why) => {
                        warn(format!(
                            "{}, line {}: {why}: skipping this entry",
                            Printable(file),
                            entry.line
                        ));
                        return Ok(());
                    }
                }
                &from_file
            } else {
                entry.value
            };
            let key = if flags.contains(Flags::FOLD_FIX) {
                fold_key(entry.key, request.utf8)
            } else {
                entry.key.into()
            };
            if map.find(&key).is_some() && !flags.contains(Flags::DUP_REPLACE) {
                if !flags.contains(Flags::DUP_IGNORE) {
                    warn(format!(
                        "{}, line {}: duplicate entry: \"{}\"",
                        Printable(file),
                        entry.line,
                        Printable(entry.key)
                    ));
                }
                return Ok(());
            }
            map.put(&key, value)
        },
    )?;
    map.shrink();
    Ok(map)
}

impl Table for Texthash {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        Ok(find(&self.map, key, value))
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        Ok(walk(&self.map, step, cursor, key, value))
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch {
            path: self.path.clone(),
            modification_time: true,
        }]
    }

    fn owner(&self) -> Owner {
        match self.owner {
            0 => Owner::Trusted,
            uid => Owner::User(uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(path: &Path, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(&[b"texthash:", path.as_os_str().as_bytes()].concat()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, flags)
    }

    fn table(text: &str, flags: Flags) -> Arc<dyn Table> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        open(file.path(), flags).unwrap()
    }

    fn answer(table: &Arc<dyn Table>, key: &str) -> Option<String> {
        let mut value = Vec::new();
        let outcome = table
            .lookup(Flags::FOLD_FIX, key.as_bytes(), &mut value)
            .unwrap();
        (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
    }

    #[test]
    fn duplicates_follow_the_flags() {
        let text = "k 1\nK 2\n";
        for (flags, value) in [
            (Flags::DUP_WARN, "1"),
            (Flags::DUP_IGNORE, "1"),
            (Flags::DUP_REPLACE, "2"),
            (Flags::empty(), "1"),
        ] {
            let table = table(text, flags | Flags::FOLD_FIX);
            assert_eq!(answer(&table, "K").as_deref(), Some(value), "{flags:?}");
        }
    }

    #[test]
    fn keys_are_folded_only_when_asked() {
        assert_eq!(answer(&table("Key v\n", Flags::empty()), "Key"), None);
        assert_eq!(
            answer(&table("Key v\n", Flags::FOLD_FIX), "Key").as_deref(),
            Some("v")
        );
        let unicode = Flags::FOLD_FIX | Flags::UTF8_REQUEST;
        assert_eq!(
            answer(&table("\u{c9} v\n", unicode), "\u{e9}").as_deref(),
            Some("v")
        );
    }

    #[test]
    fn what_cannot_be_read_has_the_reference_s_reason() {
        let reason = |path: &str| {
            open(Path::new(path), Flags::empty())
                .err()
                .unwrap()
                .to_string()
        };
        assert_eq!(
            reason("/no/such"),
            "open database /no/such: No such file or directory"
        );
        assert_eq!(reason("/"), "read /: Is a directory");
    }
}
