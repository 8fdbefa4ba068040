//! What an `ldap:` table reads: its configuration, filters and URLs, and the messages of servers.

use postkeep_conf::Release;
use postkeep_remote::config::Config;
use postkeep_table::TableName;
use postkeep_tables::ldap_rules::{
    Fault, Keys, Malformed, Reply, Url, encode_filter, first_message, parse, quote, quote_name,
};

/// The most bytes of a message, and strings of an answer; small, so that a fuzzer gets at them.
const MESSAGE_LIMIT: usize = 300;
const STRING_LIMIT: usize = 20;

/// Messages are the same whole and byte by byte, what is read of them is in them, and no limit is passed.
pub fn ldap_replies(data: &[u8]) {
    let mut rest = data;
    let mut room = STRING_LIMIT;
    loop {
        let whole = first_message(rest, MESSAGE_LIMIT);
        let mut parts = Ok(None);
        for end in 0..=rest.len() {
            parts = first_message(&rest[..end], MESSAGE_LIMIT);
            if parts != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, parts);
        let Ok(Some(length)) = whole else { return };
        assert!(length <= rest.len().min(MESSAGE_LIMIT));
        let (message, after) = rest.split_at(length);
        let before = room;
        match parse(message, &mut room) {
            Ok((_, reply)) => {
                let strings = strings(&reply);
                assert_eq!(strings.len(), before - room);
                // Two bytes each are for the head.
                let size: usize = strings.iter().map(|string| string.len() + 2).sum();
                assert!(size <= message.len());
                for url in strings {
                    let _ = Url::parse(url);
                }
            }
            Err(Fault::TooMuch) => {
                assert_eq!(room, 0);
                return;
            }
            Err(Fault::Malformed(Malformed)) => return,
        }
        rest = after;
    }
}

fn strings(reply: &Reply) -> Vec<&Vec<u8>> {
    match reply {
        Reply::Entry(attributes) => attributes
            .iter()
            .flat_map(|attribute| [&attribute.name].into_iter().chain(&attribute.values))
            .collect(),
        Reply::Reference(urls) => urls.iter().collect(),
        Reply::SearchDone(done) | Reply::Done(done) => done.referrals.iter().collect(),
        Reply::Other => Vec::new(),
    }
}

/// Elements that are complete, to the last one inside.
fn check_elements(mut rest: &[u8], depth: usize) {
    assert!(depth < 60);
    while let [tag, after @ ..] = rest {
        let (length, after) = match after {
            [short @ ..0x80, after @ ..] => (usize::from(*short), after),
            [long, after @ ..] => {
                let (digits, after) = after.split_at(usize::from(long & 0x7f));
                let add = |length, &digit: &u8| length << 8 | usize::from(digit);
                (digits.iter().fold(0, add), after)
            }
            [] => panic!("an element without a length"),
        };
        let (contents, after) = after.split_at(length);
        if tag & 0x20 != 0 {
            check_elements(contents, depth + 1);
        }
        rest = after;
    }
}

/// The first line is a filter, the second a URL, the third a key: a key is data wherever it stands, and what is read is
/// refused or kept.
pub fn ldap_rules(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (filter, url, key) = (next(), next(), next());
    if let Some(encoded) = encode_filter(filter) {
        check_elements(&encoded, 0);
    }
    if let Ok(url) = Url::parse(url) {
        let parts = [url.host, url.base.unwrap_or_default()];
        let attributes = url.attributes.iter().map(|name| name.len() + 1);
        let kept = parts.iter().map(Vec::len).sum::<usize>() + attributes.sum::<usize>();
        assert!(kept <= data.len());
        if let Some(filter) = url.filter {
            assert!(!filter.is_empty());
            let _ = encode_filter(&filter);
        }
    }
    // In a filter, the key is the one value.
    let mut text = b"(a=".to_vec();
    quote(key, &mut text);
    text.push(b')');
    if let Some(encoded) = encode_filter(&text) {
        let name_at = encoded.windows(3).position(|window| window == b"\x04\x01a");
        assert!(encoded[0] == 0xa3 && name_at.is_some() && encoded.ends_with(key));
    } else {
        assert!(text.len() > 1000);
    }
    // In a name, it ends no part of it.
    let mut name = Vec::new();
    quote_name(key, &mut name);
    assert!(!name.iter().any(|byte| b",+;<>\"# ".contains(byte)));
}

/// The first line is a key, the rest a configuration: it is read, or refused in words that name it, and the message for
/// the key is complete.
pub fn ldap_cf(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let (key, text) = (parts.next(), parts.next());
    let (Some(key), Some(text)) = (key, text) else {
        return;
    };
    let (Ok(config), Ok(table)) = (
        Config::parse(b"/t.cf", text.to_vec(), Release::V3_7),
        TableName::parse(b"ldap:/t.cf"),
    ) else {
        return;
    };
    match Keys::parse(&config) {
        Ok(keys) => {
            if let Some(message) = keys.message(&table, key) {
                check_elements(&message, 0);
            }
        }
        Err(fault) => {
            let fault = fault.to_string();
            assert!(fault.contains("/t.cf: "), "{fault}");
        }
    }
}
