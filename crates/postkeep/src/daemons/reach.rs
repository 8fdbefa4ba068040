//! What a lookup table server must be able to reach, told from the names of its approved tables.
//!
//! A table's file may be a symbolic link, may be replaced by renaming another over it, and may not exist yet; so
//! directories are named, those that links lead to included. What a table reads beyond that (a file that its
//! configuration file names) is looked for in that file.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postkeep_daemon::Reach;
use postkeep_proxymap::role::Role;

/// Table types that speak to nobody over a network, and read nothing but the file that they name.
const LOCAL: [&[u8]; 21] = [
    b"btree",
    b"cache",
    b"cdb",
    b"cidr",
    b"debug",
    b"environ",
    b"fail",
    b"hash",
    b"inline",
    b"internal",
    b"lmdb",
    b"pcre",
    b"pipemap",
    b"proxy",
    b"randmap",
    b"regexp",
    b"slow",
    b"static",
    b"stuck",
    b"texthash",
    b"unionmap",
];

/// Those of them whose name is that of a file, relative to the working directory perhaps.
const FILES: [&[u8]; 8] = [
    b"btree",
    b"cdb",
    b"cidr",
    b"hash",
    b"lmdb",
    b"pcre",
    b"regexp",
    b"texthash",
];

/// What a file of a table may be called.
const ENDINGS: [&str; 4] = ["", ".db", ".lmdb", ".cdb"];

/// A configuration file of a table is not longer than this (bytes).
const LONGEST: u64 = 1 << 20;

/// What the tables of one list need.
///
/// - `tables`: `type:name`, members of pipemap and others inside
/// - `data_directory`: where a service that writes may make files
pub(crate) fn of<'a>(
    role: Role,
    tables: impl IntoIterator<Item = &'a [u8]>,
    data_directory: &Path,
) -> Reach {
    let mut places = BTreeSet::new();
    let mut network = false;
    for table in tables {
        for part in parts(table) {
            let types: Vec<&[u8]> = part.types;
            let local = types.iter().all(|name| LOCAL.contains(name));
            network |= !local;
            let is_file = types.last().is_some_and(|last| FILES.contains(last));
            if !is_file && !part.rest.starts_with(b"/") {
                continue;
            }
            let path = Path::new(OsStr::from_bytes(part.rest));
            add(&mut places, path);
            if !local {
                for path in mentioned(path) {
                    add(&mut places, &path);
                }
            }
        }
    }
    let places: Vec<PathBuf> = places.into_iter().collect();
    match role {
        Role::Read => Reach {
            readable: places,
            network,
            ..Reach::default()
        },
        Role::Write => Reach {
            writable: places
                .into_iter()
                .chain([data_directory.to_owned()])
                .collect(),
            network,
            ..Reach::default()
        },
    }
}

/// One `type:type:rest` of a table's name.
#[derive(Debug, PartialEq, Eq)]
struct Part<'a> {
    types: Vec<&'a [u8]>,
    rest: &'a [u8],
}

/// Takes a table's name apart, more generously than the tables themselves do.
fn parts(table: &[u8]) -> impl Iterator<Item = Part<'_>> {
    table
        .split(|byte| b"{},; \t\r\n".contains(byte))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let (mut types, mut rest) = (Vec::new(), word);
            while let Some(colon) = rest.iter().position(|&byte| byte == b':')
                && colon > 0
                && rest[..colon]
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
            {
                types.push(&rest[..colon]);
                rest = &rest[colon + 1..];
            }
            Part { types, rest }
        })
}

/// Adds the directory of a file, and those of the files that it is a link to.
fn add(places: &mut BTreeSet<PathBuf>, path: &Path) {
    let Ok(path) = std::path::absolute(path) else {
        return;
    };
    places.insert(existing_directory(&path));
    for ending in ENDINGS {
        let mut file = path.clone().into_os_string();
        file.push(ending);
        if let Ok(real) = fs::canonicalize(&file) {
            places.insert(existing_directory(&real));
        }
    }
}

/// The directory that a file is in, or will be in; the nearest one above that exists now.
fn existing_directory(path: &Path) -> PathBuf {
    path.ancestors()
        .skip(1)
        .find(|directory| directory.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// The absolute paths in a configuration file.
fn mentioned(path: &Path) -> Vec<PathBuf> {
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.split(|byte| byte.is_ascii_whitespace() || b"=,\"'".contains(byte))
        .filter(|word| word.len() > 1 && word.starts_with(b"/"))
        .map(|word| PathBuf::from(OsStr::from_bytes(word)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tables: &[&str]) -> Reach {
        let names = tables.iter().map(|table| table.as_bytes());
        of(Role::Read, names, Path::new("/data"))
    }

    #[test]
    fn names_are_taken_apart() {
        let shown = |table: &str| {
            parts(table.as_bytes())
                .map(|part| {
                    let types: Vec<_> = part
                        .types
                        .iter()
                        .map(|name| String::from_utf8_lossy(name).into_owned())
                        .collect();
                    (
                        types.join("+"),
                        String::from_utf8_lossy(part.rest).into_owned(),
                    )
                })
                .collect::<Vec<_>>()
        };
        let pair = |types: &str, rest: &str| (types.to_owned(), rest.to_owned());
        assert_eq!(
            shown("pipemap:{hash:/a/b, debug:cdb:c, static:{x y}}"),
            [
                pair("pipemap", ""),
                pair("hash", "/a/b"),
                pair("debug+cdb", "c"),
                pair("static", ""),
                pair("", "x"),
                pair("", "y"),
            ]
        );
        assert_eq!(shown("ldap:/etc/x.cf"), [pair("ldap", "/etc/x.cf")]);
        assert_eq!(shown("::/a"), [pair("", "::/a")]);
    }

    #[test]
    fn local_tables_need_their_directories_and_no_network() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        fs::create_dir(root.join("tables")).unwrap();
        fs::create_dir(root.join("elsewhere")).unwrap();
        fs::write(root.join("elsewhere/real.db"), "").unwrap();
        std::os::unix::fs::symlink(root.join("elsewhere/real.db"), root.join("tables/link.db"))
            .unwrap();
        let root_text = root.display();
        let reach = read(&[
            &format!("pipemap:{{hash:{root_text}/tables/link,static:x}}"),
            &format!("cidr:{root_text}/tables/not/yet/there"),
            "inline:{k=/v}",
        ]);
        assert_eq!(
            reach,
            Reach {
                readable: vec![root.join("elsewhere"), root.join("tables")],
                ..Reach::default()
            }
        );
    }

    #[test]
    fn others_may_use_the_network_and_what_their_file_names() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        fs::create_dir(root.join("base")).unwrap();
        fs::write(
            root.join("x.cf"),
            format!("dbpath = {0}/base/x.sqlite\nquery = a/b\n", root.display()),
        )
        .unwrap();
        let reach = read(&[&format!("sqlite:{}/x.cf", root.display())]);
        assert!(reach.network);
        assert_eq!(reach.readable, [root.clone(), root.join("base")]);
        assert!(read(&["unix:passwd.byname"]).network);
        assert!(read(&["unix:passwd.byname"]).readable.is_empty());
    }

    #[test]
    fn a_service_that_writes_writes_there_and_to_its_data() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        let table = format!("lmdb:{}/cache", root.display());
        let reach = of(Role::Write, [table.as_bytes()], Path::new("/data"));
        assert_eq!(reach.writable, [root, PathBuf::from("/data")]);
        assert!(reach.readable.is_empty());
    }
}
