//! Many clients of one lookup table server whose table is behind another server: no thread waits for it, its
//! connections are bounded, and other tables are served meanwhile.

use std::fs;
use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_interop::servers::{Server, netstring, read_until, socketmap};
use postkeep_testkit::attributes::show;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, StandIn};

const CLIENTS: usize = 64;
const LOOKUPS: usize = 20;
const CONNECTIONS: usize = 8;

fn found(value: &str) -> String {
    format!("status\\00\\0value\\0{value}\\0\\0")
}

const RETRY: &str = "status\\02\\0value\\0\\0\\0";

fn start(tables: &str, parameters: &[(&str, &str)]) -> Result<Option<StandIn>> {
    let mut plan =
        Plan::new(Implementation::Postkeep, "proxymap").parameter("proxy_read_maps", tables);
    for (name, value) in parameters {
        plan = plan.parameter(name, value);
    }
    plan.start()
}

fn threads(daemon: &StandIn) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    Ok(line.context("no count of threads")?.trim().parse()?)
}

#[test]
fn lookups_share_bounded_connections_and_take_no_threads() -> Result<()> {
    let server = Server::start(|client| {
        socketmap(client, |request| {
            thread::sleep(Duration::from_millis(10));
            netstring(&[b"OK ", request].concat())
        });
    });
    let table = format!("socketmap:inet:127.0.0.1:{}:m", server.port);
    let most = CONNECTIONS.to_string();
    let started = start(
        &format!("proxy:{table}"),
        &[("socketmap_pool_max_connections", &most)],
    )?;
    let Some(daemon) = started else {
        return Ok(());
    };
    let mut first = daemon.connect_and_greet()?;
    ensure!(lookup(&mut first, &table, "first")? == found("m first"));
    let before = threads(&daemon)?;
    let mut peers = Vec::new();
    for _ in 0..CLIENTS {
        peers.push(daemon.connect_and_greet()?);
    }
    let begun = Instant::now();
    let mut most_threads = before;
    for round in 0..LOOKUPS {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(&request(&table, &format!("{round}-{number}")))?;
        }
        most_threads = most_threads.max(threads(&daemon)?);
        for (number, peer) in peers.iter_mut().enumerate() {
            let reply = show(&peer.read_list()?);
            ensure!(reply == found(&format!("m {round}-{number}")), "{reply}");
        }
    }
    let count = CLIENTS * LOOKUPS;
    println!(
        "{count} lookups of 10 ms in {:?}, {} connections at once, {most_threads} threads ({before} before)",
        begun.elapsed(),
        server.peak()
    );
    // The names of hosts are looked up on threads that go again: none is needed for an address.
    ensure!(
        most_threads <= before,
        "{most_threads} threads, {before} before"
    );
    ensure!(
        server.peak() <= CONNECTIONS,
        "{} connections",
        server.peak()
    );
    Ok(())
}

/// A door that opens once for all.
#[derive(Default)]
struct Door(Mutex<bool>, Condvar);

impl Door {
    fn pass(&self) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.1.wait_while(open, |open| !*open));
    }

    fn open(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }
}

#[test]
fn a_server_that_does_not_answer_delays_nobody_else() -> Result<()> {
    let door = Arc::<Door>::default();
    let closed = Arc::clone(&door);
    let server = Server::start(move |client| {
        socketmap(client, |request| {
            closed.pass();
            netstring(&[b"OK ", request].concat())
        });
    });
    let table = format!("socketmap:inet:127.0.0.1:{}:m", server.port);
    let tables = format!("proxy:{table} proxy:inline:{{k=v}}");
    let parameters = [
        ("socketmap_pool_queue_limit", "50"),
        ("socketmap_wait_timeout", "1h"),
    ];
    let Some(daemon) = start(&tables, &parameters)? else {
        return Ok(());
    };
    let mut waiting = Vec::new();
    for number in 0..CLIENTS {
        let mut peer = daemon.connect_and_greet()?;
        peer.send(&request(&table, &number.to_string()))?;
        waiting.push(peer);
    }
    let mut witness = daemon.connect_and_greet()?;
    for _ in 0..100 {
        ensure!(lookup(&mut witness, "inline:{k=v}", "k")? == found("v"));
    }
    door.open();
    for (number, peer) in waiting.iter_mut().enumerate() {
        let reply = show(&peer.read_list()?);
        ensure!(reply == found(&format!("m {number}")), "{reply}");
    }
    Ok(())
}

#[test]
fn a_dead_server_fails_at_once_and_comes_back_by_itself() -> Result<()> {
    let answers = Arc::new(Mutex::new(false));
    let good = Arc::clone(&answers);
    let server = Server::start(move |mut client| {
        while read_until(&mut client, b'\n').is_some() {
            let good = *good.lock().unwrap_or_else(PoisonError::into_inner);
            if !good || client.write_all(b"200 alive\n").is_err() {
                return;
            }
        }
    });
    let table = format!("tcp:127.0.0.1:{}", server.port);
    let parameters = [("tcp_breaker_failures", "3"), ("tcp_breaker_rest", "1s")];
    let Some(daemon) = start(&format!("proxy:{table}"), &parameters)? else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    for _ in 0..3 {
        ensure!(lookup(&mut peer, &table, "k")? == RETRY);
    }
    let (attempts, begun) = (server.total(), Instant::now());
    for _ in 0..20 {
        ensure!(lookup(&mut peer, &table, "k")? == RETRY);
    }
    // Twice for each lookup that reaches the server: the first three, then one a second.
    let probes = usize::try_from(begun.elapsed().as_secs())? + 1;
    ensure!(
        attempts == 6 && server.total() <= 6 + 2 * probes,
        "{attempts}, {}",
        server.total()
    );
    let log = daemon.log_texts();
    let opened =
        format!("warning: {table}: 3 lookups in a row have failed -- all fail at once for 1s");
    ensure!(log.contains(&opened), "{log:?}");
    *answers.lock().unwrap_or_else(PoisonError::into_inner) = true;
    let until = Instant::now() + Duration::from_secs(10);
    while lookup(&mut peer, &table, "k")? != found("alive") {
        ensure!(Instant::now() < until, "it does not come back");
        thread::sleep(Duration::from_millis(20));
    }
    let log = daemon.log_texts();
    ensure!(log.contains(&format!("{table} works again")), "{log:?}");
    Ok(())
}

/// What a daemon gives up leaves it the network, and the files that names of hosts are found with.
#[test]
fn a_confined_daemon_asks_servers_by_name() -> Result<()> {
    let server = Server::start(|client| {
        socketmap(client, |request| netstring(&[b"OK ", request].concat()));
    });
    let table = format!("socketmap:inet:localhost:{}:m", server.port);
    let unknown = "socketmap:inet:localhost:no-such-service:m";
    let started = start(
        &format!("proxy:{table} proxy:{unknown}"),
        &[("postkeep_least_privilege", "yes")],
    )?;
    let Some(daemon) = started else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    let reply = lookup(&mut peer, &table, "k")?;
    ensure!(reply == found("m k"), "{reply} {:?}", daemon.log_texts());
    ensure!(lookup(&mut peer, unknown, "k")? == RETRY);
    let log = daemon.log_texts();
    let warning = "warning: host or service localhost:no-such-service not found: Servname not supported for ai_socktype";
    ensure!(log.iter().any(|line| line == warning), "{log:?}");
    Ok(())
}
