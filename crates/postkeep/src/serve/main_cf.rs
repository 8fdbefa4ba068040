//! main.cf of `postkeep serve`: what is written on the first start, and what is read on each.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use postkeep_conf::{Account, Accounts, Group, StrParameter, split_list};
use postkeep_daemon::{SystemAccounts, configuration, evaluate_common};
use postkeep_master::{Address, Owner};
use postkeep_sys::privilege::is_root;

use super::Directory;

/// The parameter that is on here unless main.cf says otherwise.
pub(crate) const LEAST_PRIVILEGE: &str = "postkeep_least_privilege";

/// Where the socketmap service listens; it is not started otherwise.
const SOCKETMAP_LISTEN: &str = "postkeep_socketmap_listen";

/// What the stand-in itself needs to know.
#[derive(Debug)]
pub(crate) struct Configured {
    /// `queue_directory`
    pub(crate) queue_directory: PathBuf,
    mail_owner: Owner,
    /// `postkeep_least_privilege` is set, to whatever.
    pub(crate) privilege_is_set: bool,
    /// `postkeep_socketmap_listen`
    pub(crate) socketmap: Vec<Address>,
}

impl Configured {
    /// Reads main.cf of a directory.
    ///
    /// # Errors
    /// The first fault, in the words of the services.
    pub(crate) fn read(directory: &Directory) -> Result<Self, String> {
        let (text, file) =
            configuration::read(directory.path()).map_err(|error| error.to_string())?;
        // The services tell about all that is odd; here the first fault is enough.
        let mut ignore = |_: String| ();
        let mut dictionary =
            configuration::load(directory.path(), "serve", &text, &file, &[], &mut ignore)
                .map_err(|error| error.to_string())?;
        let privilege_is_set = dictionary.value(LEAST_PRIVILEGE).is_some();
        let listen = dictionary
            .str(
                &StrParameter {
                    name: SOCKETMAP_LISTEN,
                    default: "",
                    min: 0,
                    max: 0,
                },
                &mut ignore,
            )
            .map_err(|error| error.to_string())?;
        let socketmap = split_list(&listen).map(address).collect::<Result<_, _>>()?;
        let common =
            evaluate_common(&mut dictionary, &mut ignore).map_err(|error| error.to_string())?;
        Ok(Self {
            queue_directory: PathBuf::from(OsString::from_vec(common.queue_directory)),
            privilege_is_set,
            socketmap,
            mail_owner: Owner {
                user: common.mail_owner.uid,
                group: common.mail_owner.gid,
            },
        })
    }

    /// Whom the services become; `None` when they stay who started them.
    pub(crate) fn owner(&self) -> Option<Owner> {
        is_root().then_some(self.mail_owner)
    }
}

/// An address to listen at; without a host only this machine can connect.
fn address(word: &[u8]) -> Result<Address, String> {
    let bad = || {
        format!(
            "bad {SOCKETMAP_LISTEN} value: {} (specify unix:PATH, inet:PORT or inet:ADDRESS:PORT)",
            String::from_utf8_lossy(word)
        )
    };
    if let Some(path) = word.strip_prefix(b"unix:") {
        let path = PathBuf::from(OsStr::from_bytes(path));
        return match path.file_name() {
            Some(_) => Ok(Address::Unix(path)),
            None => Err(bad()),
        };
    }
    let place = word
        .strip_prefix(b"inet:")
        .and_then(|place| std::str::from_utf8(place).ok())
        .ok_or_else(bad)?;
    let loopback = |port: &str| {
        let port = port.parse().ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    let place = match place.strip_prefix("localhost:") {
        Some(port) => loopback(port),
        None => place.parse().ok().or_else(|| loopback(place)),
    };
    place
        .filter(|place| place.port() != 0)
        .map(Address::Inet)
        .ok_or_else(bad)
}

/// A text as a value that means just itself: `$` begins an expression otherwise.
pub(crate) fn literal(text: &OsStr) -> OsString {
    let mut literal = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        literal.push(byte);
        if byte == b'$' {
            literal.push(byte);
        }
    }
    OsString::from_vec(literal)
}

/// The accounts that every program of Postfix insists on: three that are not root and not each other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identities {
    mail_owner: String,
    default_privs: String,
    setgid_group: String,
}

/// Users that may be there, best first.
const USERS: [&str; 8] = [
    "postkeep", "postfix", "nobody", "daemon", "mail", "bin", "games", "sys",
];
/// The same for the account with the fewest rights.
const LEAST: [&str; 6] = ["nobody", "daemon", "mail", "bin", "games", "sys"];
/// The same for groups.
const GROUPS: [&str; 10] = [
    "postdrop", "nogroup", "nobody", "daemon", "mail", "bin", "users", "games", "sys", "adm",
];

/// Chooses the accounts.
///
/// - `asked`: a user who must be the owner
/// - `own`: the user who runs the services, when that is not root; with another identity the services run all
///   the same, as only root can change it
fn choose(
    asked: Option<&str>,
    own: Option<&Account>,
    accounts: &dyn Accounts,
) -> Result<Identities, String> {
    let usable = |name: &str| {
        accounts.user_by_name(name.as_bytes()).filter(|user| {
            let first = accounts.user_by_id(user.uid);
            user.uid != 0
                && user.gid != 0
                && first.is_some_and(|first| first.name == name.as_bytes())
        })
    };
    let owner = if let Some(name) = asked {
        usable(name).ok_or_else(|| {
            format!("{name} is no user, or not one of its own, or has root's user or group ID")
        })?
    } else {
        let own = own.map(|user| String::from_utf8_lossy(&user.name).into_owned());
        own.iter()
            .map(String::as_str)
            .chain(USERS)
            .find_map(usable)
            .ok_or("there is no user but root")?
    };
    let least = LEAST
        .iter()
        .filter_map(|name| usable(name))
        .find(|user| user.uid != owner.uid && user.gid != owner.gid)
        .ok_or("there are not two users beside root")?;
    let group = GROUPS
        .iter()
        .filter_map(|name| accounts.group_by_name(name.as_bytes()))
        .find(|group: &Group| ![0, owner.gid, least.gid].contains(&group.gid))
        .ok_or("there are not three groups beside root's")?;
    let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    Ok(Identities {
        mail_owner: text(owner.name),
        default_privs: text(least.name),
        setgid_group: text(group.name),
    })
}

/// The text of a new main.cf.
///
/// - `user`: whom the services become, when root starts them
///
/// # Errors
/// A reason when this machine has too few users or groups, or no such user.
pub(crate) fn first(directory: &Directory, user: Option<&str>) -> Result<Vec<u8>, String> {
    let own = (!is_root()).then(own_account).flatten();
    let identities = choose(user, own.as_ref(), &SystemAccounts)?;
    Ok(text(directory, &identities))
}

/// The account of whoever runs this process.
fn own_account() -> Option<Account> {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").ok()?.uid();
    SystemAccounts.user_by_id(uid)
}

fn text(directory: &Directory, identities: &Identities) -> Vec<u8> {
    let mut head = String::new();
    let Identities {
        mail_owner,
        default_privs,
        setgid_group,
    } = identities;
    // Writing to a string does not fail.
    let _ = write!(
        head,
        "# Written by \"postkeep serve\" on its first start. It is yours: it is never written again.\n\
         # Send a hangup signal to \"postkeep serve\" after a change. See postkeep-serve(1) and postconf(5).\n\
         \n\
         compatibility_level = 3.6\n\
         \n\
         # Started by root, the services become mail_owner; otherwise they stay who they are. The other two\n\
         # accounts are not used, but have to exist.\n\
         mail_owner = {mail_owner}\n\
         default_privs = {default_privs}\n\
         setgid_group = {setgid_group}\n\
         \n\
         # The log goes to whoever runs \"postkeep serve\".\n\
         maillog_file = /dev/stdout\n\
         \n\
         # Connections may be kept for so long, if their owners ask for it.\n\
         connection_cache_ttl_limit = 1h\n\
         \n\
         # All *.lmdb in the tables directory; and the one of them that clients may change.\n\
         proxy_read_maps = $postkeep_readable_tables\n\
         proxy_write_maps = $postkeep_writable_tables\n\
         \n"
    );
    let mut text = head.into_bytes();
    for (name, path) in [
        ("queue_directory", directory.queue()),
        ("data_directory", directory.data()),
    ] {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b" = ");
        text.extend_from_slice(literal(path.as_os_str()).as_bytes());
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    struct Machine(Vec<(&'static str, u32, u32)>, Vec<(&'static str, u32)>);

    impl Machine {
        fn user(entry: &(&'static str, u32, u32)) -> Account {
            Account {
                name: entry.0.into(),
                uid: entry.1,
                gid: entry.2,
            }
        }
    }

    impl Accounts for Machine {
        fn user_by_name(&self, name: &[u8]) -> Option<Account> {
            self.0
                .iter()
                .find(|entry| entry.0.as_bytes() == name)
                .map(Self::user)
        }

        fn user_by_id(&self, uid: u32) -> Option<Account> {
            self.0.iter().find(|entry| entry.1 == uid).map(Self::user)
        }

        fn group_by_name(&self, name: &[u8]) -> Option<Group> {
            let found = self.1.iter().find(|entry| entry.0.as_bytes() == name)?;
            Some(Group {
                name: found.0.into(),
                gid: found.1,
            })
        }

        fn group_by_id(&self, gid: u32) -> Option<Group> {
            let found = self.1.iter().find(|entry| entry.1 == gid)?;
            Some(Group {
                name: found.0.into(),
                gid: found.1,
            })
        }
    }

    fn debian() -> Machine {
        Machine(
            vec![
                ("root", 0, 0),
                ("daemon", 1, 1),
                ("bin", 2, 2),
                ("mail", 8, 8),
                ("nobody", 65534, 65534),
                ("u", 1000, 1000),
                ("twin", 1000, 1000),
            ],
            vec![
                ("root", 0),
                ("daemon", 1),
                ("bin", 2),
                ("mail", 8),
                ("nogroup", 65534),
                ("u", 1000),
            ],
        )
    }

    fn names(identities: Result<Identities, String>) -> Option<[String; 3]> {
        let Identities {
            mail_owner,
            default_privs,
            setgid_group,
        } = identities.ok()?;
        Some([mail_owner, default_privs, setgid_group])
    }

    #[test]
    fn accounts_are_never_the_same() {
        let machine = debian();
        let own = machine.user_by_name(b"u");
        let choice = names(choose(None, own.as_ref(), &machine)).unwrap();
        assert_eq!(choice, ["u", "nobody", "daemon"]);
        let choice = names(choose(None, None, &machine)).unwrap();
        assert_eq!(choice, ["nobody", "daemon", "mail"]);
        let choice = names(choose(Some("daemon"), None, &machine)).unwrap();
        assert_eq!(choice, ["daemon", "nobody", "mail"]);
        for bad in ["root", "twin", "nosuchuser"] {
            assert_eq!(names(choose(Some(bad), None, &machine)), None, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_listened_to_unless_an_address_says_otherwise() {
        let inet = |text: &str| Ok(Address::Inet(text.parse().unwrap()));
        assert_eq!(address(b"inet:8650"), inet("127.0.0.1:8650"));
        assert_eq!(address(b"inet:localhost:8650"), inet("127.0.0.1:8650"));
        assert_eq!(address(b"inet:0.0.0.0:1"), inet("0.0.0.0:1"));
        assert_eq!(address(b"inet:[::1]:1"), inet("[::1]:1"));
        assert_eq!(
            address(b"unix:private/x"),
            Ok(Address::Unix("private/x".into()))
        );
        for bad in [
            "8650",
            "inet:",
            "inet:0",
            "inet:host:1",
            "inet::1:x",
            "unix:",
            "unix:..",
        ] {
            assert!(address(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn dollars_mean_themselves() {
        assert_eq!(literal(OsStr::new("/a$b")), "/a$$b");
    }

    #[test]
    fn first_text_is_understood() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::choose(Some(&scratch.path().join("with$dollar"))).unwrap();
        std::fs::create_dir(directory.path()).unwrap();
        let identities = choose(None, None, &SystemAccounts).unwrap();
        std::fs::write(directory.main_cf(), text(&directory, &identities)).unwrap();
        let configured = Configured::read(&directory).unwrap();
        assert_eq!(configured.queue_directory, directory.queue());
        assert!(
            configured
                .queue_directory
                .ends_with(Path::new("with$dollar/queue"))
        );
    }
}
