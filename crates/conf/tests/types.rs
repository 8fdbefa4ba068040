//! Type checks and cross checks against what the reference said to the same main.cf.

use postkeep_conf::{Account, Accounts, Common, Dictionary, Group, Release, Surroundings};
use serde_json::Value;

/// The users and groups of the machine that the vectors come from, as far as they matter.
struct Machine;

const USERS: [(&str, u32, u32); 4] = [
    ("root", 0, 0),
    ("daemon", 1, 1),
    ("postfix", 102, 105),
    ("nobody", 65534, 65534),
];
const GROUPS: [(&str, u32); 5] = [
    ("root", 0),
    ("daemon", 1),
    ("postfix", 105),
    ("postdrop", 106),
    ("nogroup", 65534),
];

impl Accounts for Machine {
    fn user_by_name(&self, name: &[u8]) -> Option<Account> {
        USERS
            .iter()
            .find(|user| user.0.as_bytes() == name)
            .map(account)
    }

    fn user_by_id(&self, uid: u32) -> Option<Account> {
        USERS.iter().find(|user| user.1 == uid).map(account)
    }

    fn group_by_name(&self, name: &[u8]) -> Option<Group> {
        GROUPS
            .iter()
            .find(|group| group.0.as_bytes() == name)
            .map(group)
    }

    fn group_by_id(&self, gid: u32) -> Option<Group> {
        GROUPS.iter().find(|group| group.1 == gid).map(group)
    }
}

fn account(&(name, uid, gid): &(&str, u32, u32)) -> Account {
    Account {
        name: name.into(),
        uid,
        gid,
    }
}

fn group(&(name, gid): &(&str, u32)) -> Group {
    Group {
        name: name.into(),
        gid,
    }
}

/// What a program would write to stderr, and the parameters when it would go on.
fn run(text: &str, release: Release) -> (String, Option<(Common, Dictionary)>) {
    let mut stderr = String::new();
    let mut told = Vec::new();
    let mut dictionary = Dictionary::new(release, b"/D");
    let surroundings = Surroundings {
        host_name: b"host",
        process_id: 7,
        accounts: &Machine,
        interfaces: &[],
        resolve: None,
    };
    let outcome = dictionary
        .load(text.as_bytes(), "/D/main.cf", &mut told)
        .and_then(|()| Common::evaluate(&mut dictionary, &surroundings, &mut told));
    for warning in told {
        stderr.extend(["postmap: warning: ", &warning, "\n"]);
    }
    match outcome {
        Ok(common) => (stderr, Some((common, dictionary))),
        Err(error) => (format!("{stderr}postmap: fatal: {error}\n"), None),
    }
}

#[test]
fn vectors() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../vectors/config/types.json")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() > 70);
    for case in cases {
        let text = format!(
            "{}{}\n",
            vectors["base"].as_str().unwrap().replace("{QUEUE}", "/Q"),
            case["lines"].as_str().unwrap()
        );
        let (stderr, common) = run(&text, Release::V3_7);
        let expected = case["stderr"].as_str().unwrap().replace("{DIR}", "/D");
        assert_eq!(stderr, expected, "{case}");
        assert_eq!(
            common.is_some(),
            case["accepted"].as_bool().unwrap(),
            "{case}"
        );
    }
}

#[test]
fn every_release_accepts_its_defaults() {
    for release in Release::ALL {
        let (stderr, outcome) = run("", release);
        let (common, _) = outcome.unwrap_or_else(|| panic!("{release}: {stderr}"));
        assert_eq!(stderr, "", "{release}");
        assert_eq!(common.myhostname, b"host.localdomain");
        assert_eq!(common.mydomain, b"localdomain");
        assert_eq!(common.syslog_name, b"postfix");
        assert_eq!(common.syslog_facility_code(), 2);
        assert!(
            !common.smtputf8_enable,
            "compatibility level 0 turns it off"
        );
        assert_eq!(common.max_idle.as_secs(), 100);
    }
}

#[test]
fn references_see_what_was_read_before() {
    let read = |text: &str| run(text, Release::V3_7).1.unwrap().0.syslog_name;
    assert_eq!(read("syslog_name = a$max_use"), b"a");
    assert_eq!(read("syslog_name = a$max_use\nmax_use = 55"), b"a55");
    assert_eq!(read("syslog_name = a$mail_name"), b"aPostfix");
    assert_eq!(read("syslog_name = a$process_id"), b"a");
}

#[test]
fn a_program_s_own_parameters_see_all_common_ones() {
    let (_, outcome) = run("mydomain = example\n", Release::V3_7);
    let (_, dictionary) = outcome.unwrap();
    let shown = dictionary.expand(
        b"$myhostname $myorigin $process_id $max_idle",
        &mut Vec::new(),
    );
    assert_eq!(shown.unwrap(), b"host.example host.example 7 100s");
}

#[test]
fn identities_must_differ() {
    let fault = |text: &str| run(text, Release::V3_7).0;
    assert_eq!(
        fault("default_privs = postfix"),
        "postmap: fatal: file /D/main.cf: parameters default_privs and mail_owner specify the same user postfix\n"
    );
    assert_eq!(
        fault("setgid_group = postfix"),
        "postmap: fatal: file /D/main.cf: parameters mail_owner and setgid_group: user postfix and group postfix \
         have the same group ID: 105\n"
    );
    assert_eq!(
        fault("setgid_group = root"),
        "postmap: fatal: file /D/main.cf: parameter setgid_group: group root has privileged group ID\n"
    );
}

#[test]
fn settings_must_go_together() {
    let fault = |text: &str| run(text, Release::V3_7).0;
    assert_eq!(
        fault("default_verp_delimiters = ab"),
        "postmap: fatal: file /D/main.cf: parameters default_verp_delimiters and verp_delimiter_filter: \
         bad first VERP delimiter character\n"
    );
    assert_eq!(
        fault("known_tcp_ports = foo"),
        "postmap: warning: known_tcp_ports: in \"foo\" is not in \"name = value\" form\n"
    );
    assert_eq!(fault("maillog_file = /varx/y"), "");
    assert_eq!(
        fault("max_use = ${a"),
        "postmap: warning: truncated macro reference: \"${a\"\n\
         postmap: fatal: dictionary mail_dict: macro processing error\n"
    );
}
