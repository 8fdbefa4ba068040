//! Tables whose text is not trusted to be well written.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use postkeep_table::{Access, Flags, Opener as _, Outcome, TableName};
use postkeep_tables::{Address, CidrIndex, CidrRules, Context, Registry};

/// How many addresses are asked for.
const ADDRESSES: usize = 200;

/// Rules of a CIDR table mean the same walked through and searched, for all addresses that they name and their
/// neighbours; each line gives one warning at most.
pub fn cidr_rules(data: &[u8]) {
    let mut warnings = 0_usize;
    let mut parse = || {
        CidrRules::parse(
            data,
            "map",
            "text",
            |value| Ok(Cow::Borrowed(value)),
            &mut |_| warnings += 1,
        )
    };
    let rules = parse();
    let index = CidrIndex::new(parse());
    let lines = data.split(|&byte| byte == b'\n').count();
    assert!(warnings <= 2 * lines);
    let words = data
        .split(|byte| byte.is_ascii_whitespace() || b"!/[]\0".contains(byte))
        .filter_map(|word| std::str::from_utf8(word).ok());
    let mut addresses = vec![
        Address::v4(0),
        Address::v4(u32::MAX),
        Address::v6(0),
        Address::v6(u128::MAX),
    ];
    for word in words.take(ADDRESSES) {
        if let Ok(address) = word.parse::<Ipv4Addr>() {
            let number = u32::from(address);
            addresses
                .extend([number.wrapping_sub(1), number, number.wrapping_add(1)].map(Address::v4));
        } else if let Ok(address) = word.parse::<Ipv6Addr>() {
            let number = u128::from(address);
            addresses
                .extend([number.wrapping_sub(1), number, number.wrapping_add(1)].map(Address::v6));
        }
    }
    for address in addresses {
        assert_eq!(index.find(address), rules.walk(address), "{address}");
        let written = address.to_string();
        assert_eq!(
            Address::parse(written.as_bytes()),
            Some(address),
            "{written}"
        );
    }
}

/// Names that hold other tables, nested in any way: they open or they do not, and what does not find anything
/// leaves the buffer alone.
///
/// Names of files elsewhere and tables that ask other processes are left out.
pub fn table_lists(data: &[u8]) {
    let has = |word: &[u8]| data.windows(word.len()).any(|part| part == word);
    if has(b"/") || has(b"proxy") || has(b"unix") {
        return;
    }
    let registry = Registry::new(Context::default());
    for kind in [&b"pipemap:{"[..], b"unionmap:{"] {
        let name = [kind, data, b"}"].concat();
        let Ok(name) = TableName::parse(&name) else {
            continue;
        };
        for flags in [Flags::FOLD_FIX, Flags::FOLD_FIX | Flags::UTF8_REQUEST] {
            let Ok(table) = registry.open(&name, Access::Read, flags) else {
                continue;
            };
            assert!(table.flags().contains(flags));
            assert_ne!(
                table.flags().contains(Flags::FIXED),
                table.flags().contains(Flags::PATTERN)
            );
            for key in [&b"a"[..], b"B", b"", b"10.0.0.1", b"\xff"] {
                let mut value = b"before".to_vec();
                let outcome = table.lookup(flags, key, &mut value);
                assert!(value.starts_with(b"before"));
                if !matches!(outcome, Ok(Outcome::Done)) {
                    assert_eq!(value, b"before");
                }
            }
        }
    }
}
