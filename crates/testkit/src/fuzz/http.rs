//! What an `http:` table reads: its URL, body, headers, statuses and path, and the documents of servers.

use std::str;

use postkeep_remote::template::{Needs, Piece, Template};
use postkeep_table::TableName;
use postkeep_tables::http_rules::{
    BodyFormat, DocumentError, StatusMap, TARGET_LIMIT, Url, ValuePath, headers, is_text, lines,
    percent_encode,
};

/// How often codes stand in a template, and how many bytes of it stand for themselves.
fn measure(template: &Template) -> (usize, usize) {
    let mut counts = (0, 0);
    for piece in template.pieces() {
        match piece {
            Piece::Text(text) => counts.1 += text.len(),
            _ => counts.0 += 1,
        }
    }
    counts
}

/// The lines are a URL, a body, a key, headers, statuses and a path, the rest is a document: a key changes nothing but its
/// own place, in a URL, in JSON and in a form, and what is read is refused or kept.
pub fn http_rules(data: &[u8]) {
    let mut parts = data.splitn(7, |&byte| byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (url, body, key) = (next(), next(), next());
    let (extra, statuses, path, document) = (next(), next(), next(), next());
    if let Ok(extra) = headers(extra) {
        for (name, value) in extra {
            assert!(!name.is_empty() && name != "host" && name != "content-length");
            assert!(!value.bytes().any(|byte| byte == b'\r' || byte == b'\n'));
        }
    }
    if let Ok(map) = StatusMap::parse(statuses) {
        for status in [0, 200, 404, 500, 999, u16::MAX] {
            map.verdict(status);
        }
    }
    if let Ok(path) = ValuePath::parse(path) {
        let mut bytes = 0;
        let read = path.values(document, |value| {
            bytes += value.len();
            Ok::<_, DocumentError>(())
        });
        // A value of the document is told once for each time it is there; numbers and words are as long as they were.
        assert!(read.is_err() || bytes <= document.len());
    }
    assert!(lines(document).map(<[u8]>::len).sum::<usize>() <= document.len());
    requests(url, body, key);
}

fn requests(url: &[u8], body: &[u8], key: &[u8]) {
    let Ok(url) = Url::parse(url) else {
        return;
    };
    assert!(url.target.starts_with(b"/") && !url.host.is_empty());
    let mut needs = Needs::default();
    let (Ok(target), Ok(body)) = (
        needs.query("/t.cf", &url.target),
        needs.query("/t.cf", body),
    ) else {
        return;
    };
    let Ok(table) = TableName::parse(b"http:/t.cf") else {
        return;
    };
    let Some(key) = needs.key(&table, key) else {
        return;
    };
    if !is_text(key.whole()) {
        return;
    }
    if Url::check(&target).is_ok()
        && let Some(text) = Url::expand(&target, &key)
    {
        let (codes, literal) = measure(&target);
        assert!(text.len() <= TARGET_LIMIT && text.iter().all(u8::is_ascii_graphic));
        assert!(text.len() <= literal + 3 * codes * key.whole().len());
        // No key ends the path, or begins another parameter.
        for mark in *b"/?&=;#" {
            let count = |text: &[u8]| text.split(|&byte| byte == mark).count() - 1;
            let wanted: usize = target
                .pieces()
                .iter()
                .map(|piece| match piece {
                    Piece::Text(text) => count(text),
                    _ => 0,
                })
                .sum();
            assert_eq!(count(&text), wanted);
        }
    }
    if BodyFormat::Json.check(&body).is_ok() {
        let text = BodyFormat::Json.expand(&body, &key);
        assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
    }
    let mut form = Vec::new();
    percent_encode(key.whole(), &mut form);
    assert!(str::from_utf8(&form).is_ok_and(|text| !text.contains(['&', '=', '+', ' '])));
}
