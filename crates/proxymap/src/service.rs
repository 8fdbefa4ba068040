//! The conversation with one client, request by request.
//!
//! A state machine over the bytes that came in and the bytes that go out: it reads no socket and no clock. A
//! table that may wait is not called from here: the driver gets a [`Job`] to run elsewhere, and brings back
//! the [`Done`].
//!
//! The checks of a request, in order, as in the reference:
//!
//! 1. the attributes are as they should be, or else BAD;
//! 2. an update or delete comes through proxywrite, or else DENY;
//! 3. the name without `proxy:` has a colon, or else BAD;
//! 4. the name is approved, or else DENY;
//! 5. the table is found or opened, and asked.
//!
//! # References
//! proxymap(8); Postfix `src/proxymap/proxymap.c`.

use std::sync::Arc;
use std::time::Duration;

use postkeep_table::{Flags, Latency, Step, Table};
use postkeep_wire::diagnostics::{Diagnostics, Shown};
use postkeep_wire::duplex::{Inbox, Outbox};
use postkeep_wire::proxymap::{
    Function, Generation, Operation, Request, RequestScanner, Scanned, Status, reply_bad,
    reply_failure, reply_lookup, reply_open, reply_sequence, reply_unknown, reply_update,
};
use postkeep_wire::scan::Limits;

use crate::approve::canonical;
use crate::counters::Refusals;
use crate::instance::{Current, Instance, opening_flags};
use crate::perform::{
    Ask, Found, conclude, effective_flags, perform, perform_at_once, recycle, reply_flags,
};
use crate::share::Tables;
use crate::walk::{Walk, Walks};

/// How long a client may take to send a request, from its first byte on.
pub const REQUEST_TIME: Duration = Duration::from_secs(1);

/// How long a client may take to read a reply; for drivers.
pub const REPLY_TIME: Duration = Duration::from_secs(1);

/// With this many bytes of replies waiting no further request is looked at.
const MAX_WAITING: usize = 256 * 1024;

/// How many tables a conversation remembers.
const RECENT: usize = 8;

/// What a driver is to do next.
#[derive(Debug)]
pub enum Action {
    /// Send what is in the outbox, then wait for input, without a limit: the client is between two requests.
    /// Also while a job runs; input may then wait.
    Idle,
    /// Send what is in the outbox, then wait for more input until this time; then call
    /// [`Inbox::finish`] with `End::TimedOut` and step again.
    Read(Duration),
    /// Too much waits to be sent: send the outbox before the next step.
    Flush,
    /// Begin the job, where it may wait if [`Job::may_wait`] says so; then call [`Conversation::finish`] with what
    /// comes of it, then step again.
    Run(Job),
    /// Send what is in the outbox, then close the connection.
    Close,
}

/// A table could not be opened, and `daemon_table_open_error_is_fatal` says that this ends the process; the
/// text is for a fatal line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// An operation that may have to wait: for a file, for another process, for a table to be opened.
#[derive(Debug)]
pub struct Job {
    work: Box<Work>,
    instance: Arc<Instance>,
    tables: Arc<Tables>,
    now: Duration,
    /// Set when the table has to be opened first, with: it stood a surrogate before.
    open: Option<bool>,
}

/// A job that was run.
#[derive(Debug)]
pub struct Done {
    pub(crate) work: Box<Work>,
    instance: Arc<Instance>,
    pub(crate) status: Status,
    flags: Flags,
    pub(crate) fatal: Option<Fatal>,
}

impl Done {
    /// The table that was asked, fit for a log line.
    pub fn table(&self) -> &str {
        self.instance.shown()
    }

    /// What was asked of it.
    pub fn operation(&self) -> Operation {
        self.work.operation
    }

    /// Appends the reply, for who can send it before [`Conversation::finish`] writes the same; nothing when the process has
    /// to end instead.
    pub fn write_reply(&self, out: &mut Vec<u8>) {
        if self.fatal.is_none() {
            self.answer().write(&self.work.found, out);
        }
    }

    fn answer(&self) -> Answer {
        Answer {
            operation: self.work.operation,
            generation: self.work.generation,
            status: self.status,
            flags: self.flags,
        }
    }

    /// Counts how long the client has waited for this, for metrics.
    pub fn waited(&self, time: Duration) {
        self.instance.counters.count_wait(time);
    }
}

/// A request with buffers of its own; they are used again for the next one.
#[derive(Debug)]
pub(crate) struct Work {
    generation: Generation,
    operation: Operation,
    step: Step,
    flags: Flags,
    key: Vec<u8>,
    value: Vec<u8>,
    walk: Option<Walk>,
    pub(crate) found: Found,
}

impl Work {
    fn new() -> Self {
        Self {
            generation: Generation::One,
            operation: Operation::Open,
            step: Step::First,
            flags: Flags::empty(),
            key: Vec::new(),
            value: Vec::new(),
            walk: None,
            found: Found::default(),
        }
    }

    /// Empties the buffers for the next request.
    pub(crate) fn recycle(&mut self) {
        self.found.recycle();
        recycle(&mut self.key);
        recycle(&mut self.value);
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            operation: self.operation,
            step: self.step,
            flags: self.flags,
            key: &self.key,
            value: &self.value,
        }
    }
}

/// Looks a key up at once, or returns the job that has to be done first.
///
/// - `flags`: those that the instance was asked for with
/// - `found`: where the value is appended when there is one
/// - `spare`: buffers of a job that is over
pub(crate) fn look_up(
    now: Duration,
    instance: Arc<Instance>,
    flags: Flags,
    key: &[u8],
    tables: &Arc<Tables>,
    found: &mut Found,
    spare: &mut Option<Box<Work>>,
) -> Result<Status, Job> {
    instance.touch(now);
    let ask = Ask {
        operation: Operation::Lookup,
        step: Step::First,
        flags,
        key,
        value: b"",
    };
    let current = instance.current();
    let open = instance
        .must_open(&current, now, &tables.environment)
        .then(|| matches!(**current, Current::Surrogate(_)));
    if open.is_none()
        && let Some(status) = perform_at_once(&instance, &current, &ask, &mut None, found)
    {
        return Ok(status);
    }
    drop(current);
    let mut work = spare.take().unwrap_or_else(|| Box::new(Work::new()));
    work.generation = Generation::Two;
    work.operation = Operation::Lookup;
    work.step = Step::First;
    work.flags = flags;
    work.key.extend_from_slice(key);
    Err(Job {
        work,
        instance,
        tables: Arc::clone(tables),
        now,
        open,
    })
}

impl Job {
    /// The same number for all jobs on the same table: what they share the threads by.
    pub fn share(&self) -> usize {
        Arc::as_ptr(&self.instance.counters).addr()
    }

    /// Nobody can do the work now: the client is told to try again, without the table being asked.
    pub fn put_off(self) -> Done {
        let Self { work, instance, .. } = self;
        let flags = reply_flags(&instance.current(), work.generation, &work.ask());
        instance.counters.count(work.operation, Status::Retry);
        Done {
            work,
            instance,
            status: Status::Retry,
            flags,
            fatal: None,
        }
    }

    /// Must [`Self::begin`] be called where it may wait? A lookup in an open table behind a server need not.
    pub fn may_wait(&self) -> bool {
        self.open.is_some()
            || asked(&self.work, &self.instance.current())
                .is_none_or(|table| table.latency() != Latency::Remote)
    }

    /// Does the work and hands its outcome to `deliver`: before this returns, or later on another thread when a
    /// server has to be asked, or somebody else asks the same already.
    ///
    /// `deliver` must not wait. It is dropped without a call when the work was lost to a fault in a table's code.
    pub fn begin(mut self, deliver: impl FnOnce(Done) + Send + 'static) {
        let (current, fatal) = self.opened();
        let table = asked(&self.work, &current).filter(|_| fatal.is_none());
        let Some(table) = table else {
            deliver(self.performed(&current, fatal));
            return;
        };
        let ask = self.work.ask();
        let flags = reply_flags(&current, self.work.generation, &ask);
        let request = effective_flags(&*table, &ask);
        drop(current);
        self.instance.leave();
        let Self {
            mut work, instance, ..
        } = self;
        let key = std::mem::take(&mut work.key);
        let value = std::mem::take(&mut work.found.value);
        let done = move |result, value| {
            work.found.value = value;
            let status = conclude(&instance, work.operation, &result);
            instance.counters.count(work.operation, status);
            deliver(Done {
                work,
                instance,
                status,
                flags,
                fatal: None,
            });
        };
        table.begin_lookup(request, &key, value, Box::new(done));
    }

    /// Does the work; may take long.
    pub fn run(mut self) -> Done {
        let (current, fatal) = self.opened();
        self.performed(&current, fatal)
    }

    /// Opens the table where that has to be done first. It may also have made room for another one since the client asked.
    fn opened(&mut self) -> (Arc<Current>, Option<Fatal>) {
        let mut fatal = None;
        let mut open = |again| {
            let opened = self
                .instance
                .open(self.now, again, &self.tables.environment);
            fatal = opened.err().map(Fatal);
            fatal.is_none()
        };
        let mut goes_on = self.open.take().is_none_or(&mut open);
        let mut current = Arc::clone(&self.instance.current());
        while goes_on && matches!(*current, Current::Unopened) {
            goes_on = open(false);
            current = Arc::clone(&self.instance.current());
        }
        (current, fatal)
    }

    fn performed(self, current: &Current, fatal: Option<Fatal>) -> Done {
        let Self {
            mut work, instance, ..
        } = self;
        let ask = Ask {
            operation: work.operation,
            step: work.step,
            flags: work.flags,
            key: &work.key,
            value: &work.value,
        };
        let flags = reply_flags(current, work.generation, &ask);
        let status = perform(&instance, current, &ask, &mut work.walk, &mut work.found);
        instance.leave();
        Done {
            work,
            instance,
            status,
            flags,
            fatal,
        }
    }
}

/// The table, when the work is a lookup in one that is open.
fn asked(work: &Work, current: &Current) -> Option<Arc<dyn Table>> {
    match current {
        Current::Open { table, .. } if work.operation == Operation::Lookup => {
            Some(Arc::clone(table))
        }
        _ => None,
    }
}

/// A table that this client has asked for.
#[derive(Debug)]
struct Recent {
    /// As the client wrote it.
    table: Vec<u8>,
    flags: Flags,
    instance: Arc<Instance>,
}

/// The state of the conversation with one client.
#[derive(Debug)]
pub struct Conversation {
    stream: Arc<str>,
    /// Lists that were looked at, since somebody asked.
    requests: u32,
    scanner: RequestScanner,
    /// Until when the request at hand must be there.
    deadline: Option<Duration>,
    /// A job is out.
    busy: bool,
    recent: Vec<Recent>,
    /// Which of them makes room next.
    replace: usize,
    walks: Walks,
    found: Found,
    spare: Option<Box<Work>>,
}

/// A reply to be written.
struct Answer {
    operation: Operation,
    generation: Generation,
    status: Status,
    flags: Flags,
}

impl Answer {
    fn write(&self, found: &Found, out: &mut Vec<u8>) {
        let Self {
            operation,
            generation,
            status,
            ..
        } = *self;
        let flags = self.flags.bits();
        match (status, operation) {
            (Status::Ok, Operation::Open) => reply_open(out, status, flags),
            (Status::Ok, Operation::Lookup) => {
                reply_lookup(out, generation, status, flags, &found.value);
            }
            (Status::Ok, Operation::Update | Operation::Delete) => {
                reply_update(out, generation, status, flags);
            }
            (Status::Ok, Operation::Sequence) => {
                reply_sequence(out, generation, status, flags, &found.key, &found.value);
            }
            (failure, operation) => reply_failure(out, operation, generation, failure, flags),
        }
    }
}

impl Conversation {
    /// A conversation at its beginning. The announcement is the driver's
    /// ([`postkeep_wire::proxymap::announce`]): it has its own time limit.
    ///
    /// - `stream`: the connection in log lines: `proxymap socket`, with the service's name in master.cf
    /// - `default`: how to answer when a request breaks off too early to tell
    pub fn new(stream: Arc<str>, default: Generation) -> Self {
        Self::with_limits(stream, default, Limits::default())
    }

    /// The same, with other limits of what a client may send.
    pub fn with_limits(stream: Arc<str>, default: Generation, limits: Limits) -> Self {
        Self {
            stream,
            requests: 0,
            scanner: RequestScanner::with_limits(default, limits),
            deadline: None,
            busy: false,
            recent: Vec::new(),
            replace: 0,
            walks: Walks::default(),
            found: Found::default(),
            spare: None,
        }
    }

    /// Serves the requests that are in the inbox, in order, until there is something else to do.
    ///
    /// - `now`: the caller's clock, from any fixed moment on; never goes back between calls
    /// - `diagnostics`: takes the warnings about this client's requests
    ///
    /// What concerns a table and not a request is logged through the `log` facade.
    pub fn step<H>(
        &mut self,
        now: Duration,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        tables: &Arc<Tables>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Action {
        loop {
            if self.busy {
                return Action::Idle;
            }
            if outbox.len() >= MAX_WAITING {
                return Action::Flush;
            }
            let input = inbox.bytes();
            let out = outbox.buffer();
            let scanned = self
                .scanner
                .scan(input, inbox.end(), &self.stream, diagnostics);
            let (job, consumed) = match scanned {
                Scanned::Incomplete if inbox.is_empty() => return Action::Idle,
                Scanned::Incomplete => {
                    let limit = now.saturating_add(REQUEST_TIME);
                    return Action::Read(*self.deadline.get_or_insert(limit));
                }
                Scanned::Closed | Scanned::Unusable => return Action::Close,
                Scanned::NoRequest { consumed } => (None, consumed),
                Scanned::Unknown { consumed, .. } => {
                    Refusals::count(&tables.refusals.malformed);
                    reply_unknown(out);
                    (None, consumed)
                }
                Scanned::Malformed {
                    operation,
                    generation,
                    consumed,
                } => {
                    Refusals::count(&tables.refusals.malformed);
                    reply_bad(out, operation, generation);
                    (None, consumed)
                }
                Scanned::Request {
                    request,
                    generation,
                    consumed,
                } => (
                    self.serve(now, &request, generation, out, tables, diagnostics),
                    consumed,
                ),
            };
            self.deadline = None;
            self.requests = self.requests.saturating_add(1);
            // Nobody sends descriptors to this service; one that came is closed here.
            drop(inbox.consume(consumed));
            if let Some(job) = job {
                self.busy = true;
                return Action::Run(job);
            }
        }
    }

    /// How many requests, good and bad, this client has sent since this was called last.
    pub fn take_requests(&mut self) -> u32 {
        std::mem::take(&mut self.requests)
    }

    /// Writes the reply to the request whose job was run; step again after that.
    ///
    /// # Errors
    /// [`Fatal`] when the process has to end; there is no reply.
    pub fn finish<H>(&mut self, done: Done, outbox: &mut Outbox<H>) -> Result<(), Fatal> {
        let answer = done.answer();
        let Done {
            mut work,
            instance,
            fatal,
            ..
        } = done;
        self.busy = false;
        if let Some(walk) = work.walk.take() {
            self.walks.put(&instance, walk);
        }
        if let Some(fatal) = fatal {
            return Err(fatal);
        }
        answer.write(&work.found, outbox.buffer());
        work.recycle();
        self.spare = Some(work);
        Ok(())
    }

    /// Serves one request: writes the reply, or returns the job that has to be done first.
    fn serve(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        generation: Generation,
        out: &mut Vec<u8>,
        tables: &Arc<Tables>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Option<Job> {
        let (table, instance_flags, ask) = taken_apart(request);
        let operation = ask.operation;
        let instance = match self.find(now, table, instance_flags, generation, operation, tables) {
            Ok(instance) => instance,
            Err(refusal) => {
                Refusals::count(match refusal {
                    Refusal::ReadOnly => &tables.refusals.read_only,
                    Refusal::NoColon => &tables.refusals.malformed,
                    Refusal::Unapproved => &tables.refusals.unapproved,
                });
                refusal.log(table, operation, tables, diagnostics);
                reply_failure(out, operation, generation, refusal.status(), 0);
                return None;
            }
        };
        instance.touch(now);
        let mut walk = match ask.step {
            Step::Next if operation == Operation::Sequence => self.walks.take(&instance),
            _ => None,
        };
        let current = instance.current();
        let open = instance
            .must_open(&current, now, &tables.environment)
            .then(|| matches!(**current, Current::Surrogate(_)));
        let status = match open {
            Some(_) => None,
            None => perform_at_once(&instance, &current, &ask, &mut walk, &mut self.found),
        };
        let Some(status) = status else {
            drop(current);
            let mut work = self.spare.take().unwrap_or_else(|| Box::new(Work::new()));
            work.generation = generation;
            work.operation = operation;
            work.step = ask.step;
            work.flags = ask.flags;
            work.key.extend_from_slice(ask.key);
            work.value.extend_from_slice(ask.value);
            work.walk = walk;
            return Some(Job {
                work,
                instance,
                tables: Arc::clone(tables),
                now,
                open,
            });
        };
        let flags = reply_flags(&current, generation, &ask);
        Answer {
            operation,
            generation,
            status,
            flags,
        }
        .write(&self.found, out);
        self.found.recycle();
        if let Some(walk) = walk {
            self.walks.put(&instance, walk);
        }
        None
    }

    /// The checks 2 to 4, and the instance.
    fn find(
        &mut self,
        now: Duration,
        table: &[u8],
        flags: Flags,
        generation: Generation,
        operation: Operation,
        tables: &Tables,
    ) -> Result<Arc<Instance>, Refusal> {
        let writes = matches!(operation, Operation::Update | Operation::Delete);
        if writes && tables.role() == crate::role::Role::Read {
            return Err(Refusal::ReadOnly);
        }
        let opening = opening_flags(generation, flags);
        let known = self
            .recent
            .iter()
            .find(|recent| recent.flags == opening && recent.table == table);
        if let Some(known) = known
            && !known.instance.is_retired()
        {
            return Ok(Arc::clone(&known.instance));
        }
        let name = canonical(table);
        if !name.contains(&b':') {
            return Err(Refusal::NoColon);
        }
        let entry = tables.find(name).ok_or(Refusal::Unapproved)?;
        let instance = tables.instance(entry, generation, flags, now);
        self.remember(table, name.len(), opening, &instance);
        Ok(instance)
    }

    fn remember(&mut self, table: &[u8], length: usize, flags: Flags, instance: &Arc<Instance>) {
        self.recent
            .retain(|recent| recent.table != table || recent.flags != flags);
        // A client must not make us keep a name that is mostly prefixes.
        if table.len() > length + 64 {
            return;
        }
        let recent = Recent {
            table: table.to_vec(),
            flags,
            instance: Arc::clone(instance),
        };
        if self.recent.len() < RECENT {
            self.recent.push(recent);
        } else {
            self.replace = (self.replace + 1) % RECENT;
            self.recent[self.replace] = recent;
        }
    }
}

/// The table, the flags of the instance, and what is asked of it.
fn taken_apart<'a>(request: &Request<'a>) -> (&'a [u8], Flags, Ask<'a>) {
    let ask = |operation, flags, key, value| Ask {
        operation,
        step: Step::First,
        flags: Flags::from_bits_retain(flags),
        key,
        value,
    };
    let operation = request.operation();
    let (table, instance_flags, ask) = match *request {
        Request::Open { table, flags } => (table, flags, ask(operation, flags, b"", b"")),
        Request::Lookup {
            table,
            instance_flags,
            flags,
            key,
        }
        | Request::Delete {
            table,
            instance_flags,
            flags,
            key,
        } => (table, instance_flags, ask(operation, flags, key, b"")),
        Request::Update {
            table,
            instance_flags,
            flags,
            key,
            value,
        } => (table, instance_flags, ask(operation, flags, key, value)),
        Request::Sequence {
            table,
            instance_flags,
            flags,
            function,
        } => {
            let mut ask = ask(operation, flags, b"", b"");
            ask.step = match function {
                Function::First => Step::First,
                Function::Next => Step::Next,
            };
            (table, instance_flags, ask)
        }
    };
    (table, Flags::from_bits_retain(instance_flags), ask)
}

/// Why a request does not reach a table.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    ReadOnly,
    NoColon,
    Unapproved,
}

impl Refusal {
    fn status(self) -> Status {
        match self {
            Self::ReadOnly | Self::Unapproved => Status::Deny,
            Self::NoColon => Status::Bad,
        }
    }

    fn log(
        self,
        table: &[u8],
        operation: Operation,
        tables: &Tables,
        diagnostics: &mut dyn Diagnostics,
    ) {
        match self {
            Self::ReadOnly => diagnostics.warning(format_args!(
                "refusing {} {} request on non-proxywrite service",
                Shown::new(table),
                operation.word()
            )),
            Self::NoColon => {}
            Self::Unapproved => {
                let name = Shown::new(canonical(table));
                let role = tables.role();
                diagnostics.warning(format_args!("request for unapproved table: \"{name}\""));
                diagnostics.warning(format_args!(
                    "to approve this table for {} access, list proxy:{name} in main.cf:{}",
                    role.access_word(),
                    role.parameter()
                ));
            }
        }
    }
}
