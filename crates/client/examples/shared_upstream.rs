//! Programs that do not know each other, and talk to one mail server over as few connections as they can.
//!
//! ```console
//! $ cargo run --example shared_upstream -- /var/spool/postfix/private/scache mail.example.org:25
//! made a connection: 250 mail.example.org
//! $ cargo run --example shared_upstream -- /var/spool/postfix/private/scache mail.example.org:25
//! used one again: 250 2.0.0 Ok
//! ```
//!
//! The second run, within the time to live, goes on with the connection of the first, which has ended. How to share
//! connections in your own program:
//!
//! 1. Put into the **label** all that two users must agree on. Here: what the service is, and the address.
//! 2. Put into the **property** what the next user has to know. Here: nothing; the greeting is over on any saved connection.
//! 3. **Find** first; if there is none, or it turns out to be dead, connect.
//! 4. **Save** only a connection on which nothing is owed: all answers read. On any error close it instead.
//! 5. A cache that is not there is no reason not to work.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use postkeep_client::Place;
use postkeep_client::scache::{Client, Settings};

/// How long a connection that nobody uses is kept, in seconds.
const TIME_TO_LIVE: i32 = 30;

/// How long to wait for the server.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [cache, server] = &words[..] else {
        eprintln!("usage: shared_upstream CACHE_SOCKET HOST:PORT");
        return ExitCode::FAILURE;
    };
    match work(cache, server) {
        Ok(what) => {
            println!("{what}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shared_upstream: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(cache: &str, server: &str) -> Result<String, Box<dyn Error>> {
    let mut cache = Client::new(Settings::new(Place::Path(cache.into())));
    // The first line names the service: with "smtp" the cache says QUIT when nobody wants the connection any more.
    let label = format!("smtp\n{server}\nno TLS, no login\n");

    // A dead connection is as good as none. It has to be found out before anything is done that must not be done twice.
    let mut found = None;
    while let Ok(Some(session)) = cache.find_endpoint(label.as_bytes()) {
        let connection = TcpStream::from(session.descriptor);
        // Whoever had it before may have left it either way.
        connection.set_nonblocking(false)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        if let Ok(answer) = ask(&connection, "RSET")
            && answer.starts_with('2')
        {
            found = Some((connection, format!("used one again: {answer}")));
            break;
        }
    }
    let (connection, what) = match found {
        Some(found) => found,
        None => connect(server)?,
    };

    // Here the work would be done: all that this program wants of the server.
    ask(&connection, "NOOP")?;

    // It closes our copy whether or not the cache takes the connection.
    let _ = cache.save_endpoint(TIME_TO_LIVE, label.as_bytes(), b"", connection.into());
    Ok(what)
}

fn connect(server: &str) -> Result<(TcpStream, String), Box<dyn Error>> {
    let connection = TcpStream::connect(server)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let greeting = answer(&connection)?;
    if !greeting.starts_with('2') {
        return Err(greeting.into());
    }
    let answer = ask(&connection, "HELO client.example.org")?;
    Ok((connection, format!("made a connection: {answer}")))
}

fn ask(connection: &TcpStream, command: &str) -> Result<String, Box<dyn Error>> {
    let mut writer = connection;
    writer.write_all(format!("{command}\r\n").as_bytes())?;
    answer(connection)
}

/// One line. Nothing that comes after it may be left in a buffer here: the next user would miss it. A server that speaks
/// only when it is asked has sent no more.
fn answer(connection: &TcpStream) -> Result<String, Box<dyn Error>> {
    let mut line = String::new();
    let mut reader = BufReader::new(connection);
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err("the server has closed the connection".into());
    }
    if !reader.buffer().is_empty() {
        return Err("the server says more than it was asked for".into());
    }
    Ok(line.trim_end().to_owned())
}
