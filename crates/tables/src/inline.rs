//! `inline:{key=value, ...}` holds its entries in its name.
//!
//! Elements are separated by comma or white space; `{ key = value }` may contain both. White space around `=` is
//! allowed inside braces only. A key may be quoted to contain white space, and keeps its quotes. A value may be
//! empty; a later entry replaces an earlier one of the same key. With values from files each value is a list of
//! file names.

use std::sync::Arc;

use postkeep_table::{
    Cursor, Flags, Latency, LookupError, OpenError, Outcome, Owner, Step, Table, TableName,
};

use crate::braces::{self, is_space, trim};
use crate::compact::CompactMap;
use crate::source::end_of_key;
use crate::table_type::{Capabilities, Request, TableType};
use crate::{fold_key, layer, read_file_values};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "inline",
    summary: "entries in the table's name",
    capabilities: Capabilities::READ_ONLY
        .union(Capabilities::SEQUENCE)
        .union(Capabilities::DATA_IN_NAME),
    open,
    build: None,
};

struct Inline {
    name: TableName,
    flags: Flags,
    map: CompactMap,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    match read(request) {
        Ok(map) => Ok(Arc::new(Inline {
            name: request.name.clone(),
            flags: request.fixed_flags(),
            map,
        })),
        Err(why) => {
            let what = if request.flags.contains(Flags::RHS_IS_FILE) {
                "filename"
            } else {
                "value"
            };
            Err(OpenError::Unavailable(format!(
                "{why}: \"{}\"; need \"inline:{{name={what}...}}\"",
                request.name
            )))
        }
    }
}

fn read(request: &Request<'_>) -> Result<CompactMap, String> {
    if request.utf8 && !layer::valid(request.name.name()) {
        return Err("bad UTF-8 syntax".to_owned());
    }
    let list = braces::whole(request.name.name())
        .filter(|list| !list.is_empty())
        .ok_or("bad syntax")?;
    let mut map = CompactMap::default();
    let mut empty = true;
    for element in braces::elements(list) {
        let element = if element.starts_with(b"{") {
            braces::strip(element)?
        } else {
            element
        };
        let (key, value) = split(element)?;
        let from_file;
        let value = if request.flags.contains(Flags::RHS_IS_FILE) {
            from_file = read_file_values(value).map_err(|error| error.to_string())?;
            &from_file
        } else {
            value
        };
        empty = false;
        let put = if request.flags.contains(Flags::FOLD_FIX) {
            map.put(&fold_key(key, request.utf8), value)
        } else {
            map.put(key, value)
        };
        put.map_err(|_| "table is too large")?;
    }
    if empty {
        return Err("empty table".to_owned());
    }
    map.shrink();
    Ok(map)
}

/// Splits `key = value`, where the key may be quoted (Postfix `src/util/split_qnameval.c`).
fn split(element: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let element = trim(element);
    if element.is_empty() {
        return Err("no key found; expected format: key = value");
    }
    let end = end_of_key(element, |byte| is_space(byte) || byte == b'=')
        .map_err(|_| "unbalanced '\"'")?;
    let (key, rest) = element.split_at(end);
    match trim(rest).split_first() {
        Some((b'=', value)) => Ok((key, trim(value))),
        _ => Err("missing '=' after attribute name"),
    }
}

impl Table for Inline {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Memory
    }

    fn lookup(&self, _: Flags, key: &[u8], value: &mut Vec<u8>) -> Result<Outcome, LookupError> {
        Ok(find(&self.map, key, value))
    }

    fn sequence(
        &self,
        _: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        Ok(walk(&self.map, step, cursor, key, value))
    }

    fn owner(&self) -> Owner {
        Owner::Trusted
    }
}

/// A lookup in a map.
pub(crate) fn find(map: &CompactMap, key: &[u8], value: &mut Vec<u8>) -> Outcome {
    match map.find(key) {
        Some(found) => {
            value.extend_from_slice(found);
            Outcome::Done
        }
        None => Outcome::Absent,
    }
}

/// A step in a walk through a map.
pub(crate) fn walk(
    map: &CompactMap,
    step: Step,
    cursor: &mut Cursor,
    key: &mut Vec<u8>,
    value: &mut Vec<u8>,
) -> Outcome {
    if step == Step::First {
        cursor.ordinal = 0;
    }
    match map.nth(cursor.ordinal) {
        Some((found_key, found_value)) => {
            cursor.ordinal += 1;
            key.extend_from_slice(found_key);
            value.extend_from_slice(found_value);
            Outcome::Done
        }
        None => Outcome::Absent,
    }
}

#[cfg(test)]
mod tests {
    use postkeep_table::{Access, Opener};

    use super::*;
    use crate::{Context, Registry};

    fn open(name: &str, flags: Flags) -> Result<Arc<dyn Table>, OpenError> {
        let name = TableName::parse(name.as_bytes()).unwrap();
        Registry::new(Context::default()).open(&name, Access::Read, flags)
    }

    fn answer(name: &str, key: &str) -> Option<String> {
        let table = open(name, Flags::FOLD_FIX | Flags::UTF8_REQUEST).unwrap();
        let mut value = Vec::new();
        let outcome = table
            .lookup(Flags::FOLD_FIX, key.as_bytes(), &mut value)
            .unwrap();
        (outcome == Outcome::Done).then(|| String::from_utf8(value).unwrap())
    }

    #[test]
    fn elements_may_be_plain_or_in_braces() {
        assert_eq!(answer("inline:{a=1, b=2 c=3}", "b").as_deref(), Some("2"));
        assert_eq!(
            answer("inline:{{a = x y, z}, b=2}", "a").as_deref(),
            Some("x y, z")
        );
        assert_eq!(
            answer("inline:{{\"x y\" = 1}}", "\"x y\"").as_deref(),
            Some("1")
        );
        assert_eq!(answer("inline:{{\"x y\" = 1}}", "x y"), None);
        assert_eq!(answer("inline:{a=b=c}", "a").as_deref(), Some("b=c"));
        assert_eq!(answer("inline:{a=}", "a").as_deref(), Some(""));
        assert_eq!(answer("inline:{=x}", "").as_deref(), Some("x"));
        assert_eq!(answer("inline:{A=1, a=2}", "A").as_deref(), Some("2"));
        assert_eq!(answer("inline:{\u{c9}=1}", "\u{e9}").as_deref(), Some("1"));
    }

    #[test]
    fn reasons_are_the_reference_s() {
        let reason = |name: &str| open(name, Flags::empty()).err().unwrap().to_string();
        for (data, why) in [
            ("a=b", "bad syntax"),
            ("{}", "bad syntax"),
            ("{a=b}c", "bad syntax"),
            ("{ }", "empty table"),
            ("{a}", "missing '=' after attribute name"),
            ("{{}}", "no key found; expected format: key = value"),
            ("{\"a=b}", "unbalanced '\"'"),
            ("{{a=b}c}", "syntax error after '}' in \"{a=b}c\""),
        ] {
            assert_eq!(
                reason(&format!("inline:{data}")),
                format!("{why}: \"inline:{data}\"; need \"inline:{{name=value...}}\"")
            );
        }
        let reason = open("inline:{a=/no/such}", Flags::RHS_IS_FILE)
            .err()
            .unwrap()
            .to_string();
        assert_eq!(
            reason,
            "open /no/such: No such file or directory: \"inline:{a=/no/such}\"; need \"inline:{name=filename...}\""
        );
    }

    #[test]
    fn it_can_be_listed_but_not_written() {
        let table = open("inline:{a=1,b=2}", Flags::empty()).unwrap();
        let mut cursor = Cursor::default();
        let mut step = |step| {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            let outcome = table
                .sequence(Flags::empty(), step, &mut cursor, &mut key, &mut value)
                .unwrap();
            (outcome, [key, value].concat())
        };
        assert_eq!(step(Step::First), (Outcome::Done, b"a1".to_vec()));
        assert_eq!(step(Step::Next), (Outcome::Done, b"b2".to_vec()));
        assert_eq!(step(Step::Next), (Outcome::Absent, Vec::new()));
        let name = TableName::parse(b"inline:{a=1}").unwrap();
        let error = Registry::new(Context::default())
            .open(&name, Access::ReadWrite, Flags::empty())
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "inline:{a=1} map requires O_RDONLY access mode"
        );
    }
}
