//! proxywrite on a disk that fails: it is killed at each step of its work, the power fails, the disk is full, and what is
//! to be brought to it is not. What was acknowledged is there afterwards, what was not is there as a whole or not at all.
//!
//! `POSTKEEP_KILLS` in the environment is how often it ends; 12 otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_client::proxymap::Status;
use postkeep_interop::disk::Disk;
use postkeep_interop::owners::{
    CACHE, Owners, Until, client, list, list_after_restart, open, plan, table,
};
use postkeep_interop::postmap::{Random, Sides};
use postkeep_testkit::program::skip;
use postkeep_testkit::{StandIn, postkeep_binary, scratch};

/// The types that are written to; see [`table`].
const KINDS: [&str; 6] = ["btree", "cdb", "hash", "lmdb", "sqlite", "sqlite-wal"];

/// What a file of a type is called.
fn file(disk: &Disk, kind: &str) -> PathBuf {
    disk.root().join(match kind {
        "lmdb" => "t.lmdb",
        "cdb" => "t.cdb",
        "sqlite" | "sqlite-wal" => "t.sqlite",
        _ => "t.db",
    })
}

/// A table of each type on a disk of its own, all at the same time.
fn each_kind(
    test: &str,
    what: impl Fn(&Sides, Disk, &str, &str) -> Result<()> + Sync,
) -> Result<()> {
    let Some(sides) = Sides::new() else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = KINDS
            .into_iter()
            .map(|kind| {
                let (sides, what) = (&sides, &what);
                scope.spawn(move || {
                    let disk = Disk::new(&format!("{test}-{kind}"))?;
                    let table = table(kind, disk.root(), &disk.outside("t.cf"))?;
                    what(sides, disk, kind, &table).context(kind)
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no test panics"))
    })
}

fn start(disk: &Disk, table: &str) -> Result<StandIn> {
    let ours = postkeep_binary().context("no postkeep")?;
    let daemon = plan(table, Some(&disk.wrapped(&ours)?)).start()?;
    let daemon = daemon.context("no daemon")?;
    open(&daemon, table)?;
    Ok(daemon)
}

fn end_now(daemon: &mut StandIn) -> Result<()> {
    daemon.signal(rustix::process::Signal::KILL)?;
    daemon.wait(Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn tables_survive_an_end_at_any_step() -> Result<()> {
    each_kind("end", |sides, disk, kind, table| {
        survives_ends(sides, &disk, kind, table, false)
    })
}

#[test]
fn tables_survive_a_power_failure() -> Result<()> {
    each_kind("power", |sides, disk, kind, table| {
        survives_ends(sides, &disk, kind, table, true)
    })
}

fn survives_ends(
    sides: &Sides,
    disk: &Disk,
    kind: &str,
    table: &str,
    power_fails: bool,
) -> Result<()> {
    let ends = match std::env::var("POSTKEEP_KILLS") {
        Ok(ends) => ends.parse()?,
        Err(_) => 12,
    };
    // SQLite takes more steps for a change.
    let most = if kind.starts_with("sqlite") { 180 } else { 60 };
    let mut owners = Owners::default();
    let mut random = Random(0x1234_5678_9ABC);
    let mut made = 0;
    for end in 0..ends {
        let mut daemon = start(disk, table)?;
        let steps = 1 + i32::try_from(random.below(most))?;
        disk.kill_at(steps, random.below(3) == 0)?;
        let killed = AtomicBool::new(true);
        owners
            .run(&daemon, table, Until::Gone(&killed), || Ok(()))
            .with_context(|| format!("before end {end}: {:?}", daemon.log_texts()))?;
        daemon.wait(Duration::from_secs(5))?;
        disk.kill_at(0, false)?;
        if power_fails {
            disk.power_failure(&mut random)?;
        }
        made += owners
            .check(list_after_restart(sides, table)?)
            .with_context(|| format!("behind end {end}"))?;
        disk.settle()?;
        let others = fs::read_dir(disk.root())?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find(|name| name.contains("damaged"));
        ensure!(others.is_none(), "{others:?}");
    }
    let acknowledged = owners.acknowledged();
    println!(
        "{kind}, {ends} ends: {acknowledged} changes were acknowledged and are there; {made} were made and not acknowledged"
    );
    ensure!(acknowledged > ends, "hardly anything was done");
    Ok(())
}

/// A daemon that has given up all that it does not need; `None` when this kernel cannot hold it to that.
fn start_confined(disk: &Disk, table: &str) -> Result<Option<StandIn>> {
    let ours = postkeep_binary().context("no postkeep")?;
    // What stands between it and the disk has to keep its own files.
    let tables = format!("{table} proxy:lmdb:{}/x", disk.outside("shadow").display());
    let daemon = plan(&tables, Some(&disk.wrapped(&ours)?))
        .parameter("postkeep_least_privilege", "yes")
        .start()?;
    let daemon = daemon.context("no daemon")?;
    open(&daemon, table).with_context(|| format!("{:?}", daemon.log_texts()))?;
    let log = daemon.log_texts();
    if log
        .iter()
        .any(|text| text.contains("not enforced by this kernel"))
    {
        skip(&format!("{log:?}"));
        return Ok(None);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    ensure!(status.contains("Seccomp:\t2"), "{status}");
    Ok(Some(daemon))
}

#[test]
fn a_confined_daemon_completes_or_undoes_what_was_cut_off() -> Result<()> {
    each_kind("confined", |sides, disk, kind, table| {
        let most = if kind.starts_with("sqlite") { 120 } else { 40 };
        let mut owners = Owners::default();
        let mut random = Random(0x5_7777);
        for end in 0..6 {
            let Some(mut daemon) = start_confined(&disk, table)? else {
                return Ok(());
            };
            let steps = 4 + i32::try_from(random.below(most))?;
            disk.kill_at(steps, random.below(3) == 0)?;
            let killed = AtomicBool::new(true);
            owners
                .run(&daemon, table, Until::Gone(&killed), || Ok(()))
                .with_context(|| format!("before end {end}: {:?}", daemon.log_texts()))?;
            daemon.wait(Duration::from_secs(5))?;
            disk.kill_at(0, false)?;
            // The first one to open it puts it in order.
            let Some(mut next) = start_confined(&disk, table)? else {
                return Ok(());
            };
            end_now(&mut next)?;
            owners
                .check(list(sides, table)?)
                .with_context(|| format!("behind end {end}: {:?}", next.log_texts()))?;
            disk.settle()?;
        }
        println!("{kind}: {} acknowledged", owners.acknowledged());
        ensure!(owners.acknowledged() > 0, "hardly anything was done");
        Ok(())
    })
}

#[test]
fn a_change_that_does_not_get_to_the_disk_is_not_acknowledged() -> Result<()> {
    each_kind("sync", |sides, disk, kind, table| {
        let mut owners = Owners::default();
        let mut random = Random(0x9876_5432);
        for round in 0..8 {
            let mut daemon = start(&disk, table)?;
            for _ in 0..3 {
                disk.fail_syncs(1 + i32::try_from(random.below(4))?)?;
                owners
                    .run(&daemon, table, Until::Asked(4), || Ok(()))
                    .with_context(|| format!("{:?}", daemon.log_texts()))?;
            }
            disk.fail_syncs(-1)?;
            let (acknowledged, refused) = (owners.acknowledged(), owners.refused());
            owners.run(&daemon, table, Until::Asked(1), || Ok(()))?;
            // A delete of what is not there needs no disk.
            ensure!(
                owners.refused() > refused && owners.acknowledged() < acknowledged + 6,
                "{} of {acknowledged} before",
                owners.acknowledged()
            );
            disk.fail_syncs(0)?;
            let refused = owners.refused();
            owners.run(&daemon, table, Until::Asked(3), || Ok(()))?;
            ensure!(owners.refused() == refused, "{:?}", daemon.log_texts());
            end_now(&mut daemon)?;
            disk.power_failure(&mut random)?;
            owners
                .check(list_after_restart(sides, table)?)
                .with_context(|| format!("round {round}"))?;
            disk.settle()?;
        }
        println!(
            "{kind}: {} acknowledged, {} refused",
            owners.acknowledged(),
            owners.refused()
        );
        Ok(())
    })
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_room() -> Result<()> {
    each_kind("full", |sides, mut disk, kind, table| {
        if let Err(error) = disk.limit(2 << 20) {
            eprintln!("SKIP: {error}");
            return Ok(());
        }
        let mut owners = Owners::default();
        let mut daemon = start(&disk, table)?;
        let filler = disk.root().join("filler");
        for left in [0, 4096, 12_288] {
            let refused = owners.refused();
            // More than there is room for, and then a little less.
            let mut size = 4 << 20;
            let _ = fs::write(&filler, vec![0; size]);
            size = usize::try_from(fs::metadata(&filler)?.len())?;
            fs::File::options()
                .write(true)
                .open(&filler)?
                .set_len(size.saturating_sub(left) as u64)?;
            owners.run(&daemon, table, Until::Asked(20), || Ok(()))?;
            // A table that has grown once has room for what is replaced.
            ensure!(
                left > 0 || owners.refused() > refused,
                "nothing was refused"
            );
            fs::remove_file(&filler)?;
            let refused = owners.refused();
            owners.run(&daemon, table, Until::Asked(10), || Ok(()))?;
            ensure!(owners.refused() == refused, "{:?}", daemon.log_texts());
        }
        end_now(&mut daemon)?;
        owners.check(list(sides, table)?)?;
        println!(
            "{kind}: {} acknowledged, {} refused",
            owners.acknowledged(),
            owners.refused()
        );
        Ok(())
    })
}

#[test]
fn a_damaged_table_is_set_aside_and_service_goes_on() -> Result<()> {
    each_kind("damaged", |sides, disk, kind, table| {
        if kind == "sqlite-wal" {
            // What is in its log is not damaged with the file.
            return Ok(());
        }
        let path = file(&disk, kind);
        let mut daemon = start(&disk, table)?;
        let fill = |daemon: &StandIn| -> Result<()> {
            let mut client = client(daemon);
            for number in 0..200 {
                let key = format!("key{number}");
                let value = "v".repeat(200);
                let answer =
                    client.update(table.as_bytes(), 0, CACHE, key.as_bytes(), value.as_bytes())?;
                ensure!(answer.status == Status::Ok, "{:?}", answer.status);
            }
            Ok(())
        };
        let aside = || -> Result<Vec<PathBuf>> {
            Ok(fs::read_dir(disk.root())?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.to_string_lossy().contains(".damaged-"))
                .collect())
        };
        fill(&daemon)?;
        // While the table is open, and before it is.
        for (number, is_open) in [true, false].into_iter().enumerate() {
            if !is_open {
                end_now(&mut daemon)?;
            }
            let bytes = fs::read(&path)?;
            let half = bytes.len() / 2 / 4096 * 4096;
            let damaged = if is_open && kind != "cdb" {
                // As if the second half had never got to the disk.
                bytes[..half].to_vec()
            } else {
                b"this is not a table\n".repeat(500)
            };
            fs::write(&path, &damaged)?;
            if is_open {
                daemon_goes_on(&daemon, table)?;
            } else {
                daemon = start(&disk, table)?;
            }
            fill(&daemon).with_context(|| format!("{:?}", daemon.log_texts()))?;
            let aside = aside()?;
            ensure!(aside.len() == number + 1, "{aside:?}");
            ensure!(
                aside
                    .iter()
                    .any(|path| fs::read(path).is_ok_and(|bytes| bytes == damaged))
            );
            let lines = daemon.log_texts();
            let said = lines.iter().filter(|line| line.contains("set aside"));
            ensure!(said.count() == 1, "{lines:?}");
        }
        end_now(&mut daemon)?;
        let words = ["postmap", "-q", "key7", table];
        let found = sides.run(&sides.real, sides.root(), &words, b"");
        ensure!(found.exit == Some(0), "{found:?}");
        Ok(())
    })
}

#[test]
fn where_no_file_can_be_made_beside_it_a_table_is_changed_or_refuses() -> Result<()> {
    each_kind("beside", |sides, disk, kind, table| {
        // Whether it can be changed, and what the log says.
        let (works, says) = match kind {
            "lmdb" => (true, None),
            "hash" | "btree" => (true, Some("an update that is cut off may damage")),
            "cdb" => (false, Some("t.cdb.tmp: Permission denied")),
            _ => (
                false,
                Some("the database file and its directory must be writable"),
            ),
        };
        let mut daemon = plan(table, None).start()?.context("no daemon")?;
        open(&daemon, table)?;
        let put = |daemon: &StandIn, value: &str| -> Result<Status> {
            let answer =
                client(daemon).update(table.as_bytes(), 0, CACHE, b"key", value.as_bytes())?;
            Ok(answer.status)
        };
        ensure!(put(&daemon, "before")? == Status::Ok);
        end_now(&mut daemon)?;
        // What it left beside the table is not there for the next one.
        let mut daemon = plan(table, None).start()?.context("no daemon")?;
        open(&daemon, table)?;
        daemon.signal(rustix::process::Signal::TERM)?;
        daemon.wait(Duration::from_secs(5))?;
        for entry in fs::read_dir(disk.root())? {
            let path = entry?.path();
            if path != file(&disk, kind) {
                fs::remove_file(path)?;
            }
        }
        scratch::give_to("root", disk.root())?;
        let mut daemon = plan(table, None).start()?.context("no daemon")?;
        let status = put(&daemon, "after")?;
        let log = daemon.log_texts();
        let wanted = if works { Status::Ok } else { Status::Retry };
        ensure!(status == wanted, "{status:?}: {log:?}");
        if let Some(says) = says {
            ensure!(log.iter().any(|line| line.contains(says)), "{log:?}");
        }
        let found = client(&daemon).lookup(table.as_bytes(), 0, CACHE, b"key")?;
        // Where it was not changed nothing else is told, if anything can be.
        let value = if works { "after" } else { "before" };
        ensure!(
            found.status == Status::Ok && found.value == value.as_bytes()
                || !works && found.status == Status::Retry,
            "{found:?} {log:?}"
        );
        scratch::give_to("postfix", disk.root())?;
        // It heals when the directory does; what did not open is tried again some seconds later, or at a start.
        if found.status == Status::Retry {
            end_now(&mut daemon)?;
            daemon = plan(table, None).start()?.context("no daemon")?;
        }
        ensure!(
            put(&daemon, "healed")? == Status::Ok,
            "{:?}",
            daemon.log_texts()
        );
        end_now(&mut daemon)?;
        list_after_restart(sides, table)?;
        let words = ["postmap", "-q", "key", table];
        let found = sides.run(&sides.real, sides.root(), &words, b"");
        ensure!(found.stdout == b"healed\n", "{found:?}");
        Ok(())
    })
}

/// One change, which is made in the table that was, or the one that is begun anew.
fn daemon_goes_on(daemon: &StandIn, table: &str) -> Result<()> {
    let answer = client(daemon).update(table.as_bytes(), 0, CACHE, b"first", b"change")?;
    ensure!(answer.status == Status::Ok, "{:?}", daemon.log_texts());
    Ok(())
}

/// What the command line tool does to the database in the meantime.
fn sqlite3(file: &Path) -> Result<()> {
    for number in 0..4 {
        let statement = format!("INSERT OR REPLACE INTO t VALUES ('outsider', 'v{number}')");
        let output = Command::new("sqlite3")
            .args(["-cmd", ".timeout 20000"])
            .arg(file)
            .arg(statement)
            .output()
            .context("sqlite3")?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

#[test]
fn two_daemons_and_the_installed_postmap_do_not_damage_a_table() -> Result<()> {
    // Not `open_lock`, with which there can be one only.
    const LOCK_EACH: u32 = CACHE & !0x1_0000 | 0x40;
    each_kind("two", |sides, disk, kind, table| {
        let mut owners = Owners::default();
        owners.flags = LOCK_EACH;
        let ours = [plan(table, None).start()?, plan(table, None).start()?];
        let [Some(one), Some(other)] = &ours else {
            return Ok(());
        };
        // What the installed one does with a lock.
        let (words, input): (&[&str], &[u8]) = match kind {
            "lmdb" => (&["postmap", "-d", "nobody", table], b""),
            _ => (&["postmap", "-i", "-r", table], b"outsider value\n"),
        };
        // The table is made by one who may write to it.
        owners.run(one, table, Until::Asked(1), || Ok(()))?;
        for _ in 0..6 {
            owners.run_each(&[one, other], table, Until::Asked(12), || {
                if kind.starts_with("sqlite") {
                    // The installed Postfix only reads these.
                    return sqlite3(&file(&disk, kind));
                }
                for _ in 0..if kind == "cdb" { 0 } else { 4 } {
                    let outcome = sides.run(&sides.real, disk.root(), words, input);
                    ensure!(outcome.stderr.is_empty(), "{outcome:?}");
                }
                Ok(())
            })?;
        }
        for daemon in [one, other] {
            ensure!(
                !daemon
                    .log_texts()
                    .iter()
                    .any(|line| line.contains("damaged")),
                "{:?}",
                daemon.log_texts()
            );
        }
        let mut there = list(sides, table)?;
        there.remove("outsider");
        owners.check(there)?;
        ensure!(owners.refused() == 0, "{:?}", one.log_texts());
        println!("{kind}: {} acknowledged", owners.acknowledged());
        Ok(())
    })
}
