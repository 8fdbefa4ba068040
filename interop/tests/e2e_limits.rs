//! The limits of the lookup table server: what a client gets beyond each, what the log says, and that nothing
//! happens below it. Those of the skeleton are tested there in all detail.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_testkit::attributes::{list, show};
use postkeep_testkit::peer::Peer;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn, postkeep_binary};

fn proxymap(tables: &str) -> Plan {
    Plan::new(Implementation::Postkeep, "proxymap").parameter("proxy_read_maps", tables)
}

/// Sends something to a new connection that ends it; nothing may come back.
fn is_turned_away(daemon: &StandIn, bytes: &[u8]) -> Result<bool> {
    let mut peer = daemon.connect_and_greet()?;
    // The daemon may have closed before all is sent.
    let _ = peer.send(bytes);
    let received = peer.drain(Duration::from_secs(3));
    Ok(received.closed && received.bytes.is_empty())
}

const FOUND: &str = "status\\00\\0value\\0x\\0\\0";
const NOT_FOUND: &str = "status\\01\\0value\\0\\0\\0";
const RETRY: &str = "status\\02\\0value\\0\\0\\0";

#[test]
fn sizes_of_attributes_and_requests() -> Result<()> {
    let plan = proxymap("proxy:static:x")
        .parameter("postkeep_attribute_size_limit", "5000")
        .parameter("postkeep_request_size_limit", "6000");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut witness = daemon.connect_and_greet()?;
    ensure!(lookup(&mut witness, "static:x", &"k".repeat(5000))? == FOUND);
    ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
    for _ in 0..3 {
        ensure!(is_turned_away(
            &daemon,
            &request("static:x", &"k".repeat(5001))
        )?);
    }
    // One value after the other within its own limit.
    ensure!(is_turned_away(
        &daemon,
        &request(&"t".repeat(3000), &"k".repeat(4000))
    )?);
    ensure!(lookup(&mut witness, "static:x", "k")? == FOUND);
    let log = daemon.log_texts();
    let line = |what: &str, limit: u32, parameter: &str| {
        format!(
            "warning: attribute {what} length exceeds limit {limit} in input from proxymap socket; \
             to raise this limit: {parameter}"
        )
    };
    // One line for each limit, however often.
    for expected in [
        line("value", 5000, "postkeep_attribute_size_limit"),
        line("list", 6000, "postkeep_request_size_limit"),
    ] {
        let count = log.iter().filter(|text| **text == expected).count();
        ensure!(count == 1, "{expected}: {log:#?}");
    }
    Ok(())
}

/// All warnings that begin with `text`.
fn warnings(daemon: &StandIn, text: &str) -> usize {
    let start = format!("warning: {text}");
    let lines = daemon.log_texts();
    lines.iter().filter(|line| line.starts_with(&start)).count()
}

#[test]
fn clients_and_their_requests() -> Result<()> {
    for service in ["proxymap", "scache"] {
        let plan = || {
            Plan::new(Implementation::Postkeep, service)
                .parameter("proxy_read_maps", "proxy:static:x")
                .parameter("max_use", "1000")
        };
        let ask = |peer: &mut Peer| -> Result<()> {
            let bytes = match service {
                "proxymap" => request("static:x", "k"),
                _ => list(&[("request", "find_endp"), ("label", "l")]),
            };
            let reply = peer.exchange(&bytes)?;
            ensure!(reply.starts_with(b"status\0"), "{}", show(&reply));
            Ok(())
        };
        let crowd = |daemon: &StandIn, count: usize| -> Result<Vec<Peer>> {
            (0..count)
                .map(|_| {
                    let mut peer = daemon.connect_and_greet()?;
                    ask(&mut peer)?;
                    Ok(peer)
                })
                .collect()
        };

        // Everybody is served, and the oldest goes.
        let Some(daemon) = plan().parameter("postkeep_client_limit", "3").start()? else {
            return Ok(());
        };
        let mut peers = crowd(&daemon, 3)?;
        ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
        peers.extend(crowd(&daemon, 2)?);
        for (number, peer) in peers.iter_mut().enumerate() {
            ensure!(peer.drain(Duration::from_millis(50)).closed == (number < 2));
        }
        ensure!(warnings(&daemon, "client limit reached: 3 clients") == 1);
        drop(daemon);

        let Some(daemon) = plan()
            .parameter("postkeep_user_client_limit", "3")
            .start()?
        else {
            return Ok(());
        };
        let mut peers = crowd(&daemon, 3)?;
        ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
        for _ in 0..2 {
            ensure!(daemon.connect()?.drain(Duration::from_secs(3)).closed);
        }
        peers.iter_mut().try_for_each(&ask)?;
        ensure!(warnings(&daemon, "connection of process ") == 1);
        drop(daemon);

        let rate = plan().parameter("postkeep_request_rate_limit", "10");
        let Some(daemon) = rate.start()? else {
            return Ok(());
        };
        let mut peer = daemon.connect_and_greet()?;
        let began = Instant::now();
        (0..10).try_for_each(|_| ask(&mut peer))?;
        ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
        (0..4).try_for_each(|_| ask(&mut peer))?;
        ensure!(began.elapsed() > Duration::from_millis(250));
        ensure!(warnings(&daemon, "client sends more than 10 requests per second") == 1);
    }
    Ok(())
}

#[test]
fn descriptors_that_run_out() -> Result<()> {
    let Some(program) = postkeep_binary() else {
        return Ok(());
    };
    let scratch = Scratch::new("limits")?;
    let link = scratch.path().join("proxymap");
    symlink(program, &link)?;
    let text = format!("#!/bin/sh\nulimit -n 64\nexec {} \"$@\"\n", link.display());
    let wrapper = scratch.file("start", &text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let plan = proxymap("proxy:static:x").executable(&wrapper);
    let Some(mut daemon) = plan.start_in(scratch)? else {
        return Ok(());
    };
    let mut oldest = daemon.connect_and_greet()?;
    lookup(&mut oldest, "static:x", "k")?;
    let mut kept = Vec::new();
    for _ in 0..40 {
        let mut peer = daemon.connect_and_greet()?;
        ensure!(lookup(&mut peer, "static:x", "k")? == FOUND);
        kept.push(peer);
    }
    ensure!(oldest.drain(Duration::from_millis(50)).closed);
    ensure!(lookup(kept.last_mut().context("kept")?, "static:x", "k")? == FOUND);
    ensure!(daemon.is_running());
    ensure!(warnings(&daemon, "descriptor limit reached: ") == 1);
    Ok(())
}

#[test]
fn sizes_in_the_connection_cache() -> Result<()> {
    let plan = Plan::new(Implementation::Postkeep, "scache")
        .parameter("postkeep_attribute_size_limit", "5000")
        .parameter("postkeep_attribute_count_limit", "20");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let find = |size: usize| list(&[("request", "find_endp"), ("label", &"l".repeat(size))]);
    let mut witness = daemon.connect_and_greet()?;
    ensure!(show(&witness.exchange(&find(5000))?) == "status\\02\\0property\\0\\0\\0");
    ensure!(daemon.log_texts().is_empty(), "{:?}", daemon.log_texts());
    for _ in 0..3 {
        ensure!(is_turned_away(&daemon, &find(5001))?);
        ensure!(is_turned_away(&daemon, &[0; 21])?);
    }
    let line = |what: &str, parameter: &str| {
        format!(
            "warning: attribute {what} in input from scache socket; to raise this limit: {parameter}"
        )
    };
    let expected = [
        line(
            "value length exceeds limit 5000",
            "postkeep_attribute_size_limit",
        ),
        line("count exceeds limit 20", "postkeep_attribute_count_limit"),
    ];
    let log = daemon.log_texts();
    for expected in expected {
        let count = log.iter().filter(|text| **text == expected).count();
        ensure!(count == 1, "{expected}: {log:#?}");
    }
    Ok(())
}

#[test]
fn slow_lookups_beyond_the_limit_are_told_to_try_again() -> Result<()> {
    let scratch = Scratch::new("limits")?;
    let root = scratch.path().to_owned();
    scratch.directory("tables", 0o755)?;
    // Whoever opens one waits until somebody writes.
    for name in ["one", "two"] {
        let status = Command::new("mkfifo")
            .args(["-m", "644"])
            .arg(root.join("tables").join(name))
            .status()?;
        ensure!(status.success());
    }
    let table = |name: &str| format!("cidr:{}/tables/{name}", root.display());
    let (one, two) = (table("one"), table("two"));
    let plan = proxymap(&format!("proxy:{one} proxy:{two} proxy:static:x"))
        .parameter("postkeep_slow_lookup_threads", "4")
        .parameter("postkeep_slow_lookup_limit", "4");
    let Some(daemon) = plan.start_in(scratch)? else {
        return Ok(());
    };
    let begin = |table: &str| -> Result<Peer> {
        let mut peer = daemon.connect_and_greet()?;
        peer.send(&request(table, "10.0.0.1"))?;
        Ok(peer)
    };
    // Three threads are in the first table, three more of its lookups wait, and others are too many. What no thread has
    // taken yet waits as well, so that some may be too many before the three are there.
    let mut first = Vec::new();
    let mut put_off = 0;
    let began = Instant::now();
    while first.len() != 6 || put_off < 2 {
        first.push(begin(&one)?);
        first.retain_mut(|peer: &mut Peer| {
            peer.drain(Duration::from_millis(20)).bytes.is_empty() || {
                put_off += 1;
                false
            }
        });
        ensure!(
            began.elapsed() < Duration::from_secs(8),
            "{} wait",
            first.len()
        );
    }
    let mut peer = daemon.connect_and_greet()?;
    ensure!(lookup(&mut peer, &one, "10.0.0.1")? == RETRY);
    ensure!(lookup(&mut peer, "static:x", "k")? == FOUND);
    let expected = "warning: proxymap socket: 3 operations of one table are waiting, clients are told to try \
                    again; to raise this limit: postkeep_slow_lookup_limit, postkeep_slow_table_threads";
    ensure!(
        daemon.log_texts() == [expected],
        "{:#?}",
        daemon.log_texts()
    );
    ensure!(lookup(&mut peer, &one, "10.0.0.2")? == RETRY);
    ensure!(daemon.log_texts().len() == 1);

    // The other table has a thread left.
    let mut second = begin(&two)?;
    fs::write(root.join("tables/two"), "10.0.0.0/8 x\n")?;
    ensure!(show(&second.read_list()?) == FOUND);
    // And nobody who waits is forgotten.
    fs::write(root.join("tables/one"), "10.0.0.0/8 x\n")?;
    for peer in &mut first {
        ensure!(show(&peer.read_list()?) == FOUND);
    }
    ensure!(lookup(&mut peer, &one, "10.0.0.3")? == FOUND);
    Ok(())
}

#[test]
fn open_tables_make_room_for_others() -> Result<()> {
    let names = ["static:x", "static:y", "static:z"];
    let list: Vec<String> = names.iter().map(|name| format!("proxy:{name}")).collect();
    let plan = proxymap(&list.join(" ")).parameter("postkeep_open_table_limit", "2");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    for name in &names[..2] {
        ensure!(lookup(&mut peer, name, "k")?.starts_with("status\\00"));
    }
    ensure!(daemon.log_texts().is_empty());
    for _ in 0..3 {
        for name in names {
            ensure!(lookup(&mut peer, name, "k")?.starts_with("status\\00"));
        }
    }
    let log = daemon.log_texts();
    ensure!(
        log.len() == 1
            && log[0].starts_with("warning: open table limit reached: 2 tables are open, static:")
            && log[0].ends_with(
                " is closed to make room; to raise this limit: postkeep_open_table_limit"
            ),
        "{log:#?}"
    );
    Ok(())
}

/// Makes a table with our own postmap.
fn make(table: &str, configuration: &Path, source: &Path, text: &str) -> Result<()> {
    fs::write(source, text)?;
    fs::File::options()
        .append(true)
        .open(source)?
        .set_modified(SystemTime::now() - Duration::from_secs(10))?;
    let program = postkeep_binary().context("no postkeep executable")?;
    let output = Command::new(program)
        .args(["postmap", table])
        .env("MAIL_CONFIG", configuration)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(())
}

#[test]
fn with_least_privilege_all_tables_can_be_read_and_replaced() -> Result<()> {
    let scratch = Scratch::new("limits")?;
    let root = scratch.path().to_owned();
    for directory in ["tables", "elsewhere", "secret"] {
        scratch.directory(directory, 0o755)?;
    }
    scratch.file("secret/text", "k x\n")?;
    let path = |name: &str| root.join(name).display().to_string();
    let linked = format!("texthash:{}", path("tables/link"));
    let later = format!("texthash:{}", path("tables/later/text"));
    let hash = format!("hash:{}", path("tables/hash"));
    let moved = format!("texthash:{}", path("tables/moved"));
    scratch.file("elsewhere/text", "k x\n")?;
    scratch.file("tables/moved", "k x\n")?;
    symlink(root.join("elsewhere/text"), root.join("tables/link"))?;
    let list = [
        &linked,
        &later,
        &hash,
        &moved,
        "unix:passwd.byname",
        "pipemap:{static:k,static:x}",
    ];
    let list: Vec<String> = list.iter().map(|name| format!("proxy:{name}")).collect();
    let plan = proxymap(&list.join(" ")).parameter("postkeep_least_privilege", "yes");
    let Some(daemon) = plan.start_in(scratch)? else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    ensure!(lookup(&mut peer, "static:x", "k")?.starts_with("status\\04"));
    if daemon
        .log_texts()
        .iter()
        .any(|text| text.contains("not enforced by this kernel"))
    {
        eprintln!("SKIP: {:?}", daemon.log_texts());
        return Ok(());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    ensure!(status.contains("Seccomp:\t2"), "{status}");
    ensure!(lookup(&mut peer, &linked, "k")? == FOUND);
    ensure!(lookup(&mut peer, "pipemap:{static:k,static:x}", "k")? == FOUND);
    ensure!(lookup(&mut peer, "unix:passwd.byname", "root")?.contains("root:"));

    // A table in a directory that did not exist, and one whose file is replaced by another.
    fs::create_dir(root.join("tables/later"))?;
    fs::write(root.join("tables/later/text"), "k x\n")?;
    ensure!(lookup(&mut peer, &later, "k")? == FOUND);
    let configuration = root.join("etc");
    make(&hash, &configuration, &root.join("tables/hash"), "k x\n")?;
    ensure!(lookup(&mut peer, &hash, "k")? == FOUND);
    ensure!(lookup(&mut peer, &moved, "k")? == FOUND);
    fs::write(root.join("tables/new"), "other x\n")?;
    fs::rename(root.join("tables/new"), root.join("tables/moved"))?;
    let deadline = Instant::now() + Duration::from_secs(8);
    while lookup(&mut peer, &moved, "other")? != FOUND {
        ensure!(Instant::now() < deadline, "{:#?}", daemon.log_texts());
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(lookup(&mut peer, &moved, "k")? == NOT_FOUND);

    // A link that leads to where nobody said that there is a table: the old one serves on.
    symlink(root.join("secret/text"), root.join("tables/new"))?;
    fs::rename(root.join("tables/new"), root.join("tables/moved"))?;
    while !daemon
        .log_texts()
        .iter()
        .any(|text| text.contains("Permission denied") && text.contains("stays as it was"))
    {
        ensure!(Instant::now() < deadline, "{:#?}", daemon.log_texts());
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(lookup(&mut peer, &moved, "other")? == FOUND);
    Ok(())
}
