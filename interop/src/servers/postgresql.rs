//! A private postgres(1).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::{Process, as_user, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "postgres";

/// Where Debian has the programs, of the release that the tests know.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// The password of the server's `postgres`, which is asked for over TCP.
pub const PASSWORD: &str = "secret";

/// Who may connect how; the names are those of roles.
const RULES: &str = "local all postgres trust\n\
                     local all all scram-sha-256\n\
                     hostssl all only_tls all scram-sha-256\n\
                     hostnossl all only_plain all scram-sha-256\n\
                     host all only_tls,only_plain all reject\n\
                     host all hashed all md5\n\
                     host all clear all password\n\
                     host all all all scram-sha-256\n";

/// Small and quick.
const OPTIONS: [&str; 8] = [
    "-c",
    "fsync=off",
    "-c",
    "shared_buffers=8MB",
    "-c",
    "max_connections=90",
    "-c",
    "password_encryption=scram-sha-256",
];

/// A server with a database `mail` in UTF-8, and `postgres` without a password on its socket.
#[derive(Debug)]
pub struct PostgreSql {
    process: Process,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The directory of its UNIX-domain socket.
    pub directory: PathBuf,
    /// Certificates; a server without TLS does not use them.
    pub certificates: Certificates,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
}

impl PostgreSql {
    /// Starts one; `None`, after saying SKIP, where it is not installed.
    ///
    /// - `options`: more of postgres(1)'s, such as `-c`, `max_connections=9`
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(options: &[&str]) -> Option<Self> {
        Self::with(None, options)
    }

    /// The same with TLS, for those who ask for it.
    ///
    /// - `pick`: the server's certificate
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_tls(pick: fn(&Certificates) -> &Pair, options: &[&str]) -> Option<Self> {
        Self::with(Some(pick), options)
    }

    fn with(pick: Option<fn(&Certificates) -> &Pair>, options: &[&str]) -> Option<Self> {
        let program = |name: &str| format!("{PROGRAMS}/{name}");
        if !installed(&program("postgres"), "postgresql-15") {
            return None;
        }
        let scratch = Scratch::new("postgresql").unwrap();
        let home = scratch.directory("home", 0o755).unwrap();
        give_to(USER, &home).unwrap();
        let text = |name: &str| home.join(name).to_str().unwrap().to_owned();
        let words = [
            &program("initdb")[..],
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--username=postgres",
            "--pgdata",
            &text("data"),
        ];
        let output = as_user(USER, &words).output().unwrap();
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::write(home.join("data/pg_hba.conf"), RULES).unwrap();
        let certificates = Certificates::make(scratch.path());
        let mut words = vec![program("postgres"), "-D".to_owned(), text("data")];
        words.extend(["-k".to_owned(), home.to_str().unwrap().to_owned()]);
        let port = free_port().unwrap();
        words.extend(["-p".to_owned(), port.to_string()]);
        words.extend(["-c", "listen_addresses=127.0.0.1"].map(str::to_owned));
        words.extend(OPTIONS.map(str::to_owned));
        words.extend(options.iter().map(|&option| option.to_owned()));
        if let Some(pick) = pick {
            let Pair { certificate, key } = pick(&certificates);
            // A key that others can read is refused.
            let own = home.join("server.key");
            fs::copy(key, &own).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&own, mode).unwrap();
            give_to(USER, &own).unwrap();
            for setting in [
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", certificate.display()),
                format!("ssl_key_file={}", own.display()),
                format!("ssl_ca_file={}", certificates.authority.display()),
            ] {
                words.extend(["-c".to_owned(), setting]);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut server = Self {
            process: Process::new(USER, &scratch.path().join("log"), &words),
            port,
            directory: home,
            certificates,
            scratch,
        };
        server.restart();
        server.execute("postgres", "CREATE DATABASE mail");
        server.execute(
            "mail",
            &format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"),
        );
        Some(server)
    }

    /// Starts it again after [`Self::stop`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let (directory, port) = (self.directory.clone(), self.port);
        self.process.start(|| {
            let output = client(&directory, port, "postgres")
                .args(["-c", "SELECT 1"])
                .output();
            output.is_ok_and(|output| output.status.success())
        });
    }

    /// Ends it in an orderly way, without waiting for its clients to leave.
    ///
    /// # Panics
    /// When it cannot be told to.
    pub fn stop(&mut self) {
        // By itself it waits for its clients.
        let data = self.directory.join("data");
        let words = [
            &format!("{PROGRAMS}/pg_ctl")[..],
            "stop",
            "--mode=fast",
            "--silent",
            "-D",
            data.to_str().unwrap(),
        ];
        let output = as_user(USER, &words).output().unwrap();
        assert!(
            output.status.success(),
            "pg_ctl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.process.stop();
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Has `postgres` run statements in a database; what they print.
    ///
    /// # Panics
    /// When one fails.
    pub fn execute(&self, database: &str, statements: &str) -> String {
        let output = client(&self.directory, self.port, database)
            .args(["-c", statements])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{statements}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it has logged so far.
    ///
    /// # Panics
    /// When its log cannot be read.
    pub fn logged(&self) -> String {
        let log = fs::read(self.scratch.path().join("log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }
}

/// psql(1), as `postgres`.
fn client(directory: &Path, port: u16, database: &str) -> Command {
    let mut command = Command::new("psql");
    command
        .env("LC_ALL", "C.UTF-8")
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args(["-U", "postgres", "-p", &port.to_string(), "-h"])
        .arg(directory)
        .args(["-v", "ON_ERROR_STOP=1", "-d", database]);
    command
}
