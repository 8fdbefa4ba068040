//! Load on a table behind a real server: how many answers a bounded number of connections gives, that it is bounded as
//! the server sees it, and what a crash of the server does to clients.
//!
//! Counts and answers are checked, times are printed. `POSTKEEP_LOAD=full` makes the runs long enough for the times
//! to say something: `POSTKEEP_LOAD=full cargo test --release -p postkeep-interop --test remote_load -- --nocapture
//! --test-threads=1`.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::env;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_interop::servers::mariadb::MariaDb;
use postkeep_testkit::attributes::show;
use postkeep_testkit::{Implementation, Peer, PrivatePostfix, StandIn, private_postfix, stand_in};

/// Lookup programs at once.
const PROGRAMS: usize = 64;
/// `pool_max_connections` of the table.
const POOL: usize = 16;
/// How long the server takes for an answer.
const ANSWER: Duration = Duration::from_millis(10);

/// One load at a time: there are only so many processors.
static ALONE: Mutex<()> = Mutex::new(());

fn full() -> bool {
    env::var_os("POSTKEEP_LOAD").is_some_and(|value| value == "full")
}

/// A server with a user whose every answer takes its time.
fn server() -> Option<MariaDb> {
    let server = MariaDb::start(&["--max-connections=700", "--thread-cache-size=0"])?;
    server.execute("CREATE USER u IDENTIFIED BY 'p'; GRANT ALL ON mail.* TO u");
    Some(server)
}

fn table(server: &MariaDb, more: &str) -> String {
    format!(
        "hosts = 127.0.0.1:{}\nuser = u\npassword = p\ndbname = mail\npool_max_connections = {POOL}\n{more}\
         query = SELECT IF(SLEEP({}) = 0, CONCAT('v-', '%s'), 'interrupted')\n",
        server.port,
        ANSWER.as_secs_f64()
    )
}

fn found(value: &str) -> String {
    format!("status\\00\\0value\\0{value}\\0\\0")
}

const RETRY: &str = "status\\02\\0value\\0\\0\\0";

/// What one in a hundred lookups of a table in memory takes longer than, and how many there were; asked one after
/// the other until `enough`.
fn witness(peer: &mut Peer, mut enough: impl FnMut(usize) -> bool) -> Result<(Duration, usize)> {
    let mut times = Vec::new();
    while !enough(times.len()) {
        let begun = Instant::now();
        let reply = lookup(peer, "inline:{k=local}", "k")?;
        times.push(begun.elapsed());
        ensure!(reply == found("local"), "{reply}");
        // As often as a mail server with something else to do.
        thread::sleep(Duration::from_micros(500));
    }
    times.sort();
    Ok((times[times.len() * 99 / 100], times.len()))
}

/// Runs one postmap with so many keys; all have to be found.
fn program(postfix: &PrivatePostfix, table: &str, number: usize, keys: usize) -> Result<()> {
    let mut child = Command::new("/usr/sbin/postmap")
        .arg("-c")
        .arg(postfix.configuration_directory())
        .args(["-q", "-", &format!("proxy:{table}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input: Vec<_> = (0..keys).map(|key| format!("{number}-{key}\n")).collect();
    let wanted: Vec<_> = (0..keys)
        .map(|key| format!("{number}-{key}\tv-{number}-{key}\n"))
        .collect();
    let (input, wanted) = (input.concat(), wanted.concat());
    let mut stdin = child.stdin.take().context("no standard input")?;
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "postmap: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    ensure!(text == wanted, "postmap {number}: {text}");
    Ok(())
}

/// What a run came to.
#[derive(Debug)]
struct Run {
    rate: f64,
    connections: u64,
    idle: Duration,
    busy: Duration,
    /// In a process that has nothing else to do: what is the machine's.
    apart: Duration,
}

fn programs(implementation: Implementation, server: &MariaDb, keys: usize) -> Result<Option<Run>> {
    let started = private_postfix::Plan::new(implementation)
        .parameter(
            "proxy_read_maps",
            "proxy:mysql:$SCRATCH/tables/m.cf proxy:inline:{k=local}",
        )
        .table("m.cf", &table(server, ""))
        .start()?;
    let Some(postfix) = started else {
        return Ok(None);
    };
    let table = format!("mysql:{}", postfix.table("m.cf").display());
    let local = stand_in::Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", "proxy:inline:{k=local}")
        .start()?;
    let Some(local) = local else { return Ok(None) };
    let mut other = local.connect_and_greet()?;
    let mut peer = Peer::connect(&postfix.scratch().join("queue/private/proxymap"))?;
    peer.read_list()?;
    let (idle, _) = witness(&mut peer, |count| count == if full() { 2000 } else { 100 })?;
    // A run of its own for opening tables and connections.
    program(&postfix, &table, PROGRAMS, 1)?;
    server.execute("FLUSH STATUS");
    let before = server.status("Com_select");
    let all = u64::try_from(PROGRAMS * keys)?;
    let over = AtomicBool::new(false);
    let (rate, busy, apart) = thread::scope(|scope| -> Result<_> {
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|number| {
                let (postfix, table) = (&postfix, &table);
                scope.spawn(move || program(postfix, table, number, keys))
            })
            .collect();
        let (over, peer, other) = (&over, &mut peer, &mut other);
        let enough = move |count| count > 9 && over.load(Ordering::Relaxed);
        let busy = scope.spawn(move || witness(peer, enough));
        let apart = scope.spawn(move || witness(other, enough));
        // From when a quarter is done to when three are: without beginning and end of the programs.
        let mut times = Vec::new();
        for part in [1, 3] {
            while server.status("Com_select") - before < all * part / 4
                && !programs.iter().all(thread::ScopedJoinHandle::is_finished)
            {
                thread::sleep(Duration::from_millis(20));
            }
            times.push((Instant::now(), server.status("Com_select")));
        }
        let results: Vec<_> = programs
            .into_iter()
            .map(|run| run.join().unwrap())
            .collect();
        over.store(true, Ordering::Relaxed);
        let (busy, _) = busy.join().unwrap()?;
        let (apart, _) = apart.join().unwrap()?;
        results.into_iter().collect::<Result<()>>()?;
        let answered = u32::try_from(times[1].1 - times[0].1)?;
        Ok((
            f64::from(answered) / (times[1].0 - times[0].0).as_secs_f64(),
            busy,
            apart,
        ))
    })?;
    Ok(Some(Run {
        rate,
        connections: server.status("Max_used_connections"),
        idle,
        busy,
        apart,
    }))
}

#[test]
fn real_programs_keep_all_connections_busy() -> Result<()> {
    let _alone = ALONE.lock();
    let Some(server) = server() else {
        return Ok(());
    };
    let keys = if full() { 200 } else { 10 };
    for implementation in [Implementation::Postkeep, Implementation::Postfix] {
        let Some(run) = programs(implementation, &server, keys)? else {
            return Ok(());
        };
        // Root, who asks for the count, is one of them, and may come before it has gone.
        let Run {
            rate,
            connections,
            idle,
            busy,
            apart,
        } = run;
        println!(
            "{implementation:?}: {PROGRAMS} x {keys} lookups of {ANSWER:?}: {rate:.0}/s, {:.2} of {POOL} connections' best; \
             at most {connections} connections; p99 of a local table {idle:?} idle, {busy:?} beside, {apart:?} in another process",
            rate * ANSWER.as_secs_f64() / f64::from(u32::try_from(POOL)?)
        );
        if implementation == Implementation::Postkeep {
            ensure!(connections <= u64::try_from(POOL + 2)?, "{connections}");
        }
    }
    Ok(())
}

fn stand_in(server: &MariaDb, more: &str) -> Result<Option<(StandIn, String)>> {
    let scratch = postkeep_testkit::Scratch::new("load")?;
    let file = scratch.file("m.cf", &table(server, more))?;
    let table = format!("mysql:{}", file.display());
    let started = stand_in::Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &format!("proxy:{table}"))
        .start_in(scratch)?;
    Ok(started.map(|daemon| (daemon, table)))
}

#[test]
fn five_hundred_clients_are_as_many_connections_as_configured() -> Result<()> {
    let _alone = ALONE.lock();
    let Some(server) = server() else {
        return Ok(());
    };
    let Some((daemon, table)) = stand_in(&server, "")? else {
        return Ok(());
    };
    let rounds = if full() { 20 } else { 2 };
    let mut peers = Vec::new();
    for _ in 0..500 {
        peers.push(daemon.connect_and_greet()?);
    }
    server.execute("FLUSH STATUS");
    let begun = Instant::now();
    let mut seen = 0;
    for round in 0..rounds {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(&request(&table, &format!("{round}-{number}")))?;
        }
        let list = server.execute("SHOW PROCESSLIST");
        seen = seen.max(list.lines().filter(|line| line.contains("\tu\t")).count());
        for (number, peer) in peers.iter_mut().enumerate() {
            let reply = show(&peer.read_list()?);
            ensure!(reply == found(&format!("v-{round}-{number}")), "{reply}");
        }
    }
    let most = server.status("Max_used_connections");
    let count = u32::try_from(500 * rounds)?;
    println!(
        "500 clients, {count} lookups of {ANSWER:?}: {:.0}/s, {seen} connections in the server's list, {most} at most with root's",
        f64::from(count) / begun.elapsed().as_secs_f64()
    );
    ensure!(seen == POOL, "{seen} connections");
    ensure!(most <= u64::try_from(POOL + 1)?, "{most} connections");
    Ok(())
}

#[test]
fn a_crash_is_told_as_such_and_over_when_the_server_is_back() -> Result<()> {
    let _alone = ALONE.lock();
    let Some(mut server) = server() else {
        return Ok(());
    };
    let Some((daemon, table)) = stand_in(&server, "")? else {
        return Ok(());
    };
    let (good, retries) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let last_retry = Mutex::new(None);
    let wait_for = |count: usize| -> Result<Instant> {
        let until = Instant::now() + Duration::from_secs(20);
        let wanted = good.load(Ordering::SeqCst) + count;
        while good.load(Ordering::SeqCst) < wanted {
            ensure!(Instant::now() < until, "no answers");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Instant::now())
    };
    let seconds = if full() { 3 } else { 1 };
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..PROGRAMS)
            .map(|client| {
                let (daemon, table) = (&daemon, &table);
                let (good, retries, over, last_retry) = (&good, &retries, &over, &last_retry);
                scope.spawn(move || -> Result<()> {
                    let mut peer = daemon.connect_and_greet()?;
                    let mut number = 0;
                    while !over.load(Ordering::Relaxed) {
                        number += 1;
                        let reply = lookup(&mut peer, table, &format!("{client}-{number}"))?;
                        if reply == found(&format!("v-{client}-{number}")) {
                            good.fetch_add(1, Ordering::SeqCst);
                        } else if reply == RETRY {
                            retries.fetch_add(1, Ordering::SeqCst);
                            *last_retry.lock().unwrap() = Some(Instant::now());
                            thread::sleep(Duration::from_millis(5));
                        } else {
                            over.store(true, Ordering::Relaxed);
                            anyhow::bail!("{reply}");
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let mut work = || -> Result<()> {
            wait_for(200)?;
            for _ in 0..if full() { 3 } else { 1 } {
                server.kill();
                thread::sleep(Duration::from_secs(seconds));
                server.restart();
                let ready = Instant::now();
                let first = wait_for(1)?;
                wait_for(POOL * 20)?;
                let last = last_retry.lock().unwrap().unwrap_or(ready);
                let open = ready.elapsed();
                let connections = server.status("Connections");
                println!(
                    "killed for {seconds} s: first answer {:?}, last error {:?} after it was back; {connections} connections in \
                     {open:?}, root's with them",
                    first.saturating_duration_since(ready),
                    last.saturating_duration_since(ready),
                );
                // Those of the pool, each once or twice, and root's.
                ensure!(connections < 100, "{connections} connections");
            }
            Ok(())
        };
        let worked = work();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap()?;
        }
        worked
    })?;
    println!(
        "{} right answers, {} errors, all of them RETRY",
        good.load(Ordering::SeqCst),
        retries.load(Ordering::SeqCst)
    );
    ensure!(retries.load(Ordering::SeqCst) > 0);
    Ok(())
}
