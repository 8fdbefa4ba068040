//! The tables that are looked up in, and the keys.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::{RealPostfix, Scratch};

/// Which rule of a pattern table matches, or which entry of a file is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Entries all over the file; one key in eight is not there.
    Mixed,
    /// The first rule.
    Early,
    /// The last rule.
    Late,
    /// No rule.
    Never,
}

impl Place {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Early => "early",
            Self::Late => "late",
            Self::Never => "never",
        }
    }
}

/// Lookups of one sort in one table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// The table type.
    pub(crate) kind: &'static str,
    pub(crate) entries: usize,
    pub(crate) place: Place,
}

/// The table types whose lookups go through rules from first to last.
pub(crate) const PATTERNS: [&str; 3] = ["cidr", "pcre", "regexp"];
/// The table types that hold exact keys.
pub(crate) const INDEXED: [&str; 5] = ["lmdb", "cdb", "hash", "btree", "texthash"];
/// Answers all keys alike: what reading a key and printing an answer costs without a table.
pub(crate) const BARE: &str = "static";
/// The rules of the smallest pattern tables.
pub(crate) const FEW_RULES: usize = 10;

/// The numbers of rules in pattern tables of this type, fewest first.
fn rules(kind: &str) -> [usize; 3] {
    if kind == "cidr" {
        [FEW_RULES, 5_000, 20_000]
    } else {
        [FEW_RULES, 2_000, 5_000]
    }
}

/// All workloads; `many` is the number of entries of the large indexed files.
pub(crate) fn workloads(many: usize) -> Vec<Workload> {
    let mut all = vec![Workload {
        kind: BARE,
        entries: 1,
        place: Place::Mixed,
    }];
    for kind in INDEXED {
        all.extend([1_000, many].map(|entries| Workload {
            kind,
            entries,
            place: Place::Mixed,
        }));
    }
    for kind in PATTERNS {
        for entries in rules(kind) {
            all.extend(
                [Place::Early, Place::Late, Place::Never].map(|place| Workload {
                    kind,
                    entries,
                    place,
                }),
            );
        }
    }
    all
}

impl Workload {
    pub(crate) fn name(&self) -> String {
        format!("{} {} {}", self.kind, self.entries, self.place.word())
    }

    /// The file below the directory of tables, as `type:name` has it (without the type's suffix).
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        root.join(format!("tables/{}-{}", self.kind, self.entries))
    }

    /// The table as `type:name`.
    pub(crate) fn table(&self, root: &Path) -> String {
        if self.kind == BARE {
            return "static:answer".to_owned();
        }
        format!("{}:{}", self.kind, self.path(root).display())
    }

    /// The `number`th key, and the answer when there is one.
    pub(crate) fn key(&self, number: usize) -> (String, Option<String>) {
        let last = self.entries - 1;
        match (self.kind, self.place) {
            (BARE, _) => (
                format!("user{number}@example.test"),
                Some("answer".to_owned()),
            ),
            (_, Place::Mixed) => {
                // Multiples of a prime wander over the whole file.
                let entry = number.wrapping_mul(15_485_863) % self.entries;
                if number % 8 == 7 {
                    (format!("nobody{entry}@example.test"), None)
                } else {
                    (
                        format!("user{entry}@example.test"),
                        Some(format!("mailbox{entry}")),
                    )
                }
            }
            ("cidr", Place::Never) => (format!("192.0.2.{}", number % 256), None),
            ("cidr", place) => {
                let rule = if place == Place::Early { 0 } else { last };
                let address = format!("10.{}.{}.{}", rule / 256, rule % 256, number % 256);
                (address, Some(format!("REJECT {rule}")))
            }
            (_, Place::Never) => (format!("client{}.mail.example.org", number % 1000), None),
            (_, place) => {
                let rule = if place == Place::Early { 0 } else { last };
                let host = format!("client{}.host{rule}.dynamic.example.net", number % 1000);
                (host, Some(format!("REJECT {rule}")))
            }
        }
    }

    /// The text of the table's source file.
    fn source(&self) -> String {
        let mut text = String::new();
        for entry in 0..self.entries {
            let ends = entry == 0 || entry == self.entries - 1;
            let line = match (self.kind, entry % 4) {
                ("cidr", 2) if !ends => format!("2001:db8:{entry:x}::/48 REJECT {entry}"),
                ("cidr", _) => {
                    format!("10.{}.{}.0/24 REJECT {entry}", entry / 256, entry % 256)
                }
                ("pcre" | "regexp", 1) if !ends => {
                    format!(r"/^user{entry}@example{entry}\.test$/ REJECT {entry}")
                }
                ("pcre" | "regexp", 2) if !ends => {
                    format!(r"/^[^@]+@mail{entry}\.(com|net|org)$/ REJECT {entry} $1")
                }
                ("pcre" | "regexp", 3) if !ends => {
                    format!(r"/(foo{entry}|bar{entry})-[0-9]+\.example/ REJECT {entry} $1")
                }
                ("pcre" | "regexp", _) => {
                    format!(r"/host{entry}\.dynamic\.example\.net/ REJECT {entry}")
                }
                _ => format!("user{entry}@example.test mailbox{entry}"),
            };
            writeln!(text, "{line}").expect("a string takes all");
        }
        text
    }

    /// Writes the table's file, unless it is there.
    ///
    /// Files that are made from source are made by Postfix, so that both read the same bytes.
    pub(crate) fn prepare(&self, scratch: &Scratch, real: &RealPostfix) -> Result<()> {
        let path = self.path(scratch.path());
        if self.kind == BARE || path.exists() {
            return Ok(());
        }
        scratch.directory("tables", 0o755)?;
        scratch.directory("etc", 0o755)?;
        scratch.file("etc/main.cf", "lmdb_map_size = 268435456\n")?;
        let name = format!("tables/{}-{}", self.kind, self.entries);
        scratch.file(&name, &self.source())?;
        age(&path, Duration::from_secs(20))?;
        let suffix = match self.kind {
            "lmdb" => "lmdb",
            "cdb" => "cdb",
            "hash" | "btree" => "db",
            _ => return Ok(()),
        };
        let status = postmap(real.command("postmap"), scratch.path())
            .arg(self.table(scratch.path()))
            .status()?;
        ensure!(status.success(), "postmap {}: {status}", self.name());
        age(&path.with_extension(suffix), Duration::from_secs(10))
    }
}

/// Completes the command of a postmap with the configuration of the benchmark.
pub(crate) fn postmap(mut command: Command, root: &Path) -> Command {
    command.arg("-c").arg(root.join("etc"));
    command
}

/// Dates a file back: one of this very second would be taken for one that still changes.
fn age(path: &Path, by: Duration) -> Result<()> {
    fs::File::options()
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?
        .set_modified(SystemTime::now() - by)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_holds_the_entries_that_its_keys_want() {
        for workload in workloads(2_000) {
            if workload.kind == BARE {
                continue;
            }
            let source = workload.source();
            assert_eq!(
                source.lines().count(),
                workload.entries,
                "{}",
                workload.name()
            );
            for number in 0..64 {
                if let (_, Some(answer)) = workload.key(number) {
                    let end = format!(" {answer}\n");
                    assert!(source.contains(&end), "{}: {answer}", workload.name());
                }
            }
        }
    }
}
