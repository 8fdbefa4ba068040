//! Markdown, as far as the manuals use it, as the source of a manual page.
//!
//! # References
//! man(7).

use std::fmt::Write as _;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Writes a page.
#[derive(Default)]
struct Writer {
    page: String,
    /// Text goes here while the cells of a row are collected.
    cells: Vec<String>,
    /// The first row of a table, which says what the columns are.
    head: Vec<String>,
    in_table: bool,
    in_code: bool,
    /// Lists that are open, each with the number of the next item if it has numbers.
    lists: Vec<Option<u64>>,
}

/// The same text in the language of manual pages.
pub(crate) fn from_markdown(text: &str) -> String {
    let mut writer = Writer::default();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        writer.take(event);
    }
    writer.page
}

/// Text that means itself.
pub(crate) fn escape(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti")
        .replace('`', "\\(ga")
        .replace('…', "...")
}

impl Writer {
    fn text(&mut self, text: &str) {
        match self.cells.last_mut() {
            Some(cell) if self.in_table => cell.push_str(text),
            _ => {
                // A dot at the beginning of a line would be a request.
                if self.page.ends_with('\n') && text.starts_with('.') {
                    self.page.push_str("\\&");
                }
                self.page.push_str(text);
            }
        }
    }

    /// Begins a line of its own.
    fn request(&mut self, request: &str) {
        if !self.page.is_empty() && !self.page.ends_with('\n') {
            self.page.push('\n');
        }
        self.page.push_str(request);
        self.page.push('\n');
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.begin(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => {
                for line in text.lines() {
                    let line = escape(line);
                    let guard = if line.starts_with('.') { "\\&" } else { "" };
                    writeln!(self.page, "{guard}{line}").expect("a string takes all");
                }
            }
            Event::Text(text) => self.text(&escape(&text)),
            Event::Code(code) => {
                let code = format!("\\fB{}\\fP", escape(&code));
                self.text(&code);
            }
            Event::SoftBreak if self.in_table => self.text(" "),
            Event::SoftBreak | Event::HardBreak => self.text("\n"),
            _ => {}
        }
    }

    fn begin(&mut self, tag: &Tag<'_>) {
        match tag {
            // The text of an item goes behind its mark.
            Tag::Paragraph if self.lists.is_empty() => self.request(".PP"),
            Tag::Heading { .. } => self.request(".SS"),
            Tag::CodeBlock(_) => {
                self.request(".PP\n.RS 4\n.nf");
                self.in_code = true;
            }
            Tag::List(number) => self.lists.push(*number),
            Tag::Item => {
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!(".IP {}. 4", *number - 1)
                    }
                    _ => ".IP \\(bu 2".to_owned(),
                };
                self.request(&mark);
            }
            Tag::Strong => self.text("\\fB"),
            Tag::Emphasis => self.text("\\fI"),
            Tag::Table(_) => self.in_table = true,
            Tag::TableHead | Tag::TableRow => self.cells.clear(),
            Tag::TableCell => self.cells.push(String::new()),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::CodeBlock => {
                self.in_code = false;
                self.request(".fi\n.RE");
            }
            TagEnd::List(_) => {
                self.lists.pop();
            }
            TagEnd::Strong | TagEnd::Emphasis => self.text("\\fP"),
            TagEnd::TableHead => self.head = std::mem::take(&mut self.cells),
            TagEnd::TableRow => self.row(),
            TagEnd::Table => self.in_table = false,
            _ => {}
        }
    }

    /// `KEY (DEFAULT)`, and what it means.
    fn row(&mut self) {
        let cells = std::mem::take(&mut self.cells);
        let [key, more @ ..] = &cells[..] else { return };
        let has_default = self.head.get(1).is_some_and(|word| word == "default");
        let (default, meaning) = match more {
            [default, meaning @ ..] if has_default => (default.as_str(), meaning),
            meaning => ("", meaning),
        };
        let mut tag = key.clone();
        if !default.is_empty() {
            write!(tag, " ({default})").expect("a string takes all");
        }
        self.request(".TP");
        self.request(&tag);
        let meaning = meaning.join("; ");
        self.request(meaning.trim());
    }
}

#[test]
fn all_that_manuals_use_is_translated() {
    let text = "A `word-x` and\n.dot, it's **strong**.\n\n- one\n- two\n\n1. first\n\n```\n.x = \\1\n```\n\n\
                | key | default | |\n|---|---|---|\n| `a` | 1s | what `b` is |\n| `c` |  | more |\n\n### Head\n";
    let expected = ".PP\nA \\fBword\\-x\\fP and\n\\&.dot, it\\(aqs \\fBstrong\\fP.\n.IP \\(bu 2\none\n.IP \\(bu 2\ntwo\n\
                    .IP 1. 4\nfirst\n.PP\n.RS 4\n.nf\n\\&.x = \\e1\n.fi\n.RE\n\
                    .TP\n\\fBa\\fP (1s)\nwhat \\fBb\\fP is\n.TP\n\\fBc\\fP\nmore\n.SS\nHead";
    assert_eq!(from_markdown(text), expected);
}
