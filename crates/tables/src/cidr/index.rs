//! The rules of a CIDR table, turned into a search tree.
//!
//! The statements are gone through once, in order, with the set of addresses that no rule has answered so far. A
//! rule takes those that its condition holds for, and their answer is known; a block puts the addresses aside that
//! it is not about. What remains is a list of address ranges with one answer each, however blocks were nested and
//! rules negated: at most two more ranges for each statement. The list is searched through a tree of wide nodes,
//! which is built once and never changed.

use super::ranges::{Arena, Set};
use super::rules::{Address, CidrRules, Family, Place, Results, Statement};

/// Finds what [`CidrRules::walk`] finds, in a few steps.
#[derive(Debug)]
pub struct CidrIndex {
    v4: Tree<u32, Place, 16>,
    v6: Tree<u128, Place, 8>,
    results: Results,
}

impl CidrIndex {
    /// Takes the rules and builds the trees.
    ///
    /// Time and memory grow with the number of rules, times its logarithm.
    pub fn new(rules: CidrRules) -> Self {
        let v4 = ranges(&rules.statements, Family::V4)
            .into_iter()
            // Numbers of IPv4 addresses have 32 bits.
            .map(|(first, answer)| (u32::try_from(first).unwrap_or(u32::MAX), answer));
        Self {
            v4: Tree::new(v4, u32::MAX),
            v6: Tree::new(ranges(&rules.statements, Family::V6), u128::MAX),
            results: rules.results,
        }
    }

    /// The result of the first rule that holds.
    pub fn find(&self, address: Address) -> Option<&[u8]> {
        let place = match address.family {
            Family::V4 => self.v4.find(u32::try_from(address.number).ok()?),
            Family::V6 => self.v6.find(address.number),
        };
        self.results.find(place)
    }
}

/// How the set of addresses without an answer is put together again at the end of a block.
enum Block {
    /// The block was not about these.
    Around(Set, Set),
    /// The block was not about those that are in one place, from this address on.
    Hole(u128, Set),
}

/// The ranges of a family, by their first addresses, with their answers; the first one begins at 0.
fn ranges(statements: &[Statement], family: Family) -> Vec<(u128, Place)> {
    let mut arena = Arena::new();
    let mut open = arena.range(0, family.last());
    let mut blocks = Vec::new();
    let mut answered = Vec::new();
    for statement in statements {
        match *statement {
            Statement::Match(condition, place) if condition.network.family == family => {
                let (first, last) = (condition.network.first, condition.network.last);
                let (low, inside, high) = arena.cut(open, first, last);
                let mut take = |arena: &mut Arena, set| {
                    arena.drain(set, |first, last| answered.push((first, last, place)));
                };
                if condition.negated {
                    take(&mut arena, low);
                    take(&mut arena, high);
                    open = inside;
                } else {
                    take(&mut arena, inside);
                    open = arena.join(low, high);
                }
            }
            Statement::Match(..) => {}
            Statement::If(condition) if condition.network.family == family => {
                let (first, last) = (condition.network.first, condition.network.last);
                let (low, inside, high) = arena.cut(open, first, last);
                if condition.negated {
                    blocks.push(Block::Hole(first, inside));
                    open = arena.join(low, high);
                } else {
                    blocks.push(Block::Around(low, high));
                    open = inside;
                }
            }
            Statement::If(_) => blocks.push(Block::Around(
                std::mem::replace(&mut open, Set::EMPTY),
                Set::EMPTY,
            )),
            Statement::EndIf => {
                let (low, inside, high) = match blocks.pop() {
                    Some(Block::Around(low, high)) => (low, open, high),
                    Some(Block::Hole(first, inside)) => {
                        // There is nothing in the hole: all is before or behind it.
                        let (low, high, _) = arena.cut(open, first, family.last());
                        (low, inside, high)
                    }
                    None => (open, Set::EMPTY, Set::EMPTY),
                };
                let low = arena.join(low, inside);
                open = arena.join(low, high);
            }
        }
    }
    answered.sort_unstable();
    // Gaps have no answer; neighbours with the same answer are one range.
    let mut found: Vec<(u128, Place)> = vec![(0, Place::NOWHERE)];
    let mut put = |first, answer| match found.last_mut() {
        Some(before) if before.0 == first => before.1 = answer,
        _ => found.push((first, answer)),
    };
    for (first, last, place) in answered {
        put(first, place);
        if last < family.last() {
            put(last + 1, Place::NOWHERE);
        }
    }
    found.dedup_by_key(|range| range.1);
    found
}

/// Some keys of a tree, in order.
///
/// The alignment keeps a node in as few cache lines as it can be in: one of IPv4 keys, two of IPv6 keys.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Node<K, const WIDTH: usize>([K; WIDTH]);

impl<K: Copy + Ord, const WIDTH: usize> Node<K, WIDTH> {
    fn new(keys: &[K], filler: K) -> Self {
        let mut node = [filler; WIDTH];
        node[..keys.len()].copy_from_slice(keys);
        Self(node)
    }

    /// How many keys are not above `key`. All are compared, which is faster than to branch.
    fn count(&self, key: K) -> usize {
        let count: u32 = self.0.iter().map(|&first| u32::from(first <= key)).sum();
        count as usize
    }
}

/// A static search tree over sorted keys, with `WIDTH` keys in a node and `WIDTH + 1` children.
#[derive(Debug)]
struct Tree<K, A, const WIDTH: usize> {
    /// Above the leaves, from the root on. A key there is the first one of the child behind it.
    inner: Box<[Box<[Node<K, WIDTH>]>]>,
    leaves: Box<[Node<K, WIDTH>]>,
    /// For each key of the leaves what is true from there to the next key.
    answers: Box<[A]>,
}

impl<K: Copy + Ord, A: Copy, const WIDTH: usize> Tree<K, A, WIDTH> {
    /// `ranges`: sorted, of which the first begins with the smallest key; `filler`: the largest key
    fn new(ranges: impl IntoIterator<Item = (K, A)>, filler: K) -> Self {
        let (keys, answers): (Vec<K>, Vec<A>) = ranges.into_iter().unzip();
        let leaves = keys.chunks(WIDTH);
        // The first key below each node of the level.
        let mut firsts: Vec<K> = leaves.clone().map(|keys| keys[0]).collect();
        let mut inner = Vec::new();
        while firsts.len() > 1 {
            let children = firsts.chunks(WIDTH + 1);
            let nodes = children.clone().map(|keys| Node::new(&keys[1..], filler));
            inner.push(nodes.collect());
            firsts = children.map(|keys| keys[0]).collect();
        }
        inner.reverse();
        Self {
            inner: inner.into(),
            leaves: leaves.map(|keys| Node::new(keys, filler)).collect(),
            answers: answers.into(),
        }
    }

    fn find(&self, key: K) -> A {
        let mut place = 0;
        // Fillers count for the largest key only, which belongs to the last child there is: that is where too
        // large a place leads.
        let last = |nodes: &[Node<K, WIDTH>]| nodes.len().saturating_sub(1);
        for nodes in &self.inner {
            place = place.min(last(nodes));
            place = place * (WIDTH + 1) + nodes[place].count(key);
        }
        place = place.min(last(&self.leaves));
        // There is a key that is not above: the first of all is the smallest.
        place = (place * WIDTH + self.leaves[place].count(key)).saturating_sub(1);
        self.answers[place.min(self.answers.len().saturating_sub(1))]
    }

    /// How many nodes a lookup visits, whatever the key.
    #[cfg(test)]
    fn visited(&self) -> usize {
        self.inner.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> CidrRules {
        CidrRules::parse(
            text.as_bytes(),
            "M",
            "L",
            |value| Ok(Cow::Borrowed(value)),
            &mut |warning| panic!("{warning}"),
        )
    }

    /// Lines of a few networks that contain each other, so that much happens.
    fn line() -> impl Strategy<Value = String> {
        let network = prop_oneof![
            (0_u32..256, 0_u32..=8).prop_map(|(number, bits)| {
                let number = (number >> (8 - bits)) << (8 - bits);
                format!("10.0.0.{number}/{}", 24 + bits)
            }),
            (0_u32..16, 0_u32..=4).prop_map(|(number, bits)| {
                let number = (number >> (4 - bits)) << (4 - bits);
                format!("{}.0.0.0/{bits}", number << 4)
            }),
            (0_u128..256, 0_u32..=8).prop_map(|(number, bits)| {
                let number = (number >> (8 - bits)) << (8 - bits);
                format!("2001:db8::{number:x}/{}", 120 + bits)
            }),
            Just("::/0".to_owned()),
            Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".to_owned()),
            Just("255.255.255.255".to_owned()),
        ];
        prop_oneof![
            5 => (network.clone(), any::<u8>(), 0..5).prop_map(|(network, value, not)| {
                format!("{}{network} v{value}\n", if not == 0 { "!" } else { "" })
            }),
            2 => (network, 0..3).prop_map(|(network, not)| {
                format!("if {}{network}\n", if not == 0 { "!" } else { "" })
            }),
            1 => Just("endif\n".to_owned()),
        ]
    }

    fn rules(lines: &[String]) -> CidrRules {
        CidrRules::parse(
            lines.concat().as_bytes(),
            "M",
            "L",
            |value| Ok(Cow::Borrowed(value)),
            &mut |_| {},
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_tree_answers_what_the_rules_say(lines in proptest::collection::vec(line(), 0..60)) {
            let walked = rules(&lines);
            let index = CidrIndex::new(rules(&lines));
            let v4 = (0..=255).map(|number| Address::v4(0x0a00_0000 + number))
                .chain((0..=16_u32).map(|number| Address::v4((number << 28).wrapping_sub(1))))
                .chain((0..16).map(|number| Address::v4(number << 28)));
            let net = 0x2001_0db8_u128 << 96;
            let v6 = (0..=257).map(|number| Address::v6((net + number).wrapping_sub(1)))
                .chain([0, 1, u128::MAX - 1, u128::MAX].map(Address::v6));
            for address in v4.chain(v6) {
                prop_assert_eq!(index.find(address), walked.walk(address), "{}", address);
            }
        }

        #[test]
        fn a_tree_finds_the_last_key_that_is_not_above(
            keys in proptest::collection::btree_set(any::<u16>(), 0..400),
            more in proptest::collection::vec(any::<u16>(), 0..20),
        ) {
            let mut keys: Vec<u32> = keys.into_iter().map(u32::from).collect();
            keys.insert(0, 0);
            keys.push(u32::MAX);
            keys.dedup();
            let tree: Tree<u32, usize, 4> = Tree::new(keys.iter().copied().zip(0..), u32::MAX);
            let around = keys.iter().flat_map(|&key| [key.saturating_sub(1), key, key.saturating_add(1)]);
            for key in around.chain(more.into_iter().map(u32::from)).collect::<Vec<_>>() {
                let wanted = keys.partition_point(|&first| first <= key) - 1;
                prop_assert_eq!(tree.find(key), wanted);
            }
        }
    }

    #[test]
    fn an_empty_table_and_one_answer_for_all() {
        let index = CidrIndex::new(CidrRules::default());
        assert_eq!(index.find(Address::v4(u32::MAX)), None);
        let index = CidrIndex::new(parse("0.0.0.0/0 a\n!::1 b\n::1 b\n"));
        for number in [0, u32::MAX] {
            assert_eq!(index.find(Address::v4(number)), Some(&b"a"[..]));
        }
        assert_eq!(index.find(Address::v6(1)), Some(&b"b"[..]));
        assert_eq!(index.v6.answers.len(), 1, "one range for one answer");
    }

    /// Rules for many hosts and networks, with an answer for the rest at the very end.
    fn many(count: u32, between: &str) -> String {
        let mut text = String::new();
        for number in 0..count {
            let scattered = number.wrapping_mul(0x9E37_79B1);
            let [a, b, c, d] = scattered.to_be_bytes();
            writeln!(text, "{a}.{b}.{c}.{d} host{number}").unwrap();
            writeln!(text, "2001:db8:{a:x}{b:02x}:{c:x}{d:02x}::/64 net{number}").unwrap();
            text.push_str(between);
        }
        text
    }

    /// The cost of a lookup is the nodes that it visits, each of a few cache lines: it hardly grows with the table,
    /// is the same for every key, and blocks and negated rules do not change that.
    #[test]
    fn lookups_visit_few_nodes_in_large_tables_too() {
        let nodes = |text: &str| {
            let index = CidrIndex::new(parse(text));
            (index.v4.visited(), index.v6.visited())
        };
        assert_eq!(nodes(&many(10, "")), (2, 2));
        assert_eq!(nodes(&many(20_000, "")), (4, 5));
        let rest = "!0.0.0.0/1 upper\n!::/1 upper\n0.0.0.0/0 lower\n::/0 lower\n";
        assert_eq!(nodes(&(many(20_000, "") + rest)), (4, 5));
        let blocks = many(
            10_000,
            "if !10.0.0.0/8\n11.12.13.14 x\nendif\nif 0.0.0.0/1\nif !::1\n::2 x\nendif\nendif\n",
        );
        assert_eq!(nodes(&(blocks + rest)), (4, 5));
    }

    /// Every statement adds two ranges at most, so that neither memory nor the time to build explodes.
    #[test]
    fn nested_blocks_do_not_multiply_ranges() {
        let mut text = String::new();
        for number in 0..5_000_u32 {
            let [_, b, c, d] = number.to_be_bytes();
            writeln!(text, "if !10.{b}.{c}.{d}\n11.{b}.{c}.{d} v{number}").unwrap();
        }
        text.push_str("0.0.0.0/0 rest\n");
        text.push_str(&"endif\n".repeat(5_000));
        text.push_str("10.0.0.0/8 ten\n");
        let index = CidrIndex::new(parse(&text));
        assert!(index.v4.answers.len() <= 2 * 10_002);
        assert_eq!(index.find(Address::v4(0x0a00_0007)), Some(&b"ten"[..]));
        assert_eq!(index.find(Address::v4(0x0b00_0007)), Some(&b"v7"[..]));
        assert_eq!(index.find(Address::v4(7)), Some(&b"rest"[..]));
    }
}
