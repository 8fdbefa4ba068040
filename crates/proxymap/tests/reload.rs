//! Tables are replaced in place when their files change.

mod fakes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use fakes::{Client, Plan, logged, service};
use postkeep_proxymap::role::Role;

const LOOKUP: &str = "request␀lookup␀table␀hash:/t␀flags␀0␀key␀k␀␀";
const LOOKUP_TWO: &str = "request␀lookup␀table␀hash:/t␀instance_flags␀64␀flags␀64␀key␀k␀␀";

fn plan(value: &str) -> Plan {
    Plan::with(&[("k", value)])
}

#[test]
fn a_changed_table_is_replaced_under_its_clients() {
    let service = service(Role::Read, &[("hash:/t", plan("old"))]);
    let mut client = Client::new();
    client.say(&service, LOOKUP);
    client.say(&service, LOOKUP_TWO);
    assert_eq!(service.tables.reload_changed(), 0);
    service.registry.set("hash:/t", plan("new"));
    service.registry.touch();
    assert_eq!(client.say(&service, LOOKUP), "status␀0␀value␀old␀␀");
    assert_eq!(service.tables.reload_changed(), 2);
    let mut lines = logged();
    lines.sort();
    assert_eq!(
        lines,
        [
            "table hash:/t(0,lock) has changed -- reloading",
            "table hash:/t: has changed -- reloading",
        ]
    );
    assert_eq!(client.say(&service, LOOKUP), "status␀0␀value␀new␀␀");
    assert_eq!(
        client.say(&service, LOOKUP_TWO),
        "status␀0␀flags␀64␀value␀new␀␀"
    );
    assert_eq!(service.tables.reload_changed(), 0);
    assert!(logged().is_empty());
    assert_eq!(
        service
            .tables
            .counts()
            .map(|(_, counts)| counts.reloads)
            .sum::<u64>(),
        2
    );
}

#[test]
fn a_table_that_cannot_be_replaced_serves_on() {
    let service = service(Role::Read, &[("hash:/t", plan("old"))]);
    let mut client = Client::new();
    client.say(&service, LOOKUP);
    service.registry.gone.store(true, Ordering::Relaxed);
    let broken = Plan {
        broken: Some("open database /t.db: No such file or directory".into()),
        ..Plan::default()
    };
    service.registry.set("hash:/t", broken);
    for _ in 0..3 {
        assert_eq!(service.tables.reload_changed(), 0);
    }
    assert_eq!(
        logged(),
        [
            "table hash:/t: has changed -- reloading",
            "warning: open database /t.db: No such file or directory; table hash:/t: stays as it was before the change",
        ]
    );
    assert_eq!(client.say(&service, LOOKUP), "status␀0␀value␀old␀␀");
    // It is back.
    service.registry.set("hash:/t", plan("new"));
    service.registry.gone.store(false, Ordering::Relaxed);
    assert_eq!(service.tables.reload_changed(), 1);
    assert_eq!(client.say(&service, LOOKUP), "status␀0␀value␀new␀␀");
}

#[test]
fn proxywrite_never_looks_for_changes() {
    let service = service(Role::Write, &[("hash:/t", plan("old"))]);
    let mut client = Client::new();
    client.say(&service, LOOKUP);
    service.registry.touch();
    assert_eq!(service.tables.reload_changed(), 0);
    assert_eq!(service.registry.opened.lock().unwrap().len(), 1);
}

#[test]
fn lookups_go_on_while_tables_are_replaced() {
    let service = service(Role::Read, &[("hash:/t", plan("0"))]);
    let stop = AtomicBool::new(false);
    let lookups = AtomicUsize::new(0);
    let version = thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = Client::new();
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let reply = client.say(&service, LOOKUP);
                    let value: u32 = reply
                        .strip_prefix("status␀0␀value␀")
                        .and_then(|rest| rest.strip_suffix("␀␀"))
                        .and_then(|value| value.parse().ok())
                        .unwrap_or_else(|| panic!("{reply}"));
                    assert!(value >= last, "an older table came back");
                    last = value;
                    lookups.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut version = 0u32;
        while lookups.load(Ordering::Relaxed) < 2000 {
            version += 1;
            service.registry.set("hash:/t", plan(&version.to_string()));
            service.registry.touch();
            service.tables.reload_changed();
        }
        stop.store(true, Ordering::Relaxed);
        version
    });
    assert_eq!(
        Client::new().say(&service, LOOKUP),
        format!("status␀0␀value␀{version}␀␀")
    );
}

#[test]
fn many_first_requests_open_a_table_once() {
    let service = service(Role::Read, &[("hash:/t", plan("v"))]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(Client::new().say(&service, LOOKUP), "status␀0␀value␀v␀␀");
            });
        }
    });
    assert_eq!(service.registry.opened.lock().unwrap().len(), 1);
    assert_eq!(service.tables.instances(), 1);
}

#[test]
fn a_table_is_opened_anew_when_somebody_says_so() {
    let service = service(Role::Read, &[("a:b", Plan::with(&[("k", "old")]))]);
    assert_eq!(service.tables.reload(b"c:d"), None);
    // Nobody has asked for it yet.
    assert_eq!(service.tables.reload(b"a:b"), Some(Ok(0)));
    let mut client = Client::new();
    let ask = "request␀lookup␀table␀a:b␀flags␀0␀key␀k␀␀";
    assert!(client.say(&service, ask).contains("old"));
    service.registry.set("a:b", Plan::with(&[("k", "new")]));
    assert!(client.say(&service, ask).contains("old"));
    assert_eq!(service.tables.reload(b"proxy:a:b"), Some(Ok(1)));
    assert!(client.say(&service, ask).contains("new"));
    let broken = Plan {
        broken: Some("no such luck".into()),
        ..Plan::default()
    };
    service.registry.set("a:b", broken);
    assert_eq!(
        service.tables.reload(b"a:b"),
        Some(Err("no such luck".to_owned()))
    );
    assert!(client.say(&service, ask).contains("new"));
}

#[test]
fn a_table_that_clients_change_is_not() {
    let service = service(Role::Write, &[("a:b", Plan::with(&[]))]);
    assert!(service.tables.reload(b"a:b").unwrap().is_err());
}
