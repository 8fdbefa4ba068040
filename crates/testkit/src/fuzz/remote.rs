//! What tables behind a server read: their configuration, their templates, and the replies of servers.

use std::time::Duration;

use postkeep_conf::Release;
use postkeep_remote::config::{Config, statement};
use postkeep_remote::domain::{Domains, Verdict};
use postkeep_remote::socketmap::{Reply, netstring};
use postkeep_remote::tcp_table;
use postkeep_remote::template::{Answer, Needs, Piece, RESULT_LIMIT};
use postkeep_table::TableName;

/// A table's configuration file is read or refused, in words that name it; a fault has a hint where a key is to blame.
pub fn table_cf(data: &[u8]) {
    let Ok(config) = Config::parse(b"/t.cf", data.to_vec(), Release::V3_7) else {
        return;
    };
    for key in ["a", "hosts", "query", "x"] {
        let faults = [
            config.int(key, 5, 1, 100).err(),
            config.boolean(key, true).err(),
            config.text(key, "default", 2, 5).err(),
            config
                .time(key, Duration::ZERO, Duration::ZERO, Duration::from_mins(1))
                .err(),
        ];
        for fault in faults.into_iter().flatten() {
            assert!(fault.to_string().starts_with("/t.cf: "));
            assert!(fault.hint().is_some_and(|hint| hint.contains(key)));
        }
        if let Ok(number) = config.int(key, 5, 1, 100) {
            assert!((1..=100).contains(&number));
        }
    }
    if let Ok(text) = statement(&config, true) {
        assert!(!text.is_empty());
    }
    let domains = Domains::read(&config, &mut |_| Ok(data.to_vec()), &mut |_| {
        Err("no tables".to_owned())
    });
    if let Ok(domains) = domains {
        for key in [&b"u@a"[..], b"a", b"@a", b"u@", b""] {
            assert!(!matches!(domains.verdict(key), Verdict::Ask(_)));
        }
    }
}

/// The first line is a query template, the second a result template, the third a key, the rest are values: parts of
/// the key are quoted each time, text of the template never, and no result is too large.
pub fn table_templates(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (query, result, key) = (next(), next(), next());
    let mut needs = Needs::default();
    let (Ok(query), Ok(result)) = (needs.query("/t.cf", query), needs.result("/t.cf", result))
    else {
        return;
    };
    let Ok(table) = TableName::parse(b"sqlite:/t.cf") else {
        return;
    };
    let Some(key) = needs.key(&table, key) else {
        return;
    };
    let (mut text, mut quoted) = (Vec::new(), 0);
    key.expand(
        &query,
        |part, _| {
            assert!(part.len() <= key.whole().len());
            quoted += 1;
        },
        &mut text,
    );
    let (mut literal, mut codes) = (Vec::new(), 0);
    for piece in query.pieces() {
        match piece {
            Piece::Text(part) => literal.extend_from_slice(part),
            _ => codes += 1,
        }
    }
    assert_eq!((text, quoted), (literal, codes));
    let mut answer = Answer::new(&table, needs, &result, &key, 3);
    for value in lines {
        if answer.add(Some(value)).is_err() {
            return;
        }
    }
    assert!(
        answer
            .finish()
            .is_none_or(|value| value.len() <= RESULT_LIMIT)
    );
}

/// A reply is read the same whole and byte by byte, and nothing beyond its end is looked at.
pub fn socketmap_replies(data: &[u8]) {
    let whole = netstring(data, 1000);
    let mut parts = Ok(None);
    for end in 0..=data.len() {
        parts = netstring(&data[..end], 1000);
        if parts != Ok(None) {
            break;
        }
    }
    match (whole, parts) {
        (Ok(Some(whole)), Ok(Some(part))) => {
            assert_eq!(whole, part);
            assert!(whole.consumed <= data.len() && whole.payload.len() <= 1000);
            match Reply::parse(whole.payload) {
                Reply::Found(value) => {
                    assert!(value.is_none_or(|value| !value.contains(&0)));
                }
                Reply::Failed(_, reason) => assert!(reason.len() <= 200),
                Reply::Absent => {}
            }
        }
        (whole, parts) => assert_eq!(whole, parts),
    }
}

/// A line is within its limit and ends where the first newline is; a value has no NUL.
pub fn tcp_replies(data: &[u8]) {
    let mut request = Vec::new();
    tcp_table::request(data, &mut request);
    assert!(request.len() <= 3 * data.len() + 5);
    let newline = request.iter().position(|&byte| byte == b'\n');
    assert_eq!(newline, Some(request.len() - 1));
    if let Ok(Some(line)) = tcp_table::line(data) {
        assert!(line.len() < tcp_table::LINE_LIMIT && !line.contains(&b'\n'));
        match tcp_table::Reply::parse(line) {
            tcp_table::Reply::Found(value) => assert!(!value.contains(&0)),
            tcp_table::Reply::BadStatus(shown) | tcp_table::Reply::Malformed(shown) => {
                assert!(shown.len() <= 100);
            }
            tcp_table::Reply::Absent | tcp_table::Reply::Temporary => {}
        }
    }
}

/// Answers of memcached: what is read of them stays within its limits, and in the answer.
pub fn memcache_replies(data: &[u8]) {
    use postkeep_remote::memcache::{Found, Limits, found, is_key, line, set};
    let limits = Limits { line: 20, data: 30 };
    if let Ok(Some((text, consumed))) = line(data, limits.line) {
        assert!(text.len() <= limits.line && consumed <= data.len());
        assert!(!text.contains(&b'\n'));
    }
    if let Ok(Some((answer, consumed))) = found(data, limits) {
        assert!(consumed <= data.len());
        match answer {
            Found::Value { value, .. } => assert!(value.len() <= limits.data),
            Found::Unexpected(text) => assert!(text.len() <= limits.line),
            Found::Absent | Found::Broken => {}
        }
    }
    let (key, value) = data.split_at(data.len() / 2);
    if is_key(key, false) {
        let mut request = Vec::new();
        set(key, 0, 0, value, &mut request);
        // The key ends nothing: the first line is one of five words.
        let (head, length) = line(&request, request.len())
            .ok()
            .flatten()
            .unwrap_or_default();
        assert_eq!(head.split(|&byte| byte == b' ').count(), 5);
        assert_eq!(length + value.len() + 2, request.len());
    }
}
