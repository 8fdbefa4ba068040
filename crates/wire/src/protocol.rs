//! The announcement that servers send first (Postfix 3.6 and later), and the names of all protocols.
//!
//! # References
//! Postfix `src/global/mail_proto.h`, `src/util/attr_scan0.c` (`ATTR_TYPE_STREQ`).

use crate::diagnostics::Diagnostics;
use crate::duplex::End;
use crate::encode::{Encoding, ListWriter};
use crate::scan::{Limits, Progress, ScanFlags, Scanner, Wanted};

/// anvil(8)
pub const ANVIL: &str = "anvil_protocol";
/// bounce(8), as `bounce`, `defer` and `trace`
pub const BOUNCE: &str = "delivery_status_protocol";
/// cleanup(8)
pub const CLEANUP: &str = "cleanup_protocol";
/// Delivery agents to the queue manager
pub const DELIVER: &str = "delivery_request_protocol";
/// flush(8)
pub const FLUSH: &str = "queue_flush_protocol";
/// postdrop(1), on its pipe to sendmail(1)
pub const POSTDROP: &str = "postdrop_protocol";
/// proxymap(8), as `proxymap` and `proxywrite`; the same for both request generations
pub const PROXYMAP: &str = "proxymap_protocol";
/// scache(8)
pub const SCACHE: &str = "connection_cache_protocol";
/// showq(8)
pub const SHOWQ: &str = "mail_queue_list_protocol";
/// tlsmgr(8)
pub const TLSMGR: &str = "tlsmgr_protocol";
/// tlsproxy(8)
pub const TLSPROXY: &str = "tlsproxy_protocol";
/// trivial-rewrite(8)
pub const TRIVIAL: &str = "trivial_rewrite_protocol";
/// verify(8); the double r is the reference's
pub const VERIFY: &str = "address_verification_prrotocol";
/// `nbdb_reindexd`(8), Postfix 3.11 and later
pub const NBDB_REINDEX: &str = "nbdb_reindex";

/// Appends the announcement of a protocol: one list with the attribute `protocol`.
pub fn announce(protocol: &str, out: &mut Vec<u8>) {
    ListWriter::new(Encoding::Null, out)
        .text("protocol", protocol.as_bytes())
        .finish();
}

/// What a client makes of the first bytes from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// More bytes are needed.
    Incomplete,
    /// The connection may be used; drop so many bytes.
    ///
    /// As in the reference this is also the answer when the server closed at once, or sent a list without `protocol`
    /// (with a warning): the first request will then fail.
    Accepted {
        /// Bytes to drop from the input.
        consumed: usize,
    },
    /// Another protocol, or no list at all: treat it as a failure to connect.
    Refused,
}

/// Checks the announcement of a server.
#[derive(Debug)]
pub struct AnnouncementScanner {
    protocol: &'static str,
    list: Scanner,
}

impl AnnouncementScanner {
    /// Expects one of the protocols in this module.
    pub fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            list: Scanner::new(Encoding::Null, ScanFlags::STRICT, Limits::default()),
        }
    }

    /// Scans on; after another answer than [`Announcement::Incomplete`] the scanner is as new.
    ///
    /// `input` holds the same bytes as before and more behind them; `name` is the stream (`private/scache`).
    pub fn scan(
        &mut self,
        input: &[u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> Announcement {
        let wishes = [Wanted::Equal("protocol", self.protocol)];
        let answer = match self.list.resume(&wishes, input, end, name, diagnostics) {
            Progress::Incomplete => return Announcement::Incomplete,
            Progress::Done {
                stop: crate::scan::Stop::Unexpected,
                ..
            } => Announcement::Accepted {
                consumed: input.len(),
            },
            Progress::Done { consumed, .. } => Announcement::Accepted { consumed },
            Progress::Failed { .. } => Announcement::Refused,
        };
        self.list.reset();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(input: &[u8], end: Option<End>) -> (Announcement, String) {
        let mut warnings = Vec::new();
        let mut scanner = AnnouncementScanner::new(SCACHE);
        let answer = scanner.scan(input, end, "private/scachex", &mut warnings);
        (answer, warnings.join("\n"))
    }

    #[test]
    fn the_right_announcement_is_accepted_at_its_last_byte() {
        let mut list = Vec::new();
        announce(SCACHE, &mut list);
        assert_eq!(list, b"protocol\0connection_cache_protocol\0\0");
        let mut scanner = AnnouncementScanner::new(SCACHE);
        for split in 0..list.len() {
            let early = scanner.scan(&list[..split], None, "x", &mut ());
            assert_eq!(early, Announcement::Incomplete);
        }
        let answer = scanner.scan(&list, None, "x", &mut ());
        assert_eq!(answer, Announcement::Accepted { consumed: 36 });
    }

    #[test]
    fn another_protocol_is_refused() {
        assert_eq!(
            announced(b"protocol\0foo_protocol\0\0", None),
            (
                Announcement::Refused,
                "unexpected protocol foo_protocol from private/scachex (expected: connection_cache_protocol)"
                    .to_owned()
            )
        );
    }

    #[test]
    fn other_lists_and_an_early_end_are_left_to_the_first_request() {
        assert_eq!(
            announced(b"", Some(End::Closed)),
            (Announcement::Accepted { consumed: 0 }, String::new())
        );
        assert_eq!(
            announced(b"\0", None),
            (
                Announcement::Accepted { consumed: 1 },
                "missing attribute protocol in input from private/scachex".to_owned()
            )
        );
        assert_eq!(
            announced(b"status\x000\0\0", None),
            (
                Announcement::Accepted { consumed: 10 },
                "unexpected attribute status from private/scachex (expecting: protocol)".to_owned()
            )
        );
        assert_eq!(
            announced(b"proto", Some(End::TimedOut)).0,
            Announcement::Refused
        );
    }
}
