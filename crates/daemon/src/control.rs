//! The control thread: accepting, the life of the process, and its end.
//!
//! # References
//! Postfix `multi_server.c`.

use std::io;
use std::os::fd::OwnedFd;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postkeep_sys::descriptor::{raise_limit, try_move_above};
use postkeep_sys::readiness::{Events, Interest, Poller};
use postkeep_sys::{error_text, socket};

use crate::census::{Census, Counted, Whose};
use crate::eviction::Eviction;
use crate::logging;
use crate::program::Transport;
use crate::service::Service;
use crate::shared::{Mailbox, Message, Pulse, Shared};
use crate::status;
use crate::watchdog;
use crate::worker::{LOWEST_CLIENT, Worker};

/// Tokens.
const BELL: u64 = u64::MAX;
const STATUS: u64 = u64::MAX - 1;
/// How long listening sockets rest when there is no room for their clients, unless one makes room sooner.
const REST: Duration = Duration::from_secs(1);

/// What the control loop needs to know of the configuration.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) transport: Transport,
    /// `max_idle`; zero: no limit.
    pub(crate) max_idle: Duration,
    /// `max_use`; zero: no limit.
    pub(crate) max_use: u64,
    /// `in_flow_delay`, for services that ask for it.
    pub(crate) flow_delay: Option<Duration>,
    /// The read end of the flow-control pipe.
    pub(crate) flow_pipe: Option<OwnedFd>,
    pub(crate) listeners: Vec<OwnedFd>,
    /// How often to say that all threads are alive, if somebody asks for it.
    pub(crate) heartbeat: Option<Duration>,
    /// Worker threads.
    pub(crate) workers: usize,
}

struct Listener {
    socket: OwnedFd,
    /// That of the service, unless the socket itself is of the other kind: then it is what the socket says.
    transport: Transport,
    /// Not watched before then.
    rests_until: Option<Instant>,
}

/// The time at which an unused process ends.
struct IdleTimer {
    limit: Duration,
    due: Option<Instant>,
    /// What was left when it was stopped, for accepts that come to nothing.
    left: Duration,
    /// Connections served when it was stopped.
    used: u64,
}

impl IdleTimer {
    fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            due: (!limit.is_zero()).then(|| now + limit),
            left: limit,
            used: 0,
        }
    }

    fn stop(&mut self, used: u64, now: Instant) {
        if let Some(due) = self.due.take() {
            self.left = due.saturating_duration_since(now);
            self.used = used;
        }
    }

    /// No client is left. Whoever was served counts as use, and the time begins anew.
    fn start(&mut self, used: u64, now: Instant) {
        if self.limit.is_zero() || self.due.is_some() {
            return;
        }
        let left = if used == self.used {
            self.left
        } else {
            self.limit
        };
        self.due = Some(now + left);
    }
}

/// A client that has come.
struct Newcomer {
    socket: OwnedFd,
    transport: Transport,
    counted: Option<Counted>,
}

struct Loop<S: Service> {
    service: Arc<S>,
    shared: Arc<Shared>,
    plan: Plan,
    poller: Poller,
    listeners: Vec<Listener>,
    mailboxes: Vec<Arc<Mailbox>>,
    idle: IdleTimer,
    /// A client that has come and has no number of its own yet.
    pending: Option<Newcomer>,
    census: Census,
    /// The lowest number of a client's descriptor.
    lowest: i32,
    leaving: bool,
    pulse: Arc<Pulse>,
}

/// Serves until it is time to end, and ends the process.
pub(crate) fn serve<S: Service>(service: Arc<S>, shared: Arc<Shared>, mut plan: Plan) -> ! {
    let broken = |what: &str, error: &io::Error| -> ! {
        logging::fatal(format_args!("{what}: {}", error_text(error)));
    };
    // One process has all the clients; a lower limit than needed is seen to when it is reached.
    let descriptors = raise_limit().unwrap_or(u64::MAX);
    let poller = Poller::new().unwrap_or_else(|error| broken("epoll_create", &error));
    let register = |descriptor: &OwnedFd, token| {
        if let Err(error) = poller.add(descriptor, token, Interest::Read) {
            broken("event_enable_read: epoll_ctl EPOLL_CTL_ADD", &error);
        }
    };
    let listeners: Vec<Listener> = std::mem::take(&mut plan.listeners)
        .into_iter()
        .map(|socket| Listener {
            transport: match (plan.transport, socket::is_of_network(&socket)) {
                (Transport::Unix, Ok(true)) => Transport::Inet,
                (Transport::Inet, Ok(false)) => Transport::Unix,
                (transport, _) => transport,
            },
            socket,
            rests_until: None,
        })
        .collect();
    for (token, listener) in (0..).zip(&listeners) {
        register(&listener.socket, token);
    }
    if let Some(status) = shared.status.get() {
        register(status.descriptor(), STATUS);
    }
    if let Err(error) = poller.add(&shared.bell, BELL, Interest::Read) {
        broken("event_enable_read: epoll_ctl EPOLL_CTL_ADD", &error);
    }

    let pulse = Arc::new(Pulse::default());
    let mut mailboxes = Vec::new();
    for number in 0..plan.workers.max(1) {
        let mailbox = Arc::new(Mailbox::new().unwrap_or_else(|error| broken("eventfd", &error)));
        let worker = Worker::new(
            Arc::clone(&service),
            Arc::clone(&shared),
            Arc::clone(&mailbox),
            plan.workers,
        )
        .unwrap_or_else(|error| broken("epoll_create", &error));
        mailboxes.push(mailbox);
        if let Err(error) = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || worker.run())
        {
            broken("cannot start a thread", &error);
        }
    }
    watchdog::start(shared.patience, Arc::clone(&pulse), mailboxes.clone());
    if let Some(period) = plan.heartbeat {
        watchdog::tell(
            period,
            Arc::clone(&shared),
            Arc::clone(&pulse),
            mailboxes.clone(),
        );
    }

    Loop {
        idle: IdleTimer::new(plan.max_idle, Instant::now()),
        service,
        shared,
        plan,
        poller,
        listeners,
        mailboxes,
        pending: None,
        census: Census::default(),
        lowest: lowest_client(descriptors),
        leaving: false,
        pulse,
    }
    .run()
}

impl<S: Service> Loop<S> {
    fn run(mut self) -> ! {
        let mut events = Events::new(100);
        loop {
            let mut now = Instant::now();
            self.pulse.begin(now);
            self.see_to_the_end(now);
            let hook = self.service.before_wait(now);
            now = Instant::now();
            let until = hook
                .into_iter()
                .chain(self.idle.due)
                .chain(
                    self.listeners
                        .iter()
                        .filter_map(|listener| listener.rests_until),
                )
                .min();
            self.pulse.rest();
            let limit = until.map(|until| until.saturating_duration_since(now));
            if let Err(error) = self.poller.wait(&mut events, limit) {
                logging::fatal(format_args!("epoll_wait: {}", error_text(&error)));
            }
            now = Instant::now();
            self.pulse.begin(now);
            if self.idle.due.is_some_and(|due| due <= now) && !self.leaving {
                log::debug!("idle timeout -- exiting");
                self.end();
            }
            if self.shared.room.swap(false, Ordering::SeqCst) {
                self.end_rests(None);
            }
            self.end_rests(Some(now));
            // What is readable at once has been so in an order that nobody knows; whoever has come is taken in.
            for ready in events.ready() {
                match ready.token {
                    BELL => self.shared.bell.silence(),
                    STATUS => {}
                    token => self.accept(usize::try_from(token).unwrap_or(usize::MAX), now),
                }
            }
            if events.ready().iter().any(|ready| ready.token == STATUS) {
                log::debug!("master disconnect -- exiting");
                self.shared.leave.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Ends the process if this is the time, or begins to.
    fn see_to_the_end(&mut self, now: Instant) {
        if self.shared.leave.load(Ordering::SeqCst) && !self.leaving {
            self.leaving = true;
            self.close_listeners();
            if let Some(status) = self.shared.status.get() {
                let _ = self.poller.remove(status.descriptor());
            }
            for mailbox in &self.mailboxes {
                mailbox.post(Message::Leave);
            }
        }
        if self.leaving {
            if self
                .mailboxes
                .iter()
                .all(|mailbox| mailbox.finished.load(Ordering::SeqCst))
            {
                self.end();
            }
            return;
        }
        let draining = self.shared.drain.load(Ordering::SeqCst);
        if draining {
            self.close_listeners();
        }
        // A worker counts the use before it counts the client as gone.
        if self.shared.clients.load(Ordering::SeqCst) == 0 {
            let used = self.shared.used.load(Ordering::SeqCst);
            if draining || (self.plan.max_use > 0 && used >= self.plan.max_use) {
                self.end();
            }
            self.idle.start(used, now);
        }
    }

    fn end(&mut self) -> ! {
        // The hook may take its time, or leave a copy of the process; neither answers clients any more.
        self.close_listeners();
        self.service.before_exit();
        for trace in self.shared.traces.get().into_iter().flatten() {
            trace.remove();
        }
        exit(0)
    }

    fn close_listeners(&mut self) {
        self.pending = None;
        // Other processes have the same sockets, so closing ours does not take them out of the set.
        for listener in self.listeners.drain(..) {
            if listener.rests_until.is_none() {
                let _ = self.poller.remove(&listener.socket);
            }
        }
    }

    /// Looks at resting sockets again: at those whose time is over, or without a time at all.
    fn end_rests(&mut self, due: Option<Instant>) {
        let over = |until: Instant| due.is_none_or(|now| until <= now);
        if !self
            .listeners
            .iter()
            .any(|listener| listener.rests_until.is_some_and(over))
        {
            return;
        }
        let now = due.unwrap_or_else(Instant::now);
        if let Some(newcomer) = self.pending.take() {
            self.place(newcomer, now);
            if self.pending.is_some() {
                return;
            }
        }
        for (token, listener) in (0..).zip(&mut self.listeners) {
            if listener.rests_until.is_some_and(over) {
                listener.rests_until = None;
                if self
                    .poller
                    .add(&listener.socket, token, Interest::Read)
                    .is_err()
                {
                    listener.rests_until = Some(now + REST);
                }
            }
        }
    }

    fn accept(&mut self, index: usize, now: Instant) {
        let Some(listener) = self
            .listeners
            .get(index)
            .filter(|listener| listener.rests_until.is_none())
        else {
            return;
        };
        let clients = self.shared.clients.load(Ordering::SeqCst);
        let limit = self.shared.limits.clients;
        if limit > 0 && clients >= limit {
            // The new one waits in the queue of the socket until somebody has gone.
            self.shared.complaints.clients.say(
                now,
                format_args!(
                    "client limit reached: {clients} clients, the one that is idle for longest makes room"
                ),
            );
            self.make_room(now);
            return;
        }
        if clients == 0 {
            self.idle.stop(self.shared.used.load(Ordering::SeqCst), now);
        }
        self.service.before_accept();
        let transport = listener.transport;
        match socket::accept(&listener.socket) {
            Ok(socket) => {
                if let Ok(counted) = self.count(&socket, transport, now) {
                    let newcomer = Newcomer {
                        socket,
                        transport,
                        counted,
                    };
                    self.place(newcomer, now);
                }
            }
            Err(error) => self.accept_failed(&error, now),
        }
    }

    /// Counts a client among those of its user or address; an error when there are too many of them.
    fn count(
        &mut self,
        client: &OwnedFd,
        transport: Transport,
        now: Instant,
    ) -> Result<Option<Counted>, ()> {
        if transport == Transport::Inet {
            return self.count_address(client, now);
        }
        let limit = self.shared.limits.user_clients;
        if limit == 0 {
            return Ok(None);
        }
        let Ok(peer) = socket::peer(client) else {
            return Ok(None);
        };
        let counted = self.census.count(Whose::User(peer.uid), limit);
        if counted.is_none() {
            self.shared.counters.accept_failed();
            self.shared.complaints.user_clients.say(
                now,
                format_args!(
                    "connection of process {} closed: user ID {} has {limit} connections already",
                    peer.pid, peer.uid
                ),
            );
        }
        counted.map(Some).ok_or(())
    }

    fn count_address(&mut self, client: &OwnedFd, now: Instant) -> Result<Option<Counted>, ()> {
        let limit = self.shared.limits.address_clients;
        if limit == 0 {
            return Ok(None);
        }
        let Ok(Some(peer)) = socket::peer_address(client) else {
            return Ok(None);
        };
        let counted = self.census.count(Whose::at(peer.ip()), limit);
        if counted.is_none() {
            self.shared.counters.accept_failed();
            self.shared.complaints.address_clients.say(
                now,
                format_args!(
                    "connection from {} closed: this address has {limit} connections already",
                    peer.ip()
                ),
            );
        }
        counted.map(Some).ok_or(())
    }

    /// Gives a client its number, and admits it.
    fn place(&mut self, newcomer: Newcomer, now: Instant) {
        let Newcomer {
            socket,
            transport,
            counted,
        } = newcomer;
        match try_move_above(socket, self.lowest) {
            Ok(socket) => self.admit(
                Newcomer {
                    socket,
                    transport,
                    counted,
                },
                now,
            ),
            Err((error, socket)) if Failure::of(&error) == Failure::Starved => {
                self.pending = Some(Newcomer {
                    socket,
                    transport,
                    counted,
                });
                self.accept_failed(&error, now);
            }
            Err((error, _)) => {
                logging::fatal(format_args!("fcntl F_DUPFD: {}", error_text(&error)))
            }
        }
    }

    fn admit(&mut self, newcomer: Newcomer, now: Instant) {
        let Newcomer {
            socket: client,
            transport,
            counted,
        } = newcomer;
        self.shared.clients.fetch_add(1, Ordering::SeqCst);
        self.shared.counters.accepted();
        let resume = self.plan.flow_delay.and_then(|delay| {
            let token = self
                .plan
                .flow_pipe
                .as_ref()
                .is_some_and(status::take_flow_token);
            (!token && !delay.is_zero()).then(|| now + delay)
        });
        let message = match transport {
            Transport::Pass => Message::Handover {
                socket: client,
                counted,
            },
            Transport::Inet => {
                let _ = socket::set_keepalive(&client);
                Message::Client {
                    socket: client,
                    resume,
                    counted,
                }
            }
            Transport::Unix => Message::Client {
                socket: client,
                resume,
                counted,
            },
        };
        let least = self
            .mailboxes
            .iter()
            .min_by_key(|mailbox| mailbox.clients.load(Ordering::Relaxed));
        if let Some(mailbox) = least {
            mailbox.clients.fetch_add(1, Ordering::Relaxed);
            mailbox.post(message);
        }
    }

    /// Has a client make room, and accepts nobody until then.
    fn make_room(&mut self, now: Instant) {
        // What waits in the queue of a socket keeps it readable: look away for a while.
        for listener in &mut self.listeners {
            if listener.rests_until.is_some() || self.poller.remove(&listener.socket).is_ok() {
                listener.rests_until = Some(now + REST);
            }
        }
        Eviction::begin(&self.mailboxes);
    }

    fn accept_failed(&mut self, error: &io::Error, now: Instant) {
        if self.pending.is_none() && self.shared.clients.load(Ordering::SeqCst) == 0 {
            self.idle
                .start(self.shared.used.load(Ordering::SeqCst), now);
        }
        match Failure::of(error) {
            Failure::Silent => {}
            Failure::Reported => {
                self.shared.counters.accept_failed();
                let errors = &self.shared.complaints.accept_errors;
                errors.say(now, "", &error_text(error));
            }
            Failure::Starved => {
                self.shared.counters.accept_failed();
                let errors = &self.shared.complaints.accept_errors;
                errors.say(now, "", &error_text(error));
                let clients = self.shared.clients.load(Ordering::SeqCst);
                self.shared.complaints.descriptors.say(
                    now,
                    format_args!(
                        "descriptor limit reached: {clients} clients, the one that is idle for longest makes room"
                    ),
                );
                self.make_room(now);
            }
        }
    }
}

/// Numbers below stay free for what else the process opens: at most half of all.
fn lowest_client(descriptors: u64) -> i32 {
    i32::try_from(descriptors / 2).map_or(LOWEST_CLIENT, |half| half.min(LOWEST_CLIENT))
}

/// What a failed accept means.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Another process was faster, or the client or the network had second thoughts.
    Silent,
    Reported,
    /// Descriptors or memory have run out.
    Starved,
}

impl Failure {
    /// By Postfix `sane_accept.c`.
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        // ENOMEM, ENFILE, EMFILE.
        const STARVED: [i32; 3] = [12, 23, 24];
        // EPROTO, ENOBUFS, EHOSTDOWN, for which there is no portable kind.
        const SILENT: [i32; 3] = [71, 105, 112];
        match error.raw_os_error() {
            Some(number) if STARVED.contains(&number) => return Self::Starved,
            Some(number) if SILENT.contains(&number) => return Self::Silent,
            _ => {}
        }
        match error.kind() {
            ErrorKind::WouldBlock
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::Interrupted
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NotConnected
            | ErrorKind::ConnectionAborted => Self::Silent,
            _ => Self::Reported,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failed_accepts_do_not_extend_the_life_of_the_process() {
        let now = Instant::now();
        let mut timer = IdleTimer::new(10 * SECOND, now);
        timer.stop(0, now + 4 * SECOND);
        assert_eq!(timer.due, None);
        timer.start(0, now + 4 * SECOND);
        assert_eq!(timer.due, Some(now + 10 * SECOND));
        timer.stop(0, now + 5 * SECOND);
        timer.start(1, now + 8 * SECOND);
        assert_eq!(timer.due, Some(now + 18 * SECOND));
    }

    #[test]
    fn clients_leave_half_of_few_descriptors_to_others() {
        assert_eq!(lowest_client(64), 32);
        assert_eq!(lowest_client(1024), LOWEST_CLIENT);
        assert_eq!(lowest_client(u64::MAX), LOWEST_CLIENT);
    }

    #[test]
    fn no_limit_no_timer() {
        let now = Instant::now();
        let mut timer = IdleTimer::new(Duration::ZERO, now);
        timer.start(1, now);
        assert_eq!(timer.due, None);
    }

    #[test]
    fn accept_failures_are_sorted() {
        let of = |number| Failure::of(&io::Error::from_raw_os_error(number));
        // EAGAIN ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR ENETDOWN ENETUNREACH ENOTCONN ENOBUFS
        // ECONNABORTED EPROTO
        for number in [11, 111, 104, 112, 113, 4, 100, 101, 107, 105, 103, 71] {
            assert_eq!(of(number), Failure::Silent, "{number}");
        }
        assert_eq!(of(24), Failure::Starved);
        // EINVAL, ENOTSOCK
        assert_eq!((of(22), of(88)), (Failure::Reported, Failure::Reported));
    }
}
