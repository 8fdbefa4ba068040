//! How a daemon starts, and how it refuses to.
//!
//! The refusals end with a second's sleep each, so they are all started first and then looked at.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::harness::Plan;

#[test]
fn refusals_have_the_reference_s_words() {
    let cases: Vec<(&str, Plan, &str)> = vec![
        ("letter", Plan::new(&["-Q"]), "fatal: invalid option: Q"),
        ("argument", Plan::new(&["-n"]), "fatal: invalid option: n"),
        (
            "old letter",
            Plan::new(&["-o", "mail_version=3.2.10", "-Q"]),
            "fatal: invalid option: ?",
        ),
        (
            "no name",
            Plan::new(&["-o", "=x"]),
            "fatal: invalid \"-o =x\" option value: missing attribute name",
        ),
        (
            "no value",
            Plan::new(&["-o", "foo"]),
            "fatal: invalid \"-o foo\" option value: missing '=' after attribute name",
        ),
        (
            "sockets",
            Plan::new(&["-s", "0"]),
            "fatal: invalid socket_count: 0",
        ),
        (
            "sockets",
            Plan::new(&["-s", "x"]),
            "fatal: invalid socket_count: x",
        ),
        (
            "transport",
            Plan::new(&[]),
            "fatal: no transport type specified",
        ),
        (
            "transport",
            Plan::new(&["-t", "fifo"]),
            "fatal: unsupported transport type: fifo",
        ),
        (
            "solitary",
            Plan::new(&["-t", "unix", "-n", "svc"]).environment("ECHO_REQUIRES", "s"),
            "fatal: service svc requires a process limit of 1",
        ),
        (
            "unlimited",
            Plan::unix().environment("ECHO_REQUIRES", "u"),
            "fatal: service echo requires a process limit of 0",
        ),
        (
            "privileged",
            Plan::new(&["-t", "unix", "-u"]).environment("ECHO_REQUIRES", "p"),
            "fatal: service echo requires privileged operation",
        ),
        (
            "parameter",
            Plan::new(&["-o", "echo_number = 1x"]),
            "fatal: bad numerical configuration: echo_number = 1x",
        ),
        (
            "parameter first",
            Plan::new(&["-o echo_number = 10"]).environment("ECHO_REQUIRES", "ns"),
            "fatal: invalid echo_number parameter value 10 > 9",
        ),
        (
            "flag first",
            Plan::new(&["-oecho_number=10"]).environment("ECHO_REQUIRES", "sn"),
            "fatal: service echo requires a process limit of 1",
        ),
        (
            "max_use",
            Plan::new(&["-t", "unix", "-m", "0"]),
            "fatal: invalid max_use parameter value 0 < 1",
        ),
        (
            "max_idle",
            Plan::new(&["-t", "unix", "-i", "x"]),
            "fatal: parameter max_idle: bad time value or unit: x",
        ),
        (
            "generation",
            Plan::unix().environment("GENERATION", ""),
            "fatal: bad generation: ",
        ),
        (
            "generation",
            Plan::unix().environment("GENERATION", "abc"),
            "fatal: bad generation: abc",
        ),
        (
            "debugger",
            Plan::new(&["-t", "unix", "-D", "-o", "debugger_command="]),
            "fatal: no debugger_command variable set up",
        ),
        (
            "main.cf",
            Plan::unix().environment("MAIL_CONFIG", "/nonexistent"),
            "fatal: open /nonexistent/main.cf: No such file or directory",
        ),
        (
            "directory",
            Plan::unix().main_cf("queue_directory = /nonexistent"),
            "fatal: chdir(\"/nonexistent\"): No such file or directory",
        ),
        (
            "log file",
            Plan::unix().main_cf("maillog_file = /srv/x"),
            "fatal: maillog_file value '/srv/x' does not match any prefix in maillog_file_prefixes",
        ),
        (
            "descriptor",
            Plan::new(&["-t", "unix", "-s", "2"]),
            "fatal: event_enable_read: epoll_ctl EPOLL_CTL_ADD: Bad file descriptor",
        ),
    ];
    let mut started: Vec<_> = cases
        .into_iter()
        .map(|(what, plan, text)| (what, plan.start(), text))
        .collect();
    for (what, daemon, text) in &mut started {
        let (status, time) = daemon.wait();
        assert_eq!(status.code(), Some(1), "{what}");
        assert!(time >= Duration::from_secs(1), "{what}: {time:?}");
        assert_eq!(daemon.log(), [format!("postfix/echo: {text}")], "{what}");
    }
}

#[test]
fn a_terminal_is_not_wanted_and_a_short_watchdog_is_a_panic() {
    let mut short = Plan::unix().main_cf("daemon_timeout = 2").start();
    let (status, time) = short.wait();
    assert_eq!(status.signal(), Some(6));
    assert!(time >= Duration::from_secs(1));
    assert_eq!(
        short.log(),
        ["postfix/echo: panic: watchdog_create: timeout 2 is too small"]
    );
}

#[test]
fn generations_are_octal_and_the_pair_is_sent_once() {
    for (text, number) in [(Some("17"), 15), (Some("19"), 1), (None, 0)] {
        let plan = match text {
            Some(text) => Plan::unix().environment("GENERATION", text),
            None => Plan::unix().without("GENERATION"),
        };
        let mut daemon = plan.start();
        let mut peer = daemon.greeted();
        assert!(daemon.status_messages().is_empty());
        for _ in 0..3 {
            assert_eq!(peer.ask("echo a"), "a");
        }
        drop(peer);
        let mut peer = daemon.greeted();
        assert_eq!(peer.ask("echo b"), "b");
        let pid = daemon.child.id();
        assert_eq!(
            daemon.status_messages(),
            [[pid, number, 0], [pid, number, 1]]
        );
        daemon.hang_up();
    }
}

#[test]
fn logging_tags_forms_and_levels() {
    let mut daemon = Plan::new(&[
        "-v",
        "-t",
        "UNIX",
        "-o",
        "syslog_name=foo/bar",
        "-n",
        "service",
    ])
    .environment("MAIL_LOGTAG", "early")
    .environment("MAIL_VERBOSE", "")
    .start();
    let mut peer = daemon.greeted();
    assert_eq!(peer.ask("error"), "");
    peer.send("nonsense\t\u{e4}\n");
    assert!(peer.is_closed());
    daemon.hang_up();
    let log = daemon.log();
    assert_eq!(log[0], "early/echo: daemon started");
    assert_eq!(log[1], "foo/bar/echo: error: service socket: on purpose");
    assert_eq!(
        log[2],
        "foo/bar/echo: warning: service socket: bad request: nonsense?\u{e4}"
    );
    assert_eq!(log[3], "foo/bar/echo: master disconnect -- exiting");
    assert_eq!(log[4], "foo/bar/echo: exit hook: 1 clients");
    let raw = &daemon.raw_log()[1];
    let head = format!(" host foo/bar/echo[{}]: ", daemon.child.id());
    // "Nov 24 15:00:00" and the host's first label.
    assert_eq!(raw.find(&head), Some(15), "{raw}");
}

#[test]
fn ascii_only_without_smtputf8() {
    let mut daemon = Plan::unix().main_cf("smtputf8_enable = no").start();
    let mut peer = daemon.greeted();
    peer.send("nonsense\u{e4}\n");
    assert!(peer.is_closed());
    daemon.hang_up();
    assert_eq!(
        daemon.log()[0],
        "postfix/echo: warning: echo socket: bad request: nonsense??"
    );
}

#[test]
fn the_thirteenth_error_is_the_last() {
    let mut daemon = Plan::unix().start();
    let mut peer = daemon.greeted();
    for _ in 0..12 {
        assert_eq!(peer.ask("error"), "");
    }
    peer.send("error\n");
    let (status, _) = daemon.wait();
    assert_eq!(status.code(), Some(1));
    let log = daemon.log();
    assert_eq!(log.len(), 14);
    assert_eq!(log[12], "postfix/echo: error: echo socket: on purpose");
    assert_eq!(
        log[13],
        "postfix/echo: fatal: too many errors - program terminated"
    );
}

#[test]
fn arguments_are_the_service_s_business() {
    let mut daemon = Plan::new(&["-t", "unix", "extra", "-v"]).start();
    let mut peer = daemon.greeted();
    peer.send("echo a\n");
    assert_eq!(daemon.wait().0.code(), Some(1));
    assert_eq!(
        daemon.log(),
        ["postfix/echo: fatal: unexpected command-line argument: extra"]
    );
}

#[test]
fn signals_are_ignored_and_descriptors_private() {
    let daemon = Plan::unix().start();
    let _peer = daemon.greeted();
    let ignored = u64::from_str_radix(&daemon.proc_status("SigIgn"), 16).unwrap();
    for signal in [13, 25] {
        assert_ne!(ignored & 1 << (signal - 1), 0, "signal {signal}");
    }
    let is_private = |process: &str, number: i32| {
        let info =
            std::fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_none_or(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0)
    };
    let pid = daemon.child.id().to_string();
    for number in daemon
        .descriptors()
        .into_iter()
        .filter(|number| *number > 2)
    {
        // What the test itself was started with, everybody has.
        if is_private("self", number) {
            assert!(is_private(&pid, number), "descriptor {number}");
        }
    }
}

#[test]
fn jail_and_identity() {
    if std::fs::metadata("/proc/self")
        .map(|own| std::os::unix::fs::MetadataExt::uid(&own))
        .unwrap()
        != 0
    {
        eprintln!("SKIP jail_and_identity: only root can change its identity");
        return;
    }
    let daemon = Plan::new(&["-t", "unix", "-u", "-c"]).start();
    let mut peer = daemon.greeted();
    assert_eq!(peer.ask("error"), "");
    let owner = postkeep_sys::account::user_by_name("postfix")
        .unwrap()
        .unwrap();
    for (name, id) in [("Uid", owner.uid), ("Gid", owner.gid)] {
        assert_eq!(daemon.proc_status(name), vec![id.to_string(); 4].join("\t"));
    }
    assert_eq!(daemon.proc_status("Groups"), owner.gid.to_string());
    for name in ["root", "cwd"] {
        assert_eq!(
            std::fs::read_link(daemon.proc(name)).unwrap(),
            daemon.queue,
            "{name}"
        );
    }
    // The log socket was opened before the jail was entered.
    assert_eq!(
        daemon.log(),
        ["postfix/echo: error: echo socket: on purpose"]
    );
}

#[test]
fn one_shot() {
    let run = |arguments: &[&str], input: &str| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (mut output, theirs) = std::io::pipe().unwrap();
        let mut daemon = Plan::new(arguments)
            .environment("ECHO_REQUIRES", "sun")
            .streams(reader, theirs)
            .start();
        writer.write_all(input.as_bytes()).unwrap();
        drop(writer);
        let (status, _) = daemon.wait();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (status.code(), text, daemon.log())
    };
    let exit = || vec!["postfix/echo: exit hook: 0 clients".to_owned()];
    assert_eq!(
        run(&["-S"], "echo a\n"),
        (Some(0), "a\n".to_owned(), exit())
    );
    assert_eq!(
        run(&["-S", "-t", "nonsense"], "park 1\necho b\n"),
        (Some(0), "parked\nb\n".to_owned(), exit())
    );
    assert_eq!(run(&["-S"], ""), (Some(0), String::new(), exit()));
    assert_eq!(run(&["-S", "extra"], "echo a\n").0, Some(1));
}
