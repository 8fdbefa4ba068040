//! What the daemons that serve tables bring to them: the configuration, the files, the watch over changes.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::warn;
use postkeep_conf::{Common, Dictionary, Error, IntParameter, Sink};
use postkeep_daemon::{Reloaded, logging};
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_proxymap::watch::{Observer, Stat};
use postkeep_sys::error_text;
use postkeep_tables::{Caller, Context};

/// How often the files of open tables are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Name of a parameter.
const OPEN_TABLES: &str = "postkeep_open_table_limit";

/// Reads how many tables may be open.
pub(super) fn read_open_tables(
    dictionary: &mut Dictionary,
    sink: &mut dyn Sink,
) -> Result<usize, Error> {
    let default = Settings::default().open_tables;
    let parameter = IntParameter {
        name: OPEN_TABLES,
        default: i32::try_from(default).unwrap_or(i32::MAX),
        min: 1,
        max: 0,
    };
    let value = dictionary.int(&parameter, sink)?;
    Ok(usize::try_from(value).unwrap_or(1))
}

/// The configuration that tables see.
pub(super) fn context(common: &Common, dictionary: &Dictionary) -> Context {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Context {
        caller: Caller::Daemon,
        smtputf8_enable: common.smtputf8_enable,
        lmdb_map_size: common.lmdb_map_size.unsigned_abs(),
        queue_directory: PathBuf::from(OsString::from_vec(common.queue_directory.clone())),
        proxymap_service_name: text(&common.proxymap_service_name),
        proxywrite_service_name: text(&common.proxywrite_service_name),
        ipc_timeout: common.ipc_timeout,
        ipc_idle: common.ipc_idle,
        ipc_ttl: common.ipc_ttl,
        main_cf: Arc::new(dictionary.clone()),
    }
}

/// Starts the thread that replaces tables whose files have changed.
pub(super) fn keep(tables: Arc<Tables>) {
    let keeper = thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(LOOK);
                // A fault in one table is told, and does not end the watch over the others.
                logging::contain(|| tables.reload_changed());
            }
        });
    if let Err(error) = keeper {
        logging::fatal(format_args!(
            "cannot start a thread: {}",
            error_text(&error)
        ));
    }
}

/// Opens a table anew when the administrator asks for it.
pub(super) fn reload(tables: &Tables, name: &[u8]) -> Reloaded {
    match tables.reload(name) {
        None => Reloaded::Unknown,
        Some(Ok(0)) => Reloaded::Done("nobody has asked for the table yet".to_owned()),
        Some(Ok(_)) => Reloaded::Done("the table is opened anew".to_owned()),
        Some(Err(reason)) => {
            warn!("{reason}; the table stays as it was before the reload");
            Reloaded::Failed(reason)
        }
    }
}

/// Files of tables, on disk.
pub(super) struct DiskObserver;

impl Observer for DiskObserver {
    fn stat(&self, path: &Path) -> Option<Stat> {
        let found = fs::metadata(path).ok()?;
        Some(Stat {
            device: found.dev(),
            inode: found.ino(),
            links: found.nlink(),
            size: found.len(),
            modified: (
                found.mtime(),
                u32::try_from(found.mtime_nsec()).unwrap_or(0),
            ),
            changed: found.ctime(),
        })
    }

    fn wall_clock(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_has_another_face() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("table");
        assert_eq!(DiskObserver.stat(&path), None);
        fs::write(&path, "abc").unwrap();
        let stat = DiskObserver.stat(&path).unwrap();
        assert_eq!((stat.size, stat.links), (3, 1));
        assert!((DiskObserver.wall_clock() - stat.changed).abs() < 100);
    }
}
