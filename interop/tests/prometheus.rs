//! A real Prometheus reads our metrics: it answers every question of the dashboard, and evaluates every alert rule.
//!
//! With `POSTKEEP_WRITE_DOCS` in the environment the answers are written to docs/screens/dashboard.md, and a picture of
//! `postkeep top` beside it.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::lookups::{lookup, request};
use postkeep_interop::servers::prometheus::Prometheus;
use postkeep_interop::servers::{Server, read_until};
use postkeep_testkit::attributes::list;
use postkeep_testkit::peer::{collect_session, save_endpoint, session};
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::stand_in::{Plan, StandIn};
use postkeep_testkit::{Implementation, program};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../packaging/monitoring/grafana-dashboard.json");
const RULES: &str = include_str!("../../packaging/monitoring/postkeep.rules.yml");

/// The daemons and what they do.
struct Scene {
    proxymap: StandIn,
    proxywrite: StandIn,
    scache: StandIn,
    ports: [u16; 3],
    tables: Vec<String>,
    cache: String,
    parked: (UnixStream, UnixStream),
}

impl Scene {
    fn set() -> Result<Option<Self>> {
        let server = Server::start(|mut client| {
            while read_until(&mut client, b'\n').is_some() {
                thread::sleep(Duration::from_millis(8));
                let _ = client.write_all(b"200 value\n");
            }
        });
        // Nobody listens there any more.
        let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let tables = vec![
            "static:all".to_owned(),
            format!("tcp:127.0.0.1:{}", server.port),
            format!("cache:{{tcp:127.0.0.1:{}, ttl=1s}}", server.port),
            format!("tcp:127.0.0.1:{dead}"),
        ];
        let approved: Vec<String> = tables
            .iter()
            .map(|table| format!("proxy:{table}"))
            .collect();
        let approved = approved
            .join(" ")
            .replace("proxy:cache:{", "{proxy:cache:{")
            .replace("ttl=1s}", "ttl=1s}}");
        let ports = [free_port()?, free_port()?, free_port()?];
        let plan = |service: &str, port: u16| {
            Plan::new(Implementation::Postkeep, service)
                .parameter(
                    "postkeep_metrics_address",
                    &format!("inet:127.0.0.1:{port}"),
                )
                .parameter("postkeep_attribute_size_limit", "5000")
                .parameter("max_use", "100000")
        };
        let proxymap = plan("proxymap", ports[0]).parameter("proxy_read_maps", &approved);
        let proxywrite = plan("proxywrite", ports[1])
            .parameter("proxy_write_maps", "proxy:lmdb:$SCRATCH/data/c");
        let (Some(proxymap), Some(proxywrite), Some(scache)) = (
            proxymap.start()?,
            proxywrite.start()?,
            plan("scache", ports[2])
                .parameter("connection_cache_ttl_limit", "100s")
                .start()?,
        ) else {
            return Ok(None);
        };
        let cache = format!("lmdb:{}/data/c", proxywrite.scratch().display());
        Ok(Some(Self {
            proxymap,
            proxywrite,
            scache,
            ports,
            tables,
            cache,
            parked: UnixStream::pair()?,
        }))
    }

    /// A little of everything.
    fn act(&self) -> Result<()> {
        let mut client = self.proxymap.connect_and_greet()?;
        for table in &self.tables {
            lookup(&mut client, table, "k")?;
            lookup(&mut client, table, "k")?;
        }
        lookup(&mut client, "static:denied", "k")?;
        let mut client = self.proxywrite.connect_and_greet()?;
        client.exchange(&list(&[
            ("request", "update"),
            ("table", self.cache.as_str()),
            ("flags", "0"),
            ("key", "k"),
            ("value", "v"),
        ]))?;
        let mut client = self.scache.connect_and_greet()?;
        let (ours, _theirs) = session()?;
        save_endpoint(&mut client, 50, "smtp\\nx", "p", ours.as_fd())?;
        client.exchange(&list(&[("request", "find_endp"), ("label", "smtp\\nx")]))?;
        drop(collect_session(&mut client)?);
        // Others stay.
        save_endpoint(&mut client, 50, "smtp\\ny", "p", self.parked.0.as_fd())?;
        client.exchange(&list(&[
            ("request", "save_dest"),
            ("ttl", "50"),
            ("label", "d"),
            ("property", "p"),
            ("label", "smtp\\ny"),
        ]))?;
        let mut client = self.proxymap.connect_and_greet()?;
        client.send(&request("static:all", &"k".repeat(6000)))?;
        let _ = client.drain(Duration::from_millis(50));
        Ok(())
    }
}

/// The titles of the panels, and their questions.
fn panels() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let mut questions = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("no title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let question = target["expr"].as_str().context("no question")?;
            questions.push((title.to_owned(), question.to_owned()));
        }
    }
    ensure!(questions.len() > 10);
    Ok(questions)
}

/// What it answers: labels and values.
fn answer(prometheus: &Prometheus, question: &str) -> Result<Vec<(String, String)>> {
    // What Grafana puts in.
    let question = question
        .replace("$__rate_interval", "10s")
        .replace("$service", ".*");
    let text = prometheus.query(&question);
    let answer: Value = serde_json::from_str(&text)?;
    ensure!(answer["status"] == "success", "{question}: {text}");
    let series = answer["data"]["result"].as_array().context("no result")?;
    series
        .iter()
        .map(|series| {
            let labels: Vec<String> = series["metric"]
                .as_object()
                .context("no labels")?
                .iter()
                .filter(|(name, _)| !["instance", "job", "__name__"].contains(&name.as_str()))
                .map(|(name, text)| format!("{name}={text}"))
                .collect();
            let value = series["value"][1].as_str().context("no value")?;
            Ok((labels.join(" "), value.to_owned()))
        })
        .collect()
}

#[test]
fn every_panel_has_an_answer_and_every_rule_is_evaluated() -> Result<()> {
    let Some(scene) = Scene::set()? else {
        return Ok(());
    };
    let Some(prometheus) = Prometheus::start(RULES, &scene.ports) else {
        return Ok(());
    };
    scene
        .act()
        .with_context(|| format!("{:?}", scene.proxymap.log_texts()))?;
    let deadline = Instant::now() + Duration::from_secs(40);
    let questions = panels()?;
    let mut open: Vec<_> = questions.iter().collect();
    let mut answers = Vec::new();
    while !open.is_empty() {
        ensure!(Instant::now() < deadline, "without an answer: {open:#?}");
        scene
            .act()
            .with_context(|| format!("{:?}", scene.proxymap.log_texts()))?;
        thread::sleep(Duration::from_millis(300));
        let mut still = Vec::new();
        for question in open {
            let found = answer(&prometheus, &question.1)?;
            // Rates are there with the second page, and are no numbers before anything happens. Of the others, the
            // threads are at rest most of the time.
            let may_be_zero = question.1.starts_with("postkeep_slow_");
            let tells = found
                .iter()
                .any(|(_, value)| may_be_zero || value.parse().is_ok_and(|value: f64| value > 0.0));
            if tells {
                answers.push((question, found));
            } else {
                still.push(question);
            }
        }
        open = still;
    }
    loop {
        let rules: Value = serde_json::from_str(&prometheus.ask("rules"))?;
        let rules = rules["data"]["groups"][0]["rules"]
            .as_array()
            .context("no rules")?;
        let sound = rules.iter().all(|rule| rule["health"] == "ok");
        let firing = rules
            .iter()
            .any(|rule| rule["name"] == "PostkeepUnapprovedTable" && rule["state"] == "firing");
        if sound && firing {
            ensure!(rules.len() == RULES.matches("- alert:").count());
            break;
        }
        ensure!(Instant::now() < deadline, "{rules:#?}");
        scene.act()?;
        thread::sleep(Duration::from_millis(300));
    }
    if std::env::var_os("POSTKEEP_WRITE_DOCS").is_some() {
        let scratch = scene
            .cache
            .trim_start_matches("lmdb:")
            .trim_end_matches("/c");
        write(&questions, &answers, scratch)?;
        draw(&scene)?;
    }
    Ok(())
}

type Answered<'a> = (&'a (String, String), Vec<(String, String)>);

/// - `scratch`: the directory that has another name each time
fn write(questions: &[(String, String)], answers: &[Answered<'_>], scratch: &str) -> Result<()> {
    let mut text = String::from(
        "<!-- Written by interop/tests/prometheus.rs. -->\n\n# The dashboard's questions, answered\n\n\
         What a real Prometheus that reads three daemons under a small load answers to the questions of\n\
         [packaging/monitoring/grafana-dashboard.json](../../packaging/monitoring/grafana-dashboard.json).\n",
    );
    for question in questions {
        let (_, found) = answers
            .iter()
            .find(|(answered, _)| *answered == question)
            .context("an answer is missing")?;
        write!(text, "\n**{}**\n\n```\n{}\n", question.0, question.1)?;
        for (labels, value) in found {
            let value: f64 = value.parse()?;
            // Ports are others each time.
            let labels: Vec<&str> = labels.split("127.0.0.1:").collect();
            let labels = labels.iter().enumerate().map(|(index, part)| match index {
                0 => (*part).to_owned(),
                _ => format!(
                    "127.0.0.1:PORT{}",
                    part.trim_start_matches(|character: char| character.is_ascii_digit())
                ),
            });
            let labels = labels
                .collect::<String>()
                .replace(scratch, "/var/lib/postfix");
            writeln!(text, "  {labels} {value:.4}")?;
        }
        text.push_str("```\n");
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/screens");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("dashboard.md"), text)?;
    Ok(())
}

const ROWS: u16 = 22;
const COLUMNS: u16 = 104;

/// A picture of `postkeep top` while something is done.
fn draw(scene: &Scene) -> Result<()> {
    let postkeep = program::postkeep_binary().context("no executable")?;
    let addresses: Vec<String> = scene
        .ports
        .iter()
        .map(|port| format!("-a inet:127.0.0.1:{port}"))
        .collect();
    let command = format!(
        "stty rows {ROWS} cols {COLUMNS}; exec {} top --interval 1 {}",
        postkeep.display(),
        addresses.join(" ")
    );
    let mut child = Command::new("script")
        .args(["-q", "-e", "-c", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("no output")?;
    let reader = thread::spawn(move || {
        let mut seen = Vec::new();
        let _ = output.read_to_end(&mut seen);
        seen
    });
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        scene.act()?;
    }
    child.stdin.as_mut().context("no input")?.write_all(b"q")?;
    ensure!(child.wait()?.success());
    let seen = reader.join().ok().context("no output")?;
    // What it shows before it leaves the other screen.
    let leave = b"\x1b[?1049l";
    let end = seen
        .windows(leave.len())
        .position(|bytes| bytes == leave)
        .context("it never left")?;
    let size = |length| NonZero::new(length).context("no size");
    let mut terminal = vt100::Parser::new(size(ROWS)?, size(COLUMNS)?, 0);
    terminal.process(&seen[..end]);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/screens");
    fs::write(directory.join("top.svg"), picture(terminal.screen())?)?;
    Ok(())
}

/// A screen as SVG: a text for each run of cells that look the same.
fn picture(screen: &vt100::Screen) -> Result<String> {
    const WIDTH: f32 = 7.8;
    const HEIGHT: f32 = 17.0;
    let colour = |colour: vt100::Color, usual: &'static str| match colour {
        vt100::Color::Idx(1 | 9) => "#ff6b6b",
        vt100::Color::Idx(2 | 10) => "#69db7c",
        vt100::Color::Idx(3 | 11) => "#ffd43b",
        vt100::Color::Idx(8) => "#868e96",
        _ => usual,
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"monospace\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#1a1b1e\"/>\n",
        f32::from(COLUMNS) * WIDTH + 16.0,
        f32::from(ROWS) * HEIGHT + 16.0
    );
    for row in 0..ROWS {
        let mut column = 0;
        while column < COLUMNS {
            let look = |column| {
                screen
                    .cell(row, column)
                    .map(|cell| (cell.fgcolor(), cell.inverse(), cell.bold()))
            };
            let Some(first @ (foreground, inverse, bold)) = look(column) else {
                break;
            };
            let begin = column;
            let mut run = String::new();
            while column < COLUMNS && look(column) == Some(first) {
                let cell = screen.cell(row, column).map_or("", vt100::Cell::contents);
                run.push_str(if cell.is_empty() { " " } else { cell });
                column += 1;
            }
            if run.trim().is_empty() && !inverse {
                continue;
            }
            let (x, y) = (
                f32::from(begin) * WIDTH + 8.0,
                f32::from(row) * HEIGHT + 8.0,
            );
            let width = f32::from(column - begin) * WIDTH;
            if inverse {
                writeln!(
                    text,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"#ced4da\"/>"
                )?;
            }
            let fill = if inverse {
                "#1a1b1e"
            } else {
                colour(foreground, "#e9ecef")
            };
            let weight = if bold { " font-weight=\"bold\"" } else { "" };
            let run = run.replace('&', "&amp;").replace('<', "&lt;");
            writeln!(
                text,
                "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
                 xml:space=\"preserve\" fill=\"{fill}\"{weight}>{run}</text>",
                y + 13.0
            )?;
        }
    }
    text.push_str("</svg>\n");
    Ok(text)
}
