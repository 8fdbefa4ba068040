//! Clients of several Postfix generations, replayed byte for byte against one and the same server: those that
//! wait to be greeted and those that must not be, those that send `flags` and those that send
//! `instance_flags`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_testkit::attributes::{list, show};
use postkeep_testkit::peer::{PATIENCE, session};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Peer, Scratch, StandIn, vectors};
use serde_json::Value;

const SERVICES: [&str; 3] = ["proxymap", "proxywrite", "scache"];

fn conversations(service: &str) -> Result<Vec<Value>> {
    let file = vectors::json("conversations/clients.json");
    let all = file["conversations"]
        .as_array()
        .context("no conversations")?;
    let chosen: Vec<Value> = all
        .iter()
        .filter(|conversation| conversation["service"] == service)
        .cloned()
        .collect();
    ensure!(!chosen.is_empty(), "no conversations for {service}");
    Ok(chosen)
}

fn start(implementation: Implementation, service: &str) -> Result<Option<StandIn>> {
    let scratch = Scratch::new("generations")?;
    scratch.directory("tables", 0o755)?;
    scratch.file("tables/t1", "k1 v1\n")?;
    Plan::new(implementation, service)
        .parameter("proxy_read_maps", "proxy:texthash:$SCRATCH/tables/t1")
        .parameter("proxy_write_maps", "proxy:lmdb:$SCRATCH/data/w1")
        .parameter("connection_cache_ttl_limit", "15s")
        .parameter("postkeep_announce_protocol", "detect")
        .start_in(scratch)
}

/// Turns a vector's text into bytes.
fn bytes(text: &str, daemon: &StandIn) -> Result<Vec<u8>> {
    let root = daemon.scratch().display().to_string();
    let text = text
        .replace("$TABLE", &format!("{root}/tables/t1"))
        .replace("$WRITABLE", &format!("{root}/data/w1"));
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'0') => 0,
                Some(b'n') => b'\n',
                other => bail!("unknown escape {other:?} in {text}"),
            },
            other => other,
        });
    }
    Ok(bytes)
}

fn field<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("no text {name} in {value}"))
}

/// Opens the connection as the conversation's client does.
fn connect(daemon: &StandIn, conversation: &Value) -> Result<Peer> {
    let mut peer = daemon.connect()?;
    if conversation["speaks_first"] == false {
        let protocol = match field(conversation, "service")? {
            "scache" => "connection_cache_protocol",
            _ => "proxymap_protocol",
        };
        let greeting = peer.read_list().context("greeting")?;
        ensure!(
            greeting == list(&[("protocol", protocol)]),
            "greeted with {}",
            show(&greeting)
        );
    }
    Ok(peer)
}

fn replay(daemon: &StandIn, peer: &mut Peer, conversation: &Value) -> Result<()> {
    let mut ends: BTreeMap<String, UnixStream> = BTreeMap::new();
    for step in conversation["steps"].as_array().context("no steps")? {
        if step["send"].is_string() {
            peer.send(&bytes(field(step, "send")?, daemon)?)?;
        } else if step["reply"].is_string() {
            let wanted = bytes(field(step, "reply")?, daemon)?;
            let got = peer
                .read_list()
                .with_context(|| format!("instead of {}", show(&wanted)))?;
            ensure!(got == wanted, "got {}, not {}", show(&got), show(&wanted));
        } else if step["send_descriptor"].is_string() {
            let (kept, passed) = session()?;
            kept.set_read_timeout(Some(PATIENCE))?;
            peer.send_with(b"\0", &[passed.as_fd()])?;
            ends.insert(field(step, "send_descriptor")?.to_owned(), kept);
        } else {
            let name = field(step, "reply_descriptor")?;
            let descriptor = peer.read_descriptor()?;
            // It is the one that was saved, and still open.
            let mut other: &UnixStream = ends.get(name).context("not saved before")?;
            UnixStream::from(descriptor).write_all(name.as_bytes())?;
            let mut text = vec![0; name.len()];
            other.read_exact(&mut text)?;
            ensure!(text == name.as_bytes(), "another session came back");
        }
    }
    Ok(())
}

fn named(conversation: &Value) -> String {
    format!("{}: {}", conversation["service"], conversation["name"])
}

#[test]
fn control() -> Result<()> {
    for service in SERVICES {
        let Some(daemon) = start(Implementation::Postfix, service)? else {
            return Ok(());
        };
        for conversation in conversations(service)? {
            if conversation["control"] == true {
                let mut peer = connect(&daemon, &conversation)?;
                replay(&daemon, &mut peer, &conversation).with_context(|| named(&conversation))?;
            }
        }
    }
    Ok(())
}

#[test]
fn every_generation_is_served_by_one_server() -> Result<()> {
    for service in SERVICES {
        let Some(daemon) = start(Implementation::Postkeep, service)? else {
            return Ok(());
        };
        // Twice, the second time in the other order: no conversation may leave a trace for the next.
        let mut all = conversations(service)?;
        for _ in 0..2 {
            for conversation in &all {
                let mut peer = connect(&daemon, conversation)?;
                replay(&daemon, &mut peer, conversation).with_context(|| named(conversation))?;
            }
            all.reverse();
        }
        println!("{service}: {} conversations, twice", all.len());
    }
    Ok(())
}

#[test]
fn generations_alternate_on_one_connection() -> Result<()> {
    for service in SERVICES {
        let Some(daemon) = start(Implementation::Postkeep, service)? else {
            return Ok(());
        };
        for speaks_first in [false, true] {
            let mut all = conversations(service)?;
            all.sort_by_key(|conversation| conversation["speaks_first"] == !speaks_first);
            let mut peer = connect(&daemon, &all[0])?;
            for conversation in &all {
                replay(&daemon, &mut peer, conversation).with_context(|| named(conversation))?;
            }
        }
    }
    Ok(())
}

#[test]
fn generations_are_served_side_by_side() -> Result<()> {
    for service in ["proxymap", "scache"] {
        let Some(daemon) = start(Implementation::Postkeep, service)? else {
            return Ok(());
        };
        let all = conversations(service)?;
        let mut peers = Vec::new();
        for conversation in &all {
            peers.push(connect(&daemon, conversation)?);
        }
        for (peer, conversation) in peers.iter_mut().zip(&all).rev() {
            if conversation["speaks_first"] == false {
                replay(&daemon, peer, conversation).with_context(|| named(conversation))?;
            }
        }
    }
    Ok(())
}
