//! The units of systemd that come with the package: systemd itself says whether they are right, and how exposed the
//! service is.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const POSTKEEP: &str = env!("CARGO_BIN_EXE_postkeep");

/// Tenths of the exposure level that is still good.
const MOST_EXPOSED: &str = "--threshold=20";

fn analyze(directory: &Path, words: &[&str], units: &[String]) -> Output {
    Command::new("systemd-analyze")
        .args(words)
        .args(units)
        .current_dir(directory)
        // Its own directories, too, for the targets that are named.
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .unwrap()
}

#[test]
fn they_are_right_and_the_service_has_little_to_lose() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIP: no systemd-analyze here");
        assert!(std::env::var_os("CI").is_none(), "skipped under CI");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    let mut units = Vec::new();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let here = text.replace("/usr/bin/postkeep", POSTKEEP);
        fs::write(scratch.path().join(&name), here).unwrap();
        units.push(format!("./{name}"));
        if let Some(service) = name.strip_suffix(".socket") {
            let service = service.strip_prefix("postkeep-").unwrap();
            assert!(
                text.contains(&format!("FileDescriptorName={service}\n")),
                "{name}"
            );
            assert!(text.contains("Service=postkeep.service\n"), "{name}");
        }
    }
    assert_eq!(units.len(), 5);
    let verified = analyze(scratch.path(), &["verify", "--man=no"], &units);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("postkeep"))
        .collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
    let service = ["./postkeep.service".to_owned()];
    let words = ["security", "--offline=yes", MOST_EXPOSED];
    let judged = analyze(scratch.path(), &words, &service);
    assert!(
        judged.status.success(),
        "{}{}",
        String::from_utf8_lossy(&judged.stdout),
        String::from_utf8_lossy(&judged.stderr)
    );
}
