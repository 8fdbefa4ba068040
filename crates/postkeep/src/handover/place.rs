//! Where one process finds the other.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use postkeep_sys::effective;

/// The socket at which a process that ends waits for its successor.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    /// The one of a service; `None` when its name cannot be part of a file name.
    pub(crate) fn new(data_directory: &Path, service: &str) -> Option<Self> {
        let valid = !service.is_empty() && !service.contains('/');
        valid.then(|| Self {
            path: data_directory.join(format!("{service}.handover")),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something there with the identity that the data directory belongs to, if root does it: root is not to trust
    /// the names in there. Before there are threads.
    ///
    /// # Errors
    /// The identity cannot be changed; it may have been changed in part.
    pub(crate) fn visit<R>(
        &self,
        owner: (u32, u32),
        act: impl FnOnce(&Self) -> R,
    ) -> io::Result<R> {
        let before = effective::identity();
        let changes = effective::real_user_is_root() && before.0 == 0 && owner.0 != 0;
        if changes {
            effective::assume(owner.0, owner.1)?;
        }
        let outcome = act(self);
        if changes {
            effective::assume(before.0, before.1)?;
        }
        Ok(outcome)
    }

    /// Connects to the predecessor, if there is one.
    pub(crate) fn predecessor(&self) -> Option<UnixStream> {
        UnixStream::connect(&self.path).ok()
    }

    /// Listens there. Whoever did so before has it no more, but keeps those who have connected.
    ///
    /// # Errors
    /// The directory is not there or not writable, or its name is too long for a socket.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let mut new = OsString::from(&self.path);
        new.push(format!(".{}", std::process::id()));
        // From a process that had this number.
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        let placed = fs::set_permissions(&new, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = placed {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}
