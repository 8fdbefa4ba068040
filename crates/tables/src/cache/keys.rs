//! What stands in the braces.

use std::time::Duration;

use postkeep_cache::Settings;
use postkeep_remote::config::parse_time;
use postkeep_table::{OpenError, Printable, TableName};

use crate::braces;

/// The longest time to live.
const LONGEST: Duration = Duration::from_hours(24 * 365);

fn defaults() -> Settings {
    Settings {
        ttl: Duration::from_mins(1),
        negative_ttl: Duration::from_secs(20),
        stale_ttl: Duration::ZERO,
        retry_delay: Duration::from_secs(1),
        refresh: 50,
        max_entries: 100_000,
        max_bytes: 32 << 20,
    }
}

/// Takes a name apart: the table inside, and how its answers are kept.
pub(super) fn read(name: &TableName) -> Result<(TableName, Settings), OpenError> {
    let unavailable = |text: String| OpenError::Unavailable(text);
    let bad_syntax = || {
        unavailable(format!(
            "bad syntax: \"{name}\"; need \"cache:{{type:name, key=value...}}\""
        ))
    };
    let list = braces::whole(name.name()).ok_or_else(bad_syntax)?;
    let mut elements = braces::elements(list);
    let table = elements.next().ok_or_else(bad_syntax)?;
    if !table.contains(&b':') {
        return Err(bad_syntax());
    }
    let table = TableName::parse(table).map_err(|error| unavailable(error.to_string()))?;
    let (mut settings, mut seen) = (defaults(), Vec::new());
    for element in elements {
        let equals = element.iter().position(|&byte| byte == b'=');
        let (key, value) = element.split_at(equals.ok_or_else(bad_syntax)?);
        let fault = |why: &str| {
            let (key, value) = (Printable(key), Printable(&value[1..]));
            unavailable(format!("{name}: {key} = {value}: {why}"))
        };
        if seen.contains(&key) {
            return Err(fault("the key is there twice"));
        }
        set(&mut settings, key, &value[1..]).map_err(fault)?;
        seen.push(key);
    }
    Ok((table, settings))
}

fn set(settings: &mut Settings, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    match key {
        b"ttl" => settings.ttl = time(value)?,
        b"negative_ttl" => settings.negative_ttl = time(value)?,
        b"stale_ttl" => settings.stale_ttl = time(value)?,
        b"retry_delay" => settings.retry_delay = time(value)?,
        b"refresh" => {
            settings.refresh = value
                .strip_suffix(b"%")
                .and_then(number)
                .and_then(|percent| u8::try_from(percent).ok())
                .filter(|percent| *percent <= 100)
                .ok_or("expecting 0% to 100%")?;
        }
        b"max_entries" => {
            settings.max_entries = number(value)
                .filter(|count| (1..=1_000_000_000).contains(count))
                .ok_or("expecting a number of 1 to 1000000000")?;
        }
        b"max_bytes" => {
            settings.max_bytes = bytes(value)
                .filter(|count| *count >= 1024)
                .ok_or("expecting a number of 1024 or more, perhaps with K, M or G")?;
        }
        _ => {
            return Err(
                "unknown key, expecting ttl, negative_ttl, stale_ttl, retry_delay, refresh, max_entries or max_bytes",
            );
        }
    }
    Ok(())
}

fn time(value: &[u8]) -> Result<Duration, &'static str> {
    parse_time(value)
        .filter(|time| *time <= LONGEST)
        .ok_or("expecting a time of at most 365d, as a number and ms, s, m, h, d or w")
}

/// Digits, nothing else.
fn number(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn bytes(value: &[u8]) -> Option<usize> {
    let (digits, unit) = match value.split_last()? {
        (b'K', digits) => (digits, 1 << 10),
        (b'M', digits) => (digits, 1 << 20),
        (b'G', digits) => (digits, 1 << 30),
        _ => (value, 1),
    };
    number(digits)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(list: &str) -> Result<(String, Settings), String> {
        let name = TableName::parse(format!("cache:{list}").as_bytes())
            .map_err(|error| error.to_string())?;
        read(&name)
            .map(|(table, settings)| (table.to_string(), settings))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_and_defaults() {
        assert_eq!(
            of("{tcp:localhost:1}").unwrap(),
            ("tcp:localhost:1".to_owned(), defaults())
        );
        let list = "{ inline:{ a=b, c=d },ttl=2m negative_ttl=0,stale_ttl=1h, retry_delay=500ms, refresh=10%,\n\
                    max_entries=7 max_bytes=2M }";
        let settings = Settings {
            ttl: Duration::from_mins(2),
            negative_ttl: Duration::ZERO,
            stale_ttl: Duration::from_hours(1),
            retry_delay: Duration::from_millis(500),
            refresh: 10,
            max_entries: 7,
            max_bytes: 2 << 20,
        };
        assert_eq!(
            of(list).unwrap(),
            ("inline:{ a=b, c=d }".to_owned(), settings)
        );
    }

    #[test]
    fn faults_say_what_was_expected() {
        for list in [
            "x",
            "{}",
            "{ , }",
            "{ttl=5}",
            "{static:x, ttl}",
            "{static:x}y",
            "{static:x",
        ] {
            assert_eq!(
                of(list).unwrap_err(),
                format!("bad syntax: \"cache:{list}\"; need \"cache:{{type:name, key=value...}}\"")
            );
        }
        assert_eq!(
            of("{static:}").unwrap_err(),
            "open dictionary: expecting \"type:name\" form instead of \"static:\""
        );
        for (wrong, why) in [
            (
                "ttl=1y",
                "expecting a time of at most 365d, as a number and ms, s, m, h, d or w",
            ),
            (
                "ttl=-1",
                "expecting a time of at most 365d, as a number and ms, s, m, h, d or w",
            ),
            (
                "negative_ttl=366d",
                "expecting a time of at most 365d, as a number and ms, s, m, h, d or w",
            ),
            ("refresh=50", "expecting 0% to 100%"),
            ("refresh=101%", "expecting 0% to 100%"),
            ("refresh=+1%", "expecting 0% to 100%"),
            ("max_entries=0", "expecting a number of 1 to 1000000000"),
            (
                "max_bytes=1023",
                "expecting a number of 1024 or more, perhaps with K, M or G",
            ),
            (
                "max_bytes=99999999999G",
                "expecting a number of 1024 or more, perhaps with K, M or G",
            ),
            (
                "max_bytes=",
                "expecting a number of 1024 or more, perhaps with K, M or G",
            ),
            (
                "tll=5",
                "unknown key, expecting ttl, negative_ttl, stale_ttl, retry_delay, refresh, max_entries or max_bytes",
            ),
        ] {
            let (key, value) = wrong.split_once('=').unwrap();
            assert_eq!(
                of(&format!("{{static:x, {wrong}}}")).unwrap_err(),
                format!("cache:{{static:x, {wrong}}}: {key} = {value}: {why}")
            );
        }
        assert_eq!(
            of("{static:x, ttl=1, ttl=2}").unwrap_err(),
            "cache:{static:x, ttl=1, ttl=2}: ttl = 2: the key is there twice"
        );
    }

    proptest! {
        #[test]
        fn any_name_is_survived(
            list in "(\\{|\\}|,| |ttl|refresh|max_bytes|max_entries|=|%|ms|[0-9a-zK:]|\u{e9}|\0){0,30}",
            bytes in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let _ = of(&list);
            if let Ok((_, settings)) = of(&format!("{{static:x {list}}}")) {
                prop_assert!(settings.refresh <= 100 && settings.max_entries >= 1);
                prop_assert!(settings.max_bytes >= 1024 && settings.ttl <= LONGEST);
            }
            let name = [&b"cache:{static:x,"[..], &bytes, b"}"].concat();
            let _ = read(&TableName::parse(&name).unwrap());
        }
    }
}
