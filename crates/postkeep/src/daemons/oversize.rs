//! The warnings about clients' requests: all as they come, but those that a request is too large only now and
//! then, as anybody can cause them without end.

use std::fmt;
use std::time::Instant;

use log::warn;
use postkeep_daemon::limits::{ATTRIBUTE_COUNT, ATTRIBUTE_SIZE, Complaint, REQUEST_SIZE};
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
