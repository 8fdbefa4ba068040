//! Certificates for tests, made with openssl(1).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a server and its clients need, as PEM files in one directory. All are readable for everybody.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority that signed all below.
    pub authority: PathBuf,
    /// Another authority, which signed nothing.
    pub stranger: PathBuf,
    /// For `localhost`, `127.0.0.1` and `::1`.
    pub server: Pair,
    /// For `other.example`: trusted, but the name is not the server's.
    pub misnamed: Pair,
    /// For the name that this machine has, and not for `localhost`.
    pub machine: Pair,
    /// For a client, `CN=client`.
    pub client: Pair,
}

/// A certificate and its private key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in this directory, which must exist.
    ///
    /// # Panics
    /// When openssl cannot.
    pub fn make(directory: &Path) -> Self {
        let authority = make_authority(directory, "authority");
        let stranger = make_authority(directory, "stranger").certificate;
        let signed = |name: &str, common_name: &str, names: &str| {
            let pair = Pair::named(directory, name);
            let extensions = format!("subjectAltName={names}");
            let mut words = request(&pair, common_name);
            words.extend(["-addext", &extensions].map(str::to_owned));
            words.extend(["-addext", "basicConstraints=critical,CA:FALSE"].map(str::to_owned));
            words.extend(["-CA".to_owned(), text(&authority.certificate)]);
            words.extend(["-CAkey".to_owned(), text(&authority.key)]);
            openssl(&words);
            pair.readable();
            pair
        };
        Self {
            server: signed("server", "localhost", "DNS:localhost,IP:127.0.0.1,IP:::1"),
            misnamed: signed("misnamed", "other.example", "DNS:other.example"),
            machine: signed("machine", "machine", &format!("DNS:{}", machine())),
            client: signed("client", "client", "DNS:client.example"),
            authority: authority.certificate,
            stranger,
        }
    }
}

/// The name of this machine.
fn machine() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    name.trim().to_owned()
}

impl Pair {
    fn named(directory: &Path, name: &str) -> Self {
        Self {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }

    fn readable(&self) {
        for file in [&self.certificate, &self.key] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}

fn make_authority(directory: &Path, name: &str) -> Pair {
    let pair = Pair::named(directory, name);
    let mut words = request(&pair, name);
    words.extend(["-addext", "basicConstraints=critical,CA:TRUE"].map(str::to_owned));
    words.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"].map(str::to_owned));
    openssl(&words);
    pair.readable();
    pair
}

/// A new key and a certificate of it, good for a day.
fn request(pair: &Pair, common_name: &str) -> Vec<String> {
    let words = "req -x509 -days 1 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
    let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    words.extend(["-subj".to_owned(), format!("/CN={common_name}")]);
    words.extend(["-out".to_owned(), text(&pair.certificate)]);
    words.extend(["-keyout".to_owned(), text(&pair.key)]);
    words
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn openssl(words: &[String]) {
    let output = Command::new("openssl").args(words).output().unwrap();
    assert!(
        output.status.success(),
        "openssl {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_they_say() {
        let directory = postkeep_testkit::Scratch::new("certificates").unwrap();
        let made = Certificates::make(directory.path());
        let verify = |authority: &Path, pair: &Pair, name: &str| {
            let output = Command::new("openssl")
                .args(["verify", "-verify_hostname", name, "-CAfile"])
                .args([authority, &pair.certificate])
                .output()
                .unwrap();
            output.status.success()
        };
        assert!(verify(&made.authority, &made.server, "localhost"));
        assert!(!verify(&made.stranger, &made.server, "localhost"));
        assert!(!verify(&made.authority, &made.misnamed, "localhost"));
        assert!(verify(&made.authority, &made.misnamed, "other.example"));
        assert!(verify(&made.authority, &made.client, "client.example"));
    }
}
