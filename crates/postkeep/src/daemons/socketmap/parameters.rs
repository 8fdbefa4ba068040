//! What main.cf says about the socketmap server.

use std::time::Duration;

use postkeep_conf::{
    BoolParameter, Dictionary, Error, IntParameter, Sink, StrParameter, TimeParameter, split_list,
};
use postkeep_daemon::{limits, logging};
use postkeep_proxymap::socketmap::{Limits, Maps};

use super::tls::{Allowed, Tls, path};

pub(super) const MAPS: &str = "postkeep_socketmap_maps";
pub(super) const CERTIFICATE: &str = "postkeep_socketmap_tls_certificate";
const KEY: &str = "postkeep_socketmap_tls_key";
const CLIENT_CA: &str = "postkeep_socketmap_tls_client_ca";
const CLIENTS: &str = "postkeep_socketmap_tls_clients";
pub(super) const PLAINTEXT: &str = "postkeep_socketmap_allow_plaintext";
pub(super) const REQUEST_SIZE: &str = "postkeep_socketmap_request_size_limit";
pub(super) const REQUEST_TIME: &str = "postkeep_socketmap_request_time";
pub(super) const HANDSHAKE_TIME: &str = "postkeep_socketmap_handshake_time";
const IDLE_TIME: &str = "postkeep_socketmap_idle_time";
pub(super) const ANSWER_TIME: &str = "postkeep_socketmap_answer_time";

/// Limits of the skeleton that are meant for clients on this machine, and what they are here unless main.cf or an option
/// has them.
const DEFAULTS: [(&str, &[u8]); 3] = [
    (limits::CLIENTS, b"2000"),
    (limits::ADDRESS_CLIENTS, b"500"),
    (limits::REQUEST_RATE, b"10000"),
];

/// Sets the limits of the skeleton that nobody has set.
pub(super) fn set_defaults(dictionary: &mut Dictionary) {
    for (name, value) in DEFAULTS {
        if dictionary.value(name).is_none() {
            dictionary.set(name, value);
        }
    }
}

/// The parameters, as they are in main.cf.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) maps: Maps,
    pub(super) tls: Option<Tls>,
    pub(super) allow_plaintext: bool,
    pub(super) handshake_time: Duration,
    pub(super) limits: Limits,
}

impl Parameters {
    /// Reads them. A value that makes no sense ends the process.
    ///
    /// # Errors
    /// A value that is no number, time or choice, or out of range.
    pub(super) fn read(dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<Self, Error> {
        let mut text = |name| {
            dictionary.str(
                &StrParameter {
                    name,
                    default: "",
                    min: 0,
                    max: 0,
                },
                &mut *sink,
            )
        };
        let maps = Maps::parse(&text(MAPS)?)
            .unwrap_or_else(|error| logging::fatal(format_args!("{MAPS}: {error}")));
        if maps.is_empty() {
            logging::fatal(format_args!(
                "no maps to serve: {MAPS} is empty (specify \"name=type:table, ...\")"
            ));
        }
        let tls = read_tls([
            text(CERTIFICATE)?,
            text(KEY)?,
            text(CLIENT_CA)?,
            text(CLIENTS)?,
        ])
        .unwrap_or_else(|reason| logging::fatal(format_args!("{reason}")));
        let allow_plaintext = dictionary.bool(
            &BoolParameter {
                name: PLAINTEXT,
                default: false,
            },
            &mut *sink,
        )?;
        let default = Limits::default();
        let size = dictionary.int(
            &IntParameter {
                name: REQUEST_SIZE,
                default: i32::try_from(default.request_size).unwrap_or(i32::MAX),
                min: 64,
                max: 1 << 20,
            },
            &mut *sink,
        )?;
        let mut time = |name, default| {
            dictionary.time(
                &TimeParameter {
                    name,
                    default,
                    min: 1,
                    // A day: no client is worth more.
                    max: 86_400,
                },
                &mut *sink,
            )
        };
        Ok(Self {
            maps,
            tls,
            allow_plaintext,
            handshake_time: time(HANDSHAKE_TIME, "10s")?,
            limits: Limits {
                request_size: usize::try_from(size).unwrap_or(default.request_size),
                request_time: time(REQUEST_TIME, "10s")?,
                idle_time: time(IDLE_TIME, "300s")?,
                answer_time: time(ANSWER_TIME, "100s")?,
            },
        })
    }
}

/// Puts the TLS parameters together; what is wrong with them comes back as a sentence.
fn read_tls([certificate, key, client_ca, clients]: [Vec<u8>; 4]) -> Result<Option<Tls>, String> {
    let Some(certificate) = path(certificate) else {
        for (name, value) in [(KEY, &key), (CLIENT_CA, &client_ca), (CLIENTS, &clients)] {
            if !value.is_empty() {
                return Err(format!("{name} is of no use without {CERTIFICATE}"));
            }
        }
        return Ok(None);
    };
    let client_ca = path(client_ca);
    if client_ca.is_none() && !clients.is_empty() {
        return Err(format!("{CLIENTS} is of no use without {CLIENT_CA}"));
    }
    let clients = Allowed::parse(split_list(&clients)).map_err(|word| {
        format!(
            "bad {CLIENTS} value: {word} (specify names of certificates, or \"sha256:\" and a fingerprint)"
        )
    })?;
    Ok(Some(Tls {
        key: path(key).unwrap_or_else(|| certificate.clone()),
        certificate,
        client_ca,
        clients,
    }))
}

#[cfg(test)]
mod tests {
    use postkeep_conf::Release;

    use super::*;

    fn read(text: &str) -> Parameters {
        let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
        dictionary
            .load(text.as_bytes(), "main.cf", &mut Vec::new())
            .unwrap();
        set_defaults(&mut dictionary);
        Parameters::read(&mut dictionary, &mut Vec::new()).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_conversation() {
        let parameters = read("postkeep_socketmap_maps = a=hash:/x\n");
        assert_eq!(parameters.limits, Limits::default());
        assert_eq!(parameters.handshake_time, Duration::from_secs(10));
        assert!(parameters.tls.is_none() && !parameters.allow_plaintext);
    }

    #[test]
    fn limits_of_the_skeleton_are_smaller_unless_they_are_set() {
        let mut dictionary = Dictionary::new(Release::default(), b"/etc/postfix");
        let text = b"postkeep_client_limit = 7\n";
        dictionary.load(text, "main.cf", &mut Vec::new()).unwrap();
        set_defaults(&mut dictionary);
        let limits = limits::Limits::read(&mut dictionary, &mut Vec::new()).unwrap();
        assert_eq!(
            (limits.clients, limits.address_clients, limits.request_rate),
            (7, 500, 10_000)
        );
    }

    #[test]
    fn halves_of_tls_are_refused() {
        let read = |values: [&str; 4]| read_tls(values.map(|value| value.as_bytes().to_vec()));
        assert!(read(["", "", "", ""]).unwrap().is_none());
        let tls = read(["/c", "", "/ca", "mx.example.org"]).unwrap().unwrap();
        assert_eq!(tls.key, tls.certificate);
        assert_eq!(
            read(["", "/k", "", ""]).unwrap_err(),
            "postkeep_socketmap_tls_key is of no use without postkeep_socketmap_tls_certificate"
        );
        assert_eq!(
            read(["/c", "/k", "", "mx.example.org"]).unwrap_err(),
            "postkeep_socketmap_tls_clients is of no use without postkeep_socketmap_tls_client_ca"
        );
        assert!(
            read(["/c", "/k", "/ca", "sha256:1"])
                .unwrap_err()
                .starts_with("bad postkeep_socketmap_tls_clients value: sha256:1 (")
        );
    }
}
