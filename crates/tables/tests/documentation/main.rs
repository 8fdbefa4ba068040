//! `docs/tables.md` and the manual pages of the table types are made from the registry and from the manuals at the top of
//! the types' files.
//!
//! `POSTKEEP_WRITE_DOCS=1 cargo test -p postkeep-tables --test documentation` writes them.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

mod roff;

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

/// What can be done with tables of a type, in a sentence.
fn abilities(kind: &TableType) -> String {
    let mut words = vec!["looked up"];
    for (capability, word) in [
        (Capabilities::SEQUENCE, "listed"),
        (Capabilities::UPDATE, "stored"),
        (Capabilities::DELETE, "deleted"),
    ] {
        if kind.capabilities.contains(capability) {
            words.push(word);
        }
    }
    let last = words.pop().unwrap_or_default();
    let list = if words.is_empty() {
        last.to_owned()
    } else {
        format!("{} and {last}", words.join(", "))
    };
    let created = if kind.capabilities.contains(Capabilities::BUILD) {
        " A table is created from a source file with\n.BR postmap (1)."
    } else {
        ""
    };
    format!("Entries can be {list}.{created}")
}

fn manual_page(kind: &TableType) -> String {
    let name = kind.name;
    format!(
        ".\\\" Made from crates/tables/src/{name}.rs; see crates/tables/tests/documentation.\n\
         .TH POSTKEEP\\-{} 5 \"\" postkeep\n\
         .SH NAME\npostkeep\\-{name} \\- {}\n\
         .SH DESCRIPTION\n{}\n\
         .SH OPERATIONS\n{}\n\
         .SH SEE ALSO\n.BR postkeep (1),\n.BR postkeep\\-proxymap (8)\n",
        name.to_uppercase(),
        roff::escape(kind.summary),
        roff::from_markdown(&manual(kind)).trim_end(),
        abilities(kind)
    )
}

#[test]
fn each_type_has_a_manual_page_that_is_up_to_date() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man");
    for kind in described() {
        let page = pages.join(format!("postkeep-{}.5", kind.name));
        let wanted = manual_page(kind);
        if std::env::var_os("POSTKEEP_WRITE_DOCS").is_some() {
            fs::write(&page, &wanted).unwrap();
        }
        let found = fs::read_to_string(&page).unwrap_or_default();
        assert!(
            found == wanted,
            "{} is old: run this test with POSTKEEP_WRITE_DOCS=1",
            page.display()
        );
    }
    // And none is left of a type that is gone.
    let sections = fs::read_dir(&pages)
        .unwrap()
        .filter(|page| {
            let name = page.as_ref().unwrap().file_name();
            name.to_string_lossy().ends_with(".5")
        })
        .count();
    assert_eq!(sections, described().count());
}
