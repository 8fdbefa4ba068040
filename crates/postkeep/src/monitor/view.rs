//! What a person wants to know, made of one page of each service, or of two that were read one after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::read::Reading;
use super::text::Numbers;

/// Descriptors beyond this share of their limit are worth a warning; operations that wait for a thread, too.
const CROWDED: f64 = 0.8;

/// All services at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) services: Vec<Service>,
    /// Where a service should be, and why there is nothing from it.
    pub(crate) silent: Vec<(String, String)>,
}

/// One process. What is counted "in the interval" is counted between two readings, or, where there is one only, since the
/// process began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) uptime: Duration,
    /// Processors in use in the interval.
    pub(crate) processors: f64,
    pub(crate) memory_bytes: f64,
    pub(crate) descriptors: f64,
    pub(crate) descriptors_max: f64,
    pub(crate) clients: f64,
    /// Times that clients sent something, a second.
    pub(crate) turns: f64,
    /// Requests that reached no table, a second.
    pub(crate) refused: f64,
    /// Limits that were reached in the interval, and how often.
    pub(crate) limits: Vec<(String, f64)>,
    pub(crate) lookups: Option<Lookups>,
    pub(crate) sessions: Option<Sessions>,
}

/// Of a lookup table server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lookups {
    pub(crate) approved: f64,
    pub(crate) unavailable: f64,
    pub(crate) threads: f64,
    pub(crate) threads_max: f64,
    pub(crate) waiting: f64,
    pub(crate) waiting_max: f64,
    pub(crate) tables: Vec<Table>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// Requests a second in the interval.
    pub(crate) rate: f64,
    /// Those that ended in RETRY or CONFIG, a second.
    pub(crate) errors: f64,
    /// The part of those without errors that found something.
    pub(crate) found: Option<f64>,
    pub(crate) p50: Option<Latency>,
    pub(crate) p99: Option<Latency>,
    /// All requests since the process began.
    pub(crate) total: f64,
    pub(crate) reloads: f64,
    pub(crate) kept: Option<Kept>,
}

/// What a table that keeps answers has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// The part of its lookups that it answered itself.
    pub(crate) hits: Option<f64>,
    pub(crate) entries: f64,
    pub(crate) bytes: f64,
}

/// A quantile, as exactly as the intervals of a histogram tell it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Latency {
    /// It did not wait.
    AtOnce,
    /// At most so many seconds.
    Within(f64),
    /// More than so many seconds.
    Beyond(f64),
}

/// Of a connection cache.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sessions {
    pub(crate) now: f64,
    pub(crate) endpoints: f64,
    pub(crate) bindings: f64,
    pub(crate) destinations: f64,
    /// A second.
    pub(crate) saved: f64,
    /// A second, by what ended sessions.
    pub(crate) ended: Vec<(String, f64)>,
}

/// How things stand, for a monitoring system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    Well,
    Warning,
    Critical,
}

impl View {
    /// - `before`: an earlier reading of the same sources
    /// - `now`: wall clock, seconds since 1970
    pub(crate) fn new(before: &[Reading], after: &[Reading], now: f64) -> Self {
        let mut view = Self::default();
        for reading in after {
            let numbers = match &reading.numbers {
                Ok(numbers) => numbers,
                Err(reason) => {
                    view.silent
                        .push((reading.source.to_string(), reason.clone()));
                    continue;
                }
            };
            let earlier = before.iter().find_map(|earlier| {
                let old = earlier.numbers.as_ref().ok()?;
                // Another process counts from zero again.
                (earlier.source == reading.source
                    && started(old).total_cmp(&started(numbers)).is_eq())
                .then(|| (old, reading.at.saturating_duration_since(earlier.at)))
            });
            view.services.push(Service::new(numbers, earlier, now));
        }
        view.services
            .sort_by(|one, other| one.name.cmp(&other.name));
        view
    }

    /// How bad it is at worst, and what is not as it should be.
    pub(crate) fn health(&self) -> (Health, Vec<String>) {
        let mut remarks = Vec::new();
        let mut worst = Health::Well;
        for (source, reason) in &self.silent {
            worst = Health::Critical;
            remarks.push(format!("{source}: {reason}"));
        }
        if self.services.is_empty() && self.silent.is_empty() {
            worst = Health::Critical;
            remarks.push("no service is there".to_owned());
        }
        for service in &self.services {
            let said = remarks.len();
            let name = &service.name;
            if service.descriptors > service.descriptors_max * CROWDED {
                remarks.push(format!(
                    "{name}: {} of {} descriptors are in use",
                    service.descriptors, service.descriptors_max
                ));
            }
            if let Some(lookups) = &service.lookups {
                if lookups.unavailable > 0.0 {
                    remarks.push(format!(
                        "{name}: tables that cannot be opened: {}",
                        lookups.unavailable
                    ));
                }
                if lookups.waiting > lookups.waiting_max * CROWDED {
                    remarks.push(format!(
                        "{name}: {} operations wait for one of {} threads",
                        lookups.waiting, lookups.threads_max
                    ));
                }
                for table in &lookups.tables {
                    // One in a hundred.
                    if table.errors > 0.0 && table.errors * 100.0 >= table.rate {
                        remarks.push(format!(
                            "{name}: {}: {:.1} % of the requests end in an error",
                            table.name,
                            table.errors / table.rate * 100.0
                        ));
                    }
                }
            }
            if remarks.len() > said {
                worst = worst.max(Health::Warning);
            }
        }
        (worst, remarks)
    }

    /// All of it, for scripts.
    pub(crate) fn to_json(&self) -> Value {
        let (health, remarks) = self.health();
        json!({
            "health": health.word(),
            "remarks": remarks,
            "services": self.services.iter().map(Service::to_json).collect::<Vec<_>>(),
            "silent": self.silent.iter().map(|(source, reason)| json!({
                "source": source,
                "reason": reason,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Health {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Latency {
    fn to_json(self) -> Value {
        match self {
            Self::AtOnce => json!({"at_most_seconds": 0}),
            Self::Within(seconds) => json!({"at_most_seconds": seconds}),
            Self::Beyond(seconds) => json!({"more_than_seconds": seconds}),
        }
    }
}

/// The difference of two readings, or the totals.
struct Interval<'a> {
    after: &'a Numbers,
    before: Option<&'a Numbers>,
    seconds: f64,
}

impl Interval<'_> {
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let before = self.before.map_or(0.0, |numbers| numbers.sum(name, labels));
        (self.after.sum(name, labels) - before).max(0.0)
    }

    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.count(name, labels) / self.seconds
    }

    /// How often there was each text of a label, in the interval.
    fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        self.after
            .by(name, label)
            .map(|(text, _)| (text.to_owned(), self.count(name, &[(label, text)])))
            .collect()
    }
}

fn started(numbers: &Numbers) -> f64 {
    numbers.sum("process_start_time_seconds", &[])
}

impl Service {
    fn new(numbers: &Numbers, earlier: Option<(&Numbers, Duration)>, now: f64) -> Self {
        let uptime = (now - started(numbers)).clamp(0.0, 1e9);
        let interval = Interval {
            after: numbers,
            before: earlier.map(|(numbers, _)| numbers),
            seconds: earlier
                .map_or(uptime, |(_, passed)| passed.as_secs_f64())
                .max(0.001),
        };
        let name = |label| {
            let name = numbers.by("postkeep_info", label).next();
            name.map_or_else(String::new, |(name, _)| name.to_owned())
        };
        let gauge = |name| numbers.sum(name, &[]);
        let limits = interval
            .by("postkeep_limit_reached_total", "limit")
            .into_iter()
            .filter(|(_, count)| *count > 0.0)
            .collect();
        Self {
            name: name("service"),
            version: name("version"),
            uptime: Duration::from_secs_f64(uptime),
            processors: interval.rate("process_cpu_seconds_total", &[]),
            memory_bytes: gauge("process_resident_memory_bytes"),
            descriptors: gauge("process_open_fds"),
            descriptors_max: gauge("process_max_fds"),
            clients: gauge("postkeep_clients"),
            turns: interval.rate("postkeep_client_turns_total", &[]),
            refused: interval.rate("postkeep_requests_refused_total", &[]),
            limits,
            lookups: numbers
                .has("postkeep_tables_approved")
                .then(|| Lookups::new(&interval)),
            sessions: numbers
                .has("postkeep_scache_sessions")
                .then(|| Sessions::new(&interval)),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "service": self.name,
            "version": self.version,
            "uptime_seconds": self.uptime.as_secs_f64(),
            "processors": self.processors,
            "memory_bytes": self.memory_bytes,
            "descriptors": self.descriptors,
            "descriptors_max": self.descriptors_max,
            "clients": self.clients,
            "turns_per_second": self.turns,
            "refused_per_second": self.refused,
            "limits_reached": self.limits.iter().cloned().collect::<BTreeMap<_, _>>(),
            "lookups": self.lookups.as_ref().map(Lookups::to_json),
            "sessions": self.sessions.as_ref().map(Sessions::to_json),
        })
    }
}

impl Lookups {
    fn new(interval: &Interval<'_>) -> Self {
        let gauge = |name| interval.after.sum(name, &[]);
        let requests = interval.by("postkeep_table_requests_total", "table");
        Self {
            approved: gauge("postkeep_tables_approved"),
            unavailable: interval
                .after
                .sum("postkeep_tables", &[("state", "unavailable")]),
            threads: gauge("postkeep_slow_threads"),
            threads_max: gauge("postkeep_slow_threads_max"),
            waiting: gauge("postkeep_slow_waiting"),
            waiting_max: gauge("postkeep_slow_waiting_max"),
            tables: requests
                .into_iter()
                .map(|(name, count)| Table::new(interval, name, count))
                .collect(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "approved": self.approved,
            "unavailable": self.unavailable,
            "slow_threads": self.threads,
            "slow_threads_max": self.threads_max,
            "slow_waiting": self.waiting,
            "slow_waiting_max": self.waiting_max,
            "tables": self.tables.iter().map(Table::to_json).collect::<Vec<_>>(),
        })
    }
}

impl Table {
    fn new(interval: &Interval<'_>, name: String, count: f64) -> Self {
        let table = ("table", name.as_str());
        let outcome = |outcome| {
            let labels = [table, ("outcome", outcome)];
            interval.count("postkeep_table_requests_total", &labels)
        };
        let errors = outcome("retry") + outcome("config_error");
        let found = outcome("found") + outcome("done");
        let kept = interval
            .after
            .by("postkeep_cache_entries", "table")
            .any(|(kept, _)| kept == name);
        Self {
            rate: count / interval.seconds,
            errors: errors / interval.seconds,
            found: share(found, count - errors),
            p50: quantile(interval, &name, count, 0.5),
            p99: quantile(interval, &name, count, 0.99),
            total: interval
                .after
                .sum("postkeep_table_requests_total", &[table]),
            reloads: interval.after.sum("postkeep_table_reloads_total", &[table]),
            kept: kept.then(|| Kept::new(interval, &name)),
            name,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "table": self.name,
            "requests_per_second": self.rate,
            "errors_per_second": self.errors,
            "found": self.found,
            "p50": self.p50.map(Latency::to_json),
            "p99": self.p99.map(Latency::to_json),
            "requests": self.total,
            "reloads": self.reloads,
            "kept": self.kept.as_ref().map(|kept| json!({
                "hits": kept.hits,
                "entries": kept.entries,
                "bytes": kept.bytes,
            })),
        })
    }
}

impl Kept {
    fn new(interval: &Interval<'_>, name: &str) -> Self {
        let table = ("table", name);
        let answers = |answer| {
            let labels = [table, ("answer", answer)];
            interval.count("postkeep_cache_lookups_total", &labels)
        };
        let all = interval.count("postkeep_cache_lookups_total", &[table]);
        Self {
            hits: share(answers("hit") + answers("stale"), all),
            entries: interval.after.sum("postkeep_cache_entries", &[table]),
            bytes: interval.after.sum("postkeep_cache_bytes", &[table]),
        }
    }
}

impl Sessions {
    fn new(interval: &Interval<'_>) -> Self {
        let gauge = |name| interval.after.sum(name, &[]);
        Self {
            now: gauge("postkeep_scache_sessions"),
            endpoints: gauge("postkeep_scache_endpoints"),
            bindings: gauge("postkeep_scache_bindings"),
            destinations: gauge("postkeep_scache_destinations"),
            saved: interval.rate("postkeep_scache_saved_total", &[]),
            ended: interval
                .by("postkeep_scache_ended_total", "cause")
                .into_iter()
                .map(|(cause, count)| (cause, count / interval.seconds))
                .collect(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "sessions": self.now,
            "endpoints": self.endpoints,
            "bindings": self.bindings,
            "destinations": self.destinations,
            "saved_per_second": self.saved,
            "ended_per_second": self.ended.iter().cloned().collect::<BTreeMap<_, _>>(),
        })
    }
}

fn share(part: f64, all: f64) -> Option<f64> {
    (all > 0.0).then(|| part / all)
}

/// Those that are not in the histogram did not wait.
fn quantile(interval: &Interval<'_>, table: &str, requests: f64, part: f64) -> Option<Latency> {
    if requests <= 0.0 {
        return None;
    }
    let count = |name, labels: &[(&str, &str)]| interval.count(name, labels);
    let waited = count("postkeep_table_wait_seconds_count", &[("table", table)]);
    let at_once = (requests - waited).max(0.0);
    let rank = part * requests.max(waited);
    if at_once >= rank {
        return Some(Latency::AtOnce);
    }
    let mut bounds: Vec<(f64, &str)> = interval
        .after
        .by("postkeep_table_wait_seconds_bucket", "le")
        .filter_map(|(bound, _)| Some((bound.parse().ok()?, bound)))
        .filter(|(bound, _): &(f64, _)| bound.is_finite())
        .collect();
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    bounds.dedup();
    for (bound, text) in &bounds {
        let labels = [("table", table), ("le", *text)];
        if at_once + count("postkeep_table_wait_seconds_bucket", &labels) >= rank {
            return Some(Latency::Within(*bound));
        }
    }
    bounds.last().map(|(bound, _)| Latency::Beyond(*bound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::read::Source;
    use std::time::Instant;

    fn reading(at: Instant, page: &str) -> Reading {
        Reading {
            source: Source::Unix("/x".into()),
            at,
            numbers: Numbers::parse(page).map_err(|error| error.to_string()),
        }
    }

    fn page(found: u32, retry: u32, waits: [u32; 3]) -> String {
        let [fast, slow, all] = waits;
        format!(
            "postkeep_info{{service=\"proxymap\",version=\"1\"}} 1\n\
             process_start_time_seconds 1000\n\
             process_open_fds 10\nprocess_max_fds 100\n\
             postkeep_tables_approved 3\n\
             postkeep_table_requests_total{{table=\"t\",operation=\"lookup\",outcome=\"found\"}} {found}\n\
             postkeep_table_requests_total{{table=\"t\",operation=\"lookup\",outcome=\"retry\"}} {retry}\n\
             postkeep_table_wait_seconds_bucket{{table=\"t\",le=\"0.005\"}} {fast}\n\
             postkeep_table_wait_seconds_bucket{{table=\"t\",le=\"0.5\"}} {slow}\n\
             postkeep_table_wait_seconds_bucket{{table=\"t\",le=\"+Inf\"}} {all}\n\
             postkeep_table_wait_seconds_count{{table=\"t\"}} {all}\n"
        )
    }

    fn table(view: &View) -> &Table {
        &view.services[0].lookups.as_ref().unwrap().tables[0]
    }

    #[test]
    fn rates_are_of_the_time_between_two_readings() {
        let start = Instant::now();
        let first = reading(start, &page(100, 0, [0, 0, 0]));
        let then = start + Duration::from_secs(2);
        let second = reading(then, &page(298, 2, [0, 0, 0]));
        let view = View::new(std::slice::from_ref(&first), &[second], 1010.0);
        let seen = table(&view);
        assert_eq!(
            format!(
                "{} {} {:?} {}",
                seen.rate, seen.errors, seen.found, seen.total
            ),
            "100 1 Some(1.0) 300"
        );
        assert_eq!(view.services[0].uptime, Duration::from_secs(10));
        // Alone it tells of all the time since the process began.
        let view = View::new(&[], &[first], 1010.0);
        assert_eq!(table(&view).rate.to_string(), "10");
        assert_eq!(view.health(), (Health::Well, vec![]));
    }

    #[test]
    fn another_process_counts_from_zero() {
        let start = Instant::now();
        let old = page(500, 0, [0, 0, 0]).replace("1000", "900");
        let first = reading(start, &old);
        let second = reading(start + Duration::from_secs(2), &page(20, 0, [0, 0, 0]));
        let view = View::new(&[first], &[second], 1010.0);
        assert_eq!(table(&view).rate.to_string(), "2");
    }

    #[test]
    fn quantiles_count_those_that_did_not_wait() {
        let view = |found, waits| {
            let reading = reading(Instant::now(), &page(found, 0, waits));
            let view = View::new(&[], &[reading], 1010.0);
            let table = table(&view);
            (table.p50, table.p99)
        };
        let (at_once, fast, slow) = (
            Some(Latency::AtOnce),
            Some(Latency::Within(0.005)),
            Some(Latency::Within(0.5)),
        );
        assert_eq!(view(0, [0, 0, 0]), (None, None));
        assert_eq!(view(100, [0, 0, 0]), (at_once, at_once));
        assert_eq!(view(100, [10, 10, 10]), (at_once, fast));
        assert_eq!(view(100, [60, 100, 100]), (fast, slow));
        assert_eq!(view(100, [60, 90, 100]), (fast, Some(Latency::Beyond(0.5))));
        // A page is not of one instant.
        assert_eq!(view(100, [101, 101, 101]), (fast, fast));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut silent = reading(Instant::now(), "");
        silent.numbers = Err("no answer in time".to_owned());
        let page = page(98, 2, [0, 0, 0]).replace("fds 10\n", "fds 90\n")
            + "postkeep_tables{state=\"unavailable\"} 1\n\
               postkeep_slow_waiting 90\npostkeep_slow_waiting_max 100\npostkeep_slow_threads_max 4\n";
        let view = View::new(&[], &[reading(Instant::now(), &page)], 1010.0);
        let (health, remarks) = view.health();
        assert_eq!(health, Health::Warning);
        assert_eq!(
            remarks,
            [
                "proxymap: 90 of 100 descriptors are in use",
                "proxymap: tables that cannot be opened: 1",
                "proxymap: 90 operations wait for one of 4 threads",
                "proxymap: t: 2.0 % of the requests end in an error",
            ]
        );
        let (health, remarks) = View::new(&[], &[silent], 0.0).health();
        assert_eq!(health, Health::Critical);
        assert_eq!(remarks, ["unix:/x: no answer in time"]);
        assert_eq!(View::default().health().0, Health::Critical);
    }
}
