//! Bytes to and from a server, message by message, within limits.

use std::io;

use bytes::BytesMut;
use postgres_protocol::message::backend::{Header, Message};
use postkeep_remote::stream::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Why there is no message.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection has ended.
    Ended,
    /// What came is no message, or none that belongs there.
    Garbage,
    /// More came than a conversation may have.
    TooMuch,
}

/// Messages of one conversation.
pub(super) struct Channel {
    pub(super) stream: Stream,
    input: BytesMut,
    /// Bytes that the server may still send in this exchange.
    left: usize,
}

/// How much room is made for what may come, at a time: no more than what has come in the worst case is wasted on what a
/// server says will come.
const ROOM: usize = 8 << 10;

impl Channel {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            left: 0,
        }
    }

    /// A new exchange, in which the server may send so many bytes.
    pub(super) fn allow(&mut self, bytes: usize) {
        self.left = bytes;
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|_: io::Error| Trouble::Ended)
    }

    pub(super) async fn message(&mut self) -> Result<Message, Trouble> {
        loop {
            if let Some(header) = Header::parse(&self.input).map_err(|_| Trouble::Garbage)? {
                let length = usize::try_from(header.len()).map_err(|_| Trouble::Garbage)? + 1;
                if length > self.left {
                    return Err(Trouble::TooMuch);
                }
                if self.input.len() >= length {
                    self.left -= length;
                    let message = Message::parse(&mut self.input);
                    return message.ok().flatten().ok_or(Trouble::Garbage);
                }
            }
            self.input.reserve(ROOM);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return Err(Trouble::Ended),
                Ok(_) => {}
            }
        }
    }

    /// Between two exchanges: nothing has come that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.input.is_empty() && self.stream.is_quiet()
    }
}

/// A message of the protocol, without its letter: the length and what follows.
pub(super) fn untagged(body: &[u8], out: &mut Vec<u8>) {
    // A key and a template are far from 2 GiB; a longer message would be refused by the server.
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
}

/// A question in the simple protocol; its text ends at the first NUL, as for libpq.
pub(super) fn question(text: &[u8]) -> Vec<u8> {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    let mut out = Vec::with_capacity(end + 6);
    out.push(b'Q');
    untagged(&[&text[..end], b"\0"].concat(), &mut out);
    out
}
