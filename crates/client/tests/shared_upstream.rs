//! The example: processes one after the other use one connection to a server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::{Implementation, stand_in};

/// Cargo builds the examples of a package before its tests run.
fn example() -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    let deps = running.parent().context("a directory")?;
    let built = deps.parent().context("a directory")?;
    Ok(built.join("examples/shared_upstream"))
}

#[test]
fn processes_share_a_connection_until_it_dies() -> Result<()> {
    let plan = stand_in::Plan::new(Implementation::Postkeep, "scache")
        .parameter("connection_cache_ttl_limit", "600s");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let server = listener.local_addr()?.to_string();
    let heard = thread::spawn(move || -> Result<Vec<usize>> {
        let mut commands = Vec::new();
        for mut client in listener.incoming().take(2).flatten() {
            client.write_all(b"220 ready\r\n")?;
            let mut count = 0;
            let mut lines = BufReader::new(client.try_clone()?).lines();
            // The first connection is closed in the middle of the last program's work, before which it was good.
            while let Some(line) = lines.next().transpose()? {
                count += 1;
                if line == "NOOP" && count == 6 {
                    client.write_all(b"250 noop\r\n")?;
                    break;
                }
                client.write_all(format!("250 {line}\r\n").as_bytes())?;
                if count == 2 && !commands.is_empty() {
                    break;
                }
            }
            commands.push(count);
        }
        Ok(commands)
    });
    let run = || -> Result<String> {
        let output = Command::new(example()?)
            .arg(daemon.socket())
            .arg(&server)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(run()? == "made a connection: 250 HELO client.example.org\n");
    ensure!(run()? == "used one again: 250 RSET\n");
    ensure!(run()? == "used one again: 250 RSET\n");
    // What the server has closed is not handed out.
    ensure!(run()? == "made a connection: 250 HELO client.example.org\n");
    let commands = heard.join().map_err(|_| anyhow::anyhow!("no server"))??;
    ensure!(commands == [6, 2], "{commands:?}");
    Ok(())
}

#[test]
fn a_cache_that_is_not_there_is_done_without() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let server = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"220 ready\r\n");
            let Ok(copy) = client.try_clone() else { return };
            for _ in BufReader::new(copy).lines().map_while(Result::ok) {
                let _ = client.write_all(b"250 ok\r\n");
            }
        }
    });
    let output = Command::new(example()?)
        .args(["/nonexistent/socket", &server])
        .output()?;
    ensure!(
        output.stdout == b"made a connection: 250 ok\n",
        "{output:?}"
    );
    Ok(())
}
