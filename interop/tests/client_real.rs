//! Our clients against running daemons: Postfix's own, and ours.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_client::Place;
use postkeep_client::proxymap::{self, Dialect, Function, Generation, Policy};
use postkeep_client::scache::{self, Session};
use postkeep_table::{Access, Cursor, Flags, Opener as _, Outcome, Step, TableName};
use postkeep_tables::{Context as TableContext, Registry};
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn};

const BOTH: [Implementation; 2] = [Implementation::Postfix, Implementation::Postkeep];

/// Our ends of the sessions that a script has saved, by their number; what was handed out again is gone.
#[derive(Default)]
struct Saved {
    ends: Vec<Option<UnixStream>>,
}

impl Saved {
    fn add(&mut self) -> Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        self.ends.push(Some(near));
        Ok(far)
    }

    /// Which of them the other end of this is.
    fn recognize(&mut self, session: Session) -> Result<usize> {
        UnixStream::from(session.descriptor).write_all(b"?")?;
        let found = self.ends.iter_mut().position(|end| {
            let heard = end.as_mut().map(|end| end.read(&mut [0; 8]));
            matches!(heard, Some(Ok(1)))
        });
        let number = found.context("the session of somebody else")?;
        self.ends[number] = None;
        Ok(number)
    }

    /// Those that the cache has closed.
    fn closed(&mut self) -> Vec<usize> {
        let mut closed = Vec::new();
        for (number, end) in self.ends.iter_mut().enumerate() {
            if let Some(Ok(0)) = end.as_mut().map(|stream| stream.read(&mut [0; 8])) {
                closed.push(number);
                *end = None;
            }
        }
        closed
    }
}

fn shown(text: &[u8]) -> String {
    match text {
        b"" => "-".to_owned(),
        text => String::from_utf8_lossy(text).into_owned(),
    }
}

/// What the cache answers to one command of a script; the language is told in `vectors/scache/README.md`.
fn answer(line: &str, client: &mut scache::Client, saved: &mut Saved) -> Result<Option<String>> {
    let words: Vec<&[u8]> = line
        .split(' ')
        .map(|word| if word == "-" { "" } else { word }.as_bytes())
        .collect();
    let number = |word: &[u8]| -> Result<i32> { Ok(std::str::from_utf8(word)?.parse()?) };
    let status = match *words {
        [b"save_dest", ttl, label, property, endpoint] => {
            client.save_destination(number(ttl)?, label, property, endpoint)?
        }
        [b"save_endp", ttl, label, property] => {
            client.save_endpoint(number(ttl)?, label, property, saved.add()?.into())?
        }
        [b"find_dest", label] => {
            let Some(session) = client.find_destination(label)? else {
                return Ok(Some("miss".to_owned()));
            };
            let properties = format!(
                "dest {} endp {}",
                shown(&session.destination_property),
                shown(&session.endpoint_property)
            );
            return Ok(Some(format!(
                "{properties} session {}",
                saved.recognize(session)?
            )));
        }
        [b"find_endp", label] => {
            let Some(session) = client.find_endpoint(label)? else {
                return Ok(Some("miss".to_owned()));
            };
            let property = shown(&session.endpoint_property);
            return Ok(Some(format!(
                "endp {property} session {}",
                saved.recognize(session)?
            )));
        }
        [b"sleep", time] => {
            thread::sleep(Duration::from_secs(u64::try_from(number(time)?)?));
            let closed = saved.closed();
            let text = closed
                .iter()
                .fold(String::new(), |text, number| format!("{text} {number}"));
            return Ok((!closed.is_empty()).then(|| format!("closed{text}")));
        }
        _ => bail!("no such command: {line}"),
    };
    ensure!(status == scache::Status::Ok, "{line}: {status:?}");
    Ok(None)
}

/// Runs a script against a daemon of its own and compares the answers. `status` cannot be asked.
fn run_script(implementation: Implementation, path: &Path) -> Result<()> {
    let plan = Plan::new(implementation, "scache").parameter("connection_cache_ttl_limit", "10s");
    let Some(daemon) = plan.start()? else {
        return Ok(());
    };
    let mut client = scache::Client::new(scache::Settings::new(Place::Path(daemon.socket())));
    let mut saved = Saved::default();
    let script = fs::read_to_string(path)?;
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        let expected = lines.next_if(|next| next.starts_with('='));
        if line.is_empty() || line.starts_with('#') || line == "status" {
            continue;
        }
        let answered = answer(line, &mut client, &mut saved)?.map(|answer| format!("= {answer}"));
        ensure!(
            answered.as_deref() == expected,
            "{}: {line}: {answered:?} instead of {expected:?}",
            path.display()
        );
    }
    ensure!(daemon.log().is_empty(), "{:?}", daemon.log());
    Ok(())
}

fn scripts() -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors/scache");
    let mut scripts = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_script = path
            .extension()
            .is_some_and(|extension| extension == "scache");
        if is_script && !fs::read_to_string(&path)?.starts_with("# exact") {
            scripts.push(path);
        }
    }
    ensure!(scripts.len() >= 6, "only {} scripts", scripts.len());
    Ok(scripts)
}

#[test]
fn cache_scripts_hold_for_the_daemons() -> Result<()> {
    let scripts = scripts()?;
    // The scripts sleep, so they sleep together.
    thread::scope(|scope| {
        let running: Vec<_> = BOTH
            .into_iter()
            .flat_map(|implementation| scripts.iter().map(move |path| (implementation, path)))
            .map(|(implementation, path)| scope.spawn(move || run_script(implementation, path)))
            .collect();
        for thread in running {
            thread
                .join()
                .map_err(|_| io::Error::other("a script panicked"))??;
        }
        Ok(())
    })
}

#[test]
fn a_cache_client_comes_back_to_a_new_daemon() -> Result<()> {
    for implementation in BOTH {
        let Some(mut daemon) = Plan::new(implementation, "scache").start()? else {
            continue;
        };
        let mut client = scache::Client::new(scache::Settings {
            delay: Duration::from_millis(10),
            ..scache::Settings::new(Place::Path(daemon.socket()))
        });
        ensure!(client.find_endpoint(b"none")?.is_none());
        daemon.disconnect()?;
        // The socket has nobody behind it now.
        let error = client
            .find_endpoint(b"none")
            .err()
            .context("no daemon, but an answer")?;
        ensure!(matches!(
            error,
            scache::Error::Connect { .. } | scache::Error::Exchange { .. }
        ));
        ensure!(matches!(
            client.find_endpoint(b"none"),
            Err(scache::Error::Disabled)
        ));
    }
    Ok(())
}

fn proxymap(implementation: Implementation, service: &str) -> Result<Option<StandIn>> {
    let scratch = Scratch::new("client")?;
    scratch.directory("tables", 0o755)?;
    scratch.file("tables/t1", "k1 v1\nk2 a longer value\n")?;
    // Postfix reads a texthash again and again while it is younger than a second.
    let old = std::time::SystemTime::now() - Duration::from_secs(10);
    fs::File::options()
        .append(true)
        .open(scratch.path().join("tables/t1"))?
        .set_modified(old)?;
    Plan::new(implementation, service)
        .parameter("proxy_read_maps", "proxy:texthash:$SCRATCH/tables/t1")
        .parameter("proxy_write_maps", "proxy:lmdb:$SCRATCH/data/w1")
        .start_in(scratch)
}

fn client(daemon: &StandIn, service: &str) -> proxymap::Client {
    proxymap::Client::new(proxymap::Settings {
        dialect: Dialect::DETECT,
        limit: Duration::from_secs(5),
        policy: Policy::BOUNDED,
        ..proxymap::Settings::new(Place::Path(daemon.socket()), service)
    })
}

/// Flags of postmap(1) as Postfix 3.7 sends them: `utf8_request|lock|warn_dup`.
const POSTMAP: u32 = 524_353;

#[test]
fn a_table_client_looks_up() -> Result<()> {
    for implementation in BOTH {
        let Some(daemon) = proxymap(implementation, "proxymap")? else {
            continue;
        };
        let table = format!("texthash:{}/tables/t1", daemon.scratch().display());
        let mut client = client(&daemon, "proxymap");
        let opened = client.open(table.as_bytes(), POSTMAP)?;
        ensure!(
            opened.flags.is_some_and(|flags| flags & 0x10 != 0),
            "{opened:?}"
        );
        ensure!(client.generation() == Some(Generation::One));
        let found = client.lookup(table.as_bytes(), 0, POSTMAP, b"k2")?;
        ensure!(found.value == b"a longer value", "{found:?}");
        let absent = client.lookup(table.as_bytes(), 0, POSTMAP, b"k3")?;
        ensure!(absent.status == proxymap::Status::NoKey, "{absent:?}");
        let refused = client
            .lookup(b"static:x", 0, POSTMAP, b"k")
            .err()
            .map(|error| error.to_string());
        ensure!(
            refused.as_deref() == Some("proxymap service is not configured for table \"static:x\""),
            "{refused:?}"
        );
        let refused = client
            .update(table.as_bytes(), 0, POSTMAP, b"k", b"v")
            .err()
            .map(|error| error.to_string());
        ensure!(
            refused
                == Some(format!(
                    "proxymap update access is not configured for table \"{table}\""
                )),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_table_client_writes_and_walks() -> Result<()> {
    // What verify(8) sends.
    const CACHE: u32 = 590_208;
    for implementation in BOTH {
        let Some(daemon) = proxymap(implementation, "proxywrite")? else {
            continue;
        };
        let table = format!("lmdb:{}/data/w1", daemon.scratch().display());
        let table = table.as_bytes();
        let mut client = client(&daemon, "proxywrite");
        client.open(table, CACHE)?;
        for (key, value) in [(b"b", b"2"), (b"a", b"1"), (b"b", b"3")] {
            let answer = client.update(table, 0, CACHE, key, value)?;
            ensure!(answer.status == proxymap::Status::Ok, "{answer:?}");
        }
        let mut entries = Vec::new();
        let mut function = Function::First;
        loop {
            let answer = client.sequence(table, 0, CACHE, function)?;
            if answer.status == proxymap::Status::NoKey {
                break;
            }
            entries.push((answer.key, answer.value));
            ensure!(entries.len() < 10, "no end of entries");
            function = Function::Next;
        }
        entries.sort();
        ensure!(
            entries
                == [
                    (b"a".to_vec(), b"1".to_vec()),
                    (b"b".to_vec(), b"3".to_vec())
                ],
            "{entries:?}"
        );
        let twice = [
            client.delete(table, 0, CACHE, b"a")?,
            client.delete(table, 0, CACHE, b"a")?,
        ];
        ensure!(
            twice.map(|answer| answer.status) == [proxymap::Status::Ok, proxymap::Status::NoKey]
        );
    }
    Ok(())
}

fn registry(daemon: &StandIn) -> Registry {
    Registry::new(TableContext {
        queue_directory: daemon.scratch().join("queue"),
        ipc_timeout: Duration::from_secs(5),
        ..TableContext::default()
    })
}

#[test]
fn a_proxy_table_reads_and_writes() -> Result<()> {
    let flags = Flags::LOCK | Flags::DUP_WARN | Flags::FOLD_FIX | Flags::UTF8_REQUEST;
    for implementation in BOTH {
        let Some(daemon) = proxymap(implementation, "proxymap")? else {
            continue;
        };
        let name = TableName::parse(
            format!("proxy:texthash:{}/tables/t1", daemon.scratch().display()).as_bytes(),
        )?;
        let table = registry(&daemon).open(&name, Access::Read, flags)?;
        let mut value = Vec::new();
        ensure!(table.lookup(flags, b"K1", &mut value)? == Outcome::Done);
        ensure!(value == b"v1");
        ensure!(table.lookup(flags, b"none", &mut value)? == Outcome::Absent);

        let Some(daemon) = proxymap(implementation, "proxywrite")? else {
            continue;
        };
        let name = TableName::parse(
            format!("proxy:lmdb:{}/data/w1", daemon.scratch().display()).as_bytes(),
        )?;
        let table = registry(&daemon).open(&name, Access::ReadWrite, flags)?;
        ensure!(table.update(flags, b"key", b"value")? == Outcome::Done);
        let (mut cursor, mut key, mut value) = (Cursor::default(), Vec::new(), Vec::new());
        let first = table.sequence(flags, Step::First, &mut cursor, &mut key, &mut value)?;
        ensure!((first, &key[..], &value[..]) == (Outcome::Done, &b"key"[..], &b"value"[..]));
        let next = table.sequence(flags, Step::Next, &mut cursor, &mut key, &mut value)?;
        ensure!(next == Outcome::Absent);
        ensure!(table.delete(flags, b"key")? == Outcome::Done);
    }
    Ok(())
}
