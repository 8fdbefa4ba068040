//! `proxy:TYPE:NAME` asks proxymap(8) about the table `TYPE:NAME`; a table that is opened for writing is asked for
//! at proxywrite.
//!
//! What is sent is the name behind the first `proxy:`, as it is. When the opener does not want a proxied table
//! (`no_proxy`) the table is opened directly, without a word.
//!
//! Each thread that is asking uses a connection of its own; connections are kept for the next. A walk through the
//! entries is tied to one connection for all callers, because that is where the server keeps the place: two walks
//! at the same time disturb each other, as they do in the reference.
//!
//! The server is given up after a few seconds in a daemon and after the reference's many tries in a command; that is
//! a temporary error (the reference never gives up a request, and ends the process when it cannot connect).
//!
//! References: proxymap(8), postconf(5) `proxymap_service_name`, `proxywrite_service_name`; Postfix
//! `src/global/dict_proxy.c`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postkeep_client::Place;
use postkeep_client::proxymap::{
    Answer, Client, Dialect, Error, Function, Generation, Policy, Settings, Status,
};
use postkeep_table::{
    Access, Cursor, Flags, Latency, LookupError, OpenError, Outcome, Step, Table, TableName,
};

use crate::Caller;
use crate::table_type::{Capabilities, Request, TableType};

pub(crate) static TABLE_TYPE: TableType = TableType {
    name: "proxy",
    summary: "a table that proxymap(8) has open",
    capabilities: Capabilities::UPDATE
        .union(Capabilities::DELETE)
        .union(Capabilities::SEQUENCE),
    open,
    build: None,
};

struct Proxy {
    name: TableName,
    /// The name that is sent.
    table: Vec<u8>,
    settings: Settings,
    generation: Generation,
    opened_with: Flags,
    flags: Flags,
    /// Folding has been done by the time a key is here.
    folded: bool,
    /// The flags that the server returned last; only generation two has them.
    returned: AtomicU32,
    idle: Mutex<Vec<Client>>,
    walker: Mutex<Option<Client>>,
}

fn open(request: &Request<'_>) -> Result<Arc<dyn Table>, OpenError> {
    let table = request.name.name();
    if request.flags.contains(Flags::NO_PROXY) {
        let inner =
            TableName::parse(table).map_err(|error| OpenError::Unavailable(error.to_string()))?;
        return request.open_inner(&inner);
    }
    let context = request.context;
    let service = match request.access {
        Access::Read => &context.proxymap_service_name,
        Access::ReadWrite => &context.proxywrite_service_name,
    };
    let mut settings = Settings {
        dialect: Dialect::DETECT,
        limit: context.ipc_timeout,
        idle: context.ipc_idle,
        ttl: context.ipc_ttl,
        policy: match context.caller {
            Caller::Daemon => Policy::BOUNDED,
            Caller::Command => Policy::REFERENCE,
        },
        ..Settings::new(
            Place::service(&context.queue_directory, service.as_str()),
            service.as_str(),
        )
    };
    let mut client = Client::new(settings.clone());
    let answer = client
        .open(table, request.flags.bits())
        .map_err(|error| OpenError::Unavailable(error.to_string()))?;
    let returned = Flags::from_bits_retain(answer.flags.unwrap_or_default());
    let generation = client.generation().unwrap_or(Generation::One);
    settings.dialect.generation = Some(generation);
    let flags = match generation {
        Generation::One => {
            request.flags.difference(Flags::IMPLEMENTATION)
                | returned.intersection(Flags::IMPLEMENTATION)
        }
        Generation::Two => returned,
    };
    Ok(Arc::new(Proxy {
        name: request.name.clone(),
        table: table.to_vec(),
        settings,
        generation,
        opened_with: request.flags,
        flags,
        folded: request.utf8 && !returned.contains(Flags::UTF8_ACTIVE),
        returned: AtomicU32::new(returned.bits()),
        idle: Mutex::new(vec![client]),
        walker: Mutex::new(None),
    }))
}

impl Proxy {
    /// Asks on a connection that nobody else is using.
    fn ask(
        &self,
        ask: impl FnOnce(&mut Client) -> Result<Answer, Error>,
    ) -> Result<Answer, LookupError> {
        let client = lock(&self.idle).pop();
        let mut client = client.unwrap_or_else(|| Client::new(self.settings.clone()));
        let result = ask(&mut client);
        lock(&self.idle).push(client);
        self.taken(result)
    }

    fn taken(&self, result: Result<Answer, Error>) -> Result<Answer, LookupError> {
        let answer = result.map_err(|error| match error {
            Error::Invalid(text) | Error::Denied(text) => LookupError::Config(text),
            error => LookupError::Retry(error.to_string()),
        })?;
        if let Some(flags) = answer.flags {
            self.returned.store(flags, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// The instance's and the request's flags, as this generation sends them.
    fn sent(&self, request: Flags) -> (u32, u32) {
        let mut request = request.intersection(Flags::REQUEST);
        if self.folded {
            request.remove(Flags::FOLD_FIX | Flags::FOLD_MUL);
        }
        let (instance, rest) = match self.generation {
            Generation::One => {
                let instance = self.opened_with.intersection(Flags::INSTANCE);
                (instance, instance)
            }
            Generation::Two => (
                self.opened_with,
                Flags::from_bits_retain(self.returned.load(Ordering::Relaxed))
                    .difference(Flags::REQUEST),
            ),
        };
        (instance.bits(), (rest | request).bits())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the server has logged needs no words here.
fn outcome(answer: &Answer) -> Result<Outcome, LookupError> {
    match answer.status {
        Status::Ok => Ok(Outcome::Done),
        Status::NoKey => Ok(Outcome::Absent),
        Status::Retry => Err(LookupError::Retry(String::new())),
        Status::Config | Status::Bad | Status::Deny => Err(LookupError::Config(String::new())),
    }
}

impl Table for Proxy {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn latency(&self) -> Latency {
        Latency::Blocking
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let (instance, flags) = self.sent(flags);
        let answer = self.ask(|client| client.lookup(&self.table, instance, flags, key))?;
        let outcome = outcome(&answer)?;
        if outcome == Outcome::Done {
            value.extend_from_slice(&answer.value);
        }
        Ok(outcome)
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        let (instance, flags) = self.sent(flags);
        outcome(&self.ask(|client| client.update(&self.table, instance, flags, key, value))?)
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        let (instance, flags) = self.sent(flags);
        outcome(&self.ask(|client| client.delete(&self.table, instance, flags, key))?)
    }

    fn sequence(
        &self,
        flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        let (instance, flags) = self.sent(flags);
        let function = match step {
            Step::First => Function::First,
            Step::Next => Function::Next,
        };
        let result = lock(&self.walker)
            .get_or_insert_with(|| Client::new(self.settings.clone()))
            .sequence(&self.table, instance, flags, function);
        let answer = self.taken(result)?;
        let outcome = outcome(&answer)?;
        if outcome == Outcome::Done {
            cursor.key = Some(answer.key.clone());
            cursor.ordinal += 1;
            key.extend_from_slice(&answer.key);
            value.extend_from_slice(&answer.value);
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use postkeep_table::Opener as _;
    use tempfile::TempDir;

    use super::*;
    use crate::{Context, Registry};

    type Exchanges = &'static [(&'static str, &'static str)];

    /// A queue directory with a service that expects these requests and gives these answers.
    fn serve(
        service: &'static str,
        connections: &'static [Exchanges],
    ) -> (TempDir, Registry, JoinHandle<()>) {
        let queue = tempfile::tempdir().unwrap();
        std::fs::create_dir(queue.path().join("private")).unwrap();
        let listener = UnixListener::bind(queue.path().join("private").join(service)).unwrap();
        let server = thread::spawn(move || {
            let mut clients = Vec::new();
            for exchanges in connections {
                let (mut client, _) = listener.accept().unwrap();
                client
                    .write_all(b"protocol\0proxymap_protocol\0\0")
                    .unwrap();
                for (request, reply) in *exchanges {
                    let mut heard = vec![0; request.len()];
                    client.read_exact(&mut heard).unwrap();
                    assert_eq!(String::from_utf8_lossy(&heard), *request);
                    client.write_all(reply.as_bytes()).unwrap();
                }
                clients.push(client);
            }
        });
        let registry = Registry::new(Context {
            queue_directory: queue.path().to_owned(),
            ipc_timeout: Duration::from_secs(2),
            ..Context::default()
        });
        (queue, registry, server)
    }

    fn name(text: &str) -> TableName {
        TableName::parse(text.as_bytes()).unwrap()
    }

    /// Flags of postmap(1).
    const POSTMAP: Flags = Flags::DUP_WARN
        .union(Flags::LOCK)
        .union(Flags::FOLD_FIX)
        .union(Flags::UTF8_REQUEST);

    #[test]
    fn a_lookup_is_what_postmap_3_7_sends() {
        let (_queue, registry, server) = serve(
            "proxymap",
            &[&[
                (
                    "request\0open\0table\0texthash:/etc/postfix/t1\0flags\x000\0\0",
                    "status\x000\0flags\x0016\0\0",
                ),
                (
                    "request\0lookup\0table\0texthash:/etc/postfix/t1\0flags\x00524353\0key\0k1\0\0",
                    "status\x000\0value\0v1\0\0",
                ),
                (
                    "request\0lookup\0table\0texthash:/etc/postfix/t1\0flags\x00524353\0key\0k2\0\0",
                    "status\x001\0value\0\0\0",
                ),
                (
                    "request\0lookup\0table\0texthash:/etc/postfix/t1\0flags\x00524353\0key\0k3\0\0",
                    "status\x002\0value\0\0\0",
                ),
                (
                    "request\0lookup\0table\0texthash:/etc/postfix/t1\0flags\x00524353\0key\0k4\0\0",
                    "status\x004\0value\0\0\0",
                ),
            ]],
        );
        let table = registry
            .open(
                &name("proxy:texthash:/etc/postfix/t1"),
                Access::Read,
                POSTMAP,
            )
            .unwrap();
        assert_eq!(table.latency(), Latency::Blocking);
        assert!(table.flags().contains(Flags::FIXED | Flags::LOCK));
        let mut value = b"=".to_vec();
        // Keys are folded here, as the table is one of fixed strings.
        assert_eq!(
            table.lookup(POSTMAP, b"K1", &mut value).unwrap(),
            Outcome::Done
        );
        assert_eq!(value, b"=v1");
        assert_eq!(
            table.lookup(POSTMAP, b"k2", &mut value).unwrap(),
            Outcome::Absent
        );
        let error = table.lookup(POSTMAP, b"k3", &mut value).unwrap_err();
        assert!(matches!(error, LookupError::Retry(_)));
        let error = table.lookup(POSTMAP, b"k4", &mut value).unwrap_err();
        assert!(matches!(error, LookupError::Config(_)));
        assert_eq!(
            error.to_string(),
            "proxymap service is not configured for table \"texthash:/etc/postfix/t1\""
        );
        assert_eq!(value, b"=v1");
        server.join().unwrap();
    }

    #[test]
    fn generation_two_sends_back_what_it_was_told() {
        let (_queue, registry, server) = serve(
            "proxymap",
            &[&[
                (
                    "request\0open\0table\0hash:h\0flags\x000\0\0",
                    "status\x003\0flags\x000\0\0",
                ),
                (
                    "request\0open\0table\0hash:h\0instance_flags\x00540737\0\0",
                    "status\x000\0flags\x001589341\0\0",
                ),
                (
                    "request\0lookup\0table\0hash:h\0instance_flags\x00540737\0flags\x001589341\0key\0k\0\0",
                    "status\x000\0flags\x001589337\0value\0v\0\0",
                ),
                (
                    "request\0lookup\0table\0hash:h\0instance_flags\x00540737\0flags\x001589337\0key\0k\0\0",
                    "status\x000\0flags\x001589337\0value\0v\0\0",
                ),
            ]],
        );
        let table = registry
            .open(&name("proxy:hash:h"), Access::Read, POSTMAP)
            .unwrap();
        for _ in 0..2 {
            let mut value = Vec::new();
            assert_eq!(
                table.lookup(POSTMAP, b"k", &mut value).unwrap(),
                Outcome::Done
            );
            assert_eq!(value, b"v");
        }
        server.join().unwrap();
    }

    #[test]
    fn a_cache_behind_proxywrite() {
        let flags =
            Flags::OPEN_LOCK | Flags::DUP_REPLACE | Flags::SYNC_UPDATE | Flags::UTF8_REQUEST;
        let (_queue, registry, server) = serve(
            "proxywrite",
            &[
                &[
                    (
                        "request\0open\0table\0btree:w\0flags\x0065536\0\0",
                        "status\x000\0flags\x0065564\0\0",
                    ),
                    (
                        "request\0update\0table\0btree:w\0flags\x00590208\0key\0k\0value\0v\0\0",
                        "status\x000\0\0",
                    ),
                    (
                        "request\0delete\0table\0btree:w\0flags\x00590208\0key\0k\0\0",
                        "status\x001\0\0",
                    ),
                ],
                &[
                    (
                        "request\0sequence\0table\0btree:w\0flags\x00590208\0function\x000\0\0",
                        "status\x000\0key\0k\0value\0v\0\0",
                    ),
                    (
                        "request\0sequence\0table\0btree:w\0flags\x00590208\0function\x001\0\0",
                        "status\x001\0key\0\0value\0\0\0",
                    ),
                ],
            ],
        );
        let table = registry
            .open(&name("proxy:btree:w"), Access::ReadWrite, flags)
            .unwrap();
        assert_eq!(table.update(flags, b"k", b"v").unwrap(), Outcome::Done);
        assert_eq!(table.delete(flags, b"k").unwrap(), Outcome::Absent);
        let (mut cursor, mut key, mut value) = (Cursor::default(), Vec::new(), Vec::new());
        let first = table.sequence(flags, Step::First, &mut cursor, &mut key, &mut value);
        assert_eq!(first.unwrap(), Outcome::Done);
        assert_eq!((&key[..], &value[..]), (&b"k"[..], &b"v"[..]));
        let next = table.sequence(flags, Step::Next, &mut cursor, &mut key, &mut value);
        assert_eq!(next.unwrap(), Outcome::Absent);
        server.join().unwrap();
    }

    #[test]
    fn a_table_that_is_not_approved_does_not_open() {
        let (_queue, registry, server) = serve(
            "proxymap",
            &[&[(
                "request\0open\0table\0proxy:hash:h\0flags\x000\0\0",
                "status\x004\0flags\x000\0\0",
            )]],
        );
        // Only the first prefix is taken off.
        let opened = registry.open(&name("proxy:proxy:hash:h"), Access::Read, Flags::LOCK);
        assert_eq!(
            opened.err().unwrap().to_string(),
            "proxymap service is not configured for table \"proxy:hash:h\""
        );
        server.join().unwrap();
    }

    #[test]
    fn who_wants_no_proxy_opens_the_table() {
        let registry = Registry::new(Context {
            queue_directory: "/no/queue".into(),
            ..Context::default()
        });
        let open = |text| registry.open(&name(text), Access::Read, Flags::NO_PROXY);
        let mut value = Vec::new();
        let found = open("proxy:inline:{k=v}")
            .unwrap()
            .lookup(Flags::empty(), b"k", &mut value);
        assert_eq!((found.unwrap(), &value[..]), (Outcome::Done, &b"v"[..]));
        assert_eq!(
            open("proxy:nocolon").err().unwrap().to_string(),
            "open dictionary: expecting \"type:name\" form instead of \"nocolon\""
        );
    }
}
