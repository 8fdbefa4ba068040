//! The conversation with clients of the socketmap protocol, with fake tables.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fakes;

use std::sync::Arc;
use std::time::Duration;

use fakes::{Plan, Service, logged, service_with};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::share::Settings;
use postkeep_proxymap::socketmap::{Action, Conversation, Limits, Maps, Server, TROUBLES, Trouble};
use postkeep_table::{Flags, Latency};
use postkeep_wire::duplex::{End, Inbox, Outbox};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

/// One client, with the driver's part played in line.
struct Client {
    conversation: Conversation,
    inbox: Inbox<()>,
    outbox: Outbox<()>,
    troubles: Vec<Trouble>,
    now: Duration,
    until: Option<Duration>,
    closed: bool,
    jobs: usize,
    /// Jobs are begun, and nothing comes of them.
    stuck: bool,
}

impl Client {
    fn new() -> Self {
        Self {
            conversation: Conversation::new(),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            troubles: Vec::new(),
            now: 100 * SECOND,
            until: None,
            closed: false,
            jobs: 0,
            stuck: false,
        }
    }

    fn say(&mut self, server: &Server, bytes: impl AsRef<[u8]>) -> String {
        self.inbox.receive(bytes.as_ref(), []);
        self.turn(server)
    }

    fn end(&mut self, server: &Server, end: End) -> String {
        self.inbox.finish(end);
        self.turn(server)
    }

    fn turn(&mut self, server: &Server) -> String {
        let mut replies = Vec::new();
        self.until = None;
        loop {
            let troubles = &mut self.troubles;
            let action = self.conversation.step(
                self.now,
                &mut self.inbox,
                &mut self.outbox,
                server,
                &mut |trouble, _| troubles.push(trouble),
            );
            match action {
                Action::Run(job, until) => {
                    self.jobs += 1;
                    if self.stuck {
                        self.until = Some(until);
                        break;
                    }
                    self.conversation
                        .finish(job.run(), &mut self.outbox, server)
                        .unwrap();
                }
                Action::Flush => drain(&mut self.outbox, &mut replies),
                Action::Close => {
                    self.closed = true;
                    break;
                }
                Action::Wait => break,
                Action::Idle(until) | Action::Read(until) => {
                    self.until = Some(until);
                    break;
                }
            }
        }
        drain(&mut self.outbox, &mut replies);
        String::from_utf8_lossy(&replies).into_owned()
    }
}

fn drain(outbox: &mut Outbox<()>, replies: &mut Vec<u8>) {
    while !outbox.is_empty() {
        let (chunk, _) = outbox.next_chunk();
        let length = chunk.len();
        replies.extend_from_slice(chunk);
        outbox.sent(length);
    }
}

fn netstring(text: &str) -> String {
    format!("{}:{text},", text.len())
}

fn served(plans: &[(&str, Plan)], maps: &str, utf8: bool) -> (Service, Server) {
    let service = service_with(Role::Read, plans, &["gone:x"], Settings::default());
    let maps = Maps::parse(maps.as_bytes()).unwrap();
    let tables = Arc::clone(&service.tables);
    (service, Server::new(maps, tables, utf8, Limits::default()))
}

fn usual() -> (Service, Server) {
    served(
        &[
            (
                "a:b",
                Plan::with(&[("k", "v"), ("", "empty"), ("k 2", "w")]),
            ),
            (
                "c:d",
                Plan {
                    latency: Latency::Blocking,
                    ..Plan::with(&[("k", "slow")])
                },
            ),
        ],
        "fast=a:b slow=c:d gone=gone:x",
        true,
    )
}

#[test]
fn each_outcome_has_its_word() {
    let (_service, server) = usual();
    let mut client = Client::new();
    for (request, reply) in [
        ("fast k", "OK v"),
        ("fast k 2", "OK w"),
        ("fast ", "OK empty"),
        ("fast x", "NOTFOUND "),
        ("slow k", "OK slow"),
        ("slow x", "NOTFOUND "),
        ("fast !retry", "TEMP table lookup problem"),
        ("fast !config", "PERM table configuration problem"),
        ("gone k", "TEMP table lookup problem"),
        ("a:b k", "PERM no such map"),
        ("FAST k", "PERM no such map"),
        ("fast", "PERM expecting a map name, a space, and a key"),
        ("", "PERM expecting a map name, a space, and a key"),
        (" k", "PERM expecting a map name, a space, and a key"),
    ] {
        let answer = client.say(&server, netstring(request));
        assert_eq!(answer, netstring(reply), "{request:?}");
    }
    assert!(!client.closed);
    let counts = server.counts();
    assert_eq!((counts.found, counts.absent), (4, 2));
    assert_eq!((counts.temporary, counts.permanent), (2, 1));
    let of = |trouble| counts.troubles[TROUBLES.iter().position(|&t| t == trouble).unwrap()];
    assert_eq!((of(Trouble::Malformed), of(Trouble::NoMap)), (3, 2));
    assert_eq!(client.conversation.take_requests(), 14);
}

#[test]
fn reasons_of_tables_stay_here() {
    let (_service, server) = served(
        &[(
            "a:b",
            Plan {
                broken: Some("connect to db with password hunter2".into()),
                ..Plan::default()
            },
        )],
        "m=a:b",
        true,
    );
    let answer = Client::new().say(&server, netstring("m k"));
    assert_eq!(answer, netstring("TEMP table lookup problem"));
}

#[test]
fn a_client_cannot_fill_the_log_with_a_table_that_fails() {
    let settings = Settings {
        few_lines: true,
        ..Settings::default()
    };
    let service = service_with(
        Role::Read,
        &[("a:b", Plan::default())],
        &["gone:x"],
        settings,
    );
    let maps = Maps::parse(b"fast=a:b gone=gone:x").unwrap();
    let tables = Arc::clone(&service.tables);
    let server = Server::new(maps, tables, true, Limits::default());
    let mut client = Client::new();
    let _ = logged();
    for _ in 0..100 {
        client.say(&server, netstring("fast !retry"));
        client.say(&server, netstring("gone k"));
    }
    let lines = logged();
    assert!(lines.len() <= 3, "{lines:#?}");
    client.now += 61 * SECOND;
    client.say(&server, netstring("fast !retry"));
    let lines = logged();
    assert!(
        lines.iter().any(|line| line.contains("(99 more since")),
        "{lines:#?}"
    );
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    let (_service, server) = usual();
    let mut client = Client::new();
    let requests = [
        netstring("slow k"),
        netstring("fast x"),
        netstring("slow k"),
    ];
    assert_eq!(
        client.say(&server, requests.concat()),
        [
            netstring("OK slow"),
            netstring("NOTFOUND "),
            netstring("OK slow")
        ]
        .concat()
    );
    // Also when more replies wait than may.
    let flood = netstring("fast k").repeat(50_000);
    assert_eq!(client.say(&server, flood).len(), 50_000 * 7);
}

#[test]
fn a_client_that_has_sent_all_is_answered_all() {
    let (_service, server) = usual();
    let mut client = Client::new();
    client.inbox.receive(netstring("slow k").as_bytes(), []);
    assert_eq!(client.end(&server, End::Closed), netstring("OK slow"));
    assert!(client.closed && client.troubles.is_empty());
    let mut cut = Client::new();
    cut.inbox.receive(b"6:slow", []);
    assert_eq!(cut.end(&server, End::Closed), "");
    assert_eq!((cut.closed, &*cut.troubles), (true, &[Trouble::Cut][..]));
}

#[test]
fn what_cannot_be_read_on_from_ends_the_connection() {
    let (_service, server) = usual();
    for (input, reply, trouble) in [
        (
            "GET / HTTP/1.0\r\n\r\n",
            String::new(),
            Trouble::NoNetstring,
        ),
        ("6:fast k;", String::new(), Trouble::NoNetstring),
        (
            "16385:",
            netstring("PERM request too large"),
            Trouble::TooLarge,
        ),
        (
            "99999",
            netstring("PERM request too large"),
            Trouble::TooLarge,
        ),
    ] {
        let mut client = Client::new();
        // What came before it is answered.
        let input = netstring("fast k") + input;
        assert_eq!(client.say(&server, input), netstring("OK v") + &reply);
        assert_eq!((client.closed, &*client.troubles), (true, &[trouble][..]));
    }
    let largest = netstring(&format!("fast {}", "x".repeat(16 * 1024 - 5)));
    assert_eq!(Client::new().say(&server, largest), netstring("NOTFOUND "));
}

#[test]
fn keys_that_are_no_text_do_not_reach_a_table() {
    let (service, server) = usual();
    let mut client = Client::new();
    for key in [&b"\xff"[..], b"a\0b", b"\0"] {
        let mut request = format!("{}:fast ", key.len() + 5).into_bytes();
        request.extend_from_slice(key);
        request.push(b',');
        assert_eq!(client.say(&server, &request), netstring("NOTFOUND "));
    }
    assert_eq!(client.troubles, [Trouble::NoText; 3]);
    assert!(service.registry.asked.lock().unwrap().is_empty());
    // Where text is not wanted, bytes are bytes.
    let (service, server) = served(&[("a:b", Plan::with(&[]))], "fast=a:b", false);
    Client::new().say(&server, b"6:fast \xff,");
    assert_eq!(service.registry.asked.lock().unwrap().len(), 1);
}

#[test]
fn tables_are_opened_once_and_as_for_postmap() {
    let (service, server) = usual();
    for _ in 0..3 {
        Client::new().say(&server, netstring("fast k"));
    }
    let opened = service.registry.opened.lock().unwrap();
    let flags: Vec<Flags> = opened.iter().map(|(_, _, flags)| *flags).collect();
    assert_eq!(flags, [Flags::LOCK | Flags::FOLD_FIX | Flags::UTF8_REQUEST]);
}

#[test]
fn time_limits_are_kept() {
    let (_service, server) = usual();
    let limits = *server.limits();
    let mut client = Client::new();
    client.turn(&server);
    assert_eq!(client.until, Some(client.now + limits.idle_time));
    // Bytes one by one do not buy time.
    let first = client.now;
    for byte in b"6:fast" {
        client.say(&server, [*byte]);
        assert_eq!(client.until, Some(first + limits.request_time));
        client.now += SECOND;
    }
    client.end(&server, End::TimedOut);
    assert_eq!(
        (client.closed, &*client.troubles),
        (true, &[Trouble::Slow][..])
    );
    // A request that is served does, once it is over.
    let mut client = Client::new();
    client.turn(&server);
    client.now += limits.idle_time / 2;
    client.say(&server, netstring("fast k"));
    assert_eq!(client.until, Some(client.now + limits.idle_time));
    client.now += limits.idle_time;
    client.turn(&server);
    assert!(client.closed && client.troubles.is_empty());
}

#[test]
fn a_table_that_does_not_answer_is_given_up_for_one_request() {
    let (_service, server) = usual();
    let mut client = Client::new();
    client.say(&server, netstring("fast k"));
    client.stuck = true;
    let requests = netstring("slow k") + &netstring("fast k");
    assert_eq!(client.say(&server, requests), "");
    assert_eq!(client.until, Some(client.now + server.limits().answer_time));
    // News meanwhile change nothing.
    assert_eq!(client.say(&server, netstring("fast x")), "");
    let troubles = &mut client.troubles;
    client
        .conversation
        .give_up(&mut client.outbox, &server, &mut |trouble, _| {
            troubles.push(trouble);
        });
    let rest = [
        netstring("TIMEOUT time limit exceeded"),
        netstring("OK v"),
        netstring("NOTFOUND "),
    ];
    assert_eq!(client.turn(&server), rest.concat());
    assert_eq!(client.troubles, [Trouble::NoAnswer]);
}

proptest! {
    #[test]
    fn random_bytes_are_survived(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8)) {
        let (_service, server) = usual();
        let mut client = Client::new();
        for chunk in &chunks {
            client.say(&server, chunk);
            if client.closed {
                return Ok(());
            }
        }
        client.end(&server, End::Closed);
        prop_assert!(client.closed);
    }

    #[test]
    fn requests_cut_anywhere_get_one_reply_each(
        requests in proptest::collection::vec((prop_oneof!["fast", "slow", "gone", "no", "[^ ]{0,3}"], any::<Vec<u8>>()), 1..12),
        cut in 1usize..40,
    ) {
        let (_service, server) = usual();
        let mut wire = Vec::new();
        for (map, key) in &requests {
            wire.extend_from_slice(format!("{}:{map} ", map.len() + 1 + key.len()).as_bytes());
            wire.extend_from_slice(key);
            wire.push(b',');
        }
        let mut whole = Client::new();
        let expected = whole.say(&server, &wire);
        let mut client = Client::new();
        let mut answers = String::new();
        for piece in wire.chunks(cut) {
            answers.push_str(&client.say(&server, piece));
        }
        prop_assert_eq!(&answers, &expected);
        prop_assert!(!client.closed);
        prop_assert_eq!(usize::try_from(client.conversation.take_requests()).unwrap(), requests.len());
    }
}
