//! Which names there are: built-in, made from services, and defined by whoever wrote the files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::master::{Entry, is_field_count};
use super::options::{Classes, Options};
use super::{Fatal, Machine, Output};
use crate::catalog::{Catalog, Kind, TIME_LIMIT, TRANSPORT_PARAMETERS};
use crate::dictionary::Dictionary;
use crate::expand::{self, ExpandError, Lookup};
use crate::hosts::{self, Families};
use crate::lines::LogicalLines;
use crate::sink::Sink;
use crate::text::display;

/// What kind of name it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    BuiltIn,
    Service,
    User,
    Legacy,
}

impl Class {
    pub(super) fn is_in(self, classes: Classes) -> bool {
        match self {
            Self::BuiltIn => classes.built_in,
            Self::Service => classes.service,
            Self::User => classes.user,
            Self::Legacy => false,
        }
    }
}

/// A known name.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub class: Class,
    /// Not to be expanded.
    pub raw: bool,
    pub(super) read_only: bool,
    pub(super) default: Cow<'static, [u8]>,
}

/// An entry of master.cf and the names that are valid there.
pub(super) struct Service {
    pub entry: Entry,
    pub(super) name_space: Vec<u8>,
    /// Has settings; those of a later entry of the same name and type do not count, as in the reference.
    pub(super) has_settings: bool,
    pub(super) valid: BTreeSet<Vec<u8>>,
}

/// The files' contents and all names.
pub(super) struct Registry<'a> {
    pub(super) machine: &'a Machine<'a>,
    pub options: &'a Options,
    directory: Vec<u8>,
    pub(super) dictionary: Dictionary,
    pub(super) names: BTreeMap<Vec<u8>, Node>,
    pub services: Vec<Service>,
    /// Settings made with `-o` in master.cf, by service.
    pub(super) settings: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(super) restriction_classes: BTreeSet<Vec<u8>>,
    pub(super) client_files: BTreeSet<Vec<u8>>,
}

/// Values as seen from main.cf, or from one service.
struct View<'r, 'a> {
    registry: &'r Registry<'a>,
    scope: Option<usize>,
}

impl Lookup for View<'_, '_> {
    fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.registry.value(name, self.scope, false)
    }
}

impl<'a> Registry<'a> {
    pub(super) fn new(machine: &'a Machine<'a>, options: &'a Options) -> Self {
        let named = options.directory.as_deref().or(machine.mail_config);
        let directory = named.unwrap_or(machine.built_in_directory).to_vec();
        let dictionary = match named {
            Some(directory) if !options.has(b'd') => Dictionary::new(machine.release, directory),
            _ => Dictionary::named(machine.release, "mail_dict"),
        };
        Self {
            machine,
            options,
            directory,
            dictionary,
            names: BTreeMap::new(),
            services: Vec::new(),
            settings: BTreeMap::new(),
            restriction_classes: BTreeSet::new(),
            client_files: BTreeSet::new(),
        }
    }

    /// `DIRECTORY/FILE`, as messages show it.
    pub(super) fn shown(&self, file: &str) -> String {
        format!("{}/{file}", display(&self.directory))
    }

    fn path(&self, file: &str) -> Vec<u8> {
        [&self.directory, "/".as_bytes(), file.as_bytes()].concat()
    }

    /// Reads main.cf and makes the overrides.
    pub(super) fn read_parameters(&mut self, output: &mut Output) -> Result<(), Fatal> {
        let shown = self.shown("main.cf");
        let readings = self
            .machine
            .files
            .read_settled(&self.path("main.cf"))
            .map_err(|fault| Fatal(format!("{} {shown}: {fault}", fault.operation())))?;
        for text in readings {
            self.dictionary.load(&text, &shown, output)?;
        }
        for text in &self.options.overrides {
            self.dictionary.set_parameter_override(text)?;
        }
        Ok(())
    }

    /// Reads master.cf.
    pub(super) fn read_master(&mut self, needed: bool, output: &mut Output) -> Result<(), Fatal> {
        let shown = self.shown("master.cf");
        let text = match self.machine.files.read(&self.path("master.cf")) {
            Ok(text) => text,
            Err(fault) if needed => return Err(Fatal(format!("open {shown}: {fault}"))),
            Err(fault) => {
                output.warning(format!("open {shown}: {fault}"));
                return Ok(());
            }
        };
        let mut lines = LogicalLines::new(&text);
        while let Some(line) = lines.read(&shown, self.machine.release, output) {
            let entry = Entry::parse(line.text_to_nul(), output).map_err(|fault| {
                if is_field_count(&fault) {
                    Fatal(format!("file {shown}: line {}: {}", line.first, fault.0))
                } else {
                    fault
                }
            })?;
            self.services.push(Service {
                name_space: entry.name_space(),
                entry,
                has_settings: false,
                valid: BTreeSet::new(),
            });
        }
        Ok(())
    }

    /// Enters the names that every installation has.
    pub(super) fn register_built_in(&mut self, name: &[u8]) {
        for parameter in Catalog::of(self.machine.release).iter() {
            let class = match parameter.kind {
                Kind::Legacy => Class::Legacy,
                _ => Class::BuiltIn,
            };
            let node = Node {
                class,
                raw: parameter.kind == Kind::Raw,
                read_only: false,
                default: Cow::Borrowed(parameter.default.as_bytes()),
            };
            self.names.insert(parameter.name.as_bytes().to_vec(), node);
        }
        let own = [
            ("process_name", last_component(name).to_vec()),
            ("service_name", Vec::new()),
            (
                "process_id",
                self.machine.process_id.to_string().into_bytes(),
            ),
        ];
        for (name, value) in own {
            let node = Node {
                class: Class::BuiltIn,
                raw: false,
                read_only: true,
                default: Cow::Owned(value),
            };
            self.names.insert(name.as_bytes().to_vec(), node);
        }
    }

    /// Enters the names that exist because of entries of master.cf.
    pub(super) fn register_services(&mut self) {
        for service in &self.services {
            let (time_limit, transport) = match service.entry.command() {
                b"pipe" => (true, true),
                b"spawn" => (true, false),
                b"local" | b"error" | b"virtual" | b"smtp" | b"lmtp" => (false, true),
                _ => continue,
            };
            let time_limit = time_limit.then_some(TIME_LIMIT);
            let transport = TRANSPORT_PARAMETERS.into_iter().filter(|_| transport);
            for (suffix, default) in time_limit.into_iter().chain(transport) {
                let name = [service.entry.name(), suffix.as_bytes()].concat();
                self.names
                    .entry(name)
                    .and_modify(|node| node.class = Class::Service)
                    .or_insert_with(|| Node {
                        class: Class::Service,
                        raw: false,
                        read_only: false,
                        default: Cow::Owned(format!("${default}").into_bytes()),
                    });
            }
        }
    }

    /// Works out the defaults that depend on the machine and on other parameters.
    pub(super) fn work_out_defaults(&mut self, output: &mut Output) -> Result<(), Fatal> {
        let set = |names: &mut BTreeMap<Vec<u8>, Node>, name: &str, value: Vec<u8>| {
            if let Some(node) = names.get_mut(name.as_bytes()) {
                node.default = Cow::Owned(value);
            }
        };
        let is_set = |name| self.dictionary.value(name).is_some();
        if !is_set("myhostname") || !is_set("mydomain") {
            let host = match self.dictionary.evaluate("myhostname", output)? {
                Some(host) => host,
                None => hosts::default_host_name(&self.dictionary, self.machine.host_name, output)?,
            };
            let domain = hosts::domain_of(&host).to_vec();
            set(&mut self.names, "myhostname", host);
            set(&mut self.names, "mydomain", domain);
        }
        if self.dictionary.value("mynetworks").is_none() {
            let mut read = |name: &str| match self.dictionary.evaluate(name, output)? {
                Some(value) => Ok(value),
                None => self.expand(&self.default_of(name.as_bytes()), None, output),
            };
            let inet_interfaces = read("inet_interfaces")?;
            let style = read("mynetworks_style")?;
            let families = Families::parse(&read("inet_protocols")?)?;
            hosts::default_networks(&style, families, &[])?;
            let own =
                hosts::own_addresses(&inet_interfaces, families, self.machine.interfaces, None)?;
            let networks = hosts::default_networks(&style, families, &own)?;
            set(&mut self.names, "mynetworks", networks);
        }
        Ok(())
    }

    fn default_of(&self, name: &[u8]) -> Vec<u8> {
        self.names
            .get(name)
            .map_or_else(Vec::new, |node| node.default.to_vec())
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<&Node> {
        self.names.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.names.iter().map(|(name, node)| (&name[..], node))
    }

    /// The unexpanded value of a name.
    ///
    /// - `scope`: the service whose `-o` settings come first
    /// - `set_only`: no default
    pub(super) fn value(
        &self,
        name: &[u8],
        scope: Option<usize>,
        set_only: bool,
    ) -> Option<Cow<'_, [u8]>> {
        if !self.options.has(b'd') {
            if let Some(service) = scope.and_then(|index| self.services.get(index)) {
                let process = last_component(service.entry.command());
                match name {
                    b"process_name" => return Some(Cow::Borrowed(process)),
                    b"service_name" => return Some(Cow::Borrowed(service.entry.name())),
                    _ => {}
                }
                let settings = self.settings_of(service);
                if let Some(value) = settings.and_then(|settings| settings.get(name)) {
                    return Some(Cow::Borrowed(value));
                }
            }
            if let Some(value) = self.dictionary.value_of(name) {
                return Some(Cow::Borrowed(value));
            }
            if set_only {
                return None;
            }
        }
        self.names
            .get(name)
            .map(|node| Cow::Borrowed(&node.default[..]))
    }

    /// Expands a value.
    pub(super) fn expand(
        &self,
        value: &[u8],
        scope: Option<usize>,
        output: &mut Output,
    ) -> Result<Vec<u8>, Fatal> {
        let view = View {
            registry: self,
            scope,
        };
        expand::expand(value, &view, self.machine.release, output)
            .map_err(|error: ExpandError| Fatal(error.to_string()))
    }

    /// The settings that a service's options `-o` make.
    pub(super) fn settings_of(&self, service: &Service) -> Option<&BTreeMap<Vec<u8>, Vec<u8>>> {
        self.settings
            .get(&service.name_space)
            .filter(|_| service.has_settings)
    }
}

/// What the C library's `basename()` makes of a path.
fn last_component(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|&byte| byte != b'/')
        .map_or(0, |at| at + 1);
    let path = &path[..end];
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}
