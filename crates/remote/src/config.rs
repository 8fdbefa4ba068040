//! The configuration of one table: a file, or parameters of main.cf that begin with the table's name.
//!
//! `mysql:/etc/postfix/users.cf` reads a file in main.cf syntax, where `$` is ordinary text. `mysql:users` reads
//! `users_hosts`, `users_query` and so on from main.cf, with `$name` evaluated. Keys that nobody asks for are not
//! looked at. There are no time units in the reference's keys; ours have them ([`Config::time`]).
//!
//! # References
//! Postfix `src/global/cfg_parser.c`, `src/global/db_common.c`.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use postkeep_conf::{Dictionary, LogicalLines, Release, split_name_value};
use postkeep_table::Printable;

/// A fault in a table's configuration; the text is the reference's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    text: String,
    hint: Option<String>,
}

impl ConfigError {
    /// A fault that `text` says all about.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            hint: None,
        }
    }

    /// Where the fault is and what was expected: `FILE, line N: KEY: expecting …`. The reference does not say
    /// that much; it is for a line of its own before the reference's.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Where values come from.
#[derive(Clone, Debug)]
enum Origin {
    /// A file, and its text for finding a line again.
    File { values: Dictionary, text: Vec<u8> },
    /// main.cf.
    MainCf(Arc<Dictionary>),
}

/// Is this no value for log lines? A password, or what one is a part of.
fn is_secret(key: &[u8], value: &[u8]) -> bool {
    const SECRETS: [&[u8]; 8] = [
        b"bearer_token",
        b"bind_pw",
        b"body",
        b"header",
        b"password",
        b"sentinel_password",
        b"uri",
        b"url",
    ];
    // What pgsql servers are named by can be a URI or a list of all parameters.
    SECRETS.contains(&key)
        || key == b"hosts" && value.windows(3).any(|bytes| bytes == b"://")
        || key == b"dbname" && value.contains(&b'=')
}

/// The configuration of one table, read key by key.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, or what parameters in main.cf begin with.
    name: String,
    origin: Origin,
}

/// A value, and what faults call it.
struct Found {
    value: Option<Vec<u8>>,
    /// `FILE: ` or nothing.
    prefix: String,
    /// The key, or the parameter in main.cf.
    key: String,
}

impl Config {
    /// Does a table of this name have a file? Otherwise its configuration is in main.cf.
    pub fn is_file(name: &[u8]) -> bool {
        matches!(name.first(), Some(b'/' | b'.'))
    }

    /// Takes the text of a file. What its lines are warned of is logged.
    ///
    /// # Errors
    /// [`ConfigError`] when a line is no assignment.
    pub fn parse(file: &[u8], text: Vec<u8>, release: Release) -> Result<Self, ConfigError> {
        let name = Printable(file).to_string();
        let mut values = Dictionary::named(release, &name);
        values.hide(is_secret);
        values
            .load(&text, &name, &mut |text: String| warn!("{text}"))
            .map_err(|error| ConfigError::new(error.to_string()))?;
        Ok(Self {
            name,
            origin: Origin::File { values, text },
        })
    }

    /// The parameters of main.cf that begin with `prefix_`.
    pub fn main_cf(prefix: &[u8], main_cf: Arc<Dictionary>) -> Self {
        Self {
            name: Printable(prefix).to_string(),
            origin: Origin::MainCf(main_cf),
        }
    }

    /// The file, or the prefix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The release whose rules apply.
    pub fn release(&self) -> Release {
        match &self.origin {
            Origin::File { values, .. } => values.release(),
            Origin::MainCf(values) => values.release(),
        }
    }

    fn find(&self, key: &str) -> Result<Found, ConfigError> {
        match &self.origin {
            Origin::File { values, .. } => Ok(Found {
                value: values.value(key).map(<[u8]>::to_vec),
                prefix: format!("{}: ", self.name),
                key: key.to_owned(),
            }),
            Origin::MainCf(values) => {
                let key = format!("{}_{key}", self.name);
                let value = values
                    .evaluate(&key, &mut |text: String| warn!("{text}"))
                    .map_err(|error| ConfigError::new(error.to_string()))?;
                Ok(Found {
                    value,
                    prefix: String::new(),
                    key,
                })
            }
        }
    }

    /// The line of the file that sets the key, from one.
    fn line(&self, key: &str) -> Option<usize> {
        let Origin::File { text, .. } = &self.origin else {
            return None;
        };
        LogicalLines::new(text)
            .filter(|line| !line.is_orphan())
            .filter(|line| {
                split_name_value(line.text_to_nul()).is_ok_and(|(name, _)| name == key.as_bytes())
            })
            .last()
            .map(|line| line.first)
    }

    /// Where the key is set.
    fn place(&self, key: &str) -> String {
        match (&self.origin, self.line(key)) {
            (Origin::MainCf(values), _) => format!("{}: {}_{key}", values.file(), self.name),
            (Origin::File { .. }, Some(line)) => format!("{}, line {line}: {key}", self.name),
            (Origin::File { .. }, None) => format!("{}: {key} is not set", self.name),
        }
    }

    fn fault(&self, key: &str, text: String, expected: &str) -> ConfigError {
        ConfigError {
            text,
            hint: Some(format!("{}: expecting {expected}", self.place(key))),
        }
    }

    /// A fault of a value that only the table type can find.
    ///
    /// - `why`: what is wrong, or what was expected
    pub fn unusable(&self, key: &str, why: &dyn std::fmt::Display) -> ConfigError {
        let text = match &self.origin {
            Origin::File { .. } => format!("{}: bad value of {key}: {why}", self.name),
            Origin::MainCf(_) => format!("bad value of {}_{key}: {why}", self.name),
        };
        ConfigError {
            text,
            hint: Some(format!("{}: {why}", self.place(key))),
        }
    }

    /// A text; `default` when the key is not there.
    ///
    /// - `min`, `max`: of its length in bytes; zero for none
    ///
    /// # Errors
    /// [`ConfigError`] when it is too short or too long.
    pub fn text(
        &self,
        key: &str,
        default: &str,
        min: usize,
        max: usize,
    ) -> Result<Vec<u8>, ConfigError> {
        let found = self.find(key)?;
        let value = found.value.unwrap_or_else(|| default.as_bytes().to_vec());
        let length = value.len();
        let (sign, limit, expected) = if min > 0 && length < min {
            ('<', min, format!("{min} or more characters"))
        } else if max > 0 && length > max {
            ('>', max, format!("{max} or fewer characters"))
        } else {
            return Ok(value);
        };
        let text = format!(
            "{}bad string length {length} {sign} {limit}: {} = {}",
            found.prefix,
            found.key,
            Printable(&value)
        );
        Err(self.fault(key, text, &expected))
    }

    /// A text that may be missing; an empty one is.
    ///
    /// # Errors
    /// [`ConfigError`] when main.cf has an expression that cannot be evaluated.
    pub fn optional(&self, key: &str) -> Result<Option<Vec<u8>>, ConfigError> {
        Ok(self.find(key)?.value.filter(|value| !value.is_empty()))
    }

    /// A whole number.
    ///
    /// - `min`, `max`: inclusive; zero for none
    ///
    /// # Errors
    /// [`ConfigError`] when it is none, or out of its range.
    pub fn int(&self, key: &str, default: i32, min: i32, max: i32) -> Result<i32, ConfigError> {
        let found = self.find(key)?;
        let expected = || match (min, max) {
            (0, 0) => "a whole number".to_owned(),
            (min, 0) => format!("a whole number, {min} or more"),
            (min, max) => format!("a whole number, {min} to {max}"),
        };
        let number = match &found.value {
            None => default,
            Some(value) => whole_number(value).ok_or_else(|| {
                let text = format!(
                    "{}bad numerical configuration: {} = {}",
                    found.prefix,
                    found.key,
                    Printable(value)
                );
                self.fault(key, text, &expected())
            })?,
        };
        let (sign, limit) = if min != 0 && number < min {
            ('<', min)
        } else if max != 0 && number > max {
            ('>', max)
        } else {
            return Ok(number);
        };
        let text = format!(
            "{}invalid {} parameter value {number} {sign} {limit}",
            found.prefix, found.key
        );
        Err(self.fault(key, text, &expected()))
    }

    /// `yes` or `no`, in any case of letters.
    ///
    /// # Errors
    /// [`ConfigError`] when it is neither.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        let found = self.find(key)?;
        match &found.value {
            None => Ok(default),
            Some(value) if value.eq_ignore_ascii_case(b"yes") => Ok(true),
            Some(value) if value.eq_ignore_ascii_case(b"no") => Ok(false),
            Some(value) => {
                let text = format!(
                    "{}bad boolean configuration: {} = {}",
                    found.prefix,
                    found.key,
                    Printable(value)
                );
                Err(self.fault(key, text, "yes or no"))
            }
        }
    }

    /// `yes`, `no`, or nothing at all (`None`), for keys where silence means something third.
    ///
    /// # Errors
    /// [`ConfigError`] when it is neither.
    pub fn optional_boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        if self.find(key)?.value.is_none() {
            return Ok(None);
        }
        self.boolean(key, false).map(Some)
    }

    /// A time, for keys that the reference does not have: a number with the unit `ms`, `s`, `m`, `h`, `d` or `w`;
    /// seconds without one.
    ///
    /// # Errors
    /// [`ConfigError`] when it is no time, or out of its range.
    pub fn time(
        &self,
        key: &str,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<Duration, ConfigError> {
        let found = self.find(key)?;
        let Some(value) = &found.value else {
            return Ok(default);
        };
        let expected =
            || format!("a time of {min:?} to {max:?}, as a number and ms, s, m, h, d or w");
        let Some(time) = parse_time(value) else {
            let text = format!(
                "{}bad time value or unit: {} = {}",
                found.prefix,
                found.key,
                Printable(value)
            );
            return Err(self.fault(key, text, &expected()));
        };
        if time < min || time > max {
            let text = format!(
                "{}time out of range: {} = {}",
                found.prefix,
                found.key,
                Printable(value)
            );
            return Err(self.fault(key, text, &expected()));
        }
        Ok(time)
    }
}

/// Optional sign, digits, nothing else; as much as 32 bits hold.
fn whole_number(value: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok()
}

/// A number with the unit `ms`, `s`, `m`, `h`, `d` or `w`; seconds without one.
pub fn parse_time(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// The text of a statement that looks one key up: `query`, or what the older keys `table`, `select_field`,
/// `where_field` and `additional_conditions` make.
///
/// - `function`: `select_function` counts, too, before the older keys (pgsql)
///
/// # Errors
/// [`ConfigError`] when there is no `query` and one of the older keys is missing.
pub fn statement(config: &Config, function: bool) -> Result<Vec<u8>, ConfigError> {
    if let Some(query) = config.optional("query")? {
        return Ok(query);
    }
    if function && let Some(name) = config.optional("select_function")? {
        return Ok([b"SELECT ", &name[..], b"('%s')"].concat());
    }
    let table = config.text("table", "", 1, 0)?;
    let field = config.text("select_field", "", 1, 0)?;
    let place = config.text("where_field", "", 1, 0)?;
    let more = config.text("additional_conditions", "", 0, 0)?;
    Ok([
        b"SELECT ",
        &field[..],
        b" FROM ",
        &table,
        b" WHERE ",
        &place,
        b"='%s' ",
        &more,
    ]
    .concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Config {
        Config::parse(b"/t.cf", text.as_bytes().to_vec(), Release::V3_7).unwrap()
    }

    #[test]
    fn faults_that_a_type_finds_name_the_place() {
        let fault = file("a = b\nurl = x\n").unusable("url", &"no URL");
        assert_eq!(fault.to_string(), "/t.cf: bad value of url: no URL");
        assert_eq!(fault.hint(), Some("/t.cf, line 2: url: no URL"));
    }

    #[test]
    fn what_can_hold_a_password_is_not_for_log_lines() {
        let secret = |key: &str, value: &str| is_secret(key.as_bytes(), value.as_bytes());
        assert!(secret("password", "x") && secret("uri", "mongodb://h") && secret("bind_pw", ""));
        assert!(secret("hosts", "h, postgresql://u:p@h") && secret("dbname", "password=p"));
        assert!(!secret("hosts", "inet:h:1") && !secret("dbname", "mail") && !secret("user", "u"));
    }

    fn text_of<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> (String, String) {
        let error = result.unwrap_err();
        (
            error.to_string(),
            error.hint().unwrap_or_default().to_owned(),
        )
    }

    #[test]
    fn values_are_texts_as_they_are() {
        let config = file("# x\nuser = $a %s\n  more\npassword =\nuser2=b c \n");
        assert_eq!(config.text("user", "", 0, 0).unwrap(), b"$a %s  more");
        assert_eq!(config.text("password", "d", 0, 0).unwrap(), b"");
        assert_eq!(config.text("absent", "d", 0, 0).unwrap(), b"d");
        assert_eq!(config.optional("password").unwrap(), None);
        assert_eq!(
            config.optional("user2").unwrap().as_deref(),
            Some(&b"b c"[..])
        );
    }

    #[test]
    fn faults_have_the_reference_s_text_and_a_hint() {
        let config =
            file("a = 1\n\nlimit = abc\nbig = 101\nflag = 0\nlow\n = 1\nempty =\nwait = 3x\n");
        assert_eq!(
            text_of(config.int("limit", 0, 0, 0)),
            (
                "/t.cf: bad numerical configuration: limit = abc".to_owned(),
                "/t.cf, line 3: limit: expecting a whole number".to_owned()
            )
        );
        assert_eq!(
            text_of(config.int("big", 0, 1, 100)),
            (
                "/t.cf: invalid big parameter value 101 > 100".to_owned(),
                "/t.cf, line 4: big: expecting a whole number, 1 to 100".to_owned()
            )
        );
        assert_eq!(
            text_of(config.int("low", 0, 2, 0)),
            (
                "/t.cf: invalid low parameter value 1 < 2".to_owned(),
                "/t.cf, line 6: low: expecting a whole number, 2 or more".to_owned()
            )
        );
        assert_eq!(
            text_of(config.boolean("flag", true)),
            (
                "/t.cf: bad boolean configuration: flag = 0".to_owned(),
                "/t.cf, line 5: flag: expecting yes or no".to_owned()
            )
        );
        assert_eq!(
            text_of(config.text("empty", "", 1, 0)),
            (
                "/t.cf: bad string length 0 < 1: empty = ".to_owned(),
                "/t.cf, line 8: empty: expecting 1 or more characters".to_owned()
            )
        );
        assert_eq!(
            text_of(config.text("dbpath", "", 1, 0)),
            (
                "/t.cf: bad string length 0 < 1: dbpath = ".to_owned(),
                "/t.cf: dbpath is not set: expecting 1 or more characters".to_owned()
            )
        );
        let second = Duration::from_secs(1);
        assert_eq!(
            text_of(config.time("wait", second, second, second)).0,
            "/t.cf: bad time value or unit: wait = 3x"
        );
        assert_eq!(
            text_of(config.time("a", second, second * 2, second * 3)).0,
            "/t.cf: time out of range: a = 1"
        );
        assert_eq!(
            Config::parse(b"/t.cf", b"a = 1\nhello\n".to_vec(), Release::V3_7)
                .unwrap_err()
                .to_string(),
            "/t.cf, line 2: missing '=' after attribute name: \"hello\""
        );
    }

    #[test]
    fn numbers_and_times() {
        let config = file(
            "a = -1\nb = +7\nc = 2147483648\nd = 1 2\ne = 1500ms\nf = 2m\ng = 99999999999999999w\n",
        );
        assert_eq!(config.int("a", 0, 0, 0).unwrap(), -1);
        assert_eq!(config.int("b", 0, 0, 0).unwrap(), 7);
        assert_eq!(config.int("absent", 5, 1, 9).unwrap(), 5);
        assert!(config.int("c", 0, 0, 0).is_err());
        assert!(config.int("d", 0, 0, 0).is_err());
        let time = |key| config.time(key, Duration::ZERO, Duration::ZERO, Duration::MAX);
        assert_eq!(time("e").unwrap(), Duration::from_millis(1500));
        assert_eq!(time("f").unwrap(), Duration::from_mins(2));
        assert_eq!(time("absent").unwrap(), Duration::ZERO);
        assert!(time("g").is_err());
    }

    #[test]
    fn main_cf_is_evaluated_and_has_words_of_its_own() {
        let mut main = Dictionary::new(Release::V3_7, b"/etc/postfix");
        main.load(
            b"d = x\nlg_query = $d $$1\nlg_expansion_limit = 1x\nlg_flag = No\n",
            "main.cf",
            &mut Vec::new(),
        )
        .unwrap();
        let config = Config::main_cf(b"lg", Arc::new(main));
        assert_eq!(config.text("query", "", 0, 0).unwrap(), b"x $1");
        assert_eq!(config.optional_boolean("flag").unwrap(), Some(false));
        assert_eq!(config.optional_boolean("other").unwrap(), None);
        assert_eq!(
            text_of(config.int("expansion_limit", 0, 0, 0)),
            (
                "bad numerical configuration: lg_expansion_limit = 1x".to_owned(),
                "/etc/postfix/main.cf: lg_expansion_limit: expecting a whole number".to_owned()
            )
        );
        assert_eq!(
            text_of(config.text("dbpath", "", 1, 0)).0,
            "bad string length 0 < 1: lg_dbpath = "
        );
    }

    #[test]
    fn statements() {
        let make = |text| statement(&file(text), true).map(|made| String::from_utf8(made).unwrap());
        assert_eq!(make("query = a %s\ntable = t\n").unwrap(), "a %s");
        assert_eq!(make("select_function = f\n").unwrap(), "SELECT f('%s')");
        let old = "query =\ntable = t\nselect_field = v\nwhere_field = k\n";
        assert_eq!(make(old).unwrap(), "SELECT v FROM t WHERE k='%s' ");
        let more = format!("{old}additional_conditions = and x\n");
        assert_eq!(make(&more).unwrap(), "SELECT v FROM t WHERE k='%s' and x");
        assert_eq!(
            make("table = t\nwhere_field = k\n")
                .unwrap_err()
                .to_string(),
            "/t.cf: bad string length 0 < 1: select_field = "
        );
    }
}
