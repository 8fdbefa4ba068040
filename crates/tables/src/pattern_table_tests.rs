//! Both pattern types, through the registry and beside a search without a prefilter.

use std::sync::Arc;

use postkeep_sys::pcre::{Effort, Pattern};
use postkeep_table::{Access, Flags, Latency, OpenError, Opener, Outcome, Owner, Table, TableName};
use proptest::prelude::*;

use crate::pattern_rules::Reading;
use crate::pattern_table::{Engine, Rules};
use crate::regexp::SharedExpression;
use crate::{Caller, Context, Registry};

fn open_as(caller: Caller, name: &str, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
    let context = Context {
        caller,
        ..Context::default()
    };
    let name = TableName::parse(name.as_bytes()).unwrap();
    Registry::new(context).open(&name, Access::Read, flags)
}

fn answer(name: &str, key: &str) -> Option<String> {
    let table = open_as(Caller::Daemon, name, Flags::empty()).unwrap();
    let mut value = Vec::new();
    let outcome = table
        .lookup(Flags::empty(), key.as_bytes(), &mut value)
        .unwrap();
    let mut quick = Vec::new();
    let tried = table.try_lookup(Flags::empty(), key.as_bytes(), &mut quick);
    assert_eq!(tried.unwrap().unwrap(), outcome);
    assert_eq!(quick, value);
    (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
}

#[test]
fn the_first_rule_that_matches_answers() {
    for kind in ["pcre", "regexp"] {
        let name = format!(
            "{kind}:{{ {{/^(.*)@old\\.example$/ $1@new.example}} {{if /^ab/}} {{!/cd/ ab}} {{/cd(.)/ <$1>}} {{endif}} {{/zz/ last}} }}"
        );
        for (key, wanted) in [
            ("Joe@OLD.example", Some("Joe@new.example")),
            ("abx", Some("ab")),
            ("abcdE", Some("<E>")),
            ("abcd", None),
            ("xabcdE", None),
            ("xzz", Some("last")),
            ("", None),
        ] {
            assert_eq!(answer(&name, key).as_deref(), wanted, "{kind} {key}");
        }
    }
    assert_eq!(
        answer("regexp:{{/foo/!/bar/ x} {/foo/!!/bar/ y}}", "foobar").as_deref(),
        Some("y")
    );
}

#[test]
fn keys_end_at_a_nul() {
    for kind in ["pcre", "regexp"] {
        let name = format!("{kind}:{{{{/^ab$/ x}}}}");
        assert_eq!(answer(&name, "ab\0c").as_deref(), Some("x"));
    }
}

#[test]
fn a_directory_is_an_empty_table_for_a_command_only() {
    assert!(open_as(Caller::Command, "pcre:/", Flags::empty()).is_ok());
    let error = open_as(Caller::Daemon, "regexp:/", Flags::empty())
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "read /: Is a directory");
}

#[test]
fn what_a_table_says_about_itself() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "/a/ b\n").unwrap();
    let name = format!("pcre:{}", file.path().display());
    let table = open_as(Caller::Daemon, &name, Flags::LOCK).unwrap();
    assert_eq!(table.flags(), Flags::LOCK | Flags::PATTERN);
    assert_eq!(table.latency(), Latency::Blocking);
    assert_eq!(table.watches().len(), 1);
    let table = open_as(Caller::Daemon, "pcre:{}", Flags::empty()).unwrap();
    assert!(table.watches().is_empty());
    assert_ne!(table.owner(), Owner::Unknown);
}

fn reading<E: Engine>() -> Reading<'static> {
    Reading {
        dialect: E::DIALECT,
        name: b"t",
        label: "t",
        no_substitution: false,
        from_files: None,
    }
}

fn rules<E: Engine>(text: &[u8], prefilter: bool) -> (Rules<E>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut warn = |text| warnings.push(text);
    let rules = Rules::read(text, &reading::<E>(), prefilter, usize::MAX, &mut warn);
    (rules.unwrap(), warnings)
}

#[test]
fn a_match_without_end_is_no_match() {
    let text = b"/^(a|a)*$/ one\n!/^(a|a)*$/ two\nif /^(a|a)*$/\n/./ three\nendif\n/^a/ four\n";
    let (rules, _) = rules::<Pattern>(text, true);
    let key = [&[b'a'; 40][..], b"b"].concat();
    let (mut value, mut warnings) = (Vec::new(), Vec::new());
    let mut find = |effort, value: &mut Vec<u8>| {
        rules.find(&key, effort, value, &mut |text| warnings.push(text))
    };
    assert_eq!(find(Effort::Quick, &mut value), None);
    assert!(value.is_empty());
    assert_eq!(find(Effort::Full, &mut value), Some(Outcome::Done));
    assert_eq!(value, b"four");
    let about = |line| format!("pcre map t, line {line}: match limit exceeded");
    assert_eq!(warnings, [about(1), about(2), about(3)]);
}

#[test]
fn patterns_of_a_table_are_bounded_together() {
    let line = "/(?:a{200}b{200}){30}/ x\n";
    let (rules, warnings) = rules::<Pattern>(line.repeat(3).as_bytes(), true);
    assert!(warnings.is_empty(), "{warnings:?} {rules:?}");
    let reading = reading::<Pattern>();
    let large =
        Rules::<Pattern>::read(line.repeat(3).as_bytes(), &reading, true, 1000, &mut |_| {});
    assert!(large.is_err());
}

/// Patterns of all kinds that the prefilter reads, and some that no library accepts.
fn pattern() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        6 => "[abAB]{1,4}",
        1 => Just(".".to_owned()),
        1 => Just("[ab]".to_owned()),
        1 => Just("[^a]".to_owned()),
        1 => Just("[.]".to_owned()),
        1 => Just("[Aa]".to_owned()),
        1 => Just("[]a]".to_owned()),
        1 => Just("[[:alpha:]]".to_owned()),
        1 => Just("\\.".to_owned()),
        1 => Just("\\w".to_owned()),
        1 => Just("\\b".to_owned()),
        1 => Just("\\a".to_owned()),
        1 => Just("\\A".to_owned()),
        1 => Just("\\B".to_owned()),
        1 => Just("\\1".to_owned()),
        1 => Just("\\n".to_owned()),
        1 => Just("\u{e9}".to_owned()),
        1 => Just("^".to_owned()),
        1 => Just("$".to_owned()),
        1 => Just("(?i)".to_owned()),
        1 => Just("(?=ab)".to_owned()),
        1 => Just("(?!ab)".to_owned()),
        1 => Just("\\K".to_owned()),
        1 => Just("\\Qab\\E".to_owned()),
        1 => Just("\\x61".to_owned()),
        1 => Just("{".to_owned()),
        1 => Just(")".to_owned()),
        1 => Just("]".to_owned()),
    ];
    let quantifier = prop_oneof![
        8 => Just(""),
        1 => Just("*"),
        1 => Just("+"),
        1 => Just("?"),
        1 => Just("*?"),
        1 => Just("**"),
        1 => Just("++"),
        1 => Just("{0}"),
        1 => Just("{2}"),
        1 => Just("{1,}"),
        1 => Just("{0,1}"),
        1 => Just("{,1}"),
        1 => Just("\\{2\\}"),
        1 => Just("\\?"),
    ];
    let part = (atom, quantifier).prop_map(|(atom, quantifier)| atom + quantifier);
    part.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            3 => proptest::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}|{b}")),
            1 => (inner.clone(), prop_oneof![Just(""), Just("?"), Just("*"), Just("+"), Just("{2}")])
                .prop_map(|(inner, quantifier)| format!("({inner}){quantifier}")),
            1 => inner.clone().prop_map(|inner| format!("(?:{inner})")),
            1 => inner.clone().prop_map(|inner| format!("\\({inner}\\)")),
            1 => (inner.clone(), inner).prop_map(|(a, b)| format!("{a}\\|{b}")),
        ]
    })
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (prop_oneof![3 => Just(""), 1 => Just("!")], pattern(), "[imx]{0,2}")
            .prop_map(|(not, pattern, flags)| format!("{not}/{pattern}/{flags} R")),
        1 => (pattern(), pattern()).prop_map(|(one, other)| format!("/{one}/!/{other}/ R")),
        2 => (prop_oneof![2 => Just(""), 1 => Just("!")], pattern())
            .prop_map(|(not, pattern)| format!("if {not}/{pattern}/")),
        1 => Just("endif".to_owned()),
    ]
}

fn same_with_and_without<E: Engine>(
    lines: &[String],
    keys: &[String],
) -> Result<(), TestCaseError> {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        writeln!(text, "{line}{number}").unwrap();
    }
    let text = text
        .replace("endif", "endif ")
        .replace("endif ", "endif\n#");
    let (plain, warnings) = rules::<E>(text.as_bytes(), false);
    let (filtered, same) = rules::<E>(text.as_bytes(), true);
    prop_assert_eq!(warnings, same);
    for key in keys {
        let find = |rules: &Rules<E>| {
            let (mut value, mut warnings) = (Vec::new(), Vec::new());
            let outcome = rules.find(key.as_bytes(), Effort::Full, &mut value, &mut |text| {
                warnings.push(text);
            });
            (outcome, String::from_utf8(value).unwrap(), warnings)
        };
        prop_assert_eq!(find(&plain), find(&filtered), "key {:?} of {}", key, text);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn what_the_prefilter_rules_out_would_not_match(
        lines in proptest::collection::vec(line(), 1..14),
        keys in proptest::collection::vec("[abAB.\u{e9}\n]{0,9}", 12),
    ) {
        same_with_and_without::<Pattern>(&lines, &keys)?;
        same_with_and_without::<SharedExpression>(&lines, &keys)?;
    }
}
