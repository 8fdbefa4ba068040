//! A private mariadbd(8).

use std::path::{Path, PathBuf};
use std::process::Command;

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::{Process, as_user, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "mysql";

/// Small and quick, with nothing of the system's configuration.
const OPTIONS: [&str; 7] = [
    "--no-defaults",
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--performance-schema=off",
    "--skip-name-resolve",
    "--skip-log-bin",
];

/// A server with a database `mail`, and `root` without a password on its socket.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its UNIX-domain socket.
    pub socket: PathBuf,
    /// Certificates; a server without TLS does not use them.
    pub certificates: Certificates,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
}

impl MariaDb {
    /// Starts one; `None`, after saying SKIP, where it is not installed.
    ///
    /// - `options`: more of mariadbd(8)'s, such as `--max-connections=20`
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
        if !installed("mariadbd", "mariadb-server") {
            return None;
        }
        let scratch = Scratch::new("mariadb").unwrap();
        let home = scratch.directory("home", 0o755).unwrap();
        give_to(USER, &home).unwrap();
        let text = |name: &str| home.join(name).to_str().unwrap().to_owned();
        let data = format!("--datadir={}", text("data"));
        // Each server removes at its start the temporary tables of all others that use the same directory.
        let temporary = scratch.directory("home/tmp", 0o755).unwrap();
        give_to(USER, &temporary).unwrap();
        let temporary = format!("--tmpdir={}", temporary.display());
        let mut words = vec!["mariadb-install-db"];
        words.extend(OPTIONS);
        words.extend([
            &data[..],
            &temporary,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]);
        let output = as_user(USER, &words).output().unwrap();
        assert!(
            output.status.success(),
            "mariadb-install-db: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let port = free_port().unwrap();
        let socket = home.join("socket");
        let place = [
            format!("--socket={}", text("socket")),
            format!("--pid-file={}", text("pid")),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
        ];
        let mut words = vec!["mariadbd"];
        words.extend(OPTIONS);
        words.extend([&data[..], &temporary]);
        words.extend(place.iter().map(String::as_str));
        let certificates = Certificates::make(scratch.path());
        let tls = pick.map(|pick| {
            let Pair { certificate, key } = pick(&certificates);
            [
                format!("--ssl-ca={}", certificates.authority.display()),
                format!("--ssl-cert={}", certificate.display()),
                format!("--ssl-key={}", key.display()),
            ]
        });
        words.extend(tls.iter().flatten().map(String::as_str));
        words.extend(options);
        let mut server = Self {
            process: Process::new(USER, &scratch.path().join("log"), &words),
            port,
            socket,
            certificates,
            scratch,
        };
        server.restart();
        server.execute("CREATE DATABASE IF NOT EXISTS mail CHARACTER SET utf8mb4");
        Some(server)
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let socket = self.socket.clone();
        self.process.start(|| {
            let output = client(&socket).args(["-e", "SELECT 1"]).output();
            output.is_ok_and(|output| output.status.success())
        });
    }

    /// Ends it in an orderly way.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Has root run statements; what they print.
    ///
    /// # Panics
    /// When one fails.
    pub fn execute(&self, statements: &str) -> String {
        let output = client(&self.socket)
            .args(["-e", statements])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{statements}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A number of `SHOW GLOBAL STATUS`, such as `Max_used_connections`.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn status(&self, name: &str) -> u64 {
        let line = self.execute(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
        let value = line.split_whitespace().nth(1);
        value.unwrap().parse().unwrap()
    }
}

/// mysql(1), as root.
fn client(socket: &Path) -> Command {
    let mut command = Command::new("mysql");
    command
        .args(["--no-defaults", "--default-character-set=utf8mb4"])
        .args([
            "--batch",
            "--raw",
            "--skip-column-names",
            "-u",
            "root",
            "--socket",
        ])
        .arg(socket);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_stops_and_starts_again() {
        let Some(mut server) = MariaDb::with_tls(|made| &made.server, &[]) else {
            return;
        };
        assert_eq!(
            server.execute("SELECT @@have_ssl, '\u{e9}'"),
            "YES\t\u{e9}\n"
        );
        server.execute("CREATE TABLE mail.t (a INT); INSERT INTO mail.t VALUES (1)");
        server.stop();
        assert!(!server.socket.exists());
        server.restart();
        server.kill();
        server.restart();
        assert_eq!(server.execute("SELECT a FROM mail.t"), "1\n");
        assert!(server.status("Max_used_connections") > 0);
        server.process().suspend();
        server.process().resume();
    }
}
