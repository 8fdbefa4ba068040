//! What the connection cache tells a monitoring system.

use postkeep_daemon::metrics::{Family, LIMIT_REACHED, Page};

use super::Scache;

static SESSIONS: Family = Family::gauge("postkeep_scache_sessions", "Sessions in the cache now.");
static BINDINGS: Family = Family::gauge(
    "postkeep_scache_bindings",
    "Bindings of destinations to endpoints now.",
);
static DESTINATIONS: Family = Family::gauge(
    "postkeep_scache_destinations",
    "Destinations that have a binding now.",
);
static ENDPOINTS: Family = Family::gauge(
    "postkeep_scache_endpoints",
    "Endpoints that have a session now.",
);
static SAVED: Family = Family::counter("postkeep_scache_saved_total", "Sessions saved.");
static TAKEN_OVER: Family = Family::counter(
    "postkeep_scache_taken_over_total",
    "Of the sessions saved: taken over from the process before.",
);
static ENDED: Family = Family::counter(
    "postkeep_scache_ended_total",
    "Sessions that are not in the cache any more, by why.",
);
static REFUSED: Family = Family::counter(
    "postkeep_scache_refused_total",
    "Sessions that were not saved, by why.",
);
static GOODBYES: Family = Family::counter(
    "postkeep_scache_goodbyes_total",
    "Goodbyes to far ends, by whether they could be sent.",
);

impl Scache {
    /// Adds what has been counted.
    pub(super) fn describe_all(&self, page: &mut Page) {
        let counted = self.kept.counted();
        let sessions = &counted.sessions;
        page.add(&SESSIONS, &[], counted.now);
        page.add(&BINDINGS, &[], counted.bindings);
        page.add(&DESTINATIONS, &[], counted.destinations);
        page.add(&ENDPOINTS, &[], counted.endpoints);
        page.add(&SAVED, &[], sessions.saved);
        page.add(&TAKEN_OVER, &[], sessions.received);
        for (cause, count) in [
            ("found", sessions.found),
            ("expired", sessions.expired),
            ("closed", sessions.closed),
            ("unsolicited", sessions.unsolicited),
            ("broken", sessions.broken),
            ("evicted", sessions.evicted),
            ("evicted_from_endpoint", sessions.evicted_from_endpoint),
            ("shutdown", sessions.shut_down),
        ] {
            page.add(&ENDED, &[("cause", cause)], count);
        }
        for (reason, count) in [
            ("full", sessions.refused_full),
            ("not_connected", sessions.refused_not_connected),
            ("own_client", sessions.refused_own_client),
            ("too_long", sessions.refused_too_long),
        ] {
            page.add(&REFUSED, &[("reason", reason)], count);
        }
        for (outcome, count) in [("said", counted.said), ("not_said", counted.not_said)] {
            page.add(&GOODBYES, &[("outcome", outcome)], count);
        }
        for (limit, count) in [
            ("postkeep_connection_cache_session_limit", sessions.evicted),
            (
                "postkeep_connection_cache_endpoint_session_limit",
                sessions.evicted_from_endpoint,
            ),
            (
                "postkeep_connection_cache_destination_endpoint_limit",
                sessions.evicted_bindings,
            ),
        ] {
            page.add(&LIMIT_REACHED, &[("limit", limit)], count);
        }
        self.oversize.describe(page);
    }
}
