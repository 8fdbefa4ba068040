//! Which names the values of main.cf and master.cf refer to, and which settings nobody refers to.

use std::borrow::Cow;
use std::cell::RefCell;

use super::client_files::{Mention, known_names, mentions};
use super::registry::{Class, Node, Registry, Service};
use super::{Fatal, FileFault, Output};
use crate::dictionary::Dictionary;
use crate::expand::{self, Lookup};
use crate::sink::Sink;
use crate::text::{display, split_list, split_name_value};

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

impl Registry<'_> {
    /// Enters the names that values refer to, if they have a value somewhere.
    pub(super) fn register_user(&mut self, output: &mut Output) -> Result<(), Fatal> {
        for service in &mut self.services {
            for text in service.entry.overrides() {
                if let Ok((name, value)) = split_name_value(text) {
                    self.settings
                        .entry(service.name_space.clone())
                        .or_default()
                        .insert(name.to_vec(), value.to_vec());
                }
            }
            service.has_settings = self.settings.contains_key(&service.name_space);
        }
        for index in 0..self.services.len() {
            if self.services[index].has_settings {
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
                let settings = self.settings_of(&self.services[index]);
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
            let settings = registry.settings_of(&registry.services[index]);
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
        let text = match self.machine.files.read_regular(path) {
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
            for (name, value) in self.settings_of(service).into_iter().flatten() {
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
