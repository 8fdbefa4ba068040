//! What tables behind a server read, each type in its way: configuration files of all types, and what is mongodb's own.

use std::sync::{Arc, LazyLock};

use postkeep_remote::template::Needs;
use postkeep_table::{Flags, TableName};
use postkeep_tables::mongodb_rules::{
    BYTES, Filter, Projection, VALUES, Value, Values, escape, shown,
};
use postkeep_tables::{Context, Registry, table_types};

/// The types whose tables have a configuration file.
const TYPES: [&str; 8] = [
    "http", "ldap", "memcache", "mongodb", "mysql", "pgsql", "redis", "sqlite",
];

/// Has no list that leads to other tables, and no absolute path: what is tried is how a text is read, not the files of
/// the machine.
fn harmless(data: &[u8]) -> Vec<u8> {
    let mut text = data.to_vec();
    let mut before = b' ';
    for byte in &mut text {
        let here = *byte;
        if here == b'/' && !before.is_ascii_alphanumeric() && !b":/".contains(&before) {
            *byte = b'_';
        }
        before = here;
    }
    while let Some(at) = text.windows(6).position(|word| word == b"domain") {
        text[at] = b'D';
    }
    text
}

/// The configuration file of every type that has one: a table opens, or is refused in words. Most of the time goes into
/// certificates of the system: with `SSL_CERT_FILE` in the environment, a file with one, ten times as many are tried.
pub fn network_tables_cf(data: &[u8]) {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(Context::default()));
    let text = harmless(data);
    for kind in TYPES {
        if !table_types().iter().any(|row| row.name == kind) {
            continue;
        }
        let name = TableName::parse(format!("{kind}:/t.cf").as_bytes()).expect("a name");
        match REGISTRY.open_text(&name, &text, Flags::LOCK | Flags::UTF8_REQUEST) {
            Ok(table) => {
                assert_eq!(table.name(), &name);
                assert_eq!(Arc::strong_count(&table), 1);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The lines are a filter's template, a key, a projection and a URI, the rest is a document of a server: keys stay inside
/// of their strings, and values are read or refused, within their limits.
pub fn mongodb_rules(data: &[u8]) {
    let mut parts = data.splitn(5, |&byte| byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (template, key, projection, uri, document) = (next(), next(), next(), next(), next());
    if let Ok(text) = std::str::from_utf8(key) {
        let mut json = b"\"".to_vec();
        escape(key, &mut json);
        json.push(b'"');
        let read: String = serde_json::from_slice(&json).expect("a string");
        assert_eq!(read, text);
    }
    let mut needs = Needs::default();
    if let Ok(template) = needs.query("/t.cf", template) {
        let filter = Filter::new(template);
        let table = TableName::parse(b"mongodb:/t.cf").expect("a name");
        if let Some(key) = needs.key(&table, key) {
            let _ = filter.query(&key, &filter.text(&key));
        }
    }
    if let Projection::Document(document) = Projection::fields(projection) {
        assert_eq!(document.get_i32("_id").ok(), Some(0));
    }
    if let Projection::Document(document) = Projection::parse(projection.to_vec()) {
        assert_eq!(document.get_i32("_id").ok(), Some(0));
    }
    // The mark stands for the password, and must be nowhere else.
    if let Ok(uri) = std::str::from_utf8(uri)
        && !uri.contains('\u{1}')
    {
        let told = shown(&format!("mongodb://u:\u{1}{uri}")).to_string();
        assert!(!told.contains('\u{1}') || !uri.contains('@'), "{told}");
    }
    let mut values = Values::default();
    if values.add_bytes(document).is_ok() && !values.is_too_much() {
        let count = values.found.len();
        let bytes: usize = values
            .found
            .iter()
            .map(|value| match value {
                Value::Text(text) => text.len(),
                Value::Other(..) => 0,
            })
            .sum();
        assert!(count <= VALUES && bytes <= BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_machine_is_read() {
        let text = b"tls_CAfile = /etc/x\n domain = hash:/y\nurl = http://h/p/../../z //a ./b";
        let wanted = b"tls_CAfile = _etc/x\n Domain = hash:/y\nurl = http://h/p/.._.._z _/a ._b";
        assert_eq!(harmless(text), wanted);
    }
}
