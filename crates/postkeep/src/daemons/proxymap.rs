//! proxymap(8) and proxywrite: the lookup table server joined to the skeleton.
//!
//! # References
//! Postfix `src/proxymap/proxymap.c`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};
use postkeep_conf::{Catalog, Dictionary, Error, Release, Sink, StrParameter};
use postkeep_daemon::configuration::LogSink;
use postkeep_daemon::metrics::Page;
use postkeep_daemon::{
    Attributes, Next, Program, Reloaded, Requirement, Service, Setup, Turn, Waker, logging,
};
use postkeep_proxymap::approve::{Approved, Content, Files, Notice, Rules};
use postkeep_proxymap::evaluate;
use postkeep_proxymap::role::{self, Role};
use postkeep_proxymap::service::{Action, Conversation, Done, REPLY_TIME};
use postkeep_proxymap::share::{Settings, Tables};
use postkeep_sys::error_text;
use postkeep_tables::Registry;
use postkeep_wire::duplex::Outbox;
use postkeep_wire::protocol;
use postkeep_wire::proxymap::Generation;
use postkeep_wire::scan;

use super::announce::{Greeting, Policy, Turn as Greeted};
use super::errands::{self, Errand, Errands, Progress, Reply};
use super::oversize::Oversize;
use super::reach;
use super::table_metrics::{self, Names};
use super::tables;

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
    limits: errands::Limits,
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
        self.limits = errands::read_limits(dictionary, sink)?;
        self.open_tables = tables::read_open_tables(dictionary, sink)?;
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
            &setup.dictionary,
        ));
        let stream: Arc<str> = setup.stream_name().into();
        let tables = Arc::new(Tables::new(
            role,
            &approved,
            Arc::new(Registry::new(tables::context(
                &setup.common,
                &setup.dictionary,
            ))),
            Arc::new(tables::DiskObserver),
            Settings {
                open_error_is_fatal: setup.common.daemon_table_open_error_is_fatal,
                open_tables: self.open_tables,
                ..Settings::default()
            },
        ));
        if role == Role::Read && !setup.one_shot {
            tables::keep(Arc::clone(&tables));
        }
        Proxymap {
            names: Names::new(approved.sorted()),
            tables,
            errands: Errands::new(self.limits, setup.limits.busy_wait, Arc::clone(&stream)),
            requests: setup.limits.requests,
            oversize: Oversize::default(),
            policy: self.policy.unwrap_or(Policy::Always),
            stream,
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

/// The running service.
struct Proxymap {
    tables: Arc<Tables>,
    /// What they are called in metrics.
    names: Names,
    errands: Errands,
    /// What a client may send at most.
    requests: scan::Limits,
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

impl Proxymap {
    /// Writes the reply to a request that was done elsewhere, or was not.
    fn finish(client: &mut Client, done: Done, outbox: &mut Outbox<OwnedFd>) {
        if let Err(fatal) = client.conversation.finish(done, outbox) {
            logging::fatal(format_args!("{fatal}"));
        }
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
        table_metrics::describe(&self.tables, &self.names, &self.errands, page);
        self.oversize.describe(page);
    }

    fn reload(&self, table: &[u8]) -> Reloaded {
        tables::reload(&self.tables, table)
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
            match errands::look(&errand) {
                Progress::Out => {
                    client.errand = Some(errand);
                    return Next::Wait;
                }
                Progress::Lost => return Next::Close,
                Progress::Back(outcome) => {
                    Self::finish(client, outcome.done, turn.outbox);
                    turn.outbox.sent(outcome.told);
                }
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
                Action::Run(job) => {
                    let reply = if turn.outbox.is_empty() {
                        Reply::Early
                    } else {
                        Reply::InTurn
                    };
                    match self.errands.send(&client.waker, job, turn.now, reply) {
                        Ok(errand) => {
                            client.errand = Some(errand);
                            Next::Wait
                        }
                        Err(job) => {
                            Self::finish(client, job.put_off(), turn.outbox);
                            continue;
                        }
                    }
                }
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
}
