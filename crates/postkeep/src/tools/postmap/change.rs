//! Creating tables, adding to them and deleting from them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use log::warn;
use postkeep_sys::{effective, error_text, process};
use postkeep_table::{Access, Flags, Outcome as Found, Printable, Table, TableName};
use postkeep_tables::{BuildError, BuildMode, Builder, Style, parse_source, read_file_values};

use super::options::{Action, Program};
use super::{Command, Fatal, Outcome, alias, for_each_line};

impl Command {
    /// `-d`.
    pub(super) fn delete(&self, key: &[u8]) -> Outcome {
        let delete = |table: &Arc<dyn Table>, key: &[u8]| {
            table
                .delete(self.access_flags(), key)
                .map(|outcome| outcome == Found::Done)
                .map_err(|error| Fatal::of_table(table.name(), "delete", &error))
        };
        let open = |operand: &OsStr| self.open(&self.table_name(operand)?, Access::ReadWrite);
        let mut found = false;
        if key == b"-" {
            let tables = self
                .options
                .operands
                .iter()
                .map(|operand| open(operand))
                .collect::<Result<Vec<_>, _>>()?;
            for_each_line(|key| {
                for table in &tables {
                    found |= delete(table, key)?;
                }
                Ok(())
            })?;
        } else {
            for operand in &self.options.operands {
                found |= delete(&open(operand)?, key)?;
            }
        }
        Ok(found)
    }

    /// Create, and `-i`.
    pub(super) fn build_all(&self) -> Outcome {
        let first = effective::identity();
        for operand in &self.options.operands {
            let result = self.build(&self.table_name(operand)?);
            if effective::identity() != first {
                effective::assume(first.0, first.1)
                    .map_err(|error| cannot_assume(first, &error))?;
            }
            result?;
        }
        Ok(true)
    }

    fn build(&self, name: &TableName) -> Result<(), Fatal> {
        let mode = if self.options.action == Action::Add {
            BuildMode::Add
        } else {
            BuildMode::Create
        };
        let shown = Printable(name.name());
        let mut source = match mode {
            BuildMode::Add => io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map(File::from)
                .map_err(|error| Fatal(format!("open stdin: {}", error_text(&error))))?,
            BuildMode::Create => {
                if name.kind() == b"proxy" {
                    return Err(Fatal("can't create maps via the proxy service".to_owned()));
                }
                File::open(OsStr::from_bytes(name.name()))
                    .map_err(|error| Fatal(format!("open {shown}: {}", error_text(&error))))?
            }
        };
        let metadata = source
            .metadata()
            .map_err(|error| Fatal(format!("fstat {shown}: {}", error_text(&error))))?;
        let mut builder = self.open_builder(name, mode, &metadata)?;

        let called: &[u8] = if mode == BuildMode::Add {
            b"stdin"
        } else {
            name.name()
        };
        let mut text = Vec::new();
        source.read_to_end(&mut text).map_err(|error| {
            Fatal(format!(
                "read {}: {}",
                Printable(called),
                error_text(&error)
            ))
        })?;
        match self.program {
            Program::Postmap => self.add_entries(name, &text, called, &mut *builder)?,
            Program::Postalias => self.add_aliases(name, &text, called, mode, &mut *builder)?,
        }
        builder.finish().map_err(|error| failure(name, &error))
    }

    /// Opens the table with the mode and the owner that follow from the source.
    fn open_builder(
        &self,
        name: &TableName,
        mode: BuildMode,
        source: &Metadata,
    ) -> Result<Box<dyn Builder>, Fatal> {
        let old_mask = (self.options.save_mode && source.is_file())
            .then(|| process::set_umask(0o022 | (!source.mode() & 0o077)));
        let owner = (source.uid(), source.gid());
        if self.options.as_owner && effective::real_user_is_root() && effective::identity() != owner
        {
            effective::assume(owner.0, owner.1).map_err(|error| cannot_assume(owner, &error))?;
        }
        let mut flags = self.options.flags;
        if mode == BuildMode::Create {
            flags |= Flags::BULK_UPDATE;
        }
        let builder = self.registry.build(name, mode, flags);
        if let Some(mask) = old_mask {
            process::set_umask(mask);
        }
        builder.map_err(|error| Fatal(error.to_string()))
    }

    fn utf8(&self) -> bool {
        self.options.flags.contains(Flags::UTF8_REQUEST) && self.registry.context().smtputf8_enable
    }

    fn add_entries(
        &self,
        name: &TableName,
        text: &[u8],
        file: &[u8],
        builder: &mut dyn Builder,
    ) -> Result<(), Fatal> {
        let flags = self.options.flags;
        parse_source(
            text,
            file,
            self.utf8(),
            Style::Indexed,
            &mut |text| warn!("{text}"),
            |entry, warn| {
                let content;
                let value = if flags.contains(Flags::RHS_IS_FILE) {
                    match read_file_values(entry.value) {
                        Ok(value) => content = value,
                        Err(why) => {
                            warn(format!(
                                "{}, line {}: {why}: skipping this entry",
                                Printable(file),
                                entry.line
                            ));
                            return Ok(());
                        }
                    }
                    &content
                } else {
                    entry.value
                };
                builder
                    .add(flags, entry.key, value)
                    .map(|_| ())
                    .map_err(|error| failure(name, &error))
            },
        )
    }

    fn add_aliases(
        &self,
        name: &TableName,
        text: &[u8],
        file: &[u8],
        mode: BuildMode,
        builder: &mut dyn Builder,
    ) -> Result<(), Fatal> {
        let mut flags = self.options.flags;
        alias::parse(text, file, self.utf8(), |key, value| {
            builder
                .add(flags, key, value)
                .map(|_| ())
                .map_err(|error| failure(name, &error))
        })?;
        if mode == BuildMode::Add {
            flags |= Flags::DUP_REPLACE;
        }
        // sendmail(8) and NIS know by these entries that the table is complete, when it was made, and where.
        let add = |flags: Flags, key: &[u8], value: &[u8], builder: &mut dyn Builder| {
            builder
                .add(flags, key, value)
                .map(|_| ())
                .map_err(|error| failure(name, &error))
        };
        add(flags, b"@", b"@", builder)?;
        let plain = flags.difference(Flags::TRY1NULL | Flags::FOLD_FIX) | Flags::TRY0NULL;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        add(
            plain,
            b"YP_LAST_MODIFIED",
            format!("{now:010}").as_bytes(),
            builder,
        )?;
        add(plain, b"YP_MASTER_NAME", &self.host, builder)
    }
}

fn failure(name: &TableName, error: &BuildError) -> Fatal {
    Fatal(match error {
        BuildError::Write(why) => format!("table {name}: write error: {why}"),
        error => error.to_string(),
    })
}

fn cannot_assume(identity: (u32, u32), error: &io::Error) -> Fatal {
    let (user, group) = identity;
    Fatal(format!(
        "set_eugid: euid {user} egid {group}: {}",
        error_text(error)
    ))
}
