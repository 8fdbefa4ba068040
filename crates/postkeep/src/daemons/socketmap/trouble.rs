//! The lines about clients that do what they should not: each kind at once, then one a minute, as anybody can cause
//! them without end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postkeep_daemon::limits::Complaint;
use postkeep_proxymap::socketmap::{TROUBLES, Trouble};
use postkeep_wire::diagnostics::Shown;

use super::Origin;
use super::parameters::{
    ANSWER_TIME, CERTIFICATE, HANDSHAKE_TIME, MAPS, PLAINTEXT, REQUEST_SIZE, REQUEST_TIME,
};

/// How much of a map's name is shown, in bytes.
const SHOWN: usize = 64;

/// All lines, and how often each was called for.
#[derive(Debug)]
pub(super) struct Lines {
    /// The service in these lines.
    stream: Arc<str>,
    troubles: [Complaint; TROUBLES.len()],
    pub(super) handshake_failed: Complaint,
    pub(super) handshake_slow: Complaint,
    pub(super) broken: Complaint,
    pub(super) plaintext: Complaint,
    handshakes: AtomicU64,
}

/// What is said of a trouble, and the parameter that makes it go away.
fn words(trouble: Trouble) -> (&'static str, &'static str) {
    match trouble {
        Trouble::Malformed => ("sends a request without a map name or a space", ""),
        Trouble::NoNetstring => ("sends what is no netstring, it is disconnected", ""),
        Trouble::TooLarge => (
            "sends a request that is too large, it is disconnected",
            REQUEST_SIZE,
        ),
        Trouble::Slow => (
            "does not send the rest of its request, it is disconnected",
            REQUEST_TIME,
        ),
        Trouble::Cut => ("is gone in the middle of its request", ""),
        Trouble::NoMap => ("asks for a map that there is not", MAPS),
        Trouble::NoText => ("asks for a key that is no text, which is not found", ""),
        Trouble::NoAnswer => (
            "waits for a table that does not answer in time, and is told so",
            ANSWER_TIME,
        ),
    }
}

impl Lines {
    pub(super) fn new(stream: Arc<str>) -> Self {
        Self {
            stream,
            troubles: TROUBLES.map(|trouble| Complaint::new(words(trouble).1)),
            handshake_failed: Complaint::new(""),
            handshake_slow: Complaint::new(HANDSHAKE_TIME),
            broken: Complaint::new(""),
            plaintext: Complaint::new(CERTIFICATE),
            handshakes: AtomicU64::new(0),
        }
    }

    /// A conversation has trouble.
    ///
    /// - `detail`: the name of the map, where that is the trouble
    pub(super) fn trouble(&self, now: Instant, origin: Origin, trouble: Trouble, detail: &[u8]) {
        let Some(complaint) = self.troubles.get(trouble as usize) else {
            return;
        };
        let (what, _) = words(trouble);
        let stream = &self.stream;
        if detail.is_empty() {
            complaint.say(now, format_args!("{stream}: {origin} {what}"));
        } else {
            let detail = Shown::cut(detail, SHOWN);
            complaint.say(now, format_args!("{stream}: {origin} {what}: \"{detail}\""));
        }
    }

    pub(super) fn handshake_done(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of TLS connections that were made.
    pub(super) fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    pub(super) fn handshake_failed(&self, now: Instant, origin: Origin, why: &dyn fmt::Display) {
        let stream = &self.stream;
        self.handshake_failed.say(
            now,
            format_args!("{stream}: TLS handshake with {origin} failed: {why}"),
        );
    }

    pub(super) fn handshake_slow(&self, now: Instant, origin: Origin, limit: Duration) {
        let (stream, limit) = (&self.stream, limit.as_secs());
        self.handshake_slow.say(
            now,
            format_args!(
                "{stream}: {origin} has not finished its TLS handshake after {limit} s, it is disconnected"
            ),
        );
    }

    /// A TLS connection goes wrong after its handshake.
    pub(super) fn broken(&self, now: Instant, origin: Origin, why: &dyn fmt::Display) {
        let stream = &self.stream;
        self.broken.say(
            now,
            format_args!("{stream}: TLS connection with {origin} lost: {why}"),
        );
    }

    pub(super) fn plaintext_refused(&self, now: Instant, origin: Origin) {
        let stream = &self.stream;
        self.plaintext.say(
            now,
            format_args!(
                "{stream}: {origin} is disconnected: it is on another machine, and there is no TLS \
                 (to serve it all the same: {PLAINTEXT})"
            ),
        );
    }
}
