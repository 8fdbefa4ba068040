//! The example anvil(8) of the skeleton beside Postfix's own: the same conversations, and the same limits under a real
//! smtpd(8).

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::attributes::show;
use postkeep_testkit::private_postfix::{self, free_port};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{
    Implementation, Peer, PrivatePostfix, StandIn, example_binary, real_postfix,
};

const PATIENCE: Duration = Duration::from_secs(5);
const IMPLEMENTATIONS: [Implementation; 2] = [Implementation::Postfix, Implementation::Postkeep];

/// The executable; `None`, after saying so, when something is missing.
fn executable(implementation: Implementation) -> Option<PathBuf> {
    let real = real_postfix()?;
    match implementation {
        Implementation::Postfix => Some(real.daemon_directory.join("anvil")),
        Implementation::Postkeep => example_binary("anvil"),
    }
}

fn start(implementation: Implementation, parameters: &[(&str, &str)]) -> Result<Option<StandIn>> {
    let Some(executable) = executable(implementation) else {
        return Ok(None);
    };
    let mut plan = Plan::new(implementation, "anvil").executable(&executable);
    for (name, value) in parameters {
        plan = plan.parameter(name, value);
    }
    plan.start()
}

/// Connects; the greeting is taken and checked.
fn connect(daemon: &StandIn) -> Result<Peer> {
    let mut peer = daemon.connect()?;
    let greeting = peer.drain_until(b"\n\n", PATIENCE).bytes;
    ensure!(
        greeting == b"protocol=anvil_protocol\n\n",
        "{}",
        show(&greeting)
    );
    Ok(peer)
}

fn ask(peer: &mut Peer, request: &str, ident: &str) -> Result<String> {
    peer.send(format!("request={request}\nident={ident}\n\n").as_bytes())?;
    let reply = show(&peer.drain_until(b"\n\n", PATIENCE).bytes);
    Ok(format!("{request} {ident}: {reply}"))
}

/// Asks until the connections of `ident` are `count`: that a connection has ended is heard of in its own time.
fn settle(peer: &mut Peer, ident: &str, count: u32) -> Result<String> {
    for _ in 0..100 {
        let reply = ask(peer, "lookup", ident)?;
        if reply.contains(&format!("\\ncount={count}\\n")) {
            return Ok(reply);
        }
        thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("{ident} never had {count} connections");
}

/// A log line without the time of day, which must be there where it belongs.
fn timeless(line: &str) -> String {
    let Some((text, time)) = line.rsplit_once(" at ") else {
        return line.to_owned();
    };
    let shape: String = time
        .chars()
        .map(|character| {
            if character.is_ascii_digit() {
                '9'
            } else {
                character
            }
        })
        .collect();
    let is_time = shape.len() == 15 && shape.ends_with(" 99:99:99");
    if line.starts_with("statistics:") && is_time {
        format!("{text} at TIME")
    } else {
        line.to_owned()
    }
}

/// Ends the daemon as a reload does; everything it has logged.
fn end(mut daemon: StandIn) -> Result<Vec<String>> {
    let status = daemon.disconnect()?;
    ensure!(status.success(), "{status}");
    Ok(daemon
        .log_texts()
        .iter()
        .map(|line| timeless(line))
        .collect())
}

/// Runs a conversation with both; what they say and log must be equal. Returns it; empty when something is missing.
fn both(
    parameters: &[(&str, &str)],
    converse: impl Fn(&StandIn) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for implementation in IMPLEMENTATIONS {
        let Some(daemon) = start(implementation, parameters)? else {
            return Ok(Vec::new());
        };
        let mut lines = converse(&daemon).with_context(|| format!("{implementation:?}"))?;
        lines.extend(end(daemon).with_context(|| format!("{implementation:?}"))?);
        said.push(lines);
    }
    let (theirs, ours) = (&said[0], &said[1]);
    ensure!(theirs == ours, "theirs {theirs:#?}\nours {ours:#?}");
    Ok(said.swap_remove(1))
}

#[test]
fn requests_and_replies() -> Result<()> {
    let said = both(&[], |daemon| {
        let mut said = Vec::new();
        let mut one = connect(daemon)?;
        let mut two = connect(daemon)?;
        for (peer, request, ident) in [
            (1, "lookup", "smtp:192.0.2.1"),
            (1, "newtls_status", "smtp:192.0.2.1"),
            (1, "connect", "smtp:192.0.2.1"),
            (2, "connect", "smtp:192.0.2.1"),
            (2, "connect", "smtp:192.0.2.1"),
            (1, "message", "smtp:192.0.2.1"),
            (1, "recipient", "smtp:192.0.2.1"),
            (1, "recipient", "smtp:192.0.2.1"),
            (2, "newtls", "smtp:192.0.2.1"),
            (2, "newtls_status", "smtp:192.0.2.1"),
            (1, "auth", "smtp:192.0.2.1"),
            (1, "tlstr", "smtp:192.0.2.1"),
            (1, "lookup", "smtp:192.0.2.1"),
            (1, "disconnect", "smtp:192.0.2.1"),
            (1, "disconnect", "smtp:192.0.2.1"),
            (1, "disconnect", "of nobody"),
            (1, "message", "only seen now"),
            (2, "connect", "another"),
            (1, "lookup", "smtp:192.0.2.1"),
            (1, "lookup", "only seen now"),
            (1, "connect", ""),
            (1, "connect", "gr\u{fc}n = odd"),
            (1, "Connect", "x"),
            (1, "", "x"),
        ] {
            let peer = if peer == 1 { &mut one } else { &mut two };
            said.push(ask(peer, request, ident)?);
        }
        drop(two);
        said.push(settle(&mut one, "another", 0)?);
        Ok(said)
    })?;
    if !said.is_empty() {
        // Both could be silent.
        let expected = "statistics: max connection rate 3/60s for (smtp:192.0.2.1) at TIME";
        ensure!(said.iter().any(|line| line == expected), "{said:#?}");
        ensure!(
            said.iter()
                .any(|line| line.ends_with("count=2\\nrate=2\\n\\n"))
        );
        ensure!(
            said.iter()
                .any(|line| line == "warning: unrecognized request: \"Connect\", ignored")
        );
    }
    Ok(())
}

#[test]
fn malformed_requests() -> Result<()> {
    both(&[], |daemon| {
        let mut said = Vec::new();
        for connected in [false, true] {
            for bytes in [
                "ident=x\nrequest=connect\n\n",
                "request=connect\n\n",
                "request=connect\nident=x\nmore=1\n\n",
                "request=connect\nbroken\n\n",
                "\n",
                "request=connect\nident=x\nident=y\n\n",
                "=connect\nident=x\n\n",
            ] {
                let mut peer = connect(daemon)?;
                if connected {
                    ask(&mut peer, "connect", "present")?;
                }
                peer.send(bytes.as_bytes())?;
                let received = peer.drain(Duration::from_millis(100));
                said.push(format!(
                    "{}: {} closed={}",
                    show(bytes.as_bytes()),
                    show(&received.bytes),
                    received.closed
                ));
            }
        }
        for bytes in ["request=connect\nident=x", "request", "request=connect\n"] {
            let mut peer = connect(daemon)?;
            peer.send(bytes.as_bytes())?;
            peer.finish_sending();
            said.push(show(&peer.drain_to_end().bytes));
        }
        let mut witness = connect(daemon)?;
        said.push(settle(&mut witness, "present", 0)?);
        said.push(settle(&mut witness, "x", 0)?);
        Ok(said)
    })?;
    Ok(())
}

#[test]
fn random_conversations() -> Result<()> {
    const REQUESTS: [&str; 8] = [
        "connect",
        "connect",
        "disconnect",
        "message",
        "recipient",
        "newtls",
        "auth",
        "lookup",
    ];
    both(&[], |daemon| {
        let mut seed = 0x5eed_u64;
        let mut pick = |count: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap_or(0) % count
        };
        let mut peers = Vec::new();
        for _ in 0..5 {
            peers.push(connect(daemon)?);
        }
        (0..600)
            .map(|_| {
                let (peer, request, ident) = (pick(5), pick(REQUESTS.len()), pick(3));
                ask(
                    &mut peers[peer],
                    REQUESTS[request],
                    &format!("smtp:{ident}"),
                )
            })
            .collect()
    })?;
    Ok(())
}

#[test]
fn rates_end_and_peaks_are_told_in_time() -> Result<()> {
    let parameters = [
        ("anvil_rate_time_unit", "1s"),
        ("anvil_status_update_time", "1s"),
    ];
    let mut said = Vec::new();
    for implementation in IMPLEMENTATIONS {
        let Some(daemon) = start(implementation, &parameters)? else {
            return Ok(());
        };
        let mut peer = connect(&daemon)?;
        let mut lines = vec![ask(&mut peer, "connect", "a")?];
        thread::sleep(Duration::from_millis(2100));
        lines.push(ask(&mut peer, "lookup", "a")?);
        lines.push(ask(&mut peer, "message", "a")?);
        lines.push(ask(&mut peer, "disconnect", "a")?);
        let told: BTreeSet<String> = daemon.log_texts().iter().map(|l| timeless(l)).collect();
        lines.extend(told);
        thread::sleep(Duration::from_millis(2100));
        // Forgotten: known, it would have a second connection in the same unit now.
        lines.push(ask(&mut peer, "message", "a")?);
        lines.push(ask(&mut peer, "lookup", "a")?);
        said.push(lines);
    }
    ensure!(said[0] == said[1], "{said:#?}");
    let expected = "statistics: max connection rate 1/1s for (a) at TIME";
    ensure!(said[1].iter().any(|line| line == expected), "{said:#?}");
    Ok(())
}

#[test]
fn an_argument_is_refused_at_the_first_request() -> Result<()> {
    let mut logs = Vec::new();
    for implementation in IMPLEMENTATIONS {
        let Some(executable) = executable(implementation) else {
            return Ok(());
        };
        let plan = Plan::new(implementation, "anvil").executable(&executable);
        let Some(mut daemon) = plan.argument("stray").start()? else {
            return Ok(());
        };
        let mut peer = connect(&daemon)?;
        peer.send(b"request=lookup\nident=a\n\n")?;
        ensure!(peer.drain_to_end().bytes.is_empty());
        ensure!(!daemon.wait(PATIENCE)?.success());
        logs.push(daemon.log_texts());
    }
    ensure!(logs[0] == logs[1], "{logs:#?}");
    Ok(())
}

/// An SMTP client that writes down what it hears.
struct Session {
    reader: BufReader<TcpStream>,
}

impl Session {
    /// Connects, once the server listens, and takes the greeting.
    fn open(port: u16, heard: &mut Vec<String>) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let mut session = Self {
            reader: BufReader::new(stream),
        };
        heard.push(session.line()?);
        Ok(session)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "the server closed");
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, command: &str, heard: &mut Vec<String>) -> Result<()> {
        self.reader
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        heard.push(format!("{command} -> {}", self.line()?));
        Ok(())
    }
}

/// What the clients of one instance heard, and what its log says about limits.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    heard: Vec<String>,
    logged: Vec<String>,
}

/// The services: a name to show in place of the port, and the limit of each.
const LIMITED: [(&str, &str); 4] = [
    ("COUNT", "smtpd_client_connection_count_limit=2"),
    ("RATE", "smtpd_client_connection_rate_limit=4"),
    ("MESSAGE", "smtpd_client_message_rate_limit=2"),
    ("RECIPIENT", "smtpd_client_recipient_rate_limit=3"),
];

fn clients(postfix: &mut PrivatePostfix, ports: &[u16]) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    let [count, rate, message, recipient] = ports else {
        anyhow::bail!("four ports");
    };

    let mut first = Session::open(*count, &mut heard)?;
    let mut second = Session::open(*count, &mut heard)?;
    Session::open(*count, &mut heard)?;
    first.ask("QUIT", &mut heard)?;
    // The server tells anvil before it says so here.
    postfix.wait_for("two to go", PATIENCE, |postfix| {
        Ok(postfix.logged("disconnect from") >= 2)
    })?;
    Session::open(*count, &mut heard)?.ask("QUIT", &mut heard)?;
    second.ask("QUIT", &mut heard)?;

    for _ in 0..4 {
        Session::open(*rate, &mut heard)?.ask("QUIT", &mut heard)?;
    }
    Session::open(*rate, &mut heard)?;

    let mut session = Session::open(*message, &mut heard)?;
    session.ask("HELO client.example.test", &mut heard)?;
    for _ in 0..3 {
        session.ask("MAIL FROM:<sender@example.test>", &mut heard)?;
        session.ask("RSET", &mut heard)?;
    }

    let mut session = Session::open(*recipient, &mut heard)?;
    session.ask("HELO client.example.test", &mut heard)?;
    session.ask("MAIL FROM:<sender@example.test>", &mut heard)?;
    for number in 0..4 {
        session.ask(&format!("RCPT TO:<{number}@example.test>"), &mut heard)?;
    }
    session.ask("QUIT", &mut heard)?;
    Ok(heard)
}

fn limited_smtpd(implementation: Implementation) -> Result<Option<Run>> {
    let Some(executable) = executable(implementation) else {
        return Ok(None);
    };
    let mut plan = private_postfix::Plan::new(Implementation::Postfix)
        .daemon_at("anvil", &executable)
        .parameter("smtpd_client_event_limit_exceptions", "");
    let mut ports = Vec::new();
    for (_, limit) in LIMITED {
        let port = free_port()?;
        ports.push(port);
        plan = plan.service(&format!(
            "127.0.0.1:{port} inet n - n - - smtpd\n  -o {limit}"
        ));
    }
    let Some(mut postfix) = plan.start()? else {
        return Ok(None);
    };
    let mut heard = clients(&mut postfix, &ports)?;
    // Refused as long as the counters are there.
    let mut staying = Session::open(ports[2], &mut heard)?;
    staying.ask("HELO client.example.test", &mut heard)?;
    staying.ask("MAIL FROM:<sender@example.test>", &mut heard)?;
    let (pid, _) = *postfix.processes("anvil").first().context("anvil runs")?;
    let running = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
    ensure!(
        running == executable.canonicalize()?,
        "{}",
        running.display()
    );
    postfix.reload()?;
    postfix.wait_for("anvil's report", PATIENCE, |postfix| {
        Ok(postfix.logged("statistics: max cache size") > 0)
    })?;
    // The next anvil hears of this client in the middle of its session.
    staying.ask("MAIL FROM:<sender@example.test>", &mut heard)?;
    staying.ask("QUIT", &mut heard)?;
    let log = postfix.log();
    let mut logged = Vec::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once(" postfix/") else {
            continue;
        };
        let (program, text) = rest.split_once("]: ").unwrap_or((rest, ""));
        let program = program.split('[').next().unwrap_or_default();
        if ["warning: ", "statistics: ", "NOQUEUE: ", "fatal: "]
            .iter()
            .any(|start| text.starts_with(start))
        {
            let mut text = timeless(text);
            for ((name, _), port) in LIMITED.iter().zip(&ports) {
                text = text.replace(&format!("127.0.0.1:{port}"), name);
            }
            logged.push(format!("{program}: {text}"));
        }
    }
    Ok(Some(Run { heard, logged }))
}

#[test]
fn limits_of_a_real_smtpd() -> Result<()> {
    let Some(theirs) = limited_smtpd(Implementation::Postfix)? else {
        return Ok(());
    };
    let Some(ours) = limited_smtpd(Implementation::Postkeep)? else {
        return Ok(());
    };
    ensure!(theirs == ours, "theirs {theirs:#?}\nours {ours:#?}");
    let refused = |text: &str| ours.heard.iter().filter(|line| line.contains(text)).count();
    let connections = "421 4.7.0 mail.example.test Error: too many connections from 127.0.0.1";
    ensure!(refused(connections) == 2, "{ours:#?}");
    ensure!(
        refused("450 4.7.1 Error: too much mail from 127.0.0.1") == 2,
        "{ours:#?}"
    );
    ensure!(
        refused("450 4.7.1 Error: too many recipients from 127.0.0.1") == 1,
        "{ours:#?}"
    );
    for expected in [
        "anvil: statistics: max connection rate 5/60s for (RATE:127.0.0.1) at TIME",
        "anvil: statistics: max connection count 3 for (COUNT:127.0.0.1) at TIME",
        "anvil: statistics: max message rate 4/60s for (MESSAGE:127.0.0.1) at TIME",
        "anvil: statistics: max recipient rate 4/60s for (RECIPIENT:127.0.0.1) at TIME",
        "anvil: statistics: max cache size 4 at TIME",
    ] {
        ensure!(
            ours.logged.iter().any(|line| line == expected),
            "{expected}: {ours:#?}"
        );
    }
    Ok(())
}
