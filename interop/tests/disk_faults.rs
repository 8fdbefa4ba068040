//! proxywrite on a disk that fails: it is killed at each step of its work, and the power fails. What was acknowledged is
//! there afterwards, what was not is there as a whole or not at all.
//!
//! `POSTKEEP_KILLS` in the environment is how often it ends; 40 otherwise.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::disk::Disk;
use postkeep_interop::owners::{Owners, Until, list_after_restart, open, plan};
use postkeep_interop::postmap::{Random, Sides};
use postkeep_testkit::postkeep_binary;

#[test]
fn lmdb_survives_an_end_at_any_step() -> Result<()> {
    survives_ends("lmdb", false)
}

#[test]
fn hash_survives_an_end_at_any_step() -> Result<()> {
    survives_ends("hash", false)
}

#[test]
fn btree_survives_an_end_at_any_step() -> Result<()> {
    survives_ends("btree", false)
}

#[test]
fn lmdb_survives_a_power_failure() -> Result<()> {
    survives_ends("lmdb", true)
}

#[test]
fn hash_survives_a_power_failure() -> Result<()> {
    survives_ends("hash", true)
}

#[test]
fn btree_survives_a_power_failure() -> Result<()> {
    survives_ends("btree", true)
}

fn survives_ends(kind: &str, power_fails: bool) -> Result<()> {
    let (Some(sides), Some(ours)) = (Sides::new(), postkeep_binary()) else {
        return Ok(());
    };
    let ends = match std::env::var("POSTKEEP_KILLS") {
        Ok(ends) => ends.parse()?,
        Err(_) => 40,
    };
    let disk = Disk::new(&format!("disk-{kind}"))?;
    let wrapped = disk.wrapped(&ours)?;
    let table = format!("{kind}:{}/t", disk.root().display());
    let mut owners = Owners::default();
    let mut random = Random(0x1234_5678_9ABC);
    let mut made = 0;
    for end in 0..ends {
        let Some(mut daemon) = plan(&table, Some(&wrapped)).start()? else {
            return Ok(());
        };
        open(&daemon, &table)?;
        let steps = 1 + i32::try_from(random.below(60))?;
        disk.kill_at(steps, random.below(3) == 0)?;
        let killed = AtomicBool::new(true);
        owners
            .run(&daemon, &table, Until::Gone(&killed), || Ok(()))
            .with_context(|| format!("before end {end}: {:?}", daemon.log_texts()))?;
        daemon.wait(Duration::from_secs(5))?;
        disk.kill_at(0, false)?;
        if power_fails {
            disk.power_failure(&mut random)?;
        }
        made += owners
            .check(list_after_restart(&sides, &table)?)
            .with_context(|| format!("behind end {end}"))?;
    }
    let acknowledged = owners.acknowledged();
    println!(
        "{kind}, {ends} ends: {acknowledged} changes were acknowledged and are there; {made} were made and not acknowledged"
    );
    ensure!(acknowledged > ends, "hardly anything was done");
    Ok(())
}
