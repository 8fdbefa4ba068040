//! What is known of an installed Postfix: asked from its own postconf(1), and read from its files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use postkeep_conf::master_cf::{self, Entry, MasterContext};
use postkeep_conf::{CompatibilityLevel, Release};
use postkeep_sys::error_text;

/// Where the configuration is unless the command line or the environment say otherwise.
const CONFIG_DIRECTORY: &str = "/etc/postfix";

/// Where Postfix's commands are looked for after `PATH`.
const COMMAND_DIRECTORIES: [&str; 4] =
    ["/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/postfix/sbin"];

/// How long one of Postfix's commands may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);

/// The parameters that are asked for.
const PARAMETERS: [&str; 20] = [
    "command_directory",
    "compatibility_level",
    "daemon_directory",
    "data_directory",
    "default_cache_db_type",
    "default_database_type",
    "default_process_limit",
    "inet_interfaces",
    "inet_protocols",
    "mail_owner",
    "maillog_file",
    "master_service_disable",
    "postkeep_announce_protocol",
    "proxy_read_maps",
    "proxy_write_maps",
    "proxymap_service_name",
    "proxywrite_service_name",
    "queue_directory",
    "setgid_group",
    "syslog_name",
];

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The last line of standard error that is no mere warning, else what there is.
    pub(crate) fn complaint(&self) -> String {
        let lines = || self.stderr.lines().chain(self.stdout.lines());
        lines()
            .find(|line| line.contains("fatal:"))
            .or_else(|| lines().last())
            .map_or_else(|| self.status.to_string(), str::to_owned)
    }
}

/// Runs a command to its end, for at most a minute.
///
/// # Errors
/// It cannot be started, or took too long and was killed.
pub(crate) fn run(command: &mut Command) -> Result<Ran, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {name}: {}", error_text(&error)))?;
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = collect(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = collect(child.stderr.take().map(|stream| Box::new(stream) as _));
    let deadline = Instant::now() + COMMAND_LIMIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            outcome => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match outcome {
                    Err(error) => format!("{name}: {}", error_text(&error)),
                    Ok(_) => format!("{name} took more than {} seconds", COMMAND_LIMIT.as_secs()),
                });
            }
        }
    };
    Ok(Ran {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// The configuration directory, absolute: as given, else `MAIL_CONFIG`, else /etc/postfix.
pub(crate) fn config_directory(given: Option<&Path>) -> PathBuf {
    let path = given.map_or_else(
        || std::env::var_os("MAIL_CONFIG").map_or_else(|| CONFIG_DIRECTORY.into(), PathBuf::from),
        Path::to_owned,
    );
    fs::canonicalize(&path)
        .or_else(|_| std::path::absolute(&path))
        .unwrap_or(path)
}

/// A command of Postfix: in `PATH`, or where packages put it; never a link to this program.
fn find_command(name: &str) -> Option<PathBuf> {
    let ours = std::env::current_exe().and_then(fs::canonicalize).ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(COMMAND_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file() && fs::canonicalize(file).ok() != ours)
}

/// An installed Postfix, with one configuration directory.
#[derive(Debug)]
pub(crate) struct Installation {
    /// Absolute.
    pub(crate) config_directory: PathBuf,
    /// As the installed programs have it, whatever main.cf says.
    pub(crate) version: String,
    /// `None`: not one of the releases that the daemons know.
    pub(crate) release: Option<Release>,
    postconf: PathBuf,
    values: BTreeMap<String, String>,
}

impl Installation {
    /// Asks postconf.
    ///
    /// # Errors
    /// There is no Postfix, or its postconf refuses the configuration.
    pub(crate) fn inspect(given: Option<&Path>) -> Result<Self, String> {
        let config_directory = config_directory(given);
        let postconf = find_command("postconf")
            .ok_or("there is no postconf command: is Postfix installed?")?;
        if !config_directory.join("main.cf").is_file() {
            return Err(format!(
                "there is no main.cf in {}: name the configuration directory with -c",
                config_directory.display()
            ));
        }
        let mut installation = Self {
            config_directory,
            version: String::new(),
            release: None,
            postconf,
            values: BTreeMap::new(),
        };
        let version = installation.postconf(&["-d", "-h", "mail_version"])?;
        version.trim().clone_into(&mut installation.version);
        installation.release = release_of(&installation.version);
        let mut words = vec!["-x"];
        words.extend(PARAMETERS);
        installation.values = assignments(&installation.postconf(&words)?)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(installation)
    }

    /// The value of one of the parameters that are asked for; empty when this release has none of that name.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// A directory that a parameter names.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        PathBuf::from(self.value(name))
    }

    /// Runs postconf with this configuration directory; the output.
    ///
    /// # Errors
    /// It ends with another status than 0.
    pub(crate) fn postconf<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String, String> {
        let mut command = Command::new(&self.postconf);
        command
            .arg("-c")
            .arg(&self.config_directory)
            .args(arguments);
        let ran = run(&mut command)?;
        if ran.status.success() {
            Ok(ran.stdout)
        } else {
            Err(ran.complaint())
        }
    }

    /// Runs `postfix ACTION`.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn postfix(&self, action: &str) -> Result<Ran, String> {
        let mut program = self.directory("command_directory").join("postfix");
        if !program.is_file() {
            program = find_command("postfix").ok_or("there is no postfix command")?;
        }
        run(Command::new(program)
            .arg("-c")
            .arg(&self.config_directory)
            .arg(action))
    }

    /// Does its master run?
    pub(crate) fn is_running(&self) -> bool {
        self.postfix("status").is_ok_and(|ran| ran.status.success())
    }

    /// `master.cf`.
    pub(crate) fn master_cf(&self) -> PathBuf {
        self.config_directory.join("master.cf")
    }

    /// The release for questions of behaviour.
    pub(crate) fn release_or_default(&self) -> Release {
        self.release.unwrap_or_default()
    }

    /// The services announce their protocol to clients.
    pub(crate) fn announces(&self) -> bool {
        match self.value("postkeep_announce_protocol") {
            "yes" => true,
            "no" => false,
            _ => self.release_or_default() >= Release::V3_6,
        }
    }

    /// Reads master.cf as master(8) would.
    ///
    /// # Errors
    /// The first fault, with its line, in the words of master(8).
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, String> {
        let path = self.master_cf();
        let text = fs::read(&path)
            .map_err(|error| format!("{}: {}", path.display(), error_text(&error)))?;
        self.parse_entries(&text)
    }

    /// As [`Self::entries`], from a text.
    pub(crate) fn parse_entries(&self, text: &[u8]) -> Result<Vec<Entry>, String> {
        let level = CompatibilityLevel::parse(self.value("compatibility_level").as_bytes());
        let file = self.master_cf().display().to_string();
        let context = MasterContext {
            file: &file,
            release: self.release_or_default(),
            default_process_limit: self.value("default_process_limit").parse().unwrap_or(100),
            compatibility_level: level.unwrap_or(CompatibilityLevel::new(0, 0, 0)),
            inet_protocols: self.value("inet_protocols").as_bytes(),
            listens_everywhere: true,
            own_addresses: &[],
            disabled: self.value("master_service_disable").as_bytes(),
            resolve: Some(&resolve),
            port_of: None,
        };
        master_cf::parse(text, &context, &mut Vec::new()).map_err(|error| error.to_string())
    }

    /// Asks a question that `postconf` answers in lines `name = value`.
    ///
    /// # Errors
    /// As [`Self::postconf`].
    pub(crate) fn assignments(&self, arguments: &[&str]) -> Result<Vec<(String, String)>, String> {
        let output = self.postconf(arguments)?;
        Ok(assignments(&output)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

/// Lines `name = value`; the value may be empty.
fn assignments(output: &str) -> impl Iterator<Item = (&str, &str)> {
    output.lines().filter_map(|line| {
        let (name, value) = line.split_once(" =")?;
        Some((name, value.trim_start()))
    })
}

fn resolve(name: &[u8]) -> Vec<IpAddr> {
    let Ok(name) = std::str::from_utf8(name) else {
        return Vec::new();
    };
    (name, 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip()).collect())
        .unwrap_or_default()
}

/// Which release a version belongs to; `None` for those that the daemons do not know. 3.0 is taken for 3.1.
fn release_of(version: &str) -> Option<Release> {
    let mut numbers = version.split(['.', '-']);
    if numbers.next()? != "3" {
        return None;
    }
    let minor: u8 = numbers.next()?.parse().ok()?;
    Release::ALL
        .into_iter()
        .find(|release| release.minor() == minor.max(1))
}

/// How the command of an entry is written in master.cf, where it is looked for below the daemon directory: as many
/// steps up as that directory is deep, then down to `program`.
///
/// # Errors
/// A path that master.cf cannot hold.
pub(crate) fn command_of(daemon_directory: &Path, program: &Path) -> Result<String, String> {
    let depth = daemon_directory.components().count().saturating_sub(1);
    let Some(path) = program.to_str() else {
        return Err(format!("{} is not UTF-8", program.display()));
    };
    if path.chars().any(|character| {
        character.is_whitespace() || character.is_control() || "{}\"#,$".contains(character)
    }) {
        return Err(format!("master.cf cannot hold the name {path}"));
    }
    Ok(format!(
        "{}{}",
        "../".repeat(depth),
        path.trim_start_matches('/')
    ))
}

/// The words of a command for a person to copy into a shell.
pub(crate) fn shell(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word.as_ref())).collect();
    quoted.join(" ")
}

fn quote(word: &str) -> String {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "/._-=:@%+".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Is a file of this name part of a package, and is that package in the middle of something? What is wrong.
///
/// Asks dpkg(1); where there is none there is nothing to say.
pub(crate) fn package_trouble(file: &Path) -> Option<String> {
    let query = find_command("dpkg-query")?;
    let owner = run(Command::new(&query).arg("-S").arg(file)).ok()?;
    if !owner.status.success() {
        return None;
    }
    let package = owner.stdout.split(':').next()?.to_owned();
    let state = run(Command::new(&query).args(["-W", "-f", "${Status}", &package])).ok()?;
    let state = state.stdout.trim();
    if !state.ends_with(" ok installed") {
        return Some(format!(
            "the package {package} is being installed or upgraded, or was left half-way \
             (its state is \"{state}\"): finish that first, with dpkg --configure -a"
        ));
    }
    let admin =
        std::env::var_os("DPKG_ADMINDIR").unwrap_or_else(|| OsString::from("/var/lib/dpkg"));
    ["lock-frontend", "lock"].into_iter().find_map(|name| {
        let path = Path::new(&admin).join(name);
        let holder = lock_holder(&path)?;
        Some(format!(
            "packages are being changed at this moment (process {holder} holds {}): wait until it is done",
            path.display()
        ))
    })
}

/// The process that has a POSIX lock on a file.
fn lock_holder(path: &Path) -> Option<i32> {
    use rustix::process::{Flock, FlockType, fcntl_getlk};
    let file = fs::File::open(path).ok()?;
    let lock = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
    lock.pid.map(|pid| pid.as_raw_nonzero().get())
}

/// Bytes as a path.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_outside_the_known_ones_are_none() {
        assert_eq!(release_of("3.0.15"), Some(Release::V3_1));
        assert_eq!(release_of("3.7.11"), Some(Release::V3_7));
        assert_eq!(release_of("3.12-20260821"), Some(Release::V3_12));
        for other in ["2.11.3", "3.13.0", "4.0.1", "3", "", "postfix"] {
            assert_eq!(release_of(other), None, "{other}");
        }
    }

    #[test]
    fn commands_climb_out_of_the_daemon_directory() {
        let of = |directory, program| command_of(Path::new(directory), Path::new(program));
        assert_eq!(
            of("/usr/lib/postfix/sbin", "/usr/libexec/postkeep/scache").unwrap(),
            "../../../../usr/libexec/postkeep/scache"
        );
        assert!(of("/usr/lib", "/a b/scache").is_err());
        assert!(of("/usr/lib", "/a{b/scache").is_err());
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell(&["postconf", "-e"]), "postconf -e");
        let words = ["a = $b c", "it's", ""];
        let output = Command::new("sh")
            .args(["-c", &format!("printf '%s|' {}", shell(&words))])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"a = $b c|it's||");
    }

    #[test]
    fn values_may_be_empty() {
        let lines = "a = b = c\nempty =\n\nnone\n";
        let found: Vec<_> = assignments(lines).collect();
        assert_eq!(found, [("a", "b = c"), ("empty", "")]);
    }

    #[test]
    fn a_lock_of_another_process_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        fs::write(&path, "").unwrap();
        assert_eq!(lock_holder(&path), None);
        assert_eq!(lock_holder(Path::new("/nonexistent/lock")), None);
    }
}
