//! The lookup tables for clients on other machines: the conversation with one of them, in the socketmap protocol.
//!
//! As in [`service`](crate::service) neither socket nor clock is touched. What a client can do is less than there: it
//! says the name of a map that the configuration has ([`Maps`]), and a key.
//!
//! - A request that is none gets `PERM`, a map that there is not `PERM`, a table that fails `TEMP` or `PERM`, one that does
//!   not answer in time `TIMEOUT`. No reply says why a table failed: that is in our log, and may tell of passwords.
//! - What cannot be read on from ends the connection, after `PERM` where the client may be one that can read it.
//! - A key that is no text in UTF-8 is in no table that wants text, and is not asked for; nor is one with a NUL.
//!
//! # References
//! `socketmap_table(5)`.

mod maps;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postkeep_table::Flags;
use postkeep_wire::duplex::{End, Inbox, Outbox};
use postkeep_wire::proxymap::{Generation, Status};
use postkeep_wire::socketmap::{Reply, Scanned, scan};

use crate::perform::Found;
use crate::service::{Done, Fatal, Job, Work, look_up};
use crate::share::Tables;

pub use maps::{Maps, MapsError};

/// With this many bytes of replies waiting no further request is looked at.
const MAX_WAITING: usize = 256 * 1024;

/// Reasons in replies.
const LOOKUP_PROBLEM: &str = "table lookup problem";
const TABLE_PROBLEM: &str = "table configuration problem";
const NO_MAP: &str = "no such map";
const MALFORMED: &str = "expecting a map name, a space, and a key";
const TOO_LARGE: &str = "request too large";
const TIME_LIMIT: &str = "time limit exceeded";

/// What a client may take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request: the name, a blank and the key.
    pub request_size: usize,
    /// How long a request may take to arrive, from its first byte on.
    pub request_time: Duration,
    /// How long a client may wait between two requests, and before the first.
    pub idle_time: Duration,
    /// How long a client waits for an answer, at most.
    pub answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_size: 16 * 1024,
            request_time: Duration::from_secs(10),
            idle_time: Duration::from_mins(5),
            answer_time: Duration::from_secs(100),
        }
    }
}

/// What the conversations of a process share.
#[derive(Debug)]
pub struct Server {
    maps: Maps,
    tables: Arc<Tables>,
    flags: Flags,
    limits: Limits,
    counters: Counters,
}

impl Server {
    /// - `tables`: those of `maps`
    /// - `utf8`: `smtputf8_enable`
    pub fn new(maps: Maps, tables: Arc<Tables>, utf8: bool, limits: Limits) -> Self {
        let mut flags = Flags::LOCK | Flags::FOLD_FIX;
        flags.set(Flags::UTF8_REQUEST, utf8);
        Self {
            maps,
            tables,
            flags,
            limits,
            counters: Counters::default(),
        }
    }

    /// The tables behind the maps.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }
}

/// What a driver is to do next.
#[derive(Debug)]
pub enum Action {
    /// Send what is in the outbox, then wait for input until this time; then step again.
    Idle(Duration),
    /// Send what is in the outbox, then wait for more input until this time; then call [`Inbox::finish`] with
    /// [`End::TimedOut`] and step again.
    Read(Duration),
    /// Too much waits to be sent: send the outbox before the next step.
    Flush,
    /// Begin the job, where it may wait if [`Job::may_wait`] says so; then call [`Conversation::finish`] with what
    /// comes of it, or [`Conversation::give_up`] when nothing has by this time; then step again.
    Run(Job, Duration),
    /// A job is out.
    Wait,
    /// Send what is in the outbox, then close the connection.
    Close,
}

/// What is wrong with what a client does: for one line in the log now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A netstring that is no request.
    Malformed,
    /// No netstring; the connection ends.
    NoNetstring,
    /// A request beyond [`Limits::request_size`]; the connection ends.
    TooLarge,
    /// A request that was not there in [`Limits::request_time`]; the connection ends.
    Slow,
    /// A connection that ended in a request.
    Cut,
    /// A map that there is not.
    NoMap,
    /// A key that is no text.
    NoText,
    /// A table that has not answered in [`Limits::answer_time`].
    NoAnswer,
}

/// All troubles, in order of their numbers.
pub const TROUBLES: [Trouble; 8] = [
    Trouble::Malformed,
    Trouble::NoNetstring,
    Trouble::TooLarge,
    Trouble::Slow,
    Trouble::Cut,
    Trouble::NoMap,
    Trouble::NoText,
    Trouble::NoAnswer,
];

/// How requests ended, by word of the reply.
#[derive(Debug, Default)]
struct Counters {
    found: AtomicU64,
    absent: AtomicU64,
    temporary: AtomicU64,
    permanent: AtomicU64,
    troubles: [AtomicU64; TROUBLES.len()],
}

/// What has been counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `OK`
    pub found: u64,
    /// `NOTFOUND`
    pub absent: u64,
    /// `TEMP`
    pub temporary: u64,
    /// `PERM` from a table
    pub permanent: u64,
    /// By [`TROUBLES`].
    pub troubles: [u64; TROUBLES.len()],
}

impl Counters {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            found: read(&self.found),
            absent: read(&self.absent),
            temporary: read(&self.temporary),
            permanent: read(&self.permanent),
            troubles: self.troubles.each_ref().map(read),
        }
    }
}

/// The state of the conversation with one client.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Requests that were looked at, since somebody asked.
    requests: u32,
    /// Until when the request at hand must be there.
    deadline: Option<Duration>,
    /// Until when the client may say nothing.
    patience: Option<Duration>,
    /// A job is out.
    busy: bool,
    found: Found,
    spare: Option<Box<Work>>,
}

impl Conversation {
    /// A conversation at its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the requests that are in the inbox, in order, until there is something else to do.
    ///
    /// - `now`: the caller's clock, from any fixed moment on; never goes back between calls
    /// - `trouble`: takes what is wrong with this client, and the name of the map where that is it
    pub fn step<H>(
        &mut self,
        now: Duration,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        server: &Server,
        trouble: &mut dyn FnMut(Trouble, &[u8]),
    ) -> Action {
        let mut trouble = |which: Trouble, detail: &[u8]| {
            Counters::count(&server.counters.troubles[which as usize]);
            trouble(which, detail);
        };
        let limits = &server.limits;
        loop {
            if self.busy {
                return Action::Wait;
            }
            if outbox.len() >= MAX_WAITING {
                return Action::Flush;
            }
            let (outcome, consumed) = match scan(inbox.bytes(), limits.request_size) {
                Scanned::Incomplete => return self.wait(now, inbox, limits, &mut trouble),
                Scanned::NoNetstring => {
                    trouble(Trouble::NoNetstring, b"");
                    return Action::Close;
                }
                Scanned::TooLarge => {
                    trouble(Trouble::TooLarge, b"");
                    Reply::Permanent(TOO_LARGE).write(outbox.buffer());
                    return Action::Close;
                }
                Scanned::Malformed { consumed } => {
                    trouble(Trouble::Malformed, b"");
                    (Ok(Reply::Permanent(MALFORMED)), consumed)
                }
                Scanned::Request { map, key, consumed } => {
                    let outcome = self.look_up(now, map, key, server, &mut trouble);
                    (outcome, consumed)
                }
            };
            let job = match outcome {
                Ok(reply) => {
                    reply.write(outbox.buffer());
                    self.found.recycle();
                    None
                }
                Err(job) => Some(job),
            };
            self.deadline = None;
            self.patience = None;
            self.requests = self.requests.saturating_add(1);
            // Nobody sends descriptors to this service; one that came is closed here.
            drop(inbox.consume(consumed));
            if let Some(job) = job {
                self.busy = true;
                return Action::Run(job, now.saturating_add(limits.answer_time));
            }
        }
    }

    /// Nothing can be done with what is there.
    fn wait<H>(
        &mut self,
        now: Duration,
        inbox: &Inbox<H>,
        limits: &Limits,
        trouble: &mut dyn FnMut(Trouble, &[u8]),
    ) -> Action {
        match (inbox.end(), inbox.is_empty()) {
            (Some(_), true) => Action::Close,
            (Some(End::Closed), false) => {
                trouble(Trouble::Cut, b"");
                Action::Close
            }
            (Some(End::TimedOut), false) => {
                trouble(Trouble::Slow, b"");
                Action::Close
            }
            (None, false) => {
                let limit = now.saturating_add(limits.request_time);
                Action::Read(*self.deadline.get_or_insert(limit))
            }
            (None, true) => {
                let limit = now.saturating_add(limits.idle_time);
                let until = *self.patience.get_or_insert(limit);
                if now < until {
                    Action::Idle(until)
                } else {
                    Action::Close
                }
            }
        }
    }

    fn look_up<'s>(
        &'s mut self,
        now: Duration,
        map: &[u8],
        key: &[u8],
        server: &Server,
        trouble: &mut dyn FnMut(Trouble, &[u8]),
    ) -> Result<Reply<'s>, Job> {
        let tables = &server.tables;
        let table = server.maps.find(map).and_then(|name| tables.find(name));
        let Some(entry) = table else {
            trouble(Trouble::NoMap, map);
            return Ok(Reply::Permanent(NO_MAP));
        };
        let text = server.flags.contains(Flags::UTF8_REQUEST);
        if key.contains(&0) || (text && std::str::from_utf8(key).is_err()) {
            trouble(Trouble::NoText, b"");
            return Ok(Reply::Absent);
        }
        let instance = tables.instance(entry, Generation::Two, server.flags, now);
        let status = look_up(
            now,
            instance,
            server.flags,
            key,
            tables,
            &mut self.found,
            &mut self.spare,
        )?;
        Ok(reply(status, &self.found, &server.counters))
    }

    /// How many requests, good and bad, this client has sent since this was called last.
    pub fn take_requests(&mut self) -> u32 {
        std::mem::take(&mut self.requests)
    }

    /// Writes the reply to the request whose job was run; step again after that.
    ///
    /// # Errors
    /// [`Fatal`] when the process has to end; there is no reply.
    pub fn finish<H>(
        &mut self,
        done: Done,
        outbox: &mut Outbox<H>,
        server: &Server,
    ) -> Result<(), Fatal> {
        let Done {
            mut work,
            status,
            fatal,
            ..
        } = done;
        self.busy = false;
        if let Some(fatal) = fatal {
            return Err(fatal);
        }
        reply(status, &work.found, &server.counters).write(outbox.buffer());
        work.recycle();
        self.spare = Some(work);
        Ok(())
    }

    /// Writes the reply to a request whose job takes too long; what comes of it later is of no use. Step again after
    /// that.
    pub fn give_up<H>(
        &mut self,
        outbox: &mut Outbox<H>,
        server: &Server,
        trouble: &mut dyn FnMut(Trouble, &[u8]),
    ) {
        self.busy = false;
        Counters::count(&server.counters.troubles[Trouble::NoAnswer as usize]);
        trouble(Trouble::NoAnswer, b"");
        Reply::Timeout(TIME_LIMIT).write(outbox.buffer());
    }
}

/// What an outcome is in this protocol.
fn reply<'f>(status: Status, found: &'f Found, counters: &Counters) -> Reply<'f> {
    let (counter, reply) = match status {
        Status::Ok => (&counters.found, Reply::Found(&found.value)),
        Status::NoKey => (&counters.absent, Reply::Absent),
        Status::Retry => (&counters.temporary, Reply::Temporary(LOOKUP_PROBLEM)),
        // A table never gives the last two.
        Status::Config | Status::Bad | Status::Deny => {
            (&counters.permanent, Reply::Permanent(TABLE_PROBLEM))
        }
    };
    Counters::count(counter);
    reply
}
