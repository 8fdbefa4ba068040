//! What a server of lookup tables tells a monitoring system.
//!
//! Tables are told apart by a label with their name as it is approved. A name can have a table's content in it, and a
//! content can be a password: of such a name only the type is shown, and a number that tells it from others of its type.

use std::collections::HashMap;

use postkeep_daemon::metrics::{Family, LIMIT_REACHED, Page};
use postkeep_proxymap::counters::{Counts, OPERATIONS, WAIT_BOUNDS};
use postkeep_proxymap::share::Tables;
use postkeep_wire::proxymap::Operation;

use super::errands::{Errands, SLOW_LOOKUPS, TABLE_THREADS};

static REQUESTS: Family = Family::counter(
    "postkeep_table_requests_total",
    "Requests that reached a table, by what came of them.",
);
static REFUSED: Family = Family::counter(
    "postkeep_requests_refused_total",
    "Requests that reached no table, by why.",
);
static WAIT: Family = Family::histogram(
    "postkeep_table_wait_seconds",
    "How long requests took that were not answered at once.",
);
static RELOADS: Family = Family::counter(
    "postkeep_table_reloads_total",
    "Times that a changed table was opened anew.",
);
static INSTANCES: Family = Family::gauge(
    "postkeep_tables",
    "Tables, each counted once for each way in which it was asked for.",
);
static APPROVED: Family = Family::gauge(
    "postkeep_tables_approved",
    "Table names that may be asked for.",
);
static THREADS: Family = Family::gauge(
    "postkeep_slow_threads",
    "Threads at work for operations that may take long.",
);
static MOST_THREADS: Family = Family::gauge(
    "postkeep_slow_threads_max",
    "Threads that may be at work for operations that may take long.",
);
static WAITING: Family = Family::gauge(
    "postkeep_slow_waiting",
    "Operations that wait for a thread.",
);
static MOST_WAITING: Family = Family::gauge(
    "postkeep_slow_waiting_max",
    "Operations that may wait for a thread.",
);
static CACHE_LOOKUPS: Family = Family::counter(
    "postkeep_cache_lookups_total",
    "Lookups in a table that keeps answers, by how they were answered.",
);
static CACHE_REFRESHES: Family = Family::counter(
    "postkeep_cache_refreshes_total",
    "Times that the table behind was asked ahead of time.",
);
static CACHE_FAILURES: Family = Family::counter(
    "postkeep_cache_failures_total",
    "Times that the table behind gave an error.",
);
static CACHE_EVICTIONS: Family = Family::counter(
    "postkeep_cache_evictions_total",
    "Answers that made room for others.",
);
static CACHE_ENTRIES: Family =
    Family::gauge("postkeep_cache_entries", "Answers that are kept now.");
static CACHE_BYTES: Family =
    Family::gauge("postkeep_cache_bytes", "Memory that kept answers take up.");

/// What tables are called on the page.
#[derive(Debug)]
pub(super) struct Names(HashMap<Box<[u8]>, String>);

impl Names {
    /// - `approved`: in order, so that the numbers are the same at each start
    pub(super) fn new<'a>(approved: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut concealed: HashMap<String, u32> = HashMap::new();
        let name = |name: &'a [u8]| {
            let shown = plain(name).map_or_else(
                || {
                    let kind = kind(name);
                    let number = concealed.entry(kind.clone()).or_default();
                    *number += 1;
                    format!("{kind}:#{number}")
                },
                str::to_owned,
            );
            (Box::from(name), shown)
        };
        Self(approved.into_iter().map(name).collect())
    }

    fn of(&self, name: &[u8]) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// The type of a table, if it looks like one.
fn kind(name: &[u8]) -> String {
    let kind = name.split(|&byte| byte == b':').next().unwrap_or_default();
    let kind = String::from_utf8_lossy(kind);
    let proper = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    if kind.len() <= 64 && kind.chars().all(proper) {
        kind.into_owned()
    } else {
        "other".to_owned()
    }
}

/// A name that says where a table is, and nothing of what is in it.
fn plain(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    let ordinary =
        |character: char| character.is_ascii_alphanumeric() || "/._-+:,".contains(character);
    // What stands behind these types is the content; the others have their content elsewhere, or in braces.
    let is_content = |word: &str| matches!(word, "static" | "inline");
    (text.len() <= 256 && text.chars().all(ordinary) && !text.split(':').any(is_content))
        .then_some(text)
}

fn describe_table(name: &str, counts: &Counts, page: &mut Page) {
    let table = ("table", name);
    for (operation, outcomes) in OPERATIONS.into_iter().zip(counts.outcomes) {
        // What nobody does with a table would be most of the page.
        if outcomes.total() == 0 {
            continue;
        }
        let done = match operation {
            Operation::Lookup | Operation::Sequence | Operation::Open => "found",
            Operation::Update | Operation::Delete => "done",
        };
        for (outcome, count) in [
            (done, outcomes.done),
            ("not_found", outcomes.absent),
            ("retry", outcomes.retry),
            ("config_error", outcomes.config),
        ] {
            let labels = [table, ("operation", operation.word()), ("outcome", outcome)];
            page.add(&REQUESTS, &labels, count);
        }
    }
    if counts.waits.counts.iter().any(|&count| count > 0) {
        let bounds = WAIT_BOUNDS.map(|bound| f64::from(bound) / 1000.0);
        let waits = &counts.waits;
        page.add_histogram(
            &WAIT,
            &[table],
            &bounds,
            &waits.counts,
            waits.sum.as_secs_f64(),
        );
    }
    if counts.reloads > 0 {
        page.add(&RELOADS, &[table], counts.reloads);
    }
}

/// Adds what has been counted.
pub(super) fn describe(tables: &Tables, names: &Names, errands: &Errands, page: &mut Page) {
    let mut counted: Vec<_> = tables
        .counts()
        .map(|(name, counts)| (names.of(name), counts))
        .collect();
    counted.sort_unstable_by_key(|(name, _)| *name);
    page.add(&APPROVED, &[], counted.len());
    for (name, counts) in &counted {
        describe_table(name, counts, page);
    }
    let refused = tables.refused();
    for (reason, count) in [
        ("unapproved", refused.unapproved),
        ("read_only", refused.read_only),
        ("malformed", refused.malformed),
    ] {
        page.add(&REFUSED, &[("reason", reason)], count);
    }
    let states = tables.states();
    for (state, count) in [
        ("open", states.open),
        ("unavailable", states.unavailable),
        ("not_opened", states.unopened),
    ] {
        page.add(&INSTANCES, &[("state", state)], count);
    }
    let limits = errands.pool.limits();
    page.add(&THREADS, &[], errands.pool.busy());
    page.add(&MOST_THREADS, &[], limits.threads);
    page.add(&WAITING, &[], errands.pool.waiting());
    page.add(&MOST_WAITING, &[], limits.waiting);
    for (limit, complaint) in [
        (SLOW_LOOKUPS, &errands.slow_lookups),
        (TABLE_THREADS, &errands.slow_table),
    ] {
        page.add(&LIMIT_REACHED, &[("limit", limit)], complaint.reached());
    }
    describe_caches(tables, names, page);
}

fn describe_caches(tables: &Tables, names: &Names, page: &mut Page) {
    let mut caches: Vec<_> = tables
        .cache_counts()
        .map(|(name, counts)| (names.of(name), counts))
        .collect();
    caches.sort_unstable_by_key(|(name, _)| *name);
    for (name, counts) in caches {
        let table = ("table", name);
        for (answer, count) in [
            ("hit", counts.hits),
            ("miss", counts.misses),
            ("stale", counts.stale),
            ("refused", counts.refused),
            ("coalesced", counts.coalesced),
        ] {
            page.add(&CACHE_LOOKUPS, &[table, ("answer", answer)], count);
        }
        page.add(&CACHE_REFRESHES, &[table], counts.refreshes);
        page.add(&CACHE_FAILURES, &[table], counts.failures);
        page.add(&CACHE_EVICTIONS, &[table], counts.evictions);
        page.add(&CACHE_ENTRIES, &[table], counts.entries);
        page.add(&CACHE_BYTES, &[table], counts.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_not_in_names() {
        let approved: [&[u8]; 10] = [
            b"debug:static:hunter2",
            b"hash:/etc/aliases",
            b"inline:{a=b}",
            b"inline:{user=hunter2}",
            b"ldap:users",
            b"pipemap:{cdb:/a,static:hunter2}",
            b"socketmap:inet:127.0.0.1:9:map",
            b"static:hunter2",
            b"unix:passwd.byname",
            b"{hunter2\xff:x",
        ];
        let names = Names::new(approved);
        let shown: Vec<&str> = approved.iter().map(|name| names.of(name)).collect();
        assert_eq!(
            shown,
            [
                "debug:#1",
                "hash:/etc/aliases",
                "inline:#1",
                "inline:#2",
                "ldap:users",
                "pipemap:#1",
                "socketmap:inet:127.0.0.1:9:map",
                "static:#1",
                "unix:passwd.byname",
                "other:#1",
            ]
        );
        assert_eq!(plain(b"http:https://u:hunter2@host/?k=v"), None);
    }
}
