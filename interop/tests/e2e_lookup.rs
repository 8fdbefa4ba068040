//! `postmap -q KEY proxy:TYPE:NAME` of the real postmap(1) through a lookup table server, beside
//! `postmap -q KEY TYPE:NAME` without one: the same for Postfix's own server (the control) and ours.

use std::fmt;

use anyhow::{Result, ensure};
use postkeep_testkit::private_postfix::Plan;
use postkeep_testkit::{Implementation, PrivatePostfix};

/// What a lookup has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A value, the same through the server and directly.
    Found,
    /// No value, the same both ways.
    NotFound,
    /// An error, the same both ways.
    Error,
    /// The server cannot open the table: it answers with errors, while the direct lookup ends at once.
    Unavailable,
    /// The server does not approve the table.
    Denied,
    /// Upper-case keys: clients up to 3.10 fold them, servers do not. Only equal to the control.
    AsControl,
}

const TABLES: &[(&str, &[(&str, Wanted)])] = &[
    (
        "inline:{ {key=value}, {two=second value} }",
        &[
            ("key", Wanted::Found),
            ("two", Wanted::Found),
            ("absent", Wanted::NotFound),
            ("Key", Wanted::AsControl),
        ],
    ),
    (
        "inline:{ a=1 b=2, c=3 }",
        &[
            ("a", Wanted::Found),
            ("b", Wanted::Found),
            ("c", Wanted::Found),
            ("d", Wanted::NotFound),
        ],
    ),
    (
        "static:always",
        &[("any", Wanted::Found), ("", Wanted::AsControl)],
    ),
    ("static:{ two words }", &[("any", Wanted::Found)]),
    ("fail:one", &[("any", Wanted::Error)]),
    ("internal:nothing", &[("any", Wanted::NotFound)]),
    (
        "environ:x",
        &[
            ("lower_case", Wanted::Found),
            ("MAIL_CONFIG", Wanted::AsControl),
            ("no_such_name", Wanted::NotFound),
        ],
    ),
    (
        "texthash:$SCRATCH/tables/text",
        &[
            ("plain", Wanted::Found),
            ("user@example.test", Wanted::Found),
            ("continued", Wanted::Found),
            ("eight", Wanted::Found),
            ("absent", Wanted::NotFound),
            ("Mixed", Wanted::AsControl),
            ("mixed", Wanted::AsControl),
            ("na\u{ef}ve", Wanted::Found),
        ],
    ),
    (
        "lmdb:$SCRATCH/tables/index",
        &[
            ("plain", Wanted::Found),
            ("user@example.test", Wanted::Found),
            ("PLAIN", Wanted::Found),
            ("absent", Wanted::NotFound),
        ],
    ),
    (
        "hash:$SCRATCH/tables/hashed",
        &[
            ("plain", Wanted::Found),
            ("user@example.test", Wanted::Found),
            ("PLAIN", Wanted::Found),
            ("na\u{ef}ve", Wanted::Found),
            ("absent", Wanted::NotFound),
        ],
    ),
    (
        "btree:$SCRATCH/tables/tree",
        &[
            ("plain", Wanted::Found),
            ("continued", Wanted::Found),
            ("absent", Wanted::NotFound),
        ],
    ),
    (
        "hash:$SCRATCH/tables/missing",
        &[("any", Wanted::Unavailable)],
    ),
    (
        "cdb:$SCRATCH/tables/constant",
        &[
            ("plain", Wanted::Found),
            ("user@example.test", Wanted::Found),
            ("PLAIN", Wanted::Found),
            ("na\u{ef}ve", Wanted::Found),
            ("absent", Wanted::NotFound),
        ],
    ),
    (
        "cdb:$SCRATCH/tables/missing",
        &[("any", Wanted::Unavailable)],
    ),
    (
        "unix:passwd.byname",
        &[
            ("root", Wanted::Found),
            ("postfix", Wanted::Found),
            ("no-such-user", Wanted::NotFound),
        ],
    ),
    (
        "unix:group.byname",
        &[
            ("root", Wanted::Found),
            ("postdrop", Wanted::Found),
            ("no-such-group", Wanted::NotFound),
        ],
    ),
    ("unix:no.such.thing", &[("any", Wanted::Unavailable)]),
    (
        "texthash:$SCRATCH/tables/missing",
        &[("any", Wanted::Unavailable)],
    ),
    (
        "lmdb:$SCRATCH/tables/missing",
        &[("any", Wanted::Unavailable)],
    ),
    ("nosuchtype:x", &[("any", Wanted::Unavailable)]),
    ("static:{unclosed", &[("any", Wanted::Unavailable)]),
];

const DENIED: &[(&str, &[(&str, Wanted)])] = &[
    ("static:not-approved", &[("any", Wanted::Denied)]),
    (
        "texthash:$SCRATCH/tables/secret",
        &[("plain", Wanted::Denied)],
    ),
    ("lmdb:$SCRATCH/tables/secret", &[("plain", Wanted::Denied)]),
];

/// How a command ended and what it printed.
#[derive(Clone, PartialEq, Eq)]
struct Answer {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.code, self.output, self.errors)
    }
}

fn ask(postfix: &PrivatePostfix, key: &str, table: &str) -> Result<Answer> {
    let output = postfix.command("postmap", &["-q", key, table])?;
    let root = postfix.scratch().display().to_string();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&root, "$SCRATCH");
    Ok(Answer {
        code: output.status.code(),
        output: text(&output.stdout),
        errors: text(&output.stderr),
    })
}

/// Lookups with their answers, and what the server logged about them.
#[derive(Debug)]
struct Transcript {
    answers: Vec<(String, Answer)>,
    log: Vec<String>,
}

fn lookups(implementation: Implementation) -> Result<Option<Transcript>> {
    let mut approved = String::new();
    for (table, _) in TABLES {
        if !table.contains("{unclosed") {
            approved.extend(["proxy:", table, ", "]);
        }
    }
    // An open brace swallows what follows; it must come last.
    approved.push_str("proxy:static:{unclosed");
    let text = "plain one\nuser@example.test two words\nMixed case\neight \u{f6}\u{e4}\u{fc}\n\
                na\u{ef}ve yes\ncontinued first\n  second\n# comment\n";
    let started = Plan::new(implementation)
        .parameter("proxy_read_maps", &approved)
        .parameter(
            "import_environment",
            "MAIL_CONFIG MAIL_LOGTAG LANG=C lower_case=imported",
        )
        .table("text", text)
        .table("secret", "plain secret\n")
        .indexed_table("lmdb", "index", text)
        .indexed_table("cdb", "constant", text)
        .indexed_table("hash", "hashed", text)
        .indexed_table("btree", "tree", text)
        .indexed_table("lmdb", "secret", "plain secret\n")
        .start()?;
    let Some(postfix) = started else {
        return Ok(None);
    };
    let root = postfix.scratch().display().to_string();
    let mut answers = Vec::new();
    for (table, keys) in TABLES.iter().chain(DENIED) {
        let table = table.replace("$SCRATCH", &root);
        for &(key, wanted) in *keys {
            let proxied = ask(&postfix, key, &format!("proxy:{table}"))?;
            let direct = ask(&postfix, key, &table)?;
            let shown = format!("{key:?} in {}", table.replace(&root, "$SCRATCH"));
            println!("{implementation:?}: {shown}: {proxied:?}");
            let good = match wanted {
                Wanted::Found => proxied.code == Some(0) && proxied == direct,
                Wanted::NotFound => {
                    proxied.code == Some(1) && proxied == direct && proxied.errors.is_empty()
                }
                Wanted::Error => {
                    let unproxied = Answer {
                        errors: proxied.errors.replace("proxy:", ""),
                        ..proxied.clone()
                    };
                    proxied.code == Some(1)
                        && unproxied == direct
                        && direct.errors.contains("error")
                }
                Wanted::Unavailable => {
                    proxied.code == Some(1) && proxied.errors.contains("query error")
                }
                Wanted::Denied => {
                    proxied.code == Some(1)
                        && proxied.output.is_empty()
                        && proxied
                            .errors
                            .contains("proxymap service is not configured for table")
                }
                Wanted::AsControl => true,
            };
            ensure!(
                good,
                "{shown}: {wanted:?}: proxied {proxied:?}, direct {direct:?}"
            );
            answers.push((shown, proxied));
        }
    }
    let log = postfix
        .log()
        .lines()
        .filter(|line| line.contains("/proxymap["))
        .filter_map(|line| line.split_once("]: "))
        .map(|(_, text)| text.replace(&root, "$SCRATCH"))
        .collect();
    Ok(Some(Transcript { answers, log }))
}

#[test]
fn control() -> Result<()> {
    lookups(Implementation::Postfix)?;
    Ok(())
}

#[test]
fn postkeep_answers_and_logs_as_the_control() -> Result<()> {
    let Some(control) = lookups(Implementation::Postfix)? else {
        return Ok(());
    };
    let Some(ours) = lookups(Implementation::Postkeep)? else {
        return Ok(());
    };
    for (control, ours) in control.answers.iter().zip(&ours.answers) {
        assert_eq!(control, ours);
    }
    assert_eq!(control.answers.len(), ours.answers.len());
    assert_eq!(control.log, ours.log);
    Ok(())
}
