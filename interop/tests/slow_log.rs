//! The lines about lookups that took long: for the right table, with the right split of the time, not too many.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_testkit::Implementation;
use postkeep_testkit::stand_in::Plan;

/// What one answer takes.
const ANSWER: Duration = Duration::from_millis(300);

/// A server that takes its time, one question after the other.
fn slow_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    // Ends with the process.
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || -> Result<()> {
                let mut lines = BufReader::new(stream.try_clone()?);
                let mut stream = stream;
                let mut line = String::new();
                while lines.read_line(&mut line)? > 0 {
                    thread::sleep(ANSWER);
                    stream.write_all(b"200 value\n")?;
                    line.clear();
                }
                Ok(())
            });
        }
    });
    Ok(port)
}

/// The numbers of a line.
fn times(line: &str) -> Result<[u128; 4]> {
    let numbers: Vec<u128> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .take(4)
        .collect();
    numbers.try_into().ok().with_context(|| line.to_owned())
}

#[test]
fn slow_lookups_are_told_with_where_the_time_went() -> Result<()> {
    let port = slow_server()?;
    let table = format!("tcp:127.0.0.1:{port}");
    let plan = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter(
            "proxy_read_maps",
            &format!("proxy:{table} proxy:static:quick"),
        )
        .parameter("tcp_pool_max_connections", "1")
        .parameter("postkeep_slow_lookup_log_milliseconds", "450");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(daemon.connect_and_greet()?);
    }
    lookup(&mut clients[0], &table, "warm")?;
    lookup(&mut clients[0], "static:quick", "k")?;
    let slow = || -> Vec<String> {
        daemon
            .log_texts()
            .into_iter()
            .filter(|line| line.starts_with("slow "))
            .collect()
    };
    ensure!(slow().is_empty(), "{:?}", slow());
    // The second waits for the first one's connection, the third for both.
    for client in &mut clients {
        client.send(&request(&table, "someone@example.com"))?;
    }
    for client in &mut clients {
        client.read_list()?;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while slow().is_empty() {
        ensure!(Instant::now() < deadline, "{:?}", daemon.log_texts());
        thread::sleep(Duration::from_millis(10));
    }
    let lines = slow();
    ensure!(lines.len() == 1, "{lines:?}");
    let line = &lines[0];
    ensure!(
        line.starts_with(&format!("slow lookup in {table}: ")) && line.contains(" ms (queue "),
        "{line}"
    );
    ensure!(!line.contains("someone"), "{line}");
    let [total, queue, connect, query] = times(line)?;
    ensure!(
        total >= 450 && queue >= 250 && query >= ANSWER.as_millis() - 1,
        "{line}"
    );
    ensure!(
        connect < 100 && total.abs_diff(queue + connect + query) <= 3,
        "{line}"
    );
    Ok(())
}

#[test]
fn nothing_is_told_unless_asked_for() -> Result<()> {
    let port = slow_server()?;
    let table = format!("tcp:127.0.0.1:{port}");
    let plan = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &format!("proxy:{table}"));
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    lookup(&mut daemon.connect_and_greet()?, &table, "k")?;
    ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
    Ok(())
}
