//! The logic of postconf(1): what it prints, given the texts of the files.
//!
//! Showing parameters (`-d`, `-n`, `-x`, `-h`, `-H`, `-f`, `-C`, `-o`) and master.cf entries (`-M`) is here;
//! editing, and the tables of other subsystems, are not.
//!
//! # References
//! postconf(1); Postfix `src/postconf/`.

mod client_files;
mod master;
mod options;
mod registry;
mod scan;
mod show;
#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::hosts::Interface;
use crate::release::Release;
use crate::sink::Sink;
use options::Options;
use registry::Registry;

/// What postconf finds around it.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Whose parameters and rules apply.
    pub release: Release,
    /// Used when neither `-c` nor `MAIL_CONFIG` names a directory.
    pub built_in_directory: &'a [u8],
    /// The variable `MAIL_CONFIG`, if it is set.
    pub mail_config: Option<&'a [u8]>,
    /// The name the machine calls itself.
    pub host_name: &'a [u8],
    /// Shown as `process_id`.
    pub process_id: u32,
    /// Addresses of this machine, for the default of `mynetworks`.
    pub interfaces: &'a [Interface],
    /// The files.
    pub files: &'a dyn Files,
}

/// Reads files for postconf.
pub trait Files {
    /// The text of a file, read again and again until it is no longer [hot](crate::is_hot): all readings, oldest
    /// first, at least one.
    ///
    /// # Errors
    /// [`FileFault`].
    fn read_settled(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FileFault>;

    /// The text of a file.
    ///
    /// # Errors
    /// [`FileFault`].
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, FileFault>;

    /// The text of a file that must be a regular one.
    ///
    /// # Errors
    /// [`FileFault`].
    fn read_regular(&self, path: &[u8]) -> Result<Vec<u8>, FileFault>;
}

/// Why a file could not be read. The texts are the system's, such as `No such file or directory`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// It could not be opened for lack of permission.
    #[error("{0}")]
    Denied(String),
    /// It could not be opened.
    #[error("{0}")]
    Open(String),
    /// It was opened, but reading failed.
    #[error("{0}")]
    Read(String),
    /// It is no regular file.
    #[error("not a regular file")]
    NotRegular,
}

impl FileFault {
    /// What was tried.
    fn operation(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Denied(_) | Self::Open(_) | Self::NotRegular => "open",
        }
    }
}

/// Where a piece of output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What was asked for.
    Stdout,
    /// Warnings and the fatal fault.
    Stderr,
}

/// What postconf wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// In the order of writing.
    pub output: Vec<(Stream, Vec<u8>)>,
    /// Exit status: 0, or 1 after a fatal fault.
    pub status: u8,
}

impl Outcome {
    /// All that went to one stream.
    pub fn text(&self, stream: Stream) -> Vec<u8> {
        let pieces = self.output.iter().filter(|(to, _)| *to == stream);
        pieces
            .flat_map(|(_, piece)| piece.iter().copied())
            .collect()
    }
}

/// A fatal fault: its text.
#[derive(Debug)]
struct Fatal(String);

impl From<Error> for Fatal {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// What was written so far. Standard output is held back until the end, as the reference's buffer does; a fatal
/// fault discards it.
struct Output {
    tag: Vec<u8>,
    written: Vec<(Stream, Vec<u8>)>,
    held: Vec<u8>,
}

impl Output {
    fn new(tag: &[u8]) -> Self {
        Self {
            tag: tag.to_vec(),
            written: Vec::new(),
            held: Vec::new(),
        }
    }

    fn flush(&mut self) {
        if !self.held.is_empty() {
            self.written
                .push((Stream::Stdout, std::mem::take(&mut self.held)));
        }
    }

    fn diagnose(&mut self, severity: &str, text: &str) {
        let mut line = self.tag.clone();
        line.extend_from_slice(b": ");
        line.extend_from_slice(severity.as_bytes());
        let printable = |byte| {
            if matches!(byte, b' '..=b'~') {
                byte
            } else {
                b'?'
            }
        };
        line.extend(text.bytes().map(printable));
        line.push(b'\n');
        self.written.push((Stream::Stderr, line));
    }

    /// A line that does not pass through the log, as the system library writes it.
    fn complain(&mut self, text: &str) {
        let mut line = self.tag.clone();
        line.extend_from_slice(format!(": {text}\n").as_bytes());
        self.written.push((Stream::Stderr, line));
    }
}

impl Sink for Output {
    fn warning(&mut self, text: String) {
        self.diagnose("warning: ", &text);
    }
}

/// Runs postconf.
///
/// - `name`: the name it was called by, as typed: the tag of its messages
/// - `arguments`: what came after the name
pub fn run(name: &[u8], arguments: &[Vec<u8>], machine: &Machine<'_>) -> Outcome {
    let mut output = Output::new(name);
    let outcome = work(name, arguments, machine, &mut output);
    let status = match outcome {
        Ok(()) => {
            output.flush();
            0
        }
        Err(Fatal(text)) => {
            output.diagnose("fatal: ", &text);
            1
        }
    };
    Outcome {
        output: output.written,
        status,
    }
}

fn work(
    name: &[u8],
    arguments: &[Vec<u8>],
    machine: &Machine<'_>,
    output: &mut Output,
) -> Result<(), Fatal> {
    let options = Options::parse(name, arguments, output)?;
    let mut registry = Registry::new(machine, &options);
    if options.has(b'M') {
        registry.read_master(true, output)?;
        registry.read_parameters(output)?;
        registry.register_built_in(name);
        registry.register_services();
        registry.register_user(output)?;
        show::master_entries(&registry, output)?;
        output.flush();
        registry.warn_of_unused_in_master(output);
        return Ok(());
    }
    if !options.has(b'd') {
        registry.read_parameters(output)?;
    }
    registry.register_built_in(name);
    registry.read_master(false, output)?;
    registry.register_services();
    if options.has(b'd') {
        registry.work_out_defaults(output)?;
    } else {
        registry.register_user(output)?;
    }
    show::parameters(&registry, output)?;
    output.flush();
    if !options.has(b'd') {
        registry.warn_of_unused_in_main(output);
        registry.warn_of_unused_in_master(output);
    }
    Ok(())
}
