use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const RELEASES: [(u32, u32, u32); 5] = [(3, 3, 20), (3, 4, 24), (3, 5, 13), (3, 7, 11), (3, 11, 6)];

fn read(release: (u32, u32, u32), text: &str) -> (Vec<String>, Vec<String>) {
    let (approved, notices) = parse(Rules::of_release(release), text, &mut ());
    (names(&approved), warnings(notices))
}

fn parse(rules: Rules, text: &str, files: &mut dyn Files) -> (Approved, Vec<Notice>) {
    let mut list = List::new(rules, Listing::Proxied, files);
    list.add(text.as_bytes(), "proxy_read_maps");
    list.finish()
}

fn names(approved: &Approved) -> Vec<String> {
    approved
        .sorted()
        .into_iter()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

fn warnings(notices: Vec<Notice>) -> Vec<String> {
    notices
        .into_iter()
        .filter_map(|notice| match notice {
            Notice::Warning(text) => Some(text),
            Notice::Verbose(_) => None,
        })
        .collect()
}

/// One row: a value, and which tables each column of [`RELEASES`] approves.
#[test]
fn examples_by_release() {
    let rows: [(&str, [&[&str]; 5]); 13] = [
        (
            "proxy:hash:/a, proxy:hash:/b\tproxy:hash:/a\r\nproxy:hash:/c",
            [&["hash:/a", "hash:/b", "hash:/c"]; 5],
        ),
        ("hash:/a check_client_access permit", [&[]; 5]),
        ("proxy:proxy:proxy:hash:/a", [&["hash:/a"]; 5]),
        (
            "Proxy:hash:/a !proxy:hash:/a \"proxy:hash:/a\" [proxy:x]",
            [&[]; 5],
        ),
        ("proxy:nocolon", [&[], &[], &[], &[], &["nocolon"]]),
        ("proxy:x:", [&["x:"]; 5]),
        (
            "proxy:inline:{a=b c=d, e=f}",
            [&["inline:{a=b c=d, e=f}"]; 5],
        ),
        (
            "{ proxy:hash:/a ttl=3 } {{proxy:hash:/b}} { }",
            [&[], &[], &["hash:/a"], &["hash:/a"], &["hash:/a"]],
        ),
        (
            "unionmap:{proxy:hash:/a hash:/b}",
            [&[], &["hash:/a"], &[], &["hash:/a"], &["hash:/a"]],
        ),
        (
            "pipemap:{unionmap:{proxy:hash:/a, proxy:hash:/b} proxy:hash:/c}",
            [
                &[],
                &["hash:/a", "hash:/b", "hash:/c"],
                &[],
                &["hash:/a", "hash:/b", "hash:/c"],
                &["hash:/a", "hash:/b", "hash:/c"],
            ],
        ),
        (
            "proxy:pipemap:{proxy:hash:/a}",
            [&["pipemap:{proxy:hash:/a}"]; 5],
        ),
        (
            "{unionmap:{proxy:hash:/a} x=y}",
            [&[], &[], &[], &["hash:/a"], &["hash:/a"]],
        ),
        ("pipemap:x unionmap:proxy:hash:/a", [&[]; 5]),
    ];
    for (text, columns) in rows {
        for (release, expected) in RELEASES.into_iter().zip(columns) {
            assert_eq!(read(release, text).0, expected, "{text:?} in {release:?}");
        }
    }
}

#[test]
fn patch_levels_that_brought_nested_tables() {
    let text = "unionmap:{proxy:hash:/a}";
    for (release, nested) in [
        ((3, 2, 99), false),
        ((3, 3, 20), false),
        ((3, 3, 21), true),
        ((3, 4, 23), false),
        ((3, 4, 24), true),
        ((3, 5, 13), false),
        ((3, 5, 14), true),
        ((3, 6, 3), false),
        ((3, 6, 4), true),
        ((3, 7, 0), true),
        ((3, 12, 0), true),
        ((4, 0, 0), true),
    ] {
        assert_eq!(!read(release, text).0.is_empty(), nested, "{release:?}");
    }
}

#[test]
fn bad_braces_are_warned_about() {
    let text = "{proxy:hash:/a {proxy:hash:/b}, unionmap:{proxy:x:y";
    assert_eq!(
        read((3, 7, 11), text).1,
        [
            "bad proxy_read_maps parameter value: missing '}' in \"{proxy:hash:/a {proxy:hash:/b}, \
             unionmap:{proxy:x:y\""
        ]
    );
    assert_eq!(
        read((3, 7, 11), "{proxy:a:b}c proxy:c:d unionmap:{proxy:e:f}{").1,
        [
            "bad proxy_read_maps parameter value: syntax error after '}' in \"{proxy:a:b}c\"",
            "bad proxy_read_maps parameter value: syntax error after '}' in \"{proxy:e:f}{\"",
        ]
    );
    assert_eq!(
        read((3, 12, 0), "{proxy:a:b}c").1,
        ["bad syntax in proxy_read_maps content: syntax error after '}' in \"{proxy:a:b}c\""]
    );
    assert!(read((3, 3, 0), text).1.is_empty());
}

#[test]
fn verbose_lines_name_each_table_once() {
    let lines = |release| parse(Rules::of_release(release), "proxy:a:b proxy:a:b", &mut ()).1;
    assert_eq!(lines((3, 4, 0)), []);
    assert_eq!(
        lines((3, 5, 0)),
        [Notice::Verbose(
            "whitelisting a:b from proxy_read_maps".into()
        )]
    );
    assert_eq!(
        lines((3, 7, 11)),
        [Notice::Verbose(
            "allowlisting a:b from proxy_read_maps".into()
        )]
    );
}

#[test]
fn membership_is_exact() {
    let (approved, _) = parse(
        Rules::default(),
        "proxy:hash:/a proxy:inline:{a=b  c=d}",
        &mut (),
    );
    assert!(approved.contains(b"hash:/a"));
    assert!(approved.contains(b"inline:{a=b  c=d}"));
    for other in [
        "hash:/A",
        "Hash:/a",
        "hash:/a ",
        "proxy:hash:/a",
        "inline:{a=b c=d}",
        "",
    ] {
        assert!(!approved.contains(other.as_bytes()), "{other:?}");
    }
}

#[test]
fn listing_all_takes_what_is_not_proxied_too() {
    let mut files = ();
    let mut list = List::new(Rules::default(), Listing::All, &mut files);
    list.add(
        b"hash:/b proxy:proxy:hash:/a [x]:25 reject_rbl_client {cidr:/c a=b} !hash:/n",
        "proxy_read_maps",
    );
    let (approved, notices) = list.finish();
    assert_eq!(names(&approved), ["cidr:/c", "hash:/a", "hash:/b"]);
    assert!(warnings(notices).is_empty());
}

#[test]
fn canonical_names() {
    assert_eq!(canonical(b"proxy:proxy:hash:/a"), b"hash:/a");
    assert_eq!(canonical(b"Proxy:hash:/a"), b"Proxy:hash:/a");
    assert_eq!(canonical(b"proxy:"), b"");
    assert_eq!(canonical(b"proxyhash:a"), b"proxyhash:a");
}

#[derive(Default)]
struct Memory {
    files: HashMap<Vec<u8>, Content>,
    reads: usize,
}

impl Memory {
    fn with(files: &[(&str, &str)]) -> Self {
        Self {
            files: files
                .iter()
                .map(|(path, text)| {
                    let content = Content {
                        bytes: text.as_bytes().to_vec(),
                        error: None,
                    };
                    (path.as_bytes().to_vec(), content)
                })
                .collect(),
            reads: 0,
        }
    }
}

impl Files for Memory {
    fn read(&mut self, path: &[u8], limit: usize) -> Result<Content, String> {
        self.reads += 1;
        let mut content = self
            .files
            .get(path)
            .cloned()
            .ok_or_else(|| "No such file or directory".to_owned())?;
        content.bytes.truncate(limit);
        Ok(content)
    }
}

#[test]
fn files_are_read_as_logical_lines() {
    let mut files = Memory::with(&[(
        "/f",
        "# proxy:no:1\n  orphan proxy:no:2\nproxy:a:1\n\tproxy:a:2\n  # proxy:no:3\n proxy:a:3\r\n\n{proxy:a:4 x}\n{x",
    )]);
    let (approved, notices) = parse(Rules::default(), "proxy:b:1 /f", &mut files);
    assert_eq!(names(&approved), ["a:1", "a:2", "a:3", "a:4", "b:1"]);
    assert!(notices.contains(&Notice::Verbose("allowlisting a:1 from /f".into())));
    assert_eq!(
        warnings(notices),
        [
            "/f: logical line must not start with whitespace: \"  orphan proxy:no:2\"",
            "bad syntax in /f content: missing '}' in \"{x\"",
        ]
    );
}

#[test]
fn files_mean_nothing_before_3_11() {
    let mut files = Memory::with(&[("/f", "proxy:a:1")]);
    let (approved, _) = parse(Rules::of_release((3, 10, 9)), "/f", &mut files);
    assert!(approved.is_empty());
    assert_eq!(files.reads, 0);
}

#[test]
fn a_file_that_names_itself_is_read_once() {
    let mut files = Memory::with(&[("/f", "/f proxy:a:1 /g"), ("/g", "/f /g proxy:a:2")]);
    let (approved, notices) = parse(Rules::default(), "/f /f /g", &mut files);
    assert_eq!(names(&approved), ["a:1", "a:2"]);
    assert_eq!(files.reads, 2);
    assert!(warnings(notices).is_empty());
}

#[test]
fn missing_and_broken_files_are_warned_about() {
    let mut files = Memory::with(&[("/dir", "")]);
    files.files.insert(
        b"/dir".to_vec(),
        Content {
            bytes: Vec::new(),
            error: Some("Is a directory".into()),
        },
    );
    let (_, notices) = parse(Rules::default(), "/none /dir", &mut files);
    assert_eq!(
        warnings(notices),
        [
            "open /none: No such file or directory",
            "read /dir: Is a directory"
        ]
    );
}

#[test]
fn chains_of_files_and_nesting_are_bounded() {
    struct Endless;
    impl Files for Endless {
        fn read(&mut self, path: &[u8], _limit: usize) -> Result<Content, String> {
            let mut bytes = path.to_vec();
            bytes.push(b'x');
            Ok(Content { bytes, error: None })
        }
    }
    let (_, notices) = parse(Rules::default(), "/f", &mut Endless);
    assert_eq!(warnings(notices).len(), 1);

    let deep = format!("{}proxy:a:b{}", "unionmap:{".repeat(5000), "}".repeat(5000));
    let (approved, notices) = parse(Rules::default(), &deep, &mut ());
    assert!(approved.is_empty());
    assert_eq!(warnings(notices).len(), 1);
}

#[test]
fn number_of_names_is_bounded() {
    let many: Vec<String> = (0..MAX_NAMES + 10)
        .map(|n| format!("proxy:a:{n}"))
        .collect();
    let many = many.join(" ");
    let (approved, notices) = parse(Rules::default(), &many, &mut ());
    assert_eq!(approved.len(), MAX_NAMES);
    assert_eq!(warnings(notices).len(), 1);
}

/// Splits by marking, for each byte, how deep it is.
fn naive_tokens(text: &[u8]) -> Vec<Vec<u8>> {
    let mut tokens = vec![Vec::new()];
    let mut level = 0;
    for &byte in text {
        let cut = level == 0 && b", \t\r\n".contains(&byte);
        if byte == b'{' {
            level += 1;
        }
        if byte == b'}' && level > 0 {
            level -= 1;
        }
        if cut {
            tokens.push(Vec::new());
        } else {
            tokens.last_mut().unwrap().push(byte);
        }
    }
    tokens.retain(|token| !token.is_empty());
    tokens
}

proptest! {
    #[test]
    fn tokens_are_those_of_a_naive_splitter(text in "[ab{}, \t\r\n:]{0,40}") {
        let tokens: Vec<Vec<u8>> = split_list_braced(text.as_bytes()).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(tokens, naive_tokens(text.as_bytes()));
    }

    #[test]
    fn any_text_is_survived(text in "(proxy:|unionmap:|pipemap:|[{}/a: ,\n#\0]){0,40}", patch in 0u32..13) {
        let mut files = Memory::with(&[("/a", "/a/a {proxy:a:b"), ("/", "unionmap:{/a}")]);
        let (approved, _) = parse(Rules::of_release((3, patch, 30)), &text, &mut files);
        for name in approved.sorted() {
            prop_assert!(!name.starts_with(PROXY));
            prop_assert!(patch >= 11 || name.contains(&b':'));
        }
    }

    #[test]
    fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut files = ();
        let mut list = List::new(Rules::default(), Listing::All, &mut files);
        list.add(&text, "proxy_read_maps");
        let (approved, _) = list.finish();
        prop_assert!(approved.len() <= text.len());
    }
}
