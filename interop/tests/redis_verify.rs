//! Two Postfix instances, each with a lookup table server of its own, share what verify(8) knows through one `redis:` table.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use postkeep_interop::mail::{Sink, recipient_reply};
use postkeep_interop::servers::redis::Redis;
use postkeep_testkit::private_postfix::{Plan, free_port};
use postkeep_testkit::{Implementation, PrivatePostfix, Scratch};

struct Gateway {
    postfix: PrivatePostfix,
    port: u16,
}

impl Gateway {
    /// A gateway for `verified.test` and `refusing.test`, which asks before it takes a recipient.
    ///
    /// - `confined`: its daemons give up all that they do not need
    fn start(table: &str, confined: &str, sink: &Sink, refuser: &Sink) -> Result<Option<Self>> {
        let port = free_port()?;
        let started = Plan::new(Implementation::Postkeep)
            .parameter("relay_domains", "verified.test refusing.test")
            .parameter(
                "transport_maps",
                &format!(
                    "inline:{{ verified.test=smtp:{}, refusing.test=smtp:{} }}",
                    sink.next_hop(),
                    refuser.next_hop()
                ),
            )
            .parameter("address_verify_map", &format!("proxy:{table}"))
            .parameter("address_verify_poll_count", "10")
            .parameter("address_verify_poll_delay", "1s")
            .parameter("postkeep_least_privilege", confined)
            // Twice a day otherwise.
            .parameter("address_verify_cache_cleanup_interval", "2s")
            .service(&format!(
                "127.0.0.1:{port} inet n - n - - smtpd\n  \
                 -o smtpd_recipient_restrictions=reject_unauth_destination,reject_unverified_recipient"
            ))
            .start()?;
        let Some(mut postfix) = started else {
            return Ok(None);
        };
        postfix.wait_for_port(port)?;
        Ok(Some(Self { postfix, port }))
    }

    fn expect(&self, recipient: &str, wanted: &str) -> Result<()> {
        let reply = recipient_reply(self.port, recipient)?;
        ensure!(
            reply.starts_with(wanted),
            "{recipient}: {reply}, not {wanted}"
        );
        Ok(())
    }

    /// Probes that came to an end, one way or the other.
    fn probes(&self) -> usize {
        self.postfix.logged("status=deliverable") + self.postfix.logged("status=undeliverable")
    }

    /// Full cleanups that were done, and how many entries they met.
    fn cleanups(&self) -> Vec<u32> {
        let log = self.postfix.log();
        let counts = log
            .lines()
            .filter_map(|line| line.split_once("full cleanup: retained="))
            .filter_map(|(_, rest)| rest.split(' ').next()?.parse().ok());
        counts.collect()
    }
}

#[test]
fn what_one_has_probed_the_other_knows() -> Result<()> {
    if postkeep_testkit::real_postfix().is_none() {
        return Ok(());
    }
    let Some(redis) = Redis::start(&["--requirepass", "secret"]) else {
        return Ok(());
    };
    let files = Scratch::new("redis-verify")?;
    let table = files.path().join("verify.cf");
    fs::write(
        &table,
        format!(
            "hosts = {}\npassword = secret\nkey_format = verify:%s\nttl = 1d\ncleanup_lease = 1h\n",
            redis.host()
        ),
    )?;
    let table = format!("redis:{}", table.display());
    let sinks = Scratch::new("sinks")?;
    let sink = Sink::start(sinks.path(), &[])?;
    let refuser = Sink::start(sinks.path(), &["-f", "rcpt"])?;
    let Some(mut one) = Gateway::start(&table, "no", &sink, &refuser)? else {
        return Ok(());
    };
    let Some(mut other) = Gateway::start(&table, "yes", &sink, &refuser)? else {
        return Ok(());
    };

    one.expect("good@verified.test", "250 ")?;
    one.expect("bad@refusing.test", "450 ")?;
    ensure!(one.probes() == 2, "{} probes, not two", one.probes());
    other.expect("good@verified.test", "250 ")?;
    other.expect("bad@refusing.test", "450 ")?;
    ensure!(other.probes() == 0, "the other one probed, too");
    // And the other way round.
    other.expect("second@verified.test", "250 ")?;
    ensure!(other.probes() == 1, "{} probes, not one", other.probes());
    one.expect("second@verified.test", "250 ")?;
    ensure!(one.probes() == 2, "probed again");

    let ask = |words: &[&[u8]]| {
        let words = [&[&b"-a"[..], b"secret", b"--no-auth-warning"], words].concat();
        redis.command(&words)
    };
    let stored = ask(&[b"GET", b"verify:good@verified.test"]);
    ensure!(stored.starts_with("0:0:"), "stored: {stored}");
    let left: i64 = ask(&[b"TTL", b"verify:good@verified.test"]).parse()?;
    ensure!((86_000..=86_400).contains(&left), "ends in {left} s");

    // Both clean up again and again; only one of them sees any entries.
    let patience = Duration::from_secs(20);
    for gateway in [&mut one, &mut other] {
        gateway.postfix.wait_for("a cleanup", patience, |postfix| {
            Ok(postfix.logged("full cleanup: retained=") >= 3)
        })?;
    }
    let cleaners = [&one, &other].map(|gateway| gateway.cleanups().iter().any(|&count| count > 0));
    ensure!(
        cleaners.iter().filter(|&&met| met).count() == 1,
        "{:?} {:?}",
        one.cleanups(),
        other.cleanups()
    );
    let completed = ask(&[b"EXISTS", b"verify:_LAST_CACHE_CLEANUP_COMPLETED_"]);
    ensure!(completed == "1", "no time of the last cleanup");

    // A server that is away makes nobody wait for long, and nothing is refused for good.
    let mut redis = redis;
    redis.process.kill();
    let reply = recipient_reply(one.port, "good@verified.test")?;
    ensure!(
        reply.starts_with("250 ") || reply.starts_with("450 "),
        "{reply}"
    );
    redis.restart();
    one.expect("good@verified.test", "250 ")?;
    Ok(())
}
