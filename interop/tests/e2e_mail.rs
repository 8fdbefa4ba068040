//! Mail through a private real Postfix whose connection cache and lookup table server are Postfix's own (the
//! control) or ours: every scenario is one function that runs with both.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::mail::{Sink, Source, connections_to, recipient_reply};
use postkeep_testkit::private_postfix::{Plan, free_port};
use postkeep_testkit::{Implementation, PrivatePostfix, Scratch};

const MESSAGES: u32 = 1000;
const SESSIONS: u32 = 10;

/// A relay for `sink.test` behind proxied tables, and what it delivers to.
struct Relay {
    postfix: PrivatePostfix,
    /// Takes everything.
    sink: Sink,
    /// Refuses every recipient.
    refuser: Sink,
    port: u16,
    verifying_port: u16,
    _sinks: Scratch,
}

fn relay(implementation: Implementation) -> Result<Option<Relay>> {
    if postkeep_testkit::real_postfix().is_none() {
        return Ok(None);
    }
    let sinks = Scratch::new("sinks")?;
    let sink = Sink::start(sinks.path(), &[])?;
    let refuser = Sink::start(sinks.path(), &["-f", "rcpt"])?;
    let port = free_port()?;
    let verifying_port = free_port()?;
    let started = Plan::new(implementation)
        .table(
            "domains",
            "sink.test relay\nrefusing.test relay\nverified.test relay\n",
        )
        .indexed_table(
            "lmdb",
            "recipients",
            "user@sink.test ok\nlisted@sink.test ok\n@refusing.test ok\n@verified.test ok\n",
        )
        .parameter("relay_domains", "proxy:texthash:$SCRATCH/tables/domains")
        .parameter("relay_recipient_maps", "proxy:lmdb:$SCRATCH/tables/recipients")
        .parameter(
            "transport_maps",
            &format!(
                "proxy:inline:{{ sink.test=smtp:{0}, verified.test=smtp:{0}, refusing.test=smtp:{1} }}",
                sink.next_hop(),
                refuser.next_hop()
            ),
        )
        .parameter(
            "smtpd_recipient_restrictions",
            "check_recipient_access proxy:inline:{ {banned@sink.test=550 5.7.1 banned by table} }, \
             reject_unauth_destination, reject_unlisted_recipient",
        )
        .parameter("smtp_connection_cache_destinations", "127.0.0.1")
        .parameter("smtp_connection_cache_time_limit", "3s")
        .parameter("connection_cache_ttl_limit", "3s")
        .parameter("queue_run_delay", "1s")
        .parameter("minimal_backoff_time", "1s")
        .parameter("maximal_backoff_time", "2s")
        .parameter("address_verify_map", "proxy:lmdb:$SCRATCH/data/verified")
        .parameter("address_verify_poll_count", "10")
        .parameter("address_verify_poll_delay", "1s")
        .service(&format!("127.0.0.1:{port} inet n - n - - smtpd"))
        .service(&format!(
            "127.0.0.1:{verifying_port} inet n - n - - smtpd\n  \
             -o smtpd_recipient_restrictions=reject_unauth_destination,reject_unverified_recipient"
        ))
        .start()?;
    let Some(mut postfix) = started else {
        return Ok(None);
    };
    postfix.wait_for_port(port)?;
    postfix.wait_for_port(verifying_port)?;
    Ok(Some(Relay {
        postfix,
        sink,
        refuser,
        port,
        verifying_port,
        _sinks: sinks,
    }))
}

impl Relay {
    /// Sends the messages while `meanwhile` runs, waits until the queue is empty, and holds the outcome to
    /// "every message was delivered".
    fn deliver(
        &mut self,
        what: &str,
        meanwhile: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let before = self.sink.count();
        let source = Source::start(self.port, MESSAGES, SESSIONS, "user@sink.test")?;
        meanwhile(self)?;
        source.finish(Duration::from_mins(2))?;
        let wanted = before.messages + u64::from(MESSAGES);
        let Self { postfix, sink, .. } = self;
        postfix.wait_for("every message at the sink", Duration::from_mins(2), |_| {
            Ok(sink.count().messages >= wanted)
        })?;
        postfix.wait_for("an empty queue", Duration::from_secs(30), |postfix| {
            Ok(postfix.undelivered()?.is_empty())
        })?;
        postfix.wait_for(
            "the cached connections to expire",
            Duration::from_secs(10),
            |_| Ok(connections_to(sink.port)? == 0),
        )?;
        let after = sink.count();
        let reused = postfix.logged("conn_use=");
        println!(
            "{what}: {} messages, {} connections at the sink, {reused} deliveries logged with conn_use=",
            after.messages - before.messages,
            after.sessions - before.sessions,
        );
        ensure!(
            after.messages == wanted,
            "{} messages, not {wanted}",
            after.messages
        );
        let sent = postfix.logged("status=sent");
        ensure!(
            sent == MESSAGES as usize,
            "{sent} deliveries logged, not {MESSAGES}"
        );
        ensure!(
            (1..u64::from(MESSAGES) / 4).contains(&(after.sessions - before.sessions)),
            "connections were not reused"
        );
        Ok(())
    }

    fn wait_until_sunk(&mut self, count: u64) -> Result<()> {
        let Self { postfix, sink, .. } = self;
        postfix.wait_for("messages at the sink", Duration::from_mins(1), |_| {
            Ok(sink.count().messages >= count)
        })
    }
}

fn connections_are_reused(implementation: Implementation) -> Result<()> {
    let Some(mut relay) = relay(implementation)? else {
        return Ok(());
    };
    relay.deliver(&format!("{implementation:?}, 1000 messages"), |_| Ok(()))?;
    let reused = relay.postfix.logged("conn_use=");
    ensure!(
        reused * 2 > MESSAGES as usize,
        "only {reused} deliveries over a cached connection"
    );
    Ok(())
}

fn recipients_through_proxied_tables(implementation: Implementation) -> Result<()> {
    let Some(relay) = relay(implementation)? else {
        return Ok(());
    };
    for (recipient, wanted) in [
        ("user@sink.test", "250 "),
        ("listed@sink.test", "250 "),
        ("LISTED@Sink.Test", "250 "),
        ("nobody@sink.test", "550 5.1.1"),
        ("banned@sink.test", "550 5.7.1"),
        ("anyone@refusing.test", "250 "),
        ("anyone@elsewhere.test", "554 5.7.1"),
    ] {
        let reply = recipient_reply(relay.port, recipient)?;
        println!("{implementation:?}: {recipient}: {reply}");
        ensure!(
            reply.starts_with(wanted),
            "{recipient}: {reply}, not {wanted}"
        );
    }
    Ok(())
}

fn verification_results_are_stored_and_found(implementation: Implementation) -> Result<()> {
    let Some(mut relay) = relay(implementation)? else {
        return Ok(());
    };
    let port = relay.verifying_port;
    for (recipient, wanted) in [
        ("good@verified.test", "250 "),
        ("bad@refusing.test", "450 "),
    ] {
        let reply = recipient_reply(port, recipient)?;
        println!("{implementation:?}: {recipient}: {reply}");
        ensure!(
            reply.starts_with(wanted),
            "{recipient}: {reply}, not {wanted}"
        );
    }
    let probes = |relay: &Relay| relay.postfix.logged("dsn=2.1.5, status=deliverable");
    let after_first = probes(&relay);
    ensure!(after_first == 1, "{after_first} probes, not one");

    // A new verify(8) knows only what the table says.
    ensure!(relay.postfix.kill("verify") == 1, "verify was not running");
    let reply = recipient_reply(port, "good@verified.test")?;
    ensure!(reply.starts_with("250 "), "found: {reply}");
    ensure!(
        probes(&relay) == after_first,
        "the address was probed again"
    );

    // And the server of the table keeps it across its own death.
    let writers = relay
        .postfix
        .processes("proxymap")
        .iter()
        .filter(|(_, arguments)| arguments.iter().any(|argument| argument == "proxywrite"))
        .count();
    ensure!(writers == 1, "{writers} proxywrite processes, not one");
    relay.postfix.kill("proxymap");
    ensure!(relay.postfix.kill("verify") == 1, "verify was not running");
    let reply = recipient_reply(port, "good@verified.test")?;
    ensure!(reply.starts_with("250 "), "found after a crash: {reply}");
    ensure!(
        probes(&relay) == after_first,
        "the address was probed again after a crash"
    );

    relay.postfix.wait_for(
        "the table to be readable",
        Duration::from_secs(5),
        |postfix| {
            let name = format!("lmdb:{}/data/verified", postfix.scratch().display());
            let stored = postfix.command("postmap", &["-q", "good@verified.test", &name])?;
            let stored = String::from_utf8_lossy(&stored.stdout).into_owned();
            Ok(stored.starts_with("0:0:"))
        },
    )?;
    let _ = relay.refuser.count();
    Ok(())
}

fn reload_under_load(implementation: Implementation) -> Result<()> {
    let Some(mut relay) = relay(implementation)? else {
        return Ok(());
    };
    relay.deliver(
        &format!("{implementation:?}, reloaded under load"),
        |relay| {
            for count in [200, 500] {
                relay.wait_until_sunk(count)?;
                relay.postfix.reload()?;
            }
            Ok(())
        },
    )?;
    ensure!(
        relay.postfix.logged("reload -- version") == 2,
        "not reloaded twice"
    );
    Ok(())
}

fn crashes_under_load(implementation: Implementation) -> Result<()> {
    let Some(mut relay) = relay(implementation)? else {
        return Ok(());
    };
    let mut killed = [0, 0];
    relay.deliver(
        &format!("{implementation:?}, daemons killed under load"),
        |relay| {
            for count in [150, 300, 450] {
                relay.wait_until_sunk(count)?;
                let caches = relay.postfix.kill("scache");
                thread::sleep(Duration::from_millis(200));
                let servers = relay.postfix.kill("proxymap");
                println!("{implementation:?}: killed {caches} scache, {servers} proxymap");
                killed[0] += usize::from(caches > 0);
                killed[1] += usize::from(servers > 0);
            }
            Ok(())
        },
    )?;
    // A kill may meet nobody: the last one's successor is started when a client comes.
    ensure!(
        killed.iter().all(|&times| times >= 2),
        "kills that met a process: {killed:?}"
    );
    relay
        .postfix
        .log()
        .lines()
        .find(|line| line.contains("killed by signal 9"))
        .context("master did not notice a kill")?;
    Ok(())
}

/// One instance at a time: each loads the machine, and looks for free ports.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(scenario: fn(Implementation) -> Result<()>, implementation: Implementation) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    scenario(implementation)
}

macro_rules! with_both {
    ($($scenario:ident),+ $(,)?) => {
        mod control {
            $(
                #[test]
                fn $scenario() -> anyhow::Result<()> {
                    super::alone(super::$scenario, postkeep_testkit::Implementation::Postfix)
                }
            )+
        }
        mod postkeep {
            $(
                #[test]
                fn $scenario() -> anyhow::Result<()> {
                    super::alone(super::$scenario, postkeep_testkit::Implementation::Postkeep)
                }
            )+
        }
    };
}

with_both!(
    connections_are_reused,
    recipients_through_proxied_tables,
    verification_results_are_stored_and_found,
    reload_under_load,
    crashes_under_load,
);
