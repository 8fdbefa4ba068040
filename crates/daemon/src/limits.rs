//! What clients may take up at most, and the lines that say so.
//!
//! Each limit is a parameter. Beyond it a client is turned away, held back, or makes room, as the parameter's
//! description says, and a line tells which limit it was, how far it went and what raises it: the first at once,
//! then one a minute.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use postkeep_conf::{Dictionary, Error, IntParameter, Sink};
use postkeep_wire::diagnostics::Throttle;
use postkeep_wire::scan;

use crate::logging::{Severity, record};

/// The limits of a process, from parameters of its own (postkeep-proxymap(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `postkeep_client_limit`: connections at one time; zero: as many as there are descriptors. Beyond it the
    /// client that has been idle for longest makes room.
    pub clients: usize,
    /// `postkeep_user_client_limit`: connections of one user at one time, as far as the kernel tells who
    /// connects; zero: no limit of its own. Beyond it a new connection is closed.
    pub user_clients: usize,
    /// `postkeep_address_client_limit`: network connections of one address (of one /64 network, for IPv6) at one time;
    /// zero: no limit of its own. Beyond it a new connection is closed.
    pub address_clients: usize,
    /// `postkeep_request_rate_limit`: requests per second of one client, after a second's worth of them at once;
    /// zero: no limit. Beyond it the client waits for its next slot.
    pub request_rate: u32,
    /// `postkeep_buffer_memory_limit`: bytes that the unfinished requests and untaken replies of all clients hold
    /// together, those of less than 16 KiB not counted. Beyond it the client with the most is disconnected.
    pub buffer_memory: usize,
    /// `postkeep_busy_wait_microseconds`: how long a worker whose clients ask again at once looks for the next request
    /// before it goes to sleep; zero: it goes to sleep at once.
    pub busy_wait: Duration,
    /// `postkeep_attribute_size_limit`, `postkeep_attribute_count_limit` and `postkeep_request_size_limit`.
    /// Beyond them the connection ends.
    pub requests: scan::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 100_000,
            user_clients: 50_000,
            address_clients: 0,
            request_rate: 1_000_000,
            buffer_memory: 256 << 20,
            busy_wait: Duration::from_micros(25),
            requests: scan::Limits::default(),
        }
    }
}

/// The longest text that a log line or a command line could still show; smaller limits would refuse clients of
/// Postfix.
const SMALLEST_SIZE: i32 = 4096;
/// More attributes than any request has.
const FEWEST_ATTRIBUTES: i32 = 16;
/// In microseconds: nobody's sleep costs more.
const LONGEST_BUSY_WAIT: i32 = 1000;

impl Limits {
    /// Reads the parameters.
    ///
    /// # Errors
    /// A value that is no number, or outside its range.
    pub fn read(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Self, Error> {
        let default = Self::default();
        let mut between = |name, default: usize, min, max| {
            let parameter = IntParameter {
                name,
                default: i32::try_from(default).unwrap_or(i32::MAX),
                min,
                max,
            };
            let value = dictionary.int(&parameter, &mut *sink)?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        let busy_wait = between(BUSY_WAIT, 25, 0, LONGEST_BUSY_WAIT)?;
        let mut number = |name, default, min| between(name, default, min, 0);
        let clients = number(CLIENTS, default.clients, 0)?;
        let user_clients = number(USER_CLIENTS, default.user_clients, 0)?;
        let address_clients = number(ADDRESS_CLIENTS, default.address_clients, 0)?;
        let rate = number(REQUEST_RATE, default.request_rate as usize, 0)?;
        let buffer_memory = number(BUFFER_MEMORY, default.buffer_memory, 1)?;
        let value = number(ATTRIBUTE_SIZE, default.requests.value, SMALLEST_SIZE)?;
        let attributes = number(
            ATTRIBUTE_COUNT,
            default.requests.attributes,
            FEWEST_ATTRIBUTES,
        )?;
        let list = number(REQUEST_SIZE, default.requests.list, SMALLEST_SIZE)?;
        Ok(Self {
            clients,
            user_clients,
            address_clients,
            request_rate: u32::try_from(rate).unwrap_or(u32::MAX),
            buffer_memory,
            busy_wait: Duration::from_micros(u64::try_from(busy_wait).unwrap_or(0)),
            requests: scan::Limits {
                name: default.requests.name,
                value,
                list,
                attributes,
            },
        })
    }
}

/// The parameter of [`Limits::clients`].
pub const CLIENTS: &str = "postkeep_client_limit";
pub(crate) const USER_CLIENTS: &str = "postkeep_user_client_limit";
/// The parameter of [`Limits::address_clients`].
pub const ADDRESS_CLIENTS: &str = "postkeep_address_client_limit";
/// The parameter of [`Limits::request_rate`].
pub const REQUEST_RATE: &str = "postkeep_request_rate_limit";
pub(crate) const BUSY_WAIT: &str = "postkeep_busy_wait_microseconds";
pub(crate) const BUFFER_MEMORY: &str = "postkeep_buffer_memory_limit";
/// The parameter of [`scan::Limits::value`].
pub const ATTRIBUTE_SIZE: &str = "postkeep_attribute_size_limit";
/// The parameter of [`scan::Limits::attributes`].
pub const ATTRIBUTE_COUNT: &str = "postkeep_attribute_count_limit";
/// The parameter of [`scan::Limits::list`].
pub const REQUEST_SIZE: &str = "postkeep_request_size_limit";

/// The line of one limit: a warning at the first time, then at most one a minute.
#[derive(Debug)]
pub struct Complaint {
    remedy: &'static str,
    throttle: Mutex<Throttle>,
    reached: AtomicU64,
}

impl Complaint {
    /// - `remedy`: what raises the limit, usually the name of a parameter; empty: nothing does
    pub const fn new(remedy: &'static str) -> Self {
        Self {
            remedy,
            throttle: Mutex::new(Throttle::new()),
            reached: AtomicU64::new(0),
        }
    }

    /// How often somebody has gone beyond the limit, for metrics.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// Somebody has gone beyond the limit; `text` says who, and how far.
    pub fn say(&self, now: Instant, text: fmt::Arguments<'_>) {
        self.reached.fetch_add(1, Ordering::Relaxed);
        let admitted = self
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(since_start(now));
        match (admitted, self.remedy) {
            (Some(held_back), "") => log::warn!("{text}{held_back}"),
            (Some(held_back), remedy) => {
                log::warn!("{text}; to raise this limit: {remedy}{held_back}");
            }
            (None, _) => {}
        }
    }
}

/// Failures of accepting: as in the reference they are errors, but anybody who can connect can cause them, so they
/// do not count towards those that end a process, and come once a minute at most.
#[derive(Debug, Default)]
pub(crate) struct AcceptErrors(Mutex<Throttle>);

impl AcceptErrors {
    /// - `cause`: for a warning before the error; empty for none
    pub(crate) fn say(&self, now: Instant, cause: &str, text: &str) {
        let mut throttle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = throttle.admit(since_start(now));
        drop(throttle);
        if let Some(held_back) = admitted {
            if !cause.is_empty() {
                log::warn!("{cause}");
            }
            record(
                Severity::Error,
                format_args!("accept connection: {text}{held_back}"),
            );
        }
    }
}

/// The clock of all throttles.
fn since_start(now: Instant) -> Duration {
    static ZERO: OnceLock<Instant> = OnceLock::new();
    now.saturating_duration_since(*ZERO.get_or_init(|| now))
}

/// The lines of the skeleton's own limits.
#[derive(Debug)]
pub(crate) struct Complaints {
    pub(crate) accept_errors: AcceptErrors,
    pub(crate) clients: Complaint,
    pub(crate) user_clients: Complaint,
    pub(crate) address_clients: Complaint,
    pub(crate) request_rate: Complaint,
    pub(crate) descriptors: Complaint,
    pub(crate) buffer_memory: Complaint,
    pub(crate) handles: Complaint,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            accept_errors: AcceptErrors::default(),
            clients: Complaint::new(CLIENTS),
            user_clients: Complaint::new(USER_CLIENTS),
            address_clients: Complaint::new(ADDRESS_CLIENTS),
            request_rate: Complaint::new(REQUEST_RATE),
            buffer_memory: Complaint::new(BUFFER_MEMORY),
            handles: Complaint::new("there is no way"),
            descriptors: Complaint::new("the number of open files that the system allows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postkeep_conf::Release;

    fn read(text: &[u8]) -> Result<Limits, String> {
        let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
        dictionary.load(text, "main.cf", &mut Vec::new()).unwrap();
        Limits::read(&mut dictionary, &mut Vec::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_what_nothing_else_is_said() {
        assert_eq!(read(b""), Ok(Limits::default()));
    }

    #[test]
    fn each_parameter_sets_its_limit() {
        let limits = read(
            b"postkeep_client_limit = 1\npostkeep_user_client_limit = 2\n\
              postkeep_request_rate_limit = 3\npostkeep_address_client_limit = 5\n\
              postkeep_buffer_memory_limit = 4\npostkeep_attribute_size_limit = 5000\n\
              postkeep_attribute_count_limit = 17\npostkeep_request_size_limit = 6000\n",
        )
        .unwrap();
        assert_eq!(
            (
                limits.clients,
                limits.user_clients,
                limits.request_rate,
                limits.buffer_memory,
                limits.address_clients
            ),
            (1, 2, 3, 4, 5)
        );
        let requests = limits.requests;
        assert_eq!(
            (requests.value, requests.attributes, requests.list),
            (5000, 17, 6000)
        );
    }

    #[test]
    fn values_that_no_client_could_live_with_are_refused() {
        for text in [
            &b"postkeep_attribute_size_limit = 4095\n"[..],
            b"postkeep_attribute_count_limit = 15\n",
            b"postkeep_request_size_limit = 0\n",
            b"postkeep_request_rate_limit = many\n",
        ] {
            assert!(read(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
