//! Names that carry data in braces: `TYPE:{ ... }` (Postfix `src/util/balpar.c`, `extpar.c`, `mystrtok.c`).
//!
//! Only `{` and `}` count; there is no escape.

use postkeep_table::Printable;

/// Separators of elements, outside inner braces.
const SEPARATORS: &[u8] = b", \t\r\n";

/// White space as the C library has it in its own locale.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// The text without white space at both ends.
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|&byte| !is_space(byte))
        .unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(|&byte| !is_space(byte))
        .map_or(start, |last| last + 1);
    &text[start..end]
}

/// How many bytes the balanced braces at the start of the text span; 0 when there are none.
fn balanced(text: &[u8]) -> usize {
    let mut depth = 0_usize;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' if depth > 1 => depth -= 1,
            _ if depth == 0 => return 0,
            _ => {}
        }
    }
    0
}

/// What is between the outer braces of a whole name, when it is `{...}` and nothing else.
pub(crate) fn whole(name: &[u8]) -> Option<&[u8]> {
    (name.len() >= 2 && balanced(name) == name.len()).then(|| &name[1..name.len() - 1])
}

/// Removes the braces around a text that starts with one, and the white space inside them.
///
/// # Errors
/// The fragment that the reference puts into its messages.
pub(crate) fn strip(text: &[u8]) -> Result<&[u8], String> {
    if text.first() != Some(&b'{') {
        return Err(format!(
            "no '{{' at start of text in \"{}\"",
            Printable(text)
        ));
    }
    match balanced(text) {
        0 => Err(format!("missing '}}' in \"{}\"", Printable(text))),
        length if length == text.len() => Ok(trim(&text[1..length - 1])),
        _ => Err(format!(
            "syntax error after '}}' in \"{}\"",
            Printable(text)
        )),
    }
}

/// The elements of a list; empty ones vanish.
pub(crate) fn elements(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let start = list.iter().position(|byte| !SEPARATORS.contains(byte))?;
        let text = &list[start..];
        let mut depth = 0_usize;
        let end = text.iter().position(|&byte| {
            match byte {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => return depth == 0 && SEPARATORS.contains(&byte),
            }
            false
        });
        let end = end.unwrap_or(text.len());
        list = &text[end..];
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_balanced_braces_around_everything_count() {
        assert_eq!(whole(b"{a{b}c}"), Some(&b"a{b}c"[..]));
        assert_eq!(whole(b"{}"), Some(&b""[..]));
        for name in [&b"a"[..], b"{a", b"{a}b", b"{a}{b}", b"}", b""] {
            assert_eq!(whole(name), None);
        }
    }

    #[test]
    fn strip_says_what_is_wrong() {
        assert_eq!(strip(b"{ a b }"), Ok(&b"a b"[..]));
        assert_eq!(strip(b"{}"), Ok(&b""[..]));
        assert_eq!(strip(b"{x").unwrap_err(), "missing '}' in \"{x\"");
        assert_eq!(
            strip(b"{x}y").unwrap_err(),
            "syntax error after '}' in \"{x}y\""
        );
        assert_eq!(
            strip(b"{x} ").unwrap_err(),
            "syntax error after '}' in \"{x} \""
        );
        assert_eq!(strip(b"x").unwrap_err(), "no '{' at start of text in \"x\"");
    }

    #[test]
    fn separators_split_outside_inner_braces() {
        let list: Vec<_> = elements(b" a=1, {b = x y},,c\t}d e{").collect();
        assert_eq!(list, [&b"a=1"[..], b"{b = x y}", b"c", b"}d", b"e{"]);
        assert_eq!(elements(b" , \n").count(), 0);
    }
}
