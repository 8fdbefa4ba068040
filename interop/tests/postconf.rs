//! The installed postconf against ours: random expressions, main.cf and master.cf texts. And the installed postmap
//! against ours over parameters of every type.
//!
//! `POSTKEEP_POSTCONF_ROUNDS` and `POSTKEEP_POSTCONF_SEED` ask for more, or others. Warnings are compared without
//! their order: the reference goes through its names in the order of a hash table.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use postkeep_testkit::{Scratch, postkeep_binary, real_postfix};

/// The reference waits a second before each fatal end, so several wait at once.
const THREADS: u64 = 8;

/// xorshift64*: enough to choose pieces of text.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap_or(0) % limit
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: Vec<String>,
}

fn run(program: &Path, name: &str, directory: &Path, arguments: &[String]) -> Outcome {
    let output = Command::new(program)
        .arg0(name)
        .arg("-c")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\n", "\n");
    let mut stderr: Vec<_> = text(&output.stderr).lines().map(str::to_owned).collect();
    stderr.sort_unstable();
    Outcome {
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr,
    }
}

fn write_old(path: &Path, text: &[u8]) {
    fs::write(path, text).unwrap();
    let file = File::options().append(true).open(path).unwrap();
    let long_ago = SystemTime::now() - Duration::from_hours(1);
    file.set_modified(long_ago).unwrap();
}

impl Outcome {
    fn forget_warnings(&mut self) {
        self.stderr.retain(|line| !line.contains(": warning: "));
    }
}

/// One configuration and one question.
struct Case {
    /// Which fault ends the program depends on the order of names, and so do the warnings before it.
    several_faults: bool,
    main: Vec<u8>,
    master: Vec<u8>,
    arguments: Vec<String>,
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Asks both programs of that name about random cases.
fn compare_programs(
    name: &str,
    area: &str,
    rounds: u64,
    make: impl Fn(&mut Random) -> Case + Sync,
) {
    let (Some(real), Some(ours)) = (real_postfix(), postkeep_binary()) else {
        return;
    };
    let real = real.command_directory.join(name);
    let rounds = number("POSTKEEP_POSTCONF_ROUNDS", rounds);
    let seed = number("POSTKEEP_POSTCONF_SEED", 20_260_821);
    let scratch = Scratch::new(area).unwrap();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let directory: PathBuf = scratch.path().join(thread.to_string());
            fs::create_dir(&directory).unwrap();
            let (next, make, real, ours) = (&next, &make, &real, &ours);
            scope.spawn(move || {
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round >= rounds {
                        break;
                    }
                    let case = make(&mut Random::new(seed + round));
                    write_old(&directory.join("main.cf"), &case.main);
                    write_old(&directory.join("master.cf"), &case.master);
                    let mut expected = run(real, name, &directory, &case.arguments);
                    let mut outcome = run(ours, name, &directory, &case.arguments);
                    if expected.status.is_none() {
                        // The reference crashed, which nobody has to imitate.
                        continue;
                    }
                    if case.several_faults && expected.status != Some(0) {
                        expected.forget_warnings();
                        outcome.forget_warnings();
                    }
                    assert_eq!(
                        outcome,
                        expected,
                        "{area}, seed {seed}, round {round}: {:?}\n{}\n{}",
                        case.arguments,
                        case.main.escape_ascii(),
                        case.master.escape_ascii(),
                    );
                }
            });
        }
    });
}

fn compare(area: &str, rounds: u64, make: impl Fn(&mut Random) -> Case + Sync) {
    compare_programs("postconf", area, rounds, make);
}

const NAMES: &[&str] = &[
    "aa",
    "bb",
    "cc",
    "relayhost",
    "max_use",
    "nope",
    "mail_name",
];

/// A piece of an expression that is mostly well formed.
fn expression(random: &mut Random, depth: usize) -> String {
    let blank = |random: &mut Random| {
        random
            .pick(&["", "", "", " ", "\t", "\n ", " \r"])
            .to_owned()
    };
    if depth == 0 {
        return random
            .pick(&[
                "", "a", "10", "9", "007", "3.10", "3.9", "x y", "$$", "no", "yes",
            ])
            .to_owned();
    }
    let name = random.pick(NAMES);
    match random.below(10) {
        0 => format!("${name}"),
        1 => format!("${{{}{name}{}}}", blank(random), blank(random)),
        2 => format!("$({name})"),
        3 | 4 => {
            let arm = expression(random, depth - 1);
            format!(
                "${{{name}{}{}{arm}}}",
                blank(random),
                random.pick(&["?", ":"])
            )
        }
        5 | 6 => {
            let (yes, no) = (expression(random, depth - 1), expression(random, depth - 1));
            let (a, b) = (blank(random), blank(random));
            format!("${{{name}{a}?{b}{{{yes}}}{b}:{a}{{{no}}}{b}}}")
        }
        7 | 8 => {
            let (left, right) = (expression(random, depth - 1), expression(random, depth - 1));
            let operator = random.pick(&[
                "==", "!=", "<", "<=", ">=", ">", "==level", "<level", ">=level", "=", "=<",
                "==levels",
            ]);
            let tail = match random.below(4) {
                0 => String::new(),
                1 => format!("?{}", expression(random, depth - 1)),
                2 => format!(":{{{}}}", expression(random, depth - 1)),
                _ => {
                    let (yes, no) = (expression(random, depth - 1), expression(random, depth - 1));
                    format!("?{}{{{yes}}}:{{{no}}}", blank(random))
                }
            };
            let (a, b) = (blank(random), blank(random));
            format!("${{{a}{{{left}}}{b}{operator}{a}{{{right}}}{b}{tail}}}")
        }
        _ => {
            let (left, right) = (expression(random, depth - 1), expression(random, depth - 1));
            format!("{left}{right}")
        }
    }
}

/// The text with a byte or so out of place.
fn damage(random: &mut Random, text: &str) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for _ in 0..random.below(3) {
        let at = random.below(text.len() + 1);
        if random.below(2) == 0 && at < text.len() {
            text.remove(at);
        } else {
            let piece = random.pick(&[
                "$", "{", "}", "(", ")", "?", ":", "=", "<", " ", "a", "\u{b}", "-", "é",
            ]);
            text.splice(at..at, piece.chars());
        }
    }
    text.into_iter().collect()
}

fn arguments(random: &mut Random) -> Vec<String> {
    let mut arguments = vec![
        random
            .pick(&["-x", "-xh", "-xf", "-h", "-xn", "-x"])
            .to_owned(),
    ];
    if random.below(6) == 0 {
        arguments.splice(
            0..0,
            [
                "-o".to_owned(),
                random
                    .pick(&["aa=$bb", "bb = 7", "relayhost=", "x"])
                    .to_owned(),
            ],
        );
    }
    arguments.extend(["relayhost", "aa", "smtpd_banner"].map(str::to_owned));
    arguments
}

/// Values for all names; of the one under test, this text.
fn main_cf(random: &mut Random, text: &str) -> Vec<u8> {
    let mut main = String::from("mydomain = example.test\nmyhostname = h.example.test\n");
    for (name, choices) in [
        ("aa", ["", "$bb", "a${cc}", "10"]),
        ("bb", ["", "x", "$cc$cc", "007"]),
        ("cc", ["", "9", "3.10", "$$"]),
        ("dd", ["$aa", "$bb", "$cc", "$aa$bb$cc"]),
    ] {
        writeln!(main, "{name} = {}", random.pick(&choices)).unwrap();
    }
    write!(main, "smtpd_banner = $aa$bb$cc$dd\nrelayhost = {text}\n").unwrap();
    main.into_bytes()
}

#[test]
fn expressions() {
    compare("expressions", 160, |random| {
        let depth = 1 + random.below(4);
        let text = expression(random, depth);
        let text = if random.below(3) == 0 {
            damage(random, &text)
        } else {
            text
        };
        Case {
            several_faults: false,
            main: main_cf(random, &text),
            master: Vec::new(),
            arguments: arguments(random),
        }
    });
}

#[test]
fn token_soup() {
    compare("token-soup", 120, |random| {
        let mut text = String::new();
        for _ in 0..random.below(9) {
            text += random.pick(&[
                "$aa", "$bb", "${aa", "${{", "$({", "}", "{", "$", "$$", "?", ":", "==", "<",
                "level", " ", "x", "10", ")", "(", "}}", "\u{c}", "?{", "}:{",
            ]);
        }
        Case {
            several_faults: false,
            main: main_cf(random, &text),
            master: Vec::new(),
            arguments: arguments(random),
        }
    });
}

#[test]
fn expressions_that_refer_to_each_other() {
    compare("references", 80, |random| {
        let mut main = String::from("mydomain = example.test\nmyhostname = h.example.test\n");
        for name in ["aa", "bb", "cc", "relayhost", "smtpd_banner"] {
            // Many plain values, so that not everything recurses.
            let depth = random.below(4);
            writeln!(main, "{name} = {}", expression(random, depth)).unwrap();
        }
        Case {
            several_faults: true,
            main: main.into_bytes(),
            master: Vec::new(),
            arguments: arguments(random),
        }
    });
}

#[test]
fn lines() {
    compare("lines", 120, |random| {
        let mut main: Vec<u8> = b"mydomain = example.test\nmyhostname = h.example.test\n".to_vec();
        for _ in 0..random.below(12) {
            let piece = random.pick(&[
                "relayhost = a",
                "relayhost=b",
                "aa = 1",
                " continued",
                "\t= x",
                "# comment",
                " # comment",
                "",
                " ",
                "smtpd_banner = $aa ",
                "process_name = z",
                "virtual_maps = x",
                "mynetworks = $aa",
                "config_directory = /x",
                "alias_maps = mysql:aa, ldap:{bb",
                "aa_hosts = h",
                "smtpd_restriction_classes = aa, bb",
                "bb = $aa",
                "\u{b}",
                "default_rbl_reply = ${",
                "aa=b\u{0}c",
                "\u{e4}\u{f6} = 1",
                "relayhost = \u{a0}x",
                "   more and more and more and more and more",
            ]);
            main.extend_from_slice(piece.as_bytes());
            main.extend_from_slice(
                random
                    .pick(&["\n", "\n", "\n", "\r\n", " \n", "\n\n", "\n#\n"])
                    .as_bytes(),
            );
        }
        if random.below(3) == 0 {
            main.push(0xff);
        }
        Case {
            several_faults: true,
            main,
            master: Vec::new(),
            arguments: arguments(random),
        }
    });
}

#[test]
fn master_entries() {
    compare("master-entries", 120, |random| {
        let mut master = String::new();
        for _ in 0..random.below(4) {
            master += random.pick(&["smtp", "x", "127.0.0.1:25", "-", "fast"]);
            for choices in [
                &["unix", "inet", "pass", "unix-dgram", "fifo"][..],
                &["-", "n", "y", "-", "-", "-", "q"],
                &["-", "n", "y"],
                &["-", "n", "y"],
                &["-", "0", "5?", "60", "?", "-?"],
                &["-", "0", "1", "100"],
                &["smtp", "pipe", "/x/spawn", "local", "anvil"],
            ] {
                master += random.pick(&[" ", " ", "\t", "   ", "\n  "]);
                master += random.pick(choices);
            }
            for _ in 0..random.below(6) {
                master += random.pick(&[" ", "  ", "\n   ", " \n#\n\t"]);
                master += random.pick(&[
                    "-v",
                    "-o aa=b",
                    "-oaa=b",
                    "-vo aa=$bb",
                    "-o {aa = b c}",
                    "-o { aa = b",
                    "-o {aa=b}c",
                    "x",
                    "{ x y }",
                    "}",
                    "{}",
                    "{{x}}",
                    "a{b c}d",
                    "--",
                    "-o",
                    "-D",
                    "-o process_name=q",
                    "-o relayhost=$cc,$aa",
                    "-o smtpd_restriction_classes=aa",
                    "\u{b}",
                    "user=nobody argv=/bin/true ${x}",
                ]);
            }
            master += "\n";
        }
        let main = "mydomain = example.test\nmyhostname = h.example.test\ncc = 1\nrelayhost = $aa\nbb = $dd\n";
        let arguments = match random.below(4) {
            0 => vec!["-M".to_owned()],
            1 => vec!["-Mf".to_owned()],
            2 => vec![
                "-Mx".to_owned(),
                random
                    .pick(&["x", "*/unix", "smtp/inet", "/x", "none"])
                    .to_owned(),
            ],
            _ => [
                "-x",
                "relayhost",
                "fast_time_limit",
                "smtp_destination_rate_delay",
                "x_recipient_limit",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        Case {
            several_faults: true,
            main: main.as_bytes().to_vec(),
            master: master.into_bytes(),
            arguments,
        }
    });
}

#[test]
fn whole_lists() {
    let ask = |option: &str| {
        let option = option.to_owned();
        compare("whole-lists", 1, move |_| Case {
            several_faults: false,
            main:
                b"mydomain = example.test\nmyhostname = h.example.test\naa = 1\nrelayhost = $aa\n"
                    .to_vec(),
            master: b"fast unix - - n - - smtp\nx unix - - n - - pipe\n".to_vec(),
            arguments: vec![option.clone()],
        });
    };
    for option in ["-n", "-nH", "-nxf", "-Cuser", "-Cservice"] {
        ask(option);
    }
}

/// A line that some program would take exception to, or not.
fn setting(random: &mut Random) -> String {
    let number = random.pick(&[
        "0",
        "1",
        "-1",
        "7",
        "+10",
        "010",
        "0x10",
        "10x",
        "",
        "ten",
        "2147483647",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        "$n",
        "$m",
        "${n?5}",
        "${{1}<{2}? 3}",
        "5 ",
        "5 5",
        "-0",
        "+",
        "1e3",
        "512",
    ]);
    let time = random.pick(&[
        "0",
        "10",
        "10s",
        "2m",
        "3h",
        "4d",
        "5w",
        "10y",
        "10S",
        "m",
        "10ms",
        "1h30m",
        "1.5h",
        "-1s",
        "+3",
        "10 s",
        "3549w",
        "3550w",
        "35791393m",
        "35791394m",
        "24855d",
        "2147483647",
        "2147483648s",
        "$n",
        "${n}h",
        "",
    ]);
    let word = random.pick(&[
        "yes",
        "no",
        "YES",
        "No",
        "",
        "true",
        "on",
        "1",
        "yes no",
        "$n",
        "${n?yes}",
        "${{a}=={b}?{yes}:{no}}",
    ]);
    let text = random.pick(&[
        "",
        "a",
        "+=",
        "ab",
        "-+",
        "a b",
        "a,b",
        "x.example",
        "$n",
        "${",
        "host.example.test",
        "HOST.example.test",
        ".x",
        "a..b",
        "-a",
        "1.2.3.4",
        "a_b",
        "x!",
        "h.",
        "all",
        "host",
        "class subnet",
        "ipv4",
        "ipv4,ipv6",
        "ipv7",
        "mail",
        "local7",
        "Mail",
        "3.6",
        "3.1024",
        "2",
        "nobody",
        "root",
        "daemon",
        "postfix",
        "postdrop",
        "nogroup",
        "nosuch0",
        "/var/x",
        "/varx",
        "/srv",
        "127.0.0.1",
        "loopback-only",
        "[127.0.0.1]",
        "192.0.2.99",
        "a=1",
        "a=b=2, c",
        "1=2",
    ]);
    match random.below(9) {
        0 | 1 => {
            let name = random.pick(&[
                "max_use",
                "line_length_limit",
                "delay_logging_resolution_limit",
                "default_process_limit",
                "dont_remove",
                "message_size_limit",
                "lmdb_map_size",
                "fork_attempts",
                "tcp_windowsize",
                "hash_queue_depth",
            ]);
            format!("{name} = {number}")
        }
        2 | 3 => {
            let name = random.pick(&[
                "max_idle",
                "in_flow_delay",
                "ipc_timeout",
                "ipc_ttl",
                "daemon_timeout",
                "fork_delay",
                "stale_lock_time",
                "application_event_drain_time",
            ]);
            format!("{name} = {time}")
        }
        4 | 5 => {
            let name = random.pick(&[
                "soft_bounce",
                "daemon_table_open_error_is_fatal",
                "smtputf8_enable",
                "respectful_logging",
                "enable_idna2003_compatibility",
                "helpful_warnings",
                "strict_smtputf8",
                "multi_instance_enable",
            ]);
            format!("{name} = {word}")
        }
        _ => {
            let name = random.pick(&[
                "mail_name",
                "default_verp_delimiters",
                "verp_delimiter_filter",
                "myorigin",
                "relayhost",
                "myhostname",
                "mydomain",
                "mynetworks_style",
                "inet_protocols",
                "inet_interfaces",
                "syslog_facility",
                "syslog_name",
                "compatibility_level",
                "default_privs",
                "mail_owner",
                "setgid_group",
                "maillog_file",
                "maillog_file_prefixes",
                "known_tcp_ports",
                "recipient_delimiter",
                "mydestination",
                "process_id_directory",
            ]);
            // Some builds read myorigin from a file.
            let text = if name == "myorigin" {
                text.trim_start_matches('/')
            } else {
                text
            };
            format!("{name} = {text}")
        }
    }
}

#[test]
fn settings_that_every_program_reads() {
    compare_programs("postmap", "settings", 160, |random| {
        let mut main = String::from(
            "compatibility_level = 3.6\nmyhostname = host.example.test\nmydomain = example.test\nn = 12\n\
             inet_protocols = ipv4\ninet_interfaces = 127.0.0.1\nqueue_directory = /tmp\ndata_directory = /tmp\n",
        );
        for _ in 0..=random.below(2) {
            main += &setting(random);
            main += "\n";
        }
        Case {
            several_faults: false,
            main: main.into_bytes(),
            master: Vec::new(),
            arguments: ["-q", "x", "static:y"].map(str::to_owned).to_vec(),
        }
    });
}
