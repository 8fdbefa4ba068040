//! The fuzz body for the rules of `pcre:` and `regexp:` tables.

use postkeep_tables::{Dialect, PatternRules};

/// Longer texts are cut off: patterns may take long, as they do in the reference.
const TEXT: usize = 400;

/// Longer keys are cut off.
const KEY: usize = 24;

/// Rules of either type give the same answers and warnings whether or not rules are ruled out before they are tried,
/// for keys that are made of pieces of the rules; what does not match leaves the buffer alone.
pub fn pattern_rules(data: &[u8]) {
    let text = &data[..data.len().min(TEXT)];
    let mut keys: Vec<Vec<u8>> = vec![Vec::new(), vec![0xff; 3], b"a\n".to_vec()];
    let pieces = text.split(|byte| b"/|()[]{}^$*+? \n".contains(byte));
    for piece in pieces.filter(|piece| !piece.is_empty()).take(20) {
        let mut key = piece.to_vec();
        key.truncate(KEY);
        keys.push(key.to_ascii_uppercase());
        keys.push([&key[..], b" ", &key[..key.len() / 2]].concat());
        keys.push(key);
    }
    for dialect in [Dialect::Pcre, Dialect::Regexp] {
        let read = |prefilter| {
            let mut warnings = Vec::new();
            let mut warn = |warning: String| warnings.push(warning);
            let rules = PatternRules::read(dialect, text, b"t", prefilter, &mut warn);
            (rules.expect("a short text has no large patterns"), warnings)
        };
        let (plain, warnings) = read(false);
        let (filtered, same) = read(true);
        assert_eq!(warnings, same);
        assert!(warnings.len() <= 2 * text.len());
        for key in &keys {
            let find = |rules: &PatternRules| {
                let mut value = b"before".to_vec();
                let mut warnings = Vec::new();
                let outcome = rules.lookup(key, &mut value, &mut |warning| warnings.push(warning));
                assert!(value.starts_with(b"before"));
                (outcome, value, warnings)
            };
            let (outcome, value, warnings) = find(&plain);
            let (same_outcome, same_value, fewer) = find(&filtered);
            // A pattern that is not tried hits no limit, and its negation matches.
            if warnings == fewer {
                assert_eq!((outcome, value), (same_outcome, same_value), "{key:?}");
            } else {
                assert!(fewer.len() < warnings.len());
            }
        }
    }
}
