//! Tables that cannot be opened, and what becomes of them.

mod fakes;

use std::time::Duration;

use fakes::{Client, Plan, logged, service_with};
use postkeep_proxymap::role::Role;
use postkeep_proxymap::share::Settings;
use postkeep_table::Flags;

fn lookup(table: &str, key: &str) -> String {
    format!("request␀lookup␀table␀{table}␀flags␀524353␀key␀{key}␀␀")
}

fn three() -> Plan {
    Plan::with(&[("a", "1"), ("b", "2"), ("c", "3")])
}

#[test]
fn surrogates_recover_by_themselves() {
    let service = service_with(Role::Read, &[], &["hash:/t"], Settings::default());
    let mut client = Client::new();
    let reason = "open database /t.db: No such file or directory";
    assert_eq!(
        client.say(&service, "request␀open␀table␀hash:/t␀flags␀0␀␀"),
        "status␀0␀flags␀32␀␀"
    );
    assert_eq!(logged(), [format!("error: {reason}")]);
    for _ in 0..2 {
        assert_eq!(
            client.say(&service, &lookup("hash:/t", "a")),
            "status␀2␀value␀␀␀"
        );
        assert_eq!(
            logged(),
            [format!("warning: hash:/t is unavailable. {reason}")]
        );
    }
    assert_eq!(service.registry.opened.lock().unwrap().len(), 1);

    // The next attempt fails in the same way: no second error line.
    client.now += Duration::from_secs(5);
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "a")),
        "status␀2␀value␀␀␀"
    );
    assert_eq!(
        logged(),
        [format!("warning: hash:/t is unavailable. {reason}")]
    );
    assert_eq!(service.registry.opened.lock().unwrap().len(), 2);

    // The file is there now, but it is too early to look.
    service.registry.set("hash:/t", three());
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "a")),
        "status␀2␀value␀␀␀"
    );
    let _ = logged();
    client.now += Duration::from_secs(5);
    assert_eq!(
        client.say(&service, &lookup("hash:/t", "a")),
        "status␀0␀value␀1␀␀"
    );
    assert_eq!(logged(), ["table hash:/t: is available again"]);
}

#[test]
fn a_client_learns_that_a_surrogate_is_gone() {
    let service = service_with(Role::Read, &[], &["hash:/t"], Settings::default());
    let mut client = Client::new();
    let open = "request␀open␀table␀hash:/t␀instance_flags␀64␀␀";
    let flags = Flags::LOCK | Flags::PATTERN | Flags::SURROGATE;
    assert_eq!(
        client.say(&service, open),
        format!("status␀0␀flags␀{}␀␀", flags.bits())
    );
    service.registry.set("hash:/t", three());
    client.now += Duration::from_mins(1);
    let request = format!(
        "request␀lookup␀table␀hash:/t␀instance_flags␀64␀flags␀{}␀key␀a␀␀",
        flags.bits()
    );
    let flags = Flags::LOCK | Flags::FIXED;
    assert_eq!(
        client.say(&service, &request),
        format!("status␀0␀flags␀{}␀value␀1␀␀", flags.bits())
    );
}

#[test]
fn many_missing_tables_are_no_reason_to_end() {
    let names: Vec<String> = (0..30).map(|number| format!("hash:/{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let service = service_with(Role::Read, &[], &names, Settings::default());
    let mut client = Client::new();
    for name in &names {
        client.say(&service, &format!("request␀open␀table␀{name}␀flags␀0␀␀"));
    }
    let lines = logged();
    let errors = lines
        .iter()
        .filter(|line| line.starts_with("error: "))
        .count();
    let warnings = lines
        .iter()
        .filter(|line| line.starts_with("warning: "))
        .count();
    assert_eq!((errors, warnings), (12, 18));
}

#[test]
fn names_that_are_no_table_names_are_surrogates() {
    let service = service_with(Role::Read, &[], &["x:", ":y"], Settings::default());
    let mut client = Client::new();
    assert_eq!(
        client.say(&service, &lookup("x:", "k")),
        "status␀2␀value␀␀␀"
    );
    assert_eq!(
        logged(),
        [
            "error: open dictionary: expecting \"type:name\" form instead of \"x:\"",
            "warning: x: is unavailable. open dictionary: expecting \"type:name\" form instead of \"x:\"",
        ]
    );
}

#[test]
fn an_open_error_can_be_fatal() {
    let settings = Settings {
        open_error_is_fatal: true,
        ..Settings::default()
    };
    let service = service_with(Role::Read, &[], &["hash:/t"], settings);
    let mut client = Client::new();
    assert_eq!(client.say(&service, &lookup("hash:/t", "k")), "");
    assert_eq!(
        client.fatal.unwrap().to_string(),
        "open database /t.db: No such file or directory"
    );
    assert!(logged().is_empty());
}
