//! The two ends of one client connection, as plain data.
//!
//! A driver fills an [`Inbox`] with what it received and empties an [`Outbox`] into its socket; a
//! conversation (the connection cache, the lookup table server) only ever sees these two. No socket, clock
//! or thread is involved, so each conversation can be tested byte by byte.
//!
//! Descriptors travel beside the bytes. `H` is whatever stands for a descriptor: an `OwnedFd` in a daemon,
//! a number in a test.

use std::collections::VecDeque;

/// Why no more bytes will ever come from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed its side, or the connection broke.
    Closed,
    /// The time limit for this read has passed.
    TimedOut,
}

/// A handle that came in, with the part of the stream that it rode on.
#[derive(Debug)]
struct Arrival<H> {
    /// Stream offsets of the receive operation that carried it: from, to (exclusive).
    window: (u64, u64),
    handle: H,
}

/// Bytes and handles received from a peer and not consumed yet.
#[derive(Debug)]
pub struct Inbox<H> {
    bytes: Vec<u8>,
    start: usize,
    /// Stream offset of `bytes[start]`.
    offset: u64,
    arrivals: VecDeque<Arrival<H>>,
    end: Option<End>,
}

impl<H> Default for Inbox<H> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            offset: 0,
            arrivals: VecDeque::new(),
            end: None,
        }
    }
}

impl<H> Inbox<H> {
    /// The bytes that are here and not consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// No byte is waiting.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Set once the peer cannot send any more; bytes received before that are still in [`Self::bytes`].
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Says that nothing more will come.
    pub fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Adds the outcome of one receive operation: its bytes, and the handles that rode on them.
    pub fn receive(&mut self, bytes: &[u8], handles: impl IntoIterator<Item = H>) {
        self.reserve_in_place();
        let from = self.offset + (self.bytes.len() - self.start) as u64;
        self.bytes.extend_from_slice(bytes);
        let window = (from, from + bytes.len() as u64);
        self.arrivals
            .extend(handles.into_iter().map(|handle| Arrival { window, handle }));
    }

    /// Drops the first `count` bytes; handles that rode wholly on dropped bytes are returned, to be closed.
    ///
    /// # Panics
    /// When `count` is more than what is here.
    pub fn consume(&mut self, count: usize) -> Vec<H> {
        assert!(
            count <= self.bytes.len() - self.start,
            "consumed more than received"
        );
        self.start += count;
        self.offset += count as u64;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
        let mut stray = Vec::new();
        while self
            .arrivals
            .front()
            .is_some_and(|arrival| arrival.window.1 <= self.offset)
        {
            stray.extend(self.arrivals.pop_front().map(|arrival| arrival.handle));
        }
        stray
    }

    /// Takes every handle that may have ridden on the next byte, and consumes that byte.
    ///
    /// `None` when no byte is here. One message of the peer can carry several handles: all come back, the
    /// caller decides what that means.
    pub fn take_handles(&mut self) -> Option<Vec<H>> {
        if self.is_empty() {
            return None;
        }
        let mut taken = Vec::new();
        while self
            .arrivals
            .front()
            .is_some_and(|arrival| arrival.window.0 <= self.offset)
        {
            taken.extend(self.arrivals.pop_front().map(|arrival| arrival.handle));
        }
        taken.extend(self.consume(1));
        Some(taken)
    }

    /// Number of handles that wait.
    pub fn handles(&self) -> usize {
        self.arrivals.len()
    }

    fn reserve_in_place(&mut self) {
        if self.start > 0 && self.start * 2 >= self.bytes.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

/// Bytes and handles on their way to a peer.
///
/// The order in which they were put in is the order in which the peer gets them; a handle rides on a byte of
/// its own ([`Outbox::send_handle`]).
#[derive(Debug)]
pub struct Outbox<H> {
    bytes: Vec<u8>,
    start: usize,
    /// Position in `bytes` of the byte a handle rides on, in increasing order.
    handles: VecDeque<(usize, H)>,
}

impl<H> Default for Outbox<H> {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            handles: VecDeque::new(),
        }
    }
}

impl<H> Outbox<H> {
    /// Where a reply is written; only append.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Puts in the byte 00 with a handle on it (Postfix `src/util/unix_send_fd.c`).
    pub fn send_handle(&mut self, handle: H) {
        self.handles.push_back((self.bytes.len(), handle));
        self.bytes.push(0);
    }

    /// Nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Number of bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// What the next send operation carries: some bytes, and a handle that must ride on the first of them.
    pub fn next_chunk(&self) -> (&[u8], Option<&H>) {
        match self.handles.front() {
            Some((at, handle)) if *at == self.start => (&self.bytes[*at..=*at], Some(handle)),
            Some((at, _)) => (&self.bytes[self.start..*at], None),
            None => (&self.bytes[self.start..], None),
        }
    }

    /// Says that `count` bytes of the last [`Self::next_chunk`] were sent; the handle that rode on them comes
    /// back.
    ///
    /// # Panics
    /// When `count` is more than what waits.
    pub fn sent(&mut self, count: usize) -> Option<H> {
        assert!(count <= self.len(), "sent more than there was");
        let handle = match self.handles.front() {
            Some((at, _)) if *at == self.start && count > 0 => {
                self.handles.pop_front().map(|(_, handle)| handle)
            }
            _ => None,
        };
        self.start += count;
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handle_is_found_under_the_byte_it_rode_on() {
        let mut inbox = Inbox::default();
        inbox.receive(b"abc", []);
        inbox.receive(b"\0", [7]);
        assert!(inbox.consume(3).is_empty());
        assert_eq!(inbox.take_handles(), Some(vec![7]));
        assert_eq!(inbox.take_handles(), None);
    }

    #[test]
    fn stray_handles_come_back_when_their_bytes_go() {
        let mut inbox = Inbox::default();
        inbox.receive(b"ab", [1, 2]);
        assert!(inbox.consume(1).is_empty());
        assert_eq!(inbox.consume(1), vec![1, 2]);
    }

    #[test]
    fn outbox_sends_a_handle_on_a_byte_of_its_own() {
        let mut outbox = Outbox::default();
        outbox.buffer().extend_from_slice(b"xy");
        outbox.send_handle(5);
        outbox.buffer().extend_from_slice(b"z");
        assert_eq!(outbox.next_chunk(), (&b"xy"[..], None));
        assert_eq!(outbox.sent(1), None);
        assert_eq!(outbox.next_chunk(), (&b"y"[..], None));
        assert_eq!(outbox.sent(1), None);
        assert_eq!(outbox.next_chunk(), (&b"\0"[..], Some(&5)));
        assert_eq!(outbox.sent(1), Some(5));
        assert_eq!(outbox.next_chunk(), (&b"z"[..], None));
        assert_eq!(outbox.sent(1), None);
        assert!(outbox.is_empty());
    }
}
