//! `postkeep release`: takes back what [`adopt`](super::adopt) has done, from whatever state it was left in.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments of options are the help texts"
)]

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use postkeep_sys::{effective, error_text};

use super::adopt::installation::{Installation, config_directory};
use super::adopt::record::{Face, Record, Shelf, Slot, replace};
use super::adopt::{Instance, say, set_command};

/// Options of `postkeep release`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    instance: Instance,
    /// All Postfix instances that were adopted
    #[arg(long, conflicts_with = "config")]
    all: bool,
    /// Put the old master.cf back even if that undoes what others have changed in it since
    #[arg(long)]
    force: bool,
}

/// How master.cf came to be as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    /// Byte for byte.
    Whole,
    /// It had been edited since: only our commands were taken back.
    Edited,
    /// There is none any more.
    Gone,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    match release(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "postkeep: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn release(options: &Options) -> Result<(), String> {
    if effective::identity().0 != 0 {
        return Err("this takes root: it writes master.cf and reloads Postfix".to_owned());
    }
    let state = options.instance.state_directory.as_deref();
    let peek = Shelf::peek(state);
    let directories = if options.all {
        peek.all()
    } else {
        let directory = config_directory(options.instance.config.as_deref());
        // Reading the record first: without one nothing is created.
        if peek.slot(&directory).read()?.is_none() {
            say(format!("{} is not adopted.", directory.display()));
            return Ok(());
        }
        vec![directory]
    };
    if directories.is_empty() {
        say("No Postfix is adopted.");
        return Ok(());
    }
    let shelf = Shelf::open(state)?;
    for directory in directories {
        release_one(&shelf.slot(&directory), &directory, options.force)?;
    }
    Ok(())
}

fn release_one(slot: &Slot, directory: &Path, force: bool) -> Result<(), String> {
    let shown = directory.display();
    let restored = match Installation::inspect(Some(directory)) {
        Ok(installation) => take_back(&installation, slot, force)?,
        // Postfix is gone, or its main.cf broken: what is left may still be put back.
        Err(reason) => {
            let restored = restore_bytes(slot, &directory.join("master.cf"), force)?
                .ok_or_else(|| format!("{reason}; repair that first, or use --force"))?;
            // When it was master.cf that was broken, Postfix can be asked again.
            if let Ok(installation) = Installation::inspect(Some(directory)) {
                take_back(&installation, slot, force)?
            } else {
                slot.clear()?;
                say("Postfix was not reloaded.");
                restored
            }
        }
    };
    say(match restored {
        Restored::Whole => format!("{shown}/master.cf is what it was, byte for byte."),
        Restored::Edited => format!(
            "{shown}/master.cf was edited since: the commands are what they were, the edits were kept."
        ),
        Restored::Gone => format!("{shown}/master.cf is gone; the record of it was removed."),
    });
    Ok(())
}

/// Puts everything back and reloads a running Postfix.
///
/// # Errors
/// Something could not be put back; the record is still there.
pub(crate) fn take_back(
    installation: &Installation,
    slot: &Slot,
    force: bool,
) -> Result<Restored, String> {
    let Some(record) = slot.read()? else {
        // It had not begun.
        slot.clear()?;
        return Ok(Restored::Whole);
    };
    let restored = match restore_bytes(slot, &installation.master_cf(), force)? {
        Some(restored) => restored,
        None => restore(installation, slot, &record)?,
    };
    if restored != Restored::Gone && installation.is_running() {
        let reloaded = installation.postfix("reload")?;
        if !reloaded.status.success() {
            return Err(format!("postfix reload: {}", reloaded.complaint()));
        }
    }
    remove_traces(installation, &record);
    slot.clear()?;
    Ok(restored)
}

/// Removes the sockets at which services handed out metrics; processes that were killed have left theirs.
fn remove_traces(installation: &Installation, record: &Record) {
    let private = installation.directory("queue_directory").join("private");
    for entry in &record.entries {
        let Some((service, _)) = entry.key.rsplit_once('/') else {
            continue;
        };
        let socket = private.join(format!("{service}.metrics"));
        let is_socket =
            fs::symlink_metadata(&socket).is_ok_and(|found| found.file_type().is_socket());
        if is_socket {
            let _ = fs::remove_file(socket);
        }
    }
}

/// Puts the bytes back when nobody has changed the file since, or regardless; `None` when somebody has.
fn restore_bytes(slot: &Slot, master_cf: &Path, force: bool) -> Result<Option<Restored>, String> {
    let fault = |error: io::Error| format!("{}: {}", master_cf.display(), error_text(&error));
    let now = match fs::read(master_cf) {
        Ok(now) => now,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !force => {
            return Ok(Some(Restored::Gone));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(fault(error)),
    };
    let backup = slot.before();
    let before = fs::read(&backup)
        .map_err(|error| format!("{}: {}", backup.display(), error_text(&error)))?;
    if now == before {
        return Ok(Some(Restored::Whole));
    }
    let after = fs::read(slot.after()).ok();
    if after.as_ref() != Some(&now) && !force {
        return Ok(None);
    }
    if force && after.as_ref() != Some(&now) {
        let kept = master_cf.with_file_name("master.cf.postkeep-replaced");
        replace(&kept, &now, Face::of(&backup).map_err(fault)?)?;
        say(format!("What was in it is now in {}.", kept.display()));
    }
    replace(master_cf, &before, Face::of(&backup).map_err(fault)?)?;
    Ok(Some(Restored::Whole))
}

/// Takes our commands back. When nothing else is different from the copy, the copy is put back.
fn restore(installation: &Installation, slot: &Slot, record: &Record) -> Result<Restored, String> {
    let advice = |reason: String| format!("{reason}; repair master.cf first, or use --force");
    for entry in installation.entries().map_err(advice)? {
        let key = [&entry.name[..], b"/", entry.transport.name().as_bytes()].concat();
        let ours = record.entries.iter().find(|changed| {
            changed.key.as_bytes() == key && changed.after.as_bytes() == entry.command
        });
        if let Some(changed) = ours {
            set_command(installation, &changed.key, &changed.before).map_err(advice)?;
        }
    }
    let before = fs::read(slot.before()).map_err(|error| error_text(&error))?;
    let master_cf = installation.master_cf();
    let now = fs::read(&master_cf).map_err(|error| error_text(&error))?;
    if words(&now) == words(&before) {
        let face = Face::of(&slot.before()).map_err(|error| error_text(&error))?;
        replace(&master_cf, &before, face)?;
        return Ok(Restored::Whole);
    }
    Ok(Restored::Edited)
}

/// All words of the text, comments included: what postconf leaves alone when it writes an entry anew, but for the
/// blanks in braces.
fn words(text: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        let bare: Vec<u8> = line
            .iter()
            .copied()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        let continued = line.first().is_some_and(u8::is_ascii_whitespace);
        match lines.last_mut() {
            Some(last) if continued && !bare.starts_with(b"#") => last.extend(bare),
            _ => lines.push(bare),
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_an_entry_is_laid_out_does_not_matter() {
        let before = b"# a\nx unix - - n - 1 scache\n  -o a=b\n\ny unix - - n - - z\n";
        let after = b"# a\nx  unix  -  -  n  -  1  scache -o a=b\n\ny unix - - n - - z\n";
        let edited = b"# a\nx  unix  -  -  n  -  2  scache -o a=b\n\ny unix - - n - - z\n";
        assert_eq!(words(before), words(after));
        assert_ne!(words(before), words(edited));
    }
}
