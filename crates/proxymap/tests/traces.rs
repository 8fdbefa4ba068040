//! Conversations recorded from Postfix, replayed byte for byte; see `vectors/proxymap`.
#![allow(clippy::unwrap_used, reason = "a bad vector is to fail the test")]

mod fakes;

use std::fs;
use std::path::Path;

use fakes::{Client, Plan, bytes, service_with, shown};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::share::Settings;
use serde_json::Value;

fn cases() -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/proxymap");
    let mut cases = Vec::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let Value::Array(list) = serde_json::from_str(&text).unwrap() else {
            panic!("a list of cases is expected");
        };
        cases.extend(list);
    }
    cases
}

fn plan(table: &Value) -> Plan {
    let pair = |entry: &Value| {
        let text = |index: usize| entry[index].as_str().unwrap().as_bytes().to_vec();
        (text(0), text(1))
    };
    Plan {
        own: u32::try_from(table["own_flags"].as_u64().unwrap()).unwrap(),
        entries: table["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(pair)
            .collect(),
        ..Plan::default()
    }
}

struct Case {
    name: String,
    service: fakes::Service,
    exchange: Vec<(Vec<u8>, Vec<u8>)>,
    warnings: Vec<String>,
}

fn prepare(case: &Value) -> Case {
    let role = match case["service"].as_str().unwrap() {
        "proxymap" => Role::Read,
        "proxywrite" => Role::Write,
        other => panic!("no such service: {other}"),
    };
    let tables = case["tables"].as_object().unwrap();
    let plans: Vec<(&str, Plan)> = tables
        .iter()
        .map(|(name, table)| (name.as_str(), plan(table)))
        .collect();
    let strings = |key: &str| -> Vec<&str> {
        case[key]
            .as_array()
            .map(|list| list.iter().map(|text| text.as_str().unwrap()).collect())
            .unwrap_or_default()
    };
    let exchange = case["exchange"].as_array().unwrap().iter().map(|turn| {
        let request = bytes(turn["client"].as_str().unwrap());
        let reply = bytes(turn["server"].as_str().unwrap());
        if let Some(length) = turn["client_bytes"].as_u64() {
            assert_eq!(request.len() as u64, length, "{}", shown(&request));
        }
        if let Some(length) = turn["server_bytes"].as_u64() {
            assert_eq!(reply.len() as u64, length, "{}", shown(&reply));
        }
        (request, reply)
    });
    Case {
        name: case["name"].as_str().unwrap().to_owned(),
        exchange: exchange.collect(),
        warnings: strings("warnings").into_iter().map(str::to_owned).collect(),
        service: service_with(role, &plans, &strings("missing"), Settings::default()),
    }
}

#[test]
fn replies_are_the_recorded_ones() {
    let cases = cases();
    assert!(cases.len() >= 10);
    for case in &cases {
        let case = prepare(case);
        let mut client = Client::new();
        for (request, reply) in &case.exchange {
            let answer = client.send(&case.service, request);
            assert_eq!(
                shown(&answer),
                shown(reply),
                "{}: {}",
                case.name,
                shown(request)
            );
        }
        assert_eq!(client.warnings, case.warnings, "{}", case.name);
    }
}

#[test]
fn it_does_not_matter_where_a_request_is_cut() {
    for case in &cases() {
        let length = prepare(case)
            .exchange
            .iter()
            .map(|(request, _)| request.len())
            .max();
        for cut in 1..length.unwrap() {
            let case = prepare(case);
            let mut client = Client::new();
            for (request, reply) in &case.exchange {
                let (head, tail) = request.split_at(cut.min(request.len()));
                let mut answer = client.send(&case.service, head);
                if answer.is_empty() {
                    answer = client.send(&case.service, tail);
                } else if !tail.is_empty() {
                    // A list that breaks a rule is answered at once; what follows would be another list.
                    client = Client::new();
                }
                assert_eq!(shown(&answer), shown(reply), "{} cut at {cut}", case.name);
            }
        }
    }
}

#[test]
fn requests_byte_by_byte() {
    for case in &cases() {
        let case = prepare(case);
        let mut client = Client::new();
        for (request, reply) in &case.exchange {
            let mut answer = Vec::new();
            for byte in request {
                if answer.is_empty() {
                    answer = client.send(&case.service, &[*byte]);
                }
            }
            if answer.starts_with(b"status\x003\0") {
                client = Client::new();
            }
            assert_eq!(shown(&answer), shown(reply), "{}", case.name);
        }
    }
}
