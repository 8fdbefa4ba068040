//! Load on a daemon: many clients, each waiting for its own replies only, driven by few threads.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use postkeep_testkit::attributes::show;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// What a client does again and again.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Reads as many bytes as these and compares.
    Expect(Vec<u8>),
    /// Sends its descriptor.
    Pass,
    /// Receives a descriptor, which becomes the one it sends next.
    Collect,
}

/// One operation, as a list of steps for the nth client.
pub(crate) type Script = Arc<dyn Fn(usize) -> Vec<Vec<Step>> + Send + Sync>;

struct Client {
    stream: UnixStream,
    session: OwnedFd,
    /// Variants of the operation, taken in turn.
    variants: Vec<Vec<Step>>,
    buffer: Vec<u8>,
    /// Operations done, and the step to take next in the one at hand.
    turn: usize,
    at: usize,
}

impl Client {
    fn connect(socket: &Path, greeting: &[u8], variants: Vec<Vec<Step>>) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (session, _) = UnixStream::pair()?;
        let mut client = Self {
            stream,
            session: session.into(),
            variants,
            buffer: Vec::new(),
            turn: 0,
            at: 0,
        };
        client.expect(greeting)?;
        Ok(client)
    }

    /// Takes the step that was waited for, when `ready`, and all that follow up to the next one that must wait.
    ///
    /// True at the end of an operation.
    fn advance(&mut self, mut ready: bool) -> Result<bool> {
        let variant = self.turn % self.variants.len();
        while self.at < self.variants[variant].len() {
            let step = &self.variants[variant][self.at];
            if matches!(step, Step::Expect(_) | Step::Collect) && !std::mem::take(&mut ready) {
                return Ok(false);
            }
            match step {
                Step::Send(bytes) => {
                    let sent = rustix::net::send(&self.stream, bytes, SendFlags::NOSIGNAL)?;
                    ensure!(sent == bytes.len(), "short write");
                }
                Step::Expect(bytes) => {
                    let bytes = bytes.clone();
                    self.expect(&bytes)?;
                }
                Step::Pass => self.pass()?,
                Step::Collect => self.collect()?,
            }
            self.at += 1;
        }
        self.at = 0;
        self.turn += 1;
        Ok(true)
    }

    fn expect(&mut self, wanted: &[u8]) -> Result<()> {
        self.buffer.resize(wanted.len(), 0);
        self.stream
            .read_exact(&mut self.buffer)
            .with_context(|| format!("instead of {}", show(wanted)))?;
        ensure!(
            self.buffer == wanted,
            "got {}, not {}",
            show(&self.buffer),
            show(wanted)
        );
        Ok(())
    }

    fn pass(&mut self) -> Result<()> {
        let descriptors = [self.session.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(b"\0")],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let mut byte = [1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && let Some(descriptor) = descriptors.next()
            {
                self.session = descriptor;
                return Ok(());
            }
        }
        Err(anyhow!("no descriptor came"))
    }
}

/// How much was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
}

impl Done {
    pub(crate) fn per_second(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2 to the 52nd")]
        let operations = self.operations as f64;
        operations / self.elapsed.as_secs_f64()
    }
}

/// A crowd of connected clients.
pub(crate) struct Crowd {
    groups: Vec<Vec<Client>>,
}

impl Crowd {
    /// Connects `clients` clients, spread over at most `threads` threads.
    pub(crate) fn connect(
        socket: &Path,
        greeting: &[u8],
        clients: usize,
        threads: usize,
        script: &Script,
    ) -> Result<Self> {
        let mut groups: Vec<Vec<Client>> = (0..threads.min(clients)).map(|_| Vec::new()).collect();
        let count = groups.len();
        for number in 0..clients {
            let client = Client::connect(socket, greeting, script(number))
                .with_context(|| format!("client {number}"))?;
            groups[number % count].push(client);
        }
        Ok(Self { groups })
    }

    /// Lets every client work for so long.
    pub(crate) fn run_for(&mut self, duration: Duration) -> Result<Done> {
        let over = AtomicBool::new(false);
        self.run(&|_| over.load(Ordering::Relaxed), Some((&over, duration)))
    }

    /// Lets every client do so many operations.
    pub(crate) fn run_times(&mut self, times: usize) -> Result<Done> {
        self.run(&|turn| turn >= times, None)
    }

    fn run(
        &mut self,
        enough: &(dyn Fn(usize) -> bool + Sync),
        timer: Option<(&AtomicBool, Duration)>,
    ) -> Result<Done> {
        let begin = Instant::now();
        let operations = thread::scope(|scope| {
            let workers: Vec<_> = self
                .groups
                .iter_mut()
                .map(|group| scope.spawn(|| work(group, enough)))
                .collect();
            if let Some((over, duration)) = timer {
                thread::sleep(duration);
                over.store(true, Ordering::Relaxed);
            }
            let mut operations = 0;
            for worker in workers {
                operations += worker.join().map_err(|_| anyhow!("a worker panicked"))??;
            }
            Ok::<u64, anyhow::Error>(operations)
        })?;
        Ok(Done {
            operations,
            elapsed: begin.elapsed(),
        })
    }
}

/// Lets the clients of a group work until `enough`, and each to the end of what it has begun.
fn work(group: &mut [Client], enough: &(dyn Fn(usize) -> bool + Sync)) -> Result<u64> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut busy = 0;
    for (index, client) in group.iter_mut().enumerate() {
        client.turn = 0;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&set, &client.stream, data, epoll::EventFlags::IN)?;
        if !enough(0) {
            client.advance(false)?;
            busy += 1;
        }
    }
    let mut operations = 0;
    let mut events = Vec::with_capacity(group.len());
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    while busy > 0 {
        events.clear();
        let count = epoll::wait(&set, spare_capacity(&mut events), Some(&limit))?;
        ensure!(count > 0, "no reply came for a long time");
        for event in &events {
            let client = &mut group[usize::try_from(event.data.u64())?];
            if client.advance(true)? {
                operations += 1;
                if enough(client.turn) {
                    busy -= 1;
                } else {
                    client.advance(false)?;
                }
            }
        }
    }
    Ok(operations)
}

/// A server for `tcp:` tables that answers each request so much later, each client by itself.
pub(crate) fn slow_tcp_table(delay: Duration) -> io::Result<u16> {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{Ipv4Addr, TcpListener};

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || -> io::Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                let mut writer = stream;
                let mut line = String::new();
                while reader.read_line(&mut line)? > 0 {
                    thread::sleep(delay);
                    writer.write_all(b"200 slow\n")?;
                    line.clear();
                }
                Ok(())
            });
        }
    });
    Ok(port)
}
