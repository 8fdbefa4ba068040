//! The server's side: scanning requests, writing replies.

use crate::diagnostics::{Diagnostics, Shown, Size};
use crate::duplex::End;
use crate::encode::{Encoding, ListWriter};
use crate::number::low_int;
use crate::scan::{Failure, Limits, Progress, ScanFlags, Scanner, Stop, Wanted};

use super::{Operation, Request, Status};

/// What came out of a scan.
///
/// `consumed` is the number of bytes to drop from the input. After a violation that is answered ([`Self::Malformed`],
/// [`Self::Unknown`], an attribute too many) that is all that has been received so far, as the reference loses its
/// read-ahead when it replies; this is what brings both sides into step again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// More bytes are needed.
    Incomplete,
    /// A request to execute, perhaps with a warning about an attribute too many.
    Request {
        /// What is asked for.
        request: Request<'a>,
        /// Bytes to drop.
        consumed: usize,
    },
    /// Reply with [`reply_bad`], after a warning of the service's own (`bad or missing request parameter`).
    ///
    /// Also for a `ttl` that is not above zero, and for a request that the peer's end of stream cut short: the peer may
    /// still read the reply.
    Malformed {
        /// Decides the shape of the reply.
        operation: Operation,
        /// Bytes to drop.
        consumed: usize,
    },
    /// A request that does not exist, which has been logged: reply with [`reply_unknown`].
    Unknown {
        /// The value of `request`.
        name: &'a [u8],
        /// Bytes to drop.
        consumed: usize,
    },
    /// A list that does not begin with `request`, which has been logged: no reply.
    ///
    /// `consumed` is one string only: as in the reference each string that follows is taken for the beginning of a
    /// list, with a warning each, until one is `request`. Scan again at once.
    NoRequest {
        /// Bytes to drop.
        consumed: usize,
    },
    /// The input ended between two requests: close, nothing was logged.
    Closed,
    /// The list cannot be delimited, or the input ended within it: close without a reply.
    Unusable {
        /// The request, when that much of it was read; the service then logs its own warning, as for
        /// [`Self::Malformed`].
        operation: Option<Operation>,
    },
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Request,
    Rest(Operation),
}

/// Finds the requests in what a client sends.
///
/// Resumable: call it with all unconsumed bytes whenever there are more of them. It does not look at a byte twice, and
/// allocates nothing.
#[derive(Debug)]
pub struct RequestScanner {
    stage: Stage,
    list: Scanner,
    /// Strings in a row that were no request, and how many of them are too many.
    strays: usize,
    patience: usize,
}

const FIRST_CALL: ScanFlags = ScanFlags::STRICT.union(ScanFlags::MORE);

impl Default for RequestScanner {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl RequestScanner {
    /// A scanner with limits of its own; [`Limits::attributes`] also bounds the number of stray strings in a row.
    pub fn new(limits: Limits) -> Self {
        Self {
            stage: Stage::Request,
            list: Scanner::new(Encoding::Null, FIRST_CALL, limits),
            strays: 0,
            patience: limits.attributes,
        }
    }

    /// Scans on.
    ///
    /// - `input`: all bytes that were received and not dropped yet
    /// - `end`: set when nothing will come behind `input`; then the answer is never [`Scanned::Incomplete`]
    /// - `name`: the stream, for warnings (`scache socket`)
    pub fn scan<'a>(
        &mut self,
        input: &'a [u8],
        end: Option<End>,
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> Scanned<'a> {
        loop {
            let progress = self
                .list
                .resume(self.wishes(), input, end, name, diagnostics);
            if progress == Progress::Incomplete {
                return Scanned::Incomplete;
            }
            let taken = match self.stage {
                Stage::Request => self.take_request(progress, input, name, diagnostics),
                Stage::Rest(operation) => Some(self.take_rest(operation, progress, input, end)),
            };
            if let Some(scanned) = taken {
                self.stage = Stage::Request;
                self.list.restart(FIRST_CALL);
                return scanned;
            }
        }
    }

    fn wishes(&self) -> &'static [Wanted<'static>] {
        use Wanted::{Int, Text};
        match self.stage {
            Stage::Request => &[Text("request")],
            Stage::Rest(Operation::SaveEndpoint) => &[Int("ttl"), Text("label"), Text("property")],
            Stage::Rest(Operation::FindEndpoint | Operation::FindDestination) => &[Text("label")],
            Stage::Rest(Operation::SaveDestination) => {
                &[Int("ttl"), Text("label"), Text("property"), Text("label")]
            }
        }
    }

    fn take_request<'a>(
        &mut self,
        progress: Progress,
        input: &'a [u8],
        name: &str,
        diagnostics: &mut dyn Diagnostics,
    ) -> Option<Scanned<'a>> {
        Some(match progress {
            Progress::Done {
                stop: Stop::Wishes, ..
            } => {
                self.strays = 0;
                let word = self.list.text(0, input);
                if let Some(operation) = Operation::from_word(word) {
                    self.stage = Stage::Rest(operation);
                    self.list.follow_up(ScanFlags::STRICT);
                    return None;
                }
                diagnostics.warning(format_args!(
                    "unrecognized request: \"{}\", ignored",
                    Shown::new(word)
                ));
                Scanned::Unknown {
                    name: word,
                    consumed: input.len(),
                }
            }
            Progress::Done {
                stop: Stop::Nothing,
                ..
            } => Scanned::Closed,
            Progress::Done { consumed, .. } => {
                self.strays += 1;
                if self.strays > self.patience {
                    let limit = self.patience;
                    diagnostics.exceeded(
                        Size::Attributes,
                        format_args!("attribute count exceeds limit {limit} in input from {name}"),
                    );
                    Scanned::Unusable { operation: None }
                } else {
                    Scanned::NoRequest { consumed }
                }
            }
            Progress::Failed { .. } | Progress::Incomplete => Scanned::Unusable { operation: None },
        })
    }

    fn take_rest<'a>(
        &self,
        operation: Operation,
        progress: Progress,
        input: &'a [u8],
        end: Option<End>,
    ) -> Scanned<'a> {
        match progress {
            Progress::Done {
                recovered,
                consumed,
                stop,
            } if recovered == self.wishes().len() => match self.request(operation, input) {
                Some(request) => Scanned::Request {
                    request,
                    consumed: if stop == Stop::Terminator {
                        consumed
                    } else {
                        input.len()
                    },
                },
                None => Scanned::Malformed {
                    operation,
                    consumed: input.len(),
                },
            },
            Progress::Done {
                stop: Stop::Nothing,
                ..
            } if end == Some(End::TimedOut) => Scanned::Unusable {
                operation: Some(operation),
            },
            Progress::Failed {
                failure: Failure::Limit | Failure::Ended(End::TimedOut),
                ..
            } => Scanned::Unusable {
                operation: Some(operation),
            },
            _ => Scanned::Malformed {
                operation,
                consumed: input.len(),
            },
        }
    }

    /// Builds the request from the values; `None` when its time to live is not above zero.
    fn request<'a>(&self, operation: Operation, input: &'a [u8]) -> Option<Request<'a>> {
        let text = |index| self.list.text(index, input);
        let ttl = low_int(self.list.number(0));
        match operation {
            Operation::SaveEndpoint => (ttl > 0).then(|| Request::SaveEndpoint {
                ttl,
                label: text(1),
                property: text(2),
            }),
            Operation::FindEndpoint => Some(Request::FindEndpoint { label: text(0) }),
            Operation::SaveDestination => (ttl > 0).then(|| Request::SaveDestination {
                ttl,
                label: text(1),
                property: text(2),
                endpoint: text(3),
            }),
            Operation::FindDestination => Some(Request::FindDestination { label: text(0) }),
        }
    }
}

/// Appends the reply to `save_endp` and `save_dest`.
pub fn reply_status(out: &mut Vec<u8>, status: Status) {
    ListWriter::new(Encoding::Null, out)
        .int("status", status.number())
        .finish();
}

/// Appends the reply to `find_endp`; `property` is empty unless the status is [`Status::Ok`].
pub fn reply_endpoint(out: &mut Vec<u8>, status: Status, property: &[u8]) {
    ListWriter::new(Encoding::Null, out)
        .int("status", status.number())
        .text("property", property)
        .finish();
}

/// Appends the reply to `find_dest`; both properties are empty unless the status is [`Status::Ok`].
pub fn reply_destination(out: &mut Vec<u8>, status: Status, destination: &[u8], endpoint: &[u8]) {
    ListWriter::new(Encoding::Null, out)
        .int("status", status.number())
        .text("property", destination)
        .text("property", endpoint)
        .finish();
}

/// Appends the reply to a request that was not successful: properties are empty.
pub fn reply_failure(out: &mut Vec<u8>, operation: Operation, status: Status) {
    match operation {
        Operation::SaveEndpoint | Operation::SaveDestination => reply_status(out, status),
        Operation::FindEndpoint => reply_endpoint(out, status, b""),
        Operation::FindDestination => reply_destination(out, status, b"", b""),
    }
}

/// Appends the reply to [`Scanned::Malformed`].
pub fn reply_bad(out: &mut Vec<u8>, operation: Operation) {
    reply_failure(out, operation, Status::Bad);
}

/// Appends the reply to [`Scanned::Unknown`]: the status only.
pub fn reply_unknown(out: &mut Vec<u8>) {
    reply_status(out, Status::Bad);
}
