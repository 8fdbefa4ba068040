//! The picture of `postkeep top`, also as plain text.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table as Grid, Widget};

use super::view::{Health, Latency, Service, Sessions, Table, View};

/// By what tables are sorted; the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Requests a second
    #[default]
    Rate,
    /// 99th percentile of the time that requests took
    Slow,
    /// Requests a second that ended in an error
    Errors,
    /// Name
    Name,
}

/// What the person at the terminal has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) order: Order,
    pub(crate) paused: bool,
    /// Tables that are scrolled away.
    pub(crate) skipped: usize,
}

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const HEAD: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
///
/// - `keys`: a last line that says what can be pressed
pub(crate) fn draw(view: &View, choice: Choice, keys: &str, area: Rect, buffer: &mut Buffer) {
    let tables = tables(view, choice.order);
    let caches: Vec<(&Service, &Sessions)> = view
        .services
        .iter()
        .filter_map(|service| Some((service, service.sessions.as_ref()?)))
        .collect();
    let remarks = remarks(view);
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let [title, services, sessions, _, list, notes, last] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows(view.services.len()).saturating_add(1)),
        Constraint::Length(if caches.is_empty() {
            0
        } else {
            rows(caches.len()).saturating_add(2)
        }),
        Constraint::Length(u16::from(!tables.is_empty())),
        Constraint::Fill(1),
        Constraint::Length(rows(remarks.lines.len())),
        Constraint::Length(u16::from(!keys.is_empty())),
    ])
    .areas(area);
    headline(view, choice).render(title, buffer);
    services_sheet(view).draw(services, buffer);
    if !caches.is_empty() {
        let below = Rect {
            y: sessions.y.saturating_add(1),
            height: sessions.height.saturating_sub(1),
            ..sessions
        };
        sessions_sheet(&caches).draw(below, buffer);
    }
    if !tables.is_empty() {
        // At least the last one stays.
        let skipped = choice.skipped.min(tables.len() - 1);
        tables_sheet(&tables[skipped..]).draw(list, buffer);
    }
    Paragraph::new(remarks).render(notes, buffer);
    Paragraph::new(keys)
        .style(Style::new().fg(Color::DarkGray))
        .render(last, buffer);
}

/// The same as text, as many lines as it takes.
pub(crate) fn plain(view: &View, order: Order, width: u16) -> String {
    let tables = tables(view, order).len();
    let height = 8 + 2 * view.services.len() + tables + view.silent.len() + view.health().1.len();
    let area = Rect::new(0, 0, width, u16::try_from(height).unwrap_or(u16::MAX));
    let mut buffer = Buffer::empty(area);
    let choice = Choice {
        order,
        ..Choice::default()
    };
    draw(view, choice, "", area, &mut buffer);
    let mut text = String::new();
    let mut blank = 0;
    for y in 0..area.height {
        let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
        let line = line.trim_end();
        if line.is_empty() {
            blank += 1;
            continue;
        }
        if blank > 0 {
            text.push('\n');
            blank = 0;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn headline(view: &View, choice: Choice) -> Line<'static> {
    let (health, _) = view.health();
    let colour = match health {
        Health::Well => Color::Green,
        Health::Warning => Color::Yellow,
        Health::Critical => Color::Red,
    };
    let version = view
        .services
        .first()
        .map_or("", |service| service.version.as_str());
    let mut spans = vec![
        Span::styled(format!("postkeep {version}"), TITLE),
        Span::raw("  "),
        Span::styled(health.word(), TITLE.fg(colour)),
    ];
    if choice.paused {
        spans.push(Span::styled("  paused", TITLE));
    }
    Line::from(spans)
}

fn remarks(view: &View) -> Text<'static> {
    let (health, remarks) = view.health();
    let colour = match health {
        Health::Critical => Color::Red,
        _ => Color::Yellow,
    };
    let limits = view.services.iter().flat_map(|service| {
        service
            .limits
            .iter()
            .map(|(limit, count)| format!("{}: reached {limit}, {count} times", service.name))
    });
    remarks
        .into_iter()
        .chain(limits)
        .map(|remark| Line::styled(format!("! {remark}"), Style::new().fg(colour)))
        .collect()
}

/// A column of numbers, and how wide it is.
type Column = (&'static str, u16);

/// A first column of names, and columns of numbers, of which those at the end go when names would have no room.
struct Sheet {
    head: &'static str,
    columns: &'static [Column],
    /// The least room for names.
    least: u16,
    rows: Vec<(Vec<String>, Style)>,
}

impl Sheet {
    fn draw(self, area: Rect, buffer: &mut Buffer) {
        let mut columns = self.columns;
        let taken = |columns: &[Column]| columns.iter().map(|(_, width)| width + 1).sum::<u16>();
        while taken(columns) + self.least > area.width
            && let [rest @ .., _] = columns
        {
            columns = rest;
        }
        let room = usize::from(area.width.saturating_sub(taken(columns)));
        let mut constraints = vec![Constraint::Fill(1)];
        constraints.extend(columns.iter().map(|(_, width)| Constraint::Length(*width)));
        let head = columns.iter().map(|(word, _)| (*word).to_owned());
        let head = row(std::iter::once(self.head.to_owned()).chain(head), room).style(HEAD);
        let rows = self.rows.into_iter().map(|(cells, style)| {
            row(cells.into_iter().take(columns.len() + 1), room).style(style)
        });
        Grid::new(rows, constraints)
            .header(head)
            .column_spacing(1)
            .render(area, buffer);
    }
}

/// - `room`: for the first cell; the end of a name tells more than its beginning
fn row(cells: impl Iterator<Item = String>, room: usize) -> Row<'static> {
    Row::new(cells.enumerate().map(|(index, cell)| {
        if index > 0 {
            return Cell::from(Text::from(cell).alignment(Alignment::Right));
        }
        let length = cell.chars().count();
        Cell::from(if length > room {
            let end = cell.chars().skip(length - room.saturating_sub(1));
            std::iter::once('…').chain(end).collect()
        } else {
            cell
        })
    }))
}

fn services_sheet(view: &View) -> Sheet {
    let cells = |service: &Service| {
        let pool = service.lookups.as_ref();
        let pair = |used, most| format!("{}/{}", number(used), number(most));
        vec![
            service.name.clone(),
            age(service.uptime),
            number(service.clients),
            rate(service.turns),
            format!("{:.0} %", service.processors * 100.0),
            bytes(service.memory_bytes),
            pair(service.descriptors, service.descriptors_max),
            pool.map_or_else(String::new, |pool| pair(pool.threads, pool.threads_max)),
            pool.map_or_else(String::new, |pool| number(pool.waiting)),
            rate(service.refused),
        ]
    };
    Sheet {
        head: "SERVICE",
        columns: &[
            ("UP", 6),
            ("CLIENTS", 7),
            ("REQ/S", 7),
            ("CPU", 6),
            ("MEMORY", 7),
            ("FDS", 12),
            ("THREADS", 8),
            ("QUEUE", 6),
            ("REFUSED/S", 9),
        ],
        least: 15,
        rows: view
            .services
            .iter()
            .map(|service| (cells(service), Style::new()))
            .collect(),
    }
}

fn sessions_sheet(caches: &[(&Service, &Sessions)]) -> Sheet {
    let cells = |service: &Service, cache: &Sessions| {
        let ended = |causes: &[&str]| {
            let of = cache
                .ended
                .iter()
                .filter(|(cause, _)| causes.contains(&cause.as_str()));
            rate(of.fold(0.0, |sum, (_, rate)| sum + rate))
        };
        vec![
            service.name.clone(),
            number(cache.now),
            number(cache.endpoints),
            number(cache.destinations),
            rate(cache.saved),
            ended(&["found"]),
            ended(&["expired"]),
            ended(&["closed", "unsolicited", "broken"]),
            ended(&["evicted", "evicted_from_endpoint"]),
            number(cache.bindings),
        ]
    };
    Sheet {
        head: "CACHE",
        columns: &[
            ("SESSIONS", 8),
            ("ENDPTS", 6),
            ("DESTS", 6),
            ("SAVED/S", 7),
            ("FOUND/S", 7),
            ("EXPIRED/S", 9),
            ("DIED/S", 6),
            ("EVICTED/S", 9),
            ("BINDINGS", 8),
        ],
        least: 9,
        rows: caches
            .iter()
            .map(|(service, cache)| (cells(service, cache), Style::new()))
            .collect(),
    }
}

/// All tables with the service that each belongs to.
fn tables(view: &View, order: Order) -> Vec<(&str, &Table)> {
    let mut tables: Vec<(&str, &Table)> = view
        .services
        .iter()
        .filter_map(|service| Some((service, service.lookups.as_ref()?)))
        .flat_map(|(service, lookups)| {
            lookups
                .tables
                .iter()
                .map(|table| (service.name.as_str(), table))
        })
        .collect();
    let slowness = |table: &Table| match table.p99 {
        None => -1.0,
        Some(Latency::AtOnce) => 0.0,
        Some(Latency::Within(seconds)) => seconds,
        Some(Latency::Beyond(_)) => f64::INFINITY,
    };
    tables.sort_by(|(_, one), (_, other)| {
        match order {
            Order::Rate => other.rate.total_cmp(&one.rate),
            Order::Slow => slowness(other).total_cmp(&slowness(one)),
            Order::Errors => other.errors.total_cmp(&one.errors),
            Order::Name => std::cmp::Ordering::Equal,
        }
        .then_with(|| one.name.cmp(&other.name))
    });
    tables
}

fn tables_sheet(tables: &[(&str, &Table)]) -> Sheet {
    let cells = |service: &str, table: &Table| {
        let kept = table.kept.as_ref();
        let hits = kept.and_then(|kept| kept.hits);
        vec![
            table.name.clone(),
            rate(table.rate),
            latency(table.p50),
            latency(table.p99),
            rate(table.errors),
            table.found.map_or_else(String::new, percent),
            service.to_owned(),
            number(table.total),
            hits.map_or_else(String::new, percent),
            kept.map_or_else(String::new, |kept| number(kept.entries)),
        ]
    };
    let style = |table: &Table| {
        if table.errors > 0.0 {
            Style::new().fg(Color::Red)
        } else {
            Style::new()
        }
    };
    Sheet {
        head: "TABLE",
        columns: &[
            ("REQ/S", 7),
            ("P50", 7),
            ("P99", 7),
            ("ERRORS/S", 8),
            ("FOUND", 5),
            ("SERVICE", 10),
            ("TOTAL", 6),
            ("HITS", 5),
            ("KEPT", 6),
        ],
        least: 30,
        rows: tables
            .iter()
            .map(|(service, table)| (cells(service, table), style(table)))
            .collect(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn rate(value: f64) -> String {
    if value >= 100.0 || value <= 0.0 {
        number(value)
    } else {
        format!("{value:.1}")
    }
}

/// At most five characters.
fn number(value: f64) -> String {
    match value {
        value if value >= 1e10 => format!("{:.0}G", value / 1e9),
        value if value >= 1e7 => format!("{:.0}M", value / 1e6),
        value if value >= 1e5 => format!("{:.0}k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

fn bytes(value: f64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    match value {
        value if value >= 10_240.0 * MIB => format!("{:.0} G", value / MIB / 1024.0),
        value if value >= 10.0 * MIB => format!("{:.0} M", value / MIB),
        value => format!("{:.0} k", value / 1024.0),
    }
}

/// Two units at most.
fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

fn latency(latency: Option<Latency>) -> String {
    let time = |seconds: f64| {
        if seconds < 1.0 {
            format!("{:.0} ms", seconds * 1000.0)
        } else {
            format!("{seconds:.0} s")
        }
    };
    match latency {
        None => String::new(),
        Some(Latency::AtOnce) => "at once".to_owned(),
        Some(Latency::Within(seconds)) => format!("<{}", time(seconds)),
        Some(Latency::Beyond(seconds)) => format!(">{}", time(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::view::{Kept, Lookups};

    fn view() -> View {
        let table = |name: &str, rate, p99, errors| Table {
            name: name.to_owned(),
            rate,
            errors,
            found: Some(0.5),
            p50: Some(Latency::AtOnce),
            p99: Some(p99),
            total: 123_456.0,
            ..Table::default()
        };
        let mut slow = table(
            "mysql:/etc/postfix/users.cf",
            20.0,
            Latency::Within(0.5),
            0.25,
        );
        slow.kept = Some(Kept {
            hits: Some(0.875),
            entries: 100.0,
            bytes: 1.0,
        });
        let lookups = Lookups {
            threads: 2.0,
            threads_max: 16.0,
            waiting: 3.0,
            waiting_max: 100.0,
            tables: vec![
                table("hash:/etc/aliases", 12_345.0, Latency::AtOnce, 0.0),
                slow,
                table("tcp:a", 0.0, Latency::Beyond(10.0), 0.0),
            ],
            ..Lookups::default()
        };
        let proxymap = Service {
            name: "proxymap".to_owned(),
            version: "0.1.0".to_owned(),
            uptime: Duration::from_secs(90),
            processors: 0.25,
            memory_bytes: 5e6,
            descriptors: 300.0,
            descriptors_max: 1024.0,
            limits: vec![("postkeep_client_limit".to_owned(), 2.0)],
            lookups: Some(lookups),
            ..Service::default()
        };
        let scache = Service {
            name: "scache".to_owned(),
            uptime: Duration::from_hours(50),
            sessions: Some(Sessions {
                now: 19_000.0,
                saved: 10.0,
                ended: vec![("found".to_owned(), 8.0), ("closed".to_owned(), 0.5)],
                ..Sessions::default()
            }),
            ..Service::default()
        };
        View {
            services: vec![proxymap, scache],
            silent: vec![],
        }
    }

    #[test]
    fn everything_is_on_the_screen() {
        let expected = "\
postkeep 0.1.0  warning
SERVICE                     UP CLIENTS   REQ/S    CPU  MEMORY          FDS  THREADS  QUEUE REFUSED/S
proxymap                 1m30s       0       0   25 %  4883 k     300/1024     2/16      3         0
scache                   2d02h       0       0    0 %     0 k          0/0                         0

CACHE                     SESSIONS ENDPTS  DESTS SAVED/S FOUND/S EXPIRED/S DIED/S EVICTED/S BINDINGS
scache                       19000      0      0    10.0     8.0         0    0.5         0        0

TABLE                            REQ/S     P50     P99 ERRORS/S FOUND    SERVICE  TOTAL  HITS   KEPT
hash:/etc/aliases                12345 at once at once        0  50 %   proxymap   123k
mysql:/etc/postfix/users.cf       20.0 at once <500 ms      0.2  50 %   proxymap   123k  88 %    100
tcp:a                                0 at once   >10 s        0  50 %   proxymap   123k

! proxymap: mysql:/etc/postfix/users.cf: 1.2 % of the requests end in an error
! proxymap: reached postkeep_client_limit, 2 times
";
        let text = plain(&view(), Order::Rate, 100);
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn narrow_terminals_have_fewer_columns_and_the_ends_of_names() {
        let mut view = view();
        if let Some(lookups) = &mut view.services[0].lookups {
            lookups.tables[1].name = "mysql:/etc/postfix/tables/of/the/users.cf".to_owned();
        }
        let text = plain(&view, Order::Rate, 60);
        assert!(text.lines().all(|line| line.chars().count() <= 60));
        for line in [
            "SERVICE                    UP CLIENTS   REQ/S    CPU  MEMORY",
            "TABLE                                  REQ/S     P50     P99",
            "…/etc/postfix/tables/of/the/users.cf    20.0 at once <500 ms",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn tables_are_in_the_order_asked_for() {
        let view = view();
        let names = |order| -> Vec<&str> {
            tables(&view, order)
                .into_iter()
                .map(|(_, table)| &table.name[..3])
                .collect()
        };
        assert_eq!(names(Order::Rate), ["has", "mys", "tcp"]);
        assert_eq!(names(Order::Slow), ["tcp", "mys", "has"]);
        assert_eq!(names(Order::Errors), ["mys", "has", "tcp"]);
        assert_eq!(names(Order::Name), ["has", "mys", "tcp"]);
    }

    #[test]
    fn no_terminal_is_too_small() {
        for (width, height) in [(0, 0), (1, 1), (20, 3), (40, 5), (300, 100)] {
            let area = Rect::new(0, 0, width, height);
            let mut buffer = Buffer::empty(area);
            let choice = Choice {
                skipped: 100,
                paused: true,
                ..Choice::default()
            };
            draw(&view(), choice, "keys", area, &mut buffer);
            draw(&View::default(), choice, "keys", area, &mut buffer);
        }
    }
}
