//! Which tables a configuration reaches through proxymap(8), and which it approves.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use postkeep_conf::{LogicalLines, extract_braced, split_list_braced};
use postkeep_proxymap::approve::{Approved, Content, Files, List, Listing, Rules, canonical};
use postkeep_sys::error_text;

use super::installation::{Installation, path_of};

/// The parameters whose tables are opened for writing, through proxywrite.
const WRITTEN: [&str; 4] = [
    "address_verify_map",
    "lmtp_sasl_auth_cache_name",
    "postscreen_cache_map",
    "smtp_sasl_auth_cache_name",
];

/// A table that somebody reaches through the service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    /// `TYPE:NAME`, without `proxy:`.
    pub(crate) table: String,
    /// The parameter that names it.
    pub(crate) parameter: String,
    /// `NAME/TYPE` of the entry of master.cf that sets the parameter; `None` for main.cf.
    pub(crate) entry: Option<String>,
    /// Through proxywrite.
    pub(crate) written: bool,
}

impl Use {
    /// The word before the colon.
    pub(crate) fn kind(&self) -> &str {
        self.table.split(':').next().unwrap_or_default()
    }

    /// What is behind it.
    pub(crate) fn name(&self) -> &str {
        self.table.split_once(':').map_or("", |(_, name)| name)
    }

    /// The list that has to name the table.
    pub(crate) fn list(&self) -> &'static str {
        if self.written {
            "proxy_write_maps"
        } else {
            "proxy_read_maps"
        }
    }
}

/// All uses in main.cf and in the options of master.cf, without repetitions.
///
/// # Errors
/// postconf refuses the configuration.
pub(crate) fn uses(installation: &Installation) -> Result<Vec<Use>, String> {
    let mut found = BTreeSet::new();
    let mut add = |parameter: &str, entry: Option<&str>, value: &str| {
        if parameter == "proxy_read_maps" || parameter == "proxy_write_maps" {
            return;
        }
        for table in proxied(value.as_bytes()) {
            found.insert(Use {
                table: String::from_utf8_lossy(&table).into_owned(),
                parameter: parameter.to_owned(),
                entry: entry.map(str::to_owned),
                written: WRITTEN.contains(&parameter),
            });
        }
    };
    for (name, value) in installation.assignments(&["-n", "-x"])? {
        add(&name, None, &value);
    }
    for (name, value) in installation.assignments(&["-P", "-x"])? {
        if let Some((entry, parameter)) = name.rsplit_once('/') {
            add(parameter, Some(entry), &value);
        }
    }
    Ok(found.into_iter().collect())
}

/// The tables in a value that begin with `proxy:`, wherever in it they are.
fn proxied(value: &[u8]) -> Vec<Vec<u8>> {
    /// Deeper nesting than this is no configuration.
    const DEPTH: usize = 20;
    fn scan(value: &[u8], depth: usize, found: &mut Vec<Vec<u8>>) {
        for token in split_list_braced(value) {
            let table = canonical(token);
            let inner = [&b"pipemap:"[..], b"unionmap:"]
                .iter()
                .find_map(|kind| table.strip_prefix(*kind))
                .unwrap_or(token);
            if inner.first() == Some(&b'{') && depth < DEPTH {
                scan(extract_braced(inner, true).0, depth + 1, found);
            }
            if table.len() < token.len() && table.contains(&b':') {
                found.push(table.to_vec());
            }
        }
    }
    let mut found = Vec::new();
    scan(value, 0, &mut found);
    found
}

/// The tables that a list approves.
pub(crate) fn approved(installation: &Installation, list: &str) -> Approved {
    let mut files = Disk;
    let rules = Rules::from(installation.release_or_default());
    let mut collected = List::new(rules, Listing::Proxied, &mut files);
    collected.add(installation.value(list).as_bytes(), list);
    collected.finish().0
}

struct Disk;

impl Files for Disk {
    fn read(&mut self, path: &[u8], limit: usize) -> Result<Content, String> {
        let file = fs::File::open(path_of(path)).map_err(|error| error_text(&error))?;
        let mut bytes = Vec::new();
        let outcome = file.take(limit as u64).read_to_end(&mut bytes);
        Ok(Content {
            bytes,
            error: outcome.err().map(|error| error_text(&error)),
        })
    }
}

/// The line of main.cf that sets a parameter: the last one that does.
pub(crate) fn line_of(main_cf: &Path, parameter: &str) -> Option<usize> {
    let text = fs::read(main_cf).ok()?;
    let mut found = None;
    for line in LogicalLines::new(&text) {
        let name = line.text.split(|&byte| byte == b'=').next();
        if name.is_some_and(|name| name.trim_ascii_end() == parameter.as_bytes()) {
            found = Some(line.first);
        }
    }
    found
}

/// The command that approves one more table.
///
/// # Errors
/// postconf refuses the configuration.
pub(crate) fn approving_command(
    installation: &Installation,
    list: &str,
    table: &str,
) -> Result<String, String> {
    // What the list says now, as written: the default if main.cf has none.
    let now = installation.postconf(&["-h", list])?;
    let line = format!("{list} = {} proxy:{table}", now.trim());
    let config = installation.config_directory.to_string_lossy();
    Ok(super::installation::shell(&[
        "postconf", "-c", &config, "-e", &line,
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_wherever_they_are() {
        let tables = |value: &str| -> Vec<String> {
            proxied(value.as_bytes())
                .into_iter()
                .map(|table| String::from_utf8(table).unwrap())
                .collect()
        };
        assert_eq!(tables("hash:/a, proxy:hash:/b"), ["hash:/b"]);
        assert_eq!(
            tables("check_recipient_access proxy:cidr:/c, { check_x { proxy:pcre:/d } }"),
            ["cidr:/c", "pcre:/d"]
        );
        assert_eq!(tables("pipemap:{proxy:hash:/a, lmdb:/b}"), ["hash:/a"]);
        assert_eq!(tables("proxy:inline:{ a=b, c=d }"), ["inline:{ a=b, c=d }"]);
        assert_eq!(
            tables("proxy:unionmap:{proxy:hash:/a}"),
            ["hash:/a", "unionmap:{proxy:hash:/a}"]
        );
        assert!(tables("proxy: proxyx:hash:/a {").is_empty());
        assert!(tables(&"{".repeat(10_000)).is_empty());
    }

    #[test]
    fn the_last_line_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("main.cf");
        fs::write(&path, "a = 1\n# b = 2\nb =\n  3\nb=4\nbb = 5\n").unwrap();
        assert_eq!(line_of(&path, "b"), Some(5));
        assert_eq!(line_of(&path, "a"), Some(1));
        assert_eq!(line_of(&path, "c"), None);
    }
}
