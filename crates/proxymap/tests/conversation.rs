//! The conversation with one client: statuses, both generations, walks, flags, limits.

mod fakes;

use std::time::Duration;

use fakes::{Client, Plan, bytes, logged, service, service_with, shown};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::service::{Action, Conversation, REQUEST_TIME};
use postkeep_proxymap::share::Settings;
use postkeep_table::{CacheCounts, Flags, Latency};
use postkeep_wire::duplex::{End, Inbox, Outbox};
use postkeep_wire::proxymap::Generation;

fn lookup(table: &str, key: &str) -> String {
    format!("request␀lookup␀table␀{table}␀flags␀524353␀key␀{key}␀␀")
}

fn next(table: &str, function: u32) -> String {
    format!("request␀sequence␀table␀{table}␀flags␀524353␀function␀{function}␀␀")
}

fn three() -> Plan {
    Plan::with(&[("a", "1"), ("b", "2"), ("c", "3")])
}

#[test]
fn every_status_in_both_generations() {
    let service = service_with(
        Role::Read,
        &[("hash:/t", Plan::with(&[("k", "v"), ("empty", "")]))],
        &["hash:/none"],
        Settings::default(),
    );
    let rows = [
        ("hash:/t", "k", 0, "v"),
        ("hash:/t", "empty", 0, ""),
        ("hash:/t", "absent", 1, ""),
        ("hash:/t", "", 1, ""),
        ("hash:/t", "!retry", 2, ""),
        ("hash:/none", "k", 2, ""),
        ("nocolon", "k", 3, ""),
        ("hash:/other", "k", 4, ""),
        ("hash:/t", "!config", 5, ""),
        ("hash:/t", "!unsupported", 5, ""),
    ];
    let mut client = Client::new();
    for (table, key, status, value) in rows {
        assert_eq!(
            client.say(&service, &lookup(table, key)),
            format!("status␀{status}␀value␀{value}␀␀"),
            "{table} {key}"
        );
        let request =
            format!("request␀lookup␀table␀{table}␀instance_flags␀64␀flags␀80␀key␀{key}␀␀");
        let flags = if matches!(status, 3 | 4) { 0 } else { 80 };
        assert_eq!(
            client.say(&service, &request),
            format!("status␀{status}␀flags␀{flags}␀value␀{value}␀␀"),
            "{table} {key}"
        );
    }
    let counts: Vec<_> = service
        .tables
        .counts()
        .filter(|(name, _)| *name == b"hash:/t")
        .collect();
    let counts = counts[0].1;
    assert_eq!(
        (
            counts.lookups,
            counts.found,
            counts.not_found,
            counts.errors
        ),
        (14, 4, 4, 6)
    );
}

#[test]
fn malformed_requests_are_answered_in_their_own_shape() {
    let service = service(Role::Write, &[("hash:/t", three())]);
    let rows = [
        ("request␀open␀table␀hash:/t␀␀", "status␀3␀flags␀0␀␀"),
        (
            "request␀lookup␀table␀hash:/t␀flags␀x␀key␀a␀␀",
            "status␀3␀value␀␀␀",
        ),
        (
            "request␀lookup␀table␀hash:/t␀instance_flags␀0␀key␀a␀␀",
            "status␀3␀flags␀0␀value␀␀␀",
        ),
        ("request␀update␀table␀hash:/t␀flags␀0␀key␀a␀␀", "status␀3␀␀"),
        (
            "request␀update␀table␀hash:/t␀instance_flags␀0␀flags␀0␀key␀a␀␀",
            "status␀3␀flags␀0␀␀",
        ),
        ("request␀delete␀table␀hash:/t␀key␀a␀␀", "status␀3␀␀"),
        (
            "request␀sequence␀table␀hash:/t␀flags␀0␀function␀2␀␀",
            "status␀3␀key␀␀value␀␀␀",
        ),
        (
            "request␀sequence␀table␀hash:/t␀instance_flags␀0␀flags␀0␀function␀9␀␀",
            "status␀3␀flags␀0␀key␀␀value␀␀␀",
        ),
        ("request␀␀", "status␀3␀␀"),
        ("␀", ""),
        ("bogus␀x␀␀", ""),
        // An attribute too many is warned about, and the request is executed.
        (
            "request␀lookup␀table␀hash:/t␀flags␀0␀key␀a␀x␀y␀␀",
            "status␀0␀value␀1␀␀",
        ),
    ];
    for (request, reply) in rows {
        let mut client = Client::new();
        assert_eq!(client.say(&service, request), reply, "{request}");
        assert!(!client.closed);
        let silent = request.contains("function");
        assert_eq!(
            client.warnings.is_empty(),
            silent,
            "{request}: {:?}",
            client.warnings
        );
        // The connection is in step again.
        assert_eq!(
            client.say(&service, &lookup("hash:/t", "b")),
            "status␀0␀value␀2␀␀"
        );
    }
}

#[test]
fn generations_alternate_on_one_connection() {
    let service = service(Role::Write, &[("hash:/t", three())]);
    let mut client = Client::new();
    for _ in 0..3 {
        assert_eq!(
            client.say(&service, &lookup("hash:/t", "a")),
            "status␀0␀value␀1␀␀"
        );
        assert_eq!(
            client.say(
                &service,
                "request␀lookup␀table␀hash:/t␀instance_flags␀64␀flags␀84␀key␀a␀␀"
            ),
            "status␀0␀flags␀84␀value␀1␀␀"
        );
        assert_eq!(
            client.say(
                &service,
                "request␀update␀table␀hash:/t␀flags␀0␀key␀a␀value␀1␀␀"
            ),
            "status␀0␀␀"
        );
        assert_eq!(
            client.say(
                &service,
                "request␀update␀table␀hash:/t␀instance_flags␀64␀flags␀0␀key␀a␀value␀1␀␀"
            ),
            "status␀0␀flags␀384␀␀"
        );
    }
    // One instance for each way of asking.
    assert_eq!(service.tables.instances(), 2);
    assert_eq!(service.registry.opened.lock().unwrap().len(), 2);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for latency in [Latency::Memory, Latency::Blocking] {
        let plan = Plan { latency, ..three() };
        let service = service(Role::Read, &[("hash:/t", plan)]);
        let mut client = Client::new();
        let requests = ["a", "b", "x", "c"]
            .map(|key| lookup("hash:/t", key))
            .concat();
        assert_eq!(
            client.say(&service, &requests),
            "status␀0␀value␀1␀␀status␀0␀value␀2␀␀status␀1␀value␀␀␀status␀0␀value␀3␀␀"
        );
        assert_eq!(client.jobs, if latency == Latency::Memory { 1 } else { 4 });
    }
}

#[test]
fn a_table_that_may_wait_is_asked_at_once_when_it_need_not() {
    let plan = Plan {
        latency: Latency::Blocking,
        ready: true,
        ..three()
    };
    let service = service(Role::Write, &[("hash:/t", plan)]);
    let mut client = Client::new();
    for _ in 0..2 {
        for (key, reply) in [
            ("a", "status␀0␀value␀1␀␀"),
            ("!config", "status␀5␀value␀␀␀"),
        ] {
            assert_eq!(client.say(&service, &lookup("hash:/t", key)), reply);
        }
        // The first request had to open the table.
        assert_eq!(client.jobs, 1);
    }
    assert_eq!(
        client.say(&service, &next("hash:/t", 0)),
        "status␀0␀key␀a␀value␀1␀␀"
    );
    assert_eq!(
        client.say(&service, &next("hash:/t", 1)),
        "status␀0␀key␀b␀value␀2␀␀"
    );
    assert_eq!(client.jobs, 3);
    assert_eq!(
        service
            .tables
            .counts()
            .map(|(_, counts)| counts.lookups)
            .sum::<u64>(),
        4
    );
    assert_eq!(logged(), ["warning: broken"; 2]);
}

#[test]
fn nothing_is_answered_while_a_job_is_out() {
    let plan = Plan {
        latency: Latency::Blocking,
        ..three()
    };
    let service = service(Role::Read, &[("hash:/t", plan)]);
    let mut conversation = Conversation::new("proxymap socket".into(), Generation::One);
    let (mut inbox, mut outbox) = (Inbox::<()>::default(), Outbox::<()>::default());
    let step = |inbox: &mut Inbox<()>, outbox: &mut Outbox<()>, conversation: &mut Conversation| {
        conversation.step(Duration::ZERO, inbox, outbox, &service.tables, &mut ())
    };
    inbox.receive(&bytes(&lookup("hash:/t", "a")), []);
    inbox.receive(&bytes(&lookup("hash:/t", "b")), []);
    let Action::Run(job) = step(&mut inbox, &mut outbox, &mut conversation) else {
        panic!("a job is expected");
    };
    assert!(matches!(
        step(&mut inbox, &mut outbox, &mut conversation),
        Action::Idle
    ));
    assert!(outbox.is_empty());
    conversation.finish(job.run(), &mut outbox).unwrap();
    assert_eq!(shown(outbox.next_chunk().0), "status␀0␀value␀1␀␀");
    assert!(matches!(
        step(&mut inbox, &mut outbox, &mut conversation),
        Action::Run(_)
    ));
}

#[test]
fn lookups_behind_a_server_are_begun_and_end_later() {
    let plan = Plan {
        latency: Latency::Remote,
        ..three()
    };
    let service = service(Role::Read, &[("socketmap:t", plan)]);
    let late = || std::mem::take(&mut *service.registry.late.lock().unwrap());
    let (sender, ends) = std::sync::mpsc::channel();
    let mut clients: Vec<_> = ["a", "x", "!retry", "!config", "b"]
        .iter()
        .map(|key| {
            let mut inbox = Inbox::<()>::default();
            inbox.receive(&bytes(&lookup("socketmap:t", key)), []);
            let conversation = Conversation::new("proxymap socket".into(), Generation::One);
            (conversation, inbox, Outbox::<()>::default())
        })
        .collect();
    for (number, (conversation, inbox, outbox)) in clients.iter_mut().enumerate() {
        let action = conversation.step(Duration::ZERO, inbox, outbox, &service.tables, &mut ());
        let Action::Run(job) = action else {
            panic!("a job is expected");
        };
        // Only the first one has to open the table.
        assert_eq!(job.may_wait(), number == 0);
        let sender = sender.clone();
        job.begin(move |done| sender.send((number, done)).unwrap());
        assert!(ends.try_recv().is_err());
    }
    // All are under way at once; they end in any order, on any thread.
    let begun = late();
    assert_eq!(begun.len(), 5);
    std::thread::spawn(move || begun.into_iter().rev().for_each(|end| end()))
        .join()
        .unwrap();
    for expected in (0..5).rev() {
        let (number, done) = ends.recv().unwrap();
        assert_eq!(number, expected);
        let (conversation, _, outbox) = &mut clients[number];
        conversation.finish(done, outbox).unwrap();
    }
    let replies = clients
        .iter_mut()
        .map(|(_, _, outbox)| shown(outbox.next_chunk().0))
        .collect::<Vec<_>>();
    assert_eq!(
        replies,
        [
            "status␀0␀value␀1␀␀",
            "status␀1␀value␀␀␀",
            "status␀2␀value␀␀␀",
            "status␀5␀value␀␀␀",
            "status␀0␀value␀2␀␀"
        ]
    );
    let counts: u64 = service
        .tables
        .counts()
        .map(|(_, counts)| counts.lookups)
        .sum();
    assert_eq!(counts, 5);
}

#[test]
fn a_request_has_one_second_from_its_first_byte_on() {
    let service = service(Role::Read, &[("hash:/t", three())]);
    let mut conversation = Conversation::new("proxymap socket".into(), Generation::One);
    let (mut inbox, mut outbox) = (Inbox::<()>::default(), Outbox::<()>::default());
    let mut warnings = Vec::new();
    let mut step = |now: u64, inbox: &mut Inbox<()>| {
        let now = Duration::from_millis(now);
        conversation.step(now, inbox, &mut outbox, &service.tables, &mut warnings)
    };
    assert!(matches!(step(0, &mut inbox), Action::Idle));
    inbox.receive(b"request\0lo", []);
    let limit = Duration::from_millis(500) + REQUEST_TIME;
    assert!(matches!(step(500, &mut inbox), Action::Read(until) if until == limit));
    inbox.receive(b"okup\0ta", []);
    assert!(matches!(step(900, &mut inbox), Action::Read(until) if until == limit));
    inbox.finish(End::TimedOut);
    assert!(matches!(step(1500, &mut inbox), Action::Close));
    assert!(outbox.is_empty());
    assert_eq!(
        warnings,
        ["unexpected end-of-input from proxymap socket while reading input attribute name"]
    );
}

#[test]
fn ends_of_input() {
    let service = service(Role::Read, &[("hash:/t", three())]);
    let mut client = Client::new();
    assert_eq!(client.end(&service, End::Closed), b"");
    assert!(client.closed && client.warnings.is_empty());

    // The peer has only closed its sending side: it gets the reply.
    let mut client = Client::new();
    client.inbox.receive(&bytes(&lookup("hash:/t", "a")), []);
    assert_eq!(
        shown(&client.end(&service, End::Closed)),
        "status␀0␀value␀1␀␀"
    );
    assert!(client.closed);

    let mut client = Client::new();
    client
        .inbox
        .receive(b"request\0lookup\0table\0hash:/t\0fl", []);
    assert_eq!(
        shown(&client.end(&service, End::Closed)),
        "status␀3␀value␀␀␀"
    );
    assert!(client.closed);
    assert_eq!(
        client.warnings,
        ["unexpected end-of-input from proxymap socket while reading input attribute name"]
    );
}

#[test]
fn replies_that_nobody_reads_stop_the_conversation() {
    let service = service(
        Role::Read,
        &[("hash:/t", Plan::with(&[("k", &"x".repeat(100_000))]))],
    );
    let mut client = Client::new();
    client.turn(&service);
    let request = bytes(&lookup("hash:/t", "k"));
    for _ in 0..50 {
        client.inbox.receive(&request, []);
    }
    let mut steps = 0;
    loop {
        let action = client.conversation.step(
            client.now,
            &mut client.inbox,
            &mut client.outbox,
            &service.tables,
            &mut client.warnings,
        );
        match action {
            Action::Run(job) => client
                .conversation
                .finish(job.run(), &mut client.outbox)
                .unwrap(),
            Action::Flush => break,
            other => panic!("{other:?}"),
        }
        steps += 1;
        assert!(steps < 10);
    }
    assert!(client.outbox.len() < 400_000);
    // What waits is served once there is room again.
    assert_eq!(
        client.turn(&service).len(),
        50 * (100_000 + "status00value000".len() + 1)
    );
}

#[test]
fn two_walks_do_not_disturb_each_other() {
    let service = service(Role::Read, &[("hash:/t", three())]);
    let (mut one, mut two) = (Client::new(), Client::new());
    let reply = |key: &str, value: &str| format!("status␀0␀key␀{key}␀value␀{value}␀␀");
    assert_eq!(one.say(&service, &next("hash:/t", 0)), reply("a", "1"));
    assert_eq!(two.say(&service, &next("hash:/t", 0)), reply("a", "1"));
    assert_eq!(one.say(&service, &next("hash:/t", 1)), reply("b", "2"));
    assert_eq!(two.say(&service, &next("hash:/t", 1)), reply("b", "2"));
    assert_eq!(one.say(&service, &next("hash:/t", 1)), reply("c", "3"));
    for _ in 0..2 {
        assert_eq!(
            one.say(&service, &next("hash:/t", 1)),
            "status␀1␀key␀␀value␀␀␀"
        );
    }
    assert_eq!(two.say(&service, &next("hash:/t", 1)), reply("c", "3"));
}

#[test]
fn a_walk_survives_a_new_connection() {
    let service = service(Role::Read, &[("hash:/t", three())]);
    let mut client = Client::new();
    client.say(&service, &next("hash:/t", 0));
    drop(client);
    let mut client = Client::new();
    assert_eq!(
        client.say(&service, &next("hash:/t", 1)),
        "status␀0␀key␀b␀value␀2␀␀"
    );
    // Taken by one, it is not there for another.
    assert_eq!(
        Client::new().say(&service, &next("hash:/t", 1)),
        "status␀2␀key␀␀value␀␀␀"
    );
}

#[test]
fn next_without_first_asks_to_start_anew() {
    let service = service(Role::Read, &[("hash:/t", three())]);
    for flags in ["flags␀0", "instance_flags␀0␀flags␀7"] {
        let request = format!("request␀sequence␀table␀hash:/t␀{flags}␀function␀1␀␀");
        assert!(
            Client::new()
                .say(&service, &request)
                .starts_with("status␀2␀")
        );
    }
    // A finished walk is not left behind.
    let mut client = Client::new();
    for function in [0, 1, 1, 1] {
        client.say(&service, &next("hash:/t", function));
    }
    drop(client);
    assert!(
        Client::new()
            .say(&service, &next("hash:/t", 1))
            .starts_with("status␀2␀")
    );
}

#[test]
fn an_operation_that_a_type_lacks_is_no_reason_to_end() {
    let plan = Plan {
        sequence: false,
        own: 32,
        ..three()
    };
    let service = service(Role::Read, &[("regexp:/r", plan)]);
    for function in [1, 0, 1] {
        assert_eq!(
            Client::new().say(&service, &next("regexp:/r", function)),
            "status␀5␀key␀␀value␀␀␀"
        );
    }
    assert_eq!(
        logged(),
        ["warning: table regexp:/r: sequence operation is not supported"]
    );
}

#[test]
fn odd_flags_are_harmless() {
    let service = service(Role::Write, &[("hash:/t", Plan { own: 28, ..three() })]);
    let mut client = Client::new();
    for flags in [
        "0",
        "-1",
        "4294967295",
        "1024",
        "18446744073709551616",
        "2147483648",
        "65600",
    ] {
        for request in [
            format!("request␀open␀table␀hash:/t␀flags␀{flags}␀␀"),
            format!("request␀open␀table␀hash:/t␀instance_flags␀{flags}␀␀"),
            format!("request␀lookup␀table␀hash:/t␀flags␀{flags}␀key␀a␀␀"),
            format!("request␀lookup␀table␀hash:/t␀instance_flags␀{flags}␀flags␀{flags}␀key␀a␀␀"),
            format!(
                "request␀update␀table␀hash:/t␀instance_flags␀{flags}␀flags␀{flags}␀key␀a␀value␀1␀␀"
            ),
            format!(
                "request␀sequence␀table␀hash:/t␀instance_flags␀{flags}␀flags␀{flags}␀function␀0␀␀"
            ),
        ] {
            let reply = client.say(&service, &request);
            assert!(reply.starts_with("status␀0␀"), "{request}: {reply}");
        }
    }
    let own = Flags::FIXED | Flags::TRY0NULL | Flags::TRY1NULL;
    for (_, flags) in service.registry.asked.lock().unwrap().iter() {
        assert!(flags.contains(own), "{flags:?}");
    }
    for (_, _, flags) in service.registry.opened.lock().unwrap().iter() {
        assert!(!flags.contains(Flags::LOCK | Flags::OPEN_LOCK), "{flags:?}");
        assert!(
            !flags.intersects(Flags::IMPLEMENTATION | Flags::UTF8_ACTIVE),
            "{flags:?}"
        );
    }
}

#[test]
fn flags_of_one_client_are_not_seen_by_another() {
    let service = service(Role::Read, &[("hash:/t", Plan { own: 28, ..three() })]);
    Client::new().say(&service, &lookup("hash:/t", "a"));
    assert_eq!(
        Client::new().say(&service, "request␀open␀table␀hash:/t␀flags␀0␀␀"),
        "status␀0␀flags␀28␀␀"
    );
    // Nor does the first request decide how the table is opened.
    let opened = service.registry.opened.lock().unwrap();
    assert_eq!(opened.len(), 1);
    assert_eq!(opened[0].2, Flags::empty());
}

#[test]
fn number_of_instances_is_bounded() {
    let service = service(Role::Read, &[("hash:/t", three()), ("hash:/u", three())]);
    let mut client = Client::new();
    client.say(&service, &lookup("hash:/u", "a"));
    for flags in 0..2000u32 {
        client.now += Duration::from_millis(1);
        let request = format!(
            "request␀lookup␀table␀hash:/t␀instance_flags␀{}␀flags␀0␀key␀a␀␀",
            flags << 2
        );
        assert!(client.say(&service, &request).starts_with("status␀0␀"));
        // The one in use stays.
        client.say(&service, &lookup("hash:/t", "a"));
    }
    assert_eq!(
        service.tables.instances(),
        Settings::default().instances + 1
    );
    let opened = service.registry.opened.lock().unwrap();
    let plain = opened
        .iter()
        .filter(|(name, _, flags)| name == "hash:/t" && flags.is_empty());
    assert_eq!(plain.count(), 1);
}

#[test]
fn values_end_at_a_nul_byte() {
    let plan = Plan {
        entries: vec![(b"k".to_vec(), b"x\0status\x000\0".to_vec())],
        ..Plan::default()
    };
    let service = service(Role::Read, &[("hash:/t", plan)]);
    assert_eq!(
        Client::new().say(&service, &lookup("hash:/t", "k")),
        "status␀0␀value␀x␀␀"
    );
}

#[test]
fn large_values_pass() {
    let large = "x".repeat(1 << 20);
    for latency in [Latency::Memory, Latency::Blocking] {
        let plan = Plan {
            latency,
            ..Plan::with(&[("k", &large), ("s", "v")])
        };
        let service = service(Role::Read, &[("hash:/t", plan)]);
        let mut client = Client::new();
        for _ in 0..2 {
            let reply = client.say(&service, &lookup("hash:/t", "k"));
            assert_eq!(reply, format!("status␀0␀value␀{large}␀␀"));
            assert_eq!(
                client.say(&service, &lookup("hash:/t", "s")),
                "status␀0␀value␀v␀␀"
            );
        }
    }
}

#[test]
fn a_key_of_a_job_is_not_left_in_its_buffer() {
    let plan = Plan {
        latency: Latency::Blocking,
        ..three()
    };
    let service = service(Role::Write, &[("hash:/t", plan)]);
    let mut client = Client::new();
    let update = "request␀update␀table␀hash:/t␀flags␀0␀key␀long key␀value␀long value␀␀";
    assert_eq!(client.say(&service, update), "status␀0␀␀");
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "a")),
        "status␀0␀value␀1␀␀"
    );
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "x")),
        "status␀1␀value␀␀␀"
    );
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "long key")),
        "status␀0␀value␀long value␀␀"
    );
}

#[test]
fn more_tables_than_a_conversation_remembers() {
    let names: Vec<String> = (0..20).map(|number| format!("hash:/{number}")).collect();
    let plans: Vec<(&str, Plan)> = names
        .iter()
        .map(|name| (name.as_str(), Plan::with(&[("k", name)])))
        .collect();
    let service = service(Role::Read, &plans);
    let mut client = Client::new();
    for _ in 0..3 {
        for name in &names {
            let reply = client.say(&service, &lookup(&format!("proxy:{name}"), "k"));
            assert_eq!(reply, format!("status␀0␀value␀{name}␀␀"));
        }
    }
}

#[test]
fn counts_of_caches_are_added_up_over_the_ways_in_which_they_are_open() {
    let counts = CacheCounts {
        hits: 3,
        bytes: 5,
        ..CacheCounts::default()
    };
    let plan = Plan {
        cached: Some(counts),
        ..three()
    };
    let service = service(Role::Read, &[("cache:t", plan), ("hash:/t", three())]);
    let found = || service.tables.cache_counts().collect::<Vec<_>>();
    assert_eq!(found(), []);
    let mut client = Client::new();
    client.say(&service, &lookup("hash:/t", "a"));
    client.say(&service, &lookup("cache:t", "a"));
    assert_eq!(found(), [(&b"cache:t"[..], counts)]);
    client.say(
        &service,
        "request␀lookup␀table␀cache:t␀instance_flags␀64␀flags␀64␀key␀a␀␀",
    );
    let twice = CacheCounts {
        hits: 6,
        bytes: 10,
        ..CacheCounts::default()
    };
    assert_eq!(found(), [(&b"cache:t"[..], twice)]);
}
