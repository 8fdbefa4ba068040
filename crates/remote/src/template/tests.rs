use postkeep_conf::Release;
use proptest::prelude::*;

use super::*;
use crate::config::{Config, statement};
use crate::domain::{Domains, Verdict};

fn table() -> TableName {
    TableName::parse(b"sqlite:/t.cf").unwrap()
}

fn query(templates: &[&str], key: &str) -> Option<String> {
    let mut needs = Needs::default();
    let templates: Vec<_> = templates
        .iter()
        .map(|text| needs.query("/t.cf", text.as_bytes()).unwrap())
        .collect();
    let key = needs.key(&table(), key.as_bytes())?;
    let mut out = Vec::new();
    key.expand(&templates[0], unquoted, &mut out);
    Some(String::from_utf8(out).unwrap())
}

#[test]
fn labels_count_from_the_right_and_empty_ones_do_not_exist() {
    for key in ["u@a.b", "u@.a.b", "u@a..b", "u@a.b."] {
        assert_eq!(query(&["%1 %2"], key).as_deref(), Some("b a"), "{key}");
    }
    assert_eq!(query(&["%1"], "u@[192.0.2.1]").as_deref(), Some("1]"));
    assert_eq!(query(&["%9"], "u@1.2.3.4.5.6.7.8.9").as_deref(), Some("1"));
    assert_eq!(query(&["%9"], "u@1.2.3.4.5.6.7.8"), None);
    assert_eq!(query(&["%1"], "u@..."), None);
}

#[test]
fn needs_are_pooled() {
    assert_eq!(query(&["%s", "%2"], "u@a"), None);
    assert_eq!(query(&["%s", "%u"], "@a"), None);
    assert_eq!(query(&["%s", "%U"], "@@a").as_deref(), Some("@@a"));
    let mut needs = Needs::default();
    needs.query("n", b"%s").unwrap();
    needs.result("n", b"%s %D").unwrap();
    assert!(needs.key(&table(), b"u").is_none());
    // What a result needs of values is no matter of the key.
    let mut needs = Needs::default();
    needs.result("n", b"%u@%d").unwrap();
    assert!(needs.key(&table(), b"u").is_some());
}

#[test]
fn expansion_is_one_pass_and_quotes_parts_only() {
    let mut needs = Needs::default();
    let template = needs.query("n", b"'%u'%%s'%d'").unwrap();
    let key = needs.key(&table(), b"%d'%%@x'y").unwrap();
    let mut out = b"Q:".to_vec();
    key.expand(
        &template,
        |part, out| {
            for &byte in part {
                if byte == b'\'' {
                    out.push(b'\'');
                }
                out.push(byte);
            }
        },
        &mut out,
    );
    assert_eq!(String::from_utf8(out).unwrap(), "Q:'%d''%%'%s'x''y'");
}

#[test]
fn keys_that_are_none() {
    let needs = Needs::default();
    assert!(needs.key(&table(), b"").is_none());
    assert!(needs.key(&table(), b"a\0b").is_none());
}

fn answer(format: &str, limit: i32, values: &[Option<&[u8]>]) -> Result<Option<String>, Excess> {
    let mut needs = Needs::default();
    let template = needs.result("n", format.as_bytes()).unwrap();
    let (table, key) = (table(), needs.key(&table(), b"k@z.y").unwrap());
    let mut answer = Answer::new(&table, needs, &template, &key, limit);
    for value in values {
        answer.add(*value)?;
    }
    Ok(answer
        .finish()
        .map(|value| String::from_utf8(value).unwrap()))
}

#[test]
fn values_are_joined_and_skipped_ones_do_not_count() {
    let values = [
        None,
        Some(&b""[..]),
        Some(b"a@b"),
        Some(b"@c"),
        Some(b"d"),
        Some(b"e@"),
        Some(b"f@g@h\0i"),
    ];
    assert_eq!(
        answer("%u:%d", 2, &values),
        Ok(Some("a:b,f@g:h".to_owned()))
    );
    assert_eq!(answer("%u:%d", 1, &values), Err(Excess::Values));
    assert_eq!(answer("%u", 0, &[Some(b"@c")]), Ok(None));
    assert_eq!(answer("%u", 0, &[Some(b"c@")]), Ok(Some("c".to_owned())));
    assert_eq!(
        answer("%s,%S", -1, &[Some(b"x,y"), Some(b"z")]),
        Ok(Some("x,y,k@z.y,z,k@z.y".to_owned()))
    );
}

#[test]
fn results_are_bounded() {
    let big = vec![b'x'; RESULT_LIMIT];
    assert_eq!(
        answer("%s", 0, &[Some(&big)])
            .unwrap()
            .map(|value| value.len()),
        Some(RESULT_LIMIT)
    );
    assert_eq!(
        answer("%s", 0, &[Some(&big), Some(b"y")]),
        Err(Excess::Size)
    );
}

/// `SELECT` of literals, which is all that the vectors need.
fn rows(query: &str) -> Vec<Option<String>> {
    query
        .split(" UNION ALL ")
        .map(|select| {
            let rest = select.strip_prefix("SELECT ").unwrap();
            if rest == "NULL" {
                return None;
            }
            let mut value = String::new();
            let mut letters = rest.strip_prefix('\'').unwrap().chars().peekable();
            while let Some(letter) = letters.next() {
                if letter == '\'' && letters.next_if_eq(&'\'').is_none() {
                    break;
                }
                value.push(letter);
            }
            Some(value)
        })
        .collect()
}

#[derive(Debug, PartialEq)]
enum End {
    Found(String),
    Absent,
    Failed(String),
}

fn run(text: &str, key: &str) -> End {
    let fault = |error: ConfigError| End::Failed(error.to_string());
    let inner = || -> Result<Option<String>, End> {
        let config =
            Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7).map_err(fault)?;
        let mut needs = Needs::default();
        let query = statement(&config, false).map_err(fault)?;
        let query = needs.query(config.name(), &query).map_err(fault)?;
        let format = config.text("result_format", "%s", 1, 0).map_err(fault)?;
        let format = needs.result(config.name(), &format).map_err(fault)?;
        let limit = config.int("expansion_limit", 0, 0, 0).map_err(fault)?;
        let domains =
            Domains::read(&config, &mut |_| panic!(), &mut |_| panic!()).map_err(fault)?;
        let key = key.to_ascii_lowercase();
        if domains.verdict(key.as_bytes()) == Verdict::Skip {
            return Ok(None);
        }
        let table = table();
        let Some(key) = needs.key(&table, key.as_bytes()) else {
            return Ok(None);
        };
        let mut statement = Vec::new();
        key.expand(
            &query,
            |part, out| out.extend(String::from_utf8_lossy(part).replace('\'', "''").bytes()),
            &mut statement,
        );
        let statement = String::from_utf8(statement).unwrap();
        let rows = if statement == "SELECT v FROM a WHERE k='bob@example.com' " {
            vec![Some("x@y.org".to_owned())]
        } else {
            rows(&statement)
        };
        let mut answer = Answer::new(&table, needs, &format, &key, limit);
        for row in rows {
            answer
                .add(row.as_deref().map(str::as_bytes))
                .map_err(|excess| {
                    End::Failed(format!("dict_sqlite_lookup: /t.cf: {excess} for key 'k'"))
                })?;
        }
        Ok(answer
            .finish()
            .map(|value| String::from_utf8(value).unwrap()))
    };
    match inner() {
        Ok(Some(value)) => End::Found(value),
        Ok(None) => End::Absent,
        Err(end) => end,
    }
}

#[test]
fn vectors_recorded_with_the_reference() {
    let text = include_str!("../../../../vectors/config/templates.json");
    let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let end = run(case["cf"].as_str().unwrap(), case["key"].as_str().unwrap());
        match (case["outcome"].as_str().unwrap(), end) {
            ("found", End::Found(value)) => assert_eq!(value, case["result"], "{id}"),
            ("notfound", End::Absent) => {}
            ("error", End::Failed(text)) => {
                let told = case["stderr"].as_str().unwrap().replace("{CF}", "/t.cf");
                let first = told.lines().next().unwrap();
                assert!(first.ends_with(&format!(": {text}")), "{id}: {text}");
            }
            (wanted, end) => panic!("{id}: {wanted}, but {end:?}"),
        }
    }
}

proptest! {
    /// Whatever template and key: every part of the key passes through the quoting, and what is left is the
    /// template's own text.
    #[test]
    fn nothing_of_the_key_escapes_quoting(
        template in prop::collection::vec(prop::sample::select(vec!["%s", "%u", "%d", "%D", "%1", "%2", "%%", "x", "'"]), 0..8),
        key in "[K.@]{1,12}",
    ) {
        let template = template.concat();
        let mut needs = Needs::default();
        let parsed = needs.query("n", template.as_bytes()).unwrap();
        let table = table();
        if let Some(key) = needs.key(&table, key.as_bytes()) {
            let mut out = Vec::new();
            let mut parts = 0;
            key.expand(&parsed, |_, out| { parts += 1; out.extend_from_slice(b"<>"); }, &mut out);
            let text = String::from_utf8(out).unwrap();
            prop_assert!(!text.contains(['K', '.', '@']));
            let codes = parsed.pieces().iter().filter(|piece| !matches!(piece, Piece::Text(_))).count();
            prop_assert_eq!(parts, codes);
        }
    }
}
