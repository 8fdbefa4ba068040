//! One operation on one table: which flags it runs with, and what its outcome means on the wire.

use postkeep_table::{Cursor, Flags, Latency, LookupError, Outcome, Step, Table};
use postkeep_wire::proxymap::{Generation, Operation, Status};

use crate::instance::{Current, Instance};
use crate::walk::Walk;

/// What is asked of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) operation: Operation,
    /// For [`Operation::Sequence`].
    pub(crate) step: Step,
    /// As sent by the client; with [`Operation::Open`] those of the instance.
    pub(crate) flags: Flags,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Buffers above this size (bytes) are given back after use.
const KEPT: usize = 64 * 1024;

/// Empties a buffer and keeps its memory unless it is much.
pub(crate) fn recycle(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT);
}

impl Found {
    pub(crate) fn recycle(&mut self) {
        recycle(&mut self.key);
        recycle(&mut self.value);
    }
}

/// Bits that the service adds to those of the client: without a close an update must be on disk at once, and a
/// duplicate must not be an error.
fn forced(operation: Operation) -> Flags {
    match operation {
        Operation::Update => Flags::SYNC_UPDATE.union(Flags::DUP_REPLACE),
        Operation::Delete => Flags::SYNC_UPDATE,
        Operation::Open | Operation::Lookup | Operation::Sequence => Flags::empty(),
    }
}

/// The flags of the reply to a request that reached a table.
///
/// `open` tells what the table adds to the client's own flags. The others return what the client sent, which it
/// keeps and sends again; what it believes about the table is put right only when it dates from the time of a
/// surrogate.
pub(crate) fn reply_flags(current: &Current, generation: Generation, ask: &Ask<'_>) -> Flags {
    if ask.operation == Operation::Open {
        return (ask.flags - current.without()) | current.own(generation);
    }
    let mut flags = ask.flags | forced(ask.operation);
    if let Current::Open { own, .. } = current
        && flags.contains(Flags::SURROGATE)
    {
        flags.remove(Flags::SURROGATE | Flags::IMPLEMENTATION);
        flags.insert(*own & Flags::IMPLEMENTATION);
    }
    flags
}

/// Runs the operation, however long it takes; what was found is appended to `found`.
///
/// A client's flags decide on folding, locking and duplicates only; all else is what the table was opened
/// with.
pub(crate) fn perform(
    instance: &Instance,
    current: &Current,
    ask: &Ask<'_>,
    walk: &mut Option<Walk>,
    found: &mut Found,
) -> Status {
    let status = match current {
        _ if ask.operation == Operation::Open => Status::Ok,
        Current::Open { table, .. } => {
            let result = run(&**table, ask, walk, found);
            conclude(instance, ask.operation, &result)
        }
        Current::Surrogate(reason) => {
            instance.log_unavailable(reason);
            Status::Retry
        }
        Current::Unopened => Status::Retry,
    };
    instance.counters.count(ask.operation, status);
    status
}

/// Runs the operation if that can be done without waiting; `None` when it cannot, and nothing was done.
pub(crate) fn perform_at_once(
    instance: &Instance,
    current: &Current,
    ask: &Ask<'_>,
    walk: &mut Option<Walk>,
    found: &mut Found,
) -> Option<Status> {
    if let Current::Open { table, .. } = current
        && ask.operation != Operation::Open
        && table.latency() != Latency::Memory
    {
        if ask.operation != Operation::Lookup {
            return None;
        }
        let flags = effective_flags(&**table, ask);
        let result = table.try_lookup(flags, ask.key, &mut found.value)?;
        let status = conclude(instance, ask.operation, &result);
        instance.counters.count(ask.operation, status);
        return Some(status);
    }
    Some(perform(instance, current, ask, walk, found))
}

pub(crate) fn effective_flags(table: &dyn Table, ask: &Ask<'_>) -> Flags {
    let mut flags = (table.flags() - Flags::REQUEST) | (ask.flags & Flags::REQUEST);
    if ask.operation == Operation::Update {
        flags.remove(Flags::DUP_WARN | Flags::DUP_IGNORE);
    }
    flags | forced(ask.operation)
}

fn run(
    table: &dyn Table,
    ask: &Ask<'_>,
    walk: &mut Option<Walk>,
    found: &mut Found,
) -> Result<Outcome, LookupError> {
    let flags = effective_flags(table, ask);
    match ask.operation {
        Operation::Open => Ok(Outcome::Done),
        Operation::Lookup => table.lookup(flags, ask.key, &mut found.value),
        Operation::Update => table.update(flags, ask.key, ask.value),
        Operation::Delete => table.delete(flags, ask.key),
        Operation::Sequence => walk_on(table, flags, ask.step, walk, found),
    }
}

/// Logs what a table did not log itself, and says what the outcome is on the wire.
pub(crate) fn conclude(
    instance: &Instance,
    operation: Operation,
    result: &Result<Outcome, LookupError>,
) -> Status {
    match result {
        Err(LookupError::Unsupported(text)) => instance.log_unsupported(operation, text),
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                instance.warn(format_args!("{text}"));
            }
        }
        Ok(_) => {}
    }
    status(result)
}

fn walk_on(
    table: &dyn Table,
    flags: Flags,
    step: Step,
    walk: &mut Option<Walk>,
    found: &mut Found,
) -> Result<Outcome, LookupError> {
    let walk = match (step, walk) {
        (Step::First, walk) => walk.insert(Walk::default()),
        (Step::Next, Some(walk)) if walk.finished => return Ok(Outcome::Absent),
        (Step::Next, Some(walk)) => walk,
        (Step::Next, None) => return Err(no_place(table, flags)),
    };
    let outcome = table.sequence(
        flags,
        step,
        &mut walk.cursor,
        &mut found.key,
        &mut found.value,
    )?;
    walk.finished = outcome == Outcome::Absent;
    Ok(outcome)
}

/// The answer to a client that asks for the next entry and stands nowhere.
///
/// The walk has to begin anew: an entry from the beginning would be taken for the next one, and the end would
/// be taken for success. A table that cannot be walked says so all the same.
fn no_place(table: &dyn Table, flags: Flags) -> LookupError {
    let (mut cursor, mut key, mut value) = (Cursor::default(), Vec::new(), Vec::new());
    match table.sequence(flags, Step::First, &mut cursor, &mut key, &mut value) {
        Err(error) => error,
        Ok(_) => LookupError::Retry(format!(
            "table {}: sequence NEXT without FIRST",
            table.name()
        )),
    }
}

/// What an outcome is on the wire.
fn status(result: &Result<Outcome, LookupError>) -> Status {
    match result {
        Ok(Outcome::Done) => Status::Ok,
        Ok(Outcome::Absent) => Status::NoKey,
        Err(LookupError::Retry(_)) => Status::Retry,
        // An error of a kind that this crate does not know is not known to go away by itself.
        Err(LookupError::Config(_) | LookupError::Unsupported(_) | _) => Status::Config,
    }
}
