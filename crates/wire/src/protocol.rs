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
