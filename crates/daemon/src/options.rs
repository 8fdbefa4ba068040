//! The options that master(8) gives its daemons, in their order.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Letters; a colon follows those that take an argument.
const OPTIONS: &[u8] = b"cdDi:lm:n:o:s:St:uvVz";

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// A letter that is known, with its argument.
    Known(u8, OsString),
    /// A letter that is not known, or lacks its argument: nothing after it has been looked at.
    Invalid(u8),
}

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    pub(crate) options: Vec<Given>,
    pub(crate) arguments: Vec<OsString>,
}

/// Takes the words after `argv[0]` apart, as getopt(3) does when told to stop at the first argument.
pub(crate) fn parse(words: &[OsString]) -> CommandLine {
    let mut line = CommandLine::default();
    let mut words = words.iter();
    while let Some(word) = words.clone().next() {
        let bytes = word.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            break;
        }
        words.next();
        if bytes == b"--" {
            break;
        }
        let mut letters = &bytes[1..];
        while let [letter, rest @ ..] = letters {
            letters = rest;
            match takes_argument(*letter) {
                None => {
                    line.options.push(Given::Invalid(*letter));
                    return line;
                }
                Some(false) => line.options.push(Given::Known(*letter, OsString::new())),
                Some(true) => {
                    let argument = if rest.is_empty() {
                        words.next().cloned()
                    } else {
                        Some(OsStr::from_bytes(rest).to_owned())
                    };
                    let Some(argument) = argument else {
                        line.options.push(Given::Invalid(*letter));
                        return line;
                    };
                    line.options.push(Given::Known(*letter, argument));
                    letters = &[];
                }
            }
        }
    }
    line.arguments = words.cloned().collect();
    line
}

/// Whether the option has an argument; `None` for unknown letters.
fn takes_argument(letter: u8) -> Option<bool> {
    let at = OPTIONS
        .iter()
        .position(|&known| known == letter && known != b':')?;
    Some(OPTIONS.get(at + 1) == Some(&b':'))
}

/// The value of `-s`: a count of sockets, as atoi(3) reads it, above zero.
pub(crate) fn socket_count(text: &OsStr) -> Option<usize> {
    let text = text.as_bytes().trim_ascii_start();
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let count = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    (count > 0 && i32::try_from(count).is_ok()).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> CommandLine {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn known(letter: u8, argument: &str) -> Given {
        Given::Known(letter, argument.into())
    }

    #[test]
    fn as_master_writes_them() {
        let parsed = line(&[
            "-l",
            "-n",
            "svc",
            "-t",
            "unix",
            "-du",
            "-oa=b",
            "-o name = value",
            "arg",
            "-v",
        ]);
        assert_eq!(
            parsed.options,
            [
                known(b'l', ""),
                known(b'n', "svc"),
                known(b't', "unix"),
                known(b'd', ""),
                known(b'u', ""),
                known(b'o', "a=b"),
                known(b'o', " name = value"),
            ]
        );
        assert_eq!(parsed.arguments, ["arg", "-v"]);
    }

    #[test]
    fn faults_stop_the_parsing() {
        assert_eq!(line(&["-Q", "-l"]).options, [Given::Invalid(b'Q')]);
        assert_eq!(
            line(&["-l", "-n"]).options,
            [known(b'l', ""), Given::Invalid(b'n')]
        );
        assert_eq!(line(&["-:"]).options, [Given::Invalid(b':')]);
    }

    #[test]
    fn ends() {
        assert_eq!(line(&["--", "-l"]).arguments, ["-l"]);
        assert_eq!(line(&["-", "-l"]).arguments, ["-", "-l"]);
        assert_eq!(line(&["-v", "--", "x"]).arguments, ["x"]);
    }

    #[test]
    fn counts() {
        let count = |text: &str| socket_count(OsStr::new(text));
        assert_eq!(
            (count("2"), count(" +3x"), count("007")),
            (Some(2), Some(3), Some(7))
        );
        for text in ["0", "-1", "", "x", "99999999999999999999"] {
            assert_eq!(count(text), None, "{text}");
        }
    }
}
