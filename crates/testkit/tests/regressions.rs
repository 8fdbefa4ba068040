//! Replays what fuzzers have found, and some inputs to begin with, through the bodies of the fuzz targets.

use std::fs;
use std::path::Path;

use postkeep_testkit::fuzz::TARGETS;

#[test]
fn nothing_that_was_found_comes_back() {
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions");
    for (name, body) in TARGETS {
        let directory = regressions.join(name);
        let mut count = 0;
        for entry in fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            body(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "no input for {name}");
    }
}

/// The bodies run on inputs without a fuzzer, too: a fixed pseudo-random walk through each.
#[test]
fn bodies_hold_for_many_small_inputs() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: &[&[u8]] = &[
        b"request\0",
        b"save_endp\0",
        b"find_dest\0",
        b"lookup\0",
        b"ttl\0",
        b"label\0",
        b"property\0",
        b"table\0",
        b"flags\0",
        b"instance_flags\0",
        b"key\0",
        b"static:x\0",
        b"1\0",
        b"\0",
        b"{",
        b"}",
        b"proxy:",
        b"hash:/a",
        b", ",
        b" = ",
        b"\n",
        b"\n ",
        b"$a",
        b"${a?{b}:{c}}",
        b"$(a)",
        b"a",
        b"b\0",
        b"unionmap:{",
        b"#",
        b"=",
        b":",
    ];
    for (name, body) in TARGETS {
        for _ in 0..3000 {
            let mut input = Vec::new();
            for _ in 0..next() % 24 {
                let choice = next();
                if choice % 3 == 0 {
                    input.push(u8::try_from(choice >> 56).unwrap());
                } else {
                    let index = usize::try_from(choice >> 32).unwrap() % words.len();
                    input.extend_from_slice(words[index]);
                }
            }
            let outcome = std::panic::catch_unwind(|| body(&input));
            assert!(outcome.is_ok(), "{name}: {input:?}");
        }
    }
}

#[test]
fn every_target_has_a_file() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut files: Vec<String> = fs::read_dir(targets)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    files.sort();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(files, names);
}
