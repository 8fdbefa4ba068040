//! What a daemon must bring: the conversation with one client, and the hooks of the process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use postkeep_wire::duplex::{Inbox, Outbox};

use crate::metrics::Page;
use crate::waker::Waker;

/// Attributes that a connection was handed over with by the `pass` transport: names and values, in order.
pub type Attributes = [(Vec<u8>, Vec<u8>)];

/// What a client gets to work with while it has its turn.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The time at which this turn began; does not move during the turn.
    pub now: Instant,
    /// What came in and was not consumed yet. [`Inbox::end`] says whether more can come.
    pub inbox: &'a mut Inbox<OwnedFd>,
    /// Where replies go; sent when the turn is over.
    pub outbox: &'a mut Outbox<OwnedFd>,
    /// How many requests this turn counts for against `postkeep_request_rate_limit`: at first one when something
    /// has come, else none. A service that looks at more in one turn says so here.
    pub requests: u32,
}

/// What came of [`Service::reload`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The table is new; the text says so.
    Done(String),
    /// There is no such table.
    Unknown,
    /// It is as before, and why.
    Failed(String),
}

/// How a client goes on after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Between two requests: wait for the next, however long that takes. When the process ends, such a client
    /// is simply dropped.
    Idle,
    /// As [`Next::Idle`], but when nothing has come by `until` there is a turn then, without news.
    Listen {
        /// When the turn is due.
        until: Instant,
    },
    /// In a request: more must come before `until`, or the turn after that finds [`End::TimedOut`] and is the
    /// last.
    ///
    /// [`End::TimedOut`]: postkeep_wire::duplex::End::TimedOut
    Read {
        /// When patience ends.
        until: Instant,
    },
    /// Waiting for something else than the client; the next turn comes after [`Waker::wake`]. Nothing is read
    /// from the client meanwhile. A wait of more than `daemon_timeout` ends the process (`watchdog timeout`).
    Wait,
    /// As [`Next::Wait`], but when there was no wake-up by `until` there is a turn then, without news.
    Await {
        /// When the turn is due.
        until: Instant,
    },
    /// Send what is in the outbox, then close the connection.
    Close,
}

/// A service: what is done with clients. One object, shared by all worker threads.
///
/// # The life of a client
///
/// [`connected`](Self::connected) once; then [`advance`](Self::advance) at once, without news, and whenever
/// bytes, the end, a time-out or a wake-up came, all on the same worker thread; then
/// [`disconnected`](Self::disconnected), on all paths but one: a panic inside drops the client.
///
/// `advance` must consume all complete requests of the inbox (or park after one of them: it is called again
/// after the wake-up), bound what it lets the inbox hold, never wait, and never sleep: while it runs, the
/// other clients of its worker do not. It may be called without any news.
///
/// When the peer has closed its side, or a time limit has passed, [`Inbox::end`] is set and `advance` is
/// called (not for a peer that closes between two requests, with nothing in the inbox): whatever it returns then, except [`Next::Wait`] and [`Next::Await`], means close after sending. A client that has
/// everything it needs can so still answer a peer that closed only its sending side.
///
/// A panic inside `connected` or `advance` is logged as `panic: ...` and closes that client only.
///
/// # References
/// Postfix `multi_server.c` (service callback, `MAIL_SERVER_POST_ACCEPT`, `MAIL_SERVER_PRE_DISCONN`,
/// `MAIL_SERVER_PRE_ACCEPT`, `MAIL_SERVER_LOOP`, `MAIL_SERVER_EXIT`).
pub trait Service: Send + Sync + 'static {
    /// What is remembered about one client.
    type Client: Send + 'static;

    /// Whether clients may send descriptors. Where they may not, what they send all the same is closed unseen.
    const TAKES_DESCRIPTORS: bool = true;

    /// How long a reply may wait until the client takes some of it; then the connection is closed.
    fn write_limit(&self) -> Duration;

    /// A client has come. Usually writes the protocol announcement into `outbox`.
    ///
    /// - `attributes`: what the `pass` transport said about the connection, else empty
    /// - `waker`: gives this client another turn, from any thread, also long after it has gone
    ///
    /// In one-shot mode (`-S`) what is written here is thrown away: such a client gets no announcement.
    fn connected(
        &self,
        attributes: &Attributes,
        outbox: &mut Outbox<OwnedFd>,
        waker: Waker,
    ) -> Self::Client;

    /// As [`connected`](Self::connected), which this calls, for services that want to know more about the connection.
    ///
    /// - `socket`: the client; not to be read from or written to
    fn connected_at(
        &self,
        socket: BorrowedFd<'_>,
        attributes: &Attributes,
        outbox: &mut Outbox<OwnedFd>,
        waker: Waker,
    ) -> Self::Client {
        let _ = socket;
        self.connected(attributes, outbox, waker)
    }

    /// A client has its turn.
    fn advance(&self, client: &mut Self::Client, turn: &mut Turn<'_>) -> Next;

    /// The connection is about to be closed.
    fn disconnected(&self, client: Self::Client) {
        drop(client);
    }

    /// The loop hook: called on the control thread before it waits. Returns when it wants to be called next at
    /// the latest; [`Control::nudge`](crate::Control::nudge) calls it sooner.
    fn before_wait(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        None
    }

    /// Called on the control thread before each accept. May end the process: the connection then stays in the
    /// queue of the socket, for the next process.
    fn before_accept(&self) {}

    /// Adds what the service has counted to a page of metrics. Called on a thread of its own, when somebody asks for the
    /// page; must not hold a lock for long.
    fn describe(&self, page: &mut Page) {
        let _ = page;
    }

    /// Opens a table anew, although its files may not have changed. Called on a thread of its own, one at a time, when the
    /// administrator asks for it; may take long.
    fn reload(&self, table: &[u8]) -> Reloaded {
        let _ = table;
        Reloaded::Unknown
    }

    /// The exit hook: called on the control thread before the process ends in an orderly way (idle, used up,
    /// left by master, drained, one-shot done), after the last client has been served; listening sockets are closed
    /// by then. Not called when the process dies of a fatal error, a panic or a signal.
    fn before_exit(&self) {}
}
