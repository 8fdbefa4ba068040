//! What main.cf says about the connection cache.

use std::time::Duration;

use postkeep_conf::{
    BoolParameter, Dictionary, Error, IntParameter, Sink, StrParameter, TimeParameter,
};
use postkeep_daemon::logging;
use postkeep_scache::{Goodbyes, Limits, Order, Rules};

/// Descriptors that are never used for sessions: those of the process itself.
const OWN_DESCRIPTORS: u64 = 64;

/// The parameters of the connection cache, as they are in main.cf.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    /// `connection_cache_ttl_limit`
    pub(super) ttl_limit: Duration,
    /// `connection_cache_status_update_time`
    pub(super) interval: Duration,
    /// `postkeep_connection_cache_liveness`
    pub(super) liveness: bool,
    /// `postkeep_connection_cache_handover_time`; zero: sessions end with their process.
    pub(super) handover_time: Duration,
    goodbyes: Goodbyes,
    order: Order,
    sessions: usize,
    endpoint_sessions: usize,
    destination_endpoints: usize,
    /// Percent of the descriptors that are kept for clients.
    client_share: u64,
}

impl Parameters {
    /// Reads them.
    ///
    /// # Errors
    /// A value that is no number, time or choice, or out of range.
    pub(super) fn read(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Self, Error> {
        let mut time = |name, default| {
            dictionary.time(
                &TimeParameter {
                    name,
                    default,
                    min: 1,
                    max: 0,
                },
                &mut *sink,
            )
        };
        let ttl_limit = time("connection_cache_ttl_limit", "2s")?;
        let interval = time("connection_cache_status_update_time", "600s")?;
        let handover_time = dictionary.time(
            &TimeParameter {
                name: "postkeep_connection_cache_handover_time",
                default: "10s",
                min: 0,
                max: 0,
            },
            &mut *sink,
        )?;
        let liveness = dictionary.bool(
            &BoolParameter {
                name: "postkeep_connection_cache_liveness",
                default: true,
            },
            &mut *sink,
        )?;
        let mut text = |name, default, min| -> Result<String, Error> {
            let value = dictionary.str(
                &StrParameter {
                    name,
                    default,
                    min,
                    max: 0,
                },
                &mut *sink,
            )?;
            Ok(String::from_utf8_lossy(&value).into_owned())
        };
        let goodbye = "postkeep_connection_cache_goodbye";
        let value = text(goodbye, "smtp:QUIT, lmtp:QUIT, relay:QUIT", 0)?;
        let goodbyes = Goodbyes::parse(&value).unwrap_or_else(|error| {
            logging::fatal(format_args!("bad {goodbye} value: {value} ({error})"))
        });
        let order = "postkeep_connection_cache_order";
        let value = text(order, "oldest", 1)?;
        let order = match value.as_str() {
            "newest" => Order::NewestFirst,
            "oldest" => Order::OldestFirst,
            _ => logging::fatal(format_args!(
                "bad {order} value: {value} (specify one of: oldest, newest)"
            )),
        };
        let mut number = |name, default, max| {
            let parameter = IntParameter {
                name,
                default,
                min: 0,
                max,
            };
            dictionary
                .int(&parameter, &mut *sink)
                .map(|value| usize::try_from(value).unwrap_or(0))
        };
        Ok(Self {
            ttl_limit,
            interval,
            liveness,
            handover_time,
            goodbyes,
            order,
            sessions: number("postkeep_connection_cache_session_limit", 100_000, 0)?,
            // Saving at these two limits may have to look at all that there are.
            endpoint_sessions: number(
                "postkeep_connection_cache_endpoint_session_limit",
                1000,
                100_000,
            )?,
            destination_endpoints: number(
                "postkeep_connection_cache_destination_endpoint_limit",
                100,
                100_000,
            )?,
            client_share: number("postkeep_connection_cache_client_share", 25, 90)? as u64,
        })
    }

    /// What the cache goes by in a process that may have so many descriptors.
    pub(super) fn rules(&self, descriptors: u64) -> Rules {
        let limits = Limits::default();
        let unlimited = |number: usize| if number == 0 { usize::MAX } else { number };
        let left = descriptors
            .saturating_sub(self.clients(descriptors))
            .saturating_sub(OWN_DESCRIPTORS);
        Rules {
            limits: Limits {
                sessions: limits
                    .sessions
                    .min(unlimited(self.sessions))
                    .min(usize::try_from(left).unwrap_or(usize::MAX)),
                endpoint_sessions: unlimited(self.endpoint_sessions),
                destination_bindings: unlimited(self.destination_endpoints),
                ..limits
            },
            order: self.order,
            goodbyes: self.goodbyes.clone(),
        }
    }

    /// Whether anybody hears a goodbye.
    pub(super) fn says_goodbye(&self) -> bool {
        !self.goodbyes.is_empty()
    }

    /// Descriptors of so many that are kept for clients, and for what is on its way to or from them.
    pub(super) fn clients(&self, descriptors: u64) -> u64 {
        u64::try_from(u128::from(descriptors) * u128::from(self.client_share) / 100)
            .unwrap_or(descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postkeep_conf::Release;

    fn parameters(text: &str) -> Result<Parameters, Error> {
        let mut warnings: Vec<String> = Vec::new();
        let mut dictionary = Dictionary::new(Release::ALL[0], b"/etc/postfix");
        dictionary.load(text.as_bytes(), "main.cf", &mut warnings)?;
        Parameters::read(&mut dictionary, &mut warnings)
    }

    #[test]
    fn clients_keep_their_share_of_the_descriptors() {
        let limits = parameters("").unwrap().rules(1024).limits;
        assert_eq!(limits.sessions, 1024 - 256 - 64);
        let rules = parameters("").unwrap().rules(u64::MAX);
        assert_eq!(rules.limits.sessions, 100_000);
        assert_eq!(rules.order, Order::OldestFirst);
        let newest = parameters("postkeep_connection_cache_order = newest\n").unwrap();
        assert_eq!(newest.rules(1024).order, Order::NewestFirst);
        assert_eq!(rules.goodbyes.of(b"relay\nx").unwrap()[..], *b"QUIT\r\n");
        assert_eq!(parameters("").unwrap().rules(10).limits.sessions, 0);
    }

    #[test]
    fn everything_can_be_the_reference_s() {
        let parameters = parameters(
            "postkeep_connection_cache_liveness = no\n\
             postkeep_connection_cache_handover_time = 0\n\
             postkeep_connection_cache_goodbye =\n\
             postkeep_connection_cache_order = oldest\n\
             postkeep_connection_cache_session_limit = 0\n\
             postkeep_connection_cache_endpoint_session_limit = 0\n\
             postkeep_connection_cache_destination_endpoint_limit = 0\n\
             postkeep_connection_cache_client_share = 0\n",
        )
        .unwrap();
        assert!(
            parameters.handover_time.is_zero()
                && !parameters.liveness
                && !parameters.says_goodbye()
        );
        let rules = parameters.rules(u64::MAX);
        assert_eq!(rules.limits, Limits::default());
        assert_eq!(rules.order, Order::OldestFirst);
        assert_eq!(rules.goodbyes.of(b"smtp\n"), None);
    }

    #[test]
    fn shares_are_percent() {
        assert!(parameters("postkeep_connection_cache_client_share = 91\n").is_err());
    }
}
