//! master.cf as postconf sees it: fields as they are written, options in one form.

use super::{Fatal, Output};
use crate::sink::Sink;
use crate::text::{display, extract_braced, is_blank, split_name_value, take_braced};

/// Fields before the arguments.
pub(super) const FIELDS: usize = 8;

const TYPES: [&[u8]; 5] = [b"unix", b"fifo", b"inet", b"pass", b"unix-dgram"];

/// One entry of master.cf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Eight fields, then options in the form `-o` `name=value`, then other arguments.
    pub words: Vec<Vec<u8>>,
}

impl Entry {
    pub(super) fn name(&self) -> &[u8] {
        &self.words[0]
    }

    pub(super) fn transport(&self) -> &[u8] {
        &self.words[1]
    }

    pub(super) fn command(&self) -> &[u8] {
        &self.words[FIELDS - 1]
    }

    /// `NAME/TYPE`: entries that share it share their `-o` settings.
    pub(super) fn name_space(&self) -> Vec<u8> {
        [self.name(), b"/", self.transport()].concat()
    }

    /// Values of the options `-o`.
    pub(super) fn overrides(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.words[FIELDS..];
        std::iter::from_fn(move || {
            loop {
                let (word, after) = rest.split_first().filter(|(word, _)| is_option(word))?;
                rest = after;
                if word.get(1) == Some(&b'o')
                    && let Some((value, after)) = rest.split_first()
                {
                    rest = after;
                    if word == b"-o" {
                        return Some(&value[..]);
                    }
                }
            }
        })
    }

    /// Takes a logical line apart.
    pub(super) fn parse(line: &[u8], output: &mut Output) -> Result<Self, Fatal> {
        let mut rest = line;
        let mut words: Vec<Vec<u8>> = std::iter::from_fn(|| take_braced(&mut rest, is_blank))
            .map(<[u8]>::to_vec)
            .collect();
        if words.len() < FIELDS {
            return Err(Fatal("bad field count".to_owned()));
        }
        check(&words, line)?;
        normalize(&mut words, output);
        Ok(Self { words })
    }
}

/// A fault of a field, which names no file and line, unlike a wrong number of fields.
fn bad_field(field: &str, value: &[u8], line: &[u8]) -> Fatal {
    let (value, line) = (display(value), display(line));
    Fatal(format!("invalid {field} field \"{value}\" in \"{line}\""))
}

/// Set apart so that the caller knows which faults get a place in the file.
pub(super) fn is_field_count(fault: &Fatal) -> bool {
    fault.0 == "bad field count"
}

fn check(words: &[Vec<u8>], line: &[u8]) -> Result<(), Fatal> {
    if !TYPES.contains(&&words[1][..]) {
        return Err(bad_field("type", &words[1], line));
    }
    for (field, name) in (2..).zip(["private", "unprivileged", "chroot"]) {
        if !matches!(&words[field][..], b"y" | b"n" | b"-") {
            return Err(bad_field(name, &words[field], line));
        }
    }
    let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let wakeup = &words[5][..];
    let bare = wakeup.strip_suffix(b"?").unwrap_or(wakeup);
    if bare != b"-" && !digits(bare) {
        return Err(bad_field("wakeup", wakeup, line));
    }
    if words[6] != b"-" && !digits(&words[6]) {
        return Err(bad_field("process_limit", &words[6], line));
    }
    Ok(())
}

fn is_option(word: &[u8]) -> bool {
    word.first() == Some(&b'-') && word != b"--"
}

/// Brings options into the form `-o` `name=value` and takes braces off.
fn normalize(words: &mut Vec<Vec<u8>>, output: &mut Output) {
    let mut field = FIELDS;
    while field < words.len() && is_option(&words[field]) {
        // `-vo` is `-v` and `-o`.
        if let Some(at) = words[field].iter().skip(2).position(|&byte| byte == b'o') {
            let mut tail = words[field].split_off(at + 2);
            tail.insert(0, b'-');
            words.insert(field + 1, tail);
        }
        if words[field].get(1) == Some(&b'o') {
            if words[field].len() > 2 {
                let value = words[field].split_off(2);
                words.insert(field + 1, value);
            }
            if field + 1 < words.len() {
                field += 1;
                if words[field].first() == Some(&b'{') {
                    unbrace(&mut words[field], output);
                    normalize_assignment(&mut words[field], output);
                }
            }
        }
        field += 1;
    }
    for word in words.iter_mut().skip(field) {
        if word.first() == Some(&b'{') {
            unbrace(word, output);
        }
    }
}

fn unbrace(word: &mut Vec<u8>, output: &mut Output) {
    let (inside, fault) = extract_braced(word, true);
    let inside = inside.to_vec();
    if let Some(fault) = fault {
        output.warning(format!("master.cf: {fault}"));
    }
    *word = inside;
}

fn normalize_assignment(word: &mut Vec<u8>, output: &mut Output) {
    match split_name_value(word) {
        Ok((name, value)) => *word = [name, b"=", value].concat(),
        Err(fault) => output.warning(format!("master.cf: {fault}: \"{}\"", display(word))),
    }
}
