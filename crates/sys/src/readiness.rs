//! Waiting for many descriptors at once: epoll(7), level-triggered, and a bell (eventfd(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something can be read, or the peer is gone.
    Read,
    /// Something can be written, or the peer is gone.
    Write,
}

/// One descriptor that is ready, by the token it was registered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token given to [`Poller::add`].
    pub token: u64,
    /// Reading will not wait: there are bytes, the end, or an error.
    pub readable: bool,
    /// Writing will not wait: there is room, or an error.
    pub writable: bool,
    /// Both directions are closed, or broken; reported whatever was asked for.
    pub hung_up: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

/// Room for the answer of one [`Poller::wait`].
#[derive(Debug)]
pub struct Events {
    buffer: Vec<MaybeUninit<epoll::Event>>,
    ready: Vec<Ready>,
}

impl Events {
    /// Room for `capacity` descriptors per wait, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            buffer: vec![MaybeUninit::uninit(); capacity.max(1)],
            ready: Vec::with_capacity(capacity.max(1)),
        }
    }

    /// What the last wait found.
    pub fn ready(&self) -> &[Ready] {
        &self.ready
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    match interest {
        Interest::Read => epoll::EventFlags::IN,
        Interest::Write => epoll::EventFlags::OUT,
    }
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// `epoll_create1(2)` failed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a descriptor, under a token of the caller's choice.
    ///
    /// # Errors
    /// `epoll_ctl(2)` failed, as it does for plain files.
    pub fn add(&self, descriptor: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            epoll::EventData::new_u64(token),
            flags(interest),
        )?)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// `epoll_ctl(2)` failed.
    pub fn modify(&self, descriptor: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            descriptor,
            epoll::EventData::new_u64(token),
            flags(interest),
        )?)
    }

    /// Takes a descriptor out. Closing its last copy does the same.
    ///
    /// # Errors
    /// `epoll_ctl(2)` failed.
    pub fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Waits until a descriptor is ready or `limit` has passed (`None`: no limit); a signal counts as nothing
    /// ready. Never returns before the limit, and at most about a millisecond after it.
    ///
    /// # Errors
    /// `epoll_wait(2)` failed.
    pub fn wait(&self, events: &mut Events, limit: Option<Duration>) -> io::Result<()> {
        events.ready.clear();
        // Whole milliseconds, rounded up: old kernels cannot do better, and a wait that ends too early spins.
        let limit = limit.map(|limit| {
            let milliseconds = limit.as_nanos().div_ceil(1_000_000).min(1_000_000_000);
            let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
            Timespec {
                tv_sec: milliseconds / 1000,
                tv_nsec: milliseconds % 1000 * 1_000_000,
            }
        });
        match epoll::wait(&self.epoll, events.buffer.as_mut_slice(), limit.as_ref()) {
            Ok((found, _)) => {
                events.ready.extend(found.iter().map(|event| {
                    let flags = event.flags;
                    let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                    Ready {
                        token: event.data.u64(),
                        readable: broken || flags.contains(epoll::EventFlags::IN),
                        writable: broken || flags.contains(epoll::EventFlags::OUT),
                        hung_up: broken,
                    }
                }));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A descriptor that becomes readable when somebody rings it.
#[derive(Debug)]
pub struct Bell {
    eventfd: OwnedFd,
}

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// eventfd(2) failed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Makes it readable. Never waits; a bell that rings already stays so.
    pub fn ring(&self) {
        // The only failure is a counter that is full, and then it is readable.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }

    /// Silences it.
    pub fn silence(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.eventfd, &mut count);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// Waits for one descriptor; false when `limit` passed first.
///
/// # Errors
/// poll(2) failed.
pub fn wait_for(
    descriptor: &impl AsFd,
    interest: Interest,
    limit: Option<Duration>,
) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let flags = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
    };
    let until = limit.map(|limit| std::time::Instant::now() + limit);
    loop {
        let limit = until.map(|until| {
            let left = until.saturating_duration_since(std::time::Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut [PollFd::new(descriptor, flags)], limit.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rings_until_silenced() {
        let poller = Poller::new().unwrap();
        let bell = Bell::new().unwrap();
        let mut events = Events::new(4);
        poller.add(&bell, 7, Interest::Read).unwrap();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.ready().is_empty());
        bell.ring();
        bell.ring();
        poller.wait(&mut events, None).unwrap();
        assert_eq!(
            (events.ready()[0].token, events.ready()[0].readable),
            (7, true)
        );
        bell.silence();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.ready().is_empty());
        poller.remove(&bell).unwrap();
    }

    #[test]
    fn waiting_for_one_ends_at_the_limit() {
        let bell = Bell::new().unwrap();
        assert!(!wait_for(&bell, Interest::Read, Some(Duration::from_millis(1))).unwrap());
        bell.ring();
        assert!(wait_for(&bell, Interest::Read, None).unwrap());
    }
}
