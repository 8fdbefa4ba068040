//! What tables need to know of the configuration and of the program that opens them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postkeep_conf::{Dictionary, Release};

/// Which kind of program opens tables; the reference treats a few faults differently in commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A daemon: a fault concerns one table and must not stand in the way of other clients.
    Daemon,
    /// postmap(1), postalias(1): the fault ends the command with the reference's text.
    Command,
}

/// Configuration that tables see; parameter names as in postconf(5).
#[derive(Clone, Debug)]
pub struct Context {
    /// The kind of program.
    pub caller: Caller,
    /// `smtputf8_enable`: keys and values are checked as UTF-8 where the opener asks for it.
    pub smtputf8_enable: bool,
    /// `lmdb_map_size`: the initial size limit of an LMDB table, in bytes.
    pub lmdb_map_size: u64,
    /// `queue_directory`: below it are the sockets of `proxy:` tables.
    pub queue_directory: PathBuf,
    /// `proxymap_service_name`.
    pub proxymap_service_name: String,
    /// `proxywrite_service_name`.
    pub proxywrite_service_name: String,
    /// `ipc_timeout`: for one request through `proxy:`.
    pub ipc_timeout: Duration,
    /// `ipc_idle`: after which an unused connection is closed.
    pub ipc_idle: Duration,
    /// `ipc_ttl`: after which a connection is closed in any case.
    pub ipc_ttl: Duration,
    /// All of main.cf, for types whose parameters begin with the name of a table.
    pub main_cf: Arc<Dictionary>,
}

impl Default for Context {
    /// The defaults of postconf(5), for a daemon.
    fn default() -> Self {
        Self {
            caller: Caller::Daemon,
            smtputf8_enable: true,
            lmdb_map_size: 16_777_216,
            queue_directory: PathBuf::from("/var/spool/postfix"),
            proxymap_service_name: "proxymap".to_owned(),
            proxywrite_service_name: "proxywrite".to_owned(),
            ipc_timeout: Duration::from_hours(1),
            ipc_idle: Duration::from_secs(5),
            ipc_ttl: Duration::from_secs(1000),
            main_cf: Arc::new(Dictionary::new(Release::default(), b"/etc/postfix")),
        }
    }
}
