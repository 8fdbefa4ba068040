//! The installed postmap against ours, on `pcre:` and `regexp:` tables: random rules, good and bad, in a file or in
//! the name, and random keys.
//!
//! Left out is what ours does differently on purpose: expressions that would take the C library more than it should
//! have.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fs;
use std::path::Path;

use postkeep_interop::postmap::{Random, Sides, shrink, words, write_old};

/// How many random tables each test makes of each type.
const ROUNDS: u64 = 70;

const KINDS: [&str; 2] = ["pcre", "regexp"];

/// What we say of an expression before the C library gets to see it.
const TOO_BIG: &str = "Regular expression too big";

/// A part of a pattern, for either type; many mean something in one of them only.
fn atom(random: &mut Random) -> &'static str {
    const RARE: [&str; 48] = [
        "\\d",
        "\\w",
        "\\W",
        "\\s",
        "\\S",
        "\\b",
        "\\B",
        "\\<",
        "\\>",
        "\\A",
        "\\z",
        "\\n",
        "\\e",
        "\\a",
        "\\N",
        "\\1",
        "\\2",
        "\\/",
        "\\\\",
        "\\.",
        "\\x61",
        "\\101",
        "\\Qa.b\\E",
        "\\K",
        "\\R",
        "[[:alpha:]]",
        "[[:digit:]x]",
        "[]a]",
        "[^]a]",
        "[a-c]",
        "[c-a]",
        "[a\\]b]",
        "[[.a.]]",
        "[Aa]",
        "[.]",
        "[",
        "]",
        "{",
        "}",
        "(?i)",
        "(?-i)",
        "(?=a)",
        "(?!b)",
        "(?<=a)",
        "(?#note)",
        "\u{e9}",
        "\u{c9}",
        "@",
    ];
    match random.below(10) {
        0..=5 => random.pick(&["a", "b", "A", "ab", "abc", "foo", "Bar", "c", "1", "23"]),
        6 => random.pick(&[".", ".*", "^", "$", "\\(", "\\)", "\\|"]),
        _ => random.pick(&RARE),
    }
}

fn pattern(random: &mut Random, depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..=random.below(4) {
        if depth < 3 && random.below(5) == 0 {
            let inner = pattern(random, depth + 1);
            let open = random.pick(&["(", "(", "(", "(?:", "(?<n>", "(?i:", "\\(", "(|"]);
            let close = random.pick(&[")", ")", ")", ")", "\\)", ""]);
            text.push_str(open);
            text.push_str(&inner);
            text.push_str(close);
        } else {
            text.push_str(atom(random));
        }
        if random.below(4) == 0 {
            text.push_str(random.pick(&[
                "*", "+", "?", "{2}", "{1,2}", "{0}", "{,2}", "{2,1}", "*?", "**", "+*", "++",
                "\\{2\\}", "\\+", "|", "|", "\\|",
            ]));
        }
    }
    text
}

fn flags(random: &mut Random) -> String {
    let letters = [
        "", "", "", "", "i", "x", "m", "s", "ii", "A", "E", "U", "X", "q", "im",
    ];
    random.pick(&letters).to_owned()
}

fn delimited(random: &mut Random) -> String {
    let mut text = pattern(random, 0);
    let delimiter = *random.pick(&[&'/', &'/', &'/', &'/', &'|', &'"', &'a']);
    if random.below(20) > 0 {
        text = text.replace(delimiter, &format!("\\{delimiter}"));
    }
    let close = if random.below(30) > 0 {
        delimiter.to_string()
    } else {
        String::new()
    };
    format!("{delimiter}{text}{close}{}", flags(random))
}

fn line(random: &mut Random, number: usize) -> String {
    let not = random.pick(&["", "", "", "", "!", "! !", "!\t"]);
    let gap = random.pick(&[" ", " ", "\t", "  "]);
    let rest = random.pick(&[
        "",
        "",
        "",
        "$1",
        "[${1}]",
        "<$(2)> $$",
        "$1 $2",
        "$3x",
        "$0",
        "$",
        "${1",
        "$x",
        "\\$1",
        "$$1",
        "é",
        "$4294967297",
    ]);
    match random.below(24) {
        0..=14 => format!("{not}{}{gap}{number}{rest}", delimited(random)),
        15 => format!(
            "{}{not}!{}{gap}{number}{rest}",
            delimited(random),
            delimited(random)
        ),
        16 => format!(
            "{not}{}{}",
            delimited(random),
            random.pick(&["", " ", " $1"])
        ),
        17..=19 => format!("if {not}{}", delimited(random)),
        20 | 21 => random
            .pick(&["endif", "ENDIF", "endif x", "  endif"])
            .to_owned(),
        22 => random
            .pick(&[
                "# note", "", "if", "ifx", "!", "if!/a/", "\u{e9}x", " /a/ b", "/a\\", "foo bar",
            ])
            .to_owned(),
        _ => format!("{}\n {number}", delimited(random)),
    }
}

fn source(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    for number in 0..3 + random.below(25) {
        text.push_str(&line(random, number));
        text.push('\n');
    }
    text.into_bytes()
}

fn keys(random: &mut Random) -> Vec<u8> {
    let pieces: [&[u8]; 22] = [
        b"a",
        b"b",
        b"A",
        b"B",
        b"ab",
        b"abc",
        b"foo",
        b"FOO",
        b"bar",
        b"c",
        b"1",
        b"23",
        b"\xc3\xa9",
        b"\xc3\x89",
        b"\xff",
        b".",
        b"/",
        b"@",
        b" ",
        b"\\",
        b"d",
        b"a.b",
    ];
    let mut keys = Vec::new();
    for _ in 0..60 {
        let count = random.below(8);
        keys.extend(random.join(&pieces, count));
        keys.push(b'\n');
    }
    keys
}

fn difference(
    sides: &Sides,
    place: &Path,
    kind: &str,
    options: &str,
    source: &[u8],
    keys: &[u8],
) -> Option<String> {
    write_old(&place.join("t"), source);
    let table = format!("{kind}:t");
    let ask = words("postmap", options, &["-q", "-", &table]);
    sides
        .difference([place, place], &ask, keys, false)
        .filter(|text| !text.contains(TOO_BIG))
}

#[test]
fn random_rules_have_the_same_answers_and_warnings() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    let rounds = std::env::var("POSTKEEP_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let (mut answers, mut too_big) = (0, 0);
    for seed in 1..=rounds {
        for kind in KINDS {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let source = source(&mut random);
            // Half of a character in a result is fatal where UTF-8 is checked, which costs a second.
            let options = *random.pick(&[&"", &"-f", &"-u", &"-uf"]);
            let mut keys = keys(&mut random);
            if !options.contains('u') {
                keys.retain(|byte| !b"\xc3\xa9\x89".contains(byte));
            }
            let differs = |source: &[u8], keys: &[u8]| {
                difference(&sides, &place, kind, options, source, keys)
            };
            if let Some(text) = differs(&source, &keys) {
                let source = shrink(&source, |source| differs(source, &keys).is_some());
                let keys = shrink(&keys, |keys| differs(&source, keys).is_some());
                panic!(
                    "seed {seed}, {kind}, options {options}: {text}\nshrunk: source \"{}\", keys \"{}\": {}",
                    source.escape_ascii(),
                    keys.escape_ascii(),
                    differs(&source, &keys).unwrap_or_default()
                );
            }
            let table = format!("{kind}:t");
            let ask = words("postmap", options, &["-q", "-", &table]);
            let outcome = sides.run(&sides.ours, &place, &ask, &keys);
            answers += outcome.stdout.split(|&byte| byte == b'\n').count() - 1;
            too_big += u64::from(outcome.stderr.contains(TOO_BIG));
        }
    }
    assert!(answers as u64 > rounds * 20, "{answers} answers say little");
    assert!(
        too_big <= rounds / 20 + 1,
        "{too_big} tables were not compared"
    );
}

/// Tables as people have them: many rules, texts that are in the key in part, in another case, or not at all.
#[test]
fn large_tables_have_the_same_answers() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    let mut random = Random(0xD134_2543_DE82_EF95);
    let mut text = String::new();
    let mut keys = String::new();
    for number in 0..2000 {
        let domain = format!("host{}.example{}", random.below(1500), number % 7);
        let rule = match random.below(9) {
            0 => format!(
                "/^user{number}@{}$/ OK {number}",
                domain.replace('.', "\\.")
            ),
            1 => format!(
                "/^(.*)@{}$/ $1@new{number}.example",
                domain.replace('.', "[.]")
            ),
            2 => format!("/^Subject:.*(cheap|free) word{number}/ REJECT $1 {number}"),
            3 => format!("!/[a-z0-9]{{{}}}/ short {number}", 1 + random.below(2)),
            4 => format!("if /@{domain}/\n/^a.*(b+)/ inside {number}$1\nendif"),
            5 => format!(
                "if !/x{}/\n/^X-Mailer: m{number}( |$)/ DISCARD {number}\nendif",
                number % 9
            ),
            6 => format!("/^[0-9]+ {number} (\\w+)$/ got $1"),
            7 => format!("/w{number}|\\.v{number}\\b|u{number}$/ alternative {number}"),
            _ => format!("/Exact{number}/i case {number}"),
        };
        text.push_str(&rule);
        text.push('\n');
        let key = match random.below(9) {
            0 => format!("user{number}@{domain}"),
            1 => format!("Some.One@{}", domain.to_uppercase()),
            2 => format!("Subject: very CHEAP word{number}!"),
            3 => format!("a bbb@{domain} y"),
            4 => format!("x-mailer: M{number}"),
            5 => format!("77 {number} word"),
            6 => format!("zz.v{number} u{number}"),
            7 => format!("exact{number}"),
            _ => format!("not found {domain}"),
        };
        keys.push_str(&key);
        keys.push('\n');
    }
    for kind in KINDS {
        if let Some(text) = difference(&sides, &place, kind, "", text.as_bytes(), keys.as_bytes()) {
            panic!("{kind}: {text}");
        }
    }
}

#[test]
fn names_that_carry_rules_and_faults() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    write_old(
        &place.join("t"),
        b"/(a)/ b$1\n/c/ f\n/(d)/ f$1\n/e/ none\n/g/\n",
    );
    write_old(&place.join("f"), b"content $1\n");
    fs::create_dir(place.join("d")).unwrap();
    let mut cases: Vec<Vec<String>> = Vec::new();
    for kind in KINDS {
        for name in [
            "{}",
            "{ }",
            "{{}}",
            "{{/a/ b}{/c/ d}}",
            "{{/a/ b}}x",
            "{{/a/ b}",
            "{/a/ b}",
            "{ {/x/ y}, {if /a{1}/}{{/b/ c}}  {endif} }",
            "{{if !/z/}\n{/a/ x} {{/y/ q}}",
            "{{# note} { /a/  $$ b }}",
            "{{# note\n  /a/ b}}",
            "{{/(a)/ b\n  $1}}",
            "t",
            "d",
            "missing",
        ] {
            let table = format!("{kind}:{name}");
            for options in ["", "-F"] {
                let mut case = vec!["postmap".to_owned()];
                if !options.is_empty() {
                    case.push(options.to_owned());
                }
                case.extend(["-q", "-", &table].map(str::to_owned));
                cases.push(case);
            }
        }
        for words in [
            &["-s"][..],
            &["-d", "a"],
            &["-i"],
            &[],
            &["-q", ""],
            &["-q", "g"],
            &["-q", "zzz"],
        ] {
            let mut case = vec!["postmap".to_owned()];
            case.extend(words.iter().map(|&word| word.to_owned()));
            case.push(format!("{kind}:t"));
            cases.push(case);
        }
    }
    let next = std::sync::Mutex::new(cases.iter());
    // Each fatal error costs both programs a second, spent asleep.
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else {
                        return;
                    };
                    let words: Vec<&str> = case.iter().map(String::as_str).collect();
                    let keys = b"a\nb\nc\nd\ne\ng\nxa\nab\n\xff\n";
                    sides.compare([&place, &place], &words, keys, false, "");
                }
            });
        }
    });
}
