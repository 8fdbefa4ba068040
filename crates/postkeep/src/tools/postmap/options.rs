//! The command line of postmap(1) and postalias(1).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use log::warn;
use postkeep_table::Flags;

use super::Fatal;

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Postmap,
    Postalias,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Add,
    Query(Vec<u8>),
    Delete(Vec<u8>),
    List,
}

/// The command line, understood.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command"
)]
pub(super) struct Options {
    pub action: Action,
    pub flags: Flags,
    /// The build runs with the identity of the source's owner.
    pub as_owner: bool,
    /// The table gets the mode of the source.
    pub save_mode: bool,
    pub headers: bool,
    pub bodies: bool,
    pub mime: bool,
    pub force_utf8: bool,
    pub json: bool,
    pub config_directory: Option<OsString>,
    pub verbosity: u32,
    pub operands: Vec<OsString>,
}

impl Program {
    fn letters(self) -> &'static [u8] {
        match self {
            Self::Postmap => b"bc:d:fFhijmnNopq:rsuUvw",
            Self::Postalias => b"Nc:d:fijnopq:rsuvw",
        }
    }
}

/// The text that a wrong command line ends with.
pub(super) fn usage(program: Program) -> Fatal {
    Fatal(
        match program {
            Program::Postmap => {
                "usage: postmap [-bfFhimnNoprsuUvw] [-c config_dir] [-d key] [-q key] [map_type:]file..."
            }
            Program::Postalias => {
                "usage: postalias [-Nfinoprsuvw] [-c config_dir] [-d key] [-q key] [map_type:]file..."
            }
        }
        .to_owned(),
    )
}

/// Reads options up to the first operand.
///
/// `name` is what the program is called in the complaints that come straight from getopt(3).
pub(super) fn parse(
    program: Program,
    name: &str,
    arguments: &[OsString],
) -> Result<Options, Fatal> {
    let mut options = Options {
        action: Action::Create,
        flags: Flags::DUP_WARN | Flags::FOLD_FIX | Flags::UTF8_REQUEST,
        as_owner: true,
        save_mode: true,
        headers: false,
        bodies: false,
        mime: false,
        force_utf8: false,
        json: false,
        config_directory: None,
        verbosity: 0,
        operands: Vec::new(),
    };
    let mut add = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.as_slice().first() {
        let mut letters = match argument.as_bytes() {
            b"--" => {
                rest.next();
                break;
            }
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => break,
        };
        rest.next();
        while let [letter, others @ ..] = letters {
            letters = others;
            let known = program.letters();
            let place = known
                .iter()
                .position(|known| known == letter && *letter != b':');
            let Some(place) = place else {
                complain(name, "invalid option", *letter);
                return Err(usage(program));
            };
            let value = if known.get(place + 1) == Some(&b':') {
                let value = if letters.is_empty() {
                    rest.next().cloned()
                } else {
                    Some(OsString::from_vec(letters.to_vec()))
                };
                letters = &[];
                let Some(value) = value else {
                    complain(name, "option requires an argument", *letter);
                    return Err(usage(program));
                };
                value
            } else {
                OsString::new()
            };
            options.take(*letter, value, &mut add)?;
        }
    }
    options.operands = rest.cloned().collect();
    if add && options.action == Action::Create {
        options.action = Action::Add;
    }
    if options.json && !matches!(options.action, Action::Query(_) | Action::List) {
        return Err(Fatal("option -j requires -q or -s".to_owned()));
    }
    Ok(options)
}

/// What getopt(3) writes: to standard error only, and in no log.
fn complain(name: &str, what: &str, letter: u8) {
    eprintln!("{name}: {what} -- '{}'", char::from(letter));
}

impl Options {
    fn take(&mut self, letter: u8, value: OsString, add: &mut bool) -> Result<(), Fatal> {
        let duplicates = Flags::DUP_WARN | Flags::DUP_IGNORE | Flags::DUP_REPLACE;
        match letter {
            b'b' => self.bodies = true,
            b'c' => self.config_directory = Some(value),
            b'd' | b'q' => {
                if self.action != Action::Create {
                    return Err(Fatal("specify only one of -s -q or -d".to_owned()));
                }
                let key = value.into_vec();
                self.action = if letter == b'd' {
                    Action::Delete(key)
                } else {
                    Action::Query(key)
                };
            }
            b'f' => self.flags.remove(Flags::FOLD_FIX),
            b'F' => self.flags.insert(Flags::RHS_IS_FILE),
            b'h' => self.headers = true,
            b'i' => *add = true,
            b'j' => self.json = true,
            b'm' => self.mime = true,
            b'n' => self.choose(Flags::TRY0NULL, Flags::TRY0NULL | Flags::TRY1NULL),
            b'N' => self.choose(Flags::TRY1NULL, Flags::TRY0NULL | Flags::TRY1NULL),
            b'o' => self.as_owner = false,
            b'p' => self.save_mode = false,
            b'r' => self.choose(Flags::DUP_REPLACE, duplicates),
            b's' => {
                if matches!(self.action, Action::Query(_) | Action::Delete(_)) {
                    return Err(Fatal("specify only one of -s or -q or -d".to_owned()));
                }
                self.action = Action::List;
            }
            b'u' => self.flags.remove(Flags::UTF8_REQUEST),
            b'U' => self.force_utf8 = true,
            b'v' => self.verbosity += 1,
            b'w' => self.choose(Flags::DUP_IGNORE, duplicates),
            _ => {}
        }
        Ok(())
    }

    fn choose(&mut self, flag: Flags, among: Flags) {
        self.flags.remove(among);
        self.flags.insert(flag);
    }

    /// The options about messages go with one action only. Called when main.cf has been read.
    pub fn check_message_options(&mut self) -> Result<(), Fatal> {
        let from_input = matches!(&self.action, Action::Query(key) if key == b"-");
        if !from_input && (self.headers || self.bodies || self.mime) {
            return Err(Fatal("specify -b -h or -m only with \"-q -\"".to_owned()));
        }
        if self.mime && !self.headers && !self.bodies {
            warn!("ignoring -m option without -b or -h");
        }
        if (self.headers || self.bodies) && !self.force_utf8 {
            self.flags.remove(Flags::UTF8_REQUEST);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, String> {
        let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        parse(Program::Postmap, "postmap", &words).map_err(|Fatal(text)| text)
    }

    #[test]
    fn options_may_be_grouped_and_end_at_the_first_operand() {
        let options = read("-rfqkey t -s").unwrap();
        assert_eq!(options.action, Action::Query(b"key".to_vec()));
        assert_eq!(options.flags, Flags::DUP_REPLACE | Flags::UTF8_REQUEST);
        assert_eq!(options.operands, ["t", "-s"]);
        assert_eq!(
            read("-q -- t").unwrap().action,
            Action::Query(b"--".to_vec())
        );
        assert_eq!(read("-s -- -t").unwrap().operands, ["-t"]);
        assert_eq!(read("-").unwrap().operands, ["-"]);
    }

    #[test]
    fn the_later_of_two_wins() {
        assert_eq!(
            read("-nN t").unwrap().flags & (Flags::TRY0NULL | Flags::TRY1NULL),
            Flags::TRY1NULL
        );
        assert_eq!(
            read("-rw t").unwrap().flags & (Flags::DUP_REPLACE | Flags::DUP_IGNORE),
            Flags::DUP_IGNORE
        );
    }

    #[test]
    fn actions_exclude_each_other() {
        assert_eq!(
            read("-q a -d b t").unwrap_err(),
            "specify only one of -s -q or -d"
        );
        assert_eq!(
            read("-s -q a t").unwrap_err(),
            "specify only one of -s -q or -d"
        );
        assert_eq!(
            read("-q a -s t").unwrap_err(),
            "specify only one of -s or -q or -d"
        );
        assert_eq!(read("-s -s t").unwrap().action, Action::List);
        assert_eq!(read("-i -s t").unwrap().action, Action::List);
        assert_eq!(read("-i t").unwrap().action, Action::Add);
        assert_eq!(read("-j t").unwrap_err(), "option -j requires -q or -s");
        assert!(read("-q").unwrap_err().starts_with("usage: postmap ["));
        assert!(read("-Z").unwrap_err().starts_with("usage: postmap ["));
    }
}
