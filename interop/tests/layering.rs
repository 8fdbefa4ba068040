//! Holds the crates to the list in `docs/architecture.md`: which of ours each may name outside its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

const ALLOWED: [(&str, &[&str]); 15] = [
    ("wire", &[]),
    ("conf", &[]),
    ("sys", &[]),
    ("table", &[]),
    ("cache", &["table"]),
    ("scache", &["wire"]),
    ("client", &["wire", "sys"]),
    ("client-c", &["client"]),
    ("remote", &["table", "conf", "sys"]),
    (
        "tables",
        &["table", "cache", "client", "conf", "sys", "remote"],
    ),
    ("proxymap", &["wire", "conf", "table"]),
    ("daemon", &["wire", "conf", "sys"]),
    ("master", &["sys"]),
    (
        "postkeep",
        &[
            "wire", "conf", "sys", "table", "scache", "client", "remote", "tables", "proxymap",
            "daemon", "master",
        ],
    ),
    // A dev-dependency only, so it may name what it helps to test.
    (
        "testkit",
        &[
            "wire", "conf", "sys", "table", "scache", "client", "remote", "proxymap", "tables",
        ],
    ),
];

/// The last part of one of our package names, or nothing for others' packages.
fn ours(package: &str) -> Option<&str> {
    if package == "postkeep" {
        return Some(package);
    }
    package.strip_prefix("postkeep-")
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("a list of packages") {
        let Some(name) = package["name"].as_str().and_then(ours) else {
            continue;
        };
        let names = package["dependencies"]
            .as_array()
            .expect("a list of dependencies")
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str().and_then(ours))
            .map(str::to_owned)
            .collect();
        found.insert(name.to_owned(), names);
    }
    found
}

#[test]
fn each_crate_names_only_what_it_may() {
    let found = dependencies();
    for (name, allowed) in ALLOWED {
        let named = found.get(name).unwrap_or_else(|| panic!("no crate {name}"));
        let excess: Vec<_> = named
            .iter()
            .filter(|other| !allowed.contains(&other.as_str()))
            .collect();
        assert!(excess.is_empty(), "{name} may not name {excess:?}");
    }
}

#[test]
fn every_crate_of_ours_is_on_the_list() {
    for name in dependencies().keys().filter(|name| *name != "interop") {
        assert!(
            ALLOWED.iter().any(|(listed, _)| listed == name),
            "{name} is missing from the list and from docs/architecture.md"
        );
    }
}

#[test]
fn architecture_shows_the_same_list() {
    let text = include_str!("../../docs/architecture.md");
    for (name, allowed) in ALLOWED {
        if name == "postkeep" || name == "testkit" {
            continue;
        }
        let entry = format!("`{name}({})`", allowed.join(", "));
        assert!(
            text.contains(&entry),
            "docs/architecture.md does not show {entry}"
        );
    }
}
