//! Runs what docs/many-machines.md shows: its blocks are taken from there, with other names, directories and ports.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postkeep_interop::servers::redis::Redis;
use postkeep_testkit::private_postfix::{Plan, PrivatePostfix, free_port};
use postkeep_testkit::{Implementation, Scratch, postkeep_binary};

const DOCUMENT: &str = include_str!("../../docs/many-machines.md");
const LIMIT: Duration = Duration::from_secs(10);

/// The blocks of the document by their first lines, which are comments.
fn blocks() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for block in DOCUMENT.split("```").skip(1).step_by(2) {
        let (_, block) = block.split_once('\n').unwrap();
        let (title, text) = block.split_once('\n').unwrap();
        let title = title.strip_prefix("# ").unwrap();
        let before = found.insert(title.to_owned(), text.to_owned());
        assert_eq!(before, None, "{title}");
    }
    found
}

/// Where things are here.
struct Site {
    directory: Scratch,
    port: u16,
    tunnel: u16,
    blocks: BTreeMap<String, String>,
}

impl Site {
    fn new() -> Result<Self> {
        let site = Self {
            directory: Scratch::new("many-machines")?,
            port: free_port()?,
            tunnel: free_port()?,
            blocks: blocks(),
        };
        let made = Command::new("sh")
            .args(["-ec", &site.block("certificates")])
            .current_dir(site.directory.path())
            .output()?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        for entry in fs::read_dir(site.directory.path())? {
            fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o644))?;
        }
        site.directory
            .file("aliases", "ann\tann@example.org\nbob\tbob@example.net\n")?;
        Ok(site)
    }

    /// A block as it has to be here.
    fn block(&self, title: &str) -> String {
        let text = self
            .blocks
            .get(title)
            .unwrap_or_else(|| panic!("no block {title}"));
        text.replace("/etc/postkeep", self.directory.path().to_str().unwrap())
            .replace(
                "tables.example.org:8650 inet",
                &format!("127.0.0.1:{} inet", self.port),
            )
            .replace("192.0.2.1", "127.0.0.1")
            .replace("tables.example.org", "localhost")
            .replace("8650", &self.port.to_string())
            .replace("8651", &self.tunnel.to_string())
    }

    /// An instance with the parameters of a block.
    fn plan(&self, implementation: Implementation, title: &str) -> Plan {
        let mut plan = Plan::new(implementation);
        for (name, value) in assignments(&self.block(title)) {
            plan = plan.parameter(&name, &value);
        }
        plan
    }

    fn server(&self) -> Result<Option<PrivatePostfix>> {
        self.plan(Implementation::Postkeep, "main.cf of tables.example.org")
            .daemon("socketmap")
            .service(&self.block("master.cf of tables.example.org"))
            .start()
    }
}

/// `name = value` with lines that go on after blanks.
fn assignments(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            let (_, value) = found.last_mut().unwrap();
            value.push(' ');
            value.push_str(line.trim());
        } else {
            let (name, value) = line.split_once('=').unwrap();
            found.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

fn asked(postfix: &PrivatePostfix, key: &str, parameter: &str) -> Result<String> {
    let table = postfix.command("postconf", &["-h", parameter])?;
    let table = String::from_utf8(table.stdout)?;
    let output = postfix.command("postmap", &["-q", key, table.trim()])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr))
}

/// Ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_port(port: u16) {
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody listens");
        thread::sleep(Duration::from_millis(20));
    }
}

fn stunnel(configuration: &Path) -> Option<Ended> {
    let program = ["/usr/bin/stunnel4", "/usr/bin/stunnel"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(program) = program else {
        postkeep_testkit::program::skip("stunnel is not installed");
        return None;
    };
    let child = Command::new(program)
        .arg(configuration)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some(Ended(child))
}

#[test]
fn tables_are_served_to_all_kinds_of_clients() -> Result<()> {
    let site = Site::new()?;
    let Some(server) = site.server()? else {
        return Ok(());
    };
    for (implementation, title) in [
        (Implementation::Postkeep, "main.cf of mx1.example.org"),
        (Implementation::Postkeep, "main.cf of mx2.example.org"),
    ] {
        let Some(client) = site.plan(implementation, title).start()? else {
            return Ok(());
        };
        for _ in 0..2 {
            let found = asked(&client, "ann", "virtual_alias_maps")?;
            ensure!(
                found == "ann@example.org\n",
                "{title}: {found} {}",
                client.log()
            );
        }
        ensure!(asked(&client, "nobody", "virtual_alias_maps")?.is_empty());
        if title.contains("mx1") {
            let command = site.block("from mx1");
            let mut words = command.trim().split(' ');
            ensure!(words.next() == Some("postmap"));
            let words: Vec<&str> = words.collect();
            let output = client.command("postmap", &words)?;
            ensure!(output.stdout == b"ann@example.org\n");
        }
    }
    let settings = format!(
        "foreground = yes\npid =\n{}",
        site.block("/etc/stunnel/tables.conf")
    );
    let settings = site.directory.file("tables.conf", &settings)?;
    if let Some(_tunnel) = stunnel(&settings) {
        wait_for_port(site.tunnel);
        let plain = site.plan(Implementation::Postfix, "main.cf of a Postfix as it comes");
        let Some(client) = plain.start()? else {
            return Ok(());
        };
        let found = asked(&client, "bob", "virtual_alias_maps")?;
        ensure!(found == "bob@example.net\n", "{found}");
        exim_asks(&site)?;
    }
    ensure!(server.logged("warning: ") == 0, "{}", server.log());
    Ok(())
}

fn exim_asks(site: &Site) -> Result<()> {
    let root = Path::new("/opt/postkeep-test-exim");
    let program = root.join("usr/sbin/exim4");
    if !program.exists() {
        postkeep_testkit::program::skip("no exim: scripts/install-test-deps.sh unpacks one");
        return Ok(());
    }
    let spool = site.directory.directory("spool", 0o755)?;
    let configuration = site.directory.file(
        "exim.conf",
        &format!(
            "spool_directory = {0}\nlog_file_path = {0}/%slog\n",
            spool.display()
        ),
    )?;
    let expression = site.block("exim").replace("\\\n", "");
    for (key, expected) in [("ann", "ann@example.org"), ("bob", "bob@example.net")] {
        let output = Command::new(&program)
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .arg("-C")
            .arg(&configuration)
            .args(["-be", &expression.replace("$local_part", key)])
            .output()?;
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(found.trim() == expected, "{found} {said}");
    }
    let output = Command::new(&program)
        .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
        .arg("-C")
        .arg(&configuration)
        .args(["-be", &expression.replace("$local_part", "nobody")])
        .output()?;
    let found = [output.stdout, output.stderr].concat();
    let found = String::from_utf8_lossy(&found).into_owned();
    ensure!(
        found.contains("Failed: ") && found.contains("fail"),
        "{found}"
    );
    Ok(())
}

#[test]
fn tables_are_served_without_postfix() -> Result<()> {
    let site = Site::new()?;
    let Some(postkeep) = postkeep_binary() else {
        return Ok(());
    };
    let directory = site.directory.directory("serve", 0o755)?;
    let start = || -> Result<Ended> {
        let child = Command::new(&postkeep)
            .args(["serve", "-d"])
            .arg(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Ended(child))
    };
    let first = start()?;
    let main_cf = directory.join("main.cf");
    let deadline = Instant::now() + LIMIT;
    while !directory.join("queue/private/proxymap").exists() {
        ensure!(Instant::now() < deadline, "it does not start");
        thread::sleep(Duration::from_millis(20));
    }
    drop(first);
    let text = fs::read_to_string(&main_cf)?
        + &site.block("main.cf of postkeep serve")
        + &site.block("main.cf of tables.example.org");
    fs::write(&main_cf, text)?;
    let old = std::time::SystemTime::now() - Duration::from_secs(10);
    fs::File::options()
        .append(true)
        .open(&main_cf)?
        .set_modified(old)?;
    let _serve = start()?;
    wait_for_port(site.port);
    let plan = site.plan(Implementation::Postkeep, "main.cf of mx1.example.org");
    let Some(client) = plan.start()? else {
        return Ok(());
    };
    let found = asked(&client, "ann", "virtual_alias_maps")?;
    ensure!(found == "ann@example.org\n", "{found} {}", client.log());
    Ok(())
}

#[test]
fn caches_are_shared() -> Result<()> {
    let Some(redis) = Redis::start(&["--requirepass", "secret"]) else {
        return Ok(());
    };
    let Some(postkeep) = postkeep_binary() else {
        return Ok(());
    };
    let site = Site::new()?;
    let settings = site.block("/etc/postkeep/verify.cf").replace(
        "redis.example.org:6379",
        &format!("127.0.0.1:{}", redis.port),
    );
    let settings = site.directory.file("verify.cf", &settings)?;
    let table = format!("redis:{}", settings.display());
    let plan = || site.plan(Implementation::Postkeep, "main.cf of each machine");
    let (Some(one), Some(other)) = (plan().start()?, plan().start()?) else {
        return Ok(());
    };
    let call = |postfix: &PrivatePostfix, words: &[&str]| -> Result<String> {
        let output = Command::new(&postkeep)
            .arg("proxymap")
            .arg(words[0])
            .arg("--socket")
            .arg(postfix.scratch().join("queue/private/proxywrite"))
            .args(&words[1..])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{said} {}", postfix.log());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    call(&one, &["update", &table, "ann@example.org", "0:1:2:fine"])?;
    let found = call(&other, &["lookup", &table, "ann@example.org"])?;
    ensure!(found == "0:1:2:fine\n", "{found}");
    Ok(())
}
