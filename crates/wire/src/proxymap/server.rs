//! The server's side: scanning requests, writing replies.

use crate::diagnostics::{Diagnostics, Shown};
use crate::duplex::End;
use crate::encode::{Encoding, ListWriter};
use crate::number::{low_bits, low_int};
use crate::scan::{Failure, Limits, Progress, ScanFlags, Scanner, Stop, Wanted};

use super::{Function, Generation, Operation, Request, Status};

/// What came out of a scan.
///
/// `consumed` is the number of bytes to drop from the input. After a violation ([`Self::Malformed`],
/// [`Self::Unknown`], an attribute too many, a list that does not begin with `request`) that is all that has been
/// received so far, as the reference loses its read-ahead when it replies; this is what brings both sides into step
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// More bytes are needed.
    Incomplete,
    /// A request to execute, perhaps with a warning about an attribute too many.
    Request {
        /// What is asked for.
        request: Request<'a>,
        /// How to write the reply.
        generation: Generation,
        /// Bytes to drop.
        consumed: usize,
    },
    /// Reply with [`reply_bad`].
    ///
    /// Also for a request that the peer's end of stream cut short: the peer may still read the reply.
    Malformed {
        /// Decides the shape of the reply.
        operation: Operation,
        /// How to write the reply; the default one when the list broke off too early to tell.
        generation: Generation,
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
    NoRequest {
        /// Bytes to drop.
        consumed: usize,
    },
    /// The input ended between two requests: close, nothing was logged.
    Closed,
    /// The list cannot be delimited, or the input ended within it: close without a reply.
    Unusable,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Request,
    Table(Operation),
    Rest(Operation, Generation),
}

/// Finds the requests in what a client sends.
///
/// Resumable: call it with all unconsumed bytes whenever there are more of them. It does not look at a byte twice, and
/// allocates nothing.
#[derive(Debug)]
pub struct RequestScanner {
    default: Generation,
    stage: Stage,
    list: Scanner,
}

const FIRST_CALL: ScanFlags = ScanFlags::STRICT.union(ScanFlags::MORE);

impl RequestScanner {
    /// A scanner that takes a list for `default` when it breaks off before its generation can be told.
    pub fn new(default: Generation) -> Self {
        Self::with_limits(default, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(default: Generation, limits: Limits) -> Self {
        Self {
            default,
            stage: Stage::Request,
            list: Scanner::new(Encoding::Null, FIRST_CALL, limits),
        }
    }

    /// Scans on.
    ///
    /// - `input`: all bytes that were received and not dropped yet
    /// - `end`: set when nothing will come behind `input`; then the answer is never [`Scanned::Incomplete`]
    /// - `name`: the stream, for warnings (`proxymap socket`)
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
            if let Some(scanned) = self.take(progress, input, end, diagnostics) {
                self.stage = Stage::Request;
                self.list.restart(FIRST_CALL);
                return scanned;
            }
        }
    }

    fn wishes(&self) -> &'static [Wanted<'static>] {
        use Wanted::{Int, IntNamed, Text};
        match self.stage {
            Stage::Request => &[Text("request")],
            Stage::Table(_) => match self.default {
                Generation::One => &[Text("table"), IntNamed(&["flags", "instance_flags"])],
                Generation::Two => &[Text("table"), IntNamed(&["instance_flags", "flags"])],
            },
            Stage::Rest(Operation::Open, _) => &[],
            Stage::Rest(Operation::Lookup | Operation::Delete, Generation::One) => &[Text("key")],
            Stage::Rest(Operation::Lookup | Operation::Delete, Generation::Two) => {
                &[Int("flags"), Text("key")]
            }
            Stage::Rest(Operation::Update, Generation::One) => &[Text("key"), Text("value")],
            Stage::Rest(Operation::Update, Generation::Two) => {
                &[Int("flags"), Text("key"), Text("value")]
            }
            Stage::Rest(Operation::Sequence, Generation::One) => &[Int("function")],
            Stage::Rest(Operation::Sequence, Generation::Two) => &[Int("flags"), Int("function")],
        }
    }

    /// Takes the end of a stage; `None` when the next one has begun.
    fn take<'a>(
        &mut self,
        progress: Progress,
        input: &'a [u8],
        end: Option<End>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Option<Scanned<'a>> {
        let all = input.len();
        let (operation, generation) = match self.stage {
            Stage::Request => return self.take_request(progress, input, diagnostics),
            Stage::Table(operation) => {
                let generation = self.generation(input);
                if let Progress::Done {
                    stop: Stop::Wishes, ..
                } = progress
                {
                    self.stage = Stage::Rest(operation, generation);
                    self.list.carry_on(ScanFlags::STRICT);
                    return None;
                }
                (operation, generation)
            }
            Stage::Rest(operation, generation) => {
                if let Progress::Done {
                    recovered,
                    consumed,
                    stop,
                } = progress
                    && recovered == 2 + self.wishes().len()
                    && let Some(request) = self.request(operation, generation, input)
                {
                    return Some(Scanned::Request {
                        request,
                        generation,
                        consumed: if stop == Stop::Terminator {
                            consumed
                        } else {
                            all
                        },
                    });
                }
                (operation, generation)
            }
        };
        Some(match progress {
            Progress::Failed {
                failure: Failure::Limit | Failure::Ended(End::TimedOut),
                ..
            } => Scanned::Unusable,
            Progress::Done {
                stop: Stop::Nothing,
                ..
            } if end == Some(End::TimedOut) => Scanned::Unusable,
            _ => Scanned::Malformed {
                operation,
                generation,
                consumed: all,
            },
        })
    }

    fn take_request<'a>(
        &mut self,
        progress: Progress,
        input: &'a [u8],
        diagnostics: &mut dyn Diagnostics,
    ) -> Option<Scanned<'a>> {
        Some(match progress {
            Progress::Done {
                stop: Stop::Wishes, ..
            } => {
                let word = self.list.text(0, input);
                if let Some(operation) = Operation::from_word(word) {
                    self.stage = Stage::Table(operation);
                    self.list.follow_up(FIRST_CALL);
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
            // An empty list has a known end: what follows it may be a request.
            Progress::Done {
                stop: Stop::Terminator,
                consumed,
                ..
            } => Scanned::NoRequest { consumed },
            Progress::Done { .. } => Scanned::NoRequest {
                consumed: input.len(),
            },
            Progress::Failed { .. } | Progress::Incomplete => Scanned::Unusable,
        })
    }

    /// Told by the attribute after the table.
    fn generation(&self, input: &[u8]) -> Generation {
        if self.list.values() == 0 {
            return self.default;
        }
        match self.list.last_name(input) {
            b"flags" => Generation::One,
            b"instance_flags" => Generation::Two,
            _ => self.default,
        }
    }

    /// Builds the request from the values; `None` when the function of a sequence request does not exist.
    fn request<'a>(
        &self,
        operation: Operation,
        generation: Generation,
        input: &'a [u8],
    ) -> Option<Request<'a>> {
        let table = self.list.text(0, input);
        let instance_flags = low_bits(self.list.number(1));
        let (flags, next) = match generation {
            Generation::One => (instance_flags, 2),
            Generation::Two => (low_bits(self.list.number(2)), 3),
        };
        Some(match operation {
            Operation::Open => Request::Open {
                table,
                flags: instance_flags,
            },
            Operation::Lookup => Request::Lookup {
                table,
                instance_flags,
                flags,
                key: self.list.text(next, input),
            },
            Operation::Update => Request::Update {
                table,
                instance_flags,
                flags,
                key: self.list.text(next, input),
                value: self.list.text(next + 1, input),
            },
            Operation::Delete => Request::Delete {
                table,
                instance_flags,
                flags,
                key: self.list.text(next, input),
            },
            Operation::Sequence => Request::Sequence {
                table,
                instance_flags,
                flags,
                function: match low_int(self.list.number(next)) {
                    0 => Function::First,
                    1 => Function::Next,
                    _ => return None,
                },
            },
        })
    }
}

/// Appends the reply to `open`, the same in both generations.
pub fn reply_open(out: &mut Vec<u8>, status: Status, flags: u32) {
    ListWriter::new(Encoding::Null, out)
        .int("status", status.number())
        .bits("flags", flags)
        .finish();
}

/// Appends the reply to `lookup`; `flags` are sent in generation two only.
pub fn reply_lookup(
    out: &mut Vec<u8>,
    generation: Generation,
    status: Status,
    flags: u32,
    value: &[u8],
) {
    start(
        &mut ListWriter::new(Encoding::Null, out),
        generation,
        status,
        flags,
    )
    .text("value", value)
    .finish();
}

/// Appends the reply to `update`; `flags` are sent in generation two only.
pub fn reply_update(out: &mut Vec<u8>, generation: Generation, status: Status, flags: u32) {
    start(
        &mut ListWriter::new(Encoding::Null, out),
        generation,
        status,
        flags,
    )
    .finish();
}

/// Appends the reply to `delete`; `flags` are sent in generation two only.
pub fn reply_delete(out: &mut Vec<u8>, generation: Generation, status: Status, flags: u32) {
    reply_update(out, generation, status, flags);
}

/// Appends the reply to `sequence`; `flags` are sent in generation two only.
pub fn reply_sequence(
    out: &mut Vec<u8>,
    generation: Generation,
    status: Status,
    flags: u32,
    key: &[u8],
    value: &[u8],
) {
    start(
        &mut ListWriter::new(Encoding::Null, out),
        generation,
        status,
        flags,
    )
    .text("key", key)
    .text("value", value)
    .finish();
}

/// Appends the reply to a request that was not successful: texts are empty.
///
/// `flags` are those of the table, 0 when no table was involved.
pub fn reply_failure(
    out: &mut Vec<u8>,
    operation: Operation,
    generation: Generation,
    status: Status,
    flags: u32,
) {
    match operation {
        Operation::Open => reply_open(out, status, flags),
        Operation::Lookup => reply_lookup(out, generation, status, flags, b""),
        Operation::Update => reply_update(out, generation, status, flags),
        Operation::Delete => reply_delete(out, generation, status, flags),
        Operation::Sequence => reply_sequence(out, generation, status, flags, b"", b""),
    }
}

/// Appends the reply to [`Scanned::Malformed`].
pub fn reply_bad(out: &mut Vec<u8>, operation: Operation, generation: Generation) {
    reply_failure(out, operation, generation, Status::Bad, 0);
}

/// Appends the reply to [`Scanned::Unknown`]: the status only.
pub fn reply_unknown(out: &mut Vec<u8>) {
    ListWriter::new(Encoding::Null, out)
        .int("status", Status::Bad.number())
        .finish();
}

fn start<'l, 'o>(
    list: &'l mut ListWriter<'o>,
    generation: Generation,
    status: Status,
    flags: u32,
) -> &'l mut ListWriter<'o> {
    list.int("status", status.number());
    match generation {
        Generation::One => list,
        Generation::Two => list.bits("flags", flags),
    }
}
