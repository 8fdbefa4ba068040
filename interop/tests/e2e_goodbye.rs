//! Mail to a server that gives up idle connections: with Postfix's connection cache smtp(8) takes over dead ones,
//! with ours it never does, and the server hears QUIT at the end of every other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::mail::Source;
use postkeep_testkit::peer::{save_endpoint, session};
use postkeep_testkit::private_postfix::{Plan, free_port};
use postkeep_testkit::{Implementation, PrivatePostfix, stand_in};

/// How the server gives up a connection that has been idle for a second.
#[derive(Clone, Copy, Debug)]
enum GivesUp {
    /// It just closes.
    Silently,
    /// It says so first, as most do.
    With421,
    Never,
}

/// What the server has seen.
#[derive(Debug, Default)]
struct Seen {
    messages: AtomicUsize,
    sessions: AtomicUsize,
    /// Ended by the client's QUIT.
    quit: AtomicUsize,
    /// Ended by the client without a word.
    lost: AtomicUsize,
    /// Given up.
    given_up: AtomicUsize,
    /// Commands that came on a connection that had been given up.
    late: AtomicUsize,
    /// Reading or writing failed, as after a reset.
    broken: AtomicUsize,
    open: AtomicUsize,
}

/// A scripted SMTP server.
struct Server {
    port: u16,
    seen: Arc<Seen>,
    over: Arc<AtomicBool>,
}

impl Server {
    fn start(gives_up: GivesUp) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (seen, over) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        thread::spawn({
            let (seen, over) = (Arc::clone(&seen), Arc::clone(&over));
            move || {
                for client in listener.incoming().flatten() {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let seen = Arc::clone(&seen);
                    thread::spawn(move || {
                        seen.open.fetch_add(1, Ordering::SeqCst);
                        seen.sessions.fetch_add(1, Ordering::SeqCst);
                        if serve(client, gives_up, &seen).is_err() {
                            seen.broken.fetch_add(1, Ordering::SeqCst);
                        }
                        seen.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Ok(Self { port, seen, over })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(client: TcpStream, gives_up: GivesUp, seen: &Seen) -> std::io::Result<()> {
    let patience = match gives_up {
        GivesUp::Silently | GivesUp::With421 => Duration::from_secs(1),
        GivesUp::Never => Duration::from_mins(1),
    };
    client.set_read_timeout(Some(patience))?;
    let mut input = BufReader::new(client.try_clone()?);
    let mut output = client;
    let mut say = |text: &str| output.write_all(format!("{text}\r\n").as_bytes());
    let count = |counter: &AtomicUsize| {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    say("220 server.example.test ESMTP")?;
    let mut in_message = false;
    loop {
        let mut line = String::new();
        match input.read_line(&mut line) {
            Ok(0) => {
                count(&seen.lost);
                return Ok(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                count(&seen.given_up);
                if matches!(gives_up, GivesUp::With421) {
                    say("421 4.4.2 server.example.test Error: timeout exceeded")?;
                }
                output.shutdown(Shutdown::Write)?;
                // A client that has not noticed sends a command.
                let mut late = Vec::new();
                output.set_read_timeout(Some(Duration::from_secs(20)))?;
                if input.read_to_end(&mut late).is_err() || !late.is_empty() {
                    count(&seen.late);
                }
                return Ok(());
            }
            other => other?,
        };
        let line = line.trim_end();
        if in_message {
            if line == "." {
                in_message = false;
                count(&seen.messages);
                say("250 2.0.0 Ok")?;
            }
            continue;
        }
        match line.split(' ').next().unwrap_or_default() {
            "EHLO" | "HELO" => say("250 server.example.test")?,
            "DATA" => {
                in_message = true;
                say("354 End data with <CR><LF>.<CR><LF>")?;
            }
            "QUIT" => {
                count(&seen.quit);
                say("221 2.0.0 Bye")?;
                output.shutdown(Shutdown::Write)?;
                // The client closes too, and does not answer our last word with a reset.
                output.set_read_timeout(Some(Duration::from_secs(20)))?;
                input.read_to_end(&mut Vec::new())?;
                return Ok(());
            }
            _ => say("250 2.0.0 Ok")?,
        }
    }
}

/// What came of one run.
#[derive(Debug)]
struct Outcome {
    messages: usize,
    sessions: usize,
    reused: usize,
    quit: usize,
    lost: usize,
    given_up: usize,
    late: usize,
    broken: usize,
    /// Log lines about connections that turned out to be dead.
    complaints: usize,
}

/// Bursts of mail, with pauses in which the server loses patience and the cache does not.
fn bursts(
    implementation: Implementation,
    parameters: &[(&str, &str)],
    gives_up: GivesUp,
) -> Result<Option<Outcome>> {
    const BURSTS: u32 = 3;
    const MESSAGES: u32 = 20;
    let server = Server::start(gives_up)?;
    let port = free_port()?;
    let mut plan = Plan::new(implementation)
        .parameter("relay_domains", "sink.test")
        .parameter(
            "transport_maps",
            &format!("inline:{{ sink.test=smtp:[127.0.0.1]:{} }}", server.port),
        )
        .parameter("smtp_connection_cache_destinations", "127.0.0.1")
        .parameter("smtp_connection_cache_time_limit", "4s")
        .parameter("connection_cache_ttl_limit", "4s")
        .parameter("default_destination_concurrency_limit", "4")
        .parameter("initial_destination_concurrency", "4")
        .service(&format!("127.0.0.1:{port} inet n - n - - smtpd"));
    for (name, value) in parameters {
        plan = plan.parameter(name, value);
    }
    let Some(mut postfix) = plan.start()? else {
        return Ok(None);
    };
    postfix.wait_for_port(port)?;
    let seen = &server.seen;
    for burst in 1..=BURSTS {
        Source::start(port, MESSAGES, 4, "user@sink.test")?.finish(Duration::from_secs(30))?;
        let wanted = (burst * MESSAGES) as usize;
        postfix.wait_for("the burst", Duration::from_secs(30), |_| {
            Ok(seen.messages.load(Ordering::SeqCst) >= wanted)
        })?;
        // What is idle now is given up after a second, and would be taken over after it.
        thread::sleep(Duration::from_millis(1500));
    }
    postfix.wait_for("the last session's end", Duration::from_secs(30), |_| {
        Ok(seen.open.load(Ordering::SeqCst) == 0)
    })?;
    let number = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let outcome = Outcome {
        messages: number(&seen.messages),
        sessions: number(&seen.sessions),
        reused: postfix.logged("conn_use="),
        quit: number(&seen.quit),
        lost: number(&seen.lost),
        given_up: number(&seen.given_up),
        late: number(&seen.late),
        broken: number(&seen.broken),
        complaints: complaints(&postfix),
    };
    println!("{implementation:?}, {parameters:?}, given up: {gives_up:?}: {outcome:?}");
    ensure!(
        outcome.messages == (BURSTS * MESSAGES) as usize,
        "messages were lost or doubled"
    );
    ensure!(outcome.reused > 0, "no connection was used again");
    Ok(Some(outcome))
}

/// Lines in which smtp(8) complains. It says nothing about a connection from the cache that does not answer its
/// first RSET; the server sees those.
fn complaints(postfix: &PrivatePostfix) -> usize {
    let log = postfix.log();
    let client = log.lines().filter(|line| line.contains("postfix/smtp["));
    client
        .filter(|line| {
            ["lost connection", "timeout exceeded", "conversation with"]
                .iter()
                .any(|text| line.contains(text))
        })
        .count()
}

/// One instance at a time: each loads the machine, and looks for free ports.
static ALONE: Mutex<()> = Mutex::new(());

const REFERENCE: [(&str, &str); 2] = [
    ("postkeep_connection_cache_liveness", "no"),
    ("postkeep_connection_cache_goodbye", ""),
];

fn dead_sessions(gives_up: GivesUp) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(theirs) = bursts(Implementation::Postfix, &[], gives_up)? else {
        return Ok(());
    };
    let ours = bursts(Implementation::Postkeep, &[], gives_up)?.context("no outcome")?;
    let switched_off =
        bursts(Implementation::Postkeep, &REFERENCE, gives_up)?.context("no outcome")?;
    ensure!(theirs.late > 0, "Postfix took over no dead connection");
    ensure!(switched_off.late > 0, "ours did not with liveness off");
    ensure!(
        ours.late == 0 && ours.complaints == 0,
        "ours handed out a dead connection"
    );
    ensure!(ours.given_up > 0, "the server never lost patience");
    ensure!(ours.lost == 0, "a session ended without a word");
    Ok(())
}

#[test]
fn no_connection_that_was_closed_is_taken_over() -> Result<()> {
    dead_sessions(GivesUp::Silently)
}

#[test]
fn no_connection_that_was_given_up_with_421_is_taken_over() -> Result<()> {
    dead_sessions(GivesUp::With421)
}

#[test]
fn every_session_ends_with_quit() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(theirs) = bursts(Implementation::Postfix, &[], GivesUp::Never)? else {
        return Ok(());
    };
    let ours = bursts(Implementation::Postkeep, &[], GivesUp::Never)?.context("no outcome")?;
    let newest = [("postkeep_connection_cache_order", "newest")];
    let newest =
        bursts(Implementation::Postkeep, &newest, GivesUp::Never)?.context("no outcome")?;
    ensure!(theirs.lost > 0, "Postfix said goodbye");
    for outcome in [ours, newest] {
        ensure!(
            outcome.lost == 0 && outcome.broken == 0 && outcome.quit == outcome.sessions,
            "not every session ended with QUIT"
        );
    }
    Ok(())
}

#[test]
fn a_reload_and_a_stop_end_with_a_word() -> Result<()> {
    for stop in [false, true] {
        let plan = stand_in::Plan::new(Implementation::Postkeep, "scache")
            .parameter("connection_cache_ttl_limit", "60s");
        let Some(mut daemon) = plan.start()? else {
            return Ok(());
        };
        let mut client = daemon.connect_and_greet()?;
        let mut ends = Vec::new();
        for label in ["smtp\n127.0.0.1\n25\n0\n", "other\n127.0.0.1\n25\n0\n"] {
            let (near, far) = session()?;
            save_endpoint(&mut client, 60, label, "p", near.as_fd())?;
            ends.push(far);
        }
        let status = if stop {
            daemon.signal(rustix::process::Signal::TERM)?;
            daemon.wait(Duration::from_secs(5))?
        } else {
            daemon.disconnect()?
        };
        let heard = ends
            .iter_mut()
            .map(|end| {
                let mut heard = String::new();
                end.read_to_string(&mut heard).map(|_| heard)
            })
            .collect::<std::io::Result<Vec<String>>>()?;
        ensure!(heard == ["QUIT\r\n", ""], "stop: {stop}: {heard:?}");
        // Whoever stopped it sees no difference.
        ensure!(status.success() != stop, "{status}");
    }
    Ok(())
}
