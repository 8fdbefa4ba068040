//! What a lookup table server must be able to reach, told from the names of its approved tables.
//!
//! A table's file may be a symbolic link, may be replaced by renaming another over it, and may not exist yet; so
//! directories are named, those that links lead to included. What a table reads beyond that (a file that its
//! configuration file names) is looked for in that file.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postkeep_conf::{Dictionary, LogicalLines, split_name_value};
use postkeep_daemon::Reach;
use postkeep_proxymap::role::Role;
use postkeep_tables::table_types;

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
/// - `main_cf`: has the configuration of tables without a file of their own
pub(crate) fn of<'a>(
    role: Role,
    tables: impl IntoIterator<Item = &'a [u8]>,
    data_directory: &Path,
    main_cf: &Dictionary,
) -> Reach {
    let mut places = Places::default();
    for table in tables {
        places.table(table, main_cf);
    }
    let Places {
        mut files,
        settings,
        network,
        ..
    } = places;
    let mut readable: BTreeSet<PathBuf> = settings;
    let writable = match role {
        Role::Read => {
            readable.append(&mut files);
            Vec::new()
        }
        Role::Write => files
            .into_iter()
            .chain([data_directory.to_owned()])
            .collect(),
    };
    Reach {
        readable: readable.into_iter().collect(),
        writable,
        network,
        ..Reach::default()
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Places {
    /// Directories with files that are tables.
    files: BTreeSet<PathBuf>,
    /// Directories with configuration files of tables, and with what these name.
    settings: BTreeSet<PathBuf>,
    network: bool,
    /// Names of configurations, so that those which name each other come to an end.
    seen: BTreeSet<Vec<u8>>,
}

impl Places {
    /// Adds what a table needs.
    fn table(&mut self, table: &[u8], main_cf: &Dictionary) {
        for part in parts(table) {
            let local = part.types.iter().all(|name| LOCAL.contains(name));
            self.network |= !local;
            let is_file = part.types.last().is_some_and(|last| FILES.contains(last));
            let path = Path::new(OsStr::from_bytes(part.rest));
            if local {
                if is_file || part.rest.starts_with(b"/") {
                    add(&mut self.files, path);
                }
                continue;
            }
            if !self.seen.insert(part.rest.to_vec()) {
                continue;
            }
            let text = if part.rest.starts_with(b"/") || part.rest.starts_with(b".") {
                add(&mut self.settings, path);
                text_of(path)
            } else {
                keys_of(part.rest, main_cf)
            };
            if part.types.last() == Some(&&b"sqlite"[..])
                && let Some(database) = changed_database(&text)
            {
                // SQLite makes files beside it.
                add(&mut self.files, Path::new(OsStr::from_bytes(&database)));
            }
            self.configuration(&text, main_cf);
        }
    }

    /// Adds what a table's configuration names: paths, tables, and paths in URIs.
    fn configuration(&mut self, text: &[u8], main_cf: &Dictionary) {
        let end = |byte: &u8| byte.is_ascii_whitespace() || b"=,\"'&?;{}".contains(byte);
        for word in text.split(end).filter(|word| !word.is_empty()) {
            let word = decoded(word);
            for Part { types, rest } in parts(&word) {
                // Two slashes begin the place in a URI.
                if !rest.starts_with(b"/") || rest.starts_with(b"//") || rest.len() == 1 {
                    continue;
                }
                let known =
                    |name: &&[u8]| table_types().iter().any(|row| row.name.as_bytes() == *name);
                if types.last().is_some_and(known) {
                    self.table(&word, main_cf);
                    continue;
                }
                let mut found = BTreeSet::new();
                add(&mut found, Path::new(OsStr::from_bytes(rest)));
                // What is no path at all (in a URL, in JSON) seems to be in the root directory.
                found.remove(Path::new("/"));
                self.settings.append(&mut found);
            }
        }
    }
}

/// The text of a configuration file; nothing when it cannot be read, or is something else.
fn text_of(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    if !path.is_file() {
        return text;
    }
    let read = fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    if read.is_err() {
        text.clear();
    }
    text
}

/// The path of an SQLite database that a table's configuration has statements to change.
fn changed_database(text: &[u8]) -> Option<Vec<u8>> {
    let mut values = BTreeMap::new();
    for line in LogicalLines::new(text) {
        if let Ok((key, value)) = split_name_value(&line.text) {
            values.insert(key.to_vec(), value.to_vec());
        }
    }
    let changes = ["update_query", "delete_query"].iter().any(|key| {
        values
            .get(key.as_bytes())
            .is_some_and(|value| !value.is_empty())
    });
    let database = values.remove(&b"dbpath"[..])?;
    (changes && database.starts_with(b"/")).then_some(database)
}

/// What main.cf has to configure a table of this name, as its file would have it.
fn keys_of(name: &[u8], main_cf: &Dictionary) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in main_cf.iter() {
        let rest = key.strip_prefix(name).filter(|rest| rest.starts_with(b"_"));
        if !name.is_empty() && rest.is_some() {
            // A value that cannot be evaluated is the table's to complain about.
            let value = main_cf.expand(value, &mut Vec::new()).unwrap_or_default();
            let key = key.get(name.len() + 1..).unwrap_or_default();
            text.extend_from_slice(&[key, b" = ", &value[..], b"\n"].concat());
        }
    }
    text
}

/// A word with its `%XX` replaced, as it has to be in a URI; one that has other percent signs stays as it is.
fn decoded(word: &[u8]) -> Cow<'_, [u8]> {
    if !word.contains(&b'%') {
        return Cow::Borrowed(word);
    }
    let mut bytes = word.iter();
    let mut out = Vec::with_capacity(word.len());
    while let Some(&byte) = bytes.next() {
        let mut digit = || char::from(*bytes.next()?).to_digit(16);
        let byte = match byte {
            b'%' => digit()
                .zip(digit())
                .and_then(|(high, low)| u8::try_from(high << 4 | low).ok()),
            other => Some(other),
        };
        let Some(byte) = byte else {
            return Cow::Borrowed(word);
        };
        out.push(byte);
    }
    Cow::Owned(out)
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

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;

    use super::*;

    fn main_cf() -> Dictionary {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/etc/postfix");
        dictionary.set("where", b"/usr/share");
        dictionary.set("users_tls_CAfile", b"$where/doc");
        dictionary.set("users", b"/usr/lib/x");
        dictionary
    }

    fn read(tables: &[&str]) -> Reach {
        let names = tables.iter().map(|table| table.as_bytes());
        of(Role::Read, names, Path::new("/data"), &main_cf())
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
        assert_eq!(read(&["redis:users"]).readable, [Path::new("/usr/share")]);
        assert!(read(&["redis:user"]).readable.is_empty());
    }

    #[test]
    fn paths_are_found_wherever_a_configuration_has_them() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        let text = root.display().to_string();
        for name in ["ca", "encoded", "backup", "inner", "base", "list"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let encoded = format!("{text}/encoded/ca.pem").replace('/', "%2F");
        let file = |name: &str, content: String| fs::write(root.join(name), content).unwrap();
        file("inner/x.cf", format!("dbpath = {text}/base/x\n"));
        file(
            "x.cf",
            format!(
                "uri = mongodb://h/?tlsCAFile={text}/ca/a.pem&x=1\nother = y://h/?a={encoded}\n\
                 url = http://nosuch.example/a/b?c\nvalue_path = /no/such\ndomain=hash:{text}/list/d\n\
                 backup = lmdb:{text}/backup/b\nmore = sqlite:{text}/inner/x.cf\nformat = %s /\n"
            ),
        );
        let table = format!("memcache:{text}/x.cf");
        let wanted = ["", "backup", "base", "ca", "encoded", "inner", "list"];
        let mut wanted: Vec<_> = wanted.map(|name| root.join(name)).into();
        wanted[0].clone_from(&root);
        wanted.sort();
        assert_eq!(read(&[&table]).readable, wanted);
        // Who writes may change what is a table's file, not what configures it.
        let reach = of(
            Role::Write,
            [table.as_bytes()],
            Path::new("/data"),
            &main_cf(),
        );
        let writable = [root.join("backup"), root.join("list"), "/data".into()];
        assert_eq!(reach.writable, writable);
        wanted.retain(|place| !writable.contains(place));
        assert_eq!(reach.readable, wanted);
    }

    #[test]
    fn a_database_that_is_changed_is_written_to_with_its_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        for name in ["read", "changed", "main"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let base = |name: &str| format!("{}/{name}/base", root.display());
        fs::write(
            root.join("r.cf"),
            format!("dbpath = {}\nquery = a\n", base("read")),
        )
        .unwrap();
        fs::write(
            root.join("w.cf"),
            format!(
                "dbpath =\n {}\nquery = a\ndelete_query = b\n",
                base("changed")
            ),
        )
        .unwrap();
        let mut main_cf = main_cf();
        main_cf.set("cache_dbpath", base("main").as_bytes());
        main_cf.set("cache_update_query", b"c");
        let tables = ["r.cf", "w.cf"].map(|name| format!("sqlite:{}/{name}", root.display()));
        let tables = tables
            .iter()
            .map(String::as_bytes)
            .chain([&b"sqlite:cache"[..]]);
        let reach = of(Role::Write, tables, Path::new("/data"), &main_cf);
        let writable = ["changed", "main"].map(|name| root.join(name));
        assert_eq!(reach.writable[..2], writable);
        assert_eq!(reach.writable[2..], [PathBuf::from("/data")]);
        assert!(reach.readable.contains(&root.join("read")));
    }

    #[test]
    fn files_that_name_each_other_come_to_an_end() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        let table = format!("memcache:{}/x.cf", root.display());
        fs::write(root.join("x.cf"), format!("{table} {table}\n").repeat(20)).unwrap();
        assert_eq!(read(&[&table]).readable, [root]);
    }

    #[test]
    fn a_service_that_writes_writes_there_and_to_its_data() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        let table = format!("lmdb:{}/cache", root.display());
        let reach = of(
            Role::Write,
            [table.as_bytes()],
            Path::new("/data"),
            &main_cf(),
        );
        assert_eq!(reach.writable, [root, PathBuf::from("/data")]);
        assert!(reach.readable.is_empty());
    }
}
