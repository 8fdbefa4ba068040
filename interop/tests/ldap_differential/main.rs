//! The installed postmap against ours, on `ldap:` tables: one slapd for both. Then what only ours is asked, because the
//! reference waits for longer, or does something else that is listed in `docs/compatibility.md`.
//!
//! Not compared: a line before the reference's that says which key of a configuration is wrong, and one that says why there
//! is no TLS.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

mod alone;
mod credentials;

use std::fmt::Write as _;
use std::thread;

use postkeep_interop::postmap::{Outcome, Random, Sides, write_old};
use postkeep_interop::servers::slapd::Slapd;
use postkeep_interop::servers::told;
use postkeep_testkit::private_postfix::free_port;

const ENTRIES: &str = include_str!("entries.ldif");

const BASE: &str = "search_base = dc=example\n";

/// Keys for groups.
const GROUPS: &str = "query_filter = (cn=%s)\nresult_attribute = memberaddr\nspecial_result_attribute = memberdn, memberurl\n\
                      terminal_result_attribute = maildrop\nleaf_result_attribute = mail\nsearch_base = dc=example\n";

/// A server and the two programs.
struct Both {
    sides: Sides,
    server: Slapd,
}

impl Both {
    /// `None`, after saying SKIP, where something is missing.
    fn start(more: &str) -> Option<Self> {
        let sides = Sides::new()?;
        let server = Slapd::start(ENTRIES, more)?;
        Some(Self { sides, server })
    }

    /// A table of this server.
    fn table(&self, name: &str, text: &str) -> String {
        table(
            &self.sides,
            name,
            &format!("server_host = 127.0.0.1:{}\n{text}", self.server.port),
        )
    }

    /// How many connections to the server are open from this process.
    fn connections(&self) -> usize {
        let wanted = format!("0100007F:{:04X}", self.server.port);
        let all = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let open = all.lines().filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // The far end is the server, and the state is ESTABLISHED.
            words.len() > 3 && words[2] == wanted && words[3] == "01"
        });
        open.count()
    }
}

fn table(sides: &Sides, name: &str, text: &str) -> String {
    let file = sides.root().join(format!("{name}.cf"));
    write_old(&file, text.as_bytes());
    format!("ldap:{}", file.display())
}

/// Without what ours says beside the reference.
fn comparable(outcome: &Outcome) -> (Option<i32>, String, Vec<String>) {
    let (exit, stdout, lines) = told(outcome);
    let lines = lines
        .into_iter()
        .filter(|line| !line.contains(": expecting ") && !line.contains(": TLS: "));
    (exit, stdout.escape_ascii().to_string(), lines.collect())
}

/// Asks both for the keys, one for each line of `keys`.
fn difference(sides: &Sides, table: &str, keys: &str) -> Option<String> {
    let (words, input) = if keys.contains('\n') {
        (["postmap", "-q", "-", table], keys)
    } else {
        (["postmap", "-q", keys, table], "")
    };
    let run = |programs| sides.run(programs, sides.root(), &words, input.as_bytes());
    // At once, because a failed command takes a second.
    let (real, ours) = thread::scope(|scope| {
        let ours = scope.spawn(|| run(&sides.ours));
        (run(&sides.real), ours.join().unwrap())
    });
    let (real_told, ours_told) = (comparable(&real), comparable(&ours));
    (real_told != ours_told)
        .then(|| format!("{table} {keys:?}\nreal: {real_told:#?}\nours: {ours_told:#?}"))
}

/// Configurations with keys.
fn compare_all(both: &Both, cases: &[(String, String)]) {
    let tables: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(number, (text, keys))| {
            let name = format!("t{number}");
            let table = if text.contains("server_host") {
                table(&both.sides, &name, text)
            } else {
                both.table(&name, text)
            };
            (table, keys.clone(), text.clone())
        })
        .collect();
    compare_tables(&both.sides, &tables);
}

/// Tables with keys and a note, many at once.
fn compare_tables(sides: &Sides, cases: &[(String, String, String)]) {
    let differences: Vec<String> = all_at_once(cases, |(table, keys, note)| {
        difference(sides, table, keys).map(|found| format!("{note}\n{found}"))
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// What comes of each case, of which many run at once: a failed command takes a second.
fn all_at_once<T: Sync, R: Send>(cases: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let run = &run;
    let parts = cases.chunks(48).map(|some| {
        thread::scope(|scope| {
            let runs: Vec<_> = some.iter().map(|case| scope.spawn(|| run(case))).collect();
            runs.into_iter()
                .map(|run| run.join().unwrap())
                .collect::<Vec<_>>()
        })
    });
    parts.flatten().collect()
}

fn case(text: &str, keys: &str) -> (String, String) {
    (text.to_owned(), keys.to_owned())
}

/// What ours finds for a key: exit status, output, warnings.
fn ours(sides: &Sides, table: &str, key: &str) -> (Option<i32>, String, Vec<String>) {
    let words = ["postmap", "-q", key, table];
    comparable(&sides.run(&sides.ours, sides.root(), &words, b""))
}

#[test]
fn keys_filters_and_results() {
    let Some(both) = Both::start("") else { return };
    let all = "alice\nALICE@D.example\nmany\ncommon\nnone\nabsent\na*b(c)d\\e\nquo\"te's\n\u{e9}\n\u{c9}\n%s%u\n\\2a\n*\n\
               a*\n)(cn=*\nx)(|(cn=*)\n\n@d.example\nu@\nu@d.example\ntext\n";
    let mut cases = vec![
        case(BASE, all),
        case(&format!("{BASE}result_format = <%s>\n"), all),
        case(&format!("{BASE}result_format = %u at %d\n"), all),
        case(&format!("{BASE}result_filter = [%s]\n"), all),
        case(
            &format!("{BASE}result_format =\nresult_filter = [%s]\n"),
            "alice",
        ),
        case(&format!("{BASE}result_format = %S %1 %D %%\n"), all),
        case(
            &format!("{BASE}query_filter = (mailacceptinggeneralid=%u)\n"),
            all,
        ),
        case(
            &format!("{BASE}query_filter = (mailacceptinggeneralid=%s)\ndomain = d.example\n"),
            all,
        ),
        case(&format!("{BASE}domain = static:x, fail:y\n"), "u@d.example"),
        case(&format!("{BASE}domain = fail:y\n"), "u@d.example"),
        case(
            &format!("{BASE}result_attribute = maildrop mail, memberaddr\n"),
            all,
        ),
        case(&format!("{BASE}result_attribute = MAILDROP,Mail\n"), all),
        case(&format!("{BASE}result_attribute =\n"), all),
        case(&format!("{BASE}result_attribute = nosuch\n"), all),
        case(&format!("{BASE}result_attribute = mail\n"), all),
        case(&format!("{BASE}result_attribute = blob\n"), "blob"),
        case(
            "search_base = ou=%d,dc=example\nquery_filter = (cn=%u)\n",
            "u@d.example\nu@a,b#c d;e+f\nx@a,b#c d;e+f\nx@none\nx\n",
        ),
        case(
            "search_base = ou=%s,dc=example\nquery_filter = (cn=x)\n",
            "a,b#c d;e+f\na\nx,dc=example\n",
        ),
        case("search_base = ou=none,dc=example\n", "alice"),
        case("search_base = none\n", "alice"),
        case("", "alice"),
        case(
            &format!("{BASE}scope = one\nquery_filter = (ou=%s)\nresult_attribute = ou\n"),
            "users\nalice\n",
        ),
        case(
            &format!("{BASE}scope = BASE\nquery_filter = (dc=%s)\nresult_attribute = dc\n"),
            "example\nusers\n",
        ),
        case(&format!("{BASE}scope = all\n"), "alice"),
        case(&format!("{BASE}expansion_limit = 4\n"), "many"),
        case(&format!("{BASE}expansion_limit = 3\n"), "many"),
        case(
            &format!("{BASE}expansion_limit = 3\nsize_limit = 1\n"),
            "common",
        ),
        case(&format!("{BASE}size_limit = 2\n"), "common"),
        case(&format!("{BASE}size_limit = 1\n"), "common"),
        case(&format!("{BASE}version = 2\n"), all),
        case(&format!("{BASE}version = 2\nbind = no\n"), all),
        case(&format!("{BASE}version = 4\n"), "alice"),
        case(
            &format!("{BASE}dereference = 3\nquery_filter = (cn=%s)\n"),
            "alias\nalice\n",
        ),
        case(
            &format!("{BASE}dereference = 1\nquery_filter = (cn=%s)\n"),
            "alias\nalice\n",
        ),
        case(
            "search_base = cn=alias,ou=groups,dc=example\ndereference = 2\nquery_filter = (cn=%s)\n",
            "alias\nalice\n",
        ),
        case(
            &format!("{BASE}dereference = 0\nquery_filter = (cn=%s)\n"),
            "alias\nalice\n",
        ),
        case(&format!("{BASE}dereference = 9\n"), "alice"),
        case(
            &format!("{BASE}cache = yes\ncache_expiry = 5\ncache_size = 0\n"),
            "alice",
        ),
    ];
    let filters = [
        "mailacceptinggeneralid=%s",
        "(&(mailacceptinggeneralid=%s)(cn=*))",
        "(& (mailacceptinggeneralid=%s) (!(cn=alice)))",
        "(|(cn=%s)(mailacceptinggeneralid=%s))",
        "(mailacceptinggeneralid=%s*)",
        "(mailacceptinggeneralid=*%s)",
        "(mailacceptinggeneralid=a*%s*e)",
        "(mailacceptinggeneralid:caseExactMatch:=%s)",
        "(mailacceptinggeneralid>=%s)",
        "(mailacceptinggeneralid~=%s)",
        "(cn=alice)",
        "(&)",
        "(&%s)",
        "(!(cn=%s)(cn=b))",
        "(mailacceptinggeneralid=%s",
        "(mailacceptinggeneralid=%s))",
        " (mailacceptinggeneralid=%s)",
        "(%s)",
        "%s",
        "(nosuch=%s)",
        "(cn=%s\\2)",
        "((cn=%s))",
    ];
    for filter in filters {
        for key in ["alice", "*", "cn=alice", "cn=*"] {
            cases.push(case(&format!("{BASE}query_filter = {filter}\n"), key));
        }
    }
    compare_all(&both, &cases);
}

#[test]
fn groups_and_urls() {
    let Some(both) = Both::start("") else { return };
    let names = [
        "group",
        "outer",
        "terminal",
        "loop",
        "gone",
        "gone-first",
        "gone-only",
        "not-a-name",
        "url",
        "url-group",
        "bad-url",
        "bad-filter",
        "big-url",
        "alice",
    ];
    let mut cases = Vec::new();
    for name in names {
        for more in [
            "",
            "expansion_limit = 2\n",
            "size_limit = 2\n",
            "recursion_limit = 2\n",
            "recursion_limit = 1\n",
        ] {
            cases.push(case(&format!("{GROUPS}{more}"), name));
        }
    }
    for more in [
        "leaf_result_attribute =\n",
        "terminal_result_attribute =\n",
        "result_attribute = mail\nleaf_result_attribute =\n",
        "special_result_attribute =\n",
        "result_attribute =\nterminal_result_attribute =\nleaf_result_attribute = mail\n",
        "result_format = %u!%d\n",
        "bind = no\n",
    ] {
        for name in ["group", "outer", "terminal", "url", "url-group"] {
            // The later of two lines counts; the reference says so more often than once.
            let mut text = GROUPS.to_owned();
            for line in more.lines() {
                let key = line.split(' ').next().unwrap();
                text = text
                    .lines()
                    .filter(|old| !old.starts_with(&format!("{key} ")))
                    .fold(String::new(), |mut text, old| {
                        writeln!(text, "{old}").unwrap();
                        text
                    });
            }
            cases.push(case(&format!("{text}{more}"), name));
        }
    }
    compare_all(&both, &cases);
    // The reference forgets about the later entries of a search when one of them is terminal.
    let text = "query_filter = (|(cn=terminal)(cn=none))\nresult_attribute =\nterminal_result_attribute = maildrop\n\
                leaf_result_attribute = mail\nspecial_result_attribute = memberdn\nsearch_base = dc=example\n";
    let (exit, found, _) = ours(&both.sides, &both.table("per-entry", text), "x");
    assert_eq!(exit, Some(0));
    let mut found: Vec<&str> = found.strip_suffix("\\n").unwrap().split(',').collect();
    found.sort_unstable();
    assert_eq!(found, ["none@mail.example", "terminal@x.example"]);
}

#[test]
fn configurations_that_are_wrong() {
    let Some(both) = Both::start("") else { return };
    let cases: Vec<_> = [
        "server_host =\n",
        "server_port = x\n",
        "version = 1\n",
        "version = x\n",
        "scope =\n",
        "timeout = 1s\n",
        "search_base = %x\n",
        "query_filter = %\n",
        "query_filter = (a=%0)\n",
        "result_format = %x\n",
        "result_format =\nresult_filter =\n",
        "domain = /no/such\n",
        "domain = nosuch:x\n",
        "bind =\n",
        "cache = 1\n",
        "cache_size = x\n",
        "recursion_limit = 0\n",
        "expansion_limit = x\n",
        "size_limit = x\n",
        "dereference = x\n",
        "chase_referrals = 0\n",
        "start_tls = 1\n",
        "tls_require_cert = demand\n",
        "debuglevel = x\n",
        "hello\n",
        // The first of several faults.
        "debuglevel = x\nbind =\nrecursion_limit = 0\nscope =\n",
    ]
    .map(|text| case(text, "alice"))
    .into();
    compare_all(&both, &cases);
    let tables = ["ldap:/no/such/file.cf", "ldap:"];
    let tables = tables.map(|table| (table.to_owned(), "k".to_owned(), String::new()));
    compare_tables(&both.sides, &tables);
    let (exit, _, lines) = ours(
        &both.sides,
        &both.table("sasl", "bind = sasl\nsasl_mechs = GSSAPI\n"),
        "k",
    );
    assert_eq!(exit, Some(1));
    assert!(
        lines[0].contains("sasl_mechs = GSSAPI: EXTERNAL is the only one"),
        "{lines:?}"
    );
}

#[test]
fn parameters_in_main_cf_and_operations() {
    let Some(both) = Both::start("") else { return };
    let file = both.sides.root().join("cfg/main.cf");
    let mut text = std::fs::read(&file).unwrap();
    text.extend(
        format!(
            "base = dc=example\ngood_server_host = 127.0.0.1:{}\ngood_search_base = $base\ngood_result_format = $$%s\n\
             bad_server_port = x\n",
            both.server.port
        )
        .bytes(),
    );
    write_old(&file, &text);
    let tables = [
        ("ldap:good", "alice"),
        ("ldap:good", "absent"),
        ("ldap:bad", "alice"),
    ];
    let tables = tables.map(|(table, key)| (table.to_owned(), key.to_owned(), String::new()));
    compare_tables(&both.sides, &tables);
    let places = [both.sides.root(), both.sides.root()];
    let commands = [
        &["postmap", "-i", "ldap:good"][..],
        &["postmap", "-d", "k", "ldap:good"],
        &["postmap", "-s", "ldap:good"],
        &["postmap", "ldap:good"],
    ];
    all_at_once(&commands, |words| {
        both.sides
            .compare(places, words, b"a b\n", false, "operation");
    });
}

/// Keys that were not thought of, under all the rules of folding and UTF-8.
#[test]
fn random_keys() {
    let Some(both) = Both::start("") else { return };
    let mut random = Random(0x5eed_1dab);
    let pieces: [&[u8]; 20] = [
        b"alice",
        b"many",
        b"a",
        b"*",
        b"(",
        b")",
        b"\\",
        b"\\2a",
        b"%s",
        b"@d.example",
        b"@",
        b"\"",
        b"\xc3\xa9",
        b"\xff",
        b"\xc3",
        b"\x01",
        b"=",
        b"&",
        b"|(cn=*)",
        b" ",
    ];
    let mut keys = Vec::new();
    for _ in 0..150 {
        let count = 1 + random.below(4);
        keys.extend(random.join(&pieces, count));
        keys.push(b'\n');
    }
    for (number, text) in [
        BASE.to_owned(),
        format!(
            "{BASE}query_filter = (|(mailacceptinggeneralid=%s)(cn=%u))\nresult_attribute = cn\n"
        ),
        "search_base = cn=%u,ou=users,dc=example\nquery_filter = (mailacceptinggeneralid=%u)\n"
            .to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let table = both.table(&format!("random{number}"), text);
        for options in ["", "-f", "-u", "-fu"] {
            let words = if options.is_empty() {
                vec!["postmap", "-q", "-", &table]
            } else {
                vec!["postmap", options, "-q", "-", &table]
            };
            both.sides.compare(
                [both.sides.root(), both.sides.root()],
                &words,
                &keys,
                false,
                text,
            );
        }
    }
}

#[test]
fn referrals() {
    let Some(sides) = Sides::new() else { return };
    let Some(other) = Slapd::start(ENTRIES, "") else {
        return;
    };
    let dead = free_port().unwrap();
    let entries = format!(
        "dn: cn=here,dc=example\nobjectclass: mailThing\ncn: here\nmailacceptinggeneralid: common\nmaildrop: here\n\n\
         dn: ou=away,dc=example\nobjectclass: referral\nobjectclass: extensibleObject\nou: away\n\
         ref: ldap://127.0.0.1:{}/ou=users,dc=example\n\n\
         dn: ou=lost,dc=example\nobjectclass: organizationalUnit\nou: lost\n\n\
         dn: ou=dead,ou=lost,dc=example\nobjectclass: referral\nobjectclass: extensibleObject\nou: dead\n\
         ref: ldap://127.0.0.1:{dead}/dc=example\n",
        other.port
    );
    let Some(server) = Slapd::start(&entries, "") else {
        return;
    };
    let both = Both { sides, server };
    let mut cases = Vec::new();
    for chase in ["no", "yes"] {
        for base in ["ou=away,dc=example", "cn=alice,ou=away,dc=example"] {
            for key in ["alice", "common", "absent"] {
                cases.push((
                    format!("search_base = {base}\nchase_referrals = {chase}\n"),
                    key.to_owned(),
                ));
            }
        }
    }
    cases.push((format!("{BASE}chase_referrals = no\n"), "common".to_owned()));
    cases.push((
        "search_base = dc=elsewhere\nchase_referrals = yes\n".to_owned(),
        "common".to_owned(),
    ));
    compare_all(&both, &cases);
    let text = "search_base = dc=example\nscope = one\nchase_referrals = yes\n";
    let (exit, found, lines) = ours(&both.sides, &both.table("one", text), "common");
    assert_eq!((exit, &lines[..]), (Some(0), &[][..]), "{found}");
    assert_eq!(found.matches("here").count(), 1, "{found}");
}
