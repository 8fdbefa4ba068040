use std::cell::Cell;
use std::rc::Rc;

use postkeep_wire::duplex::{End, Inbox, Outbox};
use proptest::prelude::*;

use super::*;
use crate::limits::{Limits, Rules};

/// A descriptor: a number, and a count of those that are open.
#[derive(Debug)]
struct Handle {
    number: u32,
    open: Rc<Cell<usize>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Bytes(Vec<u8>),
    Handle(u32),
}

/// A client, the conversation with it, and what came out.
struct Client {
    conversation: Conversation<Handle>,
    settings: Settings,
    inbox: Inbox<Handle>,
    outbox: Outbox<Handle>,
    cache: RefCell<Cache<Handle>>,
    now: Duration,
    open: Rc<Cell<usize>>,
    next: Next,
    heard: Vec<Heard>,
    log: Vec<String>,
}

impl Client {
    fn new() -> Self {
        Self::with(Settings {
            ttl_limit: Duration::from_mins(1),
            ..Settings::default()
        })
    }

    fn with(settings: Settings) -> Self {
        Self {
            conversation: Conversation::new(&settings),
            settings,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            cache: RefCell::new(Cache::default()),
            now: Duration::from_secs(100),
            open: Rc::default(),
            next: Next::Idle,
            heard: Vec::new(),
            log: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8], numbers: &[u32]) {
        let handles = numbers.iter().map(|&number| {
            self.open.set(self.open.get() + 1);
            Handle {
                number,
                open: Rc::clone(&self.open),
            }
        });
        self.inbox.receive(bytes, handles);
        self.step();
    }

    fn finish(&mut self, end: End) {
        self.inbox.finish(end);
        self.step();
    }

    fn step(&mut self) {
        self.next = self.conversation.step(
            self.now,
            &self.settings,
            &mut self.inbox,
            &mut self.outbox,
            &self.cache,
            &mut self.log,
        );
        while !self.outbox.is_empty() {
            let (bytes, handle) = self.outbox.next_chunk();
            match (handle, self.heard.last_mut()) {
                (Some(handle), _) => self.heard.push(Heard::Handle(handle.number)),
                (None, Some(Heard::Bytes(heard))) => heard.extend_from_slice(bytes),
                (None, _) => self.heard.push(Heard::Bytes(bytes.to_vec())),
            }
            let count = bytes.len();
            if let Some(handle) = self.outbox.sent(count) {
                self.conversation.keep(handle);
            }
        }
    }

    /// Sends a request and returns what it was answered, which has no handle in it.
    fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.send(request, &[]);
        self.answer()
    }

    fn answer(&mut self) -> Vec<u8> {
        match std::mem::take(&mut self.heard).pop() {
            None => Vec::new(),
            Some(Heard::Bytes(bytes)) => bytes,
            Some(Heard::Handle(number)) => panic!("handle {number}"),
        }
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn save(&mut self, endpoint: &str, property: &str, number: u32) {
        let request =
            format!("request\0save_endp\0ttl\0{TTL}\0label\0{endpoint}\0property\0{property}\0\0");
        assert_eq!(self.ask(request.as_bytes()), PROMPT);
        assert_eq!(self.next, Next::Read(Awaited::Descriptor));
        self.send(b"\0", &[number]);
        assert_eq!(self.answer(), OK);
        assert_eq!(self.next, Next::Idle);
    }

    /// Handles that are open outside the cache.
    fn strays(&self) -> usize {
        self.open.get() - self.cache.borrow().sessions()
    }
}

const TTL: u32 = 15;
const PROMPT: &[u8] = b"dummy\0\0\0";
const OK: &[u8] = b"status\x000\0\0";
const BAD: &[u8] = b"status\x001\0\0";
const FAIL: &[u8] = b"status\x002\0\0";

const SAVE_ENDPOINT: &[u8] = b"request\0save_endp\0ttl\x0015\0label\0E1\0property\0P1\0\0";
const SAVE_DESTINATION: &[u8] =
    b"request\0save_dest\0ttl\x0015\0label\0D1\0property\0DP1\0label\0E1\0\0";
const FIND_DESTINATION: &[u8] = b"request\0find_dest\0label\0D1\0\0";
const FIND_ENDPOINT: &[u8] = b"request\0find_endp\0label\0E1\0\0";

/// The client's side of a whole conversation: bytes, and the handle on the first of them.
const TRANSCRIPT: [(&[u8], &[u32]); 8] = [
    (SAVE_ENDPOINT, &[]),
    (b"\0", &[7]),
    (SAVE_DESTINATION, &[]),
    (FIND_DESTINATION, &[]),
    (PROMPT, &[]),
    (PROMPT, &[]),
    (FIND_DESTINATION, &[]),
    (FIND_ENDPOINT, &[]),
];

fn transcript_heard() -> Vec<Heard> {
    vec![
        Heard::Bytes(
            [
                PROMPT,
                OK,
                OK,
                b"status\x000\0property\0DP1\0property\0P1\0\0",
            ]
            .concat(),
        ),
        Heard::Handle(7),
        Heard::Bytes(
            b"status\x002\0property\0\0property\0\0\0status\x002\0property\0\0\0".to_vec(),
        ),
    ]
}

#[test]
fn a_whole_conversation_is_the_reference_s() {
    assert_eq!(
        (
            SAVE_ENDPOINT.len(),
            SAVE_DESTINATION.len(),
            FIND_DESTINATION.len()
        ),
        (47, 57, 28)
    );
    let mut client = Client::new();
    for (bytes, numbers) in TRANSCRIPT {
        client.send(bytes, numbers);
    }
    assert_eq!(client.heard, transcript_heard());
    assert_eq!((client.next, client.open.get()), (Next::Idle, 0));
    assert!(client.log.is_empty());
    client.finish(End::Closed);
    assert_eq!(client.next, Next::Close);
    assert!(client.log.is_empty());
    let counted = client.cache.borrow_mut().take_statistics();
    assert_eq!(
        (counted.destination_hits, counted.destination_misses),
        (1, 1)
    );
    assert_eq!((counted.endpoint_hits, counted.endpoint_misses), (0, 1));
}

#[test]
fn every_split_of_the_bytes_is_answered_alike() {
    let whole: Vec<u8> = TRANSCRIPT
        .iter()
        .flat_map(|(bytes, _)| *bytes)
        .copied()
        .collect();
    let at = SAVE_ENDPOINT.len();
    for first in 0..=whole.len() {
        for second in [first, (first + 13).min(whole.len()), whole.len()] {
            let mut client = Client::new();
            for (from, to) in [(0, first), (first, second), (second, whole.len())] {
                let numbers: &[u32] = if (from..to).contains(&at) { &[7] } else { &[] };
                client.send(&whole[from..to], numbers);
            }
            assert_eq!(
                client.heard,
                transcript_heard(),
                "cut at {first} and {second}"
            );
            assert_eq!((client.open.get(), client.next), (0, Next::Idle));
        }
    }
    let mut client = Client::new();
    for (index, byte) in whole.iter().enumerate() {
        let numbers: &[u32] = if index == at { &[7] } else { &[] };
        client.send(&[*byte], numbers);
    }
    assert_eq!(client.heard, transcript_heard());
}

#[test]
fn waits_are_named_and_limited() {
    let mut client = Client::new();
    client.send(b"req", &[]);
    assert_eq!(client.next, Next::Read(Awaited::Request));
    client.send(&SAVE_ENDPOINT[3..], &[]);
    assert_eq!(client.next, Next::Read(Awaited::Descriptor));
    client.send(b"\0", &[1]);
    assert_eq!(client.next, Next::Idle);
    client.send(FIND_ENDPOINT, &[]);
    assert_eq!(client.next, Next::Read(Awaited::Prompt));
    client.send(PROMPT, &[]);
    assert_eq!(client.next, Next::Read(Awaited::Prompt));
    // Our copy stays open until the client has said that it has one.
    assert_eq!(client.strays(), 1);
    client.send(PROMPT, &[]);
    assert_eq!((client.strays(), client.next), (0, Next::Idle));
}

#[test]
fn the_session_is_out_of_the_cache_before_the_reply_is_sent() {
    let mut client = Client::new();
    client.save("E1", "P1", 1);
    client.send(FIND_ENDPOINT, &[]);
    assert_eq!(client.cache.borrow().sessions(), 0);
    client.step();
    assert_eq!(client.strays(), 1);
}

#[test]
fn times_to_live() {
    for (ttl, accepted, warning) in [
        ("1", true, None),
        (" +1", true, None),
        ("4294967297", true, None),
        ("0", false, None),
        ("-1", false, None),
        ("4294967296", false, None),
        ("2147483648", false, None),
        ("1 ", false, Some("1 ")),
        ("0x10", false, Some("0x10")),
        ("abc", false, Some("abc")),
        ("", false, Some("")),
    ] {
        let mut client = Client::new();
        let request =
            format!("request\0save_dest\0ttl\0{ttl}\0label\0d\0property\0p\0label\0e\0\0");
        let answer = client.ask(request.as_bytes());
        assert_eq!(answer, if accepted { OK } else { BAD }, "{ttl:?}");
        let mut expected = Vec::new();
        if let Some(shown) = warning {
            expected.push(format!(
                "malformed numerical data from scache socket while reading input attribute value: {shown}"
            ));
        }
        if !accepted {
            expected.push("scache_save_dest_service: bad or missing request parameter".to_owned());
        }
        assert_eq!(client.log(), expected);
        let request = format!("request\0save_endp\0ttl\0{ttl}\0label\0d\0property\0p\0\0");
        let answer = client.ask(request.as_bytes());
        assert_eq!(answer, if accepted { PROMPT } else { BAD }, "{ttl:?}");
    }
}

#[test]
fn ttl_is_cut_to_the_limit() {
    let mut client = Client::with(Settings {
        ttl_limit: Duration::from_secs(2),
        ..Settings::default()
    });
    for (ttl, label) in [(1000, "long"), (1, "short")] {
        let request = format!("request\0save_endp\0ttl\0{ttl}\0label\0{label}\0property\0p\0\0");
        client.send(request.as_bytes(), &[]);
        client.send(b"\0", &[ttl]);
    }
    let start = client.now;
    let cache = client.cache.get_mut();
    assert_eq!(cache.next_expiry(), Some(start + Duration::from_secs(1)));
    assert_eq!(
        cache.expire(start + Duration::from_secs(1))[0]
            .handle
            .number,
        1
    );
    assert_eq!(cache.next_expiry(), Some(start + Duration::from_secs(2)));
}

#[test]
fn descriptors_that_do_not_come_alone_are_refused_and_closed() {
    let refused = "scache_save_endp_service: unable to receive file descriptor: ";
    for (numbers, reason) in [
        (&[][..], "no file descriptor in message"),
        (&[1, 2], "more than one file descriptor in message"),
        (&[1, 2, 3], "more than one file descriptor in message"),
    ] {
        let mut client = Client::new();
        client.send(SAVE_ENDPOINT, &[]);
        client.heard.clear();
        client.send(b"\0", numbers);
        assert_eq!(client.answer(), FAIL);
        assert_eq!(client.log(), [format!("{refused}{reason}")]);
        assert_eq!((client.open.get(), client.next), (0, Next::Idle));
        client.save("E1", "P1", 5);
    }
    for (end, reason) in [
        (End::Closed, "premature end-of-input"),
        (End::TimedOut, "Connection timed out"),
    ] {
        let mut client = Client::new();
        client.send(SAVE_ENDPOINT, &[]);
        client.heard.clear();
        client.finish(end);
        assert_eq!(client.answer(), FAIL);
        assert_eq!(client.log(), [format!("{refused}{reason}")]);
        assert_eq!(client.next, Next::Close);
    }
}

#[test]
fn any_byte_carries_a_descriptor_and_what_follows_it_is_a_request() {
    let mut client = Client::new();
    client.send(SAVE_ENDPOINT, &[]);
    client.send(b"X", &[3]);
    client.send(SAVE_ENDPOINT, &[]);
    client.heard.clear();
    client.send(&[b"\0", FIND_ENDPOINT].concat(), &[4]);
    assert_eq!(
        client.answer(),
        [OK, b"status\x000\0property\0P1\0\0"].concat()
    );
    assert_eq!(client.cache.borrow().sessions(), 1);
}

#[test]
fn a_descriptor_ahead_of_the_prompt_is_accepted() {
    let mut client = Client::new();
    client.inbox.receive(SAVE_ENDPOINT, []);
    client.send(b"\0", &[9]);
    assert_eq!(client.answer(), [PROMPT, OK].concat());
    assert_eq!(client.cache.borrow().sessions(), 1);
    assert!(client.log.is_empty());
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let mut client = Client::new();
    client.send(FIND_ENDPOINT, &[1, 2]);
    assert_eq!(client.open.get(), 0);
    let many: Vec<u32> = (0..100).collect();
    client.send(b"request", &many);
    assert_eq!(client.next, Next::Close);
    assert_eq!(
        client.log(),
        ["too many file descriptors in input from scache socket"]
    );
    drop((client.inbox, client.conversation));
    assert_eq!(client.open.get(), 0);
}

#[test]
fn a_client_that_does_not_collect_its_session_loses_it() {
    let lost = |operation, reason: &str| {
        format!("scache_{operation}_service: cannot send file descriptor: {reason}")
    };
    for (end, reason) in [
        (End::Closed, "premature end-of-input"),
        (End::TimedOut, "Connection timed out"),
    ] {
        for prompts in [0, 1] {
            let mut client = Client::new();
            client.save("E1", "P1", 1);
            client.send(FIND_ENDPOINT, &[]);
            for _ in 0..prompts {
                client.send(PROMPT, &[]);
            }
            client.heard.clear();
            client.finish(end);
            assert_eq!(client.log(), [lost("find_endp", reason)]);
            assert_eq!((client.next, client.open.get()), (Next::Close, 0));
            assert!(client.heard.is_empty());
            assert_eq!(client.cache.borrow().statistics().endpoint_hits, 1);
        }
    }
}

#[test]
fn another_list_instead_of_a_prompt_does_not_hang() {
    let mut client = Client::new();
    client.ask(SAVE_DESTINATION);
    client.save("E1", "P1", 1);
    client.send(FIND_DESTINATION, &[]);
    client.heard.clear();
    client.send(FIND_ENDPOINT, &[]);
    assert_eq!(
        client.log(),
        [
            "unexpected attribute request from scache socket (expecting: dummy)",
            "scache_find_dest_service: cannot send file descriptor: Application error",
            "unexpected attribute find_endp from scache socket (expecting: request)",
            "unexpected attribute label from scache socket (expecting: request)",
            "unexpected attribute E1 from scache socket (expecting: request)",
            "missing attribute request in input from scache socket",
        ]
    );
    assert_eq!((client.next, client.open.get()), (Next::Idle, 0));
    assert!(client.heard.is_empty());
    assert_eq!(client.ask(FIND_ENDPOINT), b"status\x002\0property\0\0\0");
}

#[test]
fn unknown_requests_are_answered_and_the_connection_stays() {
    let mut client = Client::new();
    for request in [&b"request\0foo\0\0"[..], b"request\0foo\0label\0x\0\0"] {
        assert_eq!(client.ask(request), BAD);
        assert_eq!(client.log(), ["unrecognized request: \"foo\", ignored"]);
        assert_eq!(client.next, Next::Idle);
    }
    assert_eq!(client.ask(SAVE_DESTINATION), OK);
}

#[test]
fn lists_that_are_no_requests_get_no_reply() {
    let mut client = Client::new();
    assert!(client.ask(b"foo\0find_dest\0label\0x\0\0").is_empty());
    let unexpected =
        |name| format!("unexpected attribute {name} from scache socket (expecting: request)");
    let missing = "missing attribute request in input from scache socket";
    assert_eq!(
        client.log(),
        [
            unexpected("foo"),
            unexpected("find_dest"),
            unexpected("label"),
            unexpected("x"),
            missing.to_owned()
        ]
    );
    assert!(client.ask(b"\0").is_empty());
    assert_eq!(client.log(), [missing]);
    assert_eq!(client.next, Next::Idle);
}

#[test]
fn missing_and_surplus_attributes() {
    for (request, reply, operation) in [
        (
            &b"request\0save_endp\0ttl\x001\0label\0x\0\0"[..],
            BAD,
            "save_endp",
        ),
        (
            b"request\0find_endp\0\0",
            b"status\x001\0property\0\0\0",
            "find_endp",
        ),
        (
            b"request\0save_dest\0ttl\x001\0label\0x\0property\0p\0\0",
            BAD,
            "save_dest",
        ),
        (
            b"request\0find_dest\0\0",
            b"status\x001\0property\0\0property\0\0\0",
            "find_dest",
        ),
    ] {
        let mut client = Client::new();
        assert_eq!(client.ask(request), reply);
        let missing = if operation == "save_endp" {
            "property"
        } else {
            "label"
        };
        assert_eq!(
            client.log(),
            [
                format!("missing attribute {missing} in input from scache socket"),
                format!("scache_{operation}_service: bad or missing request parameter"),
            ]
        );
        assert_eq!(client.next, Next::Idle);
        // A malformed request is no miss.
        assert!(client.cache.borrow().statistics().lines("").is_empty());
    }
    let mut client = Client::new();
    assert_eq!(
        client.ask(b"request\0find_endp\0label\0x\0more\0y\0\0"),
        b"status\x002\0property\0\0\0"
    );
    assert_eq!(
        client.log(),
        ["unexpected attribute more from scache socket (expecting: (list terminator))"]
    );
    assert_eq!(
        client.ask(b"request\0find_endp\0property\0x\0\0"),
        b"status\x001\0property\0\0\0"
    );
    assert_eq!(
        client.log(),
        [
            "unexpected attribute property from scache socket (expecting: label)",
            "scache_find_endp_service: bad or missing request parameter"
        ]
    );
}

#[test]
fn a_request_that_breaks_off() {
    let mut client = Client::new();
    client.send(b"request\0find_dest\0lab", &[]);
    client.finish(End::Closed);
    assert_eq!(client.answer(), b"status\x001\0property\0\0property\0\0\0");
    assert_eq!(client.next, Next::Close);
    let mut client = Client::new();
    client.send(b"request\0find_dest\0", &[]);
    client.finish(End::TimedOut);
    assert!(client.heard.is_empty());
    assert_eq!(
        client.log(),
        ["scache_find_dest_service: bad or missing request parameter"]
    );
    assert_eq!(client.next, Next::Close);
    let mut client = Client::new();
    client.send(FIND_ENDPOINT, &[]);
    client.finish(End::Closed);
    assert_eq!(client.answer(), b"status\x002\0property\0\0\0");
    assert!(client.log.is_empty());
}

#[test]
fn what_is_too_long_ends_the_conversation() {
    let mut client = Client::with(Settings {
        limits: scan::Limits {
            value: 1000,
            ..scan::Limits::default()
        },
        ..Settings::default()
    });
    client.send(b"request\0find_endp\0label\0", &[]);
    client.send(&[b'x'; 2000], &[]);
    assert_eq!(client.next, Next::Close);
    assert!(client.heard.is_empty());
    client.send(FIND_ENDPOINT, &[]);
    assert_eq!(client.next, Next::Close);
    assert!(client.heard.is_empty());
}

#[test]
fn labels_and_properties_are_any_bytes() {
    let everything: Vec<u8> = (1..=255).collect();
    for text in [
        Vec::new(),
        everything,
        b"smtp\n[127.0.0.1]:25\n".to_vec(),
        vec![b'l'; 200_000],
    ] {
        let mut client = Client::new();
        let save = [
            b"request\0save_endp\0ttl\x009\0label\0",
            &text[..],
            b"\0property\0",
            &text,
            b"\0\0",
        ]
        .concat();
        assert_eq!(client.ask(&save), PROMPT);
        client.send(b"\0", &[1]);
        assert_eq!(client.answer(), OK);
        let find = [b"request\0find_endp\0label\0", &text[..], b"\0\0"].concat();
        assert_eq!(
            client.ask(&find),
            [b"status\x000\0property\0", &text[..], b"\0\0"].concat()
        );
    }
}

#[test]
fn a_full_cache_says_so_and_closes_the_session() {
    let mut client = Client::new();
    *client.cache.get_mut() = Cache::new(Rules {
        limits: Limits {
            sessions: 0,
            bindings: 0,
            ..Limits::default()
        },
        ..Rules::default()
    });
    client.send(SAVE_ENDPOINT, &[]);
    client.heard.clear();
    client.send(b"\0", &[1]);
    assert_eq!(client.answer(), FAIL);
    assert_eq!(client.open.get(), 0);
    assert_eq!(client.ask(SAVE_DESTINATION), FAIL);
    assert_eq!(
        client.log(),
        [
            "scache_save_endp_service: connection cache is full",
            "scache_save_dest_service: connection cache is full"
        ]
    );
}

#[test]
fn an_expired_session_is_not_found_by_the_next_request() {
    let mut client = Client::new();
    client.save("E1", "P1", 1);
    client.now += Duration::from_secs(u64::from(TTL));
    assert_eq!(client.ask(FIND_ENDPOINT), b"status\x002\0property\0\0\0");
    // It waits to be closed where that holds up nobody.
    drop(client.cache.get_mut().take_ended());
    assert_eq!(client.open.get(), 0);
}

fn piece() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let bytes = prop_oneof![
        Just(SAVE_ENDPOINT.to_vec()),
        Just(SAVE_DESTINATION.to_vec()),
        Just(FIND_DESTINATION.to_vec()),
        Just(FIND_ENDPOINT.to_vec()),
        Just(PROMPT.to_vec()),
        Just(b"\0".to_vec()),
        Just(b"request\0".to_vec()),
        Just(b"{\0x\0".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
    ];
    (
        bytes,
        prop_oneof![4 => Just(0), 2 => Just(1), 1 => 2_usize..4],
    )
}

proptest! {
    #[test]
    fn nothing_a_client_sends_panics_or_leaks(
        pieces in prop::collection::vec(piece(), 0..40),
        end in prop_oneof![Just(End::Closed), Just(End::TimedOut)],
    ) {
        let mut client = Client::new();
        for (bytes, handles) in pieces {
            if client.next == Next::Close {
                break;
            }
            // Descriptors cannot travel without bytes.
            let numbers = vec![0; if bytes.is_empty() { 0 } else { handles }];
            client.send(&bytes, &numbers);
            let in_hands = client.inbox.handles() + client.cache.borrow().sessions();
            prop_assert!(client.open.get() <= in_hands + 1);
        }
        client.finish(end);
        prop_assert_eq!(client.next, Next::Close);
        drop((client.conversation, client.inbox, client.outbox));
        prop_assert_eq!(client.open.get(), client.cache.borrow().sessions());
    }
}
