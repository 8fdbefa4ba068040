//! Metrics of running daemons: they add up, they show no contents of tables, and whoever reads them, in whatever way,
//! disturbs nobody.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::{collect_session, save_endpoint, session};
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::{self, Scratch};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, StandIn};

const DOCUMENT: &str = include_str!("../../docs/metrics.md");
const LIMIT: Duration = Duration::from_secs(10);

fn plan(service: &str) -> Plan {
    Plan::new(Implementation::Postkeep, service)
        .parameter("postkeep_metrics_address", "unix:$SCRATCH/data/metrics")
}

fn socket(daemon: &StandIn) -> PathBuf {
    daemon.scratch().join("data/metrics")
}

/// Says something, and returns all that comes back.
fn say(mut stream: impl Read + Write, bytes: &[u8]) -> Result<String> {
    stream.write_all(bytes)?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

fn connect(path: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The page as it is now; its form is checked.
fn scrape(path: &Path) -> Result<(String, BTreeMap<String, f64>)> {
    // A page may be a tenth of a second old.
    std::thread::sleep(Duration::from_millis(150));
    let response = say(connect(path)?, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let (head, page) = response.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    ensure!(
        head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{head}"
    );
    ensure!(head.contains(&format!("Content-Length: {}\r\n", page.len())));
    Ok((page.to_owned(), parse(page)?))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// Series without the label `service`, and their values.
fn parse(page: &str) -> Result<BTreeMap<String, f64>> {
    let mut series = BTreeMap::new();
    let mut families = HashSet::new();
    let mut family = ("", "");
    let mut help = "";
    ensure!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split(' ').next().unwrap_or_default();
            ensure!(is_name(help) && families.insert(help), "again: {line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').context("no type")?;
            ensure!(family.0 == help, "{line}");
            ensure!(["counter", "gauge", "histogram"].contains(&family.1));
            ensure!(family.1 != "counter" || help.ends_with("_total"), "{line}");
            ensure!(
                DOCUMENT.contains(&format!("`{help}`")),
                "{help} is not in docs/metrics.md"
            );
            continue;
        }
        let (name, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse().with_context(|| line.to_owned())?;
        ensure!(value >= 0.0, "{line}");
        let (name, labels) = name.split_once('{').context("no labels")?;
        let suffix = name.strip_prefix(family.0).context("of no family")?;
        let suffixes: &[&str] = match family.1 {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        ensure!(suffixes.contains(&suffix), "{line}");
        let labels = labels.strip_suffix('}').context("labels without end")?;
        for label in labels.split("\",") {
            let (label, text) = label.split_once("=\"").context("no label")?;
            ensure!(is_name(label), "{line}");
            ensure!(!text.trim_end_matches('"').contains('"'), "{line}");
        }
        let own = labels.split_once(',').map_or("", |(_, own)| own);
        ensure!(labels.starts_with("service=\""), "{line}");
        let key = format!("{name}{{{own}}}");
        ensure!(series.insert(key, value).is_none(), "twice: {line}");
    }
    Ok(series)
}

/// Of a number that has to be there.
fn value(series: &BTreeMap<String, f64>, name: &str) -> Result<f64> {
    series
        .get(name)
        .copied()
        .with_context(|| format!("{name}: {series:#?}"))
}

fn check(series: &BTreeMap<String, f64>, expected: &[(&str, u32)]) -> Result<()> {
    for &(name, number) in expected {
        let found = value(series, name)?;
        ensure!(
            (found - f64::from(number)).abs() < 0.5,
            "{name}: {found}, not {number}"
        );
    }
    Ok(())
}

#[test]
fn lookups_add_up_and_no_content_is_shown() -> Result<()> {
    let plan = plan("proxymap").parameter(
        "proxy_read_maps",
        "proxy:static:s3cret proxy:unix:passwd.byname proxy:fail:nothing proxy:environ:x",
    );
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut clients = [daemon.connect_and_greet()?, daemon.connect_and_greet()?];
    for client in &mut clients {
        for _ in 0..3 {
            ensure!(lookup(client, "static:s3cret", "k")?.contains("s3cret"));
        }
        ensure!(lookup(client, "unix:passwd.byname", "root")?.contains("root"));
        lookup(client, "unix:passwd.byname", "no.such.user")?;
        lookup(client, "fail:nothing", "k")?;
        lookup(client, "static:unapproved", "k")?;
    }
    let (page, series) = scrape(&socket(&daemon))?;
    ensure!(!page.contains("s3cret"), "{page}");
    ensure!(!page.contains("static:unapproved"), "{page}");
    let requests = |table: &str, outcome: &str| {
        format!(
            "postkeep_table_requests_total{{table=\"{table}\",operation=\"lookup\",outcome=\"{outcome}\"}}"
        )
    };
    check(
        &series,
        &[
            (&requests("static:#1", "found"), 6),
            (&requests("static:#1", "not_found"), 0),
            (&requests("unix:passwd.byname", "found"), 2),
            (&requests("unix:passwd.byname", "not_found"), 2),
            (&requests("unix:passwd.byname", "retry"), 0),
            (&requests("fail:nothing", "retry"), 2),
            ("postkeep_requests_refused_total{reason=\"unapproved\"}", 2),
            ("postkeep_tables_approved{}", 4),
            ("postkeep_tables{state=\"open\"}", 3),
            ("postkeep_clients{}", 2),
            ("postkeep_clients_accepted_total{}", 2),
            ("postkeep_slow_waiting{}", 0),
            ("postkeep_slow_threads_max{}", 128),
            (
                "postkeep_limit_reached_total{limit=\"postkeep_client_limit\"}",
                0,
            ),
            // All of those that the name service was asked for.
            (
                "postkeep_table_wait_seconds_count{table=\"unix:passwd.byname\"}",
                4,
            ),
            (
                "postkeep_table_wait_seconds_bucket{table=\"unix:passwd.byname\",le=\"+Inf\"}",
                4,
            ),
        ],
    )?;
    // Nobody has asked for it.
    ensure!(!page.contains("environ:x"), "{page}");
    ensure!(value(&series, "process_resident_memory_bytes{}")? > 1e6);
    let descriptors = value(&series, "process_open_fds{}")?;
    ensure!(descriptors > 5.0 && descriptors < 100.0, "{descriptors}");
    drop(clients);

    // What was counted stays.
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, series) = scrape(&socket(&daemon))?;
        check(&series, &[(&requests("static:#1", "found"), 6)])?;
        let closed = value(&series, "postkeep_clients_closed_total{cause=\"peer\"}")?;
        if closed > 1.5 {
            break check(&series, &[("postkeep_clients{}", 0)]);
        }
        ensure!(Instant::now() < deadline, "{closed}");
    }
}

#[test]
fn updates_are_counted_by_the_service_that_makes_them() -> Result<()> {
    let plan = plan("proxywrite").parameter("proxy_write_maps", "proxy:lmdb:$SCRATCH/data/cache");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let table = format!("lmdb:{}/data/cache", daemon.scratch().display());
    let mut client = daemon.connect_and_greet()?;
    for word in ["update", "delete", "delete"] {
        let mut attributes = vec![
            ("request", word),
            ("table", table.as_str()),
            ("flags", "0"),
            ("key", "k"),
        ];
        if word == "update" {
            attributes.push(("value", "v"));
        }
        client.exchange(&list(&attributes))?;
    }
    lookup(&mut client, &table, "k")?;
    let (page, series) = scrape(&socket(&daemon))?;
    ensure!(page.contains("{service=\"proxywrite\""), "{page}");
    let requests = |operation: &str, outcome: &str| {
        format!(
            "postkeep_table_requests_total{{table=\"{table}\",operation=\"{operation}\",outcome=\"{outcome}\"}}"
        )
    };
    check(
        &series,
        &[
            (&requests("update", "done"), 1),
            (&requests("delete", "done"), 1),
            (&requests("delete", "not_found"), 1),
            (&requests("lookup", "not_found"), 1),
        ],
    )
}

#[test]
fn sessions_add_up() -> Result<()> {
    let plan = plan("scache")
        .parameter("connection_cache_ttl_limit", "100s")
        .parameter("postkeep_least_privilege", "yes");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut client = daemon.connect_and_greet()?;
    let mut far_ends = Vec::new();
    for _ in 0..3 {
        let (ours, theirs) = session()?;
        save_endpoint(&mut client, 50, "smtp\\nx", "p", ours.as_fd())?;
        far_ends.push(theirs);
    }
    client.exchange(&list(&[("request", "find_endp"), ("label", "smtp\\nx")]))?;
    drop(collect_session(&mut client)?);
    let (page, series) = scrape(&socket(&daemon))?;
    check(
        &series,
        &[
            ("postkeep_scache_sessions{}", 2),
            ("postkeep_scache_endpoints{}", 1),
            ("postkeep_scache_bindings{}", 0),
            ("postkeep_scache_saved_total{}", 3),
            ("postkeep_scache_ended_total{cause=\"found\"}", 1),
            ("postkeep_scache_goodbyes_total{outcome=\"said\"}", 0),
        ],
    )?;
    ensure!(!page.contains("smtp"), "{page}");
    drop(far_ends);
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, series) = scrape(&socket(&daemon))?;
        let ended: f64 = series
            .iter()
            .filter(|(name, _)| name.starts_with("postkeep_scache_ended_total{"))
            .map(|(_, count)| count)
            .sum();
        let now = value(&series, "postkeep_scache_sessions{}")?;
        ensure!((ended + now - 3.0).abs() < 0.5, "{series:#?}");
        if now < 0.5 {
            break check(
                &series,
                &[("postkeep_scache_ended_total{cause=\"closed\"}", 2)],
            );
        }
        ensure!(Instant::now() < deadline, "{series:#?}");
    }
}

#[test]
fn bad_requests_slow_readers_and_floods_disturb_nobody() -> Result<()> {
    let plan = plan("proxymap").parameter("proxy_read_maps", "proxy:static:x");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut witness = daemon.connect_and_greet()?;
    let mut serves = || -> Result<()> {
        let began = Instant::now();
        ensure!(lookup(&mut witness, "static:x", "k")?.contains('x'));
        ensure!(began.elapsed() < Duration::from_secs(1));
        Ok(())
    };
    serves()?;
    let path = socket(&daemon);
    let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(9000));
    for (bytes, status) in [
        (&b"\r\n\r\n"[..], "400"),
        (b"GET /\r\n\r\n", "400"),
        (b"\x16\x03\x01\0\n\n", "400"),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        (long.as_bytes(), "431"),
    ] {
        let response = say(connect(&path)?, bytes)?;
        ensure!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        serves()?;
    }
    let head = say(connect(&path)?, b"HEAD /metrics HTTP/1.0\r\n\r\n")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"));

    // Those who say nothing, or half of it, or do not read, make room for those who come later.
    let before = daemon.open_descriptors()?;
    let mut crowd = Vec::new();
    for number in 0..100 {
        let mut stream = connect(&path)?;
        let words: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /metr",
            _ => b"GET /metrics HTTP/1.1\r\n\r\n",
        };
        let _ = stream.write_all(words);
        crowd.push(stream);
    }
    serves()?;
    scrape(&path)?;
    let open = daemon.open_descriptors()?;
    ensure!(open <= before + 17, "{before} became {open}");
    drop(crowd);
    serves()?;
    scrape(&path)?;
    Ok(())
}

fn fetch(port: u16) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    say(stream, b"GET / HTTP/1.1\r\n\r\n")
}

#[test]
fn a_port_goes_to_the_next_process_when_the_first_one_ends() -> Result<()> {
    let address = format!("inet:127.0.0.1:{}", free_port()?);
    let port: u16 = address.rsplit(':').next().context("no port")?.parse()?;
    let plan = |service: &str| {
        Plan::new(Implementation::Postkeep, service)
            .parameter("proxy_read_maps", "proxy:static:x")
            .parameter("postkeep_least_privilege", "yes")
            .parameter("postkeep_metrics_address", &address)
    };
    let Some(mut first) = plan("proxymap").start()? else {
        return Ok(());
    };
    drop(first.connect_and_greet()?);
    ensure!(fetch(port)?.contains("service=\"proxymap\""));
    let Some(second) = plan("scache").start()? else {
        return Ok(());
    };
    // It serves all the same.
    drop(second.connect_and_greet()?);
    ensure!(fetch(port)?.contains("service=\"proxymap\""));
    ensure!(
        second
            .log_texts()
            .iter()
            .any(|line| line.contains("no metrics at inet:") && !line.starts_with("warning")),
        "{:?}",
        second.log_texts()
    );
    first.disconnect()?;
    let deadline = Instant::now() + LIMIT;
    while !fetch(port).is_ok_and(|page| page.contains("service=\"scache\"")) {
        ensure!(Instant::now() < deadline, "{:?}", second.log_texts());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn threads(daemon: &StandIn) -> Result<Vec<String>> {
    fs::read_dir(format!("/proc/{}/task", daemon.pid()))?
        .map(|thread| {
            Ok(fs::read_to_string(thread?.path().join("comm"))?
                .trim()
                .to_owned())
        })
        .collect()
}

#[test]
fn on_by_default_beside_the_service_while_it_runs() -> Result<()> {
    let plan = || {
        Plan::new(Implementation::Postkeep, "proxymap")
            .parameter("proxy_read_maps", "proxy:static:x")
    };
    // As in a Postfix; the stand-in's own directory is of root.
    let scratch = Scratch::new("proxymap")?;
    scratch.directory("queue", 0o755)?;
    let private = scratch.directory("queue/private", 0o755)?;
    scratch::give_to("postfix", &private)?;
    let Some(mut daemon) = plan().start_in(scratch)? else {
        return Ok(());
    };
    let path = private.join("proxymap.metrics");
    drop(daemon.connect_and_greet()?);
    ensure!(scrape(&path)?.0.contains("service=\"proxymap\""));
    daemon.disconnect()?;
    ensure!(daemon.wait(LIMIT)?.success());
    let left: Vec<_> = fs::read_dir(&private)?.collect::<Result<_, _>>()?;
    ensure!(left.len() == 1, "{left:?}");

    // Where no socket can be made there is none, and not a word about it.
    let Some(daemon) = plan().start()? else {
        return Ok(());
    };
    lookup(&mut daemon.connect_and_greet()?, "static:x", "k")?;
    ensure!(
        !daemon
            .scratch()
            .join("queue/private/proxymap.metrics")
            .exists()
    );
    ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
    Ok(())
}

#[test]
fn off_when_empty_and_refused_when_it_makes_no_sense() -> Result<()> {
    for (address, runs) in [("", false), ("unix:$SCRATCH/data/metrics", true)] {
        let plan = Plan::new(Implementation::Postkeep, "proxymap")
            .parameter("proxy_read_maps", "proxy:static:x")
            .parameter("postkeep_metrics_address", address);
        let Some(daemon) = plan.start()? else {
            return Ok(());
        };
        lookup(&mut daemon.connect_and_greet()?, "static:x", &"k".repeat(3))?;
        ensure!(threads(&daemon)?.iter().any(|name| name == "metrics") == runs);
    }
    let plan = Plan::new(Implementation::Postkeep, "scache")
        .parameter("postkeep_metrics_address", "inet:0.0.0.0:9150");
    let Some(mut daemon) = plan.start()? else {
        return Ok(());
    };
    ensure!(daemon.wait(LIMIT)?.code() == Some(1));
    let lines = daemon.log_texts();
    ensure!(
        lines
            .iter()
            .any(|line| line
                .starts_with("fatal: bad postkeep_metrics_address value: inet:0.0.0.0:9150")),
        "{lines:?}"
    );
    // A place where no socket can be made costs a warning.
    let plan = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", "proxy:static:x")
        .parameter("postkeep_metrics_address", "unix:/nonexistent/metrics");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let reply = daemon
        .connect_and_greet()?
        .exchange(&request("static:x", "k"))?;
    ensure!(!reply.is_empty());
    ensure!(daemon.log_texts().iter().any(|line| line
        == "warning: no metrics at unix:/nonexistent/metrics: No such file or directory"));
    Ok(())
}
