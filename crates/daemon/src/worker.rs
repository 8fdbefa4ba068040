//! A worker thread: its clients, their turns, their time limits.
//!
//! The path of a request is `epoll_wait`, `recv` or `recvmsg`, a turn of the service, `send`; nothing else is asked of
//! the kernel as long as replies fit into the socket. Readiness is level-triggered, so one read per event is
//! enough. Interest is only changed when a client does not take its reply, or sends while it is parked.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postkeep_sys::descriptor::move_above;
use postkeep_sys::readiness::{Events, Interest, Poller, Ready};
use postkeep_sys::socket;
use postkeep_wire::duplex::{End, Inbox, Outbox};

use crate::census::Counted;
use crate::eviction::Candidate;
use crate::handover::{Handover, Progress};
use crate::logging;
use crate::lookout::Lookout;
use crate::service::{Attributes, Next, Service, Turn};
use crate::shared::{Mailbox, Message, Shared};
use crate::slots::Slots;
use crate::statistics::Cause;
use crate::waker::{Wake, Waker};

mod connection;
mod deadlines;
mod room;

use connection::{Connection, Phase, Registered};

/// The token of the worker's own bell.
const BELL: u64 = u64::MAX;
/// Descriptors taken from one wait.
const BATCH: usize = 256;
/// Bytes taken by one read.
const READ_SIZE: usize = 64 * 1024;
/// Descriptors that a client may send without anybody asking for them.
const MAX_HANDLES: usize = 64;
/// Buffers that grew beyond this are given back when the client is idle.
const KEPT: usize = 16 * 1024;
/// How long requests in progress may take when the process is to end.
const GRACE: Duration = Duration::from_secs(5);
/// Client descriptors are at least this; numbers below stay free for libraries that need them.
pub(crate) const LOWEST_CLIENT: i32 = 128;

/// One worker.
pub(crate) struct Worker<S: Service> {
    service: Arc<S>,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    poller: Poller,
    connections: Slots<Connection<S::Client>>,
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    buffer: Vec<u8>,
    arrived: Vec<OwnedFd>,
    now: Instant,
    leaving: bool,
    began: Instant,
    /// What a request takes up of its client's time, in nanoseconds; zero: nothing.
    interval: u64,
    /// What large buffers hold together, and may hold, in bytes.
    held: usize,
    most_held: usize,
    /// Those that can best be done without, as of a look at all; the first to go last.
    candidates: Vec<Candidate>,
    lookout: Lookout,
    /// Somebody has got a reply since the last wait, and may ask again at once.
    expectant: bool,
}

impl<S: Service> Worker<S> {
    pub(crate) fn new(
        service: Arc<S>,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        workers: usize,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&mailbox.bell, BELL, Interest::Read)?;
        let interval = SECOND
            .checked_div(shared.limits.request_rate.into())
            .unwrap_or(0);
        let limits = &shared.limits;
        // One request must always fit.
        let most_held =
            (limits.buffer_memory / workers.max(1)).max(limits.requests.list + 2 * READ_SIZE);
        Ok(Self {
            held: 0,
            most_held,
            candidates: Vec::new(),
            lookout: Lookout::new(limits.busy_wait),
            expectant: false,
            service,
            shared,
            mailbox,
            poller,
            connections: Slots::new(),
            deadlines: BinaryHeap::new(),
            buffer: vec![0; READ_SIZE],
            arrived: Vec::new(),
            now: Instant::now(),
            leaving: false,
            began: Instant::now(),
            interval,
        })
    }

    /// Serves until told to leave, and what had begun by then is done.
    pub(crate) fn run(mut self) {
        let mut events = Events::new(BATCH);
        let mut messages = Vec::new();
        while !(self.leaving && self.connections.is_empty()) {
            let limit = self
                .deadlines
                .peek()
                .map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
            self.mailbox.pulse.rest();
            self.wait(&mut events, limit);
            self.mailbox.pulse.begin(self.now);
            self.expire();
            for ready in events.ready() {
                if ready.token == BELL {
                    self.mailbox.bell.silence();
                    self.mailbox.collect(&mut messages);
                    for message in messages.drain(..) {
                        self.obey(message);
                    }
                } else {
                    self.ready(*ready);
                }
            }
        }
        self.mailbox.pulse.rest();
        self.mailbox.finished.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }

    /// Waits for what comes next, at most for so long.
    fn wait(&mut self, events: &mut Events, limit: Option<Duration>) {
        let began = Instant::now();
        let looking = std::mem::take(&mut self.expectant) && self.lookout.pays(limit);
        if looking {
            loop {
                self.poll(events, Some(Duration::ZERO));
                self.now = Instant::now();
                let passed = self.now - began;
                if !events.ready().is_empty() {
                    self.lookout.came(passed, true);
                    return;
                }
                if !self.lookout.again(passed) {
                    break;
                }
                std::thread::yield_now();
            }
        }
        self.poll(events, limit);
        self.now = Instant::now();
        if !looking && !events.ready().is_empty() {
            self.lookout.came(self.now - began, false);
        }
    }

    fn poll(&self, events: &mut Events, limit: Option<Duration>) {
        if let Err(error) = self.poller.wait(events, limit) {
            logging::fatal(format_args!(
                "epoll_wait: {}",
                postkeep_sys::error_text(&error)
            ));
        }
    }

    fn obey(&mut self, message: Message) {
        match message {
            Message::Client {
                socket,
                resume,
                counted,
            } => self.welcome(socket, &[], resume, counted),
            Message::Handover { socket, counted } => self.begin_handover(socket, counted),
            Message::Wake(token) => self.wake(token),
            Message::Leave => self.leave(),
            Message::Shed { eviction, worker } => eviction.answer(worker, self.candidate()),
            Message::Evict { token, since } => self.evict(token, since),
        }
    }

    fn insert(&mut self, socket: OwnedFd, phase: Phase, counted: Option<Counted>) -> u64 {
        let now = self.now;
        self.connections.insert_with(|_| Connection {
            socket: Arc::new(socket),
            phase,
            client: None,
            registered: Registered::Nothing,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            blocked: false,
            woken: false,
            deadline: None,
            scheduled: None,
            swollen: false,
            held: 0,
            last_turn: now,
            paid: 0,
            counted,
        })
    }

    /// Begins to serve a client.
    fn welcome(
        &mut self,
        socket: OwnedFd,
        attributes: &Attributes,
        resume: Option<Instant>,
        counted: Option<Counted>,
    ) {
        let phase = resume.map_or(Phase::Serving(Next::Idle), Phase::Held);
        let token = self.insert(socket, phase, counted);
        let service = &self.service;
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let waker = Waker::new(
            Arc::clone(&self.mailbox) as Arc<dyn Wake>,
            token,
            Arc::downgrade(&connection.socket),
        );
        connection.client = logging::contain(|| {
            let socket = connection.socket.as_fd();
            service.connected_at(socket, attributes, &mut connection.outbox, waker)
        });
        if connection.client.is_none() {
            self.close(token, Cause::Panic);
        } else if self.leaving {
            // Served only if it has sent a request already.
            self.read(token);
            self.dismiss(token);
        } else if resume.is_some() {
            self.flush(token);
        } else {
            self.turn(token, 0);
        }
    }

    fn begin_handover(&mut self, socket: OwnedFd, counted: Option<Counted>) {
        let handover = Handover::new(self.now);
        let until = handover.until;
        let token = self.insert(socket, Phase::Handover(Box::new(handover)), counted);
        self.register(token, Registered::For(Interest::Read));
        self.schedule(token, Some(until));
        if self.leaving {
            self.dismiss(token);
        }
    }

    /// Something happened at a connection.
    fn ready(&mut self, ready: Ready) {
        let Some(connection) = self.connections.find(ready.token) else {
            return;
        };
        if connection.blocked {
            if ready.writable {
                self.flush(ready.token);
            }
            return;
        }
        match &connection.phase {
            Phase::Serving(Next::Wait | Next::Await { .. }) | Phase::Held(_) => {
                // It can wait; but it must not be reported again and again meanwhile.
                self.register(ready.token, Registered::Nothing);
            }
            Phase::Serving(_) | Phase::Handover(_) if ready.readable => {
                self.read(ready.token);
            }
            Phase::Serving(_) | Phase::Handover(_) => {}
        }
    }

    /// Reads once, and gives a turn if anything came; says whether it did.
    fn read(&mut self, token: u64) -> bool {
        let Some(connection) = self.connections.find(token) else {
            return false;
        };
        if connection.inbox.end().is_some() {
            return false;
        }
        let mut bytes_came = false;
        let received = if S::TAKES_DESCRIPTORS || matches!(connection.phase, Phase::Handover(_)) {
            socket::receive(&connection.socket, &mut self.buffer, &mut self.arrived)
        } else {
            socket::receive_bytes(&connection.socket, &mut self.buffer)
        };
        match received {
            Ok(0) => {
                self.arrived.clear();
                connection.inbox.finish(End::Closed);
                let between_requests = matches!(
                    connection.phase,
                    Phase::Serving(Next::Idle | Next::Listen { .. })
                );
                if between_requests && connection.inbox.is_empty() && connection.outbox.is_empty() {
                    self.close(token, Cause::Peer);
                    return true;
                }
            }
            Ok(count) => {
                bytes_came = true;
                connection
                    .inbox
                    .receive(&self.buffer[..count], self.arrived.drain(..));
                if connection.inbox.handles() > MAX_HANDLES {
                    self.shared.complaints.handles.say(
                        self.now,
                        format_args!(
                            "client sends more than {MAX_HANDLES} descriptors that nobody asked for, it is disconnected"
                        ),
                    );
                    self.close(token, Cause::Broken);
                    return true;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return false;
            }
            Err(_) => connection.inbox.finish(End::Closed),
        }
        if matches!(connection.phase, Phase::Handover(_)) {
            self.hand_over(token);
            return true;
        }
        self.shared.counters.turn();
        self.turn(token, u32::from(bytes_came));
        if bytes_came
            && let Some(status) = self.shared.status.get()
            && !status.served()
        {
            self.shared.leave.store(true, Ordering::SeqCst);
            self.shared.bell.ring();
        }
        true
    }

    /// Gives the service a turn with a client, and sends what it says.
    ///
    /// - `requests`: how many this counts for, unless the service knows better
    fn turn(&mut self, token: u64, requests: u32) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let (Phase::Serving(next), Some(client)) = (&mut connection.phase, &mut connection.client)
        else {
            return;
        };
        connection.last_turn = self.now;
        let ended = connection.inbox.end();
        let service = &self.service;
        let mut turn = Turn {
            now: self.now,
            inbox: &mut connection.inbox,
            outbox: &mut connection.outbox,
            requests,
        };
        let outcome = logging::contain(|| service.advance(client, &mut turn));
        if self.interval != 0 && turn.requests != 0 {
            let now = nanoseconds(self.began, turn.now);
            let cost = self.interval.saturating_mul(turn.requests.into());
            connection.paid = connection.paid.max(now).saturating_add(cost);
        }
        match outcome {
            Some(parked @ (Next::Wait | Next::Await { .. })) => *next = parked,
            Some(_) if ended.is_some() => *next = Next::Close,
            Some(other) => {
                *next = other;
                self.expectant = true;
            }
            None => {
                self.close(token, Cause::Panic);
                return;
            }
        }
        connection.swollen |=
            connection.inbox.bytes().len() > KEPT || connection.outbox.len() > KEPT;
        self.flush(token);
    }

    /// Sends what waits to be sent; then, or when nothing more can be sent now, sees to what is next.
    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let mut progress = false;
        while !connection.outbox.is_empty() {
            let sent = match connection.outbox.next_chunk() {
                (bytes, Some(handle)) => {
                    socket::send_descriptor(&connection.socket, bytes[0], handle.as_fd())
                        .map(|()| 1)
                }
                (bytes, None) => socket::send(&connection.socket, bytes),
            };
            match sent {
                Ok(count) => {
                    progress = true;
                    // The copy of a descriptor that was sent is closed here.
                    drop(connection.outbox.sent(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if progress || !connection.blocked {
                        connection.blocked = true;
                        let until = self.now + self.service.write_limit();
                        self.schedule(token, Some(until));
                    }
                    self.register(token, Registered::For(Interest::Write));
                    self.weigh(token);
                    return;
                }
                Err(_) => {
                    let cause = if connection.inbox.end() == Some(End::Closed) {
                        Cause::Peer
                    } else {
                        Cause::Broken
                    };
                    self.close(token, cause);
                    return;
                }
            }
        }
        connection.blocked = false;
        if std::mem::take(&mut connection.woken) {
            self.turn(token, 0);
        } else {
            self.settle(token);
        }
    }

    /// Everything is sent: what does the client wait for?
    fn settle(&mut self, token: u64) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let end = connection.inbox.end();
        if connection.paid != 0
            && end.is_none()
            && !self.leaving
            && matches!(
                connection.phase,
                Phase::Serving(Next::Idle | Next::Listen { .. } | Next::Read { .. })
            )
        {
            let ahead = connection
                .paid
                .saturating_sub(nanoseconds(self.began, self.now));
            // A second's worth of requests may come at once.
            if ahead > SECOND {
                let pause = Duration::from_nanos(ahead - SECOND);
                connection.phase = Phase::Held(self.now + pause);
                self.shared.complaints.request_rate.say(
                    self.now,
                    format_args!(
                        "client sends more than {} requests per second, it waits for {} ms",
                        self.shared.limits.request_rate,
                        pause.as_millis()
                    ),
                );
            }
        }
        let (deadline, read) = match &connection.phase {
            Phase::Handover(_) => return,
            Phase::Held(resume) => (Some(*resume), false),
            Phase::Serving(next) => match *next {
                Next::Close => {
                    let cause = match end {
                        Some(End::Closed) => Cause::Peer,
                        Some(End::TimedOut) => Cause::ReadLimit,
                        None => Cause::Service,
                    };
                    self.close(token, cause);
                    return;
                }
                Next::Idle | Next::Listen { .. } if self.leaving => {
                    self.close(token, Cause::Leaving);
                    return;
                }
                Next::Idle => (None, true),
                Next::Read { until } if self.leaving => (Some(until.min(self.now + GRACE)), true),
                Next::Listen { until } | Next::Read { until } => (Some(until), true),
                // What is registered stays; if the client sends or closes meanwhile, that is seen to then.
                Next::Wait => (Some(self.now + self.shared.patience), false),
                Next::Await { until } => (Some(until), false),
            },
        };
        if connection.swollen
            && connection.inbox.is_empty()
            && connection.inbox.handles() == 0
            && end.is_none()
        {
            connection.inbox = Inbox::default();
            connection.outbox = Outbox::default();
            connection.swollen = false;
            self.held -= std::mem::take(&mut connection.held);
        }
        let swollen = connection.swollen;
        if read {
            self.register(token, Registered::For(Interest::Read));
        } else if end.is_some() {
            // The end of the stream would be reported without pause.
            self.register(token, Registered::Nothing);
        }
        self.schedule(token, deadline);
        if swollen {
            self.weigh(token);
        }
    }

    fn wake(&mut self, token: u64) {
        if let Some(connection) = self.connections.find(token)
            && matches!(connection.phase, Phase::Serving(_))
        {
            if connection.blocked {
                connection.woken = true;
            } else {
                self.turn(token, 0);
            }
        }
    }

    fn hand_over(&mut self, token: u64) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let Phase::Handover(handover) = &mut connection.phase else {
            return;
        };
        match handover.advance(&mut connection.inbox, self.now) {
            Progress::Incomplete => {
                let until = handover.until;
                self.schedule(token, Some(until));
            }
            Progress::Complete(client, attributes) => {
                // The client takes the place of the connection that brought it in all counts.
                // Handovers are short, so nothing of them is in the worker's sum.
                let counted = self
                    .connections
                    .remove(token)
                    .and_then(|connection| connection.counted);
                match move_above(client, LOWEST_CLIENT) {
                    Ok(client) => self.welcome(client, &attributes, None, counted),
                    Err(error) => {
                        let text = postkeep_sys::error_text(&error);
                        let errors = &self.shared.complaints.accept_errors;
                        errors.say(self.now, "", &text);
                        self.forget(Cause::Broken, false);
                    }
                }
            }
            Progress::Failed(text) => {
                let reason = text.split_once(": ").map_or(text, |(_, reason)| reason);
                let cause = format!("pass_accept_attr: {text}");
                let errors = &self.shared.complaints.accept_errors;
                errors.say(self.now, &cause, reason);
                self.shared.counters.accept_failed();
                self.close(token, Cause::Broken);
            }
        }
    }

    fn close(&mut self, token: u64, cause: Cause) {
        let Some(connection) = self.connections.remove(token) else {
            return;
        };
        let Connection {
            socket,
            client,
            phase,
            registered,
            held,
            ..
        } = connection;
        self.held -= held;
        if let Some(client) = client {
            let service = &self.service;
            logging::contain(|| {
                if cause == Cause::Panic {
                    drop(client);
                } else {
                    service.disconnected(client);
                }
            });
        }
        // Closing takes it out of the set too, unless another process has it as well: so it is taken out.
        if registered != Registered::Nothing {
            let _ = self.poller.remove(&socket);
        }
        drop(socket);
        self.forget(cause, !matches!(phase, Phase::Handover(_)));
    }

    /// One connection less, in all counts.
    fn forget(&self, cause: Cause, served: bool) {
        self.mailbox.clients.fetch_sub(1, Ordering::Relaxed);
        self.shared.gone(cause, served);
    }

    fn register(&mut self, token: u64, wanted: Registered) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        let done = match (connection.registered, wanted) {
            (now, wanted) if now == wanted => Ok(()),
            (Registered::Nothing, Registered::For(interest)) => {
                self.poller.add(&connection.socket, token, interest)
            }
            (_, Registered::For(interest)) => {
                self.poller.modify(&connection.socket, token, interest)
            }
            (_, Registered::Nothing) => self.poller.remove(&connection.socket),
        };
        connection.registered = wanted;
        if done.is_err() {
            // No socket at all, or the system is out of memory for watching it.
            self.close(token, Cause::Broken);
        }
    }

    /// Lets what has begun come to its end.
    fn leave(&mut self) {
        self.leaving = true;
        let tokens: Vec<u64> = self.connections.iter().map(|(token, _)| token).collect();
        for token in tokens {
            // A request that is in the socket already has arrived.
            if let Some(connection) = self.connections.find(token)
                && !connection.blocked
                && !matches!(
                    connection.phase,
                    Phase::Serving(Next::Wait | Next::Await { .. }) | Phase::Held(_)
                )
            {
                self.read(token);
            }
            self.dismiss(token);
        }
    }

    /// Closes a connection that has no request in progress; sees to it that others come to an end.
    fn dismiss(&mut self, token: u64) {
        let Some(connection) = self.connections.find(token) else {
            return;
        };
        match &connection.phase {
            Phase::Handover(_) | Phase::Held(_) => self.close(token, Cause::Leaving),
            Phase::Serving(_) if connection.blocked => {
                let grace = self.now + GRACE;
                let deadline = connection
                    .deadline
                    .map_or(grace, |deadline| deadline.min(grace));
                self.schedule(token, Some(deadline));
            }
            Phase::Serving(_) => self.settle(token),
        }
    }
}

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

fn nanoseconds(began: Instant, now: Instant) -> u64 {
    let passed = now.saturating_duration_since(began);
    passed.as_secs().saturating_mul(SECOND) + u64::from(passed.subsec_nanos())
}
