//! `postkeep scache …`: a client of the connection cache for trying by hand.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use postkeep_client::Place;
use postkeep_client::scache::{Answered, Connection, Error, Session, Settings};
use postkeep_sys::descriptor::{Inherited, set_nonblocking};
use postkeep_wire::diagnostics::Shown;
use postkeep_wire::scache::Status;

use super::{Answer, finish, show_warnings, socket};
use crate::cli;

/// As long as RFC 5321 has a client wait.
const GREETING_TIME: Duration = Duration::from_mins(5);
/// More bytes than this are no greeting.
const MOST_GREETING: usize = 64 * 1024;

/// Actions of `postkeep scache`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put an open connection into the cache
    SaveEndpoint(SaveEndpoint),
    /// Take the oldest connection with a label out of the cache
    #[command(after_help = AFTER_FIND)]
    FindEndpoint(Find),
    /// Bind a destination to an endpoint
    SaveDestination(SaveDestination),
    /// Take a connection to any endpoint of a destination out of the cache
    #[command(after_help = AFTER_FIND)]
    FindDestination(Find),
    /// Say whether the service is there
    Stat(Server),
}

const AFTER_FIND: &str = "\
A COMMAND gets the connection as its standard input and output. Without one, standard input is copied to the\n\
connection and the connection to standard output. Properties are printed to standard error.\n\
Exit status 1: there is no such connection.";

/// Which server.
#[derive(Args, Debug)]
pub(crate) struct Server {
    #[command(flatten)]
    place: cli::Place,
    /// The server does not greet its clients (Postfix 3.5 and older, postkeep_announce_protocol = no)
    #[arg(long)]
    no_greeting: bool,
}

/// What is saved with anything.
#[derive(Args, Debug)]
pub(crate) struct Saved {
    /// Seconds to live; the service takes no more than connection_cache_ttl_limit
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i32).range(1..))]
    ttl: i32,
    /// Text that comes back with the connection
    #[arg(long, value_name = "TEXT", default_value = "")]
    property: OsString,
}

/// Options of `save-endpoint`.
#[derive(Args, Debug)]
pub(crate) struct SaveEndpoint {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    saved: Saved,
    #[command(flatten)]
    source: Source,
    /// Wait for what the far end says first, as a mail server does, and print it
    ///
    /// The service drops a connection on which bytes come that nobody has asked for.
    #[arg(long, requires = "connect")]
    greeted: bool,
    /// Name of the endpoint
    label: OsString,
}

/// Where the connection is from.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// Make a new TCP connection
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// Use an inherited descriptor, which may be 0
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<RawFd>,
}

/// Options of `save-destination`.
#[derive(Args, Debug)]
pub(crate) struct SaveDestination {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    saved: Saved,
    /// Name of the destination
    label: OsString,
    /// Name of the endpoint
    endpoint: OsString,
}

/// Options of the find actions.
#[derive(Args, Debug)]
pub(crate) struct Find {
    #[command(flatten)]
    server: Server,
    /// Name of the endpoint or destination
    label: OsString,
    /// Program to hand the connection to, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs an action.
pub(crate) fn run(command: &Command) -> ExitCode {
    show_warnings();
    finish(match command {
        Command::SaveEndpoint(options) => save_endpoint(options),
        Command::SaveDestination(options) => save_destination(options),
        Command::FindEndpoint(options) => find(options, Connection::find_endpoint),
        Command::FindDestination(options) => find(options, Connection::find_destination),
        Command::Stat(server) => stat(server),
    })
}

fn settings(server: &Server) -> Result<Settings, String> {
    let path = socket(&server.place, "scache")?;
    Ok(Settings {
        announced: !server.no_greeting,
        ..Settings::new(Place::Path(path))
    })
}

/// Does something with the service, and once more if that goes away meanwhile: a process that is replaced drops
/// the clients that have not asked for anything yet, and its successor is there already.
fn attempt<T>(server: &Server, operation: impl Fn(Connection) -> Answered<T>) -> Result<T, String> {
    let settings = settings(server)?;
    let once = || Connection::open(&settings).and_then(&operation);
    match once() {
        Err(Error::Exchange { .. }) => once(),
        result => result,
    }
    .map(|(_, answer)| answer)
    .map_err(|error| error.to_string())
}

fn save_endpoint(options: &SaveEndpoint) -> Result<Answer, String> {
    // Inherited descriptors are told from our own before we open any.
    let mut inherited = Inherited::survey();
    let descriptor = match (&options.source.connect, options.source.fd) {
        (Some(target), _) => {
            let mut stream = TcpStream::connect(target)
                .map_err(|error| format!("connect to {target}: {error}"))?;
            if options.greeted {
                greeting(&mut stream, &mut io::stdout())
                    .map_err(|error| format!("greeting of {target}: {error}"))?;
            }
            stream.into()
        }
        (None, Some(number)) => inherited
            .take(number)
            .map_err(|error| format!("descriptor {number}: {error}"))?,
        (None, None) => return Err("a connection is needed: --connect or --fd".to_owned()),
    };
    let status = attempt(&options.server, |connection| {
        connection.save_endpoint(
            options.saved.ttl,
            options.label.as_bytes(),
            options.saved.property.as_bytes(),
            descriptor.as_fd(),
        )
    })?;
    saved(status)
}

/// Reads the lines that a mail server begins with, not a byte more, and shows them.
fn greeting(stream: &mut TcpStream, output: &mut impl Write) -> io::Result<()> {
    stream.set_read_timeout(Some(GREETING_TIME))?;
    let mut line = Vec::new();
    let mut length = 0;
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        length += 1;
        if length > MOST_GREETING {
            return Err(io::Error::other("it does not end"));
        }
        if byte[0] == b'\n' {
            output.write_all(&line)?;
            // All lines but the last have a hyphen behind the code.
            if line.get(3) != Some(&b'-') {
                break;
            }
            line.clear();
        }
    }
    output.flush()?;
    stream.set_read_timeout(None)
}

fn save_destination(options: &SaveDestination) -> Result<Answer, String> {
    let status = attempt(&options.server, |connection| {
        connection.save_destination(
            options.saved.ttl,
            options.label.as_bytes(),
            options.saved.property.as_bytes(),
            options.endpoint.as_bytes(),
        )
    })?;
    saved(status)
}

fn saved(status: Status) -> Result<Answer, String> {
    match status {
        Status::Ok => Ok(Answer::Yes),
        Status::Bad => Err("the service does not understand the request".to_owned()),
        Status::Fail => Err("the service could not take it".to_owned()),
    }
}

fn find(
    options: &Find,
    find: impl Fn(Connection, &[u8]) -> Answered<Option<Session>>,
) -> Result<Answer, String> {
    let label = options.label.as_bytes();
    let session = attempt(&options.server, |connection| find(connection, label))?;
    let Some(session) = session else {
        return Ok(Answer::No);
    };
    for (what, property) in [
        ("destination property", &session.destination_property),
        ("property", &session.endpoint_property),
    ] {
        if !property.is_empty() {
            let _ = writeln!(io::stderr(), "{what}: {}", Shown::new(property));
        }
    }
    // Whoever used the connection before may have left it in another mode.
    set_nonblocking(&session.descriptor, false).map_err(|error| format!("connection: {error}"))?;
    match options.command.split_first() {
        Some((program, arguments)) => hand_over(session.descriptor, program, arguments),
        None => pipe(session.descriptor).map_err(|error| format!("connection: {error}")),
    }
}

/// Becomes the program, which gets the connection as its standard input and output.
fn hand_over(
    connection: OwnedFd,
    program: &OsString,
    arguments: &[OsString],
) -> Result<Answer, String> {
    let output = connection
        .try_clone()
        .map_err(|error| format!("connection: {error}"))?;
    let error = process::Command::new(program)
        .args(arguments)
        .stdin(connection)
        .stdout(output)
        .exec();
    Err(format!("{}: {error}", program.display()))
}

/// Copies standard input to the connection, and the connection to standard output until it ends.
fn pipe(connection: OwnedFd) -> io::Result<Answer> {
    let mut from = File::from(connection.try_clone()?);
    // Any socket can be half-closed in this way; what is none says so, and needs nothing.
    let half = TcpStream::from(connection.try_clone()?);
    let mut to = File::from(connection);
    thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut to);
        let _ = half.shutdown(Shutdown::Write);
    });
    let mut output = io::stdout().lock();
    copy(&mut from, &mut output)?;
    Ok(Answer::Yes)
}

/// Copies until the end, each part as soon as it is there. `io::copy` would have the kernel splice: while that waits for the
/// connection it keeps the pipe at the other side locked, and who reads that does not get what is in it already.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut part = [0; 8192];
    loop {
        let length = match from.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&part[..length])?;
        to.flush()?;
    }
}

fn stat(server: &Server) -> Result<Answer, String> {
    let settings = settings(server)?;
    let path = settings.place.resolve();
    drop(Connection::open(&settings).map_err(|error| error.to_string())?);
    let what = if settings.announced {
        "is there and greets its clients"
    } else {
        "is there"
    };
    let _ = writeln!(
        io::stdout(),
        "{}: the connection cache {what}",
        path.display()
    );
    Ok(Answer::Yes)
}
