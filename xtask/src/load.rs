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
use hdrhistogram::Histogram;
use postkeep_testkit::attributes::show;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::statistics::as_float;

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
    /// A session whose far end is gone is not handed out.
    _far_end: UnixStream,
    /// Variants of the operation, taken in turn.
    variants: Vec<Vec<Step>>,
    buffer: Vec<u8>,
    /// Operations done, and the step to take next in the one at hand.
    turn: usize,
    at: usize,
    /// When the operation at hand began.
    begun: Instant,
}

impl Client {
    fn connect(socket: &Path, greeting: &[u8], variants: Vec<Vec<Step>>) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (session, far_end) = UnixStream::pair()?;
        let mut client = Self {
            stream,
            session: session.into(),
            _far_end: far_end,
            variants,
            buffer: Vec::new(),
            turn: 0,
            at: 0,
            begun: Instant::now(),
        };
        expect(&mut client.stream, &mut client.buffer, greeting)?;
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
                Step::Expect(bytes) => expect(&mut self.stream, &mut self.buffer, bytes)?,
                Step::Pass => self.pass()?,
                Step::Collect => self.collect()?,
            }
            self.at += 1;
        }
        self.at = 0;
        self.turn += 1;
        Ok(true)
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

/// Reads as many bytes as are wanted, and compares them.
fn expect(stream: &mut UnixStream, buffer: &mut Vec<u8>, wanted: &[u8]) -> Result<()> {
    buffer.resize(wanted.len(), 0);
    stream
        .read_exact(buffer)
        .with_context(|| format!("instead of {}", show(wanted)))?;
    ensure!(
        buffer == wanted,
        "got {}, not {}",
        show(buffer),
        show(wanted)
    );
    Ok(())
}

/// How much was done.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds from the first byte sent to the end of the operation, each operation.
    latencies: Latencies,
}

type Latencies = Histogram<u64>;

/// Two digits of each latency are kept, of those up to a minute.
fn latencies() -> Result<Latencies> {
    Ok(Histogram::new_with_bounds(100, 60_000_000_000, 2)?)
}

impl Done {
    pub(crate) fn per_second(&self) -> f64 {
        as_float(self.operations) / self.elapsed.as_secs_f64()
    }

    /// Microseconds that this part (0 to 1) of the operations did not exceed.
    pub(crate) fn latency(&self, part: f64) -> f64 {
        as_float(self.latencies.value_at_quantile(part)) / 1e3
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
        let (operations, latencies) = thread::scope(|scope| {
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
            let mut all = latencies()?;
            for worker in workers {
                let latencies = worker.join().map_err(|_| anyhow!("a worker panicked"))??;
                operations += latencies.len();
                all.add(latencies)?;
            }
            Ok::<_, anyhow::Error>((operations, all))
        })?;
        Ok(Done {
            operations,
            elapsed: begin.elapsed(),
            latencies,
        })
    }
}

/// Lets the clients of a group work until `enough`, and each to the end of what it has begun.
fn work(group: &mut [Client], enough: &(dyn Fn(usize) -> bool + Sync)) -> Result<Latencies> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut busy = 0;
    for (index, client) in group.iter_mut().enumerate() {
        client.turn = 0;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&set, &client.stream, data, epoll::EventFlags::IN)?;
        if !enough(0) {
            client.begun = Instant::now();
            client.advance(false)?;
            busy += 1;
        }
    }
    let mut latencies = latencies()?;
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
                let now = Instant::now();
                let nanoseconds = (now - client.begun).as_nanos();
                latencies.saturating_record(u64::try_from(nanoseconds)?);
                client.begun = now;
                if enough(client.turn) {
                    busy -= 1;
                } else {
                    client.advance(false)?;
                }
            }
        }
    }
    Ok(latencies)
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
