//! A private slapd(8).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postkeep_testkit::Scratch;
use postkeep_testkit::private_postfix::free_port;
use postkeep_testkit::scratch::give_to;

use crate::servers::certificates::{Certificates, Pair};
use crate::servers::process::{Process, as_user, installed};

/// Whom it runs as: the package makes that user.
const USER: &str = "openldap";

/// The name of who may do everything, and the password.
pub const ROOT: (&str, &str) = ("cn=root,dc=example", "root secret");

/// A user who can bind, and the password.
pub const READER: (&str, &str) = ("cn=reader,dc=example", "reader's (secret)\\");

/// Attributes for mail, whose values are compared without regard to case, and of which entries may have any.
const SCHEMA: &str = "\
attributetype ( 1.3.6.1.4.1.99999.1.1 NAME 'maildrop' EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.99999.1.2 NAME 'mailacceptinggeneralid' EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.99999.1.3 NAME 'memberdn' EQUALITY caseExactMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.99999.1.4 NAME 'memberurl' EQUALITY caseExactMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.99999.1.5 NAME 'memberaddr' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.99999.1.6 NAME 'blob' EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 )
objectclass ( 1.3.6.1.4.1.99999.2.1 NAME 'mailThing' SUP top STRUCTURAL MUST cn MAY ( maildrop $ mailacceptinggeneralid $ memberdn $ memberurl $ memberaddr $ blob $ mail $ description $ userPassword $ sn ) )
";

/// A server of `dc=example`.
#[derive(Debug)]
pub struct Slapd {
    process: Process,
    /// Its port on 127.0.0.1, without TLS until it is asked for.
    pub port: u16,
    /// Its port with TLS from the start.
    pub tls_port: u16,
    /// Its UNIX-domain socket.
    pub socket: PathBuf,
    /// Certificates; the server has one of these.
    pub certificates: Certificates,
    /// A directory for files beside it, which is removed with it.
    pub scratch: Scratch,
}

impl Slapd {
    /// Starts one; `None`, after saying SKIP, where it is not installed.
    ///
    /// - `entries`: LDIF of entries below `dc=example`, which is there, as is [`READER`]
    /// - `more`: lines for the configuration of the database
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(entries: &str, more: &str) -> Option<Self> {
        Self::with_certificate(|made| &made.server, entries, more)
    }

    /// The same with another certificate than the right one.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_certificate(
        pick: fn(&Certificates) -> &Pair,
        entries: &str,
        more: &str,
    ) -> Option<Self> {
        if !installed("slapd", "slapd") {
            return None;
        }
        let scratch = Scratch::new("slapd").unwrap();
        let home = scratch.directory("home", 0o755).unwrap();
        for name in ["data", "run"] {
            fs::create_dir(home.join(name)).unwrap();
            give_to(USER, &home.join(name)).unwrap();
        }
        let certificates = Certificates::make(scratch.path());
        let Pair { certificate, key } = pick(&certificates);
        let place = home.display();
        let text = format!(
            "include /etc/ldap/schema/core.schema\n\
             include /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\n\
             {SCHEMA}\
             modulepath /usr/lib/ldap\n\
             moduleload back_mdb\n\
             pidfile {place}/run/pid\n\
             allow bind_v2\n\
             TLSCACertificateFile {}\n\
             TLSCertificateFile {}\n\
             TLSCertificateKeyFile {}\n\
             TLSVerifyClient try\n\
             authz-regexp \"gidNumber=.*,cn=peercred,cn=external,cn=auth\" \"{}\"\n\
             authz-regexp \"cn=client\" \"{}\"\n\
             database mdb\n\
             suffix dc=example\n\
             rootdn {}\n\
             rootpw \"{}\"\n\
             directory {place}/data\n\
             dbnosync\n\
             {more}\n",
            certificates.authority.display(),
            certificate.display(),
            key.display(),
            READER.0,
            READER.0,
            ROOT.0,
            ROOT.1,
        );
        fs::write(home.join("slapd.conf"), text).unwrap();
        let (port, tls_port) = (free_port().unwrap(), free_port().unwrap());
        let socket = home.join("run/ldapi");
        let urls = format!(
            "ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{tls_port}/ ldapi://{}/",
            escaped(&socket)
        );
        let configuration = home.join("slapd.conf").display().to_string();
        let words = ["slapd", "-d", "0", "-f", &configuration, "-h", &urls];
        let mut server = Self {
            process: Process::new(USER, &scratch.path().join("log"), &words),
            port,
            tls_port,
            socket,
            certificates,
            scratch,
        };
        let ldif = format!(
            "dn: dc=example\nobjectclass: domain\ndc: example\n\n\
             dn: {}\nobjectclass: mailThing\ncn: reader\nuserPassword: {}\n\n{entries}\n",
            READER.0, READER.1
        );
        let mut command = as_user(USER, &["slapadd", "-q", "-f", &configuration]);
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(ldif.as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "slapadd: {said}");
        server.restart();
        Some(server)
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let url = self.ldapi();
        self.process.start(|| {
            let mut command = Command::new("ldapsearch");
            command.args(["-x", "-H", &url, "-b", "", "-s", "base"]);
            command.output().is_ok_and(|output| output.status.success())
        });
    }

    /// Its socket as a URL.
    pub fn ldapi(&self) -> String {
        format!("ldapi://{}", escaped(&self.socket))
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
}

fn escaped(path: &Path) -> String {
    path.display().to_string().replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_stops_and_starts_again() {
        let Some(mut server) = Slapd::start("", "") else {
            return;
        };
        server.stop();
        server.restart();
        server.kill();
        server.restart();
    }
}
