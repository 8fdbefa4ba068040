//! postconf(1): shows parameters and entries of master.cf. The logic is in [`postkeep_conf::postconf`]; here are
//! the files and the machine.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use postkeep_conf::postconf::{self, FileFault, Files, Machine, Stream};
use postkeep_conf::{Interface, Release, is_hot};
use postkeep_sys::{error_text, interface, process};

/// Where the configuration is unless the command line or the environment say otherwise.
const CONFIG_DIRECTORY: &[u8] = b"/etc/postfix";

/// How long a file is left alone that may still be written.
const COOLING: Duration = Duration::from_millis(300);

/// How often a file is read that never stops changing.
const READINGS_LIMIT: usize = 20;

/// Runs postconf; messages begin with `name` as it is.
pub(crate) fn run(
    name: &OsStr,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> ExitCode {
    // The reader of a pipe may go away early: that ends the program, as it ends the reference.
    let _ = process::restore_broken_pipe();
    let words: Vec<Vec<u8>> = arguments
        .into_iter()
        .map(|word| word.as_ref().as_bytes().to_vec())
        .collect();
    let mail_config = std::env::var_os("MAIL_CONFIG");
    let host_name = process::host_name().unwrap_or_default();
    let interfaces: Vec<_> = interface::addresses()
        .unwrap_or_default()
        .into_iter()
        .map(|interface::Address { address, prefix }| Interface { address, prefix })
        .collect();
    let machine = Machine {
        release: Release::default(),
        built_in_directory: CONFIG_DIRECTORY,
        mail_config: mail_config.as_deref().map(OsStr::as_bytes),
        host_name: host_name.as_bytes(),
        process_id: std::process::id(),
        interfaces: &interfaces,
        files: &Disk,
    };
    let outcome = postconf::run(name.as_bytes(), &words, &machine);
    for (stream, piece) in outcome.output {
        // Nobody is left to be told when these fail.
        let _ = match stream {
            Stream::Stdout => write(&mut io::stdout(), &piece),
            Stream::Stderr => write(&mut io::stderr(), &piece),
        };
    }
    ExitCode::from(outcome.status)
}

fn write(stream: &mut impl io::Write, piece: &[u8]) -> io::Result<()> {
    stream.write_all(piece)?;
    stream.flush()
}

/// The files of this machine.
struct Disk;

impl Files for Disk {
    fn read_settled(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FileFault> {
        let mut readings = Vec::new();
        let mut before = SystemTime::now();
        loop {
            let (text, modified) = read(path)?;
            readings.push(text);
            let after = SystemTime::now();
            if !is_hot(modified, before, after) || readings.len() >= READINGS_LIMIT {
                return Ok(readings);
            }
            before = after;
            std::thread::sleep(COOLING);
        }
    }

    fn read(&self, path: &[u8]) -> Result<Vec<u8>, FileFault> {
        read(path).map(|(text, _)| text)
    }

    fn read_regular(&self, path: &[u8]) -> Result<Vec<u8>, FileFault> {
        // Asked before opening, which would wait for the writer of a named pipe.
        let metadata = fs::metadata(OsStr::from_bytes(path)).map_err(|error| open_fault(&error))?;
        if !metadata.is_file() {
            return Err(FileFault::NotRegular);
        }
        self.read(path)
    }
}

fn open_fault(error: &io::Error) -> FileFault {
    match error.kind() {
        io::ErrorKind::PermissionDenied => FileFault::Denied(error_text(error)),
        _ => FileFault::Open(error_text(error)),
    }
}

/// A file's text, and when it was changed last.
fn read(path: &[u8]) -> Result<(Vec<u8>, SystemTime), FileFault> {
    let read_fault = |error: io::Error| FileFault::Read(error_text(&error));
    let mut file = fs::File::open(OsStr::from_bytes(path)).map_err(|error| open_fault(&error))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(read_fault)?;
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    Ok((text, modified.map_err(read_fault)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_say_what_the_system_said() {
        let missing = FileFault::Open("No such file or directory".to_owned());
        assert_eq!(Disk.read(b"/nonexistent/main.cf"), Err(missing));
        assert_eq!(Disk.read_regular(b"/"), Err(FileFault::NotRegular));
        assert_eq!(
            Disk.read_settled(b"/"),
            Err(FileFault::Read("Is a directory".to_owned()))
        );
    }

    #[test]
    fn fresh_files_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.cf");
        fs::write(&path, "a = b\n").unwrap();
        let path = path.as_os_str().as_bytes();
        assert!(Disk.read_settled(path).unwrap().len() > 1);
        let long_ago = SystemTime::now() - Duration::from_hours(1);
        fs::File::options()
            .append(true)
            .open(OsStr::from_bytes(path))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert_eq!(Disk.read_settled(path), Ok(vec![b"a = b\n".to_vec()]));
    }
}
