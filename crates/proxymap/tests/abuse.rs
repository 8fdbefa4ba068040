//! Nothing that a client sends may panic, hang, or grow without bound.

mod fakes;

use std::time::Duration;

use fakes::{Client, Plan, Service, bytes, service_with};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::share::Settings;
use postkeep_table::Latency;
use postkeep_wire::duplex::End;
use proptest::prelude::*;

fn three() -> Plan {
    Plan::with(&[("a", "1"), ("b", "2"), ("c", "3")])
}

fn abused() -> Service {
    service_with(
        Role::Write,
        &[
            ("a:b", three()),
            (
                "c:d",
                Plan {
                    latency: Latency::Blocking,
                    ..three()
                },
            ),
        ],
        &["e:f"],
        Settings {
            instances: 2,
            ..Settings::default()
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_are_survived(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8)) {
        let service = abused();
        let mut client = Client::new();
        for chunk in &chunks {
            client.send(&service, chunk);
        }
        client.end(&service, End::Closed);
        prop_assert!(client.closed);
    }

    #[test]
    fn random_words_are_survived(
        words in proptest::collection::vec(
            prop_oneof![
                Just("request"), Just("open"), Just("lookup"), Just("update"), Just("delete"), Just("sequence"),
                Just("table"), Just("a:b"), Just("c:d"), Just("e:f"), Just("proxy:a:b"), Just("flags"),
                Just("instance_flags"), Just("0"), Just("1"), Just("-1"), Just("4194336"), Just("key"), Just("a"),
                Just("value"), Just("function"), Just(""), Just("!retry"),
            ],
            0..200,
        ),
        cut in 1usize..30,
    ) {
        let service = abused();
        let mut client = Client::new();
        let text: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        for chunk in text.chunks(cut) {
            client.send(&service, chunk);
            client.now += Duration::from_secs(1);
        }
        client.end(&service, End::TimedOut);
        prop_assert!(client.closed);
        prop_assert!(service.tables.instances() <= 6);
    }

    /// Well-formed requests of any kind and order, cut anywhere: one reply each, never a panic.
    #[test]
    fn random_requests_are_answered_one_by_one(
        requests in proptest::collection::vec((0usize..5, 0usize..4, any::<bool>(), any::<u32>(), any::<u32>(), 0u32..2), 1..12),
        cut in 1usize..80,
    ) {
        let service = abused();
        let mut client = Client::new();
        let mut text = String::new();
        for (operation, table, two, instance, flags, function) in &requests {
            let operation = ["open", "lookup", "update", "delete", "sequence"][*operation];
            let table = ["a:b", "c:d", "e:f", "g:h"][*table];
            let instance = if *two { format!("instance_flags␀{instance}␀") } else { String::new() };
            let flags = if *two && operation == "open" { String::new() } else { format!("flags␀{flags}␀") };
            let rest = match operation {
                "open" => String::new(),
                "update" => "key␀k␀value␀v␀".to_owned(),
                "sequence" => format!("function␀{function}␀"),
                _ => "key␀k␀".to_owned(),
            };
            text.extend(["request␀", operation, "␀table␀", table, "␀"]);
            text.extend([instance, flags, rest]);
            text.push('␀');
        }
        let mut replies = Vec::new();
        for chunk in bytes(&text).chunks(cut) {
            replies.extend(client.send(&service, chunk));
        }
        let replies = String::from_utf8_lossy(&replies).into_owned();
        prop_assert_eq!(replies.matches("status\0").count(), requests.len(), "{:?}", replies);
    }
}
