use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Values(HashMap<Vec<u8>, Vec<u8>>);

impl Lookup for Values {
    fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.0.get(name).map(|value| Cow::Borrowed(&value[..]))
    }
}

fn values<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Values {
    let owned = |text: &str| text.as_bytes().to_vec();
    Values(
        pairs
            .into_iter()
            .map(|(name, value)| (owned(name), owned(value)))
            .collect(),
    )
}

fn expanded(text: &str, values: &Values) -> Result<String, Vec<String>> {
    let mut told = Vec::new();
    match expand(text.as_bytes(), values, Release::V3_7, &mut told) {
        Ok(result) => Ok(String::from_utf8(result).unwrap()),
        Err(ExpandError::Conversion(text)) => Err(vec![text]),
        Err(ExpandError::Malformed) => Err(told),
    }
}

fn chain(length: usize, last: &str) -> Values {
    let mut all = HashMap::new();
    for index in 0..length {
        let value = if index + 1 == length {
            last.to_owned()
        } else {
            format!("$n{}", index + 1)
        };
        all.insert(format!("n{index}").into_bytes(), value.into_bytes());
    }
    Values(all)
}

#[test]
fn brackets_count_their_own_kind_only() {
    let values = values([("foo", "x")]);
    assert_eq!(expanded("$(foo?x)y)", &values), Ok("xy)".to_owned()));
    assert_eq!(expanded("${foo?a)b}", &values), Ok("a)b".to_owned()));
    assert_eq!(
        expanded("$({a)", &values),
        Err(vec![
            "unbalanced {} in attribute expression: \"{a\"".to_owned()
        ])
    );
}

#[test]
fn white_space_is_narrower_than_in_lines() {
    let values = values([("foo", "x")]);
    assert_eq!(expanded("${ \t\r\nfoo }", &values), Ok("x".to_owned()));
    assert!(expanded("${\x0bfoo}", &values).is_err());
    assert_eq!(
        expanded("${foo?\x0c{a}}", &values),
        Ok("\x0c{a}".to_owned())
    );
}

#[test]
fn comparisons() {
    let holds =
        |text: &str| expanded(&format!("${{{text}?{{1}}:{{0}}}}"), &values([])).unwrap() == "1";
    assert!(holds("{+1} != {1}"));
    assert!(holds("{} < {0}"));
    assert!(holds("{ 9} < {10}"));
    assert!(holds("{3.10} < {3.9}"));
    assert!(holds("{3.9} <level {3.10}"));
    assert!(holds("{ +3.06} ==level {3.6}"));
    assert_eq!(
        expanded("${{9223372036854775808} > {1}}", &values([])),
        Err(vec!["9223372036854775808".to_owned()])
    );
}

#[test]
fn odd_faults() {
    let fault = |text: &str| expanded(text, &values([])).unwrap_err().join("|");
    assert_eq!(
        fault("${{3.} <level {1}}"),
        "malformed compatibility level syntax: \"3.\""
    );
    assert_eq!(
        fault("${{a} ==bogus {b}}"),
        "bad operator suffix at: \"...==>>>bogus\""
    );
    assert_eq!(fault("x$"), "empty macro name: \"x$\"");
    assert_eq!(
        fault("${a$b}"),
        "attribute name syntax error at: \"...a>>>$b\""
    );
}

#[test]
fn levels_are_no_operators_before_3_6() {
    let mut told = Vec::new();
    let outcome = expand(b"${{1} <level {2}}", &values([]), Release::V3_5, &mut told);
    assert_eq!(outcome, Err(ExpandError::Malformed));
    assert_eq!(
        told,
        ["\"{expression}\" expected at: \"...{1} <>>>level {2}\""]
    );
}

#[test]
fn depth_is_the_reference_s() {
    assert_eq!(expanded("$n0", &chain(100, "x")), Ok("x".to_owned()));
    assert_eq!(
        expanded("$n0", &chain(101, "x")),
        Err(vec!["unreasonable macro call nesting: \"x\"".to_owned()])
    );
    assert_eq!(expanded("$n0", &chain(101, "")), Ok(String::new()));
}

#[test]
fn operands_cannot_recurse_for_ever() {
    let values = values([("a", "${{$a} == {x} ? {y} : {z}}")]);
    let told = expanded("$a", &values).unwrap_err();
    assert!(
        told[0].starts_with("unreasonable macro call nesting: "),
        "{told:?}"
    );
}

#[test]
fn growth_is_bounded() {
    let mut all = chain(1, "");
    for index in 0..60 {
        let next = format!("$n{0}$n{0}", index + 1);
        all.0
            .insert(format!("n{index}").into_bytes(), next.into_bytes());
    }
    let told = expanded("$n0", &all).unwrap_err();
    assert!(
        told[0].starts_with("unreasonable macro expansion size: "),
        "{told:?}"
    );
    all.0.insert(b"n60".to_vec(), vec![b'x'; 1 << 16]);
    assert!(expanded("$n0", &all).is_err());
}

#[test]
fn both_arms_are_scanned() {
    struct Names(std::cell::RefCell<Vec<String>>);
    impl Lookup for Names {
        fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
            self.0.borrow_mut().push(display(name).into_owned());
            None
        }
    }
    let names = Names(std::cell::RefCell::default());
    let mut told = Vec::new();
    scan(
        b"${a?{$b}:{${{$c} == {$d} ? {$e} : {$f}}}}",
        &names,
        Release::V3_7,
        &mut told,
    );
    assert_eq!(names.0.into_inner(), ["a", "b", "c", "d", "e", "f"]);
    assert!(told.is_empty());
}

proptest! {
    #[test]
    fn any_text_comes_to_an_end(
        text in r"[ab$(){}?:=<>!\t le1vx-]{0,60}",
        a in r"[ab$(){}?:=<>! 1x]{0,20}",
        b in r"[ab$(){}?:=<>! 1x]{0,20}",
    ) {
        let values = values([("a", a.as_str()), ("b", b.as_str())]);
        let mut told = Vec::new();
        let outcome = expand(text.as_bytes(), &values, Release::V3_7, &mut told);
        prop_assert_eq!(outcome == Err(ExpandError::Malformed), !told.is_empty());
        scan(text.as_bytes(), &values, Release::V3_7, &mut told);
    }

    #[test]
    fn any_bytes_come_to_an_end(text in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = expand(&text, &values([]), Release::V3_12, &mut Vec::new());
    }
}
