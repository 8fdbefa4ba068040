//! `postkeep shadow` between clients, Postfix's own proxymap, and ours: it finds no difference on the vectors, it finds a
//! planted one, and clients get the reference's answers in any case.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::lookup;
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::Peer;
use postkeep_testkit::private_postfix;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, postkeep_binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

struct Shadow {
    child: Option<Child>,
    socket: PathBuf,
}

impl Shadow {
    fn start(place: &Path, reference: &Path, candidate: &Path) -> Result<Option<Self>> {
        let Some(postkeep) = postkeep_binary() else {
            return Ok(None);
        };
        let socket = place.join("shadow");
        let child = Command::new(postkeep)
            .args(["shadow", "--json", "--listen"])
            .arg(&socket)
            .arg("--reference")
            .arg(reference)
            .arg("--candidate")
            .arg(candidate)
            .stdout(Stdio::piped())
            .spawn()?;
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&socket).is_err() {
            ensure!(Instant::now() < deadline, "it makes no socket");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(Self {
            child: Some(child),
            socket,
        }))
    }

    fn connect_and_greet(&self) -> Result<Peer> {
        let mut peer = Peer::connect(&self.socket)?;
        peer.read_list()?;
        Ok(peer)
    }

    /// Ends it as control-C does: its exit status, differences, and counts.
    fn end(&mut self) -> Result<(Option<i32>, Vec<Value>, Value)> {
        let child = self.child.take().context("it has ended")?;
        kill_process(Pid::from_child(&child), Signal::INT)?;
        let output = child.wait_with_output()?;
        let mut lines = String::from_utf8(output.stdout)?
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect::<Result<Vec<Value>>>()?;
        let counts = lines.pop().context("it says nothing")?;
        ensure!(!self.socket.exists());
        Ok((output.status.code(), lines, counts))
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The lookups of the vectors in tables that are files: tables and keys.
fn lookups(place: &Path) -> Result<Vec<(String, String)>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors/local/cases.json");
    let vectors: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let mut found = Vec::new();
    for (number, case) in vectors["cases"]
        .as_array()
        .context("no cases")?
        .iter()
        .enumerate()
    {
        let directory = place.join(format!("case{number}"));
        fs::create_dir_all(&directory)?;
        for (name, content) in case["files"].as_object().into_iter().flatten() {
            if let Some(text) = content.as_str()
                && !name.contains('/')
            {
                fs::write(directory.join(name), text)?;
            }
        }
        for step in case["steps"].as_array().into_iter().flatten() {
            let words: Vec<&str> = step["cmd"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let ["postmap", "-q", key, table] = words[..] else {
                continue;
            };
            let Some((kind, name)) = table.split_once(':') else {
                continue;
            };
            let plain = name
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || "._-".contains(character));
            let is_file = ["cidr", "regexp", "pcre", "texthash"].contains(&kind);
            if !plain || !is_file || !directory.join(name).exists() {
                continue;
            }
            let table = format!("{kind}:{}", directory.join(name).display());
            let keys = match key {
                "-" => step["stdin"].as_str().unwrap_or_default(),
                key => key,
            };
            for key in keys.lines().filter(|key| !key.is_empty()) {
                found.push((table.clone(), key.to_owned()));
            }
        }
    }
    ensure!(found.len() >= 80, "{}", found.len());
    Ok(found)
}

fn proxymap(implementation: Implementation, approved: &str) -> Plan {
    Plan::new(implementation, "proxymap").parameter("proxy_read_maps", approved)
}

#[test]
fn the_vectors_show_no_difference() -> Result<()> {
    let place = Scratch::new("shadow")?;
    let lookups = lookups(place.path())?;
    let tables: BTreeSet<String> = lookups
        .iter()
        .map(|(table, _)| format!("proxy:{table}"))
        .collect();
    let approved = tables.into_iter().collect::<Vec<_>>().join(" ");
    let (Some(reference), Some(candidate)) = (
        proxymap(Implementation::Postfix, &approved).start()?,
        proxymap(Implementation::Postkeep, &approved).start()?,
    ) else {
        return Ok(());
    };
    let Some(mut shadow) = Shadow::start(place.path(), &reference.socket(), &candidate.socket())?
    else {
        return Ok(());
    };
    let mut through = shadow.connect_and_greet()?;
    let mut direct = reference.connect_and_greet()?;
    for (table, key) in &lookups {
        // With the flag of postmap that a key may be there twice; what comes of that without it is meant to differ.
        let request = list(&[
            ("request", "lookup"),
            ("table", table),
            ("flags", "1"),
            ("key", key),
        ]);
        ensure!(
            through.exchange(&request)? == direct.exchange(&request)?,
            "{table} {key}"
        );
    }
    let (status, differences, counts) = shadow.end()?;
    ensure!(differences.is_empty(), "{differences:#?}");
    ensure!(status == Some(0), "{counts}");
    ensure!(
        counts["same"] == lookups.len() && counts["not_compared"] == 0,
        "{counts}"
    );
    Ok(())
}

#[test]
fn a_planted_difference_is_found_and_clients_do_not_see_it() -> Result<()> {
    let place = Scratch::new("shadow")?;
    let plan = |implementation, more: &str| {
        proxymap(implementation, &format!("proxy:static:same {more}")).start()
    };
    let (Some(reference), Some(candidate)) = (
        plan(Implementation::Postfix, "proxy:static:planted")?,
        plan(Implementation::Postkeep, "")?,
    ) else {
        return Ok(());
    };
    let Some(mut shadow) = Shadow::start(place.path(), &reference.socket(), &candidate.socket())?
    else {
        return Ok(());
    };
    let mut client = shadow.connect_and_greet()?;
    for _ in 0..3 {
        ensure!(lookup(&mut client, "static:planted", "who@example.com")?.contains("planted"));
        ensure!(lookup(&mut client, "static:same", "k")?.contains("same"));
    }
    let (status, differences, counts) = shadow.end()?;
    ensure!(status == Some(1), "{counts}");
    ensure!(
        counts["different"] == 3 && counts["same"] == 3 && differences.len() == 3,
        "{counts}"
    );
    let difference = &differences[0];
    ensure!(
        difference["table"] == "static:planted"
            && difference["key"] == "who@example.com"
            && difference["reference"]["value"] == "planted"
            && difference["candidate"]["status"] == "4",
        "{difference}"
    );
    Ok(())
}

#[test]
fn a_candidate_that_is_not_there_or_gone_disturbs_nobody() -> Result<()> {
    let place = Scratch::new("shadow")?;
    let Some(reference) = proxymap(Implementation::Postfix, "proxy:static:x").start()? else {
        return Ok(());
    };
    let nobody = place.path().join("nobody");
    let Some(mut shadow) = Shadow::start(place.path(), &reference.socket(), &nobody)? else {
        return Ok(());
    };
    let mut client = shadow.connect_and_greet()?;
    for _ in 0..5 {
        ensure!(lookup(&mut client, "static:x", "k")?.contains('x'));
    }
    // What is no request is the reference's business, too.
    let mut odd = shadow.connect_and_greet()?;
    odd.send(&[b"x".repeat(50), vec![0; 3]].concat())?;
    let _ = odd.drain(Duration::from_millis(100));
    ensure!(lookup(&mut client, "static:x", "k")?.contains('x'));
    let (status, _, counts) = shadow.end()?;
    ensure!(status == Some(0), "{counts}");
    ensure!(counts["same"] == 0 && counts["different"] == 0, "{counts}");
    ensure!(
        counts["not_compared"]
            .as_u64()
            .is_some_and(|count| count >= 6),
        "{counts}"
    );
    Ok(())
}

/// What postkeep-shadow(1) shows: a candidate in master.cf, clients sent to another socket, and back.
#[test]
fn a_running_postfix_is_looked_at() -> Result<()> {
    let Some(postkeep) = postkeep_binary() else {
        return Ok(());
    };
    let place = Scratch::new("shadow")?;
    let link = place.path().join("proxymap");
    fs::copy(&postkeep, place.path().join("postkeep"))?;
    std::os::unix::fs::symlink(place.path().join("postkeep"), &link)?;
    let plan = private_postfix::Plan::new(Implementation::Postfix)
        .table("users", "key value\n")
        .service(&format!(
            "candidate unix - - n - 1 ../../../..{} -n proxymap",
            link.display()
        ))
        .parameter("proxy_read_maps", "proxy:texthash:$SCRATCH/tables/users");
    let Some(postfix) = plan.start()? else {
        return Ok(());
    };
    let table = format!("proxy:texthash:{}", postfix.table("users").display());
    // A process that a reload ends may have taken the connection already.
    let find = || -> Result<bool> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let output = postfix.command("postmap", &["-q", "key", &table])?;
            if output.stdout == b"value\n" {
                return Ok(true);
            }
            ensure!(Instant::now() < deadline, "{output:?}");
        }
    };
    let private = postfix.scratch().join("queue/private");
    let Some(mut shadow) = Shadow::start(
        &private,
        &private.join("proxymap"),
        &private.join("candidate"),
    )?
    else {
        return Ok(());
    };
    postfix.command("postconf", &["-e", "proxymap_service_name=shadow"])?;
    postfix.reload()?;
    for _ in 0..5 {
        ensure!(find()?);
    }
    postfix.command("postconf", &["-X", "proxymap_service_name"])?;
    postfix.reload()?;
    ensure!(find()?);
    let (status, differences, counts) = shadow.end()?;
    ensure!(
        status == Some(0) && differences.is_empty(),
        "{differences:#?}"
    );
    // Each asks to open the table, and for the key.
    ensure!(
        counts["same"].as_u64().is_some_and(|count| count >= 10),
        "{counts} {}",
        postfix.log()
    );
    Ok(())
}
