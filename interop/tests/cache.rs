//! `cache:` tables in the daemon, before a server that counts what it is asked: what reaches it, how old answers get, how
//! many are kept, and how unmodified programs of Postfix name such a table.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_interop::mail::recipient_reply;
use postkeep_interop::postmap::Random;
use postkeep_interop::servers::{Server, netstring, socketmap};
use postkeep_testkit::attributes::show;
use postkeep_testkit::peer::Peer;
use postkeep_testkit::private_postfix::{self, free_port};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn};

fn found(value: &str) -> String {
    format!("status\\00\\0value\\0{value}\\0\\0")
}

const ABSENT: &str = "status\\01\\0value\\0\\0\\0";
const RETRY: &str = "status\\02\\0value\\0\\0\\0";

/// What the server says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    /// The key; nothing is found for keys that begin with `no`, and `REJECT` for `bad`.
    Key,
    /// How many milliseconds it has been there for.
    Time,
    /// An error.
    Later,
    /// Nothing for now to the key `key`, to others as above.
    Silence,
}

/// A socketmap server that counts, and says what it is told to say.
struct Backend {
    server: Server,
    state: Arc<State>,
}

struct State {
    asked: AtomicUsize,
    says: Mutex<Says>,
    changed: Condvar,
    begun: Instant,
}

impl State {
    fn answer(&self, request: &[u8]) -> Vec<u8> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let key = request.strip_prefix(b"m ").unwrap_or(request);
        let says = self.says.lock().unwrap_or_else(PoisonError::into_inner);
        let says = self
            .changed
            .wait_while(says, |says| *says == Says::Silence && key == b"key")
            .unwrap_or_else(PoisonError::into_inner);
        match *says {
            Says::Key | Says::Silence if key.starts_with(b"bad") => netstring(b"OK REJECT"),
            Says::Key | Says::Silence if key.starts_with(b"no") => netstring(b"NOTFOUND "),
            Says::Time => netstring(format!("OK {}", self.begun.elapsed().as_millis()).as_bytes()),
            Says::Later => netstring(b"TEMP later"),
            Says::Key | Says::Silence => netstring(&[b"OK ", key].concat()),
        }
    }
}

impl Backend {
    fn start(says: Says) -> Self {
        let state = Arc::new(State {
            asked: AtomicUsize::new(0),
            says: Mutex::new(says),
            changed: Condvar::new(),
            begun: Instant::now(),
        });
        let shared = Arc::clone(&state);
        let serve = move |client| socketmap(client, |request| shared.answer(request));
        Self {
            server: Server::start(serve),
            state,
        }
    }

    fn says(&self, says: Says) {
        *self
            .state
            .says
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = says;
        self.state.changed.notify_all();
    }

    fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    fn table(&self) -> String {
        format!("socketmap:inet:127.0.0.1:{}:m", self.server.port)
    }

    fn cached(&self, keys: &str) -> String {
        format!("cache:{{{}, {keys}}}", self.table())
    }
}

fn start(table: &str) -> Result<Option<StandIn>> {
    Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &format!("proxy:{table}"))
        .start()
}

fn threads(daemon: &StandIn) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    Ok(line.context("no count of threads")?.trim().parse()?)
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done()? {
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A thousand clients that want to know the same at the same time are one question, whether the table calls back or has
/// to be waited for (`pipemap:`), and take no threads.
#[test]
fn a_thousand_clients_are_one_question() -> Result<()> {
    const CLIENTS: usize = 1000;
    for waits in [false, true] {
        let backend = Backend::start(Says::Key);
        let inner = if waits {
            format!("pipemap:{{{}}}", backend.table())
        } else {
            backend.table()
        };
        let table = format!("cache:{{{inner}, ttl=1h}}");
        let Some(daemon) = start(&table)? else {
            return Ok(());
        };
        let mut first = daemon.connect_and_greet()?;
        ensure!(lookup(&mut first, &table, "before")? == found("before"));
        let mut peers = (0..CLIENTS)
            .map(|_| Ok(daemon.connect_and_greet()?))
            .collect::<Result<Vec<Peer>>>()?;
        let before = threads(&daemon)?;
        backend.says(Says::Silence);
        for peer in &mut peers {
            peer.send(&request(&table, "key"))?;
        }
        until("the question", || Ok(backend.asked() == 2))?;
        // Others are served meanwhile, from the cache and by the server.
        for number in 0..100 {
            let key = format!("other-{number}");
            ensure!(lookup(&mut first, &table, "before")? == found("before"));
            ensure!(lookup(&mut first, &table, &key)? == found(&key));
        }
        let during = threads(&daemon)?;
        backend.says(Says::Key);
        for peer in &mut peers {
            let reply = show(&peer.read_list()?);
            ensure!(reply == found("key"), "{reply}");
        }
        println!(
            "waits={waits}: {CLIENTS} clients, {} questions; threads: {before}, then {during}",
            backend.asked() - 101
        );
        ensure!(backend.asked() == 102, "{} questions", backend.asked());
        ensure!(waits || during <= before, "{before} threads, then {during}");
    }
    Ok(())
}

/// Keys as they are asked for in life: few often, many once. Each reaches the server once.
#[test]
fn each_key_is_asked_for_once() -> Result<()> {
    const CLIENTS: usize = 20;
    const LOOKUPS: usize = 500;
    let backend = Backend::start(Says::Key);
    let table = backend.cached("ttl=1h negative_ttl=1h");
    let Some(daemon) = start(&table)? else {
        return Ok(());
    };
    let mut random = Random(0x5eed_0019);
    let mut peers = Vec::new();
    for _ in 0..CLIENTS {
        peers.push(daemon.connect_and_greet()?);
    }
    let mut keys = HashSet::new();
    for _ in 0..LOOKUPS {
        let mut sent = Vec::new();
        for peer in &mut peers {
            // Half of the lookups are for one key in two, a quarter for one in four, and so on.
            let bits = 1 + random.below(9);
            let key = random.below(1 << bits);
            let key = format!(
                "{}-{bits}-{key}",
                if key.is_multiple_of(3) { "no" } else { "k" }
            );
            peer.send(&request(&table, &key))?;
            sent.push(key);
        }
        for (peer, key) in peers.iter_mut().zip(sent) {
            let reply = show(&peer.read_list()?);
            let wanted = if key.starts_with("no") {
                ABSENT.to_owned()
            } else {
                found(&key)
            };
            ensure!(reply == wanted, "{key}: {reply}");
            keys.insert(key);
        }
    }
    let (lookups, asked) = (CLIENTS * LOOKUPS, backend.asked());
    println!(
        "{lookups} lookups of {} keys: {asked} questions, hit rate {:.1} %",
        keys.len(),
        100.0 - 100.0 * f64::from(u32::try_from(asked)?) / f64::from(u32::try_from(lookups)?)
    );
    ensure!(
        asked == keys.len(),
        "{asked} questions, {} keys",
        keys.len()
    );
    Ok(())
}

/// The server says what time it is: no answer is older than its time to live.
#[test]
fn no_answer_is_older_than_its_time_to_live() -> Result<()> {
    for refresh in ["0%", "50%"] {
        let backend = Backend::start(Says::Time);
        let table = backend.cached(&format!("ttl=400ms refresh={refresh}"));
        let Some(daemon) = start(&table)? else {
            return Ok(());
        };
        let mut peers = Vec::new();
        for _ in 0..4 {
            peers.push(daemon.connect_and_greet()?);
        }
        let begun = Instant::now();
        let (mut lookups, mut oldest) = (0_usize, 0);
        while begun.elapsed() < Duration::from_secs(2) {
            let asked_at = backend.state.begun.elapsed().as_millis();
            for peer in &mut peers {
                peer.send(&request(&table, "time"))?;
            }
            for peer in &mut peers {
                let reply = show(&peer.read_list()?);
                let time: u128 = reply
                    .strip_prefix("status\\00\\0value\\0")
                    .and_then(|rest| rest.split('\\').next())
                    .context(reply.clone())?
                    .parse()?;
                oldest = oldest.max(asked_at.saturating_sub(time));
                lookups += 1;
            }
        }
        let asked = backend.asked();
        println!(
            "refresh={refresh}: {lookups} lookups, {asked} questions, oldest answer {oldest} ms"
        );
        // A millisecond for the fractions that the server does not tell.
        ensure!(oldest <= 401, "{oldest} ms");
        ensure!(
            asked <= lookups / 2,
            "{asked} questions in {lookups} lookups"
        );
    }
    Ok(())
}

/// While the server gives errors, old answers serve on if they may, and it is left alone most of the time.
#[test]
fn old_answers_serve_while_there_are_errors() -> Result<()> {
    let backend = Backend::start(Says::Key);
    let table = backend.cached("ttl=1ms negative_ttl=1ms stale_ttl=1h retry_delay=500ms");
    let plain = backend.cached("ttl=1ms negative_ttl=1ms retry_delay=500ms");
    let started = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &format!("proxy:{table} proxy:{plain}"))
        .start()?;
    let Some(daemon) = started else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    for (table, known) in [(&table, true), (&plain, false)] {
        backend.says(Says::Key);
        ensure!(lookup(&mut peer, table, "key")? == found("key"));
        ensure!(lookup(&mut peer, table, "no")? == ABSENT);
        thread::sleep(Duration::from_millis(5));
        backend.says(Says::Later);
        let (before, begun) = (backend.asked(), Instant::now());
        let mut lookups = 0;
        while begun.elapsed() < Duration::from_millis(1200) {
            for (key, wanted) in [("key", &*found("key")), ("no", ABSENT), ("new", RETRY)] {
                let reply = lookup(&mut peer, table, key)?;
                let wanted = if known { wanted } else { RETRY };
                ensure!(reply == wanted, "{table} {key}: {reply}");
                lookups += 1;
            }
        }
        let asked = backend.asked() - before;
        println!("{table}: {lookups} lookups during errors, {asked} questions");
        let most = 3 * (usize::try_from(begun.elapsed().as_millis())? / 500 + 1);
        ensure!(asked <= most, "{asked} questions, {most} at most");
        backend.says(Says::Key);
        until("the end of the errors", || {
            Ok(lookup(&mut peer, table, "new")? == found("new"))
        })?;
    }
    let log = daemon.log_texts();
    let line = format!(
        "warning: {table}: temporary errors of {} -- answers that have expired serve on",
        backend.table()
    );
    let told = log.iter().filter(|text| **text == line).count();
    ensure!(told == 1, "{told}: {log:?}");
    Ok(())
}

/// What is asked for twice, in more keys than are kept, reaches the server again, but for what was kept.
#[test]
fn bounds_are_kept() -> Result<()> {
    const KEYS: usize = 2000;
    for (keys, least, most) in [
        ("max_entries=100", 1, 100),
        // An entry costs some 200 bytes beside its text.
        ("max_bytes=64K", 64, 400),
        ("max_entries=100000", KEYS, KEYS),
    ] {
        let backend = Backend::start(Says::Key);
        let table = backend.cached(&format!("ttl=1h {keys}"));
        let Some(daemon) = start(&table)? else {
            return Ok(());
        };
        let mut peer = daemon.connect_and_greet()?;
        for number in 0..KEYS {
            let key = format!("k{number}");
            ensure!(lookup(&mut peer, &table, &key)? == found(&key));
        }
        ensure!(backend.asked() == KEYS);
        // From new to old: what is kept is found before it makes room.
        for number in (0..KEYS).rev() {
            let key = format!("k{number}");
            ensure!(lookup(&mut peer, &table, &key)? == found(&key));
        }
        let kept = 2 * KEYS - backend.asked();
        println!("{keys}: {kept} of {KEYS} were kept");
        ensure!((least..=most).contains(&kept), "{keys}: {kept}");
    }
    Ok(())
}

/// The file of the table inside changes: the cache goes with the table.
#[test]
fn a_changed_table_empties_the_cache() -> Result<()> {
    let scratch = Scratch::new("cache-reload")?;
    let file = scratch.file("text", "key one\n")?;
    let table = format!("cache:{{texthash:{}, ttl=1h}}", file.display());
    let started = Plan::new(Implementation::Postkeep, "proxymap")
        .parameter("proxy_read_maps", &format!("proxy:{table}"))
        .start()?;
    let Some(daemon) = started else {
        return Ok(());
    };
    let mut peer = daemon.connect_and_greet()?;
    ensure!(lookup(&mut peer, &table, "key")? == found("one"));
    fs::write(&file, "key second\n")?;
    until("the new answer", || {
        Ok(lookup(&mut peer, &table, "key")? == found("second"))
    })
}

/// An instance with such tables in an alias list and in a restriction, both of which `proxy_read_maps` names by
/// default.
fn plan(backend: &Backend) -> private_postfix::Plan {
    let aliases = backend.cached("ttl=1h negative_ttl=1h");
    let access = backend.cached("ttl=1h, negative_ttl=1h, max_entries=1000");
    private_postfix::Plan::new(Implementation::Postkeep)
        .parameter("notify_classes", "")
        .parameter("virtual_alias_domains", "")
        .parameter("smtpd_relay_restrictions", "")
        .parameter("aliases", &format!("proxy:{aliases}"))
        .parameter("virtual_alias_maps", "$aliases, proxy:inline:{a=b}")
        .parameter(
            "smtpd_recipient_restrictions",
            &format!("check_recipient_access proxy:{access}, reject_unauth_destination"),
        )
}

/// The installed postmap and smtpd, which know no such type, ask through our server.
#[test]
fn unmodified_clients_name_it_in_braces() -> Result<()> {
    let backend = Backend::start(Says::Key);
    let port = free_port()?;
    let spaced = format!(
        "cache:{{ {} ,\tttl=1h   negative_ttl=1h }}",
        backend.table()
    );
    let one_word = format!("cache:{{{},ttl=1h}}", backend.table());
    let lists = "$local_recipient_maps $virtual_alias_maps $smtpd_recipient_restrictions";
    let approved = format!("{lists} proxy:{spaced}, {{ proxy:{one_word} x=y }}");
    let started = plan(&backend)
        .parameter("proxy_read_maps", &approved)
        .service(&format!("127.0.0.1:{port} inet n - n - - smtpd"))
        .start()?;
    let Some(mut postfix) = started else {
        return Ok(());
    };
    let ask = |table: &str, key: &str| {
        let output = postfix.command("postmap", &["-q", key, table])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok::<_, anyhow::Error>((
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    };
    for (count, table) in (1..).zip([
        backend.cached("ttl=1h negative_ttl=1h"),
        backend.cached("ttl=1h, negative_ttl=1h, max_entries=1000"),
        spaced,
        one_word,
    ]) {
        for _ in 0..3 {
            let answer = ask(&format!("proxy:{table}"), "key")?;
            ensure!(
                answer == (Some(0), "key\n".to_owned(), String::new()),
                "{table}: {answer:?}"
            );
        }
        // Once by each table, each of which has a cache of its own.
        ensure!(backend.asked() == count, "{table}: {}", backend.asked());
    }
    let answer = ask(
        &format!("proxy:{}", backend.cached("ttl=1h negative_ttl=1h")),
        "none",
    )?;
    ensure!(
        answer == (Some(1), String::new(), String::new()),
        "{answer:?}"
    );
    // Names are compared byte for byte.
    let other = format!("proxy:{}", backend.cached("ttl=1h  negative_ttl=1h"));
    let answer = ask(&other, "key")?;
    ensure!(
        answer.0 == Some(1)
            && answer
                .2
                .contains("proxymap service is not configured for table"),
        "{answer:?}"
    );
    // Without the server there is no such type.
    let answer = ask(&backend.cached("ttl=1h"), "key")?;
    ensure!(
        answer.0 == Some(1) && answer.2.contains("unsupported dictionary type: cache"),
        "{answer:?}"
    );

    postfix.wait_for_port(port)?;
    let ask = || recipient_reply(port, "bad@example.test").with_context(|| postfix.log());
    let reply = ask()?;
    ensure!(
        reply.starts_with("554 5.7.1 <bad@example.test>: Recipient address rejected"),
        "{reply}"
    );
    let asked = backend.asked();
    ensure!(asked == 6, "smtpd asked {} times", asked - 5);
    for _ in 0..3 {
        let again = ask()?;
        ensure!(again == reply, "{again}, before {reply}");
    }
    ensure!(
        backend.asked() == asked,
        "{asked} questions, then {}",
        backend.asked()
    );
    Ok(())
}

/// Many postmap processes at the same time are one question.
#[test]
fn processes_share_a_question() -> Result<()> {
    const PROCESSES: usize = 20;
    let backend = Backend::start(Says::Silence);
    let Some(postfix) = plan(&backend).start()? else {
        return Ok(());
    };
    let table = format!("proxy:{}", backend.cached("ttl=1h negative_ttl=1h"));
    let outputs = thread::scope(|scope| {
        let runs: Vec<_> = (0..PROCESSES)
            .map(|_| scope.spawn(|| postfix.command("postmap", &["-q", "key", &table])))
            .collect();
        let asked = until("the question", || Ok(backend.asked() > 0));
        // Time for others to come; none of them may change the count.
        thread::sleep(Duration::from_millis(300));
        backend.says(Says::Key);
        let outputs: Vec<_> = runs
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        asked.map(|()| outputs)
    })?;
    for output in outputs {
        let output = output.map_err(|_| anyhow::anyhow!("a thread is lost"))??;
        ensure!(output.stdout == b"key\n", "{output:?}");
    }
    ensure!(backend.asked() == 1, "{} questions", backend.asked());
    Ok(())
}
