//! What a service does, told from its name in master.cf.
//!
//! # References
//! proxymap(8); Postfix `src/proxymap/proxymap.c`.

use postkeep_conf::Release;
use postkeep_table::Access;

use crate::approve::Listing;

/// What clients may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `proxymap`: look up and walk.
    Read,
    /// `proxywrite`: also update and delete.
    Write,
}

impl Role {
    /// How tables are opened.
    pub const fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::Write => Access::ReadWrite,
        }
    }

    /// The parameter that lists the approved tables.
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Read => "proxy_read_maps",
            Self::Write => "proxy_write_maps",
        }
    }

    /// As in `to approve this table for read-only access`.
    pub(crate) const fn access_word(self) -> &'static str {
        match self {
            Self::Read => "read-only",
            Self::Write => "read-write",
        }
    }
}

/// What a process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Answer requests.
    Serve(Role),
    /// Print the tables of the list, sorted, one a line, and end (3.11 and later).
    Export(Role, Listing),
}

impl Service {
    /// Whose list it is.
    pub const fn role(self) -> Role {
        match self {
            Self::Serve(role) | Self::Export(role, _) => role,
        }
    }

    /// Which tables of the list count.
    pub const fn listing(self) -> Listing {
        match self {
            Self::Serve(_) => Listing::Proxied,
            Self::Export(_, listing) => listing,
        }
    }
}

/// The service has a name that says nothing to us; the text is the reference's, for a fatal line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceNameError {
    /// Up to 3.8; the repetition is the reference's.
    #[error("service name must be one of proxymap or proxymap")]
    Old,
    /// 3.9 and later.
    #[error("invalid service name: \"{0}\" - service name must be \"proxywrite\" or \"proxymap\"")]
    New(String),
}

impl Service {
    /// Tells what to do from the service name (`-n`, or else the program's).
    ///
    /// Export services exist from 3.11 on.
    ///
    /// # Errors
    /// [`ServiceNameError`] with the text of that release.
    pub fn from_name(name: &str, release: Release) -> Result<Self, ServiceNameError> {
        let (listing, rest) = match (
            name.strip_prefix("export-all-"),
            name.strip_prefix("export-proxy-"),
        ) {
            _ if release < Release::V3_11 => (None, name),
            (Some(rest), _) => (Some(Listing::All), rest),
            (_, Some(rest)) => (Some(Listing::Proxied), rest),
            _ => (None, name),
        };
        let role = match rest {
            "proxymap" => Role::Read,
            "proxywrite" => Role::Write,
            _ if release < Release::V3_9 => return Err(ServiceNameError::Old),
            _ => return Err(ServiceNameError::New(rest.to_owned())),
        };
        Ok(match listing {
            None => Self::Serve(role),
            Some(listing) => Self::Export(role, listing),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Release = Release::V3_12;
    const OLD: Release = Release::V3_7;

    #[test]
    fn names_and_roles() {
        for (name, expected) in [
            ("proxymap", Service::Serve(Role::Read)),
            ("proxywrite", Service::Serve(Role::Write)),
            (
                "export-all-proxymap",
                Service::Export(Role::Read, Listing::All),
            ),
            (
                "export-proxy-proxywrite",
                Service::Export(Role::Write, Listing::Proxied),
            ),
        ] {
            assert_eq!(Service::from_name(name, NEW), Ok(expected), "{name}");
        }
        assert_eq!(
            Service::from_name("proxywrite", OLD),
            Ok(Service::Serve(Role::Write))
        );
    }

    #[test]
    fn other_names_are_refused_in_the_words_of_the_release() {
        let text = |name, release| Service::from_name(name, release).unwrap_err().to_string();
        assert_eq!(
            text("x", OLD),
            "service name must be one of proxymap or proxymap"
        );
        assert_eq!(
            text("export-all-proxymap", OLD),
            "service name must be one of proxymap or proxymap"
        );
        assert_eq!(
            text("export-all-x", NEW),
            "invalid service name: \"x\" - service name must be \"proxywrite\" or \"proxymap\""
        );
        assert_eq!(
            text("export-foo", Release::V3_9),
            "invalid service name: \"export-foo\" - service name must be \"proxywrite\" or \"proxymap\""
        );
    }
}
