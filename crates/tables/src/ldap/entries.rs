//! What the attributes of found entries are to a table: values, or places where more values are.
//!
//! # References
//! `ldap_table(5)`; Postfix `src/global/dict_ldap.c`, `dict_ldap_get_values()`.

use std::vec::IntoIter;

use crate::ldap::message::Attribute;

/// The attributes that a table asks for: terminal ones, leaves, ordinary ones, special ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) names: Vec<Vec<u8>>,
    /// How many are terminal.
    terminal: usize,
    /// Where the ordinary ones begin.
    ordinary: usize,
    /// Where the special ones begin.
    special: usize,
}

impl Attributes {
    /// Takes lists of names, with blanks or commas between them.
    pub(super) fn new(terminal: &[u8], leaf: &[u8], ordinary: &[u8], special: &[u8]) -> Self {
        let mut all = Self::default();
        let mut add = |list: &[u8]| {
            let names = list
                .split(|byte| b", \t\r\n".contains(byte))
                .filter(|name| !name.is_empty());
            all.names.extend(names.map(<[u8]>::to_vec));
            all.names.len()
        };
        let terminal = add(terminal);
        let leaf = add(leaf);
        let ordinary = add(ordinary);
        add(special);
        all.terminal = terminal;
        all.ordinary = leaf;
        all.special = ordinary;
        all
    }

    /// Those that a URL asks for, too; `None` when there are none.
    pub(super) fn within(&self, asked: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        if asked.is_empty() {
            return Some(self.names.clone());
        }
        let mut both = Vec::new();
        for theirs in asked {
            for ours in &self.names {
                // The one with more options.
                if is_subtype(ours, theirs) {
                    both.push(ours.clone());
                } else if is_subtype(theirs, ours) {
                    both.push(theirs.clone());
                }
            }
        }
        (!both.is_empty()).then_some(both)
    }

    /// Which one of the names an attribute of an entry has.
    fn place(&self, attribute: &Attribute) -> Option<usize> {
        self.names
            .iter()
            .position(|name| is_subtype(&attribute.name, name))
    }

    fn has_any(entry: &[Attribute], names: &[Vec<u8>]) -> bool {
        let mut filled = entry
            .iter()
            .filter(|attribute| !attribute.values.is_empty());
        filled.any(|attribute| {
            names
                .iter()
                .any(|name| name.eq_ignore_ascii_case(&attribute.name))
        })
    }

    /// What is to be done with each of the attributes of one entry that has values for us.
    fn sorted(&self, entry: Vec<Attribute>) -> Vec<(Role, Attribute)> {
        let is_terminal = Self::has_any(&entry, &self.names[..self.terminal]);
        let has_leaves = self.ordinary > self.terminal;
        let is_leaf = !has_leaves || !Self::has_any(&entry, &self.names[self.special..]);
        let role = |attribute: &Attribute| {
            let place = self.place(attribute)?;
            if is_terminal {
                (place < self.terminal).then_some(Role::Values)
            } else if place >= self.special {
                Some(Role::Places)
            } else {
                (is_leaf || place >= self.ordinary).then_some(Role::Values)
            }
        };
        entry
            .into_iter()
            .filter(|attribute| !attribute.values.is_empty())
            .map(|attribute| (role(&attribute).unwrap_or(Role::Nothing), attribute))
            .collect()
    }
}

/// Is it the same attribute, with or without more options?
fn is_subtype(name: &[u8], of: &[u8]) -> bool {
    match name.split_at_checked(of.len()) {
        Some((head, rest)) => head.eq_ignore_ascii_case(of) && matches!(rest, [] | [b';', ..]),
        None => false,
    }
}

/// What an attribute is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Values,
    Places,
    Nothing,
}

/// What comes next of the entries of a search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A value.
    Value(Vec<u8>),
    /// The name of an entry, or the URL of a search, and the attribute that has it.
    Place(Vec<u8>, Vec<u8>),
    /// Another attribute.
    Attribute,
}

/// The entries of one search, while they are gone through.
#[derive(Debug)]
pub(super) struct Walk {
    entries: IntoIter<Vec<Attribute>>,
    attributes: IntoIter<(Role, Attribute)>,
    role: Role,
    name: Vec<u8>,
    values: IntoIter<Vec<u8>>,
    /// How many entries there have been.
    pub(super) count: usize,
    /// The bytes of the answer.
    pub(super) size: usize,
}

impl Walk {
    pub(super) fn new(entries: Vec<Vec<Attribute>>, size: usize) -> Self {
        Self {
            entries: entries.into_iter(),
            attributes: Vec::new().into_iter(),
            role: Role::Nothing,
            name: Vec::new(),
            values: Vec::new().into_iter(),
            count: 0,
            size,
        }
    }

    /// Is there another attribute?
    pub(super) fn has_more(&self) -> bool {
        let mut entries = self.entries.as_slice().iter();
        !self.attributes.as_slice().is_empty() || entries.any(|entry| !entry.is_empty())
    }

    /// What comes next; `None` at the end.
    pub(super) fn next(&mut self, wanted: &Attributes) -> Option<Step> {
        loop {
            if let Some(value) = self.values.next() {
                match self.role {
                    Role::Values => return Some(Step::Value(value)),
                    Role::Places => return Some(Step::Place(value, self.name.clone())),
                    Role::Nothing => continue,
                }
            }
            if let Some((role, attribute)) = self.attributes.next() {
                self.role = role;
                self.name = attribute.name;
                self.values = attribute.values.into_iter();
                return Some(Step::Attribute);
            }
            self.attributes = wanted.sorted(self.entries.next()?).into_iter();
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(text: &str) -> Attribute {
        let (name, values) = text.split_once('=').unwrap();
        let values = values.split(' ').filter(|value| !value.is_empty());
        Attribute {
            name: name.into(),
            values: values.map(Into::into).collect(),
        }
    }

    fn walk(entries: &[&[&str]]) -> String {
        let wanted = Attributes::new(b"drop", b"mail", b"addr,other", b"dn url");
        let entries = entries
            .iter()
            .map(|entry| entry.iter().map(|text| attribute(text)).collect());
        let mut walk = Walk::new(entries.collect(), 0);
        let mut found = Vec::new();
        while let Some(step) = walk.next(&wanted) {
            match step {
                Step::Value(value) => found.push(String::from_utf8(value).unwrap()),
                Step::Place(value, name) => found.push(format!(
                    "{}:{}",
                    String::from_utf8(name).unwrap(),
                    String::from_utf8(value).unwrap()
                )),
                Step::Attribute => {}
            }
        }
        found.join(" ")
    }

    #[test]
    fn roles() {
        // A terminal attribute hides all others, and only in its entry.
        assert_eq!(
            walk(&[&["mail=m", "addr=a", "DROP=d", "dn=x"], &["mail=n"]]),
            "d n"
        );
        // A special one hides leaves.
        assert_eq!(walk(&[&["mail=m", "addr=a b", "DN=x y"]]), "a b DN:x DN:y");
        assert_eq!(walk(&[&["mail=m", "addr=a"]]), "m a");
        // What has no values hides nothing.
        assert_eq!(walk(&[&["drop=", "dn=", "mail=m"]]), "m");
        // The order is the server's; what was not asked for is nothing.
        assert_eq!(
            walk(&[&["url=u", "x=y", "other=o;", "addr=a"]]),
            "url:u o; a"
        );
        // Options make more of a name.
        assert_eq!(walk(&[&["addr;lang-de=a", "address=b", "drop;x=c"]]), "a c");
    }

    #[test]
    fn attributes_of_urls() {
        let wanted = Attributes::new(b"", b"", b"mail,cn;lang-de", b"dn");
        let within = |asked: &[&str]| {
            let asked: Vec<Vec<u8>> = asked.iter().map(|&name| name.into()).collect();
            let found = wanted.within(&asked)?;
            Some(
                found
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        assert_eq!(within(&[]).unwrap(), "mail cn;lang-de dn");
        assert_eq!(
            within(&["Mail;x", "CN", "sn"]).unwrap(),
            "Mail;x cn;lang-de"
        );
        assert_eq!(within(&["cn;lang-fr", "mai"]), None);
    }
}
