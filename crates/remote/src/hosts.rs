//! The servers of a table: which one is tried next, and which ones rest.
//!
//! The order is the reference's: a server with a connection before all others; then UNIX-domain sockets before
//! network addresses before URIs, at random within each kind; a server that failed rests for a while. Ours: a server
//! without a connection is tried by one connector at a time, the others wait for what comes of it.
//!
//! Pure: time and chance are arguments.
//!
//! # References
//! Postfix `src/global/dict_mysql.c`, `dict_mysql_get_active()`.

use std::path::PathBuf;
use std::time::Duration;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A UNIX-domain socket.
    Unix(PathBuf),
    /// A host's name or address, and a port's number or service name.
    Inet(String, String),
    /// What a library makes of it.
    Uri(String),
}

impl Place {
    /// Lower comes first.
    fn rank(&self) -> usize {
        match self {
            Self::Unix(_) => 0,
            Self::Inet(..) => 1,
            Self::Uri(_) => 2,
        }
    }
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// As it was configured, for log lines; without secrets.
    pub text: String,
    /// Where it is.
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Untried,
    Active,
    Failed { until: Duration },
}

#[derive(Clone, Debug)]
struct Entry {
    host: Host,
    state: State,
    /// Somebody is connecting who will tell.
    probed: bool,
}

/// What to do next for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Connect to this one, then call [`Hosts::connected`], [`Hosts::failed`] or [`Hosts::released`].
    Connect(usize),
    /// Somebody else is connecting; wait for what comes of it.
    Wait,
    /// All have been tried, or rest.
    Nobody,
}

/// The servers of a table.
#[derive(Clone, Debug)]
pub struct Hosts {
    entries: Vec<Entry>,
    rest: Duration,
}

impl Hosts {
    /// - `rest`: how long a server is left alone after a failure
    pub fn new(hosts: Vec<Host>, rest: Duration) -> Self {
        let entries = hosts.into_iter().map(|host| Entry {
            host,
            state: State::Untried,
            probed: false,
        });
        Self {
            entries: entries.collect(),
            rest,
        }
    }

    /// One of them.
    pub fn host(&self, index: usize) -> Option<&Host> {
        self.entries.get(index).map(|entry| &entry.host)
    }

    /// Which one to connect to.
    ///
    /// - `tried`: those that this lookup has tried already
    /// - `below`: a random number below its argument, which is above zero
    pub fn choose(
        &mut self,
        now: Duration,
        tried: &[usize],
        mut below: impl FnMut(usize) -> usize,
    ) -> Choice {
        for rank in 0..3 {
            let active = self.indices(rank, tried, |entry| entry.state == State::Active);
            if let Some(index) = pick(&active, &mut below) {
                return Choice::Connect(index);
            }
        }
        for rank in 0..3 {
            let due = self.indices(rank, tried, |entry| match entry.state {
                State::Untried => true,
                State::Active => false,
                State::Failed { until } => now >= until,
            });
            let mut free = due.clone();
            free.retain(|&index| !self.entries[index].probed);
            if let Some(index) = pick(&free, &mut below) {
                self.entries[index].probed = true;
                return Choice::Connect(index);
            }
            if !due.is_empty() {
                return Choice::Wait;
            }
        }
        Choice::Nobody
    }

    fn indices(&self, rank: usize, tried: &[usize], wanted: impl Fn(&Entry) -> bool) -> Vec<usize> {
        let all = self.entries.iter().enumerate();
        all.filter(|(index, entry)| {
            entry.host.place.rank() == rank && !tried.contains(index) && wanted(entry)
        })
        .map(|(index, _)| index)
        .collect()
    }

    /// There is a connection to it.
    pub fn connected(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.state = State::Active;
            entry.probed = false;
        }
    }

    /// It cannot be reached, or a question to it failed: it rests.
    pub fn failed(&mut self, index: usize, now: Duration) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.state = State::Failed {
                until: now.saturating_add(self.rest),
            };
            entry.probed = false;
        }
    }

    /// Nothing came of connecting to it.
    pub fn released(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.probed = false;
        }
    }
}

fn pick(from: &[usize], below: &mut impl FnMut(usize) -> usize) -> Option<usize> {
    match from {
        [] => None,
        [only] => Some(*only),
        several => several.get(below(several.len())).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// `u` is a UNIX-domain socket, `i` a network address, `r` a URI.
    fn hosts(kinds: &str) -> Hosts {
        let make = |kind: char| Host {
            text: kind.to_string(),
            place: match kind {
                'u' => Place::Unix("/x".into()),
                'i' => Place::Inet("h".to_owned(), "1".to_owned()),
                _ => Place::Uri("r:".to_owned()),
            },
        };
        Hosts::new(kinds.chars().map(make).collect(), at(60))
    }

    fn choose(hosts: &mut Hosts, now: u64, tried: &[usize]) -> Choice {
        hosts.choose(at(now), tried, |_| 0)
    }

    #[test]
    fn kinds_come_in_order_and_chance_within() {
        let mut tried = Vec::new();
        let mut list = hosts("riiuu");
        for (chance, wanted) in [(1, 4), (0, 3), (1, 2), (0, 1), (0, 0)] {
            let choice = list.choose(at(0), &tried, |count| chance.min(count - 1));
            assert_eq!(choice, Choice::Connect(wanted));
            list.failed(wanted, at(0));
            tried.push(wanted);
        }
        assert_eq!(choose(&mut list, 0, &tried), Choice::Nobody);
    }

    #[test]
    fn an_active_one_is_taken_again_whatever_its_kind() {
        let mut list = hosts("ui");
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(0));
        list.failed(0, at(0));
        assert_eq!(choose(&mut list, 0, &[0]), Choice::Connect(1));
        list.connected(1);
        // The rest of the first is over, but nobody needs it.
        assert_eq!(choose(&mut list, 100, &[]), Choice::Connect(1));
        // Several may connect to an active one at once.
        assert_eq!(choose(&mut list, 100, &[]), Choice::Connect(1));
        list.failed(1, at(100));
        assert_eq!(choose(&mut list, 100, &[]), Choice::Connect(0));
    }

    #[test]
    fn failed_ones_rest() {
        let mut list = hosts("i");
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(0));
        list.failed(0, at(5));
        assert_eq!(choose(&mut list, 64, &[]), Choice::Nobody);
        assert_eq!(choose(&mut list, 65, &[]), Choice::Connect(0));
    }

    #[test]
    fn one_at_a_time_tries_what_may_be_dead() {
        let mut list = hosts("ii");
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(0));
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(1));
        assert_eq!(choose(&mut list, 0, &[]), Choice::Wait);
        list.released(0);
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(0));
        list.failed(1, at(0));
        assert_eq!(choose(&mut list, 0, &[]), Choice::Wait);
        list.connected(0);
        assert_eq!(choose(&mut list, 0, &[]), Choice::Connect(0));
        assert_eq!(list.host(1).unwrap().text, "i");
        assert!(list.host(2).is_none());
    }
}
