//! What the socketmap server tells a monitoring system beside the numbers of its tables.

use postkeep_daemon::metrics::{Family, LIMIT_REACHED, Page};
use postkeep_proxymap::socketmap::{TROUBLES, Trouble};

use super::Socketmap;
use super::parameters::{ANSWER_TIME, HANDSHAKE_TIME, REQUEST_SIZE, REQUEST_TIME};

static MAPS: Family = Family::gauge("postkeep_socketmap_maps", "Maps that may be asked for.");
static REPLIES: Family = Family::counter(
    "postkeep_socketmap_replies_total",
    "Replies to requests, by their first word.",
);
static TROUBLE: Family = Family::counter(
    "postkeep_socketmap_trouble_total",
    "Times that a client did what it should not, by what that was.",
);
static HANDSHAKES: Family = Family::counter(
    "postkeep_tls_handshakes_total",
    "TLS handshakes, by what came of them.",
);

impl Socketmap {
    /// Adds what has been counted of conversations.
    pub(super) fn describe_conversations(&self, page: &mut Page) {
        let counts = self.server.counts();
        let of = |trouble: Trouble| counts.troubles[trouble as usize];
        page.add(&MAPS, &[], self.server.maps().len());
        let refused = of(Trouble::Malformed) + of(Trouble::NoMap) + of(Trouble::TooLarge);
        for (reply, count) in [
            ("OK", counts.found),
            ("NOTFOUND", counts.absent + of(Trouble::NoText)),
            ("TEMP", counts.temporary),
            ("PERM", counts.permanent + refused),
            ("TIMEOUT", of(Trouble::NoAnswer)),
        ] {
            page.add(&REPLIES, &[("reply", reply)], count);
        }
        for trouble in TROUBLES {
            let word = match trouble {
                Trouble::Malformed => "malformed",
                Trouble::NoNetstring => "no_netstring",
                Trouble::Cut => "cut",
                Trouble::NoMap => "no_map",
                Trouble::NoText => "no_text",
                Trouble::TooLarge | Trouble::Slow | Trouble::NoAnswer => continue,
            };
            page.add(&TROUBLE, &[("trouble", word)], of(trouble));
        }
        let lines = &self.lines;
        for (word, complaint) in [
            ("plaintext", &lines.plaintext),
            ("tls_broken", &lines.broken),
        ] {
            page.add(&TROUBLE, &[("trouble", word)], complaint.reached());
        }
        for (outcome, count) in [
            ("done", lines.handshakes()),
            ("failed", lines.handshake_failed.reached()),
            ("timed_out", lines.handshake_slow.reached()),
        ] {
            page.add(&HANDSHAKES, &[("outcome", outcome)], count);
        }
        for (limit, count) in [
            (REQUEST_SIZE, of(Trouble::TooLarge)),
            (REQUEST_TIME, of(Trouble::Slow)),
            (ANSWER_TIME, of(Trouble::NoAnswer)),
            (HANDSHAKE_TIME, lines.handshake_slow.reached()),
        ] {
            page.add(&LIMIT_REACHED, &[("limit", limit)], count);
        }
    }
}
