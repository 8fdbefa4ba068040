//! The text of a CIDR table as statements, and what they mean when they are walked through one after the other
//! (Postfix `src/util/dict_cidr.c`, `cidr_match.c`).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use postkeep_conf::LogicalLines;
use postkeep_table::Printable;

use crate::braces::{is_space, trim};

/// The two kinds of addresses. A rule is only tried for addresses of its own family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// Bits of an address.
    fn bits(self) -> u32 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The last address, as a number.
    pub(super) fn last(self) -> u128 {
        u128::MAX >> (128 - self.bits())
    }
}

/// An IPv4 or IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) family: Family,
    pub(super) number: u128,
}

impl Address {
    /// Reads an address as `inet_pton(3)` does; with a colon it is an IPv6 address.
    ///
    /// No brackets, no scope, no white space, no leading zeros in IPv4.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        if text.contains(':') {
            text.parse().ok().map(|address: Ipv6Addr| Self {
                family: Family::V6,
                number: address.into(),
            })
        } else {
            text.parse().ok().map(|address: Ipv4Addr| Self {
                family: Family::V4,
                number: u32::from(address).into(),
            })
        }
    }

    /// The IPv4 address of that number.
    pub fn v4(number: u32) -> Self {
        Self {
            family: Family::V4,
            number: number.into(),
        }
    }

    /// The IPv6 address of that number.
    pub fn v6(number: u128) -> Self {
        Self {
            family: Family::V6,
            number,
        }
    }
}

/// As `inet_ntop(3)` writes addresses.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = Ipv4Addr::from(u32::try_from(self.number & 0xffff_ffff).unwrap_or_default());
        match self.family {
            Family::V4 => low.fmt(f),
            Family::V6 if self.number >> 32 == 0 && self.number >> 16 != 0 => write!(f, "::{low}"),
            Family::V6 => Ipv6Addr::from(self.number).fmt(f),
        }
    }
}

/// A network: the addresses that agree in their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) family: Family,
    /// The lowest address.
    pub(super) first: u128,
    /// The highest address.
    pub(super) last: u128,
}

/// A network, or everything in its address family but that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) network: Network,
    pub(super) negated: bool,
}

impl Condition {
    fn holds(&self, address: Address) -> bool {
        let Network {
            family,
            first,
            last,
        } = self.network;
        family == address.family && (first..=last).contains(&address.number) != self.negated
    }
}

/// One line that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Where the condition holds, the answer is this result.
    Match(Condition, Place),
    /// Up to the matching `EndIf`, or the end, only where the condition holds.
    If(Condition),
    EndIf,
}

/// Where the text of a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    start: u32,
    length: u32,
}

impl Place {
    /// Stands for no result.
    pub(super) const NOWHERE: Self = Self {
        start: u32::MAX,
        length: u32::MAX,
    };
}

/// The results, each text once.
#[derive(Debug, Default)]
pub(super) struct Results {
    text: Vec<u8>,
}

impl Results {
    pub(super) fn find(&self, place: Place) -> Option<&[u8]> {
        // Also where both are the largest number the end is behind every text.
        let start = usize::try_from(place.start).ok()?;
        let end = start.checked_add(usize::try_from(place.length).ok()?)?;
        self.text.get(start..end)
    }

    /// Adds a text that is not there yet; `None` when all of them would be above 4 GiB.
    fn add(&mut self, text: &[u8]) -> Option<Place> {
        let end = u32::try_from(self.text.len().checked_add(text.len())?).ok()?;
        let length = u32::try_from(text.len()).ok()?;
        self.text.extend_from_slice(text);
        Some(Place {
            start: end - length,
            length,
        })
    }
}

/// What makes the result of a rule from its text; the error is what a warning says of it.
pub type Content = fn(&[u8]) -> Result<Cow<'_, [u8]>, String>;

/// The rules of a CIDR table, in order.
#[derive(Debug, Default)]
pub struct CidrRules {
    pub(super) statements: Vec<Statement>,
    pub(super) results: Results,
}

impl CidrRules {
    /// Reads the text of a table. What is no rule goes to `warn` and is left out.
    ///
    /// - `map`: what warnings call the table
    /// - `label`: what warnings call the text, where the reference does not know the table
    /// - `content`: called for each result
    pub fn parse(
        text: &[u8],
        map: &str,
        label: &str,
        content: Content,
        warn: &mut dyn FnMut(String),
    ) -> Self {
        let mut rules = Self::default();
        let mut places: HashMap<Vec<u8>, Place> = HashMap::new();
        // The lines of the blocks that are open.
        let mut open = Vec::new();
        for logical in LogicalLines::new(text) {
            if logical.is_orphan() {
                warn(logical.orphan_warning(label));
                continue;
            }
            let line = logical.first;
            let statement = parse_line(logical.text_to_nul(), !open.is_empty()).and_then(|line| {
                Ok(match line {
                    Line::Match(condition, result) => {
                        let result = content(result)?;
                        let place = if let Some(&place) = places.get(&*result) {
                            place
                        } else {
                            let place = rules.results.add(&result);
                            let place = place.ok_or("results are too large")?;
                            places.insert(result.into_owned(), place);
                            place
                        };
                        Statement::Match(condition, place)
                    }
                    Line::If(condition) => Statement::If(condition),
                    Line::EndIf => Statement::EndIf,
                })
            });
            match statement {
                Ok(statement) => {
                    match statement {
                        Statement::If(_) => open.push(line),
                        Statement::EndIf => drop(open.pop()),
                        Statement::Match(..) => {}
                    }
                    rules.statements.push(statement);
                }
                Err(why) => warn(format!(
                    "cidr map {map}, line {line}: {why}: skipping this rule"
                )),
            }
        }
        for line in open.into_iter().rev() {
            warn(format!(
                "cidr map {map}, line {line}: IF has no matching ENDIF"
            ));
        }
        rules
    }

    /// The result of the first rule that holds, found by trying one after the other.
    ///
    /// This is what the rules mean; [`CidrIndex`](super::CidrIndex) finds the same faster.
    pub fn walk(&self, address: Address) -> Option<&[u8]> {
        // How many blocks are open whose rules do not count.
        let mut skipped = 0_usize;
        for statement in &self.statements {
            match statement {
                Statement::Match(condition, place) if skipped == 0 => {
                    if condition.holds(address) {
                        return self.results.find(*place);
                    }
                }
                Statement::If(condition) if skipped == 0 => {
                    skipped += usize::from(!condition.holds(address));
                }
                Statement::If(_) => skipped += 1,
                Statement::EndIf => skipped = skipped.saturating_sub(1),
                Statement::Match(..) => {}
            }
        }
        None
    }
}

enum Line<'a> {
    Match(Condition, &'a [u8]),
    If(Condition),
    EndIf,
}

fn parse_line(text: &[u8], in_block: bool) -> Result<Line<'_>, String> {
    if let Some(rest) = after_keyword(text, b"endif") {
        return match (trim(rest), in_block) {
            ([], true) => Ok(Line::EndIf),
            ([], false) => Err("ENDIF without IF".to_owned()),
            _ => Err("garbage after ENDIF".to_owned()),
        };
    }
    if let Some(rest) = after_keyword(text, b"if") {
        let (negated, pattern) = negation(trim(rest));
        return Ok(Line::If(Condition {
            network: parse_pattern(pattern)?,
            negated,
        }));
    }
    let (negated, rest) = negation(trim(text));
    let end = rest
        .iter()
        .position(|&byte| is_space(byte))
        .unwrap_or(rest.len());
    let (pattern, result) = rest.split_at(end);
    let network = parse_pattern(pattern)?;
    match trim(result) {
        [] => Err("no lookup result".to_owned()),
        result => Ok(Line::Match(Condition { network, negated }, result)),
    }
}

/// What follows a keyword, in any case, unless a letter or digit does.
fn after_keyword<'a>(text: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (word, rest) = text.split_at_checked(keyword.len())?;
    let ends = !rest.first().is_some_and(u8::is_ascii_alphanumeric);
    (ends && word.eq_ignore_ascii_case(keyword)).then_some(rest)
}

/// Takes `!` and white space off the start.
fn negation(text: &[u8]) -> (bool, &[u8]) {
    let end = text
        .iter()
        .position(|&byte| byte != b'!' && !is_space(byte))
        .unwrap_or(text.len());
    let (marks, rest) = text.split_at(end);
    let negated = marks
        .iter()
        .fold(false, |negated, &byte| negated != (byte == b'!'));
    (negated, rest)
}

/// Reads `ADDR`, `ADDR/LEN`, `[ADDR]`, `[ADDR]/LEN` or `[ADDR/LEN]`.
fn parse_pattern(pattern: &[u8]) -> Result<Network, String> {
    if pattern.is_empty() {
        return Err("no address pattern".to_owned());
    }
    let split = |text: &'_ [u8], at: u8| text.iter().position(|&byte| byte == at);
    let (address, length) = match pattern.strip_prefix(b"[") {
        Some(inside) => {
            let Some(end) = split(inside, b']') else {
                return Err(format!(
                    "missing ']' character after \"[{}\"",
                    Printable(inside)
                ));
            };
            let (inside, after) = (&inside[..end], &inside[end + 1..]);
            match after {
                [] => halves(inside),
                [b'/', length @ ..] => (inside, Some(length)),
                _ => return Err(format!("garbage after \"[{}]\"", Printable(inside))),
            }
        }
        None => halves(pattern),
    };
    let family = if address.contains(&b':') {
        Family::V6
    } else {
        Family::V4
    };
    let Some(length) = length else {
        let address = Address::parse(address)
            .ok_or_else(|| format!("bad address pattern: \"{}\"", Printable(address)))?;
        return Ok(Network {
            family,
            first: address.number,
            last: address.number,
        });
    };
    let shown = || format!("\"{}/{}\"", Printable(address), Printable(length));
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(format!("bad mask value in {}", shown()));
    }
    let bits = length.iter().fold(0_u32, |value, &digit| {
        value
            .saturating_mul(10)
            .saturating_add((digit - b'0').into())
    });
    if bits > family.bits() {
        return Err(format!("bad mask length in {}", shown()));
    }
    let number = Address::parse(address)
        .ok_or_else(|| format!("bad network value in {}", shown()))?
        .number;
    // No shift by all the bits there are.
    let host_bits = family.last().checked_shr(bits).unwrap_or(0);
    if number & host_bits != 0 {
        let network = Address {
            family,
            number: number & !host_bits,
        };
        return Err(format!(
            "non-null host address bits in {}, perhaps you should use \"{network}/{bits}\" instead",
            shown()
        ));
    }
    Ok(Network {
        family,
        first: number,
        last: number | host_bits,
    })
}

/// What is before and after the first slash.
fn halves(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b'/') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (CidrRules, Vec<String>) {
        let mut warnings = Vec::new();
        let rules = CidrRules::parse(
            text.as_bytes(),
            "M",
            "L",
            |value| Ok(Cow::Borrowed(value)),
            &mut |warning| warnings.push(warning),
        );
        (rules, warnings)
    }

    fn answer(rules: &CidrRules, key: &str) -> Option<String> {
        let found = rules.walk(Address::parse(key.as_bytes()).unwrap());
        found.map(|found| String::from_utf8(found.to_vec()).unwrap())
    }

    /// What is wrong with a line, without its frame.
    fn why(line: &str) -> String {
        let (_, warnings) = parse(line);
        let [warning] = &warnings[..] else {
            panic!("{line}: {warnings:?}");
        };
        warning
            .strip_prefix("cidr map M, line 1: ")
            .and_then(|rest| rest.strip_suffix(": skipping this rule"))
            .unwrap_or(warning)
            .to_owned()
    }

    #[test]
    fn what_is_wrong_with_a_line() {
        for (line, text) in [
            ("! !", "no address pattern"),
            ("if", "no address pattern"),
            ("if ! ", "no address pattern"),
            ("\0x", "no address pattern"),
            ("1.2.3.4", "no lookup result"),
            ("1.2.3.4\0 v", "no lookup result"),
            ("1.2.3", "bad address pattern: \"1.2.3\""),
            ("01.2.3.4 v", "bad address pattern: \"01.2.3.4\""),
            ("[] v", "bad address pattern: \"\""),
            ("[[1.2.3.4] v", "bad address pattern: \"[1.2.3.4\""),
            ("fe80::1%eth0 v", "bad address pattern: \"fe80::1%eth0\""),
            ("if10 v", "bad address pattern: \"if10\""),
            ("[1.2.3.4 v", "missing ']' character after \"[1.2.3.4\""),
            ("[1.2.3.4]x/32 v", "garbage after \"[1.2.3.4]\""),
            ("if [1.2.3.4] v", "garbage after \"[1.2.3.4]\""),
            ("1.2.3.4/ v", "bad mask value in \"1.2.3.4/\""),
            ("1.2.3.4/+1 v", "bad mask value in \"1.2.3.4/+1\""),
            ("if 1.2.3.4/32 v", "bad mask value in \"1.2.3.4/32 v\""),
            ("1.2.3/33 v", "bad mask length in \"1.2.3/33\""),
            ("1.2.3.4/288 v", "bad mask length in \"1.2.3.4/288\""),
            (
                "::/99999999999999999999 v",
                "bad mask length in \"::/99999999999999999999\"",
            ),
            ("1.2.3/24 v", "bad network value in \"1.2.3/24\""),
            (
                "[1.2.3.4/32]/32 v",
                "bad network value in \"1.2.3.4/32/32\"",
            ),
            (
                "[1.2.3.4/024] v",
                "non-null host address bits in \"1.2.3.4/024\", perhaps you should use \"1.2.3.0/24\" instead",
            ),
            (
                "2001:DB8::1:0:0:1/96 v",
                "non-null host address bits in \"2001:DB8::1:0:0:1/96\", perhaps you should use \"2001:db8:0:0:1::/96\" instead",
            ),
            ("endif", "ENDIF without IF"),
            ("endif x", "garbage after ENDIF"),
            ("eNdIf!", "garbage after ENDIF"),
            ("If 1.2.3.4", "cidr map M, line 1: IF has no matching ENDIF"),
            (
                " x",
                "L: logical line must not start with whitespace: \" x\"",
            ),
        ] {
            assert_eq!(why(line), text, "{line:?}");
        }
    }

    #[test]
    fn addresses_are_written_as_the_c_library_does() {
        for (number, text) in [
            (0, "::"),
            (1, "::1"),
            (0xffff, "::ffff"),
            (0x1_0000, "::0.1.0.0"),
            (0xffff_0102_0304, "::ffff:1.2.3.4"),
            (0xfffe_0102_0304, "::fffe:102:304"),
            (1 << 112, "1::"),
            (u128::MAX, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(Address::v6(number).to_string(), text);
        }
        assert_eq!(Address::v4(0x0102_0304).to_string(), "1.2.3.4");
    }

    #[test]
    fn marks_may_be_repeated_and_spaced() {
        let (rules, warnings) = parse("! ! 1.2.3.4 even\n!\t!!1.2.3.5 odd");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(answer(&rules, "1.2.3.4").as_deref(), Some("even"));
        assert_eq!(answer(&rules, "1.2.3.6").as_deref(), Some("odd"));
        assert_eq!(answer(&rules, "1.2.3.5"), None);
        assert_eq!(answer(&rules, "::1"), None);
    }

    #[test]
    fn a_rule_is_only_tried_for_its_own_family() {
        let (rules, warnings) = parse(
            "if !10.0.0.0/8\n::/0 inside\nif ::/0\n1.2.3.4 never\nendif\n1.2.3.4 four\nendif\n!::1 six",
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(answer(&rules, "::2").as_deref(), Some("six"));
        assert_eq!(answer(&rules, "::1"), None);
        assert_eq!(answer(&rules, "1.2.3.4").as_deref(), Some("four"));
        assert_eq!(answer(&rules, "10.2.3.4"), None);
    }

    #[test]
    fn a_block_that_was_skipped_leaves_its_rules_and_its_end() {
        let (rules, warnings) =
            parse("if 10.0.0.1/8\n1.2.3.4 v\nendif\nif 10.0.0.0/8\nif 10.0.0.1\n");
        assert_eq!(
            warnings,
            [
                "cidr map M, line 1: non-null host address bits in \"10.0.0.1/8\", perhaps you should use \"10.0.0.0/8\" instead: skipping this rule",
                "cidr map M, line 3: ENDIF without IF: skipping this rule",
                "cidr map M, line 5: IF has no matching ENDIF",
                "cidr map M, line 4: IF has no matching ENDIF",
            ]
        );
        assert_eq!(answer(&rules, "1.2.3.4").as_deref(), Some("v"));
    }
}
