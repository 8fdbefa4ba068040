//! Every command line in README.md, docs/ and the man pages is run by a test: by this one, or by the one that is named
//! here for it. A command line that is in a document and not here fails, and so does one that is here and in no document.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use postkeep_testkit::scratch::give_to;
use postkeep_testkit::{Scratch, postkeep_binary};

/// How a command line comes to be run.
#[derive(Clone, Copy, Debug)]
enum Run {
    /// By [`sessions_do_what_they_show`].
    Session,
    /// By [`certificates_are_made_and_fit`].
    Certificates,
    /// By this file, in which this text stands.
    In(&'static str, &'static str),
}
use Run::{Certificates, In, Session};

const PACKAGE: &str = "scripts/test-deb.sh";

/// Command lines by their beginning. The first that fits counts.
const RULES: &[(&str, Run)] = &[
    (
        "cargo build --release && ./target/release/postkeep serve",
        In("scripts/test.sh", "cargo build"),
    ),
    ("scripts/test.sh", In(".ci/run", "scripts/test.sh")),
    (
        "dpkg -i \"$(scripts/build-deb.sh",
        In("scripts/test.sh", "scripts/build-deb.sh"),
    ),
    ("postkeep doctor", In(PACKAGE, "postkeep doctor")),
    (
        "postkeep adopt --dry-run",
        In(PACKAGE, "postkeep adopt --dry-run"),
    ),
    ("postkeep adopt", In(PACKAGE, "postkeep adopt")),
    ("postkeep release", In(PACKAGE, "postkeep release")),
    (
        "postkeep status -d /var/spool/postfix",
        In(PACKAGE, "postkeep status -d /var/spool/postfix"),
    ),
    ("postkeep status", In(PACKAGE, "postkeep status\n")),
    // The picture that changes is tested in crates/postkeep/tests/monitor.rs.
    (
        "postkeep top",
        In(
            PACKAGE,
            "postkeep top --once --json | jq '.services[].lookups.tables[]?.table'",
        ),
    ),
    (
        "postkeep reload --table mysql:",
        In("crates/postkeep/tests/serve_managed.rs", "\"--table\", "),
    ),
    (
        "postkeep reload -d /var/spool/postfix proxymap",
        In(PACKAGE, "postkeep reload -d /var/spool/postfix proxymap"),
    ),
    (
        "cd /var/spool/postfix/private",
        In(PACKAGE, "cd /var/spool/postfix/private"),
    ),
    (
        "postkeep shadow --listen shadow",
        In(
            PACKAGE,
            "postkeep shadow --listen shadow --reference proxymap",
        ),
    ),
    (
        "postconf -e proxymap_service_name=shadow",
        In(PACKAGE, "postconf -e proxymap_service_name=shadow"),
    ),
    (
        "postconf -X proxymap_service_name",
        In(PACKAGE, "postconf -X proxymap_service_name"),
    ),
    ("postfix reload", In(PACKAGE, "postfix reload")),
    ("kill %1", In(PACKAGE, "kill %1")),
    (
        "postconf -c /etc/postfix -e 'proxy_read_maps",
        In("interop/tests/adopt.rs", "doctor"),
    ),
    (
        "postfix -c /etc/postfix reload",
        In(PACKAGE, "postfix reload"),
    ),
    (
        "printf '13:aliases alice,'",
        In("interop/tests/socketmap_server.rs", "aliases"),
    ),
    (
        "postmap -q alice socketmap:inet:",
        In("interop/tests/socketmap_server.rs", "socketmap:inet:"),
    ),
    (
        "postmap -q ann proxy:socketmap:tls:",
        In("interop/tests/socketmap_server.rs", "proxy:socketmap:tls:"),
    ),
    (
        "cargo build --release -p postkeep-client-c",
        In("scripts/test.sh", "cargo build --workspace"),
    ),
    (
        "cc -Icrates/client-c/include program.c",
        In("crates/client-c/tests/c_program.rs", "Command::new(\"cc\")"),
    ),
    ("openssl ", Certificates),
    ("printf 'subjectAltName", Certificates),
    ("postkeep proxymap ", Session),
    ("postkeep postmap ", Session),
    ("postkeep scache ", Session),
    ("cd ~/.local/state/postkeep/tables", Session),
    ("printf 'alice 1001", Session),
    ("sleep 30", Session),
];

/// The user `nobody`, and its group.
const NOBODY: u32 = 65534;

/// What a command line begins with, in the literal blocks of man pages.
const COMMANDS: [&str; 9] = [
    "postkeep ",
    "postconf ",
    "postfix ",
    "postmap ",
    "printf ",
    "cd ",
    "kill ",
    "sleep ",
    "cargo ",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn documents(directory: &str, suffixes: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory))? {
        let path = entry?.path();
        let name = path.to_string_lossy().into_owned();
        if suffixes.iter().any(|suffix| name.ends_with(suffix)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The fenced blocks of a document that hold this language.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str())
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect()
}

/// Command lines of a script: without comments, and with what a backslash continues.
fn command_lines(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.split("  #").next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|line| !line.starts_with("for ") && *line != "done")
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// Command lines in the literal blocks of a man page.
fn manual_lines(page: &str) -> Vec<String> {
    let plain = page.replace("\\e", "\\").replace("\\&", "");
    let mut script = String::new();
    let mut literal = false;
    let mut goes_on = false;
    for line in plain.lines() {
        match line {
            _ if line.starts_with(".Bd -literal") => literal = true,
            ".Ed" => literal = false,
            _ if literal => {
                let bare = ["$ ", "# ", "    fix:   "]
                    .iter()
                    .find_map(|prompt| line.strip_prefix(prompt))
                    .unwrap_or(line);
                if goes_on || COMMANDS.iter().any(|command| bare.starts_with(command)) {
                    goes_on = bare.ends_with('\\');
                    script.push_str(bare);
                    script.push('\n');
                }
            }
            _ => {}
        }
    }
    command_lines(&script)
}

/// All of them, with where they stand.
fn documented() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    pages.extend(documents("docs", &[".md"])?);
    pages.push(root().join("crates/client-c/README.md"));
    pages.push(root().join("clients/python/README.md"));
    for page in pages.into_iter().filter(|page| page.exists()) {
        let text = fs::read_to_string(&page)?;
        let name = page.display().to_string();
        for script in blocks(&text, "sh") {
            found.extend(
                command_lines(script)
                    .into_iter()
                    .map(|line| (name.clone(), line)),
            );
        }
        for session in blocks(&text, "console") {
            let typed: Vec<&str> = session
                .lines()
                .filter_map(|line| line.strip_prefix("$ "))
                .collect();
            found.extend(
                typed
                    .into_iter()
                    .map(|line| (name.clone(), line.to_owned())),
            );
        }
    }
    for page in documents("man", &[".1", ".5", ".8"])? {
        let name = page.display().to_string();
        let lines = manual_lines(&fs::read_to_string(&page)?);
        found.extend(lines.into_iter().map(|line| (name.clone(), line)));
    }
    Ok(found)
}

#[test]
fn every_command_line_is_run_somewhere() -> Result<()> {
    let found = documented()?;
    ensure!(found.len() > 30, "only {} are found", found.len());
    let mut faults = Vec::new();
    let mut used = BTreeSet::new();
    for (page, line) in &found {
        match RULES
            .iter()
            .position(|(beginning, _)| line.starts_with(beginning))
        {
            None => faults.push(format!("{page}: nothing runs: {line}")),
            Some(rule) => {
                used.insert(rule);
            }
        }
    }
    for (number, (beginning, run)) in RULES.iter().enumerate() {
        if !used.contains(&number) {
            faults.push(format!("no document has: {beginning}"));
        }
        if let In(file, text) = run
            && !fs::read_to_string(root().join(file))?.contains(text)
        {
            faults.push(format!("{file} does not run `{text}`, for: {beginning}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What `--help` says of a command, as words.
fn help(postkeep: &Path, command: &str) -> Result<BTreeSet<String>> {
    let output = Command::new(postkeep).args([command, "--help"]).output()?;
    ensure!(
        output.status.success(),
        "postkeep {command} --help: {output:?}"
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .map(str::to_owned)
        .collect())
}

#[test]
fn options_of_command_lines_and_manuals_are_those_of_the_program() -> Result<()> {
    let Some(postkeep) = postkeep_binary() else {
        return Ok(());
    };
    for (page, line) in documented()? {
        let Some(words) = line.strip_prefix("postkeep ") else {
            continue;
        };
        let mut words = words
            .split_whitespace()
            .take_while(|word| *word != "--" && *word != "|");
        let command = words.next().context("no command")?;
        if ["postmap", "postalias", "postconf", "help"].contains(&command) {
            continue;
        }
        let mut known = help(&postkeep, command)?;
        let words: Vec<&str> = words.collect();
        if ["scache", "proxymap"].contains(&command) {
            let action = words.first().context("no action")?;
            ensure!(
                known.contains(*action),
                "{page}: {line}: no action {action}"
            );
            let output = Command::new(&postkeep)
                .args([command, action, "--help"])
                .output()?;
            known.extend(
                String::from_utf8(output.stdout)?
                    .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                    .map(str::to_owned),
            );
        }
        for option in words.iter().filter(|word| word.starts_with('-')) {
            ensure!(
                known.contains(*option),
                "{page}: {line}: no option {option}"
            );
        }
    }
    for command in [
        "adopt", "release", "doctor", "reload", "serve", "shadow", "top", "status",
    ] {
        let page = match command {
            "status" => "top",
            other => other,
        };
        let page = fs::read_to_string(root().join(format!("man/postkeep-{page}.1")))?;
        for option in help(&postkeep, command)? {
            if let Some(long) = option.strip_prefix("--")
                && !long.is_empty()
                && !["help", "version"].contains(&long)
            {
                ensure!(
                    page.contains(&format!("Fl -{long}")),
                    "man/postkeep-{command}.1 does not have --{long}"
                );
            }
        }
    }
    Ok(())
}

/// The services of `postkeep serve`, for a user whose home is a scratch directory.
struct Served {
    child: Child,
    home: PathBuf,
    _scratch: Scratch,
}

impl Served {
    fn start(postkeep: &Path) -> Result<Self> {
        let scratch = Scratch::new("documented")?;
        let home = scratch.path().join("home");
        fs::create_dir(&home)?;
        // Of any user's own, wherever the build is.
        let bin = home.join("bin");
        fs::create_dir(&bin)?;
        // By another process: a file that a test of this one has open for writing, in a child of its own, does not run.
        let copied = Command::new("cp").arg(postkeep).arg(&bin).status()?;
        ensure!(copied.success(), "cp: {copied}");
        give_to("nobody", &home)?;
        let mut child = user(Command::new(bin.join("postkeep")).arg("serve"))
            .env("HOME", &home)
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(home.join("log"))?)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let log = fs::read_to_string(home.join("log"))?;
        ensure!(line.starts_with("postkeep serves "), "{line}{log}");
        Ok(Self {
            child,
            home,
            _scratch: scratch,
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has a command run as a user without rights, as the documents mean it.
fn user(command: &mut Command) -> &mut Command {
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// A mail server that says what the documents show; its port.
fn mail_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
                let Ok(reading) = stream.try_clone() else {
                    return;
                };
                for line in BufReader::new(reading).lines().map_while(Result::ok) {
                    let reply: &[u8] = match line.split(' ').next() {
                        Some("EHLO") => b"250-mail.example.org\r\n",
                        Some("NOOP") => b"250 2.0.0 Ok\r\n",
                        _ => b"500 what?\r\n",
                    };
                    if stream.write_all(reply).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}

/// One command line of a session: what is typed into it, and what it shows.
struct Exchange {
    command: String,
    typed: Vec<String>,
    shown: Vec<String>,
}

/// Takes a session apart. What is typed are words of SMTP's client; all else is shown.
fn exchanges(session: &str) -> Vec<Exchange> {
    let mut found: Vec<Exchange> = Vec::new();
    for line in session.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            found.push(Exchange {
                command: command.to_owned(),
                typed: Vec::new(),
                shown: Vec::new(),
            });
        } else if let Some(last) = found.last_mut() {
            let to = if line.starts_with("EHLO ") || line == "NOOP" {
                &mut last.typed
            } else {
                &mut last.shown
            };
            to.push(line.to_owned());
        }
    }
    found
}

/// Runs a session as its reader would, in one shell's directory.
fn follow(served: &Served, path: &str, session: &str, server: u16) -> Result<()> {
    let mut directory = served.home.clone();
    for exchange in exchanges(session) {
        let command = exchange
            .command
            .replace("mail.example.org:25", &format!("127.0.0.1:{server}"))
            .replace("mail.example:25", &format!("127.0.0.1:{server}"))
            .replace("sleep 30", "sleep 0.1");
        let mut child = user(&mut Command::new("sh"))
            .args([
                "-c",
                &format!("{command}\nstatus=$?; pwd >\"$HOME/pwd\"; exit $status"),
            ])
            .current_dir(&directory)
            .env("HOME", &served.home)
            .env("PATH", path)
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        for line in &exchange.typed {
            input.write_all(format!("{line}\r\n").as_bytes())?;
        }
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut shown = Vec::new();
        // While the connection is open nothing ends, so no more is read than is shown.
        for _ in &exchange.shown {
            let mut line = String::new();
            output.read_line(&mut line)?;
            shown.push(line.trim_end().to_owned());
        }
        drop(input);
        drop(output);
        if !exchange.typed.is_empty() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() || !exchange.typed.is_empty(),
            "{command}: {error}"
        );
        let lost: Vec<&String> = exchange
            .shown
            .iter()
            .filter(|line| !shown.contains(line))
            .collect();
        ensure!(
            lost.is_empty(),
            "{command}\nshows {shown:?}\nwithout {lost:?}\n{error}"
        );
        if let Ok(now) = fs::read_to_string(served.home.join("pwd")) {
            directory = PathBuf::from(now.trim_end());
        }
    }
    Ok(())
}

#[test]
fn sessions_do_what_they_show() -> Result<()> {
    let Some(postkeep) = postkeep_binary() else {
        return Ok(());
    };
    let served = Served::start(&postkeep)?;
    let bin = served.home.join("bin");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let server = mail_server()?;
    let readme = fs::read_to_string(root().join("README.md"))?;
    let sessions = blocks(&readme, "console");
    ensure!(sessions.len() >= 3, "{} sessions", sessions.len());
    for session in sessions {
        follow(&served, &path, session, server)?;
    }
    let page = fs::read_to_string(root().join("man/postkeep.1"))?;
    let example = page
        .split(".Bd -literal -offset indent\n$ ")
        .nth(1)
        .and_then(|rest| rest.split("\n.Ed").next())
        .context("no session in postkeep(1)")?;
    let session = format!("$ {example}").replace("220 mail.example ", "220 mail.example.org ");
    follow(&served, &path, &session, server)
}

#[test]
fn certificates_are_made_and_fit() -> Result<()> {
    let guide = fs::read_to_string(root().join("docs/many-machines.md"))?;
    let Some(script) = blocks(&guide, "sh")
        .into_iter()
        .find(|script| script.contains("openssl"))
    else {
        bail!("docs/many-machines.md makes no certificates");
    };
    let scratch = Scratch::new("certificates")?;
    let run = |script: &str| -> Result<()> {
        let output = Command::new("sh")
            .args(["-e", "-c", script])
            .current_dir(scratch.path())
            .output()?;
        ensure!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    run(script)?;
    run(
        "openssl verify -CAfile ca.pem -verify_hostname tables.example.org tables.example.org.pem",
    )?;
    run("openssl verify -CAfile ca.pem mx1.example.org.pem mx2.example.org.pem")
}
