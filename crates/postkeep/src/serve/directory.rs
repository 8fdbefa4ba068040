//! The directory that `postkeep serve` keeps everything in.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Name of the table that clients may also write to.
pub(crate) const CACHE: &str = "cache";

/// One directory of `postkeep serve`: main.cf, `queue/` with the sockets, `tables/` with the tables and
/// `data/` for what belongs to the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// The directory that was asked for, or the default of the invoking user.
    ///
    /// # Errors
    /// A reason when there is no default (no home directory) or the directory's name cannot be used.
    pub(crate) fn choose(asked: Option<&Path>) -> Result<Self, String> {
        let path = match asked {
            Some(path) => std::path::absolute(path)
                .map_err(|error| format!("directory {}: {error}", path.display()))?,
            None => default_path(postkeep_sys::privilege::is_root(), |name| {
                std::env::var_os(name)
            })
            .ok_or("there is no home directory to keep things in: name one with --directory")?,
        };
        // The names of tables appear in lists, where these bytes separate or enclose.
        match path
            .as_os_str()
            .as_bytes()
            .iter()
            .find(|&&byte| separates(byte))
        {
            Some(&byte) => Err(format!(
                "directory {}: {:?} cannot be part of a table's name",
                path.display(),
                char::from(byte)
            )),
            None => Ok(Self(path)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn main_cf(&self) -> PathBuf {
        self.0.join("main.cf")
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.0.join("queue")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    pub(crate) fn tables(&self) -> PathBuf {
        self.0.join("tables")
    }

    /// The `type:name` of a table of this directory.
    pub(crate) fn table(&self, name: &str) -> OsString {
        let mut text = OsString::from("lmdb:");
        text.push(self.tables().join(name));
        text
    }

    /// The tables that exist (`NAME.lmdb` in the tables directory) and the writable one, in order of name.
    ///
    /// Files whose name cannot be part of a list are left out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn list_tables(&self) -> io::Result<Vec<OsString>> {
        let mut tables = vec![self.table(CACHE)];
        for entry in fs::read_dir(self.tables())? {
            let name = entry?.file_name();
            if let Some(stem) = name.as_bytes().strip_suffix(b".lmdb")
                && !stem.is_empty()
                && !stem.iter().any(|&byte| separates(byte))
            {
                let mut text = OsString::from("lmdb:");
                text.push(self.tables().join(OsString::from_vec(stem.to_vec())));
                tables.push(text);
            }
        }
        tables.sort();
        tables.dedup();
        Ok(tables)
    }
}

fn separates(byte: u8) -> bool {
    matches!(byte, b',' | b'{' | b'}' | 0..=b' ')
}

/// - `root`: the invoking user is root
/// - `variable`: the environment
fn default_path(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if root {
        return Some("/var/lib/postkeep".into());
    }
    let absolute = |name: &str| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|state| state.join("postkeep"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_follows_the_user() {
        let environment = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|pair| pair.0 == name)
                    .map(|pair| OsString::from(pair.1))
            }
        };
        let home = environment(&[("HOME", "/home/u")]);
        assert_eq!(
            default_path(false, home),
            Some("/home/u/.local/state/postkeep".into())
        );
        let xdg = environment(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")]);
        assert_eq!(default_path(false, xdg), Some("/s/postkeep".into()));
        assert_eq!(default_path(true, xdg), Some("/var/lib/postkeep".into()));
        let relative = environment(&[("XDG_STATE_HOME", "s")]);
        assert_eq!(default_path(false, relative), None);
    }

    #[test]
    fn names_that_lists_cannot_hold_are_refused() {
        assert!(Directory::choose(Some(Path::new("/tmp/a b"))).is_err());
        assert!(Directory::choose(Some(Path::new("/tmp/a,b"))).is_err());
        assert!(Directory::choose(Some(Path::new("/tmp/a-b"))).is_ok());
    }

    #[test]
    fn tables_are_listed_with_the_writable_one() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory(scratch.path().to_owned());
        fs::create_dir(directory.tables()).unwrap();
        for name in [
            "users.lmdb",
            "users.lmdb-lock",
            "cache.lmdb",
            "not a list.lmdb",
            ".lmdb",
            "users",
        ] {
            fs::write(directory.tables().join(name), "").unwrap();
        }
        assert_eq!(
            directory.list_tables().unwrap(),
            [directory.table("cache"), directory.table("users")]
        );
    }
}
