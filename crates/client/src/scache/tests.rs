use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use postkeep_sys::socket;
use postkeep_wire::duplex::{End, Inbox, Outbox};

use super::*;
use crate::scripted::Step::{AwaitEnd, Hear, Say};
use crate::scripted::{Server, logged};

const GREETING: &[u8] = b"protocol\0connection_cache_protocol\0\0";
const FIND: &[u8] = b"request\0find_endp\0label\0E1\0\0";
const MISS: &[u8] = b"status\x002\0property\0\0\0";
const PROMPT: &[u8] = b"dummy\0\0\0";

fn quick(path: &Path) -> Settings {
    Settings {
        limit: Duration::from_millis(100),
        delay: Duration::from_millis(10),
        ..Settings::new(Place::Path(path.to_owned()))
    }
}

/// The real conversation behind a socket, for one client.
fn serve(listener: UnixListener) {
    use postkeep_scache::{Cache, Conversation, Next};
    let settings = postkeep_scache::Settings::default();
    let cache = Mutex::new(Cache::default());
    let (stream, _) = listener.accept().unwrap();
    drop(listener);
    let (mut inbox, mut outbox) = (Inbox::default(), Outbox::<OwnedFd>::default());
    let mut conversation = Conversation::new(&settings);
    let start = Instant::now();
    outbox.buffer().extend_from_slice(GREETING);
    loop {
        while !outbox.is_empty() {
            let sent = match outbox.next_chunk() {
                (_, Some(handle)) => {
                    socket::send_descriptor(&stream, 0, handle.as_fd()).unwrap();
                    1
                }
                (bytes, None) => socket::send(&stream, bytes).unwrap(),
            };
            if let Some(handle) = outbox.sent(sent) {
                conversation.keep(handle);
            }
        }
        let (mut buffer, mut descriptors) = ([0; 100], Vec::new());
        match socket::receive_waiting(&stream, &mut buffer, &mut descriptors).unwrap() {
            0 => inbox.finish(End::Closed),
            count => inbox.receive(&buffer[..count], descriptors),
        }
        let next = conversation.step(
            start.elapsed(),
            &settings,
            &mut inbox,
            &mut outbox,
            &cache,
            &mut (),
        );
        if next == Next::Close {
            return;
        }
    }
}

#[test]
fn a_session_goes_into_the_cache_and_comes_out_again() {
    let server = Server::run(serve);
    let mut client = Client::new(quick(&server.path()));
    let (mut near, far) = UnixStream::pair().unwrap();
    assert!(client.find_destination(b"D1").unwrap().is_none());
    assert_eq!(
        client.save_destination(9, b"D1", b"DP1", b"E1").unwrap(),
        Status::Ok
    );
    assert_eq!(
        client.save_endpoint(9, b"E1", b"P1", far.into()).unwrap(),
        Status::Ok
    );
    let session = client.find_destination(b"D1").unwrap().unwrap();
    assert_eq!(
        (
            &session.destination_property[..],
            &session.endpoint_property[..]
        ),
        (&b"DP1"[..], &b"P1"[..])
    );
    UnixStream::from(session.descriptor)
        .write_all(b"alive")
        .unwrap();
    // Nobody else has the other end any more.
    let mut heard = String::new();
    near.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "alive");
    assert!(client.find_endpoint(b"E1").unwrap().is_none());
    assert_eq!(
        client.save_destination(0, b"D1", b"DP1", b"E1").unwrap(),
        Status::Bad
    );
    drop(client);
    server.finish();
}

#[test]
fn a_refused_time_to_live_does_not_wait_for_a_prompt() {
    let server = Server::run(serve);
    let connection = Connection::open(&quick(&server.path())).unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let (connection, status) = connection
        .save_endpoint(-1, b"E1", b"P1", near.as_fd())
        .unwrap();
    assert_eq!(status, Status::Bad);
    let (connection, found) = connection.find_endpoint(b"E1").unwrap();
    assert!(found.is_none());
    drop(connection);
    server.finish();
}

#[test]
fn two_failures_and_the_cache_is_given_up() {
    let server = Server::start(vec![vec![AwaitEnd], vec![AwaitEnd]]);
    let shown = server.path().display().to_string();
    let log = logged(|| {
        let mut client = Client::new(quick(&server.path()));
        assert!(matches!(
            client.find_endpoint(b"E1"),
            Err(Error::Exchange { .. })
        ));
        assert!(matches!(client.find_endpoint(b"E1"), Err(Error::Disabled)));
    });
    server.finish();
    let timeout = format!("problem talking to service {shown}: Connection timed out");
    assert_eq!(log, [&timeout, &timeout, "disabling connection caching"]);
}

#[test]
fn nobody_listens() {
    let log = logged(|| {
        let mut client = Client::new(quick(Path::new("/no/such/socket")));
        let error = client.save_destination(1, b"", b"", b"").unwrap_err();
        assert!(matches!(error, Error::Connect { .. }));
    });
    let connect = "connect to /no/such/socket: No such file or directory";
    assert_eq!(log, [connect, connect, "disabling connection caching"]);
}

#[test]
fn another_protocol_is_no_connection() {
    let foreign = || vec![Say(b"protocol\0foo_protocol\0\0"), AwaitEnd];
    let server = Server::start(vec![foreign(), foreign()]);
    let shown = server.path().display().to_string();
    let log = logged(|| {
        let mut client = Client::new(quick(&server.path()));
        assert!(matches!(
            client.find_endpoint(b"E1"),
            Err(Error::Protocol { .. })
        ));
    });
    server.finish();
    let unexpected = format!(
        "unexpected protocol foo_protocol from {shown} (expected: connection_cache_protocol)"
    );
    assert_eq!(
        log,
        [&unexpected, &unexpected, "disabling connection caching"]
    );
}

#[test]
fn a_second_try_may_work() {
    let server = Server::start(vec![
        vec![Say(GREETING), Hear(FIND)],
        vec![Say(GREETING), Hear(FIND), Say(MISS), AwaitEnd],
    ]);
    let shown = server.path().display().to_string();
    let log = logged(|| {
        let mut client = Client::new(quick(&server.path()));
        assert!(client.find_endpoint(b"E1").unwrap().is_none());
    });
    server.finish();
    assert_eq!(
        log,
        [format!(
            "problem talking to service {shown}: Application error"
        )]
    );
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_replaced_silently() {
    let round = || vec![Say(GREETING), Hear(FIND), Say(MISS)];
    let server = Server::start(vec![round(), round()]);
    let log = logged(|| {
        let mut client = Client::new(quick(&server.path()));
        assert!(client.find_endpoint(b"E1").unwrap().is_none());
        // The server closes right behind its reply.
        thread::sleep(Duration::from_millis(50));
        assert!(client.find_endpoint(b"E1").unwrap().is_none());
    });
    server.finish();
    assert!(log.is_empty(), "{log:?}");
}

#[test]
fn a_hit_without_a_descriptor_is_a_failure() {
    let hit = b"status\x000\0property\0P1\0\0";
    let round = || {
        vec![
            Say(GREETING),
            Hear(FIND),
            Say(hit),
            Hear(PROMPT),
            Say(b"\0"),
            AwaitEnd,
        ]
    };
    let server = Server::start(vec![round(), round()]);
    let log = logged(|| {
        let mut client = Client::new(quick(&server.path()));
        assert!(matches!(
            client.find_endpoint(b"E1"),
            Err(Error::Exchange { .. })
        ));
    });
    server.finish();
    assert_eq!(log.len(), 3);
}

#[test]
fn servers_before_3_6_do_not_speak_first() {
    let server = Server::start(vec![vec![Hear(FIND), Say(MISS), AwaitEnd]]);
    let mut client = Client::new(Settings {
        announced: false,
        ..quick(&server.path())
    });
    assert!(client.find_endpoint(b"E1").unwrap().is_none());
    drop(client);
    server.finish();
}

#[test]
fn a_full_queue_of_connections_is_waited_for_within_the_limit() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let settings = quick(&path);
    let mut waiting = Vec::new();
    let error = loop {
        match Stream::connect(&path, String::new(), settings.limit) {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        assert!(waiting.len() < 10);
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
