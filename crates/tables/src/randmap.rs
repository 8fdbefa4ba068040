//! `randmap:{result, result, ...}` answers every key with one of its results, at random.
//!
//! Results are separated by comma or white space; braces around one keep it together and stay in it. Each is as
//! likely as the others; write one twice to make it twice as likely. With values from files each result is a file
//! name.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postkeep_table::{Flags, Latency, LookupError, OpenError, Outcome, Owner, Table, TableName};

use crate::table_type::{Capabilities, Request, TableType};
use crate::{braces, read_file_values};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "randmap",
    summary: "one of several answers, at random",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::PATTERN)
        .union(Capabilities::DATA_IN_NAME),
    open,
    build: None,
};

struct Random {
    name: TableName,
    flags: Flags,
    /// At least one.
    results: Vec<Box<[u8]>>,
    /// How far the sequence of random numbers is.
    state: AtomicU64,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let list = braces::whole(request.name.name()).unwrap_or_default();
    let mut results = Vec::new();
    for element in braces::elements(list) {
        results.push(if request.flags.contains(Flags::RHS_IS_FILE) {
            read_file_values(element)
                .map_err(|error| OpenError::Unavailable(error.to_string()))?
                .into()
        } else {
            element.into()
        });
    }
    if results.is_empty() {
        return Err(OpenError::Unavailable(format!(
            "bad syntax: \"{}\"; need \"randmap:{{value...}}\"",
            request.name
        )));
    }
    Ok(Arc::new(Random {
        name: request.name.clone(),
        flags: request.flags.difference(Flags::FIXED) | Flags::PATTERN,
        results,
        state: AtomicU64::new(RandomState::new().build_hasher().finish()),
    }))
}

impl Random {
    /// A random number of 64 bits (the `SplitMix64` generator, whose state threads can share).
    fn number(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut number = self
            .state
            .fetch_add(STEP, Ordering::Relaxed)
            .wrapping_add(STEP);
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    }

    /// The number as a fraction of the results there are; the bias is below one in 2^32 for any list that fits.
    fn pick(&self) -> Option<&[u8]> {
        let place = (u128::from(self.number()) * self.results.len() as u128) >> 64;
        self.results
            .get(usize::try_from(place).ok()?)
            .map(|result| &**result)
    }
}

impl Table for Random {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, _: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        Ok(match self.pick() {
            Some(result) => {
                value.extend_from_slice(result);
                Outcome::Done
            }
            None => Outcome::Absent,
        })
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, flags)
    }

    fn answers(name: &str, count: usize) -> HashMap<String, usize> {
        let table = open(name, Flags::empty()).unwrap();
        let mut found = HashMap::new();
        for _ in 0..count {
            let mut value = Vec::new();
            assert_eq!(
                table.lookup(Flags::empty(), b"", &mut value).unwrap(),
                Outcome::Done
            );
            *found.entry(String::from_utf8(value).unwrap()).or_default() += 1;
        }
        found
    }

    #[test]
    fn each_result_is_as_likely_as_it_is_often() {
        let found = answers("randmap:{red, green blue, red}", 8_000);
        assert_eq!(found.len(), 3);
        // More than ten standard deviations wide.
        assert!((3_500..4_500).contains(&found["red"]), "{found:?}");
        assert!((1_600..2_400).contains(&found["green"]), "{found:?}");
    }

    #[test]
    fn braces_group_and_stay() {
        assert_eq!(answers("randmap:{{a b}}", 1)["{a b}"], 1);
        assert_eq!(answers("randmap:{{}}", 1)["{}"], 1);
    }

    #[test]
    fn reasons_are_the_reference_s() {
        for list in ["one", "{}", "{ , }", "{x}y", "{a b}}"] {
            let reason = open(&format!("randmap:{list}"), Flags::empty())
                .err()
                .unwrap();
            assert_eq!(
                reason.to_string(),
                format!("bad syntax: \"randmap:{list}\"; need \"randmap:{{value...}}\"")
            );
        }
        let reason = open("randmap:{/no/such}", Flags::RHS_IS_FILE)
            .err()
            .unwrap();
        assert_eq!(
            reason.to_string(),
            "open /no/such: No such file or directory"
        );
    }
}
