//! Which programs there are to test: ours, and those of an installed Postfix.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Whose daemon a test drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// Postfix's own: the control.
    Postfix,
    /// Ours.
    Postkeep,
}

impl Implementation {
    /// The executable that serves as `daemon` (`scache` or `proxymap`); ours is one file for both, told by
    /// argument 0.
    ///
    /// `None`, after saying so, when it is not there.
    pub fn executable(self, daemon: &str) -> Option<PathBuf> {
        match self {
            Self::Postfix => Some(real_postfix()?.daemon_directory.join(daemon)),
            Self::Postkeep => postkeep_binary(),
        }
    }
}

/// Says loudly that a test cannot run here.
///
/// # Panics
/// When `CI` is set in the environment: there a skipped test is a failed one.
pub fn skip(what: &str) {
    eprintln!("SKIP: {what}");
    assert!(env::var_os("CI").is_none(), "skipped under CI: {what}");
}

/// Our executable: `POSTKEEP_BIN`, else the one beside the running test (`target/debug` or
/// `target/release`). Builds nothing.
///
/// `None`, after a [`skip`], when there is none.
///
/// # Panics
/// Under CI, when there is none.
pub fn postkeep_binary() -> Option<PathBuf> {
    if let Some(path) = env::var_os("POSTKEEP_BIN") {
        return Some(PathBuf::from(path));
    }
    let running = env::current_exe().ok()?;
    let found = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("postkeep"))
        .find(|path| path.is_file());
    if found.is_none() {
        skip("no postkeep executable: build it first, or name it in POSTKEEP_BIN");
    }
    found
}

/// The executable of an example of one of our crates, beside the running test. Builds nothing; `cargo test` for the
/// whole workspace does.
///
/// `None`, after a [`skip`], when there is none.
///
/// # Panics
/// Under CI, when there is none.
pub fn example_binary(name: &str) -> Option<PathBuf> {
    let running = env::current_exe().ok()?;
    let found = running
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("examples").join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("no example {name}: build it first"));
    }
    found
}

/// Where an installed Postfix keeps its programs.
#[derive(Clone, Debug)]
pub struct RealPostfix {
    /// `daemon_directory`: master, smtpd, scache ...
    pub daemon_directory: PathBuf,
    /// `command_directory`: postmap, postfix, smtp-source ...
    pub command_directory: PathBuf,
    /// `mail_version`.
    pub version: String,
}

impl RealPostfix {
    /// A command such as `postmap`.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.command_directory.join(name))
    }
}

/// Finds the installed Postfix; `None`, after a [`skip`], when something that tests need is missing.
///
/// # Panics
/// Under CI, when something is missing.
pub fn real_postfix() -> Option<RealPostfix> {
    match look_for_postfix() {
        Ok(found) => Some(found),
        Err(error) => {
            skip(&format!("no usable Postfix: {error:#}"));
            None
        }
    }
}

fn look_for_postfix() -> Result<RealPostfix> {
    let postconf = ["/usr/sbin/postconf", "/usr/local/sbin/postconf"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .context("postconf is not installed")?;
    let output = Command::new(postconf)
        .args([
            "-dh",
            "daemon_directory",
            "command_directory",
            "mail_version",
        ])
        .output()
        .context("postconf does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let mut next = || {
        lines
            .next()
            .map(str::to_owned)
            .context("postconf printed too little")
    };
    let found = RealPostfix {
        daemon_directory: next()?.into(),
        command_directory: next()?.into(),
        version: next()?,
    };
    for daemon in [
        "master", "smtpd", "smtp", "cleanup", "qmgr", "verify", "scache", "proxymap", "postlogd",
    ] {
        let path = found.daemon_directory.join(daemon);
        ensure!(path.is_file(), "{} is missing", path.display());
    }
    for command in ["postmap", "postfix", "smtp-source", "smtp-sink"] {
        let path = found.command_directory.join(command);
        ensure!(path.is_file(), "{} is missing", path.display());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "a private Postfix can only be started by root"
    );
    Ok(found)
}
