//! Prometheus' text format, as far as our own daemons write it.
//!
//! # References
//! Prometheus, "Exposition formats", text format 0.0.4.

use std::collections::HashMap;

/// One number with its labels.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    labels: Vec<(String, String)>,
    value: f64,
}

/// The numbers of one page, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Numbers(HashMap<String, Vec<Sample>>);

/// A line that is no sample.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not in Prometheus' text format")]
pub(crate) struct BadLine {
    line: usize,
}

impl Numbers {
    /// Reads a page.
    ///
    /// # Errors
    /// The first line that cannot be read.
    pub(crate) fn parse(page: &str) -> Result<Self, BadLine> {
        let mut numbers: HashMap<String, Vec<Sample>> = HashMap::new();
        for (index, line) in page.lines().enumerate() {
            let line_or_blank = line.trim();
            if line_or_blank.is_empty() || line_or_blank.starts_with('#') {
                continue;
            }
            let (name, sample) = sample(line_or_blank).ok_or(BadLine { line: index + 1 })?;
            numbers.entry(name.to_owned()).or_default().push(sample);
        }
        Ok(Self(numbers))
    }

    /// The sum of all numbers of that name that have these labels among theirs.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name)
            .filter(|sample| {
                labels
                    .iter()
                    .all(|(label, text)| sample.label(label) == Some(text))
            })
            .fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The numbers of that name, each with the text of one of its labels.
    pub(crate) fn by<'a>(
        &'a self,
        name: &str,
        label: &'a str,
    ) -> impl Iterator<Item = (&'a str, f64)> {
        self.of(name)
            .filter_map(move |sample| Some((sample.label(label)?, sample.value)))
    }

    /// Whether there is any number of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.0.get(name).into_iter().flatten()
    }
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(label, _)| label == name)
            .map(|(_, text)| text.as_str())
    }
}

/// `name{label="text",...} value`
fn sample(line: &str) -> Option<(&str, Sample)> {
    let end = line.find(|character: char| character == '{' || character.is_ascii_whitespace())?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (text, after) = quoted(after)?;
            labels.push((label.to_owned(), text));
            rest = after;
        }
    }
    // A time may follow the value; ours have none.
    let value = rest.split_ascii_whitespace().next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().ok()?,
    };
    (!name.is_empty()).then_some((name, Sample { labels, value }))
}

/// The text up to the closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((content, &text[index + 1..])),
            '\\' => content.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => content.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: &str = "\
# HELP a Something.
# TYPE a counter
a{service=\"x\",table=\"hash:/a\"} 3
a{service=\"x\",table=\"q\\\"\\\\\\n{}\"} 4.5

b 7
c_bucket{le=\"+Inf\"} +Inf 1700000000
";

    #[test]
    fn numbers_are_found_by_name_and_labels() {
        let numbers = Numbers::parse(PAGE).unwrap();
        let sum = |name, labels| numbers.sum(name, labels).to_string();
        assert_eq!(sum("a", &[("service", "x")]), "7.5");
        assert_eq!(sum("a", &[("service", "x"), ("table", "hash:/a")]), "3");
        assert_eq!(sum("a", &[("table", "q\"\\\n{}")]), "4.5");
        assert_eq!(sum("a", &[("service", "y")]), "0");
        assert_eq!(sum("b", &[]), "7");
        assert_eq!(sum("none", &[]), "0");
        assert_eq!(sum("c_bucket", &[]), "inf");
        let tables: Vec<&str> = numbers.by("a", "table").map(|(table, _)| table).collect();
        assert_eq!(tables, ["hash:/a", "q\"\\\n{}"]);
        assert!(numbers.has("b") && !numbers.has("d"));
    }

    #[test]
    fn what_is_no_page_is_told() {
        for bad in [
            "a",
            "a{",
            "a{b} 1",
            "a{b=\"c} 1",
            "a x",
            "{b=\"c\"} 1",
            "a{b=\"\\",
        ] {
            let page = format!("ok 1\n{bad}\n");
            assert_eq!(Numbers::parse(&page), Err(BadLine { line: 2 }), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c{}\"\\\\=, 0-9\n#+.]{0,60}") {
            let _ = Numbers::parse(&text);
        }
    }
}
