//! What the service manager is told, and what it has passed: systemd, or whatever does as it does.
//!
//! Without a manager nothing happens here.
//!
//! # References
//! `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use log::{info, warn};
use postkeep_master::{Health, Passed};
use postkeep_sys::descriptor::Inherited;
use postkeep_sys::error_text;
use postkeep_sys::notify::{self, Manager, Message};

/// Beginning and end of the name that a socket unit has unless it says something else.
const UNIT: (&str, &str) = ("postkeep-", ".socket");

/// The service manager.
#[derive(Debug)]
pub(super) struct Supervision {
    manager: Option<Manager>,
    /// How often it wants to hear that all is well, at least.
    watchdog: Option<Duration>,
    told: Option<Instant>,
    status: String,
    well: bool,
    /// It could not be told; said once.
    deaf: bool,
}

impl Supervision {
    /// The manager that started this process, if one did.
    ///
    /// # Errors
    /// It says where to send messages in a way that nobody understands.
    pub(super) fn from_environment() -> Result<Self, String> {
        let manager = Manager::from_environment()
            .map_err(|error| format!("{}: {}", notify::NOTIFY_SOCKET, error_text(&error)))?;
        Ok(Self::new(manager, notify::watchdog()))
    }

    fn new(manager: Option<Manager>, watchdog: Option<Duration>) -> Self {
        Self {
            watchdog: watchdog.filter(|_| manager.is_some()),
            manager,
            told: None,
            status: String::new(),
            well: true,
            deaf: false,
        }
    }

    /// After what time without a sign of life a service counts as stuck; `None` when nobody wants to know.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        self.watchdog.map(|interval| interval / 2)
    }

    /// All is there.
    pub(super) fn ready(&mut self) {
        self.send(&Message::new().ready());
    }

    /// All is about to be replaced.
    pub(super) fn reloading(&mut self) {
        self.send(&Message::new().reloading());
    }

    /// The end is near.
    pub(super) fn stopping(&mut self) {
        self.send(&Message::new().stopping().status("Stopping"));
    }

    /// Tells what there is to tell; returns when there will be more.
    pub(super) fn turn(&mut self, health: &Health, now: Instant) -> Option<Instant> {
        self.manager.as_ref()?;
        let status = summary(health);
        if status != self.status {
            self.send(&Message::new().status(&status));
            self.status = status;
        }
        let half = self.watchdog? / 2;
        let well = health.stuck.is_empty();
        if well != self.well {
            self.well = well;
            if well {
                info!("all services are alive again, and the service manager is told so");
            } else {
                warn!(
                    "no sign of life from {}: the service manager hears nothing either, and may start us again",
                    health.stuck.join(", ")
                );
            }
        }
        if !well {
            return None;
        }
        if self.told.is_none_or(|told| now >= told + half) {
            self.told = Some(now);
            self.send(&Message::new().watchdog());
        }
        self.told.map(|told| told + half)
    }

    fn send(&mut self, message: &Message) {
        let Some(manager) = &self.manager else { return };
        let sent = manager.send(message);
        if let Err(error) = &sent
            && !self.deaf
        {
            warn!("cannot tell the service manager: {}", error_text(error));
        }
        self.deaf = sent.is_err();
    }
}

/// The services in one line.
fn summary(health: &Health) -> String {
    let mut text = String::new();
    for (word, services) in [
        ("Serving", &health.running),
        ("cannot be started", &health.failing),
        ("no sign of life", &health.stuck),
    ] {
        if !services.is_empty() {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{word}: {}", services.join(", "));
        }
    }
    if text.is_empty() {
        text.push_str("Waiting for clients");
    }
    text
}

/// What the manager passed. To be called before anything is opened.
///
/// # Errors
/// The manager says that it passed what it did not.
pub(super) fn passed(inherited: &mut Inherited) -> Result<Vec<notify::Passed>, String> {
    notify::passed(inherited)
        .map_err(|error| format!("sockets of the service manager: {}", error_text(&error)))
}

/// The sockets that the manager passed, by service.
///
/// A socket is for the service that `FileDescriptorName` names; a unit without it is called `postkeep-SERVICE.socket` or
/// `SERVICE.socket`.
pub(super) fn by_service(passed: Vec<notify::Passed>) -> Vec<Passed> {
    passed
        .into_iter()
        .map(|passed| Passed {
            name: service_of(&passed.name.to_string_lossy()).to_owned(),
            socket: passed.descriptor,
        })
        .collect()
}

fn service_of(name: &str) -> &str {
    let name = name.strip_suffix(UNIT.1).unwrap_or(name);
    name.strip_prefix(UNIT.0).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn supervised(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Supervision) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();
        (scratch, socket, Supervision::new(Some(manager), watchdog))
    }

    fn told(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 1000];
        std::iter::from_fn(|| {
            let count = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
        })
        .collect()
    }

    #[test]
    fn the_watchdog_hears_of_us_at_half_its_time_and_only_when_all_are_alive() {
        let second = Duration::from_secs(1);
        let (_scratch, socket, mut supervision) = supervised(Some(10 * second));
        let now = Instant::now();
        let mut health = Health {
            running: vec!["scache".into()],
            ..Health::default()
        };
        assert_eq!(supervision.turn(&health, now), Some(now + 5 * second));
        assert_eq!(told(&socket), ["STATUS=Serving: scache\n", "WATCHDOG=1\n"]);
        supervision.turn(&health, now + 4 * second);
        assert!(told(&socket).is_empty());
        supervision.turn(&health, now + 5 * second);
        assert_eq!(told(&socket), ["WATCHDOG=1\n"]);
        health.stuck.push("scache".into());
        for seconds in [9, 10, 11, 60] {
            assert_eq!(supervision.turn(&health, now + seconds * second), None);
        }
        assert_eq!(
            told(&socket),
            ["STATUS=Serving: scache; no sign of life: scache\n"]
        );
        health.stuck.clear();
        supervision.turn(&health, now + 61 * second);
        assert_eq!(told(&socket), ["STATUS=Serving: scache\n", "WATCHDOG=1\n"]);
    }

    #[test]
    fn nobody_is_told_anything_without_a_manager() {
        let mut supervision = Supervision::new(None, Some(Duration::from_secs(1)));
        assert_eq!(supervision.heartbeat(), None);
        assert_eq!(supervision.turn(&Health::default(), Instant::now()), None);
        supervision.ready();
    }

    #[test]
    fn a_manager_that_is_gone_is_no_reason_to_end() {
        let (scratch, socket, mut supervision) = supervised(None);
        supervision.ready();
        assert_eq!(told(&socket), ["READY=1\n"]);
        drop((scratch, socket));
        supervision.stopping();
        assert!(supervision.deaf);
    }

    #[test]
    fn sockets_are_for_the_services_that_their_units_name() {
        for name in ["proxymap", "proxymap.socket", "postkeep-proxymap.socket"] {
            assert_eq!(service_of(name), "proxymap");
        }
        assert_eq!(service_of("unknown"), "unknown");
    }
}
