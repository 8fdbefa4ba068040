//! `docs/tables.md` is made from the registry and from the manuals at the top of the types' files.
//!
//! `POSTKEEP_WRITE_DOCS=1 cargo test -p postkeep-tables --test documentation` writes it.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use postkeep_tables::{Capabilities, TableType, table_types};

const HEAD: &str = "<!-- Made from the registry of table types; see crates/tables/tests/documentation.rs. -->\n\n\
                    # Table types\n\n\
                    A table is named `type:name`. What the columns say: **listed** with `postmap -s`; **stored**, **deleted**: \
                    through proxywrite, `postmap -i` and `postmap -d`; **created** with `postmap` from a source file.\n\n\
                    | type | what it is | listed | stored | deleted | created |\n|---|---|---|---|---|---|\n";

fn manual(kind: &TableType) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(format!("{}.rs", kind.name));
    let mut manual = String::new();
    for line in fs::read_to_string(file)
        .unwrap()
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
    {
        manual.push_str(line.strip_prefix(' ').unwrap_or(line));
        manual.push('\n');
    }
    manual
}

/// Types that are only there for tests are not described.
fn described() -> impl Iterator<Item = &'static TableType> {
    table_types()
        .iter()
        .copied()
        .filter(|kind| kind.name != "slow")
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    for kind in described() {
        let can = |capability| {
            if kind.capabilities.contains(capability) {
                "yes"
            } else {
                ""
            }
        };
        writeln!(
            text,
            "| [{0}](#{0}) | {1} | {2} | {3} | {4} | {5} |",
            kind.name,
            kind.summary,
            can(Capabilities::SEQUENCE),
            can(Capabilities::UPDATE),
            can(Capabilities::DELETE),
            can(Capabilities::BUILD)
        )
        .unwrap();
    }
    for kind in described() {
        let manual = manual(kind);
        assert!(!manual.is_empty(), "{} has no manual", kind.name);
        write!(text, "\n## {}\n\n{manual}", kind.name).unwrap();
    }
    text
}

#[test]
fn the_page_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tables.md");
    let wanted = document();
    if std::env::var_os("POSTKEEP_WRITE_DOCS").is_some() {
        fs::write(&page, &wanted).unwrap();
    }
    let found = fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/tables.md is old: run this test with POSTKEEP_WRITE_DOCS=1"
    );
}
