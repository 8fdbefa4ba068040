use serde_json::Value as Json;

use super::*;
use crate::duplex::End;
use crate::vectors::{bytes, end_of, hex, lines, load, text};

fn vectors() -> Json {
    load(include_str!("../../../../vectors/wire/proxymap.json"))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

fn generation(number: &Json) -> Generation {
    match number.as_u64() {
        Some(1) => Generation::One,
        Some(2) => Generation::Two,
        other => panic!("{other:?}"),
    }
}

fn number(generation: Generation) -> u8 {
    match generation {
        Generation::One => 1,
        Generation::Two => 2,
    }
}

/// A request as the vector files spell it.
fn spelled(request: &Request<'_>) -> String {
    let word = request.operation().word();
    let start = |table: &[u8], instance_flags: u32, flags: u32| {
        format!(
            "{word} table={} instance_flags={instance_flags} flags={flags}",
            latin1(table)
        )
    };
    match *request {
        Request::Open { table, flags } => format!("{word} table={} flags={flags}", latin1(table)),
        Request::Lookup {
            table,
            instance_flags,
            flags,
            key,
        }
        | Request::Delete {
            table,
            instance_flags,
            flags,
            key,
        } => format!(
            "{} key={}",
            start(table, instance_flags, flags),
            latin1(key)
        ),
        Request::Update {
            table,
            instance_flags,
            flags,
            key,
            value,
        } => format!(
            "{} key={} value={}",
            start(table, instance_flags, flags),
            latin1(key),
            latin1(value)
        ),
        Request::Sequence {
            table,
            instance_flags,
            flags,
            function,
        } => format!(
            "{} function={}",
            start(table, instance_flags, flags),
            match function {
                Function::First => "first",
                Function::Next => "next",
            }
        ),
    }
}

/// Serves all of an input that arrives in pieces; with an end, until the connection is to be closed.
fn serve(
    default: Generation,
    input: &[u8],
    piece: usize,
    end: Option<End>,
) -> (Vec<String>, Vec<String>) {
    let mut scanner = RequestScanner::new(default);
    let mut warnings = Vec::new();
    let mut answers = Vec::new();
    let mut buffer = Vec::new();
    let mut rest = input;
    loop {
        let ended = if rest.is_empty() { end } else { None };
        let scanned = scanner.scan(&buffer, ended, "proxymap socket", &mut warnings);
        let (answer, consumed) = match scanned {
            Scanned::Incomplete if rest.is_empty() => return (answers, warnings),
            Scanned::Incomplete => {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                buffer.extend_from_slice(now);
                rest = later;
                continue;
            }
            Scanned::Request {
                request,
                generation,
                consumed,
            } => (
                format!("request {} {}", number(generation), spelled(&request)),
                consumed,
            ),
            Scanned::Malformed {
                operation,
                generation,
                consumed,
            } => (
                format!("malformed {} {}", number(generation), operation.word()),
                consumed,
            ),
            Scanned::Unknown { name, consumed } => (format!("unknown {}", latin1(name)), consumed),
            Scanned::NoRequest { consumed } => ("no-request".to_owned(), consumed),
            Scanned::Closed => ("closed".to_owned(), 0),
            Scanned::Unusable => ("unusable".to_owned(), 0),
        };
        let last = matches!(scanned, Scanned::Closed | Scanned::Unusable);
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
        let generation = generation(&case["generation"]);
        let expected = vec![format!(
            "request {} {}",
            number(generation),
            text(&case["answer"])
        )];
        for default in [Generation::One, Generation::Two] {
            for piece in 1..=input.len() {
                assert_eq!(
                    serve(default, &input, piece, None),
                    (expected.clone(), vec![]),
                    "{case}"
                );
            }
            let mut scanner = RequestScanner::new(default);
            for split in 0..input.len() {
                assert_eq!(
                    scanner.scan(&input[..split], None, "x", &mut ()),
                    Scanned::Incomplete,
                    "{split} {case}"
                );
                let Scanned::Request {
                    request, consumed, ..
                } = scanner.scan(&input, None, "x", &mut ())
                else {
                    panic!("{split} {case}");
                };
                assert_eq!(consumed, input.len());
                let mut out = Vec::new();
                request.encode(generation, &mut out);
                assert_eq!(out, input, "{case}");
            }
        }
    }
}

#[test]
fn replies_have_these_bytes() {
    for case in vectors()["replies"].as_array().unwrap() {
        let expected = hex(&case["hex"]);
        let operation = Operation::from_word(&bytes(&case["operation"])).unwrap();
        let generation = generation(&case["generation"]);
        let status_number = i32::try_from(case["status"].as_i64().unwrap()).unwrap();
        let status = Status::from_number(status_number).unwrap();
        let flags = case["flags"]
            .as_u64()
            .map(|flags| u32::try_from(flags).unwrap());
        let (key, value) = (bytes(&case["key"]), bytes(&case["value"]));
        let mut out = Vec::new();
        // Flags that the generation does not send must not show.
        let sent = flags.unwrap_or(12345);
        match operation {
            Operation::Open => reply_open(&mut out, status, sent),
            Operation::Lookup => reply_lookup(&mut out, generation, status, sent, &value),
            Operation::Update => reply_update(&mut out, generation, status, sent),
            Operation::Delete => reply_delete(&mut out, generation, status, sent),
            Operation::Sequence => reply_sequence(&mut out, generation, status, sent, &key, &value),
        }
        assert_eq!(out, expected, "{case}");
        if status != Status::Ok {
            let mut out = Vec::new();
            reply_failure(&mut out, operation, generation, status, sent);
            assert_eq!(out, expected, "{case}");
        }
        let mut scanner = ReplyScanner::default();
        for split in 0..expected.len() {
            assert_eq!(
                scanner.scan(
                    operation,
                    generation,
                    &expected[..split],
                    None,
                    "x",
                    &mut ()
                ),
                ReplyScanned::Incomplete
            );
            assert_eq!(
                scanner.scan(operation, generation, &expected, None, "x", &mut ()),
                ReplyScanned::Reply {
                    reply: Reply {
                        status: status_number,
                        flags,
                        key: &key,
                        value: &value,
                    },
                    consumed: expected.len(),
                },
                "{case}"
            );
        }
    }
}

#[test]
fn bad_replies_have_the_shape_of_their_request() {
    use Generation::{One, Two};
    let bad = |operation, generation| {
        let mut out = Vec::new();
        reply_bad(&mut out, operation, generation);
        latin1(&out).replace('\0', "|")
    };
    assert_eq!(bad(Operation::Open, One), "status|3|flags|0||");
    assert_eq!(bad(Operation::Open, Two), "status|3|flags|0||");
    assert_eq!(bad(Operation::Lookup, One), "status|3|value|||");
    assert_eq!(bad(Operation::Lookup, Two), "status|3|flags|0|value|||");
    assert_eq!(bad(Operation::Update, One), "status|3||");
    assert_eq!(bad(Operation::Update, Two), "status|3|flags|0||");
    assert_eq!(bad(Operation::Delete, One), "status|3||");
    assert_eq!(bad(Operation::Delete, Two), "status|3|flags|0||");
    assert_eq!(bad(Operation::Sequence, One), "status|3|key||value|||");
    assert_eq!(
        bad(Operation::Sequence, Two),
        "status|3|flags|0|key||value|||"
    );
    let mut out = Vec::new();
    reply_unknown(&mut out);
    assert_eq!(out, b"status\x003\0\0");
}

#[test]
fn scenes_play_as_the_reference_plays_them() {
    for case in vectors()["scenes"].as_array().unwrap() {
        let input = bytes(&case["input"]);
        let default = generation(&case["default"]);
        let (answers, warnings) = serve(default, &input, input.len().max(1), end_of(&case["end"]));
        assert_eq!(answers, lines(&case["answers"]), "{case}");
        assert_eq!(warnings, lines(&case["warnings"]), "{case}");
    }
}

#[test]
fn a_reply_of_the_other_generation_is_invalid() {
    let mut warnings = Vec::new();
    let answer = ReplyScanner::default().scan(
        Operation::Lookup,
        Generation::Two,
        b"status\x000\0value\0v1\0\0",
        None,
        "private/proxymap socket",
        &mut warnings,
    );
    assert_eq!(
        answer,
        ReplyScanned::Failed(crate::reply::ReplyError::Invalid)
    );
    assert_eq!(
        warnings,
        ["unexpected attribute value from private/proxymap socket (expecting: flags)"]
    );
}

#[test]
fn status_numbers_come_back() {
    for number in 0..6 {
        assert_eq!(Status::from_number(number).unwrap().number(), number);
    }
    assert_eq!(
        (Status::from_number(6), Status::from_number(-1)),
        (None, None)
    );
}

mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_words_are_served_to_the_end(
            words in vec(prop::sample::select(vec!["request", "open", "lookup", "update", "delete", "sequence", "table", "flags", "instance_flags", "key", "value", "function", "1", "", "x"]), 0..40),
            noise in vec(any::<u8>(), 0..4),
            piece in 1..50usize,
        ) {
            let mut input = words.join("\0").into_bytes();
            input.extend_from_slice(&noise);
            let (answers, _) = serve(Generation::Two, &input, piece, Some(End::Closed));
            let last = answers.last().map_or("", String::as_str);
            prop_assert!(last == "closed" || last.starts_with("unusable"), "{answers:?}");
            prop_assert!(answers.len() <= input.len() + 2);
        }
    }
}
