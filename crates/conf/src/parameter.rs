//! Typed parameters: what a program declares, and how it reads them.
//!
//! A read looks the name up, takes the default when it is not there and stores it under the name, so that what is
//! read later can refer to it, expands, converts, and checks the limits. A limit of zero is none.

use std::time::Duration;

use crate::dictionary::Dictionary;
use crate::error::Error;
use crate::sink::Sink;
use crate::text::{display, parse_number};

/// An integer of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Used when main.cf has none.
    pub default: i32,
    /// Least value; zero: no limit.
    pub min: i32,
    /// Greatest value; zero: no limit.
    pub max: i32,
}

/// An integer of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Used when main.cf has none.
    pub default: i64,
    /// Least value; zero: no limit.
    pub min: i64,
    /// Greatest value; zero: no limit.
    pub max: i64,
}

/// An integer of 32 bits whose default is an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NintParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Expanded when main.cf has none.
    pub default: &'a str,
    /// Least value; zero: no limit.
    pub min: i32,
    /// Greatest value; zero: no limit.
    pub max: i32,
}

/// `yes` or `no`, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoolParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Used when main.cf has none.
    pub default: bool,
}

/// `yes` or `no`, with a default that is an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NboolParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Expanded when main.cf has none.
    pub default: &'a str,
}

/// A length of time in whole seconds, written with a unit: `s`, `m`, `h`, `d`, `w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Expanded when main.cf has none; its first letter is the unit of values that have none.
    pub default: &'a str,
    /// Least value in seconds; zero: no limit.
    pub min: i32,
    /// Greatest value in seconds; zero: no limit.
    pub max: i32,
}

/// A text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Expanded when main.cf has none.
    pub default: &'a str,
    /// Least length of the expanded value in bytes; zero: no limit.
    pub min: usize,
    /// Greatest length in bytes; zero: no limit.
    pub max: usize,
}

/// A text that is not expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawParameter<'a> {
    /// Its name in main.cf.
    pub name: &'a str,
    /// Used when main.cf has none.
    pub default: &'a str,
    /// Least length in bytes; zero: no limit.
    pub min: usize,
    /// Greatest length in bytes; zero: no limit.
    pub max: usize,
}

/// Typed reads. Each may store the parameter's default.
///
/// # References
/// Postfix `src/global/mail_conf_int.c` and its neighbours.
impl Dictionary {
    /// Reads an integer.
    ///
    /// # Errors
    /// [`Error::Number`], [`Error::NumberBelow`], [`Error::NumberAbove`], or those of [`Self::expand`].
    pub fn int(&mut self, parameter: &IntParameter<'_>, sink: &mut dyn Sink) -> Result<i32, Error> {
        let IntParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        let value = if let Some(value) = self.evaluate(name, sink)? {
            convert_int(name, &value)?
        } else {
            self.set(name, default.to_string().as_bytes());
            default
        };
        check_number(name, value.into(), min.into(), max.into())?;
        Ok(value)
    }

    /// Reads an integer of 64 bits.
    ///
    /// # Errors
    /// As [`Self::int`].
    pub fn long(
        &mut self,
        parameter: &LongParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<i64, Error> {
        let LongParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        let value = if let Some(value) = self.evaluate(name, sink)? {
            convert_long(name, &value)?
        } else {
            self.set(name, default.to_string().as_bytes());
            default
        };
        check_number(name, value, min, max)?;
        Ok(value)
    }

    /// Reads an integer whose default is an expression.
    ///
    /// # Errors
    /// As [`Self::int`].
    pub fn nint(
        &mut self,
        parameter: &NintParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<i32, Error> {
        let NintParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        let value = convert_int(name, &self.value_or_default(name, default, sink)?)?;
        check_number(name, value.into(), min.into(), max.into())?;
        Ok(value)
    }

    /// Reads `yes` or `no`.
    ///
    /// # Errors
    /// [`Error::Boolean`], or those of [`Self::expand`].
    pub fn bool(
        &mut self,
        parameter: &BoolParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<bool, Error> {
        let BoolParameter { name, default } = *parameter;
        self.nbool(
            &NboolParameter {
                name,
                default: if default { "yes" } else { "no" },
            },
            sink,
        )
    }

    /// Reads `yes` or `no`, with a default that is an expression.
    ///
    /// # Errors
    /// As [`Self::bool`].
    pub fn nbool(
        &mut self,
        parameter: &NboolParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<bool, Error> {
        let NboolParameter { name, default } = *parameter;
        let value = self.value_or_default(name, default, sink)?;
        if value.eq_ignore_ascii_case(b"yes") {
            Ok(true)
        } else if value.eq_ignore_ascii_case(b"no") {
            Ok(false)
        } else {
            Err(Error::Boolean {
                name: name.to_owned(),
                value: display(&value).into_owned(),
            })
        }
    }

    /// Reads a length of time. What follows the unit letter is ignored.
    ///
    /// # Errors
    /// [`Error::Time`], [`Error::TimeBelow`], [`Error::TimeAbove`], [`Error::TimeUnit`], or those of
    /// [`Self::expand`].
    pub fn time(
        &mut self,
        parameter: &TimeParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Duration, Error> {
        let TimeParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        let unit = self
            .expand(default.as_bytes(), sink)?
            .into_iter()
            .find(u8::is_ascii_alphabetic)
            .ok_or_else(|| Error::TimeUnit {
                name: name.to_owned(),
                default: default.to_owned(),
            })?;
        let value = self.value_or_default(name, default, sink)?;
        let seconds = convert_time(&value, unit).ok_or_else(|| Error::Time {
            name: name.to_owned(),
            value: display(&value).into_owned(),
        })?;
        let value = i64::from(seconds);
        if min != 0 && value < i64::from(min) {
            return Err(Error::TimeBelow {
                name: name.to_owned(),
                value,
                limit: min.into(),
            });
        }
        if max != 0 && value > i64::from(max) {
            return Err(Error::TimeAbove {
                name: name.to_owned(),
                value,
                limit: max.into(),
            });
        }
        Ok(Duration::from_secs(seconds.into()))
    }

    /// Reads a text. A default is stored expanded.
    ///
    /// # Errors
    /// [`Error::TextBelow`], [`Error::TextAbove`], or those of [`Self::expand`].
    pub fn str(
        &mut self,
        parameter: &StrParameter<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Vec<u8>, Error> {
        let StrParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        let value = if let Some(value) = self.evaluate(name, sink)? {
            value
        } else {
            let value = self.expand(default.as_bytes(), sink)?;
            self.set(name, &value);
            value
        };
        let length = value.len();
        if min != 0 && length < min {
            return Err(Error::TextBelow {
                name: name.to_owned(),
                value: display(&value).into_owned(),
                length,
                limit: min,
            });
        }
        if max != 0 && length > max {
            return Err(Error::TextAbove {
                name: name.to_owned(),
                value: display(&value).into_owned(),
                length,
                limit: max,
            });
        }
        Ok(value)
    }

    /// Reads a text without expanding it.
    ///
    /// # Errors
    /// [`Error::RawBelow`], [`Error::RawAbove`].
    pub fn raw(&mut self, parameter: &RawParameter<'_>) -> Result<Vec<u8>, Error> {
        let RawParameter {
            name,
            default,
            min,
            max,
        } = *parameter;
        if self.value(name).is_none() {
            self.set(name, default.as_bytes());
        }
        let value = self.value(name).unwrap_or_default().to_vec();
        let length = value.len();
        if min != 0 && length < min {
            return Err(Error::RawBelow {
                name: name.to_owned(),
                value: display(&value).into_owned(),
                length,
                limit: min,
            });
        }
        if max != 0 && length > max {
            return Err(Error::RawAbove {
                name: name.to_owned(),
                value: display(&value).into_owned(),
                length,
                limit: max,
            });
        }
        Ok(value)
    }

    /// The expanded value; a default is stored as it is.
    fn value_or_default(
        &mut self,
        name: &str,
        default: &str,
        sink: &mut dyn Sink,
    ) -> Result<Vec<u8>, Error> {
        if let Some(value) = self.evaluate(name, sink)? {
            return Ok(value);
        }
        self.set(name, default.as_bytes());
        self.expand(default.as_bytes(), sink)
    }
}

fn bad_number(name: &str, value: &[u8]) -> Error {
    Error::Number {
        name: name.to_owned(),
        value: display(value).into_owned(),
    }
}

fn convert_long(name: &str, value: &[u8]) -> Result<i64, Error> {
    let number = parse_number(value);
    if value.is_empty() || number.end == 0 || number.end < value.len() || number.overflow {
        return Err(bad_number(name, value));
    }
    Ok(number.value)
}

fn convert_int(name: &str, value: &[u8]) -> Result<i32, Error> {
    i32::try_from(convert_long(name, value)?).map_err(|_| bad_number(name, value))
}

fn check_number(name: &str, value: i64, min: i64, max: i64) -> Result<(), Error> {
    if min != 0 && value < min {
        return Err(Error::NumberBelow {
            name: name.to_owned(),
            value,
            limit: min,
        });
    }
    if max != 0 && value > max {
        return Err(Error::NumberAbove {
            name: name.to_owned(),
            value,
            limit: max,
        });
    }
    Ok(())
}

/// Seconds, when the text is a number that fits, with a unit that is known.
pub(crate) fn convert_time(value: &[u8], default_unit: u8) -> Option<u32> {
    const GREATEST: u32 = i32::MAX.unsigned_abs();
    let number = parse_number(value);
    if value.is_empty() || number.overflow {
        return None;
    }
    let count = u32::try_from(number.value)
        .ok()
        .filter(|&count| count <= GREATEST)?;
    let unit = match value.get(number.end).copied().unwrap_or(default_unit) {
        b's' => return Some(count),
        b'm' => 60,
        b'h' => 60 * 60,
        b'd' => 24 * 60 * 60,
        b'w' => 7 * 24 * 60 * 60,
        _ => return None,
    };
    (count < GREATEST / unit).then(|| count * unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::Release;

    fn with(text: &str) -> Dictionary {
        let mut dictionary = Dictionary::new(Release::V3_7, b"/D");
        dictionary
            .load(text.as_bytes(), "F", &mut Vec::new())
            .unwrap();
        dictionary
    }

    const USE: IntParameter<'_> = IntParameter {
        name: "max_use",
        default: 100,
        min: 1,
        max: 0,
    };
    const IDLE: TimeParameter<'_> = TimeParameter {
        name: "max_idle",
        default: "100s",
        min: 1,
        max: 0,
    };

    #[test]
    fn defaults_are_stored() {
        let mut dictionary = with("");
        let sink = &mut Vec::new();
        assert_eq!(dictionary.int(&USE, sink), Ok(100));
        assert_eq!(dictionary.value("max_use"), Some(&b"100"[..]));
        let name = StrParameter {
            name: "a",
            default: "<$max_use>",
            min: 0,
            max: 0,
        };
        assert_eq!(dictionary.str(&name, sink), Ok(b"<100>".to_vec()));
        assert_eq!(dictionary.value("a"), Some(&b"<100>"[..]));
    }

    #[test]
    fn integers() {
        let read = |text: &str| {
            let mut dictionary = with(&format!("max_use = {text}\n"));
            dictionary
                .int(&USE, &mut Vec::new())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("010"), Ok(10));
        assert_eq!(read("+7"), Ok(7));
        assert_eq!(read("${{a}=={a}? 5}"), Ok(5));
        assert_eq!(
            read("0x1"),
            Err("bad numerical configuration: max_use = 0x1".to_owned())
        );
        assert_eq!(
            read("-0"),
            Err("invalid max_use parameter value 0 < 1".to_owned())
        );
        assert_eq!(
            read("2147483648"),
            Err("bad numerical configuration: max_use = 2147483648".to_owned())
        );
    }

    #[test]
    fn times() {
        let read = |text: &str| {
            let mut dictionary = with(&format!("max_idle = {text}\n"));
            let seconds = dictionary.time(&IDLE, &mut Vec::new());
            seconds
                .map(|time| time.as_secs())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("10ms"), Ok(600));
        assert_eq!(read("1h30m"), Ok(3600));
        assert_eq!(read("+5"), Ok(5));
        assert_eq!(read("2147483647"), Ok(2_147_483_647));
        assert_eq!(read("35791393m"), Ok(2_147_483_580));
        assert_eq!(
            read("35791394m"),
            Err("parameter max_idle: bad time value or unit: 35791394m".to_owned())
        );
        assert_eq!(read("m"), Err("invalid max_idle: 0 (min 1)".to_owned()));
    }

    #[test]
    fn unit_comes_from_the_expanded_default() {
        let parameter = TimeParameter {
            name: "t",
            default: "${stress?{10}:{300}}m",
            min: 0,
            max: 0,
        };
        assert_eq!(
            with("").time(&parameter, &mut Vec::new()),
            Ok(Duration::from_hours(5))
        );
        assert_eq!(
            with("t = 2").time(&parameter, &mut Vec::new()),
            Ok(Duration::from_mins(2))
        );
    }

    #[test]
    fn unexpanded_texts_stay_so() {
        let parameter = RawParameter {
            name: "r",
            default: "x",
            min: 1,
            max: 0,
        };
        assert_eq!(with("r = $a").raw(&parameter), Ok(b"$a".to_vec()));
        assert_eq!(
            with("r =").raw(&parameter).unwrap_err().to_string(),
            "bad string length (0 < 1): r = "
        );
    }
}
