//! What the service manager does for the connection cache: it keeps the sessions from the end of one `postkeep serve` to
//! the start of the next.

use std::os::unix::net::UnixListener;

use log::warn;
use postkeep_master::Owner;
use postkeep_sys::notify::{self, Manager};
use postkeep_sys::{effective, error_text};

use super::Directory;
use crate::handover::{Place, Stored, keep};

/// The service whose sessions these are.
const SERVICE: &str = "scache";

/// What there is to be done, at the start and at the end; nothing when no manager has started this process.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) restored: Option<Restored>,
    pub(super) keeping: Option<Keeping>,
}

/// Sessions that wait for the connection cache.
#[derive(Debug)]
pub(super) struct Restored {
    stored: Stored,
    listener: UnixListener,
    /// The user that the services become.
    user: u32,
}

/// Where sessions are at the end, and where they go to.
#[derive(Debug)]
pub(super) struct Keeping {
    place: Place,
    owner: (u32, u32),
    manager: Manager,
}

impl Sessions {
    /// Takes back what the manager has.
    ///
    /// - `passed`: all that it passed; what is not the connection cache's stays there
    ///
    /// # Errors
    /// What is in the environment makes no sense.
    pub(super) fn find(
        directory: &Directory,
        owner: Option<Owner>,
        passed: &mut Vec<notify::Passed>,
    ) -> Result<Self, String> {
        let manager = Manager::from_environment()
            .map_err(|error| format!("bad {}: {}", notify::NOTIFY_SOCKET, error_text(&error)))?;
        let Some(manager) = manager else {
            return Ok(Self::default());
        };
        let owner = owner.map_or_else(effective::identity, |owner| (owner.user, owner.group));
        let Some(place) = Place::new(&directory.data(), SERVICE) else {
            return Ok(Self::default());
        };
        let restored = Stored::pick(passed, &manager).and_then(|stored| {
            let listener = place
                .visit(owner, Place::listen)
                .and_then(|listened| listened);
            let listener = listener.map_err(|error| {
                warn!(
                    "cannot listen at {}: {}",
                    place.path().display(),
                    error_text(&error)
                );
            });
            Some(Restored {
                stored,
                listener: listener.ok()?,
                user: owner.0,
            })
        });
        let keeping = Keeping {
            place,
            owner,
            manager,
        };
        Ok(Self {
            restored,
            keeping: Some(keeping),
        })
    }
}

impl Restored {
    /// Waits for the connection cache, as long as there is something to be had.
    pub(super) fn hand_over(self) {
        self.stored.hand_over(&self.listener, self.user);
    }
}

impl Keeping {
    /// Gives the manager what the connection cache has left; after its end.
    pub(super) fn keep(self) {
        if let Ok(Some(predecessor)) = self.place.visit(self.owner, Place::predecessor) {
            keep(predecessor, self.owner.0, &self.manager);
        }
    }
}
