//! `postkeep proxymap …`: a client of the lookup table server for trying by hand.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use postkeep_client::Place;
use postkeep_client::proxymap::{self as client, Client, Dialect, Policy, Settings};
use postkeep_table::Flags;
use postkeep_wire::proxymap::{Function, Generation, Status};

use super::{Answer, finish, show_warnings, socket};
use crate::cli;
use crate::serve::Directory;

/// How long the service may take for an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Actions of `postkeep proxymap`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what a table is
    Open(Table),
    /// Print the value of a key, or keys and values for several
    Lookup(Keys),
    /// Store an entry, through the proxywrite service
    Update(Entry),
    /// Delete entries, through the proxywrite service
    Delete(Keys),
    /// Print all entries
    Sequence(Table),
}

/// Which table where.
#[derive(Args, Debug)]
pub(crate) struct Table {
    #[command(flatten)]
    place: cli::Place,
    /// The server does not greet its clients (Postfix 3.5 and older, postkeep_announce_protocol = no)
    #[arg(long)]
    no_greeting: bool,
    /// TYPE:NAME, or the name of a table of the directory of `postkeep serve`
    #[arg(value_name = "TABLE")]
    name: OsString,
}

/// A table and keys.
#[derive(Args, Debug)]
pub(crate) struct Keys {
    #[command(flatten)]
    table: Table,
    /// What to look for
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
}

/// A table and an entry.
#[derive(Args, Debug)]
pub(crate) struct Entry {
    #[command(flatten)]
    table: Table,
    /// What it will be found under
    key: OsString,
    /// What will be found
    value: OsString,
}

/// Runs an action.
pub(crate) fn run(command: &Command) -> ExitCode {
    show_warnings();
    finish(match command {
        Command::Open(table) => open(table),
        Command::Lookup(keys) => lookup(keys),
        Command::Update(entry) => update(entry),
        Command::Delete(keys) => delete(keys),
        Command::Sequence(table) => sequence(table),
    })
}

/// An open table at a server.
struct Opened {
    client: Client,
    name: OsString,
    /// As the server told them.
    flags: u32,
    /// Those of a request.
    request: u32,
}

impl Opened {
    fn new(table: &Table, service: &str) -> Result<Self, String> {
        let name = full_name(table)?;
        let path = socket(&table.place, service)?;
        let settings = Settings {
            dialect: Dialect {
                announced: !table.no_greeting,
                ..Dialect::DETECT
            },
            limit: LIMIT,
            policy: Policy::BOUNDED,
            ..Settings::new(Place::Path(path), service)
        };
        let patience = Instant::now() + newcomer_patience(table, &name);
        let (client, flags) = loop {
            let mut client = Client::new(settings.clone());
            match client.open(name.as_bytes(), 0) {
                Ok(answer) => break (client, answer.flags.unwrap_or(0)),
                Err(client::Error::Denied(_)) if Instant::now() < patience => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        let request = match client.generation() {
            // The client sends back what the server told it.
            Some(Generation::Two) => flags | Flags::LOCK.bits(),
            Some(Generation::One) | None => (Flags::LOCK | Flags::UTF8_REQUEST).bits(),
        };
        Ok(Self {
            client,
            name,
            flags,
            request,
        })
    }

    /// Whether there is something in the answer.
    fn judge(
        &self,
        answer: Result<client::Answer, client::Error>,
    ) -> Result<Option<client::Answer>, String> {
        let answer = answer.map_err(|error| error.to_string())?;
        let name = self.name.display();
        match answer.status {
            Status::Ok => Ok(Some(answer)),
            Status::NoKey => Ok(None),
            Status::Retry => Err(format!(
                "{name} is not available now (the log of the service says why)"
            )),
            Status::Config => Err(format!(
                "{name} cannot do that (the log of the service says why)"
            )),
            Status::Bad | Status::Deny => Err(format!("{name}: the service refuses")),
        }
    }
}

/// How long a table may be unknown to the service: one whose file has only just been made is approved when
/// `postkeep serve` has noticed it, which takes it about a second.
fn newcomer_patience(table: &Table, name: &OsStr) -> Duration {
    let short = !table.name.as_bytes().contains(&b':');
    let path = name.as_bytes().strip_prefix(b"lmdb:").map(|path| {
        let mut file = OsStr::from_bytes(path).to_owned();
        file.push(".lmdb");
        file
    });
    if short && path.is_some_and(|path| Path::new(&path).exists()) {
        Duration::from_secs(3)
    } else {
        Duration::ZERO
    }
}

/// `TYPE:NAME` of what was written on the command line.
fn full_name(table: &Table) -> Result<OsString, String> {
    let bytes = table.name.as_bytes();
    let bytes = bytes.strip_prefix(b"proxy:").unwrap_or(bytes);
    if bytes.contains(&b':') {
        return Ok(OsStr::from_bytes(bytes).to_owned());
    }
    let Some(name) = table.name.to_str() else {
        return Err("the name of a table of the directory is UTF-8".to_owned());
    };
    Ok(Directory::choose(table.place.directory.as_deref())?.table(name))
}

fn print(parts: &[&[u8]]) -> Result<(), String> {
    let mut line = parts.join(&b'\t');
    line.push(b'\n');
    io::stdout()
        .write_all(&line)
        .map_err(|error| format!("standard output: {error}"))
}

fn open(table: &Table) -> Result<Answer, String> {
    let opened = Opened::new(table, "proxymap")?;
    let flags = Flags::from_bits_retain(opened.flags).log_form().to_string();
    print(&[opened.name.as_bytes(), flags.as_bytes()])?;
    Ok(Answer::Yes)
}

fn lookup(keys: &Keys) -> Result<Answer, String> {
    let mut opened = Opened::new(&keys.table, "proxymap")?;
    let mut outcome = Answer::Yes;
    for key in &keys.keys {
        let answer =
            opened
                .client
                .lookup(opened.name.as_bytes(), 0, opened.request, key.as_bytes());
        match opened.judge(answer)? {
            Some(answer) if keys.keys.len() == 1 => print(&[&answer.value])?,
            Some(answer) => print(&[key.as_bytes(), &answer.value])?,
            None => outcome = Answer::No,
        }
    }
    Ok(outcome)
}

fn update(entry: &Entry) -> Result<Answer, String> {
    let mut opened = Opened::new(&entry.table, "proxywrite")?;
    let flags = opened.request | (Flags::DUP_REPLACE | Flags::SYNC_UPDATE).bits();
    let answer = opened.client.update(
        opened.name.as_bytes(),
        0,
        flags,
        entry.key.as_bytes(),
        entry.value.as_bytes(),
    );
    Ok(match opened.judge(answer)? {
        Some(_) => Answer::Yes,
        None => Answer::No,
    })
}

fn delete(keys: &Keys) -> Result<Answer, String> {
    let mut opened = Opened::new(&keys.table, "proxywrite")?;
    let flags = opened.request | Flags::SYNC_UPDATE.bits();
    let mut outcome = Answer::Yes;
    for key in &keys.keys {
        let answer = opened
            .client
            .delete(opened.name.as_bytes(), 0, flags, key.as_bytes());
        if opened.judge(answer)?.is_none() {
            outcome = Answer::No;
        }
    }
    Ok(outcome)
}

fn sequence(table: &Table) -> Result<Answer, String> {
    let mut opened = Opened::new(table, "proxymap")?;
    let mut function = Function::First;
    loop {
        let answer = opened
            .client
            .sequence(opened.name.as_bytes(), 0, opened.request, function);
        let Some(answer) = opened.judge(answer)? else {
            return Ok(Answer::Yes);
        };
        print(&[&answer.key, &answer.value])?;
        function = Function::Next;
    }
}
