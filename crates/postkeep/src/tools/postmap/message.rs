//! Lookup keys from a message: its headers, its body lines (`-h`, `-b`, `-m`; Postfix `src/global/mime_state.c`).

use super::options::Options;
use super::{Fatal, for_each_line};

/// The longest header, as `header_size_limit` has it.
const LONGEST_HEADER: usize = 102_400;

/// The deepest nesting of parts, as `mime_nesting_limit` has it.
const DEEPEST: usize = 100;

/// The longest boundary that is compared, as `mime_boundary_length_limit` has it.
const LONGEST_BOUNDARY: usize = 2048;

/// Reads a message from standard input and asks `each` for the parts that the options want.
pub(super) fn read(
    options: &Options,
    each: impl FnMut(&[u8]) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let mut parser = Parser::new(options.headers, options.bodies, options.mime, each);
    for_each_line(|line| {
        if parser.done {
            Ok(())
        } else {
            parser.line(line)
        }
    })?;
    parser.end()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the headers of the message.
    Primary,
    /// In the headers of a part.
    Multipart,
    /// In the headers of an attached message.
    Nested,
    Body,
}

/// What a `Content-Type:` says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Message,
    Multipart,
    Other,
}

struct Boundary {
    text: Vec<u8>,
    /// What a part is that does not say.
    default: Content,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "three are options of the command"
)]
struct Parser<F> {
    headers: bool,
    bodies: bool,
    mime: bool,
    each: F,
    state: State,
    header: Vec<u8>,
    content: Content,
    stack: Vec<Boundary>,
    done: bool,
}

impl<F: FnMut(&[u8]) -> Result<(), Fatal>> Parser<F> {
    fn new(headers: bool, bodies: bool, mime: bool, each: F) -> Self {
        Self {
            headers,
            bodies,
            mime,
            each,
            state: State::Primary,
            header: Vec::new(),
            content: Content::Other,
            stack: Vec::new(),
            done: false,
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Fatal> {
        if self.state != State::Body && self.header_line(line)? {
            return Ok(());
        }
        self.body_line(line)
    }

    fn end(&mut self) -> Result<(), Fatal> {
        self.finish_header()
    }

    /// True when the line is part of a header, or ends the headers and was dealt with.
    fn header_line(&mut self, line: &[u8]) -> Result<bool, Fatal> {
        if !self.header.is_empty() && matches!(line.first(), Some(b' ' | b'\t')) {
            if self.header.len() < LONGEST_HEADER {
                self.header.push(b'\n');
                self.header.extend_from_slice(line);
            }
            return Ok(true);
        }
        self.finish_header()?;
        if let Some(name) = header_name(line) {
            let rest = line[name..]
                .iter()
                .position(|byte| !matches!(byte, b' ' | b'\t'))
                .unwrap_or(0);
            self.header.extend_from_slice(&line[..name]);
            self.header.extend_from_slice(&line[name + rest..]);
            return Ok(true);
        }
        if self.state == State::Primary && !self.bodies && !self.mime {
            self.done = true;
            return Ok(true);
        }
        if !line.is_empty() {
            self.state = State::Body;
            self.body(b"")?;
        } else if self.content == Content::Message {
            self.state = State::Nested;
            self.content = Content::Other;
        } else {
            self.state = State::Body;
        }
        Ok(false)
    }

    fn finish_header(&mut self) -> Result<(), Fatal> {
        if self.header.is_empty() {
            return Ok(());
        }
        let header = std::mem::take(&mut self.header);
        if self.mime
            && let Some(value) = strip_name(&header, b"content-type:")
        {
            self.content_type(value)?;
        }
        if self.headers {
            (self.each)(&header)
        } else {
            Ok(())
        }
    }

    fn body_line(&mut self, line: &[u8]) -> Result<(), Fatal> {
        if let Some(text) = line.strip_prefix(b"--")
            && let Some(place) = self
                .stack
                .iter()
                .rposition(|boundary| text.starts_with(&boundary.text))
        {
            self.stack.truncate(place + 1);
            if text[self.stack[place].text.len()..].starts_with(b"--") {
                self.stack.pop();
                self.state = State::Body;
                self.content = Content::Other;
            } else {
                self.state = State::Multipart;
                self.content = self.stack[place].default;
            }
        }
        self.body(line)
    }

    fn body(&mut self, line: &[u8]) -> Result<(), Fatal> {
        if self.bodies {
            (self.each)(line)
        } else {
            Ok(())
        }
    }

    fn content_type(&mut self, value: &[u8]) -> Result<(), Fatal> {
        let words = words(value);
        let is = |place: usize, word: &[u8]| {
            words
                .get(place)
                .is_some_and(|found| found.eq_ignore_ascii_case(word))
        };
        self.content = Content::Other;
        if is(0, b"message") && is(1, b"/") {
            if is(2, b"rfc822") {
                self.content = Content::Message;
            }
        } else if is(0, b"multipart") && is(1, b"/") {
            self.content = Content::Multipart;
            let boundary = words
                .windows(3)
                .find(|words| words[0].eq_ignore_ascii_case(b"boundary") && words[1] == b"=")
                .map(|words| &words[2][..words[2].len().min(LONGEST_BOUNDARY)]);
            if let Some(boundary) = boundary {
                if self.stack.len() >= DEEPEST {
                    return Err(Fatal(
                        "message format error: MIME nesting exceeds safety limit".to_owned(),
                    ));
                }
                self.stack.push(Boundary {
                    text: boundary.to_vec(),
                    default: if is(2, b"digest") {
                        Content::Message
                    } else {
                        Content::Other
                    },
                });
            }
        }
        Ok(())
    }
}

/// Length of `name:` when the line begins a header, with the white space before the colon left out of `name`.
fn header_name(line: &[u8]) -> Option<usize> {
    let name = line
        .iter()
        .position(|&byte| !byte.is_ascii_graphic() || byte == b':')
        .filter(|&length| length > 0)?;
    let blanks = line[name..]
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t'))?;
    (line[name + blanks] == b':').then_some(name)
}

fn strip_name<'h>(header: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let (start, rest) = header.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(rest)
}

/// Tokens of a structured header: words, quoted strings without their quotes, and single specials.
fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'(' => {
                let mut depth = 0_usize;
                while let Some(&byte) = text.get(at) {
                    at += 1;
                    match byte {
                        b'(' => depth += 1,
                        b')' if depth == 1 => break,
                        b')' => depth -= 1,
                        b'\\' => at += 1,
                        _ => {}
                    }
                }
            }
            b'"' => {
                at += 1;
                let mut word = Vec::new();
                while let Some(&byte) = text.get(at) {
                    at += 1;
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            word.extend(text.get(at));
                            at += 1;
                        }
                        _ => word.push(byte),
                    }
                }
                words.push(word);
            }
            b'/' | b'=' | b';' | b',' | b':' | b'<' | b'>' | b'@' | b'?' => {
                words.push(vec![byte]);
                at += 1;
            }
            _ if byte.is_ascii_graphic() || byte > 127 => {
                let ends = |&byte: &u8| {
                    byte.is_ascii_whitespace()
                        || b"/=;,:<>@?\"()".contains(&byte)
                        || byte.is_ascii_control()
                };
                let length = text[at..].iter().position(ends).unwrap_or(text.len() - at);
                words.push(text[at..at + length].to_vec());
                at += length.max(1);
            }
            _ => at += 1,
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "Subject : x\nMIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary=\"q\"\n\npre\n\
                           --q\nContent-Type: text/plain\nX-Part: 1\n\npart text\n--q\nContent-Type: message/rfc822\n\n\
                           Subject: inner\n\ninner body\n--q--\npost";

    fn keys(options: &str, message: &str) -> Vec<String> {
        let mut keys = Vec::new();
        let has = |letter| options.contains(letter);
        let mut parser = Parser::new(has('h'), has('b'), has('m'), |key: &[u8]| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            Ok(())
        });
        for line in message.split('\n') {
            if !parser.done {
                assert!(parser.line(line.as_bytes()).is_ok());
            }
        }
        assert!(parser.end().is_ok());
        keys
    }

    #[test]
    fn headers_alone_are_those_of_the_message() {
        assert_eq!(
            keys("h", MESSAGE),
            [
                "Subject: x",
                "MIME-Version: 1.0",
                "Content-Type: multipart/mixed;\n boundary=\"q\""
            ]
        );
        assert_eq!(keys("h", "From x\nA: b\n").len(), 0);
    }

    #[test]
    fn mime_adds_the_headers_of_parts() {
        let keys = keys("hm", MESSAGE);
        assert_eq!(
            keys[3..],
            [
                "Content-Type: text/plain",
                "X-Part: 1",
                "Content-Type: message/rfc822",
                "Subject: inner"
            ]
        );
    }

    #[test]
    fn body_lines_begin_with_the_empty_one() {
        assert_eq!(keys("b", "A: b\n\nline\n\nlast"), ["", "line", "", "last"]);
        assert_eq!(keys("b", "A: b\nline"), ["", "line"]);
        assert_eq!(
            keys("bm", MESSAGE),
            [
                "",
                "pre",
                "--q",
                "",
                "part text",
                "--q",
                "",
                "",
                "inner body",
                "--q--",
                "post"
            ]
        );
        assert_eq!(keys("hb", "A: b\n\nl"), ["A: b", "", "l"]);
    }
}
