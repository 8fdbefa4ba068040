//! The tables that a configuration uses through the service: approved, supported, there, and readable?

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use postkeep_sys::berkeley;
use postkeep_tables::Capabilities;

use super::{Examination, Finding, Level, access};
use crate::commands::adopt::installation::shell;
use crate::commands::adopt::uses::{Use, approved, approving_command, line_of};

impl Examination {
    /// One use of a table.
    pub(super) fn table(&mut self, table: &Use) {
        let place = match &table.entry {
            Some(_) => self.installation.master_cf(),
            None => self.main_cf(),
        };
        let line = if table.entry.is_none() {
            line_of(&place, &table.parameter)
        } else {
            None
        };
        let parameter = match &table.entry {
            Some(entry) => format!("{} of {entry}", table.parameter),
            None => table.parameter.clone(),
        };
        let finding = |level, what: String| {
            Finding::new(level, what)
                .at(place.clone(), line)
                .parameter(&parameter)
        };
        let list = table.list();
        if !approved(&self.installation, list).contains(table.table.as_bytes()) {
            let what = format!(
                "the table proxy:{} is denied: {list} does not approve it",
                table.table
            );
            let mut denied = finding(Level::Broken, what);
            match approving_command(&self.installation, list, &table.table) {
                Ok(command) => denied.fix.push(command),
                Err(reason) => denied.what = format!("{} ({reason})", denied.what),
            }
            self.found
                .push(denied.fix(shell(&["postfix", "-c", &self.config, "reload"])));
        }
        let Some(row) = postkeep_tables::table_types()
            .iter()
            .find(|row| row.name == table.kind())
        else {
            let level = if self.is_adopted() {
                Level::Broken
            } else {
                Level::Advice
            };
            let what = format!(
                "proxymap of postkeep has no tables of the type {}: leave proxymap to Postfix",
                table.kind()
            );
            self.found.push(finding(level, what).fix(shell(&[
                "postkeep",
                "adopt",
                "--only",
                "scache",
                "-c",
                &self.config,
            ])));
            return;
        };
        if row.capabilities.contains(Capabilities::FILE) && table.name().starts_with('/') {
            let (file, source) = file_of(table);
            self.file(table, &finding, &file, source.as_deref());
        }
    }

    fn file(
        &mut self,
        table: &Use,
        finding: &dyn Fn(Level, String) -> Finding,
        file: &Path,
        source: Option<&Path>,
    ) {
        let shown = file.display();
        let make = shell(&["postmap", "-c", &self.config, &table.table]);
        let user = self.installation.value("mail_owner").to_owned();
        let metadata = match fs::metadata(file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if table.written {
                    // The service makes it; can it?
                    let directory = file.parent().unwrap_or(Path::new("/"));
                    if let (Some(owner), Ok(metadata)) = (&self.owner, fs::metadata(directory))
                        && !owner.may(&metadata, access::WRITE)
                    {
                        let what =
                            format!("{user} cannot make {shown}: the directory does not let it");
                        self.found.push(finding(Level::Broken, what));
                    }
                    return;
                }
                let missing = finding(Level::Broken, format!("{shown} is not there"));
                self.found.push(if source.is_some() {
                    missing.fix(make)
                } else {
                    missing
                });
                return;
            }
            Err(error) => {
                let what = format!("{shown}: {}", postkeep_sys::error_text(&error));
                self.found.push(finding(Level::Advice, what));
                return;
            }
        };
        let written = table.written;
        if let Some(owner) = &self.owner {
            let wanted = if written { access::WRITE } else { access::READ };
            if let Some(obstacle) = owner.obstacle(file, wanted) {
                let verb = if written { "write" } else { "read" };
                let what = format!("{user} cannot {verb} {shown}");
                let fix = if written && obstacle == file {
                    shell(&["chown", &user, &file.to_string_lossy()])
                } else {
                    let bits = if obstacle == file { "o+r" } else { "o+x" };
                    shell(&["chmod", bits, &obstacle.to_string_lossy()])
                };
                self.found.push(finding(Level::Broken, what).fix(fix));
            }
        }
        if let Some(source) = source
            && let Ok(text) = fs::metadata(source)
            && let (Ok(made), Ok(changed)) = (metadata.modified(), text.modified())
            && changed > made
            && !written
        {
            let what = format!(
                "{} was changed after {shown} was made of it",
                source.display()
            );
            self.found.push(finding(Level::Advice, what).fix(make));
        }
    }

    /// Berkeley DB files are written through a library.
    pub(super) fn library(&mut self, uses: &[Use]) {
        let berkeley = |kind: &str| kind == "hash" || kind == "btree";
        let Some(used) = uses
            .iter()
            .find(|table| table.written && berkeley(table.kind()))
        else {
            return;
        };
        if let Err(error) = berkeley::library() {
            let what = format!("proxywrite cannot store in {} tables: {error}", used.kind());
            let main_cf = self.main_cf();
            let line = line_of(&main_cf, &used.parameter);
            self.found.push(
                Finding::new(Level::Broken, what)
                    .at(main_cf, line)
                    .parameter(&used.parameter)
                    .fix("apt-get install libdb5.3"),
            );
        }
    }
}

/// The file of a table, and the source that it is made of.
fn file_of(table: &Use) -> (PathBuf, Option<PathBuf>) {
    let suffix = match table.kind() {
        "hash" | "btree" => "db",
        "lmdb" => "lmdb",
        "cdb" => "cdb",
        _ => return (table.name().into(), None),
    };
    (
        format!("{}.{suffix}", table.name()).into(),
        Some(table.name().into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_files_have_their_suffix() {
        let of = |table: &str| {
            file_of(&Use {
                table: table.to_owned(),
                parameter: String::new(),
                entry: None,
                written: false,
            })
            .0
        };
        assert_eq!(of("hash:/etc/a"), Path::new("/etc/a.db"));
        assert_eq!(of("lmdb:/etc/a"), Path::new("/etc/a.lmdb"));
        assert_eq!(of("texthash:/etc/a"), Path::new("/etc/a"));
    }
}
