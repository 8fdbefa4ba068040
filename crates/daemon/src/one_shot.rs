//! One client on standard input and output (`-S`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use postkeep_sys::readiness::{Interest, wait_for};
use postkeep_sys::socket;
use postkeep_wire::duplex::{End, Inbox, Outbox};

use crate::logging;
use crate::service::{Next, Service, Turn};
use crate::status::NOT_A_SOCKET;
use crate::waker::{Wake, Waker};

const READ_SIZE: usize = 64 * 1024;

/// Wakes the one client.
#[derive(Default)]
struct Doorbell {
    rung: Mutex<bool>,
    change: Condvar,
}

impl Wake for Doorbell {
    fn wake(&self, _: u64) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.change.notify_one();
    }
}

impl Doorbell {
    fn wait(&self, limit: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .change
            .wait_timeout_while(rung, limit, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *rung)
    }
}

/// Serves one request, however much of it comes, and ends the process with status 0.
///
/// - `read_limit`: how long the request may take to begin (`ipc_timeout`)
/// - `patience`: how long it may be parked (`daemon_timeout`)
pub(crate) fn serve<S: Service>(service: &S, read_limit: Duration, patience: Duration) -> ! {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    converse(
        service,
        &stdin.as_fd(),
        &stdout.as_fd(),
        read_limit,
        patience,
    );
    service.before_exit();
    exit(0)
}

fn converse<S: Service>(
    service: &S,
    input: &impl AsFd,
    output: &impl AsFd,
    read_limit: Duration,
    patience: Duration,
) {
    let doorbell = Arc::new(Doorbell::default());
    let mut inbox: Inbox<OwnedFd> = Inbox::default();
    let mut announcement = Outbox::default();
    let waker = Waker::new(Arc::clone(&doorbell) as Arc<dyn Wake>, 0, Weak::new());
    let mut client = service.connected(&[], &mut announcement, waker);
    drop(announcement);
    let mut outbox = Outbox::default();
    read(input, &mut inbox, Instant::now() + read_limit);
    loop {
        let mut turn = Turn {
            now: Instant::now(),
            inbox: &mut inbox,
            outbox: &mut outbox,
            requests: 0,
        };
        let next = service.advance(&mut client, &mut turn);
        if !flush(output, &mut outbox, service.write_limit()) {
            break;
        }
        match next {
            Next::Wait => {
                if !doorbell.wait(patience) {
                    logging::fatal(format_args!("watchdog timeout"));
                }
            }
            Next::Await { until } => {
                doorbell.wait(until.saturating_duration_since(Instant::now()));
            }
            Next::Idle | Next::Close => break,
            _ if inbox.end().is_some() => break,
            Next::Read { until } => read(input, &mut inbox, until),
            // Whoever speaks first does not matter here: the request has been read, or has ended.
            Next::Listen { until } => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
        }
    }
    service.disconnected(client);
}

/// Reads once; the end of it all is noted in the inbox.
fn read(input: &impl AsFd, inbox: &mut Inbox<OwnedFd>, until: Instant) {
    let mut buffer = vec![0; READ_SIZE];
    let mut arrived = Vec::new();
    let limit = until.saturating_duration_since(Instant::now());
    if !matches!(wait_for(input, Interest::Read, Some(limit)), Ok(true)) {
        inbox.finish(End::TimedOut);
        return;
    }
    loop {
        let received = match socket::receive(input, &mut buffer, &mut arrived) {
            Err(error) if error.raw_os_error() == Some(NOT_A_SOCKET) => {
                socket::read(input, &mut buffer)
            }
            other => other,
        };
        match received {
            Ok(0) => inbox.finish(End::Closed),
            Ok(count) => inbox.receive(&buffer[..count], arrived),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => inbox.finish(End::Closed),
        }
        return;
    }
}

/// Sends everything; false when the output is broken, or nobody takes it.
fn flush(output: &impl AsFd, outbox: &mut Outbox<OwnedFd>, limit: Duration) -> bool {
    while !outbox.is_empty() {
        let sent = match outbox.next_chunk() {
            (bytes, Some(handle)) => {
                socket::send_descriptor(output, bytes[0], handle.as_fd()).map(|()| 1)
            }
            (bytes, None) => match socket::send(output, bytes) {
                Err(error) if error.raw_os_error() == Some(NOT_A_SOCKET) => {
                    socket::write(output, bytes)
                }
                other => other,
            },
        };
        match sent {
            Ok(count) => drop(outbox.sent(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !matches!(wait_for(output, Interest::Write, Some(limit)), Ok(true)) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Answers a line with the line, on its second turn for it.
    struct Parrot;

    impl Service for Parrot {
        type Client = (Waker, bool);

        fn write_limit(&self) -> Duration {
            Duration::from_secs(1)
        }

        fn connected(
            &self,
            _: &crate::Attributes,
            outbox: &mut Outbox<OwnedFd>,
            waker: Waker,
        ) -> Self::Client {
            outbox.buffer().extend_from_slice(b"hello\n");
            (waker, false)
        }

        fn advance(&self, client: &mut Self::Client, turn: &mut Turn<'_>) -> Next {
            let Some(end) = turn.inbox.bytes().iter().position(|&byte| byte == b'\n') else {
                if turn.inbox.end().is_some() {
                    turn.outbox.buffer().extend_from_slice(b"end\n");
                }
                return Next::Read {
                    until: turn.now + Duration::from_secs(1),
                };
            };
            if !std::mem::replace(&mut client.1, true) {
                client.0.wake();
                return Next::Wait;
            }
            let line = turn.inbox.bytes()[..=end].to_vec();
            turn.inbox.consume(end + 1);
            turn.outbox.buffer().extend_from_slice(&line);
            Next::Idle
        }
    }

    fn run(input: &[&[u8]]) -> String {
        let (mut theirs, mine) = UnixStream::pair().unwrap();
        for part in input {
            theirs.write_all(part).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let second = Duration::from_secs(1);
        converse(&Parrot, &mine, &mine, second, second);
        drop(mine);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn one_request_without_a_greeting() {
        assert_eq!(run(&[b"one\n", b"two\n"]), "one\n");
    }

    #[test]
    fn empty_input_has_its_turn() {
        assert_eq!(run(&[]), "end\n");
    }

    #[test]
    fn input_may_be_a_pipe() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"one\n").unwrap();
        let (mut theirs, mine) = UnixStream::pair().unwrap();
        let second = Duration::from_secs(1);
        converse(&Parrot, &reader, &mine, second, second);
        drop(mine);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "one\n");
    }
}
