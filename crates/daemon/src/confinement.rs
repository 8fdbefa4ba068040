//! Least privilege: what a daemon gives up once it knows what it needs.
//!
//! Off unless `postkeep_least_privilege` says otherwise; `postkeep serve` switches it on. A kernel that lacks a
//! part of it is told about in one line, and the daemon serves all the same.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postkeep_conf::{BoolParameter, Dictionary, Error, Sink, StrParameter, split_list};
use postkeep_sys::confine::{self, Enforced, Reach};
use postkeep_sys::error_text;

/// What every daemon may read: libraries, configuration, name services.
const READABLE: [&str; 13] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/run",
    "/var/run",
    "/var/lib/extrausers",
    "/var/lib/sss",
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
    "/sys/devices/system/cpu",
];

/// What every daemon may write to.
const WRITABLE: [&str; 1] = ["/dev/null"];

/// What the parameters say, and whether it has been done.
#[derive(Debug)]
pub(crate) struct Confinement {
    wanted: bool,
    /// `postkeep_least_privilege_paths`
    also: Vec<PathBuf>,
    /// TCP ports on which metrics are served, also when they become free only later.
    ports: Vec<u16>,
}

impl Confinement {
    /// Reads the parameters.
    pub(crate) fn read(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Self, Error> {
        let wanted = dictionary.bool(
            &BoolParameter {
                name: "postkeep_least_privilege",
                default: false,
            },
            sink,
        )?;
        let paths = dictionary.str(
            &StrParameter {
                name: "postkeep_least_privilege_paths",
                default: "",
                min: 0,
                max: 0,
            },
            sink,
        )?;
        Ok(Self {
            wanted,
            also: split_list(&paths)
                .map(|path| PathBuf::from(OsStr::from_bytes(path)))
                .collect(),
            ports: Vec::new(),
        })
    }

    /// Keeps the right to listen on these ports.
    pub(crate) fn listens_on(&mut self, ports: impl Iterator<Item = u16>) {
        self.ports.extend(ports);
    }

    /// Gives up all but `reach`, if that is wanted; once.
    pub(crate) fn apply(&mut self, mut reach: Reach, config_directory: &Path) {
        if !std::mem::take(&mut self.wanted) {
            return;
        }
        reach.readable.extend(READABLE.map(PathBuf::from));
        reach.readable.push(config_directory.to_owned());
        reach.readable.append(&mut self.also);
        reach.ports.append(&mut self.ports);
        reach.writable.extend(WRITABLE.map(PathBuf::from));
        let missing: Vec<&str> = [
            told(
                confine::restrict_files(&reach),
                [
                    "files and connections (landlock)",
                    "newer parts of files and connections (landlock)",
                ],
            ),
            told(
                confine::refuse_calls(reach.copies),
                ["system calls (seccomp)", "some system calls (seccomp)"],
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !missing.is_empty() {
            log::info!(
                "least privilege: not enforced by this kernel: {}",
                missing.join(", ")
            );
        }
    }
}

/// The name of what is not enforced: all of it, or a part.
fn told(
    outcome: std::io::Result<Enforced>,
    [all, part]: [&'static str; 2],
) -> Option<&'static str> {
    match outcome {
        Ok(Enforced::Fully) => None,
        Ok(Enforced::Partly) => Some(part),
        Ok(Enforced::NotAtAll) => Some(all),
        Err(error) => {
            log::warn!("least privilege: {all}: {}", error_text(&error));
            Some(all)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postkeep_conf::Release;

    #[test]
    fn off_unless_asked_for() {
        let read = |text: &[u8]| {
            let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
            dictionary.load(text, "main.cf", &mut Vec::new()).unwrap();
            Confinement::read(&mut dictionary, &mut Vec::new()).unwrap()
        };
        assert!(!read(b"").wanted);
        let confinement = read(
            b"postkeep_least_privilege = yes\npostkeep_least_privilege_paths = /srv/a, /srv/b\n",
        );
        assert!(confinement.wanted);
        assert_eq!(
            confinement.also,
            [PathBuf::from("/srv/a"), PathBuf::from("/srv/b")]
        );
    }

    #[test]
    fn what_is_missing_has_a_name() {
        let names = ["all", "part"];
        assert_eq!(told(Ok(Enforced::Fully), names), None);
        assert_eq!(told(Ok(Enforced::Partly), names), Some("part"));
        assert_eq!(told(Ok(Enforced::NotAtAll), names), Some("all"));
    }
}
