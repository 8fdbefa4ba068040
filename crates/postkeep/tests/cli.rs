//! The command line: every command explains itself, and faults are told with the right exit status.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::os::unix::fs::symlink;
use std::process::{Command, Output};

const POSTKEEP: &str = env!("CARGO_BIN_EXE_postkeep");

fn run(words: &[&str]) -> Output {
    Command::new(POSTKEEP).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_command_has_help() {
    let commands: &[&[&str]] = &[
        &[],
        &["serve"],
        &["adopt"],
        &["release"],
        &["doctor"],
        &["shadow"],
        &["status"],
        &["top"],
        &["scache"],
        &["scache", "save-endpoint"],
        &["scache", "find-endpoint"],
        &["scache", "save-destination"],
        &["scache", "find-destination"],
        &["scache", "stat"],
        &["proxymap"],
        &["proxymap", "open"],
        &["proxymap", "lookup"],
        &["proxymap", "update"],
        &["proxymap", "delete"],
        &["proxymap", "sequence"],
        &["postmap"],
        &["postalias"],
        &["postconf"],
        &["completions"],
    ];
    for command in commands {
        let output = run(&[command, &["--help"][..]].concat());
        assert!(output.status.success(), "{command:?}");
        let help = text(&output.stdout);
        let usage = ["Usage: postkeep", &command.join(" ")].join(" ");
        assert!(help.contains(usage.trim_end()), "{command:?}: {help}");
        assert!(output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    let output = run(&["--version"]);
    assert_eq!(
        text(&output.stdout),
        format!("postkeep {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        for word in ["find-destination", "sequence", "postconf", "log-file"] {
            assert!(script.contains(word), "{shell} {word}");
        }
    }
}

#[test]
fn misunderstandings_are_told_apart_from_failures() {
    for words in [
        &["nonsense"][..],
        &["scache", "save-endpoint", "label"],
        &["proxymap", "lookup", "table"],
        &[],
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text(&output.stderr).contains("Usage"), "{words:?}");
    }
    let output = run(&[
        "scache",
        "find-endpoint",
        "--socket",
        "/nonexistent/scache",
        "label",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "postkeep: connect to /nonexistent/scache: No such file or directory\n"
    );
}

/// Links with the names of the tools are the tools.
#[test]
fn names_decide() {
    let scratch = tempfile::tempdir().unwrap();
    let call = |name: &str, words: &[&str]| {
        let link = scratch.path().join(name);
        symlink(POSTKEEP, &link).unwrap();
        Command::new(link)
            .args(words)
            .env("MAIL_CONFIG", scratch.path())
            .output()
            .unwrap()
    };
    let output = call("postmap", &["-q", "key", "inline:{key=value}"]);
    assert!(
        text(&output.stderr).contains("main.cf: No such file or directory"),
        "{}",
        text(&output.stderr)
    );
    let output = call("scache", &["-l", "-t", "unix"]);
    assert_eq!(output.status.code(), Some(1));
    let output = call("postkeep-0.1", &["--version"]);
    assert!(text(&output.stdout).starts_with("postkeep "));
}
