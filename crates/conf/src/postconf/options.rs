//! The options of postconf, and which of them go together.

use super::{Fatal, Output};
use crate::text::{display, split_list};

/// Options that take an argument have a colon after them.
const KNOWN: &[u8] = b"aAbc:C:deEfFhHlmMno:pPtT:vxX#";

/// Options in the order in which messages name them.
const ORDER: &[u8] = b"aAbCdefFhHlmMnopPtTxX#";

/// The first are the major modes; of each set one may be given.
const EXCLUSIVE: [&[u8]; 6] = [
    b"aAblmtpMFPT",
    b"den#X",
    b"fe#X",
    b"xe#X",
    b"ode#X",
    b"he#XH",
];

/// What may be given together with an option.
const COMPATIBLE: [(u8, &[u8]); 12] = [
    (b'a', b""),
    (b'A', b""),
    (b'b', b""),
    (b'l', b""),
    (b'm', b""),
    (b'T', b""),
    (b't', b""),
    (b'p', b"eX#fhCxdnoH"),
    (b'M', b"eX#fox"),
    (b'F', b"efhoxH"),
    (b'P', b"eXfhoxH"),
    (b'C', b"pdn"),
];

/// What is known to exist in the reference and is not done here.
const UNSUPPORTED: &[u8] = b"aAblmtTFPeX#";

const USAGE: &str = " [-a (server SASL types)] [-A (client SASL types)] [-b (bounce templates)] [-c config_dir] \
    [-c param_class] [-d (parameter defaults)] [-e (edit configuration)] [-f (fold lines)] [-F (master.cf fields)] \
    [-h (no names)] [-H (no values)] [-l (lock types)] [-m (map types)] [-M (master.cf)] \
    [-n (non-default parameters)] [-o name=value (override parameter value)] [-p (main.cf, default)] \
    [-P (master.cf parameters)] [-t (bounce templates)] \
    [-T compile-version|run-version|public-key-algorithms] [-v (verbose)] [-x (expand parameter values)] \
    [-X (exclude)] [-# (comment-out)] [name...]";

/// Kinds of parameters that `-C` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Classes {
    pub built_in: bool,
    pub service: bool,
    pub user: bool,
}

/// The options given, and what they were given.
pub(super) struct Options {
    given: Vec<u8>,
    pub directory: Option<Vec<u8>>,
    pub classes: Classes,
    pub overrides: Vec<Vec<u8>>,
    pub names: Vec<Vec<u8>>,
}

impl Options {
    /// An option was given, or is implied.
    pub(super) fn has(&self, option: u8) -> bool {
        self.given.contains(&option)
    }

    pub(super) fn parse(
        name: &[u8],
        arguments: &[Vec<u8>],
        output: &mut Output,
    ) -> Result<Self, Fatal> {
        let mut options = Self {
            given: Vec::new(),
            directory: None,
            classes: Classes {
                built_in: true,
                service: true,
                user: true,
            },
            overrides: Vec::new(),
            names: Vec::new(),
        };
        let usage = || Fatal(format!("usage: {}{USAGE}", display(name)));
        let mut rest = arguments.iter();
        while let Some(argument) = rest.as_slice().first() {
            if argument.first() != Some(&b'-') || argument.len() < 2 {
                break;
            }
            rest.next();
            if argument == b"--" {
                break;
            }
            let mut letters = &argument[1..];
            while let Some((&letter, after)) = letters.split_first() {
                letters = after;
                let Some(at) = KNOWN
                    .iter()
                    .position(|&known| known == letter && letter != b':')
                else {
                    output.complain(&format!("invalid option -- '{}'", char::from(letter)));
                    return Err(usage());
                };
                if letter == b'E' {
                    return Err(usage());
                }
                let mut value = None;
                if KNOWN.get(at + 1) == Some(&b':') {
                    let given = if letters.is_empty() {
                        rest.next().map(Vec::as_slice)
                    } else {
                        Some(letters)
                    };
                    let Some(given) = given else {
                        output.complain(&format!(
                            "option requires an argument -- '{}'",
                            char::from(letter)
                        ));
                        return Err(usage());
                    };
                    value = Some(given.to_vec());
                    letters = &[];
                }
                options.take(letter, value.unwrap_or_default())?;
            }
        }
        options.names = rest.cloned().collect();
        options.check()?;
        Ok(options)
    }

    fn take(&mut self, letter: u8, value: Vec<u8>) -> Result<(), Fatal> {
        match letter {
            b'c' => self.directory = Some(value),
            b'v' => {}
            b'C' => {
                self.classes = parse_classes(&value)?;
                self.given.push(letter);
            }
            b'o' => {
                self.overrides.push(value);
                self.given.push(letter);
            }
            _ => self.given.push(letter),
        }
        Ok(())
    }

    /// Makes the mode explicit and looks for options that exclude each other.
    fn check(&mut self) -> Result<(), Fatal> {
        let modes = EXCLUSIVE[0];
        if !modes.iter().any(|&mode| self.has(mode)) {
            self.given.push(b'p');
        }
        let about_files = b"pMFP".iter().any(|&mode| self.has(mode));
        if about_files && self.names.first().is_some_and(|name| name.contains(&b'=')) {
            self.given.push(b'e');
        }
        for set in EXCLUSIVE {
            let given = self.named(|option| set.contains(&option));
            if given.len() > 2 {
                return Err(Fatal(format!("specify one of {given}")));
            }
        }
        for (option, others) in COMPATIBLE {
            let excess = self.named(|other| other != option && !others.contains(&other));
            if self.has(option) && !excess.is_empty() {
                let option = char::from(option);
                return Err(Fatal(format!(
                    "with option -{option}, do not specify {excess}"
                )));
            }
        }
        if self.has(b'e') && self.names.is_empty() {
            return Err(Fatal("-e requires name=value argument".to_owned()));
        }
        match UNSUPPORTED.iter().find(|&&option| self.has(option)) {
            Some(&option) => Err(Fatal(format!(
                "option -{} is not supported by this program",
                char::from(option)
            ))),
            None => Ok(()),
        }
    }

    /// The given options that `choose` wants, as messages name them.
    fn named(&self, choose: impl Fn(u8) -> bool) -> String {
        let chosen = ORDER
            .iter()
            .filter(|&&option| self.has(option) && choose(option));
        let words: Vec<_> = chosen
            .map(|&option| format!("-{}", char::from(option)))
            .collect();
        words.join(" ")
    }
}

fn parse_classes(value: &[u8]) -> Result<Classes, Fatal> {
    let mut classes = Classes {
        built_in: false,
        service: false,
        user: false,
    };
    for word in split_list(value) {
        let lower = word.to_ascii_lowercase();
        let all = lower == b"all";
        if !all && !matches!(&lower[..], b"builtin" | b"service" | b"user") {
            return Err(Fatal(format!(
                "unknown -C option value \"{}\" in \"{}\"",
                display(word),
                display(value)
            )));
        }
        classes.built_in |= all || lower == b"builtin";
        classes.service |= all || lower == b"service";
        classes.user |= all || lower == b"user";
    }
    Ok(classes)
}
