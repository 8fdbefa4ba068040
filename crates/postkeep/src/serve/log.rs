//! The log of `postkeep serve`: its own records and those of its services, on standard error and, when
//! asked for, in a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The destination of all records of the process.
#[derive(Debug)]
pub(crate) struct ServeLog {
    host_name: String,
    file: Option<Mutex<File>>,
}

static LOG: OnceLock<ServeLog> = OnceLock::new();

impl ServeLog {
    /// Makes it the log of this process.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub(crate) fn install(
        host_name: &str,
        file: Option<&Path>,
        verbose: bool,
    ) -> io::Result<&'static Self> {
        let file = file
            .map(|path| {
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(path)
            })
            .transpose()?
            .map(Mutex::new);
        let installed = LOG.get_or_init(|| Self {
            host_name: host_name.to_owned(),
            file,
        });
        if log::set_logger(installed).is_ok() {
            log::set_max_level(if verbose {
                LevelFilter::Debug
            } else {
                LevelFilter::Info
            });
        }
        Ok(installed)
    }

    /// Writes one record, complete with time and origin, as services send them.
    pub(crate) fn write(&self, line: &str) {
        // Nobody is there to be told when standard error or the disk is gone.
        let _ = writeln!(io::stderr().lock(), "{line}");
        if let Some(file) = &self.file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

impl Log for ServeLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let class = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info | Level::Debug | Level::Trace => "",
        };
        let now = postkeep_sys::clock::local_time(SystemTime::now());
        self.write(&format!(
            "{} {:02} {:02}:{:02}:{:02} {} postkeep/serve[{}]: {class}{}",
            now.month_name(),
            now.day,
            now.hour,
            now.minute,
            now.second,
            self.host_name,
            std::process::id(),
            record.args()
        ));
    }

    fn flush(&self) {}
}
