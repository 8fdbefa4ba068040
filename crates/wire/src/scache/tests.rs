use serde_json::Value as Json;

use super::*;
use crate::reply::ReplyError;
use crate::vectors::{bytes, end_of, hex, lines, load, text};

fn vectors() -> Json {
    load(include_str!("../../../../vectors/wire/scache.json"))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// A request as the vector files spell it.
fn spelled(request: &Request<'_>) -> String {
    let word = request.operation().word();
    match *request {
        Request::SaveEndpoint {
            ttl,
            label,
            property,
        } => {
            format!(
                "{word} ttl={ttl} label={} property={}",
                latin1(label),
                latin1(property)
            )
        }
        Request::FindEndpoint { label } | Request::FindDestination { label } => {
            format!("{word} label={}", latin1(label))
        }
        Request::SaveDestination {
            ttl,
            label,
            property,
            endpoint,
        } => format!(
            "{word} ttl={ttl} label={} property={} endpoint={}",
            latin1(label),
            latin1(property),
            latin1(endpoint)
        ),
    }
}

fn operation(word: &Json) -> Operation {
    Operation::from_word(&bytes(word)).unwrap()
}

/// Serves all of an input that arrives in pieces; with an end, until the connection is to be closed.
fn serve(input: &[u8], piece: usize, end: Option<End>) -> (Vec<String>, Vec<String>) {
    let mut scanner = RequestScanner::default();
    let mut warnings = Vec::new();
    let mut answers = Vec::new();
    let mut buffer = Vec::new();
    let mut rest = input;
    loop {
        let ended = if rest.is_empty() { end } else { None };
        let scanned = scanner.scan(&buffer, ended, "scache socket", &mut warnings);
        let (answer, consumed) = match scanned {
            Scanned::Incomplete if rest.is_empty() => return (answers, warnings),
            Scanned::Incomplete => {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                buffer.extend_from_slice(now);
                rest = later;
                continue;
            }
            Scanned::Request { request, consumed } => {
                (format!("request {}", spelled(&request)), consumed)
            }
            Scanned::Malformed {
                operation,
                consumed,
            } => (format!("malformed {}", operation.word()), consumed),
            Scanned::Unknown { name, consumed } => (format!("unknown {}", latin1(name)), consumed),
            Scanned::NoRequest { consumed } => ("no-request".to_owned(), consumed),
            Scanned::Closed => ("closed".to_owned(), 0),
            Scanned::Unusable { operation: None } => ("unusable".to_owned(), 0),
            Scanned::Unusable {
                operation: Some(operation),
            } => (format!("unusable {}", operation.word()), 0),
        };
        let last = matches!(scanned, Scanned::Closed | Scanned::Unusable { .. });
        answers.push(answer);
        if last {
            return (answers, warnings);
        }
        buffer.drain(..consumed);
    }
}

#[test]
fn requests_have_these_bytes_in_any_fragmentation() {
    for case in vectors()["requests"].as_array().unwrap() {
        let input = hex(&case["hex"]);
        let expected = vec![text(&case["answer"]).to_owned()];
        for piece in 1..=input.len() {
            assert_eq!(
                serve(&input, piece, None),
                (expected.clone(), vec![]),
                "{case}"
            );
        }
        let mut scanner = RequestScanner::default();
        let Scanned::Request { request, consumed } = scanner.scan(&input, None, "x", &mut ())
        else {
            panic!("{case}");
        };
        assert_eq!(consumed, input.len());
        let mut out = Vec::new();
        request.encode(&mut out);
        assert_eq!(out, input, "{case}");
    }
}

#[test]
fn every_split_in_two_gives_the_same() {
    for case in vectors()["requests"].as_array().unwrap() {
        let input = hex(&case["hex"]);
        let mut scanner = RequestScanner::default();
        for split in 0..input.len() {
            let mut warnings = Vec::new();
            let early = scanner.scan(&input[..split], None, "x", &mut warnings);
            assert_eq!(early, Scanned::Incomplete, "{split} {case}");
            let Scanned::Request { request, .. } = scanner.scan(&input, None, "x", &mut warnings)
            else {
                panic!("{split} {case}");
            };
            assert_eq!(
                format!("request {}", spelled(&request)),
                text(&case["answer"])
            );
            assert!(warnings.is_empty());
        }
    }
}

#[test]
fn replies_have_these_bytes() {
    for case in vectors()["replies"].as_array().unwrap() {
        let expected = hex(&case["hex"]);
        let operation = operation(&case["operation"]);
        let (destination, endpoint) = (bytes(&case["destination"]), bytes(&case["endpoint"]));
        let number = i32::try_from(case["status"].as_i64().unwrap()).unwrap();
        let status = Status::from_number(number).unwrap();
        let mut out = Vec::new();
        match operation {
            Operation::SaveEndpoint | Operation::SaveDestination => reply_status(&mut out, status),
            Operation::FindEndpoint => reply_endpoint(&mut out, status, &endpoint),
            Operation::FindDestination => {
                reply_destination(&mut out, status, &destination, &endpoint);
            }
        }
        assert_eq!(out, expected, "{case}");
        if status != Status::Ok {
            let mut out = Vec::new();
            reply_failure(&mut out, operation, status);
            assert_eq!(out, expected, "{case}");
        }
        let mut scanner = ReplyScanner::default();
        for split in 0..expected.len() {
            let early = scanner.scan(operation, &expected[..split], None, "x", &mut ());
            assert_eq!(early, ReplyScanned::Incomplete);
            assert_eq!(
                scanner.scan(operation, &expected, None, "x", &mut ()),
                ReplyScanned::Reply {
                    reply: Reply {
                        status: number,
                        destination: &destination,
                        endpoint: &endpoint,
                    },
                    consumed: expected.len(),
                },
                "{case}"
            );
        }
    }
}

#[test]
fn scenes_play_as_the_reference_plays_them() {
    for case in vectors()["scenes"].as_array().unwrap() {
        let input = bytes(&case["input"]);
        let (answers, warnings) = serve(&input, input.len().max(1), end_of(&case["end"]));
        assert_eq!(answers, lines(&case["answers"]), "{case}");
        assert_eq!(warnings, lines(&case["warnings"]), "{case}");
    }
}

#[test]
fn stray_strings_are_not_counted_for_ever() {
    let input = vec![0; 10_000];
    let (answers, warnings) = serve(&input, 100, None);
    assert_eq!(answers.len(), 4097);
    assert_eq!(answers.last().unwrap(), "unusable");
    assert_eq!(
        warnings.last().unwrap(),
        "attribute count exceeds limit 4096 in input from scache socket"
    );
}

#[test]
fn limits_end_the_connection() {
    let mut input = b"request\0find_dest\0label\0".to_vec();
    input.resize(input.len() + 1024 * 1024, b'x');
    assert_eq!(serve(&input, 65536, None), (vec![], vec![]));
    let mut whole = input.clone();
    whole.extend_from_slice(b"\0\0");
    let (answers, _) = serve(&whole, 65536, None);
    assert!(answers[0].starts_with("request find_dest label=xxx"));
    input.push(b'x');
    assert_eq!(
        serve(&input, 65536, None),
        (
            vec!["unusable find_dest".to_owned()],
            vec![
                "attribute value length exceeds limit 1048576 in input from scache socket"
                    .to_owned()
            ]
        )
    );
}

fn prompted(input: &[u8], end: Option<End>) -> (Prompt, Vec<String>) {
    let mut warnings = Vec::new();
    let answer = PromptScanner::default().scan(input, end, "scache socket", &mut warnings);
    (answer, warnings)
}

#[test]
fn prompts() {
    let mut list = Vec::new();
    prompt(&mut list);
    assert_eq!(list, b"dummy\0\0\0");
    for split in 0..list.len() {
        let mut scanner = PromptScanner::default();
        assert_eq!(
            scanner.scan(&list[..split], None, "x", &mut ()),
            Prompt::Incomplete
        );
        assert_eq!(
            scanner.scan(&list, None, "x", &mut ()),
            Prompt::Received { consumed: 8 }
        );
    }
    assert_eq!(
        prompted(b"request\0find_dest\0label\0D\0\0", None),
        (
            Prompt::Refused { consumed: 8 },
            vec!["unexpected attribute request from scache socket (expecting: dummy)".to_owned()]
        )
    );
    assert_eq!(
        prompted(b"\0", None),
        (
            Prompt::Refused { consumed: 1 },
            vec!["missing attribute dummy in input from scache socket".to_owned()]
        )
    );
    assert_eq!(
        prompted(b"", Some(End::Closed)),
        (Prompt::Ended(End::Closed), vec![])
    );
    assert_eq!(
        prompted(b"", Some(End::TimedOut)),
        (Prompt::Ended(End::TimedOut), vec![])
    );
    assert_eq!(
        prompted(b"dum", Some(End::Closed)),
        (
            Prompt::Ended(End::Closed),
            vec![
                "unexpected end-of-input from scache socket while reading input attribute name"
                    .to_owned()
            ]
        )
    );
    assert_eq!(prompted(&[b'x'; 5000], None).0, Prompt::Unusable);
}

#[test]
fn unusable_replies() {
    let failed = |input: &[u8], end| {
        let mut warnings = Vec::new();
        let mut scanner = ReplyScanner::default();
        let answer = scanner.scan(
            Operation::FindEndpoint,
            input,
            end,
            "private/scache",
            &mut warnings,
        );
        let ReplyScanned::Failed(error) = answer else {
            panic!("{answer:?}");
        };
        (error, warnings.join("\n"))
    };
    assert_eq!(
        failed(b"", Some(End::TimedOut)),
        (ReplyError::Nothing(End::TimedOut), String::new())
    );
    assert_eq!(
        failed(b"status\0", Some(End::TimedOut)),
        (
            ReplyError::Ended(End::TimedOut),
            "timeout on private/scache while reading input attribute value".to_owned()
        )
    );
    assert_eq!(
        failed(b"protocol\0connection_cache_protocol\0\0", None),
        (
            ReplyError::Invalid,
            "unexpected attribute protocol from private/scache (expecting: status)".to_owned()
        )
    );
    assert_eq!(failed(&[b'x'; 5000], None).0, ReplyError::Limit);
}

mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_words_are_served_to_the_end(
            words in vec(prop::sample::select(vec!["request", "save_endp", "find_endp", "save_dest", "find_dest", "ttl", "label", "property", "1", "", "x"]), 0..40),
            noise in vec(any::<u8>(), 0..4),
            piece in 1..50usize,
        ) {
            let mut input = words.join("\0").into_bytes();
            input.extend_from_slice(&noise);
            let (answers, _) = serve(&input, piece, Some(End::Closed));
            let last = answers.last().map_or("", String::as_str);
            prop_assert!(last == "closed" || last.starts_with("unusable"), "{answers:?}");
            prop_assert!(answers.len() <= input.len() + 2);
        }
    }
}
