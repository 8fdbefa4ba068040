//! Folding of keys, so that case does not matter (Postfix `src/util/casefold.c`).

use std::borrow::Cow;

use icu_casemap::{CaseMapper, CaseMapperBorrowed};

static CASE_MAPPER: CaseMapperBorrowed<'static> = CaseMapper::new();

/// Folds the case of a key.
///
/// With `unicode`, text outside ASCII gets full default case folding (`ß` = `ss`, `ς` = `σ`); the Turkish letters
/// get no special treatment. Otherwise, and for bytes that are not UTF-8, only `A` to `Z` change.
pub fn fold_key(key: &[u8], unicode: bool) -> Cow<'_, [u8]> {
    if unicode
        && !key.is_ascii()
        && let Ok(text) = std::str::from_utf8(key)
    {
        return match CASE_MAPPER.fold_string(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
    }
    if key.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(key.to_ascii_lowercase())
    } else {
        Cow::Borrowed(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unicode(text: &str) -> String {
        String::from_utf8(fold_key(text.as_bytes(), true).into_owned()).unwrap()
    }

    #[test]
    fn full_default_folding() {
        for (text, folded) in [
            ("Alpha", "alpha"),
            ("\u{df}", "ss"),
            ("\u{1e9e}", "ss"),
            ("\u{fb01}", "fi"),
            ("\u{3c2}", "\u{3c3}"),
            ("\u{212a}", "k"),
            ("\u{17f}", "s"),
            ("\u{130}", "i\u{307}"),
            ("\u{131}", "\u{131}"),
            ("\u{c9}A", "\u{e9}a"),
        ] {
            assert_eq!(unicode(text), folded, "{text}");
        }
    }

    #[test]
    fn without_unicode_only_ascii_letters_change() {
        assert_eq!(
            &*fold_key("\u{c9}A".as_bytes(), false),
            "\u{c9}a".as_bytes()
        );
        assert_eq!(&*fold_key(b"\xffA", true), b"\xffa");
    }

    #[test]
    fn what_is_folded_already_is_not_copied() {
        assert!(matches!(fold_key(b"key@example", true), Cow::Borrowed(_)));
        assert!(matches!(
            fold_key("\u{e9}".as_bytes(), true),
            Cow::Borrowed(_)
        ));
    }
}
