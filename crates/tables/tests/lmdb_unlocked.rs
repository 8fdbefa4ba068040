//! What is found in an LMDB file without its library is what the library finds.

use std::collections::BTreeMap;

use postkeep_sys::lmdb::{Environment, Options, Unlocked};
use proptest::collection::vec;
use proptest::prelude::*;

/// One transaction.
#[derive(Clone, Debug)]
enum Step {
    Clear,
    /// Keys, the length of their values, and whether it is given up.
    Put(Vec<(Vec<u8>, usize)>, bool),
    Delete(Vec<Vec<u8>>),
}

/// Keys that meet: short ones of few bytes, and some as long as they may be.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => vec(prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(0xff)], 1..6),
        4 => (0_u16..3000).prop_map(|number| format!("user{number}@example.com\0").into_bytes()),
        1 => (0_u8..40).prop_map(|last| [vec![b'k'; 510], vec![last]].concat()),
        1 => vec(any::<u8>(), 1..511),
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![10 => 0_usize..80, 3 => 1900_usize..2100, 2 => 4000_usize..30_000]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Clear),
        8 => (vec((key(), length()), 1..150), proptest::bool::weighted(0.1))
            .prop_map(|(entries, fail)| Step::Put(entries, fail)),
        3 => vec(key(), 1..150).prop_map(Step::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn both_ways_of_looking_agree(steps in vec(step(), 1..10), others in vec(key(), 50)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.lmdb");
        let open = |write| Environment::open(&path, Options { write, map_size: 1 }).unwrap();
        let (writer, reader) = (open(true), open(false));
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (round, step) in steps.iter().enumerate() {
            let mut next = model.clone();
            let failed = writer
                .write(|writer| match step {
                    Step::Clear => {
                        next.clear();
                        writer.clear()
                    }
                    Step::Put(entries, fail) => {
                        next.clone_from(&model);
                        for (number, (key, length)) in entries.iter().enumerate() {
                            let value = format!("{round}-{number},").into_bytes();
                            let value: Vec<u8> = value.into_iter().cycle().take(*length).collect();
                            writer.put(key, &value, true)?;
                            next.insert(key.clone(), value);
                        }
                        // An empty key is an error, which gives the transaction up.
                        writer.put(if *fail { b"" } else { b"end" }, b"", true)?;
                        next.insert(b"end".to_vec(), Vec::new());
                        Ok(())
                    }
                    Step::Delete(keys) => {
                        next.clone_from(&model);
                        for key in keys {
                            let deleted = writer.delete(key)?;
                            assert_eq!(deleted, next.remove(key).is_some());
                        }
                        Ok(())
                    }
                })
                .is_err();
            if !failed {
                model = next;
            }
            let known = model.keys().map(Vec::as_slice);
            for key in known.chain(others.iter().map(Vec::as_slice)) {
                let mut value = Vec::new();
                let found = match reader.find_unlocked(&[key], &mut value) {
                    Unlocked::Found(_) => Some(&value[..]),
                    Unlocked::Absent => None,
                    Unlocked::Undecided => panic!("nobody writes now"),
                };
                prop_assert!(found == model.get(key).map(Vec::as_slice), "{key:?}");
                let same = reader.read(|reader| reader.find(key).unwrap() == found);
                prop_assert!(same.unwrap(), "{key:?}");
            }
        }
    }
}
