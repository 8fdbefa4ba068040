//! Option files of the server's client programs (`my.cnf`): groups of `name = value`.
//!
//! # References
//! MariaDB's manual, "Configuring MariaDB Connector/C with Option Files".

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use log::warn;
use postkeep_sys::error_text;

/// How deep files may include others.
const DEPTH: usize = 10;

/// The options of the groups that count; a later line wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    values: BTreeMap<String, String>,
    /// The files that were read.
    pub(super) files: Vec<PathBuf>,
}

impl Options {
    /// Reads a file. One that cannot be read is told of and is as if it were empty, as for the client library.
    ///
    /// - `group`: counts beside those that are for every client; empty for none
    pub(super) fn read(file: &Path, group: &str) -> Self {
        let mut options = Self::default();
        options.add_file(file, group, DEPTH);
        options
    }

    /// The value of an option, named with `-`; empty for one without.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// An option that has a value.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value(name).filter(|value| !value.is_empty())
    }

    /// An option that switches something on.
    pub(super) fn is_on(&self, name: &str) -> Option<bool> {
        let value = self.value(name)?.to_ascii_lowercase();
        Some(matches!(&value[..], "" | "1" | "on" | "true"))
    }

    fn add_file(&mut self, file: &Path, group: &str, depth: usize) {
        let unread = |why: &str| warn!("option file {}: {why}", file.display());
        if depth == 0 {
            unread("included too deeply");
            return;
        }
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) => {
                unread(&error_text(&error));
                return;
            }
        };
        self.files.push(file.to_owned());
        let mut counts = false;
        for line in String::from_utf8_lossy(&text).lines() {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("!includedir") {
                self.add_directory(Path::new(name.trim()), group, depth);
            } else if let Some(name) = line.strip_prefix("!include") {
                self.add_file(Path::new(name.trim()), group, depth - 1);
            } else if let Some(name) = line.strip_prefix('[') {
                let name = name.split(']').next().unwrap_or_default().trim();
                counts = ["client", "client-server", "client-mariadb"].contains(&name)
                    || (!group.is_empty() && name == group);
            } else if counts && !line.is_empty() && !line.starts_with(['#', ';']) {
                let (name, value) = line.split_once('=').unwrap_or((line, ""));
                let name = name.trim().to_ascii_lowercase().replace('_', "-");
                self.values.insert(name, unquoted(value));
            }
        }
    }

    fn add_directory(&mut self, directory: &Path, group: &str, depth: usize) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "cnf"))
            .collect();
        files.sort();
        for file in files {
            self.add_file(&file, group, depth - 1);
        }
    }
}

/// A value without its quotes, its escapes resolved, without a comment behind it.
fn unquoted(text: &str) -> String {
    let text = text.trim();
    let quote = text
        .chars()
        .next()
        .filter(|letter| ['\'', '"'].contains(letter));
    let mut value = String::new();
    let mut letters = text.chars().skip(usize::from(quote.is_some()));
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some('b') => value.push('\u{8}'),
                Some('s') => value.push(' '),
                Some(other @ ('\\' | '\'' | '"')) => value.push(other),
                Some(other) => value.extend(['\\', other]),
                None => value.push('\\'),
            },
            _ if Some(letter) == quote => return value,
            '#' if quote.is_none() => break,
            _ => value.push(letter),
        }
    }
    if quote.is_some() {
        return value;
    }
    value.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_values_and_inclusions() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        fs::write(
            place.join("a.cnf"),
            format!(
                "user = lost\n[client]\nuser = one # who\npassword = 'a#b\\\\ '\n# socket = no\nssl\n\
                 [mysqld]\nport = 1\n[mine]\nport = 2\nssl_ca=/x y\n!include {0}/b.cnf\n!includedir {0}/d\n",
                place.display()
            ),
        )
        .unwrap();
        fs::write(place.join("b.cnf"), "[client]\nsocket=\"/s\"x\n").unwrap();
        fs::create_dir(place.join("d")).unwrap();
        fs::write(place.join("d/1.cnf"), "[client]\nuser=two\n").unwrap();
        fs::write(place.join("d/2.txt"), "[client]\nuser=three\n").unwrap();
        let file = place.join("a.cnf");
        let options = Options::read(&file, "mine");
        assert_eq!(options.text("user"), Some("two"));
        assert_eq!(options.text("password"), Some("a#b\\ "));
        assert_eq!(options.text("socket"), Some("/s"));
        assert_eq!(options.text("port"), Some("2"));
        assert_eq!(options.text("ssl-ca"), Some("/x y"));
        assert_eq!(options.is_on("ssl"), Some(true));
        assert_eq!(options.is_on("ssl-verify-server-cert"), None);
        assert_eq!(options.files.len(), 3);
        assert_eq!(Options::read(&file, "").text("port"), None);
        assert_eq!(
            Options::read(&place.join("none"), "client"),
            Options::default()
        );
        fs::write(&file, format!("!include {}\n", file.display())).unwrap();
        assert_eq!(Options::read(&file, "").files.len(), DEPTH);
    }
}
