//! Malformed requests: what Postfix's own daemons reply and log, and that ours do the same or, where the table
//! says so, better.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::conversation::{Outcome, Step, play};
use postkeep_testkit::attributes::{list, push, show};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn, real_postfix};

/// What is expected of ours.
enum Ours {
    /// Reply, log and fate of the connection are the reference's.
    Same,
    /// Deliberately different; the reason, then what ours does.
    Better {
        why: &'static str,
        holds: fn(&Outcome) -> bool,
    },
}

struct Case {
    name: &'static str,
    service: &'static str,
    steps: Vec<Step>,
    ours: Ours,
    /// The reference is left dead or spinning: nobody else may meet the process afterwards.
    last: bool,
    /// What the reference does depends on who is faster.
    chance: bool,
}

impl Case {
    fn better(mut self, why: &'static str, holds: fn(&Outcome) -> bool) -> Self {
        self.ours = Ours::Better { why, holds };
        self
    }

    fn last(mut self) -> Self {
        self.last = true;
        self
    }

    fn chance(mut self) -> Self {
        self.chance = true;
        self
    }
}

fn case(service: &'static str, name: &'static str, steps: Vec<Step>) -> Case {
    Case {
        name,
        service,
        steps,
        ours: Ours::Same,
        last: false,
        chance: false,
    }
}

fn send(bytes: &[u8]) -> Vec<Step> {
    vec![Step::Send(bytes.to_vec())]
}

fn attributes(attributes: &[(&str, &str)]) -> Vec<Step> {
    send(&list(attributes))
}

fn half(bytes: &[u8]) -> Vec<Step> {
    vec![Step::Send(bytes.to_vec()), Step::Finish]
}

const PROMPT: &[u8] = b"dummy\0\0\0";
const SAVE: &[(&str, &str)] = &[
    ("request", "save_endp"),
    ("ttl", "5"),
    ("label", "saved"),
    ("property", "p"),
];

fn save_endpoint(then: Vec<Step>) -> Vec<Step> {
    let mut steps = attributes(SAVE);
    steps.push(Step::Await(PROMPT.to_vec()));
    steps.extend(then);
    steps
}

/// Saves a session, finds it again, and goes on from the status that precedes the descriptor.
fn found(label: &str, then: Vec<Step>) -> Vec<Step> {
    let mut steps = attributes(&[
        ("request", "save_endp"),
        ("ttl", "5"),
        ("label", label),
        ("property", "p"),
    ]);
    steps.extend([
        Step::Await(PROMPT.to_vec()),
        Step::SendWith(vec![0], 1),
        Step::Await(list(&[("status", "0")])),
        Step::Send(list(&[("request", "find_endp"), ("label", label)])),
        Step::Await(list(&[("status", "0"), ("property", "p")])),
    ]);
    steps.extend(then);
    steps
}

fn ttl(text: &'static str) -> Vec<Step> {
    attributes(&[
        ("request", "save_dest"),
        ("ttl", text),
        ("label", "d"),
        ("property", "p"),
        ("label", "e"),
    ])
}

fn flags(text: &'static str) -> Vec<Step> {
    attributes(&[
        ("request", "lookup"),
        ("table", "static:yes"),
        ("flags", text),
        ("key", "k"),
    ])
}

fn lookup(table: &str) -> Vec<Step> {
    attributes(&[
        ("request", "lookup"),
        ("table", table),
        ("flags", "0"),
        ("key", "k"),
    ])
}

fn sequence(table: &str, function: &str) -> Vec<Step> {
    attributes(&[
        ("request", "sequence"),
        ("table", table),
        ("flags", "0"),
        ("function", function),
    ])
}

fn raw(parts: &[(&[u8], &[u8])]) -> Vec<Step> {
    let mut bytes = Vec::new();
    for (name, value) in parts {
        push(&mut bytes, name, value);
    }
    bytes.push(0);
    send(&bytes)
}

fn scache_cases() -> Vec<Case> {
    let scache = |name, steps| case("scache", name, steps);
    let long = "x".repeat(200_000);
    vec![
        scache("an empty list", send(b"\0")),
        scache("three empty lists", send(b"\0\0\0")),
        scache("another first attribute", attributes(&[("foo", "bar")])),
        scache(
            "another first attribute, then a request",
            attributes(&[("foo", "find_dest"), ("label", "x")]),
        ),
        scache("the first attribute in upper case", attributes(&[("Request", "find_dest")])),
        scache("unknown request", attributes(&[("request", "no_such")])),
        scache(
            "unknown request with attributes",
            attributes(&[("request", "no_such"), ("label", "x"), ("more", "y")]),
        ),
        scache("empty request", attributes(&[("request", "")])),
        scache("request of unprintable bytes", raw(&[(b"request", b"a\x01\xff\xfeb\n")])),
        scache("find_endp without label", attributes(&[("request", "find_endp")])),
        scache("find_dest without label", attributes(&[("request", "find_dest")])),
        scache(
            "find_dest with another attribute",
            attributes(&[("request", "find_dest"), ("property", "x")]),
        ),
        scache(
            "find_endp with one attribute more",
            attributes(&[("request", "find_endp"), ("label", "none"), ("extra", "x")]),
        ),
        scache(
            "find_dest with the label twice",
            attributes(&[("request", "find_dest"), ("label", "none"), ("label", "none")]),
        ),
        scache("save_dest alone", attributes(&[("request", "save_dest")])),
        scache(
            "save_dest up to ttl",
            attributes(&[("request", "save_dest"), ("ttl", "5")]),
        ),
        scache(
            "save_dest up to the first label",
            attributes(&[("request", "save_dest"), ("ttl", "5"), ("label", "d")]),
        ),
        scache(
            "save_dest up to property",
            attributes(&[("request", "save_dest"), ("ttl", "5"), ("label", "d"), ("property", "p")]),
        ),
        scache(
            "save_dest with one attribute more",
            attributes(&[
                ("request", "save_dest"),
                ("ttl", "1"),
                ("label", "d"),
                ("property", "p"),
                ("label", "e"),
                ("label", "f"),
            ]),
        ),
        scache(
            "save_dest in another order",
            attributes(&[
                ("request", "save_dest"),
                ("label", "d"),
                ("ttl", "1"),
                ("property", "p"),
                ("label", "e"),
            ]),
        ),
        scache("save_endp alone", attributes(&[("request", "save_endp")])),
        scache("save_endp without property", attributes(&SAVE[..3])),
        scache(
            "save_endp with a bad ttl",
            attributes(&[
                ("request", "save_endp"),
                ("ttl", "soon"),
                ("label", "l"),
                ("property", "p"),
            ]),
        ),
        scache(
            "save_endp with ttl 0",
            attributes(&[
                ("request", "save_endp"),
                ("ttl", "0"),
                ("label", "l"),
                ("property", "p"),
            ]),
        ),
        scache("ttl: empty", ttl("")),
        scache("ttl: a word", ttl("abc")),
        scache("ttl: digits and a blank", ttl("1 ")),
        scache("ttl: hexadecimal", ttl("0x10")),
        scache("ttl: a fraction", ttl("1.5")),
        scache("ttl: an exponent", ttl("1e3")),
        scache("ttl: two signs", ttl("--1")),
        scache("ttl: a sign apart", ttl("- 7")),
        scache("ttl: a trailing control character", ttl("1\u{1}")),
        scache("ttl: zero", ttl("0")),
        scache("ttl: minus one", ttl("-1")),
        scache("ttl: 2 to the 31st", ttl("2147483648")),
        scache("ttl: 2 to the 32nd", ttl("4294967296")),
        scache("ttl: 2 to the 32nd and one", ttl("4294967297")),
        scache("ttl: more digits than any number", ttl("99999999999999999999999")),
        scache("ttl: leading blanks and a plus", ttl(" \t+1")),
        scache("ttl: leading zeros", ttl("0001")),
        scache(
            "a group where an attribute is wanted",
            send(b"request\0find_endp\0{\0label\0x\0}\0\0"),
        ),
        scache("a label of 200,000 bytes", attributes(&[("request", "find_endp"), ("label", &long)])),
        scache(
            "an unknown request of 10,000 bytes",
            attributes(&[("request", &long[..10_000])]),
        ),
        scache("half closed in a name", half(b"requ")),
        scache("half closed after a name", half(b"request\0")),
        scache("half closed in a value", half(b"request\0find_")),
        scache("half closed after the request", half(b"request\0find_endp\0")),
        scache("half closed in the last value", half(b"request\0find_endp\0label\0x")),
        scache("half closed before the list's end", half(b"request\0find_endp\0label\0x\0")),
        scache("half closed after a whole request", half(b"request\0find_endp\0label\0x\0\0")),
        scache("half closed at once", vec![Step::Finish]),
        scache(
            "no descriptor with the byte",
            save_endpoint(vec![Step::Send(vec![0])]),
        ),
        scache(
            "another byte with the descriptor",
            save_endpoint(vec![
                Step::SendWith(b"X".to_vec(), 1),
                Step::Await(list(&[("status", "0")])),
            ]),
        ),
        scache(
            "two descriptors with the byte",
            save_endpoint(vec![Step::SendWith(vec![0], 2)]),
        ),
        scache(
            "three descriptors with the byte",
            save_endpoint(vec![Step::SendWith(vec![0], 3)]),
        ),
        scache("half closed instead of a descriptor", save_endpoint(vec![Step::Finish])),
        scache(
            "a request instead of a descriptor",
            save_endpoint(attributes(&[("request", "find_endp"), ("label", "none")])),
        ),
        scache(
            "another list instead of the first prompt",
            found("other-list", attributes(&[("request", "find_endp"), ("label", "none")])),
        ),
        scache("half closed instead of the first prompt", found("no-prompt", vec![Step::Finish])),
        scache(
            "an empty list instead of the first prompt",
            found("empty-prompt", send(b"\0")),
        ),
        scache(
            "half closed instead of the second prompt",
            found(
                "no-second",
                vec![Step::Send(PROMPT.to_vec()), Step::Await(vec![0]), Step::Finish],
            ),
        ),
        scache(
            "another list instead of the second prompt",
            found(
                "other-second",
                vec![
                    Step::Send(PROMPT.to_vec()),
                    Step::Await(vec![0]),
                    Step::Send(list(&[("nonsense", "")])),
                ],
            ),
        ),
        scache(
            "a descriptor nobody asked for",
            vec![Step::SendWith(list(&[("request", "find_endp"), ("label", "none")]), 1)],
        ),
        scache(
            "two requests in one write",
            send(
                &[
                    list(&[("request", "find_endp"), ("label", "one")]),
                    list(&[("request", "find_dest"), ("label", "two")]),
                ]
                .concat(),
            ),
        )
        .better("both are answered, the reference loses the second", |outcome| {
            outcome.reply.starts_with(
                "status\\02\\0property\\0\\0\\0status\\02\\0property\\0\\0property\\0\\0\\0",
            ) && outcome.answered
                && outcome.log.is_empty()
        }),
        scache(
            "the descriptor with the request",
            vec![
                Step::Send(list(SAVE)),
                Step::SendWith(vec![0], 1),
                Step::Await(list(&[("status", "0")])),
            ],
        )
        .better(
            "the descriptor is taken although it came before the prompt, where the reference loses it or not \
             by chance",
            |outcome| {
                outcome.reply.starts_with("dummy\\0\\0\\0status\\00\\0\\0")
                    && outcome.answered
                    && outcome.log.is_empty()
            },
        )
        .chance()
        .last(),
        scache(
            "silence in a request",
            vec![
                Step::Send(b"request\0find_endp\0lab".to_vec()),
                Step::Pause(1500),
            ],
        )
        .better(
            "the connection is closed after the time limit, where the reference keeps it and spins",
            |outcome| {
                outcome.closed
                    && outcome.reply.is_empty()
                    && outcome.log
                        == [
                            "warning: unexpected end-of-input from scache socket while reading input attribute name",
                            "warning: scache_find_endp_service: bad or missing request parameter",
                        ]
            },
        )
        .last(),
    ]
}

fn proxymap_cases() -> Vec<Case> {
    let proxymap = |name, steps| case("proxymap", name, steps);
    let proxywrite = |name, steps| case("proxywrite", name, steps);
    let long = "k".repeat(200_000);
    vec![
        proxymap("an empty list", send(b"\0")),
        proxymap("another first attribute", attributes(&[("foo", "bar")])),
        proxymap("unknown request", attributes(&[("request", "no_such")])),
        proxymap(
            "unknown request with attributes",
            attributes(&[("request", "close"), ("table", "static:yes"), ("flags", "0")]),
        ),
        proxymap("empty request", attributes(&[("request", "")])),
        proxymap("open alone", attributes(&[("request", "open")])),
        proxymap(
            "open without flags",
            attributes(&[("request", "open"), ("table", "static:yes")]),
        ),
        proxymap(
            "open with one attribute more",
            attributes(&[
                ("request", "open"),
                ("table", "static:yes"),
                ("flags", "0"),
                ("extra", "x"),
            ]),
        ),
        proxymap("lookup alone", attributes(&[("request", "lookup")])),
        proxymap(
            "lookup without key",
            attributes(&[("request", "lookup"), ("table", "static:yes"), ("flags", "0")]),
        ),
        proxymap(
            "lookup in another order",
            attributes(&[
                ("request", "lookup"),
                ("flags", "0"),
                ("table", "static:yes"),
                ("key", "k"),
            ]),
        ),
        proxymap(
            "lookup with one attribute more",
            attributes(&[
                ("request", "lookup"),
                ("table", "static:yes"),
                ("flags", "0"),
                ("key", "k"),
                ("key", "l"),
            ]),
        ),
        proxymap("flags: empty", flags("")),
        proxymap("flags: a word", flags("lock")),
        proxymap("flags: hexadecimal", flags("0x40")),
        proxymap("flags: trailing blank", flags("64 ")),
        proxymap("flags: a blank and a plus before", flags(" +64")),
        proxymap("flags: a bit nobody knows", flags("1024")),
        proxymap("table without a colon", lookup("nocolon")),
        proxymap("empty table", lookup("")),
        proxymap("only prefixes", lookup("proxy:proxy:")),
        proxymap("prefixes before an approved table", lookup("proxy:proxy:static:yes")),
        proxymap("prefix in other letters", lookup("Proxy:static:yes")),
        proxymap("unapproved table", lookup("static:no")),
        proxymap("unapproved table without a name", lookup("static:")),
        proxymap("unapproved table with unprintable bytes", lookup("static:\u{1}\u{7f}\n")),
        proxymap("approved table of an unknown type", lookup("nosuch:x")),
        proxymap("approved table without its file", lookup("texthash:/nonexistent/file")),
        proxymap("approved table that always fails", lookup("fail:x")),
        proxymap(
            "update of a table that is only read",
            attributes(&[
                ("request", "update"),
                ("table", "static:yes"),
                ("flags", "0"),
                ("key", "k"),
                ("value", "v"),
            ]),
        ),
        proxymap(
            "update without value",
            attributes(&[
                ("request", "update"),
                ("table", "static:yes"),
                ("flags", "0"),
                ("key", "k"),
            ]),
        ),
        proxymap(
            "delete from an unapproved table that is only read",
            attributes(&[
                ("request", "delete"),
                ("table", "static:no"),
                ("flags", "0"),
                ("key", "k"),
            ]),
        ),
        proxymap("sequence: function 2", sequence("inline:{a=1}", "2")),
        proxymap("sequence: function -1", sequence("inline:{a=1}", "-1")),
        proxymap("sequence: function a word", sequence("inline:{a=1}", "first")),
        proxymap("sequence in an unapproved table", sequence("inline:{b=1}", "0")),
        proxymap(
            "a key of 200,000 bytes",
            attributes(&[
                ("request", "lookup"),
                ("table", "inline:{a=1}"),
                ("flags", "0"),
                ("key", &long),
            ]),
        ),
        proxymap(
            "an empty key",
            attributes(&[
                ("request", "lookup"),
                ("table", "inline:{a=1}"),
                ("flags", "0"),
                ("key", ""),
            ]),
        ),
        proxymap(
            "a key that is not UTF-8",
            raw(&[
                (b"request", b"lookup"),
                (b"table", b"inline:{a=1}"),
                (b"flags", b"524353"),
                (b"key", b"\xff\xfe"),
            ]),
        ),
        proxymap(
            "a group where the key is wanted",
            send(b"request\0lookup\0table\0static:yes\0flags\x000\0{\0key\0k\0}\0\0"),
        ),
        proxymap("half closed in a name", half(b"requ")),
        proxymap("half closed after the request", half(b"request\0lookup\0")),
        proxymap("half closed in the table", half(b"request\0lookup\0table\0static:y")),
        proxymap(
            "half closed before the list's end",
            half(b"request\0lookup\0table\0static:yes\0flags\x000\0key\0k\0"),
        ),
        proxymap(
            "half closed after a whole request",
            half(b"request\0lookup\0table\0static:yes\0flags\x000\0key\0k\0\0"),
        ),
        proxymap("half closed at once", vec![Step::Finish]),
        proxymap(
            "a descriptor nobody asked for",
            vec![Step::SendWith(
                list(&[
                    ("request", "lookup"),
                    ("table", "static:yes"),
                    ("flags", "0"),
                    ("key", "k"),
                ]),
                1,
            )],
        ),
        proxymap(
            "two requests in one write",
            send(
                &[
                    list(&[
                        ("request", "lookup"),
                        ("table", "static:yes"),
                        ("flags", "0"),
                        ("key", "k"),
                    ]),
                    list(&[
                        ("request", "lookup"),
                        ("table", "inline:{a=1}"),
                        ("flags", "0"),
                        ("key", "a"),
                    ]),
                ]
                .concat(),
            ),
        )
        .better("both are answered, the reference loses the second", |outcome| {
            outcome
                .reply
                .starts_with("status\\00\\0value\\0yes\\0\\0status\\00\\0value\\01\\0\\0")
                && outcome.answered
                && outcome.log.is_empty()
        }),
        proxymap(
            "a request of the next generation",
            attributes(&[
                ("request", "lookup"),
                ("table", "static:yes"),
                ("instance_flags", "0"),
                ("flags", "0"),
                ("key", "k"),
            ]),
        )
        .better(
            "answered in its own generation, where a reference speaks only one",
            |outcome| {
                outcome.reply.starts_with("status\\00\\0flags\\0")
                    && outcome.reply.contains("\\0value\\0yes\\0\\0")
                    && outcome.answered
                    && outcome.log.is_empty()
            },
        ),
        proxymap("sequence where there is no order", sequence("static:yes", "0"))
            .better("an error reply, where the reference dies", |outcome| {
                outcome.reply.starts_with("status\\05\\0key\\0\\0value\\0\\0\\0")
                    && outcome.answered
                    && outcome.alive
            })
            .last(),
        proxymap("flags: all bits", flags("-1"))
            .better(
                "the table is unavailable, where the reference dies",
                |outcome| {
                    outcome.reply.starts_with("status\\02\\0value\\0\\0\\0")
                        && outcome.answered
                        && outcome.alive
                        && outcome.log
                            == [
                                "error: open yes: No such file or directory",
                                "warning: static:yes is unavailable. open yes: No such file or directory",
                            ]
                },
            )
            .last(),
        proxymap("approved table without a name", lookup("x:"))
            .better("an error reply, where the reference dies", |outcome| {
                outcome.answered && outcome.alive && outcome.reply.starts_with("status\\0")
            })
            .last(),
        proxymap(
            "silence in a request",
            vec![
                Step::Send(b"request\0lookup\0table\0static:y".to_vec()),
                Step::Pause(1500),
            ],
        )
        .better(
            "the connection is closed after the time limit, where the reference keeps it and spins",
            |outcome| {
                outcome.closed
                    && outcome.reply.is_empty()
                    && outcome.log
                        == [
                            "warning: unexpected end-of-input from proxymap socket while reading input attribute value",
                        ]
            },
        )
        .last(),
        proxywrite("unknown request", attributes(&[("request", "no_such")])),
        proxywrite(
            "update without value",
            attributes(&[
                ("request", "update"),
                ("table", "lmdb:$SCRATCH/data/w"),
                ("flags", "0"),
                ("key", "k"),
            ]),
        ),
        proxywrite(
            "update of an unapproved table",
            attributes(&[
                ("request", "update"),
                ("table", "static:no"),
                ("flags", "0"),
                ("key", "k"),
                ("value", "v"),
            ]),
        ),
        proxywrite(
            "update with an empty value",
            attributes(&[
                ("request", "update"),
                ("table", "lmdb:$SCRATCH/data/w"),
                ("flags", "0"),
                ("key", "empty"),
                ("value", ""),
            ]),
        ),
        proxywrite(
            "delete of what is not there",
            attributes(&[
                ("request", "delete"),
                ("table", "lmdb:$SCRATCH/data/w"),
                ("flags", "0"),
                ("key", "absent"),
            ]),
        ),
        proxywrite(
            "delete with a value",
            attributes(&[
                ("request", "delete"),
                ("table", "lmdb:$SCRATCH/data/w"),
                ("flags", "0"),
                ("key", "absent"),
                ("value", "v"),
            ]),
        ),
        proxywrite(
            "the approved table that cannot be written",
            attributes(&[
                ("request", "update"),
                ("table", "texthash:$SCRATCH/data/text"),
                ("flags", "0"),
                ("key", "k"),
                ("value", "v"),
            ]),
        ),
    ]
}

/// A daemon for `service`, and a request to probe it with: its answer is the same in both implementations.
fn start(implementation: Implementation, service: &str) -> Result<Option<StandIn>> {
    Plan::new(implementation, service)
        .parameter("max_use", "1000000")
        .parameter("ipc_timeout", "1s")
        .parameter("connection_cache_ttl_limit", "10s")
        // The far ends of the sessions here are closed, and compared is what is said about requests.
        .parameter("postkeep_connection_cache_liveness", "no")
        .parameter(
            "proxy_read_maps",
            "proxy:static:yes proxy:inline:{a=1} proxy:fail:x proxy:nosuch:x proxy:x: \
             proxy:texthash:/nonexistent/file",
        )
        .parameter(
            "proxy_write_maps",
            "proxy:lmdb:$SCRATCH/data/w proxy:texthash:$SCRATCH/data/text",
        )
        .start_in(Scratch::new("malformed")?)
}

fn probe(service: &str) -> (Vec<u8>, Vec<u8>) {
    match service {
        "scache" => (
            list(&[("request", "find_endp"), ("label", "probe")]),
            list(&[("status", "2"), ("property", "")]),
        ),
        "proxymap" => (
            list(&[
                ("request", "lookup"),
                ("table", "static:yes"),
                ("flags", "0"),
                ("key", "probe"),
            ]),
            list(&[("status", "0"), ("value", "yes")]),
        ),
        _ => (
            list(&[
                ("request", "lookup"),
                ("table", "unapproved:probe"),
                ("flags", "0"),
                ("key", "probe"),
            ]),
            list(&[("status", "4"), ("value", "")]),
        ),
    }
}

/// `$SCRATCH` in a step becomes the daemon's directory, and the other way round in what came back.
fn located(step: &Step, root: &str) -> Step {
    let replace = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.replace("$SCRATCH", root).into_bytes(),
        Err(_) => bytes.to_vec(),
    };
    match step {
        Step::Send(bytes) => Step::Send(replace(bytes)),
        other => other.clone(),
    }
}

fn outcomes(implementation: Implementation, cases: &[Case]) -> Result<Option<Vec<Outcome>>> {
    let mut daemons: BTreeMap<&str, StandIn> = BTreeMap::new();
    let mut outcomes = Vec::new();
    for case in cases {
        let mut fresh;
        let daemon = if case.last {
            let Some(started) = start(implementation, case.service)? else {
                return Ok(None);
            };
            fresh = started;
            &mut fresh
        } else {
            if !daemons.contains_key(case.service) {
                let Some(started) = start(implementation, case.service)? else {
                    return Ok(None);
                };
                daemons.insert(case.service, started);
            }
            daemons.get_mut(case.service).context("was just started")?
        };
        let root = daemon.scratch().display().to_string();
        let steps: Vec<Step> = case.steps.iter().map(|step| located(step, &root)).collect();
        let (request, answer) = probe(case.service);
        let mut outcome = play(daemon, &steps, &request, &answer)
            .with_context(|| format!("{}: {}", case.service, case.name))?;
        for line in &mut outcome.log {
            *line = line.replace(&root, "$SCRATCH");
            // What follows is a left-over error number of the reference.
            if let Some(at) = line.find("file descriptor: ") {
                line.truncate(at + "file descriptor".len());
            }
        }
        outcomes.push(outcome);
    }
    Ok(Some(outcomes))
}

/// One test at a time: outcomes are told by what comes within a short while.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn compare(cases: &[Case]) -> Result<()> {
    let _alone = alone();
    if real_postfix().is_none() {
        return Ok(());
    }
    let Some(control) = outcomes(Implementation::Postfix, cases)? else {
        return Ok(());
    };
    let Some(ours) = outcomes(Implementation::Postkeep, cases)? else {
        return Ok(());
    };
    let mut wrong = 0;
    for ((case, control), ours) in cases.iter().zip(&control).zip(&ours) {
        let (good, why) = match case.ours {
            Ours::Same => (ours == control, "as the reference"),
            Ours::Better { why, holds } => (holds(ours) && ours.alive, why),
        };
        if !good {
            wrong += 1;
            eprintln!(
                "{}: {}: expected {why}\n  reference: {control:?}\n  ours:      {ours:?}",
                case.service, case.name
            );
        }
    }
    println!(
        "{} kinds of malformed requests compared, {wrong} wrong",
        cases.len()
    );
    ensure!(wrong == 0, "{wrong} of {} differ", cases.len());
    Ok(())
}

/// The control by itself: what the cases say of the reference holds, and it survives all but the marked ones.
fn control(cases: &[Case]) -> Result<()> {
    let _alone = alone();
    if real_postfix().is_none() {
        return Ok(());
    }
    let Some(outcomes) = outcomes(Implementation::Postfix, cases)? else {
        return Ok(());
    };
    for (case, outcome) in cases.iter().zip(&outcomes) {
        println!("{}: {}: {outcome:?}", case.service, case.name);
        ensure!(
            outcome.alive || case.last,
            "{} killed the reference",
            case.name
        );
        if let Ours::Better { holds, .. } = case.ours
            && !case.chance
        {
            ensure!(!holds(outcome), "{}: the reference does it too", case.name);
        }
    }
    Ok(())
}

#[test]
fn control_scache() -> Result<()> {
    control(&scache_cases())
}

#[test]
fn control_proxymap() -> Result<()> {
    control(&proxymap_cases())
}

#[test]
fn scache_replies_and_logs_as_the_reference_or_better() -> Result<()> {
    compare(&scache_cases())
}

#[test]
fn proxymap_replies_and_logs_as_the_reference_or_better() -> Result<()> {
    compare(&proxymap_cases())
}

#[test]
fn there_are_forty_kinds_for_each_service() {
    assert!(scache_cases().len() >= 40);
    assert!(proxymap_cases().len() >= 40);
}

/// Mixed good and bad requests over connections that come and go; afterwards not one descriptor more is open.
fn hundred_thousand(implementation: Implementation, service: &str, cases: &[Case]) -> Result<()> {
    const REQUESTS: usize = 100_000;
    let _alone = alone();
    let Some(mut daemon) = start(implementation, service)? else {
        return Ok(());
    };
    let (good, answer) = probe(service);
    // Whole lists only.
    let bad: Vec<Vec<u8>> = cases
        .iter()
        .filter(|case| case.service == service && !case.last && matches!(case.ours, Ours::Same))
        .filter_map(|case| match case.steps.as_slice() {
            [Step::Send(bytes)] if bytes.len() < 1000 => Some(bytes.clone()),
            _ => None,
        })
        .collect();
    ensure!(bad.len() >= 20, "only {} bad requests to mix in", bad.len());
    let round = |daemon: &StandIn, requests: usize| -> Result<usize> {
        let mut sent = 0;
        let mut answered = 0;
        while sent < requests {
            let mut peer = daemon.connect_and_greet()?;
            for _ in 0..50 {
                sent += 1;
                if sent % 2 == 0 {
                    let reply = peer.exchange(&good).context("a good request")?;
                    ensure!(reply == answer, "{}", show(&reply));
                    answered += 1;
                    continue;
                }
                let request = &bad[sent / 2 % bad.len()];
                if request.starts_with(b"request\0") {
                    // Waited for: what is sent before the reply may be dropped with the bad request.
                    peer.exchange(request).with_context(|| show(request))?;
                } else {
                    // Never answered.
                    peer.send(request)?;
                    break;
                }
            }
        }
        Ok(answered)
    };
    let settled = |daemon: &StandIn| -> Result<usize> {
        let mut count = daemon.open_descriptors()?;
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(10));
            let now = daemon.open_descriptors()?;
            if now == count {
                return Ok(now);
            }
            count = now;
        }
        Ok(count)
    };
    round(&daemon, 2_000)?;
    let before = settled(&daemon)?;
    let answered = round(&daemon, REQUESTS)?;
    let after = settled(&daemon)?;
    println!(
        "{service}: {REQUESTS} requests, {answered} good ones answered, descriptors {before} -> {after}"
    );
    ensure!(daemon.is_running(), "the daemon ended");
    ensure!(
        answered * 10 >= REQUESTS * 3,
        "only {answered} good requests were answered"
    );
    ensure!(
        before == after,
        "descriptors: {before} before, {after} after"
    );
    Ok(())
}

#[test]
fn scache_leaks_nothing_over_100_000_requests() -> Result<()> {
    hundred_thousand(Implementation::Postkeep, "scache", &scache_cases())
}

#[test]
fn proxymap_leaks_nothing_over_100_000_requests() -> Result<()> {
    hundred_thousand(Implementation::Postkeep, "proxymap", &proxymap_cases())
}
