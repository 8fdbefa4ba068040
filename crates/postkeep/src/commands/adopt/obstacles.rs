//! What could be in the way of an adoption; each function gives the reason not to begin.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use postkeep_conf::master_cf::Entry;
use postkeep_sys::error_text;

use super::installation::{Installation, path_of, run, shell};
use super::uses;

/// Somebody is in the middle of changing master.cf, or it is no plain file.
pub(super) fn unsettled(master_cf: &Path) -> Option<String> {
    let shown = master_cf.display();
    let name = master_cf.file_name()?.to_string_lossy();
    for other in [
        format!(".{name}.swp"),
        format!(".#{name}"),
        format!("#{name}#"),
    ] {
        let path = master_cf.with_file_name(other);
        if path.symlink_metadata().is_ok() {
            return Some(format!(
                "somebody seems to be editing {shown}: there is {}",
                path.display()
            ));
        }
    }
    match master_cf.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => Some(format!(
            "{shown} is a symbolic link, which postconf would replace by a file: make it a file first"
        )),
        Ok(metadata) if !metadata.is_file() => Some(format!("{shown} is no file")),
        Ok(_) => None,
        Err(error) => Some(format!("{shown}: {}", error_text(&error))),
    }
}

/// A directory that nothing can be written in.
pub(super) fn read_only(directory: &Path) -> Option<String> {
    let path = directory.join(format!(".postkeep-{}", std::process::id()));
    match fs::File::create_new(&path) {
        Ok(_) => {
            let _ = fs::remove_file(&path);
            None
        }
        Err(error) => Some(format!(
            "nothing can be written in {}: {}",
            directory.display(),
            error_text(&error)
        )),
    }
}

/// Who else could change what master(8) will start as root?
pub(super) fn untrusted(executable: &Path) -> Option<String> {
    for path in executable.ancestors() {
        let Ok(metadata) = path.metadata() else {
            return Some(format!("cannot look at {}", path.display()));
        };
        let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.uid() != 0 || (metadata.mode() & 0o022 != 0 && !sticky) {
            let advice = shell(&[
                "install",
                "-m",
                "755",
                &executable.to_string_lossy(),
                "/usr/local/bin/postkeep",
            ]);
            return Some(format!(
                "Postfix would start {} as root, but others than root can change {}: first do {advice}, \
                 and start that one",
                executable.display(),
                path.display()
            ));
        }
    }
    None
}

/// Approved tables of types that our proxymap does not have.
pub(super) fn unsupported_tables(installation: &Installation) -> Vec<String> {
    let known = |kind: &str| {
        postkeep_tables::table_types()
            .iter()
            .any(|row| row.name == kind)
    };
    let mut reasons = Vec::new();
    for list in ["proxy_read_maps", "proxy_write_maps"] {
        for table in uses::approved(installation, list).sorted() {
            let table = String::from_utf8_lossy(table);
            let kind = table.split(':').next().unwrap_or_default();
            if !known(kind) {
                reasons.push(format!(
                    "{list} has proxy:{table}, and this proxymap has no tables of the type {kind} \
                     (--only scache leaves proxymap to Postfix)"
                ));
            }
        }
    }
    reasons
}

/// Starts a daemon as master(8) would, but to serve nobody: does it accept its configuration?
pub(super) fn dry_start(
    installation: &Installation,
    executable: &Path,
    entry: &Entry,
    name: &str,
) -> Option<String> {
    let mut command = Command::new(executable);
    let version = format!("mail_version={}", installation.version);
    command.arg0(name).args(["-S", "-V", "-o", &version]);
    for word in entry.argv(true, false, false).iter().skip(1) {
        command.arg(path_of(word));
    }
    command
        .env_clear()
        .env("MAIL_CONFIG", &installation.config_directory);
    match run(&mut command) {
        Ok(ran) if ran.status.success() => None,
        Ok(ran) => Some(format!(
            "{} does not start as {name} with this configuration: {}",
            executable.display(),
            ran.complaint()
        )),
        Err(reason) => Some(reason),
    }
}
