//! Temporary directories that unprivileged daemons can reach.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

/// A directory of mode 0755 under the system's temporary directory, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Makes one. `KEEP_SCRATCH` in the environment keeps it, and prints where it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(purpose: &str) -> Result<Self> {
        let mut directory = tempfile::Builder::new()
            .prefix(&format!("postkeep-{purpose}-"))
            .tempdir()
            .context("cannot make a temporary directory")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        if std::env::var_os("KEEP_SCRATCH").is_some() {
            directory.disable_cleanup(true);
            eprintln!("kept: {}", directory.path().display());
        }
        Ok(Self { directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a subdirectory with this mode (permission bits).
    ///
    /// # Errors
    /// The file system's.
    pub fn directory(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// Writes a file of mode 0644 below the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }
}

/// Gives `path` to `owner` (`user` or `user:group`), by chown(1).
///
/// # Errors
/// When chown does not succeed.
pub fn give_to(owner: &str, path: &Path) -> Result<()> {
    let status = Command::new("chown").arg(owner).arg(path).status()?;
    ensure!(
        status.success(),
        "chown {owner} {}: {status}",
        path.display()
    );
    Ok(())
}

/// The text of main.cf with these parameters; `$SCRATCH` in a value becomes `root`.
pub fn main_cf(parameters: &BTreeMap<String, String>, root: &str) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        text.extend([name, " = ", &value.replace("$SCRATCH", root), "\n"]);
    }
    text
}
