//! Our daemons beside Postfix's own, under the same stand-in for master, in turns within one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::attributes::list;
use postkeep_testkit::stand_in::Plan;
use postkeep_testkit::{Implementation, Scratch, StandIn, real_postfix};
use serde_json::{Value, json};

use crate::load::{Crowd, Script, Step, slow_tcp_table};
use crate::turns::{self, Contest, Side};
use crate::{cargo, run as execute, top};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Turns of each pair; the ratio is the median over the turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64])]
    clients: Vec<usize>,
    /// Threads of the load generator
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only benches whose name holds this
    #[arg(long)]
    only: Option<String>,
    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Do not build; take the executables that are there
    #[arg(long)]
    no_build: bool,
    /// Our executable, instead of the release build
    #[arg(long)]
    postkeep: Option<PathBuf>,
    /// Our executable with the table type `slow:`, instead of the test build
    #[arg(long)]
    postkeep_slow: Option<PathBuf>,
}

/// Entries of the file tables.
const ENTRIES: usize = 10_000;

struct Bench {
    name: &'static str,
    service: &'static str,
    greeting: Vec<u8>,
    script: fn(&str) -> Script,
    unit: &'static str,
}

fn benches() -> Vec<Bench> {
    let proxymap = |name, script| Bench {
        name,
        service: "proxymap",
        greeting: list(&[("protocol", "proxymap_protocol")]),
        script,
        unit: "lookups/s",
    };
    vec![
        proxymap("proxymap inline", |_| {
            lookups("inline:{ {key=value}, {two=2} }".to_owned(), false)
        }),
        proxymap("proxymap texthash", |root| {
            lookups(format!("texthash:{root}/tables/text"), true)
        }),
        proxymap("proxymap lmdb", |root| {
            lookups(format!("lmdb:{root}/tables/index"), true)
        }),
        Bench {
            name: "scache find+save",
            service: "scache",
            greeting: list(&[("protocol", "connection_cache_protocol")]),
            script: |_| cycles(),
            unit: "cycles/s",
        },
    ]
}

/// Lookups as postmap(1) of Postfix 3.7 sends them.
fn lookups(table: String, many: bool) -> Script {
    Arc::new(move |number| {
        let keys: Vec<(String, String)> = if many {
            (0..64)
                .map(|turn| (number * 7919 + turn * 104_729) % ENTRIES)
                .map(|entry| {
                    (
                        format!("user{entry}@example.test"),
                        format!("mailbox{entry}"),
                    )
                })
                .collect()
        } else {
            vec![("key".to_owned(), "value".to_owned())]
        };
        keys.iter()
            .map(|(key, value)| {
                vec![
                    Step::Send(list(&[
                        ("request", "lookup"),
                        ("table", &table),
                        ("flags", "524353"),
                        ("key", key),
                    ])),
                    Step::Expect(list(&[("status", "0"), ("value", value)])),
                ]
            })
            .collect()
    })
}

/// Saves a session and a binding, finds the session by destination, saves it again, finds it by endpoint.
fn cycles() -> Script {
    Arc::new(|number| {
        let endpoint = format!("smtp\n127.0.0.{number}\n25\n0\n");
        let destination = format!("smtp\n[127.0.0.{number}]\n");
        let endpoint_property =
            "tls_level=0\nreuse_count=0\nendpoint_features=32783\nexpire_time=1795323935\n\n";
        let destination_property = format!(
            "destination=[127.0.0.{number}]\nhost_name=127.0.0.{number}\nhost_addr=127.0.0.{number}\n\
             destination_features=4096\n\n"
        );
        let done = || Step::Expect(list(&[("status", "0")]));
        let prompt = || list(&[("dummy", "")]);
        let save = || {
            [
                Step::Send(list(&[
                    ("request", "save_endp"),
                    ("ttl", "30"),
                    ("label", &endpoint),
                    ("property", endpoint_property),
                ])),
                Step::Expect(prompt()),
                Step::Pass,
                done(),
            ]
        };
        let collect = || [Step::Send(prompt()), Step::Collect, Step::Send(prompt())];
        let mut steps = Vec::new();
        steps.extend(save());
        steps.extend([
            Step::Send(list(&[
                ("request", "save_dest"),
                ("ttl", "30"),
                ("label", &destination),
                ("property", &destination_property),
                ("label", &endpoint),
            ])),
            done(),
            Step::Send(list(&[("request", "find_dest"), ("label", &destination)])),
            Step::Expect(list(&[
                ("status", "0"),
                ("property", &destination_property),
                ("property", endpoint_property),
            ])),
        ]);
        steps.extend(collect());
        steps.extend(save());
        steps.extend([
            Step::Send(list(&[("request", "find_endp"), ("label", &endpoint)])),
            Step::Expect(list(&[("status", "0"), ("property", endpoint_property)])),
        ]);
        steps.extend(collect());
        vec![steps]
    })
}

/// The directory with the tables; each daemon gets a copy of its own.
fn tables() -> Result<Scratch> {
    let scratch = Scratch::new("bench")?;
    scratch.directory("tables", 0o755)?;
    let mut text = String::new();
    for entry in 0..ENTRIES {
        let entry = entry.to_string();
        text.extend(["user", &entry, "@example.test mailbox", &entry, "\n"]);
    }
    scratch.file("tables/text", &text)?;
    let index = scratch.file("tables/index", &text)?;
    // A file of this very second would be read again and again.
    for name in ["tables/text", "tables/index"] {
        let old = std::time::SystemTime::now() - Duration::from_secs(10);
        fs::File::options()
            .append(true)
            .open(scratch.path().join(name))?
            .set_modified(old)?;
    }
    let real = real_postfix().context("no Postfix")?;
    let status = real
        .command("postmap")
        .arg(format!("lmdb:{}", index.display()))
        .status()?;
    ensure!(status.success(), "postmap: {status}");
    Ok(scratch)
}

fn plan(implementation: Implementation, service: &str, postkeep: &Path) -> Plan {
    let plan = Plan::new(implementation, service);
    match implementation {
        Implementation::Postfix => plan,
        Implementation::Postkeep => plan.executable(postkeep),
    }
}

fn start(implementation: Implementation, service: &str, postkeep: &Path) -> Result<StandIn> {
    plan(implementation, service, postkeep)
        .parameter("max_use", "1000000")
        .parameter("connection_cache_ttl_limit", "30s")
        .parameter(
            "proxy_read_maps",
            "proxy:inline:{ {key=value}, {two=2} } proxy:texthash:$SCRATCH/tables/text \
             proxy:lmdb:$SCRATCH/tables/index",
        )
        .start_in(tables()?)?
        .context("the daemon is not there")
}

fn compare(bench: &Bench, clients: usize, postkeep: &Path, options: &Options) -> Result<Value> {
    let side = |implementation| -> Result<Side> {
        let daemon = start(implementation, bench.service, postkeep)?;
        let script = (bench.script)(&daemon.scratch().display().to_string());
        let mut crowd = Crowd::connect(
            &daemon.socket(),
            &bench.greeting,
            clients,
            options.threads,
            &script,
        )?;
        crowd.run_for(Duration::from_millis(200))?;
        Ok(Side { daemon, crowd })
    };
    Contest {
        name: bench.name,
        clients,
        unit: bench.unit,
        duration: Duration::from_secs_f64(options.seconds),
        rounds: options.rounds,
    }
    .run(
        &mut side(Implementation::Postfix)?,
        &mut side(Implementation::Postkeep)?,
    )
}

/// Lookups of each client in a table that takes ten milliseconds for each.
const SLOW_LOOKUPS: usize = 20;
const SLOW: Duration = Duration::from_millis(10);

/// The time that one client, then 64 clients at once, need for [`SLOW_LOOKUPS`] lookups each.
fn slow(implementation: Implementation, postkeep: &Path) -> Result<Value> {
    let table = match implementation {
        Implementation::Postfix => format!("tcp:127.0.0.1:{}", slow_tcp_table(SLOW)?),
        Implementation::Postkeep => format!("slow:{}", SLOW.as_millis()),
    };
    let daemon = plan(implementation, "proxymap", postkeep)
        .parameter("max_use", "1000000")
        .parameter("proxy_read_maps", &format!("proxy:{table}"))
        .start()?
        .context("the daemon is not there")?;
    let greeting = list(&[("protocol", "proxymap_protocol")]);
    let script: Script = Arc::new(move |_| {
        vec![vec![
            Step::Send(list(&[
                ("request", "lookup"),
                ("table", &table),
                ("flags", "0"),
                ("key", "k"),
            ])),
            Step::Expect(list(&[("status", "0"), ("value", "slow")])),
        ]]
    });
    let mut times = Vec::new();
    for clients in [1, 64] {
        let mut crowd = Crowd::connect(&daemon.socket(), &greeting, clients, clients, &script)?;
        let lookups = if implementation == Implementation::Postfix && clients > 1 {
            2
        } else {
            SLOW_LOOKUPS
        };
        let done = crowd.run_times(lookups)?;
        let each = done.elapsed.as_secs_f64() * 1000.0 / f64::from(u32::try_from(lookups)?);
        times.push(each);
    }
    println!(
        "{:<18} one client: {:.1} ms a lookup, 64 clients at once: {:.1} ms a lookup each ({:.2} times)",
        format!("{implementation:?}"),
        times[0],
        times[1],
        times[1] / times[0],
    );
    Ok(json!({
        "implementation": format!("{implementation:?}"),
        "one_client_ms": times[0], "sixty_four_clients_ms": times[1],
    }))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let real = real_postfix().context("Postfix is needed for comparison")?;
    let target = top().join("target");
    if !options.no_build {
        execute(
            cargo()
                .args([
                    "build",
                    "--release",
                    "-p",
                    "postkeep",
                    "--locked",
                    "--target-dir",
                ])
                .arg(&target),
        )?;
        execute(
            cargo()
                .args([
                    "build",
                    "-p",
                    "postkeep",
                    "--locked",
                    "--features",
                    "test-tables",
                    "--target-dir",
                ])
                .arg(target.join("test-tables")),
        )?;
    }
    let postkeep = options
        .postkeep
        .clone()
        .unwrap_or_else(|| target.join("release/postkeep"));
    turns::print_head();
    let mut rates = Vec::new();
    for bench in benches() {
        if options
            .only
            .as_ref()
            .is_some_and(|only| !bench.name.contains(only))
        {
            continue;
        }
        for &clients in &options.clients {
            let row = compare(&bench, clients, &postkeep, options)
                .with_context(|| format!("{}, {clients} clients", bench.name))?;
            rates.push(row);
        }
    }
    let slow_build = options
        .postkeep_slow
        .clone()
        .unwrap_or_else(|| target.join("test-tables/debug/postkeep"));
    let slow = [
        slow(Implementation::Postfix, &slow_build)?,
        slow(Implementation::Postkeep, &slow_build)?,
    ];
    let numbers = json!({
        "postfix": real.version,
        "processors": std::thread::available_parallelism()?.get(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "rates": rates,
        "ten_millisecond_table": slow,
    });
    let file = top().join(&options.json);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&file, serde_json::to_string_pretty(&numbers)? + "\n")?;
    println!("{}", file.display());
    Ok(())
}
