//! Numbers about the running process, for a monitoring system: Prometheus' text format over HTTP.
//!
//! Whoever counts does so in atomic numbers of its own. A page is put together when somebody asks for it, on a thread
//! that does nothing else, so that no reader of metrics, however slow or numerous, holds up a client.
//!
//! # References
//! Prometheus, "Exposition formats", text format 0.0.4.

mod orders;
mod page;
mod process;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;

use postkeep_conf::{Dictionary, Error, Sink, StrParameter, split_list};

pub use page::{Family, Kind, Page};
pub(crate) use process::Process;
pub(crate) use server::{Exporter, Trace};

use crate::limits;
use crate::shared::Shared;

/// The name of the parameter.
const ADDRESS: &str = "postkeep_metrics_address";

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A UNIX-domain socket; a relative path is below `queue_directory`.
    Unix(PathBuf),
    /// TCP, on this machine only.
    Inet(SocketAddr),
}

/// Where metrics are to be served, and whether somebody has said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) addresses: Vec<Address>,
    /// They are nobody's wish: when there is no such place, nothing is said.
    pub(crate) by_default: bool,
}

/// An address that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad {ADDRESS} value: {0} (specify unix:PATH or inet:ADDRESS:PORT, where ADDRESS is 127.0.0.1, [::1] or localhost)"
)]
pub(crate) struct BadAddress(String);

impl Address {
    fn parse(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            // The name of the socket has to be there, or there would be nothing to put in its place.
            return path
                .file_name()
                .is_some()
                .then_some(Self::Unix(path))
                .ok_or_else(bad);
        }
        let place = text.strip_prefix("inet:").ok_or_else(bad)?;
        let place = place
            .strip_prefix("localhost:")
            .map_or_else(|| place.to_owned(), |port| format!("127.0.0.1:{port}"));
        // No name is looked up, and nobody else's address is taken: there is no password.
        let address: SocketAddr = place.parse().map_err(|_| bad())?;
        (address.ip().is_loopback() && address.port() != 0)
            .then_some(Self::Inet(address))
            .ok_or_else(bad)
    }

    /// The TCP port.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Unix(_) => None,
            Self::Inet(address) => Some(address.port()),
        }
    }
}

impl Places {
    /// Reads the parameter: addresses with blanks or commas between them, perhaps none. When it is not set, a socket beside
    /// that of the service.
    ///
    /// # Errors
    /// As of any parameter; the inner one is an address that is none.
    pub(crate) fn read(
        dictionary: &mut Dictionary,
        service: &str,
        sink: &mut dyn Sink,
    ) -> Result<Result<Self, BadAddress>, Error> {
        let by_default = dictionary.value(ADDRESS).is_none();
        let value = dictionary.str(
            &StrParameter {
                name: ADDRESS,
                default: "",
                min: 0,
                max: 0,
            },
            sink,
        )?;
        if by_default {
            let socket = Address::Unix(format!("private/{service}.metrics").into());
            // A service that is known by an address has no socket of that name.
            let has_name = !service.is_empty() && !service.contains('/');
            return Ok(Ok(Self {
                addresses: has_name.then_some(socket).into_iter().collect(),
                by_default,
            }));
        }
        let addresses = split_list(&value)
            .map(|word| Address::parse(&String::from_utf8_lossy(word)))
            .collect::<Result<_, _>>();
        Ok(addresses.map(|addresses| Self {
            addresses,
            by_default,
        }))
    }
}

/// The families of the skeleton, and how often each limit was reached; services add to the last one.
static INFO: Family = Family::gauge("postkeep_info", "Always 1; the version is a label.");
static CLIENTS: Family = Family::gauge("postkeep_clients", "Connections that are open now.");
static ACCEPTED: Family =
    Family::counter("postkeep_clients_accepted_total", "Connections accepted.");
static ACCEPT_FAILURES: Family = Family::counter(
    "postkeep_accept_failures_total",
    "Connections that could not be accepted.",
);
static CLOSED: Family = Family::counter(
    "postkeep_clients_closed_total",
    "Connections closed, by why.",
);
static TURNS: Family = Family::counter(
    "postkeep_client_turns_total",
    "Times that something came from a client.",
);
/// How often a limit was reached; the label `limit` is the parameter that raises it.
pub static LIMIT_REACHED: Family = Family::counter(
    "postkeep_limit_reached_total",
    "Times that somebody went beyond a limit, by the parameter that raises it.",
);

/// Adds what the skeleton knows.
pub(crate) fn describe(shared: &Shared, page: &mut Page) {
    page.add(&INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let clients = shared.clients.load(std::sync::atomic::Ordering::Relaxed);
    let statistics = shared.counters.read(clients);
    page.add(&CLIENTS, &[], statistics.clients);
    page.add(&ACCEPTED, &[], statistics.accepted);
    page.add(&ACCEPT_FAILURES, &[], statistics.accept_failures);
    page.add(&TURNS, &[], statistics.turns);
    for (cause, count) in [
        ("peer", statistics.closed_by_peer),
        ("broken", statistics.closed_broken),
        ("read_limit", statistics.closed_read_limit),
        ("write_limit", statistics.closed_write_limit),
        ("service", statistics.closed_by_service),
        ("panic", statistics.closed_by_panic),
        ("shed", statistics.closed_shed),
        ("leaving", statistics.closed_leaving),
    ] {
        page.add(&CLOSED, &[("cause", cause)], count);
    }
    let complaints = &shared.complaints;
    for (limit, complaint) in [
        (limits::CLIENTS, &complaints.clients),
        (limits::USER_CLIENTS, &complaints.user_clients),
        (limits::ADDRESS_CLIENTS, &complaints.address_clients),
        (limits::REQUEST_RATE, &complaints.request_rate),
        (limits::BUFFER_MEMORY, &complaints.buffer_memory),
        ("descriptors", &complaints.descriptors),
        ("descriptors_of_a_client", &complaints.handles),
    ] {
        page.add(&LIMIT_REACHED, &[("limit", limit)], complaint.reached());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postkeep_conf::Release;

    fn read(text: &[u8]) -> Result<Places, BadAddress> {
        let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
        dictionary.load(text, "main.cf", &mut Vec::new()).unwrap();
        Places::read(&mut dictionary, "x", &mut Vec::new()).unwrap()
    }

    #[test]
    fn beside_the_service_unless_something_else_is_asked_for() {
        let places = |addresses, by_default| {
            Ok(Places {
                addresses,
                by_default,
            })
        };
        let beside = Address::Unix("private/x.metrics".into());
        assert_eq!(read(b""), places(vec![beside], true));
        assert_eq!(
            read(b"postkeep_metrics_address =\n"),
            places(Vec::new(), false)
        );
        assert_eq!(
            read(
                b"postkeep_metrics_address = unix:public/x, inet:localhost:9150 inet:[::1]:9151\n"
            ),
            places(
                vec![
                    Address::Unix("public/x".into()),
                    Address::Inet("127.0.0.1:9150".parse().unwrap()),
                    Address::Inet("[::1]:9151".parse().unwrap()),
                ],
                false
            )
        );
    }

    #[test]
    fn this_machine_only() {
        for bad in [
            "inet:0.0.0.0:9150",
            "inet:192.0.2.1:9150",
            "inet:127.0.0.1:0",
            "inet:mail.example:9150",
            "inet:9150",
            "unix:",
            "unix:..",
            "127.0.0.1:9150",
        ] {
            let text = format!("postkeep_metrics_address = {bad}\n");
            assert_eq!(read(text.as_bytes()), Err(BadAddress(bad.to_owned())));
        }
    }
}
