//! The installed postmap against ours, on tables made of other tables: `pipemap:`, `unionmap:`, `randmap:`.
//!
//! Left out is what ours does differently on purpose: a nesting of more than a hundred.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use postkeep_interop::postmap::{Random, Sides, words, write_old};

/// How many random names there are, each with a hundred keys.
const ROUNDS: u64 = 60;

/// A table that opens, whose results are keys of others.
fn member(random: &mut Random, depth: usize) -> String {
    let leaves = [
        "inline:{a=b, B=c, {c = a}, d=}",
        "inline:{{a=A,b}, b=x, =empty}",
        "inline:{\u{c9}=\u{e9}, \u{e9}=a}",
        "static:b",
        "static:{}",
        "static:{ c }",
        "texthash:t",
        "cidr:{{10.0.0.0/8 a}, {if ::/0}, {::1 10.0.0.1}, {endif}}",
        "randmap:{A}",
        "randmap:{{}}",
        "environ:x",
        "unix:passwd.byname",
        "internal:x",
    ];
    if depth == 0 || random.below(3) > 0 {
        return (*random.pick(&leaves.each_ref())).to_owned();
    }
    list(random, depth)
}

fn list(random: &mut Random, depth: usize) -> String {
    let kind = random.pick(&["pipemap", "unionmap"]);
    let mut name = format!("{kind}:{{");
    for _ in 0..=random.below(4) {
        name.push_str(&member(random, depth - 1));
        name.push_str(random.pick(&[", ", ",", " ", ",,", "\t"]));
    }
    name.push('}');
    name
}

fn keys(random: &mut Random) -> Vec<u8> {
    let keys: [&[u8]; 16] = [
        b"a",
        b"A",
        b"b",
        b"B",
        b"c",
        b"d",
        b"x",
        b"",
        b"root",
        b"variable",
        b"Capital",
        b"10.1.2.3",
        b"::1",
        b"\xc3\x89",
        b"\xc3\xa9",
        b"\xff",
    ];
    (0..100)
        .flat_map(|_| [*random.pick(&keys.each_ref()), b"\n"].concat())
        .collect()
}

fn prepare(sides: &Sides) -> std::path::PathBuf {
    let place = sides.directory("both");
    write_old(&place.join("t"), b"a B\nB d\nc root\nx 10.0.0.9\n");
    fs::write(place.join("v"), "of a file").unwrap();
    place
}

fn compare(sides: &Sides, place: &Path, options: &str, name: &str, keys: &[u8]) {
    let ask = words("postmap", options, &["-q", "-", name]);
    sides.compare([place, place], &ask, keys, false, name);
}

#[test]
fn random_lists_give_the_same_answers() {
    let Some(sides) = Sides::new() else { return };
    let place = prepare(&sides);
    for seed in 1..=ROUNDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let options = *random.pick(&[&"", &"", &"-f", &"-u", &"-uf"]);
        let name = list(&mut random, 4);
        let keys = keys(&mut random);
        let note = format!("{name}, seed {seed}");
        let ask = words("postmap", options, &["-q", "-", &name]);
        sides.compare([&place, &place], &ask, &keys, false, &note);
    }
}

#[test]
fn faults_have_the_same_texts() {
    let Some(sides) = Sides::new() else { return };
    let place = prepare(&sides);
    let mut names = Vec::new();
    for kind in ["pipemap", "unionmap"] {
        for members in [
            "{}",
            "{ , }",
            "{static}",
            "{static:x, static}",
            "{static:x",
            "{static:x}}",
            "{static:x}y",
            "{static:x}{static:y}",
            "static:x",
            "{{static:x}}",
            "{static:}",
            "{:x}",
            "{nosuch:x, static}",
            "{static:x, texthash:missing}",
            "{cidr:missing, nosuch:x}",
            "{inline:{a=b}, fail:x}",
            "{fail:x, static:y}",
            "{inline:{a}}",
            "{unix:x}",
        ] {
            names.push(format!("{kind}:{members}"));
        }
    }
    for results in ["one", "{}", "{ }", "{,}", "{x}y", "{a b}}", "{a", "{{x}"] {
        names.push(format!("randmap:{results}"));
    }
    // Each fatal error costs both programs a second, spent asleep.
    std::thread::scope(|scope| {
        for name in &names {
            let (sides, place) = (&sides, &place);
            scope.spawn(move || compare(sides, place, "", name, b"a\n"));
        }
        for (options, name) in [
            ("-F", "randmap:{v}"),
            ("-F", "randmap:{v missing}"),
            ("-F", "pipemap:{static:a, randmap:{v}}"),
            ("-F", "unionmap:{static:v}"),
            ("-F", "unionmap:{static:v, randmap:{v}}"),
        ] {
            let (sides, place) = (&sides, &place);
            scope.spawn(move || compare(sides, place, options, name, b"a\n"));
        }
        for kind in ["pipemap:{static:x}", "unionmap:{static:x}", "randmap:{x}"] {
            for options in [&["-s"][..], &["-d", "x"], &["-i"]] {
                let (sides, place) = (&sides, &place);
                let words = [&["postmap"], options, &[kind]].concat();
                scope.spawn(move || sides.compare([place, place], &words, b"x y\n", false, kind));
            }
        }
    });
}

#[test]
fn both_give_every_result_sooner_or_later() {
    let Some(sides) = Sides::new() else { return };
    let place = prepare(&sides);
    let name = "unionmap:{randmap:{a, {b c} d,d}, static:x}";
    for programs in [&sides.real, &sides.ours] {
        let keys = "key\n".repeat(500);
        let outcome = sides.run(
            programs,
            &place,
            &["postmap", "-q", "-", name],
            keys.as_bytes(),
        );
        let found: BTreeSet<&str> = str::from_utf8(&outcome.stdout).unwrap().lines().collect();
        let wanted = BTreeSet::from(["key\ta,x", "key\t{b c},x", "key\td,x"]);
        assert_eq!(found, wanted, "{programs:?}");
    }
}
