//! What the executable is under which name.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use crate::{daemons, tools};

/// A program that is chosen by the name of the executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applet {
    /// scache(8)
    Scache,
    /// proxymap(8), both services
    Proxymap,
    /// postkeep-socketmap(8)
    Socketmap,
    /// postmap(1)
    Postmap,
    /// postalias(1)
    Postalias,
    /// postconf(1)
    Postconf,
}

impl Applet {
    /// The program of that name; directories before the name do not matter.
    pub(crate) fn of(name: &OsStr) -> Option<Self> {
        let base = Path::new(name).file_name()?.to_str()?;
        Some(match base {
            "scache" => Self::Scache,
            "proxymap" | "proxywrite" => Self::Proxymap,
            "socketmap" => Self::Socketmap,
            "postmap" => Self::Postmap,
            "postalias" => Self::Postalias,
            "postconf" => Self::Postconf,
            _ => return None,
        })
    }

    /// Runs the program.
    ///
    /// - `name`: the name as it was called, which programs show in their messages
    pub(crate) fn run(self, name: &OsStr, arguments: &[OsString]) -> ExitCode {
        match self {
            Self::Scache => daemons::scache::run(name, arguments),
            Self::Proxymap => daemons::proxymap::run(name, arguments),
            Self::Socketmap => daemons::socketmap::run(name, arguments),
            Self::Postmap | Self::Postalias => tools::postmap::run(name, arguments),
            Self::Postconf => tools::postconf::run(name, arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_by_their_base_names() {
        let of = |name: &str| Applet::of(OsStr::new(name));
        assert_eq!(of("/usr/lib/postfix/sbin/scache"), Some(Applet::Scache));
        assert_eq!(of("proxywrite"), Some(Applet::Proxymap));
        assert_eq!(of("socketmap"), Some(Applet::Socketmap));
        assert_eq!(of("./postalias"), Some(Applet::Postalias));
        assert_eq!(of("postkeep"), None);
        assert_eq!(of("scache/postkeep"), None);
        assert_eq!(of(""), None);
    }
}
