//! The directories and sockets of one stand-in.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::MasterError;

/// Longest name of a socket in bytes (`sun_path` without the closing NUL).
const SOCKET_NAME_LIMIT: usize = 107;

/// Whom the services become: a user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub user: u32,
    /// Group ID.
    pub group: u32,
}

/// Where everything is.
///
/// Below the queue directory, with the names that Postfix clients expect: `private/SERVICE` are the sockets
/// of the services, `public/postlog` the socket for log records, `pid/master.pid` the file with the process
/// ID, which is locked as long as the stand-in runs.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Directory with main.cf (`MAIL_CONFIG` of the services).
    pub config_directory: PathBuf,
    /// Working directory of the services and root of the sockets.
    pub queue_directory: PathBuf,
    /// Owner of the sockets and of their directories. `None`: whoever runs the stand-in, and the services keep
    /// that identity too.
    pub owner: Option<Owner>,
}

/// The locked file with the process ID. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The name goes while the lock is still held: nobody can lock a file that is about to vanish.
        let _ = fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Layout {
    /// Path of the socket of a service.
    pub fn socket(&self, service: &str) -> PathBuf {
        self.queue_directory.join("private").join(service)
    }

    /// Path of the socket for log records (`public/postlog`, the default of `postlog_service_name`).
    pub fn log_socket(&self) -> PathBuf {
        self.queue_directory.join("public/postlog")
    }

    /// Path of the file with the process ID.
    pub fn pid_file(&self) -> PathBuf {
        self.queue_directory.join("pid/master.pid")
    }

    /// Creates the directories that are missing. Existing ones keep their modes.
    pub(crate) fn create_directories(&self) -> Result<(), MasterError> {
        create_directory(&self.queue_directory, 0o755)?;
        // As in Postfix: who may enter these directories is who may use the sockets.
        for (name, mode) in [("private", 0o700), ("public", 0o710), ("pid", 0o755)] {
            let path = self.queue_directory.join(name);
            if create_directory(&path, mode)? && name != "pid" {
                self.give_away(&path)?;
            }
        }
        Ok(())
    }

    /// Locks the file with the process ID, or tells that somebody else has.
    pub(crate) fn lock(&self) -> Result<Lock, MasterError> {
        let path = self.pid_file();
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(|error| MasterError::path("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(MasterError::Running { path }),
            Err(error) => return Err(MasterError::path("lock", path, error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{:>10}", std::process::id()))
            .map_err(|error| MasterError::path("write", &path, error))?;
        Ok(Lock { file, path })
    }

    /// Makes the listening socket of a service, over a left-over one of a stand-in that died.
    pub(crate) fn listen_at(&self, path: &Path) -> Result<UnixListener, MasterError> {
        self.bind(path, |path| {
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// Makes the socket for log records.
    pub(crate) fn bind_log_socket(&self) -> Result<UnixDatagram, MasterError> {
        let path = self.log_socket();
        self.bind(&path, |path| {
            let socket = UnixDatagram::bind(path)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn bind<S>(
        &self,
        path: &Path,
        make: impl FnOnce(&Path) -> io::Result<S>,
    ) -> Result<S, MasterError> {
        if path.as_os_str().len() > SOCKET_NAME_LIMIT {
            return Err(MasterError::SocketName {
                path: path.to_owned(),
                limit: SOCKET_NAME_LIMIT,
            });
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MasterError::path("remove", path, error));
            }
            _ => {}
        }
        let socket = make(path).map_err(|error| MasterError::path("create socket", path, error))?;
        fs::set_permissions(path, Permissions::from_mode(0o666))
            .map_err(|error| MasterError::path("set the mode of", path, error))?;
        self.give_away(path)?;
        Ok(socket)
    }

    fn give_away(&self, path: &Path) -> Result<(), MasterError> {
        match self.owner {
            Some(Owner { user, group }) => chown(path, Some(user), Some(group))
                .map_err(|error| MasterError::path("change the owner of", path, error)),
            None => Ok(()),
        }
    }
}

/// Creates a directory with its parents; false when it was there.
fn create_directory(path: &Path, mode: u32) -> Result<bool, MasterError> {
    if path.is_dir() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|error| MasterError::path("create directory", path, error))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &Path) -> Layout {
        Layout {
            config_directory: directory.to_owned(),
            queue_directory: directory.join("queue"),
            owner: None,
        }
    }

    #[test]
    fn second_lock_is_refused_and_the_file_goes_with_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        layout.create_directories().unwrap();
        let lock = layout.lock().unwrap();
        assert!(matches!(layout.lock(), Err(MasterError::Running { .. })));
        let text = fs::read_to_string(layout.pid_file()).unwrap();
        assert_eq!(text.trim().parse(), Ok(std::process::id()));
        drop(lock);
        assert!(!layout.pid_file().exists());
        layout.lock().unwrap();
    }

    #[test]
    fn sockets_replace_left_over_ones() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path());
        layout.create_directories().unwrap();
        let path = layout.socket("scache");
        drop(layout.listen_at(&path).unwrap());
        assert!(path.exists());
        layout.listen_at(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o666
        );
        let private = fs::metadata(directory.path().join("queue/private")).unwrap();
        assert_eq!(private.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn long_socket_name_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory.path().join("x".repeat(100)));
        assert!(matches!(
            layout.listen_at(&layout.socket("scache")),
            Err(MasterError::SocketName { .. })
        ));
    }
}
