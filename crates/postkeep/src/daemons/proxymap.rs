//! proxymap(8) and proxywrite: the lookup table server joined to the skeleton.
//!
//! # References
//! Postfix `src/proxymap/proxymap.c`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, exit};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, warn};
use postkeep_conf::{
    Catalog, Common, Dictionary, Error, IntParameter, Release, Sink, StrParameter,
};
use postkeep_daemon::blocking::{Full, Pool, PoolLimits};
use postkeep_daemon::configuration::LogSink;
use postkeep_daemon::limits::Complaint;
use postkeep_daemon::metrics::Page;
use postkeep_daemon::{
    Attributes, Next, Program, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_proxymap::approve::{Approved, Content, Files, Notice, Rules};
use postkeep_proxymap::evaluate;
use postkeep_proxymap::role::{self, Role};
use postkeep_proxymap::service::{Action, Conversation, Done, Job, REPLY_TIME};
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_proxymap::watch::{Observer, Stat};
use postkeep_sys::error_text;
use postkeep_tables::{Caller, Context, Registry};
use postkeep_wire::duplex::Outbox;
use postkeep_wire::protocol;
use postkeep_wire::proxymap::Generation;
use postkeep_wire::scan;

use super::announce::{Greeting, Policy, Turn as Greeted};
use super::oversize::Oversize;
use super::reach;
use metrics::Names;

mod metrics;

/// How often the files of open tables are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Runs the daemon.
pub(crate) fn run(name: &OsStr, arguments: &[OsString]) -> ExitCode {
    postkeep_daemon::main(
        name,
        &super::with_version(arguments),
        ProxymapProgram::default(),
    )
}

/// The lookup table server while it starts.
#[derive(Debug, Default)]
struct ProxymapProgram {
    policy: Option<Policy>,
    prepared: Option<(Role, Approved)>,
    pool: PoolLimits,
    open_tables: usize,
}

impl ProxymapProgram {
    fn read(&mut self, dictionary: &mut Dictionary, sink: &mut dyn Sink) -> Result<(), Error> {
        // The lists themselves are collected by a hook; here their faults are found at the usual time.
        let release = dictionary.release();
        let catalog = Catalog::of(release);
        for name in evaluate::parameters(release) {
            let default = catalog.find(name).map_or("", |parameter| parameter.default);
            dictionary.str(
                &StrParameter {
                    name,
                    default,
                    min: 0,
                    max: 0,
                },
                sink,
            )?;
        }
        self.policy = Some(super::read_policy(dictionary, sink)?);
        let mut number = |name, default: usize, max| {
            let parameter = IntParameter {
                name,
                default: i32::try_from(default).unwrap_or(i32::MAX),
                min: 1,
                max,
            };
            let value = dictionary.int(&parameter, &mut *sink)?;
            Ok(usize::try_from(value).unwrap_or(1))
        };
        let default = PoolLimits::default();
        let threads = number(SLOW_THREADS, default.threads, 1024)?;
        let waiting = number(SLOW_LOOKUPS, default.waiting, 0)?;
        self.pool = PoolLimits::new(threads, waiting);
        self.pool.share_threads = number(TABLE_THREADS, self.pool.share_threads, 0)?;
        self.open_tables = number(OPEN_TABLES, Settings::default().open_tables, 0)?;
        Ok(())
    }

    /// Collects the approved tables, or prints them and ends.
    fn prepare(&mut self, setup: &mut Setup) {
        let release = setup.dictionary.release();
        let service = role::Service::from_name(&setup.service_name, release)
            .unwrap_or_else(|error| logging::fatal(format_args!("{error}")));
        let rules = Rules::from(release);
        let (approved, notices) = evaluate::approved(
            &mut setup.dictionary,
            service,
            rules,
            &mut DiskFiles,
            &mut LogSink,
        )
        .unwrap_or_else(|error| logging::fatal(format_args!("{error}")));
        for notice in notices {
            match notice {
                Notice::Warning(text) => warn!("{text}"),
                Notice::Verbose(text) => debug!("{text}"),
            }
        }
        match service {
            role::Service::Export(..) => export(&approved),
            role::Service::Serve(role) => self.prepared = Some((role, approved)),
        }
        if service.role() == Role::Write {
            // A signal to the process group of master must not hit an update.
            let _ = postkeep_sys::process::new_session();
        }
    }
}

/// Prints the names, one a line, and ends the process.
fn export(approved: &Approved) -> ! {
    let mut text = approved.sorted().join(&b'\n');
    if !text.is_empty() {
        text.push(b'\n');
    }
    let mut output = io::stdout().lock();
    if let Err(error) = output.write_all(&text).and_then(|()| output.flush()) {
        logging::fatal(format_args!("output write error: {}", error_text(&error)));
    }
    exit(0)
}

impl Program for ProxymapProgram {
    type Service = Proxymap;

    fn requirements(&self) -> Vec<Requirement<Self>> {
        vec![Requirement::Parameters(Self::read)]
    }

    fn before_jail(&mut self, setup: &mut Setup) {
        // From 3.11 on lists may name files, which are read before the root directory changes.
        if setup.dictionary.release() >= Release::V3_11 {
            self.prepare(setup);
        }
    }

    fn after_jail(mut self, setup: &mut Setup) -> Proxymap {
        if self.prepared.is_none() {
            self.prepare(setup);
        }
        let (role, approved) = self.prepared.unwrap_or((Role::Read, Approved::default()));
        let data_directory = OsString::from_vec(setup.common.data_directory.clone());
        setup.confine(reach::of(
            role,
            approved.sorted(),
            Path::new(&data_directory),
        ));
        let tables = Arc::new(Tables::new(
            role,
            &approved,
            Arc::new(Registry::new(context(&setup.common, &setup.dictionary))),
            Arc::new(DiskObserver),
            Settings {
                open_error_is_fatal: setup.common.daemon_table_open_error_is_fatal,
                open_tables: self.open_tables,
                ..Settings::default()
            },
        ));
        if role == Role::Read && !setup.one_shot {
            keep(Arc::clone(&tables));
        }
        Proxymap {
            names: Names::new(approved.sorted()),
            tables,
            pool: Pool::with_limits(self.pool),
            requests: setup.limits.requests,
            complaints: Complaints::default(),
            oversize: Oversize::default(),
            policy: self.policy.unwrap_or(Policy::Always),
            stream: setup.stream_name().into(),
            generation: if setup.dictionary.release() >= Release::V3_11 {
                Generation::Two
            } else {
                Generation::One
            },
            stray: super::stray_argument(setup),
            epoch: Instant::now(),
        }
    }
}

/// The configuration that tables see.
fn context(common: &Common, dictionary: &Dictionary) -> Context {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Context {
        caller: Caller::Daemon,
        smtputf8_enable: common.smtputf8_enable,
        lmdb_map_size: common.lmdb_map_size.unsigned_abs(),
        queue_directory: PathBuf::from(OsString::from_vec(common.queue_directory.clone())),
        proxymap_service_name: text(&common.proxymap_service_name),
        proxywrite_service_name: text(&common.proxywrite_service_name),
        ipc_timeout: common.ipc_timeout,
        ipc_idle: common.ipc_idle,
        ipc_ttl: common.ipc_ttl,
        main_cf: Arc::new(dictionary.clone()),
    }
}

/// Starts the thread that replaces tables whose files have changed.
fn keep(tables: Arc<Tables>) {
    let keeper = thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(LOOK);
                // A fault in one table is told, and does not end the watch over the others.
                logging::contain(|| tables.reload_changed());
            }
        });
    if let Err(error) = keeper {
        logging::fatal(format_args!(
            "cannot start a thread: {}",
            error_text(&error)
        ));
    }
}

/// Files of the lists, on disk.
struct DiskFiles;

impl Files for DiskFiles {
    fn read(&mut self, path: &[u8], limit: usize) -> Result<Content, String> {
        let file = fs::File::open(Path::new(OsStr::from_bytes(path)))
            .map_err(|error| error_text(&error))?;
        let mut bytes = Vec::new();
        let error = file.take(limit as u64).read_to_end(&mut bytes).err();
        Ok(Content {
            bytes,
            error: error.map(|error| error_text(&error)),
        })
    }
}

/// Files of tables, on disk.
struct DiskObserver;

impl Observer for DiskObserver {
    fn stat(&self, path: &Path) -> Option<Stat> {
        let found = fs::metadata(path).ok()?;
        Some(Stat {
            device: found.dev(),
            inode: found.ino(),
            links: found.nlink(),
            size: found.len(),
            modified: (
                found.mtime(),
                u32::try_from(found.mtime_nsec()).unwrap_or(0),
            ),
            changed: found.ctime(),
        })
    }

    fn wall_clock(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// The running service.
struct Proxymap {
    tables: Arc<Tables>,
    /// What they are called in metrics.
    names: Names,
    pool: Pool,
    /// What a client may send at most.
    requests: scan::Limits,
    complaints: Complaints,
    oversize: Oversize,
    policy: Policy,
    stream: Arc<str>,
    /// For requests that break off before they say what they are.
    generation: Generation,
    stray: Option<String>,
    /// The zero of the conversations' clock.
    epoch: Instant,
}

/// One client.
struct Client {
    greeting: Greeting,
    conversation: Conversation,
    waker: Waker,
    /// Set while an operation is on the pool; holds its outcome at last.
    errand: Option<Errand>,
}

/// An operation that may wait, and where its outcome will be.
type Errand = Arc<Mutex<Option<Done>>>;

/// Names of parameters.
const SLOW_LOOKUPS: &str = "postkeep_slow_lookup_limit";
const SLOW_THREADS: &str = "postkeep_slow_lookup_threads";
const TABLE_THREADS: &str = "postkeep_slow_table_threads";
const OPEN_TABLES: &str = "postkeep_open_table_limit";

/// The lines about clients that go beyond a limit.
#[derive(Debug)]
struct Complaints {
    slow_lookups: Complaint,
    slow_table: Complaint,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            slow_lookups: Complaint::new(SLOW_LOOKUPS),
            slow_table: Complaint::new("postkeep_slow_lookup_limit, postkeep_slow_table_threads"),
        }
    }
}

impl Proxymap {
    /// Has a job done elsewhere; it comes back when nobody can take it.
    ///
    /// A question to a server leaves from here, and no thread waits for the answer.
    fn send_away(&self, client: &mut Client, job: Job, now: Instant) -> Result<(), Job> {
        let errand = Errand::default();
        if !job.may_wait() {
            let messenger = Messenger {
                errand: Some(Arc::clone(&errand)),
                waker: client.waker.clone(),
            };
            job.begin(move |done| messenger.deliver(done, now));
            client.errand = Some(errand);
            return Ok(());
        }
        let share = job.share();
        let mut job = Some(job);
        let submitted = self.pool.submit_for(share, || {
            let messenger = Messenger {
                errand: Some(Arc::clone(&errand)),
                waker: client.waker.clone(),
            };
            let job = job.take();
            move || {
                if let Some(job) = job {
                    job.begin(move |done| messenger.deliver(done, now));
                }
            }
        });
        if let Err(full) = submitted {
            let complaint = match full {
                Full::Pool(_) => &self.complaints.slow_lookups,
                Full::Share(_) => &self.complaints.slow_table,
            };
            complaint.say(
                now,
                format_args!("{}: {full}, clients are told to try again", self.stream),
            );
        }
        client.errand = job.is_none().then_some(errand);
        job.map_or(Ok(()), Err)
    }

    /// Writes the reply to a request that was done elsewhere, or was not.
    fn finish(client: &mut Client, done: Done, outbox: &mut Outbox<OwnedFd>) {
        if let Err(fatal) = client.conversation.finish(done, outbox) {
            logging::fatal(format_args!("{fatal}"));
        }
    }
}

/// Brings the outcome of an errand, or the news that there will be none, to the client.
struct Messenger {
    errand: Option<Errand>,
    waker: Waker,
}

impl Messenger {
    /// - `since`: when the request was looked at
    fn deliver(self, done: Done, since: Instant) {
        done.waited(since.elapsed());
        if let Some(errand) = &self.errand {
            *errand.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        // Also after a panic. The client must not look before our share is gone.
        self.errand = None;
        self.waker.wake();
    }
}

/// What has become of an errand.
enum Progress {
    Out,
    Back(Done),
    /// Whoever had it is gone without an outcome.
    Lost,
}

fn look(errand: &Errand) -> Progress {
    // The count first: the outcome is there before the other holder is gone.
    let alone = Arc::strong_count(errand) == 1;
    match errand.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(done) => Progress::Back(done),
        None if alone => Progress::Lost,
        None => Progress::Out,
    }
}

impl Service for Proxymap {
    type Client = Client;

    const TAKES_DESCRIPTORS: bool = false;

    fn write_limit(&self) -> Duration {
        REPLY_TIME
    }

    fn connected(
        &self,
        _attributes: &Attributes,
        outbox: &mut Outbox<OwnedFd>,
        waker: Waker,
    ) -> Client {
        let mut greeting = Greeting::new(self.policy, protocol::PROXYMAP);
        greeting.turn(false, Instant::now(), outbox.buffer());
        Client {
            greeting,
            conversation: Conversation::with_limits(
                Arc::clone(&self.stream),
                self.generation,
                self.requests,
            ),
            waker,
            errand: None,
        }
    }

    fn describe(&self, page: &mut Page) {
        self.describe_all(page);
    }

    fn advance(&self, client: &mut Client, turn: &mut Turn<'_>) -> Next {
        let spoken = !turn.inbox.is_empty() || turn.inbox.end().is_some();
        if spoken && let Some(stray) = &self.stray {
            super::refuse_argument(stray);
        }
        if let Greeted::Listen(until) = client.greeting.turn(spoken, turn.now, turn.outbox.buffer())
        {
            return Next::Listen { until };
        }
        if let Some(errand) = client.errand.take() {
            match look(&errand) {
                Progress::Out => {
                    client.errand = Some(errand);
                    return Next::Wait;
                }
                Progress::Lost => return Next::Close,
                Progress::Back(done) => Self::finish(client, done, turn.outbox),
            }
        }
        let mut diagnostics = self.oversize.to_log(turn.now);
        let mut requests = 0u32;
        loop {
            let action = client.conversation.step(
                turn.now.saturating_duration_since(self.epoch),
                turn.inbox,
                turn.outbox,
                &self.tables,
                &mut diagnostics,
            );
            requests = requests.saturating_add(client.conversation.take_requests());
            turn.requests = turn.requests.max(requests);
            return match action {
                Action::Idle => Next::Idle,
                Action::Read(until) => Next::Read {
                    until: self.epoch + until,
                },
                Action::Run(job) => match self.send_away(client, job, turn.now) {
                    Ok(()) => Next::Wait,
                    Err(job) => {
                        Self::finish(client, job.put_off(), turn.outbox);
                        continue;
                    }
                },
                Action::Close => Next::Close,
                Action::Flush if turn.inbox.end().is_none() => Next::Listen { until: turn.now },
                // After the end of input anything but waiting would be the last turn.
                Action::Flush => {
                    client.waker.wake();
                    Next::Wait
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_is_out_until_its_messenger_is_gone() {
        let errand = Errand::default();
        let messenger = Messenger {
            errand: Some(Arc::clone(&errand)),
            waker: Waker::noop(),
        };
        assert!(matches!(look(&errand), Progress::Out));
        drop(messenger);
        assert!(matches!(look(&errand), Progress::Lost));
    }

    #[test]
    fn files_are_read_up_to_the_limit() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("list");
        fs::write(&path, "proxy:hash:/a").unwrap();
        let content = DiskFiles.read(path.as_os_str().as_bytes(), 5).unwrap();
        assert_eq!(
            (content.bytes.as_slice(), content.error),
            (&b"proxy"[..], None)
        );
        let error = DiskFiles.read(b"/nonexistent/list", 5).unwrap_err();
        assert_eq!(error, "No such file or directory");
    }

    #[test]
    fn a_new_file_has_another_face() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("table");
        assert_eq!(DiskObserver.stat(&path), None);
        fs::write(&path, "abc").unwrap();
        let stat = DiskObserver.stat(&path).unwrap();
        assert_eq!((stat.size, stat.links), (3, 1));
        assert!((DiskObserver.wall_clock() - stat.changed).abs() < 100);
    }
}
