//! Whether and when a client is greeted with the name of the protocol.
//!
//! Clients of Postfix 3.6 and later say nothing until they are greeted; older ones speak at once and take a
//! greeting for a wrong reply.

use std::time::{Duration, Instant};

use postkeep_wire::protocol;

/// What `postkeep_announce_protocol` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Greet every client.
    Always,
    /// Greet nobody.
    Never,
    /// Greet whoever has said nothing for so long.
    Detect(Duration),
}

/// Values of `postkeep_announce_protocol`, for messages.
pub(crate) const VALUES: &str = "auto, yes, no, detect";

impl Policy {
    /// The policy of a process; `None` when `value` is none of [`VALUES`].
    ///
    /// - `version`: `mail_version`, when it is known; only `auto` looks at it
    /// - `wait`: `postkeep_detect_milliseconds`
    pub(crate) fn new(value: &str, version: Option<&str>, wait: Duration) -> Option<Self> {
        Some(match value.to_ascii_lowercase().as_str() {
            "yes" => Self::Always,
            "no" => Self::Never,
            "detect" => Self::Detect(wait),
            "auto" => match version.and_then(release) {
                Some(release) if release < (3, 6) => Self::Never,
                _ => Self::Always,
            },
            _ => return None,
        })
    }
}

/// The first two numbers of a version (`3.5.25`, `3.11-20250101`).
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// How one client is greeted.
#[derive(Debug)]
pub(crate) struct Greeting {
    protocol: &'static str,
    state: State,
}

#[derive(Debug)]
enum State {
    Owed,
    Undecided(Duration),
    Listening(Instant),
    Over,
}

/// What to do with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The greeting is over: go on with the conversation.
    Converse,
    /// Listen until then, or until the client speaks, then ask again.
    Listen(Instant),
}

impl Greeting {
    /// The greeting of a client that has just been accepted.
    pub(crate) fn new(policy: Policy, protocol: &'static str) -> Self {
        Self {
            protocol,
            state: match policy {
                Policy::Always => State::Owed,
                Policy::Never => State::Over,
                Policy::Detect(wait) => State::Undecided(wait),
            },
        }
    }

    /// Decides, and appends the greeting to `out` when it is due.
    ///
    /// - `spoken`: the client has sent something, or closed
    pub(crate) fn turn(&mut self, spoken: bool, now: Instant, out: &mut Vec<u8>) -> Turn {
        let until = match self.state {
            State::Over => return Turn::Converse,
            State::Owed => now,
            State::Undecided(wait) => now + wait,
            State::Listening(until) => until,
        };
        let undecided = !matches!(self.state, State::Owed);
        if undecided && !spoken && now < until {
            self.state = State::Listening(until);
            return Turn::Listen(until);
        }
        if !(undecided && spoken) {
            protocol::announce(self.protocol, out);
        }
        self.state = State::Over;
        Turn::Converse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(20);
    const GREETING: &[u8] = b"protocol\0proxymap_protocol\0\0";

    fn greeting(policy: Policy) -> (Greeting, Vec<u8>, Instant) {
        (
            Greeting::new(policy, protocol::PROXYMAP),
            Vec::new(),
            Instant::now(),
        )
    }

    #[test]
    fn values_and_versions() {
        let policy = |value, version| Policy::new(value, version, WAIT);
        assert_eq!(policy("YES", Some("3.1")), Some(Policy::Always));
        assert_eq!(policy("no", Some("3.11")), Some(Policy::Never));
        assert_eq!(policy("detect", None), Some(Policy::Detect(WAIT)));
        assert_eq!(policy("auto", None), Some(Policy::Always));
        assert_eq!(policy("auto", Some("3.5.25")), Some(Policy::Never));
        assert_eq!(policy("auto", Some("2.11")), Some(Policy::Never));
        assert_eq!(policy("auto", Some("3.6.0")), Some(Policy::Always));
        assert_eq!(policy("auto", Some("3.12-20260821")), Some(Policy::Always));
        assert_eq!(policy("auto", Some("nonsense")), Some(Policy::Always));
        assert_eq!(policy("maybe", None), None);
    }

    #[test]
    fn greets_once_even_who_spoke_first() {
        let (mut greeting, mut out, now) = greeting(Policy::Always);
        assert_eq!(greeting.turn(true, now, &mut out), Turn::Converse);
        assert_eq!(greeting.turn(true, now, &mut out), Turn::Converse);
        assert_eq!(out, GREETING);
    }

    #[test]
    fn never_greets() {
        let (mut greeting, mut out, now) = greeting(Policy::Never);
        assert_eq!(greeting.turn(false, now, &mut out), Turn::Converse);
        assert!(out.is_empty());
    }

    #[test]
    fn early_speaker_is_not_greeted() {
        let (mut greeting, mut out, now) = greeting(Policy::Detect(WAIT));
        assert_eq!(
            greeting.turn(false, now, &mut out),
            Turn::Listen(now + WAIT)
        );
        let later = now + WAIT / 2;
        assert_eq!(
            greeting.turn(false, later, &mut out),
            Turn::Listen(now + WAIT)
        );
        assert_eq!(greeting.turn(true, later, &mut out), Turn::Converse);
        assert_eq!(greeting.turn(false, now + WAIT, &mut out), Turn::Converse);
        assert!(out.is_empty());
    }

    #[test]
    fn silent_client_is_greeted_when_its_time_is_over() {
        let (mut greeting, mut out, now) = greeting(Policy::Detect(WAIT));
        greeting.turn(false, now, &mut out);
        assert_eq!(greeting.turn(false, now + WAIT, &mut out), Turn::Converse);
        assert_eq!(out, GREETING);
    }
}
