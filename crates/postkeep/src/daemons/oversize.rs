//! The warnings about clients' requests: all as they come, but those that a request is too large only now and
//! then, as anybody can cause them without end.

use std::fmt;
use std::time::Instant;

use log::warn;
use postkeep_daemon::limits::{ATTRIBUTE_COUNT, ATTRIBUTE_SIZE, Complaint, REQUEST_SIZE};
use postkeep_daemon::metrics::{LIMIT_REACHED, Page};
use postkeep_wire::diagnostics::{Diagnostics, Size};

/// The lines about requests that are too large.
#[derive(Debug)]
pub(crate) struct Oversize {
    name: Complaint,
    value: Complaint,
    attributes: Complaint,
    list: Complaint,
}

impl Default for Oversize {
    fn default() -> Self {
        Self {
            name: Complaint::new("there is no way"),
            value: Complaint::new(ATTRIBUTE_SIZE),
            attributes: Complaint::new(ATTRIBUTE_COUNT),
            list: Complaint::new(REQUEST_SIZE),
        }
    }
}

impl Oversize {
    /// Adds how often each limit was reached to a page of metrics.
    pub(crate) fn describe(&self, page: &mut Page) {
        for (limit, complaint) in [
            ("attribute_name_size", &self.name),
            (ATTRIBUTE_SIZE, &self.value),
            (ATTRIBUTE_COUNT, &self.attributes),
            (REQUEST_SIZE, &self.list),
        ] {
            page.add(&LIMIT_REACHED, &[("limit", limit)], complaint.reached());
        }
    }

    /// Where the warnings of one turn go.
    pub(crate) fn to_log(&self, now: Instant) -> ToLog<'_> {
        ToLog {
            oversize: self,
            now,
        }
    }
}

/// Logs the warnings about one client.
#[derive(Debug)]
pub(crate) struct ToLog<'a> {
    oversize: &'a Oversize,
    now: Instant,
}

impl Diagnostics for ToLog<'_> {
    fn warning(&mut self, text: fmt::Arguments<'_>) {
        warn!("{text}");
    }

    fn exceeded(&mut self, size: Size, text: fmt::Arguments<'_>) {
        let complaint = match size {
            Size::Name => &self.oversize.name,
            Size::Value => &self.oversize.value,
            Size::Attributes => &self.oversize.attributes,
            Size::List => &self.oversize.list,
        };
        complaint.say(self.now, text);
    }
}
