//! Which names there are: built-in, made from services, and defined by whoever wrote the files.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::client_files::{Mention, known_names, mentions};
use super::master::{Entry, is_field_count};
use super::options::{Classes, Options};
use super::{Fatal, FileFault, Machine, Output};
use crate::catalog::{Catalog, Kind, TIME_LIMIT, TRANSPORT_PARAMETERS};
use crate::dictionary::Dictionary;
use crate::expand::{self, ExpandError, Lookup};
use crate::hosts::{self, Families};
use crate::lines::LogicalLines;
use crate::sink::Sink;
use crate::text::{display, split_list, split_name_value};

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
    read_only: bool,
    default: Cow<'static, [u8]>,
}

/// An entry of master.cf and the names that are valid there.
pub(super) struct Service {
    pub entry: Entry,
    name_space: Vec<u8>,
    valid: BTreeSet<Vec<u8>>,
}

/// The files' contents and all names.
pub(super) struct Registry<'a> {
    machine: &'a Machine<'a>,
    pub options: &'a Options,
    directory: Vec<u8>,
    dictionary: Dictionary,
    names: BTreeMap<Vec<u8>, Node>,
    pub services: Vec<Service>,
    /// Settings made with `-o` in master.cf, by service.
    settings: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    restriction_classes: BTreeSet<Vec<u8>>,
    client_files: BTreeSet<Vec<u8>>,
}

/// What a scan came across, in order.
enum Event {
    Name(Vec<u8>),
    Warning(String),
}

#[derive(Default)]
struct Events(RefCell<Vec<Event>>);

impl Lookup for Events {
    fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.0.borrow_mut().push(Event::Name(name.to_vec()));
        None
    }
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
    fn shown(&self, file: &str) -> String {
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
                let settings = self.settings.get(&service.name_space);
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

    /// Enters the names that values refer to, if they have a value somewhere.
    pub(super) fn register_user(&mut self, output: &mut Output) -> Result<(), Fatal> {
        for service in &self.services {
            for text in service.entry.overrides() {
                if let Ok((name, value)) = split_name_value(text) {
                    self.settings
                        .entry(service.name_space.clone())
                        .or_default()
                        .insert(name.to_vec(), value.to_vec());
                }
            }
        }
        for index in 0..self.services.len() {
            if self.settings.contains_key(&self.services[index].name_space) {
                self.register_from(Some(index), output)?;
            }
        }
        self.work_out_defaults(output)?;
        let defaults: Vec<_> = self
            .names
            .iter()
            .filter(|(name, node)| !node.raw && self.dictionary.value_of(name).is_none())
            .map(|(_, node)| node.default.clone())
            .filter(|default| default.contains(&b'$'))
            .collect();
        for default in defaults {
            self.scan(&default, None, output);
        }
        self.register_from(None, output)
    }

    /// Looks at all values of main.cf, or of one service.
    fn register_from(&mut self, scope: Option<usize>, output: &mut Output) -> Result<(), Fatal> {
        for name in self.restriction_classes_of(scope, output)? {
            if scope.is_none() {
                self.restriction_classes.insert(name.clone());
            }
            self.flag(&name, false, scope, output);
        }
        let file = if scope.is_some() {
            "master.cf"
        } else {
            "main.cf"
        };
        let values: Vec<(Vec<u8>, Vec<u8>)> = match scope {
            Some(index) => {
                let settings = self.settings.get(&self.services[index].name_space);
                settings
                    .into_iter()
                    .flatten()
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect()
            }
            None => self
                .dictionary
                .iter()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
        };
        for (name, value) in values {
            if let Some(index) = scope
                && self.restriction_classes.contains(&name)
            {
                self.services[index].valid.insert(name.clone());
            }
            let mut is_known = false;
            if let Some(node) = self.names.get_mut(&name) {
                if node.read_only {
                    output.warning(format!(
                        "{}: read-only parameter assignment: {}={}",
                        self.shown(file),
                        display(&name),
                        display(&value)
                    ));
                    self.forget(&name, scope);
                    continue;
                }
                if node.class == Class::Legacy {
                    node.class = Class::User;
                }
                if node.raw {
                    continue;
                }
                is_known = matches!(node.class, Class::BuiltIn | Class::Service);
            }
            self.scan(&value, scope, output);
            if is_known {
                self.register_clients(&value, scope, output)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, name: &[u8], scope: Option<usize>) {
        match scope {
            Some(index) => {
                if let Some(settings) = self.settings.get_mut(&self.services[index].name_space) {
                    settings.remove(name);
                }
            }
            None => self.dictionary.remove(name),
        }
    }

    fn restriction_classes_of(
        &self,
        scope: Option<usize>,
        output: &mut Output,
    ) -> Result<Vec<Vec<u8>>, Fatal> {
        const NAME: &str = "smtpd_restriction_classes";
        let value = match scope {
            None => self.dictionary.evaluate(NAME, output)?,
            Some(index) => {
                let name_space = &self.services[index].name_space;
                let mut local = Dictionary::named(self.machine.release, &display(name_space));
                for (name, value) in self.settings.get(name_space).into_iter().flatten() {
                    if let Ok(name) = std::str::from_utf8(name) {
                        local.set(name, value);
                    }
                }
                local.evaluate(NAME, output)?
            }
        };
        Ok(value
            .iter()
            .flat_map(|value| split_list(value))
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// Flags every name in a value.
    fn scan(&mut self, value: &[u8], scope: Option<usize>, output: &mut Output) {
        let events = Events::default();
        let mut sink = |text| events.0.borrow_mut().push(Event::Warning(text));
        expand::scan(value, &events, self.machine.release, &mut sink);
        for event in events.0.into_inner() {
            match event {
                Event::Name(name) => self.flag(&name, false, scope, output),
                Event::Warning(text) => output.warning(text),
            }
        }
    }

    /// Makes a name valid where it has a value; warns when it has none.
    ///
    /// - `made_up`: the name was put together from the prefix of a database client; no warning
    fn flag(&mut self, name: &[u8], made_up: bool, scope: Option<usize>, output: &mut Output) {
        let has = |registry: &Self, index: usize| {
            let settings = registry.settings.get(&registry.services[index].name_space);
            settings.is_some_and(|settings| settings.contains_key(name))
        };
        let mut supplied = false;
        if let Some(index) = scope.filter(|&index| has(self, index)) {
            supplied = true;
            self.services[index].valid.insert(name.to_vec());
        } else if self.dictionary.value_of(name).is_some() {
            supplied = true;
            self.names.entry(name.to_vec()).or_insert_with(|| Node {
                class: Class::User,
                raw: false,
                read_only: false,
                default: Cow::Borrowed(b""),
            });
        }
        if scope.is_none() {
            for index in 0..self.services.len() {
                if has(self, index) {
                    supplied = true;
                    self.services[index].valid.insert(name.to_vec());
                }
            }
        }
        if !supplied && !made_up && !self.names.contains_key(name) {
            let file = if scope.is_some() {
                "master.cf"
            } else {
                "main.cf"
            };
            output.warning(format!(
                "{}: undefined parameter: {}",
                self.shown(file),
                display(name)
            ));
        }
    }

    /// Looks for database clients in a value, expanded.
    fn register_clients(
        &mut self,
        value: &[u8],
        scope: Option<usize>,
        output: &mut Output,
    ) -> Result<(), Fatal> {
        let expanded = self.expand(value, scope, output)?;
        let mut found = Vec::new();
        mentions(&expanded, &mut found);
        for mention in found {
            match mention {
                Mention::Fault(text) => match scope {
                    Some(index) => {
                        let name_space = display(&self.services[index].name_space);
                        output.warning(format!("master.cf:{name_space}: {text}"));
                    }
                    None => output.warning(format!("main.cf: {text}")),
                },
                Mention::Prefix { kind, prefix } => {
                    for suffix in known_names(&kind).unwrap_or_default().split(' ') {
                        let name = [&prefix, "_".as_bytes(), suffix.as_bytes()].concat();
                        self.flag(&name, true, scope, output);
                    }
                }
                Mention::File { kind, path } => self.check_client_file(&kind, &path, output)?,
            }
        }
        Ok(())
    }

    /// Warns of names in the file of a database client that the client does not know; once per file.
    fn check_client_file(
        &mut self,
        kind: &[u8],
        path: &[u8],
        output: &mut Output,
    ) -> Result<(), Fatal> {
        let table = [kind, b":", path].concat();
        if !self.client_files.insert(table.clone()) {
            return Ok(());
        }
        let text = match self.machine.files.read(path) {
            Ok(text) => text,
            Err(FileFault::Denied(_)) => return Ok(()),
            Err(fault) => {
                let (kind, path) = (display(kind), display(path));
                output.warning(format!("open \"{kind}\" configuration \"{path}\": {fault}"));
                return Ok(());
            }
        };
        let mut settings = Dictionary::named(self.machine.release, &display(&table));
        settings.load(&text, &display(path), output)?;
        for name in known_names(kind).unwrap_or_default().split(' ') {
            settings.remove(name.as_bytes());
        }
        for (name, value) in settings.iter() {
            let (table, name, value) = (display(&table), display(name), display(value));
            output.warning(format!("{table}: unused parameter: {name}={value}"));
        }
        Ok(())
    }

    pub(super) fn warn_of_unused_in_main(&self, output: &mut Output) {
        for (name, value) in self.dictionary.iter() {
            self.warn_of_unused("main.cf", name, value, None, output);
        }
    }

    pub(super) fn warn_of_unused_in_master(&self, output: &mut Output) {
        for service in &self.services {
            for (name, value) in self.settings.get(&service.name_space).into_iter().flatten() {
                self.warn_of_unused("master.cf", name, value, Some(service), output);
            }
        }
    }

    fn warn_of_unused(
        &self,
        file: &str,
        name: &[u8],
        value: &[u8],
        scope: Option<&Service>,
        output: &mut Output,
    ) {
        if !self.names.contains_key(name)
            && !scope.is_some_and(|service| service.valid.contains(name))
        {
            let (file, name, value) = (self.shown(file), display(name), display(value));
            output.warning(format!("{file}: unused parameter: {name}={value}"));
        }
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
