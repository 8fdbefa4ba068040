//! One raw conversation with a daemon, from a list of steps to everything that can be seen of it.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postkeep_testkit::StandIn;
use postkeep_testkit::attributes::show;
use postkeep_testkit::peer::{Received, session};

/// What a client does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes bytes, in one operation as far as the socket takes them.
    Send(Vec<u8>),
    /// Writes bytes with this many descriptors attached.
    SendWith(Vec<u8>, usize),
    /// Reads until these bytes are at the end of what has come, at most for half a second.
    Await(Vec<u8>),
    /// Does nothing for so many milliseconds.
    Pause(u64),
    /// Closes its sending side.
    Finish,
}

/// What can be seen of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The bytes that came after the announcement, up to the answer to the probe, unprintable ones spelled out.
    pub reply: String,
    /// How many descriptors came.
    pub descriptors: usize,
    /// A correct request at the end was answered.
    pub answered: bool,
    /// The daemon closed the connection.
    pub closed: bool,
    /// What was logged meanwhile.
    pub log: Vec<String>,
    /// The daemon is still running afterwards.
    pub alive: bool,
}

/// Plays `steps` on a new connection, then sends `probe`, whose answer ends with `answer`.
///
/// # Errors
/// When no connection can be made.
pub fn play(daemon: &mut StandIn, steps: &[Step], probe: &[u8], answer: &[u8]) -> Result<Outcome> {
    let logged = daemon.log().len();
    let mut peer = daemon.connect_and_greet().context("no announcement")?;
    let mut outcome = Outcome::default();
    let mut bytes = Vec::new();
    let mut finished = false;
    for step in steps {
        // A daemon that has closed shows at the next read.
        match step {
            Step::Send(bytes) => drop(peer.send(bytes)),
            Step::SendWith(bytes, count) => {
                let pairs = (0..*count)
                    .map(|_| session())
                    .collect::<std::io::Result<Vec<_>>>()?;
                let descriptors: Vec<_> = pairs.iter().map(|(one, _)| one.as_fd()).collect();
                drop(peer.send_with(bytes, &descriptors));
            }
            Step::Await(wanted) => {
                let received = peer.drain_until(wanted, Duration::from_millis(500));
                bytes.extend(received.bytes);
                outcome.descriptors += received.descriptors.len();
            }
            Step::Pause(milliseconds) => thread::sleep(Duration::from_millis(*milliseconds)),
            Step::Finish => {
                peer.finish_sending();
                finished = true;
            }
        }
    }
    let received = if finished {
        peer.drain_to_end()
    } else {
        let before = peer.drain(Duration::from_millis(40));
        bytes.extend(before.bytes);
        outcome.descriptors += before.descriptors.len();
        if before.closed {
            outcome.closed = true;
            Received::default()
        } else {
            drop(peer.send(probe));
            let received = peer.drain_until(answer, Duration::from_millis(400));
            outcome.answered = received.bytes.ends_with(answer);
            received
        }
    };
    bytes.extend(received.bytes);
    outcome.descriptors += received.descriptors.len();
    outcome.closed |= received.closed;
    outcome.reply = show(&bytes);
    drop(peer);
    thread::sleep(Duration::from_millis(5));
    outcome.alive = daemon.is_running();
    outcome.log = daemon.log_texts().split_off(logged);
    Ok(outcome)
}
