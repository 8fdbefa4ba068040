//! The installed postmap against ours, on `cidr:` tables: random rules, good and bad, in a file or in the name, and
//! addresses in many spellings.
//!
//! Left out is what ours does differently on purpose: mask lengths above 255, and `if` with values from files.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv6Addr;

use postkeep_interop::postmap::{Random, Sides, shrink, words, write_old};

/// How many random tables each test makes.
const ROUNDS: u64 = 60;

/// An address, mostly in one of a few networks and mostly well written.
fn address(random: &mut Random) -> Vec<u8> {
    let low = random.below(256);
    let number = (0x2001_0db8_u128 << 96) | (u128::from(random.below(4) as u64) << 64);
    let v6 = Ipv6Addr::from(number | low as u128);
    match random.below(14) {
        0..=4 => format!("10.0.{}.{low}", random.below(3)).into_bytes(),
        5 => format!("{low}.{}.0.0", random.below(256)).into_bytes(),
        6..=8 => v6.to_string().into_bytes(),
        9 => v6.to_string().to_uppercase().into_bytes(),
        10 => {
            let groups: Vec<_> = v6
                .segments()
                .iter()
                .map(|group| format!("{group:04x}"))
                .collect();
            groups.join(":").into_bytes()
        }
        11 => {
            let pieces: [&[u8]; 7] = [b"::", b":", b"0", b"1", b"ffff", b":ab", b"1.2.3.4"];
            let count = 1 + random.below(14);
            random.join(&pieces, count)
        }
        12 => {
            let pieces: [&[u8]; 10] = [
                b"1.2.3.4",
                b"10.0.0.1",
                b"0",
                b"01",
                b".",
                b"256",
                b"255.255",
                b"%1",
                b"\xff",
                b"x",
            ];
            let count = 1 + random.below(4);
            random.join(&pieces, count)
        }
        _ => random
            .pick(&[
                "::",
                "::1",
                "::ffff:10.0.0.1",
                "::10.0.0.1",
                "0.0.0.0",
                "255.255.255.255",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "",
                "example.com",
                "fe80::1%eth0",
            ])
            .as_bytes()
            .to_vec(),
    }
}

/// A network with the bits beyond its length cleared, or an address with any length.
fn pattern(random: &mut Random) -> Vec<u8> {
    let mut pattern = match random.below(8) {
        0..=2 => {
            let bits = random.below(9);
            let low = (random.below(256) >> (8 - bits)) << (8 - bits);
            format!("10.0.{}.{low}/{}", random.below(3), 24 + bits).into_bytes()
        }
        3 => {
            let bits = random.below(9);
            let low = (random.below(256) >> (8 - bits)) << (8 - bits);
            format!("2001:db8:0:{}::{low:x}/{}", random.below(4), 120 + bits).into_bytes()
        }
        4 => random
            .pick(&[
                "0.0.0.0/0",
                "::/0",
                "10.0.0.0/8",
                "2001:DB8::/32",
                "::/00",
                "128.0.0.0/1",
            ])
            .as_bytes()
            .to_vec(),
        5 | 6 => address(random),
        _ => {
            let lengths = [
                "32", "24", "8", "0", "64", "128", "129", "33", "", "x", "-1", "031",
            ];
            [
                &address(random),
                &b"/"[..],
                random.pick(&lengths).as_bytes(),
            ]
            .concat()
        }
    };
    if random.below(8) == 0 {
        let close = if random.below(2) == 0 {
            pattern.len()
        } else {
            pattern
                .iter()
                .position(|&byte| byte == b'/')
                .unwrap_or(pattern.len())
        };
        pattern.insert(close, b']');
        pattern.insert(0, b'[');
        if random.below(4) == 0 {
            pattern.remove(random.below(pattern.len()));
        }
    }
    if random.below(30) == 0 {
        let at = random.below(pattern.len() + 1);
        pattern.insert(at, b"[]/! :\0\xffq"[random.below(9)]);
    }
    pattern
}

/// - `blocks`: with `if`
/// - `bad_values`: with results that are no UTF-8, which end the command where that is asked for
fn rules(random: &mut Random, blocks: bool, bad_values: bool) -> Vec<u8> {
    let marks: [&[u8]; 10] = [b"", b"", b"", b"", b"", b"", b"!", b"! !", b"!\t!!", b"! "];
    let gaps: [&[u8]; 8] = [b" ", b" ", b" ", b"  ", b"\t", b"\x0b", b"", b"\n "];
    let ends: [&[u8]; 8] = [
        b"\n",
        b"\n",
        b"\n",
        b"\n",
        b" \r\n",
        b"\n# x\n",
        b"\n  more\n",
        b"\0 rest\n",
    ];
    let mut text = Vec::new();
    for number in 0..random.below(40) {
        match random.below(10) {
            0 | 1 if blocks => {
                let words = [
                    "if", "if", "IF", "iF", "if\t", "if ! ", "if!", "if ! !", "if1",
                ];
                text.extend_from_slice(random.pick(&words).as_bytes());
                text.extend_from_slice(random.pick(&[" ", " ", " ", ""]).as_bytes());
                text.extend(pattern(random));
            }
            2 if blocks => {
                let words = [
                    "endif",
                    "endif",
                    "EndIf",
                    "endif ",
                    "endif x",
                    "endif!",
                    "endifx",
                    "endif\u{e9}",
                ];
                text.extend_from_slice(random.pick(&words).as_bytes());
            }
            _ => {
                text.extend_from_slice(random.pick(&marks));
                text.extend(pattern(random));
                text.extend_from_slice(random.pick(&gaps));
                if random.below(20) != 0 {
                    text.extend_from_slice(format!("v{} {number}", random.below(5)).as_bytes());
                }
                if bad_values && random.below(5) == 0 {
                    text.push(b'\xff');
                }
            }
        }
        text.extend_from_slice(random.pick(&ends));
    }
    text
}

fn keys(random: &mut Random) -> Vec<u8> {
    let mut keys = Vec::new();
    for _ in 0..400 {
        keys.extend(address(random));
        if random.below(50) == 0 {
            keys.push(b"] /\0\xff"[random.below(5)]);
        }
        keys.push(b'\n');
    }
    keys
}

fn check(sides: &Sides, seed: u64, options: &str, rules: &[u8], keys: &[u8]) {
    let place = sides.directory("both");
    fs::write(place.join("v0"), "file 0").unwrap();
    fs::write(place.join("1"), "file 1").unwrap();
    let ask = words("postmap", options, &["-q", "-", "cidr:t"]);
    let difference = |rules: &[u8], keys: &[u8]| {
        write_old(&place.join("t"), rules);
        sides.difference([&place, &place], &ask, keys, false)
    };
    if difference(rules, keys).is_some() {
        let rules = shrink(rules, |rules| difference(rules, keys).is_some());
        let keys = shrink(keys, |keys| difference(&rules, keys).is_some());
        panic!(
            "seed {seed}, options {options}: shrunk: rules \"{}\", keys \"{}\": {}",
            rules.escape_ascii(),
            keys.escape_ascii(),
            difference(&rules, &keys).unwrap_or_default()
        );
    }
}

#[test]
fn random_rules_give_the_same_answers_and_warnings() {
    let Some(sides) = Sides::new() else { return };
    for seed in 1..=ROUNDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let options = *random.pick(&[&"", &"", &"", &"-f", &"-u", &"-F"]);
        let rules = rules(&mut random, options != "-F", options == "-u");
        let keys = keys(&mut random);
        check(&sides, seed, options, &rules, &keys);
    }
}

/// Twenty thousand rules are read and answered as by the reference, the last one and none included.
#[test]
fn large_tables_give_the_same_answers() {
    let Some(sides) = Sides::new() else { return };
    let mut random = Random(4711);
    let (mut rules, mut keys) = (Vec::new(), Vec::new());
    for number in 0..20_000 {
        let part = |random: &mut Random| random.below(256);
        let (a, b, c, d) = (
            part(&mut random),
            part(&mut random),
            part(&mut random),
            part(&mut random),
        );
        let (rule, key) = match random.below(6) {
            0 => (format!("{a}.{b}.{c}.0/24"), format!("{a}.{b}.{c}.{d}")),
            1 => (
                format!("2001:db8:{a:x}:{b:x}::/64"),
                format!("2001:db8:{a:x}:{b:x}::{d:x}"),
            ),
            2 => (format!("{a}.{b}.0.0/16"), format!("{a}.{c}.{c}.{d}")),
            _ => (format!("{a}.{b}.{c}.{d}"), format!("{a}.{b}.{c}.{d}")),
        };
        rules.extend_from_slice(format!("{rule} v{number}\n").as_bytes());
        if number % 10 == 0 {
            keys.extend_from_slice(format!("{key}\n").as_bytes());
        }
        if number % 4_000 == 3_999 {
            rules.extend_from_slice(format!("if !{a}.0.0.0/8\n{a}.1.1.1 never\n").as_bytes());
        }
    }
    rules.extend_from_slice(
        b"!10.0.0.0/8 last\nendif\nendif\nendif\nendif\nendif\n!0.0.0.0/1 very last\n",
    );
    check(&sides, 4711, "", &rules, &keys);
}

#[test]
fn rules_in_names_and_what_cannot_be_opened() {
    let Some(sides) = Sides::new() else { return };
    let place = sides.directory("both");
    fs::create_dir(place.join("d")).unwrap();
    write_old(&place.join("t"), b"10.0.0.1 v\n");
    write_old(&place.join("bad"), b"::1 \xff\n!::1 \xff\n0.0.0.0/0 \xff\n");
    let mut names: Vec<String> = [
        "cidr:{}",
        "cidr:{ }",
        "cidr:{{}}",
        "cidr:{{# x}, {10.0.0.1\n  v}}",
        "cidr:{{#\n  x},{ },{x},{if ::1}}",
        "cidr:{{10.0.0.1 v} x}",
        "cidr:{{10.0.0.1 v}{10.0.0.2 w}}",
        "cidr:{{10.0.0.1 v}}x",
        "cidr:{{10.0.0.1 v}",
        "cidr: {x}",
        "cidr:d",
        "cidr:bad",
        "cidr:missing",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut random = Random(99);
    for _ in 0..30 {
        let rules = rules(&mut random, true, false);
        let mut name = "cidr:{".to_owned();
        for line in rules.split(|&byte| byte == b'\n') {
            if let Ok(line) = str::from_utf8(line)
                && !line.contains('\0')
            {
                write!(name, "{{{line}}}, ").unwrap();
            }
        }
        names.push(name + "}");
    }
    let keys = keys(&mut random);
    // Each fatal error costs both programs a second, spent asleep.
    std::thread::scope(|scope| {
        for chunk in names.chunks(7) {
            let (sides, place, keys) = (&sides, &place, &keys);
            scope.spawn(move || {
                for name in chunk {
                    let ask = ["postmap", "-q", "-", name];
                    sides.compare([place, place], &ask, keys, false, name);
                }
            });
        }
        for words in [["postmap", "-s", "cidr:t"], ["postmap", "-i", "cidr:t"]] {
            let (sides, place) = (&sides, &place);
            scope.spawn(move || sides.compare([place, place], &words, b"x y\n", false, "cidr"));
        }
        let (sides, place) = (&sides, &place);
        scope.spawn(move || {
            let words = ["postmap", "-d", "10.0.0.1", "cidr:t"];
            sides.compare([place, place], &words, b"", false, "cidr");
        });
    });
}
