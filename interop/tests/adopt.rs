//! `postkeep adopt`, `release` and `doctor` on a running private Postfix: what they change, that mail and lookups go
//! on, that everything is put back byte for byte, and that they refuse when something is in the way.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postkeep_interop::mail::{Sink, Source};
use postkeep_testkit::private_postfix::{Plan, free_port};
use postkeep_testkit::program::postkeep_binary;
use postkeep_testkit::{Implementation, PrivatePostfix, Scratch};

/// A Postfix with its own daemons that is to be adopted.
struct Patient {
    postfix: PrivatePostfix,
    executable: PathBuf,
    /// What comes first in `PATH`.
    programs: PathBuf,
    scratch: Scratch,
}

impl Patient {
    fn new(plan: Plan) -> Result<Option<Self>> {
        let Some(binary) = postkeep_binary() else {
            return Ok(None);
        };
        let plan = plan.service(
            "other unix - - n - 1 scache\n  -o max_idle=7s\n  -o { max_use = 9 }\n# the end",
        );
        let Some(postfix) = plan.start()? else {
            return Ok(None);
        };
        let scratch = Scratch::new("adopt")?;
        let programs = scratch.directory("programs", 0o755)?;
        // Where the build put it may be somebody else's directory.
        let executable = scratch.path().join("postkeep");
        install(&fs::read(binary)?, &executable)?;
        Ok(Some(Self {
            postfix,
            executable,
            programs,
            scratch,
        }))
    }

    fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Result<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(&self.executable)
            .arg(command)
            .arg("-c")
            .arg(self.postfix.configuration_directory())
            .arg("--state-directory")
            .arg(self.state())
            .args(arguments)
            // What happens to the packages of this machine meanwhile is of no interest.
            .env("DPKG_ADMINDIR", self.scratch.path().join("dpkg"))
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .output()
            .context("cannot run postkeep")
    }

    fn succeed(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(command, arguments)?;
        let text = everything(&output);
        ensure!(output.status.success(), "{command} {arguments:?}: {text}");
        Ok(text)
    }

    /// The command refuses with this reason, and leaves everything as it was.
    fn refused(&self, command: &str, arguments: &[&str], reason: &str) -> Result<()> {
        let before = self.picture()?;
        let output = self.run(command, arguments)?;
        let text = everything(&output);
        ensure!(output.status.code() == Some(1), "{command}: {text}");
        ensure!(
            text.contains(reason),
            "{command}: no \"{reason}\" in: {text}"
        );
        ensure!(
            self.picture()? == before,
            "{command} has changed something: {text}"
        );
        Ok(())
    }

    fn master_cf(&self) -> PathBuf {
        self.postfix.configuration_directory().join("master.cf")
    }

    /// All files that adoption could touch.
    fn picture(&self) -> Result<Vec<(PathBuf, u32, Vec<u8>)>> {
        let mut found = Vec::new();
        for directory in ["etc", "daemons"] {
            picture_of(&self.postfix.scratch().join(directory), &mut found)?;
        }
        let records = fs::read_dir(self.state()).into_iter().flatten().flatten();
        for entry in records.filter(|entry| entry.file_name() != ".lock") {
            found.push((entry.path(), 0, Vec::new()));
        }
        found.sort();
        Ok(found)
    }

    /// Puts a program in front of the real one.
    fn plant(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        install(format!("#!/bin/sh\n{script}\n").as_bytes(), &path)?;
        Ok(path)
    }

    fn lookup(&self, table: &str) -> Result<Option<String>> {
        let output = self.postfix.command("postmap", &["-q", "key", table])?;
        Ok(output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }

    /// Who serves lookups: the executable of the process.
    fn server(&self, daemon: &str) -> Vec<PathBuf> {
        self.postfix
            .processes(daemon)
            .iter()
            .filter_map(|(pid, _)| {
                fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok()
            })
            .collect()
    }
}

/// Makes an executable file. Another process writes it: a file that this one has open for writing, while another
/// thread starts a program, is busy.
fn install(bytes: &[u8], path: &Path) -> Result<()> {
    let mut child = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(bytes)?;
    ensure!(child.wait()?.success());
    Ok(())
}

fn picture_of(directory: &Path, found: &mut Vec<(PathBuf, u32, Vec<u8>)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        let bytes = if metadata.is_file() {
            fs::read(&path)?
        } else {
            Vec::new()
        };
        found.push((path, metadata.permissions().mode(), bytes));
    }
    Ok(())
}

fn everything(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn plain() -> Plan {
    Plan::new(Implementation::Postfix)
        .table("text", "key value\n")
        .parameter("alias_maps", "proxy:texthash:$SCRATCH/tables/text")
}

#[test]
fn mail_and_lookups_go_on_and_everything_comes_back() -> Result<()> {
    let sinks = Scratch::new("sinks")?;
    if postkeep_testkit::real_postfix().is_none() {
        return Ok(());
    }
    let sink = Sink::start(sinks.path(), &[])?;
    let port = free_port()?;
    let plan = plain()
        .parameter("relay_domains", "sink.test")
        .parameter(
            "transport_maps",
            &format!("proxy:inline:{{ sink.test=smtp:{} }}", sink.next_hop()),
        )
        .parameter("smtp_connection_cache_destinations", "sink.test")
        .service(&format!("127.0.0.1:{port} inet n - n - - smtpd"));
    let Some(mut patient) = Patient::new(plan)? else {
        return Ok(());
    };
    patient.postfix.wait_for_port(port)?;
    let table = format!("proxy:texthash:{}", patient.postfix.table("text").display());
    ensure!(patient.lookup(&table)?.as_deref() == Some("value"));
    let before = patient.picture()?;
    let log_before = patient.postfix.log().len();

    let told = patient.succeed("adopt", &["--dry-run"])?;
    ensure!(told.contains("scache/unix"), "{told}");
    ensure!(patient.picture()? == before, "a dry run changes nothing");

    let source = Source::start(port, 100, 2, "user@sink.test")?;
    patient.succeed("adopt", &["--watch", "3"])?;
    source.finish(Duration::from_secs(30))?;
    patient
        .postfix
        .wait_for("delivery", Duration::from_secs(30), |_| {
            Ok(sink.count().messages >= 100)
        })?;
    ensure!(patient.lookup(&table)?.as_deref() == Some("value"));
    for daemon in ["proxymap", "scache"] {
        let server = patient.server(daemon);
        ensure!(
            !server.is_empty() && server.iter().all(|path| *path == patient.executable),
            "{daemon}: {server:?}"
        );
    }
    // Arguments of an entry survive, log lines have the names that they had.
    let entry = patient
        .postfix
        .command("postconf", &["-F", "other/unix/command"])?;
    let entry = everything(&entry);
    ensure!(
        entry.contains("/scache -o max_idle=7s -o max_use=9"),
        "{entry}"
    );
    ensure!(patient.lookup("proxy:static:none")?.is_none());
    let log = patient.postfix.log()[log_before..].to_owned();
    ensure!(log.contains("postfix/proxymap["), "{log}");
    ensure!(!log.contains("fatal: master"), "{log}");
    // What Postfix does with master.cf on upgrades leaves it alone.
    let adopted = fs::read(patient.master_cf())?;
    let upgraded = patient
        .postfix
        .command("postfix", &["upgrade-configuration"])?;
    ensure!(upgraded.status.success(), "{}", everything(&upgraded));
    let now = String::from_utf8(fs::read(patient.master_cf())?)?;
    ensure!(
        now.starts_with(std::str::from_utf8(&adopted)?),
        "upgrade-configuration changed an entry: {now}"
    );
    fs::write(patient.master_cf(), &adopted)?;
    let main_cf = patient.postfix.configuration_directory().join("main.cf");
    for (path, _, bytes) in &before {
        if *path == main_cf {
            fs::write(&main_cf, bytes)?;
        }
    }
    patient.succeed("adopt", &[])?;
    patient.succeed("doctor", &[])?;
    let queue = patient.postfix.scratch().join("queue");
    let status = Command::new(&patient.executable)
        .args(["status", "--quiet", "-d"])
        .arg(&queue)
        .output()?;
    ensure!(status.status.success(), "{}", everything(&status));
    ensure!(
        everything(&status).contains("proxymap, "),
        "{}",
        everything(&status)
    );

    let told = patient.succeed("release", &[])?;
    ensure!(told.contains("byte for byte"), "{told}");
    let after = patient.picture()?;
    for (one, other) in before.iter().zip(&after) {
        ensure!(one == other, "{} differs", one.0.display());
    }
    ensure!(before.len() == after.len());
    for found in fs::read_dir(queue.join("private"))? {
        let name = found?.file_name();
        ensure!(!name.to_string_lossy().contains(".metrics"), "{name:?}");
    }
    ensure!(patient.lookup(&table)?.as_deref() == Some("value"));
    ensure!(
        patient
            .server("proxymap")
            .iter()
            .all(|path| *path != patient.executable)
    );
    Ok(())
}

#[test]
fn edits_since_are_kept_and_force_undoes_them() -> Result<()> {
    let Some(patient) = Patient::new(plain())? else {
        return Ok(());
    };
    let original = fs::read_to_string(patient.master_cf())?;
    let edit = |from: &str, to: &str| -> Result<()> {
        let text = fs::read_to_string(patient.master_cf())?;
        fs::write(patient.master_cf(), text.replace(from, to))?;
        Ok(())
    };
    patient.succeed("adopt", &["--watch", "0"])?;
    edit("# the end", "# the end\nmine unix - - n - - discard")?;
    let told = patient.succeed("release", &[])?;
    ensure!(told.contains("the edits were kept"), "{told}");
    let text = fs::read_to_string(patient.master_cf())?;
    ensure!(text.contains("mine") && !text.contains("../"), "{text}");

    fs::write(patient.master_cf(), &original)?;
    patient.succeed("adopt", &["--watch", "0"])?;
    edit("# the end", "half an entry")?;
    patient.refused("release", &[], "repair that first, or use --force")?;
    patient.succeed("release", &["--force"])?;
    ensure!(fs::read_to_string(patient.master_cf())? == original);
    Ok(())
}

#[test]
fn a_process_that_ends_in_the_middle_leaves_enough() -> Result<()> {
    let Some(patient) = Patient::new(plain())? else {
        return Ok(());
    };
    let before = patient.picture()?;
    // postconf edits the second entry, and takes the program with it.
    patient.plant(
        "postconf",
        "case \"$*\" in\n\
         *-F\\ *command=*) n=$(cat \"$0.count\" 2>/dev/null || echo 0); echo $((n+1)) >\"$0.count\"\n\
         /usr/sbin/postconf \"$@\"; [ $n = 1 ] && kill -9 $PPID; exit 0;;\nesac\nexec /usr/sbin/postconf \"$@\"",
    )?;
    let output = patient.run("adopt", &[])?;
    ensure!(!output.status.success());
    fs::remove_file(patient.programs.join("postconf"))?;
    ensure!(patient.picture()? != before, "too early");
    patient.refused("adopt", &[], "did not come to its end")?;
    let output = patient.run("doctor", &[])?;
    ensure!(output.status.code() == Some(2), "{}", everything(&output));
    ensure!(everything(&output).contains("fix:   postkeep release"));
    let told = patient.succeed("release", &[])?;
    ensure!(told.contains("byte for byte"), "{told}");
    ensure!(patient.picture()? == before);
    Ok(())
}

#[test]
fn a_broken_executable_is_taken_back_by_itself() -> Result<()> {
    let Some(patient) = Patient::new(plain())? else {
        return Ok(());
    };
    let before = patient.picture()?;
    let table = format!("proxy:texthash:{}", patient.postfix.table("text").display());
    let broken = patient.plant("broken", "case \"$*\" in *-S*) exit 0;; esac\nexit 1")?;
    let broken = broken.display().to_string();
    let output = patient.run("adopt", &["--executable", &broken])?;
    let text = everything(&output);
    ensure!(output.status.code() == Some(1), "{text}");
    ensure!(
        text.contains("Everything was put back as it was."),
        "{text}"
    );
    ensure!(text.contains("does not answer"), "{text}");
    ensure!(patient.picture()? == before);
    ensure!(patient.lookup(&table)?.as_deref() == Some("value"));
    // One that does not even accept the configuration gets nowhere.
    let dead = patient.plant("dead", "echo 'fatal: no library' >&2; exit 1")?;
    patient.refused(
        "adopt",
        &["--executable", &dead.display().to_string()],
        "fatal: no library",
    )?;
    Ok(())
}

#[test]
fn whatever_is_in_the_way_is_told_and_nothing_changes() -> Result<()> {
    let plan = plain().parameter("virtual_alias_maps", "proxy:nosuch:/etc/nosuch.cf");
    let Some(patient) = Patient::new(plan)? else {
        return Ok(());
    };
    patient.refused("adopt", &[], "no tables of the type nosuch")?;
    let main_cf = patient.postfix.configuration_directory().join("main.cf");
    let text = fs::read_to_string(&main_cf)?;
    fs::write(&main_cf, text.replace("proxy:nosuch:/etc/nosuch.cf", ""))?;

    patient.plant(
        "postconf",
        "case \"$*\" in *mail_version) echo ${VERSION:-2.11.3}; exit;; esac\nexec /usr/sbin/postconf \"$@\"",
    )?;
    patient.refused("adopt", &[], "this is Postfix 2.11.3: only 3.0 to 3.12")?;
    fs::remove_file(patient.programs.join("postconf"))?;

    // dpkg says that Postfix is half-way through an upgrade.
    patient.plant(
        "dpkg-query",
        "case \"$1\" in -S) echo postfix: $2;; *) printf 'install ok unpacked';; esac",
    )?;
    patient.refused("adopt", &[], "its state is \"install ok unpacked\"")?;
    // dpkg is at work.
    patient.plant(
        "dpkg-query",
        "case \"$1\" in -S) echo postfix: $2;; *) printf 'install ok installed';; esac",
    )?;
    patient.scratch.directory("dpkg", 0o755)?;
    let lock = fs::File::create(patient.scratch.path().join("dpkg/lock"))?;
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    patient.refused("adopt", &[], "packages are being changed at this moment")?;
    drop(lock);
    fs::remove_file(patient.programs.join("dpkg-query"))?;

    let swap = patient.master_cf().with_file_name(".master.cf.swp");
    fs::write(&swap, "")?;
    patient.refused("adopt", &[], "somebody seems to be editing")?;
    fs::remove_file(&swap)?;

    let master_cf = fs::read_to_string(patient.master_cf())?;
    fs::write(patient.master_cf(), format!("{master_cf}half unix -\n"))?;
    patient.refused("adopt", &[], "bad field count")?;
    // postconf does not mind this one, master(8) does.
    fs::write(
        patient.master_cf(),
        format!("{master_cf}25 inet y - n - - smtpd\n"),
    )?;
    patient.refused("adopt", &[], "inet service cannot be private")?;
    fs::write(patient.master_cf(), &master_cf)?;

    let executable = patient.scratch.path().join("postkeep");
    fs::set_permissions(&executable, Permissions::from_mode(0o777))?;
    patient.refused("adopt", &[], "others than root can change")?;
    fs::set_permissions(&executable, Permissions::from_mode(0o755))?;

    // Read-only.
    let etc = patient.postfix.configuration_directory();
    let mount = |arguments: &[&str]| {
        Command::new("mount")
            .args(arguments)
            .arg(&etc)
            .status()
            .is_ok_and(|status| status.success())
    };
    let etc_text = etc.display().to_string();
    if mount(&["--bind", &etc_text]) {
        let refused = if mount(&["-o", "remount,ro,bind"]) {
            patient.refused("adopt", &[], "Read-only file system")
        } else {
            Ok(())
        };
        let unmounted = Command::new("umount").arg(&etc).status()?;
        ensure!(unmounted.success());
        refused?;
    } else {
        eprintln!("a read-only file system was not tried: mount is not allowed here");
    }
    patient.succeed("adopt", &["--watch", "0", "--only", "scache"])?;
    patient.succeed("release", &[])?;
    Ok(())
}

#[test]
fn the_doctor_tells_the_line_that_approves() -> Result<()> {
    let plan = Plan::new(Implementation::Postfix)
        .table("text", "key value\n")
        .table("secret", "key value\n")
        .parameter(
            "smtpd_data_restrictions",
            "check_client_access proxy:texthash:$SCRATCH/tables/text",
        )
        .parameter(
            "alias_maps",
            "proxy:texthash:$SCRATCH/tables/secret, proxy:lmdb:$SCRATCH/tables/missing",
        );
    let Some(patient) = Patient::new(plan)? else {
        return Ok(());
    };
    let secret = patient.postfix.table("secret");
    fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    let table = format!("proxy:texthash:{}", patient.postfix.table("text").display());
    ensure!(patient.lookup(&table)?.is_none(), "approved already");
    patient.succeed("adopt", &["--watch", "0"])?;

    let output = patient.run("doctor", &["--json"])?;
    ensure!(output.status.code() == Some(2), "{}", everything(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(answer["status"] == 2);
    let findings = answer["findings"].as_array().context("no findings")?;
    let find = |text: &str| {
        findings
            .iter()
            .find(|finding| {
                finding["what"]
                    .as_str()
                    .is_some_and(|what| what.contains(text))
            })
            .with_context(|| format!("no finding \"{text}\" in {findings:#?}"))
    };
    let unreadable = find(&format!("postfix cannot read {}", secret.display()))?;
    ensure!(unreadable["fix"][0] == format!("chmod o+r {}", secret.display()));
    find("missing.lmdb is not there")?;
    find("clients that ask proxymap for")?;
    let denied = find(&format!("the table {table} is denied"))?;
    ensure!(denied["parameter"] == "smtpd_data_restrictions");
    let main_cf = patient.postfix.configuration_directory().join("main.cf");
    let text = fs::read_to_string(&main_cf)?;
    let line = denied["line"]
        .as_u64()
        .and_then(|line| usize::try_from(line).ok());
    let named = line.and_then(|line| text.lines().nth(line.checked_sub(1)?));
    ensure!(named.is_some_and(|line| line.starts_with("smtpd_data_restrictions")));

    // The commands do what they say.
    for finding in [denied, unreadable] {
        for command in finding["fix"].as_array().context("no fix")? {
            let command = command.as_str().context("no text")?;
            let status = Command::new("sh").args(["-c", command]).output()?;
            ensure!(
                status.status.success(),
                "{command}: {}",
                everything(&status)
            );
        }
    }
    ensure!(patient.lookup(&table)?.as_deref() == Some("value"));
    let text = everything(&patient.run("doctor", &[])?);
    ensure!(
        !text.contains("denied") && !text.contains("cannot read"),
        "{text}"
    );
    patient.succeed("release", &[])?;
    Ok(())
}
