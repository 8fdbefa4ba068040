//! Says for a key which of many rules cannot match it, in one pass over the key.
//!
//! Of the text that a rule requires ([`required_text`](crate::required_text)) the pieces are chosen that are rarest
//! among the rules of the table. Four bytes of each (two, of short ones) are looked for at every place of the key;
//! where they are found the whole piece is compared.
//!
//! The answer errs to one side only: a rule that is not ruled out may match or not.

use std::collections::HashMap;

use crate::required_text::{Literal, OneOf};

/// More pieces than this that must be compared at one place of a key are too many: their rules are always tried.
const MOST_AT_ONE_PLACE: usize = 64;

/// Two bytes are found in keys that have nothing to do with the rule; they are worth as much as four bytes that so
/// many other rules have too.
const SHORT_IS_FOUND: u64 = 16;

/// Rules, by their number, in ascending order.
///
/// What is done with few rules takes no longer when there are many others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleSet {
    words: Vec<u64>,
    /// One bit for each word that is not zero.
    filled: Vec<u64>,
}

impl RuleSet {
    /// None of `count` rules; keeps its memory.
    pub(crate) fn clear(&mut self, count: usize) {
        for (index, filled) in self.filled.iter_mut().enumerate() {
            while *filled != 0 {
                self.words[index * 64 + filled.trailing_zeros() as usize] = 0;
                *filled &= *filled - 1;
            }
        }
        let words = count.div_ceil(64);
        self.words.resize(words, 0);
        self.filled.resize(words.div_ceil(64), 0);
    }

    pub(crate) fn insert(&mut self, rule: usize) {
        let word = rule / 64;
        self.words[word] |= 1 << (rule % 64);
        self.filled[word / 64] |= 1 << (word % 64);
    }

    pub(crate) fn contains(&self, rule: usize) -> bool {
        self.words[rule / 64] >> (rule % 64) & 1 == 1
    }

    /// The first rule from `from` on that is in one of two sets of the same size.
    pub(crate) fn next_of_either(&self, other: &Self, from: usize) -> Option<usize> {
        let word = from / 64;
        let here = self.words.get(word)? | other.words.get(word)?;
        let here = here & u64::MAX << (from % 64);
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let next = word + 1;
        let mut index = next / 64;
        let mut mask = u64::MAX << (next % 64);
        loop {
            let filled = (self.filled.get(index)? | other.filled.get(index)?) & mask;
            if filled != 0 {
                let word = index * 64 + filled.trailing_zeros() as usize;
                let there = self.words[word] | other.words[word];
                return Some(word * 64 + there.trailing_zeros() as usize);
            }
            mask = u64::MAX;
            index += 1;
        }
    }
}

/// Finds the rules that a key does not rule out.
#[derive(Debug)]
pub(crate) struct Prefilter {
    /// Those that have no usable text.
    unknown: RuleSet,
    literals: Vec<(Literal, Box<[u32]>)>,
    long: Grams<4>,
    short: Grams<2>,
}

impl Prefilter {
    /// Takes what each rule requires: of each [`OneOf`] one literal must be there. Nothing means that the rule is
    /// always tried.
    pub(crate) fn new(required: &[Vec<OneOf>]) -> Self {
        let rarity = Rarity::count(required);
        let mut unknown = RuleSet::default();
        unknown.clear(required.len());
        let mut rules: HashMap<&Literal, Vec<u32>> = HashMap::new();
        for (rule, demands) in required.iter().enumerate() {
            let Some(one_of) = demands.iter().min_by_key(|one_of| rarity.of(one_of)) else {
                unknown.insert(rule);
                continue;
            };
            let Ok(number) = u32::try_from(rule) else {
                unknown.insert(rule);
                continue;
            };
            for literal in one_of {
                rules.entry(literal).or_default().push(number);
            }
        }
        let mut found: Vec<_> = rules.into_iter().collect();
        found.sort_unstable();
        let (mut long, mut short) = (Vec::new(), Vec::new());
        let mut places: HashMap<u32, usize> = HashMap::new();
        let mut literals = Vec::new();
        for (literal, rules) in found {
            let (gram, offset) = rarity.rarest(literal);
            let place = places.entry(gram).or_default();
            *place += 1;
            if *place > MOST_AT_ONE_PLACE {
                for rule in rules {
                    unknown.insert(rule as usize);
                }
                continue;
            }
            let Ok(number) = u32::try_from(literals.len()) else {
                continue;
            };
            let entry = Entry {
                gram,
                literal: number,
                offset,
            };
            if literal.bytes.len() < 4 {
                short.push(entry);
            } else {
                long.push(entry);
            }
            literals.push((literal.clone(), rules.into()));
        }
        Self {
            unknown,
            literals,
            long: Grams::new(long),
            short: Grams::new(short),
        }
    }

    /// How many of the rules can be ruled out by some key.
    pub(crate) fn useful(&self) -> usize {
        let mut rules: Vec<u32> = self
            .literals
            .iter()
            .flat_map(|(_, rules)| rules.iter().copied())
            .filter(|&rule| !self.unknown.contains(rule as usize))
            .collect();
        rules.sort_unstable();
        rules.dedup();
        rules.len()
    }

    /// The rules that no key rules out.
    pub(crate) fn unknown(&self) -> &RuleSet {
        &self.unknown
    }

    /// Puts into `possible` the rules beside [`Self::unknown`] that the key does not rule out. The set must have room
    /// for them.
    pub(crate) fn find(&self, key: &[u8], possible: &mut RuleSet) {
        let mut found = |literal: u32, start: usize| {
            let (literal, rules) = &self.literals[literal as usize];
            if literal.is_at(key, start) {
                for &rule in rules {
                    possible.insert(rule as usize);
                }
            }
        };
        self.long.find(key, &mut found);
        self.short.find(key, &mut found);
    }
}

/// Some bytes of a literal.
#[derive(Clone, Copy, Debug)]
struct Entry {
    gram: u32,
    literal: u32,
    /// Where they are in the literal.
    offset: u8,
}

/// Pieces of `WIDTH` bytes, by their hash.
#[derive(Debug)]
struct Grams<const WIDTH: usize> {
    entries: Vec<Entry>,
    /// Where in `entries` those of a slot begin; one more than there are slots.
    starts: Vec<u32>,
    /// One bit for more hashes than there are slots, small enough to stay in the cache.
    seen: Vec<u64>,
    slot_bits: u32,
    seen_bits: u32,
}

/// Multiplies well into the upper bits.
const SPREAD: u32 = 0x9E37_79B1;

fn upper(hash: u32, bits: u32) -> usize {
    (hash >> (32 - bits)) as usize
}

impl<const WIDTH: usize> Grams<WIDTH> {
    fn new(mut entries: Vec<Entry>) -> Self {
        let bits = |for_each: usize| {
            let count = (entries.len() * for_each).clamp(1, 1 << 26);
            count.next_power_of_two().trailing_zeros().max(6)
        };
        let (slot_bits, seen_bits) = (bits(2), bits(32));
        let slot = |entry: &Entry| upper(entry.gram.wrapping_mul(SPREAD), slot_bits);
        entries.sort_by_key(slot);
        let mut starts = vec![0; (1 << slot_bits) + 1];
        let mut seen = vec![0; (1 << seen_bits) / 64];
        for entry in &entries {
            starts[slot(entry) + 1] += 1;
            let bit = upper(entry.gram.wrapping_mul(SPREAD), seen_bits);
            seen[bit / 64] |= 1 << (bit % 64);
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Self {
            entries,
            starts,
            seen,
            slot_bits,
            seen_bits,
        }
    }

    /// Calls `found` with each literal whose piece is in the key, and where the literal would begin.
    fn find(&self, key: &[u8], found: &mut impl FnMut(u32, usize)) {
        if self.entries.is_empty() {
            return;
        }
        let mut gram = 0_u32;
        let mask = u32::MAX >> (32 - 8 * WIDTH);
        for (at, byte) in key.iter().enumerate() {
            gram = (gram << 8 | u32::from(byte.to_ascii_lowercase())) & mask;
            let hash = gram.wrapping_mul(SPREAD);
            let bit = upper(hash, self.seen_bits);
            if self.seen[bit / 64] >> (bit % 64) & 1 == 1 && at + 1 >= WIDTH {
                let slot = upper(hash, self.slot_bits);
                let entries = self.starts[slot] as usize..self.starts[slot + 1] as usize;
                for entry in &self.entries[entries] {
                    if entry.gram == gram
                        && let Some(start) = (at + 1).checked_sub(WIDTH + usize::from(entry.offset))
                    {
                        found(entry.literal, start);
                    }
                }
            }
        }
    }
}

/// How often each piece occurs in the literals of a table.
struct Rarity(HashMap<u32, u32>);

impl Rarity {
    fn count(required: &[Vec<OneOf>]) -> Self {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for literal in required.iter().flatten().flatten() {
            for (gram, _) in grams(literal) {
                let count = counts.entry(gram).or_default();
                *count = count.saturating_add(1);
            }
        }
        Self(counts)
    }

    /// The rarest piece of a literal and where it is; of equally rare ones the last, as names begin alike.
    fn rarest(&self, literal: &Literal) -> (u32, u8) {
        grams(literal)
            .min_by_key(|(gram, offset)| {
                (
                    self.0.get(gram).copied().unwrap_or(0),
                    std::cmp::Reverse(*offset),
                )
            })
            .unwrap_or((0, 0))
    }

    /// How much there is to compare for a demand, and, where that is equal, which one has the longer text.
    fn of(&self, one_of: &OneOf) -> (u64, usize) {
        let cost = one_of
            .iter()
            .map(|literal| {
                let (gram, _) = self.rarest(literal);
                let among = u64::from(self.0.get(&gram).copied().unwrap_or(0));
                let short = literal.bytes.len() < 4;
                among + if short { SHORT_IS_FOUND } else { 0 }
            })
            .sum();
        let shortest = one_of.iter().map(|literal| literal.bytes.len()).min();
        (cost, usize::MAX - shortest.unwrap_or(0))
    }
}

/// The pieces of a literal: four bytes, or two when it has less than four. Those of two have upper bits that text
/// cannot have.
fn grams(literal: &Literal) -> impl Iterator<Item = (u32, u8)> {
    let width = if literal.bytes.len() < 4 { 2 } else { 4 };
    literal
        .bytes
        .windows(width)
        .zip(0_u8..)
        .map(|(bytes, offset)| {
            let gram = bytes
                .iter()
                .fold(0_u32, |gram, &byte| gram << 8 | u32::from(byte));
            (gram, offset)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::required_text::{Syntax, required_text};

    fn possible(patterns: &[&str], key: &str) -> Vec<usize> {
        let required: Vec<_> = patterns
            .iter()
            .map(|pattern| required_text(pattern.as_bytes(), Syntax::Pcre, false))
            .collect();
        let prefilter = Prefilter::new(&required);
        let mut set = RuleSet::default();
        set.clear(patterns.len());
        prefilter.find(key.as_bytes(), &mut set);
        (0..patterns.len())
            .filter(|&rule| set.contains(rule) || prefilter.unknown().contains(rule))
            .collect()
    }

    #[test]
    fn what_is_not_in_the_key_is_ruled_out() {
        let patterns = [
            "^Subject:.*free money",
            "^Subject:.*cheap",
            "example\\.com$",
            "^exa",
            "^ab|cd$",
            ".",
            "xyz|uvwxyz",
        ];
        assert_eq!(possible(&patterns, "SUBJECT: really CHEAP"), [1, 5]);
        assert_eq!(possible(&patterns, "example.com"), [2, 3, 5]);
        assert_eq!(possible(&patterns, "an example.com\n"), [2, 5]);
        assert_eq!(possible(&patterns, "an example.com.invalid"), [5]);
        assert_eq!(possible(&patterns, "ab"), [4, 5]);
        assert_eq!(possible(&patterns, "xabcd"), [4, 5]);
        assert_eq!(possible(&patterns, "xcdx"), [5]);
        assert_eq!(possible(&patterns, "uxyz"), [5, 6]);
        assert_eq!(possible(&patterns, ""), [5]);
        assert_eq!(possible(&["a", "b"], ""), [0, 1]);
    }

    #[test]
    fn too_many_at_one_place_are_always_tried() {
        let patterns: Vec<String> = (0..200)
            .map(|length| "aaaa".to_owned() + &"a".repeat(length % 50))
            .collect();
        let patterns: Vec<String> = patterns
            .iter()
            .enumerate()
            .map(|(number, text)| {
                if number < 100 {
                    format!("^{text}")
                } else {
                    text.clone()
                }
            })
            .collect();
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let tried = possible(&patterns, "aaaaa").len();
        assert!((4..=80).contains(&tried), "{tried}");
    }

    #[test]
    fn sets_are_walked_in_order() {
        let (mut one, mut other) = (RuleSet::default(), RuleSet::default());
        let walk = |one: &RuleSet, other: &RuleSet| {
            let mut from = 0;
            let mut walked = Vec::new();
            while let Some(rule) = one.next_of_either(other, from) {
                walked.push(rule);
                from = rule + 1;
            }
            walked
        };
        one.clear(20_000);
        other.clear(20_000);
        for rule in [3, 64, 199, 4095, 4096, 19_999] {
            one.insert(rule);
        }
        for rule in [3, 100, 12_000] {
            other.insert(rule);
        }
        assert_eq!(
            walk(&one, &other),
            [3, 64, 100, 199, 4095, 4096, 12_000, 19_999]
        );
        assert_eq!(one.next_of_either(&other, 1 << 40), None);
        one.clear(200);
        other.clear(200);
        assert!(walk(&one, &other).is_empty());
        one.insert(199);
        assert_eq!(walk(&one, &other), [199]);
        one.clear(20_000);
        other.clear(20_000);
        assert!(walk(&one, &other).is_empty());
    }

    proptest! {
        #[test]
        fn a_literal_in_the_key_is_found(
            literals in proptest::collection::vec("[abAB.]{2,7}", 1..30),
            before in "[abAB.]{0,6}",
            after in "[abAB.\n]{0,6}",
            chosen in any::<prop::sample::Index>(),
            at_start in any::<bool>(),
            at_end in any::<bool>(),
        ) {
            let required: Vec<Vec<OneOf>> = literals.iter().map(|text| vec![vec![Literal {
                bytes: text.to_ascii_lowercase().into_bytes().into(),
                at_start,
                at_end,
            }]]).collect();
            let prefilter = Prefilter::new(&required);
            let rule = chosen.index(literals.len());
            let key = format!("{before}{}{after}", literals[rule]);
            let mut set = RuleSet::default();
            set.clear(literals.len());
            prefilter.find(key.as_bytes(), &mut set);
            for (rule, one_of) in required.iter().enumerate() {
                let there = (0..key.len()).any(|start| one_of[0][0].is_at(key.as_bytes(), start));
                if there {
                    prop_assert!(set.contains(rule) || prefilter.unknown().contains(rule), "{:?} in {key:?}", literals[rule]);
                } else if literals.len() < MOST_AT_ONE_PLACE {
                    prop_assert!(!set.contains(rule), "{:?} in {key:?}", literals[rule]);
                }
            }
        }
    }
}
