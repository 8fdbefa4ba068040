//! The bound: what a daemon could reach that does nothing but move the bytes.
//!
//! One thread, one level-triggered epoll set taken in batches. After the announcement each client goes through
//! the same fixed turns again and again: so many bytes in, these bytes out, a descriptor in, a descriptor out. It
//! scans nothing, looks nothing up, keeps no time; a request is as long as the turns say. It is started as the
//! daemons are, with its listening socket as descriptor 6 and master's status channel as 5.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_sys::descriptor::Inherited;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags,
};

use crate::load::Step;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What every client is sent first, in hexadecimal digits
    #[arg(long)]
    greeting: String,
    /// What happens then, over and over: `r42` reads 42 bytes, `w00ff` writes those, `t` takes a descriptor, `g` gives one
    #[arg(long)]
    turns: String,
    /// What master would give a daemon of this transport; not heeded
    #[arg(short)]
    t: Option<String>,
}

/// One turn of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    Read(usize),
    Write(Vec<u8>),
    /// One byte and a descriptor from the client.
    Take,
    /// One byte and the descriptor that was taken first.
    Give,
}

/// The server's side of what a client does, as [`Options::turns`] wants it.
pub(crate) fn turns(steps: &[Step]) -> String {
    let turns: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::Send(bytes) => format!("r{}", bytes.len()),
            Step::Expect(bytes) => format!("w{}", hexadecimal(bytes)),
            Step::Pass => "t".to_owned(),
            Step::Collect => "g".to_owned(),
        })
        .collect();
    turns.join(",")
}

/// The bytes as [`Options`] want them.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    ensure!(digits.len().is_multiple_of(2), "half a byte");
    (0..digits.len() / 2)
        .map(|at| {
            let pair = digits.get(at * 2..at * 2 + 2).context("no digits")?;
            Ok(u8::from_str_radix(pair, 16)?)
        })
        .collect()
}

fn parse(text: &str) -> Result<Vec<Turn>> {
    text.split(',')
        .map(|turn| match turn.split_at_checked(1) {
            Some(("r", count)) => Ok(Turn::Read(count.parse()?)),
            Some(("w", digits)) => Ok(Turn::Write(bytes(digits)?)),
            Some(("t", "")) => Ok(Turn::Take),
            Some(("g", "")) => Ok(Turn::Give),
            _ => bail!("strange turn: {turn}"),
        })
        .collect()
}

struct Client {
    stream: OwnedFd,
    /// The turn to take next.
    at: usize,
    /// Bytes that came and belong to turns that were not taken yet.
    pending: usize,
    descriptors: VecDeque<OwnedFd>,
}

/// More than any request here; what does not fit is read next time.
const BUFFER: usize = 4096;
const BATCH: usize = 256;

impl Client {
    /// Reads once and takes the turns that can be taken. False when the client is gone.
    fn serve(&mut self, turns: &[Turn], passes: bool, buffer: &mut [u8]) -> Result<bool> {
        let count = if passes {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let message = rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(buffer)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            message.bytes
        } else {
            rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::empty())?.0
        };
        if count == 0 {
            return Ok(false);
        }
        self.pending += count;
        loop {
            let needed = match &turns[self.at] {
                Turn::Read(count) => *count,
                Turn::Take => 1,
                Turn::Write(_) | Turn::Give => 0,
            };
            if needed > self.pending {
                return Ok(true);
            }
            self.pending -= needed;
            match &turns[self.at] {
                Turn::Read(_) => {}
                Turn::Take => ensure!(!self.descriptors.is_empty(), "no descriptor came"),
                Turn::Write(bytes) => {
                    let sent = rustix::net::send(&self.stream, bytes, SendFlags::NOSIGNAL)?;
                    ensure!(sent == bytes.len(), "short write");
                }
                Turn::Give => {
                    let descriptor = self.descriptors.pop_front().context("none to give")?;
                    give(&self.stream, &descriptor)?;
                }
            }
            self.at = (self.at + 1) % turns.len();
        }
    }
}

fn give(stream: &OwnedFd, descriptor: &OwnedFd) -> Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(
        stream,
        &[IoSlice::new(b"\0")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Tells master that the process serves: taken, then available, as our daemons do once.
fn announce(status: &OwnedFd) -> Result<()> {
    let generation = std::env::var("GENERATION").unwrap_or_default();
    let generation = u32::from_str_radix(&generation, 8).unwrap_or(0);
    let mut pair = Vec::new();
    for free in [0_u32, 1] {
        for field in [std::process::id(), generation, free] {
            pair.extend_from_slice(&field.to_ne_bytes());
        }
    }
    rustix::io::write(status, &pair)?;
    Ok(())
}

/// Serves until master hangs up.
pub(crate) fn run(options: &Options, mut inherited: Inherited) -> Result<()> {
    let greeting = bytes(&options.greeting)?;
    let turns = parse(&options.turns)?;
    ensure!(matches!(turns[0], Turn::Read(_)), "a client speaks first");
    let passes = turns.contains(&Turn::Take);
    let status = inherited.take(5).context("no status channel")?;
    let listener = inherited.take(6).context("no listening socket")?;

    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |descriptor: &OwnedFd| -> Result<u64> {
        let number = u64::try_from(descriptor.as_raw_fd())?;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&set, descriptor, data, epoll::EventFlags::IN)?;
        Ok(number)
    };
    let hangup = watch(&status)?;
    let arrival = watch(&listener)?;
    announce(&status)?;

    // By the number of the descriptor.
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::with_capacity(BATCH);
    loop {
        events.clear();
        rustix::io::retry_on_intr(|| epoll::wait(&set, spare_capacity(&mut events), None))?;
        for event in &events {
            let number = event.data.u64();
            if number == hangup {
                return Ok(());
            }
            if number == arrival {
                let Ok(stream) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) else {
                    continue;
                };
                rustix::net::send(&stream, &greeting, SendFlags::NOSIGNAL)?;
                let number = watch(&stream)?;
                let client = Client {
                    stream,
                    at: 0,
                    pending: 0,
                    descriptors: VecDeque::new(),
                };
                let index = usize::try_from(number)?;
                if clients.len() <= index {
                    clients.resize_with(index + 1, || None);
                }
                clients[index] = Some(client);
                continue;
            }
            let client = &mut clients[usize::try_from(number)?];
            if let Some(present) = client
                && !present.serve(&turns, passes, &mut buffer).unwrap_or(false)
            {
                *client = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_mirror_the_client_s_steps() {
        let steps = [
            Step::Send(vec![0; 7]),
            Step::Expect(vec![0, 255]),
            Step::Pass,
            Step::Collect,
        ];
        let text = turns(&steps);
        assert_eq!(text, "r7,w00ff,t,g");
        assert_eq!(
            parse(&text).expect("well formed"),
            [
                Turn::Read(7),
                Turn::Write(vec![0, 255]),
                Turn::Take,
                Turn::Give
            ]
        );
        for bad in ["", "r", "rx", "w0", "wgg", "t1", "q"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
