use std::path::Path;

use super::*;
use crate::scripted::Step::{AwaitEnd, Hear, LastOne, Say};
use crate::scripted::{Server, logged};

const GREETING: &[u8] = b"protocol\0proxymap_protocol\0\0";
const OPEN: &[u8] = b"request\0open\0table\0texthash:/t1\0flags\x000\0\0";
const OPEN_2: &[u8] = b"request\0open\0table\0texthash:/t1\0instance_flags\x000\0\0";
const LOOKUP: &[u8] = b"request\0lookup\0table\0texthash:/t1\0flags\x00524353\0key\0k1\0\0";
const FOUND: &[u8] = b"status\x000\0value\0v1\0\0";
const TABLE: &[u8] = b"texthash:/t1";

fn client(path: &Path, dialect: Dialect) -> Client {
    Client::new(Settings {
        dialect,
        limit: Duration::from_millis(200),
        policy: Policy {
            connects: 3,
            connect_delay: Duration::from_millis(10),
            sends: Some(3),
            send_delay: Duration::from_millis(10),
        },
        ..Settings::new(Place::Path(path.to_owned()), "proxymap")
    })
}

#[test]
fn generation_one_as_3_7_speaks_it() {
    let server = Server::start(vec![vec![
        Say(GREETING),
        Hear(OPEN),
        Say(b"status\x000\0flags\x0016\0\0"),
        Hear(LOOKUP),
        Say(FOUND),
        Hear(LOOKUP),
        Say(b"status\x001\0value\0\0\0"),
        Hear(b"request\0update\0table\0texthash:/t1\0flags\x001\0key\0k\0value\0v\0\0"),
        Say(b"status\x002\0\0"),
        Hear(b"request\0delete\0table\0texthash:/t1\0flags\x001\0key\0k\0\0"),
        Say(b"status\x005\0\0"),
        Hear(b"request\0sequence\0table\0texthash:/t1\0flags\x001\0function\x000\0\0"),
        Say(b"status\x000\0key\0k\0value\0v\0\0"),
        AwaitEnd,
    ]]);
    let mut client = client(&server.path(), Dialect::POSTFIX_3_6);
    // None of these bits tells instances apart.
    assert_eq!(client.open(TABLE, 540_737).unwrap().flags, Some(16));
    let answer = client.lookup(TABLE, 0, 524_353, b"k1").unwrap();
    assert_eq!((answer.status, &answer.value[..]), (Status::Ok, &b"v1"[..]));
    assert_eq!(
        client.lookup(TABLE, 0, 524_353, b"k1").unwrap().status,
        Status::NoKey
    );
    assert_eq!(
        client.update(TABLE, 0, 1, b"k", b"v").unwrap().status,
        Status::Retry
    );
    assert_eq!(
        client.delete(TABLE, 0, 1, b"k").unwrap().status,
        Status::Config
    );
    let answer = client.sequence(TABLE, 0, 1, Function::First).unwrap();
    assert_eq!((&answer.key[..], &answer.value[..]), (&b"k"[..], &b"v"[..]));
    drop(client);
    server.finish();
}

#[test]
fn generation_two_as_3_12_speaks_it() {
    let server = Server::start(vec![vec![
        Say(GREETING),
        Hear(b"request\0open\0table\0texthash:/t1\0instance_flags\x00540737\0\0"),
        Say(b"status\x000\0flags\x001589329\0\0"),
        Hear(b"request\0lookup\0table\0texthash:/t1\0instance_flags\x00540737\0flags\x001589329\0key\0k1\0\0"),
        Say(b"status\x000\0flags\x001589329\0value\0v1\0\0"),
        AwaitEnd,
    ]]);
    let mut client = client(&server.path(), Dialect::POSTFIX_3_11);
    let flags = client.open(TABLE, 540_737).unwrap().flags.unwrap();
    let answer = client.lookup(TABLE, 540_737, flags, b"k1").unwrap();
    assert_eq!(
        (answer.flags, &answer.value[..]),
        (Some(1_589_329), &b"v1"[..])
    );
    drop(client);
    server.finish();
}

#[test]
fn the_generation_is_found_out_at_the_first_open() {
    let server = Server::start(vec![vec![
        Say(GREETING),
        Hear(OPEN),
        Say(b"status\x003\0flags\x000\0\0"),
        Hear(OPEN_2),
        Say(b"status\x000\0flags\x0016\0\0"),
        AwaitEnd,
    ]]);
    let mut two = client(&server.path(), Dialect::DETECT);
    two.open(TABLE, 0).unwrap();
    assert_eq!(two.generation(), Some(Generation::Two));
    drop(two);
    server.finish();
    let server = Server::start(vec![vec![
        Say(GREETING),
        Hear(OPEN),
        Say(b"status\x000\0flags\x0016\0\0"),
        AwaitEnd,
    ]]);
    let mut one = client(&server.path(), Dialect::DETECT);
    one.open(TABLE, 0).unwrap();
    assert_eq!(one.generation(), Some(Generation::One));
    drop(one);
    server.finish();
}

#[test]
fn refusals_have_the_reference_s_words() {
    let bad = b"status\x003\0value\0\0\0";
    let server = Server::start(vec![vec![
        Hear(OPEN),
        Say(b"status\x004\0flags\x000\0\0"),
        Hear(LOOKUP),
        Say(bad),
        Hear(b"request\0update\0table\0texthash:/t1\0flags\x000\0key\0k\0value\0v\0\0"),
        Say(b"status\x004\0\0"),
        Hear(b"request\0sequence\0table\0texthash:/t1\0flags\x000\0function\x001\0\0"),
        Say(b"status\x003\0key\0\0value\0\0\0"),
        AwaitEnd,
    ]]);
    let mut client = client(&server.path(), Dialect::POSTFIX_3_0);
    let texts = [
        client.open(TABLE, 0).unwrap_err().to_string(),
        client
            .lookup(TABLE, 0, 524_353, b"k1")
            .unwrap_err()
            .to_string(),
        client
            .update(TABLE, 0, 0, b"k", b"v")
            .unwrap_err()
            .to_string(),
        client
            .sequence(TABLE, 0, 0, Function::Next)
            .unwrap_err()
            .to_string(),
    ];
    assert_eq!(
        texts,
        [
            "proxymap service is not configured for table \"texthash:/t1\"",
            "proxymap lookup failed for table \"texthash:/t1\" key \"k1\": invalid request",
            "proxymap update access is not configured for table \"texthash:/t1\"",
            "proxymap sequence failed for table \"texthash:/t1\" function 1: invalid request",
        ]
    );
    drop(client);
    server.finish();
}

#[test]
fn a_request_is_sent_again_when_the_server_ends() {
    let ended = || vec![Say(GREETING), Hear(LOOKUP)];
    let server = Server::start(vec![
        ended(),
        ended(),
        vec![Say(GREETING), Hear(LOOKUP), Say(FOUND), AwaitEnd],
    ]);
    let log = logged(|| {
        let mut client = client(&server.path(), Dialect::POSTFIX_3_6);
        assert_eq!(
            client.lookup(TABLE, 0, 524_353, b"k1").unwrap().value,
            b"v1"
        );
    });
    server.finish();
    // The first failure is nothing unusual.
    assert_eq!(
        log,
        ["dict_proxy_lookup: service proxymap: Application error"]
    );
}

#[test]
fn replies_that_make_no_sense_are_errors_in_the_end() {
    let strange = || {
        vec![
            Say(GREETING),
            Hear(LOOKUP),
            Say(b"status\x009\0value\0\0\0"),
            AwaitEnd,
        ]
    };
    let server = Server::start(vec![strange(), strange(), strange()]);
    let log = logged(|| {
        let mut client = client(&server.path(), Dialect::POSTFIX_3_6);
        let error = client.lookup(TABLE, 0, 524_353, b"k1").unwrap_err();
        assert!(matches!(error, Error::Exchange { .. }));
    });
    server.finish();
    let line =
        "proxymap lookup failed for table \"texthash:/t1\" key \"k1\": unexpected reply status 9";
    assert_eq!(log, [line; 3]);
}

#[test]
fn a_server_that_vanishes_is_looked_for_as_often_as_the_policy_says() {
    let server = Server::start(vec![vec![Say(GREETING), Hear(LOOKUP), Say(FOUND), LastOne]]);
    let shown = server.path().display().to_string();
    let log = logged(|| {
        let mut client = client(&server.path(), Dialect::POSTFIX_3_6);
        client.lookup(TABLE, 0, 524_353, b"k1").unwrap();
        client.disconnect();
        let error = client.lookup(TABLE, 0, 524_353, b"k1").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("connect #3 to subsystem {shown}: Connection refused")
        );
    });
    server.finish();
    assert_eq!(
        log,
        [1, 2].map(|number| format!("connect #{number} to subsystem {shown}: Connection refused"))
    );
}

#[test]
fn a_reply_with_an_attribute_too_many_is_a_failure_only_when_it_breaks_the_list() {
    let server = Server::start(vec![vec![
        Say(GREETING),
        Hear(LOOKUP),
        Say(b"status\x000\0value\0v1\0more\0x\0\0"),
        AwaitEnd,
    ]]);
    let shown = server.path().display().to_string();
    let log = logged(|| {
        let mut client = client(&server.path(), Dialect::POSTFIX_3_6);
        assert_eq!(
            client.lookup(TABLE, 0, 524_353, b"k1").unwrap().value,
            b"v1"
        );
    });
    server.finish();
    assert_eq!(
        log,
        [format!(
            "unexpected attribute more from {shown} socket (expecting: (list terminator))"
        )]
    );
}
