//! What goes to standard output.

use super::master::FIELDS;
use super::registry::{Node, Registry};
use super::{Fatal, Output};
use crate::sink::Sink;
use crate::text::{display, is_blank};

/// Longer lines are folded with `-f`.
const LINE_LIMIT: usize = 80;
const INDENT: usize = 4;

/// Where the fields of master.cf begin.
const COLUMNS: [usize; FIELDS] = [0, 11, 17, 25, 33, 41, 49, 57];

/// Prints parameters: those asked for, or all of the classes asked for.
pub(super) fn parameters(registry: &Registry<'_>, output: &mut Output) -> Result<(), Fatal> {
    let options = registry.options;
    if options.names.is_empty() {
        for (name, node) in registry.names() {
            if node.class.is_in(options.classes) {
                parameter(registry, name, node, output)?;
            }
        }
        return Ok(());
    }
    for name in &options.names {
        match registry.find(name) {
            Some(node) => parameter(registry, name, node, output)?,
            None => output.warning(format!("{}: unknown parameter", display(name))),
        }
    }
    Ok(())
}

fn parameter(
    registry: &Registry<'_>,
    name: &[u8],
    node: &Node,
    output: &mut Output,
) -> Result<(), Fatal> {
    let options = registry.options;
    let Some(value) = registry.value(name, None, options.has(b'n')) else {
        return Ok(());
    };
    let mut value = value.into_owned();
    if options.has(b'x') && !options.has(b'H') && !node.raw {
        value = registry.expand(&value, None, output)?;
    }
    let text = if options.has(b'H') {
        name.to_vec()
    } else if options.has(b'h') {
        value
    } else {
        [name, b" = ", &value].concat()
    };
    words(&text, options.has(b'f'), &mut output.held);
    Ok(())
}

/// Writes a line with one blank between words, folded if asked for.
fn words(text: &[u8], fold: bool, out: &mut Vec<u8>) {
    let mut length = 0;
    for word in text
        .split(|&byte| is_blank(byte))
        .filter(|word| !word.is_empty())
    {
        if length > 0 && (!fold || length + word.len() < LINE_LIMIT) {
            out.push(b' ');
            length += 1;
        } else if length > 0 {
            out.extend_from_slice(b"\n    ");
            length = INDENT;
        }
        out.extend_from_slice(word);
        length += word.len();
    }
    out.push(b'\n');
}

/// Which entries `-M` was asked for.
struct Pattern<'a> {
    text: &'a [u8],
    name: &'a [u8],
    transport: &'a [u8],
    matched: bool,
}

impl<'a> Pattern<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        let parts: Vec<_> = text
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let is_sane = |part: &[u8]| part == b"*" || !part.contains(&b'*');
        if text.first() == Some(&b'/') || !parts.iter().all(|part| is_sane(part)) {
            return None;
        }
        let (name, transport) = match parts[..] {
            [name] => (name, &b"*"[..]),
            [name, transport] => (name, transport),
            _ => return None,
        };
        Some(Self {
            text,
            name,
            transport,
            matched: false,
        })
    }

    fn matches(&self, name: &[u8], transport: &[u8]) -> bool {
        let fits = |pattern: &[u8], text: &[u8]| pattern == b"*" || pattern == text;
        fits(self.name, name) && fits(self.transport, transport)
    }
}

/// Prints entries of master.cf: those asked for, or all.
pub(super) fn master_entries(registry: &Registry<'_>, output: &mut Output) -> Result<(), Fatal> {
    let mut patterns = Vec::new();
    for text in &registry.options.names {
        let pattern = Pattern::parse(text);
        patterns.push(
            pattern.ok_or_else(|| Fatal("-M option requires service_name[/type]".to_owned()))?,
        );
    }
    for (index, service) in registry.services.iter().enumerate() {
        if patterns.is_empty() {
            master_entry(registry, index, output)?;
        }
        for pattern in &mut patterns {
            if pattern.matches(service.entry.name(), service.entry.transport()) {
                pattern.matched = true;
                master_entry(registry, index, output)?;
            }
        }
    }
    for pattern in patterns.iter().filter(|pattern| !pattern.matched) {
        output.warning(format!("unmatched request: \"{}\"", display(pattern.text)));
    }
    Ok(())
}

fn master_entry(registry: &Registry<'_>, index: usize, output: &mut Output) -> Result<(), Fatal> {
    let options = registry.options;
    let words = &registry.services[index].entry.words;
    let mut line = Line::default();
    for (word, column) in words.iter().zip(COLUMNS) {
        if line.length > 0 {
            line.add(b" ");
            while line.length < column {
                line.add(b" ");
            }
        }
        line.add(word);
    }
    let mut in_options = true;
    let mut rest = words[FIELDS..].iter();
    while let Some(word) = rest.next() {
        let mut length = word.len();
        let mut value = None;
        let was_in_options = in_options;
        if in_options && (word.first() != Some(&b'-') || word == b"--") {
            in_options = false;
        } else if in_options
            && word.get(1) == Some(&b'o')
            && let Some(given) = rest.next()
        {
            let given = if word == b"-o" && options.has(b'x') {
                registry.expand(given, Some(index), output)?
            } else {
                given.clone()
            };
            // Options with values get a line of their own.
            line.length = LINE_LIMIT;
            length += given.len() + 3 + if needs_braces(&given) { 2 } else { 0 };
            value = Some(given);
        }
        if line.length > INDENT {
            if !options.has(b'f') || line.length + 1 + length < LINE_LIMIT {
                line.add(b" ");
            } else {
                line.text.extend_from_slice(b"\n    ");
                line.length = INDENT;
            }
        }
        // The first word that is no option is never put into braces, as in the reference.
        line.add_braced(word, !was_in_options && needs_braces(word));
        if let Some(value) = value {
            line.add(b" ");
            line.add_braced(&value, needs_braces(&value));
            line.length = LINE_LIMIT;
        }
    }
    output.held.extend_from_slice(&line.text);
    output.held.push(b'\n');
    Ok(())
}

fn needs_braces(word: &[u8]) -> bool {
    word.iter().any(|&byte| is_blank(byte))
}

#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// Bytes in the physical line, or a pretence of it.
    length: usize,
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
        self.length += text.len();
    }

    fn add_braced(&mut self, text: &[u8], braces: bool) {
        if braces {
            self.add(b"{");
        }
        self.add(text);
        if braces {
            self.add(b"}");
        }
    }
}
