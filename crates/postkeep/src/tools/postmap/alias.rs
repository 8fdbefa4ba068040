//! The source of postalias(1): `name: value, value` in the grammar of RFC 822 (aliases(5)).

use log::warn;
use postkeep_conf::LogicalLines;
use postkeep_table::Printable;

use super::Fatal;

/// A piece of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Operator(u8),
    /// As it is written.
    Atom(Vec<u8>),
    /// Without quotes and backslashes.
    Quoted(Vec<u8>),
    /// Without brackets and backslashes.
    Literal(Vec<u8>),
    /// With its parentheses.
    Comment(Vec<u8>),
}

/// Characters that are tokens of their own, or begin one.
const OPERATORS: &[u8] = b"|\"(),.:;<>@[]%!";

/// Reads aliases and hands name and value to `each`. Lines that are none are warned about and left out.
pub(super) fn parse(
    text: &[u8],
    file: &[u8],
    utf8: bool,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let file = Printable(file).to_string();
    for logical in LogicalLines::new(text) {
        if logical.is_orphan() {
            warn!("{}", logical.orphan_warning(&file));
            continue;
        }
        let line = logical.first;
        let content = logical.text_to_nul();
        if utf8 && !content.is_ascii() && std::str::from_utf8(&logical.text).is_err() {
            warn!(
                "{file}, line {line}: non-UTF-8 input \"{}\" -- ignoring this line",
                Printable(content)
            );
            continue;
        }
        let tokens = scan(content);
        if tokens.is_empty() {
            continue;
        }
        let before = |operator: u8, end: usize| tokens[..end].contains(&Token::Operator(operator));
        let colon = tokens
            .iter()
            .position(|token| *token == Token::Operator(b':'));
        match colon {
            Some(colon) if colon > 0 && colon + 1 < tokens.len() && !before(b',', colon) => {
                if before(b'@', colon) || before(b'%', colon) {
                    warn!("{file}, line {line}: name must be local");
                    continue;
                }
                each(&plain(&tokens[..colon]), &quoted(&tokens[colon + 1..]))?;
            }
            _ => warn!("{file}, line {line}: need name:value pair"),
        }
    }
    Ok(())
}

fn scan(text: &[u8]) -> Vec<Token> {
    let blank = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            _ if blank(byte) => at += 1,
            b'(' => tokens.push(Token::Comment(comment(text, &mut at))),
            b'[' => {
                at += 1;
                tokens.push(Token::Literal(collect(text, &mut at, |byte| byte == b']')));
                at += 1;
            }
            b'"' => {
                at += 1;
                tokens.push(Token::Quoted(collect(text, &mut at, |byte| byte == b'"')));
                at += 1;
            }
            _ if OPERATORS.contains(&byte) => {
                at += 1;
                tokens.push(Token::Operator(byte));
            }
            _ => {
                let atom = collect(text, &mut at, |byte| {
                    blank(byte) || OPERATORS.contains(&byte)
                });
                let special = |byte: &u8| {
                    *byte == b' ' || byte.is_ascii_control() || OPERATORS.contains(byte)
                };
                tokens.push(if atom.iter().any(special) {
                    Token::Quoted(atom)
                } else {
                    Token::Atom(atom)
                });
            }
        }
    }
    tokens
}

/// Text up to a byte that ends it, without the backslashes that protect others.
fn collect(text: &[u8], at: &mut usize, ends: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut collected = Vec::new();
    while let Some(&byte) = text.get(*at) {
        if ends(byte) {
            break;
        }
        *at += 1;
        if byte == b'\\' {
            let Some(&protected) = text.get(*at) else {
                break;
            };
            *at += 1;
            collected.push(protected);
        } else {
            collected.push(byte);
        }
    }
    collected
}

/// A comment as it is written; comments nest.
fn comment(text: &[u8], at: &mut usize) -> Vec<u8> {
    let start = *at;
    let mut depth = 0_usize;
    while let Some(&byte) = text.get(*at) {
        *at += 1;
        match byte {
            b'(' => depth += 1,
            b')' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            b'\\' if *at < text.len() => *at += 1,
            _ => {}
        }
    }
    text[start..*at].to_vec()
}

/// Whether a blank follows a token when it is written; a comma has one even at the end.
fn blank_after(token: &Token, next: Option<&Token>) -> bool {
    match (token, next) {
        (Token::Operator(b','), _) | (_, Some(Token::Operator(b'<'))) => true,
        (Token::Operator(_), _) | (_, Some(Token::Operator(_)) | None) => false,
        _ => true,
    }
}

fn write(tokens: &[Token], mut one: impl FnMut(&Token, &mut Vec<u8>)) -> Vec<u8> {
    let mut text = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        one(token, &mut text);
        if blank_after(token, tokens.get(number + 1)) {
            text.push(b' ');
        }
    }
    text
}

/// The internal form: nothing is quoted.
fn plain(tokens: &[Token]) -> Vec<u8> {
    write(tokens, |token, text| match token {
        Token::Operator(byte) => text.push(*byte),
        Token::Atom(word) | Token::Quoted(word) | Token::Comment(word) => {
            text.extend_from_slice(word);
        }
        Token::Literal(word) => {
            text.push(b'[');
            text.extend_from_slice(word);
            text.push(b']');
        }
    })
}

/// The external form, which can be read again.
fn quoted(tokens: &[Token]) -> Vec<u8> {
    let protect = |word: &[u8], special: &[u8], text: &mut Vec<u8>| {
        for &byte in word {
            if special.contains(&byte) {
                text.push(b'\\');
            }
            text.push(byte);
        }
    };
    write(tokens, |token, text| match token {
        Token::Operator(byte) => text.push(*byte),
        Token::Atom(word) | Token::Comment(word) => text.extend_from_slice(word),
        Token::Quoted(word) => {
            text.push(b'"');
            protect(word, b"\"\\\r\n", text);
            text.push(b'"');
        }
        Token::Literal(word) => {
            text.push(b'[');
            protect(word, b"\\\r\n", text);
            text.push(b']');
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let mut entries = Vec::new();
        let text_of = |bytes: &[u8]| Printable(bytes).to_string();
        let result = parse(text.as_bytes(), b"F", true, |key, value| {
            entries.push((text_of(key), text_of(value)));
            Ok(())
        });
        assert!(result.is_ok());
        entries
    }

    fn one(text: &str) -> (String, String) {
        let mut entries = read(text);
        assert_eq!(entries.len(), 1, "{text}");
        entries.remove(0)
    }

    #[test]
    fn names_lose_their_quotes_and_values_keep_them() {
        for (text, key, value) in [
            ("root: joe, ann\n", "root", "joe, ann"),
            ("\"a b\": \"c d\"", "a b", "\"c d\""),
            ("a b :c , d (note)", "a b", "c, d (note)"),
            ("x:y:z", "x", "y:z"),
            ("list: :include:/x\n  more", "list", ":include:/x more"),
            (
                "c(a (n)) : |\"/bin/p \\\"q\\\"\"",
                "c (a (n))",
                "|\"/bin/p \\\"q\\\"\"",
            ),
            ("\"\": v", "", "v"),
            ("a\\ b: v\\;w", "a b", "\"v;w\""),
            ("a: u@[1.2.3.4]", "a", "u@[1.2.3.4]"),
            ("a: N <u@d>", "a", "N <u@d>"),
            ("a: b,", "a", "b, "),
        ] {
            assert_eq!(one(text), (key.to_owned(), value.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_alias_is_left_out() {
        assert_eq!(
            read("nocolon\na, b: c\nu@d: e\nu%d: e\nnoval:\n: v\n\"u@d\": ok\n").len(),
            1
        );
        assert!(read("(\n[\n\"\n\\\n(\\").is_empty());
    }
}
