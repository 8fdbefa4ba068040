//! Telling the service manager how the service is: `sd_notify(3)`, and what it passed at the start.
//!
//! - [`Manager`]: where messages go (`NOTIFY_SOCKET`)
//! - [`Message`]: one message, put together from assignments
//! - [`passed`]: the descriptors that the manager handed over, with their names (`LISTEN_FDS`)
//! - [`watchdog`]: how often the manager wants to hear that the service is alive (`WATCHDOG_USEC`)

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::time::{ClockId, clock_gettime};

use crate::descriptor::Inherited;
use crate::socket::set_send_limit;

/// Name of the environment variable with the address of the manager's socket.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Descriptors of one message, at most; the manager takes no more than the kernel does (`SCM_MAX_FD`).
pub const MOST_DESCRIPTORS: usize = 253;

/// The number of the first passed descriptor (`SD_LISTEN_FDS_START`).
pub const FIRST_PASSED: i32 = 3;

/// How long a message may wait for room in the manager's queue.
const PATIENCE: Duration = Duration::from_secs(5);

/// Variables about passed descriptors, which are not for child processes.
pub const PASSED_VARIABLES: [&str; 4] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// Variables about messages and the watchdog, which are not for child processes.
pub const NOTIFY_VARIABLES: [&str; 3] = [NOTIFY_SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID"];

/// One message to the service manager: assignments, one a line.
///
/// # References
/// `sd_notify(3)`, "WELL-KNOWN ASSIGNMENTS".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Message(String);

impl Message {
    /// A message that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The service has started, or has finished a reload (`READY=1`).
    pub fn ready(self) -> Self {
        self.line("READY", "1")
    }

    /// The service has begun to read its configuration again (`RELOADING=1`, `MONOTONIC_USEC`); [`ready`](Self::ready)
    /// must follow.
    pub fn reloading(self) -> Self {
        self.line("RELOADING", "1")
            .line("MONOTONIC_USEC", monotonic_microseconds())
    }

    /// The service has begun to end (`STOPPING=1`).
    pub fn stopping(self) -> Self {
        self.line("STOPPING", "1")
    }

    /// What the service is doing, for people (`STATUS`). Line ends become blanks.
    pub fn status(self, text: impl fmt::Display) -> Self {
        self.line("STATUS", text)
    }

    /// The service is alive (`WATCHDOG=1`).
    pub fn watchdog(self) -> Self {
        self.line("WATCHDOG", "1")
    }

    /// The main process of the service has this number from now on (`MAINPID`).
    pub fn main_process(self, pid: u32) -> Self {
        self.line("MAINPID", pid)
    }

    /// Asks the manager for so much more time to start, to reload or to stop (`EXTEND_TIMEOUT_USEC`).
    pub fn extend_timeout(self, time: Duration) -> Self {
        self.line("EXTEND_TIMEOUT_USEC", time.as_micros())
    }

    /// Asks the manager to keep the descriptors that are sent with this message (`FDSTORE=1`), under a name
    /// (`FDNAME`) of at most 255 characters, ASCII without control characters and colons. The manager ignores the
    /// name when it is anything else.
    ///
    /// It closes what hangs up or fails by itself, unless `watched` is false (`FDPOLL=0`).
    ///
    /// # References
    /// systemd.service(5), `FileDescriptorStoreMax`.
    pub fn store(self, name: &str, watched: bool) -> Self {
        let message = self.line("FDSTORE", "1").line("FDNAME", name);
        if watched {
            message
        } else {
            message.line("FDPOLL", "0")
        }
    }

    /// Asks the manager to close the kept descriptors of that name (`FDSTOREREMOVE=1`).
    pub fn forget(self, name: &str) -> Self {
        self.line("FDSTOREREMOVE", "1").line("FDNAME", name)
    }

    /// One more assignment. Line ends in the value become blanks, so that it stays one line.
    pub fn line(mut self, name: &str, value: impl fmt::Display) -> Self {
        let start = self.0.len();
        // Writing to a string does not fail.
        let _ = write!(self.0, "{name}={value}");
        let line = self.0.split_off(start);
        self.0
            .extend(line.chars().map(|c| if c.is_control() { ' ' } else { c }));
        self.0.push('\n');
        self
    }

    /// The message as it is sent.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// The clock of `MONOTONIC_USEC`, in microseconds.
fn monotonic_microseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanoseconds / 1_000
}

/// The service manager, to which messages are sent.
///
/// Every message goes out over a socket of its own, so that a manager that was replaced meanwhile gets it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager(SocketAddrUnix);

impl Manager {
    /// The manager that `NOTIFY_SOCKET` names; `None` when there is none.
    ///
    /// # Errors
    /// The address is neither an absolute path nor an abstract name (`@...`), or is too long for a socket.
    pub fn from_environment() -> io::Result<Option<Self>> {
        match env::var_os(NOTIFY_SOCKET) {
            Some(address) if !address.is_empty() => Self::at(&address).map(Some),
            _ => Ok(None),
        }
    }

    /// The manager at an address as in `NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// As [`from_environment`](Self::from_environment).
    pub fn at(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(address)?,
            [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name)?,
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        Ok(Self(address))
    }

    /// Sends a message. Waits up to five seconds when the manager is behind.
    ///
    /// # Errors
    /// Nobody is there, or the manager did not take it in time.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// Sends a message with descriptors, which stay the caller's as well.
    ///
    /// - `descriptors`: [`MOST_DESCRIPTORS`] at most
    ///
    /// # Errors
    /// As [`send`](Self::send); too many descriptors.
    pub fn send_with(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_send_limit(&socket, PATIENCE)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if descriptors.len() > MOST_DESCRIPTORS
            || (!descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors)))
        {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        rustix::net::sendmsg_addr(
            &socket,
            &self.0,
            &[IoSlice::new(message.0.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits until the manager has dealt with all messages that were sent before (`BARRIER=1`).
    ///
    /// A process that ends right after a message should do this, or the manager may not know any more whose
    /// message it was; so should one that closes the last copy of a descriptor that it has given away.
    ///
    /// # Errors
    /// As [`send`](Self::send); `TimedOut` when the manager needs longer than `limit`.
    ///
    /// # References
    /// `sd_notify_barrier(3)`.
    pub fn barrier(&self, limit: Duration) -> io::Result<()> {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        self.send_with(&Message::new().line("BARRIER", 1), &[theirs.as_fd()])?;
        drop(theirs);
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut watched = [PollFd::new(&ours, PollFlags::empty())];
        loop {
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A descriptor that the service manager passed.
#[derive(Debug)]
pub struct Passed {
    /// `FileDescriptorName=` of the socket unit, or the name that the descriptor was stored under; `unknown` when the
    /// manager gave none.
    pub name: OsString,
    /// The descriptor, which is close-on-exec now.
    pub descriptor: OwnedFd,
}

/// Takes over the descriptors that the manager passed to this very process, in order.
///
/// The variables stay as they are: whoever starts child processes should keep [`PASSED_VARIABLES`] from them.
///
/// # Errors
/// The variables are for this process but make no sense, or name a descriptor that is not open.
///
/// # References
/// `sd_listen_fds_with_names(3)`.
pub fn passed(inherited: &mut Inherited) -> io::Result<Vec<Passed>> {
    passed_to(std::process::id(), |name| env::var_os(name), inherited)
}

fn passed_to(
    me: u32,
    variable: impl Fn(&str) -> Option<OsString>,
    inherited: &mut Inherited,
) -> io::Result<Vec<Passed>> {
    let number = |name: &str| -> io::Result<Option<u32>> {
        let Some(text) = variable(name) else {
            return Ok(None);
        };
        let parsed = text.to_str().and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| {
            let reason = format!("{name} is not a number: {}", text.display());
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    };
    if number("LISTEN_PID")? != Some(me) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS")?.unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names
        .as_bytes()
        .split(|&byte| byte == b':')
        .map(|name| OsStr::from_bytes(name).to_owned());
    (0..count)
        .map(|index| {
            let name = names.next().filter(|name| !name.is_empty());
            let number = i32::try_from(index)
                .ok()
                .and_then(|index| index.checked_add(FIRST_PASSED))
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok(Passed {
                name: name.unwrap_or_else(|| "unknown".into()),
                descriptor: inherited.take(number)?,
            })
        })
        .collect()
}

/// How often at least the manager wants [`Message::watchdog`] from this process; `None` when it does not.
///
/// Half of it is a good interval.
///
/// # References
/// `sd_watchdog_enabled(3)`.
pub fn watchdog() -> Option<Duration> {
    watchdog_of(std::process::id(), |name| env::var(name).ok())
}

fn watchdog_of(me: u32, variable: impl Fn(&str) -> Option<String>) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|pid| pid.parse() != Ok(me)) {
        return None;
    }
    let microseconds = variable("WATCHDOG_USEC")?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

    use super::*;
    use crate::socket::receive_waiting;

    fn manager() -> (tempfile::TempDir, UnixDatagram, Manager) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();
        (scratch, socket, manager)
    }

    fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let (mut buffer, mut arrived) = ([0; 4096], Vec::new());
        let count = receive_waiting(socket, &mut buffer, &mut arrived).unwrap();
        (
            String::from_utf8_lossy(&buffer[..count]).into_owned(),
            arrived,
        )
    }

    #[test]
    fn messages_are_lines() {
        let message = Message::new()
            .ready()
            .status("two\nlines\r")
            .watchdog()
            .main_process(7)
            .extend_timeout(Duration::from_millis(2))
            .stopping();
        assert_eq!(
            message.text(),
            "READY=1\nSTATUS=two lines \nWATCHDOG=1\nMAINPID=7\nEXTEND_TIMEOUT_USEC=2000\nSTOPPING=1\n"
        );
    }

    #[test]
    fn a_reload_tells_the_time_of_the_monotonic_clock() {
        let before = monotonic_microseconds();
        let message = Message::new().reloading();
        let told = message
            .text()
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap();
        let told: u64 = told.trim_end().parse().unwrap();
        assert!((before..=monotonic_microseconds()).contains(&told));
    }

    #[test]
    fn messages_and_descriptors_arrive() {
        let (_scratch, socket, manager) = manager();
        manager.send(&Message::new().ready()).unwrap();
        assert_eq!(receive(&socket).0, "READY=1\n");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let message = Message::new().store("session", false);
        manager.send_with(&message, &[ours.as_fd()]).unwrap();
        drop(ours);
        let (text, mut arrived) = receive(&socket);
        assert_eq!(text, "FDSTORE=1\nFDNAME=session\nFDPOLL=0\n");
        io::Write::write_all(&mut UnixStream::from(arrived.remove(0)), b"alive").unwrap();
        let mut told = String::new();
        theirs.read_to_string(&mut told).unwrap();
        assert_eq!(told, "alive");
        let watched = Message::new().store("s", true).forget("t");
        assert_eq!(
            watched.text(),
            "FDSTORE=1\nFDNAME=s\nFDSTOREREMOVE=1\nFDNAME=t\n"
        );
    }

    #[test]
    fn abstract_names_are_addresses() {
        let name = format!("postkeep-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::at(OsStr::new(&format!("@{name}"))).unwrap();
        manager.send(&Message::new().watchdog()).unwrap();
        assert_eq!(receive(&socket).0, "WATCHDOG=1\n");
    }

    #[test]
    fn addresses_of_other_kinds_are_refused() {
        let long = format!("/{}", "x".repeat(200));
        for address in ["", "@", "notify", "vsock:2:1", &long] {
            assert!(Manager::at(OsStr::new(address)).is_err(), "{address}");
        }
        let nobody = Manager::at(OsStr::new("/nonexistent/notify")).unwrap();
        let error = nobody.send(&Message::new().ready()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_barrier_is_over_when_the_manager_closes_its_descriptor() {
        let (_scratch, socket, manager) = manager();
        let error = manager.barrier(Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(receive(&socket));
        let reader = std::thread::spawn(move || receive(&socket).0);
        manager.barrier(Duration::from_secs(10)).unwrap();
        assert_eq!(reader.join().unwrap(), "BARRIER=1\n");
    }

    #[test]
    fn descriptors_for_others_are_left_alone_and_nonsense_is_told() {
        let passed = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            // Surveyed before, or empty: nothing can be taken that a test owns.
            let _ = Inherited::survey();
            passed_to(10, variable, &mut Inherited::survey()).map(|list| list.len())
        };
        assert_eq!(passed(&[("LISTEN_FDS", "1")]).unwrap(), 0);
        assert_eq!(
            passed(&[("LISTEN_PID", "9"), ("LISTEN_FDS", "1")]).unwrap(),
            0
        );
        assert_eq!(passed(&[("LISTEN_PID", "10")]).unwrap(), 0);
        assert!(passed(&[("LISTEN_PID", "x")]).is_err());
        for count in ["-1", "1", "4294967295"] {
            let variables = [("LISTEN_PID", "10"), ("LISTEN_FDS", count)];
            assert!(passed(&variables).is_err(), "{count}");
        }
    }

    #[test]
    fn the_watchdog_may_be_for_another() {
        let limit = |pid: Option<&str>, time: &str| {
            watchdog_of(7, |name| match name {
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => Some(time.to_owned()),
            })
        };
        assert_eq!(limit(None, "30000000"), Some(Duration::from_secs(30)));
        assert_eq!(limit(Some("7"), "1"), Some(Duration::from_micros(1)));
        for (pid, time) in [
            (Some("8"), "1"),
            (Some("x"), "1"),
            (None, "0"),
            (None, "soon"),
        ] {
            assert_eq!(limit(pid, time), None, "{pid:?} {time}");
        }
    }
}
