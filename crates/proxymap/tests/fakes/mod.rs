//! Tables in memory, an opener with switches, a file system of one number, and a logger that can be asked.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test helper may panic")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use postkeep_proxymap::approve::Approved;
use postkeep_proxymap::role::Role;
use postkeep_proxymap::service::{Action, Conversation, Fatal};
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_proxymap::watch::{Observer, Stat};
use postkeep_table::{
    Access, CacheCounts, Completion, Cursor, Flags, Latency, LookupError, OpenError, Opener,
    Outcome, Step, Table, TableName, Watch,
};
use postkeep_wire::duplex::{End, Inbox, Outbox};
use postkeep_wire::proxymap::Generation;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let prefix = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        LINES.with_borrow_mut(|lines| lines.push(format!("{prefix}{}", record.args())));
    }

    fn flush(&self) {}
}

/// Makes the `log` facade keep lines, per thread.
pub fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_boxed_logger(Box::new(Logger)).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    let _ = logged();
}

/// Lines logged by this thread since the last call.
pub fn logged() -> Vec<String> {
    LINES.with_borrow_mut(std::mem::take)
}

/// Lookups that were begun and whose end is not told yet.
pub type Late = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

/// How a fake table behaves.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Flags that it adds to those it is opened with.
    pub own: u32,
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
    pub latency: Latency,
    /// Although it may wait, it need not right now.
    pub ready: bool,
    pub sequence: bool,
    /// Adds `utf8_active` where the opener asks for it.
    pub utf8: bool,
    /// What it has counted as a cache.
    pub cached: Option<CacheCounts>,
    /// Cannot be opened, and why.
    pub broken: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            own: 16,
            entries: Vec::new(),
            latency: Latency::Memory,
            ready: false,
            sequence: true,
            utf8: true,
            cached: None,
            broken: None,
        }
    }
}

impl Plan {
    pub fn with(entries: &[(&str, &str)]) -> Self {
        let pair =
            |&(key, value): &(&str, &str)| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        Self {
            entries: entries.iter().map(pair).collect(),
            ..Self::default()
        }
    }
}

pub struct Fake {
    name: TableName,
    flags: Flags,
    plan: Plan,
    entries: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    writable: bool,
    asked: Arc<Mutex<Vec<(String, Flags)>>>,
    late: Late,
}

impl Fake {
    fn note(&self, operation: &str, flags: Flags) {
        self.asked
            .lock()
            .unwrap()
            .push((operation.to_owned(), flags));
    }
}

impl Table for Fake {
    fn name(&self) -> &TableName {
        &self.name
    }

    fn flags(&self) -> Flags {
        self.flags
    }

    fn cache_counts(&self) -> Option<CacheCounts> {
        self.plan.cached
    }

    fn latency(&self) -> Latency {
        self.plan.latency
    }

    fn lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        self.note("lookup", flags);
        match key {
            b"!retry" => return Err(LookupError::Retry("later".into())),
            b"!config" => return Err(LookupError::Config("broken".into())),
            b"!unsupported" => return Err(postkeep_table::unsupported(&self.name, "lookup")),
            _ => {}
        }
        let entries = self.entries.lock().unwrap();
        match entries.iter().find(|(other, _)| other == key) {
            Some((_, found)) => {
                value.extend_from_slice(found);
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn try_lookup(
        &self,
        flags: Flags,
        key: &[u8],
        value: &mut Vec<u8>,
    ) -> Option<Result<Outcome, LookupError>> {
        let ready = self.plan.ready || self.plan.latency == Latency::Memory;
        ready.then(|| self.lookup(flags, key, value))
    }

    fn begin_lookup(
        self: Arc<Self>,
        flags: Flags,
        key: &[u8],
        mut value: Vec<u8>,
        done: Completion,
    ) {
        let (late, key) = (Arc::clone(&self.late), key.to_vec());
        late.lock().unwrap().push(Box::new(move || {
            let result = self.lookup(flags, &key, &mut value);
            done(result, value);
        }));
    }

    fn update(&self, flags: Flags, key: &[u8], value: &[u8]) -> Result<Outcome, LookupError> {
        self.note("update", flags);
        if !self.writable {
            return Err(postkeep_table::unsupported(&self.name, "update"));
        }
        assert!(flags.contains(Flags::DUP_REPLACE | Flags::SYNC_UPDATE));
        let mut entries = self.entries.lock().unwrap();
        entries.retain(|(other, _)| other != key);
        entries.push((key.to_vec(), value.to_vec()));
        Ok(Outcome::Done)
    }

    fn delete(&self, flags: Flags, key: &[u8]) -> Result<Outcome, LookupError> {
        self.note("delete", flags);
        assert!(flags.contains(Flags::SYNC_UPDATE));
        let mut entries = self.entries.lock().unwrap();
        let before = entries.len();
        entries.retain(|(other, _)| other != key);
        Ok(if entries.len() < before {
            Outcome::Done
        } else {
            Outcome::Absent
        })
    }

    fn sequence(
        &self,
        _flags: Flags,
        step: Step,
        cursor: &mut Cursor,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Outcome, LookupError> {
        if !self.plan.sequence {
            return Err(postkeep_table::unsupported(&self.name, "sequence"));
        }
        if step == Step::First {
            cursor.ordinal = 0;
        }
        let entries = self.entries.lock().unwrap();
        let at = usize::try_from(cursor.ordinal).unwrap();
        match entries.get(at) {
            Some((found_key, found_value)) => {
                cursor.ordinal += 1;
                key.extend_from_slice(found_key);
                value.extend_from_slice(found_value);
                Ok(Outcome::Done)
            }
            None => Ok(Outcome::Absent),
        }
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch {
            path: String::from_utf8_lossy(self.name.name())
                .into_owned()
                .into(),
            modification_time: true,
        }]
    }
}

/// Opens fake tables by name.
#[derive(Default)]
pub struct Registry {
    pub plans: Mutex<HashMap<String, Plan>>,
    pub opened: Mutex<Vec<(String, Access, Flags)>>,
    /// Operations that reached tables, with their flags.
    pub asked: Arc<Mutex<Vec<(String, Flags)>>>,
    /// Lookups in tables behind a server.
    pub late: Late,
    /// File system: changes when set.
    pub version: AtomicUsize,
    pub gone: AtomicBool,
}

impl Registry {
    pub fn set(&self, name: &str, plan: Plan) {
        self.plans.lock().unwrap().insert(name.to_owned(), plan);
    }

    pub fn touch(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

impl Opener for Registry {
    fn open(
        &self,
        name: &TableName,
        access: Access,
        flags: Flags,
    ) -> Result<Arc<dyn Table>, OpenError> {
        let text = name.to_string();
        self.opened
            .lock()
            .unwrap()
            .push((text.clone(), access, flags));
        let plan = self
            .plans
            .lock()
            .unwrap()
            .get(&text)
            .cloned()
            .ok_or_else(|| {
                let path = String::from_utf8_lossy(name.name()).into_owned();
                OpenError::Unavailable(format!(
                    "open database {path}.db: No such file or directory"
                ))
            })?;
        if let Some(reason) = plan.broken {
            return Err(OpenError::Unavailable(reason));
        }
        let mut all = flags | Flags::from_bits_retain(plan.own);
        if plan.utf8 && flags.contains(Flags::UTF8_REQUEST) {
            all |= Flags::UTF8_ACTIVE;
        }
        Ok(Arc::new(Fake {
            name: name.clone(),
            flags: all,
            entries: Mutex::new(plan.entries.clone()),
            writable: access == Access::ReadWrite,
            asked: Arc::clone(&self.asked),
            late: Arc::clone(&self.late),
            plan,
        }))
    }
}

impl Observer for Registry {
    fn stat(&self, _path: &Path) -> Option<Stat> {
        if self.gone.load(Ordering::Relaxed) {
            return None;
        }
        Some(Stat {
            device: 1,
            inode: self.version.load(Ordering::Relaxed) as u64,
            links: 1,
            size: 0,
            modified: (0, 0),
            changed: 0,
        })
    }

    fn wall_clock(&self) -> i64 {
        1000
    }
}

/// One service with fake tables.
pub struct Service {
    pub registry: Arc<Registry>,
    pub tables: Arc<Tables>,
}

pub fn service(role: Role, plans: &[(&str, Plan)]) -> Service {
    service_with(role, plans, &[], Settings::default())
}

/// `missing`: approved, but nothing stands behind them.
pub fn service_with(
    role: Role,
    plans: &[(&str, Plan)],
    missing: &[&str],
    settings: Settings,
) -> Service {
    keep_log();
    let registry = Arc::new(Registry::default());
    for (name, plan) in plans {
        registry.set(name, plan.clone());
    }
    let approved: Approved = plans
        .iter()
        .map(|(name, _)| name.as_bytes())
        .chain(missing.iter().map(|name| name.as_bytes()))
        .collect();
    let tables = Tables::new(
        role,
        &approved,
        registry.clone(),
        registry.clone(),
        settings,
    );
    Service {
        registry,
        tables: Arc::new(tables),
    }
}

/// One client, with the driver's part played in line.
pub struct Client {
    pub conversation: Conversation,
    pub inbox: Inbox<()>,
    pub outbox: Outbox<()>,
    pub warnings: Vec<String>,
    pub now: Duration,
    pub closed: bool,
    pub jobs: usize,
    pub fatal: Option<Fatal>,
}

impl Client {
    pub fn new() -> Self {
        Self {
            conversation: Conversation::new("proxymap socket".into(), Generation::One),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            warnings: Vec::new(),
            now: Duration::from_secs(100),
            closed: false,
            jobs: 0,
            fatal: None,
        }
    }

    /// Sends bytes; returns what came back.
    pub fn send(&mut self, service: &Service, bytes: &[u8]) -> Vec<u8> {
        self.inbox.receive(bytes, []);
        self.turn(service)
    }

    pub fn end(&mut self, service: &Service, end: End) -> Vec<u8> {
        self.inbox.finish(end);
        self.turn(service)
    }

    pub fn turn(&mut self, service: &Service) -> Vec<u8> {
        let mut replies = Vec::new();
        loop {
            let action = self.conversation.step(
                self.now,
                &mut self.inbox,
                &mut self.outbox,
                &service.tables,
                &mut self.warnings,
            );
            match action {
                Action::Run(job) => {
                    self.jobs += 1;
                    if let Err(fatal) = self.conversation.finish(job.run(), &mut self.outbox) {
                        self.fatal = Some(fatal);
                        break;
                    }
                }
                Action::Flush => self.drain(&mut replies),
                Action::Close => {
                    self.closed = true;
                    break;
                }
                Action::Idle | Action::Read(_) => break,
            }
        }
        self.drain(&mut replies);
        replies
    }

    fn drain(&mut self, replies: &mut Vec<u8>) {
        while !self.outbox.is_empty() {
            let (chunk, _) = self.outbox.next_chunk();
            let length = chunk.len();
            replies.extend_from_slice(chunk);
            self.outbox.sent(length);
        }
    }

    /// The same in the notation of the vectors.
    pub fn say(&mut self, service: &Service, request: &str) -> String {
        shown(&self.send(service, &bytes(request)))
    }
}

/// `␀` stands for a NUL byte.
pub fn bytes(text: &str) -> Vec<u8> {
    text.replace('␀', "\0").into_bytes()
}

pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "␀")
}
