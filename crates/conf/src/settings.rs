//! The parameters that every program reads, in the reference's order, and the checks across them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::accounts::{Account, Accounts, Group, Identities, Names};
use crate::catalog::{Catalog, Kind};
use crate::dictionary::Dictionary;
use crate::error::Error;
use crate::hosts::{self, Families, Interface, Resolve, check_hostname};
use crate::level::CompatibilityLevel;
use crate::parameter::{
    BoolParameter, IntParameter, LongParameter, NboolParameter, NintParameter, RawParameter,
    StrParameter, TimeParameter,
};
use crate::sink::Sink;
use crate::text::{display, split_list};

/// What a program finds around it.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The name the machine calls itself, used when main.cf has no `myhostname`.
    pub host_name: &'a [u8],
    /// Stored as `process_id`.
    pub process_id: u32,
    /// Users and groups.
    pub accounts: &'a dyn Accounts,
    /// Addresses of this machine; when empty, `mynetworks` has an empty default and `inet_interfaces` is not
    /// checked against them.
    pub interfaces: &'a [Interface],
    /// Finds the addresses of names in `inet_interfaces`; without it names there are not checked.
    pub resolve: Option<Resolve<'a>>,
}

/// The common parameters, evaluated and checked.
///
/// All of them, also those without a field here, are in the dictionary afterwards: a program's own parameters can
/// refer to them.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    clippy::struct_excessive_bools,
    reason = "the fields are the parameters of postconf(5)"
)]
#[non_exhaustive]
pub struct Common {
    pub compatibility_level: CompatibilityLevel,
    pub mail_version: Vec<u8>,
    pub mail_name: Vec<u8>,
    pub myhostname: Vec<u8>,
    pub mydomain: Vec<u8>,
    pub myorigin: Vec<u8>,
    pub mydestination: Vec<u8>,
    pub mynetworks: Vec<u8>,
    pub relayhost: Vec<u8>,
    pub relay_domains: Vec<u8>,
    pub inet_interfaces: Vec<u8>,
    pub inet_protocols: Vec<u8>,
    pub proxy_interfaces: Vec<u8>,
    /// Addresses that `inet_interfaces` chooses, as far as they are known.
    pub own_addresses: Vec<IpAddr>,

    pub syslog_name: Vec<u8>,
    /// One of the names of syslog(3), in lower case; see [`Common::syslog_facility_code`].
    pub syslog_facility: Vec<u8>,
    pub maillog_file: Vec<u8>,
    pub maillog_file_prefixes: Vec<u8>,
    pub postlog_service_name: Vec<u8>,
    pub respectful_logging: bool,
    pub helpful_warnings: bool,

    pub mail_owner: Account,
    pub setgid_group: Group,
    pub default_privs: Account,

    pub queue_directory: Vec<u8>,
    pub data_directory: Vec<u8>,
    pub daemon_directory: Vec<u8>,
    pub command_directory: Vec<u8>,
    pub meta_directory: Vec<u8>,
    pub shlib_directory: Vec<u8>,
    /// Relative to the queue directory.
    pub process_id_directory: Vec<u8>,
    pub import_environment: Vec<u8>,
    pub export_environment: Vec<u8>,
    pub multi_instance_name: Vec<u8>,

    pub default_database_type: Vec<u8>,
    /// Empty before Postfix 3.11.
    pub default_cache_db_type: Vec<u8>,
    pub berkeley_db_create_buffer_size: i32,
    pub berkeley_db_read_buffer_size: i32,
    pub lmdb_map_size: i64,
    pub daemon_table_open_error_is_fatal: bool,
    pub smtputf8_enable: bool,
    pub soft_bounce: bool,

    pub max_use: i32,
    pub max_idle: Duration,
    pub default_process_limit: i32,
    pub ipc_timeout: Duration,
    pub ipc_idle: Duration,
    pub ipc_ttl: Duration,
    pub trigger_timeout: Duration,
    pub daemon_timeout: Duration,
    pub application_event_drain_time: Duration,
    pub in_flow_delay: Duration,
    pub fork_attempts: i32,
    pub fork_delay: Duration,
    pub deliver_lock_attempts: i32,
    pub deliver_lock_delay: Duration,
    pub stale_lock_time: Duration,
    pub line_length_limit: i32,

    pub proxymap_service_name: Vec<u8>,
    pub proxywrite_service_name: Vec<u8>,
}

/// Read right after the compatibility level.
const FIRST: &[&str] = &[
    "mail_version",
    "syslog_facility",
    "inet_protocols",
    "multi_instance_directories",
    "multi_instance_group",
    "multi_instance_name",
    "maillog_file",
    "maillog_file_prefixes",
    "maillog_file_compressor",
    "maillog_file_rotate_suffix",
    "maillog_file_permissions",
    "postlog_service_name",
    "dnssec_probe",
    "known_tcp_ports",
    // The facility is checked before this one is read.
    "daemon_table_open_error_is_fatal",
    "dns_ncache_ttl_fix_enable",
    "smtputf8_enable",
    "enable_idna2003_compatibility",
    "respectful_logging",
    "requiretls_enable",
    "tls_required_enable",
    "non_bdb_migration_log_redirect",
];

/// Read after myhostname and mydomain: texts, integers, long integers, booleans, times.
const MAIN: &[&str] = &[
    "mail_name",
    "syslog_name",
    "mail_owner",
    "setgid_group",
    "mydestination",
    "myorigin",
    "relayhost",
    "daemon_directory",
    "data_directory",
    "command_directory",
    "meta_directory",
    "queue_directory",
    "shlib_directory",
    "process_id_directory",
    "inet_interfaces",
    "proxy_interfaces",
    "double_bounce_sender",
    "default_privs",
    "mail_release_date",
    "default_database_type",
    "default_cache_db_type",
    "alias_database",
    "hash_queue_names",
    "recipient_delimiter",
    "relay_domains",
    "fast_flush_domains",
    "export_environment",
    "import_environment",
    "mynetworks_style",
    "debug_peer_list",
    "default_verp_delimiters",
    "verp_delimiter_filter",
    "parent_domain_matches_subdomains",
    "alternate_config_directories",
    "bounce_service_name",
    "cleanup_service_name",
    "defer_service_name",
    "pickup_service_name",
    "queue_service_name",
    "rewrite_service_name",
    "showq_service_name",
    "error_service_name",
    "flush_service_name",
    "address_verify_service_name",
    "trace_service_name",
    "proxymap_service_name",
    "proxywrite_service_name",
    "internal_mail_filter_classes",
    "multi_instance_wrapper",
    "default_delivery_status_filter",
    "smtputf8_autodetect_classes",
    "message_drop_headers",
    "info_log_address_format",
    "non_bdb_migration_level",
    "non_bdb_migration_service_name",
    "non_bdb_custom_mapping",
    "default_process_limit",
    "max_use",
    "dont_remove",
    "line_length_limit",
    "hash_queue_depth",
    "fork_attempts",
    "deliver_lock_attempts",
    "debug_peer_level",
    "fault_injection_code",
    "berkeley_db_create_buffer_size",
    "berkeley_db_read_buffer_size",
    "header_size_limit",
    "header_address_token_limit",
    "mime_nesting_limit",
    "mime_boundary_length_limit",
    "delay_logging_resolution_limit",
    "tcp_windowsize",
    "socketmap_max_reply_size",
    "socketmap_max_query_size",
    "message_size_limit",
    "lmdb_map_size",
    "disable_dns_lookups",
    "soft_bounce",
    "owner_request_special",
    "strict_8bitmime",
    "strict_7bit_headers",
    "strict_8bitmime_body",
    "strict_mime_encoding_domain",
    "disable_mime_input_processing",
    "disable_mime_output_conversion",
    "address_verify_negative_cache",
    "backwards_bounce_logfile_compatibility",
    "helpful_warnings",
    "send_cyrus_sasl_authzid",
    "multi_instance_enable",
    "enable_long_queue_ids",
    "strict_smtputf8",
    "enable_original_recipient",
    "application_event_drain_time",
    "max_idle",
    "ipc_timeout",
    "ipc_idle",
    "ipc_ttl",
    "trigger_timeout",
    "fork_delay",
    "deliver_lock_delay",
    "stale_lock_time",
    "daemon_timeout",
    "in_flow_delay",
];

const FACILITIES: [(&str, u8); 21] = [
    ("auth", 4),
    ("authpriv", 10),
    ("cron", 9),
    ("daemon", 3),
    ("ftp", 11),
    ("kern", 0),
    ("lpr", 6),
    ("mail", 2),
    ("news", 7),
    ("security", 4),
    ("syslog", 5),
    ("user", 1),
    ("uucp", 8),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

impl Common {
    /// Reads and checks the common parameters.
    ///
    /// Call it once, after main.cf is loaded and overrides are made.
    ///
    /// # Errors
    /// Any [`Error`]: the first fault that the reference would report.
    ///
    /// # References
    /// Postfix `src/global/mail_params.c`, `mail_params_init()`; `src/global/maillog_client.c` for the last
    /// check.
    pub fn evaluate(
        dictionary: &mut Dictionary,
        surroundings: &Surroundings<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Self, Error> {
        let mut reader = Reader::new(dictionary, sink);
        let compatibility_level = reader.compatibility_level()?;
        for &name in FIRST {
            if name == "daemon_table_open_error_is_fatal" {
                check_facility(&reader)?;
            }
            reader.read(name)?;
        }
        for warning in hosts::check_known_tcp_ports(reader.text("known_tcp_ports")) {
            reader.sink.warning(warning);
        }
        let families = Families::parse(reader.text("inet_protocols"))?;
        reader.host_names(surroundings.host_name)?;
        for &name in MAIN {
            reader.read(name)?;
        }
        let names = Names {
            mail_owner: reader.text("mail_owner"),
            setgid_group: reader.text("setgid_group"),
            default_privs: reader.text("default_privs"),
        };
        let identities =
            Identities::check(&names, surroundings.accounts).map_err(|text| reader.fault(&text))?;
        let own = reader.networks(families, surroundings)?;
        reader
            .dictionary
            .set("process_id", surroundings.process_id.to_string().as_bytes());
        check_settings(&reader)?;
        Ok(reader.finish(compatibility_level, identities, &own))
    }

    /// The facility as syslog(3) numbers it, not shifted.
    pub fn syslog_facility_code(&self) -> u8 {
        facility_code(&self.syslog_facility).unwrap_or(2)
    }
}

fn facility_code(name: &[u8]) -> Option<u8> {
    FACILITIES
        .iter()
        .find(|(known, _)| known.as_bytes() == name)
        .map(|&(_, code)| code)
}

/// Reads parameters by name and remembers what came out.
struct Reader<'d, 's> {
    dictionary: &'d mut Dictionary,
    sink: &'s mut dyn Sink,
    catalog: &'static Catalog,
    texts: BTreeMap<&'static str, Vec<u8>>,
    numbers: BTreeMap<&'static str, i64>,
    times: BTreeMap<&'static str, Duration>,
    flags: BTreeMap<&'static str, bool>,
}

impl<'d, 's> Reader<'d, 's> {
    fn new(dictionary: &'d mut Dictionary, sink: &'s mut dyn Sink) -> Self {
        let catalog = Catalog::of(dictionary.release());
        Self {
            dictionary,
            sink,
            catalog,
            texts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            times: BTreeMap::new(),
            flags: BTreeMap::new(),
        }
    }

    /// Reads a parameter, if this release has it.
    fn read(&mut self, name: &'static str) -> Result<(), Error> {
        let Some(parameter) = self.catalog.find(name) else {
            return Ok(());
        };
        let default = parameter.default;
        let (min, max) = (parameter.min, parameter.max);
        let (int_min, int_max) = (narrow(min), narrow(max));
        let length = |limit| usize::try_from(limit).unwrap_or(0);
        let dictionary = &mut *self.dictionary;
        let sink = &mut *self.sink;
        match parameter.kind {
            Kind::Str | Kind::Function | Kind::Legacy => {
                let (min, max) = (length(min), length(max));
                let parameter = StrParameter {
                    name,
                    default,
                    min,
                    max,
                };
                self.texts.insert(name, dictionary.str(&parameter, sink)?);
            }
            Kind::Raw => {
                let (min, max) = (length(min), length(max));
                let parameter = RawParameter {
                    name,
                    default,
                    min,
                    max,
                };
                self.texts.insert(name, dictionary.raw(&parameter)?);
            }
            Kind::Int => {
                let parameter = IntParameter {
                    name,
                    default: default.parse().unwrap_or(0),
                    min: int_min,
                    max: int_max,
                };
                self.numbers
                    .insert(name, dictionary.int(&parameter, sink)?.into());
            }
            Kind::Nint => {
                let parameter = NintParameter {
                    name,
                    default,
                    min: int_min,
                    max: int_max,
                };
                self.numbers
                    .insert(name, dictionary.nint(&parameter, sink)?.into());
            }
            Kind::Long => {
                let default = default.parse().unwrap_or(0);
                let parameter = LongParameter {
                    name,
                    default,
                    min,
                    max,
                };
                self.numbers
                    .insert(name, dictionary.long(&parameter, sink)?);
            }
            Kind::Bool => {
                let default = default == "yes";
                let value = dictionary.bool(&BoolParameter { name, default }, sink)?;
                self.flags.insert(name, value);
            }
            Kind::Nbool => {
                let value = dictionary.nbool(&NboolParameter { name, default }, sink)?;
                self.flags.insert(name, value);
            }
            Kind::Time => {
                let parameter = TimeParameter {
                    name,
                    default,
                    min: int_min,
                    max: int_max,
                };
                self.times.insert(name, dictionary.time(&parameter, sink)?);
            }
        }
        Ok(())
    }

    fn text(&self, name: &str) -> &[u8] {
        self.texts.get(name).map_or(&[], Vec::as_slice)
    }

    fn compatibility_level(&mut self) -> Result<CompatibilityLevel, Error> {
        self.read("compatibility_level")?;
        match self.numbers.get("compatibility_level") {
            Some(&level) => Ok(CompatibilityLevel::new(
                u16::try_from(level.max(0)).unwrap_or(u16::MAX),
                0,
                0,
            )),
            None => CompatibilityLevel::parse(self.text("compatibility_level")),
        }
    }

    /// Reads myhostname and mydomain, whose defaults are taken from the machine and from each other.
    fn host_names(&mut self, host_name: &[u8]) -> Result<(), Error> {
        let default = hosts::default_host_name(self.dictionary, host_name, self.sink)?;
        self.read_with("myhostname", &default)?;
        let domain = hosts::domain_of(self.text("myhostname")).to_vec();
        self.read_with("mydomain", &domain)?;
        for name in ["myhostname", "mydomain"] {
            if let Err(fault) = check_hostname(self.text(name)) {
                self.sink.warning(fault.to_string());
                let value = display(self.text(name));
                return Err(self.fault(&format!("parameter {name}: bad parameter value: {value}")));
            }
        }
        Ok(())
    }

    /// Reads a text whose default was worked out.
    fn read_with(&mut self, name: &'static str, default: &[u8]) -> Result<(), Error> {
        if self.dictionary.value(name).is_none() {
            let value = self.dictionary.expand(default, self.sink)?;
            self.dictionary.set(name, &value);
        }
        self.read(name)
    }

    /// Reads `mynetworks` and finds the addresses that `inet_interfaces` chooses.
    fn networks(
        &mut self,
        families: Families,
        surroundings: &Surroundings<'_>,
    ) -> Result<Vec<IpAddr>, Error> {
        let default_style = match self.dictionary.value("mynetworks") {
            Some(_) => None,
            None => Some(self.text("mynetworks_style")),
        };
        if let Some(style) = default_style {
            // The style is checked before the interfaces are.
            hosts::default_networks(style, families, &[])?;
        }
        let own = hosts::own_addresses(
            self.text("inet_interfaces"),
            families,
            surroundings.interfaces,
            surroundings.resolve,
        )?;
        let default = match default_style {
            Some(style) => hosts::default_networks(style, families, &own)?,
            None => Vec::new(),
        };
        self.read_with("mynetworks", &default)?;
        Ok(own.into_iter().map(|interface| interface.address).collect())
    }

    /// A fault that names main.cf.
    fn fault(&self, text: &str) -> Error {
        Error::Setting(format!("file {}: {text}", self.dictionary.file()))
    }

    fn finish(
        mut self,
        compatibility_level: CompatibilityLevel,
        identities: Identities,
        own: &[IpAddr],
    ) -> Common {
        let mut text = |name| self.texts.remove(name).unwrap_or_default();
        let number = |name| narrow(self.numbers.get(name).copied().unwrap_or_default());
        let time = |name| self.times.get(name).copied().unwrap_or_default();
        let flag = |name| self.flags.get(name).copied().unwrap_or_default();
        Common {
            compatibility_level,
            mail_version: text("mail_version"),
            mail_name: text("mail_name"),
            myhostname: text("myhostname"),
            mydomain: text("mydomain"),
            myorigin: text("myorigin"),
            mydestination: text("mydestination"),
            mynetworks: text("mynetworks"),
            relayhost: text("relayhost"),
            relay_domains: text("relay_domains"),
            inet_interfaces: text("inet_interfaces"),
            inet_protocols: text("inet_protocols"),
            proxy_interfaces: text("proxy_interfaces"),
            own_addresses: own.to_vec(),
            syslog_name: text("syslog_name"),
            syslog_facility: text("syslog_facility"),
            maillog_file: text("maillog_file"),
            maillog_file_prefixes: text("maillog_file_prefixes"),
            postlog_service_name: text("postlog_service_name"),
            respectful_logging: flag("respectful_logging"),
            helpful_warnings: flag("helpful_warnings"),
            mail_owner: identities.mail_owner,
            setgid_group: identities.setgid_group,
            default_privs: identities.default_privs,
            queue_directory: text("queue_directory"),
            data_directory: text("data_directory"),
            daemon_directory: text("daemon_directory"),
            command_directory: text("command_directory"),
            meta_directory: text("meta_directory"),
            shlib_directory: text("shlib_directory"),
            process_id_directory: text("process_id_directory"),
            import_environment: text("import_environment"),
            export_environment: text("export_environment"),
            multi_instance_name: text("multi_instance_name"),
            default_database_type: text("default_database_type"),
            default_cache_db_type: text("default_cache_db_type"),
            berkeley_db_create_buffer_size: number("berkeley_db_create_buffer_size"),
            berkeley_db_read_buffer_size: number("berkeley_db_read_buffer_size"),
            lmdb_map_size: self
                .numbers
                .get("lmdb_map_size")
                .copied()
                .unwrap_or_default(),
            daemon_table_open_error_is_fatal: flag("daemon_table_open_error_is_fatal"),
            smtputf8_enable: flag("smtputf8_enable"),
            soft_bounce: flag("soft_bounce"),
            max_use: number("max_use"),
            max_idle: time("max_idle"),
            default_process_limit: number("default_process_limit"),
            ipc_timeout: time("ipc_timeout"),
            ipc_idle: time("ipc_idle"),
            ipc_ttl: time("ipc_ttl"),
            trigger_timeout: time("trigger_timeout"),
            daemon_timeout: time("daemon_timeout"),
            application_event_drain_time: time("application_event_drain_time"),
            in_flow_delay: time("in_flow_delay"),
            fork_attempts: number("fork_attempts"),
            fork_delay: time("fork_delay"),
            deliver_lock_attempts: number("deliver_lock_attempts"),
            deliver_lock_delay: time("deliver_lock_delay"),
            stale_lock_time: time("stale_lock_time"),
            line_length_limit: number("line_length_limit"),
            proxymap_service_name: text("proxymap_service_name"),
            proxywrite_service_name: text("proxywrite_service_name"),
        }
    }
}

fn narrow(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
}

fn check_facility(reader: &Reader<'_, '_>) -> Result<(), Error> {
    let facility = reader.text("syslog_facility");
    if facility_code(facility).is_some() {
        return Ok(());
    }
    let value = display(facility);
    Err(reader.fault(&format!(
        "parameter syslog_facility: unrecognized value: {value}"
    )))
}

fn check_settings(reader: &Reader<'_, '_>) -> Result<(), Error> {
    let (host, relay) = (reader.text("myhostname"), reader.text("relayhost"));
    if host.eq_ignore_ascii_case(relay) {
        return Err(Error::Setting(format!(
            "myhostname and relayhost parameter settings must not be identical: {}",
            display(host)
        )));
    }
    let origin = reader.text("myorigin");
    if origin.iter().any(|byte| b", \t\r\n".contains(byte)) {
        return Err(Error::Setting(format!(
            "myorigin parameter setting must not contain multiple values: {}",
            display(origin)
        )));
    }
    let filter = reader.text("verp_delimiter_filter");
    let places = ["first", "second"];
    for (delimiter, place) in reader.text("default_verp_delimiters").iter().zip(places) {
        if !filter.contains(delimiter) {
            return Err(reader.fault(&format!(
                "parameters default_verp_delimiters and verp_delimiter_filter: bad {place} VERP delimiter character"
            )));
        }
    }
    let file = reader.text("maillog_file");
    if !file.is_empty()
        && !split_list(reader.text("maillog_file_prefixes")).any(|prefix| file.starts_with(prefix))
    {
        return Err(Error::Setting(format!(
            "maillog_file value '{}' does not match any prefix in maillog_file_prefixes",
            display(file)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facilities_are_known_by_exact_name() {
        assert_eq!(facility_code(b"mail"), Some(2));
        assert_eq!(facility_code(b"ftp"), Some(11));
        assert_eq!(facility_code(b"local7"), Some(23));
        assert_eq!(facility_code(b"MAIL"), None);
    }
}
