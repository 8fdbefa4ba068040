//! What can be ordered at the sockets that hand out metrics: a table, or all of the process, to begin anew.
//!
//! Over UNIX-domain sockets only, and from root and the user of the process only, as the kernel tells who connects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use postkeep_sys::{effective, socket};

use crate::logging;
use crate::service::{Reloaded, Service};

/// How long whoever has ordered waits for the outcome. What takes longer goes on all the same.
const WAIT: Duration = Duration::from_secs(4);

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The process is to finish what it has begun, and go; another one comes when it is asked for.
    Leave,
    /// A table is to be opened anew.
    Reload(Vec<u8>),
}

impl Order {
    /// The order in the first line of a request; `None` when there is none.
    pub(super) fn parse(request: &[u8]) -> Option<Self> {
        let line = request.split(|&byte| byte == b'\n').next()?;
        let target = line.strip_prefix(b"POST /reload")?;
        let end = target.windows(8).position(|bytes| bytes == b" HTTP/1.")?;
        match &target[..end] {
            b"" => Some(Self::Leave),
            query => Some(Self::Reload(decoded(query.strip_prefix(b"?table=")?)?)),
        }
    }
}

/// Undoes percent-encoding.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let mut digit = || char::from(*rest.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        });
    }
    Some(bytes)
}

/// May whoever is at the other end order anything?
pub(super) fn may_order(client: &std::os::fd::OwnedFd) -> bool {
    matches!(socket::peer_address(client), Ok(None))
        && socket::peer(client)
            .is_ok_and(|peer| peer.uid == 0 || peer.uid == effective::identity().0)
}

/// Has a table opened anew; the status line and what there is to say.
pub(super) fn reload<S: Service>(service: &Arc<S>, table: Vec<u8>) -> (&'static str, String) {
    static BUSY: AtomicBool = AtomicBool::new(false);
    if BUSY.swap(true, Ordering::SeqCst) {
        let text = "another table is being opened";
        return ("409 Conflict", text.to_owned());
    }
    let (sender, receiver) = mpsc::channel();
    let service = Arc::clone(service);
    let started = thread::Builder::new()
        .name("reload".to_owned())
        .spawn(move || {
            let outcome = logging::contain(|| service.reload(&table));
            BUSY.store(false, Ordering::SeqCst);
            let _ = sender.send(outcome);
        });
    if let Err(error) = started {
        BUSY.store(false, Ordering::SeqCst);
        return ("503 Service Unavailable", postkeep_sys::error_text(&error));
    }
    match receiver.recv_timeout(WAIT) {
        Ok(Some(Reloaded::Done(text))) => ("200 OK", text),
        Ok(Some(Reloaded::Unknown)) => ("404 Not Found", "no such table".to_owned()),
        Ok(Some(Reloaded::Failed(text))) => ("422 Unprocessable Content", text),
        Ok(None) => ("500 Internal Server Error", "see the log".to_owned()),
        Err(_) => ("202 Accepted", "it takes long, and goes on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_told_from_all_else() {
        let order = |line: &str| Order::parse(format!("{line}\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(order("POST /reload HTTP/1.1"), Some(Order::Leave));
        assert_eq!(
            order("POST /reload?table=hash:/a%20b%2B HTTP/1.0"),
            Some(Order::Reload(b"hash:/a b+".to_vec()))
        );
        for none in [
            "GET /reload HTTP/1.1",
            "POST / HTTP/1.1",
            "POST /reloadx HTTP/1.1",
            "POST /reload?table=%2 HTTP/1.1",
            "POST /reload?table=%zz HTTP/1.1",
            "POST /reload?other=x HTTP/1.1",
            "POST /reload",
        ] {
            assert_eq!(order(none), None, "{none}");
        }
    }

    #[test]
    fn only_this_machine_orders() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(may_order(&ours.into()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(!may_order(&server.into()));
    }
}
