//! Where the socket of a service is.

use std::path::{Path, PathBuf};

/// Where the socket of a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A service of a Postfix: `private/NAME` below the current directory when that exists (a daemon is in the
    /// queue directory), else `private/NAME` below the queue directory (a command is anywhere).
    Service {
        /// `queue_directory`
        queue_directory: PathBuf,
        /// The service name as in master.cf.
        name: String,
    },
    /// This very socket.
    Path(PathBuf),
}

impl Place {
    /// A service of the Postfix with this queue directory.
    pub fn service(queue_directory: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self::Service {
            queue_directory: queue_directory.into(),
            name: name.into(),
        }
    }

    /// The path to connect to, which is also how log lines name the service.
    pub fn resolve(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Service {
                queue_directory,
                name,
            } => {
                let relative = Path::new("private").join(name);
                if relative.exists() {
                    relative
                } else {
                    queue_directory.join(relative)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_the_queue_directory_the_path_is_absolute() {
        let place = Place::service("/no/queue", "scache");
        assert_eq!(place.resolve(), Path::new("/no/queue/private/scache"));
        let place = Place::Path("/run/x".into());
        assert_eq!(place.resolve(), Path::new("/run/x"));
    }
}
