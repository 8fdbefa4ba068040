//! proxywrite is killed while several clients change a table of it: what was acknowledged is there afterwards, what was not
//! is there as a whole or not at all, and Postfix reads the file. A change that the disk refuses fails for
//! its own client only.
//!
//! `POSTKEEP_KILLS` in the environment is how often it is killed; 60 otherwise.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use postkeep_client::proxymap::Status;
use postkeep_interop::owners::{
    CACHE, Owners, Until, client, list_after_restart, open, plan, table,
};
use postkeep_interop::postmap::{Random, Sides};
use postkeep_testkit::{Scratch, postkeep_binary, scratch};

fn place(name: &str, kind: &str) -> Result<(Scratch, String)> {
    let place = Scratch::new(&format!("{name}-{kind}"))?;
    let directory = place.directory("tables", 0o755)?;
    scratch::give_to("postfix", &directory)?;
    let table = table(kind, &directory, &place.path().join("t.cf"))?;
    Ok((place, table))
}

#[test]
fn what_was_acknowledged_in_lmdb_survives_a_kill() -> Result<()> {
    survives_kills("lmdb")
}

#[test]
fn what_was_acknowledged_in_hash_survives_a_kill() -> Result<()> {
    survives_kills("hash")
}

#[test]
fn what_was_acknowledged_in_btree_survives_a_kill() -> Result<()> {
    survives_kills("btree")
}

#[test]
fn what_was_acknowledged_in_cdb_survives_a_kill() -> Result<()> {
    survives_kills("cdb")
}

#[test]
fn what_was_acknowledged_in_sqlite_survives_a_kill() -> Result<()> {
    survives_kills("sqlite")
}

#[test]
fn what_was_acknowledged_in_sqlite_with_a_log_survives_a_kill() -> Result<()> {
    survives_kills("sqlite-wal")
}

fn survives_kills(kind: &str) -> Result<()> {
    let Some(sides) = Sides::new() else {
        return Ok(());
    };
    let kills = match std::env::var("POSTKEEP_KILLS") {
        Ok(kills) => kills.parse()?,
        Err(_) => 60,
    };
    let (_place, table) = place("killed", kind)?;
    let mut owners = Owners::default();
    let mut random = Random(0x1234_5678_9ABC);
    let mut made = 0;
    for _ in 0..kills {
        let Some(mut daemon) = plan(&table, None).start()? else {
            return Ok(());
        };
        open(&daemon, &table)?;
        let killed = AtomicBool::new(false);
        let pause = Duration::from_micros(random.below(60_000) as u64);
        let kill = || {
            thread::sleep(pause);
            killed.store(true, Ordering::SeqCst);
            Ok(daemon.signal(rustix::process::Signal::KILL)?)
        };
        owners
            .run(&daemon, &table, Until::Gone(&killed), kill)
            .with_context(|| format!("{:?}", daemon.log_texts()))?;
        daemon.wait(Duration::from_secs(5))?;
        made += owners
            .check(list_after_restart(&sides, &table)?)
            .with_context(|| format!("after {:?}", daemon.log_texts()))?;
    }
    let acknowledged = owners.acknowledged();
    println!(
        "{kind}, {kills} kills: {acknowledged} changes were acknowledged and are there; {made} were made and not acknowledged"
    );
    ensure!(acknowledged > kills, "hardly anything was done");
    Ok(())
}

#[test]
fn what_the_disk_refuses_fails_for_its_own_client_only() -> Result<()> {
    let Some(ours) = postkeep_binary() else {
        return Ok(());
    };
    let (place, table) = place("refused", "lmdb")?;
    // A limit on the size of files stands for a full disk; the signal that comes with it is ignored.
    let script = format!(
        "#!/bin/bash\ntrap '' XFSZ\nulimit -f 400\nexec -a proxymap {} \"$@\"\n",
        ours.display()
    );
    let executable = place.file("limited", &script)?;
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))?;
    let Some(daemon) = plan(&table, Some(&executable)).start()? else {
        return Ok(());
    };
    let large = "v".repeat(600_000);
    open(&daemon, &table)?;
    let table = table.as_bytes();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (daemon, large) = (&daemon, &large);
                scope.spawn(move || -> Result<()> {
                    let mut client = client(daemon);
                    for turn in 0..20 {
                        let key = format!("key{number}");
                        let refused = number % 4 == 0;
                        let short = format!("{number} {turn}");
                        let value = if refused { large } else { &short };
                        let answer =
                            client.update(table, 0, CACHE, key.as_bytes(), value.as_bytes())?;
                        let wanted = if refused { Status::Retry } else { Status::Ok };
                        ensure!(answer.status == wanted, "{key}: {:?}", answer.status);
                        let found = client.lookup(table, 0, CACHE, key.as_bytes())?;
                        ensure!(found.value == if refused { "" } else { &short }.as_bytes());
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a client panicked"))?
                .with_context(|| format!("{:?}", daemon.log_texts()))
        })
    })
}
