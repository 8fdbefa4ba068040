//! The conversation with one client, as a state machine.
//!
//! ```text
//! save_endp ──▶ prompt sent ──▶ byte with a descriptor ──▶ saved, status
//! find hit ──▶ reply sent ──▶ prompt of the client ──▶ descriptor sent ──▶ second prompt ──▶ our copy closed
//! all others ──▶ reply
//! ```
//!
//! # References
//! scache(8); Postfix `src/scache/scache.c`.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postkeep_wire::duplex::{End, Inbox, Outbox};
use postkeep_wire::scache::{
    self, Operation, Prompt, PromptScanner, Request, RequestScanner, Scanned, Status,
};
use postkeep_wire::{Diagnostics, scan};

use crate::cache::{Cache, SaveError, SessionId};
use crate::ended::{Death, Unfit};

/// Descriptors that may wait in an [`Inbox`]; a client that sends more ahead of its turn is disconnected.
pub const MOST_WAITING_HANDLES: usize = 64;

/// A cache that several conversations use, and what its owner knows about connections.
///
/// Without the methods that have a default, a session is whatever the client says it is, and lives for its
/// time, as in Postfix.
pub trait SharedCache<H> {
    /// Runs one operation on the cache while nobody else can.
    ///
    /// Operations take microseconds and drop no handle. Here is also the place to notice that
    /// [`Cache::next_expiry`] is earlier than before; it is when sessions have ended, which wait for
    /// [`Cache::take_ended`].
    fn with<R>(&self, operation: impl FnOnce(&mut Cache<H>) -> R) -> R;

    /// Whether this can be a session at all. Called before it is saved, outside of [`SharedCache::with`].
    ///
    /// # Errors
    /// The reason why not; the client gets the status for failure.
    fn admit(&self, handle: &H) -> Result<(), Unfit> {
        let _ = handle;
        Ok(())
    }

    /// A session was saved; called within [`SharedCache::with`], so before anybody can find it. True when
    /// [`SharedCache::release`] is to be told of it; [`Cache::is_watched`] says the same later.
    fn watch(&self, session: SessionId, handle: &H) -> bool {
        let _ = (session, handle);
        false
    }

    /// Whether a session that was found has died; then the next one is looked for. Called outside of
    /// [`SharedCache::with`].
    fn examine(&self, handle: &H) -> Option<Death> {
        let _ = handle;
        None
    }

    /// A session that is watched was found, and goes to a client. Called outside of [`SharedCache::with`].
    fn release(&self, handle: &H) {
        let _ = handle;
    }
}

impl<H> SharedCache<H> for Mutex<Cache<H>> {
    fn with<R>(&self, operation: impl FnOnce(&mut Cache<H>) -> R) -> R {
        operation(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<H> SharedCache<H> for RefCell<Cache<H>> {
    fn with<R>(&self, operation: impl FnOnce(&mut Cache<H>) -> R) -> R {
        operation(&mut self.borrow_mut())
    }
}

/// What is the same for all conversations of a service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `connection_cache_ttl_limit`: no session and no binding lives longer. At least a second.
    pub ttl_limit: Duration,
    /// Name of the client's stream in warnings: the service name and ` socket`.
    pub stream: String,
    /// How long requests may be.
    pub limits: scan::Limits,
}

impl Default for Settings {
    /// As Postfix without configuration.
    fn default() -> Self {
        Self {
            ttl_limit: Duration::from_secs(2),
            stream: "scache socket".to_owned(),
            limits: scan::Limits::default(),
        }
    }
}

/// What a conversation waits for, within `ipc_timeout` from the last byte that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The rest of a request.
    Request,
    /// A byte with the descriptor of a session to be saved.
    Descriptor,
    /// The client's word that it is ready for, or has received, a descriptor.
    Prompt,
}

/// How a conversation goes on, once everything in the outbox has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Between two requests: wait without a time limit.
    Idle,
    /// In the middle of something: wait for so long as `ipc_timeout` allows, then
    /// `inbox.finish(End::TimedOut)` and step again.
    Read(Awaited),
    /// Over: send what is in the outbox, then close.
    Close,
}

/// The conversation with one client.
///
/// The driver adds what it receives to the inbox, calls [`Conversation::step`], sends the outbox, and only
/// then receives more, so that a client that does not read cannot make the outbox grow. A handle that
/// [`Outbox::sent`] gives back goes to [`Conversation::keep`]. Dropping a conversation drops the handles in
/// its hands.
///
/// Requests that arrive together are answered in order. (The reference loses all but the first.)
#[derive(Debug)]
pub struct Conversation<H> {
    stage: Stage<H>,
    requests: RequestScanner,
    prompts: PromptScanner,
}

#[derive(Debug)]
enum Stage<H> {
    Request,
    Descriptor(Save),
    /// The client will say that it is ready for this.
    Ready(Operation, H),
    /// The client will say that it has received the descriptor.
    Received(Operation, Option<H>),
    Over,
}

/// A session to be saved, except for its handle.
#[derive(Debug)]
struct Save {
    ttl: Duration,
    label: Box<[u8]>,
    property: Box<[u8]>,
}

/// Whether a step can go on with what is there.
enum Pace {
    On,
    Wait(Next),
}

const CONNECTION_TIMED_OUT: &str = "Connection timed out";
const END_OF_INPUT: &str = "premature end-of-input";
/// What the reference prints for an error that no system call reported.
const APPLICATION_ERROR: &str = "Application error";

impl<H> Conversation<H> {
    /// A conversation before its first request.
    ///
    /// The announcement is not part of it; see [`scache::announce`].
    pub fn new(settings: &Settings) -> Self {
        Self {
            stage: Stage::Request,
            requests: RequestScanner::new(settings.limits),
            prompts: PromptScanner::default(),
        }
    }

    /// Goes as far as it can with what is in the inbox.
    ///
    /// - `now`: the clock of the cache
    /// - `diagnostics`: takes the warnings
    pub fn step(
        &mut self,
        now: Duration,
        settings: &Settings,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        cache: &impl SharedCache<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Next {
        loop {
            let pace = match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Request => self.request(now, settings, inbox, outbox, cache, diagnostics),
                Stage::Descriptor(save) => {
                    self.descriptor(now, save, inbox, outbox, cache, diagnostics)
                }
                Stage::Ready(operation, handle) => {
                    self.ready(operation, handle, settings, inbox, outbox, diagnostics)
                }
                Stage::Received(operation, kept) => {
                    self.received(operation, kept, settings, inbox, diagnostics)
                }
                Stage::Over => Pace::Wait(Next::Close),
            };
            let Pace::Wait(next) = pace else { continue };
            if inbox.handles() > MOST_WAITING_HANDLES && next != Next::Close {
                diagnostics.warning(format_args!(
                    "too many file descriptors in input from {}",
                    settings.stream
                ));
                self.stage = Stage::Over;
                return Next::Close;
            }
            return next;
        }
    }

    /// Takes back the handle of a descriptor that was sent, to be closed when the client has it.
    pub fn keep(&mut self, handle: H) {
        if let Stage::Received(_, kept) = &mut self.stage {
            *kept = Some(handle);
        }
    }

    fn request(
        &mut self,
        now: Duration,
        settings: &Settings,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        cache: &impl SharedCache<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Pace {
        let scanned = self
            .requests
            .scan(inbox.bytes(), inbox.end(), &settings.stream, diagnostics);
        let (consumed, stage) = match scanned {
            Scanned::Incomplete => {
                self.stage = Stage::Request;
                return Pace::Wait(if inbox.is_empty() {
                    Next::Idle
                } else {
                    Next::Read(Awaited::Request)
                });
            }
            Scanned::Request { request, consumed } => {
                let stage = execute(request, now, settings, outbox, cache, diagnostics);
                (consumed, stage)
            }
            Scanned::Malformed {
                operation,
                consumed,
            } => {
                warn(
                    diagnostics,
                    operation,
                    format_args!("bad or missing request parameter"),
                );
                scache::reply_bad(outbox.buffer(), operation);
                (consumed, Stage::Request)
            }
            Scanned::Unknown { consumed, .. } => {
                scache::reply_unknown(outbox.buffer());
                (consumed, Stage::Request)
            }
            Scanned::NoRequest { consumed } => (consumed, Stage::Request),
            Scanned::Closed => return Pace::Wait(Next::Close),
            Scanned::Unusable { operation } => {
                if inbox.end().is_none() {
                    cache.with(Cache::refused_too_long);
                }
                if let Some(operation) = operation {
                    warn(
                        diagnostics,
                        operation,
                        format_args!("bad or missing request parameter"),
                    );
                }
                return Pace::Wait(Next::Close);
            }
        };
        self.stage = stage;
        drop(inbox.consume(consumed));
        Pace::On
    }

    fn descriptor(
        &mut self,
        now: Duration,
        save: Save,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        cache: &impl SharedCache<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Pace {
        let received = match (inbox.take_handles(), inbox.end()) {
            (Some(mut handles), _) => match (handles.pop(), handles.len()) {
                (Some(handle), 0) => Ok(handle),
                (None, _) => Err("no file descriptor in message"),
                (Some(_), _) => Err("more than one file descriptor in message"),
            },
            (None, None) => {
                self.stage = Stage::Descriptor(save);
                return Pace::Wait(Next::Read(Awaited::Descriptor));
            }
            (None, Some(End::TimedOut)) => Err(CONNECTION_TIMED_OUT),
            (None, Some(End::Closed)) => Err(END_OF_INPUT),
        };
        let status = match received {
            Ok(handle) => keep(now, &save, handle, cache, diagnostics),
            Err(reason) => {
                warn(
                    diagnostics,
                    Operation::SaveEndpoint,
                    format_args!("unable to receive file descriptor: {reason}"),
                );
                Status::Fail
            }
        };
        scache::reply_status(outbox.buffer(), status);
        self.go_on(inbox)
    }

    fn ready(
        &mut self,
        operation: Operation,
        handle: H,
        settings: &Settings,
        inbox: &mut Inbox<H>,
        outbox: &mut Outbox<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Pace {
        match self.prompt(settings, inbox, diagnostics) {
            None => {
                self.stage = Stage::Ready(operation, handle);
                Pace::Wait(Next::Read(Awaited::Prompt))
            }
            Some(Ok(())) => {
                outbox.send_handle(handle);
                self.stage = Stage::Received(operation, None);
                Pace::On
            }
            Some(Err(refusal)) => {
                drop(handle);
                self.lost(operation, refusal, inbox, diagnostics)
            }
        }
    }

    fn received(
        &mut self,
        operation: Operation,
        kept: Option<H>,
        settings: &Settings,
        inbox: &mut Inbox<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Pace {
        match self.prompt(settings, inbox, diagnostics) {
            None => {
                self.stage = Stage::Received(operation, kept);
                Pace::Wait(Next::Read(Awaited::Prompt))
            }
            Some(Ok(())) => {
                drop(kept);
                self.go_on(inbox)
            }
            Some(Err(refusal)) => {
                drop(kept);
                self.lost(operation, refusal, inbox, diagnostics)
            }
        }
    }

    /// Looks for the client's prompt; an error tells whether the conversation can go on, and why not.
    fn prompt(
        &mut self,
        settings: &Settings,
        inbox: &mut Inbox<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Option<Result<(), Refusal>> {
        let prompt = self
            .prompts
            .scan(inbox.bytes(), inbox.end(), &settings.stream, diagnostics);
        let (consumed, answer) = match prompt {
            Prompt::Incomplete => return None,
            Prompt::Received { consumed } => (consumed, Ok(())),
            Prompt::Refused { consumed } => (
                consumed,
                Err(Refusal {
                    reason: APPLICATION_ERROR,
                    usable: true,
                }),
            ),
            Prompt::Ended(end) => (
                0,
                Err(Refusal {
                    reason: match end {
                        End::Closed => END_OF_INPUT,
                        End::TimedOut => CONNECTION_TIMED_OUT,
                    },
                    usable: false,
                }),
            ),
            Prompt::Unusable => (
                0,
                Err(Refusal {
                    reason: APPLICATION_ERROR,
                    usable: false,
                }),
            ),
        };
        drop(inbox.consume(consumed));
        Some(answer)
    }

    /// The session is lost; there is no reply for that.
    fn lost(
        &mut self,
        operation: Operation,
        refusal: Refusal,
        inbox: &Inbox<H>,
        diagnostics: &mut dyn Diagnostics,
    ) -> Pace {
        warn(
            diagnostics,
            operation,
            format_args!("cannot send file descriptor: {}", refusal.reason),
        );
        if refusal.usable {
            self.go_on(inbox)
        } else {
            Pace::Wait(Next::Close)
        }
    }

    /// To the next request, unless a time limit has passed.
    fn go_on(&mut self, inbox: &Inbox<H>) -> Pace {
        if inbox.end() == Some(End::TimedOut) {
            return Pace::Wait(Next::Close);
        }
        self.stage = Stage::Request;
        Pace::On
    }
}

#[derive(Clone, Copy)]
struct Refusal {
    reason: &'static str,
    usable: bool,
}

/// Executes a request as far as it goes without hearing from the client again.
fn execute<H>(
    request: Request<'_>,
    now: Duration,
    settings: &Settings,
    outbox: &mut Outbox<H>,
    cache: &impl SharedCache<H>,
    diagnostics: &mut dyn Diagnostics,
) -> Stage<H> {
    let operation = request.operation();
    match request {
        Request::SaveEndpoint {
            ttl,
            label,
            property,
        } => {
            scache::prompt(outbox.buffer());
            Stage::Descriptor(Save {
                ttl: lifetime(ttl, settings),
                label: label.into(),
                property: property.into(),
            })
        }
        Request::SaveDestination {
            ttl,
            label,
            property,
            endpoint,
        } => {
            let ttl = lifetime(ttl, settings);
            let saved =
                cache.with(|cache| cache.save_destination(now, ttl, label, property, endpoint));
            let status = match saved {
                Ok(()) => Status::Ok,
                Err(SaveError::Full(())) => full(diagnostics, operation),
            };
            scache::reply_status(outbox.buffer(), status);
            Stage::Request
        }
        Request::FindEndpoint { label } => {
            let found = loop {
                let found = cache.with(|cache| cache.find_endpoint(now, label, &mut |_| None));
                // The system is asked while others can have the cache.
                let death = found
                    .as_ref()
                    .and_then(|found| cache.examine(&found.handle));
                match (found, death) {
                    (Some(found), Some(death)) => {
                        cache.with(|cache| cache.found_dead_endpoint(found.handle, death));
                    }
                    (found, _) => break found,
                }
            };
            let Some(found) = found else {
                scache::reply_failure(outbox.buffer(), operation, Status::Fail);
                return Stage::Request;
            };
            if found.watched {
                cache.release(&found.handle);
            }
            scache::reply_endpoint(outbox.buffer(), Status::Ok, &found.endpoint_property);
            Stage::Ready(operation, found.handle)
        }
        Request::FindDestination { label } => {
            let found = loop {
                let found = cache.with(|cache| cache.find_destination(now, label, &mut |_| None));
                // The system is asked while others can have the cache.
                let death = found
                    .as_ref()
                    .and_then(|found| cache.examine(&found.handle));
                match (found, death) {
                    (Some(found), Some(death)) => {
                        cache.with(|cache| cache.found_dead_destination(found.handle, death));
                    }
                    (found, _) => break found,
                }
            };
            let Some(found) = found else {
                scache::reply_failure(outbox.buffer(), operation, Status::Fail);
                return Stage::Request;
            };
            if found.watched {
                cache.release(&found.handle);
            }
            scache::reply_destination(
                outbox.buffer(),
                Status::Ok,
                &found.destination_property,
                &found.endpoint_property,
            );
            Stage::Ready(operation, found.handle)
        }
    }
}

/// Saves a session whose descriptor has come.
fn keep<H>(
    now: Duration,
    save: &Save,
    handle: H,
    cache: &impl SharedCache<H>,
    diagnostics: &mut dyn Diagnostics,
) -> Status {
    let operation = Operation::SaveEndpoint;
    if let Err(why) = cache.admit(&handle) {
        // The cache is no place to wait for somebody to close something.
        drop(handle);
        cache.with(|cache| cache.refused(why));
        match why {
            // The far end may have gone just now, which is nobody's fault.
            Unfit::NotConnected => {}
            Unfit::OwnClient => warn(
                diagnostics,
                operation,
                format_args!("file descriptor of a connection to this service"),
            ),
        }
        return Status::Fail;
    }
    let saved = cache.with(|locked| {
        let saved = locked.save_endpoint(now, save.ttl, &save.label, &save.property, handle);
        if let Ok(session) = saved
            && let Some(handle) = locked.handle(session)
            && cache.watch(session, handle)
        {
            locked.is_watched(session);
        }
        saved
    });
    match saved {
        Ok(_) => Status::Ok,
        Err(SaveError::Full(_)) => full(diagnostics, operation),
    }
}

fn lifetime(ttl: i32, settings: &Settings) -> Duration {
    Duration::from_secs(u64::from(ttl.unsigned_abs())).min(settings.ttl_limit)
}

fn warn(diagnostics: &mut dyn Diagnostics, operation: Operation, text: fmt::Arguments<'_>) {
    diagnostics.warning(format_args!("scache_{}_service: {text}", operation.word()));
}

fn full(diagnostics: &mut dyn Diagnostics, operation: Operation) -> Status {
    warn(
        diagnostics,
        operation,
        format_args!("connection cache is full"),
    );
    Status::Fail
}

#[cfg(test)]
mod tests;
