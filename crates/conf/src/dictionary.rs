//! The parameters of one program: main.cf, overrides, and the defaults stored along the way.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::error::Error;
use crate::expand::{self, ExpandError, Lookup};
use crate::lines::LogicalLines;
use crate::release::Release;
use crate::sink::Sink;
use crate::text::{display, split_name_value, to_nul};

/// Names and their unexpanded values.
///
/// A program's main.cf is the dictionary `mail_dict`; a table's configuration file is one named after the file.
/// Values end at a NUL.
///
/// # References
/// Postfix `src/util/dict.c`, `src/global/mail_conf.c`.
#[derive(Clone, Debug)]
pub struct Dictionary {
    name: String,
    file: String,
    release: Release,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    secret: fn(&[u8], &[u8]) -> bool,
}

impl Dictionary {
    /// The dictionary of a program that reads `config_directory`/main.cf; `$config_directory` is set.
    pub fn new(release: Release, config_directory: &[u8]) -> Self {
        let mut dictionary = Self::named(release, "mail_dict");
        dictionary.set("config_directory", config_directory);
        dictionary.file = format!("{}/main.cf", display(config_directory));
        dictionary
    }

    /// An empty dictionary that calls itself `name` in its faults.
    pub fn named(release: Release, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file: name.to_owned(),
            release,
            entries: BTreeMap::new(),
            secret: |_, _| false,
        }
    }

    /// Warnings of [`Self::load`] show `***` instead of each value for which this says yes.
    ///
    /// - `secret`: takes a name and its value
    pub fn hide(&mut self, secret: fn(&[u8], &[u8]) -> bool) {
        self.secret = secret;
    }

    /// The release whose rules apply.
    pub fn release(&self) -> Release {
        self.release
    }

    /// What faults of main.cf call the file: `CONFIG_DIRECTORY/main.cf`, or the dictionary's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Adds the assignments of a file to what is there; later ones win, with a warning where the value differs.
    ///
    /// - `file`: what faults and warnings call it
    ///
    /// # Errors
    /// [`Error::Assignment`]; the assignments before it have been made.
    pub fn load(&mut self, text: &[u8], file: &str, sink: &mut dyn Sink) -> Result<(), Error> {
        let mut lines = LogicalLines::new(text);
        while let Some(line) = lines.read(file, self.release, sink) {
            let text = line.text_to_nul();
            let (name, value) = split_name_value(text).map_err(|fault| Error::Assignment {
                file: file.to_owned(),
                line: line.first,
                fault,
                text: display(text).into_owned(),
            })?;
            if let Some(old) = self.entries.get(name)
                && old != value
            {
                let shown = if (self.secret)(name, old) {
                    "***".into()
                } else {
                    display(old)
                };
                sink.warning(format!(
                    "{file}, line {}: overriding earlier entry: {}={shown}",
                    line.first,
                    display(name),
                ));
            }
            self.entries.insert(name.to_vec(), value.to_vec());
        }
        Ok(())
    }

    /// Makes the assignment of a daemon's option `-o`.
    ///
    /// # Errors
    /// [`Error::Override`].
    pub fn set_override(&mut self, text: &[u8]) -> Result<(), Error> {
        let (name, value) = split_name_value(text).map_err(|fault| Error::Override {
            text: display(to_nul(text)).into_owned(),
            fault,
        })?;
        self.entries.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// Makes the assignment of postconf's option `-o`.
    ///
    /// # Errors
    /// [`Error::ParameterOverride`].
    pub fn set_parameter_override(&mut self, text: &[u8]) -> Result<(), Error> {
        let (name, value) = split_name_value(text).map_err(|fault| Error::ParameterOverride {
            text: display(to_nul(text)).into_owned(),
            fault,
        })?;
        self.entries.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// Sets an unexpanded value, silently.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.entries
            .insert(name.as_bytes().to_vec(), to_nul(value).to_vec());
    }

    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) {
        self.entries.remove(name);
    }

    /// The unexpanded value.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.value_of(name.as_bytes())
    }

    /// The unexpanded value of a name that may be any bytes.
    pub fn value_of(&self, name: &[u8]) -> Option<&[u8]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// All names and unexpanded values, in the order of the names' bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
    }

    /// Expands a text with the values that are here; names without a value are empty.
    ///
    /// # Errors
    /// [`Error::Expression`], after a warning that says what is wrong, and [`Error::Conversion`].
    pub fn expand(&self, text: &[u8], sink: &mut dyn Sink) -> Result<Vec<u8>, Error> {
        expand::expand(text, self, self.release, sink).map_err(|error| match error {
            ExpandError::Malformed => Error::Expression {
                dictionary: self.name.clone(),
            },
            ExpandError::Conversion(text) => Error::Conversion { text },
        })
    }

    /// The expanded value of a name, if it has one.
    ///
    /// # Errors
    /// Those of [`Self::expand`].
    pub fn evaluate(&self, name: &str, sink: &mut dyn Sink) -> Result<Option<Vec<u8>>, Error> {
        self.value(name)
            .map(|value| self.expand(value, sink))
            .transpose()
    }
}

impl Lookup for Dictionary {
    fn lookup(&self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.value_of(name).map(Cow::Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn later_wins_aloud() {
        let mut told = Vec::new();
        let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
        let text = b"a = 1\na = 1\na = 2\nconfig_directory = /E\n";
        dictionary.load(text, "/D/main.cf", &mut told).unwrap();
        assert_eq!(dictionary.value("a"), Some(&b"2"[..]));
        assert_eq!(
            told,
            [
                "/D/main.cf, line 3: overriding earlier entry: a=1",
                "/D/main.cf, line 4: overriding earlier entry: config_directory=/D",
            ]
        );
    }

    #[test]
    fn secrets_are_not_in_warnings() {
        let mut dictionary = Dictionary::named(Release::V3_7, "/t.cf");
        dictionary.hide(|name, _| name == b"password");
        let mut told = Vec::new();
        let text = b"password = one\npassword = two\nuser = a\nuser = b\n";
        dictionary.load(text, "/t.cf", &mut told).unwrap();
        assert_eq!(
            told,
            [
                "/t.cf, line 2: overriding earlier entry: password=***",
                "/t.cf, line 4: overriding earlier entry: user=a"
            ]
        );
    }

    #[test]
    fn faults_name_the_line() {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
        let fault = |text: &[u8], dictionary: &mut Dictionary| {
            dictionary
                .load(text, "F", &mut Vec::new())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            fault(b"\na b = c\n d", &mut dictionary),
            "F, line 2: missing '=' after attribute name: \"a b = c d\""
        );
        assert_eq!(
            fault(b"= c", &mut dictionary),
            "F, line 1: missing attribute name: \"= c\""
        );
    }

    #[test]
    fn overrides() {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
        dictionary.set_override(b" a =  b = c\n ").unwrap();
        assert_eq!(dictionary.value("a"), Some(&b"b = c"[..]));
        assert_eq!(
            dictionary
                .set_override(b"smtpd_banner")
                .unwrap_err()
                .to_string(),
            "invalid \"-o smtpd_banner\" option value: missing '=' after attribute name"
        );
        assert_eq!(
            dictionary.set_override(b"=x").unwrap_err().to_string(),
            "invalid \"-o =x\" option value: missing attribute name"
        );
        assert_eq!(
            dictionary
                .set_parameter_override(b"relayhost")
                .unwrap_err()
                .to_string(),
            "invalid parameter override: relayhost: missing '=' after attribute name"
        );
    }

    #[test]
    fn a_broken_value_hurts_who_reads_it() {
        let mut told = Vec::new();
        let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
        dictionary.load(b"a = ${", "F", &mut told).unwrap();
        assert!(told.is_empty());
        let error = dictionary.evaluate("a", &mut told).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dictionary mail_dict: macro processing error"
        );
        assert_eq!(told, ["truncated macro reference: \"${\""]);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_loaded(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut dictionary = Dictionary::new(Release::V3_12, b"/D");
            let _ = dictionary.load(&text, "F", &mut Vec::new());
        }

        #[test]
        fn what_was_assigned_is_there(name in "[a-z_]{1,8}", value in "[!-~]([ -~]{0,20}[!-~])?") {
            let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
            let text = format!("# x\n{name} =\t{value} \r\n");
            dictionary.load(text.as_bytes(), "F", &mut Vec::new()).unwrap();
            prop_assert_eq!(dictionary.value(&name), Some(value.as_bytes()));
        }
    }
}
