//! A small daemon on the skeleton, with a line-oriented protocol; the tests drive it.
//!
//! | request | reply |
//! |---|---|
//! | `echo TEXT` | `TEXT` |
//! | `park MILLISECONDS` | `parked`, after waiting on the pool |
//! | `early COUNT` | that many `x`, sent from the pool as far as they can be |
//! | `big COUNT` | that many `x` |
//! | `take`, then a byte with a descriptor | `taken COUNT` |
//! | `give` | a byte with a descriptor on it |
//! | `read PATH`, `write PATH`, `run PATH` | `ok`, or why that cannot be done |
//! | `error`, `panic`, `stuck`, `drain` | what they say |
//!
//! `ECHO_REQUIRES` in the environment lists requirements by letter, in order: `s`olitary, `u`nlimited,
//! `p`rivileged, `f`low control, `n`umber (the parameter `echo_number`).

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postkeep_conf::{Dictionary, Error, IntParameter, Sink};
use postkeep_daemon::blocking::Pool;
use postkeep_daemon::{
    Attributes, Control, Next, Program, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_wire::End;
use postkeep_wire::duplex::Outbox;

const LIMIT: Duration = Duration::from_secs(1);

#[derive(Default)]
struct EchoProgram {
    number: i32,
}

impl EchoProgram {
    fn read_number(
        &mut self,
        dictionary: &mut Dictionary,
        sink: &mut dyn Sink,
    ) -> Result<(), Error> {
        let parameter = IntParameter {
            name: "echo_number",
            default: 0,
            min: 0,
            max: 9,
        };
        self.number = dictionary.int(&parameter, sink)?;
        Ok(())
    }
}

impl Program for EchoProgram {
    type Service = Echo;

    fn requirements(&self) -> Vec<Requirement<Self>> {
        let letters = std::env::var("ECHO_REQUIRES").unwrap_or_else(|_| "n".to_owned());
        letters
            .chars()
            .map(|letter| match letter {
                's' => Requirement::Solitary,
                'u' => Requirement::Unlimited,
                'p' => Requirement::Privileged,
                'f' => Requirement::InFlowDelay,
                _ => Requirement::Parameters(Self::read_number),
            })
            .collect()
    }

    fn after_jail(self, setup: &mut Setup) -> Echo {
        if self.number == 9 {
            setup.max_use = 0;
        }
        Echo {
            name: setup.stream_name(),
            arguments: setup.arguments.clone(),
            control: setup.control.clone(),
            pool: Pool::default(),
            tick: Mutex::new((self.number == 8).then(Instant::now)),
        }
    }
}

struct Echo {
    name: String,
    arguments: Vec<OsString>,
    control: Control,
    pool: Pool,
    tick: Mutex<Option<Instant>>,
}

struct Client {
    waker: Waker,
    parked: bool,
    /// A reply of so many bytes is on its way, of which so many were sent.
    early: Option<(usize, Arc<AtomicUsize>)>,
    taking: bool,
}

impl Echo {
    fn request(&self, client: &mut Client, line: &str, turn: &mut Turn<'_>) -> Option<Next> {
        if let Some(argument) = self.arguments.first() {
            logging::fatal(format_args!(
                "unexpected command-line argument: {}",
                argument.display()
            ));
        }
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let reply = turn.outbox.buffer();
        match verb {
            "echo" => reply.extend_from_slice(rest.as_bytes()),
            "park" => {
                let waker = client.waker.clone();
                let pause = Duration::from_millis(rest.parse().unwrap_or(1));
                client.parked = true;
                let job = move || {
                    std::thread::sleep(pause);
                    waker.wake();
                };
                return match self.pool.submit(job) {
                    Ok(()) => Some(Next::Wait),
                    Err(_) => Some(Next::Close),
                };
            }
            "early" => {
                let waker = client.waker.clone();
                let count = rest.parse().unwrap_or(0);
                let told = Arc::new(AtomicUsize::new(0));
                client.early = Some((count, Arc::clone(&told)));
                let job = move || {
                    told.store(waker.reply_early(&early(count)), Ordering::SeqCst);
                    waker.wake();
                };
                return match self.pool.submit(job) {
                    Ok(()) => Some(Next::Wait),
                    Err(_) => Some(Next::Close),
                };
            }
            "big" => reply.resize(reply.len() + rest.parse().unwrap_or(0), b'x'),
            "take" => {
                client.taking = true;
                return None;
            }
            "give" => match std::fs::File::open("/dev/null") {
                Ok(file) => turn.outbox.send_handle(OwnedFd::from(file)),
                Err(_) => return Some(Next::Close),
            },
            "read" => tell(reply, std::fs::read(rest)),
            "write" => tell(reply, std::fs::write(rest, "x")),
            "run" => tell(reply, std::process::Command::new(rest).status()),
            "error" => log::error!("{}: on purpose", self.name),
            "panic" => panic!("on purpose"),
            "stuck" => std::thread::sleep(Duration::from_mins(1)),
            "drain" => self.control.drain(),
            _ => {
                log::warn!("{}: bad request: {line}", self.name);
                return Some(Next::Close);
            }
        }
        turn.outbox.buffer().push(b'\n');
        None
    }
}

fn early(count: usize) -> Vec<u8> {
    let mut reply = vec![b'x'; count];
    reply.push(b'\n');
    reply
}

fn tell<T>(reply: &mut Vec<u8>, outcome: std::io::Result<T>) {
    let text = outcome.map_or_else(
        |error| postkeep_sys::error_text(&error),
        |_| "ok".to_owned(),
    );
    reply.extend_from_slice(text.as_bytes());
}

impl Service for Echo {
    type Client = Client;

    fn write_limit(&self) -> Duration {
        LIMIT
    }

    fn connected(
        &self,
        attributes: &Attributes,
        outbox: &mut Outbox<OwnedFd>,
        waker: Waker,
    ) -> Client {
        outbox.buffer().extend_from_slice(b"hello");
        for (name, value) in attributes {
            outbox.buffer().push(b' ');
            outbox.buffer().extend_from_slice(name);
            outbox.buffer().push(b'=');
            outbox.buffer().extend_from_slice(value);
        }
        outbox.buffer().push(b'\n');
        Client {
            waker,
            parked: false,
            early: None,
            taking: false,
        }
    }

    fn advance(&self, client: &mut Client, turn: &mut Turn<'_>) -> Next {
        let until = turn.now + LIMIT;
        if std::mem::take(&mut client.parked) {
            turn.outbox.buffer().extend_from_slice(b"parked\n");
        }
        if let Some((count, told)) = client.early.take() {
            turn.outbox.buffer().extend_from_slice(&early(count));
            turn.outbox.sent(told.load(Ordering::SeqCst));
        }
        let mut lines = 0;
        loop {
            if client.taking {
                let Some(handles) = turn.inbox.take_handles() else {
                    return Next::Read { until };
                };
                client.taking = false;
                let reply = format!("taken {}\n", handles.len());
                turn.outbox.buffer().extend_from_slice(reply.as_bytes());
            }
            let Some(end) = turn.inbox.bytes().iter().position(|&byte| byte == b'\n') else {
                break;
            };
            let line = String::from_utf8_lossy(&turn.inbox.bytes()[..end]).into_owned();
            turn.inbox.consume(end + 1);
            lines += 1;
            turn.requests = turn.requests.max(lines);
            if let Some(next) = self.request(client, &line, turn) {
                return next;
            }
        }
        if turn.inbox.is_empty() {
            return Next::Idle;
        }
        match turn.inbox.end() {
            Some(End::TimedOut) => log::warn!("timeout on {}", self.name),
            Some(End::Closed) => log::warn!("unexpected end-of-input from {}", self.name),
            None => {}
        }
        Next::Read { until }
    }

    fn before_wait(&self, now: Instant) -> Option<Instant> {
        let mut tick = self.tick.lock().ok()?;
        let due = (*tick)?;
        if due <= now {
            log::info!("tick");
            *tick = Some(now + Duration::from_millis(50));
        }
        *tick
    }

    fn before_exit(&self) {
        let statistics = self.control.statistics();
        log::info!("exit hook: {} clients", statistics.accepted);
    }
}

fn main() {
    let words: Vec<OsString> = std::env::args_os().collect();
    postkeep_daemon::main(&words[0], &words[1..], EchoProgram::default());
}
