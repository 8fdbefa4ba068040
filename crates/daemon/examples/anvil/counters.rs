//! What anvil(8) counts: connections and events of clients, within bounds of time. No clock, socket or thread.
//!
//! A client is known by a text that its server makes up (`smtp:192.0.2.1`), the *ident*. What is counted about it is kept
//! while it has connections and for one time unit after the last one. All rates of an ident begin again together, with
//! the first event that comes more than a time unit after they began.
//!
//! # References
//! anvil(8); Postfix `src/anvil/anvil.c`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postkeep_wire::diagnostics::Shown;

/// A moment, on two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Whole seconds from any fixed moment on, of a clock that is never set.
    pub seconds: u64,
    /// The time of day, for reports.
    pub wall: SystemTime,
}

/// Something that is counted for an ident, besides connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message delivery request.
    Message,
    /// A recipient address.
    Recipient,
    /// A TLS session that was negotiated and not resumed.
    NewTls,
    /// An `AUTH` command.
    Auth,
    /// A request to trace TLS (Postfix 3.12 and later).
    TlsTrace,
}

impl Event {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 5] = [
        Self::Message,
        Self::Recipient,
        Self::NewTls,
        Self::Auth,
        Self::TlsTrace,
    ];

    /// Its name in reports.
    const fn title(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Recipient => "recipient",
            Self::NewTls => "newtls",
            Self::Auth => "auth",
            Self::TlsTrace => "tlstrace",
        }
    }
}

/// The connection that one server process has told about: servers have one client at a time.
///
/// Kept for each server; when the server goes away, give it back with [`Counters::leave`].
#[derive(Debug, Default)]
pub struct Link(Option<Arc<[u8]>>);

/// Everything about one ident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections now.
    pub count: i32,
    /// Connections per time unit.
    pub rate: i32,
    /// Events per time unit, in the order of [`Event::ALL`].
    pub events: [i32; Event::ALL.len()],
}

#[derive(Debug)]
struct Client {
    seen: Snapshot,
    /// When the rates began, in seconds.
    start: u64,
    /// When it is forgotten, in seconds; set while it has no connection.
    expires: Option<u64>,
}

impl Client {
    /// The rates that still count.
    fn current(&self, now: Now, unit: u64) -> Snapshot {
        if self.start.saturating_add(unit) < now.seconds {
            Snapshot {
                count: self.seen.count,
                ..Snapshot::default()
            }
        } else {
            self.seen
        }
    }

    /// Begins the rates again when they are too old.
    fn renew(&mut self, now: Now, unit: u64) {
        if self.start.saturating_add(unit) < now.seconds {
            self.seen = self.current(now, unit);
            self.start = now.seconds;
        }
    }
}

/// The largest value since the last report.
#[derive(Clone, Debug, Default)]
struct Peak {
    value: i32,
    /// Who and when; set with the first value.
    at: Option<(Arc<[u8]>, SystemTime)>,
}

impl Peak {
    fn see(&mut self, value: i32, ident: &Arc<[u8]>, now: Now) {
        if value > self.value {
            self.value = value;
            self.at = Some((Arc::clone(ident), now.wall));
        }
    }
}

/// The largest values of one reporting interval.
#[derive(Debug, Default)]
struct Peaks {
    rate: Peak,
    count: Peak,
    events: [Peak; Event::ALL.len()],
    cache: Option<(usize, SystemTime)>,
}

/// All counters of one process.
#[derive(Debug)]
pub struct Counters {
    /// `anvil_rate_time_unit`, in seconds.
    unit: u64,
    clients: HashMap<Arc<[u8]>, Client>,
    /// Who is forgotten next.
    expiring: BTreeSet<(u64, Arc<[u8]>)>,
    peaks: Peaks,
}

impl Counters {
    /// Counters that have seen nothing.
    ///
    /// - `unit`: the time that rates are counted over; whole seconds count
    pub fn new(unit: Duration) -> Self {
        Self {
            unit: unit.as_secs(),
            clients: HashMap::new(),
            expiring: BTreeSet::new(),
            peaks: Peaks::default(),
        }
    }

    /// A client has connected to the server that `link` belongs to. Returns its connections now, and per time unit.
    pub fn connect(&mut self, link: &mut Link, ident: &[u8], now: Now) -> (i32, i32) {
        self.expire(now);
        let ident = self.admit(link, ident, now);
        let Some(client) = self.clients.get(&ident) else {
            return (0, 0);
        };
        let Snapshot { count, rate, .. } = client.seen;
        self.peaks.rate.see(rate, &ident, now);
        self.peaks.count.see(count, &ident, now);
        (count, rate)
    }

    /// A client has disconnected; nothing happens unless it is the one that `link` was told about last.
    pub fn disconnect(&mut self, link: &mut Link, ident: &[u8], now: Now) {
        self.expire(now);
        if link.0.as_deref() == Some(ident) {
            self.leave(link, now);
        }
    }

    /// The server has gone, or has another client. Whether it had one.
    pub fn leave(&mut self, link: &mut Link, now: Now) -> bool {
        let Some(ident) = link.0.take() else {
            return false;
        };
        if let Some(client) = self.clients.get_mut(&ident) {
            client.seen.count -= 1;
            if client.seen.count == 0 {
                let due = now.seconds.saturating_add(self.unit);
                client.expires = Some(due);
                self.expiring.insert((due, ident));
            }
        }
        true
    }

    /// Counts an event; returns how many there were in this time unit.
    ///
    /// An ident that is not known counts as connected: this process may be younger than the connection.
    pub fn count(&mut self, link: &mut Link, ident: &[u8], event: Event, now: Now) -> i32 {
        self.expire(now);
        let ident = match self.clients.get_key_value(ident) {
            Some((ident, _)) => Arc::clone(ident),
            None => self.admit(link, ident, now),
        };
        let Some(client) = self.clients.get_mut(&ident) else {
            return 0;
        };
        client.renew(now, self.unit);
        let rate = &mut client.seen.events[event as usize];
        *rate = rate.saturating_add(1);
        let rate = *rate;
        self.peaks.events[event as usize].see(rate, &ident, now);
        rate
    }

    /// What is known about an ident; nothing is counted. `None` when nothing is.
    pub fn look_up(&mut self, ident: &[u8], now: Now) -> Option<Snapshot> {
        self.expire(now);
        let client = self.clients.get(ident)?;
        Some(client.current(now, self.unit))
    }

    /// Forgets the clients that have been gone for long enough. All other methods do so, too: this is to free memory.
    pub fn expire(&mut self, now: Now) {
        while let Some((due, _)) = self.expiring.first()
            && *due <= now.seconds
            && let Some((_, ident)) = self.expiring.pop_first()
        {
            self.clients.remove(&ident);
        }
    }

    /// The lines to be logged for the interval that ends here; a new one begins. None when nothing happened.
    ///
    /// - `moment`: shows a time of day as `Mon DD HH:MM:SS`
    pub fn report(&mut self, moment: impl Fn(SystemTime) -> String) -> Vec<String> {
        let peaks = std::mem::take(&mut self.peaks);
        let unit = self.unit;
        let line = |peak: &Peak, what: String| {
            let (ident, when) = peak.at.as_ref()?;
            let (ident, when) = (Shown::new(ident), moment(*when));
            Some(format!("statistics: max {what} for ({ident}) at {when}"))
        };
        let rate = |name: &str, peak: &Peak| {
            let what = format!("{name} rate {}/{unit}s", peak.value);
            line(peak, what)
        };
        let mut lines = Vec::new();
        lines.extend(rate("connection", &peaks.rate));
        lines.extend(line(
            &peaks.count,
            format!("connection count {}", peaks.count.value),
        ));
        for (event, peak) in Event::ALL.into_iter().zip(&peaks.events) {
            lines.extend(rate(event.title(), peak));
        }
        if let Some((size, when)) = peaks.cache {
            let when = moment(when);
            lines.push(format!("statistics: max cache size {size} at {when}"));
        }
        lines
    }

    /// Counts one connection more, and makes it the one of `link`.
    fn admit(&mut self, link: &mut Link, ident: &[u8], now: Now) -> Arc<[u8]> {
        let known = self.clients.get_key_value(ident);
        let ident = known.map_or_else(|| Arc::from(ident), |(ident, _)| Arc::clone(ident));
        let (unit, before) = (self.unit, self.clients.len());
        let client = self
            .clients
            .entry(Arc::clone(&ident))
            .or_insert_with(|| Client {
                seen: Snapshot::default(),
                start: now.seconds,
                expires: None,
            });
        client.renew(now, unit);
        client.seen.rate = client.seen.rate.saturating_add(1);
        client.seen.count = client.seen.count.saturating_add(1);
        if let Some(due) = client.expires.take() {
            self.expiring.remove(&(due, Arc::clone(&ident)));
        }
        let size = self.clients.len();
        if size > before && self.peaks.cache.is_none_or(|(most, _)| most < size) {
            self.peaks.cache = Some((size, now.wall));
        }
        // A server that did not say goodbye to its last client has another one now.
        self.leave(link, now);
        link.0 = Some(Arc::clone(&ident));
        ident
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Duration = Duration::from_mins(1);

    fn at(seconds: u64) -> Now {
        Now {
            seconds: 1000 + seconds,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        }
    }

    fn lines(counters: &mut Counters) -> Vec<String> {
        counters.report(|moment| {
            let since = moment.duration_since(SystemTime::UNIX_EPOCH);
            format!("+{}", since.unwrap_or_default().as_secs())
        })
    }

    #[test]
    fn connections_of_several_servers_add_up() {
        let mut counters = Counters::new(UNIT);
        let (mut one, mut two) = (Link::default(), Link::default());
        assert_eq!(counters.connect(&mut one, b"a", at(0)), (1, 1));
        assert_eq!(counters.connect(&mut two, b"a", at(0)), (2, 2));
        counters.disconnect(&mut one, b"b", at(1));
        counters.disconnect(&mut one, b"a", at(1));
        counters.disconnect(&mut one, b"a", at(1));
        assert_eq!(counters.connect(&mut one, b"a", at(1)), (2, 3));
        assert!(counters.leave(&mut two, at(1)));
        assert!(!counters.leave(&mut two, at(1)));
        assert_eq!(counters.look_up(b"a", at(1)).unwrap().count, 1);
    }

    #[test]
    fn a_server_has_one_client() {
        let mut counters = Counters::new(UNIT);
        let mut link = Link::default();
        assert_eq!(counters.connect(&mut link, b"a", at(0)), (1, 1));
        // The former one is taken back before the answer.
        assert_eq!(counters.connect(&mut link, b"a", at(0)), (1, 2));
        assert_eq!(counters.connect(&mut link, b"b", at(0)), (1, 1));
        assert_eq!(counters.look_up(b"a", at(0)).unwrap().count, 0);
    }

    #[test]
    fn rates_begin_again_together_after_more_than_a_unit() {
        let mut counters = Counters::new(UNIT);
        let mut link = Link::default();
        counters.connect(&mut link, b"a", at(0));
        assert_eq!(counters.count(&mut link, b"a", Event::Message, at(10)), 1);
        assert_eq!(counters.count(&mut link, b"a", Event::Auth, at(20)), 1);
        assert_eq!(counters.count(&mut link, b"a", Event::Message, at(60)), 2);
        let stale = Snapshot {
            count: 1,
            ..Snapshot::default()
        };
        assert_eq!(counters.look_up(b"a", at(61)), Some(stale));
        assert_eq!(counters.count(&mut link, b"a", Event::Message, at(61)), 1);
        let seen = counters.look_up(b"a", at(121)).unwrap();
        assert_eq!((seen.count, seen.rate), (1, 0));
        assert_eq!(seen.events, [1, 0, 0, 0, 0]);
        assert_eq!(counters.look_up(b"a", at(122)), Some(stale));
    }

    #[test]
    fn clients_without_connection_are_forgotten_after_a_unit() {
        let mut counters = Counters::new(UNIT);
        let mut link = Link::default();
        counters.connect(&mut link, b"a", at(0));
        counters.disconnect(&mut link, b"a", at(30));
        // Back in time: not forgotten, and the next unit begins when it leaves again.
        counters.connect(&mut link, b"a", at(89));
        counters.expire(at(500));
        counters.disconnect(&mut link, b"a", at(500));
        assert!(counters.look_up(b"a", at(559)).is_some());
        assert_eq!(counters.look_up(b"a", at(560)), None);
        assert!(counters.clients.is_empty() && counters.expiring.is_empty());
    }

    #[test]
    fn events_of_an_unknown_client_make_it_known_as_connected() {
        let mut counters = Counters::new(UNIT);
        let mut link = Link::default();
        assert_eq!(counters.count(&mut link, b"a", Event::Recipient, at(0)), 1);
        let seen = counters.look_up(b"a", at(0)).unwrap();
        assert_eq!(
            (seen.count, seen.rate, seen.events),
            (1, 1, [0, 1, 0, 0, 0])
        );
        // Such a connection is in no peak but the size of the cache.
        assert_eq!(
            lines(&mut counters),
            [
                "statistics: max recipient rate 1/60s for (a) at +0",
                "statistics: max cache size 1 at +0"
            ]
        );
    }

    #[test]
    fn reports_tell_who_was_first_at_the_peak_and_begin_anew() {
        let mut counters = Counters::new(UNIT);
        let (mut one, mut two) = (Link::default(), Link::default());
        counters.connect(&mut one, b"a", at(1));
        counters.connect(&mut two, b"b\n", at(2));
        for event in Event::ALL {
            counters.count(&mut two, b"b\n", event, at(3));
        }
        counters.connect(&mut one, b"b\n", at(4));
        assert_eq!(
            lines(&mut counters),
            [
                "statistics: max connection rate 2/60s for (b?) at +4",
                "statistics: max connection count 2 for (b?) at +4",
                "statistics: max message rate 1/60s for (b?) at +3",
                "statistics: max recipient rate 1/60s for (b?) at +3",
                "statistics: max newtls rate 1/60s for (b?) at +3",
                "statistics: max auth rate 1/60s for (b?) at +3",
                "statistics: max tlstrace rate 1/60s for (b?) at +3",
                "statistics: max cache size 2 at +2",
            ]
        );
        assert!(lines(&mut counters).is_empty());
        // The cache's size is looked at when something is added to it.
        counters.connect(&mut one, b"a", at(5));
        assert_eq!(
            lines(&mut counters),
            [
                "statistics: max connection rate 2/60s for (a) at +5",
                "statistics: max connection count 1 for (a) at +5"
            ]
        );
    }
}
