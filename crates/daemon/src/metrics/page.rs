//! A page of metrics, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many there were up to each bound.
    Histogram,
}

/// What numbers with one name have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    pub(super) name: &'static str,
    kind: Kind,
    help: &'static str,
}

impl Family {
    /// Numbers that only grow; the name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        let kind = Kind::Counter;
        Self { name, kind, help }
    }

    /// Numbers that go up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        let kind = Kind::Gauge;
        Self { name, kind, help }
    }

    /// Counts by bound.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        let kind = Kind::Histogram;
        Self { name, kind, help }
    }
}

/// Names and values of labels. Values may be any text; names are letters, digits and underscores.
pub type Labels<'a> = [(&'a str, &'a str)];

/// All numbers of a process at about one moment.
///
/// Each gets a label `service` with the name of the service, so that several services can be told apart wherever they are
/// collected. Families may be added to in any order, and come out by name.
#[derive(Debug)]
pub struct Page {
    service: String,
    families: BTreeMap<&'static str, (&'static Family, String)>,
}

impl Page {
    /// An empty page.
    pub fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            families: BTreeMap::new(),
        }
    }

    /// Adds one number.
    pub fn add(&mut self, family: &'static Family, labels: &Labels<'_>, value: impl Display) {
        self.sample(family, "", labels, None, value);
    }

    /// Adds the counts of a histogram.
    ///
    /// - `bounds`: upper bounds, ascending; one less than `counts`
    /// - `counts`: how many there were in each interval, the last one without a bound
    /// - `sum`: of all that were counted
    pub fn add_histogram(
        &mut self,
        family: &'static Family,
        labels: &Labels<'_>,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let mut all = 0u64;
        for (index, count) in counts.iter().enumerate() {
            all += count;
            let bound = bounds
                .get(index)
                .map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.sample(family, "_bucket", labels, Some(&bound), all);
        }
        self.sample(family, "_sum", labels, None, sum);
        self.sample(family, "_count", labels, None, all);
    }

    fn sample(
        &mut self,
        family: &'static Family,
        suffix: &str,
        labels: &Labels<'_>,
        bound: Option<&str>,
        value: impl Display,
    ) {
        let (_, lines) = self
            .families
            .entry(family.name)
            .or_insert_with(|| (family, String::new()));
        lines.push_str(family.name);
        lines.push_str(suffix);
        lines.push_str("{service=\"");
        escape(&self.service, lines);
        for (name, value) in labels
            .iter()
            .copied()
            .chain(bound.map(|bound| ("le", bound)))
        {
            lines.push_str("\",");
            lines.push_str(name);
            lines.push_str("=\"");
            escape(value, lines);
        }
        // Writing to a string does not fail.
        let _ = writeln!(lines, "\"}} {value}");
    }

    /// The page as text.
    pub fn into_text(self) -> String {
        let mut text = String::new();
        for (name, (family, lines)) in self.families {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
            text.push_str(&lines);
        }
        text
    }
}

fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            character => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static LOOKUPS: Family = Family::counter("lookups_total", "Lookups.");
    static WAITS: Family = Family::histogram("wait_seconds", "Waits.");
    static CLIENTS: Family = Family::gauge("clients", "Clients.");

    #[test]
    fn families_are_together_and_values_are_escaped() {
        let mut page = Page::new("proxy\"map");
        page.add(&LOOKUPS, &[("table", "a\\b\n")], 3);
        page.add(&CLIENTS, &[], 7);
        page.add(&LOOKUPS, &[("table", "hash:/c")], 4);
        assert_eq!(
            page.into_text(),
            "# HELP clients Clients.\n\
             # TYPE clients gauge\n\
             clients{service=\"proxy\\\"map\"} 7\n\
             # HELP lookups_total Lookups.\n\
             # TYPE lookups_total counter\n\
             lookups_total{service=\"proxy\\\"map\",table=\"a\\\\b\\n\"} 3\n\
             lookups_total{service=\"proxy\\\"map\",table=\"hash:/c\"} 4\n"
        );
    }

    #[test]
    fn buckets_add_up() {
        let mut page = Page::new("s");
        page.add_histogram(&WAITS, &[("t", "x")], &[0.5, 2.0], &[1, 0, 2], 9.25);
        assert_eq!(
            page.into_text(),
            "# HELP wait_seconds Waits.\n\
             # TYPE wait_seconds histogram\n\
             wait_seconds_bucket{service=\"s\",t=\"x\",le=\"0.5\"} 1\n\
             wait_seconds_bucket{service=\"s\",t=\"x\",le=\"2\"} 1\n\
             wait_seconds_bucket{service=\"s\",t=\"x\",le=\"+Inf\"} 3\n\
             wait_seconds_sum{service=\"s\",t=\"x\"} 9.25\n\
             wait_seconds_count{service=\"s\",t=\"x\"} 3\n"
        );
    }
}
