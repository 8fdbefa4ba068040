//! What clients of the socketmap server send.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use postkeep_proxymap::role::Role;
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_proxymap::socketmap::{Action, Conversation, Limits, Maps, Server};
use postkeep_proxymap::watch::{Observer, Stat};
use postkeep_remote::socketmap::netstring;
use postkeep_tables::{Context, Registry};
use postkeep_wire::duplex::{End, Inbox, Outbox};

/// A small limit, so that a fuzzer gets at it.
const REQUEST_SIZE: usize = 100;

struct NoFiles;

impl Observer for NoFiles {
    fn stat(&self, _: &Path) -> Option<Stat> {
        None
    }

    fn wall_clock(&self) -> i64 {
        0
    }
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let list = b"m=inline:{ {k = v} { a b = c } } s=static:x gone=hash:/nonexistent/table";
    let maps = Maps::parse(list).expect("a good list");
    let tables = Tables::new(
        Role::Read,
        &maps.tables(),
        Arc::new(Registry::new(Context::default())),
        Arc::new(NoFiles),
        Settings::default(),
    );
    let limits = Limits {
        request_size: REQUEST_SIZE,
        ..Limits::default()
    };
    Server::new(maps, Arc::new(tables), true, limits)
});

/// All that a client sends, in pieces of the size that the first byte says: the same replies whatever the pieces, each a
/// netstring with a known word, one for each request, and never more kept than one request and a piece.
pub fn socketmap_requests(data: &[u8]) {
    let [size, data @ ..] = data else { return };
    let (replies, requests, closed) = converse(data, usize::from(*size).max(1));
    assert_eq!(
        (replies.clone(), requests, closed),
        converse(data, data.len().max(1))
    );
    let (mut rest, mut count) = (&*replies, 0);
    while !rest.is_empty() {
        let found = netstring(rest, 0)
            .expect("a netstring")
            .expect("a whole netstring");
        let words: [&[u8]; 5] = [b"OK ", b"NOTFOUND ", b"TEMP ", b"TIMEOUT ", b"PERM "];
        assert!(words.iter().any(|word| found.payload.starts_with(word)));
        rest = &rest[found.consumed..];
        count += 1;
    }
    // The last reply may be for what was too large to be a request.
    assert!(count == requests || (closed && count == requests + 1));
}

/// The replies, the number of requests, and whether the connection was closed before its end.
fn converse(data: &[u8], size: usize) -> (Vec<u8>, u32, bool) {
    let mut conversation = Conversation::new();
    let (mut inbox, mut outbox) = (Inbox::<()>::default(), Outbox::<()>::default());
    let (mut replies, mut closed) = (Vec::new(), false);
    for piece in data.chunks(size).map(Some).chain([None]) {
        match piece {
            Some(bytes) => inbox.receive(bytes, []),
            None => inbox.finish(End::Closed),
        }
        loop {
            let action = conversation.step(
                Duration::ZERO,
                &mut inbox,
                &mut outbox,
                &SERVER,
                &mut |_, _| {},
            );
            let (bytes, _) = outbox.next_chunk();
            replies.extend_from_slice(bytes);
            outbox.sent(outbox.len());
            match action {
                Action::Run(job, _) => conversation
                    .finish(job.run(), &mut outbox, &SERVER)
                    .expect("a table that does not open ends no process"),
                Action::Flush => {}
                Action::Close => {
                    closed = piece.is_some();
                    break;
                }
                Action::Idle(_) | Action::Read(_) => break,
                Action::Wait => panic!("nothing is out"),
            }
        }
        if closed {
            break;
        }
        assert!(inbox.bytes().len() <= REQUEST_SIZE + 12);
    }
    (replies, conversation.take_requests(), closed)
}
