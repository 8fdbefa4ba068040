//! Asks running services for their pages.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use postkeep_sys::error_text;

use super::text::Numbers;
use crate::serve::Directory;

/// How long a service may take for everything.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest response that is read, in bytes.
const MOST: u64 = 16 << 20;
/// How the names of sockets end.
const SUFFIX: &str = ".metrics";
/// Where Postfix is, on most systems.
const POSTFIX: &str = "/var/spool/postfix";

/// Where a service hands out its metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A UNIX-domain socket.
    Unix(PathBuf),
    /// A port of this machine.
    Inet(SocketAddr),
}

impl Source {
    /// From `unix:PATH` or `inet:ADDRESS:PORT`.
    ///
    /// # Errors
    /// What was expected.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bad = || "specify unix:PATH or inet:ADDRESS:PORT".to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("inet:").ok_or_else(bad)?;
        let place = place
            .strip_prefix("localhost:")
            .map_or_else(|| place.to_owned(), |port| format!("127.0.0.1:{port}"));
        place.parse().map(Self::Inet).map_err(|_| bad())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet(address) => write!(f, "inet:{address}"),
        }
    }
}

/// What came of asking one service.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) source: Source,
    /// When it was asked.
    pub(crate) at: Instant,
    /// Its numbers, or why there are none.
    pub(crate) numbers: Result<Numbers, String>,
}

/// The sockets of the services of a directory: of `postkeep serve`, or the queue directory of a Postfix. Without one, the
/// default directory of `postkeep serve`, else that of the Postfix of this machine.
///
/// # Errors
/// There are none, or they cannot be looked for.
pub(crate) fn sources(directory: Option<&Path>) -> Result<Vec<Source>, String> {
    let mut places = vec![];
    if let Some(path) = directory {
        places.extend([path.join("queue"), path.to_owned()]);
    } else {
        places.extend(Directory::choose(None).map(|directory| directory.queue()));
        places.push(POSTFIX.into());
    }
    let mut reasons = Vec::new();
    for place in &places {
        let private = place.join("private");
        match sockets(&private) {
            Ok(found) if !found.is_empty() => return Ok(found),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                reasons.push(format!("{}: {}", private.display(), error_text(&error)));
            }
            _ => reasons.push(format!("{}: no *{SUFFIX} there", private.display())),
        }
    }
    Err(format!(
        "no service hands out metrics ({}); postkeep_metrics_address says where they do",
        reasons.join("; ")
    ))
}

fn sockets(private: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(private)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_string_lossy().ends_with(SUFFIX);
        if is_ours && entry.file_type()?.is_socket() {
            found.push(Source::Unix(entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Asks all of them at the same time; what one of them does keeps nobody longer than a few seconds.
pub(crate) fn read_all(sources: &[Source]) -> Vec<Reading> {
    let at = Instant::now();
    let asked: Vec<_> = sources
        .iter()
        .map(|source| {
            let (sender, receiver) = mpsc::channel();
            let place = source.clone();
            // To connect to a socket whose backlog is full has no time limit: such a thread is left behind.
            let started = thread::Builder::new().spawn(move || {
                let _ = sender.send(read(&place));
            });
            (source, started.map(|_| receiver))
        })
        .collect();
    asked
        .into_iter()
        .map(|(source, receiver)| {
            let patience = (at + PATIENCE).saturating_duration_since(Instant::now());
            let numbers = receiver
                .map_err(|error| error_text(&error))
                .and_then(|receiver| {
                    receiver
                        .recv_timeout(patience)
                        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
                });
            Reading {
                source: source.clone(),
                at,
                numbers,
            }
        })
        .collect()
}

fn read(source: &Source) -> Result<Numbers, String> {
    let response = match source {
        Source::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            ask(stream)
        }),
        Source::Inet(address) => TcpStream::connect_timeout(address, PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            ask(stream)
        }),
    };
    let response = response.map_err(|error| error_text(&error))?;
    let (head, page) = response
        .split_once("\r\n\r\n")
        .ok_or("the answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the answer is {status:?}"));
    }
    Numbers::parse(page).map_err(|error| error.to_string())
}

fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.take(MOST).read_to_string(&mut response)?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sources_are_written_as_in_the_configuration() {
        let address = "127.0.0.1:9154".parse().unwrap();
        assert_eq!(
            Source::parse("inet:localhost:9154"),
            Ok(Source::Inet(address))
        );
        assert_eq!(
            Source::parse("unix:/a/b").map(|source| source.to_string()),
            Ok("unix:/a/b".to_owned())
        );
        assert!(Source::parse("inet:mail.example:9154").is_err());
        assert!(Source::parse("/a/b").is_err());
    }

    #[test]
    fn sockets_are_found_in_either_kind_of_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let reason = sources(Some(scratch.path())).unwrap_err();
        assert!(reason.contains("postkeep_metrics_address"), "{reason}");
        let theirs = scratch.path().join("private");
        fs::create_dir(&theirs).unwrap();
        let _other = UnixListener::bind(theirs.join("scache")).unwrap();
        fs::write(theirs.join("b.metrics"), "").unwrap();
        assert!(sources(Some(scratch.path())).is_err());
        let path = theirs.join("scache.metrics");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(
            sources(Some(scratch.path())),
            Ok(vec![Source::Unix(path.clone())])
        );
        drop(listener);
        let readings = read_all(&[Source::Unix(path)]);
        assert_eq!(readings[0].numbers, Err("Connection refused".to_owned()));
    }

    #[test]
    fn an_answer_that_is_no_page_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let answer = |answer: &'static str| {
            let path = scratch.path().join("x.metrics");
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 512];
                let _ = stream.read(&mut head).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let reading = read_all(&[Source::Unix(path)]).remove(0);
            server.join().unwrap();
            reading.numbers
        };
        assert!(answer("HTTP/1.1 200 OK\r\n\r\na 1\n").is_ok());
        for bad in [
            "",
            "a 1\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\na\n",
        ] {
            assert!(answer(bad).is_err(), "{bad}");
        }
    }
}
