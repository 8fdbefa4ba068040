use proptest::prelude::*;
use serde_json::Value;

use super::*;

const CONTEXT: MasterContext<'static> = MasterContext {
    file: "/D/master.cf",
    release: Release::V3_7,
    default_process_limit: 50,
    compatibility_level: CompatibilityLevel::new(3, 6, 0),
    inet_protocols: b"all",
    listens_everywhere: true,
    own_addresses: &[],
    disabled: b"",
    resolve: None,
    port_of: None,
};

fn entries(text: &str) -> Result<Vec<Entry>, String> {
    parse(text.as_bytes(), &CONTEXT, &mut Vec::new()).map_err(|error| error.to_string())
}

fn argv(entry: &Entry, detached: bool) -> Vec<String> {
    let argv = entry.argv(detached, false, false).into_iter();
    argv.map(|word| String::from_utf8(word).unwrap()).collect()
}

#[test]
fn vectors() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../../vectors/config/master.json")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() >= 30);
    for case in cases {
        let local = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let context = MasterContext {
            inet_protocols: b"ipv4",
            listens_everywhere: false,
            own_addresses: &local,
            ..CONTEXT
        };
        let mut told = Vec::new();
        let outcome = parse(
            case["master_cf"].as_str().unwrap().as_bytes(),
            &context,
            &mut told,
        );
        let mut log: Vec<_> = told.iter().map(|text| format!("warning: {text}")).collect();
        log.extend(
            outcome
                .as_ref()
                .err()
                .map(|error| format!("fatal: {error}")),
        );
        let expected = case["log"].as_array().unwrap().iter();
        let expected: Vec<_> = expected
            .map(|line| line.as_str().unwrap().replace("{DIR}", "/D"))
            .collect();
        assert_eq!(log, expected, "{case}");
        assert_eq!(
            outcome.is_err(),
            case["master_exits"].as_bool().unwrap(),
            "{case}"
        );
        let entries = outcome.unwrap_or_default();
        let started = entries
            .iter()
            .find(|entry| entry.wakeup > 0 && !entry.wakeup_when_used);
        let started = started.map_or(Value::Null, |entry| argv(entry, false).into());
        assert_eq!(started, case["argv_of_first_started_service"], "{case}");
    }
}

#[test]
fn inet_services() {
    let entry = |text: &str| entries(text).map(|mut entries| entries.remove(0));
    let smtp = entry("25 inet n - n - - smtpd").unwrap();
    assert_eq!(
        argv(&smtp, true),
        [
            "smtpd", "-n", "25", "-t", "inet", "-u", "-o", "stress=", "-s", "2"
        ]
    );
    let local = entry("[127.0.0.1]:025 inet n - n - - smtpd").unwrap();
    assert_eq!(local.endpoint, b"[127.0.0.1]:25");
    assert_eq!(
        argv(&local, true),
        ["smtpd", "-n", "[127.0.0.1]:025", "-t", "inet", "-u"]
    );
    let fault = |name: &str| entry(&format!("{name} inet n - n - - smtpd")).unwrap_err();
    assert_eq!(
        fault("127.0.0.1:"),
        "/D/master.cf: line 1: missing service information in \"127.0.0.1:\""
    );
    assert_eq!(
        fault("no.such.host:25"),
        "/D/master.cf: line 1: bad hostname or network address: no.such.host:25"
    );
    assert_eq!(
        fault("25x"),
        "/D/master.cf: line 1: garbage after numerical service in \"25x\""
    );
    assert_eq!(
        fault("[::1:25"),
        "/D/master.cf: line 1: missing \"]\" in \"[::1:25\""
    );
}

#[test]
fn braces() {
    let arguments = |text: &str| {
        let entry = entries(&format!("x unix - - n - - y {text}"))
            .unwrap()
            .remove(0);
        let arguments = entry.arguments.into_iter();
        arguments
            .map(|word| String::from_utf8(word).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        arguments("-o { a = b c } {x} {{x}} {} a{b c}d }"),
        ["-o", "a = b c", "x", "{x}", "", "a{b c}d", "}"]
    );
    assert_eq!(
        arguments("-o a=\"b c\" # d"),
        ["-o", "a=\"b", "c\"", "#", "d"]
    );
}

#[test]
fn fields() {
    assert_eq!(
        entries("x - - - n - - y").unwrap_err(),
        "/D/master.cf: line 1: field \"transport type\" has no default value"
    );
    assert_eq!(entries("x unix - - n 5x 3 y").unwrap()[0].wakeup, 5);
    assert_eq!(
        entries("- unix n - n 9? - y").unwrap()[0].endpoint,
        b"public/-"
    );
    assert!(entries("x unix - - n 9? - y").unwrap()[0].wakeup_when_used);
}

#[test]
fn old_levels_mean_chroot() {
    struct Told(Vec<String>);
    impl Sink for Told {
        fn warning(&mut self, text: String) {
            self.0.push(text);
        }
        fn info(&mut self, text: String) {
            self.0.push(text);
        }
    }
    let context = MasterContext {
        compatibility_level: CompatibilityLevel::new(0, 0, 0),
        ..CONTEXT
    };
    let mut told = Told(Vec::new());
    let entries = parse(b"x unix - - - - - y", &context, &mut told).unwrap();
    assert!(entries[0].chroot);
    assert_eq!(
        told.0,
        ["/D/master.cf: line 1: using backwards-compatible default setting chroot=y"]
    );
}

#[test]
fn disabled_entries_are_not_looked_at() {
    let disabled = |patterns: &str| is_disabled(patterns.as_bytes(), b"smtp", b"inet");
    assert!(disabled("smtp/inet") && disabled("x, INET") && disabled("smtp.inet"));
    assert!(!disabled("") && !disabled("smtp/unix") && !disabled("!smtp/inet inet"));
    let context = MasterContext {
        disabled: b"inet",
        ..CONTEXT
    };
    assert_eq!(
        parse(b"x inet y y y y y y", &context, &mut Vec::new()),
        Ok(Vec::new())
    );
}

proptest! {
    #[test]
    fn any_text_comes_to_an_end(text in r"([ab]{1,2} (unix|inet|pass)( [-yn0-9?]{1,2}){5} c( [-o{}=a ]{0,6})?\n ?){0,4}") {
        if let Ok(entries) = entries(&text) {
            for entry in entries {
                prop_assert!(entry.argv(true, true, true).len() >= 3);
            }
        }
    }
}
