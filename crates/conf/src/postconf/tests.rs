use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

/// Files in memory.
struct Memory(BTreeMap<Vec<u8>, Vec<u8>>);

impl Files for Memory {
    fn read_settled(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FileFault> {
        self.read(path).map(|text| vec![text])
    }

    fn read(&self, path: &[u8]) -> Result<Vec<u8>, FileFault> {
        let missing = || FileFault::Open("No such file or directory".to_owned());
        self.0.get(path).cloned().ok_or_else(missing)
    }

    fn read_regular(&self, path: &[u8]) -> Result<Vec<u8>, FileFault> {
        self.read(path)
    }
}

fn postconf(main: &[u8], master: &[u8], arguments: &[&str]) -> (String, String, u8) {
    let files = Memory(BTreeMap::from([
        (b"/D/main.cf".to_vec(), main.to_vec()),
        (b"/D/master.cf".to_vec(), master.to_vec()),
    ]));
    let machine = Machine {
        release: Release::V3_7,
        built_in_directory: b"/etc/postfix",
        mail_config: None,
        host_name: b"host.example",
        process_id: 7,
        interfaces: &[],
        files: &files,
    };
    let mut words = vec![b"-c".to_vec(), b"/D".to_vec()];
    words.extend(arguments.iter().map(|word| word.as_bytes().to_vec()));
    let outcome = run(b"postconf", &words, &machine);
    let text = |stream| String::from_utf8(outcome.text(stream)).unwrap();
    (text(Stream::Stdout), text(Stream::Stderr), outcome.status)
}

/// The reference walks a hash table where we go by name.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn vectors(text: &str) -> Vec<Value> {
    let mut vectors: Value = serde_json::from_str(text).unwrap();
    std::mem::take(vectors["cases"].as_array_mut().unwrap())
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn cases() {
    let cases = vectors(include_str!("../../../../vectors/config/cases.json"));
    assert!(cases.len() >= 120);
    for case in cases {
        let main = match case["main_cf_hex"].as_str() {
            Some(text) => hex(text),
            None => case["main_cf"].as_str().unwrap().as_bytes().to_vec(),
        };
        let arguments: Vec<_> = case["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let (stdout, stderr, status) = postconf(&main, b"", &arguments);
        assert_eq!(stdout, case["stdout"].as_str().unwrap(), "{case}");
        assert_eq!(u64::from(status), case["rc"].as_u64().unwrap(), "{case}");
        let expected = case["stderr"].as_str().unwrap().replace("{DIR}", "/D");
        assert_eq!(sorted(&stderr), sorted(&expected), "{case}");
    }
}

#[test]
fn master_entries() {
    for case in vectors(include_str!("../../../../vectors/config/master.json")) {
        let main = b"compatibility_level=3.6\ninet_interfaces=127.0.0.1\ninet_protocols=ipv4\n";
        let (stdout, stderr, status) = postconf(
            main,
            case["master_cf"].as_str().unwrap().as_bytes(),
            &["-M"],
        );
        let expected = &case["postconf_M"];
        assert_eq!(stdout, expected["stdout"].as_str().unwrap(), "{case}");
        assert_eq!(
            u64::from(status),
            expected["rc"].as_u64().unwrap(),
            "{case}"
        );
        let expected = expected["stderr"].as_str().unwrap().replace("{DIR}", "/D");
        assert_eq!(sorted(&stderr), sorted(&expected), "{case}");
    }
}

#[test]
fn options_that_do_not_go_together() {
    let fault = |arguments: &[&str]| postconf(b"", b"", arguments).1;
    assert_eq!(fault(&["-dn"]), "postconf: fatal: specify one of -d -n\n");
    assert_eq!(
        fault(&["-Mh"]),
        "postconf: fatal: with option -M, do not specify -h\n"
    );
    assert_eq!(
        fault(&["-e"]),
        "postconf: fatal: -e requires name=value argument\n"
    );
    assert_eq!(
        fault(&["-C", "foo"]),
        "postconf: fatal: unknown -C option value \"foo\" in \"foo\"\n"
    );
    let usage = fault(&["-z"]);
    assert!(
        usage.starts_with("postconf: invalid option -- 'z'\npostconf: fatal: usage: postconf [-a "),
        "{usage}"
    );
}

#[test]
fn services_have_parameters() {
    let master = b"fast unix - - n - - smtp\nx unix - - n - - spawn\n";
    let shown = |name| postconf(b"", master, &["-h", name]).0;
    assert_eq!(
        shown("fast_destination_rate_delay"),
        "$default_destination_rate_delay\n"
    );
    assert_eq!(shown("x_time_limit"), "$command_time_limit\n");
    assert_eq!(shown("x_recipient_limit"), "");
}

#[test]
fn prefixes_of_database_clients_make_names_valid() {
    let main = b"alias_maps = proxy:mysql:acct, {pgsql:other}\nacct_hosts = h\nother_dbname = d\nacct_bogus = b\n";
    let (_, stderr, _) = postconf(main, b"", &["-h", "relayhost"]);
    assert_eq!(
        stderr,
        "postconf: warning: /D/main.cf: unused parameter: acct_bogus=b\n"
    );
}

#[test]
fn read_only_parameters_stay() {
    let (stdout, stderr, _) = postconf(b"process_name = zz\n", b"", &["-h", "process_name"]);
    assert_eq!(stdout, "postconf\n");
    assert_eq!(
        stderr,
        "postconf: warning: /D/main.cf: read-only parameter assignment: process_name=zz\n"
    );
}

#[test]
fn defaults_ignore_main_cf() {
    let main = b"relayhost = ${\nmydomain = x.example\n";
    assert_eq!(
        postconf(main, b"", &["-d", "relayhost"]),
        ("relayhost =\n".to_owned(), String::new(), 0)
    );
    assert_eq!(
        postconf(main, b"", &["-dx", "myorigin"]).0,
        "myorigin = host.example\n"
    );
    assert_eq!(postconf(b"", b"", &["-n"]).0, "config_directory = /D\n");
}

proptest::proptest! {
    #[test]
    fn any_files_come_to_an_end(
        main in r"([a-c_]{1,2}( ?= ?[a-c$(){}?:=< ]{0,12})?\n ?){0,5}",
        master in r"(s unix - - n - - (smtp|x)( -o| \{|\}| a=\$b| -vo){0,4}\n ?){0,3}",
    ) {
        postconf(main.as_bytes(), master.as_bytes(), &["-x"]);
        postconf(main.as_bytes(), master.as_bytes(), &["-M", "-xf"]);
    }
}
